"""A parent for servers that have none of their own: it forks some processes, and they end with it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

_END = {signal.SIGTERM, signal.SIGINT}


def forked(processes: int, serve: Callable[[], object]) -> None:
    """Calls ``serve`` in so many children, which TERM ends; returns after it."""
    children = []
    for _ in range(processes):
        pid = os.fork()
        if not pid:
            try:
                serve()
            finally:
                os._exit(1)
        children.append(pid)
    signal.pthread_sigmask(signal.SIG_BLOCK, _END)
    signal.sigwait(_END)
    for pid in children:
        os.kill(pid, signal.SIGTERM)
    for pid in children:
        os.waitpid(pid, 0)
