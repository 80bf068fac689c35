"""A load client that counts every request by its number: what a test asks when it says "no request was lost".

It sends numbered requests from several threads, over fresh or kept connections, by TCP or a unix socket, and keeps for
each number what became of it. It never tries again, and is strict about what a server may do to a kept connection:

=======================================================================  ===========================================
the server ...                                                           the request ...
=======================================================================  ===========================================
closed the connection before a byte of the request was sent              goes over a new connection (`Result.reopened`)
announced ``Connection: close`` with its last answer                     goes over a new connection
closes or resets the connection after a byte was sent, without answer    failed
answers in part, with another status or body, or another's answer        failed
says something on an idle connection                                     failed
=======================================================================  ===========================================

A server that closes idle connections without a warning loses races with requests on their way, and they count as failed
here, as they do in production. So a graceful reload shows 0 failed requests only if it hands its connections on or
announces their end (RFC 9112, 9.6)::

    with CountingClient("127.0.0.1:8080", threads=8) as client:
        client.wait(100)                  # that many answers
        os.kill(master, signal.SIGHUP)
        client.wait(100)                  # that many more
    client.result().check()               # raises AssertionError with a summary

Only the standard library; each thread has a blocking socket of its own.
"""

from __future__ import annotations

import errno
import itertools
import re
import select
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from enum import Enum
from types import TracebackType
from typing import Self


class Failure(Enum):
    """What became of a request that failed."""

    REFUSED = "refused"  # nobody listens (or the unix socket's path is gone)
    RESET = "reset"
    CLOSED = "closed early"  # without an answer, or in the middle of one
    TIMEOUT = "timeout"
    STATUS = "wrong status"
    BODY = "wrong body"
    ANSWER = "wrong answer"  # of another request, not HTTP, or unasked
    CLIENT = "client's own"  # no port, no descriptor: says nothing about the server


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request. Times in seconds; ``started`` by the monotonic clock."""

    number: int
    started: float
    latency: float
    failure: Failure | None = None
    #: The exact error: what the system said, how many bytes had come.
    error: str = ""
    status: int = 0
    #: Which process answered, by its X-Worker-Pid; 0 if the answer did not say.
    pid: int = 0
    #: Which process gave the previous answer on this connection; 0 on a fresh one.
    pid_before: int = 0
    #: How many requests this connection had carried before.
    kept: int = 0

    @property
    def ok(self) -> bool:
        """Whether the answer was complete and right."""
        return self.failure is None

    def __str__(self) -> str:
        end = "ok" if self.failure is None else f"{self.failure.value}: {self.error}"
        where = f" on a connection kept {self.kept} times" if self.kept else ""
        return f"request {self.number}: {end}{where} after {self.latency * 1000:.1f} ms"


@dataclass(frozen=True)
class Result:
    """What became of all requests so far, in the order of their numbers."""

    outcomes: list[Outcome]
    #: Connections that the server had closed, properly, before a request was sent on them.
    reopened: int = 0
    #: Connections that were made.
    connections: int = 0
    failed: list[Outcome] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "failed", [outcome for outcome in self.outcomes if not outcome.ok])

    @property
    def ok(self) -> int:
        """How many were answered, completely and right."""
        return len(self.outcomes) - len(self.failed)

    @property
    def failures(self) -> Counter[Failure]:
        """How many failed, and how."""
        return Counter(outcome.failure for outcome in self.failed if outcome.failure is not None)

    @property
    def worst(self) -> float:
        """The longest that an answered request took, seconds; 0.0 without any."""
        return max((outcome.latency for outcome in self.outcomes if outcome.ok), default=0.0)

    @property
    def pids(self) -> Counter[int]:
        """How many answers each process gave, where the answers say so."""
        return Counter(outcome.pid for outcome in self.outcomes if outcome.pid)

    def since(self, number: int) -> Result:
        """The part with requests from ``number`` on; connections are not divided."""
        later = [outcome for outcome in self.outcomes if outcome.number >= number]
        return Result(later, self.reopened, self.connections)

    def summary(self, most: int = 10) -> str:
        """A few lines for people: counts, the worst, the first failures."""
        lines = [
            f"{len(self.outcomes)} requests, {self.ok} ok, {len(self.failed)} failed; worst {self.worst * 1e3:.1f} ms; "
            f"{self.connections} connections, {self.reopened} reopened; {len(self.pids)} processes answered"
        ]
        lines += [f"  {count} {failure.value}" for failure, count in self.failures.most_common()]
        lines += [f"  {outcome}" for outcome in self.failed[:most]]
        if len(self.failed) > most:
            lines.append(f"  ... and {len(self.failed) - most} more")
        return "\n".join(lines)

    def check(self, at_least: int = 1, failed: int = 0) -> None:
        """AssertionError with the summary unless ``at_least`` were answered and at most ``failed`` failed."""
        assert self.ok >= at_least and len(self.failed) <= failed, self.summary()


class CountingClient:
    """Sends numbered requests until it is stopped, or ``most`` were sent, or ``seconds`` are over.

    Use it as a context manager, or by `start` and `stop`. Any thread may call its methods; a client is used once.
    """

    def __init__(
        self,
        address: str,
        *,
        threads: int = 4,
        keep_alive: bool = True,
        per_connection: int = 0,
        path: str = "/",
        data: bytes | None = None,
        headers: Iterable[tuple[str, str]] = (),
        timeout: float = 10.0,
        most: int = 200_000,
        seconds: float = 120.0,
        status: int = 200,
        body: Callable[[int, bytes], bool] | None = None,
        between: Callable[[int], None] | None = None,
    ) -> None:
        """Prepare; nothing is sent yet.

        Args:
            address: ``127.0.0.1:8080``, ``[::1]:8080`` or ``unix:/path``, as in the configuration.
            threads: how many connections at once.
            keep_alive: whether a connection carries more than one request; else each says ``Connection: close``.
            per_connection: the client itself changes the connection after so many; 0: never.
            path: what is asked for; the number is added as ``n=`` to its query, and as the header X-Number.
            data: the body of a POST; None: GET.
            headers: more fields for each request.
            timeout: seconds until a request has failed, connecting included.
            most: how many requests at most.
            seconds: how long at most.
            status: the right status.
            body: says of a number and the body of its answer whether that is right.
            between: called by each thread before a request is sent, with its number: to pace, to wait for an event.
        """
        self._family, self._address = parse_address(address)
        self._host = "localhost" if self._family == socket.AF_UNIX else address
        self._keep_alive = keep_alive
        self._per_connection = per_connection
        self._target = path + ("&n=" if "?" in path else "?n=")
        self._data = data
        self._headers = "".join(f"{name}: {value}\r\n" for name, value in headers)
        self._timeout = timeout
        self._most = most
        self._seconds = seconds
        self._status = status
        self._body = body
        self._between = between
        self._numbers = itertools.count()
        self._until = 0.0
        self._stopping = threading.Event()
        self._news = threading.Condition()
        self._outcomes: list[Outcome] = []
        self._ok = 0
        self._reopened = 0
        self._connections = 0
        self._running = 0
        self._bug: BaseException | None = None
        self._threads = [threading.Thread(target=self._run, name=f"client-{number}") for number in range(threads)]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Begin to send."""
        self._until = time.monotonic() + self._seconds
        self._running = len(self._threads)
        for thread in self._threads:
            thread.start()

    def stop(self) -> Result:
        """Send no more, wait for the answers of what was sent (no longer than `timeout`), and return the result."""
        self._stopping.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(self._timeout * 2 + 10)
                assert not thread.is_alive(), "a thread of the client does not end: is `between` waiting?"
        return self.result()

    def result(self) -> Result:
        """What became of the requests that have ended so far. Raises what went wrong in the client itself."""
        with self._news:
            if self._bug is not None:
                raise self._bug
            outcomes = sorted(self._outcomes, key=lambda outcome: outcome.number)
            return Result(outcomes, self._reopened, self._connections)

    @property
    def ended(self) -> int:
        """How many requests have ended, well or not."""
        with self._news:
            return len(self._outcomes)

    def wait(self, count: int, timeout: float = 30.0) -> None:
        """Wait until ``count`` more requests have been answered rightly. AssertionError after ``timeout`` seconds."""
        self.wait_until(lambda now, before: now.ok >= before.ok + count, timeout)

    def wait_until(self, done: Callable[[Tally, Tally], bool], timeout: float = 30.0) -> None:
        """Wait until ``done(now, before)``, of the tally now and when this was called, is true."""
        with self._news:
            before = self._tally()
            assert self._news.wait_for(lambda: done(self._tally(), before) or not self._running, timeout) and done(
                self._tally(), before
            ), f"waited in vain, {timeout:g} s at most: {self._tally()} after {before}, {self._running} threads left"

    def wait_end(self, timeout: float = 120.0) -> Result:
        """Wait until `most` or `seconds` is reached, and return the result."""
        with self._news:
            assert self._news.wait_for(lambda: not self._running, timeout), f"still running after {timeout:g} s"
        return self.stop()

    def _tally(self) -> Tally:
        return Tally(self._ok, len(self._outcomes) - self._ok)

    def _add(self, outcome: Outcome) -> None:
        with self._news:
            self._outcomes.append(outcome)
            if outcome.ok:
                self._ok += 1
            self._news.notify_all()

    # --- a thread -----------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        connection: _Connection | None = None
        try:
            while not self._stopping.is_set() and time.monotonic() < self._until:
                number = next(self._numbers)  # atomic: one call into C
                if number >= self._most:
                    break
                if self._between is not None:
                    self._between(number)
                outcome, connection = self._request(number, connection)
                self._add(outcome)
                if not outcome.ok:
                    self._stopping.wait(0.001)  # a server that refuses everything is asked a thousand times a second
        except BaseException as error:  # a bug of the client's, or of `between`: the test must see it
            with self._news:
                self._bug = error
        finally:
            if connection is not None:
                connection.close()
            with self._news:
                self._running -= 1
                self._news.notify_all()

    def _request(self, number: int, connection: _Connection | None) -> tuple[Outcome, _Connection | None]:
        """One request, over ``connection`` if that still is one; and the connection if it may carry another."""
        started = time.monotonic()
        deadline = started + self._timeout
        status = pid = pid_before = kept = 0
        try:
            if connection is not None and connection.ended():
                connection = self._reopen(connection)
            if connection is None:
                connection = self._connect()
            request = self._text(number)
            try:
                connection.send(request)
            except _NothingSent:
                if not connection.kept:
                    raise
                connection = self._reopen(connection)
                connection.send(request)
            pid_before, kept = connection.pid, connection.kept
            answer = connection.receive(deadline)
            status, pid = answer.status, answer.pid
            self._judge(number, answer)
        except _Failed as failed:
            if connection is not None:
                pid_before, kept = connection.pid, connection.kept
                connection.close()
            latency = time.monotonic() - started
            failure, error = failed.failure, failed.error
            return Outcome(number, started, latency, failure, error, status, pid, pid_before, kept), None
        latency = time.monotonic() - started
        connection.kept += 1
        connection.pid = pid
        if answer.close or not self._keep_alive or connection.kept == self._per_connection:
            connection.close()
            connection = None
        return Outcome(number, started, latency, None, "", status, pid, pid_before, kept), connection

    def _text(self, number: int) -> bytes:
        method = "GET" if self._data is None else "POST"
        length = "" if self._data is None else f"Content-Length: {len(self._data)}\r\n"
        close = "" if self._keep_alive else "Connection: close\r\n"
        head = (
            f"{method} {self._target}{number} HTTP/1.1\r\nHost: {self._host}\r\nX-Number: {number}\r\n"
            f"{length}{close}{self._headers}\r\n"
        )
        return head.encode("latin-1") + (self._data or b"")

    def _judge(self, number: int, answer: _Answer) -> None:
        told = answer.headers.get(b"x-number")
        if told is not None and told != b"%d" % number:
            raise _Failed(Failure.ANSWER, f"the answer belongs to request {told.decode('latin-1')}")
        if answer.status != self._status:
            raise _Failed(Failure.STATUS, f"{answer.status} instead of {self._status}: {answer.body[:200]!r}")
        if self._body is not None and not self._body(number, answer.body):
            raise _Failed(Failure.BODY, f"{len(answer.body)} bytes: {answer.body[:200]!r}")

    def _reopen(self, old: _Connection) -> _Connection:
        old.close()
        with self._news:
            self._reopened += 1
        return self._connect()

    def _connect(self) -> _Connection:
        connection = _Connection(self._family, self._address, self._timeout)
        with self._news:
            self._connections += 1
        return connection


@dataclass(frozen=True, slots=True)
class Tally:
    """How many requests have been answered rightly, and how many have failed."""

    ok: int
    failed: int


def parse_address(text: str) -> tuple[socket.AddressFamily, str | tuple[str, int]]:
    """``127.0.0.1:80``, ``[::1]:80``, ``unix:/path`` for socket.connect."""
    if text.startswith("unix:"):
        return socket.AF_UNIX, text.removeprefix("unix:")
    host, _, port = text.rpartition(":")
    if host.startswith("["):
        return socket.AF_INET6, (host[1:-1], int(port))
    return socket.AF_INET, (host, int(port))


class _Failed(Exception):
    """A request has failed."""

    def __init__(self, failure: Failure, error: str) -> None:
        super().__init__(error)
        self.failure = failure
        self.error = error


class _NothingSent(_Failed):
    """... and the system took not one byte of it."""


@dataclass(slots=True)
class _Answer:
    status: int
    headers: dict[bytes, bytes]
    body: bytes
    close: bool

    @property
    def pid(self) -> int:
        told = self.headers.get(b"x-worker-pid", b"")
        return int(told) if told.isdigit() else 0


_OWN_TROUBLE = {errno.EADDRNOTAVAIL, errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM}
_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-5][0-9][0-9])(?: [^\r\n]*)?")


class _Connection:
    """One connection; reads exactly the answers that belong to it."""

    def __init__(self, family: socket.AddressFamily, address: str | tuple[str, int], timeout: float) -> None:
        self.kept = 0
        self.pid = 0
        self._unread = b""
        try:
            self._socket = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        except OSError as error:
            raise _Failed(Failure.CLIENT, str(error)) from None
        # The kernel's own time limit. With Python's the socket would not block, and connect(2) to a unix socket with a
        # full queue would fail at once (EAGAIN) instead of waiting for its turn.
        limit = struct.pack("@ll", int(timeout), int(timeout % 1 * 1e6) or 1)
        try:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)
            if family != socket.AF_UNIX:
                self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.connect(address)
        except OSError as error:
            self._socket.close()
            raise _Failed(self._kind(error), f"connect: {error}") from None

    @staticmethod
    def _kind(error: OSError) -> Failure:
        if isinstance(error, (ConnectionRefusedError, FileNotFoundError)):
            return Failure.REFUSED
        if isinstance(error, (BlockingIOError, TimeoutError)) or error.errno == errno.EINPROGRESS:
            return Failure.TIMEOUT
        if error.errno in _OWN_TROUBLE:
            return Failure.CLIENT
        return Failure.RESET

    def ended(self) -> bool:
        """Whether the server has closed this idle connection. It has nothing else to say on it."""
        if self._unread:
            raise _Failed(Failure.ANSWER, f"unasked: {self._unread[:200]!r}")
        try:
            data = self._socket.recv(4096, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return False
        except ConnectionError:  # reset while idle: as good as closed, nothing of ours was lost
            return True
        if data:
            raise _Failed(Failure.ANSWER, f"unasked: {data[:200]!r}")
        return True

    def send(self, request: bytes) -> None:
        """Send all of it. If the server answers early and reads no further, that answer counts: see `receive`."""
        sent = 0
        try:
            while sent < len(request):
                sent += self._socket.send(request[sent:] if sent else request, socket.MSG_NOSIGNAL)
        except (BrokenPipeError, ConnectionResetError) as error:
            if not sent:
                raise _NothingSent(Failure.RESET, f"send: {error}") from None
        except OSError as error:
            raise _Failed(self._kind(error), f"send, {sent} of {len(request)} bytes: {error}") from None

    def receive(self, deadline: float) -> _Answer:
        """The answer, complete."""
        while True:
            head = self._until(b"\r\n\r\n", deadline, "the head of an answer")
            first, *lines = head.split(b"\r\n")
            match = _STATUS_LINE.fullmatch(first)
            if match is None:
                raise _Failed(Failure.ANSWER, f"not HTTP: {first[:200]!r}")
            status = int(match[2])
            if status >= 200:
                break
        headers: dict[bytes, bytes] = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon or not name or name != name.strip():
                raise _Failed(Failure.ANSWER, f"not a field: {line[:200]!r}")
            headers[name.lower()] = value.strip()
        close = headers.get(b"connection", b"").lower() == b"close" or (
            match[1] == b"0" and headers.get(b"connection", b"").lower() != b"keep-alive"
        )
        body, ended = self._read_body(status, headers, deadline)
        return _Answer(status, headers, body, close or ended)

    def _read_body(self, status: int, headers: dict[bytes, bytes], deadline: float) -> tuple[bytes, bool]:
        """The body, and whether the connection's end was the body's."""
        if status in (204, 304):
            return b"", False
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            return self._chunks(deadline), False
        if b"content-length" in headers:
            length = headers[b"content-length"]
            if not length.isdigit():
                raise _Failed(Failure.ANSWER, f"not a length: {length[:200]!r}")
            return self._exactly(int(length), deadline), False
        body = self._unread
        self._unread = b""
        while data := self._receive(deadline, "the body"):
            body += data
        return body, True

    def _chunks(self, deadline: float) -> bytes:
        body = []
        while True:
            line = self._until(b"\r\n", deadline, "the size of a chunk")
            try:
                size = int(line.partition(b";")[0], 16)
            except ValueError:
                raise _Failed(Failure.ANSWER, f"not the size of a chunk: {line[:200]!r}") from None
            if not size:
                break
            body.append(self._exactly(size, deadline))
            if self._exactly(2, deadline) != b"\r\n":
                raise _Failed(Failure.ANSWER, "a chunk that does not end where it said")
        while self._until(b"\r\n", deadline, "the end of the chunks"):
            pass
        return b"".join(body)

    def _until(self, mark: bytes, deadline: float, what: str) -> bytes:
        while mark not in self._unread:
            data = self._receive(deadline, what)
            if not data:
                raise _Failed(Failure.CLOSED, f"after {len(self._unread)} bytes of {what}: {self._unread[:200]!r}")
            self._unread += data
        found, _, self._unread = self._unread.partition(mark)
        return found

    def _exactly(self, length: int, deadline: float) -> bytes:
        parts, have = [self._unread], len(self._unread)
        while have < length:
            data = self._receive(deadline, "the body")
            if not data:
                raise _Failed(Failure.CLOSED, f"after {have} of {length} bytes of the body")
            parts.append(data)
            have += len(data)
        whole = b"".join(parts)
        self._unread = whole[length:]
        return whole[:length]

    def _receive(self, deadline: float, what: str) -> bytes:
        poll = select.poll()
        poll.register(self._socket, select.POLLIN)
        if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
            raise _Failed(Failure.TIMEOUT, f"waiting for {what}, {len(self._unread)} bytes had come")
        try:
            return self._socket.recv(65536)
        except OSError as error:
            had = f"{len(self._unread)} bytes of {what} had come"
            raise _Failed(self._kind(error), f"receive: {error}; {had}") from None

    def close(self) -> None:
        """Close it; more than once is fine."""
        self._socket.close()
