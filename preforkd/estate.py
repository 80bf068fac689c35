"""What the master leaves to a template and its workers: values and inherited descriptors."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from preforkd.config import Listen, Pool
from preforkd.logs import Logs
from preforkd.privileges import Identity
from preforkd.scoreboard import Scoreboard
from preforkd.spawn import Channel

if TYPE_CHECKING:
    from preforkd.tls import ServerTls


@dataclass(frozen=True, slots=True)
class Estate:
    """Made by the master before it forks a template; everything in it survives the forks."""

    pool: Pool
    generation: int
    config_path: str
    #: Whom to become, for good.
    identity: Identity
    #: The environment for the application: the master's without what belongs to systemd and us, and the pool's.
    environment: Mapping[str, str]
    listeners: tuple[socket.socket, ...]
    #: What the configuration says of each listener, in the same order.
    listens: tuple[Listen, ...]
    board: Scoreboard
    logs: Logs
    #: Counts reopenings of the log files, so that the master knows who still writes into old ones.
    log_epoch: int
    #: Read end of the pipe whose write end only the master has: end of file means that the master is gone.
    lifeline: int
    #: eventfd(2) that wakes the master.
    bell: int
    #: The pool's hand-over pair for kept connections (send, receive).
    handover: tuple[socket.socket, socket.socket] | None
    #: The template's end of its channel to the master.
    channel: Channel
    master_pid: int
    #: What the package on disk looked like when the master started.
    stamp: str
    #: False: the template loads nothing, each worker loads for itself.
    preload: bool
    #: What TLS is spoken with, by `Listen.text`; filled in by the template before it gives root up.
    tls: Mapping[str, ServerTls] = field(default_factory=dict)

    def descriptors(self) -> set[int]:
        """What a template must keep over the fork."""
        kept = {self.lifeline, self.bell, self.channel.fileno(), *self.logs.descriptors()}
        kept.update(listener.fileno() for listener in self.listeners)
        if self.handover is not None:
            kept.update(end.fileno() for end in self.handover)
        return kept

    def worker_descriptors(self) -> set[int]:
        """What a worker keeps of it: all but the template's channel, which must end when the template does."""
        return self.descriptors() - {self.channel.fileno()}


def master_gone(master_pid: int) -> bool:
    """Is the process that had us as a child no longer there? For a direct child of the master only."""
    return os.getppid() != master_pid


#: The life of a template, given to the master by whoever starts it, so that master and worker never meet in an import.
TemplateMain = Callable[[Estate], int]
