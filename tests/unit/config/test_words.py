"""Unknown keys: every foreign word leads to its setting, and every sentence is one."""

# ruff: noqa: E501 - a case and its sentence stand in one line

from __future__ import annotations

import pytest

from preforkd.config import words
from preforkd.config.settings import Config, Limits, Pool, Workers, declared

from .test_values import all_sections, every_key

FOREIGN = sorted(
    {
        (word, key, section)
        for section in all_sections()
        for key, item in declared(section).items()
        for text in item.setting.words.values()
        for word in text.split()
    },
    key=str,
)


@pytest.mark.parametrize(("word", "key", "section"), FOREIGN)
def test_every_foreign_word_leads_to_its_setting(word: str, key: str, section: type[object]) -> None:
    for place_section, place in ((Config, ""), (Pool, "pools.x")):
        if word in declared(place_section) or words.folded(word) in map(words.folded, declared(place_section)):
            continue  # where we have the word ourselves, it is ours
        sentence = words.unknown(word, place_section, place, "x")
        assert f".{key}" in sentence or f" {key}" in sentence, (section, sentence)


def test_words_without_a_setting() -> None:
    for word, (_, sentence) in words._NO_SETTING.items():
        assert words.folded(word) == word and "." not in word
        assert sentence in words.unknown(word, Config, "", "x")
    for word in words.LATER:
        assert "this version" in words.unknown(word, Pool, "pools.x", "x")


@pytest.mark.parametrize(
    ("key", "section", "place", "sentence"),
    [
        ("Listen", Pool, "pools.x", "unknown key; did you mean listen?"),
        ("lsten", Pool, "pools.x", "unknown key; did you mean listen?"),
        ("min-spare", Workers, "pools.x.workers", "unknown key; did you mean min_spare?"),
        ("backlog", Pool, "pools.x", "unknown key; `backlog` belongs elsewhere: pools.x.limits.backlog"),
        ("min-spare", Pool, "pools.x", "unknown key; `min_spare` belongs elsewhere: pools.x.workers.min_spare (if min_spare was meant)"),
        ("include", Pool, "pools.x", "unknown key; `include` belongs to the top level of the main file"),
        ("user", Limits, "pools.x.limits", "unknown key; `user` belongs elsewhere: user or pools.x.user"),
        ("keepalive_timeout", Pool, "pools.x", "unknown key; what Apache calls KeepAliveTimeout is pools.x.timeouts.keepalive here"),
        ("", Workers, "pools.x.workers", "unknown key; known here: start, min_spare, max_spare, max"),
        ("x" * 200_000, Workers, "pools.x.workers", "unknown key; known here: start, min_spare, max_spare, max"),
    ],
)  # fmt: skip
def test_sentences(key: str, section: type[object], place: str, sentence: str) -> None:
    assert words.unknown(key, section, place, "x") == sentence


def test_every_setting_elsewhere_is_told_where_it_belongs() -> None:
    for key in every_key():
        name = key.rpartition(".")[2]
        for section, place in ((Config, ""), (Workers, "pools.web.workers")):
            if name not in declared(section):
                assert key.replace("NAME", "web") in words.unknown(name, section, place, "web") or key in ("include",)
