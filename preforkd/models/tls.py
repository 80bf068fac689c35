"""A client's connection with TLS: the same calls as `preforkd.models.connection`, and the handshake hidden in `read`.

OpenSSL never touches the descriptor. What arrives is read here, at most so much at a time, and given to it through a
buffer in memory; what it wants to send is taken from another one. So

* no client keeps the worker in OpenSSL: a flood of messages that carry no data (key updates, empty records) is at most
  one read's worth a turn, then others have theirs, and it ends after `_BARREN` bytes;
* nothing decrypted stays behind: a read is decrypted to its end, and the poll set tells of the rest;
* an end without close_notify is seen for what it is (RFC 8446, 6.1).

During the handshake the connection is parked like one whose head is still on its way, and under the same deadline.
"""

from __future__ import annotations

import errno
import os
import select
import ssl
from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

from preforkd.http import Peer, Request, RequestParser, SpeaksPlainly
from preforkd.models.connection import Connection, Terms
from preforkd.models.outbox import Outbox
from preforkd.models.seldom import Seldom
from preforkd.tls import ServerTls, described

if TYPE_CHECKING:
    from preforkd.models import Log

#: What is read at once: one record of the largest size (RFC 8446, 5.1) and its frame.
_READ: Final = 16 * 1024 + 512
#: What is encrypted at once; the encrypted copy is as large.
_WRITE: Final = 64 * 1024
#: So many of these are sent from an outbox before others have their turn.
_TURN: Final = 32
#: Bytes that may come in a row without a byte of data among them: a record that comes in pieces, a few updates of keys
#: (30 bytes each). In a handshake: the longest chain of certificates that OpenSSL takes (SSL_CTX_set_max_cert_list(3)).
_BARREN: Final = 32 * 1024
_BARREN_HANDSHAKE: Final = 128 * 1024

#: The first byte of a TLS record that may begin a connection: a handshake (RFC 8446, 5.1).
_HANDSHAKE: Final = 0x16


class Failures:
    """Tells of handshakes that failed: the first one, then one in a while with the number of those before."""

    def __init__(self, log: Log) -> None:
        self._log = log
        self._failed = Seldom()

    def note(self, client: str, reason: str) -> None:
        """A handshake with ``client`` failed."""
        if times := self._failed.due():
            self._log.info("tls_handshake_failed", client=client, reason=reason, more=times - 1)


class TLSConnection(Connection):
    """One client that speaks TLS; see `Connection`. It stays in this worker: its keys cannot be handed over."""

    __slots__ = (
        "_barren",
        "_began",
        "_ended",
        "_failures",
        "_in",
        "_out",
        "_pending",
        "_server",
        "_session",
        "_shaken",
    )

    movable = False

    def __init__(
        self,
        fd: int,
        peer: Peer,
        parser: RequestParser,
        terms: Terms,
        server: ServerTls,
        failures: Failures,
    ) -> None:
        super().__init__(fd, peer, parser, terms)
        self._server = server
        self._failures = failures
        self._in = ssl.MemoryBIO()
        self._out = ssl.MemoryBIO()
        self._session = server.session(self._in, self._out)
        #: Encrypted and not sent yet; ours to send before anything else.
        self._pending: bytes | memoryview = b""
        #: A byte has come; the handshake is complete; nothing more can be, or shall be, encrypted.
        self._began = False
        self._shaken = False
        self._ended = False
        self._barren = 0

    @property
    def interest(self) -> int:
        """What the poll set is to wait for: while something is left to send, nothing more is taken in."""
        return select.EPOLLOUT if self._pending or self.outbox is not None else select.EPOLLIN

    # -- what comes in ------------------------------------------------------------------------------------------------

    def read(self) -> bytes | None:
        """See `Connection.read`; takes the handshake one step further, as long as it is not complete.

        Raises:
            SpeaksPlainly: The client does not speak TLS but HTTP.
            OSError: The connection is broken, or TLS has failed on it.
        """
        if self._pending:
            self._flush()
            if self._pending:
                return None
        try:
            data = os.read(self.fd, _READ)
        except BlockingIOError:
            return None
        if self._ended:
            return data  # the client's last words are for nobody
        return self._take(data)

    def read_body(self) -> bytes | None:
        """See `Connection.read_body`."""
        return self.read()

    def receive(self) -> bytes:
        """See `Connection.receive`. An end without close_notify is an OSError: somebody may have cut the body off."""
        pace = self._receiving
        if pace is None:
            pace = self._receiving = self.body_pace()
        while True:
            if self._pending:
                self._flush_all()
            try:
                data = os.read(self.fd, _READ)
            except BlockingIOError:
                self._wait(select.POLLIN, pace)
                continue
            if not data:
                self._ended = True
                raise ConnectionResetError(errno.ECONNRESET, "the TLS connection was cut off")
            plain = self._take(data)
            if plain is not None:
                pace.moved(len(plain))
                return plain

    def _take(self, data: bytes) -> bytes | None:
        """What ``data`` from the client means: data, nothing yet (None), or the client's end (empty)."""
        if not data:
            if self._began and not self._shaken:
                self._failures.note(self.peer.client, "the client left in the middle of it")
            self._ended = True
            return b""
        if not self._began:
            self._began = True
            if data[0] != _HANDSHAKE:
                self._ended = True
                if data[:1].isalpha():
                    raise SpeaksPlainly(data.partition(b"\r\n")[0] if b"\r\n" in data else b"")
                self._failures.note(self.peer.client, "what came is not TLS")
                raise ConnectionAbortedError(errno.ECONNABORTED, "no TLS")
        self._in.write(data)
        if not self._shaken and not self._shake():
            self._forbid_floods(len(data))
            return None
        plain = self._decrypt()
        if self._out.pending:
            self._flush()
        if plain is None:
            self._forbid_floods(len(data))
        else:
            self._barren = 0
        return plain

    def _forbid_floods(self, size: int) -> None:
        self._barren += size
        if self._barren > (_BARREN if self._shaken else _BARREN_HANDSHAKE):
            if not self._shaken:
                self._failures.note(self.peer.client, "the client's part of it is endless")
            self._ended = True
            raise ConnectionAbortedError(errno.ECONNABORTED, "a flood of messages without data")

    def _shake(self) -> bool:
        """One step of the handshake; True when it is complete."""
        try:
            self._session.do_handshake()
            self.peer.tls = described(self._session)
            self.peer.secure = True
        except ssl.SSLWantReadError:
            self._flush()
            return False
        except (ssl.SSLError, ValueError) as error:
            # The alert says why; the client gets it if it is still there.
            self._give_up()
            self._failures.note(self.peer.client, _reason(error))
            raise ConnectionAbortedError(errno.ECONNABORTED, "the TLS handshake failed") from None
        self._shaken = True
        self._barren = 0
        return True

    def _decrypt(self) -> bytes | None:
        pieces = []
        try:
            while piece := self._session.read(_READ):
                pieces.append(piece)
        except ssl.SSLWantReadError:
            return b"".join(pieces) if pieces else None
        except ssl.SSLZeroReturnError:
            pass
        except ssl.SSLError as error:
            self._give_up()
            raise ConnectionAbortedError(errno.ECONNABORTED, f"TLS failed: {_reason(error)}") from None
        # close_notify. Data before it is served all the same; then the end of the stream says so again, or a deadline.
        return b"".join(pieces)

    # -- what goes out ------------------------------------------------------------------------------------------------

    def send(self, pieces: Sequence[bytes], last: bool = False) -> None:
        """See `Connection.send`."""
        view = memoryview(pieces[0] if len(pieces) == 1 else b"".join(pieces))
        for start in range(0, len(view), _WRITE):
            rest = view[start + _WRITE :]
            self._post(view[start : start + _WRITE])
            if self._pending:
                if last and 0 < self._terms.room >= len(rest):
                    self._keep(bytes(rest))
                    return
                self._flush_all()

    def _post(self, data: bytes | memoryview) -> None:
        """Encrypts it, and sends what goes without waiting; what does not is pending."""
        if self._ended:
            raise BrokenPipeError(errno.EPIPE, os.strerror(errno.EPIPE))
        self._encrypt(data)
        self._flush()

    def _encrypt(self, data: bytes | memoryview) -> None:
        try:
            done = self._session.write(data)
            while done < len(data):
                done += self._session.write(memoryview(data)[done:])
        except ssl.SSLError as error:
            self._ended = True
            raise ConnectionAbortedError(errno.ECONNABORTED, f"TLS failed: {_reason(error)}") from None

    def send_file(self, descriptor: int, offset: int, count: int, head: bytes = b"", last: bool = False) -> int:
        """See `Connection.send_file`; the kernel cannot encrypt, so the file is read here."""
        done = 0
        data = head
        while True:
            if data:
                self._post(data)
                if self._pending:
                    if last and self._terms.room and self._keep_file(b"", descriptor, offset + done, count - done):
                        return count
                    self._flush_all()
            data = os.pread(descriptor, min(count - done, _WRITE), offset + done)
            if not data:
                return done
            done += len(data)

    def _send_on(self, outbox: Outbox) -> bool:
        """See `Connection`; what is pending goes first."""
        self._flush()
        for _ in range(_TURN):
            if self._pending:
                return False
            data = outbox.take(_WRITE)
            if not data:
                return True
            self._post(data)
        return False

    def _on_its_way(self) -> int:
        return self._held() + len(self._pending)

    def unsent(self) -> int:
        """See `Connection`; encrypted bytes are a few more."""
        return super().unsent() + len(self._pending)

    def try_send(self, data: bytes) -> None:
        """See `Connection.try_send`; in plain text where the client speaks no TLS."""
        if not self._began or self._pending:
            return
        if self._shaken and not self._ended:
            try:
                self._encrypt(data)
                self._flush()
            except OSError:
                self._ended = True
        elif not self._shaken:
            super().try_send(data)

    def _flush(self) -> None:
        """Sends what OpenSSL wants to send, as far as it goes without waiting."""
        pending = self._pending or self._out.read()
        self._pending = b""
        while pending:
            try:
                sent = os.write(self.fd, pending)
            except BlockingIOError:
                self._pending = pending
                return
            except OSError:
                self._ended = True
                raise
            pending = memoryview(pending)[sent:] if sent < len(pending) else self._out.read()

    def _flush_all(self) -> None:
        while True:
            self._flush()
            if not self._pending:
                return
            try:
                self._wait_for_reader()
            except TimeoutError:
                self._ended = True
                raise

    # -- the end ------------------------------------------------------------------------------------------------------

    def misdirected(self, request: Request) -> bool:
        """Does another of our certificates than the one shown belong to the request's host? See `ServerTls`."""
        return self._server.misdirected(self._session, request.host)

    def _give_up(self) -> None:
        """TLS has failed: its alert is sent, and nothing else ever is."""
        self._ended = True
        try:
            self._flush()
        except OSError:
            pass

    def _notify(self) -> None:
        """Sends close_notify, if anything can be sent (RFC 8446, 6.1: each side closes its own direction)."""
        if self._ended or not self._shaken:
            return
        self._ended = True
        try:
            self._session.unwrap()
        except (ssl.SSLError, OSError):
            pass  # it waits for the client's, which nobody needs
        try:
            self._flush()
        except OSError:
            pass

    def end_output(self) -> None:
        """See `Connection.end_output`: close_notify, then the end of the stream."""
        self._notify()
        super().end_output()

    def reset_on_close(self) -> None:
        """See `Connection.reset_on_close`; without close_notify, which would say that the answer is complete."""
        self._ended = True
        super().reset_on_close()

    def close(self) -> None:
        """See `Connection.close`."""
        if self._began and not self._shaken and not self._ended:
            self._failures.note(self.peer.client, "it was not complete in time")
        self._notify()
        super().close()


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the client's certificate: {error.verify_message}"
    reason = getattr(error, "reason", None)
    return str(reason).replace("_", " ").lower() if reason else str(error)
