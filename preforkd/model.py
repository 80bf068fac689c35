"""The nouns: what the master knows about its children and what it wants of them. Values only, no behaviour.

A *worker* is one birth: ordered, born, serving, gone. It has a number of its own (`Worker.id`) that is never used
twice, because pids and slots are. A *slot* is a place in the pool and in the scoreboard; a *generation* is one
configuration together with the code that was loaded for it. *Where* a worker stands is `WorkerState`; *why* it leaves
is `Leave`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, IntEnum


class Phase(Enum):
    """What the operator wants of the whole service. Later members are more urgent; a stop is never taken back."""

    RUN = "running"
    #: WINCH: the workers leave, the master stays (HUP brings them back).
    DRAIN = "drained"
    STOP = "stopping"
    FAST = "stopping fast"


class WorkerState(Enum):
    """Where a worker stands in its life, as the master sees it; written by the master only.

    ORDERED  (the template was asked) → STARTING (its pid is known) → HELD (ready, waits for the commit) → SERVING
    → LEAVING (asked to go). A worker that was reaped is gone from the table, so there is no state for it.
    """

    ORDERED = "ordered"
    STARTING = "starting"
    HELD = "held"
    SERVING = "serving"
    LEAVING = "leaving"


class TemplateState(Enum):
    """Where a template stands: LOADING → READY → LEAVING. What cannot load does not become READY; it ends."""

    LOADING = "loading"
    READY = "ready"
    LEAVING = "leaving"


class Activity(IntEnum):
    """What a worker says of itself in the scoreboard; written by the worker only. 0 means that nothing was said."""

    UNSET = 0
    IDLE = 1
    BUSY = 2
    LEAVING = 3


class Cause(Enum):
    """Why a worker is asked to leave, or why it died. The text is what the log and the status show."""

    SHRINK = "pool shrinks"
    RELOAD = "replaced by a newer generation"
    ROLLBACK = "generation rolled back"
    STOP = "service stops"
    DRAIN = "pool drained"
    START_TIMEOUT = "not ready in time"
    STOPPED = "stopped (SIGSTOP) for too long"
    ABANDONED = "its reload failed"


@dataclass(frozen=True, slots=True)
class Leave:
    """A worker's or template's way out: why, since when, and the next rung of the stop ladder."""

    cause: Cause
    since: float
    ladder: tuple[tuple[float, int], ...]
    step: int = 0


@dataclass(frozen=True, slots=True)
class Worker:
    """One birth. Times are monotonic seconds."""

    id: int
    pool: str
    slot: int
    generation: int
    state: WorkerState
    ordered_at: float
    hold: bool = False
    pid: int | None = None
    stem: int | None = None
    born_at: float = 0.0
    ready_at: float = 0.0
    #: Since when the process is stopped (SIGSTOP, a debugger, a frozen cgroup); None while it runs.
    stopped_at: float | None = None
    leave: Leave | None = None


@dataclass(frozen=True, slots=True)
class Template:
    """The process that has loaded the application of one generation of one pool, and only forks."""

    pool: str
    generation: int
    pid: int
    state: TemplateState
    started_at: float
    #: False: it loads nothing, and each of its workers loads for itself.
    preload: bool = True
    stopped_at: float | None = None
    leave: Leave | None = None


@dataclass(frozen=True, slots=True)
class PoolGoal:
    """What one generation wants of one pool: the numbers of the configuration that decisions need. Times in seconds."""

    name: str
    start: int
    min_spare: int
    max_spare: int
    max: int
    start_timeout: float = 60.0
    graceful: float = 30.0
    probation: float = 10.0
    #: May the template load the application (``preload: auto`` or ``always``)?
    preload: bool = True

    @property
    def capacity(self) -> int:
        """Slots of the scoreboard: a whole old generation may drain beside a whole new one, and a canary each."""
        return 2 * self.max + 2


@dataclass(frozen=True, slots=True)
class Generation:
    """One configuration and the code loaded for it."""

    number: int
    pools: Mapping[str, PoolGoal]


@dataclass(frozen=True, slots=True)
class Goal:
    """What ought to be. The master edits it; `preforkd.core.reconcile` closes the gap."""

    phase: Phase = Phase.RUN
    current: Generation | None = None
    candidate: Generation | None = None
    #: Kept loaded for a rollback while `current` is on probation.
    previous: Generation | None = None
    committed_at: float = 0.0
    #: Number of workers that served in each pool when `current` was committed: the takeover never goes below it.
    floor: Mapping[str, int] = field(default_factory=dict)
    #: True until the workers of older generations have all been asked to leave.
    taking_over: bool = False
    #: True until the service has served for a moment: nothing is there that a failure could fall back to.
    starting: bool = True
    #: TTIN, TTOU: workers more (or fewer) than the configuration says, for every pool.
    bias: int = 0


@dataclass(frozen=True, slots=True)
class Pace:
    """The memory of the sizing policy for one pool. Times are monotonic seconds; see `preforkd.core.policy`."""

    grown_at: float = -1e9
    shrunk_at: float = -1e9
    #: Start of the calm window, and the smallest number of idle workers seen in it; None: no window is open.
    calm_since: float | None = None
    calm_idle: int = 0
    #: Calm seconds that the next shrink has to wait for; None: the policy's first value.
    patience: float | None = None
    #: The pool wanted to grow beyond ``max`` and said so; when it last wanted to.
    limit_reported: bool = False
    limited_at: float = -1e9


@dataclass(frozen=True, slots=True)
class PoolLoad:
    """One look at a pool's scoreboard and accept queues."""

    #: Numbers (`Worker.id`) of the workers that say they are idle; every other serving one counts as busy.
    idle: frozenset[int] = frozenset()
    #: Connections that wait in the kernel for an accept(2), or for a worker that holds them and is busy.
    queued: int = 0
    #: Workers more that memory, processes and descriptors allow, and what ends first; None where nobody asked.
    room: int | None = None
    room_ends: str = ""


@dataclass(frozen=True, slots=True)
class Load:
    """What the master observed this turn."""

    pools: Mapping[str, PoolLoad] = field(default_factory=dict)
    #: Children that are not ours by birth (orphans of the application, adopted because we are a subreaper); only
    #: looked for while stopping.
    strangers: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Death:
    """The end of a worker or template, for the log and for the accounts."""

    pid: int
    code: int | None
    signal: int | None
    pool: str = ""
    slot: int | None = None
    generation: int = 0
    worker: Worker | None = None
    template: Template | None = None
    #: A sentence: "asked: pool shrinks", "recycled", "exit code 1", "killed by signal 11 (SIGSEGV)".
    cause: str = ""
    #: False when nobody asked for it and no limit was met.
    expected: bool = False


# --- what reconcile() asks for ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class StartTemplate:
    pool: str
    generation: int
    preload: bool


@dataclass(frozen=True, slots=True)
class Order:
    """Ask the template of a generation for workers in these slots."""

    pool: str
    generation: int
    slots: tuple[int, ...]
    hold: bool
    reason: str


@dataclass(frozen=True, slots=True)
class Retire:
    """Begin the way out of a worker: the first rung of its ladder follows as a `Signal` of the next look."""

    worker: int
    cause: Cause
    ladder: tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class RetireTemplate:
    pool: str
    generation: int
    pid: int
    cause: Cause
    ladder: tuple[tuple[float, int], ...]


@dataclass(frozen=True, slots=True)
class Signal:
    """Take a rung of a ladder. ``worker`` or ``template`` names whose; neither for an adopted stranger."""

    pid: int
    signum: int
    why: str
    #: The ladder's step after this one.
    step: int
    worker: int | None = None
    template: tuple[str, int] | None = None


@dataclass(frozen=True, slots=True)
class KillStem:
    """An order whose pid is overdue, or a worker still hidden behind its intermediate: end the intermediate (F1)."""

    worker: int
    pid: int


@dataclass(frozen=True, slots=True)
class Release:
    """Let a held worker serve."""

    worker: int


@dataclass(frozen=True, slots=True)
class Commit:
    generation: int


@dataclass(frozen=True, slots=True)
class Abort:
    """The candidate cannot serve; nothing old was touched."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class StartFailed:
    """The very first generation was committed, and its worker died at once: there is nothing to go back to."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class Rollback:
    """The committed generation keeps dying: the previous one takes over again."""

    generation: int
    reason: str


@dataclass(frozen=True, slots=True)
class TakenOver:
    """Every worker of an older generation was asked to leave: the reload has done what it was asked for."""

    generation: int


@dataclass(frozen=True, slots=True)
class Proven:
    """Probation is over: the previous generation may be forgotten."""

    generation: int


@dataclass(frozen=True, slots=True)
class Resized:
    """The sizing policy's memory of a pool, to be kept for the next look."""

    pool: str
    pace: Pace


@dataclass(frozen=True, slots=True)
class Recovered:
    """A worker of the pool stayed up after the last failure."""

    pool: str


@dataclass(frozen=True, slots=True)
class Record:
    """A decision for the log, with its numbers."""

    event: str
    fields: Mapping[str, object]
    level: str = "info"


@dataclass(frozen=True, slots=True)
class Finish:
    """Nothing is left to wait for."""


Action = (
    StartTemplate
    | Order
    | Retire
    | RetireTemplate
    | Signal
    | KillStem
    | Release
    | Commit
    | Abort
    | StartFailed
    | Rollback
    | TakenOver
    | Proven
    | Resized
    | Recovered
    | Record
    | Finish
)


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do now, and when to ask again (monotonic seconds; None: only when something happens)."""

    actions: tuple[Action, ...]
    wake_at: float | None
