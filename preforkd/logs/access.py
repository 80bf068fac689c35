r"""The access log: one line a request, in Apache's formats or as JSON, one ``write`` a line.

A format is compiled once into one Python function, because it runs for every request: the function looks up what the
format names and nothing else, formats times once a second, takes the request's fields from where it left them when the
same ones came before, and looks at everything else that came from the client in a single check; only where that finds a
character to escape does it escape value by value.

Apache's escaping holds (``ap_escape_logitem``): a quote as ``\"``, a backslash as ``\\``, newline, return, tab,
backspace and vertical tab as in C, all other bytes that are not printable ASCII as ``\xhh``. So a client can neither
begin a line nor end a quoted field. In the user's name, which no format quotes, spaces are escaped as well (Apache
leaves them).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from json.encoder import encode_basestring_ascii
from typing import Protocol

from preforkd.logs import text
from preforkd.logs.events import EventLog, reason
from preforkd.logs.outputs import Output
from preforkd.logs.sinks import PRIORITY, SyslogSocket


class Record(Protocol):
    """What the access log wants to know of a request; any object that has these will do.

    Texts from the client are the bytes of the request as latin-1, as WSGI has it; "" where there is nothing.
    """

    @property
    def time(self) -> float:
        """When the first byte of the request was read, unix time in seconds."""

    @property
    def duration(self) -> float:
        """From then to the last byte of the response that the kernel took, seconds."""

    @property
    def client(self) -> str:
        """The client's address without port; "" on a unix socket."""

    @property
    def method(self) -> str:
        """``GET``; "" if the request could not be parsed."""

    @property
    def target(self) -> str:
        """The request target as it was sent: ``/path?query``; what was read, if the request could not be parsed."""

    @property
    def protocol(self) -> str:
        """``HTTP/1.1``."""

    @property
    def status(self) -> int:
        """The status of the response; 0 if none was begun."""

    @property
    def sent(self) -> int:
        """Bytes of the response's body that were sent (without its head)."""

    @property
    def received(self) -> int:
        """Bytes of the request's body that were read."""

    @property
    def headers(self) -> Sequence[tuple[bytes, bytes]]:
        """The request's fields; names in any spelling."""

    @property
    def shared(self) -> dict[str, object]:
        """What belongs to these ``headers`` and comes again with them; the log keeps there what it made of them."""

    @property
    def response_headers(self) -> Sequence[tuple[str, str]]:
        """The response's fields; names in any spelling."""

    @property
    def user(self) -> str | None:
        """Who the application says it was (REMOTE_USER)."""

    @property
    def pool(self) -> str:
        """The pool's name."""

    @property
    def worker(self) -> str | int:
        """The worker's name, ``web/3``."""

    @property
    def pid(self) -> int:
        """The worker's process."""


Formatter = Callable[[Record], bytes]

COMMON = '%h %l %u %t "%r" %>s %b'
COMBINED = COMMON + ' "%{Referer}i" "%{User-Agent}i"'
NICKNAMES = {"common": COMMON, "combined": COMBINED}

#: What `compile_format` understands, for messages and for the manual: directive and meaning.
DIRECTIVES = {
    "%%": "a percent sign",
    "%a": "the client's address",
    "%b": "bytes of the response's body, - for none",
    "%B": "bytes of the response's body",
    "%D": "microseconds that the request took",
    "%h": "the client's address (names are not looked up)",
    "%H": "the protocol of the request, HTTP/1.1",
    "%{Name}i": "a header of the request",
    "%l": "always - (identd is not asked)",
    "%m": "the method of the request",
    "%{pool}n": "the pool; also %{worker}n, the worker's name; %{received}n, bytes of the request's body",
    "%{Name}o": "a header of the response",
    "%P": "the worker's process id",
    "%q": "the query string with its question mark, or nothing",
    "%r": "the first line of the request",
    "%s": "the status; %>s is the same",
    "%t": "when the request came, [23/Nov/2026:12:00:00 +0100]",
    "%{format}t": "the same by strftime(3), or sec, msec, usec, msec_frac, usec_frac; end:format when it was answered",
    "%T": "seconds that the request took; %{ms}T milliseconds, %{us}T microseconds",
    "%u": "the user that the application named",
    "%U": "the path of the request, without the query string",
    "%v": "the pool's name",
    "%V": "the Host header of the request",
}

# Why a directive of Apache's is not there, and what to write instead.
_NOT_HERE = {
    "A": "the local address is not recorded",
    "C": "write %{Cookie}i for all cookies",
    "e": "there is no environment of a request; write %{Name}i for a header",
    "f": "no file is served",
    "I": "heads are not counted; write %{received}n for the bytes of the request's body",
    "k": "requests of a connection are not counted",
    "L": "the error log has no request ids",
    "O": "heads are not counted; write %B for the bytes of the response's body",
    "p": "the port is not recorded; write %{Host}i",
    "R": "there is no handler of a request; write %v for the pool",
    "S": "heads are not counted; write %B for the bytes of the response's body",
    "X": "the state of the connection is not recorded",
}

_DIRECTIVE = re.compile(
    r"%(?:(?P<percent>%)"
    r"|(?P<only>!?[0-9]{3}(?:,[0-9]{3})*)?[<>]?(?:\{(?P<argument>[^}]*)\})?(?P<letter>\^[A-Za-z]{2}|[A-Za-z]))"
)
_TOKEN = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")  # a field name, RFC 9110, 5.6.2


def compile_format(format: str) -> Formatter:
    """The function that makes a line (newline included) of a record; ``common``, ``combined``, ``json`` or LogFormat.

    Any process. Raises ValueError with a sentence that names everything in the format that is not understood and what
    there is instead; it begins without a capital, so that a place can be put before it.
    """
    if format == "json":
        return _json_line
    pattern = NICKNAMES.get(format, format)
    source = _Source(format)
    problems: list[str] = []
    unknown = False
    pieces: list[str] = []  # the inside of the f-string that becomes the line
    at = 0
    while at < len(pattern):
        percent = pattern.find("%", at)
        end = percent if percent >= 0 else len(pattern)
        pieces.append(_literal(pattern[at:end], problems))
        if percent < 0:
            break
        match = _DIRECTIVE.match(pattern, percent)
        if match is None:
            problems.append(f"{pattern[percent : percent + 8]!r} begins no directive (a percent sign is %%)")
            at = percent + 1
            continue
        at = match.end()
        if match["percent"]:
            pieces.append("%")
            continue
        try:
            pieces.append(source.directive(match["letter"], match["argument"], match["only"]))
        except ValueError as error:
            problems.append(f"{match[0]}: {error}")
            unknown = True
    if not problems and not source.used:
        problems.append(f"{format!r} shows nothing of a request: it is none of common, combined, json, nor a LogFormat")
        unknown = True
    if problems:
        there_are = f" (there are {' '.join(DIRECTIVES)})" if unknown else ""
        raise ValueError("; ".join(problems) + there_are)
    return source.build("".join(pieces))


_BACKSLASHED = {'"': '"', "\\": "\\", "t": "\t", "n": "\n", "r": "\r"}


def _literal(literal: str, problems: list[str]) -> str:
    """Text between directives, as the inside of an f-string; Apache's backslashes are taken as Apache takes them."""
    whole = literal
    literal = re.sub(r'\\(["\\tnr])', lambda found: _BACKSLASHED[found[1]], literal)
    if "\n" in literal or "\r" in literal:
        problems.append(f"{whole!r} has a line break: each request is one line")
    escaped = literal.encode("unicode_escape").decode().replace("'", "\\'")
    return escaped.replace("{", "{{").replace("}", "}}")


class _Source:
    """The Python source of one formatter, statement by statement.

    Nothing of the format's text gets into the source but as an escaped literal or through `_constant`.
    """

    def __init__(self, format: str) -> None:
        self._format = format
        self.used = False
        self._constants: dict[str, object] = {"escape": _escape, "user_name": _user_name}
        self._values: dict[str, str] = {}  # expression -> variable, so that nothing is looked up twice
        self._from_client: list[str] = []  # variables that have to be looked at before they are printed
        self._late: list[str] = []  # statements that run after that
        self._request_headers: dict[str, str] = {}  # lower-case name -> variable
        self._response_headers: dict[str, str] = {}

    def directive(self, letter: str, argument: str | None, only: str | None) -> str:
        """The f-string's piece for one directive. Raises ValueError with the reason why there is none."""
        self.used = True
        if letter in _NOT_HERE:
            raise ValueError(f"not supported: {_NOT_HERE[letter]}")
        take = _TAKES.get(letter)
        if take is None:
            raise ValueError("there is no such directive")
        piece = take(self, argument)
        if only is None or not piece.startswith("{"):
            return piece
        statuses = self._constant(frozenset(int(status) for status in only.lstrip("!").split(",")))
        chosen = f"only{len(self._late)}"
        sense = "not in" if only.startswith("!") else "in"
        self._late.append(f"{chosen} = {piece[1:-1]} if record.status {sense} {statuses} else '-'")
        return f"{{{chosen}}}"

    def build(self, inside: str) -> Formatter:
        """The function."""
        lines = ["def line(record):"]
        lines += self._kept_headers()
        lines += _header_loop("record.response_headers", self._response_headers, str, "', '")
        lines += [f"{variable} = {expression}" for expression, variable in self._values.items()]
        if self._from_client:
            joined = "".join(f"{{{variable}}}" for variable in self._from_client)
            lines.append(f"seen = f'{joined}'")
            # Four passes in C over the joined text take half of what one regular expression takes.
            lines.append("if not (seen.isascii() and seen.isprintable()) or '\"' in seen or '\\\\' in seen:")
            lines += [f"    {variable} = escape({variable})" for variable in self._from_client]
        lines += self._late
        lines.append(f"return f'{inside}\\n'.encode('utf-8', 'backslashreplace')")
        namespace = dict(self._constants)
        exec(compile("\n    ".join(lines), "<log format>", "exec"), namespace)  # noqa: S102 (see the class)
        made: Formatter = namespace["line"]  # type: ignore[assignment]
        return made

    def _kept_headers(self) -> Iterator[str]:
        """Statements that fill the variables of `_request_header`: from what is kept, else by a look at all fields."""
        if not self._request_headers:
            return
        key = self._constant("access log " + self._format)
        values = ", ".join(f"header_{variable}" for variable in self._request_headers.values())
        yield f"kept = record.shared.get({key})"
        yield "if kept is None:"
        for line in _header_loop("record.headers", self._request_headers, str.encode, "b', '"):
            yield "    " + line
        found = (
            f"'-' if {variable} is None else escape({variable}.decode('latin-1'))"
            for variable in self._request_headers.values()
        )
        yield f"    kept = record.shared[{key}] = ({', '.join(found)},)"
        yield f"{values}, = kept"

    def _constant(self, value: object) -> str:
        constant = f"constant{len(self._constants)}"
        self._constants[constant] = value
        return constant

    def _value(self, expression: str, from_client: bool = False) -> str:
        variable = self._values.get(expression)
        if variable is None:
            variable = self._values[expression] = f"value{len(self._values)}"
            if from_client:
                self._from_client.append(variable)
        return f"{{{variable}}}"

    def _address(self, argument: str | None) -> str:
        if argument not in (None, "c"):
            raise ValueError("takes no {...} but {c}")
        return self._value("record.client or '-'", from_client=True)

    def _ident(self, argument: str | None) -> str:
        _bare(argument)
        return "-"

    def _user(self, argument: str | None) -> str:
        _bare(argument)
        return self._value("'-' if record.user is None else user_name(record.user)")

    def _request_line(self, argument: str | None) -> str:
        _bare(argument)
        whole = "record.method + ' ' + record.target + ' ' + record.protocol if record.method else record.target or '-'"
        return self._value(whole, from_client=True)

    def _method(self, argument: str | None) -> str:
        _bare(argument)
        return self._value("record.method or '-'", from_client=True)

    def _path(self, argument: str | None) -> str:
        _bare(argument)
        return self._value("record.target.partition('?')[0] or '-'", from_client=True)

    def _query(self, argument: str | None) -> str:
        _bare(argument)
        return self._value("''.join(record.target.partition('?')[1:])", from_client=True)

    def _protocol(self, argument: str | None) -> str:
        _bare(argument)
        return self._value("record.protocol or '-'", from_client=True)

    def _request_header(self, argument: str | None) -> str:
        variable = self._request_headers.setdefault(_field_name(argument), f"asked{len(self._request_headers)}")
        return f"{{header_{variable}}}"

    def _response_header(self, argument: str | None) -> str:
        # What the application answers with is often what a client gave it.
        variable = self._response_headers.setdefault(_field_name(argument), f"answered{len(self._response_headers)}")
        return self._value(f"'-' if {variable} is None else {variable}", from_client=True)

    def _host(self, argument: str | None) -> str:
        _bare(argument)
        return self._request_header("Host")

    def _pool(self, argument: str | None) -> str:
        _bare(argument)
        return self._value("record.pool")

    def _note(self, argument: str | None) -> str:
        if argument not in ("pool", "worker", "received"):
            raise ValueError("the notes are {pool}, {worker} and {received}")
        return self._value(f"record.{argument}")

    def _status(self, argument: str | None) -> str:
        _bare(argument)
        return self._value("record.status or '-'")

    def _sent_or_dash(self, argument: str | None) -> str:
        _bare(argument)
        return self._value("record.sent or '-'")

    def _sent(self, argument: str | None) -> str:
        _bare(argument)
        return self._value("record.sent")

    def _microseconds(self, argument: str | None) -> str:
        _bare(argument)
        return self._duration("us")

    def _duration(self, argument: str | None) -> str:
        factor = {None: 1, "s": 1, "ms": 1000, "us": 1000000}.get(argument)
        if factor is None:
            raise ValueError("the units are {s}, {ms} and {us}")
        return self._value(f"int(record.duration * {factor})")

    def _process(self, argument: str | None) -> str:
        if argument not in (None, "pid"):
            raise ValueError("takes no {...} but {pid}")
        return self._value("record.pid")

    def _time(self, argument: str | None) -> str:
        if argument is None:
            return self._value(f"{self._constant(_Times(text.clf_time))}[int(record.time)]")
        what, moment = argument, "record.time"
        if argument.startswith("end:"):
            what, moment = argument[4:], "(record.time + record.duration)"
        what = what.removeprefix("begin:")
        match what:
            case "sec":
                return self._value(f"int({moment})")
            case "msec":
                return self._value(f"int({moment} * 1000)")
            case "usec":
                return self._value(f"int({moment} * 1000000)")
            case "msec_frac":
                return self._value(f"'%03d' % (int({moment} * 1000) % 1000)")
            case "usec_frac":
                return self._value(f"'%06d' % (int({moment} * 1000000) % 1000000)")
            case "":
                raise ValueError("the {...} is empty; write %t, or a format as strftime(3) has it")
        return self._value(f"{self._constant(_Times(_strftime(what)))}[int({moment})]")


_TAKES: dict[str, Callable[[_Source, str | None], str]] = {
    "a": _Source._address,
    "B": _Source._sent,
    "b": _Source._sent_or_dash,
    "D": _Source._microseconds,
    "H": _Source._protocol,
    "h": _Source._address,
    "i": _Source._request_header,
    "l": _Source._ident,
    "m": _Source._method,
    "n": _Source._note,
    "o": _Source._response_header,
    "P": _Source._process,
    "q": _Source._query,
    "r": _Source._request_line,
    "s": _Source._status,
    "T": _Source._duration,
    "t": _Source._time,
    "U": _Source._path,
    "u": _Source._user,
    "V": _Source._host,
    "v": _Source._pool,
}


def _bare(argument: str | None) -> None:
    if argument is not None:
        raise ValueError("takes no {...}")


def _field_name(argument: str | None) -> str:
    if argument is None or not _TOKEN.fullmatch(argument):
        raise ValueError("needs the name of a header, as in {User-Agent}")
    return argument.lower()


def _header_loop(headers: str, wanted: dict[str, str], form: Callable[[str], object], comma: str) -> Iterator[str]:
    """One pass over the fields; the length of a name sorts most of them out before anything is made lower-case.

    A field that comes twice is joined with a comma, as RFC 9110, 5.3 allows and Apache does.
    """
    if not wanted:
        return
    yield " = ".join(wanted.values()) + " = None"
    yield f"for name, content in {headers}:"
    yield "    size = len(name)"
    by_size: dict[int, list[tuple[str, str]]] = {}
    for header, variable in wanted.items():
        by_size.setdefault(len(header), []).append((header, variable))
    for number, (size, group) in enumerate(by_size.items()):
        yield f"    {'elif' if number else 'if'} size == {size}:"
        yield "        name = name.lower()"
        for header, variable in group:
            yield f"        if name == {form(header)!r}:"
            yield f"            {variable} = content if {variable} is None else {variable} + {comma} + content"


class _Times(dict[int, str]):
    """Seconds as text. Requests end out of order, so the last few seconds are remembered, not just one."""

    def __init__(self, show: Callable[[int], str]) -> None:
        super().__init__()
        self._show = show

    def __missing__(self, second: int) -> str:
        shown = self._show(second)
        if len(self) > 60:
            self.clear()
        self[second] = shown
        return shown


def _strftime(format: str) -> Callable[[int], str]:
    def show(second: int) -> str:
        return text.escape(time.strftime(format, time.localtime(second)))

    try:
        show(0)
    except ValueError as error:
        raise ValueError(f"strftime(3) does not take it: {error}") from None
    return show


_C_ESCAPES = {'"': '\\"', "\\": "\\\\", "\b": "\\b", "\n": "\\n", "\r": "\\r", "\t": "\\t", "\v": "\\v"}


def _escape(value: str) -> str:
    if value.isascii() and value.isprintable() and '"' not in value and "\\" not in value:
        return value
    return "".join(_escape_char(char) for char in value)


def _escape_char(char: str) -> str:
    if " " <= char <= "~" and char not in '"\\':
        return char
    if (known := _C_ESCAPES.get(char)) is not None:
        return known
    code = ord(char)
    if code <= 0xFF:  # a byte of the request, as latin-1
        return f"\\x{code:02x}"
    # Lone surrogates come out as the three bytes they would be, undecodable bytes (PEP 383) as they were.
    data = char.encode("utf-8", "surrogateescape" if 0xDC80 <= code <= 0xDCFF else "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)


def _user_name(user: str) -> str:
    return _escape(user).replace(" ", "\\x20") or '""'


_iso_seconds = _Times(lambda second: time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second)))
_MILLISECONDS = tuple(f"{number:03}" for number in range(1000))


def _json_line(record: Record) -> bytes:
    """One JSON object a line; ASCII, so that any reader of any age can take it."""
    told = record.shared.get(_JSON_HEADERS)
    if told is None:
        told = record.shared[_JSON_HEADERS] = _json_headers(record.headers)
    client, user, method, target, protocol = record.client, record.user, record.method, record.target, record.protocol
    pool, worker = record.pool, record.worker
    seen = f"{client}{user}{method}{target}{protocol}{pool}{worker}"
    if seen.isascii() and seen.isprintable() and '"' not in seen and "\\" not in seen:
        # Nothing to escape: half of what the escaping costs is saved.
        if user is not None:
            user = f'"{user}"'
        texts = (
            f'"client":"{client}","user":{user or "null"},"method":"{method}","target":"{target}",'
            f'"protocol":"{protocol}",{told},"pool":"{pool}","worker":"{worker}"'
        )
    else:
        texts = (
            f'"client":{_json_text(client)},"user":{_json_text(user)},"method":{_json_text(method)},'
            f'"target":{_json_text(target)},"protocol":{_json_text(protocol)},{told},'
            f'"pool":{_json_text(pool)},"worker":{_json_text(str(worker))}'
        )
    second = int(record.time)
    return (
        f'{{"time":"{_iso_seconds[second]}.{_MILLISECONDS[int((record.time - second) * 1000)]}Z",{texts},'
        f'"status":{record.status},"sent":{record.sent},"received":{record.received},'
        f'"duration":{record.duration:.6f},"pid":{record.pid}}}\n'
    ).encode("ascii")


#: Where the part of `_json_headers` is kept.
_JSON_HEADERS = "access log json"


def _json_headers(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The members that come from the request's fields. The last of a name counts."""
    referer = agent = None
    for name, value in headers:
        size = len(name)
        if size == 7:
            if name.lower() == b"referer":
                referer = value.decode("latin-1")
        elif size == 10 and name.lower() == b"user-agent":
            agent = value.decode("latin-1")
    return f'"referer":{_json_text(referer)},"user_agent":{_json_text(agent)}'


def _json_text(value: str | None) -> str:
    """A JSON string; bytes of the client that are not UTF-8 as ``\\xhh``, because JSON has no way to say bytes."""
    if value is None:
        return "null"
    if not value.isascii():
        try:
            value = value.encode("latin-1").decode("utf-8", "backslashreplace")
        except UnicodeEncodeError:  # not bytes as latin-1 after all, but text
            value = value.encode("utf-8", "backslashreplace").decode("utf-8")
    return encode_basestring_ascii(value)


class _Shortened:
    """A record whose texts from the client are cut, so that its line fits and still has the form of its format."""

    def __init__(self, record: Record, cap: int) -> None:
        self._record = record
        self._cap = cap

    def __getattr__(self, name: str) -> object:
        value = getattr(self._record, name)
        return self._short(value) if isinstance(value, str) else value

    def _short(self, value: str) -> str:
        cut = len(value) - self._cap
        return f"{value[: self._cap]}...({cut} cut)" if cut > 16 else value

    @property
    def shared(self) -> dict[str, object]:
        return {}  # what is kept there belongs to the whole ones

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [(name, self._short(value.decode("latin-1")).encode("latin-1")) for name, value in self._record.headers]

    @property
    def response_headers(self) -> list[tuple[str, str]]:
        return [(name, self._short(value)) for name, value in self._record.response_headers]


#: A line to a file has no limit of the system's; this one keeps a mistake from filling the disk with one line.
_LINE_MAX = 1024 * 1024


class AccessLog:
    """Writes a line for each request. Any worker, any thread; across a fork it goes on to work.

    A file gets each line by one ``write`` whatever its length. A pipe takes 4096 bytes in one piece and syslog 8000, so
    in a longer line the target and the header values are cut, and say so: ``...(3120 cut)``.
    """

    def __init__(self, format: str, output: Output | SyslogSocket, events: EventLog) -> None:
        """Raises ValueError as `compile_format` does. ``events`` is told when lines are lost and when that is over."""
        self._format = compile_format(format)
        self._output = output
        self._events = events
        self._error = ""
        self._pending = 0
        self._lost = 0
        self._pid = os.getpid()
        self._fd = -1
        self._quick = 0
        self.look()

    @property
    def where(self) -> str:
        """Where the lines go: a path, ``stdout`` or ``syslog``."""
        return self._output.what

    @property
    def lost(self) -> int:
        """How many lines of this process did not get into the log."""
        self._mine()
        return self._lost

    def look(self) -> None:
        """Look again at what is behind the descriptor, after it was replaced or closed."""
        self._quick = 0  # the longest line that goes the quick road
        if isinstance(self._output, Output) and self._output.quick and not self._pending:
            self._fd = self._output.fd
            self._quick = self._output.limit or _LINE_MAX

    def log(self, record: Record) -> None:
        """Write the line of one request. Never raises; waits a fraction of a second at most."""
        try:
            line = self._format(record)
        except Exception as error:  # a record that lacks something; the request itself was served
            self._miss(error)
            return
        done = 0
        if len(line) <= self._quick:
            try:
                done = os.write(self._fd, line)
            except OSError:  # the slow road finds out what it means
                pass
            if done == len(line):
                return
        self._slowly(record, line, done)

    def _slowly(self, record: Record, line: bytes, done: int) -> None:
        self._mine()
        try:
            if isinstance(self._output, Output):
                limit = self._output.limit or _LINE_MAX
                line = line if len(line) <= limit else self._shortened(record, limit)
                self._output.write(line, not self._pending, done)
            else:
                line = line if len(line) <= 7900 else self._shortened(record, 7900)
                shown = line.decode("utf-8", "replace").rstrip("\n")
                self._output.send(PRIORITY["info"], shown, time.time(), not self._pending)
        except Exception as error:
            self._miss(error)
            return
        if self._pending:
            self._events.warning("log_lost", log="access", to=self.where, lines=self._pending, error=self._error)
            self._pending = 0
        if not self._quick:
            self.look()

    def _shortened(self, record: Record, limit: int) -> bytes:
        line, cap = b"", limit
        while cap > 16:
            cap //= 2
            line = self._format(_Shortened(record, cap))  # type: ignore[arg-type]
            if len(line) <= limit:
                return line
        return line[: limit - 4] + b"...\n"

    def _miss(self, error: Exception) -> None:
        self._mine()
        self._quick = 0  # from now on by the slow road, which notices when it is over
        self._lost += 1
        self._pending += 1
        self._error = reason(error)
        if self._pending == 1:
            self._events.warning("log_failing", log="access", to=self.where, error=self._error)

    def _mine(self) -> None:
        """After a fork: what the parent lost, the parent will report."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._pending = self._lost = 0
