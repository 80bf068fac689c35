"""The documents say what the program does: tables are made of it, names are looked for in it, links lead somewhere."""

from __future__ import annotations

import argparse
import os
import re
from pathlib import Path

import pytest

from preforkd import cli
from preforkd.config import read_text
from preforkd.core import table
from preforkd.errors import ExitCode
from preforkd.model import Cause
from tests.unit.docs import source
from tests.unit.docs.tables import HTTP, MANUAL, PARTS, ROOT, WRITE, part, with_part

DOCUMENTS = sorted([*(ROOT / "docs").glob("*.md"), ROOT / "README.md"])


def manual() -> str:
    return MANUAL.read_text(encoding="utf-8")


def section(title: str) -> str:
    """The manual's text from a heading to the next one of the same depth or above."""
    depth = re.search(rf"(?m)^(#+) {re.escape(title)}$", manual())
    assert depth is not None, f"docs/manual.md has no section {title!r}"
    rest = manual()[depth.end() :]
    end = re.search(rf"(?m)^#{{1,{len(depth[1])}}} ", rest)
    return rest[: end.start()] if end is not None else rest


def rows(text: str) -> list[list[str]]:
    """The cells of every row of every table in ``text``."""
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip()[1:-1])] for line in lines]


# --- generated parts -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PARTS)
def test_generated_parts_are_up_to_date(name: str) -> None:
    wanted = PARTS[name]()
    if os.environ.get(WRITE):
        MANUAL.write_text(with_part(manual(), name, wanted), encoding="utf-8")
    assert part(manual(), name) == wanted, (
        f"docs/manual.md: the part {name!r} is not what the program says any more; write it anew by running these tests"
        f" with {WRITE}=1 in the environment: {WRITE}=1 .venv/bin/pytest tests/unit/docs"
    )


# --- events ----------------------------------------------------------------------------------------------------------


def test_the_manual_explains_every_event() -> None:
    named = {row[0].strip("`") for row in rows(section("Events")) if row[0].startswith("`")}
    logged = source.events()
    missing = [f"{event} ({logged[event]})" for event in sorted(logged.keys() - named)]
    assert not missing, "events without a row in docs/manual.md, Events: " + ", ".join(missing)


def test_the_manual_explains_no_event_that_is_not_logged() -> None:
    listed = [row for row in rows(section("Events")) if row[0].startswith("`") and len(row) == 4]
    names = [row[0].strip("`") for row in listed]
    assert len(names) == len(set(names))
    assert not set(names) - source.events().keys()


def test_the_reader_of_events_sees_them() -> None:
    known = {"worker_exit", "pool_limit", "app_exception", "app_output", "template_warmup", "log_lost"}
    assert known <= source.events().keys()


# --- causes, exit codes ----------------------------------------------------------------------------------------------


def test_the_manual_explains_every_cause_of_death() -> None:
    text = section("Why workers end")
    assert not [cause.value for cause in Cause if cause.value not in text]
    for code in (ExitCode.BOOT_FAILED, ExitCode.SICK, ExitCode.ORPHANED):
        assert table._ending(int(code), None, False) in text


def test_the_manual_names_the_exit_codes_of_commands() -> None:
    codes = {row[0] for row in rows(section("Commands"))}
    assert {str(int(code)) for code in (ExitCode.OK, ExitCode.FAILURE, ExitCode.USAGE, ExitCode.CONFIG)} <= codes


# --- commands --------------------------------------------------------------------------------------------------------


def commands() -> dict[str, argparse.ArgumentParser]:
    (choices,) = (action.choices for action in cli._parser()._actions if isinstance(action, argparse._SubParsersAction))
    return dict(choices)


def test_the_manual_has_each_command_with_its_options_and_no_other() -> None:
    headings = dict(re.findall(r"(?m)^### preforkd (\w+)(.*)$", manual()))
    assert sorted(headings) == sorted(commands())
    for name, parser in commands().items():
        options = {option for action in parser._actions for option in action.option_strings} - {"-h", "--help"}
        assert set(re.findall(r"--\w+", headings[name])) == options, f"### preforkd {name}"
        takes_file = any(action.dest == "file" for action in parser._actions)
        assert ("[FILE]" in headings[name]) == takes_file, f"### preforkd {name}"


# --- examples --------------------------------------------------------------------------------------------------------


def test_the_examples_of_configurations_are_valid() -> None:
    found = re.findall(r"(?m)(?:^    (?:\w.*|  .*)\n)+", manual())
    examples = [re.sub(r"(?m)^    ", "", text) for text in found if re.search(r"(?m)^    pools:$", text)]
    assert len(examples) == 3
    for example in examples:
        assert read_text(example, str(ROOT / "tests" / "mysite.yaml")).pools


# --- http.md ---------------------------------------------------------------------------------------------------------


def test_the_reader_of_refusals_sees_them() -> None:
    known = {
        (431, "the header has more than N fields"),
        (400, "this looks like TLS; HTTP without TLS is spoken here"),
        (501, "the only transfer coding understood here is chunked"),
        (408, "the request's body did not arrive in time"),
    }
    assert known <= source.refusals().keys()


def test_every_refusal_is_in_the_table() -> None:
    told = {(int(row[0]), row[1]) for row in rows(HTTP.read_text(encoding="utf-8")) if row[0].isdigit()}
    refused = source.refusals()
    # Behind a colon may come the system's own words: "...: Connection reset by peer".
    missing = [
        f"{status} {sentence} ({refused[status, sentence]})"
        for status, sentence in sorted(refused)
        if not {(status, sentence), (status, sentence.removesuffix(": N"))} & told
    ]
    assert not missing, "refusals without a row in docs/http.md: " + "; ".join(missing)
    gone = [pair for pair in told if pair not in refused and (pair[0], f"{pair[1]}: N") not in refused]
    assert not gone, f"docs/http.md has refusals that the code has not: {gone}"


# --- all documents ---------------------------------------------------------------------------------------------------


def anchors(path: Path) -> set[str]:
    """The headings of a document as links name them."""
    titles = re.findall(r"(?m)^#+ (.*)$", path.read_text(encoding="utf-8"))
    return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", path.read_text(encoding="utf-8")):
        if "://" in target:
            continue
        file, _, anchor = target.partition("#")
        other = (path.parent / file).resolve() if file else path
        assert other.exists(), f"{path.name}: {target}"
        assert not anchor or anchor in anchors(other), f"{path.name}: {target}"
