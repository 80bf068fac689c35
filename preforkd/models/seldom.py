"""What strangers or a shortage can make happen as often as they like is said once in a while, with how often it was."""

from __future__ import annotations

import math
import time
from typing import Final

#: The same thing is said at most once in so many seconds.
REPORT_EVERY: Final = 10.0


class Seldom:
    """Counts one kind of occurrence, and knows when it is to be told. Worker only, main thread."""

    __slots__ = ("_told_at", "_untold")

    def __init__(self) -> None:
        self._told_at = -math.inf
        self._untold = 0

    def due(self) -> int:
        """It has happened. How often since it was last told, this time included, if it is to be told now; else 0."""
        self._untold += 1
        now = time.monotonic()
        if now - self._told_at < REPORT_EVERY:
            return 0
        times, self._untold = self._untold, 0
        self._told_at = now
        return times
