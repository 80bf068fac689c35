"""The heart: goal, table, load, now → what to do, and when to ask again.

Nothing here remembers anything. Every rule compares what ought to be with what is and asks for the difference, so lost,
merged and repeated signals do no harm, a second TERM during a drain needs no code of its own, and asking twice without
news changes nothing. A failed fork is a fact in the table (`PoolAccount.short_until`), not a sleep.

Whatever a plan asks for is news once it is done: ask again before going to sleep, until a plan is empty. Only an empty
plan's `wake_at` can be relied on.

How a generation comes to serve (nginx's ``ngx_init_cycle`` with processes instead of memory):

    candidate  template of each pool READY, one held worker (the canary) of each pool HELD for `SETTLE`: Commit
    current    takeover: as new workers serve, old ones are asked to leave, never below the floor: TakenOver
               `probation` without a row of deaths: Proven, else Rollback to the previous generation

Anything that fails before the commit is an Abort, and has touched nothing old.
"""

from __future__ import annotations

from preforkd.core.policy import Counts, size_pool, target
from preforkd.core.table import BACKOFF_MAX, EARLY, FREE_FAILURES, TOKENS_PER_SECOND, PoolAccount, Table
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
    StartFailed,
    StartTemplate,
    TakenOver,
    Template,
    TemplateState,
    Worker,
    WorkerState,
)

SIGQUIT, SIGKILL, SIGTERM = 3, 9, 15

#: A canary must stay up so long after it said "ready". It is what a reload takes at least; ten times longer would be
#: felt by the person who waits, ten times shorter would not catch a worker that exits right after its start. Seconds.
SETTLE = 0.2
#: An order without a pid: the intermediate, then the template, hangs (facts: a stopped intermediate). A canary that is
#: not born after three times as long will not be. Seconds.
ORDER_DEADLINE = 5.0
#: A template that is stopped (SIGSTOP) for so long is replaced; its workers go on. Seconds.
TEMPLATE_STOPPED = 5.0
#: One message to a template carries so many birth channels at most (SCM_MAX_FD is 253).
BATCH = 16
#: Deaths by their own fault that a generation on probation may have, and rounds of them in a row.
PROBATION_DEATHS = 3
PROBATION_ROUNDS = 5
#: Canaries and templates of a candidate that others may kill before the reload is given up.
CANDIDATE_LOSSES = 3
#: Forks in a row that the system may refuse before a reload is given up: about half a minute, with `SHORT_MAX` between.
CANDIDATE_SHORTAGES = 30
#: So long after the last failure a row of them is over even if no worker was born since, because none was needed. More
#: than `BACKOFF_MAX`, or a crash loop would end its own row. Seconds.
CALM = 2 * BACKOFF_MAX

#: The stop ladders: (seconds since it was asked, signal). QUIT leaves at once (Apache's table: mpm_unix.c,
#: ap_reclaim_child_processes).
FAST_LADDER = ((0.0, SIGQUIT), (1.0, SIGKILL))
KILL_LADDER = ((0.0, SIGKILL),)
#: For a worker that has not served anybody, as far as is known. TERM comes first: a worker that serves already, though
#: nobody has heard of it yet, takes it for a graceful leave; one that does not ends at once.
BOOT_LADDER = ((0.0, SIGTERM), (0.5, SIGQUIT), (1.0, SIGKILL))
TEMPLATE_LADDER = ((0.0, SIGTERM), (2.0, SIGKILL))
STRANGER_LADDER = ((0.0, SIGTERM), (2.0, SIGKILL))

_NO_ACCOUNT = PoolAccount()
_NO_LOAD = PoolLoad()


def graceful_ladder(graceful: float) -> tuple[tuple[float, int], ...]:
    """TERM, then after ``graceful`` seconds QUIT, then KILL; 0 is no limit: only TERM."""
    if graceful == 0:
        return ((0.0, SIGTERM),)
    return ((0.0, SIGTERM), (graceful, SIGQUIT), (graceful + 1.0, SIGKILL))


class _Wishes:
    """What the rules ask for, and the nearest moment at which one of them wants to be asked again."""

    def __init__(self) -> None:
        self.actions: list[Action] = []
        self.wake_at: float | None = None
        #: Whose way out begins (anew) with this plan: the first to ask wins, and the old ladder's rungs are void.
        self.retired: set[int] = set()
        self.retired_templates: set[int] = set()

    def ask(self, action: Action) -> None:
        self.actions.append(action)

    def retire(self, worker: Worker, cause: Cause, ladder: tuple[tuple[float, int], ...]) -> None:
        if worker.id not in self.retired:
            self.retired.add(worker.id)
            self.actions.append(Retire(worker.id, cause, ladder))

    def retire_template(self, template: Template, cause: Cause, ladder: tuple[tuple[float, int], ...]) -> None:
        if template.pid not in self.retired_templates:
            self.retired_templates.add(template.pid)
            self.actions.append(RetireTemplate(template.pool, template.generation, template.pid, cause, ladder))

    def due(self, at: float, now: float) -> bool:
        """True when ``at`` has come; otherwise asks to be woken then."""
        if now >= at:
            return True
        if self.wake_at is None or at < self.wake_at:
            self.wake_at = at
        return False


def reconcile(goal: Goal, table: Table, load: Load, now: float) -> Plan:
    """Compare what ought to be with what is. Pure: reads ``table``, changes nothing. ``now`` is monotonic seconds."""
    wishes = _Wishes()
    stopping = goal.phase in (Phase.STOP, Phase.FAST)
    _births(table, now, wishes)
    _late_servers(goal, table, wishes)
    if stopping:
        _stop(goal, table, load, wishes)
    else:
        _deadlines(goal, table, now, wishes)
        if _candidate(goal, table, now, wishes):
            _templates(goal, table, now, wishes)
            _generations(goal, table, load, now, wishes)
    _ladders(table, now, wishes)
    if stopping and table.unborn():
        _strangers(table, load, now, wishes)
    return Plan(tuple(wishes.actions), wishes.wake_at)


# --- stopping --------------------------------------------------------------------------------------------------------


def _stop(goal: Goal, table: Table, load: Load, wishes: _Wishes) -> None:
    fast = goal.phase is Phase.FAST
    for worker in table.workers.values():
        if worker.leave is None or (fast and worker.leave.ladder not in (FAST_LADDER, KILL_LADDER)):
            wishes.retire(worker, Cause.STOP, FAST_LADDER if fast else _way_out(goal, worker))
    for template in table.templates.values():
        if template.leave is None:
            wishes.retire_template(template, Cause.STOP, TEMPLATE_LADDER)
    if table.empty() and not load.strangers:
        wishes.ask(Finish())


# --- numbers of the configuration ------------------------------------------------------------------------------------


def _limits(goal: Goal, pool: str, number: int) -> PoolGoal:
    """The numbers that apply to a member of a pool: those of its own generation, as far as they are still known."""
    found = None
    for generation in (goal.previous, goal.candidate, goal.current):
        if generation is not None and pool in generation.pools:
            found = generation.pools[pool]
            if generation.number == number:
                return found
    return found or PoolGoal(pool, 1, 0, 1, 1)


def _way_out(goal: Goal, worker: Worker) -> tuple[tuple[float, int], ...]:
    """The ladder of a worker that is not wanted any more: what has not served anybody may go at once."""
    if worker.state is WorkerState.SERVING:
        return graceful_ladder(_limits(goal, worker.pool, worker.generation).graceful)
    return BOOT_LADDER


def _late_servers(goal: Goal, table: Table, wishes: _Wishes) -> None:
    """Let a worker finish that was asked to leave before it was known to be ready, and has begun to serve meanwhile."""
    if goal.phase is Phase.FAST:
        return
    for worker in table.workers.values():
        leave = worker.leave
        if leave is not None and leave.ladder == BOOT_LADDER and worker.ready_at and not worker.hold:
            ladder = graceful_ladder(_limits(goal, worker.pool, worker.generation).graceful)
            if ladder != BOOT_LADDER:
                wishes.retire(worker, leave.cause, ladder)


# --- what takes too long ---------------------------------------------------------------------------------------------


def _births(table: Table, now: float, wishes: _Wishes) -> None:
    """Workers that are not born, or not our children, when they should be (facts F1).

    Without a pid: end the intermediate that took the order, then the template that should have. With a pid: a stopped
    intermediate hides the death of its worker, for as long as the worker has not said that it is ready.
    """
    for worker in table.workers.values():
        if worker.pid is not None:
            if worker.stem is not None and wishes.due(worker.born_at + ORDER_DEADLINE, now):
                wishes.ask(KillStem(worker.id, worker.stem))
        elif wishes.due(worker.ordered_at + ORDER_DEADLINE, now):
            if worker.stem is not None:
                wishes.ask(KillStem(worker.id, worker.stem))
            elif wishes.due(worker.ordered_at + 2 * ORDER_DEADLINE, now):
                template = table.templates.get((worker.pool, worker.generation))
                # One that was started since has never heard of the order.
                if template is None or template.started_at > worker.ordered_at:
                    continue
                if template.leave is None or template.leave.ladder != KILL_LADDER:
                    wishes.retire_template(template, Cause.STOPPED, KILL_LADDER)


def _deadlines(goal: Goal, table: Table, now: float, wishes: _Wishes) -> None:
    for worker in table.workers.values():
        if worker.leave is not None:
            continue
        if worker.state is WorkerState.STARTING:
            limits = _limits(goal, worker.pool, worker.generation)
            if limits.start_timeout and wishes.due(worker.born_at + limits.start_timeout, now):
                # It may be hidden behind an intermediate that was stopped before it could leave.
                if worker.stem is not None and worker.born_at + ORDER_DEADLINE > now:
                    wishes.ask(KillStem(worker.id, worker.stem))
                wishes.retire(worker, Cause.START_TIMEOUT, KILL_LADDER)
        if worker.stopped_at is not None:
            limits = _limits(goal, worker.pool, worker.generation)
            if limits.graceful and wishes.due(worker.stopped_at + limits.graceful, now):
                wishes.retire(worker, Cause.STOPPED, KILL_LADDER)
    for template in table.templates.values():
        if template.leave is not None:
            continue
        if template.state is TemplateState.LOADING:
            limits = _limits(goal, template.pool, template.generation)
            if limits.start_timeout and wishes.due(template.started_at + limits.start_timeout, now):
                wishes.retire_template(template, Cause.START_TIMEOUT, KILL_LADDER)
        if template.stopped_at is not None and wishes.due(template.stopped_at + TEMPLATE_STOPPED, now):
            wishes.retire_template(template, Cause.STOPPED, KILL_LADDER)


# --- templates -------------------------------------------------------------------------------------------------------


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
            account = table.accounts.get(name, _NO_ACCOUNT)
            # A crash loop of what serves now must not keep its own cure waiting, so the candidate never backs off.
            not_before = account.short_until
            if generation is not goal.candidate:
                not_before = max(not_before, account.not_before)
            if wishes.due(not_before, now):
                preload = limits.preload and generation.number not in account.unsafe
                wishes.ask(StartTemplate(name, generation.number, preload))
    if goal.previous is not None:
        # Kept for a rollback as long as it lives; a new one would load today's code, which is not what served.
        wanted.update((name, goal.previous.number) for name in goal.previous.pools)
    for key, template in table.templates.items():
        if key not in wanted and template.leave is None:
            wishes.retire_template(template, _why_unwanted(goal, template.generation), TEMPLATE_LADDER)


def _why_unwanted(goal: Goal, generation: int) -> Cause:
    """Why the members of a generation that is neither current nor candidate have to go."""
    if goal.current is not None and generation < goal.current.number:
        return Cause.RELOAD
    return Cause.ABANDONED


# --- the candidate ---------------------------------------------------------------------------------------------------


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
    canaries = {worker.pool: worker for worker in table.workers.values() if worker.generation == candidate.number}
    for name, limits in candidate.pools.items():
        account = table.accounts.get(name, _NO_ACCOUNT)
        if candidate.number in account.deaths:
            reason = f"pool {name}: its first worker: {account.last_death[candidate.number]}"
            wishes.ask(Abort(candidate.number, reason))
            return False
        losses = account.lost.get(candidate.number, 0)
        if losses >= CANDIDATE_LOSSES:
            reason = (
                f"pool {name}: its first worker or its template was lost {losses} times; the last: {account.last_error}"
            )
            wishes.ask(Abort(candidate.number, reason))
            return False
        canary = canaries.get(name)
        if canary is None and account.shortages >= CANDIDATE_SHORTAGES:
            # Somebody waits for the answer; what serves goes on, and may be reloaded when the shortage is over.
            wishes.ask(Abort(candidate.number, f"pool {name}: {account.last_error}"))
            return False
        if canary is None:
            proven = False
            _order(table, candidate, limits, 1, "proves the new generation", now, wishes, hold=True)
        elif canary.pid is None and canary.leave is None and wishes.due(canary.ordered_at + 3 * ORDER_DEADLINE, now):
            # Its order went to a template that was killed since; whoever holds its birth channel cannot be found.
            wishes.ask(Abort(candidate.number, f"pool {name}: its first worker was not born in time"))
            return False
        elif (
            canary.state is not WorkerState.HELD
            or canary.stopped_at is not None
            or (goal.current is not None and not wishes.due(canary.ready_at + SETTLE, now))
        ):
            proven = False
    if proven:
        wishes.ask(Commit(candidate.number))
        return False
    return True


def _order(
    table: Table,
    generation: Generation,
    limits: PoolGoal,
    count: int,
    reason: str,
    now: float,
    wishes: _Wishes,
    hold: bool = False,
) -> int:
    """Order up to ``count`` workers, as far as template, slots and forks per second allow. Returns how many.

    Where it is less, something will happen that lets the rest be asked for (a template gets ready, a worker is reaped),
    or a moment to ask again is in the plan.
    """
    name = limits.name
    template = table.templates.get((name, generation.number))
    if template is None or template.state is not TemplateState.READY or template.stopped_at is not None:
        return 0
    account = table.accounts.get(name, _NO_ACCOUNT)
    if not wishes.due(account.short_until, now):
        return 0
    if not hold:
        if not wishes.due(account.not_before, now):
            return 0
        if account.failures > FREE_FAILURES:
            # In a crash loop one worker at a time tries whether it is over. It has to stay up, not only to get ready:
            # then `_recovery` ends the row.
            trying = sum(
                worker.generation == generation.number
                and worker.leave is None
                and (worker.state is not WorkerState.SERVING or worker.ready_at > account.failed_at)
                for worker in table.of(name)
            )
            count = min(count, 1 - trying)
        if count > 0:
            tokens = int(table.tokens(name, limits, now))
            if tokens < count:
                wishes.due(now + 1.0 / TOKENS_PER_SECOND, now)
                count = tokens
    if count <= 0:
        return 0
    slots = table.free_slots(name, generation.number, limits.capacity)[:count]
    for first in range(0, len(slots), BATCH):
        batch = tuple(slots[first : first + BATCH])
        wishes.ask(Order(name, generation.number, batch, hold, reason))
    return len(slots)


# --- what serves -----------------------------------------------------------------------------------------------------


def _generations(goal: Goal, table: Table, load: Load, now: float, wishes: _Wishes) -> None:
    current = goal.current
    known = {g.number for g in (goal.current, goal.candidate) if g is not None}
    members: dict[str, list[Worker]] = {}
    for worker in table.workers.values():
        if worker.leave is not None or worker.id in wishes.retired:
            continue
        if worker.generation not in known:
            unwanted = current is None or worker.pool not in current.pools
            if unwanted or worker.state is not WorkerState.SERVING:
                cause = _why_unwanted(goal, worker.generation)
                if cause is Cause.ABANDONED and worker.state is WorkerState.SERVING:
                    cause = Cause.ROLLBACK
                wishes.retire(worker, cause, _way_out(goal, worker))
                continue
        members.setdefault(worker.pool, []).append(worker)
    if current is None:
        return
    if goal.phase is Phase.DRAIN:
        _drain(goal, current, members, wishes)
        return
    if _failed_start(goal, current, table, wishes) or _probation(goal, current, table, now, wishes):
        return
    pending = False
    for name, limits in current.pools.items():
        all_of_it = members.get(name, [])
        mine = [worker for worker in all_of_it if worker.generation == current.number]
        for worker in mine:
            if worker.state is WorkerState.HELD:
                wishes.ask(Release(worker.id))
        _recovery(table, name, mine, now, wishes)
        limits = target(limits, goal.bias)
        old = [worker for worker in all_of_it if worker.generation not in known] if goal.taking_over else []
        if old:
            pending = True
            _take_over(goal, table, current, limits, mine, old, now, wishes)
        else:
            _size(table, current, limits, mine, load.pools.get(name, _NO_LOAD), now, wishes)
    if goal.starting and not wishes.due(goal.committed_at + SETTLE, now):
        return  # The first generation serves as soon as it can, and has to show afterwards that it stays up.
    if goal.taking_over and not pending:
        wishes.ask(TakenOver(current.number))


def _failed_start(goal: Goal, current: Generation, table: Table, wishes: _Wishes) -> bool:
    """Did a worker of the very first generation die by its own fault before the start was over?"""
    for name in current.pools if goal.starting and goal.previous is None else ():
        account = table.accounts.get(name, _NO_ACCOUNT)
        if current.number in account.deaths:
            reason = f"pool {name}: its first worker: {account.last_death[current.number]}"
            wishes.ask(StartFailed(current.number, reason))
            return True
    return False


def _drain(goal: Goal, current: Generation, members: dict[str, list[Worker]], wishes: _Wishes) -> None:
    """Everybody leaves who serves; a candidate goes on being proven."""
    candidate = goal.candidate.number if goal.candidate is not None else None
    for workers in members.values():
        for worker in workers:
            if worker.generation != candidate:
                wishes.retire(worker, Cause.DRAIN, _way_out(goal, worker))
    if goal.taking_over:
        wishes.ask(TakenOver(current.number))


def _probation(goal: Goal, current: Generation, table: Table, now: float, wishes: _Wishes) -> bool:
    """Watch a generation that was committed lately. True when it is to be rolled back."""
    previous = goal.previous
    if previous is None:
        return False
    for name in current.pools:
        account = table.accounts.get(name, _NO_ACCOUNT)
        deaths = account.deaths.get(current.number, 0)
        too_many = deaths >= max(PROBATION_DEATHS, goal.floor.get(name, 0) // 2) or account.failures >= PROBATION_ROUNDS
        if too_many and deaths and name in previous.pools and _can_return(previous, table):
            reason = f"pool {name}: {deaths} workers died on probation; the last: {account.last_death[current.number]}"
            wishes.ask(Rollback(current.number, reason))
            return True
    probation = max((limits.probation for limits in current.pools.values()), default=0.0)
    if not goal.taking_over and wishes.due(goal.committed_at + probation, now):
        wishes.ask(Proven(current.number))
    return False


def _can_return(previous: Generation, table: Table) -> bool:
    """Is what served before still loaded? Else today's code would be loaded for it, which is what keeps dying."""
    for name in previous.pools:
        template = table.templates.get((name, previous.number))
        if template is None or template.state is not TemplateState.READY or template.stopped_at is not None:
            return False
    return True


def _recovery(table: Table, name: str, mine: list[Worker], now: float, wishes: _Wishes) -> None:
    """A row of failures is over when a worker stays up, or when nothing has failed for long and nobody is trying."""
    account = table.accounts.get(name, _NO_ACCOUNT)
    if account.failures == 0:
        return
    trying = False
    for worker in mine:
        if worker.state is not WorkerState.SERVING:
            trying = True
        elif worker.ready_at > account.failed_at and wishes.due(worker.ready_at + EARLY, now):
            wishes.ask(Recovered(name))
            return
    template = table.templates.get((name, table.serving or 0))
    if template is None or template.state is not TemplateState.READY:
        trying = True
    if mine and not trying and wishes.due(account.failed_at + CALM, now):
        wishes.ask(Recovered(name))


def _take_over(
    goal: Goal,
    table: Table,
    current: Generation,
    limits: PoolGoal,
    new: list[Worker],
    old: list[Worker],
    now: float,
    wishes: _Wishes,
) -> None:
    """Replace the workers of older generations, as fast as new ones get ready and never below the floor."""
    floor = min(goal.floor.get(limits.name, 0), limits.max)
    wanted = max(floor, limits.start, 1)
    if len(new) < wanted:
        _order(table, current, limits, wanted - len(new), "takes over from the previous generation", now, wishes)
    serving = sum(map(_serves, new))
    victims = old
    if serving < wanted:
        # A stopped one does not count, and may come back: it waits for its deadline or for the end of the takeover.
        alive = [worker for worker in old if _serves(worker)]
        victims = alive[: max(0, serving + len(alive) - floor)]
    for worker in victims:
        cause = Cause.RELOAD if worker.generation < current.number else Cause.ROLLBACK
        wishes.retire(worker, cause, graceful_ladder(limits.graceful))


def _serves(worker: Worker) -> bool:
    # A stopped worker is counted out at once: it neither serves nor is it about to.
    return worker.state is WorkerState.SERVING and worker.stopped_at is None


def _size(
    table: Table,
    current: Generation,
    limits: PoolGoal,
    mine: list[Worker],
    load: PoolLoad,
    now: float,
    wishes: _Wishes,
) -> None:
    """Let the policy decide over one pool, and choose the slots and the victims."""
    name = limits.name
    idle, busy, stopped, starting = [], [], [], []
    for worker in mine:
        if worker.state is not WorkerState.SERVING:
            starting.append(worker)
        elif worker.stopped_at is not None:
            stopped.append(worker)
        elif worker.id in load.idle:
            idle.append(worker)
        else:
            busy.append(worker)
    pace = table.accounts.get(name, _NO_ACCOUNT).pace
    counts = Counts(
        len(idle), len(busy) + len(stopped), len(starting), load.queued, room=load.room, room_ends=load.room_ends
    )
    sizing = size_pool(counts, limits, pace, now)
    if sizing.limit_reached:
        wishes.ask(Record("pool_limit", {"pool": name, "reason": sizing.reason}, "warning"))
    if sizing.spawn and not _order(table, current, limits, sizing.spawn, sizing.reason, now, wishes):
        return  # What could not be done is no decision, and what it waits for is an event, or in the plan already.
    if sizing.retire:
        # Who does not serve goes first, then who is idle; from the end, so that the lowest slots stay.
        order = [worker for group in (starting, stopped, idle, busy) for worker in _from_the_end(group)]
        for worker in order[: sizing.retire]:
            ladder = graceful_ladder(limits.graceful) if worker.state is WorkerState.SERVING else BOOT_LADDER
            wishes.retire(worker, Cause.SHRINK, ladder)
        wishes.ask(Record("pool_shrink", {"pool": name, "retire": sizing.retire, "reason": sizing.reason}))
    if sizing.look_at is not None:
        wishes.due(sizing.look_at, now)
    if sizing.pace is not pace and sizing.pace != pace:
        wishes.ask(Resized(name, sizing.pace))


def _from_the_end(workers: list[Worker]) -> list[Worker]:
    return sorted(workers, key=lambda worker: worker.slot, reverse=True)


# --- ways out --------------------------------------------------------------------------------------------------------


def _ladders(table: Table, now: float, wishes: _Wishes) -> None:
    """Take the rungs whose time has come. Only pids that the table holds are signaled: they are not reaped yet."""
    for worker in table.workers.values():
        if worker.leave is not None and worker.pid is not None and worker.id not in wishes.retired:
            rung = _rung(worker.leave, now, wishes)
            if rung is not None:
                signum, step = rung
                wishes.ask(Signal(worker.pid, signum, worker.leave.cause.value, step, worker=worker.id))
    for key, template in table.templates.items():
        if template.leave is not None and template.pid not in wishes.retired_templates:
            rung = _rung(template.leave, now, wishes)
            if rung is not None:
                signum, step = rung
                wishes.ask(Signal(template.pid, signum, template.leave.cause.value, step, template=key))


def _strangers(table: Table, load: Load, now: float, wishes: _Wishes) -> None:
    """What the application left behind, and intermediates that nobody heard of, once everybody else is gone."""
    for pid in sorted(load.strangers):
        known = table.strangers.get(pid)
        leave = Leave(Cause.STOP, known.since if known else now, STRANGER_LADDER, known.step if known else 0)
        rung = _rung(leave, now, wishes)
        if rung is not None:
            signum, step = rung
            wishes.ask(Signal(pid, signum, "left behind by the application", step))


def _rung(leave: Leave, now: float, wishes: _Wishes) -> tuple[int, int] | None:
    """The latest rung that is due and not taken: (signal, next step)."""
    due = None
    for step in range(leave.step, len(leave.ladder)):
        after, signum = leave.ladder[step]
        if not wishes.due(leave.since + after, now):
            break
        due = (signum, step + 1)
    return due
