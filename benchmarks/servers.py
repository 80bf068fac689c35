"""The peers: how each is started with a configuration that does it justice, and ended for certain.

All get the same interpreter, application, number of processes, backlog and time limits, and an access log only where
that is what is measured. Everything listens on the loopback device.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import measure
from benchmarks.load import ask

ROOT = Path(__file__).resolve().parent.parent

PREFORKD = "preforkd"
SYNC = "gunicorn sync"
GTHREAD = "gunicorn gthread"
PEERS = (PREFORKD, SYNC, GTHREAD)

#: Threads of a gthread worker; of 1, 2, 4 and 8 the best in a trial with keep-alive clients.
_GTHREADS = 4
_BACKLOG = 2048
#: How long a server may take to start, and to stop before it is killed, seconds.
_PATIENCE = 20.0
_PR_SET_CHILD_SUBREAPER = 36


class ServerFailed(Exception):
    """A server did not start, or did not do what it was told; the text holds the end of its log."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How a server shall serve.

    Attributes:
        app: Module and attribute, ``module:attribute``.
        workers: Processes at the start, which all peers but an adaptive preforkd keep.
        most: preforkd may grow up to so many; 0 is a pool of fixed size.
        access_log: Write one into the server's directory.
        preload: Load the application before forking (gunicorn; preforkd does it anyway).
        warmup: Paths that preforkd requests before it forks.
        environment: More variables for the application.
    """

    app: str = "benchmarks.apps:application"
    workers: int = 2
    most: int = 0
    access_log: bool = False
    preload: bool = False
    warmup: tuple[str, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)


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


def _preforkd(plan: Plan, port: int, directory: Path) -> list[str]:
    workers = f"start: {plan.workers}, max: {plan.most or plan.workers}"
    if plan.most:
        workers += f", min_spare: {plan.workers}"
    file = directory / "preforkd.yaml"
    file.write_text(
        f"""\
pid_file: {directory}/preforkd.pid
control: {directory}/control.sock
log:
  errors: {directory}/log
  access: {directory / "access.log" if plan.access_log else "off"}
pools:
  bench:
    listen: 127.0.0.1:{port}
    app: {plan.app}
    directory: {ROOT}
    warmup: [{", ".join(plan.warmup)}]
    workers: {{{workers}}}
    timeouts: {{request: 30s}}
    limits: {{backlog: {_BACKLOG}}}
"""
    )
    return [sys.executable, "-m", "preforkd", "run", str(file)]


def _gunicorn(plan: Plan, port: int, directory: Path, kind: str) -> list[str]:
    argv = [sys.executable, "-m", "gunicorn", plan.app, "--bind", f"127.0.0.1:{port}", "--chdir", str(ROOT)]
    argv += ["--workers", str(plan.workers), "--worker-class", kind, "--backlog", str(_BACKLOG)]
    argv += ["--timeout", "30", "--keep-alive", "5", "--error-logfile", str(directory / "log")]
    # Its heartbeat is a file; on a slow disk the worker would wait for it, says its documentation.
    argv += ["--worker-tmp-dir", "/dev/shm", "--no-control-socket"]
    if kind == "gthread":
        argv += ["--threads", str(_GTHREADS)]
    if plan.access_log:
        argv += ["--access-logfile", str(directory / "access.log")]
    if plan.preload:
        argv += ["--preload"]
    return argv


@contextlib.contextmanager
def running(name: str, plan: Plan, directory: Path) -> Iterator[Server]:
    """Starts the peer ``name`` and waits until all its workers are there; ends it with everything that it started.

    Raises:
        ServerFailed: It did not start.
    """
    directory = directory / f"{name.replace(' ', '-')}-{time.monotonic_ns()}"
    directory.mkdir()
    port = free_port()
    argv = (
        _preforkd(plan, port, directory)
        if name == PREFORKD
        else _gunicorn(plan, port, directory, name.removeprefix("gunicorn "))
    )
    log = directory / "log"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **plan.environment}
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
