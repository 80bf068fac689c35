"""The exceptions people see, and the exit codes two processes agree on.

Every exception that is meant for a person derives from `PreforkdError`; its text says what was tried, on what, what the
system said, and what to do. Everything else that escapes is a bug and keeps its traceback.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum


class ExitCode(IntEnum):
    """What a process of ours says when it leaves; both sides import this enum.

    The first group is for the shell and for systemd, the second is what a worker or a template tells the master. The
    numbers of the second group keep clear of the shell's (1, 2, 126 and up) and of sysexits(3) (64 to 78), so that an
    application that calls ``os._exit`` is not mistaken for us.
    """

    OK = 0
    FAILURE = 1
    USAGE = 2
    #: A configuration that cannot work: systemd must not try again (``RestartPreventExitStatus=78``, sysexits.h).
    CONFIG = 78

    #: A worker or template left because it was asked to. Not 0: a bare exit code of 0 is the application's own doing,
    #: and a worker that ends that way right after its start is a crash loop like any other.
    LEFT = 44
    #: The worker's recycling limit was met.
    RECYCLED = 40
    #: The worker or template could not get ready: the application does not import, the user does not exist.
    BOOT_FAILED = 41
    #: A shortage (descriptors, memory) made serving impossible.
    SICK = 42
    #: The master is gone; what was held has been finished.
    ORPHANED = 43


@dataclass(frozen=True, slots=True, order=True)
class Mistake:
    """One mistake in the configuration, with its place.

    ``line`` and ``column`` count from 1 as editors do; 0 where the place is the whole file.
    """

    file: str
    line: int
    column: int
    key: str
    what: str

    def __str__(self) -> str:
        place = f"{self.file}:{self.line}:{self.column}" if self.line else self.file
        return f"{place}: {self.key}: {self.what}" if self.key else f"{place}: {self.what}"


class PreforkdError(Exception):
    """A sentence for the person who asked; the base of all errors that are shown without a traceback."""

    exit_code: ExitCode = ExitCode.FAILURE


class ConfigError(PreforkdError):
    """The configuration cannot be used; carries every mistake found, in the order of their places."""

    exit_code = ExitCode.CONFIG

    def __init__(self, mistakes: tuple[Mistake, ...]) -> None:
        self.mistakes = mistakes
        super().__init__("\n".join(str(mistake) for mistake in mistakes))


class ListenError(PreforkdError):
    """An address cannot be listened on."""


class AlreadyRunning(PreforkdError):
    """Another instance holds the pid file or the control socket."""


class PrivilegeError(PreforkdError):
    """Root could not be given up the way the configuration says."""


class NotRunning(PreforkdError):
    """No instance answers at the control socket."""


class LoadError(PreforkdError):
    """The application could not be loaded; the text carries its traceback."""
