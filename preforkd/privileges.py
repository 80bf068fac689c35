"""Giving up root, completely and in the right order; and the process attributes that hang together with it.

The master keeps root to bind ports and open logs again. Templates and workers give it up before they import one line of
the application. The order is not free: groups while still root, the group id before the user id, and all three ids of
each (real, effective, saved), because a saved root is a way back. `drop` then looks whether there is one. (Elsewhere:
``initgroups`` without ``setgid`` leaves group 0, ``setuid`` without ``setgroups`` leaves root's groups.)

Who the worker is to be is looked up in advance (`resolve`): NSS may ask a server on the network, which must not hold up
the master's loop, nor be missing in a worker that starts while that server is down.

Changing ids also has effects that are not asked for, setpriv(1) and prctl(2) have the details:

* The parent-death signal is cleared: `set_pdeathsig` comes after `drop`.
* The process becomes *undumpable*: no core files, and the files in its /proc/PID belong to root. That is kept as it is,
  because it also keeps other processes of the same user from reading a worker's memory, where TLS keys may be. Only a
  ``core`` limit in the configuration lifts it (`set_dumpable`): who asks for core files gets them.
* Capabilities: root's are cleared by the kernel. Those of a master that is not root but has some
  (AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit) are not; `drop` clears them.

Everything that a forked child calls here has been looked up when this module was imported: no symbol is searched, no
library loaded between fork and exec or exit.
"""

from __future__ import annotations

import ctypes
import errno
import grp
import os
import pwd
import resource
import stat
from dataclasses import dataclass

from preforkd.errors import PrivilegeError

# linux/prctl.h
_PR_SET_PDEATHSIG = 1
_PR_SET_DUMPABLE = 4
_PR_SET_CHILD_SUBREAPER = 36
_PR_SET_NO_NEW_PRIVS = 38
_PR_GET_NO_NEW_PRIVS = 39
_PR_CAP_AMBIENT = 47
_PR_CAP_AMBIENT_CLEAR_ALL = 4

#: linux/capability.h: version 3 has two words of 32 bits for each of effective, permitted, inheritable.
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = _libc.prctl
_prctl.argtypes = [ctypes.c_int, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong, ctypes.c_ulong]
_prctl.restype = ctypes.c_int
_capset = _libc.capset
_capset.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
_capset.restype = ctypes.c_int


@dataclass(frozen=True, slots=True)
class Identity:
    """Whom a worker is to be, with everything that was looked up for it."""

    user: str
    group: str
    uid: int
    gid: int
    #: The supplementary groups, ``gid`` among them.
    groups: tuple[int, ...]
    home: str

    @property
    def environment(self) -> dict[str, str]:
        """HOME, USER and LOGNAME, as login(1) would set them."""
        return {"HOME": self.home, "USER": self.user, "LOGNAME": self.user}


def resolve(user: str | None, group: str | None) -> Identity:
    """Look up whom workers are to be; ``user`` and ``group`` are names or numbers, None for "as it is".

    ``group`` replaces the user's primary group; the supplementary ones are those of the user. May block where accounts
    live on the network: for the check and the start, not for the master's loop. Raises `PrivilegeError` for an account
    that does not exist, and for one that this process cannot become because it is not root.
    """
    if user is None:
        account = _account(os.geteuid())
        uid, gid = os.geteuid(), os.getegid()
    else:
        account = _find_user(user)
        if account is not None:
            uid, gid = account.pw_uid, account.pw_gid
        elif group is None:
            raise PrivilegeError(
                f"user: {user}: there is no account with this number, so its group is unknown; name one with group:"
            )
        else:
            uid, gid = int(user), -1
    name = account.pw_name if account is not None else str(uid)
    home = account.pw_dir if account is not None else "/"
    if group is not None:
        gid = _find_group(group)
    if user is None and group is None:
        groups = tuple(sorted({gid, *os.getgroups()}))
    else:
        groups = tuple(sorted({gid, *(os.getgrouplist(name, gid) if account is not None else ())}))
    identity = Identity(name, _group_name(gid), uid, gid, groups, home)
    if os.geteuid() != 0 and not _is_current(identity):
        if user is not None and uid != os.geteuid():
            raise PrivilegeError(
                f"user: {user}: only root can become another user, and preforkd was started by "
                f"{_user_name(os.geteuid())}; start it as root, or remove user: from the configuration"
            )
        if gid != os.getegid():
            raise PrivilegeError(
                f"group: {identity.group}: only root can change groups, and preforkd was started by "
                f"{_user_name(os.geteuid())}; start it as root, or remove group: from the configuration"
            )
        # Its own user named in the configuration, but started with fewer groups than the account has (or with more):
        # nothing to gain by insisting.
        identity = Identity(name, identity.group, uid, gid, tuple(sorted({gid, *os.getgroups()})), home)
    return identity


def drop(identity: Identity) -> None:
    """Become ``identity`` for good. For a freshly forked template or worker; one thread only.

    Afterwards no program the process executes can gain anything either (no_new_privs: setuid programs like sudo and
    ping do not work in workers). With an identity that is root, or that it already has, only that is set. Raises
    `PrivilegeError`; the process must then leave, it may be halfway between the two.
    """
    if not _is_current(identity):
        try:
            os.setgroups(identity.groups)
            os.setresgid(identity.gid, identity.gid, identity.gid)
            os.setresuid(identity.uid, identity.uid, identity.uid)
        except OSError as error:
            raise PrivilegeError(
                f"cannot become user {identity.user} (uid {identity.uid}, gid {identity.gid}): {error.strerror}; "
                "the service needs root with the capabilities CAP_SETUID and CAP_SETGID"
            ) from error
    if identity.uid != 0:
        _drop_capabilities()
    if _prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
        raise PrivilegeError(f"cannot set no_new_privs: {os.strerror(ctypes.get_errno())}")
    _verify(identity)


def set_limits(files: int, core: int) -> None:
    """Set RLIMIT_NOFILE (descriptors; 0 leaves it as it is) and RLIMIT_CORE (bytes; 0: none), soft and hard. Before
    `drop`.

    Raises `PrivilegeError` for more than this process may have.
    """
    for limit, value, key in ((resource.RLIMIT_NOFILE, files, "files"), (resource.RLIMIT_CORE, core, "core")):
        if not value and limit == resource.RLIMIT_NOFILE:
            continue
        _, hard = resource.getrlimit(limit)
        try:
            resource.setrlimit(limit, (value, value))
        except (OSError, ValueError) as error:
            most = "unlimited" if hard == resource.RLIM_INFINITY else str(hard)
            raise PrivilegeError(
                f"limits.{key}: {value} is more than this process may have ({most}); "
                f"raise Limit{'NOFILE' if key == 'files' else 'CORE'}= in the unit, or `ulimit -H`"
            ) from error


def set_dumpable(dumpable: bool) -> None:
    """Allow core files and ptrace by the same user, or forbid them; changing ids forbids them. After `drop`."""
    _prctl(_PR_SET_DUMPABLE, int(dumpable), 0, 0, 0)


def set_pdeathsig(number: int) -> None:
    """Have the kernel send a signal to this process when its parent ends; 0: none. After `drop`, which clears it.

    "Parent" is the thread that forked, and the one of the moment: the caller compares ``os.getppid()`` with the
    master's pid before *and* after, since a master that died before cannot die again.
    """
    _prctl(_PR_SET_PDEATHSIG, number, 0, 0, 0)


def set_child_subreaper() -> bool:
    """Become the parent of descendants whose own parents ended, so that waitpid sees them; False if refused. Master."""
    return bool(_prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def why_unreadable(path: str, identity: Identity) -> str | None:
    """What keeps ``identity`` from reading a file (or from entering and reading a directory), as a sentence; None if
    nothing does.

    Symbolic links on the way are followed, and the directories they lead through count. Judged by owner, group and
    mode; where a file has an access control list, nothing is said against it. Run it as root, before `drop`.
    """
    if identity.uid == 0:
        return None
    wanted = os.path.abspath(path)
    todo = [part for part in reversed(wanted.split("/")) if part]
    here, links = "/", 0
    while True:
        try:
            status = os.lstat(here)
        except FileNotFoundError:
            return f"{here} does not exist"
        except OSError as error:
            return f"{here}: {error.strerror}"
        if stat.S_ISLNK(status.st_mode):
            links += 1
            if links > 40:
                return f"{wanted}: too many symbolic links"
            target = os.readlink(here)
            todo += [part for part in reversed(target.split("/")) if part and part != "."]
            here = "/" if target.startswith("/") else os.path.dirname(here)
            continue
        is_directory = stat.S_ISDIR(status.st_mode)
        if todo and not is_directory:
            return f"{here} is not a directory"
        needed = (1 if todo else 5) if is_directory else 4
        if not _permits(here, status, identity, needed):
            return _in_the_way(here, status, identity, wanted, needed)
        if not todo:
            return None
        part = todo.pop()
        here = os.path.dirname(here) if part == ".." else os.path.join(here, part)


def _permits(path: str, status: os.stat_result, identity: Identity, needed: int) -> bool:
    """Whether the mode grants what ``needed`` says (4 read, 1 search). The first class that fits is the one asked."""
    mode = status.st_mode
    if status.st_uid == identity.uid:
        granted = mode >> 6
    elif status.st_gid == identity.gid or status.st_gid in identity.groups:
        granted = mode >> 3
    else:
        granted = mode
    return granted & needed == needed or _has_acl(path)


def _has_acl(path: str) -> bool:
    try:
        return "system.posix_acl_access" in os.listxattr(path)
    except OSError:
        return False


def _in_the_way(path: str, status: os.stat_result, identity: Identity, wanted: str, needed: int) -> str:
    mode = f"{stat.S_IMODE(status.st_mode):04o}"
    owner = f"owned by {_user_name(status.st_uid)}:{_group_name(status.st_gid)}"
    what = {1: "enter", 4: "read", 5: "enter and read"}[needed]
    way = "" if path == wanted else f", so it cannot reach {wanted}"
    return f"{path} is {mode}, {owner}: user {identity.user} cannot {what} it{way}"


def _drop_capabilities() -> None:
    """Clear all capability sets. Fails for nobody: giving up is always allowed."""
    _prctl(_PR_CAP_AMBIENT, _PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0)
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    data = (ctypes.c_uint32 * 6)()
    if _capset(ctypes.addressof(header), ctypes.addressof(data)) != 0:
        raise PrivilegeError(f"cannot give up capabilities: {os.strerror(ctypes.get_errno())}")


def _verify(identity: Identity) -> None:
    """See that the change was complete. Raises `PrivilegeError`."""
    uid, gid = identity.uid, identity.gid
    if os.getresuid() != (uid, uid, uid) or os.getresgid() != (gid, gid, gid):
        raise PrivilegeError(
            f"user {identity.user}: the ids are {os.getresuid()} and {os.getresgid()} after the change"
        )
    if set(os.getgroups()) - set(identity.groups):
        raise PrivilegeError(f"user {identity.user}: the groups are {os.getgroups()} after the change")
    if uid != 0:
        for attempt in (os.setuid, os.seteuid):
            try:
                attempt(0)
            except OSError as error:
                if error.errno == errno.EPERM:
                    continue
            raise PrivilegeError(f"user {identity.user}: there is a way back to root")
    if _prctl(_PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1:
        raise PrivilegeError("no_new_privs could not be set")


def _is_current(identity: Identity) -> bool:
    uid, gid = identity.uid, identity.gid
    return (
        os.getresuid() == (uid, uid, uid)
        and os.getresgid() == (gid, gid, gid)
        and {gid, *os.getgroups()} == set(identity.groups)
    )


def _find_user(user: str) -> pwd.struct_passwd | None:
    """The account of a name, or of a number if there is one. Raises `PrivilegeError` for an unknown name."""
    try:
        return pwd.getpwnam(user)
    except KeyError:
        if user.isascii() and user.isdigit():
            return _account(int(user))
    raise PrivilegeError(f"user: {user}: there is no such user (`useradd --system {user}` makes one)")


def _account(uid: int) -> pwd.struct_passwd | None:
    try:
        return pwd.getpwuid(uid)
    except KeyError:
        return None


def _find_group(group: str) -> int:
    try:
        return grp.getgrnam(group).gr_gid
    except KeyError:
        if group.isascii() and group.isdigit():
            return int(group)
    raise PrivilegeError(f"group: {group}: there is no such group (`groupadd --system {group}` makes one)")


def _user_name(uid: int) -> str:
    account = _account(uid)
    return account.pw_name if account is not None else str(uid)


def _group_name(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
