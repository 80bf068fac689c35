"""Bare Debians, made by debootstrap: what a stranger's new machine looks like.

A tree holds Debian's "minbase" and git, make and python3, nothing else: no pip, no ensurepip, no compiler. Making one
takes most of a minute, so trees are kept in the user's cache directory (``~/.cache/preforkd``) and only ever used as
the lower, read-only layer of an overlay. Removing that directory is always safe.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

import pytest

from tests.systemd.machine import Chroot, Image, Lab, way_out

PACKAGES: Final = ("git", "make", "python3")


def cache() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base, "preforkd", "debian")


def mirror() -> str:
    """The archive that this system's own apt uses, if it is a Debian's; else debootstrap's default."""
    command = ["apt-get", "indextargets", "--format", "$(ORIGIN) $(REPO_URI) $(RELEASE)", "Created-By: Packages"]
    try:
        listed = subprocess.run(command, capture_output=True, text=True).stdout
    except FileNotFoundError:
        return ""
    for line in listed.splitlines():
        origin, _, rest = line.partition(" ")
        uri, _, release = rest.partition(" ")
        if origin == "Debian" and uri.startswith("http") and "security" not in release:
            return uri
    return ""


def tree(lab: Lab, suite: str) -> Image:
    """An image of the bare Debian ``suite``, made or taken from the cache."""
    if shutil.which("debootstrap") is None:
        pytest.skip("not installed: debootstrap")
    path = cache() / suite
    if not path.is_dir():
        path.parent.mkdir(parents=True, exist_ok=True)
        new = Path(tempfile.mkdtemp(prefix=f".{suite}-", dir=path.parent))
        try:
            new.chmod(0o755)
            command = ["debootstrap", "--variant=minbase", f"--include={','.join(PACKAGES)}", suite, str(new)]
            # In the lab's mount namespace: what debootstrap mounts and forgets goes away with it.
            lab.run(*command, *filter(None, [mirror()]), seconds=600, environment=way_out())
            shutil.rmtree(new / "var/cache/apt/archives", ignore_errors=True)
            new.rename(path)
        except BaseException:
            shutil.rmtree(new, ignore_errors=True)
            raise
    return Image(lab, f"Debian {suite}", [path])


def connect(chroot: Chroot) -> None:
    """Give the root directory what this system needs to reach package indexes: names, certificates, pip's settings."""
    files = ["/etc/resolv.conf", "/etc/hosts", "/etc/pip.conf", "/etc/ssl/certs/ca-certificates.crt"]
    files += [value for name, value in way_out().items() if value.startswith("/") and "CERT" in name.upper()]
    for name in files:
        path = Path(name)
        if path.is_file():
            chroot.write(name, path.read_bytes())
    own = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config", "pip/pip.conf")
    if own.is_file():
        for user in ("/root", "/etc/skel"):
            chroot.write(f"{user}/.config/pip/pip.conf", own.read_bytes())
