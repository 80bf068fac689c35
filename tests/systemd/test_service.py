"""preforkd as a service of a systemd that has really booted: what an operator does, and what happens to servers.

The load is a client inside the machine that counts every request on TCP v4, v6 and a unix socket. What is promised of a
crash or a restart is promised of connections: none refused, none cut short, and the next master serves within a second.
"""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.systemd.machine import Image, Machine, until

CLIENT = Path(__file__).with_name("load.py").read_text()

V4 = "127.0.0.1:80"
V6 = "[::1]:80"
UNIX = "unix:/run/preforkd/web.sock"
ACTIVATED = "unix:/run/preforkd-web.sock"
ADDRESSES = (V4, V6, UNIX)

#: How long a request may take when its master goes away; also `graceful` below.
GRACEFUL = 4

CONFIG = f"""\
user: preforkd
log:
  level: debug
  access: /var/log/preforkd/access.log
pools:
  web:
    listen: ["0.0.0.0:80", "[::]:80", "unix:/run/preforkd/web.sock"]
    app: shop:application
    directory: /srv/shop
    workers: {{start: 4, min_spare: 2, max_spare: 6, max: 12}}
    timeouts: {{graceful: {GRACEFUL}s}}
"""

APP = """\
import os
import time

VERSION = "one"


def application(environ, start_response):
    path = environ["PATH_INFO"]
    body = VERSION
    if path == "/pid":
        body = str(os.getpid())
    elif path == "/who":
        body = f"{os.getuid()} {os.getgid()} {os.getgroups()}"
    elif path == "/slow":
        body = "begun ended"
    start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    if path == "/slow":
        yield b"begun "
        time.sleep(float(environ["QUERY_STRING"]))
        yield b"ended"
    else:
        yield body.encode()
"""

#: Drop-ins: what a test changes about the unit, as an operator would (systemctl edit).
DROP_IN = "/etc/systemd/system/preforkd.service.d/test.conf"


@dataclass(frozen=True)
class Count:
    """What the load saw at one address; see load.py."""

    address: str
    served: int
    refused: int
    failed: list[str]
    gap: float
    worst: float
    bodies: dict[str, int]


class Load:
    """The client while it runs; `counts` is filled when it has been told to leave."""

    def __init__(self) -> None:
        self.counts: list[Count] = []

    def assert_nobody_noticed(self, within: float = 1.0) -> None:
        """All requests were answered, and at no address did the answers pause for longer than ``within`` seconds."""
        assert self.counts
        for count in self.counts:
            assert count.refused == 0, count
            assert count.failed == [], count
            assert count.served > 0, count
            assert count.gap < within, count

    def bodies(self) -> set[str]:
        return {body for count in self.counts for body in count.bodies}


class Request:
    """One request that has begun to be answered, and will go on."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self.process = process
        self.begun = self._event("begun")

    def _event(self, wanted: str) -> dict[str, Any]:
        assert self.process.stdout is not None
        event: dict[str, Any] = json.loads(self.process.stdout.readline() or '{"event": "the client died"}')
        assert event["event"] == wanted, event
        return event

    def ended(self) -> dict[str, Any]:
        """The rest of the answer; fails if the answer was cut short."""
        return self._event("answer")


class Service:
    """A machine with preforkd's units, an application and a configuration."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        #: How long `systemctl start` took, in seconds.
        self.start_took = 0.0

    # --- the operator ------------------------------------------------------------------------------------------------

    def start(self) -> None:
        before = time.monotonic()
        done = self.machine.systemctl("start", "preforkd")
        self.start_took = time.monotonic() - before
        assert done.returncode == 0, done.stderr + "\n".join(self.machine.messages("preforkd"))

    def configure(self, text: str) -> None:
        self.machine.write("/etc/preforkd/preforkd.yaml", text)

    def deploy(self, app: str) -> None:
        self.machine.write("/srv/shop/shop.py", app)

    def show(self, name: str) -> str:
        return self.machine.show("preforkd", name)

    @property
    def master(self) -> int:
        return int(self.show("MainPID"))

    def wait_for_successor(self, master: int) -> None:
        """Wait until a next master is in charge after ``master`` died, by systemd's account."""
        until(lambda: self.master not in (0, master), "the next master", every=0.1)
        until(lambda: self.show("ActiveState") == "active", "the next master serves", every=0.1)
        assert self.show("NRestarts") == "1"

    def status(self) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.machine.run("/opt/preforkd/bin/preforkd", "status", "--json"))
        return status

    def workers(self) -> list[int]:
        """The pids of the workers that serve."""
        workers = self.status()["pools"]["web"]["workers"]
        return [worker["pid"] for worker in workers if worker["state"] not in ("starting", "dead")]

    def signal(self, name: str, pid: int) -> None:
        self.machine.run("sh", "-c", f"kill -{name} {pid}")

    def alive(self, pid: int) -> bool:
        stat = self.machine.path(f"/proc/{pid}/stat")
        try:
            return stat.read_text().rpartition(")")[2].split()[0] not in "ZX"
        except (FileNotFoundError, ProcessLookupError):
            return False

    def logged(self, text: str) -> bool:
        return any(text in message for message in self.machine.messages("preforkd"))

    @property
    def succession(self) -> float:
        """The longest that clients may wait for the next master: a second, more on a machine that is busy otherwise.

        It is RestartSec and a start, and how long a start takes today has been measured.
        """
        return max(1.0, 0.2 + 2 * self.start_took)

    # --- the clients -------------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def load(self, *addresses: str) -> Iterator[Load]:
        """Requests to ``addresses`` while the block runs."""
        load = Load()
        process = self.machine.start("python3", "-c", CLIENT, *(addresses or ADDRESSES))
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            assert json.loads(process.stdout.readline())["event"] == "started"
            yield load
        finally:
            process.stdin.close()
            lines = process.stdout.read().splitlines()
            process.stdout.close()
            process.wait()
        for line in lines:
            result = json.loads(line)
            assert result.pop("event") == "result"
            load.counts.append(Count(**result))

    @contextlib.contextmanager
    def slow(self, seconds: float, address: str = V4) -> Iterator[Request]:
        """A request whose answer has begun when the block starts, and ends after ``seconds``."""
        command = ("python3", "-c", CLIENT, "--one", address, f"/slow?{seconds}")
        process = self.machine.start(*command, stdin=subprocess.DEVNULL)
        assert process.stdout is not None
        try:
            yield Request(process)
        finally:
            process.stdout.close()
            process.wait()

    def attempt(self, address: str, path: str = "/") -> dict[str, Any]:
        """One request, whatever becomes of it."""
        lines = self.machine.run("python3", "-c", CLIENT, "--one", address, path).splitlines()
        last: dict[str, Any] = json.loads(lines[-1])
        return last

    def get(self, path: str = "/", address: str = V4) -> str:
        """The body of one answer."""
        answer = self.attempt(address, path)
        assert answer.get("status") == 200, answer
        return str(answer["body"])


@contextlib.contextmanager
def booted(image: Image, machines: list[Machine], **files: str) -> Iterator[Service]:
    settings = {"/etc/preforkd/preforkd.yaml": CONFIG, "/srv/shop/shop.py": APP, **files}
    with Machine(image, settings) as machine:
        machines.append(machine)
        yield Service(machine)


@pytest.fixture
def service(here: Image, machines: list[Machine]) -> Iterator[Service]:
    """Started, on this system's systemd."""
    with booted(here, machines) as service:
        service.start()
        yield service


def drop_in(**settings: str) -> dict[str, str]:
    lines = [f"{name}={value}" for name, value in settings.items()]
    return {DROP_IN: "\n".join(["[Service]", *lines, ""])}


# --- what an operator does -------------------------------------------------------------------------------------------


def test_starts_and_serves(service: Service) -> None:
    """`systemctl start` comes back when workers serve."""
    assert [service.get(address=address) for address in ADDRESSES] == ["one"] * 3
    assert service.show("ActiveState") == "active"
    assert service.show("Result") == "success"
    assert service.show("StatusText"), "numbers for `systemctl status`"
    assert len(service.workers()) >= 4
    uid, _ = service.get("/who").split(" ", 1)
    assert int(uid) == int(service.machine.run("id", "-u", "preforkd"))
    assert service.machine.path("/run/preforkd/preforkd.pid").read_text().strip() == str(service.master)


def test_reload_takes_new_code_and_settings(service: Service) -> None:
    master = service.master
    with service.load() as load:
        service.deploy(APP.replace('"one"', '"two"'))
        service.configure(CONFIG.replace("start: 4", "start: 5"))
        done = service.machine.systemctl("reload", "preforkd")
        assert done.returncode == 0, done.stderr
        # From here on, only the new generation is asked for anything new.
        assert service.get() == "two"
    load.assert_nobody_noticed()
    assert load.bodies() == {"one", "two"}
    assert service.show("ActiveState") == "active"
    assert service.master == master


@pytest.mark.parametrize(
    ("config", "app", "named"),
    [
        pytest.param(CONFIG + "  shop: {listen: 80\n", APP, "preforkd.yaml:1", id="syntax"),
        pytest.param(CONFIG.replace("max: 12", "max: lots"), APP, "preforkd.yaml:10", id="value"),
        pytest.param(CONFIG, "import no_such_module\n" + APP, "no_such_module", id="import"),
    ],
)
def test_broken_reload_fails_and_changes_nothing(service: Service, config: str, app: str, named: str) -> None:
    master = service.master
    with service.load() as load:
        service.configure(config)
        service.deploy(app)
        done = service.machine.systemctl("reload", "preforkd")
        assert done.returncode != 0
        assert service.show("ActiveState") == "active"
        assert service.show("ReloadResult") == "exit-code"
        assert service.logged(named)
        assert "reload" in service.show("StatusText")
        assert service.get() == "one"
        # Mended, the next reload works.
        service.configure(CONFIG)
        service.deploy(APP.replace('"one"', '"two"'))
        done = service.machine.systemctl("reload", "preforkd")
        assert done.returncode == 0, done.stderr
        assert service.get() == "two"
    load.assert_nobody_noticed()
    assert service.show("ReloadResult") == "success"
    assert service.master == master


def test_dropped_address_is_refused(service: Service) -> None:
    """A socket that systemd went on keeping would go on accepting connections, for nobody."""
    assert service.show("NFileDescriptorStore") == "3"
    with service.load(V4, UNIX) as load:
        service.configure(CONFIG.replace(', "[::]:80"', ""))
        done = service.machine.systemctl("reload", "preforkd")
        assert done.returncode == 0, done.stderr
        until(
            lambda: "ConnectionRefusedError" in service.attempt(V6).get("what", ""), "the address is refused", every=0.1
        )
        assert service.show("NFileDescriptorStore") == "2"
    load.assert_nobody_noticed()


def test_restart_refuses_nobody(service: Service) -> None:
    master = service.master
    with service.load() as load, service.slow(1) as slow:
        done = service.machine.systemctl("restart", "preforkd")
        assert done.returncode == 0, done.stderr
        assert slow.ended()["body"] == "begun ended"
    # Newcomers wait until the slow request of the old master has ended, and for the new one to be ready.
    load.assert_nobody_noticed(1 + service.succession)
    assert service.master != master


def test_stop_finishes_what_was_begun(service: Service) -> None:
    with service.slow(2) as slow:
        done = service.machine.systemctl("stop", "preforkd")
        assert done.returncode == 0, done.stderr
        assert slow.ended()["body"] == "begun ended"
    assert service.show("ActiveState") == "inactive"
    assert service.show("Result") == "success"
    assert service.machine.processes("preforkd") == []
    assert not service.machine.path("/run/preforkd").exists()


def test_stop_may_take_longer_than_systemd_gives(here: Image, machines: list[Machine]) -> None:
    """While requests are being finished, the master asks systemd for more time (EXTEND_TIMEOUT_USEC)."""
    with booted(here, machines, **drop_in(TimeoutStopSec="1s")) as service:
        service.start()
        with service.slow(3) as slow:
            done = service.machine.systemctl("stop", "preforkd")
            assert done.returncode == 0, done.stderr
            assert slow.ended()["body"] == "begun ended"
        assert service.show("Result") == "success"


def test_hopeless_configuration_is_tried_once(here: Image, machines: list[Machine]) -> None:
    with booted(here, machines, **{"/etc/preforkd/preforkd.yaml": CONFIG.replace("listen:", "lisen:")}) as service:
        done = service.machine.systemctl("start", "preforkd")
        assert done.returncode != 0
        assert service.show("ActiveState") == "failed"
        assert service.show("ExecMainStatus") == "78"
        assert service.show("NRestarts") == "0"
        assert service.logged("/etc/preforkd/preforkd.yaml:7:")


def test_logs_are_rotated(service: Service) -> None:
    log, old = "/var/log/preforkd/access.log", "/var/log/preforkd/access.log.1"
    service.get("/?before")
    service.machine.run("logrotate", "--force", "/etc/logrotate.d/preforkd")
    service.get("/?after")
    until(lambda: "/?after" in service.machine.path(log).read_text(), "the new file is written to")
    assert "/?before" in service.machine.path(old).read_text()
    assert "/?after" not in service.machine.path(old).read_text()


# --- what happens to servers -----------------------------------------------------------------------------------------


def test_killed_worker_is_replaced(service: Service) -> None:
    master = service.master
    victim = int(service.get("/pid"))
    service.signal("KILL", victim)
    until(lambda: len(service.workers()) >= 4 and victim not in service.workers(), "the worker is replaced", every=0.1)
    assert service.get() == "one"
    assert service.logged("SIGKILL")
    assert service.show("ActiveState") == "active"
    assert service.master == master
    assert service.show("NRestarts") == "0"


def test_killed_master_costs_nobody_anything(service: Service) -> None:
    master = service.master
    with service.load() as load, service.slow(3) as slow:
        service.signal("KILL", master)
        service.wait_for_successor(master)
        # The worker of the old master finishes beside the new one.
        assert slow.ended()["body"] == "begun ended"
    load.assert_nobody_noticed(service.succession)
    until(lambda: service.show("StatusText") != "", "the new master says how it is", every=0.1)


def test_hung_master_is_replaced_by_the_watchdog(here: Image, machines: list[Machine]) -> None:
    with booted(here, machines, **drop_in(WatchdogSec="1s")) as service:
        service.start()
        master = service.master
        with service.load() as load, service.slow(3) as slow:
            service.signal("STOP", master)
            service.wait_for_successor(master)
            assert slow.ended()["body"] == "begun ended"
        load.assert_nobody_noticed(service.succession)
        assert service.logged("Watchdog timeout")


def test_stopped_orphan_is_ended_by_the_next_master(service: Service) -> None:
    master = service.master
    orphan = int(service.get("/pid"))
    service.signal("STOP", orphan)
    service.signal("KILL", master)
    service.wait_for_successor(master)
    began = time.monotonic()
    until(lambda: not service.alive(orphan), "the orphan is gone", seconds=GRACEFUL + 5)
    assert time.monotonic() - began < GRACEFUL + 2
    assert service.get() == "one"


def test_stopped_worker_does_not_survive_a_stop(service: Service) -> None:
    """KillMode=process leaves it to the master to sweep its control group."""
    stopped = int(service.get("/pid"))
    service.signal("STOP", stopped)
    done = service.machine.systemctl("stop", "preforkd")
    assert done.returncode == 0, done.stderr
    assert not service.alive(stopped)
    assert service.machine.processes("preforkd") == []


# --- sockets of systemd's --------------------------------------------------------------------------------------------


def test_socket_activation(here: Image, machines: list[Machine]) -> None:
    config = CONFIG.replace('["0.0.0.0:80", "[::]:80", "unix:/run/preforkd/web.sock"]', "systemd:web")
    with booted(here, machines, **{"/etc/preforkd/preforkd.yaml": config}) as service:
        addresses = (V4, V6, ACTIVATED)
        service.machine.run("systemctl", "start", "preforkd.socket")
        assert service.show("ActiveState") == "inactive"
        # The first connection starts the service, and is answered.
        before = time.monotonic()
        assert service.get() == "one"
        service.start_took = time.monotonic() - before
        # It answers before it says READY; to start what starts is to wait for that.
        service.machine.run("systemctl", "start", "preforkd")
        assert service.show("ActiveState") == "active"
        with service.load(*addresses) as load:
            service.machine.run("systemctl", "restart", "preforkd")
            master = service.master
            service.signal("KILL", master)
            service.wait_for_successor(master)
            service.machine.run("systemctl", "reload", "preforkd")
        load.assert_nobody_noticed(service.succession)
        service.machine.run("systemctl", "stop", "preforkd")
        assert service.machine.show("preforkd.socket", "ActiveState") == "active"
        assert [service.get(address=address) for address in addresses] == ["one"] * 3


# --- another systemd -------------------------------------------------------------------------------------------------


@pytest.mark.bare
def test_newest_systemd(newest: Image, machines: list[Machine]) -> None:
    """The same units under Debian 13's systemd: start, reload, a broken one, a crash, a restart, stop."""
    with booted(newest, machines) as service:
        assert service.machine.version() >= 257
        service.start()
        master = service.master
        with service.load() as load:
            service.deploy(APP.replace('"one"', '"two"'))
            assert service.machine.systemctl("reload", "preforkd").returncode == 0
            assert service.get() == "two"
            service.configure(CONFIG.replace("max: 12", "max: lots"))
            assert service.machine.systemctl("reload", "preforkd").returncode != 0
            service.configure(CONFIG)
            with service.slow(2) as slow:
                service.signal("KILL", master)
                service.wait_for_successor(master)
                assert slow.ended()["body"] == "begun ended"
            service.machine.run("systemctl", "restart", "preforkd")
        load.assert_nobody_noticed(service.succession)
        assert load.bodies() == {"one", "two"}
        service.machine.run("systemctl", "stop", "preforkd")
        assert service.show("Result") == "success"
        assert service.machine.processes("preforkd") == []
