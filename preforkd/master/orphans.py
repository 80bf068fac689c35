"""What the last master left behind in our cgroup, and what is left when we end (facts F8).

With ``KillMode=process`` the workers of a master that was killed finish what they hold. A hung or stopped one would
survive restart and stop. So a new master looks once, at its start, who is in its service's cgroup; gives them
`graceful`; then kills who is still there. They are not its children, so it holds a pidfd of each: a number that was
used again cannot be met. Only under systemd, in a cgroup that systemd made for this very service.
"""

from __future__ import annotations

import contextlib
import os
import signal

from preforkd import systemd
from preforkd.logs import EventLog


class Orphans:
    """Master only."""

    def __init__(self, enabled: bool) -> None:
        # SYSTEMD_EXEC_PID says that systemd started this very process; a shell in a unit's cgroup inherits the rest.
        self._enabled = enabled and os.environ.get("SYSTEMD_EXEC_PID") == str(os.getpid())
        self._pidfds: dict[int, int] = {}
        #: When the grace is over (monotonic seconds); None when nobody is left.
        self.wake_at: float | None = None

    def look(self, until: float | None) -> None:
        """Find who is there before we fork anybody; they have until ``until`` (monotonic seconds; None: for ever)."""
        if not self._enabled or until is None:
            return
        for pid in systemd.cgroup_pids():
            with contextlib.suppress(OSError):
                self._pidfds[pid] = os.pidfd_open(pid)
        if self._pidfds:
            self.wake_at = until

    def act(self, now: float, events: EventLog) -> None:
        """Kill who is still there when the grace is over."""
        if self.wake_at is None or now < self.wake_at:
            return
        self.wake_at = None
        members = systemd.cgroup_pids()
        for pid, pidfd in self._pidfds.items():
            if pid in members:
                with contextlib.suppress(OSError):
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
                    events.warning("orphan_killed", pid=pid, reason="left by the last master, and its grace is over")
            os.close(pidfd)
        self._pidfds.clear()

    def sweep(self) -> None:
        """The last act of a stop: nobody stays in the cgroup, whoever's child it was."""
        if not self._enabled:
            return
        for pid in systemd.cgroup_pids():
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
