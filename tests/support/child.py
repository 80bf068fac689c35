"""Running a function in a forked child: for everything that changes the process it runs in."""

from __future__ import annotations

import ctypes
import os
import pickle
import traceback
from collections.abc import Callable
from typing import TypeVar

import pytest

T = TypeVar("T")

#: linux/capability.h
CAP_CHOWN, CAP_DAC_OVERRIDE, CAP_FOWNER, CAP_SETGID, CAP_SETUID, CAP_NET_BIND_SERVICE = 0, 1, 3, 6, 7, 10

#: For tests that become another user.
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which only root can")


def in_child(function: Callable[[], T]) -> T:
    """Fork, call ``function`` in the child, return what it returned; fail the test with its traceback if it raised."""
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            try:
                answer = (True, function())
            except BaseException:
                answer = (False, traceback.format_exc())  # type: ignore[assignment]
            with open(writing, "wb") as pipe:
                pickle.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(writing)
    with open(reading, "rb") as pipe:
        content = pipe.read()
    os.waitpid(pid, 0)
    if not content:
        pytest.fail("the child ended without an answer")
    good, value = pickle.loads(content)
    if not good:
        pytest.fail(f"in the child:\n{value}", pytrace=False)
    return value  # type: ignore[no-any-return]


def keep_capabilities(*numbers: int) -> None:
    """Leave this process only these capabilities, effective and permitted. In a child, as root."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()
    data[0] = data[1] = sum(1 << number for number in numbers)
    if libc.capset(ctypes.byref(header), ctypes.byref(data)) != 0:
        raise OSError(ctypes.get_errno(), "capset")
