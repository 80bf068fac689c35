"""Who waits until when, with the nearest deadline at hand.

One queue holds connections that wait for the same kind of thing and therefore for the same time: the one that came last
times out last, and a queue in order of arrival is in order of deadlines, without a heap and with nothing left behind
when a connection is served after all. Only a connection that another worker handed over may come with less time left;
then the queue is sorted once.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Hashable
from typing import Generic, TypeVar

Waiter = TypeVar("Waiter", bound=Hashable)


class Deadlines(Generic[Waiter]):
    """Waiters in the order of their deadlines (monotonic seconds)."""

    __slots__ = ("_latest", "_queue", "timeout")

    def __init__(self, timeout: float) -> None:
        #: How long a waiter waits, in seconds; infinite if the configuration says 0.
        self.timeout = timeout or math.inf
        self._queue: OrderedDict[Waiter, float] = OrderedDict()
        self._latest = -math.inf

    def __len__(self) -> int:
        return len(self._queue)

    def __contains__(self, waiter: Waiter) -> bool:
        return waiter in self._queue

    def waiters(self) -> list[Waiter]:
        """All of them, the most urgent first."""
        return list(self._queue)

    def add(self, waiter: Waiter, deadline: float) -> None:
        """Puts a waiter in, or moves it if it is there."""
        queue = self._queue
        queue.pop(waiter, None)
        queue[waiter] = deadline
        if deadline >= self._latest:
            self._latest = deadline
        else:
            self._queue = OrderedDict(sorted(queue.items(), key=lambda item: item[1]))

    def renew(self, waiter: Waiter, now: float) -> None:
        """Puts a waiter at the end, whether it is there or not: it waits as long as this queue says from ``now`` on."""
        deadline = now + self.timeout
        if deadline < self._latest:
            self.add(waiter, deadline)
            return
        self._queue[waiter] = self._latest = deadline
        self._queue.move_to_end(waiter)

    def discard(self, waiter: Waiter) -> float | None:
        """Takes a waiter out; returns its deadline, None if it was not there."""
        return self._queue.pop(waiter, None)

    def deadline(self, waiter: Waiter) -> float:
        """When a waiter's time is up; infinite for one that is not there."""
        return self._queue.get(waiter, math.inf)

    def nearest(self) -> float:
        """The deadline of the most urgent waiter; infinite if there is none."""
        for deadline in self._queue.values():
            return deadline
        return math.inf

    def oldest(self) -> Waiter | None:
        """The most urgent waiter, left where it is."""
        for waiter in self._queue:
            return waiter
        return None

    def expired(self, now: float) -> list[Waiter]:
        """Takes out and returns all whose deadline has come."""
        gone: list[Waiter] = []
        queue = self._queue
        while queue and self.nearest() <= now:
            gone.append(queue.popitem(last=False)[0])
        return gone
