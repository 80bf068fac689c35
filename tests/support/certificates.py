"""Certificates made by the tests, and clients that look at them.

By trustme, which the people of Trio keep for just this: two calls make an authority and a certificate that today's
OpenSSL accepts, and its one need, cryptography, reads and encrypts keys as well.
"""

from __future__ import annotations

import datetime
import ssl
from pathlib import Path

import trustme
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from preforkd.config import Listen
from preforkd.config.settings import Tls


class Authority:
    """An authority with its files in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.ca = trustme.CA()
        self.file = folder / "ca.pem"
        self.ca.cert_pem.write_to_path(str(self.file))

    def issue(
        self,
        *names: str,
        file: str = "",
        common_name: str | None = None,
        days: float = 30.0,
        rsa: bool = False,
    ) -> Path:
        """A file with a certificate for these names (mail addresses too) and its key; ``days`` from now it ends."""
        ends = datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)
        leaf = self.ca.issue_cert(
            *names,
            common_name=common_name,
            not_before=ends - datetime.timedelta(days=60),
            not_after=ends,
            key_type=trustme.KeyType.RSA if rsa else trustme.KeyType.ECDSA,
        )
        path = self.folder / (file or f"{names[0].replace('*', 'star')}.pem")
        aside = path.with_suffix(".new")
        leaf.private_key_and_cert_chain_pem.write_to_path(str(aside))
        aside.replace(path)
        return path

    def split(self, both: Path) -> tuple[Path, Path]:
        """The certificate and the key of a file, in two files."""
        text = both.read_text()
        at = text.index("-----BEGIN CERTIFICATE-----")
        certificate, key = both.with_suffix(".crt"), both.with_suffix(".key")
        certificate.write_text(text[at:])
        key.write_text(text[:at])
        return certificate, key

    def encrypted(self, key: Path) -> Path:
        """The same key with a password."""
        loaded = load_pem_private_key(key.read_bytes(), None)
        path = key.with_suffix(".locked")
        path.write_bytes(
            loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"open sesame"))
        )
        return path

    def client(self, certificate: Path | None = None, version: str = "") -> ssl.SSLContext:
        """What a client of this authority's sites uses; with a certificate of its own, with only one version."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(str(self.file))
        context.set_alpn_protocols(["h2", "http/1.1"])
        if certificate is not None:
            context.load_cert_chain(str(certificate))
        if version:
            context.minimum_version = context.maximum_version = getattr(ssl.TLSVersion, version)
        return context


def listen_with(*certificates: Path, address: str = "127.0.0.1:443", **more: object) -> Listen:
    """A listener of the configuration with these certificates."""
    return Listen.of(address, tls=Tls(certificate=tuple(map(str, certificates)), **more))  # type: ignore[arg-type]
