"""How one worker gives a connection to another: one SEQPACKET message each.

The message carries the descriptor (SCM_RIGHTS), the bytes that were read and not yet understood, who talks to whom, and
the deadline of a half-sent head (CLOCK_MONOTONIC is one clock for all processes, clock_gettime(2)), so that a slow
client gains nothing by wandering. Sender and receiver may be of different generations, even of different versions of
this program: the first byte is the format's version, and what a receiver does not know it closes.
"""

from __future__ import annotations

import math
import os
import socket
import struct
from dataclasses import dataclass
from typing import Final

from preforkd.http import Peer

_VERSION: Final = 2
#: version, flags, deadline of the head (infinite: none), client port, server port, lengths of client, server and
#: listener.
_HEADER: Final = struct.Struct("=BBdHHBBH")
#: Flags. The client came over TLS; a PROXY header is still to come, and what is in the message is its beginning.
_SECURE: Final = 1
_ANNOUNCES: Final = 2
_INT: Final = struct.Struct("i")
#: The longest message: a head of the largest allowed size, which the kernel's socket buffer bounds anyway.
_MESSAGE: Final = 256 * 1024


@dataclass(slots=True)
class Handed:
    """A connection on its way from one worker to another.

    ``announces``: its PROXY header is not complete, and ``data`` is what was read of it. ``listen``: the listener's
    text (`Listen.text`) where something else comes before HTTP and has not begun, as TLS; else empty.
    """

    fd: int
    peer: Peer
    data: bytes
    deadline: float
    announces: bool = False
    listen: str = ""


def give(pair_end: socket.socket, handed: Handed) -> bool:
    """Sends a connection; the caller still has to close its own descriptor if that succeeded.

    Returns:
        False if it cannot be sent now: nobody takes them fast enough, too many are in flight (ETOOMANYREFS), or the
        bytes read are more than a message can hold.
    """
    client = handed.peer.client.encode()[:255]
    server = handed.peer.server.encode()[:255]
    listen = handed.listen.encode()
    header = _HEADER.pack(
        _VERSION,
        _SECURE * handed.peer.secure | _ANNOUNCES * handed.announces,
        handed.deadline,
        handed.peer.client_port,
        handed.peer.server_port,
        len(client),
        len(server),
        len(listen),
    )
    try:
        # Not socket.send_fds and recv_fds: they forget their flags (CPython 3.11).
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, _INT.pack(handed.fd))
        pair_end.sendmsg([header, client, server, listen, handed.data], [rights], socket.MSG_DONTWAIT)
    except OSError:
        return False
    return True


def take(pair_end: socket.socket) -> Handed | None:
    """Receives a connection, if there is one: a sibling may have taken it.

    Raises:
        OSError: The descriptors of this process are used up (EMFILE), or the pair is broken.
    """
    try:
        message, ancillary, flags, _ = pair_end.recvmsg(
            _MESSAGE, socket.CMSG_LEN(_INT.size), socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC
        )
    except BlockingIOError:
        return None
    fds = [
        _INT.unpack_from(data)[0]
        for level, kind, data in ancillary
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS and len(data) >= _INT.size
    ]
    if not fds:
        return None
    try:
        version, told, deadline, client_port, server_port, *lengths = _HEADER.unpack_from(message)
        if version != _VERSION or flags & socket.MSG_TRUNC:
            raise ValueError
        start = _HEADER.size
        texts = []
        for length in lengths:
            texts.append(message[start : start + length].decode())
            start += length
        client, server, listen = texts
        peer = Peer(client, client_port, server, server_port, secure=bool(told & _SECURE))
    except (struct.error, ValueError):
        os.close(fds[0])
        return None
    return Handed(
        fds[0],
        peer,
        message[start:],
        math.inf if math.isnan(deadline) else deadline,
        announces=bool(told & _ANNOUNCES),
        listen=listen,
    )
