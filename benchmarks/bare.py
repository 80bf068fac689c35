"""What Python itself allows on this machine: processes that read, write a fixed answer, and check nothing.

A yardstick, not a server: it parses no request, knows no application, no limit and no deadline, and takes whatever it
has read for exactly one request. A server in Python may come near it; none can do with less.
"""

from __future__ import annotations

import os
import select
import socket
import sys

from benchmarks.forked import forked

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 14\r\n\r\nHello, world!\n"
_LAST = _ANSWER.replace(b"\r\n", b"\r\nConnection: close\r\n", 1)


def _answer(fd: int) -> bool:
    """False when the connection is over. Looks for the one header field that changes what happens to it."""
    try:
        data = os.read(fd, 65536)
        last = b"Connection: close" in data
        if data:
            os.write(fd, _LAST if last else _ANSWER)
    except ConnectionError:
        return False
    return bool(data) and not last


def _serve(listener: socket.socket) -> None:
    poll, door = select.epoll(), listener.fileno()
    poll.register(door, select.EPOLLIN | select.EPOLLEXCLUSIVE)
    while True:
        for fd, _ in poll.poll(-1, 64):
            if fd == door:
                try:
                    # A bare descriptor: a socket object would cost more than the answer.
                    new, _ = listener._accept()  # type: ignore[attr-defined]  # not in typeshed
                except BlockingIOError:
                    continue  # another process was faster
                # Read at once: the listener's TCP_DEFER_ACCEPT has waited for the request.
                if _answer(new):
                    poll.register(new, select.EPOLLIN)
                else:
                    os.close(new)
            elif not _answer(fd):
                # Nobody else has this file open, so this takes it out of the poll set, too.
                os.close(fd)


def main(port: int, processes: int, backlog: int) -> None:
    """Serves on a port of the loopback device until TERM."""
    with socket.create_server(("127.0.0.1", port), backlog=backlog) as listener:
        listener.setblocking(False)
        # Accepted sockets inherit both (tcp(7)).
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        forked(processes, lambda: _serve(listener))


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
