"""The pid file: who holds the lock, through crashes, forks, removals and races."""

from __future__ import annotations

import os
import signal
import stat
from pathlib import Path

import pytest

from preforkd.errors import AlreadyRunning, PreforkdError
from preforkd.pidfile import PidFile, read_pid
from tests.support.child import in_child, needs_root


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "preforkd.pid")


def test_written_and_removed(path: str) -> None:
    pidfile = PidFile.acquire(path)
    assert read_pid(path) is None
    pidfile.write()
    assert Path(path).read_text() == f"{os.getpid()}\n"
    assert read_pid(path) == os.getpid()
    assert not os.get_inheritable(pidfile.fileno())
    assert pidfile.release()
    assert not os.path.exists(path)
    assert read_pid(path) is None


def test_second_instance_is_refused_by_name_and_pid(path: str) -> None:
    pidfile = PidFile.acquire(path)
    with pytest.raises(AlreadyRunning, match=f"already running: it is just starting or stopping, pid file {path} "):
        PidFile.acquire(path)
    pidfile.write()
    with pytest.raises(AlreadyRunning, match=f"already running: pid {os.getpid()}, pid file {path} "):
        PidFile.acquire(path)
    assert read_pid(path) == os.getpid(), "the first is unharmed"
    pidfile.release()


def test_stale_file_is_taken_over(path: str) -> None:
    """Left behind by a crash; the number may even be a living process's by now."""
    Path(path).write_text(f"{os.getppid()}00000 and more\n")
    pidfile = PidFile.acquire(path)
    assert Path(path).read_text() == ""
    pidfile.write()
    assert Path(path).read_text() == f"{os.getpid()}\n"
    pidfile.release()


def test_crash_frees_the_lock(path: str) -> None:
    def crash() -> int:
        PidFile.acquire(path).write()
        return os.getpid()

    pid = in_child(crash)  # it leaves by os._exit
    assert read_pid(path) == pid
    pidfile = PidFile.acquire(path)
    pidfile.release()


def test_lock_survives_the_double_fork(path: str) -> None:
    """As python-daemon detaches: the lock is taken in the process of the shell, and kept by its grandchild."""
    report, result = os.pipe()
    alive, leave = os.pipe()
    first = os.fork()
    if first == 0:
        os.close(leave)
        pidfile = PidFile.acquire(path)
        if os.fork():
            os._exit(0)
        os.setsid()
        if os.fork():
            os._exit(0)
        pidfile.write()
        os.write(result, b"%d" % os.getpid())
        os.read(alive, 1)
        pidfile.release()
        os.write(result, b"gone")
        os._exit(0)
    os.close(result)
    os.waitpid(first, 0)
    daemon = int(os.read(report, 16))
    assert daemon != first
    with pytest.raises(AlreadyRunning, match=f"pid {daemon},"):
        PidFile.acquire(path)
    os.close(leave)
    os.read(report, 16)
    assert os.read(report, 1) == b""
    assert not os.path.exists(path)
    os.close(alive)
    os.close(report)


def test_forked_child_does_not_remove_it(path: str) -> None:
    pidfile = PidFile.acquire(path)
    pidfile.write()
    assert in_child(pidfile.release) is False
    assert read_pid(path) == os.getpid()
    with pytest.raises(AlreadyRunning):
        PidFile.acquire(path)
    pidfile.release()


def test_a_child_that_closed_it_does_not_hold_the_lock(path: str) -> None:
    """A worker that outlives its master must not keep the next master from starting."""
    ready, told = os.pipe()
    alive, leave = os.pipe()
    master = os.fork()
    if master == 0:
        pidfile = PidFile.acquire(path)
        pidfile.write()
        worker = os.fork()
        if worker == 0:
            os.close(leave)
            pidfile.close()
            os.write(told, b"%d" % os.getpid())
            os.read(alive, 1)
            os._exit(0)
        signal.pause()
    os.close(told)
    assert os.read(ready, 16)
    os.kill(master, signal.SIGKILL)
    os.waitpid(master, 0)
    PidFile.acquire(path).release()
    os.close(leave)
    assert os.read(ready, 1) == b"", "the worker has left"
    os.close(ready)
    os.close(alive)


def test_what_is_not_ours_any_more_stays(path: str) -> None:
    pidfile = PidFile.acquire(path)
    pidfile.write()
    os.unlink(path)
    other = PidFile.acquire(path)
    other.write()
    assert not pidfile.release()
    assert os.path.exists(path)
    assert other.release()


def test_locked_file_that_was_removed_meanwhile(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between open and flock the owner removes the file: the lock of a file that nobody sees is worth nothing."""
    from preforkd import pidfile as module

    owner = PidFile.acquire(path)
    owner.write()
    real = module._open
    opened: list[int] = []

    def slow_open(path: str) -> int:
        fd = real(path)
        if not opened:
            owner.release()
        opened.append(fd)
        return fd

    monkeypatch.setattr(module, "_open", slow_open)
    mine = PidFile.acquire(path)
    assert len(opened) == 2
    assert os.path.samestat(os.fstat(mine.fileno()), os.stat(path))
    mine.release()


def test_racing_for_it(path: str) -> None:
    """Eight processes at once, some of which leave at once and remove the file: never two, and always one."""
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
                    mine = PidFile.acquire(path)
                    mine.write()
                    os.write(report, b"+")
                    os.read(alive, 1)
                    mine.release()
                except AlreadyRunning:
                    os.write(report, b"-")
                os._exit(0)
            children.append(pid)
        os.close(go)
        os.close(report)
        answers = b""
        while len(answers) < 8 and (more := os.read(results, 8)):
            answers += more
        assert read_pid(path) in children
        os.close(leave)
        for pid in children:
            assert os.waitpid(pid, 0)[1] == 0
        for fd in (start, alive, results):
            os.close(fd)
        assert sorted(answers) == sorted(b"+-------")
        assert not os.path.exists(path)


def test_never_two_while_owners_come_and_go(path: str, tmp_path: Path) -> None:
    """Each owner marks that it is the only one; with an unlink race, two would meet."""
    mark = tmp_path / "owned"

    def work() -> str:
        owned = 0
        for _ in range(300):
            try:
                mine = PidFile.acquire(path)
            except AlreadyRunning:
                continue
            mine.write()
            os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
            owned += 1
            os.unlink(mark)
            mine.release()
        return "" if owned else "never"

    children = []
    for _ in range(4):
        pid = os.fork()
        if pid == 0:
            try:
                work()
            except BaseException:
                os._exit(1)
            os._exit(0)
        children.append(pid)
    assert [os.waitpid(pid, 0)[1] for pid in children] == [0, 0, 0, 0]


def test_directory_is_made(tmp_path: Path) -> None:
    pidfile = PidFile.acquire(str(tmp_path / "run" / "x.pid"))
    assert stat.S_IMODE((tmp_path / "run").stat().st_mode) == 0o755
    pidfile.release()
    with pytest.raises(PreforkdError, match=f"the directory {tmp_path}/no/run does not exist: create it"):
        PidFile.acquire(str(tmp_path / "no" / "run" / "x.pid"))


def test_odd_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "target").write_text("precious")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    os.mkfifo(tmp_path / "pipe")
    for name, words in (
        ("dir", "it is a directory; pid_file: names a file"),
        ("link", "it is a symbolic link; remove it"),
        ("pipe", "it is no regular file; remove it"),
    ):
        with pytest.raises(PreforkdError, match=words):
            PidFile.acquire(str(tmp_path / name))
    assert (tmp_path / "target").read_text() == "precious"
    assert read_pid(str(tmp_path / "pipe")) is None
    assert read_pid(str(tmp_path / "target")) is None


@needs_root
def test_no_permission() -> None:
    def try_it() -> str:
        os.setuid(65534)
        try:
            PidFile.acquire("/run/preforkd-test.pid")
        except PreforkdError as error:
            return str(error)
        return ""

    assert in_child(try_it) == (
        "cannot open the pid file /run/preforkd-test.pid: Permission denied "
        "(user 65534 needs to write in /run; pid_file: names another place)"
    )


def test_adopted_after_an_exec(path: str) -> None:
    first = PidFile.acquire(path)
    first.write()
    fd = os.dup(first.fileno())
    os.set_inheritable(fd, True)
    first.close()
    again = PidFile.adopt(path, fd)
    assert not os.get_inheritable(fd)
    with pytest.raises(AlreadyRunning):
        PidFile.acquire(path)
    assert again.release()
