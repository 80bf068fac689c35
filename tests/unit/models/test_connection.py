"""The blocking calls: a client that is slow but goes on is waited for, one that stands still is not."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator

import pytest

from preforkd.http import Peer, RequestLimits, RequestParser
from preforkd.models.connection import Connection
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


def connection(server: socket.socket, *, timeout: float, rate: int) -> Connection:
    return Connection(server.fileno(), Peer("", 0, "x", 80), RequestParser(RequestLimits()), timeout, timeout, rate)


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
