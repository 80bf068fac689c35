"""Single questions to `reconcile`, and the supervisor's part of the answers. Whole lives are in tests/sim."""

from __future__ import annotations

import ast
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

import preforkd.core
from preforkd.core.reconcile import (
    BATCH,
    BOOT_LADDER,
    FAST_LADDER,
    KILL_LADDER,
    ORDER_DEADLINE,
    SETTLE,
    STRANGER_LADDER,
    TEMPLATE_LADDER,
    graceful_ladder,
    reconcile,
)
from preforkd.core.supervisor import Supervisor
from preforkd.core.table import Table
from preforkd.model import (
    Action,
    Cause,
    Commit,
    Finish,
    Generation,
    Goal,
    KillStem,
    Load,
    Order,
    Phase,
    Plan,
    PoolGoal,
    PoolLoad,
    Release,
    Retire,
    Signal,
    StartFailed,
    StartTemplate,
    TakenOver,
    Worker,
    WorkerState,
)

NOW = 1000.0
WEB = PoolGoal("web", start=3, min_spare=1, max_spare=3, max=6, graceful=5.0)
GOAL = Goal(current=Generation(1, {"web": WEB}))


def ask(goal: Goal, table: Table, now: float = NOW, load: Load | None = None) -> tuple[Action, ...]:
    return reconcile(goal, table, load if load is not None else Load(), now).actions


def template(table: Table, generation: int = 1, pid: int = 600) -> None:
    table.template_started("web", generation, pid, True, NOW - 50)
    table.template_loaded(pid)


def worker(table: Table, slot: int = 0, generation: int = 1, hold: bool = False) -> Worker:
    (entered,) = table.ordered(Order("web", generation, (slot,), hold, ""), NOW - 10)
    table.born(entered.id, 500 + slot, NOW - 10)
    table.ready(entered.id, NOW - 9)
    return table.workers[entered.id]


# --- ladders as data -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ladder", [BOOT_LADDER, FAST_LADDER, KILL_LADDER, TEMPLATE_LADDER, STRANGER_LADDER, graceful_ladder(30.0)]
)
def test_a_ladder_begins_at_once_gets_harsher_and_ends_with_kill(ladder: Sequence[tuple[float, int]]) -> None:
    moments = [after for after, _ in ladder]
    harshness = [(15, 3, 9).index(signum) for _, signum in ladder]
    assert moments[0] == 0.0
    assert moments == sorted(set(moments))
    assert harshness == sorted(set(harshness))
    assert ladder[-1][1] == 9


def test_without_a_limit_nobody_is_forced() -> None:
    assert graceful_ladder(0.0) == ((0.0, 15),)


def test_rungs_are_taken_when_they_are_due_and_once() -> None:
    table = Table()
    one = worker(table)
    goal = replace(GOAL, phase=Phase.STOP)
    table.retired(Retire(one.id, Cause.STOP, graceful_ladder(5.0)), NOW)
    taken = []
    now: float | None = NOW
    while now is not None:
        plan = reconcile(goal, table, Load(), now)
        for action in plan.actions:
            assert isinstance(action, Signal)
            taken.append((now - NOW, action.signum))
            table.signaled(action, now)
        now = reconcile(goal, table, Load(), now).wake_at
    assert taken == [(0.0, 15), (5.0, 3), (6.0, 9)]


def test_a_master_that_slept_takes_only_the_last_rung() -> None:
    table = Table()
    one = worker(table)
    table.retired(Retire(one.id, Cause.STOP, graceful_ladder(5.0)), NOW)
    signals = ask(replace(GOAL, phase=Phase.STOP), table, NOW + 100)
    assert [action.signum for action in signals if isinstance(action, Signal)] == [9]


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_nothing_is_wanted_of_nothing() -> None:
    plan = reconcile(Goal(), Table(), Load(), NOW)
    assert (plan.actions, plan.wake_at) == ((), None)


def test_a_stop_of_nothing_is_finished() -> None:
    assert ask(Goal(phase=Phase.STOP), Table()) == (Finish(),)
    assert Finish() not in ask(Goal(phase=Phase.STOP), Table(), load=Load(strangers=(900,)))


def test_a_candidate_is_loaded_tried_and_committed() -> None:
    table = Table()
    goal = Goal(candidate=Generation(1, {"web": WEB}), current=Generation(0, {}), starting=False)
    assert ask(goal, table) == (StartTemplate("web", 1, True),)
    table.template_started("web", 1, 600, True, NOW)
    assert ask(goal, table) == ()
    table.template_loaded(600)
    (order,) = ask(goal, table)
    assert isinstance(order, Order)
    assert (order.slots, order.hold) == ((0,), True)
    (canary,) = table.ordered(order, NOW)
    assert ask(goal, table) == ()
    table.born(canary.id, 500, NOW)
    table.ready(canary.id, NOW)
    assert reconcile(goal, table, Load(), NOW).wake_at == NOW + SETTLE
    assert ask(goal, table, NOW + SETTLE) == (Commit(1),)


def test_the_very_first_generation_serves_before_it_has_settled() -> None:
    """Nothing is there that it could harm; but the start is only over when its worker has stayed up for a moment."""
    table = Table()
    template(table)
    canary = worker(table, hold=True)
    assert ask(Goal(candidate=Generation(1, {"web": WEB})), table) == (Commit(1),)
    goal = Goal(current=Generation(1, {"web": WEB}), committed_at=NOW, taking_over=True)
    assert Release(canary.id) in ask(goal, table)
    table.released(Release(canary.id), NOW)
    plan = reconcile(goal, table, Load(), NOW)
    assert TakenOver(1) not in plan.actions
    assert TakenOver(1) in ask(goal, table, NOW + SETTLE)
    table.serving = 1
    table.exited(500, 3, None, NOW + 0.1, Phase.RUN)
    assert ask(goal, table, NOW + 0.1) == (StartFailed(1, "pool web: its first worker: exit code 3"),)


def test_a_stopped_canary_proves_nothing() -> None:
    table = Table()
    template(table)
    worker(table, hold=True)
    goal = Goal(candidate=Generation(1, {"web": WEB}))
    assert ask(goal, table) == (Commit(1),)
    table.stopped(500, NOW)
    assert ask(goal, table) == ()


def test_large_orders_come_in_batches() -> None:
    table = Table()
    template(table)
    goal = Goal(current=Generation(1, {"web": replace(WEB, start=40, max=40, max_spare=40)}))
    orders = [action for action in ask(goal, table) if isinstance(action, Order)]
    assert [len(order.slots) for order in orders] == [BATCH, BATCH]
    assert [slot for order in orders for slot in order.slots] == list(range(2 * BATCH))


def test_debts_of_tokens_do_not_turn_into_orders() -> None:
    table = Table()
    template(table)
    table.spend("web", WEB, 50, NOW)
    plan = reconcile(GOAL, table, Load(), NOW)
    assert plan.actions == ()
    assert plan.wake_at is not None
    assert plan.wake_at > NOW


def test_while_the_template_is_missing_nobody_is_woken_for_growth() -> None:
    table = Table()
    worker(table)
    table.account("web").not_before = NOW + 30
    plan = reconcile(GOAL, table, Load({"web": PoolLoad(queued=9)}), NOW)
    assert (plan.actions, plan.wake_at) == ((), NOW + 30)


def test_whoever_is_held_of_the_current_generation_is_released() -> None:
    table = Table()
    template(table)
    one = worker(table, hold=True)
    assert Release(one.id) in ask(GOAL, table)


def test_too_many_leave_in_order_of_their_use() -> None:
    table = Table()
    template(table)
    idle, busy, stopped, starting = (worker(table, slot) for slot in range(4))
    table.stopped(502, NOW)
    table.workers[starting.id] = replace(starting, state=WorkerState.STARTING)
    load = Load({"web": PoolLoad(idle=frozenset({idle.id}))})
    gone = []
    for most in (3, 2, 1):
        goal = Goal(current=Generation(1, {"web": replace(WEB, start=1, max_spare=1, max=most)}))
        gone = [action.worker for action in ask(goal, table, load=load) if isinstance(action, Retire)]
        assert gone == [starting.id, stopped.id, idle.id][: 4 - most]
    assert busy.id not in gone


def test_an_overdue_birth_costs_the_stem_then_the_template() -> None:
    table = Table()
    template(table)
    (one,) = table.ordered(Order("web", 1, (0,), False, ""), NOW)
    table.stem_born(one.id, 400)
    assert KillStem(one.id, 400) not in ask(GOAL, table, NOW + ORDER_DEADLINE - 0.1)
    assert KillStem(one.id, 400) in ask(GOAL, table, NOW + ORDER_DEADLINE)
    table.stem_killed(KillStem(one.id, 400))
    retired = [a for a in ask(GOAL, table, NOW + 2 * ORDER_DEADLINE) if type(a).__name__ == "RetireTemplate"]
    assert len(retired) == 1


def test_a_template_started_since_is_not_blamed_for_an_overdue_birth() -> None:
    table = Table()
    table.ordered(Order("web", 1, (0,), False, ""), NOW)
    table.template_started("web", 1, 600, True, NOW + 11)
    table.template_loaded(600)
    kinds = {type(action).__name__ for action in ask(GOAL, table, NOW + 2 * ORDER_DEADLINE + 2)}
    assert "RetireTemplate" not in kinds


def test_strangers_are_left_alone_until_the_end() -> None:
    table = Table()
    load = Load(strangers=(900,))
    assert not [a for a in ask(GOAL, table, load=load) if isinstance(a, Signal)]
    one = worker(table)
    stopping = replace(GOAL, phase=Phase.STOP)
    assert not [a for a in ask(stopping, table, load=load) if isinstance(a, Signal) and a.pid == 900]
    table.exited(500, 44, None, NOW, Phase.STOP)
    assert one.id not in table.workers
    assert [a.signum for a in ask(stopping, table, load=load) if isinstance(a, Signal)] == [15]


def test_whoever_is_late_and_stopped_leaves_once() -> None:
    table = Table()
    template(table)
    (late,) = table.ordered(Order("web", 1, (0,), False, ""), NOW - 100)
    table.born(late.id, 500, NOW - 100)
    table.stopped(500, NOW - 100)
    retired = [action for action in ask(GOAL, table) if isinstance(action, Retire)]
    assert retired == [Retire(late.id, Cause.START_TIMEOUT, KILL_LADDER)]


# --- the supervisor's part -------------------------------------------------------------------------------------------


class NoKernel:
    """For questions that need no system."""

    def start_template(self, pool: str, generation: int, preload: bool) -> int:
        raise NotImplementedError

    def order(self, workers: Sequence[Worker]) -> None:
        raise NotImplementedError

    def signal(self, pid: int, signum: int) -> None:
        raise NotImplementedError

    def kill_stem(self, worker: Worker, pid: int) -> None:
        raise NotImplementedError

    def release(self, worker: Worker) -> None:
        raise NotImplementedError


@pytest.mark.parametrize(
    ("wishes", "phase"),
    [
        ([Phase.DRAIN], Phase.DRAIN),
        ([Phase.DRAIN, Phase.RUN], Phase.RUN),
        ([Phase.STOP, Phase.STOP], Phase.STOP),
        ([Phase.STOP, Phase.FAST], Phase.FAST),
        ([Phase.FAST, Phase.STOP], Phase.FAST),
        ([Phase.STOP, Phase.RUN, Phase.DRAIN], Phase.STOP),
    ],
)
def test_a_stop_is_never_taken_back(wishes: list[Phase], phase: Phase) -> None:
    supervisor = Supervisor(NoKernel())
    for wish in wishes:
        supervisor.wish_phase(wish)
    assert supervisor.goal.phase is phase
    assert not supervisor.wish_phase(phase)


def test_more_and_fewer_stay_where_they_make_a_difference() -> None:
    supervisor = Supervisor(NoKernel())
    supervisor.wish_more(1)
    assert supervisor.goal.bias == 0
    supervisor.goal = GOAL
    for _ in range(100):
        supervisor.wish_more(-1)
    assert supervisor.goal.bias == -2
    for _ in range(100):
        supervisor.wish_more(1)
    assert supervisor.goal.bias == 5


def test_old_and_new_workers_side_by_side_do_not_raise_the_floor() -> None:
    supervisor = Supervisor(NoKernel())
    current, candidate = Generation(2, {"web": WEB}), Generation(3, {"web": WEB})
    supervisor.goal = Goal(current=current, candidate=candidate, floor={"web": 3}, taking_over=True)
    for slot in range(3):
        worker(supervisor.table, slot, generation=1)
        worker(supervisor.table, slot + 3, generation=2)
    supervisor.act(Plan((Commit(3),), None), NOW)
    assert supervisor.goal.floor == {"web": 3}
    assert (supervisor.goal.current, supervisor.goal.previous) == (candidate, current)
    assert supervisor.table.serving == 3


def test_generations_that_are_gone_are_forgotten() -> None:
    supervisor = Supervisor(NoKernel())
    supervisor.goal = GOAL
    worker(supervisor.table, generation=2)
    for number in (1, 2, 3):
        supervisor.table.account("web").deaths[number] = 1
        supervisor.table.load_failures[number] = "no"
    assert supervisor.generations() == {1, 2}
    assert supervisor.forget() == [3]
    assert sorted(supervisor.table.load_failures) == [1, 2]


def test_the_heart_is_pure() -> None:
    """No system, no clock, no chance, no log: what happens is decided by values."""
    allowed = {"__future__", "collections.abc", "dataclasses", "enum", "typing"}
    for path in Path(preforkd.core.__path__[0]).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                core = name in ("preforkd.model", "preforkd.errors") or name.startswith("preforkd.core")
                assert core or name in allowed, f"{path.name} imports {name}"


def test_a_worker_that_serves_before_it_is_known_is_let_finish() -> None:
    """Asked to leave while it was only ordered, it may have a request by the time its birth is heard of."""
    table = Table()
    template(table)
    (entered,) = table.ordered(Order("web", 1, (0,), False, ""), NOW)
    drain = replace(GOAL, phase=Phase.DRAIN)
    (retire,) = (action for action in ask(drain, table) if isinstance(action, Retire))
    assert retire.ladder == BOOT_LADDER
    table.retired(retire, NOW)
    table.born(entered.id, 500, NOW)
    table.ready(entered.id, NOW)
    actions = ask(drain, table)
    assert [action.ladder for action in actions if isinstance(action, Retire)] == [graceful_ladder(5.0)]
    assert not any(isinstance(action, Signal) for action in actions)
