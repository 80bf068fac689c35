"""Reads event logs back: the proof that no value can pretend to be a field, a line or an event."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

LEVELS = ("debug", "info", "warning", "error")

_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z")
_FIELD = re.compile(r' ([A-Za-z0-9_.-]+)=("(?:[^"\\]|\\.)*"|[^\s"\\=]+)')
_BELOW = re.compile(r"    ([A-Za-z0-9_.-]*)\|(?: (.*))?")
_ESCAPE = re.compile(r"\\(?:x([0-9a-f]{2})|u([0-9a-f]{4})|U([0-9a-f]{8})|(.))")
_SHORT = {"n": "\n", "r": "\r", "t": "\t", '"': '"', "\\": "\\"}


@dataclass
class Event:
    """One event as it was read; ``below`` holds the continuation lines by field, as they are shown."""

    when: str
    level: str
    name: str
    fields: dict[str, str | None]
    below: dict[str, list[str]] = field(default_factory=dict)


def parse_line(line: str) -> Event:
    """A first line of an event. Fails (AssertionError) if it is anything but one."""
    when, level, rest = line.split(" ", 2)
    assert _TIME.fullmatch(when), line
    assert level in LEVELS, line
    name, space, tail = rest.partition(" ")
    assert re.fullmatch(r"[A-Za-z0-9_.-]+", name), line
    return Event(when, level, name, parse_fields(space + tail))


def parse_fields(text: str) -> dict[str, str | None]:
    """`` key=value key="value"``, nothing left over."""
    fields: dict[str, str | None] = {}
    at = 0
    while at < len(text):
        match = _FIELD.match(text, at)
        assert match, f"no field at {text[at:]!r}"
        fields[match[1]] = unquote(match[2])
        at = match.end()
    return fields


def parse_log(text: str) -> list[Event]:
    """A whole log: events with their continuation lines; fails if a line is neither."""
    assert not text or text.endswith("\n")
    events: list[Event] = []
    for line in text.split("\n")[:-1]:
        if line.startswith(" "):
            match = _BELOW.fullmatch(line)
            assert match, f"neither an event nor a continuation: {line!r}"
            events[-1].below.setdefault(match[1] or "text", []).append(match[2] or "")
        else:
            events.append(parse_line(line))
    return events


def names(events: Iterable[Event]) -> list[str]:
    """The names of the events, in order."""
    return [event.name for event in events]


def unquote(value: str) -> str | None:
    """The value itself; None for a bare dash."""
    if value == "-":
        return None
    if not value.startswith('"'):
        return value
    return _ESCAPE.sub(_unescape, value[1:-1])


def _unescape(match: re.Match[str]) -> str:
    byte, short, long, char = match.groups()
    if byte:
        code = int(byte, 16)
        return chr(code) if code < 0x80 else chr(0xDC00 + code)
    if short or long:
        return chr(int(short or long, 16))
    return _SHORT[char]
