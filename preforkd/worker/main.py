"""A worker's life: say that it is born, settle in, load what is not loaded, get ready, serve, leave by ``os._exit``.

Its channel to the master (the birth channel) says, in this order: `pid`, then `ready` or `failed`. From the master come
`serve` (a held worker may begin) and `reopen` (with the new log files).
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import signal
import sys
import time
import traceback
from typing import Any

from preforkd import handlers, models, privileges
from preforkd.errors import ExitCode, LoadError, PreforkdError
from preforkd.estate import Estate, master_gone
from preforkd.logs import TaggedStream
from preforkd.spawn import Channel, ChannelClosed, Message
from preforkd.spawn.channel import cut
from preforkd.worker.context import Context
from preforkd.worker.settle import overhear, set_title, tag_output

#: The intermediate ends right after the fork; so long a worker waits for the master to become its parent. Seconds.
_ADOPTION = 5.0


def load_handler(estate: Estate) -> Any:
    """Load the pool's application through its handler.

    Raises:
        LoadError: with the application's traceback.
    """
    try:
        handler = handlers.load(estate.pool.handler)
        return handler.load(estate.pool, config_path=estate.config_path)
    except LoadError as error:
        closed = (
            _closed_directory(estate) if "No module named" in str(error) or "there is no module" in str(error) else ""
        )
        if not closed:
            raise
        raise LoadError(f"{error}\n{closed}") from error


def _closed_directory(estate: Estate) -> str:
    """The first directory for modules that this user cannot read, as a sentence: to an import it is not there."""
    for path in sys.path:
        why = privileges.why_unreadable(path, estate.identity)
        if why is not None and not why.endswith("does not exist"):
            return why
    return ""


def run(estate: Estate, handler: Any, order: Message, birth: Channel, stem: int) -> int:
    """The whole life of a worker; returns its exit code. ``handler`` is what the template loaded, or None.

    Runs in a child of the stem that kept `Estate.worker_descriptors` and its birth channel.
    """
    # Before it is ready it holds nothing: every wish to leave is granted at once, also in the middle of an import. Said
    # before the pid is known, because a wish may follow in the same instant.
    for signum in (signal.SIGTERM, signal.SIGQUIT):
        signal.signal(signum, lambda *_: os._exit(ExitCode.LEFT))
    overhear()
    # The first act that can fail or take time: until the master knows the pid, nobody can account for this process.
    with contextlib.suppress(ChannelClosed):
        birth.send({"pid": os.getpid(), "epoch": estate.log_epoch})
    name = f"{estate.pool.name}/{order['slot']}"
    set_title(f"{name} g{estate.generation} starting")
    tag_output(estate, name)
    if not _await_adoption(estate, stem):
        return ExitCode.ORPHANED
    try:
        _reseed()
        if handler is None:
            from preforkd.worker.template import refuse_mixed_versions

            refuse_mixed_versions(estate.stamp)
            handler = load_handler(estate)
        if order["hold"] and estate.pool.health:
            status = handler.probe(estate.pool.health)
            if status >= 400:
                raise LoadError(f"health: {estate.pool.health} answered {status}")
        model = models.load(estate.pool.model)
        context = Context(estate, order["slot"], birth)
    except PreforkdError as error:
        return _fail(birth, str(error))
    except (Exception, SystemExit):
        return _fail(birth, traceback.format_exc())
    try:
        birth.send({"ready": True})
        if order["hold"] and not _await_release(estate, birth, context):
            return ExitCode.ORPHANED if master_gone(estate.master_pid) else ExitCode.LEFT
        context.begin()
        code = int(model.serve(context, handler))
    except ChannelClosed:
        return ExitCode.ORPHANED
    except MemoryError:
        estate.logs.events.error("worker_sick", worker=name, text=traceback.format_exc())
        return ExitCode.SICK
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.finish() if isinstance(stream, TaggedStream) else stream.flush()
    return code


def _fail(birth: Channel, text: str) -> int:
    with contextlib.suppress(ChannelClosed):
        birth.send({"failed": cut(text)})
    return ExitCode.BOOT_FAILED


def _await_adoption(estate: Estate, stem: int) -> bool:
    """Wait until the stem has ended and the master is the parent; then a death of the master can be felt.

    The lifeline is looked at between requests. PR_SET_PDEATHSIG tells a worker that is busy or imports: KILL until it
    is ready, when it holds nothing, and SIGUSR2 from then on (`Context`).
    """
    deadline = time.monotonic() + _ADOPTION
    while (parent := os.getppid()) != estate.master_pid:
        if parent != stem or time.monotonic() > deadline:
            return False
        time.sleep(0.0005)
    privileges.set_pdeathsig(signal.SIGKILL)
    return not master_gone(estate.master_pid)


def _reseed() -> None:
    """Give this worker its own random numbers. OpenSSL and `os.urandom` see to themselves."""
    random.seed()
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()


def _await_release(estate: Estate, birth: Channel, context: Context) -> bool:
    """A canary's wait for the commit. False: it is not wanted any more."""
    set_title(f"{context.name} g{estate.generation} held")
    poll = select.poll()
    for descriptor in (birth.fileno(), estate.lifeline):
        poll.register(descriptor, select.POLLIN)
    while True:
        ready = {descriptor for descriptor, _ in poll.poll()}
        if estate.lifeline in ready:
            return False
        while (received := birth.receive()) is not None:
            message, descriptors = received
            if "reopen" in message:
                context.reopen(message, descriptors)
            if "serve" in message:
                return True
