"""The porter's thread by itself: what it leaves behind when the request is over."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence

from preforkd.models.connection import Connection
from preforkd.models.porter import Porter

PATIENCE = 10.0
#: Before any porter was at work.
SWITCH = sys.getswitchinterval()


def wait_for_switch_interval() -> None:
    """The porter puts it back; the end of a request does not wait for that."""
    deadline = time.monotonic() + PATIENCE
    while sys.getswitchinterval() != SWITCH and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sys.getswitchinterval() == SWITCH


class Nothing:
    """A burden that is nobody."""

    def __init__(self) -> None:
        self.engaged = threading.Event()
        self.looked = 0

    def movable(self) -> Sequence[Connection]:
        self.looked += 1
        return ()

    def pass_on(self, connection: Connection) -> bool:
        raise AssertionError

    def relay(self) -> bool:
        return False

    def readers(self) -> Sequence[Connection]:
        return ()

    def send_on(self, connection: Connection) -> bool:
        raise AssertionError

    def can_pass_on(self, ready: int) -> bool:
        raise AssertionError

    def failed(self, traceback: str) -> None:
        raise AssertionError(traceback)

    def goes_on(self) -> None:
        self.engaged.set()

    def orphaned(self) -> None:
        raise AssertionError


def test_the_switch_interval_is_put_back_after_the_request() -> None:
    burden = Nothing()
    porter = Porter(burden, None)
    porter.start()
    for _ in range(3):
        burden.engaged.clear()
        porter.begin()
        assert burden.engaged.wait(PATIENCE)
        assert porter.end(), "it was at work"
        wait_for_switch_interval()


def test_a_late_word_about_a_request_before_does_not_make_it_stand_in_at_once() -> None:
    burden = Nothing()
    porter = Porter(burden, None)
    porter.start()
    # As if `end` had been interrupted between its look at the porter and its word to it.
    os.eventfd_write(porter._over, 1)
    porter.begin()
    assert burden.engaged.wait(PATIENCE)
    try:
        os.eventfd_read(porter._over)
    except BlockingIOError:
        heard = True
    else:
        heard = False
    assert heard, "it would spin until the end of the request"
    porter.end()


def test_a_failure_is_told_and_not_the_end() -> None:
    class Failing(Nothing):
        def __init__(self) -> None:
            super().__init__()
            self.told = threading.Semaphore(0)
            self.tracebacks: list[str] = []

        def movable(self) -> Sequence[Connection]:
            raise ZeroDivisionError

        def failed(self, traceback: str) -> None:
            self.tracebacks.append(traceback)
            self.told.release()

    burden = Failing()
    porter = Porter(burden, None)
    porter.start()
    for number in range(1, 4):
        porter.begin()
        assert burden.told.acquire(timeout=PATIENCE)
        porter.end()
        assert len(burden.tracebacks) == number
        assert "ZeroDivisionError" in burden.tracebacks[-1]
    wait_for_switch_interval()
