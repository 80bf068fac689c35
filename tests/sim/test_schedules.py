"""The heart under many thousands of random lives of a service.

``PREFORKD_SCHEDULES=5000000`` runs more of them, ``PREFORKD_SEED=123`` begins elsewhere. A failure names its seed:
``tests.sim.schedules.run(seed)`` is the same life again.
"""

from __future__ import annotations

import json
import os
import traceback

import pytest

from tests.sim.schedules import run

SCHEDULES = int(os.environ.get("PREFORKD_SCHEDULES", "100000"))
FIRST_SEED = int(os.environ.get("PREFORKD_SEED", "0"))


def run_many(seeds: range) -> str | None:
    """The first failure, with its seed, or None."""
    for seed in seeds:
        try:
            run(seed)
        except Exception:
            return f"tests.sim.schedules.run({seed}) failed:\n{traceback.format_exc()}"
    return None


def in_a_child(seeds: range) -> tuple[int, int]:
    """Run seeds in a process of their own. Returns its pid and the descriptor from which its verdict comes."""
    verdict, tell = os.pipe()
    pid = os.fork()
    if pid:
        os.close(tell)
        return pid, verdict
    try:
        os.close(verdict)
        with os.fdopen(tell, "w") as file:
            json.dump(run_many(seeds), file)
    finally:
        os._exit(0)


def test_some_schedules() -> None:
    """A glance, for those who leave the slow tests out."""
    failure = run_many(range(1_000_000_000, 1_000_001_500))
    assert failure is None, failure


@pytest.mark.slow
def test_very_many_schedules() -> None:
    processors = len(os.sched_getaffinity(0))
    last = FIRST_SEED + SCHEDULES
    children = [in_a_child(range(FIRST_SEED + number, last, processors)) for number in range(processors)]
    failures = []
    for pid, verdict in children:
        with os.fdopen(verdict) as file:
            text = file.read()
        os.waitpid(pid, 0)
        failures.append(json.loads(text) if text else "a child of the test died without a verdict")
    assert not any(failures), "\n".join(failure for failure in failures if failure)
