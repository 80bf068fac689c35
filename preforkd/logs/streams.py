"""What the application prints, line by line into the event log, tagged with the worker that printed it."""

from __future__ import annotations

import io
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from preforkd.logs.events import EventLog

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

#: A line without an end grows no longer than this before it is written in parts (a progress bar, binary data).
LINE_MAX = 8 * 1024


class TaggedStream(io.TextIOBase):
    """Stands in for ``sys.stdout`` or ``sys.stderr``: each complete line becomes the event ``app_output``.

    ``info app_output pool=web slot=3 stream=stdout line="hello world"``; stderr's are warnings. Template and workers.

    Threads may print at once: each has its own unfinished line, so their lines do not mix. An unfinished line waits for
    its end, also over `flush`; it is written when it exceeds 8 KiB and by `finish`, which a worker calls before it
    leaves. A child forked from here calls `reset`, or it would print its parent's unfinished lines again.
    """

    encoding = "utf-8"
    errors = "backslashreplace"
    mode = "w"
    line_buffering = True
    write_through = True

    def __init__(self, log: EventLog, stream: str) -> None:
        """``log`` has the fields of the worker bound; ``stream`` is ``stdout`` or ``stderr``."""
        super().__init__()
        self.name = f"<{stream}>"
        self.buffer = _Bytes(self)
        self._stream = stream
        self.rebind(log)
        self._unfinished: dict[int, bytes] = {}  # by thread

    def rebind(self, log: EventLog) -> None:
        """Print to ``log`` from now on: for a new child that is somebody else, while loggers hold on to this stream."""
        self._log = log
        self._emit = log.warning if self._stream == "stderr" else log.info

    def reset(self) -> None:
        """Forget unfinished lines: for a new child, whose parent will finish them."""
        self._unfinished = {}

    def finish(self) -> None:
        """Write the unfinished lines. The stream can still be used."""
        left, self._unfinished = self._unfinished, {}
        for line in left.values():
            self._show(line)

    def write(self, text: str, /) -> int:
        """Print ``text``. Never fails because of the log."""
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self._take(text.encode("utf-8", "backslashreplace"))
        return len(text)

    def writelines(self, lines: Iterable[str], /) -> None:  # type: ignore[override]
        """Print each of ``lines``."""
        for line in lines:
            self.write(line)

    def _take(self, data: bytes) -> None:
        # No lock, which a fork could leave locked for ever in the child: each thread touches an entry of its own only.
        thread = threading.get_ident()
        data = self._unfinished.pop(thread, b"") + data
        *whole, rest = data.split(b"\n")
        while len(rest) > LINE_MAX:
            cut = _character_boundary(rest, LINE_MAX)
            whole.append(rest[:cut])
            rest = rest[cut:]
        if rest:
            self._unfinished[thread] = rest
        for line in whole:
            self._show(line)

    def _show(self, line: bytes) -> None:
        self._emit("app_output", stream=self._stream, line=line.removesuffix(b"\r").decode("utf-8", "surrogateescape"))

    def flush(self) -> None:
        """Nothing: whole lines have been written, an unfinished one waits for its end."""

    def close(self) -> None:
        """`finish`. The stream stays usable: what is printed after somebody closed stdout is worth reading, too."""
        self.finish()

    @property
    def closed(self) -> bool:
        """Never."""
        return False

    def isatty(self) -> bool:
        """No, so that nobody colors."""
        return False

    def readable(self) -> bool:
        """No."""
        return False

    def writable(self) -> bool:
        """Yes."""
        return True

    def fileno(self) -> int:
        """A descriptor on which bare text reaches the log, for faulthandler and for programs that are started."""
        return self._log.fileno()

    def reconfigure(self, **_settings: Any) -> None:
        """Nothing: for applications that set encoding or buffering of their stdout."""

    def detach(self) -> _Bytes:  # type: ignore[override]
        """The binary stream; this one stays attached."""
        return self.buffer


def _character_boundary(data: bytes, cut: int) -> int:
    """``cut``, or up to three bytes less, so that no UTF-8 character is cut in two."""
    for less in range(4):
        if data[cut - less] & 0xC0 != 0x80:
            return cut - less
    return cut


class _Bytes(io.BufferedIOBase):
    """``sys.stdout.buffer``: bytes for the same lines."""

    mode = "wb"

    def __init__(self, text: TaggedStream) -> None:
        super().__init__()
        self.name = text.name
        self._text = text

    def write(self, data: ReadableBuffer, /) -> int:
        given = bytes(data)
        self._text._take(given)
        return len(given)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        # A TextIOWrapper that an application put around us closes us when it is collected; others go on printing.
        self._text.finish()

    @property
    def closed(self) -> bool:
        return False

    def isatty(self) -> bool:
        return False

    def readable(self) -> bool:
        return False

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._text.fileno()

    @property
    def raw(self) -> _Bytes:
        return self
