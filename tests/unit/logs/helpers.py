"""What the tests of the logs share: settings, records, children."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field

from preforkd.config import Log
from preforkd.logs.events import Channel, EventLog
from preforkd.logs.outputs import Output
from preforkd.logs.sinks import TextSink

NOON = 1795435200.25  # 2026-11-23T12:00:00.25Z


@dataclass
class Request:
    """A record for the access log."""

    time: float = NOON
    duration: float = 0.0125
    client: str = "192.0.2.7"
    method: str = "GET"
    target: str = "/reports?page=3"
    protocol: str = "HTTP/1.1"
    status: int = 200
    sent: int = 1234
    received: int = 56
    headers: list[tuple[bytes, bytes]] = field(
        default_factory=lambda: [(b"Host", b"example.com"), (b"User-Agent", b"tests/1.0")]
    )
    shared: dict[str, object] = field(default_factory=dict)
    response_headers: list[tuple[str, str]] = field(default_factory=lambda: [("Content-Type", "text/plain")])
    user: str | None = None
    pool: str = "web"
    worker: str = "web/3"
    pid: int = 812


def settings(errors: object = "stderr", access: object = "off", format: str = "common", level: str = "info") -> Log:
    """The `log` section of a configuration; paths may be Path objects."""
    return Log(level=level, errors=str(errors), access=str(access), format=format)


def event_log(path: object, level: str = "debug", clock: Callable[[], float] = lambda: NOON) -> EventLog:
    """An event log in a file, without anything else."""
    fd = os.open(str(path), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
    return EventLog(Channel(TextSink(Output(fd, str(path), own=True)), level, None, clock))


def fork(child: Callable[[], None]) -> int:
    """Run ``child`` in a forked process and return its pid; an exception makes it exit with 1."""
    pid = os.fork()
    if pid:
        return pid
    try:
        child()
        os._exit(0)
    except BaseException:  # not a line of the test runner may run in the child
        traceback.print_exc()
        os._exit(1)


def wait(*pids: int) -> None:
    """Wait for the children; all of them must have ended well."""
    ends = {pid: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids}
    assert all(code == 0 for code in ends.values()), f"exit codes {ends}"
