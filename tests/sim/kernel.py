"""A system without processes: `SimKernel` is the `Kernel` that the simulator drives the heart through.

Virtual clock, virtual templates, intermediates (stems), workers and orphans. They load, fail to load, hang, crash,
disobey, finish a request first, are stopped and continued, and are killed by strangers; forks fail for a while. What
the master would learn from channels and from waitpid(2) goes into the `Table` in the same form, and like there:

* a worker has said its pid before it can die, so a birth is always in the table before the death;
* a process that was killed is a zombie until its parent reaps it, and a stopped stem hides the deaths of its workers;
* many may die in one instant, and a pid that was reaped is soon somebody else's (the last one freed is the first one
  given out again), so that a signal to a reaped pid is seen to hit a stranger.

Nothing is random in here: `fate` and the schedule decide.
"""

from __future__ import annotations

import errno
import heapq
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from preforkd.core.table import Table
from preforkd.errors import ExitCode
from preforkd.model import Death, Phase, Worker

TERM, QUIT, KILL = 15, 3, 9

#: From an order to the birth, and from a wish to leave to the exit of somebody idle. Seconds.
FORK = 0.005
LEAVE = 0.002
#: A worker whose stem does not end gives up (`preforkd.worker`). Seconds.
ADOPTION = 5.0


class Broken(AssertionError):
    """An invariant does not hold."""


@dataclass(frozen=True, slots=True)
class Code:
    """How an application behaves. What is on disk is copied by whoever loads it: the template, or each worker.

    ``load``: ok, fail, hang, crash, exit0, left, unsafe (loads, but must not be forked).
    ``worker``: ok, boot_failed, hang, deaf (hangs and hears only KILL), exit0, exit1, left, segv, brief (exits right
    after ready), later (crashes ``life`` seconds after ready), disobey (leaves only by QUIT), immortal (only by KILL),
    recycle (recycled after ``life`` seconds), sick.
    """

    load: str = "ok"
    load_time: float = 0.05
    worker: str = "ok"
    start_time: float = 0.03
    #: Every n-th worker behaves so; the others are well.
    every: int = 1
    life: float = 2.0

    @property
    def good(self) -> bool:
        return self.load in ("ok", "unsafe") and self.worker in ("ok", "disobey", "immortal")


GOOD = Code()


@dataclass(slots=True, eq=False)
class Process:
    pid: int
    kind: str
    pool: str = ""
    generation: int = 0
    #: Of a worker: its number; of a stem: the numbers whose births it owes.
    number: int = 0
    owes: list[int] = field(default_factory=list)
    code: Code | None = None
    fate: str = "ok"
    #: The stem that has not ended yet; None: the master is the parent.
    stem: Process | None = None
    alive: bool = True
    stopped: bool = False
    #: What happens when it is continued: signals and its own next step.
    deferred: list[Callable[[Process], None]] = field(default_factory=list)
    status: tuple[int | None, int | None] = (None, None)
    oom: bool = False
    ready: bool = False
    serving: bool = False
    leaving: bool = False


class SimKernel:
    """Implements `preforkd.core.supervisor.Kernel`. ``table`` is where the facts go."""

    def __init__(self, table: Table | None = None) -> None:
        self.table = table if table is not None else Table()
        self.now = 1000.0
        self.processes: dict[int, Process] = {}
        self.workers: dict[int, Process] = {}
        #: What each pool's code on disk is at this moment.
        self.disk: dict[str, Code] = {}
        #: Until then every fork fails with EAGAIN.
        self.no_forks_until = -1.0
        #: The faults have ended: whatever the code does wrong, it does not do it any more.
        self.healed = False
        #: What befalls the next stem: "", "stopped" (before the birth), "hiding" (stopped after it), "killed", "mute"
        #: (stopped before it said its own pid).
        self.stem_trouble = ""
        #: How many requests each pool has to serve at once, and how long one takes when its worker is asked to leave.
        self.demand: dict[str, int] = {}
        self.busy_time = 0.5
        #: Counters for the bounds: workers ordered, templates started.
        self.ordered = 0
        self.templates_started = 0
        self.deaths: list[Death] = []
        self._orders: dict[int, list[list[int]]] = {}
        self._slots: dict[tuple[str, int, int], int] = {}
        self._zombies: list[Process] = []
        self._unborn: list[int] = []
        self._born = 0
        self._free: list[int] = []
        self._next_pid = 100
        self._events: list[tuple[float, int, Callable[[Process], None], Process]] = []
        self._sequence = 0

    # --- the clock ---------------------------------------------------------------------------------------------------

    def at(self, when: float, step: Callable[[Process], None], process: Process) -> None:
        self._sequence += 1
        heapq.heappush(self._events, (when, self._sequence, step, process))

    def next_at(self) -> float | None:
        """When something happens next; None: nothing will by itself."""
        if self._zombies or self._unborn:
            return self.now
        return self._events[0][0] if self._events else None

    def happen(self) -> None:
        """Let everything happen whose time has come, and tell the table what is not reaped."""
        unborn, self._unborn = self._unborn, []
        for number in unborn:
            worker = self.table.never_born(number)
            if worker is not None:
                del self._slots[worker.pool, worker.generation, worker.slot]
        events = self._events
        while events and events[0][0] <= self.now:
            _, _, step, process = heapq.heappop(events)
            self._go_on(process, step)

    def reap(self, phase: Phase) -> None:
        """waitpid(2) until there is nothing."""
        while self._zombies:
            zombies, self._zombies = self._zombies, []
            for process in zombies:
                self._reap(process, phase)

    def _reap(self, process: Process, phase: Phase) -> None:
        del self.processes[process.pid]
        self._free.append(process.pid)
        code, signum = process.status
        if process.kind == "worker":
            worker = self.table.by_pid(process.pid)
            if worker is None or worker.id != process.number:
                raise Broken(f"worker {process.number} (pid {process.pid}) was reaped and is not in the table")
            del self.workers[process.number]
            self._leave_slot(process)
        death = self.table.exited(process.pid, code, signum, self.now, phase, process.oom)
        if not death.cause:
            raise Broken(f"a death without a cause: {death}")
        self.deaths.append(death)

    # --- Kernel ------------------------------------------------------------------------------------------------------

    def start_template(self, pool: str, generation: int, preload: bool) -> int:
        if self.now < self.no_forks_until:
            raise OSError(errno.EAGAIN, "Resource temporarily unavailable")
        self.templates_started += 1
        code = self.disk.get(pool, GOOD)
        process = self._fork("template", pool, generation)
        process.code = code if preload else None
        self._orders[process.pid] = []
        if self.healed or not preload:
            process.fate = "unsafe" if preload and code.load == "unsafe" else "ok"
        else:
            process.fate = code.load
        if process.fate != "hang":
            self.at(self.now + (code.load_time if preload else FORK), self._loaded, process)
        return process.pid

    def order(self, workers: Sequence[Worker]) -> None:
        numbers = []
        for worker in workers:
            self.ordered += 1
            key = (worker.pool, worker.generation, worker.slot)
            if key in self._slots:
                raise Broken(f"slot {key} belongs to worker {self._slots[key]} and was given to worker {worker.id}")
            self._slots[key] = worker.id
            numbers.append(worker.id)
        template = self.table.templates.get((workers[0].pool, workers[0].generation))
        process = self.processes.get(template.pid) if template is not None else None
        if process is None or not process.alive:
            for number in numbers:
                self._never_born(number)
            return
        self._orders[process.pid].append(numbers)
        self.at(self.now + FORK, self._take_order, process)

    def signal(self, pid: int, signum: int) -> None:
        process = self.processes.get(pid)
        if process is None:
            raise Broken(f"signal {signum} to pid {pid}, which was reaped")
        self.send(process, signum)

    def kill_stem(self, worker: Worker, pid: int) -> None:
        stem = self.processes.get(pid)
        if stem is None or stem.kind != "stem":
            return  # it has ended; the number may be somebody else's
        child = self.workers.get(worker.id)
        if worker.id in stem.owes or (child is not None and child.stem is stem):
            self.end(stem, signum=KILL)

    def release(self, worker: Worker) -> None:
        process = self.workers.get(worker.id)
        if process is not None and process.alive and process.ready:
            self._serve(process)

    # --- templates, stems, births ------------------------------------------------------------------------------------

    def _fork(self, kind: str, pool: str = "", generation: int = 0) -> Process:
        if self._free:
            pid = self._free.pop()
        else:
            pid = self._next_pid
            self._next_pid += 1
        process = self.processes[pid] = Process(pid, kind, pool, generation)
        return process

    def _loaded(self, template: Process) -> None:
        fate = "ok" if self.healed and template.fate != "unsafe" else template.fate
        if fate == "ok":
            self.table.template_loaded(template.pid)
        elif fate == "unsafe":
            self.table.template_unsafe(template.pid)
            self.end(template, ExitCode.LEFT)
        elif fate == "fail":
            self.table.template_failed(template.pid, "Traceback: ImportError: No module named 'mistake'")
            self.end(template, ExitCode.BOOT_FAILED)
        elif fate == "crash":
            self.end(template, signum=11)
        else:
            self.end(template, ExitCode.LEFT if fate == "left" else 0)

    def _take_order(self, template: Process) -> None:
        orders = self._orders[template.pid]
        if not orders:
            return
        numbers = orders.pop(0)
        if self.now < self.no_forks_until:
            for number in numbers:
                self.table.fork_failed(template.pool, "cannot fork: Resource temporarily unavailable", self.now)
                self._never_born(number)
            return
        trouble, self.stem_trouble = self.stem_trouble, ""
        stem = self._fork("stem", template.pool, template.generation)
        stem.stem = template
        stem.code = template.code
        stem.owes = numbers
        if trouble != "mute":
            for number in numbers:
                self.table.stem_born(number, stem.pid)
        if trouble in ("mute", "stopped"):
            stem.stopped = True
            stem.deferred.append(self._bear)
        elif trouble == "killed":
            self.end(stem, signum=KILL)
        else:
            stem.fate = trouble
            self._bear(stem)

    def _bear(self, stem: Process) -> None:
        numbers, stem.owes = stem.owes, []
        hiding = stem.fate == "hiding"
        for number in numbers:
            entry = self.table.workers.get(number)
            if entry is None:
                raise Broken(f"worker {number} was forgotten before its birth could fail")
            worker = self._fork("worker", stem.pool, stem.generation)
            worker.number = number
            self.workers[number] = worker
            worker.code = code = stem.code or self.disk.get(stem.pool, GOOD)
            self._born += 1
            worker.fate = "ok" if self._born % code.every else code.worker
            if self.healed and not code.good:
                worker.fate = "ok"
            if stem.code is None and not self.healed and code.load not in ("ok", "unsafe"):
                # It loads for itself.
                worker.fate = {"hang": "hang", "crash": "segv", "exit0": "exit0", "left": "left"}.get(
                    code.load, "boot_failed"
                )
            worker.stem = stem if hiding else None
            self.table.born(number, worker.pid, self.now)
            if hiding:
                self.at(self.now + ADOPTION, self._give_up, worker)
            elif worker.fate not in ("hang", "deaf"):
                self.at(self.now + code.start_time, self._start, worker)
        if hiding:
            stem.stopped = True
        else:
            self.end(stem, 0)

    def _give_up(self, worker: Process) -> None:
        self.end(worker, ExitCode.ORPHANED)

    def _never_born(self, number: int) -> None:
        """End of file on its birth channel: heard in the next turn."""
        self._unborn.append(number)

    def _leave_slot(self, process: Process) -> None:
        for key, number in self._slots.items():
            if number == process.number:
                del self._slots[key]
                return

    # --- workers -----------------------------------------------------------------------------------------------------

    def _start(self, worker: Process) -> None:
        fate = worker.fate
        if fate == "boot_failed":
            self.table.boot_failed(worker.number, "Traceback: KeyError: 'DATABASE_URL'")
            self.end(worker, ExitCode.BOOT_FAILED)
        elif fate in ("exit0", "exit1", "left"):
            self.end(worker, {"exit0": 0, "exit1": 1, "left": ExitCode.LEFT}[fate])
        elif fate == "segv":
            self.end(worker, signum=11)
        else:
            worker.ready = True
            entry = self.table.ready(worker.number, self.now)
            if entry is not None and not entry.hold:
                self._serve(worker)
            if fate == "brief":
                self.at(self.now + 0.01, self._crash, worker)

    def _serve(self, worker: Process) -> None:
        if worker.serving or worker.leaving:
            return
        worker.serving = True
        assert worker.code is not None
        if worker.fate in ("later", "recycle", "sick"):
            self.at(self.now + worker.code.life, self._crash, worker)

    def _crash(self, worker: Process) -> None:
        if self.healed and worker.fate != "brief":
            return
        if worker.fate == "recycle":
            self.end(worker, ExitCode.RECYCLED)
        elif worker.fate == "sick":
            self.end(worker, ExitCode.SICK)
        elif worker.fate == "brief":
            self.end(worker, 0)
        else:
            self.end(worker, signum=11)

    def idle(self, pool: str) -> tuple[frozenset[int], int]:
        """The scoreboard: numbers of the workers that say they are idle, and how many connections wait.

        A stopped worker goes on saying what it said last.
        """
        serving = [number for number, process in self.workers.items() if process.pool == pool and process.serving]
        demand = self.demand.get(pool, 0)
        if not demand:
            return frozenset(serving), 0
        return frozenset(serving[demand:]), max(0, demand - len(serving))

    def busy(self, worker: Process) -> bool:
        return worker.serving and worker.number not in self.idle(worker.pool)[0]

    # --- what signals do ---------------------------------------------------------------------------------------------

    def send(self, process: Process, signum: int) -> None:
        """A signal arrives, whoever sent it. A zombie feels nothing."""
        if not process.alive:
            return
        if signum == KILL:
            self.end(process, signum=KILL)
        elif process.stopped:
            process.deferred.append(self._hear_term if signum == TERM else self._hear_quit)
        elif signum == TERM:
            self._hear_term(process)
        else:
            self._hear_quit(process)

    def _hear_term(self, process: Process) -> None:
        if process.fate in ("deaf", "immortal", "disobey") or process.leaving:
            return
        process.leaving = True
        busy = self.busy(process)
        process.serving = False
        self.at(self.now + (self.busy_time if busy else LEAVE), self._leave, process)

    def _hear_quit(self, process: Process) -> None:
        if process.fate not in ("deaf", "immortal"):
            process.leaving = True
            process.serving = False
            self.at(self.now + LEAVE, self._leave, process)

    def _leave(self, process: Process) -> None:
        self.end(process, ExitCode.LEFT)

    def stop(self, process: Process) -> None:
        """SIGSTOP. The parent learns it from waitpid."""
        if process.alive and not process.stopped:
            process.stopped = True
            if process.kind != "stem" and process.stem is None:
                self.table.stopped(process.pid, self.now)

    def resume(self, process: Process) -> None:
        """SIGCONT."""
        if process.alive and process.stopped:
            process.stopped = False
            if process.kind != "stem" and process.stem is None:
                self.table.continued(process.pid)
            deferred, process.deferred = process.deferred, []
            for step in deferred:
                self._go_on(process, step)
            if process.kind == "stem" and not process.owes and process.fate == "hiding":
                self.end(process, 0)

    def _go_on(self, process: Process, step: Callable[[Process], None]) -> None:
        if not process.alive:
            return
        if process.stopped:
            process.deferred.append(step)
        else:
            step(process)

    def end(self, process: Process, code: int | None = None, signum: int | None = None, oom: bool = False) -> None:
        """A process ends; it is a zombie until its parent reaps it."""
        if not process.alive:
            return
        process.alive = False
        process.serving = False
        process.oom = oom
        process.status = (None if code is None else int(code), signum)
        if process.kind == "stem":
            self._stem_ended(process)
            return
        if process.kind == "template":
            for numbers in self._orders.pop(process.pid):
                for number in numbers:
                    self._never_born(number)
            for other in list(self.processes.values()):
                if other.kind == "stem" and other.stem is process:
                    other.stem = None  # adopted by the master
        if process.stem is None:
            self._zombies.append(process)

    def _stem_ended(self, stem: Process) -> None:
        for number in stem.owes:
            self._never_born(number)
        stem.owes = []
        for worker in self.workers.values():
            if worker.stem is stem:
                worker.stem = None
                if not worker.alive:
                    self._zombies.append(worker)
        if stem.stem is None:
            self._zombies.append(stem)  # adopted: a stranger to the table
        else:
            del self.processes[stem.pid]
            self._free.append(stem.pid)

    def orphan(self, obeys: bool = True) -> Process:
        """The application left a child behind; it is ours now, because we are a subreaper."""
        process = self._fork("stranger")
        process.fate = "ok" if obeys else "immortal"
        return process

    def strangers(self) -> tuple[int, ...]:
        return tuple(
            process.pid
            for process in self.processes.values()
            if process.kind == "stranger" or (process.kind == "stem" and process.stem is None)
        )
