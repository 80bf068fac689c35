"""More requests than the workers can answer: they go on answering as many as they can, and the others learn it."""

from __future__ import annotations

import select
import socket
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.system.daemon import Daemon

#: What a request takes in the application (ms), how many workers there are, and so how many requests a second.
MS, WORKERS = 20, 2
CAPACITY = WORKERS * 1000 / MS
LIMIT = 0.3
#: For so long three times as much comes as can be answered. Seconds.
LOAD = 3.0

APP = """
import os, time
def application(environ, start_response):
    began = time.monotonic()
    time.sleep(%f)
    with open(os.path.join(os.path.dirname(__file__), f"calls.{os.getpid()}"), "a") as file:
        file.write(f"{began} {time.monotonic()}\\n")
    start_response("200 OK", [("Content-Length", "2")])
    return [b"ok"]
""" % (MS / 1000)


class OpenLoop:
    """Clients that come at their times, whether others have been answered or not; each with one request."""

    def __init__(self, address: str, rate: float, seconds: float) -> None:
        self._family = socket.AF_UNIX if address.startswith("unix:") else socket.AF_INET
        host, _, port = address.rpartition(":")
        self._address: Any = port if address.startswith("unix:") else (host, int(port))
        self._rate, self._count = rate, int(rate * seconds)
        self.answers: list[bytes] = []
        self.failures: list[str] = []

    def run(self) -> None:
        """Returns when all are answered."""
        poll = select.epoll()
        waiting: dict[int, tuple[socket.socket, bytes]] = {}
        began = time.monotonic()
        sent = 0
        deadline = began + 60
        while (sent < self._count or waiting) and time.monotonic() < deadline:
            due = min(self._count, int((time.monotonic() - began) * self._rate) + 1)
            while sent < due:
                client = socket.socket(self._family)
                client.connect(self._address)
                client.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
                client.setblocking(False)
                waiting[client.fileno()] = client, b""
                poll.register(client, select.EPOLLIN)
                sent += 1
            next_at = began + sent / self._rate if sent < self._count else deadline
            for fd, _ in poll.poll(max(0.0, next_at - time.monotonic())):
                client, answer = waiting[fd]
                try:
                    piece = client.recv(65536)
                except OSError as error:
                    self.failures.append(str(error))
                    piece = b""
                if piece:
                    waiting[fd] = client, answer + piece
                else:
                    poll.unregister(fd)
                    client.close()
                    del waiting[fd]
                    self.answers.append(answer)
        for client, _ in waiting.values():
            self.failures.append("no answer")
            client.close()
        poll.close()


@pytest.mark.parametrize("kind", ["tcp", "unix"])
def test_beyond_the_capacity_the_workers_never_rest(daemon: Daemon, tmp_path: Path, kind: str) -> None:
    """Every request is answered, some by a refusal, and the workers' time goes to the application meanwhile."""
    if kind == "unix":
        daemon.listen_on(f"unix:{tmp_path}/web.sock")
    daemon.write_module(APP)
    daemon.pool["workers"] = {"start": WORKERS, "min_spare": 1, "max_spare": WORKERS, "max": WORKERS}
    daemon.pool["timeouts"] = {"queue": f"{int(LIMIT * 1000)}ms"}
    daemon.pool["limits"] = {"backlog": 4096}
    daemon.start()
    load = OpenLoop(daemon.address, 3 * CAPACITY, LOAD)
    load.run()
    statuses = Counter(answer.split(b" ", 2)[1] for answer in load.answers)
    assert not load.failures
    assert sum(statuses.values()) == int(3 * CAPACITY * LOAD)
    assert set(statuses) == {b"200", b"503"}, statuses
    for answer in load.answers:
        if answer.startswith(b"HTTP/1.1 503"):
            assert 1 <= int(answer.partition(b"Retry-After: ")[2].split(b"\r\n")[0]) <= 2
    # While requests are refused there are others to serve: the application runs back to back.
    lines = [line for path in daemon.app_folder.glob("calls.*") for line in path.read_text().splitlines()]
    calls = [[float(word) for word in line.split()] for line in lines]
    assert len(calls) == statuses[b"200"]
    first, last = min(began for began, _ in calls), max(ended for _, ended in calls)
    busy = sum(ended - began for began, ended in calls) / WORKERS / (last - first)
    assert busy >= 0.8, f"the workers ran the application for {busy:.0%} of the time"
    refused = statuses[b"503"]
    assert sum(worker["refused"] for worker in daemon.workers()) == refused
    event = daemon.wait_for_event("overloaded")
    assert float(event["longest_wait"]) > LIMIT
    assert 1 <= int(event["refused"]) <= refused
    assert len(daemon.events("overloaded")) <= WORKERS  # once in ten seconds, but for a race
    # The overload is over, and so are the refusals.
    load = OpenLoop(daemon.address, CAPACITY / 2, 0.5)
    load.run()
    assert {answer[:12] for answer in load.answers} == {b"HTTP/1.1 200"}
