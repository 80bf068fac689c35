"""What the contract tests share: every model, every handler, every kind of listener."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from preforkd import handlers, models
from preforkd.models import ServedHandler
from tests.contract.bench import Client, Worker
from tests.contract.services import FILE, SERVICES, Gate

Start = Callable[..., Worker]


@pytest.fixture
def gate() -> Iterator[Gate]:
    gate = Gate()
    yield gate
    gate.close()


@pytest.fixture(params=sorted(models.BUILT_IN))
def model(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=sorted(handlers.BUILT_IN))
def service(request: pytest.FixtureRequest, gate: Gate, tmp_path: Path) -> ServedHandler:
    """The contract's service behind each handler."""
    file = tmp_path / "file"
    file.write_bytes(FILE)
    return SERVICES[request.param](gate, file)


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        listener.setblocking(False)
        yield listener


@pytest.fixture
def unix_listener(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
        listener.listen(128)
        listener.setblocking(False)
        yield listener


@pytest.fixture
def handover() -> Iterator[tuple[socket.socket, socket.socket]]:
    send, receive = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with send, receive:
        send.setblocking(False)
        receive.setblocking(False)
        yield send, receive


@pytest.fixture
def start(model: str, service: ServedHandler, listener: socket.socket) -> Iterator[Start]:
    """Starts workers on ``listener``, as many as are asked for; all are gone after the test."""
    with ExitStack() as stack:

        def begin(handler: ServedHandler | None = None, **options: Any) -> Worker:
            options.setdefault("listeners", [listener])
            return stack.enter_context(Worker(handler=handler or service, model=model, **options))

        yield begin


@pytest.fixture
def connect(listener: socket.socket) -> Iterator[Callable[..., Client]]:
    """Connects clients to ``listener``, or to another address."""
    with ExitStack() as stack:

        def connect(address: Any = None, **options: Any) -> Client:
            return stack.enter_context(Client(address or listener.getsockname(), **options))

        yield connect
