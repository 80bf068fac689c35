"""What any HTTP handler owes its clients, on any model: over real sockets, in a real process."""

from __future__ import annotations

import json
import os
import select
import socket
from collections.abc import Callable
from pathlib import Path

import pytest

from preforkd import handlers
from preforkd.config import Body, Limits, Timeouts
from tests.contract.bench import Client, Worker
from tests.contract.services import BIG, FILE, PIECES, SERVICES, Gate

Start = Callable[..., Worker]
Connect = Callable[..., Client]


def test_every_handler_is_under_contract() -> None:
    assert set(SERVICES) == set(handlers.BUILT_IN)


def test_get(start: Start, connect: Connect) -> None:
    start()
    response = connect().get()
    assert response.status == 200
    assert response.body == b"web/0"
    assert response.headers["content-length"] == "5"
    assert response.headers["server"] == "preforkd"
    assert "connection" not in response.headers


def test_head_has_the_length_and_no_body(start: Start, connect: Connect) -> None:
    start()
    client = connect()
    for path in ("/", "/stream", "/file", "/big"):
        client.get(path, method="HEAD")
    assert client.get().body == b"web/0"


def test_keep_alive(start: Start, connect: Connect) -> None:
    worker = start()
    client = connect()
    for _ in range(5):
        assert client.get().body == b"web/0"
    assert worker.wait_for("started")["line"] == "GET / HTTP/1.1"
    assert client.get(headers="Connection: close\r\n").headers["connection"] == "close"
    assert client.until_closed() == b""


def test_http_1_0(start: Start, connect: Connect) -> None:
    start()
    client = connect()
    client.send(b"GET /stream HTTP/1.0\r\n\r\n")
    assert client.response().body == b"".join(PIECES)
    client = connect()
    client.send(b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2)
    assert client.response().headers["connection"] == "keep-alive"
    assert client.response().body == b"web/0"


@pytest.mark.parametrize("size", [0, 1, 100, 100_000, 3_000_000])
def test_post(start: Start, connect: Connect, size: int) -> None:
    start()
    body = os.urandom(size)
    client = connect()
    assert client.post("/echo", body).body == body
    assert client.get().body == b"web/0"


@pytest.mark.parametrize("buffer", [0, 3, 1 << 20])
def test_post_in_chunks_that_arrive_slowly(start: Start, connect: Connect, buffer: int) -> None:
    worker = start(body=Body(buffer=buffer))
    client = connect()
    client.send(b"POST /echo HTTP/1.1\r\nHost: bench\r\nTransfer-Encoding: chunked\r\n\r\n")
    if not buffer:
        worker.wait_for("started")
    for byte in b"5\r\nhello\r\n1;x=y\r\n!\r\n0\r\nTrailer: t\r\n\r\n":
        client.send(bytes((byte,)))
    assert client.response().body == b"hello!"
    assert client.get().body == b"web/0"


def test_expect_continue(start: Start, connect: Connect) -> None:
    start()
    client = connect()
    client.send(b"POST /echo HTTP/1.1\r\nHost: bench\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    assert client.response().status == 100
    client.send(b"ok")
    assert client.response().body == b"ok"


def test_refused_without_continue(start: Start, connect: Connect) -> None:
    start()
    client = connect()
    client.send(b"POST /fail HTTP/1.1\r\nHost: bench\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n")
    response = client.response()
    assert (response.status, response.headers["connection"]) == (500, "close")
    assert client.until_closed() == b""


def test_the_answer_survives_a_body_that_nobody_reads(start: Start, connect: Connect) -> None:
    start()
    client = connect()
    client.send(b"POST / HTTP/1.1\r\nHost: bench\r\nContent-Length: 3000000\r\n\r\n" + b"x" * 1_500_000)
    response = client.response()
    assert (response.status, response.headers["connection"]) == (200, "close")
    client.send(b"x" * 1_500_000)
    assert client.until_closed() == b""


def test_pipelining(start: Start, connect: Connect) -> None:
    start()
    client = connect()
    request = b"GET /%s HTTP/1.1\r\nHost: bench\r\n\r\n"
    post = b"POST /echo HTTP/1.1\r\nHost: bench\r\nContent-Length: 3\r\n\r\nabc"
    client.send(request % b"" + post + request % b"stream" + request % b"nowhere" + request % b"")
    assert client.response().body == b"web/0"
    assert client.response().body == b"abc"
    assert client.response().body == b"".join(PIECES)
    assert client.response().status == 404
    assert client.response().body == b"web/0"


def test_a_client_that_pipelines_does_not_starve_the_others(start: Start, connect: Connect, gate: Gate) -> None:
    start()
    greedy, modest = connect(), connect()
    modest.get()
    greedy.send(b"GET /hold HTTP/1.1\r\nHost: bench\r\n\r\n" + b"GET / HTTP/1.1\r\nHost: greedy\r\n\r\n" * 500)
    gate.wait_held()
    modest.send(b"GET / HTTP/1.1\r\nHost: modest\r\n\r\n")
    gate.open()
    assert modest.response().status == 200
    # The greedy one's answers are still coming.
    greedy.response()
    for _ in range(500):
        greedy.response()


def test_order_of_service_is_fair(start: Start, connect: Connect, gate: Gate) -> None:
    worker = start()
    greedy, modest = connect(), connect()
    modest.get()
    greedy.send(b"GET /hold HTTP/1.1\r\nHost: bench\r\n\r\n" + b"GET /greedy HTTP/1.1\r\nHost: bench\r\n\r\n" * 50)
    gate.wait_held()
    modest.send(b"GET /modest HTTP/1.1\r\nHost: bench\r\n\r\n")
    newcomer = connect()
    newcomer.send(b"GET /newcomer HTTP/1.1\r\nHost: bench\r\n\r\n")
    gate.open()
    newcomer.response()
    modest.response()
    for _ in range(51):
        greedy.response()
    lines = [worker.wait_for("started")["line"].split()[1] for _ in range(54)]
    assert max(lines.index("/modest"), lines.index("/newcomer")) < 8


def test_streaming_sends_each_piece_at_once(start: Start, connect: Connect, gate: Gate) -> None:
    start()
    client = connect()
    client.send(b"GET /hold-between HTTP/1.1\r\nHost: bench\r\n\r\n")
    gate.wait_held()
    data = b""
    while b"first" not in data:
        data += client.socket.recv(65536)
    assert b"\r\nTransfer-Encoding: chunked\r\n" in data
    gate.open()
    while not data.endswith(b"6\r\nsecond\r\n0\r\n\r\n"):
        data += client.socket.recv(65536)


def test_file(start: Start, connect: Connect) -> None:
    start()
    client = connect()
    for _ in range(2):
        response = client.get("/file")
        assert response.body == FILE
        assert response.headers["content-length"] == str(len(FILE))


def test_big(start: Start, connect: Connect) -> None:
    start(timeouts=Timeouts(keepalive=60))  # which begins when the kernel has the answer, long before its reader has
    client = connect(receive_buffer=32768)
    assert client.get("/big").body == b"x" * BIG
    assert client.get().body == b"web/0"


@pytest.mark.parametrize("path", ["/fail", "/exit"])
def test_an_exception_is_a_plain_500_and_a_traceback_in_the_log(start: Start, connect: Connect, path: str) -> None:
    worker = start()
    client = connect()
    response = client.get(path)
    assert response.status == 500
    assert b"as told" not in response.body
    event = worker.wait_for("app_exception")
    assert event["request"] == f"GET {path}"
    assert "services.py" in event["traceback"]
    assert "handlers/wsgi.py" not in event["traceback"]
    assert client.get().body == b"web/0"


def test_an_exception_after_the_first_piece_aborts(start: Start, connect: Connect) -> None:
    worker = start()
    client = connect()
    client.send(b"GET /fail-late HTTP/1.1\r\nHost: bench\r\n\r\n")
    with pytest.raises(EOFError):
        client.response()
    worker.wait_for("app_exception")
    assert connect().get().status == 200


def test_an_exception_in_http_1_0_resets(start: Start, connect: Connect) -> None:
    start()
    client = connect()
    client.send(b"GET /fail-late HTTP/1.0\r\n\r\n")
    with pytest.raises(ConnectionResetError):
        client.until_closed()


def test_too_short_aborts_and_too_long_is_cut(start: Start, connect: Connect) -> None:
    worker = start()
    client = connect()
    assert client.get("/long").body == b"long"
    assert "longer" in worker.wait_for("app_response_length")["reason"]
    client.send(b"GET /short HTTP/1.1\r\nHost: bench\r\n\r\n")
    with pytest.raises(EOFError):
        client.response()
    assert "shorter" in worker.wait_for("app_response_length")["reason"]


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\nHost: x\r\n\r\n", 505),
        (b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
        (b"GET /" + b"a" * 10_000 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nHost: x\r\n" + b"A: b\r\n" * 200 + b"\r\n", 431),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", 400),
    ],
)
def test_refused_requests_end_the_connection(start: Start, connect: Connect, raw: bytes, status: int) -> None:
    worker = start(access=True)
    client = connect()
    client.send(raw + b"GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n")
    response = client.response()
    assert response.status == status
    assert response.headers["connection"] == "close"
    assert client.until_closed() == b""
    record = worker.wait_for("access")
    assert record["status"] == status
    assert record["client"] == "127.0.0.1"
    assert not any(event["event"] == "started" for event in worker.events)


@pytest.mark.parametrize("buffer", [0, 1 << 20])
def test_a_body_that_turns_out_malformed(start: Start, connect: Connect, buffer: int) -> None:
    worker = start(body=Body(buffer=buffer))
    client = connect()
    client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n-1\r\n")
    response = client.response()
    assert (response.status, response.headers["connection"]) == (400, "close")
    assert worker.wait_for("request_body_failed")["status"] == 400


@pytest.mark.parametrize("buffer", [0, 1 << 20])
def test_a_body_above_the_limit(start: Start, connect: Connect, buffer: int) -> None:
    start(limits=Limits(body=10), body=Body(buffer=buffer))
    client = connect()
    client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n6\r\nabcdef\r\n6\r\nabcdef")
    assert client.response().status == 413
    assert connect().post("/echo", b"x" * 11).status == 413
    assert connect().post("/echo", b"x" * 10).body == b"x" * 10


@pytest.mark.parametrize("buffer", [0, 1 << 20])
def test_a_body_that_does_not_come(start: Start, connect: Connect, buffer: int) -> None:
    start(timeouts=Timeouts(body=0.1), body=Body(buffer=buffer))
    client = connect()
    client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabc")
    assert client.response().status == 408
    assert client.until_closed() == b""


@pytest.mark.parametrize("buffer", [0, 1 << 20])
def test_a_client_that_leaves_in_its_body(start: Start, connect: Connect, buffer: int) -> None:
    worker = start(body=Body(buffer=buffer), access=True)
    client = connect()
    client.send(b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nabc")
    if not buffer:
        worker.wait_for("started")
    client.socket.close()
    assert worker.wait_for("request_body_failed")["status"] == 400
    assert worker.wait_for("access")["status"] == 400
    assert connect().get().status == 200


def test_a_client_that_does_not_read(start: Start, connect: Connect) -> None:
    worker = start(timeouts=Timeouts(send=0.2))
    client = connect(receive_buffer=4096)
    client.send(b"GET /big HTTP/1.1\r\nHost: bench\r\n\r\n")
    assert "does not read" in worker.wait_for("client_gone")["reason"]
    assert connect().get().status == 200


def test_a_half_closed_client_gets_its_answer(start: Start, connect: Connect) -> None:
    start()
    client = connect()
    client.send(b"GET /stream HTTP/1.1\r\nHost: bench\r\n\r\n" * 2)
    client.socket.shutdown(socket.SHUT_WR)
    assert client.response().body == b"".join(PIECES)
    assert client.response().body == b"".join(PIECES)
    assert client.until_closed() == b""


def test_access_record(start: Start, connect: Connect) -> None:
    worker = start(access=True)
    client = connect()
    client.post("/echo?a=%20", b"abc", "X-One: 1\r\n")
    record = worker.wait_for("access")
    assert record["method"] == "POST"
    assert record["target"] == "/echo?a=%20"
    assert record["protocol"] == "HTTP/1.1"
    assert (record["status"], record["sent"], record["received"]) == (200, 3, 3)
    assert (record["pool"], record["worker"], record["pid"]) == ("web", "web/0", worker.pid)
    assert ["b'X-One'", "b'1'"] in record["headers"]
    assert ["Content-Type", "text/plain"] in record["response_headers"]
    assert 0 <= record["duration"] < 10


def test_what_the_application_is_told(start: Start, connect: Connect, listener: socket.socket) -> None:
    start()
    client = connect()
    told = json.loads(client.get("//environ/?q=%41", headers="X-A: 1\r\nX-a: 2\r\nX_B: 3\r\nProxy: evil\r\n").body)
    assert told["PATH_INFO"] == "//environ/"
    assert told["QUERY_STRING"] == "q=%41"
    assert told["SCRIPT_NAME"] == ""
    assert told["SERVER_NAME"] == "127.0.0.1"
    assert told["SERVER_PORT"] == str(listener.getsockname()[1])
    assert told["REMOTE_ADDR"] == "127.0.0.1"
    assert told["REMOTE_PORT"] == str(client.socket.getsockname()[1])
    assert told["HTTP_HOST"] == "bench"
    assert told["HTTP_X_A"] == "1, 2"
    assert "HTTP_X_B" not in told
    assert "HTTP_PROXY" not in told
    assert told["preforkd.worker"] == "web/0"
    assert told["preforkd.generation"] == 7
    assert told["preforkd.config"] == "/etc/bench.yaml"


def test_the_path_is_decoded_once_and_as_bytes(start: Start, connect: Connect) -> None:
    start()
    told = json.loads(connect().get("/%65nviron%2F").body)
    assert told["PATH_INFO"] == "/environ/"
    assert connect().get("/%2565nviron").status == 404


def test_a_trailer_field_never_reaches_the_application(start: Start, connect: Connect) -> None:
    """RFC 9112, 7.1.2: it could pass for a field of the header."""
    start()
    client = connect()
    head = b"POST /environ HTTP/1.1\r\nHost: bench\r\nX-A: 1\r\nTransfer-Encoding: chunked\r\n\r\n"
    client.send(head + b"3\r\nabc\r\n0\r\nX-A: 2\r\nX-B: 3\r\nContent-Length: 9\r\nHost: evil\r\n\r\n")
    told = json.loads(client.response().body)
    assert (told["HTTP_X_A"], told["HTTP_HOST"]) == ("1", "bench")
    assert not {"HTTP_X_B", "CONTENT_LENGTH"} & told.keys()
    assert client.get().body == b"web/0"


def test_unix_sockets(start: Start, connect: Connect, unix_listener: socket.socket, tmp_path: Path) -> None:
    worker = start(listeners=[unix_listener])
    client = connect(str(tmp_path / "socket"))
    assert client.get().body == b"web/0"
    told = json.loads(client.get("/environ").body)
    assert told["REMOTE_ADDR"] == ""
    assert "REMOTE_PORT" not in told
    assert worker.wait_for("started")["client"] == ""
    client.send(b"nonsense\r\n\r\n")
    assert client.response().status == 400


def test_several_listeners(
    start: Start, connect: Connect, listener: socket.socket, unix_listener: socket.socket, tmp_path: Path
) -> None:
    start(listeners=[listener, unix_listener])
    assert connect().get().status == 200
    assert connect(str(tmp_path / "socket")).get().status == 200


def test_options_asterisk_is_answered_by_the_server(start: Start, connect: Connect) -> None:
    start()
    response = connect().get("*", method="OPTIONS")
    assert (response.status, response.body) == (200, b"")


def test_no_byte_is_sent_before_it_is_asked_for(start: Start, connect: Connect) -> None:
    start()
    client = connect()
    client.send(b"GET / HTTP/1.1\r\nHost: be")
    assert not select.select([client.socket], [], [], 0.05)[0]
    client.send(b"nch\r\n\r\n")
    assert client.response().status == 200
