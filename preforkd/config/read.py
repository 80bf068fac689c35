"""Reading: the main file, what it includes, one verdict.

Every file is read once; the bytes that are parsed are the bytes that are hashed, so the digest of the running
configuration is the digest of what was checked, whoever edits meanwhile.
"""

from __future__ import annotations

import glob
import hashlib
import os
from dataclasses import dataclass

from collections.abc import Mapping

from ..errors import ConfigError, Mistake
from .events import Mistakes, Node, parse
from .paths import runtime_files
from .settings import Config
from .source import Unreadable, read_bytes
from .units import absolute
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


def presentable(path: str) -> str:
    """``path`` as it may be shown: bytes that are no text and control characters are escaped."""
    text = os.fsencode(path).decode("utf-8", "replace")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


class _Reader:
    def __init__(self, path: str) -> None:
        self._asked = path
        self._path = os.path.abspath(path)
        self._name = presentable(path)
        self._base = os.path.dirname(self._path)
        self._mistakes = Mistakes()
        self._walk = Walk(self._mistakes, self._base)
        self._hash = hashlib.sha256()
        self._files: list[str] = []

    def run(self, data: bytes) -> Reading:
        patterns = self._walk.main(self._parsed(self._path, self._name, data))
        for pattern, node in patterns:
            if pattern is not None:
                self._include(pattern, node)
        defaults = runtime_files(self._path)
        config = self._walk.finish(self._path, tuple(self._files), self._hash.hexdigest(), self._name, defaults)
        if self._mistakes:
            raise self._mistakes.error(self._name)
        return Reading(config, self._walk.places)

    def _parsed(self, path: str, name: str, data: bytes):  # type: ignore[no-untyped-def]
        self._mistakes.opened(name)
        self._files.append(path)
        # Lengths first, or two files could share bytes between them and keep the digest.
        encoded = os.fsencode(path)
        self._hash.update(b"%d %d\n" % (len(encoded), len(data)) + encoded + data)
        return parse(data, name, self._mistakes)

    def _include(self, pattern: str, node: Node) -> None:
        wild = glob.has_magic(pattern)
        paths = sorted(glob.glob(os.path.join(glob.escape(self._base), pattern))) if wild else [absolute(pattern, self._base)]
        if len(paths) > MAX_FILES:
            self._mistakes.at(node, "include", f"{pattern} matches {len(paths)} files; at most {MAX_FILES}")
            return
        shown_folder = os.path.dirname(self._asked)
        for path in paths:
            path = os.path.normpath(path)
            if path == self._path:
                self._mistakes.at(node, "include", f"{pattern} matches this file itself; keep site files in a folder of their own")
                continue
            if path in self._files:
                continue
            relative = os.path.relpath(path, self._base)
            inside = not relative.startswith("..") and not os.path.isabs(pattern)
            name = presentable(os.path.join(shown_folder, relative) if inside else path)
            try:
                data = read_bytes(path)
            except Unreadable as error:
                self._walk.complete = False
                self._mistakes.at(node, "include", f"{name}: {error}")
                continue
            self._walk.included(self._parsed(path, name, data))
