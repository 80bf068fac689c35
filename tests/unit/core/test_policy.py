"""How many workers? Examples, and sentences an operator would agree with."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from preforkd.core.policy import (
    EPISODE,
    GROW_AT_LEAST,
    GROW_AT_MOST,
    GROW_INTERVAL,
    PATIENCE,
    PATIENCE_MAX,
    REGRET,
    SHRINK_INTERVAL,
    Counts,
    size_pool,
    target,
)
from preforkd.model import Pace, PoolGoal

WEB = PoolGoal("web", start=5, min_spare=5, max_spare=10, max=64)
FRESH = Pace()
NOW = 1000.0


@st.composite
def pools(draw: st.DrawFn) -> PoolGoal:
    """Any numbers that the configuration's check lets through."""
    most = draw(st.integers(1, 300))
    start = draw(st.integers(1, most))
    least = draw(st.integers(1, most))
    return PoolGoal("web", start, least, draw(st.integers(least, 400)), most)


counts = st.builds(
    Counts,
    idle=st.integers(0, 80),
    busy=st.integers(0, 80),
    starting=st.integers(0, 40),
    queued=st.integers(0, 1000),
    room=st.none() | st.integers(0, 40),
    room_ends=st.just("the machine leaves 1 MiB"),
)
paces = st.builds(
    Pace,
    grown_at=st.floats(NOW - 1000, NOW),
    shrunk_at=st.one_of(st.just(-1e9), st.floats(NOW - 1000, NOW)),
    calm_since=st.none() | st.floats(NOW - 400, NOW),
    calm_idle=st.integers(0, 80),
    patience=st.none() | st.floats(PATIENCE, PATIENCE_MAX),
    limit_reported=st.booleans(),
    limited_at=st.floats(NOW - 1000, NOW),
)


@given(counts, pools(), paces)
def test_what_any_answer_keeps_to(now_there: Counts, limits: PoolGoal, pace: Pace) -> None:
    sizing = size_pool(now_there, limits, pace, NOW)
    assert sizing.spawn >= 0
    assert sizing.retire >= 0
    assert not (sizing.spawn and sizing.retire)
    assert now_there.total + sizing.spawn <= max(limits.max, now_there.total)
    assert sizing.spawn <= GROW_AT_MOST
    assert now_there.total - sizing.retire >= min(limits.start, limits.max, now_there.total)
    assert sizing.look_at is None or sizing.look_at > NOW
    assert bool(sizing.spawn or sizing.retire or sizing.limit_reached) <= bool(sizing.reason)
    if sizing.retire and now_there.total <= limits.max:
        assert now_there.idle - sizing.retire >= limits.max_spare


@given(counts, pools(), paces)
def test_asked_twice_in_one_moment_it_has_said_everything(now_there: Counts, limits: PoolGoal, pace: Pace) -> None:
    first = size_pool(now_there, limits, pace, NOW)
    idle = max(0, now_there.idle - first.retire)
    busy = now_there.busy - (first.retire - (now_there.idle - idle))
    then = Counts(idle, max(0, busy), now_there.starting + first.spawn, now_there.queued)
    second = size_pool(then, limits, first.pace, NOW)
    third = size_pool(then, limits, second.pace, NOW)
    if then.total >= limits.start and busy >= 0:
        assert (third.spawn, third.retire, third.limit_reached) == (0, 0, False)
        assert third.pace == second.pace


@given(pools(), st.integers(0, 400))
def test_under_a_constant_load_it_comes_to_rest(limits: PoolGoal, demand: int) -> None:
    """And then has nothing to say; without load it does not even want to be asked again."""
    now, total, pace = NOW, 0, FRESH
    quiet = 0
    for _ in range(4000):
        busy = min(total, demand)
        sizing = size_pool(Counts(total - busy, busy, 0, demand - busy), limits, pace, now)
        total += sizing.spawn - sizing.retire
        pace = sizing.pace
        quiet = 0 if sizing.spawn or sizing.retire else quiet + 1
        if sizing.look_at is None and quiet:
            break
        if quiet > 400:
            break
        now = sizing.look_at if sizing.look_at is not None else now
    else:
        raise AssertionError("never at rest")
    assert limits.start <= total <= limits.max
    if demand == 0:
        assert sizing.look_at is None
        assert max(limits.start, limits.min_spare) <= total <= max(limits.start, limits.max_spare)
    assert total - min(total, demand) >= limits.min_spare or total == limits.max


@given(pools(), st.integers(-400, 400))
def test_bias_keeps_the_numbers_in_order(limits: PoolGoal, bias: int) -> None:
    moved = target(limits, bias)
    assert 1 <= moved.start <= moved.max <= limits.max
    assert 1 <= moved.min_spare <= moved.max
    assert moved.min_spare <= max(moved.max_spare, moved.min_spare)
    if bias >= 0:
        assert moved.max == limits.max
        assert moved.max_spare >= moved.min_spare


def grow(limits: PoolGoal, queued: int, ready_after: float, total: int) -> float:
    """Seconds until a pool is at its limit under a queue that never gets shorter."""
    now, pace, serving = NOW, FRESH, total
    coming: list[tuple[float, int]] = []
    while serving < limits.max:
        serving += sum(count for at, count in coming if at <= now)
        coming = [(at, count) for at, count in coming if at > now]
        starting = sum(count for _, count in coming)
        sizing = size_pool(Counts(0, serving, starting, queued), limits, pace, now)
        pace = sizing.pace
        if sizing.spawn:
            coming.append((now + ready_after, sizing.spawn))
        moments = [at for at, _ in coming] + ([sizing.look_at] if sizing.look_at is not None else [])
        if serving < limits.max:
            now = min(moments)
    return now - NOW


def test_two_workers_become_sixty_four_within_a_second() -> None:
    assert grow(PoolGoal("web", 2, 1, 4, 64), queued=64, ready_after=0.03, total=2) < 1.0


def test_growth_is_by_need() -> None:
    assert size_pool(Counts(idle=3, busy=4), WEB, FRESH, NOW).spawn == 2
    assert size_pool(Counts(idle=3, busy=4, starting=2), WEB, FRESH, NOW).spawn == 0
    assert size_pool(Counts(idle=0, busy=20, queued=9), WEB, FRESH, NOW).spawn == 14


def test_growth_is_at_most_a_doubling_but_a_small_pool_gets_some() -> None:
    assert size_pool(Counts(busy=1, queued=500), replace(WEB, start=1), FRESH, NOW).spawn == GROW_AT_LEAST
    assert size_pool(Counts(busy=10, queued=500), WEB, FRESH, NOW).spawn == 10
    assert size_pool(Counts(busy=200, queued=500), replace(WEB, max=256), FRESH, NOW).spawn == GROW_AT_MOST


def test_the_next_doubling_waits_for_the_interval() -> None:
    first = size_pool(Counts(busy=10, queued=500), WEB, FRESH, NOW)
    again = size_pool(Counts(busy=10, starting=10, queued=500), WEB, first.pace, NOW + 0.01)
    assert (again.spawn, again.look_at) == (0, NOW + GROW_INTERVAL)
    assert size_pool(Counts(busy=20, queued=500), WEB, first.pace, NOW + GROW_INTERVAL).spawn == 20


def test_a_death_below_start_is_made_good_at_once() -> None:
    pace = replace(FRESH, grown_at=NOW)
    assert size_pool(Counts(idle=4), replace(WEB, min_spare=1), pace, NOW).spawn == 1


def test_the_limit_is_said_once_an_episode() -> None:
    full = Counts(busy=64, queued=3)
    first = size_pool(full, WEB, FRESH, NOW)
    assert first.limit_reached
    assert "64 of 64 workers busy, 3 connections waiting" in first.reason
    relaxed = size_pool(Counts(idle=6, busy=58), WEB, first.pace, NOW + 1)
    again = size_pool(full, WEB, relaxed.pace, NOW + 2)
    assert not again.limit_reached
    assert not size_pool(full, WEB, again.pace, NOW + 1 + EPISODE).limit_reached
    assert size_pool(full, WEB, again.pace, NOW + 2 + EPISODE).limit_reached


def test_at_the_limit_somebody_looks_when_the_load_ends() -> None:
    assert size_pool(Counts(busy=64), WEB, FRESH, NOW).look_at == NOW + SHRINK_INTERVAL
    assert size_pool(Counts(busy=4), replace(WEB, max=4, start=4), FRESH, NOW).look_at is None


def test_what_is_above_max_leaves_at_once() -> None:
    assert size_pool(Counts(idle=2, busy=70), WEB, FRESH, NOW).retire == 8


def shrink(idle: int, seconds: float, pace: Pace = FRESH, limits: PoolGoal = WEB) -> tuple[int, float, Pace]:
    """Let an idle pool be for a while: what is left of it, when the first one left, and the memory."""
    now, first = NOW, 0.0
    while now < NOW + seconds:
        sizing = size_pool(Counts(idle=idle), limits, pace, now)
        if sizing.retire and not first:
            first = now - NOW
        idle -= sizing.retire
        pace = sizing.pace
        if sizing.look_at is None:
            break
        now = sizing.look_at
    return idle, first, pace


def test_shrinking_is_slow_and_ends_at_max_spare() -> None:
    left, first, _ = shrink(64, 9.0)
    assert left == 64
    left, first, _ = shrink(64, 300.0)
    assert (left, first) == (10, PATIENCE)


def test_shrinking_ends_at_start_if_that_is_more() -> None:
    assert shrink(40, 300.0, limits=replace(WEB, start=30))[0] == 30


def test_one_busy_moment_begins_the_calm_anew() -> None:
    pace = size_pool(Counts(idle=20), WEB, FRESH, NOW).pace
    pace = size_pool(Counts(idle=8, busy=12), WEB, pace, NOW + 9.5).pace
    assert pace.calm_since is None
    assert size_pool(Counts(idle=20), WEB, pace, NOW + 10).retire == 0


def test_only_the_smallest_number_of_idle_workers_counts() -> None:
    pace = size_pool(Counts(idle=40), WEB, FRESH, NOW).pace
    pace = size_pool(Counts(idle=12, busy=28), WEB, pace, NOW + 5).pace
    assert size_pool(Counts(idle=40), WEB, pace, NOW + PATIENCE).retire == 1
    pace = size_pool(Counts(idle=100), replace(WEB, max=100), FRESH, NOW).pace
    assert size_pool(Counts(idle=100), replace(WEB, max=100), pace, NOW + PATIENCE).retire == 9


def test_a_pool_that_regrets_a_shrink_waits_twice_as_long() -> None:
    """Once per shrink: a burst of load that asks for growth many times teaches it no more, and unteaches nothing."""
    pace = replace(FRESH, shrunk_at=NOW - 5)
    for moment in range(6):
        pace = size_pool(Counts(busy=10 + moment, queued=9), WEB, pace, NOW + moment * GROW_INTERVAL).pace
    assert pace.patience == 2 * PATIENCE
    for step, expected in enumerate((40.0, 80.0, 160.0, 320.0, PATIENCE_MAX)):
        pace = replace(pace, shrunk_at=NOW + 30 + step)
        pace = size_pool(Counts(busy=10, queued=9), WEB, pace, NOW + 31 + step).pace
        assert pace.patience == expected


def test_a_pool_that_does_not_regret_a_shrink_forgets_by_halves() -> None:
    pace = replace(FRESH, patience=80.0, shrunk_at=NOW)
    pace = size_pool(Counts(busy=10, queued=9), WEB, pace, NOW + 5 * REGRET).pace
    assert pace.patience == 80.0
    pace = size_pool(Counts(busy=10, queued=9), WEB, pace, NOW + 11 * REGRET).pace
    assert pace.patience == 40.0
    pace = size_pool(Counts(busy=10, queued=9), WEB, pace, NOW + 30 * REGRET).pace
    assert pace.patience == 40.0


def test_a_few_idle_workers_are_nothing_to_watch() -> None:
    for idle in range(5, 11):
        assert size_pool(Counts(idle=idle), WEB, FRESH, NOW).look_at is None


def test_a_pool_grows_only_as_far_as_there_is_room() -> None:
    hungry = Counts(idle=0, busy=8, queued=20, room=3, room_ends="the machine leaves 90 MiB, a worker takes 20")
    assert size_pool(hungry, WEB, FRESH, NOW).spawn == 3
    none = replace(hungry, room=0)
    sizing = size_pool(none, WEB, FRESH, NOW)
    assert (sizing.spawn, sizing.limit_reached, sizing.look_at) == (0, True, NOW + SHRINK_INTERVAL)
    assert sizing.reason == "25 missing for min_spare=5, but the machine leaves 90 MiB, a worker takes 20"
    # Said once, and asked again: memory comes back without anybody telling.
    again = size_pool(none, WEB, sizing.pace, NOW + SHRINK_INTERVAL)
    assert (again.spawn, again.limit_reached) == (0, False)
    assert size_pool(hungry, WEB, again.pace, NOW + 2 * SHRINK_INTERVAL).spawn == 3
    # One worker there is in any case: without it nobody would ever find out.
    assert size_pool(Counts(room=0, room_ends="?"), WEB, FRESH, NOW).spawn == 1
