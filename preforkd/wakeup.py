"""Signals into a pending set, and a descriptor that ends the poll. A wake-up carries no meaning; state lives in the
set.

The handler notes the signal and does nothing else. Two writes wake the loop (trio, _core/_signals.py): the
interpreter's own, from C, ends a poll that was entered just before; the handler's comes after the set has really been
filled.

A trap, measured: after a fork, until the child calls ``signal.set_wakeup_fd(-1)``, a signal that only the child
received puts its number into the parent's pipe. As bytes mean nothing here, that costs one idle turn.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterable
from types import FrameType


class Wakeup:
    """Catches signals for a loop that polls `fileno`. One a process; main thread only."""

    def __init__(self, signals: Iterable[int]) -> None:
        """Install handlers for ``signals``."""
        self._read, self._write = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._pending: set[int] = set()
        self._before = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        for signum in signals:
            signal.signal(signum, self.note)

    def note(self, signum: int, frame: FrameType | None) -> None:
        """The handler: notes the signal and rings."""
        self._pending.add(signum)
        self.ring()

    def ring(self) -> None:
        """Make the poll end. Any thread, any handler; a full pipe is fine, it is readable."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._write, b"\0")

    def fileno(self) -> int:
        return self._read

    def descriptors(self) -> tuple[int, int]:
        return self._read, self._write

    def drain(self) -> set[int]:
        """Empty the pipe, then take what is pending. In this order: a signal in between is seen now or next time."""
        with contextlib.suppress(BlockingIOError):
            while len(os.read(self._read, 4096)) == 4096:
                pass
        taken = set()
        while self._pending:
            taken.add(self._pending.pop())
        return taken

    def close(self) -> None:
        """Stop catching; the handlers stay for the caller to replace."""
        signal.set_wakeup_fd(-1)
        os.close(self._read)
        os.close(self._write)
