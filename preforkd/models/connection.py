"""A client's connection as a bare descriptor, and the blocking calls on it that wait no longer than `pace` allows.

The descriptor is non-blocking from its accept on; waiting is poll(2) on this one descriptor. There is no socket object:
making one costs a system call and as much time as the parsing of a request.
"""

from __future__ import annotations

import fcntl
import math
import os
import select
import socket
import struct
import termios
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from preforkd.http import Peer, Request, RequestParser
from preforkd.models.outbox import Outbox
from preforkd.models.pace import Pace
from preforkd.models.preamble import Preamble

if TYPE_CHECKING:
    from preforkd.models.upload import Upload

#: Room for the head of a request and a small body. Larger bodies are read in larger pieces, later.
_HEAD_READ: Final = 16 * 1024
_BODY_READ: Final = 64 * 1024
#: Below this, copying pieces together is cheaper than describing them to the kernel one by one.
_JOIN: Final = 16 * 1024
#: What one sendfile(2) may move; the kernel's own limit is a little below 2 GiB.
_SENDFILE: Final = 1 << 30

_INT: Final = struct.Struct("i")

#: Closing with this answers with a reset instead of an orderly end.
_RESET: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class Terms:
    """What holds for all connections of a worker.

    Attributes:
        body_timeout, send_timeout, rate: ``timeouts.body`` and ``send``, seconds; ``limits.rate``, bytes a second. 0 is
            no limit.
        room: So many bytes of an answer may be kept in the outbox; 0: nothing is, neither bytes nor files.
        kept: Called when something is.
    """

    body_timeout: float
    send_timeout: float
    rate: int = 0
    room: int = 0
    kept: Callable[[], None] | None = None

    def sending(self) -> Pace:
        """The pace of an answer that begins now."""
        return Pace(self.send_timeout, self.rate)


class Connection:
    """One client. As an `http.Transport` it blocks, at the paces of ``timeouts.body``, ``send`` and ``limits.rate``.

    The rest belongs to the model's loop: ``fresh``: no request has been answered on it yet; ``served``: when the last
    one was that the application answered (monotonic seconds); ``registered``: what the poll set waits for, 0 if it is
    not in there; ``queued``: it is among those to be looked at next; ``closed``; ``preamble``: its PROXY header, until
    that is complete; ``upload``: what it is parked with while a body arrives; ``outbox``: what is left of an answer,
    for `push` to send, before anything else happens on the connection.
    """

    #: Whether another process can go on with it.
    movable = True

    __slots__ = (
        "_receiving",
        "_sending",
        "_terms",
        "closed",
        "fd",
        "fresh",
        "outbox",
        "parser",
        "peer",
        "preamble",
        "queued",
        "registered",
        "served",
        "upload",
    )

    def __init__(self, fd: int, peer: Peer, parser: RequestParser, terms: Terms) -> None:
        self.fd = fd
        self.peer = peer
        self.parser = parser
        self.fresh = True
        self.served = -math.inf
        self.registered = 0
        self.queued = False
        self.closed = False
        self.upload: Upload | None = None
        self.outbox: Outbox | None = None
        self.preamble: Preamble | None = None
        self._terms = terms
        self._receiving: Pace | None = None
        self._sending: Pace | None = None

    def begin(self, receiving: Pace | None = None) -> None:
        """A request is about to be served; ``receiving`` is the pace at which its body has come so far."""
        self._receiving = receiving
        self._sending = None

    def body_pace(self) -> Pace:
        """The pace of a body that begins now."""
        return Pace(self._terms.body_timeout, self._terms.rate)

    @property
    def files(self) -> list[int]:
        """The descriptors of what is kept of its request's body, or of its answer."""
        kept = (self.upload, self.outbox)
        return [one.descriptor for one in kept if one is not None and one.descriptor is not None]

    @property
    def interest(self) -> int:
        """What the poll set shall wait for while the connection is parked (epoll's bits)."""
        return select.EPOLLIN if self.outbox is None else select.EPOLLOUT

    def misdirected(self, request: Request) -> bool:
        """Does the request want something that this connection cannot give: TLS, or another certificate?

        RFC 9110, 7.4: an ``https`` target that came without TLS must be refused.
        """
        target = request.target
        return target[0] != "/" and target[:8].lower() == "https://" and not self.peer.secure

    def read(self) -> bytes | None:
        """What has arrived, without waiting: None if nothing has, empty at the client's end.

        Raises:
            OSError: The connection is broken.
        """
        try:
            return os.read(self.fd, _HEAD_READ)
        except BlockingIOError:
            return None

    def read_body(self) -> bytes | None:
        """As `read`, in the larger pieces of a body."""
        try:
            return os.read(self.fd, _BODY_READ)
        except BlockingIOError:
            return None

    def receive(self) -> bytes:
        """The next bytes of a body, waiting for them; see `preforkd.http.Transport.receive`."""
        pace = self._receiving
        if pace is None:
            pace = self._receiving = self.body_pace()
        while (data := self.read_body()) is None:
            self._wait(select.POLLIN, pace)
        pace.moved(len(data))
        return data

    def send(self, pieces: Sequence[bytes], last: bool = False) -> None:
        """Sends all, waiting for a slow client as long as its pace allows; see `preforkd.http.Transport.send`.

        Of an answer's last pieces it keeps what the client does not take, as soon as there is room for it.
        """
        if len(pieces) == 1 or sum(map(len, pieces)) <= _JOIN:
            data = b"".join(pieces)
            try:
                sent = os.write(self.fd, data)
            except BlockingIOError:
                sent = 0
            if sent != len(data):
                self._send(memoryview(data)[sent:], last)
        else:
            try:
                sent = os.writev(self.fd, pieces)
            except BlockingIOError:
                sent = 0
            if last and sent < len(pieces[0]):
                # Not even the head, behind other answers: it must not wait either, and then not be without its body.
                pieces = (b"".join(pieces),)
            for piece in pieces:
                if sent >= len(piece):
                    sent -= len(piece)
                else:
                    self._send(memoryview(piece)[sent:], last and piece is pieces[-1])
                    sent = 0

    def _send(self, data: bytes | memoryview, last: bool = False) -> None:
        while True:
            try:
                sent = os.write(self.fd, data)
            except BlockingIOError:
                if last and len(data) <= self._terms.room:
                    self._keep(bytes(data))
                    return
                self._wait_for_reader()
                continue
            if sent == len(data):
                return
            data = memoryview(data)[sent:]

    def send_file(self, descriptor: int, offset: int, count: int, head: bytes = b"", last: bool = False) -> int:
        """Sends a part of a file by sendfile(2); see `preforkd.http.Transport.send_file`."""
        last = last and self._terms.room > 0
        if head:
            try:
                sent = os.write(self.fd, head)
            except BlockingIOError:
                sent = 0
            if sent != len(head):
                if last and self._keep_file(head[sent:], descriptor, offset, count):
                    return count
                self._send(memoryview(head)[sent:])
        done = 0
        while done < count:
            try:
                sent = os.sendfile(self.fd, descriptor, offset + done, min(count - done, _SENDFILE))
            except BlockingIOError:
                if last and self._keep_file(b"", descriptor, offset + done, count - done):
                    return count
                self._wait_for_reader()
                continue
            if not sent:
                break
            done += sent
        return done

    def _keep(self, data: bytes, descriptor: int = -1, offset: int = 0, count: int = 0) -> None:
        pace = self._sending or self._terms.sending()
        self.outbox = Outbox(data, descriptor, offset, count, pace, self._held(), time.monotonic())
        if self._terms.kept is not None:
            self._terms.kept()

    def _keep_file(self, head: bytes, descriptor: int, offset: int, count: int) -> bool:
        try:
            # The application closes its own.
            descriptor = os.dup(descriptor)
        except OSError:
            return False  # a shortage of descriptors
        self._keep(head, descriptor, offset, count)
        return True

    def push(self, now: float) -> bool:
        """Sends what goes of the outbox without waiting; true if nothing is left in there. ``now``: monotonic seconds.

        Raises:
            TimeoutError: The client's time is up.
            OSError: The connection is broken, or the file cannot be read.
        """
        outbox = self.outbox
        assert outbox is not None
        left = outbox.left
        if self._send_on(outbox):
            return True
        outbox.sent(left - outbox.left)
        outbox.progress(self._on_its_way(), now)
        if now >= outbox.deadline:
            raise TimeoutError
        return False

    def _send_on(self, outbox: Outbox) -> bool:
        """True if nothing is left."""
        return outbox.push(self.fd)

    def _on_its_way(self) -> int:
        """Bytes that have left the outbox and that the client has not acknowledged."""
        return self._held()

    def unsent(self) -> int:
        """Bytes of an answer's rest that have not gone to the kernel."""
        return self.outbox.left if self.outbox is not None else 0

    def try_send(self, data: bytes) -> None:
        """Sends what goes without waiting, and does not tell: for refusals, which are owed to nobody."""
        try:
            os.write(self.fd, data)
        except OSError:
            pass

    def _wait_for_reader(self) -> None:
        """Waits until the client has taken some of what the kernel holds for it.

        The kernel reports room only when a third of its buffer is free (tcp(7), unix(7)), which takes a slow reader
        longer than any pause that is worth a limit. So what it takes is measured, in what is left unsent and
        unacknowledged, and is progress even if there is no room yet. What went into the buffer at once says nothing
        about the client, and is not counted.
        """
        pace = self._sending
        if pace is None:
            pace = self._sending = self._terms.sending()
        held = self._held()
        try:
            self._wait(select.POLLOUT, pace)
        except TimeoutError:
            if self._held() >= held:
                raise
        pace.moved(max(0, held - self._held()))

    def _held(self) -> int:
        """Bytes that were sent and that the client has not acknowledged yet (SIOCOUTQ, the same number as TIOCOUTQ)."""
        found: int = _INT.unpack(fcntl.ioctl(self.fd, termios.TIOCOUTQ, bytes(_INT.size)))[0]
        return found

    def _wait(self, what: int, pace: Pace) -> None:
        """Waits for the descriptor, and counts the time. Raises TimeoutError when the client's time is up."""
        patience = pace.patience
        if patience <= 0:
            raise TimeoutError
        poll = select.poll()
        poll.register(self.fd, what)
        began = time.monotonic()
        # Rounded up: poll(2) counts milliseconds, and a wait that ends before its deadline would be taken for one that
        # failed.
        ready = poll.poll(math.ceil(patience * 1000) if patience < math.inf else None)
        pace.waited(time.monotonic() - began)
        if not ready:
            raise TimeoutError

    def end_output(self) -> None:
        """Tells the client that nothing more will come, while its own bytes are still taken."""
        with _Borrowed(self.fd) as borrowed:
            borrowed.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        """Gives the descriptor up, and what was kept for the client."""
        if self.outbox is not None:
            self.outbox.close()
        os.close(self.fd)

    def reset_on_close(self) -> None:
        """Makes the close a reset: where the end of the connection would look like the end of a complete answer."""
        with _Borrowed(self.fd) as borrowed:
            borrowed.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)


class _Borrowed:
    """A socket object for a descriptor that belongs to somebody else, for calls that need one. Errors are not told."""

    def __init__(self, fd: int) -> None:
        self._socket = socket.socket(fileno=fd)

    def __enter__(self) -> socket.socket:
        return self._socket

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: object) -> bool:
        self._socket.detach()
        # The client may be gone already (ENOTCONN), or the socket be of a kind that knows no such option.
        return isinstance(error, OSError)
