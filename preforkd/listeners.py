"""The listening sockets of the service: opened as a transaction, known by their address. Master only.

A reload must be able to move, add and drop addresses while the workers of the old generation still serve, and to fail
without a trace. So `open_listeners` never touches what is there. It carries over what stays, binds what is new aside,
and hands back a `ListenerSet` that the master either commits or rolls back:

    carried, by address --+
    systemd's, by address +--> open_listeners(...) --> ListenerSet --> commit()    new settings on carried sockets
    bound anew -----------+         |                             `--> rollback()  closes what was bound, nothing else
                                    `--> ListenError: every address that failed, one sentence a line; nothing is left

Three rules that are not obvious:

* Sockets are matched by ``getsockname``, never by the order or the number of a descriptor: systemd's store gives them
  back in another order than it got them.
* *Our own sockets in the way.* ``127.0.0.1:80`` edited to ``0.0.0.0:80`` (or back) overlaps with the socket that still
  serves, and the kernel refuses the second one. For just those two, and just until the new one listens, SO_REUSEPORT is
  set; it is no permanent setting, because it would let a second instance of the same user bind our ports unnoticed.
  Where the new address is the narrower one it takes connections from the old one as soon as it listens; so it is bound
  at once but listens only from `ListenerSet.commit` on (`Listener.pending`), or a reload that fails later would have
  cost the connections in its queue.
* Dropped listeners are not closed by the commit but given back (`ListenerSet.dropped`): old workers still empty their
  queues. `Listener.remove` ends them for every process at once, when the master sees fit. Until then they may be passed
  to the next reload among the carried ones, which may want them back.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import re
import socket
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING

from preforkd import unixsocket
from preforkd.errors import ListenError

if TYPE_CHECKING:
    from preforkd.config import Listen

#: Names of sockets in systemd's store begin with this; what else comes with LISTEN_FDS belongs to a .socket unit.
STORE_PREFIX = "listen="

#: Apache's; the kernel cuts it by net.core.somaxconn.
DEFAULT_BACKLOG = 511

#: What the path of a suspended unix socket ends with.
ASIDE = ".dropped"

#: The one host name that is understood without asking a name server; it has two addresses.
_LOCALHOST = ("127.0.0.1", "::1")

# linux/tcp.h: eight bytes of flags, then 32-bit values; the fifth is tcpi_unacked, which on a listening socket counts
# the connections that are established and not accepted yet.
_TCPI_UNACKED = struct.Struct("=24xI")


class Origin(StrEnum):
    """Where a listening socket came from, which decides what we may do with it."""

    BOUND = "bound"  #: bound by preforkd itself
    STORE = "store"  #: bound by an earlier master, and back from systemd's descriptor store
    ACTIVATION = "activation"  #: passed by a .socket unit of systemd, which goes on owning it


@dataclass(frozen=True, slots=True)
class Wanted:
    """One address the configuration names, and how its socket is to be set up.

    ``backlog`` is the length of the accept queue (cut by net.core.somaxconn). ``defer_accept`` is in whole seconds, 0
    is off: the kernel keeps a TCP connection to itself until data came or the time is over. Never set it where the
    server speaks first. Both leave the sockets of a .socket unit alone: the unit's own settings count there.
    """

    listen: Listen
    backlog: int = DEFAULT_BACKLOG
    defer_accept: int = 0


@dataclass(frozen=True, slots=True)
class Unused:
    """A descriptor from systemd that nothing in the configuration asked for; still open.

    ``stored`` tells that it is one of our own from the store: send FDSTOREREMOVE for ``name`` and close it, or the
    kernel goes on accepting for nobody. Others belong to a .socket unit; a later reload may ask for them.
    """

    fd: int
    name: str
    why: str
    stored: bool


@dataclass(slots=True, eq=False)
class _Part:
    """One socket of a listener."""

    sock: socket.socket
    origin: Origin
    #: The path of a unix socket, "" for others, and the file it leads to while it is ours.
    path: str = ""
    file: unixsocket.FileId | None = None
    #: A reload took a copy into another listener (127.0.0.1:80 into localhost:80), whose part is responsible now.
    lent: _Part | None = None
    #: Those of other listeners that share the port and overlap (127.0.0.1 and 0.0.0.0), as far as known.
    rivals: list[_Part] = field(default_factory=list)
    #: Whether the path is not where it belongs, and what a TCP socket was bound to; see `Listener.suspend`.
    aside: bool = False
    address: tuple[str | int, ...] | None = None

    @property
    def place(self) -> str:
        """Where the unix socket's file is to be found."""
        return self.path + ASIDE if self.aside else self.path

    def intact(self) -> bool:
        """Whether the path of a unix socket is ours, or ours to be had back."""
        if not self.path:
            return True
        return unixsocket.is_at(self.place, self.file) and not (self.aside and os.path.lexists(self.path))

    def listen(self, backlog: int) -> None:
        """Listen, although an overlapping address of ours listens too. Raises `OSError`."""
        with _overlap(self.sock, *(rival.sock for rival in self.rivals)):
            if self.address is not None:
                # A port that the kernel chose (port 0) is forgotten when a socket stops listening.
                try:
                    self.sock.bind(self.address)
                except OSError as error:
                    if error.errno != errno.EINVAL:  # it is bound, as it should be
                        raise
                self.address = None
            self.sock.listen(backlog)


@dataclass(slots=True, eq=False)
class Listener:
    """One listening address: usually one socket, two for ``localhost``, any number for ``systemd:NAME``.

    The master may set ``kept`` (True once systemd's store holds the sockets) and writes nothing else.
    """

    text: str
    kind: str
    #: Whether systemd holds copies of the sockets, so that they and their paths have to outlive us.
    kept: bool = False
    #: Whether the sockets are bound but do not listen before the commit; see the head of this module.
    pending: bool = False
    #: Whether newcomers are refused for the time being; see `suspend`.
    suspended: bool = False
    _parts: list[_Part] = field(default_factory=list)
    _settings: Wanted | None = None

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        """The sockets, non-blocking and close-on-exec; shared with every worker, so do not change their flags."""
        return tuple(part.sock for part in self._parts)

    @property
    def addresses(self) -> tuple[str, ...]:
        """What the sockets are really bound to, as text; tells the port where the configuration says 0."""
        return tuple(_text_of(part.sock) for part in self._parts)

    @property
    def storable(self) -> tuple[socket.socket, ...]:
        """The sockets that belong into systemd's store. Those of a .socket unit do not: the unit itself keeps them."""
        return tuple(part.sock for part in self._parts if part.origin is not Origin.ACTIVATION)

    @property
    def store_name(self) -> str:
        """The FDNAME for systemd's store, made of the address; the same for all sockets of this listener.

        Everything but plain characters is escaped as in a URL, because the name must not hold a colon (sd_notify(3)).
        """
        return (
            STORE_PREFIX
            + re.sub(rb"[^\w/.\[\]-]", lambda char: b"%%%02X" % char[0][0], os.fsencode(self.text)).decode()
        )

    def queue(self) -> int | None:
        """How many connections wait to be accepted; None where the kernel does not say. 2 us, 30 for a unix socket.

        With TCP_DEFER_ACCEPT the silent ones are not among them.
        """
        known = [depth for depth in map(_queue, self.sockets) if depth is not None]
        return sum(known) if known else None

    def intact(self) -> bool:
        """Whether newcomers can still reach it: a unix socket is lost once its path is gone or leads elsewhere."""
        return all(part.intact() for part in self._parts)

    def unlink(self) -> bool:
        """Remove the path of a unix socket if it still is ours, and say whether it was. Call it before `close`.

        The path of a .socket unit is never removed: the unit does that if it was told to (RemoveOnStop=).
        """
        removed = False
        for part in self._parts:
            if part.path and part.file is not None and part.origin is not Origin.ACTIVATION and part.lent is None:
                removed |= unixsocket.remove(part.place, part.file)
        return removed

    def close(self) -> None:
        """Close the descriptors of this process. Others that hold the sockets (workers, systemd) are not affected."""
        for part in self._parts:
            part.sock.close()

    def remove(self) -> None:
        """Stop listening in every process at once, remove the path, close: the address is free afterwards.

        What still waits in the accept queue is reset, so let workers empty it first. Without the shutdown, a worker in
        a long request would hold a dropped port (and fill its queue) for as long. A unit's sockets are only closed,
        since a shutdown would end systemd's copy too.
        """
        self.unlink()
        for part in self._parts:
            if part.origin is not Origin.ACTIVATION and part.lent is None:
                with contextlib.suppress(OSError):  # ENOTCONN: it does not listen (any more)
                    part.sock.shutdown(socket.SHUT_RD)
        self.close()

    def suspend(self) -> tuple[str, ...]:
        """Refuse newcomers, in every process at once, and be able to `resume`: for a listener that a reload dropped.

        The previous generation is kept for a rollback, and with it the socket; without this, clients of a dropped
        address would wait in a queue that nobody empties. A TCP socket stops listening (systemd notices, and takes it
        out of its store); a unix socket could not begin again after that, so its path moves aside. A unit's sockets
        stay as they are. Returns sentences for the log about what went wrong.
        """
        if self.suspended:
            return ()
        self.suspended = True
        problems = []
        for part in self._parts:
            if part.origin is Origin.ACTIVATION or part.lent is not None:
                continue
            if part.path and part.file is not None:
                try:
                    unixsocket.move(part.path, part.path + ASIDE, part.file)
                    part.aside = True
                except ListenError as error:
                    problems.append(f"{self.text} is dropped, but new clients still reach it: {error}")
            elif not part.path:
                part.address = part.sock.getsockname()
                with contextlib.suppress(OSError):  # ENOTCONN: it does not listen (any more)
                    part.sock.shutdown(socket.SHUT_RD)
                self.kept = False
        return tuple(problems)

    def resume(self) -> tuple[str, ...]:
        """Undo `suspend` and a reload's borrowing: listen again, next to what overlaps with it if need be.

        Returns sentences for the log about what could not be had back; `intact` and `queue` tell, too.
        """
        for part in self._parts:
            borrower = part.lent
            if borrower is not None and borrower.sock.fileno() >= 0:
                part.lent, borrower.lent = None, part
        if not self.suspended:
            return ()
        self.suspended = False
        problems = []
        for part in self._parts:
            if part.origin is Origin.ACTIVATION or part.lent is not None:
                continue
            try:
                if part.aside and part.file is not None:
                    unixsocket.move(part.place, part.path, part.file)
                    part.aside = False
                elif not part.path:
                    part.listen(self._settings.backlog if self._settings is not None else DEFAULT_BACKLOG)
            except (OSError, ListenError) as error:
                problems.append(f"{self.text} cannot be reached again: {error}")
        return tuple(problems)

    def release(self) -> None:
        """The end of the service: `remove`, or only `close` where systemd keeps the sockets for the next master.

        A master cannot tell a stop from a restart, so a stored unix socket leaves its path behind: a stored socket
        whose path is gone can't be reached by anybody.
        """
        if self.kept and not self.suspended:
            self.close()
        else:
            self.remove()


@dataclass(slots=True, eq=False)
class ListenerSet:
    """What `open_listeners` prepared; nothing that served before has been changed yet.

    Exactly one of `commit` and `rollback` is to be called.
    """

    #: Every wanted listener by its text, in the order wanted: what the new generation serves on.
    listeners: dict[str, Listener]
    #: Those among them that were not among the carried ones.
    opened: tuple[Listener, ...]
    #: Carried ones that nobody wants any more; to be removed by the master when it is done with them.
    dropped: tuple[Listener, ...]
    #: Descriptors from systemd that nobody asked for.
    unused: tuple[Unused, ...]
    _wanted: tuple[Wanted, ...]
    _undo: contextlib.ExitStack

    def commit(self) -> tuple[str, ...]:
        """Put the set into effect: pending listeners listen, suspended ones are resumed, carried ones get a changed
        mode, owner or backlog.

        Never fails; what could not be changed comes back as sentences for the log.
        """
        self._undo.pop_all()
        problems: list[str] = []
        for wanted in self._wanted:
            listener = self.listeners[wanted.listen.text]
            problems += listener.resume()
            try:
                _apply(listener, wanted)
            except (OSError, ListenError) as error:
                problems.append(f"{listener.text}: new settings could not be applied: {error}")
        return tuple(problems)

    def rollback(self) -> None:
        """Close and remove what was bound for this set. What was carried or came from systemd stays as it was."""
        self._undo.close()


def open_listeners(
    wanted: Sequence[Wanted],
    carried: Mapping[str, Listener],
    adopted: Iterable[tuple[int, str]] = (),
) -> ListenerSet:
    """Prepare a listener for each of ``wanted``.

    ``carried`` are the listeners there are, by their text. ``adopted`` are descriptors from systemd with their names,
    activation and store alike (`preforkd.systemd.listen_fds`). Unix owners and groups are looked up by name, which can
    block where accounts live on the network. Raises `ListenError` with one line for each address that cannot be had,
    after undoing everything.
    """
    opening = _Opening(wanted, carried, adopted)
    try:
        return opening.run()
    except BaseException:
        opening.undo.close()
        raise


class _Opening:
    """One run of `open_listeners`: the sockets there are to take, and how to undo what was done so far."""

    def __init__(
        self, wanted: Sequence[Wanted], carried: Mapping[str, Listener], adopted: Iterable[tuple[int, str]]
    ) -> None:
        self.wanted = wanted
        self.carried = carried
        self.adopted = adopted
        self.undo = contextlib.ExitStack()
        self.result: dict[str, Listener] = {}
        #: Descriptors from systemd that are still to be had, with their names; a unit's before the store's.
        self.passed: list[tuple[str, _Part]] = []
        self.unused: list[Unused] = []
        texts = {item.listen.text for item in wanted}
        #: Sockets of carried listeners that nobody wants as they are: another listener may want their address.
        self.spare = {
            _text_of(part.sock): part
            for text, listener in carried.items()
            if text not in texts
            for part in listener._parts
            if part.lent is None
        }

    def run(self) -> ListenerSet:
        self._sort_adopted()
        problems: list[str] = []
        # Names before addresses: a unit's socket that is asked for by name is not there for its address any more.
        for item in sorted(self.wanted, key=lambda item: item.listen.kind != "systemd"):
            text = item.listen.text
            try:
                if text in self.result:
                    raise ListenError(f"cannot listen on {text} twice; name it once")
                self.result[text] = self._carry_over(item) or self._open(item)
            except ListenError as error:
                problems.append(str(error))
        if problems:
            raise ListenError("\n".join(problems))
        taken = {address for listener in self.result.values() for address in listener.addresses}
        for name, part in self.passed:
            double = _text_of(part.sock) in taken
            self._leave(
                name, part, "another socket has the same address" if double else "the configuration does not name it"
            )
        current = set(map(id, self.result.values()))
        return ListenerSet(
            listeners={item.listen.text: self.result[item.listen.text] for item in self.wanted},
            opened=tuple(new for text, new in self.result.items() if self.carried.get(text) is not new),
            dropped=tuple(old for old in self.carried.values() if id(old) not in current),
            unused=tuple(self.unused),
            _wanted=tuple(self.wanted),
            _undo=self.undo,
        )

    def _carry_over(self, item: Wanted) -> Listener | None:
        old = self.carried.get(item.listen.text)
        if old is None or any(part.lent is not None for part in old._parts):
            return None
        if not old.intact() and old.kind != "systemd":  # what a .socket unit owns, only the unit can mend
            return None
        if old.kind == "unix":  # commit must not fail for a name that does not exist
            unixsocket.owner_ids(item.listen.path, item.listen.owner, item.listen.group)
        return old

    def _open(self, item: Wanted) -> Listener:
        listen = item.listen
        listener = Listener(listen.text, listen.kind)
        match listen.kind:
            case "systemd":
                listener._parts = self._named(listen)
            case "unix":
                listener._parts = [self._taken(listen.path) or self._bind_unix(item)]
            case _:
                self._open_tcp(item, listener)
        if all(part.origin is Origin.BOUND for part in listener._parts):
            listener._settings = item
        listener.kept = all(part.origin is not Origin.BOUND for part in listener._parts)
        return listener

    def _bind_unix(self, item: Wanted) -> _Part:
        listen = item.listen
        sock, file = unixsocket.bind(
            listen.path, mode=listen.mode, owner=listen.owner, group=listen.group, backlog=item.backlog
        )
        return self._bound(_Part(sock, Origin.BOUND, listen.path, file))

    def _open_tcp(self, item: Wanted, listener: Listener) -> None:
        hosts = _hosts(item.listen)
        port = item.listen.port
        failure: OSError | None = None
        for host in hosts:
            part = self._taken(_text(host, port)) if port else None
            if part is None:
                try:
                    part = self._bind_tcp(host, port, item, listener)
                except OSError as error:
                    # A machine without IPv6 (or without IPv4) still has the other half of localhost.
                    if len(hosts) == 1 or error.errno not in (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL):
                        raise self._refused(item.listen, host, port, error) from error
                    failure = error
                    continue
            listener._parts.append(part)
            port = part.sock.getsockname()[1]
        if not listener._parts and failure is not None:
            raise self._refused(item.listen, hosts[0], port, failure) from failure

    def _bind_tcp(self, host: str, port: int, item: Wanted, listener: Listener) -> _Part:
        rivals = self._rivals(host, port)
        try:
            part = _Part(_tcp_socket(host, port, item), Origin.BOUND, rivals=rivals)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or not rivals:
                raise
            listening = _is_wildcard(host)
            listener.pending = listener.pending or not listening
            with _overlap(*(rival.sock for rival in rivals)):
                sock = _tcp_socket(host, port, item, overlap=True, listen=listening)
            part = _Part(sock, Origin.BOUND, rivals=rivals)
        for rival in rivals:
            rival.rivals = [*(one for one in rival.rivals if one.sock.fileno() >= 0), part]
        return self._bound(part)

    def _bound(self, part: _Part) -> _Part:
        self.undo.callback(_discard, part)
        return part

    def _rivals(self, host: str, port: int) -> list[_Part]:
        """Our own sockets on the port of which one is bound to the wildcard address and the other is not."""
        found: list[_Part] = []
        for listener in {id(one): one for one in [*self.carried.values(), *self.result.values()]}.values():
            for part in listener._parts:
                if part.sock.family == _family(host):
                    other = part.sock.getsockname()
                    if other[1] == port and _is_wildcard(other[0]) != _is_wildcard(host):
                        found.append(part)
        return found

    def _taken(self, address: str) -> _Part | None:
        """A socket that is already bound to ``address``: systemd's, or one of a listener that is going away."""
        for entry in [entry for entry in self.passed if _text_of(entry[1].sock) == address]:
            name, part = entry
            self.passed.remove(entry)
            if part.intact():
                return _prepared(part)
            self._leave(name, part, "its path is gone")
        lender = self.spare.get(address)
        if lender is None or lender.aside or not lender.intact():
            return None
        del self.spare[address]
        part = _Part(lender.sock.dup(), lender.origin, lender.path, lender.file)
        part.rivals = lender.rivals
        self.undo.callback(part.sock.close)
        lender.lent = part
        self.undo.callback(setattr, lender, "lent", None)
        return part

    def _named(self, listen: Listen) -> list[_Part]:
        """All sockets that a .socket unit passed under a name."""
        units = [entry for entry in self.passed if entry[1].origin is Origin.ACTIVATION]
        found = [entry for entry in units if entry[0] == listen.name]
        if not found:
            others = ", ".join(sorted({name for name, _ in units}))
            raise ListenError(
                f"cannot listen on {listen.text}: systemd passed no listening socket of that name"
                + (f", only {others}" if others else "")
                + f" (set FileDescriptorName={listen.name} in the .socket unit, and let that start the service)"
            )
        for entry in found:
            self.passed.remove(entry)
        return [_prepared(part) for _, part in found]

    def _sort_adopted(self) -> None:
        """Make parts of systemd's descriptors; what is no listening stream socket is reported and left alone."""
        for fd, name in self.adopted:
            problem = _not_listening(fd)
            if problem:
                self.unused.append(Unused(fd, name, problem, name.startswith(STORE_PREFIX)))
                continue
            sock = socket.socket(fileno=fd)
            self.undo.callback(sock.detach)
            origin = Origin.STORE if name.startswith(STORE_PREFIX) else Origin.ACTIVATION
            address = _text_of(sock)
            path = address if address.startswith("/") else ""
            file = unixsocket.identify(sock) if path else None
            self.passed.append((name, _Part(sock, origin, path, file)))
        self.passed.sort(key=lambda entry: entry[1].origin is Origin.STORE)

    def _leave(self, name: str, part: _Part, why: str) -> None:
        fd = part.sock.detach()
        self.unused.append(Unused(fd, name, why, part.origin is Origin.STORE))

    def _refused(self, listen: Listen, host: str, port: int, error: OSError) -> ListenError:
        """The sentence for an address that the kernel refuses, with what to do about it."""
        address = _text(host, port)
        name = listen.text if address == listen.text else f"{listen.text} ({address})"
        advice = ""
        match error.errno:
            case errno.EACCES | errno.EPERM:
                advice = "a port below 1024 needs root or the capability CAP_NET_BIND_SERVICE; choose a higher one"
            case errno.EADDRINUSE:
                advice = self._who_has(address, port)
            case errno.EADDRNOTAVAIL:
                advice = "no network interface of this machine has the address; `ip address` shows those there are"
            case errno.EAFNOSUPPORT:
                advice = f"this machine has {'IPv6' if ':' in host else 'IPv4'} switched off; remove the address"
            case errno.EMFILE | errno.ENFILE:
                advice = "no descriptor is left; raise LimitNOFILE= or `ulimit -n`"
        return ListenError(f"cannot bind {name}: {error.strerror or error}" + (f" ({advice})" if advice else ""))

    def _who_has(self, address: str, port: int) -> str:
        for text, listener in self.result.items():
            if address in listener.addresses:
                return f"{text} of the same configuration has it; remove one of the two"
        found = _process_on(port)
        return f"{found} listens there" if found else f"`ss -ltnp sport = :{port}` names the process that listens there"


def _tcp_socket(host: str, port: int, item: Wanted, overlap: bool = False, listen: bool = True) -> socket.socket:
    """A bound TCP socket. Raises `OSError`."""
    family = _family(host)
    sock = socket.socket(family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
    try:
        # A restart must not wait for the connections of the last run to leave TIME_WAIT; it does not let anybody bind
        # a port on which somebody listens.
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # Always the same, whatever net.ipv6.bindv6only says: [::]:80 is IPv6, 0.0.0.0:80 is IPv4.
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, int(overlap))
        _tune(sock, item.defer_accept)
        flags = socket.AI_NUMERICHOST | socket.AI_NUMERICSERV  # no name server is asked
        sock.bind(socket.getaddrinfo(host, port, family, socket.SOCK_STREAM, flags=flags)[0][4])
        if listen:
            sock.listen(item.backlog)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)
    except BaseException:
        sock.close()
        raise
    return sock


def _tune(sock: socket.socket, defer_accept: int | None) -> None:
    """Set what accepted connections inherit, and the deferring of silent ones (None: leave it as it is)."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if defer_accept is not None:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, defer_accept)


@contextlib.contextmanager
def _overlap(*socks: socket.socket) -> Iterator[None]:
    """Let these sockets share their port for a moment."""
    there = [sock for sock in socks if sock.fileno() >= 0 and not _is_unix(sock)]
    try:
        for sock in there:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        yield
    finally:
        for sock in there:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 0)


def _prepared(part: _Part) -> _Part:
    """Give a socket from systemd the flags that ours are created with."""
    part.sock.setblocking(False)
    part.sock.set_inheritable(False)
    if not _is_unix(part.sock):
        _tune(part.sock, None)
    return part


def _apply(listener: Listener, wanted: Wanted) -> None:
    """Give the sockets of a listener the settings of ``wanted`` if they have others. `OSError`, `ListenError`."""
    if listener._settings == wanted and not listener.pending:
        return
    for part in listener._parts:
        if part.origin is Origin.ACTIVATION:
            continue
        part.listen(wanted.backlog)  # on a listening socket this changes the length of its queue
        if not _is_unix(part.sock):
            _tune(part.sock, wanted.defer_accept)
        elif part.file is not None and wanted.listen.kind == "unix":
            ids = unixsocket.owner_ids(part.path, wanted.listen.owner, wanted.listen.group)
            unixsocket.set_access(part.place, part.file, wanted.listen.mode, *ids)
    listener.pending = False
    listener._settings = wanted


def _discard(part: _Part) -> None:
    """Undo a bind."""
    if part.file is not None:
        unixsocket.remove(part.path, part.file)
    part.sock.close()


def _queue(sock: socket.socket) -> int | None:
    if _is_unix(sock):
        return unixsocket.queue(sock)
    try:
        (waiting,) = _TCPI_UNACKED.unpack(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCPI_UNACKED.size))
    except OSError:
        return None
    return int(waiting)


def _not_listening(fd: int) -> str:
    """Why a descriptor is no listening stream socket; "" if it is one."""
    try:
        if not stat.S_ISSOCK(os.fstat(fd).st_mode):
            return "it is no socket"
    except OSError as error:
        return f"it cannot be used: {error.strerror}"
    sock = socket.socket(fileno=fd)
    try:
        if sock.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX) or sock.type != socket.SOCK_STREAM:
            return "it is no stream socket (ListenStream= in the .socket unit makes one)"
        if not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            return "it does not listen (Accept=no in the .socket unit passes the listening socket itself)"
        return ""
    finally:
        sock.detach()


def _hosts(listen: Listen) -> Sequence[str]:
    """The numeric addresses of a TCP listener, IPv4 first. Raises `ListenError`."""
    if listen.host == "localhost":
        return _LOCALHOST
    try:
        return (str(ipaddress.ip_address(listen.host)),)
    except ValueError:
        raise ListenError(
            f"cannot bind {listen.text}: host names are not looked up, because a slow name server would hold up "
            "a reload; use a numeric address or `localhost`"
        ) from None


def _is_wildcard(host: str) -> bool:
    return host in ("0.0.0.0", "::")


def _is_unix(sock: socket.socket) -> bool:
    return sock.family == socket.AF_UNIX


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET


def _text(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _text_of(sock: socket.socket) -> str:
    """The address a socket is bound to, in one spelling: ``1.2.3.4:80``, ``[::1]:80``, ``/run/x``, ``@abstract``."""
    name = sock.getsockname()
    if isinstance(name, bytes):
        return "@" + os.fsdecode(name[1:])
    if isinstance(name, str):
        return name
    host, port, *rest = name
    scope = rest[1] if len(rest) > 1 else 0
    if scope and "%" not in host:
        with contextlib.suppress(OSError):
            host = f"{host}%{socket.if_indextoname(scope)}"
    return _text(host, port)


def _process_on(port: int) -> str:
    """Which process listens on a TCP port, as far as we may see: ``nginx (pid 812)``, or ""."""
    inodes = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError), open(table) as lines:
            for line in lines:
                # sl local_address rem_address st ... inode; state 0A is LISTEN (proc(5))
                columns = line.split()
                if len(columns) > 9 and columns[3] == "0A" and columns[1].endswith(f":{port:04X}"):
                    inodes.add(f"socket:[{columns[9]}]")
    for pid in filter(str.isdecimal, os.listdir("/proc") if inodes else ()):
        with contextlib.suppress(OSError):
            for fd in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    if os.readlink(f"/proc/{pid}/fd/{fd}") in inodes:
                        with open(f"/proc/{pid}/comm") as comm:
                            return f"{comm.read().strip()} (pid {pid})"
    return ""
