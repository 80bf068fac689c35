"""The event log: levels, bound fields, and what happens when its place takes no more lines."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from preforkd.logs import EventLog, open_logs
from preforkd.logs.events import Channel
from preforkd.logs.outputs import PIPE_BUF, Output
from preforkd.logs.sinks import Entry, TextSink
from tests.unit.logs.helpers import NOON, event_log, fork, settings, wait
from tests.unit.logs.parse import Event, names, parse_fields, parse_log


def read(path: Path) -> list[Event]:
    return parse_log(path.read_text())


# --- lines -----------------------------------------------------------------------------------------------------------


def test_a_line_has_time_level_name_and_fields(tmp_path: Path) -> None:
    log = event_log(tmp_path / "log")
    log.bound(pool="web", slot=3).info("worker_exit", pid=812, cause="killed by signal 9 (SIGKILL)")
    assert (tmp_path / "log").read_text() == (
        '2026-11-23T12:00:00.250Z info worker_exit pool=web slot=3 pid=812 cause="killed by signal 9 (SIGKILL)"\n'
    )


def test_a_field_of_the_event_wins_over_a_bound_one(tmp_path: Path) -> None:
    event_log(tmp_path / "log").bound(pool="web", pid=1).info("fact", pid=2)
    [event] = read(tmp_path / "log")
    assert event.fields == {"pool": "web", "pid": "2"}


def test_fields_may_have_the_names_of_our_own_arguments(tmp_path: Path) -> None:
    event_log(tmp_path / "log").info("fact", self=1, event=2, level=3)
    [event] = read(tmp_path / "log")
    assert event.fields == {"self": "1", "event": "2", "level": "3"}


@pytest.mark.parametrize(("level", "count"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)])
def test_what_is_below_the_level_is_not_written(tmp_path: Path, level: str, count: int) -> None:
    log = event_log(tmp_path / "log", level)
    log.debug("a")
    log.info("b")
    log.warning("c")
    log.error("d")
    assert [event.level for event in read(tmp_path / "log")] == ["debug", "info", "warning", "error"][-count:]
    assert log.level == level


def test_an_event_is_one_write_whatever_its_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    log = event_log(tmp_path / "log")
    writes: list[bytes] = []

    def write(fd: int, data: bytes) -> int:
        writes.append(data)
        return len(data)

    monkeypatch.setattr(os, "write", write)
    log.error("app_failed", text="a\n" * 5000)
    assert len(writes) == 1


# --- under systemd ---------------------------------------------------------------------------------------------------


def test_a_stderr_that_is_the_journal_gets_priorities_instead_of_times(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    found = os.fstat(2)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    logs = open_logs(settings("stderr"))
    logs.events.error("app_failed", pool="web", text="one\ntwo")
    logs.events.info("fact")
    logs.close()
    assert capfd.readouterr().err == "<3>app_failed pool=web\n<3>    | one\n<3>    | two\n<6>fact\n"


def test_a_stderr_that_was_redirected_is_not_the_journal(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("JOURNAL_STREAM", "1:2")
    logs = open_logs(settings("stderr"))
    logs.events.info("fact")
    logs.close()
    assert names(parse_log(capfd.readouterr().err)) == ["fact"]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[socket.socket]:
    """A datagram socket where journald or syslogd would have one."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "socket"))
        listening.settimeout(10)
        yield listening


def journal_fields(data: bytes) -> dict[str, str]:
    """The fields of a datagram in the journal's native protocol."""
    fields: dict[str, str] = {}
    while data:
        line, _, rest = data.partition(b"\n")
        key, equals, value = line.partition(b"=")
        if not equals:
            (size,) = struct.unpack_from("<Q", rest)
            value, rest = rest[8 : 8 + size], rest[8 + size :]
            assert rest[:1] == b"\n"
            rest = rest[1:]
        fields[key.decode()] = value.decode("utf-8", "surrogateescape")
        data = rest
    return fields


def test_the_journal_gets_fields(tmp_path: Path, daemon: socket.socket) -> None:
    logs = open_logs(settings("journal"), journal_socket=str(tmp_path / "socket"))
    logs.events.warning("worker_exit", pool="web", cause="a\nPRIORITY=0\n", raw=b"\xff", **{"odd-name": 1})
    fields = journal_fields(daemon.recv(65536))
    logs.close()
    assert fields == {
        "PRIORITY": "4",
        "SYSLOG_IDENTIFIER": "preforkd",
        "SYSLOG_FACILITY": "3",
        "MESSAGE": 'worker_exit pool=web raw="\\xff" odd-name=1\n    cause| a\n    cause| PRIORITY=0',
        "PREFORKD_EVENT": "worker_exit",
        "PREFORKD_POOL": "web",
        "PREFORKD_CAUSE": "a\nPRIORITY=0\n",
        "PREFORKD_RAW": "\udcff",
        "PREFORKD_ODD_NAME": "1",
    }


def test_what_is_too_long_for_a_datagram_reaches_the_journal_as_a_sealed_file(
    tmp_path: Path, daemon: socket.socket
) -> None:
    logs = open_logs(settings("journal"), journal_socket=str(tmp_path / "socket"))
    trace = "a line of a very long text\n" * 9000
    logs.events.error("app_failed", text=trace)
    data, [fd], _, _ = socket.recv_fds(daemon, 65536, 1)
    logs.close()
    try:
        seals = fcntl.fcntl(fd, fcntl.F_GET_SEALS)
        assert seals == fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
        fields = journal_fields(os.pread(fd, 10_000_000, 0))
    finally:
        os.close(fd)
    assert data == b""
    assert fields["PREFORKD_TEXT"] == trace
    assert fields["MESSAGE"].count("\n") == 9000


def test_a_journal_that_is_not_there_costs_no_line_and_is_used_when_it_comes(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logs = open_logs(settings("journal"), journal_socket=str(tmp_path / "socket"))
    logs.events.info("first", pool="web")
    logs.events.info("second")
    failing, first, second = parse_log(capfd.readouterr().err)
    assert failing.name == "log_failing"
    assert failing.fields["to"] == "journal"
    assert failing.fields["error"] == os.strerror(errno.ENOENT)
    assert (first.name, second.name) == ("first", "second")
    assert logs.lost == 2
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "socket"))
        logs.events.info("third")
        lost, third = journal_fields(daemon.recv(65536)), journal_fields(daemon.recv(65536))
    logs.close()
    assert lost["MESSAGE"] == f'log_lost lines=2 to_stderr=2 error="{os.strerror(errno.ENOENT)}"'
    assert third["MESSAGE"] == "third"
    assert capfd.readouterr().err == ""


# --- syslog ----------------------------------------------------------------------------------------------------------


def test_syslog_gets_a_datagram_a_line(tmp_path: Path, daemon: socket.socket, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.localtime", __import__("time").gmtime)
    logs = open_logs(settings("syslog"), syslog_socket=str(tmp_path / "socket"), clock=lambda: NOON)
    logs.events.error("app_failed", pool="web", text="one\ntwo")
    received = [daemon.recv(65536).decode() for _ in range(3)]
    logs.close()
    start = f"<27>Nov 23 12:00:00 preforkd[{os.getpid()}]: "
    assert received == [start + "error app_failed pool=web", start + "    | one", start + "    | two"]


def test_a_long_line_for_syslog_is_cut_and_says_so(tmp_path: Path, daemon: socket.socket) -> None:
    logs = open_logs(settings("syslog"), syslog_socket=str(tmp_path / "socket"))
    logs.events.info("fact", value="x" * 12_000)
    received = daemon.recv(65536)
    logs.close()
    assert len(received) == 8000
    assert received.endswith(b"bytes cut)")


def test_a_syslogd_that_was_restarted_is_found_again(
    tmp_path: Path, daemon: socket.socket, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "socket"
    logs = open_logs(settings("syslog"), syslog_socket=str(path))
    logs.events.info("before")
    assert b"before" in daemon.recv(65536)
    daemon.close()
    logs.events.info("between")
    assert names(parse_log(capfd.readouterr().err)) == ["log_failing", "between"]
    path.unlink()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as again:
        again.bind(str(path))
        logs.events.info("after")
        assert b"log_lost lines=1" in again.recv(65536)
        assert b"after" in again.recv(65536)
    logs.close()


def test_a_syslogd_that_does_not_read_delays_only_once(tmp_path: Path, daemon: socket.socket) -> None:
    logs = open_logs(settings("syslog"), syslog_socket=str(tmp_path / "socket"))
    count = 0
    while not logs.lost:  # until the kernel's queue (net.unix.max_dgram_qlen) is full
        count += 1
        assert count < 100_000
        logs.events.info("fact", number=count)
    logs.events.info("fact")
    assert logs.lost == 2
    daemon.recv(65536)
    daemon.recv(65536)
    logs.events.info("again")
    for _ in range(count - 3):
        daemon.recv(65536)
    assert b"log_lost lines=2" in daemon.recv(65536)
    assert b"again" in daemon.recv(65536)
    logs.close()


# --- shortages -------------------------------------------------------------------------------------------------------


def test_a_full_disk_sends_events_to_stderr_and_is_over_when_it_is_over(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "log"
    path.symlink_to("/dev/full")
    logs = open_logs(settings(path))
    logs.events.info("first")
    logs.events.info("second")
    events = parse_log(capfd.readouterr().err)
    assert names(events) == ["log_failing", "first", "second"]
    assert events[0].fields["error"] == os.strerror(errno.ENOSPC)
    assert logs.lost == logs.events.lost == 2
    path.unlink()
    assert logs.reopen() == []
    logs.events.info("third")
    lost, third = read(path)
    logs.close()
    assert lost.name == "log_lost"
    assert lost.fields == {"lines": "2", "error": os.strerror(errno.ENOSPC), "to_stderr": "2"}
    assert third.name == "third"
    assert logs.lost == 2  # for the status: it stays counted


def test_settle_tells_without_waiting_for_the_next_event(tmp_path: Path) -> None:
    path = tmp_path / "log"
    fd = os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC)
    output = Output(fd, str(path), own=True)
    log = EventLog(Channel(TextSink(output)))
    assert log.settle()
    log.info("fact")
    assert not log.settle()
    output.replace(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC))
    assert log.settle()
    assert log.settle()
    output.close()
    assert names(read(path)) == ["log_lost"]


def test_a_line_of_which_only_a_part_found_room_is_ended_before_the_next(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = event_log(path)

    def child() -> None:  # a limit on the size of files acts as a full disk does: first short, then an error
        _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
        log.info("first", value="x" * 80)
        assert log.lost == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        log.info("second")

    wait(fork(child))
    torn, lost, second = path.read_text().splitlines()
    assert len(torn) == 100
    assert names(parse_log(lost + "\n" + second + "\n")) == ["log_lost", "second"]


def test_a_broken_pipe_is_no_error(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    output = Output(writer, "stderr", own=True)
    log = EventLog(Channel(TextSink(output)))
    log.info("fact")
    output.close()
    log.info("fact")
    assert log.lost == 2


def test_a_full_pipe_drops_counts_and_says_so(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    output = Output(writer, "stderr", own=True)  # blocking: poll is asked first
    log = EventLog(Channel(TextSink(output), clock=lambda: NOON))
    line = "2026-11-23T12:00:00.250Z info fact\n"
    while not log.lost:
        log.info("fact")
    log.info("fact")
    got = os.read(reader, size).decode()
    assert got == line * (len(got) // len(line))
    log.info("again")
    lost, again = parse_log(os.read(reader, size).decode())
    assert (lost.name, lost.fields["lines"]) == ("log_lost", "2")
    assert again.name == "again"
    os.close(reader)
    output.close()


def test_a_long_event_comes_through_a_pipe_in_parts_that_can_be_read_alone() -> None:
    reader, writer = os.pipe()
    output = Output(writer, "stderr", own=True)
    log = EventLog(Channel(TextSink(output), clock=lambda: NOON))
    text = "".join(f"line {number} of a long traceback\n" for number in range(400))
    log.error("app_failed", pool="web", text=text)
    output.close()
    data = b""
    while piece := os.read(reader, 65536):
        data += piece
    os.close(reader)
    events = parse_log(data.decode())
    assert len(events) > 1
    assert all(event.name == "app_failed" and event.fields["pool"] == "web" for event in events)
    assert "".join(line + "\n" for event in events for line in event.below["text"]) == text


def test_standard_error_is_not_made_non_blocking_for_its_other_users() -> None:
    reader, writer = os.pipe()

    def child() -> None:
        os.dup2(writer, 2)
        logs = open_logs(settings("stderr"))
        while not logs.lost:
            logs.events.info("fact", padding="x" * 1000)
        assert not fcntl.fcntl(2, fcntl.F_GETFL) & os.O_NONBLOCK
        assert logs.events.fileno() == 2
        logs.close()
        os._exit(0)

    pid = fork(child)
    os.close(writer)
    wait(pid)
    os.close(reader)


def test_a_reader_that_is_only_slow_gets_everything() -> None:
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)

    def child() -> None:
        os.close(reader)
        os.set_blocking(writer, False)
        output = Output(writer, "stderr", own=True)
        log = EventLog(Channel(TextSink(output)))
        for number in range(500):
            log.info("fact", number=number, padding="x" * 50)
        assert log.lost == 0

    pid = fork(child)
    os.close(writer)
    data = b""
    while piece := os.read(reader, 512):
        data += piece
    os.close(reader)
    wait(pid)
    assert [event.fields["number"] for event in parse_log(data.decode())] == [str(number) for number in range(500)]


def test_a_stream_socket_as_stderr_never_blocks() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        output = Output(ours.fileno(), "stderr", own=False)
        log = EventLog(Channel(TextSink(output)))
        while not log.lost:
            log.info("fact", padding="x" * 2000)
        assert output.descriptors() != [ours.fileno()]
        output.close()
        assert ours.getblocking()


def test_a_child_reports_what_it_lost_not_what_its_parent_lost(tmp_path: Path) -> None:
    path = tmp_path / "log"
    output = Output(os.open("/dev/full", os.O_WRONLY | os.O_CLOEXEC), str(path), own=True)
    log = EventLog(Channel(TextSink(output)))
    log.info("fact")
    output.replace(os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC))

    def child() -> None:
        assert log.lost == 0
        log.info("born")

    wait(fork(child))
    log.info("after")
    output.close()
    assert names(read(path)) == ["born", "log_lost", "after"]


def test_a_mistake_of_ours_does_not_reach_who_logs() -> None:
    class Broken:
        what = "nowhere"
        raw = 2

        def emit(self, entry: Entry, patient: bool = True) -> None:
            raise KeyError("a mistake")

        def descriptors(self) -> list[int]:
            return []

        def close(self) -> None:
            pass

    log = EventLog(Channel(Broken()))
    log.info("fact")
    log.info("fact")
    assert log.lost == 2


def test_no_reader_can_be_fooled_by_what_is_cut_for_a_pipe() -> None:
    reader, writer = os.pipe()
    output = Output(writer, "stderr", own=True)
    EventLog(Channel(TextSink(output))).info("fact", a='"' * 5000, b="\n" * 10, c="=" * 5000)
    output.close()
    data = os.read(reader, 65536)
    os.close(reader)
    [event] = parse_log(data.decode())
    assert len(data) <= PIPE_BUF
    assert set(event.fields) == {"a", "c"}
    assert parse_fields("") == {}
