"""Who the client is, by word of the proxies that are trusted: ``X-Forwarded-*``, or ``Forwarded`` (RFC 7239).

Each proxy on the way appends the address that it was spoken to from, so the list is read from the right: the nearest
address is the connection's own, and as long as the one at hand belongs to a trusted proxy, that proxy's word is taken
for the next. The first address that is not trusted is the client. What stands left of it came from the client, who may
write there what it likes; it is not even looked at.

    connection from 10.0.0.2 | X-Forwarded-For: 192.0.2.1, 198.51.100.7, 10.0.0.1
                                                 anybody's   the client    trusted    (trusted: 10.0.0.0/8)

Which fields are believed is the operator's choice, because a proxy that sets one passes the others on as the client
wrote them: with ``X-Forwarded-For`` believed and set by the proxy, a believed ``X-Forwarded-Host`` that the proxy does
not set is the client's. Two families are never believed at once: where both are there and differ, nothing tells which
one the proxy wrote.

What a trusted proxy says and what cannot be read is refused, not skipped: to serve such a request as the proxy's own
would give a stranger the rights of an inner address. ``unknown`` and hidden names (RFC 7239, 6.2 and 6.3) are no
mistakes; there the walk ends, and the client is the last address that is known.

Pure: a request's fields and addresses in, addresses out. Used by the models, for every request of a pool with
``trusted_proxies``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from preforkd.http.events import Request
from preforkd.http.exchange import Peer
from preforkd.http.parser import is_authority
from preforkd.networks import Networks, canonical

#: The fields that may be believed, as the configuration writes them. The last one tells all that the others do.
FOR: Final = "x-forwarded-for"
PROTO: Final = "x-forwarded-proto"
HOST: Final = "x-forwarded-host"
PORT: Final = "x-forwarded-port"
FORWARDED: Final = "forwarded"

#: Schemes that proxies tell, and whether they are over TLS. A WebSocket's handshake is an HTTP request.
_SCHEMES = {"https": True, "wss": True, "http": False, "ws": False}
_DEFAULT_PORTS = {True: 443, False: 80}

# An address in X-Forwarded-For, perhaps with a port: some gateways write it so.
_NODE4 = re.compile(r"([0-9.]{7,15})(?::([0-9]{1,5}))?")
_NODE6 = re.compile(r"\[([0-9A-Fa-f:.]{2,45})\](?::([0-9]{1,5}))?")
_BARE6 = re.compile(r"[0-9A-Fa-f:.]{2,45}")
# RFC 7239, 6: node, obfnode, obfport.
_HIDDEN = re.compile(r"(?:unknown|_[A-Za-z0-9._-]+)(?::(?:[0-9]{1,5}|_[A-Za-z0-9._-]+))?", re.IGNORECASE)
_HIDDEN_PORT = re.compile(r"(.*):_[A-Za-z0-9._-]+")
# RFC 7239, 4: forwarded-pair = token "=" ( token / quoted-string ). RFC 9110, 5.6.2 and 5.6.4; obs-text is not taken.
_PAIR = re.compile(
    r"([!#$%&'*+\-.^_`|~0-9A-Za-z]+)=(?:([!#$%&'*+\-.^_`|~0-9A-Za-z]+)"
    r'|"((?:[\t !#-\[\]-~]|\\[\t -~])*)")'
)
_BLANK = re.compile(r"[ \t]*")

#: Entries that are remembered, so that a client that comes again costs no parsing. Anybody may come with new ones, so a
#: full memory starts anew.
_REMEMBERED = 4096


class Malformed(ValueError):
    """What a trusted proxy said cannot be read; the text is a sentence for the client and the log."""


@dataclass(frozen=True, slots=True)
class Node:
    """One address of the chain; ``address`` is None where the proxy does not know or does not tell it."""

    address: str | None
    port: int = 0


@dataclass(frozen=True, slots=True)
class Hop:
    """What one proxy said of who spoke to it: empty or None where it said nothing."""

    node: Node | None = None
    secure: bool | None = None
    host: str = ""
    port: int = 0


class Forwarding:
    """Reads the believed fields of requests that come through trusted proxies. One for each worker."""

    __slots__ = ("_believed", "_nodes", "_rfc7239", "_trusted")

    def __init__(self, trusted: Iterable[str], fields: Iterable[str]) -> None:
        """``trusted``: networks in canonical form (`preforkd.networks`); ``fields``: names in lower case."""
        self._trusted = Networks(trusted)
        self._believed = {name.encode(): name for name in fields}
        self._rfc7239 = FORWARDED in self._believed.values()
        self._nodes: dict[str, Node | None] = {}

    def apply(self, request: Request, peer: Peer) -> tuple[Peer, Request]:
        """The peer that ``request`` really comes from, and the request, with another host where a proxy tells one.

        Returns what it was given where the peer is not trusted, or tells nothing.

        Raises:
            Malformed: The field of a trusted peer cannot be read.
        """
        walked = self._walk(request.headers, peer)
        return (peer, request) if walked is None else _conclude(request, peer, *walked)

    def client_of(self, headers: Sequence[tuple[bytes, bytes]], peer: Peer) -> Peer:
        """``peer`` by the address of the client, for the log of a request that is refused for something else; as it is
        where the fields of the request cannot be read."""
        try:
            walked = self._walk(headers, peer)
        except Malformed:
            return peer
        if walked is None:
            return peer
        node = walked[0]
        return replace(peer, client=node.address or peer.client, client_port=node.port)

    def _walk(self, headers: Sequence[tuple[bytes, bytes]], peer: Peer) -> tuple[Node, Hop] | None:
        """The client's address, and what the proxy said that it spoke to; None where nobody is asked, or tells."""
        if peer.client not in self._trusted:
            return None
        told = self._collect(headers)
        if not told:
            return None
        return self._walk_elements(peer, told[FORWARDED]) if self._rfc7239 else self._walk_lists(peer, told)

    def _collect(self, headers: Sequence[tuple[bytes, bytes]]) -> dict[str, list[str]]:
        """The believed fields that are there: name -> the values of its lines, in order (RFC 9110, 5.3)."""
        told: dict[str, list[str]] = {}
        for name, value in headers:
            # Every name of a believed field is longer than 8 bytes; few others are.
            if len(name) > 8 and (found := self._believed.get(name.lower())) is not None:
                told.setdefault(found, []).append(value.decode("latin-1"))
        return told

    # -- X-Forwarded-* ------------------------------------------------------------------------------------------------

    def _walk_lists(self, peer: Peer, told: dict[str, list[str]]) -> tuple[Node, Hop]:
        client = Node(peer.client, peer.client_port)
        passed = 0
        for entry in reversed(_members(told.get(FOR, ()))):
            node = self._node(entry)
            if node is None:
                raise Malformed(f"an address in X-Forwarded-For is malformed: {_shown(entry)}")
            if node.address is None:
                break
            client = node
            if node.address not in self._trusted:
                break
            passed += 1

        def at_client(name: str) -> str:
            """The entry of the proxy that the client spoke to: as many from the right as trusted addresses were
            passed. Mostly there is but one: nearly all proxies set these fields instead of appending to them."""
            members = _members(told.get(name, ()))
            return members[max(0, len(members) - 1 - passed)] if members else ""

        return client, Hop(
            secure=_scheme(at_client(PROTO), "X-Forwarded-Proto"),
            host=_host(at_client(HOST), "X-Forwarded-Host"),
            port=_port(at_client(PORT)),
        )

    def _node(self, text: str) -> Node | None:
        try:
            return self._nodes[text]
        except KeyError:
            if len(self._nodes) >= _REMEMBERED:
                self._nodes.clear()
            node = self._nodes[text] = read_node(text)
            return node

    # -- Forwarded ----------------------------------------------------------------------------------------------------

    def _walk_elements(self, peer: Peer, lines: list[str]) -> tuple[Node, Hop]:
        # Each line by itself: a quotation mark that a client leaves open does not swallow the proxy's own line.
        hops = [hop for line in lines for hop in read_forwarded(line)]
        client = Node(peer.client, peer.client_port)
        at_client = Hop()
        for hop in reversed(hops):
            at_client = hop
            if hop.node is None or hop.node.address is None:
                break
            client = hop.node
            if hop.node.address not in self._trusted:
                break
        return client, at_client


def _conclude(request: Request, peer: Peer, client: Node, hop: Hop) -> tuple[Peer, Request]:
    assert client.address is not None
    if hop.host:
        # Another object: the parser may give this one again, for the same bytes from somebody who is not trusted.
        request = replace(request, host=hop.host.encode("ascii"), prepared=None)
    secure = peer.secure if hop.secure is None else hop.secure
    port = peer.server_port
    if hop.port:
        port = hop.port
    elif hop.host or hop.secure is not None:
        # The port of our own listener is none that the client has ever seen.
        told = request.host.decode("ascii").rpartition("]")[2].rpartition(":")[2] if b":" in request.host else ""
        port = int(told) if told.isdecimal() and 0 < int(told) <= 65535 else _DEFAULT_PORTS[secure]
    return replace(peer, client=client.address, client_port=client.port, server_port=port, secure=secure), request


# -- what single fields say -------------------------------------------------------------------------------------------


def _members(lines: Iterable[str]) -> list[str]:
    """The members of a list that may span several lines; empty ones are passed over (RFC 9110, 5.6.1.2)."""
    return [member for line in lines for part in line.split(",") if (member := part.strip(" \t"))]


def read_node(text: str) -> Node | None:
    """An address with or without port, or one of the words for a hidden one; None if it is neither."""
    match = _NODE4.fullmatch(text) or _NODE6.fullmatch(text)
    if match is not None:
        address, port = canonical(match[1]), int(match[2] or 0)
        if address is None or port > 65535 or (text[0] == "[" and ":" not in match[1]):
            return None
        return Node(address, port)
    if _BARE6.fullmatch(text) and ":" in text:
        address = canonical(text)
        return None if address is None else Node(address)
    return Node(None) if _HIDDEN.fullmatch(text) else None


def read_forwarded(line: str) -> list[Hop]:
    """The elements of one line of the field ``Forwarded``, by the grammar of RFC 7239, 4; empty ones are left out.

    Blanks around a semicolon are taken, although the grammar has none there: they can mean nothing else.

    Raises:
        Malformed: It does not follow the grammar, or tells what cannot be.
    """
    hops: list[Hop] = []
    pairs: dict[str, str] = {}
    at = _skip(line, 0)
    while at < len(line):
        if line[at] not in ";,":
            match = _PAIR.match(line, at)
            if match is None:
                raise Malformed(f"the field Forwarded is malformed: {_shown(line[at:])}")
            name = match[1].lower()
            if name in pairs:
                raise Malformed(f"the field Forwarded tells {_shown(name)} twice of one hop")
            pairs[name] = match[2] if match[2] is not None else re.sub(r"\\(.)", r"\1", match[3])
            at = _skip(line, match.end())
            if at == len(line):
                break
            if line[at] not in ";,":
                raise Malformed(f"the field Forwarded is malformed: {_shown(line[at:])}")
        if line[at] == ",":
            if pairs:
                hops.append(_hop(pairs))
            pairs = {}
        at = _skip(line, at + 1)
    if pairs:
        hops.append(_hop(pairs))
    return hops


def _skip(line: str, at: int) -> int:
    blank = _BLANK.match(line, at)
    assert blank is not None
    return blank.end()


def _hop(pairs: dict[str, str]) -> Hop:
    node: Node | None = None
    if (told := pairs.get("for")) is not None:
        hidden_port = _HIDDEN_PORT.fullmatch(told)
        bare = hidden_port[1] if hidden_port is not None else told
        # RFC 7239, 6: an IPv6 address is always in brackets.
        node = None if _BARE6.fullmatch(bare) and not _NODE4.fullmatch(bare) else read_node(bare)
        if node is None:
            raise Malformed(f"an address in the field Forwarded is malformed: {_shown(told)}")
    host = _host(pairs["host"], "the field Forwarded") if "host" in pairs else ""
    return Hop(node, _scheme(pairs["proto"], "the field Forwarded") if "proto" in pairs else None, host)


def _scheme(text: str, field: str) -> bool | None:
    if not text:
        return None
    secure = _SCHEMES.get(text.lower())
    if secure is None:
        raise Malformed(f"the scheme in {field} is neither http nor https: {_shown(text)}")
    return secure


def _host(text: str, field: str) -> str:
    if not text.isascii() or not is_authority(text.encode("ascii")):
        raise Malformed(f"the host in {field} is malformed: {_shown(text)}")
    return text


def _port(text: str) -> int:
    if not text:
        return 0
    if not re.fullmatch(r"[1-9][0-9]{0,4}", text) or int(text) > 65535:
        raise Malformed(f"X-Forwarded-Port is not a port: {_shown(text)}")
    return int(text)


def _shown(text: str) -> str:
    """``text`` for a sentence: cut, and in printable ASCII."""
    return ascii(text if len(text) <= 60 else text[:60] + "...")
