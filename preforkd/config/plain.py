"""A configuration as plain data and back: for the pipe from the checking child to the master, and for ``--json``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from .settings import Config, Group, Listen, Pool, declared


def _groups(section: type[Any]) -> Mapping[str, type[Any]]:
    """The sections within a section, by key: ``body`` is a section in a pool, and a number in others."""
    shapes = {key: item.setting.shape for key, item in declared(section).items()}
    return {key: shape.section for key, shape in shapes.items() if isinstance(shape, Group)}


def to_plain(config: Config) -> dict[str, Any]:
    """``config`` as dicts, lists, text and numbers: `json.dumps` takes it as it is."""
    plain = _flat(config)
    plain["pools"] = {name: _flat(pool) for name, pool in config.pools.items()}
    return plain


def _flat(value: Any) -> dict[str, Any]:
    result: dict[str, Any] = {}
    groups = _groups(type(value))
    for item in fields(value):
        inner = getattr(value, item.name)
        if item.name in groups:
            inner = _flat(inner) if inner is not None else None
        elif item.name == "listen":
            inner = [_flat(listen) for listen in inner]
        elif isinstance(inner, tuple):
            inner = list(inner)
        elif isinstance(inner, Mapping):
            inner = dict(inner)
        result[item.name] = inner
    return result


def from_plain(plain: Mapping[str, Any]) -> Config:
    """The configuration that `to_plain` took apart.

    Strict about the shape (`ValueError` names the first key that is missing or too many: the two ends are of different
    versions), trusting about the values, which the checking child has read.
    """
    values = _values(Config, plain, "configuration")
    pools = _mapping(values["pools"], "pools")
    values["pools"] = {name: _pool(pool, f"pool {name}") for name, pool in pools.items()}
    return Config(**values)


def _pool(plain: Any, what: str) -> Pool:
    values = _values(Pool, plain, what)
    values["listen"] = tuple(Listen(**_values(Listen, item, f"{what}: listen")) for item in values["listen"])
    return Pool(**values)


def _values(section: type[Any], plain: Any, what: str) -> dict[str, Any]:
    plain = _mapping(plain, what)
    names = {item.name for item in fields(section)}
    if names != plain.keys():
        raise ValueError(f"{what}: not the plain form of a configuration: {', '.join(sorted(names ^ plain.keys()))}")
    values: dict[str, Any] = {}
    groups = _groups(section)
    for name, inner in plain.items():
        if name in groups and not (inner is None and declared(section)[name].optional):
            inner = groups[name](**_values(groups[name], inner, f"{what}: {name}"))
        elif isinstance(inner, list):
            inner = tuple(inner)
        elif isinstance(inner, dict):
            inner = dict(inner)
        values[name] = inner
    return values


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{what}: not the plain form of a configuration: a mapping is expected")
    return value
