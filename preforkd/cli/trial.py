"""`preforkd check`: loads each pool's application as its template would, in a child that then ends."""

from __future__ import annotations

import contextlib
import os
import sys

from preforkd.config import Pool
from preforkd.errors import ExitCode
from preforkd.master.checker import Checked
from preforkd.master.world import inherited
from preforkd.privileges import Identity
from preforkd.spawn import Channel, ChannelClosed, fork_child
from preforkd.worker import rehearsal


def load_all(checked: Checked) -> bool:
    """Load every application; prints what fails to stderr. True when something failed."""
    config, identities = checked.config, checked.identities
    assert config is not None and identities is not None
    failed = False
    for name, pool in ((name, inherited(pool, config)) for name, pool in config.pools.items()):
        near, far = Channel.pair()

        def load(pool: Pool = pool, identity: Identity = identities[name], far: Channel = far) -> int:
            return rehearsal.load(pool, identity, config.path, far)

        pid = fork_child(load)
        far.close()
        _, status = os.waitpid(pid, 0)
        received = None
        with contextlib.suppress(ChannelClosed):
            received = near.receive()
        near.close()
        code = os.waitstatus_to_exitcode(status)
        if code == ExitCode.OK:
            continue
        failed = True
        text = received[0]["failed"] if received else f"the process that loaded it ended: exit status {code}"
        print(f"{config.path}: pools.{name}.app: {text}", file=sys.stderr)
    return failed
