"""What the heart may rely on, asked of both kernels: the one that forks, and the simulator's.

The simulator drives the heart through schedules that no machine would show in a lifetime. That proves something only as
far as its kernel does what the real one does; so each sentence below is held against both.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from preforkd import privileges
from preforkd.core.supervisor import Supervisor
from preforkd.core.table import Table
from preforkd.errors import ExitCode
from preforkd.listeners import Wanted, open_listeners
from preforkd.logs import open_logs
from preforkd.master.kernel import PosixKernel
from preforkd.master.world import make_world, pool_goal
from preforkd.model import (
    Action,
    Cause,
    Commit,
    Death,
    KillStem,
    Order,
    Phase,
    Plan,
    Release,
    Retire,
    RetireTemplate,
    Signal,
    StartTemplate,
    Template,
    TemplateState,
    Worker,
    WorkerState,
)
from preforkd.privileges import set_child_subreaper
from preforkd.stamp import build_stamp
from preforkd.wakeup import Wakeup
from preforkd.worker import template as template_process
from tests.sim.kernel import GOOD, Code, SimKernel
from tests.support.child import in_child
from tests.support.values import HELLO, make_config

#: Only a kernel that is broken makes somebody wait for so long. Seconds.
PATIENCE = 15.0

#: What an application's module does at its import.
MODULES = {
    "ok": HELLO,
    "fail": "raise ImportError('No module named mistake')\n",
    "crash": "import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)\n",
    "exit0": "import os\nos._exit(0)\n",
    "hang": "import signal\nwhile True: signal.pause()\n",
    "unsafe": "import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n" + HELLO,
}


class Bench(ABC):
    """A kernel with a table and a clock, and one pool, ``web``."""

    supervisor: Supervisor
    deaths: list[Death]

    @property
    def table(self) -> Table:
        return self.supervisor.table

    @abstractmethod
    def now(self) -> float:
        """Monotonic seconds."""

    @abstractmethod
    def wait(self, deadline: float) -> None:
        """Let something happen, and enter the facts."""

    @abstractmethod
    def application(self, how: str) -> None:
        """Put an application of that kind on disk."""

    @abstractmethod
    def kill(self, pid: int, signum: int) -> None:
        """A signal from a stranger."""

    @abstractmethod
    def strangers(self) -> tuple[int, ...]:
        """Adopted processes."""

    # --- the words of the contract -----------------------------------------------------------------------------------

    def act(self, *actions: Action) -> None:
        self.supervisor.act(Plan(actions, None), self.now())

    def until(self, there: Callable[[], Any]) -> None:
        """Let time pass until it is so."""
        deadline = self.now() + PATIENCE
        while not there():
            assert self.now() < deadline, f"{self.table.workers} {self.table.templates} {self.deaths}"
            self.wait(deadline)

    def started(self, *, preload: bool = True, loaded: bool = True) -> Template:
        """A template of generation 1, which serves."""
        self.act(StartTemplate("web", 1, preload))
        if loaded:
            self.until(lambda: self.template.state is TemplateState.READY)
        return self.template

    @property
    def template(self) -> Template:
        return self.table.templates["web", 1]

    def ordered(self, *slots: int, hold: bool = False) -> list[int]:
        """The numbers of the workers ordered for these slots."""
        before = set(self.table.workers)
        self.act(Order("web", 1, slots, hold, "contract"))
        return sorted(set(self.table.workers) - before)

    def serving(self, *slots: int) -> list[Worker]:
        """Workers in these slots, once they serve."""
        numbers = self.ordered(*slots)
        self.until(lambda: all(self.table.workers[n].state is WorkerState.SERVING for n in numbers))
        return [self.table.workers[number] for number in numbers]

    def retire(self, worker: Worker, signum: int = signal.SIGTERM) -> None:
        """Ask a worker to leave, and send the first signal."""
        assert worker.pid is not None
        ladder = ((self.now(), int(signum)),)
        self.act(Retire(worker.id, Cause.SHRINK, ladder), Signal(worker.pid, signum, "contract", 1, worker=worker.id))

    def death_of(self, pid: int | None) -> Death:
        """The death of a process, once it was reaped."""
        self.until(lambda: any(death.pid == pid for death in self.deaths))
        return next(death for death in self.deaths if death.pid == pid)


class SimBench(Bench):
    def __init__(self, folder: Path) -> None:
        self.kernel = SimKernel()
        self.supervisor = Supervisor(self.kernel, self.kernel.table)
        self.deaths = self.kernel.deaths
        self.supervisor.wish_generation(1, {"web": pool_goal(make_config(folder).pools["web"])})
        self.act(Commit(1))

    def now(self) -> float:
        return self.kernel.now

    def wait(self, deadline: float) -> None:
        self.kernel.reap(self.supervisor.goal.phase)
        self.kernel.now = min(self.kernel.next_at() or deadline, deadline)
        self.kernel.happen()
        self.kernel.reap(self.supervisor.goal.phase)

    def application(self, how: str) -> None:
        self.kernel.disk["web"] = GOOD if how == "ok" else Code(load=how)

    def kill(self, pid: int, signum: int) -> None:
        process = self.kernel.processes[pid]
        if signum == signal.SIGSTOP:
            self.kernel.stop(process)
        elif signum == signal.SIGCONT:
            self.kernel.resume(process)
        else:
            self.kernel.send(process, signum)

    def strangers(self) -> tuple[int, ...]:
        return self.kernel.strangers()


class PosixBench(Bench):
    """Real processes; only in a process that was forked for it, because it becomes a subreaper and catches signals."""

    def __init__(self, folder: Path) -> None:
        set_child_subreaper()
        self._folder = folder
        self._wakeup = Wakeup((signal.SIGCHLD,))
        self.application("ok")
        config = make_config(folder)
        self._logs = open_logs(config.log)
        self.deaths = []
        table = Table()
        self.kernel = PosixKernel(table, lambda: self._logs, template_process.run, os.environ, build_stamp())
        self.supervisor = Supervisor(self.kernel, table)
        opened = open_listeners([Wanted(listen) for listen in config.pools["web"].listen], {})
        opened.commit()
        identity = privileges.resolve(None, None)
        world = make_world(1, config, {"web": identity}, opened.listeners, self._logs)
        self.kernel.worlds[1] = world
        self.supervisor.wish_generation(1, {"web": world.pools["web"].goal})
        self.act(Commit(1))

    def now(self) -> float:
        return time.monotonic()

    def wait(self, deadline: float) -> None:
        poll = select.poll()
        filenos = set(self.kernel.filenos())
        for descriptor in (*filenos, self._wakeup.fileno()):
            poll.register(descriptor, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll(max(0.0, deadline - self.now()) * 1000)}
        self._wakeup.drain()
        self.kernel.collect(ready & filenos, self.now())
        self.deaths += self.kernel.reap(self.supervisor.goal.phase, self.now())

    def application(self, how: str) -> None:
        (self._folder / "hello.py").write_text(MODULES[how])

    def kill(self, pid: int, signum: int) -> None:
        os.kill(pid, signum)

    def strangers(self) -> tuple[int, ...]:
        return self.kernel.strangers()


Contract = Callable[[Bench], None]


@pytest.fixture(params=["sim", "posix"])
def holds(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[Contract], None]:
    """Holds a sentence of the contract against one kernel."""

    def hold(contract: Contract) -> None:
        if request.param == "sim":
            contract(SimBench(tmp_path))
        else:
            in_child(lambda: contract(PosixBench(tmp_path)))

    return hold


Holds = Callable[[Contract], None]


# --- templates -------------------------------------------------------------------------------------------------------


def test_a_template_loads_and_is_ready(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.act(StartTemplate("web", 1, True))
        assert bench.template.state is TemplateState.LOADING and bench.template.pid > 1
        bench.until(lambda: bench.template.state is TemplateState.READY)
        assert bench.deaths == [] and bench.strangers() == ()

    holds(contract)


def test_a_template_that_cannot_load_says_why_and_ends(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.application("fail")
        template = bench.started(loaded=False)
        death = bench.death_of(template.pid)
        assert (death.code, death.expected, death.template is not None) == (ExitCode.BOOT_FAILED, False, True)
        assert "ImportError" in bench.table.load_failures[1] and "mistake" in bench.table.load_failures[1]
        assert not bench.table.templates

    holds(contract)


@pytest.mark.parametrize(("how", "code", "signum"), [("crash", None, signal.SIGSEGV), ("exit0", 0, None)])
def test_a_template_that_ends_while_it_loads_is_a_failure(
    holds: Holds, how: str, code: int | None, signum: int | None
) -> None:
    def contract(bench: Bench) -> None:
        bench.application(how)
        template = bench.started(loaded=False)
        death = bench.death_of(template.pid)
        assert (death.code, death.signal, death.expected) == (code, signum, False)
        assert 1 in bench.table.load_failures and not bench.table.templates

    holds(contract)


def test_a_template_that_must_not_be_forked_leaves_and_that_is_no_failure(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.application("unsafe")
        template = bench.started(loaded=False)
        death = bench.death_of(template.pid)
        assert (death.code, death.expected) == (ExitCode.LEFT, True)
        assert bench.table.account("web").unsafe == {1} and not bench.table.load_failures
        bench.started(preload=False)
        assert len(bench.serving(0, 1)) == 2

    holds(contract)


def test_a_hanging_template_can_be_ended(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.application("hang")
        template = bench.started(loaded=False)
        bench.act(
            RetireTemplate("web", 1, template.pid, Cause.START_TIMEOUT, ((bench.now(), signal.SIGKILL),)),
            Signal(template.pid, signal.SIGKILL, "contract", 1, template=("web", 1)),
        )
        death = bench.death_of(template.pid)
        assert death.signal == signal.SIGKILL and not death.expected
        assert not bench.table.templates

    holds(contract)


def test_a_template_that_is_asked_leaves(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        template = bench.started()
        bench.act(
            RetireTemplate("web", 1, template.pid, Cause.STOP, ((bench.now(), signal.SIGTERM),)),
            Signal(template.pid, signal.SIGTERM, "contract", 1, template=("web", 1)),
        )
        death = bench.death_of(template.pid)
        assert (death.code, death.expected) == (ExitCode.LEFT, True)

    holds(contract)


# --- births ----------------------------------------------------------------------------------------------------------


def test_what_is_ordered_is_born_becomes_ready_and_serves(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        template = bench.started()
        numbers = bench.ordered(0, 3, 5)
        assert [bench.table.workers[n].state for n in numbers] == [WorkerState.ORDERED] * 3
        bench.until(lambda: all(bench.table.workers[n].state is WorkerState.SERVING for n in numbers))
        workers = [bench.table.workers[number] for number in numbers]
        assert [worker.slot for worker in workers] == [0, 3, 5]
        pids = {worker.pid for worker in workers}
        assert len(pids) == 3 and None not in pids and template.pid not in pids
        assert all(bench.table.by_pid(worker.pid or 0) == worker for worker in workers)
        assert all(worker.ready_at >= worker.born_at >= worker.ordered_at for worker in workers)
        assert bench.strangers() == ()

    holds(contract)


def test_orders_in_a_row_are_all_carried_out(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.started()
        numbers = [number for slot in range(12) for number in bench.ordered(slot)]
        bench.until(lambda: all(bench.table.workers[n].state is WorkerState.SERVING for n in numbers))

    holds(contract)


def test_a_held_worker_waits_for_its_release(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.started()
        (number,) = bench.ordered(0, hold=True)
        bench.until(lambda: bench.table.workers[number].state is WorkerState.HELD)
        bench.act(Release(number))
        worker = bench.table.workers[number]
        assert worker.state is WorkerState.SERVING and not worker.hold
        bench.retire(worker)
        assert bench.death_of(worker.pid).expected

    holds(contract)


def test_a_held_worker_that_is_not_wanted_leaves_at_once(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.started()
        (number,) = bench.ordered(0, hold=True)
        bench.until(lambda: bench.table.workers[number].state is WorkerState.HELD)
        worker = bench.table.workers[number]
        bench.retire(worker)
        death = bench.death_of(worker.pid)
        assert (death.code, death.expected) == (ExitCode.LEFT, True)

    holds(contract)


def test_an_order_to_a_template_that_is_gone_is_a_birth_that_never_happens(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        template = bench.started()
        bench.kill(template.pid, signal.SIGKILL)
        bench.ordered(0, 1)
        bench.until(lambda: not bench.table.workers)
        bench.death_of(template.pid)
        bench.started()
        assert len(bench.serving(0, 1)) == 2

    holds(contract)


def test_a_worker_that_cannot_load_says_why(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.started(preload=False)
        bench.application("fail")
        bench.ordered(0)
        bench.until(lambda: bench.deaths)
        (death,) = bench.deaths
        assert death.worker is not None and death.code == ExitCode.BOOT_FAILED and not death.expected
        assert "Error" in bench.table.account("web").last_error
        assert not bench.table.workers

    holds(contract)


def test_each_worker_loads_what_is_on_disk_where_the_template_loaded_nothing(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.application("crash")
        bench.started(preload=False)
        bench.ordered(0)
        bench.until(lambda: bench.deaths)
        assert bench.deaths[0].signal == signal.SIGSEGV
        bench.application("ok")
        assert bench.serving(0)

    holds(contract)


def test_a_loaded_template_keeps_what_it_has_loaded(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.started()
        bench.application("fail")
        assert bench.serving(0)

    holds(contract)


# --- deaths ----------------------------------------------------------------------------------------------------------


def test_a_worker_that_is_asked_leaves_and_its_slot_is_free(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.started()
        (worker,) = bench.serving(0)
        bench.retire(worker)
        death = bench.death_of(worker.pid)
        assert (death.code, death.signal, death.expected) == (ExitCode.LEFT, None, True)
        assert death.cause == "asked: pool shrinks" and death.slot == 0 and death.pool == "web"
        assert not bench.table.workers
        assert bench.serving(0)[0].id != worker.id

    holds(contract)


@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGQUIT])
def test_each_rung_of_the_ladder_ends_a_worker(holds: Holds, signum: int) -> None:
    def contract(bench: Bench) -> None:
        bench.started()
        (worker,) = bench.serving(0)
        bench.retire(worker, signum)
        assert bench.death_of(worker.pid).expected

    holds(contract)


def test_a_worker_that_hangs_in_its_import_leaves_when_asked(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.application("hang")
        bench.started(preload=False)
        (number,) = bench.ordered(0)
        bench.until(lambda: bench.table.workers[number].pid is not None)
        worker = bench.table.workers[number]
        bench.retire(worker, signal.SIGKILL)
        assert bench.death_of(worker.pid).signal == signal.SIGKILL

    holds(contract)


def test_a_strangers_signal_is_told_apart_from_ours(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.started()
        killed, asked = bench.serving(0, 1)
        assert killed.pid is not None and asked.pid is not None
        bench.kill(killed.pid, signal.SIGKILL)
        bench.kill(asked.pid, signal.SIGTERM)
        death = bench.death_of(killed.pid)
        assert (death.signal, death.expected, death.cause) == (9, False, "killed by signal 9 (SIGKILL)")
        death = bench.death_of(asked.pid)
        assert (death.code, death.expected, death.cause) == (ExitCode.LEFT, True, "asked by a signal from outside")

    holds(contract)


def test_many_deaths_in_one_instant_are_all_accounted_for(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.started()
        workers = bench.serving(*range(16))
        for worker in workers:
            assert worker.pid is not None
            bench.kill(worker.pid, signal.SIGKILL)
        bench.until(lambda: not bench.table.workers)
        assert sorted(death.slot or 0 for death in bench.deaths) == list(range(16))
        assert all(death.cause for death in bench.deaths)

    holds(contract)


def test_a_signal_to_one_that_has_just_died_is_fine(holds: Holds) -> None:
    """It is a zombie until it is reaped, and its number nobody else's."""

    def contract(bench: Bench) -> None:
        bench.started()
        (worker,) = bench.serving(0)
        assert worker.pid is not None
        bench.kill(worker.pid, signal.SIGKILL)
        bench.retire(worker)
        death = bench.death_of(worker.pid)
        assert death.signal == signal.SIGKILL

    holds(contract)


def test_workers_outlive_their_template(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        template = bench.started()
        workers = bench.serving(0, 1)
        bench.kill(template.pid, signal.SIGKILL)
        death = bench.death_of(template.pid)
        assert death.template is not None and not death.expected and not bench.table.templates
        assert {worker.id for worker in workers} == set(bench.table.workers)
        bench.retire(workers[0])
        assert bench.death_of(workers[0].pid).code == ExitCode.LEFT
        bench.started()
        assert bench.serving(2)

    holds(contract)


# --- stops -----------------------------------------------------------------------------------------------------------


def test_a_stop_and_a_continue_are_levels_in_the_table(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        template = bench.started()
        (worker,) = bench.serving(0)
        assert worker.pid is not None
        bench.kill(worker.pid, signal.SIGSTOP)
        bench.until(lambda: bench.table.workers[worker.id].stopped_at is not None)
        bench.kill(template.pid, signal.SIGSTOP)
        bench.until(lambda: bench.template.stopped_at is not None)
        bench.kill(worker.pid, signal.SIGCONT)
        bench.kill(template.pid, signal.SIGCONT)
        bench.until(lambda: bench.table.workers[worker.id].stopped_at is None and bench.template.stopped_at is None)
        assert bench.deaths == []
        bench.retire(bench.table.workers[worker.id])
        assert bench.death_of(worker.pid).code == ExitCode.LEFT

    holds(contract)


def test_a_stopped_worker_dies_by_the_last_rung(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        bench.started()
        (worker,) = bench.serving(0)
        assert worker.pid is not None
        bench.kill(worker.pid, signal.SIGSTOP)
        bench.until(lambda: bench.table.workers[worker.id].stopped_at is not None)
        bench.retire(bench.table.workers[worker.id], signal.SIGKILL)
        assert bench.death_of(worker.pid).signal == signal.SIGKILL

    holds(contract)


def test_an_order_to_a_stopped_template_waits_for_it(holds: Holds) -> None:
    def contract(bench: Bench) -> None:
        template = bench.started()
        bench.kill(template.pid, signal.SIGSTOP)
        bench.until(lambda: bench.template.stopped_at is not None)
        (number,) = bench.ordered(0)
        bench.kill(template.pid, signal.SIGCONT)
        bench.until(lambda: bench.table.workers[number].state is WorkerState.SERVING)

    holds(contract)


# --- stems -----------------------------------------------------------------------------------------------------------


def test_a_stem_that_has_ended_is_not_killed(holds: Holds) -> None:
    """Its number may be somebody else's by now."""

    def contract(bench: Bench) -> None:
        template = bench.started()
        worker, other = bench.serving(0, 1)
        assert other.pid is not None
        for pid in (template.pid, other.pid):
            bench.act(KillStem(worker.id, pid))
        assert bench.serving(2)
        assert bench.deaths == [] and set(bench.table.templates) == {("web", 1)}

    holds(contract)


# --- phases ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", [Phase.RUN, Phase.STOP])
def test_a_death_does_not_count_against_a_service_that_stops(holds: Holds, phase: Phase) -> None:
    def contract(bench: Bench) -> None:
        bench.application("crash")
        bench.started(preload=False)
        bench.supervisor.wish_phase(phase)
        bench.ordered(0)
        bench.until(lambda: bench.deaths)
        assert bench.deaths[0].signal == signal.SIGSEGV and not bench.deaths[0].expected
        assert bool(bench.table.account("web").deaths.get(1)) is (phase is Phase.RUN)

    holds(contract)


def test_nobody_stays_when_a_kernel_is_gone(tmp_path: Path) -> None:
    """Promise 2, from below: the master is killed, and everybody leaves by themselves. Real processes only."""

    def master() -> list[int]:
        bench = PosixBench(tmp_path)
        template = bench.started()
        workers = bench.serving(0, 1)
        return [template.pid, *(worker.pid or 0 for worker in workers)]

    descriptors = []
    for pid in in_child(master):
        with contextlib.suppress(ProcessLookupError):
            descriptors.append(os.pidfd_open(pid))
    for descriptor in descriptors:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        assert poll.poll(PATIENCE * 1000)
        os.close(descriptor)
