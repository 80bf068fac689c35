"""Imports point down only: the drawing of the layers as data, held against what the files import.

Inside a row of the drawing nothing imports sideways either, but for what `ALSO` names. What is imported only for the
type checker (``if TYPE_CHECKING:``) does not count; what a function imports late does.
"""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import preforkd

PACKAGE = Path(preforkd.__file__).parent

#: From top to bottom. A row's units may import all rows below their own, and nothing else.
LAYERS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("master", "worker"),
    ("models", "handlers"),
    ("http",),
    # What the master leaves to a template: put together from the row below.
    ("estate",),
    (
        "control", "headroom", "listeners", "logs", "pidfile", "privileges", "proxyprotocol", "scoreboard", "spawn",
        "stamp", "systemd", "unixsocket", "wakeup", "welcome",
    ),
    ("core",),
    ("config", "errors", "model", "networks"),
    ("",),
)  # fmt: skip

#: Sideways, and why.
ALSO: dict[str, dict[str, str]] = {
    "config": {"errors": "values beside values"},
    "control": {"unixsocket": "how a unix socket is bound, and a live one not stolen"},
    "listeners": {"unixsocket": "how a unix socket is bound, and a live one not stolen"},
}

#: What the pure part must not know of (DESIGN 4).
IMPURE = {
    "os",
    "socket",
    "time",
    "logging",
    "select",
    "signal",
    "subprocess",
    "threading",
    "asyncio",
    "random",
    "datetime",
}

#: What a master never has in its memory, whatever it does.
NEVER_IN_THE_MASTER = {
    "asyncio", "concurrent.futures", "django", "flask", "http.server", "logging.handlers", "multiprocessing",
    "socketserver", "subprocess", "urllib.request", "wsgiref",
}  # fmt: skip


def unit_of(module: str) -> str | None:
    """``preforkd.logs.events`` belongs to the unit ``logs``; ``preforkd`` itself to ````; None: not ours."""
    head, *rest = module.split(".")
    if head != "preforkd":
        return None
    return rest[0] if rest else ""


def files() -> Iterator[tuple[str, Path]]:
    """Every module of ours: its dotted name and its file."""
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


class _Imports(ast.NodeVisitor):
    """Collects (line, module) of every import that is carried out."""

    def __init__(self, module: str, is_package: bool) -> None:
        self.found: list[tuple[int, str]] = []
        self._package = module if is_package else module.rpartition(".")[0]

    def visit_If(self, node: ast.If) -> None:
        if not (isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"):
            self.generic_visit(node)
            return
        for one in node.orelse:
            self.visit(one)

    def visit_Import(self, node: ast.Import) -> None:
        self.found += [(node.lineno, alias.name) for alias in node.names]

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        base = node.module or ""
        if node.level:
            above = self._package.split(".")
            base = ".".join([*above[: len(above) - node.level + 1], *filter(None, [base])])
        # `from preforkd import listeners` imports a unit, `from preforkd import __version__` does not.
        for alias in node.names:
            full = f"{base}.{alias.name}"
            self.found.append((node.lineno, full if base == "preforkd" and _is_module(full) else base))


def _is_module(name: str) -> bool:
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").exists() or (path / "__init__.py").exists()


def imports(module: str, path: Path) -> list[tuple[int, str]]:
    visitor = _Imports(module, path.name == "__init__.py")
    visitor.visit(ast.parse(path.read_text(encoding="utf-8"), str(path)))
    return visitor.found


def height(unit: str) -> int:
    """The row of a unit, counted from the bottom."""
    return next(row for row, units in enumerate(reversed(LAYERS)) if unit in units)


# --- the drawing -----------------------------------------------------------------------------------------------------


def test_every_unit_has_its_place_in_the_drawing() -> None:
    drawn = [unit for row in LAYERS for unit in row]
    assert len(drawn) == len(set(drawn))
    assert sorted({unit_of(module) or "" for module, _ in files()}) == sorted(drawn)


def test_imports_point_down_only() -> None:
    wrong = []
    for module, path in files():
        own = unit_of(module)
        assert own is not None
        for line, name in imports(module, path):
            other = unit_of(name)
            if other is None or other == own or height(other) < height(own) or other in ALSO.get(own, {}):
                continue
            wrong.append(f"{path.relative_to(PACKAGE.parent)}:{line}: {own} imports {name}")
    assert not wrong, "\n".join(wrong)


def test_what_may_go_sideways_does() -> None:
    """An exception that nobody needs any more is a hole in the drawing."""
    used = {(unit_of(module), unit_of(name)) for module, path in files() for _, name in imports(module, path)}
    assert {(own, other) for own, others in ALSO.items() for other in others} <= used


def test_the_core_is_pure() -> None:
    wrong = []
    for module, path in files():
        if unit_of(module) in ("core", "model"):
            wrong += [
                f"{module}:{line}: {name}" for line, name in imports(module, path) if name.split(".")[0] in IMPURE
            ]
    assert not wrong, "\n".join(wrong)


def test_the_reader_of_imports_sees_them_all(tmp_path: Path) -> None:
    path = tmp_path / "sample.py"
    path.write_text(
        "import os.path, preforkd.logs\n"
        "from preforkd import __version__, listeners\n"
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import preforkd.master\n"
        "else:\n    import preforkd.http\n"
        "def late():\n    from preforkd.spawn import fork_child\n"
        "    from .deadlines import Deadlines\n    from .. import errors\n"
    )
    found = [name for _, name in imports("preforkd.models.sample", path)]
    assert found == [
        "os.path", "preforkd.logs", "preforkd", "preforkd.listeners", "typing", "preforkd.http", "preforkd.spawn",
        "preforkd.models.deadlines", "preforkd.errors",
    ]  # fmt: skip


# --- what really is in memory ----------------------------------------------------------------------------------------


def loaded_by(code: str) -> set[str]:
    """The modules that a fresh interpreter has after ``code``."""
    process = subprocess.run(
        [sys.executable, "-c", f"{code}\nimport json, sys\nprint(json.dumps(sorted(sys.modules)))"],
        capture_output=True,
        text=True,
        check=True,
        cwd=PACKAGE.parent,
    )
    return set(json.loads(process.stdout.splitlines()[-1]))


def below(modules: set[str], names: set[str]) -> set[str]:
    return {module for module in modules if any(module == name or module.startswith(name + ".") for name in names)}


@pytest.mark.parametrize(
    "code",
    ["import preforkd.master.loop", "import preforkd.cli.boot", "import preforkd.cli, preforkd.cli.boot, daemon"],
)
def test_a_master_has_no_event_loop_no_pools_and_no_application(code: str) -> None:
    modules = loaded_by(code)
    never = NEVER_IN_THE_MASTER - ({"daemon"} if "daemon" in code else set())
    assert not below(modules, never)


def test_the_master_by_itself_knows_neither_workers_nor_http() -> None:
    modules = loaded_by("import preforkd.master.loop")
    assert not below(modules, {"preforkd.worker", "preforkd.models", "preforkd.handlers", "preforkd.http", "httptools"})


def test_a_command_does_not_load_what_it_does_not_need() -> None:
    modules = loaded_by("import preforkd.cli")
    assert not below(modules, {"preforkd.worker", "preforkd.models", "preforkd.handlers", "httptools", "daemon"})


def test_test_packages_are_not_imported_by_the_product() -> None:
    wrong = [
        f"{module}:{line}: {name}"
        for module, path in files()
        for line, name in imports(module, path)
        if name.split(".")[0] in ("tests", "pytest", "hypothesis", "psutil", "pydantic")
    ]
    assert not wrong
