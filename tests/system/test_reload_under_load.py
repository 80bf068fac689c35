"""HUP and `preforkd reload` while clients count every request: nobody notices, but by the new answer."""

from __future__ import annotations

import contextlib
import http.client
import itertools
import os
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from preforkd.control.protocol import Command, encode_command
from tests.support.counting_client import CountingClient, Failure
from tests.system.daemon import LOOK, Daemon, free_port
from tests.system.traffic import Traffic, ask, number_of, settled, wait_titled


@pytest.fixture
def fixed(daemon: Daemon) -> Daemon:
    """Two workers, whatever the load, so that nothing but the test changes who serves."""
    daemon.pool["workers"] = {"start": 2, "min_spare": 1, "max_spare": 2, "max": 2}
    return daemon


def check_notices(daemon: Daemon) -> None:
    """Every RELOADING was followed by a READY, without which the unit would hang in ``reloading``."""

    def words() -> list[str]:
        return [key for notice in daemon.notices() for key in ("RELOADING", "READY") if key in notice]

    deadline = time.monotonic() + 5
    while words()[-1] != "READY":
        assert time.monotonic() < deadline, words()
        time.sleep(LOOK)
    assert "RELOADING RELOADING" not in " ".join(words())


# --- reloads that succeed ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preload", ["auto", "never"])
def test_new_code_serves_and_nobody_fails(fixed: Daemon, preload: str) -> None:
    fixed.pool["preload"] = preload
    fixed.start()
    with Traffic(fixed) as traffic:
        for version in ("2", "3"):
            fixed.write_app(version)
            done = fixed.reload()
            assert (done.code, done.err) == (0, ""), done
            assert f"generation {version}" in done.out
            fixed.wait_for_status(settled(int(version)))
            assert ask(fixed)[0] == version
            traffic.wait(20)
    traffic.check()
    check_notices(fixed)


def test_twenty_hups_in_two_seconds(daemon: Daemon) -> None:
    daemon.start()
    last = "21"
    with Traffic(daemon) as traffic:
        for version in range(2, 22):
            daemon.write_app(str(version))
            daemon.signal(signal.SIGHUP)
            time.sleep(0.1)  # the storm's own pace
        starts, ends = 0, -1
        while starts != ends or ask(daemon)[0] != last:
            starts = len(daemon.events("reload_start"))
            daemon.wait_for_event("reload_done", count=starts)
            ends = len(daemon.events("reload_start"))
        generation = daemon.status()["master"]["generation"]
        daemon.wait_for_status(settled(generation))
        before = len(traffic.outcomes)
        traffic.wait(20)
        assert {ask(daemon)[0] for _ in range(10)} == {last}
    traffic.check(100)
    assert len(traffic.outcomes) > before
    assert not daemon.events("reload_failed")
    # Some shared a reload, and each of the rest ended well.
    assert 2 <= len(daemon.events("reload_done")) <= 20
    check_notices(daemon)


@pytest.mark.parametrize(("preload", "seconds"), [("auto", 2), ("never", 1)])
def test_a_slow_import_costs_nobody(fixed: Daemon, preload: str, seconds: int) -> None:
    fixed.pool["preload"] = preload
    fixed.start()
    with Traffic(fixed) as traffic:
        calm = time.monotonic()
        traffic.wait(100)
        fixed.write_app("2", head=f"time.sleep({seconds})\n")
        begun = time.monotonic()
        assert fixed.ask_reload() == ""
        ended = time.monotonic()
        fixed.wait_for_status(settled(2))
        traffic.wait(20)
    traffic.check(100)
    assert ended - begun >= seconds
    undisturbed = traffic.worst(calm, begun)
    disturbed = traffic.worst(begun, ended)
    assert disturbed < max(10 * undisturbed, 0.5), f"{disturbed:.3f} s during the reload, {undisturbed:.3f} s before"
    # They went on all the time, and not only before and after.
    during = [outcome.started for outcome in traffic.outcomes if begun <= outcome.started <= ended]
    assert max(after - before for before, after in itertools.pairwise(during)) < 0.5


def test_idle_connections_are_handed_over(fixed: Daemon) -> None:
    """A kept connection outlives its worker: same connection, new worker, new code."""
    fixed.pool["timeouts"]["keepalive"] = "30s"
    fixed.start()
    connections = [http.client.HTTPConnection(fixed.address, timeout=10) for _ in range(20)]
    try:
        old = {kept(connection)[1] for connection in connections}
        assert old <= set(fixed.pids())
        sockets = [connection.sock for connection in connections]
        for version in ("2", "3"):
            fixed.write_app(version)
            assert fixed.ask_reload() == ""
            fixed.wait_for_status(settled(int(version)))
            answers = [kept(connection) for connection in connections]
            assert {body for body, _ in answers} == {version}
            assert old.isdisjoint(pid for _, pid in answers)
            old |= {pid for _, pid in answers}
        assert [connection.sock for connection in connections] == sockets
    finally:
        for connection in connections:
            connection.close()


def kept(connection: http.client.HTTPConnection) -> tuple[str, int]:
    """A request on a connection that stays open."""
    connection.request("GET", "/")
    response = connection.getresponse()
    return response.read().decode(), int(response.headers["X-Worker-Pid"])


def test_a_request_in_flight_outlives_its_generation(fixed: Daemon) -> None:
    fixed.start()
    held = fixed.hold("a")
    fixed.write_app("2")
    assert fixed.ask_reload() == ""
    fixed.wait_for_status(
        lambda status: all(w["generation"] == 2 or w["pid"] == held.pid for w in status["pools"]["web"]["workers"])
    )
    assert ask(fixed)[0] == "2"
    held.finish()
    left = fixed.wait_for_event("worker_exit", pid=held.pid)
    assert left["cause"] == "asked: replaced by a newer generation"


def test_a_stopped_worker_holds_no_reload_up(fixed: Daemon) -> None:
    fixed.pool["timeouts"]["graceful"] = "500ms"
    fixed.start()
    with Traffic(fixed, kept=0) as traffic:
        stopped = fixed.pids()[1]
        os.kill(stopped, signal.SIGSTOP)
        fixed.wait_for_event("child_stopped", pid=stopped)
        fixed.write_app("2")
        assert fixed.ask_reload() == ""
        fixed.wait_for_status(settled(2))
        assert ask(fixed)[0] == "2"
    # It may have been stopped in the middle of a request.
    assert len(traffic.failed) <= 1, traffic.failed


def test_whoever_asked_may_go_away(fixed: Daemon) -> None:
    fixed.start()
    with Traffic(fixed) as traffic:
        fixed.write_app("2", head="print('loading')\ntime.sleep(0.3)\n")
        with socket.socket(socket.AF_UNIX) as asker:
            asker.connect(str(fixed.control))
            asker.sendall(encode_command(Command("reload", {}, id=1)))
            fixed.wait_for_event("app_output", line="loading")
        fixed.wait_for_event("reload_done", generation=2)
        fixed.wait_for_status(settled(2))
        assert ask(fixed)[0] == "2"
    traffic.check()


def test_reloads_leave_nothing_behind(fixed: Daemon) -> None:
    """Good and bad ones in turn: as many descriptors, children and processes as before, and all of them sleep."""
    fixed.start()
    assert fixed.ask_reload() == ""
    fixed.wait_for_event("generation_proven", generation=2)
    fixed.wait_for_event("template_exit", generation=1)
    fixed.wait_for_status(settled(2))
    wait_titled(fixed, "web stem g2")
    deadline = time.monotonic() + 10
    while (before := belongings(fixed))["children"] != 3:  # the last generation's stem is about to leave
        assert time.monotonic() < deadline, fixed.picture()
        time.sleep(LOOK)
    for version in range(3, 11):
        bad = version % 3 == 0
        fixed.write_app(str(version), head="os._exit(3)\n" if bad else "")
        assert bool(fixed.ask_reload()) == bad
    generation = fixed.status()["master"]["generation"]
    fixed.wait_for_event("generation_proven", generation=generation)
    deadline = time.monotonic() + 10
    while (after := belongings(fixed)) != before:
        assert time.monotonic() < deadline, f"{before} before, {after} after"
        time.sleep(LOOK)
    # Nothing happens, so nobody wakes up (the status line, which says so once more a second later, aside).
    deadline = time.monotonic() + 10
    while True:
        switches = wake_ups(fixed)
        time.sleep(1)
        if wake_ups(fixed) == switches:
            break
        assert time.monotonic() < deadline, f"{switches} before, {wake_ups(fixed)} after"


def belongings(daemon: Daemon) -> dict[str, int]:
    """How many descriptors each process has, and how many children the master."""
    found = {"children": len(Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split())}
    roles: dict[str, int] = {}
    for pid, title in sorted(daemon.processes().items()):
        role = next((role for role in ("master", "template", "stem") if role in title), "worker")
        roles[role] = roles.get(role, 0) + 1
        with contextlib.suppress(FileNotFoundError):
            found[f"{role} {roles[role]}"] = len(os.listdir(f"/proc/{pid}/fd"))
    return found


def wake_ups(daemon: Daemon) -> dict[int, str]:
    """How often each process has been switched to, as /proc says."""
    return {
        pid: " ".join(line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "ctxt_switches" in line)
        for pid in daemon.processes()
    }


# --- reloads that fail ------------------------------------------------------------------------------------------------

EXITS = {
    "exit 0": "os._exit(0)",
    "exit 1": "os._exit(1)",
    "segfault": "os.kill(os.getpid(), 11)",
}
ENDS = {"exit 0": "exit code 0", "exit 1": "exit code 1", "segfault": "SIGSEGV"}


def break_app(head: str) -> Callable[[Daemon], None]:
    return lambda daemon: daemon.write_app("broken", head=head)


def bad_syntax(daemon: Daemon) -> None:
    daemon.write_config(daemon.config_file.read_text() + "broken: [\n")


def bad_value(daemon: Daemon) -> None:
    daemon.settings["pools"]["web"]["workers"]["max"] = "many"
    daemon.save()


def late(statement: str) -> str:
    """Lines for the application's head: do it after the import, when the worker has said that it is ready."""
    return f"""
import threading, setproctitle

def end():
    while not setproctitle.getproctitle().endswith(" held"):
        time.sleep(0.001)
    {statement}

threading.Thread(target=end, daemon=True).start()
"""


CONFIGURATION = {
    "syntax": (bad_syntax, "preforkd.yaml:"),
    "value": (bad_value, "pools.web.workers.max"),
}
APPLICATION = {
    "raises": (break_app("raise RuntimeError('by intent')\n"), "RuntimeError: by intent"),
    "syntax error": (break_app("def broken(:\n"), "SyntaxError"),
    "sys.exit": (break_app("sys.exit('no way')\n"), "no way"),
    "no attribute": (lambda daemon: daemon.write_module("x = 1\n"), "application"),
    "hangs": (break_app("time.sleep(3600)\n"), "not ready in time"),
    **{f"{name} at import": (break_app(f"{EXITS[name]}\n"), ENDS[name]) for name in EXITS},
}
READY = {f"{name} when ready": (break_app(late(EXITS[name])), ENDS[name]) for name in EXITS}


@pytest.mark.parametrize(
    ("preload", "mistakes"),
    [
        pytest.param("auto", CONFIGURATION, id="configuration"),
        pytest.param("auto", APPLICATION, id="application"),
        pytest.param("never", APPLICATION, id="application-never"),
        pytest.param("never", READY, id="ready-never"),
    ],
)
def test_a_mistake_costs_nothing(
    fixed: Daemon, preload: str, mistakes: dict[str, tuple[Callable[[Daemon], None], str]]
) -> None:
    """The old generation does not notice it, and whoever asked, the log, systemd and the status say what it was."""
    fixed.pool["preload"] = preload
    fixed.pool["timeouts"]["start"] = "1s"
    fixed.start()
    with Traffic(fixed) as traffic:
        before = sorted(fixed.pids())
        for name, (damage, reason) in mistakes.items():
            mark, notices = fixed.mark(), len(fixed.notices())
            damage(fixed)
            answer = fixed.ask_reload()
            assert reason in answer, f"{name}: {answer or 'it was done'}"
            failed = fixed.wait_for_event("reload_failed", after=mark)
            assert reason in failed["text"], f"{name}: {failed}"
            fixed.wait_for_notice(
                "STATUS", lambda text: text.startswith("reload failed, still serving: "), after=notices
            )
            status = fixed.wait_for_status(settled(1))
            assert status["master"]["generation"] == 1, name
            assert status["master"]["last_reload"]["outcome"] == "failed", name
            assert reason in status["master"]["last_reload"]["error"], name
            assert sorted(fixed.pids()) == before, name
            fixed.settings["pools"]["web"]["workers"]["max"] = 2
            fixed.save()
        # A command says it to people, with its exit status.
        done = fixed.reload()
        assert (done.code == 0) == (mistakes is CONFIGURATION), done
        assert done.code == 0 or reason in done.err, done
        fixed.write_app("2")
        assert fixed.ask_reload() == ""
        fixed.wait_for_status(settled(fixed.status()["master"]["generation"]))
        assert ask(fixed)[0] == "2"
    traffic.check()
    check_notices(fixed)
    assert {event["pid"] for event in fixed.events("worker_exit", cause=lambda c: "asked" not in c)}.isdisjoint(
        str(pid) for pid in before
    )


def test_a_template_killed_while_it_loads(fixed: Daemon) -> None:
    fixed.start()
    with Traffic(fixed) as traffic:
        fixed.write_app("2", head="print(f'loading {os.getpid()}')\ntime.sleep(3600)\n")
        fixed.signal(signal.SIGHUP)
        loading = fixed.wait_for_event("app_output", line=lambda line: line.startswith("loading "))
        os.kill(int(loading["line"].split()[1]), signal.SIGKILL)
        failed = fixed.wait_for_event("reload_failed")
        assert "the template ended while it loaded: killed by signal 9 (SIGKILL)" in failed["text"]
    traffic.check()


def test_health_is_asked_before_anything_old_is_touched(fixed: Daemon) -> None:
    fixed.pool["health"] = "/health"
    fixed.start()
    with Traffic(fixed) as traffic:
        before = sorted(fixed.pids())
        fixed.write_app("2", tail="\ndef application(environ, start_response):\n    raise RuntimeError('sick')\n")
        done = fixed.reload()
        assert done.code == 1
        assert "/health answered 500" in done.err
        assert sorted(fixed.pids()) == before
    traffic.check()


def test_a_newer_hup_overtakes_a_hanging_import(fixed: Daemon) -> None:
    fixed.pool["timeouts"]["start"] = "60s"
    fixed.start()
    with Traffic(fixed) as traffic:
        fixed.write_app("hangs", head="print('hangs')\ntime.sleep(3600)\n")
        fixed.signal(signal.SIGHUP)
        fixed.wait_for_event("app_output", line="hangs")
        fixed.write_app("3")
        assert fixed.ask_reload() == ""
        fixed.wait_for_status(settled(fixed.status()["master"]["generation"]))
        assert ask(fixed)[0] == "3"
        failed = fixed.wait_for_event("reload_failed")
        assert "overtaken" in failed["text"]
    traffic.check()
    check_notices(fixed)


def test_workers_that_die_after_the_commit_are_rolled_back(daemon: Daemon) -> None:
    """The old code comes back by itself. Only requests that a dying worker held are lost: one each."""
    daemon.pool["timeouts"]["probation"] = "20s"
    daemon.start()
    # It serves for a while, then each request is its worker's last.
    tail = """
good, served = application, 0

def application(environ, start_response):
    global served
    served += 1
    if served > 5:
        os._exit(1)
    return good(environ, start_response)
"""
    with Traffic(daemon, kept=0) as traffic:
        daemon.write_app("deadly", tail=tail)
        daemon.signal(signal.SIGHUP)
        back = daemon.wait_for_event("generation_rollback", generation=2, to=1)
        assert "exit code 1" in back["text"]
        daemon.wait_for_notice("STATUS", lambda text: text.startswith("reload rolled back: "))
        daemon.wait_for_status(settled(1))
        end = daemon.mark()
        assert daemon.status()["master"]["last_reload"]["outcome"] == "rolled back"
        assert ask(daemon)[0] == "1"
        traffic.wait(50)
        assert not daemon.events("worker_exit", after=end)
    # One that had been asked to leave as well by then says so first.
    deaths = daemon.events("worker_exit", cause=lambda cause: cause.endswith("exit code 1"), generation=2)
    assert {outcome.number for outcome in traffic.failed} == {number_of(event["request"]) for event in deaths}
    check_notices(daemon)


def test_a_rollback_brings_the_old_port_back(fixed: Daemon) -> None:
    old, new = (f"127.0.0.1:{free_port()}" for _ in range(2))
    fixed.pool["timeouts"]["probation"] = "20s"
    fixed.listen_on(old)
    fixed.start()
    fixed.write_app("deadly", tail="\ndef application(environ, start_response):\n    os._exit(1)\n")
    fixed.listen_on(new)
    fixed.save()
    assert fixed.ask_reload() == ""
    with CountingClient(new, threads=1, keep_alive=False):
        fixed.wait_for_event("generation_rollback", generation=2, to=1)
        fixed.wait_for_status(settled(1))
    with CountingClient(old) as client:
        client.wait(20)
    client.result().check()
    fixed.wait_for_event("listener_closed", listen=new)
    with pytest.raises(ConnectionRefusedError):
        ask(fixed, address=new)


# --- listeners --------------------------------------------------------------------------------------------------------


def test_a_port_is_added_and_dropped(fixed: Daemon) -> None:
    first, second = (f"127.0.0.1:{free_port()}" for _ in range(2))
    fixed.listen_on(first)
    fixed.start()
    stays = http.client.HTTPConnection(first, timeout=10)
    try:
        kept(stays)
        with Traffic(fixed) as traffic:
            fixed.listen_on(first, second)
            fixed.save()
            assert fixed.ask_reload() == ""
            with CountingClient(second) as client:
                client.wait(50)
        traffic.check()
        client.result().check()
        assert fixed.status()["pools"]["web"]["listen"] == [first, second]
        with Traffic(fixed, address=second) as traffic:
            held = fixed.hold("a", first)
            fixed.listen_on(second)
            fixed.save()
            assert fixed.ask_reload() == ""
            fixed.wait_for_event("listener_closed", listen=first)
            with pytest.raises(ConnectionRefusedError):
                ask(fixed, address=first)
            held.finish()
        traffic.check()
        # Whoever was connected stays so.
        assert kept(stays)[1] in fixed.pids()
    finally:
        stays.close()


def test_a_port_moves(fixed: Daemon) -> None:
    """Clients of the old port are refused in the end, but nobody who was let in is cut off."""
    old, new = (f"127.0.0.1:{free_port()}" for _ in range(2))
    fixed.listen_on(old)
    fixed.start()
    with Traffic(fixed) as traffic:
        fixed.listen_on(new)
        fixed.save()
        assert fixed.ask_reload() == ""
        with CountingClient(new) as client:
            client.wait(50)
        fixed.wait_for_event("listener_closed", listen=old)
    client.result().check()
    # The kernel resets what still waits for an accept when a port is closed: no client meets that twice.
    reset = [outcome for outcome in traffic.failed if outcome.failure is not Failure.REFUSED]
    assert {outcome.failure for outcome in reset} <= {Failure.RESET}, reset
    assert len(reset) <= 4, reset
    with socket.create_server(("127.0.0.1", int(old.rpartition(":")[2]))):
        pass


def test_a_port_that_is_taken_costs_nothing(fixed: Daemon) -> None:
    fixed.start()
    with Traffic(fixed) as traffic, socket.create_server(("127.0.0.1", 0)) as other:
        before = sorted(fixed.pids())
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        fixed.pool["listen"] = ["systemd:web", taken]
        fixed.save()
        done = fixed.reload()
        assert done.code == 1
        assert taken in done.err
        assert sorted(fixed.pids()) == before
    traffic.check()


def test_a_unix_socket_is_added_and_dropped(fixed: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    fixed.start()
    with Traffic(fixed) as traffic:
        fixed.pool["listen"] = ["systemd:web", {"address": f"unix:{path}", "mode": "0600"}]
        fixed.save()
        assert fixed.ask_reload() == ""
        assert path.stat().st_mode & 0o777 == 0o600
        with CountingClient(f"unix:{path}") as client:
            client.wait(50)
            fixed.write_app("2")
            assert fixed.ask_reload() == ""
            client.wait(50)
        client.result().check()
        fixed.pool["listen"] = "systemd:web"
        fixed.save()
        assert fixed.ask_reload() == ""
        fixed.wait_for_event("listener_closed", listen=f"unix:{path}")
        assert not os.path.lexists(path)
    traffic.check()
