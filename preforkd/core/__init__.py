"""The pure heart: policy, pool table, reconcile. No os, socket, time or logging in here; `now` is an argument.

Reading order: `policy` (how many workers?), `table` (who is alive?), `reconcile` (what now, and when again?).
"""
