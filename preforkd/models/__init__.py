"""How a worker serves. A model is one module here, or any object named ``module:attribute`` in the file.

A model owns the worker's turn: it waits for what its context gives it to watch, accepts, reads, and hands each request
to the handler; it returns when the context says that the worker leaves and all that it held is finished.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

from preforkd.errors import ExitCode, LoadError

if TYPE_CHECKING:
    import socket

    from preforkd.config import Listen, Pool
    from preforkd.http import AccessRecord, Exchange
    from preforkd.tls import ServerTls

#: Name in the file -> module:attribute. A new model adds its line here, and one word in the declaration of the setting.
BUILT_IN = {"process": "preforkd.models.process:Process"}


class Log(Protocol):
    """Where a model reports events; `preforkd.logs.EventLog` is one."""

    def debug(self, event: str, /, **fields: object) -> None: ...
    def info(self, event: str, /, **fields: object) -> None: ...
    def warning(self, event: str, /, **fields: object) -> None: ...
    def error(self, event: str, /, **fields: object) -> None: ...


class Access(Protocol):
    """Where answered requests are written down; `preforkd.logs.AccessLog` is one."""

    def log(self, record: AccessRecord, /) -> None: ...


class WorkerContext(Protocol):
    """What a model may use of the worker it runs in; made by `preforkd.worker`."""

    @property
    def pool(self) -> Pool: ...

    @property
    def slot(self) -> int: ...

    @property
    def generation(self) -> int: ...

    @property
    def name(self) -> str:
        """``web/3``: pool and slot."""
        ...

    @property
    def listeners(self) -> Sequence[socket.socket]:
        """Non-blocking; shared with the siblings, who would see a change of O_NONBLOCK. The model closes them."""
        ...

    @property
    def listens(self) -> Sequence[Listen]:
        """What the configuration says of each listener, in the same order."""
        ...

    @property
    def tls(self) -> Mapping[str, ServerTls]:
        """What TLS is spoken with on the listeners whose `Listen.tls` says so, by `Listen.text`."""
        ...

    @property
    def handover(self) -> tuple[socket.socket, socket.socket] | None:
        """Sending and receiving end of the hand-over pair (SOCK_SEQPACKET, non-blocking) of the whole pool."""
        ...

    @property
    def access(self) -> Access | None: ...

    @property
    def log(self) -> Log: ...

    @property
    def interactive(self) -> bool:
        """True where somebody sits at a terminal, whose Ctrl-C is meant: `preforkd run --single`."""
        ...

    @property
    def leaving(self) -> bool:
        """True once this worker takes no new work; set by a callback of `watch`, or by `request_finished`."""
        ...

    @property
    def stopping(self) -> bool:
        """True if the whole service stops, so that no sibling takes connections over."""
        ...

    def watch(self) -> Mapping[int, Callable[[], None]]:
        """Descriptors to poll for reading beside the model's own, and what to call when one is readable.

        Asked again after each such call: a descriptor that is missing then is polled no longer.
        """
        ...

    def holds(self, connections: int) -> None:
        """Tells how many connections this worker has."""
        ...

    def keeps_waiting(self, ready: int) -> None:
        """Tells how many connections have something to read and wait for what the worker does first."""
        ...

    def surplus(self, connections: int, slow: bool = False) -> int:
        """How many of so many connections siblings should have: idle ones are there, and this worker has its share."""
        ...

    @property
    def serving_since(self) -> float:
        """When the pool began to serve (monotonic): nobody has waited for it longer. Infinite: nobody is refused."""
        ...

    def took(self) -> None:
        """Tells that a connection was taken from a unix listener."""
        ...

    def taken(self) -> int:
        """How many connections the workers of the pool that live have taken from unix listeners."""
        ...

    def request_refused(self, waited: float) -> None:
        """Tells that a request was answered 503, because it had waited so many seconds for a worker."""
        ...

    @property
    def lifeline(self) -> int | None:
        """A descriptor that is at its end when the master is gone."""
        ...

    def sibling_free(self) -> bool:
        """Is there a sibling that could take a connection at once, or nearly? Also for the porter's thread, like the
        next two."""
        ...

    def request_goes_on(self) -> None:
        """Tells that a request has been running for some time."""
        ...

    def orphaned_in_request(self) -> None:
        """Tells that the lifeline is at its end while a request runs."""
        ...

    def request_started(self, request_line: bytes, client: str) -> float:
        """Returns the time (monotonic seconds), as does `request_finished`."""
        ...

    def request_finished(self) -> float: ...

    @property
    def alarmed(self) -> bool:
        """An alarm is armed for the time limit of requests, and must be disarmed (`rests`) before a longer wait."""
        ...

    def rests(self) -> None:
        """Tells that the worker has nothing to do for a while."""
        ...

    def exit_code(self) -> ExitCode: ...


class ServedHandler(Protocol):
    """The part of a handler (`preforkd.handlers.Handler`) that models call."""

    def open(self, ctx: WorkerContext) -> None: ...

    def handle(self, exchange: Exchange) -> None: ...

    def close(self) -> None: ...


class Model(Protocol):
    """How connections become requests."""

    def serve(self, ctx: WorkerContext, handler: ServedHandler) -> ExitCode:
        """Serves until the context says that the worker leaves; runs in the worker's main thread.

        Returns:
            What the context says when everything held is finished.
        """
        ...


def load(name: str) -> Model:
    """The model for the word in the file: a built-in one, or ``module:attribute`` (a class without arguments).

    Raises:
        LoadError: There is no such model.
    """
    target = BUILT_IN.get(name, name)
    module, _, attribute = target.partition(":")
    if not attribute:
        raise LoadError(
            f"model: there is no model {name!r}; known are {', '.join(sorted(BUILT_IN))}, or module:attribute"
        )
    try:
        model: Callable[[], Model] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise LoadError(f"model: cannot load {target}: {error}") from error
    return model()
