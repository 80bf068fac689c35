"""What every test gets: hypothesis profiles, honest skips, and a look at what it left behind.

* **Left-over processes.** A test of a daemon easily leaves one running, and the next test then meets it. Every process
  that a test starts, however often it forks, detaches or changes its user, carries a mark; one that is alive after the
  test has ended is killed, and the test fails naming it.
* **Skips.** Where the machine is known to have everything (``PREFORKD_CI`` in the environment, set by .ci/run), a test
  that is skipped is one that silently stopped testing: it fails, unless it is marked ``may_skip("why")``.
* **The build.** With ``PREFORKD_COMPILED`` in the environment (Makefile, test-compiled) the compiled build is tested or
  nothing is.
* **hypothesis.** By default the same examples every time, so that a failure belongs to the change that is being made.
  ``--hypothesis-profile=long`` explores: many more examples, new ones each time.
"""

from __future__ import annotations

import os
import resource
import select
import signal
import time
from collections.abc import Generator, Iterable, Iterator
from pathlib import Path

import hypothesis
import pytest

import preforkd
from preforkd.stamp import running_version

hypothesis.settings.register_profile("default", derandomize=True, deadline=None, max_examples=100, print_blob=True)
hypothesis.settings.register_profile("long", deadline=None, max_examples=10_000, print_blob=True)
hypothesis.settings.load_profile(os.environ.get("PREFORKD_HYPOTHESIS", "default"))

STRICT_SKIPS = bool(os.environ.get("PREFORKD_CI"))

#: How long a process may take to leave after its test has ended. Only a process that does not leave costs this time.
LEAVING = 3.0


# --- the build -------------------------------------------------------------------------------------------------------


def pytest_report_header() -> str:
    return f"preforkd {running_version()} in {Path(preforkd.__file__).parent}"


if os.environ.get("PREFORKD_COMPILED") and not running_version().endswith("(compiled)"):
    raise pytest.UsageError(f"PREFORKD_COMPILED is set, and what would be tested is {pytest_report_header()}")


# --- the markers of the directories ----------------------------------------------------------------------------------


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test below tests/system or tests/systemd is of that kind without saying so, and slow."""
    here = Path(__file__).parent
    for item in items:
        if not item.path.is_relative_to(here):
            continue
        kind = item.path.relative_to(here).parts[0]
        if kind == "system":
            item.add_marker(pytest.mark.system)
        elif kind == "systemd":
            item.add_marker(pytest.mark.systemd)
        if kind in ("system", "systemd"):
            item.add_marker(pytest.mark.slow)


# --- honest skips ----------------------------------------------------------------------------------------------------


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    allowed = item.get_closest_marker("may_skip") is not None
    if STRICT_SKIPS and report.skipped and not allowed and not hasattr(report, "wasxfail"):
        report.outcome = "failed"
        report.longrepr = f"{item.nodeid} was skipped where nothing may be: {skip_reason(report.longrepr)}"
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    if STRICT_SKIPS and report.skipped:
        report.outcome = "failed"
        report.longrepr = f"{collector.nodeid} was skipped where nothing may be: {skip_reason(report.longrepr)}"
    return report


def skip_reason(longrepr: object) -> str:
    """The words of a skip; pytest keeps them as the third of (file, line, "Skipped: why")."""
    if isinstance(longrepr, tuple) and len(longrepr) == 3:
        return str(longrepr[2])
    return str(longrepr)


# --- left-over processes ---------------------------------------------------------------------------------------------

# The mark is the soft limit on message queues (RLIMIT_MSGQUEUE), set to our pid: fork, exec, setsid, a change of user
# and a closed set of descriptors keep it, anybody may read it, and nothing here uses POSIX message queues. A subreaper
# would find detached processes as well, but would change who their parent is, which tests want to see. A variable in
# the environment is lost where a process writes its title over it.
_, _hard = resource.getrlimit(resource.RLIMIT_MSGQUEUE)
if _hard == resource.RLIM_INFINITY or os.getpid() <= _hard:
    resource.setrlimit(resource.RLIMIT_MSGQUEUE, (os.getpid(), _hard))
MARK = resource.getrlimit(resource.RLIMIT_MSGQUEUE)[0]


def running() -> set[int]:
    """The pids of all processes."""
    return {int(name) for name in os.listdir("/proc") if name.isdigit()}


def is_ours(pid: int) -> bool:
    """Whether a process carries the mark and is alive; a zombie is only a line in a table."""
    try:
        limits = Path(f"/proc/{pid}/limits").read_text()
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    for line in limits.splitlines():
        if line.startswith("Max msgqueue size"):
            return line.split()[3] == str(MARK) and state not in "ZX"
    return False


def describe(pid: int) -> str:
    """A process as a person knows it: pid, parent, command line."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
        parent = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
    except (FileNotFoundError, ProcessLookupError):
        return f"{pid} (gone by now)"
    return f"{pid} (parent {parent}): {command}"


def wait_gone(pids: Iterable[int], seconds: float) -> list[int]:
    """Those of ``pids`` that are still there after at most ``seconds``; returns as soon as none is."""
    deadline = time.monotonic() + seconds
    left = []
    for pid in pids:
        try:
            descriptor = os.pidfd_open(pid)
        except ProcessLookupError:
            continue
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            if not poll.poll(max(0.0, deadline - time.monotonic()) * 1000):
                left.append(pid)
        finally:
            os.close(descriptor)
    return left


@pytest.fixture(autouse=True)
def nothing_left_running() -> Iterator[None]:
    """Fails a test that leaves a process behind, and ends that process.

    What fixtures of a wider scope keep running is there before the test, and is none of its business.
    """
    before = running()
    yield
    left = wait_gone([pid for pid in running() - before if is_ours(pid)], LEAVING)
    if left:
        lines = [describe(pid) for pid in left]
        for pid in left:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        wait_gone(left, LEAVING)
        pytest.fail("the test left these processes running (now killed):\n  " + "\n  ".join(lines), pytrace=False)
