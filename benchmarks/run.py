"""One run of the benchmark: how much of everything, how long it may take, and what disturbed it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from benchmarks import measure

Item = TypeVar("Item")

#: A machine counts as quiet when others keep less than this many processors busy.
QUIET = 0.1


@dataclass(frozen=True, slots=True)
class Effort:
    """How much of everything.

    Attributes:
        cpu_rounds, cpu_seconds: Rounds of the scenario `cpu`, and the length of one measurement (whole seconds).
        memory_workers, calls: Workers in the scenario `memory`, and requests for each of them.
        growth_rounds, growth_seconds: Rounds of `growth`, and how long the load lasts.
        life_rounds, reloads: Starts and kills in the scenario `life`, and reloads under load.
        overload_rounds, overload_seconds: Rounds of `overload`, and of how many seconds the clients are counted.
        idle_seconds: How long idle servers are watched.
        limit: How long the whole run may take, about, in seconds; see `Run.late`.
        calm: How long the whole run may wait for a quiet machine, seconds.
        thorough: False leaves out what takes long and says little new.
    """

    cpu_rounds: int
    cpu_seconds: int
    memory_workers: int
    calls: int
    growth_rounds: int
    growth_seconds: float
    life_rounds: int
    reloads: int
    overload_rounds: int
    overload_seconds: float
    idle_seconds: float
    limit: float
    calm: float
    thorough: bool


FULL = Effort(5, 1, 8, 2000, 3, 2.5, 7, 5, 2, 2.0, 5.0, limit=660.0, calm=20.0, thorough=True)
QUICK = Effort(1, 1, 3, 50, 1, 1.5, 1, 2, 1, 1.0, 1.0, limit=90.0, calm=0.0, thorough=False)


@dataclass(slots=True)
class Run:
    """What the scenarios share. ``others`` collects how many processors others kept busy, look by look."""

    effort: Effort
    directory: Path
    others: list[float] = field(default_factory=list)
    began: float = field(default_factory=time.monotonic)
    #: Up to this part of the whole time the present scenario may begin new rounds.
    share: float = 1.0
    _calm_left: float = 0.0

    def __post_init__(self) -> None:
        self._calm_left = self.effort.calm

    def rounds(self, count: int) -> Iterator[int]:
        """The numbers of the rounds, each when the machine is quiet or will not be; at least one, and none too late."""
        for number in range(count):
            if number and self.late():
                return
            self._wait_for_calm()
            yield number

    def late(self) -> bool:
        """True when nothing new may begin that can be left out: on a busy machine there are fewer rounds."""
        return time.monotonic() - self.began > self.effort.limit * self.share

    def _wait_for_calm(self) -> None:
        began = time.monotonic()
        while measure.disturbance(0.1) > QUIET and self._calm_left > 0:
            self._calm_left -= time.monotonic() - began
            began = time.monotonic()


def rotated(items: Sequence[Item], number: int) -> list[Item]:
    """The items, in every round beginning with another one: whoever comes first has no advantage."""
    shift = number % len(items)
    return [*items[shift:], *items[:shift]]
