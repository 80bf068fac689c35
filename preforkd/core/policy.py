"""How many workers? Apache's vocabulary (start, min_spare, max_spare, max) with quicker growth and slower shrinking.

Growth is by need: the idle workers that are missing below ``min_spare``, plus the connections that already wait in the
accept queue; at most as many as there are already (a doubling), because a queue that is long for a millisecond is no
reason for 250 processes. Apache doubles too, but once a second (prefork.c, perform_idle_server_maintenance); here the
next doubling may come `GROW_INTERVAL` after the last, if by then the need is still there.

Shrinking is slow, and it learns (uWSGI, cheaper_busyness.c): only the *smallest* number of idle workers seen over a
window counts as spare, and a pool that had to grow soon after it shrank waits twice as long the next time.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from preforkd.model import Pace, PoolGoal

#: Seconds between two looks at a pool that is short of spare workers. Ten times longer, and a pool of 2 needs more than
#: a second to reach 64; ten times shorter, and a doubling is decided before the last one can serve.
GROW_INTERVAL = 0.05
#: Seconds between two looks at a pool that may be too large. Nothing in the service waits for this.
SHRINK_INTERVAL = 1.0
#: Calm seconds before a pool shrinks, at first and at most.
PATIENCE = 10.0
PATIENCE_MAX = 320.0
#: Growth sooner than this many seconds after a shrink means that the shrink was a mistake; growth later than ten times
#: that, that it was none, and half of what was learned is forgotten.
REGRET = 60.0
#: Seconds without a wish to grow beyond ``max`` that end an episode at the limit. Shorter, and a pool whose load
#: touches the limit now and then fills the log.
EPISODE = 60.0
#: Small pools may grow by this many at once.
GROW_AT_LEAST = 4
#: One decision never asks for more.
GROW_AT_MOST = 32
#: `Pace.shrunk_at` of a pool that has not shrunk, or whose last shrink has been judged.
_NEVER = -1e9


@dataclass(frozen=True, slots=True)
class Counts:
    """The pool as it is: serving workers by what they do, and those on their way (ordered or starting)."""

    idle: int = 0
    busy: int = 0
    starting: int = 0
    queued: int = 0
    #: Workers more that the machine has room for, and what ends first; None: no limit known.
    room: int | None = None
    room_ends: str = ""

    @property
    def total(self) -> int:
        return self.idle + self.busy + self.starting


@dataclass(frozen=True, slots=True)
class Sizing:
    """The answer: spawn or retire so many (never both), why, when to look again, and the memory for the next time."""

    spawn: int
    retire: int
    reason: str
    look_at: float | None
    pace: Pace
    #: Said once per episode: the pool wanted to grow and was at its limit.
    limit_reached: bool = False


def target(limits: PoolGoal, bias: int) -> PoolGoal:
    """The limits with TTIN and TTOU applied: a positive bias keeps more spare, a negative one lowers ``max``."""
    if bias == 0:
        return limits
    if bias > 0:
        more = min(bias, limits.max)
        return replace(
            limits,
            start=min(limits.start + more, limits.max),
            min_spare=min(limits.min_spare + more, limits.max),
            max_spare=min(max(limits.max_spare, limits.min_spare) + more, limits.max),
        )
    ceiling = max(1, max(limits.start, limits.min_spare) + bias)
    return replace(
        limits,
        max=ceiling,
        start=min(limits.start, ceiling),
        min_spare=min(limits.min_spare, ceiling),
        max_spare=min(limits.max_spare, ceiling),
    )


def size_pool(counts: Counts, limits: PoolGoal, pace: Pace, now: float) -> Sizing:
    """Decide the size of one pool. Pure; ``now`` is monotonic seconds. See the head of this file for the rules."""
    if counts.total > limits.max:
        surplus = counts.total - limits.max
        return Sizing(0, surplus, f"{counts.total} workers, at most {limits.max} allowed", None, _not_calm(pace))

    # Never fewer than `start`: a worker that died is replaced whether or not anybody waits for it.
    missing = max(
        limits.min_spare + counts.queued - counts.idle - counts.starting,
        min(limits.start, limits.max) - counts.total,
        1 - counts.total,
    )
    if missing > 0:
        return _grow(missing, counts, limits, pace, now)
    return _shrink(counts, limits, pace, now)


def _grow(missing: int, counts: Counts, limits: PoolGoal, pace: Pace, now: float) -> Sizing:
    pace = _not_calm(pace)
    room = limits.max - counts.total
    if room <= 0:
        # Nothing can be done about it, but somebody has to notice when the load ends.
        reported = pace.limit_reported and now < pace.limited_at + EPISODE
        look_at = now + SHRINK_INTERVAL if counts.total > limits.max_spare else None
        reason = f"{counts.busy} of {limits.max} workers busy, {counts.queued} connections waiting: workers.max reached"
        if counts.idle:
            # Fewer spare ones than wanted, but nobody waits: in a small pool that is how things are.
            return Sizing(0, 0, "", look_at, pace)
        pace = replace(pace, limit_reported=True, limited_at=now)
        return Sizing(0, 0, reason, look_at, pace, limit_reached=not reported)
    if counts.total >= max(1, limits.start) and now < pace.grown_at + GROW_INTERVAL:
        return Sizing(0, 0, "", pace.grown_at + GROW_INTERVAL, pace)
    if counts.room is not None and counts.room < room:
        room = counts.room if counts.total else max(1, counts.room)
        if room <= 0:
            reported = pace.limit_reported and now < pace.limited_at + EPISODE
            pace = replace(pace, limit_reported=True, limited_at=now)
            reason = f"{missing} missing for min_spare={limits.min_spare}, but {counts.room_ends}"
            return Sizing(0, 0, reason, now + SHRINK_INTERVAL, pace, limit_reached=not reported)
    step = max(counts.total, limits.start - counts.total, GROW_AT_LEAST)
    spawn = min(missing, room, step, GROW_AT_MOST)
    patience = pace.patience or PATIENCE
    shrunk_at = pace.shrunk_at
    if now < shrunk_at + REGRET:
        # Judged once: one burst of load asks for growth several times.
        patience, shrunk_at = min(patience * 2, PATIENCE_MAX), _NEVER
    elif shrunk_at > _NEVER and now > shrunk_at + 10 * REGRET:
        patience, shrunk_at = max(patience / 2, PATIENCE), _NEVER
    reason = (
        f"{counts.idle} idle, {counts.starting} starting, {counts.busy} busy, {counts.queued} waiting:"
        f" {missing} missing for min_spare={limits.min_spare}"
    )
    pace = replace(pace, grown_at=now, patience=patience, shrunk_at=shrunk_at)
    return Sizing(spawn, 0, reason, now + GROW_INTERVAL, pace)


def _shrink(counts: Counts, limits: PoolGoal, pace: Pace, now: float) -> Sizing:
    if counts.total <= max(limits.max_spare, limits.start, 1):
        # So few that they may all be idle: nothing to watch, the master may sleep for ever.
        return Sizing(0, 0, "", None, _not_calm(pace))
    if counts.idle <= limits.max_spare:
        return Sizing(0, 0, "", now + SHRINK_INTERVAL, _not_calm(pace))
    if pace.calm_since is None:
        return Sizing(0, 0, "", now + SHRINK_INTERVAL, replace(pace, calm_since=now, calm_idle=counts.idle))
    if counts.idle < pace.calm_idle:
        pace = replace(pace, calm_idle=counts.idle)
    assert pace.calm_since is not None
    due = max(pace.calm_since + (pace.patience or PATIENCE), pace.shrunk_at + SHRINK_INTERVAL)
    surplus = min(min(pace.calm_idle, counts.idle) - limits.max_spare, counts.total - limits.start)
    if now < due or surplus <= 0:
        return Sizing(0, 0, "", min(due, now + SHRINK_INTERVAL) if now < due else now + SHRINK_INTERVAL, pace)
    # A tenth of the surplus at a time: 600 idle workers leave in about a minute, five in five seconds.
    retire = max(1, surplus // 10)
    reason = f"{counts.idle} idle for {now - pace.calm_since:.0f} s, at most max_spare={limits.max_spare} wanted"
    return Sizing(0, retire, reason, now + SHRINK_INTERVAL, replace(pace, shrunk_at=now))


def _not_calm(pace: Pace) -> Pace:
    """Close the calm window."""
    return pace if pace.calm_since is None else replace(pace, calm_since=None)
