"""Processor time for a request, of the whole tree of processes; requests a second and latency beside it."""

from __future__ import annotations

import importlib.util
import statistics
import subprocess
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import apps, measure, picture, report
from benchmarks.load import BROWSER, NUMBER, VARIED, Request, Throughput, closes, throughput
from benchmarks.peers import PEERS, PREFORKD, Peer, Plan, Serves
from benchmarks.run import Run, rotated
from benchmarks.servers import Server, ServerFailed, running

_CLIENTS = 32
_PROCESSES = 2


@dataclass(frozen=True, slots=True)
class _Work:
    """One row: what is asked, what a peer must be able to do for it; ``essential`` where it tells most of it."""

    request: Request
    needs: Serves = Serves.HELLO
    logged: bool = False
    essential: bool = False


_WORK = {
    "hello, keep-alive": _Work(Request(), essential=True),
    "hello, a browser's 12 fields": _Work(Request(fields=tuple(BROWSER.items()))),
    "12 fields, each request another": _Work(Request(f"/?page={NUMBER}", tuple(VARIED.items())), essential=True),
    "hello, one connection each": _Work(Request(keep=False), essential=True),
    "answer of 64 KiB": _Work(Request("/big"), Serves.LARGE),
    "POST of 64 KiB": _Work(Request("/post", posted=apps.BIG), Serves.LARGE),
    "file of 10 KiB, keep-alive": _Work(Request("/file"), Serves.FILE),
    "file of 10 KiB, one connection each": _Work(Request("/file", keep=False), Serves.FILE),
    "hello, access log to a file": _Work(Request(), Serves.ACCESS_LOG, logged=True),
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One measurement: microseconds of processor time for a request, and what the clients saw."""

    cost: float
    seen: Throughput


#: All measurements, by row and peer.
Cells = Mapping[tuple[str, str], Sequence[Cell]]


def _measure(run: Run, server: Server, request: Request) -> Cell:
    if not request.keep and not closes(server.port, request.path):
        raise server.failed("it does not say that it closes, so what is measured would be something else")
    try:
        with measure.Meter(server.pid) as meter:
            seen = throughput(server.port, request, _CLIENTS, run.effort.cpu_seconds)
    except subprocess.SubprocessError as error:
        raise server.failed(f"the load generator gave up: {error}") from error
    run.others.append(meter.others)
    if not seen.requests:
        raise server.failed(f"no answer to {request.path}")
    return Cell(meter.cpu / seen.requests * 1e6, seen)


def _round(run: Run, peer: Peer, works: Iterable[str], cells: dict[tuple[str, str], list[Cell]]) -> None:
    """Measures one peer once."""
    groups: dict[tuple[bool, bool], list[str]] = defaultdict(list)
    for work in works:
        about = _WORK[work]
        if about.needs in peer.serves:
            keep = about.request.keep or peer.heeds_close
            groups[about.logged, keep].append(work)
    for (logged, keep), wanted in groups.items():
        plan = Plan(workers=_PROCESSES, access_log=logged, keep_alive=keep)
        with running(peer.name, plan, run.directory) as server:
            for work in wanted:
                cells[work, peer.name].append(_measure(run, server, _WORK[work].request))


def scenario(run: Run) -> report.Section:
    """Runs it and returns its section of the report."""
    works = [work for work, about in _WORK.items() if about.essential or run.effort.thorough]
    cells: dict[tuple[str, str], list[Cell]] = defaultdict(list)
    left_out = {name: f"not installed: `{peer.install}`" for name, peer in PEERS.items() if peer.missing()}
    rounds = 0
    for number in run.rounds(run.effort.cpu_rounds):
        for name in rotated([name for name in PEERS if name not in left_out], number):
            try:
                _round(run, PEERS[name], works, cells)
            except ServerFailed as error:
                if name == PREFORKD:
                    raise
                left_out[name] = "failed: " + " ".join(str(error).split())[:300]
        rounds += 1
    peers = [PEERS[name] for name in PEERS if name not in left_out]
    return report.Section(
        text(rounds, run.effort.cpu_seconds, works, peers, left_out, cells),
        data(works, peers, left_out, cells),
        panels(works, peers, cells),
    )


def _costs(cells: Cells, work: str, peer: str) -> list[float]:
    return [cell.cost for cell in cells.get((work, peer), ())]


def _cost(cells: Cells, work: str, peer: Peer) -> str:
    """A cell of the first table."""
    costs, ours = _costs(cells, work, peer.name), _costs(cells, work, PREFORKD)
    if not costs or peer.name == PREFORKD:
        return report.spread(costs, 1)
    return f"{report.spread(costs, 1)}<br>{report.ratio([costs], ours)}x"


def _seen(cells: Cells, work: str, peer: Peer) -> str:
    """A cell of the second."""
    found = [cell.seen for cell in cells.get((work, peer.name), ())]
    if not found:
        return "-"
    return "<br>".join(
        (
            report.spread([one.requests / one.seconds for one in found]),
            report.spread([one.p50 for one in found], 1, 1000),
            report.spread([one.p99 for one in found], 1, 1000),
        )
    )


def text(
    rounds: int, seconds: int, works: Sequence[str], peers: Sequence[Peer], left_out: Mapping[str, str], cells: Cells
) -> str:
    """For people: two tables, and what has to be said about their columns."""
    heads = [f"*{peer.name}*" if peer.yardstick else peer.name for peer in peers]
    first = report.table(
        ("CPU for a request, µs; times preforkd's", *heads),
        ((work, *(_cost(cells, work, peer) for peer in peers)) for work in works),
    )
    second = report.table(
        ("requests a second; p50, p99 in ms", *heads),
        ((work, *(_seen(cells, work, peer) for peer in peers)) for work in works),
    )
    failed = {
        peer.name: sum(cell.seen.failed for work in works for cell in cells.get((work, peer.name), ()))
        for peer in peers
    }
    total = ", ".join(f"{name} {count}" for name, count in failed.items() if count) or "none"
    notes = [f"* *{peer.name}* is a yardstick: {peer.yardstick}." for peer in peers if peer.yardstick]
    if any(peer.modules == ("gunicorn",) for peer in peers) and not importlib.util.find_spec("gunicorn_h1c"):
        notes.append("* gunicorn parses in Python here: its parser in C, gunicorn_h1c, is not installed.")
    notes += [f"* {name} is left out: {why}." for name, why in left_out.items()]
    return (
        f"### Processor time for a request\n\n{_PROCESSES} worker processes, {_CLIENTS} clients, "
        f"{rounds} rounds of {seconds} s.\n\n{first}\n\n{second}\n\n"
        + "\n".join(notes)
        + f"\n\nFailed requests, as the load generator counts them: {total}."
    )


def data(works: Sequence[str], peers: Sequence[Peer], left_out: Mapping[str, str], cells: Cells) -> dict[str, object]:
    """What ``--json`` writes: every single measurement."""
    return {
        "processes": _PROCESSES,
        "clients": _CLIENTS,
        "yardsticks": {peer.name: peer.yardstick for peer in peers if peer.yardstick},
        "left_out": dict(left_out),
        "works": {
            work: {
                peer.name: [
                    {
                        "cpu_us": round(cell.cost, 2),
                        "requests_per_second": round(cell.seen.requests / cell.seen.seconds, 1),
                        "p50_ms": round(cell.seen.p50 * 1000, 3),
                        "p99_ms": round(cell.seen.p99 * 1000, 3),
                        "failed": cell.seen.failed,
                    }
                    for cell in cells[work, peer.name]
                ]
                for peer in peers
                if cells.get((work, peer.name))
            }
            for work in works
        },
    }


def panels(works: Sequence[str], peers: Sequence[Peer], cells: Cells) -> list[picture.Panel]:
    """The first table as a picture."""

    def bar(work: str, peer: Peer) -> picture.Bar:
        costs = _costs(cells, work, peer.name)
        kind = picture.Kind.OURS if peer.name == PREFORKD else picture.Kind.PEER
        if peer.yardstick:
            kind = picture.Kind.YARDSTICK
        return picture.Bar(peer.name, min(costs), statistics.median(costs), max(costs), kind)

    return [picture.Panel(work, [bar(work, peer) for peer in peers if cells.get((work, peer.name))]) for work in works]


def draw(found: Sequence[picture.Panel], file: Path) -> None:
    """Writes the picture."""
    file.write_text(
        picture.svg(
            "Processor time for a request, microseconds",
            f"whole process tree, {_PROCESSES} processes, {_CLIENTS} clients; median, and a line from minimum to "
            "maximum; less is better; every panel has its own scale",
            found,
        ),
        encoding="utf-8",
    )
