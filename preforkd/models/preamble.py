"""The PROXY header that a connection owes before its first byte, read without ever reading beyond it.

What follows the header may be for somebody else (a TLS handshake, a handler that wants the bare descriptor). So the
bytes are looked at first (MSG_PEEK, recv(2)), and taken only when it is known that they belong to the header: all of
them while it is incomplete, the rest of it when it is whole. Two calls more for a connection, none for a request.
"""

from __future__ import annotations

import socket

from preforkd import proxyprotocol
from preforkd.http import Peer
from preforkd.proxyprotocol import Header, Unreadable


class Preamble:
    """One connection's header on its way in; ``data`` is what has been taken of it."""

    __slots__ = ("data",)

    def __init__(self, data: bytes = b"") -> None:
        self.data = data

    def read(self, fd: int) -> Header | Unreadable | None:
        """Takes what has arrived of the header, without waiting; None while something is missing.

        A client that leaves in the middle of it, or at once, is `Unreadable`.

        Raises:
            OSError: The connection is broken.
        """
        # Family and type, which recv(2) does not need, are given so that the kernel is not asked for them.
        borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, fileno=fd)
        try:
            ahead = borrowed.recv(proxyprotocol.LIMIT - len(self.data), socket.MSG_PEEK | socket.MSG_DONTWAIT)
            if not ahead:
                return Unreadable("it ended before its PROXY header was complete", ended=True)
            found = proxyprotocol.parse(self.data + ahead)
            if isinstance(found, Unreadable):
                return found
            belongs = len(ahead) if found is None else found.size - len(self.data)
            self.data += borrowed.recv(belongs, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return None
        finally:
            borrowed.detach()
        return found


def announced(peer: Peer, header: Header) -> Peer:
    """The peer of a connection whose header is complete: as announced, or ``peer`` as it really is."""
    told = header.addresses
    if told is None:
        return peer
    if not told.server:
        return Peer(told.client, told.client_port, peer.server, peer.server_port, secure=header.tls)
    return Peer(told.client, told.client_port, told.server, told.server_port, secure=header.tls)
