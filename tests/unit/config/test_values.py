"""What is made of a configuration and of the declarations: plain data, changes, sample, schema, default paths."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from preforkd.config import (
    Config,
    Pool,
    changes,
    default_file,
    from_plain,
    lookup_accounts,
    manual_table,
    needs_restart,
    read,
    read_placed,
    read_text,
    runtime_files,
    runtime_of,
    sample,
    schema,
    to_plain,
    welcome_file,
)
from preforkd.config.sample import switched_on
from preforkd.config.settings import Group, ListOf, Named, declared

from .conftest import POOL
from .test_walk import FULL

ETC = Path(__file__).parents[3] / "etc"
SYSTEM = "/etc/preforkd/preforkd.yaml"


def every_key() -> list[str]:
    """The dotted keys of all settings."""

    def keys(section: type[Any], path: str) -> Iterator[str]:
        for key, item in declared(section).items():
            shape = item.setting.shape
            if isinstance(shape, Group):
                yield from keys(shape.section, f"{path}{key}.")
            elif isinstance(shape, Named):
                yield from keys(shape.section, f"{path}{key}.NAME.")
            else:
                yield f"{path}{key}"
                if isinstance(shape, ListOf) and shape.section is not None:
                    yield from keys(shape.section, f"{path}{key}.")

    return list(keys(Config, ""))


# -- plain data -----------------------------------------------------------------------------------------------------


def test_plain_and_back() -> None:
    config = read_text(FULL, SYSTEM)
    plain = json.loads(json.dumps(to_plain(config)))
    assert from_plain(plain) == config
    assert from_plain(plain).pools["web"].listen[2].mode == 0o660


@pytest.mark.parametrize(
    "where", [(), ("log",), ("pools", "web"), ("pools", "web", "workers"), ("pools", "web", "listen", 0)]
)
def test_plain_data_of_another_version(where: tuple[str | int, ...]) -> None:
    def more(at: dict[str, Any]) -> None:
        at["more"] = 1

    def less(at: dict[str, Any]) -> None:
        del at[next(iter(at))]

    for change in (more, less):
        plain = to_plain(read_text(FULL, SYSTEM))
        at: Any = plain
        for key in where:
            at = at[key]
        change(at)
        with pytest.raises(ValueError, match="not the plain form of a configuration"):
            from_plain(plain)


def test_plain_data_that_is_none() -> None:
    with pytest.raises(ValueError, match="a mapping is expected"):
        from_plain([])  # type: ignore[arg-type]


# -- changes --------------------------------------------------------------------------------------------------------


def test_no_changes() -> None:
    config = read_text(FULL, SYSTEM)
    assert changes(config, read_text(FULL + "# a comment\n", SYSTEM)) == []


@pytest.mark.parametrize(
    ("old", "new", "change"),
    [
        ("user: www-data", "user: null", "user: www-data -> null (reload)"),
        ("umask: 0027", "umask: 0077", "umask: 0027 -> 0077 (reload)"),
        ("control: /run/x.sock", "control: /run/y.sock", "control: /run/x.sock -> /run/y.sock (restart)"),
        ("level: debug", "level: info", "log.level: debug -> info (reload)"),
        ("request: 2s", "request: 5m", "pools.web.timeouts.request: 2s -> 5m (reload)"),
        ("warmup: /", "warmup: [/, /a]", "pools.web.warmup: [/] -> [/, /a] (reload)"),
        ("A: 1", "A: secret", "pools.web.environment.A: set -> set otherwise (reload)"),
        ("A: 1,", "A: 1, X: secret,", "pools.web.environment.X: new: set (reload)"),
        ("A: 1, ", "", "pools.web.environment.A: removed: set (reload)"),
        (
            "listen: 127.0.0.1:81",
            "listen: 127.0.0.1:82",
            "pools.api-2_x.listen: [127.0.0.1:81] -> [127.0.0.1:82] (reload)",
        ),
        (
            "api-2_x: {listen: 127.0.0.1:81, app: api:app}",
            "",
            "pools.api-2_x: removed: api:app on 127.0.0.1:81 (reload)",
        ),
    ],
)
def test_a_change(old: str, new: str, change: str) -> None:
    assert old in FULL
    before, after = read_text(FULL, SYSTEM), read_text(FULL.replace(old, new, 1), SYSTEM)
    assert [str(found) for found in changes(before, after)] == [change]


def test_a_change_of_an_address() -> None:
    (change,) = changes(read_text(FULL, SYSTEM), read_text(FULL.replace("mode: 0660", "mode: 0600"), SYSTEM))
    assert "{address: unix:/run/w.sock, mode: 0600, owner: a, group: b" in change.new


def test_a_new_pool() -> None:
    new = FULL + "  new: {listen: 127.0.0.1:83, app: n}\n"
    (change,) = changes(read_text(FULL, SYSTEM), read_text(new, SYSTEM))
    assert str(change) == "pools.new: new: n:application on 127.0.0.1:83 (reload)"


def test_what_only_a_restart_applies() -> None:
    old, new = read_text(POOL, SYSTEM), read_text(POOL + "pid_file: /run/x.pid\numask: 077\n", SYSTEM)
    assert needs_restart(old, old) == []
    assert needs_restart(old, new) == [
        f"pid_file: the running master keeps {old.pid_file}; /run/x.pid takes effect when preforkd is restarted"
    ]


def test_every_setting_is_compared() -> None:
    """A change of any field is seen by `changes`, for it goes by the declarations."""
    config = read_text(FULL, SYSTEM)
    pool = config.pools["web"]

    def others(holder: Any) -> Iterator[tuple[str, Any]]:
        for item in dataclasses.fields(holder):
            value = getattr(holder, item.name)
            if isinstance(value, (int, float)):
                yield item.name, dataclasses.replace(holder, **{item.name: value + 1})
            elif not dataclasses.is_dataclass(value) and item.name not in ("path", "files", "digest", "name", "pools"):
                other: Any = {
                    "listen": (), "warmup": (), "environment": {}, "trusted_proxies": ("unix",), "forwarded": ()
                }.get(item.name, "other")  # fmt: skip
                yield item.name, dataclasses.replace(holder, **{item.name: other})

    def with_pool(changed: Pool) -> Config:
        return dataclasses.replace(config, pools={**config.pools, "web": changed})

    cases: list[tuple[str, Config]] = list(others(config))
    cases += [(f"log.{name}", dataclasses.replace(config, log=changed)) for name, changed in others(config.log)]
    cases += [(f"pools.web.{name}", with_pool(changed)) for name, changed in others(pool)]
    for section in ("workers", "recycle", "timeouts", "limits", "body", "answer"):
        for name, changed in others(getattr(pool, section)):
            replaced: dict[str, Any] = {section: changed}
            cases.append((f"pools.web.{section}.{name}", with_pool(dataclasses.replace(pool, **replaced))))
    # include, and what belongs to one address
    assert len(cases) == len([key for key in every_key() if key != "include" and ".listen." not in key])
    for key, new in cases:
        found = changes(config, new)
        assert found and all(change.key.startswith(key) for change in found), key


# -- the sample file ------------------------------------------------------------------------------------------------


def test_the_sample_file_is_made_of_the_declarations() -> None:
    assert (ETC / "preforkd.yaml").read_text() == sample()


def test_the_sample_serves_the_welcome_page() -> None:
    config = read(str(ETC / "preforkd.yaml"))
    assert list(config.pools) == ["web"]
    assert [listen.text for listen in config.pools["web"].listen] == ["127.0.0.1:8080"]
    assert config.pools["web"].app == "preforkd.welcome:application"
    assert config.user is None and config.group is None


def test_every_setting_switched_on_is_its_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 0)
    off, on = read_text(sample(), SYSTEM), read_text(switched_on(sample()), SYSTEM)
    assert dataclasses.replace(on, digest="") == dataclasses.replace(off, digest="")
    bare = read_text('pools: {web: {listen: "127.0.0.1:8080", app: "preforkd.welcome:application"}}', SYSTEM)
    assert dataclasses.replace(on, digest="") == dataclasses.replace(bare, digest="")


def test_every_setting_is_in_the_sample(tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(switched_on(sample()))
    written = set(read_placed(str(tmp_path / "x.yaml")).places)
    missing = {key for key in every_key() if key.replace("NAME", "web") not in written}
    assert missing == {key for key in every_key() if key.startswith("pools.NAME.listen.")}
    prose = " ".join(sample().replace("#", " ").split())
    assert "{address: unix:/run/preforkd/web.sock, mode: 0666, owner: www-data, group: www-data, " in prose
    assert "proxy_protocol: [10.0.0.0/8, unix]" in prose
    assert "tls: {certificate: /etc/ssl/site.pem, key: /etc/ssl/private/site.key}}" in prose


def test_sample_lines_are_short() -> None:
    assert max(map(len, sample().splitlines())) <= 120


def test_the_sample_site(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "preforkd.yaml").write_text(sample())
    (tmp_path / "conf.d" / "site.yaml").write_text((ETC / "conf.d" / "site.yaml.sample").read_text())
    assert list(read(str(tmp_path / "preforkd.yaml")).pools) == ["web", "mysite"]


def test_the_manual_has_every_setting() -> None:
    rows = manual_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == every_key()
    assert all(re.fullmatch(r"\|( [^|]+ \|){5}", row) for row in rows)


def test_docs_are_sentences() -> None:
    for section in all_sections():
        for key, item in declared(section).items():
            doc = item.setting.doc
            assert doc.endswith(".") and doc[0].isupper(), key


def test_examples_are_right(pool_of: Callable[[str], Config]) -> None:
    for key, item in declared(Pool).items():
        if item.setting.example and key not in ("listen", "app"):
            assert pool_of(f"{key}: {item.setting.example}") != pool_of("")


def all_sections() -> list[type[Any]]:
    found: list[type[Any]] = [Config]
    for section in found:
        for item in declared(section).values():
            inner: type[Any] | None = getattr(item.setting.shape, "section", None)
            if inner is not None:
                found.append(inner)
    return found


# -- the schema -----------------------------------------------------------------------------------------------------


def accepts(rule: dict[str, Any], value: Any) -> bool:
    """Whether ``value`` is valid: as much of JSON Schema as the schema uses."""
    types: dict[str, Any] = {
        "object": dict,
        "array": list,
        "string": str,
        "integer": int,
        "number": (int, float),
        "boolean": bool,
        "null": type(None),
    }
    kinds = rule.get("type", list(types))
    tests = [
        any(isinstance(value, types[kind]) for kind in ([kinds] if isinstance(kinds, str) else kinds)),
        "enum" not in rule or value in rule["enum"],
        "const" not in rule or value == rule["const"],
        "anyOf" not in rule or any(accepts(one, value) for one in rule["anyOf"]),
        not (isinstance(value, str) and "pattern" in rule) or re.search(rule["pattern"], value) is not None,
        not isinstance(value, int) or rule.get("minimum", value) <= value <= rule.get("maximum", value),
    ]
    if isinstance(value, list) and "items" in rule:
        tests += [accepts(rule["items"], item) for item in value]
    if isinstance(value, dict) and "object" in kinds:
        known = rule.get("properties", {})
        more = rule.get("additionalProperties", True)
        tests += [key in value for key in rule.get("required", ())]
        tests += [accepts(rule.get("propertyNames", {}), key) for key in value]
        tests += [accepts(known[key], item) for key, item in value.items() if key in known]
        tests += [
            more is not False and (more is True or accepts(more, item))
            for key, item in value.items()
            if key not in known
        ]
    return all(tests)


def as_editors_read(text: str) -> Any:
    """YAML 1.2's core schema, as far as it matters here: numbers, null and booleans; everything else is text."""
    words = {"null": None, "true": True, "false": False, "": None}

    def convert(node: Any) -> Any:
        if isinstance(node, yaml.MappingNode):
            return {key.value: convert(value) for key, value in node.value}
        if isinstance(node, yaml.SequenceNode):
            return [convert(item) for item in node.value]
        if node.style is None or node.style == "":
            if node.value in words:
                return words[node.value]
            if re.fullmatch("[0-9]+", node.value):
                return int(node.value)
        return node.value

    return convert(yaml.compose(text, Loader=yaml.CSafeLoader))


@pytest.mark.parametrize(
    "text", [sample(), switched_on(sample()), FULL, POOL, (ETC / "conf.d" / "site.yaml.sample").read_text(), "pools:\n"]
)
def test_the_schema_accepts_what_is_right(text: str) -> None:
    assert accepts(schema(), as_editors_read(text))


@pytest.mark.parametrize(
    "text",
    [
        "usr: me",
        "umask: rw-r--r--",
        "log: {level: loud}",
        "pid_file: ~/x",
        "pools: {a b: {listen: '1.2.3.4:5', app: a}}",
        "pools: {web: {app: a}}",
        "pools: {web: {listen: '*:80', app: a}}",
        "pools: {web: {listen: '1.2.3.4:5', app: a, timeouts: {start: 30}}}",
        "pools: {web: {listen: '1.2.3.4:5', app: a, timeouts: {start: 30 seconds}}}",
        "pools: {web: {listen: '1.2.3.4:5', app: a, workers: {max: 0}}}",
        "pools: {web: {listen: '1.2.3.4:5', app: a, model: thread}}",
        "pools: {web: {listen: {mode: 0660}, app: a}}",
        "pools: {web: {listen: '1.2.3.4:5', app: 'a.py/x'}}",
    ],
)
def test_the_schema_refuses_what_is_wrong(text: str) -> None:
    assert not accepts(schema(), as_editors_read(text))


def test_the_schema_describes_every_setting() -> None:
    def described(rule: dict[str, Any]) -> Iterator[dict[str, Any]]:
        for inner in rule.get("properties", {}).values():
            yield inner
            yield from described(inner)
        if isinstance(rule.get("additionalProperties"), dict):
            yield from described(rule["additionalProperties"])

    text = json.dumps(schema())
    assert schema()["$schema"] == "https://json-schema.org/draft/2020-12/schema"
    found = list(described(schema()))
    assert len(found) > 40 and all(rule["description"] for rule in found)
    # Defaults are written as people write them: never 18 for 0022.
    assert '"default": "0022"' in text and '"default": "60s"' in text and '"default": "8K"' in text
    for rule in found:
        if rule.get("default") is not None:
            assert accepts({key: value for key, value in rule.items() if key != "default"}, rule["default"])


# -- default paths --------------------------------------------------------------------------------------------------


def test_runtime_files() -> None:
    assert runtime_files(SYSTEM, 0, {}) == ("/run/preforkd/preforkd.pid", "/run/preforkd/control.sock")
    assert runtime_files(SYSTEM, 7, {"XDG_RUNTIME_DIR": "/run/user/7"}) == (
        "/run/user/7/preforkd/preforkd.pid",
        "/run/user/7/preforkd/control.sock",
    )
    assert runtime_files(SYSTEM, 7, {"XDG_RUNTIME_DIR": "relative"})[0] == "/tmp/preforkd-7/preforkd.pid"


def test_two_files_have_two_sets_of_runtime_files() -> None:
    pid, control = runtime_files("/srv/my site.yaml", 0, {})
    assert re.fullmatch("/run/preforkd/my-site-[0-9a-f]{8}.pid", pid)
    assert control == pid.removesuffix("pid") + "sock"
    assert runtime_files("/opt/my site.yaml", 0, {})[0] != pid
    assert len(runtime_files("/" + "x" * 255, 0, {})[1]) < 60


@pytest.mark.parametrize(
    "text",
    ["control: /run/x.sock\nusr: me\n", "control: /run/x.sock\npools: [\n", "pools: {a: b}\ncontrol: /run/x.sock\n"],
)
def test_the_control_socket_is_found_whatever_else_is_wrong(text: str, tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(text)
    assert runtime_of(str(file)) == (runtime_files(str(file))[0], "/run/x.sock")
    for broken in ("control: ~/x", "control: [a]", "\0", "control: "):
        file.write_text(broken)
        assert runtime_of(str(file)) == runtime_files(str(file))
    file.unlink()
    assert runtime_of(str(file)) == runtime_files(str(file))
    file.write_text(POOL)
    config = read(str(file))
    assert (config.pid_file, config.control) == runtime_of(str(file))


def test_default_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system = tmp_path / "system.yaml"
    monkeypatch.setattr("preforkd.config.paths.SYSTEM_FILE", str(system))
    environ = {"HOME": str(tmp_path), "XDG_CONFIG_HOME": ""}
    assert default_file(7, environ) == default_file(0, environ) == welcome_file()
    own = tmp_path / ".config" / "preforkd" / "preforkd.yaml"
    own.parent.mkdir(parents=True)
    own.touch()
    assert default_file(7, environ) == default_file(0, environ) == str(own)
    system.touch()
    assert (default_file(7, environ), default_file(0, environ)) == (str(own), str(system))
    assert default_file(7, {"XDG_CONFIG_HOME": str(tmp_path / ".config")}) == str(own)


def test_welcome_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert Path(welcome_file()).read_text() == sample()
    # Installed: PREFIX/lib/pythonX.Y/site-packages/preforkd/config/paths.py and PREFIX/etc/preforkd/preforkd.yaml.
    package = tmp_path / "lib" / "python3.11" / "site-packages" / "preforkd"
    monkeypatch.setattr("preforkd.config.paths.__file__", str(package / "config" / "paths.py"))
    monkeypatch.setattr("sys.prefix", str(tmp_path / "usr"))
    installed = tmp_path / "etc" / "preforkd" / "preforkd.yaml"
    installed.parent.mkdir(parents=True)
    installed.touch()
    assert welcome_file() == str(installed)


# -- accounts -------------------------------------------------------------------------------------------------------


def test_accounts_that_exist() -> None:
    config = read_text("user: root\ngroup: 0\n" + POOL, SYSTEM)
    assert lookup_accounts(config) == []


def test_accounts_that_do_not_exist(tmp_path: Path) -> None:
    file = tmp_path / "x.yaml"
    file.write_text(
        "user: rooot\ngroup: zzzz\npools:\n  web:\n    user: 4123456789\n"
        "    listen: {address: 'unix:/x', owner: zzzz}\n    app: a\n"
    )
    reading = read_placed(str(file))
    found = [str(mistake).removeprefix(f"{file}:") for mistake in lookup_accounts(reading.config, reading.places)]
    assert found == [
        "1:1: user: there is no user 'rooot' on this machine; did you mean root?",
        "2:1: group: there is no group 'zzzz' on this machine; create it, or name one that exists",
        "5:5: pools.web.user: there is no user with the number 4123456789, so its group is unknown; set group as well",
        "6:34: pools.web.listen[0].owner: there is no user 'zzzz' on this machine; create it, or name one that exists",
    ]
    assert lookup_accounts(reading.config)[0].line == 0
