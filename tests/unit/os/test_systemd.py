"""sd_notify towards a socket of the test, passed descriptors in a forked child, and cgroups made of files."""

from __future__ import annotations

import array
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from preforkd import systemd
from preforkd.systemd import Notifier, Passed
from tests.support.child import in_child


class Manager:
    """systemd's end of the notification socket."""

    def __init__(self, address: str) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.settimeout(5)
        self.sock.bind("\0" + address[1:] if address.startswith("@") else address)

    def message(self) -> dict[str, str]:
        return self.message_with_fds()[0]

    def message_with_fds(self) -> tuple[dict[str, str], list[int]]:
        data, ancillary, _, _ = self.sock.recvmsg(4096, socket.CMSG_SPACE(4 * 300), socket.MSG_CMSG_CLOEXEC)
        fds = array.array("i")
        for _, _, content in ancillary:
            fds.frombytes(content)
        return dict(line.split("=", 1) for line in data.decode().split("\n")), list(fds)


@pytest.fixture(params=["path", "abstract"])
def address(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "notify") if request.param == "path" else f"@preforkd-test-{os.getpid()}"


@pytest.fixture
def manager(address: str) -> Iterator[Manager]:
    one = Manager(address)
    yield one
    one.sock.close()


@pytest.fixture
def notifier(manager: Manager, address: str) -> Iterator[Notifier]:
    environ = {"NOTIFY_SOCKET": address}
    one = Notifier.from_environment(environ)
    assert environ == {"NOTIFY_SOCKET": address}
    assert one.enabled
    yield one
    one.close()


def test_messages(notifier: Notifier, manager: Manager) -> None:
    for sent, expected in (
        (notifier.ready(), {"READY": "1"}),
        (notifier.ready("5 workers"), {"READY": "1", "STATUS": "5 workers"}),
        (notifier.stopping("draining"), {"STOPPING": "1", "STATUS": "draining"}),
        (notifier.status("busy\nWATCHDOG=trigger\r\n"), {"STATUS": "busy WATCHDOG=trigger"}),
        (notifier.watchdog(), {"WATCHDOG": "1"}),
        (notifier.extend_timeout(1.5), {"EXTEND_TIMEOUT_USEC": "1500000"}),
        (notifier.mainpid(812), {"MAINPID": "812"}),
        (notifier.store_remove("listen=x"), {"FDSTOREREMOVE": "1", "FDNAME": "listen=x"}),
    ):
        assert sent
        assert manager.message() == expected


def test_reloading_carries_the_time(notifier: Notifier, manager: Manager) -> None:
    before = time.monotonic_ns() // 1000
    assert notifier.reloading("reading the file")
    message = manager.message()
    assert before <= int(message.pop("MONOTONIC_USEC")) <= time.monotonic_ns() // 1000
    assert message == {"RELOADING": "1", "STATUS": "reading the file"}


def test_store(notifier: Notifier, manager: Manager) -> None:
    reading, writing = os.pipe()
    assert notifier.store([reading, writing], "a:b\nc")
    message, fds = manager.message_with_fds()
    assert message == {"FDSTORE": "1", "FDNAME": "a_b_c"}
    assert [os.fstat(fd).st_ino for fd in fds] == [os.fstat(reading).st_ino, os.fstat(writing).st_ino]
    for fd in (reading, writing, *fds):
        os.close(fd)


def test_store_of_many(notifier: Notifier, manager: Manager) -> None:
    """The kernel takes 253 descriptors a message."""
    fd = os.open("/dev/null", os.O_RDONLY)
    assert notifier.store([fd] * 300, "x")
    numbers = []
    for _ in range(2):
        fds = manager.message_with_fds()[1]
        numbers.append(len(fds))
        for one in fds:
            os.close(one)
    assert numbers == [253, 47]
    os.close(fd)


def test_store_of_a_closed_descriptor_fails_quietly(notifier: Notifier) -> None:
    assert not notifier.store([9999], "x")
    assert not notifier.store([], "x")


def test_never_blocks(notifier: Notifier) -> None:
    results = [notifier.status("x" * 1000) for _ in range(2000)]
    assert results[0]
    assert not results[-1]


def test_nobody_there(tmp_path: Path) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": str(tmp_path / "gone")})
    assert notifier.enabled
    assert not notifier.ready()
    notifier.close()
    assert not notifier.ready()
    assert notifier.fileno() == -1


def test_without_systemd() -> None:
    notifier = Notifier.from_environment({})
    assert (notifier.enabled, notifier.problem, notifier.fileno()) == (False, "", -1)
    assert not notifier.ready()
    notifier.close()


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative", "/" + "x" * 200])
def test_addresses_that_cannot_be_used(address: str) -> None:
    notifier = Notifier(address)
    assert not notifier.ready()
    assert notifier.enabled is (address[0] == "/")
    assert bool(notifier.problem) is (address[0] != "/")
    notifier.close()


def test_watchdog_interval() -> None:
    mine = str(os.getpid())
    assert systemd.watchdog_interval({"WATCHDOG_USEC": "30000000"}) == 15.0
    assert systemd.watchdog_interval({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": mine}) == 15.0
    assert systemd.watchdog_interval({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}) is None
    for odd in ({}, {"WATCHDOG_USEC": ""}, {"WATCHDOG_USEC": "0"}, {"WATCHDOG_USEC": "-1"}, {"WATCHDOG_USEC": "x"}):
        assert systemd.watchdog_interval(odd) is None


class TestListenFds:
    def pass_on(self, names: str | None, count: str = "3", pid: int | None = None) -> tuple[list[Passed], list[bool]]:
        """Have a forked child receive three sockets as systemd passes them: at 3, 4 and 5, inheritable."""

        def receive() -> tuple[list[Passed], list[bool]]:
            # Descriptors of the test runner are in the way there; this child does not need them.
            pairs = [socket.socketpair() for _ in range(3)]
            high = [os.dup2(pair[0].fileno(), 100 + index) for index, pair in enumerate(pairs)]
            kept = [os.dup2(fd, 200 + index) for index, fd in enumerate(os.pipe())]
            assert kept
            for index, fd in enumerate(high):
                os.dup2(fd, 3 + index, inheritable=True)
            environ = {"LISTEN_PID": str(pid or os.getpid()), "LISTEN_FDS": count}
            if names is not None:
                environ["LISTEN_FDNAMES"] = names
            before = dict(environ)
            passed = systemd.listen_fds(environ)
            assert environ == before
            return passed, [os.get_inheritable(one.fd) for one in passed]

        return in_exec_free_child(receive)

    def test_with_names(self) -> None:
        passed, inheritable = self.pass_on("web:web:listen=127.0.0.1%3A80")
        assert passed == [(3, "web"), (4, "web"), (5, "listen=127.0.0.1%3A80")]
        assert inheritable == [False, False, False]

    def test_without_names(self) -> None:
        assert self.pass_on(None)[0] == [(3, "unknown"), (4, "unknown"), (5, "unknown")]

    def test_with_too_few_names(self) -> None:
        assert self.pass_on("web:")[0] == [(3, "web"), (4, "unknown"), (5, "unknown")]

    def test_for_another_process(self) -> None:
        assert self.pass_on("a:b:c", pid=1)[0] == []

    @pytest.mark.parametrize("count", ["0", "-1", "", "three", "³"])
    def test_odd_numbers(self, count: str) -> None:
        assert self.pass_on("a:b:c", count=count)[0] == []

    def test_numbers_that_are_not_open(self) -> None:
        names = [one.name for one in self.pass_on("a:b:c", count="90")[0]]
        assert names[:3] == ["a", "b", "c"]


def in_exec_free_child(receive: object) -> tuple[list[Passed], list[bool]]:
    """`in_child`, with its pipe out of the way of descriptors 3 to 5."""
    spare = [os.open("/dev/null", os.O_RDONLY) for _ in range(8)]
    try:
        return in_child(receive)  # type: ignore[arg-type]
    finally:
        for fd in spare:
            os.close(fd)


def test_environment_for_workers() -> None:
    environ = {"PATH": "/bin", "LISTEN_FDS": "1", "NOTIFY_SOCKET": "/x", "WATCHDOG_USEC": "1", "JOURNAL_STREAM": "8:9"}
    assert systemd.without_ours(environ) == {"PATH": "/bin", "JOURNAL_STREAM": "8:9"}
    assert len(environ) == 5


class TestCgroup:
    @pytest.mark.parametrize(
        ("lines", "place"),
        [
            ("0::/system.slice/preforkd.service\n", ""),
            ("3:pids:/x\n1:name=systemd:/system.slice/preforkd.service\n0::/\n", "systemd"),
            ("1:name=systemd:/\n0::/system.slice/preforkd.service\n", "unified"),
        ],
    )
    def test_service(self, tmp_path: Path, lines: str, place: str) -> None:
        listing = tmp_path / "cgroup"
        listing.write_text(lines)
        directory = tmp_path / "mount" / place / "system.slice" / "preforkd.service"
        directory.mkdir(parents=True)
        (directory / "cgroup.procs").write_text(f"{os.getpid()}\n4711\n0\n4712\n")
        where = {"listing": str(listing), "mount": str(tmp_path / "mount")}
        found = systemd.own_cgroup(**where)
        assert found is not None
        assert os.path.samefile(found, directory)
        assert systemd.cgroup_pids(**where) == {4711, 4712}

    @pytest.mark.parametrize("lines", ["0::/\n", "0::/user.slice/session-1.scope\n", "nonsense\n", ""])
    def test_not_a_service(self, tmp_path: Path, lines: str) -> None:
        """There would be other people's processes in it."""
        listing = tmp_path / "cgroup"
        listing.write_text(lines)
        (tmp_path / "cgroup.procs").write_text("1\n")
        assert systemd.own_cgroup(listing=str(listing), mount=str(tmp_path)) is None
        assert systemd.cgroup_pids(listing=str(listing), mount=str(tmp_path)) == frozenset()

    def test_no_cgroups_at_all(self, tmp_path: Path) -> None:
        assert systemd.cgroup_pids(listing=str(tmp_path / "none")) == frozenset()

    def test_here(self) -> None:
        assert os.getpid() not in systemd.cgroup_pids()


def test_booted() -> None:
    assert systemd.booted() is Path("/run/systemd/system").is_dir()
