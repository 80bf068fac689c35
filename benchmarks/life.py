"""Start, death of a worker, reloads under load, idleness."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections import defaultdict

from benchmarks import measure, report
from benchmarks.load import Request, Sample, ask, drive
from benchmarks.peers import GTHREAD, PREFORKD, SYNC, Plan
from benchmarks.run import Run, rotated
from benchmarks.servers import Server, running

#: The servers whose life is compared.
_PEERS = (PREFORKD, SYNC, GTHREAD)
_PROCESSES = 2
#: Clients of each kind (keep-alive, one connection each) during reloads, and their pause between two requests: a load
#: that leaves the processors time for what is measured.
_KIND = 4
_PAUSE = 0.002
#: How long a reload, or a replacement, may take, seconds.
_PATIENCE = 10.0


def scenario(run: Run) -> report.Section:
    """Runs it and returns its section of the report."""
    starts: dict[str, list[float]] = defaultdict(list)
    kills: dict[str, list[float]] = defaultdict(list)
    failed: dict[str, int] = {}
    worst: dict[str, list[float]] = defaultdict(list)
    for number in run.rounds(run.effort.life_rounds):
        for peer in rotated(_PEERS, number):
            # One worker: nobody else could answer before the replacement does.
            with running(peer, Plan(workers=1), run.directory) as server:
                starts[peer].append(server.first_answer)
                kills[peer].append(_kill(server))
    for peer in _PEERS:
        with running(peer, Plan(workers=_PROCESSES), run.directory) as server:
            failed[peer], worst[peer] = _reload(server, run.effort.reloads)
    idle = _idle(run)

    def row(label: str, values: dict[str, list[float]], digits: int = 0) -> tuple[str, ...]:
        cells = (report.spread(values[peer], digits, 1000) for peer in _PEERS)
        return (label, *cells, report.ratio((values[SYNC], values[GTHREAD]), values[PREFORKD]))

    rows = (
        row("start to the first answer, ms", starts),
        row("kill -9 of the only worker until its replacement answers, ms", kills),
        (
            f"{run.effort.reloads} reloads (HUP) under load: failed requests",
            *(str(failed[peer]) for peer in _PEERS),
            "",
        ),
        row("their worst latency, ms", worst, 1),
        ("wake-ups a second, idle, all processes", *(f"{idle[peer]:.1f}" for peer in _PEERS), ""),
    )
    text = (
        f"### Life\n\n{len(starts[PREFORKD])} starts and kills with 1 worker; reloads and idleness with {_PROCESSES} "
        f"workers. Load during reloads: {_KIND} clients that keep their connection and {_KIND} that do not, "
        f"{_PAUSE * 1000:.0f} ms between an answer and the next request; the worst latency of the clients during each "
        f"reload. Idle: {run.effort.idle_seconds:.0f} s.\n\n"
        + report.table(("", *_PEERS, "best gunicorn / preforkd"), rows)
    )
    data = {
        peer: {
            "start_ms": [round(value * 1000, 1) for value in starts[peer]],
            "replacement_ms": [round(value * 1000, 1) for value in kills[peer]],
            "reloads_failed": failed[peer],
            "reloads_worst_ms": [round(value * 1000, 1) for value in worst[peer]],
            "idle_wakeups_per_second": idle[peer],
        }
        for peer in _PEERS
    }
    return report.Section(text, data)


def _who(server: Server) -> int:
    """The pid of a worker that answers now."""
    answer = ask(server.port, "/who", timeout=_PATIENCE)
    if answer is None:
        raise server.failed("no answer")
    return int(answer)


def _kill(server: Server) -> float:
    """Seconds from the death of the only worker until another answers; the question waits in the accept queue."""
    victim = _who(server)
    time.sleep(0.1)
    began = time.monotonic()
    os.kill(victim, signal.SIGKILL)
    while time.monotonic() < began + _PATIENCE:
        answer = ask(server.port, "/who", timeout=_PATIENCE)
        # No answer: the dying worker had accepted the question before it was dead.
        if answer is not None and int(answer) != victim:
            return time.monotonic() - began
    raise server.failed("the worker that was killed is not replaced")


def _reload(server: Server, count: int) -> tuple[int, list[float]]:
    """Failed requests of all reloads, and the worst latency during each."""
    requests = [Request("/who", keep=keep) for keep in (True, False) for _ in range(_KIND)]
    samples: list[Sample] = []
    done = threading.Event()
    limit = count * _PATIENCE

    def load() -> None:
        drive(server.port, requests, limit, pause=_PAUSE, until=done.is_set, samples=samples)

    thread = threading.Thread(target=load)
    thread.start()
    spans: list[tuple[float, float]] = []
    try:
        time.sleep(0.3)
        for _ in range(count):
            workers = _answering(samples) & set(measure.tree(server.pid))
            began = time.monotonic()
            os.kill(server.pid, signal.SIGHUP)
            _wait_for_end(server, workers)
            spans.append((began, time.monotonic()))
    finally:
        done.set()
        thread.join()
    failed = sum(bool(sample.failure) for sample in samples)
    return failed, [_worst(samples, *span) for span in spans]


def _answering(samples: list[Sample]) -> set[int]:
    """The pids of those who have answered so far."""
    return {int(sample.answer.rpartition(b"\n")[2]) for sample in samples[:] if not sample.failure}


def _wait_for_end(server: Server, workers: set[int]) -> None:
    """Until none of these workers is left, and then for a moment: the reload is over."""
    end = time.monotonic() + _PATIENCE
    while workers & set(measure.tree(server.pid)):
        if time.monotonic() > end:
            raise server.failed("HUP did not replace its workers")
        time.sleep(0.02)
    time.sleep(0.3)


def _worst(samples: list[Sample], began: float, ended: float) -> float:
    return max((one.ended - one.began for one in samples if one.ended >= began and one.began <= ended), default=0.0)


def _idle(run: Run) -> dict[str, float]:
    """Wake-ups a second of each peer; they are idle side by side."""
    with contextlib.ExitStack() as stack:
        servers = [stack.enter_context(running(peer, Plan(workers=_PROCESSES), run.directory)) for peer in _PEERS]
        # Until what follows a start is over, and kept connections have timed out.
        time.sleep(1.0)
        before = {server.name: measure.switches(server.pid) for server in servers}
        time.sleep(run.effort.idle_seconds)
        return {
            server.name: (measure.switches(server.pid) - before[server.name]) / run.effort.idle_seconds
            for server in servers
        }
