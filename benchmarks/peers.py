"""The peers: with which configuration each of them is started, what it can do, and how it is installed.

All get the same interpreter, application, number of processes, backlog and time limits, and an access log only where
that is what is measured. Each gets its best honest configuration: what was tried beside it, and why it is the best,
stands in docs/benchmarks.md. A peer that is not installed is left out, by name.
"""

from __future__ import annotations

import enum
import importlib.util
import os
import pwd
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

PREFORKD = "preforkd"
COMPILED = "preforkd compiled"
SYNC = "gunicorn sync"
GTHREAD = "gunicorn gthread"

#: Threads of a gthread worker; of 1, 2, 4 and 8 the best in a trial with keep-alive clients.
_GTHREADS = 4
#: Threads of a process where one connection occupies one thread: enough for all 32 clients of two processes.
_THREADS = 16
#: Processes of Apache's prefork, where one connection occupies one process: for 32 clients, and some that go.
_PREFORK = 40
_BACKLOG = 2048
#: The environment with the compiled build, beside this one: `make bench` makes it where there is a compiler.
_COMPILED = Path(sys.prefix + "-compiled")
#: nginx is not in the PATH of those who are not root.
_PATH = os.pathsep.join((os.environ.get("PATH", os.defpath), "/usr/sbin", "/usr/local/sbin"))
#: What some builds of Apache have compiled in, and others load.
_BUILT_IN = {"log_config": "mod_log_config.so", "unixd": "mod_unixd.so"}
_APACHE_MODULES = ("/usr/lib/apache2/modules", "/usr/lib64/httpd/modules", "/usr/lib/httpd/modules")


class Serves(enum.Flag):
    """What a peer can be asked for."""

    HELLO = enum.auto()
    #: A large answer and a large body.
    LARGE = enum.auto()
    FILE = enum.auto()
    ACCESS_LOG = enum.auto()
    ALL = HELLO | LARGE | FILE | ACCESS_LOG


@dataclass(frozen=True, slots=True)
class Plan:
    """How a server shall serve.

    Attributes:
        app: Module and attribute, ``module:attribute``; for peers that serve WSGI applications of one's own.
        workers: Processes at the start, which all peers but an adaptive preforkd keep.
        most: preforkd may grow up to so many; 0 is a pool of fixed size.
        access_log: Write one into the server's directory.
        keep_alive: False where every client brings a connection of its own, for peers that do not heed its wish.
        preload: Load the application before forking (gunicorn; preforkd does it anyway).
        warmup: Paths that preforkd requests before it forks.
        timeouts: More of preforkd's ``timeouts``.
        environment: More variables for the application.
    """

    app: str = "benchmarks.apps:application"
    workers: int = 2
    most: int = 0
    access_log: bool = False
    keep_alive: bool = True
    preload: bool = False
    warmup: tuple[str, ...] = ()
    timeouts: Mapping[str, str] = field(default_factory=dict)
    environment: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a server finds what it serves and keeps what it needs.

    Attributes:
        port: Of the loopback device.
        directory: Its own, for configuration, pid file and logs (``log``, ``access.log``).
        documents: What a server of files serves: ``hello.txt`` and ``file.txt``.
    """

    port: int
    directory: Path
    documents: Path


@dataclass(frozen=True, slots=True)
class Peer:
    """One peer.

    Attributes:
        name: The head of its column.
        command: Its command line; writes the files it names.
        serves: What it can be asked for.
        modules, programs: What has to be installed for it.
        install: The command that installs it.
        heeds_close: Whether it closes a connection when the client asks for it; if not, see `Plan.keep_alive`.
        yardstick: What it is, if it does less or other work than the servers that are compared; else empty.
    """

    name: str
    command: Callable[[Plan, Place], list[str]]
    serves: Serves = Serves.ALL
    modules: tuple[str, ...] = ()
    programs: tuple[tuple[str, ...], ...] = ()
    install: str = ""
    heeds_close: bool = True
    yardstick: str = ""

    def missing(self) -> bool:
        """True if it is not installed."""
        return not (
            all(importlib.util.find_spec(module) for module in self.modules)
            and all(program(*names) for names in self.programs)
        )


def program(*names: str) -> str:
    """The path of the first that there is: beside this interpreter, or in the PATH; empty if there is none."""
    beside = str(Path(sys.executable).parent) + os.pathsep + _PATH
    return next((found for name in names if (found := shutil.which(name, path=beside))), "")


def _preforkd(plan: Plan, place: Place) -> list[str]:
    workers = f"start: {plan.workers}, max: {plan.most or plan.workers}"
    if plan.most:
        workers += f", min_spare: {plan.workers}"
    timeouts = ", ".join(f"{name}: {value}" for name, value in {"request": "30s", **plan.timeouts}.items())
    directory = place.directory
    file = directory / "preforkd.yaml"
    file.write_text(
        f"""\
pid_file: {directory}/preforkd.pid
control: {directory}/control.sock
log:
  errors: {directory}/log
  access: {directory / "access.log" if plan.access_log else "off"}
pools:
  bench:
    listen: 127.0.0.1:{place.port}
    app: {plan.app}
    directory: {ROOT}
    warmup: [{", ".join(plan.warmup)}]
    workers: {{{workers}}}
    timeouts: {{{timeouts}}}
    limits: {{backlog: {_BACKLOG}}}
"""
    )
    return [sys.executable, "-m", "preforkd", "run", str(file)]


def _gunicorn(plan: Plan, place: Place, kind: str) -> list[str]:
    argv = [sys.executable, "-m", "gunicorn", plan.app, "--bind", f"127.0.0.1:{place.port}", "--chdir", str(ROOT)]
    argv += ["--workers", str(plan.workers), "--worker-class", kind, "--backlog", str(_BACKLOG)]
    argv += ["--timeout", "30", "--keep-alive", "5", "--error-logfile", str(place.directory / "log")]
    # Its heartbeat is a file; on a slow disk the worker would wait for it, says its documentation.
    argv += ["--worker-tmp-dir", "/dev/shm", "--no-control-socket"]
    if kind == "gthread":
        argv += ["--threads", str(_GTHREADS)]
    if plan.access_log:
        argv += ["--access-logfile", str(place.directory / "access.log")]
    if plan.preload:
        argv += ["--preload"]
    return argv


def _compiled(plan: Plan, place: Place) -> list[str]:
    # Neither this directory nor PYTHONPATH may come before the installed package.
    _, *command = _preforkd(plan, place)
    return ["env", "-u", "PYTHONPATH", str(_COMPILED / "bin" / "python"), "-P", *command]


def _sync(plan: Plan, place: Place) -> list[str]:
    return _gunicorn(plan, place, "sync")


def _gthread(plan: Plan, place: Place) -> list[str]:
    return _gunicorn(plan, place, "gthread")


def _uwsgi(plan: Plan, place: Place) -> list[str]:
    # Its own socket with keep-alive, where a connection occupies a thread: with fewer of them 30 of 32 clients get no
    # answer at all. Its router would keep connections without threads, and costs four times as much.
    argv = [program("uwsgi"), "--module", plan.app, "--need-app"]
    if plan.keep_alive:
        argv += ["--http11-socket", f"127.0.0.1:{place.port}"]
    else:
        argv += ["--http-socket", f"127.0.0.1:{place.port}", "--add-header", "Connection: close"]
    argv += ["--master", "--processes", str(plan.workers), "--threads", str(_THREADS), "--listen", str(_backlog())]
    argv += ["--die-on-term", "--chdir", str(ROOT), "--pythonpath", str(ROOT), "--harakiri", "30"]
    # Head and file are two writes: without it every file waits for the client's delayed acknowledgement, 40 ms.
    argv += ["--tcp-nodelay"]
    argv += ["--home", sys.prefix] if sys.prefix != sys.base_prefix else []
    log = place.directory / "access.log" if plan.access_log else place.directory / "log"
    return [*argv, "--logto", str(log), *([] if plan.access_log else ["--disable-logging"])]


def _backlog() -> int:
    """uWSGI and bjoern do not start with, or do not cut, a backlog that the kernel would."""
    return min(_BACKLOG, int(Path("/proc/sys/net/core/somaxconn").read_text()))


def _granian(plan: Plan, place: Place) -> list[str]:
    argv = [program("granian"), "--interface", "wsgi", "--host", "127.0.0.1", "--port", str(place.port)]
    argv += ["--workers", str(plan.workers), "--http", "1", "--no-ws", "--backlog", str(_BACKLOG)]
    argv += ["--runtime-mode", "st", "--access-log" if plan.access_log else "--no-access-log", "--log-level", "warn"]
    return [*argv, plan.app]


def _bjoern(plan: Plan, place: Place) -> list[str]:
    argv = [sys.executable, "-m", "benchmarks.forked_bjoern", str(place.port), str(plan.workers)]
    return [*argv, str(_backlog())]


def _uvicorn(plan: Plan, place: Place) -> list[str]:
    argv = [program("uvicorn"), "benchmarks.apps:asgi", "--host", "127.0.0.1", "--port", str(place.port)]
    argv += ["--workers", str(plan.workers), "--backlog", str(_BACKLOG), "--interface", "asgi3", "--lifespan", "off"]
    argv += ["--loop", "uvloop", "--http", "httptools", "--ws", "none", "--no-proxy-headers"]
    return [*argv, *(("--access-log",) if plan.access_log else ("--no-access-log", "--log-level", "warning"))]


def _bare(plan: Plan, place: Place) -> list[str]:
    return [sys.executable, "-m", "benchmarks.bare", str(place.port), str(plan.workers), str(_backlog())]


def _nginx(plan: Plan, place: Place) -> list[str]:
    directory = place.directory
    file = directory / "nginx.conf"
    temporary = "\n".join(
        f"    {what}_temp_path {directory}/{what};" for what in ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    )
    log = f"{directory}/access.log" if plan.access_log else "off"
    file.write_text(
        f"""\
{"user root;" if not os.getuid() else ""}
daemon off;
worker_processes {plan.workers};
pid {directory}/nginx.pid;
error_log {directory}/log;
events {{ worker_connections 4096; }}
http {{
{temporary}
    access_log {log};
    default_type text/plain;
    sendfile on;
    tcp_nopush on;
    open_file_cache max=100;
    keepalive_timeout 5s;
    # wrk's clients never go on their own.
    keepalive_requests 100000000;
    server {{
        listen 127.0.0.1:{place.port} backlog={_backlog()};
        root {place.documents};
        location = / {{ try_files /hello.txt =404; }}
        location = /file {{ try_files /file.txt =404; }}
    }}
}}
"""
    )
    return [program("nginx"), "-c", str(file), "-e", f"{directory}/log"]


def _apache(place: Place, modules: dict[str, str], directives: str, plan: Plan) -> list[str]:
    """An Apache of our own, apart from the machine's: its modules by name and file, then more directives."""
    directory = place.directory
    file = directory / "httpd.conf"
    found = _apache_modules()
    # Built in here, a file there.
    modules = {**modules, **{name: path for name, path in _BUILT_IN.items() if (found / path).exists()}}
    if plan.access_log:
        directives += f'CustomLog "{directory}/access.log" "%h %l %u %t \\"%r\\" %>s %b"\n'
    loads = "\n".join(f'LoadModule {name}_module "{found / path}"' for name, path in modules.items())
    file.write_text(
        f"""\
ServerRoot "{directory}"
DefaultRuntimeDir "{directory}"
PidFile "{directory}/pid"
ServerName localhost
ErrorLog "{directory}/log"
LogLevel error
Listen 127.0.0.1:{place.port}
ListenBacklog {_BACKLOG}
Timeout 30
KeepAlive On
KeepAliveTimeout 5
MaxKeepAliveRequests 0
{loads}
{directives}
<Directory "/">
    Require all granted
    AllowOverride None
</Directory>
"""
    )
    argv = [program("apache2", "httpd"), "-f", str(file), "-DFOREGROUND"]
    if os.getuid():
        return argv
    # Apache does not serve as root. Whom it serves as may read what root may: this Python may be root's alone.
    nobody = pwd.getpwnam("nobody")
    for path in (directory, *directory.iterdir()):
        os.chown(path, nobody.pw_uid, nobody.pw_gid)
    identity = [f"--reuid={nobody.pw_uid}", f"--regid={nobody.pw_gid}", "--clear-groups"]
    return ["setpriv", *identity, "--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search", *argv]


def _apache_modules() -> Path:
    return next((Path(path) for path in _APACHE_MODULES if Path(path).is_dir()), Path(_APACHE_MODULES[0]))


def _mod_wsgi(plan: Plan, place: Place) -> list[str]:
    # Embedded: the application is in the processes that hold the connections. Daemon processes cost twice as much.
    spec = importlib.util.find_spec("mod_wsgi")
    assert spec is not None, "see Peer.missing"
    assert spec.submodule_search_locations is not None
    module = next(Path(spec.submodule_search_locations[0], "server").glob("*.so"))
    file, _, attribute = plan.app.partition(":")
    script = ROOT / (file.replace(".", "/") + ".py")
    modules = {"mpm_worker": "mod_mpm_worker.so", "authz_core": "mod_authz_core.so", "wsgi": str(module)}
    directives = f"""\
ServerLimit {plan.workers}
StartServers {plan.workers}
ThreadLimit {_THREADS}
ThreadsPerChild {_THREADS}
MaxRequestWorkers {plan.workers * _THREADS}
MinSpareThreads 1
MaxSpareThreads {plan.workers * _THREADS}
WSGIPythonHome "{sys.prefix}"
WSGIPythonPath "{ROOT}"
WSGIEnableSendfile On
WSGIApplicationGroup %{{GLOBAL}}
WSGICallableObject {attribute}
WSGIScriptAlias / "{script}"
"""
    return _apache(place, modules, directives, plan)


def _apache_prefork(plan: Plan, place: Place) -> list[str]:
    modules = {"mpm_prefork": "mod_mpm_prefork.so", "authz_core": "mod_authz_core.so", "alias": "mod_alias.so"}
    modules["mime"] = "mod_mime.so"
    directives = f"""\
ServerLimit {_PREFORK}
StartServers {_PREFORK}
MaxRequestWorkers {_PREFORK}
MinSpareServers 1
MaxSpareServers {_PREFORK}
EnableSendfile On
TypesConfig /dev/null
DocumentRoot "{place.documents}"
AliasMatch "^/$" "{place.documents}/hello.txt"
AliasMatch "^/file$" "{place.documents}/file.txt"
AddType text/plain .txt
"""
    return _apache(place, modules, directives, plan)


_APACHE = (("apache2", "httpd"), ("setpriv",))
_PIP = f"{sys.executable} -m pip install"

#: By name, in the order of the columns.
PEERS: Mapping[str, Peer] = {
    peer.name: peer
    for peer in (
        Peer(PREFORKD, _preforkd),
        Peer(
            COMPILED,
            _compiled,
            programs=((str(_COMPILED / "bin" / "preforkd"),),),
            install="apt-get install gcc python3-dev && make bench",
        ),
        Peer(SYNC, _sync, modules=("gunicorn",), install=f"{_PIP} gunicorn gunicorn_h1c"),
        Peer(GTHREAD, _gthread, modules=("gunicorn",), install=f"{_PIP} gunicorn gunicorn_h1c"),
        Peer(
            "uWSGI",
            _uwsgi,
            programs=(("uwsgi",),),
            install=f"apt-get install gcc python3-dev && {_PIP} uwsgi",
            heeds_close=False,
        ),
        Peer("granian", _granian, modules=("granian",), install=f"{_PIP} granian"),
        Peer(
            "mod_wsgi",
            _mod_wsgi,
            modules=("mod_wsgi",),
            programs=_APACHE,
            install=f"apt-get install apache2 apache2-dev gcc && {_PIP} mod_wsgi",
        ),
        Peer(
            "bjoern",
            _bjoern,
            Serves.HELLO | Serves.LARGE | Serves.FILE,
            modules=("_bjoern",),
            install=f"apt-get install libev-dev gcc && {_PIP} bjoern",
        ),
        Peer(
            "uvicorn",
            _uvicorn,
            Serves.HELLO | Serves.LARGE | Serves.ACCESS_LOG,
            modules=("uvicorn", "uvloop", "httptools"),
            install=f"{_PIP} uvicorn uvloop httptools",
            yardstick="ASGI: an event loop, and another application",
        ),
        Peer(
            "bare loop",
            _bare,
            Serves.HELLO,
            yardstick="benchmarks/bare.py: a fixed answer, nothing parsed, nothing checked",
        ),
        Peer(
            "Apache prefork",
            _apache_prefork,
            Serves.HELLO | Serves.FILE | Serves.ACCESS_LOG,
            programs=_APACHE,
            install="apt-get install apache2",
            yardstick=f"files, no application; {_PREFORK} processes, because a connection occupies one",
        ),
        Peer(
            "nginx",
            _nginx,
            Serves.HELLO | Serves.FILE | Serves.ACCESS_LOG,
            programs=(("nginx",),),
            install="apt-get install nginx-light",
            yardstick="files, no application",
        ),
    )
}
