"""The JSON Schema of the file, for editors (yaml-language-server and its friends): ``preforkd schema``.

An editor has read the YAML before it asks the schema, and its YAML may be another's: 0660 is the number 432 to one and
660 to the next, ``no`` a boolean or a word. So the schema is honest about texts (durations, sizes and modes are text
with a pattern) and generous where a reader may have made something else of them. What decides is ``preforkd check``.
"""

from __future__ import annotations

from typing import Any

from .settings import Config, Declared, Group, ListOf, MapOf, Named, declared, default_text
from .units import JsonSchema


def schema() -> JsonSchema:
    """The whole file as JSON Schema, draft 2020-12."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "preforkd.yaml",
        "description": "The configuration of preforkd. An included file holds only pools.",
        **_nullable(_section(Config)),
    }


def _section(section: type[Any]) -> JsonSchema:
    """A mapping with the settings of a dataclass."""
    settings = declared(section)
    result: JsonSchema = {
        "type": "object",
        "additionalProperties": False,
        "properties": {key: _setting(item) for key, item in settings.items()},
    }
    # Pools may stand in included files.
    if required := [key for key, item in settings.items() if item.setting.required and section is not Config]:
        result["required"] = required
    return result


def _setting(item: Declared) -> JsonSchema:
    setting, shape = item.setting, item.setting.shape
    result: JsonSchema = {
        "description": setting.doc + (" A change needs a restart." if setting.needs == "restart" else "")
    }
    if isinstance(shape, Group):
        return result | _nullable(_section(shape.section))
    if isinstance(shape, Named):
        pools = {
            "type": "object",
            "propertyNames": {"pattern": f"^{shape.names}$"},
            "additionalProperties": _section(shape.section),
        }
        return result | _nullable(pools)
    if isinstance(shape, ListOf):
        one = shape.kind.schema()
        if shape.section is not None:
            one = {"anyOf": [one, _section(shape.section)]}
        many = {"type": "array", "items": one}
        return result | {"anyOf": [one, many] if setting.required else [one, many, {"type": "null"}]}
    if isinstance(shape, MapOf):
        names = {"pattern": f"^{shape.names}$"}
        return result | _nullable(
            {"type": "object", "propertyNames": names, "additionalProperties": shape.kind.schema()}
        )
    kind = shape.schema()
    if item.optional:
        kind = {"anyOf": [*kind.get("anyOf", [kind]), {"type": "null"}]}
    result |= kind
    if setting.example:
        result["examples"] = [setting.example]
    if not setting.required:
        result["default"] = _default(item, default_text(item))
    return result


def _default(item: Declared, text: str) -> Any:
    """The default as an editor may insert it: numbers where the schema says number, else the text."""
    if item.optional:
        return None
    return item.default if item.setting.shape.schema().get("type") == "integer" else text  # type: ignore[union-attr]


def _nullable(kind: JsonSchema) -> JsonSchema:
    """``kind``, or nothing written: an empty section means its defaults."""
    return kind | {"type": [kind["type"], "null"]}
