"""The plain applications that are served: as little as possible, so that what is measured is the server.

`application` is for WSGI, `asgi` the same for ASGI as far as it is needed. Which file is sent stands in the environment
variable ``BENCHMARK_FILE``.
"""

from __future__ import annotations

import os
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

Environ = dict[str, Any]
Message = dict[str, Any]
Start = Callable[[str, list[tuple[str, str]]], object]

#: How long ``/wait`` blocks, seconds.
WAIT = 0.02
#: How much ``/big`` answers, and how much is posted to ``/post``, bytes.
BIG = 64 * 1024
#: Size of the file behind ``/file``, bytes.
FILE = 10 * 1024

#: What ``/`` answers.
HELLO = b"Hello, world!\n"
_PAGE = b"x" * BIG


def _answer(start: Start, body: bytes) -> list[bytes]:
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def _hello(environ: Environ, start: Start) -> Iterable[bytes]:
    return _answer(start, HELLO)


def _big(environ: Environ, start: Start) -> Iterable[bytes]:
    return _answer(start, _PAGE)


def _post(environ: Environ, start: Start) -> Iterable[bytes]:
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    return _answer(start, b"%d\n" % len(body))


def _file(environ: Environ, start: Start) -> Iterable[bytes]:
    file = open(os.environ["BENCHMARK_FILE"], "rb")  # noqa: SIM115  # closed by the server (PEP 3333)
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(FILE))])
    wrapper: Callable[[Any, int], Iterable[bytes]] | None = environ.get("wsgi.file_wrapper")
    if wrapper:
        return wrapper(file, FILE)
    with file:
        return [file.read()]


def _wait(environ: Environ, start: Start) -> Iterable[bytes]:
    time.sleep(WAIT)
    return _answer(start, HELLO)


def _who(environ: Environ, start: Start) -> Iterable[bytes]:
    return _answer(start, b"%d" % os.getpid())


_PAGES = {"/": _hello, "/big": _big, "/file": _file, "/post": _post, "/wait": _wait, "/who": _who}


def application(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """``/`` says hello, ``/big`` 64 KiB, ``/file`` a file of 10 KiB, ``/post`` how much came, ``/wait`` hello after
    20 ms, ``/who`` its pid."""
    return _PAGES[environ["PATH_INFO"]](environ, start_response)


async def asgi(
    scope: Message, receive: Callable[[], Awaitable[Message]], send: Callable[[Message], Awaitable[None]]
) -> None:
    """``/``, ``/big`` and ``/post`` as `application` answers them."""
    path, body = scope["path"], HELLO
    if path == "/big":
        body = _PAGE
    elif path == "/post":
        size, more = 0, True
        while more:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
        body = b"%d\n" % size
    fields = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": fields})
    await send({"type": "http.response.body", "body": body})
