"""PEP 3333, seen from the application: the environ, the input, start_response, write, close, the file wrapper."""

from __future__ import annotations

import gzip
import io
import itertools
import socket
import struct
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


class Closing:
    """A result that counts how often it was closed."""

    closed = 0

    def __init__(self, blocks: Iterable[bytes], close: Callable[[], object] = lambda: None) -> None:
        self.blocks = blocks
        self._close = close

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.blocks)

    def close(self) -> None:
        Closing.closed += 1
        self._close()


def closes(make: Callable[[Environ], Closing]) -> Any:
    """An application that answers with what ``make`` makes, and at /closed how often such were closed."""

    def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response(*OK)
        return [str(Closing.closed).encode()] if environ["PATH_INFO"] == "/closed" else make(environ)

    return application


def test_close_is_called_once_when_the_client_has_left(serve: Serve) -> None:
    client = serve(closes(lambda environ: Closing(itertools.repeat(b"x" * 65536))))
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    assert client.exactly(100_000)
    address = client.socket.getpeername()
    client.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # a reset
    client.socket.close()
    client.worker.wait_for("client_gone")  # type: ignore[attr-defined]
    with Client(address) as other:
        assert other.get("/closed").body == b"1"


def test_close_is_called_once_when_the_body_cannot_be_read(serve: Serve) -> None:
    client = serve(closes(lambda environ: Closing(map(environ["wsgi.input"].read, [1000]))))
    address = client.socket.getpeername()
    # With 100-continue a body is never received first.
    client.send(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\nabc")
    assert client.response().status == 100
    client.socket.shutdown(socket.SHUT_WR)
    assert client.response().status == 400
    with Client(address) as other:
        assert other.get("/closed").body == b"1"


def test_an_exception_in_close_spoils_no_answer(serve: Serve) -> None:
    def fail() -> None:
        raise ValueError("in close")

    client = serve(closes(lambda environ: Closing([b"ab", b"c"], fail)))
    assert client.get().body == b"abc"
    assert "in close" in client.worker.wait_for("app_exception")["traceback"]  # type: ignore[attr-defined]
    assert client.get("/closed").body == b"1"  # on the same connection


def test_what_is_written_comes_before_what_is_returned(serve: Serve) -> None:
    def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
        write = start_response(*OK)
        write(b"1")
        write(b"")
        write(b"2")

        def rest() -> Iterator[bytes]:
            yield b"3"
            write(b"4")
            yield b"5"

        return rest()

    client = serve(application)
    response = client.get()
    assert (response.body, response.headers["transfer-encoding"]) == (b"12345", "chunked")
    assert client.get(method="HEAD").status == 200
    assert client.get().body == b"12345"


def test_exc_info_after_the_head_is_sent_raises_what_happened(serve: Serve) -> None:
    reached: list[str] = []

    def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
        if environ["PATH_INFO"] == "/reached":
            start_response(*OK)
            return [",".join(reached).encode()]
        return late(start_response)

    def late(start_response: Any) -> Iterator[bytes]:
        start_response(*OK)
        yield b"abc"
        try:
            raise KeyError("the first fault")
        except KeyError:
            try:
                start_response("500 Too Late", [], sys.exc_info())
            except KeyError:
                reached.append("raised")
                raise
            reached.append("not raised")

    client = serve(application)
    address = client.socket.getpeername()
    client.send(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
    data = client.until_closed()
    assert data.startswith(b"HTTP/1.1 200 OK\r\n") and data.endswith(b"\r\n\r\n3\r\nabc\r\n")  # no end: cut off
    event = client.worker.wait_for("app_exception")  # type: ignore[attr-defined]
    assert "the first fault" in event["traceback"]
    with Client(address) as other:
        assert other.get("/reached").body == b"raised"


def test_empty_blocks_do_not_send_the_head(serve: Serve) -> None:
    def application(environ: Environ, start_response: Any) -> Iterator[bytes]:
        yield b""  # start_response is due before the first block that is one
        start_response("200 OK", [("X-First", "1")])
        yield b""
        try:
            raise ValueError
        except ValueError:
            start_response("503 After All", [("X-Second", "1")], sys.exc_info())
        yield b""
        yield b"sorry"

    response = serve(application).get()
    assert response.raw_head.startswith(b"HTTP/1.1 503 After All\r\n")
    assert (response.body, "x-first" in response.headers, "x-second" in response.headers) == (b"sorry", False, True)


@pytest.mark.parametrize("result", [[], (), iter(()), [b"", b""]], ids=["list", "tuple", "iterator", "empty blocks"])
def test_nothing_is_an_empty_body(serve: Serve, result: Iterable[bytes]) -> None:
    def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
        start_response(*OK)
        return result

    client = serve(application)
    for _ in range(2):
        response = client.get()
        assert (response.status, response.body, response.headers["content-length"]) == (200, b"", "0")


def test_a_status_needs_no_reason(serve: Serve) -> None:
    def application(environ: Environ, start_response: Any) -> list[bytes]:
        start_response(environ["QUERY_STRING"], [])
        return [b"a"]

    client = serve(application)
    for status in ("200", "404", "599"):
        response = client.get(f"/?{status}")
        assert response.raw_head.startswith(f"HTTP/1.1 {status} \r\n".encode())  # the space: RFC 9112, 4
        assert response.body == b"a"


def test_what_an_application_does_to_its_environ_and_header_is_its_own(serve: Serve) -> None:
    """Both may be changed, PEP 3333 says; what is remembered of a head that comes again stays as it was."""

    def application(environ: Environ, start_response: Any) -> Iterable[bytes]:
        assert type(environ) is dict
        seen = [environ.get("mark"), environ["PATH_INFO"], environ["HTTP_HOST"], "HTTP_X_GONE" in environ]
        environ.update(mark="left", PATH_INFO="/other", HTTP_HOST="evil")
        del environ["HTTP_X_GONE"]
        header = [("Content-Type", "text/plain")]
        start_response("200 OK", header)
        header[:] = [("X-Late", "1")]
        yield repr(seen).encode()

    client = serve(application)
    for _ in range(5):
        response = client.get("/a", headers="X-Gone: 1\r\n")
        assert response.body == b"[None, '/a', 'bench', True]"
        assert (response.headers["content-type"], "x-late" in response.headers) == ("text/plain", False)


class Sized:
    """An iterable of known length that is no list."""

    def __len__(self) -> int:
        return 1

    def __iter__(self) -> Iterator[bytes]:
        return iter([b"abc"])


#: What an application does, and what its developer reads: the same words whether preforkd is compiled or not.
WRONG: dict[str, tuple[Callable[[Any, Any], Any], str]] = {
    "start_response not called": (lambda environ, start: [b"a"], "without calling start_response"),
    "start_response not called, nothing returned": (lambda environ, start: [], "without calling start_response"),
    "called twice": (lambda environ, start: [start(*OK), start(*OK)], "called twice without exc_info"),
    "text": (lambda environ, start: (start(*OK), ["text"])[1], "iterable must yield bytes, not str"),
    "generated text": (lambda environ, start: (start(*OK), iter(["text"]))[1], "iterable must yield bytes, not str"),
    "None": (lambda environ, start: start(*OK) and None, "'NoneType' object is not iterable"),
    "write of text": (lambda environ, start: start(*OK)("text"), "write() takes bytes, not str"),
    "write of a bytearray": (lambda environ, start: start(*OK)(bytearray(b"a")), "write() takes bytes, not bytearray"),
    "bad status": (lambda environ, start: start("OK", []) and [], "a string like '200 OK', not 'OK'"),
    "status in bytes": (lambda environ, start: start(b"200 OK", []) and [], "a string like '200 OK', not b'200 OK'"),
    "a number": (lambda environ, start: start(200, []) and [], "a string like '200 OK', not 200"),
    "no header": (lambda environ, start: start("200 OK", None) and [], "iterable"),
    "header in bytes": (lambda environ, start: start("200 OK", [(b"A", b"b")]) and [], "not (b'A', b'b')"),
    "injection": (
        lambda environ, start: start("200 OK", [("Location", "/\r\nSet-Cookie: a=b")]) and [b"a"],
        "header field Location may not contain line ends",
    ),
    "hop by hop": (
        lambda environ, start: start("200 OK", [("Connection", "close")]) and [b"a"],
        "belongs to the server",
    ),
    "early hints that are none": (lambda environ, start: environ["wsgi.early_hints"]([1]), "(name, value), not 1"),
    "read of a word": (lambda environ, start: environ["wsgi.input"].read("all"), "'<' not supported"),
    "async": (lambda environ, start: coroutine(), "'coroutine' object is not iterable"),
}


async def coroutine() -> list[bytes]:
    return []


@pytest.mark.filterwarnings("ignore:coroutine")
@pytest.mark.parametrize(("application", "words"), WRONG.values(), ids=WRONG)
def test_what_applications_must_not_do(serve: Serve, application: Callable[[Any, Any], Any], words: str) -> None:
    client = serve(application)
    response = client.get()
    assert response.status == 500
    assert response.headers["content-type"].startswith("text/plain")
    event = client.worker.wait_for("app_exception")  # type: ignore[attr-defined]
    assert words in event["traceback"].splitlines()[-1]
    assert client.get().status == 500


class Bytes(bytes):
    """No bytes object itself, but one for all that an application could tell."""


class List(list[Any]):
    """Likewise."""


class Pair(tuple[str, str]):
    """Likewise."""


class Number:
    """An integer for all that takes one (numpy's are such)."""

    def __index__(self) -> int:
        return 2

    def __lt__(self, other: int) -> bool:
        return other > 2


@pytest.mark.parametrize("kind", [list, tuple, List, iter])
def test_what_looks_like_it_will_do(serve: Serve, kind: Callable[[Any], Any]) -> None:
    def application(environ: Environ, start_response: Callable[..., Any]) -> Any:
        write = start_response(status="200 OK", headers=kind([Pair(("X-A", "b")), ["X-C", "d"]]), exc_info=None)
        write(Bytes(environ["wsgi.input"].read(Number())))
        return kind([Bytes(environ["wsgi.input"].readline(Number())), Bytes(b"!")])

    client = serve(application)
    for _ in range(2):
        response = client.post("/", b"abcdef")
        assert (response.status, response.body) == (200, b"abcd!")
        assert (response.headers["x-a"], response.headers["x-c"]) == ("b", "d")


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
