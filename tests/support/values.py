"""Configurations and what a master leaves to its children, without a master."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from preforkd import privileges
from preforkd.config import Config, read_text
from preforkd.estate import Estate
from preforkd.logs import open_logs
from preforkd.scoreboard import Scoreboard
from preforkd.spawn import Channel
from preforkd.stamp import build_stamp

#: Answers with the version that the test gave it.
HELLO = """
def application(environ, start_response):
    start_response("200 OK", [("Content-Type", "text/plain")])
    return [b"hello"]
"""


def make_config(folder: Path, pool: Mapping[str, Any] | None = None, **top: Any) -> Config:
    """A configuration with the pool ``web``; errors go to the file ``log`` in ``folder``."""
    web = {"listen": "127.0.0.1:0", "app": "hello", "directory": str(folder), **(pool or {})}
    settings = {"log": {"level": "debug", "errors": str(folder / "log")}, "pools": {"web": web}, **top}
    return read_text(yaml.safe_dump(settings), str(folder / "preforkd.yaml"))


def make_estate(
    config: Config, *, board: Scoreboard | None = None, listeners: tuple[socket.socket, ...] = ()
) -> tuple[Estate, Channel, int]:
    """An estate as a master would leave it; the master's end of its channel, and the lifeline's other end."""
    pool = config.pools["web"]
    lifeline, hold = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    near, far = Channel.pair()
    estate = Estate(
        pool=pool,
        generation=1,
        config_path=config.path,
        identity=privileges.resolve(None, None),
        environment=dict(os.environ),
        listeners=listeners,
        listens=tuple(pool.listen[0] for _ in listeners),
        board=board if board is not None else Scoreboard(8),
        logs=open_logs(config.log),
        log_epoch=0,
        lifeline=lifeline,
        bell=os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK),
        handover=None,
        channel=far,
        master_pid=os.getppid(),
        stamp=build_stamp(),
        preload=True,
    )
    return estate, near, hold
