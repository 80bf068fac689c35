"""How long a client is waited for: numbers in, numbers out."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.models.pace import Pace, patience


@pytest.mark.parametrize(
    ("timeout", "rate", "waited", "moved", "left"),
    [
        (20.0, 500, 0.0, 0, 20.0),
        (20.0, 500, 19.0, 0, 1.0),
        (20.0, 500, 20.0, 0, 0.0),
        # One byte every 19 seconds: 20 s and nothing more.
        (20.0, 500, 19.0, 1, 1.002),
        (20.0, 500, 38.0, 2, -17.996),
        # Exactly the rate: for ever, and never more than the longest pause.
        (20.0, 500, 1000.0, 500_000, 20.0),
        (20.0, 500, 1.0, 500_000, 20.0),
        # A little less than the rate uses its twenty seconds up.
        (20.0, 500, 100.0, 45_000, 10.0),
        (20.0, 500, 200.0, 90_000, 0.0),
        # Without a rate only pauses count; without a timeout nothing does.
        (20.0, 0, 1e6, 1, 20.0),
        (0.0, 500, 1e6, 0, math.inf),
    ],
)
def test_patience(timeout: float, rate: int, waited: float, moved: int, left: float) -> None:
    assert patience(timeout, rate, waited, moved) == pytest.approx(left)


def test_only_waiting_counts() -> None:
    pace = Pace(20, 500)
    pace.waited(5)
    assert pace.patience == 15
    pace.moved(1000)
    assert pace.patience == 17
    pace.moved(10**6)
    assert pace.patience == 20


def test_a_time_in_which_nobody_looked_counts_as_one_pause() -> None:
    pace = Pace(20, 500)
    pace.waited(300)
    pace.moved(50_000)
    assert pace.patience == 20


@given(st.lists(st.tuples(st.floats(0, 10), st.integers(0, 10_000))))
def test_the_deadline_only_ever_moves_back(steps: list[tuple[float, int]]) -> None:
    """So that a queue need not be told of each piece that comes."""
    pace, now = Pace(10, 500), 0.0
    deadline = now + pace.patience
    for pause, count in steps:
        now += pause
        pace.waited(pause)
        pace.moved(count)
        assert now + pace.patience >= deadline - 1e-6
        deadline = now + pace.patience
