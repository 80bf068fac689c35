"""Unix stream sockets with a path: bound without a window, never stolen, removed only while they are ours.

The listeners and the control socket stand on this; it imports nothing of ours but the errors. Four things go wrong with
such sockets elsewhere, and each has its answer here:

* *Stealing.* ``unlink`` before ``bind`` takes the path from an instance that is alive. Here a socket file is replaced
  only after nobody answered a connect. Instances that start at the same moment take turns by a lock on the directory,
  so that two of them cannot both find the same dead file and then remove each other's new one.
* *The window.* Between ``bind`` and ``chmod`` the socket must not be open to more users than it ends up with.
  ``fchmod`` on a socket that is not bound yet sets the mode its file is created with (unix(7) is silent about it,
  ``unix_bind`` in the kernel takes the mode of the socket's inode), which leaves the umask of the process alone.
* *A temporary name and rename* would close the remaining gap of a few microseconds without a path, but ``getsockname``
  would give the temporary name for ever, and sockets that come back from systemd's store are known by nothing else.
* *Removing a successor's socket.* The file's device and inode are remembered. A bound socket pins its inode, so the
  number cannot be used again while the socket is open: remove first, close afterwards.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import grp
import os
import pwd
import socket
import stat
import struct
import time
from collections.abc import Iterator
from typing import NamedTuple

from preforkd.errors import ListenError

#: Bytes of a path that fit into ``sockaddr_un`` with its final zero (unix(7)).
PATH_MAX = 107

#: For how long a start waits for another instance that is binding in the same directory, in seconds. The lock is held
#: for microseconds; the limit is there because anyone who may read the directory may hold the lock.
LOCK_PATIENCE = 0.25

# sock_diag(7); the numbers are those of linux/sock_diag.h and linux/unix_diag.h.
_NETLINK_SOCK_DIAG = 4
_SOCK_DIAG_BY_FAMILY = 20
_NLM_F_REQUEST = 1
_UDIAG_SHOW_VFS, _UNIX_DIAG_VFS = 0x02, 1
_UDIAG_SHOW_RQLEN, _UNIX_DIAG_RQLEN = 0x10, 4
_NLMSGHDR = struct.Struct("=IHHII")
_UNIX_DIAG_REQ = struct.Struct("=BBHIIIII")
_UNIX_DIAG_MSG_SIZE = 16
_RTATTR = struct.Struct("=HH")


class SocketInUse(ListenError):
    """Another process answers at the path."""


class FileId(NamedTuple):
    """What tells one file from another, whatever its name: device and inode."""

    device: int
    inode: int


def bind(
    path: str, *, mode: int = 0o600, owner: str | None = None, group: str | None = None, backlog: int = 128
) -> tuple[socket.socket, FileId]:
    """Listen at ``path`` and return the socket (non-blocking, close-on-exec) and the identity of its file.

    A dead socket there is replaced. ``owner`` and ``group`` are names or numbers; looking names up can block where
    accounts live on the network. Raises `SocketInUse` where a process answers, `ListenError` for everything else; both
    leave nothing behind.
    """
    size = len(os.fsencode(path))
    if size > PATH_MAX:
        raise ListenError(f"{_cannot(path)}: the path has {size} bytes, the kernel takes {PATH_MAX}; use a shorter one")
    uid, gid = owner_ids(path, owner, group)
    with _turn(os.path.dirname(path)):
        _clear(path)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC)
        file: FileId | None = None
        try:
            os.fchmod(sock.fileno(), 0o600)
            sock.bind(path)
            # Not `identify`: on an overlay the kernel names the file of a layer. The directory is ours for this turn.
            file = _file_at(path)
            if file is None:
                raise ListenError(f"{_cannot(path)}: the new socket vanished at once; does something clean up there?")
            # Listening comes before the mode: whoever may connect finds a live socket, not a seemingly dead one.
            sock.listen(backlog)
            set_access(path, file, mode, uid, gid)
        except BaseException as error:
            if file is not None:
                remove(path, file)
            sock.close()
            if isinstance(error, OSError):
                raise ListenError(f"{_cannot(path)}: {_advice(path, error)}") from error
            raise
        return sock, file


def owner_ids(path: str, owner: str | None, group: str | None) -> tuple[int, int]:
    """The uid and gid of a socket's future owner, -1 where nothing is to change. Raises `ListenError`."""
    try:
        uid = -1 if owner is None else int(owner) if owner.isdecimal() else pwd.getpwnam(owner).pw_uid
    except KeyError:
        raise ListenError(f"{_cannot(path)}: its owner is to be {owner}, but there is no such user") from None
    try:
        gid = -1 if group is None else int(group) if group.isdecimal() else grp.getgrnam(group).gr_gid
    except KeyError:
        raise ListenError(f"{_cannot(path)}: its group is to be {group}, but there is no such group") from None
    return uid, gid


def set_access(path: str, file: FileId, mode: int, uid: int = -1, gid: int = -1) -> None:
    """Give the socket at ``path`` its mode, then its owner: without CAP_FOWNER the other order fails.

    Both act on the very file that ``file`` names, never on what somebody may have put in its place meanwhile. Raises
    `ListenError`.
    """
    try:
        handle = os.open(path, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise ListenError(f"{_cannot(path)}: {_advice(path, error)}") from error
    try:
        status = os.fstat(handle)
        if (status.st_dev, status.st_ino) != file:
            raise ListenError(f"{_cannot(path)}: another file took the place of the new socket")
        # chmod and chown know no descriptor opened with O_PATH; the link in /proc leads to the same file.
        name = f"/proc/self/fd/{handle}"
        os.chmod(name, mode)
        if uid != -1 or gid != -1:
            try:
                os.chown(name, uid, gid)
            except PermissionError as error:
                raise ListenError(
                    f"{_cannot(path)}: {error.strerror} for owner {uid} and group {gid} "
                    "(only root can give a socket away, others only to a group of their own)".replace(
                        "owner -1 and ", ""
                    )
                ) from error
    finally:
        os.close(handle)


def remove(path: str, file: FileId) -> bool:
    """Remove the socket at ``path`` if it still is ``file``; say whether it was. Call it before the socket closes."""
    if _file_at(path) != file:
        return False
    try:
        os.unlink(path)
    except OSError:
        # The directory is gone or read-only by now. What stays behind is a dead socket; the next start replaces it.
        return False
    return True


def move(path: str, target: str, file: FileId) -> None:
    """Rename the socket at ``path`` if it still is ``file``; who connects by the old name finds nothing there.

    Only a dead socket at ``target`` gives way. Raises `ListenError`.
    """
    with _turn(os.path.dirname(path)):
        if _file_at(path) != file:
            raise ListenError(f"unix:{path} is not our socket any more; something removed or replaced it")
        _clear(target)
        try:
            os.rename(path, target)
        except OSError as error:
            raise ListenError(f"cannot rename unix:{path} to {target}: {_advice(path, error)}") from error


def is_at(path: str, file: FileId | None) -> bool:
    """Whether ``path`` still leads to ``file``; with None, whether it leads to any socket."""
    if file is not None:
        return _file_at(path) == file
    try:
        return stat.S_ISSOCK(os.lstat(path).st_mode)
    except OSError:
        return False


def identify(sock: socket.socket) -> FileId | None:
    """The file a bound unix socket owns, by word of the kernel; None if it does not say (no netlink in a sandbox)."""
    attribute = _diagnose(sock, _UDIAG_SHOW_VFS, _UNIX_DIAG_VFS)
    if attribute is None:
        return None
    inode, device = struct.unpack_from("=II", attribute)
    # The kernel's own encoding of a device: 12 bits major, 20 bits minor. Inodes are cut to 32 bits here.
    major, minor = device >> 20, device & 0xFFFFF
    path = sock.getsockname()
    if not isinstance(path, str) or not path:
        return None
    found = _file_at(path)
    if found is not None and found.inode & 0xFFFFFFFF == inode and found.device == os.makedev(major, minor):
        return found
    # On an overlay (containers) the kernel names the file of a layer, which stat(2) never shows: then it does not say.
    if found is not None and found.device != os.makedev(major, minor):
        return None
    return FileId(os.makedev(major, minor), inode)


def queue(sock: socket.socket) -> int | None:
    """The connections that wait to be accepted from a unix listener; None if the kernel does not say. About 30 us."""
    attribute = _diagnose(sock, _UDIAG_SHOW_RQLEN, _UNIX_DIAG_RQLEN)
    return None if attribute is None else int(struct.unpack_from("=I", attribute)[0])


def _diagnose(sock: socket.socket, show: int, wanted: int) -> bytes | None:
    """Ask sock_diag(7) about one unix socket and return one attribute of the answer.

    The netlink socket lives for the one question: nothing to keep out of forked children, and a few microseconds more.
    """
    inode = os.fstat(sock.fileno()).st_ino
    # All states, and no cookie: the inode alone names the socket.
    body = _UNIX_DIAG_REQ.pack(socket.AF_UNIX, 0, 0, 0xFFFFFFFF, inode & 0xFFFFFFFF, show, 0xFFFFFFFF, 0xFFFFFFFF)
    head = _NLMSGHDR.pack(_NLMSGHDR.size + len(body), _SOCK_DIAG_BY_FAMILY, _NLM_F_REQUEST, 1, 0)
    try:
        with socket.socket(
            socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK, _NETLINK_SOCK_DIAG
        ) as netlink:
            # The kernel answers within the send, so the answer is there and nothing can block.
            netlink.send(head + body)
            answer = netlink.recv(4096)
    except OSError:
        return None
    if len(answer) < _NLMSGHDR.size:
        return None
    length, kind, *_ = _NLMSGHDR.unpack_from(answer)
    if kind != _SOCK_DIAG_BY_FAMILY:
        return None
    offset = _NLMSGHDR.size + _UNIX_DIAG_MSG_SIZE
    while offset + _RTATTR.size <= length:
        size, found = _RTATTR.unpack_from(answer, offset)
        if size < _RTATTR.size:
            return None
        if found == wanted:
            return answer[offset + _RTATTR.size : offset + size]
        offset += (size + 3) & ~3
    return None


def _file_at(path: str) -> FileId | None:
    try:
        status = os.lstat(path)
    except OSError:
        return None
    return FileId(status.st_dev, status.st_ino)


def _clear(path: str) -> None:
    """Make room at ``path``: nothing there, or a socket at which nobody answers. Raises `ListenError`."""
    try:
        status = os.lstat(path)
    except FileNotFoundError:
        return
    except OSError as error:
        raise ListenError(f"{_cannot(path)}: {_advice(path, error)}") from error
    if not stat.S_ISSOCK(status.st_mode):
        raise ListenError(f"{_cannot(path)}: {_kind(status.st_mode)} is there; remove it or choose another path")
    _ask(path)
    # Somebody without our lock may have bound anew since: do not remove what was not asked.
    if _file_at(path) != (status.st_dev, status.st_ino):
        raise SocketInUse(f"{_cannot(path)}: another process bound it just now")
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ListenError(
            f"{_cannot(path)}: a dead socket is there and cannot be removed: {error.strerror}; remove it"
        ) from error


def _ask(path: str) -> None:
    """Return if nobody listens at ``path``. Raise `SocketInUse` if somebody does, `ListenError` if nobody knows."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC) as probe:
        code = probe.connect_ex(path)
    if code in (errno.ECONNREFUSED, errno.ENOENT):
        return
    # EAGAIN: its queue is full, so it has one. EPROTOTYPE: a datagram socket, alive all the same.
    if code in (0, errno.EAGAIN, errno.EINPROGRESS, errno.EPROTOTYPE):
        raise SocketInUse(
            f"{_cannot(path)}: another process is listening there (`ss -xlp src {path}` names it); "
            "stop it or choose another path"
        )
    raise ListenError(
        f"{_cannot(path)}: a socket is there, and whether somebody answers cannot be told: {os.strerror(code)}; "
        "remove it or choose another path"
    )


@contextlib.contextmanager
def _turn(directory: str) -> Iterator[None]:
    """Hold the directory's lock while a path in it is tested and taken; go on without it after `LOCK_PATIENCE`."""
    try:
        handle = os.open(directory or ".", os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError:
        # Missing or unreadable: bind itself will say so, better than we could here.
        yield
        return
    try:
        give_up = time.monotonic() + LOCK_PATIENCE
        while True:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except OSError as error:
                # Not every file system locks directories (ENOLCK, EBADF on some network ones).
                if error.errno != errno.EWOULDBLOCK or time.monotonic() >= give_up:
                    break
                time.sleep(0.002)
        yield
    finally:
        os.close(handle)


def _cannot(path: str) -> str:
    return f"cannot bind unix:{path}"


def _kind(mode: int) -> str:
    for test, words in (
        (stat.S_ISREG, "a regular file"),
        (stat.S_ISDIR, "a directory"),
        (stat.S_ISLNK, "a symbolic link"),
        (stat.S_ISFIFO, "a named pipe"),
    ):
        if test(mode):
            return words
    return "a device"


def _advice(path: str, error: OSError) -> str:
    """The system's words for ``error`` and what to do about it."""
    reason = error.strerror or str(error)
    directory = os.path.dirname(path) or "."
    match error.errno:
        case errno.ENOENT | errno.ENOTDIR:
            if os.path.lexists(directory) and not os.path.isdir(directory):
                return f"{reason} ({directory} is not a directory)"
            return f"{reason} (the directory {directory} does not exist: create it)"
        case errno.EACCES | errno.EPERM:
            return f"{reason} (the user who starts preforkd needs to write in {directory})"
        case errno.EADDRINUSE:
            return f"{reason} (another process took the path just now)"
        case errno.EROFS:
            return f"{reason} (choose a path below /run)"
        case errno.EMFILE | errno.ENFILE:
            return f"{reason} (raise LimitNOFILE= or `ulimit -n`)"
    return reason
