"""What a worker is, seen from inside the application: user, groups, limits, directory, environment, random numbers."""

from __future__ import annotations

import copy
import grp
import json
import os
import pwd
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.child import needs_root
from tests.system.daemon import Daemon, free_port
from tests.system.shell import fetch, python_for_nobody

#: Answers with everything that it can find out about its process.
MIRROR = """
import json, os, random, resource, secrets, sys, threading, uuid

def status():
    with open("/proc/self/status") as file:
        return dict(line.rstrip("\\n").split(":\\t", 1) for line in file)

def descriptors():
    found = {}
    for name in os.listdir("/proc/self/fd"):
        try:
            found[int(name)] = os.readlink("/proc/self/fd/" + name)
        except OSError:
            pass
    return found

def attempt(call, *arguments):
    try:
        call(*arguments)
    except OSError as error:
        return error.strerror
    return "done"

def mirror():
    mask = os.umask(0)
    os.umask(mask)
    return {
        "pid": os.getpid(), "uid": os.getresuid(), "gid": os.getresgid(), "groups": os.getgroups(), "umask": mask,
        "cwd": os.getcwd(), "path": sys.path[0], "environ": dict(os.environ), "status": status(),
        "files": resource.getrlimit(resource.RLIMIT_NOFILE), "core": resource.getrlimit(resource.RLIMIT_CORE),
        "descriptors": descriptors(), "threads": [thread.name for thread in threading.enumerate()],
        "random": [random.random(), random.gauss(), uuid.uuid4().hex, secrets.token_hex(), os.urandom(8).hex()],
        "back": [attempt(os.setuid, 0), attempt(os.setgid, 0), attempt(os.setgroups, [0]), attempt(os.seteuid, 0)],
        "kill": attempt(os.kill, os.getppid(), 0),
    }

at_import = mirror()

def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "application/json")])
    return [json.dumps({**mirror(), "at_import": at_import}).encode()]
"""


@pytest.fixture
def look(as_nobody: Daemon) -> Callable[[], Any]:
    """Starts the daemon; what a worker says of itself."""
    as_nobody.write_module(MIRROR)

    def start() -> Any:
        if as_nobody.process is None:
            as_nobody.start(executable=python_for_nobody())
        return json.loads(fetch(as_nobody.address).body)

    return start


def test_a_worker_is_the_user_completely_and_for_good(as_nobody: Daemon, look: Callable[[], Any]) -> None:
    found = look()
    user = pwd.getpwnam("nobody")
    assert found["uid"] == [user.pw_uid] * 3 and found["gid"] == [user.pw_gid] * 3
    assert set(found["groups"]) == set(os.getgrouplist("nobody", user.pw_gid))
    assert found["back"] == ["Operation not permitted"] * 4
    assert found["kill"] == "Operation not permitted"  # its parent is the master
    status = found["status"]
    assert status["NoNewPrivs"] == "1"
    assert {status[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {"0" * 16}
    # Before a line of the application was imported.
    assert found["at_import"]["uid"] == [user.pw_uid] * 3
    assert found["at_import"]["pid"] == as_nobody.template()


def test_group_umask_directory_limits_and_environment(as_nobody: Daemon, look: Callable[[], Any]) -> None:
    as_nobody.settings["umask"] = "0027"
    as_nobody.settings["group"] = "daemon"
    as_nobody.pool["limits"] = {"files": 333}
    as_nobody.pool["environment"] = {"DJANGO_SETTINGS_MODULE": "mysite.settings", "PATH": "/only/this"}
    found = look()
    assert found["gid"] == [grp.getgrnam("daemon").gr_gid] * 3
    assert found["umask"] == 0o027
    assert found["cwd"] == found["path"] == str(as_nobody.app_folder)
    assert found["files"] == [333, 333]
    environment = found["environ"]
    assert environment["DJANGO_SETTINGS_MODULE"] == "mysite.settings" and environment["PATH"] == "/only/this"
    assert (
        environment["USER"] == environment["LOGNAME"] == "nobody"
        and environment["HOME"] == pwd.getpwnam("nobody").pw_dir
    )
    assert not {"NOTIFY_SOCKET", "LISTEN_FDS", "LISTEN_PID", "LISTEN_FDNAMES", "WATCHDOG_USEC"} & set(environment)


def test_a_pool_has_its_own_user_and_umask(as_nobody: Daemon, look: Callable[[], Any]) -> None:
    port = free_port()
    as_nobody.settings["pools"]["other"] = {
        **copy.deepcopy(as_nobody.pool), "listen": f"127.0.0.1:{port}", "user": "daemon", "umask": "0077",
    }  # fmt: skip
    assert look()["uid"][0] == pwd.getpwnam("nobody").pw_uid
    found = json.loads(fetch(f"127.0.0.1:{port}").body)
    assert found["uid"] == [pwd.getpwnam("daemon").pw_uid] * 3 and found["umask"] == 0o077


def test_a_worker_holds_what_it_needs_and_nothing_else(
    as_nobody: Daemon, look: Callable[[], Any], tmp_path: Path
) -> None:
    as_nobody.settings["log"]["access"] = str(tmp_path / "access.log")
    found = look()["descriptors"]
    kinds = sorted(target.split(":")[0] for number, target in found.items() if int(number) > 2)
    # Lifeline, wake-up (2), the log's own; birth channel, listener, hand-over (2), this connection; bell, poll set.
    # Neither control socket nor pid file nor configuration nor the channels of others.
    assert kinds.count("socket") == 5, found
    assert kinds.count("pipe") <= 4, found
    assert kinds.count("anon_inode") <= 4, found
    files = {
        target for target in found.values() if target.startswith("/") and not target.startswith(("/dev/", "/proc/"))
    }
    assert files == {str(tmp_path / "access.log")}


def test_an_application_where_the_user_may_not_go_names_the_directory(as_nobody: Daemon) -> None:
    closed = as_nobody.folder / "closed"
    (closed / "site").mkdir(parents=True)
    (closed / "site" / "site_app.py").write_text(MIRROR)
    closed.chmod(0o700)
    as_nobody.pool["directory"] = str(closed / "site")
    as_nobody.expect_exit = 1
    as_nobody.start(ready=False, executable=python_for_nobody())
    event = as_nobody.wait_for_event("start_failed")
    assert f"{closed} is 0700, owned by root:root: user nobody cannot enter it" in event.body
    assert str(closed / "site") in event.body
    assert as_nobody.wait_exit() == 1
    # `check` says the same.
    outcome = as_nobody.command("check", "{file}")
    assert outcome.code == 1 and f"{closed} is 0700" in outcome.err


def test_a_module_path_where_the_user_may_not_go_names_the_directory(as_nobody: Daemon) -> None:
    """As a virtual environment below /root: to the import system what is in it is just not there."""
    closed = as_nobody.folder / "closed"
    (closed / "lib").mkdir(parents=True)
    (closed / "lib" / "wanted.py").write_text("")
    closed.chmod(0o700)
    as_nobody.write_module("import wanted\n" + MIRROR)
    as_nobody.environment["PYTHONPATH"] += f":{closed / 'lib'}"
    as_nobody.expect_exit = 1
    as_nobody.start(ready=False, executable=python_for_nobody())
    event = as_nobody.wait_for_event("start_failed")
    assert "No module named 'wanted'" in event.body
    assert f"{closed} is 0700, owned by root:root: user nobody cannot enter it" in event.body
    assert as_nobody.wait_exit() == 1


@needs_root
def test_a_user_who_does_not_exist_is_a_mistake_with_its_place(daemon: Daemon) -> None:
    daemon.settings["user"] = "nobody-of-this-name"
    daemon.save()
    outcome = daemon.command("check", "--syntax", "{file}")
    assert outcome.code == 1 and f"{daemon.config_file}:" in outcome.err and "nobody-of-this-name" in outcome.err


# --- as any user -----------------------------------------------------------------------------------------------------


def test_without_a_user_the_worker_is_who_started_it_and_root_is_warned(daemon: Daemon) -> None:
    daemon.write_module(MIRROR)
    daemon.start()
    found = json.loads(fetch(daemon.address).body)
    assert found["uid"] == [os.geteuid()] * 3
    assert found["status"]["NoNewPrivs"] == "1"
    assert bool(daemon.events("workers_run_as_root")) is (os.geteuid() == 0)


@pytest.mark.parametrize("preload", ["auto", "never"])
def test_random_numbers_differ_between_workers(daemon: Daemon, preload: str) -> None:
    daemon.write_module(MIRROR)
    daemon.pool["preload"] = preload
    daemon.pool["workers"] = {"start": 6, "min_spare": 1, "max_spare": 6, "max": 8}
    daemon.start()
    seen: dict[int, Any] = {}
    while len(seen) < 4:
        found = json.loads(fetch(daemon.address).body)
        if found["pid"] not in seen:
            seen[found["pid"]] = found
            # The next answer has to be another's.
            os.kill(found["pid"], signal.SIGTERM)
    for column in range(5):
        assert len({found["random"][column] for found in seen.values()}) == len(seen)
    threads = [found["threads"] for found in seen.values()]
    assert all(names == ["MainThread", "porter"] for names in threads)


def test_what_the_worker_inherits_is_reset(daemon: Daemon) -> None:
    """Programs that the application starts get the default actions, but for SIGPIPE, which Python ignores as well."""
    daemon.write_module(MIRROR)
    daemon.start()
    status = json.loads(fetch(daemon.address).body)["status"]
    ignored = int(status["SigIgn"], 16)
    for signum in signal.valid_signals():
        if signum not in (signal.SIGPIPE, signal.SIGXFSZ):
            assert not ignored >> (signum - 1) & 1, f"signal {signum} is ignored"
    assert int(status["SigBlk"], 16) == 0
