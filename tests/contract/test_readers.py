"""Clients that do not take their answer, or take it slowly: they cost no worker, and get every byte of it."""

from __future__ import annotations

import os
import select
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from preforkd.config import Answer, Limits, Timeouts
from preforkd.handlers.wsgi import WSGI
from tests.contract.bench import Client, Worker
from tests.contract.services import Gate

Start = Callable[..., Worker]
Connect = Callable[..., Client]
Slow = Callable[..., Client]
Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]

#: Far more than the kernel's buffers hold for a client that has a small one (net.ipv4.tcp_wmem: 4 MB).
SIZE = 12 << 20
#: Sent in one piece with its head.
MIDDLE = 10_000
ROOM = {"answer": Answer(buffer=16 << 20)}
BLOCK = os.urandom(1 << 16)
CONTENT = BLOCK * (SIZE // len(BLOCK))


class Application:
    """Big answers, each of them in another way."""

    def __init__(self, gate: Gate, file: Path) -> None:
        self._gate = gate
        self._file = file
        file.write_bytes(CONTENT)

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        found: Iterable[bytes] = getattr(self, "on_" + environ["PATH_INFO"][1:].replace("-", "_"))(
            environ, start_response
        )
        return found

    def on_small(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [b"small"]

    def on_middle(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [CONTENT[:MIDDLE]]

    def on_list(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [CONTENT]

    def on_blocks(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        return [BLOCK] * (SIZE // len(BLOCK))

    def on_announced(self, environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [("Content-Length", str(SIZE))])
        yield CONTENT

    def on_unannounced(self, environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield CONTENT

    def on_file(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [])
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](self._file.open("rb"))
        return wrapped

    def on_late_close(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        start_response("200 OK", [("Content-Length", str(SIZE))])
        return _Late(self._gate)

    def on_hold(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self._gate.hold()
        start_response("200 OK", [])
        return [b"held"]

    def on_fork(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        pid = os.fork()
        if not pid:
            self._gate.hold()
            os._exit(0)
        start_response("200 OK", [])
        return [str(pid).encode()]


class _Late:
    """Has something to do when everything is said."""

    def __init__(self, gate: Gate) -> None:
        self._gate = gate

    def __iter__(self) -> Iterator[bytes]:
        self._gate.hold()
        return iter([CONTENT])

    def close(self) -> None:
        self._gate.hold()


COMPLETE = ["/list", "/blocks", "/announced", "/file"]


@pytest.fixture
def application(gate: Gate, tmp_path: Path) -> WSGI:
    return WSGI(Application(gate, tmp_path / "content"), pool="web")


@pytest.fixture
def serve(start: Start, application: WSGI) -> Start:
    """Starts a worker that serves the big answers, and keeps what is not taken of them."""

    def begin(**options: Any) -> Worker:
        return start(application, **({"access": True, "settings": ROOM} | options))

    return begin


def ask(client: Client, path: str, headers: str = "", *, version: str = "1.1", method: str = "GET") -> None:
    client.send(f"{method} {path} HTTP/{version}\r\nHost: bench\r\n{headers}\r\n".encode())


def small(client: Client) -> None:
    assert client.get("/small").body == b"small"


@pytest.fixture
def slow(connect: Connect) -> Slow:
    """A client that asks for something and does not take the answer."""

    def begin(path: str, headers: str = "", **options: Any) -> Client:
        client = connect(receive_buffer=4096)
        ask(client, path, headers, **options)
        return client

    return begin


def parked(worker: Worker) -> None:
    """The worker has answered, and has turned to others."""
    worker.wait_for("finished")


@pytest.mark.parametrize("path", COMPLETE)
def test_a_complete_answer_costs_no_worker(serve: Start, connect: Connect, slow: Slow, path: str) -> None:
    worker = serve()
    readers = [slow(path) for _ in range(3)]
    for _ in readers:
        parked(worker)
    small(connect())
    assert [event for event in worker.events if event["event"] == "access"] == []
    assert worker.wait_for("access")["target"] == "/small"
    for reader in readers:
        response = reader.response()
        assert response.body == CONTENT
        assert response.headers["content-length"] == str(SIZE)
        record = worker.wait_for("access")
        assert (record["target"], record["status"], record["sent"]) == (path, 200, SIZE)
    for reader in readers:
        small(reader)  # the connection is kept


@pytest.mark.parametrize("path", COMPLETE)
def test_nothing_is_kept_where_nothing_shall_be(serve: Start, connect: Connect, slow: Slow, path: str) -> None:
    worker = serve(settings={"answer": Answer(buffer=0)})
    reader = slow(path)
    worker.wait_for("started")
    other = connect()
    ask(other, "/small")
    assert reader.response().body == CONTENT
    assert other.response().body == b"small"
    assert [worker.wait_for("access")["target"] for _ in range(2)] == [path, "/small"]


def test_a_worker_waits_until_the_rest_fits(serve: Start, connect: Connect, slow: Slow) -> None:
    worker = serve(settings={"answer": Answer(buffer=SIZE // 2)})
    reader = slow("/list", "Connection: close\r\n")
    worker.wait_for("started")
    other = connect()
    ask(other, "/small")
    taken = reader.exactly(SIZE // 2)
    assert other.response().body == b"small"
    assert worker.wait_for("access")["target"] == "/small"
    assert (taken + reader.until_closed()).partition(b"\r\n\r\n")[2] == CONTENT


def test_what_may_be_added_to_is_waited_for(serve: Start, connect: Connect, slow: Slow) -> None:
    """PEP 3333: no block must be delayed while the application produces the next."""
    worker = serve()
    reader = slow("/unannounced")
    worker.wait_for("started")
    other = connect()
    ask(other, "/small")
    assert reader.response().body == CONTENT
    assert other.response().body == b"small"
    assert [worker.wait_for("access")["target"] for _ in range(2)] == ["/unannounced", "/small"]


@pytest.mark.parametrize("path", COMPLETE)
def test_the_next_request_waits_for_the_answer(serve: Start, slow: Slow, path: str) -> None:
    worker = serve()
    reader = slow(path)
    ask(reader, path)
    ask(reader, "/small")
    parked(worker)
    assert [event["event"] for event in worker.events].count("started") == 1
    assert [reader.response().body for _ in range(3)] == [CONTENT, CONTENT, b"small"]
    assert [worker.wait_for("access")["target"] for _ in range(3)] == [path, path, "/small"]


def test_many_small_answers_that_are_not_read(serve: Start, connect: Connect, slow: Slow) -> None:
    """None of them is long, but at last not even the head of one fits into the kernel's buffer."""
    worker = serve()
    reader, other = slow("/middle"), connect()
    count = SIZE // MIDDLE
    for _ in range(count):
        ask(reader, "/middle")
    for _ in range(count):  # a turn for each of the two, as long as both have something to say
        small(other)
        while worker.wait_for("access")["target"] != "/small":
            pass
    served = sum(event.get("target") == "/middle" for event in worker.events)
    assert served <= count, "all of them fitted"
    reader.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
    for number in range(count + 1):
        assert len(reader.response().body) == MIDDLE
        if number >= served:
            worker.wait_for("access")  # the pipe must not be full


@pytest.mark.parametrize("path", COMPLETE)
def test_what_comes_behind_the_last_request_takes_no_answer_away(serve: Start, slow: Slow, path: str) -> None:
    worker = serve()
    reader = slow(path, "Connection: close\r\n")
    parked(worker)
    ask(reader, "/small")
    assert reader.response().body == CONTENT
    assert reader.until_closed() == b""


@pytest.mark.parametrize("path", COMPLETE)
def test_an_answer_that_ends_the_connection(serve: Start, slow: Slow, path: str) -> None:
    worker = serve()
    for version, headers in [("1.1", "Connection: close\r\n"), ("1.0", "")]:
        reader = slow(path, headers, version=version)
        parked(worker)
        assert reader.response().body == CONTENT
        assert reader.until_closed() == b""
        assert worker.wait_for("access")["sent"] == SIZE


@pytest.mark.parametrize("path", COMPLETE)
def test_head(serve: Start, connect: Connect, path: str) -> None:
    worker = serve()
    client = connect()
    response = client.get(path, method="HEAD")
    assert (response.status, response.headers["content-length"]) == (200, str(SIZE))
    small(client)
    assert worker.wait_for("access")["sent"] == 0


@pytest.mark.parametrize("path", COMPLETE)
def test_who_does_not_read_is_cut_off(serve: Start, slow: Slow, path: str) -> None:
    worker = serve(timeouts=Timeouts(send=0.3))
    reader = slow(path)
    parked(worker)
    event = worker.wait_for("client_gone")
    assert event["reason"] == "the client does not read its answer"
    assert event["request"] == f"GET {path}"
    record = worker.wait_for("access")
    assert (record["target"], record["status"]) == (path, 200)
    assert 0 < record["sent"] < SIZE
    assert record["duration"] >= 0.3
    with pytest.raises(ConnectionResetError):
        reader.until_closed()


def test_who_reads_below_the_rate_is_cut_off(serve: Start, slow: Slow) -> None:
    worker = serve(timeouts=Timeouts(send=0.3), limits=Limits(rate=1 << 30))
    reader = slow("/list")
    parked(worker)
    while select.select([reader.socket], [], [], 0.01)[0]:
        try:
            reader.socket.recv(1000)
        except ConnectionResetError:
            break
        time.sleep(0.01)
    assert worker.wait_for("client_gone")["reason"] == "the client does not read its answer"
    assert 0 < worker.wait_for("access")["sent"] < SIZE


def test_who_sips_is_not_cut_off(serve: Start, slow: Slow) -> None:
    """Less than makes the kernel report room, in each of several timeouts."""
    worker = serve(timeouts=Timeouts(send=0.3), limits=Limits(rate=1))
    reader = slow("/list")
    parked(worker)
    until = time.monotonic() + 1.5
    left = SIZE
    while time.monotonic() < until:
        left -= len(reader.socket.recv(1000))
        time.sleep(0.01)
    reader.exactly(left)
    assert worker.wait_for("access")["sent"] == SIZE


@pytest.mark.parametrize("path", COMPLETE)
def test_a_client_that_leaves(serve: Start, connect: Connect, slow: Slow, path: str) -> None:
    worker = serve()
    reader = slow(path)
    parked(worker)
    reader.socket.close()
    assert "left before the end of its answer" in worker.wait_for("client_gone")["reason"]
    assert 0 < worker.wait_for("access")["sent"] < SIZE
    small(connect())


def test_a_file_that_becomes_shorter(serve: Start, connect: Connect, slow: Slow, tmp_path: Path) -> None:
    worker = serve()
    reader = slow("/file")
    parked(worker)
    os.truncate(tmp_path / "content", SIZE - 1000)
    with pytest.raises(EOFError):
        reader.response()
    assert "1000 bytes shorter" in worker.wait_for("app_response_length")["reason"]
    assert worker.wait_for("access")["sent"] == SIZE - 1000
    small(connect())


def test_files_are_given_back(serve: Start, connect: Connect, slow: Slow, tmp_path: Path) -> None:
    worker = serve()
    readers = [slow("/file") for _ in range(3)]
    for _ in readers:
        parked(worker)
    assert worker.files_in(tmp_path) == 3
    readers.pop().socket.close()
    worker.wait_for("access")
    for reader in readers:
        assert reader.response().body == CONTENT
        worker.wait_for("access")
    assert worker.files_in(tmp_path) == 0


def test_readers_leave_the_application_its_descriptors(serve: Start, connect: Connect, slow: Slow) -> None:
    worker = serve(spare_files=48)
    readers = [slow("/file") for _ in range(30)]
    worker.wait_for("descriptors_exhausted")
    before = len(os.listdir(f"/proc/{worker.pid}/fd"))
    readers += [slow("/file") for _ in range(3)]
    time.sleep(2.5)  # longer than two pauses
    assert len(os.listdir(f"/proc/{worker.pid}/fd")) <= before
    with ThreadPoolExecutor(len(readers)) as pool:
        # The last ones are accepted as soon as there is room again.
        assert all(pool.map(lambda reader: reader.response().body == CONTENT, readers))


def test_without_a_descriptor_for_the_file_it_is_waited_for(serve: Start, connect: Connect, slow: Slow) -> None:
    serve(spare_files=3)  # for the poll set, the connection, and the application's own file
    reader = slow("/file")
    assert reader.response().body == CONTENT


def test_no_victim_of_a_shortage(serve: Start, connect: Connect, slow: Slow) -> None:
    worker = serve(spare_files=6)
    reader = slow("/list")
    parked(worker)
    for _ in range(10):
        small(connect())
    worker.wait_for("descriptors_exhausted")
    assert reader.response().body == CONTENT


@pytest.mark.parametrize("path", COMPLETE)
@pytest.mark.parametrize("stop", [False, True])
def test_a_worker_that_leaves_finishes_it(serve: Start, slow: Slow, path: str, stop: bool) -> None:
    worker = serve()
    reader = slow(path)
    parked(worker)
    if stop:
        worker.stop()
    else:
        worker.leave()
    assert reader.response().body == CONTENT
    if stop:
        assert reader.until_closed() == b""
        assert worker.join() == 0


@pytest.mark.parametrize("stop", [False, True])
def test_a_worker_that_leaves_answers_what_was_asked_behind_it(serve: Start, slow: Slow, stop: bool) -> None:
    worker = serve()
    reader = slow("/list")
    parked(worker)
    ask(reader, "/small")
    if stop:
        worker.stop()
    else:
        worker.leave()
    assert reader.response().body == CONTENT
    assert reader.response().body == b"small"
    assert reader.until_closed() == b""
    assert worker.join() == 0


def test_a_recycled_worker_finishes_it(serve: Start, slow: Slow) -> None:
    worker = serve(requests=1, timeouts=Timeouts(keepalive=0.1))
    reader = slow("/list")
    assert reader.response().body == CONTENT
    assert reader.until_closed() == b""
    assert worker.join() != 0


def test_after_it_the_connection_moves(serve: Start, slow: Slow, handover: tuple[socket.socket, socket.socket]) -> None:
    first = serve(handover=handover)
    reader = slow("/list")
    parked(first)
    first.leave()
    serve(handover=handover, slot=1)
    assert reader.response().body == CONTENT
    small(reader)
    assert first.join() == 0


def test_no_alarm_while_only_readers_are_waited_for(serve: Start, slow: Slow) -> None:
    worker = serve(alarms=True)
    reader = slow("/list")
    parked(worker)
    worker.wait_for("rests")
    assert reader.response().body == CONTENT


@pytest.mark.parametrize("path", ["/list", "/file"])
def test_a_child_of_the_application_lets_go(
    serve: Start, connect: Connect, slow: Slow, gate: Gate, tmp_path: Path, path: str
) -> None:
    worker = serve()
    reader = slow(path, "Connection: close\r\n")
    parked(worker)
    child = int(connect().get("/fork").body)
    gate.wait_held()
    links = [os.readlink(link) for link in Path(f"/proc/{child}/fd").iterdir()]
    assert not any(link.startswith(f"{tmp_path}/") for link in links)
    assert reader.response().body == CONTENT
    assert reader.until_closed() == b"", "the child holds the connection"
    gate.open()
    worker.wait_for("access")


def test_a_long_request_does_not_keep_readers_waiting(
    serve: Start, connect: Connect, slow: Slow, gate: Gate, handover: tuple[socket.socket, socket.socket]
) -> None:
    worker = serve(handover=handover)
    readers = [slow(path) for path in COMPLETE]
    for _ in readers:
        parked(worker)
    busy = connect()
    ask(busy, "/hold")
    gate.wait_held()
    for reader in readers:
        assert reader.response().body == CONTENT
    gate.open()
    assert busy.response().body == b"held"
    for reader in readers:
        small(reader)


@pytest.mark.parametrize("early", [False, True], ids=["when the porter is at work", "before that"])
def test_what_an_application_does_in_the_end_does_not_keep_its_reader_waiting(
    serve: Start, slow: Slow, gate: Gate, handover: tuple[socket.socket, socket.socket], early: bool
) -> None:
    worker = serve(handover=handover)
    reader = slow("/late-close")
    gate.wait_held()
    if not early:
        worker.wait_for("goes_on")
    gate.open()
    gate.wait_held()
    assert reader.response().body == CONTENT
    assert "finished" not in [event["event"] for event in worker.events]
    gate.open()
    assert worker.wait_for("access")["sent"] == SIZE
    small(reader)


def test_a_client_that_leaves_beside_a_long_request(
    serve: Start, connect: Connect, slow: Slow, gate: Gate, handover: tuple[socket.socket, socket.socket]
) -> None:
    worker = serve(handover=handover)
    gone, stays = slow("/list"), slow("/list")
    for _ in range(2):
        parked(worker)
    busy = connect()
    ask(busy, "/hold")
    gate.wait_held()
    worker.wait_for("goes_on")
    gone.socket.close()
    assert stays.response().body == CONTENT
    gate.open()
    assert busy.response().body == b"held"
    assert sorted(worker.wait_for("access")["sent"] // SIZE for _ in range(3)) == [0, 0, 1]
    assert "client_gone" in [event["event"] for event in worker.events]
    small(stays)


@pytest.mark.parametrize("path", COMPLETE)
def test_a_unix_socket(serve: Start, connect: Connect, unix_listener: socket.socket, path: str) -> None:
    """Where the kernel counts what is unread in another way, and in whole pieces."""
    worker = serve(listeners=[unix_listener], timeouts=Timeouts(send=1), limits=Limits(rate=1))
    address = unix_listener.getsockname()
    gone, reader = connect(address), connect(address)
    for client in (gone, reader):
        ask(client, path, "Connection: close\r\n")
        parked(worker)
    small(connect(address))
    until = time.monotonic() + 2
    sipped = b""
    while time.monotonic() < until:
        sipped += reader.socket.recv(1000)
        time.sleep(0.01)
    assert worker.wait_for("client_gone")["request"] == f"GET {path}"
    assert (sipped + reader.until_closed()).partition(b"\r\n\r\n")[2] == CONTENT
    assert [event["event"] for event in worker.events].count("client_gone") == 1
