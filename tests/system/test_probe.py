from __future__ import annotations
import os, random, signal, time, subprocess, sys, http.client
from pathlib import Path
from tests.system.daemon import Daemon, free_port, ROOT
from tests.system.traffic import Traffic, ask, settled
from tests.system.test_kill_under_load import whole, titled, wait_titled, used
import pytest

@pytest.fixture
def fixed(daemon: Daemon) -> Daemon:
    daemon.pool["workers"] = {"start": 2, "min_spare": 1, "max_spare": 2, "max": 2}
    return daemon

HANG = "print('hangs')\ntime.sleep(3600)\n"

def hup_and_hang(d):
    d.write_app("hangs", head=HANG); d.signal(signal.SIGHUP); d.wait_for_event("app_output", line="hangs")

def test_kill_loading_template(fixed):
    fixed.start()
    with Traffic(fixed) as t:
        hup_and_hang(fixed)
        p = wait_titled(fixed, "template g2 loading")
        os.kill(p, 9)
        e = fixed.wait_for_event("reload_failed"); print(e["text"])
    t.check()

def test_stop_loading_template(fixed):
    fixed.pool["timeouts"]["start"] = "1s"
    fixed.start()
    with Traffic(fixed) as t:
        hup_and_hang(fixed)
        p = wait_titled(fixed, "template g2 loading")
        os.kill(p, signal.SIGSTOP)
        e = fixed.wait_for_event("reload_failed"); print(e["text"])
    t.check()

@pytest.mark.parametrize("sig", [9, 15, 19])
def test_canary(fixed, sig):
    fixed.pool["preload"] = "never"
    fixed.pool["timeouts"]["start"] = "1s"
    fixed.start()
    with Traffic(fixed) as t:
        hup_and_hang(fixed)
        p = wait_titled(fixed, "g2 starting")
        os.kill(p, sig)
        e = fixed.wait_for_event("reload_failed"); print(e["text"])
        fixed.wait_for_status(settled(1))
        fixed.write_app("2")
        assert fixed.ask_reload() == ""
    t.check()

def test_reloader_killed(fixed):
    fixed.start()
    with Traffic(fixed) as t:
        fixed.write_app("2", head="print('slow')\ntime.sleep(0.5)\n")
        c = subprocess.Popen([sys.executable, "-m", "preforkd", "reload", str(fixed.config_file)], cwd=ROOT)
        fixed.wait_for_event("app_output", line="slow")
        c.kill(); c.wait()
        fixed.wait_for_event("reload_done")
        assert ask(fixed)[0] == "2"
    t.check()

DEADLY = """
good, served = application, 0

def application(environ, start_response):
    global served
    served += 1
    if served > 5:
        os._exit(1)
    return good(environ, start_response)
"""
def test_rollback_never(fixed):
    fixed.pool["preload"] = "never"
    fixed.pool["timeouts"]["probation"] = "20s"
    fixed.start()
    with Traffic(fixed, kept=0) as t:
        fixed.write_app("deadly", tail=DEADLY)
        fixed.signal(signal.SIGHUP)
        fixed.wait_for_event("generation_rollback")
        time.sleep(2)
        print(fixed.status()["pools"]["web"])
        fixed.write_app("ok")
        print("reload", fixed.ask_reload())
        print(fixed.status()["pools"]["web"])
    print(fixed.log)

def test_rollback_port(fixed):
    a, b = f"127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    fixed.listen_on(a)
    fixed.pool["timeouts"]["probation"] = "20s"
    fixed.start()
    fixed.write_app("deadly", tail=DEADLY)
    fixed.listen_on(b); fixed.save()
    assert fixed.ask_reload() == ""
    with Traffic(fixed, kept=0) as t:
        fixed.wait_for_event("generation_rollback")
        fixed.wait_for_status(settled(1))
        assert ask(fixed, address=a)[0] == "1"
        fixed.wait_for_event("listener_closed", listen=b)
        with pytest.raises(ConnectionRefusedError):
            ask(fixed, address=b)
    print(len(t.failed), {o.failure for o in t.failed})

def test_term_while_starting(fixed):
    fixed.write_app("hangs", head=HANG)
    fixed.start(ready=False)
    fixed.wait_for_event("app_output", line="hangs")
    fixed.signal(signal.SIGTERM)
    assert fixed.wait_exit() == 0

def test_stop_master(fixed):
    fixed.start()
    with Traffic(fixed) as t:
        os.kill(fixed.pid, signal.SIGSTOP)
        t.wait(200)
        os.kill(fixed.pid, signal.SIGCONT)
        t.wait(20)
    t.check()

def test_reload_with_stopped_worker(fixed):
    fixed.pool["timeouts"]["graceful"] = "1s"
    fixed.start()
    with Traffic(fixed, kept=0) as t:
        v = fixed.pids()[1]
        os.kill(v, signal.SIGSTOP)
        fixed.wait_for_event("child_stopped", pid=v)
        fixed.write_app("2")
        b = time.monotonic()
        assert fixed.ask_reload() == ""
        print("took", time.monotonic() - b)
        fixed.wait_for_status(settled(2))
        print("settled", time.monotonic() - b)
        print(fixed.wait_for_event("worker_exit", pid=v))
    assert len(t.failed) <= 1

def test_reload_with_stopped_template(fixed):
    fixed.start()
    with Traffic(fixed) as t:
        p = fixed.template()
        os.kill(p, signal.SIGSTOP)
        fixed.wait_for_event("child_stopped", pid=None) if 0 else None
        fixed.write_app("2")
        b = time.monotonic()
        assert fixed.ask_reload() == ""
        print("took", time.monotonic() - b)
        print(fixed.wait_for_event("template_exit", pid=p), time.monotonic() - b)
    t.check()

def test_term_with_stopped(fixed):
    fixed.pool["timeouts"]["graceful"] = "500ms"
    fixed.start()
    os.kill(fixed.pids()[0], signal.SIGSTOP)
    os.kill(fixed.template(), signal.SIGSTOP)
    b = time.monotonic()
    assert fixed.stop() == 0
    print(time.monotonic() - b)

def test_request_timeout(fixed):
    fixed.pool["timeouts"]["request"] = "1s"
    fixed.expect_noise = True
    fixed.start()
    with Traffic(fixed, kept=0) as t:
        h = fixed.hold("a")
        e = fixed.wait_for_event("worker_exit", pid=h.pid)
        print(e)
        assert h.lost()
        fixed.wait_for_status(whole(2))
    t.check()

@pytest.mark.parametrize("how", ["stop", "kill"])
def test_strangers(fixed, how):
    fixed.write_app("1", tail="""
import subprocess
def application(environ, start_response):
    subprocess.Popen("sleep 300 & sleep 301 &", shell=True, start_new_session=True).wait()
    start_response("200 OK", [("X-Worker-Pid", str(os.getpid()))])
    return [b"ok"]
""")
    fixed.start()
    ask(fixed)
    print(fixed.processes())
    b = time.monotonic()
    if how == "stop":
        fixed.stop()
    print(time.monotonic() - b, fixed.processes())
    
def test_kill_checker(fixed):
    fixed.start()
    with Traffic(fixed) as t:
        for i in range(10):
            fixed.signal(signal.SIGHUP)
            fixed.wait_for_event("reload_start", count=i+1)
            for p, x in fixed.processes().items():
                if x.count("preforkd: master") and p != fixed.pid:
                    try: os.kill(p, 9); print("killed")
                    except ProcessLookupError: pass
            fixed.wait_for_status(lambda s: len(fixed.events("reload_failed")) + len(fixed.events("reload_done")) == i+1)
    print([e["text"] for e in fixed.events("reload_failed")])
    t.check()
