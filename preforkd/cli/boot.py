"""Brings a master up: in the foreground (`run`), or detached with somebody waiting for the outcome (`start`)."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import signal
import stat
import sys
import time
from collections.abc import Callable

from preforkd import config as configuration
from preforkd import systemd
from preforkd.control.server import ControlServer
from preforkd.errors import ExitCode, PreforkdError
from preforkd.logs import open_logs
from preforkd.master.checker import Checked
from preforkd.master.loop import Equipment, Master
from preforkd.pidfile import PidFile
from preforkd.stamp import build_stamp
from preforkd.worker import template
from preforkd.worker.settle import set_title

#: Beyond the applications' own start: forks, canaries, this machine having a bad day. Seconds.
_SLACK = 30.0


def run(checked: Checked) -> int:
    """Serve in the foreground. Returns the exit code.

    Raises:
        PreforkdError: it cannot start; nothing is left behind.
    """
    return _serve(checked, lambda failure: None)


def _serve(checked: Checked, on_start: Callable[[str | None], None]) -> int:
    config, identities = checked.config, checked.identities
    assert config is not None and identities is not None
    # First of all, before anything opens descriptors that would get these numbers.
    adopted = systemd.listen_fds(os.environ)
    notifier = systemd.Notifier.from_environment(os.environ)
    _raise_limit()
    stamp = build_stamp()
    os.umask(config.umask)
    os.chdir("/")
    _make_runtime_folder(config.pid_file, config.control)
    logs = open_logs(config.log)
    try:
        pid_file = PidFile.acquire(config.pid_file)
    except PreforkdError:
        logs.close()
        raise
    try:
        control = ControlServer.open(config.control)
    except PreforkdError:
        pid_file.release()
        raise
    try:
        pid_file.write()
        set_title(f"master {config.path}")
        equipment = Equipment(
            config=config,
            identities=identities,
            control=control,
            pid_file=pid_file,
            logs=logs,
            notifier=notifier,
            template_main=template.run,
            environment=systemd.without_ours(os.environ),
            stamp=stamp,
            adopted=adopted,
            on_start=on_start,
        )
        return Master(equipment).run()
    except BaseException:
        control.close()
        pid_file.release()
        raise


def _make_runtime_folder(*files: str) -> None:
    """Make the default folder of pid file and control socket; below /tmp it must be ours, or somebody else's trap.

    Raises:
        PreforkdError: somebody else made it.
    """
    folder = configuration.runtime_folder()
    if folder not in map(os.path.dirname, files):
        return
    with contextlib.suppress(FileExistsError):
        os.mkdir(folder, 0o755 if os.geteuid() == 0 else 0o700)
    found = os.lstat(folder)
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or found.st_mode & 0o022:
        raise PreforkdError(
            f"cannot use the folder {folder} for the pid file and the control socket: it must be a directory of yours"
            " that nobody else can write to; remove it, set XDG_RUNTIME_DIR, or name pid_file: and control: in the file"
        )


def _raise_limit() -> None:
    """A descriptor a worker, and the listeners: the soft limit of 1024 is for programs that use select(2)."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def start(checked: Checked, timeout: float) -> int:
    """Detach, and wait until the service serves or says why it cannot. Returns the exit code for the shell.

    python-daemon does the detaching and nothing else: it cannot give up root correctly, its pid file is no lock, and
    its process that the shell waits for ends before anybody knows how the start went. So we fork once before it, and
    the process that the shell waits for reads the outcome from a pipe.

    Raises:
        PreforkdError: it cannot start.
    """
    config = checked.config
    assert config is not None
    if os.environ.get("NOTIFY_SOCKET"):
        raise PreforkdError("`preforkd start` detaches, which systemd does not want; use `preforkd run` (Type=notify)")
    if timeout <= 0:
        timeout = max(pool.timeouts.start for pool in config.pools.values()) + _SLACK
    if config.log.errors == "stderr":
        print(
            f"preforkd: its log will go nowhere: name a file in {config.path or 'the configuration'}, for instance"
            " log: {errors: /var/log/preforkd/error.log}, or syslog",
            file=sys.stderr,
        )
    read, write = os.pipe2(os.O_CLOEXEC)
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            os.close(read)
            code = _detached(checked, write)
        finally:
            os._exit(code)
    os.close(write)
    return _await(read, pid, timeout)


def _await(read: int, pid: int, timeout: float) -> int:
    data = b""
    deadline = time.monotonic() + timeout
    poll = select.poll()
    poll.register(read, select.POLLIN)
    while not data.endswith(b"\0"):
        left = deadline - time.monotonic()
        if left <= 0 or not poll.poll(left * 1000):
            raise PreforkdError(
                f"it did not serve within {timeout:.0f} s and may still be starting; see `preforkd status` and its log"
            )
        part = os.read(read, 65536)
        if not part:
            break
        data += part
    os.waitpid(pid, 0)  # python-daemon's first parent, gone at once
    if not data:
        raise PreforkdError("it ended before it could say why; run it in the foreground: `preforkd run`")
    code, _, text = data.rstrip(b"\0").decode(errors="replace").partition(" ")
    if code != "0":
        print(f"preforkd: cannot start: {text}", file=sys.stderr)
    return int(code)


def _detached(checked: Checked, pipe: int) -> int:
    import daemon

    config = checked.config
    assert config is not None
    said = False

    def say(code: int, text: str) -> None:
        nonlocal said
        if not said:
            said = True
            # Whoever waited may be gone.
            with contextlib.suppress(OSError):
                data = f"{code} {text}".encode()[:60000] + b"\0"
                while data:
                    data = data[os.write(pipe, data) :]
            os.close(pipe)

    # Not its users, pid file, signals or umask: see `preforkd.privileges`, `preforkd.pidfile` and the master's own.
    context = daemon.DaemonContext(
        detach_process=True,
        working_directory="/",
        umask=config.umask,
        prevent_core=False,
        files_preserve=[pipe],
        signal_map={},
    )
    context.open()
    signal.signal(signal.SIGPIPE, signal.SIG_IGN)
    code = int(ExitCode.FAILURE)
    try:
        code = _serve(checked, lambda failure: say(0 if failure is None else int(ExitCode.FAILURE), failure or ""))
    except PreforkdError as error:
        code = int(error.exit_code)
        say(code, str(error))
    except BaseException:
        import traceback

        say(code, traceback.format_exc())
        raise
    say(code, "it was stopped while it started")
    return code
