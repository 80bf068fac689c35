"""What the tests of the configuration share: a text in, the mistakes out, one line each."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable

import pytest

from preforkd.config import Config, read_text
from preforkd.errors import ConfigError

Said = Callable[..., list[str]]

POOL = 'pools: {web: {listen: "127.0.0.1:80", app: "a:b"}}\n'


@pytest.fixture
def said() -> Said:
    """The mistakes of a text, as they are shown, without the file's name; [] if there are none."""

    def mistakes(text: str | bytes) -> list[str]:
        try:
            read_text(text, "/etc/preforkd/preforkd.yaml")
        except ConfigError as error:
            return [str(mistake).removeprefix("/etc/preforkd/preforkd.yaml:").strip() for mistake in error.mistakes]
        return []

    return mistakes


@pytest.fixture
def pool_of() -> Callable[[str], Config]:
    """The configuration of one pool's settings, in flow style."""
    return lambda settings: read_text(
        f'pools: {{web: {{listen: "127.0.0.1:80", app: "a:b", {settings} }}}}', "/etc/preforkd/preforkd.yaml"
    )


@pytest.fixture
def unprivileged() -> Callable[[Callable[[], None]], None]:
    """Call a function without root's right to read everything: in a child with another user id, if need be."""

    def call(function: Callable[[], None]) -> None:
        if os.geteuid() != 0:
            function()
            return
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
                function()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0

    return call
