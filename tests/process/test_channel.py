"""Messages between our own processes: whole packets, descriptors that arrive once, an end that is noticed."""

from __future__ import annotations

import fcntl
import json
import os
import socket

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.spawn import Channel, ChannelClosed, fork_child
from preforkd.spawn.channel import DESCRIPTORS, PACKET, cut

plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda children: st.lists(children, max_size=4) | st.dictionaries(st.text(), children, max_size=4),
    max_leaves=20,
)


def open_descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


@given(st.dictionaries(st.text(max_size=20), plain, max_size=5))
def test_messages_arrive_as_they_were_sent(message: dict[str, object]) -> None:
    near, far = Channel.pair()
    try:
        assert near.send(message)
        assert near.send({"second": 2})
        assert far.receive() == (message, [])
        assert far.receive() == ({"second": 2}, [])
        assert far.receive() is None
    finally:
        near.close()
        far.close()


def test_descriptors_arrive_open_in_order_and_close_on_exec() -> None:
    before = open_descriptors()
    near, far = Channel.pair()
    pipes = [os.pipe() for _ in range(DESCRIPTORS)]
    assert near.send({"order": DESCRIPTORS}, [reading for reading, _ in pipes])
    received = far.receive()
    assert received is not None
    message, descriptors = received
    assert message == {"order": DESCRIPTORS} and len(descriptors) == DESCRIPTORS
    for number, (descriptor, (reading, writing)) in enumerate(zip(descriptors, pipes, strict=True)):
        os.write(writing, b"%d" % number)
        assert os.read(descriptor, 8) == b"%d" % number
        assert fcntl.fcntl(descriptor, fcntl.F_GETFD) & fcntl.FD_CLOEXEC
        for one in (descriptor, reading, writing):
            os.close(one)
    near.close()
    far.close()
    assert open_descriptors() == before


def test_ends_do_not_block_and_are_not_passed_to_programs() -> None:
    near, far = Channel.pair()
    for end in (near, far):
        assert not os.get_blocking(end.fileno())
        assert not os.get_inheritable(end.fileno())
        end.close()


def test_end_of_file_comes_after_the_last_words() -> None:
    near, far = Channel.pair()
    pid = fork_child(lambda: 0 if far.send({"pid": 1}) and far.send({"ready": True}) else 1, {far.fileno()})
    far.close()
    os.waitpid(pid, 0)
    assert near.receive() == ({"pid": 1}, [])
    assert near.receive() == ({"ready": True}, [])
    for _ in range(2):
        with pytest.raises(ChannelClosed):
            near.receive()
    with pytest.raises(ChannelClosed):
        near.send({"serve": True})
    near.close()


def test_a_channel_that_is_full_says_so_and_loses_nothing() -> None:
    near, far = Channel.pair()
    near.socket.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    sent = 0
    while near.send({"number": sent, "padding": "x" * 500}):
        sent += 1
        assert sent < 10_000
    assert sent > 0
    received = 0
    while (message := far.receive()) is not None:
        assert message[0]["number"] == received
        received += 1
    assert received == sent
    assert near.send({"again": True})
    near.close()
    far.close()


def test_what_is_not_ours_is_an_error_and_its_descriptors_are_closed() -> None:
    near, far = Channel.pair()
    before = open_descriptors()
    socket.send_fds(near.socket, [b"no json"], [0, 1, 2])
    with pytest.raises(ValueError, match="Expecting value"):
        far.receive()
    assert open_descriptors() == before
    near.close()
    far.close()


@pytest.mark.parametrize(
    "text",
    [
        "short",
        "é" * 12_000,
        "漢字" * 20_000,
        "\N{PILE OF POO}" * 12_000,
        "\0" * 12_000,
        "\ud800" * 12_000,
        '"' * 50_000,
    ],
    ids=["short", "accents", "chinese", "emoji", "control", "surrogates", "quotes"],
)
def test_a_cut_text_fits_and_keeps_its_end(text: str) -> None:
    """The last lines of a traceback name the error; whatever a language makes of them in JSON, they fit."""
    whole = text + "\nValueError: the end"
    part = cut(whole)
    assert len(json.dumps({"failed": part}).encode()) <= PACKET
    assert part.endswith("ValueError: the end")
    near, far = Channel.pair()
    assert near.send({"failed": part})
    assert far.receive() == ({"failed": part}, [])
    near.close()
    far.close()


def test_a_message_that_is_too_long_is_refused_by_its_sender() -> None:
    """The receiver is the master, as often as not, and must not be the one to stumble."""
    near, far = Channel.pair()
    with pytest.raises(ValueError, match="message of"):
        near.send({"text": "x" * PACKET})
    assert far.receive() is None
    near.close()
    far.close()
