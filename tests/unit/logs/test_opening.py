"""Opening, reopening, passing on, giving back."""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from preforkd.errors import PreforkdError
from preforkd.logs import LogError, Logs, open_logs
from tests.unit.logs.helpers import Request, fork, settings, wait
from tests.unit.logs.parse import names, parse_log

ROOT = os.geteuid() == 0
NOBODY = 65534


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@pytest.fixture(autouse=True)
def nothing_left_open() -> Iterator[None]:
    """Every test gives back what it opened."""
    before = len(descriptors())
    yield
    assert len(descriptors()) == before


# --- opening ---------------------------------------------------------------------------------------------------------


def test_files_are_made_for_their_owner_and_group_and_appended_to(tmp_path: Path) -> None:
    path = tmp_path / "access"
    (tmp_path / "errors").write_text("what was there\n")
    old = os.umask(0)
    try:
        logs = open_logs(settings(tmp_path / "errors", path))
    finally:
        os.umask(old)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    logs.events.info("fact")
    assert not any(os.get_inheritable(fd) for fd in logs.files())
    assert logs.descriptors() and set(logs.files()) <= set(logs.descriptors())
    logs.close()
    assert (tmp_path / "errors").read_text().startswith("what was there\n2")


def test_an_access_log_that_is_off_is_none() -> None:
    logs = open_logs(settings("stderr", "off"))
    assert logs.access is None
    assert logs.files() == []
    assert logs.lost == 0
    logs.close()


def test_where_tells_where(tmp_path: Path) -> None:
    logs = open_logs(settings("journal", tmp_path / "access"))
    assert logs.access
    assert (logs.events.where, logs.access.where) == ("journal", str(tmp_path / "access"))
    logs.close()


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("missing/dir/log", "the directory {tmp}/missing does not exist; create it, or name another file"),
        ("file/log", "{tmp}/file is not a directory; name another file"),
        ("directory", "it is a directory; name a file in it"),
        ("circle", "its symbolic links lead in a circle"),
        ("fifo", "it is a socket, or a named pipe that nobody reads; start its reader first, or name a file"),
    ],
)
def test_a_file_that_cannot_be_opened_says_what_is_in_the_way(tmp_path: Path, path: str, reason: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "directory").mkdir()
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(LogError) as caught:
        open_logs(settings(tmp_path / "errors", tmp_path / path))
    assert isinstance(caught.value, PreforkdError)
    message = str(caught.value)
    assert message.startswith(f"log.access: cannot open the log file {tmp_path}/{path}: ")
    assert message.endswith(reason.format(tmp=tmp_path))


@pytest.mark.skipif(not ROOT, reason="needs root to give it up")
def test_a_directory_that_may_not_be_entered_is_named(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "inner").mkdir()
    closed.chmod(0o700)
    readable = tmp_path / "readable"
    readable.mkdir(0o755)
    (readable / "owned").touch(0o600)

    def sentence(path: Path) -> str:
        with pytest.raises(LogError) as caught:
            open_logs(settings(path))
        return str(caught.value)

    def child() -> None:
        os.chdir("/")
        for directory in [tmp_path, *tmp_path.parents]:
            if directory.stat().st_mode & 0o005 != 0o005:
                directory.chmod(directory.stat().st_mode | 0o005)
        os.setgid(NOBODY)
        os.setuid(NOBODY)
        text = sentence(closed / "inner" / "log")
        assert f"the user nobody may not enter the directory {closed} (owner root, mode 0700)" in text, text
        text = sentence(readable / "log")
        assert f"may not create files in the directory {readable} (owner root, mode 0755)" in text, text
        text = sentence(readable / "owned")
        assert "the user nobody may not write to it (owner root, mode 0600); chown it" in text, text

    modes = {directory: directory.stat().st_mode for directory in [tmp_path, *tmp_path.parents]}
    try:
        wait(fork(child))
    finally:
        for directory, mode in modes.items():
            directory.chmod(stat.S_IMODE(mode))


@pytest.mark.skipif(not ROOT, reason="only root can be led astray")
@pytest.mark.parametrize(("owner", "mode", "safe"), [(0, 0o755, True), (NOBODY, 0o755, False), (0, 0o1777, False)])
def test_root_follows_no_link_that_somebody_else_could_have_made(
    tmp_path: Path, owner: int, mode: int, safe: bool
) -> None:
    directory = tmp_path / "logs"
    directory.mkdir()
    (directory / "errors").symlink_to(tmp_path / "precious")
    os.chown(directory, owner, -1)
    directory.chmod(mode)
    if safe:
        open_logs(settings(directory / "errors")).close()
    else:
        with pytest.raises(LogError, match="it is a symbolic link, and others than root could have made it"):
            open_logs(settings(directory / "errors"))
    assert (tmp_path / "precious").exists() is safe


def test_a_format_that_is_not_understood_is_a_log_error_and_leaves_nothing_open() -> None:
    with pytest.raises(LogError, match=r"log\.format: %Z: there is no such directive"):
        open_logs(settings("stderr", "stdout", "%Z"))


def test_a_named_pipe_with_a_reader_is_a_log(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "fifo")
    reader = os.open(tmp_path / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    logs = open_logs(settings(tmp_path / "fifo"))
    logs.events.info("fact")
    assert names(parse_log(os.read(reader, 4096).decode())) == ["fact"]
    logs.close()
    os.close(reader)


def test_closed_standard_descriptors_are_not_taken_by_a_log(tmp_path: Path) -> None:
    def child() -> None:
        for fd in (0, 1, 2):
            os.close(fd)
        logs = open_logs(settings(tmp_path / "errors", "stdout"))
        assert all(fd > 2 for fd in logs.descriptors())
        assert all(os.readlink(f"/proc/self/fd/{fd}") == "/dev/null" for fd in (0, 1, 2))
        logs.events.info("fact")

    wait(fork(child))
    assert names(parse_log((tmp_path / "errors").read_text())) == ["fact"]


# --- reopening -------------------------------------------------------------------------------------------------------


def test_reopening_keeps_the_numbers(tmp_path: Path) -> None:
    logs = open_logs(settings(tmp_path / "errors", tmp_path / "access"))
    assert logs.access
    numbers = logs.files()
    logs.events.info("before")
    logs.access.log(Request(target="/before"))
    for name in ("errors", "access"):
        (tmp_path / name).rename(tmp_path / f"{name}.1")
    logs.events.info("between")
    assert logs.reopen() == []
    assert logs.files() == numbers
    logs.events.info("after")
    logs.access.log(Request(target="/after"))
    logs.close()
    assert names(parse_log((tmp_path / "errors.1").read_text())) == ["before", "between"]
    assert names(parse_log((tmp_path / "errors").read_text())) == ["after"]
    assert "/before" in (tmp_path / "access.1").read_text()
    assert "/after" in (tmp_path / "access").read_text()


def test_a_file_that_cannot_be_reopened_stays_as_it_was_and_the_other_is_new(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    logs = open_logs(settings(tmp_path / "logs" / "errors", tmp_path / "access"))
    assert logs.access
    (tmp_path / "logs").rename(tmp_path / "moved")
    (tmp_path / "access").rename(tmp_path / "access.1")
    [failure] = logs.reopen()
    assert failure == (
        f"cannot open the log file {tmp_path}/logs/errors: No such file or directory: the directory {tmp_path}/logs "
        "does not exist; create it, or name another file; still writing to the file that was open"
    )
    with pytest.raises(LogError):
        logs.open_again()
    logs.events.info("fact")
    logs.access.log(Request())
    logs.close()
    assert names(parse_log((tmp_path / "moved" / "errors").read_text())) == ["fact"]
    assert (tmp_path / "access").read_text().count("\n") == 1


def test_children_adopt_what_the_master_opened_again(tmp_path: Path) -> None:
    logs = open_logs(settings(tmp_path / "errors", tmp_path / "access"))
    assert logs.access
    numbers = logs.files()
    (tmp_path / "errors").rename(tmp_path / "errors.1")
    logs.adopt(logs.open_again())
    assert logs.files() == numbers
    logs.events.info("after")
    with pytest.raises(ValueError, match="2 log files, but 1 descriptors"):
        logs.adopt([os.dup(numbers[0])])
    logs.close()
    assert names(parse_log((tmp_path / "errors").read_text())) == ["after"]


def test_whatever_is_put_at_1_and_2_logs_go_where_they_went(tmp_path: Path) -> None:
    def child() -> None:
        for fd, name in ((1, "out"), (2, "err")):
            os.dup2(os.open(tmp_path / name, os.O_WRONLY | os.O_CREAT | os.O_APPEND), fd)
        full, logs = open_logs(settings("/dev/full")), open_logs(settings("stderr", "stdout"))
        other = os.open(tmp_path / "other", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for fd in (1, 2):
            os.dup2(other, fd)
        logs.events.info("fact")
        full.events.info("diverted")
        assert logs.access
        logs.access.log(Request())

    wait(fork(child))
    assert (tmp_path / "out").read_text().startswith("192.0.2.7 ")
    assert names(parse_log((tmp_path / "err").read_text())) == ["fact", "log_failing", "diverted"]
    assert (tmp_path / "other").read_text() == ""


def test_what_a_worker_writes_to_its_descriptors_1_and_2_follows_a_rotation(tmp_path: Path) -> None:
    def child() -> None:
        logs = open_logs(settings(tmp_path / "errors", tmp_path / "access"))
        for fd in (1, 2):
            os.dup2(logs.events.fileno(), fd)
        os.write(1, b"one\n")
        for name in ("errors", "access"):
            (tmp_path / name).rename(tmp_path / f"{name}.1")
        assert logs.reopen() == []
        os.write(1, b"two\n")
        os.write(2, b"three\n")
        assert os.get_inheritable(1) and os.get_inheritable(2)

    wait(fork(child))
    assert (tmp_path / "errors.1").read_text() == "one\n"
    assert (tmp_path / "errors").read_text() == "two\nthree\n"


def writer(logs: Logs, number: int, count: int, channel: socket.socket) -> None:
    """A worker: writes its lines, adopts whatever it is sent, leaves when everything is written and said."""
    assert logs.access
    channel.setblocking(False)
    for line in range(count):
        if line % 20 == 0:
            try:
                _, fds, _, _ = socket.recv_fds(channel, 1, 2)
            except BlockingIOError:
                pass
            else:
                logs.adopt(fds)
        logs.access.log(Request(target=f"/{number}/{line}"))
        logs.events.info("fact", number=f"{number}/{line}")


def test_no_line_is_lost_or_torn_when_logs_are_rotated_under_their_writers(tmp_path: Path) -> None:
    logs = open_logs(settings(tmp_path / "errors", tmp_path / "access"))
    channels, pids = [], []
    for number in range(3):
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pids.append(fork(lambda number=number, theirs=theirs: writer(logs, number, 1500, theirs)))  # type: ignore[misc]
        theirs.close()
        channels.append(ours)
    rotations = 0
    living = dict(zip(pids, channels, strict=True))
    codes = []
    while living:
        rotations += 1
        for name in ("errors", "access"):
            (tmp_path / name).rename(tmp_path / f"{name}.{rotations}")
        assert logs.reopen() == []
        for pid, channel in list(living.items()):
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                codes.append(os.waitstatus_to_exitcode(status))
                living.pop(pid).close()
                continue
            try:
                socket.send_fds(channel, [b"r"], logs.files(), socket.MSG_DONTWAIT)
            except (BlockingIOError, BrokenPipeError, ConnectionResetError, OSError):
                pass  # it has not read the last ones yet (or is gone): it goes on in an older file
    logs.close()
    assert codes == [0, 0, 0]
    expected = sorted(f"{number}/{line}" for number in range(3) for line in range(1500))
    access = "".join(path.read_text() for path in tmp_path.glob("access*"))
    assert sorted(line.split('"')[1].split()[1][1:] for line in access.splitlines()) == expected
    events = [event for path in tmp_path.glob("errors*") for event in parse_log(path.read_text())]
    assert sorted(str(event.fields["number"]) for event in events) == expected
    assert rotations > 1


@pytest.mark.skipif(not ROOT, reason="needs root to give it up")
def test_a_worker_that_gave_up_root_goes_on_writing_also_after_a_rotation(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(0o700)
    logs = open_logs(settings(closed / "errors", closed / "access"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)

    def child() -> None:
        ours.close()
        os.setgroups([])
        os.setresgid(NOBODY, NOBODY, NOBODY)
        os.setresuid(NOBODY, NOBODY, NOBODY)
        assert logs.access
        logs.events.info("before")
        logs.access.log(Request(target="/before"))
        theirs.send(b"ready")
        _, fds, _, _ = socket.recv_fds(theirs, 1, 2)
        logs.adopt(fds)
        logs.events.info("after")
        logs.access.log(Request(target="/after"))
        assert logs.lost == 0

    pid = fork(child)
    theirs.close()
    assert ours.recv(16) == b"ready"
    for name in ("errors", "access"):
        (closed / name).rename(closed / f"{name}.1")
    assert logs.reopen() == []
    socket.send_fds(ours, [b"r"], logs.files())
    wait(pid)
    ours.close()
    logs.close()
    assert names(parse_log((closed / "errors.1").read_text())) == ["before"]
    assert names(parse_log((closed / "errors").read_text())) == ["after"]
    assert "/after" in (closed / "access").read_text()


# --- a reload --------------------------------------------------------------------------------------------------------


def test_a_reload_opens_the_new_logs_beside_the_old_ones_and_switches(tmp_path: Path) -> None:
    old = open_logs(settings(tmp_path / "old", tmp_path / "old-access", level="info"))
    bound = old.events.bound(pool="web")
    new = open_logs(settings(tmp_path / "new", level="debug"))
    bound.info("before")
    old.switch_to(new)
    bound.debug("after")
    new.events.debug("too")
    assert old.files() == [] and old.descriptors() == []
    new.close()
    assert names(parse_log((tmp_path / "old").read_text())) == ["before"]
    assert names(parse_log((tmp_path / "new").read_text())) == ["after", "too"]


def test_what_is_logged_after_close_harms_nobody(tmp_path: Path) -> None:
    logs = open_logs(settings(tmp_path / "errors", tmp_path / "access"))
    assert logs.access
    first = min(logs.files())
    logs.close()
    logs.close()
    with open(tmp_path / "somebody else's", "w+b") as other:  # gets the lowest free numbers
        assert other.fileno() <= first
        again = os.dup(other.fileno())
        logs.events.info("fact")
        logs.access.log(Request())
        os.close(again)
        assert other.read() == b""
    assert logs.lost >= 2
