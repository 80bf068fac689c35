"""What differs between two configurations, and what applies it: a reload, or only a restart."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from .settings import Config, Declared, Group, Listen, ListOf, MapOf, Named, Needs, declared


@dataclass(frozen=True, slots=True)
class Change:
    """One setting that differs.

    ``old`` and ``new`` are texts as they would be written in the file, "" where there is none (a pool that comes or
    goes). The values of environment variables are not told: they often are passwords, and this goes to logs.
    """

    key: str
    old: str
    new: str
    needs: Needs

    def __str__(self) -> str:
        if not self.old:
            what = f"new: {self.new}"
        elif not self.new:
            what = f"removed: {self.old}"
        else:
            what = f"{self.old} -> {self.new}"
        return f"{self.key}: {what} ({self.needs})"


def changes(old: Config, new: Config) -> list[Change]:
    """What differs, in the order of the file; where something stands in the file is in `Reading.places` by its key."""
    return list(_section(Config, old, new, ""))


def needs_restart(old: Config, new: Config) -> list[str]:
    """A sentence for each change that a running master cannot apply; empty if a reload applies all."""
    return [
        f"{change.key}: the running master keeps {change.old}; {change.new} takes effect when preforkd is restarted"
        for change in changes(old, new)
        if change.needs == "restart"
    ]


def _section(section: type[Any], old: Any, new: Any, path: str) -> Iterator[Change]:
    for key, item in declared(section).items():
        if not hasattr(old, key):
            continue  # a setting of the file alone, such as include
        before, after = getattr(old, key), getattr(new, key)
        if before == after:
            continue
        name = f"{path}.{key}" if path else key
        shape = item.setting.shape
        if isinstance(shape, Group):
            yield from _section(shape.section, before, after, name)
        elif isinstance(shape, Named):
            for pool in before | after:
                if pool in before and pool in after:
                    yield from _section(shape.section, before[pool], after[pool], f"{name}.{pool}")
                else:
                    summary = _summary(before.get(pool) or after[pool])
                    texts = (summary, "") if pool in before else ("", summary)
                    yield Change(f"{name}.{pool}", texts[0], texts[1], item.setting.needs)
        elif isinstance(shape, MapOf):
            for variable in before | after:
                if before.get(variable) != after.get(variable):
                    was = "set" if variable in before else ""
                    now = "" if variable not in after else "set otherwise" if was else "set"
                    yield Change(f"{name}.{variable}", was, now, item.setting.needs)
        else:
            yield Change(name, _text(item, before), _text(item, after), item.setting.needs)


def _summary(pool: Any) -> str:
    return f"{pool.app} on {', '.join(listen.text for listen in pool.listen)}"


def _text(item: Declared, value: Any) -> str:
    shape = item.setting.shape
    if value is None:
        return "null"
    if isinstance(shape, ListOf):
        return (
            "["
            + ", ".join(_listen(entry) if isinstance(entry, Listen) else shape.kind.write(entry) for entry in value)
            + "]"
        )
    if isinstance(shape, Group):
        inner = declared(shape.section).items()
        written = [(key, item, getattr(value, key)) for key, item in inner if getattr(value, key) != item.default]
        return "{" + ", ".join(f"{key}: {_text(item, value)}" for key, item, value in written) + "}"
    assert not isinstance(shape, (Named, MapOf))
    return shape.write(value)


def _listen(listen: Listen) -> str:
    extras = [
        f"{key}: {_text(item, getattr(listen, key))}"
        for key, item in declared(Listen).items()
        if key != "address" and getattr(listen, key) != item.default
    ]
    return f"{{address: {listen.text}, {', '.join(extras)}}}" if extras else listen.text
