"""A worker on the test bench: a model and a handler in a forked child, under a context that the test steers.

    with Worker(listeners, handler) as worker:      the child serves
        worker.leave()                              what TERM does to a worker
        worker.wait_for("client_gone")              an event that the model or the handler reported
        worker.join()                               its exit status

Everything that the child reports comes through one pipe, as JSON lines; waiting is waiting for such a line.
"""

from __future__ import annotations

import dataclasses
import json
import mmap
import os
import resource
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from preforkd import models
from preforkd.config import Body, Limits, Listen, Pool, Timeouts
from preforkd.errors import ExitCode
from preforkd.http import AccessRecord
from preforkd.models import ServedHandler
from preforkd.tls import ServerTls

#: Nothing that a test waits for takes longer than this, unless it is broken.
PATIENCE = 10.0


class Reporter:
    """The child's event log and access log: lines into the pipe."""

    def __init__(self, fd: int) -> None:
        self._fd = fd

    def report(self, event: str, **fields: object) -> None:
        os.write(self._fd, json.dumps({"event": event, **fields}, default=repr).encode() + b"\n")

    def event(self, event: str, /, **fields: object) -> None:
        self.report(event, **fields)

    debug = info = warning = error = event

    def log(self, record: AccessRecord, /) -> None:
        names = [field.name for field in dataclasses.fields(record)]  # asdict() copies; compiled objects cannot be
        told = {name: getattr(record, name) for name in (*names, "response_headers")}
        self.report("access", **told)


class Context:
    """The `WorkerContext` of the bench: lives in the child, obeys one letter at a time from the test."""

    def __init__(self, worker: Worker, reporter: Reporter, orders: int) -> None:
        self.pool = worker.pool
        self.slot = worker.slot
        self.generation = 7
        self.name = f"web/{worker.slot}"
        self.listeners: Sequence[socket.socket] = worker.listeners
        self.listens: Sequence[Listen] = [worker.listen] * len(worker.listeners)
        self.tls = {worker.listen.text: worker.tls} if worker.tls is not None else {}
        self.handover = worker.handover
        self.access = reporter if worker.access else None
        self.log = reporter
        self.leaving = False
        self.alarmed = False
        self._alarms = worker.alarms
        self._siblings = worker.siblings
        self.lifeline = None
        self.stopping = False
        self._reporter = reporter
        self._orders = orders
        self._recycled = False
        self.interactive = False
        self.serving_since = time.monotonic()
        self._taken = 0
        self._requests_left = worker.requests
        self._waiting = 0

    def watch(self) -> Mapping[int, Callable[[], None]]:
        return {self._orders: self._obey}

    def _obey(self) -> None:
        match os.read(self._orders, 1):
            case b"l":
                self.leaving = True
            case b"s":
                self.leaving = self.stopping = True
            case b"":  # the test is gone
                os._exit(1)
            case _:
                pass  # a wake-up without meaning

    def sibling_free(self) -> bool:
        return self._siblings[0] != 0

    def request_goes_on(self) -> None:
        self._reporter.report("goes_on")

    def orphaned_in_request(self) -> None:
        pass

    def request_started(self, request_line: bytes, client: str) -> float:
        self._reporter.report("started", line=request_line.decode(), client=client)
        self.alarmed = self._alarms
        return time.monotonic()

    def holds(self, connections: int) -> None:
        pass

    def keeps_waiting(self, ready: int) -> None:
        # Beside a long request only, where the porter says it: with every request, the pipe would be full before the
        # test reads it.
        if self._waiting or threading.current_thread() is not threading.main_thread():
            self._reporter.report("waiting", ready=ready)
            self._waiting = ready

    def surplus(self, connections: int, slow: bool = False) -> int:
        return 0

    def rests(self) -> None:
        if self.alarmed:
            self.alarmed = False
            self._reporter.report("rests")

    def took(self) -> None:
        self._taken += 1

    def taken(self) -> int:
        return self._taken

    def request_refused(self, waited: float) -> None:
        self._reporter.report("refused", waited=waited)

    def request_finished(self) -> float:
        self._reporter.report("finished")
        self._requests_left -= 1
        if not self._requests_left:
            self.leaving = self._recycled = True
        return time.monotonic()

    def exit_code(self) -> ExitCode:
        return ExitCode.RECYCLED if self._recycled else ExitCode.OK


class Worker:
    """A model serving in a child process.

    ``requests``: leaves by itself after so many. ``spare_files``: descriptors that it may open beyond those it has.
    ``file_size``: no file that it writes grows beyond so many bytes, as if the disk were full. ``alarms``: an alarm is
    armed with each request. ``siblings``: its first byte says whether one is free, and may be written at any time.
    """

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        handler: ServedHandler,
        *,
        model: str = "process",
        slot: int = 0,
        listen: Listen | None = None,
        tls: ServerTls | None = None,
        handover: tuple[socket.socket, socket.socket] | None = None,
        timeouts: Timeouts | None = None,
        limits: Limits | None = None,
        body: Body | None = None,
        requests: int = 0,
        spare_files: int = 0,
        file_size: int = 0,
        alarms: bool = False,
        access: bool = False,
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        self.listeners = listeners
        self.handler = handler
        self.model = model
        self.slot = slot
        #: What the configuration says of every listener.
        self.listen = listen or Listen.of("127.0.0.1:80")
        self.tls = tls
        self.handover = handover
        self.requests = requests
        self.spare_files = spare_files
        self.file_size = file_size
        self.access = access
        self.alarms = alarms
        self.siblings = mmap.mmap(-1, mmap.PAGESIZE)
        self.siblings[0] = 1
        self.pool = Pool(
            name="web",
            listen=(),
            app="bench:app",
            timeouts=timeouts or Timeouts(),
            limits=limits or Limits(),
            body=body or Body(),
            **(settings or {}),
        )
        self.events: list[dict[str, Any]] = []
        self.pid = 0

    def __enter__(self) -> Self:
        reports, reports_in = os.pipe()
        orders, orders_in = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            code = 1
            try:
                os.close(reports)
                os.close(orders_in)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                code = self._serve(Reporter(reports_in), orders)
            except BaseException:
                traceback.print_exc()
                sys.stderr.flush()
            finally:
                os._exit(code)
        os.close(reports_in)
        os.close(orders)
        self._reports = os.fdopen(reports, "rb", buffering=0)
        self._rest = b""
        self._orders = orders_in
        self._status: int | None = None
        return self

    def _serve(self, reporter: Reporter, orders: int) -> int:
        if self.spare_files:
            used = max(int(name) for name in os.listdir("/proc/self/fd")) + 1
            resource.setrlimit(resource.RLIMIT_NOFILE, (used + self.spare_files, used + self.spare_files))
            # Below that highest number are holes; they would be descriptors to spare as well.
            while (fd := os.open("/dev/null", os.O_RDONLY)) < used:
                pass
            os.close(fd)
        if self.file_size:
            resource.setrlimit(resource.RLIMIT_FSIZE, (self.file_size, self.file_size))
        context = Context(self, reporter, orders)
        return int(models.load(self.model).serve(context, self.handler))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._orders)  # ends it, if it has not left
        if self._status is None:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        self._reports.close()

    def leave(self) -> None:
        """The worker shall leave, its siblings stay."""
        os.write(self._orders, b"l")

    def stop(self) -> None:
        """The worker shall leave, and so do its siblings."""
        os.write(self._orders, b"s")

    def join(self) -> int:
        """Waits for its end; the exit status."""
        descriptor = os.pidfd_open(self.pid)
        try:
            assert select.select([descriptor], [], [], PATIENCE)[0], "the worker does not leave"
        finally:
            os.close(descriptor)
        _, status = os.waitpid(self.pid, 0)
        self._status = os.waitstatus_to_exitcode(status)
        return self._status

    def wait_for(self, event: str) -> dict[str, Any]:
        """The next event of that name that was not waited for before; those before it are in `events`."""
        deadline = time.monotonic() + PATIENCE
        while True:
            while b"\n" in self._rest:
                line, _, self._rest = self._rest.partition(b"\n")
                found: dict[str, Any] = json.loads(line)
                self.events.append(found)
                if found["event"] == event:
                    return found
            ready, _, _ = select.select([self._reports], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {event}; seen: {self.events}"
            piece = self._reports.read(65536)
            assert piece, f"the worker ended before {event}; seen: {self.events}"
            self._rest += piece

    def files_in(self, directory: Path) -> int:
        """How many open files it has there, with or without a name."""
        links = (os.readlink(link) for link in Path(f"/proc/{self.pid}/fd").iterdir())
        return sum(link.startswith(f"{directory}/") for link in links)

    def processor_time(self) -> float:
        """Seconds of a processor that it has taken so far, in user and kernel mode (proc(5), stat: utime, stime)."""
        with open(f"/proc/{self.pid}/stat") as stat:
            fields = stat.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def sleeps(self) -> int:
        """How often it has gone to sleep so far: each wake-up from waiting is followed by one."""
        with open(f"/proc/{self.pid}/status") as status:
            for line in status:
                if line.startswith("voluntary_ctxt_switches"):
                    return int(line.split()[1])
        raise AssertionError("no such line")


@dataclasses.dataclass
class Response:
    """One response as a client sees it."""

    status: int
    headers: dict[str, str]
    body: bytes
    raw_head: bytes


class Client:
    """A raw HTTP client: sends bytes, reads responses one by one."""

    def __init__(self, address: Any, *, receive_buffer: int = 0) -> None:
        family = socket.AF_UNIX if isinstance(address, str) else socket.AF_INET
        self.socket = socket.socket(family)
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(PATIENCE)
        self.socket.connect(address)
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def get(self, path: str = "/", *, method: str = "GET", headers: str = "") -> Response:
        self.send(f"{method} {path} HTTP/1.1\r\nHost: bench\r\n{headers}\r\n".encode())
        return self.response(head_only=method == "HEAD")

    def post(self, path: str, body: bytes, headers: str = "") -> Response:
        head = f"POST {path} HTTP/1.1\r\nHost: bench\r\nContent-Length: {len(body)}\r\n{headers}\r\n"
        self.send(head.encode() + body)
        return self.response()

    def response(self, *, head_only: bool = False) -> Response:
        while b"\r\n\r\n" not in self._rest:
            self._more()
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        lines = head.decode("latin-1").split("\r\n")
        status = int(lines[0].split()[1])
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines[1:])}
        assert len(headers) == len(lines) - 1, f"a field comes twice: {lines}"
        if head_only or status in (204, 304) or status < 200:
            body = b""
        elif "content-length" in headers:
            body = self.exactly(int(headers["content-length"]))
        elif headers.get("transfer-encoding") == "chunked":
            body = b""
            while size := int(self._line(), 16):
                body += self.exactly(size)
                assert self.exactly(2) == b"\r\n"
            assert self._line() == b""
        else:
            assert headers["connection"] == "close"
            body = self.until_closed()
        return Response(status, headers, body, head)

    def until_closed(self) -> bytes:
        """All until the server's end of the connection."""
        data, self._rest = self._rest, b""
        while piece := self.socket.recv(65536):
            data += piece
        return data

    def exactly(self, size: int) -> bytes:
        data = bytearray(self._rest)  # grows in place, however small the pieces are
        while len(data) < size:
            self._rest = b""
            self._more()
            data += self._rest
        self._rest = bytes(data[size:])
        return bytes(data[:size])

    def _line(self) -> bytes:
        while b"\r\n" not in self._rest:
            self._more()
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def _more(self) -> None:
        piece = self.socket.recv(65536)
        if not piece:
            raise EOFError(f"the server closed the connection after {self._rest!r}")
        self._rest += piece
