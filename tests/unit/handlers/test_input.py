"""``wsgi.input`` does what Python's own files do, whatever the body was cut into and wherever it comes from."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.handlers.wsgi import Input
from preforkd.http import BodyError, Exchange, Peer, Request, RequestLimits, RequestParser
from preforkd.models.upload import Spool

SIZES = st.none() | st.integers(-1, 40)
CALLS = st.lists(st.tuples(st.sampled_from(["read", "readline", "readlines", "next"]), SIZES), max_size=30)
#: Short, and with many line ends.
PIECES = st.lists(st.lists(st.sampled_from([b"\n", b"a", b"bc"]), min_size=1, max_size=20).map(b"".join), max_size=8)


class Wire:
    """The transport of a body that comes in pieces, and then fails if it has to."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self.pieces = list(pieces)

    def receive(self) -> bytes:
        return self.pieces.pop(0) if self.pieces else b""

    def send(self, pieces: Sequence[bytes], last: bool = False) -> None:
        raise AssertionError

    def send_file(self, descriptor: int, offset: int, count: int, head: bytes = b"", last: bool = False) -> int:
        raise AssertionError


def reader(stored: Sequence[bytes], streamed: Sequence[bytes], memory: int, missing: int = 0) -> tuple[Input, Spool]:
    """An input whose body is partly stored, partly still to come; ``missing`` bytes of it never do."""
    length = sum(map(len, (*stored, *streamed))) + missing
    parser = RequestParser(RequestLimits(), b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % length)
    head = parser.next_event()
    assert isinstance(head, Request)
    spool = Spool(memory, None)
    for piece in stored:
        parser.feed(piece)
        parser.next_event()
        spool.add(piece)
        if len(piece) % 2:
            spool.settle()  # or not: then it is read from where it is
    spool.complete = not streamed and not missing
    return Input(Exchange(head, parser, Wire(streamed), Peer("", 0, "x", 80), stored=spool)), spool


def called(file: Any, name: str, size: int | None) -> object:
    if name == "next":
        return next(iter(file), b"")
    if name == "readlines" and size is None:
        return file.readlines()
    return getattr(file, name)(size)


@given(stored=PIECES, streamed=PIECES, memory=st.sampled_from([0, 7, 10_000]), calls=CALLS)
def test_like_a_file(stored: list[bytes], streamed: list[bytes], memory: int, calls: list[tuple[str, Any]]) -> None:
    input_, spool = reader(stored, streamed, memory)
    plain = io.BytesIO(b"".join((*stored, *streamed)))
    for name, size in calls:
        assert called(input_, name, size) == called(plain, name, size), (name, size)
    assert input_.read() == plain.read()
    assert input_.read() == input_.readline() == b""
    assert input_.read(0) == b""
    spool.close()


@pytest.mark.parametrize("memory", [0, 1000])
def test_what_came_before_a_failure_is_read_first(memory: int) -> None:
    input_, spool = reader([b"one\ntw"], [b"o\nthree"], memory, missing=5)
    assert input_.readline() == b"one\n"
    with pytest.raises(BodyError):
        input_.read()
    assert input_.read(4) == b"two\n"
    with pytest.raises(BodyError):
        input_.readline()
    assert input_.read(5) == b"three"
    with pytest.raises(BodyError):
        input_.read(1)
    spool.close()
