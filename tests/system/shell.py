"""preforkd as a person types it: commands run to their end, the service detaches, files are found by their paths."""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import select
import signal
import socket
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from preforkd.control import client
from preforkd.errors import PreforkdError
from tests.system.daemon import PATIENCE, ROOT, Outcome

#: Answers with its pid; `tail` of a test may put something else in its place.
APPLICATION = """
import os

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain"), ("X-Worker-Pid", str(os.getpid()))])
    return [b"hello"]
"""


@dataclass(frozen=True)
class Answer:
    """An HTTP response, read to its end."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def pid(self) -> int:
        """Of the worker, where the application says so."""
        return int(self.headers["x-worker-pid"])


class _Connection(http.client.HTTPConnection):
    """To an address as preforkd writes it: HOST:PORT, [HOST]:PORT, unix:PATH."""

    def __init__(self, address: str, timeout: float) -> None:
        super().__init__("localhost", timeout=timeout)
        self._address = address

    def connect(self) -> None:
        if self._address.startswith("unix:"):
            self.sock = socket.socket(socket.AF_UNIX)
            self.sock.settimeout(self.timeout)
            self.sock.connect(self._address.removeprefix("unix:"))
        else:
            host, _, port = self._address.rpartition(":")
            self.sock = socket.create_connection((host.strip("[]"), int(port)), self.timeout)


def fetch(
    address: str,
    path: str = "/",
    method: str = "GET",
    body: bytes | Iterable[bytes] | None = None,
    headers: Mapping[str, str] | None = None,
    timeout: float = PATIENCE,
) -> Answer:
    """One request on a connection of its own. OSError or http.client.HTTPException if there is no whole answer."""
    connection = _Connection(address, timeout)
    try:
        connection.request(method, path, body, headers={"Connection": "close", **(headers or {})})
        response = connection.getresponse()
        return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
    finally:
        connection.close()


class Shell:
    """A folder with a configuration, and the command line.

    `settings` is the configuration as a dictionary; it is written before each command unless `text` is set.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "preforkd.yaml"
        self.log = folder / "error.log"
        self.pid_file = folder / "preforkd.pid"
        self.control = folder / "control.sock"
        self.settings: dict[str, Any] = {
            "pid_file": str(self.pid_file),
            "control": str(self.control),
            "log": {"errors": str(self.log)},
            "pools": {
                "web": {
                    "listen": "127.0.0.1:0",
                    "app": "site_app",
                    "directory": str(folder),
                    "workers": {"start": 1, "min_spare": 1, "max_spare": 2, "max": 4},
                    "timeouts": {"graceful": "5s", "start": "10s"},
                }
            },
        }
        #: What the file says instead of the settings.
        self.text: str | None = None
        self.environment: dict[str, str] = {}
        self.write(APPLICATION)

    @property
    def pool(self) -> dict[str, Any]:
        """The settings of the pool ``web``."""
        pool: dict[str, Any] = self.settings["pools"]["web"]
        return pool

    def write(self, text: str, module: str = "site_app") -> Path:
        """Write a module of the application."""
        path = self.folder / f"{module}.py"
        path.write_text(text)
        return path

    def save(self) -> None:
        """Write the configuration."""
        text = self.text if self.text is not None else yaml.safe_dump(self.settings, sort_keys=False)
        self.file.write_text(text)

    def popen(self, *arguments: str, identity: tuple[int, int] | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start ``preforkd ARGUMENTS...``; {file} stands for the configuration, ``identity`` is a (uid, gid)."""
        self.save()
        environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
        if identity is not None:
            options |= {"user": identity[0], "group": identity[1], "extra_groups": []}
        return subprocess.Popen(
            [sys.executable, "-m", "preforkd", *(str(self.file) if a == "{file}" else a for a in arguments)],
            text=True,
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "cwd": ROOT,
                "env": {**environment, "PYTHONDONTWRITEBYTECODE": "1", **self.environment},
                **options,
            },
        )

    def run(self, *arguments: str, timeout: float = 30.0, **options: Any) -> Outcome:
        """Run a command to its end. Also proves that nothing which goes on holds its output open."""
        with self.popen(*arguments, **options) as process:
            try:
                out, err = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                process.kill()
                raise
        return Outcome(process.returncode, out, err)

    def start(self, *arguments: str, **options: Any) -> Outcome:
        """``preforkd start FILE``."""
        return self.run("start", "{file}", *arguments, **options)

    # --- the service -------------------------------------------------------------------------------------------------

    def ask(self, command: str = "status", **arguments: Any) -> dict[str, Any]:
        """Ask the running master, without the cost of a command."""
        return client.call(str(self.control), command, arguments, timeout=PATIENCE)

    @property
    def address(self) -> str:
        """Where the first pool really listens."""
        pools = self.ask()["pools"]
        address: str = next(iter(pools.values()))["listen"][0]
        return address

    @property
    def pid(self) -> int:
        """The master's, from the pid file."""
        return int(self.pid_file.read_text())

    def fetch(self, path: str = "/", **options: Any) -> Answer:
        """One request to the first pool."""
        return fetch(self.address, path, **options)

    def kill(self) -> None:
        """kill -9 for the master; returns when it and its workers are gone."""
        pids = [self.pid]
        for pool in self.ask()["pools"].values():
            pids += [worker["pid"] for worker in pool["workers"]]
        descriptors = [os.pidfd_open(pid) for pid in pids]
        os.kill(pids[0], signal.SIGKILL)
        for descriptor in descriptors:
            wait_gone(descriptor)

    def finish(self) -> None:
        """Stop what still runs."""
        with contextlib.suppress(PreforkdError):
            self.ask("stop", fast=True)


@functools.lru_cache
def python_for_nobody() -> str:
    """A Python like this one that any user can run, to be used with `open_environment`; "" where there is none.

    Root's home, where Python may be, is often closed to others.
    """
    for python in (sys.executable, f"/usr/bin/python{sys.version_info[0]}.{sys.version_info[1]}"):
        with contextlib.suppress(OSError):
            done = subprocess.run(
                [python, "-c", "import preforkd.cli.boot, preforkd.models.process, httptools, tempfile"],
                cwd="/",
                env=open_environment(),
                capture_output=True,
                user="nobody",
                extra_groups=[],
            )
            if done.returncode == 0:
                return python
    return ""


def open_environment() -> dict[str, str]:
    """Where such a Python finds us and what we need."""
    path = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib"), sysconfig.get_path("platlib")])
    return {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"}


def wait_gone(descriptor: int) -> None:
    """Wait for the end of a process that is not our child (a pidfd, closed here)."""
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    gone = poll.poll(PATIENCE * 1000)
    os.close(descriptor)
    assert gone, "the process does not end"
