"""The only fork. The child starts clean and always leaves by ``os._exit``.

The child runs *inside* the parent's stack instead of unwinding to ``main``: unwinding would run the parent's ``with``
and ``finally`` blocks in the child, and an inherited ``atexit`` would run on ``sys.exit`` (python-daemon registers its
clean-up that way). The parent's objects stay referenced by the frames below, so none of them is collected and closes a
descriptor whose number the child has given to something else.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable

#: Signals that some process of ours handles; a child starts with their default action.
HANDLED = (
    signal.SIGTERM,
    signal.SIGINT,
    signal.SIGQUIT,
    signal.SIGHUP,
    signal.SIGUSR1,
    signal.SIGUSR2,
    signal.SIGWINCH,
    signal.SIGTTIN,
    signal.SIGTTOU,
    signal.SIGCHLD,
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGSTKFLT,
)


def fork_child(run: Callable[[], int], keep: Iterable[int] | None = None) -> int:
    """Fork a child that calls ``run`` and leaves with its result as exit code. Returns the child's pid, in the parent.

    Args:
        run: the child's life. What it raises is printed to descriptor 2 and becomes exit code 1.
        keep: descriptors that the child keeps beside 0, 1 and 2; every other is closed. None keeps all.

    Signals are blocked over the fork, so that no handler of the parent ever runs in the child.

    Raises:
        OSError: EAGAIN or ENOMEM when the system has no process to give.
    """
    # What is still buffered here would come out of the child once more.
    _flush()
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        with warnings.catch_warnings():
            # Python 3.12 and newer warn when threads are about. Whether that is safe is decided by the template's look
            # at what an import left behind, and by `preload: always`; here the decision has been taken.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            _live(run, keep, blocked)
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
    return pid


def _live(run: Callable[[], int], keep: Iterable[int] | None, mask: set[int | signal.Signals]) -> None:
    code = 1
    try:
        signal.set_wakeup_fd(-1)
        for signum in HANDLED:
            signal.signal(signum, signal.SIG_DFL)
        if keep is not None:
            close_others(keep)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        code = run()
    except SystemExit as leaving:
        code = leaving.code if isinstance(leaving.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        try:
            _flush()
        finally:
            os._exit(code)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        # None where the descriptor was closed when the interpreter started (``preforkd run >&-``); an application may
        # have put anything there; and whoever read it may be gone.
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()


def close_others(keep: Iterable[int]) -> None:
    """Close every descriptor above 2 that is not in ``keep``. Child only, right after the fork."""
    low = 3
    for descriptor in sorted({fd for fd in keep if fd > 2}):
        if descriptor > low:
            os.closerange(low, descriptor)
        low = descriptor + 1
    os.closerange(low, _highest() + 1)


def _highest() -> int:
    try:
        return max(int(name) for name in os.listdir("/proc/self/fd"))
    except OSError:
        return int(os.sysconf("SC_OPEN_MAX"))
