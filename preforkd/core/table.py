"""Who is alive: workers and templates, their pids and slots, and what their deaths say about the pool.

No processes inside. The master tells the table facts (born, ready, exited, ...) and which of `reconcile`'s actions it
performed; `reconcile` only reads. Rules that the table keeps by itself:

* a slot belongs to at most one worker;
* a pid is in the table from its birth until it is reaped, and no longer, so a signal never reaches a stranger;
* what is not in the table is not ours: an unknown pid is an adopted orphan.

**Crash back-off.** A death that nobody asked for is *early* when the worker never got ready, or ended by itself within
`EARLY` seconds after. Early deaths in a row make the next order wait, twice as long each time (einhorn slows down the
same way; php-fpm, nginx, unicorn and gunicorn respawn at once and for ever). One worker that stays up after the last
failure ends the row. Deaths by a signal from outside never count as early, else somebody with ``kill -9`` could talk
the pool into not serving, but every replacement takes a token from a bucket, which bounds the forks per second.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace

from preforkd.errors import ExitCode
from preforkd.model import (
    Cause,
    Death,
    KillStem,
    Leave,
    Order,
    Pace,
    Phase,
    PoolGoal,
    Release,
    Retire,
    RetireTemplate,
    Signal,
    Template,
    TemplateState,
    Worker,
    WorkerState,
)

#: A worker that ends by itself so soon after it was ready counts as a failed start. Seconds.
EARLY = 1.0
#: Failures in a row that cost nothing: one bad moment is no crash loop.
FREE_FAILURES = 2
BACKOFF_FIRST = 0.1
BACKOFF_MAX = 30.0
#: Replacements: so many at once per pool slot, refilled at so many a second.
TOKENS_PER_SECOND = 20.0
TOKENS_LEAST = 20.0

_KILL, _TERM, _INT, _QUIT, _HUP, _ALRM = 9, 15, 2, 3, 1, 14
_FROM_OUTSIDE = frozenset({_KILL, _TERM, _INT, _QUIT, _HUP})

_SIGNAL_NAMES = {
    1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE",
    9: "SIGKILL", 10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM",
    24: "SIGXCPU", 25: "SIGXFSZ", 31: "SIGSYS",
}  # fmt: skip


@dataclass(slots=True)
class PoolAccount:
    """What the table remembers of a pool besides its members."""

    pace: Pace = field(default_factory=Pace)
    #: Early deaths in a row, and when the last of them happened (monotonic seconds).
    failures: int = 0
    failed_at: float = -1e9
    #: Until then no worker is ordered and no template started.
    not_before: float = -1e9
    #: Tokens for replacements (see the head of this file) and when they were counted.
    tokens: float = TOKENS_LEAST
    tokens_at: float = -1e9
    #: What the last failure said: the traceback of the application, or the cause of death.
    last_error: str = ""
    #: ``preload: auto`` found a reason not to fork from the loaded template, by generation.
    unsafe: set[int] = field(default_factory=set)
    #: Workers of each generation that died by their own fault.
    deaths: dict[int, int] = field(default_factory=dict)


class Table:
    """The members of all pools. Master only; not thread-safe, and needs not be."""

    def __init__(self) -> None:
        self.workers: dict[int, Worker] = {}
        self.templates: dict[tuple[str, int], Template] = {}
        self.accounts: dict[str, PoolAccount] = {}
        #: Ways out of adopted strangers, while stopping.
        self.strangers: dict[int, Leave] = {}
        #: A generation that cannot become current, and why.
        self.load_failures: dict[int, str] = {}
        self._by_pid: dict[int, int] = {}
        self._next_id = 1

    # --- looking ------------------------------------------------------------------------------------------------

    def account(self, pool: str) -> PoolAccount:
        """The account of a pool; made at the first look."""
        return self.accounts.setdefault(pool, PoolAccount())

    def of(self, pool: str) -> Iterator[Worker]:
        """All workers of a pool, of every generation, in the order of their births."""
        return (worker for worker in self.workers.values() if worker.pool == pool)

    def by_pid(self, pid: int) -> Worker | None:
        number = self._by_pid.get(pid)
        return None if number is None else self.workers[number]

    def template_by_pid(self, pid: int) -> Template | None:
        for template in self.templates.values():
            if template.pid == pid:
                return template
        return None

    def free_slots(self, pool: str, capacity: int) -> list[int]:
        """Free slots below ``capacity``, lowest first."""
        taken = {worker.slot for worker in self.of(pool)}
        return [slot for slot in range(capacity) if slot not in taken]

    def empty(self) -> bool:
        return not (self.workers or self.templates)

    def tokens(self, pool: str, limits: PoolGoal, now: float) -> float:
        """Replacements that the pool may order at this moment."""
        account = self.account(pool)
        most = max(TOKENS_LEAST, float(limits.max))
        return min(most, account.tokens + (now - account.tokens_at) * TOKENS_PER_SECOND)

    # --- what reconcile asked for and the master did -------------------------------------------------------------

    def ordered(self, action: Order, now: float) -> list[Worker]:
        """Enter the workers of an order; returns them in the order of their slots."""
        taken = {worker.slot for worker in self.of(action.pool)}
        entered = []
        for slot in action.slots:
            if slot in taken:
                raise AssertionError(f"slot {slot} of pool {action.pool} is taken")
            worker = Worker(
                id=self._next_id,
                pool=action.pool,
                slot=slot,
                generation=action.generation,
                state=WorkerState.ORDERED,
                ordered_at=now,
                hold=action.hold,
            )
            self._next_id += 1
            self.workers[worker.id] = worker
            entered.append(worker)
        return entered

    def spend(self, pool: str, limits: PoolGoal, count: int, now: float) -> None:
        """Take tokens for an order."""
        account = self.account(pool)
        account.tokens = self.tokens(pool, limits, now) - count
        account.tokens_at = now

    def retired(self, action: Retire, now: float) -> None:
        worker = self.workers[action.worker]
        leave = Leave(action.cause, now, action.ladder)
        self.workers[worker.id] = replace(worker, state=WorkerState.LEAVING, leave=leave)

    def template_retired(self, action: RetireTemplate, now: float) -> None:
        leave = Leave(action.cause, now, action.ladder)
        for key, template in self.templates.items():
            if template.pid == action.pid:
                self.templates[key] = replace(template, state=TemplateState.LEAVING, leave=leave)

    def signaled(self, action: Signal, now: float) -> None:
        """A rung was taken, whether or not the process was still there to feel it."""
        if action.worker is not None:
            worker = self.workers[action.worker]
            if worker.leave is not None:
                leave = replace(worker.leave, step=action.step)
                self.workers[worker.id] = replace(worker, leave=leave)
        elif action.template is not None:
            template = self.templates[action.template]
            if template.leave is not None:
                leave = replace(template.leave, step=action.step)
                self.templates[action.template] = replace(template, leave=leave)
        else:
            leave = self.strangers.get(action.pid) or Leave(Cause.STOP, now, ())
            self.strangers[action.pid] = replace(leave, step=action.step)

    def stem_killed(self, action: KillStem) -> None:
        worker = self.workers[action.worker]
        self.workers[worker.id] = replace(worker, stem=None)

    def released(self, action: Release, now: float) -> None:
        worker = self.workers[action.worker]
        self.workers[worker.id] = replace(worker, state=WorkerState.SERVING, hold=False, ready_at=now)

    def template_started(self, pool: str, generation: int, pid: int, preload: bool, now: float) -> None:
        key = (pool, generation)
        if key in self.templates:
            raise AssertionError(f"pool {pool} has a template of generation {generation}")
        self.templates[key] = Template(pool, generation, pid, TemplateState.LOADING, now, preload)

    def fork_failed(self, pool: str, why: str, now: float) -> None:
        """A shortage, not a crash: asked again after a moment that grows to a second."""
        account = self.account(pool)
        account.failed_at = now
        account.last_error = why
        account.failures += 1
        account.not_before = now + min(1.0, BACKOFF_FIRST * 2 ** min(account.failures, 5))

    # --- facts ---------------------------------------------------------------------------------------------------

    def stem_born(self, number: int, pid: int) -> None:
        if number in self.workers:
            self.workers[number] = replace(self.workers[number], stem=pid)

    def born(self, number: int, pid: int, now: float) -> None:
        worker = self.workers.get(number)
        if worker is None or worker.pid is not None:
            return
        state = WorkerState.STARTING if worker.leave is None else WorkerState.LEAVING
        self.workers[number] = replace(worker, pid=pid, born_at=now, state=state)
        self._by_pid[pid] = number

    def never_born(self, number: int) -> Worker | None:
        """End of file on a birth channel before a pid came through: the slot is free."""
        worker = self.workers.get(number)
        if worker is None or worker.pid is not None:
            return None
        return self.workers.pop(number)

    def ready(self, number: int, now: float) -> Worker | None:
        worker = self.workers.get(number)
        if worker is None or worker.state is not WorkerState.STARTING:
            return None
        state = WorkerState.HELD if worker.hold else WorkerState.SERVING
        worker = replace(worker, state=state, ready_at=now, stem=None)
        self.workers[number] = worker
        return worker

    def boot_failed(self, number: int, text: str) -> None:
        """The worker said why it cannot start; its exit follows and is counted there."""
        worker = self.workers.get(number)
        if worker is not None:
            self.account(worker.pool).last_error = text

    def template_loaded(self, pid: int) -> Template | None:
        for key, template in self.templates.items():
            if template.pid == pid and template.state is TemplateState.LOADING:
                self.templates[key] = replace(template, state=TemplateState.READY)
                return self.templates[key]
        return None

    def template_unsafe(self, pid: int) -> Template | None:
        """The import left something behind that a fork would break: a template that loads nothing is wanted instead."""
        template = self.template_by_pid(pid)
        if template is not None:
            self.account(template.pool).unsafe.add(template.generation)
        return template

    def template_failed(self, pid: int, text: str) -> Template | None:
        template = self.template_by_pid(pid)
        if template is not None:
            self.account(template.pool).last_error = text
            self.load_failures.setdefault(template.generation, f"pool {template.pool}: {text}")
        return template

    def stopped(self, pid: int, now: float) -> Worker | Template | None:
        return self._set_stopped(pid, now)

    def continued(self, pid: int) -> Worker | Template | None:
        return self._set_stopped(pid, None)

    def _set_stopped(self, pid: int, at: float | None) -> Worker | Template | None:
        worker = self.by_pid(pid)
        if worker is not None:
            self.workers[worker.id] = replace(worker, stopped_at=at)
            return self.workers[worker.id]
        for key, template in self.templates.items():
            if template.pid == pid:
                self.templates[key] = replace(template, stopped_at=at)
                return self.templates[key]
        return None

    def exited(
        self, pid: int, code: int | None, signum: int | None, now: float, phase: Phase, oom: bool = False
    ) -> Death:
        """A child was reaped. Returns what is known about the death; the pid and the slot are free from here on."""
        self.strangers.pop(pid, None)
        worker = self.by_pid(pid)
        if worker is not None:
            del self.workers[worker.id]
            del self._by_pid[pid]
            return self._worker_exited(worker, pid, code, signum, now, phase, oom)
        template = self.template_by_pid(pid)
        if template is not None:
            del self.templates[template.pool, template.generation]
            return self._template_exited(template, pid, code, signum, now, oom)
        return Death(pid, code, signum, cause=_ending(code, signum, oom), expected=True)

    def _worker_exited(
        self, worker: Worker, pid: int, code: int | None, signum: int | None, now: float, phase: Phase, oom: bool
    ) -> Death:
        was_ready = worker.state in (WorkerState.HELD, WorkerState.SERVING, WorkerState.LEAVING) and worker.ready_at > 0
        by_ladder = worker.leave is not None
        ending = _ending(code, signum, oom)
        recycled = code == ExitCode.RECYCLED
        left = code == ExitCode.LEFT
        if worker.leave is not None:
            cause = f"asked: {worker.leave.cause.value}" if left else f"asked: {worker.leave.cause.value}, {ending}"
            if worker.leave.cause in (Cause.START_TIMEOUT, Cause.STOPPED):
                cause = f"timed out: {worker.leave.cause.value}, {ending}"
        elif signum == _ALRM:
            # The worker's own kernel timer, armed for `timeouts.request` (or `graceful`, when its master was gone).
            cause = "timed out: the request took longer than timeouts.request"
        elif recycled:
            cause = "recycled"
        elif left:
            cause = "asked by a signal from outside"
        else:
            cause = ending
        timed_out = worker.leave is not None and worker.leave.cause is Cause.START_TIMEOUT
        expected = (by_ladder and not timed_out) or recycled or left
        own_fault = not expected and (oom or timed_out or signum not in _FROM_OUTSIDE)
        if own_fault and phase is Phase.RUN:
            self._died(worker.pool, worker.generation)
            if not was_ready or now - worker.ready_at < EARLY:
                self._failed(worker.pool, cause, now, code == ExitCode.BOOT_FAILED)
        elif not was_ready and not expected:
            # Somebody outside ended it before it could start: no fault of the code, but a canary that is gone is gone.
            self.account(worker.pool).last_error = cause
        return Death(pid, code, signum, worker.pool, worker.slot, worker.generation, worker, None, cause, expected)

    def _template_exited(
        self, template: Template, pid: int, code: int | None, signum: int | None, now: float, oom: bool
    ) -> Death:
        expected = template.leave is not None and template.leave.cause is not Cause.START_TIMEOUT
        ending = _ending(code, signum, oom)
        if template.generation in self.account(template.pool).unsafe and template.preload and code == ExitCode.LEFT:
            expected, ending = True, "its workers load for themselves"
        elif template.leave is None and code == ExitCode.LEFT:
            expected, ending = True, "asked by a signal from outside"
        elif template.leave is not None:
            ending = f"asked: {template.leave.cause.value}" + ("" if code == ExitCode.LEFT else f", {ending}")
        if not expected and (template.state is TemplateState.LOADING or now - template.started_at < EARLY):
            if code != ExitCode.BOOT_FAILED:
                self.account(template.pool).last_error = f"its template ended: {ending}"
                self.load_failures.setdefault(
                    template.generation, f"pool {template.pool}: the template ended while it loaded: {ending}"
                )
            self._failed(template.pool, ending, now, True)
        return Death(pid, code, signum, template.pool, None, template.generation, None, template, ending, expected)

    def _died(self, pool: str, generation: int) -> None:
        deaths = self.account(pool).deaths
        deaths[generation] = deaths.get(generation, 0) + 1

    def _failed(self, pool: str, cause: str, now: float, has_text: bool) -> None:
        account = self.account(pool)
        account.failures += 1
        account.failed_at = now
        if not has_text or not account.last_error:
            account.last_error = cause
        if account.failures > FREE_FAILURES:
            doublings = min(account.failures - FREE_FAILURES - 1, 20)
            account.not_before = now + min(BACKOFF_MAX, BACKOFF_FIRST * 2**doublings)

    def recovered(self, pool: str) -> None:
        """A worker stayed up after the last failure: the row of failures is over."""
        account = self.account(pool)
        account.failures = 0
        account.not_before = -1e9
        account.last_error = ""

    def forget_generation(self, generation: int) -> None:
        self.load_failures.pop(generation, None)
        for account in self.accounts.values():
            account.unsafe.discard(generation)
            account.deaths.pop(generation, None)


def _ending(code: int | None, signum: int | None, oom: bool) -> str:
    """The end of a process in words."""
    if signum is not None:
        name = _SIGNAL_NAMES.get(signum)
        text = f"killed by signal {signum}" + (f" ({name})" if name else "")
        return f"out of memory: {text}" if oom and signum == _KILL else text
    try:
        word = {
            ExitCode.BOOT_FAILED: "could not start",
            ExitCode.SICK: "out of resources",
            ExitCode.ORPHANED: "its master was gone",
            ExitCode.RECYCLED: "recycled",
        }.get(ExitCode(code or 0))
    except ValueError:
        word = None
    return f"exit code {code}" + (f" ({word})" if word else "")
