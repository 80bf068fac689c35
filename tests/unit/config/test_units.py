"""Scalars: what is read, what is refused, and with which advice."""

# ruff: noqa: E501 - a case and its sentence stand in one line

from __future__ import annotations

import re
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.config.units import (
    Account,
    Address,
    Application,
    Boolean,
    Destination,
    Duration,
    Format,
    Glob,
    Integer,
    Kind,
    Mode,
    Network,
    Path,
    Percent,
    Size,
    UrlPath,
    Word,
    Wrong,
    nearest,
    shown,
)

LEVEL = Word(
    "info", "warning", later=("audit",), foreign={"warn": "warning", "auditd": "audit"}, own="levels of one's own"
)
LOG = Destination("off", "stdout", foreign={"-": "write stdout"})


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Integer(0, 10), "0", 0),
        (Integer(0, 10), "10", 10),
        (Integer(5, 10, zero=True), "0", 0),
        (Duration(), "0", 0.0),
        (Duration(), "0s", 0.0),
        (Duration(), "500ms", 0.5),
        (Duration(), "30s", 30.0),
        (Duration(), "0.1s", 0.1),
        (Duration(), "5m", 300.0),
        (Duration(), "1.5h", 5400.0),
        (Duration(), "0.1h", 360.0),
        (Duration(), "1d", 86400.0),
        (Size(), "0", 0),
        (Size(), "8192", 8192),
        (Size(), "16K", 16384),
        (Size(), "16k", 16384),
        (Size(), "1G", 1 << 30),
        (Percent(), "10%", 0.1),
        (Percent(), "0", 0.0),
        (Percent(), "2.5%", 0.025),
        (Percent(), "100%", 1.0),
        (Mode(), "0660", 0o660),
        (Mode(), "660", 0o660),
        (Mode(), "0o660", 0o660),
        (Mode(), "0", 0),
        (Boolean(), "true", True),
        (Boolean(), "False", False),
        (LEVEL, "info", "info"),
        (LOG, "off", "off"),
        (LOG, "/var/log/a", "/var/log/a"),
        (LOG, "access.log", "/base/access.log"),
        (LOG, "./stderr", "/base/stderr"),
        (Format(), "json", "json"),
        (Format(), '%h "%r"', '%h "%r"'),
        (Path(), "x/../y", "/base/y"),
        (Path(folder=True), "/srv/x/", "/srv/x"),
        (Glob(), "conf.d/*.yaml", "conf.d/*.yaml"),
        (Network(), "unix", "unix"),
        (Network(), "127.0.0.1", "127.0.0.1"),
        (Network(), "127.0.0.1/32", "127.0.0.1"),
        (Network(), "10.0.0.0/8", "10.0.0.0/8"),
        (Network(), "0.0.0.0/0", "0.0.0.0/0"),
        (Network(), "2001:DB8:0::/32", "2001:db8::/32"),
        (Network(), "::1/128", "::1"),
        (Network(), "::/0", "::/0"),
        (UrlPath(), "/", "/"),
        (UrlPath(), "/a?b=%20", "/a?b=%20"),
        (Application(), "a.b:c.d", "a.b:c.d"),
        (Application(), "mysite.wsgi", "mysite.wsgi:application"),
        (Account("user name", "x"), "www-data", "www-data"),
        (Account("user name", "x"), "1000", "1000"),
        (Address(), "127.0.0.1:80", "127.0.0.1:80"),
        (Address(), "0.0.0.0:0", "0.0.0.0:0"),
        (Address(), "[0::0001]:80", "[::1]:80"),
        (Address(), "[FE80::1%eth0]:80", "[fe80::1%eth0]:80"),
        (Address(), "unix:/run//x.sock", "unix:/run/x.sock"),
        (Address(), "systemd:web", "systemd:web"),
    ],
)
def test_read(kind: Kind, text: str, value: Any) -> None:
    read = kind.read(text, "/base")
    assert read == value and type(read) is type(value)
    assert kind.read(kind.write(read), "/base") == read


@pytest.mark.parametrize(
    ("kind", "text", "sentence"),
    [
        (Integer(1, 10), "0", "0 is too small; at least 1"),
        (Integer(5, 10, zero=True), "3", "3 is too small; at least 5, or 0"),
        (Integer(1, 10), "11", "11 is too large; at most 10"),
        (Integer(1, 10), "1_0", "'1_0' is not a whole number; write 10"),
        (Integer(1, 10), "+5", "'+5' is not a whole number; write 5"),
        (Integer(1, 10), "-5", "'-5' is not a whole number; at least 1"),
        (Integer(1, 10), "5.0", "'5.0' is not a whole number; write 5"),
        (Integer(1, 10), "010", "'010' is not a whole number; write 10"),
        (Integer(1, 10), "0x10", "'0x10' is not a whole number; write digits only"),
        (Integer(1, 10), "1e3", "'1e3' is not a whole number; write digits only"),
        (Integer(1, 10), "2k", "'2k' is not a whole number; write 2000"),
        (Integer(1, 10), "many", "'many' is not a whole number; write digits only"),
        (Integer(1, 10), "٣", "'٣' is not a whole number; write digits only"),
        (Integer(1, 10), "9" * 30, f"'{'9' * 30}' is not a whole number; at most 10"),
        (Duration(), "30", "'30' is not a duration; its unit is missing: write 30s"),
        (Duration(), "30 seconds", "'30 seconds' is not a duration; write 30s"),
        (Duration(), "5 Min", "'5 Min' is not a duration; write 5m"),
        (Duration(), "1h30m", "'1h30m' is not a duration; write one number and one unit: 90m"),
        (Duration(), "1 hour, 30 minutes", "'1 hour, 30 minutes' is not a duration; write one number and one unit: 90m"),
        (Duration(), "off", "'off' is not a duration; write 0 for no limit"),
        (Duration(), "-1s", "'-1s' is not a duration; write for example 30s, 5m or 500ms"),
        (Duration(), "0.5ms", "'0.5ms' is not a duration; write for example 30s, 5m or 500ms"),
        (Duration(1.0), "10ms", "10ms is too small; at least 1s, or 0"),
        (Duration(), "8d", "8d is too large; at most 7d"),
        (Size(), "16 KB", "'16 KB' is not a size; write 16K"),
        (Size(), "1GiB", "'1GiB' is not a size; write 1G"),
        (Size(), "1.5G", "'1.5G' is not a size; write 1536M"),
        (Size(), "1_000", "'1_000' is not a size; write 1000"),
        (Size(), "unlimited", "'unlimited' is not a size; write 0 for no limit"),
        (Size(), "big", "'big' is not a size; write for example 8192, 16K or 1G"),
        (Size(1 << 20), "1K", "1K is too small; at least 1M, or 0"),
        (Percent(), "10", "'10' is not a percentage; write 10%"),
        (Percent(), "0.1", "'0.1' is not a percentage; write 10%"),
        (Percent(), "10 percent", "'10 percent' is not a percentage; write 10%"),
        (Percent(), "101%", "101% is too large; at most 100%"),
        (Percent(), "x", "'x' is not a percentage; write for example 10%"),
        (Mode(), "0880", "'0880' is not an octal mode; write three digits from 0 to 7, such as 0660"),
        (Mode(), "rw-rw----", "'rw-rw----' is not an octal mode; write 0660"),
        (Mode(), "0x1b0", "'0x1b0' is not an octal mode; write three digits from 0 to 7, such as 0660"),
        (Mode(), "4755", "'4755' sets more than permissions; at most 0777"),
        (Boolean(), "yes", "'yes' is neither true nor false; write true"),
        (Boolean(), "off", "'off' is neither true nor false; write false"),
        (Boolean(), "ture", "'ture' is neither true nor false; write true"),
        (Boolean(), "maybe", "'maybe' is neither true nor false; write true or false"),
        (LEVEL, "warn", "'warn' is unknown; did you mean warning?"),
        (LEVEL, "wraning", "'wraning' is unknown; did you mean warning?"),
        (LEVEL, "audit", "'audit' does not exist in this version yet; it has info or warning"),
        (LEVEL, "auditd", "'auditd' would be audit here, which does not exist in this version yet; it has info or warning"),
        (LEVEL, "audti", "'audti' is unknown; audit, if that was meant, does not exist in this version yet"),
        (LEVEL, "a:b", "levels of one's own ('a:b') do not exist in this version yet; it has info or warning"),
        (LEVEL, "x", "'x' is unknown; write info or warning"),
        (LOG, "-", "'-' is unknown; write stdout"),
        (LOG, "stdot", "'stdot' is unknown; did you mean stdout? A file would be ./stdot"),
        (LOG, "here", "'here' is unknown; write off, stdout or a file's path"),
        (LOG, "|rotatelogs x", "'|rotatelogs x' is a pipe to a program, which does not exist here; write off, stdout or a file's path"),
        (LOG, "syslog:server=1.2.3.4", "'syslog:server=1.2.3.4' is neither a word nor a file; write off, stdout or a file's path"),
        (LOG, "/var/log/", "'/var/log/' names a folder; write a file's path"),
        (Format(), "combind", "'combind' has no %-directive; did you mean combined?"),
        (Format(), "%h\n%r", r"'%h\n%r' has more than one line; a log record is one line"),
        (Path(), "", "an empty text is not a path; write a file's path"),
        (Path(), "~/x", "'~/x': ~ is not expanded, for it would be another folder for root; write the path in full"),
        (Path(), "$HOME/x", "'$HOME/x': variables are not expanded here; write the path in full"),
        (Path(), " /x", "' /x' begins or ends with a space; remove it"),
        (Path(), "/x" * 3000, f"'{('/x' * 30)[:59]}…' is longer than a path can be (PATH_MAX, 4096 bytes)"),
        (Path(socket=True), "/" + "x" * 107, f"'/{'x' * 58}…' is too long for a unix socket; at most 107 bytes"),
        (Glob(), "**/*.yaml", "'**/*.yaml': ** is not understood, folders are not searched; name each folder"),
        (Network(), "10.0.0.1/8", "'10.0.0.1/8' has bits set behind the first 8; did you mean 10.0.0.0/8, or 10.0.0.1 alone?"),
        (Network(), "10.0.0.0/33", "'10.0.0.0/33': an IPv4 address has 32 bits; write at most 10.0.0.0/32"),
        (Network(), "10.0.0.0/255.0.0.0", "'10.0.0.0/255.0.0.0' does not end in a number of bits; did you mean 10.0.0.0/8?"),
        (Network(), "10.0.0.0/", "'10.0.0.0/' does not end in a number of bits; write for example 10.0.0.0/32"),
        (Network(), "10.0", "'10.0' is not a network; did you mean 10.0.0.0/16?"),
        (Network(), "10.0.0.256", "'10.0.0.256' is not a network; an IPv4 address is four numbers up to 255, no leading zeros"),
        (Network(), "10.0.0.01", "'10.0.0.01' is not a network; an IPv4 address is four numbers up to 255, no leading zeros"),
        (Network(), "::ffff:10.0.0.0/104", "'::ffff:10.0.0.0/104' is IPv4 in IPv6 clothes; write 10.0.0.0/8"),
        (Network(), "fe80::1%eth0", "'fe80::1%eth0' has a zone, and networks have none; write 'fe80::1'"),
        (Network(), "[::1]", "'[::1]' is not a network; write it without brackets: ::1"),
        (Network(), "127.0.0.1:80", "'127.0.0.1:80' is not a network; a port does not matter here; write 127.0.0.1"),
        (Network(), "localhost", "'localhost' is not a network; write 127.0.0.1, and ::1 beside it if need be"),
        (Network(), "proxy.example", "'proxy.example' is not a network; names are not looked up here; write the numeric address, or unix"),
        (Network(), "*", "'*' is not a network; everybody is 0.0.0.0/0 and ::/0: then any client may say that it is another"),
        (Network(), "unix:/x", "'unix:/x' is not a network; for peers on a unix socket write unix"),
        (Network(), "127.0.0.1,::1", "'127.0.0.1,::1' is not a network; write a list: [127.0.0.1, 10.0.0.0/8]"),
        (Network(), "10.0.0.1-10.0.0.9", "'10.0.0.1-10.0.0.9' is not a network; a range is written as networks, such as 10.0.0.0/24"),
        (Network(), "false", "'false' is not a network; for none, write an empty list: []"),
        (UrlPath(), "health", "'health' does not begin with /; write /health"),
        (UrlPath(), "http://x:80/a", "'http://x:80/a' is a whole address; write its path: /a"),
        (UrlPath(), "/a b", "'/a b' is not a request path; write for example /health, with other characters as %XX"),
        (Application(), "app.py", "'app.py' is a file; write the module's name: app:application"),
        (Application(), "/srv/site/app.py", "'/srv/site/app.py' is not module:attribute; name the module, not its file: app: app:application, directory: /srv/site"),
        (Application(), "a:create_app(1)", "'a:create_app(1)' is not module:attribute; a factory is called without arguments: write it as name()"),
        (Application(), "my-site:app", "'my-site:app' is not module:attribute; a module's name has no hyphen"),
        (Application(), "a:", "'a:' is not module:attribute; write for example mysite.wsgi:application"),
        (Account("user name", "www-data"), "a b", "'a b' is not a user name; write for example www-data"),
        (Account("user name", "www-data"), "", "an empty text is not a user name; write for example www-data"),
        (Address(), "*:80", "'*:80' does not say on which address; write 127.0.0.1:80 for this machine alone, or [\"0.0.0.0:80\", \"[::]:80\"] for everybody"),
        (Address(), ":80", "':80' does not say on which address; write 127.0.0.1:80 for this machine alone, or [\"0.0.0.0:80\", \"[::]:80\"] for everybody"),
        (Address(), "80", "'80' does not say on which address; write 127.0.0.1:80 for this machine alone, or [\"0.0.0.0:80\", \"[::]:80\"] for everybody"),
        (Address(), "localhost:80", "'localhost:80': names are not looked up here; write 127.0.0.1:80"),
        (Address(), "example.org:80", "'example.org:80': names are not looked up here; write the numeric address of 'example.org'"),
        (Address(), "1.2.3.4", "'1.2.3.4' is not an address; its port is missing: write 1.2.3.4:8080"),
        (Address(), "::1", "'::1' is not an address; its port is missing: write [::1]:8080"),
        (Address(), "[::1]", "'[::1]' is not an address; its port is missing: write [::1]:8080"),
        (Address(), "::1:8080", "'::1:8080' is not an address; an IPv6 address needs brackets: \"[::1]:8080\""),
        (Address(), "::80", "'::80' is not an address; an IPv6 address needs brackets: \"[::]:80\""),
        (Address(), "1.2.3.4:http", "'1.2.3.4:http' is not an address; its port is not a number; write for example 127.0.0.1:8080"),
        (Address(), "1.2.3.4:65536", "'1.2.3.4:65536': there is no port 65536; at most 65535"),
        (Address(), "1.2.3.4:080", "'1.2.3.4:080': port 080 begins with 0; write 80"),
        (Address(), "1.2.3:80", "'1.2.3:80': 1.2.3 is not an IPv4 address: four numbers up to 255, no leading zeros"),
        (Address(), "01.2.3.4:80", "'01.2.3.4:80': 01.2.3.4 is not an IPv4 address: four numbers up to 255, no leading zeros"),
        (Address(), "[1.2.3.4]:80", "'[1.2.3.4]:80': an IPv4 address has no brackets; write 1.2.3.4:80"),
        (Address(), "[::g]:80", "'[::g]:80': '::g' is not an IPv6 address; write for example \"[::1]:80\""),
        (Address(), "[::ffff:1.2.3.4]:80", "'[::ffff:1.2.3.4]:80' is an IPv4 address in IPv6 clothes; write 1.2.3.4:80"),
        (Address(), "http://1.2.3.4:80/", "'http://1.2.3.4:80/' is a URL; write the address alone: 1.2.3.4:80"),
        (Address(), "/run/x.sock", "'/run/x.sock' is a path; for a unix socket write unix:/run/x.sock"),
        (Address(), "unix:x.sock", "'unix:x.sock' is not an absolute path; write unix:/base/x.sock"),
        (Address(), "unix://run/x", "'unix://run/x' has slashes too many; write unix:/run/x"),
        (Address(), "unix:@x", "'unix:@x' is an abstract socket, which anybody may connect to; write unix:/path"),
        (Address(), "unix:", "'unix:' is not an absolute path; write for example unix:/run/preforkd/web.sock"),
        (Address(), "unix:/run/", "'unix:/run/' names a folder; write the socket's own path"),
        (Address(), "systemd:", "'systemd:' names no socket; write systemd: and the FileDescriptorName= of the .socket unit"),
        (Address(), "systemd:a:b", "'systemd:a:b' names no socket; write systemd: and the FileDescriptorName= of the .socket unit"),
        (Address(), "sytemd:80", "'sytemd:80' is not an address; did you mean systemd:?"),
        (Address(), "", "'' is not an address; write for example 127.0.0.1:8080, \"[::1]:8080\", unix:/run/preforkd/web.sock or systemd:web"),
    ],
)  # fmt: skip
def test_wrong(kind: Kind, text: str, sentence: str) -> None:
    with pytest.raises(Wrong) as caught:
        kind.read(text, "/base")
    assert str(caught.value) == sentence


KINDS: list[Kind] = [
    *(Integer(0, 10**9), Integer(7, 10, zero=True), Duration(), Duration(5.0, 10.0), Size(), Size(1024, 4096), Percent(), Mode()),
    *(Boolean(), LEVEL, LOG, Format(), Path(), Path(folder=True), Path(socket=True), Glob(), UrlPath(), Application(), Address(), Network()),
    Account("user name", "www-data"),
]  # fmt: skip

ALPHABET = "0123456789.:/[]%_-+ abcdefhmsTGMKkx~$*'\"\n\x00\u0663\ud800é"


def outcome(kind: Kind, text: str) -> tuple[Any, str]:
    """The value, or the sentence about what is wrong."""
    try:
        return kind.read(text, "/base"), ""
    except Wrong as wrong:
        return None, str(wrong)


@given(st.sampled_from(KINDS), st.text(ALPHABET, max_size=12) | st.text(max_size=30))
def test_any_text_is_read_or_told_in_one_line(kind: Kind, text: str) -> None:
    value, sentence = outcome(kind, text)
    if sentence:
        assert sentence.isprintable() and len(sentence) < 500
    else:
        assert kind.read(kind.write(value), "/base") == value


@given(
    st.sampled_from(KINDS),
    st.from_regex(re.compile(r"[0-9]{1,4}(\.[0-9]{1,2})?(ms|[smhdkKMG%])?", re.ASCII), fullmatch=True),
)
def test_what_is_advised_is_accepted(kind: Kind, text: str) -> None:
    _, sentence = outcome(kind, text)
    if (advice := re.search(r"; (?:its unit is missing: )?write ([^ ]+)$", sentence)) is not None:
        _, second = outcome(kind, advice[1])
        # The advice mends the form; the bounds have a sentence of their own.
        assert not second or re.search("too small|too large", second)


@given(st.integers(0, 7 * 86_400_000))
def test_durations_keep_their_milliseconds(thousandths: int) -> None:
    assert Duration().read(Duration().write(thousandths / 1000)) == thousandths / 1000


@given(st.integers(0, 1 << 50))
def test_sizes_keep_their_bytes(size: int) -> None:
    assert Size().read(Size().write(size)) == size


@given(st.text())
def test_shown_is_printable_and_short(text: str) -> None:
    assert shown(text).isprintable() and len(shown(text)) <= 62 * 10


def test_nearest() -> None:
    assert nearest("Lisen", ["listen", "limits"]) == "listen"
    assert nearest("x" * 100_000, ["listen"]) == ""
