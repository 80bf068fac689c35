"""The master's loop. One turn, always in this order, and there is no other loop anywhere in it:

    wait until something happens or `wake_at` · reap · fold signals and requests into the goal · observe the scoreboards
    · decide · act

Stopping, reloading and draining are goals (`preforkd.core`), not loops. What takes long (the check of a configuration,
the import of an application) happens in other processes, and its end is one more thing that happens.
"""

from __future__ import annotations

import os
import select
import signal
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from preforkd import config as configuration
from preforkd import systemd
from preforkd.config import Config
from preforkd.control.server import ControlServer, Request
from preforkd.core.policy import GROW_INTERVAL
from preforkd.core.supervisor import Supervisor
from preforkd.core.table import Table
from preforkd.errors import ExitCode, ListenError, PreforkdError
from preforkd.estate import TemplateMain
from preforkd.headroom import headroom
from preforkd.listeners import Listener, ListenerSet, Wanted, open_listeners
from preforkd.logs import EventLog, LogError, Logs, open_logs
from preforkd.master import report
from preforkd.master.checker import Checked, Checker
from preforkd.master.kernel import PosixKernel
from preforkd.master.orphans import Orphans
from preforkd.master.reloads import Reloads, Stage
from preforkd.master.world import PoolWorld, World, make_world
from preforkd.model import (
    Abort,
    Action,
    Activity,
    Commit,
    Death,
    Finish,
    Load,
    Order,
    Phase,
    PoolLoad,
    Proven,
    Record,
    Recovered,
    Retire,
    Rollback,
    StartFailed,
    TakenOver,
    WorkerState,
)
from preforkd.pidfile import PidFile
from preforkd.privileges import Identity, set_child_subreaper
from preforkd.stamp import running_version
from preforkd.wakeup import Wakeup

#: What the master answers to, and what each does. The manual's table and the tests read this.
SIGNALS: Mapping[int, str] = {
    signal.SIGTERM: "graceful stop, limited by timeouts.graceful",
    signal.SIGINT: "fast stop",
    signal.SIGQUIT: "fast stop",
    signal.SIGHUP: "reload",
    signal.SIGUSR1: "reopen the log files",
    signal.SIGUSR2: "upgrade in place (not yet)",
    signal.SIGWINCH: "drain: the workers leave, the master stays; HUP brings them back",
    signal.SIGTTIN: "one worker more",
    signal.SIGTTOU: "one worker fewer",
    signal.SIGCHLD: "reap",
}

#: What would end the master if it did nothing about it; somebody meant a worker, or nobody. (They stay what they are in
#: the programs that an application starts, so they are handled and not ignored.)
UNWANTED = (
    signal.SIGALRM,
    signal.SIGVTALRM,
    signal.SIGPROF,
    signal.SIGIO,
    signal.SIGPWR,
    signal.SIGSTKFLT,
)

#: While something long is under way, systemd is asked for so much more time, and asked again at half of it. Seconds.
_EXTENSION = 30.0
#: An old worker that has been asked to leave notices within milliseconds; who does not, holds nobody up for longer than
#: this, looked at so often. Seconds.
_LAST_ACCEPT = 1.0
_ACCEPT_LOOK = 0.005
#: The status line changes at most so often. Seconds.
_STATUS_INTERVAL = 1.0


@dataclass(slots=True)
class Equipment:
    """What whoever starts the master hands to it."""

    config: Config
    identities: Mapping[str, Identity]
    control: ControlServer
    pid_file: PidFile
    logs: Logs
    notifier: systemd.Notifier
    template_main: TemplateMain
    #: For the application: the environment that the master was started with.
    environment: Mapping[str, str]
    stamp: str
    #: Sockets that systemd passed: from a .socket unit, or out of its store.
    adopted: list[systemd.Passed] = field(default_factory=list)
    #: Called once: with None when the service serves, with a sentence when it cannot start.
    on_start: Callable[[str | None], None] = lambda failure: None


class Master:
    """Owns the listening sockets and the children. One a process."""

    def __init__(self, equipment: Equipment) -> None:
        self._equipment = equipment
        self._control = equipment.control
        self._notifier = equipment.notifier
        self._running = equipment.config
        self._logs = equipment.logs
        self._kernel: PosixKernel
        self._supervisor: Supervisor
        self._listeners: dict[int, Listener] = {}
        self._prepared: ListenerSet | None = None
        self._unused = list(equipment.adopted)
        self._generation = 0
        self._reloads = Reloads()
        self._stop_requests: list[int] = []
        self._reopen_requests: list[int] = []
        self._started = time.time()
        self._last_reload: dict[str, Any] | None = None
        self._wake_at: float | None = 0.0
        self._rung_at = -1e9
        self._extended_at = -1e9
        self._status_at = -1e9
        self._status_text = ""
        self._watchdog = systemd.watchdog_interval(os.environ)
        self._fed_at = -1e9
        self._serving = False
        #: The generation that has taken over while old workers may be accepting a last connection, and until when
        #: that is waited for.
        self._handed_over: int | None = None
        self._handed_over_by = 0.0
        self._finished = False
        self._exit_code = ExitCode.OK
        self._start_failure = ""

    @property
    def _events(self) -> EventLog:
        return self._logs.events

    # --- life --------------------------------------------------------------------------------------------------------

    def run(self) -> int:
        """Serve until stopped. Returns the exit code; never raises for what happens to children or clients.

        Raises:
            PreforkdError: before anything was forked, when the first generation cannot be prepared.
        """
        set_child_subreaper()
        self._wakeup = Wakeup((*SIGNALS, *UNWANTED))
        # Whoever started us may have blocked some, and a mask is inherited.
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        table = Table()
        self._kernel = PosixKernel(
            table,
            lambda: self._logs,
            self._equipment.template_main,
            self._equipment.environment,
            self._equipment.stamp,
        )
        self._supervisor = Supervisor(self._kernel, table)
        self._orphans = Orphans(self._notifier.enabled)
        config = self._equipment.config
        try:
            self._prepare(Checked(config, self._equipment.identities), self._equipment.logs)
        except PreforkdError:
            self._wakeup.close()
            raise
        graceful = [pool.timeouts.graceful for pool in config.pools.values()]
        self._orphans.look(time.monotonic() + max(graceful) if all(graceful) else None)
        self._events.info(
            "master_start",
            version=running_version(),
            pid=os.getpid(),
            config=config.path,
            pools=",".join(config.pools),
            listen=",".join(address for one in self._listeners.values() for address in one.addresses),
        )
        self._warn_about_root(config)
        self._reloads.begin_first()
        while not self._finished:
            self._turn()
        return self._end()

    def _turn(self) -> None:
        self._wait()
        now = time.monotonic()
        self._reap(now)
        self._fold(now)
        load = self._observe(now)
        plan = self._supervisor.decide(load, now)
        self._act(self._supervisor.act(plan, now), now)
        # Whatever was done is news: ask once more before going to sleep.
        self._wake_at = now if plan.actions else plan.wake_at

    def _end(self) -> int:
        # From here on nobody acts on a signal; one that is late must not change our exit status, not even while the
        # interpreter ends, which puts the default actions back.
        signal.pthread_sigmask(signal.SIG_BLOCK, (*SIGNALS, *UNWANTED))
        self._orphans.sweep()
        for listener in self._listeners.values():
            listener.release()
        self._events.info("master_exit", code=int(self._exit_code))
        self._control.withdraw()
        self._equipment.pid_file.release()
        # Last of all: who was told that the service has stopped, or could not start, may start it again at once.
        if self._start_failure:
            self._equipment.on_start(self._start_failure)
        for request in self._stop_requests:
            self._control.answer(request, {"state": "stopped"})
        self._reloads.cancel(self._control, "the service stops")
        self._control.flush(1.0)
        self._control.close()
        return self._exit_code

    # --- wait --------------------------------------------------------------------------------------------------------

    def _wait(self) -> None:
        poll = select.poll()
        poll.register(self._wakeup.fileno(), select.POLLIN)
        kernel_filenos = set(self._kernel.filenos())
        for descriptor in kernel_filenos:
            poll.register(descriptor, select.POLLIN)
        for descriptor, events in self._control.descriptors().items():
            poll.register(descriptor, events)
        checker = self._kernel.checker
        if checker is not None and not checker.ended:
            poll.register(checker.fileno(), select.POLLIN)
        now = time.monotonic()
        wake_at = self._nearest(now)
        timeout = None if wake_at is None else max(0.0, (wake_at - now) * 1000 + 0.5)
        ready = dict(poll.poll(timeout))
        now = time.monotonic()
        self._pending = self._wakeup.drain()
        if self._kernel.bell in ready and self._kernel.drain_bell():
            self._rung_at = now
            for world in self._kernel.worlds.values():
                for place in world.pools.values():
                    place.board.armed = False
        self._kernel.collect(set(ready) & kernel_filenos, now)
        self._requests = [
            request for descriptor, events in ready.items() for request in self._control.ready(descriptor, events)
        ]
        self._control.expire()
        if self._watchdog is not None and now >= self._fed_at + self._watchdog:
            # One feeding a turn: that the loop turns is all that systemd can learn from it.
            self._notifier.watchdog()
            self._fed_at = now

    def _nearest(self, now: float) -> float | None:
        """The nearest moment at which somebody wants a turn; None: only when something happens."""
        moments = [
            self._wake_at,
            self._control.wake_at(),
            self._reloads.wake_at,
            self._reloads.overtake_at,
            self._orphans.wake_at,
            now + _ACCEPT_LOOK if self._handed_over is not None else None,
            self._fed_at + self._watchdog if self._watchdog is not None else None,
            self._rung_at + GROW_INTERVAL if self._rung_at + GROW_INTERVAL > now else None,
            self._extended_at + _EXTENSION / 2 if self._extending() else None,
            self._status_at + _STATUS_INTERVAL if self._status_is_news() else None,
        ]
        return min((moment for moment in moments if moment is not None), default=None)

    # --- reap --------------------------------------------------------------------------------------------------------

    def _reap(self, now: float) -> None:
        for death in self._kernel.reap(self._supervisor.goal.phase, now):
            self._mourn(death)

    def _mourn(self, death: Death) -> None:
        """Say who died, why, and what died with it; free the slot of the scoreboard."""
        fields: dict[str, object] = {"pid": death.pid, "cause": death.cause}
        say = self._events.info if death.expected else self._events.warning
        if death.worker is not None:
            worker = death.worker
            fields = {"pool": worker.pool, "slot": worker.slot, "generation": worker.generation, **fields}
            world = self._kernel.worlds.get(worker.generation)
            if world is not None and worker.pool in world.pools:
                board = world.pools[worker.pool].board
                view = board.view(worker.slot)
                fields["requests"] = view.requests
                if view.activity is Activity.BUSY:
                    # Somebody got no answer, or half of one, also where we wanted it so (the grace was over).
                    say = self._events.warning
                    fields["request"] = view.request
                    fields["client"] = view.client
                    fields["seconds"] = round(max(0.0, time.monotonic() - view.since), 3)
                board.clear(worker.slot)
            say("worker_exit", **fields)
        elif death.template is not None:
            say("template_exit", pool=death.pool, generation=death.generation, **fields)
        else:
            self._events.debug("stranger_exit", **fields)

    # --- fold --------------------------------------------------------------------------------------------------------

    def _fold(self, now: float) -> None:
        for signum in sorted(self._pending):
            self._on_signal(signum)
        for request in self._requests:
            self._on_request(request)
        self._on_check(now)
        self._start_check(now)

    def _on_signal(self, signum: int) -> None:
        if signum == signal.SIGCHLD:
            return
        effect = SIGNALS.get(signum, "none: it means nothing to the master")
        self._events.info("signal", signal=signal.Signals(signum).name, effect=effect)
        match signum:
            case signal.SIGTERM:
                self._wish(Phase.STOP)
            case signal.SIGINT | signal.SIGQUIT:
                self._wish(Phase.FAST)
            case signal.SIGHUP:
                self._reloads.ask(None)
            case signal.SIGUSR1:
                self._reopen()
            case signal.SIGUSR2:
                self._events.warning(
                    "upgrade_refused", reason="not yet: this version cannot upgrade in place; restart it"
                )
            case signal.SIGWINCH:
                self._wish(Phase.DRAIN)
            case signal.SIGTTIN:
                self._supervisor.wish_more(1)
            case signal.SIGTTOU:
                self._supervisor.wish_more(-1)

    def _on_request(self, request: Request) -> None:
        self._events.debug("request", command=request.command, uid=request.credentials.uid, pid=request.credentials.pid)
        match request.command:
            case "status":
                self._control.answer(request.id, self._report())
            case "reload":
                self._reloads.ask(request.id)
            case "stop":
                self._stop_requests.append(request.id)
                self._wish(Phase.FAST if request.args.get("fast") else Phase.STOP)
            case "reopen":
                failures = self._reopen()
                if failures:
                    self._control.refuse(request.id, "\n".join(failures))
                else:
                    self._reopen_requests.append(request.id)
            case other:
                self._control.refuse(request.id, f"unknown command {other}", exit_code=ExitCode.USAGE)

    def _wish(self, phase: Phase) -> None:
        if not self._supervisor.wish_phase(phase):
            return
        if phase in (Phase.STOP, Phase.FAST):
            for world in self._kernel.worlds.values():
                for place in world.pools.values():
                    place.board.stopping = True
            self._give_up_candidate("the service stops")
            self._handed_over = None
            self._notifier.stopping("stopping")
            self._extended_at = -1e9
        self._events.info("phase", state=phase.value)

    def _reopen(self) -> list[str]:
        """Open the log files anew and tell everybody. Returns what could not be opened."""
        failures: list[str] = []
        for logs in {id(world.logs): world.logs for world in self._kernel.worlds.values()}.values():
            failures += logs.reopen()
        self._kernel.reopened()
        for failure in failures:
            self._events.error("reopen_failed", error=failure)
        if not failures:
            self._events.info("logs_reopened", epoch=self._kernel.epoch)
        return failures

    # --- reload: check -----------------------------------------------------------------------------------------------

    def _start_check(self, now: float) -> None:
        stopping = self._supervisor.goal.phase in (Phase.STOP, Phase.FAST)
        if stopping:
            self._reloads.cancel(self._control, "the service stops")
            return
        if self._reloads.overtaken(now):
            # Somebody asked again, perhaps with the cure, while this candidate hangs, or its takeover gets nowhere.
            if self._supervisor.goal.candidate is not None:
                self._give_up_candidate("overtaken by a newer reload")
            else:
                self._reloads.finish(self._control, "overtaken by a newer reload before it had taken over")
        if not self._reloads.due():
            return
        self._reloads.begin(now)
        self._mend_control()
        self._notifier.reloading("reloading")
        if self._supervisor.goal.phase is Phase.DRAIN:
            self._supervisor.wish_phase(Phase.RUN)
        self._events.info("reload_start", config=self._running.path)
        try:
            self._kernel.checker = Checker(self._running.path, self._equipment.stamp)
        except OSError as error:
            self._reload_failed(f"cannot fork a process for the check: {error.strerror}")
        else:
            self._reloads.wake_at = self._kernel.checker.deadline

    def _mend_control(self) -> None:
        """Somebody removed the control socket's file: a reload (HUP needs none) brings it back."""
        if self._control.intact():
            return
        try:
            control = ControlServer.open(self._equipment.config.control)
        except PreforkdError as error:
            self._events.error("control_lost", error=str(error))
            return
        self._control.close(unlink=False)
        self._control = control
        self._events.warning("control_reopened", control=control.path)

    def _on_check(self, now: float) -> None:
        checker = self._kernel.checker
        if checker is None:
            return
        if checker.read() and checker.is_reaped:  # how it ended is part of the answer; SIGCHLD follows the end of file
            checked = checker.answer()
        elif now >= checker.deadline:
            checked = checker.give_up()
        else:
            return
        self._kernel.checker = None
        self._reloads.wake_at = None
        error = checked.error()
        if error is not None:
            self._reload_failed(str(error))
            return
        assert checked.config is not None
        logs = self._logs
        try:
            if checked.config.log != self._running.log:
                logs = open_logs(checked.config.log)
            self._prepare(checked, logs)
        except (ListenError, LogError, OSError) as failure:
            if logs is not self._logs:
                logs.close()
            self._reload_failed(str(failure))
        else:
            self._reloads.stage = Stage.SWITCHING

    def _prepare(self, checked: Checked, logs: Logs) -> None:
        """Make the next generation the candidate: its listeners aside, its scoreboards, its templates soon."""
        config, identities = checked.config, checked.identities
        assert config is not None and identities is not None
        wanted = [
            Wanted(listen, pool.limits.backlog, defer_accept=1 if listen.kind == "tcp" else 0)
            for pool in config.pools.values()
            for listen in pool.listen
        ]
        carried = {listener.text: listener for listener in self._listeners.values()}
        prepared = open_listeners(wanted, carried, self._unused)
        self._generation += 1
        world = make_world(self._generation, config, identities, prepared.listeners, logs)
        self._prepared = prepared
        for listener in prepared.opened:
            self._listeners[id(listener)] = listener
        self._kernel.worlds[world.number] = world
        self._supervisor.wish_generation(world.number, {name: place.goal for name, place in world.pools.items()})

    # --- observe -----------------------------------------------------------------------------------------------------

    def _observe(self, now: float) -> Load:
        goal, table = self._supervisor.goal, self._supervisor.table
        if goal.phase in (Phase.STOP, Phase.FAST):
            return Load(strangers=self._kernel.strangers() if table.unborn() else ())
        world = self._kernel.worlds.get(goal.current.number) if goal.current is not None else None
        if world is None:
            return Load()
        pools = {}
        for name, place in world.pools.items():
            self._note_service(place, world.number, now)
            idle = frozenset(
                worker.id
                for worker in table.of(name)
                if worker.generation == world.number
                and worker.state is WorkerState.SERVING
                and place.board.activity(worker.slot) is Activity.IDLE
            )
            queued = sum(listener.queue() or 0 for listener in place.listeners)
            # A kept connection with its next request waits in no accept queue, but for the worker that holds it.
            queued += sum(
                place.board.waiting(worker.slot, now) for worker in table.of(name) if worker.generation == world.number
            )
            pools[name] = self._with_room(place, PoolLoad(idle, queued))
        return Load(pools)

    def _note_service(self, place: PoolWorld, generation: int, now: float) -> None:
        """Tell the workers since when there is somebody to wait for: who came earlier has not waited for them."""
        serving = any(
            worker.generation == generation and worker.state is WorkerState.SERVING
            for worker in self._supervisor.table.of(place.goal.name)
        )
        if serving != bool(place.board.serving_since):
            place.board.serving_since = now if serving else 0.0

    def _with_room(self, place: PoolWorld, load: PoolLoad) -> PoolLoad:
        """A pool that may want to grow is told how far memory, processes and descriptors let it."""
        members = [w for w in self._supervisor.table.of(place.goal.name) if w.leave is None]
        if len(load.idle) >= place.goal.min_spare + load.queued and len(members) >= place.goal.start:
            return load
        room = headroom(place.board.memory())
        return replace(load, room=room.workers, room_ends=room.why)

    # --- act ---------------------------------------------------------------------------------------------------------

    def _act(self, actions: Iterable[Action], now: float) -> None:
        for action in actions:
            match action:
                case Commit(generation):
                    self._committed(generation)
                case Abort(generation, reason):
                    self._aborted(generation, reason)
                case StartFailed(_, reason):
                    self._fail_start(reason)
                case Rollback(generation, reason):
                    self._rolled_back(generation, reason)
                case TakenOver(generation):
                    self._taken_over(generation)
                case Proven(generation):
                    self._events.info("generation_proven", generation=generation)
                case Order(pool, generation, slots, _, reason):
                    self._events.info("pool_grow", pool=pool, generation=generation, workers=len(slots), reason=reason)
                case Retire(worker, cause, _):
                    member = self._supervisor.table.workers[worker]
                    self._events.info(
                        "worker_retire", pool=member.pool, slot=member.slot, pid=member.pid, reason=cause.value
                    )
                case Record(event, fields, level):
                    getattr(self._events, level)(event, **fields)
                case Recovered(pool):
                    self._events.info("pool_recovered", pool=pool)
                case Finish():
                    self._finished = True
                case _:
                    pass
        self._arm(now)
        self._orphans.act(now, self._events)
        self._forget()
        self._answer_reopened()
        self._finish_takeover(now)
        self._tell_systemd(now)

    def _arm(self, now: float) -> None:
        """Let workers ring when spare ones run short, but not more often than anything could be done about it."""
        current = self._supervisor.goal.current
        world = self._kernel.worlds.get(current.number) if current is not None else None
        if world is None:
            return
        quiet = now >= self._rung_at + GROW_INTERVAL
        for name, place in world.pools.items():
            size = sum(w.generation == world.number and w.leave is None for w in self._supervisor.table.of(name))
            place.board.armed = quiet and size < place.goal.max

    def _committed(self, generation: int) -> None:
        world = self._kernel.worlds[generation]
        if self._prepared is not None:
            self._report_problems(self._prepared.commit())
            for unused in self._prepared.unused:
                self._events.warning("socket_unused", descriptor=unused.fd, name=unused.name, reason=unused.why)
                if unused.stored:
                    self._notifier.store_remove(unused.name)
                    os.close(unused.fd)
            self._unused = [systemd.Passed(one.fd, one.name) for one in self._prepared.unused if not one.stored]
            self._prepared = None
        notes = configuration.needs_restart(self._equipment.config, world.config)
        for note in notes:
            # Compared with what we started with, because that is what goes on until a restart.
            self._events.warning("needs_restart", setting=note)
        self._reloads.notes = notes
        self._logs = world.logs
        self._running = world.config
        for listener in world.listeners.values():
            self._report_problems(listener.resume())  # dropped by a reload, it may come back with this one
        self._store(world)
        self._events.info("generation_commit", generation=generation, digest=world.config.digest[:12])

    def _report_problems(self, problems: Iterable[str]) -> None:
        for problem in problems:
            self._events.warning("listener_problem", problem=problem)

    def _store(self, world: World) -> None:
        """Put the listeners into systemd's store, so that neither a crash nor a restart refuses anybody."""
        if not self._notifier.enabled:
            return
        for listener in world.listeners.values():
            sockets = listener.storable
            if sockets and not listener.kept:
                listener.kept = self._notifier.store([sock.fileno() for sock in sockets], listener.store_name)

    def _aborted(self, generation: int, reason: str) -> None:
        self._drop_prepared()
        self._reload_failed(reason)

    def _drop_prepared(self) -> None:
        if self._prepared is not None:
            for listener in self._prepared.opened:
                self._listeners.pop(id(listener), None)
            self._prepared.rollback()
            self._prepared = None

    def _give_up_candidate(self, reason: str) -> None:
        candidate = self._supervisor.goal.candidate
        if self._kernel.checker is not None:
            self._kernel.checker.close()
            self._kernel.checker = None
            self._reloads.wake_at = None
        if candidate is not None:
            self._supervisor.give_up_candidate()
        self._drop_prepared()
        if self._reloads.stage is not Stage.IDLE:
            if self._serving:
                self._reload_failed(reason)
            else:
                # The start itself was overtaken, by a reload that now begins, or by a stop.
                self._reloads.finish(self._control, reason)

    def _rolled_back(self, generation: int, reason: str) -> None:
        goal = self._supervisor.goal
        assert goal.current is not None
        world = self._kernel.worlds[goal.current.number]
        for listener in world.listeners.values():
            self._report_problems(listener.resume())
        self._running = world.config
        self._logs = world.logs
        lazy = [name for name in world.pools if not self._loaded(name, world.number)]
        note = {"hint": f"each worker of {', '.join(lazy)} loads today's code by itself (preload)"} if lazy else {}
        self._events.error("generation_rollback", generation=generation, to=world.number, **note, text=reason)
        self._handed_over = None
        self._note_reload("rolled back", reason)
        self._reloads.finish(self._control, f"rolled back to generation {world.number}: {reason}")
        self._store(world)
        self._notifier.ready(f"reload rolled back: {_first_line(reason)}")

    def _loaded(self, pool: str, generation: int) -> bool:
        """Has the template of a generation the application in it, as it was when it was loaded?"""
        template = self._supervisor.table.templates.get((pool, generation))
        return template is not None and template.preload

    def _taken_over(self, generation: int) -> None:
        if not self._serving:
            self._serving = True
            self._events.info("serving", generation=generation, seconds=round(time.time() - self._started, 3))
            self._equipment.on_start(None)
            self._reloads.finish(self._control, None)
            self._notifier.ready(self._status())
            return
        current = self._kernel.worlds[generation]
        kept = {id(listener) for listener in current.listeners.values()}
        for listener in self._listeners.values():
            if id(listener) not in kept:
                self._report_problems(listener.suspend())
        self._handed_over = generation
        self._handed_over_by = time.monotonic() + _LAST_ACCEPT

    def _finish_takeover(self, now: float) -> None:
        """Say that a reload is done when no old worker can accept any more. They all have been asked to leave, but one
        that had just left its poll for a new connection would serve that with the old code, after `preforkd reload`."""
        generation = self._handed_over
        if generation is None or (now < self._handed_over_by and self._old_ones_accept(generation)):
            return
        self._handed_over = None
        if self._reloads.stage is not Stage.IDLE:
            self._note_reload("done", "")
            self._events.info("reload_done", generation=generation)
            self._reloads.finish(self._control, None, generation=generation)
        self._notifier.ready(self._status())

    def _old_ones_accept(self, generation: int) -> bool:
        return any(
            worker.generation != generation
            and worker.pid is not None
            and worker.stopped_at is None
            and worker.generation in self._kernel.worlds
            and self._kernel.worlds[worker.generation].pools[worker.pool].board.activity(worker.slot) is Activity.IDLE
            for worker in self._supervisor.table.workers.values()
        )

    def _reload_failed(self, reason: str) -> None:
        if self._supervisor.goal.current is None and self._supervisor.goal.candidate is None:
            # Nothing serves that could go on: it is the start that has failed, perhaps with a HUP in its middle.
            self._fail_start(reason)
            return
        self._events.error("reload_failed", effect="the running generation goes on", text=reason)
        self._note_reload("failed", reason)
        self._reloads.finish(self._control, reason)
        self._notifier.ready(f"reload failed, still serving: {_first_line(reason)}")

    def _note_reload(self, outcome: str, error: str) -> None:
        self._last_reload = {"time": time.time(), "outcome": outcome, "error": error}

    def _fail_start(self, reason: str) -> None:
        """No generation has ever served, and this one cannot: that is the end, and whoever started us hears why."""
        self._events.error("start_failed", text=reason)
        self._exit_code = ExitCode.FAILURE
        self._start_failure = reason
        self._reloads.finish(self._control, reason)
        self._wish(Phase.FAST)

    def _forget(self) -> None:
        """Let go of generations that nobody belongs to any more, and of listeners that nobody wants."""
        goal, table = self._supervisor.goal, self._supervisor.table
        wanted = {one.number for one in (goal.current, goal.candidate, goal.previous) if one is not None}
        listeners = {id(listener) for number in wanted for listener in self._kernel.worlds[number].listeners.values()}
        if goal.phase not in (Phase.STOP, Phase.FAST):
            for key in [key for key in self._listeners if key not in listeners]:
                listener = self._listeners.pop(key)
                if listener.kept:
                    self._notifier.store_remove(listener.store_name)
                self._events.info("listener_closed", listen=listener.text)
                listener.remove()
        alive = (
            wanted | {w.generation for w in table.workers.values()} | {t.generation for t in table.templates.values()}
        )
        for world in self._kernel.forget_worlds(alive):
            if world.logs is not self._logs and all(world.logs is not one.logs for one in self._kernel.worlds.values()):
                world.logs.close()
        self._supervisor.forget()

    def _answer_reopened(self) -> None:
        if self._reopen_requests and self._kernel.writing_old() == 0:
            for request in self._reopen_requests:
                self._control.answer(request, {"reopened": True})
            self._reopen_requests.clear()

    # --- telling -----------------------------------------------------------------------------------------------------

    def _extending(self) -> bool:
        """Is something under way that systemd may have to be patient about?"""
        if not self._notifier.enabled:
            return False
        return self._supervisor.goal.phase in (Phase.STOP, Phase.FAST) or self._reloads.stage is not Stage.IDLE

    def _tell_systemd(self, now: float) -> None:
        if not self._notifier.enabled:
            return
        if not self._extending():
            self._extended_at = -1e9  # the next one is told at once
        elif now >= self._extended_at + _EXTENSION / 2:
            self._notifier.extend_timeout(_EXTENSION)
            self._extended_at = now
        if self._status_is_news() and now >= self._status_at + _STATUS_INTERVAL:
            self._status_text = self._status()
            self._notifier.status(self._status_text)
            self._status_at = now

    def _status_is_news(self) -> bool:
        return self._notifier.enabled and self._status_text != self._status()

    def _status(self) -> str:
        """One line: the state, and the last failure if that was the last thing that happened."""
        goal, table = self._supervisor.goal, self._supervisor.table
        if goal.phase is not Phase.RUN:
            return f"{goal.phase.value}: {len(table.workers)} workers left"
        if goal.current is None:
            return "loading"
        parts = []
        for name in goal.current.pools:
            serving = sum(w.state is WorkerState.SERVING for w in table.of(name))
            account = table.account(name)
            trouble = ""
            if account.failures:
                trouble = f", {account.failures} failed starts: {_first_line(account.last_error)}"
            elif account.shortages:
                trouble = f", cannot start more: {_first_line(account.last_error)}"
            parts.append(f"{name}: {serving} workers{trouble}")
        text = f"generation {goal.current.number}; " + "; ".join(parts)
        if self._last_reload is not None and self._last_reload["error"]:
            text += f"; last reload {self._last_reload['outcome']}: {_first_line(self._last_reload['error'])}"
        if self._logs.lost:
            text += f"; {self._logs.lost} log lines lost"
        return text

    def _report(self) -> dict[str, Any]:
        master = {
            "pid": os.getpid(),
            "version": running_version(),
            "started": self._started,
            "config": self._running.path,
            "digest": self._running.digest,
            "last_reload": self._last_reload,
            "log_lines_lost": self._logs.lost,
        }
        return report.status(self._supervisor, self._kernel.worlds, master, time.monotonic())

    def _warn_about_root(self, config: Config) -> None:
        roots = [name for name, identity in self._equipment.identities.items() if identity.uid == 0]
        if roots:
            self._events.warning(
                "workers_run_as_root",
                pools=",".join(roots),
                hint="set user: in the configuration, for instance www-data",
            )


def _first_line(text: str) -> str:
    """What one line can say of a text: of a traceback its last line, which names the error; else the first."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if not lines:
        return ""
    line = lines[-1] if any(line.startswith("Traceback") for line in lines) else lines[0]
    return line if len(line) <= 200 else line[:197] + "..."
