"""WSGI (PEP 3333) on an `Exchange`.

One request is one `_Call`: it builds the environ, runs the application, streams what it returns, and always closes it.
Every block is sent before the next one is asked for ("servers must not delay the transmission of any block"). The only
bodies that get a Content-Length from us are those whose length is known without running the application further.
"""

from __future__ import annotations

import io
import os
import stat
import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from operator import index
from tempfile import _TemporaryFileWrapper
from typing import TYPE_CHECKING, Any, Final, Protocol, cast
from urllib.parse import unquote_to_bytes

from preforkd.handlers._load import application_traceback, load_application, require_wsgi
from preforkd.http import BodyError, ClientGone, Exchange, Peer, RequestLimits, RequestParser
from preforkd.http.events import Request

if TYPE_CHECKING:
    from preforkd.config import Pool
    from preforkd.handlers import HandlerContext, Log

Environ = dict[str, Any]
Application = Callable[[Environ, Callable[..., Callable[[bytes], object]]], Iterable[bytes]]

#: How much of a file is read at once where sendfile cannot be used.
_FILE_BLOCK: Final = 64 * 1024
#: The blocks of a list are sent as one up to so many bytes in all: they are there anyway, and a copy costs less than a
#: call for each. What is longer is sent block by block, rather than kept in memory twice.
_JOINED: Final = 16 * 1024 * 1024


class WSGI:
    """The handler ``wsgi``: one application, called for every request."""

    def __init__(self, application: Application, *, pool: str, config_path: str = "") -> None:
        self._application = application
        self._log: Log | None = None
        #: The worker's, once it is open; and whether somebody sits at a terminal, whose Ctrl-C is meant.
        self._pid = 0
        self._interactive = False
        self._base: Environ = {
            "SCRIPT_NAME": "",
            "SERVER_SOFTWARE": "preforkd",
            "GATEWAY_INTERFACE": "CGI/1.1",
            "wsgi.version": (1, 0),
            "wsgi.url_scheme": "http",
            "wsgi.multithread": False,
            "wsgi.multiprocess": True,
            "wsgi.run_once": False,
            "wsgi.input_terminated": True,
            "wsgi.file_wrapper": FileWrapper,
            "preforkd.worker": pool,
            "preforkd.generation": 0,
            "preforkd.config": config_path,
        }

    @classmethod
    def load(cls, pool: Pool, *, config_path: str = "") -> WSGI:
        """Imports the pool's application; see `preforkd.handlers.Handler.load`.

        Raises:
            LoadError: It cannot be imported, or is no WSGI application.
        """
        found = load_application(pool.app, pool.directory)
        require_wsgi(pool.app, found)
        return cls(cast(Application, found), pool=pool.name, config_path=config_path)

    def open(self, ctx: HandlerContext) -> None:
        """The worker is about to serve."""
        self._log = ctx.log
        self._pid = os.getpid()
        self._interactive = ctx.interactive
        self._base["preforkd.worker"] = ctx.name
        self._base["preforkd.generation"] = ctx.generation

    def close(self) -> None:
        """The worker has served its last request; WSGI has no word for it."""

    def handle(self, exchange: Exchange) -> None:
        """Answers one request; what the application does wrong gets a plain page, or ends the connection."""
        call = _Call(exchange)
        try:
            try:
                call.run(self._application, self._environ(exchange))
            except ClientGone as error:
                self._event("info", "client_gone", exchange, reason=str(error))
                exchange.abort()
            except BodyError as error:
                self._event("info", "request_body_failed", exchange, status=error.status, reason=error.reason)
                exchange.answer_plainly(error.status, error.reason)
            except BaseException as error:  # SystemExit, too: an application must not end the worker by accident
                if os.getpid() != self._pid and self._pid:
                    # A child that the application forked: it means itself.
                    code = error.code if isinstance(error, SystemExit) else 1
                    os._exit(code if isinstance(code, int) else int(code is not None))
                if isinstance(error, KeyboardInterrupt) and self._interactive:
                    exchange.abort()
                    raise
                self._event("error", "app_exception", exchange, traceback=application_traceback(error))
                exchange.answer_plainly(500, "The application failed; its log says why.")
        except ClientGone:
            exchange.abort()
        if exchange.complaint:
            self._event("warning", "app_response_length", exchange, reason=exchange.complaint)

    def probe(self, path: str) -> int:
        """Runs one GET without a socket; returns the status, 500 if the application failed (which is logged)."""
        parser = RequestParser(RequestLimits())
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nUser-Agent: preforkd\r\nConnection: close\r\n\r\n"
        parser.feed(head.encode("ascii", "replace"))
        request = parser.next_event()
        if not isinstance(request, Request):
            return 400
        exchange = Exchange(request, parser, Nowhere(), Peer("127.0.0.1", 0, "localhost", 80))
        self.handle(exchange)
        return 500 if exchange.aborted else exchange.status

    def _event(self, level: str, event: str, exchange: Exchange, **fields: object) -> None:
        request = f"{exchange.request.method} {exchange.request.target}"
        if self._log is not None:
            getattr(self._log, level)(event, request=request, client=exchange.peer.client, **fields)
        elif level == "error":
            # Probed in the template, before a worker's log exists; what is written here reaches the log all the same.
            print(f"{event}: {request}", *fields.values(), sep="\n", file=sys.stderr, flush=True)

    def _environ(self, exchange: Exchange) -> Environ:
        request = exchange.request
        peer = exchange.peer
        prepared = request.prepared
        if prepared is None:
            environ = self._environ_of_head(request)
            # What comes for the first time may never come again. A second time, and there will be a third.
            request.prepared = False
        elif prepared:
            environ = cast(Environ, prepared).copy()
        else:
            environ = self._environ_of_head(request)
            request.prepared = environ.copy()
        environ["SERVER_NAME"] = peer.server
        environ["SERVER_PORT"] = str(peer.server_port)
        environ["REMOTE_ADDR"] = peer.client
        if peer.client_port:
            environ["REMOTE_PORT"] = str(peer.client_port)
        if peer.secure:
            environ["wsgi.url_scheme"] = "https"
            environ["HTTPS"] = "on"
            if peer.tls is not None:
                environ.update(peer.tls)
        environ["wsgi.input"] = Input(exchange)
        environ["wsgi.early_hints"] = exchange.early_hints
        environ["wsgi.errors"] = sys.stderr
        return environ

    def _environ_of_head(self, request: Request) -> Environ:
        """What the environ has from the head of the request alone."""
        fields = request.shared.get("wsgi")
        if fields is None:
            fields = request.shared["wsgi"] = _environ_of_fields(request.headers)
        environ = self._base | cast(Environ, fields)
        path = request.path
        environ["REQUEST_METHOD"] = request.method
        environ["PATH_INFO"] = unquote_to_bytes(path).decode("latin-1") if "%" in path else path
        environ["QUERY_STRING"] = request.query
        environ["REQUEST_URI"] = environ["RAW_URI"] = request.target
        environ["SERVER_PROTOCOL"] = request.protocol
        if request.host:
            environ["HTTP_HOST"] = request.host.decode("ascii")
        return environ


def _environ_of_fields(headers: list[tuple[bytes, bytes]]) -> Environ:
    environ: Environ = {}
    known = _keys.get
    for name, value in headers:
        key = known(name)
        if key is None:
            key = _key(name)
        if not key:
            continue
        text = value.decode("latin-1")
        if key in environ:
            # RFC 9110, 5.3; cookies are the exception that has its own separator (RFC 9113, 8.2.3).
            text = environ[key] + ("; " if key == "HTTP_COOKIE" else ", ") + text
        environ[key] = text
    return environ


#: Field name as sent -> environ key. Clients send few different names; strangers' inventions must not fill the memory.
_keys: Final[dict[bytes, str]] = {}
_KEYS_MAX: Final = 1000
_NAME_MAX: Final = 64


def _key(name: bytes) -> str:
    """The environ key of a header field; empty if it must not get in.

    A name with an underscore would look like the one with a dash, which a proxy in front may have filtered (`X_User`
    beside `X-User`); Apache and nginx drop it as well. `Proxy` would become HTTP_PROXY, which libraries take for their
    own configuration (CVE-2016-5385).
    """
    upper = name.decode("ascii").upper().replace("-", "_")
    if b"_" in name or upper == "PROXY":
        key = ""
    elif upper in ("CONTENT_TYPE", "CONTENT_LENGTH"):
        key = upper
    else:
        key = "HTTP_" + upper
    if len(_keys) < _KEYS_MAX and len(name) <= _NAME_MAX:
        _keys[name] = key
    return key


class _Call:
    """One run of the application."""

    __slots__ = ("_exchange", "_started")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._started = False

    def run(self, application: Application, environ: Environ) -> None:
        """Calls the application and sends what it returns."""
        exchange = self._exchange
        if environ["REQUEST_METHOD"] == "OPTIONS" and not exchange.request.path:
            # `OPTIONS *` asks the server, not a resource (RFC 9110, 9.3.7): a ping.
            exchange.start("200 OK", [("Content-Length", "0")])
            exchange.finish()
            return
        result = application(environ, self.start_response)
        try:
            self._send(result)
            # Before close(), which may take its time: the client shall not wait for it.
            exchange.finish()
        finally:
            if "REMOTE_USER" in environ:
                user = environ["REMOTE_USER"]
                exchange.user = user if isinstance(user, str) else None
            if type(result) is not list:
                close = getattr(result, "close", None)
                if close is not None:
                    close()

    # What an application passes is checked where it is used, in words for its developer. In the compiled build an
    # annotation would be a check of its own.

    def start_response(self, status: Any, headers: Any, exc_info: Any = None) -> Callable[[bytes], object]:
        """PEP 3333's start_response."""
        try:
            if exc_info is not None:
                if self._exchange.committed:
                    raise exc_info[1].with_traceback(exc_info[2])
            elif self._started:
                raise AssertionError("start_response was called twice without exc_info (PEP 3333)")
        finally:
            exc_info = None  # no cycle through the traceback's frames
        self._exchange.start(status, headers)
        self._started = True
        return self._write

    def _write(self, block: object) -> None:
        """PEP 3333's write callable: each block is sent at once."""
        if not isinstance(block, bytes):
            raise TypeError(f"write() takes bytes, not {type(block).__name__}")
        self._exchange.write(block)

    def _send(self, result: Iterable[Any]) -> None:
        exchange = self._exchange
        if type(result) is FileWrapper and self._send_file(result):
            return
        total: int | None = None
        single = False
        if exchange.committed:
            pass  # by write(): the framing is settled
        elif type(result) is list or type(result) is tuple:
            if len(result) == 1:
                total = len(result[0])
            else:
                total = sum(map(len, result))
                if 0 < total <= _JOINED and all(isinstance(block, bytes) for block in result):
                    result = (b"".join(result),)
        elif isinstance(result, Sized):
            # "If the iterable is of length 1 the server can determine Content-Length" (PEP 3333).
            single = len(result) == 1
        for block in result:
            if not isinstance(block, bytes):
                raise TypeError(f"the application's iterable must yield bytes, not {type(block).__name__}")
            if not block:
                continue
            self._require_start()
            exchange.write(block, len(block) if single else total)
            if exchange.bodiless:
                break  # nothing more can be sent; an endless generator must not run for a HEAD
        self._require_start()

    def _require_start(self) -> None:
        if not self._started:
            raise AssertionError("the application returned without calling start_response (PEP 3333)")

    def _send_file(self, wrapper: FileWrapper) -> bool:
        """Sends a regular file by sendfile(2); False if it is none, and has to be read like any iterable."""
        place = wrapper.place()
        if place is None:
            return False
        self._require_start()
        descriptor, offset, count = place
        self._exchange.send_file(descriptor, offset, count)
        return True


class Input:
    """``wsgi.input``: the request's body, what is stored of it first. Reading past its end gives empty bytes.

    Every method raises `preforkd.http.BodyError` (an OSError) when the body cannot be read.
    """

    __slots__ = ("_at", "_buffer", "_exchange")

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        #: The piece being read and the place in it: small reads must not copy what they leave.
        self._buffer = b""
        self._at = 0

    def read(self, size: Any = -1) -> bytes:
        """``size`` bytes, fewer only at the end of the body; all of it if ``size`` is negative or None."""
        wanted = sys.maxsize if size is None or size < 0 else index(size)
        buffer, at = self._buffer, self._at
        have = len(buffer) - at
        if have >= wanted:
            self._at = at + wanted
            return buffer[at : at + wanted]
        pieces = [buffer[at:] if at else buffer] if have else []
        self._buffer, self._at = b"", 0
        while have < wanted:
            block = self._read_block(pieces)
            if not block:
                break
            pieces.append(block)
            have += len(block)
        if have > wanted:
            self._buffer = pieces[-1]
            self._at = len(self._buffer) - (have - wanted)
            pieces[-1] = self._buffer[: self._at]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readline(self, size: Any = -1) -> bytes:
        """One line with its end, at most ``size`` bytes of it."""
        wanted = sys.maxsize if size is None or size < 0 else index(size)
        pieces: list[bytes] = []
        while wanted:
            if self._at == len(self._buffer):
                self._buffer, self._at = self._read_block(pieces), 0
                if not self._buffer:
                    break
            buffer, at = self._buffer, self._at
            limit = min(len(buffer), at + wanted)
            self._at = buffer.find(b"\n", at, limit) + 1 or limit
            pieces.append(buffer[at : self._at])
            wanted -= self._at - at
            if buffer[self._at - 1] == 0x0A:
                break
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def readlines(self, hint: Any = None) -> list[bytes]:
        """The remaining lines; with a ``hint``, no more once that many bytes are read."""
        lines: list[bytes] = []
        have = 0
        for line in self:
            lines.append(line)
            have += len(line)
            if hint is not None and 0 < hint <= have:
                break
        return lines

    def __iter__(self) -> Iterator[bytes]:
        return iter(self.readline, b"")

    def _read_block(self, pieces: list[bytes]) -> bytes:
        try:
            return self._exchange.read_block()
        except BodyError:
            # What had arrived is not lost: whoever reads again gets it, and then the error.
            self._buffer, self._at = b"".join(pieces), 0
            raise


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class FileWrapper:
    """``wsgi.file_wrapper``: a file as an iterable of blocks; a regular one is sent without being read."""

    def __init__(self, filelike: _Readable, block_size: Any = _FILE_BLOCK) -> None:
        self.filelike = filelike
        self.block_size = block_size
        close = getattr(filelike, "close", None)
        if close is not None:
            self.close = close

    def __iter__(self) -> Iterator[bytes]:
        return iter(lambda: self.filelike.read(self.block_size), b"")

    def place(self) -> tuple[int, int, int] | None:
        """Descriptor, offset and number of bytes left, if this is a regular file whose bytes are its content.

        Only the io module's own classes are trusted: a GzipFile, for one, has a descriptor and a position, and they do
        not belong together.
        """
        file: object = self.filelike
        if isinstance(file, _TemporaryFileWrapper):
            file = file.file
        if isinstance(file, (io.BufferedReader, io.BufferedRandom)):
            if not isinstance(file.raw, io.FileIO):
                return None
        elif not isinstance(file, io.FileIO):
            return None
        try:
            if isinstance(file, io.BufferedRandom):
                file.flush()
            descriptor = file.fileno()
            status = os.fstat(descriptor)
            offset = file.tell()
        except (OSError, ValueError):
            return None
        if not stat.S_ISREG(status.st_mode):
            return None
        return descriptor, offset, max(0, status.st_size - offset)


class Nowhere:
    """The transport of a probe: nobody sends, and what is sent is not kept."""

    def receive(self) -> bytes:
        return b""

    def send(self, pieces: object, last: bool = False) -> None:
        pass

    def send_file(self, descriptor: int, offset: int, count: int, head: bytes = b"", last: bool = False) -> int:
        return count
