"""The shared scoreboard: what each worker does, readable by everybody, written without a lock.

One anonymous shared mapping per pool and generation, made by the master before the template is forked. It has no name,
needs no clean-up, and outlives the worker, so that the line about a death can name the request that died with it.

**Who writes.** Every byte has one writer: the header the master, a slot's row its worker. The master clears a slot
after it has reaped the worker, when the only other writer is certainly gone. What workers wrote is hearsay: a reader
checks.

**Tearing.** Values of eight bytes are stored through a memoryview cast to ``Q``, which is one store
(``struct.pack_into`` lets a reader see zero in between, measured). Text goes under a sequence number that is odd while
it is written; a reader tries a few times and then takes what is there, because a writer that died half-way leaves it
odd for ever.

Layout: header, 8 words · one activity byte a slot · one row of 16 words a slot · one text area of 256 bytes a slot.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass
from typing import Final

from preforkd.model import Activity

_HEADER_WORDS: Final = 8
_ARMED: Final = 0
_STOPPING: Final = 1
_SERVING: Final = 2

#: Two cache lines; the first holds what changes with every request.
_ROW_WORDS: Final = 16
_SINCE: Final = 0
_REQUESTS: Final = 1
_SEQUENCE: Final = 2
_LENGTHS: Final = 3
_CONNECTIONS: Final = 4
_BUSY_NS: Final = 5
_MEMORY: Final = 6
_WAITING: Final = 7
_TAKEN: Final = 8
_REFUSED: Final = 9
_TOLD_AT: Final = 10
_TOLD: Final = 11

_TEXT: Final = 256
_LINE_MAX: Final = 192
_CLIENT_MAX: Final = _TEXT - _LINE_MAX

#: How often a reader looks for texts that nobody changes meanwhile. A writer is at it for 0.1 us of a request.
_LOOKS: Final = 16

#: Plain numbers for what is written with every request; an enum's member is looked up twice.
_IDLE: Final = int(Activity.IDLE)
_BUSY: Final = int(Activity.BUSY)
_IDLE_BYTE: Final = bytes([Activity.IDLE])
_BUSY_BYTE: Final = bytes([Activity.BUSY])
#: A request that has been running for so long makes others wait. Seconds.
_SLOW: Final = 0.005


@dataclass(frozen=True, slots=True)
class SlotView:
    """One look at a slot. ``since`` is monotonic seconds, ``busy`` the seconds spent in finished requests.

    ``torn``: the texts may be a mixture, because the writer died while it wrote them, or writes all the time.
    """

    activity: Activity
    since: float
    requests: int
    connections: int
    busy: float
    memory: int
    refused: int
    request: str
    client: str
    torn: bool = False


class Scoreboard:
    """The mapping. The master makes it; after a fork everybody has it."""

    def __init__(self, capacity: int) -> None:
        """``capacity``: number of slots; fixed for the life of the mapping."""
        self.capacity = capacity
        states = -(-capacity // 8) * 8
        self._states_at = _HEADER_WORDS * 8
        rows_at = self._states_at + states
        texts_at = rows_at + capacity * _ROW_WORDS * 8
        self._memory = mmap.mmap(-1, texts_at + capacity * _TEXT)
        view = memoryview(self._memory)
        self._header = view[: self._states_at].cast("Q")
        self._states = view[self._states_at : self._states_at + capacity]
        self._rows = view[rows_at:texts_at].cast("Q")
        self._texts = view[texts_at:]

    # --- the master's part -----------------------------------------------------------------------------------------

    @property
    def armed(self) -> bool:
        """Does the master want the bell rung when spare workers run short? Written by the master."""
        return self._header[_ARMED] != 0

    @armed.setter
    def armed(self, value: bool) -> None:
        self._header[_ARMED] = value

    @property
    def stopping(self) -> bool:
        """Does the whole service stop, so that no sibling will take a connection over? Written by the master."""
        return self._header[_STOPPING] != 0

    @stopping.setter
    def stopping(self, value: bool) -> None:
        self._header[_STOPPING] = value

    @property
    def serving_since(self) -> float:
        """Since when at least one worker serves without a break (monotonic seconds); 0: none. Written by the master."""
        return self._header[_SERVING] / 1e9

    @serving_since.setter
    def serving_since(self, value: float) -> None:
        self._header[_SERVING] = int(value * 1e9)

    def clear(self, slot: int) -> None:
        """Forget a slot's last worker. Master only, after the worker was reaped (or was never born)."""
        self._states[slot] = Activity.UNSET
        row = slot * _ROW_WORDS
        for word in range(_ROW_WORDS):
            self._rows[row + word] = 0

    # --- reading ---------------------------------------------------------------------------------------------------

    def activity(self, slot: int) -> Activity:
        """What the worker of a slot says it does. A byte nobody should have written counts as busy."""
        value = self._states[slot]
        return Activity(value) if value <= Activity.LEAVING else Activity.BUSY

    def idle(self) -> int:
        """Number of idle workers; a copy and a count of one byte a slot, cheap enough for every request."""
        return self._states.tobytes().count(_IDLE_BYTE)

    def free(self, but: int, now: float) -> bool:
        """Is there a worker, other than that of slot ``but``, who is idle, or busy only since a moment ago?

        One that answers in microseconds is hardly ever seen idle under load. ``now`` is monotonic seconds.
        """
        states = self._states.tobytes()
        if _IDLE_BYTE in states[:but] or _IDLE_BYTE in states[but + 1 :]:
            return True
        since = int((now - _SLOW) * 1e9)
        rows = self._rows
        return any(
            state == _BUSY and slot != but and rows[slot * _ROW_WORDS + _SINCE] > since
            for slot, state in enumerate(states)
        )

    def share(self) -> float:
        """How many connections each serving worker would hold if all held the same."""
        states = self._states.tobytes()
        serving = states.count(_IDLE_BYTE) + states.count(_BUSY_BYTE)
        return sum(self._rows[_CONNECTIONS::_ROW_WORDS]) / max(1, serving)

    def taken(self) -> int:
        """How many connections the workers that live have taken from unix listeners."""
        return sum(self._rows[_TAKEN::_ROW_WORDS])

    def refused(self) -> int:
        """How many requests the workers that live have turned away."""
        return sum(self._rows[_REFUSED::_ROW_WORDS])

    def told(self) -> tuple[float, int]:
        """When a worker last reported that requests are turned away (monotonic seconds, 0: never), and how many it
        counted then."""
        at = max(self._rows[_TOLD_AT::_ROW_WORDS])
        if not at:
            return 0.0, 0
        row = list(self._rows[_TOLD_AT::_ROW_WORDS]).index(at) * _ROW_WORDS
        return at / 1e9, self._rows[row + _TOLD]

    def memory(self) -> int:
        """What the largest worker has last said that it takes, bytes; 0 if none has."""
        return max(self._rows[_MEMORY::_ROW_WORDS])

    def waiting(self, slot: int, now: float) -> int:
        """Connections with something to read that wait for the worker of a slot, if it has been busy for a while.

        A worker that answers in a millisecond always has some, and is no reason for another worker. ``now`` is
        monotonic seconds.
        """
        row = slot * _ROW_WORDS
        if self._states[slot] != Activity.BUSY or now - self._rows[row + _SINCE] / 1e9 < _SLOW:
            return 0
        return self._rows[row + _WAITING]

    def view(self, slot: int) -> SlotView:
        """Everything that a slot says of itself."""
        row = slot * _ROW_WORDS
        rows = self._rows
        line = client = b""
        torn = True
        for _ in range(_LOOKS):
            before = rows[row + _SEQUENCE]
            lengths = rows[row + _LENGTHS]
            at = slot * _TEXT
            line = bytes(self._texts[at : at + min(lengths & 0xFFFF, _LINE_MAX)])
            at += _LINE_MAX
            client = bytes(self._texts[at : at + min(lengths >> 16 & 0xFFFF, _CLIENT_MAX)])
            if before % 2 == 0 and rows[row + _SEQUENCE] == before:
                torn = False
                break
        return SlotView(
            activity=self.activity(slot),
            since=rows[row + _SINCE] / 1e9,
            requests=rows[row + _REQUESTS],
            connections=rows[row + _CONNECTIONS],
            busy=rows[row + _BUSY_NS] / 1e9,
            memory=rows[row + _MEMORY],
            refused=rows[row + _REFUSED],
            request=line.decode("latin-1"),
            client=client.decode("latin-1"),
            torn=torn,
        )

    def writer(self, slot: int) -> SlotWriter:
        """The pen of a slot; for its worker only."""
        return SlotWriter(self, slot)


class SlotWriter:
    """A worker's pen for its own slot. Worker only."""

    __slots__ = ("_line", "_peer", "_row", "_slot", "_states", "_text_at", "_texts", "requests")

    def __init__(self, board: Scoreboard, slot: int) -> None:
        self._slot = slot
        self._states = board._states
        self._row = board._rows[slot * _ROW_WORDS : (slot + 1) * _ROW_WORDS]
        self._texts = board._texts
        self._text_at = slot * _TEXT
        #: The texts that stand there, as they were given.
        self._line: bytes | None = None
        self._peer = ""
        self.requests = 0

    def idle(self) -> None:
        """Ready for the next request."""
        self._row[_SINCE] = time.monotonic_ns()
        self._states[self._slot] = Activity.IDLE

    def leaving(self) -> None:
        """Takes nothing new, finishes what it holds."""
        self._row[_SINCE] = time.monotonic_ns()
        self._states[self._slot] = Activity.LEAVING

    def busy(self, request_line: bytes, client: str) -> float:
        """A request begins. ``request_line`` as the client sent it (cut to 192 bytes), ``client`` its address.

        Returns the time (monotonic seconds).
        """
        # By identity: who sends the same head again is given the same object, and to compare costs what it saves.
        if request_line is not self._line or client is not self._peer:
            self._show(request_line, client)
        now = time.monotonic_ns()
        self._row[_SINCE] = now
        self._states[self._slot] = _BUSY
        return now / 1e9

    def _show(self, request_line: bytes, client: str) -> None:
        self._line, self._peer = request_line, client
        row = self._row
        line = request_line[:_LINE_MAX]
        peer = client.encode("latin-1", "replace")[:_CLIENT_MAX]
        sequence = row[_SEQUENCE]
        row[_SEQUENCE] = sequence | 1
        at = self._text_at
        self._texts[at : at + len(line)] = line
        at += _LINE_MAX
        self._texts[at : at + len(peer)] = peer
        row[_LENGTHS] = len(line) | len(peer) << 16
        row[_SEQUENCE] = (sequence | 1) + 1

    def finished(self) -> float:
        """The request is over: counted, and the worker idle again. Returns the time (monotonic seconds)."""
        row = self._row
        now = time.monotonic_ns()
        self.requests += 1
        row[_REQUESTS] = self.requests
        row[_BUSY_NS] += now - row[_SINCE]
        row[_SINCE] = now
        self._states[self._slot] = _IDLE
        return now / 1e9

    def connections(self, held: int) -> None:
        """Connections that the worker holds, parked ones included."""
        self._row[_CONNECTIONS] = held

    def waiting(self, ready: int) -> None:
        """Connections with something to read that have to wait for what the worker does first."""
        self._row[_WAITING] = ready

    def memory(self, size: int) -> None:
        """The worker's own measure of its memory, bytes."""
        self._row[_MEMORY] = size

    def took(self) -> None:
        """A connection was taken from a unix listener."""
        self._row[_TAKEN] += 1

    def refused(self) -> None:
        """A request was turned away, because it had waited too long."""
        self._row[_REFUSED] += 1

    def told(self, now: float, refused: int) -> None:
        """This worker reports that the pool has turned so many away, at ``now`` (monotonic seconds)."""
        self._row[_TOLD] = refused
        self._row[_TOLD_AT] = int(now * 1e9)
