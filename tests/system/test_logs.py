"""What a person reads afterwards: events, the access log, what the application printed, what each worker died of."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import re
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.system.daemon import Daemon
from tests.system.shell import fetch, python_for_nobody
from tests.system.traffic import Traffic
from tests.unit.logs.parse import parse_line

#: After the usual application: paths on which a worker comes to harm, or prints.
HARM = """
import ctypes
usual = application

def application(environ, start_response):
    path = environ["PATH_INFO"]
    if path == "/segv":
        ctypes.string_at(0)
    if path == "/exit":
        os._exit(3)
    if path == "/kill":
        os.kill(os.getpid(), 9)
    if path == "/hang":
        in_here_it_hangs()
    if path == "/raise":
        raise KeyError("nobody catches this")
    if path == "/leave":
        sys.exit(5)
    if path == "/print":
        print("to stdout")
        print("to stderr", file=sys.stderr)
        sys.stdout.write("in ")
        sys.stdout.write("parts\\n")
        os.system("echo from a program")
        environ["wsgi.errors"].write("to wsgi.errors\\n")
        print("without an end", end="")
    return usual(environ, start_response)

def in_here_it_hangs():
    time.sleep(60)
"""


@pytest.fixture
def harmed(daemon: Daemon) -> Daemon:
    """A daemon whose application comes to harm on request; a line of C code may be on its standard error."""
    daemon.write_app(tail=HARM)
    daemon.expect_noise = True
    return daemon


def lost(daemon: Daemon, path: str) -> None:
    """A request whose worker dies: no answer."""
    with pytest.raises((OSError, http.client.HTTPException)):
        fetch(daemon.address, path)


# --- deaths ----------------------------------------------------------------------------------------------------------


def test_the_line_of_a_death_names_its_cause_and_the_request(harmed: Daemon) -> None:
    harmed.start()
    for path, cause in (
        ("/segv", "killed by signal 11 (SIGSEGV)"),
        ("/exit?x=1", "exit code 3"),
        ("/kill", "killed by signal 9 (SIGKILL)"),
    ):
        mark = harmed.mark()
        lost(harmed, path)
        event = harmed.wait_for_event("worker_exit", after=mark, cause=cause)
        assert event.level == "warning"
        assert event["request"] == f"GET {path} HTTP/1.1" and event["client"] == "127.0.0.1"
        assert float(event["seconds"]) < 20 and int(event["pid"]) > 1 and event["pool"] == "web"
        harmed.wait_for_event("worker_ready", after=mark)
        assert fetch(harmed.address).status == 200
    # A crash in C code leaves its Python traceback as well.
    assert "Fatal Python error: Segmentation fault" in harmed.log and "ctypes" in harmed.log


def test_the_death_of_an_idle_worker_blames_no_request(harmed: Daemon) -> None:
    harmed.start()
    victim = fetch(harmed.address).headers["x-worker-pid"]
    harmed.wait_for_status(lambda _: {"1"} == {str(w["requests"]) for w in harmed.workers() if str(w["pid"]) == victim})
    os.kill(int(victim), signal.SIGKILL)
    event = harmed.wait_for_event("worker_exit", pid=victim)
    assert event["cause"] == "killed by signal 9 (SIGKILL)" and event["requests"] == "1"
    assert "request" not in event.fields


def test_a_request_that_takes_too_long_ends_with_its_traceback(harmed: Daemon) -> None:
    harmed.pool["timeouts"]["request"] = "300ms"
    harmed.start()
    lost(harmed, "/hang")
    event = harmed.wait_for_event("worker_exit", request="GET /hang HTTP/1.1")
    assert event["cause"].startswith("timed out") and "timeouts.request" in event["cause"]
    assert 0.25 < float(event["seconds"]) < 10
    assert "in_here_it_hangs" in harmed.log
    harmed.wait_for_event("worker_ready", after=event.at)
    assert fetch(harmed.address).status == 200


def test_a_recycled_worker_says_so_and_costs_nothing(daemon: Daemon) -> None:
    daemon.pool["recycle"] = {"requests": 3, "jitter": "0%"}
    daemon.pool["workers"] = {"start": 1, "min_spare": 1, "max_spare": 1, "max": 2}
    daemon.start()
    for _ in range(9):
        assert fetch(daemon.address).status == 200
    event = daemon.wait_for_event("worker_exit", cause="recycled", count=2)
    assert event.level == "info" and event["requests"] == "3"
    assert daemon.events("worker_recycle")[0]["limit"] == "requests"


def test_an_exception_is_a_page_an_event_and_no_death(harmed: Daemon) -> None:
    harmed.start()
    for path, name in (("/raise", "KeyError: 'nobody catches this'"), ("/leave", "SystemExit: 5")):
        answer = fetch(harmed.address, path)
        assert answer.status == 500
        event = harmed.wait_for_event("app_exception", request=f"GET {path}")
        assert name in event.body and "site_app.py" in event.body and "preforkd" not in event.body
    assert not harmed.events("worker_exit")


# --- what the application prints -------------------------------------------------------------------------------------


def test_what_the_application_prints_is_tagged_with_its_worker(harmed: Daemon) -> None:
    harmed.write_app(head="print('at import')\n", tail=HARM)
    harmed.start()
    template = harmed.wait_for_event("app_output", line="at import")
    assert (template["worker"], template["stream"], template["pool"]) == ("template", "stdout", "web")
    pid = fetch(harmed.address, "/print").headers["x-worker-pid"]
    for line, stream, level in (
        ("to stdout", "stdout", "info"),
        ("to stderr", "stderr", "warning"),
        ("in parts", "stdout", "info"),
        ("to wsgi.errors", "stderr", "warning"),
    ):
        event = harmed.wait_for_event("app_output", line=line, pid=pid)
        assert (event["stream"], event.level, event["pool"]) == (stream, level, "web")
        assert re.fullmatch(r"web/\d", event["worker"])
    assert "from a program" in harmed.log  # untagged, but there
    os.kill(int(pid), signal.SIGTERM)
    harmed.wait_for_event("app_output", line="without an end", pid=pid)
    assert len(harmed.events("app_output", line="at import")) == 1


# --- files -----------------------------------------------------------------------------------------------------------


def test_errors_go_to_a_file_and_nothing_else_anywhere(daemon: Daemon, tmp_path: Path) -> None:
    file = tmp_path / "error.log"
    daemon.settings["log"] = {"errors": str(file), "level": "info"}
    daemon.write_app(head="print('printed')\nimport os; os.system('echo from a program')\n")
    daemon.start()
    assert daemon.stop() == 0
    assert daemon.log == ""
    lines = file.read_text().splitlines()
    names = [parse_line(line).name for line in lines if not line.startswith(" ") and line != "from a program"]
    assert names[0] == "master_start" and names[-1] == "master_exit"
    assert "app_output" in names and "from a program" in lines
    assert file.stat().st_mode & 0o022 == 0


@pytest.mark.parametrize("level", ["info", "error"])
def test_the_level_is_the_least_that_is_written(daemon: Daemon, level: str) -> None:
    daemon.settings["log"]["level"] = level
    daemon.write_app(head="print('out')\nprint('err', file=sys.stderr)\n")
    daemon.start()
    assert daemon.stop() == 0
    ranks = ["debug", "info", "warning", "error"]
    seen = {event.level for event in daemon._events}
    assert seen == set(ranks[ranks.index(level) :]) - ({"error"} if "error" not in seen else set())


LINES: dict[str, Callable[[str], bool]] = {
    "common": lambda line: bool(
        re.fullmatch(
            r'127\.0\.0\.1 - - \[\d\d/\w{3}/\d{4}:\d\d:\d\d:\d\d [+-]\d{4}\] "GET /a\?b=1 HTTP/1\.1" 200 1', line
        )
    ),
    "combined": lambda line: bool(
        re.fullmatch(r'127\.0\.0\.1 - - \[.+\] "GET /a\?b=1 HTTP/1\.1" 200 1 "http://ref/" "tests/\\"1"', line)
    ),
    "json": lambda line: json.loads(line)["status"] == 200 and json.loads(line)["method"] == "GET",
    '%m %U%q %>s %B "%{Referer}i" %P': lambda line: bool(re.fullmatch(r'GET /a\?b=1 200 1 "http://ref/" \d+', line)),
}


@pytest.mark.parametrize(("form", "where"), [*((form, "file") for form in LINES), ("combined", "stdout")])
def test_the_access_log_has_a_line_for_each_request(daemon: Daemon, tmp_path: Path, form: str, where: str) -> None:
    file = tmp_path / "access.log"
    daemon.settings["log"] |= {"access": str(file) if where == "file" else "stdout", "format": form}
    daemon.expect_noise = True
    daemon.start()
    for _ in range(3):
        fetch(daemon.address, "/a?b=1", headers={"Referer": "http://ref/", "User-Agent": 'tests/"1'})
    assert daemon.stop() == 0
    text = file.read_text().splitlines() if where == "file" else daemon.log.splitlines()
    assert len([line for line in text if _fits(LINES[form], line)]) == 3, text


def _fits(check: Callable[[str], bool], line: str) -> bool:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return check(line)
    return False


def test_a_format_that_cannot_be_is_a_mistake(daemon: Daemon) -> None:
    daemon.settings["log"]["format"] = "%Z"
    daemon.save()
    outcome = daemon.command("check", "--syntax", "{file}")
    assert outcome.code == 1 and "log.format" in outcome.err


# --- rotation --------------------------------------------------------------------------------------------------------


def rotate(daemon: Daemon, *files: Path, by: str) -> None:
    """What logrotate does: rename, then ask for new files; the answer means that everybody writes to them."""
    for file in files:
        number = len(list(file.parent.glob(file.name + ".*")))
        file.rename(file.with_name(f"{file.name}.{number}"))
    if by == "reopen":
        outcome = daemon.command("reopen", "{file}")
        assert (outcome.code, outcome.text) == (0, "")
    else:
        daemon.signal(signal.SIGUSR1)


def rotated_under_load(daemon: Daemon, tmp_path: Path, by: str, executable: str = sys.executable) -> None:
    logs = tmp_path / "logs"
    error, access = logs / "error.log", logs / "access.log"
    daemon.settings["log"] |= {"errors": str(error), "access": str(access), "format": "%r"}
    daemon.start(executable=executable)
    with Traffic(daemon) as traffic:
        for count in range(1, 4):
            traffic.wait(20)
            rotate(daemon, error, access, by=by)
            if by == "USR1":
                # There is nothing to wait for but the new files; a rename of what is not there yet would be ours.
                while not (error.exists() and access.exists() and f"epoch={count}" in error.read_text()):
                    traffic.wait(1)
            else:
                # Everybody has answered, so nobody writes to the old ones any more.
                old = access.with_name(f"access.log.{count - 1}")
                size = old.stat().st_size
                traffic.wait(20)
                assert old.stat().st_size == size
        traffic.wait(20)
    answered = 0
    for client in traffic.clients:
        result = client.result()
        result.check()
        answered += len(result.outcomes)
    assert daemon.stop() == 0
    lines = [line for file in logs.glob("access.log*") for line in file.read_text().splitlines()]
    assert len(lines) == answered  # none lost
    assert all(re.fullmatch(r"GET /\?n=\d+ HTTP/1\.1", line) for line in lines)  # none torn
    events = [parse_line(line).name for file in logs.glob("error.log*") for line in file.read_text().splitlines()]
    assert events.count("logs_reopened") == 3 and events.count("master_exit") == 1


@pytest.mark.parametrize("by", ["USR1", "reopen"])
def test_rotation_under_load_loses_no_line(daemon: Daemon, tmp_path: Path, by: str) -> None:
    (tmp_path / "logs").mkdir()
    rotated_under_load(daemon, tmp_path, by)


def test_rotation_works_though_the_workers_could_not_open_the_files(as_nobody: Daemon, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir(mode=0o700)
    rotated_under_load(as_nobody, tmp_path, "reopen", python_for_nobody())
    for file in (tmp_path / "logs").iterdir():
        assert file.stat().st_uid == 0 and file.stat().st_mode & 0o022 == 0


def test_a_file_that_cannot_be_opened_anew_is_said_and_the_old_one_goes_on(daemon: Daemon, tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    access = tmp_path / "logs" / "access.log"
    daemon.settings["log"]["access"] = str(access)
    daemon.start()
    (tmp_path / "logs").rename(tmp_path / "gone")
    outcome = daemon.command("reopen", "{file}")
    assert outcome.code == 1 and str(access) in outcome.err
    daemon.wait_for_event("reopen_failed")
    assert fetch(daemon.address).status == 200
    assert daemon.stop() == 0
    assert len((tmp_path / "gone" / "access.log").read_text().splitlines()) == 1


# --- titles ----------------------------------------------------------------------------------------------------------


def test_titles_show_role_pool_slot_generation_and_state(daemon: Daemon) -> None:
    daemon.start()
    held = daemon.hold("one")
    titles = {pid: title.partition("] ")[2] for pid, title in daemon.processes().items()}
    assert titles[daemon.pid] == f"preforkd: master {daemon.config_file}"
    assert titles[daemon.template()] == "preforkd: web template g1"
    assert titles[held.pid].startswith("preforkd: web/") and titles[held.pid].endswith(" g1 GET /gate/one")
    idle = [title for title in titles.values() if re.fullmatch(r"preforkd: web/\d g1 idle", title)]
    assert len(idle) >= 1
    held.finish()
    assert daemon.ask_reload() == ""
    assert any(re.fullmatch(r"\[.\] preforkd: web/\d g2 idle", title) for title in daemon.processes().values())


def test_titles_of_workers_that_gave_up_root(as_nobody: Daemon) -> None:
    as_nobody.start(executable=python_for_nobody())
    for pid in as_nobody.pids():
        assert Path(f"/proc/{pid}/cmdline").read_bytes().startswith(b"preforkd: web/")
