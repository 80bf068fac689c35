"""Which addresses belong to a list of networks."""

from __future__ import annotations

import ipaddress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.networks import _REMEMBERED, Networks, canonical

ADDRESSES = st.ip_addresses().map(str)
NETWORKS = st.builds(
    lambda address, cut: str(ipaddress.ip_network((address, address.max_prefixlen - cut), strict=False)),
    st.ip_addresses(),
    st.integers(0, 32),
)


@pytest.mark.parametrize(
    ("texts", "address", "listed"),
    [
        (["127.0.0.1"], "127.0.0.1", True),
        (["127.0.0.1"], "127.0.0.2", False),
        (["10.0.0.0/8"], "10.255.255.255", True),
        (["10.0.0.0/8"], "11.0.0.0", False),
        (["0.0.0.0/0"], "203.0.113.9", True),
        (["0.0.0.0/0"], "::1", False),
        (["::/0"], "127.0.0.1", False),
        (["2001:db8::/32"], "2001:db8:ffff::1", True),
        (["fe80::/10"], "fe80::1%eth0", True),
        # One client, two spellings.
        (["10.0.0.0/8"], "::ffff:10.1.2.3", True),
        (["::/0"], "::ffff:10.1.2.3", False),
        (["unix"], "", True),
        (["127.0.0.1", "::/0", "0.0.0.0/0"], "", False),
        (["unix"], "unix", False),
        (["0.0.0.0/0", "::/0"], "localhost", False),
        ([], "127.0.0.1", False),
    ],
)
def test_membership(texts: list[str], address: str, listed: bool) -> None:
    networks = Networks(texts)
    assert (address in networks) is listed
    assert (address in networks) is listed  # remembered


@given(st.lists(NETWORKS, max_size=8), ADDRESSES)
def test_agrees_with_the_library(texts: list[str], address: str) -> None:
    parsed = ipaddress.ip_address(address)
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    wanted = any((mapped or parsed) in ipaddress.ip_network(text) for text in texts)
    assert (address in Networks(texts)) is wanted


@given(st.text(max_size=50))
def test_any_text_is_an_address_or_none(text: str) -> None:
    shown = canonical(text)
    assert shown is None or canonical(shown) == shown
    assert (text in Networks(["0.0.0.0/0"])) is (shown is not None and ":" not in shown)


def test_strangers_do_not_fill_the_memory() -> None:
    networks = Networks(["10.0.0.0/8"])
    for number in range(2 * _REMEMBERED + 10):
        assert str(ipaddress.IPv4Address(0x0B000000 + number)) not in networks
    assert len(networks._answers) <= _REMEMBERED
    assert "10.0.0.1" in networks
