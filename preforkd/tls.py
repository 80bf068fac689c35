"""TLS of a listener: from the files that the configuration names to the contexts that connections are made with.

The contexts are made as root by a pool's template before it gives root up, and inherited by every worker: a session
ticket of one worker is understood by all of its generation, because the key that seals tickets is the context's own.
The master never comes here; its check does, in a child.

What is made is proved at once: each certificate serves a handshake in memory, in every version that is switched on. So
a cipher list that does not fit the key is a mistake of the configuration and not of every client. The same handshake
shows what the certificate says (its names, its dates), for which the standard library has no other way.

Imports `ssl`, which costs some milliseconds and a megabyte: whoever has no TLS configured does not import this module.
"""

from __future__ import annotations

import re
import ssl
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from preforkd.errors import PreforkdError

if TYPE_CHECKING:
    from preforkd.config import Listen, Tls

#: A certificate that ends so soon is worth a warning. Let's Encrypt's clients renew 30 days before. Seconds.
EXPIRES_SOON = 14 * 86_400.0

#: HTTP/2 is not spoken here, and a client shall not think so (RFC 7301).
_ALPN = ["http/1.1"]
_VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
#: x509_vfy.h, X509_V_FLAG_NO_CHECK_TIME: the dates are judged here, where they can be named.
_NO_CHECK_TIME = 0x200000
#: What may be in a name that a client asks for by SNI (RFC 6066, 3: A-labels, no address).
_HOST_NAME = re.compile(r"[a-z0-9_-]+(?:\.[a-z0-9_-]+)*")
_CERTIFICATE = b"-----BEGIN CERTIFICATE-----"
_KEY = re.compile(rb"-----BEGIN (?:[A-Z]+ )?PRIVATE KEY-----")
_ENCRYPTED = re.compile(rb"-----BEGIN ENCRYPTED PRIVATE KEY-----|Proc-Type: 4,ENCRYPTED")

#: OpenSSL's reason -> what an operator can do about it.
_HINTS = {
    "EE_KEY_TOO_SMALL": "its key is too short for today; make one with 2048 bits or more, or an ECDSA key",
    "CA_KEY_TOO_SMALL": "an intermediate certificate in it has a key that is too short; ask the authority for another",
    "CA_MD_TOO_WEAK": "it is signed with a broken hash (SHA-1, MD5); ask the authority for another",
    "NO_SHARED_CIPHER": "none of the ciphers works with its kind of key; ECDHE-RSA is for RSA, ECDHE-ECDSA for EC",
    "NO_CIPHERS_AVAILABLE": "none of the ciphers works with the versions; leave ciphers out for the default",
}


@dataclass(frozen=True, slots=True)
class Problem:
    """Why TLS cannot be spoken: the key of `Tls` it is about, and a sentence that names the file and says what to do.

    ``dated``: only the certificate's dates are wrong, which may as well be the machine's clock.
    """

    key: str
    what: str
    dated: bool = False


class TlsError(PreforkdError):
    """TLS cannot be spoken with this configuration; carries every problem found."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(f"tls.{problem.key}: {problem.what}" for problem in problems))


class Session(ssl.SSLObject):
    """The TLS side of one connection; knows what the client asked for."""

    #: The name that the client asked for by SNI, in lower case; empty if none.
    sni: str = ""
    #: Whose certificate it was shown; set with the SNI.
    site: Site | None = None


@dataclass(eq=False, slots=True)
class Site:
    """Certificates for the same names; more than one where their keys are of different kinds (RSA, ECDSA)."""

    context: ssl.SSLContext
    names: frozenset[str]
    files: list[str] = field(default_factory=list)

    def covers(self, host: str) -> bool:
        """Is a certificate of it for this host name (RFC 9110, 4.3.4; RFC 6125, 6.4.3: one label for the star)?"""
        return host in self.names or "*." + host.partition(".")[2] in self.names


@dataclass(frozen=True, slots=True)
class Certificate:
    """What a certificate says of itself; the dates in unix seconds."""

    file: str
    names: frozenset[str]
    begins: float
    ends: float


class ServerTls:
    """The TLS of one listener. Made once, before any fork; workers and connections only use it."""

    def __init__(self, sites: Sequence[Site], certificates: Sequence[Certificate]) -> None:
        self.certificates = tuple(certificates)
        self._default = sites[0]
        self._sites: dict[str, Site] = {}
        for site in sites:
            for name in site.names:
                self._sites.setdefault(name, site)
        context = self._default.context
        context.sslobject_class = Session
        context.sni_callback = self._select

    def session(self, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO) -> Session:
        """A new connection's TLS, with the handshake still before it."""
        return cast(Session, self._default.context.wrap_bio(incoming, outgoing, server_side=True))

    def _select(self, session: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        """Called in the middle of a handshake: shows the certificate that the client asked for, else the first one."""
        session = cast(Session, session)
        session.site = self._default
        host = (name or "").lower().removesuffix(".")
        if not _HOST_NAME.fullmatch(host):
            return
        session.sni = host
        site = self.site(host)
        if site is not None and site is not self._default:
            session.site = site
            session.context = site.context

    def site(self, host: str) -> Site | None:
        """Whose certificate is for ``host`` (lower case, without a dot at its end): exactly, else by a wildcard."""
        return self._sites.get(host) or self._sites.get("*." + host.partition(".")[2])

    def misdirected(self, session: Session, host: bytes) -> bool:
        """Is ``host``, the authority of a request, another certificate's than the one that this client was shown?

        RFC 9110, 7.4. Not where the client named no host in its handshake, nor where no certificate is for the host
        that it asks (an address, a name for testing): then nothing says who was meant.
        """
        if not session.sni or session.site is None:
            return False
        name = host.decode("ascii", "replace").lower()
        if not name.startswith("["):
            name = name.partition(":")[0]
        name = name.removesuffix(".")
        return not session.site.covers(name) and self.site(name) is not None


def server_tls(tls: Tls, now: float | None = None) -> ServerTls:
    """Reads the files and makes the contexts. Template, `preforkd run --single`, and the check; as root where it can.

    Args:
        tls: What the configuration says.
        now: Unix seconds for which the certificates must be valid; None: their dates are not looked at.

    Raises:
        TlsError: With every problem found.
    """
    problems: list[Problem] = []
    sites: dict[frozenset[str], Site] = {}
    alone: list[Site] = []
    certificates: list[Certificate] = []
    problems += _cipher_problems(tls)
    for number, file in enumerate(tls.certificate):
        key = tls.key[number] if tls.key else file
        try:
            context = _context(tls)
            _load(context, file, key)
            said = [_rehearse(context, file, _VERSIONS[version]) for version in tls.versions if not problems]
        except TlsError as error:
            problems += error.problems
            continue
        if not said:
            continue
        certificate = _certificate(file, said[0])
        if now is not None:
            problems += _date_problems(certificate, now)
        certificates.append(certificate)
        site = sites.get(certificate.names)
        if site is None:
            site = Site(context, certificate.names)
            alone.append(site)
            if certificate.names:
                sites[certificate.names] = site
        else:
            # The same names with another kind of key: the client's abilities decide.
            _load(site.context, file, key)
        site.files.append(file)
    if tls.client_ca is not None:
        for site in alone or [Site(_context(tls), frozenset())]:
            try:
                _ask_for_certificates(site.context, tls.client_ca, tls.client)
            except TlsError as error:
                problems += error.problems
                break
    if problems:
        raise TlsError(problems)
    return ServerTls(alone, certificates)


def listeners_tls(listens: Sequence[Listen]) -> Mapping[str, ServerTls]:
    """The contexts of all listeners that have TLS, by `Listen.text`; see `server_tls`. Dates are not looked at.

    Raises:
        TlsError: The first listener's problems.
    """
    return {listen.text: server_tls(listen.tls) for listen in listens if listen.tls is not None}


def _context(tls: Tls) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = min(_VERSIONS[version] for version in tls.versions)
    context.maximum_version = max(_VERSIONS[version] for version in tls.versions)
    try:
        context.set_ciphers(tls.ciphers)
    except ssl.SSLError:
        pass  # `_cipher_problems` has said so
    # Compression leaks secrets (CRIME), renegotiation is work that a client may ask for without end.
    context.options |= (
        ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION | ssl.OP_CIPHER_SERVER_PREFERENCE | ssl.OP_SINGLE_ECDH_USE
    )
    context.set_alpn_protocols(_ALPN)
    return context


def _cipher_problems(tls: Tls) -> Iterator[Problem]:
    """OpenSSL passes over what it does not know in a list of ciphers; a slip would go unnoticed."""
    for word in re.split(r"[:, ]+", tls.ciphers):
        name = word.lstrip("!-+")
        if not name or name.startswith("@"):
            continue
        try:
            ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers(name + ":@SECLEVEL=0")
        except ssl.SSLError:
            hint = " (those of TLS 1.3 cannot be chosen)" if name.startswith("TLS_") else ""
            yield Problem("ciphers", f"OpenSSL knows no cipher {name!r}{hint}; `openssl ciphers -v` lists them")
            return
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).set_ciphers(tls.ciphers)
    except ssl.SSLError:
        yield Problem("ciphers", f"nothing is left of {tls.ciphers!r}; leave it out for the default")


class _EncryptedKey(Exception):
    """A password would be needed, and nobody is there to type it."""


def _no_password() -> str:
    raise _EncryptedKey


def _load(context: ssl.SSLContext, file: str, key: str) -> None:
    """Gives the context a certificate with its key. Raises TlsError."""
    key_setting = "certificate" if key == file else "key"
    if _CERTIFICATE not in _read("certificate", file):
        raise TlsError(
            [
                Problem(
                    "certificate",
                    f"{file} holds no certificate in PEM form (it would begin with {_CERTIFICATE.decode()}); `openssl"
                    " x509 -inform der -in FILE` converts one",
                )
            ]
        )
    text = _read(key_setting, key)
    encrypted = Problem(
        key_setting,
        f"the private key in {key} is encrypted, and nobody is there to type its password; `openssl pkey -in {key} -out"
        " FILE` decrypts it",
    )
    if _ENCRYPTED.search(text):
        raise TlsError([encrypted])
    if not _KEY.search(text):
        hint = "; name its file in key" if key == file else ""
        raise TlsError([Problem(key_setting, f"{key} holds no private key in PEM form{hint}")])
    try:
        context.load_cert_chain(file, key, _no_password)
    except _EncryptedKey:
        raise TlsError([encrypted]) from None
    except ssl.SSLError as error:
        if error.reason in ("KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"):
            whose = (
                "its first certificate; that must be the site's own" if key == file else f"the certificate in {file}"
            )
            what = f"the private key in {key} does not belong to {whose}"
            raise TlsError([Problem(key_setting, what)]) from None
        where = file if key == file else f"{file} with {key}"
        raise TlsError([Problem("certificate", f"{where} cannot be used: {_explain(error)}")]) from None


def _read(setting: str, file: str) -> bytes:
    try:
        with open(file, "rb") as stream:
            return stream.read(1 << 20)
    except OSError as error:
        hint = "; start or check as root" if isinstance(error, PermissionError) else ""
        raise TlsError([Problem(setting, f"{file} cannot be read: {error.strerror}{hint}")]) from None


def _explain(error: ssl.SSLError) -> str:
    reason = error.reason or ""
    if not reason and "PEM lib" in str(error):
        return "it is damaged, or cut off in the middle"
    return _HINTS.get(reason) or reason.replace("_", " ").lower() or str(error)


def _rehearse(context: ssl.SSLContext, file: str, version: ssl.TLSVersion) -> Mapping[str, Any]:
    """A whole handshake in memory; returns what the certificate says, as `ssl.SSLSocket.getpeercert` has it.

    The client trusts what is in the certificate's file, and nothing else. Raises TlsError.
    """
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.minimum_version = client.maximum_version = version
    client.set_ciphers("ALL:@SECLEVEL=0")
    client.verify_flags |= ssl.VerifyFlags.VERIFY_X509_PARTIAL_CHAIN | _NO_CHECK_TIME
    client.load_verify_locations(file)
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server)
    other = context.wrap_bio(to_server, to_client, server_side=True)
    unfinished = [one, other]
    try:
        # Three flights at most; a fourth round would mean that both wait for each other.
        for _ in range(4):
            for side in list(unfinished):
                try:
                    side.do_handshake()
                    unfinished.remove(side)
                except ssl.SSLWantReadError:
                    pass
        said = one.getpeercert()
    except (ssl.SSLError, ValueError) as error:
        if isinstance(error, ssl.SSLCertVerificationError):
            why = f"clients would refuse it: {error.verify_message}"
        else:
            why = _explain(error) if isinstance(error, ssl.SSLError) else str(error)
        number = version.name.removeprefix("TLSv").replace("_", ".")
        raise TlsError([Problem("certificate", f"{file} cannot serve TLS {number}: {why}")]) from None
    assert not unfinished and said, "a handshake in memory neither failed nor ended"
    return said


def _certificate(file: str, said: Mapping[str, Any]) -> Certificate:
    names = frozenset(value.lower() for kind, value in said.get("subjectAltName", ()) if kind == "DNS")
    begins, ends = (float(ssl.cert_time_to_seconds(said[key])) for key in ("notBefore", "notAfter"))
    return Certificate(file, names, begins, ends)


def _date_problems(certificate: Certificate, now: float) -> Iterator[Problem]:
    if certificate.ends <= now:
        what = f"{certificate.file} expired on {day(certificate.ends)}; renew it, or look at the machine's clock"
        yield Problem("certificate", what, dated=True)
    elif certificate.begins > now:
        what = f"{certificate.file} is valid from {day(certificate.begins)} on only; look at the machine's clock"
        yield Problem("certificate", what, dated=True)


def day(when: float) -> str:
    """A date with its time, as ``2026-01-31 12:00 UTC``."""
    return time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime(when))


def _ask_for_certificates(context: ssl.SSLContext, file: str, client: str) -> None:
    if _CERTIFICATE not in _read("client_ca", file):
        raise TlsError([Problem("client_ca", f"{file} holds no certificate in PEM form; name the authorities' own")])
    try:
        context.load_verify_locations(file)
    except ssl.SSLError as error:
        raise TlsError([Problem("client_ca", f"{file} cannot be used: {_explain(error)}")]) from None
    context.verify_mode = ssl.CERT_REQUIRED if client == "required" else ssl.CERT_OPTIONAL


def described(session: Session) -> dict[str, str]:
    """What a handshake has settled, in the words of Apache's mod_ssl, as WSGI wants text (PEP 3333: latin-1).

    Raises:
        OSError, ValueError: The client's certificate cannot be read.
    """
    cipher = session.cipher()
    told = {
        "HTTPS": "on",
        "SSL_PROTOCOL": session.version() or "",
        "SSL_CIPHER": cipher[0] if cipher else "",
        "SSL_TLS_SNI": session.sni,
        "SSL_SESSION_RESUMED": "Resumed" if session.session_reused else "Initial",
        "SSL_CLIENT_VERIFY": "NONE",
    }
    plain = session.getpeercert() if session.context.verify_mode is not ssl.CERT_NONE else None
    if plain:
        told |= dict(_client(plain))
        der = session.getpeercert(binary_form=True)
        assert der is not None
        told["SSL_CLIENT_CERT"] = ssl.DER_cert_to_PEM_cert(der)
    return told


def _client(plain: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    yield "SSL_CLIENT_VERIFY", "SUCCESS"
    for kind, name in (("subject", "SSL_CLIENT_S_DN"), ("issuer", "SSL_CLIENT_I_DN")):
        parts = [pair for part in plain.get(kind, ()) for pair in part]
        yield name, _latin(distinguished_name(plain.get(kind, ())))
        for long, value in parts:
            if long == "commonName":
                yield f"{name}_CN", _latin(value)
            elif long == "emailAddress":
                yield f"{name}_Email", _latin(value)
            elif long == "organizationName":
                yield f"{name}_O", _latin(value)
            elif long == "organizationalUnitName":
                yield f"{name}_OU", _latin(value)
    yield "SSL_CLIENT_M_SERIAL", str(plain.get("serialNumber", ""))
    yield "SSL_CLIENT_V_START", str(plain.get("notBefore", ""))
    yield "SSL_CLIENT_V_END", str(plain.get("notAfter", ""))
    for kind, name in (("DNS", "DNS"), ("email", "Email")):
        values = [value for what, value in plain.get("subjectAltName", ()) if what == kind]
        for number, value in enumerate(values):
            yield f"SSL_CLIENT_SAN_{name}_{number}", _latin(value)


def _latin(text: str) -> str:
    return text.encode("utf-8", "surrogateescape").decode("latin-1")


#: OpenSSL's long names, which `getpeercert` uses -> the short ones of RFC 4514, 3, and mod_ssl.
_SHORT = {
    "commonName": "CN",
    "countryName": "C",
    "domainComponent": "DC",
    "givenName": "GN",
    "initials": "initials",
    "localityName": "L",
    "organizationName": "O",
    "organizationalUnitName": "OU",
    "stateOrProvinceName": "ST",
    "streetAddress": "street",
    "surname": "SN",
    "userId": "UID",
}


def distinguished_name(parts: Sequence[Sequence[tuple[str, str]]]) -> str:
    """A name as RFC 4514 writes it, the last part first: ``CN=Eve\\, Inc.,O=Example``."""
    return ",".join(
        "+".join(f"{_SHORT.get(key, key)}={_escaped(value)}" for key, value in part) for part in parts[::-1]
    )


def _escaped(value: str) -> str:
    """RFC 4514, 2.4."""
    text = re.sub(r'([,+"\\<>;])', r"\\\1", value).replace("\0", "\\00")
    if text[:1] in (" ", "#"):
        text = "\\" + text
    if len(text) > 1 and text.endswith(" "):
        text = text[:-1] + "\\ "
    return text
