"""The clients. Their own processor time is not counted anywhere.

`throughput` drives a server as hard as it can: by wrk where that is installed, else by `drive`. `drive` is a poll loop
of our own that notes the begin and the end of every request, for questions that need more than a mean.
"""

from __future__ import annotations

import itertools
import json
import select
import shutil
import socket
import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

WRK = shutil.which("wrk")

#: What Firefox sends along with a page's request, about: twelve fields with Host.
BROWSER = {
    "User-Agent": "Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0",
    "Accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8",
    "Accept-Language": "en-US,en;q=0.5",
    "Accept-Encoding": "gzip, deflate, br, zstd",
    "Referer": "http://127.0.0.1/reports/2026/november?sort=name",
    "Cookie": "session=eyJ1c2VyIjoiNDIifQ.aSMx2g.q0Zf7Yk3t9c; theme=dark; consent=yes",
    "Upgrade-Insecure-Requests": "1",
    "Sec-Fetch-Dest": "document",
    "Sec-Fetch-Mode": "navigate",
    "Sec-Fetch-Site": "same-origin",
    "Priority": "u=0, i",
}

#: In a path or a field's value: a number that no two requests of a run share.
NUMBER = "{n}"
#: Where a page of the browser's is another one each time, and its session, too.
VARIED = {**BROWSER, "Referer": f"http://127.0.0.1/orders/{NUMBER}", "Cookie": f"session=eyJ1c2VyIjoiNDIifQ.{NUMBER}"}

_numbers = itertools.count()

_SCRIPT = """\
done = function(summary, latency, requests)
  local e = summary.errors
  local failed = e.connect + e.read + e.write + e.status + e.timeout
  io.write(string.format('\\nRESULT {"requests": %d, "us": %d, "p50": %f, "p99": %f, "failed": %d}\\n',
    summary.requests, summary.duration, latency:percentile(50), latency:percentile(99), failed))
end
"""
#: The parts between the numbers; put together by concatenation, which costs wrk less than its own formatting.
_VARIED = """\
local n = %d
request = function()
  n = n + 1
  return %s
end
"""
_POST = 'wrk.method = "POST"\nwrk.body = string.rep("x", %d)\n'


@dataclass(frozen=True, slots=True)
class Request:
    """What is asked, again and again: ``path`` and the fields' values may hold `NUMBER`. ``posted`` is the size of its
    body, bytes."""

    path: str = "/"
    fields: tuple[tuple[str, str], ...] = ()
    keep: bool = True
    posted: int = 0

    @property
    def varied(self) -> bool:
        """Whether no two of these requests are the same."""
        return NUMBER in self.path or any(NUMBER in value for _, value in self.fields)

    def encoded(self, port: int) -> bytes:
        """The request as it goes over the wire, but for `NUMBER`."""
        lines = [f"{'POST' if self.posted else 'GET'} {self.path} HTTP/1.1", f"Host: 127.0.0.1:{port}"]
        lines += [f"{name}: {value}" for name, value in self.fields]
        if not self.keep:
            lines.append("Connection: close")
        if self.posted:
            lines.append(f"Content-Length: {self.posted}")
        return "\r\n".join([*lines, "", ""]).encode() + b"x" * self.posted


@dataclass(frozen=True, slots=True)
class Throughput:
    """What came out of `throughput`; latencies in seconds."""

    requests: int
    seconds: float
    p50: float
    p99: float
    failed: int


def throughput(port: int, request: Request, clients: int, seconds: int) -> Throughput:
    """As many requests as possible from ``clients`` connections."""
    return _wrk(port, request, clients, seconds) if WRK else _own(port, request, clients, seconds)


def _wrk(port: int, request: Request, clients: int, seconds: int) -> Throughput:
    assert WRK is not None
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        file = Path(directory, "script.lua")
        file.write_text(script(request, port))
        argv = [WRK, "-t1", f"-c{clients}", f"-d{seconds}s", "--timeout", "10s", "-s", str(file)]
        for name, value in request.fields:
            argv += ["-H", f"{name}: {value}"]
        if not request.keep:
            argv += ["-H", "Connection: close"]
        argv.append(f"http://127.0.0.1:{port}{request.path}")
        output = subprocess.run(argv, capture_output=True, text=True, timeout=seconds + 30, check=True).stdout
    found = json.loads(output.partition("RESULT ")[2])
    return Throughput(
        found["requests"], found["us"] / 1e6, found["p50"] / 1e6, found["p99"] / 1e6, int(found["failed"])
    )


def script(request: Request, port: int) -> str:
    """What wrk runs, in Lua."""
    if request.varied:
        parts = (
            '"' + "".join(f"\\{byte:03d}" for byte in part) + '"'
            for part in request.encoded(port).split(NUMBER.encode())
        )
        # Every process of wrk begins elsewhere, so that a server sees nothing twice.
        return _VARIED % (next(_numbers) * 10_000_000, " .. n .. ".join(parts)) + _SCRIPT
    return (_POST % request.posted if request.posted else "") + _SCRIPT


def _own(port: int, request: Request, clients: int, seconds: int) -> Throughput:
    samples = drive(port, [request] * clients, seconds)
    good = sorted(sample.ended - sample.began for sample in samples if not sample.failure)
    if not good:
        return Throughput(0, seconds, 0.0, 0.0, len(samples))
    return Throughput(len(good), seconds, good[len(good) // 2], good[len(good) * 99 // 100], len(samples) - len(good))


@dataclass(frozen=True, slots=True)
class Sample:
    """One request of `drive`: when it began (with the connection, where it has one of its own) and ended, monotonic
    seconds; what went wrong, empty if nothing did; the answer."""

    began: float
    ended: float
    failure: str
    answer: bytes


def drive(
    port: int,
    requests: Sequence[Request],
    seconds: float,
    *,
    pause: float = 0.0,
    at_most: int = 0,
    until: Callable[[], bool] = lambda: False,
    samples: list[Sample] | None = None,
) -> list[Sample]:
    """Sends each of ``requests`` again and again, every one by a client of its own, for so many seconds.

    A client that is told to keep its connection opens a new one when the server has closed it. It is a failure when a
    request that was sent has no complete answer of status 200, or when no connection can be made.

    Args:
        port: Of the loopback device.
        requests: One for each client.
        seconds: When to end; what is under way then is not counted.
        pause: Seconds between an answer and the client's next request.
        at_most: End after so many answers; 0: no such limit.
        until: Asked now and then; ends it as well.
        samples: Where they go, for a thread that looks on; else a new list.
    """
    samples = [] if samples is None else samples
    waiting: deque[tuple[float, _Client]] = deque()
    now = time.monotonic()
    end = now + seconds
    with select.epoll() as poll:
        clients: dict[int, _Client] = {}
        # One after the other rather than in step.
        for number, request in enumerate(requests):
            waiting.append((now + pause * number / len(requests), _Client(port, request, poll, clients)))
        try:
            while now < end and not until() and not (at_most and len(samples) >= at_most):
                while waiting and waiting[0][0] <= now:
                    waiting.popleft()[1].begin()
                patience = min(end, waiting[0][0] if waiting else end) - now
                for descriptor, _ in poll.poll(max(0.0, min(patience, 0.05))):
                    client = clients[descriptor]
                    sample = client.advance()
                    if sample is not None:
                        samples.append(sample)
                        waiting.append((sample.ended + pause, client))
                now = time.monotonic()
        finally:
            for client in list(clients.values()):
                client.close()
    return samples


def arrive(
    port: int, request: Request, rate: float, seconds: float, patience: float, *, samples: list[Sample] | None = None
) -> list[Sample]:
    """Open-loop load: clients arrive at a constant rate, whatever the server does, each with one request.

    One that has no answer after ``patience`` closes its connection and goes; its failure is `LATE`. Returns when the
    last has gone: at most ``seconds`` + ``patience`` after the begin.

    Args:
        port: Of the loopback device.
        request: The same for all.
        rate: Clients a second.
        seconds: How long they arrive.
        patience: How long each waits for its answer from its arrival, seconds.
        samples: Where they go, for a thread that looks on; else a new list.
    """
    samples = [] if samples is None else samples
    began = now = time.monotonic()
    total = int(rate * seconds)
    arrived = 0
    waiting: deque[tuple[float, _Client]] = deque()
    with select.epoll() as poll:
        clients: dict[int, _Client] = {}
        try:
            while arrived < total or waiting:
                while arrived < total and began + arrived / rate <= now:
                    client = _Client(port, request, poll, clients)
                    client.begin()
                    # Counted from its own begin: what gives up has waited that long.
                    waiting.append((time.monotonic() + patience, client))
                    arrived += 1
                while waiting and (waiting[0][0] <= now or not waiting[0][1].busy):
                    _, client = waiting.popleft()
                    if client.busy:
                        samples.append(client.gives_up())
                if arrived == total and not waiting:
                    break
                next_one = began + arrived / rate if arrived < total else now + patience
                until = min(next_one, waiting[0][0] if waiting else next_one)
                for descriptor, _ in poll.poll(max(0.0, until - now)):
                    client = clients[descriptor]
                    sample = client.advance()
                    if sample is not None:
                        samples.append(sample)
                        client.close()
                now = time.monotonic()
        finally:
            for client in list(clients.values()):
                client.close()
    return samples


#: The failure of a client that has waited long enough.
LATE = "no answer in time"


class _Client:
    """One client of `drive` or `arrive`: a connection, and a request on it or not."""

    def __init__(self, port: int, request: Request, poll: select.epoll, clients: dict[int, _Client]) -> None:
        self._address = ("127.0.0.1", port)
        self._bytes = request.encoded(port)
        self._varied = request.varied
        self._keep = request.keep
        self._poll = poll
        self._clients = clients
        self._socket: socket.socket | None = None
        self._began = 0.0
        self._unsent = b""
        self._buffer = b""
        self._end = 0

    def begin(self) -> None:
        """Sends the next request, over a new connection if need be."""
        self._began = time.monotonic()
        self._unsent = self._bytes
        if self._varied:
            self._unsent = self._bytes.replace(NUMBER.encode(), b"%d" % next(_numbers))
        self._buffer = b""
        self._end = 0
        if self._socket is not None and not self._still_open():
            self.close()
        if self._socket is None:
            self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.connect_ex(self._address)
            self._clients[self._socket.fileno()] = self
            self._poll.register(self._socket.fileno(), select.EPOLLIN | select.EPOLLOUT)
        else:
            self._poll.modify(self._socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    @property
    def busy(self) -> bool:
        """Whether it waits for an answer."""
        return bool(self._began)

    def gives_up(self) -> Sample:
        """Goes without an answer."""
        return self._ended(LATE)

    def _still_open(self) -> bool:
        """False if the server has closed the connection meanwhile, which is its right between two requests."""
        assert self._socket is not None
        try:
            return bool(self._socket.recv(1, socket.MSG_PEEK))
        except BlockingIOError:
            return True
        except OSError:
            return False

    def advance(self) -> Sample | None:
        """The connection is ready for something; the sample when the request has ended, one way or the other."""
        assert self._socket is not None
        if not self._began:
            # Between two requests only its end can be reported.
            self.close()
            return None
        try:
            if self._unsent:
                self._unsent = self._unsent[self._socket.send(self._unsent) :]
                if not self._unsent:
                    self._poll.modify(self._socket.fileno(), select.EPOLLIN)
                return None
            data = self._socket.recv(256 * 1024)
        except BlockingIOError:
            return None
        except OSError as error:
            return self._ended(error.strerror or "error")
        if not data:
            return self._ended("closed without a complete answer")
        self._buffer += data
        if not self._end:
            head = self._buffer.find(b"\r\n\r\n") + 4
            if head < 4:
                return None
            self._end = head + _length(self._buffer[:head])
        if len(self._buffer) < self._end:
            return None
        return self._ended("" if self._buffer[9:12] == b"200" else f"status {self._buffer[9:12].decode('latin-1')}")

    def _ended(self, failure: str) -> Sample:
        sample = Sample(self._began, time.monotonic(), failure, self._buffer)
        self._began = 0.0
        if failure or not self._keep or b"\r\nconnection: close\r\n" in self._buffer[: self._end].lower():
            self.close()
        return sample

    def close(self) -> None:
        """Closes the connection, if there is one."""
        if self._socket is not None:
            del self._clients[self._socket.fileno()]
            self._socket.close()
            self._socket = None


def _length(head: bytes) -> int:
    """The Content-Length of an answer, whose servers here all send one."""
    return int(head.lower().partition(b"\r\ncontent-length:")[2].partition(b"\r\n")[0])


def ask(port: int, path: str = "/", timeout: float = 5.0) -> bytes | None:
    """The body of one answer over a connection of its own; None if there was none with status 200."""
    answer = _one(port, path, timeout)
    return answer.partition(b"\r\n\r\n")[2] if answer[9:12] == b"200" else None


def closes(port: int, path: str = "/", timeout: float = 5.0) -> bool:
    """Whether a client that asks for it is told that the connection ends with this answer (RFC 9112, section 9.6)."""
    return b"\r\nconnection: close\r\n" in _one(port, path, timeout).partition(b"\r\n\r\n")[0].lower() + b"\r\n"


def _one(port: int, path: str, timeout: float) -> bytes:
    """One complete answer, or as much of it as there is; not every server closes then, though it is told to."""
    answer = b""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout) as connection:
            connection.settimeout(timeout)
            connection.sendall(Request(path, keep=False).encoded(port))
            while not _complete(answer) and (data := connection.recv(65536)):
                answer += data
    except OSError:
        pass
    return answer


def _complete(answer: bytes) -> bool:
    """False also where only the end of the connection tells (RFC 9112, section 6.3)."""
    head, end, body = answer.partition(b"\r\n\r\n")
    return bool(end) and b"\r\ncontent-length:" in head.lower() and len(body) >= _length(head + end)
