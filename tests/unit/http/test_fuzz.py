"""Any bytes: no exception, no growth, no matter how they are cut, and never milder than h11, an independent reader.

The requests are made by a grammar with mistakes in it, so that most are nearly right. ``tools/fuzz`` looks for more of
them, guided by coverage; what it finds becomes an ordinary case of test_parser.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from itertools import pairwise

import h11
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from preforkd.http import (
    END,
    BadResponse,
    Data,
    End,
    Exchange,
    Memory,
    Peer,
    Refusal,
    Request,
    RequestParser,
)
from tests.support.events import LIMITS, events

NOISE = st.binary(max_size=6)


def mostly(*usual: bytes) -> st.SearchStrategy[bytes]:
    """One of these, seldom something else."""
    return st.sampled_from([*usual] * 4) | NOISE


METHOD = mostly(b"GET", b"POST", b"HEAD", b"OPTIONS", b"PUT", b"CONNECT", b"get")
TARGET = mostly(b"/", b"/a?b", b"*", b"http://y/", b"http://y:80?q", b"x:80", b"/%41", b"/%4", b"//y", b"/a#b")
VERSION = mostly(b"HTTP/1.1", b"HTTP/1.1", b"HTTP/1.0", b"HTTP/1.2", b"HTTP/2.0")
EOL = st.sampled_from([b"\r\n"] * 20 + [b"\n", b"\r", b"\r\r\n", b"\r\n "])
BLANK = st.sampled_from([b" "] * 20 + [b"", b"  ", b"\t", b"\x0b"])
NAME = mostly(b"Host", b"Content-Length", b"Transfer-Encoding", b"X-A", b"X_A", b"Connection", b"Expect", b"Trailer")
VALUE = mostly(
    *(b"x", b"x:80", b"5", b"3", b"0", b"+5", b"5, 5", b"0x5", b"chunked", b"Chunked", b"gzip, chunked", b"close"),
    *(b"chunked, identity", b"xchunked", b"keep-alive", b"100-continue", b"", b"\x0bchunked", b"a\xe4", b'"a"'),
)
COLON = st.sampled_from([b":"] * 20 + [b" :", b"\t:", b"", b"::"])
FIELD = st.tuples(NAME, COLON, BLANK, VALUE, BLANK, EOL).map(b"".join)
HOST = st.sampled_from([b"Host: x\r\n"] * 8 + [b""])
LINE = st.tuples(METHOD, BLANK, TARGET, BLANK, VERSION, EOL).map(b"".join)
HEAD = st.tuples(LINE, HOST, st.lists(FIELD, max_size=3).map(b"".join), EOL).map(b"".join)
CHUNK = st.tuples(
    mostly(b"3", b"003", b"A", b"-3", b"0x3", b" 3", b"3 ", b"3;a", b'3;a="b"', b"3 ; a = b", b"3;a=", b"1_0"),
    EOL,
    mostly(b"abc", b"0123456789", b"0\r\n", b"ab", b"abcd"),
    EOL,
).map(b"".join)
# No fields of framing among the trailers: here they are dropped like all of them, whatever they say (RFC 9110, 6.5.1),
# while h11 reads them as if they stood in the header, and refuses some.
TRAILER = st.tuples(mostly(b"X-A", b"X_A", b"Trailer"), COLON, BLANK, VALUE, BLANK, EOL).map(b"".join)
LAST = st.tuples(mostly(b"0", b"00", b"0;a"), EOL, st.lists(TRAILER, max_size=2).map(b"".join), EOL).map(b"".join)
CODED = st.tuples(
    st.sampled_from([b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"]),
    st.lists(CHUNK, max_size=3).map(b"".join),
    LAST,
).map(b"".join)
LONG = st.sampled_from([b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabcde"])
STREAM = st.lists(HEAD | CODED | LONG | NOISE, min_size=1, max_size=4).map(b"".join) | st.binary(max_size=200)


def cut(raw: bytes, points: Iterable[int]) -> list[bytes]:
    edges = [0, *sorted({point % (len(raw) + 1) for point in points}), len(raw)]
    return [raw[start:end] for start, end in pairwise(edges)]


@given(raw=STREAM, points=st.lists(st.integers(0, 5000), max_size=8))
def test_events_do_not_depend_on_the_cut(raw: bytes, points: list[int]) -> None:
    whole = events([raw])
    assert events(cut(raw, points)) == whole
    assert events(raw[at : at + 1] for at in range(len(raw))) == whole
    assert [event for event in whole if isinstance(event, Refusal)] in ([], whole[-1:])


@given(streams=st.lists(STREAM, min_size=1, max_size=6), points=st.lists(st.integers(0, 5000), max_size=4))
def test_what_is_remembered_changes_nothing(streams: list[bytes], points: list[int]) -> None:
    """Parsers of many connections share a memory; each says what it would say alone."""
    memory = Memory()
    for raw in streams * 3:
        alone = events([raw])
        assert events([raw], memory=memory) == alone
        assert events(cut(raw, points), memory=memory) == alone


#: The parts of heads that the memory takes apart, good and bad, so that each meets the others.
_LINES = [
    b"GET / HTTP/1.1", b"GET / HTTP/1.0", b"get / HTTP/1.1", b"PRI * HTTP/1.1", b"PRI / HTTP/1.0",
    b"PRI / HTTP/1.1", b"OPTIONS * HTTP/1.1",
    b"GET /%zz HTTP/1.1", b"GET /#a HTTP/1.1", b"GET http://y/ HTTP/1.1", b"GET https://y/ HTTP/1.1",
    b"CONNECT x:1 HTTP/1.1", b"CONNECT / HTTP/1.1", b"POST /a?b HTTP/1.1", b"POST / HTTP/1.0", b"NOPE / HTTP/1.1",
    b"GET /" + b"a" * 190 + b" HTTP/1.1", b"GET x HTTP/1.1", b"SOURCE / HTTP/1.1", b"DESCRIBE / HTTP/1.1",
]  # fmt: skip
_BLOCKS = [
    b"Host: x\r\n", b"", b"Host: x\r\nHost: x\r\n", b"Host: x\r\nContent-Length: 0\r\n",
    b"Host: x\r\nContent-Length: 3\r\n", b"Host: x\r\nTransfer-Encoding: chunked\r\n",
    b"Host: x\r\nConnection: close\r\n",
    b"Host: x\r\nExpect: 100-continue\r\n", b"Host: x\r\nExpect: other\r\n",
    b"Host: x\r\nUpgrade: h2c\r\nConnection: upgrade\r\n",
    b"Host: x\r\nX_A: 1\r\nX-A: 1\r\n", b"Host: x\r\n" + b"A: b\r\n" * 9, b"Host: x\r\n" + b"A: b\r\n" * 10,
    b"Host: x\r\nA: " + b"b" * 570 + b"\r\n", b"Host: x\r\nA: " + b"b" * 590 + b"\r\n",
]  # fmt: skip


def test_every_line_with_every_block_after_all_others() -> None:
    memory = Memory()
    heads = [line + b"\r\n" + block + b"\r\n" for line in _LINES for block in _BLOCKS]
    for head in heads * 3:
        assert events([head + b"abc0\r\n\r\n"], memory=memory) == events([head + b"abc0\r\n\r\n"])
        assert events([head], memory=memory) == events([head])


#: Single lines, good and bad, alone or beside another.
_FIELD_LINES = [
    b"A: b", b"Host: x", b"Host: y", b"host: [::1", b"Host:", b"Content-Length: 3", b"Content-Length: 03",
    b"content-length: +3", b"Content-Length: 3, 3", b"Transfer-Encoding: chunked", b"transfer-encoding: gzip, chunked",
    b"Transfer-Encoding: gzip", b"Connection: close", b"connection: keep-alive", b"Connection: upgrade",
    b"Upgrade: h2c", b"Expect: 100-continue", b"Expect: other", b"Expect:", b"X_A: 1", b"X-A: 1", b"X-A: 1\t ",
    b" folded", b"\tfolded", b"A : b", b": b", b"A", b"", b"A: \x00", b"A: b\rc", b"A: b\nc", b"A: b\r", b"\xe4: b",
    b"A: \xe4", b"A:\x0bb\x0b",
]  # fmt: skip


@pytest.mark.parametrize("line", [b"GET / HTTP/1.1", b"POST /a HTTP/1.0", b"OPTIONS * HTTP/1.1"])
def test_every_field_beside_every_other_one(line: bytes) -> None:
    memory = Memory()
    for one in _FIELD_LINES * 2:
        for other in _FIELD_LINES:
            head = b"\r\n".join((line, b"Host: x", one, b"B: c", other, b"", b"abc0\r\n\r\n"))
            alone = events([head])
            assert events([head], memory=memory) == alone, head
            assert events(cut(head, [len(line) + 20]), memory=memory) == alone, head


def test_a_memory_that_is_full_forgets_and_goes_on() -> None:
    memory = Memory()
    head = b"GET /%d HTTP/1.1\r\nHost: x\r\nCookie: id=%d\r\nAccept: a\r\nX: %d\r\n\r\n"
    for number in range(3000):
        for _ in range(2):
            raw = head % ((number,) * 3)
            assert events([raw], memory=memory) == events([raw])
    assert len(memory.lines) < 2000
    assert len(memory.blocks) < 1000
    assert len(memory.heads) < 1000


def test_every_byte_of_a_target_means_the_same_where_the_fields_are_known() -> None:
    memory = Memory()
    events([b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"], memory=memory)
    for byte in range(0x21, 0x7F):
        for target in (b"/%c", b"/a%cb", b"/?%c", b"/a?b%c", b"//%c"):
            head = b"GET " + target % byte + b" HTTP/1.1\r\nHost: x\r\n\r\n"
            assert events([head], memory=memory) == events([head]), head


@given(piece=st.binary(min_size=1, max_size=40) | CHUNK | FIELD, head=st.sampled_from([b"", b"GET / HTTP/1.1\r\n"]))
def test_endless_input_is_bounded(piece: bytes, head: bytes) -> None:
    events([head, *[piece] * 200])
    events([b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n", *[piece] * 200])


# -- what we accept, h11 accepts, and understands in the same way --

Message = tuple[bytes, bytes, list[tuple[bytes, bytes]], bytes]


def ours(raw: bytes) -> tuple[list[Message], bool]:
    """The complete messages in ``raw``, and whether all of it was understood."""
    messages: list[Message] = []
    found = events([raw])
    request: Request | None = None
    body = b""
    for event in found:
        if isinstance(event, Request):
            request, body = event, b""
        elif isinstance(event, Data):
            body += event.data
        elif isinstance(event, End):
            assert request is not None
            fields = [(name.lower(), value) for name, value in request.headers]
            messages.append((request.method.encode(), request.target.encode(), fields, body))
    return messages, bool(found) and found[-1] is END


_BLANKS_BEFORE_EXTENSION = re.compile(rb"(?m)^([0-9A-Fa-f]{1,15})[ \t]+(?=;[^\r\n]*\r\n)")


def theirs(raw: bytes, count: int) -> list[Message]:
    """The first ``count`` messages as h11 reads them.

    Differences that are known and meant, evened out here: h11 takes no empty line before a request (RFC 9112, 2.2,
    wants one ignored), and no blanks between the size of a chunk and its extension (7.1.1 has them read as nothing).
    """
    raw = _BLANKS_BEFORE_EXTENSION.sub(rb"\1", raw)
    messages: list[Message] = []
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(raw.removeprefix(b"\r\n"))
    for _ in range(count):
        request = connection.next_event()
        assert isinstance(request, h11.Request), request
        body = b""
        while isinstance(event := connection.next_event(), h11.Data):
            body += event.data
        assert isinstance(event, h11.EndOfMessage), event
        messages.append((request.method, request.target, list(request.headers), body))
        rest, _ = connection.trailing_data
        connection = h11.Connection(h11.SERVER)
        connection.receive_data(rest.removeprefix(b"\r\n"))
    return messages


def plain(messages: list[Message]) -> list[Message]:
    """Without what h11 rewrites by design: the case of the coding, zeros before a length."""
    return [
        (method, target, [(name, _plain_value(name, value)) for name, value in fields], body)
        for method, target, fields, body in messages
    ]


def _plain_value(name: bytes, value: bytes) -> bytes:
    if name == b"transfer-encoding":
        return value.lower()
    return value.lstrip(b"0") if name == b"content-length" else value


@given(STREAM)
@example(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3 ; a = b\r\nabc\r\n0;a\r\nX-A: \r\n\r\n")
def test_what_is_accepted_here_is_read_the_same_by_h11(raw: bytes) -> None:
    mine, _ = ours(raw)
    assert plain(theirs(raw, len(mine))) == plain(mine)


# -- the answer --


class Wire:
    """Keeps what it gets."""

    def __init__(self) -> None:
        self.sent = b""

    def receive(self) -> bytes:
        return b""

    def send(self, pieces: Iterable[bytes], last: bool = False) -> None:
        self.sent += b"".join(pieces)

    def send_file(self, descriptor: int, offset: int, count: int, head: bytes = b"", last: bool = False) -> int:
        raise AssertionError


STATUS = st.sampled_from(["200 OK", "404 Not Found", "204 No Content", "205 Reset Content", "304 Not Modified", "500"])
ANY_STATUS = STATUS | st.text(max_size=8) | st.tuples(st.integers(0, 1200).map(str), st.text(max_size=4)).map(" ".join)
TEXT = st.text(st.characters(max_codepoint=300), max_size=8)
ANY_HEADERS = st.lists(
    st.tuples(
        st.sampled_from(["A", "Date", "Server", "Set-Cookie", "Content-Length", "Connection", "Transfer-Encoding"])
        | TEXT,
        st.sampled_from(["a", "0", "3", " 3", "chunked", "close", "a\r\nB: c"]) | TEXT,
    ),
    max_size=3,
)
REQUESTS = st.sampled_from(
    [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n",
        b"GET / HTTP/1.0\r\n\r\n",
        b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n",
    ]
)


@given(
    raw=REQUESTS,
    status=ANY_STATUS,
    headers=ANY_HEADERS,
    blocks=st.lists(st.binary(max_size=5), max_size=3),
    known=st.booleans(),
)
@example(raw=b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", status="205 Reset Content", headers=[], blocks=[b"abc"], known=True)
def test_an_answer_is_refused_or_read_as_it_was_meant(
    raw: bytes, status: str, headers: list[tuple[str, str]], blocks: list[bytes], known: bool
) -> None:
    parser = RequestParser(LIMITS, raw)
    request = parser.next_event()
    assert isinstance(request, Request)
    wire = Wire()
    exchange = Exchange(request, parser, wire, Peer("127.0.0.1", 1, "localhost", 80))
    body = b"".join(blocks)
    try:
        exchange.start(status, headers)
    except BadResponse:
        assert wire.sent == b""
        return
    assert exchange.head is not None
    for block in blocks:
        exchange.write(block, len(body) if known else None)
    exchange.finish()
    declared = exchange.head.length
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method=request.method, target="/", headers=[("Host", "x")]))
    client.send(h11.EndOfMessage())
    # Behind a kept answer may stand the next one: if this one is framed wrongly, it is read as part of it.
    follows = b"HTTP/1.1 299 next\r\n\r\n" if exchange.keep_alive else b""
    client.receive_data(wire.sent + follows)
    if not exchange.keep_alive:
        client.receive_data(b"")
    response = client.next_event()
    assert isinstance(response, h11.Response)
    assert response.status_code == exchange.head.code
    assert response.reason.decode("latin-1").strip(" \t") == status[3:].strip(" \t")
    got = [(name, value) for name, value in response.headers]
    for name, value in headers:
        if name.lower() != "content-length":
            assert (name.lower().encode(), value.strip(" \t").encode("latin-1")) in got
    if exchange.bodiless:
        expected = b""
    elif declared is not None:
        expected = body[:declared]
    else:
        expected = body
    content = b""
    try:
        while isinstance(event := client.next_event(), h11.Data):
            content += event.data
    except h11.RemoteProtocolError:
        # Cut short: the client has noticed, as it must.
        assert exchange.aborted and not exchange.keep_alive
        assert content == expected
        return
    assert not exchange.aborted
    assert isinstance(event, h11.EndOfMessage)
    assert content == expected
    if exchange.keep_alive:
        assert client.trailing_data[0] == follows
