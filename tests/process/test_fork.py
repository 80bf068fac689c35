"""The only fork: what a child owns, which signals it hears, and that nothing of its parent ever runs in it."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from typing import Any

import pytest

from preforkd.spawn import fork_child
from preforkd.spawn.fork import HANDLED
from tests.support.child import in_child


def outcome(pid: int) -> int:
    """The exit code of a child, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def told(tell: Callable[[int], None], *more: int) -> str:
    """What ``tell`` writes to the descriptor that it is given, in a child that keeps this and ``more``."""
    reading, writing = os.pipe()
    with open(reading) as pipe:
        pid = fork_child(lambda: (tell(writing), 0)[1], {writing, *more})  # type: ignore[func-returns-value]
        os.close(writing)
        answer = pipe.read()
    assert outcome(pid) == 0
    return answer


# --- descriptors -----------------------------------------------------------------------------------------------------


def test_child_owns_what_it_was_given_and_nothing_else() -> None:
    kept = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    # Far away, so that what lies between is closed, too.
    far = 700
    os.dup2(others[0], far)
    names: list[int] = []

    def tell(writing: int) -> None:
        names.append(writing)
        with os.scandir("/proc/self/fd") as entries:
            listed = {int(entry.name) for entry in entries}
        found = {number for number in listed if os.path.lexists(f"/proc/self/fd/{number}")}
        os.write(writing, ",".join(str(number) for number in sorted(found - {writing})).encode())

    try:
        found = {int(number) for number in told(tell, *kept).split(",")}
    finally:
        for descriptor in (*kept, *others, far):
            os.close(descriptor)
    assert found - {0, 1, 2} == set(kept)
    assert {0, 1, 2} <= found
    assert names == []  # the parent's memory is its own


@pytest.mark.parametrize("keep", [(), (0, 1, 2), (5,), (2, 9_999)], ids=str)
def test_numbers_that_are_not_open_may_be_kept(keep: tuple[int, ...]) -> None:
    assert outcome(fork_child(lambda: 0, keep)) == 0


def test_everything_is_kept_where_nothing_is_said() -> None:
    descriptor = os.open(os.devnull, os.O_RDONLY)
    try:
        assert outcome(fork_child(lambda: os.fstat(descriptor).st_size)) == 0
    finally:
        os.close(descriptor)


# --- the way out -----------------------------------------------------------------------------------------------------


def leave_by(raised: BaseException) -> int:
    """The exit code of a child whose life ends with ``raised``, its traceback thrown away."""

    def live() -> int:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)
        raise raised

    return outcome(fork_child(live))


@pytest.mark.parametrize(
    ("raised", "code"),
    [
        (SystemExit(7), 7),
        (SystemExit("a sentence"), 1),
        (SystemExit(None), 1),
        (RuntimeError("a bug"), 1),
        (KeyboardInterrupt(), 1),
        (GeneratorExit(), 1),
    ],
    ids=repr,
)
def test_whatever_is_raised_ends_in_an_exit_code(raised: BaseException, code: int) -> None:
    assert leave_by(raised) == code


@pytest.mark.parametrize("code", [0, 1, 44, 78, 255])
def test_the_result_is_the_exit_code(code: int) -> None:
    assert outcome(fork_child(lambda: code)) == code


@pytest.mark.parametrize("streams", ["None", "closed", "broken"])
def test_a_child_leaves_also_when_nobody_hears_it(streams: str) -> None:
    """Without standard streams (``preforkd run >&- 2>&-``) there is nobody to tell, which is no reason to stay."""

    def parent() -> list[int]:
        if streams == "None":
            sys.stdout = sys.stderr = None
        elif streams == "closed":
            sys.stdout, sys.stderr = io.StringIO(), io.StringIO()
            sys.stdout.close()
            sys.stderr.close()
        else:
            reading, writing = os.pipe()
            os.close(reading)
            sys.stdout, sys.stderr = os.fdopen(writing, "w"), os.fdopen(os.dup(writing), "w")

        def live() -> int:
            if streams == "broken":
                print("unheard", end="")
            raise RuntimeError("unheard as well")

        return [outcome(fork_child(lambda: 5)), outcome(fork_child(live))]

    assert in_child(parent) == [5, 1]


def test_nothing_of_the_parent_runs_in_the_child() -> None:
    """Neither `finally` and `with` of the frames that forked, nor atexit; and what was printed before appears once."""
    script = """
        import atexit, contextlib, os, sys
        from preforkd.spawn import fork_child

        atexit.register(print, "atexit")

        @contextlib.contextmanager
        def block():
            try:
                yield
            finally:
                print("with", flush=True)

        sys.stdout.write("before ")
        with block():
            try:
                for life in (lambda: 3, sys.exit, lambda: 1 / 0):
                    os.waitpid(fork_child(life), 0)
            finally:
                print("finally", flush=True)
    """
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}
    process = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        capture_output=True,
        text=True,
        check=True,
        env={**environment, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert process.stdout.split() == ["before", "finally", "with", "atexit"]
    assert process.stderr.splitlines()[-1] == "ZeroDivisionError: division by zero"


def test_a_failed_fork_leaves_the_parent_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> int:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    before = signal.pthread_sigmask(signal.SIG_BLOCK, ())
    monkeypatch.setattr(os, "fork", refuse)
    with pytest.raises(OSError, match="temporarily unavailable"):
        fork_child(lambda: 0)
    assert signal.pthread_sigmask(signal.SIG_BLOCK, ()) == before


# --- signals ---------------------------------------------------------------------------------------------------------


def test_a_child_starts_with_default_handlers_and_the_parents_mask() -> None:
    def parent() -> dict[str, Any]:
        for signum in HANDLED:
            signal.signal(signum, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, {signal.SIGUSR2, signal.SIGRTMIN})
        reading, writing = os.pipe()
        signal.set_wakeup_fd(os.open(os.devnull, os.O_WRONLY | os.O_NONBLOCK))

        def live() -> int:
            defaults = all(signal.getsignal(signum) is signal.SIG_DFL for signum in HANDLED)
            mask = sorted(int(signum) for signum in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
            os.write(writing, repr((defaults, mask, signal.set_wakeup_fd(-1))).encode())
            return 0

        code = outcome(fork_child(live))
        after = sorted(int(signum) for signum in signal.pthread_sigmask(signal.SIG_BLOCK, ()))
        return {"code": code, "child": os.read(reading, 4096).decode(), "after": after}

    answer = in_child(parent)
    mask = sorted((int(signal.SIGUSR2), int(signal.SIGRTMIN)))
    assert answer == {"code": 0, "child": repr((True, mask, -1)), "after": mask}


def test_a_handler_of_the_parent_never_runs_in_the_child() -> None:
    """Also not when the signal comes in the first moment of the child's life."""

    def parent() -> tuple[set[int], bytes]:
        reading, writing = os.pipe2(os.O_NONBLOCK)
        me = os.getpid()
        signal.signal(signal.SIGTERM, lambda *_: os.write(writing, b"!") if os.getpid() != me else None)
        codes = set()
        for _ in range(50):
            pid = fork_child(lambda: (signal.pause(), 0)[1])  # type: ignore[func-returns-value]
            os.kill(pid, signal.SIGTERM)
            codes.add(outcome(pid))
        try:
            return codes, os.read(reading, 64)
        except BlockingIOError:
            return codes, b""

    assert in_child(parent) == ({-signal.SIGTERM}, b"")
