"""What the tests of the standalone modules share: each leaves the process's descriptors as it found them."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest


def _open() -> dict[int, str]:
    found = {}
    for fd in map(int, os.listdir("/proc/self/fd")):
        try:
            found[fd] = os.readlink(f"/proc/self/fd/{fd}")
        except FileNotFoundError:  # the descriptor of the listing itself
            continue
    return found


@pytest.fixture(autouse=True)
def no_descriptor_leaks() -> Iterator[None]:
    """Fails a test after which a descriptor is open that was not before."""
    before = _open()
    yield
    left = {fd: target for fd, target in _open().items() if before.get(fd) != target}
    assert not left, f"the test left descriptors open: {left}"
