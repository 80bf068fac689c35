"""From a path to bytes, whatever the path turns out to be.

The file is opened by the checking child of a running master, perhaps by root. A FIFO would block, a device might never
end, and a directory, a symlink loop or 100 MB of something else are ordinary accidents: each is told at once.
"""

from __future__ import annotations

import errno
import os
import stat

#: Largest file read. A file of 200 lines has 8 KiB; a MiB of legal YAML costs the parser more than a second of CPU.
MAX_BYTES = 256 << 10


class Unreadable(Exception):
    """A file that cannot be read; the text is the sentence, without the file's name. ``missing`` if there is none."""

    def __init__(self, sentence: str, *, missing: bool = False) -> None:
        super().__init__(sentence)
        self.missing = missing


_SENTENCES = {
    errno.ENOENT: "there is no such file",
    errno.ENOTDIR: "there is no such file: a part of its path is not a folder",
    errno.EACCES: "cannot be read: permission denied",
    errno.ELOOP: "cannot be read: its symbolic links lead back to themselves",
    errno.ENXIO: "is a socket or a device without its other end; a regular file is needed",
    errno.ENAMETOOLONG: "cannot be read: the path is too long",
}

_TYPES = (
    (stat.S_ISDIR, "is a folder"),
    (stat.S_ISFIFO, "is a FIFO (named pipe)"),
    (stat.S_ISCHR, "is a device"),
    (stat.S_ISBLK, "is a device"),
    (stat.S_ISSOCK, "is a socket"),
)


def read_bytes(path: str) -> bytes:
    """All bytes of the regular file at ``path``, at most `MAX_BYTES`. Never blocks on a FIFO. Raises `Unreadable`."""
    try:
        # O_NONBLOCK: opening a FIFO without writer would wait for one. O_NOCTTY: a terminal must not become ours.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError as error:
        sentence = _SENTENCES.get(error.errno or 0) or f"cannot be read: {error.strerror}"
        raise Unreadable(sentence, missing=error.errno in (errno.ENOENT, errno.ENOTDIR)) from None
    except ValueError:
        raise Unreadable("there is no such file: its name has a NUL byte", missing=True) from None
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            what = next((words for test, words in _TYPES if test(status.st_mode)), "is not a file")
            raise Unreadable(f"{what}; a regular file is needed")
        data = b""
        # The size is asked of the reading and not of fstat: the file may grow meanwhile, and /proc says 0.
        while status.st_size <= MAX_BYTES and len(data) <= MAX_BYTES:
            piece = os.read(descriptor, MAX_BYTES + 1 - len(data))
            if not piece:
                return data
            data += piece
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from None
    finally:
        os.close(descriptor)
    raise Unreadable(f"is larger than {MAX_BYTES >> 10} KiB, which no configuration is; is it the right file?")
