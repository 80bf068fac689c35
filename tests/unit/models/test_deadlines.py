"""The queue of those who wait, against the obvious implementation."""

from __future__ import annotations

import math

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from preforkd.models.deadlines import Deadlines

WAITERS = st.integers(0, 9)
TIMES = st.integers(0, 50).map(float)


class Against(RuleBasedStateMachine):
    """`Deadlines` does what a dictionary and `min` do."""

    def __init__(self) -> None:
        super().__init__()
        self.queue: Deadlines[int] = Deadlines(5)
        self.plain: dict[int, float] = {}

    @rule(waiter=WAITERS, deadline=TIMES | st.just(math.inf))
    def add(self, waiter: int, deadline: float) -> None:
        self.queue.add(waiter, deadline)
        self.plain[waiter] = deadline

    @rule(waiter=WAITERS, now=TIMES)
    def renew(self, waiter: int, now: float) -> None:
        self.queue.renew(waiter, now)
        self.plain[waiter] = now + 5

    @rule(waiter=WAITERS)
    def discard(self, waiter: int) -> None:
        assert self.queue.discard(waiter) == self.plain.pop(waiter, None)

    @rule(now=TIMES)
    def expire(self, now: float) -> None:
        gone = self.queue.expired(now)
        assert sorted(gone) == sorted(waiter for waiter, deadline in self.plain.items() if deadline <= now)
        for waiter in gone:
            del self.plain[waiter]

    @invariant()
    def agrees(self) -> None:
        assert len(self.queue) == len(self.plain)
        assert self.queue.nearest() == min(self.plain.values(), default=math.inf)
        assert [self.plain[waiter] for waiter in self.queue.waiters()] == sorted(self.plain.values())
        oldest = self.queue.oldest()
        if oldest is None:
            assert not self.plain
        else:
            assert oldest in self.queue
            assert self.plain[oldest] == self.queue.nearest()


TestAgainst = Against.TestCase


def test_zero_is_for_ever() -> None:
    assert Deadlines[int](0).timeout == math.inf
