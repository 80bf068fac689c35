"""HTTP/1.x requests without I/O: bytes in, events out.

The order is: our own limits and a strict request line, then llhttp splits the fields, then policy. Framing is never
guessed (RFC 9112, 6.3 and 11.2): where two readers could disagree about where a message ends, it is refused and the
connection ends. Each rule names its section.

The events are a function of the bytes alone, never of how they were cut: a check that can be made before the head is
complete looks only at a prefix, and is made in the same order when all arrives at once.

Clients repeat themselves, so that what was read and found good is remembered by its exact bytes (`memory`).
"""

from __future__ import annotations

import re
from typing import Final

from preforkd.http._llhttp import BadHead, UnknownMethod, split_fields
from preforkd.http.chunked import ChunkedBody
from preforkd.http.events import END, Data, Event, Refusal, Request
from preforkd.http.limits import RequestLimits
from preforkd.http.memory import REMEMBERED_LENGTH, Field, Fields, Line, Memory
from preforkd.networks import canonical

# RFC 9112, 3: method SP request-target SP HTTP-version; single spaces, no leniency. Visible ASCII only in the target.
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/([0-9]\.[0-9])")
_TOKEN_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
# RFC 9110, 7.2: Host = uri-host [ ":" port ]; no userinfo (4.2.4), no port without a host (4.2.1).
_HOST = re.compile(
    rb"(?!:)(?:\[([0-9A-Fa-f:.]{2,45})\]|[A-Za-z0-9._~!$&'()*+,;=-]*(?:%[0-9A-Fa-f]{2}[A-Za-z0-9._~!$&'()*+,;=-]*)*)"
    rb"(?::[0-9]{0,5})?"
)
_ABSOLUTE = re.compile(r"[Hh][Tt][Tt][Pp][Ss]?://([^/?]+)(.*)", re.DOTALL)
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
_DIGITS = re.compile(rb"[0-9]+")

_HEAD: Final = 0
_LENGTH: Final = 1
_CHUNKED: Final = 2
_FAILED: Final = 3


class RequestParser:
    """The requests of one connection: `feed` bytes, ask for the `next_event` until it is None.

    It does not run ahead: the next head is looked at when it is asked for, so that what a client sent behind a message
    stays in `unread` and can be handed to another process. After a `Refusal` nothing is interpreted any more.
    """

    __slots__ = ("_blank_seen", "_chunks", "_data", "_left", "_limits", "_line", "_memory", "_state")

    def __init__(self, limits: RequestLimits, data: bytes = b"", memory: Memory | None = None) -> None:
        """``memory`` is shared by the parsers of a process that have the same limits."""
        self._limits = limits
        self._memory = memory or Memory()
        self._data = data
        self._state = _HEAD
        #: The request line, once it is checked and the rest of the head is still on its way.
        self._line: re.Match[bytes] | None = None
        self._blank_seen = False
        self._left = 0
        self._chunks: ChunkedBody | None = None

    @property
    def unread(self) -> bytes:
        """Bytes received and not consumed."""
        return self._chunks.rest if self._chunks is not None else self._data

    @property
    def between(self) -> bool:
        """True when no message is under way and nothing of the next one has arrived."""
        return self._state == _HEAD and self._data in (b"", b"\r")

    @property
    def body_left(self) -> int | None:
        """Bytes of the body under way that have not come out as `Data` yet; None if only its end will tell."""
        return None if self._state in (_CHUNKED, _FAILED) else self._left

    @property
    def failed(self) -> bool:
        """True after a refusal."""
        return self._state == _FAILED

    @property
    def request_line(self) -> bytes:
        """The line of a head that is still incomplete, as far as it has arrived (for the log of a time-out)."""
        return self._data.partition(b"\r\n")[0] if self._state == _HEAD else b""

    def feed(self, data: bytes) -> None:
        """Takes the next bytes from the connection."""
        if self._chunks is not None:
            self._chunks.feed(data)
        elif self._state != _FAILED:
            self._data = self._data + data if self._data else data

    def next_event(self) -> Event | None:
        """The next event, or None when more bytes are needed (or after a refusal)."""
        if self._state == _HEAD:
            request = self._memory.heads.get(self._data)
            if request is None:
                return self._next_head()
            self._data = b""
            self._line = None
            self._blank_seen = False
            self._state = _LENGTH
            return request
        if self._state == _LENGTH:
            return self._next_of_length()
        if self._state == _CHUNKED:
            return self._next_of_chunks()
        return None

    # -- body ---------------------------------------------------------------------------------------------------------

    def _next_of_length(self) -> Event | None:
        if not self._left:
            self._state = _HEAD
            return END
        data = self._data
        if not data:
            return None
        if len(data) > self._left:
            data, self._data = data[: self._left], data[self._left :]
        else:
            self._data = b""
        self._left -= len(data)
        return Data(data)

    def _next_of_chunks(self) -> Event | None:
        chunks = self._chunks
        assert chunks is not None
        if not chunks.done and chunks.refusal is None:
            data = chunks.decode()
            if data:
                return Data(data)
        if chunks.refusal is not None:
            self._chunks = None
            self._state = _FAILED
            return chunks.refusal
        if not chunks.done:
            return None
        self._data = chunks.rest
        self._chunks = None
        self._state = _HEAD
        return END

    # -- head ---------------------------------------------------------------------------------------------------------

    def _next_head(self) -> Event | None:
        data = self._data
        limits = self._limits
        match = self._line
        if match is None:
            if not data:
                return None
            if data[0] not in _TOKEN_BYTES:
                # RFC 9112, 2.2: one empty line before a request is ignored (old clients send it after a POST).
                if self._blank_seen or not b"\r\n".startswith(data[:2]):
                    return self._refuse(400, _not_http(data))
                if len(data) < 2:
                    return None
                self._blank_seen = True
                self._data = data[2:]
                return self._next_head()
            newline = data.find(b"\n", 0, limits.line + 2)
            if newline < 0:
                if len(data) >= limits.line + 2:
                    return self._refuse(414, f"the request line is longer than {limits.line} bytes")
                return None
            if data[newline - 1] != 0x0D:
                return self._refuse(400, "the request line does not end in CRLF")
            match = _REQUEST_LINE.fullmatch(data, 0, newline - 1)
            if match is None:
                return self._refuse(400, "the request line is malformed")
            if match[3] not in (b"1.1", b"1.0"):
                return self._refuse(505, "only HTTP/1.1 and HTTP/1.0 are spoken here", match[0])
            self._line = match
        line = match[0]
        start = match.end() + 2
        end = data.find(b"\r\n\r\n", start - 2, start + limits.header)
        if end < 0:
            window = data[start : start + limits.header]
            # The last byte of an incomplete window is not judged yet.
            if _has_bare(window.removesuffix(b"\r")):
                return self._refuse(400, "a header line does not end in CRLF", line)
            if len(window) >= limits.header:
                return self._refuse(431, f"the header is longer than {limits.header} bytes", line)
            return None
        window = data[start : end + 2]
        memory = self._memory
        # What llhttp would find in a request line that our own expression took: a method that it knows or not, and a
        # target that begins with a slash, to which it has no objection.
        familiar = match[1] in memory.methods and match[2].startswith(b"/")
        http11 = match[3] == b"1.1"
        known = memory.blocks.get(window) if familiar and http11 else None
        if known is None:
            judged = self._read_fields(data[:start], window, familiar, http11)
            if isinstance(judged, Refusal):
                return self._refuse(judged.status, judged.reason, line, judged.headers)
            if http11:
                memory.methods.add(match[1])
                memory.remember_block(window, judged)
            known = judged
        outcome = _judge_line(match, known)
        if isinstance(outcome, tuple):
            return self._refuse(*outcome, line, known.headers)
        self._line = None
        self._blank_seen = False
        self._data = data[end + 4 :]
        if outcome.length is None:
            self._state = _CHUNKED
            self._chunks = ChunkedBody(limits)
            self._chunks.feed(self._data)
            self._data = b""
        else:
            self._state = _LENGTH
            self._left = outcome.length
            if not outcome.length and end <= REMEMBERED_LENGTH:
                memory.remember_head(data[: end + 4], outcome)
        return outcome

    def _read_fields(self, beginning: bytes, window: bytes, familiar: bool, http11: bool) -> Fields | Refusal:
        """The fields of a complete head; a refusal knows nothing of the request line.

        llhttp is given the lines that are not remembered, behind the request line (``beginning``), which is
        ``familiar`` if it has nothing to say about that. What it would say about several lines together is ours to
        judge, and the lines in question are never remembered.
        """
        memory = self._memory
        remembered = memory.lines.get
        texts = window.split(b"\r\n")
        texts.pop()
        fields: list[Field] = []
        ruled: list[tuple[int, bytes]] = []
        strange: list[bytes] = []
        places: list[int] = []
        for place, text in enumerate(texts):
            line = remembered(text) if familiar else None
            if line is None:
                if b"\n" in text or b"\r" in text:
                    return Refusal(400, "a header line does not end in CRLF")
                strange.append(text)
                places.append(place)
                line = _UNREAD
            fields.append(line[0])
            if line[1]:
                ruled.append((place, line[1]))
        if len(texts) > self._limits.fields:
            return Refusal(431, f"the header has more than {self._limits.fields} fields")
        if strange or not familiar:
            try:
                found = split_fields(b"\r\n".join((beginning[:-2], *strange, b"\r\n")))
            except UnknownMethod:
                return Refusal(501, "the method is not known here")
            except BadHead as error:
                if familiar:
                    # What it says depends on the lines before.
                    return self._read_fields(beginning, window, False, http11)
                # llhttp refuses some transfer codings itself, without telling "malformed" from "not implemented".
                return Refusal(*(_bad_coding(error.fields) or (400, f"the header is malformed: {error}")))
            if len(found) != len(strange):
                if familiar:
                    return self._read_fields(beginning, window, False, http11)
                # A line that is not a field of its own: a folded one, or something that llhttp reads in another way
                # than we.
                return Refusal(400, "a header line is not a field")
            for place, text, (name, value) in zip(places, strange, found, strict=True):
                line = _classify(name, value)
                fields[place] = line[0]
                if line[1]:
                    ruled.append((place, line[1]))
                if line[1] not in _FRAMING:
                    memory.remember_line(text, line)
            ruled.sort()
        judged = _judge_fields(fields, ruled, http11, self._limits)
        return Refusal(*judged, headers=fields) if isinstance(judged, tuple) else judged

    def _refuse(self, status: int, reason: str, line: bytes = b"", headers: list[Field] | None = None) -> Refusal:
        self._state = _FAILED
        self._data = b""
        return Refusal(status, reason, line, headers or [])


def _has_bare(window: bytes) -> bool:
    """RFC 9112, 2.2: a bare LF or CR is not a line end."""
    lines = window.count(b"\r\n")
    return window.count(b"\n") != lines or window.count(b"\r") != lines


def _not_http(data: bytes) -> str:
    if data[0] == 0x16:
        return "this looks like TLS; HTTP without TLS is spoken here"
    return "a request line must begin with a method"


def is_authority(value: bytes) -> bool:
    """Whether ``value`` is a host, perhaps with a port, or empty (RFC 9110, 7.2; RFC 3986, 3.2.2, without "IPvFuture",
    which nobody has defined)."""
    match = _HOST.fullmatch(value)
    if match is None:
        return False
    address: bytes | None = match[1]
    return address is None or (b":" in address and canonical(address.decode("ascii")) is not None)


def _classify(name: bytes, value: bytes) -> Line:
    """A field, and which of the rules below is about it."""
    if value and value[-1] in b" \t":
        # llhttp leaves whitespace at the end; bytes.strip() would take VT and FF too.
        value = value.rstrip(b" \t")
    kind = _kinds.get(name)
    if kind is None:
        kind = _look_up(name)
    if kind == b"host" and not is_authority(value):
        kind = b"bad host"
    return (name, value), kind


def _judge_fields(
    fields: list[Field], ruled: list[tuple[int, bytes]], http11: bool, limits: RequestLimits
) -> Fields | tuple[int, str]:
    """Everything about well-formed fields that llhttp leaves open; a refusal is a status and a reason. ``ruled``:
    which of them there are rules about, and which rules, in their order."""
    host: bytes | None = None
    length: int | None = 0
    length_seen = False
    coding: bytes | None = None
    close = False
    persist = http11
    expectation = b""
    underscored = False
    for place, kind in ruled:
        value = fields[place][1]
        if kind == b"_":
            underscored = True
        elif kind == b"host":
            # RFC 9112, 3.2: exactly one, and well formed.
            if host is not None:
                return 400, "there is more than one Host field"
            host = value
        elif kind == b"bad host":
            return 400, "the Host field is malformed" if host is None else "there is more than one Host field"
        elif kind == b"content-length":
            # RFC 9112, 6.3, 5: a list of equal values might be mended; nobody honest sends one, so it is refused.
            if length_seen:
                return 400, "there is more than one Content-Length"
            if not _DIGITS.fullmatch(value):
                return 400, "the Content-Length is malformed"
            length_seen = True
            if len(value) > 18 or int(value) > limits.body:
                return 413, f"the body is longer than the {limits.body} bytes that are allowed"
            length = int(value)
        elif kind == b"transfer-encoding":
            if coding is not None:
                return 400, "there is more than one Transfer-Encoding"
            coding = value
        elif kind == b"connection":
            # RFC 9110, 7.6.1: a list of options; `close` wins over everything (RFC 9112, 9.3).
            options = {option.strip(b" \t").lower() for option in value.split(b",")}
            close = close or b"close" in options
            persist = persist or b"keep-alive" in options
        else:
            expectation = expectation + b"," + value if expectation else value
    if http11 and host is None:
        return 400, "HTTP/1.1 requires a Host field"
    if coding is not None:
        problem = _bad_coding([(b"transfer-encoding", coding)])
        if problem is not None:
            return problem
        if length_seen:
            return 400, "Content-Length and Transfer-Encoding exclude each other"  # RFC 9112, 6.3, 3
        if not http11:
            return 400, "HTTP/1.0 knows no Transfer-Encoding"  # RFC 9112, 6.1
        length = None
    if underscored:
        names = {name.lower() for name, _ in fields if b"_" not in name}
        # In an environ `X-A` and `X_A` are one key, so that one could pass for the other.
        if any(b"_" in name and name.lower().replace(b"_", b"-") in names for name, _ in fields):
            return 400, "two fields differ only in '-' and '_'"
    if expectation:
        # RFC 9110, 10.1.1: a list; 5.6.1.2: its empty elements say nothing.
        expected = {one.strip(b" \t").lower() for one in expectation.split(b",")} - {b""}
        if http11 and not expected <= {b"100-continue"}:
            return 417, "the only expectation met here is 100-continue"
        expectation = b",".join(expected)
    return Fields(fields, host, length, length_seen, persist and not close, bool(expectation))


def _judge_line(match: re.Match[bytes], fields: Fields) -> Request | tuple[int, str]:
    """The target, and what it means together with the fields; a refusal is a status and a reason."""
    method = match[1].decode("ascii")
    http11 = match[3] == b"1.1"
    if not http11 and not fields.length_given and method in _WITH_CONTENT:
        # RFC 1945, 8.3: in HTTP/1.0 only a length tells where such a request ends. RFC 9112, 6.3, 7, would read none as
        # zero, and what an old client sends behind it as the next request.
        return 411, "an HTTP/1.0 request that carries a body needs a Content-Length"
    target = match[2].decode("ascii")
    authority = fields.host or b""
    if method == "CONNECT":
        return 501, "this server is no proxy"
    if target[0] == "/":
        rest = target
    elif target == "*":
        if method != "OPTIONS":
            return 400, "the target * is for OPTIONS only"  # RFC 9112, 3.2.4
        rest = ""
    else:
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            return 400, "the request target is malformed"
        # RFC 9112, 3.2.2: the target's authority replaces whatever Host says.
        authority = absolute[1].encode("ascii")
        if not is_authority(authority):
            return 400, "the authority of the request target is malformed"
        rest = absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]
    if "#" in rest:
        return 400, "a request target has no fragment"
    path, _, query = rest.partition("?")
    if "%" in path and _BAD_ESCAPE.search(path):
        return 400, "the path has a malformed percent escape"
    return Request(
        match[0],
        method,
        target,
        path,
        query,
        http11,
        fields.headers,
        authority,
        fields.length,
        fields.keep_alive,
        fields.expectation and http11 and fields.length != 0,
        fields.shared,
    )


_WITH_CONTENT = frozenset(("POST", "PUT", "PATCH"))
_UNREAD: Line = ((b"", b""), b"")
_FRAMING = frozenset((b"content-length", b"transfer-encoding"))
_RULED = _FRAMING | {b"host", b"connection", b"expect"}

#: Field name as sent -> in lower case if `_judge_fields` has a rule for it, ``_`` if it has an underscore, else empty.
#: Clients send few different names; strangers' inventions must not fill the memory.
_kinds: Final[dict[bytes, bytes]] = {}
_KINDS_MAX: Final = 1000
_NAME_MAX: Final = 64


def _look_up(name: bytes) -> bytes:
    lower = name.lower()
    kind = b"_" if b"_" in lower else lower if lower in _RULED else b""
    if len(_kinds) < _KINDS_MAX and len(name) <= _NAME_MAX:
        _kinds[name] = kind
    return kind


def _bad_coding(fields: list[tuple[bytes, bytes]]) -> tuple[int, str] | None:
    """What is wrong with the Transfer-Encoding among ``fields``: None if it is exactly ``chunked`` (or absent).

    RFC 9112, 6.3, 4.3: if chunked is not the last coding the length is unknown: 400. If it is, but others come before
    it, the framing is clear and only the content is not understood: 501 (6.1).
    """
    values = [value.strip(b" \t") for name, value in fields if name.lower() == b"transfer-encoding"]
    if not values or (len(values) == 1 and values[0].lower() == b"chunked"):
        return None
    codings = [coding.strip(b" \t").lower() for coding in b",".join(values).split(b",")]
    if codings[-1] != b"chunked" or b"chunked" in codings[:-1] or len(values) > 1:
        return 400, "the Transfer-Encoding is malformed"
    return 501, "the only transfer coding understood here is chunked"
