"""The PROXY protocol, versions 1 and 2: what a proxy says of a connection before the connection's own first byte.

HAProxy's specification (doc/proxy-protocol.txt, "the specification" below) has two headers, a line of text and a binary
block; both name the client and the address that it had connected to. Whoever may send one may claim to be anybody. So
it is for the caller to know *who* must send one: this module never guesses whether a header is there (section 2: "MUST
not try to guess"), and takes bytes that do not begin with one for an error.

Pure: bytes in, one of three answers out. The answer depends on the bytes alone, never on how they were cut: each check
looks at a prefix and is made in the same order when all is there at once. Knows nothing of what follows the header.
"""

from __future__ import annotations

import re
import struct
from dataclasses import dataclass
from functools import cache

from preforkd.networks import canonical

#: Section 2.1: the longest line is an UNKNOWN one with two IPv6 addresses.
_LINE_MAX = 107
#: The longest binary header taken, in bytes. Its length field allows 64 KiB; a certificate's name and a few extensions
#: stay far below this, and each waiting connection may hold so much.
LIMIT = 4096

_SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
_TEXT = b"PROXY "
# Section 2.1: single spaces, no leading zeros, addresses of the announced family only (what is between is checked by
# `canonical`, which takes both families).
_LINE = re.compile(
    r"PROXY (?:TCP4 (?P<from4>[0-9.]{7,15}) (?P<to4>[0-9.]{7,15})"
    r"|TCP6 (?P<from6>[0-9A-Fa-f:.]{2,45}) (?P<to6>[0-9A-Fa-f:.]{2,45}))"
    r" (?P<from_port>0|[1-9][0-9]{0,4}) (?P<to_port>0|[1-9][0-9]{0,4})"
)

_LOCAL, _PROXY = 0, 1
_INET, _INET6, _UNIX = 1, 2, 3
#: Family -> the addresses' layout; section 2.2, `union proxy_addr`.
_BLOCKS = {_INET: struct.Struct("!4s4sHH"), _INET6: struct.Struct("!16s16sHH"), _UNIX: struct.Struct("!108s108s")}

#: Types of extensions (TLV), section 2.2.
_CRC32C = 0x03
_SSL = 0x20
#: The first byte of `_SSL`: the client came over TLS.
_CLIENT_SSL = 0x01


@dataclass(frozen=True, slots=True)
class Announced:
    """Whose connection it is. Addresses are canonical text; both are "" and the ports 0 on a unix socket."""

    client: str
    client_port: int
    server: str
    server_port: int


@dataclass(frozen=True, slots=True)
class Header:
    """A whole header of ``size`` bytes.

    ``addresses`` is None where the connection's real ones count: the proxy speaks for itself (LOCAL, mostly a health
    check), or could not say (UNKNOWN, UNSPEC). ``tls``: the client came to the proxy over TLS.
    """

    size: int
    addresses: Announced | None
    tls: bool = False


@dataclass(frozen=True, slots=True)
class Unreadable:
    """The bytes do not begin with a header; the connection must be closed. ``reason`` is a sentence for the log.

    ``ended``: there was no more to come, for whoever reads a connection; never from `parse`.
    """

    reason: str
    ended: bool = False


def parse(data: bytes) -> Header | Unreadable | None:
    """Reads the header at the beginning of ``data``; None while it is incomplete: then all of ``data`` belongs to it.

    `LIMIT` bytes are always enough for an answer. What is behind the header is not looked at.
    """
    if data.startswith(_SIGNATURE[: len(data)]):
        return _parse_block(data)
    if data.startswith(_TEXT[: len(data)]):
        return _parse_line(data)
    return Unreadable("it does not begin with a PROXY header")


# -- version 1 --------------------------------------------------------------------------------------------------------


def _parse_line(data: bytes) -> Header | Unreadable | None:
    newline = data.find(b"\n", 0, _LINE_MAX)
    if newline < 0:
        return Unreadable(f"its PROXY line is longer than {_LINE_MAX} bytes") if len(data) >= _LINE_MAX else None
    if data[newline - 1 : newline] != b"\r":
        return Unreadable("its PROXY line does not end in CRLF")
    line = data[: newline - 1].decode("latin-1")
    if line == "PROXY UNKNOWN" or line.startswith("PROXY UNKNOWN "):
        return Header(newline + 1, None)
    match = _LINE.fullmatch(line)
    if match is None:
        return Unreadable("its PROXY line is malformed")
    client = _of_family(match["from4"], match["from6"])
    server = _of_family(match["to4"], match["to6"])
    client_port, server_port = int(match["from_port"]), int(match["to_port"])
    if client is None or server is None:
        return Unreadable("an address in its PROXY line is malformed")
    if client_port > 65535 or server_port > 65535:
        return Unreadable("a port in its PROXY line is greater than 65535")
    return Header(newline + 1, Announced(client, client_port, server, server_port))


def _of_family(inet: str | None, inet6: str | None) -> str | None:
    if inet is not None:
        return canonical(inet)
    return canonical(inet6) if inet6 is not None and ":" in inet6 else None


# -- version 2 --------------------------------------------------------------------------------------------------------


def _parse_block(data: bytes) -> Header | Unreadable | None:
    if len(data) < 13:
        return None
    version, command = data[12] >> 4, data[12] & 15
    if version != 2:
        return Unreadable(f"its PROXY header is of version {version}; 1 and 2 are known")
    if command not in (_LOCAL, _PROXY):
        return Unreadable(f"its PROXY header has the unknown command {command}")
    if len(data) < 14:
        return None
    family, transport = data[13] >> 4, data[13] & 15
    # A LOCAL header's family is to be ignored, whatever it is.
    if command == _PROXY and (family > _UNIX or transport > 2):
        return Unreadable(f"its PROXY header has the unknown family and transport 0x{data[13]:02x}")
    if len(data) < 16:
        return None
    size = 16 + int.from_bytes(data[14:16], "big")
    if size > LIMIT:
        return Unreadable(f"its PROXY header is {size} bytes long; {LIMIT} are allowed")
    if command == _PROXY and family and transport and size < 16 + _BLOCKS[family].size:
        return Unreadable("its PROXY header is too short for its addresses")
    if len(data) < size:
        return None
    if command == _LOCAL or not family or not transport:
        # UNSPEC: "the receiver should ignore address information"; where it ends, and extensions begin, is not told.
        return Header(size, None)
    block = _BLOCKS[family]
    extensions = _extensions(data, 16 + block.size, size)
    if isinstance(extensions, Unreadable):
        return extensions
    tls = bool(extensions.get(_SSL, b"\0")[0] & _CLIENT_SSL)
    return Header(size, _addresses(family, block.unpack_from(data, 16)), tls)


def _addresses(family: int, fields: tuple[bytes | int, ...]) -> Announced:
    if family == _UNIX:
        # Paths on the proxy's machine: they mean nothing here, and most clients have none.
        return Announced("", 0, "", 0)
    client, server, client_port, server_port = fields
    assert isinstance(client, bytes) and isinstance(server, bytes)
    assert isinstance(client_port, int) and isinstance(server_port, int)
    return Announced(_shown(client), client_port, _shown(server), server_port)


def _shown(packed: bytes) -> str:
    groups = [packed[at : at + 2].hex() for at in range(0, 16, 2)]
    shown = canonical(".".join(map(str, packed)) if len(packed) == 4 else ":".join(groups))
    assert shown is not None
    return shown


def _extensions(data: bytes, start: int, end: int) -> dict[int, bytes] | Unreadable:
    """The extensions that are understood here, by type, after a look at the bounds of all (section 2.2, `pp2_tlv`)."""
    found: dict[int, bytes] = {}
    for kind, at, length in _walk(data, start, end):
        if at + length > end:
            return Unreadable("an extension of its PROXY header runs over the header's end")
        if kind not in (_CRC32C, _SSL):
            continue
        if kind in found:
            return Unreadable(f"its PROXY header has the extension 0x{kind:02x} twice")
        found[kind] = data[at : at + length]
        if kind == _CRC32C:
            if length != 4:
                return Unreadable("the checksum of its PROXY header is not 4 bytes long")
            whole = data[:at] + bytes(4) + data[at + 4 : end]
            if crc32c(whole) != int.from_bytes(found[kind], "big"):
                return Unreadable("the checksum of its PROXY header is wrong")
        # One byte of flags, four of the verification's result, then extensions within the extension.
        elif length < 5 or any(inner + size > at + length for _, inner, size in _walk(data, at + 5, at + length)):
            return Unreadable("the TLS extension of its PROXY header is malformed")
    return found


def _walk(data: bytes, at: int, end: int) -> list[tuple[int, int, int]]:
    """Type, place and length of each extension; the last one may run over ``end``, the caller looks."""
    found: list[tuple[int, int, int]] = []
    while at < end:
        if at + 3 > end:
            found.append((-1, end, 1))
            break
        length = int.from_bytes(data[at + 1 : at + 3], "big")
        found.append((data[at], at + 3, length))
        at += 3 + length
    return found


@cache
def _crc_table() -> tuple[int, ...]:
    table = []
    for index in range(256):
        value = index
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return tuple(table)


def crc32c(data: bytes) -> int:
    """CRC-32C (Castagnoli), RFC 9260, appendix A (RFC 4960, appendix B). About 0.1 ms a kilobyte."""
    table = _crc_table()
    value = 0xFFFFFFFF
    for byte in data:
        value = value >> 8 ^ table[(value ^ byte) & 0xFF]
    return value ^ 0xFFFFFFFF
