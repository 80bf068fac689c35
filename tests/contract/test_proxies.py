"""Behind proxies: the PROXY protocol and trusted header fields, over real sockets, and with a real HAProxy in front."""

from __future__ import annotations

import json
import os
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from preforkd.config import Listen, Timeouts
from tests.contract.bench import Client, Worker
from tests.contract.services import Gate

Start = Callable[..., Worker]
Connect = Callable[..., Client]
Pair = tuple[socket.socket, socket.socket]

LOOPBACK = Listen.of("127.0.0.1:80", proxy_protocol=("127.0.0.1",))
LINE = b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n"
TLS = (
    b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x14" + bytes([192, 0, 2, 1, 198, 51, 100, 2]) + struct.pack("!HH", 56324, 443)
    + b"\x20\0\5\1\0\0\0\0"
)  # fmt: skip
LOCAL = b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0"


def environ(client: Client, headers: str = "") -> dict[str, Any]:
    response = client.get("/environ", headers=headers)
    assert response.status == 200
    found: dict[str, Any] = json.loads(response.body)
    return found


# -- the PROXY protocol -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("header", "scheme"), [(LINE, "http"), (TLS, "https")])
def test_the_announced_client(start: Start, connect: Connect, header: bytes, scheme: str) -> None:
    worker = start(listen=LOOPBACK, access=True)
    client = connect()
    client.send(header)
    for _ in range(2):  # it holds for the whole connection
        seen = environ(client)
        assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("192.0.2.1", "56324")
        assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == ("198.51.100.2", "443")
        assert (seen["wsgi.url_scheme"], seen.get("HTTPS", "")) == (scheme, "on" if scheme == "https" else "")
        assert worker.wait_for("started")["client"] == "192.0.2.1"
        assert worker.wait_for("access")["client"] == "192.0.2.1"


@pytest.mark.parametrize("header", [LOCAL, b"PROXY UNKNOWN\r\n"])
def test_a_proxy_that_speaks_for_itself(start: Start, connect: Connect, header: bytes) -> None:
    start(listen=LOOPBACK)
    client = connect()
    client.send(header)
    seen = environ(client)
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == ("127.0.0.1", str(client.socket.getsockname()[1]))


@pytest.mark.parametrize("header", [LINE, TLS])
def test_a_dripped_header_with_a_request_behind_it(start: Start, connect: Connect, header: bytes) -> None:
    start(listen=LOOPBACK)
    client = connect()
    client.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for byte in header[:-1]:
        client.send(bytes((byte,)))
    # Meanwhile others are served.
    other = connect()
    other.send(LINE)
    assert other.get().status == 200
    client.send(header[-1:] + b"GET / HTTP/1.1\r\nHost: a\r\n\r\nGET /nothing HTTP/1.1\r\nHost: a\r\n\r\n")
    assert (client.response().status, client.response().status) == (200, 404)


@pytest.mark.parametrize(
    "start_", [b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"PROXY TCP4 x\r\n", b"\x16\x03\x01", b"PROXY\n"]
)
def test_whoever_sends_no_header_is_closed_unheard(start: Start, connect: Connect, start_: bytes) -> None:
    worker = start(listen=LOOPBACK)
    client = connect()
    client.send(start_)
    with pytest.raises((ConnectionResetError, EOFError)):
        client.exactly(1)
    event = worker.wait_for("proxy_refused")
    assert (event["client"], event["times"]) == ("127.0.0.1", 1) and event["reason"]
    assert not [event for event in worker.events if event["event"] == "started"]
    good = connect()
    good.send(LINE)
    assert good.get().status == 200


def test_whoever_is_not_listed_is_closed_unheard(start: Start, connect: Connect) -> None:
    worker = start(listen=Listen.of("127.0.0.1:80", proxy_protocol=("127.0.0.2", "unix")))
    client = connect()
    try:
        client.send(LINE + b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert client.until_closed() == b""
    except (ConnectionResetError, BrokenPipeError):
        pass
    assert "proxy_protocol" in worker.wait_for("proxy_refused")["reason"]
    assert not [event for event in worker.events if event["event"] == "started"]


def test_an_incomplete_header_times_out_without_an_answer(start: Start, connect: Connect) -> None:
    worker = start(listen=LOOPBACK, timeouts=Timeouts(header=0.2))
    silent, half = connect(), connect()
    half.send(LINE[:20])
    assert half.until_closed() == b"" == silent.until_closed()
    assert "in time" in worker.wait_for("proxy_refused")["reason"]


def test_a_unix_socket(start: Start, connect: Connect, unix_listener: socket.socket) -> None:
    listen = Listen.of("unix:/x", proxy_protocol=("unix",))
    start(listeners=[unix_listener], listen=listen)
    client = connect(unix_listener.getsockname())
    client.send(LINE)
    assert environ(client)["REMOTE_ADDR"] == "192.0.2.1"


@pytest.mark.parametrize("sent", [b"", LINE[:1], LINE[:30], TLS[:14], TLS[:-1]])
def test_a_leaver_hands_over_what_it_read_of_a_header(
    start: Start, connect: Connect, handover: Pair, listener: socket.socket, sent: bytes
) -> None:
    header = TLS if TLS.startswith(sent) and sent else LINE
    first = start(listen=LOOPBACK, handover=handover)
    client, probe = connect(), connect()
    client.send(sent)
    probe.send(LINE)
    assert probe.get().status == 200  # the first worker has accepted both
    second = start(listen=LOOPBACK, handover=handover, slot=1)
    first.leave()
    assert first.join() == 0
    client.send(header[len(sent) :])
    seen = environ(client)
    assert (seen["REMOTE_ADDR"], seen["preforkd.worker"]) == ("192.0.2.1", "web/1")
    assert environ(probe)["REMOTE_ADDR"] == "192.0.2.1"
    assert second.wait_for("started")["client"] == "192.0.2.1"


def test_a_kept_connection_keeps_the_announced_client(start: Start, connect: Connect, handover: Pair) -> None:
    first = start(listen=LOOPBACK, handover=handover)
    client = connect()
    client.send(TLS)
    assert environ(client)["preforkd.worker"] == "web/0"
    start(listen=LOOPBACK, handover=handover, slot=1)
    first.leave()
    assert first.join() == 0
    seen = environ(client)
    assert (seen["preforkd.worker"], seen["REMOTE_ADDR"], seen["wsgi.url_scheme"]) == ("web/1", "192.0.2.1", "https")


# -- header fields ----------------------------------------------------------------------------------------------------

LIES = "X-Forwarded-For: 203.0.113.66, 192.0.2.1\r\nX-Forwarded-Proto: https\r\nX-Forwarded-Host: evil.example\r\n"


def test_a_trusted_proxy_is_believed(start: Start, connect: Connect) -> None:
    worker = start(settings={"trusted_proxies": ("127.0.0.0/8",)}, access=True)
    seen = environ(connect(), LIES)
    assert (seen["REMOTE_ADDR"], seen["wsgi.url_scheme"], seen["HTTPS"]) == ("192.0.2.1", "https", "on")
    assert (seen["HTTP_HOST"], seen["SERVER_PORT"]) == ("bench", "443")
    assert "REMOTE_PORT" not in seen and seen["HTTP_X_FORWARDED_FOR"] == "203.0.113.66, 192.0.2.1"
    assert worker.wait_for("started")["client"] == "192.0.2.1"
    assert worker.wait_for("access")["client"] == "192.0.2.1"


@pytest.mark.parametrize("trusted", [(), ("192.0.2.0/24",), ("unix",)])
def test_nobody_else_is(start: Start, connect: Connect, trusted: tuple[str, ...]) -> None:
    start(settings={"trusted_proxies": trusted})
    seen = environ(connect(), LIES)
    assert (seen["REMOTE_ADDR"], seen["wsgi.url_scheme"], seen["HTTP_HOST"]) == ("127.0.0.1", "http", "bench")
    assert "HTTPS" not in seen


def test_a_request_that_never_reaches_the_application_has_its_client_in_the_log(
    start: Start, connect: Connect, gate: Gate
) -> None:
    """Its body did not come; it waited too long."""
    forwarded = "Host: a\r\nX-Forwarded-For: 192.0.2.1\r\n"
    worker = start(settings={"trusted_proxies": ("127.0.0.1",)}, timeouts=Timeouts(body=0.05, queue=0.1), access=True)
    client = connect()
    client.send(f"POST / HTTP/1.1\r\n{forwarded}Content-Length: 3\r\n\r\na".encode())
    assert client.response().status == 408
    assert worker.wait_for("request_body_failed")["client"] == "192.0.2.1"
    assert worker.wait_for("access")["client"] == "192.0.2.1"
    busy, late = connect(), connect()
    busy.send(b"GET /hold HTTP/1.1\r\nHost: a\r\n\r\n")
    gate.wait_held()
    late.send(f"GET / HTTP/1.1\r\n{forwarded}\r\n".encode())
    time.sleep(0.15)  # what has to pass is time
    gate.open()
    assert late.response().status == 503
    lines = [worker.wait_for("access") for _ in range(2)]
    assert [line["client"] for line in lines if line["status"] == 503] == ["192.0.2.1"]


def test_each_request_of_a_connection_has_its_own_client(start: Start, connect: Connect) -> None:
    start(settings={"trusted_proxies": ("127.0.0.1",)})
    client = connect()
    for address in ("192.0.2.1", "192.0.2.2"):
        assert environ(client, f"X-Forwarded-For: {address}\r\n")["REMOTE_ADDR"] == address
    assert environ(client)["REMOTE_ADDR"] == "127.0.0.1"


def test_what_cannot_be_read_is_refused(start: Start, connect: Connect) -> None:
    worker = start(settings={"trusted_proxies": ("127.0.0.1",)}, access=True)
    client = connect()
    head = "Host: a\r\nX-Forwarded-For: who\r\n"
    client.send(f"GET / HTTP/1.1\r\n{head}\r\nGET /next HTTP/1.1\r\nHost: a\r\n\r\n".encode())
    response = client.response()
    assert (response.status, response.headers["connection"]) == (400, "close")
    assert b"what a proxy says of the client is malformed" in response.body
    assert client.until_closed() == b""
    assert "'who'" in worker.wait_for("proxy_refused")["reason"]
    assert worker.wait_for("access")["status"] == 400
    assert not [event for event in worker.events if event["event"] == "started"]


TOLD = "X-Forwarded-For: 203.0.113.66, 192.0.2.1\r\nUser-Agent: tests\r\n"


@pytest.mark.parametrize(
    ("sent", "status", "named"),
    [
        # The head is complete, and only something in it is not acceptable.
        (f"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n{TOLD}\r\n", 400, True),
        (f"GET /%zz HTTP/1.1\r\nHost: a\r\n{TOLD}\r\n", 400, True),
        (f"POST / HTTP/1.1\r\nHost: a\r\n{TOLD}Content-Length: {10**17}\r\n\r\n", 413, True),
        (f"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n{TOLD}\r\n", 501, True),
        (f"GET https://a/ HTTP/1.1\r\nHost: a\r\n{TOLD}\r\n", 421, True),
        # What is wrong is in the body, or its end.
        (f"POST / HTTP/1.1\r\nHost: a\r\n{TOLD}Transfer-Encoding: chunked\r\n\r\nx\r\n", 400, True),
        (f"POST / HTTP/1.1\r\nHost: a\r\n{TOLD}Content-Length: 9\r\n\r\nbody", 408, True),
        # Nobody knows where the fields of these would have ended.
        (f"GET / HTTP/1.1\r\nHost: a\r\n{TOLD}broken\r\n\r\n", 400, False),
        (f"GET / HTTP/1.1\r\nHost: a\r\n{TOLD}{'X: y' * 20000}\r\n", 431, False),
        (f"GET / HTTP/1.1\r\nHost: a\r\n{TOLD}", 408, False),
        # Nobody knows whom the proxy means.
        (f"GET /%zz HTTP/1.1\r\nHost: a\r\n{TOLD}X-Forwarded-For: who\r\n\r\n", 400, None),
    ],
)
def test_a_refusal_names_the_client(start: Start, connect: Connect, sent: str, status: int, named: bool | None) -> None:
    patience = Timeouts(header=0.3, body=0.3)
    worker = start(settings={"trusted_proxies": ("127.0.0.1",)}, access=True, timeouts=patience)
    client = connect()
    client.send(sent.encode())
    assert client.response().status == status
    record = worker.wait_for("access")
    assert (record["client"], record["status"]) == ("192.0.2.1" if named else "127.0.0.1", status)
    assert ("tests" in repr(record["headers"])) is (named is not False)
    if "body" in sent:
        [failed] = [event for event in worker.events if event["event"] == "request_body_failed"]
        assert failed["client"] == "192.0.2.1"


def test_a_refusal_believes_nobody_else(start: Start, connect: Connect) -> None:
    worker = start(settings={"trusted_proxies": ("127.0.0.9",)}, access=True)
    client = connect()
    client.send(f"GET /%zz HTTP/1.1\r\nHost: a\r\n{TOLD}\r\n".encode())
    assert client.response().status == 400
    assert worker.wait_for("access")["client"] == "127.0.0.1"


# -- with HAProxy -----------------------------------------------------------------------------------------------------

HAPROXY = shutil.which("haproxy") or "/usr/sbin/haproxy"
needs_haproxy = pytest.mark.skipif(not os.access(HAPROXY, os.X_OK), reason="haproxy is not installed")


@pytest.fixture
def haproxy(tmp_path: Path, listener: socket.socket) -> Iterator[Callable[..., tuple[str, int]]]:
    """Starts HAProxy before the worker, with a mode and options; returns the address that it listens on."""
    running: list[subprocess.Popen[bytes]] = []

    def begin(mode: str, server: str = "", *lines: str) -> tuple[str, int]:
        with socket.create_server(("127.0.0.1", 0)) as front:
            port = listener.getsockname()[1]
            config = tmp_path / "haproxy.cfg"
            more = "".join(f"    {line}\n" for line in lines)
            config.write_text(
                f"defaults\n    mode {mode}\n    timeout connect 5s\n    timeout client 5s\n    timeout server 5s\n"
                f"listen it\n    bind fd@{front.fileno()}\n{more}    server one 127.0.0.1:{port} {server}\n"
            )
            command = [HAPROXY, "-db", "-q", "-f", str(config)]
            running.append(subprocess.Popen(command, pass_fds=[front.fileno()]))
            address: tuple[str, int] = front.getsockname()
            return address

    yield begin
    for process in running:
        process.kill()
        process.wait()


@needs_haproxy
@pytest.mark.parametrize("option", ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"])
def test_haproxy_announces_its_client(start: Start, connect: Connect, haproxy: Any, option: str) -> None:
    start(listen=LOOPBACK)
    client = connect(haproxy("tcp", option))
    seen = environ(client)
    here, there = client.socket.getsockname(), client.socket.getpeername()
    assert (seen["REMOTE_ADDR"], seen["REMOTE_PORT"]) == (here[0], str(here[1]))
    assert (seen["SERVER_NAME"], seen["SERVER_PORT"]) == (there[0], str(there[1]))


@needs_haproxy
def test_haproxy_without_the_option_is_closed_unheard(start: Start, connect: Connect, haproxy: Any) -> None:
    worker = start(listen=LOOPBACK)
    client = connect(haproxy("http"))
    assert client.get().status in (502, 503)
    assert "does not begin with a PROXY header" in worker.wait_for("proxy_refused")["reason"]


@needs_haproxy
def test_haproxy_forwards_header_fields(start: Start, connect: Connect, haproxy: Any) -> None:
    start(settings={"trusted_proxies": ("127.0.0.1",), "forwarded": ("x-forwarded-for", "x-forwarded-proto")})
    lines = ("source 127.0.0.1", "option forwardfor", "http-request set-header X-Forwarded-Proto https")
    client = connect(haproxy("http", "", *lines))
    # Its client is 127.0.0.1 too, and trusted; so it is believed, as a proxy in front of it would be.
    seen = environ(client, "X-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Proto: ftp\r\n")
    assert (seen["REMOTE_ADDR"], seen["wsgi.url_scheme"], seen["SERVER_PORT"]) == ("192.0.2.1", "https", "443")


@needs_haproxy
def test_a_client_of_haproxy_cannot_pretend(start: Start, connect: Connect, haproxy: Any) -> None:
    start(settings={"trusted_proxies": ("127.0.0.9",)})
    address = haproxy("http", "source 127.0.0.9", "option forwardfor", "http-request set-header X-Forwarded-Proto http")
    seen = environ(connect(address), LIES)
    assert (seen["REMOTE_ADDR"], seen["wsgi.url_scheme"], seen["HTTP_HOST"]) == ("127.0.0.1", "http", "bench")
