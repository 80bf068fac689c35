"""Listeners against the real kernel: what is bound, carried over, refused, and what is left after each."""

from __future__ import annotations

import contextlib
import errno
import grp
import os
import pwd
import socket
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from preforkd import listeners
from preforkd.config import Listen
from preforkd.errors import ListenError
from preforkd.listeners import Listener, ListenerSet, Wanted, open_listeners
from tests.support.child import CAP_CHOWN, in_child, keep_capabilities, needs_root


def tcp(host: str, port: int, backlog: int = 16, defer_accept: int = 0) -> Wanted:
    text = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return Wanted(Listen(text, "tcp", host=host, port=port), backlog, defer_accept)


def unix(path: str | Path, mode: int = 0o666, owner: str | None = None, group: str | None = None) -> Wanted:
    return Wanted(Listen(f"unix:{path}", "unix", path=str(path), mode=mode, owner=owner, group=group), 16)


def named(name: str) -> Wanted:
    return Wanted(Listen(f"systemd:{name}", "systemd", name=name))


class Master:
    """What the master does with listeners, without a master."""

    def __init__(self) -> None:
        self.listeners: dict[str, Listener] = {}

    def prepare(self, *wanted: Wanted, adopted: Sequence[tuple[int, str]] = ()) -> ListenerSet:
        return open_listeners(wanted, self.listeners, adopted)

    def open(self, *wanted: Wanted, adopted: Sequence[tuple[int, str]] = ()) -> ListenerSet:
        prepared = self.prepare(*wanted, adopted=adopted)
        assert prepared.commit() == ()
        self.listeners = prepared.listeners
        for old in prepared.dropped:
            old.remove()
        return prepared

    def refused(self, *wanted: Wanted, adopted: Sequence[tuple[int, str]] = ()) -> str:
        with pytest.raises(ListenError) as caught:
            self.prepare(*wanted, adopted=adopted)
        return str(caught.value)

    def close(self) -> None:
        for listener in self.listeners.values():
            listener.remove()


@pytest.fixture
def master() -> Iterator[Master]:
    one = Master()
    yield one
    one.close()


def port_of(listener: Listener) -> int:
    port: int = listener.sockets[0].getsockname()[1]
    return port


def family_of(address: object) -> socket.AddressFamily:
    if isinstance(address, str):
        return socket.AF_UNIX
    assert isinstance(address, tuple)
    return socket.AF_INET6 if ":" in address[0] else socket.AF_INET


@contextlib.contextmanager
def connected(address: str | tuple[str, int]) -> Iterator[socket.socket]:
    with socket.socket(family_of(address), socket.SOCK_STREAM) as client:
        client.settimeout(5)
        client.connect(address)
        yield client


def serves(listener: Listener, address: str | tuple[str, int]) -> bool:
    """Whether a connection to ``address`` ends up at the listener."""
    with connected(address):
        for sock in listener.sockets:
            with contextlib.suppress(BlockingIOError):
                accepted, _ = sock.accept()
                accepted.close()
                return True
    return False


@contextlib.contextmanager
def foreign(family: socket.AddressFamily, address: object) -> Iterator[socket.socket]:
    """A socket of some other program that listens."""
    with socket.socket(family, socket.SOCK_STREAM) as sock:
        sock.bind(address)  # type: ignore[arg-type]
        sock.listen(1)
        yield sock


class TestTcp:
    def test_flags(self, master: Master) -> None:
        master.open(tcp("127.0.0.1", 0, defer_accept=3))
        (sock,) = master.listeners["127.0.0.1:0"].sockets
        assert not os.get_blocking(sock.fileno())
        assert not sock.get_inheritable()
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT) > 0
        assert not sock.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)

    def test_nodelay_is_inherited(self, master: Master) -> None:
        master.open(tcp("127.0.0.1", 0))
        (sock,) = master.listeners["127.0.0.1:0"].sockets
        with connected(sock.getsockname()):
            accepted, _ = sock.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    def test_both_families_share_a_port(self, master: Master) -> None:
        """[::] takes IPv6 only, whatever the system's default is."""
        master.open(tcp("::", 0))
        port = port_of(master.listeners["[::]:0"])
        prepared = master.open(tcp("::", 0), tcp("0.0.0.0", port))
        assert serves(prepared.listeners[f"0.0.0.0:{port}"], ("127.0.0.1", port))
        assert serves(prepared.listeners["[::]:0"], ("::1", port))

    def test_localhost_is_both(self, master: Master) -> None:
        master.open(tcp("localhost", 0))
        listener = master.listeners["localhost:0"]
        port = port_of(listener)
        assert listener.addresses == (f"127.0.0.1:{port}", f"[::1]:{port}")
        assert serves(listener, ("127.0.0.1", port))
        assert serves(listener, ("::1", port))

    def test_port_in_use_names_the_process(self, master: Master) -> None:
        with foreign(socket.AF_INET, ("127.0.0.1", 0)) as other:
            port = other.getsockname()[1]
            text = master.refused(tcp("127.0.0.1", port))
        assert text.startswith(f"cannot bind 127.0.0.1:{port}: Address already in use (")
        assert f"(pid {os.getpid()}) listens there" in text

    @needs_root
    @pytest.mark.may_skip("net.ipv4.ip_unprivileged_port_start may be lower, as in many containers")
    def test_port_below_1024(self) -> None:
        first_free = int(Path("/proc/sys/net/ipv4/ip_unprivileged_port_start").read_text())
        if first_free <= 80:
            pytest.skip("this machine lets everybody bind port 80")

        def try_it() -> str:
            os.setuid(65534)
            return Master().refused(tcp("127.0.0.1", 80))

        assert in_child(try_it) == (
            "cannot bind 127.0.0.1:80: Permission denied (a port below 1024 needs root or the capability "
            "CAP_NET_BIND_SERVICE; choose a higher one)"
        )

    def test_address_of_another_machine(self, master: Master) -> None:
        text = master.refused(tcp("192.0.2.1", 8080))
        assert text.startswith("cannot bind 192.0.2.1:8080: Cannot assign requested address (no network interface")

    def test_host_names_are_not_looked_up(self, master: Master) -> None:
        text = master.refused(tcp("www.example.com", 8080))
        assert text.startswith("cannot bind www.example.com:8080: host names are not looked up")

    def test_no_ipv6_on_this_machine(self, master: Master, monkeypatch: pytest.MonkeyPatch) -> None:
        real = socket.socket

        def without(family: int = -1, *args: object, **more: object) -> socket.socket:
            if family == socket.AF_INET6:
                raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
            return real(family, *args, **more)  # type: ignore[arg-type]

        monkeypatch.setattr(socket, "socket", without)
        master.open(tcp("localhost", 0))
        assert len(master.listeners["localhost:0"].sockets) == 1
        assert "this machine has IPv6 switched off" in master.refused(tcp("::1", 0))

    def test_twice_in_one_configuration(self, master: Master) -> None:
        master.open(tcp("127.0.0.1", 0))
        port = port_of(master.listeners["127.0.0.1:0"])
        text = master.refused(tcp("127.0.0.1", 0), tcp("127.0.0.1", port))
        assert "127.0.0.1:0 of the same configuration has it" in text
        assert "twice" in master.refused(tcp("127.0.0.1", 0), tcp("127.0.0.1", 0))

    def test_queue(self, master: Master) -> None:
        master.open(tcp("127.0.0.1", 0))
        listener = master.listeners["127.0.0.1:0"]
        assert listener.queue() == 0
        with connected(listener.sockets[0].getsockname()), connected(listener.sockets[0].getsockname()):
            assert listener.queue() == 2


class TestUnix:
    def test_mode(self, master: Master, tmp_path: Path) -> None:
        before = os.umask(0o027)
        try:
            master.open(unix(tmp_path / "s", mode=0o666))
            assert stat.S_IMODE((tmp_path / "s").stat().st_mode) == 0o666
            assert os.umask(0o027) == 0o027
        finally:
            os.umask(before)

    def test_never_open_to_more_than_at_the_end(
        self, master: Master, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """At the moment of listen() nobody else may connect yet, even with a umask of 0."""
        seen = []
        real = socket.socket.listen

        class Watched(socket.socket):
            def listen(self, backlog: int = 0, /) -> None:
                seen.append(stat.S_IMODE((tmp_path / "s").stat().st_mode))
                real(self, backlog)

        monkeypatch.setattr(socket, "socket", Watched)
        before = os.umask(0)
        try:
            master.open(unix(tmp_path / "s", mode=0o660))
        finally:
            os.umask(before)
        assert seen == [0o600]

    @needs_root
    def test_owner_and_group(self, master: Master, tmp_path: Path) -> None:
        master.open(unix(tmp_path / "s", mode=0o600, owner="daemon", group="mail"))
        status = (tmp_path / "s").stat()
        assert (status.st_uid, status.st_gid) == (pwd.getpwnam("daemon").pw_uid, grp.getgrnam("mail").gr_gid)

    @needs_root
    def test_chmod_comes_before_chown(self, tmp_path: Path) -> None:
        """In the hardened unit root has CAP_CHOWN but no CAP_FOWNER: what it has given away it cannot chmod."""

        def try_it() -> tuple[int, int]:
            keep_capabilities(CAP_CHOWN)
            one = Master()
            one.open(unix(tmp_path / "s", mode=0o660, owner="daemon"))
            status = (tmp_path / "s").stat()
            one.close()
            return stat.S_IMODE(status.st_mode), status.st_uid

        assert in_child(try_it) == (0o660, pwd.getpwnam("daemon").pw_uid)

    @needs_root
    def test_giving_away_without_root(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o777)
        for parent in list(tmp_path.parents)[:3]:
            parent.chmod(parent.stat().st_mode | 0o011)

        def try_it() -> str:
            os.chdir(tmp_path)
            os.setuid(65534)
            return Master().refused(unix("s", owner="daemon"))

        text = in_child(try_it)
        assert "only root can give a socket away" in text
        assert not (tmp_path / "s").exists()

    def test_unknown_owner(self, master: Master, tmp_path: Path) -> None:
        assert master.refused(unix(tmp_path / "s", owner="nobody-here")) == (
            f"cannot bind unix:{tmp_path}/s: its owner is to be nobody-here, but there is no such user"
        )
        assert "its group is to be nobody-here" in master.refused(unix(tmp_path / "s", group="nobody-here"))
        assert not list(tmp_path.iterdir())

    def test_live_one_is_not_stolen(self, master: Master, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        with foreign(socket.AF_UNIX, path) as other:
            text = master.refused(unix(path))
            assert text.startswith(f"cannot bind unix:{path}: another process is listening there")
            other.accept()[0].close()  # our question
            with connected(path):
                other.accept()[0].close()

    def test_live_one_with_a_full_queue_is_not_stolen(self, master: Master, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        with foreign(socket.AF_UNIX, path) as other, contextlib.ExitStack() as stack:
            other.listen(0)
            for _ in range(3):
                client = stack.enter_context(socket.socket(socket.AF_UNIX))
                client.setblocking(False)
                with contextlib.suppress(BlockingIOError):
                    client.connect(path)
            assert "another process is listening" in master.refused(unix(path))

    def test_live_datagram_socket_is_not_stolen(self, master: Master, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
            other.bind(path)
            assert "another process is listening" in master.refused(unix(path))

    def test_dead_one_is_replaced(self, master: Master, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        with foreign(socket.AF_UNIX, path):
            pass
        assert os.path.exists(path)
        master.open(unix(path))
        assert serves(master.listeners[f"unix:{path}"], path)

    @pytest.mark.parametrize(
        ("make", "words"),
        [
            (lambda path: path.write_text("mine"), "a regular file"),
            (lambda path: path.mkdir(), "a directory"),
            (lambda path: path.symlink_to("elsewhere"), "a symbolic link"),
            (os.mkfifo, "a named pipe"),
        ],
    )
    def test_what_is_no_socket_stays(self, master: Master, tmp_path: Path, make: object, words: str) -> None:
        path = tmp_path / "s"
        make(path)  # type: ignore[operator]
        text = master.refused(unix(path))
        assert text == f"cannot bind unix:{path}: {words} is there; remove it or choose another path"
        assert os.path.lexists(path)

    def test_missing_directory(self, master: Master, tmp_path: Path) -> None:
        text = master.refused(unix(tmp_path / "no" / "s"))
        assert text == (
            f"cannot bind unix:{tmp_path}/no/s: No such file or directory "
            f"(the directory {tmp_path}/no does not exist: create it)"
        )
        (tmp_path / "file").write_text("")
        assert f"{tmp_path}/file is not a directory" in master.refused(unix(tmp_path / "file" / "s"))

    def test_long_path(self, master: Master, tmp_path: Path) -> None:
        path = tmp_path / ("x" * 120)
        assert f"the path has {len(str(path))} bytes, the kernel takes 107" in master.refused(unix(path))

    def test_removed_at_the_end_only_if_ours(self, master: Master, tmp_path: Path) -> None:
        path = tmp_path / "s"
        master.open(unix(path))
        listener = master.listeners[f"unix:{path}"]
        path.unlink()
        with foreign(socket.AF_UNIX, str(path)):
            assert not listener.intact()
            assert not listener.unlink()
            listener.release()
            assert path.exists()

    def test_release_removes_unless_systemd_keeps_it(self, master: Master, tmp_path: Path) -> None:
        for kept in (False, True):
            path = tmp_path / "s"
            master.open(unix(path))
            listener = master.listeners[f"unix:{path}"]
            listener.kept = kept
            listener.release()
            master.listeners = {}
            assert path.exists() is kept

    def test_a_removed_path_is_bound_again_by_the_next_reload(self, master: Master, tmp_path: Path) -> None:
        path = tmp_path / "s"
        master.open(unix(path))
        old = master.listeners[f"unix:{path}"]
        path.unlink()
        prepared = master.open(unix(path))
        assert prepared.dropped == (old,)
        assert serves(master.listeners[f"unix:{path}"], str(path))

    def test_queue(self, master: Master, tmp_path: Path) -> None:
        path = str(tmp_path / "s")
        master.open(unix(path))
        listener = master.listeners[f"unix:{path}"]
        assert listener.queue() == 0
        with connected(path), connected(path), connected(path):
            assert listener.queue() == 3

    def test_racing_for_a_dead_one(self, tmp_path: Path) -> None:
        """Eight processes find the same dead socket at once: one gets the path, and it is the one that keeps it."""
        path = str(tmp_path / "s")
        with foreign(socket.AF_UNIX, path):
            pass
        for _ in range(10):
            start, go = os.pipe()
            alive, leave = os.pipe()
            results, report = os.pipe()
            children = []
            for _ in range(8):
                pid = os.fork()
                if pid == 0:
                    os.close(go)
                    os.close(leave)
                    os.read(start, 1)
                    try:
                        mine = open_listeners([unix(path)], {})
                        assert mine.listeners
                        os.write(report, b"+")
                    except ListenError as error:
                        os.write(report, b"-" if "another process" in str(error) else b"?")
                    os.read(alive, 1)
                    os._exit(0)  # with what it bound still open
                children.append(pid)
            os.close(go)
            os.close(report)
            answers = b""
            while len(answers) < 8 and (more := os.read(results, 8)):
                answers += more
            with connected(path):
                pass
            os.close(leave)
            for pid in children:
                assert os.waitpid(pid, 0)[1] == 0
            for fd in (start, alive, results):
                os.close(fd)
            assert sorted(answers) == sorted(b"+-------")


class TestReload:
    def test_unchanged_is_carried_over(self, master: Master, tmp_path: Path) -> None:
        master.open(tcp("127.0.0.1", 0), unix(tmp_path / "s"))
        before = dict(master.listeners)
        prepared = master.open(tcp("127.0.0.1", 0), unix(tmp_path / "s"))
        assert prepared.listeners == before
        assert (prepared.opened, prepared.dropped) == ((), ())

    def test_failure_leaves_everything_as_it_was(self, master: Master, tmp_path: Path) -> None:
        master.open(tcp("127.0.0.1", 0), unix(tmp_path / "old"))
        listener = master.listeners["127.0.0.1:0"]
        text = master.refused(
            tcp("127.0.0.1", 0), unix(tmp_path / "new"), unix(tmp_path / "no" / "s"), tcp("192.0.2.1", 80)
        )
        assert len(text.splitlines()) == 2  # every address that failed
        assert sorted(tmp_path.iterdir()) == [tmp_path / "old"]
        assert serves(listener, listener.sockets[0].getsockname())

    def test_rollback(self, master: Master, tmp_path: Path) -> None:
        master.open(tcp("127.0.0.1", 0))
        old = master.listeners["127.0.0.1:0"]
        prepared = master.prepare(unix(tmp_path / "new"), tcp("::1", 0))
        port = port_of(prepared.listeners["[::1]:0"])
        assert prepared.dropped == (old,)
        prepared.rollback()
        assert not (tmp_path / "new").exists()
        with pytest.raises(ConnectionRefusedError), connected(("::1", port)):
            pass
        assert serves(old, old.sockets[0].getsockname())

    def test_mode_and_backlog_change_at_the_commit(self, master: Master, tmp_path: Path) -> None:
        path = tmp_path / "s"
        master.open(unix(path, mode=0o666))
        before = master.listeners[f"unix:{path}"]
        prepared = master.prepare(unix(path, mode=0o600))
        assert stat.S_IMODE(path.stat().st_mode) == 0o666
        assert prepared.commit() == ()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert prepared.listeners[f"unix:{path}"] is before

    def test_settings_that_are_the_same_are_not_applied_again(self, master: Master, tmp_path: Path) -> None:
        """What an operator changed by hand stays."""
        path = tmp_path / "s"
        master.open(unix(path, mode=0o666))
        path.chmod(0o640)
        master.open(unix(path, mode=0o666))
        assert stat.S_IMODE(path.stat().st_mode) == 0o640

    def test_unknown_owner_of_a_carried_one_is_found_before_the_commit(self, master: Master, tmp_path: Path) -> None:
        master.open(unix(tmp_path / "s"))
        assert "no such user" in master.refused(unix(tmp_path / "s", owner="nobody-here"))

    @pytest.mark.parametrize("family", ["4", "6"])
    def test_widened(self, master: Master, family: str) -> None:
        """127.0.0.1:N becomes 0.0.0.0:N while the old socket still serves."""
        narrow, wide = ("127.0.0.1", "0.0.0.0") if family == "4" else ("::1", "::")
        master.open(tcp(narrow, 0))
        (old,) = master.listeners.values()
        port = port_of(old)
        prepared = master.prepare(tcp(wide, port))
        (new,) = prepared.listeners.values()
        assert not new.pending
        assert serves(old, (narrow, port)), "until the commit, nobody is taken away from the old one"
        prepared.commit()
        master.listeners = prepared.listeners
        assert serves(old, (narrow, port)), "and not while the old one is open"
        old.remove()
        assert serves(new, (narrow, port))
        assert not new.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)

    @pytest.mark.parametrize("outcome", ["commit", "rollback"])
    def test_narrowed(self, master: Master, outcome: str) -> None:
        """0.0.0.0:N becomes 127.0.0.1:N; the new socket would be preferred, so it waits for the commit."""
        master.open(tcp("0.0.0.0", 0))
        (old,) = master.listeners.values()
        port = port_of(old)
        prepared = master.prepare(tcp("127.0.0.1", port))
        (new,) = prepared.listeners.values()
        waits = new.pending
        assert waits
        assert serves(old, ("127.0.0.1", port))
        if outcome == "rollback":
            prepared.rollback()
            assert serves(old, ("127.0.0.1", port))
        else:
            assert prepared.commit() == ()
            assert not new.pending
            assert serves(new, ("127.0.0.1", port))
            master.listeners = prepared.listeners
            old.remove()
            assert serves(new, ("127.0.0.1", port))
        for listener in (old, new):
            if listener.sockets[0].fileno() >= 0:
                assert not listener.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)

    def test_a_stranger_in_the_way_is_still_refused(self, master: Master) -> None:
        with foreign(socket.AF_INET, ("127.0.0.1", 0)) as other:
            assert "Address already in use" in master.refused(tcp("0.0.0.0", other.getsockname()[1]))

    @pytest.mark.parametrize("outcome", ["commit", "rollback"])
    def test_one_socket_moves_into_another_listener(self, master: Master, outcome: str) -> None:
        """127.0.0.1:N becomes localhost:N: half of it is there already."""
        master.open(tcp("127.0.0.1", 0))
        (old,) = master.listeners.values()
        port = port_of(old)
        prepared = master.prepare(tcp("localhost", port))
        (new,) = prepared.listeners.values()
        if outcome == "rollback":
            prepared.rollback()
            assert serves(old, ("127.0.0.1", port))
            return
        prepared.commit()
        master.listeners = prepared.listeners
        with connected(("127.0.0.1", port)):
            old.remove()
            accepted, _ = new.sockets[0].accept()  # what was in the queue is not lost
            accepted.close()
        assert serves(new, ("127.0.0.1", port))
        assert serves(new, ("::1", port))

    def test_dropped_but_not_removed_yet_and_wanted_again(self, master: Master) -> None:
        master.open(tcp("127.0.0.1", 0))
        (old,) = master.listeners.values()
        prepared = master.prepare(tcp("::1", 0))
        prepared.commit()
        master.listeners = {**prepared.listeners, **{one.text: one for one in prepared.dropped}}
        again = master.open(tcp("127.0.0.1", 0))
        assert again.listeners["127.0.0.1:0"] is old

    def test_remove_frees_the_port_although_a_worker_holds_it(self, master: Master) -> None:
        master.open(tcp("127.0.0.1", 0))
        (old,) = master.listeners.values()
        port = port_of(old)
        with old.sockets[0].dup():
            master.open(tcp("::1", 0))
            with pytest.raises(ConnectionRefusedError), connected(("127.0.0.1", port)):
                pass
            master.open(tcp("127.0.0.1", port))

    def test_close_leaves_the_worker_alone(self, master: Master) -> None:
        prepared = master.prepare(tcp("127.0.0.1", 0))
        prepared.commit()
        (listener,) = prepared.listeners.values()
        with listener.sockets[0].dup() as workers:
            listener.close()
            with connected(workers.getsockname()):
                workers.accept()[0].close()


class TestSuspended:
    """A reload dropped the address, but the generation before may come back."""

    def test_tcp(self, master: Master) -> None:
        master.open(tcp("127.0.0.1", 0))
        (listener,) = master.listeners.values()
        address = listener.sockets[0].getsockname()
        listener.kept = True
        with listener.sockets[0].dup():  # a worker's
            assert listener.suspend() == ()
            with pytest.raises(ConnectionRefusedError), connected(address):
                pass
        assert not listener.kept, "systemd takes a socket that hung up out of its store"
        assert listener.resume() == ()
        assert serves(listener, address)

    def test_unix(self, master: Master, tmp_path: Path) -> None:
        path = tmp_path / "s"
        master.open(unix(path))
        (listener,) = master.listeners.values()
        assert listener.suspend() == listener.suspend() == ()
        with pytest.raises(FileNotFoundError), connected(str(path)):
            pass
        assert listener.intact()
        assert listener.resume() == listener.resume() == ()
        assert serves(listener, str(path))
        listener.suspend()
        listener.kept = True
        listener.release()
        assert not list(tmp_path.iterdir())

    def test_what_a_crash_left_aside_gives_way(self, master: Master, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with foreign(socket.AF_UNIX, str(path) + listeners.ASIDE):
            pass
        master.open(unix(path))
        (listener,) = master.listeners.values()
        assert listener.suspend() == ()
        assert not path.exists()

    def test_a_file_that_is_in_the_way_aside_does_not(self, master: Master, tmp_path: Path) -> None:
        path = tmp_path / "s"
        (tmp_path / f"s{listeners.ASIDE}").write_text("mine")
        master.open(unix(path))
        (listener,) = master.listeners.values()
        (problem,) = listener.suspend()
        assert problem.startswith(f"unix:{path} is dropped, but new clients still reach it: ")
        assert serves(listener, str(path))
        assert listener.resume() == ()

    def test_taken_meanwhile(self, master: Master, tmp_path: Path) -> None:
        path = tmp_path / "s"
        master.open(unix(path), tcp("127.0.0.1", 0))
        local, net = master.listeners.values()
        port = port_of(net)
        local.suspend()
        net.suspend()
        with foreign(socket.AF_UNIX, str(path)), foreign(socket.AF_INET, ("127.0.0.1", port)):
            assert not local.intact()
            (problem,) = local.resume()
            assert problem.startswith(f"unix:{path} cannot be reached again: ")
            assert net.resume() == ("127.0.0.1:0 cannot be reached again: [Errno 98] Address already in use",)

    def test_wanted_again_by_a_reload(self, master: Master, tmp_path: Path) -> None:
        path = tmp_path / "s"
        master.open(unix(path), tcp("127.0.0.1", 0))
        local, net = master.listeners.values()
        address = net.sockets[0].getsockname()
        local.suspend()
        net.suspend()
        prepared = master.prepare(unix(path, mode=0o600), tcp("127.0.0.1", 0))
        assert [*prepared.listeners.values()] == [local, net]
        assert not path.exists()
        assert prepared.commit() == ()
        assert serves(local, str(path))
        assert serves(net, address)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600

    @pytest.mark.parametrize(("before", "after"), [("127.0.0.1", "0.0.0.0"), ("0.0.0.0", "127.0.0.1")])
    def test_rolled_back_after_the_commit(self, master: Master, before: str, after: str) -> None:
        """The new generation turned out badly: the old address comes back before the new one goes."""
        master.open(tcp(before, 0))
        (old,) = master.listeners.values()
        port = port_of(old)
        prepared = master.prepare(tcp(after, port))
        assert prepared.commit() == ()
        (new,) = prepared.listeners.values()
        old.suspend()
        assert serves(new, ("127.0.0.1", port))
        assert old.resume() == ()
        new.remove()
        assert serves(old, ("127.0.0.1", port))
        assert not old.sockets[0].getsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT)

    def test_rolled_back_after_a_socket_moved(self, master: Master) -> None:
        master.open(tcp("127.0.0.1", 0))
        (old,) = master.listeners.values()
        port = port_of(old)
        prepared = master.prepare(tcp("localhost", port))
        prepared.commit()
        (new,) = prepared.listeners.values()
        old.suspend()
        assert serves(new, ("127.0.0.1", port))
        assert old.resume() == ()
        new.remove()
        assert serves(old, ("127.0.0.1", port))


class TestFromSystemd:
    """Sockets that systemd passed are found by their address, those of systemd:NAME by their name."""

    def passed(self, family: socket.AddressFamily, address: object) -> socket.socket:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.bind(address)  # type: ignore[arg-type]
        sock.listen(4)
        return sock

    def test_by_address_in_any_order(self, master: Master, tmp_path: Path) -> None:
        v4 = self.passed(socket.AF_INET, ("127.0.0.1", 0))
        v6 = self.passed(socket.AF_INET6, ("::1", 0))
        local = self.passed(socket.AF_UNIX, str(tmp_path / "s"))
        p4, p6 = v4.getsockname()[1], v6.getsockname()[1]
        fds = [v4.detach(), v6.detach(), local.detach()]
        master.open(
            tcp("127.0.0.1", p4),
            tcp("::1", p6),
            unix(tmp_path / "s"),
            adopted=[(fds[2], "x"), (fds[1], "listen=b"), (fds[0], "x")],
        )
        assert [one.sockets[0].fileno() for one in master.listeners.values()] == fds
        for one, address in zip(
            master.listeners.values(), (("127.0.0.1", p4), ("::1", p6), str(tmp_path / "s")), strict=True
        ):
            assert serves(one, address)  # type: ignore[arg-type]
            assert one.kept
            assert not one.sockets[0].get_inheritable()
            assert not os.get_blocking(one.sockets[0].fileno())

    def test_by_name(self, master: Master) -> None:
        socks = [self.passed(socket.AF_INET, ("127.0.0.1", 0)) for _ in range(3)]
        addresses = [sock.getsockname() for sock in socks]
        fds = [sock.detach() for sock in socks]
        prepared = master.open(named("web"), adopted=list(zip(fds, ("web", "admin", "web"), strict=True)))
        listener = master.listeners["systemd:web"]
        assert [sock.getsockname() for sock in listener.sockets] == [addresses[0], addresses[2]]
        assert [(one.fd, one.name, one.stored) for one in prepared.unused] == [(fds[1], "admin", False)]
        assert listener.storable == ()
        os.close(fds[1])

    def test_name_that_was_not_passed(self, master: Master) -> None:
        assert master.refused(named("web")) == (
            "cannot listen on systemd:web: systemd passed no listening socket of that name "
            "(set FileDescriptorName=web in the .socket unit, and let that start the service)"
        )
        with self.passed(socket.AF_INET, ("127.0.0.1", 0)) as sock:
            assert "of that name, only admin (" in master.refused(named("web"), adopted=[(sock.fileno(), "admin")])
            assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN), "the descriptor is still open"

    def test_carried_over(self, master: Master) -> None:
        fd = self.passed(socket.AF_INET, ("127.0.0.1", 0)).detach()
        master.open(named("web"), adopted=[(fd, "web")])
        before = master.listeners["systemd:web"]
        assert master.open(named("web")).listeners["systemd:web"] is before

    def test_store_of_a_listener_whose_path_is_gone(self, master: Master, tmp_path: Path) -> None:
        path = tmp_path / "s"
        fd = self.passed(socket.AF_UNIX, str(path)).detach()
        path.unlink()
        prepared = master.open(unix(path), adopted=[(fd, "listen=x")])
        assert [(one.fd, one.why, one.stored) for one in prepared.unused] == [(fd, "its path is gone", True)]
        assert serves(master.listeners[f"unix:{path}"], str(path))
        os.close(fd)

    def test_the_store_has_what_the_unit_has_too(self, master: Master) -> None:
        sock = self.passed(socket.AF_INET, ("127.0.0.1", 0))
        port = sock.getsockname()[1]
        double = os.dup(sock.fileno())
        fd = sock.detach()
        prepared = master.open(tcp("127.0.0.1", port), adopted=[(double, "listen=x"), (fd, "unit")])
        assert master.listeners[f"127.0.0.1:{port}"].sockets[0].fileno() == fd
        assert [(one.fd, one.why) for one in prepared.unused] == [(double, "another socket has the same address")]
        os.close(double)

    def test_unusable_descriptors_are_reported(self, master: Master, tmp_path: Path) -> None:
        reading, writing = os.pipe()
        with (
            socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as datagram,
            socket.socket(socket.AF_INET, socket.SOCK_STREAM) as silent,
        ):
            prepared = master.open(
                adopted=[(reading, "pipe"), (datagram.fileno(), "udp"), (silent.fileno(), "tcp"), (9999, "closed")]
            )
            assert {one.name: one.why.split(" (")[0] for one in prepared.unused} == {
                "pipe": "it is no socket",
                "udp": "it is no stream socket",
                "tcp": "it does not listen",
                "closed": "it cannot be used: Bad file descriptor",
            }
        os.close(reading)
        os.close(writing)

    def test_rollback_keeps_the_descriptors(self, master: Master) -> None:
        fd = self.passed(socket.AF_INET, ("127.0.0.1", 0)).detach()
        master.prepare(named("web"), adopted=[(fd, "web")]).rollback()
        os.fstat(fd)
        os.close(fd)

    def test_the_units_path_is_not_removed(self, master: Master, tmp_path: Path) -> None:
        path = tmp_path / "s"
        with self.passed(socket.AF_UNIX, str(path)) as systemds:
            master.open(unix(path), adopted=[(os.dup(systemds.fileno()), "web")])
            master.open()
            assert path.exists()
            with connected(str(path)):
                systemds.accept()[0].close()

    def test_store_name(self, master: Master, tmp_path: Path) -> None:
        master.open(tcp("::1", 0), unix(tmp_path / "s: ü"))
        names = [one.store_name for one in master.listeners.values()]
        assert names[0] == "listen=[%3A%3A1]%3A0"
        assert names[1].endswith("/s%3A%20%C3%BC")
        assert all(name.isascii() and ":" not in name and name.startswith(listeners.STORE_PREFIX) for name in names)
