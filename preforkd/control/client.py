"""The command's end of the control socket: one blocking call. For the command line and for tests, never the master."""

from __future__ import annotations

import errno
import grp
import os
import pwd
import socket
import stat
import time
from collections.abc import Callable, Mapping
from typing import Any

from preforkd.control.protocol import MAX_ANSWER, Command, Lines, ProtocolError, decode_answer, encode_command
from preforkd.errors import ExitCode, NotRunning, PreforkdError

#: Seconds between two attempts while the master's queue of newcomers is full.
_RETRY = 0.02


class Refused(PreforkdError):
    """The master could not do what was asked; its own sentence. ``result`` holds what it said besides."""

    def __init__(self, text: str, exit_code: int, result: Mapping[str, Any]) -> None:
        super().__init__(text)
        self.result = result
        try:
            self.exit_code = ExitCode(exit_code)
        except ValueError:  # a newer master knows more of them
            self.exit_code = ExitCode.FAILURE


def call(
    path: str,
    command: str,
    args: Mapping[str, Any] | None = None,
    *,
    timeout: float | None = None,
    on_progress: Callable[[Mapping[str, Any]], None] | None = None,
    until_gone: bool = False,
) -> dict[str, Any]:
    """Send one command to the master whose control socket is ``path``, and wait for its final answer.

    ``timeout`` is in seconds for the whole of it; None waits as long as the master works. ``on_progress`` is called for
    each message before the final one. ``until_gone`` goes on waiting after the final answer until the master has closed
    the connection, which is its last act: then another can start in its place.

    Raises `NotRunning` if no master can be reached, `Refused` if it says no, and `PreforkdError` if it went away or did
    not answer in time (then nobody knows whether the command was carried out).
    """
    end = None if timeout is None else time.monotonic() + timeout
    request = encode_command(Command(command, args or {}, id=1))
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as sock:
        _connect(sock, path, end, timeout)
        lines = Lines(MAX_ANSWER)
        try:
            _limit(sock, end)
            # A master that refuses at once has closed before it read; what it said is there to be read all the same.
            try:
                sock.sendall(request)
            except (BrokenPipeError, ConnectionResetError):
                pass
            while data := _receive(sock, end):
                for line in lines.feed(data):
                    answer = decode_answer(line)
                    if not answer.final:
                        if on_progress is not None:
                            on_progress(answer.result)
                    elif answer.error is not None:
                        raise Refused(answer.error, answer.exit_code, answer.result)
                    else:
                        while until_gone and _receive(sock, end):
                            pass
                        return dict(answer.result)
        except TimeoutError:
            raise PreforkdError(
                f"no answer to {command} within {timeout:g} s; the master may still be working on it: "
                "its log and `preforkd status` tell"
            ) from None
        except ProtocolError as error:
            raise PreforkdError(f"what answers at {path} is no preforkd master: {error}") from error
    raise PreforkdError(f"the master went away before it answered {command}; its log tells why")


def _connect(sock: socket.socket, path: str, end: float | None, timeout: float | None) -> None:
    while True:
        try:
            _limit(sock, end)
            sock.connect(path)
            return
        except TimeoutError:
            raise PreforkdError(f"the master does not take calls at {path} within {timeout:g} s; it may hang") from None
        except BlockingIOError:
            # With a time limit the socket does not block, and a full queue is said at once: come again.
            time.sleep(_RETRY)
        except OSError as error:
            raise NotRunning(_why(path, error)) from error


def _limit(sock: socket.socket, end: float | None) -> None:
    """Let the next operation take what is left of the time. Raises `TimeoutError` if nothing is."""
    if end is None:
        return
    left = end - time.monotonic()
    if left <= 0:
        raise TimeoutError
    sock.settimeout(left)


def _receive(sock: socket.socket, end: float | None) -> bytes:
    _limit(sock, end)
    try:
        return sock.recv(65536)
    except ConnectionResetError:
        return b""


def _why(path: str, error: OSError) -> str:
    """Why no master can be reached, and what helps."""
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            return f"not running: there is no control socket {path} (`preforkd start` starts the service)"
        case errno.ECONNREFUSED if stat.S_ISSOCK(_mode(path)):
            return (
                f"not running: nobody answers at the control socket {path}, which a master left behind "
                "(`preforkd start` starts the service)"
            )
        case errno.EACCES | errno.EPERM:
            return f"may not speak to the master: {_permission(path)}"
        case errno.ECONNREFUSED | errno.ENOTSOCK | errno.EPROTOTYPE:
            return f"not running: {path} is not a control socket (control: in the configuration names it)"
        case None:
            return f"not running: the path of the control socket cannot be used: {error} ({path})"
    return f"not running: the control socket {path}: {error.strerror}"


def _permission(path: str) -> str:
    """What the mode of the socket, or of the first directory that is in the way, asks for."""
    me = _name(os.geteuid(), pwd.getpwuid)
    try:
        status = os.stat(path)
    except OSError:
        return f"{me} may not enter the directory of the control socket {path}; try it as root (sudo)"
    group = _name(status.st_gid, grp.getgrgid)
    mode = stat.S_IMODE(status.st_mode)
    advice = f"try it as root (sudo), or as a member of the group {group}" if mode & 0o020 else "try it as root (sudo)"
    owner = _name(status.st_uid, pwd.getpwuid)
    return f"the control socket {path} has mode {mode:04o}, owner {owner}, group {group}, and you are {me}; {advice}"


def _mode(path: str) -> int:
    try:
        return os.stat(path).st_mode
    except OSError:
        return 0


def _name(number: int, look_up: Callable[[int], Any]) -> str:
    try:
        return str(look_up(number)[0])
    except KeyError:
        return str(number)
