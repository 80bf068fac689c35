"""Kept connections do not wait for the worker that happened to accept them while its siblings have nothing to do."""

from __future__ import annotations

from collections import Counter

from tests.system.daemon import Daemon
from tests.system.traffic import Traffic


def test_kept_connections_are_spread_over_the_workers(daemon: Daemon) -> None:
    """One worker accepts them all, because it is the only one; those that are born later get their share."""
    daemon.pool["workers"] = {"start": 1, "min_spare": 1, "max_spare": 4, "max": 4}
    daemon.start()
    with Traffic(daemon, kept=12, fresh=0, path="/sleep/10", pace=0.0) as traffic:
        daemon.wait_for_status(lambda status: len(status["pools"]["web"]["workers"]) == 4)
        traffic.wait(100)
        before = Counter(worker["slot"] for worker in daemon.workers() for _ in range(worker["requests"]))
        traffic.wait(400)
        after = Counter(worker["slot"] for worker in daemon.workers() for _ in range(worker["requests"]))
        served = after - before
        assert len(served) == 4, served
        assert max(served.values()) <= 1.5 * sum(served.values()) / 4, served
    traffic.check()


def test_the_pool_grows_for_kept_connections_that_wait(daemon: Daemon) -> None:
    """Their next requests are in no accept queue; the worker that holds them says how many have to wait."""
    daemon.pool["workers"] = {"start": 1, "min_spare": 1, "max_spare": 2, "max": 8}
    daemon.start()
    with Traffic(daemon, kept=8, fresh=0, path="/sleep/50", pace=0.0):
        daemon.wait_for_status(lambda status: status["pools"]["web"]["counts"]["busy"] >= 7)
    assert any("waiting" in (event["reason"] or "") for event in daemon.events("pool_grow"))
