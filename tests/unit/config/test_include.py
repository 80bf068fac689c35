"""Included files: which are read, in which order, and what they may hold."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from preforkd.config import read, read_placed
from preforkd.config.read import MAX_FILES, matches
from preforkd.config.source import MAX_BYTES, Unreadable
from preforkd.errors import ConfigError

MAIN = 'include: conf.d/*.yaml\npools: {web: {listen: "127.0.0.1:80", app: a}}\n'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "main.yaml").write_text(MAIN)
    return tmp_path


def site(name: str, port: int) -> str:
    return f"pools:\n  {name}: {{listen: 127.0.0.1:{port}, app: a}}\n"


def mistakes(folder: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        read(str(folder / "main.yaml"))
    return [str(mistake).replace(f"{folder}/", "") for mistake in caught.value.mistakes]


def test_sorted_after_the_main_file(folder: Path) -> None:
    for name, port in (("b", 82), ("a", 81), ("C", 83)):
        (folder / "conf.d" / f"{name}.yaml").write_text(site(name, port))
    (folder / "conf.d" / ".hidden.yaml").write_text("not read")
    (folder / "conf.d" / "a.yaml.sample").write_text("not read")
    config = read(str(folder / "main.yaml"))
    assert list(config.pools) == ["web", "C", "a", "b"]
    assert [os.path.basename(file) for file in config.files] == ["main.yaml", "C.yaml", "a.yaml", "b.yaml"]


def test_the_digest_is_of_all_bytes_and_names(folder: Path) -> None:
    extra = folder / "conf.d" / "a.yaml"
    extra.write_text(site("a", 81))
    config = read(str(folder / "main.yaml"))
    digest = hashlib.sha256()
    for file in (folder / "main.yaml", extra):
        name, data = os.fsencode(file), file.read_bytes()
        digest.update(b"%d %d\n" % (len(name), len(data)) + name + data)
    assert config.digest == digest.hexdigest()
    extra.rename(folder / "conf.d" / "b.yaml")
    assert read(str(folder / "main.yaml")).digest != config.digest


def test_a_pattern_without_match_is_fine(folder: Path) -> None:
    assert list(read(str(folder / "main.yaml")).pools) == ["web"]
    (folder / "conf.d").rmdir()
    assert list(read(str(folder / "main.yaml")).pools) == ["web"]


def test_a_list_and_absolute_patterns_and_no_file_twice(folder: Path) -> None:
    (folder / "one.yaml").write_text(site("one", 81))
    (folder / "conf.d" / "two.yaml").write_text(site("two", 82))
    (folder / "main.yaml").write_text(f'include: ["one.yaml", "{folder}/conf.d/t*.yaml", "conf.d/*"]')
    assert list(read(str(folder / "main.yaml")).pools) == ["one", "two"]


def test_only_empty_files(folder: Path) -> None:
    (folder / "conf.d" / "a.yaml").write_text("# nothing\n")
    (folder / "conf.d" / "b.yaml").write_text("pools:\n")
    assert list(read(str(folder / "main.yaml")).pools) == ["web"]


def test_only_pools(folder: Path) -> None:
    (folder / "conf.d" / "a.yaml").write_text("user: me\nlisten: x\npoolz: 1\n")
    (folder / "conf.d" / "b.yaml").write_text("- a\n")
    assert mistakes(folder) == [
        "conf.d/a.yaml:1:1: user: an included file holds only `pools:`; this belongs into the main file",
        "conf.d/a.yaml:2:1: listen: unknown key; `listen` belongs into a pool: pools.web.listen",
        "conf.d/a.yaml:3:1: poolz: unknown key; did you mean pools?",
        "conf.d/b.yaml:1:1: an included file holds `pools:` and nothing else",
    ]


def test_mistakes_of_all_files_in_their_order(folder: Path) -> None:
    (folder / "main.yaml").write_text(MAIN + "usr: me\n")
    (folder / "conf.d" / "a.yaml").write_text("pools:\n  a: {listen: 127.0.0.1:80, app: a}\n  b: {listen: x, app: a}\n")
    (folder / "conf.d" / "b.yaml").write_text("pools:\n  a: {listen: '127.0.0.1:81', app: a}\n  c: [\n")
    assert mistakes(folder) == [
        "main.yaml:3:1: usr: unknown key; did you mean user?",
        "conf.d/a.yaml:2:15: pools.a.listen: 127.0.0.1:80 is here twice; the first is pools.web.listen in main.yaml:2",
        "conf.d/a.yaml:3:15: pools.b.listen: 'x' is not an address; write for example 127.0.0.1:8080, "
        '"[::1]:8080", unix:/run/preforkd/web.sock or systemd:web',
        "conf.d/b.yaml:2:3: pools.a: a pool of this name is already in conf.d/a.yaml:2:3; rename one",
        "conf.d/b.yaml:3:6: pools.c: this is a list where a section of settings belongs; write for example "
        '{listen: "127.0.0.1:8080", app: "mysite.wsgi:application"}',
        "conf.d/b.yaml:3:7: a bracket or brace is not closed",
    ]


def test_a_file_named_in_full_must_be_there(folder: Path) -> None:
    (folder / "main.yaml").write_text("include: [conf.d/a.yaml, conf.d]\n")
    assert mistakes(folder) == [
        "main.yaml:1:11: include: conf.d/a.yaml: there is no such file",
        "main.yaml:1:26: include: conf.d is a folder; a regular file is needed",
    ]


def test_a_link_that_leads_nowhere(folder: Path) -> None:
    (folder / "conf.d" / "a.yaml").symlink_to("nowhere")
    (folder / "conf.d" / "b.yaml").symlink_to("b.yaml")
    assert mistakes(folder) == [
        "main.yaml:1:10: include: conf.d/a.yaml: there is no such file",
        "main.yaml:1:10: include: conf.d/b.yaml cannot be read: its symbolic links lead back to themselves",
    ]


def test_a_pattern_that_matches_the_main_file(folder: Path) -> None:
    (folder / "main.yaml").write_text(MAIN.replace("conf.d/*", "m*"))
    assert mistakes(folder) == [
        "main.yaml:1:10: include: 'm*.yaml' matches this file itself; keep further files in a folder of their own"
    ]


def test_too_many_files(folder: Path) -> None:
    for number in range(MAX_FILES + 1):
        (folder / "conf.d" / f"{number}.yaml").touch()
    (mistake,) = mistakes(folder)
    assert mistake.endswith("matches 1001 files; at most 1000")


def test_an_included_file_too_large(folder: Path) -> None:
    (folder / "conf.d" / "a.yaml").write_bytes(b"#" * (MAX_BYTES + 1))
    (mistake,) = mistakes(folder)
    assert mistake.startswith("main.yaml:1:10: include: conf.d/a.yaml is larger than 256 KiB")


def test_a_name_that_is_no_text(folder: Path) -> None:
    odd = os.fsencode(folder / "conf.d") + b"/a\xff\n.yaml"
    Path(os.fsdecode(odd)).write_text("user: me")
    (mistake,) = mistakes(folder)
    assert mistake.isprintable() and mistake.startswith("conf.d/a")


def test_missing_pools_are_not_told_when_a_file_cannot_be_read(folder: Path) -> None:
    (folder / "main.yaml").write_text("include: [a.yaml, '']\n")
    assert len(mistakes(folder)) == 1
    (folder / "main.yaml").write_text("include: a.yaml\n")
    assert mistakes(folder) == ["main.yaml:1:10: include: a.yaml: there is no such file"]


def test_a_folder_that_may_not_be_listed(folder: Path, unprivileged: Callable[[Callable[[], None]], None]) -> None:
    (folder / "conf.d" / "a.yaml").write_text("pools:")
    (folder / "conf.d").chmod(0)

    def denied() -> None:
        with pytest.raises(Unreadable, match="cannot be listed: Permission denied"):
            matches(f"{folder}/conf.d/*.yaml")

    try:
        unprivileged(denied)
    finally:
        (folder / "conf.d").chmod(0o700)


def test_matches_as_the_shell_does(tmp_path: Path) -> None:
    for name in ("a/x.yaml", "b/x.yaml", "b/y.yaml", "b/.z.yaml", ".c/x.yaml", "[d]/x.yaml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()

    def found(pattern: str) -> list[str]:
        return [path.removeprefix(f"{tmp_path}/") for path in matches(f"{tmp_path}/{pattern}")]

    assert found("*/x.yaml") == ["[d]/x.yaml", "a/x.yaml", "b/x.yaml"]
    assert found("b/*") == ["b/x.yaml", "b/y.yaml"]
    assert found("b/.*") == ["b/.z.yaml"]
    assert found("[ab]/?.yaml") == ["a/x.yaml", "b/x.yaml", "b/y.yaml"]
    assert found("nowhere/*") == []
    assert found("a/x.yaml/*") == []
    assert found("nowhere") == ["nowhere"]


def test_places_of_settings(folder: Path) -> None:
    (folder / "conf.d" / "a.yaml").write_text(site("a", 81))
    places = read_placed(str(folder / "main.yaml")).places
    assert str(places["pools.web.app"]).endswith("main.yaml:2:39")
    assert str(places["pools.a"]).endswith("conf.d/a.yaml:2:3")
    assert str(places["pools.a.listen"]).endswith("conf.d/a.yaml:2:7")


def test_mistakes_name_files_as_they_were_asked_for(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "conf.d" / "a.yaml").write_text("user: me")
    (folder / "main.yaml").write_text(MAIN + "usr: me\n")
    monkeypatch.chdir(folder)
    with pytest.raises(ConfigError) as caught:
        read("main.yaml")
    assert [mistake.file for mistake in caught.value.mistakes] == ["main.yaml", "conf.d/a.yaml"]
