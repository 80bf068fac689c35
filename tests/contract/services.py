"""The same service behind every handler, so that one suite can ask all of them the same things.

/            worker's name         /echo        the body             /stream     three pieces, no length
/hold        says "held" to the test and answers when it says go     /file       a regular file
/big         8 MiB in pieces       /fail        an exception         /fail-late  an exception after the first piece
/short       less than announced   /long        more than announced  /exit       SystemExit
/environ     what the handler tells of the request, as JSON            /hints      two early hints, then ok
/files       opens so many files at once as the query says
/late-echo   begins its answer, then reads the body                  /read-some  the first three bytes of the body
"""

from __future__ import annotations

import contextlib
import json
import os
import select
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from preforkd.handlers.wsgi import WSGI
from preforkd.models import ServedHandler

FILE = bytes(range(256)) * 1000
PIECES = [b"one ", b"two ", b"three"]
BIG = 8 * 1024 * 1024

Environ = dict[str, Any]
StartResponse = Callable[..., Callable[[bytes], object]]


class Gate:
    """Holds a request in the worker until the test opens it."""

    def __init__(self) -> None:
        self._held = os.pipe()
        self._go = os.pipe()

    def hold(self) -> None:
        """In the worker."""
        os.write(self._held[1], b".")
        os.read(self._go[0], 1)

    def wait_held(self) -> None:
        assert select.select([self._held[0]], [], [], 30)[0], "no request is held"
        os.read(self._held[0], 1)

    def open(self) -> None:
        os.write(self._go[1], b".")

    def close(self) -> None:
        for fd in (*self._held, *self._go):
            os.close(fd)


class WSGIService:
    """The service as a WSGI application."""

    def __init__(self, gate: Gate, file: Path) -> None:
        self._gate = gate
        self._file = file

    def __call__(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        name = environ["PATH_INFO"].strip("/").replace("-", "_") or "root"
        method = getattr(self, f"on_{name}", None)
        if method is None:
            start_response("404 Not Found", [("Content-Type", "text/plain"), ("Content-Length", "0")])
            return []
        result: Iterable[bytes] = method(environ, start_response)
        return result

    def _ok(self, start_response: StartResponse, *headers: tuple[str, str]) -> None:
        start_response("200 OK", [("Content-Type", "text/plain"), *headers])

    def on_root(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self._ok(start_response)
        return [str(environ["preforkd.worker"]).encode()]

    def on_echo(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read()
        self._ok(start_response)
        return [body]

    def on_stream(self, environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        self._ok(start_response)
        yield from PIECES

    def on_hold(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self._gate.hold()
        self._ok(start_response)
        return [b"held"]

    def on_hold_between(self, environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        self._ok(start_response)
        yield b"first"
        self._gate.hold()
        yield b"second"

    def on_file(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self._ok(start_response)
        wrapped: Iterable[bytes] = environ["wsgi.file_wrapper"](self._file.open("rb"))
        return wrapped

    def on_files(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        with contextlib.ExitStack() as stack:
            for _ in range(int(environ["QUERY_STRING"])):
                stack.enter_context(open(self._file, "rb"))
        self._ok(start_response)
        return [b"open"]

    def on_big(self, environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        self._ok(start_response, ("Content-Length", str(BIG)))
        for _ in range(BIG // 65536):
            yield b"x" * 65536

    def on_fail(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        raise RuntimeError("as told")

    def on_fail_late(self, environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        self._ok(start_response)
        yield b"something"
        raise RuntimeError("as told")

    def on_exit(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        raise SystemExit(3)

    def on_short(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self._ok(start_response, ("Content-Length", "10"))
        return [b"short"]

    def on_long(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self._ok(start_response, ("Content-Length", "4"))
        return [b"long", b"er than that"]

    def on_hints(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        hint = environ["wsgi.early_hints"]
        hint([("Link", "</a.css>; rel=preload; as=style"), ("Link", "</b.js>; rel=preload; as=script")])
        hint([])
        hint([("Link", "</c.css>; rel=preload; as=style")])
        self._ok(start_response)
        yield b"ok"
        hint([("Link", "</late.css>")])

    def on_read_some(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        body = environ["wsgi.input"].read(3)
        self._ok(start_response)
        return [body]

    def on_late_echo(self, environ: Environ, start_response: StartResponse) -> Iterator[bytes]:
        self._ok(start_response)
        yield b"echo: "
        yield environ["wsgi.input"].read()

    def on_environ(self, environ: Environ, start_response: StartResponse) -> Iterable[bytes]:
        self._ok(start_response)
        plain = {key: value for key, value in environ.items() if isinstance(value, str | int | tuple)}
        return [json.dumps(plain).encode()]


#: Handler's word -> how to make one that serves all this. A handler without a line here is not under contract.
SERVICES: dict[str, Callable[[Gate, Path], ServedHandler]] = {
    "wsgi": lambda gate, file: WSGI(WSGIService(gate, file), pool="web", config_path="/etc/bench.yaml"),
}
