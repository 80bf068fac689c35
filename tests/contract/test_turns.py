"""Several things in one turn of the worker: what the porter gave away, what was turned away, what trickles."""

from __future__ import annotations

import math
import socket
import time
from collections.abc import Callable

import pytest

from preforkd.config import Body, Timeouts
from preforkd.http import Peer
from preforkd.models import handover as passing
from tests.contract.bench import PATIENCE, Client, Worker
from tests.contract.services import Gate

Start = Callable[..., Worker]
Connect = Callable[..., Client]
Pair = tuple[socket.socket, socket.socket]

GET = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"
HOLD = b"GET /hold HTTP/1.1\r\nHost: bench\r\n\r\n"
QUEUE = Timeouts(queue=0.2)
TOO_LONG = 0.3


def taken(pair: Pair) -> passing.Handed:
    """What the worker gives away next."""
    pair[1].setblocking(True)
    pair[1].settimeout(PATIENCE)
    message = pair[1].recv(1, socket.MSG_PEEK)
    assert message
    pair[1].setblocking(False)
    handed = passing.take(pair[1])
    assert handed is not None
    return handed


def without_siblings(start: Start, connect: Connect, handover: Pair) -> tuple[Worker, Client, Client]:
    """A worker that has nobody to give connections to as yet, and two clients; it has served the second."""
    worker = start(handover=handover)
    worker.siblings[0] = 0
    busy, other = connect(), connect()
    assert other.get().status == 200
    return worker, busy, other


def test_what_was_given_away_after_it_was_reported_is_not_read(
    start: Start, connect: Connect, gate: Gate, handover: Pair
) -> None:
    worker, busy, other = without_siblings(start, connect, handover)
    busy.send(HOLD + HOLD)
    gate.wait_held()
    other.send(GET)
    gate.open()
    # Now the other one is reported, and before its turn comes the second request takes long.
    gate.wait_held()
    worker.siblings[0] = 1
    handed = taken(handover)
    gate.open()
    assert busy.response().status == busy.response().status == 200
    with socket.socket(fileno=handed.fd) as sibling:
        assert sibling.recv(1000) == GET
    assert connect().get().status == 200


def test_one_that_was_adopted_and_not_looked_at_is_given_away_once(
    start: Start, connect: Connect, gate: Gate, handover: Pair
) -> None:
    worker, busy, other = without_siblings(start, connect, handover)
    busy.send(HOLD + GET + HOLD)
    gate.wait_held()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        passing.give(handover[0], passing.Handed(ours.fileno(), Peer("", 0, "x", 80), GET, time.monotonic() + 60))
    gate.open()
    gate.wait_held()
    worker.siblings[0] = 1
    handed = taken(handover)
    assert handed.data == GET
    socket.close(handed.fd)
    # The porter is still at work.
    other.send(GET)
    socket.close(taken(handover).fd)
    gate.open()
    assert [busy.response().status for _ in range(3)] == [200, 200, 200]


def test_nothing_is_given_away_where_no_sibling_is_free(
    start: Start, connect: Connect, gate: Gate, handover: Pair
) -> None:
    """Its own worker serves it as soon; and when all leave, it is the only one that still can."""
    worker = start(handover=handover)
    worker.siblings[0] = 0
    first, busy, pipelined = connect(), connect(), connect()
    assert busy.get().status == pipelined.get().status == 200
    first.send(HOLD)
    gate.wait_held()
    busy.send(GET + HOLD)
    pipelined.send(GET + GET)
    gate.open()
    gate.wait_held()
    for _ in range(6):
        worker.wait_for("started")
    worker.wait_for("goes_on")
    worker.stop()
    gate.open()
    assert first.response().status == busy.response().status == busy.response().status == 200
    assert pipelined.response().status == pipelined.response().status == 200
    assert worker.join() == 0


def test_the_last_to_leave_serves_what_nobody_took(start: Start, connect: Connect, gate: Gate, handover: Pair) -> None:
    worker = start(handover=handover)
    busy = connect()
    busy.send(HOLD)
    gate.wait_held()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert passing.give(handover[0], passing.Handed(ours.fileno(), Peer("", 0, "x", 80), b"", math.inf))
        ours.close()
        theirs.sendall(GET)
        theirs.settimeout(PATIENCE)
        worker.stop()
        gate.open()
        assert theirs.recv(1000).startswith(b"HTTP/1.1 200 ")
    assert worker.join() == 0


def test_who_waited_behind_a_long_request_is_counted_no_longer_than_that(
    start: Start, connect: Connect, gate: Gate, handover: Pair
) -> None:
    """The master starts workers for those who wait."""
    worker, busy, other = without_siblings(start, connect, handover)
    busy.send(HOLD)
    gate.wait_held()
    other.send(GET)
    while worker.wait_for("waiting")["ready"] != 1:
        pass
    gate.open()
    assert busy.response().status == other.response().status == 200
    while worker.wait_for("waiting")["ready"] != 0:
        pass


@pytest.mark.parametrize("framing", ["Content-Length: 1000", "Transfer-Encoding: chunked"])
def test_who_is_turned_away_in_the_middle_of_a_body(start: Start, connect: Connect, gate: Gate, framing: str) -> None:
    start(timeouts=QUEUE)
    busy, late = connect(), connect()
    busy.send(HOLD)
    gate.wait_held()
    late.send(f"POST /echo HTTP/1.1\r\nHost: bench\r\n{framing}\r\n\r\n".encode())
    time.sleep(TOO_LONG)
    gate.open()
    assert busy.response().status == 200
    refused = late.response()
    assert refused.status == 503
    if "connection" not in refused.headers:
        late.send(b"x" * 1000)
        assert late.get().status == 200
    assert busy.get().status == 200


def test_who_pipelines_waits_for_nobody_but_himself_with_an_alarm_as_well(
    start: Start, connect: Connect, gate: Gate
) -> None:
    start(timeouts=Timeouts(queue=1.0), alarms=True)
    client = connect()
    client.send(HOLD * 4)
    for _ in range(4):
        gate.wait_held()
        time.sleep(0.4)
        gate.open()
    assert [client.response().status for _ in range(4)] == [200] * 4


def test_bytes_that_trickle_do_not_keep_an_alarm_armed(start: Start, connect: Connect) -> None:
    worker = start(alarms=True)
    client, slow = connect(), connect()
    slow.send(b"POST /echo HTTP/1.1\r\nHost: bench\r\nContent-Length: 100000\r\n\r\n")
    assert client.get().status == 200
    for _ in range(100):
        slow.send(b"x")
        time.sleep(0.002)
    slow.send(b"x" * 99_900)
    assert slow.response().status == 200
    names: list[str] = []
    while names.count("started") < 2:
        worker.wait_for("started")
        names = [event["event"] for event in worker.events]
    assert names[names.index("started") :].index("rests") < names[names.index("started") + 1 :].index("started") + 1


def test_a_shortage_while_it_leaves_loses_no_upload(start: Start, connect: Connect, tmp_path: object) -> None:
    worker = start(spare_files=5, body=Body(memory=0, directory=str(tmp_path)))
    uploads, idle = [connect() for _ in range(3)], connect()
    for client in (*uploads, idle):
        assert client.get().status == 200
    for client in uploads:
        client.send(b"POST /echo HTTP/1.1\r\nHost: bench\r\nContent-Length: 4\r\n\r\n")
    worker.stop()
    assert idle.until_closed() == b""
    # Its descriptor is free, and the listener's; the third one finds none.
    for client in uploads:
        client.send(b"a")
    worker.wait_for("body_not_stored")
    for client in reversed(uploads):
        client.send(b"bcd")
    for client in uploads:
        assert client.response().body == b"abcd"
    assert worker.join() == 0


def test_a_client_for_whom_only_this_worker_was_woken_goes_to_a_sibling(
    start: Start, connect: Connect, gate: Gate, handover: Pair
) -> None:
    busy, client = connect(), connect()  # accepted one by one, in this order
    busy.send(HOLD)
    client.send(GET)
    start(handover=handover)
    gate.wait_held()
    handed = taken(handover)
    with socket.socket(fileno=handed.fd) as sibling:
        sibling.setblocking(True)
        assert (handed.data, handed.peer.client, sibling.recv(1000)) == (b"", "127.0.0.1", GET)
    gate.open()
    assert busy.response().status == 200


def test_what_was_handed_over_and_not_adopted_goes_on_to_a_sibling(
    start: Start, connect: Connect, gate: Gate, handover: Pair
) -> None:
    worker = start(handover=handover)
    worker.siblings[0] = 0
    busy = connect()
    busy.send(HOLD)
    gate.wait_held()
    ours, theirs = socket.socketpair()
    with ours, theirs:
        passing.give(handover[0], passing.Handed(ours.fileno(), Peer("", 0, "first", 80), GET, math.inf))
        passing.give(handover[0], passing.Handed(ours.fileno(), Peer("", 0, "second", 80), b"", math.inf))
    worker.siblings[0] = 1
    # They go round until somebody adopts them: the first one comes behind the second.
    seen = [taken(handover) for _ in range(2)]
    for handed in seen:
        socket.close(handed.fd)
    assert sorted((handed.peer.server, handed.data) for handed in seen) == [("first", GET), ("second", b"")]
    gate.open()
    assert busy.response().status == 200
