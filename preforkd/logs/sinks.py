"""The places an event can go to: a descriptor as text, the journal with fields, syslog in datagrams.

A sink writes an event or raises OSError; counting what was lost, and saying so, is `preforkd.logs.events`' business.
"""

from __future__ import annotations

import errno
import fcntl
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from preforkd.logs import text
from preforkd.logs.outputs import Datagrams, Output

#: sd-daemon(3), syslog(3): what our levels are there.
PRIORITY = {"debug": 7, "info": 6, "warning": 4, "error": 3}

#: LOG_DAEMON in syslog(3).
FACILITY = 3

JOURNAL_SOCKET = "/run/systemd/journal/socket"
SYSLOG_SOCKET = "/dev/log"

#: rsyslog cuts at 8 KiB; a syslogd that takes even less answers EMSGSIZE or cuts at the 1024 of RFC 3164.
SYSLOG_MAX = 8000
SYSLOG_SMALL = 1000


@dataclass(frozen=True, slots=True)
class Entry:
    """One event on its way out. ``when`` is unix time in seconds."""

    level: str
    event: str
    fields: Mapping[str, object]
    when: float


class Sink(Protocol):
    """A place for events."""

    @property
    def what(self) -> str:
        """Its name in messages: a path, ``stderr``, ``journal``, ``syslog``."""

    @property
    def raw(self) -> int:
        """A descriptor on which bare text reaches the same place, or the nearest there is (2)."""

    def emit(self, entry: Entry, patient: bool = True) -> None:
        """Write the event. Raises OSError."""

    def descriptors(self) -> list[int]:
        """What must stay open."""

    def close(self) -> None:
        """Give everything back; a later `emit` raises OSError."""


class TextSink:
    """Events as text to a file, a pipe, a terminal."""

    def __init__(self, output: Output, raw: int | None = None) -> None:
        self.output = output
        self._raw = raw
        self._stamp = text.Stamp()

    @property
    def what(self) -> str:
        return self.output.what

    @property
    def raw(self) -> int:
        return self.output.fd if self._raw is None else self._raw

    def emit(self, entry: Entry, patient: bool = True) -> None:
        start = f"{self._stamp.iso(entry.when)} {entry.level} "
        for block in text.blocks(entry.event, entry.fields, start, self.output.limit):
            self.output.write(block, patient)

    def descriptors(self) -> list[int]:
        return self.output.descriptors()

    def close(self) -> None:
        self.output.close()


class StreamSink:
    """Events to a stderr that is a stream to the journal: ``<3>app_failed ...`` (sd-daemon(3)).

    The journal has times of its own and takes each line for an entry, so each line, continued ones too, has a priority.
    """

    def __init__(self, output: Output, raw: int = 2) -> None:
        self.output = output
        self.raw = raw

    @property
    def what(self) -> str:
        return self.output.what

    def emit(self, entry: Entry, patient: bool = True) -> None:
        mark = f"<{PRIORITY[entry.level]}>"
        head, below = text.compose(entry.event, entry.fields)
        block = "".join(f"{mark}{line}\n" for line in (head, *below))
        self.output.write(block.encode("utf-8", "backslashreplace"), patient)

    def descriptors(self) -> list[int]:
        return self.output.descriptors()

    def close(self) -> None:
        self.output.close()


class JournalSink:
    """Events with their fields in the journal's native protocol (systemd.io/JOURNAL_NATIVE_PROTOCOL).

    ``journalctl PREFORKD_EVENT=worker_exit PREFORKD_POOL=web`` finds them; MESSAGE is the line without time and level.
    """

    what = "journal"

    def __init__(self, path: str = JOURNAL_SOCKET, raw: int = 2) -> None:
        self.raw = raw
        self._datagrams = Datagrams(path)

    def emit(self, entry: Entry, patient: bool = True) -> None:
        head, below = text.compose(entry.event, entry.fields)
        fields: dict[str, str] = {
            "PRIORITY": str(PRIORITY[entry.level]),
            "SYSLOG_IDENTIFIER": "preforkd",
            "SYSLOG_FACILITY": str(FACILITY),
            "MESSAGE": "\n".join([head, *below]),
            "PREFORKD_EVENT": entry.event,
        }
        for key, value in entry.fields.items():
            fields.setdefault(journal_name(key), text.plain(value)[: text.TEXT_MAX])
        data = b"".join(_journal_field(key, value) for key, value in fields.items())
        try:
            self._datagrams.send(data, patient)
        except OSError as error:
            # ENOBUFS: larger than the socket's buffer. sd_journal_send(3) turns to a memfd in the same two cases.
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._send_as_file(data, patient)

    def _send_as_file(self, data: bytes, patient: bool) -> None:
        memory = os.memfd_create("preforkd-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            left = memoryview(data)
            while left:
                left = left[os.write(memory, left) :]
            # The journal maps it, so it insists that nobody changes it any more.
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(memory, fcntl.F_ADD_SEALS, seals)
            self._datagrams.send(b"", patient, pass_fd=memory)
        finally:
            os.close(memory)

    def descriptors(self) -> list[int]:
        return self._datagrams.descriptors()

    def close(self) -> None:
        self._datagrams.close()


_NOT_IN_JOURNAL = re.compile(r"[^A-Z0-9_]")


def journal_name(key: str) -> str:
    """``cause`` as PREFORKD_CAUSE: the journal allows capitals, digits, underscores, 64 of them."""
    return ("PREFORKD_" + _NOT_IN_JOURNAL.sub("_", key.upper()))[:64]


def _journal_field(key: str, value: str) -> bytes:
    data = value.encode("utf-8", "surrogateescape" if _only_bytes_escaped(value) else "backslashreplace")
    if b"\n" in data:
        return key.encode() + b"\n" + len(data).to_bytes(8, "little") + data + b"\n"
    return key.encode() + b"=" + data + b"\n"


def _only_bytes_escaped(value: str) -> bool:
    return not any("\ud800" <= char <= "\udfff" and not "\udc80" <= char <= "\udcff" for char in value)


class SyslogSocket:
    """Lines to syslogd: ``<30>Nov 23 12:00:00 preforkd[812]: info worker_exit pool=web`` (RFC 3164, local form).

    A datagram is one line of the system's log; a line break in it would come out as ``#012``, so each line has its own.
    """

    what = "syslog"

    def __init__(self, path: str = SYSLOG_SOCKET) -> None:
        self._datagrams = Datagrams(path)

    def send(self, priority: int, line: str, when: float, patient: bool = True) -> None:
        """Send one line (without newline) of ``priority`` 0 to 7. Raises OSError; cuts a line that is too long."""
        mark = f"<{FACILITY * 8 + priority}>{text.syslog_time(when)} preforkd[{os.getpid()}]: "
        data = (mark + line).encode("utf-8", "backslashreplace")
        try:
            self._datagrams.send(_cut(data, SYSLOG_MAX), patient)
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            self._datagrams.send(_cut(data, SYSLOG_SMALL), patient)

    def descriptors(self) -> list[int]:
        return self._datagrams.descriptors()

    def close(self) -> None:
        self._datagrams.close()


def _cut(data: bytes, limit: int) -> bytes:
    if len(data) <= limit:
        return data
    note = f"... ({len(data) - limit} bytes cut)".encode()
    return data[: limit - len(note)].decode("utf-8", "ignore").encode() + note


class SyslogSink:
    """Events to syslogd."""

    what = "syslog"

    def __init__(self, path: str = SYSLOG_SOCKET, raw: int = 2) -> None:
        self.raw = raw
        self._socket = SyslogSocket(path)

    def emit(self, entry: Entry, patient: bool = True) -> None:
        head, below = text.compose(entry.event, entry.fields)
        for line in (f"{entry.level} {head}", *below):
            self._socket.send(PRIORITY[entry.level], line, entry.when, patient)

    def descriptors(self) -> list[int]:
        return self._socket.descriptors()

    def close(self) -> None:
        self._socket.close()
