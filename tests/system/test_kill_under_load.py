"""Kills, stops, shortages and crash loops while clients count every request: a fault costs what it held, no more."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.child import needs_root
from tests.support.counting_client import Failure
from tests.system.daemon import ROOT, Daemon, free_port
from tests.system.shell import python_for_nobody
from tests.system.traffic import Traffic, ask, number_of, settled, wait_titled


@pytest.fixture
def fixed(daemon: Daemon) -> Daemon:
    """Two workers, whatever the load, so that nothing but the test changes who serves."""
    daemon.pool["workers"] = {"start": 2, "min_spare": 1, "max_spare": 2, "max": 2}
    return daemon


def whole(count: int) -> Callable[[dict[str, Any]], bool]:
    """For `wait_for_status`: so many workers serve, and there is nobody else."""

    def look(status: dict[str, Any]) -> bool:
        states = [worker["state"] for worker in status["pools"]["web"]["workers"]]
        return len(states) == count and set(states) <= {"idle", "busy"}

    return look


def used(pid: int) -> float:
    """Processor time that a process has used, seconds."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- a worker ---------------------------------------------------------------------------------------------------------


def test_a_worker_is_killed_every_100_ms(daemon: Daemon) -> None:
    """Only requests that a killed process held fail, one for each at most, and the log names them."""
    daemon.pool["workers"] = {"start": 4, "min_spare": 1, "max_spare": 4, "max": 4}
    daemon.start()
    chance = random.Random(4)
    killed: list[int] = []
    with Traffic(daemon, kept=0, fresh=4, path="/sleep/5") as traffic:
        until = time.monotonic() + 3
        while time.monotonic() < until:
            victim = chance.choice(daemon.pids())
            os.kill(victim, signal.SIGKILL)
            killed.append(victim)
            time.sleep(0.1)  # the storm's own pace
        daemon.wait_for_status(whole(4))
        end = time.monotonic()
        traffic.wait(50)
    assert len(killed) >= 20
    exits = {int(event["pid"]): event for event in daemon.events("worker_exit", cause="killed by signal 9 (SIGKILL)")}
    assert exits.keys() == set(killed)
    named = {number_of(event["request"]) for event in exits.values() if "request" in event.fields}
    lost = {outcome.number for outcome in traffic.failed}
    assert len(lost) <= len(killed), traffic.failed
    # A moment lies between reading a request and writing its name down.
    assert len(lost - named) <= len(killed) // 5, (sorted(lost), sorted(named))
    assert len(named) > len(killed) // 4
    assert {outcome.failure for outcome in traffic.failed} <= {Failure.RESET, Failure.CLOSED}, traffic.failed
    assert not [outcome for outcome in traffic.failed if outcome.started > end]
    assert traffic.worst(0, end) < 3


def test_a_death_names_the_request_that_died_with_it(fixed: Daemon) -> None:
    fixed.start()
    with Traffic(fixed, kept=0) as traffic:
        held = fixed.hold("a")
        os.kill(held.pid, signal.SIGKILL)
        end = fixed.wait_for_event("worker_exit", pid=held.pid)
        assert held.lost()
        assert end.level == "warning"
        assert end["cause"] == "killed by signal 9 (SIGKILL)"
        assert end["request"] == "GET /gate/a HTTP/1.1"
        assert end["client"].startswith("127.0.0.1")
        fixed.wait_for_status(whole(2))
    traffic.check()


def test_kept_connections_of_others_do_not_notice(fixed: Daemon) -> None:
    """Whoever was not connected to the worker that was killed keeps the connection, and gets answers."""
    fixed.start()
    with Traffic(fixed, kept=4) as traffic:
        killed = set()
        for _ in range(5):
            victim = fixed.pids()[0]
            killed.add(victim)
            os.kill(victim, signal.SIGKILL)
            fixed.wait_for_event("worker_exit", pid=victim)
            fixed.wait_for_status(whole(2))
            traffic.wait(20)
    for outcome in traffic.failed:
        assert outcome.pid_before in killed or (not outcome.kept and not outcome.pid), outcome
    assert len(traffic.failed) <= 5 * 4


@pytest.mark.parametrize("continued", [False, True])
def test_a_stopped_worker_is_counted_out(fixed: Daemon, continued: bool) -> None:
    """Replaced after its deadline, taken back if it goes on before; nobody waits for it."""
    fixed.pool["timeouts"]["graceful"] = "10s" if continued else "500ms"
    fixed.start()
    with Traffic(fixed, kept=0) as traffic:
        victim = fixed.pids()[1]
        os.kill(victim, signal.SIGSTOP)
        fixed.wait_for_event("child_stopped", pid=victim)
        fixed.wait_for_status(lambda s: [w["state"] for w in s["pools"]["web"]["workers"]].count("stopped") == 1)
        traffic.wait(50)
        if continued:
            os.kill(victim, signal.SIGCONT)
            fixed.wait_for_event("child_continued", pid=victim)
            fixed.wait_for_status(whole(2))
            assert victim in fixed.pids()
        else:
            end = fixed.wait_for_event("worker_exit", pid=victim)
            assert end["cause"] == "timed out: stopped (SIGSTOP) for too long, killed by signal 9 (SIGKILL)"
            fixed.wait_for_status(whole(2))
            assert victim not in fixed.pids()
        traffic.wait(50)
    # It may have been stopped in the middle of a request, which then dies with it.
    assert len(traffic.failed) <= (0 if continued else 1), traffic.failed


def test_a_request_that_takes_too_long_ends_its_worker(fixed: Daemon) -> None:
    fixed.pool["timeouts"]["request"] = "1s"
    fixed.expect_noise = True  # where it was, as a traceback from C
    fixed.start()
    with Traffic(fixed, kept=0) as traffic:
        held = fixed.hold("a")
        end = fixed.wait_for_event("worker_exit", pid=held.pid)
        assert end["cause"] == "timed out: the request took longer than timeouts.request"
        assert end["request"] == "GET /gate/a HTTP/1.1"
        assert float(end["seconds"]) >= 1
        assert held.lost()
        fixed.wait_for_status(whole(2))
    traffic.check()
    assert "in gate" in fixed.log


# --- template and stem ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("preload", ["auto", "never"])
def test_the_template_and_the_stem_are_killed(fixed: Daemon, preload: str) -> None:
    """The workers do not notice, and the next death is replaced as ever."""
    fixed.pool["preload"] = preload
    fixed.start()
    with Traffic(fixed) as traffic:
        before = sorted(fixed.pids())
        for _ in range(3):
            victim = fixed.template()
            mark = fixed.mark()
            os.kill(victim, signal.SIGKILL)
            end = fixed.wait_for_event("template_exit", pid=victim)
            assert end["cause"] == "killed by signal 9 (SIGKILL)"
            fixed.wait_for_event("template_ready", after=mark)
            os.kill(wait_titled(fixed, "web stem"), signal.SIGKILL)
        assert sorted(fixed.pids()) == before
        traffic.wait(20)
    traffic.check()
    os.kill(before[0], signal.SIGKILL)
    fixed.wait_for_event("worker_exit", pid=before[0])
    fixed.wait_for_status(whole(2))


def test_a_stopped_template_is_replaced(fixed: Daemon) -> None:
    fixed.start()
    with Traffic(fixed, kept=0) as traffic:
        first, second = sorted(fixed.pids())
        template = fixed.template()
        os.kill(template, signal.SIGSTOP)
        fixed.wait_for_event("child_stopped", pid=template)
        os.kill(second, signal.SIGKILL)
        fixed.wait_for_event("worker_exit", pid=second)
        lost = len(traffic.failed)
        end = fixed.wait_for_event("template_exit", pid=template)
        assert "stopped (SIGSTOP) for too long" in end["cause"]
        fixed.wait_for_status(whole(2))
        assert first in fixed.pids()
        traffic.wait(20)
    assert len(traffic.failed) == lost <= 1, traffic.failed


# --- the master -------------------------------------------------------------------------------------------------------


def test_the_master_is_killed(fixed: Daemon) -> None:
    """Its workers finish what they hold and leave; then the port is free and nobody is left."""
    fixed.start()
    with Traffic(fixed) as traffic:
        held = [fixed.hold("a"), fixed.hold("b")]
        killed = time.monotonic()
        fixed.kill_master()
        for request in held:
            request.finish()
    fixed.wait_alone()
    assert len(fixed.events("master_gone")) == 2
    # Answers that had begun were ended; whoever was not served yet was told so at once.
    told = {Failure.REFUSED, Failure.RESET, Failure.CLOSED}
    assert {outcome.failure for outcome in traffic.failed} <= told, traffic.failed
    assert not [outcome for outcome in traffic.failed if outcome.started + outcome.latency < killed]
    host, port = fixed.address.split(":")
    with socket.create_server((host, int(port))):
        pass


def test_a_stopped_master_costs_nothing(fixed: Daemon) -> None:
    fixed.start()
    with Traffic(fixed) as traffic:
        os.kill(fixed.pid, signal.SIGSTOP)
        traffic.wait(100)
        os.kill(fixed.pid, signal.SIGCONT)
        fixed.wait_for_status(whole(2))
    traffic.check()


def test_a_hung_orphan_ends_after_graceful(fixed: Daemon) -> None:
    """A worker without a master that does not finish is ended by its own kernel timer."""
    fixed.pool["timeouts"]["graceful"] = "500ms"
    fixed.expect_noise = True  # the timer leaves a traceback
    fixed.start()
    held = fixed.hold("a")
    fixed.kill_master()
    assert held.lost()
    fixed.wait_alone()


def test_the_next_master_takes_over(new_daemon: Callable[..., Daemon]) -> None:
    """With the socket kept by whoever starts it (systemd's store), a killed master refuses nobody."""
    daemon = new_daemon()
    daemon.keep_listener = True
    daemon.start()
    with Traffic(daemon, kept=0) as traffic:
        held = daemon.hold("a")
        daemon.kill_master()
        daemon.start()
        daemon.expect_exit = 0
        traffic.wait(50)
        held.finish()
    traffic.check()


# --- stopping ---------------------------------------------------------------------------------------------------------


def test_term_lets_requests_finish(fixed: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    address = f"127.0.0.1:{free_port()}"
    fixed.listen_on(address, f"unix:{path}")
    fixed.notify = False  # or the path would stay, for the next master
    fixed.start()
    with Traffic(fixed) as traffic:
        held = [fixed.hold("a"), fixed.hold("b")]
        fixed.signal(signal.SIGTERM)
        fixed.wait_for_status(
            lambda s: (
                s["master"]["state"] == "stopping"
                and all("service stops" in w.get("why", "") for w in s["pools"]["web"]["workers"])
            )
        )
        fixed.signal(signal.SIGTERM)  # an impatient person; it changes nothing
        for request in held:
            request.finish()
        assert fixed.wait_exit() == 0
    fixed.wait_alone()
    for left in (path, fixed.pid_file, fixed.control):
        assert not os.path.lexists(left)
    told = {Failure.REFUSED, Failure.RESET, Failure.CLOSED}
    assert {outcome.failure for outcome in traffic.failed} <= told, traffic.failed
    assert {event["cause"] for event in fixed.events("worker_exit")} == {"asked: service stops"}
    with socket.create_server(("127.0.0.1", int(address.rpartition(":")[2]))):
        pass


def test_term_is_limited_by_graceful(fixed: Daemon) -> None:
    fixed.pool["timeouts"]["graceful"] = "500ms"
    fixed.start()
    held = fixed.hold("a")
    begun = time.monotonic()
    assert fixed.stop() == 0
    assert 0.5 <= time.monotonic() - begun < 3
    assert held.lost()
    end = fixed.wait_for_event("worker_exit", pid=held.pid)
    assert end["request"] == "GET /gate/a HTTP/1.1"


@pytest.mark.parametrize(
    ("signum", "after_term"), [(signal.SIGINT, False), (signal.SIGQUIT, True)], ids=["INT", "QUIT-after-TERM"]
)
def test_a_fast_stop_waits_for_nobody(fixed: Daemon, signum: signal.Signals, after_term: bool) -> None:
    fixed.start()
    held = fixed.hold("a")
    if after_term:
        fixed.signal(signal.SIGTERM)
        fixed.wait_for_event("phase", state="stopping")
    begun = time.monotonic()
    fixed.signal(signum)
    assert fixed.wait_exit() == 0
    assert time.monotonic() - begun < 3
    assert held.lost()


def test_term_ends_who_does_not_run(fixed: Daemon) -> None:
    """Stopped processes see no TERM; the last rung of the ladder is KILL."""
    fixed.pool["timeouts"]["graceful"] = "200ms"
    fixed.start()
    victims = [fixed.pids()[0], fixed.template()]
    for pid in victims:
        os.kill(pid, signal.SIGSTOP)
    assert fixed.stop() == 0
    for name, pid in zip(("worker_exit", "template_exit"), victims, strict=True):
        assert fixed.wait_for_event(name, pid=pid)["cause"].endswith("killed by signal 9 (SIGKILL)")


def test_term_while_it_starts(fixed: Daemon) -> None:
    fixed.write_app("hangs", head="print('hangs')\ntime.sleep(3600)\n")
    fixed.start(ready=False)
    fixed.wait_for_event("app_output", line="hangs")
    fixed.signal(signal.SIGTERM)
    assert fixed.wait_exit() == 0


def test_a_stop_ends_what_the_application_left_behind(fixed: Daemon) -> None:
    """Orphans of the application are adopted by the master, which is a subreaper."""
    fixed.write_app(tail="import subprocess\nDETACH = 'sleep 300 & sleep 301 &'\n" + DETACHING)
    fixed.start()
    ask(fixed)
    wait_titled(fixed, "sleep 300")
    wait_titled(fixed, "sleep 301")
    assert fixed.stop() == 0
    fixed.wait_alone(1)


DETACHING = """
good = application

def application(environ, start_response):
    subprocess.Popen(DETACH, shell=True, start_new_session=True).wait()
    return good(environ, start_response)
"""


@pytest.mark.parametrize("preload", ["auto", "never"])
def test_term_during_a_reload(fixed: Daemon, preload: str) -> None:
    fixed.pool["preload"] = preload
    fixed.start()
    with Traffic(fixed):
        held = fixed.hold("a")
        fixed.write_app("hangs", head="print('hangs')\ntime.sleep(3600)\n")
        fixed.signal(signal.SIGHUP)
        fixed.wait_for_event("app_output", line="hangs")
        fixed.signal(signal.SIGTERM)
        fixed.wait_for_event("phase", state="stopping")
        fixed.signal(signal.SIGHUP)  # too late, and harmless
        assert "the service stops" in fixed.ask_reload()
        held.finish()
    assert fixed.wait_exit() == 0
    assert len(fixed.events("reload_start")) == 1


def test_winch_drains_and_hup_brings_back(fixed: Daemon) -> None:
    fixed.keep_listener = True
    fixed.start()
    with Traffic(fixed, kept=0) as traffic:
        held = fixed.hold("a")
        fixed.signal(signal.SIGWINCH)
        fixed.wait_for_event("phase", state="drained")
        held.finish()
        fixed.wait_for_status(lambda status: not status["pools"]["web"]["workers"])
        fixed.signal(signal.SIGHUP)
        fixed.wait_for_status(whole(2))
        traffic.wait(20)
    # Who came meanwhile waited in the queue.
    traffic.check()


# --- all of it --------------------------------------------------------------------------------------------------------


def test_anything_at_any_time(daemon: Daemon) -> None:
    """Any process but the master is killed or stopped, between reloads, resizes and reopened logs."""
    daemon.pool["workers"] = {"start": 4, "min_spare": 2, "max_spare": 6, "max": 8}
    daemon.start()
    chance = random.Random(1)
    version, kills = 1, 0
    with Traffic(daemon, kept=0, fresh=4, path="/sleep/2") as traffic:
        until = time.monotonic() + 2
        while time.monotonic() < until:
            others = sorted(daemon.processes().keys() - {daemon.pid})
            what = chance.randrange(10)
            with contextlib.suppress(ProcessLookupError):
                if what < 4:
                    version += 1
                    daemon.write_app(str(version))
                    daemon.signal(signal.SIGHUP)
                elif what < 8:
                    os.kill(chance.choice(others), signal.SIGKILL)
                    kills += 1
                elif what == 8:
                    daemon.signal(chance.choice([signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1, signal.SIGUSR2]))
                else:
                    victim = chance.choice(others)
                    os.kill(victim, signal.SIGSTOP)
                    time.sleep(0.05)
                    os.kill(victim, signal.SIGCONT)
            time.sleep(0.04)  # the storm's own pace
        daemon.write_app("last")
        # The killed ones may have been needed for a reload that was under way; the one after it has nothing in its way.
        assert "" in (daemon.ask_reload(), daemon.ask_reload())
        daemon.wait_for_status(settled(daemon.status()["master"]["generation"]))
        end = time.monotonic()
        assert ask(daemon)[0] == "last"
        traffic.wait(50)
    assert len(traffic.failed) <= kills, traffic.failed
    assert not [outcome for outcome in traffic.failed if outcome.started > end]


# --- crash loops and shortages ----------------------------------------------------------------------------------------


def test_a_crash_loop_of_workers_is_slow_and_ends_by_itself(fixed: Daemon) -> None:
    """preload: never; the code on the disk breaks while the service runs, and is mended."""
    fixed.pool["preload"] = "never"
    fixed.start()
    with Traffic(fixed, kept=0) as traffic:
        fixed.write_app("broken", head="raise RuntimeError('by intent')\n")
        survivor, victim = sorted(fixed.pids())
        os.kill(victim, signal.SIGKILL)
        fixed.wait_for_event("worker_exit", pid=victim)
        lost = len(traffic.failed)
        begun, before = time.monotonic(), used(fixed.pid)
        fixed.wait_for_event("worker_failed", count=5)
        seconds = time.monotonic() - begun
        # 2 are free, then there are pauses of 0.1, 0.2, 0.4 s and so on.
        assert seconds > 0.25
        assert used(fixed.pid) - before < 0.5 * seconds + 0.1
        status = fixed.wait_for_status(lambda s: "next_try_in" in s["pools"]["web"])
        assert "RuntimeError: by intent" in status["pools"]["web"]["last_error"]
        fixed.wait_for_notice("STATUS", lambda text: "RuntimeError: by intent" in text)
        assert survivor in fixed.pids()
        fixed.write_app("1")
        fixed.wait_for_status(whole(2))
        fixed.wait_for_event("pool_recovered")
        assert "failures" not in fixed.status()["pools"]["web"]
        traffic.wait(20)
    assert len(traffic.failed) == lost <= 1, traffic.failed


def test_a_crash_loop_of_templates_is_slow_and_ends_by_itself(fixed: Daemon) -> None:
    """preload: auto; a template that has to be loaded anew meets broken code. The workers go on."""
    fixed.start()
    with Traffic(fixed) as traffic:
        before = sorted(fixed.pids())
        fixed.write_app("broken", head="raise RuntimeError('by intent')\n")
        begun = time.monotonic()
        os.kill(fixed.template(), signal.SIGKILL)
        fixed.wait_for_event("template_failed", count=5)
        assert time.monotonic() - begun > 0.25
        status = fixed.wait_for_status(lambda s: "next_try_in" in s["pools"]["web"])
        assert "RuntimeError: by intent" in status["pools"]["web"]["last_error"]
        fixed.write_app("1")
        mark = fixed.mark()
        fixed.wait_for_event("template_ready", after=mark)
        assert sorted(fixed.pids()) == before
        traffic.wait(20)
    traffic.check()
    os.kill(before[0], signal.SIGKILL)
    fixed.wait_for_event("worker_exit", pid=before[0])
    fixed.wait_for_status(whole(2))
    fixed.wait_for_status(lambda s: "failures" not in s["pools"]["web"])


def python_for_others() -> str:
    """A Python that another user can run; root's home may be closed to them."""
    return python_for_nobody() or pytest.skip(
        "no Python of this machine that has preforkd's needs can be run by another user"
    )


@needs_root
@pytest.mark.may_skip("where Python or this tree is in a directory that is root's alone")
def test_no_process_to_be_had(new_daemon: Callable[..., Daemon], open_folder: Path) -> None:
    """fork says EAGAIN: the service goes on with what it has, says so, does not spin, and heals."""
    user = 50_000 + os.getpid() % 10_000  # nobody's: the limit counts all processes of a user
    python = python_for_others()
    daemon = new_daemon(open_folder / "d")
    for path in (daemon.folder, daemon.app_folder, daemon.gates):
        os.chown(path, user, user)
    daemon.folder.joinpath("notify.sock").chmod(0o666)
    daemon.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    daemon.pool["workers"] = {"start": 3, "min_spare": 1, "max_spare": 3, "max": 3}
    most = 12
    daemon.start(identity=(user, user), executable=python, limits=[(resource.RLIMIT_NPROC, most)])
    with Traffic(daemon, kept=0) as traffic, contextlib.ExitStack() as crowd:
        wait_titled(daemon, "web stem")
        # Somebody else's processes of the same user, to whom the limit does not apply, use it up.
        for _ in range(most):
            other = subprocess.Popen(["sleep", "60"], user=user, group=user, extra_groups=[])
            crowd.callback(other.wait)
            crowd.callback(other.kill)
        victim = max(daemon.pids())
        os.kill(victim, signal.SIGKILL)
        daemon.wait_for_event("worker_exit", pid=victim)
        lost = len(traffic.failed)
        daemon.wait_for_event("fork_failed", error=lambda e: "Resource temporarily unavailable" in e, count=2)
        begun, before = time.monotonic(), sum(used(pid) for pid in (daemon.pid, daemon.template()))
        daemon.wait_for_event("fork_failed", count=4)
        seconds = time.monotonic() - begun
        assert sum(used(pid) for pid in (daemon.pid, daemon.template())) - before < 0.5 * seconds + 0.1
        assert seconds > 0.2
        shown = daemon.status()["pools"]["web"]
        assert shown["shortages"] >= 2
        assert "cannot fork: Resource temporarily unavailable" in shown["last_error"]
        assert "cannot fork" in daemon.command("status", "{file}").out
        daemon.wait_for_notice("STATUS", lambda text: "cannot fork" in text)
        # A reload needs processes as well; that it fails costs nothing.
        assert "Resource temporarily unavailable" in daemon.ask_reload()
        traffic.wait(20)
        crowd.close()
        daemon.wait_for_status(lambda s: whole(3)(s) and "last_error" not in s["pools"]["web"])
        traffic.wait(20)
    assert len(traffic.failed) == lost <= 1, traffic.failed


@needs_root
@pytest.mark.may_skip("where Python or this tree is in a directory that is root's alone")
def test_a_start_without_a_process_to_be_had(new_daemon: Callable[..., Daemon], open_folder: Path) -> None:
    user = 40_000 + os.getpid() % 10_000
    python = python_for_others()
    daemon = new_daemon(open_folder / "d")
    daemon.environment["PYTHONPATH"] = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    daemon.expect_exit = 1
    daemon.expect_noise = True  # the sentence
    daemon.start(ready=False, identity=(user, user), executable=python, limits=[(resource.RLIMIT_NPROC, 1)])
    assert daemon.wait_exit() == 1
    daemon.wait_quiet()
    assert daemon.log.startswith("preforkd: cannot fork a process to check ")
    assert "Resource temporarily unavailable" in daemon.log
    assert len(daemon.log.splitlines()) == 1


# --- recycling and sizing ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("limit", "value", "count"),
    [("requests", 30, 6), ("age", "1s", 2), ("memory", "1M", 2)],
    ids=["requests", "age", "memory"],
)
def test_recycling_costs_nobody(fixed: Daemon, limit: str, value: object, count: int) -> None:
    fixed.pool["recycle"] = {limit: value}
    fixed.start()
    with Traffic(fixed) as traffic:
        fixed.wait_for_event("worker_recycle", limit=limit, count=count)
        fixed.wait_for_event("worker_exit", cause="recycled", count=count)
        traffic.wait(20)
    traffic.check()
    assert {event.level for event in fixed.events("worker_exit", cause="recycled")} == {"info"}
    fixed.wait_for_status(lambda status: "failures" not in status["pools"]["web"])


def test_the_pool_grows_by_need_and_shrinks_to_its_limit(daemon: Daemon) -> None:
    daemon.pool["workers"] = {"start": 1, "min_spare": 1, "max_spare": 2, "max": 12}
    daemon.start()
    with Traffic(daemon, kept=0, fresh=10, path="/sleep/50", pace=0) as traffic:
        daemon.wait_for_status(lambda status: len(status["pools"]["web"]["workers"]) >= 10)
        traffic.wait(20)
        grown = daemon.events("pool_grow")
        assert any("missing for min_spare=1" in event["reason"] for event in grown)
        assert sum(int(event["workers"]) for event in grown) >= 10
        daemon.pool["workers"]["max"] = 3
        daemon.save()
        assert daemon.ask_reload() == ""
        daemon.wait_for_status(lambda status: len(status["pools"]["web"]["workers"]) <= 3)
        daemon.wait_for_event("pool_limit", reason=lambda text: "workers.max reached" in text)
        traffic.wait(20)
    traffic.check()


def test_ttin_and_ttou(daemon: Daemon) -> None:
    daemon.pool["workers"] = {"start": 2, "min_spare": 1, "max_spare": 2, "max": 4}
    daemon.start()
    with Traffic(daemon) as traffic:
        before = daemon.status()["pools"]["web"]["limits"]["bias"]
        daemon.signal(signal.SIGTTIN)
        daemon.wait_for_status(lambda s: s["pools"]["web"]["limits"]["bias"] == before + 1)
        daemon.wait_for_status(lambda s: len(s["pools"]["web"]["workers"]) >= 3)
        for _ in range(2):
            count = len(daemon.events("signal", signal="SIGTTOU"))
            daemon.signal(signal.SIGTTOU)
            daemon.wait_for_event("signal", signal="SIGTTOU", count=count + 1)
        daemon.wait_for_status(whole(1))
        traffic.wait(20)
    traffic.check()


# --- what an import leaves behind -------------------------------------------------------------------------------------

THREAD = "import threading\nthreading.Thread(target=time.sleep, args=(3600,), name='collector', daemon=True).start()\n"
SOCKET = "import socket\nLEFT = socket.create_server(('127.0.0.1', 0))\n"


@pytest.mark.parametrize("preload", ["auto", "always", "never"])
def test_what_the_import_left_behind_is_named(fixed: Daemon, preload: str) -> None:
    """auto loads in each worker instead, always forks all the same, never does not look."""
    fixed.pool["preload"] = preload
    fixed.write_app("1", head=THREAD + SOCKET)
    fixed.start()
    assert ask(fixed)[0] == "1"
    unsafe = fixed.events("template_unsafe")
    assert len(unsafe) == (preload != "never")
    for event in unsafe:
        assert event.level == "warning"
        assert "the thread 'collector' is running" in event["findings"]
        assert "a socket is open (bound to 127.0.0.1:" in event["findings"]
    assert fixed.status()["pools"]["web"]["template"]["preload"] == (preload == "always")
    # So it is on the next time, too.
    fixed.write_app("2", head=THREAD + SOCKET)
    assert fixed.ask_reload() == ""
    fixed.wait_for_status(settled(2))
    assert ask(fixed)[0] == "2"
