"""The master's turn without a master: wait, reap, fold, observe, decide, act; and what must hold after each of them.

Incidents (`tests.sim.schedules`) happen to a supervisor on a `SimKernel`; then the faults end, and the pools have to
recover by themselves (`Driver.recover`), or the service is stopped and has to end (`Driver.stop`). Whatever does not
hold raises `Broken`.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace

from preforkd.core.policy import target
from preforkd.core.supervisor import Supervisor
from preforkd.core.table import FREE_FAILURES, TOKENS_LEAST, TOKENS_PER_SECOND, Table
from preforkd.model import (
    Abort,
    Action,
    Cause,
    Commit,
    Finish,
    Goal,
    Load,
    Order,
    Phase,
    PoolGoal,
    PoolLoad,
    Record,
    Retire,
    Rollback,
    Signal,
    StartFailed,
    StartTemplate,
    TemplateState,
    Worker,
    WorkerState,
)
from tests.sim.kernel import GOOD, Broken, Code, SimKernel

#: Rounds of decide and act until a plan is empty, counted from the last one that changed the goal.
ROUNDS = 4
#: Virtual seconds in which everything has to be at rest after the last fault.
REST = 600.0


@dataclass(frozen=True)
class Edit:
    """What the operator wrote: the pools, and how the code behaves that goes with them."""

    pools: Mapping[str, PoolGoal]
    code: Mapping[str, Code]


class Driver:
    """A supervisor, its simulated system, and the operator's wishes."""

    def __init__(self) -> None:
        self.sim = SimKernel()
        self.supervisor = Supervisor(self.sim)
        self.sim.table = self.table = self.supervisor.table
        self.wake_at: float | None = None
        #: What the operator wants next: the file as it is on disk, read when a reload begins.
        self.disk: Edit | None = None
        self.hup_waits = False
        self.finished = False
        self.edits: dict[int, Edit] = {}
        #: How each reload ended: "" while it runs, then commit, abort: why, rollback: why.
        self.outcomes: dict[int, str] = {}
        self.records: list[Record] = []
        self.actions: list[Action] = []
        self.keep_actions = False
        self.turns = 0
        #: Every so many turns, the costly checks.
        self.audit_every = 16
        self._number = 0
        self._refills = 0
        self._burst = TOKENS_LEAST
        self._begun = self.sim.now
        #: Templates that somebody killed: each may be replaced.
        self.hurt = 0

    # --- wishes ------------------------------------------------------------------------------------------------------

    def edit(self, edit: Edit) -> None:
        """The operator saves files, and says nothing."""
        self.disk = edit
        self.sim.disk.update(edit.code)

    def hup(self, edit: Edit | None = None) -> None:
        if edit is not None:
            self.edit(edit)
        self.hup_waits = True

    def wish(self, phase: Phase) -> None:
        self.supervisor.wish_phase(phase)

    def _fold(self) -> None:
        supervisor = self.supervisor
        if not self.hup_waits or supervisor.goal.candidate is not None:
            return
        self.hup_waits = False
        if supervisor.goal.phase in (Phase.STOP, Phase.FAST):
            return
        supervisor.wish_phase(Phase.RUN)
        assert self.disk is not None
        self._number += 1
        self.edits[self._number] = self.disk
        self._burst = max(self._burst, *(limits.max for limits in self.disk.pools.values()))
        self.outcomes[self._number] = ""
        supervisor.wish_generation(self._number, self.disk.pools)

    # --- a turn ------------------------------------------------------------------------------------------------------

    def observe(self) -> Load:
        goal = self.supervisor.goal
        if goal.phase in (Phase.STOP, Phase.FAST):
            return Load(strangers=self.sim.strangers())
        pools = {}
        for name in goal.current.pools if goal.current is not None else ():
            idle, queued = self.sim.idle(name)
            pools[name] = PoolLoad(idle, queued)
        return Load(pools)

    def turn(self) -> None:
        """One turn of the master, at this moment."""
        sim, supervisor = self.sim, self.supervisor
        now = sim.now
        self.turns += 1
        sim.happen()
        sim.reap(supervisor.goal.phase)
        audit = self.turns % self.audit_every == 0
        rounds = 0
        seen = None
        load = Load()
        while True:
            self._fold()
            if seen is not supervisor.goal:
                seen, load = supervisor.goal, self.observe()
            if audit:
                self._audit(load, now)
            plan = supervisor.decide(load, now)
            if not plan.actions:
                break
            if self.keep_actions:
                self.actions += plan.actions
            if any(type(action) is Finish for action in plan.actions):
                self._finish()
                return
            before = self._serving()
            goal = supervisor.goal
            self._check_plan(plan.actions, goal)
            supervisor.act(plan, now)
            self._check_acts(plan.actions, goal, before)
            rounds = rounds + 1 if supervisor.goal is goal else 0
            if rounds > ROUNDS:
                raise Broken(f"no rest after {ROUNDS} rounds at one moment; the last asked {plan.actions}")
        self.wake_at = plan.wake_at
        if plan.wake_at is not None and plan.wake_at <= now:
            raise Broken(f"wake_at {plan.wake_at} has passed at {now}, and nothing is to be done")
        supervisor.forget()

    def advance(self, until: float) -> bool:
        """Turn until ``until``, or until nothing will happen any more (True)."""
        sim = self.sim
        while not self.finished:
            upcoming = sim.next_at()
            if self.wake_at is not None and (upcoming is None or self.wake_at < upcoming):
                upcoming = self.wake_at
            if upcoming is None or upcoming > until:
                sim.now = until
                return upcoming is None
            sim.now = max(sim.now, upcoming)
            self.turn()
        return True

    # --- lives -------------------------------------------------------------------------------------------------------

    def boot(self, edit: Edit) -> None:
        self.hup(edit)
        self.turn()

    def recover(self) -> None:
        """The faults end; the pools have to come back by themselves, answer every wish, and then sleep."""
        sim = self.sim
        sim.healed = True
        sim.no_forks_until = -1.0
        sim.stem_trouble = ""
        sim.demand.clear()
        for process in list(sim.processes.values()):
            if process.kind == "stem" and process.stopped:
                sim.end(process, signum=9)  # nobody can see one that did not say its pid
        self.turn()
        if not self.advance(sim.now + REST):
            raise Broken(f"not at rest {REST} s after the last fault; {self.state()}")
        if not self.finished:
            self._check_rest()

    def reload_at_rest(self, edit: Edit) -> None:
        """A good reload of a service at rest: committed, and nobody notices."""
        before = self._serving()
        self.hup(edit)
        self.turn()
        while self.supervisor.goal.candidate is not None or self.supervisor.goal.taking_over:
            upcoming = self.sim.next_at()
            if upcoming is None or (self.wake_at is not None and self.wake_at < upcoming):
                upcoming = self.wake_at
            if upcoming is None:
                break
            self.advance(upcoming)
            serving = self._serving()
            for name, limits in edit.pools.items():
                least = min(before.get(name, 0), target(limits, self.supervisor.goal.bias).max)
                if serving.get(name, 0) < least:
                    raise Broken(f"{serving.get(name, 0)} of {name} serve during a reload, {least} did before")
        if self.outcomes[self._number] != "commit":
            raise Broken(f"a good reload ended so: {self.outcomes[self._number]}")
        self.recover()

    def stop(self, phase: Phase = Phase.STOP) -> None:
        """TERM or INT; the service has to end within its ladders."""
        goal = self.supervisor.goal
        known = [g for g in (goal.current, goal.candidate, goal.previous) if g is not None]
        graceful = max((limits.graceful for g in known for limits in g.pools.values()), default=0.0)
        if any(worker.leave is not None for worker in self.table.workers.values()):
            graceful = max(graceful, 5.0)  # of a generation that is known no more
        self.wish(phase)
        begin = self.sim.now
        self.turn()
        self.advance(begin + graceful + 30.0)
        if not self.finished:
            raise Broken(f"not finished {graceful + 30.0} s after {phase}; {self.state()}")

    # --- what must hold ----------------------------------------------------------------------------------------------

    def _serving(self) -> dict[str, int]:
        """Workers that serve, and go on doing so, by pool."""
        serving: dict[str, int] = {}
        for worker in self.table.workers.values():
            if worker.leave is None and worker.state is WorkerState.SERVING and worker.stopped_at is None:
                serving[worker.pool] = serving.get(worker.pool, 0) + 1
        return serving

    def _check_plan(self, actions: tuple[Action, ...], goal: Goal) -> None:
        workers = self.table.workers
        retired = set()
        for action in actions:
            if isinstance(action, Signal):
                self._check_signal(action)
            elif isinstance(action, Retire):
                if action.worker in retired:
                    raise Broken(f"worker {action.worker} is retired twice in one plan: {actions}")
                retired.add(action.worker)
                worker = workers[action.worker]
                if worker.state is WorkerState.SERVING:
                    self._check_cause(action, worker, goal)
        for action in actions:
            if isinstance(action, Signal) and action.worker in retired:
                raise Broken(f"worker {action.worker} takes a rung of a ladder that is replaced in the same plan")

    def _check_cause(self, action: Retire, worker: Worker, goal: Goal) -> None:
        """Somebody who serves has to go: is that what was wanted?"""
        if action.cause in (Cause.ABANDONED, Cause.START_TIMEOUT):
            raise Broken(f"{action.cause}: {worker} serves")
        if action.cause in (Cause.RELOAD, Cause.ROLLBACK):
            if goal.current is None:  # a start that failed: nobody is to serve
                return
            if worker.generation == goal.current.number:
                raise Broken(f"{action.cause}: {worker} is of the current generation")
            if worker.pool in goal.current.pools and not goal.taking_over:
                raise Broken(f"{action.cause}: {worker}, but nothing takes over")

    def _check_signal(self, action: Signal) -> None:
        process = self.sim.processes.get(action.pid)
        if process is None:
            raise Broken(f"{action}: that pid was reaped")
        if action.worker is not None:
            right = process.kind == "worker" and process.number == action.worker
        elif action.template is not None:
            right = process.kind == "template" and (process.pool, process.generation) == action.template
        else:
            right = process.kind == "stranger" or (process.kind == "stem" and process.stem is None)
        if not right:
            raise Broken(f"{action}: that pid belongs to {process}")

    def _check_acts(self, actions: tuple[Action, ...], goal: Goal, before: Mapping[str, int]) -> None:
        retiring = False
        for action in actions:
            if isinstance(action, Order):
                self._check_size(action)
                self._check_forks()
            elif isinstance(action, StartTemplate):
                self._check_forks()
            elif isinstance(action, Retire):
                retiring = True
            elif isinstance(action, Commit):
                self._answer(action.generation, "commit")
            elif isinstance(action, StartFailed):
                if self.outcomes[action.generation] != "commit":
                    raise Broken(f"{action}, after {self.outcomes[action.generation]}")
                self.outcomes[action.generation] = f"abort: {action.reason}"
                self._explained(action.reason)
            elif isinstance(action, Abort):
                self._answer(action.generation, f"abort: {action.reason}")
            elif isinstance(action, Rollback):
                self._refill()
                self._explained(action.reason)
                self.outcomes[action.generation] = f"rollback: {action.reason}"
            elif isinstance(action, Record):
                self.records.append(action)
        if retiring and goal.phase is Phase.RUN and goal.current is not None:
            self._check_floor(goal, before)

    def _check_floor(self, goal: Goal, before: Mapping[str, int]) -> None:
        after = self._serving()
        assert goal.current is not None
        for name, limits in goal.current.pools.items():
            wanted = target(limits, goal.bias)
            floor = min(goal.floor.get(name, 0), wanted.max) if goal.taking_over else 1
            if after.get(name, 0) < min(before.get(name, 0), floor):
                change = f"from {before.get(name, 0)} serving to {after.get(name, 0)}, floor {floor}"
                raise Broken(f"retiring took pool {name} {change}")

    def _check_size(self, order: Order) -> None:
        goal = self.supervisor.goal
        mine = [
            worker
            for worker in self.table.workers.values()
            if worker.pool == order.pool and worker.generation == order.generation
        ]
        present = sum(worker.leave is None for worker in mine)
        if order.hold:
            most = 1
        else:
            assert goal.current is not None and goal.current.number == order.generation
            most = target(goal.current.pools[order.pool], goal.bias).max
        if present > most:
            raise Broken(f"{present} workers of {order.pool} generation {order.generation}, at most {most}: {order}")
        for generation in (goal.current, goal.candidate):
            if generation is not None and generation.number == order.generation:
                capacity = generation.pools[order.pool].capacity
                if max(order.slots) >= capacity:
                    raise Broken(f"{order}: the scoreboard has {capacity} slots")

    def _answer(self, number: int, outcome: str) -> None:
        if self.outcomes[number]:
            raise Broken(f"reload {number} was answered twice: {self.outcomes[number]}, {outcome}")
        self.outcomes[number] = outcome
        self._explained(outcome)
        self._refill()

    def _explained(self, reason: str) -> None:
        if reason.rstrip().endswith(":"):
            raise Broken(f"a decision without its reason: {reason!r}")

    def _refill(self) -> None:
        self._refills += 1

    def _finish(self) -> None:
        self.finished = True
        left = [process for process in self.sim.processes.values() if process.alive]
        if left:
            raise Broken(f"finished, and these are left: {left}")
        if self.supervisor.goal.phase not in (Phase.STOP, Phase.FAST):
            raise Broken("finished without being asked to stop")

    def _audit(self, load: Load, now: float) -> None:
        """Deciding changes nothing, and twice the same is the same."""
        before = freeze(self.table)
        goal = self.supervisor.goal
        first = self.supervisor.decide(load, now)
        second = self.supervisor.decide(load, now)
        if first != second:
            raise Broken(f"two answers to one question: {first} and {second}")
        if freeze(self.table) != before or self.supervisor.goal != goal:
            raise Broken("deciding changed something")

    def _check_forks(self) -> None:
        """No loop forks without bound: each pool has its bucket, filled anew when a generation takes over."""
        elapsed = self.sim.now - self._begun
        pools = max(len(self.table.accounts), 1)
        workers = pools * (self._burst * (self._refills + 1) + TOKENS_PER_SECOND * elapsed) + 3 * self._number
        templates = pools * (FREE_FAILURES + 3 + 4 * self._number + 2 * elapsed) + self.hurt
        if self.sim.ordered > workers or self.sim.templates_started > templates:
            raise Broken(
                f"{self.sim.ordered} workers and {self.sim.templates_started} templates forked in {elapsed} s"
                f" (bounds {workers}, {templates})"
            )

    def _check_rest(self) -> None:
        """Nothing will happen any more: then everything is as it should be."""
        goal, table = self.supervisor.goal, self.table
        if goal.candidate is not None or self.hup_waits:
            raise Broken(f"at rest with a reload unanswered; {self.state()}")
        for number, outcome in self.outcomes.items():
            if not outcome and goal.phase in (Phase.RUN, Phase.DRAIN):
                raise Broken(f"reload {number} was never answered")
        if goal.current is None:
            if table.workers or table.templates:
                raise Broken(f"no generation, but members; {self.state()}")
            return
        if (goal.taking_over or goal.previous is not None) and goal.phase is not Phase.DRAIN:
            raise Broken(f"at rest before the reload is done; {self.state()}")
        for worker in table.workers.values():
            if worker.state is not WorkerState.SERVING or worker.generation != goal.current.number:
                raise Broken(f"at rest with {worker}; {self.state()}")
        for name, limits in goal.current.pools.items():
            template = table.templates.get((name, goal.current.number))
            if template is None or template.state is not TemplateState.READY:
                raise Broken(f"at rest without a template of {name}; {self.state()}")
            serving = self._serving().get(name, 0)
            limits = target(limits, goal.bias)
            if goal.phase is Phase.DRAIN:
                if serving:
                    raise Broken(f"drained, but {serving} of {name} serve")
                continue
            least, most = max(limits.start, limits.min_spare), max(limits.start, limits.max_spare)
            if not least <= serving <= most:
                raise Broken(f"pool {name} rests at {serving} workers, not {least} to {most}; {self.state()}")
        kept = [number for number, outcome in self.outcomes.items() if outcome == "commit"]
        if goal.current.number != kept[-1]:
            raise Broken(f"generation {goal.current.number} serves; the last good edit is {kept[-1]}; {self.state()}")
        if self.disk is not self.edits[self._number]:
            raise Broken("the last edit was never looked at")
        strays = {key for key in table.templates if key[1] != goal.current.number}
        if strays and goal.phase is not Phase.DRAIN:
            raise Broken(f"templates of other generations stay: {strays}")

    def state(self) -> str:
        """For the message of a failure."""
        goal = self.supervisor.goal
        lines = [
            f"now {self.sim.now} wake_at {self.wake_at} next {self.sim.next_at()}",
            f"{goal.phase} current {goal.current and goal.current.number} candidate "
            f"{goal.candidate and goal.candidate.number} previous {goal.previous and goal.previous.number} "
            f"taking_over {goal.taking_over} floor {dict(goal.floor)} bias {goal.bias}",
            f"outcomes {self.outcomes}",
        ]
        lines += [str(worker) for worker in self.table.workers.values()]
        lines += [str(template) for template in self.table.templates.values()]
        lines += [f"{name}: {account}" for name, account in self.table.accounts.items()]
        lines += [str(process) for process in self.sim.processes.values()]
        return "\n  ".join(lines)


def freeze(table: Table) -> object:
    """Everything that a table holds, for comparing."""
    return copy.deepcopy(vars(table) | {"accounts": {name: repr(account) for name, account in table.accounts.items()}})


def pool(name: str = "web", **numbers: float) -> PoolGoal:
    """A small pool with short times."""
    base = PoolGoal(name, 2, 1, 3, 4, start_timeout=4.0, graceful=2.0, probation=2.0)
    return replace(base, **numbers)  # type: ignore[arg-type]


def edit(*pools: PoolGoal, **code: Code) -> Edit:
    """An edit of these pools (default: one), their code good where it is not given."""
    chosen = pools or (pool(),)
    return Edit({p.name: p for p in chosen}, {p.name: code.get(p.name, GOOD) for p in chosen})
