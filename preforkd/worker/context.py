"""What a model may use: its pool and slot, the listeners, its pen for the scoreboard, the logs, and when to leave."""

from __future__ import annotations

import contextlib
import faulthandler
import math
import os
import random
import signal
import socket
import time
from _signal import getsignal as _getsignal  # type: ignore[import-not-found]  # without the enum that `signal` makes
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from preforkd import privileges
from preforkd.config import Listen, Pool
from preforkd.errors import ExitCode
from preforkd.estate import Estate, master_gone
from preforkd.logs import AccessLog, EventLog
from preforkd.models.seldom import REPORT_EVERY
from preforkd.spawn import Channel, ChannelClosed, Message
from preforkd.wakeup import Wakeup
from preforkd.worker.settle import set_title

#: Titles change at most so often: a change costs half a microsecond, and ps(1) is not read more often. Seconds.
_TITLE_INTERVAL: Final = 1.0
#: The memory of a process is measured at most so often; reading smaps_rollup takes the kernel a millisecond. Seconds.
_MEMORY_INTERVAL = 1.0
#: A request may take so much longer than its limit before it is ended: this share of the limit, at most so many
#: seconds.
_ALARM_SHARE: Final = 0.02
_ALARM_SLACK: Final = 0.5
#: An alarm that has less than this share of the limit left when a request ends does not stay armed for the next one.
_ALARM_RESERVE: Final = 0.75
#: Whoever has more than so many times its share of the pool's connections gives some away. Well below 1.5, which
#: the busiest worker may serve of the mean, and far enough from 1 that who was given one does not pass it on.
_UNEVEN: Final = 1.25


class Context:
    """The `WorkerContext` of `preforkd.models`, made by `preforkd.worker.main`. Worker only, main thread."""

    def __init__(self, estate: Estate, slot: int, channel: Channel) -> None:
        self._estate = estate
        self._channel = channel
        self.pool: Pool = estate.pool
        self.slot = slot
        self.generation = estate.generation
        self.name = f"{estate.pool.name}/{slot}"
        self.listeners: Sequence[socket.socket] = estate.listeners
        self.listens: Sequence[Listen] = estate.listens
        self.tls = estate.tls
        self.board = estate.board.writer(slot)
        #: Told with every request, and therefore without a call between.
        self.holds = self.board.connections
        self.keeps_waiting = self.board.waiting
        self.access: AccessLog | None = estate.logs.access
        self.log: EventLog = estate.logs.events.bound(pool=estate.pool.name, worker=self.name, pid=os.getpid())
        self.handover = estate.handover
        self.leaving = False
        self.interactive = False
        self._orphaned = False
        self._code = ExitCode.LEFT
        self._channel_open = True
        self._scoreboard = estate.board
        self._min_spare = estate.pool.workers.min_spare
        self._request_timeout = estate.pool.timeouts.request
        #: When the alarm that is armed goes off (monotonic seconds); 0 if none is.
        self._alarm_at = 0.0
        recycle = estate.pool.recycle
        self._requests_left = self._jittered(recycle.requests, recycle.jitter)
        self._age_limit = time.monotonic() + self._jittered(recycle.age, recycle.jitter) if recycle.age else 0.0
        self._memory_limit = self._jittered(recycle.memory, recycle.jitter)
        self._measure_at = time.monotonic() + _MEMORY_INTERVAL
        #: See `preforkd.models.WorkerContext`; the first worker of a pool comes before the master has noted it.
        self.serving_since = math.inf
        self._longest_wait = 0.0
        self._titled_at = 0.0
        self._titled = False

    @staticmethod
    def _jittered(value: float, jitter: float) -> float:
        """Spread a limit, so that workers born together do not leave together."""
        return value * (1 + random.uniform(-jitter, jitter)) if value else 0.0  # noqa: S311

    def begin(self) -> None:
        """The first moment of service: signals, death of the master, the first IDLE."""
        enable_fault_report(self._estate)
        self._wakeup = Wakeup((signal.SIGTERM, signal.SIGINT, signal.SIGHUP))
        signal.signal(signal.SIGQUIT, _quit)
        signal.signal(signal.SIGPIPE, signal.SIG_IGN)
        signal.signal(signal.SIGUSR2, self._parent_died)
        privileges.set_pdeathsig(signal.SIGUSR2)
        if master_gone(self._estate.master_pid):
            self._on_orphaned()
        self.serving_since = self._scoreboard.serving_since or time.monotonic()
        self._set_idle_title()
        self.board.idle()

    # --- for the model ---------------------------------------------------------------------------------------------

    @property
    def stopping(self) -> bool:
        """True when no sibling will take connections over: the service stops, or its master is gone."""
        return self._orphaned or self._scoreboard.stopping

    def watch(self) -> Mapping[int, Callable[[], None]]:
        """Descriptors to poll for reading, and what to call; look at `leaving` afterwards."""
        watched = {self._wakeup.fileno(): self._on_signal, self._estate.lifeline: self._on_orphaned}
        if self._channel_open:
            watched[self._channel.fileno()] = self._on_channel
        return watched

    def surplus(self, connections: int, slow: bool = False) -> int:
        """How many of so many connections siblings should have: those above this worker's share, one an idle sibling.

        Without it the kernel wakes the same worker again and again: one of four served all of 32 kept connections. The
        share is rounded up, and only who has a quarter more than it gives anything away, so that in a steady load
        connections come to rest: where processors are busy, each that wanders costs more than it gains. Not where
        requests are ``slow``, and wandering costs less than waiting.
        """
        idle = self._scoreboard.idle() - 1  # we are between two requests
        if idle <= 0 or self.leaving:
            return 0
        share = self._scoreboard.share()
        if not slow and connections <= share * _UNEVEN:
            return 0
        return max(0, min(idle, connections - max(1, math.floor(share) if slow else math.ceil(share))))

    @property
    def lifeline(self) -> int:
        """At its end when the master is gone."""
        return self._estate.lifeline

    def sibling_free(self) -> bool:
        """Is there a sibling that could take a connection at once, or nearly?"""
        return self._scoreboard.free(self.slot, time.monotonic())

    def request_goes_on(self) -> None:
        """A request has been running for some time: its alarm must be armed, whatever the application did to it."""
        if self._request_timeout and not self._orphaned and not signal.getitimer(signal.ITIMER_REAL)[0]:
            # The kernel takes no time in the past; then it is due now.
            signal.setitimer(signal.ITIMER_REAL, max(0.001, self._alarm_at - time.monotonic()))

    def orphaned_in_request(self) -> None:
        """The master is gone, and a request runs, perhaps in C, where PR_SET_PDEATHSIG's handler has to wait."""
        if not self._orphaned:
            self._arm_last_alarm()

    def took(self) -> None:
        """A connection was taken from a unix listener."""
        self.board.took()

    def taken(self) -> int:
        """How many connections this worker and its siblings have taken from unix listeners."""
        return self._scoreboard.taken()

    def request_refused(self, waited: float) -> None:
        """A request was turned away after ``waited`` seconds: counted, and said once in a while for the whole pool."""
        self.board.refused()
        self._longest_wait = max(self._longest_wait, waited)
        now = time.monotonic()
        told_at, told = self._scoreboard.told()
        if told_at and now - told_at < REPORT_EVERY:
            return
        refused = self._scoreboard.refused()
        # Two workers may both get here, and both say it; better than a lock. A worker that ended took its number along.
        self.board.told(now, refused)
        self.log.warning(
            "overloaded",
            refused=refused - told if refused > told else 1,
            longest_wait=round(self._longest_wait, 3),
            limit=self.pool.timeouts.queue,
            hint="requests come faster than they are answered; raise workers.max if processor and memory allow, or make"
            " the application faster",
        )
        self._longest_wait = 0.0

    def request_started(self, request_line: bytes, client: str) -> float:
        """A complete request begins; arms its time limit and tells the master when spare workers run short."""
        now = self.board.busy(request_line, client)
        if self._request_timeout and now + self._request_timeout > self._alarm_at and not self._orphaned:
            self._arm_alarm(now)
        board = self._scoreboard
        if board.armed and board.idle() < self._min_spare:
            with contextlib.suppress(BlockingIOError):
                os.eventfd_write(self._estate.bell, 1)
        if now - self._titled_at > _TITLE_INTERVAL:
            line = request_line[:80].decode("latin-1").rpartition(" HTTP/")[0] or "busy"
            set_title(f"{self.name} g{self.generation} {line}")
            self._titled_at = now
            self._titled = True
        return now

    def request_finished(self) -> float:
        """The request is over: counted; the recycling limits are looked at."""
        now = self.board.finished()
        if self.leaving:
            # It finishes what it holds; nobody shall take it for a spare one.
            self.board.leaving()
        if self._alarm_at:
            if _getsignal(signal.SIGALRM) != signal.SIG_DFL:
                self._take_alarm_back()
            elif self._alarm_at - now < self._request_timeout * _ALARM_RESERVE:
                # It must not go off in what we do between two requests, and this one has left it too little time.
                self.rests()
        if self._titled:
            self._titled = False
            self._set_idle_title()
        if self._requests_left:
            self._requests_left -= 1
            if self._requests_left < 1:
                self._recycle("requests", self.pool.recycle.requests)
        if self._age_limit and now > self._age_limit:
            self._recycle("age", self.pool.recycle.age)
        if now >= self._measure_at:
            self._measure(now)
        return now

    @property
    def alarmed(self) -> bool:
        """Is an alarm armed, for a request that has ended perhaps?"""
        return self._alarm_at > 0

    def rests(self) -> None:
        """Nothing to do: there is no request that the alarm could be for."""
        if self._alarm_at:
            self._alarm_at = 0.0
            signal.setitimer(signal.ITIMER_REAL, 0)

    def _arm_alarm(self, now: float) -> None:
        """The kernel's own timer also ends a request that blocks in C and runs no Python signal handler. The traceback
        is written from C by faulthandler, then the default action of SIGALRM ends the process.

        It is set a little late, and serves the requests that follow as long as none of them would have less than its
        time: two system calls for each request would cost more than its parsing.
        """
        late = min(_ALARM_SLACK, self._request_timeout * _ALARM_SHARE)
        self._alarm_at = now + self._request_timeout + late
        signal.setitimer(signal.ITIMER_REAL, self._request_timeout + late)

    def exit_code(self) -> ExitCode:
        """What the model returns after it has finished what it held."""
        return self._code

    # --- what happens ----------------------------------------------------------------------------------------------

    def _set_idle_title(self) -> None:
        set_title(f"{self.name} g{self.generation} {'leaving' if self.leaving else 'idle'}")

    def _leave(self, code: ExitCode) -> None:
        if self.leaving:
            return
        self.leaving = True
        self._code = code
        self.board.leaving()
        self._set_idle_title()

    def _recycle(self, limit: str, value: float) -> None:
        if not self.leaving:
            self.log.info("worker_recycle", limit=limit, value=value, requests=self.board.requests)
        self._leave(ExitCode.RECYCLED)

    def _take_alarm_back(self) -> None:
        """The application has used SIGALRM for itself, and the time limit of the next request would do nothing."""
        self._alarm_at = 0.0
        signal.setitimer(signal.ITIMER_REAL, 0)  # the application's own, perhaps, for a request that has ended
        faulthandler.unregister(signal.SIGALRM)
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        report_overruns(self._estate)
        self.log.warning(
            "alarm_taken_back",
            hint="the application handles SIGALRM; with timeouts.request set, that signal is preforkd's",
        )

    def _measure(self, now: float) -> None:
        """Say how much memory this worker takes: the master may not look, and wants to know what one more would."""
        self._measure_at = now + (_MEMORY_INTERVAL if self._memory_limit else 10 * _MEMORY_INTERVAL)
        size = proportional_memory()
        self.board.memory(size)
        if self._memory_limit and size > self._memory_limit:
            self._recycle("memory", size)

    def _on_signal(self) -> None:
        if self._wakeup.drain() & {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}:
            self._leave(ExitCode.LEFT)

    def _on_channel(self) -> None:
        try:
            while (received := self._channel.receive()) is not None:
                message, descriptors = received
                if "reopen" in message:
                    self.reopen(message, descriptors)
        except ChannelClosed:
            self._channel_open = False
            self._on_orphaned()

    def reopen(self, message: Message, descriptors: list[int]) -> None:
        """Write into the new log files from now on, and say so."""
        self._estate.logs.adopt(descriptors)
        with contextlib.suppress(ChannelClosed):
            self._channel.send({"reopened": message["reopen"]})

    def _on_orphaned(self) -> None:
        """The master is gone: finish what is held, within `graceful`; the kernel sees to the limit."""
        if not self._orphaned:
            self._arm_last_alarm()
        if self._code is not ExitCode.ORPHANED:
            # Not where the alarm is armed: a signal handler, in the middle of a request, is no place to write from.
            self.log.warning("master_gone", hint="this worker finishes what it holds and leaves")
        self._leave(ExitCode.ORPHANED)
        self._code = ExitCode.ORPHANED

    def _arm_last_alarm(self) -> None:
        self._orphaned = True
        self._alarm_at = 0.0
        # 0 disarms the timer, which is what `graceful: 0` means: no limit.
        signal.setitimer(signal.ITIMER_REAL, self.pool.timeouts.graceful)

    def _parent_died(self, *_: object) -> None:
        """SIGUSR2 as PR_SET_PDEATHSIG: it comes also in the middle of a request, when the lifeline is not looked at."""
        if master_gone(self._estate.master_pid) and not self._orphaned:
            self._arm_last_alarm()


def enable_fault_report(estate: Estate) -> None:
    """Let a crash in C code and an overrun request leave a traceback in the log."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        faulthandler.enable(estate.logs.events.fileno())
    report_overruns(estate)


def report_overruns(estate: Estate) -> None:
    """Have SIGALRM write the traceback of every thread, from C, before its default action ends the process."""
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        faulthandler.register(signal.SIGALRM, estate.logs.events.fileno(), all_threads=True, chain=True)


def _quit(signum: int, frame: object) -> None:
    """SIGQUIT: no request is finished."""
    os._exit(ExitCode.LEFT)


def proportional_memory() -> int:
    """This process's share of the memory it maps (PSS), bytes; 0 where the kernel does not say."""
    try:
        with open("/proc/self/smaps_rollup", "rb") as file:
            for line in file:
                if line.startswith(b"Pss:"):
                    return int(line.split()[1]) * 1024
    except OSError:
        pass
    return 0
