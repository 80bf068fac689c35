"""Events as text: readable, and impossible to forge."""

from __future__ import annotations

import enum
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.logs import text
from tests.unit.logs.parse import parse_fields, parse_log, unquote

#: Everything that can be in a str, with a liking for what forgers need; lone surrogates and undecodable bytes too.
anything = st.text(
    st.one_of(st.characters(), st.sampled_from('\n\r\t "\\=|-\x00\x1b\x85\u2028\u202e\udc80\udcff\ud800 xu0'))
)
field_names = st.from_regex(r"[a-z_]{1,8}", fullmatch=True).filter(lambda name: name != "text")


def one(event: str, **fields: object) -> str:
    [block] = text.blocks(event, fields, "", 0)
    return block.decode()


class Word(enum.IntEnum):
    SICK = 42


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("web", "web"),
        (812, "812"),
        (0.0125, "0.0125"),
        (30.0, "30"),
        (True, "yes"),
        (False, "no"),
        (None, "-"),
        ("-", '"-"'),
        ("", '""'),
        ("killed by signal 9", '"killed by signal 9"'),
        ('say "no"', r'"say \"no\""'),
        ("C:\\x", r'"C:\\x"'),
        ("a=b", '"a=b"'),
        ("naïve", '"naïve"'),
        ("\x1b[31m", r'"\x1b[31m"'),
        ("\udcff", r'"\xff"'),
        (b"GET /\xff", r'"GET /\xff"'),
        ("\u202egnp", r'"\u202egnp"'),
        ("\x85", r'"\u0085"'),
        (Path("/var/log"), "/var/log"),
        (Word.SICK, "sick"),
        (["a", 1], '"a, 1"'),
        (Unprintable(), '"<Unprintable that cannot be shown: RuntimeError>"'),
    ],
)
def test_values_are_bare_where_that_is_clear_and_quoted_elsewhere(value: object, shown: str) -> None:
    assert text.quote(value) == shown


def test_an_event_is_its_name_and_its_fields_in_order() -> None:
    assert one("worker_exit", pool="web", slot=3, cause="killed by signal 9 (SIGKILL)") == (
        'worker_exit pool=web slot=3 cause="killed by signal 9 (SIGKILL)"\n'
    )


def test_text_stands_below_its_event_and_backslashes_in_it_stay_as_they_are() -> None:
    trace = 'Traceback (most recent call last):\n  File "a.py", line 1\n\n    re.compile(r"\\d")\n\x1b[0mError\n'
    assert one("app_failed", pool="web", text=trace) == (
        "app_failed pool=web\n"
        "    | Traceback (most recent call last):\n"
        '    |   File "a.py", line 1\n'
        "    |\n"
        '    |     re.compile(r"\\d")\n'
        "    | \\x1b[0mError\n"
    )


def test_other_values_of_several_lines_carry_their_name() -> None:
    assert one("reload_failed", error="a\nb", pid=3) == "reload_failed pid=3\n    error| a\n    error| b\n"


def test_a_field_that_nobody_should_have_named_so_is_still_one_field() -> None:
    assert one("a b\nc", **{"x=1 y": "z", "": "e"}) == "a_b_c x_1_y=z _=e\n"


@given(anything)
def test_every_value_can_be_read_back(value: str) -> None:
    quoted = text.quote(value)
    assert quoted.isprintable()
    assert unquote(quoted) == value


@given(st.dictionaries(field_names, anything, max_size=5), anything)
def test_no_value_can_pretend_to_be_a_field_a_line_or_an_event(fields: dict[str, str], below: str) -> None:
    start = "2026-11-23T12:00:00.250Z info "
    [block] = text.blocks("fact", {**fields, "text": below}, start, 0)
    [event] = parse_log(block.decode())
    assert event.name == "fact"
    for key, value in fields.items():
        if "\n" in value:
            assert len(event.below[key]) == value.removesuffix("\n").count("\n") + 1
        else:
            assert event.fields[key] == value
    assert set(event.fields) | set(event.below) == set(fields) | {"text"}
    if below:
        shown = below.removesuffix("\n").split("\n")
        assert len(event.below["text"]) == len(shown)
        for line, given_line in zip(event.below["text"], shown, strict=True):
            if given_line.isprintable():
                assert line.rstrip(" ") == given_line.rstrip(" ")


@given(st.lists(anything, max_size=30), anything, st.integers(200, 4096))
def test_blocks_keep_their_limit_and_each_can_be_understood_alone(below: list[str], value: str, limit: int) -> None:
    start = "2026-11-23T12:00:00.250Z info "
    blocks = list(text.blocks("fact", {"key": value * 20, "text": "\n".join(below)}, start, limit))
    shown: list[str] = []
    for number, block in enumerate(blocks, 1):
        assert len(block) <= limit
        [event] = parse_log(block.decode())
        assert event.name == "fact"
        if number > 1:
            assert event.fields["part"] == str(number)
        shown += event.below.get("text", [])
    [whole] = text.blocks("fact", {"text": "\n".join(below)}, start, 0)
    [expected] = parse_log(whole.decode())
    assert "".join(shown).replace(" ", "") == "".join(expected.below.get("text", [])).replace(" ", "")


def test_a_value_without_end_is_cut_and_says_so() -> None:
    line = one("fact", value="x" * 100_000)
    assert len(line) < 20_000
    assert (
        parse_fields(line[4:-1])["value"] == "x" * text.VALUE_MAX + f"... ({100_000 - text.VALUE_MAX} characters cut)"
    )


def test_a_text_without_end_is_cut_and_says_so() -> None:
    block = one("fact", text="x\n" * 1_000_000)
    assert len(block) < 5 * text.TEXT_MAX
    assert block.endswith("characters cut)\n")


def test_of_too_many_fields_the_last_are_cut_and_counted() -> None:
    blocks = list(text.blocks("fact", {f"field{number}": number for number in range(1000)}, "", 4096))
    [block] = blocks
    fields = parse_fields(block.decode().removeprefix("fact").removesuffix("\n"))
    assert len(block) <= 4096
    assert fields["fields_cut"] == str(1001 - len(fields))


def test_times() -> None:
    stamp = text.Stamp()
    assert stamp.iso(1795435200.25) == "2026-11-23T12:00:00.250Z"
    assert stamp.iso(1795435200.9999) == "2026-11-23T12:00:00.999Z"
    assert stamp.iso(1795435199.0) == "2026-11-23T11:59:59.000Z"
