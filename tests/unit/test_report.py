"""The status: the keys that programs rely on, and the text that people read."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from preforkd import privileges
from preforkd.core.supervisor import Supervisor
from preforkd.listeners import ListenerSet, Wanted, open_listeners
from preforkd.logs import open_logs
from preforkd.master import report
from preforkd.master.world import World, make_world
from preforkd.model import Cause, Commit, Generation, Order, Plan, Retire, StartTemplate, Worker
from tests.support.values import make_config

NOW = 1000.0


class Still:
    """A kernel that only hands out pids: the facts are entered by the test."""

    def start_template(self, pool: str, generation: int, preload: bool) -> int:
        return 100

    def order(self, workers: Sequence[Worker]) -> None:
        pass

    def signal(self, pid: int, signum: int) -> None:
        pass

    def kill_stem(self, worker: Worker, pid: int) -> None:
        pass

    def release(self, worker: Worker) -> None:
        pass


@dataclass
class Service:
    """A service of one pool with a template and the workers that the test bears."""

    supervisor: Supervisor
    world: World
    opened: ListenerSet

    def act(self, *actions: Any) -> None:
        self.supervisor.act(Plan(actions, None), NOW)

    def bear(self, slot: int, pid: int, ready: bool = True) -> int:
        self.act(Order("web", 1, (slot,), False, "test"))
        number = next(w.id for w in self.supervisor.table.of("web") if w.slot == slot)
        self.supervisor.table.born(number, pid, NOW)
        if ready:
            self.supervisor.table.ready(number, NOW)
        return number

    def status(self, now: float = NOW, **master: Any) -> dict[str, Any]:
        facts = {
            "pid": 7, "version": "1.2", "started": time.time(), "config": "/etc/x.yaml", "last_reload": None, **master,
        }  # fmt: skip
        value = report.status(self.supervisor, {1: self.world}, facts, now)
        # Whatever is in it has to survive the control socket.
        assert json.loads(json.dumps(value)) == value
        return value

    def text(self, **master: Any) -> str:
        return report.as_text(self.status(**master))

    @property
    def board(self) -> Any:
        return self.world.pools["web"].board


@pytest.fixture
def service(tmp_path: Path) -> Iterator[Service]:
    config = make_config(tmp_path, {"workers": {"start": 2, "min_spare": 1, "max_spare": 3, "max": 5}})
    opened = open_listeners([Wanted(listen) for listen in config.pools["web"].listen], {})
    opened.commit()
    logs = open_logs(config.log)
    world = make_world(1, config, {"web": privileges.resolve(None, None)}, opened.listeners, logs)
    supervisor = Supervisor(Still())
    supervisor.wish_generation(1, {"web": world.pools["web"].goal})
    service = Service(supervisor, world, opened)
    service.act(StartTemplate("web", 1, True))
    supervisor.table.template_loaded(100)
    service.act(Commit(1))
    yield service
    for listener in opened.listeners.values():
        listener.remove()
    logs.close()


def test_the_keys_that_are_promised(service: Service) -> None:
    service.bear(0, 201)
    status = service.status()
    assert {"pid", "generation", "started", "state"} <= set(status["master"])
    assert status["master"]["state"] == "running" and status["master"]["generation"] == 1
    pool = status["pools"]["web"]
    assert {"generation", "listen", "workers"} <= set(pool)
    (worker,) = pool["workers"]
    assert {"slot", "pid", "generation", "state", "requests"} <= set(worker)
    assert (worker["slot"], worker["pid"], worker["generation"], worker["requests"]) == (0, 201, 1, 0)


def test_addresses_are_those_that_are_really_listened_on(service: Service) -> None:
    (address,) = service.status()["pools"]["web"]["listen"]
    host, port = address.split(":")
    assert host == "127.0.0.1" and int(port) > 0


def test_each_worker_shows_what_it_does(service: Service) -> None:
    idle, busy, leaving, starting = (service.bear(slot, 201 + slot, slot != 3) for slot in range(4))
    service.board.writer(0).idle()
    pen = service.board.writer(1)
    pen.busy(b"GET /old HTTP/1.1", "192.0.2.1")
    pen.finished()
    pen.busy(b"GET /report?x=1 HTTP/1.1", "192.0.2.7")
    service.board.writer(2).leaving()
    service.act(Retire(leaving, Cause.SHRINK, ((NOW, 15),)))
    pool = service.status()["pools"]["web"]
    assert [worker["state"] for worker in pool["workers"]] == ["idle", "busy", "leaving", "starting"]
    assert pool["counts"] == {"idle": 1, "busy": 1, "other": 2}
    shown = pool["workers"][1]
    assert (shown["request"], shown["client"], shown["requests"]) == ("GET /report?x=1 HTTP/1.1", "192.0.2.7", 1)
    assert "request" not in pool["workers"][0]
    assert pool["workers"][2]["why"] == "pool shrinks"
    assert {idle, busy, leaving, starting} == {1, 2, 3, 4}


def test_an_ordered_worker_has_no_pid_yet(service: Service) -> None:
    service.act(Order("web", 1, (0,), False, "test"))
    (worker,) = service.status()["pools"]["web"]["workers"]
    assert worker == {"slot": 0, "pid": None, "generation": 1, "state": "ordered", "requests": 0}
    assert "pid -" in service.text()


def test_a_stopped_worker_is_shown_as_such(service: Service) -> None:
    service.bear(0, 201)
    service.board.writer(0).idle()
    service.supervisor.table.stopped(201, NOW)
    assert service.status()["pools"]["web"]["workers"][0]["state"] == "stopped"


def test_failures_and_their_text(service: Service) -> None:
    for pid in range(300, 306):
        service.bear(0, pid, ready=False)
        service.supervisor.table.boot_failed(next(iter(service.supervisor.table.workers)), "KeyError: 'DATABASE_URL'")
        service.supervisor.table.exited(pid, 41, None, NOW, service.supervisor.goal.phase)
    pool = service.status()["pools"]["web"]
    assert pool["failures"] == 6 and pool["last_error"] == "KeyError: 'DATABASE_URL'" and pool["next_try_in"] > 0
    text = service.text()
    assert "6 failed starts in a row, next try in " in text
    assert "    KeyError: 'DATABASE_URL'" in text.splitlines()


def test_a_template_that_loads_nothing_says_why(service: Service) -> None:
    assert service.status()["pools"]["web"]["template"] == {"pid": 100, "state": "ready", "preload": True}
    service.supervisor.table.exited(100, 44, None, NOW, service.supervisor.goal.phase)
    assert service.status()["pools"]["web"]["template"] is None
    service.act(StartTemplate("web", 1, False))
    service.supervisor.table.template_loaded(100)
    assert "each worker loads the application for itself" in service.text()


def test_the_text_says_it_all_in_lines(service: Service) -> None:
    service.bear(0, 201)
    service.bear(1, 202)
    service.board.writer(0).idle()
    service.board.writer(1).busy(b"GET /\x1b[31m HTTP/1.1", "192.0.2.7")
    lines = service.text(
        last_reload={"time": time.time(), "outcome": "failed", "error": "x.yaml:3: pools: no\nsecond line"}
    ).splitlines()
    assert lines[0].startswith("preforkd 1.2: running, pid 7, generation 1, started ")
    assert lines[1] == "configuration /etc/x.yaml"
    assert lines[2].startswith("last reload ") and lines[2].endswith(": failed")
    assert lines[3:5] == ["    x.yaml:3: pools: no", "    second line"]
    assert any(line.startswith("web: 1 idle, 1 busy, 0 other; at most 5; 0 waiting on 127.0.0.1:") for line in lines)
    assert "  wsgi hello (process)" in lines or "  wsgi hello:application (process)" in lines
    assert any(line.startswith("  web/0   pid 201     g1   idle, 0 requests") for line in lines)
    (busy,) = [line for line in lines if line.startswith("  web/1 ")]
    assert r"'GET /\x1b[31m HTTP/1.1' from 192.0.2.7 for " in busy
    assert "\x1b" not in "\n".join(lines)


def test_a_service_that_loads_its_first_generation(service: Service) -> None:
    status = report.status(
        Supervisor(Still()), {}, {"pid": 7, "version": "1", "started": 0.0, "config": "", "last_reload": None}, NOW
    )
    assert status["pools"] == {} and status["master"]["generation"] == 0
    assert "generation 0" in report.as_text(status)


def test_generations_side_by_side(service: Service) -> None:
    """In the middle of a reload the old workers are shown beside the new ones."""
    service.bear(0, 201)
    service.board.writer(0).idle()
    new = make_world(
        2, service.world.config, {"web": privileges.resolve(None, None)}, service.opened.listeners, service.world.logs
    )
    service.supervisor.goal = service.supervisor.goal.__class__(current=Generation(2, {"web": new.pools["web"].goal}))
    service.act(Order("web", 2, (1,), False, "test"))
    service.supervisor.table.born(2, 202, NOW)
    service.supervisor.table.ready(2, NOW)
    new.pools["web"].board.writer(1).idle()
    value = report.status(
        service.supervisor, {1: service.world, 2: new}, {"pid": 7, "version": "1", "started": 0.0, "config": ""}, NOW
    )
    assert [(w["generation"], w["state"]) for w in value["pools"]["web"]["workers"]] == [(1, "idle"), (2, "idle")]
