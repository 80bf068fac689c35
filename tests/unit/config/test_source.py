"""Whatever a path turns out to be: an answer at once, and a sentence."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from preforkd.config import read
from preforkd.config.source import MAX_BYTES, Unreadable, read_bytes
from preforkd.errors import ConfigError, ExitCode


def sentence(path: Path | str) -> str:
    with pytest.raises(Unreadable) as caught:
        read_bytes(str(path))
    return str(caught.value)


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "a"
    for size in (0, 1, MAX_BYTES):
        file.write_bytes(b"x" * size)
        assert read_bytes(str(file)) == b"x" * size
    assert read_bytes("/proc/self/comm")  # its size is said to be 0


def test_too_large(tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"x" * (MAX_BYTES + 1))
    assert sentence(file) == "is larger than 256 KiB, which no configuration is; is it the right file?"
    os.truncate(file, 100 << 20)
    before = time.process_time()
    assert sentence(file).startswith("is larger than 256 KiB")
    assert time.process_time() - before < 0.5


def test_not_a_file(tmp_path: Path) -> None:
    assert sentence(tmp_path) == "is a folder; a regular file is needed"
    assert sentence("/dev/zero") == "is a device; a regular file is needed"
    os.mkfifo(tmp_path / "fifo")
    assert sentence(tmp_path / "fifo") == "is a FIFO (named pipe); a regular file is needed"
    (tmp_path / "loop").symlink_to("loop")
    assert sentence(tmp_path / "loop") == "cannot be read: its symbolic links lead back to themselves"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        assert (
            sentence(tmp_path / "socket") == "is a socket or a device without its other end; a regular file is needed"
        )


def test_missing(tmp_path: Path) -> None:
    (tmp_path / "a").touch()
    assert sentence(tmp_path / "b") == "there is no such file"
    assert sentence(tmp_path / "a" / "b") == "there is no such file: a part of its path is not a folder"
    assert sentence("/\0") == "there is no such file: its name has a NUL byte"
    assert sentence("/" + "x" * 300) == "cannot be read: the path is too long"


def test_forbidden(tmp_path: Path, unprivileged: Callable[[Callable[[], None]], None]) -> None:
    file = tmp_path / "a"
    file.touch(mode=0)

    def denied() -> None:
        assert sentence(file) == "cannot be read: permission denied"

    unprivileged(denied)


def test_no_descriptor_is_left_open(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    sentence(tmp_path)
    sentence("/dev/zero")
    assert len(os.listdir("/proc/self/fd")) == len(before)


def test_the_main_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"^/nowhere/x\.yaml: there is no such file$") as caught:
        read("/nowhere/x.yaml")
    assert caught.value.exit_code is ExitCode.CONFIG
    gone = tmp_path / "gone"
    gone.mkdir()
    (gone / "x.yaml").touch()
    monkeypatch.chdir(gone)
    (gone / "x.yaml").unlink()
    gone.rmdir()
    with pytest.raises(ConfigError):
        read("x.yaml")
