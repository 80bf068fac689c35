"""The master's end of the control socket: a guest in the master's poll, which it never holds up.

The master owns the loop. It polls `ControlServer.descriptors` beside its own, gives what became ready to
`ControlServer.ready`, gets requests, and answers them whenever it can, turns or minutes later:

    for fd, events in poll(...):
        for request in control.ready(fd, events):
            ...; control.answer(request.id, {"generation": 4})
    control.expire()                                    # at the latest at control.wake_at()

Everything a stranger could make grow is bounded: clients, bytes kept of a request, bytes kept of an answer, and the
time a client may take to say what it wants and to read what it gets. Time that the master itself needs (a reload takes
as long as the application's import) counts against nobody. A client that is gone costs nothing: its request is still
carried out, an order is an order, and its answer is dropped.

Who may connect is decided by the mode, owner and group of the socket's file; who did connect is in
`Request.credentials`, by word of the kernel (SO_PEERCRED).
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import struct
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from preforkd import unixsocket
from preforkd.control.protocol import (
    MAX_ANSWER,
    MAX_REQUEST,
    Answer,
    Lines,
    ProtocolError,
    decode_command,
    encode_answer,
)
from preforkd.errors import AlreadyRunning, ExitCode, ListenError

#: Clients at the same time. People and scripts are few; the rest is told to come back.
MAX_CLIENTS = 16

#: Seconds a client may take for its request, or for reading on in an answer.
DEADLINE = 10.0

#: Unread bytes from which on progress is left out; the final answer is sent all the same.
ENOUGH_PROGRESS = 64 * 1024

#: Seconds without accepting after descriptors ran out: the listener stays readable, polling it would be a busy loop.
SHORTAGE_PAUSE = 1.0

_UCRED = struct.Struct("=iII")


class Credentials(NamedTuple):
    """Who connected. ``pid`` is 0 where the process is in another pid namespace."""

    pid: int
    uid: int
    gid: int


@dataclass(frozen=True, slots=True)
class Request:
    """One request to the master. ``id`` is unique in this master and is what `ControlServer.answer` wants."""

    id: int
    command: str
    args: Mapping[str, Any]
    credentials: Credentials


@dataclass(slots=True, eq=False)
class _Client:
    sock: socket.socket
    credentials: Credentials
    deadline: float | None
    lines: Lines = field(default_factory=lambda: Lines(MAX_REQUEST))
    out: bytearray = field(default_factory=bytearray)
    #: The request being worked on: our number for it, and the client's.
    request: int | None = None
    number: int = 0
    #: Close when everything is written: the client said it is done, or talked nonsense.
    last_words: bool = False


class ControlServer:
    """The listening control socket and its clients. Master only.

    Forked children have to close `filenos`: a client waits for the end of file that says the master is gone.
    """

    def __init__(
        self,
        path: str,
        sock: socket.socket,
        file: unixsocket.FileId | None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Serve on a socket that listens at ``path``, see `open` and `adopt`. ``clock``: seconds, monotonic."""
        self.path = path
        self._sock = sock
        self._file = file
        self._clock = clock
        self._clients: dict[int, _Client] = {}
        self._working: dict[int, _Client] = {}
        self._last_request = 0
        self._paused_until: float | None = None

    @classmethod
    def open(
        cls,
        path: str,
        *,
        mode: int = 0o660,
        owner: str | None = None,
        group: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> ControlServer:
        """Listen at ``path``. A missing directory is made (0755), the one level and no more.

        Raises `AlreadyRunning` if a master answers there, `ListenError` if the path cannot be used.
        """
        with contextlib.suppress(OSError):  # it exists; or bind says what is wrong with it
            os.mkdir(os.path.dirname(path), 0o755)
        try:
            sock, file = unixsocket.bind(path, mode=mode, owner=owner, group=group, backlog=MAX_CLIENTS)
        except unixsocket.SocketInUse as error:
            raise AlreadyRunning(
                f"already running: a process answers at the control socket {path}; "
                "stop it with `preforkd stop`, or give this instance a control: of its own"
            ) from error
        except ListenError as error:
            raise ListenError(f"the control socket: {error}") from error
        return cls(path, sock, file, clock)

    @classmethod
    def adopt(cls, path: str, fd: int, *, clock: Callable[[], float] = time.monotonic) -> ControlServer:
        """Go on with a listening descriptor that came through an execve in place."""
        sock = socket.socket(fileno=fd)
        sock.setblocking(False)
        sock.set_inheritable(False)
        return cls(path, sock, unixsocket.identify(sock), clock)

    def filenos(self) -> list[int]:
        """All descriptors that are open, whether polled or not: what a forked child closes."""
        return [self._sock.fileno(), *self._clients]

    def fileno(self) -> int:
        """The listening descriptor, for an execve in place."""
        return self._sock.fileno()

    def intact(self) -> bool:
        """Whether newcomers still find us: False once somebody removed or replaced the socket's file."""
        return unixsocket.is_at(self.path, self._file)

    def descriptors(self) -> dict[int, int]:
        """What to poll, and for which events (POLLIN, POLLOUT of `select`)."""
        wanted = {
            fd: (0 if client.last_words else select.POLLIN) | (select.POLLOUT if client.out else 0)
            for fd, client in self._clients.items()
        }
        if self._paused_until is None:
            wanted[self._sock.fileno()] = select.POLLIN
        return wanted

    def wake_at(self) -> float | None:
        """When `expire` has something to do, on the clock given; None if it has not."""
        times = [client.deadline for client in self._clients.values() if client.deadline is not None]
        if self._paused_until is not None:
            times.append(self._paused_until)
        return min(times, default=None)

    def expire(self) -> None:
        """Let go of clients that took too long, and accept again after a shortage of descriptors."""
        now = self._clock()
        if self._paused_until is not None and now >= self._paused_until:
            self._paused_until = None
        for client in [*self._clients.values()]:
            if client.deadline is not None and now >= client.deadline:
                self._drop(client)

    def ready(self, fd: int, events: int) -> list[Request]:
        """Deal with a descriptor that poll reported, and return the requests that are complete now.

        Never blocks, never raises. Descriptors that are not ours (any more) are ignored: an earlier one of the same
        turn may have closed them.
        """
        if fd == self._sock.fileno():
            self._accept()
            return []
        client = self._clients.get(fd)
        if client is None:
            return []
        requests: list[Request] = []
        if events & select.POLLIN and not client.last_words:
            requests = self._read(client)
        if events & select.POLLOUT and fd in self._clients:
            self._write(client)
        # Both directions are closed: nobody is there to read an answer.
        if events & (select.POLLHUP | select.POLLERR | select.POLLNVAL) and self._clients.get(fd) is client:
            self._drop(client)
        return requests

    def waits(self, request: int) -> bool:
        """Whether whoever sent the request is still there to hear its answer."""
        return request in self._working

    def progress(self, request: int, result: Mapping[str, Any]) -> bool:
        """Tell the client how far its request has come; False if it is gone, or does not read what it is told."""
        client = self._working.get(request)
        if client is None or len(client.out) > ENOUGH_PROGRESS:
            return False
        return self._say(client, Answer(client.number, final=False, result=result))

    def answer(self, request: int, result: Mapping[str, Any], *, final: bool = True) -> bool:
        """Answer a request; False if the client is gone. After the final answer the request's id means nothing."""
        if not final:
            return self.progress(request, result)
        return self._finish(request, result, None, 0)

    def refuse(
        self, request: int, error: str, *, exit_code: int = ExitCode.FAILURE, result: Mapping[str, Any] | None = None
    ) -> bool:
        """Answer that the request failed, with a sentence and the exit code for the command that sent it."""
        return self._finish(request, result or {}, error, int(exit_code))

    def withdraw(self) -> None:
        """Take no more calls, and remove the socket's file if it still is ours; who has called still gets answers."""
        if self._file is not None:
            unixsocket.remove(self.path, self._file)
            self._file = None
        self._sock.close()

    def close(self, *, unlink: bool = True) -> None:
        """Close everything; the socket's file goes if it still is ours. In forked children: ``unlink=False``.

        What was answered already but not taken by the kernel yet is lost; see `flush`.
        """
        if unlink and self._file is not None:
            unixsocket.remove(self.path, self._file)
        for client in [*self._clients.values()]:
            self._drop(client)
        self._sock.close()

    def flush(self, timeout: float) -> None:
        """Wait up to ``timeout`` seconds until clients took what was answered. For the very end only."""
        end = time.monotonic() + timeout
        while pending := [client for client in self._clients.values() if client.out]:
            left = end - time.monotonic()
            if left <= 0:
                return
            waiting = select.poll()
            for client in pending:
                waiting.register(client.sock, select.POLLOUT)
            for fd, _ in waiting.poll(left * 1000):
                if fd in self._clients:
                    self._write(self._clients[fd])

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._sock.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    self._paused_until = self._clock() + SHORTAGE_PAUSE
                    return
                if error.errno == errno.ECONNABORTED:
                    continue
                return
            sock.setblocking(False)
            try:
                credentials = Credentials(
                    *_UCRED.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _UCRED.size))
                )
            except OSError:
                sock.close()
                continue
            client = _Client(sock, credentials, self._clock() + DEADLINE)
            if len(self._clients) >= MAX_CLIENTS and not self._make_room():
                busy = Answer(
                    0, True, error=f"{MAX_CLIENTS} commands are being worked on; try again later", exit_code=1
                )
                with contextlib.suppress(OSError):
                    sock.send(encode_answer(busy), socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                sock.close()
                continue
            self._clients[sock.fileno()] = client

    def _make_room(self) -> bool:
        """Drop the client that has been silent longest, so that silent ones cannot keep an operator out."""
        idle = [client for client in self._clients.values() if client.request is None and not client.out]
        if not idle:
            return False
        self._drop(min(idle, key=lambda client: client.deadline or 0.0))
        return True

    def _read(self, client: _Client) -> list[Request]:
        try:
            data = client.sock.recv(MAX_REQUEST)
        except BlockingIOError:
            return []
        except OSError:
            self._drop(client)
            return []
        if not data:
            # It may have closed only its sending half (`echo ... | socat`) and wait for the answer.
            client.last_words = True
            if client.request is None and not client.out:
                self._drop(client)
            return []
        requests: list[Request] = []
        try:
            for line in client.lines.feed(data):
                if client.request is not None:
                    raise ProtocolError("one request at a time: wait for the final answer")
                command = decode_command(line)
                self._last_request += 1
                client.request, client.number = self._last_request, command.id
                client.deadline = None
                self._working[self._last_request] = client
                requests.append(Request(self._last_request, command.command, command.args, client.credentials))
        except ProtocolError as error:
            client.last_words = True
            self._forget(client)
            self._say(client, Answer(client.number, True, error=str(error), exit_code=int(ExitCode.USAGE)))
        return requests

    def _finish(self, request: int, result: Mapping[str, Any], error: str | None, exit_code: int) -> bool:
        client = self._working.get(request)
        if client is None:
            return False
        self._forget(client)
        return self._say(client, Answer(client.number, True, result, error, exit_code))

    def _forget(self, client: _Client) -> None:
        if client.request is not None:
            self._working.pop(client.request, None)
            client.request = None
        client.deadline = self._clock() + DEADLINE

    def _say(self, client: _Client, answer: Answer) -> bool:
        try:
            line = encode_answer(answer)
        except ProtocolError as error:
            line = encode_answer(Answer(answer.id, answer.final, error=f"the answer: {error}", exit_code=1))
        if len(client.out) + len(line) > MAX_ANSWER + ENOUGH_PROGRESS:
            self._drop(client)
            return False
        client.out += line
        return self._write(client)

    def _write(self, client: _Client) -> bool:
        """Send what the kernel takes; False if the client is gone."""
        try:
            while client.out:
                sent = client.sock.send(client.out[:MAX_REQUEST], socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
                del client.out[:sent]
                # It reads, so it gets as long again for the rest.
                if client.request is None:
                    client.deadline = self._clock() + DEADLINE
        except BlockingIOError:
            return True
        except OSError:
            self._drop(client)
            return False
        if client.last_words and client.request is None:
            self._drop(client)
        return True

    def _drop(self, client: _Client) -> None:
        self._clients.pop(client.sock.fileno(), None)
        if client.request is not None:
            self._working.pop(client.request, None)
        client.sock.close()
