"""Goal and table under one roof: wishes come in, facts come in, and each plan is carried out through a `Kernel`.

The `Kernel` is the narrow seam to the system. The real one forks and kills (`preforkd.master.kernel`), the simulated
one lives in the tests; both pass the same contract tests. What a plan means for the goal (a commit, a rollback) happens
here, so that the simulator drives exactly what the master runs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Protocol

from preforkd.core.reconcile import reconcile
from preforkd.core.table import Table
from preforkd.model import (
    Abort,
    Action,
    Commit,
    Generation,
    Goal,
    KillStem,
    Load,
    Order,
    Phase,
    Plan,
    PoolGoal,
    Proven,
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
    Worker,
    WorkerState,
)

_URGENCY = {Phase.RUN: 0, Phase.DRAIN: 0, Phase.STOP: 1, Phase.FAST: 2}


class Kernel(Protocol):
    """What the heart asks of the system. No method blocks."""

    def start_template(self, pool: str, generation: int, preload: bool) -> int:
        """Fork a template; returns its pid. Raises OSError when there is no process to be had."""

    def order(self, workers: Sequence[Worker]) -> None:
        """Ask the template of their pool and generation for these workers. A template that cannot take the order is a
        birth that never happens: `Table.never_born` follows."""

    def signal(self, pid: int, signum: int) -> None:
        """Send a signal to a process that is not reaped yet; one that has ended already is fine."""

    def kill_stem(self, worker: Worker, pid: int) -> None:
        """End the intermediate of a birth, if it still is what it was."""

    def release(self, worker: Worker) -> None:
        """Let a held worker serve."""


class Supervisor:
    """The supervisor without processes. Master only."""

    def __init__(self, kernel: Kernel, table: Table | None = None) -> None:
        """``table``: one that the kernel already knows, because it enters the facts itself."""
        self.kernel = kernel
        self.table = Table() if table is None else table
        self.goal = Goal()

    # --- wishes ------------------------------------------------------------------------------------------------------

    def wish_phase(self, phase: Phase) -> bool:
        """Stop, drain or run. A stop is never taken back, only made more urgent. True when something changed."""
        now = self.goal.phase
        if phase is now or _URGENCY[phase] < _URGENCY[now]:
            return False
        candidate = None if _URGENCY[phase] else self.goal.candidate
        self.goal = replace(self.goal, phase=phase, candidate=candidate)
        return True

    def wish_more(self, workers: int) -> None:
        """TTIN (+1) and TTOU (-1). Kept to what makes a difference to some pool, so that a TTIN takes a TTOU back."""
        current = self.goal.current
        pools = list(current.pools.values()) if current is not None else []
        most = max((limits.max - min(limits.start, limits.min_spare) for limits in pools), default=0)
        least = min((1 - max(limits.start, limits.min_spare) for limits in pools), default=0)
        self.goal = replace(self.goal, bias=max(least, min(most, self.goal.bias + workers)))

    def wish_generation(self, number: int, pools: Mapping[str, PoolGoal]) -> None:
        """Make a generation the candidate. The caller makes sure that there is none, and that nothing stops.

        A previous generation is kept for a rollback meanwhile: what serves now may turn out bad before the candidate is
        proven. The commit of the candidate gives it up.
        """
        self.goal = replace(self.goal, candidate=Generation(number, pools))

    def give_up_candidate(self) -> None:
        """The candidate is not wanted any more; what it has started goes."""
        self.goal = replace(self.goal, candidate=None)

    # --- one turn ----------------------------------------------------------------------------------------------------

    def decide(self, load: Load, now: float) -> Plan:
        """What is to be done. Changes nothing."""
        return reconcile(self.goal, self.table, load, now)

    def act(self, plan: Plan, now: float) -> tuple[Action, ...]:
        """Carry a plan out. Returns its actions in order, for whoever writes the log and tells systemd."""
        for action in plan.actions:
            self._perform(action, now)
        return plan.actions

    def _perform(self, action: Action, now: float) -> None:
        table = self.table
        match action:
            case StartTemplate(pool, generation, preload):
                try:
                    pid = self.kernel.start_template(pool, generation, preload)
                except OSError as error:
                    table.fork_failed(pool, f"cannot fork: {error.strerror}", now)
                else:
                    table.template_started(pool, generation, pid, preload, now)
            case Order(pool, generation):
                limits = self._limits(pool, generation)
                workers = table.ordered(action, now)
                if limits is not None:
                    table.spend(pool, limits, len(workers), now)
                self.kernel.order(workers)
            case Retire():
                table.retired(action, now)
            case RetireTemplate():
                table.template_retired(action, now)
            case Signal(pid, signum):
                table.signaled(action, now)
                self.kernel.signal(pid, signum)
            case KillStem(worker, pid):
                self.kernel.kill_stem(table.workers[worker], pid)
                table.stem_killed(action)
            case Release(worker):
                self.kernel.release(table.workers[worker])
                table.released(action, now)
            case Resized(pool, pace):
                table.account(pool).pace = pace
            case Recovered(pool):
                table.recovered(pool)
            case Commit():
                self._commit(now)
            case Abort(generation):
                self.goal = replace(self.goal, candidate=None)
                table.load_failures.pop(generation, None)
            case StartFailed():
                self.goal = replace(self.goal, current=None, taking_over=False)
            case Rollback():
                self._roll_back(now)
            case TakenOver():
                self.goal = replace(self.goal, taking_over=False, starting=False)
            case Proven():
                self.goal = replace(self.goal, previous=None)
            case _:
                pass  # Record and Finish are for the caller.

    def _limits(self, pool: str, generation: int) -> PoolGoal | None:
        for known in (self.goal.current, self.goal.candidate, self.goal.previous):
            if known is not None and known.number == generation:
                return known.pools.get(pool)
        return None

    def _serving(self) -> dict[str, int]:
        """How many workers of each pool serve and are to go on with it."""
        serving: dict[str, int] = {}
        for worker in self.table.workers.values():
            if worker.state is WorkerState.SERVING and worker.leave is None and worker.stopped_at is None:
                serving[worker.pool] = serving.get(worker.pool, 0) + 1
        return serving

    def _floor(self) -> dict[str, int]:
        """What the takeover that begins now must not go below.

        While another one is under way, old and new workers serve side by side; counting both would let a storm of
        reloads inflate the pool.
        """
        floor = self._serving()
        goal = self.goal
        if goal.taking_over and goal.current is not None:
            for name, limits in goal.current.pools.items():
                if name in floor:
                    floor[name] = min(floor[name], max(goal.floor.get(name, 0), limits.start, 1))
        return floor

    def _commit(self, now: float) -> None:
        goal = self.goal
        assert goal.candidate is not None
        self.table.generation_begins(goal.candidate.number, goal.candidate.pools)
        self.goal = replace(
            goal,
            current=goal.candidate,
            candidate=None,
            previous=goal.current,
            committed_at=now,
            floor=self._floor(),
            taking_over=True,
        )

    def _roll_back(self, now: float) -> None:
        goal = self.goal
        assert goal.previous is not None
        self.table.generation_begins(goal.previous.number, goal.previous.pools)
        self.goal = replace(
            goal, current=goal.previous, previous=None, committed_at=now, floor=self._floor(), taking_over=True
        )

    def generations(self) -> set[int]:
        """Numbers of the generations that the goal or a member of the table still refers to."""
        known = {g.number for g in (self.goal.current, self.goal.candidate, self.goal.previous) if g is not None}
        known.update(worker.generation for worker in self.table.workers.values())
        known.update(template.generation for template in self.table.templates.values())
        return known

    def forget(self) -> list[int]:
        """Generations that nothing in goal or table refers to any more, forgotten here; the caller frees the rest."""
        remembered = set(self.table.load_failures)
        for account in self.table.accounts.values():
            remembered |= account.unsafe | set(account.deaths) | set(account.lost)
        gone = sorted(remembered - self.generations()) if remembered else []
        for generation in gone:
            self.table.forget_generation(generation)
        return gone
