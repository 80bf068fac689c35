"""A machine of our own with a real systemd in it: a container that boots in less than a second.

    Lab       a mount namespace with a tmpfs; everything below is mounted in it, and vanishes with it
    Image     a root directory to boot from, made once: this system (or a bare Debian) with preforkd installed
    Machine   a running container over an image; what it writes is its own

The root directory of a machine is an overlay: below, read-only, the root of this system or of a Debian that debootstrap
made; above, a tmpfs. systemd-nspawn boots it in its own pid, mount, network, IPC and UTS namespaces and in a control
group of its own (two containers in one group end each other's processes). Nothing is registered with this system's own
systemd, which may not even run. Commands enter by nsenter(1).

Nothing outlives the test run, however it ends: each helper process dies with the test runner (PR_SET_PDEATHSIG), and a
mount namespace that nobody is in is no more.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import select
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Final

REPOSITORY: Final = Path(__file__).resolve().parents[2]

#: What the programs named here are part of, for the reader of a skip.
TOOLS: Final = {
    "systemd-nspawn": "systemd-container",
    "nsenter": "util-linux",
    "unshare": "util-linux",
    "setpriv": "util-linux",
    "mount": "mount",
    "git": "git",
    "make": "make",
}

#: More than any of this takes; reaching it is a failure.
BOOT: Final = 60.0
SHUTDOWN: Final = 30.0
COMMAND: Final = 60.0

#: Starts a process that ends when we do, even if we are killed.
TIED: Final = ("setpriv", "--pdeathsig", "KILL")

#: What a command inside sees: nothing of our own environment.
ENVIRONMENT: Final = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}

#: Variables by which pip and its neighbors find their way out of a closed network.
WAY_OUT: Final = ("PIP_", "SSL_", "CURL_CA_BUNDLE", "REQUESTS_CA_BUNDLE", "http_proxy", "https_proxy", "no_proxy")


def missing() -> str:
    """Why this system cannot boot a container; empty where it can."""
    if os.geteuid() != 0:
        return "booting a systemd needs root"
    absent = [f"{tool} (package {package})" for tool, package in TOOLS.items() if shutil.which(tool) is None]
    if absent:
        return "not installed: " + ", ".join(absent)
    if unified_cgroups() is None:
        return "no cgroup2 file system is mounted"
    return ""


def unified_cgroups() -> Path | None:
    """The directory of our own control group in the unified hierarchy."""
    mounts = [line.split(" - ") for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    roots = [left.split()[4] for left, right in mounts if right.split()[0] == "cgroup2"]
    own = [line[3:] for line in Path("/proc/self/cgroup").read_text().splitlines() if line.startswith("0::")]
    if not roots or not own:
        return None
    return Path(roots[0]) / own[0].strip("/")


def way_out() -> dict[str, str]:
    """The part of our environment that says how to reach package indexes."""
    return {
        name: value for name, value in os.environ.items() if name.lower().startswith(tuple(map(str.lower, WAY_OUT)))
    }


def wait_for_end(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """Whether the process ended within ``seconds``; wakes when it ends, not on a clock."""
    if process.poll() is not None:
        return True
    descriptor = os.pidfd_open(process.pid)
    try:
        poll = select.poll()
        poll.register(descriptor, select.POLLIN)
        if not poll.poll(seconds * 1000):
            return False
    finally:
        os.close(descriptor)
    process.wait()
    return True


def until(condition: Callable[[], object], what: str, seconds: float = 20.0, every: float = 0.01) -> None:
    """Wait for something that sends no event; asks ``every`` so often, fails after ``seconds``.

    Asking by a program that has to be started takes the processor from those who are being waited for: not so often.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds:g} s: {what}")
        time.sleep(every)


class Lab:
    """A mount namespace with a tmpfs in it. The one place where this process is not is reached by `path`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._numbers = itertools.count(1)
        ready, theirs = os.pipe()
        script = f"mount -t tmpfs -o mode=0755 tmpfs {shlex.quote(str(directory))} && echo ready && exec sleep infinity"
        command = [*TIED, "unshare", "--mount", "--propagation", "private", "sh", "-c", script]
        self._keeper = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=theirs)
        os.close(theirs)
        with open(ready, "rb") as answer:
            if answer.readline() != b"ready\n":
                self._keeper.wait()
                raise RuntimeError("cannot make a mount namespace with a tmpfs in it")

    def close(self) -> None:
        self._keeper.kill()
        self._keeper.wait()

    def inside(self, *command: str) -> list[str]:
        """The command line that runs ``command`` in the mount namespace of the lab, ended with us."""
        return [*TIED, "nsenter", "--target", str(self._keeper.pid), "--mount", "--", *command]

    def run(self, *command: str, seconds: float = COMMAND, environment: Mapping[str, str] | None = None) -> str:
        """Run a command in the lab; its output. A failure shows all it said."""
        done = subprocess.run(
            self.inside(*command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=seconds,
            env={**ENVIRONMENT, **(environment or {})},
        )
        if done.returncode:
            raise RuntimeError(f"exit status {done.returncode} of {shlex.join(command)}:\n{done.stdout}")
        return done.stdout

    def path(self, inside: str | Path) -> Path:
        """Where a path of the lab can be opened from here."""
        return Path(f"/proc/{self._keeper.pid}/root") / str(inside).lstrip("/")

    def new(self, kind: str) -> Path:
        """A new directory on the tmpfs."""
        path = self.directory / f"{kind}-{next(self._numbers)}"
        self.path(path).mkdir(parents=True)
        return path

    def overlay(self, layers: Sequence[Path], at: Path) -> Path:
        """Mount an overlay of read-only ``layers`` (the uppermost first) below ``at``; the mounted root."""
        for name in ("upper", "work", "root"):
            self.path(at / name).mkdir()
        lower = ":".join(str(layer) for layer in layers)
        options = f"lowerdir={lower},upperdir={at}/upper,workdir={at}/work"
        self.run("mount", "-t", "overlay", "-o", options, "overlay", f"{at}/root")
        return at / "root"

    def unmount(self, path: Path) -> None:
        self.run("umount", "--recursive", str(path))


class Image:
    """A root directory to boot from: the layers of an overlay, made once and shared by machines."""

    def __init__(self, lab: Lab, name: str, layers: Sequence[Path]) -> None:
        self.lab = lab
        self.name = name
        self.layers = list(layers)

    @contextlib.contextmanager
    def changed(self) -> Iterator[Chroot]:
        """Add a layer: the block runs commands in the root directory, with this system's network."""
        place = self.lab.new("layer")
        root = self.lab.overlay(self.layers, place)
        chroot = Chroot(self.lab, root)
        try:
            self.lab.run("mount", "-t", "proc", "proc", f"{root}/proc")
            self.lab.run("mount", "--bind", "/dev", f"{root}/dev")
            yield chroot
        finally:
            self.lab.unmount(root)
        self.layers.insert(0, place / "upper")


class Chroot:
    """Runs commands in a root directory that is not booted."""

    def __init__(self, lab: Lab, root: Path) -> None:
        self.lab = lab
        self.root = root

    def run(self, *command: str, user: str = "root", seconds: float = 300.0, **environment: str) -> str:
        """Run a command as ``user``, as a login would: in the user's home, with HOME and no other variable of ours."""
        home = self.home(user)
        script = f"cd {shlex.quote(home)} && exec {shlex.join(command)}"
        variables = {**way_out(), "HOME": home, "USER": user, **environment}
        names = ["chroot", f"--userspec={user}", str(self.root), "/bin/sh", "-c", script]
        return self.lab.run(*names, seconds=seconds, environment=variables)

    def home(self, user: str) -> str:
        for line in self.path("/etc/passwd").read_text().splitlines():
            fields = line.split(":")
            if fields[0] == user:
                return fields[5]
        raise KeyError(user)

    def path(self, inside: str) -> Path:
        return self.lab.path(self.root / inside.lstrip("/"))

    def write(self, inside: str, content: str | bytes, mode: int = 0o644) -> None:
        put(self.path(inside), content, mode)

    def copy_tree(self, at: str) -> None:
        """Copy what a clone of this repository would hold, changes that are not committed included."""
        listed = subprocess.run(
            ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
            cwd=REPOSITORY,
            capture_output=True,
            check=True,
        )
        for name in filter(None, os.fsdecode(listed.stdout).split("\0")):
            source = REPOSITORY / name
            if source.is_file():
                put(self.path(f"{at}/{name}"), source.read_bytes(), source.stat().st_mode & 0o777)


def put(path: Path, content: str | bytes, mode: int = 0o644) -> None:
    """Write a file in one step, as a careful editor does, with its directories."""
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_name(path.name + ".new")
    new.write_bytes(content.encode() if isinstance(content, str) else content)
    new.chmod(mode)
    new.replace(path)


class Machine:
    """A booted container. Use as a context manager; `files` are written before it boots."""

    _numbers = itertools.count(1)

    def __init__(self, image: Image, files: Mapping[str, str] | None = None) -> None:
        self.image = image
        self.lab = image.lab
        self.name = f"preforkd-{os.getpid()}-{next(self._numbers)}"
        self._files = dict(files or {})
        self._leader = 0
        #: What the journal held when the machine was left by an exception; for the report.
        self.last_words = ""

    # --- life --------------------------------------------------------------------------------------------------------

    def __enter__(self) -> Machine:
        self._place = self.lab.new("machine")
        self._root = self.lab.overlay(self.image.layers, self._place)
        # Nothing of what the system below starts at boot: only what a service may expect, and its logs in memory.
        target = "[Unit]\nRequires=sysinit.target\nWants=dbus.socket\nAfter=sysinit.target dbus.socket\n"
        settings = {
            "/etc/systemd/system/test.target": target,
            "/etc/systemd/journald.conf.d/test.conf": "[Journal]\nStorage=volatile\nRateLimitIntervalSec=0\n",
            "/etc/hostname": "machine\n",
        }
        for path, content in {**settings, **self._files}.items():
            put(self.lab.path(self._root / path.lstrip("/")), content)
        above = unified_cgroups()
        assert above is not None, "checked by missing()"
        self._cgroup = above / self.name
        self._cgroup.mkdir()
        try:
            self._boot()
        except BaseException:
            self.__exit__(*sys.exc_info())
            raise
        return self

    def _boot(self) -> None:
        notify = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        notify.bind(f"\0{self.name}")
        nspawn = ["systemd-nspawn", "--quiet", "--boot", "--register=no", "--keep-unit", "--private-network"]
        nspawn += ["--settings=no", "--link-journal=no", "--resolv-conf=off", "--timezone=off", "--console=pipe"]
        nspawn += ["--notify-ready=yes", f"--machine={self.name}", f"--directory={self._root}"]
        kernel = ["systemd.unit=test.target", "systemd.show_status=0"]
        script = f"echo $$ > {self._cgroup}/cgroup.procs && exec {shlex.join(nspawn + kernel)}"
        self._console = self.lab.path(self._place / "console").open("w+b")
        self._process = subprocess.Popen(
            self.lab.inside("sh", "-c", script),
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=self._console,
            env={**ENVIRONMENT, "NOTIFY_SOCKET": f"@{self.name}", "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
        )
        end = os.pidfd_open(self._process.pid)
        try:
            poll = select.poll()
            poll.register(end, select.POLLIN)
            poll.register(notify, select.POLLIN)
            deadline = time.monotonic() + BOOT
            while True:
                events = dict(poll.poll(max(0.0, deadline - time.monotonic()) * 1000))
                if notify.fileno() not in events:
                    state = "ended" if events else f"is not up after {BOOT:g} s"
                    raise RuntimeError(f"the container {state}; it said:\n{self.console()}")
                facts = dict(line.partition("=")[::2] for line in notify.recv(65536).decode().splitlines())
                self._leader = int(facts.get("X_NSPAWN_LEADER_PID", self._leader))
                if facts.get("READY") == "1":
                    return
        finally:
            os.close(end)
            notify.close()

    def __exit__(self, *exc_info: object) -> None:
        process = getattr(self, "_process", None)
        if process is not None:
            if exc_info[0] is not None:
                self.last_words = self.words()
            if self._leader and process.poll() is None:
                # "Power off", as systemd(1) has it; systemd stops its services in order.
                with contextlib.suppress(ProcessLookupError):
                    os.kill(self._leader, signal.SIGRTMIN + 4)
                wait_for_end(process, SHUTDOWN)
            with contextlib.suppress(OSError):
                (self._cgroup / "cgroup.kill").write_text("1")
            if process.poll() is None:
                process.kill()
                process.wait()
            self._console.close()
        self._remove_cgroup()
        self.lab.unmount(self._root)
        shutil.rmtree(self.lab.path(self._place), ignore_errors=True)

    def _remove_cgroup(self) -> None:
        def try_to() -> bool:
            for directory, _, _ in os.walk(self._cgroup, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(directory)
            return not self._cgroup.exists()

        until(try_to, f"the control group {self._cgroup} is empty")

    def console(self) -> str:
        """What systemd-nspawn and the container's console said."""
        self._console.seek(0)
        return self._console.read().decode(errors="replace")

    # --- inside ------------------------------------------------------------------------------------------------------

    def inside(self, *command: str) -> list[str]:
        """The command line that runs ``command`` in the machine, ended with us."""
        return [*TIED, "nsenter", "--target", str(self._leader), "--all", "--", *command]

    def ask(self, *command: str, text: str = "", seconds: float = COMMAND) -> subprocess.CompletedProcess[str]:
        """Run a command as root in the machine, whatever its exit status."""
        return subprocess.run(
            self.inside(*command), input=text, capture_output=True, text=True, timeout=seconds, env=ENVIRONMENT
        )

    def run(self, *command: str, text: str = "", seconds: float = COMMAND) -> str:
        """Run a command as root in the machine; what it wrote to stdout. It has to succeed."""
        done = self.ask(*command, text=text, seconds=seconds)
        if done.returncode:
            said = done.stdout + done.stderr
            raise AssertionError(f"exit status {done.returncode} of {shlex.join(command)}:\n{said}")
        return done.stdout

    def start(self, *command: str, stdin: int | IO[bytes] = subprocess.PIPE) -> subprocess.Popen[bytes]:
        """Start a command as root in the machine."""
        return subprocess.Popen(self.inside(*command), stdin=stdin, stdout=subprocess.PIPE, env=ENVIRONMENT)

    def path(self, inside: str) -> Path:
        """Where a file of the machine can be opened from here."""
        return Path(f"/proc/{self._leader}/root") / inside.lstrip("/")

    def write(self, inside: str, content: str, mode: int = 0o644) -> None:
        put(self.path(inside), content, mode)

    # --- systemd -----------------------------------------------------------------------------------------------------

    def systemctl(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        return self.ask("systemctl", "--no-pager", *arguments)

    def show(self, unit: str, name: str) -> str:
        """One property of a unit."""
        return self.run("systemctl", "show", "--value", "--property", name, unit).rstrip("\n")

    def journal(self, *arguments: str) -> str:
        return self.run("journalctl", "--no-pager", "--output=short-monotonic", *arguments)

    def messages(self, unit: str) -> list[str]:
        """What the processes of a unit, and systemd about it, have logged."""
        self.run("journalctl", "--sync")  # what was written to a pipe may not have been read yet
        lines = self.run("journalctl", "--no-pager", "--output=json", "--unit", unit).splitlines()
        return [str(json.loads(line).get("MESSAGE", "")) for line in lines]

    def words(self) -> str:
        """The end of the journal, for a report that must not be lost because the machine is what is broken."""
        try:
            return self.journal("--boot", "--lines=200")
        except (AssertionError, subprocess.SubprocessError) as error:
            return f"(no journal: {error})\n{self.console()}"

    def version(self) -> int:
        return int(self.run("systemctl", "--version").split()[1])

    def processes(self, unit: str) -> list[int]:
        """The pids, as the machine sees them, in the control group of a unit."""
        group = self.show(unit, "ControlGroup")
        if not group:
            return []
        listed = self.ask("cat", f"/sys/fs/cgroup{group}/cgroup.procs")
        return [int(pid) for pid in listed.stdout.split()]
