"""How a new process of ours settles in: its title, its output, its user, its limits. Template and workers only."""

from __future__ import annotations

import os
import signal
import sys

import setproctitle

from preforkd import privileges
from preforkd.logs import TaggedStream
from preforkd.worker.estate import Estate


def set_title(text: str) -> None:
    """Show ``preforkd: text`` in ps(1). Text from clients is escaped: newlines and escapes would pass through."""
    setproctitle.setproctitle("preforkd: " + text.encode("unicode_escape").decode("ascii"))


def tag_output(estate: Estate, who: str) -> None:
    """Send what the application prints to the error log, each line tagged with who printed it.

    Descriptors 1 and 2 go there too, untagged, for whatever writes to them directly: faulthandler, subprocesses, C code.
    """
    events = estate.logs.events.bound(pool=estate.pool.name, worker=who, pid=os.getpid())
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, TaggedStream):
            stream.reset(events)
        else:
            setattr(sys, name, TaggedStream(events, name))
    raw = estate.logs.events.fileno()
    if raw is not None:
        for descriptor in (1, 2):
            if raw != descriptor:
                os.dup2(raw, descriptor)


def become(estate: Estate) -> None:
    """Give up root, set the limits, change the directory. In the template, before a line of the application is imported.

    Raises:
        PrivilegeError, OSError: with what was tried.
    """
    pool = estate.pool
    privileges.set_limits(pool.limits.files, pool.limits.core)
    if estate.identity is not None:
        privileges.drop(estate.identity)
    else:
        privileges.set_no_new_privs()
    # The kernel forgets it when credentials change, so it comes after them; whoever was faster is looked for by the caller.
    privileges.set_pdeathsig(signal.SIGKILL)
    os.umask(pool.umask if pool.umask is not None else 0o022)
    if pool.directory:
        try:
            os.chdir(pool.directory)
        except OSError as error:
            why = privileges.why_unreadable(pool.directory, estate.identity)
            raise privileges.PrivilegeError(
                f"cannot enter directory {pool.directory}: {error.strerror}" + (f": {why}" if why else "")
            ) from None
