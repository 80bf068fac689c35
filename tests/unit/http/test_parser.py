"""The strictness table, row by row, and what must hold for any bytes at all."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.http import END, Data, End, Refusal, Request, RequestLimits, RequestParser
from tests.support.events import LIMITS, events

#: Follows each refused row: if anything of it is interpreted, the parser read the row's bytes in two ways.
NEXT = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"


def get(*lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join((first, *lines, b"", b""))


def post(*lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return get(b"Host: x", *lines, first=b"POST / HTTP/" + version) + body


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


ACCEPTED = {
    "plain": (get(b"Host: x"), b""),
    "1.0 without Host": (get(first=b"GET / HTTP/1.0"), b""),
    "empty Host": (get(b"Host:"), b""),
    "Host with port": (get(b"Host: example.org:8080"), b""),
    "Host IPv6": (get(b"Host: [::1]:80"), b""),
    "tab and spaces around a value": (get(b"Host: x", b"A:\t b \t"), b""),
    "empty value": (get(b"Host: x", b"A:"), b""),
    "8 bit in a value": (get(b"Host: x", b"A: \xe4\xff"), b""),
    "underscore alone": (get(b"Host: x", b"X_A: 1"), b""),
    "leading CRLF": (b"\r\n" + get(b"Host: x"), b""),
    "length": (post(b"Content-Length: 3", body=b"abc"), b"abc"),
    "length with zeros": (post(b"Content-Length: 003", body=b"abc"), b"abc"),
    "length 0": (post(b"Content-Length: 0"), b""),
    "POST without length": (post(), b""),
    "chunked": (chunked(b"3\r\nabc\r\n0\r\n\r\n"), b"abc"),
    "Chunked": (post(b"Transfer-Encoding: Chunked", body=b"0\r\n\r\n"), b""),
    "several chunks, hexadecimal": (chunked(b"1\r\na\r\n00A\r\n0123456789\r\n0\r\n\r\n"), b"a0123456789"),
    "chunk extension": (chunked(b'3;a=b ; c="d;\\"e"\r\nabc\r\n0;z\r\n\r\n'), b"abc"),
    "trailer": (chunked(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nY:\r\n\r\n"), b"abc"),
    "data that looks like framing": (chunked(b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n"), b"\r\n0\r\n\r\n"),
    "absolute-form": (get(b"Host: x", first=b"GET http://y:80/p?q HTTP/1.1"), b""),
    "OPTIONS *": (get(b"Host: x", first=b"OPTIONS * HTTP/1.1"), b""),
    "expect": (post(b"Expect: 100-Continue", b"Content-Length: 1", body=b"a"), b"a"),
    "expect anything in 1.0": (post(b"Expect: magic", b"Content-Length: 0", version=b"1.0"), b""),
    "browser's raw query": (get(b"Host: x", first=b"GET /a?b={|}^[]`\\ HTTP/1.1".replace(b"\\ ", b"\\ ")), b""),
    "percent in the query": (get(b"Host: x", first=b"GET /?100% HTTP/1.1"), b""),
    "upgrade is ignored": (get(b"Host: x", b"Connection: Upgrade", b"Upgrade: h2c"), b""),
}

REFUSED = {
    "no Host": (get(), 400),
    "two Hosts": (get(b"Host: x", b"Host: x"), 400),
    "two Hosts in 1.0": (get(b"Host: x", b"Host: y", first=b"GET / HTTP/1.0"), 400),
    "Host with path": (get(b"Host: x/y"), 400),
    "Host with userinfo": (get(b"Host: a@x"), 400),
    "Host with space": (get(b"Host: a b"), 400),
    "Host list": (get(b"Host: a, b"), 400),
    "Host with bad port": (get(b"Host: x:80a"), 400),
    "CL and TE": (post(b"Content-Length: 5", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n"), 400),
    "TE and CL": (post(b"Transfer-Encoding: chunked", b"Content-Length: 5", body=b"0\r\n\r\n"), 400),
    "same CL twice": (post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"), 400),
    "two CLs": (post(b"Content-Length: 3", b"Content-Length: 4", body=b"abc"), 400),
    "CL list": (post(b"Content-Length: 3, 3", body=b"abc"), 400),
    "CL +3": (post(b"Content-Length: +3", body=b"abc"), 400),
    "CL -1": (post(b"Content-Length: -1"), 400),
    "CL 3_0": (post(b"Content-Length: 3_0"), 400),
    "CL 0x3": (post(b"Content-Length: 0x3"), 400),
    "CL empty": (post(b"Content-Length:"), 400),
    "CL 3 3": (post(b"Content-Length: 3 3"), 400),
    "CL vertical tab": (post(b"Content-Length: \x0b3"), 400),
    "CL overlong": (post(b"Content-Length: " + b"9" * 30), 400),
    "CL above the limit": (post(b"Content-Length: 1001"), 413),
    "CL beyond 64 bits' reach": (post(b"Content-Length: 9999999999999999999"), 413),
    "TE xchunked": (post(b"Transfer-Encoding: xchunked"), 400),
    "TE chunked, chunked": (post(b"Transfer-Encoding: chunked, chunked"), 400),
    "TE chunked twice": (post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"), 400),
    "TE identity": (post(b"Transfer-Encoding: identity"), 400),
    "TE chunked, gzip": (post(b"Transfer-Encoding: chunked, gzip"), 400),
    "TE gzip, chunked": (post(b"Transfer-Encoding: gzip, chunked", body=b"0\r\n\r\n"), 501),
    "TE empty": (post(b"Transfer-Encoding:"), 400),
    "TE quoted": (post(b'Transfer-Encoding: "chunked"'), 400),
    "TE vertical tab": (post(b"Transfer-Encoding: \x0bchunked"), 400),
    "TE with a tab behind": (post(b"Transfer-Encoding: chunked\t", body=b"0\r\n\r\n"), 400),
    "TE in 1.0": (post(b"Transfer-Encoding: chunked", version=b"1.0", body=b"0\r\n\r\n"), 400),
    "bare LF after the line": (b"GET / HTTP/1.1\nHost: x\r\n\r\n", 400),
    "bare LF everywhere": (b"GET / HTTP/1.1\nHost: x\n\n", 400),
    "bare LF after a field": (b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n", 400),
    "bare LF ends the head": (b"GET / HTTP/1.1\r\nHost: x\r\n\n", 400),
    "bare CR in a value": (get(b"Host: x", b"A: b\rc"), 400),
    "CR CR LF": (b"GET / HTTP/1.1\r\nHost: x\r\r\n\r\n", 400),
    "CR in the line": (b"GET / HTTP/1.1\r\r\nHost: x\r\n\r\n", 400),
    "folded": (get(b"Host: x", b"A: b", b" c"), 400),
    "folded with tab": (get(b"Host: x", b"A: b", b"\tc"), 400),
    "folded first": (get(b" Host: x"), 400),
    "space before colon": (get(b"Host : x"), 400),
    "tab before colon": (get(b"Host\t: x"), 400),
    "no colon": (get(b"Host: x", b"nothing"), 400),
    "empty name": (get(b"Host: x", b": b"), 400),
    "name with bracket": (get(b"Host: x", b"A[b]: c"), 400),
    "8 bit name": (get(b"Host: x", b"\xe4: c"), 400),
    "NUL in a value": (get(b"Host: x", b"A: b\0c"), 400),
    "control character in a value": (get(b"Host: x", b"A: b\x01c"), 400),
    "DEL in a value": (get(b"Host: x", b"A: b\x7fc"), 400),
    "X_A beside X-A": (get(b"Host: x", b"X-A: 1", b"x_a: 2"), 400),
    "X_A before X-A": (get(b"Host: x", b"X_A: 1", b"X-A: 2"), 400),
    "Content_Length beside": (post(b"Content-Length: 1", b"Content_Length: 2", body=b"a"), 400),
    "HTTP/1.2": (get(b"Host: x", first=b"GET / HTTP/1.2"), 505),
    "HTTP/2.0": (get(b"Host: x", first=b"GET / HTTP/2.0"), 505),
    "HTTP/0.9": (get(b"Host: x", first=b"GET / HTTP/0.9"), 505),
    "HTTP/2 preface": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
    "no version": (get(b"Host: x", first=b"GET /"), 400),
    "http/1.1": (get(b"Host: x", first=b"GET / http/1.1"), 400),
    "HTTP/1.10": (get(b"Host: x", first=b"GET / HTTP/1.10"), 400),
    "HTTP/ 1.1": (get(b"Host: x", first=b"GET / HTTP/ 1.1"), 400),
    "lower case get": (get(b"Host: x", first=b"get / HTTP/1.1"), 501),
    "unknown method": (get(b"Host: x", first=b"FROB / HTTP/1.1"), 501),
    "CONNECT": (get(b"Host: x", first=b"CONNECT x:80 HTTP/1.1"), 501),
    "method G@T": (get(b"Host: x", first=b"G@T / HTTP/1.1"), 400),
    "two spaces": (get(b"Host: x", first=b"GET  / HTTP/1.1"), 400),
    "tab": (get(b"Host: x", first=b"GET\t/ HTTP/1.1"), 400),
    "trailing space": (get(b"Host: x", first=b"GET / HTTP/1.1 "), 400),
    "space in the target": (get(b"Host: x", first=b"GET /a b HTTP/1.1"), 400),
    "leading space": (get(b"Host: x", first=b" GET / HTTP/1.1"), 400),
    "GET *": (get(b"Host: x", first=b"GET * HTTP/1.1"), 400),
    "relative target": (get(b"Host: x", first=b"GET a HTTP/1.1"), 400),
    "authority-form": (get(b"Host: x", first=b"GET x:80 HTTP/1.1"), 400),
    "other scheme": (get(b"Host: x", first=b"GET ftp://x/ HTTP/1.1"), 400),
    "absolute with userinfo": (get(b"Host: x", first=b"GET http://a@x/ HTTP/1.1"), 400),
    "absolute without authority": (get(b"Host: x", first=b"GET http:/// HTTP/1.1"), 400),
    "NUL in the target": (get(b"Host: x", first=b"GET /\0 HTTP/1.1"), 400),
    "8 bit target": (get(b"Host: x", first=b"GET /\xe4 HTTP/1.1"), 400),
    "fragment": (get(b"Host: x", first=b"GET /a#b HTTP/1.1"), 400),
    "bad escape": (get(b"Host: x", first=b"GET /%zz HTTP/1.1"), 400),
    "cut escape": (get(b"Host: x", first=b"GET /%2 HTTP/1.1"), 400),
    "two leading CRLF": (b"\r\n\r\n" + get(b"Host: x"), 400),
    "leading LF": (b"\n" + get(b"Host: x"), 400),
    "POST without a length in 1.0": (post(version=b"1.0"), 411),
    "expect other": (post(b"Expect: magic"), 417),
    "expect more": (post(b"Expect: 100-continue, magic"), 417),
    "long line": (get(b"Host: x", first=b"GET /" + b"a" * 200 + b" HTTP/1.1"), 414),
    "long line without end": (b"GET /" + b"a" * 1000, 414),
    "long header": (get(b"Host: x", b"A: " + b"a" * 600), 431),
    "long header without end": (b"GET / HTTP/1.1\r\nA: " + b"a" * 1000, 431),
    "many fields": (get(b"Host: x", *[b"A: b"] * 10), 431),
    "garbage": (bytes(range(128, 256)) * 3, 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
}

#: Refused after their head, which is fine.
REFUSED_BODIES = {
    "negative": (b"-3\r\nabc\r\n0\r\n\r\n", 400),
    "plus": (b"+3\r\nabc\r\n0\r\n\r\n", 400),
    "0x": (b"0x3\r\nabc\r\n0\r\n\r\n", 400),
    "empty size": (b"\r\nabc", 400),
    "only an extension": (b";a\r\nabc\r\n0\r\n\r\n", 400),
    "space before the size": (b" 3\r\nabc\r\n0\r\n\r\n", 400),
    "space after the size": (b"3 \r\nabc\r\n0\r\n\r\n", 400),
    "LF only": (b"3\nabc\n0\n\n", 400),
    "LF in an extension": (b"3;a\nb\r\nabc\r\n0\r\n\r\n", 400),
    "CR in an extension": (b"3;a\rb\r\nabc\r\n0\r\n\r\n", 400),
    "bad extension": (b"3;a=\r\nabc\r\n0\r\n\r\n", 400),
    "no CRLF after the data": (b"3\r\nabc0\r\n\r\n", 400),
    "LF after the data": (b"3\r\nabc\n0\r\n\r\n", 400),
    "CR alone after the data": (b"3\r\nabc\r0\r\n\r\n", 400),
    "too much data": (b"3\r\nabcd\r\n0\r\n\r\n", 400),
    "size beyond reason": (b"f" * 16 + b"\r\n", 400),
    "larger than the limit": (b"3e9\r\n", 413),
    "larger in sum": (b"3e7\r\n" + b"a" * 999 + b"\r\n2\r\n", 413),
    "endless size line": (b"3;" + b"a" * 2000, 400),
    "extensions in sum": ((b"1;" + b"a" * 200 + b"\r\nx\r\n") * 4, 413),
    "folded trailer": (b"0\r\nA: b\r\n c\r\n\r\n", 400),
    "trailer without colon": (b"0\r\nA\r\n\r\n", 400),
    "trailer with LF": (b"0\r\nA: b\nC: d\r\n\r\n", 400),
    "trailer with NUL": (b"0\r\nA: \0\r\n\r\n", 400),
    "trailer space before colon": (b"0\r\nA : b\r\n\r\n", 400),
    "large trailer": (b"0\r\n" + b"A: " + b"b" * 700 + b"\r\n\r\n", 431),
    "many trailers": (b"0\r\n" + b"A: b\r\n" * 11 + b"\r\n", 431),
}


@pytest.mark.parametrize(("raw", "body"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted_and_the_next_request_is_read_after_it(raw: bytes, body: bytes) -> None:
    found = events([raw + NEXT])
    assert isinstance(found[0], Request)
    assert b"".join(event.data for event in found if isinstance(event, Data)) == body
    following = found[found.index(END) + 1]
    assert isinstance(following, Request)
    assert following.target == "/smuggled"
    assert isinstance(found[-1], End)


@pytest.mark.parametrize(("raw", "status"), REFUSED.values(), ids=REFUSED)
def test_refused_and_nothing_behind_it_is_interpreted(raw: bytes, status: int) -> None:
    found = events([raw + NEXT])
    assert len(found) == 1
    assert isinstance(found[0], Refusal)
    assert found[0].status == status
    assert found[0].reason


@pytest.mark.parametrize(("body", "status"), REFUSED_BODIES.values(), ids=REFUSED_BODIES)
def test_refused_body(body: bytes, status: int) -> None:
    found = events([chunked(body) + NEXT])
    assert isinstance(found[0], Request)
    assert isinstance(found[-1], Refusal)
    assert found[-1].status == status
    assert END not in found


def parse(raw: bytes) -> Request:
    event = events([raw])[0]
    assert isinstance(event, Request)
    return event


def test_what_a_request_says() -> None:
    request = parse(b"PATCH /a%20b/?c=%64&e HTTP/1.1\r\nhOST: x:81\r\nA: 1\r\nA:2\r\nContent-Length: 7\r\n\r\n")
    assert request == Request(
        line=b"PATCH /a%20b/?c=%64&e HTTP/1.1",
        method="PATCH",
        target="/a%20b/?c=%64&e",
        path="/a%20b/",
        query="c=%64&e",
        http11=True,
        headers=[(b"hOST", b"x:81"), (b"A", b"1"), (b"A", b"2"), (b"Content-Length", b"7")],
        host=b"x:81",
        length=7,
        keep_alive=True,
        expects_continue=False,
    )
    assert request.protocol == "HTTP/1.1"


def test_the_targets_authority_counts_more_than_the_host_field() -> None:
    request = parse(get(b"Host: x", first=b"GET http://y:80?q HTTP/1.1"))
    assert (request.host, request.path, request.query) == (b"y:80", "/", "q")


def test_an_https_target_is_the_models_business() -> None:
    # It knows whether the connection is secure.
    request = parse(get(b"Host: x", first=b"GET https://y/p HTTP/1.1"))
    assert (request.host, request.path) == (b"y", "/p")


@pytest.mark.parametrize(
    ("version", "lines", "expected"),
    [
        (b"1.1", (), True),
        (b"1.1", (b"Connection: close",), False),
        (b"1.1", (b"Connection: keep-alive, Close",), False),
        (b"1.1", (b"Connection: close", b"Connection: keep-alive"), False),
        (b"1.1", (b"Connection: closed",), True),
        (b"1.0", (), False),
        (b"1.0", (b"Connection: Keep-Alive",), True),
        (b"1.0", (b"Connection: close, keep-alive",), False),
    ],
)
def test_keep_alive(version: bytes, lines: Sequence[bytes], expected: bool) -> None:
    assert parse(get(b"Host: x", *lines, first=b"GET / HTTP/" + version)).keep_alive is expected


def test_zero_is_no_limit() -> None:
    unlimited = RequestLimits(0, 0, 0, 0)
    raw = get(b"Host: x", *[b"A: " + b"b" * 100] * 1000, first=b"GET /" + b"a" * 100_000 + b" HTTP/1.1")
    found = events([raw, chunked(b"fffffff\r\nabc")], unlimited)
    assert [type(event) for event in found] == [Request, End, Request, Data]


def test_bytes_behind_a_message_stay_unread() -> None:
    parser = RequestParser(LIMITS)
    parser.feed(chunked(b"1\r\na\r\n0\r\n\r\n") + b"GET /next")
    assert isinstance(parser.next_event(), Request)
    assert parser.next_event() == Data(b"a")
    assert isinstance(parser.next_event(), End)
    assert parser.unread == b"GET /next"
    assert not parser.between
    assert parser.next_event() is None
    assert parser.unread == b"GET /next"
    assert parser.request_line == b"GET /next"


def test_the_limits_hold_to_the_byte() -> None:
    line = b"GET /" + b"a" * 186 + b" HTTP/1.1"
    assert len(line) == LIMITS.line
    header = b"Host: x\r\nA: " + b"a" * 574 + b"\r\nB: cd\r\n\r\n"
    assert len(header) == LIMITS.header - 3
    assert isinstance(events([line + b"\r\n" + header])[0], Request)
    exact = header.replace(b"cd", b"cdefg")
    assert len(exact) == LIMITS.header
    assert isinstance(events([line + b"\r\n" + exact])[0], Request)
    for raw in (line.replace(b"a ", b"aa ") + b"\r\n" + exact, line + b"\r\n" + header.replace(b"cd", b"cdefgh")):
        assert isinstance(events([raw])[0], Refusal)


# -- any bytes, cut anywhere ----

CORPUS = [raw for raw, _ in ACCEPTED.values()] + [raw for raw, _ in REFUSED.values()]
CORPUS += [chunked(body) for body, _ in REFUSED_BODIES.values()]


def cut(raw: bytes, points: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({point % (len(raw) + 1) for point in points}), len(raw)]
    return [raw[start:end] for start, end in pairwise(edges)]


@pytest.mark.parametrize("raw", CORPUS)
def test_byte_by_byte_is_the_same_as_all_at_once(raw: bytes) -> None:
    whole = events([raw + NEXT])
    assert events([bytes((byte,)) for byte in raw + NEXT]) == whole


PIECES = st.sampled_from(
    [
        *CORPUS,
        *(b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b":", b"\0", b"GET / HTTP/1.1\r\n", b"Host: x\r\n"),
        *(b"Content-Length: 5\r\n", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n", b"3\r\nabc\r\n", b"X_A: 1\r\n"),
    ]
)


@given(pieces=st.lists(PIECES | st.binary(max_size=20), max_size=6), points=st.lists(st.integers(0, 10_000)))
def test_how_bytes_are_cut_means_nothing(pieces: list[bytes], points: list[int]) -> None:
    raw = b"".join(pieces)
    assert events(cut(raw, points)) == events([raw])


@given(seed=st.integers(0, 1 << 32), row=st.sampled_from(CORPUS), points=st.lists(st.integers(0, 10_000)))
def test_damaged_requests_neither_raise_nor_depend_on_the_cut(seed: int, row: bytes, points: list[int]) -> None:
    rng = random.Random(seed)
    raw = bytearray(row + NEXT)
    for _ in range(rng.randint(1, 4)):
        position = rng.randrange(len(raw))
        match rng.randrange(3):
            case 0:
                raw[position] = rng.randrange(256)
            case 1:
                del raw[position]
            case _:
                raw.insert(position, rng.choice(b"\r\n\t :;,_0aA\0\x80"))
    assert events(cut(bytes(raw), points)) == events([bytes(raw)])


@given(st.binary())
def test_arbitrary_bytes_never_raise(raw: bytes) -> None:
    for event in events([raw]):
        assert isinstance(event, Request | Data | End | Refusal)
