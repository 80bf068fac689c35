"""The form of the file: what is refused before any key is looked at, and where."""

# ruff: noqa: E501 - a case and its sentence stand in one line

from __future__ import annotations

import pytest

from preforkd.config.events import Mapping, Mistakes, Scalar, Sequence, parse
from preforkd.errors import PreforkdError

from .conftest import POOL, Said


@pytest.mark.parametrize(
    ("text", "mistakes"),
    [
        # What YAML allows and no operator means.
        ("user: &a me\n", ["1:7: user: '&a' is an anchor, which is not allowed; remove it, or quote the text"]),
        ("log: &a {level: info}\n", ["1:6: log: '&a' is an anchor, which is not allowed; remove it"]),
        ("user: *a\n", ["1:7: user: '*a' is an alias, which is not allowed; write the value out, or quote the text"]),
        ("user: !a me\n", ["1:7: user: '!a' is a tag, which is not allowed; remove it, or quote the text"]),
        ("umask: !!int 022\n", ["1:8: umask: 'tag:yaml.org,2002:int' is a tag, which is not allowed; remove it, or quote the text"]),
        ("log: {<<: {level: info}}\n", ["1:7: log.<<: a merge key is not allowed; write the settings out"]),
        ("user: me\nuser: you\n", ["2:1: user: is here twice; the first is in line 1"]),
        ("log: {level: info, 'level': info}\n", ["1:20: log.level: is here twice; the first is in line 1"]),
        ("user: me\n---\nuser: you\n", ["2:1: a second document begins here; a configuration is one document: remove the line ---"]),
        ("%YAML 1.1\n---\nuser: me\n", ["1:1: directives (%YAML, %TAG) are not allowed; remove the line"]),
        ("? [a]\n: b\n", ["1:3: a list cannot be a key; text that begins with a bracket needs quotes"]),
        ("{a: b}: c\n", ["1:1: a mapping cannot be a key; text that begins with a bracket needs quotes"]),
        # Characters.
        ("user: a\x00b\n", ["1:8: a NUL byte; remove it"]),
        ("user: a\x07b\n", ["1:8: a control character (U+0007); remove it"]),
        ("user: a\x7fb\n", ["1:8: a control character (U+007F); remove it"]),
        ("# a\nuser: a\x85b\n", ["2:8: a next-line character (U+0085); remove it"]),
        ("user: a\u2028b\n", ["1:8: a line separator (U+2028); remove it"]),
        ("user: a\ufeffb\n", ["1:8: a byte order mark within the text (U+FEFF); remove it"]),
        ("user: a\rgroup: b\n", ["1:8: a carriage return that ends no line; remove it"]),
        ("a: \x01\nb: \x02\n", ["1:4: a control character (U+0001); remove it", "2:4: a control character (U+0002); remove it"]),
        ('user: "a\\0b"\n', [r"1:7: user: 'a\x00b' has a control character; remove it"]),
        (b"user: caf\xe9\n", ["1:10: has a byte 0xe9, which is not UTF-8; save the file as UTF-8"]),
        ("# é\nuser: é".encode() + b"\xff", ["2:8: has a byte 0xff, which is not UTF-8; save the file as UTF-8"]),
        ("user: me\n".encode("utf-16"), ["1:1: is UTF-16, which is not UTF-8; save the file as UTF-8"]),
        # Depth.
        ("{a: " * 33, ["1:129: is nested deeper than 32 levels, which no setting is; is a bracket left open?"]),
        ("[" * 500, ["1:33: is nested deeper than 32 levels, which no setting is; is a bracket left open?"]),
        # Syntax.
        ("user: a: b\n", ["1:8: a colon cannot be here: the line above lacks its own or is indented otherwise, or text with ': ' needs quotes"]),
        ("pools:\n  web\n    listen: x\n", ["3:11: a colon cannot be here: the line above lacks its own or is indented otherwise, or text with ': ' needs quotes"]),
        ("user: me\nlog\n", ["2:4: a key without its colon; write key: value"]),
        ("log:\n  level: info\n errors: stderr\n", ["3:2: the indentation does not fit the lines above, or text needs quotes"]),
        ("log:\n\tlevel: info\n", ["2:1: a tab cannot indent; use spaces"]),
        ("user: @me\n", ["1:7: text that begins with @ needs quotes"]),
        ("log: {format: %h}\n", ["1:15: text that begins with % needs quotes"]),
        ("include: *.yaml\n", ["1:10: text that begins with * needs quotes"]),
        ("user: 'me\n", ["1:7: the quote that begins here is never closed"]),
        ('user: "\\d"\n', ["1:8: an escape that double quotes do not know; write \\\\ for a backslash, or use single quotes"]),
        ("pools: {web: {\n", ["1:15: a bracket or brace is not closed"]),
        ("include: [a,\n b\nuser: me\n", ["3:5: a list in brackets is not closed, or a comma is missing (the bracket was opened in line 1)"]),
        ("pools: {web: {listen: [::]:80}}\n", ['1:24: an IPv6 address needs quotes: "[::1]:8080"']),
        ("user: me\n  group: b\n", ["2:8: a colon cannot be here: the line above lacks its own or is indented otherwise, or text with ': ' needs quotes"]),
        ("log: {level: info}}\n", ["1:19: } closes nothing; remove it, or open it before"]),
    ],
)  # fmt: skip
def test_refused_with_its_place(text: str | bytes, mistakes: list[str]) -> None:
    found = Mistakes()
    parse(text if isinstance(text, bytes) else text.encode(), "x", found)
    assert [str(mistake).removeprefix("x:").strip() for mistake in found.error("x").mistakes] == mistakes


def test_very_deep_nesting_is_said_quickly() -> None:
    # From PyYAML 6.0.4 on its scanner refuses the thousandth bracket before it tells of the first.
    found = Mistakes()
    parse(b"[" * 50_000, "x", found)
    (mistake,) = found.error("x").mistakes
    assert str(mistake).endswith("is nested deeper than 32 levels, which no setting is; is a bracket left open?")


def test_bom_and_crlf_are_fine(said: Said) -> None:
    assert said(b"\xef\xbb\xbf" + ("# a\n" + POOL).replace("\n", "\r\n").encode()) == []
    # ... and do not move the places.
    assert said(b"\xef\xbb\xbf# a\r\nusr: me\r\n" + POOL.encode()) == ["2:1: usr: unknown key; did you mean user?"]


def test_a_tree_keeps_text_and_places() -> None:
    mistakes = Mistakes()
    tree = parse(b"a: 0660\nb: ['no', ~, 22:22]\nc:\n", "x", mistakes)
    assert not mistakes and tree.complete and isinstance(tree.root, Mapping)
    values = {key.text: value for key, value in tree.root.pairs}
    a, b, c = values["a"], values["b"], values["c"]
    assert isinstance(a, Scalar) and (a.text, a.plain, a.line, a.column) == ("0660", True, 1, 4)
    assert isinstance(b, Sequence)
    texts = [(item.text, item.plain) for item in b.items if isinstance(item, Scalar)]
    assert texts == [("no", False), ("~", True), ("22:22", True)]
    assert c.empty


def test_without_the_c_parser(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("preforkd.config.events.CBaseLoader", None)
    with pytest.raises(PreforkdError, match="PyYAML was built without its C parser"):
        parse(b"a: b", "x", Mistakes())


def test_after_a_syntax_error_nothing_is_missing(said: Said) -> None:
    # The pool lacks `listen` and `app`, but what follows the error might have said them.
    assert said("pools:\n  web:\n    modl: process\n    user: @me\n") == [
        "3:5: pools.web.modl: unknown key; did you mean model?",
        "4:11: text that begins with @ needs quotes",
    ]


def test_at_most_a_hundred_mistakes(said: Said) -> None:
    mistakes = said("".join(f"key{number}:\n" for number in range(250)) + POOL)
    assert len(mistakes) == 101
    assert mistakes[-1] == "150 more mistakes not shown"


def test_mistakes_are_told_in_the_order_of_their_places(said: Said) -> None:
    # The duplicate is found while parsing, the others afterwards.
    assert [mistake.split(" ")[0] for mistake in said("usr: a\numask: 9\numask: 8\ngrup: b\n" + POOL)] == [
        "1:1:",
        "2:8:",
        "3:1:",
        "3:8:",
        "4:1:",
    ]
