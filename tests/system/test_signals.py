"""The signals of DESIGN 12, to the master and to those who never asked for one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from preforkd.errors import NotRunning
from preforkd.master.loop import SIGNALS
from tests.system.daemon import PATIENCE, ROOT, Daemon
from tests.system.shell import Shell, fetch


def asked(daemon: Daemon, signum: int) -> int:
    """Send a signal to the master and wait until it has said so; the place in the log before it."""
    mark = daemon.mark()
    daemon.signal(signum)
    daemon.wait_for_event("signal", after=mark, signal=signal.Signals(signum).name, effect=SIGNALS[signum])
    return mark


# --- the end ---------------------------------------------------------------------------------------------------------


def test_term_finishes_what_is_being_served(daemon: Daemon) -> None:
    daemon.start()
    held = [daemon.hold("one"), daemon.hold("two")]
    asked(daemon, signal.SIGTERM)
    daemon.wait_for_event("phase", state="stopping")
    for one in held:
        one.finish()
    assert daemon.wait_exit() == 0
    assert [event["cause"] for event in daemon.events("worker_exit")] == ["asked: service stops"] * len(
        daemon.events("worker_exit")
    )


def test_term_is_limited_by_graceful(daemon: Daemon) -> None:
    daemon.pool["timeouts"]["graceful"] = "200ms"
    daemon.start()
    held = daemon.hold("one")
    asked(daemon, signal.SIGTERM)
    assert held.lost()
    assert daemon.wait_exit() == 0
    event = daemon.wait_for_event("worker_exit", pid=held.pid)
    assert event["request"] == "GET /gate/one HTTP/1.1" and event["cause"].startswith("asked: service stops")
    assert event.level == "warning"  # somebody got half an answer


def test_term_twice_is_one_stop(daemon: Daemon) -> None:
    daemon.start()
    held = daemon.hold("one")
    asked(daemon, signal.SIGTERM)
    asked(daemon, signal.SIGTERM)
    held.finish()
    assert daemon.wait_exit() == 0
    assert len(daemon.events("phase")) == 1


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGQUIT])
def test_int_and_quit_do_not_wait(daemon: Daemon, signum: int) -> None:
    daemon.start()
    held = daemon.hold("one")
    asked(daemon, signum)
    assert held.lost()
    assert daemon.wait_exit() == 0


def test_int_hurries_a_stop_that_waits(daemon: Daemon) -> None:
    daemon.start()
    held = daemon.hold("one")
    asked(daemon, signal.SIGTERM)
    asked(daemon, signal.SIGINT)
    assert held.lost()
    assert daemon.wait_exit() == 0


def test_a_storm_of_signals_at_the_end_does_not_change_the_exit_status(daemon: Daemon) -> None:
    daemon.start()
    process = daemon.process
    assert process is not None
    while process.poll() is None:
        for signum in (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGINT):
            os.kill(process.pid, signum)
    assert daemon.wait_exit() == 0


def test_term_during_the_start(daemon: Daemon) -> None:
    daemon.write_app(head="import signal\nprint('importing')\nsignal.pause()\n")
    daemon.start(ready=False)
    daemon.wait_for_event("app_output", line="importing")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait_exit() == 0


def test_hup_during_a_stop_changes_nothing(daemon: Daemon) -> None:
    daemon.start()
    held = daemon.hold("one")
    asked(daemon, signal.SIGTERM)
    asked(daemon, signal.SIGHUP)
    held.finish()
    assert daemon.wait_exit() == 0
    assert not daemon.events("reload_start")


# --- HUP -------------------------------------------------------------------------------------------------------------


def test_hup_reloads(daemon: Daemon) -> None:
    daemon.start()
    daemon.write_app(version="2")
    asked(daemon, signal.SIGHUP)
    daemon.wait_for_event("reload_done", generation=2)
    assert fetch(daemon.address).text == "2"


@pytest.mark.parametrize("preload", ["auto", "never"])
def test_new_code_takes_effect_whether_or_not_it_is_loaded_beforehand(daemon: Daemon, preload: str) -> None:
    daemon.pool["preload"] = preload
    daemon.start()
    assert fetch(daemon.address).text == "1"
    daemon.write_app(version="2")
    assert fetch(daemon.address).text == "1"
    asked(daemon, signal.SIGHUP)
    daemon.wait_for_event("reload_done", generation=2)
    assert {fetch(daemon.address).text for _ in range(10)} == {"2"}
    template = daemon.status()["pools"]["web"]["template"]
    assert template["preload"] is (preload != "never")


def test_a_hup_can_cure_a_start_that_hangs(daemon: Daemon) -> None:
    daemon.write_app(head="import signal\nprint('importing')\nsignal.pause()\n")
    daemon.start(ready=False)
    daemon.wait_for_event("app_output", line="importing")
    daemon.write_app(version="cured")
    asked(daemon, signal.SIGHUP)
    daemon.wait_for_event("serving")
    assert fetch(daemon.address).text == "cured"


def test_a_hup_with_a_mistake_in_a_start_that_hangs_is_a_failed_start(daemon: Daemon) -> None:
    daemon.write_app(head="import signal\nprint('importing')\nsignal.pause()\n")
    daemon.start(ready=False)
    daemon.wait_for_event("app_output", line="importing")
    daemon.write_config("pools: nonsense")
    asked(daemon, signal.SIGHUP)
    daemon.expect_exit = 1
    assert daemon.wait_exit() == 1
    assert "pools" in daemon.wait_for_event("start_failed").body


# --- sizes -----------------------------------------------------------------------------------------------------------


def test_ttin_and_ttou_are_one_worker_more_and_one_fewer(daemon: Daemon) -> None:
    daemon.pool["workers"] = {"start": 2, "min_spare": 1, "max_spare": 2, "max": 4}
    daemon.start()
    asked(daemon, signal.SIGTTIN)
    daemon.wait_for_status(lambda s: s["pools"]["web"]["counts"]["idle"] == 3)
    for bias in (0, -1, -1):  # never below one worker
        asked(daemon, signal.SIGTTOU)
        assert daemon.status()["pools"]["web"]["limits"]["bias"] == bias
    daemon.wait_for_status(lambda s: sum(s["pools"]["web"]["counts"].values()) == 1)
    assert fetch(daemon.address).status == 200
    asked(daemon, signal.SIGTTIN)
    daemon.wait_for_status(lambda s: s["pools"]["web"]["counts"]["idle"] == 2)


def test_winch_drains_and_hup_brings_back(daemon: Daemon) -> None:
    daemon.start()
    held = daemon.hold("one")
    asked(daemon, signal.SIGWINCH)
    daemon.wait_for_status(lambda s: [w["pid"] for w in s["pools"]["web"]["workers"]] == [held.pid])
    held.finish()
    status = daemon.wait_for_status(lambda s: s["pools"]["web"]["workers"] == [])
    assert status["master"]["state"] == "drained"
    asked(daemon, signal.SIGHUP)
    daemon.wait_for_event("reload_done")
    assert fetch(daemon.address).text == "1"
    assert daemon.status()["master"]["state"] == "running"


def test_usr2_says_that_it_cannot_yet(daemon: Daemon) -> None:
    daemon.start()
    mark = asked(daemon, signal.SIGUSR2)
    assert "not yet" in daemon.wait_for_event("upgrade_refused", after=mark)["reason"]
    assert fetch(daemon.address).status == 200


# --- to others than the master ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_to_a_worker_is_a_graceful_leave(daemon: Daemon, signum: int) -> None:
    daemon.start()
    held = daemon.hold("one")
    os.kill(held.pid, signum)
    held.finish()
    event = daemon.wait_for_event("worker_exit", pid=held.pid)
    assert event["cause"] == "asked by a signal from outside" and event.level == "info"
    daemon.wait_for_event("worker_ready", after=event.at - 5)
    assert fetch(daemon.address).status == 200


def test_signals_for_the_master_are_nothing_to_the_others(daemon: Daemon) -> None:
    """As from ``pkill -USR1 preforkd``, or a terminal that is resized or closed."""
    daemon.start()
    before = daemon.pids(), daemon.template()
    for signum in (signal.SIGUSR1, signal.SIGWINCH, signal.SIGHUP, signal.SIGINT, signal.SIGTTIN, signal.SIGTTOU):
        os.kill(daemon.template(), signum)
    for signum in (signal.SIGUSR1, signal.SIGWINCH, signal.SIGTTIN, signal.SIGTTOU, signal.SIGPIPE):
        for pid in daemon.pids():
            os.kill(pid, signum)
    assert fetch(daemon.address).status == 200
    assert daemon.ask_reload() == ""
    assert (daemon.events("worker_exit", cause=lambda c: "signal" in c), before) == ([], before)
    assert not daemon.events("template_exit", cause=lambda c: "signal" in c)


def test_ctrl_c_in_a_terminal_ends_the_service_once_and_quietly(shell: Shell) -> None:
    """The whole group receives it; the master is the one who acts on it."""
    shell.settings["log"] = {"level": "info"}
    with shell.popen("run", "{file}", start_new_session=True) as process:
        assert process.stderr is not None
        log = ""
        while " serving " not in log:
            log += process.stderr.readline()
        os.killpg(process.pid, signal.SIGINT)
        log += process.communicate(timeout=PATIENCE)[1]
    assert process.returncode == 0
    assert (
        "Traceback" not in log and "warning worker_exit" not in log and log.splitlines()[-1].count("master_exit") == 1
    )


@pytest.mark.parametrize("ignored", [signal.SIGHUP, signal.SIGINT])
def test_signals_that_were_ignored_by_whoever_started_it_work(shell: Shell, ignored: int) -> None:
    """``nohup preforkd run`` still reloads by HUP; ``preforkd run &`` in a script still stops by INT."""

    def ignore() -> None:
        signal.signal(ignored, signal.SIG_IGN)

    shell.save()
    process = subprocess.Popen(
        [sys.executable, "-m", "preforkd", "run", str(shell.file)],
        cwd=ROOT, stderr=subprocess.PIPE, preexec_fn=ignore, text=True,  # noqa: PLW1509
    )  # fmt: skip
    try:
        while not _serves(shell):
            assert process.poll() is None
        process.send_signal(ignored)
        if ignored == signal.SIGHUP:
            while shell.ask()["master"]["generation"] < 2:
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()


def _serves(shell: Shell) -> bool:
    try:
        return bool(shell.ask()["master"]["generation"])
    except NotRunning:
        return False  # not yet there, or bound and not listening yet


def test_blocked_signals_are_unblocked(shell: Shell) -> None:
    shell.save()

    def block() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGCHLD, signal.SIGALRM})

    process = subprocess.Popen(
        [sys.executable, "-m", "preforkd", "run", str(shell.file)],
        cwd=ROOT, stderr=subprocess.PIPE, preexec_fn=block, text=True,  # noqa: PLW1509
    )  # fmt: skip
    try:
        while not _serves(shell):
            assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE) == 0
    finally:
        process.kill()
        process.communicate()
