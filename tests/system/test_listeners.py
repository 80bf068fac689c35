"""Addresses as operators write them: TCP, IPv6, unix, systemd's; bound, shared, moved by a reload, gone at the end."""

from __future__ import annotations

import grp
import os
import pwd
import socket
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.child import needs_root
from tests.system.daemon import Daemon, free_port
from tests.system.shell import fetch
from tests.system.traffic import Traffic


def listening(daemon: Daemon, pool: str = "web") -> list[str]:
    addresses: list[str] = daemon.status()["pools"][pool]["listen"]
    return addresses


# --- kinds -----------------------------------------------------------------------------------------------------------


def test_v4_v6_and_unix_in_one_pool(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    daemon.listen_on("127.0.0.1:0", "[::1]:0", f"unix:{path}")
    daemon.start()
    addresses = listening(daemon)
    assert (
        addresses[0].startswith("127.0.0.1:") and addresses[1].startswith("[::1]:") and addresses[2].endswith(str(path))
    )
    addresses[2] = f"unix:{path}"
    assert [fetch(address).text for address in addresses] == ["1"] * 3
    assert daemon.stop() == 0
    for address in addresses:
        with pytest.raises(ConnectionRefusedError):
            fetch(address)
    # systemd has it in its store, and is about to start the next one; see test_start.py for the other case.
    path.unlink()


def test_v4_and_v6_may_have_the_same_port(daemon: Daemon) -> None:
    """As in ``listen: [0.0.0.0:80, "[::]:80"]``: the one for IPv6 does not take IPv4 as well."""
    port = free_port()
    daemon.listen_on(f"0.0.0.0:{port}", f"[::]:{port}")
    daemon.start()
    assert fetch(f"127.0.0.1:{port}").text == fetch(f"[::1]:{port}").text == "1"


def test_a_socket_that_systemd_passed_is_used_as_it_is(daemon: Daemon) -> None:
    daemon.start()
    assert listening(daemon) == [daemon.address]
    assert fetch(daemon.address).text == "1"
    # Workers do not see what was meant for the master.
    environment = Path(f"/proc/{daemon.pids()[0]}/environ").read_bytes()
    assert b"LISTEN_FDS" not in environment and b"NOTIFY_SOCKET" not in environment


def test_a_name_that_systemd_did_not_pass_is_told(daemon: Daemon) -> None:
    daemon.pool["listen"] = "systemd:other"
    daemon.expect_exit, daemon.expect_noise = 1, True
    daemon.start(ready=False)
    assert daemon.wait_exit() == 1
    assert "systemd:other" in daemon.log and "web" in daemon.log


# --- unix ------------------------------------------------------------------------------------------------------------


def test_mode_of_a_unix_listener(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    daemon.listen_on({"address": f"unix:{path}", "mode": "0640"})
    daemon.start()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert fetch(f"unix:{path}").text == "1"


@needs_root
def test_owner_of_a_unix_listener(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    daemon.listen_on({"address": f"unix:{path}", "mode": "0600", "owner": "nobody", "group": "daemon"})
    daemon.start()
    status = path.stat()
    assert (status.st_uid, stat.S_IMODE(status.st_mode)) == (pwd.getpwnam("nobody").pw_uid, 0o600)
    assert status.st_gid == grp.getgrnam("daemon").gr_gid


def test_a_live_unix_socket_is_not_stolen(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        before = path.stat().st_ino
        daemon.listen_on(f"unix:{path}")
        daemon.expect_exit, daemon.expect_noise = 1, True
        daemon.start(ready=False)
        assert daemon.wait_exit() == 1
        assert str(path) in daemon.log and path.stat().st_ino == before
    path.unlink()


def test_a_dead_unix_socket_is_replaced(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
    daemon.listen_on(f"unix:{path}")
    daemon.start()
    assert fetch(f"unix:{path}").text == "1"


def test_a_file_in_the_way_is_not_touched(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    path.write_text("precious")
    daemon.listen_on(f"unix:{path}")
    daemon.expect_exit, daemon.expect_noise = 1, True
    daemon.start(ready=False)
    assert daemon.wait_exit() == 1
    assert str(path) in daemon.log and path.read_text() == "precious"
    path.unlink()


def test_a_socket_that_was_replaced_meanwhile_is_not_removed(daemon: Daemon, tmp_path: Path) -> None:
    path = tmp_path / "web.sock"
    daemon.listen_on(f"unix:{path}")
    daemon.start()
    path.unlink()
    path.write_text("somebody else's")
    assert daemon.stop() == 0
    assert path.read_text() == "somebody else's"
    path.unlink()


# --- several pools ---------------------------------------------------------------------------------------------------


def test_pools_beside_each_other_and_from_included_files(daemon: Daemon, tmp_path: Path) -> None:
    folder = daemon.folder / "conf.d"
    folder.mkdir()
    for name in ("b", "a"):
        daemon.write_app(version=name, module=f"app_{name}")
        (folder / f"{name}.yaml").write_text(
            f"pools:\n  {name}:\n    listen: unix:{tmp_path}/{name}.sock\n    app: app_{name}\n"
            f"    directory: {daemon.app_folder}\n    workers: {{start: 1, min_spare: 1, max_spare: 1, max: 2}}\n"
            f"    timeouts: {{probation: 300ms}}\n"
        )
    daemon.settings["include"] = "conf.d/*.yaml"
    daemon.start()
    daemon.wait_for_status(lambda s: all(pool["counts"]["idle"] for pool in s["pools"].values()))
    assert list(daemon.status()["pools"]) == ["web", "a", "b"]
    assert fetch(daemon.address).text == "1"
    assert [fetch(f"unix:{tmp_path}/{name}.sock").text for name in "ab"] == ["a", "b"]
    # One pool's worker is nothing to the others; a pool that goes takes its address along, one that comes brings it.
    (folder / "a.yaml").rename(folder / "a.off")
    web = set(daemon.pids())
    assert daemon.ask_reload() == ""
    assert list(daemon.status()["pools"]) == ["web", "b"]
    daemon.wait_for_event("listener_closed", listen=f"unix:{tmp_path}/a.sock")
    assert not (tmp_path / "a.sock").exists() and fetch(f"unix:{tmp_path}/b.sock").text == "b"
    assert web.isdisjoint(daemon.pids())
    (folder / "a.off").rename(folder / "a.yaml")
    assert daemon.ask_reload() == ""
    assert fetch(f"unix:{tmp_path}/a.sock").text == "a"


def test_one_pool_that_cannot_load_keeps_the_service_from_starting(daemon: Daemon, tmp_path: Path) -> None:
    daemon.settings["pools"]["other"] = {
        "listen": f"unix:{tmp_path}/other.sock", "app": "nosuchmodule", "directory": str(daemon.app_folder),
    }  # fmt: skip
    daemon.expect_exit = 1
    daemon.start(ready=False)
    event = daemon.wait_for_event("start_failed")
    assert "pool other" in event.body and "nosuchmodule" in event.body
    assert daemon.wait_exit() == 1
    assert not (tmp_path / "other.sock").exists()


# --- moved by a reload -----------------------------------------------------------------------------------------------


def test_an_address_is_added_moved_and_dropped_under_load(daemon: Daemon, tmp_path: Path) -> None:
    first, second = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    unix = f"unix:{tmp_path}/web.sock"
    daemon.listen_on(first)
    daemon.start()
    with Traffic(daemon, address=first) as traffic:
        daemon.pool["listen"] = [first, second, unix]
        daemon.save()
        assert daemon.ask_reload() == ""
        assert fetch(second).text == fetch(unix).text == "1"
        traffic.wait(20)
        daemon.pool["listen"] = [unix, first]
        daemon.save()
        assert daemon.ask_reload() == ""
        daemon.wait_for_event("listener_closed", listen=second)
        with pytest.raises(ConnectionRefusedError):
            fetch(second)
        traffic.wait(20)
    for client in traffic.clients:
        client.result().check()
    daemon.pool["listen"] = second
    daemon.save()
    assert daemon.ask_reload() == ""
    assert fetch(second).text == "1"
    daemon.wait_for_event("listener_closed", listen=first)
    daemon.wait_for_event("listener_closed", listen=unix)
    for address in (first, unix):
        with pytest.raises(OSError, match=r"refused|No such file"):
            fetch(address)


def test_an_address_is_dropped_while_an_old_worker_still_serves(daemon: Daemon) -> None:
    first, second = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    daemon.listen_on(first)
    daemon.start()
    held = daemon.hold("one", first)
    daemon.pool["listen"] = second
    daemon.save()
    assert daemon.ask_reload() == ""
    assert fetch(second).text == "1"
    with pytest.raises(OSError, match="refused"):
        fetch(first)
    held.finish()


def test_a_reload_keeps_what_has_not_changed(daemon: Daemon) -> None:
    """The same socket, so that what waits in its queue is served by the next generation."""
    daemon.start()
    before = inodes(daemon.pid)
    daemon.write_app(version="2")
    assert daemon.ask_reload() == ""
    assert inodes(daemon.pid) == before
    assert fetch(daemon.address).text == "2"


def inodes(pid: int) -> set[str]:
    """The listening TCP sockets that a process holds."""
    table = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    listening = {f"socket:[{fields[9]}]" for fields in table if fields[3] == "0A"}
    return listening & {os.readlink(fd) for fd in Path(f"/proc/{pid}/fd").iterdir() if os.path.lexists(fd)}


def test_two_daemons_do_not_share_an_address(new_daemon: Callable[..., Daemon]) -> None:
    first, second = new_daemon(), new_daemon()
    address = f"127.0.0.1:{free_port()}"
    first.listen_on(address)
    first.start()
    second.listen_on(address)
    second.expect_exit, second.expect_noise = 1, True
    second.start(ready=False)
    assert second.wait_exit() == 1
    assert address in second.log and "in use" in second.log
    assert fetch(address).text == "1"
