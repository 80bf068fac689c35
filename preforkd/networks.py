"""Which of a list of networks an address belongs to: who may announce other people's addresses here.

The list is what `config.units.Network` reads: addresses, networks in CIDR notation (RFC 4632, RFC 4291 2.3), and the
word ``unix`` for whoever comes by a unix socket, whose address is empty. A list is compiled once; a busy proxy's own
address is then found by one look into a dictionary.

An IPv4 address in IPv6 clothes (``::ffff:192.0.2.1``, RFC 4291 2.5.5.2), as a socket for both families reports it, is
the IPv4 address. Pure; any process may use it.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

#: The word for peers without an address.
UNIX = "unix"

#: Addresses whose answer is remembered. Strangers come with any number of them, so a full memory starts anew.
_REMEMBERED = 4096

#: Longest address: eight groups, the last two as an IPv4 address.
_ADDRESS_MAX = 45


def canonical(address: str) -> str | None:
    """``address`` as this program shows it, None if it is none: IPv6 compressed (RFC 5952), IPv4 never in IPv6 clothes.

    An address with a zone (``fe80::1%eth0``) is none: it means nothing on another machine, and networks have none.
    """
    if len(address) > _ADDRESS_MAX or "%" in address:
        return None
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return None
    mapped = parsed.ipv4_mapped if isinstance(parsed, ipaddress.IPv6Address) else None
    return str(mapped if mapped is not None else parsed)


class Networks:
    """A compiled list; ``address in networks`` tells. Not thread-safe in the sense that an answer may be worked out
    twice."""

    __slots__ = ("_answers", "_masks", "_unix")

    def __init__(self, texts: Iterable[str]) -> None:
        """Compiles texts in canonical form. Raises ValueError for one that is none of them."""
        self._unix = False
        #: By version of the protocol: mask -> the networks of this size, as numbers. One look for each size, not for
        #: each network: a list of a thousand networks has a dozen sizes.
        self._masks: dict[int, dict[int, set[int]]] = {4: {}, 6: {}}
        for text in texts:
            if text == UNIX:
                self._unix = True
                continue
            network = ipaddress.ip_network(text)
            of_version = self._masks[network.version]
            of_version.setdefault(int(network.netmask), set()).add(int(network.network_address))
        self._answers: dict[str, bool] = {}

    def __contains__(self, address: str) -> bool:
        """Whether a peer of this address is listed; "" is a peer on a unix socket. What is no address is not listed."""
        answer = self._answers.get(address)
        if answer is None:
            answer = self._look(address)
            if len(self._answers) >= _REMEMBERED:
                self._answers.clear()
            self._answers[address] = answer
        return answer

    def _look(self, address: str) -> bool:
        if not address:
            return self._unix
        # The kernel tells a link-local peer's zone, and the network is the same in every zone.
        text = canonical(address.partition("%")[0])
        if text is None:
            return False
        parsed = ipaddress.ip_address(text)
        value = int(parsed)
        return any(value & mask in networks for mask, networks in self._masks[parsed.version].items())
