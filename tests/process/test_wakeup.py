"""Signals become members of a set, and the poll ends: in bursts, from threads, and never for what a child received."""

from __future__ import annotations

import os
import select
import signal
import threading

from preforkd.spawn import fork_child
from preforkd.wakeup import Wakeup
from tests.support.child import in_child

#: Milliseconds; only a broken wake-up waits for so long.
PATIENCE = 5000


def ready(wakeup: Wakeup, patience: int = 0) -> bool:
    poll = select.poll()
    poll.register(wakeup.fileno(), select.POLLIN)
    return bool(poll.poll(patience))


def test_a_signal_is_noted_once_and_ends_the_poll() -> None:
    def child() -> None:
        wakeup = Wakeup((signal.SIGUSR1, signal.SIGTERM))
        assert wakeup.drain() == set()
        for _ in range(3):
            signal.raise_signal(signal.SIGUSR1)
        signal.raise_signal(signal.SIGTERM)
        assert ready(wakeup)
        assert wakeup.drain() == {signal.SIGUSR1, signal.SIGTERM}
        assert not ready(wakeup)
        assert wakeup.drain() == set()
        wakeup.close()

    in_child(child)


def test_a_burst_of_dying_children_loses_none() -> None:
    def child() -> None:
        wakeup = Wakeup((signal.SIGCHLD,))
        reading, writing = os.pipe()
        born = {fork_child(lambda: 0 if os.read(reading, 1) == b"" else 1, {reading}) for _ in range(60)}
        os.close(writing)
        reaped: set[int] = set()
        while reaped != born:
            assert ready(wakeup, PATIENCE), f"{len(born - reaped)} deaths were not heard of"
            assert wakeup.drain() <= {signal.SIGCHLD}
            while reaped != born:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                assert status == 0
                reaped.add(pid)

    in_child(child)


def test_a_signal_that_only_the_child_received_changes_nothing_in_the_parent() -> None:
    def child() -> None:
        wakeup = Wakeup((signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP))
        for signum in (signal.SIGUSR1, signal.SIGTERM, signal.SIGHUP):

            def live(signum: int = signum) -> int:
                signal.raise_signal(signum)
                return 0

            pid = fork_child(live)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signum
            assert not ready(wakeup)
            assert wakeup.drain() == set()

    in_child(child)


def test_a_fork_that_is_not_ours_costs_an_idle_turn_and_no_more() -> None:
    """Until a child says ``set_wakeup_fd(-1)``, the interpreter writes *its* signals into the parent's pipe."""

    def child() -> None:
        wakeup = Wakeup((signal.SIGUSR1,))
        pid = os.fork()
        if pid == 0:
            signal.raise_signal(signal.SIGUSR1)
            os._exit(0)
        os.waitpid(pid, 0)
        assert ready(wakeup, PATIENCE)
        assert wakeup.drain() == set()
        assert not ready(wakeup)

    in_child(child)


def test_a_full_pipe_is_as_good_as_a_byte() -> None:
    def child() -> None:
        wakeup = Wakeup((signal.SIGUSR1,))
        for _ in range(100_000):
            wakeup.ring()
        signal.raise_signal(signal.SIGUSR1)
        assert ready(wakeup)
        assert wakeup.drain() == {signal.SIGUSR1}
        assert not ready(wakeup)

    in_child(child)


def test_any_thread_may_ring() -> None:
    def child() -> None:
        wakeup = Wakeup(())
        thread = threading.Thread(target=wakeup.ring)
        thread.start()
        assert ready(wakeup, PATIENCE)
        thread.join()
        assert wakeup.drain() == set()

    in_child(child)


def test_a_signal_between_emptying_and_taking_is_not_lost() -> None:
    """Whenever it comes, it is in this set or it ends the next poll."""

    def child() -> None:
        wakeup = Wakeup((signal.SIGALRM,))
        heard = 0
        signal.setitimer(signal.ITIMER_REAL, 0.0002, 0.0002)
        while heard < 200:
            assert ready(wakeup, PATIENCE), "a signal was noted and nobody was woken"
            heard += len(wakeup.drain())
        signal.setitimer(signal.ITIMER_REAL, 0)
        wakeup.drain()
        assert not ready(wakeup)

    in_child(child)
