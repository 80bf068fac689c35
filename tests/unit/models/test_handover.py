"""The message that carries a connection from one worker to another."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator

import pytest

from preforkd import models
from preforkd.errors import LoadError
from preforkd.http import Peer
from preforkd.models.handover import Handed, give, take
from preforkd.models.process import Process

Pair = tuple[socket.socket, socket.socket]


@pytest.fixture
def pair() -> Iterator[Pair]:
    send, receive = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with send, receive:
        yield send, receive


@pytest.fixture
def connection() -> Iterator[Pair]:
    here, there = socket.socketpair()
    with here, there:
        yield here, there


@pytest.mark.parametrize("data", [b"", b"GET / HTTP", bytes(range(256)) * 160])
@pytest.mark.parametrize("deadline", [12.5, math.inf])
@pytest.mark.parametrize(
    "peer", [Peer("2001:db8::1%eth0", 65535, "www", 443, secure=True), Peer("", 0, "localhost", 80)]
)
def test_there_and_back(pair: Pair, connection: Pair, data: bytes, deadline: float, peer: Peer) -> None:
    assert give(
        pair[0], Handed(connection[0].fileno(), peer, data, deadline, listen="unix:/run/ä.sock" if data else "")
    )
    taken = take(pair[1])
    assert taken is not None
    assert (taken.peer, taken.data, taken.deadline) == (peer, data, deadline)
    assert taken.listen == ("unix:/run/ä.sock" if data else "")
    assert not os.get_inheritable(taken.fd)
    with socket.socket(fileno=taken.fd) as arrived:
        arrived.sendall(b"hello")
    assert connection[1].recv(5) == b"hello"


def test_nothing_to_take(pair: Pair) -> None:
    assert take(pair[1]) is None


def test_full(pair: Pair, connection: Pair) -> None:
    pair[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    handed = Handed(connection[0].fileno(), Peer("", 0, "", 0), b"x" * 100, 0.0)
    given = 0
    while give(pair[0], handed):
        given += 1
        assert given < 1000
    while (taken := take(pair[1])) is not None:
        os.close(taken.fd)
        given -= 1
    assert given == 0


def test_more_than_a_message_holds(pair: Pair, connection: Pair) -> None:
    assert not give(pair[0], Handed(connection[0].fileno(), Peer("", 0, "", 0), b"x" * 2**20, 0.0))


@pytest.mark.parametrize("message", [b"", b"\x02", b"\x01" + b"\0" * 40, b"\x02" + b"\0" * 13 + b"\x01\0\0\0\xff"])
def test_what_is_not_understood_is_closed(pair: Pair, connection: Pair, message: bytes) -> None:
    here, there = connection
    socket.send_fds(pair[0], [message or b"?"], [here.fileno()])
    here.close()
    assert take(pair[1]) is None
    assert there.recv(1) == b""


def test_models_by_name() -> None:
    assert isinstance(models.load("process"), Process)
    assert isinstance(models.load("preforkd.models.process:Process"), Process)
    for name in ("nothing", "preforkd.nothing:x", "preforkd.models.process:Nothing"):
        with pytest.raises(LoadError, match="model: "):
            models.load(name)
