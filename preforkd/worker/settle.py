"""How a new process of ours settles in: its title, its output, its user, its limits. Template and workers only."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from types import FrameType
from typing import TYPE_CHECKING

import setproctitle

from preforkd import privileges
from preforkd.config import Pool
from preforkd.errors import PrivilegeError
from preforkd.estate import Estate
from preforkd.logs import EventLog, TaggedStream
from preforkd.privileges import Identity

if TYPE_CHECKING:
    from preforkd.tls import ServerTls


def set_title(text: str) -> None:
    """Show ``preforkd: text`` in ps(1). Text from clients is escaped: newlines and escapes would pass through."""
    setproctitle.setproctitle("preforkd: " + text.encode("unicode_escape").decode("ascii"))


def overhear() -> None:
    """Do nothing at signals that are meant for the master, as from ``pkill -USR1 preforkd`` or from a terminal, whose
    default actions would end or stop this process. Handlers, because what is ignored stays so in programs that the
    application starts."""
    for signum in (signal.SIGHUP, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGTTIN, signal.SIGTTOU):
        signal.signal(signum, _nothing)


def _nothing(signum: int, frame: FrameType | None) -> None:
    pass


def tag_output(estate: Estate, who: str) -> None:
    """Send what the application prints to the error log, each line tagged with who printed it.

    Descriptors 1 and 2 go there too, untagged, for whatever writes to them directly: faulthandler, subprocesses, C
    code.
    """
    events = estate.logs.events.bound(pool=estate.pool.name, worker=who, pid=os.getpid())
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, TaggedStream):
            # The same object, because loggers that were set up at import hold on to it.
            stream.reset()
            stream.rebind(events)
        else:
            setattr(sys, name, TaggedStream(events, name))
    # After a rotation `Logs.adopt` sees to these copies, too.
    raw = estate.logs.events.fileno()
    for descriptor in (1, 2):
        if raw != descriptor:
            os.dup2(raw, descriptor)


def open_tls(pool: Pool, events: EventLog) -> Mapping[str, ServerTls]:
    """What the pool's listeners speak TLS with, by `Listen.text`; with a warning for certificates that end soon.

    Before `become`, which may take the right to read keys away.

    Raises:
        TlsError: with every problem of a listener.
    """
    if all(listen.tls is None for listen in pool.listen):
        return {}
    # OpenSSL costs some milliseconds and a megabyte, and most have a proxy in front.
    from preforkd import tls

    servers = tls.listeners_tls(pool.listen)
    now = time.time()
    for file, ends in sorted({(one.file, one.ends) for server in servers.values() for one in server.certificates}):
        if ends < now + tls.EXPIRES_SOON:
            events.warning(
                "certificate_expires", pool=pool.name, file=file, when=tls.day(ends), hint="renew it and reload"
            )
    return servers


def become(pool: Pool, identity: Identity) -> None:
    """Give up root, set the limits, change the directory. In the template, before a line of the application is
    imported.

    Raises:
        PrivilegeError: with what was tried.
    """
    privileges.set_limits(pool.limits.files, pool.limits.core)
    privileges.drop(identity)
    if pool.limits.core:
        privileges.set_dumpable(True)
    # The kernel forgets it when credentials change, so it comes after them; whoever was faster is looked for by the
    # caller.
    privileges.set_pdeathsig(signal.SIGKILL)
    if pool.umask is not None:
        os.umask(pool.umask)
    if pool.directory:
        try:
            os.chdir(pool.directory)
        except OSError as error:
            why = privileges.why_unreadable(pool.directory, identity)
            raise PrivilegeError(
                f"cannot enter directory {pool.directory}: {error.strerror}" + (f": {why}" if why else "")
            ) from None
