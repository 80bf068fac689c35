"""The scoreboard: what one process writes, another reads, without a lock and without seeing what was never there."""

from __future__ import annotations

import os
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.model import Activity
from preforkd.scoreboard import Scoreboard
from preforkd.spawn import fork_child

LINE, CLIENT = 192, 64


# --- one process -----------------------------------------------------------------------------------------------------


@given(slot=st.integers(0, 9), line=st.binary(max_size=300), client=st.text(max_size=100))
def test_a_request_is_read_as_it_was_written(slot: int, line: bytes, client: str) -> None:
    board = Scoreboard(10)
    before = time.monotonic()
    board.writer(slot).busy(line, client)
    view = board.view(slot)
    assert view.activity is Activity.BUSY
    assert view.request == line[:LINE].decode("latin-1")
    assert view.client == client.encode("latin-1", "replace")[:CLIENT].decode("latin-1")
    assert before <= view.since <= time.monotonic()
    empty = Scoreboard(10).view(0)
    assert all(board.view(other) == empty for other in range(10) if other != slot)


@given(st.lists(st.sampled_from(["idle", "busy", "leaving", "clear"]), max_size=17), st.integers(17, 40))
def test_idle_slots_are_counted(acts: list[str], capacity: int) -> None:
    board = Scoreboard(capacity)
    for slot, act in enumerate(acts):
        writer = board.writer(slot)
        if act == "clear":
            writer.idle()
            board.clear(slot)
        elif act == "busy":
            writer.busy(b"GET / HTTP/1.1", "127.0.0.1")
        else:
            getattr(writer, act)()
    assert board.idle() == acts.count("idle")
    expected = {"idle": Activity.IDLE, "busy": Activity.BUSY, "leaving": Activity.LEAVING, "clear": Activity.UNSET}
    assert [board.activity(slot) for slot in range(len(acts))] == [expected[act] for act in acts]


def test_requests_and_seconds_add_up() -> None:
    board = Scoreboard(2)
    writer = board.writer(1)
    writer.idle()
    for number in range(5):
        writer.busy(b"GET /%d" % number, "::1")
        writer.finished()
    writer.connections(7)
    writer.memory(123_456_789)
    view = board.view(1)
    assert (view.activity, view.requests, view.connections, view.memory) == (Activity.IDLE, 5, 7, 123_456_789)
    assert 0 <= view.busy < 5
    board.clear(1)
    assert board.view(1) == Scoreboard(1).view(0)


def test_the_masters_flags_are_its_own() -> None:
    board = Scoreboard(3)
    assert not board.armed and not board.stopping
    board.armed = True
    assert board.armed and not board.stopping
    board.stopping = True
    board.armed = False
    assert not board.armed and board.stopping
    assert board.idle() == 0 and all(board.activity(slot) is Activity.UNSET for slot in range(3))


def test_a_byte_that_nobody_should_have_written_counts_as_busy() -> None:
    board = Scoreboard(1)
    board._states[0] = 77
    assert board.activity(0) is Activity.BUSY
    assert board.view(0).activity is Activity.BUSY


def test_a_writer_that_died_in_the_middle_is_read_all_the_same() -> None:
    board = Scoreboard(2)
    writer = board.writer(0)
    writer.busy(b"GET /first HTTP/1.1", "192.0.2.1")
    writer._texts = memoryview(bytes(2 * 256))  # read-only: fails after the number became odd
    with pytest.raises(TypeError):
        writer.busy(b"GET /second HTTP/1.1", "192.0.2.2")
    view = board.view(0)
    assert view.torn
    assert view.request == "GET /first HTTP/1.1" and view.client == "192.0.2.1"
    # Whoever gets the slot next writes as if nothing had been.
    board.clear(0)
    board.writer(0).busy(b"GET /next", "192.0.2.3")
    view = board.view(0)
    assert (view.request, view.client, view.torn) == ("GET /next", "192.0.2.3", False)


def test_what_stands_in_the_lengths_never_leads_out_of_the_slot() -> None:
    board = Scoreboard(2)
    board.writer(1).busy(b"secret", "secret")
    board._rows[3] = 2**64 - 1
    view = board.view(0)
    assert len(view.request) <= LINE and len(view.client) <= CLIENT
    assert "secret" not in view.request + view.client


# --- two processes ---------------------------------------------------------------------------------------------------


def line_of(number: int) -> bytes:
    """A request line of its own length and letters, so that every mixture of two is seen."""
    letter = b"abcdefghijklmnopqrstuvwxyz"[number % 26 : number % 26 + 1]
    return b"GET /%d/%s HTTP/1.1" % (number, letter * (number * 7 % 150))


def client_of(number: int) -> str:
    return f"{number % 256}.{number}.{'x' * (number * 3 % 40)}"


@pytest.mark.parametrize("pause", [0.0, 0.0001], ids=["without-a-break", "like-a-worker"])
def test_a_reader_never_sees_what_was_never_there(pause: float) -> None:
    board = Scoreboard(3)
    reading, writing = os.pipe()
    began = time.monotonic()

    def write() -> int:
        writer = board.writer(1)
        os.set_blocking(reading, False)
        number = 0
        while True:
            number += 1
            writer.busy(line_of(number), client_of(number))
            if pause:
                time.sleep(pause)
            writer.finished()
            if number % 64 == 0:
                try:
                    os.read(reading, 1)
                except BlockingIOError:
                    continue
                return 0

    pid = fork_child(write, {reading})
    os.close(reading)
    whole = torn = last = changes = 0
    busy = 0.0
    try:
        while whole < 2_000 or changes < 50:
            assert time.monotonic() < began + 20, f"{whole} whole and {torn} torn looks, {changes} changes"
            view = board.view(1)
            assert view.activity in (Activity.UNSET, Activity.BUSY, Activity.IDLE)
            assert last <= view.requests <= last + 10_000_000
            assert view.since == 0 or began <= view.since <= time.monotonic()
            assert busy <= view.busy <= time.monotonic() - began
            changes += view.requests != last
            last, busy = view.requests, view.busy
            assert board.idle() in (0, 1)
            if view.torn:
                torn += 1
                continue
            whole += 1
            if view.request:
                number = int(view.request.split("/")[1])
                assert (view.request.encode(), view.client) == (line_of(number), client_of(number))
    finally:
        os.close(writing)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    empty = Scoreboard(3).view(0)
    assert board.view(0) == empty and board.view(2) == empty
    if pause:
        assert torn < whole / 10, "a worker at its work is read whole"


def test_the_board_outlives_its_writer() -> None:
    board = Scoreboard(2)

    def live() -> int:
        writer = board.writer(0)
        writer.busy(b"GET /fatal HTTP/1.1", "192.0.2.9")
        os.kill(os.getpid(), 9)
        return 0

    assert os.waitstatus_to_exitcode(os.waitpid(fork_child(live), 0)[1]) == -9
    view = board.view(0)
    assert (view.activity, view.request, view.client) == (Activity.BUSY, "GET /fatal HTTP/1.1", "192.0.2.9")
