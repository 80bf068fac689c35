"""Memory of a pool with an application of the usual weight, after each of its workers has been used."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter

from benchmarks import measure, report
from benchmarks.load import Request, Sample, drive
from benchmarks.peers import PREFORKD, ROOT, SYNC, Plan
from benchmarks.run import Run
from benchmarks.servers import Server, running

#: Clients for each worker: more than one, so that none of them is ever without work.
_CLIENTS = 2
#: How long the calls may take, seconds; what is missing then shows in the last column.
_PATIENCE = 8
_WORKER = re.compile(rb"\r\nx-worker: ([0-9]+)\r\n", re.IGNORECASE)

_ROWS = (
    ("preforkd", PREFORKD, False, ()),
    ("preforkd, `warmup: [/], 30 times`", PREFORKD, False, ("/",) * 30),
    ("gunicorn sync `--preload`", SYNC, True, ()),
    ("gunicorn sync", SYNC, False, ()),
)


def scenario(run: Run) -> report.Section:
    """Runs it and returns its section of the report."""
    database = run.directory / "orders.sqlite"
    environment = {"BENCHMARK_DATABASE": str(database)}
    if not database.exists():
        subprocess.run([sys.executable, "-m", "benchmarks.orm"], cwd=ROOT, env=environment, check=True, timeout=30)
    workers = run.effort.memory_workers
    rows: list[tuple[str, ...]] = []
    data: dict[str, dict[str, float]] = {}
    ours = 0.0
    for label, peer, preload, warmup in _ROWS:
        if rows and run.late():
            rows.append((label, *["no time"] * 4))
            continue
        if peer != PREFORKD and not preload and not run.effort.thorough:
            continue
        plan = Plan("benchmarks.orm:application", workers, preload=preload, warmup=warmup, environment=environment)
        with running(peer, plan, run.directory) as server:
            born = measure.memory(server.pid) / 2**20
            samples = _use(run, server)
            used = measure.memory(server.pid) / 2**20
        ours = ours or used
        shares = _shares(samples, workers)
        data[label] = {"start_mib": round(born, 1), "used_mib": round(used, 1), "calls": sum(shares)}
        rows.append((label, f"{born:.0f}", f"**{used:.0f}**", f"{used / ours:.2f}", f"{min(shares)}-{max(shares)}"))
    head = ("PSS of the whole tree, MiB", "after the start and one request", "after", "ratio", "calls of a worker")
    text = (
        f"### Memory\n\nFlask and SQLAlchemy's ORM, {workers} workers, at most {workers * run.effort.calls} calls, "
        f"one connection each; one round.\n\n{report.table(head, rows)}"
    )
    return report.Section(text, data)


def _use(run: Run, server: Server) -> list[Sample]:
    workers = run.effort.memory_workers
    clients = [Request(keep=False)] * (workers * _CLIENTS)
    samples = drive(server.port, clients, _PATIENCE, at_most=workers * run.effort.calls)
    failures = Counter(sample.failure for sample in samples if sample.failure)
    if failures:
        raise server.failed(f"{failures.total()} of {len(samples)} requests failed: {dict(failures)}")
    return samples


def _shares(samples: list[Sample], workers: int) -> list[int]:
    """How many requests each worker answered; 0 for one that got none."""
    counts = Counter(match[1] for sample in samples if (match := _WORKER.search(sample.answer)))
    return [*counts.values(), *[0] * (workers - len(counts))]
