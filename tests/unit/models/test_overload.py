"""Who is refused, by numbers alone."""

from __future__ import annotations

import select
import socket
from collections import deque

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.http import Peer, RequestLimits, RequestParser
from preforkd.models.connection import Connection, Terms
from preforkd.models.outbox import Outbox
from preforkd.models.overload import Arrivals, Gate, overdue, retry_after
from preforkd.models.pace import Pace


@pytest.mark.parametrize(
    ("silent", "calm", "waited"),
    [
        (0.0, 0.0, None),
        (5.0, 100.0, None),  # not too long
        (5.001, 100.0, 5.001),
        (100.0, 0.1, None),  # an idle worker takes what came long ago: a slow client's, or from before it served
        (100.0, 5.5, 5.5),  # not longer than the pool serves
        (0.0, 100.0, None),  # a busy pool, and this one came in time
    ],
)
def test_a_request_is_overdue_if_it_waited_too_long_for_a_pool_that_serves(
    silent: float, calm: float, waited: float | None
) -> None:
    assert overdue(silent, calm, 5.0) == waited


@given(st.floats(0.001, 1e6), st.floats(0, 1))
def test_retry_after_is_a_whole_number_that_lets_the_queue_pass(limit: float, chance: float) -> None:
    seconds = retry_after(limit, chance)
    assert min(limit, 150) <= seconds <= 300
    assert seconds <= 2 * max(1, limit + 1)


def test_retry_after_is_spread() -> None:
    assert {retry_after(30, step / 10) for step in range(11)} == set(range(30, 61, 3))


def test_who_leaves_has_waited_since_it_was_first_seen() -> None:
    queue = Arrivals()
    assert queue.waited(0, 0.0) == 0  # nobody looked
    queue.look(0, 3, 1.0)  # numbers 0, 1, 2
    queue.look(1, 4, 2.0)  # 3 and 4 have come
    assert queue.waited(1, 2.5) == 1.5
    assert queue.waited(2, 3.0) == 2.0
    assert queue.waited(3, 3.5) == 1.5
    assert queue.waited(4, 4.0) == 2.0
    assert queue.waited(5, 4.0) == 0  # came after the last look: nothing is known


def test_nothing_is_known_once_a_worker_has_taken_its_count_along() -> None:
    queue = Arrivals()
    queue.look(100, 50, 1.0)
    assert queue.waited(60, 9.0) == 0
    queue.look(60, 50, 10.0)
    assert queue.waited(60, 11.0) == 1.0


@given(st.lists(st.sampled_from(["come", "leave", "look"]), max_size=200))
def test_nobody_waits_shorter_than_is_said(steps: list[str]) -> None:
    """Against a queue of which everything is known; at most the time between two looks is missed."""
    queue, known = Arrivals(), deque[int]()
    left = 0
    looks: list[int] = []
    for now, step in enumerate(steps):
        if step == "come":
            known.append(now)
        elif step == "look":
            queue.look(left, len(known), now)
            looks.append(now)
        elif known:
            came = known.popleft()
            said = queue.waited(left, now)
            seen = [look for look in looks if look >= came]
            assert said == (now - seen[0] if seen else 0)
            left += 1
    assert len(queue._looks) <= len(known) + 1


@pytest.mark.parametrize(("sending", "waited"), [(True, None), (False, 100.0)])
def test_who_is_ready_for_more_of_its_answer_does_not_wait(sending: bool, waited: float | None) -> None:
    """A unix connection that was found ready has waited since, unless it was ready to be sent something."""
    server, client = socket.socketpair()
    with server, client, select.epoll() as epoll:
        peer = Peer("", 0, "localhost", 80)
        terms = Terms(0, 0)
        reader, other = (Connection(fd, peer, RequestParser(RequestLimits()), terms) for fd in (server.fileno(), -1))
        epoll.register(reader.fd, select.EPOLLOUT)
        connections = {reader.fd: reader, other.fd: other}
        gate = Gate(0.2, 0.0, epoll, [], lambda: 0)
        if sending:
            reader.outbox = Outbox(b"x", -1, 0, 0, Pace(0, 0), 0, 0.0)
        gate.waited_too_long(other, connections, False, 100.0)
        reader.outbox = None
        assert gate.waited_too_long(reader, connections, False, 200.0) == waited
