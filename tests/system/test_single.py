"""`preforkd run --single`: one process for a debugger, whose prompt works, and which Ctrl-C ends."""

from __future__ import annotations

import contextlib
import http.client
import os
import pty
import re
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import pytest

from tests.system.daemon import PATIENCE, ROOT
from tests.system.shell import Answer, Shell, fetch

APPLICATION = """
import os

def application(environ, start_response):
    secret = "told to the debugger"
    if environ["PATH_INFO"] == "/break":
        breakpoint()
    if environ["PATH_INFO"] == "/hang":
        print("it hangs here", flush=True)
        while True:
            pass
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Worker-Pid", str(os.getpid()))])
    return [secret.encode()]
"""


class Terminal:
    """The program with a terminal of its own, and somebody at the keyboard."""

    def __init__(self, *arguments: str) -> None:
        self.text = ""
        self._master, slave = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "preforkd", *arguments],
            stdin=slave, stdout=slave, stderr=slave, cwd=ROOT, start_new_session=True,
            preexec_fn=lambda: os.close(os.open(os.ttyname(0), os.O_RDWR)),  # noqa: PLW1509 - makes it the controlling one
        )  # fmt: skip
        os.close(slave)

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Read until the screen shows it; what was shown before is forgotten."""
        deadline = time.monotonic() + PATIENCE
        while not (found := re.search(pattern, self.text)):
            assert select.select([self._master], [], [], max(0.0, deadline - time.monotonic()))[0], self.text
            try:
                self.text += os.read(self._master, 4096).decode()
            except OSError as error:  # EIO: the other side is closed
                raise AssertionError(f"it ended: {self.text}") from error
        self.text = self.text[found.end() :]
        return found

    def type(self, text: str) -> None:
        os.write(self._master, text.encode())

    def interrupt(self) -> int:
        """Ctrl-C as a person types it: again, if a debugger that goes on took the first one. The exit code."""
        self.type("\x03")
        try:
            while True:
                self.wait_for(r"\(Pdb\) ")
                self.type("continue\n")
                self.type("\x03")
        except AssertionError:
            pass
        return self.finish()

    def finish(self) -> int:
        code = self.process.wait(PATIENCE)
        os.close(self._master)
        return code

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def terminal(shell: Shell) -> Iterator[Terminal]:
    shell.write(APPLICATION)
    del shell.settings["log"]
    shell.save()
    terminal = Terminal("run", "--single", str(shell.file))
    yield terminal
    terminal.close()


def in_background(address: str, path: str) -> tuple[threading.Thread, list[Answer]]:
    answers: list[Answer] = []

    def ask() -> None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            answers.append(fetch(address, path))

    thread = threading.Thread(target=ask)
    thread.start()
    return thread, answers


def test_the_prompt_of_a_debugger_works(terminal: Terminal) -> None:
    address = terminal.wait_for(r"serving.* listen=(\S+) ")[1]
    assert fetch(address).pid == terminal.process.pid  # no fork
    thread, answers = in_background(address, "/break")
    terminal.wait_for(r"\(Pdb\) ")
    terminal.type("p secret\n")
    terminal.wait_for(r"'told to the debugger'\r?\n")
    terminal.wait_for(r"\(Pdb\) ")
    terminal.type("secret = 'changed'\n")
    terminal.wait_for(r"\(Pdb\) ")
    terminal.type("continue\n")
    thread.join(PATIENCE)
    assert answers[0].text == "changed"
    assert terminal.interrupt() == 0


def test_ctrl_c_ends_it_when_idle(terminal: Terminal) -> None:
    address = terminal.wait_for(r"serving.* listen=(\S+) ")[1]
    fetch(address)
    terminal.type("\x03")
    # 130 where the request, though answered, was not quite over.
    assert terminal.finish() in (0, 130)
    assert "Traceback" not in terminal.text
    with pytest.raises(ConnectionRefusedError):
        fetch(address)


def test_ctrl_c_ends_it_in_a_request_that_hangs(terminal: Terminal) -> None:
    address = terminal.wait_for(r"serving.* listen=(\S+) ")[1]
    thread, answers = in_background(address, "/hang")
    terminal.wait_for("it hangs here")
    terminal.type("\x03")
    assert terminal.finish() == 130  # as a shell has it for SIGINT
    thread.join(PATIENCE)
    assert answers == []


def test_term_ends_it_too(terminal: Terminal) -> None:
    terminal.wait_for(r"serving.* listen=(\S+) ")
    terminal.process.send_signal(signal.SIGTERM)
    assert terminal.finish() == 0


def test_an_application_that_does_not_load_ends_it_with_its_traceback(shell: Shell) -> None:
    shell.write("1/0\n")
    outcome = shell.run("run", "--single", "{file}")
    assert outcome.code == 1 and "ZeroDivisionError" in outcome.err and "site_app.py" in outcome.err


def test_a_port_in_use_is_told(shell: Shell) -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        shell.pool["listen"] = f"127.0.0.1:{other.getsockname()[1]}"
        outcome = shell.run("run", "--single", "{file}")
    assert outcome.code == 1 and shell.pool["listen"] in outcome.err


def test_it_serves_one_pool_only(shell: Shell) -> None:
    shell.settings["pools"]["other"] = {"listen": "127.0.0.2:0", "app": "site_app"}
    outcome = shell.run("run", "--single", "{file}")
    assert outcome.code == 1 and "web, other" in outcome.err


def test_a_unix_listener_is_removed_at_the_end(shell: Shell) -> None:
    path = shell.folder / "web.sock"
    shell.pool["listen"] = f"unix:{path}"
    shell.settings["log"] = {"level": "info"}
    with shell.popen("run", "--single", "{file}") as process:
        assert process.stderr is not None
        while " serving " not in process.stderr.readline():
            assert process.poll() is None
        assert fetch(f"unix:{path}").pid == process.pid
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=PATIENCE)
    assert process.returncode == 0 and not path.exists()
