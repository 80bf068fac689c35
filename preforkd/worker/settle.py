"""How a new process of ours settles in: its title, its output, its user, its limits. Template and workers only."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

import setproctitle

from preforkd import privileges
from preforkd.config import Pool
from preforkd.errors import PrivilegeError
from preforkd.estate import Estate
from preforkd.logs import TaggedStream
from preforkd.privileges import Identity


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
