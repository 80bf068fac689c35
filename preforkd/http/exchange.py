"""One request and its answer: what a model hands to an HTTP handler.

The exchange knows the rules of HTTP/1.1 and does no I/O of its own; it moves bytes through a `Transport`, which the
model provides (a blocking descriptor in `process` and `thread`). It holds every rule that concerns both directions at
once: 100-continue, an answer before the request's end, when a connection can carry another request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from preforkd.http.events import Data, End, Refusal, Request
from preforkd.http.parser import RequestParser
from preforkd.http.response import CheckedHead, Framing, plain_page, serialize


class Transport(Protocol):
    """The connection as the exchange sees it: blocking calls with deadlines of their own."""

    def receive(self) -> bytes:
        """The next bytes from the client, empty at its end. Raises TimeoutError past ``timeouts.body``, or OSError."""
        ...

    def send(self, pieces: Sequence[bytes]) -> None:
        """Sends all of it. Raises TimeoutError when the client does not read for ``timeouts.send``, or OSError."""
        ...

    def send_file(self, descriptor: int, offset: int, count: int) -> int:
        """Sends ``count`` bytes of a regular file from ``offset``; returns how many there were. Raises like `send`."""
        ...


class BodyError(OSError):
    """The request's body cannot be read: the client went silent (408), left, or sent what is not understood (400, 413).

    An application may catch it like any failed read. ``status`` is the answer that the client gets if it does not.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class ClientGone(ConnectionError):
    """The answer cannot be sent: the client closed the connection, or does not read any more."""


@dataclass(slots=True)
class Peer:
    """Who talks to whom on a connection; ``client`` is empty and ``client_port`` 0 on a unix socket.

    ``tls`` is what the handshake settled, in the words of Apache's mod_ssl (``SSL_PROTOCOL``); None without TLS.
    """

    client: str
    client_port: int
    server: str
    server_port: int
    tls: Mapping[str, str] | None = None


def _never() -> bool:
    return False


class Exchange:
    """A request being answered. Handlers use `read_block`, `start`, `write`, `send_file` and `finish`, in this order.

    Not thread-safe; used by the one thread that serves the request.
    """

    __slots__ = (
        "_broken",
        "_continue",
        "_framing",
        "_leaving",
        "_left",
        "_parser",
        "_transport",
        "aborted",
        "body_ended",
        "committed",
        "complaint",
        "finished",
        "head",
        "keep_alive",
        "peer",
        "received",
        "request",
        "sent",
        "user",
    )

    def __init__(
        self,
        request: Request,
        parser: RequestParser,
        transport: Transport,
        peer: Peer,
        leaving: Callable[[], bool] = _never,
    ) -> None:
        """``leaving`` is asked when the head is sent: if true, the connection ends after this answer (unless another
        request has already arrived behind this one: that one is answered too)."""
        self.request = request
        self.peer = peer
        #: Bytes of content received and sent, without framing.
        self.received = 0
        self.sent = 0
        #: The answer's head, once `start` accepted it.
        self.head: CheckedHead | None = None
        #: Who the application says the client is (REMOTE_USER), for the access log.
        self.user: str | None = None
        #: What was wrong with the answer's body, a sentence for the log; empty if nothing was.
        self.complaint = ""
        #: After the answer: the connection can carry another request.
        self.keep_alive = False
        #: The head is on its way; nothing else can be answered any more.
        self.committed = False
        self.finished = False
        #: The answer is cut short; the connection must end in a way that the client notices.
        self.aborted = False
        #: The request is received to its last byte.
        self.body_ended = False
        self._leaving = leaving
        self._parser = parser
        self._transport = transport
        self._framing = Framing.NONE
        self._left = 0
        self._continue = request.expects_continue
        self._broken: BodyError | None = None

    @property
    def status(self) -> int:
        """The status code of the answer, 0 before there is one."""
        return self.head.code if self.head is not None else 0

    @property
    def ends_cleanly(self) -> bool:
        """True if the client has sent nothing that is still unread, so that closing cannot take the answer away."""
        return self.body_ended and not self._parser.unread

    @property
    def close_delimited(self) -> bool:
        """True if only the end of the connection tells the client where the body ends."""
        return self._framing is Framing.CLOSE

    # -- the request's body -------------------------------------------------------------------------------------------

    def read_block(self) -> bytes:
        """The next piece of the request's body, as it arrives; empty at its end, then and ever after.

        Raises:
            BodyError: It cannot be read; the same one again when asked again.
        """
        if self._broken is not None:
            raise self._broken
        while not self.body_ended:
            event = self._parser.next_event()
            if type(event) is Data:
                self.received += len(event.data)
                return event.data
            if type(event) is End:
                self.body_ended = True
            elif type(event) is Refusal:
                self._fail(BodyError(event.status, event.reason))
            else:
                self._receive()
        return b""

    def _receive(self) -> None:
        try:
            if self._continue:
                # Answered at the first read and not before: the application may refuse the body unseen (RFC 9110,
                # 10.1.1). After the answer has begun, an interim response would be part of it.
                self._continue = False
                if not self.committed:
                    self._transport.send((b"HTTP/1.1 100 Continue\r\n\r\n",))
            data = self._transport.receive()
        except TimeoutError:
            self._fail(BodyError(408, "the request's body did not arrive in time"))
        except OSError as error:
            self._fail(BodyError(400, f"the client left before the end of its request: {error.strerror}"))
        else:
            if not data:
                self._fail(BodyError(400, "the client left before the end of its request"))
            self._parser.feed(data)

    def _fail(self, error: BodyError) -> None:
        self._broken = error
        raise error

    def _look_for_end(self) -> None:
        """Takes what has already arrived: most small bodies have, and then the connection can be kept."""
        while not self.body_ended and self._broken is None:
            event = self._parser.next_event()
            if type(event) is Data:
                self.received += len(event.data)
            elif type(event) is End:
                self.body_ended = True
            elif type(event) is Refusal:
                self._broken = BodyError(event.status, event.reason)
            else:
                return

    # -- the answer ---------------------------------------------------------------------------------------------------

    def start(self, status: str, headers: Iterable[tuple[str, str]]) -> None:
        """Sets status and header of the answer; nothing is sent before the body's first byte, or `finish`.

        May be called again as long as nothing is sent: the last one counts.

        Raises:
            BadResponse: They cannot be sent.
        """
        assert not self.committed
        self.head = CheckedHead(status, headers)

    @property
    def bodiless(self) -> bool:
        """True if nothing that is written will be sent: the method or the status has no body."""
        return self.request.method == "HEAD" or (self.head is not None and self.head.bodiless)

    def _commit(self, total: int | None) -> bytes:
        """Decides how the answer is framed and returns its head's bytes. ``total``: the body's length, if known."""
        head = self.head
        assert head is not None and not self.committed
        request = self.request
        length = head.length if head.length is not None else total
        if self.bodiless:
            self._framing = Framing.NONE
            if head.length is None and not (total and not head.bodiless):
                # What a GET would have had is not known here.
                length = None
        elif length is not None:
            self._framing = Framing.LENGTH
            self._left = length
        else:
            self._framing = Framing.CHUNKED if request.http11 else Framing.CLOSE
        # An answer before the end of the request: what is left of the body would be read as the next request's head.
        if not self.body_ended:
            self._look_for_end()
        keep = request.keep_alive and self.body_ended and self._framing is not Framing.CLOSE
        if keep and self._leaving():
            keep = bool(self._parser.unread)
        self.keep_alive = keep
        self.committed = True
        if keep:
            connection = None if request.http11 else "keep-alive"
        else:
            connection = "close"
        return serialize(head, self._framing, length, connection)

    def write(self, block: bytes, total: int | None = None) -> None:
        """Sends one block of the body at once, after the head if it is the first one. An empty block does nothing.

        Args:
            block: The bytes.
            total: The length of the whole body, where the handler knows it and the application has not declared it.

        Raises:
            ClientGone: It cannot be sent.
        """
        if not block:
            return
        pieces = [] if self.committed else [self._commit(total)]
        if self._framing is Framing.CHUNKED:
            pieces += (b"%x\r\n" % len(block), block, b"\r\n")
            self.sent += len(block)
        elif self._framing is Framing.CLOSE:
            pieces.append(block)
            self.sent += len(block)
        elif self._framing is Framing.LENGTH:
            if len(block) > self._left:
                self.complaint = f"the body is longer than its Content-Length of {self.sent + self._left}: cut there"
                block = block[: self._left]
            self._left -= len(block)
            if block:
                pieces.append(block)
                self.sent += len(block)
        if pieces:
            self._send(pieces)

    def send_file(self, descriptor: int, offset: int, count: int) -> None:
        """Sends ``count`` bytes of a regular file, as many as the declared length allows, without copying them.

        Raises:
            ClientGone: They cannot be sent.
        """
        if not self.committed:
            self._send([self._commit(count)])
        if self._framing is Framing.NONE:
            return
        if self._framing is Framing.CHUNKED:
            # Only after write() without a length: one chunk.
            if count:
                self._send([b"%x\r\n" % count])
                self._file(descriptor, offset, count)
                self._send([b"\r\n"])
            return
        if self._framing is Framing.LENGTH and count > self._left:
            self.complaint = f"the file is longer than the Content-Length of {self.sent + self._left}: cut there"
            count = self._left
        self._file(descriptor, offset, count)

    def _file(self, descriptor: int, offset: int, count: int) -> None:
        try:
            sent = self._transport.send_file(descriptor, offset, count)
        except OSError as error:
            raise self._gone(error) from error
        self.sent += sent
        if self._framing is Framing.LENGTH:
            self._left -= sent
        if sent < count and self._framing is Framing.CHUNKED:
            self.complaint = "the file became shorter while it was sent"
            self.abort()

    def finish(self) -> None:
        """Ends the answer: sends what is still missing of its framing, or aborts an answer that is too short.

        Raises:
            ClientGone: It cannot be sent.
        """
        if self.finished or self.aborted:
            return
        if not self.committed:
            self._send([self._commit(0)])
        if self._framing is Framing.CHUNKED:
            self._send([b"0\r\n\r\n"])
        elif self._framing is Framing.LENGTH and self._left:
            self.complaint = (
                f"the body is {self._left} bytes shorter than its Content-Length of {self.sent + self._left}: "
                "the connection is aborted"
            )
            self.abort()
            return
        self.finished = True

    def abort(self) -> None:
        """Gives an unfinished answer up; the model closes the connection so that the client notices."""
        if self.finished:
            return
        self.aborted = True
        self.keep_alive = False

    def answer_plainly(self, status: int, reason: str) -> None:
        """Answers with a plain page instead of the application; aborts if an answer is already on its way.

        Raises:
            ClientGone: It cannot be sent.
        """
        if self.committed:
            self.abort()
            return
        self.head, body = plain_page(status, reason)
        self.write(body)
        self.finish()

    def _send(self, pieces: Sequence[bytes]) -> None:
        try:
            self._transport.send(pieces)
        except OSError as error:
            raise self._gone(error) from error

    def _gone(self, error: OSError) -> ClientGone:
        self.abort()
        if isinstance(error, TimeoutError):
            return ClientGone("the client does not read its answer")
        return ClientGone(error.errno, f"the client left before the end of its answer: {error.strerror}")


@dataclass(slots=True)
class AccessRecord:
    """One line of the access log: what was asked, and what became of it.

    Attributes:
        time: Unix seconds when the request's head was complete.
        duration: Seconds from then until the answer was handed to the kernel.
        client: The client's address, empty on a unix socket.
        method, target, protocol: As sent; empty where the request was not understood that far.
        status: Of the answer; 0 if there was none.
        sent, received: Bytes of content, without heads and framing.
        headers: The request's header fields as sent.
        response_headers: The application's header fields.
        user: REMOTE_USER, if the application set it.
        pool, worker, pid: Who answered; ``worker`` is like ``web/3``.
    """

    time: float
    duration: float
    client: str
    method: str
    target: str
    protocol: str
    status: int
    sent: int
    received: int
    headers: list[tuple[bytes, bytes]]
    response_headers: list[tuple[str, str]]
    user: str | None
    pool: str
    worker: str
    pid: int
