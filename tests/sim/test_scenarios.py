"""Lives of a service that have a name: what an operator fears, and what happens then."""

from __future__ import annotations

import pytest

from preforkd.core.reconcile import CANDIDATE_LOSSES, FAST_LADDER, SETTLE, TEMPLATE_STOPPED
from preforkd.core.table import BACKOFF_MAX
from preforkd.model import (
    Cause,
    Commit,
    KillStem,
    Order,
    Phase,
    Recovered,
    Retire,
    Rollback,
    Signal,
    StartTemplate,
    TakenOver,
)
from tests.sim.driver import Driver, Edit, edit, pool
from tests.sim.kernel import FORK, GOOD, KILL, QUIT, TERM, Code, Process


def serving(driver: Driver, name: str = "web") -> int:
    return driver._serving().get(name, 0)


def of_kind(driver: Driver, kind: str, generation: int = 0) -> list[Process]:
    return [
        process
        for process in driver.sim.processes.values()
        if process.kind == kind and process.alive and (not generation or process.generation == generation)
    ]


def booted(what: Edit | None = None) -> Driver:
    """A service at rest."""
    driver = Driver()
    driver.keep_actions = True
    driver.audit_every = 1
    driver.boot(what if what is not None else edit())
    driver.advance(driver.sim.now + 60.0)
    driver.actions.clear()
    return driver


def run_for(driver: Driver, seconds: float) -> None:
    driver.advance(driver.sim.now + seconds)


def current(driver: Driver) -> int:
    generation = driver.supervisor.goal.current
    assert generation is not None
    return generation.number


# --- start, rest, growth ---------------------------------------------------------------------------------------------


def test_a_pool_at_rest_needs_no_wake_ups() -> None:
    driver = booted()
    turns = driver.turns
    run_for(driver, 3600.0)
    assert driver.turns == turns
    assert driver.wake_at is None


def test_two_workers_become_sixty_four_within_a_second() -> None:
    driver = booted(edit(pool(start=2, min_spare=1, max_spare=4, max=64)))
    driver.sim.demand["web"] = 100
    begin = driver.sim.now
    driver.turn()
    while serving(driver) < 64:
        assert driver.wake_at is not None or driver.sim.next_at() is not None
        run_for(driver, 0.01)
        assert driver.sim.now < begin + 1.0


def test_a_killed_worker_is_replaced_at_once() -> None:
    driver = booted()
    driver.sim.send(of_kind(driver, "worker")[0], KILL)
    driver.turn()
    assert [action for action in driver.actions if isinstance(action, Order)]
    run_for(driver, FORK + GOOD.start_time + 0.001)
    assert serving(driver) == 2


def test_thirty_deaths_in_one_instant() -> None:
    driver = booted(edit(pool(start=30, min_spare=1, max_spare=40, max=40)))
    for process in of_kind(driver, "worker"):
        driver.sim.send(process, KILL)
    driver.turn()
    run_for(driver, 0.2)
    assert serving(driver) == 30


def test_the_limit_is_said_once_while_the_load_lasts() -> None:
    driver = booted()
    driver.sim.demand["web"] = 9
    driver.turn()
    for _ in range(200):
        run_for(driver, 1.0)
        driver.sim.demand["web"] = 3 if driver.sim.demand["web"] == 9 else 9
        driver.turn()
    assert [record.event for record in driver.records].count("pool_limit") == 1


# --- crash loops and shortages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("fate", ["boot_failed", "exit0", "exit1", "segv", "brief"])
@pytest.mark.parametrize("preload", [True, False])
def test_a_crash_loop_backs_off_and_ends_by_itself(fate: str, preload: bool) -> None:
    driver = booted(edit(pool(start=8, min_spare=2, max_spare=8, max=16, preload=preload)))
    driver.sim.disk["web"] = Code(worker=fate)
    for process in [*of_kind(driver, "worker"), *of_kind(driver, "template")]:
        driver.sim.send(process, KILL)
    before = driver.sim.ordered
    driver.turn()
    run_for(driver, 10.0)
    assert driver.sim.ordered - before <= 3 * 8 + 8
    before, turns = driver.sim.ordered, driver.turns
    run_for(driver, 600.0)
    assert driver.sim.ordered - before <= 600.0 / BACKOFF_MAX + 2
    assert driver.turns - turns <= 10 * 600.0 / BACKOFF_MAX
    driver.sim.healed = True
    run_for(driver, BACKOFF_MAX + 2.0)
    assert serving(driver) == 8
    assert driver.sim.next_at() is None
    assert driver.wake_at is None


@pytest.mark.parametrize("fate", ["later", "recycle", "left", "sick"])
def test_whatever_dies_all_the_time_is_forked_at_a_bounded_rate(fate: str) -> None:
    driver = booted(edit(pool(start=8, min_spare=2, max_spare=8, max=16)))
    driver.sim.disk["web"] = Code(worker=fate, life=0.01)
    for process in [*of_kind(driver, "worker"), *of_kind(driver, "template")]:
        driver.sim.send(process, KILL)
    before = driver.sim.ordered
    driver.turn()
    run_for(driver, 60.0)
    assert driver.sim.ordered - before <= 20 + 20 * 60
    driver.sim.healed = True
    run_for(driver, BACKOFF_MAX + 2.0)
    assert serving(driver) == 8


def test_one_bad_moment_is_no_crash_loop() -> None:
    driver = booted(edit(pool(start=30, min_spare=1, max_spare=40, max=40)))
    template = of_kind(driver, "template")[0]
    template.code = Code(worker="exit1")
    for process in of_kind(driver, "worker"):
        driver.sim.send(process, KILL)
    driver.turn()
    run_for(driver, FORK + GOOD.start_time)  # thirty workers miss their database
    driver.sim.healed = True
    run_for(driver, 2.0)
    assert serving(driver) == 30


def test_forks_that_fail_are_retried_without_haste() -> None:
    driver = booted()
    driver.sim.no_forks_until = driver.sim.now + 30.0
    for process in [*of_kind(driver, "worker"), *of_kind(driver, "template")]:
        driver.sim.send(process, KILL)
    turns = driver.turns
    driver.turn()
    run_for(driver, 30.0)
    assert driver.turns - turns < 60
    run_for(driver, 2.0)
    assert serving(driver) == 2


def test_a_template_that_cannot_fork_is_asked_without_haste() -> None:
    driver = booted()
    driver.sim.no_forks_until = driver.sim.now + 30.0
    driver.sim.send(of_kind(driver, "worker")[0], KILL)
    turns, ordered = driver.turns, driver.sim.ordered
    driver.turn()
    run_for(driver, 30.0)
    assert driver.turns - turns < 150
    assert driver.sim.ordered - ordered < 45
    run_for(driver, 2.0)
    assert serving(driver) == 2


def test_a_shortage_does_not_lengthen_the_next_crash_loop() -> None:
    driver = booted()
    driver.sim.no_forks_until = driver.sim.now + 60.0
    driver.sim.send(of_kind(driver, "worker")[0], KILL)
    driver.turn()
    run_for(driver, 62.0)
    driver.sim.end(of_kind(driver, "worker")[1], code=1)
    driver.turn()
    run_for(driver, 0.1)
    assert serving(driver) == 2


@pytest.mark.parametrize("reload", [False, True])
def test_a_reload_during_a_shortage_waits_for_it(reload: bool) -> None:
    driver = booted()
    driver.sim.no_forks_until = driver.sim.now + 20.0
    turns = driver.turns
    driver.hup(edit())
    driver.turn()
    run_for(driver, 20.0)
    assert driver.turns - turns < 60
    assert serving(driver) == 2
    run_for(driver, 10.0)
    assert driver.outcomes[2] == "commit"


def test_a_reload_during_a_shortage_that_does_not_end_is_answered() -> None:
    driver = booted()
    driver.sim.no_forks_until = driver.sim.now + 300.0
    driver.hup(edit())
    driver.turn()
    run_for(driver, 60.0)
    assert "unavailable" in driver.outcomes[2]
    assert serving(driver) == 2


def test_failures_of_templates_long_ago_are_forgotten() -> None:
    driver = booted()
    for _ in range(6):
        driver.sim.send(of_kind(driver, "template")[0], KILL)
        driver.turn()
        run_for(driver, 0.06)
        driver.sim.send(of_kind(driver, "template")[0], KILL)  # soon after its start: a failure
        driver.turn()
        run_for(driver, 3600.0)
        assert driver.table.account("web").failures == 0
        assert driver.wake_at is None


# --- reloads ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("load", ["fail", "hang", "crash", "exit0", "left"])
def test_code_that_does_not_load_is_refused(load: str) -> None:
    driver = booted()
    driver.hup(edit(web=Code(load=load)))
    driver.turn()
    run_for(driver, 10.0)
    assert driver.outcomes[2].startswith("abort: pool web: ")
    assert serving(driver) == 2
    assert not [action for action in driver.actions if isinstance(action, Retire)]
    assert of_kind(driver, "template") == of_kind(driver, "template", 1)
    assert driver.wake_at is None


@pytest.mark.parametrize("worker", ["boot_failed", "hang", "deaf", "exit0", "exit1", "left", "segv", "brief"])
@pytest.mark.parametrize("preload", [True, False])
def test_code_whose_first_worker_fails_is_refused(worker: str, preload: bool) -> None:
    driver = booted()
    driver.hup(edit(pool(preload=preload), web=Code(worker=worker)))
    driver.turn()
    run_for(driver, 20.0)
    assert driver.outcomes[2].startswith("abort: pool web: its first worker")
    assert serving(driver) == 2


def test_the_reason_of_a_failed_start_is_the_traceback() -> None:
    driver = booted()
    driver.hup(edit(web=Code(worker="boot_failed")))
    driver.turn()
    run_for(driver, 3.0)
    assert "DATABASE_URL" in driver.outcomes[2]


def test_a_canary_that_dies_while_another_pool_loads_is_explained() -> None:
    driver = booted(edit(pool("web"), pool("api")))
    driver.hup(edit(pool("web"), pool("api"), web=Code(worker="ok"), api=Code(load_time=3.0)))
    driver.turn()
    run_for(driver, 2.0)
    canary = next(p for p in of_kind(driver, "worker", 2) if p.pool == "web")
    driver.sim.end(canary, signum=11)
    driver.turn()
    assert driver.outcomes[2] == "abort: pool web: its first worker: killed by signal 11 (SIGSEGV)"


def test_a_canary_that_somebody_killed_is_tried_again_a_few_times() -> None:
    driver = booted()
    driver.hup(edit())
    driver.turn()
    for _ in range(CANDIDATE_LOSSES):
        assert not driver.outcomes[2]
        run_for(driver, 0.12)
        driver.sim.send(of_kind(driver, "worker", 2)[0], KILL)
        driver.turn()
    assert driver.outcomes[2].startswith("abort: pool web: its first worker or its template was lost 3 times")
    driver.hup(edit())
    driver.turn()
    run_for(driver, 0.12)
    driver.sim.send(of_kind(driver, "worker", 3)[0], KILL)
    driver.turn()
    run_for(driver, 3.0)
    assert driver.outcomes[3] == "commit"


def test_failed_reloads_do_not_hold_up_replacements() -> None:
    driver = booted()
    for _ in range(10):
        driver.hup(edit(web=Code(worker="exit1")))
        driver.turn()
        run_for(driver, 1.0)
    driver.sim.send(of_kind(driver, "worker", 1)[0], KILL)
    driver.turn()
    run_for(driver, FORK + GOOD.start_time + 0.001)
    assert serving(driver) == 2


def test_a_reload_takes_little_more_than_its_canary() -> None:
    driver = booted()
    driver.hup(edit())
    begin = driver.sim.now
    driver.turn()
    while not [action for action in driver.actions if isinstance(action, TakenOver)]:
        run_for(driver, 0.01)
    assert driver.sim.now - begin < GOOD.load_time + 2 * (FORK + GOOD.start_time) + SETTLE + 0.03


def test_a_reload_during_a_takeover() -> None:
    driver = booted(edit(pool(start=4, min_spare=1, max_spare=4, max=6)))
    slow = edit(pool(start=4, min_spare=1, max_spare=4, max=6), web=Code(start_time=1.0))
    driver.hup(slow)
    driver.turn()
    while driver.outcomes[2] != "commit":
        run_for(driver, 0.05)
    driver.hup(edit(pool(start=4, min_spare=1, max_spare=4, max=6)))
    driver.turn()
    while current(driver) != 3 or driver.supervisor.goal.taking_over:
        assert serving(driver) >= 4
        run_for(driver, 0.01)
    assert serving(driver) == 4


def test_a_storm_of_reloads_does_not_inflate_the_pool() -> None:
    driver = booted(edit(pool(start=4, min_spare=1, max_spare=12, max=12)))
    for _ in range(20):
        driver.hup(edit(pool(start=4, min_spare=1, max_spare=12, max=12)))
        driver.turn()
        run_for(driver, 0.3)
    run_for(driver, 1.0)
    assert serving(driver) == 4
    assert driver.supervisor.goal.current is not None
    assert driver.outcomes[current(driver)] == "commit"


def test_pools_come_and_go_with_reloads() -> None:
    driver = booted(edit(pool("web"), pool("api")))
    driver.hup(edit(pool("api"), pool("new")))
    driver.turn()
    run_for(driver, 30.0)
    assert (serving(driver, "web"), serving(driver, "api"), serving(driver, "new")) == (0, 2, 2)
    driver.hup(edit(pool("web")))
    driver.turn()
    run_for(driver, 30.0)
    assert (serving(driver, "web"), serving(driver, "api"), serving(driver, "new")) == (2, 0, 0)
    assert len(of_kind(driver, "template")) == 1


def test_an_unsafe_template_gives_way_to_one_that_loads_nothing() -> None:
    driver = booted()
    driver.hup(edit(web=Code(load="unsafe")))
    driver.turn()
    run_for(driver, 30.0)
    assert driver.outcomes[2] == "commit"
    assert [action.preload for action in driver.actions if isinstance(action, StartTemplate)] == [True, False]
    assert serving(driver) == 2


def test_a_small_pool_can_follow_a_large_one() -> None:
    """Its scoreboard has fewer slots than there are old workers, and those leave only when it serves."""
    driver = booted(edit(pool(start=20, min_spare=1, max_spare=30, max=30)))
    driver.hup(edit(pool(start=2, min_spare=1, max_spare=2, max=2)))
    driver.turn()
    run_for(driver, 30.0)
    assert driver.outcomes[2] == "commit"
    assert serving(driver) == 2


def test_workers_that_finish_long_requests_do_not_starve_the_next_generations() -> None:
    size = pool(start=4, min_spare=1, max_spare=4, max=4, graceful=3600.0)
    driver = booted(edit(size))
    driver.sim.busy_time = 1800.0
    for _ in range(6):
        driver.sim.demand["web"] = 4
        driver.hup(edit(size))
        driver.turn()
        run_for(driver, 2.0)
        assert driver.outcomes[driver._number] == "commit"
        assert serving(driver) == 4
    assert len(of_kind(driver, "worker")) == 28


# --- probation and rollback ------------------------------------------------------------------------------------------


def dying() -> Edit:
    return edit(pool(probation=30.0), web=Code(worker="later", life=0.5))


def test_a_generation_that_keeps_dying_is_rolled_back() -> None:
    driver = booted()
    driver.hup(dying())
    driver.turn()
    run_for(driver, 30.0)
    assert "died on probation; the last: killed by signal 11 (SIGSEGV)" in driver.outcomes[2]
    assert current(driver) == 1
    assert serving(driver) == 2
    causes = {action.cause for action in driver.actions if isinstance(action, Retire)}
    assert causes <= {Cause.RELOAD, Cause.ROLLBACK, Cause.ABANDONED}
    assert of_kind(driver, "template") == of_kind(driver, "template", 1)
    assert not driver.supervisor.goal.taking_over
    assert driver.wake_at is None


def test_the_cure_may_come_while_the_patient_is_on_probation() -> None:
    driver = booted()
    driver.hup(dying())
    driver.turn()
    run_for(driver, 0.6)
    assert driver.outcomes[2] == "commit"
    driver.hup(edit(web=Code(load_time=3.0)))
    driver.turn()
    run_for(driver, 60.0)
    assert driver.outcomes[2].startswith("rollback")
    assert driver.outcomes[3] == "commit"
    assert current(driver) == 3
    assert serving(driver) == 2


def test_no_rollback_to_code_that_is_not_loaded_any_more() -> None:
    """The template of what served was killed: today's code would be loaded in its place, which is what keeps dying."""
    driver = booted()
    driver.hup(dying())
    driver.turn()
    run_for(driver, 0.4)
    assert driver.outcomes[2] == "commit"
    driver.sim.send(of_kind(driver, "template", 1)[0], KILL)
    driver.turn()
    run_for(driver, 60.0)
    assert not [action for action in driver.actions if isinstance(action, Rollback)]
    assert current(driver) == 2
    driver.hup(edit())
    driver.turn()
    run_for(driver, 10.0)
    assert driver.outcomes[3] == "commit"
    assert serving(driver) == 2


def test_a_takeover_whose_new_workers_never_get_ready_ends_in_a_rollback() -> None:
    """Also of a large pool, where half of its number would have to die one after the other."""
    driver = booted(edit(pool(start=40, min_spare=1, max_spare=40, max=40)))
    driver.hup(edit(pool(start=40, min_spare=1, max_spare=40, max=40)))
    driver.turn()
    run_for(driver, 0.06)
    of_kind(driver, "template", 2)[0].code = Code(worker="exit1", every=1000)
    while driver.outcomes[2] != "commit":
        run_for(driver, 0.001)
    of_kind(driver, "template", 2)[0].code = Code(worker="exit1")
    run_for(driver, 60.0)
    assert driver.outcomes[2].startswith("rollback")
    assert serving(driver) == 40


def test_the_template_dies_while_the_code_on_disk_is_broken() -> None:
    driver = booted()
    driver.sim.disk["web"] = Code(load="fail")
    driver.sim.send(of_kind(driver, "template")[0], KILL)
    started = driver.sim.templates_started
    driver.turn()
    run_for(driver, 300.0)
    assert serving(driver) == 2
    assert driver.sim.templates_started - started < 300.0 / BACKOFF_MAX + 14
    driver.sim.disk["web"] = GOOD
    run_for(driver, BACKOFF_MAX + 1.0)
    assert of_kind(driver, "template")
    driver.sim.send(of_kind(driver, "worker")[0], KILL)
    driver.turn()
    run_for(driver, 1.0)
    assert serving(driver) == 2


def test_a_reload_cures_a_crash_loop_at_once() -> None:
    driver = booted()
    driver.sim.disk["web"] = Code(load="fail")
    for process in [*of_kind(driver, "worker"), *of_kind(driver, "template")]:
        driver.sim.send(process, KILL)
    driver.turn()
    run_for(driver, 200.0)
    driver.hup(edit())
    driver.turn()
    run_for(driver, 0.5)
    assert serving(driver) == 2


# --- stopped processes, stems ----------------------------------------------------------------------------------------


def test_a_stopped_worker_is_replaced_after_its_deadline() -> None:
    driver = booted()
    driver.sim.stop(of_kind(driver, "worker")[0])
    driver.turn()
    assert serving(driver) == 1
    run_for(driver, 3.0)
    assert serving(driver) == 2
    assert [death.cause for death in driver.sim.deaths] == [
        "timed out: stopped (SIGSTOP) for too long, killed by signal 9 (SIGKILL)"
    ]


def test_a_stopped_worker_that_continues_in_time_is_taken_back() -> None:
    driver = booted(edit(pool(min_spare=1, start=2, max_spare=2)))
    process = of_kind(driver, "worker")[0]
    driver.sim.stop(process)
    driver.turn()
    run_for(driver, 1.0)
    driver.sim.resume(process)
    driver.turn()
    run_for(driver, 60.0)
    assert process.alive
    assert serving(driver) == 2


def test_a_stopped_worker_leaves_by_kill() -> None:
    driver = booted()
    for process in of_kind(driver, "worker"):
        driver.sim.stop(process)
    driver.stop()
    assert driver.finished


def test_a_stopped_template_is_replaced_and_its_workers_go_on() -> None:
    driver = booted()
    driver.sim.stop(of_kind(driver, "template")[0])
    driver.turn()
    run_for(driver, TEMPLATE_STOPPED + 0.2)
    assert serving(driver) == 2
    assert not of_kind(driver, "template")[0].stopped
    assert driver.table.account("web").failures == 0


@pytest.mark.parametrize("trouble", ["stopped", "hiding", "killed"])
def test_whatever_befalls_a_stem_the_worker_is_born_in_the_end(trouble: str) -> None:
    driver = booted()
    driver.sim.stem_trouble = trouble
    driver.sim.send(of_kind(driver, "worker")[0], KILL)
    driver.turn()
    run_for(driver, 12.0)
    assert serving(driver) == 2
    assert bool([action for action in driver.actions if isinstance(action, KillStem)]) == (trouble != "killed")
    driver.stop()


@pytest.mark.parametrize("trouble", ["stopped", "hiding", "killed", "mute"])
@pytest.mark.parametrize("phase", [Phase.STOP, Phase.FAST])
def test_a_stop_ends_whatever_befell_a_stem(trouble: str, phase: Phase) -> None:
    driver = booted()
    driver.sim.stem_trouble = trouble
    driver.sim.send(of_kind(driver, "worker")[0], KILL)
    driver.turn()
    run_for(driver, FORK)
    driver.stop(phase)


# --- drain, stop, TTIN and TTOU --------------------------------------------------------------------------------------


def test_drain_and_come_back() -> None:
    driver = booted()
    driver.wish(Phase.DRAIN)
    driver.turn()
    run_for(driver, 10.0)
    assert not of_kind(driver, "worker")
    assert of_kind(driver, "template")
    driver.hup(edit())
    driver.turn()
    run_for(driver, 10.0)
    assert serving(driver) == 2


def test_drain_during_a_takeover_takes_the_old_workers_too() -> None:
    driver = booted(edit(pool(start=4, max_spare=4, max=6)))
    driver.hup(edit(pool(start=4, max_spare=4, max=6), web=Code(start_time=1.0)))
    driver.turn()
    while driver.outcomes[2] != "commit":
        run_for(driver, 0.05)
    driver.wish(Phase.DRAIN)
    driver.turn()
    run_for(driver, 10.0)
    assert not of_kind(driver, "worker")
    assert [action for action in driver.actions if isinstance(action, TakenOver)]


def test_a_reload_that_fails_while_drained_brings_the_old_workers_back() -> None:
    driver = booted()
    driver.wish(Phase.DRAIN)
    driver.turn()
    run_for(driver, 10.0)
    driver.hup(edit(web=Code(worker="exit1")))
    driver.turn()
    run_for(driver, 10.0)
    assert driver.outcomes[2].startswith("abort")
    assert serving(driver) == 2


@pytest.mark.parametrize("fate", ["ok", "disobey", "immortal"])
def test_a_stop_ends_within_its_ladder(fate: str) -> None:
    driver = booted(edit(web=Code(worker=fate)))
    driver.sim.orphan()
    driver.sim.orphan(obeys=False)
    begin = driver.sim.now
    driver.stop()
    assert driver.sim.now - begin <= 2.0 + 1.0 + 2.1


def test_a_stop_does_not_wait_for_a_start_that_hangs() -> None:
    driver = Driver()
    driver.boot(edit(pool(graceful=3600.0, start_timeout=3600.0), web=Code(worker="deaf")))
    run_for(driver, 1.0)
    begin = driver.sim.now
    driver.stop()
    assert driver.sim.now - begin <= 1.1


def test_a_fast_stop_asks_politely_first_even_those_that_leave_already() -> None:
    driver = booted()
    driver.sim.demand["web"] = 2
    driver.sim.busy_time = 3600.0
    driver.wish(Phase.STOP)
    driver.turn()
    run_for(driver, 1.0)
    driver.actions.clear()
    driver.stop(Phase.FAST)
    signals = [action.signum for action in driver.actions if isinstance(action, Signal)]
    assert signals == [QUIT, QUIT]


def test_a_fast_stop_in_the_same_moment_as_a_stop() -> None:
    """The rung of a ladder that is being replaced must not be taken for one of the new."""
    driver = booted()
    driver.wish(Phase.STOP)
    plan = driver.supervisor.decide(driver.observe(), driver.sim.now)
    driver.supervisor.act(plan, driver.sim.now)
    driver.actions.clear()
    driver.stop(Phase.FAST)
    retired = [action for action in driver.actions if isinstance(action, Retire)]
    assert [action.ladder for action in retired] == [FAST_LADDER] * 2
    assert [a.signum for a in driver.actions if isinstance(a, Signal) and a.worker is not None] == [QUIT, QUIT]


def test_no_limit_means_no_limit() -> None:
    driver = booted(edit(pool(graceful=0.0, start_timeout=0.0)))
    driver.sim.demand["web"] = 2
    driver.sim.busy_time = 1e6
    driver.wish(Phase.STOP)
    driver.turn()
    run_for(driver, 1e5)
    assert not driver.finished
    driver.stop(Phase.FAST)


def test_one_more_and_one_fewer() -> None:
    driver = booted(edit(pool(start=3, min_spare=3, max_spare=3, max=5)))
    for wish, expected in ((1, 4), (1, 5), (1, 5), (-1, 4), (-1, 3), (-1, 2), (-1, 1), (-1, 1), (-1, 1), (1, 2)):
        driver.supervisor.wish_more(wish)
        driver.turn()
        run_for(driver, 40.0)
        assert serving(driver) == expected, wish


def test_fewer_takes_those_first_who_do_not_serve() -> None:
    driver = booted(edit(pool(start=2, min_spare=2, max_spare=2, max=5)))
    driver.sim.disk["web"] = Code(worker="hang")
    driver.sim.send(of_kind(driver, "template")[0], KILL)
    driver.turn()
    run_for(driver, 1.0)
    driver.sim.send(of_kind(driver, "worker")[0], KILL)
    driver.turn()
    run_for(driver, 0.1)
    driver.supervisor.wish_more(-1)
    driver.turn()
    assert serving(driver) == 1


def test_commit_comes_once() -> None:
    driver = booted()
    driver.hup(edit())
    driver.turn()
    run_for(driver, 30.0)
    assert len([action for action in driver.actions if isinstance(action, Commit)]) == 1


def test_recovery_is_said() -> None:
    driver = booted()
    driver.sim.end(of_kind(driver, "worker")[0], code=1)  # not early: no failure
    driver.turn()
    run_for(driver, 0.2)
    driver.sim.end(of_kind(driver, "worker")[1], code=1)  # early
    driver.turn()
    assert driver.table.account("web").failures == 1
    run_for(driver, 3.0)
    assert [action for action in driver.actions if isinstance(action, Recovered)]
    assert driver.table.account("web").failures == 0


def test_term_from_outside_is_no_failure() -> None:
    driver = booted()
    for _ in range(10):
        driver.sim.send(of_kind(driver, "worker")[0], TERM)
        driver.turn()
        run_for(driver, 0.1)
        assert serving(driver) == 2
    assert {death.cause for death in driver.sim.deaths} == {"asked by a signal from outside"}
