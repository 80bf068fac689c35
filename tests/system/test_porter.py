"""A parked connection does not wait behind a request that takes long while a sibling has nothing to do."""

from __future__ import annotations

import mmap
import os
import socket
from collections import Counter
from pathlib import Path

import pytest

from tests.system.daemon import PATIENCE, Daemon

#: What keeps a worker busy until the test lets go: it waits in C; it computes and makes no system call.
_APP = """
import mmap, os

good = application
gate = mmap.mmap(os.open({gate!r}, os.O_RDWR), 4096)

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/asleep":
        with open({fifo!r}, "rb") as fifo:
            fifo.read()
    elif path == "/computes":
        while not gate[0]:
            pass
    return good(environ, start_response)
"""


class _Client:
    """One kept connection, that knows who answered it last."""

    def __init__(self, daemon: Daemon) -> None:
        host, port = daemon.address.split(":")
        self.socket = socket.create_connection((host, int(port)), timeout=PATIENCE)
        self.input = self.socket.makefile("rb")

    def send(self, path: str = "/") -> None:
        self.socket.sendall(f"GET {path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())

    def answer(self) -> int:
        """The pid of the worker that answers the oldest open request."""
        status = self.input.readline()
        assert status == b"HTTP/1.1 200 OK\r\n", status
        fields = {}
        while (line := self.input.readline()) != b"\r\n":
            name, _, value = line.decode().partition(":")
            fields[name.lower()] = value.strip()
        assert self.input.read(int(fields["content-length"])) == b"1"
        assert "connection" not in fields
        return int(fields["x-worker-pid"])

    def ask(self, path: str = "/") -> int:
        self.send(path)
        return self.answer()

    def close(self) -> None:
        self.input.close()
        self.socket.close()


@pytest.mark.parametrize("kind", ["asleep", "computes"])
def test_three_of_four_workers_are_busy_and_nobody_waits(daemon: Daemon, tmp_path: Path, kind: str) -> None:
    gate = tmp_path / "gate"
    gate.write_bytes(bytes(4096))
    fifo = tmp_path / "fifo"
    # Opened for reading by the workers, for writing by nobody until the end: open(2) waits.
    os.mkfifo(fifo)
    daemon.write_app(tail=_APP.format(gate=str(gate), fifo=str(fifo)))
    daemon.pool["workers"] = {"start": 4, "min_spare": 4, "max_spare": 4, "max": 4}
    daemon.pool["timeouts"]["keepalive"] = "1m"
    daemon.start()
    clients = [_Client(daemon) for _ in range(40)]
    try:
        holders = {client: client.ask() for client in clients}
        # Those who hold most are kept busy, and each by a connection of its own.
        busy: dict[int, _Client] = {}
        for pid, _ in Counter(holders.values()).most_common():
            if len(busy) < 3:
                busy[pid] = next(client for client in clients if holders[client] == pid)
                busy[pid].send(f"/{kind}")
        while len(busy) < 3:
            blocker = _Client(daemon)
            clients.append(blocker)
            blocker.send(f"/{kind}")
            busy[-len(busy)] = blocker
        daemon.wait_for_status(lambda status: sum(w["state"] == "busy" for w in status["pools"]["web"]["workers"]) == 3)
        others = [client for client in clients if client not in busy.values()]
        free = {client.ask() for client in others}
        assert len(free) == 1, "one worker was free, and has answered them all"
        for _ in range(2):
            for client in others:
                client.send()
            assert {client.answer() for client in others} == free
        # The requests that took long are answered as well, once, where they began.
        with open(gate, "r+b") as file, mmap.mmap(file.fileno(), 4096) as shared:
            shared[0] = 1
        if kind == "asleep":
            os.close(os.open(fifo, os.O_WRONLY))
        assert len({client.answer() for client in busy.values()} - free) == 3
        for client in clients:
            assert client.ask()
    finally:
        for client in clients:
            client.close()
