"""What belongs to one generation: its configuration, listeners, scoreboards, and whom its workers become."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import dataclass, replace

from preforkd.config import Config, Listen, Pool
from preforkd.listeners import Listener
from preforkd.logs import Logs
from preforkd.model import PoolGoal
from preforkd.privileges import Identity
from preforkd.scoreboard import Scoreboard


@dataclass(frozen=True, slots=True)
class PoolWorld:
    """One pool of one generation."""

    pool: Pool
    goal: PoolGoal
    listeners: tuple[Listener, ...]
    board: Scoreboard
    identity: Identity

    @property
    def sockets(self) -> tuple[socket.socket, ...]:
        return tuple(sock for listener in self.listeners for sock in listener.sockets)

    @property
    def listens(self) -> tuple[Listen, ...]:
        """What the configuration says of each of `sockets`: a name, or systemd, may stand for several."""
        pairs = zip(self.pool.listen, self.listeners, strict=True)
        return tuple(listen for listen, listener in pairs for _ in listener.sockets)


@dataclass(frozen=True, slots=True)
class World:
    """One generation, from its preparation until its last worker has gone."""

    number: int
    config: Config
    listeners: Mapping[str, Listener]
    logs: Logs
    pools: Mapping[str, PoolWorld]


def make_world(
    number: int,
    config: Config,
    identities: Mapping[str, Identity],
    listeners: Mapping[str, Listener],
    logs: Logs,
) -> World:
    """Put a generation together. ``listeners`` by their text, as `preforkd.listeners` opened them."""
    pools = {}
    for name, pool in config.pools.items():
        goal = pool_goal(pool)
        pools[name] = PoolWorld(
            pool=inherited(pool, config),
            goal=goal,
            listeners=tuple(listeners[listen.text] for listen in pool.listen),
            board=Scoreboard(goal.capacity),
            identity=identities[name],
        )
    return World(number, config, listeners, logs, pools)


def inherited(pool: Pool, config: Config) -> Pool:
    """A pool with what it leaves to the whole service filled in."""
    return pool if pool.umask is not None else replace(pool, umask=config.umask)


def pool_goal(pool: Pool) -> PoolGoal:
    """The numbers of a pool that decisions need."""
    return PoolGoal(
        name=pool.name,
        start=pool.workers.start,
        min_spare=pool.workers.min_spare,
        max_spare=max(pool.workers.max_spare, pool.workers.min_spare),
        max=pool.workers.max,
        start_timeout=pool.timeouts.start,
        graceful=pool.timeouts.graceful,
        probation=pool.timeouts.probation,
        preload=pool.preload != "never",
    )
