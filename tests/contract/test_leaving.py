"""How a worker leaves: nothing is cut, nothing is lost, and it does leave."""

from __future__ import annotations

import select
import socket
from collections.abc import Callable

import pytest

from preforkd.config import Timeouts
from preforkd.errors import ExitCode
from tests.contract.bench import Client, Worker
from tests.contract.services import Gate

Start = Callable[..., Worker]
Connect = Callable[..., Client]
Handover = tuple[socket.socket, socket.socket]

HALF = b"GET / HTTP/1.1\r\nHost: be"
REST = b"nch\r\n\r\n"


@pytest.mark.parametrize("order", ["leave", "stop"])
def test_an_idle_worker_leaves_at_once(start: Start, order: str) -> None:
    worker = start()
    getattr(worker, order)()
    assert worker.join() == ExitCode.OK


@pytest.mark.parametrize("order", ["leave", "stop"])
def test_a_busy_worker_finishes(start: Start, connect: Connect, gate: Gate, order: str) -> None:
    worker = start()
    client = connect()
    client.send(b"GET /hold HTTP/1.1\r\nHost: bench\r\n\r\n")
    gate.wait_held()
    getattr(worker, order)()
    gate.open()
    assert client.response().body == b"held"
    client.socket.close()
    assert worker.join() == ExitCode.OK


@pytest.mark.parametrize("order", ["leave", "stop"])
def test_a_half_sent_request_is_served(start: Start, connect: Connect, order: str) -> None:
    worker = start()
    client = connect()
    client.get()
    client.send(HALF)
    other = connect()
    for _ in range(2):
        other.get()  # a turn may begin with the newcomer; by the second one both have been looked at
    getattr(worker, order)()
    client.send(REST)
    response = client.response()
    assert (response.body, response.headers["connection"]) == (b"web/0", "close")
    assert client.until_closed() == b""
    other.socket.close()
    assert worker.join() == ExitCode.OK


def test_pipelined_requests_are_all_answered(start: Start, connect: Connect, gate: Gate) -> None:
    worker = start()
    client = connect()
    client.send(b"GET /hold HTTP/1.1\r\nHost: bench\r\n\r\n" + b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n" * 3)
    gate.wait_held()
    worker.stop()
    gate.open()
    assert client.response().body == b"held"
    last = [client.response() for _ in range(3)][-1]
    assert last.headers["connection"] == "close"
    assert client.until_closed() == b""
    assert worker.join() == ExitCode.OK


def test_a_stop_closes_idle_connections(start: Start, connect: Connect) -> None:
    worker = start(timeouts=Timeouts(keepalive=60))
    client = connect()
    client.get()
    worker.stop()
    assert client.until_closed() == b""
    assert worker.join() == ExitCode.OK


def test_a_stop_serves_what_has_already_arrived(start: Start, connect: Connect, gate: Gate) -> None:
    worker = start(timeouts=Timeouts(keepalive=60))
    idle, busy = connect(), connect()
    idle.get()
    busy.send(b"GET /hold HTTP/1.1\r\nHost: bench\r\n\r\n")
    gate.wait_held()
    idle.send(b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n")
    worker.stop()
    gate.open()
    assert busy.response().body == b"held"
    assert idle.response().headers["connection"] == "close"
    assert worker.join() == ExitCode.OK


def test_a_connection_that_has_just_been_made_gets_its_moment_at_a_stop(start: Start, connect: Connect) -> None:
    worker = start(timeouts=Timeouts(header=60))
    client, other = connect(), connect()
    other.get()  # accepted after the first one
    worker.stop()
    assert other.until_closed() == b""
    client.send(HALF + REST)
    assert client.response().headers["connection"] == "close"
    assert worker.join() == ExitCode.OK


def test_silence_does_not_keep_a_stopping_worker(start: Start, connect: Connect) -> None:
    worker = start(timeouts=Timeouts(header=60))
    silent, other = connect(), connect()
    other.get()
    worker.stop()
    assert worker.join() == ExitCode.OK
    assert silent.until_closed() == b""


def test_without_siblings_to_take_it_an_idle_connection_gets_one_more_answer(start: Start, connect: Connect) -> None:
    worker = start(timeouts=Timeouts(keepalive=60))
    client = connect()
    client.get()
    worker.leave()
    assert not select.select([client.socket], [], [], 0.05)[0]
    assert client.get().headers["connection"] == "close"
    assert client.until_closed() == b""
    assert worker.join() == ExitCode.OK


def test_or_its_deadline(start: Start, connect: Connect) -> None:
    worker = start(timeouts=Timeouts(keepalive=0.2))
    client = connect()
    client.get()
    worker.leave()
    assert client.until_closed() == b""
    assert worker.join() == ExitCode.OK


def test_a_stop_after_a_leave_closes_what_lingers(start: Start, connect: Connect) -> None:
    worker = start(timeouts=Timeouts(keepalive=60))
    client = connect()
    client.get()
    worker.leave()
    assert not select.select([client.socket], [], [], 0.05)[0]
    worker.stop()
    assert client.until_closed() == b""
    assert worker.join() == ExitCode.OK


def test_its_listener_is_its_siblings(start: Start, connect: Connect) -> None:
    old = start(slot=0)
    assert connect().get(headers="Connection: close\r\n").body == b"web/0"
    old.leave()
    assert old.join() == ExitCode.OK
    waiting = connect()  # into the backlog, while nobody serves
    waiting.send(HALF + REST)
    start(slot=1)
    assert waiting.response().body == b"web/1"


def test_idle_connections_move_to_a_sibling(start: Start, connect: Connect, handover: Handover) -> None:
    old = start(slot=0, handover=handover, timeouts=Timeouts(keepalive=60))
    clients = [connect() for _ in range(20)]
    for client in clients:
        assert client.get().body == b"web/0"
    old.leave()
    assert old.join() == ExitCode.OK
    start(slot=1, handover=handover)
    for client in clients:
        response = client.get()
        assert response.body == b"web/1"
        assert "connection" not in response.headers


def test_half_sent_requests_move_with_what_was_read(start: Start, connect: Connect, handover: Handover) -> None:
    old = start(slot=0, handover=handover)
    fresh, used, silent = connect(), connect(), connect()
    fresh.send(HALF)
    used.get()
    used.send(HALF)
    connect().get()
    old.leave()
    assert old.join() == ExitCode.OK
    new = start(slot=1, handover=handover)
    for client in (fresh, used):
        client.send(REST)
        assert client.response().body == b"web/1"
    silent.send(HALF + REST)
    assert silent.response().body == b"web/1"
    assert new.wait_for("started")["client"] == "127.0.0.1"


def test_moving_gains_a_slow_client_no_time(start: Start, connect: Connect, handover: Handover) -> None:
    old = start(slot=0, handover=handover, timeouts=Timeouts(header=0.3))
    client = connect()
    client.send(HALF)
    connect().get()
    old.leave()
    old.join()
    start(slot=1, handover=handover, timeouts=Timeouts(header=60))
    assert client.response().status == 408


def test_when_nobody_takes_them_they_stay_and_none_is_lost(start: Start, connect: Connect, handover: Handover) -> None:
    handover[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    old = start(slot=0, handover=handover, timeouts=Timeouts(keepalive=60))
    clients = [connect() for _ in range(60)]
    for client in clients:
        client.get()
    old.leave()
    connect_later = [client for client in clients if not select.select([client.socket], [], [], 0)[0]]
    assert len(connect_later) == 60
    start(slot=1, handover=handover)
    bodies = [client.get().body for client in clients]
    assert set(bodies) == {b"web/0", b"web/1"}
    assert old.join() == ExitCode.OK


def test_a_leaving_worker_takes_none(start: Start, connect: Connect, handover: Handover, gate: Gate) -> None:
    first = start(slot=0, handover=handover)
    busy = connect()
    busy.send(b"GET /hold HTTP/1.1\r\nHost: bench\r\n\r\n")
    gate.wait_held()
    second = start(slot=1, handover=handover)
    client = connect()
    assert client.get().body == b"web/1"
    first.leave()
    second.leave()
    assert second.join() == ExitCode.OK
    gate.open()
    assert busy.response().body == b"held"
    assert first.join() == ExitCode.OK
    start(slot=2, handover=handover)
    assert client.get().body == b"web/2"


def test_a_connection_in_a_message_survives_a_shortage_of_descriptors(
    start: Start, connect: Connect, handover: Handover
) -> None:
    old = start(slot=0, handover=handover, timeouts=Timeouts(keepalive=60))
    clients = [connect() for _ in range(30)]
    for client in clients:
        client.send(HALF)
    connect().get()
    old.leave()
    assert old.join() == ExitCode.OK
    start(slot=1, handover=handover, spare_files=10, timeouts=Timeouts(keepalive=0.1))
    for client in clients:  # each that is answered makes room for another one
        client.send(REST)
    for client in clients:
        assert client.response().body == b"web/1"
        client.socket.close()


def test_recycled_after_a_number_of_requests(start: Start, connect: Connect, handover: Handover) -> None:
    old = start(slot=0, handover=handover, requests=3)
    client = connect()
    for _ in range(3):
        assert client.get().body == b"web/0"
    assert old.join() == ExitCode.RECYCLED
    start(slot=1, handover=handover)
    assert client.get().body == b"web/1"
