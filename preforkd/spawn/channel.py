"""Messages between our own processes: a small JSON object a packet, with descriptors where needed.

SOCK_SEQPACKET keeps packets apart and says end of file when the other side is gone. Both ends are ours, so what comes
in is trusted to be well formed; a packet that is not is a bug and raises.
"""

from __future__ import annotations

import array
import contextlib
import errno
import json
import os
import socket
from collections.abc import Sequence
from typing import Any

#: Longest packet. Texts (tracebacks) are cut by the sender; the kernel's limit is the socket's send buffer.
PACKET = 64 * 1024
#: Longest text in a message: characters, which a person has to read, and bytes as they are sent (a character may take
#: twelve, as an escaped surrogate pair).
CHARACTERS = 12_000
TEXT = 48 * 1024
_GAP = "\n[...]\n"
#: Descriptors in a message; the kernel's SCM_MAX_FD is 253.
DESCRIPTORS = 64

#: ETOOMANYREFS: more descriptors of this user are in flight than one of its processes may have open (unix(7)).
_SHORTAGE = frozenset((errno.ENOBUFS, errno.ENOMEM, errno.ETOOMANYREFS))

Message = dict[str, Any]


class ChannelClosed(Exception):
    """The process at the other end is gone."""


class Channel:
    """One end of a socket pair between two of our processes."""

    __slots__ = ("socket",)

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock

    @classmethod
    def pair(cls) -> tuple[Channel, Channel]:
        """Two connected ends, both non-blocking and close-on-exec."""
        near, far = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        return cls(near), cls(far)

    def fileno(self) -> int:
        return self.socket.fileno()

    def close(self) -> None:
        self.socket.close()

    def send(self, message: Message, descriptors: Sequence[int] = ()) -> bool:
        """Send without blocking. False when the other side has not read enough for it to fit, or the kernel has no
        room.

        Raises:
            ChannelClosed: nobody is at the other end.
            ValueError: it is longer than `PACKET`, and the other end (the master, as often as not) would stumble over
            it.
        """
        data = json.dumps(message, separators=(",", ":")).encode()
        if len(data) > PACKET:
            raise ValueError(f"a message of {len(data)} bytes, and {PACKET} is the most")
        rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", descriptors))] if descriptors else []
        try:
            self.socket.sendmsg([data], rights, socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT)
        except (BlockingIOError, InterruptedError):
            return False
        except (BrokenPipeError, ConnectionError):
            raise ChannelClosed from None
        except OSError as error:
            if error.errno not in _SHORTAGE:
                raise
            return False
        return True

    def receive(self) -> tuple[Message, list[int]] | None:
        """The next message and its descriptors, or None when there is none now. Descriptors arrive close-on-exec.

        Raises:
            ChannelClosed: end of file.
        """
        room = socket.CMSG_LEN(DESCRIPTORS * 4)
        try:
            data, ancillary, _, _ = self.socket.recvmsg(PACKET, room, socket.MSG_DONTWAIT | socket.MSG_CMSG_CLOEXEC)
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionError:
            raise ChannelClosed from None
        descriptors = array.array("i")
        for level, kind, value in ancillary:
            if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                descriptors.frombytes(value[: len(value) - len(value) % descriptors.itemsize])
        if not data:
            raise ChannelClosed
        try:
            message = json.loads(data)
        except ValueError:
            for descriptor in descriptors:
                with contextlib.suppress(OSError):
                    os.close(descriptor)
            raise
        return message, list(descriptors)


def cut(text: str) -> str:
    """A text that fits into a message. Of a long traceback the end matters most, but a long last line begins with the
    name of the error."""
    part, size = text, CHARACTERS
    while len(part) > CHARACTERS + len(_GAP) or len(json.dumps(part)) > TEXT:
        part = text[: size // 4] + _GAP + text[size // 4 - size :]
        size //= 2
    return part
