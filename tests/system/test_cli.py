"""The commands: what they print, where, and with which exit status they end."""

from __future__ import annotations

import contextlib
import io
import json
import os
import pwd
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from preforkd import config as configuration
from preforkd.cli import main
from preforkd.stamp import running_version
from tests.support.child import in_child, needs_root
from tests.system.daemon import ROOT, Daemon
from tests.system.shell import Shell, fetch

# --- the command line itself -----------------------------------------------------------------------------------------


def test_version_and_help(shell: Shell) -> None:
    outcome = shell.run("--version")
    assert (outcome.code, outcome.out) == (0, f"preforkd {running_version()}\n")
    outcome = shell.run("--help")
    assert outcome.code == 0
    for command in ("run", "start", "stop", "reload", "status", "check", "reopen", "schema", "sample"):
        assert f"    {command} " in outcome.out


@pytest.mark.parametrize("arguments", [(), ("strat",), ("status", "--jason")], ids=" ".join)
def test_wrong_usage(shell: Shell, arguments: tuple[str, ...]) -> None:
    outcome = shell.run(*arguments)
    assert outcome.code == 2 and outcome.out == "" and outcome.err.startswith("usage: preforkd")


def test_schema_and_sample(shell: Shell) -> None:
    outcome = shell.run("schema")
    assert outcome.code == 0
    assert json.loads(outcome.out) == json.loads(json.dumps(configuration.schema()))
    outcome = shell.run("sample")
    assert outcome.code == 0
    assert yaml.safe_load(outcome.out)["pools"]
    shell.text = outcome.out
    outcome = shell.run("check", "--syntax", "{file}")
    assert outcome.code == 0, outcome.err


@pytest.mark.parametrize("command", ["status", "stop"])
def test_nobody_is_there_to_ask(shell: Shell, command: str) -> None:
    outcome = shell.run(command, "{file}")
    assert outcome.code == 1 and outcome.out == ""
    assert outcome.err.startswith("preforkd: not running: ") and str(shell.control) in outcome.err


# --- check -----------------------------------------------------------------------------------------------------------


def test_check_says_that_all_is_fine(shell: Shell) -> None:
    outcome = shell.run("check", "{file}")
    assert (outcome.code, outcome.text) == (0, f"{shell.file}: fine (web)\n")
    assert not shell.log.exists() and not shell.control.exists() and not shell.pid_file.exists()


def test_check_shows_every_mistake_with_its_place(shell: Shell) -> None:
    shell.text = "pools:\n  web:\n    listn: x\n    app: a:b\n    workers: {max: many}\n"
    outcome = shell.run("check", "{file}")
    assert outcome.code == 1 and outcome.out == ""
    lines = outcome.err.splitlines()
    assert any(line.startswith(f"{shell.file}:3:5: pools.web.listn: ") and "listen" in line for line in lines)
    assert any(line.startswith(f"{shell.file}:5:20: pools.web.workers.max: ") for line in lines)


def test_check_loads_every_application(shell: Shell) -> None:
    shell.write("import sys\nprint('hello from the import')\n1/0\n", "broken")
    shell.write("import os\nos._exit(9)\n", "gone")
    for number, name in enumerate(("broken", "gone"), 2):
        shell.settings["pools"][name] = {"listen": f"127.0.0.{number}:0", "app": name, "directory": str(shell.folder)}
    outcome = shell.run("check", "{file}")
    assert outcome.code == 1
    assert f"{shell.file}: pools.broken.app: " in outcome.err and "ZeroDivisionError" in outcome.err
    assert f"{shell.file}: pools.gone.app: " in outcome.err and "exit status 9" in outcome.err
    assert "pools.web.app" not in outcome.err
    outcome = shell.run("check", "--syntax", "{file}")
    assert (outcome.code, outcome.out) == (0, f"{shell.file}: fine (web, broken, gone)\n")


def test_check_asks_for_the_health_of_the_application(shell: Shell) -> None:
    shell.write("""
def application(environ, start_response):
    start_response("500 No" if environ["PATH_INFO"] == "/no" else "200 OK", [])
    return [b""]
""")
    shell.pool["health"] = "/no"
    outcome = shell.run("check", "{file}")
    assert outcome.code == 1 and "/no answered 500" in outcome.err


def test_check_tries_to_store_a_body(shell: Shell) -> None:
    shell.pool["body"] = {"directory": str(shell.folder / "spool")}
    outcome = shell.run("check", "{file}")
    assert outcome.code == 1
    assert f"body.directory: no files can be made in {shell.folder}/spool: No such file or directory" in outcome.err
    (shell.folder / "spool").mkdir()
    assert shell.run("check", "{file}").code == 0
    assert list((shell.folder / "spool").iterdir()) == []
    shell.pool["body"] = {"directory": "/proc", "buffer": 0}
    assert shell.run("check", "{file}").code == 0


def test_check_beside_a_running_service_touches_nothing(shell: Shell) -> None:
    assert shell.start().code == 0
    before = shell.ask()
    shell.pool["listen"] = shell.address
    assert shell.run("check", "{file}").code == 0
    after = shell.ask()
    assert after["master"]["pid"] == before["master"]["pid"] and after["master"]["generation"] == 1


def test_check_shows_what_includes_say(shell: Shell) -> None:
    (shell.folder / "conf.d").mkdir()
    (shell.folder / "conf.d" / "more.yaml").write_text("pools:\n  more:\n    app: site_app\n")
    shell.settings["include"] = "conf.d/*.yaml"
    outcome = shell.run("check", "{file}")
    assert outcome.code == 1 and f"{shell.folder}/conf.d/more.yaml:" in outcome.err and "listen" in outcome.err


# --- status ----------------------------------------------------------------------------------------------------------


def test_status_for_people_and_for_programs(shell: Shell) -> None:
    assert shell.start().code == 0
    worker = shell.fetch().pid
    outcome = shell.run("status", "{file}")
    assert outcome.code == 0 and outcome.err == ""
    assert f"pid {shell.pid}" in outcome.out and f"pid {worker}" in outcome.out and "1 requests" in outcome.out
    outcome = shell.run("status", "--json", "{file}")
    status = json.loads(outcome.out)
    assert {"pid", "generation", "started", "state"} <= set(status["master"])
    assert status["master"]["state"] == "running"
    (shown,) = [one for one in status["pools"]["web"]["workers"] if one["pid"] == worker]
    assert (shown["slot"], shown["generation"], shown["requests"]) == (0, 1, 1)


def test_the_reader_of_the_status_may_go_away(shell: Shell) -> None:
    assert shell.start().code == 0
    reading, writing = os.pipe()
    os.close(reading)
    with shell.popen("status", "{file}", stdout=writing) as process:
        os.close(writing)
        _, err = process.communicate()
    assert process.returncode == 1 and err == ""


def test_commands_find_the_master_though_the_file_is_broken_by_now(shell: Shell) -> None:
    assert shell.start().code == 0
    shell.text = shell.file.read_text().replace("listen:", "listen") + "\n\t}{"
    assert shell.run("status", "{file}").code == 0
    outcome = shell.run("reload", "{file}")
    assert outcome.code == 1
    assert f"{shell.file}:" in outcome.err
    assert shell.fetch().text == "hello"
    assert shell.run("stop", "{file}").code == 0


@needs_root
def test_who_may_not_ask_is_told_why(shell: Shell) -> None:
    nobody = pwd.getpwnam("nobody")
    assert shell.start().code == 0
    for folder in (shell.folder, *shell.folder.parents):
        if folder.stat().st_uid == os.geteuid() and str(folder).startswith("/tmp/"):
            folder.chmod(0o755)

    def ask() -> tuple[int, str]:
        # Not as a program of its own: nobody need not be able to read our interpreter.
        os.setgroups([])
        os.setresgid(*[nobody.pw_gid] * 3)
        os.setresuid(*[nobody.pw_uid] * 3)
        with contextlib.redirect_stderr(io.StringIO()) as err:
            return main(["status", str(shell.file)]), err.getvalue()

    code, said = in_child(ask)
    assert code == 1
    assert "mode 0660" in said and "nobody" in said and "root" in said


# --- reload ----------------------------------------------------------------------------------------------------------


def test_reload_takes_over_new_code_and_says_which_generation(shell: Shell) -> None:
    assert shell.start().code == 0
    shell.write("def application(e, s):\n    s('200 OK', [])\n    return [b'new']\n")
    outcome = shell.run("reload", "{file}")
    assert (outcome.code, outcome.out, outcome.err) == (0, "reloaded: generation 2\n", "")
    assert shell.fetch().text == "new"
    assert shell.ask()["master"]["generation"] == 2


def test_reload_with_mistakes_shows_them_and_changes_nothing(shell: Shell) -> None:
    assert shell.start().code == 0
    worker = shell.fetch().pid
    good = dict(shell.pool)
    shell.pool["workers"] = {"max": "many"}
    shell.pool["lissten"] = "x"
    outcome = shell.run("reload", "{file}")
    assert outcome.code != 0 and outcome.out == ""
    assert "pools.web.workers.max" in outcome.err and "lissten" in outcome.err and f"{shell.file}:" in outcome.err
    status = shell.ask()
    assert status["master"]["last_reload"]["outcome"] == "failed" and status["master"]["generation"] == 1
    assert shell.fetch().pid == worker
    shell.settings["pools"]["web"] = good
    assert shell.run("reload", "{file}").code == 0


def test_reload_with_code_that_does_not_load_shows_its_traceback(shell: Shell) -> None:
    assert shell.start().code == 0
    worker = shell.fetch().pid
    shell.write("import nosuchmodule\n")
    outcome = shell.run("reload", "{file}")
    assert outcome.code == 1 and "ModuleNotFoundError" in outcome.err and "site_app.py" in outcome.err
    assert shell.fetch().pid == worker


def test_reload_says_what_only_a_restart_applies(shell: Shell) -> None:
    assert shell.start().code == 0
    old = shell.settings["pid_file"]
    shell.settings["pid_file"] = str(shell.folder / "other.pid")
    outcome = shell.run("reload", "{file}")
    assert outcome.code == 0 and outcome.out == "reloaded: generation 2\n"
    assert outcome.err.startswith("not applied: pid_file: ") and "restart" in outcome.err
    assert not (shell.folder / "other.pid").exists() and Path(old).exists()
    # It is still so at the next reload, and still said.
    assert "not applied: pid_file: " in shell.run("reload", "{file}").err


def test_reload_of_a_port_that_is_taken_is_refused(shell: Shell) -> None:
    assert shell.start().code == 0
    address = shell.address
    with socket.create_server(("127.0.0.1", 0)) as other:
        taken = f"127.0.0.1:{other.getsockname()[1]}"
        shell.pool["listen"] = [address, taken]
        outcome = shell.run("reload", "{file}")
    assert outcome.code == 1 and taken in outcome.err
    assert fetch(address).text == "hello"


# --- stop ------------------------------------------------------------------------------------------------------------


def test_stop_waits_for_what_is_being_served(daemon: Daemon) -> None:
    daemon.start()
    held = daemon.hold("one")
    with subprocess.Popen(
        [sys.executable, "-m", "preforkd", "stop", str(daemon.config_file)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as stop:
        daemon.wait_for_event("phase", state="stopping")
        assert stop.poll() is None
        held.finish()
        out, _ = stop.communicate(timeout=20)
    assert (stop.returncode, out) == (0, "stopped\n")
    assert daemon.wait_exit() == 0


def test_stop_fast_does_not(daemon: Daemon) -> None:
    daemon.start()
    held = daemon.hold("one")
    outcome = daemon.command("stop", "--fast", "{file}")
    assert (outcome.code, outcome.out) == (0, "stopped\n")
    assert held.lost()
    assert daemon.wait_exit() == 0


def test_a_second_stop_makes_the_first_faster(daemon: Daemon) -> None:
    daemon.start()
    held = daemon.hold("one")
    with subprocess.Popen(
        [sys.executable, "-m", "preforkd", "stop", str(daemon.config_file)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as stop:
        daemon.wait_for_event("phase", state="stopping")
        assert daemon.command("stop", "--fast", "{file}").code == 0
        assert stop.communicate(timeout=20)[0] == "stopped\n"
    assert held.lost()
