"""`preforkd run --single`: everything in this one process, for debuggers. No master, no template, no fork.

pdb's prompt works, breakpoints hold, nobody is killed for being slow. One pool only; signals end it as they end any
program in a terminal.
"""

from __future__ import annotations

import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import setproctitle

from preforkd import handlers, models
from preforkd.config import Listen, Pool
from preforkd.errors import ExitCode, PreforkdError
from preforkd.listeners import Wanted, open_listeners
from preforkd.logs import AccessLog, EventLog, open_logs
from preforkd.master.checker import Checked
from preforkd.scoreboard import Scoreboard
from preforkd.wakeup import Wakeup
from preforkd.worker.settle import become, open_tls

if TYPE_CHECKING:
    from preforkd.tls import ServerTls


class _Alone:
    """The worker context of a process that has nobody around it."""

    def __init__(
        self,
        pool: Pool,
        listeners: Sequence[socket.socket],
        listens: Sequence[Listen],
        tls: Mapping[str, ServerTls],
        events: EventLog,
        access: AccessLog | None,
    ) -> None:
        self.pool = pool
        self.slot = 0
        self.generation = 1
        self.name = f"{pool.name}/0"
        self.listeners = listeners
        self.listens = listens
        self.tls = tls
        self.log = events
        self.access = access
        self.handover = None
        self.leaving = False
        self.alarmed = False
        self.lifeline = None
        self.interactive = True
        self.stopping = True
        #: Whoever sits in a debugger makes everybody wait: no request is too late.
        self.serving_since = math.inf
        self.board = Scoreboard(1).writer(0)
        self._wakeup = Wakeup((signal.SIGTERM, signal.SIGINT))
        self._again = False

    def watch(self) -> Mapping[int, Callable[[], None]]:
        return {self._wakeup.fileno(): self._on_signal}

    def _on_signal(self) -> None:
        if self._wakeup.drain():
            self.leaving = True

    def holds(self, connections: int) -> None:
        pass

    def keeps_waiting(self, ready: int) -> None:
        pass

    def surplus(self, connections: int, slow: bool = False) -> int:
        return 0

    def took(self) -> None:
        pass

    def taken(self) -> int:
        return 0

    def request_refused(self, waited: float) -> None:
        pass

    def sibling_free(self) -> bool:
        return False

    def request_goes_on(self) -> None:
        pass

    def orphaned_in_request(self) -> None:
        pass

    def request_started(self, request_line: bytes, client: str) -> float:
        # While the application runs, Ctrl-C is the debugger's.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        return time.monotonic()

    def request_finished(self) -> float:
        signal.signal(signal.SIGINT, self._wakeup.note)
        return time.monotonic()

    def rests(self) -> None:
        pass

    def exit_code(self) -> ExitCode:
        return ExitCode.OK


def serve(checked: Checked) -> int:
    """Serve the only pool of a configuration in this process. Returns the exit code.

    Raises:
        PreforkdError: there are several pools, or it cannot start.
    """
    config, identities = checked.config, checked.identities
    assert config is not None and identities is not None
    if len(config.pools) != 1:
        raise PreforkdError(f"--single serves one pool, and the configuration has {', '.join(config.pools)}")
    (pool,) = config.pools.values()
    logs = open_logs(config.log)
    wanted = [Wanted(listen, pool.limits.backlog) for listen in pool.listen]
    opened = open_listeners(wanted, {})
    opened.commit()
    try:
        os.environ.update(pool.environment)
        tls = open_tls(pool, logs.events)
        become(pool, identities[pool.name])
        setproctitle.setproctitle(f"preforkd: {pool.name} single")
        handler = handlers.load(pool.handler).load(pool, config_path=config.path)
        pairs = [(sock, listen) for listen in pool.listen for sock in opened.listeners[listen.text].sockets]
        sockets, listens = [sock for sock, _ in pairs], [listen for _, listen in pairs]
        addresses = [address for listener in opened.listeners.values() for address in listener.addresses]
        context = _Alone(pool, sockets, listens, tls, logs.events, logs.access)
        logs.events.info("serving", pool=pool.name, listen=",".join(addresses), pid=os.getpid(), single=True)
        return int(models.load(pool.model).serve(context, handler))
    finally:
        for listener in opened.listeners.values():
            listener.release()
        sys.stdout.flush()
