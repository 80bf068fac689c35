"""One request and its answer: what a model hands to an HTTP handler.

The exchange knows the rules of HTTP/1.1 and does no I/O of its own; it moves bytes through a `Transport`, which the
model provides (a blocking descriptor in `process` and `thread`). It holds every rule that concerns both directions at
once: 100-continue, an answer before the request's end, when a connection can carry another request.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol

from preforkd.http.errors import BodyError, ClientGone
from preforkd.http.events import Data, End, Refusal, Request
from preforkd.http.parser import RequestParser
from preforkd.http.response import CheckedHead, Framing, early_hints, plain_page, serialize


class Transport(Protocol):
    """The connection as the exchange sees it: blocking calls with deadlines of their own."""

    def receive(self) -> bytes:
        """The next bytes from the client, empty at its end. Raises TimeoutError past ``timeouts.body``, or OSError."""
        ...

    def send(self, pieces: Sequence[bytes], last: bool = False) -> None:
        """Sends all of it. Raises TimeoutError when the client does not read for ``timeouts.send``, or OSError.

        ``last``: nothing comes behind it in this answer. So the transport may keep a rest that the client does not take
        at once, and go on sending after it has returned.
        """
        ...

    def send_file(self, descriptor: int, offset: int, count: int, head: bytes = b"", last: bool = False) -> int:
        """Sends ``head``, and ``count`` bytes of a regular file from ``offset``; returns how many there were, or that
        it has kept what it could not send at once. Raises like `send`."""
        ...


#: So much of a body that nobody has read is taken and thrown away for the sake of the connection, in bytes: about what
#: a new connection would cost in time on a common line. What is longer ends the connection.
_WORTH_DRAINING: Final = 64 * 1024


class StoredBody(Protocol):
    """What a model has received of a request's body before it calls the handler; read once, from the beginning.

    ``size`` is its length in bytes, ``complete`` says that nothing comes behind it.
    """

    size: int
    complete: bool

    def take(self) -> bytes:
        """The next piece, empty at its end. Raises OSError where it cannot be read back."""
        ...


@dataclass(slots=True)
class Peer:
    """Who talks to whom on a connection; ``client`` is empty and ``client_port`` 0 on a unix socket.

    ``secure``: the client came over TLS, to us or to a proxy that says so. ``tls`` is what the handshake with us
    settled, in the words of Apache's mod_ssl (``SSL_PROTOCOL``); None where there was none. Behind a proxy that is
    believed these are the client's own addresses, and ``client_port`` is 0 if the proxy does not tell it.
    """

    client: str
    client_port: int
    server: str
    server_port: int
    secure: bool = False
    tls: Mapping[str, str] | None = None


def _never() -> bool:
    return False


class Exchange:
    """A request being answered. Handlers use `read_block`, `start`, `write`, `send_file` and `finish`, in this order.

    Not thread-safe; used by the one thread that serves the request.
    """

    # What most requests never change is a default of the class: an exchange is made for each, and a store takes longer
    # than the look that finds nothing.

    #: Bytes of content received and sent, without framing.
    received = 0
    sent = 0
    #: The answer's head, once `start` accepted it.
    head: CheckedHead | None = None
    #: Who the application says the client is (REMOTE_USER), for the access log.
    user: str | None = None
    #: What was wrong with the answer's body, a sentence for the log; empty if nothing was.
    complaint = ""
    #: After the answer: the connection can carry another request; behind what is still to come of this one's body, if
    #: `body_ended` is false.
    keep_alive = False
    #: The head is on its way; nothing else can be answered any more.
    committed = False
    #: Nothing that is written will be sent, because the method or the status has no body; known once it is committed.
    bodiless = False
    finished = False
    #: The answer is cut short; the connection must end in a way that the client notices.
    aborted = False
    #: The client did not take its answer in time; what the kernel still holds for it is not worth keeping.
    stalled = False
    #: The request is received to its last byte.
    body_ended = False
    _framing: Framing | None = None
    _left = 0
    _broken: BodyError | None = None
    #: What had arrived of the body when the answer began.
    _kept: list[bytes] | None = None

    def __init__(
        self,
        request: Request,
        parser: RequestParser,
        transport: Transport,
        peer: Peer,
        leaving: Callable[[], bool] = _never,
        stored: StoredBody | None = None,
    ) -> None:
        """``leaving`` is asked when the head is sent: if true, the connection ends after this answer (unless another
        request has already arrived behind this one: that one is answered too). ``stored`` is the beginning of the
        body, or all of it; what follows comes out of the parser."""
        self.request = request
        self.peer = peer
        self._leaving = leaving
        self._parser = parser
        self._transport = transport
        self._continue = request.expects_continue
        self._stored = stored
        if request.length == 0:
            parser.next_event()
            self.body_ended = True
        elif stored is not None:
            self.received = stored.size
            self.body_ended = stored.complete

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
        if self._stored is not None:
            block = self._stored.take()
            if block:
                return block
            self._stored = None
        if self._kept:
            return self._kept.pop(0)
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
        self.keep_alive = False
        raise error

    def _look_for_end(self) -> None:
        """Takes what has already arrived: most small bodies have, and then the connection can be kept.

        The application may read it all the same, behind the beginning of its answer.
        """
        while not self.body_ended and self._broken is None:
            event = self._parser.next_event()
            if type(event) is Data:
                self.received += len(event.data)
                if self._kept is None:
                    self._kept = []
                self._kept.append(event.data)
            elif type(event) is End:
                self.body_ended = True
            elif type(event) is Refusal:
                self._broken = BodyError(event.status, event.reason)
            else:
                return

    def _rest_is_small(self) -> bool:
        """What is still to come of the body is announced and little: the model may drain it.

        Not while 100 Continue is owed: the client may send the body or leave it out, and what comes next could be
        either (RFC 9110, 10.1.1).
        """
        left = self._parser.body_left
        return left is not None and left <= _WORTH_DRAINING and not self._continue and self._broken is None

    def skip_body(self, arrived: Callable[[], bytes | None], most: int) -> None:
        """Takes what has arrived of a body that nobody will read, without waiting, so that the connection can be kept.

        A body that is not complete then is left, and the connection ends after the answer; so it does where the client
        waits for a 100 (Continue) and may never send it (RFC 9110, 10.1.1).

        Args:
            arrived: Reads without waiting: None if nothing is there, empty at the client's end; may raise OSError.
            most: When to give up, bytes.
        """
        self._look_for_end()
        while not self.body_ended and self._broken is None and not self._continue and self.received < most:
            try:
                data = arrived()
            except OSError:
                return
            if not data:
                return
            self._parser.feed(data)
            self._look_for_end()

    # -- the answer ---------------------------------------------------------------------------------------------------

    def start(self, status: Any, headers: Iterable[Any]) -> None:
        """Sets status and header of the answer; nothing is sent before the body's first byte, or `finish`.

        They are checked here: an application may have passed anything. May be called again as long as nothing is sent:
        the last one counts.

        Raises:
            BadResponse: They cannot be sent.
        """
        assert not self.committed
        self.head = CheckedHead(status, headers)

    def _commit(self, total: int | None) -> bytes:
        """Decides how the answer is framed and returns its head's bytes. ``total``: the body's length, if known."""
        head = self.head
        assert head is not None and not self.committed
        request = self.request
        length = head.length if head.length is not None else total
        if request.method == "HEAD" or head.bodiless:
            self.bodiless = True
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
        keep = request.keep_alive and self._framing is not Framing.CLOSE and (self.body_ended or self._rest_is_small())
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
        size = len(block)
        if not size:
            return
        pieces = [] if self.committed else [self._commit(total)]
        framing = self._framing
        last = True
        if framing is Framing.LENGTH:
            left = self._left
            if size > left:
                self.complaint = f"the body is longer than its Content-Length of {self.sent + left}: cut there"
                block = block[:left]
                size = left
            self._left = left - size
            last = left == size
            if size:
                pieces.append(block)
                self.sent += size
        elif framing is Framing.CHUNKED:
            pieces += (b"%x\r\n" % size, block, b"\r\n")
            self.sent += size
            last = False
        elif framing is Framing.CLOSE:
            pieces.append(block)
            self.sent += size
            last = False
        if pieces:
            try:
                self._transport.send(pieces, last)
            except OSError as error:
                raise self._gone(error) from error

    def send_file(self, descriptor: int, offset: int, count: int) -> None:
        """Sends ``count`` bytes of a regular file, as many as the declared length allows, without copying them.

        Raises:
            ClientGone: They cannot be sent.
        """
        head = b"" if self.committed else self._commit(count)
        if self._framing is None:
            if head:
                self._send((head,), last=True)
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
        self._file(descriptor, offset, count, head, last=self._framing is Framing.LENGTH and count == self._left)

    def _file(self, descriptor: int, offset: int, count: int, head: bytes = b"", last: bool = False) -> None:
        try:
            sent = self._transport.send_file(descriptor, offset, count, head, last)
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
            self._send((self._commit(0),), last=True)
        if self._framing is Framing.CHUNKED:
            self._send((b"0\r\n\r\n",), last=True)
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

    def early_hints(self, headers: Iterable[Any]) -> None:
        """Sends an interim response 103 with these fields at once (RFC 8297); any number of times before the answer.

        Does nothing once the answer has begun, and for HTTP/1.0, which knows no interim responses (RFC 9110, 15.2).

        Raises:
            BadResponse: They cannot be sent.
            ClientGone: The client is gone.
        """
        data = early_hints(headers)
        if data and self.request.http11 and not self.committed:
            self._send((data,))

    def answer_plainly(self, status: int, reason: str, headers: Iterable[tuple[str, str]] = ()) -> None:
        """Answers with a plain page instead of the application; aborts if an answer is already on its way.

        ``headers`` are fields beside those that describe the page.

        Raises:
            ClientGone: It cannot be sent.
        """
        if self.committed:
            self.abort()
            return
        self.head, body = plain_page(status, reason, headers)
        self.write(body)
        self.finish()

    def _send(self, pieces: Sequence[bytes], last: bool = False) -> None:
        try:
            self._transport.send(pieces, last)
        except OSError as error:
            raise self._gone(error) from error

    def lose(self, error: OSError, unsent: int) -> ClientGone:
        """The transport could not send the last ``unsent`` bytes of what it has kept: the answer is not finished."""
        self._take_back(unsent)
        return self._gone(error)

    def fall_short(self, missing: int) -> None:
        """The file has become shorter by so many bytes while the transport was sending what it has kept of it."""
        self._take_back(missing)
        self._left = missing
        self.finish()

    def _take_back(self, count: int) -> None:
        self.finished = False
        if self._framing is Framing.LENGTH:  # else it was framing
            self.sent = max(0, self.sent - count)

    def _gone(self, error: OSError) -> ClientGone:
        self.abort()
        if isinstance(error, TimeoutError):
            self.stalled = True
            return ClientGone("the client does not read its answer")
        return ClientGone(error.errno, f"the client left before the end of its answer: {error.strerror}")


@dataclass(slots=True)
class AccessRecord:
    """One line of the access log: what was asked, and what became of it.

    Attributes:
        time: Unix seconds when the request's head was complete.
        duration: Seconds from then until the last byte of the answer was handed to the kernel.
        client: The client's address, empty on a unix socket.
        method, target, protocol: As sent; empty where the request was not understood that far.
        status: Of the answer; 0 if there was none.
        sent, received: Bytes of content, without heads and framing.
        headers, shared: The request's header fields as sent, and what is kept for all requests with these (`Request`).
        head: The answer's, None if there was none.
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
    shared: dict[str, object]
    head: CheckedHead | None
    user: str | None
    pool: str
    worker: str
    pid: int

    @property
    def response_headers(self) -> list[tuple[str, str]]:
        """The application's header fields."""
        return self.head.headers if self.head is not None else []
