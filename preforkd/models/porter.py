"""The porter: a worker's second thread, for the connections that are parked beside a request that takes long.

Nobody knows beforehand that a request will be long. The porter sleeps until the worker turns busy, looks again after
20 ms, and if the same request still runs it watches the parked connections in its stead: each that becomes readable is
given to an idle sibling, unread, through the pool's hand-over pair. It never runs a line of the application. A signal
instead of a thread would not do: a database driver that waits in C runs no signal handler written in Python.

* **It costs nothing when nothing happens.** Idle, it waits in one read; beside quick requests it wakes up at most 50
  times a second; beside a long one it sleeps until a parked connection is readable. Where none of the siblings is idle
  it looks again every 20 ms.
* **It passes on wake-ups, too.** The kernel wakes one worker for a new client. If that one finds a long request first,
  nobody else knows of the client; the porter takes it and sends it through the hand-over pair, which wakes a sibling.
* **It sends on** what clients have not taken yet of their answers (`outbox`), also of the one whose request runs: the
  application may have more to do when it has nothing more to say.
* **It has a poll object of its own.** The worker's epoll set is left alone: a thread that waited in it would swallow
  the wake-ups of listeners that were meant for a sibling (EPOLLEXCLUSIVE).
* **It needs the GIL** for some microseconds a connection, and a request in pure Python gives it up only when asked
  for, after `sys.getswitchinterval` (5 ms), for each system call anew. While the porter has something to do, the
  interval is shorter. A C extension that keeps the GIL for seconds keeps the porter, too.

**Who may touch what.** Everything of the loop belongs to the main thread, but while the request runs that the porter
has seen running, and under the lock, the parked connections are the porter's. The main thread never waits for it unless
it is at work in that very moment: it raises `serial` first and looks at `engaged` then; the porter sets `engaged` first
and looks at `serial` then. Both cannot miss each other (Dekker's algorithm; the GIL orders the four accesses).
"""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from preforkd.models.connection import Connection

#: How long a request must have been running before others are helped past it, and how often is looked again where
#: nobody can help (seconds).
_PATIENCE: Final = 0.02
#: `sys.setswitchinterval` while the porter is at work.
_SWITCH: Final = 0.0002

_GONE: Final = select.POLLRDHUP | select.POLLHUP | select.POLLERR | select.POLLNVAL


class Burden(Protocol):
    """What the porter carries for: the model's loop. Called by the porter's thread, under its lock."""

    def movable(self) -> Sequence[Connection]:
        """The parked connections that a sibling could have."""
        ...

    def pass_on(self, connection: Connection) -> bool:
        """Gives one away; False if that cannot be done now."""
        ...

    def relay(self) -> bool:
        """Wakes siblings for what only this worker was woken for; True if it has to be called again, later."""
        ...

    def readers(self) -> Sequence[Connection]:
        """The connections with an outbox: nobody else touches it while the request runs."""
        ...

    def send_on(self, connection: Connection) -> bool:
        """Sends what goes of an outbox; False if the main thread has to see to it, later."""
        ...

    def can_pass_on(self, ready: int) -> bool:
        """Is a sibling idle? ``ready`` connections wait; if nobody is, the pool shall know it."""
        ...

    def goes_on(self) -> None:
        """The request has been running for a while."""
        ...

    def orphaned(self) -> None:
        """The master died while the request runs."""
        ...

    def failed(self, traceback: str) -> None:
        """The porter gives up for this request; called without the lock."""
        ...


class Porter:
    """The thread and what it shares with the main thread, which calls `begin` and `end` around each request."""

    def __init__(self, burden: Burden, lifeline: int | None) -> None:
        """``lifeline``: descriptor that is at its end when the master is gone."""
        self._burden = burden
        self._lifeline = lifeline
        #: Odd while a request runs.
        self._serial = 0
        self._asleep = True
        self._engaged = False
        self._lock = threading.Lock()
        #: Something may be left that only this worker was woken for.
        self._relaying = False
        self._bell = os.eventfd(0, os.EFD_CLOEXEC)
        self._over = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)

    def start(self) -> None:
        """Starts the thread; it ends with the process."""
        threading.Thread(target=self._run, name="porter", daemon=True).start()

    def descriptors(self) -> list[int]:
        """What a forked child has no business with."""
        return [self._bell, self._over]

    # -- the main thread ----------------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A request begins."""
        self._serial += 1
        if self._asleep:
            self._asleep = False
            os.eventfd_write(self._bell, 1)

    def end(self) -> bool:
        """It is over: from now on the parked connections are the main thread's again. True if the porter was at it."""
        self._serial += 1
        if not self._engaged:
            return False
        os.eventfd_write(self._over, 1)
        with self._lock:
            pass  # whatever it was at is finished
        return True

    def look_again(self) -> None:
        """The answer to the request that runs is complete, a rest of it in the outbox, and the application goes on."""
        if self._engaged:
            os.eventfd_write(self._over, 1)

    # -- the porter ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        # Signals are for the main thread, whose blocking calls they shall interrupt.
        signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        over = select.poll()
        over.register(self._over, select.POLLIN)
        while True:
            os.eventfd_read(self._bell)
            while self._serial % 2 or not self._lies_down():
                serial = self._serial
                if over.poll(_PATIENCE * 1000):
                    # Of a request before, whose end found us at work in our very last moment.
                    self._hush()
                elif serial % 2 and serial == self._serial:
                    try:
                        self._stand_in(serial, over)
                    except Exception:
                        self._burden.failed(traceback.format_exc())
                        while self._serial == serial:
                            over.poll(_PATIENCE * 1000)  # the next request is another chance

    def _lies_down(self) -> bool:
        """No request runs: the next one shall ring. False if it began in this very moment, and did not."""
        self._asleep = True
        if self._serial % 2 and self._asleep:
            self._asleep = False
            return False
        return True

    def _stand_in(self, serial: int, over: select.poll) -> None:
        """Watches the parked connections until the request is over."""
        before = sys.getswitchinterval()
        self._engaged = True
        try:
            sys.setswitchinterval(_SWITCH)
            ours = sys.getswitchinterval()  # kept in whole microseconds: not quite the same number
            self._watch(serial, over)
        finally:
            self._engaged = False
            if sys.getswitchinterval() == ours:
                sys.setswitchinterval(before)
            self._hush()

    def _hush(self) -> None:
        try:
            os.eventfd_read(self._over)
        except BlockingIOError:
            pass

    def _watch(self, serial: int, over: select.poll) -> None:
        poll = select.poll()
        poll.register(self._over, select.POLLIN)
        if self._lifeline is not None:
            poll.register(self._lifeline, 0)
        parked: dict[int, Connection] = {}
        #: Their next request is here already, and read.
        queued: list[Connection] = []
        readers: dict[int, Connection] = {}
        if not self._safely(serial, lambda: self._take_over(poll, parked, queued, readers)):
            return
        self._relaying = True
        while True:
            ready = [connection for connection in queued if connection.fd in parked]
            for fd, mask in poll.poll(0 if ready or self._relaying else None):
                connection = parked.get(fd)
                if connection is None:
                    if fd == self._over:
                        self._hush()
                        self._safely(serial, lambda: self._watch_readers(poll, readers))
                    elif fd in readers:
                        # One at a time: the main thread may have to wait for it.
                        self._safely(serial, lambda fd=fd: self._send_on(poll, readers, fd))  # type: ignore[misc]
                    else:
                        poll.unregister(fd)
                        self._safely(serial, self._burden.orphaned)
                elif mask & _GONE:
                    # Closed by the client: the main thread's business, later.
                    poll.unregister(fd)
                    del parked[fd]
                else:
                    ready.append(connection)
            if not self._safely(serial, lambda ready=ready: self._pass_on(poll, parked, ready)):  # type: ignore[misc]
                return
            if self._relaying or any(connection.fd in parked for connection in ready):
                over.poll(_PATIENCE * 1000)

    def _safely(self, serial: int, act: Callable[[], None]) -> bool:
        """Acts on what is the main thread's, if the request still runs; else false."""
        with self._lock:
            if self._serial != serial:
                return False
            act()
            return True

    def _take_over(
        self,
        poll: select.poll,
        parked: dict[int, Connection],
        queued: list[Connection],
        readers: dict[int, Connection],
    ) -> None:
        self._burden.goes_on()
        self._watch_readers(poll, readers)
        for connection in self._burden.movable():
            parked[connection.fd] = connection
            if connection.queued:
                queued.append(connection)
            else:
                poll.register(connection.fd, select.POLLIN | select.POLLRDHUP)

    def _watch_readers(self, poll: select.poll, readers: dict[int, Connection]) -> None:
        for connection in self._burden.readers():
            readers[connection.fd] = connection
            poll.register(connection.fd, select.POLLOUT)

    def _send_on(self, poll: select.poll, readers: dict[int, Connection], fd: int) -> None:
        if not self._burden.send_on(readers[fd]):
            poll.unregister(fd)
            del readers[fd]

    def _pass_on(self, poll: select.poll, parked: dict[int, Connection], ready: list[Connection]) -> None:
        if self._relaying:
            self._relaying = self._burden.relay()
        if ready and self._burden.can_pass_on(len(ready)):
            for connection in ready:
                fd = connection.fd
                if not self._burden.pass_on(connection):
                    return
                # Closed by now; poll(2) keeps no state in the kernel, so the number alone is forgotten.
                if not connection.queued:
                    poll.unregister(fd)
                del parked[fd]
