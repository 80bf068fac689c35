"""From the trees of all files to one `Config`, or to every mistake in them.

The walk goes down the tree and the declarations together. It never stops at a mistake: it notes it and goes on with the
default in its place, so that a file is mended in one round. Nothing of a configuration with mistakes is ever used.
"""

from __future__ import annotations

import re
from collections.abc import Mapping as Readable
from dataclasses import dataclass
from typing import Any

from . import words
from .events import Mapping, Mistakes, Node, Refused, Scalar, Sequence, Tree, joined
from .settings import Config, Declared, Group, Listen, ListOf, Log, MapOf, Named, Pool, Tls, Workers, declared
from .units import Address, Kind, Wrong, shown

#: What a file without any pool is told to write.
EXAMPLE = '{web: {listen: "127.0.0.1:8080", app: "mysite.wsgi:application"}}'


@dataclass(frozen=True, slots=True)
class Place:
    """Where something is written: the file as it was named, line and column from 1."""

    file: str
    line: int
    column: int

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}"


class Section:
    """What one mapping of the file says: the values that could be read, and the nodes they came from."""

    __slots__ = ("nodes", "values")

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.nodes: dict[str, Node] = {}

    def sound(self, *keys: str) -> bool:
        """Whether each of ``keys`` was read without a mistake or is not written at all."""
        return all(key in self.values or key not in self.nodes for key in keys)


class Walk:
    """One reading of a configuration. ``main`` and `included` are called once for each file, `finish` at the end."""

    def __init__(self, mistakes: Mistakes, base: str) -> None:
        self.mistakes = mistakes
        #: The folder that relative paths count from.
        self.base = base
        #: Where each setting is written: dotted key -> place.
        self.places: dict[str, Place] = {}
        self.pools: dict[str, Pool] = {}
        #: Whether every file was read to its end; else nobody says that something is missing.
        self.complete = True
        self._pool_keys: dict[str, Scalar] = {}
        self._addresses: dict[str, tuple[Node, str]] = {}
        self._refused = 0
        self._main = Section()
        #: A pool's name for sentences about keys that stand outside of any pool.
        self._any_pool = "web"

    # -- files ---------------------------------------------------------------------------------------------------

    def main(self, tree: Tree) -> list[tuple[str, Node]]:
        """Walk the main file; return the patterns of ``include`` with their places."""
        self.complete = tree.complete
        if isinstance(tree.root, Mapping):
            # Sentences about keys before `pools:` shall name a pool that exists.
            pools = next((node for key, node in tree.root.pairs if key.text == "pools"), None)
            if isinstance(pools, Mapping) and pools.pairs:
                self._any_pool = pools.pairs[0][0].text[:32]
        if tree.root is not None and not tree.root.empty:
            self._main = self._section(Config, tree.root, "")
        node = self._main.nodes.get("include")
        if not self._main.sound("include"):
            # Pools may be missing for the patterns that could not be read.
            self.complete = False
        patterns: tuple[str, ...] = self._main.values.get("include", ())
        if node is None or not patterns:
            return []
        return list(zip(patterns, node.items if isinstance(node, Sequence) else [node], strict=True))

    def included(self, tree: Tree) -> None:
        """Walk an included file, which holds only ``pools``."""
        self.complete = self.complete and tree.complete
        root = tree.root
        if root is None or root.empty or isinstance(root, Refused):
            return
        if not isinstance(root, Mapping):
            self.mistakes.at(root, "", "an included file holds `pools:` and nothing else")
            return
        for key, node in root.pairs:
            if key.text == "pools":
                self._pools(node)
            elif not self.mistakes.full and key.text in declared(Config):
                self.mistakes.at(
                    key, joined("", key.text), "an included file holds only `pools:`; this belongs into the main file"
                )
            else:
                self._unknown(key, Config, "")

    def finish(self, path: str, files: tuple[str, ...], digest: str, name: str, defaults: tuple[str, str]) -> Config:
        """The configuration, or what stands for it while there are mistakes.

        ``name`` is the main file as mistakes name it, ``defaults`` are pid file and control socket where none is set.
        """
        values = dict(self._main.values)
        values.pop("include", None)
        node = self._main.nodes.get("pools")
        if not self.pools and self.complete and not self._pool_keys and not isinstance(node, Refused):
            what = f"there is no pool, so there is nothing to serve; write for example {EXAMPLE}"
            where = self.places.get("pools", Place(name, 0, 0))
            self.mistakes.add(where.file, where.line, where.column, "pools", what)
        values["pools"] = dict(self.pools)
        values["pid_file"], values["control"] = self.runtime(defaults)
        if "control" not in self._main.nodes:
            try:
                declared(Config)["control"].setting.shape.read(defaults[1], "/")  # type: ignore[union-attr]
            except Wrong as wrong:
                self.mistakes.add(name, 0, 0, "control", f"is not set, and its default cannot be used: {wrong}")
        if self._main.sound("pid_file", "control") and values["pid_file"] == values["control"]:
            node = self._main.nodes.get("control") or self._main.nodes.get("pid_file")
            if node is not None:
                self.mistakes.at(node, "control", "is the same file as pid_file; write two different paths")
        return Config(path=path, files=files, digest=digest, **values)

    def runtime(self, defaults: tuple[str, str]) -> tuple[str, str]:
        """Pid file and control socket: what the main file says, as far as it could be read, else the defaults."""
        values = self._main.values
        return values.get("pid_file", defaults[0]), values.get("control", defaults[1])

    # -- sections ------------------------------------------------------------------------------------------------

    def _section(self, section: type[Any], node: Node, path: str) -> Section:
        """Read a mapping by the declarations of ``section``."""
        result = Section()
        if not isinstance(node, Mapping):
            if not (node.empty or isinstance(node, Refused)):
                self._not_a_section(section, node, path)
            if section is Config:
                self.complete = False
            return result
        known = declared(section)
        strange: set[str] = set()
        for key, value in node.pairs:
            item = known.get(key.text)
            if item is None:
                if key.text not in strange:
                    strange.add(key.text)
                    self._unknown(key, section, path)
                continue
            name = f"{path}.{key.text}" if path else key.text
            again = key.text in result.nodes
            if not again:
                result.nodes[key.text] = value
                self.places[name] = Place(key.file, key.line, key.column)
            mistakes = self._troubles()
            read = self._value(item, value, name)
            if self._troubles() == mistakes and not again:
                result.values[key.text] = read
        return result

    def _troubles(self) -> int:
        """Grows with each mistake, also with one that was noted before the walk came to its place."""
        return self.mistakes.count + self._refused

    def _not_a_section(self, section: type[Any], node: Node, path: str) -> None:
        known = declared(section)
        first, second = list(known)[:2]
        if section is Workers:
            example = (
                f"{{max: {node.text}}}"
                if isinstance(node, Scalar) and node.text.isdecimal()
                else "{start: 5, max: 256}"
            )
        elif section is Config:
            example = f"pools: {EXAMPLE}"
        elif section is Pool:
            example = '{listen: "127.0.0.1:8080", app: "mysite.wsgi:application"}'
        elif section is Log:
            example = "{level: info, errors: stderr}"
        else:
            example = f"{{{first}: …, {second}: …}}"
        what = f"{shown(node.text)} is one value" if isinstance(node, Scalar) else "this is a list"
        self.mistakes.at(
            node, path, f"{what} where a section of settings belongs; write for example {example}{_ran_on(node)}"
        )

    def _unknown(self, key: Scalar, section: type[Any], path: str) -> None:
        if self.mistakes.full:
            self.mistakes.count += 1
            return
        if not key.text:
            self.mistakes.at(key, path, "a key is missing before the colon")
            return
        pool = path.split(".")[1] if path.startswith("pools.") else self._any_pool
        what = words.unknown(key.text, section, path, pool)
        self.mistakes.at(key, joined(path, key.text), what)
        if section is Config and what.endswith("did you mean pools?"):
            self.complete = False

    def _value(self, item: Declared, node: Node, name: str) -> Any:
        """Read one setting; the default where nothing is written or after a mistake."""
        shape = item.setting.shape
        if isinstance(node, Refused):
            self._refused += 1
            return item.default
        if isinstance(shape, Group):
            if item.optional and isinstance(node, Scalar) and node.null:
                return None
            return self._group(shape.section, node, name)
        if isinstance(shape, Named):
            self._pools(node)
            return {}
        if isinstance(shape, ListOf):
            return self._list(item, shape, node, name)
        if isinstance(shape, MapOf):
            return self._map(item, shape, node, name)
        return self._scalar(item, shape, node, name)

    def _group(self, section: type[Any], node: Node, name: str) -> Any:
        read = self._section(section, node, name)
        if section is Workers:
            self._settle_workers(read, name)
        if section is Tls:
            self._check_tls(read, node, name)
        return section(**read.values)

    def _scalar(self, item: Declared, kind: Kind, node: Node, name: str) -> Any:
        if not isinstance(node, Scalar):
            what = "a list" if isinstance(node, Sequence) else "a section"
            self.mistakes.at(node, name, f"is {what} where one {kind.noun} belongs; {self._example(item, kind)}")
            return item.default
        if node.null and item.optional:
            return None
        if node.empty or (node.plain and node.text == "~"):
            what = f"is {node.text}" if node.text == "~" else "is null" if node.text else "has no value"
            leave = "" if item.setting.required else ", or remove the line for the default"
            if item.optional:
                leave = ", or write null for none"
            self.mistakes.at(node, name, f"{what}; {self._example(item, kind)}{leave}")
            return item.default
        return self._read(kind, node, name, item.default)

    def _example(self, item: Declared, kind: Kind) -> str:
        if item.setting.example:
            return f"write for example {item.setting.example}"
        text = item.setting.default if item.setting.default.startswith("/") else kind.write(item.default)
        return f"write for example {text}"

    def _read(self, kind: Kind, node: Scalar, name: str, default: Any) -> Any:
        try:
            value = kind.read(node.text, self.base)
            if node.folded:
                # YAML joins the lines. What the operator wrote in the second one is far likelier a setting.
                raise Wrong(f"{shown(node.text)} has more than one line; put text with line breaks in quotes")
            return value
        except Wrong as wrong:
            if self.mistakes.full:
                self.mistakes.count += 1
            else:
                self.mistakes.at(node, name, f"{wrong}{_ran_on(node)}")
            return default

    def _list(self, item: Declared, shape: ListOf, node: Node, name: str) -> tuple[Any, ...]:
        if node.empty:
            return tuple(item.default)
        if not isinstance(node, Sequence):
            return (self._item(item, shape, node, name),)
        found = []
        for number, entry in enumerate(node.items):
            found.append(self._item(item, shape, entry, f"{name}[{number}]"))
        return tuple(found)

    def _item(self, item: Declared, shape: ListOf, node: Node, name: str) -> Any:
        if isinstance(node, Refused):
            self._refused += 1
            return None
        self.places.setdefault(name, Place(node.file, node.line, node.column))
        if shape.section is Listen:
            return self._listen(shape, node, name)
        if isinstance(node, Scalar) and not node.empty:
            return self._read(shape.kind, node, name, None)
        what = "is empty" if node.empty else f"is {'a list' if isinstance(node, Sequence) else 'a section'}"
        self.mistakes.at(
            node, name, f"{what} where one {shape.kind.noun} belongs; write for example {item.setting.example}"
        )
        return None

    def _map(self, item: Declared, shape: MapOf, node: Node, name: str) -> dict[str, str]:
        found: dict[str, str] = {}
        if node.empty:
            return found
        if not isinstance(node, Mapping):
            self.mistakes.at(
                node,
                name,
                f"is not a section of names with values; write for example {item.setting.example}{_ran_on(node)}",
            )
            return found
        for key, value in node.pairs:
            path = joined(name, key.text)
            if re.fullmatch(shape.names, key.text) is None or len(key.text) > 255:
                self.mistakes.at(
                    key,
                    name,
                    f"{shown(key.text)} is not a name; letters, digits and _ make one, not beginning with a digit",
                )
            elif isinstance(value, Scalar) and not value.empty:
                self.places.setdefault(path, Place(key.file, key.line, key.column))
                found.setdefault(key.text, self._read(shape.kind, value, path, ""))
            elif value.empty:
                self.mistakes.at(value, path, 'has no value; write "" for an empty text')
            elif not isinstance(value, Refused):
                what = "a list" if isinstance(value, Sequence) else "a section"
                self.mistakes.at(value, path, f"is {what} where one text belongs; put it in quotes")
        return found

    # -- addresses -----------------------------------------------------------------------------------------------

    def _listen(self, shape: ListOf, node: Node, name: str) -> Listen | None:
        if isinstance(node, Mapping):
            return self._listen_section(node, name)
        if not isinstance(node, Scalar) or node.empty:
            what = "is empty" if node.empty else "is a list within a list"
            self.mistakes.at(node, name, f"{what} where one address belongs; write for example 127.0.0.1:8080")
            return None
        text = self._read(shape.kind, node, name, None)
        if text is None:
            return None
        self._taken(text, node, name)
        return Listen.of(text)

    def _listen_section(self, node: Mapping, name: str) -> Listen | None:
        mistakes = self.mistakes.count
        # `127.0.0.1: 8080` and the like: a space after the colon makes a mapping of an address.
        if (
            len(node.pairs) == 1
            and isinstance(value := node.pairs[0][1], Scalar)
            and node.pairs[0][0].text not in declared(Listen)
        ):
            whole = f"{node.pairs[0][0].text}:{value.text}"
            try:
                Address().read(whole, self.base)
            except Wrong:
                pass
            else:
                self.mistakes.at(node, name, f"is a section where one address belongs; write {whole} without a space")
                return None
        read = self._section(Listen, node, name)
        if "address" not in read.nodes:
            if self.complete:
                self.mistakes.at(
                    node, name, 'has no address; write for example {address: "unix:/run/preforkd/web.sock", mode: 0660}'
                )
            return None
        text = read.values.pop("address", None)
        if text is None:
            return None
        self._taken(text, read.nodes["address"], name)
        if not text.startswith("unix:"):
            for key in ("mode", "owner", "group"):
                if key in read.nodes:
                    place = self.places[f"{name}.{key}"]
                    self.mistakes.add(
                        place.file,
                        place.line,
                        place.column,
                        f"{name}.{key}",
                        f"{text} is not a unix socket, and only these have one; remove it",
                    )
        self._check_proxies(text, read, name)
        return Listen.of(text, **read.values) if self.mistakes.count == mistakes else None

    def _check_proxies(self, text: str, read: Section, name: str) -> None:
        """Whether anybody can connect where each connection must come from a listed proxy."""
        proxies = read.values.get("proxy_protocol", ())
        if not proxies or text.startswith("systemd:"):
            return
        if text.startswith("unix:"):
            hint = "" if "unix" in proxies else "to a unix socket nobody comes from an address; write unix"
        else:
            hint = "" if set(proxies) != {"unix"} else "nobody comes by a unix socket; write the proxy's address"
        if hint:
            self.mistakes.at(
                read.nodes["proxy_protocol"], f"{name}.proxy_protocol", f"nobody could connect to {text}: {hint}"
            )

    def _taken(self, text: str, node: Node, name: str) -> None:
        """Note an address that another listener of these files has already, itself or by listening everywhere."""
        for other in _rivals(text, self._addresses):
            first, owner = self._addresses[other]
            where = (
                f"{owner} in line {first.line}" if first.file == node.file else f"{owner} in {first.file}:{first.line}"
            )
            what = "is here twice; the first is" if other == text else f"cannot listen beside {other}, which is"
            self.mistakes.at(node, name, f"{text} {what} {where}")
            return
        self._addresses[text] = (node, name)

    # -- pools ---------------------------------------------------------------------------------------------------

    def _pools(self, node: Node) -> None:
        if node.empty or isinstance(node, Refused):
            self.places.setdefault("pools", Place(node.file, node.line, node.column))
            return
        if not isinstance(node, Mapping):
            what = "this is a list" if isinstance(node, Sequence) else "this is one value"
            self.mistakes.at(
                node, "pools", f"{what} where pools with their names belong; write for example {EXAMPLE}{_ran_on(node)}"
            )
            self.complete = False
            return
        for key, value in node.pairs:
            if self.mistakes.full and len(self._pool_keys) > 1000:
                self.mistakes.count += 1
                continue
            self._pool(key, value)

    def _pool(self, key: Scalar, node: Node) -> None:
        name = joined("pools", key.text)
        first = self._pool_keys.setdefault(key.text, key)
        # Twice in one file has been said by `events`, as of every key.
        if first is not key and first.file != key.file:
            self.mistakes.at(
                key, name, f"a pool of this name is already in {first.file}:{first.line}:{first.column}; rename one"
            )
        if re.fullmatch(declared(Config)["pools"].setting.shape.names, key.text) is None:  # type: ignore[union-attr]
            what = (
                "is longer than 32 characters"
                if re.fullmatch(r"[A-Za-z0-9_-]{33,}", key.text)
                else "is not a pool's name"
            )
            if key.text in declared(Pool) or words.folded(key.text[:60]) in words.foreign_words():
                what += f"; a pool's name is missing above it: {{web: {{{key.text[:60]}: …}}}}"
            self.mistakes.at(key, "pools", f"{shown(key.text)} {what}; use letters, digits, - and _, at most 32")
        elif key.text in declared(Pool) and not isinstance(node, Mapping):
            self.mistakes.at(
                key,
                name,
                f"`{key.text}` is a setting of a pool, and the pool's name is missing above it; write pools: {EXAMPLE}",
            )
            return
        if first is key:
            self.places[name] = Place(key.file, key.line, key.column)
        read = self._section(Pool, node, name)
        if isinstance(node, (Mapping, Scalar)) and (isinstance(node, Mapping) or node.empty):
            self._check_pool(read, key, name)
        if first is key:
            self.pools[key.text] = Pool(name=key.text, **read.values)

    def _check_pool(self, read: Section, key: Scalar, name: str) -> None:
        """What several settings of a pool must agree on."""
        if not self.complete:
            return
        if not read.values.get("listen") and read.sound("listen") and not isinstance(read.nodes.get("listen"), Refused):
            self._missing(read, "listen", key, name, 'listen: "127.0.0.1:8080"')
        if read.values.get("handler", "wsgi") == "wsgi" and "app" not in read.nodes:
            self._missing(read, "app", key, name, "app: mysite.wsgi:application")
        fields = read.values.get("forwarded", ())
        if "forwarded" in fields and len(fields) > 1:
            self.mistakes.at(
                read.nodes["forwarded"],
                f"{name}.forwarded",
                "the field forwarded tells what the x-forwarded fields tell, and a proxy sets only one of the two "
                "kinds; write those that yours sets",
            )

    def _check_tls(self, read: Section, node: Node, name: str) -> None:
        """What the settings of TLS must agree on; what the files hold is `preforkd.tls`'s to say."""
        if not (isinstance(node, Mapping) or node.empty):
            return
        values = read.values
        for key, example in (("certificate", "/etc/ssl/site.pem"), ("versions", "[1.2, 1.3]")):
            if read.sound(key) and not values.get(key, getattr(Tls(), key)):
                where = read.nodes.get(key, node)
                self.mistakes.at(where, f"{name}.{key}", f"is missing; write for example {example}")
        if read.sound("certificate", "key") and (keys := values.get("key", ())):
            count = len(values.get("certificate", ()))
            if len(keys) != count:
                what = f"there are {len(keys)} keys for {count} certificates; write one for each, in the same order,"
                what += " or none where each is in its certificate's file"
                self.mistakes.at(read.nodes["key"], f"{name}.key", what)
        if "client" in read.nodes and read.sound("client_ca") and values.get("client_ca") is None:
            what = "says nothing without client_ca; name the file of the authorities there"
            self.mistakes.at(read.nodes["client"], f"{name}.client", what)

    def _missing(self, read: Section, setting: str, key: Scalar, name: str, example: str) -> None:
        node = read.nodes.get(setting, key)
        self.mistakes.at(node, f"{name}.{setting}", f"is missing; write for example {example}")

    def _settle_workers(self, read: Section, name: str) -> None:
        """Hold the four numbers against each other; the defaults give way to what is written."""
        if not read.sound("start", "min_spare", "max_spare", "max"):
            return
        values, default = read.values, Workers()
        most = values.get("max", default.max)
        contradiction = False
        for small, large in (("start", "max"), ("min_spare", "max"), ("min_spare", "max_spare")):
            if small in values and (large in values or large == "max") and values[small] > values.get(large, most):
                written = f"{large} ({values.get(large, most)}{'' if large in values else ', the default'})"
                self.mistakes.at(
                    read.nodes[small],
                    f"{name}.{small}",
                    f"{values[small]} is more than {written}; raise {large} or lower {small}",
                )
                contradiction = True
        if contradiction:
            return
        values.setdefault("start", min(default.start, most))
        values.setdefault("min_spare", min(default.min_spare, most, values.get("max_spare", most)))
        values.setdefault("max_spare", max(default.max_spare, values["min_spare"]))


def _ran_on(node: Node) -> str:
    """A hint for plain text that went on in the next line, mostly for want of a colon or of indentation."""
    return (
        " (it goes on in the next line; is a colon missing there?)" if isinstance(node, Scalar) and node.folded else ""
    )


def _rivals(text: str, taken: Readable[str, object]) -> list[str]:
    """The addresses of ``taken`` that cannot be listened on beside ``text`` (bind(2): EADDRINUSE)."""
    if text in taken:
        return [text]
    host, _, port = text.rpartition(":")
    if text.startswith(("unix:", "systemd:")) or port == "0":
        return []
    everywhere = f"[::]:{port}" if host.startswith("[") else f"0.0.0.0:{port}"
    if everywhere in taken:
        return [everywhere]
    if text != everywhere:
        return []
    # The same port and the same kind of host: a bracket begins IPv6. Paths and names may end in anything.
    numeric = [other for other in taken if not other.startswith(("unix:", "systemd:")) and other.endswith(f":{port}")]
    return [other for other in numeric if other.startswith("[") == host.startswith("[")]
