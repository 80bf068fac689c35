"""The answer's side of HTTP/1.x, pure: what an application said is checked, framed and turned into bytes.

Nothing an application returns can split a response (CWE-113): a status or field with CR, LF, NUL or anything else that
is not a field value is refused before a byte is sent, as are hop-by-hop fields, which belong to the server (PEP 3333,
"Other HTTP Features"), and lengths that are no length.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from enum import Enum, auto
from http import HTTPStatus
from typing import Any, Final

SERVER: Final = "preforkd"

_NAME: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_VALUE: Final = re.compile(r"[\t -~\x80-\xff]*")
_STATUS: Final = re.compile(r"[2-9][0-9]{2}(?: [\t -~\x80-\xff]*)?")
_LENGTH: Final = re.compile(r"[0-9]{1,18}")

_HOP_BY_HOP: Final = frozenset(
    (
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-authorization",
        "proxy-connection",
        "te",
        "trailer",
        "trailers",
        "transfer-encoding",
    )
)


_SERVERS_OWN: Final = "the header field {} belongs to the server, not to the application (PEP 3333)"


class BadResponse(Exception):
    """The application's status or header cannot be sent; the text says which and why, for its developer."""


class Framing(Enum):
    """How the client learns where the body ends."""

    LENGTH = auto()
    CHUNKED = auto()
    CLOSE = auto()  # HTTP/1.0 without a length


#: What `CheckedHead` needs of a field beside its line: nothing, its number, or that it is there.
_PLAIN: Final = 0
_CONTENT_LENGTH: Final = 1
_DATE: Final = 2
_SERVER_NAME: Final = 3
_UPGRADE: Final = 4
_KINDS: Final = {"content-length": _CONTENT_LENGTH, "date": _DATE, "server": _SERVER_NAME, "upgrade": _UPGRADE}

#: Fields that passed the check -> their kind and their line (of a Content-Length: the number). Applications repeat
#: themselves: most answers have fields that an earlier one had. Forgotten all at once, so that what never comes again
#: does not fill the memory.
_known: Final[dict[Any, tuple[int, bytes]]] = {}
_KNOWN_MAX: Final = 512
_KNOWN_LENGTH: Final = 256
#: How many statuses are remembered; there are not many.
_STARTS_MAX: Final = 64


def _check(field: Any) -> tuple[int, bytes]:
    """The kind and the line of a field. Raises `BadResponse` if it must not be sent."""
    try:
        name, value = field
    except (TypeError, ValueError):
        raise BadResponse(f"a header field must be a tuple (name, value), not {field!r}") from None
    if type(name) is not str or type(value) is not str:
        raise BadResponse(f"name and value of a header field must be strings, not {field!r}")
    if not _NAME.fullmatch(name):
        raise BadResponse(f"{name!r} is not the name of a header field")
    lower = name.lower()
    if lower in _HOP_BY_HOP:
        raise BadResponse(_SERVERS_OWN.format(name))
    if not _VALUE.fullmatch(value):
        raise BadResponse(
            f"the value of the header field {name} may not contain line ends, control characters "
            f"or characters outside latin-1: {value!r}"
        )
    kind = _KINDS.get(lower, _PLAIN)
    if kind == _CONTENT_LENGTH:
        value = value.strip()
        if not _LENGTH.fullmatch(value):
            raise BadResponse(f"the Content-Length must be one number, not {value!r}")
        line = value.encode("ascii")
    else:
        line = f"{name}: {value}\r\n".encode("latin-1")
    if len(line) <= _KNOWN_LENGTH and type(field) is tuple:
        if len(_known) >= _KNOWN_MAX:
            _known.clear()
        _known[field] = kind, line
    return kind, line


#: Status lines that passed the check -> how they are sent, the number, and whether there is no body.
_statuses: Final[dict[Any, tuple[str, int, bool]]] = {}


def _check_status(status: Any) -> tuple[str, int, bool]:
    if type(status) is not str or not _STATUS.fullmatch(status):
        raise BadResponse(f"the status must be a string like '200 OK', not {status!r}")
    code = int(status[:3])
    # RFC 9110, 15.3.5, 15.3.6 and 15.4.5.
    known = status if len(status) > 3 else status + " ", code, code in (204, 205, 304)
    if len(_statuses) >= _STARTS_MAX:
        _statuses.clear()
    _statuses[status] = known
    return known


class CheckedHead:
    """A status and header that may be sent as they are.

    ``code`` is the status as a number, ``bodiless`` true if it has no body, whatever the application says, ``length``
    the declared Content-Length or None, ``lines`` the fields as they go out (without a Content-Length). Immutable by
    convention.
    """

    __slots__ = ("_fields", "bodiless", "code", "dated", "length", "lines", "server_named", "status", "upgrade")

    def __init__(self, status: Any, headers: Iterable[Any]) -> None:
        """Checks what an application handed to start_response: a string, and tuples of two strings.

        Raises:
            BadResponse: It cannot be sent.
        """
        try:
            self.status, self.code, self.bodiless = _statuses[status]
        except (KeyError, TypeError):
            self.status, self.code, self.bodiless = _check_status(status)
        self.length: int | None = None
        self.dated = False
        self.server_named = False
        self.upgrade = False
        self.lines: list[bytes] = []
        # A copy: the application may go on with its list.
        self._fields: list[Any] = [*headers]
        for field in self._fields:
            try:
                kind, line = _known[field]
            except (KeyError, TypeError):
                kind, line = _check(field)
            if kind:
                if kind == _CONTENT_LENGTH:
                    if self.length is not None:
                        raise BadResponse(f"the Content-Length must be one number, not {field[1]!r} as well")
                    self.length = int(line)
                    continue
                if kind == _DATE:
                    self.dated = True
                elif kind == _SERVER_NAME:
                    self.server_named = True
                elif self.code == 426:
                    # RFC 9110, 15.5.22: such an answer must say to what; only the application knows. It switches
                    # nothing: the connection goes on, or ends, as after any other answer.
                    self.upgrade = True
                else:
                    raise BadResponse(_SERVERS_OWN.format(field[0]))
            self.lines.append(line)

    @property
    def headers(self) -> list[tuple[str, str]]:
        """The fields as the application gave them, without a Content-Length."""
        return [field for field in self._fields if field[0].lower() != "content-length"]


#: Status -> the second, and how a head with this status begins in it: with Server and Date.
_starts: Final[dict[str, tuple[int, bytes]]] = {}


def _start(status: str) -> bytes:
    second = int(time.time())
    known = _starts.get(status)
    if known is not None and known[0] == second:
        return known[1]
    start = f"HTTP/1.1 {status}\r\nServer: {SERVER}\r\nDate: {http_date(second)}\r\n".encode("latin-1")
    if len(_starts) >= _STARTS_MAX:
        _starts.clear()
    _starts[status] = second, start
    return start


def serialize(head: CheckedHead, framing: Framing | None, length: int | None, connection: str | None) -> bytes:
    """The bytes of a response head.

    Args:
        head: The application's part.
        framing: Where the body will end; None if there is none, by the status or the method (204, 205, 304, HEAD).
        length: The Content-Length to send, None for none.
        connection: The value of the Connection field, None to leave it out.
    """
    if head.dated or head.server_named:
        start = f"HTTP/1.1 {head.status}\r\n"
        if not head.server_named:
            start += f"Server: {SERVER}\r\n"
        if not head.dated:
            start += f"Date: {http_date()}\r\n"
        parts = [start.encode("latin-1")]
    else:
        parts = [_start(head.status)]
    if head.upgrade:
        connection = "Upgrade" if connection is None else f"{connection}, Upgrade"  # RFC 9110, 7.8
    if connection is not None:
        parts.append(b"Connection: %b\r\n" % connection.encode("ascii"))
    parts += head.lines
    if head.code == 205:
        # RFC 9110, 15.3.6: no content, and said so; unlike with 204 a client would wait for it.
        length = 0
    if length is not None and head.code != 204:
        # RFC 9110, 8.6: never with 204; with 304 and HEAD it is what a GET would have had.
        parts.append(b"Content-Length: %d\r\n\r\n" % length)
    elif framing is Framing.CHUNKED:
        parts.append(b"Transfer-Encoding: chunked\r\n\r\n")
    else:
        parts.append(b"\r\n")
    return b"".join(parts)


def early_hints(headers: Iterable[Any]) -> bytes:
    """The bytes of a 103 response with these fields (RFC 8297), empty if there are none.

    A Content-Length among them is left out: it would be the answer's, and RFC 9110, 8.6, forbids it here.

    Raises:
        BadResponse: They cannot be sent.
    """
    lines = CheckedHead("200 OK", headers).lines
    return b"HTTP/1.1 103 Early Hints\r\n%b\r\n" % b"".join(lines) if lines else b""


_DAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_date: tuple[int, str] = (-1, "")


def http_date(now: float | None = None) -> str:
    """The Date of a response sent at ``now`` (unix seconds; default: the clock's), in the fixed form of RFC 9110,
    5.6.7.

    Made once a second. Not by strftime, whose names follow the locale that an application may have set.
    """
    global _date
    second = int(time.time() if now is None else now)
    cached, text = _date
    if cached != second:
        t = time.gmtime(second)
        text = (
            f"{_DAYS[t.tm_wday]}, {t.tm_mday:02} {_MONTHS[t.tm_mon - 1]} {t.tm_year} "
            f"{t.tm_hour:02}:{t.tm_min:02}:{t.tm_sec:02} GMT"
        )
        # One assignment of one tuple: threads may both make it, none sees half of it.
        _date = (second, text)
    return text


#: RFC 9110, 15.5, renamed these; the standard library did so in Python 3.13.
_PHRASES = {413: "Content Too Large", 414: "URI Too Long", 416: "Range Not Satisfiable", 422: "Unprocessable Content"}


def phrase(status: int) -> str:
    """The standard reason phrase of a status code, ``Unknown`` for one that is not registered."""
    if status in _PHRASES:
        return _PHRASES[status]
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"


def plain_page(status: int, reason: str, headers: Iterable[tuple[str, str]] = ()) -> tuple[CheckedHead, bytes]:
    """A page for an error that no application answers: the code, its name, one sentence. Plain text, never cached.

    ``headers`` are further fields.
    """
    body = f"{status} {phrase(status)}\n\n{reason}\n".encode("utf-8", "replace")
    head = CheckedHead(
        f"{status} {phrase(status)}",
        [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Cache-Control", "no-store"),
            ("Content-Length", str(len(body))),
            *headers,
        ],
    )
    return head, body


def refusal_bytes(status: int, reason: str) -> tuple[bytes, int]:
    """A complete response that refuses a request and ends the connection, and the length of its body."""
    head, body = plain_page(status, reason)
    return serialize(head, Framing.LENGTH, len(body), "close") + body, len(body)
