"""Request bodies on their way: received while the connection is parked, stored, and then read without blocking.

A body that is dripped would pin a worker that reads it by blocking calls; here it costs a descriptor, some memory, and
beyond that a file without a name, which nginx calls ``client_body_buffer_size`` and ``client_body_temp_path``. What is
longer than the configuration lets wait (``body.buffer``) is *streamed*: the application is called with what is there
and reads the rest itself.

The memory that one connection can take is ``body.memory``; more only while its worker reads from it, one at a time. A
body that comes as fast as it is read never sees the disk.
"""

from __future__ import annotations

import os
import tempfile
from collections import deque
from typing import IO, Final

from preforkd.http import Request
from preforkd.models.pace import Pace

#: How much of a file is read at once.
_BLOCK: Final = 64 * 1024
#: So many pieces are joined to one: what a client drips must not cost an object for each byte.
_PIECES: Final = 32


def received_first(request: Request, here: int, buffer: int) -> bool:
    """Whether the body is received before the application is called.

    Not one that is completely here: it is served as it is. Not one that is announced as too long. And not one whose
    client waits for 100 Continue, which is sent when the application first reads, so that it may refuse the body unseen
    (RFC 9110, 10.1.1).

    Args:
        request: Its head.
        here: Bytes that have arrived behind the head.
        buffer: ``body.buffer``, bytes.
    """
    if request.expects_continue:
        return False
    if request.length is None:
        return buffer > 0
    return here < request.length <= buffer


class Spool:
    """A stored body: the beginning in memory, the rest in a file that has no name. Written first, then read once.

    As an `http.StoredBody` it is read by the exchange. ``size`` is what it holds, in bytes.
    """

    __slots__ = ("_directory", "_file", "_in_file", "_pieces", "_read", "_room", "_tail", "complete", "size")

    def __init__(self, memory: int, directory: str | None) -> None:
        """``memory``: bytes kept in memory. ``directory``: where the file is made, None for tempfile's own choice."""
        self._room = memory
        self._directory = directory
        self._pieces: deque[bytes] = deque()
        self._file: IO[bytes] | None = None
        self._in_file = 0
        self._read = 0
        #: What belongs behind the file, and is not in it yet.
        self._tail: deque[bytes] = deque()
        self.size = 0
        #: The whole body is here.
        self.complete = False

    @property
    def descriptor(self) -> int | None:
        """The file's, if there is one."""
        return self._file.fileno() if self._file is not None else None

    def add(self, data: bytes) -> None:
        """Stores the next piece, in memory for the moment: whoever is going to wait for more calls `settle`."""
        self.size += len(data)
        if self._room > 0:
            if len(self._pieces) >= _PIECES:
                joined = b"".join(self._pieces)
                self._pieces.clear()
                self._pieces.append(joined)
            if len(data) <= self._room:
                self._room -= len(data)
                self._pieces.append(data)
                return
            self._pieces.append(data[: self._room])
            data = data[self._room :]
            self._room = 0
        self._tail.append(data)

    def settle(self) -> None:
        """Moves what does not belong into memory to the file.

        Raises:
            OSError: There is no file (EMFILE), or no room in it (ENOSPC, EDQUOT, EFBIG). Nothing is lost, and this may
                be tried again; a piece must not be added before it succeeds, or memory has no bound.
        """
        if not self._tail:
            return
        if self._file is None:
            # No name, so that it is gone with us however we end (open(2), O_TMPFILE).
            self._file = tempfile.TemporaryFile(buffering=0, prefix="preforkd-", dir=self._directory)  # noqa: SIM115
        while self._tail:
            # A disk that fills up takes a part first, and fails at the next call.
            written = os.write(self._file.fileno(), self._tail[0])
            self._in_file += written
            if written < len(self._tail[0]):
                self._tail[0] = self._tail[0][written:]
            else:
                self._tail.popleft()

    def take(self) -> bytes:
        """The next piece of what is stored; empty when all has been taken.

        Raises:
            OSError: The disk fails.
        """
        if self._pieces:
            return self._pieces.popleft()
        if self._read < self._in_file:
            assert self._file is not None
            piece = os.pread(self._file.fileno(), min(_BLOCK, self._in_file - self._read), self._read)
            if not piece:
                raise OSError("the file that holds the request's body has become shorter")
            self._read += len(piece)
            return piece
        return self._tail.popleft() if self._tail else b""

    def close(self) -> None:
        """Gives up what is stored."""
        self._pieces.clear()
        self._tail.clear()
        self._read = self._in_file
        if self._file is not None:
            self._file.close()
            self._file = None


class Upload:
    """A request whose head is complete and whose body is not.

    Attributes:
        request: The head.
        spool: What has come of the body; None if the request is answered and the rest is thrown away.
        began, started: When the head was complete, by the clock (unix) and monotonic; seconds.
    """

    __slots__ = ("_looked", "_pace", "began", "request", "spool", "started")

    def __init__(self, request: Request, spool: Spool | None, pace: Pace, began: float, now: float) -> None:
        self.request = request
        self.spool = spool
        self.began = began
        self.started = now
        self._pace = pace
        self._looked = now

    @property
    def descriptor(self) -> int | None:
        """The file's, if there is one."""
        return self.spool.descriptor if self.spool is not None else None

    @property
    def deadline(self) -> float:
        """When the client's time is up, if nothing more comes (monotonic seconds). It never moves to the front."""
        return self._looked + self._pace.patience

    def progress(self, now: float, count: int) -> None:
        """So many bytes have come since the last time."""
        self._pace.waited(now - self._looked)
        self._pace.moved(count)
        self._looked = now

    def pace(self, now: float) -> Pace:
        """The client's pace until now, for whoever goes on receiving."""
        self.progress(now, 0)
        return self._pace
