"""Life after fork: the template, its stem, and the workers.

`estate` is what the master leaves to them, `template` loads the application once and only forks, `stem` is the
intermediate that is already forked, `main` is a worker's life, `context` what its model may use, `leftovers` what an
import left behind.
"""
