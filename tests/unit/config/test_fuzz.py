"""Whatever the bytes are: a configuration, or mistakes with places that exist; never another exception, never slow."""

from __future__ import annotations

import json
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preforkd.config import from_plain, read_text, sample, to_plain
from preforkd.config.sample import switched_on
from preforkd.errors import ConfigError

from .test_walk import FULL

VALID = [FULL, sample(), switched_on(sample())]

#: What is put into valid files: what YAML, the declarations or the readers could trip over.
PIECES = [
    *(" ", "  ", "\n", "\n\n", "\t", "\r\n"),
    *":?[]{},#|>'\"%@`~\\",
    *(": ", "- ", "? ", " #", "&a ", "*a", "!!int ", "<<: *a", "---\n", "...\n", "null", "yes"),
    *('"\\0"', "\x00", "\x85", "\u2028", "\ufeff", "é", "😀", "0", "-1", "1e9", "9" * 40, "x" * 300),
    *("listen", "pools:", "max: ", "30 seconds", "*:80", "unix:", "[::]:80"),
]  # fmt: skip


@st.composite
def mutated(draw: st.DrawFn) -> str:
    """A valid file, cut and mended in a few places."""
    text = draw(st.sampled_from(VALID))
    for _ in range(draw(st.integers(1, 6))):
        start = draw(st.integers(0, len(text)))
        length = draw(st.sampled_from((0, 0, 1, 2, 7, 40)))
        kind = draw(st.sampled_from(("piece", "cut", "double", "any")))
        if kind == "piece":
            text = text[:start] + draw(st.sampled_from(PIECES)) + text[start + length :]
        elif kind == "cut":
            text = text[:start] + text[start + length + 1 :]
        elif kind == "double":
            text = text[:start] + text[start : start + length + 10] + text[start:]
        else:
            text = text[:start] + draw(st.text(max_size=5)) + text[start + length :]
    return text


def check(data: bytes) -> None:
    try:
        config = read_text(data, "/x/main.yaml")
    except ConfigError as error:
        mistakes = error.mistakes
    else:
        assert from_plain(json.loads(json.dumps(to_plain(config)))) == config
        return
    # Places count in what an editor shows: lines end with LF, a BOM is invisible.
    lines = data.decode("utf-8", "replace").removeprefix("\ufeff").split("\n")
    assert 1 <= len(mistakes) <= 101
    for mistake in mistakes:
        assert str(mistake).isprintable() and len(str(mistake)) < 1000
        if mistake.line:
            assert 1 <= mistake.line <= len(lines), mistake
            assert 1 <= mistake.column <= len(lines[mistake.line - 1]) + 1, mistake
        else:
            assert mistake.column == 0


@given(mutated())
@settings(max_examples=600, deadline=None)
def test_mutated_files(text: str) -> None:
    check(text.encode("utf-8", "surrogatepass"))


@given(mutated(), st.integers(0), st.binary(max_size=3))
@settings(max_examples=100, deadline=None)
def test_mutated_bytes(text: str, at: int, noise: bytes) -> None:
    data = text.encode("utf-8", "surrogatepass")
    at %= len(data) + 1
    check(data[:at] + noise + data[at + len(noise) :])


@given(st.text("ab:-[]{}&*!|>'\"%@`#,? \n\t", max_size=60))
@settings(max_examples=600, deadline=None)
def test_heaps_of_indicators(text: str) -> None:
    check(text.encode())


_ROOM = 256 << 10


def filled(unit: str, before: str = "", after: str = "") -> str:
    return before + unit * ((_ROOM - len(before) - len(after)) // len(unit)) + after


def numbered(form: str, before: str = "") -> str:
    text = before + "".join(form.format(number) for number in range(60_000))
    return text[:_ROOM]


@pytest.mark.parametrize(
    "text",
    [
        pytest.param(numbered("k{:x}:\n"), id="60 000 unknown keys"),
        pytest.param(numbered("k{:x},", "{"), id="60 000 unknown keys in braces"),
        pytest.param(numbered(" k{:x}:\n", "pools:\n"), id="pools"),
        pytest.param(numbered("{:x},", "pools: {web: {listen: ["), id="addresses that are none"),
        pytest.param(numbered("1.1.1.1:{},", "pools: {web: {listen: ["), id="addresses"),
        pytest.param(numbered("k{:x}: &a !b *c\n"), id="refused"),
        pytest.param(filled("a:\n"), id="one key again and again"),
        pytest.param(filled("\x00"), id="NUL"),
        pytest.param(filled("["), id="brackets"),
        pytest.param(filled("{"), id="braces"),
        pytest.param(filled("- "), id="dashes"),
        pytest.param(filled("? "), id="question marks"),
        pytest.param(filled("a: "), id="colons"),
        pytest.param(filled("&a "), id="anchors"),
        pytest.param(filled("\n"), id="empty lines"),
        pytest.param(filled("#\n"), id="comments"),
        pytest.param(filled("x", "a: "), id="a long value"),
        pytest.param(filled("x", "", ": a"), id="a long key"),
        pytest.param(filled("x ", "listen: "), id="a value of many words"),
        pytest.param(filled("\\x41", '"', '"'), id="escapes"),
        pytest.param(filled(" ", "a:", "b"), id="spaces"),
        pytest.param(filled("a: b, ", "k: [", "]"), id="pairs"),
        pytest.param(filled("%a\n"), id="directives"),
        pytest.param(filled("--- a\n"), id="documents"),
    ],
)
def test_torture(text: str) -> None:
    before = time.process_time()
    check(text.encode())
    # 0.05 to 0.4 s on the machine this was written on; quadratic work would take minutes.
    assert time.process_time() - before < 5


def test_a_file_of_200_lines_is_quick() -> None:
    pool = switched_on(sample()).partition("pools:\n")[2]
    text = "pools:\n" + "".join(pool.replace("web:", f"p{n}:").replace("8080", f"808{n}") for n in range(3))
    assert text.count("\n") > 200
    read_text(text)
    before = time.process_time()
    for _ in range(5):
        read_text(text)
    # About 2 ms each on the machine this was written on.
    assert time.process_time() - before < 0.5
