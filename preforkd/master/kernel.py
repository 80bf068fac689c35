"""The real `preforkd.core.supervisor.Kernel`: forks, kills, reaps, and listens to templates and newborn workers.

Births are told apart from deaths without a race (facts F1): for each ordered worker there is a *birth channel*, whose
far end goes to the template; the worker's first act is to say its pid there. Before an unknown pid is reaped, all birth
channels are read once more: whoever said its pid did so before it could die. So a pid is known, or it is a stranger.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from preforkd.core.table import Table
from preforkd.estate import Estate, TemplateMain
from preforkd.logs import Logs
from preforkd.master.checker import Checker
from preforkd.master.world import World
from preforkd.model import Death, Phase, Template, Worker
from preforkd.spawn import Channel, ChannelClosed, Message, fork_child

#: Messages read from one channel in one turn; a chatty one must not hold the others up.
_AT_ONCE = 64


@dataclass(slots=True)
class Birth:
    """The master's end of a birth channel: it stays open for the worker's life, for `serve` and `reopen`."""

    worker: Worker
    channel: Channel
    #: The log files' epoch that the worker writes to; None until it has said.
    epoch: int | None = None


class PosixKernel:
    """Master only. Facts go into the table as they come in; what a person should read goes to the log."""

    def __init__(
        self,
        table: Table,
        logs: Callable[[], Logs],
        template_main: TemplateMain,
        environment: Mapping[str, str],
        stamp: str,
    ) -> None:
        self._table = table
        self._logs = logs
        self._template_main = template_main
        self._environment = dict(environment)
        self._stamp = stamp
        self.worlds: dict[int, World] = {}
        self.epoch = 0
        #: The lifeline: only this process holds the write end, so its end of file says that the master is gone.
        self.lifeline, self._lifeline_write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        self.bell = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._templates: dict[int, Channel] = {}
        self._births: dict[int, Birth] = {}
        self._handovers: dict[str, tuple[socket.socket, socket.socket]] = {}
        self._oom_kills = _oom_kills()
        self.checker: Checker | None = None

    # --- Kernel ----------------------------------------------------------------------------------------------------

    def start_template(self, pool: str, generation: int, preload: bool) -> int:
        near, far = Channel.pair()
        try:
            estate = self._estate(pool, generation, preload, far)
            pid = fork_child(lambda: self._template_main(estate), estate.descriptors())
        except OSError:
            near.close()
            raise
        finally:
            # In the parent only; the child never gets here.
            far.close()
        self._templates[pid] = near
        self._logs().events.debug("template_start", pool=pool, generation=generation, template=pid, preload=preload)
        return pid

    def _estate(self, pool: str, generation: int, preload: bool, channel: Channel) -> Estate:
        world = self.worlds[generation]
        place = world.pools[pool]
        environment = dict(self._environment)
        if place.pool.user or world.config.user:
            environment |= place.identity.environment
        environment |= place.pool.environment
        handover = self._handovers.get(pool)
        if handover is None:
            send, receive = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            handover = self._handovers[pool] = (send, receive)
        return Estate(
            pool=place.pool,
            generation=generation,
            config_path=world.config.path,
            identity=place.identity,
            environment=environment,
            listeners=place.sockets,
            listens=place.listens,
            board=place.board,
            logs=world.logs,
            log_epoch=self.epoch,
            lifeline=self.lifeline,
            bell=self.bell,
            handover=handover,
            channel=channel,
            master_pid=os.getpid(),
            stamp=self._stamp,
            preload=preload,
        )

    def order(self, workers: Sequence[Worker]) -> None:
        first = workers[0]
        template = self._table.templates.get((first.pool, first.generation))
        channel = self._templates.get(template.pid) if template is not None else None
        far_ends: list[Channel] = []
        orders: list[dict[str, object]] = []
        for worker in workers:
            try:
                near, far = Channel.pair()
            except OSError as error:
                self._table.never_born(worker.id)
                self._table.fork_failed(worker.pool, f"cannot order a worker: {error.strerror}", time.monotonic())
                continue
            self._births[worker.id] = Birth(worker, near)
            far_ends.append(far)
            orders.append({"id": worker.id, "slot": worker.slot, "hold": worker.hold})
        if channel is not None and orders:
            # What cannot be sent is a birth that never happens: the far ends close, and end of file says so.
            with contextlib.suppress(ChannelClosed):
                channel.send({"order": orders}, [end.fileno() for end in far_ends])
        for end in far_ends:
            end.close()

    def signal(self, pid: int, signum: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signum)

    def kill_stem(self, worker: Worker, pid: int) -> None:
        # It may have ended, and its number may belong to somebody else by now; as long as it is what it was, it is the
        # parent of its worker, or a child of the template.
        template = self._table.templates.get((worker.pool, worker.generation))
        if worker.pid is not None:
            still = _parent(worker.pid) == pid
        else:
            still = template is not None and _parent(pid) in (template.pid, os.getpid())
        if still:
            self.signal(pid, signal.SIGKILL)

    def release(self, worker: Worker) -> None:
        self._send(worker.id, {"serve": True})

    # --- descriptors -------------------------------------------------------------------------------------------------

    def filenos(self) -> Iterator[int]:
        """What the master's poll waits for on our behalf."""
        yield self.bell
        for channel in self._templates.values():
            yield channel.fileno()
        for birth in self._births.values():
            yield birth.channel.fileno()

    def drain_bell(self) -> bool:
        """Has a worker rung since the last look?"""
        try:
            return os.eventfd_read(self.bell) > 0
        except BlockingIOError:
            return False

    # --- facts -------------------------------------------------------------------------------------------------------

    def collect(self, ready: set[int], now: float) -> None:
        """Turn what templates and workers said into facts. ``ready``: readable descriptors."""
        for pid, channel in list(self._templates.items()):
            if channel.fileno() in ready:
                self._hear_template(pid, channel)
        for birth in list(self._births.values()):
            if birth.channel.fileno() in ready:
                self._hear_worker(birth, now)

    def _hear_template(self, pid: int, channel: Channel) -> None:
        events = self._logs().events
        try:
            for _ in range(_AT_ONCE):
                received = channel.receive()
                if received is None:
                    return
                message, _descriptors = received
                if "loaded" in message:
                    template = self._table.template_loaded(pid)
                    if template is not None:
                        events.info(
                            "template_ready", **_who(template), seconds=message["loaded"], preload=template.preload
                        )
                elif "unsafe" in message:
                    template = self._table.template_unsafe(pid)
                    if template is not None:
                        events.warning(
                            "template_unsafe",
                            **_who(template),
                            findings="; ".join(message["unsafe"]),
                            effect="each worker loads the application for itself (preload: auto)",
                        )
                elif "failed" in message:
                    template = self._table.template_failed(pid, message["failed"])
                    if template is not None:
                        events.error("template_failed", **_who(template), text=message["failed"])
        except ChannelClosed:
            channel.close()
            self._templates.pop(pid, None)

    def _hear_worker(self, birth: Birth, now: float) -> None:
        number = birth.worker.id
        try:
            for _ in range(_AT_ONCE):
                received = birth.channel.receive()
                if received is None:
                    return
                self._worker_said(birth, received[0], now)
        except ChannelClosed:
            birth.channel.close()
            self._births.pop(number, None)
            unborn = self._table.never_born(number)
            if unborn is not None:
                self._logs().events.warning("worker_never_born", pool=unborn.pool, slot=unborn.slot)

    def _worker_said(self, birth: Birth, message: Message, now: float) -> None:
        number = birth.worker.id
        if "stem" in message:
            self._table.stem_born(number, message["stem"])
        elif "pid" in message:
            self._table.born(number, message["pid"], now)
            birth.epoch = message["epoch"]
            self._reopen(birth)
        elif "ready" in message:
            worker = self._table.ready(number, now)
            if worker is not None:
                self._logs().events.info(
                    "worker_ready",
                    pool=worker.pool,
                    slot=worker.slot,
                    pid=worker.pid,
                    generation=worker.generation,
                    ms=round((now - worker.ordered_at) * 1000),
                )
        elif "failed" in message:
            self._table.boot_failed(number, message["failed"])
            worker = birth.worker
            self._logs().events.error(
                "worker_failed",
                pool=worker.pool,
                slot=worker.slot,
                generation=worker.generation,
                text=message["failed"],
            )
        elif "refused" in message:
            self._table.fork_failed(birth.worker.pool, message["refused"], now)
            self._logs().events.error("fork_failed", pool=birth.worker.pool, error=message["refused"])
        elif "reopened" in message:
            birth.epoch = message["reopened"]

    def reap(self, phase: Phase, now: float) -> list[Death]:
        """Reap until there is nothing. Stops and continues of our children go into the table."""
        deaths: list[Death] = []
        every = os.WEXITED | os.WSTOPPED | os.WCONTINUED
        while True:
            try:
                peek = os.waitid(os.P_ALL, 0, every | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return deaths
            if peek is None:
                return deaths
            pid = peek.si_pid
            checker = self.checker
            known = checker is not None and checker.pid == pid
            if not known and self._table.by_pid(pid) is None and self._table.template_by_pid(pid) is None:
                for birth in list(self._births.values()):
                    self._hear_worker(birth, now)
            result = os.waitid(os.P_PID, pid, every | os.WNOHANG)
            if result is None:
                continue  # a stop that was followed by a continue: a level, not a history
            code, signum = None, None
            match result.si_code:
                case os.CLD_STOPPED | os.CLD_TRAPPED:
                    member = self._table.stopped(pid, now)
                    if member is not None:
                        self._logs().events.warning("child_stopped", pid=pid, **_who(member))
                    continue
                case os.CLD_CONTINUED:
                    member = self._table.continued(pid)
                    if member is not None:
                        self._logs().events.info("child_continued", pid=pid, **_who(member))
                    continue
                case os.CLD_EXITED:
                    code = result.si_status
                case _:
                    signum = result.si_status
            if checker is not None and checker.pid == pid:
                checker.reaped(code, signum)
                continue
            deaths.append(self._died(pid, code, signum, phase, now))

    def _died(self, pid: int, code: int | None, signum: int | None, phase: Phase, now: float) -> Death:
        template = self._templates.pop(pid, None)
        if template is not None:
            # Its last words: what it said before it died is a fact like any other.
            self._templates[pid] = template
            self._hear_template(pid, template)
            left = self._templates.pop(pid, None)
            if left is not None:
                left.close()
        worker = self._table.by_pid(pid)
        overrun = False
        if worker is not None:
            world = self.worlds.get(worker.generation)
            overrun = world is not None and world.pools[worker.pool].pool.timeouts.request > 0
            birth = self._births.get(worker.id)
            if birth is not None:
                self._hear_worker(birth, now)
            birth = self._births.pop(worker.id, None)
            if birth is not None:
                birth.channel.close()
        oom = False
        if signum == signal.SIGKILL:
            kills = _oom_kills()
            oom, self._oom_kills = kills > self._oom_kills, kills
        return self._table.exited(pid, code, signum, now, phase, oom, overrun)

    # --- log files ---------------------------------------------------------------------------------------------------

    def reopened(self) -> None:
        """The log files were opened anew: send them to everybody who writes."""
        self.epoch += 1
        for template in self._table.templates.values():
            channel, world = self._templates.get(template.pid), self.worlds.get(template.generation)
            if channel is not None and world is not None:
                with contextlib.suppress(ChannelClosed):
                    channel.send({"reopen": self.epoch}, world.logs.files())
        for birth in self._births.values():
            self._reopen(birth)

    def _reopen(self, birth: Birth) -> None:
        world = self.worlds.get(birth.worker.generation)
        if world is not None and birth.epoch is not None and birth.epoch < self.epoch:
            self._send(birth.worker.id, {"reopen": self.epoch}, world.logs.files())

    def writing_old(self) -> int:
        """How many workers still write to log files from before the last reopening."""
        return sum(birth.epoch is not None and birth.epoch < self.epoch for birth in self._births.values())

    def _send(self, number: int, message: Message, descriptors: Sequence[int] = ()) -> None:
        birth = self._births.get(number)
        if birth is not None:
            with contextlib.suppress(ChannelClosed):
                birth.channel.send(message, descriptors)

    # --- the end of things -------------------------------------------------------------------------------------------

    def forget_worlds(self, wanted: set[int]) -> list[World]:
        """Drop the generations that nobody belongs to any more; returns them."""
        gone = [world for number, world in self.worlds.items() if number not in wanted]
        for world in gone:
            del self.worlds[world.number]
        pools = {name for world in self.worlds.values() for name in world.pools}
        for name in [name for name in self._handovers if name not in pools]:
            for end in self._handovers.pop(name):
                end.close()
        return gone

    def strangers(self) -> tuple[int, ...]:
        """Children that are not ours by birth: orphans of the application, adopted because we are a subreaper."""
        own = {self.checker.pid} if self.checker is not None else set()
        found: set[int] = set()
        with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children", encoding="ascii") as file:
            found = {int(pid) for pid in file.read().split()}
        known = (
            own
            | {w.pid for w in self._table.workers.values() if w.pid}
            | {t.pid for t in self._table.templates.values()}
        )
        return tuple(sorted(found - known))


def _who(member: Worker | Template) -> dict[str, object]:
    if isinstance(member, Worker):
        return {"pool": member.pool, "slot": member.slot, "generation": member.generation}
    return {"pool": member.pool, "generation": member.generation, "template": member.pid}


def _parent(pid: int) -> int | None:
    """The parent of a process, from /proc; None when it is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b")")[2].split()[1])
    except (OSError, IndexError, ValueError):
        return None


def _oom_kills() -> int:
    """Kills by the kernel for lack of memory in our cgroup, so far; 0 where that cannot be known."""
    try:
        with open("/proc/self/cgroup", encoding="ascii") as file:
            path = next(line.split("::", 1)[1].strip() for line in file if line.startswith("0::"))
        with open(f"/sys/fs/cgroup{path}/memory.events", encoding="ascii") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("oom_kill "))
    except (OSError, StopIteration, ValueError, IndexError):
        return 0
