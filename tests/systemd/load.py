"""A client that counts every request; runs inside the machine, which has a network of its own.

    python3 load.py ADDRESS...          one connection a millisecond to each address, until a line comes from stdin
    python3 load.py --one ADDRESS PATH  a single request, whose beginning is an event as well

An address is HOST:PORT, [HOST]:PORT or unix:PATH. One line of JSON goes to stdout for each event, times in seconds of
the monotonic clock, which all processes of the system share:

    {"event": "started"}
    {"event": "begun"}                                      (the first byte of the body of --one has arrived)
    {"event": "answer", "status": N, "body": text, "seconds": N} or {"event": "error", "what": text, ...}
    {"event": "result", "address": ..., "served": N, "refused": N, "failed": [text, ...], "gap": seconds,
     "worst": seconds, "bodies": {text: N, ...}}

`served` counts complete answers of status 200; `refused` counts connections that were not taken (ECONNREFUSED, or a
socket's path that is gone); everything else that went wrong is in `failed`, in words. `gap` is the longest time in
which no answer arrived, `worst` the longest that one request took.

Only the standard library: it runs with the machine's own Python.
"""

from __future__ import annotations

import json
import re
import socket
import sys
import threading
import time
from collections.abc import Callable

#: Longer than any answer that a test waits for.
PATIENCE = 60.0


def connect(address: str) -> socket.socket:
    """A connection to an address as preforkd writes it."""
    if address.startswith("unix:"):
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(PATIENCE)
        try:
            connection.connect(address.removeprefix("unix:"))
        except BaseException:
            connection.close()
            raise
        return connection
    host, _, port = address.rpartition(":")
    return socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE)


def request(address: str, path: str, begun: Callable[[], None] = lambda: None) -> tuple[int, str]:
    """One request on a connection of its own; the status and the body. An answer that is cut short is an error.

    ``begun`` is called once, when the first byte of the body has arrived.
    """
    with connect(address) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nHost: machine\r\nConnection: close\r\n\r\n".encode())
        data = b""
        told = False
        while piece := connection.recv(65536):
            data += piece
            if not told and data.partition(b"\r\n\r\n")[2]:
                told = True
                begun()
    head, found, body = data.partition(b"\r\n\r\n")
    if not found:
        raise ConnectionError(f"the connection ended after {len(data)} bytes")
    length = re.search(rb"(?im)^content-length: *(\d+)\r?$", head)
    if length and int(length[1]) != len(body):
        raise ConnectionError(f"{len(body)} of {int(length[1])} bytes of the body arrived")
    return int(head.split()[1]), body.decode()


class Client(threading.Thread):
    """Requests to one address, one after the other, at most a thousand a second, until told to leave."""

    def __init__(self, address: str, leave: threading.Event) -> None:
        super().__init__(name=address)
        self.address = address
        self.leave = leave
        self.served = 0
        self.refused = 0
        self.failed: list[str] = []
        self.gap = 0.0
        self.worst = 0.0
        self.bodies: dict[str, int] = {}

    def run(self) -> None:
        last = time.monotonic()
        while not self.leave.wait(0.001):
            before = time.monotonic()
            try:
                status, body = request(self.address, "/")
            except (ConnectionRefusedError, FileNotFoundError):
                self.refused += 1
                continue
            except OSError as error:
                self.failed.append(repr(error))
                continue
            now = time.monotonic()
            if status != 200:
                self.failed.append(f"status {status}: {body[:200]}")
                continue
            self.served += 1
            self.bodies[body] = self.bodies.get(body, 0) + 1
            self.worst = max(self.worst, now - before)
            self.gap = max(self.gap, now - last)
            last = now

    def result(self) -> dict[str, object]:
        names = ("address", "served", "refused", "failed", "gap", "worst", "bodies")
        return {"event": "result", **{name: getattr(self, name) for name in names}}


def say(event: dict[str, object]) -> None:
    print(json.dumps(event), flush=True)


def main(arguments: list[str]) -> None:
    if arguments[0] == "--one":
        before = time.monotonic()
        try:
            status, body = request(arguments[1], arguments[2], lambda: say({"event": "begun"}))
            say({"event": "answer", "status": status, "body": body, "seconds": time.monotonic() - before})
        except OSError as error:
            say({"event": "error", "what": repr(error), "seconds": time.monotonic() - before})
        return
    leave = threading.Event()
    clients = [Client(address, leave) for address in arguments]
    for client in clients:
        client.start()
    say({"event": "started"})
    sys.stdin.readline()
    leave.set()
    for client in clients:
        client.join()
        say(client.result())


if __name__ == "__main__":
    main(sys.argv[1:])
