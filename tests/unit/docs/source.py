"""What the program's source says, read without running it: the events it logs, the sentences it refuses with."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import preforkd

PACKAGE = Path(preforkd.__file__).parent

_LEVELS = ("debug", "info", "warning", "error")
#: Calls that log, and which argument names the event.
_LOGGERS = {**dict.fromkeys(_LEVELS, 0), "say": 0, "Record": 0, "_emit": 0, "_event": 1, "Entry": 1}
_EVENT = re.compile(r"[a-z]+(?:_[a-z]+)*")

#: Calls that refuse a request with a status and a sentence, and which arguments these are.
_REFUSERS = {"_refuse": (0, 1), "Refusal": (0, 1), "BodyError": (0, 1)}


def calls(path: Path) -> Iterator[tuple[str, ast.Call]]:
    """Every call in a file, with the last part of the name of what is called."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Call):
            if isinstance(node.func, ast.Attribute):
                yield node.func.attr, node
            elif isinstance(node.func, ast.Name):
                yield node.func.id, node


def events() -> dict[str, str]:
    """Every event that is logged somewhere: its name -> where."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for name, call in calls(path):
            at = _LOGGERS.get(name)
            if at is None or len(call.args) <= at:
                continue
            argument = call.args[at]
            event = argument.value if isinstance(argument, ast.Constant) else None
            if isinstance(event, str) and _EVENT.fullmatch(event):
                found[event] = f"{path.relative_to(PACKAGE.parent)}:{call.lineno}"
    return found


def sentences(node: ast.expr, functions: dict[str, ast.FunctionDef]) -> list[str]:
    """The texts that an expression can be, what is filled in being an N; empty where that cannot be read.

    ``functions`` are those of the same file by name: what they return is looked at as well.
    """
    match node:
        case ast.Call(func=ast.Name(id=name)) if name in functions:
            returned = [one.value for one in ast.walk(functions[name]) if isinstance(one, ast.Return) and one.value]
            return [text for value in returned for text in sentences(value, functions)]
        case ast.Constant(value=str(text)):
            return [text]
        case ast.JoinedStr(values=values):
            return ["".join(str(one.value) if isinstance(one, ast.Constant) else "N" for one in values)]
        case ast.IfExp(body=body, orelse=other):
            return sentences(body, functions) + sentences(other, functions)
    return []


def _statuses(node: ast.expr) -> list[int]:
    match node:
        case ast.Constant(value=int(status)):
            return [status]
        case ast.IfExp(body=body, orelse=other):
            return _statuses(body) + _statuses(other)
    return []


def refusals() -> dict[tuple[int, str], str]:
    """Every (status, sentence) that a request is refused with -> where; tuples that functions return among them."""
    found = {}
    for path in [*sorted((PACKAGE / "http").glob("*.py")), *sorted((PACKAGE / "models").glob("*.py"))]:
        tree = ast.parse(path.read_text(encoding="utf-8"), str(path))
        functions = {node.name: node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}
        pairs: list[tuple[ast.expr, ast.expr, int]] = []
        for name, call in calls(path):
            arguments = _REFUSERS.get(name)
            if arguments is not None and len(call.args) > arguments[1]:
                pairs.append((call.args[arguments[0]], call.args[arguments[1]], call.lineno))
        pairs += [
            (node.elts[0], node.elts[1], node.lineno)
            for node in ast.walk(tree)
            if isinstance(node, ast.Tuple) and len(node.elts) == 2
        ]
        for status_node, text_node, line in pairs:
            for status in _statuses(status_node):
                for sentence in sentences(text_node, functions):
                    if 400 <= status <= 599:
                        found[status, sentence] = f"{path.relative_to(PACKAGE.parent)}:{line}"
    return found
