"""HTTP/1.x requests without I/O: bytes in, events out.

The order is: our own limits and a strict request line, then llhttp splits the fields, then policy. Framing is never
guessed (RFC 9112, 6.3 and 11.2): where two readers could disagree about where a message ends, it is refused and the
connection ends. Each rule names its section.

The events are a function of the bytes alone, never of how they were cut: a check that can be made before the head is
complete looks only at a prefix, and is made in the same order when all arrives at once.
"""

from __future__ import annotations

import re

from preforkd.http._llhttp import BadHead, UnknownMethod, split_fields
from preforkd.http.chunked import ChunkedBody
from preforkd.http.events import END, Data, Event, Refusal, Request
from preforkd.http.limits import RequestLimits

# RFC 9112, 3: method SP request-target SP HTTP-version; single spaces, no leniency. Visible ASCII only in the target.
_REQUEST_LINE = re.compile(rb"([!#$%&'*+\-.^_`|~0-9A-Za-z]+) ([!-~]+) HTTP/([0-9]\.[0-9])")
_TOKEN_BYTES = frozenset(b"!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ")
# RFC 9110, 7.2: Host = uri-host [ ":" port ]; no userinfo (4.2.4).
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]{2,45}\]|[A-Za-z0-9._~!$&'()*+,;=%-]*)(?::[0-9]{0,5})?")
_ABSOLUTE = re.compile(r"[Hh][Tt][Tt][Pp][Ss]?://([^/?]+)(.*)", re.DOTALL)
_BAD_ESCAPE = re.compile("%(?![0-9A-Fa-f]{2})")
_DIGITS = re.compile(rb"[0-9]+")

_HEAD, _LENGTH, _CHUNKED, _FAILED = range(4)


class RequestParser:
    """The requests of one connection: `feed` bytes, ask for the `next_event` until it is None.

    It does not run ahead: the next head is looked at when it is asked for, so that what a client sent behind a message
    stays in `unread` and can be handed to another process. After a `Refusal` nothing is interpreted any more.
    """

    __slots__ = ("_blank_seen", "_chunks", "_data", "_left", "_limits", "_line", "_secure", "_state")

    def __init__(self, limits: RequestLimits, data: bytes = b"", *, secure: bool = False) -> None:
        """``secure``: the connection is TLS, or comes from a gateway that is trusted to say so."""
        self._limits = limits
        self._secure = secure
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
            return self._next_head()
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
        window = data[start : end + 2] if end >= 0 else data[start : start + limits.header]
        lines = window.count(b"\r\n")
        # RFC 9112, 2.2: a bare LF or CR is not a line end. The last byte of an incomplete window is not judged yet.
        if window.count(b"\n") != lines or window.count(b"\r") - window.endswith(b"\r") != lines:
            return self._refuse(400, "a header line does not end in CRLF", line)
        if end < 0:
            if len(window) >= limits.header:
                return self._refuse(431, f"the header is longer than {limits.header} bytes", line)
            return None
        if lines > limits.fields:
            return self._refuse(431, f"the header has more than {limits.fields} fields", line)
        self._line = None
        self._blank_seen = False
        try:
            fields = split_fields(data[: end + 4])
        except UnknownMethod:
            return self._refuse(501, "the method is not known here", line)
        except BadHead as error:
            # llhttp refuses some transfer codings itself, without telling "malformed" from "not implemented".
            return self._refuse(*(_bad_coding(error.fields) or (400, f"the header is malformed: {error}")), line)
        if len(fields) != lines:
            # A line that is not a field of its own: a folded one, or something that llhttp reads in another way than
            # we.
            return self._refuse(400, "a header line is not a field", line)
        outcome = _judge(match, fields, limits, self._secure)
        if isinstance(outcome, Refusal):
            self._state = _FAILED
            self._data = b""
            return outcome
        self._data = data[end + 4 :]
        if outcome.length is None:
            self._state = _CHUNKED
            self._chunks = ChunkedBody(limits)
            self._chunks.feed(self._data)
            self._data = b""
        else:
            self._state = _LENGTH
            self._left = outcome.length
        return outcome

    def _refuse(self, status: int, reason: str, line: bytes = b"") -> Refusal:
        self._state = _FAILED
        self._data = b""
        return Refusal(status, reason, line)


def _not_http(data: bytes) -> str:
    if data[0] == 0x16:
        return "this looks like TLS; HTTP without TLS is spoken here"
    return "a request line must begin with a method"


def _judge(
    match: re.Match[bytes], fields: list[tuple[bytes, bytes]], limits: RequestLimits, secure: bool
) -> Request | Refusal:
    """Everything about a well-formed head that llhttp leaves open: one pass over the fields, then the target."""
    line = match[0]
    http11 = match[3] == b"1.1"
    host: bytes | None = None
    length: int | None = 0
    length_seen = False
    coding: bytes | None = None
    close = False
    persist = http11
    expectation = b""
    underscored = False
    for index, (name, value) in enumerate(fields):
        if value and value[-1] in b" \t":
            # llhttp leaves whitespace at the end; bytes.strip() would take VT and FF too.
            value = value.rstrip(b" \t")
            fields[index] = (name, value)
        lower = _special.get(name)
        if lower is None:
            lower = _look_up(name)
        if not lower:
            continue
        if lower == b"_":
            underscored = True
        elif lower == b"host":
            # RFC 9112, 3.2: exactly one, and well formed.
            if host is not None:
                return Refusal(400, "there is more than one Host field", line)
            if not _HOST.fullmatch(value):
                return Refusal(400, "the Host field is malformed", line)
            host = value
        elif lower == b"content-length":
            # RFC 9112, 6.3, 5: a list of equal values might be mended; nobody honest sends one, so it is refused.
            if length_seen:
                return Refusal(400, "there is more than one Content-Length", line)
            if not _DIGITS.fullmatch(value):
                return Refusal(400, "the Content-Length is malformed", line)
            length_seen = True
            if len(value) > 18 or int(value) > limits.body:
                return Refusal(413, f"the body is longer than the {limits.body} bytes that are allowed", line)
            length = int(value)
        elif lower == b"transfer-encoding":
            if coding is not None:
                return Refusal(400, "there is more than one Transfer-Encoding", line)
            coding = value
        elif lower == b"connection":
            # RFC 9110, 7.6.1: a list of options; `close` wins over everything (RFC 9112, 9.3).
            options = {option.strip(b" \t").lower() for option in value.split(b",")}
            close = close or b"close" in options
            persist = persist or b"keep-alive" in options
        else:
            expectation = expectation + b"," + value if expectation else value
    if http11 and host is None:
        return Refusal(400, "HTTP/1.1 requires a Host field", line)
    if coding is not None:
        problem = _bad_coding([(b"transfer-encoding", coding)])
        if problem is not None:
            return Refusal(*problem, line)
        if length_seen:
            return Refusal(400, "Content-Length and Transfer-Encoding exclude each other", line)  # RFC 9112, 6.3, 3
        if not http11:
            return Refusal(400, "HTTP/1.0 knows no Transfer-Encoding", line)  # RFC 9112, 6.1
        length = None
    if underscored:
        names = {name.lower() for name, _ in fields if b"_" not in name}
        # In an environ `X-A` and `X_A` are one key, so that one could pass for the other.
        if any(b"_" in name and name.lower().replace(b"_", b"-") in names for name, _ in fields):
            return Refusal(400, "two fields differ only in '-' and '_'", line)
    if expectation and http11 and expectation.lower() != b"100-continue":
        return Refusal(417, "the only expectation met here is 100-continue", line)  # RFC 9110, 10.1.1
    method = match[1].decode("ascii")
    if not http11 and not length_seen and method in _WITH_CONTENT:
        # RFC 1945, 8.3: in HTTP/1.0 only a length tells where such a request ends. RFC 9112, 6.3, 7, would read none as
        # zero, and what an old client sends behind it as the next request.
        return Refusal(411, "an HTTP/1.0 request that carries a body needs a Content-Length", line)
    target = match[2].decode("ascii")
    authority = host or b""
    if method == "CONNECT":
        return Refusal(501, "this server is no proxy", line)
    if target[0] == "/":
        rest = target
    elif target == "*":
        if method != "OPTIONS":
            return Refusal(400, "the target * is for OPTIONS only", line)  # RFC 9112, 3.2.4
        rest = ""
    else:
        absolute = _ABSOLUTE.fullmatch(target)
        if absolute is None:
            return Refusal(400, "the request target is malformed", line)
        # RFC 9112, 3.2.2: the target's authority replaces whatever Host says.
        authority = absolute[1].encode("ascii")
        if not _HOST.fullmatch(authority) or authority.startswith(b":"):
            return Refusal(400, "the authority of the request target is malformed", line)
        if not secure and target[4] in "sS":
            # RFC 9110, 7.4: an https resource is not served over a connection that is not secured.
            return Refusal(421, "an https:// target is not served without TLS", line)
        rest = absolute[2] if absolute[2].startswith("/") else "/" + absolute[2]
    if "#" in rest:
        return Refusal(400, "a request target has no fragment", line)
    path, _, query = rest.partition("?")
    if "%" in path and _BAD_ESCAPE.search(path):
        return Refusal(400, "the path has a malformed percent escape", line)
    return Request(
        line=line,
        method=method,
        target=target,
        path=path,
        query=query,
        http11=http11,
        headers=fields,
        host=authority,
        length=length,
        keep_alive=persist and not close,
        expects_continue=bool(expectation) and http11 and length != 0,
    )


_WITH_CONTENT = frozenset(("POST", "PUT", "PATCH"))
_SPECIAL = frozenset((b"host", b"content-length", b"transfer-encoding", b"connection", b"expect"))

#: Field name as sent -> in lower case if `_judge` has a rule for it, ``_`` if it has an underscore, else empty. Clients
#: send few different names; strangers' inventions must not fill the memory.
_special: dict[bytes, bytes] = {}
_SPECIAL_MAX = 1000


def _look_up(name: bytes) -> bytes:
    lower = name.lower()
    kind = b"_" if b"_" in lower else lower if lower in _SPECIAL else b""
    if len(_special) < _SPECIAL_MAX:
        _special[name] = kind
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
