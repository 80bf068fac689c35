"""How long a client may keep us waiting: a longest pause, and a least rate over the whole of a body or an answer.

A pause alone bounds nothing: who sends, or reads, one byte every 19 seconds stays for ever (slowhttptest -B and -X).
So a transfer must also be over by its start + timeout + bytes/rate, as with Apache's ``RequestReadTimeout
body=20,MinRate=500``. What counts is the time that we waited for the client: an application that is slow to read a body
or to produce an answer does not make its client overdue.
"""

from __future__ import annotations

import math


def patience(timeout: float, rate: int, waited: float, moved: int) -> float:
    """How long to go on waiting for a client that is silent now; not positive: its time is up; infinite: no limit.

    Args:
        timeout: The longest pause, and what everybody gets however little there is to move; seconds, 0 is no limit.
        rate: The least rate, bytes a second; 0 is none, and then only the pause counts.
        waited: Seconds waited for this client in this transfer so far.
        moved: Bytes moved in it so far.
    """
    if not timeout:
        return math.inf
    if not rate:
        return timeout
    return min(timeout, timeout + moved / rate - waited)


class Pace:
    """One body, or one answer, of one client: what it has moved, and how long that took."""

    __slots__ = ("_moved", "_rate", "_timeout", "_waited")

    def __init__(self, timeout: float, rate: int) -> None:
        """``timeout`` and ``rate`` as for `patience`."""
        self._timeout = timeout
        self._rate = rate
        self._waited = 0.0
        self._moved = 0

    @property
    def patience(self) -> float:
        """How long the next wait may take, in seconds; see the function."""
        return patience(self._timeout, self._rate, self._waited, self._moved)

    def waited(self, seconds: float) -> None:
        """So long the client was waited for.

        More than the longest pause is not held against it: nobody looked in that time (the worker served others), the
        client may have filled the kernel's buffer long before.
        """
        self._waited += min(seconds, self._timeout) if self._timeout else seconds

    def moved(self, count: int) -> None:
        """So many bytes have come, or were taken."""
        self._moved += count
