"""Loads an application as a template would, to see whether it loads; serves nobody. For `preforkd check`."""

from __future__ import annotations

import contextlib
import os
import tempfile
import traceback

from preforkd import handlers
from preforkd.config import Pool
from preforkd.errors import ExitCode, PreforkdError
from preforkd.privileges import Identity
from preforkd.spawn import Channel, ChannelClosed
from preforkd.spawn.channel import cut
from preforkd.worker.settle import become


def load(pool: Pool, identity: Identity, config_path: str, channel: Channel) -> int:
    """The life of a process that tries an application out; returns its exit code and says `failed` with the reason.

    What the application prints goes where this process prints. The health check and `warmup:` are tried as well.
    """
    os.environ.update(pool.environment)
    try:
        become(pool, identity)
        _try_spool(pool)
        handler = handlers.load(pool.handler).load(pool, config_path=config_path)
        for path in pool.warmup:
            handler.probe(path)
        if pool.health and (status := handler.probe(pool.health)) >= 400:
            raise PreforkdError(f"health: {pool.health} answered {status}")
    except PreforkdError as error:
        return _fail(channel, str(error))
    except (Exception, SystemExit):
        return _fail(channel, traceback.format_exc())
    return ExitCode.OK


def _try_spool(pool: Pool) -> None:
    """Whether uploads can be stored. A worker goes on without (it streams them), so this is where it is noticed early.

    Raises:
        PreforkdError: They cannot.
    """
    if not pool.body.buffer:
        return
    try:
        tempfile.TemporaryFile(prefix="preforkd-", dir=pool.body.directory).close()
    except OSError as error:
        where = f" in {pool.body.directory}" if pool.body.directory else ""
        raise PreforkdError(
            f"body.directory: no files can be made{where}: {error.strerror}; name a folder that the workers' user may "
            "write to"
        ) from None


def _fail(channel: Channel, text: str) -> int:
    with contextlib.suppress(ChannelClosed):
        channel.send({"failed": cut(text)})
    return ExitCode.BOOT_FAILED
