"""The counting client counts right: each thing a server can do to a request, on purpose and by number."""

from __future__ import annotations

import os
import queue
import re
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.counting_client import CountingClient, Failure, Outcome, Result, parse_address

_NUMBER = re.compile(rb"\?n=(\d+) ")


class Peer:
    """The server's side of one connection, for a script to act on."""

    def __init__(self, connection: socket.socket, index: int) -> None:
        self.socket = connection
        #: The how manieth connection this is, from 0.
        self.index = index
        self.unread = b""

    def request(self) -> int:
        """Read a request (without body); its number, or -1 if the client has closed."""
        while b"\r\n\r\n" not in self.unread:
            data = self.socket.recv(65536)
            if not data:
                return -1
            self.unread += data
        head, _, self.unread = self.unread.partition(b"\r\n\r\n")
        match = _NUMBER.search(head)
        assert match and b"X-Number: " + match[1] in head
        return int(match[1])

    def answer(self, number: int, *, status: str = "200 OK", body: bytes | None = None, more: str = "") -> None:
        """Answer a request in full."""
        body = f"number {number}".encode() if body is None else body
        fields = f"X-Number: {number}\r\nX-Worker-Pid: 4711\r\n{more}Content-Length: {len(body)}\r\n"
        self.send(f"HTTP/1.1 {status}\r\n{fields}\r\n".encode() + body)

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def reset(self) -> None:
        """Close with a TCP reset."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("@ii", 1, 0))
        self.socket.close()


def polite(peer: Peer) -> None:
    """Answers everything."""
    while (number := peer.request()) >= 0:
        peer.answer(number)


@contextmanager
def serving(script: Callable[[Peer], None], address: str = "127.0.0.1:0") -> Iterator[str]:
    """A server that runs ``script`` for each connection in a thread of its own; yields its address."""
    family, place = parse_address(address)
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.bind(place)
    listener.listen(128)
    threads: list[threading.Thread] = []
    peers: list[Peer] = []

    def run(peer: Peer) -> None:
        try:
            with peer.socket:
                script(peer)
        except ConnectionError:  # the client gave this connection up
            pass

    def accept() -> None:
        for index in range(1_000_000):
            try:
                connection, _ = listener.accept()
            except OSError:  # shut down: the test is over
                return
            peers.append(Peer(connection, index))
            threads.append(threading.Thread(target=run, args=(peers[-1],)))
            threads[-1].start()

    accepting = threading.Thread(target=accept)
    accepting.start()
    try:
        if family == socket.AF_UNIX:
            yield address
        else:
            host, port = listener.getsockname()[:2]
            yield f"[{host}]:{port}" if family == socket.AF_INET6 else f"{host}:{port}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        accepting.join()
        listener.close()
        for peer in peers:
            try:
                peer.socket.shutdown(socket.SHUT_RDWR)
            except OSError:  # closed by its script, or by the client
                pass
        for thread in threads:
            thread.join()


def ask(address: str, most: int = 1, **settings: object) -> Result:
    """Send ``most`` requests over one connection at a time."""
    client = CountingClient(address, **{"threads": 1, "most": most, "timeout": 10.0, **settings})  # type: ignore[arg-type]
    client.start()
    return client.wait_end(30)


def only(result: Result) -> Outcome:
    [outcome] = result.outcomes
    return outcome


@pytest.fixture(autouse=True)
def nothing_left() -> Iterator[None]:
    """No thread and no descriptor is left behind."""
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    yield
    assert len(os.listdir("/proc/self/fd")) == descriptors
    assert threading.active_count() == threads


# --- what is right ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep_alive", [True, False])
@pytest.mark.parametrize("address", ["127.0.0.1:0", "[::1]:0", "unix:{tmp}/socket"])
def test_every_number_is_answered_once(tmp_path: Path, address: str, keep_alive: bool) -> None:
    seen: queue.SimpleQueue[int] = queue.SimpleQueue()

    def script(peer: Peer) -> None:
        while (number := peer.request()) >= 0:
            seen.put(number)
            peer.answer(number)

    with serving(script, address.format(tmp=tmp_path)) as real:
        result = ask(
            real, 60, threads=3, keep_alive=keep_alive, body=lambda number, body: body == b"number %d" % number
        )
    result.check(60)
    assert [outcome.number for outcome in result.outcomes] == list(range(60))
    assert sorted(seen.get_nowait() for _ in range(60)) == list(range(60))
    assert seen.empty()
    assert result.connections <= 3 if keep_alive else result.connections == 60
    assert result.reopened == 0
    assert result.pids == {4711: 60}
    assert 0 < result.worst < 10
    assert result.summary().startswith("60 requests, 60 ok, 0 failed; worst ")


def test_the_client_changes_its_connection_where_it_should(tmp_path: Path) -> None:
    with serving(polite) as address:
        result = ask(address, 10, per_connection=3)
    result.check(10)
    assert result.connections == 4
    assert [outcome.kept for outcome in result.outcomes] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
    assert [outcome.pid_before for outcome in result.outcomes[:3]] == [0, 4711, 4711]


def test_a_body_is_posted() -> None:
    def script(peer: Peer) -> None:
        number = peer.request()
        while len(peer.unread) < 100_000:
            peer.unread += peer.socket.recv(65536)
        assert peer.unread == b"x" * 100_000
        peer.answer(number)

    with serving(script) as address:
        result = ask(address, data=b"x" * 100_000, headers=[("X-More", "1")])
    result.check()


@pytest.mark.parametrize(
    ("answer", "body"),
    [
        (
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2;x=y\r\nde\r\n0\r\nT: v\r\n\r\n",
            b"abcde",
        ),
        (b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nab", b"ab"),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", b"until the end"),
    ],
)
def test_answers_of_every_form_are_read(answer: bytes, body: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        for byte in answer:  # in the smallest pieces
            peer.send(bytes([byte]))

    with serving(script) as address:
        ask(address, body=lambda _, found: found == body).check()


# --- kept connections ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("address", ["127.0.0.1:0", "unix:{tmp}/socket"])
@pytest.mark.parametrize("reset", [False, True])
def test_a_connection_closed_before_a_byte_was_sent_is_reopened_silently(
    tmp_path: Path, address: str, reset: bool
) -> None:
    closed = threading.Semaphore(0)

    def script(peer: Peer) -> None:
        peer.answer(peer.request())
        peer.reset() if reset else peer.socket.close()
        closed.release()

    with serving(script, address.format(tmp=tmp_path)) as real:
        result = ask(real, 5, between=lambda number: closed.acquire() if number else None)
    result.check(5)
    assert (result.connections, result.reopened) == (5, 4)


def test_a_connection_whose_end_was_announced_is_no_reopening() -> None:
    def script(peer: Peer) -> None:
        peer.answer(peer.request(), more="Connection: close\r\n")

    with serving(script) as address:
        result = ask(address, 5)
    result.check(5)
    assert (result.connections, result.reopened) == (5, 0)


@pytest.mark.parametrize("reset", [False, True])
def test_a_kept_connection_closed_after_a_request_was_sent_is_a_failure(reset: bool) -> None:
    def script(peer: Peer) -> None:
        peer.answer(peer.request())
        peer.request()
        if reset:
            peer.reset()

    with serving(script) as address:
        result = ask(address, 4)
    assert [outcome.failure for outcome in result.outcomes] == [
        None,
        Failure.RESET if reset else Failure.CLOSED,
        None,
        Failure.RESET if reset else Failure.CLOSED,
    ]
    failed = result.failed[0]
    assert (failed.kept, failed.pid, failed.pid_before) == (1, 0, 4711)
    assert (result.connections, result.reopened) == (2, 0)
    with pytest.raises(AssertionError, match="4 requests, 2 ok, 2 failed"):
        result.check()
    result.check(2, failed=2)


def test_what_a_server_says_unasked_is_a_failure() -> None:
    said = threading.Event()

    def script(peer: Peer) -> None:
        peer.answer(peer.request())
        peer.send(b"HTTP/1.1 408 Request Timeout\r\n\r\n")
        said.set()
        peer.request()

    with serving(script) as address:
        result = ask(address, 2, between=lambda number: said.wait() if number else None)
    assert result.failures == {Failure.ANSWER: 1}
    assert "unasked: b'HTTP/1.1 408" in result.failed[0].error


# --- failures --------------------------------------------------------------------------------------------------------


def test_refused(tmp_path: Path) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))  # bound, but it does not listen
        outcome = only(ask(f"127.0.0.1:{unused.getsockname()[1]}"))
    assert (outcome.failure, outcome.status) == (Failure.REFUSED, 0)
    assert "Connection refused" in outcome.error
    outcome = only(ask(f"unix:{tmp_path}/missing"))
    assert outcome.failure is Failure.REFUSED
    assert "No such file" in str(outcome)


@pytest.mark.parametrize(
    ("answer", "failure", "error"),
    [
        (b"", Failure.CLOSED, "after 0 bytes of the head"),
        (b"HTTP/1.1 200 O", Failure.CLOSED, "after 14 bytes of the head"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", Failure.CLOSED, "after 3 of 10 bytes of the body"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nabcde\r\n", Failure.CLOSED, "size of a chunk"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", Failure.ANSWER, "size of a chunk"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nabc", Failure.ANSWER, "where it said"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n", Failure.ANSWER, "not a length"),
        (b"HTTP/1.1 200 OK\r\nno field\r\n\r\n", Failure.ANSWER, "not a field"),
        (b"220 mail ready\r\n\r\n", Failure.ANSWER, "not HTTP"),
        (b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy", Failure.STATUS, "503 instead of 200: b'busy'"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbad", Failure.BODY, "3 bytes: b'bad'"),
        (b"HTTP/1.1 200 OK\r\nX-Number: 7\r\nContent-Length: 4\r\n\r\ngood", Failure.ANSWER, "belongs to request 7"),
    ],
)
def test_an_answer_that_is_not_complete_or_not_right(answer: bytes, failure: Failure, error: str) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(answer)

    with serving(script) as address:
        outcome = only(ask(address, body=lambda _, body: body == b"good"))
    assert outcome.failure is failure
    assert error in outcome.error


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"])
def test_a_reset(begun: bytes) -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.send(begun)
        peer.reset()

    with serving(script) as address:
        outcome = only(ask(address))
    assert outcome.failure is Failure.RESET
    assert "reset by peer" in outcome.error


def test_a_server_that_does_not_answer_in_time() -> None:
    def script(peer: Peer) -> None:
        while peer.request() >= 0:
            pass

    with serving(script) as address:
        outcome = only(ask(address, timeout=0.05))
    assert outcome.failure is Failure.TIMEOUT
    assert 0.05 <= outcome.latency < 5


def test_a_server_that_answers_before_it_has_read_all_is_heard() -> None:
    def script(peer: Peer) -> None:
        peer.request()
        peer.answer(0, status="413 Content Too Large", more="Connection: close\r\n")
        peer.socket.shutdown(socket.SHUT_WR)
        while peer.socket.recv(1 << 20):
            pass

    with serving(script) as address:
        ask(address, status=413, data=b"x" * 5_000_000).check()


# --- bounds and steering ---------------------------------------------------------------------------------------------


def test_it_stops_when_it_is_told_and_every_number_has_an_outcome() -> None:
    with serving(polite) as address:
        with CountingClient(address, threads=3) as client:
            client.wait(20)
            at = client.ended
            client.wait(20)
        result = client.result()
    assert client.ended == len(result.outcomes) >= at + 20
    assert [outcome.number for outcome in result.outcomes] == list(range(len(result.outcomes)))
    assert result.since(10).outcomes == result.outcomes[10:]
    result.check(40)


def test_it_stops_by_itself_after_its_time() -> None:
    with serving(polite) as address:
        started = time.monotonic()
        client = CountingClient(address, threads=2, seconds=0.1)
        client.start()
        client.wait_end(30).check()
    assert time.monotonic() - started >= 0.1


def test_waiting_in_vain_says_so() -> None:
    with serving(polite) as address:
        client = CountingClient(address, threads=1, most=3)
        client.start()
        with pytest.raises(AssertionError, match=r"waited in vain.*ok=3"):
            client.wait(1000)
        client.stop().check(3)


def test_waiting_for_failures() -> None:
    with CountingClient("unix:/nonexistent/socket", threads=2) as client:
        client.wait_until(lambda now, before: now.failed >= before.failed + 3)
    assert client.result().failures[Failure.REFUSED] >= 3


def test_a_mistake_in_the_test_is_not_swallowed() -> None:
    def between(number: int) -> None:
        raise RuntimeError("a mistake")

    client = CountingClient("unix:/nonexistent/socket", threads=1, between=between)
    client.start()
    with pytest.raises(RuntimeError, match="a mistake"):
        client.wait_end(10)


def test_a_client_that_was_never_started_can_be_stopped() -> None:
    assert CountingClient("127.0.0.1:1").stop().outcomes == []
