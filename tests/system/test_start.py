"""`preforkd start`: the shell that typed it learns whether the daemon *serves*, and if not, why."""

from __future__ import annotations

import ctypes
import fcntl
import os
import signal
import socket
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from preforkd.config import welcome_file
from tests.support.child import in_child, needs_root
from tests.system.daemon import PATIENCE, ROOT
from tests.system.shell import Shell, fetch

CLONE_NEWNET = 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1


def nothing_left(shell: Shell) -> None:
    assert not os.path.lexists(shell.pid_file) and not os.path.lexists(shell.control)


# --- it serves -------------------------------------------------------------------------------------------------------


def test_it_returns_when_the_service_serves(shell: Shell) -> None:
    outcome = shell.start()
    assert (outcome.code, outcome.text) == (0, "")
    assert shell.fetch().text == "hello"
    assert shell.pid == shell.ask()["master"]["pid"]
    outcome = shell.run("stop", "{file}")
    assert (outcome.code, outcome.out) == (0, "stopped\n")
    nothing_left(shell)


def test_the_daemon_is_detached(shell: Shell) -> None:
    assert shell.start().code == 0
    pid = shell.pid
    stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    group, session, terminal = int(stat[2]), int(stat[3]), int(stat[4])
    assert session != os.getsid(0) and group != os.getpgid(0) and terminal == 0
    assert session != pid  # no session leader, so that it can never get a terminal
    assert os.readlink(f"/proc/{pid}/cwd") == "/"
    for number in (0, 1, 2):
        target = os.readlink(f"/proc/{pid}/fd/{number}")
        assert target in ("/dev/null", str(shell.log)), f"descriptor {number} is {target}"


def test_a_file_of_the_users_own_is_found_without_an_argument(shell: Shell, tmp_path: Path) -> None:
    own = tmp_path / "settings" / "preforkd"
    own.mkdir(parents=True)
    shell.file = own / "preforkd.yaml"
    shell.environment["XDG_CONFIG_HOME"] = str(own.parent)
    assert shell.run("start").code == 0
    assert shell.ask()["master"]["config"] == str(shell.file)
    assert shell.run("stop").out == "stopped\n"


@needs_root
def test_without_a_file_the_welcome_page_is_served() -> None:
    """In a network namespace of its own, because the page has a fixed port."""

    def alone() -> tuple[int, str, str, int]:
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.unshare(CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
        with socket.socket() as sock:
            fcntl.ioctl(sock, SIOCSIFFLAGS, struct.pack("16sh14x", b"lo", IFF_UP))
        process = subprocess.Popen(
            [sys.executable, "-m", "preforkd", "run"], cwd=ROOT, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert process.stderr is not None
        log = ""
        while " serving " not in log:
            line = process.stderr.readline()
            assert line, log
            log += line
        answer = fetch("127.0.0.1:8080")
        process.send_signal(signal.SIGINT)
        log += process.communicate(timeout=PATIENCE)[1]
        return process.returncode, answer.text, answer.headers["content-type"], answer.status

    code, page, kind, status = in_child(alone)
    assert (code, status) == (0, 200) and kind.startswith("text/html")
    assert "It works" in page and "web/" in page and welcome_file() in page


# --- it does not -----------------------------------------------------------------------------------------------------


BROKEN = {
    "import": ("import nosuchmodule", ["site_app.py", "ModuleNotFoundError", "nosuchmodule"]),
    "syntax": ("def application(:\n", ["site_app.py", "SyntaxError"]),
    "SystemExit": ("raise SystemExit(0)", ["site_app.py", "SystemExit"]),
    "_exit": ("import os; os._exit(0)", ["exit code 0"]),
    "crash": ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", ["signal 11", "SIGSEGV"]),
    "no attribute": ("x = 1", ["application", "site_app"]),
    "no callable": ("application = 7", ["int"]),
    "long and Chinese": ("raise RuntimeError('\\u6f22\\u5b57' * 20000)", ["RuntimeError"]),
}


@pytest.mark.parametrize(
    ("how", "preload"), [*((how, "auto") for how in BROKEN), *((how, "never") for how in ("import", "_exit"))]
)
def test_an_application_that_does_not_load_is_told_with_its_reason(shell: Shell, how: str, preload: str) -> None:
    code, words = BROKEN[how]
    shell.pool["preload"] = preload
    shell.write(code)
    outcome = shell.start()
    assert outcome.code == 1 and outcome.out == ""
    assert outcome.err.startswith("preforkd: cannot start: ")
    for word in words:
        assert word in outcome.err
    assert "preforkd/handlers" not in outcome.err and "importlib" not in outcome.err  # none of our frames
    nothing_left(shell)


def test_an_application_that_hangs_is_told(shell: Shell) -> None:
    shell.write("import signal\nsignal.pause()\n")
    shell.pool["timeouts"]["start"] = "300ms"
    outcome = shell.start()
    assert outcome.code == 1 and "not ready in time" in outcome.err
    nothing_left(shell)


def test_a_first_worker_that_dies_is_told(shell: Shell) -> None:
    """It loads, and a process of its own dies of the first request, which is the health check."""
    shell.write("""
import os
loaded_by = os.getpid()

def application(environ, start_response):
    if os.getpid() != loaded_by:
        os._exit(3)
    start_response("200 OK", [])
    return [b""]
""")
    shell.pool["health"] = "/"
    outcome = shell.start()
    assert outcome.code == 1 and "exit code 3" in outcome.err
    nothing_left(shell)


def test_a_health_check_that_fails_is_told(shell: Shell) -> None:
    shell.write("def application(e, start_response):\n    start_response('503 Unwell', [])\n    return [b'']\n")
    shell.pool["health"] = "/health"
    outcome = shell.start()
    assert outcome.code == 1 and "/health answered 503" in outcome.err
    nothing_left(shell)


def test_a_port_in_use_is_told_with_its_address(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        shell.pool["listen"] = f"127.0.0.1:{port}"
        outcome = shell.start()
    assert outcome.code == 1
    assert f"127.0.0.1:{port}" in outcome.err and "in use" in outcome.err
    nothing_left(shell)


@pytest.mark.parametrize("log", ["errors", "access"])
def test_a_log_that_cannot_be_written_is_told(shell: Shell, log: str, tmp_path: Path) -> None:
    shell.settings["log"][log] = str(tmp_path / "nowhere" / "x.log")
    outcome = shell.start()
    assert outcome.code != 0 and outcome.code < 128
    assert str(tmp_path / "nowhere") in outcome.err and "No such file or directory" in outcome.err
    nothing_left(shell)


def test_mistakes_in_the_file_are_told_all_at_once(shell: Shell) -> None:
    shell.text = "pools:\n  web:\n    listn: x\n    app: a:b\n    workers: {max: many}\n"
    outcome = shell.start()
    assert outcome.code == 78
    assert f"{shell.file}:3:5: " in outcome.err and f"{shell.file}:5:20: " in outcome.err
    assert "did you mean" in outcome.err or "listen" in outcome.err


def test_a_missing_file_is_told(shell: Shell) -> None:
    outcome = shell.run("start", str(shell.folder / "nowhere.yaml"))
    assert outcome.code == 78 and "nowhere.yaml" in outcome.err


def test_a_start_that_takes_longer_than_asked_goes_on_and_says_so(shell: Shell) -> None:
    gate = shell.folder / "gate"
    os.mkfifo(gate)
    shell.write(
        f"open({str(gate)!r}).read()\n" + "\ndef application(e, s):\n    s('200 OK', [])\n    return [b'late']\n"
    )
    outcome = shell.start("--timeout", "0.3")
    assert outcome.code == 1 and "did not serve within 0" in outcome.err and "may still be starting" in outcome.err
    with open(gate, "w"):
        pass
    log = wait_for_line(shell.log, " serving ")
    assert "start_failed" not in log
    assert shell.fetch().text == "late"


def wait_for_line(file: Path, words: str) -> str:
    """Wait until a log has a line with these words."""
    with subprocess.Popen(["tail", "-n", "+1", "-F", str(file)], stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout is not None
        text = ""
        try:
            for line in tail.stdout:
                text += line
                if words in line:
                    break
        finally:
            tail.kill()
    return text


# --- two of them -----------------------------------------------------------------------------------------------------


def test_a_second_instance_is_refused_and_the_first_unharmed(shell: Shell) -> None:
    assert shell.start().code == 0
    first, worker = shell.pid, shell.fetch().pid
    for command in ("start", "run"):
        outcome = shell.run(command, "{file}")
        assert outcome.code == 1, outcome
        assert str(first) in outcome.err and "already" in outcome.err, outcome.err
        assert str(shell.pid_file) in outcome.err
    assert shell.pid == first and shell.fetch().pid == worker
    assert shell.run("status", "{file}").code == 0


def test_the_same_port_from_another_file_is_refused(shell: Shell, tmp_path: Path) -> None:
    assert shell.start().code == 0
    (tmp_path / "other").mkdir()
    other = Shell(tmp_path / "other")
    other.pool["listen"] = shell.address
    outcome = other.start()
    assert outcome.code == 1 and shell.address in outcome.err
    nothing_left(other)
    assert shell.fetch().text == "hello"


def test_what_a_killed_master_left_behind_is_taken_over(shell: Shell) -> None:
    shell.pool["listen"] = f"unix:{shell.folder}/web.sock"
    assert shell.start().code == 0
    first = shell.pid
    shell.kill()
    assert shell.pid_file.read_text().strip() == str(first) and shell.control.is_socket()
    assert (shell.folder / "web.sock").is_socket()
    assert shell.start().code == 0
    assert shell.pid != first
    assert fetch(f"unix:{shell.folder}/web.sock").text == "hello"
    assert shell.run("stop", "{file}").code == 0
    assert not (shell.folder / "web.sock").exists()


@pytest.mark.parametrize("content", ["", "1\n"])
def test_a_pid_file_that_says_nothing_true_is_taken_over(shell: Shell, content: str) -> None:
    """The lock counts, not the number."""
    shell.pid_file.write_text(content)
    assert shell.start().code == 0
    assert shell.pid == shell.ask()["master"]["pid"]


def test_a_start_below_systemd_is_refused(shell: Shell) -> None:
    shell.environment["NOTIFY_SOCKET"] = str(shell.folder / "notify")
    outcome = shell.start()
    assert outcome.code == 1 and "preforkd run" in outcome.err


def test_a_start_without_standard_streams(shell: Shell) -> None:
    """As some supervisors and containers start programs."""
    shell.save()
    script = 'exec "$@" <&- >&- 2>&-'
    argv = [sys.executable, "-m", "preforkd", "start", str(shell.file)]
    options: dict[str, Any] = {"cwd": ROOT, "timeout": PATIENCE}
    assert subprocess.run(["sh", "-c", script, "sh", *argv], **options).returncode == 0
    assert shell.fetch().text == "hello"
    assert shell.run("stop", "{file}").code == 0
