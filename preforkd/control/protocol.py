"""What is said over the control socket: one JSON object a line, both ways. Pure: bytes in, values out.

    ->  {"id": 1, "command": "reload", "args": {}}
    <-  {"id": 1, "final": false, "result": {"step": "loading web"}}          any number of these: progress
    <-  {"id": 1, "final": true, "result": {"generation": 4}}                 or, instead of a result:
    <-  {"id": 1, "final": true, "error": "web: No module named 'mysite'", "exit_code": 1, "result": {}}

``id`` is the client's own and comes back with every answer; a client sends its next request after the final answer to
the last. A line can be typed: ``echo '{"command": "status"}' | socat - UNIX-CONNECT:/run/preforkd/control.sock``, so
``id`` and ``args`` may be missing. Unknown keys are ignored, so that an older program understands a newer one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from preforkd.errors import PreforkdError

#: The longest request, its newline included. Commands are short; the limit is what a stranger can make the master keep.
MAX_REQUEST = 64 * 1024

#: The longest answer. A status line has about 300 bytes a worker, so this is enough for 20 000 of them.
MAX_ANSWER = 8 * 1024 * 1024


class ProtocolError(PreforkdError):
    """What came is not what this protocol says; the text goes back to whoever sent it."""


@dataclass(frozen=True, slots=True)
class Command:
    """One request as the client wrote it."""

    command: str
    args: Mapping[str, Any] = field(default_factory=dict)
    id: int = 0


@dataclass(frozen=True, slots=True)
class Answer:
    """One line of the answer. ``error`` is None where all is well; the command leaves with ``exit_code``."""

    id: int
    final: bool
    result: Mapping[str, Any] = field(default_factory=dict)
    error: str | None = None
    exit_code: int = 0


class Lines:
    """Cuts a stream of bytes into lines of at most ``limit`` bytes."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._rest = bytearray()
        #: Up to here no newline was found: a long line that comes in many pieces is searched once.
        self._searched = 0

    def __len__(self) -> int:
        """The bytes kept that do not make a line yet."""
        return len(self._rest)

    def feed(self, data: bytes) -> Iterator[bytes]:
        """The lines that ``data`` completes, without their newlines. Raises `ProtocolError` if one is too long."""
        self._rest += data
        while (end := self._rest.find(b"\n", self._searched)) >= 0:
            if end >= self._limit:
                break
            line = bytes(self._rest[:end])
            del self._rest[: end + 1]
            self._searched = 0
            yield line
        self._searched = len(self._rest)
        if len(self._rest) >= self._limit:
            raise ProtocolError(f"the line is longer than {self._limit} bytes")


def encode_command(command: Command) -> bytes:
    """The line for a request. Raises `ProtocolError` if it is too long."""
    return _line({"id": command.id, "command": command.command, "args": dict(command.args)}, MAX_REQUEST)


def decode_command(line: bytes) -> Command:
    """Read a request. Raises `ProtocolError` with a sentence for the one who typed it."""
    value = _object(line)
    command, args, number = value.get("command"), value.get("args", {}), value.get("id", 0)
    if not isinstance(command, str) or not command:
        raise ProtocolError('a request names its command: {"command": "status"}')
    if not isinstance(args, dict):
        raise ProtocolError('"args" has to be an object')
    if not isinstance(number, int) or isinstance(number, bool):
        raise ProtocolError('"id" has to be a whole number')
    return Command(command, args, number)


def encode_answer(answer: Answer) -> bytes:
    """The line for an answer. Raises `ProtocolError` if it is too long."""
    value: dict[str, Any] = {"id": answer.id, "final": answer.final}
    if answer.error is not None:
        value |= {"error": answer.error, "exit_code": answer.exit_code}
    value["result"] = dict(answer.result)
    return _line(value, MAX_ANSWER)


def decode_answer(line: bytes) -> Answer:
    """Read an answer. Raises `ProtocolError`."""
    value = _object(line)
    number, final, result = value.get("id", 0), value.get("final"), value.get("result", {})
    error, exit_code = value.get("error"), value.get("exit_code", 0)
    if not isinstance(final, bool) or not isinstance(result, dict) or not isinstance(number, int):
        raise ProtocolError(f"this is no answer of a preforkd master: {line[:100]!r}")
    if not isinstance(error, str | None) or not isinstance(exit_code, int):
        raise ProtocolError(f"this is no answer of a preforkd master: {line[:100]!r}")
    return Answer(number, final, result, error, exit_code)


def _line(value: Mapping[str, Any], limit: int) -> bytes:
    # json escapes newlines in strings, so the text is one line. What JSON has no word for is said as text: an answer
    # that shows a value strangely helps more than a master that trips over it.
    line = json.dumps(value, separators=(",", ":"), default=str).encode() + b"\n"
    if len(line) > limit:
        raise ProtocolError(f"the message has {len(line)} bytes, at most {limit} are possible")
    return line


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = json.loads(line)
    # Deep nesting ends in a RecursionError, odd bytes in a UnicodeDecodeError, which is a ValueError.
    except (ValueError, RecursionError) as error:
        raise ProtocolError(f"the line is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise ProtocolError('the line is not a JSON object; write for example {"command": "status"}')
    return value
