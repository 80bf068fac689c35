"""Our walk held against an independent reader: pydantic models of the same settings, written by hand.

Both get the same tree of texts; they must refuse the same scalars at the same keys.
"""

from __future__ import annotations

import ipaddress
import json
import re
from collections.abc import Callable
from typing import Annotated, Any, Literal

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from preforkd.config import read_text
from preforkd.errors import ConfigError

UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def pattern(form: str) -> Any:
    return StringConstraints(pattern=f"^(?:{form})$", strict=True)


def check(test: Callable[[str], bool]) -> AfterValidator:
    def validate(text: str) -> str:
        if not test(text):
            raise ValueError("out of bounds")
        return text

    return AfterValidator(validate)


def number(low: int, high: int, *, zero: bool = False) -> Any:
    return Annotated[
        str, pattern("0|[1-9][0-9]*"), check(lambda text: low <= int(text) <= high or (zero and int(text) == 0))
    ]


def duration(low: float = 0.001, high: float = 7 * 86400.0) -> Any:
    def test(text: str) -> bool:
        unit = text.lstrip("0123456789.")
        seconds = float(text.removesuffix(unit)) * UNITS.get(unit, 1.0)
        return seconds == 0 or low <= round(seconds, 3) <= high

    return Annotated[str, pattern(r"0|[0-9]{1,9}(\.[0-9]{1,3})?[smhd]|[0-9]{1,9}ms"), check(test)]


def size(low: int = 1, high: int = 1 << 50) -> Any:
    def test(text: str) -> bool:
        value: int = int(text.rstrip("KMGTkmgt")) << (10 * max(0, " KMGT".find(text[-1].upper())))
        return value == 0 or low <= value <= high

    return Annotated[str, pattern("(0|[1-9][0-9]{0,15})[KMGTkmgt]?"), check(test)]


PERCENT = Annotated[str, pattern(r"0|[0-9]{1,3}(\.[0-9]{1,2})?%"), check(lambda text: float(text.rstrip("%")) <= 100)]
MODE = Annotated[str, pattern("(0o)?[0-7]{1,4}"), check(lambda text: int(text.removeprefix("0o"), 8) <= 0o777)]
ACCOUNT = Annotated[str, pattern(r"[A-Za-z0-9_][A-Za-z0-9_.@-]{0,63}\$?")]
URL_PATH = Annotated[str, pattern(r'/[!"$-~]{0,2000}')]


def names(text: str) -> bool:
    module, _, attribute = text.partition(":")
    parts = module.split(".") + (attribute.split(".") if ":" in text else [])
    return all(part.isidentifier() for part in parts)


APP = Annotated[str, check(names)]


def numeric(text: str) -> bool:
    host, _, port = text.rpartition(":")
    if not re.fullmatch("0|[1-9][0-9]{0,4}", port) or int(port) > 65535:
        return False
    try:
        if re.fullmatch(r"\[.*\]", host):
            return ipaddress.IPv6Address(host[1:-1]).ipv4_mapped is None
        return bool(ipaddress.IPv4Address(host))
    except ValueError:
        return False


ADDRESS = Annotated[str, check(numeric)]


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Log(Model):
    level: Literal["debug", "info", "warning", "error"]
    format: Annotated[
        str, check(lambda text: text in ("common", "combined", "json") or ("%" in text and "\n" not in text))
    ]


class Recycle(Model):
    requests: number(0, 10**9)  # type: ignore[valid-type]
    jitter: PERCENT
    memory: size(1 << 20)  # type: ignore[valid-type]
    age: duration(1.0, 3650 * 86400.0)  # type: ignore[valid-type]


class Timeouts(Model):
    start: duration()  # type: ignore[valid-type]
    request: duration()  # type: ignore[valid-type]


class Limits(Model):
    line: size(128, 1 << 20)  # type: ignore[valid-type]
    fields: number(1, 10_000, zero=True)  # type: ignore[valid-type]
    backlog: number(1, 65_535)  # type: ignore[valid-type]
    core: size()  # type: ignore[valid-type]


class Workers(Model):
    max: number(1, 20_000)  # type: ignore[valid-type]


class Pool(Model):
    listen: ADDRESS
    model: Literal["process"]
    handler: Literal["wsgi"]
    app: APP
    user: ACCOUNT
    umask: MODE
    preload: Literal["auto", "always", "never"]
    warmup: list[URL_PATH]
    health: URL_PATH
    workers: Workers
    recycle: Recycle
    timeouts: Timeouts
    limits: Limits


class Pools(Model):
    web: Pool


class Config(Model):
    user: ACCOUNT
    umask: MODE
    log: Log
    pools: Annotated[Pools, Field()]


GOOD: dict[str, Any] = {
    "user": "me",
    "umask": "0022",
    "log": {"level": "info", "format": "%h"},
    "pools": {
        "web": {
            "listen": "127.0.0.1:80",
            "model": "process",
            "handler": "wsgi",
            "app": "a.b:c",
            "user": "me",
            "umask": "022",
            "preload": "auto",
            "warmup": ["/", "/a"],
            "health": "/",
            "workers": {"max": "30"},
            "recycle": {"requests": "0", "jitter": "10%", "memory": "0", "age": "0"},
            "timeouts": {"start": "60s", "request": "0"},
            "limits": {"line": "8K", "fields": "100", "backlog": "511", "core": "0"},
        }
    },
}


def scalars(tree: Any, path: tuple[str | int, ...] = ()) -> list[tuple[str | int, ...]]:
    """The paths of all scalars."""
    if isinstance(tree, str):
        return [path]
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree)
    return [found for key, value in inner for found in scalars(value, (*path, key))]


PATHS = scalars(GOOD)
WORDS = st.sampled_from(
    ["info", "wsgi", "process", "auto", "json", "%h", "/", "a:b", "a.b", "a:b:c", "1.2.3.4:80", "[::1]:1", "::1:1"]
)
NUMBERS = st.from_regex(r"[+-]?[0-9]{1,7}([._][0-9]{1,4})? ?(ms|[smhdwKMGTkmgt%]|KB)?", fullmatch=True)
LIKELY = st.text("0123456789.:%/smhKMG_-+ ab[]~", max_size=8)
ANY = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=5)
TEXTS = WORDS | NUMBERS | LIKELY | ANY


@st.composite
def trees(draw: st.DrawFn) -> dict[str, Any]:
    """The good tree with other texts in some places, and perhaps a key more."""
    tree = json.loads(json.dumps(GOOD))
    for path in draw(st.lists(st.sampled_from(PATHS), min_size=1, max_size=4)):
        at = tree
        for key in path[:-1]:
            at = at[key]
        at[path[-1]] = draw(TEXTS)
        if isinstance(at, dict) and draw(st.integers(0, 9)) == 0:
            at["xyzzy"] = "1"
    return tree  # type: ignore[no-any-return]


def dotted(path: tuple[str | int, ...]) -> str:
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


@given(trees())
@settings(max_examples=400, deadline=None)
def test_the_same_verdicts(tree: dict[str, Any]) -> None:
    try:
        Config.model_validate(tree)
        theirs = set()
    except ValidationError as error:
        theirs = {dotted(item["loc"]) for item in error.errors()}
    try:
        read_text(json.dumps(tree, indent=1, ensure_ascii=False))
        ours = set()
    except ConfigError as error:
        ours = {mistake.key for mistake in error.mistakes}
    assert ours == theirs
