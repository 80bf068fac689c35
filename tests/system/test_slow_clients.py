"""Clients that are slow on purpose: the attacks of slowhttptest, and plain crowds. A good client does not notice."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import pytest

from tests.support.counting_client import CountingClient, parse_address
from tests.system.daemon import PATIENCE, Daemon
from tests.system.shell import fetch

#: More than there are workers: one that is pinned by each of them is missed.
CROWD = 60

APP = """
import os, tempfile

good = application

def application(environ, start_response):
    if environ["PATH_INFO"] in ("/complete", "/file", "/stream"):
        start_response("200 OK", [("Content-Type", "text/plain")])
        if environ["PATH_INFO"] == "/complete":
            return [b"x" * (16 << 20)]
        if environ["PATH_INFO"] == "/stream":
            return iter([b"x" * (16 << 20)])
        file = tempfile.TemporaryFile()
        file.truncate(16 << 20)
        return environ["wsgi.file_wrapper"](file)
    environ["wsgi.input"].read()
    return good(environ, start_response)
"""


@pytest.fixture
def tool() -> str:
    path = shutil.which("slowhttptest")
    if path is None:
        pytest.skip("slowhttptest is not installed (apt-get install slowhttptest)")
    return path


@contextmanager
def attacked(tool: str, daemon: Daemon, path: str, *options: str, crowd: int = CROWD) -> Iterator[None]:
    """The attack goes on until the block is left, or until the program has closed its last connection."""
    command = [tool, *options, "-c", str(crowd), "-r", str(crowd), "-l", str(int(PATIENCE)), "-p", "5"]
    process = subprocess.Popen(
        [*command, "-u", f"http://{daemon.address}{path}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        yield
    finally:
        process.kill()
        process.wait()


def impatient(daemon: Daemon, workers: int) -> None:
    """Few workers and short deadlines, so that a test sees them come."""
    daemon.pool["workers"] = {"start": 2, "min_spare": 1, "max_spare": 2, "max": workers}
    daemon.pool["timeouts"] |= {"header": "2s", "body": "2s", "send": "2s"}
    daemon.settings["log"]["access"] = str(daemon.folder / "access.log")
    daemon.write_app(tail=APP)
    daemon.start()


def test_slow_headers(daemon: Daemon, tool: str) -> None:
    impatient(daemon, 2)
    with attacked(tool, daemon, "/", "-H", "-i", "1", "-x", "2"), CountingClient(daemon.address, timeout=2) as good:
        daemon.wait_for_status(lambda status: b'" 408 ' in (daemon.folder / "access.log").read_bytes())
        good.wait(20)
    good.result().check()


def test_slow_bodies(daemon: Daemon, tool: str) -> None:
    impatient(daemon, 2)
    with attacked(tool, daemon, "/", "-B", "-i", "1", "-x", "2"), CountingClient(daemon.address, timeout=2) as good:
        daemon.wait_for_event("request_body_failed", status=408)
        good.wait(20)
    good.result().check()


SIP = ("-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32")


@pytest.mark.parametrize("path", ["/complete", "/file"])
def test_slow_readers(daemon: Daemon, tool: str, path: str) -> None:
    """Answers that are complete, and larger than the kernel's buffer: far more readers than workers."""
    daemon.pool["answer"] = {"buffer": "16M"}
    impatient(daemon, 2)
    with attacked(tool, daemon, path, *SIP), CountingClient(daemon.address, timeout=5) as good:
        daemon.wait_for_event("client_gone", reason=lambda reason: "does not read" in reason)
        good.wait(20)
    good.result().check()


def test_slow_readers_of_streams(daemon: Daemon, tool: str) -> None:
    """An answer to which the application may add costs a worker, until its reader's time is up; so there must be
    more workers than slow readers, and each is free again soon."""
    impatient(daemon, 16)
    with attacked(tool, daemon, "/stream", *SIP, crowd=10), CountingClient(daemon.address, timeout=5) as good:
        daemon.wait_for_event("client_gone", reason=lambda reason: "does not read" in reason)
        good.wait(20)
    good.result().check()


@contextmanager
def reader(daemon: Daemon) -> Iterator[socket.socket]:
    """A client whose answer is on its way, from a worker that serves others already."""
    daemon.pool["answer"] = {"buffer": "16M"}
    daemon.pool["workers"] = {"start": 1, "min_spare": 1, "max_spare": 1, "max": 1}
    daemon.write_app(tail=APP)
    daemon.start()
    family, address = parse_address(daemon.address)
    with socket.socket(family) as client:
        client.settimeout(PATIENCE)
        client.connect(address)
        client.sendall(b"GET /complete HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        daemon.wait_for_status(lambda status: status["pools"]["web"]["workers"][0]["requests"] == 1)
        assert fetch(daemon.address).status == 200
        yield client


def rest(client: socket.socket) -> int:
    """How many bytes come until the orderly end of the connection."""
    size = 0
    while piece := client.recv(1 << 20):
        size += len(piece)
    return size


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_an_answer_on_its_way_is_finished(daemon: Daemon, signum: int) -> None:
    with reader(daemon) as client:
        daemon.signal(signum)
        if signum == signal.SIGTERM:
            daemon.wait_for_event("phase", state="stopping")
        else:
            daemon.wait_for_event("reload_done", generation=2)
            assert fetch(daemon.address).status == 200
        assert rest(client) > 16 << 20
    if signum == signal.SIGTERM:
        assert daemon.wait_exit() == 0


def test_an_answer_on_its_way_is_finished_within_graceful(daemon: Daemon) -> None:
    daemon.pool["timeouts"]["graceful"] = "200ms"
    with reader(daemon) as client:
        daemon.signal(signal.SIGTERM)
        assert daemon.wait_exit() == 0
        assert rest(client) < 16 << 20


def test_a_fast_stop_does_not_wait_for_answers_on_their_way(daemon: Daemon) -> None:
    with reader(daemon) as client:
        daemon.signal(signal.SIGINT)
        assert daemon.wait_exit() == 0
        assert rest(client) < 16 << 20


@pytest.mark.parametrize(
    "begin",
    [b"GET / HTTP/1.1\r\nHost: ", b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100000\r\n\r\n" + b"x" * 70_000],
    ids=["heads", "bodies"],
)
def test_crowds_of_half_sent_requests(daemon: Daemon, begin: bytes) -> None:
    daemon.pool["timeouts"] |= {"header": "60s", "body": "60s"}
    daemon.pool["workers"] = {"start": 4, "min_spare": 1, "max_spare": 4, "max": 4}
    daemon.write_app(tail=APP)
    daemon.start()
    family, address = parse_address(daemon.address)
    with ExitStack() as stack:
        for _ in range(300):
            client = stack.enter_context(socket.socket(family))
            client.settimeout(PATIENCE)
            client.connect(address)
            client.sendall(begin)
        with CountingClient(daemon.address, timeout=5) as good:
            good.wait(200)
        good.result().check()
        workers = daemon.status()["pools"]["web"]["workers"]
        assert len(workers) == 4
