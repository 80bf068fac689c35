"""What an application may send, and what it turns into."""

from __future__ import annotations

import locale
from datetime import UTC
from email.utils import formatdate, parsedate_to_datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.http import BadResponse, CheckedHead, Framing, http_date, phrase, plain_page, refusal_bytes
from preforkd.http.response import early_hints, serialize

BAD_HEADERS: dict[str, Any] = {
    "CRLF in the value": ("A", "b\r\nSet-Cookie: c"),
    "LF in the value": ("A", "b\nc"),
    "CR in the value": ("A", "b\rc"),
    "NUL in the value": ("A", "b\0"),
    "escape in the value": ("A", "\x1b[2J"),
    "not latin-1": ("A", "\u20ac"),
    "LF at the end": ("A", "b\n"),
    "CRLF in the name": ("A\r\nB", "c"),
    "LF at the end of the name": ("A\n", "c"),
    "colon in the name": ("A:", "b"),
    "space in the name": ("A b", "c"),
    "empty name": ("", "b"),
    "name not ASCII": ("\xe4", "b"),
    "name in bytes": (b"A", "b"),
    "value in bytes": ("A", b"b"),
    "number": ("A", 1),
    "not a pair": ("A", "b", "c"),
    "not a tuple": 1,
    "Connection": ("Connection", "close"),
    "Transfer-Encoding": ("transfer-encoding", "chunked"),
    "Keep-Alive": ("Keep-Alive", "timeout=5"),
    "Upgrade": ("Upgrade", "websocket"),
    "length -1": ("Content-Length", "-1"),
    "length with sign": ("Content-Length", "+1"),
    "length list": ("Content-Length", "1, 1"),
    "length empty": ("Content-Length", ""),
    "length not ASCII": ("Content-Length", "\xb2"),
}


@pytest.mark.parametrize("field", BAD_HEADERS.values(), ids=BAD_HEADERS)
def test_refused_header(field: Any) -> None:
    with pytest.raises(BadResponse):
        CheckedHead("200 OK", [("Content-Type", "text/plain"), field])


@pytest.mark.parametrize(
    "status",
    [
        "",
        "OK",
        "20 OK",
        "2000 OK",
        "200OK",
        "100 Continue",
        "101 Switching Protocols",
        "200 O\r\nK",
        "200 \u20ac",
        "200 OK\n",
        200,
        None,
    ],
)
def test_refused_status(status: Any) -> None:
    with pytest.raises(BadResponse):
        CheckedHead(status, [])


def test_a_second_length_is_refused() -> None:
    with pytest.raises(BadResponse):
        CheckedHead("200 OK", [("Content-Length", "1"), ("content-length", "1")])


def test_only_a_426_says_to_what() -> None:
    """RFC 9110, 15.5.22 and 7.8: the field is required, and named in Connection."""
    upgrade = ("Upgrade", "HTTP/3.0")
    for status in ("200 OK", "400 Bad Request", "427 x"):
        with pytest.raises(BadResponse, match="belongs to the server"):
            CheckedHead(status, [upgrade])
    head = CheckedHead("426 Upgrade Required", [upgrade])
    for connection, said in ((None, "Upgrade"), ("close", "close, Upgrade"), ("keep-alive", "keep-alive, Upgrade")):
        lines = head_of(serialize(head, Framing.LENGTH, 0, connection))
        assert f"Connection: {said}" in lines and "Upgrade: HTTP/3.0" in lines
    with pytest.raises(BadResponse):
        early_hints([upgrade])


@pytest.mark.parametrize("status", [200, 204, 304, 400, 404, 500])
def test_every_answer_is_dated(status: int) -> None:
    """RFC 9110, 6.6.1, for those of an application and for our own."""
    plain, _ = plain_page(max(status, 400), "why")
    for head in (CheckedHead(f"{status} x", []), plain):
        lines = head_of(serialize(head, None, None, None))
        (date,) = (line for line in lines if line.startswith("Date: "))
        assert parsedate_to_datetime(date.removeprefix("Date: ")).tzinfo is UTC
    assert refusal_bytes(max(status, 400), "why")[0].count(b"\r\nDate: ") == 1


def head_of(raw: bytes) -> list[str]:
    assert raw.endswith(b"\r\n\r\n")
    return raw[:-4].decode("latin-1").split("\r\n")


def test_serialized() -> None:
    head = CheckedHead("200 OK", [("Content-Type", "text/plain"), ("X-\u0041", "\xe4"), ("Content-Length", "3")])
    assert head.length == 3
    lines = head_of(serialize(head, Framing.LENGTH, 3, None))
    assert lines[0] == "HTTP/1.1 200 OK"
    assert lines[1] == "Server: preforkd"
    assert lines[2].startswith("Date: ")
    assert lines[3:] == ["Content-Type: text/plain", "X-A: \xe4", "Content-Length: 3"]


def test_serialized_chunked_and_closed() -> None:
    head = CheckedHead("404", [("Date", "now"), ("Server", "mine")])
    lines = head_of(serialize(head, Framing.CHUNKED, None, "close"))
    assert lines == ["HTTP/1.1 404 ", "Connection: close", "Date: now", "Server: mine", "Transfer-Encoding: chunked"]


def test_no_length_with_204() -> None:
    head = CheckedHead("204 No Content", [("Content-Length", "0")])
    assert not any("Content-Length" in line for line in head_of(serialize(head, None, 0, None)))


@given(
    status=st.text(max_size=12),
    headers=st.lists(st.tuples(st.text(max_size=8), st.text(max_size=12)), max_size=4),
)
def test_whatever_an_application_says_a_head_stays_one_head(status: str, headers: list[tuple[str, str]]) -> None:
    try:
        head = CheckedHead(status, headers)
    except BadResponse:
        return
    raw = serialize(head, Framing.LENGTH, 5, None)
    assert raw.count(b"\r\n\r\n") == 1
    assert raw.count(b"\n") == raw.count(b"\r") == raw.count(b"\r\n")
    assert b"\0" not in raw


@given(st.integers(0, 4_000_000_000))
def test_date_is_the_fixed_form(second: int) -> None:
    assert http_date(second + 0.75) == formatdate(second, usegmt=True)


def test_date_does_not_speak_the_applications_language() -> None:
    before = locale.setlocale(locale.LC_TIME)
    try:
        locale.setlocale(locale.LC_TIME, "")
        assert http_date(784111777) == "Sun, 06 Nov 1994 08:49:37 GMT"
    finally:
        locale.setlocale(locale.LC_TIME, before)


def test_phrases() -> None:
    assert phrase(404) == "Not Found"
    assert phrase(599) == "Unknown"


def test_plain_page() -> None:
    head, body = plain_page(414, "the request line is longer than 8192 bytes")
    assert head.status == "414 " + phrase(414)
    assert head.length == len(body)
    assert b"8192" in body


def test_a_refusal_ends_the_connection() -> None:
    raw, length = refusal_bytes(400, "no")
    head, _, body = raw.partition(b"\r\n\r\n")
    assert b"\r\nConnection: close\r\n" in head
    assert f"Content-Length: {length}".encode() in head
    assert len(body) == length
