"""The build stamp: is the package on disk still the one that runs?

After an upgrade on disk, whatever imports our modules late mixes old and new code (AttributeError, TypeError,
ImportError; facts F7). So a process that is about to import compares first. The stamp is made of the names, sizes and
times of the package's source files (and compiled ones); reading them takes less than a millisecond.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os

import preforkd

_PACKAGE = os.path.dirname(os.path.abspath(__file__))


def build_stamp(package: str = _PACKAGE) -> str:
    """The stamp of the package in the directory ``package``. Any process; never raises (a missing file changes it)."""
    digest = hashlib.sha256()
    for directory, names, files in os.walk(package):
        names[:] = sorted(name for name in names if name != "__pycache__")
        for name in sorted(files):
            if name.endswith((".py", ".so")):
                path = os.path.join(directory, name)
                try:
                    status = os.stat(path)
                except OSError:
                    continue
                digest.update(f"{os.path.relpath(path, package)}\0{status.st_size}\0{status.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def changed_since(stamp: str, running: str) -> str | None:
    """A sentence if the package on disk is not the one of ``stamp`` any more, else None. ``running``: our version."""
    if build_stamp() == stamp:
        return None
    installed = installed_version()
    if installed == running:
        what = f"the files of preforkd {running} have changed since it was started"
    else:
        what = f"preforkd {installed} is installed, {running} is running"
    return f"{what}; nothing new is loaded, so that the two do not mix: restart the service"


def running_version() -> str:
    """Our version, with a word where the compiled build runs (setup.py): both belong into a report of a bug."""
    spec = importlib.util.find_spec("preforkd.scoreboard")
    compiled = spec is not None and spec.origin is not None and spec.origin.endswith(".so")
    return preforkd.__version__ + (" (compiled)" if compiled else "")


def installed_version(package: str = _PACKAGE) -> str:
    """The version that the package on disk says it has; read as text, so that nothing is imported."""
    try:
        with open(os.path.join(package, "__init__.py"), encoding="utf-8") as file:
            for line in file:
                if line.startswith("__version__"):
                    return line.partition("=")[2].strip().strip("\"'")
    except OSError:
        pass
    return "unknown"
