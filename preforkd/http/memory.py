"""What the parsers of a process remember of good requests, by its exact bytes.

Clients repeat themselves (HPACK, RFC 7541, lives on it): a monitor or a proxy sends the same head for ever, a browser
the same fields with every request, all browsers of a kind most of each other's lines. Only bytes that went through
every check get in, and equal bytes mean equal things, so that who is served from here is served as if it were not
there.

Each memory is emptied when it is full: what comes again comes back soon. Heads and blocks get in when they are seen for
the second time: most of those that came once never come again, and to keep them would cost more than to read them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeVar

from preforkd.http.events import Request

#: How long a head or a block of fields may be that is remembered, and how many of each are: some megabytes at most.
REMEMBERED_LENGTH: Final = 2048
_REMEMBERED: Final = 256
#: The same for single lines.
_LINE_LENGTH: Final = 512
_LINES: Final = 1024
#: How many are known by their hash to have come once.
_ONCE: Final = 4096

#: Name as sent, value without the whitespace around it.
Field = tuple[bytes, bytes]
#: A field and the rule that is about it; empty for none.
Line = tuple[Field, bytes]

_Known = TypeVar("_Known")


@dataclass(slots=True)
class Fields:
    """What the fields of a head say together, as far as it does not depend on the request line.

    ``length_given``: it was said, and not only concluded from the absence of everything else. ``shared`` is that of all
    requests with these fields (`preforkd.http.events.Request`).
    """

    headers: list[Field]
    host: bytes | None
    length: int | None
    length_given: bool
    keep_alive: bool
    expectation: bool
    shared: dict[str, object] = field(default_factory=dict)


def _keep(memory: dict[bytes, _Known], data: bytes, known: _Known, most: int) -> None:
    if len(memory) >= most:
        memory.clear()
    memory[data] = known


class Memory:
    """For parsers that have the same limits. Not thread-safe."""

    __slots__ = ("_once", "blocks", "heads", "lines", "methods")

    def __init__(self) -> None:
        #: A complete head without a body -> its request.
        self.heads: dict[bytes, Request] = {}
        #: The field lines of an HTTP/1.1 head, with the line end of the last -> what they say.
        self.blocks: dict[bytes, Fields] = {}
        #: A field line, without its end.
        self.lines: dict[bytes, Line] = {}
        #: Methods that llhttp knows; it knows few.
        self.methods: set[bytes] = set()
        self._once: set[int] = set()

    def _came_before(self, data: bytes) -> bool:
        mark = hash(data)
        if mark in self._once:
            return True
        if len(self._once) >= _ONCE:
            self._once.clear()
        self._once.add(mark)
        return False

    def remember_head(self, head: bytes, request: Request) -> None:
        """Offers a request without a body."""
        if self._came_before(head):
            _keep(self.heads, head, request, _REMEMBERED)

    def remember_block(self, block: bytes, fields: Fields) -> None:
        """Offers the fields of a good HTTP/1.1 head."""
        if len(block) <= REMEMBERED_LENGTH and self._came_before(block):
            _keep(self.blocks, block, fields, _REMEMBERED)

    def remember_line(self, text: bytes, line: Line) -> None:
        """Keeps a line that means the same in every head: nothing about framing."""
        if len(text) <= _LINE_LENGTH:
            _keep(self.lines, text, line, _LINES)
