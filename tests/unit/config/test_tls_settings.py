"""`tls` of an address: what may be written, what of it does not fit together, and other programs' words for it."""

from __future__ import annotations

import json

import pytest

from preforkd.config import Config, changes, from_plain, read_text, to_plain
from preforkd.config.schema import schema
from preforkd.config.settings import Tls
from preforkd.errors import ConfigError

PATH = "/etc/preforkd/preforkd.yaml"


def written(tls: str, address: str = "127.0.0.1:443") -> Config:
    return read_text(f'pools: {{web: {{app: a, listen: {{address: "{address}", tls: {tls}}}}}}}', PATH)


def tls_of(config: Config) -> Tls | None:
    return config.pools["web"].listen[0].tls


@pytest.mark.parametrize("address", ["127.0.0.1:443", "[::]:443", "unix:/run/w.sock", "systemd:web"])
def test_any_address_may_speak_tls(address: str) -> None:
    config = written("{certificate: a.pem}", address)
    assert tls_of(config) == Tls(("/etc/preforkd/a.pem",))
    assert from_plain(json.loads(json.dumps(to_plain(config)))) == config


def test_all_that_may_be_written() -> None:
    config = written(
        "{certificate: [a.pem, /b.pem], key: [a.key, /b.key], versions: 1.3, ciphers: 'ECDHE+AESGCM:!SHA1',"
        " client_ca: ca.pem, client: optional}"
    )
    assert tls_of(config) == Tls(
        ("/etc/preforkd/a.pem", "/b.pem"),
        ("/etc/preforkd/a.key", "/b.key"),
        ("1.3",),
        "ECDHE+AESGCM:!SHA1",
        "/etc/preforkd/ca.pem",
        "optional",
    )
    assert from_plain(json.loads(json.dumps(to_plain(config)))) == config
    assert tls_of(written("null")) is None


def test_a_change_is_told_with_what_is_not_the_default() -> None:
    (change,) = changes(written("null"), written("{certificate: /a.pem, versions: [1.3]}"))
    assert str(change) == (
        "pools.web.listen: [127.0.0.1:443] -> [{address: 127.0.0.1:443, tls: {certificate: [/a.pem], versions: [1.3]}}]"
        " (reload)"
    )


@pytest.mark.parametrize(
    ("tls", "mistake"),
    [
        ("", "tls.certificate: is missing; write for example /etc/ssl/site.pem"),
        ("{}", "tls.certificate: is missing"),
        ("{certificate: []}", "tls.certificate: is missing"),
        ("on", "tls: 'on' is one value where a section of settings belongs"),
        ("{certificate: a, key: [b, c]}", "tls.key: there are 2 keys for 1 certificates; write one for each"),
        ("{certificate: [a, b], key: c}", "tls.key: there are 1 keys for 2 certificates"),
        ("{certificate: a, versions: []}", "tls.versions: is missing; write for example [1.2, 1.3]"),
        ("{certificate: a, versions: 1.1}", "that version is broken (RFC 8996); remove it"),
        ("{certificate: a, versions: [SSLv3]}", "that version is broken (RFC 8996); remove it"),
        ("{certificate: a, versions: [TLSv1.3]}", "'TLSv1.3' is unknown; did you mean 1.3?"),
        ("{certificate: a, versions: [TLSv1_2]}", "did you mean 1.2?"),
        ("{certificate: a, versions: 1.4}", "'1.4' is unknown; write 1.2 or 1.3"),
        ("{certificate: a, ciphers: 'a;b'}", "tls.ciphers: 'a;b' is not a list of ciphers"),
        ("{certificate: a, client: optional}", "tls.client: says nothing without client_ca"),
        ("{certificate: a, client_ca: b, client: require}", "did you mean required?"),
        ("{certificate: a, client_ca: b, client: none}", "remove client_ca to ask for no certificate"),
        ("{certificate: a, certfile: b}", "what gunicorn calls certfile is pools.web.listen.tls.certificate here"),
        ("{certificate: a, ssl_ciphers: b}", "what nginx calls ssl_ciphers is pools.web.listen.tls.ciphers here"),
        ("{certificate: a, SSLVerifyClient: b}", "pools.web.listen.tls.client here"),
        ("{certificate: a, ssl-keyfile: b}", "what uvicorn calls ssl_keyfile is pools.web.listen.tls.key here"),
    ],
)
def test_refused_with_what_to_do(tls: str, mistake: str) -> None:
    with pytest.raises(ConfigError) as caught:
        written(tls)
    assert mistake in str(caught.value), caught.value


def test_an_editor_may_take_a_version_for_a_number() -> None:
    pool = schema()["properties"]["pools"]["additionalProperties"]
    one = pool["properties"]["listen"]["anyOf"][0]["anyOf"][1]
    versions = one["properties"]["tls"]["properties"]["versions"]
    assert versions["anyOf"][0]["enum"] == ["1.2", "1.3", 1.2, 1.3]
    assert one["properties"]["tls"]["required"] == ["certificate"]
