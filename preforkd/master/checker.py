"""Reads and checks the configuration in a child process, so that no mistake, no hang and no crash of it is the
master's.

The child is forked with everything imported (7 to 14 ms; executing a new interpreter costs 190), keeps nothing of the
master but the pipe for its answer, and runs under limits of memory and processor time. It also asks the name service
for users and groups, which may hang for minutes where accounts live on the network.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import select
import signal
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass

import preforkd
from preforkd import config as configuration
from preforkd import privileges
from preforkd.config import Config
from preforkd.errors import ConfigError, Mistake, PreforkdError
from preforkd.logs import compile_format
from preforkd.spawn import fork_child
from preforkd.stamp import changed_since

#: Longest wait for the answer, seconds; NFS and LDAP can hang.
DEADLINE = 30.0
_CPU_SECONDS = 20
_MEMORY = 1 << 30
#: Longest answer. A configuration of 256 KiB does not become larger than this.
_ANSWER = 16 << 20


@dataclass(frozen=True, slots=True)
class Checked:
    """The answer: a configuration and whom each pool becomes, or the reason why not."""

    config: Config | None = None
    identities: Mapping[str, privileges.Identity] | None = None
    mistakes: tuple[Mistake, ...] = ()
    failure: str = ""

    def error(self) -> PreforkdError | None:
        """The refusal as an exception, or None."""
        if self.mistakes:
            return ConfigError(self.mistakes)
        return PreforkdError(self.failure) if self.failure else None


class Checker:
    """One check. Master (from its poll), or anybody who waits for `result`."""

    def __init__(self, path: str, stamp: str | None = None, *, starting: bool = False) -> None:
        """Fork the child. ``stamp``: the running build's; a package that differs on disk is refused (facts F7).

        ``starting``: nothing serves yet, so a certificate whose dates are wrong is no reason to serve nobody: the
        clock may be wrong instead, or the renewal may need the service. The template warns of it.

        Raises:
            OSError: there is no process to be had.
        """
        self._pipe, write = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            self.pid = fork_child(lambda: _check(path, stamp, write, starting), {write})
        except OSError:
            os.close(self._pipe)
            raise
        finally:
            os.close(write)
        self.deadline = time.monotonic() + DEADLINE
        self._data = bytearray()
        self.ended = False
        self.is_reaped = False
        self._too_long = False
        self._how = ""

    def fileno(self) -> int:
        return self._pipe

    def read(self) -> bool:
        """Take what has arrived. True when the answer is complete."""
        while not self.ended:
            try:
                part = os.read(self._pipe, 65536)
            except BlockingIOError:
                return False
            self._data += part
            if len(self._data) > _ANSWER:
                # It would go on writing for ever into a pipe that nobody reads.
                self._too_long = self.ended = True
                self._kill()
            elif not part:
                self.ended = True
        return True

    def reaped(self, code: int | None, signum: int | None) -> None:
        """The child was reaped by whoever reaps; says how it ended if it gave no answer."""
        self.is_reaped = True
        if signum == signal.SIGXCPU:
            self._how = f"it used more than {_CPU_SECONDS} s of processor time"
        elif signum is not None:
            self._how = f"it was killed by signal {signum} ({_signal_name(signum)})"
        else:
            self._how = f"it ended with exit code {code}"

    def give_up(self) -> Checked:
        """The deadline has passed."""
        self.close()
        return Checked(failure=f"the check of the configuration took longer than {DEADLINE:.0f} s and was ended")

    def close(self) -> None:
        """End the child, which its parent reaps as any other, and the pipe."""
        self._kill()
        os.close(self._pipe)

    def _kill(self) -> None:
        if not self.is_reaped:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def answer(self) -> Checked:
        """What the child said, after `read` returned True."""
        os.close(self._pipe)
        if self._too_long:
            return Checked(failure=f"the check of the configuration gave an answer longer than {_ANSWER >> 20} MiB")
        try:
            data = json.loads(bytes(self._data))
        except ValueError:
            how = f": {self._how}" if self._how else ""
            return Checked(failure=f"the check of the configuration ended without an answer{how}")
        if "config" in data:
            identities = {
                name: privileges.Identity(**{**plain, "groups": tuple(plain["groups"])})
                for name, plain in data["identities"].items()
            }
            return Checked(configuration.from_plain(data["config"]), identities)
        if "mistakes" in data:
            return Checked(mistakes=tuple(Mistake(*mistake) for mistake in data["mistakes"]))
        return Checked(failure=str(data["failure"]))

    def result(self) -> Checked:
        """Wait for the answer, and reap the child. Not for the master."""
        poll = select.poll()
        poll.register(self._pipe, select.POLLIN)
        while not self.read():
            left = self.deadline - time.monotonic()
            if left <= 0:
                checked = self.give_up()
                os.waitpid(self.pid, 0)
                return checked
            poll.poll(left * 1000)
        _, status = os.waitpid(self.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        self.reaped(code if code >= 0 else None, -code if code < 0 else None)
        return self.answer()


def _signal_name(signum: int) -> str:
    try:
        return signal.Signals(signum).name
    except ValueError:  # a real-time signal
        return "unknown"


def _check(path: str, stamp: str | None, write: int, starting: bool) -> int:
    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY, _MEMORY))
    resource.setrlimit(resource.RLIMIT_CPU, (_CPU_SECONDS, _CPU_SECONDS + 1))
    try:
        answer = json.dumps(_answer(path, stamp, starting)).encode()
    except MemoryError:
        failure = f"the check of the configuration needed more than {_MEMORY >> 20} MiB of memory and was ended"
        answer = json.dumps({"failure": failure}).encode()
    os.set_blocking(write, True)
    while answer:
        answer = answer[os.write(write, answer) :]
    return 0


def _answer(path: str, stamp: str | None, starting: bool) -> dict[str, object]:
    changed = changed_since(stamp, preforkd.__version__) if stamp is not None else None
    if changed is not None:
        return {"failure": changed}
    try:
        reading = configuration.read_placed(path)
        config = reading.config
        try:
            compile_format(config.log.format)
        except ValueError as error:
            raise PreforkdError(f"{config.path}: log.format: {error}") from None
        mistakes = configuration.lookup_accounts(config) if os.geteuid() == 0 else []
        mistakes += _tls_mistakes(reading, starting)
        if mistakes:
            raise ConfigError(tuple(mistakes))
        return {"config": configuration.to_plain(config), "identities": _identities(config)}
    except ConfigError as error:
        return {"mistakes": [[m.file, m.line, m.column, m.key, m.what] for m in error.mistakes]}
    except PreforkdError as error:
        return {"failure": str(error)}


def _tls_mistakes(reading: configuration.Reading, starting: bool) -> Iterator[Mistake]:
    """What certificates and keys are wrong, at the places that name them."""
    for name, pool in reading.config.pools.items():
        for number, listen in enumerate(pool.listen):
            if listen.tls is None:
                continue
            # Here and not above: the master has no use for OpenSSL.
            from preforkd import tls

            try:
                tls.server_tls(listen.tls, time.time())
            except tls.TlsError as error:
                for problem in error.problems:
                    if not (starting and problem.dated):
                        key = f"pools.{name}.listen[{number}].tls.{problem.key}"
                        # A single address stands in the file without its number.
                        alone = f"pools.{name}.listen.tls.{problem.key}"
                        place = (
                            reading.places.get(key)
                            or reading.places.get(alone)
                            or configuration.Place(reading.config.path, 0, 0)
                        )
                        yield Mistake(place.file, place.line, place.column, key, problem.what)


def _identities(config: Config) -> dict[str, object]:
    """Whom the workers of each pool become."""
    return {
        name: asdict(privileges.resolve(pool.user or config.user, pool.group or config.group))
        for name, pool in config.pools.items()
    }
