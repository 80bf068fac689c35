"""The model ``process``: one process, one request at a time.

    wait -> look at what the worker watches -> serve what is readable, or accept -> end what is overdue

Until its request is complete a client costs a descriptor: it is *parked* in the poll set, with a deadline, while the
head arrives, and a body of bounded size (`upload`). A complete request is served at once, by blocking calls. The
siblings accept meanwhile, and if it takes long they are given the connections that are parked here (`porter`). What the
client does not take at once of a complete answer is sent while it is parked again (`outbox`).

* One epoll set, because listeners are shared by all workers and must wake one of them (EPOLLEXCLUSIVE, which poll(2)
  and `selectors` do not know).
* Eager: after accept we read at once and register only what has to be waited for. A registered connection stays
  registered while it is served; nobody else looks at the set.
* One connection is accepted for each time a listener is reported: who takes more than it can serve takes it from its
  siblings.
* epoll reports a ready descriptor again after all others that are ready, so a batch is fair; a connection whose next
  request is already here (pipelined) waits in `_ready` for the next turn, behind whatever else is ready.
* A descriptor is taken out of the set before it is closed: the open file lives on where the application forked, or in
  the worker it was handed to, and the set would go on reporting it (epoll(7), Q6).
"""

from __future__ import annotations

import errno
import math
import os
import random
import select
import socket
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Final

from preforkd import headroom
from preforkd.errors import ExitCode
from preforkd.http import (
    AccessRecord,
    ClientGone,
    Data,
    End,
    Exchange,
    Memory,
    Peer,
    Refusal,
    Request,
    RequestLimits,
    RequestParser,
    SpeaksPlainly,
    refusal_bytes,
)
from preforkd.http.forwarded import Forwarding, Malformed
from preforkd.models import handover
from preforkd.models.connection import Connection, Terms
from preforkd.models.deadlines import Deadlines
from preforkd.models.outbox import Outbox
from preforkd.models.overload import Gate, retry_after
from preforkd.models.porter import Porter
from preforkd.models.preamble import Preamble, announced
from preforkd.models.seldom import Seldom
from preforkd.models.upload import Spool, Upload, received_first
from preforkd.networks import Networks
from preforkd.proxyprotocol import Unreadable

if TYPE_CHECKING:
    from preforkd.models import ServedHandler, WorkerContext

#: How many ready descriptors are taken from the kernel at once. More saves calls under load; fewer notices sooner that
#: the worker shall leave.
_BATCH: Final = 16
#: How long a client may go on sending after its answer ended the connection (seconds). Closing earlier would make the
#: kernel reset the connection and take the answer back (RFC 9112, 9.6). Apache waits as long for its short kind.
_LINGER: Final = 2.0
#: How long a connection that has not sent anything yet may stay when the service stops: its request may be on its way.
_SILENT_GRACE: Final = 1.0
#: How long accepting pauses when descriptors have run out and none can be freed here.
_PAUSE: Final = 1.0
#: How many pieces of a body (64 KiB each) are read before others have their turn: less than a millisecond, and as much
#: memory as is taken before the disk is.
_EAGER: Final = 16
#: So much of the body of a request that is turned away is read, so that its connection can be kept (bytes). More costs
#: more than a new connection.
_SKIP: Final = 64 * 1024

#: A request that takes so long makes the connections beside it wait (seconds). Far less, and workers that answer in
#: microseconds would keep counting each other's connections.
_SLOW: Final = 0.002
#: After the last request the next one is awaited for so long before the alarm of its time limit is disarmed (seconds).
_RESTLESS: Final = 0.02

#: Makes a connection that is no plain one.
MakeConnection = Callable[[int, Peer, RequestParser], Connection]

_EXCLUSIVE: Final = select.EPOLLIN | select.EPOLLEXCLUSIVE
#: Failures of a connection that was in the queue, not of the listener: accept(2), "Error handling".
_CLIENTS: Final = frozenset(
    (
        errno.ECONNABORTED,
        errno.EPERM,  # by a firewall
        errno.EPROTO,
        errno.ENOPROTOOPT,
        errno.EOPNOTSUPP,
        errno.ETIMEDOUT,
        errno.ENONET,
        errno.ENETDOWN,
        errno.ENETUNREACH,
        errno.EHOSTDOWN,
        errno.EHOSTUNREACH,
    )
)
_SHORTAGE: Final = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))
#: What is said where it has not come to that, because the application would be the next to meet it.
_RESERVED: Final = OSError(errno.EMFILE, "the descriptors that are left are for the application")


class Process:
    """One request at a time; see `preforkd.models.Model`."""

    def serve(self, ctx: WorkerContext, handler: ServedHandler) -> ExitCode:
        """Serves until the worker leaves; main thread only."""
        handler.open(ctx)
        try:
            _Loop(ctx, handler).run()
        finally:
            handler.close()
        return ctx.exit_code()


class _Loop:
    """The poll set, the parked connections, and the turn."""

    def __init__(self, ctx: WorkerContext, handler: ServedHandler) -> None:
        pool = ctx.pool
        self._ctx = ctx
        self._handler = handler
        self._pid = os.getpid()
        self._timeouts = pool.timeouts
        self._body = pool.body
        self._limits = RequestLimits(pool.limits.line, pool.limits.header, pool.limits.fields, pool.limits.body)
        self._memory = Memory()
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._listeners: dict[int, tuple[socket.socket, str, int]] = {}
        #: Listeners whose connections begin with a PROXY header -> who may connect to them.
        self._proxied: dict[int, Networks] = {}
        #: Who the client is behind a trusted proxy; None where none is trusted.
        self._forwarding = Forwarding(pool.trusted_proxies, pool.forwarded) if pool.trusted_proxies else None
        self._proxy_mistakes = Seldom()
        #: What makes the connections of a listener with TLS, by its descriptor and by the text siblings know it by.
        self._tls: dict[int, MakeConnection] = {}
        self._tls_named: dict[str, MakeConnection] = {}
        self._texts: dict[int, str] = {}
        self._handover = ctx.handover
        #: Held in reserve: a message that brings a descriptor loses it for good if there is no room for it.
        self._spare = -1
        self._connections: dict[int, Connection] = {}
        #: Parked: no complete head yet; no complete body; between two requests; answered, and still sending.
        self._heads: Deadlines[Connection] = Deadlines(self._timeouts.header)
        #: Looked at when they expire and not at each piece: a client's deadline only ever moves back.
        self._uploads: Deadlines[Connection] = Deadlines(self._timeouts.body)
        #: Answered, and still reading; looked at like uploads.
        self._readers: Deadlines[Connection] = Deadlines(self._timeouts.send)
        self._idle: Deadlines[Connection] = Deadlines(self._timeouts.keepalive)
        self._lingering: Deadlines[Connection] = Deadlines(_LINGER)
        self._ready: deque[Connection] = deque()
        self._gate = Gate(self._timeouts.queue, ctx.serving_since, self._epoll, ctx.listeners, ctx.taken)
        #: The earliest of all deadlines at the last wait; later ones have been set since.
        self._nearest = math.inf
        #: When the last request ended.
        self._now = -math.inf
        #: When to accept again after a shortage; infinite while accepting.
        self._resume_at = math.inf
        self._shortages = Seldom()
        #: How many descriptors may be in use for connections and their files before somebody who is idle has to go.
        self._room = headroom.connections()
        self._unspooled = Seldom()
        self._left = False
        self._stopped = False
        #: True in a child that the application forked.
        self._disowned = False
        #: The connection whose request is being served.
        self._served: Connection | None = None
        self._porter = Porter(self, ctx.lifeline) if ctx.handover is not None else None
        kept = self._porter.look_again if self._porter is not None else None
        self._terms = Terms(self._timeouts.body, self._timeouts.send, pool.limits.rate, pool.answer.buffer, kept)

    def _disown(self) -> None:
        """In a child that the application forked: nothing of the worker's is its business.

        A child that returns, or that raises SystemExit as one does after a fork, would come back here, answer on the
        client's connection and go on as a second worker. And while it lives, a connection that the worker closes would
        stay open.
        """
        self._disowned = True
        null = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
        owned = [self._epoll.fileno(), *self._connections, *self._listeners]
        if self._handover is not None:
            owned += [end.fileno() for end in self._handover]
        if self._porter is not None:
            owned += self._porter.descriptors()
        for connection in self._connections.values():
            owned += connection.files
        for descriptor in owned:
            os.dup2(null, descriptor, inheritable=False)
        os.close(null)

    # -- the turn -----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Turns until the worker leaves and holds nothing any more."""
        ctx = self._ctx
        os.register_at_fork(after_in_child=self._disown)
        try:
            self._watch()
            self._listen()
            if self._porter is not None:
                self._porter.start()
            while True:
                if ctx.leaving:
                    self._leave()
                    if not self._connections:
                        return
                self._turn()
        finally:
            self._epoll.close()
            for connection in list(self._connections.values()):
                self._drop_upload(connection)
                connection.close()
            if self._spare >= 0:
                os.close(self._spare)

    def _turn(self) -> None:
        events = self._poll()
        get = self._connections.get
        held: list[Connection] = []
        others: list[tuple[int, int]] = []
        for event in events:
            connection = get(event[0])
            if connection is None:
                others.append(event)
            else:
                held.append(connection)
        if others:
            watched = [event for event in others if event[0] in self._watched]
            if watched:
                self._look(watched)
                if self._ctx.leaving and not self._left:
                    return  # what is ready is reported again, and served knowing that we leave
        for _ in range(len(self._ready)):
            connection = self._ready.popleft()
            connection.queued = False
            if not connection.closed:
                self._advance(connection)
        if others and not self._ctx.leaving:
            # First of all: only we were woken for them (EPOLLEXCLUSIVE). The readable ones can be given away.
            for fd, _mask in others:
                if fd in self._listeners:
                    self._accept(fd)
                elif self._handover is not None and fd == self._handover[1].fileno():
                    self._adopt()
        if len(held) == 1:
            self._receive(held[0])
        elif held:
            self._receive_all(held)
        if time.monotonic() >= self._nearest:
            self._expire()

    def _poll(self) -> list[tuple[int, int]]:
        patience = self._patience()
        if self._gate.doubtful:
            return self._gate.poll(patience, _BATCH, self._resume_at == math.inf, time.monotonic)
        return self._epoll.poll(patience, _BATCH)

    def _receive_all(self, held: list[Connection]) -> None:
        """Several connections are readable. Who has to wait behind another is offered to siblings, first of all and
        whenever a while has passed."""
        self._share(held)
        shared_at = self._now
        held.reverse()
        while held:
            connection = held.pop()
            self._ctx.keeps_waiting(len(held))
            if connection.closed:
                continue  # handed over, or a victim of a shortage
            self._receive(connection)
            if held and self._now - shared_at > _SLOW:
                shared_at = self._now
                self._share(held)

    def _patience(self) -> float | None:
        """How long the next wait may take: None, for ever, when nothing is pending."""
        if self._ready:
            self._nearest = -math.inf
            return 0
        nearest = min(
            self._heads.nearest(),
            self._uploads.nearest(),
            self._idle.nearest(),
            self._lingering.nearest(),
            self._readers.nearest(),
            self._resume_at,
        )
        if self._ctx.alarmed and self._now + _RESTLESS < nearest:
            # Disarming costs a system call, and so does arming for the next request, which may be about to come. What
            # else comes is no reason to wait: bytes can trickle for longer than any request may take.
            nearest = self._now + _RESTLESS
        self._nearest = nearest
        return None if nearest == math.inf else max(0.0, nearest - time.monotonic())

    def _look(self, events: list[tuple[int, int]]) -> None:
        """Calls what the context wants called. A descriptor at its end would be reported for ever: it is dropped."""
        for fd, mask in events:
            self._watched[fd]()
            if mask & (select.EPOLLHUP | select.EPOLLERR):
                self._forget(fd)
                del self._watched[fd]
        wanted = self._ctx.watch()
        for fd in [fd for fd in self._watched if fd not in wanted]:
            self._forget(fd)
            del self._watched[fd]

    def _watch(self) -> None:
        self._watched = dict(self._ctx.watch())
        for fd in self._watched:
            self._epoll.register(fd, select.EPOLLIN)

    def _forget(self, fd: int) -> None:
        """Takes a descriptor out of the set that its owner may have closed already."""
        try:
            self._epoll.unregister(fd)
        except OSError as error:
            if error.errno not in (errno.EBADF, errno.ENOENT):
                raise

    def _expire(self) -> None:
        now = time.monotonic()
        if now >= self._now + _RESTLESS:
            self._ctx.rests()
        for connection in self._idle.expired(now) if self._idle.nearest() <= now else ():
            self._overdue(connection, silent=True)
        for connection in self._heads.expired(now) if self._heads.nearest() <= now else ():
            if connection.queued:
                self._heads.add(connection, now)  # what is here of it is looked at first: it may be complete
            else:
                self._overdue(connection, silent=connection.parser.between)
        for connection in self._uploads.expired(now) if self._uploads.nearest() <= now else ():
            self._gather(connection)  # bytes may have come that we were too busy to read
        for connection in self._lingering.expired(now) if self._lingering.nearest() <= now else ():
            self._close(connection)
        for connection in self._readers.expired(now) if self._readers.nearest() <= now else ():
            self._push(connection)  # the client may have taken some of what the kernel has for it
        if self._resume_at <= now:
            self._resume()

    def _lapse(self, connection: Connection) -> None:
        """Ends an idle connection before its time."""
        self._idle.discard(connection)
        self._heads.discard(connection)
        self._overdue(connection, silent=True)

    def _overdue(self, connection: Connection, *, silent: bool) -> None:
        """Ends a connection whose time is up, unless bytes have arrived that we were too busy to read."""
        if connection.preamble is not None and not self._announce(connection, overdue=True):
            return
        try:
            data = connection.read()
        except OSError:
            data = b""
        if data:
            connection.parser.feed(data)
            event = connection.parser.next_event()
            if event is not None or silent:
                self._act(connection, event)
                return
        if silent or data == b"":
            self._close(connection)
        else:
            self._refuse(
                connection,
                Refusal(408, "the request did not arrive in time", connection.parser.request_line),
            )

    # -- listeners ----------------------------------------------------------------------------------------------------

    def _listen(self) -> None:
        for listener, listen in zip(self._ctx.listeners, self._ctx.listens, strict=True):
            name, port = _server_of(listener, secure=listen.tls is not None)
            if listen.proxy_protocol:
                self._proxied[listener.fileno()] = Networks(listen.proxy_protocol)
            if listen.tls is not None:
                self._speak_tls(listener.fileno(), listen.text)
            if listener.family != socket.AF_UNIX:
                # Inherited by accepted connections. Answers are written in as few pieces as possible; holding back
                # the last one (Nagle) would only delay it.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._listeners[listener.fileno()] = (listener, name, port)
        self._resume()
        if self._handover is not None:
            self._keep_spare()

    def _speak_tls(self, fd: int, text: str) -> None:
        """Whoever comes by this listener speaks TLS first."""
        # Here and not above: it brings in OpenSSL, and most workers have a proxy in front.
        from preforkd.models.tls import Failures, TLSConnection

        server, failures, terms = self._ctx.tls[text], Failures(self._ctx.log), self._terms

        def secure(fd: int, peer: Peer, parser: RequestParser) -> Connection:
            return TLSConnection(fd, peer, parser, terms, server, failures)

        self._tls[fd] = self._tls_named[text] = secure
        self._texts[fd] = text

    def _resume(self) -> None:
        self._resume_at = math.inf
        for fd in self._listeners:
            self._epoll.register(fd, _EXCLUSIVE)
        if self._handover is not None:
            self._epoll.register(self._handover[1].fileno(), _EXCLUSIVE)

    def _pause(self) -> None:
        """Stops accepting: with no descriptor to spare, a waiting client would be reported again and again."""
        if self._left:
            return
        if self._resume_at == math.inf:
            self._unlisten()
        self._resume_at = time.monotonic() + _PAUSE

    def _unlisten(self) -> None:
        for fd in self._listeners:
            self._epoll.unregister(fd)
        if self._handover is not None:
            self._epoll.unregister(self._handover[1].fileno())

    def _accept(self, fd: int) -> None:
        if self._is_full():
            self._make_room_for(fd, _RESERVED)
            return
        try:
            client_fd, peer = self._take(fd)
        except BlockingIOError:
            return  # a sibling was faster
        except OSError as error:
            if error.errno in _SHORTAGE:
                self._make_room_for(fd, error)
            elif error.errno == errno.EINVAL:
                self._pause()  # a reload dropped the address: nobody listens any more; a rollback may change that
            elif error.errno not in _CLIENTS:
                address = self._listeners[fd][0].getsockname()
                self._ctx.log.error("accept_failed", address=address, error=str(error))
                self._pause()  # and try again later
            return
        if self._admits(fd, peer):
            self._receive(self._welcome(fd, client_fd, peer))
        else:
            os.close(client_fd)
            self._proxy_mistake(peer, "it is not listed in proxy_protocol")

    def _is_full(self) -> bool:
        """Are the descriptors used up but for those that are left to the application?"""
        most = len(self._connections) + len(self._uploads) + len(self._readers)
        if most < self._room:
            return False
        with_files = self._uploads.waiters() + self._readers.waiters()
        return len(self._connections) + sum(len(connection.files) for connection in with_files) >= self._room

    def _make_room_for(self, fd: int, error: OSError) -> None:
        """A client of a listener is there and cannot be taken: it will be reported again."""
        self._shortage(error)
        if self._resume_at != math.inf:
            self._pass_on(fd)

    def _admits(self, fd: int, peer: Peer) -> bool:
        """Whether a client of a listener may connect: where a PROXY header is due, only from those who send one."""
        return fd not in self._proxied or peer.client in self._proxied[fd]

    def _welcome(self, fd: int, client_fd: int, peer: Peer) -> Connection:
        """A new connection of a listener; nothing of it has been read yet."""
        connection = self._connect(client_fd, peer, b"", self._tls.get(fd))
        if fd in self._proxied:
            connection.preamble = Preamble()
        return connection

    def _send_on(self, fd: int, client_fd: int, peer: Peer) -> bool:
        """Gives a new client of a listener to a sibling, who welcomes it; the caller still has to close its own
        descriptor."""
        assert self._handover is not None
        handed = handover.Handed(
            client_fd, peer, b"", math.inf, announces=fd in self._proxied, listen=self._texts.get(fd, "")
        )
        return handover.give(self._handover[0], handed)

    def _take(self, fd: int) -> tuple[int, Peer]:
        """The next client of a listener. Raises OSError as accept(2) does."""
        listener, server, port = self._listeners[fd]
        # The method below socket.accept: the descriptor without a socket object around it.
        client_fd, address = listener._accept()  # type: ignore[attr-defined]  # not in typeshed
        os.set_blocking(client_fd, False)
        if listener.family == socket.AF_UNIX:
            self._ctx.took()
            return client_fd, Peer("", 0, server, port)
        return client_fd, Peer(address[0], address[1], server, port)

    def _pass_on(self, fd: int) -> None:
        """Only we were woken for the client that we cannot take (EPOLLEXCLUSIVE): a sibling gets it, or is woken by it.

        The descriptor held in reserve makes room for the moment.
        """
        if self._handover is None or self._spare < 0:
            return
        os.close(self._spare)
        self._spare = -1
        try:
            client_fd, peer = self._take(fd)
        except OSError:
            pass  # a sibling was faster, or somebody else took the descriptor
        else:
            if self._admits(fd, peer):
                self._send_on(fd, client_fd, peer)
            os.close(client_fd)
        self._keep_spare()

    def _connect(self, fd: int, peer: Peer, data: bytes, make: MakeConnection | None = None) -> Connection:
        parser = RequestParser(self._limits, data, self._memory)
        connection = Connection(fd, peer, parser, self._terms) if make is None else make(fd, peer, parser)
        self._connections[fd] = connection
        self._ctx.holds(len(self._connections))
        return connection

    def _shortage(self, error: OSError) -> None:
        """Descriptors (or memory for them) have run out: whoever waits idly longest goes first."""
        victim = self._lingering.oldest() or self._idle.oldest()
        if victim is None:
            head = self._heads.oldest()
            if head is not None and head.parser.between:
                victim = head
        if self._shortages.due():
            self._ctx.log.warning(
                "descriptors_exhausted",
                error=error.strerror,
                connections=len(self._connections),
                action="closing idle connections" if victim is not None else "not accepting for a moment",
            )
        if victim is None:
            self._pause()
        elif victim in self._lingering:
            self._close(victim)
        else:
            # Its next request may be here already; then it is no idle one, and the next turn finds another.
            self._lapse(victim)

    # -- one connection -----------------------------------------------------------------------------------------------

    def _receive(self, connection: Connection) -> None:
        """The connection is readable, or new."""
        if connection.queued or connection.closed:
            return  # its turn comes, and it is reported again; or the porter gave it away since it was reported
        if connection.outbox is not None:
            self._push(connection)
            return
        if connection.preamble is not None and not self._announce(connection):
            return
        try:
            data = connection.read()
        except OSError as error:
            if isinstance(error, SpeaksPlainly):
                self._refuse(connection, Refusal(400, "this port speaks TLS; write https:// in the URL", error.line))
            else:
                self._gone(connection, error)
            return
        if data is None:
            if not connection.registered:
                self._park(connection)
            elif connection.registered != connection.interest:
                self._register(connection)
        elif not data:
            self._gone(connection, None)
        elif connection not in self._lingering:
            connection.parser.feed(data)
            self._advance(connection)

    def _announce(self, connection: Connection, *, overdue: bool = False) -> bool:
        """Reads on in the PROXY header that the connection owes; True once it is complete, and its peer known.

        Else the connection is parked, or closed: at once where no header comes, or what comes is none. The rest of its
        bytes is never looked at, and whoever sent them gets no answer that could be taken for an application's.
        """
        preamble = connection.preamble
        assert preamble is not None
        try:
            header = preamble.read(connection.fd)
        except OSError:
            self._close(connection)
            return False
        if header is None and not overdue:
            self._park(connection)
            return False
        if header is None or isinstance(header, Unreadable):
            # Monitors connect and say nothing; that is no mistake.
            if preamble.data or (header is not None and not header.ended):
                reason = "its PROXY header did not arrive in time" if header is None else header.reason
                self._proxy_mistake(connection.peer, reason)
            self._close(connection)
            return False
        connection.preamble = None
        connection.peer = announced(connection.peer, header)
        return True

    def _proxy_mistake(self, peer: Peer, reason: str) -> None:
        """Says that a connection or a request was refused for what its proxy is, or sent. Once in a while: strangers
        can make it happen as often as they like."""
        if times := self._proxy_mistakes.due():
            self._ctx.log.warning("proxy_refused", client=peer.client, reason=reason, times=times)

    def _advance(self, connection: Connection) -> None:
        if connection.upload is not None:
            self._gather(connection)
        else:
            self._act(connection, connection.parser.next_event())

    def _act(self, connection: Connection, event: object) -> None:
        if isinstance(event, Request):
            if self._now > self._gate.doubt_at and self._turned_away(connection, event):
                return
            if event.length != 0 and received_first(event, len(connection.parser.unread), self._body.buffer):
                self._begin_upload(connection, event)
            else:
                self._serve(connection, event)
        elif isinstance(event, Refusal):
            self._refuse(connection, event)
        else:
            assert event is None, event
            self._park(connection)

    def _park(self, connection: Connection) -> None:
        """Waits for more bytes: of a head, from when its first byte came (or the client), or of the next request."""
        if connection.parser.between and not connection.fresh:
            self._heads.discard(connection)
            self._idle.renew(connection, time.monotonic())
        elif connection not in self._heads:
            self._idle.discard(connection)
            self._heads.add(connection, time.monotonic() + self._heads.timeout)
        self._register(connection)

    def _register(self, connection: Connection) -> None:
        interest = connection.interest
        if not connection.registered:
            self._epoll.register(connection.fd, interest)
        elif connection.registered != interest:
            self._epoll.modify(connection.fd, interest)
        connection.registered = interest

    # -- bodies on their way ------------------------------------------------------------------------------------------

    def _begin_upload(self, connection: Connection, request: Request) -> None:
        self._heads.discard(connection)
        self._idle.discard(connection)
        spool = Spool(self._body.memory, self._body.directory)
        connection.upload = Upload(request, spool, connection.body_pace(), time.time(), time.monotonic())
        self._gather(connection)

    def _gather(self, connection: Connection) -> None:
        """Takes what there is of a body; serves the request when it is complete, or too long to wait for."""
        upload = connection.upload
        assert upload is not None
        parser = connection.parser
        pieces = 0
        while True:
            event = parser.next_event()
            if type(event) is Data:
                upload.progress(time.monotonic(), len(event.data))
                if upload.spool is not None:
                    upload.spool.add(event.data)
                    if upload.spool.size > self._body.buffer:
                        break
            elif type(event) is End:
                if upload.spool is None:
                    self._drained(connection)
                else:
                    upload.spool.complete = True
                    self._serve(connection, upload.request, upload)
                return
            elif type(event) is Refusal:
                self._refuse_body(connection, event.status, event.reason)
                return
            elif pieces == _EAGER:
                break
            else:
                pieces += 1
                try:
                    data = connection.read_body()
                except OSError as error:
                    self._gone(connection, error)
                    return
                if data is None:
                    break
                if not data:
                    self._gone(connection, None)
                    return
                parser.feed(data)
        spool = upload.spool
        if spool is not None and (spool.size > self._body.buffer or not self._settle(spool)):
            self._serve(connection, upload.request, upload)
        else:
            self._await_body(connection, upload)

    def _await_body(self, connection: Connection, upload: Upload) -> None:
        if connection not in self._uploads:
            if upload.deadline <= time.monotonic():
                self._refuse_body(connection, 408, "the request's body did not arrive in time")
                return
            self._uploads.add(connection, upload.deadline)
        self._register(connection)

    def _settle(self, spool: Spool) -> bool:
        """Moves what is too much for memory to the disk; False if the application must read the rest itself."""
        try:
            spool.settle()
        except OSError as error:
            if not (error.errno in _SHORTAGE and self._make_room(error) and self._retry(spool)):
                self._report_unspooled(error)
                return False
        return True

    def _make_room(self, error: OSError) -> bool:
        """Closes a connection that nobody needs, for the sake of one that is in use."""
        before = len(self._connections)
        self._shortage(error)
        return len(self._connections) < before

    def _retry(self, spool: Spool) -> bool:
        try:
            spool.settle()
        except OSError:
            return False
        return True

    def _report_unspooled(self, error: OSError) -> None:
        if self._unspooled.due():
            self._ctx.log.warning(
                "body_not_stored",
                error=str(error),
                directory=self._body.directory or "the default one for temporary files",
                hint="make room, or set body.directory; until then a slow client keeps the worker that serves it busy",
            )

    def _gone(self, connection: Connection, error: OSError | None) -> None:
        """The client has ended the connection, or it is broken."""
        if connection.upload is None:
            self._close(connection)
        elif error is None:
            self._refuse_body(connection, 400, "the client left before the end of its request")
        else:
            self._refuse_body(connection, 400, f"the client left before the end of its request: {error.strerror}")

    def _refuse_body(self, connection: Connection, status: int, reason: str) -> None:
        """A body that will not be complete: its request never reaches the application."""
        upload = connection.upload
        assert upload is not None
        if upload.spool is None:
            self._close(connection)  # answered long ago
            return
        line = _printable(upload.request.line).rpartition(" HTTP/")[0]
        client = self._peer_of(connection, upload.request.headers).client
        self._ctx.log.info("request_body_failed", request=line, client=client, status=status, reason=reason)
        self._refuse(connection, Refusal(status, reason, upload.request.line, upload.request.headers))

    def _drain(self, connection: Connection, request: Request) -> None:
        """The answer is sent, a little of the request's body is still to come, and the connection is kept: the rest is
        taken and thrown away, at the pace of a body."""
        self._idle.discard(connection)
        connection.upload = Upload(request, None, connection.body_pace(), time.time(), time.monotonic())
        self._gather(connection)

    def _drained(self, connection: Connection) -> None:
        self._drop_upload(connection)
        self._next(connection)
        self._let_go(connection)

    def _let_go(self, connection: Connection) -> None:
        """It may be idle now, too late for what happens to idle ones when the worker begins to leave."""
        if self._left and connection in self._idle:
            if self._ctx.stopping:
                self._lapse(connection)  # its next request may be here, and a close would take the answer away
            else:
                self._hand_over(connection)

    def _drop_upload(self, connection: Connection) -> None:
        self._uploads.discard(connection)
        upload, connection.upload = connection.upload, None
        if upload is not None and upload.spool is not None:
            upload.spool.close()

    # -- service ------------------------------------------------------------------------------------------------------

    def _serve(self, connection: Connection, request: Request, upload: Upload | None = None) -> None:
        ctx = self._ctx
        self._heads.discard(connection)
        stored = None
        if upload is not None:
            # Its file is the application's now, and stays open in a child that it forks.
            self._uploads.discard(connection)
            connection.upload = None
            stored = upload.spool
        peer = connection.peer
        asked, refusal = request, None
        if self._forwarding is not None:
            try:
                peer, request = self._forwarding.apply(request, peer)
            except Malformed as mistake:
                self._proxy_mistake(peer, str(mistake))
                refusal = Refusal(400, "what a proxy says of the client is malformed", request.line, request.headers)
        if refusal is None and (request.target[0] != "/" or not connection.movable) and connection.misdirected(asked):
            # Asked for on this connection, whatever a proxy tells of another one.
            refusal = Refusal(421, "this connection is not for such a URL; make another", request.line, request.headers)
        if refusal is not None:
            self._refuse(connection, refusal)
            if stored is not None:
                stored.close()
            return
        leaving = self._is_leaving if connection.movable else self._is_bound
        exchange = Exchange(request, connection.parser, connection, peer, leaving, stored)
        start = ctx.request_started(request.line, peer.client)
        connection.begin(None if upload is None else upload.pace(start))
        self._served = connection
        porter = self._porter
        if porter is not None:
            porter.begin()
        try:
            self._handler.handle(exchange)
            if not exchange.finished and not exchange.aborted:
                ctx.log.error("handler_unfinished", request=_printable(request.line))
                exchange.abort()
        finally:
            if self._disowned:
                os._exit(0)
            if porter is not None and porter.end():
                ctx.keeps_waiting(0)  # what it has counted is looked at now
            self._now = connection.served = now = ctx.request_finished()
            since = start if upload is None else upload.started
            if ctx.access is not None and connection.outbox is None:
                self._log_exchange(exchange, now - since)
            if stored is not None:
                stored.close()
        if connection.outbox is None:
            self._answered(connection, exchange, now)
        else:
            self._await_reader(connection, connection.outbox, exchange, since)
        if exchange.keep_alive and now - start > _SLOW and len(self._connections) > 1:
            self._share_parked()

    def _answered(self, connection: Connection, exchange: Exchange, now: float) -> None:
        """What becomes of a connection after the answer that was sent just now."""
        connection.fresh = False
        if not exchange.keep_alive:
            self._end(connection, exchange)
        elif not exchange.body_ended:
            self._drain(connection, exchange.request)
        elif connection.registered and not connection.parser.unread:
            self._idle.renew(connection, now)  # the poll set tells
        else:
            self._next(connection)

    def _end(self, connection: Connection, exchange: Exchange) -> None:
        """The answer was the connection's last."""
        if exchange.aborted:
            if exchange.close_delimited or exchange.stalled:
                connection.reset_on_close()
            self._close(connection)
        elif exchange.ends_cleanly:
            self._close(connection)
        else:
            self._linger(connection)

    def _turned_away(self, connection: Connection, request: Request) -> bool:
        """Answers a request that has waited too long with 503, without the application; see `overload`."""
        ctx = self._ctx
        start = time.monotonic()
        accepted = connection.fresh and not connection.registered
        waited = self._gate.waited_too_long(connection, self._connections, accepted, start)
        if waited is None:
            return False
        ctx.request_refused(waited)
        self._heads.discard(connection)
        peer = self._peer_of(connection, request.headers)
        exchange = Exchange(request, connection.parser, connection, peer, self._is_leaving)
        exchange.skip_body(connection.read, _SKIP)
        try:
            exchange.answer_plainly(
                503,
                "The service is overloaded; the request has waited too long.",
                [("Retry-After", str(retry_after(self._timeouts.queue, random.random())))],  # noqa: S311
            )
        except ClientGone:
            pass  # it did not wait so long
        self._now = time.monotonic()
        ctx.rests()  # where all are turned away, no request comes that would put its alarm off
        if connection.outbox is not None:
            self._await_reader(connection, connection.outbox, exchange, start)
            return True
        if ctx.access is not None:
            self._log_exchange(exchange, self._now - start)
        self._answered(connection, exchange, self._now)
        return True

    def _await_reader(self, connection: Connection, outbox: Outbox, exchange: Exchange, since: float) -> None:
        """The client has not taken all of its answer: the rest is sent as it does, and nothing else is done on its
        connection until then."""
        outbox.exchange = exchange
        outbox.since = since
        self._idle.discard(connection)
        self._push(connection)

    def _push(self, connection: Connection) -> None:
        """Sends what goes of an answer's rest. After its last byte, or the client's end, the request is over."""
        outbox = connection.outbox
        assert outbox is not None
        exchange = outbox.exchange
        now = time.monotonic()
        try:
            if not connection.push(now):
                if connection not in self._readers:
                    self._readers.add(connection, outbox.deadline)
                self._register(connection)
                return
            if outbox.missing:
                exchange.fall_short(outbox.missing)
                self._tell(self._ctx.log.warning, "app_response_length", exchange, exchange.complaint)
        except OSError as error:
            self._tell(self._ctx.log.info, "client_gone", exchange, str(exchange.lose(error, connection.unsent())))
        self._readers.discard(connection)
        connection.served = now
        connection.outbox = None
        outbox.close()
        if self._ctx.access is not None:
            self._log_exchange(exchange, now - outbox.since)
        if connection.registered:
            self._register(connection)
        if not exchange.keep_alive and not exchange.aborted:
            # What the client has sent meanwhile and nobody reads would make a close take the answer away.
            try:
                connection.parser.feed(connection.read() or b"")
            except OSError:
                pass
        self._answered(connection, exchange, now)
        self._let_go(connection)

    def _tell(self, log: Callable[..., None], event: str, exchange: Exchange, reason: str) -> None:
        """Says of an answer's rest what the handler says of the answer."""
        request = exchange.request
        log(event, request=f"{request.method} {request.target}", client=exchange.peer.client, reason=reason)

    def _next(self, connection: Connection) -> None:
        """After an answer that leaves the connection open: the next request may be here already."""
        if connection.parser.unread:
            self._queue(connection)
        elif connection.registered:
            self._park(connection)  # the poll set tells
        else:
            # One look is cheaper than two calls, to register and to wait.
            try:
                data = connection.read()
            except OSError:
                data = b""
            if data is None:
                self._park(connection)
            elif data:
                connection.parser.feed(data)
                self._queue(connection)
            else:
                self._close(connection)

    def _queue(self, connection: Connection) -> None:
        """Its next request is here; others are looked at first."""
        self._idle.discard(connection)
        connection.queued = True
        self._ready.append(connection)

    def _peer_of(self, connection: Connection, headers: list[tuple[bytes, bytes]]) -> Peer:
        """Who is said to have asked for what is refused: behind a trusted proxy its client, if the fields tell."""
        return connection.peer if self._forwarding is None else self._forwarding.client_of(headers, connection.peer)

    def _refuse(self, connection: Connection, refusal: Refusal) -> None:
        data, length = refusal_bytes(refusal.status, refusal.reason)
        connection.try_send(data)
        if self._ctx.access is not None:
            self._log_refusal(connection, refusal, length)
        self._drop_upload(connection)
        self._linger(connection)

    def _linger(self, connection: Connection) -> None:
        """The answer is sent and ends the connection; what the client still sends is taken and thrown away."""
        connection.end_output()
        self._heads.discard(connection)
        self._idle.discard(connection)
        self._lingering.add(connection, time.monotonic() + _LINGER)
        self._register(connection)

    def _close(self, connection: Connection) -> None:
        self._detach(connection)
        if self._resume_at != math.inf:
            self._resume()

    def _detach(self, connection: Connection) -> None:
        """Gives our descriptor of the connection up; whether that ends the connection depends on who else has one."""
        self._heads.discard(connection)
        self._idle.discard(connection)
        self._lingering.discard(connection)
        self._drop_upload(connection)
        if connection.registered:
            self._epoll.unregister(connection.fd)
        del self._connections[connection.fd]
        self._ctx.holds(len(self._connections))
        connection.closed = True
        connection.close()

    def _is_leaving(self) -> bool:
        """Is this answer the connection's last? So it is, too, where connections are not to be kept."""
        return self._ctx.leaving or not self._timeouts.keepalive

    def _is_bound(self) -> bool:
        """As `_is_leaving`, for a connection that cannot go to a sibling: it would wait behind the others' requests, or
        they behind its own, so it is kept only while it is alone (DESIGN 6)."""
        return self._is_leaving() or len(self._connections) - len(self._lingering) > 1

    # -- leaving, and what leavers hand over --------------------------------------------------------------------------

    def _leave(self) -> None:
        """The worker leaves: nothing new; what can go to a sibling goes; the rest is finished. Called every turn."""
        if not self._left:
            self._left = True
            if self._resume_at == math.inf:
                self._unlisten()
            self._resume_at = math.inf
            for listener, _, _ in self._listeners.values():
                listener.close()
            self._listeners.clear()
            if not self._ctx.stopping:
                for connection in self._idle.waiters() + self._heads.waiters():
                    self._hand_over(connection)
        if self._ctx.stopping and not self._stopped:
            self._stopped = True
            while self._handover is not None and self._adopt():
                pass  # the last one to leave serves what was given to those who have left
            now = time.monotonic()
            for connection in self._idle.waiters():
                # What was served before may have taken long, and the porter have given this one away.
                if self._idle.discard(connection) is not None:
                    self._overdue(connection, silent=True)
            for connection in self._heads.waiters():
                if connection.parser.between:
                    self._heads.add(connection, min(now + _SILENT_GRACE, self._heads.discard(connection) or now))
            for connection in self._uploads.waiters():
                if connection.upload is not None and connection.upload.spool is None:
                    # Answered; what it still sends is waited for no longer than behind any last answer.
                    self._drop_upload(connection)
                    self._linger(connection)

    def _hand_over(self, connection: Connection) -> None:
        """Gives a parked connection to a sibling; if none takes it now it stays until its next answer or deadline."""
        if not self._give(connection):
            queue = self._idle if connection in self._idle else self._heads
            assert connection in queue
            if queue.deadline(connection) == math.inf:
                queue.add(connection, time.monotonic() + self._timeouts.graceful)

    def _give(self, connection: Connection) -> bool:
        """Sends a connection to whichever sibling takes it, with the deadline of its head if one has begun."""
        if self._handover is None or not connection.movable:
            return False
        preamble = connection.preamble
        read = connection.parser.unread if preamble is None else preamble.data
        deadline = self._heads.deadline(connection)
        handed = handover.Handed(connection.fd, connection.peer, read, deadline, announces=preamble is not None)
        if not handover.give(self._handover[0], handed):
            return False
        self._detach(connection)
        return True

    # -- while a request runs, by the porter (its `Burden`) -----------------------------------------------------------

    def movable(self) -> list[Connection]:
        """The connections that a sibling could have: parked, or with a request that is here already."""
        queued = [connection for connection in self._ready if connection.upload is None and not connection.closed]
        # One that a sibling has sent may be both: with a deadline, and about to be looked at.
        parked = [one for one in (*self._idle.waiters(), *self._heads.waiters()) if not one.queued]
        return [one for one in queued + parked if one.movable and one is not self._served]

    def pass_on(self, connection: Connection) -> bool:
        """Gives one of them away."""
        return self._give(connection)

    def readers(self) -> list[Connection]:
        """Those who have not taken all of their answer. The application may still read from the one that is served, and
        OpenSSL's sessions are for one thread at a time."""
        return [
            connection
            for connection in self._connections.values()
            if connection.outbox is not None and (connection is not self._served or connection.movable)
        ]

    def send_on(self, connection: Connection) -> bool:
        """Sends what goes of one's answer; False if that was the last of it, or the client's end."""
        try:
            return not connection.push(time.monotonic())
        except OSError:
            return False  # the main thread will meet it, too

    def relay(self) -> bool:
        """Passes on what this worker was woken for and did not get to, because the request came first: the kernel wakes
        nobody else for it (EPOLLEXCLUSIVE). True if something is left, perhaps for want of an idle sibling."""
        if self._handover is None or self._resume_at != math.inf:
            return False
        poll = select.poll()
        for fd in (*self._listeners, self._handover[1].fileno()):
            poll.register(fd, select.POLLIN)
        waiting = poll.poll(0)
        if waiting and self._ctx.sibling_free() and not self._ctx.stopping:
            # One of each: whoever is woken for it finds the others as well.
            for fd, _mask in waiting:
                if fd in self._listeners:
                    self._relay_client(fd)
                else:
                    self._relay_handed()
        return bool(waiting)

    def _relay_client(self, fd: int) -> None:
        try:
            client_fd, peer = self._take(fd)
        except OSError:
            return  # a sibling was faster; or it fails for the main thread, too, which says so
        if not self._admits(fd, peer) or self._send_on(fd, client_fd, peer):
            os.close(client_fd)
        else:
            self._park(self._welcome(fd, client_fd, peer))

    def _relay_handed(self) -> None:
        assert self._handover is not None
        try:
            handed = handover.take(self._handover[1])
        except OSError:
            return
        if handed is None:
            return
        if handover.give(self._handover[0], handed):
            os.close(handed.fd)
        else:
            self._take_in(handed)

    def can_pass_on(self, ready: int) -> bool:
        """Whether somebody is there to take them; if not, the master learns how many wait."""
        if self._ctx.sibling_free() and not self._ctx.stopping:
            return True
        self._ctx.keeps_waiting(ready)
        return False

    def goes_on(self) -> None:
        """The request has been running for a while."""
        self._ctx.request_goes_on()

    def orphaned(self) -> None:
        """The master is gone."""
        self._ctx.orphaned_in_request()

    def failed(self, traceback: str) -> None:
        """The porter met something that nobody thought of."""
        self._ctx.log.error("porter_failed", traceback=traceback)

    def _share(self, waiting: list[Connection]) -> None:
        """Several are readable, and one is served at a time: what is above our share goes to idle siblings, the last
        first."""
        if self._handover is not None:
            for _ in range(min(self._ctx.surplus(len(self._connections)), len(waiting) - 1)):
                connection = waiting.pop()
                if connection in self._idle or connection in self._heads:
                    self._hand_over(connection)

    def _share_parked(self) -> None:
        """A request that took its time has kept our other connections from being served, and the next one will: what is
        above our share of them goes to idle siblings before it has something to say."""
        if self._handover is not None and not self._ctx.leaving:
            for connection in self._idle.waiters()[: self._ctx.surplus(len(self._connections), slow=True)]:
                self._hand_over(connection)

    def _adopt(self) -> bool:
        """Takes one connection that a sibling handed over, as if it had been parked here; False if there is none."""
        assert self._handover is not None
        if self._is_full() and not self._ctx.stopping:
            self._shortage(_RESERVED)
            return False
        if self._spare < 0 and not self._keep_spare():
            return False
        os.close(self._spare)
        self._spare = -1
        handed = handover.take(self._handover[1])
        self._keep_spare()
        if handed is None:
            return False
        connection = self._take_in(handed)
        if connection is not None and not connection.queued:
            self._receive(connection)
        return True

    def _take_in(self, handed: handover.Handed) -> Connection | None:
        """Parks a connection that was handed over; None if it cannot be served here."""
        make: MakeConnection | None = None
        if handed.listen:
            make = self._tls_named.get(handed.listen)
            if make is None:
                os.close(handed.fd)  # of another generation, whose listener we do not have
                return None
        if make is not None or handed.announces:
            connection = self._connect(handed.fd, handed.peer, b"", make)
            connection.preamble = Preamble(handed.data) if handed.announces else None
        else:
            connection = self._connect(handed.fd, handed.peer, handed.data)
            connection.fresh = False
        if handed.announces or not connection.parser.between:
            self._heads.add(connection, min(handed.deadline, time.monotonic() + self._heads.timeout))
            self._register(connection)
            if not handed.announces:
                self._queue(connection)  # a complete head may have been handed over as well
        else:
            self._park(connection)
        return connection

    def _keep_spare(self) -> bool:
        try:
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._shortage(error)
            return False
        return True

    # -- the access log -----------------------------------------------------------------------------------------------

    def _log_exchange(self, exchange: Exchange, duration: float) -> None:
        request = exchange.request
        self._log_access(
            AccessRecord(
                time.time() - duration,
                duration,
                exchange.peer.client,
                request.method,
                request.target,
                request.protocol,
                exchange.status,
                exchange.sent,
                exchange.received,
                request.headers,
                request.shared,
                exchange.head,
                exchange.user,
                self._ctx.pool.name,
                self._ctx.name,
                self._pid,
            )
        )

    def _log_refusal(self, connection: Connection, refusal: Refusal, length: int) -> None:
        words = refusal.line.decode("latin-1").split(" ")
        whole = len(words) == 3
        upload = connection.upload
        self._log_access(
            AccessRecord(
                time=upload.began if upload is not None else time.time(),
                duration=time.monotonic() - upload.started if upload is not None else 0.0,
                client=self._peer_of(connection, refusal.headers).client,
                method=words[0] if whole else "",
                target=words[1] if whole else refusal.line.decode("latin-1"),
                protocol=words[2] if whole else "",
                status=refusal.status,
                sent=length,
                received=upload.spool.size if upload is not None and upload.spool is not None else 0,
                headers=refusal.headers,
                shared=upload.request.shared if upload is not None else {},
                head=None,
                user=None,
                pool=self._ctx.pool.name,
                worker=self._ctx.name,
                pid=self._pid,
            )
        )

    def _log_access(self, record: AccessRecord) -> None:
        assert self._ctx.access is not None
        self._ctx.access.log(record)


def _server_of(listener: socket.socket, secure: bool) -> tuple[str, int]:
    """SERVER_NAME and SERVER_PORT of what arrives here: the address, or this machine's name if it is any address.

    Never a look-up in DNS, which can take its time.
    """
    if listener.family == socket.AF_UNIX:
        return "localhost", 443 if secure else 80
    host, port = listener.getsockname()[:2]
    return (socket.gethostname() if host in ("0.0.0.0", "::") else host), port


def _printable(line: bytes) -> str:
    return line.decode("latin-1")
