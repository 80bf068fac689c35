"""Contexts from files: what is wrong with them is told by name, and what is right chooses the right certificate."""

from __future__ import annotations

import os
import re
import ssl
import time
from pathlib import Path

import pytest

from preforkd.config.settings import Tls
from preforkd.tls import EXPIRES_SOON, ServerTls, Session, TlsError, distinguished_name, listeners_tls, server_tls
from tests.support.certificates import Authority, listen_with


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


def tls(*certificates: Path, **more: object) -> Tls:
    return Tls(certificate=tuple(map(str, certificates)), **more)  # type: ignore[arg-type]


def problems(settings: Tls, now: float | None = None) -> list[str]:
    with pytest.raises(TlsError) as caught:
        server_tls(settings, now)
    return [f"{problem.key}: {problem.what}" for problem in caught.value.problems]


def shake(
    server: ServerTls, client: ssl.SSLContext, name: str | None = None, rounds: int = 4
) -> tuple[Session, ssl.SSLObject]:
    """A handshake in memory."""
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = server.session(up, down)
    theirs = client.wrap_bio(down, up, server_hostname=name)
    sides: list[ssl.SSLObject] = [theirs, ours]
    for _ in range(rounds):
        for side in list(sides):
            try:
                side.do_handshake()
                sides.remove(side)
            except ssl.SSLWantReadError:
                pass
    assert not sides
    return ours, theirs


# --- what is wrong ---------------------------------------------------------------------------------------------------


def test_a_good_certificate_with_its_key_in_one_file_or_in_two(authority: Authority) -> None:
    both = authority.issue("one.test")
    certificate, key = authority.split(both)
    for settings in (tls(both), tls(certificate, key=(str(key),))):
        (said,) = server_tls(settings, time.time()).certificates
        assert said.names == {"one.test"}
        assert EXPIRES_SOON < said.ends - time.time() <= 30 * 86400


def test_files_that_cannot_be_read_are_named(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.split(authority.issue("read.test"))
    missing = tmp_path / "missing.pem"
    assert problems(tls(missing)) == [f"certificate: {missing} cannot be read: No such file or directory"]
    assert problems(tls(certificate, key=(str(missing),))) == [
        f"key: {missing} cannot be read: No such file or directory"
    ]
    (wrong,) = problems(tls(certificate, key=(str(key),), client_ca=str(missing)))
    assert wrong == f"client_ca: {missing} cannot be read: No such file or directory"


def test_a_key_that_nobody_may_read_names_a_way_out(authority: Authority) -> None:
    if os.geteuid() == 0:
        pid = os.fork()
        if pid == 0:
            os.setuid(65534)
            with pytest.raises(TlsError) as caught:
                server_tls(tls(Path("/etc/shadow")))
            os._exit("start or check as root" not in str(caught.value))
        assert os.waitpid(pid, 0)[1] == 0
    else:
        assert "start or check as root" in problems(tls(Path("/etc/shadow")))[0]


def test_files_that_hold_something_else(authority: Authority, tmp_path: Path) -> None:
    certificate, key = authority.split(authority.issue("else.test"))
    (wrong,) = problems(tls(key))
    assert "else.test.key holds no certificate in PEM form" in wrong and "openssl x509 -inform der" in wrong
    (wrong,) = problems(tls(certificate))
    assert wrong == f"certificate: {certificate} holds no private key in PEM form; name its file in key"
    (wrong,) = problems(tls(certificate, key=(str(certificate),)))
    assert wrong.startswith(f"certificate: {certificate} holds no private key")
    (wrong,) = problems(tls(certificate, key=(str(key),), client_ca=str(key)))
    assert "client_ca" in wrong and "holds no certificate" in wrong
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("-----BEGIN CERTIFICATE-----\nrubbish\n-----END CERTIFICATE-----\n" + key.read_text())
    (wrong,) = problems(tls(rubbish))
    assert f"{rubbish} cannot be used" in wrong


def test_a_key_of_another_certificate(authority: Authority) -> None:
    first, first_key = authority.split(authority.issue("first.test"))
    _, other_key = authority.split(authority.issue("other.test"))
    assert problems(tls(first, key=(str(other_key),))) == [
        f"key: the private key in {other_key} does not belong to the certificate in {first}"
    ]
    # One error for each, not only for the first.
    assert len(problems(tls(first, first, key=(str(other_key), str(other_key))))) == 2
    server_tls(tls(first, key=(str(first_key),)))
    _, rsa_key = authority.split(authority.issue("rsa.test", rsa=True))
    (wrong,) = problems(tls(first, key=(str(rsa_key),)))
    assert "does not belong" in wrong


def test_an_encrypted_key_asks_nobody(authority: Authority) -> None:
    certificate, key = authority.split(authority.issue("locked.test"))
    locked = authority.encrypted(key)
    (wrong,) = problems(tls(certificate, key=(str(locked),)))
    assert f"the private key in {locked} is encrypted" in wrong and f"openssl pkey -in {locked}" in wrong


def test_dates_are_judged_where_they_are_asked_for(authority: Authority) -> None:
    over = authority.issue("over.test", days=-1)
    (wrong,) = problems(tls(over), time.time())
    assert re.fullmatch(
        rf"certificate: {re.escape(str(over))} expired on \d{{4}}-\d\d-\d\d \d\d:\d\d UTC; renew it.*", wrong
    )
    early = authority.issue("early.test", days=90)
    (wrong,) = problems(tls(early), time.time())
    assert "is valid from" in wrong and "clock" in wrong
    # A service that starts serves all the same, and the browsers complain.
    for file in (over, early):
        assert server_tls(tls(file)).certificates[0].file == str(file)
    with pytest.raises(TlsError) as caught:
        server_tls(tls(over), time.time())
    assert caught.value.problems[0].dated


def test_ciphers_that_do_not_exist_or_do_not_fit(authority: Authority) -> None:
    ecdsa = authority.issue("ec.test")
    (wrong,) = problems(tls(ecdsa, ciphers="ECDHE+AESGCM:ECDHE-NONSENSE"))
    assert wrong == "ciphers: OpenSSL knows no cipher 'ECDHE-NONSENSE'; `openssl ciphers -v` lists them"
    (wrong,) = problems(tls(ecdsa, ciphers="TLS_AES_128_GCM_SHA256"))
    assert "those of TLS 1.3 cannot be chosen" in wrong
    (wrong,) = problems(tls(ecdsa, ciphers="ECDHE-RSA-AES128-GCM-SHA256"))
    assert f"{ecdsa} cannot serve TLS 1.2" in wrong and "ECDHE-RSA is for RSA" in wrong
    (wrong,) = problems(tls(ecdsa, ciphers="ECDHE+AESGCM:!ALL"))
    assert "nothing is left" in wrong
    server_tls(tls(ecdsa, ciphers="ECDHE-RSA-AES128-GCM-SHA256", versions=("1.3",)))


# --- what is right ---------------------------------------------------------------------------------------------------


def test_versions_ciphers_and_options(authority: Authority) -> None:
    server = server_tls(tls(authority.issue("v.test")))
    ours, theirs = shake(server, authority.client(), "v.test")
    assert ours.version() == "TLSv1.3" and theirs.selected_alpn_protocol() == "http/1.1"
    ours, _ = shake(server, authority.client(version="TLSv1_2"), "v.test")
    cipher = ours.cipher()
    assert ours.version() == "TLSv1.2" and cipher is not None and cipher[0].startswith("ECDHE-ECDSA-")
    assert ours.compression() is None
    context = ours.context
    assert context.options & ssl.OP_NO_RENEGOTIATION and context.options & ssl.OP_CIPHER_SERVER_PREFERENCE
    names = [cipher["name"] for cipher in context.get_ciphers()]
    assert all(name.startswith(("ECDHE-", "TLS_")) and ("GCM" in name or "CHACHA20" in name) for name in names), names
    for version, other in (("1.3", "TLSv1_2"), ("1.2", "TLSv1_3")):
        one = server_tls(tls(authority.issue("v.test"), versions=(version,)))
        with pytest.raises(ssl.SSLError):
            shake(one, authority.client(version=other), "v.test")


def test_the_certificate_follows_the_name(authority: Authority) -> None:
    first, second = authority.issue("a.test", "*.wild.test"), authority.issue("b.test", "in.wild.test")
    server = server_tls(tls(first, second))

    def shown(name: str) -> set[str]:
        client = authority.client()
        client.check_hostname = False
        ours, theirs = shake(server, client, name)
        assert ours.sni == name.lower()
        said = theirs.getpeercert()
        assert said is not None
        return {str(pair[1]) for pair in said["subjectAltName"]}

    one, two = {"a.test", "*.wild.test"}, {"b.test", "in.wild.test"}
    assert shown("a.test") == shown("x.wild.test") == shown("A.Test") == one
    assert shown("b.test") == shown("in.wild.test") == two  # the whole name before the wildcard
    # What no certificate is for gets the first one: one label for a star, and not none.
    assert shown("unknown.test") == shown("y.x.wild.test") == shown("wild.test") == one


def test_without_sni_the_first_certificate_is_shown(authority: Authority) -> None:
    server = server_tls(tls(authority.issue("a.test"), authority.issue("b.test")))
    client = authority.client()
    client.check_hostname = False
    ours, theirs = shake(server, client)
    said = theirs.getpeercert()
    assert ours.sni == "" and said is not None and said["subjectAltName"] == (("DNS", "a.test"),)


def test_two_kinds_of_key_for_the_same_name(authority: Authority) -> None:
    server = server_tls(tls(authority.issue("k.test", rsa=True, file="rsa"), authority.issue("k.test", file="ec")))
    for kind in ("RSA", "ECDSA"):
        client = authority.client(version="TLSv1_2")
        client.set_ciphers(f"ECDHE-{kind}-AES128-GCM-SHA256")
        ours, _ = shake(server, client, "k.test")
        cipher = ours.cipher()
        assert cipher is not None and kind in cipher[0]


@pytest.mark.parametrize(
    ("sni", "host", "misdirected"),
    [
        ("a.test", b"a.test", False),
        ("a.test", b"A.TEST.:8443", False),
        ("a.test", b"b.test", True),
        ("a.test", b"b.test:443", True),
        ("a.test", b"x.wild.test", False),
        ("b.test", b"x.wild.test", True),
        ("x.wild.test", b"a.test", False),
        ("unknown.test", b"b.test", True),
        ("a.test", b"unknown.test", False),
        ("a.test", b"127.0.0.1:8443", False),
        ("a.test", b"[::1]:8443", False),
        ("a.test", b"", False),
        (None, b"b.test", False),
    ],
)
def test_who_is_at_the_wrong_door(authority: Authority, sni: str | None, host: bytes, misdirected: bool) -> None:
    server = server_tls(tls(authority.issue("a.test", "*.wild.test"), authority.issue("b.test")))
    client = authority.client()
    client.check_hostname = False
    ours, _ = shake(server, client, sni)
    assert server.misdirected(ours, host) is misdirected


def test_only_listeners_with_tls_get_a_context(authority: Authority) -> None:
    one = listen_with(authority.issue("a.test"))
    plain = type(one).of("127.0.0.1:80")
    assert list(listeners_tls([plain, one])) == ["127.0.0.1:443"]


def test_a_distinguished_name_as_rfc_4514_writes_it() -> None:
    name = (
        (("countryName", "DE"),),
        (("organizationName", "Eve, Inc."),),
        (("commonName", " #x"), ("emailAddress", "e@x")),
    )
    assert distinguished_name(name) == "CN=\\ #x+emailAddress=e@x,O=Eve\\, Inc.,C=DE"
    assert distinguished_name(((("commonName", "a "),), (("commonName", "#b"),))) == "CN=\\#b,CN=a\\ "
