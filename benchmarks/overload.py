"""Three times as many clients as can be served, each of which waits for a while and then goes: who is still useful?

A server that answers in the order of arrival works, after a moment, only for clients that have gone. The load is open:
clients arrive whether or not those before them have been answered, as they do outside.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks import apps, measure, report
from benchmarks.load import LATE, Request, Sample, arrive
from benchmarks.peers import PREFORKD, SYNC, Plan
from benchmarks.run import Run
from benchmarks.servers import Server, running

_WORKERS = 4
#: What the workers can answer at most, requests a second.
_CAPACITY = _WORKERS / apps.WAIT
_TIMES = 3
#: So long after the first client, seconds, the queue is as long as it will be; who came earlier is not counted.
_SETTLED = 1.0
#: How long a client waits, seconds.
_PATIENCE = 0.5
#: preforkd's ``timeouts.queue``: less than the clients' patience by some requests.
_QUEUE = "300ms"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the clients of one load: ``useful`` were answered with 200 in time, ``refused`` got another answer
    or no connection, ``late`` have gone without one; ``longest`` is what a useful one waited at most, seconds."""

    useful: int
    refused: int
    late: int
    longest: float


def outcome(samples: Sequence[Sample], patience: float) -> Outcome:
    """Sorts the clients. An answer that ended after ``patience`` is late, even if its client was slow to notice."""
    useful = [one.ended - one.began for one in samples if not one.failure and one.ended - one.began <= patience]
    refused = sum(one.failure not in ("", LATE) and one.ended - one.began <= patience for one in samples)
    return Outcome(len(useful), refused, len(samples) - len(useful) - refused, max(useful, default=0.0))


def knows(schema: object, *path: str) -> bool:
    """Whether this JSON schema has a property, wherever in it the path begins."""
    if isinstance(schema, list):
        return any(knows(item, *path) for item in schema)
    if not isinstance(schema, dict):
        return False
    found: object = schema
    for name in path:
        found = found.get("properties", {}).get(name) if isinstance(found, dict) else None
    return found is not None or any(knows(value, *path) for value in schema.values())


def _has_queue() -> bool:
    """Whether the preforkd that is measured has ``timeouts.queue``."""
    said = subprocess.run([sys.executable, "-m", "preforkd", "schema"], capture_output=True, timeout=30, check=True)
    return knows(json.loads(said.stdout), "timeouts", "queue")


def _load(run: Run, server: Server) -> Outcome:
    seconds = _SETTLED + run.effort.overload_seconds
    began = time.monotonic()
    with measure.Meter(server.pid) as meter:
        samples = arrive(server.port, Request("/wait", keep=False), _TIMES * _CAPACITY, seconds, _PATIENCE)
    run.others.append(meter.others)
    return outcome([sample for sample in samples if sample.began >= began + _SETTLED], _PATIENCE)


def scenario(run: Run) -> report.Section:
    """Runs it and returns its section of the report."""
    rows = {"preforkd": (PREFORKD, Plan(workers=_WORKERS))}
    if _has_queue():
        limited = Plan(workers=_WORKERS, timeouts={"queue": _QUEUE})
        rows[f"preforkd, `timeouts: {{queue: {_QUEUE}}}`"] = (PREFORKD, limited)
    rows["gunicorn sync"] = (SYNC, Plan(workers=_WORKERS))
    seconds = run.effort.overload_seconds
    found: dict[str, list[Outcome]] = defaultdict(list)
    for _ in run.rounds(run.effort.overload_rounds):
        for label, (peer, plan) in rows.items():
            with running(peer, plan, run.directory) as server:
                found[label].append(_load(run, server))
    head = ("", "useful answers a second", "share of capacity, %", "longest useful, ms", "refused", "late")
    table = report.table(
        head,
        (
            (
                label,
                report.spread([one.useful / seconds for one in outcomes]),
                report.spread([one.useful / seconds / _CAPACITY for one in outcomes], 0, 100),
                report.spread([one.longest for one in outcomes], 0, 1000),
                report.spread([one.refused for one in outcomes]),
                report.spread([one.late for one in outcomes]),
            )
            for label, outcomes in found.items()
        ),
    )
    text = (
        f"### Overload\n\nThe application blocks for {apps.WAIT * 1000:.0f} ms; {_WORKERS} workers can answer "
        f"{_CAPACITY:.0f} requests a second. {_TIMES * _CAPACITY:.0f} clients arrive every second, each with a "
        f"connection of its own, and go after {_PATIENCE * 1000:.0f} ms without an answer. Counted are those of "
        f"{seconds:.0f} s, after a first second in which the queue grows. {len(found[PREFORKD])} rounds.\n\n{table}"
    )
    return report.Section(
        text,
        {
            "capacity": _CAPACITY,
            "offered": _TIMES * _CAPACITY,
            "patience_ms": _PATIENCE * 1000,
            "seconds": seconds,
            "servers": {
                label: [
                    {
                        "useful": one.useful,
                        "refused": one.refused,
                        "late": one.late,
                        "longest_ms": round(one.longest * 1000, 1),
                    }
                    for one in outcomes
                ]
                for label, outcomes in found.items()
            },
        },
    )
