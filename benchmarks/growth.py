"""A pool of two workers, suddenly 64 clients, and an application that blocks for 20 ms: how long until it keeps up?"""

from __future__ import annotations

import contextlib
import math
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from benchmarks import apps, measure, report
from benchmarks.load import Request, Sample, drive
from benchmarks.peers import PREFORKD, SYNC, Plan
from benchmarks.run import Run
from benchmarks.servers import Server, running

_CLIENTS = 64
_START = 2
_CEILING = _CLIENTS / apps.WAIT
_WINDOW = 0.05
#: So many windows in a row are looked at together: 64 clients that answer in step fill two of them, then three.
_TOGETHER = 4
#: This share of the ceiling counts as full.
_FULL = 0.9

_WORK = {"one connection each": Request("/wait", keep=False), "keep-alive": Request("/wait")}


@dataclass(frozen=True, slots=True)
class _Curve:
    """One load: seconds until full throughput (infinite if never), requests a second at the end, failures, workers."""

    full_after: float
    rate: float
    failed: int
    longest: float
    processes: int


def full_after(ended: list[float], seconds: float) -> float:
    """When the rate reached its full height: the end of the first windows in a row that together show it.

    Args:
        ended: When each request ended, in seconds since the load began.
        seconds: How long the load lasted.
    """
    windows = [0] * math.ceil(seconds / _WINDOW)
    for moment in ended:
        if 0 <= moment < seconds:
            windows[int(moment / _WINDOW)] += 1
    wanted = _FULL * _CEILING * _WINDOW * _TOGETHER
    for last in range(_TOGETHER, len(windows) + 1):
        if sum(windows[last - _TOGETHER : last]) >= wanted:
            return last * _WINDOW
    return math.inf


def _load(run: Run, server: Server, request: Request) -> _Curve:
    seconds = run.effort.growth_seconds
    began = time.monotonic()
    with measure.Meter(server.pid) as meter:
        samples = drive(server.port, [request] * _CLIENTS, seconds)
    run.others.append(meter.others)
    processes = len(measure.tree(server.pid))
    good = [sample for sample in samples if not sample.failure]
    ended = [sample.ended - began for sample in good]
    last = sum(moment >= seconds - 0.5 for moment in ended) / 0.5
    return _Curve(full_after(ended, seconds), last, len(samples) - len(good), _longest(samples), processes)


def _longest(samples: list[Sample]) -> float:
    return max((sample.ended - sample.began for sample in samples), default=0.0)


def _growing(directory: Path) -> contextlib.AbstractContextManager[Server]:
    return running(PREFORKD, Plan(workers=_START, most=_CLIENTS), directory)


def scenario(run: Run) -> report.Section:
    """Runs it and returns its section of the report."""
    grown, fixed = f"preforkd {_START} → {_CLIENTS}", f"gunicorn sync, {_CLIENTS} fixed"
    curves: dict[tuple[str, str], list[_Curve]] = defaultdict(list)
    for _ in run.rounds(run.effort.growth_rounds):
        for work, request in _WORK.items():
            with _growing(run.directory) as server:
                curves[work, grown].append(_load(run, server, request))
    # It takes seconds to start 64 workers, which would disturb the others' rounds.
    if run.effort.thorough:
        with running(SYNC, Plan(workers=_CLIENTS), run.directory) as server:
            for _ in run.rounds(run.effort.growth_rounds):
                for work, request in _WORK.items():
                    curves[work, fixed].append(_load(run, server, request))
    rows = [
        (
            work,
            who,
            _time([curve.full_after for curve in found]),
            report.spread([curve.rate for curve in found]),
            report.spread([curve.longest for curve in found], 0, 1000),
            str(sum(curve.failed for curve in found)),
            report.spread([curve.processes for curve in found]),
        )
        for (work, who), found in curves.items()
    ]
    head = ("64 clients at once", "", "full after, ms", "requests/s, last 0.5 s", "longest, ms", "failed", "processes")
    text = (
        f"### Growth under a sudden load\n\nThe application blocks for {apps.WAIT * 1000:.0f} ms: {_CLIENTS} workers "
        f"can answer {_CEILING:.0f} requests a second. Full is {_FULL:.0%} of that over {_TOGETHER} windows of "
        f"{_WINDOW * 1000:.0f} ms ({_TOGETHER * _WINDOW * 1000:.0f} ms is the least that can be measured). "
        f"{max(map(len, curves.values()))} rounds of {run.effort.growth_seconds} s.\n\n{report.table(head, rows)}"
    )
    # Never is null: JSON has no infinity (RFC 8259, section 6).
    data = {
        f"{who}, {work}": [
            {
                "full_after_ms": None if curve.full_after == math.inf else round(curve.full_after * 1000),
                "requests_per_second": curve.rate,
                "longest_ms": round(curve.longest * 1000, 1),
                "failed": curve.failed,
                "processes": curve.processes,
            }
            for curve in found
        ]
        for (work, who), found in curves.items()
    }
    return report.Section(text, data)


def _time(values: list[float]) -> str:
    if math.inf in values:
        reached = [value for value in values if value != math.inf]
        never = f"not reached in {len(values) - len(reached)} of {len(values)}"
        return f"{report.spread(reached, 0, 1000)}; {never}" if reached else never
    return report.spread(values, 0, 1000)
