"""The peers, started as the benchmark starts them, and what is said about those that are not there."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks import apps, measure, peers, servers
from benchmarks.load import ask, closes
from benchmarks.peers import PEERS, PREFORKD, Peer, Plan, Serves

#: What a peer can be asked for, and how long the answer is.
_PAGES = {Serves.HELLO: ("/", len(apps.HELLO)), Serves.LARGE: ("/big", apps.BIG), Serves.FILE: ("/file", apps.FILE)}


@pytest.fixture
def directory() -> Iterator[Path]:
    """Shorter than pytest's own: the path of preforkd's control socket has to fit (unix(7))."""
    with tempfile.TemporaryDirectory(prefix="benchmark-") as directory:
        yield Path(directory)


@pytest.fixture
def nobody_left() -> Iterator[None]:
    before = set(measure.tree(os.getpid()))
    yield
    assert set(measure.tree(os.getpid())) <= before


@pytest.mark.parametrize("name", [PREFORKD, "bare loop"])
def test_a_server_serves_and_ends(name: str, directory: Path, nobody_left: None) -> None:
    with servers.running(name, Plan(), directory) as server:
        assert ask(server.port) == apps.HELLO
        assert len(measure.tree(server.pid)) >= 3
    assert ask(server.port) is None


@pytest.mark.slow
@pytest.mark.may_skip("peers are installed by those who measure")
@pytest.mark.parametrize("name", sorted(PEERS))
def test_a_peer_can_what_it_is_said_to_can(name: str, directory: Path, nobody_left: None) -> None:
    peer = PEERS[name]
    if peer.missing():
        pytest.skip(f"{name} is not installed: {peer.install}")
    logged = Serves.ACCESS_LOG in peer.serves
    with servers.running(name, Plan(keep_alive=peer.heeds_close), directory) as server:
        assert closes(server.port)
    with servers.running(name, Plan(access_log=logged), directory) as server:
        answers = {kind: ask(server.port, path) for kind, (path, _) in _PAGES.items() if kind in peer.serves}
        assert {kind: len(answer or b"") for kind, answer in answers.items()} == {
            kind: _PAGES[kind][1] for kind in answers
        }
        assert answers[Serves.HELLO] == apps.HELLO
    if logged:
        written = "".join(file.read_text(errors="replace") for file in server.log.parent.glob("*") if file.is_file())
        assert "GET /" in written


def test_what_is_not_installed_is_missing() -> None:
    def command(plan: Plan, place: peers.Place) -> list[str]:
        raise AssertionError

    assert not Peer("x", command, modules=("json",), programs=(("no-such-program", "sh"),)).missing()
    assert Peer("x", command, modules=("no_such_module_at_all",)).missing()
    assert Peer("x", command, programs=(("sh",), ("no-such-program",))).missing()


def test_whoever_can_be_missing_says_how_it_is_installed() -> None:
    assert all(peer.install for peer in PEERS.values() if peer.modules or peer.programs)
    assert not PEERS[PREFORKD].missing()
    assert all(Serves.HELLO in peer.serves for peer in PEERS.values())
