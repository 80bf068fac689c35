"""What the benchmark measures with, on processes whose costs are known."""

from __future__ import annotations

import contextlib
import math
import os
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from benchmarks import growth, measure, report, run
from benchmarks.load import BROWSER, Request, ask, drive

#: A parent and a child; both say that they are there, and wait until their input ends.
_FAMILY = """
import os, sys
pid = os.fork()
{work}
os.write(1, b"x")
os.read(0, 1)
if pid:
    os.waitpid(pid, 0)
"""
_SPIN = """
import time
while time.process_time() < 0.2:
    pass
"""


@pytest.fixture
def family() -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Starts a parent that forks one child, each of which does some work; returns when both have done it."""
    started: list[subprocess.Popen[bytes]] = []

    def start(work: str = "") -> subprocess.Popen[bytes]:
        argv = [sys.executable, "-c", _FAMILY.format(work=work)]
        process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        started.append(process)
        assert process.stdout is not None
        assert process.stdout.read(2) == b"xx"
        return process

    yield start
    for process in started:
        process.communicate(timeout=20)


def test_a_tree_is_a_process_and_its_descendants(family: Callable[[str], subprocess.Popen[bytes]]) -> None:
    process = family("")
    found = measure.tree(process.pid)
    assert found[0] == process.pid
    assert len(found) == 2
    assert set(found) < set(measure.tree(os.getpid()))


def test_what_does_not_exist_has_no_tree() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(20)
    assert measure.tree(process.pid) == []
    assert measure.cpu(process.pid) == measure.memory(process.pid) == measure.switches(process.pid) == 0


def test_processor_time_is_that_of_all(family: Callable[[str], subprocess.Popen[bytes]]) -> None:
    process = family(_SPIN)
    # Two times 0.2 s, less at most a tick each, more by two starts of the interpreter.
    assert 0.36 <= measure.cpu(process.pid) < 5


def test_processor_time_of_the_dead_is_kept(family: Callable[[str], subprocess.Popen[bytes]]) -> None:
    # The child ends, and its parent reaps it before both counts are in.
    process = family(
        f"if not pid:{_SPIN.replace(chr(10), chr(10) + '    ')}\n    os.write(1, b'x'); os._exit(0)\nos.waitpid(pid, 0)"
    )
    assert measure.tree(process.pid) == [process.pid]
    assert measure.cpu(process.pid) >= 0.18


def test_memory_that_is_shared_counts_once(family: Callable[[str], subprocess.Popen[bytes]]) -> None:
    size = 64 << 20
    small = measure.memory(family("").pid)
    shared = measure.memory(family(f"\nblock = b'x' * {size}").pid)
    assert 0 < small < size / 2
    # Made after the fork, so there are two of them.
    assert shared - small == pytest.approx(2 * size, rel=0.1)


def test_waking_up_is_counted() -> None:
    argv = [sys.executable, "-c", "import sys\nprint(flush=True)\nfor line in sys.stdin: print(flush=True)"]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before = measure.switches(process.pid)
        for _ in range(20):
            process.stdin.write("\n")
            process.stdin.flush()
            process.stdout.readline()
        assert measure.switches(process.pid) >= before + 10


def test_a_meter_tells_the_tree_from_its_measurer(family: Callable[[str], subprocess.Popen[bytes]]) -> None:
    process = family("")
    with measure.Meter(process.pid) as meter:
        end = time.process_time() + 0.2
        while time.process_time() < end:
            pass
    assert meter.cpu <= 0.02
    assert meter.seconds >= 0.19
    assert 0 <= meter.others <= (os.cpu_count() or 1)


class _Handler(socketserver.StreamRequestHandler):
    """Answers each request of a connection with its path; 500 for ``/bad``, half an answer for ``/half``."""

    def handle(self) -> None:
        # A client that has seen enough goes without a word.
        with contextlib.suppress(ConnectionError):
            self._answer_all()

    def _answer_all(self) -> None:
        while line := self.rfile.readline():
            path = line.split()[1]
            close = False
            length = 0
            while (field := self.rfile.readline()) != b"\r\n":
                close |= field == b"Connection: close\r\n"
                if field.startswith(b"Content-Length:"):
                    length = int(field.partition(b":")[2])
            body = path + b"%d" % len(self.rfile.read(length))
            status = b"500 Bad" if path == b"/bad" else b"200 OK"
            self.wfile.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n" % (status, len(body)))
            self.wfile.write(body[:1] if path == b"/half" else body)
            if close or path == b"/half":
                return


@pytest.fixture
def port() -> Iterator[int]:
    """Of a server that answers as `_Handler` says."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("keep", [True, False])
def test_the_client_notes_every_request(port: int, keep: bool) -> None:
    requests = [Request("/a", fields=tuple(BROWSER.items()), keep=keep), Request("/b", posted=100_000, keep=keep)]
    samples = drive(port, requests, 20, at_most=20)
    assert len(samples) >= 20
    assert {sample.failure for sample in samples} == {""}
    assert {sample.answer.partition(b"\r\n\r\n")[2] for sample in samples} == {b"/a0", b"/b100000"}
    assert all(sample.began < sample.ended for sample in samples)


@pytest.mark.parametrize(("path", "failure"), [("/bad", "status 500"), ("/half", "closed without a complete answer")])
def test_the_client_notes_what_fails(port: int, path: str, failure: str) -> None:
    samples = drive(port, [Request(path)], 20, at_most=3)
    assert [sample.failure for sample in samples] == [failure] * 3


def test_the_client_notes_that_nobody_is_there(port: int) -> None:
    assert ask(port, "/x") == b"/x0"
    assert ask(1) is None
    assert {sample.failure for sample in drive(1, [Request()], 20, at_most=3)} == {"Connection refused"}


def test_full_throughput_is_found() -> None:
    # Half of the ceiling for half a second, then the ceiling.
    slow = [n / 1600 for n in range(800)]
    full = [0.5 + n / 3200 for n in range(3200)]
    assert growth.full_after(slow + full, 1.5) == pytest.approx(0.7, abs=0.051)
    assert growth.full_after(slow, 1.5) == math.inf


def test_everybody_begins_once() -> None:
    assert [run.rotated("abc", number)[0] for number in range(4)] == ["a", "b", "c", "a"]


def test_cells() -> None:
    assert report.spread([3.0, 1.0, 2.0], 1) == "**2.0** (1.0-3.0)"
    assert report.spread([0.5], 0, 1000) == "500"
    assert report.spread([]) == "-"
    assert report.ratio([[30.0], [20.0]], [10.0]) == "2.00"


def test_what_was_measured_replaces_what_was(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    report.splice(document, "new")
    assert document.read_text() == f"before\n{report.BEGIN}\n\nnew\n\n{report.END}\nafter\n"
    document.write_text("no place")
    with pytest.raises(ValueError, match="has not got the two lines"):
        report.splice(document, "new")


def test_the_document_has_a_place_for_it(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_bytes((Path(__file__).parents[3] / "docs/benchmarks.md").read_bytes())
    report.splice(document, "new")
