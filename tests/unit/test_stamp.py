"""The build stamp changes whenever the package on disk does, and only then."""

from __future__ import annotations

import importlib.machinery
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

import preforkd
from preforkd.stamp import build_stamp, installed_version, running_version


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "package"
    (folder / "sub").mkdir(parents=True)
    (folder / "__init__.py").write_text('"""Doc."""\n\n__version__ = "1.2.3"\n')
    (folder / "sub" / "module.py").write_text("X = 1\n")
    return folder


def grow(folder: Path) -> None:
    (folder / "sub" / "module.py").write_text("X = 12\n")


def touch(folder: Path) -> None:
    os.utime(folder / "sub" / "module.py", ns=(1, 1))


def add(folder: Path) -> None:
    (folder / "sub" / "more.py").touch()


def remove(folder: Path) -> None:
    (folder / "sub" / "module.py").unlink()


def rename(folder: Path) -> None:
    (folder / "sub" / "module.py").rename(folder / "sub" / "other.py")


def move(folder: Path) -> None:
    (folder / "sub").rename(folder / "bus")


def vanish(folder: Path) -> None:
    shutil.rmtree(folder)


@pytest.mark.parametrize("change", [grow, touch, add, remove, rename, move, vanish])
def test_a_change_changes_it(package: Path, change: Callable[[Path], None]) -> None:
    before = build_stamp(str(package))
    change(package)
    assert build_stamp(str(package)) != before


def test_what_python_writes_by_itself_does_not(package: Path) -> None:
    before = build_stamp(str(package))
    cache = package / "sub" / "__pycache__"
    cache.mkdir()
    (cache / "module.cpython-311.pyc").write_bytes(b"x")
    (cache / "stray.py").write_bytes(b"x")
    (package / "notes.txt").write_text("x")
    assert build_stamp(str(package)) == before


def test_it_does_not_depend_on_the_place(package: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(package, copy)
    assert build_stamp(str(copy)) == build_stamp(str(package))


def test_a_broken_link_is_not_there(package: Path) -> None:
    before = build_stamp(str(package))
    (package / "dangling.py").symlink_to("nowhere")
    assert build_stamp(str(package)) == before


def test_our_own_is_steady() -> None:
    assert build_stamp() == build_stamp()
    assert len(build_stamp()) == 64


def test_the_installed_version_is_read_without_an_import(package: Path) -> None:
    assert installed_version() == preforkd.__version__
    assert installed_version(str(package)) == "1.2.3"
    (package / "__init__.py").write_text("raise SystemExit\n")
    assert installed_version(str(package)) == "unknown"
    assert installed_version(str(package / "nowhere")) == "unknown"


@pytest.mark.parametrize(("name", "added"), [("scoreboard.py", ""), ("scoreboard.cpython-311-x.so", " (compiled)")])
def test_the_version_tells_of_the_compiled_build(monkeypatch: pytest.MonkeyPatch, name: str, added: str) -> None:
    spec = importlib.machinery.ModuleSpec("preforkd.scoreboard", None, origin=f"/lib/preforkd/{name}")
    monkeypatch.setattr("importlib.util.find_spec", {"preforkd.scoreboard": spec}.get)
    assert running_version() == preforkd.__version__ + added
