"""What a worker serves. A handler is one module here, or any class named ``module:attribute`` in the file.

A handler is loaded once per generation, in the template or in the worker, after root is given up; then each worker
opens it and a model calls it for every request. HTTP handlers get an `Exchange`; they know neither sockets nor
processes.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Protocol

from preforkd.errors import LoadError

if TYPE_CHECKING:
    from preforkd.config import Pool
    from preforkd.http import Exchange

#: Name in the file -> module:class. A new handler adds its line here, and one word in the declaration of the setting.
BUILT_IN = {"wsgi": "preforkd.handlers.wsgi:WSGI"}


class Log(Protocol):
    """Where a handler reports events; `preforkd.logs.EventLog` is one."""

    def info(self, event: str, /, **fields: object) -> None: ...
    def warning(self, event: str, /, **fields: object) -> None: ...
    def error(self, event: str, /, **fields: object) -> None: ...


class HandlerContext(Protocol):
    """What a handler may know of the worker it runs in. Every `WorkerContext` of a model is one."""

    @property
    def name(self) -> str:
        """``web/3``: pool and slot."""
        ...

    @property
    def generation(self) -> int: ...

    @property
    def interactive(self) -> bool:
        """True where somebody sits at a terminal, whose Ctrl-C is meant: `preforkd run --single`."""
        ...

    @property
    def log(self) -> Log: ...


class Handler(Protocol):
    """What serves requests. `open` and `close` run in the worker, `load` and `probe` also in the template."""

    @classmethod
    def load(cls, pool: Pool, *, config_path: str = "") -> Handler:
        """Imports the application. ``config_path`` is the main configuration file, for those who want to know.

        Raises:
            LoadError: It cannot be loaded; the text tells the application's developer why.
        """
        ...

    def open(self, ctx: HandlerContext) -> None:
        """The worker is about to serve; called once in it, before the first request."""
        ...

    def handle(self, exchange: Exchange) -> None:
        """Answers one request, whose head is complete. Does not raise: what goes wrong is answered and logged."""
        ...

    def probe(self, path: str) -> int:
        """Runs one GET of ``path`` in this process, without a socket; returns the status, 500 if it failed."""
        ...

    def close(self) -> None:
        """The worker has served its last request."""
        ...


def load(name: str) -> type[Handler]:
    """The handler class for the word in the file: a built-in one, or ``module:attribute``.

    Raises:
        LoadError: There is no such handler.
    """
    target = BUILT_IN.get(name, name)
    module, _, attribute = target.partition(":")
    if not attribute:
        raise LoadError(
            f"handler: there is no handler {name!r}; known are {', '.join(sorted(BUILT_IN))}, or module:attribute"
        )
    try:
        found: type[Handler] = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise LoadError(f"handler: cannot load {target}: {error}") from error
    return found
