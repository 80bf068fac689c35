"""What is stored of a body comes back as it came, wherever it was kept and whatever the disk did."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.http import Request, RequestLimits, RequestParser
from preforkd.models.pace import Pace
from preforkd.models.upload import Spool, Upload, received_first


def request(fields: bytes) -> Request:
    parsed = RequestParser(RequestLimits(), b"POST / HTTP/1.1\r\nHost: x\r\n" + fields + b"\r\n").next_event()
    assert isinstance(parsed, Request)
    return parsed


def taken(spool: Spool) -> bytes:
    return b"".join(iter(spool.take, b""))


@contextmanager
def files_of_at_most(size: int) -> Iterator[None]:
    """No file grows beyond that: write(2) takes a part, then fails with EFBIG (Python ignores SIGXFSZ)."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize(
    ("fields", "here", "buffer", "first"),
    [
        (b"Content-Length: 10\r\n", 3, 100, True),
        (b"Content-Length: 10\r\n", 10, 100, False),  # it is here
        (b"Content-Length: 10\r\n", 50, 100, False),  # and more
        (b"Content-Length: 100\r\n", 0, 100, True),
        (b"Content-Length: 101\r\n", 0, 100, False),
        (b"Content-Length: 1\r\n", 0, 0, False),
        (b"Transfer-Encoding: chunked\r\n", 0, 100, True),
        (b"Transfer-Encoding: chunked\r\n", 0, 0, False),
        (b"Content-Length: 10\r\nExpect: 100-continue\r\n", 3, 100, False),
        (b"Transfer-Encoding: chunked\r\nExpect: 100-continue\r\n", 3, 100, False),
        (b"", 0, 100, False),
    ],
)
def test_received_first(fields: bytes, here: int, buffer: int, first: bool) -> None:
    assert received_first(request(fields), here, buffer) is first


@given(
    pieces=st.lists(st.binary(min_size=1, max_size=300), max_size=100),
    memory=st.integers(0, 5000),
    settled=st.sets(st.integers(0, 99)),
)
def test_what_goes_in_comes_out(pieces: list[bytes], memory: int, settled: set[int]) -> None:
    spool = Spool(memory, None)
    for number, piece in enumerate(pieces):
        spool.add(piece)
        if number in settled:
            spool.settle()
    spool.settle()
    body = b"".join(pieces)
    assert spool.size == len(body)
    assert (spool.descriptor is not None) == (len(body) > memory)
    if spool.descriptor is not None:
        assert os.fstat(spool.descriptor).st_size == len(body) - memory
    assert taken(spool) == body
    assert spool.take() == b""
    spool.close()


def test_the_file_has_no_name_and_is_gone_when_closed(tmp_path: Path) -> None:
    spool = Spool(10, str(tmp_path))
    spool.add(b"x" * 100_000)
    before = spool.descriptor
    spool.settle()
    descriptor = spool.descriptor
    assert before is None  # not before somebody has to wait
    assert descriptor is not None
    assert list(tmp_path.iterdir()) == []
    assert os.readlink(f"/proc/self/fd/{descriptor}").startswith(str(tmp_path))
    assert os.fstat(descriptor).st_mode & 0o077 == 0
    spool.close()
    assert spool.descriptor is None
    assert spool.take() == b""
    with pytest.raises(OSError, match=os.strerror(errno.EBADF)):
        os.fstat(descriptor)


def test_a_disk_that_fills_up_loses_nothing(tmp_path: Path) -> None:
    spool = Spool(10, str(tmp_path))
    first, second = os.urandom(1000), os.urandom(3000)
    with files_of_at_most(2000):
        spool.add(first)
        spool.settle()
        spool.add(second)
        for _ in range(2):
            with pytest.raises(OSError, match=os.strerror(errno.EFBIG)):
                spool.settle()
    assert os.fstat(spool.descriptor or -1).st_size == 2000
    assert spool.size == 4000
    assert taken(spool) == first + second
    spool.close()


def test_where_no_file_can_be_made_nothing_is_lost_either(tmp_path: Path) -> None:
    directory = tmp_path / "later"
    spool = Spool(4, str(directory))
    spool.add(b"abcdefgh")
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            spool.settle()
    directory.mkdir()
    spool.settle()
    spool.add(b"ij")
    assert spool.descriptor is not None
    assert taken(spool) == b"abcdefghij"
    spool.close()


def test_dripped_bytes_do_not_cost_an_object_each() -> None:
    spool = Spool(1 << 20, None)
    for _ in range(10_000):
        spool.add(b"ab")
    pieces = list(iter(spool.take, b""))
    assert b"".join(pieces) == b"ab" * 10_000
    assert len(pieces) < 50


def test_the_deadline_of_an_upload() -> None:
    upload = Upload(request(b"Content-Length: 9\r\n"), None, Pace(20, 500), 0.0, 1000.0)
    assert upload.deadline == 1020
    upload.progress(1010.0, 100)
    assert upload.deadline == pytest.approx(1020.2)
    upload.progress(1020.0, 100_000)
    assert upload.deadline == 1040
    # Whoever goes on receiving inherits what was waited for.
    pace = upload.pace(1035.0)
    assert pace.patience == 20
