"""How much a client may send before it is told to stop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

#: Stands for "no limit": larger than anything that arrives, small enough for index arithmetic.
UNLIMITED: Final = 1 << 60


@dataclass(frozen=True, slots=True)
class RequestLimits:
    """Bounds on one request, in bytes except ``fields``; 0 means no limit.

    ``line`` is the request line without its line end, ``header`` all header fields together up to and including the
    empty line (trailers: once more the same), ``fields`` their number, ``body`` the content after chunks are taken off.
    """

    line: int = 8 * 1024
    header: int = 32 * 1024
    fields: int = 100
    body: int = 1024**3

    def __post_init__(self) -> None:
        for name in ("line", "header", "fields", "body"):
            if not getattr(self, name):
                object.__setattr__(self, name, UNLIMITED)
