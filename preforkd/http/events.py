"""What comes out of the parser: the vocabulary between the HTTP layer and whoever serves.

A message is one `Request`, any number of `Data`, one `End`; or, at any of these places, one `Refusal` and nothing more.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final, final


@final
@dataclass(slots=True)
class Request:
    """A complete and acceptable request head.

    ``line`` and ``target`` are as sent (visible ASCII, checked). ``path`` is the raw, still percent-encoded path, empty
    for ``OPTIONS *``; ``query`` what follows the first ``?``. ``host`` is the authority that the request is for: the
    target's own in absolute form, else the Host field's (RFC 9112, 3.2.2), empty if HTTP/1.0 sent none. ``length`` is
    the body's length in bytes, None when it comes in chunks. ``headers`` are as sent, in order.

    Clients repeat themselves, and a parser may give the same object again for the same bytes: nobody changes it, but
    for what a handler keeps here for the next time. ``prepared`` is about this head, ``shared`` is common to all heads
    with the same fields.
    """

    line: bytes
    method: str
    target: str
    path: str
    query: str
    http11: bool
    headers: list[tuple[bytes, bytes]]
    host: bytes
    length: int | None
    keep_alive: bool
    expects_continue: bool
    shared: dict[str, object] = field(default_factory=dict, compare=False, repr=False)
    prepared: Any = field(default=None, compare=False, repr=False)

    @property
    def protocol(self) -> str:
        """``HTTP/1.1`` or ``HTTP/1.0``."""
        return "HTTP/1.1" if self.http11 else "HTTP/1.0"


@final
@dataclass(slots=True)
class Data:
    """A piece of the body, never empty; how a body is cut into pieces means nothing."""

    data: bytes


@final
class End:
    """The message is complete; what follows belongs to the next one."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "END"


END: Final = End()


@final
@dataclass(slots=True)
class Refusal:
    """The input is not understood, not acceptable or too large; the connection must be closed after the answer.

    ``status`` is the answer's code, ``reason`` a sentence for the client, ``line`` the request line as far as it was
    understood (for the access log), empty if it was not; ``headers`` are its fields, empty if not all of them were.
    """

    status: int
    reason: str
    line: bytes = b""
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)


Event = Request | Data | End | Refusal
