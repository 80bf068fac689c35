"""The table of refusals in docs/http.md, row by row, as bytes on a real socket, before a request that must not be seen.

Each case of `REFUSED` is followed in the same bytes by `NEXT`. If the worker reads anything behind a refusal, it has
read the bytes in two ways, and so would whoever stands between it and an attacker. `ACCEPTED` holds the near misses:
they are served, and so is `NEXT`.
"""

from __future__ import annotations

import itertools
import re
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from preforkd import models
from preforkd.config import Body, Limits, Timeouts
from preforkd.handlers.wsgi import WSGI
from tests.contract.bench import Client, Worker
from tests.support.events import events

HTTP = Path(__file__).resolve().parents[2] / "docs" / "http.md"
LIMITS = {"line": 200, "header": 600, "fields": 10, "body": 1000}
NEXT = b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n"

Row = tuple[int, str]

#: Bodies are received before the application is called, or it reads them itself.
BUFFERED, STREAMED = Body(), Body(buffer=0)


def get(*lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
    return b"\r\n".join((first, b"Host: x", *lines, b"", b""))


def bare(*lines: bytes, first: bytes = b"GET / HTTP/1.1") -> bytes:
    """A head without the Host field that `get` adds."""
    return b"\r\n".join((first, *lines, b"", b""))


def target(what: bytes, method: bytes = b"GET") -> bytes:
    return get(first=method + b" " + what + b" HTTP/1.1")


def post(*lines: bytes, body: bytes = b"", version: bytes = b"1.1") -> bytes:
    return get(*lines, first=b"POST / HTTP/" + version) + body


def coded(*lines: bytes) -> bytes:
    """A request that is complete for those who believe that it comes in chunks."""
    return post(*lines, body=b"0\r\n\r\n")


def chunked(body: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", body=body)


MALFORMED_HEADER = (400, "the header is malformed: N")
#: Refused before the application is called: row -> cases.
REFUSED: dict[Row, list[bytes]] = {
    (400, "a request line must begin with a method"): [
        b"\xff\xfe\r\n\r\n",
        b"\r\n\r\n" + get(),
        b"\n" + get(),
        b"\r\r\n" + get(),
        b" " + get(),
        b"\0" + get(),
        b"(GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ],
    (400, "this looks like TLS; HTTP without TLS is spoken here"): [b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"],
    (400, "the request line does not end in CRLF"): [
        b"GET / HTTP/1.1\nHost: x\r\n\r\n",
        b"GET /\n",
        b"GET / HTTP/1.1\n\n",
    ],
    (400, "the request line is malformed"): [
        get(first=b"GET /"),  # HTTP/0.9
        get(first=b"GET  / HTTP/1.1"),
        get(first=b"GET /  HTTP/1.1"),
        get(first=b"GET / HTTP/1.1 "),
        get(first=b"GET\t/ HTTP/1.1"),
        get(first=b"GET /\x0bHTTP/1.1"),
        get(first=b"GET /a b HTTP/1.1"),
        get(first=b"GET /\xe4 HTTP/1.1"),
        get(first=b"GET /\0 HTTP/1.1"),
        get(first=b"GET /\x7f HTTP/1.1"),
        get(first=b"GET / http/1.1"),
        get(first=b"GET / HTTP/1.10"),
        get(first=b"GET / HTTP/1"),
        get(first=b"GET / HTTP/01.1"),
        get(first=b"GET / HTTP/ 1.1"),
        get(first=b"GET / HTTP/1.1\r"),
        get(first=b"GET / HTTP/1.1, HTTP/1.0"),
        get(first=b"G@T / HTTP/1.1"),
        get(first=b"GET"),
    ],
    (414, "the request line is longer than N bytes"): [target(b"/" + b"a" * 200)],
    (505, "only HTTP/1.1 and HTTP/1.0 are spoken here"): [
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        *(get(first=b"GET / HTTP/" + version) for version in (b"0.9", b"1.2", b"2.0", b"3.0", b"9.9")),
    ],
    (400, "a header line does not end in CRLF"): [
        b"GET / HTTP/1.1\r\nHost: x\nA: b\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\n",
        b"GET / HTTP/1.1\r\nHost: x\n\n",
        b"GET / HTTP/1.1\r\nHost: x\r\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\r\n",
        get(b"A: b\rc"),
        get(b"A: b\nTransfer-Encoding: chunked"),
        post(b"Content-Length: 5\rTransfer-Encoding: chunked"),
        coded(b"Transfer-Encoding: chunked\n"),
        coded(b"X: y\nTransfer-Encoding: chunked"),
        coded(b"Transfer-Encoding:\n chunked"),
    ],
    (431, "the header is longer than N bytes"): [get(b"A: " + b"a" * 600)],
    (431, "the header has more than N fields"): [get(*[b"A: b"] * 10)],
    (501, "the method is not known here"): [target(b"/", b"FROB"), target(b"/", b"get"), target(b"/", b"GETT")],
    MALFORMED_HEADER: [
        bare(b"Host : x"),
        bare(b"Host\t: x"),
        get(b"nothing"),
        get(b": empty"),
        get(b"A[b]: c"),
        get(b"\xe4: c"),
        get(b"A: b\0c"),
        get(b"A: b\x01c"),
        get(b"A: b\x7fc"),
        get(b"A\0: b"),
        get(b"A: b", b" folded"),
        get(b"A: b", b"\tfolded"),
        coded(b"Transfer-Encoding : chunked"),
        coded(b"Transfer-Encoding\t: chunked"),
        coded(b"Transfer-Encoding:", b" chunked"),
        coded(b"Transfer-Encoding: chunked", b"\t, identity"),
        coded(b" Transfer-Encoding: chunked"),
        coded(b"X: y", b"\x0bTransfer-Encoding: chunked"),
        coded(b"Transfer-Encoding: chunked\t"),
        coded(b"Transfer\xc2\xadEncoding: chunked"),
        post(b"Content-Length : 5"),
        post(b"Content-Length: 5 5"),
        post(b"Content-Length:", b" 5"),
        post(b"Content-Length: 5\0"),
    ],
    (400, "a header line is not a field"): [get(b"A: b", b"  "), get(b"A:", b" b"), bare(b" Host: x")],
    (400, "there is more than one Host field"): [
        get(b"Host: x"),
        get(b"hOST: y"),
        get(b"Host: y", first=b"GET / HTTP/1.0"),
    ],
    (400, "the Host field is malformed"): [
        bare(b"Host: " + value)
        for value in (
            b"a@x",
            b"a b",
            b"x/y",
            b"x, y",
            b"x:80a",
            b"x:80:80",
            b"[::1",
            b"[x]",
            b"x?",
            b"x#",
            b"\xe4",
            b"x:-1",
            b":80",
            b"%zz",
            b"x%4",
            b"[:::]",
            b"[1.2.3.4]",
            b"[::1%25lo]",
            b"[::1]x",
        )
    ],
    (400, "HTTP/1.1 requires a Host field"): [bare(), bare(b"X-Host: x"), bare(first=b"GET http://x/ HTTP/1.1")],
    (400, "there is more than one Content-Length"): [
        post(b"Content-Length: 3", b"Content-Length: 3", body=b"abc"),
        post(b"Content-Length: 0", b"content-length: 4"),
    ],
    (400, "the Content-Length is malformed"): [
        post(b"Content-Length: " + value)
        for value in (
            b"+5",
            b"-1",
            b"5, 5",
            b"5,5",
            b"0x5",
            b"1_0",
            b"5.0",
            b"5e0",
            b"\xd9\xa5",
            b"\xb2",
            b"",
            b"\t",
            b'"5"',
        )
    ],
    (413, "the body is longer than the N bytes that are allowed"): [
        post(b"Content-Length: 1001"),
        post(b"Content-Length: 9999999999999999999"),
    ],
    (400, "there is more than one Transfer-Encoding"): [
        coded(b"Transfer-Encoding: chunked", b"Transfer-Encoding: chunked"),
        coded(b"Transfer-Encoding: gzip", b"transfer-encoding: chunked"),
    ],
    (400, "the Transfer-Encoding is malformed"): [
        coded(b"Transfer-Encoding: " + value)
        for value in (
            *(b"xchunked", b"chunkedx", b"chunked, chunked", b"identity", b"chunked, identity", b"chunked, gzip", b""),
            *(
                b'"chunked"',
                b"'chunked'",
                b"chunked;q=1",
                b"chunked ;",
                b"chunked,",
                b"chun ked",
                b"c\xadhunked",
                b"gzip",
            ),
        )
    ],
    (501, "the only transfer coding understood here is chunked"): [
        coded(b"Transfer-Encoding: gzip, chunked"),
        coded(b"Transfer-Encoding: x, chunked"),
        coded(b"Transfer-Encoding: identity, chunked"),
    ],
    (400, "Content-Length and Transfer-Encoding exclude each other"): [
        coded(b"Content-Length: 5", b"Transfer-Encoding: chunked"),
        coded(b"Transfer-Encoding: chunked", b"Content-Length: 5"),
        coded(b"Content-Length: 0", b"Transfer-Encoding: Chunked"),
    ],
    (400, "HTTP/1.0 knows no Transfer-Encoding"): [
        post(b"Transfer-Encoding: chunked", version=b"1.0", body=b"0\r\n\r\n")
    ],
    (400, "two fields differ only in '-' and '_'"): [
        get(b"X-A: 1", b"x_a: 2"),
        get(b"X_A: 1", b"X-A: 2"),
        post(b"Content-Length: 1", b"Content_Length: 9", body=b"a"),
        get(b"A-B-C: 1", b"A_B-C: 2"),
    ],
    (411, "an HTTP/1.0 request that carries a body needs a Content-Length"): [
        get(first=method + b" / HTTP/1.0") for method in (b"POST", b"PUT", b"PATCH")
    ],
    (417, "the only expectation met here is 100-continue"): [
        post(b"Expect: magic"),
        post(b"Expect: 100-continue, magic"),
        post(b"Expect: 100-continue;a=b"),
        post(b"Expect: ,100-continue", b"Expect: magic"),
    ],
    (501, "this server is no proxy"): [target(b"x:80", b"CONNECT"), target(b"/", b"CONNECT")],
    (400, "the target * is for OPTIONS only"): [target(b"*")],
    (400, "the request target is malformed"): [
        target(what) for what in (b"a", b"x:80", b"ftp://x/", b"http:/x/", b"http:///", b"http://?a", b"**", b"?a")
    ],
    (400, "the authority of the request target is malformed"): [
        target(what) for what in (b"http://a@x/", b"http://:80/", b"http://x:a/", b"http://[::1/", b"http://x\\y/")
    ],
    (421, "this connection is not for such a URL; make another"): [target(b"https://x/"), target(b"HTTPS://x:443/")],
    (400, "a request target has no fragment"): [target(b"/a#b"), target(b"/?a#b"), target(b"http://x/#b")],
    (400, "the path has a malformed percent escape"): [target(b"/%zz"), target(b"/%2"), target(b"/%"), target(b"/%-1")],
}

#: Refused where the application reads: row -> bodies of a chunked request.
REFUSED_BODIES: dict[Row, list[bytes]] = {
    (400, "the size of a chunk is malformed"): [
        size + b"\r\nabc\r\n0\r\n\r\n"
        for size in (
            *(
                b"-3",
                b"+3",
                b"0x3",
                b"",
                b";a",
                b" 3",
                b"3 ",
                b"3\t",
                b"1_0",
                b"\xd9\xa3",
                b"g",
                b"3\0",
                b"3\x0b",
                b"f" * 16,
            ),
            *(b"3;a\rb", b"3;a=", b'3;a="b', b"3;", b"3;;a", b"3,3", b"3 a", b"3\r"),
        )
    ],
    (400, "a chunk is longer than it announced"): [
        b"3\r\nabc0\r\n\r\n",
        b"3\r\nabcd\r\n0\r\n\r\n",
        b"3\r\nabc\n0\r\n\r\n",
        b"3\r\nabc\r0\r\n\r\n",
        b"3\r\nabcXX0\r\n\r\n",
    ],
    (400, "a line of the chunked body does not end in CRLF"): [
        b"3\nabc\r\n0\r\n\r\n",
        b"3;a\nb\r\nabc\r\n0\r\n\r\n",
        b"0\n\r\n",
        b"0\r\n\n",
        b"0\r\nA: b\nC: d\r\n\r\n",
    ],
    (400, "a line of the chunked body is too long"): [b"3;" + b"a" * 2000],
    (431, "a line of the chunked body is too long"): [b"0\r\nA: " + b"b" * 700],
    (413, "the chunk extensions are too long"): [(b"1;" + b"a" * 250 + b"\r\nx\r\n") * 3],
    (431, "the trailer is too large"): [b"0\r\n" + b"A: b\r\n" * 11, b"0\r\n" + (b"A: " + b"b" * 290 + b"\r\n") * 3],
    (400, "a trailer field is malformed"): [
        b"0\r\n" + line + b"\r\n\r\n"
        for line in (b"A", b"A : b", b": b", b"A: b\r\n c", b"A: \0", b"A: b\rc", b"\xe4: b", b" A: b", b"A[: b")
    ],
    (413, "the body is longer than the N bytes that are allowed"): [b"3e9\r\n", b"fffffffffffffff\r\n"],
}

#: Rows whose rule stands behind llhttp: it refuses most or all of their cases first, with 400 and its own words. The
#: rules are kept, because a later llhttp may be milder; the cases must be refused whoever does it.
BEHIND_LLHTTP: set[Row] = {
    (400, "there is more than one Content-Length"),
    (400, "the Content-Length is malformed"),
    (400, "there is more than one Transfer-Encoding"),
    (400, "the Transfer-Encoding is malformed"),
    (400, "Content-Length and Transfer-Encoding exclude each other"),
    (400, "the request target is malformed"),
    (400, "the authority of the request target is malformed"),
    (400, "a header line is not a field"),
}

#: Rows that no bytes reach by themselves: what the test is that has them.
ELSEWHERE: dict[Row, str] = {
    (408, "the request did not arrive in time"): "test_a_head_that_does_not_come",
    (408, "the request's body did not arrive in time"): "test_a_body_that_does_not_come",
    (400, "the client left before the end of its request"): "test_a_body_that_ends_too_early",
}

#: Rows that need a listener or a peer of another kind: their tests are in `test_tls` and `test_proxies`.
OTHER_LISTENERS: set[Row] = {
    (400, "this port speaks TLS; write https:// in the URL"),
    (400, "what a proxy says of the client is malformed"),
}

#: Near misses: what the application sees as the body of each.
ACCEPTED: dict[str, tuple[bytes, bytes]] = {
    "plain": (get(), b""),
    "1.0": (bare(b"Connection: keep-alive", first=b"GET / HTTP/1.0"), b""),
    "1.0 POST with a length": (post(b"Content-Length: 1", b"Connection: keep-alive", body=b"a", version=b"1.0"), b"a"),
    "one empty line first": (b"\r\n" + get(), b""),
    "empty Host": (bare(b"Host:"), b""),
    "Host with port": (bare(b"Host: [::1]:80"), b""),
    "Host in other letters": (bare(b"Host: [::FFFF:192.0.2.1]"), b""),
    "Host with an escape": (bare(b"Host: %C3%A4.x:"), b""),
    "line at its limit": (target(b"/?" + b"a" * (200 - 15)), b""),
    "fields at their limit": (get(*[b"A: b"] * 9), b""),
    "tabs around a value": (get(b"A:\t b \t"), b""),
    "8 bit in a value": (get(b"A: \xe4\xff"), b""),
    "underscore alone": (get(b"X_A: 1"), b""),
    "length with a blank behind": (post(b"Content-Length: 3 ", body=b"abc"), b"abc"),
    "length with zeros": (post(b"Content-Length: 003", body=b"abc"), b"abc"),
    "body at its limit": (post(b"Content-Length: 1000", body=b"a" * 1000), b"a" * 1000),
    "body that looks like a request": (post(b"Content-Length: %d" % len(NEXT), body=NEXT), NEXT),
    "TE is no Transfer-Encoding": (post(b"TE: trailers, gzip", b"Content-Length: 1", body=b"a"), b"a"),
    "CHUNKED": (coded(b"transfer-encoding: CHUNKED "), b""),
    "chunks": (chunked(b"1\r\na\r\n00A\r\n0123456789\r\n0\r\n\r\n"), b"a0123456789"),
    "extensions": (chunked(b'3;a=b ; c="d;\\"e\\\\"\r\nabc\r\n0 ;z\r\n\r\n'), b"abc"),
    "trailer": (chunked(b"3\r\nabc\r\n0\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\n"), b"abc"),
    "chunk that looks like framing": (chunked(b"7\r\n\r\n0\r\n\r\n\r\n0\r\n\r\n"), b"\r\n0\r\n\r\n"),
    "absolute-form": (target(b"http://y:80/p?q"), b""),
    "absolute-form, no path": (target(b"HTTP://y?q"), b""),
    "asterisk-form": (target(b"*", b"OPTIONS"), b""),
    "percent in the query": (target(b"/?100%&a=/?b"), b""),
    "expect": (post(b"Expect: 100-Continue", b"Content-Length: 1", body=b"a"), b"a"),
    "expect in a list": (
        post(b"Expect: , 100-continue ,,", b"Expect: 100-CONTINUE", b"Content-Length: 1", body=b"a"),
        b"a",
    ),
    "expect nothing": (get(b"Expect: ,"), b""),
    "expect anything in 1.0": (get(b"Expect: magic", b"Connection: keep-alive", first=b"GET / HTTP/1.0"), b""),
    "upgrade is ignored": (
        get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABk"),
        b"",
    ),
    "upgrade is ignored in 1.0": (
        get(b"Connection: upgrade, keep-alive", b"Upgrade: websocket", first=b"GET / HTTP/1.0"),
        b"",
    ),
    "empty elements of Connection": (get(b"Connection: ,, ,keep-alive,"), b""),
    "max-forwards is for proxies": (get(b"Max-Forwards: 0"), b""),
    "body without meaning": (get(b"Content-Length: 3") + b"abc", b"abc"),
}

CASES = [(row, raw, 0) for row, raws in REFUSED.items() for raw in raws]
CASES += [(row, chunked(body), 1) for row, bodies in REFUSED_BODIES.items() for body in bodies]


def test_the_table_and_the_cases_have_the_same_rows() -> None:
    text = HTTP.read_text(encoding="utf-8")
    told = {(int(status), sentence) for status, sentence in re.findall(r"(?m)^\| (\d{3}) \| (.*?) \|", text)}
    # What follows "malformed: N" in the document is a remark about it.
    assert told == REFUSED.keys() | REFUSED_BODIES.keys() | ELSEWHERE.keys() | OTHER_LISTENERS
    assert all(name in globals() for name in ELSEWHERE.values())


def echo(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    body: bytes = environ["wsgi.input"].read()
    start_response("200 OK", [("X-Path", environ["PATH_INFO"])])
    return [body]


@pytest.fixture(scope="module", params=itertools.product(sorted(models.BUILT_IN), (BUFFERED, STREAMED)), ids=str)
def served(request: pytest.FixtureRequest) -> Iterator[tuple[Worker, socket.socket]]:
    """One worker for all cases: none of them may cost more than its connection."""
    with socket.create_server(("127.0.0.1", 0), backlog=128) as listener:
        listener.setblocking(False)
        model, body = request.param
        handler = WSGI(echo, pool="web")
        with Worker([listener], handler, model=model, limits=Limits(**LIMITS), body=body) as worker:
            yield worker, listener


def requests_seen(worker: Worker, address: tuple[str, int]) -> list[str]:
    """The requests that began since the last call: asks once more, and reads what is told until then."""
    before = len(worker.events)
    with Client(address) as client:
        client.get("/marker")
    lines: list[str] = []
    while not lines or lines[-1] != "GET /marker HTTP/1.1":
        lines.append(worker.wait_for("started")["line"])
    worker.wait_for("finished")
    del worker.events[before:]
    return lines[:-1]


def assert_refused(answer: bytes, row: Row) -> None:
    """Exactly one response, the row's: nothing stands behind a body of the announced length."""
    head, _, body = answer.partition(b"\r\n\r\n")
    lines = head.split(b"\r\n")
    status, sentence = row
    if row in BEHIND_LLHTTP and b"the header is malformed: " in body:
        sentence = MALFORMED_HEADER[1]
    assert lines[0].startswith(b"HTTP/1.1 %d " % status), answer
    assert b"Connection: close" in lines
    assert b"Content-Length: %d" % len(body) in lines
    pattern = re.escape(sentence).replace("malformed:\\ N", "malformed:\\ .+").replace("\\ N\\ ", "\\ \\d+\\ ")
    assert re.fullmatch(pattern, body.decode().rstrip("\n").rpartition("\n")[2]), answer


@pytest.mark.parametrize("pieces", ["whole", "bytes"])
@pytest.mark.parametrize(("row", "raw", "calls"), CASES, ids=range(len(CASES)))
def test_refused(served: tuple[Worker, socket.socket], row: Row, raw: bytes, calls: int, pieces: str) -> None:
    worker, listener = served
    address = listener.getsockname()
    with Client(address) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = raw + NEXT
        for piece in [data] if pieces == "whole" else [data[at : at + 1] for at in range(len(data))]:
            client.send(piece)
        assert_refused(client.until_closed(), row)
    seen = requests_seen(worker, address)
    # A body that is received first is refused before the application hears of it.
    assert len(seen) == (calls if worker.pool.body == STREAMED else 0), seen
    assert not any("smuggled" in line for line in seen)


@pytest.mark.parametrize("pieces", ["whole", "bytes"])
@pytest.mark.parametrize(("raw", "body"), ACCEPTED.values(), ids=ACCEPTED)
def test_accepted(served: tuple[Worker, socket.socket], raw: bytes, body: bytes, pieces: str) -> None:
    worker, listener = served
    with Client(listener.getsockname()) as client:
        client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        data = raw + NEXT
        for piece in [data] if pieces == "whole" else [data[at : at + 1] for at in range(len(data))]:
            client.send(piece)
        response = client.response()
        if response.status == 100:
            response = client.response()
        assert (response.status, response.body) == (200, body)
        following = client.response()
        assert (following.status, following.headers["x-path"]) == (200, "/smuggled")
    assert requests_seen(worker, listener.getsockname())[-1] == "GET /smuggled HTTP/1.1"


@pytest.mark.parametrize("raw", [*(raw for _, raw, _ in CASES), *(raw for raw, _ in ACCEPTED.values())])
def test_cut_in_two_at_every_byte(raw: bytes) -> None:
    """On a socket the kernel may put two pieces together again; here each cut is one for certain."""
    data = raw + NEXT
    whole = events([data])
    for at in range(len(data)):
        assert events([data[:at], data[at:]]) == whole, at


def test_close_leaves_the_rest_uninterpreted(served: tuple[Worker, socket.socket]) -> None:
    """RFC 9112, 9.6: nothing behind a request with `Connection: close` is looked at."""
    worker, listener = served
    for first in (get(b"Connection: close"), get(b"Connection: x, Close"), bare(first=b"GET / HTTP/1.0")):
        with Client(listener.getsockname()) as client:
            client.send(first + NEXT)
            response = client.response()
            assert (response.status, response.headers["connection"]) == (200, "close")
            assert client.until_closed() == b""
        assert len(requests_seen(worker, listener.getsockname())) == 1


# -- rows that need a clock, or an end --


def serve(listener: socket.socket, timeouts: Timeouts) -> Worker:
    return Worker([listener], WSGI(echo, pool="web"), timeouts=timeouts)


def test_a_head_that_does_not_come(listener: socket.socket) -> None:
    with serve(listener, Timeouts(header=0.2)), Client(listener.getsockname()) as client:
        client.send(b"GET / HTTP/1.1\r\nHost: x\r\n")
        assert_refused(client.until_closed(), (408, "the request did not arrive in time"))


def test_a_body_that_does_not_come(listener: socket.socket) -> None:
    with serve(listener, Timeouts(body=0.2)), Client(listener.getsockname()) as client:
        client.send(post(b"Content-Length: 5", body=b"abc"))
        assert_refused(client.until_closed(), (408, "the request's body did not arrive in time"))


@pytest.mark.parametrize("raw", [post(b"Content-Length: 5", body=b"abc"), chunked(b"3\r\nab")])
def test_a_body_that_ends_too_early(listener: socket.socket, raw: bytes) -> None:
    with serve(listener, Timeouts()), Client(listener.getsockname()) as client:
        client.send(raw)
        client.socket.shutdown(socket.SHUT_WR)
        assert_refused(client.until_closed(), (400, "the client left before the end of its request"))
