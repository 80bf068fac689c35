"""Bodies that are on their way cost no worker; what is stored of them is all there; whoever drips runs out of time."""

from __future__ import annotations

import os
import select
import shutil
import socket
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from preforkd.config import Body, Limits, Timeouts
from preforkd.errors import ExitCode
from tests.contract.bench import PATIENCE, Client, Worker
from tests.contract.services import BIG, Gate

Start = Callable[..., Worker]
Connect = Callable[..., Client]

BODY = bytes(range(256)) * 800  # 200 KiB
GET = b"GET / HTTP/1.1\r\nHost: bench\r\n\r\n"


def head(length: int | None = len(BODY), path: str = "/echo", fields: str = "") -> bytes:
    framing = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    return f"POST {path} HTTP/1.1\r\nHost: bench\r\n{framing}\r\n{fields}\r\n".encode()


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def silent(client: Client) -> bool:
    """Nothing has come, and the connection is open."""
    return not select.select([client.socket], [], [], 0.05)[0]


# -- parked -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
def test_bodies_on_their_way_cost_no_worker(start: Start, connect: Connect, chunked: bool) -> None:
    worker = start()
    slow = [connect() for _ in range(20)]
    for number, client in enumerate(slow):
        data = BODY[: number * 5000]
        client.send((head(None) + (chunk(data) if data else b"")) if chunked else head() + data)
    other = connect()
    for _ in range(3):
        assert other.get().body == b"web/0"
    for number, client in enumerate(slow):
        assert silent(client) or number
        rest = BODY[number * 5000 :]
        client.send(chunk(rest) + b"0\r\n\r\n" if chunked else rest)
        assert client.response().body == BODY
        assert client.get().body == b"web/0"
    assert [event["line"] for event in worker.events if event["event"] == "started"] == []


def test_an_upload_is_not_busy(start: Start, connect: Connect) -> None:
    worker = start()
    client, other = connect(), connect()
    client.send(head(10) + b"12345")
    other.get()
    assert worker.wait_for("started")["line"] == "GET / HTTP/1.1"
    worker.wait_for("finished")
    client.send(b"67890")
    assert client.response().body == b"1234567890"
    assert worker.wait_for("started")["line"] == "POST /echo HTTP/1.1"


def test_a_body_that_came_with_its_head_is_served_at_once(start: Start, connect: Connect, tmp_path: Path) -> None:
    """Without a look at the poll set, and without a file even if everything were to be stored in one."""
    worker = start(body=Body(memory=0, directory=str(tmp_path / "nowhere")))
    client = connect()
    for _ in range(3):
        assert client.post("/echo", b"x" * 1000).body == b"x" * 1000
    worker.leave()
    worker.join()
    assert not [event for event in worker.events if event["event"] == "body_not_stored"]


def test_one_turn_takes_only_so_much(start: Start, connect: Connect) -> None:
    """A fast upload does not keep the others waiting: it is read in pieces, between them."""
    start(body=Body(buffer=64 << 20))
    client, other = connect(), connect()
    client.send(head(len(BODY) * 100, "/"))
    for _ in range(100):
        client.send(BODY)
        assert other.get().status == 200
    assert client.response().status == 200


# -- stored -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("memory", [0, 1000, 1 << 20])
def test_beyond_memory_a_body_is_in_a_file(
    start: Start, connect: Connect, tmp_path: Path, memory: int, chunked: bool
) -> None:
    worker = start(body=Body(memory=memory, directory=str(tmp_path)))
    client, other = connect(), connect()
    half = len(BODY) // 2
    client.send(head(None) + chunk(BODY[:half]) if chunked else head() + BODY[:half])
    other.get()
    while memory < half and not worker.files_in(tmp_path):
        other.get()  # until the first half is there
    assert worker.files_in(tmp_path) == (memory < half)
    assert list(tmp_path.glob("preforkd-*")) == []
    client.send(chunk(BODY[half:]) + b"0\r\n\r\n" if chunked else BODY[half:])
    assert client.response().body == BODY
    client.get()
    assert worker.files_in(tmp_path) == 0


def test_requests_behind_a_stored_body_are_answered(start: Start, connect: Connect, tmp_path: Path) -> None:
    start(body=Body(memory=100, directory=str(tmp_path)))
    client = connect()
    client.send(head() + BODY[:1000])
    connect().get()
    client.send(BODY[1000:] + GET + head(3) + b"ab")
    assert client.response().body == BODY
    assert client.response().body == b"web/0"
    assert silent(client)
    client.send(b"c" + head(None) + chunk(b"de"))
    assert client.response().body == b"abc"
    client.send(b"0\r\n\r\n" + GET)
    assert client.response().body == b"de"
    assert client.response().body == b"web/0"


def test_the_access_log_counts_a_stored_body(start: Start, connect: Connect) -> None:
    worker = start(access=True)
    client = connect()
    client.send(head() + BODY[:1000])
    connect().get()
    worker.wait_for("access")
    client.send(BODY[1000:])
    client.response()
    record = worker.wait_for("access")
    assert (record["method"], record["status"]) == ("POST", 200)
    assert record["received"] == record["sent"] == len(BODY)


# -- streamed ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "buffer"),
    [
        (head(2000) + b"x" * 500, 1999),
        (head(1) + b"", 0),
        (head(None) + chunk(b"x" * 500), 499),
        (head(None) + b"1", 0),
        (head(2000, fields="Expect: 100-continue\r\n") + b"x" * 500, 1 << 20),
    ],
)
def test_what_is_too_long_to_wait_for_is_streamed(start: Start, connect: Connect, first: bytes, buffer: int) -> None:
    worker = start(body=Body(buffer=buffer))
    connect().send(first)
    assert worker.wait_for("started")["line"] == "POST /echo HTTP/1.1"


@pytest.mark.parametrize("memory", [0, 300, 1 << 20])
def test_chunks_that_grow_too_long_are_stored_first_and_then_streamed(
    start: Start, connect: Connect, memory: int
) -> None:
    worker = start(body=Body(buffer=100_000, memory=memory))
    client = connect()
    client.send(head(None))
    for at in range(0, len(BODY), 10_000):
        client.send(chunk(BODY[at : at + 10_000]))
    worker.wait_for("started")
    client.send(b"0\r\n\r\n" + GET)
    assert client.response().body == BODY
    assert client.response().body == b"web/0"


@pytest.mark.parametrize("options", [{"directory": "gone"}, {"file_size": 50_000}])
def test_where_it_cannot_be_stored_it_is_streamed_and_said_once(
    start: Start, connect: Connect, tmp_path: Path, options: dict[str, object]
) -> None:
    directory = tmp_path / str(options.pop("directory", ""))
    worker = start(body=Body(memory=1000, directory=str(directory)), **options)
    for _ in range(3):
        client = connect()
        client.send(head() + BODY[:60_000])
        worker.wait_for("started")
        client.send(BODY[60_000:])
        assert client.response().body == BODY
    said = [event for event in worker.events if event["event"] == "body_not_stored"]
    assert [event["directory"] for event in said] == [str(directory)]


def test_a_shortage_of_descriptors_closes_idle_connections_and_loses_no_upload(
    start: Start, connect: Connect, tmp_path: Path
) -> None:
    worker = start(spare_files=12, body=Body(memory=0, directory=str(tmp_path)), timeouts=Timeouts(keepalive=60))
    idle = [connect() for _ in range(4)]
    for client in idle:
        client.get()
    uploads = [connect() for _ in range(6)]
    for client in uploads:
        client.send(head() + BODY[:1000])
    assert worker.wait_for("descriptors_exhausted")["action"] == "closing idle connections"
    assert idle[0].until_closed() == b""
    for client in uploads:
        client.send(BODY[1000:])
    for client in uploads:
        assert client.response().body == BODY
        client.socket.shutdown(socket.SHUT_RDWR)


# -- refused ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "second", "status"),
    [
        (head(None) + chunk(b"abc"), b"-1\r\n", 400),
        (head(None) + chunk(b"x" * 90), chunk(b"x" * 90), 413),
        (head(None) + chunk(b"abc"), b"0\r\nT: " + b"x" * 600 + b"\r\n\r\n", 431),
        (head(50) + b"abc", b"", 408),
    ],
)
def test_the_application_never_sees_a_request_whose_body_is_refused(
    start: Start, connect: Connect, first: bytes, second: bytes, status: int
) -> None:
    worker = start(access=True, limits=Limits(header=512, body=100), timeouts=Timeouts(body=0.3))
    client = connect()
    client.send(first.replace(b"\r\n", b"\r\nX-One: 1\r\n", 1))
    if second:
        connect().get()
        worker.wait_for("access")
        client.send(second + GET)
    response = client.response()
    assert (response.status, response.headers["connection"]) == (status, "close")
    assert client.until_closed() == b""
    assert worker.wait_for("request_body_failed")["status"] == status
    record = worker.wait_for("access")
    assert (record["status"], record["method"], record["target"]) == (status, "POST", "/echo")
    assert record["received"] >= 3
    assert ["b'X-One'", "b'1'"] in record["headers"]
    assert "POST /echo HTTP/1.1" not in [event.get("line") for event in worker.events]


@pytest.mark.parametrize("reset", [False, True])
def test_a_client_that_leaves_in_its_body_is_forgotten(
    start: Start, connect: Connect, tmp_path: Path, reset: bool
) -> None:
    worker = start(access=True, body=Body(memory=0, directory=str(tmp_path)))
    client, other = connect(), connect()
    client.send(head() + BODY[:1000])
    other.get()
    worker.wait_for("access")
    if reset:
        client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        client.socket.close()
    else:
        client.socket.shutdown(socket.SHUT_WR)
        assert client.response().status == 400
        assert client.until_closed() == b""
    assert worker.wait_for("request_body_failed")["reason"].startswith("the client left")
    assert worker.wait_for("access")["status"] == 400
    other.get()
    assert worker.files_in(tmp_path) == 0


# -- deadlines --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [0, 1 << 20])
def test_a_dripped_body_gains_no_time(start: Start, connect: Connect, buffer: int) -> None:
    worker = start(timeouts=Timeouts(body=0.4), limits=Limits(rate=1000), body=Body(buffer=buffer))
    client = connect()
    client.send(head(1000))
    for _ in range(500):
        client.send(b"x")
        if select.select([client.socket], [], [], 0.02)[0]:
            break
    assert client.response().status == 408
    assert worker.wait_for("request_body_failed")["status"] == 408


@pytest.mark.parametrize("buffer", [0, 1 << 20])
def test_who_keeps_the_rate_has_all_the_time(start: Start, connect: Connect, buffer: int) -> None:
    start(timeouts=Timeouts(body=1.0), limits=Limits(rate=1000), body=Body(buffer=buffer))
    client = connect()
    client.send(head(5000))
    for _ in range(5):
        assert not select.select([client.socket], [], [], 0.3)[0]
        client.send(b"x" * 1000)
    assert client.response().body == b"x" * 5000


def test_what_came_while_the_worker_was_busy_is_in_time(start: Start, connect: Connect, gate: Gate) -> None:
    start(timeouts=Timeouts(body=0.1))
    client, busy = connect(), connect()
    client.send(head() + BODY[:1000])
    busy.send(b"GET /hold HTTP/1.1\r\nHost: bench\r\n\r\n")
    gate.wait_held()
    client.send(BODY[1000:])
    assert not select.select([client.socket], [], [], 0.3)[0]  # its time is over while nobody looks
    gate.open()
    assert client.response().body == BODY


def test_a_client_that_reads_a_little_is_cut_off(start: Start, connect: Connect) -> None:
    worker = start(timeouts=Timeouts(send=0.4), limits=Limits(rate=10_000_000))
    client = connect(receive_buffer=4096)
    client.send(b"GET /big HTTP/1.1\r\nHost: bench\r\n\r\n")
    read = []

    def sip() -> None:
        for _ in range(10_000):
            read.append(len(client.socket.recv(512)))
            select.select([], [], [], 0.002)

    with pytest.raises(ConnectionResetError):
        sip()
    assert sum(read) < BIG
    assert "does not read" in worker.wait_for("client_gone")["reason"]
    assert connect().get().status == 200


# -- leaving ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ["leave", "stop"])
def test_a_leaver_finishes_what_is_on_its_way(start: Start, connect: Connect, order: str) -> None:
    worker = start()
    client = connect()
    client.send(head() + BODY[:1000])
    other = connect()
    # Two turns: in the first one newcomers are served before the upload is looked at.
    other.get()
    other.get(headers="Connection: close\r\n")
    getattr(worker, order)()
    client.send(BODY[1000:])
    response = client.response()
    assert (response.body, response.headers["connection"]) == (BODY, "close")
    assert client.until_closed() == b""
    assert worker.join() == ExitCode.OK


def test_idle_connections_move_and_uploads_stay(
    start: Start, connect: Connect, handover: tuple[socket.socket, socket.socket]
) -> None:
    old = start(slot=0, handover=handover, timeouts=Timeouts(keepalive=60))
    client, idle = connect(), connect()
    client.send(head() + BODY[:1000])
    idle.get()
    old.leave()
    start(slot=1, handover=handover)
    assert idle.get().body == b"web/1"
    client.send(BODY[1000:])
    assert client.response().body == BODY
    assert old.join() == ExitCode.OK


@pytest.mark.parametrize("order", ["leave", "stop"])
def test_an_upload_that_does_not_go_on_does_not_keep_a_leaver(start: Start, connect: Connect, order: str) -> None:
    worker = start(timeouts=Timeouts(body=0.3))
    client, other = connect(), connect()
    client.send(head() + BODY[:1000])
    # Two turns: in the first one newcomers are served before the upload is looked at.
    other.get()
    other.get(headers="Connection: close\r\n")
    getattr(worker, order)()
    assert client.response().status == 408
    client.socket.close()
    assert worker.join() == ExitCode.OK


# -- answers before the end of the body -------------------------------------------------------------------------------


def test_a_small_rest_is_drained_and_the_connection_kept(start: Start, connect: Connect) -> None:
    worker = start(body=Body(buffer=0))
    client, other = connect(), connect()
    client.send(head(60_000, "/") + b"x" * 10)
    response = client.response()
    assert (response.status, "connection" in response.headers) == (200, False)
    assert other.get().status == 200  # draining costs no worker
    client.send(b"x" * 30_000)
    assert other.get().status == 200
    client.send(b"x" * 29_990 + GET)
    assert client.response().body == b"web/0"
    worker.leave()
    assert client.get().headers["connection"] == "close"


def test_draining_has_its_time(start: Start, connect: Connect) -> None:
    worker = start(body=Body(buffer=0), timeouts=Timeouts(body=0.2), access=True)
    client = connect()
    client.send(head(60_000, "/"))
    assert client.response().status == 200
    assert client.until_closed() == b""
    connect().get()
    worker.wait_for("access")
    worker.wait_for("access")
    assert not [event for event in worker.events if event["event"] in ("request_body_failed", "error")]


@pytest.mark.parametrize(
    "raw",
    [
        head(100_000, "/") + b"x",  # much is to come
        head(None, "/") + b"5\r\nhel",  # nobody knows how much
        head(10, "/", "Expect: 100-continue\r\n"),  # it may come or not
    ],
)
def test_other_rests_end_the_connection(start: Start, connect: Connect, raw: bytes) -> None:
    start(body=Body(buffer=0))
    client = connect()
    client.send(raw)
    response = client.response()
    assert (response.status, response.headers["connection"]) == (200, "close")
    assert client.until_closed() == b""


def test_a_body_that_was_asked_for_and_given_up_is_drained(start: Start, connect: Connect) -> None:
    """100 Continue was sent, so the rest will come."""
    start(body=Body(buffer=0))
    client = connect()
    client.send(head(10, "/read-some", "Expect: 100-continue\r\n"))
    assert client.response().status == 100
    client.send(b"123")
    response = client.response()
    assert (response.body, "connection" in response.headers) == (b"123", False)
    client.send(b"4567890" + GET)
    assert client.response().body == b"web/0"


@pytest.mark.parametrize("order", ["leave", "stop"])
def test_a_leaver_does_not_wait_for_a_connection_that_it_drains(start: Start, connect: Connect, order: str) -> None:
    worker = start(body=Body(buffer=0), timeouts=Timeouts(keepalive=0.3))
    client = connect()
    client.send(head(1000, "/"))
    assert client.response().status == 200
    getattr(worker, order)()
    client.send(b"x" * 1000)
    assert client.until_closed() == b""
    assert worker.join() == ExitCode.OK


def test_a_stop_does_not_wait_for_a_rest_that_nobody_reads(start: Start, connect: Connect) -> None:
    worker = start(body=Body(buffer=0), timeouts=Timeouts(body=60))
    client, other = connect(), connect()
    client.send(head(1000, "/"))
    assert client.response().status == 200
    other.get(headers="Connection: close\r\n")
    worker.stop()
    assert client.until_closed() == b""
    assert worker.join() == ExitCode.OK


@pytest.mark.parametrize("buffer", [0, 1 << 20])
def test_the_body_can_be_read_behind_the_beginning_of_the_answer(start: Start, connect: Connect, buffer: int) -> None:
    start(body=Body(buffer=buffer))
    client = connect()
    assert client.post("/late-echo", b"abc").body == b"echo: abc"
    client.send(head(3, "/late-echo") + b"a")
    if buffer:
        assert silent(client)
    client.send(b"bc")
    assert client.response().body == b"echo: abc"
    assert client.get().body == b"web/0"


# -- early hints ------------------------------------------------------------------------------------------------------


def test_early_hints(start: Start, connect: Connect) -> None:
    start()
    client = connect()
    client.send(b"GET /hints HTTP/1.1\r\nHost: bench\r\n\r\n")
    raw = b""
    while not raw.endswith(b"\r\n0\r\n\r\n"):
        raw += client.exactly(1)
    first, second, answer = raw.split(b"\r\n\r\n", 2)
    assert first == (
        b"HTTP/1.1 103 Early Hints\r\nLink: </a.css>; rel=preload; as=style\r\nLink: </b.js>; rel=preload; as=script"
    )
    assert second == b"HTTP/1.1 103 Early Hints\r\nLink: </c.css>; rel=preload; as=style"
    assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"late.css" not in answer
    assert client.get().body == b"web/0"


def test_curl_understands_early_hints(start: Start, listener: socket.socket) -> None:
    curl = shutil.which("curl")
    if curl is None:
        pytest.skip("curl is not installed")
    start()
    host, port = listener.getsockname()
    url = f"http://{host}:{port}/hints"
    done = subprocess.run([curl, "-sS", "-i", "--noproxy", "*", url, url], capture_output=True, timeout=PATIENCE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b"HTTP/1.1 103 Early Hints\r\n") == 4
    assert done.stdout.count(b"HTTP/1.1 200 OK\r\n") == 2
    assert done.stdout.endswith(b"\r\n\r\nok")


def test_early_hints_are_not_for_http_1_0(start: Start, connect: Connect) -> None:
    start()
    client = connect()
    client.send(b"GET /hints HTTP/1.0\r\n\r\n")
    response = client.response()
    assert (response.status, response.body) == (200, b"ok")


def test_random_cuts(start: Start, connect: Connect, tmp_path: Path) -> None:
    """Any body in any pieces, stored in memory, in a file, and streamed behind it."""
    start(body=Body(buffer=50_000, memory=5000, directory=str(tmp_path)))
    client = connect()
    for size in (1, 4999, 5000, 5001, 49_999, 50_000, 50_001, 150_000):
        body = os.urandom(size)
        half = size // 2
        chunks = b"".join(chunk(part) for part in (body[:half], body[half:]) if part)
        for raw in (head(size) + body, head(None) + chunks + b"0\r\n\r\n"):
            step = size // 7 + 1
            for at in range(0, len(raw), step):
                client.send(raw[at : at + step])
            assert client.response().body == body
