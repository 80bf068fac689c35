"""How reading from a client, and answering it, fails: as any read and write does, by an OSError.

mypyc cannot compile a class that inherits from OSError, and this module is left out of the compiled build (setup.py).
"""

from __future__ import annotations

import errno


class BodyError(OSError):
    """The request's body cannot be read: the client went silent (408), left, or sent what is not understood (400, 413).

    An application may catch it like any failed read. ``status`` is the answer that the client gets if it does not.
    """

    def __init__(self, status: int, reason: str) -> None:
        super().__init__(reason)
        self.status = status
        self.reason = reason


class ClientGone(ConnectionError):
    """The answer cannot be sent: the client closed the connection, or does not read any more."""


class SpeaksPlainly(ConnectionError):
    """The client has sent HTTP without TLS. ``line`` is the request's first line, as far as it came."""

    def __init__(self, line: bytes) -> None:
        super().__init__(errno.EPROTO, "plain HTTP where TLS is spoken")
        self.line = line
