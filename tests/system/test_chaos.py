from __future__ import annotations
import os, random, signal, time
from pathlib import Path
from tests.system.daemon import Daemon
from tests.system.traffic import Traffic, ask, settled
import pytest

def fds(pid): 
    return {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}

@pytest.mark.parametrize("preload", ["auto", "never"])
def test_leak(daemon: Daemon, preload):
    daemon.pool["preload"] = preload
    daemon.start()
    daemon.ask_reload()
    daemon.wait_for_status(settled(2))
    daemon.wait_for_event("generation_proven", generation=2)
    time.sleep(0.5)
    before = fds(daemon.pid)
    print(daemon.processes())
    print({t: len(fds(p)) for p, t in daemon.processes().items()})
    for i in range(15):
        if i % 3 == 0: daemon.write_app("bad", head="os._exit(3)\n")
        else: daemon.write_app(str(i))
        print(i, daemon.ask_reload()[:80])
    g = daemon.status()["master"]["generation"]
    daemon.wait_for_status(settled(g))
    daemon.wait_for_event("generation_proven", generation=g)
    time.sleep(0.5)
    print(len(before), len(fds(daemon.pid)), before, fds(daemon.pid))
    print(daemon.processes())
    print({t: len(fds(p)) for p, t in daemon.processes().items()})
    kids = Path(f"/proc/{daemon.pid}/task/{daemon.pid}/children").read_text().split()
    print(kids)
    # idle wake-ups
    def switches():
        return {p: sum(int(l.split()[1]) for l in Path(f"/proc/{p}/status").read_text().splitlines() if "ctxt" in l) for p in daemon.processes()}
    a = switches(); time.sleep(2); b = switches()
    print("SWITCHES", {p: b[p]-a[p] for p in a})
    for pid in (daemon.pid, daemon.template(), daemon.pids()[0]):
        print(Path(f"/proc/{pid}/status").read_text().split("VmRSS")[1][:20])

def test_chaos(daemon: Daemon):
    daemon.pool["workers"] = {"start": 4, "min_spare": 2, "max_spare": 6, "max": 8}
    daemon.start()
    r = random.Random(int(os.environ.get("SEED","1")))
    kills = 0
    v = 1
    with Traffic(daemon, kept=0, fresh=4, path="/work/2") as t:
        end = time.monotonic()+5
        while time.monotonic() < end:
            k = r.randrange(10)
            procs = [(p,x) for p,x in daemon.processes().items() if p != daemon.pid]
            try:
                if k < 4:
                    v += 1; daemon.write_app(str(v)); daemon.signal(signal.SIGHUP)
                elif k < 8:
                    p, x = r.choice(procs); os.kill(p, 9); kills += 1
                elif k == 8: daemon.signal(r.choice([signal.SIGTTIN, signal.SIGTTOU, signal.SIGUSR1]))
                else:
                    p, x = r.choice(procs); os.kill(p, signal.SIGSTOP); time.sleep(0.05); os.kill(p, signal.SIGCONT)
            except ProcessLookupError: pass
            time.sleep(0.04)
        time.sleep(0.5)
        v += 1; daemon.write_app(str(v)); 
        for _ in range(3):
            a = daemon.ask_reload()
            print("FINAL", a)
            if not a: break
        g = daemon.status()["master"]["generation"]
        daemon.wait_for_status(settled(g))
        assert ask(daemon)[0] == str(v)
        t.wait(50)
    print("kills", kills, "failed", len(t.failed), "ok", len(t.outcomes), [str(o) for o in t.failed], "worst", t.worst(0, 1e18))
    from collections import Counter
    print(Counter(e.name for e in daemon._events))
    assert len(t.failed) <= kills
