"""The chunked transfer coding of a request, taken off (RFC 9112, 7.1), strictly and within bounds.

Our own and not llhttp's: only who decodes the chunks knows where the message ends, and therefore which bytes belong to
the next request. Refused, because some intermediary reads each of them in another way: a bare LF or CR, a sign or an
``0x`` before the size, missing line ends after the data, malformed extensions and trailers, folded trailer lines.
Well-formed extensions and trailers are bounded and dropped: nobody behind us may merge a trailer into the header.
"""

from __future__ import annotations

import re
from typing import Final

from preforkd.http.events import Refusal
from preforkd.http.limits import RequestLimits

_TOKEN: Final = rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+"
_QUOTED: Final = rb'"(?:[\t !#-\[\]-~\x80-\xff]|\\[\t -~\x80-\xff])*"'
_SIZE: Final = re.compile(
    rb"([0-9A-Fa-f]{1,15})((?:[ \t]*;[ \t]*" + _TOKEN + rb"(?:[ \t]*=[ \t]*(?:" + _TOKEN + rb"|" + _QUOTED + rb"))?)*)"
)
_TRAILER: Final = re.compile(_TOKEN + rb":[\t -~\x80-\xff]*")

#: The longest line that may announce a chunk: 15 digits and a modest extension. Nobody sends more without malice.
_SIZE_LINE: Final = 1024

_BETWEEN: Final = 0
_INSIDE: Final = 1
_AFTER: Final = 2
_TRAILERS: Final = 3


class ChunkedBody:
    """Decodes one chunked body: `feed` bytes, `decode` what they hold; then look at `done`, `refusal` and `rest`."""

    __slots__ = ("_data", "_fields", "_left", "_limits", "_overhead", "_state", "_total", "done", "refusal")

    def __init__(self, limits: RequestLimits) -> None:
        self._limits = limits
        self._data = b""
        self._state = _BETWEEN
        self._left = 0
        self._total = 0
        #: Bytes of extensions and trailers: what is sent at our cost and thrown away.
        self._overhead = 0
        self._fields = 0
        self.done = False
        self.refusal: Refusal | None = None

    @property
    def rest(self) -> bytes:
        """Bytes not consumed; once `done`, they belong to the next request."""
        return self._data

    def feed(self, data: bytes) -> None:
        """Takes the next bytes from the connection."""
        self._data = self._data + data if self._data else data

    def decode(self) -> bytes:
        """All content that can be decoded now, in one piece; empty if more bytes are needed, or at the end."""
        data = self._data
        position = 0
        pieces: list[bytes] = []
        while not self.done and self.refusal is None:
            if self._state == _INSIDE:
                piece = data[position : position + self._left]
                if not piece:
                    break
                pieces.append(piece)
                position += len(piece)
                self._left -= len(piece)
                if not self._left:
                    self._state = _AFTER
            elif self._state == _AFTER:
                ending = data[position : position + 2]
                if ending == b"\r\n":
                    position += 2
                    self._state = _BETWEEN
                elif ending and not b"\r\n".startswith(ending):
                    self._refuse(400, "a chunk is longer than it announced")
                else:
                    break
            else:
                line = self._line(data, position)
                if line is None:
                    break
                position += len(line) + 2
                if self._state == _BETWEEN:
                    self._announced(line)
                else:
                    self._trailer(line)
        self._data = data[position:]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _line(self, data: bytes, position: int) -> bytes | None:
        """The line at ``position`` without its end; None if it is incomplete or refused."""
        limit = _SIZE_LINE if self._state == _BETWEEN else self._limits.header
        newline = data.find(b"\n", position, position + limit + 2)
        if newline < 0:
            if len(data) - position >= limit + 2:
                self._refuse(400 if self._state == _BETWEEN else 431, "a line of the chunked body is too long")
            return None
        if newline == position or data[newline - 1] != 0x0D:
            self._refuse(400, "a line of the chunked body does not end in CRLF")
            return None
        return data[position : newline - 1]

    def _announced(self, line: bytes) -> None:
        match = _SIZE.fullmatch(line)
        if match is None:
            self._refuse(400, "the size of a chunk is malformed")
            return
        self._overhead += len(match[2])
        size = int(match[1], 16)
        if self._overhead > self._limits.header:
            self._refuse(413, "the chunk extensions are too long")
        elif self._total + size > self._limits.body:
            self._refuse(413, f"the body is longer than the {self._limits.body} bytes that are allowed")
        elif size:
            self._total += size
            self._left = size
            self._state = _INSIDE
        else:
            self._overhead = 0
            self._state = _TRAILERS

    def _trailer(self, line: bytes) -> None:
        if not line:
            self.done = True
            return
        self._overhead += len(line) + 2
        self._fields += 1
        if self._overhead > self._limits.header or self._fields > self._limits.fields:
            self._refuse(431, "the trailer is too large")
        elif not _TRAILER.fullmatch(line):
            self._refuse(400, "a trailer field is malformed")

    def _refuse(self, status: int, reason: str) -> None:
        self.refusal = Refusal(status, reason)
