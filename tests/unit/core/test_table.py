"""What the table makes of the facts: who is alive, what a death is called, when a pool has to wait."""

from __future__ import annotations

from dataclasses import replace

import pytest

from preforkd.core.table import (
    BACKOFF_FIRST,
    BACKOFF_MAX,
    EARLY,
    FREE_FAILURES,
    SHORT_FIRST,
    SHORT_MAX,
    TOKENS_LEAST,
    TOKENS_PER_SECOND,
    Table,
)
from preforkd.errors import ExitCode
from preforkd.model import (
    Cause,
    Death,
    KillStem,
    Order,
    Phase,
    PoolGoal,
    Release,
    Retire,
    RetireTemplate,
    Signal,
    TemplateState,
    Worker,
    WorkerState,
)

LADDER = ((0.0, 15), (1.0, 9))
NOW = 1000.0


def order(table: Table, *slots: int, generation: int = 1, hold: bool = False, now: float = NOW) -> list[Worker]:
    return table.ordered(Order("web", generation, slots, hold, "test"), now)


def serving(table: Table, pid: int = 500, slot: int = 0, now: float = NOW, hold: bool = False) -> int:
    """A worker of the serving generation 1 that is ready; returns its number."""
    table.serving = 1
    (worker,) = order(table, slot, hold=hold, now=now)
    table.born(worker.id, pid, now)
    table.ready(worker.id, now)
    return worker.id


def die(
    table: Table,
    pid: int = 500,
    code: int | None = None,
    signum: int | None = None,
    now: float = NOW + 100,
    **more: bool,
) -> Death:
    return table.exited(pid, code, signum, now, Phase.RUN, **more)


# --- lives -----------------------------------------------------------------------------------------------------------


def test_a_life() -> None:
    table = Table()
    (worker,) = order(table, 3)
    assert worker.state is WorkerState.ORDERED
    table.stem_born(worker.id, 400)
    assert table.workers[worker.id].stem == 400
    table.born(worker.id, 500, NOW + 1)
    assert table.workers[worker.id].state is WorkerState.STARTING
    assert table.by_pid(500) == table.workers[worker.id]
    ready = table.ready(worker.id, NOW + 2)
    assert ready is not None
    assert (ready.state, ready.ready_at, ready.stem) == (WorkerState.SERVING, NOW + 2, None)
    table.retired(Retire(worker.id, Cause.SHRINK, LADDER), NOW + 3)
    table.signaled(Signal(500, 15, "test", 1, worker=worker.id), NOW + 3)
    leave = table.workers[worker.id].leave
    assert leave is not None
    assert (leave.cause, leave.since, leave.step) == (Cause.SHRINK, NOW + 3, 1)
    death = die(table, code=ExitCode.LEFT)
    assert (death.cause, death.expected, death.slot) == ("asked: pool shrinks", True, 3)
    assert table.by_pid(500) is None
    assert table.empty()


def test_a_held_worker_waits_for_its_release() -> None:
    table = Table()
    number = serving(table, hold=True)
    assert table.workers[number].state is WorkerState.HELD
    table.released(Release(number), NOW + 5)
    assert (table.workers[number].state, table.workers[number].ready_at) == (WorkerState.SERVING, NOW + 5)


def test_a_worker_that_leaves_is_not_released_into_service() -> None:
    table = Table()
    number = serving(table, hold=True)
    table.retired(Retire(number, Cause.STOPPED, LADDER), NOW)
    table.released(Release(number), NOW)
    assert table.workers[number].state is WorkerState.LEAVING


def test_facts_about_nobody_are_ignored() -> None:
    table = Table()
    table.stem_born(7, 400)
    table.born(7, 500, NOW)
    table.boot_failed(7, "no")
    table.stem_killed(KillStem(7, 400))
    assert table.ready(7, NOW) is None
    assert table.never_born(7) is None
    assert table.stopped(500, NOW) is None
    assert table.continued(500) is None
    assert table.template_loaded(500) is None
    assert table.template_unsafe(500) is None
    assert table.template_failed(500, "no") is None
    assert table.empty()
    assert die(table).expected


def test_said_twice_is_said_once() -> None:
    table = Table()
    number = serving(table)
    table.born(number, 501, NOW + 9)
    assert table.workers[number].pid == 500
    assert table.ready(number, NOW + 9) is None
    assert table.never_born(number) is None
    assert number in table.workers


def test_a_worker_born_on_its_way_out_is_on_its_way_out() -> None:
    table = Table()
    (worker,) = order(table, 0)
    table.retired(Retire(worker.id, Cause.STOP, LADDER), NOW)
    table.born(worker.id, 500, NOW + 1)
    assert table.workers[worker.id].state is WorkerState.LEAVING
    assert table.ready(worker.id, NOW + 2) is None


def test_a_slot_belongs_to_one_worker_of_a_generation() -> None:
    table = Table()
    order(table, 0, 2)
    assert table.free_slots("web", 1, 4) == [1, 3]
    assert table.free_slots("api", 1, 2) == [0, 1]
    with pytest.raises(AssertionError, match="slot 2 of pool web generation 1 is taken"):
        order(table, 2)


def test_another_generations_slots_are_the_last_resort() -> None:
    table = Table()
    order(table, 0, 1, 2, 5)
    order(table, 3, generation=2)
    assert table.free_slots("web", 2, 5) == [4, 0, 1, 2]
    assert table.free_slots("web", 1, 5) == [4, 3]


def test_stopped_and_continued_are_levels() -> None:
    table = Table()
    number = serving(table)
    table.template_started("web", 1, 600, True, NOW)
    for pid, member in ((500, lambda: table.workers[number]), (600, lambda: table.templates["web", 1])):
        table.stopped(pid, NOW + 1)
        assert member().stopped_at == NOW + 1
        table.continued(pid)
        table.continued(pid)
        assert member().stopped_at is None


# --- what a death is called ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "signum", "cause", "expected"),
    [
        (ExitCode.LEFT, None, "asked by a signal from outside", True),
        (ExitCode.RECYCLED, None, "recycled", True),
        (0, None, "exit code 0", False),
        (1, None, "exit code 1", False),
        (3, None, "exit code 3", False),
        (ExitCode.BOOT_FAILED, None, "exit code 41 (could not start)", False),
        (ExitCode.SICK, None, "exit code 42 (out of resources)", False),
        (ExitCode.ORPHANED, None, "exit code 43 (its master was gone)", False),
        (None, 11, "killed by signal 11 (SIGSEGV)", False),
        (None, 9, "killed by signal 9 (SIGKILL)", False),
        (None, 14, "killed by signal 14 (SIGALRM)", False),
        (None, 64, "killed by signal 64", False),
    ],
)
def test_deaths_that_nobody_asked_for(code: int | None, signum: int | None, cause: str, expected: bool) -> None:
    table = Table()
    serving(table)
    death = die(table, code=code, signum=signum)
    assert (death.cause, death.expected) == (cause, expected)
    assert (death.pool, death.slot, death.generation) == ("web", 0, 1)


def test_the_time_limit_of_requests_is_a_cause() -> None:
    """Where requests have one, SIGALRM is the kernel timer that the worker armed; else it is somebody's signal."""
    table = Table()
    serving(table)
    death = table.exited(500, None, 14, NOW + 100, Phase.RUN, overrun=True)
    assert (death.cause, death.expected) == ("timed out: the request took longer than timeouts.request", False)


def test_the_oom_killer_is_named() -> None:
    table = Table()
    serving(table)
    assert die(table, signum=9, oom=True).cause == "out of memory: killed by signal 9 (SIGKILL)"


@pytest.mark.parametrize(
    ("asked_for", "code", "signum", "cause", "expected"),
    [
        (Cause.SHRINK, ExitCode.LEFT, None, "asked: pool shrinks", True),
        (Cause.STOP, None, 9, "asked: service stops, killed by signal 9 (SIGKILL)", True),
        (Cause.RELOAD, 1, None, "asked: replaced by a newer generation, exit code 1", True),
        (Cause.START_TIMEOUT, None, 9, "timed out: not ready in time, killed by signal 9 (SIGKILL)", False),
        (Cause.STOPPED, None, 9, "timed out: stopped (SIGSTOP) for too long, killed by signal 9 (SIGKILL)", True),
    ],
)
def test_deaths_of_those_who_were_asked(
    asked_for: Cause, code: int | None, signum: int | None, cause: str, expected: bool
) -> None:
    table = Table()
    number = serving(table)
    table.retired(Retire(number, asked_for, LADDER), NOW)
    death = die(table, code=code, signum=signum)
    assert (death.cause, death.expected) == (cause, expected)


@pytest.mark.parametrize(
    ("code", "signum", "cause", "expected"),
    [
        (ExitCode.LEFT, None, "asked by a signal from outside", True),
        (None, 11, "killed by signal 11 (SIGSEGV)", False),
        (ExitCode.BOOT_FAILED, None, "exit code 41 (could not start)", False),
    ],
)
def test_deaths_of_templates(code: int | None, signum: int | None, cause: str, expected: bool) -> None:
    table = Table()
    table.template_started("web", 1, 600, True, NOW)
    table.template_loaded(600)
    death = die(table, 600, code, signum)
    assert (death.cause, death.expected, death.worker) == (cause, expected, None)
    assert death.template is not None
    assert table.empty()


def test_an_unsafe_template_that_leaves_does_as_it_was_told() -> None:
    table = Table()
    table.template_started("web", 1, 600, True, NOW)
    table.template_unsafe(600)
    death = die(table, 600, ExitCode.LEFT, now=NOW + 0.1)
    assert (death.cause, death.expected) == ("its workers load for themselves", True)
    assert table.load_failures == {}
    assert table.account("web").unsafe == {1}


@pytest.mark.parametrize(("code", "signum"), [(0, None), (ExitCode.LEFT, None), (None, 11), (None, 9)])
def test_a_template_that_ends_while_it_loads_has_failed(code: int | None, signum: int | None) -> None:
    table = Table()
    table.template_started("web", 1, 600, True, NOW)
    die(table, 600, code, signum)
    assert table.load_failures[1].startswith("pool web: the template ended while it loaded: ")


def test_a_template_that_hangs_has_failed() -> None:
    table = Table()
    table.template_started("web", 1, 600, True, NOW)
    table.template_retired(RetireTemplate("web", 1, 600, Cause.START_TIMEOUT, LADDER), NOW + 60)
    assert table.templates["web", 1].state is TemplateState.LEAVING
    death = die(table, 600, signum=9)
    assert not death.expected
    assert "not ready in time" in table.load_failures[1]


def test_the_first_reason_of_a_failed_load_is_kept() -> None:
    table = Table()
    table.template_started("web", 1, 600, True, NOW)
    table.template_failed(600, "Traceback: boom")
    die(table, 600, ExitCode.BOOT_FAILED)
    assert table.load_failures == {1: "pool web: Traceback: boom"}


def test_the_reason_of_a_death_is_what_this_worker_said() -> None:
    table = Table()
    table.serving = 1
    first, second = order(table, 0, 1)
    table.born(first.id, 500, NOW)
    table.born(second.id, 501, NOW)
    table.boot_failed(first.id, "Traceback: first")
    die(table, 500, ExitCode.BOOT_FAILED)
    assert table.account("web").last_death == {1: "Traceback: first"}
    die(table, 501, ExitCode.BOOT_FAILED)
    assert table.account("web").last_death == {1: "exit code 41 (could not start)"}


# --- back-off --------------------------------------------------------------------------------------------------------


def crash(table: Table, now: float) -> float:
    """One worker that crashes at its start; returns how long the pool has to wait."""
    (worker,) = order(table, 0, now=now)
    table.born(worker.id, 500, now)
    die(table, 500, 1, now=now + 0.01)
    return max(0.0, table.account("web").not_before - (now + 0.01))


def test_failures_in_a_row_wait_twice_as_long_each_time() -> None:
    table = Table()
    table.serving = 1
    now, waits = NOW, []
    for _ in range(14):
        waits.append(round(crash(table, now), 6))
        now += waits[-1] + 1
    free = [0.0] * FREE_FAILURES
    assert waits == free + [min(BACKOFF_FIRST * 2**n, BACKOFF_MAX) for n in range(14 - FREE_FAILURES)]
    table.recovered("web")
    assert crash(table, now) == 0.0


def test_what_was_ordered_before_a_failure_is_of_the_same_round() -> None:
    table = Table()
    table.serving = 1
    for worker in order(table, *range(30)):
        table.born(worker.id, 500 + worker.slot, NOW)
    for slot in range(30):
        die(table, 500 + slot, 1, now=NOW + 0.1 + slot / 1000)
    assert table.account("web").failures == 1
    assert table.account("web").deaths == {1: 30}


@pytest.mark.parametrize(
    ("alive", "code", "signum", "failures"),
    [
        (EARLY - 0.01, 1, None, 1),
        (EARLY - 0.01, 0, None, 1),
        (EARLY - 0.01, None, 11, 1),
        (EARLY + 0.01, None, 11, 0),
        (EARLY - 0.01, None, 9, 0),
        (EARLY - 0.01, None, 15, 0),
        (EARLY - 0.01, ExitCode.LEFT, None, 0),
        (EARLY - 0.01, ExitCode.RECYCLED, None, 0),
        (EARLY - 0.01, ExitCode.ORPHANED, None, 0),
    ],
)
def test_early_deaths_by_its_own_fault_count(alive: float, code: int | None, signum: int | None, failures: int) -> None:
    table = Table()
    serving(table)
    die(table, 500, code, signum, now=NOW + alive)
    assert table.account("web").failures == failures


@pytest.mark.parametrize("phase", [Phase.STOP, Phase.FAST])
def test_while_stopping_nobody_draws_conclusions(phase: Phase) -> None:
    table = Table()
    serving(table)
    table.exited(500, 1, None, NOW, phase)
    assert (table.account("web").failures, table.account("web").deaths) == (0, {})


def test_another_generations_failures_do_not_hold_up_what_serves() -> None:
    table = Table()
    table.serving = 1
    for _ in range(9):
        (worker,) = order(table, 0, generation=2, hold=True)
        table.born(worker.id, 500, NOW)
        die(table, 500, 1)
        table.template_started("web", 2, 600, True, NOW)
        die(table, 600, 1, now=NOW + 0.1)
    assert (table.account("web").failures, table.account("web").not_before) == (0, -1e9)
    assert table.account("web").deaths == {2: 9}


def test_a_shortage_waits_a_little_longer_each_time_and_is_no_failure() -> None:
    table = Table()
    account = table.account("web")
    now, waits = NOW, []
    for _ in range(8):
        table.fork_failed("web", "cannot fork", now)
        table.fork_failed("web", "cannot fork", now)
        waits.append(round(account.short_until - now, 6))
        now = account.short_until
    assert waits == [min(SHORT_FIRST * 2**n, SHORT_MAX) for n in range(8)]
    assert (account.failures, account.not_before) == (0, -1e9)
    (worker,) = order(table, 0)
    table.born(worker.id, 500, now)
    table.fork_failed("web", "cannot fork", now)
    assert account.short_until == now + SHORT_FIRST


def test_births_that_never_happen_are_a_shortage() -> None:
    table = Table()
    for worker in order(table, 0, 1, 2):
        assert table.never_born(worker.id) is not None
    assert table.account("web").shortages == 1
    assert table.account("web").short_until == NOW + SHORT_FIRST
    assert table.empty()


def test_a_canary_that_others_kill_is_counted() -> None:
    table = Table()
    number = serving(table, hold=True)
    die(table, signum=9)
    (worker,) = order(table, 0, hold=True)
    table.never_born(worker.id)
    assert number != worker.id
    assert table.account("web").lost == {1: 2}
    table.forget_generation(1)
    assert table.account("web").lost == {}


def test_tokens() -> None:
    table = Table()
    limits = PoolGoal("web", 1, 1, 1, 4)
    assert table.tokens("web", limits, NOW) == TOKENS_LEAST
    assert table.accounts == {}  # looking changes nothing
    assert table.tokens("web", replace(limits, max=100), NOW) == 100
    table.spend("web", limits, 20, NOW)
    assert table.tokens("web", limits, NOW) == 0
    assert table.tokens("web", limits, NOW + 0.5) == 0.5 * TOKENS_PER_SECOND
    table.generation_begins(2, ["web"])
    assert table.tokens("web", limits, NOW) == TOKENS_LEAST


def test_what_is_left_when_no_process_is_known() -> None:
    table = Table()
    (worker,) = order(table, 0)
    assert table.unborn()
    assert not table.empty()
    table.born(worker.id, 500, NOW)
    assert not table.unborn()


def test_strangers_climb_their_ladder() -> None:
    table = Table()
    table.signaled(Signal(900, 15, "test", 1), NOW)
    table.signaled(Signal(900, 9, "test", 2), NOW + 2)
    assert (table.strangers[900].since, table.strangers[900].step) == (NOW, 2)
    die(table, 900, signum=9)
    assert table.strangers == {}
