"""Giving up root, in forked children, looked at from outside by /proc."""

from __future__ import annotations

import grp
import os
import pwd
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from preforkd import privileges
from preforkd.errors import PrivilegeError
from preforkd.privileges import Identity
from tests.support.child import (
    CAP_NET_BIND_SERVICE,
    CAP_SETGID,
    CAP_SETUID,
    in_child,
    keep_capabilities,
    needs_root,
)


def status() -> dict[str, str]:
    return dict(line.split(":\t", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":\t" in line)


def someone() -> Identity:
    account = pwd.getpwnam("daemon")
    return Identity("daemon", "daemon", account.pw_uid, account.pw_gid, (account.pw_gid, 4711), account.pw_dir)


def refusal(user: str | None, group: str | None) -> str:
    with pytest.raises(PrivilegeError) as caught:
        privileges.resolve(user, group)
    return str(caught.value)


class TestResolve:
    def test_as_it_is(self) -> None:
        identity = privileges.resolve(None, None)
        assert (identity.uid, identity.gid) == (os.geteuid(), os.getegid())
        assert set(identity.groups) == {os.getegid(), *os.getgroups()}

    @needs_root
    def test_user(self) -> None:
        account = pwd.getpwnam("daemon")
        identity = privileges.resolve("daemon", None)
        assert (identity.user, identity.uid, identity.gid) == ("daemon", account.pw_uid, account.pw_gid)
        assert identity.group == grp.getgrgid(account.pw_gid).gr_name
        assert set(identity.groups) == set(os.getgrouplist("daemon", account.pw_gid))
        assert identity.environment == {"HOME": account.pw_dir, "USER": "daemon", "LOGNAME": "daemon"}
        assert privileges.resolve(str(account.pw_uid), None) == identity

    @needs_root
    def test_group_replaces_the_primary_one(self) -> None:
        identity = privileges.resolve("daemon", "mail")
        mail = grp.getgrnam("mail").gr_gid
        assert (identity.group, identity.gid) == ("mail", mail)
        assert mail in identity.groups
        assert 0 not in identity.groups
        assert privileges.resolve("daemon", str(mail)) == identity

    @needs_root
    def test_number_without_an_account(self) -> None:
        identity = privileges.resolve("54321", "daemon")
        assert (identity.user, identity.uid, identity.home) == ("54321", 54321, "/")
        assert identity.groups == (grp.getgrnam("daemon").gr_gid,)
        assert "name one with group:" in refusal("54321", None)

    def test_unknown(self) -> None:
        assert refusal("nobody-here", None) == (
            "user: nobody-here: there is no such user (`useradd --system nobody-here` makes one)"
        )
        assert refusal(None, "nobody-here") == (
            "group: nobody-here: there is no such group (`groupadd --system nobody-here` makes one)"
        )

    @needs_root
    def test_not_root(self) -> None:
        def try_it() -> tuple[str, str, Identity]:
            account = pwd.getpwnam("daemon")
            os.setgroups([])
            os.setgid(account.pw_gid)
            os.setuid(account.pw_uid)
            return refusal("mail", None), refusal(None, "mail"), privileges.resolve("daemon", None)

        user, group, own = in_child(try_it)
        assert user == (
            "user: mail: only root can become another user, and preforkd was started by daemon; "
            "start it as root, or remove user: from the configuration"
        )
        assert group.startswith("group: mail: only root can change groups, and preforkd was started by daemon")
        assert own.user == "daemon"


@needs_root
class TestDrop:
    def test_complete(self) -> None:
        def child() -> dict[str, str]:
            os.setgroups([0, 4, 27])
            privileges.drop(someone())
            return status()

        found = in_child(child)
        who = someone()
        assert found["Uid"].split() == [str(who.uid)] * 4
        assert found["Gid"].split() == [str(who.gid)] * 4
        assert set(map(int, found["Groups"].split())) == set(who.groups)
        assert found["NoNewPrivs"] == "1"
        for name in ("CapInh", "CapPrm", "CapEff", "CapAmb"):
            assert int(found[name], 16) == 0

    def test_no_way_back(self) -> None:
        def child() -> list[str]:
            privileges.drop(someone())
            regained = []
            attempts: dict[str, Callable[[], None]] = {
                "setuid": lambda: os.setuid(0),
                "seteuid": lambda: os.seteuid(0),
                "setresuid": lambda: os.setresuid(0, 0, 0),
                "setgid": lambda: os.setgid(0),
                "setgroups": lambda: os.setgroups([0]),
                "chown": lambda: os.chown("/etc/passwd", os.getuid(), -1),
            }
            for name, attempt in attempts.items():
                try:
                    attempt()
                except PermissionError:
                    continue
                regained.append(name)
            return regained

        assert in_child(child) == []

    def test_setuid_programs_gain_nothing(self, tmp_path: Path) -> None:
        def child() -> str:
            privileges.drop(someone())
            return subprocess.run(
                ["/bin/sh", "-c", "grep NoNewPrivs /proc/self/status"], check=True, capture_output=True, text=True
            ).stdout

        assert in_child(child).split() == ["NoNewPrivs:", "1"]

    def test_order_is_right_even_with_the_units_capabilities_only(self) -> None:
        def child() -> tuple[int, int, int]:
            keep_capabilities(CAP_SETUID, CAP_SETGID)
            privileges.drop(someone())
            return os.getresuid()

        assert set(in_child(child)) == {someone().uid}

    def test_without_the_capability(self) -> None:
        def child() -> str:
            keep_capabilities(CAP_SETUID)
            try:
                privileges.drop(someone())
            except PrivilegeError as error:
                return str(error)
            return ""

        text = in_child(child)
        assert text.startswith(f"cannot become user daemon (uid {someone().uid}, gid {someone().gid}): Operation not")
        assert "CAP_SETUID and CAP_SETGID" in text

    def test_capabilities_of_a_master_that_is_not_root(self) -> None:
        """AmbientCapabilities=CAP_NET_BIND_SERVICE in the unit is for the master, not for the application."""

        def child() -> tuple[int, int]:
            who = someone()
            privileges._prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
            os.setgroups(list(who.groups))
            os.setresgid(who.gid, who.gid, who.gid)
            os.setresuid(who.uid, who.uid, who.uid)
            keep_capabilities(CAP_NET_BIND_SERVICE)
            before = int(status()["CapPrm"], 16)
            privileges.drop(privileges.resolve(None, None))
            return before, int(status()["CapPrm"], 16)

        assert in_child(child) == (1 << CAP_NET_BIND_SERVICE, 0)

    def test_staying_root(self) -> None:
        def child() -> tuple[int, str, bool]:
            privileges.drop(privileges.resolve(None, None))
            return os.geteuid(), status()["NoNewPrivs"], int(status()["CapPrm"], 16) > 0

        assert in_child(child) == (0, "1", True)

    def test_a_way_back_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Were the saved id forgotten, the check at the end would tell."""

        def half(_r: int, e: int, _s: int) -> None:
            os.seteuid(e)

        def child() -> str:
            monkeypatch.setattr(os, "setresuid", half)
            try:
                privileges.drop(someone())
            except PrivilegeError as error:
                return str(error)
            return ""

        assert "the ids are" in in_child(child)

    def test_dumpable(self) -> None:
        def child() -> tuple[int, int]:
            privileges.drop(someone())
            before = Path("/proc/self/stat").stat().st_uid
            privileges.set_dumpable(True)
            return before, Path("/proc/self/stat").stat().st_uid

        assert in_child(child) == (0, someone().uid)


def test_drop_without_root_and_without_change() -> None:
    def child() -> str:
        if os.geteuid() == 0:
            who = someone()
            os.setgroups([])
            os.setresgid(who.gid, who.gid, who.gid)
            os.setresuid(who.uid, who.uid, who.uid)
        privileges.drop(privileges.resolve(None, None))
        return status()["NoNewPrivs"]

    assert in_child(child) == "1"


class TestLimits:
    def test_set(self) -> None:
        def child() -> tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int]]:
            privileges.set_limits(files=64, core=4096)
            first = resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE)
            privileges.set_limits(files=0, core=0)
            return *first, resource.getrlimit(resource.RLIMIT_NOFILE), resource.getrlimit(resource.RLIMIT_CORE)

        assert in_child(child) == ((64, 64), (4096, 4096), (64, 64), (0, 0))

    @needs_root
    def test_more_than_allowed(self) -> None:
        def child() -> str:
            resource.setrlimit(resource.RLIMIT_NOFILE, (128, 128))
            os.setuid(65534)
            try:
                privileges.set_limits(files=256, core=0)
            except PrivilegeError as error:
                return str(error)
            return ""

        assert in_child(child) == (
            "limits.files: 256 is more than this process may have (128); raise LimitNOFILE= in the unit, or `ulimit -H`"
        )


def test_parent_death_signal() -> None:
    ready, told = os.pipe()
    middle = os.fork()
    if middle == 0:
        if os.fork() == 0:
            privileges.set_pdeathsig(signal.SIGKILL)
            os.write(told, b"!")
            signal.pause()
        os.close(told)
        os.read(ready, 1)
        os._exit(0)
    os.close(told)
    assert os.waitpid(middle, 0)[1] == 0
    assert os.read(ready, 1) == b"", "end of file: the grandchild is gone too"
    os.close(ready)


def test_child_subreaper() -> None:
    def child() -> bool:
        assert privileges.set_child_subreaper()
        middle = os.fork()
        if middle == 0:
            if os.fork() == 0:
                os._exit(7)
            os._exit(0)
        codes = {os.waitstatus_to_exitcode(os.wait()[1]), os.waitstatus_to_exitcode(os.wait()[1])}
        return codes == {0, 7}

    assert in_child(child)


@needs_root
class TestWhyUnreadable:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        for directory in [tmp_path, *list(tmp_path.parents)[:-1]]:
            if directory != Path("/tmp"):
                directory.chmod(directory.stat().st_mode | 0o055)
        (tmp_path / "site" / "app").mkdir(parents=True)
        (tmp_path / "site" / "app" / "main.py").write_text("")
        return tmp_path

    def really(self, path: Path) -> bool:
        def child() -> bool:
            privileges.drop(someone())
            try:
                if path.is_dir():
                    os.listdir(path)
                else:
                    path.read_bytes()
            except OSError:
                return False
            return True

        return in_child(child)

    def why(self, path: Path) -> str | None:
        answer = privileges.why_unreadable(str(path), someone())
        assert (answer is None) == self.really(path), answer
        return answer

    def test_readable(self, tree: Path) -> None:
        assert self.why(tree / "site" / "app" / "main.py") is None
        assert self.why(tree / "site") is None

    def test_closed_directory_on_the_way(self, tree: Path) -> None:
        (tree / "site").chmod(0o700)
        assert self.why(tree / "site" / "app" / "main.py") == (
            f"{tree}/site is 0700, owned by root:root: user daemon cannot enter it, "
            f"so it cannot reach {tree}/site/app/main.py"
        )

    def test_the_first_class_that_fits_counts(self, tree: Path) -> None:
        """The owner is judged by the owner's bits alone, however open the file is to others."""
        path = tree / "site" / "app" / "main.py"
        os.chown(path, someone().uid, -1)
        path.chmod(0o077)
        assert self.why(path) == f"{path} is 0077, owned by daemon:root: user daemon cannot read it"
        os.chown(path, 0, someone().gid)
        path.chmod(0o704)
        assert "0704, owned by root:daemon" in (self.why(path) or "")

    def test_supplementary_groups(self, tree: Path) -> None:
        path = tree / "site" / "app" / "main.py"
        os.chown(path, 0, 4711)
        path.chmod(0o640)
        assert self.why(path) is None

    def test_links_are_followed(self, tree: Path) -> None:
        (tree / "hidden").mkdir(mode=0o700)
        (tree / "hidden" / "python").write_text("")
        (tree / "site" / "python").symlink_to("../hidden/python")
        (tree / "loop").symlink_to("loop")
        assert self.why(tree / "site" / "python") == (
            f"{tree}/hidden is 0700, owned by root:root: user daemon cannot enter it, "
            f"so it cannot reach {tree}/site/python"
        )
        assert "too many symbolic links" in (self.why(tree / "loop" / "x") or "")

    def test_directory_that_cannot_be_listed(self, tree: Path) -> None:
        (tree / "site").chmod(0o711)
        assert "cannot enter and read it" in (self.why(tree / "site") or "")
        assert self.why(tree / "site" / "app") is None

    def test_missing(self, tree: Path) -> None:
        assert self.why(tree / "site" / "no" / "main.py") == f"{tree}/site/no does not exist"
        assert self.why(tree / "site" / "app" / "main.py" / "x") == f"{tree}/site/app/main.py is not a directory"

    def test_root_reads_everything(self, tree: Path) -> None:
        (tree / "site").chmod(0)
        assert privileges.why_unreadable(str(tree / "site"), privileges.resolve(None, None)) is None
