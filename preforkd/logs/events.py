"""The event log: what happened, one event a line, a stable name first, then ``key=value``.

Logging must not be the reason why a service fails, and a shortage must not pass unseen (the disk is full, nobody reads
the pipe, syslogd is gone). So nothing here raises, and:

* an event that its log does not take goes to stderr instead, after one ``log_failing`` that says why;
* where that is no help either (stderr is ``/dev/null``, or is the log that fails), it is dropped;
* both are counted in `EventLog.lost`, which the status shows, and as soon as the log takes lines again the first one is
  ``log_lost lines=12 to_stderr=9 error="No space left on device"``.

Each process counts for itself; a forked child begins at nothing.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from preforkd.logs.sinks import Entry, Sink

LEVELS = {"debug": 0, "info": 1, "warning": 2, "error": 3}


def reason(error: Exception) -> str:
    """What went wrong, in the system's words where it has some."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return f"{type(error).__name__}: {error}"


class Channel:
    """What all loggers bound to one log share: where it goes, from which level on, and what was lost."""

    __slots__ = (
        "_clock",
        "_error",
        "_last_resort",
        "_pending",
        "_pid",
        "_to_stderr",
        "level",
        "lost",
        "sink",
        "threshold",
    )

    def __init__(
        self, sink: Sink, level: str = "info", last_resort: Sink | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.sink = sink
        self.level = level
        self.threshold = LEVELS[level]
        self.lost = 0
        self._last_resort = last_resort
        self._clock = clock
        self._pid = os.getpid()
        self._pending = 0  # lost since the log last worked
        self._to_stderr = 0
        self._error = ""

    def become(self, other: Channel) -> None:
        """Write where ``other`` writes, from its level on; what was lost stays counted."""
        self.sink = other.sink
        self.level, self.threshold = other.level, other.threshold
        self._last_resort = other._last_resort

    def emit(self, level: str, event: str, fields: dict[str, object]) -> None:
        """Write one event. Never raises."""
        entry = Entry(level, event, fields, self._clock())
        if self._pending and not self.settle():
            self._miss(entry)
            return
        try:
            self.sink.emit(entry)
        except Exception as error:  # of ours, if it is no OSError; it must be seen, but not by who had something to say
            self._error = reason(error)
            self._miss(entry)

    def settle(self) -> bool:
        """Whether the log takes lines (again); if lines were lost, say so in it. Never waits, never raises."""
        self.mine()
        if not self._pending:
            return True
        fields: dict[str, object] = {"lines": self._pending, "to_stderr": self._to_stderr, "error": self._error}
        try:
            self.sink.emit(Entry("warning", "log_lost", fields, self._clock()), patient=False)
        except Exception as error:
            self._error = reason(error)
            return False
        self._pending = self._to_stderr = 0
        self._error = ""
        return True

    def mine(self) -> None:
        """After a fork: what the parent lost, the parent will report."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._pending = self._to_stderr = self.lost = 0

    def _miss(self, entry: Entry) -> None:
        self.mine()
        first = not self._pending
        self.lost += 1
        self._pending += 1
        if self._last_resort is None:
            return
        try:
            if first:
                why: dict[str, object] = {"log": "errors", "to": self.sink.what, "error": self._error, "now": "stderr"}
                self._last_resort.emit(Entry("warning", "log_failing", why, entry.when), patient=False)
            self._last_resort.emit(entry, patient=False)
        except Exception:  # stderr does not take it either: it is lost, and counted as lost
            return
        self._to_stderr += 1


class EventLog:
    """A logger of events; `bound` makes one that adds fields to each of its lines.

    Any process, any thread; across a fork it goes on to work. Nothing here raises and nothing waits longer than a
    fraction of a second for whoever reads the log. Not for signal handlers (they do nothing, they ring the bell).
    """

    __slots__ = ("_channel", "_fields")

    def __init__(self, channel: Channel, fields: dict[str, object] | None = None) -> None:
        self._channel = channel
        self._fields = fields or {}

    @property
    def level(self) -> str:
        """The lowest level that is written: ``debug``, ``info``, ``warning`` or ``error``."""
        return self._channel.level

    @property
    def lost(self) -> int:
        """How many events of this process did not get into this log (they may be on stderr)."""
        self._channel.mine()
        return self._channel.lost

    @property
    def where(self) -> str:
        """Where the events go: a path, ``stderr``, ``journal`` or ``syslog``."""
        return self._channel.sink.what

    def bound(self, **fields: object) -> EventLog:
        """A logger for the same log that adds ``fields`` to each event; a field given with the event wins."""
        return EventLog(self._channel, {**self._fields, **fields})

    def debug(self, event: str, /, **fields: object) -> None:
        """What a developer of preforkd wants to know."""
        if self._channel.threshold <= 0:
            self._channel.emit("debug", event, {**self._fields, **fields} if self._fields else fields)

    def info(self, event: str, /, **fields: object) -> None:
        """What happened as it should."""
        if self._channel.threshold <= 1:
            self._channel.emit("info", event, {**self._fields, **fields} if self._fields else fields)

    def warning(self, event: str, /, **fields: object) -> None:
        """What an operator should look at, though the service goes on as promised."""
        if self._channel.threshold <= 2:
            self._channel.emit("warning", event, {**self._fields, **fields} if self._fields else fields)

    def error(self, event: str, /, **fields: object) -> None:
        """What somebody's request, order or configuration failed by."""
        self._channel.emit("error", event, {**self._fields, **fields} if self._fields else fields)

    def settle(self) -> bool:
        """Whether the log takes lines; if some were lost and it does again, say so now, not with the next event."""
        return self._channel.settle()

    def fileno(self) -> int:
        """A descriptor on which bare text reaches the same log, for faulthandler and for programs that are started.

        For the journal and for syslog that is stderr: they do not take bare text.
        """
        return self._channel.sink.raw
