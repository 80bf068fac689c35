"""Servers as processes: started from a `Plan`, waited for, and ended for certain. All listen on the loopback device."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from benchmarks import apps, measure
from benchmarks.load import ask
from benchmarks.peers import PEERS, ROOT, Place, Plan

#: How long a server may take to start, and to stop before it is killed, seconds.
_PATIENCE = 20.0
_PR_SET_CHILD_SUBREAPER = 36


class ServerFailed(Exception):
    """A server did not start, or did not do what it was told; the text holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs. ``started`` is when its process was made (monotonic seconds)."""

    name: str
    port: int
    pid: int
    log: Path
    started: float
    first_answer: float

    def failed(self, what: str) -> ServerFailed:
        """An error that ends with what the server itself has to say."""
        said = self.log.read_text(errors="replace")[-2000:] if self.log.exists() else ""
        return ServerFailed(f"{self.name}: {what}\n{said}")


def free_port() -> int:
    """A port of the loopback device on which nothing listens at the moment."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


def _documents(directory: Path) -> Path:
    """The files that are served, below the directory of the run; made once."""
    documents = directory / "documents"
    if not documents.exists():
        documents.mkdir()
        (documents / "hello.txt").write_bytes(apps.HELLO)
        (documents / "file.txt").write_bytes(b"x" * apps.FILE)
    return documents


@contextlib.contextmanager
def running(name: str, plan: Plan, directory: Path) -> Iterator[Server]:
    """Starts the peer ``name`` and waits until all its workers are there; ends it with everything that it started.

    Raises:
        ServerFailed: It did not start.
    """
    documents = _documents(directory)
    directory = directory / f"{name.replace(' ', '-')}-{time.monotonic_ns()}"
    directory.mkdir()
    port = free_port()
    argv = PEERS[name].command(plan, Place(port, directory, documents))
    log = directory / "log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "BENCHMARK_FILE": str(documents / "file.txt")}
    environment |= plan.environment
    started = time.monotonic()
    with open(directory / "output", "wb") as output:
        process = subprocess.Popen(
            argv,
            cwd=ROOT,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    try:
        first = _first_answer(process, port, started)
        server = Server(name, port, process.pid, log, started, first)
        if not first:
            said = (directory / "output").read_text(errors="replace")[-2000:]
            raise server.failed(f"no answer within {_PATIENCE:.0f} s of its start\n{said}")
        _wait_for_workers(server, plan.workers)
        yield server
    finally:
        _end(process)


def _first_answer(process: subprocess.Popen[bytes], port: int, started: float) -> float:
    """Seconds from the start to the first answer; 0 if there is none in time."""
    while process.poll() is None and time.monotonic() < started + _PATIENCE:
        if ask(port, timeout=_PATIENCE) is not None:
            return time.monotonic() - started
        time.sleep(0.001)
    return 0.0


def _wait_for_workers(server: Server, workers: int) -> None:
    """Until there are enough processes, and no more for a while: who starts does not disturb what is measured next."""
    end = time.monotonic() + _PATIENCE
    before: list[int] = []
    while time.monotonic() < end:
        now = measure.tree(server.pid)
        if len(now) > workers and now == before:
            return
        before = now
        time.sleep(0.15)
    raise server.failed(f"it has not got {workers} workers in {_PATIENCE:.0f} s")


def _end(process: subprocess.Popen[bytes]) -> None:
    """TERM, and KILL for whoever is still there: the processes of one tree, by their pids."""
    processes = measure.tree(process.pid)
    if process.poll() is None:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            processes = measure.tree(process.pid)
            process.kill()
            process.wait()
    end_orphans(processes)


def adopt_orphans() -> None:
    """From now on a process whose parent ended below us becomes our child, so that we can see to it (prctl(2))."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def end_orphans(processes: list[int]) -> None:
    """Ends those of ``processes`` that have become our children, and reaps them."""
    mine = set(measure.tree(os.getpid()))
    for pid in processes:
        if pid in mine:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG) != (0, 0):
            pass
