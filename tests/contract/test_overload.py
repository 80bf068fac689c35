"""`timeouts.queue`: who waited too long for a worker is refused at once, and nobody else is."""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Sequence

import pytest

from preforkd.config import Timeouts
from preforkd.models.connection import Connection
from tests.contract.bench import Client, Worker
from tests.contract.services import Gate

Start = Callable[..., Worker]
Connect = Callable[..., Client]

GET = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
HOLD = b"GET /hold HTTP/1.1\r\nHost: bench\r\n\r\n"
LIMIT = 0.2
#: Longer than the limit, with room for the kernel's clock (4 ms) and for a look at a unix socket.
TOO_LONG = 0.3
QUEUE = Timeouts(queue=LIMIT)


def hold(client: Client, gate: Gate) -> None:
    """The only worker is busy from now on."""
    client.send(HOLD)
    gate.wait_held()


def release(client: Client, gate: Gate) -> None:
    """What waits now has waited too long; time has to pass for that."""
    time.sleep(TOO_LONG)
    gate.open()
    assert client.response().status == 200


def test_who_waited_too_long_in_the_kernels_queue_is_refused(start: Start, connect: Connect, gate: Gate) -> None:
    worker = start(timeouts=QUEUE, access=True)
    busy = connect()
    hold(busy, gate)
    late = connect()
    late.send(GET)
    release(busy, gate)
    response = late.response()
    assert response.status == 503
    assert 1 <= int(response.headers["retry-after"]) <= 2
    assert b"overloaded" in response.body
    assert worker.wait_for("refused")["waited"] > LIMIT
    record = worker.wait_for("access")
    while record["status"] != 503:
        record = worker.wait_for("access")
    assert (record["method"], record["target"]) == ("GET", "/")
    # The connection is kept, and its next request has not waited.
    assert late.get().status == 200
    assert sum(event["event"] == "started" for event in worker.events) <= 2


@pytest.mark.parametrize("told", ["192.0.2.1", "who"])
def test_the_log_names_the_client_that_the_proxy_tells(start: Start, connect: Connect, gate: Gate, told: str) -> None:
    worker = start(timeouts=QUEUE, access=True, settings={"trusted_proxies": ("127.0.0.1",)})
    busy, late = connect(), connect()
    hold(busy, gate)
    late.send(GET.replace(b"\r\n\r\n", b"\r\nX-Forwarded-For: %b\r\n\r\n" % told.encode()))
    release(busy, gate)
    assert late.response().status == 503
    while (record := worker.wait_for("access"))["status"] != 503:
        pass
    assert record["client"] == (told if told != "who" else "127.0.0.1")


def test_a_refusal_that_does_not_go_at_once_is_kept_like_an_answer(
    start: Start, connect: Connect, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    def send_nothing(self: Connection, pieces: Sequence[bytes], last: bool = False) -> None:
        assert last
        self._keep(b"".join(pieces))

    monkeypatch.setattr(Connection, "send", send_nothing)  # as if the kernel's buffer were full
    worker = start(timeouts=QUEUE, access=True)
    busy, late = connect(), connect()
    hold(busy, gate)
    late.send(GET + GET)
    release(busy, gate)
    assert late.response().status == 503
    record = worker.wait_for("access")
    while record["status"] != 503:
        record = worker.wait_for("access")
    assert record["target"] == "/"
    assert late.response().status in (200, 503)
    assert late.get().status == 200


def test_who_waited_too_long_on_a_kept_connection_is_refused(start: Start, connect: Connect, gate: Gate) -> None:
    start(timeouts=QUEUE)
    busy, kept, fresh = connect(), connect(), connect()
    assert kept.get().status == fresh.get().status == 200
    hold(busy, gate)
    kept.send(GET)
    time.sleep(TOO_LONG)
    fresh.send(GET)
    gate.open()
    assert busy.response().status == 200
    assert kept.response().status == 503
    assert fresh.response().status == 200, "it came just now"
    assert kept.get().status == 200


def test_who_waited_for_the_start_is_served(start: Start, connect: Connect) -> None:
    """Socket activation, a restart: the application was loaded meanwhile."""
    early = [connect() for _ in range(5)]
    for client in early:
        client.send(GET)
    time.sleep(TOO_LONG)
    start(timeouts=QUEUE)
    assert [client.response().status for client in early] == [200] * 5


def test_a_slow_client_has_not_waited_for_us(start: Start, connect: Connect) -> None:
    start(timeouts=QUEUE)
    slow = connect()
    assert slow.get().status == 200
    slow.send(GET[:20])
    time.sleep(TOO_LONG)
    slow.send(GET[20:])
    assert slow.response().status == 200
    time.sleep(TOO_LONG)
    assert slow.get().status == connect().get().status == 200


@pytest.mark.parametrize("pipelined", [False, True])
def test_behind_its_own_request_nobody_has_waited_for_us(
    start: Start, connect: Connect, gate: Gate, pipelined: bool
) -> None:
    start(timeouts=QUEUE)
    busy, other = connect(), connect()
    assert other.get().status == 200
    busy.send(HOLD + GET * pipelined)
    gate.wait_held()
    busy.send(GET)
    other.send(GET)
    release(busy, gate)
    assert [busy.response().status for _ in range(1 + pipelined)] == [200] * (1 + pipelined)
    assert other.response().status == 503


def test_without_a_limit_everybody_is_served(start: Start, connect: Connect, gate: Gate) -> None:
    start(timeouts=Timeouts(queue=0))
    busy, late = connect(), connect()
    hold(busy, gate)
    late.send(GET)
    release(busy, gate)
    assert late.response().status == 200


def test_pipelined_requests_are_refused_in_order(start: Start, connect: Connect, gate: Gate) -> None:
    start(timeouts=QUEUE)
    busy, late = connect(), connect()
    hold(busy, gate)
    late.send(
        b"HEAD / HTTP/1.1\r\nHost: bench\r\n\r\n" + GET + GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")
    )
    release(busy, gate)
    head = late.response(head_only=True)
    assert (head.status, int(head.headers["content-length"]) > 0) == (503, True)
    # What follows waited as long; whether others still wait decides about it.
    following = [late.response() for _ in range(2)]
    assert {response.status for response in following} <= {200, 503}
    assert following[-1].headers["connection"] == "close"
    assert late.until_closed() == b""


@pytest.mark.parametrize("chunked", [False, True])
def test_a_small_body_is_skipped_and_the_connection_kept(
    start: Start, connect: Connect, gate: Gate, chunked: bool
) -> None:
    start(timeouts=QUEUE)
    busy, late = connect(), connect()
    hold(busy, gate)
    body = b"x" * 30_000
    if chunked:
        late.send(b"POST /echo HTTP/1.1\r\nHost: bench\r\nTransfer-Encoding: chunked\r\n\r\n")
        late.send(b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body))
    else:
        late.send(b"POST /echo HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
    release(busy, gate)
    assert late.response().status == 503
    assert late.post("/echo", b"again").body == b"again"


@pytest.mark.parametrize("sent", [1_000, 200_000], ids=["incomplete", "large"])
def test_another_body_ends_the_connection_and_the_answer_arrives(
    start: Start, connect: Connect, gate: Gate, sent: int
) -> None:
    start(timeouts=QUEUE)
    busy, late = connect(), connect()
    hold(busy, gate)
    late.send(b"POST /echo HTTP/1.1\r\nHost: bench\r\nContent-Length: 200000\r\n\r\n" + b"x" * sent)
    release(busy, gate)
    response = late.response()
    assert (response.status, response.headers["connection"]) == (503, "close")
    assert late.until_closed() == b""


def test_who_waits_for_100_gets_the_refusal_instead(start: Start, connect: Connect, gate: Gate) -> None:
    start(timeouts=QUEUE)
    busy, late = connect(), connect()
    hold(busy, gate)
    late.send(b"POST /echo HTTP/1.1\r\nHost: bench\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    release(busy, gate)
    response = late.response()
    assert (response.status, response.headers["connection"]) == (503, "close")


def test_on_a_unix_socket_the_queue_is_followed(
    start: Start, connect: Connect, gate: Gate, unix_listener: socket.socket
) -> None:
    """Who was seen in the queue for too long is refused; who came since, or while nobody looked, is served."""
    worker = start(timeouts=QUEUE, listeners=[unix_listener])
    path = unix_listener.getsockname()
    holders = [connect(path) for _ in range(3)]
    hold(holders[0], gate)
    for client in holders[1:]:
        client.send(HOLD)
    time.sleep(LIMIT / 4)  # calm is in doubt from now on: the next request makes the worker look at its queue
    gate.open()
    gate.wait_held()
    late = [connect(path) for _ in range(3)]
    for client in late:
        client.send(GET)
    time.sleep(LIMIT / 4)
    gate.open()
    gate.wait_held()  # it has looked again, and seen those who will be late
    time.sleep(TOO_LONG)
    new = connect(path)
    new.send(GET)
    gate.open()
    assert [client.response().status for client in holders] == [200] * 3
    assert [client.response().status for client in late] == [503] * 3
    assert new.response().status == 200
    assert worker.wait_for("refused")["waited"] >= LIMIT


def test_on_a_kept_unix_connection_it_counts_since_it_was_seen(
    start: Start, connect: Connect, gate: Gate, unix_listener: socket.socket
) -> None:
    start(timeouts=QUEUE, listeners=[unix_listener])
    path = unix_listener.getsockname()
    first, second, kept, other = (connect(path) for _ in range(4))
    assert [client.get().status for client in (first, second, kept, other)] == [200] * 4
    hold(first, gate)
    second.send(HOLD)
    kept.send(GET)
    time.sleep(LIMIT / 4)
    gate.open()
    gate.wait_held()  # the second one's: the worker looked, and saw that the kept one waits
    time.sleep(TOO_LONG)
    other.send(GET)
    gate.open()
    assert kept.response().status == 503
    assert [client.response().status for client in (first, second, other)] == [200] * 3


def test_a_busy_worker_that_nobody_waits_for_refuses_nobody(start: Start, connect: Connect) -> None:
    """A request at a time, for several limits: each is younger than the limit, the service is older."""
    worker = start(timeouts=Timeouts(queue=0.1))
    client = connect()
    for _ in range(80):
        assert client.get().status == 200
        assert client.get("/environ").status == 200
        time.sleep(0.005)
    worker.leave()
    assert worker.join() == 0
