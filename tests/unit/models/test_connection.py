"""The blocking calls: a client that is slow but goes on is waited for, one that stands still is not."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from preforkd.http import Peer, RequestLimits, RequestParser
from preforkd.models.connection import Connection, Terms
from preforkd.models.pace import Pace

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture(params=["unix", "tcp"])
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    """The server's end, non-blocking, and the client's."""
    if request.param == "unix":
        server, client = socket.socketpair()
    else:
        with socket.create_server(("127.0.0.1", 0)) as listener:
            client = socket.socket()
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            client.connect(listener.getsockname())
            server, _ = listener.accept()
    with server, client:
        server.setblocking(False)
        yield server, client


def connection(server: socket.socket, *, timeout: float, rate: int, room: int = 0) -> Connection:
    parser = RequestParser(RequestLimits())
    return Connection(server.fileno(), Peer("", 0, "x", 80), parser, Terms(timeout, timeout, rate, room))


def sip(client: socket.socket, size: int, pause: float) -> threading.Thread:
    """Reads so many bytes in small pieces, then all to the end."""

    def read() -> None:
        left = size
        wait = threading.Event()
        while left > 0:
            left -= len(client.recv(4096))
            wait.wait(pause)
        while client.recv(65536):
            pass

    thread = threading.Thread(target=read)
    thread.start()
    return thread


def test_who_reads_slowly_but_reads_gets_all(pair: Pair) -> None:
    """Room is reported when a good part of the kernel's buffer is free, which takes this reader several timeouts."""
    server, client = pair
    server.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 20)
    reader = sip(client, 300_000, 0.02)
    transport = connection(server, timeout=0.5, rate=1)
    transport.begin()
    try:
        for _ in range(600):  # in small pieces: a unix socket tells of whole ones only
            transport.send([b"x" * 5000])
    finally:
        server.close()
        reader.join()


def test_who_does_not_read_is_given_up(pair: Pair) -> None:
    server, _ = pair
    transport = connection(server, timeout=0.1, rate=1)
    transport.begin()
    with pytest.raises(TimeoutError):
        transport.send([b"x" * (64 << 20)])


def test_who_reads_below_the_rate_is_given_up(pair: Pair) -> None:
    server, client = pair
    reader = sip(client, 100_000, 0.01)
    transport = connection(server, timeout=0.2, rate=1 << 30)
    transport.begin()
    try:
        with pytest.raises(TimeoutError):
            transport.send([b"x" * (64 << 20)])
    finally:
        server.close()
        reader.join()


def test_the_next_answer_begins_anew(pair: Pair) -> None:
    server, _ = pair
    transport = connection(server, timeout=0.1, rate=1 << 30)
    for _ in range(2):
        transport.begin()
        with pytest.raises(TimeoutError):
            transport.send([b"x" * (64 << 20)])
    # Not begun anew: its time is used up.
    with pytest.raises(TimeoutError):
        transport.send([b"x" * (64 << 20)])


def test_a_file_is_sent_at_the_same_pace(pair: Pair) -> None:
    server, _ = pair
    transport = connection(server, timeout=0.1, rate=1)
    transport.begin()
    descriptor = os.memfd_create("file")
    os.truncate(descriptor, 64 << 20)
    try:
        with pytest.raises(TimeoutError):
            transport.send_file(descriptor, 0, 64 << 20)
    finally:
        os.close(descriptor)


def test_a_body_goes_on_at_the_pace_at_which_it_came(pair: Pair) -> None:
    server, client = pair
    transport = connection(server, timeout=60, rate=500)
    used_up = Pace(60, 500)
    used_up.waited(60)
    transport.begin(used_up)
    with pytest.raises(TimeoutError):
        transport.receive()
    client.send(b"x")
    assert transport.receive() == b"x"  # what is there is taken, however late
    transport.begin()
    client.shutdown(socket.SHUT_WR)
    assert transport.receive() == b""


def fill(server: socket.socket) -> None:
    """Sends as much as the kernel takes."""
    for size in (65536, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                server.send(b"y" * size)


@pytest.mark.parametrize("size", [10, 16_000, 100_000, 4 << 20])
def test_what_is_kept_is_not_waited_for(pair: Pair, size: int) -> None:
    """Not even behind what fills the kernel's buffer, so that hardly anything of it goes at once."""
    server, client = pair
    fill(server)
    transport = connection(server, timeout=10, rate=1, room=5 << 20)
    transport.begin()
    assert transport.interest == select.EPOLLIN
    content = os.urandom(size)
    transport.send((b"head", content), last=True)
    assert transport.outbox is not None
    assert transport.interest == select.EPOLLOUT
    assert 0 < transport.outbox.left <= 4 + size
    received = bytearray()
    while not transport.push(time.monotonic()):
        if select.select([client], [], [], 0.01)[0]:  # over TCP an acknowledgement may be on its way
            received += client.recv(1 << 20)
    client.settimeout(10)
    while not received.endswith(content[-10:]):
        received += client.recv(1 << 20)
    assert received.lstrip(b"y") == b"head" + content


def test_what_is_not_the_last_is_not_kept(pair: Pair) -> None:
    server, _ = pair
    transport = connection(server, timeout=0.1, rate=1, room=64 << 20)
    transport.begin()
    with pytest.raises(TimeoutError):
        transport.send([b"x" * (4 << 20)])
    assert transport.outbox is None


def test_what_is_too_large_is_waited_for_until_the_rest_fits(pair: Pair) -> None:
    server, client = pair
    transport = connection(server, timeout=10, rate=1, room=1 << 20)
    transport.begin()
    reader = sip(client, 0, 0)
    transport.send([bytes(8 << 20)], last=True)
    assert transport.outbox is None or transport.outbox.left <= 1 << 20
    while transport.outbox is not None and not transport.push(time.monotonic()):
        pass
    server.close()
    reader.join()


def test_what_is_kept_has_the_pace_of_what_was_waited_for(pair: Pair) -> None:
    server, _ = pair
    transport = connection(server, timeout=10, rate=1, room=64 << 20)
    transport.begin()
    before = time.monotonic()
    transport.send([bytes(8 << 20)], last=True)
    assert transport.outbox is not None
    left = transport.outbox.left
    assert before + 10 <= transport.outbox.deadline <= time.monotonic() + 10
    assert not transport.push(before + 9.9)
    with pytest.raises(TimeoutError):
        transport.push(time.monotonic() + 10)
    assert transport.outbox.left == left


def test_the_head_of_a_file_is_kept_with_it(pair: Pair) -> None:
    server, client = pair
    fill(server)
    transport = connection(server, timeout=10, rate=1, room=1)
    transport.begin()
    descriptor = os.memfd_create("file")
    os.write(descriptor, b"content")
    assert transport.send_file(descriptor, 0, 7, b"head", last=True) == 7
    os.close(descriptor)
    received = bytearray()
    while not transport.push(time.monotonic()):
        received += client.recv(1 << 20)
    client.setblocking(False)
    while not received.endswith(b"content"):
        received += client.recv(1 << 20)
    assert received.lstrip(b"y") == b"headcontent"
    kept = transport.outbox
    assert kept is not None and kept.descriptor is not None
    server.detach()
    transport.close()
    assert kept.descriptor is None
