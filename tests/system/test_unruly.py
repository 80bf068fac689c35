"""Applications that do what nobody expects of them, and operators who remove what they should not."""

from __future__ import annotations

import os
import signal
import socket

from tests.system.daemon import Daemon
from tests.system.traffic import Traffic, ask

FORKS = """
import sys

good = application

def application(environ, start_response):
    if environ["PATH_INFO"] == "/fork/exit":
        if os.fork() == 0:
            sys.exit(0)
    elif environ["PATH_INFO"] == "/fork/return":
        os.fork()
    elif environ["PATH_INFO"] == "/fork/raise":
        if os.fork() == 0:
            raise RuntimeError("in the child")
    return good(environ, start_response)
"""


def test_a_child_that_comes_back_is_no_second_worker(daemon: Daemon) -> None:
    """It neither answers on the client's connection nor accepts others."""
    daemon.pool["workers"] = {"start": 1, "min_spare": 1, "max_spare": 1, "max": 1}
    daemon.write_app(tail=FORKS)
    daemon.start()
    (worker,) = daemon.pids()
    host, port = daemon.address.split(":")
    for path in ("/fork/exit", "/fork/return", "/fork/raise"):
        with socket.create_connection((host, int(port)), timeout=10) as client:
            request = "GET {} HTTP/1.1\r\nHost: x\r\n{}\r\n"
            client.sendall(request.format(path, "").encode() + request.format("/", "Connection: close\r\n").encode())
            received = b""
            while data := client.recv(65536):
                received += data
        assert received.count(b"HTTP/1.1 200 OK") == received.count(b"HTTP/1.1") == 2, received
        assert received.count(f"X-Worker-Pid: {worker}".encode()) == 2, received
    assert {ask(daemon)[1] for _ in range(5)} == {worker}
    assert not daemon.events("master_gone")
    assert not daemon.events("app_exception", client="127.0.0.1", request="GET /fork/exit")


def test_the_time_limit_survives_an_application_that_uses_the_alarm(daemon: Daemon) -> None:
    daemon.pool["workers"] = {"start": 1, "min_spare": 1, "max_spare": 1, "max": 1}
    daemon.pool["timeouts"]["request"] = "500ms"
    daemon.write_app(
        tail="""
import signal

good = application

def application(environ, start_response):
    if environ["PATH_INFO"] == "/mine":
        signal.signal(signal.SIGALRM, signal.SIG_IGN)
    if environ["PATH_INFO"] == "/spin":
        while True:
            pass
    return good(environ, start_response)
"""
    )
    daemon.start()
    _, worker = ask(daemon, "/mine")
    daemon.wait_for_event("alarm_taken_back", pid=worker)
    host, port = daemon.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as client:
        client.sendall(b"GET /spin HTTP/1.1\r\nHost: x\r\n\r\n")
        death = daemon.wait_for_event("worker_exit", pid=worker)
    assert death["cause"] == "timed out: the request took longer than timeouts.request"
    assert death["request"] == "GET /spin HTTP/1.1"
    daemon.expect_noise = True  # the traceback, written from C


def test_draining_while_workers_are_being_born_cuts_nothing(daemon: Daemon) -> None:
    """A worker serves as soon as it can; a wish to leave that is older than the news of its birth is still graceful."""
    daemon.pool["workers"] = {"start": 4, "min_spare": 4, "max_spare": 4, "max": 8}
    daemon.start()
    with Traffic(daemon, kept=4, fresh=0, path="/sleep/30", pace=0) as traffic:
        for _ in range(6):
            for pid in daemon.pids():
                os.kill(pid, signal.SIGTERM)
            daemon.signal(signal.SIGWINCH)
            mark = daemon.mark()
            daemon.signal(signal.SIGHUP)
            daemon.wait_for_event("reload_done", after=mark)
            traffic.wait(5)
    assert not traffic.failed, traffic.failed


def test_a_removed_control_socket_comes_back_with_a_reload(daemon: Daemon) -> None:
    daemon.start()
    path = daemon.settings["control"]
    os.unlink(path)
    outcome = daemon.command("status", "{file}")
    assert outcome.code == 1
    assert f"pid {daemon.pid} runs" in outcome.err
    assert f"kill -HUP {daemon.pid}" in outcome.err
    daemon.signal(signal.SIGHUP)
    daemon.wait_for_event("control_reopened")
    daemon.wait_for_event("reload_done")
    assert daemon.status()["master"]["generation"] == 2


def test_signals_that_mean_nothing_to_the_master(daemon: Daemon) -> None:
    daemon.start()
    for signum in (signal.SIGALRM, signal.SIGPROF, signal.SIGIO, signal.SIGVTALRM):
        daemon.signal(signum)
        daemon.wait_for_event("signal", signal=signum.name)
    assert ask(daemon)[0] == "1"
