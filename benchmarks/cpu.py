"""Processor time for a request, of the whole tree of processes; requests a second and latency beside it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

from benchmarks import apps, measure, report
from benchmarks.load import BROWSER, Request, Throughput, throughput
from benchmarks.run import Run, rotated
from benchmarks.servers import GTHREAD, PEERS, PREFORKD, SYNC, Plan, Server, running

_CLIENTS = 32
_PROCESSES = 2

_LOGGED = "hello, access log to a file"
_WORK = {
    "hello, keep-alive": Request(),
    "hello, a browser's 12 fields": Request(fields=tuple(BROWSER.items())),
    "hello, one connection each": Request(keep=False),
    "answer of 64 KiB": Request("/big"),
    "POST of 64 KiB": Request("/post", posted=apps.BIG),
}

#: So many of them tell most of it.
_ESSENTIAL = 3


@dataclass(frozen=True, slots=True)
class _Cell:
    """One measurement: microseconds of processor time for a request, and what the clients saw."""

    cost: float
    seen: Throughput


def _measure(run: Run, server: Server, request: Request) -> _Cell:
    with measure.Meter(server.pid) as meter:
        seen = throughput(server.port, request, _CLIENTS, run.effort.cpu_seconds)
    run.others.append(meter.others)
    if not seen.requests:
        raise server.failed(f"no answer to {request.path}")
    return _Cell(meter.cpu / seen.requests * 1e6, seen)


def scenario(run: Run) -> str:
    """Runs it and returns its section of the report."""
    works = list(_WORK)[: None if run.effort.thorough else _ESSENTIAL]
    cells: dict[tuple[str, str], list[_Cell]] = defaultdict(list)
    for number in run.rounds(run.effort.cpu_rounds):
        for peer in rotated(PEERS, number):
            with running(peer, Plan(workers=_PROCESSES), run.directory) as server:
                for work in works:
                    cells[work, peer].append(_measure(run, server, _WORK[work]))
            with running(peer, Plan(workers=_PROCESSES, access_log=True), run.directory) as server:
                cells[_LOGGED, peer].append(_measure(run, server, Request()))
    works.append(_LOGGED)
    costs = {key: [cell.cost for cell in found] for key, found in cells.items()}
    first = report.table(
        ("CPU for a request, µs", *PEERS, "best gunicorn / preforkd"),
        (
            (
                work,
                *(report.spread(costs[work, peer], 1) for peer in PEERS),
                report.ratio((costs[work, SYNC], costs[work, GTHREAD]), costs[work, PREFORKD]),
            )
            for work in works
        ),
    )
    second = report.table(
        ("requests a second · p50 ms · p99 ms", *PEERS),
        ((work, *(_seen([cell.seen for cell in cells[work, peer]]) for peer in PEERS)) for work in works),
    )
    rounds = len(cells[_LOGGED, PREFORKD])
    failed = {peer: sum(cell.seen.failed for work in works for cell in cells[work, peer]) for peer in PEERS}
    total = ", ".join(f"{peer} {count}" for peer, count in failed.items())
    return (
        f"### Processor time for a request\n\n{_PROCESSES} worker processes, {_CLIENTS} clients, "
        f"{rounds} rounds of {run.effort.cpu_seconds} s.\n\n{first}\n\n{second}\n\nFailed requests, as the load "
        f"generator counts them: {total}."
    )


def _seen(found: list[Throughput]) -> str:
    rate = report.spread([one.requests / one.seconds for one in found])
    middle = report.spread([one.p50 for one in found], 1, 1000)
    return f"{rate} · {middle} · {report.spread([one.p99 for one in found], 1, 1000)}"
