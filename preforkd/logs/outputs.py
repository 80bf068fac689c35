"""Where bytes go: a descriptor (file, pipe, terminal, socket) or a datagram socket; whole lines, never blocking long.

Several processes write into the same file at once. What keeps their lines apart:

* a regular file is open with O_APPEND, and the kernel holds the inode's lock during a write: lines neither mix nor
  vanish, whatever their length (open(2), "O_APPEND");
* a pipe takes up to PIPE_BUF bytes in one piece (pipe(7)), so longer lines must be cut by the caller: see `limit`;
* a datagram is a whole.

A pipe whose reader stopped, or a terminal after Ctrl-S, would block us. O_NONBLOCK belongs to the open file, which is
shared with whoever started us, so it must not be set on descriptor 1 or 2; we open our own (through /proc/self/fd) and
use it there. Where that is refused, we ask poll(2) first, which leaves a race between several writers that can block
one of them until the reader goes on.
"""

from __future__ import annotations

import errno
import fcntl
import os
import select
import socket
import stat
import struct
import time

#: How long one write may wait for a slow reader. Long enough for a reader that was merely not scheduled, short enough
#: for a master that has to answer its children. After a line was lost nobody waits again until a write has succeeded.
PATIENCE = 0.2

#: pipe(7): more than this may be mixed with what others write.
PIPE_BUF = select.PIPE_BUF


class Output:
    """A descriptor that takes whole lines; the number never changes, also when the file behind it does.

    Any process. `write` raises OSError when the data could not be written (BlockingIOError: in time), and nobody is to
    conclude from that that nothing was written.
    """

    __slots__ = ("_ask", "_own", "_peer", "_torn", "fd", "limit", "what")

    def __init__(self, fd: int, what: str, *, own: bool) -> None:
        """Write to ``fd``, which is called ``what`` in messages; ``own``: `close` closes it."""
        self.what = what
        self.fd = fd
        self._own = own
        self._torn = False
        self._ask = False
        self._peer: socket.socket | None = None  # where the descriptor is a socket: one of our own for the same
        #: The longest write that stays in one piece, in bytes; 0: any.
        self.limit = 0
        self.look()

    @classmethod
    def standard(cls, fd: int, what: str) -> Output:
        """The standard output or error as it is now, by a descriptor of our own, and not to be blocked by its reader.

        Of our own also because a worker puts other things at 1 and 2.
        """
        again = -1
        # A regular file must keep the offset that it shares with its other writers, so it is not opened again.
        if stat.S_ISFIFO(os.fstat(fd).st_mode) or os.isatty(fd):
            try:
                again = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            except OSError:  # no /proc, no reader, or a terminal of somebody else (su): poll first
                pass
        if again < 0:
            again = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
        return cls(above_standard(again), what, own=True)

    def look(self) -> None:
        """Find out what is behind the descriptor; call it after a dup2 onto it."""
        self._torn = False
        self._drop_peer()
        try:
            kind = os.fstat(self.fd).st_mode
            flags = fcntl.fcntl(self.fd, fcntl.F_GETFL)
        except OSError:  # closed: every write will say so
            self.limit, self._ask = 0, False
            return
        if stat.S_ISSOCK(kind):  # only send(2) can be told not to block this once
            self._peer = socket.socket(fileno=fcntl.fcntl(self.fd, fcntl.F_DUPFD_CLOEXEC, 3))
        slow = stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)
        self.limit = PIPE_BUF if stat.S_ISFIFO(kind) else 0
        self._ask = slow and not flags & os.O_NONBLOCK

    @property
    def quick(self) -> bool:
        """Whether a bare ``os.write(fd, line)`` of at most `limit` bytes is all that `write` would do."""
        return not (self._ask or self._peer or self._torn or self.fd < 0)

    def write(self, data: bytes, patient: bool = True, done: int = 0) -> None:
        """Write all of ``data`` from ``done`` on; in one system call unless the other side is slow."""
        if self._torn:  # part of a line was written, then the disk was full: do not write on at its end
            data = b"\n" + data
        give_up = 0.0
        while True:
            try:
                done += self._write(data[done:] if done else data)
                if done >= len(data):
                    self._torn = False
                    return
            except BlockingIOError:
                if not patient:
                    self._torn = self._torn or done > 0
                    raise
            except OSError:
                self._torn = self._torn or done > 0
                raise
            now = time.monotonic()
            give_up = give_up or now + PATIENCE
            if now >= give_up:
                self._torn = self._torn or done > 0
                raise BlockingIOError(errno.EAGAIN, "its reader does not read")
            self._writable(give_up - now)

    def _write(self, data: bytes) -> int:
        if self._peer is not None:
            return self._peer.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
        if self._ask and not self._writable(0):
            raise BlockingIOError(errno.EAGAIN, "its reader does not read")
        return os.write(self.fd, data)

    def _writable(self, seconds: float) -> bool:
        poll = select.poll()
        poll.register(self.fd, select.POLLOUT)
        return bool(poll.poll(seconds * 1000))

    def is_null(self) -> bool:
        """Whether what is written here is thrown away (``/dev/null``, or closed)."""
        try:
            found = os.fstat(self.fd)
        except OSError:
            return True
        return stat.S_ISCHR(found.st_mode) and found.st_rdev == os.makedev(1, 3)

    def replace(self, new: int) -> None:
        """Put the open file ``new`` behind our number (dup2: no moment without a file) and close ``new``.

        Where the same file is our standard output or error, as in workers, it is replaced there too.
        """
        try:
            copies = [fd for fd in (1, 2) if _same_file(fd, self.fd)]
            os.dup2(new, self.fd, inheritable=False)
            for fd in copies:
                os.dup2(new, fd)
        finally:
            os.close(new)
        self.look()

    def descriptors(self) -> list[int]:
        """What has to stay open for `write` to work, beyond 0, 1 and 2."""
        found = [self.fd] if self._peer is None else [self.fd, self._peer.fileno()]
        return [fd for fd in found if fd > 2]

    def close(self) -> None:
        """Close what is ours. A later `write` fails with EBADF, whoever has the number then."""
        fd, self.fd = self.fd, -1
        self.limit, self._ask = 0, False
        self._drop_peer()
        if self._own and fd >= 0:
            os.close(fd)

    def _drop_peer(self) -> None:
        if self._peer is not None:
            self._peer.close()
            self._peer = None


class Datagrams:
    """A socket for whoever reads datagrams at ``path``: journald, syslogd.

    It is not connected: each datagram looks the path up, so that a daemon that was restarted is found again without a
    line of code. Any process, any user who may write to the socket.
    """

    __slots__ = ("_socket", "path")

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        if self._socket.fileno() <= 2:
            self._socket = socket.socket(fileno=above_standard(self._socket.detach()))
        # The kernel's own limit, because poll(2) knows nothing of the queue of a peer that we are not connected to.
        seconds = struct.pack("@ll", 0, int(PATIENCE * 1e6))
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, seconds)

    def send(self, data: bytes, patient: bool = True, pass_fd: int | None = None) -> None:
        """Send one datagram, perhaps with a descriptor. Raises OSError; EMSGSIZE or ENOBUFS if it is too long."""
        extra = [] if pass_fd is None else [(socket.SOL_SOCKET, socket.SCM_RIGHTS, struct.pack("@i", pass_fd))]
        self._socket.sendmsg([data] if data else [], extra, 0 if patient else socket.MSG_DONTWAIT, self.path)

    def descriptors(self) -> list[int]:
        fd = self._socket.fileno()
        return [fd] if fd >= 0 else []

    def close(self) -> None:
        self._socket.close()


def _same_file(one: int, other: int) -> bool:
    try:
        return os.path.samestat(os.fstat(one), os.fstat(other))
    except OSError:  # one of them is closed
        return False


def above_standard(fd: int) -> int:
    """``fd``, moved above 2 where 0, 1 or 2 was free: whoever writes to "stderr" must not meet our file there."""
    if fd > 2:
        return fd
    try:
        return fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(fd)


def is_journal_stream(fd: int, announced: str) -> bool:
    """Whether ``fd`` is the stream to the journal that systemd announced in ``$JOURNAL_STREAM`` (systemd.exec(5)).

    The variable alone does not say so: the stream may have been redirected since.
    """
    try:
        found = os.fstat(fd)
    except OSError:
        return False
    return announced == f"{found.st_dev}:{found.st_ino}"
