"""What the application prints: events, line by line."""

from __future__ import annotations

import contextlib
import faulthandler
import io
import logging
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.logs import TaggedStream
from preforkd.logs.streams import LINE_MAX
from tests.unit.logs.helpers import event_log, fork, wait
from tests.unit.logs.parse import parse_log


class Printed:
    """A stream of a worker, and what of it is in the log."""

    def __init__(self, path: Path, name: str = "stdout") -> None:
        self.path = path
        self.log = event_log(path).bound(pool="web", slot=3)
        self.stream = TaggedStream(self.log, name)

    def lines(self) -> list[str | None]:
        return [event.fields["line"] for event in parse_log(self.path.read_text()) if event.name == "app_output"]


@pytest.fixture
def out(tmp_path: Path) -> Printed:
    return Printed(tmp_path / "log")


def test_a_line_is_an_event_with_its_stream_and_its_worker(tmp_path: Path) -> None:
    out, err = Printed(tmp_path / "log"), Printed(tmp_path / "log", "stderr")
    print("hello", "world", file=out.stream)
    print("oh", file=err.stream)
    first, second = (tmp_path / "log").read_text().splitlines()
    assert first.endswith('info app_output pool=web slot=3 stream=stdout line="hello world"')
    assert second.endswith("warning app_output pool=web slot=3 stream=stderr line=oh")


def test_lines_are_put_together_from_pieces_and_cut_apart(out: Printed) -> None:
    out.stream.write("a")
    out.stream.write("b\nc\n\nd")
    out.stream.flush()
    assert out.lines() == ["ab", "c", ""]
    out.stream.finish()
    out.stream.finish()
    assert out.lines() == ["ab", "c", "", "d"]
    print("usable", file=out.stream)
    assert out.lines()[-1] == "usable"


def test_a_traceback_stays_readable(tmp_path: Path) -> None:
    err = Printed(tmp_path / "log", "stderr")
    with contextlib.redirect_stderr(err.stream):
        handler = logging.StreamHandler()
        record = logging.LogRecord("app", logging.ERROR, "app.py", 1, "failed", None, None)
        try:
            raise ValueError("wrong")
        except ValueError:
            record.exc_info = sys.exc_info()
        handler.emit(record)
    lines = err.lines()
    assert lines[:2] == ["failed", "Traceback (most recent call last):"]
    assert lines[-1] == "ValueError: wrong"


def test_bytes_and_text_are_the_same_lines(out: Printed) -> None:
    out.stream.write("text ")
    assert out.stream.buffer.write(b"and bytes \xff\r\n") == 13
    out.stream.buffer.write(bytearray("é\n".encode()))
    wrapper = io.TextIOWrapper(out.stream.buffer, encoding="latin-1", write_through=True)
    wrapper.write("wrapped\nunfinished")
    del wrapper  # closes the buffer
    print("lone \ud800", file=out.stream)
    assert out.lines() == ["text and bytes \udcff", "é", "wrapped", "unfinished", "lone \\ud800"]


def test_it_has_what_applications_ask_a_stream_for(out: Printed) -> None:
    stream = out.stream
    assert (stream.isatty(), stream.writable(), stream.readable(), stream.closed) == (False, True, False, False)
    assert (stream.encoding, stream.errors, stream.name) == ("utf-8", "backslashreplace", "<stdout>")
    assert (stream.buffer.isatty(), stream.buffer.writable(), stream.buffer.readable()) == (False, True, False)
    assert stream.fileno() == stream.buffer.fileno() == out.log.fileno()
    stream.reconfigure(encoding="utf-8", line_buffering=True)
    stream.writelines(["a\n", "b\n"])
    with pytest.raises(TypeError):
        stream.write(b"bytes")  # type: ignore[arg-type]
    with pytest.raises(io.UnsupportedOperation):
        stream.read()
    stream.close()
    with stream:
        print("c", file=stream)
    print("d", file=stream)
    assert out.lines() == ["a", "b", "c", "d"]


def test_programs_and_faulthandler_reach_the_log(out: Printed) -> None:
    subprocess.run(["sh", "-c", "echo from a program"], stdout=out.stream.fileno(), check=True)
    faulthandler.dump_traceback(out.stream)
    text = out.path.read_text()
    assert text.startswith("from a program\n")
    assert "test_programs_and_faulthandler_reach_the_log" in text


def test_a_line_without_end_is_written_in_parts(out: Printed) -> None:
    out.stream.write("é" * (2 * LINE_MAX))
    assert all(line and set(line) == {"é"} and len(line.encode()) <= LINE_MAX for line in out.lines())
    out.stream.finish()
    assert "".join(line or "" for line in out.lines()) == "é" * (2 * LINE_MAX)


@given(st.lists(st.text(st.sampled_from("ab\né\u2028")) | st.binary(max_size=20), max_size=30))
def test_nothing_is_lost_whatever_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[str | bytes]
) -> None:
    out = Printed(tmp_path_factory.mktemp("logs") / "log")
    expected = b""
    for piece in pieces:
        if isinstance(piece, str):
            out.stream.write(piece)
            expected += piece.encode()
        else:
            out.stream.buffer.write(piece)
            expected += piece
    out.stream.finish()
    os.close(out.log.fileno())
    lines = [line.removesuffix(b"\r").decode("utf-8", "surrogateescape") for line in expected.split(b"\n")]
    if not lines[-1] and not expected.endswith(b"\r"):
        lines.pop()
    assert out.lines() == lines


def test_threads_do_not_mix_their_lines(out: Printed) -> None:
    start = threading.Barrier(4)

    def work(number: int) -> None:
        start.wait()
        for count in range(200):
            print(number, count, "x" * 20, file=out.stream)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    expected = sorted(f"{number} {count} {'x' * 20}" for number in range(4) for count in range(200))
    assert sorted(line or "" for line in out.lines()) == expected


def test_a_child_starts_with_an_empty_line(out: Printed) -> None:
    out.stream.write("the parent's")

    def child() -> None:
        out.stream.reset()
        print("the child's", file=out.stream)
        out.stream.finish()

    wait(fork(child))
    out.stream.write(" own\n")
    assert out.lines() == ["the child's", "the parent's own"]


def test_a_child_that_is_somebody_else_prints_as_itself(out: Printed) -> None:
    out.stream.rebind(out.log.bound(slot=4))
    print("hello", file=out.stream)
    [event] = parse_log(out.path.read_text())
    assert event.fields == {"pool": "web", "slot": "4", "stream": "stdout", "line": "hello"}


def test_a_log_that_fails_does_not_reach_who_prints(out: Printed) -> None:
    with open("/dev/full", "wb", buffering=0) as full:
        os.dup2(full.fileno(), out.log.fileno(), inheritable=False)
    print("lost", file=out.stream)
    assert out.log.lost == 1
