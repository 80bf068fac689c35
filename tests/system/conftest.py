"""The daemon under test, and its last words where a test fails."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Callable, Generator, Iterator
from pathlib import Path

import pytest

from tests.system.daemon import Daemon
from tests.system.shell import Shell, open_environment, python_for_nobody

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


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that any user can reach; pytest's own are for their owner alone."""
    folder = Path(tempfile.mkdtemp(prefix="preforkd-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def as_nobody(new_daemon: Callable[..., Daemon], open_folder: Path) -> Daemon:
    """A daemon of root's whose workers become the user nobody. Start it with ``executable=python_for_nobody()``."""
    if os.geteuid() != 0:
        pytest.skip("becomes another user, which only root can")
    if not python_for_nobody():
        pytest.skip("no Python of this machine that has preforkd's needs can be run by another user")
    daemon = new_daemon(open_folder / "d")
    daemon.settings["user"] = "nobody"
    daemon.environment |= open_environment()
    return daemon
