"""What the kernel says about a tree of processes: processor time, memory, wake-ups (proc(5)); nothing else is trusted.

A tree is a process and all its descendants, whatever they call themselves. What died and was reaped inside the tree is
in it, too: the kernel adds its processor time to its reaper's.
"""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self

_TICK = 1.0 / os.sysconf("SC_CLK_TCK")
#: Fields of /proc/PID/stat, counted from the state, which is the first behind the name (proc(5) counts it as 3).
_PPID, _UTIME, _CSTIME = 1, 11, 14


def _stat(pid: int) -> list[bytes] | None:
    """The fields behind the name, which may itself hold spaces and parentheses; None if the process is gone."""
    try:
        text = Path(f"/proc/{pid}/stat").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return text[text.rindex(b")") + 2 :].split()


def processes() -> list[int]:
    """The pids of this machine, as far as this pid namespace shows them."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def tree(root: int) -> list[int]:
    """``root`` and its descendants, parents before their children; empty if it does not exist."""
    children: dict[int, list[int]] = {}
    for pid in processes():
        stat = _stat(pid)
        if stat is not None:
            children.setdefault(int(stat[_PPID]), []).append(pid)
    if _stat(root) is None:
        return []
    found = [root]
    for pid in found:  # grows while it is walked
        found += children.get(pid, ())
    return found


def cpu(root: int) -> float:
    """Processor time (user and system, seconds) that the tree has used since it exists.

    The resolution is a clock tick (10 ms) for each process. Meant for a tree in which nobody dies at this very moment:
    who is reaped between two looks is counted twice or not at all.
    """
    ticks = 0
    for pid in tree(root):
        stat = _stat(pid)
        if stat is not None:
            # utime, stime, and both of all children that were waited for.
            ticks += sum(map(int, stat[_UTIME : _CSTIME + 1]))
    return ticks * _TICK


def memory(root: int) -> int:
    """Proportional set size of the tree, bytes: a page that n processes share counts as 1/n in each of them."""
    total = 0
    for pid in tree(root):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_bytes().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith(b"Pss:"))
    return total * 1024


def switches(root: int) -> int:
    """How often threads of the tree have given a processor up, by themselves or not: in an idle tree, its wake-ups."""
    total = 0
    for pid in tree(root):
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except FileNotFoundError:
            continue
        for thread in threads:
            try:
                lines = Path(f"/proc/{pid}/task/{thread}/status").read_bytes().splitlines()
            except (FileNotFoundError, ProcessLookupError):
                continue
            total += sum(int(line.split()[1]) for line in lines if b"_ctxt_switches:" in line)
    return total


def machine_busy() -> float:
    """Processor time that everything on this machine has used since it was booted, seconds; all processors together.

    Time that the hypervisor gave to somebody else (steal) counts: it is missing here all the same.
    """
    with open("/proc/stat", "rb") as file:
        user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, file.readline().split()[1:9])
    return (user + nice + system + irq + softirq + steal) * _TICK


def disturbance(seconds: float) -> float:
    """How many processors others keep busy right now, looked at for so many seconds while we do nothing."""
    began = time.monotonic()
    before = machine_busy()
    time.sleep(seconds)
    return (machine_busy() - before) / (time.monotonic() - began)


@dataclass(slots=True)
class Meter:
    """Measures a tree during a ``with`` block; the results stand in the attributes afterwards.

    Attributes:
        cpu: Processor time of the tree, seconds.
        seconds: Length of the block.
        others: How many processors were kept busy by what is neither the tree, nor this process, nor a child that this
            process reaped in the block (a load generator).
    """

    root: int
    cpu: float = 0.0
    seconds: float = 0.0
    others: float = 0.0
    _before: tuple[float, float, float, float] = field(init=False, default=(0.0, 0.0, 0.0, 0.0))

    def _look(self) -> tuple[float, float, float, float]:
        own = os.times()
        clients = own.user + own.system + own.children_user + own.children_system
        return cpu(self.root), machine_busy(), clients, time.monotonic()

    def __enter__(self) -> Self:
        self._before = self._look()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        used, busy, clients, now = (after - before for after, before in zip(self._look(), self._before, strict=True))
        self.cpu = used
        self.seconds = now
        self.others = max(0.0, busy - used - clients) / now
