"""From bytes to a tree of text with places.

PyYAML's C parser hands out *events* (scalar, mapping begins, mapping ends); a stack of our own makes a tree of them.
Neither composer nor constructor of PyYAML is used, for three reasons:

* the C composer recurses, and 50 000 brackets end the process (SIGSEGV); here the 33rd is a mistake with a place,
* the constructor turns text into YAML 1.1's guesses (0660 into 432) and forgets where it stood,
* both accept what an operator cannot have meant: duplicate keys, aliases, merge keys, tags.

Everything that is refused for the form of the file alone is refused here; what the keys and values mean is `walk`'s.
A tree may be incomplete after a syntax error: then `Tree.complete` is false, and nobody says what is missing.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml

from ..errors import ConfigError, Mistake, PreforkdError
from .units import shown

try:
    from yaml import CBaseLoader
except ImportError:  # pragma: no cover - PyYAML built from its source without libyaml
    CBaseLoader = None  # type: ignore[assignment, misc]

#: Deeper nesting is no configuration: the deepest setting is at 5.
MAX_DEPTH = 32

#: More mistakes than this are counted, not shown: nobody reads them, and suggestions cost time.
MAX_MISTAKES = 100


class Mistakes:
    """The mistakes found so far, in any order; at most `MAX_MISTAKES` are kept."""

    def __init__(self) -> None:
        self._kept: list[tuple[int, Mistake]] = []
        self._order: dict[str, int] = {}
        self.count = 0

    @property
    def full(self) -> bool:
        """Whether a further mistake would only be counted; its sentence need not be worked out."""
        return self.count >= MAX_MISTAKES

    def __bool__(self) -> bool:
        return self.count > 0

    def opened(self, file: str) -> None:
        """Note that ``file`` is read now: mistakes are shown in the order of the files."""
        self._order.setdefault(file, len(self._order))

    def add(self, file: str, line: int, column: int, key: str, what: str) -> None:
        """Note a mistake; ``line`` and ``column`` count from 1, or are 0 for the whole file."""
        if not self.full:
            self.opened(file)
            self._kept.append((self._order[file], Mistake(file, line, column, key, what)))
        self.count += 1

    def at(self, node: Node, key: str, what: str) -> None:
        """Note a mistake at the place of ``node``."""
        self.add(node.file, node.line, node.column, key, what)

    def error(self, path: str) -> ConfigError:
        """All of it as the exception, in the order of the places."""
        mistakes = [mistake for _, mistake in sorted(self._kept, key=_place)]
        if self.count > len(mistakes):
            more = self.count - len(mistakes)
            mistakes.append(Mistake(path, 0, 0, "", f"{more} more mistake{'s' * (more > 1)} not shown"))
        return ConfigError(tuple(mistakes))


def _place(numbered: tuple[int, Mistake]) -> tuple[int, int, int]:
    return numbered[0], numbered[1].line, numbered[1].column


class Node:
    """A part of the file and its place (line and column from 1)."""

    __slots__ = ("column", "file", "line")

    def __init__(self, file: str, line: int, column: int) -> None:
        self.file, self.line, self.column = file, line, column

    @property
    def empty(self) -> bool:
        """Whether nothing is written here: ``key:``, or ``key: null``."""
        return False


class Scalar(Node):
    """Text. ``plain``: without quotes. ``folded``: plain, and it went on in a further line."""

    __slots__ = ("folded", "plain", "text")

    def __init__(self, file: str, line: int, column: int, text: str, plain: bool, folded: bool) -> None:
        super().__init__(file, line, column)
        self.text, self.plain, self.folded = text, plain, folded

    @property
    def null(self) -> bool:
        """Whether the word ``null`` is written here (YAML 1.2, 10.3.2)."""
        return self.plain and self.text in ("null", "Null", "NULL")

    @property
    def empty(self) -> bool:
        """Whether nothing is written here: ``key:``, or ``key: null``."""
        return self.plain and (not self.text or self.null)


class Sequence(Node):
    """A list of nodes."""

    __slots__ = ("items",)

    def __init__(self, file: str, line: int, column: int) -> None:
        super().__init__(file, line, column)
        self.items: list[Node] = []


class Mapping(Node):
    """Keys and values in the order of the file. A key written twice (a mistake already noted) is there twice."""

    __slots__ = ("key", "lines", "pairs", "waiting")

    def __init__(self, file: str, line: int, column: int) -> None:
        super().__init__(file, line, column)
        self.pairs: list[tuple[Scalar, Node]] = []
        self.lines: dict[str, int] = {}
        #: While it is built: the key written last, and whether its value is still to come.
        self.key: Node | None = None
        self.waiting = False


@dataclass(frozen=True, slots=True)
class Tree:
    """What a file holds: its root (None if it holds nothing), and whether it was read to its end."""

    root: Node | None
    complete: bool


# What YAML allows (c-printable, YAML 1.2 5.1), less what an editor and libyaml count or show differently: NEL, the
# line and paragraph separators, a byte order mark within the text, and a carriage return that ends no line.
_REFUSED = re.compile(
    "[^\t\n\r\x20-\x7e\xa0-\u2027\u202a-\ud7ff\ue000-\ufefe\uff00-\ufffd\U00010000-\U0010ffff]|\r(?!\n)"
)
_NAMES = {
    "\x00": "a NUL byte",
    "\r": "a carriage return that ends no line",
    "\x85": "a next-line character (U+0085)",
    "\u2028": "a line separator (U+2028)",
    "\u2029": "a paragraph separator (U+2029)",
    "\ufeff": "a byte order mark within the text (U+FEFF)",
}
_IN_VALUE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029]")


def parse(data: bytes, file: str, mistakes: Mistakes) -> Tree:
    """The tree of ``data``; whatever is wrong with its form goes to ``mistakes``, named as in ``file``.

    Raises `PreforkdError` only where PyYAML lacks its C parser.
    """
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        before = data[: error.start].decode("utf-8").removeprefix("\ufeff")
        line, column = before.count("\n") + 1, len(before) - before.rfind("\n")
        what = "is UTF-16" if data.startswith((b"\xff\xfe", b"\xfe\xff")) else f"has a byte 0x{data[error.start]:02x}"
        mistakes.add(file, line, column, "", f"{what}, which is not UTF-8; save the file as UTF-8")
        return Tree(None, False)
    text = text.removeprefix("\ufeff")
    found = 0
    for match in _REFUSED.finditer(text):
        found += 1
        line = text.count("\n", 0, match.start()) + 1 if not mistakes.full else 0
        what = _NAMES.get(match[0]) or f"a control character (U+{ord(match[0]):04X})"
        mistakes.add(file, line, match.start() - text.rfind("\n", 0, match.start()), "", f"{what}; remove it")
        if mistakes.full:
            break
    return Tree(None, False) if found else _Builder(text, file, mistakes).build()


class _Builder:
    """One pass over the events of one file."""

    def __init__(self, text: str, file: str, mistakes: Mistakes) -> None:
        self._text, self._file, self._mistakes = text, file, mistakes
        self._stack: list[Sequence | Mapping] = []
        self._root: Node | None = None

    def build(self) -> Tree:
        if CBaseLoader is None:
            raise PreforkdError(
                "PyYAML was built without its C parser (libyaml), and its other parser reads some files differently; "
                "install PyYAML as a wheel, or build it where libyaml's headers are present"
            )
        parser = CBaseLoader(self._text)
        try:
            complete = self._consume(parser)
        except yaml.YAMLError as error:
            self._syntax_error(error)
            complete = False
        finally:
            parser.dispose()
        return Tree(self._root, complete)

    def _consume(self, parser: Any) -> bool:
        """Take all events; whether the end of the file was reached."""
        documents = 0
        while True:
            event = parser.get_event()
            kind = type(event)
            if kind is yaml.StreamEndEvent:
                return True
            if kind is yaml.MappingEndEvent or kind is yaml.SequenceEndEvent:
                self._stack.pop()
                continue
            line, column = event.start_mark.line + 1, event.start_mark.column + 1
            if kind is yaml.ScalarEvent:
                plain = not event.style
                folded = plain and event.end_mark.line >= line
                if not plain and _IN_VALUE.search(event.value):
                    self._note(line, column, f"{shown(event.value)} has a control character; remove it")
                self._put(Scalar(self._file, line, column, event.value, plain, folded), event)
            elif kind is yaml.MappingStartEvent or kind is yaml.SequenceStartEvent:
                if len(self._stack) >= MAX_DEPTH:
                    self._mistakes.add(self._file, line, column, "", _TOO_DEEP)
                    return False
                make = Mapping if kind is yaml.MappingStartEvent else Sequence
                inner = make(self._file, line, column)
                self._put(inner, event)
                self._stack.append(inner)
            elif kind is yaml.AliasEvent:
                name = shown("*" + event.anchor)
                self._note(
                    line, column, f"{name} is an alias, which is not allowed; write the value out, or quote the text"
                )
                self._put(Refused(self._file, line, column), None)
            elif kind is yaml.DocumentStartEvent:
                documents += 1
                if documents > 1:
                    what = "a second document begins here; a configuration is one document: remove the line ---"
                    self._mistakes.add(self._file, line, column, "", what)
                    return False
                if event.version or event.tags:
                    self._note(line, column, "directives (%YAML, %TAG) are not allowed; remove the line")

    def _note(self, line: int, column: int, what: str) -> None:
        self._mistakes.add(self._file, line, column, "" if self._mistakes.full else self._path(), what)

    def _path(self) -> str:
        """The dotted key of the place that the parser has reached."""
        path = ""
        for inner in self._stack:
            if isinstance(inner, Sequence):
                # What the parser is in has been hung up already, what it has just met has not.
                path += f"[{len(inner.items) - (inner is not self._stack[-1])}]"
            elif isinstance(inner.key, Scalar):
                path = joined(path, inner.key.text)
        return path

    def _put(self, node: Node, event: Any) -> None:
        """Hang ``node`` where the stack says: as the root, a list's item, a key, or the waiting key's value."""
        top = self._stack[-1] if self._stack else None
        is_key = isinstance(top, Mapping) and not top.waiting
        if isinstance(top, Mapping) and is_key:
            top.key = node
            self._check_key(top, node)
        if event is not None and (event.anchor is not None or event.tag is not None):
            self._refuse_adornment(node, event)
        if top is None:
            self._root = node
        elif isinstance(top, Sequence):
            top.items.append(node)
        else:
            top.waiting = is_key
            if not is_key and isinstance(top.key, Scalar) and not _merges(top.key):
                top.pairs.append((top.key, node))

    def _check_key(self, top: Mapping, key: Node) -> None:
        if isinstance(key, Scalar):
            if _merges(key):
                self._note(key.line, key.column, "a merge key is not allowed; write the settings out")
            elif (first := top.lines.get(key.text)) is not None:
                self._note(key.line, key.column, f"is here twice; the first is in line {first}")
            else:
                top.lines[key.text] = key.line
        elif not isinstance(key, Refused):
            what = "a list" if isinstance(key, Sequence) else "a mapping"
            self._note(key.line, key.column, f"{what} cannot be a key; text that begins with a bracket needs quotes")

    def _refuse_adornment(self, node: Node, event: Any) -> None:
        quote = ", or quote the text" if isinstance(node, Scalar) else ""
        if event.anchor is not None:
            name = shown("&" + event.anchor)
            self._note(node.line, node.column, f"{name} is an anchor, which is not allowed; remove it{quote}")
        if event.tag is not None:
            self._note(node.line, node.column, f"{shown(event.tag)} is a tag, which is not allowed; remove it{quote}")

    # -- syntax errors -------------------------------------------------------------------------------------------

    def _syntax_error(self, error: yaml.YAMLError) -> None:
        """Say in an operator's words what libyaml says in the YAML specification's."""
        problem = str(getattr(error, "problem", None) or error)
        mark = getattr(error, "problem_mark", None)
        context = str(getattr(error, "context", None) or "")
        begun = getattr(error, "context_mark", None)
        if begun is not None and (
            ("scanning a" in context and "end of stream" in problem) or "expected alpha" in problem
        ):
            mark = begun
        line, column = self._inside(mark)
        at = self._line(line)[column - 1 : column]
        sentence = _sentence(problem, context, at, self._line(line))
        if begun is not None and "flow" in context and self._inside(begun) != (line, column):
            opened, _ = self._inside(begun)
            sentence += f" (the bracket was opened in line {opened})"
        self._mistakes.add(self._file, line, column, "", sentence)

    def _line(self, line: int) -> str:
        return self._text.split("\n")[line - 1]

    def _inside(self, mark: Any) -> tuple[int, int]:
        """The place of ``mark``, moved into the file: the end of the file is reported behind its last line."""
        lines = self._text.rstrip().split("\n")
        if mark is None:
            return 1, 1
        line = min(mark.line + 1, len(lines))
        last = len(lines[line - 1]) + 1
        return line, (min(mark.column + 1, last) if line == mark.line + 1 else last)


def _merges(key: Scalar) -> bool:
    """Whether ``key`` is YAML 1.1's merge key."""
    return key.plain and key.text == "<<"


def joined(path: str, key: str) -> str:
    """The dotted key of ``key`` within ``path``; a long or unprintable one is cut and quoted."""
    name = key if key.isprintable() and 0 < len(key) <= 40 and " " not in key else shown(key, 40)
    return f"{path}.{name}" if path else name


_TOO_DEEP = f"is nested deeper than {MAX_DEPTH} levels, which no setting is; is a bracket left open?"

_SENTENCES = (
    ("exceeded maximum nesting depth", _TOO_DEEP),  # libyaml's own bound, a thousand
    (
        "mapping values are not allowed",
        "a colon cannot be here: the line above lacks its own or is indented otherwise, or text with ': ' needs quotes",
    ),
    ("could not find expected ':'", "a key without its colon; write key: value"),
    ("did not find expected key", "the indentation does not fit the lines above, or text needs quotes"),
    ("did not find expected ',' or ']'", "a list in brackets is not closed, or a comma is missing"),
    ("did not find expected ',' or '}'", "a mapping in braces is not closed, or a comma is missing"),
    (
        "did not find expected '-' indicator",
        "a list goes on without its - here; the indentation does not fit the lines above",
    ),
    ("block sequence entries are not allowed", "a list item cannot begin here; begin it in a line of its own"),
    ("block collections must", "a block collection cannot begin here; begin it in a line of its own"),
    ("found unexpected ':'", "text with a colon needs quotes within brackets and braces"),
    ("mapping keys are not allowed", "a key that begins with ? cannot be here; quote the text"),
    ("tab character", "a tab cannot indent; use spaces"),
    (
        "found unknown escape character",
        "an escape that double quotes do not know; write \\\\ for a backslash, or use single quotes",
    ),
    ("found undefined tag handle", "text that begins with ! needs quotes"),
    ("did not find expected tag", "text that begins with ! needs quotes"),
    ("while scanning an alias", "text that begins with * needs quotes"),
    ("while scanning an anchor", "text that begins with & needs quotes"),
    ("while scanning a directive", "text that begins with % needs quotes"),
    ("while scanning a block scalar", "text that begins with | or > needs quotes"),
    (
        "did not find expected <document start>",
        "text behind the end of the configuration; the indentation does not fit the lines above",
    ),
    (
        "did not find expected node content",
        "a value is missing, or text that begins with a special character needs quotes",
    ),
)


def _sentence(problem: str, context: str, at: str, line: str) -> str:
    """What to tell about libyaml's ``problem``, found at the character ``at`` of ``line``."""
    if "end of stream" in problem and "quoted scalar" in context:
        return "the quote that begins here is never closed"
    if "document indicator" in problem:
        return "a line --- or ... within a quoted text; close the quote, or indent the line"
    if "cannot start any token" in problem:
        return "a tab cannot indent; use spaces" if at == "\t" else f"text that begins with {at} needs quotes"
    if re.search(r"[:,\[]\s*\[[0-9a-fA-F:]*:[0-9a-fA-F:]*\]:", line) or re.match(r"\s*-\s*\[[0-9a-fA-F:]*:", line):
        return 'an IPv6 address needs quotes: "[::1]:8080"'
    if not at and "flow" in context:
        return "a bracket or brace is not closed"
    if at and at in "]}":
        return f"{at} closes nothing; remove it, or open it before"
    for known, sentence in _SENTENCES:
        if known in problem or known in context:
            return sentence
    return f"the file is not YAML: {problem}" + (f" {context}" if context else "")


class Refused(Node):
    """Where something stood that has been reported already; nobody says more about it."""

    __slots__ = ()
