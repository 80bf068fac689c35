"""The model ``process``: one process, one request at a time.

    wait -> look at what the worker watches -> serve what is readable, or accept -> end what is overdue

Until the head of its request is complete a client costs a descriptor: it is *parked* in the poll set, with a deadline.
A complete request is served at once, by blocking calls. Nothing else happens meanwhile; the siblings accept.

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
from typing import TYPE_CHECKING

from preforkd.errors import ExitCode
from preforkd.http import (
    AccessRecord,
    ClientGone,
    Exchange,
    Peer,
    Refusal,
    Request,
    RequestLimits,
    RequestParser,
    refusal_bytes,
)
from preforkd.models import handover
from preforkd.models.connection import Connection
from preforkd.models.deadlines import Deadlines
from preforkd.models.overload import Gate, retry_after

if TYPE_CHECKING:
    from preforkd.models import ServedHandler, WorkerContext

#: How many ready descriptors are taken from the kernel at once. More saves calls under load; fewer notices sooner that
#: the worker shall leave.
_BATCH = 16
#: How long a client may go on sending after its answer ended the connection (seconds). Closing earlier would make the
#: kernel reset the connection and take the answer back (RFC 9112, 9.6). Apache waits as long for its short kind.
_LINGER = 2.0
#: How long a connection that has not sent anything yet may stay when the service stops: its request may be on its way.
_SILENT_GRACE = 1.0
#: How long accepting pauses when descriptors have run out and none can be freed here.
_PAUSE = 1.0
#: A shortage is reported once in so many seconds.
_REPORT_EVERY = 10.0

#: So much of the body of a request that is turned away is read, so that its connection can be kept (bytes). More costs
#: more than a new connection.
_SKIP = 64 * 1024

#: A request that takes so long makes the connections beside it wait (seconds). Far less, and workers that answer in
#: microseconds would keep counting each other's connections.
_SLOW = 0.002

_EXCLUSIVE = select.EPOLLIN | select.EPOLLEXCLUSIVE
#: Failures of a connection that was in the queue, not of the listener: accept(2), "Error handling".
_CLIENTS = frozenset(
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
_SHORTAGE = frozenset((errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM))


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
        self._timeouts = pool.timeouts
        self._limits = RequestLimits(pool.limits.line, pool.limits.header, pool.limits.fields, pool.limits.body)
        self._epoll = select.epoll()
        self._watched: dict[int, Callable[[], None]] = {}
        self._listeners: dict[int, tuple[socket.socket, str, int]] = {}
        self._handover = ctx.handover
        #: Held in reserve: a message that brings a descriptor loses it for good if there is no room for it.
        self._spare = -1
        self._connections: dict[int, Connection] = {}
        #: Parked: no complete head yet; between two requests; answered, and still sending.
        self._heads: Deadlines[Connection] = Deadlines(self._timeouts.header)
        self._idle: Deadlines[Connection] = Deadlines(self._timeouts.keepalive)
        self._lingering: Deadlines[Connection] = Deadlines(_LINGER)
        self._ready: deque[Connection] = deque()
        self._gate = Gate(self._timeouts.queue, ctx.serving_since, self._epoll, ctx.listeners, ctx.taken)
        #: When to accept again after a shortage; infinite while accepting.
        self._resume_at = math.inf
        self._reported_at = -math.inf
        self._left = False
        self._stopped = False
        #: True in a child that the application forked.
        self._disowned = False

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
            while True:
                if ctx.leaving:
                    self._leave()
                    if not self._connections:
                        return
                self._turn()
        finally:
            self._epoll.close()
            for connection in list(self._connections.values()):
                os.close(connection.fd)
            if self._spare >= 0:
                os.close(self._spare)

    def _turn(self) -> None:
        if self._gate.doubtful:
            events = self._gate.poll(self._patience(), _BATCH, self._resume_at == math.inf, time.monotonic)
        else:
            events = self._epoll.poll(self._patience(), _BATCH)
        watched = [event for event in events if event[0] in self._watched]
        if watched:
            self._look(watched)
            if self._ctx.leaving and not self._left:
                return  # what is ready is reported again, and served knowing that we leave
        for _ in range(len(self._ready)):
            connection = self._ready.popleft()
            connection.queued = False
            if not connection.closed:
                self._advance(connection)
        readable = [fd for fd, _mask in events if fd in self._connections]
        several = len(readable) > 1
        for fd, _mask in events:
            connection_ = self._connections.get(fd)
            if connection_ is not None:
                if several:
                    if fd in readable:
                        readable.remove(fd)
                    self._share(readable)
                self._receive(connection_)
            elif fd in self._listeners:
                if not self._ctx.leaving:
                    self._accept(fd)
            elif self._handover is not None and fd == self._handover[1].fileno() and not self._ctx.leaving:
                self._adopt()
        self._expire()

    def _patience(self) -> float | None:
        """How long the next wait may take: None, for ever, when nothing is pending."""
        if self._ready:
            return 0
        nearest = min(self._heads.nearest(), self._idle.nearest(), self._lingering.nearest(), self._resume_at)
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
        for connection in self._idle.expired(now) if self._idle.nearest() <= now else ():
            self._overdue(connection, silent=True)
        for connection in self._heads.expired(now) if self._heads.nearest() <= now else ():
            self._overdue(connection, silent=connection.parser.between)
        for connection in self._lingering.expired(now) if self._lingering.nearest() <= now else ():
            self._close(connection)
        if self._resume_at <= now:
            self._resume()

    def _lapse(self, connection: Connection) -> None:
        """Ends an idle connection before its time."""
        self._idle.discard(connection)
        self._heads.discard(connection)
        self._overdue(connection, silent=True)

    def _overdue(self, connection: Connection, *, silent: bool) -> None:
        """Ends a connection whose time is up, unless bytes have arrived that we were too busy to read."""
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
        for listener in self._ctx.listeners:
            name, port = _server_of(listener)
            if listener.family != socket.AF_UNIX:
                # Inherited by accepted connections. Answers are written in as few pieces as possible; holding back
                # the last one (Nagle) would only delay it.
                listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._listeners[listener.fileno()] = (listener, name, port)
        self._resume()
        if self._handover is not None:
            self._keep_spare()

    def _resume(self) -> None:
        self._resume_at = math.inf
        for fd in self._listeners:
            self._epoll.register(fd, _EXCLUSIVE)
        if self._handover is not None:
            self._epoll.register(self._handover[1].fileno(), _EXCLUSIVE)

    def _pause(self) -> None:
        """Stops accepting: with no descriptor to spare, a waiting client would be reported again and again."""
        if self._resume_at == math.inf:
            self._unlisten()
        self._resume_at = time.monotonic() + _PAUSE

    def _unlisten(self) -> None:
        for fd in self._listeners:
            self._epoll.unregister(fd)
        if self._handover is not None:
            self._epoll.unregister(self._handover[1].fileno())

    def _accept(self, fd: int) -> None:
        try:
            client_fd, peer = self._take(fd)
        except BlockingIOError:
            return  # a sibling was faster
        except OSError as error:
            if error.errno in _SHORTAGE:
                self._shortage(error)
                if self._resume_at != math.inf:
                    self._pass_on(fd)
            elif error.errno == errno.EINVAL:
                self._pause()  # a reload dropped the address: nobody listens any more; a rollback may change that
            elif error.errno not in _CLIENTS:
                address = self._listeners[fd][0].getsockname()
                self._ctx.log.error("accept_failed", address=address, error=str(error))
                self._pause()  # and try again later
            return
        self._receive(self._connect(client_fd, peer, b""))

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
            handover.give(self._handover[0], handover.Handed(client_fd, peer, b"", math.inf))
            os.close(client_fd)
        self._keep_spare()

    def _connect(self, fd: int, peer: Peer, data: bytes) -> Connection:
        timeouts = self._timeouts
        connection = Connection(fd, peer, RequestParser(self._limits, data), timeouts.body, timeouts.send)
        self._connections[fd] = connection
        self._ctx.holds(len(self._connections))
        return connection

    def _shortage(self, error: OSError) -> None:
        """Descriptors (or memory for them) have run out: whoever waits idly longest goes first."""
        now = time.monotonic()
        victim = self._lingering.oldest() or self._idle.oldest()
        if victim is None:
            head = self._heads.oldest()
            if head is not None and head.parser.between:
                victim = head
        if now - self._reported_at >= _REPORT_EVERY:
            self._reported_at = now
            self._ctx.log.warning(
                "descriptors_exhausted",
                error=os.strerror(error.errno or 0),
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
        if connection.queued:
            return  # its turn comes; it is reported again
        try:
            data = connection.read()
        except OSError:
            self._close(connection)
            return
        if data is None:
            if not connection.registered:
                self._park(connection)
        elif not data:
            self._close(connection)
        elif connection not in self._lingering:
            connection.parser.feed(data)
            self._advance(connection)

    def _advance(self, connection: Connection) -> None:
        self._act(connection, connection.parser.next_event())

    def _act(self, connection: Connection, event: object) -> None:
        if isinstance(event, Request):
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
            self._idle.add(connection, time.monotonic() + self._idle.timeout)
        elif connection not in self._heads:
            self._idle.discard(connection)
            self._heads.add(connection, time.monotonic() + self._heads.timeout)
        self._register(connection)

    def _register(self, connection: Connection) -> None:
        if not connection.registered:
            self._epoll.register(connection.fd, select.EPOLLIN)
            connection.registered = True

    def _serve(self, connection: Connection, request: Request) -> None:
        ctx = self._ctx
        self._heads.discard(connection)
        self._idle.discard(connection)
        exchange = Exchange(request, connection.parser, connection, connection.peer, self._is_leaving)
        start = time.monotonic()
        if start > self._gate.doubt_at:
            accepted = connection.fresh and not connection.registered
            waited = self._gate.waited_too_long(connection, self._connections, accepted, start)
            if waited is not None:
                self._turn_away(connection, exchange, waited)
                return
        ctx.request_started(request.line, connection.peer.client)
        began = time.time()
        try:
            self._handler.handle(exchange)
            if not exchange.finished and not exchange.aborted:
                ctx.log.error("handler_unfinished", request=_printable(request.line))
                exchange.abort()
        finally:
            if self._disowned:
                os._exit(0)
            if ctx.access is not None:
                self._log_exchange(exchange, began, time.monotonic() - start)
            ctx.request_finished()
        connection.fresh = False
        if exchange.keep_alive:
            self._next(connection)
            if time.monotonic() - start > _SLOW and len(self._connections) > 1:
                self._share_parked()
        elif exchange.aborted:
            if exchange.close_delimited:
                connection.reset_on_close()
            self._close(connection)
        elif exchange.ends_cleanly:
            self._close(connection)
        else:
            self._linger(connection)

    def _turn_away(self, connection: Connection, exchange: Exchange, waited: float) -> None:
        """Answers a request that has waited too long with 503, without the application; see `overload`."""
        ctx = self._ctx
        ctx.request_refused(waited)
        began = time.time()
        start = time.monotonic()
        exchange.skip_body(connection.read, _SKIP)
        try:
            exchange.answer_plainly(
                503,
                "The service is overloaded; the request has waited too long.",
                [("Retry-After", str(retry_after(self._timeouts.queue, random.random())))],  # noqa: S311
            )
        except ClientGone:
            pass  # it did not wait so long
        if ctx.access is not None:
            self._log_exchange(exchange, began, time.monotonic() - start)
        connection.fresh = False
        if exchange.keep_alive:
            self._next(connection)
        elif exchange.aborted or exchange.ends_cleanly:
            self._close(connection)
        else:
            self._linger(connection)

    def _next(self, connection: Connection) -> None:
        """After an answer that leaves the connection open: the next request may be here already."""
        if connection.parser.unread:
            connection.queued = True
            self._ready.append(connection)
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
                connection.queued = True
                self._ready.append(connection)
            else:
                self._close(connection)

    def _refuse(self, connection: Connection, refusal: Refusal) -> None:
        data, length = refusal_bytes(refusal.status, refusal.reason)
        connection.try_send(data)
        if self._ctx.access is not None:
            self._log_refusal(connection, refusal, length)
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
        if connection.registered:
            self._epoll.unregister(connection.fd)
        del self._connections[connection.fd]
        self._ctx.holds(len(self._connections))
        connection.closed = True
        os.close(connection.fd)

    def _is_leaving(self) -> bool:
        """Is this answer the connection's last? So it is, too, where connections are not to be kept."""
        return self._ctx.leaving or not self._timeouts.keepalive

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
            now = time.monotonic()
            for connection in self._idle.waiters():
                self._idle.discard(connection)
                self._overdue(connection, silent=True)
            for connection in self._heads.waiters():
                if connection.parser.between:
                    self._heads.add(connection, min(now + _SILENT_GRACE, self._heads.discard(connection) or now))

    def _hand_over(self, connection: Connection) -> None:
        """Gives a parked connection to a sibling; if none takes it now it stays until its next answer or deadline."""
        idle = connection in self._idle
        deadline = (self._idle if idle else self._heads).discard(connection)
        assert deadline is not None
        if self._handover is not None:
            handed = handover.Handed(
                connection.fd, connection.peer, connection.parser.unread, math.inf if idle else deadline
            )
            if handover.give(self._handover[0], handed):
                self._detach(connection)
                return
        if deadline == math.inf:
            deadline = time.monotonic() + self._timeouts.graceful
        (self._idle if idle else self._heads).add(connection, deadline)

    def _share(self, readable: list[int]) -> None:
        """Others are waiting behind the one that is served next: what is above our share of them goes to idle siblings.

        ``readable`` loses what is given away; how many are left is told.
        """
        if readable and self._handover is not None:
            for _ in range(min(self._ctx.surplus(len(self._connections)), len(readable))):
                connection = self._connections.get(readable.pop())
                if connection is not None and (connection in self._idle or connection in self._heads):
                    self._hand_over(connection)
        self._ctx.keeps_waiting(len(readable))

    def _share_parked(self) -> None:
        """A request that took its time has kept our other connections from being served, and the next one will: what is
        above our share of them goes to idle siblings before it has something to say."""
        if self._handover is not None and not self._ctx.leaving:
            for connection in self._idle.waiters()[: self._ctx.surplus(len(self._connections), slow=True)]:
                self._hand_over(connection)

    def _adopt(self) -> None:
        """Takes one connection that a sibling handed over, as if it had been parked here."""
        assert self._handover is not None
        if self._spare < 0 and not self._keep_spare():
            return
        os.close(self._spare)
        self._spare = -1
        handed = handover.take(self._handover[1])
        self._keep_spare()
        if handed is None:
            return
        connection = self._connect(handed.fd, handed.peer, handed.data)
        connection.fresh = False
        if connection.parser.between:
            self._park(connection)
        else:
            self._heads.add(connection, min(handed.deadline, time.monotonic() + self._heads.timeout))
            self._register(connection)
            # A complete head may have been handed over as well.
            connection.queued = True
            self._ready.append(connection)

    def _keep_spare(self) -> bool:
        try:
            self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            self._shortage(error)
            return False
        return True

    # -- the access log -----------------------------------------------------------------------------------------------

    def _log_exchange(self, exchange: Exchange, began: float, duration: float) -> None:
        request = exchange.request
        head = exchange.head
        self._log_access(
            AccessRecord(
                time=began,
                duration=duration,
                client=exchange.peer.client,
                method=request.method,
                target=request.target,
                protocol=request.protocol,
                status=exchange.status,
                sent=exchange.sent,
                received=exchange.received,
                headers=request.headers,
                response_headers=head.headers if head is not None else [],
                user=exchange.user,
                pool=self._ctx.pool.name,
                worker=self._ctx.name,
                pid=os.getpid(),
            )
        )

    def _log_refusal(self, connection: Connection, refusal: Refusal, length: int) -> None:
        words = refusal.line.decode("latin-1").split(" ")
        whole = len(words) == 3
        self._log_access(
            AccessRecord(
                time=time.time(),
                duration=0.0,
                client=connection.peer.client,
                method=words[0] if whole else "",
                target=words[1] if whole else refusal.line.decode("latin-1"),
                protocol=words[2] if whole else "",
                status=refusal.status,
                sent=length,
                received=0,
                headers=[],
                response_headers=[],
                user=None,
                pool=self._ctx.pool.name,
                worker=self._ctx.name,
                pid=os.getpid(),
            )
        )

    def _log_access(self, record: AccessRecord) -> None:
        assert self._ctx.access is not None
        self._ctx.access.log(record)


def _server_of(listener: socket.socket) -> tuple[str, int]:
    """SERVER_NAME and SERVER_PORT of what arrives here: the address, or this machine's name if it is any address.

    Never a look-up in DNS, which can take its time.
    """
    if listener.family == socket.AF_UNIX:
        return "localhost", 80
    host, port = listener.getsockname()[:2]
    return (socket.gethostname() if host in ("0.0.0.0", "::") else host), port


def _printable(line: bytes) -> str:
    return line.decode("latin-1")
