"""The access log: formats, Apache's escaping, and lines that nobody can forge."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.logs import AccessLog, compile_format, open_logs
from preforkd.logs.access import COMBINED, COMMON, DIRECTIVES
from preforkd.logs.outputs import PIPE_BUF, Output
from tests.unit.logs.helpers import NOON, Request, event_log, fork, settings, wait
from tests.unit.logs.parse import names, parse_log

COMBINED_LINE = re.compile(
    r"(?P<client>[^ ]+) - (?P<user>[^ ]+) \[(?P<time>[^]]+)\]"
    r' "(?P<request>(?:[^"\\]|\\.)*)" (?P<status>\d+|-) (?P<sent>\d+|-)'
    r' "(?P<referer>(?:[^"\\]|\\.)*)" "(?P<agent>(?:[^"\\]|\\.)*)"\n'
)

anything = st.text(st.one_of(st.characters(), st.sampled_from('\n\r\t "\\[]-\x00\x1b\x85\xff\u2028\udcff x')))
some_bytes = st.binary() | st.sampled_from([b'" 200 5 "-" "', b"a\nb", b"\\", b"\\\\", b'\\"'])


@pytest.fixture(autouse=True)
def utc(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Local time is UTC here."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def line(format: str, **changes: object) -> str:
    return compile_format(format)(Request(**changes)).decode().removesuffix("\n")  # type: ignore[arg-type]


def unescape(value: str) -> bytes:
    """Apache's escapes undone."""
    short = {"n": b"\n", "r": b"\r", "t": b"\t", "b": b"\b", "v": b"\v", '"': b'"', "\\": b"\\"}
    out = b""
    for match in re.finditer(r"\\x([0-9a-f]{2})|\\(.)|([^\\])", value):
        out += bytes([int(match[1], 16)]) if match[1] else short[match[2]] if match[2] else match[3].encode()
    return out


# --- formats ---------------------------------------------------------------------------------------------------------


def test_common() -> None:
    assert line("common") == '192.0.2.7 - - [23/Nov/2026:12:00:00 +0000] "GET /reports?page=3 HTTP/1.1" 200 1234'


def test_combined() -> None:
    assert line("combined", user="ann", sent=0) == (
        '192.0.2.7 - ann [23/Nov/2026:12:00:00 +0000] "GET /reports?page=3 HTTP/1.1" 200 - "-" "tests/1.0"'
    )


def test_json() -> None:
    assert json.loads(line("json")) == {
        "time": "2026-11-23T12:00:00.250Z",
        "client": "192.0.2.7",
        "user": None,
        "method": "GET",
        "target": "/reports?page=3",
        "protocol": "HTTP/1.1",
        "referer": None,
        "user_agent": "tests/1.0",
        "pool": "web",
        "worker": "web/3",
        "status": 200,
        "sent": 1234,
        "received": 56,
        "duration": 0.0125,
        "pid": 812,
    }


def test_the_names_are_the_formats_that_apache_knows_by_them() -> None:
    assert line("common") == line(COMMON)
    assert line("combined") == line(COMBINED)


@pytest.mark.parametrize(
    ("format", "shown"),
    [
        ("100%% %s", "100% 200"),
        ("%h %a %{c}a", "192.0.2.7 192.0.2.7 192.0.2.7"),
        ("%l %u", "- -"),
        ("%t", "[23/Nov/2026:12:00:00 +0000]"),
        ("%{%Y-%m-%d %H:%M}t", "2026-11-23 12:00"),
        ("%{begin:%H}t%{end:%S}t", "1200"),
        ("%{sec}t %{msec}t %{usec}t", "1795435200 1795435200250 1795435200250000"),
        ("%{msec_frac}t %{usec_frac}t %{end:msec_frac}t", "250 250000 262"),
        ("%r", "GET /reports?page=3 HTTP/1.1"),
        ("%m %U %q %H", "GET /reports ?page=3 HTTP/1.1"),
        ("%s %>s %<s", "200 200 200"),
        ("%b %B", "1234 1234"),
        ("%D %T %{s}T %{ms}T %{us}T", "12500 0 0 12 12500"),
        ("%P %{pid}P", "812 812"),
        ("%v %V", "web example.com"),
        ("%{pool}n %{worker}n %{received}n", "web web/3 56"),
        ("%{user-AGENT}i %{Referer}i", "tests/1.0 -"),
        ("%{content-type}o %{X}o", "text/plain -"),
        ("%200,304{User-Agent}i %!200{User-Agent}i", "tests/1.0 -"),
        ('{"status": %s, \'x\': "%{Host}i"}', '{"status": 200, \'x\': "example.com"}'),
        (r"\"%r\"\t%s", '"GET /reports?page=3 HTTP/1.1"\t200'),
        ("größe=%B", "größe=1234"),
        (r"\x41 %s \\ {0}", r"\x41 200 \ {0}"),
    ],
)
def test_directives(format: str, shown: str) -> None:
    assert line(format) == shown


def test_each_directive_of_the_list_is_understood() -> None:
    for directive in DIRECTIVES:
        compile_format("%s " + directive.replace("format", "%H"))


def test_what_is_not_there_is_a_dash() -> None:
    bare = Request(client="", method="", target="", status=0, sent=0, headers=[])
    assert compile_format('%h %m "%r" %s %b %{Host}i')(bare) == b'- - "-" - - -\n'


def test_a_request_that_could_not_be_parsed_shows_what_was_read() -> None:
    assert line('"%r" %s', method="", target="\x16\x03\x01", protocol="", status=400) == '"\\x16\\x03\\x01" 400'


def test_a_field_that_comes_twice_is_joined() -> None:
    headers = [(b"X-A", b"1"), (b"x-a", b"2")]
    assert line("%{X-A}i %{X-B}o", headers=headers, response_headers=[("X-B", "3"), ("x-b", "4")]) == "1, 2 3, 4"


def test_an_empty_user_and_one_with_spaces_stay_one_word() -> None:
    assert line("%u %s", user="") == '"" 200'
    assert line("%u %s", user="a b") == "a\\x20b 200"


# --- formats that are not understood ---------------------------------------------------------------------------------


def test_every_mistake_of_a_format_is_named_at_once() -> None:
    with pytest.raises(ValueError, match="there is no such directive") as caught:
        compile_format("%h %Z %p %{}i %{x}m %{ns}T %{a}n %{}t")
    message = str(caught.value)
    assert message.startswith("%Z: there is no such directive; %p: not supported: the port is not recorded")
    for part in ("%{}i: needs the name of a header", "%{x}m: takes no {...}", "{s}, {ms} and {us}", "%{}t", "%{Name}i"):
        assert part in message
    assert message.count("there are %%") == 1


@pytest.mark.parametrize(
    ("format", "message"),
    [
        ("combnied", "none of common, combined, json"),
        ("", "shows nothing of a request"),
        ("%%", "shows nothing of a request"),
        ("%h %", "'%' begins no directive"),
        ("%{Host", "begins no directive"),
        ("%h\n%s", "line break"),
        (r"%h\n%s", "line break"),
    ],
)
def test_a_format_that_cannot_be_meant(format: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        compile_format(format)


@given(st.text(st.sampled_from("%{}<>!i0129,shtuTDX'\"\\ {}\n\x00é:"), max_size=12))
def test_a_format_is_compiled_or_refused_with_a_sentence(format: str) -> None:
    try:
        formatter = compile_format(format)
    except ValueError as error:
        refused = error
    else:
        assert formatter(Request()).count(b"\n") == 1
        return
    assert type(refused) is ValueError and str(refused)


@given(anything)
def test_a_format_cannot_run_code(literal: str) -> None:
    literal = literal.replace("%", "").replace("\n", "").replace("\r", "")
    quoted = literal.replace("\\", "\\\\")
    assert compile_format(quoted + "%s")(Request()) == (literal + "200\n").encode("utf-8", "backslashreplace")


# --- lines that cannot be forged -------------------------------------------------------------------------------------


@given(anything, anything, st.none() | anything, some_bytes, some_bytes)
def test_every_line_has_the_form_of_its_format(
    method: str, target: str, user: str | None, referer: bytes, agent: bytes
) -> None:
    headers = [(b"REFERER", referer), (b"user-agent", agent)]
    request = Request(method=method, target=target, user=user, headers=headers, client="::1")
    written = compile_format("combined")(request)
    assert written.isascii()
    match = COMBINED_LINE.fullmatch(written.decode())
    assert match, written
    assert unescape(match["referer"]) == referer
    assert unescape(match["agent"]) == agent
    assert (match["client"], match["status"], match["sent"]) == ("::1", "200", "1234")
    assert match["time"] == "23/Nov/2026:12:00:00 +0000"
    if method.isascii() and target.isascii() and method:
        assert unescape(match["request"]).decode() == f"{method} {target} HTTP/1.1"
    if user:
        assert user.isascii() is False or unescape(match["user"]).decode() == user


@given(anything, anything, st.none() | anything, some_bytes)
def test_every_json_line_is_one_object_with_the_same_keys(
    method: str, target: str, user: str | None, agent: bytes
) -> None:
    request = Request(method=method, target=target, user=user, headers=[(b"User-Agent", agent)])
    written = compile_format("json")(request)
    assert written.isascii()
    assert written.count(b"\n") == 1 and written.endswith(b"\n")
    found = json.loads(written)
    assert list(found) == list(json.loads(line("json")))
    if target.isascii():
        assert found["target"] == target
    assert found["user_agent"] == agent.decode("utf-8", "backslashreplace")
    assert json.loads(written.decode().encode("utf-8")) == found  # no lone surrogates


FORMATS = [
    "common",
    "combined",
    "json",
    "%{Referer}i",
    "%{X}i %400,404{User-Agent}i %{X}o %V %r",
    "%!200{Referer}i|%{X}i",
]


@given(
    anything, anything, st.lists(st.tuples(st.sampled_from([b"Referer", b"referer", b"User-Agent", b"X"]), some_bytes))
)
def test_what_is_kept_of_fields_changes_no_line(target: str, other: str, headers: list[tuple[bytes, bytes]]) -> None:
    """Other formats and other requests have left there what they made of the same fields."""
    shared: dict[str, object] = {}
    for shown in (target, other):
        for format in FORMATS:
            fresh = line(format, target=shown, status=len(shown) + 399, headers=headers)
            assert line(format, target=shown, status=len(shown) + 399, headers=headers, shared=shared) == fresh


@given(st.text(st.sampled_from("äé€\U0001f600")))
def test_json_shows_utf8_as_what_it_means(target: str) -> None:
    written = line("json", target=target.encode().decode("latin-1"))
    assert json.loads(written)["target"] == target


def test_seconds_that_come_out_of_order_have_their_own_times() -> None:
    formatter = compile_format("%t")
    for offset in [0, 1, 0, 5, 1, *range(200), 0]:
        assert f":{offset // 60:02}:{offset % 60:02} ".encode() in formatter(Request(time=NOON + offset))


# --- writing ---------------------------------------------------------------------------------------------------------


def test_a_line_is_one_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs = open_logs(settings(tmp_path / "errors", tmp_path / "access", "common"))
    writes: list[tuple[int, bytes]] = []

    def write(fd: int, data: bytes) -> int:
        writes.append((fd, data))
        return len(data)

    monkeypatch.setattr(os, "write", write)
    assert logs.access
    logs.access.log(Request(target="/" + "x" * 100_000))
    monkeypatch.undo()
    logs.close()
    [(fd, data)] = writes
    assert data.count(b"\n") == 1 and len(data) > 100_000
    assert fd > 2


def test_four_processes_in_one_file_neither_tear_nor_lose_a_line(tmp_path: Path) -> None:
    path = tmp_path / "log"
    logs = open_logs(settings(path, path, "common"))  # events and requests in the same file, as well

    def child(number: int) -> None:
        assert logs.access
        for count in range(2000):
            logs.access.log(Request(target=f"/{number}/{count}", worker=f"web/{number}"))
            if count % 100 == 0:
                logs.events.info("fact", child=number, text="line\n" * 300)

    wait(*[fork(lambda number=number: child(number)) for number in range(4)])  # type: ignore[misc]
    logs.close()
    requests: list[str] = []
    events: list[str] = []
    for text in path.read_text().splitlines(keepends=True):
        (requests if text.startswith("192.0.2.7 ") else events).append(text)
    shown = re.compile(r'192\.0\.2\.7 - - \[[^]]*\] "GET (/\d/\d+) HTTP/1\.1" 200 1234\n')
    targets = [match[1] for text in requests if (match := shown.fullmatch(text))]
    assert sorted(targets) == sorted(f"/{number}/{count}" for number in range(4) for count in range(2000))
    assert len(requests) == 8000
    for number in range(4):  # each one's lines in its own order
        mine = [target for target in targets if target.startswith(f"/{number}/")]
        assert mine == [f"/{number}/{count}" for count in range(2000)]
    assert len(events) == 4 * 20 * 301


def test_a_record_that_lacks_something_costs_its_line_and_nothing_else(tmp_path: Path) -> None:
    events = event_log(tmp_path / "errors")
    output = Output(os.open(tmp_path / "access", os.O_WRONLY | os.O_CREAT | os.O_APPEND), "access", own=True)
    log = AccessLog("common", output, events)
    log.log(object())  # type: ignore[arg-type]
    log.log(Request())
    output.close()
    assert log.lost == 1
    assert (tmp_path / "access").read_text().count("\n") == 1
    failing, lost = parse_log((tmp_path / "errors").read_text())
    assert (failing.name, failing.fields["log"]) == ("log_failing", "access")
    assert (lost.name, lost.fields["lines"]) == ("log_lost", "1")


def test_a_full_disk_is_told_once_and_again_when_it_is_over(tmp_path: Path) -> None:
    path = tmp_path / "access"
    path.symlink_to("/dev/full")
    logs = open_logs(settings(tmp_path / "errors", path))
    assert logs.access
    for _ in range(3):
        logs.access.log(Request())
    assert logs.lost == logs.access.lost == 3
    path.unlink()
    assert logs.reopen() == []
    for _ in range(3):
        logs.access.log(Request())
    logs.close()
    assert path.read_text().count("\n") == 3
    failing, lost = parse_log((tmp_path / "errors").read_text())
    assert (failing.level, failing.name) == ("warning", "log_failing")
    assert failing.fields == {"log": "access", "to": str(path), "error": os.strerror(errno.ENOSPC)}
    assert (lost.name, lost.fields["lines"]) == ("log_lost", "3")


@pytest.mark.parametrize("format", ["combined", "json"])
def test_a_line_too_long_for_a_pipe_is_cut_where_its_form_allows(format: str, tmp_path: Path) -> None:
    reader, writer = os.pipe()
    output = Output(writer, "stdout", own=True)
    log = AccessLog(format, output, event_log(tmp_path / "errors"))
    log.log(Request(target="/" + "x" * 9000, headers=[(b"User-Agent", b"\xff" * 5000)]))
    log.log(Request())
    output.close()
    data = os.read(reader, 65536)
    os.close(reader)
    long, short = data.splitlines(keepends=True)
    assert len(long) <= PIPE_BUF < 9000
    assert b"cut)" in long
    assert short == compile_format(format)(Request())
    if format == "json":
        assert json.loads(long)["status"] == 200
    else:
        assert COMBINED_LINE.fullmatch(long.decode())


def test_a_full_pipe_drops_counts_and_says_so(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    size = fcntl.fcntl(writer, fcntl.F_GETPIPE_SZ)
    output = Output(writer, "stdout", own=True)
    log = AccessLog("common", output, event_log(tmp_path / "errors"))
    while not log.lost:
        log.log(Request())
    log.log(Request())
    os.read(reader, size)
    log.log(Request())
    assert os.read(reader, size) == compile_format("common")(Request())
    output.close()
    os.close(reader)
    failing, lost = parse_log((tmp_path / "errors").read_text())
    assert (failing.fields["to"], lost.fields["lines"]) == ("stdout", "2")


def test_syslog_gets_each_line_as_info(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as daemon:
        daemon.bind(str(tmp_path / "socket"))
        daemon.settimeout(10)
        logs = open_logs(settings(tmp_path / "errors", "syslog"), syslog_socket=str(tmp_path / "socket"))
        assert logs.access
        logs.access.log(Request())
        received = daemon.recv(65536).decode()
        logs.close()
    assert received.startswith("<30>")
    assert received.endswith(f" preforkd[{os.getpid()}]: {line('common')}")


def test_stdout(capfd: pytest.CaptureFixture[str]) -> None:
    logs = open_logs(settings("stderr", "stdout"))
    assert logs.access
    logs.access.log(Request())
    logs.close()
    assert capfd.readouterr().out == line("common") + "\n"
    assert names([]) == []
