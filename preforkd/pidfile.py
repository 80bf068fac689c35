"""The pid file: a lock first, a number second. Master only.

Who holds the lock on the file is the running instance; the number in it is for people. That answers what pid files are
known to get wrong:

* *Stale.* The lock ends with the process, however it ended, so a file left behind by a crash is simply taken over.
  Whether some process has the number today plays no part.
* *Daemonizing.* flock(2) belongs to the open file description, not to the process (as the locks of fcntl(2) do), so it
  is taken before the first fork, while errors still reach the terminal, and stays through python-daemon's double fork.
  The number is written afterwards, by the process that stays.
* *The unlink race.* One that opened the file just before its owner removed it would hold the lock of a file that no one
  else can see. So after locking, the path has to lead to the very file that was locked; else: once more.

The other side of the lock's nature: a forked child holds it too for as long as it has the descriptor, and a worker that
outlives its master would keep the next one from starting. Children close it (`PidFile.fileno`) first of all.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat

from preforkd.errors import AlreadyRunning, PreforkdError

#: How often a path that changes under our hands is tried again. Each time means that another instance came or went.
_ATTEMPTS = 100

#: More than any number has digits; what is longer is no pid file.
_READ = 32


class PidFile:
    """A pid file whose lock this process holds. `acquire` makes one."""

    def __init__(self, path: str, fd: int, owner: int | None = None) -> None:
        """Take charge of a locked descriptor; ``owner`` is the pid that is written in the file, None if none is yet."""
        self.path = path
        self._fd = fd
        self._owner = owner

    @classmethod
    def acquire(cls, path: str) -> PidFile:
        """Lock the file at ``path``, which is made if it is missing (and its directory, the one level, 0755).

        The file is empty until `write`. Raises `AlreadyRunning` with the pid of the instance that holds it, and
        `PreforkdError` if the file cannot be used. Never waits.
        """
        for _ in range(_ATTEMPTS):
            fd = _open(path)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _same(fd, path):
                    # What a crash left would be read as the pid of the instance that is starting.
                    os.ftruncate(fd, 0)
                    return cls(path, fd)
            except BlockingIOError:
                if _same(fd, path):
                    holder = _number(os.pread(fd, _READ, 0))
                    who = f"pid {holder}" if holder else "it is just starting or stopping"
                    os.close(fd)
                    raise AlreadyRunning(
                        f"already running: {who}, pid file {path} (stop it with `preforkd stop`, "
                        "or give this instance a pid_file: of its own)"
                    ) from None
            except OSError as error:
                os.close(fd)
                raise PreforkdError(f"cannot lock the pid file {path}: {error.strerror}") from error
            os.close(fd)
        raise PreforkdError(f"cannot lock the pid file {path}: it is replaced again and again; who does that?")

    @classmethod
    def adopt(cls, path: str, fd: int) -> PidFile:
        """Go on with a locked descriptor that came through an execve in place: same pid, same lock."""
        os.set_inheritable(fd, False)
        return cls(path, fd, os.getpid())

    def fileno(self) -> int:
        """The descriptor that holds the lock: to be kept while daemonizing, to be closed in every other child."""
        return self._fd

    def write(self) -> None:
        """Write this process's pid, and own the file from now on. Raises `PreforkdError`."""
        pid = os.getpid()
        try:
            # A reader sees the old content or the new one: nothing is longer than one write.
            os.pwrite(self._fd, f"{pid}\n".encode(), 0)
            os.ftruncate(self._fd, len(f"{pid}\n"))
        except OSError as error:
            raise PreforkdError(f"cannot write the pid file {self.path}: {error.strerror}") from error
        self._owner = pid

    def close(self) -> None:
        """Give up the descriptor. In a forked child this is all there is to do; the lock stays with the master."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def release(self) -> bool:
        """Remove the file and the lock; say whether the file was removed.

        Only the process that wrote its pid removes it, and only the very file it locked: not a forked child, and not
        what an operator or another instance has put there since.
        """
        removed = False
        if self._fd >= 0 and self._owner in (None, os.getpid()) and _same(self._fd, self.path):
            # The lock is still held, so nobody else can have locked this file meanwhile.
            with contextlib.suppress(OSError):
                os.unlink(self.path)
                removed = True
        self.close()
        return removed


def holder(path: str) -> int | None:
    """The pid of the instance that holds a pid file's lock; None if nobody does, 0 if it has not written its pid."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return _number(os.pread(fd, _READ, 0)) or 0
    except OSError:
        return None
    finally:
        os.close(fd)
    return None


def read_pid(path: str) -> int | None:
    """The number in a pid file; None if there is none. It may be stale: ask the control socket whether anybody runs."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return _number(os.read(fd, _READ))
    except OSError:
        return None
    finally:
        os.close(fd)


def _open(path: str) -> int:
    directory = os.path.dirname(path)
    with contextlib.suppress(OSError):  # it exists; or opening says what is wrong with it
        os.mkdir(directory, 0o755)
    try:
        # Neither a link that somebody laid to another file, nor a pipe that would block: only a plain file is written.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        fd = os.open(path, flags, 0o644)
    except OSError as error:
        match error.errno:
            case errno.ENOENT | errno.ENOTDIR:
                advice = f"the directory {directory} does not exist: create it"
            case errno.EACCES | errno.EPERM | errno.EROFS:
                advice = f"{_user()} needs to write in {directory}; pid_file: names another place"
            case errno.ELOOP:
                advice = "it is a symbolic link; remove it"
            case errno.EISDIR:
                advice = "it is a directory; pid_file: names a file"
            case _:
                advice = "pid_file: names another place"
        raise PreforkdError(f"cannot open the pid file {path}: {error.strerror} ({advice})") from error
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        os.close(fd)
        raise PreforkdError(f"cannot use the pid file {path}: it is no regular file; remove it")
    return fd


def _user() -> str:
    return "root" if os.geteuid() == 0 else f"user {os.geteuid()}"


def _same(fd: int, path: str) -> bool:
    """Whether ``path`` leads to the open file."""
    try:
        there = os.stat(path, follow_symlinks=False)
    except OSError:
        return False
    return os.path.samestat(os.fstat(fd), there)


def _number(content: bytes) -> int | None:
    text = content.strip()
    return int(text) if text.isdigit() and int(text) > 0 else None
