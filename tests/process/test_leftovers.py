"""What an import left behind that a fork would break is found and named; what looks alike and is harmless is not."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import sqlite3
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from preforkd.spawn import fork_child
from preforkd.worker.leftovers import find_leftovers, open_descriptors
from tests.support.child import in_child


def findings(leave: Callable[[], object]) -> list[str]:
    """What is found after ``leave`` ran, in a process of its own; what it returns is held on to."""

    def child() -> list[str]:
        before = open_descriptors()
        held = leave()
        found = find_leftovers(before)
        del held
        return found

    return in_child(child)


# --- what is found ---------------------------------------------------------------------------------------------------


def test_a_thread_is_named() -> None:
    def leave() -> object:
        thread = threading.Thread(target=threading.Event().wait, name="metrics-pusher", daemon=True)
        thread.start()
        return thread

    assert findings(leave) == ["the thread 'metrics-pusher' is running"]


def test_a_thread_that_python_did_not_start_is_found() -> None:
    """As numerical libraries and drivers start them, in C."""

    def leave() -> object:
        libc = ctypes.CDLL(None)
        thread = ctypes.c_ulong()
        assert libc.pthread_create(ctypes.byref(thread), None, libc.pause, None) == 0
        return thread

    (found,) = findings(leave)
    assert found.startswith("a thread that Python did not start is running")


def test_a_connection_is_named_by_its_peer() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
        assert findings(lambda: socket.create_connection((host, port))) == [
            f"a socket is open (connected to {host}:{port})"
        ]


def test_a_listener_is_named_by_its_address(tmp_path: Path) -> None:
    (found,) = findings(lambda: socket.create_server(("127.0.0.1", 0)))
    assert re.fullmatch(r"a socket is open \(bound to 127\.0\.0\.1:\d+\)", found)

    def leave() -> object:
        sock = socket.socket(socket.AF_UNIX)
        sock.bind(str(tmp_path / "s"))
        return sock

    assert findings(leave) == [f"a socket is open (bound to {str(tmp_path / 's')!r})"]


def test_pipes_and_event_loops_are_found() -> None:
    assert [re.sub(r"\d+", "N", one) for one in findings(os.pipe)] == ["a pipe is open (descriptor N)"] * 2

    def loop() -> object:
        import asyncio

        return asyncio.new_event_loop()

    found = [re.sub(r"\d+", "N", one) for one in findings(loop)]
    assert "an eventpoll is open (descriptor N)" in found
    assert sum(one.startswith("a socket is open") for one in found) == 2


def test_a_child_process_is_found() -> None:
    def leave() -> object:
        pid = fork_child(lambda: int(sys.stdin.read() == "never") if os.read(reading, 1) else 0, {reading})
        os.close(reading)
        return pid, writing

    reading, writing = os.pipe()
    os.set_inheritable(writing, False)
    try:
        found = findings(leave)
    finally:
        os.close(reading)
        os.close(writing)
    assert any(re.fullmatch(r"the process \d+ \(.+\) was started", one) for one in found), found


def test_an_open_database_file_is_found(tmp_path: Path) -> None:
    def leave() -> object:
        connection = sqlite3.connect(tmp_path / "site.db")
        connection.execute("create table page (name text)")
        connection.commit()
        return connection

    assert f"the file {tmp_path / 'site.db'} is open for writing" in findings(leave)


def test_a_flood_of_findings_stays_readable() -> None:
    found = findings(lambda: [os.pipe() for _ in range(100)])
    assert len(found) == 21 and found[-1] == "and 180 more"


# --- what is not -----------------------------------------------------------------------------------------------------


def joined_thread() -> None:
    thread = threading.Thread(target=int)
    thread.start()
    thread.join()


def ended_child() -> None:
    os.waitpid(fork_child(lambda: 0), 0)


@pytest.mark.parametrize(
    "leave",
    [
        lambda: None,
        joined_thread,
        lambda: [joined_thread() for _ in range(50)],  # type: ignore[func-returns-value]
        ended_child,
        lambda: os.open(os.devnull, os.O_WRONLY),
        lambda: os.open(__file__, os.O_RDONLY),
        lambda: os.open("/proc/self", os.O_PATH),
        lambda: os.open("/dev/urandom", os.O_RDONLY),
    ],
    ids=[
        "nothing",
        "thread-just-joined",
        "many-just-joined",
        "child-that-ended",
        "null",
        "file",
        "directory",
        "random",
    ],
)
def test_harmless_things_are_no_findings(leave: Callable[[], object]) -> None:
    assert findings(leave) == []


def test_a_log_file_that_is_appended_to_is_no_finding(tmp_path: Path) -> None:
    assert findings(lambda: os.open(tmp_path / "site.log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)) == []


def test_what_was_open_before_is_none_of_the_imports_doing() -> None:
    def child() -> list[str]:
        held = [os.pipe(), socket.socketpair()]
        found = find_leftovers(open_descriptors())
        assert held
        return found

    assert in_child(child) == []


@pytest.mark.may_skip("numpy is no dependency; where it is installed, it has to be no finding")
def test_numpy_is_no_finding() -> None:
    numpy = pytest.importorskip("numpy")

    def leave() -> object:
        return numpy.ones((300, 300)) @ numpy.ones((300, 300))

    assert findings(leave) == []


def test_looking_leaves_nothing_behind() -> None:
    def child() -> tuple[frozenset[int], frozenset[int]]:
        before = open_descriptors()
        find_leftovers(before)
        return before, open_descriptors()

    before, after = in_child(child)
    assert before == after
