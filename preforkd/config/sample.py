"""The commented sample file and the manual's table, made of the declarations.

In the sample a line that begins with ``#`` and a letter is a setting switched off, with its default; a line that begins
with ``#`` and a space is prose. So removing the ``#`` of every setting changes nothing, and a test holds that.
"""

from __future__ import annotations

import re
import textwrap
from typing import Any

from .settings import Config, Declared, Group, Listen, ListOf, MapOf, Named, declared, default_text

_HEAD = """\
# The configuration of preforkd. This one serves a welcome page on http://127.0.0.1:8080/.
#
# Every setting stands here with its default, switched off by a # without a space. Check with `preforkd check`, apply
# with `preforkd reload`. Times have a unit (500ms, 30s, 5m, 1h, 1d), sizes may (16K, 1M, 1G), and 0 is no limit.
# Relative paths count from the folder of this file; text with brackets, a %, or a colon and a space needs quotes.
"""

#: What is switched on in the sample: key -> value.
_LIVE = {
    "include": "conf.d/*.yaml",
    "pools.web.listen": "127.0.0.1:8080",
    "pools.web.app": "preforkd.welcome:application",
}

_WIDTH = 120


def sample() -> str:
    """The text of the sample file, which is the welcome configuration too."""
    lines = [*_HEAD.splitlines()]
    for item in declared(Config).values():
        lines += ["", *_setting(item, "", "")]
    return "\n".join(lines) + "\n"


def _setting(item: Declared, path: str, indent: str) -> list[str]:
    """The lines of one setting: its prose, then itself."""
    setting, shape = item.setting, item.setting.shape
    name = f"{path}{item.key}"
    prose = setting.doc
    if setting.default and not setting.default.startswith("/"):
        prose += f" (Default: {setting.default}.)"
    if setting.example and name not in _LIVE:
        prose += f" For example: {setting.example}"
    if setting.needs == "restart":
        prose += " (A change needs a restart.)"
    lines = _prose(prose, indent)
    if isinstance(shape, Group):
        return [*lines, f"{indent}{item.key}:", *_section(shape.section, f"{name}.", indent + "  ")]
    if isinstance(shape, Named):
        return [
            *lines,
            f"{indent}{item.key}:",
            f"{indent}  web:",
            *_section(shape.section, f"{name}.web.", indent + "    "),
        ]
    if isinstance(shape, ListOf) and shape.section is Listen:
        inner = dict(declared(Listen))
        tls = inner.pop("tls")
        extras = ", ".join(f"{key}: {item.setting.example or default_text(item)}" for key, item in inner.items())
        lines += _prose(
            "An address may have more; mode, owner and group are for unix sockets: {" + extras + "}", indent
        )
        lines += _prose(f'Or: {{address: "0.0.0.0:443", tls: {tls.setting.example}}}', indent)
    if name in _LIVE:
        return [*lines, f"{indent}{item.key}: {_LIVE[name]}"]
    return [*lines, f"{indent}#{item.key}: {default_text(item)}"]


def _section(section: type[Any], path: str, indent: str) -> list[str]:
    lines: list[str] = []
    for item in declared(section).values():
        # A blank line before what has lines of its own below it.
        lines += [""] * isinstance(item.setting.shape, Group) + _setting(item, path, indent)
    return lines


def _prose(text: str, indent: str) -> list[str]:
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=f"{indent}# ",
        subsequent_indent=f"{indent}# ",
        break_on_hyphens=False,
        break_long_words=False,
    )


def switched_on(text: str) -> str:
    """``text`` with every setting that is switched off switched on."""
    return re.sub(r"(?m)^( *)#(?=[a-z_]+:)", r"\1", text)


def manual_table() -> str:
    """Every setting as one Markdown table: key, what may be written, default, what a change needs, what it does."""
    lines = [
        "| setting | value | default | a change needs | what it does |",
        "|---|---|---|---|---|",
        *_rows(Config, ""),
    ]
    return "\n".join(lines) + "\n"


def _rows(section: type[Any], path: str) -> list[str]:
    rows: list[str] = []
    for item in declared(section).values():
        setting, shape = item.setting, item.setting.shape
        name = f"{path}{item.key}"
        if isinstance(shape, Group):
            rows += _rows(shape.section, f"{name}.")
            continue
        if isinstance(shape, Named):
            rows += _rows(shape.section, f"{name}.NAME.")
            continue
        default = "required" if setting.required else setting.default or f"`{default_text(item)}`"
        cells = [f"`{name}`", _value(shape), default, setting.needs, setting.doc]
        rows.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
        if isinstance(shape, ListOf) and shape.section is not None:
            rows += _rows(shape.section, f"{name}.")
    return rows


def _value(shape: Any) -> str:
    if isinstance(shape, ListOf):
        return f"{_value(shape.kind)}, or a list of them"
    if isinstance(shape, MapOf):
        return f"names with {shape.kind.noun}"
    if words := getattr(shape, "words", None):
        extra = {"word or path": ", a path", "word or LogFormat": ", LogFormat"}.get(shape.noun, "")
        return ", ".join(f"`{word}`" for word in words) + extra
    return str(shape.noun)
