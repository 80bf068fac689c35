"""What a worker tells and is told while it serves: limits, the request's timer, the bell, and every wish to leave."""

from __future__ import annotations

import math
import os
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.errors import ExitCode
from preforkd.model import Activity
from preforkd.scoreboard import Scoreboard
from preforkd.spawn import Channel
from preforkd.worker.context import Context, proportional_memory
from preforkd.worker.settle import overhear
from tests.support.child import in_child
from tests.support.values import make_config, make_estate


@dataclass
class Worker:
    """A context, and the ends that its master would hold."""

    context: Context
    board: Scoreboard
    channel: Channel
    lifeline: int
    log: Path

    def request(self) -> None:
        self.context.request_started(b"GET / HTTP/1.1", "192.0.2.1")
        self.context.request_finished()

    def rung(self) -> bool:
        try:
            return os.eventfd_read(self.context._estate.bell) > 0
        except BlockingIOError:
            return False

    def timer(self) -> float:
        return signal.getitimer(signal.ITIMER_REAL)[0]


Run = Callable[..., Any]


def is_leaving(worker: Worker) -> bool:
    """What a model looks at after each request."""
    return worker.context.leaving


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Runs a function on the context of a worker in slot 3, in a process of its own."""

    def in_worker(function: Callable[[Worker], Any], **pool: Any) -> Any:
        def child() -> Any:
            config = make_config(tmp_path, pool)
            board = Scoreboard(8)
            estate, _, lifeline = make_estate(config, board=board)
            near, far = Channel.pair()
            overhear()  # the first thing that a worker does
            context = Context(estate, 3, far)
            context.begin()
            return function(Worker(context, board, near, lifeline, tmp_path / "log"))

        return in_child(child)

    return in_worker


# --- recycling -------------------------------------------------------------------------------------------------------


@given(st.floats(1, 1e9), st.floats(0, 1))
def test_a_limit_is_spread_around_what_was_asked_for(value: float, jitter: float) -> None:
    assert value * (1 - jitter) * 0.999999 <= Context._jittered(value, jitter) <= value * (1 + jitter) * 1.000001
    assert Context._jittered(0, jitter) == 0


def test_workers_born_together_do_not_leave_together() -> None:
    assert len({round(Context._jittered(1000, 0.1)) for _ in range(50)}) > 10


@pytest.mark.parametrize("limit", [1, 2, 7])
def test_a_worker_is_recycled_after_so_many_requests(run: Run, limit: int) -> None:
    def served(worker: Worker) -> tuple[int, int, Activity]:
        count = 0
        while not worker.context.leaving:
            worker.request()
            count += 1
        worker.request()  # one that it held; said once all the same
        assert worker.log.read_text().count("worker_recycle") == 1
        return count, worker.context.exit_code(), worker.board.activity(3)

    assert run(served, recycle={"requests": limit, "jitter": "0%"}) == (limit, ExitCode.RECYCLED, Activity.LEAVING)


def test_a_worker_is_recycled_for_its_memory(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preforkd.worker.context._MEMORY_INTERVAL", 0.0)

    def served(worker: Worker) -> bool:
        worker.request()
        assert not is_leaving(worker)
        assert worker.board.view(3).memory == pytest.approx(proportional_memory(), rel=0.5)
        ballast = b"x" * (300 << 20)
        worker.request()
        return is_leaving(worker) and len(ballast) > 0

    assert run(served, recycle={"memory": "200M"})


def test_a_worker_is_recycled_for_its_age(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def served(worker: Worker) -> bool:
        worker.request()
        assert not is_leaving(worker)
        worker.context._age_limit -= 4000
        worker.request()
        return is_leaving(worker) and worker.context.exit_code() == ExitCode.RECYCLED

    assert run(served, recycle={"age": "1h"})


def test_nothing_is_recycled_where_nothing_is_said(run: Run) -> None:
    def served(worker: Worker) -> bool:
        for _ in range(1000):
            worker.request()
        return worker.context.leaving

    assert run(served) is False


# --- the request's timer ---------------------------------------------------------------------------------------------


def test_the_timer_runs_while_requests_do(run: Run) -> None:
    def served(worker: Worker) -> list[bool]:
        context = worker.context
        states = [worker.timer() > 0, context.alarmed]
        context.request_started(b"GET / HTTP/1.1", "192.0.2.1")
        states += [60 < worker.timer() <= 60.5, context.alarmed]
        context.request_finished()
        context.rests()
        states += [worker.timer() > 0, context.alarmed]
        return states

    assert run(served, timeouts={"request": "60s"}) == [False, False, True, True, False, False]


def test_the_next_request_has_its_time_too(run: Run) -> None:
    def served(worker: Worker) -> bool:
        context = worker.context
        lowest = before = math.inf
        for _ in range(1_000_000):
            began = time.monotonic()
            context.request_started(b"GET / HTTP/1.1", "192.0.2.1")
            left = worker.timer()
            lowest = min(lowest, left + time.monotonic() - began)
            context.request_finished()
            if left > before:
                return lowest >= 0.1  # armed again in time, and not with every request
            before = left
        return False

    assert run(served, timeouts={"request": "100ms"})


def test_a_request_that_took_most_of_its_time_leaves_no_alarm_behind(run: Run) -> None:
    """It would go off between two requests, and end a worker that has nothing to do."""

    def served(worker: Worker) -> list[bool]:
        context = worker.context
        armed = []
        for spent in (1, 59):
            context.request_started(b"GET / HTTP/1.1", "192.0.2.1")
            context._alarm_at -= spent
            context.request_finished()
            armed.append(worker.timer() > 0)
            assert context.alarmed == armed[-1]
        return armed

    assert run(served, timeouts={"request": "60s"}) == [True, False]


def test_an_alarm_that_the_application_left_behind_ends_nobody(run: Run) -> None:
    def served(worker: Worker) -> float:
        worker.context.request_started(b"GET / HTTP/1.1", "192.0.2.1")
        signal.signal(signal.SIGALRM, lambda *_: None)
        signal.alarm(1)
        worker.context.request_finished()
        return worker.timer()

    assert run(served, timeouts={"request": "60s"}) == 0


def test_there_is_no_timer_where_no_limit_is_set(run: Run) -> None:
    def served(worker: Worker) -> float:
        worker.context.request_started(b"GET / HTTP/1.1", "192.0.2.1")
        return worker.timer()

    assert run(served) == 0


def test_an_orphans_last_alarm_is_not_put_off_by_requests(run: Run) -> None:
    def served(worker: Worker) -> bool:
        worker.context.watch()[worker.context._estate.lifeline]()
        armed = worker.timer()
        assert 5 < armed <= 7
        worker.request()
        worker.context.request_started(b"GET / HTTP/1.1", "192.0.2.1")
        return 0 < worker.timer() <= armed

    assert run(served, timeouts={"request": "60s", "graceful": "7s"})


# --- the bell --------------------------------------------------------------------------------------------------------


def test_the_bell_is_rung_when_spares_run_short_and_the_master_wants_it(run: Run) -> None:
    def served(worker: Worker) -> list[bool]:
        others = [worker.board.writer(slot) for slot in (0, 1, 2)]
        rung = []
        for armed, idle in ((False, 0), (True, 0), (True, 1), (True, 2), (True, 3)):
            for number, other in enumerate(others):
                other.idle() if number < idle else other.busy(b"GET / HTTP/1.1", "x")
            worker.board.armed = armed
            worker.request()
            rung.append(worker.rung())
        return rung

    assert run(served, workers={"min_spare": 2, "max_spare": 4}) == [False, True, True, False, False]


# --- what it says of itself ------------------------------------------------------------------------------------------


def test_the_scoreboard_follows_the_requests(run: Run) -> None:
    def served(worker: Worker) -> list[tuple[str, int, str]]:
        seen = []

        def look() -> None:
            view = worker.board.view(3)
            seen.append((view.activity.name, view.requests, view.request))

        look()
        worker.context.request_started(b"GET /one HTTP/1.1", "192.0.2.1")
        look()
        worker.context.request_finished()
        look()
        os.kill(os.getpid(), signal.SIGTERM)
        worker.context.watch()[worker.context._wakeup.fileno()]()
        look()
        return seen

    assert run(served) == [
        ("IDLE", 0, ""),
        ("BUSY", 0, "GET /one HTTP/1.1"),
        ("IDLE", 1, "GET /one HTTP/1.1"),
        ("LEAVING", 1, "GET /one HTTP/1.1"),
    ]


def test_a_worker_that_leaves_says_so_until_its_end(run: Run) -> None:
    """Requests that it still holds are served, but nobody shall count on it for another one."""

    def served(worker: Worker) -> list[str]:
        os.kill(os.getpid(), signal.SIGTERM)
        worker.context.watch()[worker.context._wakeup.fileno()]()
        seen = []
        worker.context.request_started(b"GET /held HTTP/1.1", "192.0.2.1")
        seen.append(worker.board.activity(3).name)
        worker.context.request_finished()
        seen.append(worker.board.activity(3).name)
        assert worker.board.idle() == 0
        return seen

    assert run(served) == ["BUSY", "LEAVING"]


# --- why it leaves ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_is_a_graceful_leave(run: Run, signum: int) -> None:
    def served(worker: Worker) -> tuple[bool, int, bool]:
        signal.raise_signal(signum)
        assert not worker.context.leaving  # handlers do nothing
        worker.context.watch()[worker.context._wakeup.fileno()]()
        return worker.context.leaving, worker.context.exit_code(), worker.context.stopping

    assert run(served) == (True, ExitCode.LEFT, False)


@pytest.mark.parametrize("signum", [signal.SIGUSR1, signal.SIGPIPE])
def test_a_signal_that_is_not_for_workers_is_nothing(run: Run, signum: int) -> None:
    def served(worker: Worker) -> bool:
        signal.raise_signal(signum)
        worker.context.watch()[worker.context._wakeup.fileno()]()
        return worker.context.leaving

    assert run(served) is False


def test_a_worker_whose_master_is_gone_leaves(run: Run) -> None:
    def served(worker: Worker) -> tuple[bool, int, bool]:
        worker.channel.close()
        worker.context.watch()[worker.context._channel.fileno()]()
        signal.setitimer(signal.ITIMER_REAL, 0)
        return worker.context.leaving, worker.context.exit_code(), worker.context.stopping

    assert run(served) == (True, ExitCode.ORPHANED, True)


def test_a_stop_of_the_service_is_seen_in_the_scoreboard(run: Run) -> None:
    def served(worker: Worker) -> tuple[bool, bool]:
        before = worker.context.stopping
        worker.board.stopping = True
        return before, worker.context.stopping

    assert run(served) == (False, True)


def test_log_files_are_reopened_on_request_and_that_is_said(run: Run, tmp_path: Path) -> None:
    def served(worker: Worker) -> Any:
        (tmp_path / "log").rename(tmp_path / "log.1")
        new = os.open(tmp_path / "log", os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        files = worker.context._estate.logs.files()
        worker.channel.send({"reopen": 5}, [new] * len(files))
        worker.context.watch()[worker.context._channel.fileno()]()
        worker.context.log.info("after_rotation")
        return worker.channel.receive()

    assert run(served) == ({"reopened": 5}, [])
    assert "after_rotation" in (tmp_path / "log").read_text()
    assert "after_rotation" not in (tmp_path / "log.1").read_text()
