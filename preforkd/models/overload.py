"""Which requests have waited so long that a quick refusal is worth more than a late answer (``timeouts.queue``).

Beyond the capacity of a pool every request waits longer than the one before, until all answers come after their clients
have given up: the workers are busy, and nobody is served. A request that waited longer than the limit before a worker
took it is therefore answered 503 without the application (RFC 9110, 15.6.4), which costs some 50 us instead of a
request's time, and the queue stays as long as the limit.

**How long did it wait?** The kernel knows for TCP: ``tcpi_last_data_recv`` (linux/tcp.h) counts the milliseconds since
the last bytes arrived on a connection, which are those of the head if it is complete; accept queue and socket buffer
alike. A connection of the unix kind has no such clock. What is being accepted is dated by counting (`Arrivals`), and
what becomes readable on a kept connection by a look at the poll set now and then; both err on the client's side.

**When is it asked?** Where nothing waits there is nothing to ask, and a question costs 4 us. A poll set that is empty
proves that nothing waits for this worker: it is *calm*. But to see it empty before the wait takes a system call of its
own, and a clock around the wait costs every turn. So calm is looked for only when it is in doubt: a request begins, and
the last calm is older than an eighth of the limit. Then the set is asked without waiting first, until it is found
empty once (at the next turn, in a pool that is not overloaded). An eighth, because unix sockets have to be watched for
a while before anything is known about them. For all other requests this is one comparison.

**Since when?** Nobody has waited for the pool longer than the pool serves: what came before, while the application was
loaded, is served (and given as much time as everybody). The pool and not the worker, or workers that are recycled more
often than the limit would never refuse anything. Nor has a request waited for us while its own client's request before
it was served.
"""

from __future__ import annotations

import math
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from preforkd import unixsocket
from preforkd.models.connection import Connection

#: The last calm must be older than this part of the limit before anything is looked at.
_DOUBT: Final = 1 / 8
#: How often unix sockets are looked at: as a part of the limit, and at most (seconds). A look costs some 50 us.
_LOOK: Final = 1 / 20
_LOOK_LEAST: Final = 0.05
#: Longest Retry-After, seconds: it is a guess, and a guess for hours is none.
_RETRY_MOST: Final = 300

# linux/tcp.h: eight bytes of flags, then 32-bit values; the twelfth is tcpi_last_data_recv, in milliseconds.
_LAST_DATA_RECV: Final = struct.Struct("=52xI")


def overdue(silent: float, calm: float, limit: float) -> float | None:
    """How long a request has waited for a worker if that is too long, else None. Pure; all in seconds.

    Args:
        silent: Since the last bytes arrived on its connection.
        calm: Since the worker last knew that nothing waited, or since the pool serves. Nothing waits longer.
        limit: ``timeouts.queue``.
    """
    waited = min(silent, calm)
    return waited if waited > limit else None


def retry_after(limit: float, chance: float) -> int:
    """The Retry-After of a refusal, whole seconds (RFC 9110, 10.2.3): between once and twice the limit.

    Sooner, and the queue is as long as before; all at once, and it is longer. ``chance`` is a random number
    from 0 to 1.
    """
    least = min(max(1, math.ceil(limit)), _RETRY_MOST // 2)
    return least + round(chance * least)


class Arrivals:
    """Since when the one waits that leaves a queue next, worked out from counts alone. Pure.

    At each look: so many have left the queue, so many are in it, hence so many had come by then. Who leaves as number n
    was there at the first look that had seen n come, and has waited at least since. Only looks that somebody in the
    queue was seen by are kept, so there are never more of them than places in the queue.
    """

    __slots__ = ("_left", "_looks")

    def __init__(self) -> None:
        self._looks: deque[tuple[int, float]] = deque()
        self._left = 0

    def forget(self) -> None:
        """The queue is empty, or nothing is known about it any more."""
        self._looks.clear()

    def look(self, left: int, waiting: int, now: float) -> None:
        """``left``: how many have left so far; ``waiting``: how many are in the queue."""
        self.waited(left, now)
        came = left + waiting
        if waiting and (not self._looks or came > self._looks[-1][0]):
            self._looks.append((came, now))

    def waited(self, left: int, now: float) -> float:
        """How long the next one to leave has waited at least, seconds; 0 if that is not known."""
        if left < self._left:
            self.forget()  # the count of a worker that ended is gone
        self._left = left
        looks = self._looks
        while looks and looks[0][0] <= left:
            looks.popleft()
        return now - looks[0][1] if looks else 0.0


class Gate:
    """The measuring part, one a worker: the model asks it for each request after `doubt_at`, and polls through it while
    it is `doubtful`. Main thread only."""

    def __init__(
        self,
        limit: float,
        since: float,
        epoll: select.epoll,
        listeners: Sequence[socket.socket],
        taken: Callable[[], int],
    ) -> None:
        """
        Args:
            limit: ``timeouts.queue``, seconds; 0: nothing is refused.
            since: When the pool began to serve (monotonic); infinite: nothing is refused.
            epoll: The worker's poll set.
            listeners: Those of the pool.
            taken: How many connections the pool's workers have taken from unix listeners so far.
        """
        self._limit = limit
        self._epoll = epoll
        self._unix_listeners = [listener for listener in listeners if listener.family == socket.AF_UNIX]
        self._taken = taken
        self._arrivals = Arrivals()
        #: Kept unix connections that were readable at a look -> the first such look.
        self._readable: dict[Connection, float] = {}
        self._every = max(_LOOK_LEAST, limit * _LOOK)
        self._look_at = -math.inf
        self._calm_at = since
        #: Whether the poll set is to be asked by `poll`.
        self.doubtful = False
        #: A request that begins after this moment (monotonic) is to be shown to `waited_too_long`.
        self.doubt_at = since + limit * _DOUBT if limit else math.inf

    def poll(
        self, patience: float | None, most: int, accepting: bool, now: Callable[[], float]
    ) -> list[tuple[int, int]]:
        """Like `select.epoll.poll`, but notes whether anybody was waiting.

        A worker that does not accept for lack of descriptors knows nothing about those who wait (``accepting``). The
        next request of a client that sends several at once (``patience`` is 0) has nobody to wait for but itself.
        """
        events = self._epoll.poll(0, most)
        if not events:
            if accepting:
                self._calm(now())
            if patience != 0:
                events = self._epoll.poll(patience, most)
        return events

    def _calm(self, now: float) -> None:
        self._calm_at = now
        self.doubt_at = now + self._limit * _DOUBT
        self.doubtful = False
        self._arrivals.forget()
        self._readable.clear()

    def waited_too_long(
        self, connection: Connection, connections: Mapping[int, Connection], accepted: bool, now: float
    ) -> float | None:
        """How long the request that was just read from ``connection`` has waited (seconds) if it is to be refused.

        Args:
            connection: Where it came from.
            connections: All that the worker holds, by descriptor.
            accepted: It was taken from a listener in this very moment.
            now: Monotonic seconds.
        """
        self.doubtful = True
        calm = now - max(self._calm_at, connection.served)
        if connection.peer.client:
            return overdue(_silent(connection.fd), calm, self._limit) if calm > self._limit else None
        # What is known of it, before a look finds that it is in no queue any more.
        if accepted:
            silent = self._arrivals.waited(self._taken() - 1, now)  # the count includes it already
        else:
            silent = now - self._readable.pop(connection, now)
        if now >= self._look_at:
            self._look_at = now + self._every
            self._look(connections, now)
        return overdue(silent, calm, self._limit)

    def _look(self, connections: Mapping[int, Connection], now: float) -> None:
        """Who waits now? The set reports all that is readable, and will again (it is level-triggered)."""
        waiting = sum(unixsocket.queue(listener) or 0 for listener in self._unix_listeners)
        self._arrivals.look(self._taken(), waiting, now)
        before = self._readable
        found = [connections.get(fd) for fd, _ in self._epoll.poll(0, len(connections) + 16)]
        self._readable = {
            connection: before.get(connection, now)
            for connection in found
            if connection is not None and not connection.peer.client and connection.outbox is None
        }


def _silent(fd: int) -> float:
    """Seconds since the last data arrived on a TCP connection; 0 if the kernel does not say."""
    # With family, type and protocol given, a socket object costs one system call and not four. tcp(7) knows no other.
    borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=fd)
    try:
        information = borrowed.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _LAST_DATA_RECV.size)
    except OSError:
        return 0.0
    finally:
        borrowed.detach()
    return int(_LAST_DATA_RECV.unpack(information)[0]) / 1000
