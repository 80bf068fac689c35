"""Logs: events as lines that people can read, and an access log that costs next to nothing.

=============  ================================================================================================
`text`         an event as text: quoting, escaping, continuation lines, times
`outputs`      where bytes go without blocking for ever: files, pipes, terminals, datagram sockets
`sinks`        where events go: text, the journal, syslog
`events`       `EventLog`: levels, bound fields, and what happens to lines that cannot be written
`access`       `AccessLog`: formats compiled to functions, one write a line
`opening`      `open_logs` and `Logs`: opening as root, reopening after a rotation, passing on to workers
`streams`      `TaggedStream`: what the application prints becomes events
=============  ================================================================================================

The package stands alone: it imports nothing of preforkd but values and errors.
"""

from __future__ import annotations

from preforkd.logs.access import AccessLog, Record, compile_format
from preforkd.logs.events import EventLog
from preforkd.logs.opening import LogError, Logs, open_logs
from preforkd.logs.streams import TaggedStream

__all__ = ["AccessLog", "EventLog", "LogError", "Logs", "Record", "TaggedStream", "compile_format", "open_logs"]
