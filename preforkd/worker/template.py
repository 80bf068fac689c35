"""The template: loads the application of one generation once, outside the master, and then only forks.

Two wishes exclude each other elsewhere: to share the loaded application's memory between workers, and to pick up new
code on a reload. Here the application is loaded once per generation in a process that serves nobody: an error in the
code is one traceback there, and a new worker is a fork away, not an import away.

Its life: give up root · load · warm up · look at what the import left behind · freeze · serve orders. It says to the
master, over its channel, one of `loaded`, `unsafe` (ends; the master starts one that loads nothing) and `failed`
(ends).

A *stem*, an intermediate that is already forked, waits for the next order, so that a worker costs one fork. It forks
the workers and ends; they become children of the master, which is a subreaper (prctl(2)), and are reaped by it.
"""

from __future__ import annotations

import contextlib
import gc
import os
import select
import signal
import socket
import sys
import time
import traceback
from dataclasses import replace
from typing import Any

import preforkd
from preforkd import handlers, models
from preforkd.errors import ExitCode, PreforkdError
from preforkd.estate import Estate, master_gone
from preforkd.spawn import Channel, ChannelClosed, Message, fork_child
from preforkd.spawn.channel import cut
from preforkd.stamp import changed_since
from preforkd.wakeup import Wakeup
from preforkd.worker import main as worker_main
from preforkd.worker.leftovers import find_leftovers, open_descriptors
from preforkd.worker.settle import become, open_tls, overhear, set_title, tag_output

#: A stem that cannot be forked is tried again after so long. Seconds.
_FORK_RETRY = 0.2


def run(estate: Estate) -> int:
    """The template's life; returns its exit code. Runs in a child of the master that kept `Estate.descriptors`."""
    # A terminal's Ctrl-C reaches the whole group; the template leaves when the master says so.
    overhear()
    os.environ.clear()
    os.environ.update(estate.environment)
    set_title(f"{estate.pool.name} template g{estate.generation} loading")
    tag_output(estate, "template")
    handler: Any = None
    seconds = 0.0
    try:
        # As root: keys are often readable to nobody else.
        estate = replace(estate, tls=open_tls(estate.pool, estate.logs.events))
        become(estate.pool, estate.identity)
        if master_gone(estate.master_pid):
            return ExitCode.ORPHANED
        refuse_mixed_versions(estate.stamp)
        # Ours is loaded here in any case, so that a birth costs no import.
        models.load(estate.pool.model)
        handlers.load(estate.pool.handler)
        if estate.preload:
            started = time.monotonic()
            before = open_descriptors()
            handler = worker_main.load_handler(estate)
            findings = find_leftovers(before)
            if findings and estate.pool.preload == "auto":
                _tell(estate, {"unsafe": findings})
                return ExitCode.LEFT
            if findings:
                estate.logs.events.warning(
                    "template_unsafe",
                    pool=estate.pool.name,
                    generation=estate.generation,
                    findings="; ".join(findings),
                    hint="preload: always forks all the same; preload: never loads in each worker",
                )
            _warm_up(estate, handler)
            # A collection in a child would touch every object and copy what is shared (facts F3: 54 MiB, 100 ms).
            gc.collect()
            gc.freeze()
            seconds = time.monotonic() - started
    except PreforkdError as error:
        _tell(estate, {"failed": cut(str(error))})
        return ExitCode.BOOT_FAILED
    except (Exception, SystemExit):
        _tell(estate, {"failed": cut(traceback.format_exc())})
        return ExitCode.BOOT_FAILED
    set_title(f"{estate.pool.name} template g{estate.generation}")
    nursery = _Nursery(estate, handler)
    # Not before: from now on it is asked to leave like anybody else, and takes that as a wish.
    _tell(estate, {"loaded": round(seconds, 3)})
    return nursery.run()


def refuse_mixed_versions(stamp: str) -> None:
    """Refuse to import our own modules from a package that has changed since the master started (facts F7).

    Raises:
        PreforkdError: with what to do.
    """
    changed = changed_since(stamp, preforkd.__version__)
    if changed is not None:
        raise PreforkdError(changed)


def _warm_up(estate: Estate, handler: Any) -> None:
    for path in estate.pool.warmup:
        status = handler.probe(path)
        say = estate.logs.events.info if status < 400 else estate.logs.events.warning
        say("template_warmup", pool=estate.pool.name, generation=estate.generation, path=path, status=status)


def _tell(estate: Estate, message: Message) -> None:
    """Say something to the master, which reads promptly; without it there is nothing left to do anyway."""
    with contextlib.suppress(ChannelClosed):
        estate.channel.send(message)


class _Nursery:
    """Serves orders: keeps a stem ready, hands orders to it, reaps it."""

    def __init__(self, estate: Estate, handler: Any) -> None:
        self._estate = estate
        self._handler = handler
        self._wakeup = Wakeup((signal.SIGTERM, signal.SIGCHLD))
        self._stem: tuple[int, Channel] | None = None
        self._waiting: list[tuple[Message, list[int]]] = []
        self._fork_at = 0.0
        self._poll = select.poll()
        for descriptor in (self._wakeup.fileno(), estate.lifeline, estate.channel.fileno()):
            self._poll.register(descriptor, select.POLLIN)

    def run(self) -> int:
        while True:
            self._fork_stem()
            self._pass_on()
            timeout = None if self._stem else max(0.0, self._fork_at - time.monotonic()) * 1000
            ready = {descriptor for descriptor, _ in self._poll.poll(timeout)}
            if self._estate.lifeline in ready:
                return ExitCode.ORPHANED
            if self._wakeup.fileno() in ready:
                signals = self._wakeup.drain()
                if signal.SIGTERM in signals:
                    return ExitCode.LEFT
                self._reap()
            if self._estate.channel.fileno() in ready:
                try:
                    self._receive()
                except ChannelClosed:
                    return ExitCode.ORPHANED

    def _receive(self) -> None:
        while (received := self._estate.channel.receive()) is not None:
            message, descriptors = received
            if "order" in message:
                self._waiting.append((message, descriptors))
            elif "reopen" in message:
                self._estate.logs.adopt(descriptors)
                # The stem still has the old files; its workers would be told at once, but why begin so.
                self._end_stem()

    def _fork_stem(self) -> None:
        if self._stem is not None or time.monotonic() < self._fork_at:
            return
        near, far = Channel.pair()
        keep = self._estate.worker_descriptors() | {far.fileno()}
        try:
            pid = fork_child(lambda: _Stem(self._estate, self._handler, far).run(), keep)
        except OSError as error:
            near.close()
            far.close()
            self._fork_at = time.monotonic() + _FORK_RETRY
            self._refuse(f"cannot fork: {error.strerror}")
            return
        far.close()
        self._stem = (pid, near)

    def _pass_on(self) -> None:
        while self._waiting and self._stem is not None:
            message, descriptors = self._waiting.pop(0)
            stem, channel = self._stem
            # Said here, because a stem that is stopped (SIGSTOP) before it reads its order could not be found later.
            for descriptor in descriptors:
                _say(descriptor, {"stem": stem})
            try:
                channel.send(message, descriptors)
            except ChannelClosed:
                # It was killed while it waited; the next one takes the order.
                self._waiting.insert(0, (message, descriptors))
                self._drop_stem()
                self._fork_stem()
                continue
            for descriptor in descriptors:
                os.close(descriptor)
            # It has its order; what it becomes is known by SIGCHLD. The next order finds a new one.
            self._drop_stem()
            self._fork_stem()

    def _drop_stem(self) -> None:
        if self._stem is not None:
            self._stem[1].close()
            self._stem = None

    def _end_stem(self) -> None:
        """An idle stem leaves at the end of file of its channel."""
        self._drop_stem()

    def _refuse(self, why: str) -> None:
        """A shortage: say so on the birth channels instead of letting the orders wait."""
        for message, descriptors in self._waiting:
            for _item, descriptor in zip(message["order"], descriptors, strict=False):
                _say(descriptor, {"refused": why})
            for descriptor in descriptors:
                os.close(descriptor)
        self._waiting.clear()

    def _reap(self) -> None:
        reaped = False
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                break
            if pid == 0:
                break
            reaped = True
            if self._stem is not None and self._stem[0] == pid:
                self._drop_stem()
        if reaped:
            # Its workers are the master's children now. Neither that nor a stop before it raises SIGCHLD there.
            _tell(self._estate, {"done": True})


def _say(descriptor: int, message: Message) -> None:
    channel = Channel(socket.socket(fileno=os.dup(descriptor)))
    try:
        with contextlib.suppress(ChannelClosed):
            channel.send(message)
    finally:
        channel.close()


class _Stem:
    """An intermediate that waits for one order, forks its workers, and ends."""

    def __init__(self, estate: Estate, handler: Any, channel: Channel) -> None:
        self._estate = estate
        self._handler = handler
        self._channel = channel

    def run(self) -> int:
        overhear()
        set_title(f"{self._estate.pool.name} stem g{self._estate.generation}")
        poll = select.poll()
        poll.register(self._channel.fileno(), select.POLLIN)
        poll.register(self._estate.lifeline, select.POLLIN)
        ready = {descriptor for descriptor, _ in poll.poll()}
        if self._estate.lifeline in ready:
            return ExitCode.ORPHANED
        try:
            received = self._channel.receive()
        except ChannelClosed:
            return ExitCode.LEFT
        if received is None:
            return ExitCode.LEFT
        self._channel.close()
        self._fork_all(*received)
        return ExitCode.LEFT

    def _fork_all(self, message: Message, descriptors: list[int]) -> None:
        births = [
            (item, Channel(socket.socket(fileno=fd))) for item, fd in zip(message["order"], descriptors, strict=True)
        ]
        stem = os.getpid()
        for item, birth in births:
            keep = self._estate.worker_descriptors() | {birth.fileno()}

            def live(item: Message = item, birth: Channel = birth) -> int:
                return worker_main.run(self._estate, self._handler, item, birth, stem)

            try:
                fork_child(live, keep)
            except OSError as error:
                with contextlib.suppress(ChannelClosed):
                    birth.send({"refused": f"cannot fork: {error.strerror}"})
        sys.stderr.flush()
