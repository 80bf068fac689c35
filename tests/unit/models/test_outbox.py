"""What is kept of an answer: how it is sent on, and how long its client is waited for."""

from __future__ import annotations

import math
import os
import socket
from collections.abc import Iterator

import pytest

from preforkd.models.outbox import Outbox
from preforkd.models.pace import Pace

BYTES = os.urandom(5000)
FILE = os.urandom(10_000)


@pytest.fixture
def file() -> Iterator[int]:
    descriptor = os.memfd_create("file")
    os.write(descriptor, FILE)
    yield descriptor
    os.close(descriptor)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    server, client = socket.socketpair()
    with server, client:
        server.setblocking(False)
        yield server, client


def outbox(
    data: bytes = b"", descriptor: int = -1, offset: int = 0, count: int = 0, pace: Pace | None = None
) -> Outbox:
    """One whose client was last looked at at 100, when the kernel held 1000 bytes for it."""
    if descriptor >= 0:
        descriptor = os.dup(descriptor)
    return Outbox(data, descriptor, offset, count, pace or Pace(10, 100), 1000, 100.0)


def test_bytes_come_before_the_file(pair: tuple[socket.socket, socket.socket], file: int) -> None:
    server, client = pair
    kept = outbox(BYTES, file, 10, 9000)
    assert kept.left == 14_000
    assert not kept.push(server.fileno())
    assert kept.left == 9000
    assert kept.push(server.fileno())
    assert kept.left == kept.missing == 0
    assert client.recv(20_000, socket.MSG_WAITALL | socket.MSG_DONTWAIT) == BYTES + FILE[10:9010]
    assert kept.push(server.fileno()), "nothing is left, and nothing else was to be done"
    kept.close()


def test_what_does_not_go_stays(pair: tuple[socket.socket, socket.socket]) -> None:
    server, client = pair
    content = os.urandom(1 << 20)
    kept = outbox(content)
    left = len(content) + 1
    while kept.left < left:
        left = kept.left
        assert not kept.push(server.fileno())
    assert 0 < left < len(content), "now it is full"
    received = b""
    while not kept.push(server.fileno()):
        received += client.recv(1 << 20)
    client.setblocking(False)
    while len(received) < len(content):
        received += client.recv(1 << 20)
    assert received == content


def test_no_connection_is_sent_all_at_once(pair: tuple[socket.socket, socket.socket], file: int) -> None:
    """However fast its client reads: others have their turn."""
    os.truncate(file, 64 << 20)
    sink = os.open("/dev/null", os.O_WRONLY)
    for kept in (outbox(bytes(64 << 20)), outbox(b"", file, 0, 64 << 20)):
        turns = 1
        while not kept.push(sink):
            turns += 1
        assert turns == 32
        kept.close()
    os.close(sink)


@pytest.mark.parametrize("taking", [False, True], ids=["sendfile", "read"])
def test_a_file_that_has_become_shorter(pair: tuple[socket.socket, socket.socket], file: int, taking: bool) -> None:
    server, _ = pair
    kept = outbox(b"", file, 0, 12_000)
    if taking:
        assert kept.take(1 << 20) == FILE
        assert kept.take(1 << 20) == b""
    else:
        assert not kept.push(server.fileno())
        assert kept.push(server.fileno())
    assert (kept.left, kept.missing) == (0, 2000)
    kept.close()


def test_what_is_taken_is_the_same(file: int) -> None:
    kept = outbox(BYTES, file, 10, 9000)
    taken = []
    while data := kept.take(700):
        assert len(data) <= 700
        taken.append(data)
    assert b"".join(taken) == BYTES + FILE[10:9010]
    assert (kept.left, kept.missing) == (0, 0)
    kept.close()


def test_the_file_is_given_up(file: int) -> None:
    kept = outbox(b"x", file, 0, 10)
    own = kept.descriptor
    assert own is not None and own != file
    kept.close()
    assert (kept.descriptor, kept.left) == (None, 0)
    kept.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(own)


def test_the_deadline_is_a_pause_after_the_last_progress() -> None:
    kept = outbox(BYTES, pace=Pace(10, 0))
    assert kept.deadline == 110
    kept.progress(1000, 105)
    assert kept.deadline == 110, "it has taken nothing"
    kept.progress(999, 108)
    assert kept.deadline == 118
    kept.sent(2001)  # more is on its way: that is no progress, nor does it hide any
    kept.progress(2999, 110)
    assert kept.deadline == 120


def test_who_takes_everything_at_once_is_never_late() -> None:
    """Nothing is ever seen to be held for it."""
    kept = outbox(BYTES, pace=Pace(10, 0))
    for now in range(101, 141, 5):
        kept.sent(5000)
        kept.progress(0, now)
        assert kept.deadline == now + 10


def test_the_deadline_bounds_the_whole_as_well() -> None:
    """Ten seconds, and one more for each 100 bytes; it never moves to the front."""
    kept = outbox(BYTES)
    before = kept.deadline
    held = 1000
    for now in range(101, 112):
        held -= 10
        kept.progress(held, now)
        assert before <= kept.deadline <= 111.1
        before = kept.deadline
    assert kept.deadline == pytest.approx(111.1)


def test_no_limit() -> None:
    assert outbox(BYTES, pace=Pace(0, 500)).deadline == math.inf
