"""Who asked for a reload, and what becomes of it: one at a time, the last edit always wins, everybody gets an answer.

    IDLE ── asked ──> CHECKING ── checked, listeners prepared ──> SWITCHING ── taken over, failed, rolled back ──> IDLE

Requests that arrive while one is under way wait for the *next* one, because what they ask about may have been edited
after the running one was read. All that wait share one check: twenty HUPs in two seconds are a handful of reloads.
"""

from __future__ import annotations

from enum import Enum

from preforkd.control.server import ControlServer

#: A newer request may overtake a candidate that has been loading for so long. Shorter, and a stream of HUPs would keep
#: any of them from ever being finished; longer, and the cure of a hanging import has to wait. Seconds.
PATIENCE = 3.0


class Stage(Enum):
    IDLE = "idle"
    CHECKING = "checking"
    SWITCHING = "switching"


class Reloads:
    """Requests and their answers. Master only."""

    def __init__(self) -> None:
        self.stage = Stage.IDLE
        #: When the check has to be over (monotonic seconds); None while there is none.
        self.wake_at: float | None = None
        #: What this reload could not apply; part of the answer.
        self.notes: list[str] = []
        self._asked = False
        self._waiting: list[int] = []
        self._next: list[int] = []
        self._begun_at = 0.0

    def ask(self, request: int | None) -> None:
        """A reload is wanted; ``request`` is the control request to answer, None for a signal."""
        self._asked = True
        if request is not None:
            self._next.append(request)

    def due(self) -> bool:
        """May the next one begin?"""
        return self._asked and self.stage is Stage.IDLE

    def begin(self, now: float) -> None:
        """The next one begins, with everybody who has asked so far."""
        self.stage = Stage.CHECKING
        self._asked = False
        self._waiting, self._next = self._next, []
        self._begun_at = now
        self.notes = []

    def begin_first(self) -> None:
        """The start of the service is a reload from nothing; nobody waits for it here."""
        self.stage = Stage.SWITCHING

    @property
    def overtake_at(self) -> float | None:
        """When the next one may overtake this one (monotonic seconds); None while nobody has asked again."""
        return self._begun_at + PATIENCE if self._asked and self.stage is Stage.SWITCHING else None

    def overtaken(self, now: float) -> bool:
        """Has somebody asked again while this one takes long?"""
        return self.overtake_at is not None and now >= self.overtake_at

    def finish(self, control: ControlServer, error: str | None, generation: int = 0) -> None:
        """Answer everybody who waits for this one."""
        for request in self._waiting:
            if error is None:
                control.answer(request, {"generation": generation, "notes": self.notes})
            else:
                control.refuse(request, error)
        self._waiting = []
        self.stage = Stage.IDLE

    def cancel(self, control: ControlServer, reason: str) -> None:
        """Nobody's reload will happen any more."""
        self._asked = False
        for request in (*self._waiting, *self._next):
            control.refuse(request, reason)
        self._waiting, self._next = [], []
