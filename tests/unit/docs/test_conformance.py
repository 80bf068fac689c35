"""docs/conformance.md: what it names is there, and what is not shown by a test is somebody else's to do, or never done.

Whether the rules are the RFCs', and all of them, nobody can tell but a reader.
"""

from __future__ import annotations

import ast
import functools
import importlib
import re
from pathlib import Path

import pytest

from tests.unit.docs.tables import ROOT

CONFORMANCE = ROOT / "docs" / "conformance.md"
_FUNCTION = re.compile(r"`([a-z_.]+):([\w.]+)`")
_TEST = re.compile(r"`([a-z/_0-9]+)::(\w+)`")
#: Why a rule needs neither function nor test: somebody else's, or about something that preforkd never does.
_EXCUSES = re.compile(r"the application's|none|no 101 is sent")


def tables() -> dict[str, list[list[str]]]:
    """RFC -> the rows of its table."""
    found: dict[str, list[list[str]]] = {}
    for title, text in re.findall(r"(?ms)^## (RFC \d+)$(.*?)(?=^## |\Z)", CONFORMANCE.read_text(encoding="utf-8")):
        lines = re.findall(r"(?m)^\| (\d.*) \|$", text)
        found[title] = [[cell.strip() for cell in line.split(" | ")] for line in lines]
    return found


ROWS = [(rfc, row) for rfc, rows in tables().items() for row in rows]


@functools.cache
def functions(path: Path) -> frozenset[str]:
    """The functions at the top of a file of tests; parsed, because some files cannot be imported everywhere."""
    tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
    return frozenset(node.name for node in tree.body if isinstance(node, ast.FunctionDef))


def test_both_tables_are_read() -> None:
    assert {rfc: len(rows) > 30 for rfc, rows in tables().items()} == {"RFC 9110": True, "RFC 9112": True}
    assert {len(row) for _, row in ROWS} == {4}


@pytest.mark.parametrize(("rfc", "row"), ROWS, ids=lambda value: value if isinstance(value, str) else value[0])
def test_what_a_row_names_exists(rfc: str, row: list[str]) -> None:
    _, rule, met, shown = row
    code, tests = _FUNCTION.findall(met), _TEST.findall(shown)
    assert code or _EXCUSES.search(met), f"{rfc}: {rule!r} is met by nothing"
    assert bool(tests) is bool(code), f"{rfc}: {rule!r} is met by {code} and shown by {tests}"
    # Nothing that only looks like a name: every code span with a colon in it was read.
    assert len(re.findall(r"`[^`]*:[^`]*`", met)) == len(code)
    assert tests or shown == "\u2014"
    assert len(shown.split(", ")) == max(1, len(tests))
    for module, name in code:
        functools.reduce(getattr, name.split("."), importlib.import_module(f"preforkd.{module}"))
    for file, name in tests:
        assert name.startswith("test_") and name in functions(ROOT / "tests" / f"{file}.py"), f"{file}::{name}"


@pytest.mark.parametrize("rfc", tables())
def test_the_rows_are_in_the_order_of_the_sections(rfc: str) -> None:
    sections = [[int(number) for number in re.findall(r"[\d.]+", row[0])[0].split(".")] for row in tables()[rfc]]
    assert sections == sorted(sections)


def test_each_deviation_is_explained_and_no_other() -> None:
    """As a row that says so, and as a paragraph that begins with its section."""
    _, _, told = CONFORMANCE.read_text(encoding="utf-8").partition("\n## Deviations\n")
    named = {(rfc, row[0]) for rfc, row in ROWS if "**deviation**" in row[2]}
    paragraphs = re.findall(r"(?m)^\* \*\*(RFC \d+), ([^*]*?)(?:, for [\w-]+)?\.\*\*", told)
    assert named == {(rfc, section) for rfc, sections in paragraphs for section in sections.split(" and ")}
