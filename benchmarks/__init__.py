"""What preforkd costs, beside gunicorn, measured in one run: ``make bench``, or ``python -m benchmarks --help``.

    __main__    the command line; which scenario runs, in which order, for how long
    cpu         processor time for a request, requests a second, latency
    memory      a real application in eight workers
    growth      a pool of 2 that suddenly has 64 clients
    life        start, death of a worker, reloads under load, idleness
    servers     the peers, started with a configuration that does each of them justice, and ended for certain
    load        the clients: wrk where it is installed, else a loop of our own
    measure     what /proc says about a tree of processes
    report      numbers to Markdown
    apps, orm   the applications that are served

Not part of the package: nothing in ``preforkd`` imports this.
"""
