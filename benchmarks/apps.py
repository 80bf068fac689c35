"""The plain WSGI application that is served: as little as possible, so that what is measured is the server."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

Environ = dict[str, Any]
Start = Callable[[str, list[tuple[str, str]]], object]

#: How long ``/wait`` blocks, seconds.
WAIT = 0.02
#: How much ``/big`` answers, and how much is posted to ``/post``, bytes.
BIG = 64 * 1024

_HELLO = b"Hello, world!\n"
_PAGE = b"x" * BIG


def _answer(start: Start, body: bytes) -> list[bytes]:
    start("200 OK", [("Content-Type", "text/plain"), ("Content-Length", str(len(body)))])
    return [body]


def _hello(environ: Environ, start: Start) -> Iterable[bytes]:
    return _answer(start, _HELLO)


def _big(environ: Environ, start: Start) -> Iterable[bytes]:
    return _answer(start, _PAGE)


def _post(environ: Environ, start: Start) -> Iterable[bytes]:
    body = environ["wsgi.input"].read(int(environ["CONTENT_LENGTH"]))
    return _answer(start, b"%d\n" % len(body))


def _wait(environ: Environ, start: Start) -> Iterable[bytes]:
    time.sleep(WAIT)
    return _answer(start, _HELLO)


def _who(environ: Environ, start: Start) -> Iterable[bytes]:
    return _answer(start, b"%d" % os.getpid())


_PAGES = {"/": _hello, "/big": _big, "/post": _post, "/wait": _wait, "/who": _who}


def application(environ: Environ, start_response: Start) -> Iterable[bytes]:
    """``/`` says hello, ``/big`` 64 KiB, ``/post`` how much came, ``/wait`` hello after 20 ms, ``/who`` its pid."""
    return _PAGES[environ["PATH_INFO"]](environ, start_response)
