"""PEP 3333, seen from the application: the environ, the input, start_response, write, close, the file wrapper."""

from __future__ import annotations

import gzip
import io
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from wsgiref.validate import validator

import pytest

from preforkd import models, welcome
from preforkd.handlers.wsgi import WSGI
from tests.contract.bench import Client, Worker

Environ = dict[str, Any]
Serve = Callable[[Any], Client]
OK = ("200 OK", [("Content-Type", "text/plain")])


@pytest.fixture(params=sorted(models.BUILT_IN))
def serve(request: pytest.FixtureRequest, listener: socket.socket) -> Iterator[Serve]:
    """Serves a WSGI application; gives a client, and the worker as ``client.worker``."""
    with ExitStack() as stack:

        def begin(application: Any) -> Client:
            worker = stack.enter_context(Worker([listener], WSGI(application, pool="web"), model=request.param))
            client = stack.enter_context(Client(listener.getsockname()))
            client.worker = worker  # type: ignore[attr-defined]
            return client

        yield begin


READERS: dict[str, Callable[[Any], bytes]] = {
    "all": lambda input_: input_.read(-1),
    "bytes": lambda input_: b"".join(iter(lambda: input_.read(1), b"")),
    "blocks": lambda input_: b"".join(iter(lambda: input_.read(1000), b"")),
    "lines": lambda input_: b"".join(iter(input_.readline, b"")),
    "short lines": lambda input_: b"".join(iter(lambda: input_.readline(7), b"")),
    "readlines": lambda input_: b"".join(input_.readlines()),
    "readlines, hint": lambda input_: b"".join(input_.readlines(10) + input_.readlines()),
    "iterated": b"".join,
    "mixed": lambda input_: input_.readline() + input_.read(5) + next(iter(input_), b"") + input_.read(-1),
}


@pytest.mark.parametrize("read", READERS.values(), ids=READERS)
@pytest.mark.parametrize("chunked", [False, True])
def test_reading_validated(serve: Serve, read: Callable[[Any], bytes], chunked: bool) -> None:
    def application(environ: Environ, start_response: Any) -> list[bytes]:
        body = read(environ["wsgi.input"])
        start_response(*OK)
        return [body]

    client = serve(validator(application))
    body = b"first line\nsecond\n\n" + b"x" * 3000 + b"\nlast without end"
    for sent in (body, b"", b"\n"):
        if chunked:
            client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
            for start in range(0, len(sent), 700):
                piece = sent[start : start + 700]
                client.send(b"%x\r\n%s\r\n" % (len(piece), piece))
            client.send(b"0\r\n\r\n")
            assert client.response().body == sent
        else:
            assert client.post("/", sent).body == sent


def test_validated_methods_and_results(serve: Serve) -> None:
    def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
        environ["wsgi.errors"].write("")
        environ["wsgi.errors"].writelines([])
        environ["wsgi.errors"].flush()
        match environ["PATH_INFO"]:
            case "/list":
                start_response(*OK)
                return [b"a", b"", b"b"]
            case "/generator":
                return generator(start_response)
            case "/write":
                write = start_response(*OK)
                write(b"a")
                write(b"b")
                return []
            case "/write-length":
                write = start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "2")])
                write(b"a")
                return [b"b"]
            case "/nothing":
                start_response("204 No Content", [])
                return []
            case "/replaced":
                start_response(*OK)
                try:
                    raise ValueError
                except ValueError:
                    start_response("500 Replaced", [("Content-Type", "text/plain")], sys.exc_info())
                return [b"ab"]
            case _:
                start_response(*OK)
                return [b"ab"]

    def generator(start_response: Any) -> Iterator[bytes]:
        start_response(*OK)
        yield b""
        yield b"a"
        yield b"b"

    client = serve(validator(application))
    for path in ("/", "/list", "/generator", "/write", "/write-length", "/replaced", "/%C3%A4?x=%zz"):
        response = client.get(path)
        assert response.body == b"ab", path
        assert response.status == (500 if path == "/replaced" else 200)
        assert ("content-length" in response.headers) is (
            path == "/write-length"
        )  # the validator hides a list's length
        assert client.get(path, method="HEAD").body == b""
    assert client.get("/nothing").status == 204
    for method in ("PUT", "DELETE", "OPTIONS", "PATCH"):
        assert client.get("/", method=method).body == b"ab"


def test_close_is_always_called(serve: Serve) -> None:
    closed = 0

    class Result:
        def __init__(self, fails: bool) -> None:
            self.fails = fails

        def __iter__(self) -> Iterator[bytes]:
            yield b"a"
            if self.fails:
                raise ValueError

        def close(self) -> None:
            nonlocal closed
            closed += 1

    def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/closed":
            start_response(*OK)
            return [str(closed).encode()]
        if environ["PATH_INFO"] != "/never":
            start_response(*OK)
        return Result(environ["PATH_INFO"] == "/fails")

    client = serve(application)
    client.get("/")
    client.get("/", method="HEAD")
    assert client.get("/never").status == 500
    assert client.get("/closed").body == b"3"
    client.send(b"GET /fails HTTP/1.1\r\nHost: x\r\n\r\n")
    with pytest.raises(EOFError):
        client.response()
    with Client(client.socket.getpeername()) as again:
        assert again.get("/closed").body == b"4"


class Sized:
    """An iterable of known length that is no list."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"abc"])


WRONG: dict[str, Callable[[Any, Any], Any]] = {
    "start_response not called": lambda environ, start: [b"a"],
    "start_response not called, nothing returned": lambda environ, start: [],
    "called twice": lambda environ, start: [start(*OK), start(*OK)],
    "text": lambda environ, start: (start(*OK), ["text"])[1],
    "None": lambda environ, start: start(*OK) and None,
    "write of text": lambda environ, start: start(*OK)("text"),
    "bad status": lambda environ, start: start("OK", []) and [],
    "injection": lambda environ, start: start("200 OK", [("Location", "/\r\nSet-Cookie: a=b")]) and [b"a"],
    "hop by hop": lambda environ, start: start("200 OK", [("Connection", "close")]) and [b"a"],
    "async": lambda environ, start: coroutine(),
}


async def coroutine() -> list[bytes]:
    return []


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize("application", WRONG.values(), ids=WRONG)
def test_what_applications_must_not_do(serve: Serve, application: Callable[[Any, Any], Any]) -> None:
    client = serve(application)
    response = client.get()
    assert response.status == 500
    assert response.headers["content-type"].startswith("text/plain")
    event = client.worker.wait_for("app_exception")  # type: ignore[attr-defined]
    assert event["traceback"]
    assert client.get().status == 500


def test_a_sized_iterable_of_one_gets_a_length(serve: Serve) -> None:
    def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response(*OK)
        return Sized()

    assert serve(application).get().headers["content-length"] == "3"


def test_a_body_error_is_an_oserror_that_can_be_caught(serve: Serve) -> None:
    def application(environ: Environ, start_response: Any) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            start_response("400 Caught", [])
            return [f"{type(error).__name__} {getattr(error, 'status', None)}".encode()]
        return []

    client = serve(application)
    client.send(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue\r\n\r\n")
    assert client.response().status == 100
    client.send(b"nonsense\r\n")
    response = client.response()
    assert response.raw_head.startswith(b"HTTP/1.1 400 Caught")
    assert response.body == b"BodyError 400"
    assert response.headers["connection"] == "close"


def test_head_does_not_run_an_endless_generator(serve: Serve) -> None:
    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        start_response(*OK)
        while True:
            yield b"a"

    client = serve(application)
    assert client.get(method="HEAD").status == 200
    assert client.get(method="HEAD").status == 200


def test_file_wrapper_takes_all_kinds(serve: Serve, tmp_path: Path) -> None:
    content = b"0123456789" * 1000
    plain = tmp_path / "plain"
    plain.write_bytes(content)
    packed = tmp_path / "packed"
    packed.write_bytes(gzip.compress(content))

    class Unread(io.RawIOBase):
        """Has a read() and nothing else to offer."""

        def __init__(self) -> None:
            self.left = [b"ab", b"cd"]

        def read(self, size: int = -1) -> bytes:
            return self.left.pop(0) if self.left else b""

    def positioned() -> Any:
        file = plain.open("rb")
        file.read(9_990)
        return file

    def temporary() -> Any:
        file = tempfile.NamedTemporaryFile()  # noqa: SIM115
        file.write(content)
        file.seek(0)
        return file

    files: dict[str, Callable[[], Any]] = {
        "/plain": lambda: plain.open("rb"),
        "/unbuffered": lambda: plain.open("rb", buffering=0),
        "/positioned": positioned,
        "/gzip": lambda: gzip.open(packed),  # noqa: SIM115  # noqa: SIM115
        "/memory": lambda: io.BytesIO(content),
        "/temporary": temporary,
        "/read": Unread,
        "/empty": lambda: Path("/dev/null").open("rb"),  # noqa: SIM115
    }

    def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response(*OK)
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](files[environ["PATH_INFO"]](), 4096)
        return wrapped

    client = serve(application)
    expected = {"/positioned": b"0123456789", "/read": b"abcd", "/empty": b""}
    for path in files:
        assert client.get(path).body == expected.get(path, content), path
    with Client(client.socket.getpeername()) as old:
        old.send(b"GET /plain HTTP/1.0\r\n\r\n")
        assert old.response().body == content


def test_a_forked_child_of_the_application_does_not_keep_the_client_waiting(serve: Serve) -> None:
    """close_fds is the default of subprocess; descriptors are close-on-exec besides."""

    def application(environ: Environ, start_response: Any) -> list[bytes]:
        start_response(*OK)
        command = [sys.executable, "-c", "import os; print(sorted(os.listdir('/proc/self/fd')))"]
        return [subprocess.run(command, stdout=subprocess.PIPE, close_fds=False, check=True).stdout]

    client = serve(application)
    inherited = client.get().body
    with Client(client.socket.getpeername()) as other:
        other.get()
        assert client.get().body == inherited


def test_welcome_validated(serve: Serve) -> None:
    client = serve(validator(welcome.application))
    response = client.get()
    assert response.status == 200
    assert b"web/0" in response.body
    assert client.get(method="HEAD").headers["content-length"] == str(len(response.body))
    assert client.get("/favicon.ico").status == 404
    assert client.post("/", b"").status == 405


def test_welcome_escapes() -> None:
    page = welcome.page({"preforkd.worker": "<w>", "preforkd.generation": "&", "preforkd.config": "/a<b>"})
    assert "<w>" not in page
    assert "<b>" not in page
    assert "preforkd reload /a&lt;b&gt;" in page
    assert "no file" in welcome.page({})
