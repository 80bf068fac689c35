"""Where each microsecond of a request goes: the steps of a worker, one after the other, in this process.

The same objects as in a worker, without the sockets of others: heads come as bytes, answers end in a list, and the one
step that is the kernel's is measured on a connection over the loopback device.
"""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import cast

from benchmarks import report
from benchmarks.apps import application
from benchmarks.load import BROWSER
from benchmarks.run import Run
from preforkd.handlers.wsgi import WSGI, Application, Nowhere
from preforkd.http import AccessRecord, CheckedHead, Exchange, Memory, Peer, Request, RequestLimits, RequestParser
from preforkd.logs.access import compile_format
from preforkd.scoreboard import Scoreboard

_PEER = Peer("127.0.0.1", 1234, "127.0.0.1", 8000)
_PLAIN = b"GET / HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n\r\n"
_FIELDS = "".join(f"{name}: {value}\r\n" for name, value in BROWSER.items()).encode()
_BROWSER = b"GET /?page=%d HTTP/1.1\r\nHost: 127.0.0.1:8000\r\n" + _FIELDS + b"Cookie: id=%d\r\n\r\n"


def _measure(step: Callable[[], object], rounds: int, calls: int = 4000) -> list[float]:
    """Microseconds of processor time a call, one value a round."""
    found = []
    for _ in range(rounds):
        began = time.process_time()
        for _ in itertools.repeat(None, calls):
            step()
        found.append((time.process_time() - began) / calls * 1e6)
    return found


def _request(head: bytes) -> Request:
    event = RequestParser(RequestLimits(), head).next_event()
    assert isinstance(event, Request)
    return event


def _parsing(heads: Iterator[bytes]) -> Callable[[], object]:
    parser = RequestParser(RequestLimits(), b"", Memory())

    def step() -> None:
        parser.feed(next(heads))
        parser.next_event()
        parser.next_event()

    return step


def _answering(head: bytes, *, anew: bool) -> Callable[[], object]:
    handler = WSGI(cast(Application, application), pool="bench")
    request = _request(head)
    parser = RequestParser(RequestLimits())
    parser.feed(_PLAIN)
    parser.next_event()
    parser.next_event()

    def step() -> None:
        if anew:
            request.prepared = None
            request.shared.clear()
        handler.handle(Exchange(request, parser, Nowhere(), _PEER))

    return step


def _scoreboard() -> Callable[[], object]:
    writer = Scoreboard(2).writer(0)
    line = b"GET / HTTP/1.1"

    def step() -> None:
        writer.busy(line, "127.0.0.1")
        writer.finished()

    return step


def _log(format: str, *, anew: bool = False) -> Callable[[], object]:
    """What a worker does for a line, in a form that `AccessLog` has; ``anew``: no such fields were seen before."""
    line = compile_format(format)
    request = _request(_BROWSER % (1, 1))
    head = CheckedHead("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "13")])
    null = os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)

    def step() -> None:
        if anew:
            request.shared.clear()
        record = AccessRecord(
            time.time(), 0.001, "127.0.0.1", request.method, request.target, request.protocol, 200, 13, 0,
            request.headers, request.shared, head, None, "web", "web/0", 1,
        )  # fmt: skip
        os.write(null, line(record))

    return step


def _kernel(connection: tuple[int, int]) -> Callable[[], object]:
    client, server = connection
    answer = b"x" * 150

    def step() -> None:
        os.write(client, _PLAIN)
        os.read(server, 16384)
        os.write(server, answer)
        os.read(client, 16384)

    return step


def _connect() -> tuple[SimpleNamespace, tuple[int, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        client = socket.create_connection(listener.getsockname())
        server, _ = listener.accept()
    for end in (client, server):
        end.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return SimpleNamespace(client=client, server=server), (client.fileno(), server.fileno())


def scenario(run: Run) -> report.Section:
    """The table of the steps."""
    rounds = max(3, run.effort.cpu_rounds)
    numbers = itertools.count()
    pages = ((_BROWSER % (number, 1)) for number in numbers)
    others = ((_BROWSER % (number, number)) for number in numbers)
    ends, connection = _connect()
    try:
        steps = {
            "the kernel: one request and one answer over loopback, read and written on both sides": _kernel(connection),
            "head, 1 field, known": _parsing(itertools.repeat(_PLAIN)),
            "head, 13 fields, known": _parsing(itertools.repeat(_BROWSER % (1, 1))),
            "head, 13 fields, another path each time": _parsing(pages),
            "head, 13 fields, another path and cookie each time": _parsing(others),
            "environ, application, answer; the head is known": _answering(_PLAIN, anew=False),
            "environ, application, answer; 13 fields, never seen": _answering(_BROWSER % (1, 1), anew=True),
            "scoreboard: busy, idle, counted": _scoreboard(),
            "access log: one line, combined; the fields are known": _log("combined"),
            "access log: one line, combined; 13 fields, never seen": _log("combined", anew=True),
            "access log: one line, json; the fields are known": _log("json"),
        }
        found = {name: _measure(step, rounds) for name, step in steps.items()}
    finally:
        ends.client.close()
        ends.server.close()
    rows = [(name, report.spread(values, 1)) for name, values in found.items()]
    text = (
        "### Where each microsecond goes\n\nThe steps of a worker in one process, nothing else on it; µs of processor"
        f" time.\n\n{report.table(('step', 'µs'), rows)}"
    )
    return report.Section(text, found)
