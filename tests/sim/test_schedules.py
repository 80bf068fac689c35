"""The heart under many thousands of random lives of a service.

``PREFORKD_SCHEDULES=5000000`` runs more of them, ``PREFORKD_SEED=123`` begins elsewhere. A failure names its seed:
``tests.sim.schedules.run(seed)`` is the same life again.
"""

from __future__ import annotations

import os
import traceback

import pytest

from tests.sim.schedules import run

SCHEDULES = int(os.environ.get("PREFORKD_SCHEDULES", "100000"))
#: So many tests share them: they run at once where there are processors, and none takes longer than a test may.
PARTS = 20
FIRST_SEED = int(os.environ.get("PREFORKD_SEED", "0"))


def run_many(seeds: range) -> str | None:
    """The first failure, with its seed, or None."""
    for seed in seeds:
        try:
            run(seed)
        except Exception:
            return f"tests.sim.schedules.run({seed}) failed:\n{traceback.format_exc()}"
    return None


def test_some_schedules() -> None:
    """A glance, for those who leave the slow tests out."""
    failure = run_many(range(1_000_000_000, 1_000_001_500))
    assert failure is None, failure


@pytest.mark.slow
@pytest.mark.parametrize("part", range(PARTS))
def test_very_many_schedules(part: int) -> None:
    failure = run_many(range(FIRST_SEED + part, FIRST_SEED + SCHEDULES, PARTS))
    assert failure is None, failure
