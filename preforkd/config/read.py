"""Reading: the main file, what it includes, one verdict.

Every file is read once; the bytes that are parsed are the bytes that are hashed, so the digest of the running
configuration is the digest of what was checked, whoever edits meanwhile.
"""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass

from ..errors import ConfigError, Mistake
from .events import Mistakes, Node, Tree, parse
from .paths import runtime_files
from .settings import Config
from .source import Unreadable, read_bytes
from .units import absolute, shown
from .walk import Place, Walk

#: A pattern that matches more files than this was not meant for site files.
MAX_FILES = 1000


@dataclass(frozen=True, slots=True)
class Reading:
    """A configuration with the place of each setting written: dotted key -> place."""

    config: Config
    places: Mapping[str, Place]


def read(path: str) -> Config:
    """The configuration in the file ``path`` and the files that it includes.

    May block on a slow file system; the master reads in a child. Raises `ConfigError` with all mistakes.
    """
    return read_placed(path).config


def read_placed(path: str) -> Reading:
    """As `read`, with the place of each setting."""
    try:
        data = read_bytes(path)
    except Unreadable as error:
        raise ConfigError((Mistake(presentable(path), 0, 0, "", str(error)),)) from None
    return _Reader(path).run(data)


def read_text(text: str | bytes, path: str = "preforkd.yaml") -> Config:
    """The configuration in ``text``, as if it stood in the file ``path`` (which need not exist); for tests."""
    return _Reader(path).run(text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text).config


def runtime_of(path: str) -> tuple[str, str]:
    """Pid file and control socket of the configuration in ``path``, whatever mistakes it has.

    A running instance must be found (``status``, ``stop``, ``reload``) also after an edit that broke its file. What
    cannot be read is taken to be the default. Never raises, but for a relative path in a folder that is gone.
    """
    reader = _Reader(path)
    try:
        data = read_bytes(path)
    except Unreadable:
        data = b""
    return reader.runtime(data)


def presentable(path: str) -> str:
    """``path`` as it may be shown: bytes that are no text and control characters are escaped."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _absolute(path: str) -> str:
    try:
        return os.path.abspath(path)
    except OSError as error:
        what = f"is a relative path, and the current folder cannot be found: {error.strerror}"
        raise ConfigError((Mistake(presentable(path), 0, 0, "", what),)) from None


class _Reader:
    """One reading; used once."""

    def __init__(self, path: str) -> None:
        self._asked = path
        self._path = _absolute(path)
        self._name = presentable(path)
        self._base = os.path.dirname(self._path)
        self._mistakes = Mistakes()
        self._walk = Walk(self._mistakes, self._base)
        self._hash = hashlib.sha256()
        self._files: list[str] = []

    def run(self, data: bytes) -> Reading:
        for pattern, node in self._walk.main(self._parsed(self._path, self._name, data)):
            self._include(pattern, node)
        defaults = runtime_files(self._path)
        config = self._walk.finish(self._path, tuple(self._files), self._hash.hexdigest(), self._name, defaults)
        if self._mistakes:
            raise self._mistakes.error(self._name)
        return Reading(config, self._walk.places)

    def runtime(self, data: bytes) -> tuple[str, str]:
        """Pid file and control socket, as far as the main file alone says them."""
        self._walk.main(self._parsed(self._path, self._name, data))
        return self._walk.runtime(runtime_files(self._path))

    def _parsed(self, path: str, name: str, data: bytes) -> Tree:
        self._mistakes.opened(name)
        self._files.append(path)
        # Lengths first, or a byte could move from one file to the next and leave the digest as it was.
        encoded = os.fsencode(path)
        self._hash.update(b"%d %d\n" % (len(encoded), len(data)) + encoded + data)
        return parse(data, name, self._mistakes)

    def _include(self, pattern: str, node: Node) -> None:
        try:
            paths = matches(absolute(pattern, self._base))
        except Unreadable as error:
            self._unreadable(node, str(error))
            return
        for path in paths:
            if path == self._path:
                what = f"{shown(pattern)} matches this file itself; keep further files in a folder of their own"
                self._mistakes.at(node, "include", what)
            elif path not in self._files:
                name = presentable(self._as_asked(path, pattern))
                try:
                    data = read_bytes(path)
                except Unreadable as error:
                    self._unreadable(
                        node, f"{name} {error}" if str(error).startswith(("is ", "cannot ")) else f"{name}: {error}"
                    )
                else:
                    self._walk.included(self._parsed(path, name, data))

    def _unreadable(self, node: Node, what: str) -> None:
        # Its pools are unknown, so nobody says that there are none.
        self._walk.complete = False
        self._mistakes.at(node, "include", what)

    def _as_asked(self, path: str, pattern: str) -> str:
        """``path`` as the operator would write it: relative if the main file and the pattern are."""
        relative = os.path.relpath(path, self._base)
        if os.path.isabs(pattern) or relative.startswith(".."):
            return path
        return os.path.join(os.path.dirname(self._asked), relative)


_MAGIC = re.compile(r"[*?\[]")


def matches(pattern: str) -> list[str]:
    """The paths that the absolute ``pattern`` matches, sorted; itself, if it has no wildcard.

    As `glob.glob`, but a folder that may not be listed is an error: glob would say that nothing matches, and the sites
    in it would be gone without a word. Raises `Unreadable`.
    """
    if _MAGIC.search(pattern) is None:
        return [pattern]
    found = ["/"]
    for part in pattern.strip("/").split("/"):
        if _MAGIC.search(part) is None:
            found = [os.path.join(folder, part) for folder in found]
            continue
        form = re.compile(fnmatch.translate(part))
        inner: list[str] = []
        for folder in found:
            names = (name for name in _names(folder) if form.match(name) and (part[0] == "." or name[0] != "."))
            inner += [os.path.join(folder, name) for name in names]
        found = inner
        if len(found) > MAX_FILES:
            raise Unreadable(f"{shown(pattern)} matches {len(found)} files; at most {MAX_FILES}")
    return sorted(path for path in found if os.path.lexists(path))


def _names(folder: str) -> list[str]:
    try:
        return os.listdir(folder)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise Unreadable(f"the folder {presentable(folder)} cannot be listed: {error.strerror}") from None
