"""TLS between a client and a model: the same HTTP, handshakes that cost no worker, ends that mean what they say."""

from __future__ import annotations

import contextlib
import ctypes
import ctypes.util
import json
import os
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from preforkd.config import Answer, Body, Limits, Listen, Timeouts
from preforkd.errors import ExitCode
from preforkd.handlers.wsgi import WSGI
from preforkd.tls import ServerTls, server_tls
from tests.contract.bench import PATIENCE, Client, Response, Worker
from tests.contract.conftest import Start
from tests.contract.services import BIG, FILE, PIECES, Gate
from tests.support.certificates import Authority, listen_with

REQUEST = b"GET / HTTP/1.1\r\nHost: a.test\r\n\r\n"

#: More than the kernel's buffers hold (net.ipv4.tcp_wmem and the client's tcp_rmem, before anything is read).
LARGE = os.urandom(1 << 16) * 200

Handover = tuple[socket.socket, socket.socket]


class TLSClient(Client):
    """A raw HTTP client over TLS. An end without close_notify is an ssl.SSLEOFError, never an orderly end."""

    socket: ssl.SSLSocket

    def __init__(
        self, address: Any, context: ssl.SSLContext, name: str | None = "a.test", session: ssl.SSLSession | None = None
    ) -> None:
        super().__init__(address)
        self.socket = context.wrap_socket(
            self.socket, server_hostname=name, session=session, suppress_ragged_eofs=False
        )

    def environ(self, **options: Any) -> dict[str, str]:
        answer: dict[str, str] = json.loads(self.get("/environ", **options).body)
        return answer


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture
def listen(authority: Authority) -> Listen:
    return listen_with(authority.issue("a.test", "127.0.0.1"), authority.issue("b.test"))


@pytest.fixture
def secure(start: Start, listen: Listen) -> Callable[..., Worker]:
    """Starts workers that speak TLS; all with the same contexts, as a template's."""
    servers: dict[str, ServerTls] = {}

    def begin(listen: Listen = listen, **options: Any) -> Worker:
        assert listen.tls is not None
        server = servers.setdefault(repr(listen), server_tls(listen.tls))
        return start(listen=listen, tls=server, **options)

    return begin


@pytest.fixture
def join(authority: Authority, listener: socket.socket) -> Iterator[Callable[..., TLSClient]]:
    """Connects clients."""
    with ExitStack() as stack:

        def connect(context: ssl.SSLContext | None = None, *, address: Any = None, **options: Any) -> TLSClient:
            client = TLSClient(address or listener.getsockname(), context or authority.client(), **options)
            return stack.enter_context(client)

        yield connect


Secure = Callable[..., Worker]
Join = Callable[..., TLSClient]
Connect = Callable[..., Client]

VERSIONS = pytest.mark.parametrize("version", ["TLSv1_2", "TLSv1_3"])


# --- the same HTTP ---------------------------------------------------------------------------------------------------


@VERSIONS
def test_bodies_of_all_sizes_both_ways(secure: Secure, join: Join, authority: Authority, version: str) -> None:
    secure()
    client = join(authority.client(version=version))
    body = os.urandom(300_000)
    assert client.get().body == b"web/0"
    assert client.post("/echo", body).body == body
    assert client.get("/big").body == b"x" * BIG
    assert client.get("/file").body == FILE
    assert client.get("/stream").body == b"".join(PIECES)
    assert client.get("/file", method="HEAD").body == b""
    client.send(REQUEST * 3)  # pipelined: in one record, and more than was asked for
    assert [client.response().body for _ in range(3)] == [b"web/0"] * 3
    assert client.socket.version() == version.replace("_", ".")


def test_what_the_application_is_told(secure: Secure, join: Join) -> None:
    secure()
    environ = join().environ(headers="X-Forwarded-Proto: http\r\nHTTPS: off\r\n")
    told = {key: value for key, value in environ.items() if key.startswith("SSL_")}
    assert told.pop("SSL_CIPHER").startswith("TLS_")
    assert told == {
        "SSL_PROTOCOL": "TLSv1.3", "SSL_TLS_SNI": "a.test", "SSL_CLIENT_VERIFY": "NONE",
        "SSL_SESSION_RESUMED": "Initial",
    }  # fmt: skip
    assert (environ["HTTPS"], environ["wsgi.url_scheme"]) == ("on", "https")


def test_a_slow_reader_gets_all(secure: Secure, join: Join, listener: socket.socket) -> None:
    """The answer is larger than all buffers: sending waits, and goes on in the middle of a record."""
    secure(timeouts=Timeouts(send=10))
    client = join()
    client.send(b"GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n")
    time.sleep(0.2)  # lets the buffers run full; the outcome does not depend on it
    assert client.response().body == b"x" * BIG


class Large:
    """An application whose answers are larger than all buffers, and have a close() that can be held."""

    def __init__(self, gate: Gate, file: Path) -> None:
        self._gate = gate
        self._file = file
        file.write_bytes(LARGE)

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
        start_response("200 OK", [])
        if environ["PATH_INFO"] == "/list":
            return [LARGE]
        if environ["PATH_INFO"] == "/file":
            wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](self._file.open("rb"))
            return wrapped
        if environ["PATH_INFO"] == "/hold":
            self._gate.hold()
        return [b"small"]


@pytest.fixture
def large(secure: Secure, gate: Gate, tmp_path: Path) -> Secure:
    def begin(**options: Any) -> Worker:
        answer = Answer(buffer=len(LARGE))
        return secure(handler=WSGI(Large(gate, tmp_path / "large"), pool="web"), settings={"answer": answer}, **options)

    return begin


@VERSIONS
@pytest.mark.parametrize("path", ["/list", "/file"])
def test_a_complete_answer_costs_no_worker(
    large: Secure, join: Join, authority: Authority, tmp_path: Path, version: str, path: str
) -> None:
    worker = large(access=True)
    reader = join(authority.client(version=version))
    reader.send(f"GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode() + REQUEST)
    worker.wait_for("finished")
    assert join().get().body == b"small"
    assert worker.wait_for("access")["sent"] == 5
    assert reader.response().body == LARGE
    assert reader.response().body == b"small"
    record = worker.wait_for("access")
    assert (record["target"], record["sent"]) == (path, len(LARGE))
    assert worker.files_in(tmp_path) == 0


@pytest.mark.parametrize("path", ["/list", "/file"])
def test_a_complete_answer_that_is_not_read_is_cut_off(large: Secure, join: Join, path: str) -> None:
    worker = large(access=True, timeouts=Timeouts(send=0.2))
    reader = join()
    reader.send(f"GET {path} HTTP/1.1\r\nHost: a.test\r\n\r\n".encode())
    worker.wait_for("finished")
    assert "does not read" in worker.wait_for("client_gone")["reason"]
    assert 0 < worker.wait_for("access")["sent"] < len(LARGE)
    with pytest.raises((ssl.SSLError, ConnectionError)):  # and no close_notify, as if that had been all
        reader.until_closed()


def test_a_file_that_becomes_shorter_on_its_way(large: Secure, join: Join, tmp_path: Path) -> None:
    worker = large(access=True)
    reader = join()
    reader.send(b"GET /file HTTP/1.1\r\nHost: a.test\r\n\r\n")
    worker.wait_for("finished")
    os.truncate(tmp_path / "large", len(LARGE) - 1000)
    with pytest.raises(EOFError):
        reader.response()
    assert "1000 bytes shorter" in worker.wait_for("app_response_length")["reason"]
    assert worker.wait_for("access")["sent"] == len(LARGE) - 1000


def test_a_long_request_does_not_keep_a_reader_waiting(
    large: Secure, join: Join, gate: Gate, handover: Handover
) -> None:
    worker = large(handover=handover)
    reader, busy = join(), join()
    reader.send(b"GET /list HTTP/1.1\r\nHost: a.test\r\n\r\n")
    worker.wait_for("finished")
    busy.send(b"GET /hold HTTP/1.1\r\nHost: a.test\r\n\r\n")
    gate.wait_held()
    assert reader.response().body == LARGE
    gate.open()
    assert busy.response().body == b"small"
    worker.stop()
    assert reader.until_closed() == busy.until_closed() == b""  # in order, with close_notify
    assert worker.join() == ExitCode.OK


def test_a_client_that_does_not_read_is_given_up(secure: Secure, join: Join) -> None:
    worker = secure(timeouts=Timeouts(send=0.2))
    client = join()
    client.send(b"GET /big HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert "does not read" in worker.wait_for("client_gone")["reason"]
    with pytest.raises((ssl.SSLError, ConnectionError)):  # and no close_notify, as if that had been all
        client.until_closed()


def test_a_unix_listener(secure: Secure, join: Join, unix_listener: socket.socket) -> None:
    secure(listeners=[unix_listener])
    environ = join(address=unix_listener.getsockname()).environ()
    assert (environ["SERVER_PORT"], environ["wsgi.url_scheme"]) == ("443", "https")


# --- handshakes ------------------------------------------------------------------------------------------------------


def hello(context: ssl.SSLContext) -> bytes:
    """The first flight of a client."""
    out = ssl.MemoryBIO()
    with pytest.raises(ssl.SSLWantReadError):
        context.wrap_bio(ssl.MemoryBIO(), out, server_hostname="a.test").do_handshake()
    return out.read()


def test_half_handshakes_cost_no_worker(secure: Secure, join: Join, connect: Connect, authority: Authority) -> None:
    secure()
    flight = hello(authority.client())
    for at in (1, 5, 6, len(flight) - 1, len(flight)):
        for _ in range(20):
            connect().send(flight[:at])
    client = join()
    assert client.get().body == b"web/0"


def test_a_handshake_that_comes_in_single_bytes(secure: Secure, listener: socket.socket, authority: Authority) -> None:
    secure()
    incoming, out = ssl.MemoryBIO(), ssl.MemoryBIO()
    client = authority.client().wrap_bio(incoming, out, server_hostname="a.test")
    with socket.create_connection(listener.getsockname(), PATIENCE) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        answer = b""
        asked = False
        while b"web/0" not in answer:
            try:
                if asked:
                    answer += client.read(65536)
                else:
                    client.do_handshake()
                    client.write(REQUEST)
                    asked = True
                wanting = False
            except ssl.SSLWantReadError:
                wanting = True
            for byte in out.read():
                sock.sendall(bytes((byte,)))
            if wanting:
                data = sock.recv(65536)
                assert data
                incoming.write(data)


def test_a_handshake_has_the_time_of_a_header(secure: Secure, connect: Connect, authority: Authority) -> None:
    worker = secure(timeouts=Timeouts(header=0.2))
    client = connect()
    client.send(hello(authority.client())[:50])
    event = worker.wait_for("tls_handshake_failed")
    assert event["client"] == "127.0.0.1" and event["reason"] == "it was not complete in time"
    assert client.until_closed() == b""


def test_failures_are_told_with_their_reason_and_seldom(
    secure: Secure, join: Join, connect: Connect, authority: Authority
) -> None:
    worker = secure()
    for _ in range(30):
        client = connect()
        client.send(b"\x16\x03\x01\x00\x05hello")
        answer = client.until_closed()
        assert answer[:1] == b"\x15", "an alert tells the client"
    assert join().get().status == 200
    worker.wait_for("finished")
    told = [event for event in worker.events if event["event"] == "tls_handshake_failed"]
    assert len(told) == 1 and told[0]["reason"]
    assert not [
        event for event in worker.events if event["event"] not in ("tls_handshake_failed", "started", "finished")
    ]


def test_what_is_neither_tls_nor_http_is_closed(secure: Secure, join: Join, connect: Connect) -> None:
    secure()
    client = connect()
    client.send(b"\x80\x2e\x01\x00\x02")  # SSL 2.0
    client.until_closed()
    assert join().get().status == 200


@pytest.mark.parametrize("cut", [1, 3, 1000])
def test_plain_http_gets_a_readable_page(secure: Secure, connect: Connect, cut: int) -> None:
    worker = secure(access=True)
    client = connect()
    client.send(REQUEST[:cut])
    response = client.response()
    assert response.status == 400 and response.headers["connection"] == "close"
    assert b"this port speaks TLS; write https:// in the URL" in response.body
    assert client.until_closed() == b""
    assert worker.wait_for("access")["status"] == 400


def test_renegotiation_is_refused(secure: Secure, listener: socket.socket, authority: Authority) -> None:
    """By OpenSSL's own client, which knows how to ask for it."""
    if shutil.which("openssl") is None:
        pytest.skip("the command openssl is missing")
    secure()
    host, port = listener.getsockname()
    process = subprocess.run(
        ["openssl", "s_client", "-connect", f"{host}:{port}", "-tls1_2", "-CAfile", str(authority.file)],
        input=b"R\n", capture_output=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    said = (process.stdout + process.stderr).decode()
    assert "RENEGOTIATING" in said and "no renegotiation" in said


def test_a_flood_of_key_updates_ends(secure: Secure, join: Join, listener: socket.socket) -> None:
    """Each costs the server more than the client, and none carries data (RFC 8446, 4.6.3). Python cannot send them."""
    name = ctypes.util.find_library("ssl")
    if name is None:
        pytest.skip("the library libssl is missing")
    secure()
    libssl = ctypes.CDLL(name)
    for function in ("TLS_client_method", "SSL_CTX_new", "SSL_new"):
        getattr(libssl, function).restype = ctypes.c_void_p
    context = ctypes.c_void_p(libssl.SSL_CTX_new(ctypes.c_void_p(libssl.TLS_client_method())))
    session = ctypes.c_void_p(libssl.SSL_new(context))
    with socket.create_connection(listener.getsockname(), PATIENCE) as sock:
        sock.setblocking(True)
        assert libssl.SSL_set_fd(session, sock.fileno()) == 1
        assert libssl.SSL_connect(session) == 1
        sent = 0
        while sent < 1_000_000 and libssl.SSL_key_update(session, 0) == 1 and libssl.SSL_do_handshake(session) == 1:
            sent += 1
            if not sent % 500:
                assert join().get().status == 200, "others are served meanwhile"
        libssl.SSL_free(session)
        libssl.SSL_CTX_free(context)
    assert 10 < sent < 1_000_000
    assert join().get().status == 200


# --- resumption ------------------------------------------------------------------------------------------------------


@VERSIONS
def test_a_session_goes_on_with_another_worker(
    secure: Secure, join: Join, authority: Authority, listener: socket.socket, version: str
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as second:
        second.setblocking(False)
        secure(slot=0)
        secure(slot=1, listeners=[second])
        context = authority.client(version=version)
        client = join(context)
        assert client.get().body == b"web/0"
        session = client.socket.session
        for address, worker in ((listener, b"web/0"), (second, b"web/1"), (second, b"web/1")):
            again = join(context, address=address.getsockname(), session=session)
            assert again.get(headers="Connection: close\r\n").body == worker
            assert again.socket.session_reused
        assert (
            join(context, address=second.getsockname(), session=session).environ()["SSL_SESSION_RESUMED"] == "Resumed"
        )
        # The second certificate's context, too.
        other = join(context, name="b.test")
        other.get()
        session = other.socket.session
        again = join(context, name="b.test", address=second.getsockname(), session=session)
        assert again.environ()["SSL_TLS_SNI"] == "b.test" and again.socket.session_reused


# --- ends ------------------------------------------------------------------------------------------------------------


def test_every_orderly_end_is_announced(secure: Secure, join: Join) -> None:
    worker = secure(timeouts=Timeouts(keepalive=0.2), body=Body(buffer=0))
    for path in ("/", "/stream"):
        client = join()
        assert client.get(path, headers="Connection: close\r\n").status == 200
        assert client.until_closed() == b""  # a ragged end would raise
    client = join()
    client.send(b"GET /stream HTTP/1.0\r\n\r\n")
    assert client.response().body == b"".join(PIECES)
    client = join()
    client.send(b"POST /environ HTTP/1.1\r\nHost: a.test\r\nContent-Length: 100000\r\n\r\n")
    assert client.response().headers["connection"] == "close"  # lingers
    assert client.until_closed() == b""
    client = join()
    client.send(b"NONSENSE\r\n\r\n")
    assert client.response().status == 400
    assert client.until_closed() == b""
    client = join()
    client.get()
    assert client.until_closed() == b""  # idle too long
    client = join()
    client.get()
    worker.stop()
    assert client.until_closed() == b""
    assert worker.join() == ExitCode.OK


def test_an_answer_that_is_cut_short_is_not_announced(secure: Secure, join: Join) -> None:
    secure()
    client = join()
    client.send(b"GET /fail-late HTTP/1.0\r\n\r\n")
    with pytest.raises((ssl.SSLError, ConnectionResetError)):
        client.until_closed()


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_that_is_cut_off_is_an_error(secure: Secure, join: Join, announced: bool) -> None:
    worker = secure(body=Body(buffer=0))  # read by the application itself
    client = join()
    client.send(b"POST /echo HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\nfive.")
    worker.wait_for("started")
    if announced:
        with contextlib.suppress(ssl.SSLError):  # it finds the server's complaint where it expected a goodbye
            client.socket.unwrap()
    else:
        client.socket.shutdown(socket.SHUT_WR)  # of TCP alone
    event = worker.wait_for("request_body_failed")
    assert event["status"] == 400 and ("cut off" in event["reason"]) is not announced


def test_a_client_that_says_goodbye_gets_an_answer_to_it(secure: Secure, join: Join) -> None:
    secure()
    client = join()
    assert client.get().status == 200
    client.socket.unwrap().close()  # waits for the server's close_notify


# --- kept connections ------------------------------------------------------------------------------------------------


def closes(response: Response) -> bool:
    return response.headers.get("connection") == "close"


def test_it_is_kept_only_while_it_is_alone(secure: Secure, join: Join, connect: Connect) -> None:
    worker = secure()
    first = join()
    assert not closes(first.get()) and not closes(first.get())
    second = join()
    assert closes(second.get()), "two would wait for each other's requests"
    assert second.until_closed() == b""
    assert not closes(first.get()), "what lingers does not count"
    worker.leave()
    assert closes(first.get()), "its worker leaves, and nobody can take it over"
    assert first.until_closed() == b""
    assert worker.join() == ExitCode.OK


def test_an_idle_one_is_served_once_more_when_its_worker_leaves(secure: Secure, join: Join, handover: Handover) -> None:
    old = secure(slot=0, handover=handover)
    client = join()
    client.get()
    old.leave()
    secure(slot=1, handover=handover)
    answer = client.get()
    assert answer.body == b"web/0" and closes(answer)
    assert old.join() == ExitCode.OK
    assert join().get().body == b"web/1"


def test_who_has_no_descriptor_left_passes_the_client_on_before_its_handshake(
    secure: Secure, join: Join, connect: Connect, gate: Gate, handover: Handover, authority: Authority
) -> None:
    # It is alone, so it takes them all; what it holds are heads half sent, which it may not close.
    poor = secure(slot=0, handover=handover, spare_files=8, timeouts=Timeouts(header=60))
    holders = []
    for _ in range(12):
        client = connect()
        client.send(hello(authority.client())[:20])
        holders.append(client)
    assert poor.wait_for("descriptors_exhausted")
    secure(slot=1, handover=handover)
    assert join().get().status == 200


# --- the wrong door --------------------------------------------------------------------------------------------------


def test_another_certificates_host_is_misdirected(secure: Secure, join: Join) -> None:
    worker = secure(access=True)
    client = join()
    client.send(b"GET / HTTP/1.1\r\nHost: b.test\r\n\r\n")
    response = client.response()
    assert response.status == 421 and closes(response)
    assert worker.wait_for("access")["status"] == 421
    client = join()
    client.send(b"GET https://b.test/ HTTP/1.1\r\nHost: a.test\r\n\r\n")
    assert client.response().status == 421
    for host in (b"a.test:443", b"elsewhere.test", b"127.0.0.1", b""):
        client = join()
        client.send(b"GET / HTTP/1.1\r\nHost: %s\r\n\r\n" % host)
        assert client.response().status == 200


def test_what_a_proxy_tells_of_another_connection_misdirects_nobody(secure: Secure, join: Join) -> None:
    """It speaks to us under one name, and its client spoke to it under another that we happen to have as well."""
    secure(settings={"trusted_proxies": ("127.0.0.0/8",), "forwarded": ("x-forwarded-for", "x-forwarded-host")})
    client = join()
    client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Host: b.test\r\n\r\n")
    assert client.response().status == 200
    client.send(b"GET / HTTP/1.1\r\nHost: b.test\r\nX-Forwarded-For: 192.0.2.1\r\nX-Forwarded-Host: a.test\r\n\r\n")
    assert client.response().status == 421


def test_https_without_tls_is_misdirected(start: Start, connect: Connect) -> None:
    start()
    client = connect()
    client.send(b"GET HTTPS://bench/ HTTP/1.1\r\nHost: bench\r\n\r\n")
    assert client.response().status == 421
    client = connect()
    client.send(b"GET http://bench/ HTTP/1.1\r\nHost: bench\r\n\r\n")
    assert client.response().status == 200


# --- clients' certificates -------------------------------------------------------------------------------------------


def test_a_required_certificate_of_the_client(secure: Secure, join: Join, authority: Authority, tmp_path: Path) -> None:
    people = Authority(tmp_path / "people")
    worker = secure(listen_with(authority.issue("a.test"), client_ca=str(people.file)))
    eve = people.issue("eve@a.test", common_name="Ève, Inc.")
    client = join(authority.client(eve))
    environ = client.environ()
    assert environ["SSL_CLIENT_VERIFY"] == "SUCCESS"
    assert environ["SSL_CLIENT_S_DN"].encode("latin-1").decode().startswith("CN=Ève\\, Inc.,")
    assert environ["SSL_CLIENT_S_DN_CN"].encode("latin-1").decode() == "Ève, Inc."
    assert environ["SSL_CLIENT_SAN_Email_0"] == "eve@a.test"
    assert environ["SSL_CLIENT_I_DN"] and environ["SSL_CLIENT_M_SERIAL"] and environ["SSL_CLIENT_V_END"]
    assert environ["SSL_CLIENT_CERT"] in eve.read_text().replace("\r\n", "\n")
    # A resumed session is still Eve's.
    again = join(client.socket.context, session=client.socket.session)
    assert again.environ()["SSL_CLIENT_S_DN"] == environ["SSL_CLIENT_S_DN"] and again.socket.session_reused
    for context in (authority.client(), authority.client(authority.issue("mallory@a.test"))):
        with pytest.raises((ssl.SSLError, ConnectionError)):
            join(context).get()
    assert "certificate" in worker.wait_for("tls_handshake_failed")["reason"]


def test_an_optional_certificate_of_the_client(
    secure: Secure, join: Join, authority: Authority, tmp_path: Path
) -> None:
    people = Authority(tmp_path / "people")
    secure(listen_with(authority.issue("a.test"), client_ca=str(people.file), client="optional"))
    assert join().environ()["SSL_CLIENT_VERIFY"] == "NONE"
    assert join(authority.client(people.issue("eve@a.test"))).environ()["SSL_CLIENT_VERIFY"] == "SUCCESS"
    with pytest.raises((ssl.SSLError, ConnectionError)):
        join(authority.client(authority.issue("mallory@a.test"))).get()


def test_limits_hold_inside_tls(secure: Secure, join: Join) -> None:
    secure(limits=Limits(header=512), timeouts=Timeouts(header=0.3, body=0.3))
    client = join()
    client.send(b"GET / HTTP/1.1\r\nHost: a.test\r\nX: " + b"x" * 600 + b"\r\n\r\n")
    assert client.response().status == 431
    client = join()
    client.send(b"GET / HTTP/1.1\r\nHo")
    assert client.response().status == 408
    client = join()
    client.send(b"POST /echo HTTP/1.1\r\nHost: a.test\r\nContent-Length: 10\r\n\r\nfive.")
    assert client.response().status == 408
