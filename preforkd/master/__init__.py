"""The master: binds, forks, reaps, decides. One thread, one poll, and no line of an application, ever.

`loop` is the turn (wait, reap, fold, observe, decide, act), `kernel` what carries plans out, `world` what belongs to
one generation, `checker` the child that reads the configuration, `reloads` the transaction around it, `report` the
status.
"""
