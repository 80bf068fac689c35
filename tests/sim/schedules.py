"""Random schedules: what may befall a service, how often, and one whole life of it from a seed."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

from preforkd.model import Phase
from tests.sim.driver import Driver, Edit, edit, pool
from tests.sim.kernel import GOOD, KILL, TERM, Code, Process

Befall = Callable[[Driver, Random], None]

LOADS = ("ok",) * 5 + ("fail", "hang", "crash", "exit0", "left", "unsafe", "unsafe")
WORKERS = ("ok",) * 6 + (
    "boot_failed",
    "hang",
    "deaf",
    "exit0",
    "exit1",
    "left",
    "segv",
    "brief",
    "later",
    "disobey",
    "immortal",
    "recycle",
    "sick",
)


def any_code(rng: Random) -> Code:
    """Half of all code is good."""
    if rng.random() < 0.5:
        return GOOD if rng.random() < 0.7 else Code(worker=rng.choice(("disobey", "immortal")))
    return Code(
        load=rng.choice(LOADS),
        load_time=rng.choice((0.02, 0.5, 2.0)),
        worker=rng.choice(WORKERS),
        start_time=rng.choice((0.03, 0.4)),
        every=rng.choice((1, 1, 2, 3)),
        life=rng.choice((0.05, 0.7, 2.5)),
    )


def any_edit(rng: Random, good: bool = False) -> Edit:
    names = ("web",) if rng.random() < 0.8 else rng.choice((("web", "api"), ("api",), ("api", "web")))
    pools = []
    for name in names:
        start = rng.choice((1, 2, 2, 3))
        spare = rng.choice((1, 1, 2))
        most = max(start, spare, rng.choice((1, 3, 4, 6)))
        pools.append(
            pool(
                name,
                start=start,
                min_spare=spare,
                max_spare=max(spare, rng.choice((1, 2, 3))),
                max=most,
                graceful=rng.choice((1.0, 3.0)),
                probation=rng.choice((0.0, 1.0, 3.0)),
                preload=rng.random() < 0.85,
            )
        )
    return edit(*pools, **{name: GOOD if good else any_code(rng) for name in names})


# --- incidents -------------------------------------------------------------------------------------------------------


def _some(driver: Driver, rng: Random, kind: str) -> Process | None:
    found = [process for process in driver.sim.processes.values() if process.kind == kind and process.alive]
    return rng.choice(found) if found else None


def hup(driver: Driver, rng: Random) -> None:
    driver.hup(any_edit(rng))


def hup_storm(driver: Driver, rng: Random) -> None:
    for _ in range(3):
        driver.hup(any_edit(rng))
        driver.turn()


def hup_good(driver: Driver, rng: Random) -> None:
    driver.hup(any_edit(rng, good=True))


def break_disk(driver: Driver, rng: Random) -> None:
    """The code on disk changes; nobody says so."""
    for name in driver.sim.disk:
        driver.sim.disk[name] = any_code(rng)


def kill_worker(driver: Driver, rng: Random) -> None:
    if process := _some(driver, rng, "worker"):
        driver.sim.send(process, KILL)


def kill_burst(driver: Driver, rng: Random) -> None:
    for process in list(driver.sim.processes.values()):
        if process.kind == "worker" or (process.kind == "template" and rng.random() < 0.3):
            driver.hurt += process.kind == "template"
            driver.sim.send(process, KILL)


def ask_worker(driver: Driver, rng: Random) -> None:
    if process := _some(driver, rng, rng.choice(("worker", "template"))):
        driver.hurt += process.kind == "template"
        driver.sim.send(process, TERM)


def out_of_memory(driver: Driver, rng: Random) -> None:
    if process := _some(driver, rng, "worker"):
        driver.sim.end(process, signum=KILL, oom=True)


def crash_worker(driver: Driver, rng: Random) -> None:
    code, signum = rng.choice(((None, 11), (0, None), (3, None), (None, 14), (40, None)))
    if process := _some(driver, rng, "worker"):
        driver.sim.end(process, code, signum)


def kill_template(driver: Driver, rng: Random) -> None:
    if process := _some(driver, rng, "template"):
        driver.hurt += 1
        driver.sim.send(process, KILL)


def stop_one(driver: Driver, rng: Random) -> None:
    if process := _some(driver, rng, rng.choice(("worker", "worker", "template"))):
        driver.sim.stop(process)


def continue_all(driver: Driver, rng: Random) -> None:
    for process in list(driver.sim.processes.values()):
        driver.sim.resume(process)


def no_forks(driver: Driver, rng: Random) -> None:
    driver.sim.no_forks_until = driver.sim.now + rng.choice((0.05, 0.5, 3.0))


def stem_trouble(driver: Driver, rng: Random) -> None:
    driver.sim.stem_trouble = rng.choice(("stopped", "hiding", "killed", "mute"))


def load(driver: Driver, rng: Random) -> None:
    for name in driver.sim.disk:
        driver.sim.demand[name] = rng.choice((0, 1, 2, 4, 8))


def more(driver: Driver, rng: Random) -> None:
    for _ in range(rng.choice((1, 1, 9))):
        driver.supervisor.wish_more(1)


def fewer(driver: Driver, rng: Random) -> None:
    for _ in range(rng.choice((1, 1, 9))):
        driver.supervisor.wish_more(-1)


def drain(driver: Driver, rng: Random) -> None:
    driver.wish(Phase.DRAIN)


def stop(driver: Driver, rng: Random) -> None:
    driver.wish(Phase.STOP)


def fast(driver: Driver, rng: Random) -> None:
    driver.wish(Phase.FAST)


def orphan(driver: Driver, rng: Random) -> None:
    driver.sim.orphan(obeys=rng.random() < 0.5)


#: What may befall a service, and how often. A stop ends most schedules early, so it is rare in here.
INCIDENTS: dict[Befall, int] = {
    hup: 10,
    hup_good: 5,
    hup_storm: 3,
    break_disk: 3,
    kill_worker: 8,
    kill_burst: 3,
    ask_worker: 3,
    out_of_memory: 1,
    crash_worker: 5,
    kill_template: 5,
    stop_one: 5,
    continue_all: 3,
    no_forks: 4,
    stem_trouble: 4,
    load: 4,
    more: 2,
    fewer: 2,
    drain: 2,
    stop: 1,
    fast: 1,
    orphan: 1,
}
_KINDS = list(INCIDENTS)
_CUMULATIVE = [sum(list(INCIDENTS.values())[: n + 1]) for n in range(len(_KINDS))]

#: Moments between incidents: in the same instant, while something is being born, while it settles, at leisure.
GAPS = (0.0, 0.001, 0.004, 0.02, 0.08, 0.3, 1.0, 4.0)


def run(seed: int) -> Driver:
    """One life of a service. Raises `Broken` when an invariant does not hold; the same seed is the same life."""
    rng = Random(seed)
    driver = Driver()
    driver.audit_every = 64
    driver.boot(any_edit(rng, good=rng.random() < 0.8))
    if rng.random() < 0.8:
        driver.advance(driver.sim.now + rng.choice((0.06, 0.1, 0.3, 0.35, 3.0)))
    for befall in rng.choices(_KINDS, cum_weights=_CUMULATIVE, k=rng.choice((2, 3, 4))):
        driver.advance(driver.sim.now + rng.choice(GAPS))
        if driver.finished:
            return driver
        befall(driver, rng)
        driver.turn()
    if driver.finished:
        return driver
    ending = rng.random()
    if ending < 0.45:
        driver.stop(Phase.FAST if ending < 0.1 else Phase.STOP)
    else:
        driver.recover()
        if ending > 0.85 and driver.supervisor.goal.phase in (Phase.RUN, Phase.DRAIN):
            driver.reload_at_rest(any_edit(rng, good=True))
    return driver
