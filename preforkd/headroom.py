"""How much more this service may have: the memory, processes and descriptors that the kernel and the cgroup leave it.

A pool that grows by need must not grow into the out-of-memory killer. The limits of every cgroup from our own up to the
root count, because the tightest one kills; where no cgroup limits memory, what the machine has available counts.
Reading takes some 50 us, so it is done when a pool wants to grow, and not at every turn.
"""

from __future__ import annotations

import contextlib
import os
import resource
from dataclasses import dataclass

#: Never counted on: for the page cache, the kernel's own, and whoever else grows meanwhile. Bytes.
RESERVE = 64 << 20
#: A worker that has not said what it takes, and the least that any is taken to need. Bytes.
LEAST = 4 << 20
#: Processes that are not workers: stems, a template and a check that are about to be forked.
SPARE_PIDS = 4
SPARE_FILES = 32
#: Descriptors of a worker that are not for clients: the application opens files and connections of its own. Where few
#: are left to it, an eighth.
APPLICATION_FILES = 64


@dataclass(frozen=True, slots=True)
class Headroom:
    """How many workers more there is room for, and what ends first (for the log)."""

    workers: int
    why: str


def headroom(
    cost: int,
    *,
    root: str = "/sys/fs/cgroup",
    membership: str = "/proc/self/cgroup",
    meminfo: str = "/proc/meminfo",
    files: str = "/proc/self/fd",
) -> Headroom:
    """Room for more workers that take ``cost`` bytes each. Master; never raises: what is unknown is no limit."""
    rooms = [_files(files)]
    memory: int | None = None
    for folder in _folders(root, membership):
        left = _left(folder, "memory.max", "memory.current")
        if left is not None:
            # The page cache counts in, and gives way.
            left += _inactive_file(folder)
            memory = left if memory is None else min(memory, left)
        pids = _left(folder, "pids.max", "pids.current")
        if pids is not None:
            rooms.append(Headroom(max(0, pids - SPARE_PIDS), f"pids.max of {folder} leaves {pids} processes"))
    source = "the memory.max of its cgroup"
    if memory is None:
        memory, source = _available(meminfo), "the machine"
    if memory is not None:
        room = max(0, (memory - RESERVE) // max(cost, LEAST))
        rooms.append(Headroom(room, f"{source} leaves {memory >> 20} MiB, a worker takes {max(cost, LEAST) >> 20}"))
    return min(rooms, key=lambda one: one.workers)


def _folders(root: str, membership: str) -> list[str]:
    """Our cgroup's folder and all above it, but for the root, which has no limits."""
    try:
        with open(membership, encoding="utf-8") as file:
            path = next(line.split("::", 1)[1].strip() for line in file if line.startswith("0::"))
    except (OSError, StopIteration, UnicodeDecodeError):
        return []
    folders = []
    while path not in ("", "/"):
        folders.append(root + path)
        path = os.path.dirname(path)
    return folders


def _number(path: str) -> int | None:
    try:
        with open(path, encoding="ascii") as file:
            text = file.read().strip()
    except (OSError, UnicodeDecodeError):
        return None
    return int(text) if text.isdecimal() else None


def _left(folder: str, limit: str, used: str) -> int | None:
    most, now = _number(f"{folder}/{limit}"), _number(f"{folder}/{used}")
    return None if most is None or now is None else max(0, most - now)


def _inactive_file(folder: str) -> int:
    with contextlib.suppress(OSError, ValueError), open(f"{folder}/memory.stat", encoding="ascii") as file:
        for line in file:
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    return 0


def _available(meminfo: str) -> int | None:
    with contextlib.suppress(OSError, ValueError), open(meminfo, encoding="ascii") as file:
        for line in file:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return None


def _files(folder: str) -> Headroom:
    """The master holds one descriptor for each worker."""
    limit, used = _descriptors(folder)
    return Headroom(max(0, limit - used - SPARE_FILES), f"the master may open {limit} descriptors and has {used}")


def connections(*, files: str = "/proc/self/fd") -> int:
    """How many descriptors a worker that begins may use for connections and what belongs to them."""
    limit, used = _descriptors(files)
    left = limit - used
    return max(1, left - min(APPLICATION_FILES, left // 8))


def _descriptors(folder: str) -> tuple[int, int]:
    """How many descriptors this process may have, and how many it has."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        used = len(os.listdir(folder)) - 1  # the folder was open, too
    except OSError:
        used = 0
    return 1 << 30 if soft == resource.RLIM_INFINITY else soft, used
