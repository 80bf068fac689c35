"""What waiting clients cost, and when their time is up."""

from __future__ import annotations

import errno
import os
import select
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preforkd.config import Body, Timeouts
from tests.contract.bench import Client, Worker
from tests.contract.services import Gate

Start = Callable[..., Worker]
Connect = Callable[..., Client]

HALF = b"GET / HTTP/1.1\r\nHost: be"
RESERVED = "the descriptors that are left are for the application"
SHORT = Timeouts(header=0.2, keepalive=0.2)


def test_half_sent_heads_cost_no_worker(start: Start, connect: Connect) -> None:
    start()
    slow = [connect() for _ in range(50)]
    for client in slow:
        client.send(HALF)
    assert connect().get().status == 200
    for client in slow:
        client.send(b"nch\r\n\r\n")
        assert client.response().status == 200


def test_a_half_sent_head_times_out_with_408(start: Start, connect: Connect) -> None:
    worker = start(timeouts=SHORT, access=True)
    client = connect()
    client.send(HALF)
    response = client.response()
    assert (response.status, response.headers["connection"]) == (408, "close")
    assert client.until_closed() == b""
    record = worker.wait_for("access")
    assert (record["status"], record["method"], record["target"]) == (408, "GET", "/")


def test_a_dripped_head_gains_no_time(start: Start, connect: Connect) -> None:
    start(timeouts=Timeouts(header=0.3))
    client = connect()
    began = time.monotonic()
    for byte in HALF * 100:
        client.send(bytes((byte,)))
        if select.select([client.socket], [], [], 0.02)[0]:
            break
    assert client.response().status == 408
    assert time.monotonic() - began < 2


def test_a_silent_client_is_closed_silently(start: Start, connect: Connect) -> None:
    start(timeouts=SHORT)
    assert connect().until_closed() == b""


def test_an_idle_connection_is_closed_silently(start: Start, connect: Connect) -> None:
    start(timeouts=SHORT)
    client = connect()
    client.get()
    assert client.until_closed() == b""


def test_each_request_renews_the_time(start: Start, connect: Connect) -> None:
    start(timeouts=Timeouts(keepalive=0.4))
    client = connect()
    for _ in range(4):
        client.get()
        assert not select.select([client.socket], [], [], 0.2)[0]
    client.get()


def test_who_was_not_listened_to_in_time_is_not_cut(start: Start, connect: Connect, gate: Gate) -> None:
    start(timeouts=Timeouts(header=0.1, keepalive=0.1))
    idle, half, busy = connect(), connect(), connect()
    idle.get()
    half.send(HALF)
    busy.send(b"GET /hold HTTP/1.1\r\nHost: bench\r\n\r\n")
    gate.wait_held()
    idle.send(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    half.send(b"nch\r\n\r\n")
    time.sleep(0.2)  # both deadlines pass while the worker is busy
    gate.open()
    assert idle.response().status == 200
    assert half.response().status == 200


def test_an_idle_worker_sleeps(start: Start, connect: Connect) -> None:
    worker = start(timeouts=Timeouts(header=60, keepalive=60))
    clients = [connect() for _ in range(3)]
    for client in clients[1:]:
        client.get()
    for _ in range(2):
        worker.wait_for("finished")
    before = worker.sleeps()
    time.sleep(0.3)
    assert worker.sleeps() - before <= 1


def test_timeouts_of_zero_are_none(start: Start, connect: Connect) -> None:
    """But for `keepalive`, where 0 means that no connection is kept."""
    worker = start(timeouts=Timeouts(header=0, keepalive=0, body=0, send=0))
    for response in (connect().get(), connect().post("/echo", b"abc")):
        assert response.status == 200
        assert response.headers["connection"] == "close"
    worker.leave()
    assert worker.join() == 0


def served(connect: Connect) -> Client:
    """A client on a kept connection that has nothing to say at the moment."""
    client = connect()
    assert client.get().status == 200
    return client


def test_out_of_descriptors_the_oldest_idle_connection_goes(start: Start, connect: Connect) -> None:
    worker = start(spare_files=12)
    clients = [served(connect) for _ in range(20)]
    event = worker.wait_for("descriptors_exhausted")
    assert event["action"] == "closing idle connections"
    assert clients[0].until_closed() == b""
    assert clients[-1].get().status == 200


def test_idle_connections_leave_the_application_its_descriptors(start: Start, connect: Connect) -> None:
    worker = start(spare_files=64)
    clients = [served(connect) for _ in range(80)]
    assert clients[-1].get("/files?6").status == 200
    event = worker.wait_for("descriptors_exhausted")
    assert (event["error"], event["action"]) == (RESERVED, "closing idle connections")
    assert clients[0].until_closed() == b""


def test_out_of_descriptors_without_idle_connections_nothing_spins(start: Start, connect: Connect) -> None:
    half = [connect() for _ in range(10)]
    for client in half:  # before there is a worker: one that is accepted before it has sent anything counts as idle
        client.send(HALF)
    worker = start(spare_files=10, timeouts=Timeouts(header=60))
    waiting = connect()
    waiting.send(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    assert worker.wait_for("descriptors_exhausted")["action"] == "not accepting for a moment"
    before = worker.sleeps()
    time.sleep(0.3)
    assert worker.sleeps() - before <= 2
    for client in half:  # at least one of them was accepted; its end makes room
        client.socket.shutdown(socket.SHUT_RDWR)  # the worker has inherited the descriptor, so that close() is no end
    assert waiting.response().status == 200


def test_silent_clients_leave_the_application_its_descriptors(start: Start, connect: Connect) -> None:
    half = [connect() for _ in range(80)]
    for client in half:
        client.send(HALF)
    worker = start(spare_files=64, timeouts=Timeouts(header=60))
    event = worker.wait_for("descriptors_exhausted")
    assert (event["error"], event["action"]) == (RESERVED, "not accepting for a moment")
    time.sleep(1.2)  # what has to pass is the moment
    half[0].send(b"nch\r\n\r\n")
    assert half[0].response().status == 200
    assert half[0].get("/files?7").status == 200


def test_files_of_bodies_leave_the_application_its_descriptors(start: Start, connect: Connect, tmp_path: Path) -> None:
    worker = start(spare_files=64, body=Body(memory=0, directory=str(tmp_path)))
    uploads = [connect() for _ in range(40)]
    for client in uploads:
        client.send(b"POST /files?6 HTTP/1.1\r\nHost: bench\r\nContent-Length: 2\r\n\r\nx")
    assert worker.wait_for("descriptors_exhausted")["error"] == RESERVED
    for client in uploads:
        client.send(b"x")
        assert client.response().status == 200


def test_out_of_descriptors_a_request_that_is_here_is_not_thrown_away(
    start: Start, connect: Connect, gate: Gate
) -> None:
    """The oldest idle connections are not idle any more once their next request has arrived."""
    worker = start(spare_files=12)
    old = [served(connect) for _ in range(4)]
    busy = connect()
    busy.send(b"GET /hold HTTP/1.1\r\nHost: bench\r\n\r\n")
    gate.wait_held()
    new = [connect() for _ in range(20)]  # accepted in this order, before the old ones are looked at or after
    for client in new + old:
        client.send(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    gate.open()
    assert busy.response().status == 200
    assert [client.response().status for client in old + new] == [200] * 24
    worker.wait_for("descriptors_exhausted")


@pytest.mark.parametrize("number", [errno.ENFILE, errno.ENOMEM, errno.ENOBUFS])
def test_any_shortage_heals_by_itself(
    start: Start, connect: Connect, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """Twice in a row the system has nothing; the client is served once it has, and the worker slept meanwhile."""
    accept = socket.socket._accept  # type: ignore[attr-defined]  # not in typeshed
    failures = [number, number]

    def fail_first(listener: socket.socket) -> Any:
        if failures:
            raise OSError(failures.pop(), os.strerror(number))
        return accept(listener)

    monkeypatch.setattr(socket.socket, "_accept", fail_first)
    worker = start()
    waiting = connect()
    waiting.send(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    event = worker.wait_for("descriptors_exhausted")
    assert (event["error"], event["action"]) == (os.strerror(number), "not accepting for a moment")
    before, spent = worker.sleeps(), worker.processor_time()
    assert waiting.response().status == 200
    assert worker.sleeps() - before <= 5  # two pauses, one request
    assert worker.processor_time() - spent <= 0.1, "it spun for as long as it paused"


@pytest.mark.parametrize("count", [200])
def test_many_connections(start: Start, connect: Connect, count: int) -> None:
    start()
    clients = [connect() for _ in range(count)]
    for _ in range(3):
        for client in clients:
            client.send(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
        for client in clients:
            assert client.response().status == 200


def test_siblings_share_a_listener(start: Start, connect: Connect, gate: Gate, listener: socket.socket) -> None:
    start(slot=0)
    start(slot=1)
    held = connect()
    held.send(b"GET /hold HTTP/1.1\r\nHost: bench\r\n\r\n")
    gate.wait_held()
    # One of them is busy: every newcomer is served by the other.
    assert len({connect().get().body for _ in range(10)}) == 1
    gate.open()
    assert held.response().body == b"held"
