"""What passes between the master and systemd: notifications, watchdog, passed sockets, the own cgroup.

sd_notify(3) is one datagram with lines of ``NAME=value``; that is less code than the libraries for it cost, and none of
them sends descriptors. Nothing here raises or blocks: a master must not stumble over its supervisor. Without systemd
every call is a cheap no.

Two traps. ``LISTEN_FDS`` and its like must not be removed from ``os.environ`` before setproctitle has looked at the
environment (call ``getproctitle()`` first of all), else titles silently do not work; so nothing here touches
``os.environ``, and workers get their environment from `without_ours`. And after an execve in place the variables are
still there while the descriptors they name are others: whoever re-executes hands its sockets on itself.
"""

from __future__ import annotations

import array
import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterable, Mapping
from typing import NamedTuple

#: The first descriptor that systemd passes, sd_listen_fds(3).
FIRST_FD = 3

#: Variables by which systemd speaks to the one process it started; children must not think they are meant.
VARIABLES = frozenset(
    {
        "FDSTORE",
        "LISTEN_FDNAMES",
        "LISTEN_FDS",
        "LISTEN_PID",
        "LISTEN_PIDFDID",
        "NOTIFY_SOCKET",
        "WATCHDOG_PID",
        "WATCHDOG_USEC",
    }
)

#: Descriptors one message can carry: SCM_MAX_FD of the kernel.
FDS_PER_MESSAGE = 253


class Passed(NamedTuple):
    """A descriptor that systemd passed, and its name (``FileDescriptorName=``, or the FDNAME it was stored under)."""

    fd: int
    name: str


class Notifier:
    """Sends notifications. Master only: with NotifyAccess=main nobody else is listened to.

    Every method says whether systemd has got the message: False without systemd, and False if its queue was full, in
    which case the caller says it again at its next turn.
    """

    def __init__(self, address: str = "") -> None:
        """``address`` is a path, or ``@name`` for the abstract namespace; "" makes a notifier that does nothing."""
        #: Why there is an address but no notification, for the log; "" if all is well.
        self.problem = ""
        self._address: str | bytes = ""
        # Kept open, because a shortage of descriptors must not look like a hang to the watchdog.
        self._sock: socket.socket | None = None
        if not address:
            return
        if address.startswith("@"):
            self._address = b"\0" + os.fsencode(address[1:])
        elif address.startswith("/"):
            self._address = address
        else:
            self.problem = f"NOTIFY_SOCKET={address} is neither a path nor @name: systemd is not told anything"
            return
        try:
            self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK)
        except OSError as error:
            self.problem = f"no socket to notify systemd: {error.strerror}"

    @classmethod
    def from_environment(cls, environ: Mapping[str, str]) -> Notifier:
        """A notifier for NOTIFY_SOCKET; one that does nothing where it is missing. Leaves ``environ`` alone."""
        return cls(environ.get("NOTIFY_SOCKET", ""))

    @property
    def enabled(self) -> bool:
        """Whether there is somebody to notify."""
        return self._sock is not None

    def fileno(self) -> int:
        """The descriptor, -1 if there is none; forked children close it."""
        return self._sock.fileno() if self._sock is not None else -1

    def close(self) -> None:
        """Notify nobody any more."""
        if self._sock is not None:
            self._sock.close()
            self._sock = None

    def ready(self, status: str = "") -> bool:
        """The service serves; also ends a reload, whether it succeeded or not."""
        return self._send("READY=1", *_status(status))

    def reloading(self, status: str = "") -> bool:
        """A reload began. A `ready` has to follow, also after a failure, or the unit stays in ``reloading``."""
        # systemd compares the time with that of its own request, so that an old message cannot end a new reload.
        return self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}", *_status(status))

    def stopping(self, status: str = "") -> bool:
        """The service began to stop."""
        return self._send("STOPPING=1", *_status(status))

    def status(self, text: str) -> bool:
        """One line for ``systemctl status``: the load, or the last failure."""
        return self._send(f"STATUS={_one_line(text)}")

    def watchdog(self) -> bool:
        """The loop turns. At least every `watchdog_interval` seconds."""
        return self._send("WATCHDOG=1")

    def extend_timeout(self, seconds: float) -> bool:
        """Starting, reloading or stopping needs ``seconds`` more from now on; to be said again before they are over."""
        return self._send(f"EXTEND_TIMEOUT_USEC={round(seconds * 1e6)}")

    def mainpid(self, pid: int) -> bool:
        """Another process is the main one from now on."""
        return self._send(f"MAINPID={pid}")

    def store(self, fds: Iterable[int], name: str) -> bool:
        """Put descriptors into the store, under a name without colons: they come back with LISTEN_FDS.

        systemd drops copies of what it holds already. It needs FileDescriptorStoreMax= in the unit.
        """
        numbers = list(fds)
        sent = bool(numbers)
        for start in range(0, len(numbers), FDS_PER_MESSAGE):
            some = numbers[start : start + FDS_PER_MESSAGE]
            sent &= self._send("FDSTORE=1", f"FDNAME={_fd_name(name)}", fds=some)
        return sent

    def store_remove(self, name: str) -> bool:
        """Take everything out of the store that has this name."""
        return self._send("FDSTOREREMOVE=1", f"FDNAME={_fd_name(name)}")

    def _send(self, *lines: str, fds: Iterable[int] = ()) -> bool:
        if self._sock is None:
            return False
        data = "\n".join(lines).encode(errors="replace")
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            self._sock.sendmsg([data], ancillary, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL, self._address)
        # EAGAIN: the queue is full. ECONNREFUSED, ENOENT: systemd is being re-executed. EBADF: one of the descriptors.
        # ValueError: a path too long, or with a zero byte.
        except (OSError, ValueError):
            return False
        return True


def watchdog_interval(environ: Mapping[str, str]) -> float | None:
    """How often, in seconds, to call `Notifier.watchdog`; None if systemd does not watch this process.

    Half of the unit's WatchdogSec=, as sd_watchdog_enabled(3) advises.
    """
    microseconds, pid = _number(environ, "WATCHDOG_USEC"), _number(environ, "WATCHDOG_PID")
    if not microseconds or (pid is not None and pid != os.getpid()):
        return None
    return microseconds / 2e6


def listen_fds(environ: Mapping[str, str]) -> list[Passed]:
    """The descriptors systemd passed to this very process, by activation and out of the store.

    They are close-on-exec from now on. Call it before anything changes the pid or opens descriptors. Those without a
    name are called ``unknown``, as sd_listen_fds_with_names(3) has it. Numbers that are not open are left out.
    """
    count = _number(environ, "LISTEN_FDS")
    if _number(environ, "LISTEN_PID") != os.getpid() or not count:
        return []
    names = environ["LISTEN_FDNAMES"].split(":") if environ.get("LISTEN_FDNAMES") else []
    passed = []
    for index in range(count):
        fd = FIRST_FD + index
        try:
            fcntl.fcntl(fd, fcntl.F_SETFD, fcntl.fcntl(fd, fcntl.F_GETFD) | fcntl.FD_CLOEXEC)
        except OSError as error:
            if error.errno == errno.EBADF:
                continue
            raise
        passed.append(Passed(fd, (names[index] if index < len(names) else "") or "unknown"))
    return passed


def without_ours(environ: Mapping[str, str]) -> dict[str, str]:
    """A copy without the variables that are meant for the master alone: the environment for workers and templates."""
    return {name: value for name, value in environ.items() if name not in VARIABLES}


def booted() -> bool:
    """Whether systemd runs this machine or container, sd_booted(3)."""
    return os.path.isdir("/run/systemd/system")


def own_cgroup(*, listing: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> str | None:
    """The directory of the cgroup that systemd made for this service; None if this process is in no service's own.

    A shell's session, a container's root or ``/`` are no answer: there live processes that are none of our business.
    """
    try:
        with open(listing) as lines:
            entries = [line.rstrip("\n").split(":", 2) for line in lines]
    except OSError:
        return None
    for entry in entries:
        if len(entry) != 3:
            continue
        number, controllers, path = entry
        if not path.endswith(".service"):
            continue
        # The unified hierarchy is 0::/path. Older machines have systemd's own, 1:name=systemd:/path, too or instead.
        places = (mount, f"{mount}/unified") if (number, controllers) == ("0", "") else (f"{mount}/systemd",)
        if (number, controllers) != ("0", "") and controllers != "name=systemd":
            continue
        for place in places:
            if os.path.exists(f"{place}{path}/cgroup.procs"):
                return f"{place}{path}"
    return None


def cgroup_pids(*, listing: str = "/proc/self/cgroup", mount: str = "/sys/fs/cgroup") -> frozenset[int]:
    """The other processes in this service's cgroup; empty where there is no service.

    Read by a new master first of all, these are what the last one left behind: its orphaned workers and what they
    started. Later there are its own children among them, and commands of the unit (ExecReload=). A pid may be another
    process by the time it is signaled: open a pidfd, then see whether the pid is still in here.
    """
    directory = own_cgroup(listing=listing, mount=mount)
    if directory is None:
        return frozenset()
    try:
        with open(f"{directory}/cgroup.procs") as lines:
            # 0 stands for a process of another pid namespace.
            return frozenset(int(line) for line in lines) - {0, os.getpid()}
    except (OSError, ValueError):
        return frozenset()


def _number(environ: Mapping[str, str], name: str) -> int | None:
    text = environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else None


def _status(text: str) -> tuple[str, ...]:
    return (f"STATUS={_one_line(text)}",) if text else ()


def _one_line(text: str) -> str:
    # A newline would begin the next assignment.
    return " ".join(text.split())


def _fd_name(name: str) -> str:
    # systemd ignores the whole message if the name has a colon, a control character or more than 255 bytes.
    plain = "".join(char if " " <= char <= "~" and char != ":" else "_" for char in name)
    return plain[:255] or "unnamed"
