"""The real program under test: `Daemon` starts it as an operator would, watches it, and proves that it left nothing.

    def test_it_reloads(daemon: Daemon) -> None:          # the fixture of tests/system/conftest.py
        daemon.start()                                    # returns when it serves (READY=1)
        with CountingClient(daemon.address) as client:
            daemon.write_app(version="2")
            assert daemon.reload().code == 0
            daemon.wait_for_event("reload_done", generation=2)
        client.result().check()

Nothing here sleeps and hopes. The listening socket is bound by the test and passed as systemd does (LISTEN_FDS): there
is no port to guess, and nobody is refused before the start. Events are read from the program's standard error, and
notifications from a NOTIFY_SOCKET of ours, by a thread that wakes whoever waits. Every wait has an end and says what it
waited for, with the log.

Every process of a daemon, however often it forked, whoever its parent is and whatever its title says, is found by a
mark: an RLIMIT_LOCKS of its own, which the kernel hands down and has not looked at since 2.4.
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from preforkd.control import client
from preforkd.errors import PreforkdError
from tests.unit.logs.parse import parse_line, unquote

ROOT = Path(__file__).resolve().parents[2]

#: How long a wait takes at most, unless the test says otherwise; far longer than anything takes. Seconds.
PATIENCE = 20.0
#: Between two looks at what nobody tells us about (the status, the list of processes). Seconds.
LOOK = 0.01

#: linux/resource.h; Python has no name for it.
_RLIMIT_LOCKS = 10
_numbers = itertools.count(1)

#: Puts the descriptors where systemd would, and becomes the program without a change of pid.
_LAUNCHER = """
import fcntl, json, os, resource, sys
plan = json.loads(sys.argv[1])
high = [fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, 100) for fd in plan["sockets"]]
for fd in plan["sockets"]:
    os.close(fd)
for number, fd in enumerate(high, 3):
    os.dup2(fd, number)
if high:
    os.environ["LISTEN_PID"] = str(os.getpid())
for number, value in plan["limits"]:
    resource.setrlimit(number, (value, value))
if plan["identity"]:
    uid, gid = plan["identity"]
    os.setgroups([])
    os.setresgid(gid, gid, gid)
    os.setresuid(uid, uid, uid)
os.execv(plan["argv"][0], plan["argv"])
"""

#: The application that tests serve. What follows the head may replace any of it, also `application` itself.
_APP_HEAD = '''\
"""Written by a test."""

import os
import sys
import time

VERSION = {version!r}
GATES = {gates!r}
'''

_APP_BODY = """

def application(environ, start_response):
    path = environ["PATH_INFO"]
    headers = [("Content-Type", "text/plain"), ("X-Worker-Pid", str(os.getpid())), ("X-Version", VERSION)]
    if "HTTP_X_NUMBER" in environ:
        headers.append(("X-Number", environ["HTTP_X_NUMBER"]))
    if path.startswith("/gate/"):
        # Begins its answer, and ends it when the test opens the gate.
        start_response("200 OK", headers)
        return gate(os.path.join(GATES, path.removeprefix("/gate/")))
    if path.startswith("/sleep/"):
        time.sleep(float(path.removeprefix("/sleep/")) / 1000)
    body = VERSION.encode()
    start_response("200 OK", [*headers, ("Content-Length", str(len(body)))])
    return [body]


def gate(file):
    yield b"begun\\n"
    while not os.path.exists(file):
        time.sleep(0.005)
    yield b"ended\\n"
"""


@dataclass(frozen=True)
class Event:
    """One event of the log; ``text`` are its continuation lines (a traceback), ``at`` its place in the log."""

    at: int
    level: str
    name: str
    fields: Mapping[str, str | None]
    text: list[str] = field(default_factory=list)
    when: str = ""

    def __getitem__(self, key: str) -> str:
        """The value of a field; of ``text``, also where it stands below the event."""
        value = self.body if key == "text" and self.text else self.fields[key]
        return "" if value is None else value

    @property
    def body(self) -> str:
        """The continuation lines as one text."""
        return "\n".join(self.text)

    def has(self, wanted: Mapping[str, object]) -> bool:
        """Whether each wanted field is there: equal as text, or accepted by the function given for it."""
        for key, want in wanted.items():
            value = self.body if key == "text" and "text" not in self.fields else self.fields.get(key)
            if callable(want):
                if value is None or not want(value):
                    return False
            elif value != (None if want is None else str(want)):
                return False
        return True


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def text(self) -> str:
        """All it said."""
        return self.out + self.err


class Held:
    """A request that a worker is serving; it is answered to its end once `release` was called."""

    def __init__(self, sock: socket.socket, gate: Path) -> None:
        self._sock = sock
        self._gate = gate
        self._data = b""
        self._read_until(b"begun\n")
        head = self._data.partition(b"\r\n\r\n")[0].decode("latin-1")
        headers = dict(line.split(": ", 1) for line in head.split("\r\n")[1:])
        #: Who serves it.
        self.pid = int(headers["X-Worker-Pid"])

    def _read_until(self, mark: bytes) -> None:
        while mark not in self._data:
            piece = self._sock.recv(65536)
            if not piece:
                raise AssertionError(f"the connection ended before {mark!r}: {self._data!r}")
            self._data += piece

    def release(self) -> None:
        """Let the application finish the answer."""
        self._gate.touch()

    def finish(self) -> None:
        """Let it finish, and read the answer to its very end. AssertionError if it is cut short."""
        self.release()
        try:
            self._read_until(b"ended\n\r\n0\r\n\r\n")
        finally:
            self._sock.close()

    def lost(self) -> bool:
        """Wait for the connection's end; True if the answer was cut short."""
        try:
            self._read_until(b"ended\n\r\n0\r\n\r\n")
        except (AssertionError, ConnectionError):
            return True
        finally:
            self._sock.close()
        return False


class Daemon:
    """One preforkd, its files, and everything it said.

    `settings` is the configuration as a dictionary: change it, then `save` (`start` saves too). The pool is called
    ``web`` and starts with two workers.

    Attributes:
        folder: Where all files are.
        address: Where it is reached (`CountingClient` takes it).
        expect_exit: The exit status that the master must have ended with, by the end of the test.
        notify: Whether it has a NOTIFY_SOCKET, as below systemd; then the listeners it binds are put into a store, and
            the paths of unix sockets stay when it ends.
        expect_noise: Whether lines that are no events (a crash of C code) may be on standard error.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.app_folder = folder / "site"
        self.config_file = folder / "preforkd.yaml"
        self.control = folder / "control.sock"
        self.pid_file = folder / "preforkd.pid"
        self.gates = folder / "gates"
        for path in (self.app_folder, self.gates):
            path.mkdir(parents=True)
        #: The socket that `start` passes on; None to pass none (see `listen_on`).
        self.listener: socket.socket | None = socket.create_server(("127.0.0.1", 0), backlog=511)
        # As preforkd sets up a socket of its own: a worker gets a connection together with its first bytes.
        self.listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, 1)
        #: Whether the test keeps its copy of it, as systemd's store does, so that the queue outlives the master.
        self.keep_listener = False
        host, port = self.listener.getsockname()[:2]
        self.address = f"{host}:{port}"
        self.settings: dict[str, Any] = {
            "pid_file": str(self.pid_file),
            "control": str(self.control),
            "log": {"level": "debug"},
            "pools": {
                "web": {
                    "listen": "systemd:web",
                    "app": "site_app",
                    "directory": str(self.app_folder),
                    "workers": {"start": 2, "min_spare": 1, "max_spare": 4, "max": 8},
                    "timeouts": {"graceful": "10s", "probation": "500ms", "start": "10s"},
                }
            },
        }
        self.environment: dict[str, str] = {}
        self.expect_exit: int | None = 0
        self.expect_noise = False
        self.notify = True
        self.process: subprocess.Popen[bytes] | None = None
        self._mark = os.getpid() << 16 | next(_numbers)
        self._news = threading.Condition()
        self._events: list[Event] = []
        self._notices: list[dict[str, str]] = []
        self._lines: list[str] = []
        self._noise: list[str] = []
        self._silent = 0
        self._pumps: list[threading.Thread] = []
        self._notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        self._notify.bind(str(folder / "notify.sock"))
        self._closing, self._close = os.pipe2(os.O_CLOEXEC)
        self._start_pump(self._pump_notices)
        self.write_app()

    # --- files -------------------------------------------------------------------------------------------------------

    @property
    def pool(self) -> dict[str, Any]:
        """The settings of the pool ``web``."""
        pool: dict[str, Any] = self.settings["pools"]["web"]
        return pool

    def save(self) -> None:
        """Write the configuration, in one step."""
        self.write_config(yaml.safe_dump(self.settings, sort_keys=False))

    def write_config(self, text: str) -> None:
        """Write any text as the configuration, in one step."""
        _write(self.config_file, text)

    def write_app(self, version: str = "1", *, head: str = "", tail: str = "", module: str = "site_app") -> None:
        """Write the application, in one step: it answers with ``version`` and the headers X-Worker-Pid and X-Version.

        ``head`` runs at its import, before anything else of it; ``tail`` after all of it, and may redefine it. It has
        two more paths: ``/gate/NAME`` (see `hold`) and ``/sleep/MILLISECONDS``.
        """
        text = _APP_HEAD.format(version=version, gates=str(self.gates)) + head + _APP_BODY + tail
        self.write_module(text, module)

    def write_module(self, text: str, module: str = "site_app") -> None:
        """Write any text as a module of the application, in one step."""
        _write(self.app_folder / f"{module}.py", text)

    def listen_on(self, *addresses: str | dict[str, Any]) -> None:
        """Let the daemon bind these itself, the first being `address`; nothing is passed to it."""
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        self.pool["listen"] = list(addresses)
        first = addresses[0]
        self.address = first["address"] if isinstance(first, dict) else first

    # --- life --------------------------------------------------------------------------------------------------------

    def start(
        self,
        *arguments: str,
        ready: bool = True,
        limits: Sequence[tuple[int, int]] = (),
        identity: tuple[int, int] | None = None,
        executable: str = sys.executable,
    ) -> None:
        """Start the program (``preforkd run FILE``) and, unless told otherwise, wait until it serves.

        ``limits`` are pairs for setrlimit(2), ``identity`` a (uid, gid) that the program runs as from its first moment.
        The listening socket is handed over: from now on only the daemon holds it.
        """
        self.save()
        if arguments == ():
            arguments = ("run", str(self.config_file))
        notices, events = len(self._notices), len(self._events)
        sockets = [self.listener] if self.listener is not None else []
        self.process = self._launch(
            [executable, "-m", "preforkd", *arguments], sockets, limits=limits, identity=identity
        )
        if self.listener is not None and not self.keep_listener:
            self.listener.close()
            self.listener = None
        if ready:
            # It serves from its first worker on, which is when it says so; tests want them all.
            if self.notify:
                self.wait_for_notice("READY", "1", after=notices)
            else:
                self.wait_for_event("serving", after=events)
            want = {name: pool.get("workers", {}).get("start", 5) for name, pool in self.settings["pools"].items()}
            self.wait_for_status(lambda _: all(len(self.pids(name)) >= many for name, many in want.items()))

    def _launch(
        self,
        argv: Sequence[str],
        sockets: Sequence[socket.socket],
        *,
        limits: Sequence[tuple[int, int]],
        identity: tuple[int, int] | None,
    ) -> subprocess.Popen[bytes]:
        environment = {
            "PATH": os.environ.get("PATH", "/usr/bin:/bin"),
            # An edit within the same second and of the same length would be missed, for the lack of a byte in a .pyc.
            "PYTHONDONTWRITEBYTECODE": "1",
            **self.environment,
        }
        for name in ("PYTHONPATH", "COVERAGE_PROCESS_START", "COVERAGE_PROCESS_CONFIG"):
            if name in os.environ:
                environment.setdefault(name, os.environ[name])
        if self.notify:
            environment["NOTIFY_SOCKET"] = str(self.folder / "notify.sock")
        if sockets:
            environment |= {"LISTEN_FDS": str(len(sockets)), "LISTEN_FDNAMES": ":".join("web" for _ in sockets)}
        plan = json.dumps(
            {
                "argv": list(argv),
                "sockets": [sock.fileno() for sock in sockets],
                "limits": [(_RLIMIT_LOCKS, self._mark), *limits],
                "identity": identity,
            }
        )
        process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-c", _LAUNCHER, plan],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=[sock.fileno() for sock in sockets],
            cwd=ROOT,
            env=environment,
        )
        assert process.stdout is not None
        descriptor = os.dup(process.stdout.fileno())
        process.stdout.close()
        self._start_pump(lambda: self._pump_log(descriptor))
        return process

    @property
    def pid(self) -> int:
        """The master's pid, also after it has ended."""
        assert self.process is not None, "not started"
        return self.process.pid

    def signal(self, signum: int) -> None:
        """Send a signal to the master, which must still be there."""
        assert self.process is not None, "not started"
        assert self.process.poll() is None, f"the master has ended: {self.process.returncode}\n{self.log}"
        os.kill(self.process.pid, signum)

    def wait_exit(self, timeout: float = PATIENCE) -> int:
        """Wait for the master's end; its exit status, negative for a signal."""
        assert self.process is not None, "not started"
        if self.process.returncode is None:
            pidfd = os.pidfd_open(self.process.pid)
            try:
                poll = select.poll()
                poll.register(pidfd, select.POLLIN)
                if not poll.poll(timeout * 1000):
                    raise AssertionError(f"the master did not end within {timeout:g} s\n{self.picture()}")
            finally:
                os.close(pidfd)
        return self.process.wait()

    def stop(self, timeout: float = PATIENCE) -> int:
        """Stop it gracefully (TERM) and wait; the exit status."""
        assert self.process is not None, "not started"
        with contextlib.suppress(ProcessLookupError):
            if self.process.poll() is None:
                os.kill(self.process.pid, signal.SIGTERM)
        return self.wait_exit(timeout)

    def kill_master(self) -> None:
        """SIGKILL for the master, which is what the test then expects to have happened."""
        self.expect_exit = -signal.SIGKILL
        self.signal(signal.SIGKILL)
        self.wait_exit()

    # --- asking ------------------------------------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """The status as JSON, over the control socket."""
        return client.call(str(self.control), "status", timeout=PATIENCE)

    def wait_for_status(self, good: Callable[[dict[str, Any]], Any], timeout: float = PATIENCE) -> dict[str, Any]:
        """Ask for the status until ``good`` of it is true; returns it."""
        deadline = time.monotonic() + timeout
        while True:
            status = self.status()
            if good(status):
                return status
            if time.monotonic() > deadline:
                raise AssertionError(f"the status did not become good within {timeout:g} s\n{self.picture()}")
            time.sleep(LOOK)

    def workers(self, pool: str = "web", state: str | None = None) -> list[dict[str, Any]]:
        """The workers of a pool, as the status has them, of one state or of all."""
        workers: list[dict[str, Any]] = self.status()["pools"][pool]["workers"]
        return [worker for worker in workers if state is None or worker["state"] == state]

    def pids(self, pool: str = "web") -> list[int]:
        """The pids of the workers that serve."""
        return [worker["pid"] for worker in self.workers(pool) if worker["state"] in ("idle", "busy")]

    def template(self, pool: str = "web") -> int:
        """The pid of a pool's template."""
        pid: int = self.status()["pools"][pool]["template"]["pid"]
        return pid

    def processes(self) -> dict[int, str]:
        """Every living process of this daemon, by the mark: pid to title."""
        found = {}
        for name in os.listdir("/proc"):
            if name.isdigit() and _mark(int(name)) == self._mark:
                title = _title(int(name))
                if title is not None:
                    found[int(name)] = title
        return found

    def wait_alone(self, timeout: float = PATIENCE) -> None:
        """Wait until no process of this daemon is left."""
        deadline = time.monotonic() + timeout
        while left := self.processes():
            if time.monotonic() > deadline:
                raise AssertionError(f"still there after {timeout:g} s: {left}\n{self.log}")
            time.sleep(LOOK)

    def command(self, *arguments: str, timeout: float = 60.0) -> Outcome:
        """Run ``preforkd ARGUMENTS...`` to its end; {file} stands for the configuration."""
        done = subprocess.run(
            [sys.executable, "-m", "preforkd", *(str(self.config_file) if a == "{file}" else a for a in arguments)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            cwd=ROOT,
            env={**os.environ, **self.environment},
        )
        return Outcome(done.returncode, done.stdout, done.stderr)

    def reload(self, timeout: float = 60.0) -> Outcome:
        """``preforkd reload FILE``: waits for the outcome."""
        return self.command("reload", "{file}", timeout=timeout)

    def ask_reload(self, timeout: float = 60.0) -> str:
        """A reload over the control socket, without the cost of a command: "" or why not."""
        try:
            client.call(str(self.control), "reload", timeout=timeout)
        except PreforkdError as error:
            return str(error)
        return ""

    def hold(self, name: str, address: str = "") -> Held:
        """Send a request that stays in the application until it is released; returns when it is there."""
        host, _, port = (address or self.address).rpartition(":")
        sock = socket.create_connection((host, int(port)), timeout=PATIENCE)
        try:
            sock.sendall(f"GET /gate/{name} HTTP/1.1\r\nHost: test\r\n\r\n".encode())
            return Held(sock, self.gates / name)
        except BaseException:
            sock.close()
            raise

    # --- what it says ------------------------------------------------------------------------------------------------

    @property
    def log(self) -> str:
        """All of the log so far."""
        with self._news:
            return "\n".join(self._lines)

    def mark(self) -> int:
        """A place in the log, for ``after=``."""
        with self._news:
            return len(self._events)

    def events(self, name: str, *, after: int = 0, **fields: object) -> list[Event]:
        """The events of that name from the mark ``after`` on whose fields are these (as text, or by a function)."""
        with self._news:
            return [event for event in self._events[after:] if event.name == name and event.has(fields)]

    def wait_for_event(
        self, name: str, *, after: int = 0, timeout: float = PATIENCE, count: int = 1, **fields: object
    ) -> Event:
        """The ``count``-th such event (see `events`), now or when it comes."""
        found: list[Event] = []

        def there() -> bool:
            found[:] = [event for event in self._events[after:] if event.name == name and event.has(fields)]
            return len(found) >= count

        with self._news:
            self._wait(there, f"event {name} {fields or ''} ({count} times)", timeout)
        return found[count - 1]

    def wait_quiet(self, timeout: float = PATIENCE) -> None:
        """Wait until nobody holds the daemon's standard error any more, so that `log` is complete."""
        with self._news:
            good = self._news.wait_for(lambda: self._silent == len(self._pumps) - 1, timeout)
        assert good, f"somebody still holds its standard error after {timeout:g} s: {self.processes()}"

    def notices(self) -> list[dict[str, str]]:
        """What was said to the NOTIFY_SOCKET, a dictionary a datagram."""
        with self._news:
            return list(self._notices)

    def wait_for_notice(
        self, key: str, value: str | Callable[[str], Any], *, after: int = 0, timeout: float = PATIENCE
    ) -> dict[str, str]:
        """The first datagram with that variable and value, now or when it comes."""
        found: list[dict[str, str]] = []

        def there() -> bool:
            for notice in self._notices[after:]:
                if key in notice and (value(notice[key]) if callable(value) else notice[key] == value):
                    found.append(notice)
                    return True
            return False

        with self._news:
            self._wait(there, f"the notification {key}={value}", timeout)
        return found[0]

    def _wait(self, there: Callable[[], bool], what: str, timeout: float) -> None:
        """Wait for news that make ``there`` true. With `_news` held."""
        deadline = time.monotonic() + timeout
        why = f"within {timeout:g} s"
        while not there():
            if self._silent == len(self._pumps) - 1:
                # Nobody is left to say anything; only a notification may still be on its way.
                deadline = min(deadline, time.monotonic() + 0.5)
                why = "everything has ended"
            left = deadline - time.monotonic()
            if left <= 0:
                raise AssertionError(f"waited in vain for {what}: {why}\n" + "\n".join(self._lines[-80:]))
            self._news.wait(left)

    def picture(self) -> str:
        """Log, status and processes, for people."""
        with self._news:
            lines = list(self._lines)
            notices = [" ".join(f"{key}={value}" for key, value in notice.items()) for notice in self._notices]
        try:
            status = json.dumps(self.status(), indent=1)
        except (PreforkdError, OSError) as error:
            status = str(error)
        processes = [f"{pid}: {title}" for pid, title in sorted(self.processes().items())]
        parts = {"log": lines, "notifications": notices[-20:], "status": [status], "processes": processes}
        return "\n".join(f"--- {name} of the daemon\n" + "\n".join(part) for name, part in parts.items())

    # --- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> list[str]:
        """End whatever runs; returns what is wrong with how it ended."""
        wrong: list[str] = []
        if self.process is not None:
            try:
                code = self.stop()
            except AssertionError as error:
                wrong.append(str(error))
            else:
                if self.expect_exit is not None and code != self.expect_exit:
                    wrong.append(f"the master's exit status is {code} instead of {self.expect_exit}")
            wrong += self._left_over()
        os.close(self._close)
        for pump in self._pumps:
            pump.join(PATIENCE)
            if pump.is_alive():
                wrong.append("somebody holds the daemon's standard error open")
        os.close(self._closing)
        self._notify.close()
        if self.listener is not None:
            self.listener.close()
        if self._noise and not self.expect_noise:
            wrong.append("lines on standard error that are no events:\n  " + "\n  ".join(self._noise[:60]))
        return wrong

    def _left_over(self) -> list[str]:
        wrong = []
        try:
            self.wait_alone(5.0)
        except AssertionError:
            left = self.processes()
            if left:
                wrong.append("processes left: " + ", ".join(f"{pid} ({title})" for pid, title in left.items()))
            for pid in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        # A master that was killed has no chance to clean up.
        if self.expect_exit is None or self.expect_exit >= 0:
            files = [self.pid_file, self.control]
            if not self.notify:
                files += _unix_paths(self.settings)
            wrong += [f"{path} was left behind" for path in files if os.path.lexists(path)]
        return wrong

    # --- listening to it ---------------------------------------------------------------------------------------------

    def _start_pump(self, run: Callable[[], None]) -> None:
        pump = threading.Thread(target=run, name="daemon-pump", daemon=True)
        self._pumps.append(pump)
        pump.start()

    def _pump_log(self, descriptor: int) -> None:
        rest = b""
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        poll.register(self._closing, select.POLLIN)
        try:
            while True:
                ready = {fd for fd, _ in poll.poll()}
                # What is in the pipe is read to its end also when we are closing.
                if descriptor not in ready:
                    break
                data = os.read(descriptor, 1 << 16)
                if not data:
                    break
                *lines, rest = (rest + data).split(b"\n")
                with self._news:
                    for line in lines:
                        self._read(line.decode("utf-8", "backslashreplace"))
                    self._news.notify_all()
        finally:
            os.close(descriptor)
            with self._news:
                if rest:
                    self._read(rest.decode("utf-8", "backslashreplace"))
                self._silent += 1
                self._news.notify_all()

    def _read(self, line: str) -> None:
        self._lines.append(line)
        if line.startswith("    ") and "|" in line and self._events:
            key, _, text = line[4:].partition("|")
            if not key or key.replace("_", "a").isalnum():
                self._events[-1].text.append(text.removeprefix(" "))
                return
        try:
            event = parse_line(line)
        except (AssertionError, ValueError):
            self._noise.append(line)
            return
        self._events.append(Event(len(self._events), event.level, event.name, event.fields, when=event.when))

    def _pump_notices(self) -> None:
        poll = select.poll()
        poll.register(self._notify, select.POLLIN)
        poll.register(self._closing, select.POLLIN)
        while True:
            ready = {fd for fd, _ in poll.poll()}
            if self._closing in ready:
                return
            data, ancillary, _, _ = self._notify.recvmsg(1 << 16, socket.CMSG_LEN(256 * 4))
            for level, kind, value in ancillary:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    for at in range(0, len(value) - 3, 4):
                        os.close(int.from_bytes(value[at : at + 4], sys.byteorder))
            notice = dict(line.split("=", 1) for line in data.decode().split("\n") if "=" in line)
            with self._news:
                self._notices.append(notice)
                self._news.notify_all()


def free_port(family: socket.AddressFamily = socket.AF_INET) -> int:
    """A port that nobody listens on at the moment, for the few tests that need to name one in the file.

    It comes from below the range of the ports that the kernel gives to clients, so that no client's own port is in the
    way by the time it is used.
    """
    low = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    start = 10_000 + os.getpid() * 7919 % max(1, low - 11_000)
    for step in range(1000):
        port = start + (next(_numbers) + step) % 900
        host = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        with socket.socket(family) as sock:
            try:
                sock.bind((host, port))
            except OSError as error:
                if error.errno != errno.EADDRINUSE:
                    raise
                continue
            return port
    raise AssertionError("no port is free")


def _write(path: Path, text: str) -> None:
    aside = path.with_name(f".{path.name}.new")
    aside.write_text(text)
    os.replace(aside, path)


def _mark(pid: int) -> int | None:
    # prlimit(2) would need CAP_SYS_RESOURCE for processes of other users.
    try:
        limits = Path(f"/proc/{pid}/limits").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    line = next((line for line in limits.splitlines() if line.startswith("Max file locks")), "")
    value = line.split()[3] if line else ""
    return int(value) if value.isdigit() else None


def _title(pid: int) -> str | None:
    """A living process's command line; None for a zombie and for nobody."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        title = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if state in "ZX" else f"[{state}] {title}"


def _unix_paths(settings: Mapping[str, Any]) -> Iterable[Path]:
    for pool in settings["pools"].values():
        listen = pool.get("listen", ())
        for one in listen if isinstance(listen, list) else [listen]:
            address = one["address"] if isinstance(one, dict) else one
            if address.startswith("unix:"):
                yield Path(address.removeprefix("unix:"))


__all__ = ["LOOK", "PATIENCE", "ROOT", "Daemon", "Event", "Held", "Outcome", "free_port", "unquote"]
