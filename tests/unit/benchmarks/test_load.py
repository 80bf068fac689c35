"""Requests of which no two are the same, and clients that do not wait for ever."""

from __future__ import annotations

import re
import socket
import threading
import time
from collections.abc import Iterator

import pytest

from benchmarks import load
from benchmarks.load import LATE, NUMBER, VARIED, Request, arrive, drive

_ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=256) as listener:
        yield listener


def _serve(listener: socket.socket, heads: list[bytes], count: int) -> None:
    """One connection after the other, an answer for each, until so many have been served."""
    for _ in range(count):
        connection, _ = listener.accept()
        with connection:
            head = b""
            while b"\r\n\r\n" not in head:
                head += connection.recv(65536)
            heads.append(head)
            connection.sendall(_ANSWER)


def test_no_two_requests_are_the_same(listener: socket.socket) -> None:
    heads: list[bytes] = []
    thread = threading.Thread(target=_serve, args=(listener, heads, 20))
    thread.start()
    request = Request(f"/?page={NUMBER}", tuple(VARIED.items()), keep=False)
    samples = drive(listener.getsockname()[1], [request], 20, at_most=20)
    thread.join()
    assert [sample.failure for sample in samples] == [""] * 20
    pages = [re.search(rb"^GET /\?page=([0-9]+) ", head) for head in heads]
    cookies = [re.search(rb"\r\nCookie: session=\w+\.([0-9]+)\r\n", head) for head in heads]
    assert len({page[1] for page in pages if page}) == 20
    assert len({cookie[1] for cookie in cookies if cookie}) == 20


def test_wrk_gets_the_request_in_pieces() -> None:
    request = Request(f"/?page={NUMBER}", (("Cookie", f"a={NUMBER}"),))
    scripts = [load.script(request, 80) for _ in range(2)]
    # Two processes of wrk do not begin at the same number.
    assert scripts[0] != scripts[1]
    expression = re.search(r"return (.*)", scripts[0])
    assert expression
    parts = expression[1].split(" .. n .. ")
    decoded = [bytes(int(code) for code in re.findall(r"\\([0-9]{3})", part)) for part in parts]
    assert NUMBER.encode().join(decoded) == request.encoded(80)


def test_a_plain_request_is_wrks_own() -> None:
    assert not Request().varied
    assert "request = function" not in load.script(Request(), 80)
    assert 'wrk.method = "POST"' in load.script(Request("/post", posted=5), 80)


def test_clients_arrive_whatever_the_server_does(listener: socket.socket) -> None:
    # Nobody accepts: the kernel makes the connections, and there is never an answer.
    began = time.monotonic()
    samples = arrive(listener.getsockname()[1], Request(keep=False), 500, 0.1, 0.2)
    assert [sample.failure for sample in samples] == [LATE] * 50
    assert all(sample.ended - sample.began >= 0.2 for sample in samples)
    arrivals = sorted(sample.began - began for sample in samples)
    # The last came when its time had come, and not when there was an answer.
    assert arrivals[-1] >= 49 / 500


def test_a_client_with_an_answer_goes(listener: socket.socket) -> None:
    heads: list[bytes] = []
    thread = threading.Thread(target=_serve, args=(listener, heads, 10))
    thread.start()
    samples = arrive(listener.getsockname()[1], Request(), 1000, 0.01, 20)
    thread.join()
    assert [sample.failure for sample in samples] == [""] * 10
    assert {sample.answer for sample in samples} == {_ANSWER}


@pytest.mark.parametrize(
    ("head", "told"), [(b"Connection: close\r\n", True), (b"Connection: keep-alive\r\n", False), (b"", False)]
)
def test_a_server_says_that_it_closes(listener: socket.socket, head: bytes, told: bool) -> None:
    def serve() -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            connection.sendall(b"HTTP/1.1 200 OK\r\n" + head + b"Content-Length: 17\r\n\r\nConnection: close")
            # It does not close: the answer is complete without that.
            ended.wait(20)

    ended = threading.Event()
    thread = threading.Thread(target=serve)
    thread.start()
    assert load.closes(listener.getsockname()[1]) is told
    ended.set()
    thread.join()


def test_nobody_is_there() -> None:
    assert {sample.failure for sample in arrive(1, Request(), 1000, 0.005, 20)} == {"Connection refused"}
