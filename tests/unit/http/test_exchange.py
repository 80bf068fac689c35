"""One request and its answer over a transport made of lists."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from preforkd.http import BadResponse, BodyError, ClientGone, Exchange, Peer, Request, RequestLimits, RequestParser

LIMITS = RequestLimits(body=100)


class Wire:
    """Gives out what it was told to, keeps what it gets."""

    def __init__(self, *incoming: bytes | OSError) -> None:
        self.incoming = list(incoming)
        self.sent = b""
        self.writes = 0
        self.last: list[bool] = []
        self.broken: OSError | None = None

    def receive(self) -> bytes:
        piece = self.incoming.pop(0) if self.incoming else b""
        if isinstance(piece, OSError):
            raise piece
        return piece

    def send(self, pieces: Sequence[bytes], last: bool = False) -> None:
        if self.broken is not None:
            raise self.broken
        self.sent += b"".join(pieces)
        self.writes += 1
        self.last.append(last)

    def send_file(self, descriptor: int, offset: int, count: int, head: bytes = b"", last: bool = False) -> int:
        data = os.pread(descriptor, count, offset)
        self.send([head, data], last)
        return len(data)

    @property
    def head(self) -> list[str]:
        return self.sent.partition(b"\r\n\r\n")[0].decode("latin-1").split("\r\n")

    @property
    def body(self) -> bytes:
        return self.sent.partition(b"\r\n\r\n")[2]


def exchange(raw: bytes, *incoming: bytes | OSError, leaving: bool = False) -> tuple[Exchange, Wire]:
    parser = RequestParser(LIMITS, raw)
    request = parser.next_event()
    assert isinstance(request, Request)
    wire = Wire(*incoming)
    return Exchange(request, parser, wire, Peer("127.0.0.1", 1234, "localhost", 80), lambda: leaving), wire


GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 6\r\n\r\n"
EXPECT = POST.replace(b"\r\n\r\n", b"\r\nExpect: 100-continue\r\n\r\n")
CHUNKED = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


def drain(answered: Exchange) -> bytes:
    return b"".join(iter(answered.read_block, b""))


def test_known_length_goes_out_in_one_write_and_keeps_the_connection() -> None:
    ex, wire = exchange(GET)
    ex.start("200 OK", [("Content-Length", "3")])
    assert not ex.committed
    ex.write(b"abc")
    ex.finish()
    assert wire.writes == 1
    assert wire.body == b"abc"
    assert ex.finished
    assert ex.keep_alive
    assert not any(line.startswith("Connection") for line in wire.head)
    assert (ex.status, ex.sent) == (200, 3)


def test_total_becomes_the_length() -> None:
    ex, wire = exchange(GET)
    ex.start("200 OK", [])
    ex.write(b"ab", total=4)
    ex.write(b"cd", total=4)
    ex.finish()
    assert "Content-Length: 4" in wire.head
    assert wire.body == b"abcd"


def test_unknown_length_is_chunked_in_1_1() -> None:
    ex, wire = exchange(GET)
    ex.start("200 OK", [])
    ex.write(b"abc")
    ex.write(b"")
    ex.write(b"x" * 17)
    ex.finish()
    assert "Transfer-Encoding: chunked" in wire.head
    assert wire.body == b"3\r\nabc\r\n11\r\n" + b"x" * 17 + b"\r\n0\r\n\r\n"
    assert ex.keep_alive
    assert ex.sent == 20


def test_unknown_length_ends_with_the_connection_in_1_0() -> None:
    ex, wire = exchange(OLD.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"))
    ex.start("200 OK", [])
    ex.write(b"abc")
    ex.finish()
    assert wire.body == b"abc"
    assert not ex.keep_alive
    assert ex.close_delimited
    assert "Connection: close" in wire.head


def test_keep_alive_in_1_0_is_confirmed() -> None:
    ex, wire = exchange(OLD.replace(b"\r\n\r\n", b"\r\nConnection: keep-alive\r\n\r\n"))
    ex.start("200 OK", [])
    ex.write(b"abc", total=3)
    ex.finish()
    assert "Connection: keep-alive" in wire.head
    assert ex.keep_alive


def test_nothing_written_is_an_empty_body() -> None:
    ex, wire = exchange(GET)
    ex.start("200 OK", [])
    ex.finish()
    assert "Content-Length: 0" in wire.head
    assert wire.body == b""


@pytest.mark.parametrize("status", ["204 No Content", "304 Not Modified"])
def test_a_status_without_body_has_none(status: str) -> None:
    ex, wire = exchange(GET)
    ex.start(status, [])
    ex.write(b"abc", total=3)
    ex.finish()
    assert wire.body == b""
    assert not any("ontent-" in line or "Transfer" in line for line in wire.head)
    assert ex.keep_alive
    assert ex.sent == 0


def test_205_says_that_it_has_no_body() -> None:
    ex, wire = exchange(GET)
    ex.start("205 Reset Content", [("Content-Length", "3")])
    ex.write(b"abc")
    ex.finish()
    assert [line for line in wire.head if "ontent-" in line or "Transfer" in line] == ["Content-Length: 0"]
    assert wire.body == b""
    assert ex.keep_alive


def test_head_says_the_length_and_sends_nothing() -> None:
    ex, wire = exchange(GET.replace(b"GET", b"HEAD"))
    ex.start("200 OK", [])
    ex.write(b"abc", total=3)
    ex.finish()
    assert "Content-Length: 3" in wire.head
    assert wire.body == b""
    assert ex.keep_alive


def test_head_without_a_known_length_says_none() -> None:
    ex, wire = exchange(GET.replace(b"GET", b"HEAD"))
    ex.start("200 OK", [])
    ex.finish()
    assert not any("Content-Length" in line or "Transfer" in line for line in wire.head)


def test_too_long_is_cut_and_told() -> None:
    ex, wire = exchange(GET)
    ex.start("200 OK", [("Content-Length", "4")])
    ex.write(b"abc")
    ex.write(b"def")
    ex.write(b"ghi")
    ex.finish()
    assert wire.body == b"abcd"
    assert "longer" in ex.complaint
    assert ex.finished
    assert ex.keep_alive


def test_too_short_aborts() -> None:
    ex, wire = exchange(GET)
    ex.start("200 OK", [("Content-Length", "4")])
    ex.write(b"abc")
    ex.finish()
    assert wire.body == b"abc"
    assert "1 bytes shorter" in ex.complaint
    assert ex.aborted
    assert not ex.keep_alive


def test_a_later_start_replaces_one_that_is_not_sent() -> None:
    ex, wire = exchange(GET)
    ex.start("200 OK", [("A", "b")])
    ex.start("500 Oh", [])
    ex.finish()
    assert wire.head[0] == "HTTP/1.1 500 Oh"
    with pytest.raises(AssertionError):
        ex.start("200 OK", [])


def test_a_bad_head_is_not_sent() -> None:
    ex, wire = exchange(GET)
    with pytest.raises(BadResponse):
        ex.start("200 OK", [("A", "b\r\nC: d")])
    ex.answer_plainly(500, "sorry")
    assert wire.head[0].startswith("HTTP/1.1 500")
    assert ex.keep_alive


def test_answer_plainly_aborts_what_has_begun() -> None:
    ex, wire = exchange(GET)
    ex.start("200 OK", [])
    ex.write(b"abc")
    ex.answer_plainly(500, "sorry")
    assert ex.aborted
    assert not wire.body.endswith(b"0\r\n\r\n")


def test_the_body_is_read_as_it_arrives() -> None:
    ex, wire = exchange(POST + b"ab", b"c", b"defGET /")
    assert [ex.read_block() for _ in range(5)] == [b"ab", b"c", b"def", b"", b""]
    assert ex.received == 6
    ex.start("200 OK", [])
    ex.finish()
    assert ex.keep_alive
    assert not ex.ends_cleanly
    assert CONTINUE not in wire.sent


def test_continue_is_sent_at_the_first_read_that_has_to_wait() -> None:
    ex, wire = exchange(EXPECT, b"abc", b"def")
    assert wire.sent == b""
    assert drain(ex) == b"abcdef"
    assert wire.sent == CONTINUE
    ex.start("200 OK", [])
    ex.finish()
    assert ex.keep_alive


def test_no_continue_if_the_body_has_come_without_it() -> None:
    ex, wire = exchange(EXPECT + b"abcdef")
    assert drain(ex) == b"abcdef"
    assert wire.sent == b""


def test_no_continue_after_the_answer_has_begun() -> None:
    ex, wire = exchange(EXPECT, b"abcdef")
    ex.start("200 OK", [])
    ex.write(b"x")
    assert drain(ex) == b"abcdef"
    assert CONTINUE not in wire.sent


def test_an_answer_before_the_body_ends_the_connection() -> None:
    ex, wire = exchange(EXPECT)
    ex.start("413 Too Large", [])
    ex.finish()
    assert "Connection: close" in wire.head
    assert not ex.keep_alive
    assert not ex.ends_cleanly


def test_a_body_that_has_arrived_unread_does_not() -> None:
    for raw in (POST + b"abcdef", CHUNKED + b"1\r\na\r\n0\r\n\r\n"):
        ex, _ = exchange(raw)
        ex.start("200 OK", [])
        ex.finish()
        assert ex.keep_alive
        assert ex.ends_cleanly


@pytest.mark.parametrize(
    ("raw", "incoming", "status"),
    [
        (POST, (b"abc", TimeoutError()), 408),
        (POST, (b"abc",), 400),
        (POST, (ConnectionResetError(104, "reset"),), 400),
        (CHUNKED, (b"x",), 400),
        (CHUNKED, (b"3\r\nabcd",), 400),
        (CHUNKED, (b"65\r\n",), 413),
    ],
)
def test_a_body_that_fails(raw: bytes, incoming: tuple[bytes | OSError, ...], status: int) -> None:
    ex, wire = exchange(raw, *incoming)
    with pytest.raises(BodyError) as failure:
        drain(ex)
    assert isinstance(failure.value, OSError)
    assert failure.value.status == status
    with pytest.raises(BodyError):
        ex.read_block()
    ex.answer_plainly(status, failure.value.reason)
    assert wire.head[0].startswith(f"HTTP/1.1 {status} ")
    assert "Connection: close" in wire.head
    assert not ex.keep_alive


@pytest.mark.parametrize("error", [TimeoutError(), BrokenPipeError(32, "Broken pipe")])
def test_a_client_that_is_gone(error: OSError) -> None:
    ex, wire = exchange(GET)
    ex.start("200 OK", [])
    wire.broken = error
    with pytest.raises(ClientGone):
        ex.write(b"abc")
    assert ex.aborted
    assert not ex.keep_alive


def test_leaving_ends_the_connection_unless_another_request_is_here() -> None:
    for raw, keep in ((GET, False), (GET + GET, True), (POST + b"abcdef", False), (POST + b"abcdefG", True)):
        ex, wire = exchange(raw, leaving=True)
        ex.start("200 OK", [])
        ex.finish()
        assert ex.keep_alive is keep
        assert ("Connection: close" in wire.head) is not keep


def test_files(tmp_path: object) -> None:
    path = f"{tmp_path}/file"
    with open(path, "wb") as file:
        file.write(b"0123456789")
    with open(path, "rb") as file:
        ex, wire = exchange(GET)
        ex.start("200 OK", [])
        ex.send_file(file.fileno(), 2, 8)
        ex.finish()
        assert "Content-Length: 8" in wire.head
        assert wire.body == b"23456789"
        ex, wire = exchange(GET)
        ex.start("200 OK", [("Content-Length", "3")])
        ex.send_file(file.fileno(), 0, 10)
        ex.finish()
        assert wire.body == b"012"
        assert "longer" in ex.complaint
        ex, wire = exchange(GET)
        ex.start("200 OK", [])
        ex.send_file(file.fileno(), 5, 10)  # it has become shorter
        ex.finish()
        assert wire.body == b"56789"
        assert ex.aborted
        ex, wire = exchange(GET.replace(b"GET", b"HEAD"))
        ex.start("200 OK", [])
        ex.send_file(file.fileno(), 0, 10)
        ex.finish()
        assert "Content-Length: 10" in wire.head
        assert wire.body == b""
        ex, wire = exchange(GET)
        ex.start("200 OK", [])
        ex.write(b"ab")
        ex.send_file(file.fileno(), 0, 10)
        ex.finish()
        assert wire.body == b"2\r\nab\r\na\r\n0123456789\r\n0\r\n\r\n"


HINT = [("Link", "</a.css>; rel=preload")]
HINTED = b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload\r\n\r\n"


def test_early_hints_are_sent_at_once_and_as_often_as_asked() -> None:
    ex, wire = exchange(GET)
    ex.early_hints(HINT)
    assert wire.sent == HINTED
    ex.early_hints([*HINT, ("Content-Length", "5")])
    assert wire.sent == HINTED * 2
    ex.early_hints([])
    assert wire.sent == HINTED * 2
    ex.start("200 OK", [])
    ex.early_hints(HINT)  # the answer has not begun: nothing of it is sent
    assert wire.sent == HINTED * 3
    ex.write(b"abc", total=3)
    sent = wire.sent
    ex.early_hints(HINT)
    assert wire.sent == sent
    ex.finish()
    assert ex.keep_alive


def test_early_hints_are_nothing_in_1_0() -> None:
    ex, wire = exchange(OLD)
    ex.early_hints(HINT)
    assert wire.sent == b""


@pytest.mark.parametrize(
    "field", [("Link", "a\r\nX: y"), ("Li nk", "a"), ("Connection", "close"), ("Link", b"a"), ("Link", "\u20ac")]
)
def test_early_hints_are_checked(field: tuple[str, str]) -> None:
    for raw in (GET, OLD):
        ex, wire = exchange(raw)
        with pytest.raises(BadResponse):
            ex.early_hints([field])
        assert wire.sent == b""


def test_early_hints_for_a_client_that_is_gone() -> None:
    ex, wire = exchange(GET)
    wire.broken = ConnectionResetError(104, "Connection reset by peer")
    with pytest.raises(ClientGone):
        ex.early_hints(HINT)
    assert ex.aborted


@pytest.mark.parametrize(
    ("raw", "read", "keep"),
    [
        (POST + b"abc", 0, True),
        (POST.replace(b": 6", b": 66000"), 0, False),
        (CHUNKED + b"3\r\nabc\r\n", 0, False),
        (EXPECT, 0, False),
        (EXPECT, 1, True),
    ],
)
def test_a_small_rest_does_not_end_the_connection(raw: bytes, read: int, keep: bool) -> None:
    parser = RequestParser(RequestLimits(), raw)
    request = parser.next_event()
    assert isinstance(request, Request)
    wire = Wire(b"a", b"bc")
    ex = Exchange(request, parser, wire, Peer("127.0.0.1", 1234, "localhost", 80))
    for _ in range(read):
        assert ex.read_block()
    ex.start("200 OK", [])
    ex.write(b"ok", total=2)
    ex.finish()
    assert not ex.body_ended
    assert ex.keep_alive is keep
    assert (b"Connection: close" in wire.sent) is not keep


def test_a_rest_that_cannot_be_read_ends_the_connection_after_all() -> None:
    ex, _ = exchange(POST, TimeoutError())
    ex.start("200 OK", [])
    ex.write(b"ok", total=2)
    kept = [ex.keep_alive]
    with pytest.raises(BodyError):
        ex.read_block()
    ex.finish()
    assert ex.finished
    assert [*kept, ex.keep_alive] == [True, False]


def test_a_body_that_arrived_before_the_answer_is_read_after_its_beginning() -> None:
    ex, _ = exchange(POST + b"abcdef")
    ex.start("200 OK", [])
    ex.write(b"ok", total=2)
    assert ex.body_ended
    assert drain(ex) == b"abcdef"
    assert ex.received == 6


LAST = [
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 6, [False, True]),
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 5, [False, True]),  # the second block is cut
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", 7, [False, False]),  # it is too short, and will be aborted
    (b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", None, [False, False, True]),
    (b"GET / HTTP/1.0\r\n\r\n", None, [False, False]),
    (b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", 6, [True]),
]


@pytest.mark.parametrize(("raw", "length", "last"), LAST)
def test_the_transport_knows_what_is_the_last(raw: bytes, length: int | None, last: list[bool]) -> None:
    subject, wire = exchange(raw)
    subject.start("200 OK", [("Content-Length", str(length))] if length is not None else [])
    subject.write(b"one")
    subject.write(b"two")
    subject.finish()
    assert wire.last == last


def test_a_file_is_the_last_if_the_answer_is_complete_with_it() -> None:
    for length, written, last in [(6, b"", True), (9, b"abc", True), (9, b"", False), (None, b"", True)]:
        subject, wire = exchange(GET)
        subject.start("200 OK", [("Content-Length", str(length))] if length is not None else [])
        subject.write(written)
        descriptor = os.memfd_create("file")
        os.write(descriptor, b"a file")
        subject.send_file(descriptor, 0, 6)
        os.close(descriptor)
        assert wire.last[-1] is last
        assert wire.body == written + b"a file"


@pytest.mark.parametrize(("error", "stalled"), [(TimeoutError(), True), (BrokenPipeError(32, "Broken pipe"), False)])
def test_an_answer_that_is_lost_on_its_way(error: OSError, stalled: bool) -> None:
    subject, _ = exchange(GET)
    subject.start("200 OK", [("Content-Length", "10")])
    subject.write(b"x" * 10)
    subject.finish()
    assert subject.keep_alive
    assert isinstance(subject.lose(error, 4), ClientGone)
    assert (subject.finished, subject.aborted, subject.stalled, subject.keep_alive) == (False, True, stalled, False)
    assert subject.sent == 6


def test_a_lost_head_or_framing_is_not_subtracted_from_the_content() -> None:
    subject, _ = exchange(GET)
    subject.start("200 OK", [])
    subject.write(b"x" * 10)
    subject.finish()
    subject.lose(TimeoutError(), 5)  # the last chunk, which is empty
    assert subject.sent == 10
    subject, _ = exchange(GET)
    subject.start("200 OK", [("Content-Length", "10")])
    subject.write(b"x" * 10)
    subject.finish()
    subject.lose(TimeoutError(), 100)  # with its head
    assert subject.sent == 0


def test_a_file_that_falls_short_on_its_way() -> None:
    subject, _ = exchange(GET)
    subject.start("200 OK", [("Content-Length", "10")])
    subject.write(b"x" * 10)
    subject.finish()
    subject.fall_short(3)
    assert (subject.finished, subject.aborted, subject.keep_alive, subject.sent) == (False, True, False, 7)
    assert "3 bytes shorter" in subject.complaint
