"""What the import of an application left behind that a fork would break (facts F4).

A thread does not survive a fork, and a lock it held stays locked; a socket, a pipe or an epoll set would be shared by
all workers. This is a heuristic and says so: a locked lock without a thread cannot be seen, and a thread that ends by
itself within the next moment is reported.

The look is taken after a *probe fork*: libraries that handle forks (OpenBLAS) stop their threads at it, and are no
finding.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import stat
import threading
import time

from preforkd.spawn import fork_child

#: Threads that handle forks need a moment to end; ten times less gave false alarms for a thread just joined. Seconds.
_SETTLE = 0.01
#: So many findings are named; they travel in one message, and are read by a person.
_AT_MOST = 20


def open_descriptors() -> frozenset[int]:
    """Numbers of the open descriptors of this process."""
    with os.scandir("/proc/self/fd") as entries:
        numbers = frozenset(int(entry.name) for entry in entries)
    # The directory itself was open while it was read.
    return frozenset(number for number in numbers if os.path.lexists(f"/proc/self/fd/{number}"))


def find_leftovers(before: frozenset[int]) -> list[str]:
    """Findings as sentences, empty when it is safe to fork. ``before``: `open_descriptors` before the import.

    Template only, before it has children of its own.
    """
    probe = fork_child(lambda: 0)
    os.waitpid(probe, 0)
    time.sleep(_SETTLE)
    found = [*_threads(), *_descriptors(before), *_children()]
    return found if len(found) <= _AT_MOST else [*found[:_AT_MOST], f"and {len(found) - _AT_MOST} more"]


def _threads() -> list[str]:
    names = {thread.native_id: thread.name for thread in threading.enumerate()}
    found = []
    for name in os.listdir("/proc/self/task"):
        task = int(name)
        if task == os.getpid():
            continue
        label = names.get(task)
        if label is None:
            try:
                with open(f"/proc/self/task/{task}/comm", encoding="utf-8", errors="replace") as file:
                    label = file.read().strip()
            except OSError:
                continue  # it has ended meanwhile
            found.append(f"a thread that Python did not start is running ({label})")
        else:
            found.append(f"the thread {label!r} is running")
    return found


def _descriptors(before: frozenset[int]) -> list[str]:
    found = []
    for descriptor in sorted(open_descriptors() - before):
        try:
            mode = os.fstat(descriptor).st_mode
            target = os.readlink(f"/proc/self/fd/{descriptor}")
            flags = fcntl.fcntl(descriptor, fcntl.F_GETFL)
        except OSError:
            continue
        if stat.S_ISSOCK(mode):
            found.append(f"a socket is open ({_socket_name(descriptor)})")
        elif stat.S_ISFIFO(mode):
            found.append(f"a pipe is open (descriptor {descriptor})")
        elif stat.S_ISREG(mode):
            # Appending is shared safely (a log file), reading mostly too; a database file is not.
            if flags & os.O_ACCMODE != os.O_RDONLY and not flags & os.O_APPEND:
                found.append(f"the file {target} is open for writing")
        elif target.startswith("anon_inode:"):
            found.append(f"an {target.removeprefix('anon_inode:').strip('[]')} is open (descriptor {descriptor})")
    return found


def _socket_name(descriptor: int) -> str:
    with contextlib.suppress(OSError):
        sock = socket.socket(fileno=os.dup(descriptor))
        try:
            for ask, word in ((sock.getpeername, "connected to"), (sock.getsockname, "bound to")):
                with contextlib.suppress(OSError):
                    address = ask()
                    if isinstance(address, tuple):
                        return f"{word} {address[0]}:{address[1]}"
                    if address:
                        return f"{word} {address!r}"
        finally:
            sock.close()
    return f"descriptor {descriptor}"


def _children() -> list[str]:
    found = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
                pids = file.read().split()
        except OSError:
            continue
        for pid in pids:
            label = ""
            with contextlib.suppress(OSError), open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
                label = file.read().strip()
            found.append(f"the process {pid} ({label or 'unknown'}) was started")
    return found
