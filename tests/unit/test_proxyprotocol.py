"""The PROXY protocol: what is read, what is refused, and that it does not matter how the bytes are cut."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.proxyprotocol import LIMIT, Announced, Header, Unreadable, crc32c, parse

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
INET = bytes([192, 0, 2, 1, 198, 51, 100, 2]) + struct.pack("!HH", 56324, 443)
INET6 = bytes.fromhex("20010db8000000000000000000000001" + "20010db8000000000000000000000002") + struct.pack(
    "!HH", 1, 2
)
FOUR = Announced("192.0.2.1", 56324, "198.51.100.2", 443)
SIX = Announced("2001:db8::1", 1, "2001:db8::2", 2)
TLS = b"\x20\x00\x05\x01\x00\x00\x00\x00"


def block(body: bytes, family: int = 0x11, command: int = 0x21, length: int | None = None) -> bytes:
    return SIGNATURE + bytes((command, family)) + struct.pack("!H", len(body) if length is None else length) + body


def summed(body: bytes, *, wrong: int = 0) -> bytes:
    """A header with the checksum behind ``body``."""
    bare = block(body + b"\x03\x00\x04" + bytes(4))
    return bare[:-4] + struct.pack("!I", crc32c(bare) ^ wrong)


@pytest.mark.parametrize(
    ("data", "addresses", "tls"),
    [
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\r\n", FOUR, False),
        (b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n", Announced("0.0.0.0", 0, "255.255.255.255", 65535), False),
        (b"PROXY TCP6 2001:db8::1 2001:DB8:0:0:0:0:0:2 1 2\r\n", SIX, False),
        (b"PROXY TCP6 ::ffff:192.0.2.1 ::1 1 2\r\n", Announced("192.0.2.1", 1, "::1", 2), False),
        (b"PROXY UNKNOWN\r\n", None, False),
        (b"PROXY UNKNOWN whatever \r there is\r\n", None, False),
        (b"PROXY UNKNOWN " + b"f" * 91 + b"\r\n", None, False),
        (block(INET), FOUR, False),
        (block(INET, 0x12), FOUR, False),
        (block(INET6, 0x21), SIX, False),
        (block(bytes(216), 0x31), Announced("", 0, "", 0), False),
        (block(INET + b"\x04\x00\x02ab" + TLS), FOUR, True),
        (block(INET + b"\x20\x00\x05\x00\x00\x00\x00\x01"), FOUR, False),
        (block(INET + b"\x20\x00\x0f\x01\x00\x00\x00\x00\x21\x00\x07TLSv1.3"), FOUR, True),
        (block(INET + b"\xee\x00\x00"), FOUR, False),
        (summed(INET), FOUR, False),
        (summed(INET + TLS), FOUR, True),
        # LOCAL: whatever follows is skipped.
        (block(b"", 0x00, 0x20), None, False),
        (block(INET + TLS, 0x11, 0x20), None, False),
        (block(b"xx", 0xFF, 0x20), None, False),
        # UNSPEC.
        (block(b"", 0x00), None, False),
        (block(b"abc", 0x10), None, False),
        (block(TLS, 0x01), None, False),
        (block(INET + b"\x04" + struct.pack("!H", LIMIT - 31) + bytes(LIMIT - 31)), FOUR, False),
    ],
)  # fmt: skip
def test_read(data: bytes, addresses: Announced | None, tls: bool) -> None:
    header = Header(len(data), addresses, tls)
    assert parse(data) == header
    assert parse(data + b"GET / HTTP/1.1\r\n") == header
    for end in range(len(data)):
        assert parse(data[:end]) is None, data[:end]


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"GET / HTTP/1.1\r\n", "does not begin with"),
        (b"G", "does not begin with"),
        (b"\x16\x03\x01", "does not begin with"),
        (b"PROXYTCP4 ", "does not begin with"),
        (b"proxy TCP4 ", "does not begin with"),
        (b"\r\n\r\nGET", "does not begin with"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443\n", "CRLF"),
        (b"PROXY TCP4  192.0.2.1 198.51.100.2 56324 443\r\n", "line is malformed"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 56324 443 \r\n", "line is malformed"),
        (b"PROXY TCP4 192.0.2.1\t198.51.100.2 56324 443\r\n", "line is malformed"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 056324 443\r\n", "line is malformed"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 +1 443\r\n", "line is malformed"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 1 443\r\r\n", "line is malformed"),
        (b"PROXY TCP4 192.0.2.1 198.51.100.2 65536 443\r\n", "port"),
        (b"PROXY TCP4 192.0.2.01 198.51.100.2 1 443\r\n", "address"),
        (b"PROXY TCP4 192.0.2.256 198.51.100.2 1 443\r\n", "address"),
        (b"PROXY TCP4 192.0.2. 198.51.100.2 1 443\r\n", "address"),
        (b"PROXY TCP4 ::1 198.51.100.2 1 443\r\n", "line is malformed"),
        (b"PROXY TCP6 192.0.2.1 198.51.100.2 1 443\r\n", "address"),
        (b"PROXY TCP6 ::1::2 ::1 1 443\r\n", "address"),
        (b"PROXY TCP6 fe80::1%lo ::1 1 443\r\n", "line is malformed"),
        (b"PROXY TCP4 198.51.100.2 1 443\r\n", "line is malformed"),
        (b"PROXY UDP4 192.0.2.1 198.51.100.2 1 443\r\n", "line is malformed"),
        (b"PROXY UNKNOWNS\r\n", "line is malformed"),
        (b"PROXY \r\n", "line is malformed"),
        (b"PROXY UNKNOWN " + b"f" * 92 + b"\r\n", "longer than 107"),
        (b"PROXY UNKNOWN " + b"f" * 200, "longer than 107"),
        (block(INET, command=0x11), "version 1"),
        (block(INET, command=0x22), "command 2"),
        (block(INET, 0x41), "family"),
        (block(INET, 0x13), "family"),
        (block(INET[:-1]), "too short"),
        (block(INET, 0x21), "too short"),
        (block(b"", 0x31), "too short"),
        (block(b"", length=65535), "4096 are allowed"),
        (block(b"", 0x00, 0x20, length=4081), "4096 are allowed"),
        (block(INET + b"\x04"), "runs over"),
        (block(INET + b"\x04\x00"), "runs over"),
        (block(INET + b"\x04\x00\x01"), "runs over"),
        (block(INET + TLS + b"\x04\xff\xff"), "runs over"),
        (block(INET + b"\x20\x00\x04\x01\x00\x00\x00"), "TLS"),
        (block(INET + b"\x20\x00\x08\x01\x00\x00\x00\x00\x21\x00\x01"), "TLS"),
        (block(INET + TLS + TLS), "twice"),
        (block(INET + b"\x03\x00\x03abc"), "4 bytes"),
        (summed(INET, wrong=1), "checksum"),
    ],
)  # fmt: skip
def test_refused(data: bytes, reason: str) -> None:
    outcome = parse(data)
    assert isinstance(outcome, Unreadable) and reason in outcome.reason
    # However it is cut: nothing, until the same answer.
    answers = {parse(data[:end]) for end in range(len(data) + 1)}
    assert answers == {None, outcome}


def test_the_checksum_is_castagnolis() -> None:
    # RFC 3720, B.4, and the check value that catalogs give.
    assert crc32c(bytes(32)) == 0x8A9136AA and crc32c(b"123456789") == 0xE3069283


@given(
    st.one_of(
        st.binary(max_size=200),
        st.builds(lambda rest: b"PROXY " + rest, st.text("TCP46UNKO 0123456789.:af\r\n", max_size=110).map(str.encode)),
        st.builds(
            lambda command, family, length, body: block(body, family, command, length),
            st.integers(0x1F, 0x23),
            st.sampled_from((0x00, 0x11, 0x12, 0x21, 0x31, 0x41, 0x13)),
            st.none() | st.integers(0, 300),
            st.builds(bytes.__add__, st.sampled_from((b"", INET, INET + TLS, INET6)), st.binary(max_size=40)),
        ),
    )
)  # fmt: skip
def test_any_bytes_have_one_answer_however_they_are_cut(data: bytes) -> None:
    whole = parse(data)
    first = next((answer for end in range(len(data)) if (answer := parse(data[:end])) is not None), whole)
    assert first == whole
    if isinstance(whole, Header):
        assert 0 < whole.size <= min(len(data), LIMIT)
        assert parse(data[: whole.size - 1]) is None


@given(st.binary(min_size=1, max_size=30))
def test_the_limit_is_enough_for_an_answer(pattern: bytes) -> None:
    for start in (b"", b"PROXY ", SIGNATURE + b"\x21\x11"):
        assert parse((start + pattern * LIMIT)[:LIMIT]) is not None
