"""Answers on their way: complete, and sent while the connection is parked, as fast as the client takes them.

A client that reads slowly would keep a worker that waits for it. So what the kernel does not take at once of an answer
that nothing is added to any more is kept here, and costs a descriptor and some memory instead of a worker; nginx calls
the memory ``proxy_buffers``. What is longer than the configuration allows (``answer.buffer``) is waited for until the
rest fits. Of a regular file nothing is kept but a descriptor of our own and the place in it.

The pace is that of an answer which is waited for: see `preforkd.models.connection.Connection.send`.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Final

from preforkd.models.pace import Pace

if TYPE_CHECKING:
    from preforkd.http import Exchange

#: So much is sent at once; then others have their turn, however fast the client reads and the disk is.
_TURN: Final = 2 << 20


class Outbox:
    """What is still to be sent of one answer: bytes first, a part of a file behind them.

    Attributes:
        exchange, since: Whose answer it is, and when its request was complete (monotonic seconds); the model's loop
            sets them before it parks the connection.
        missing: Bytes that the file should have had and has not: it became shorter.
    """

    __slots__ = (
        "_count",
        "_data",
        "_descriptor",
        "_held",
        "_looked",
        "_offset",
        "_pace",
        "exchange",
        "missing",
        "since",
    )

    exchange: Exchange
    since: float

    def __init__(
        self, data: bytes, descriptor: int, offset: int, count: int, pace: Pace, held: int, now: float
    ) -> None:
        """
        Args:
            data: The bytes.
            descriptor: The file's, which is closed by `close`; negative if there is none.
            offset, count: The part of the file.
            pace: The client's pace so far; from ``now`` on (monotonic seconds) it is waited for again.
            held: So many bytes of what was sent before it has not taken yet.
        """
        self._data = memoryview(data)
        self._descriptor = descriptor
        self._offset = offset
        self._count = count
        self._pace = pace
        self._held = held
        self._looked = now
        self.missing = 0

    @property
    def left(self) -> int:
        """How many bytes are still to be sent."""
        return len(self._data) + self._count

    @property
    def descriptor(self) -> int | None:
        """The file's, if there is one."""
        return self._descriptor if self._descriptor >= 0 else None

    @property
    def deadline(self) -> float:
        """When the client's time is up, if it takes nothing more (monotonic seconds). It never moves to the front."""
        return self._looked + self._pace.patience

    def progress(self, held: int, now: float) -> None:
        """The client has not acknowledged so many bytes of what was sent: what it has taken since the last time counts,
        and of what was sent since then (`sent`) as well."""
        taken = self._held - held
        if taken > 0:
            self._pace.waited(now - self._looked)
            self._pace.moved(taken)
            self._looked = now
        self._held = held

    def sent(self, count: int) -> None:
        """So many bytes more are on their way. A quick reader may have them all before it is looked at again."""
        self._held += count

    def push(self, fd: int) -> bool:
        """Sends what goes without waiting, in one call; true if nothing is left.

        Raises:
            OSError: The connection is broken, or the disk.
        """
        try:
            if self._data:
                # Not in one expression: mypyc evaluates the bounds of a memoryview's slice twice.
                sent = os.write(fd, self._data[:_TURN])
                self._data = self._data[sent:]
            elif self._count:
                self._in_file(os.sendfile(fd, self._descriptor, self._offset, min(self._count, _TURN)))
        except BlockingIOError:
            pass
        return not self.left

    def take(self, most: int) -> bytes:
        """The next bytes, for a connection that has to encrypt them; empty if nothing is left.

        Raises:
            OSError: The disk fails.
        """
        if self._data:
            data = bytes(self._data[:most])
            self._data = self._data[most:]
            return data
        if not self._count:
            return b""
        data = os.pread(self._descriptor, min(self._count, most), self._offset)
        self._in_file(len(data))
        return data

    def _in_file(self, sent: int) -> None:
        """So many bytes of the file are sent; none: there are no more."""
        if not sent:
            self.missing, self._count = self._count, 0
        self._offset += sent
        self._count -= sent

    def close(self) -> None:
        """Gives up what is kept."""
        self._data = memoryview(b"")
        self._count = 0
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1
