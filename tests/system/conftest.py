"""The daemon under test, and its last words where a test fails."""

from __future__ import annotations

import signal
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.system.daemon import Daemon
from tests.system.shell import Shell

_daemons = pytest.StashKey[list[Daemon]]()


@pytest.fixture
def new_daemon(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Callable[..., Daemon]]:
    """Makes any number of daemons, each in a folder of its own; looks at how each of them ended."""
    daemons = request.node.stash.setdefault(_daemons, [])

    def new(folder: Path | None = None) -> Daemon:
        daemon = Daemon(folder if folder is not None else tmp_path / f"d{len(daemons)}")
        daemons.append(daemon)
        return daemon

    yield new
    wrong = []
    for daemon in daemons:
        problems = daemon.finish()
        if problems:
            wrong.append("\n".join(problems) + f"\n--- log of the daemon\n{daemon.log}")
    if wrong:
        pytest.fail("\n".join(wrong), pytrace=False)


@pytest.fixture
def daemon(new_daemon: Callable[..., Daemon]) -> Daemon:
    """One daemon, not started yet."""
    return new_daemon()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if report.failed and call.when == "call":
        for daemon in item.stash.get(_daemons, []):
            report.sections.append((f"daemon in {daemon.folder}", daemon.picture()))
    return report


@pytest.fixture(autouse=True)
def child_signals() -> Iterator[None]:
    """A daemon inherits what is ignored; whoever runs the tests may ignore some."""
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGHUP, signal.SIGPIPE)}
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def shell(tmp_path: Path) -> Iterator[Shell]:
    """The command line in a folder of its own; what it started is stopped."""
    shell = Shell(tmp_path)
    yield shell
    shell.finish()
