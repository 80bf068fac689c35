"""The heart: goal, table, load, now → what to do, and when to ask again.

Nothing here remembers anything. Every rule compares what ought to be with what is and asks for the difference, so lost,
merged and repeated signals do no harm, a second TERM during a drain needs no code of its own, and asking twice without
news changes nothing. A failed fork is a fact in the table (`PoolAccount.not_before`), not a sleep.

How a generation comes to serve (nginx's ``ngx_init_cycle`` with processes instead of memory):

    candidate ── template of each pool READY ── one held worker (the canary) of each pool HELD for `SETTLE` ── Commit
    current   ── takeover: as each new worker serves, one old worker is asked to leave, never below the floor ──
    TakenOver
              ── `probation` without a row of deaths ── Proven, else Rollback to the previous generation

Anything that fails before the commit is an Abort, and has touched nothing old.
"""

from __future__ import annotations

from collections.abc import Iterable

from preforkd.core.policy import Counts, size_pool, target
from preforkd.core.table import EARLY, FREE_FAILURES, Table
from preforkd.model import (
    Abort,
    Action,
    Cause,
    Commit,
    Finish,
    Generation,
    Goal,
    KillStem,
    Leave,
    Load,
    Order,
    Phase,
    Plan,
    PoolGoal,
    PoolLoad,
    Proven,
    Record,
    Recovered,
    Release,
    Resized,
    Retire,
    RetireTemplate,
    Rollback,
    Signal,
    StartTemplate,
    TakenOver,
    TemplateState,
    Worker,
    WorkerState,
)

SIGQUIT, SIGKILL, SIGTERM = 3, 9, 15

#: A canary must stay up so long after it said "ready". It is what a reload takes at least; ten times longer would be
#: felt by the person who waits, ten times shorter would not catch a worker that exits right after its start. Seconds.
SETTLE = 0.2
#: An order without a pid: the intermediate, then the template, hangs (facts: a stopped intermediate). Seconds.
ORDER_DEADLINE = 5.0
#: A template that is stopped (SIGSTOP) for so long is replaced; its workers go on. Seconds.
TEMPLATE_STOPPED = 5.0
#: One message to a template carries so many birth channels at most (SCM_MAX_FD is 253).
BATCH = 16
#: Deaths by their own fault that a generation on probation may have.
PROBATION_DEATHS = 3

#: The stop ladders: (seconds since it was asked, signal). QUIT leaves at once (Apache's table: mpm_unix.c,
#: ap_reclaim_child_processes).
FAST_LADDER = ((0.0, SIGQUIT), (1.0, SIGKILL))
KILL_LADDER = ((0.0, SIGKILL),)
TEMPLATE_LADDER = ((0.0, SIGTERM), (2.0, SIGKILL))
STRANGER_LADDER = ((0.0, SIGTERM), (2.0, SIGKILL))


def graceful_ladder(graceful: float) -> tuple[tuple[float, int], ...]:
    """TERM, then after ``graceful`` seconds QUIT, then KILL."""
    return ((0.0, SIGTERM), (graceful, SIGQUIT), (graceful + 1.0, SIGKILL))


class _Wishes:
    """What the rules ask for, and the nearest moment at which one of them wants to be asked again."""

    def __init__(self) -> None:
        self.actions: list[Action] = []
        self.wake_at: float | None = None

    def ask(self, action: Action) -> None:
        self.actions.append(action)

    def wake(self, at: float | None) -> None:
        if at is not None and (self.wake_at is None or at < self.wake_at):
            self.wake_at = at

    def due(self, at: float, now: float) -> bool:
        """True when ``at`` has come; otherwise asks to be woken then."""
        if now >= at:
            return True
        self.wake(at)
        return False


def reconcile(goal: Goal, table: Table, load: Load, now: float) -> Plan:
    """Compare what ought to be with what is. Pure: reads ``table``, changes nothing. ``now`` is monotonic seconds."""
    wishes = _Wishes()
    if goal.phase in (Phase.STOP, Phase.FAST):
        _stop(goal, table, load, now, wishes)
    else:
        _deadlines(goal, table, now, wishes)
        if _candidate(goal, table, now, wishes):
            _templates(goal, table, now, wishes)
            _generations(goal, table, load, now, wishes)
    _ladders(table, load, now, wishes)
    return Plan(tuple(wishes.actions), wishes.wake_at)


# --- stopping ---------------------------------------------------------------------------------------------------------


def _stop(goal: Goal, table: Table, load: Load, now: float, wishes: _Wishes) -> None:
    fast = goal.phase is Phase.FAST
    for worker in table.workers.values():
        ladder = FAST_LADDER if fast else graceful_ladder(_pool_goal(goal, worker).graceful)
        if worker.leave is None or (fast and worker.leave.ladder not in (FAST_LADDER, KILL_LADDER)):
            wishes.ask(Retire(worker.id, Cause.STOP, ladder))
    for template in table.templates.values():
        if template.leave is None:
            wishes.ask(RetireTemplate(template.pool, template.generation, template.pid, Cause.STOP, TEMPLATE_LADDER))
    _overdue_births(table, now, wishes)
    if table.empty() and not load.strangers:
        wishes.ask(Finish())


# --- what takes too long
# -----------------------------------------------------------------------------------------------


def _pool_goal(goal: Goal, worker: Worker) -> PoolGoal:
    """The numbers that apply to a worker: those of its own generation, as far as they are still known."""
    for generation in (goal.current, goal.candidate, goal.previous):
        if generation is not None and generation.number == worker.generation and worker.pool in generation.pools:
            return generation.pools[worker.pool]
    for generation in (goal.current, goal.candidate, goal.previous):
        if generation is not None and worker.pool in generation.pools:
            return generation.pools[worker.pool]
    return PoolGoal(worker.pool, 1, 0, 1, 1)


def _deadlines(goal: Goal, table: Table, now: float, wishes: _Wishes) -> None:
    for worker in table.workers.values():
        if worker.leave is not None:
            continue
        limits = _pool_goal(goal, worker)
        if worker.state is WorkerState.STARTING and wishes.due(worker.born_at + limits.start_timeout, now):
            # It may be hidden behind an intermediate that was stopped before it could leave.
            if worker.stem is not None:
                wishes.ask(KillStem(worker.id, worker.stem))
            wishes.ask(Retire(worker.id, Cause.START_TIMEOUT, KILL_LADDER))
        elif worker.stopped_at is not None and wishes.due(worker.stopped_at + limits.graceful, now):
            wishes.ask(Retire(worker.id, Cause.STOPPED, KILL_LADDER))
    _overdue_births(table, now, wishes)
    for template in table.templates.values():
        if template.leave is not None:
            continue
        cause = None
        if template.stopped_at is not None and wishes.due(template.stopped_at + TEMPLATE_STOPPED, now):
            cause = Cause.STOPPED
        elif template.state is TemplateState.LOADING:
            limits = next(
                (
                    generation.pools[template.pool]
                    for generation in (goal.current, goal.candidate, goal.previous)
                    if generation is not None
                    and generation.number == template.generation
                    and template.pool in generation.pools
                ),
                PoolGoal(template.pool, 1, 0, 1, 1),
            )
            if wishes.due(template.started_at + limits.start_timeout, now):
                cause = Cause.START_TIMEOUT
        if cause is not None:
            wishes.ask(RetireTemplate(template.pool, template.generation, template.pid, cause, KILL_LADDER))


def _overdue_births(table: Table, now: float, wishes: _Wishes) -> None:
    """Orders without a pid: end first the intermediate that took it, then the template that should have (facts F1)."""
    for worker in table.workers.values():
        if worker.state is not WorkerState.ORDERED and not (worker.state is WorkerState.LEAVING and worker.pid is None):
            continue
        if not wishes.due(worker.ordered_at + ORDER_DEADLINE, now):
            continue
        if worker.stem is not None:
            wishes.ask(KillStem(worker.id, worker.stem))
        elif wishes.due(worker.ordered_at + 2 * ORDER_DEADLINE, now):
            template = table.templates.get((worker.pool, worker.generation))
            if template is not None and (template.leave is None or template.leave.ladder != KILL_LADDER):
                wishes.ask(RetireTemplate(template.pool, template.generation, template.pid, Cause.STOPPED, KILL_LADDER))


# --- templates
# ---------------------------------------------------------------------------------------------------------


def _templates(goal: Goal, table: Table, now: float, wishes: _Wishes) -> None:
    wanted: set[tuple[str, int]] = set()
    for generation in (goal.current, goal.candidate):
        if generation is None:
            continue
        for name, limits in generation.pools.items():
            key = (name, generation.number)
            wanted.add(key)
            if key in table.templates:
                continue
            account = table.account(name)
            # A crash loop of what serves now must not keep its own cure waiting, so the candidate never backs off.
            if generation is goal.candidate or wishes.due(account.not_before, now):
                preload = limits.preload and generation.number not in account.unsafe
                wishes.ask(StartTemplate(name, generation.number, preload))
    if goal.previous is not None:
        # Kept for a rollback as long as it lives; a new one would load today's code, which is not what served.
        wanted.update((name, goal.previous.number) for name in goal.previous.pools)
    for key, template in table.templates.items():
        if key not in wanted and template.leave is None:
            wishes.ask(RetireTemplate(template.pool, template.generation, template.pid, Cause.RELOAD, TEMPLATE_LADDER))


# --- the candidate
# -----------------------------------------------------------------------------------------------------


def _candidate(goal: Goal, table: Table, now: float, wishes: _Wishes) -> bool:
    """Prove the candidate. False when the goal is about to change, so that the other rules wait for the new one."""
    candidate = goal.candidate
    if candidate is None:
        return True
    failure = table.load_failures.get(candidate.number)
    if failure is not None:
        wishes.ask(Abort(candidate.number, failure))
        return False
    proven = True
    for name, limits in candidate.pools.items():
        account = table.account(name)
        canary = next((worker for worker in table.of(name) if worker.generation == candidate.number), None)
        if account.deaths.get(candidate.number, 0) > 0:
            wishes.ask(Abort(candidate.number, f"pool {name}: its first worker: {account.last_error}"))
            return False
        if canary is None:
            proven = False
            _order(goal, table, candidate, limits, 1, "proves the new generation", now, wishes, hold=True)
        elif canary.state is not WorkerState.HELD or not wishes.due(canary.ready_at + SETTLE, now):
            proven = False
    if proven:
        wishes.ask(Commit(candidate.number))
        return False
    return True


def _order(
    goal: Goal,
    table: Table,
    generation: Generation,
    limits: PoolGoal,
    count: int,
    reason: str,
    now: float,
    wishes: _Wishes,
    hold: bool = False,
) -> int:
    """Order up to ``count`` workers, as far as template, slots and forks per second allow. Returns how many."""
    template = table.templates.get((limits.name, generation.number))
    if template is None or template.state is not TemplateState.READY or template.stopped_at is not None:
        return 0
    if not hold and not wishes.due(table.account(limits.name).not_before, now):
        return 0
    slots = table.free_slots(limits.name, limits.capacity)[:count]
    for first in range(0, len(slots), BATCH):
        batch = tuple(slots[first : first + BATCH])
        wishes.ask(Order(limits.name, generation.number, batch, hold, reason))
    return len(slots)


# --- what serves
# -------------------------------------------------------------------------------------------------------


def _generations(goal: Goal, table: Table, load: Load, now: float, wishes: _Wishes) -> None:
    current = goal.current
    known = {g.number for g in (goal.current, goal.candidate) if g is not None}
    for worker in table.workers.values():
        if worker.leave is not None or worker.generation in known:
            continue
        if worker.state is not WorkerState.SERVING:
            # It has not served anybody: it may go at once.
            abandoned = goal.previous is None or worker.generation != goal.previous.number
            wishes.ask(Retire(worker.id, Cause.ABANDONED if abandoned else Cause.RELOAD, FAST_LADDER))
        elif current is None or worker.pool not in current.pools:
            wishes.ask(Retire(worker.id, Cause.RELOAD, graceful_ladder(_pool_goal(goal, worker).graceful)))
    if current is None:
        return
    if goal.phase is Phase.DRAIN:
        for worker in table.workers.values():
            if worker.leave is None and worker.generation == current.number:
                ladder = graceful_ladder(_pool_goal(goal, worker).graceful)
                wishes.ask(Retire(worker.id, Cause.DRAIN, ladder))
        return
    if _probation(goal, current, table, now, wishes):
        return
    pending = False
    for name, limits in current.pools.items():
        members = [worker for worker in table.of(name) if worker.leave is None]
        for worker in members:
            if worker.state is WorkerState.HELD and worker.generation == current.number:
                wishes.ask(Release(worker.id))
        _recovery(table, name, current, now, wishes)
        limits = target(limits, goal.bias)
        old = [w for w in members if w.generation not in known and w.state is WorkerState.SERVING]
        if goal.taking_over and old:
            pending = True
            _take_over(goal, table, current, limits, members, old, now, wishes)
        else:
            _size(goal, table, current, limits, members, load.pools.get(name, PoolLoad()), now, wishes)
    if goal.taking_over and not pending:
        wishes.ask(TakenOver(current.number))


def _probation(goal: Goal, current: Generation, table: Table, now: float, wishes: _Wishes) -> bool:
    """Watch a generation that was committed lately. True when it is to be rolled back."""
    if goal.previous is None:
        return False
    for name in current.pools:
        deaths = table.account(name).deaths.get(current.number, 0)
        if name in goal.previous.pools and deaths >= max(PROBATION_DEATHS, goal.floor.get(name, 0) // 2):
            reason = f"pool {name}: {deaths} workers died on probation; the last: {table.account(name).last_error}"
            wishes.ask(Rollback(current.number, reason))
            return True
    probation = max((limits.probation for limits in current.pools.values()), default=0.0)
    if not goal.taking_over and wishes.due(goal.committed_at + probation, now):
        wishes.ask(Proven(current.number))
    return False


def _recovery(table: Table, name: str, current: Generation, now: float, wishes: _Wishes) -> None:
    account = table.account(name)
    if account.failures == 0:
        return
    for worker in table.of(name):
        if (
            worker.state is WorkerState.SERVING
            and worker.generation == current.number
            and worker.ready_at > account.failed_at
            and wishes.due(worker.ready_at + EARLY, now)
        ):
            wishes.ask(Recovered(name))
            return


def _take_over(
    goal: Goal,
    table: Table,
    current: Generation,
    limits: PoolGoal,
    members: list[Worker],
    old: list[Worker],
    now: float,
    wishes: _Wishes,
) -> None:
    """Replace the workers of older generations, as fast as new ones get ready and never below the floor."""
    name = limits.name
    new = [w for w in members if w.generation == current.number]
    serving = [w for w in new if w.state is WorkerState.SERVING and w.stopped_at is None]
    floor = min(goal.floor.get(name, 0), limits.max)
    wanted = max(floor, limits.start, 1)
    if len(new) < wanted:
        _order(goal, table, current, limits, wanted - len(new), "takes over from the previous generation", now, wishes)
    surplus = len(old) if len(serving) >= wanted else len(serving) + len(old) - floor
    graceful = graceful_ladder(limits.graceful)
    for worker in old[: max(0, surplus)]:
        wishes.ask(Retire(worker.id, Cause.RELOAD, graceful))


def _size(
    goal: Goal,
    table: Table,
    current: Generation,
    limits: PoolGoal,
    members: list[Worker],
    load: PoolLoad,
    now: float,
    wishes: _Wishes,
) -> None:
    """Let the policy decide over one pool, and choose the slots and the victims."""
    name = limits.name
    mine = [w for w in members if w.generation == current.number]
    # A stopped worker is counted out at once: it neither serves nor is it about to.
    serving = [w for w in mine if w.state is WorkerState.SERVING and w.stopped_at is None]
    starting = sum(w.state is not WorkerState.SERVING for w in mine)
    idle = [w for w in serving if w.id in load.idle]
    stopped = len(mine) - starting - len(serving)
    counts = Counts(len(idle), len(serving) - len(idle) + stopped, starting, load.queued)
    account = table.account(name)
    sizing = size_pool(counts, limits, account.pace, now)
    wishes.wake(sizing.look_at)
    if sizing.limit_reached:
        wishes.ask(Record("pool_limit", {"pool": name, "reason": sizing.reason}, "warning"))
    spawned = 0
    if sizing.spawn:
        allowed = min(sizing.spawn, _tokens(table, limits, sizing.spawn, now, wishes))
        spawned = _order(goal, table, current, limits, allowed, sizing.reason, now, wishes)
    if sizing.retire:
        victims = sorted(idle or serving, key=lambda w: w.slot, reverse=True)[: sizing.retire]
        for worker in victims:
            wishes.ask(Retire(worker.id, Cause.SHRINK, graceful_ladder(limits.graceful)))
        if victims:
            wishes.ask(Record("pool_shrink", {"pool": name, "retire": len(victims), "reason": sizing.reason}))
    # What could not be done is no decision: keep the memory only of one that was carried out.
    if sizing.pace != account.pace and (not sizing.spawn or spawned):
        wishes.ask(Resized(name, sizing.pace))


def _tokens(table: Table, limits: PoolGoal, wanted: int, now: float, wishes: _Wishes) -> int:
    """Whole tokens for forks; asks to be woken when there are too few."""
    tokens = int(table.tokens(limits.name, limits, now))
    if tokens < wanted:
        wishes.wake(now + 0.1)
    return tokens


# --- ways out
# ----------------------------------------------------------------------------------------------------------


def _ladders(table: Table, load: Load, now: float, wishes: _Wishes) -> None:
    """Take the rungs whose time has come. Only pids that the table holds are signaled: they are not reaped yet."""
    for worker in table.workers.values():
        if worker.leave is not None and worker.pid is not None:
            rung = _rung(worker.leave, now, wishes)
            if rung is not None:
                signum, step = rung
                wishes.ask(Signal(worker.pid, signum, worker.leave.cause.value, step, worker=worker.id))
    for template in table.templates.values():
        if template.leave is not None:
            rung = _rung(template.leave, now, wishes)
            if rung is not None:
                key = (template.pool, template.generation)
                wishes.ask(Signal(template.pid, rung[0], template.leave.cause.value, rung[1], template=key))
    if table.empty():
        for pid in _sorted(load.strangers):
            leave = table.strangers.get(pid) or Leave(Cause.STOP, now, STRANGER_LADDER)
            if not leave.ladder:
                leave = Leave(leave.cause, leave.since, STRANGER_LADDER, leave.step)
            rung = _rung(leave, now, wishes)
            if rung is not None:
                wishes.ask(Signal(pid, rung[0], "left behind by the application", rung[1]))


def _rung(leave: Leave, now: float, wishes: _Wishes) -> tuple[int, int] | None:
    """The latest rung that is due and not taken: (signal, next step)."""
    due = None
    for step in range(leave.step, len(leave.ladder)):
        after, signum = leave.ladder[step]
        if not wishes.due(leave.since + after, now):
            break
        due = (signum, step + 1)
    return due


def _sorted(pids: Iterable[int]) -> list[int]:
    return sorted(pids)


#: Failures in a row that `_probation` and the back-off both start from; kept here for the tests' sake of one name.
CRASH_LOOP = FREE_FAILURES + 1
