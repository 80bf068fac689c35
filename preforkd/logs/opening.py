"""Opens the logs of a configuration, opens them again after a rotation, and passes them on.

The master opens log files, perhaps as root; workers have given root up and may not even be allowed to enter the
directory. So after a rotation the master opens the files anew, puts them behind the *same descriptor numbers* with dup2
(there is no moment without a file, and nobody who knows a number has to be told), and sends the new descriptors to the
workers, which do the same. Until a worker has done so it writes to the old file, whatever its name is now: nothing is
lost, and the rotated file may be compressed once the last worker has switched.
"""

from __future__ import annotations

import errno
import os
import pwd
import stat
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol, TypeVar

from preforkd.errors import PreforkdError
from preforkd.logs.access import AccessLog, compile_format
from preforkd.logs.events import Channel, EventLog
from preforkd.logs.outputs import Output, above_standard, is_journal_stream
from preforkd.logs.sinks import (
    JOURNAL_SOCKET,
    SYSLOG_SOCKET,
    JournalSink,
    Sink,
    StreamSink,
    SyslogSink,
    SyslogSocket,
    TextSink,
)

if TYPE_CHECKING:
    from preforkd.config import Log


class LogError(PreforkdError):
    """A log cannot be opened."""


class Logs:
    """The open logs of one configuration. Made by `open_logs` in the master; forked children go on using it."""

    def __init__(
        self, events: EventLog, access: AccessLog | None, channel: Channel, files: Sequence[Output], opened: _Opened
    ) -> None:
        #: The log of events.
        self.events = events
        #: The access log; None when it is off.
        self.access = access
        self._channel = channel
        self._files = list(files)
        self._opened = opened

    @property
    def lost(self) -> int:
        """How many lines of this process did not get into their logs."""
        return self.events.lost + (self.access.lost if self.access else 0)

    def descriptors(self) -> list[int]:
        """Descriptors that must stay open through a fork or a detach; 0, 1 and 2 are not among them."""
        return self._opened.descriptors()

    def files(self) -> list[int]:
        """The descriptors of the log files, in the order in which `adopt` wants them: events, access."""
        return [output.fd for output in self._files]

    def open_again(self) -> list[int]:
        """Open the log files by their paths; returns new descriptors, the caller's own, in the order of `files`.

        Master. Raises LogError if one of them cannot be opened; then none is left open.
        """
        opened: list[int] = []
        try:
            for output in self._files:  # not a comprehension: those opened before a failure have to be closed
                opened.append(_open_file(output.what))  # noqa: PERF401
        except LogError:
            for fd in opened:
                os.close(fd)
            raise
        return opened

    def reopen(self) -> list[str]:
        """Open each log file anew behind its number. Master, after a rotation; then send `files` to the children.

        A file that cannot be opened keeps its old descriptor, so nothing is lost. Returns a sentence for each of these.
        """
        failures = []
        for output in self._files:
            try:
                output.replace(_open_file(output.what))
            except LogError as error:
                failures.append(f"{error}; still writing to the file that was open")
        self._look()
        return failures

    def adopt(self, fds: Sequence[int]) -> None:
        """Put ``fds``, received from the master's `files`, behind our numbers and close them. Workers, template.

        Raises ValueError if they are not as many as our files (then they are closed and nothing has changed).
        """
        if len(fds) != len(self._files):
            for fd in fds:
                os.close(fd)
            raise ValueError(f"{len(self._files)} log files, but {len(fds)} descriptors to put behind them")
        for output, fd in zip(self._files, fds, strict=True):
            output.replace(fd)
        self._look()

    def switch_to(self, new: Logs) -> None:
        """Let every logger that was bound to this write where ``new`` writes, and close what is ours. For a reload."""
        self._channel.become(new._channel)
        self._opened.close()
        self._files = []
        self.access = new.access

    def close(self) -> None:
        """Give the descriptors back (not 0, 1 and 2). What is logged afterwards is lost, and harms nobody."""
        self._opened.close()
        self._files = []
        self._look()

    def _look(self) -> None:
        if self.access is not None:
            self.access.look()


def open_logs(
    log: Log,
    *,
    journal_socket: str = JOURNAL_SOCKET,
    syslog_socket: str = SYSLOG_SOCKET,
    clock: Callable[[], float] = time.time,
) -> Logs:
    """Open the logs that ``log`` names. Master, after it has detached, before anybody gives up root.

    Raises LogError with a sentence (which path, what is in the way, what to do), also for a format that is not
    understood; then nothing is left open. A journal or a syslogd that is not there is no error: events go to stderr
    until it is.
    """
    try:
        compile_format(log.format)
    except ValueError as error:
        raise LogError(f"log.format: {error}") from None
    _fill_standard_descriptors()
    announced = os.environ.get("JOURNAL_STREAM", "")
    opened = _Opened()
    try:
        stderr = opened.output(Output.standard(2, "stderr"))
        on_stderr: Sink = StreamSink(stderr) if is_journal_stream(2, announced) else TextSink(stderr, raw=2)
        outputs: list[Output] = []
        sink: Sink
        match log.errors:
            case "stderr":
                sink = on_stderr
            case "journal":
                sink = opened.sink(JournalSink(journal_socket))
            case "syslog":
                sink = opened.sink(SyslogSink(syslog_socket))
            case path:
                outputs.append(opened.output(Output(_open_file(path, "log.errors"), path, own=True)))
                sink = TextSink(outputs[-1])
        last_resort = None if sink is on_stderr or stderr.is_null() else on_stderr
        channel = Channel(sink, log.level, last_resort, clock)
        events = EventLog(channel)
        access: AccessLog | None = None
        match log.access:
            case "off":
                pass
            case "stdout":
                access = AccessLog(log.format, opened.output(Output.standard(1, "stdout")), events)
            case "syslog":
                access = AccessLog(log.format, opened.sink(SyslogSocket(syslog_socket)), events)
            case path:
                outputs.append(opened.output(Output(_open_file(path, "log.access"), path, own=True)))
                access = AccessLog(log.format, outputs[-1], events)
    except BaseException:
        opened.close()
        raise
    return Logs(events, access, channel, outputs, opened)


class _Opened:
    """Everything that one `open_logs` has opened."""

    def __init__(self) -> None:
        self._all: list[_Closable] = []

    def output(self, output: Output) -> Output:
        self._all.append(output)
        return output

    def sink(self, sink: _SinkType) -> _SinkType:
        self._all.append(sink)
        return sink

    def descriptors(self) -> list[int]:
        return sorted({fd for one in self._all for fd in one.descriptors()})

    def close(self) -> None:
        for one in self._all:
            one.close()
        self._all = []


class _Closable(Protocol):
    def descriptors(self) -> list[int]: ...
    def close(self) -> None: ...


_SinkType = TypeVar("_SinkType", JournalSink, SyslogSink, SyslogSocket)


def _fill_standard_descriptors() -> None:
    """Where 0, 1 or 2 is closed, put /dev/null there: else the next socket opened would be somebody's stderr."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:  # EBADF; open(2) takes the lowest free number, which is this one
            os.open("/dev/null", os.O_RDWR)
            os.set_inheritable(fd, True)


def _open_file(path: str, setting: str = "") -> int:
    """Open a log file for appending, above descriptor 2. Raises LogError."""
    # O_NONBLOCK: a named pipe without a reader would stop the master here; to a regular file it means nothing.
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK
    if _others_may_link(path):
        flags |= os.O_NOFOLLOW
    try:
        fd = above_standard(os.open(path, flags, 0o640))
    except OSError as error:
        raise LogError(_explain(path, setting, error)) from error
    kind = os.fstat(fd).st_mode
    if not (stat.S_ISREG(kind) or stat.S_ISFIFO(kind) or stat.S_ISCHR(kind)):
        os.close(fd)
        raise LogError(f"{_what(path, setting)}: it is no file; name a file, or a named pipe that somebody reads")
    return fd


def _others_may_link(path: str) -> bool:
    """Whether we are root, and somebody else could put a symbolic link there that leads root into any file.

    Log directories that belong to the user of the workers are common, and led from a hole in an application to root
    elsewhere (CVE-2016-1247).
    """
    if os.geteuid() != 0:
        return False
    try:
        found = os.stat(os.path.dirname(path))
    except OSError:  # open(2) will say it better
        return False
    by_group = found.st_mode & stat.S_IWGRP and found.st_gid != 0
    return bool(found.st_uid != 0 or by_group or found.st_mode & stat.S_IWOTH)


def _what(path: str, setting: str) -> str:
    return f"{setting + ': ' if setting else ''}cannot open the log file {path}"


def _explain(path: str, setting: str, error: OSError) -> str:
    """The sentence for a log file that cannot be opened: what stands in the way, and what to do."""
    return f"{_what(path, setting)}: {error.strerror}: {_reason(path, error)}"


def _reason(path: str, error: OSError) -> str:
    me = _user(os.geteuid())
    match error.errno:
        case errno.EISDIR:
            return "it is a directory; name a file in it"
        case errno.ENXIO if os.path.exists(path):
            return "it is a socket, or a named pipe that nobody reads; start its reader first, or name a file"
        case errno.EROFS:
            return "its file system is mounted read-only; under systemd, ReadWritePaths= or LogsDirectory= open a way"
        case errno.ENOSPC | errno.EDQUOT:
            return "make room there, or name a file on another file system"
        case errno.ELOOP if _others_may_link(path):
            directory = os.path.dirname(path)
            return (
                f"it is a symbolic link, and others than root could have made it ({_owner(os.stat(directory))} of the "
                f"directory {directory}); name the file itself, or give the directory to root"
            )
        case errno.ELOOP:
            return "its symbolic links lead in a circle"
        case errno.EMFILE | errno.ENFILE:
            return "raise LimitNOFILE= (ulimit -n)"
    directory = os.path.dirname(path)
    for above in _directories(directory):
        try:
            found = os.stat(above)
        except FileNotFoundError:
            return f"the directory {above} does not exist; create it, or name another file"
        except OSError as why:
            return f"the directory {above} cannot be looked at ({why.strerror}); name another file"
        if not stat.S_ISDIR(found.st_mode):
            return f"{above} is not a directory; name another file"
        if not os.access(above, os.X_OK, effective_ids=True):
            return (
                f"the user {me} may not enter the directory {above} ({_owner(found)}); "
                f"allow it (chmod, chown), or name another file"
            )
    try:
        found = os.stat(path)
    except OSError:
        return (
            f"the user {me} may not create files in the directory {directory} ({_owner(os.stat(directory))}); "
            f"allow it (chmod, chown), create the file for that user, or name another file"
        )
    return f"the user {me} may not write to it ({_owner(found)}); chown it, or name another file"


def _directories(directory: str) -> list[str]:
    """``/a/b`` as ``/``, ``/a``, ``/a/b``."""
    parts = [part for part in directory.split("/") if part]
    return ["/"] + ["/" + "/".join(parts[: count + 1]) for count in range(len(parts))]


def _owner(found: os.stat_result) -> str:
    return f"owner {_user(found.st_uid)}, mode {stat.S_IMODE(found.st_mode):04o}"


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
