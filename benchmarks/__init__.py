"""What preforkd costs, beside its peers, measured in one run: ``make bench``, or ``python -m benchmarks --help``.

    __main__    the command line; which scenario runs, in which order, for how long
    cpu         processor time for a request, requests a second, latency
    memory      a real application in eight workers
    growth      a pool of 2 that suddenly has 64 clients
    life        start, death of a worker, reloads under load, idleness
    overload    three times as many clients as can be served: who is still useful?
    peers       the peers, each with a configuration that does it justice, and how it is installed
    servers     servers as processes: started, waited for, and ended for certain
    load        the clients: wrk where it is installed, else a loop of our own
    measure     what /proc says about a tree of processes
    report      numbers to Markdown and JSON
    picture     numbers to SVG
    apps, orm   the applications that are served
    bare, forked, forked_bjoern
                what has no command of its own: a loop in Python that does nothing else, and bjoern

Not part of the package: nothing in ``preforkd`` imports this.
"""
