"""bjoern as its documentation shows it for several processes: one listener, forked, and its loop in each child."""

from __future__ import annotations

import socket
import sys

import bjoern  # type: ignore[import-not-found,import-untyped,unused-ignore]

from benchmarks import apps
from benchmarks.forked import forked


def main(port: int, processes: int, backlog: int) -> None:
    """Serves until TERM. bjoern itself has no command and no parent."""
    listener = bjoern.listen(apps.application, "127.0.0.1", port, listen_backlog=backlog)
    # Inherited by what is accepted (tcp(7)). Without it every file waits for a delayed acknowledgement, 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    forked(processes, lambda: bjoern.server_run(listener, apps.application))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
