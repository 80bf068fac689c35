"""The parts of the manual that are made of the program, and how they get into it.

A part stands between two comments, ``<!-- NAME: begin -->`` and ``<!-- NAME: end -->``.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from preforkd.config import manual_table
from preforkd.config.settings import Config, Group, ListOf, Named, declared
from preforkd.logs.access import DIRECTIVES
from preforkd.master.loop import SIGNALS

ROOT = Path(__file__).resolve().parents[3]
MANUAL = ROOT / "docs" / "manual.md"
HTTP = ROOT / "docs" / "http.md"

#: Set in the environment, the test of a part writes it anew instead of comparing it.
WRITE = "PREFORKD_WRITE_DOCS"


def _row(*cells: str) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n"


def _signals() -> str:
    rows = [_row(signal.Signals(number).name.removeprefix("SIG"), effect) for number, effect in SIGNALS.items()]
    return "| signal | what it does |\n|---|---|\n" + "".join(rows)


def _directives() -> str:
    rows = [_row(f"`{directive}`", meaning) for directive, meaning in DIRECTIVES.items()]
    return "| directive | shows |\n|---|---|\n" + "".join(rows)


def _foreign(section: type[Any], place: str) -> Iterator[tuple[str, str, str]]:
    """Each foreign word as (program, word, our setting), in the order of the file."""
    for key, item in declared(section).items():
        path = f"{place}{key}"
        for program, words in item.setting.words.items():
            for word in words.split():
                yield program, word, path
        match item.setting.shape:
            case Group(section=inner):
                yield from _foreign(inner, f"{path}.")
            case Named(section=inner):
                yield from _foreign(inner, f"{path}.NAME.")
            case ListOf(section=inner) if inner is not None:
                yield from _foreign(inner, f"{path}.")


def _words() -> str:
    found: dict[str, list[tuple[str, str]]] = {}
    for program, word, path in _foreign(Config, ""):
        found.setdefault(program, []).append((word, path))
    text = "| program | its word | the setting here |\n|---|---|---|\n"
    for program in sorted(found, key=str.lower):
        for word, path in sorted(found[program], key=lambda one: one[0].lower()):
            text += _row(program, f"`{word}`", f"`{path}`")
    return text


#: The manual's generated parts: name -> what makes it.
PARTS: Mapping[str, Callable[[], str]] = {
    "settings": manual_table,
    "signals": _signals,
    "directives": _directives,
    "words": _words,
}


def part(text: str, name: str) -> str:
    """What stands between the comments of ``name``. Raises ValueError if they are not there exactly once."""
    found = re.findall(rf"<!-- {name}: begin -->\n(.*?)<!-- {name}: end -->\n", text, re.DOTALL)
    if len(found) != 1:
        raise ValueError(f"the comments `<!-- {name}: begin -->` and `<!-- {name}: end -->` must be there once")
    return str(found[0])


def with_part(text: str, name: str, content: str) -> str:
    """``text`` with ``content`` between the comments of ``name``."""
    old = part(text, name)
    begin = f"<!-- {name}: begin -->\n"
    return text.replace(f"{begin}{old}<!--", f"{begin}{content}<!--", 1)
