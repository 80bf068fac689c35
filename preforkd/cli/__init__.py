"""The command ``preforkd``: argv to a call and an exit code. Everything is wired here, nothing is decided.

Each command takes the configuration file as its optional argument and finds the running master by the control socket
that the file names. Exit codes: 0 done, 1 failed, 2 wrong usage, 78 the configuration cannot work (sysexits.h).
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import setproctitle

from preforkd import config as configuration
from preforkd import pidfile
from preforkd.control import client
from preforkd.errors import ConfigError, ExitCode, NotRunning, PreforkdError
from preforkd.master import report
from preforkd.master.checker import Checked, Checker
from preforkd.stamp import running_version


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of the console script. Returns the exit code; never raises for what a person can cause."""
    _open_standard_descriptors()
    # It must see the original environment before anything is removed from it, or titles silently do not work.
    with contextlib.suppress(UnicodeError):
        setproctitle.getproctitle()
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.call
    try:
        code = int(command(arguments))
        sys.stdout.flush()
        return code
    except PreforkdError as error:
        # A list of mistakes stands by itself: each line begins with its place.
        places = isinstance(error, ConfigError) or str(error).startswith("/")
        print(error if places else f"preforkd: {error}", file=sys.stderr)
        return int(error.exit_code)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader of our output is gone (`preforkd status | head`); keep the interpreter from saying so again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return int(ExitCode.FAILURE)
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        # Our output's disk is full.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        print(f"preforkd: cannot write: {error.strerror}", file=sys.stderr)
        return int(ExitCode.FAILURE)


def _open_standard_descriptors() -> None:
    """Give 0, 1 and 2 to /dev/null where they are closed (`>&-`), or a pipe of ours would get their numbers and lose it
    to whatever is put there later."""
    for descriptor, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)  # the lowest free number is this one
            setattr(sys, name, open(descriptor, "w" if descriptor else "r", closefd=False))  # noqa: SIM115


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preforkd",
        description="A prefork daemon: owns connections and processes.",
        epilog="Exit status: 0 done, 1 failed, 2 wrong usage, 78 the configuration cannot work.",
    )
    parser.add_argument("--version", action="version", version=f"preforkd {running_version()}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    def add(name: str, call: Callable[[argparse.Namespace], int], summary: str, file: bool = True) -> Any:
        command = commands.add_parser(name, help=summary, description=summary)
        command.set_defaults(call=call)
        if file:
            command.add_argument(
                "file",
                nargs="?",
                metavar="FILE",
                help="the configuration (default: /etc/preforkd/preforkd.yaml, your own, or the welcome page)",
            )
        return command

    run = add("run", _run, "serve in the foreground")
    run.add_argument("--single", action="store_true", help="in this one process, without forking: for debuggers")
    start = add("start", _start, "serve in the background; returns when it serves, or with the reason why not")
    start.add_argument(
        "--timeout", type=float, default=0, metavar="SECONDS", help="longest wait (default: timeouts.start)"
    )
    stop = add("stop", _stop, "stop, after what is being served; returns when everything has ended")
    stop.add_argument("--fast", action="store_true", help="do not wait for requests that are being served")
    add(
        "reload",
        _reload,
        "take over edited configuration and new code; returns when they serve, or with the reason why not",
    )
    status = add("status", _status, "show pools, workers and the last reload")
    status.add_argument("--json", action="store_true", help="for programs")
    check = add("check", _check, "look for mistakes in the configuration, and load the applications")
    check.add_argument("--syntax", action="store_true", help="the configuration only; do not load applications")
    reopen = add(
        "reopen", _reopen, "open the log files anew, after they were rotated; returns when every worker has done so"
    )
    reopen.add_argument("--timeout", type=float, default=60, metavar="SECONDS", help="longest wait (default: 60)")
    add("schema", _schema, "print the JSON schema of the configuration, for editors", file=False)
    add("sample", _sample, "print a configuration with every setting, its default and its meaning", file=False)
    return parser


def _path(arguments: argparse.Namespace) -> str:
    return os.path.abspath(arguments.file) if arguments.file else configuration.default_file()


def checked(path: str, *, starting: bool = False) -> Checked:
    """Read and check a configuration in a child process; ``starting`` as for `Checker`.

    Raises:
        ConfigError: with every mistake.
        PreforkdError: the check itself failed.
    """
    try:
        answer = Checker(path, starting=starting).result()
    except OSError as failure:
        raise PreforkdError(
            f"cannot fork a process to check {path}: {failure.strerror}; see this user's limits (ulimit -u) and memory"
        ) from None
    error = answer.error()
    if error is not None:
        raise error
    return answer


def _call(
    arguments: argparse.Namespace, command: str, args: Mapping[str, Any] | None = None, **how: Any
) -> dict[str, Any]:
    """Ask the master that runs this configuration, which may be broken by now.

    Raises:
        NotRunning: nobody answers; if somebody runs all the same, the text says what can be done.
    """
    pid_file, control = configuration.runtime_of(_path(arguments))
    try:
        return client.call(control, command, args, **how)
    except NotRunning as error:
        pid = pidfile.holder(pid_file)
        if not pid:
            raise
        raise NotRunning(
            f"pid {pid} runs (pid file {pid_file}) but does not answer at {control}: {error}; `kill -HUP {pid}` brings"
            f" a removed control socket back, `kill -TERM {pid}` stops the service"
        ) from None


# --- commands ---------------------------------------------------------------------------------------------------------


def _run(arguments: argparse.Namespace) -> int:
    from preforkd.cli import boot, single

    if arguments.single:
        return single.serve(checked(_path(arguments), starting=True))
    return boot.run(checked(_path(arguments), starting=True))


def _start(arguments: argparse.Namespace) -> int:
    from preforkd.cli import boot

    return boot.start(checked(_path(arguments), starting=True), arguments.timeout)


def _stop(arguments: argparse.Namespace) -> int:
    _call(arguments, "stop", {"fast": arguments.fast}, until_gone=True)
    print("stopped")
    return ExitCode.OK


def _reload(arguments: argparse.Namespace) -> int:
    result = _call(arguments, "reload")
    for note in result.get("notes", ()):
        print(f"not applied: {note}", file=sys.stderr)
    print(f"reloaded: generation {result['generation']}")
    return ExitCode.OK


def _status(arguments: argparse.Namespace) -> int:
    result = _call(arguments, "status", timeout=10)
    print(json.dumps(result, indent=2) if arguments.json else report.as_text(result))
    return ExitCode.OK


def _reopen(arguments: argparse.Namespace) -> int:
    _call(arguments, "reopen", timeout=arguments.timeout)
    return ExitCode.OK


def _check(arguments: argparse.Namespace) -> int:
    path = _path(arguments)
    try:
        answer = checked(path)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return ExitCode.FAILURE
    assert answer.config is not None
    failed = False
    if not arguments.syntax:
        from preforkd.cli import trial

        failed = trial.load_all(answer)
    if not failed:
        print(f"{path}: fine ({', '.join(answer.config.pools)})")
    return ExitCode.FAILURE if failed else ExitCode.OK


def _schema(arguments: argparse.Namespace) -> int:
    print(json.dumps(configuration.schema(), indent=2))
    return ExitCode.OK


def _sample(arguments: argparse.Namespace) -> int:
    print(configuration.sample(), end="")
    return ExitCode.OK


__all__ = ["checked", "main"]
