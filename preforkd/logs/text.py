"""How an event becomes text that a person can read and nobody can forge.

An event is one line, ``2026-11-23T12:00:00.123Z info worker_exit pool=web slot=3 cause="killed by signal 9"``; and
where a value has several lines (a traceback), continuation lines below it::

    2026-11-23T12:00:00.123Z error app_failed pool=web
        | Traceback (most recent call last):
        |   File "/srv/app.py", line 3, in <module>
        cause| a field other than `text` carries its name before the bar

The rules that make forging impossible: only we write a newline; a line of ours begins either with a time (a priority,
the event's name) or with four spaces, a name and a bar; every control character, every character that does not print,
and every byte that is not UTF-8 is shown as an escape. In a quoted value the escapes can be undone without doubt:

=====================  ==========================================================================
``\\"``  ``\\\\``          a quote, a backslash
``\\n`` ``\\r`` ``\\t``    newline, carriage return, tab
``\\x1b``  ``\\xff``       below 80: that control character; from 80: a byte that was not UTF-8 there
``\\u202e``              any other character that does not print (C1 controls, directions, lone surrogates)
=====================  ==========================================================================

In continuation lines backslashes and quotes stay as they are, because source lines in tracebacks are full of them.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from enum import Enum

#: A value longer than this many characters is cut; ten screens full are no longer a value. Text blocks get more.
VALUE_MAX = 16 * 1024
TEXT_MAX = 256 * 1024

_BARE = re.compile(r"[!#-<>-\[\]-~]+", re.ASCII)  # printable ASCII without space, quote, equals sign, backslash
_NOT_A_NAME = re.compile(r"[^A-Za-z0-9_.-]")
_SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def _escaped(char: str) -> str:
    if (short := _SHORT.get(char)) is not None:
        return short
    code = ord(char)
    if code < 0x20 or code == 0x7F:
        return f"\\x{code:02x}"
    if 0xDC80 <= code <= 0xDCFF:  # a byte that os.fsdecode and the like could not decode (PEP 383)
        return f"\\x{code - 0xDC00:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def escape(text: str, also: str = "") -> str:
    """``text`` with everything that does not print escaped, and a backslash before each character in ``also``."""
    if text.isprintable() and not any(char in text for char in also):
        return text
    return "".join(f"\\{char}" if char in also else char if char.isprintable() else _escaped(char) for char in text)


def name(text: str) -> str:
    """``text`` as the name of an event or a field: anything but letters, digits, ``_.-`` becomes an underscore."""
    return _NOT_A_NAME.sub("_", text[:100]) or "_"


def plain(value: object) -> str:
    """``value`` as the text a person expects to see. Never raises, whatever the object's own methods do."""
    try:
        match value:
            case str():
                return str(value) if not isinstance(value, Enum) else str(value.value)
            case None:
                return "-"
            case bool():
                return "yes" if value else "no"
            case Enum():
                return value.name.lower()
            case float():
                return repr(round(value, 6)).removesuffix(".0")
            case bytes() | bytearray() | memoryview():
                return bytes(value).decode("utf-8", "surrogateescape")
            case list() | tuple() | set() | frozenset():
                return ", ".join(plain(item) for item in value)
            case _:
                return str(value)
    except Exception as error:  # a __str__ of the application's that fails must not take the log line with it
        return f"<{type(value).__name__} that cannot be shown: {type(error).__name__}>"


def quote(value: object, cap: int = VALUE_MAX) -> str:
    """``value`` as the right side of ``key=value``: bare where that is unmistakable, else in quotes."""
    text = plain(value)
    if len(text) > cap:
        text = f"{text[:cap]}... ({len(text) - cap} characters cut)"
    if value is None or (text != "-" and _BARE.fullmatch(text)):
        return text
    return '"' + escape(text, also='"\\') + '"'


def lines(key: str, text: str) -> list[str]:
    """The continuation lines that show ``text`` below its event."""
    cut = len(text) - TEXT_MAX
    label = "    | " if key == "text" else f"    {key}| "
    found = [(label + _printable(line)).rstrip(" ") for line in text[:TEXT_MAX].removesuffix("\n").split("\n")]
    if cut > 0:
        found.append(f"{label}... ({cut} characters cut)")
    return found


def _printable(line: str) -> str:
    if line.isprintable():
        return line
    return "".join(char if char.isprintable() or char == "\t" else _escaped(char) for char in line)


def compose(event: str, fields: Mapping[str, object]) -> tuple[str, list[str]]:
    """The head ``event key=value ...`` and the continuation lines."""
    beside, below = _divide(fields)
    return _head(event, beside), below


def _divide(fields: Mapping[str, object]) -> tuple[list[tuple[str, object]], list[str]]:
    """The fields for the head, and the lines of those that have several."""
    beside: list[tuple[str, object]] = []
    below: list[str] = []
    for given, value in fields.items():
        key = name(given)
        if isinstance(value, (str, bytes, BaseException)) or key == "text":
            text = plain(value)
            if "\n" in text or (key == "text" and text):
                below += lines(key, text)
                continue
        beside.append((key, value))
    return beside, below


def _head(event: str, beside: Sequence[tuple[str, object]], cap: int = VALUE_MAX) -> str:
    return " ".join([name(event), *(f"{key}={quote(value, cap)}" for key, value in beside)])


def blocks(event: str, fields: Mapping[str, object], start: str, limit: int) -> Iterator[bytes]:
    """The event in blocks of whole lines, each for one ``write``, none longer than ``limit`` bytes (0: one block).

    Every block begins with ``start`` and the head, so that each can be understood alone when another process writes in
    between; from the second on the head ends with ``part=2``.
    """
    beside, below = _divide(fields)
    base = start + _head(event, beside)
    if not limit:
        yield "\n".join([base, *below, ""]).encode("utf-8", "backslashreplace")
        return
    # Half of the block at most for the head where there is text, so that every part carries some of the text.
    room = limit // 2 if below else limit
    cap, left = VALUE_MAX, len(beside)
    while _size(base) > room and (cap > 16 or left):
        if cap > 16:
            cap //= 2
            base = start + _head(event, beside, cap)
        else:  # hundreds of fields; nothing of ours does that
            left -= 1
            base = start + _head(event, [*beside[:left], ("fields_cut", len(beside) - left)], cap)
    part, block, used = 1, [base], _size(base)
    for line in below:
        for piece in _pieces(line, limit - room - len(" part=1000")):
            if used + _size(piece) > limit:
                yield "\n".join([*block, ""]).encode("utf-8", "backslashreplace")
                part += 1
                again = f"{base} part={part}"
                block, used = [again], _size(again)
            block.append(piece)
            used += _size(piece)
    yield "\n".join([*block, ""]).encode("utf-8", "backslashreplace")


def _size(line: str) -> int:
    return (len(line) if line.isascii() else len(line.encode("utf-8", "backslashreplace"))) + 1


def _pieces(line: str, room: int) -> Iterator[str]:
    """A continuation line that does not fit into a block, as several."""
    label = line[: line.index("|") + 1]
    while _size(line) > room:
        cut = (room - 1) if line.isascii() else (room - 1) // 4
        cut = max(cut, len(label) + 2)
        yield line[:cut]
        line = f"{label} {line[cut:]}"
    yield line


_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")


class Stamp:
    """Times as text; everything down to the second is remembered, because most lines share their second."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: tuple[int, str] = (-1, "")  # one tuple, so that threads never see half of a change

    def iso(self, now: float) -> str:
        """``2026-11-23T12:00:00.123Z``, in UTC, as RFC 3339 has it."""
        second = int(now // 1)
        known, text = self._last
        if known != second:
            t = time.gmtime(second)
            text = f"{t.tm_year:04}-{t.tm_mon:02}-{t.tm_mday:02}T{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"
            self._last = (second, text)
        return f"{text}.{int((now - second) * 1000):03}Z"


def syslog_time(now: float) -> str:
    """``Nov  3 12:00:00``, local time, as RFC 3164 (4.1.2) has it; in English whatever the locale."""
    t = time.localtime(now)
    return f"{_MONTHS[t.tm_mon - 1]} {t.tm_mday:2} {t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02}"


def clf_time(second: int) -> str:
    """``[23/Nov/2026:12:00:00 +0100]``, local time, as the common log format has it."""
    t = time.localtime(second)
    sign, offset = ("+", t.tm_gmtoff) if t.tm_gmtoff >= 0 else ("-", -t.tm_gmtoff)
    zone = f"{sign}{offset // 3600:02}{offset % 3600 // 60:02}"
    day = f"{t.tm_mday:02}/{_MONTHS[t.tm_mon - 1]}/{t.tm_year:04}"
    return f"[{day}:{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} {zone}]"
