"""The configuration: one YAML file and what it includes, read into values that nobody changes.

    path ── source: bytes ── events: tree of text with places ── walk: declarations ── Config

The declarations (`settings`) are the one place where a setting is described; the check, the schema, the sample file,
the manual's table and the list of changes are made of them.
"""

from __future__ import annotations

from .accounts import lookup_accounts
from .changes import Change, changes, needs_restart
from .paths import default_file, runtime_files, runtime_folder, welcome_file
from .plain import from_plain, to_plain
from .read import Reading, read, read_placed, read_text, runtime_of
from .sample import manual_table, sample
from .schema import schema
from .settings import Answer, Body, Config, Limits, Listen, Log, Pool, Recycle, Timeouts, Tls, Workers
from .walk import Place

__all__ = [
    "Answer",
    "Body",
    "Change",
    "Config",
    "Limits",
    "Listen",
    "Log",
    "Place",
    "Pool",
    "Reading",
    "Recycle",
    "Timeouts",
    "Tls",
    "Workers",
    "changes",
    "default_file",
    "from_plain",
    "lookup_accounts",
    "manual_table",
    "needs_restart",
    "read",
    "read_placed",
    "read_text",
    "runtime_files",
    "runtime_folder",
    "runtime_of",
    "sample",
    "schema",
    "to_plain",
    "welcome_file",
]
