"""A stranger's first minute: a bare Debian, a clone, `make run`, and a page in the browser.

The system has git, make and python3 and nothing else: no pip, no ensurepip, no compiler. Setting up needs the package
index; serving happens in a network of its own, which also shows that the second `make run` asks nobody anything.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.systemd import debian
from tests.systemd.machine import ENVIRONMENT, Chroot, Lab, until, wait_for_end

CLIENT = Path(__file__).with_name("load.py")

pytestmark = pytest.mark.bare


class Terminal:
    """`make run` in the foreground of a terminal, in a pid and a network namespace of its own."""

    def __init__(self, chroot: Chroot, user: str) -> None:
        self.lab = chroot.lab
        home = chroot.home(user)
        shell = f"cd {shlex.quote(home)}/preforkd && exec make run"
        root = str(chroot.root)
        script = (
            f"mount -t proc proc {root}/proc && ip link set lo up && "
            f"exec chroot --userspec={user} {root} /usr/bin/env HOME={shlex.quote(home)} sh -c {shlex.quote(shell)}"
        )
        self.output = chroot.path(f"/tmp/{user}.out").open("w+b")
        namespaces = ("unshare", "--mount", "--net", "--pid", "--fork", "--kill-child")
        self.process = subprocess.Popen(
            self.lab.inside(*namespaces, "sh", "-c", script),
            stdin=subprocess.DEVNULL,
            stdout=self.output,
            stderr=self.output,
            env=ENVIRONMENT,
            start_new_session=True,
        )

    def said(self) -> str:
        self.output.seek(0)
        return self.output.read().decode(errors="replace")

    def get(self) -> dict[str, object]:
        """What a client in the same network gets from the address in the README."""
        command = ["nsenter", "--target", str(self.process.pid), "--net", "python3", "-I", str(CLIENT)]
        done = subprocess.run([*command, "--one", "127.0.0.1:8080", "/"], capture_output=True, text=True, check=True)
        last: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
        return last

    def interrupt(self) -> None:
        """Ctrl-C: a signal for all that run in the terminal."""
        os.killpg(self.process.pid, signal.SIGINT)

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        self.output.close()


@contextlib.contextmanager
def terminal(chroot: Chroot, user: str) -> Iterator[Terminal]:
    terminal = Terminal(chroot, user)
    try:
        yield terminal
    finally:
        terminal.close()


@pytest.fixture(scope="module", params=["bookworm", "trixie"])
def bare(lab: Lab, request: pytest.FixtureRequest) -> Iterator[Chroot]:
    image = debian.tree(lab, request.param)
    with image.changed() as chroot:
        debian.connect(chroot)
        chroot.run("useradd", "--create-home", "stranger")
        yield chroot


def test_it_is_bare(bare: Chroot) -> None:
    """Else the tests below show nothing."""
    for module in ("pip", "ensurepip", "setuptools"):
        with pytest.raises(RuntimeError, match="No module named"):
            bare.run("python3", "-c", f"import {module}")
    assert not bare.path("/usr/bin/cc").exists()


@pytest.mark.parametrize("user", ["stranger", "root"])
def test_make_run(bare: Chroot, user: str) -> None:
    clone = f"{bare.home(user)}/preforkd"
    bare.copy_tree(clone)
    bare.run("chown", "-R", f"{user}:", clone)
    bare.run("make", "-C", clone, "venv", user=user)
    with terminal(bare, user) as run:
        until(
            lambda: run.process.poll() is not None or run.get()["event"] == "answer",
            f"`make run` as {user} serves",
            seconds=30,
            every=0.1,
        )
        assert run.process.poll() is None, run.said()
        answer = run.get()
        assert answer["status"] == 200
        assert "preforkd" in str(answer["body"])
        run.interrupt()
        assert wait_for_end(run.process, 10), run.said()
