"""Who is alive: workers and templates, their pids and slots, and what their deaths say about the pool.

No processes inside. The master tells the table facts (born, ready, exited, ...) and which of `reconcile`'s actions it
performed; `reconcile` only reads. Rules that the table keeps by itself:

* a slot belongs to at most one worker;
* a pid is in the table from its birth until it is reaped, and no longer, so a signal never reaches a stranger;
* what is not in the table is not ours: an unknown pid is an adopted orphan.

**Crash back-off.** A death that nobody asked for is *early* when the worker never got ready, or ended by itself within
`EARLY` seconds after. Rounds of early deaths in a row make the next order wait, twice as long each time (einhorn slows
down the same way; php-fpm, nginx, unicorn and gunicorn respawn at once and for ever). All that die of what was ordered
before the last failure are one round: thirty workers that miss their database in one moment are one bad moment. One
worker that stays up after the last failure ends the row. Only the generation that serves is counted: a candidate fails
by itself (`PoolAccount.deaths`), and its faults must not hold up the replacements of what goes on serving. Deaths by a
signal from outside never count as early, else somebody with ``kill -9`` could talk the pool into not serving, but every
replacement takes a token from a bucket, which bounds the forks per second.

**Shortage.** A fork that failed, and a birth that never happened, make everybody wait for a moment that grows to
`SHORT_MAX`, candidates too. It is nobody's fault, so it is not counted as a failure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
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
#: Waits of a shortage. Longer at first, and a stem that somebody killed delays a replacement that is waited for;
#: shorter at last, and a master without processes to fork is busy with asking for them. Seconds.
SHORT_FIRST = 0.05
SHORT_MAX = 1.0

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
    #: Rounds of early deaths in a row, and when the last of them happened (monotonic seconds).
    failures: int = 0
    failed_at: float = -1e9
    #: Until then no worker of the serving generation is ordered and no template of it started.
    not_before: float = -1e9
    #: Forks or births that failed in a row, and until when nothing is forked for the pool.
    shortages: int = 0
    short_until: float = -1e9
    #: Tokens for replacements (see the head of this file) and when they were counted.
    tokens: float = TOKENS_LEAST
    tokens_at: float = -1e9
    #: What the last failure said: the traceback of the application, or the cause of death.
    last_error: str = ""
    #: ``preload: auto`` found a reason not to fork from the loaded template, by generation.
    unsafe: set[int] = field(default_factory=set)
    #: Workers of each generation that died by their own fault, and what the last of them died of.
    deaths: dict[int, int] = field(default_factory=dict)
    last_death: dict[int, str] = field(default_factory=dict)
    #: Held workers and loaded templates of each generation that were lost by somebody else's doing.
    lost: dict[int, int] = field(default_factory=dict)


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
        #: The generation that serves; its failures, and nobody else's, make the pool back off.
        self.serving: int | None = None
        #: What workers said about why they cannot start, until they are reaped.
        self._last_words: dict[int, str] = {}
        self._by_pid: dict[int, int] = {}
        self._next_id = 1

    # --- looking -----------------------------------------------------------------------------------------------------

    def account(self, pool: str) -> PoolAccount:
        """The account of a pool; made at the first look."""
        account = self.accounts.get(pool)
        if account is None:
            account = self.accounts[pool] = PoolAccount()
        return account

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

    def free_slots(self, pool: str, generation: int, capacity: int) -> list[int]:
        """Slots below ``capacity`` that a worker of the generation may get, the best first.

        First those that nobody in the pool has, lowest first. Then those of other generations: each generation has a
        scoreboard of its own, so that is safe, and without it one with few slots would wait for ever for the workers of
        a large one, which wait for it.
        """
        free = set(range(capacity))
        shared = set()
        own = set()
        for worker in self.of(pool):
            if worker.slot in free:
                free.discard(worker.slot)
                shared.add(worker.slot)
            if worker.generation == generation:
                own.add(worker.slot)
        return sorted(free) + sorted(shared - own)

    def empty(self) -> bool:
        return not (self.workers or self.templates)

    def unborn(self) -> bool:
        """True when no process is known: whoever is still entered was ordered and has not said its pid, if it ever
        will.

        While stopping, every child of ours is a stranger then; a stopped intermediate may be among them.
        """
        return not self.templates and not self._by_pid

    def tokens(self, pool: str, limits: PoolGoal, now: float) -> float:
        """Replacements that the pool may order at this moment."""
        account = self.accounts.get(pool) or PoolAccount()
        most = max(TOKENS_LEAST, float(limits.max))
        return min(most, account.tokens + (now - account.tokens_at) * TOKENS_PER_SECOND)

    # --- what reconcile asked for and the master did -----------------------------------------------------------------

    def ordered(self, action: Order, now: float) -> list[Worker]:
        """Enter the workers of an order; returns them in the order of their slots."""
        taken = {worker.slot for worker in self.of(action.pool) if worker.generation == action.generation}
        entered = []
        for slot in action.slots:
            if slot in taken:
                raise AssertionError(f"slot {slot} of pool {action.pool} generation {action.generation} is taken")
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
        worker = self.workers.get(action.worker)
        if worker is not None:
            self.workers[worker.id] = replace(worker, stem=None)

    def released(self, action: Release, now: float) -> None:
        worker = self.workers[action.worker]
        if worker.state is not WorkerState.HELD:
            return  # on its way out by now
        self.workers[worker.id] = replace(worker, state=WorkerState.SERVING, hold=False, ready_at=now)

    def template_started(self, pool: str, generation: int, pid: int, preload: bool, now: float) -> None:
        key = (pool, generation)
        if key in self.templates:
            raise AssertionError(f"pool {pool} has a template of generation {generation}")
        self.templates[key] = Template(pool, generation, pid, TemplateState.LOADING, now, preload)
        self.account(pool).shortages = 0

    def fork_failed(self, pool: str, why: str, now: float) -> None:
        """A shortage, not a crash: asked again after a moment that grows to `SHORT_MAX`."""
        account = self.account(pool)
        account.last_error = why
        self._short(account, now)

    def _short(self, account: PoolAccount, since: float) -> None:
        # What fails together, or was asked for before the last failure was over, is one shortage.
        if since >= account.short_until:
            account.short_until = since + min(SHORT_MAX, SHORT_FIRST * 2 ** min(account.shortages, 10))
            account.shortages += 1

    def generation_begins(self, number: int, pools: Iterable[str]) -> None:
        """A generation was committed, or came back: the failures were another's, and it starts without them."""
        self.serving = number
        for pool in pools:
            self.recovered(pool)
            account = self.account(pool)
            # All of the pool is about to be replaced, because somebody asked for it.
            account.tokens, account.tokens_at = TOKENS_LEAST, -1e9
            account.pace = replace(account.pace, calm_since=None)

    # --- facts -------------------------------------------------------------------------------------------------------

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
        self.account(worker.pool).shortages = 0

    def never_born(self, number: int) -> Worker | None:
        """End of file on a birth channel before a pid came through: the slot is free."""
        worker = self.workers.get(number)
        if worker is None or worker.pid is not None:
            return None
        if worker.leave is None:
            self._short(self.account(worker.pool), worker.ordered_at)
            if worker.hold:
                self._lost(worker.pool, worker.generation, "it was never born")
        return self.workers.pop(number)

    def ready(self, number: int, now: float) -> Worker | None:
        worker = self.workers.get(number)
        if worker is not None and worker.state is WorkerState.LEAVING and not worker.ready_at:
            # It was asked to leave meanwhile, but may have begun to serve.
            self.workers[number] = replace(worker, ready_at=now, stem=None)
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
            self._last_words[number] = text

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
        self,
        pid: int,
        code: int | None,
        signum: int | None,
        now: float,
        phase: Phase,
        oom: bool = False,
        overrun: bool = False,
    ) -> Death:
        """A child was reaped. Returns what is known about the death; the pid and the slot are free from here on.

        ``oom``: the kernel killed somebody for lack of memory meanwhile. ``overrun``: requests have a time limit, so
        that a SIGALRM is the kernel timer that the worker has armed for it.
        """
        self.strangers.pop(pid, None)
        worker = self.by_pid(pid)
        if worker is not None:
            del self.workers[worker.id]
            del self._by_pid[pid]
            return self._worker_exited(worker, pid, code, signum, now, phase, oom, overrun)
        template = self.template_by_pid(pid)
        if template is not None:
            del self.templates[template.pool, template.generation]
            return self._template_exited(template, pid, code, signum, now, phase, oom)
        return Death(pid, code, signum, cause=_ending(code, signum, oom), expected=True)

    def _worker_exited(
        self,
        worker: Worker,
        pid: int,
        code: int | None,
        signum: int | None,
        now: float,
        phase: Phase,
        oom: bool,
        overrun: bool,
    ) -> Death:
        was_ready = worker.ready_at > 0
        ending = _ending(code, signum, oom)
        recycled = code == ExitCode.RECYCLED
        left = code == ExitCode.LEFT
        asked_for = worker.leave.cause if worker.leave is not None else None
        if asked_for in (Cause.START_TIMEOUT, Cause.STOPPED):
            cause = f"timed out: {asked_for.value}, {ending}"
        elif asked_for is not None:
            cause = f"asked: {asked_for.value}" if left else f"asked: {asked_for.value}, {ending}"
        elif signum == _ALRM and overrun:
            cause = "timed out: the request took longer than timeouts.request"
        elif recycled:
            cause = "recycled"
        elif left:
            cause = "asked by a signal from outside"
        else:
            cause = ending
        timed_out = asked_for is Cause.START_TIMEOUT
        expected = (asked_for is not None and not timed_out) or recycled or left
        # ORPHANED from a worker whose master lives: its intermediate was stopped, or took too long to end.
        outside = not timed_out and not oom and (signum in _FROM_OUTSIDE or code == ExitCode.ORPHANED)
        last_words = self._last_words.pop(worker.id, "")
        if phase in (Phase.STOP, Phase.FAST):
            pass  # nobody draws conclusions any more
        elif not expected and not outside:
            why = last_words if code == ExitCode.BOOT_FAILED and last_words else cause
            account = self.account(worker.pool)
            account.deaths[worker.generation] = account.deaths.get(worker.generation, 0) + 1
            account.last_death[worker.generation] = account.last_error = why
            if worker.generation == self.serving and (not was_ready or now - worker.ready_at < EARLY):
                self._failed(worker.pool, why, worker.ordered_at, now)
        elif worker.hold:
            # No fault of the code, but a canary that is gone is gone.
            self._lost(worker.pool, worker.generation, cause)
        return Death(pid, code, signum, worker.pool, worker.slot, worker.generation, worker, None, cause, expected)

    def _template_exited(
        self, template: Template, pid: int, code: int | None, signum: int | None, now: float, phase: Phase, oom: bool
    ) -> Death:
        asked_for = template.leave.cause if template.leave is not None else None
        account = self.account(template.pool)
        cause = ending = _ending(code, signum, oom)
        expected = asked_for is not None and asked_for is not Cause.START_TIMEOUT
        if template.generation in account.unsafe and template.preload and code == ExitCode.LEFT:
            expected, cause = True, "its workers load for themselves"
        elif asked_for is Cause.START_TIMEOUT:
            cause = f"timed out: {asked_for.value}, {ending}"
        elif asked_for is not None:
            cause = f"asked: {asked_for.value}" + ("" if code == ExitCode.LEFT else f", {ending}")
        elif code == ExitCode.LEFT:
            cause = "asked by a signal from outside"
        if phase in (Phase.STOP, Phase.FAST) or (expected and asked_for is not Cause.STOPPED):
            pass
        elif asked_for is Cause.STOPPED or (
            template.state is TemplateState.READY and now - template.started_at >= EARLY
        ):
            self._lost(template.pool, template.generation, f"its template ended: {cause}")
        else:
            # Whatever it said: one that is asked to leave again and again must not be started again and again.
            why = account.last_error if code == ExitCode.BOOT_FAILED else f"the template ended while it loaded: {cause}"
            self.load_failures.setdefault(template.generation, f"pool {template.pool}: {why}")
            if template.generation == self.serving:
                self._failed(template.pool, why, template.started_at, now)
        expected = expected or (asked_for is None and code == ExitCode.LEFT)
        return Death(pid, code, signum, template.pool, None, template.generation, None, template, cause, expected)

    def _lost(self, pool: str, generation: int, why: str) -> None:
        account = self.account(pool)
        account.lost[generation] = account.lost.get(generation, 0) + 1
        account.last_error = why

    def _failed(self, pool: str, why: str, begun_at: float, now: float) -> None:
        """Count a failure of something that was begun at ``begun_at``."""
        account = self.account(pool)
        account.last_error = why
        if begun_at < account.failed_at:
            return  # the same round: it was on its way when the others failed
        account.failures += 1
        account.failed_at = now
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
            account.last_death.pop(generation, None)
            account.lost.pop(generation, None)


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
