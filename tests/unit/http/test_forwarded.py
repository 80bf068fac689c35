"""Who the client is behind proxies, and that nobody can pretend to be somebody else."""

# ruff: noqa: E501 - a case stands in one line

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preforkd.http import Peer, Request, RequestLimits, RequestParser
from preforkd.http.forwarded import _REMEMBERED, Forwarding, Malformed, read_forwarded, read_node

ALL = ("x-forwarded-for", "x-forwarded-proto", "x-forwarded-host", "x-forwarded-port")
TRUSTED = ("10.0.0.0/8", "2001:db8:1::/48", "unix")
#: The proxy that connects to us.
PROXY = Peer("10.0.0.2", 40000, "10.0.0.9", 8080)


def request(*fields: tuple[str, str], host: str = "www.example") -> Request:
    parser = RequestParser(RequestLimits())
    lines = "".join(f"{name}: {value}\r\n" for name, value in fields)
    parser.feed(f"GET / HTTP/1.1\r\nHost: {host}\r\n{lines}\r\n".encode("latin-1"))
    event = parser.next_event()
    assert isinstance(event, Request), event
    return event


def apply(
    peer: Peer, *fields: tuple[str, str], believed: tuple[str, ...] = ALL, host: str = "www.example"
) -> tuple[Peer, str]:
    peer, asked = Forwarding(TRUSTED, believed).apply(request(*fields, host=host), peer)
    return peer, asked.host.decode()


def client(*fields: tuple[str, str], believed: tuple[str, ...] = ALL) -> str:
    return apply(PROXY, *fields, believed=believed)[0].client


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        ("198.51.100.7", "198.51.100.7"),
        ("198.51.100.7:1234", "198.51.100.7"),
        ("2001:DB8::7", "2001:db8::7"),
        ("[2001:db8::7]", "2001:db8::7"),
        ("[2001:db8::7]:443", "2001:db8::7"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        # From the right, past trusted ones.
        ("198.51.100.7, 10.0.0.1", "198.51.100.7"),
        ("198.51.100.7 ,\t10.1.1.1,2001:db8:1::1", "198.51.100.7"),
        # What the client wrote itself is left of its own address.
        ("203.0.113.66, 198.51.100.7", "198.51.100.7"),
        ("127.0.0.1, 198.51.100.7", "198.51.100.7"),
        ("10.0.0.1, 198.51.100.7, 10.0.0.3", "198.51.100.7"),
        ("203.0.113.66, 10.0.0.1, 198.51.100.7", "198.51.100.7"),
        ("rubbish\\\" <script>, 198.51.100.7", "198.51.100.7"),
        ("unknown, 198.51.100.7", "198.51.100.7"),
        ("\xff\xfe, 198.51.100.7", "198.51.100.7"),
        # Only trusted ones: the outermost.
        ("10.0.0.5, 10.0.0.4", "10.0.0.5"),
        # A proxy that does not tell: the last one that is known.
        ("unknown", "10.0.0.2"),
        ("198.51.100.7, unknown, 10.0.0.4", "10.0.0.4"),
        ("198.51.100.7, _hidden", "10.0.0.2"),
        # Empty members mean nothing.
        ("", "10.0.0.2"),
        (", ,", "10.0.0.2"),
        ("203.0.113.66,,198.51.100.7,", "198.51.100.7"),
    ],
)  # fmt: skip
def test_x_forwarded_for(told: str, wanted: str) -> None:
    assert client(("X-Forwarded-For", told)) == wanted


@pytest.mark.parametrize(
    "told", ["rubbish", "198.51.100.7 x", "198.51.100", "198.51.100.07", "198.51.100.7:", "198.51.100.7:65536", "::1::",
             "fe80::1%lo", "[198.51.100.7]", "\"198.51.100.7\"", "198.51.100.7;10.0.0.1", "localhost", "unix", "::1:x",
             "198.51.100.7, rubbish", "198.51.100.7, rubbish, 10.0.0.3", "\xa0198.51.100.7", "²"],
)  # fmt: skip
def test_what_a_trusted_proxy_says_and_nobody_can_read_is_refused(told: str) -> None:
    with pytest.raises(Malformed, match="X-Forwarded-For is malformed") as caught:
        client(("X-Forwarded-For", told))
    assert str(caught.value).isascii() and str(caught.value).isprintable()


def test_lines_are_one_list() -> None:
    lines = [("X-Forwarded-For", "203.0.113.66"), ("x-forwarded-for", "198.51.100.7"), ("X-FORWARDED-FOR", "10.0.0.1")]
    assert client(*lines) == "198.51.100.7"


@pytest.mark.parametrize(
    "peer",
    [Peer("198.51.100.7", 5, "10.0.0.9", 8080), Peer("11.0.0.1", 5, "10.0.0.9", 8080), Peer("::1", 5, "::1", 80)],
)
@pytest.mark.parametrize("believed", [ALL, ("forwarded",)])
def test_nobody_else_is_believed(peer: Peer, believed: tuple[str, ...]) -> None:
    lies = [("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-Proto", "https"), ("X-Forwarded-Host", "evil.example"),
            ("X-Forwarded-Port", "1"), ("Forwarded", "for=1.2.3.4;proto=https;host=evil.example")]  # fmt: skip
    assert apply(peer, *lies, believed=believed) == (peer, "www.example")
    # Neither can they make it fail.
    assert apply(peer, ("X-Forwarded-For", "%"), ("Forwarded", '"'), believed=believed) == (peer, "www.example")


@pytest.mark.parametrize("believed", [ALL, ("forwarded",), ("x-forwarded-for",)])
def test_what_is_not_believed_is_not_looked_at(believed: tuple[str, ...]) -> None:
    lies = {
        "x-forwarded-for": "1.2.3.4", "x-forwarded-proto": "https", "x-forwarded-host": "evil.example",
        "x-forwarded-port": "1", "forwarded": "for=1.2.3.4;proto=https;host=evil.example",
    }  # fmt: skip
    others = [field for field in lies.items() if field[0] not in believed]
    assert apply(PROXY, *others, believed=believed) == (PROXY, "www.example")
    assert apply(PROXY, *((name, '"') for name, _ in others), ("X-Forwarded-Forx", "1.2.3.4"),
                 believed=believed) == (PROXY, "www.example")  # fmt: skip


def test_a_peer_on_a_unix_socket_may_be_trusted() -> None:
    unix = Peer("", 0, "localhost", 80)
    assert apply(unix, ("X-Forwarded-For", "198.51.100.7"))[0].client == "198.51.100.7"
    asked = request(("X-Forwarded-For", "1.2.3.4"))
    assert Forwarding(("10.0.0.0/8",), ALL).apply(asked, unix) == (unix, asked)


def test_a_request_that_may_be_given_again_is_not_changed() -> None:
    asked = request(("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-Host", "other.example"))
    before = asked.host
    _, told = Forwarding(TRUSTED, ALL).apply(asked, PROXY)
    assert (asked.host, told.host) == (before, b"other.example")


@pytest.mark.parametrize(
    ("fields", "secure", "host", "port"),
    [
        ([], False, "www.example", 8080),
        ([("X-Forwarded-Proto", "https")], True, "www.example", 443),
        ([("X-Forwarded-Proto", "HTTP")], False, "www.example", 80),
        ([("X-Forwarded-Proto", "wss")], True, "www.example", 443),
        ([("X-Forwarded-Proto", "")], False, "www.example", 8080),
        ([("X-Forwarded-Host", "shop.example")], False, "shop.example", 80),
        ([("X-Forwarded-Host", "shop.example:8443"), ("X-Forwarded-Proto", "https")], True, "shop.example:8443", 8443),
        ([("X-Forwarded-Host", "[2001:db8::1]"), ("X-Forwarded-Proto", "https")], True, "[2001:db8::1]", 443),
        ([("X-Forwarded-Host", "[2001:db8::1]:444")], False, "[2001:db8::1]:444", 444),
        ([("X-Forwarded-Port", "8443")], False, "www.example", 8443),
        ([("X-Forwarded-Port", "444"), ("X-Forwarded-Host", "a:445"), ("X-Forwarded-Proto", "https")], True, "a:445", 444),
        # Lists: the entry of the proxy that the client spoke to.
        ([("X-Forwarded-For", "1.2.3.4"), ("X-Forwarded-Proto", "https, http")], False, "www.example", 80),
        ([("X-Forwarded-For", "1.2.3.4, 10.0.0.1"), ("X-Forwarded-Proto", "https, http")], True, "www.example", 443),
        ([("X-Forwarded-For", "1.2.3.4, 10.0.0.1"), ("X-Forwarded-Proto", "https")], True, "www.example", 443),
        ([("X-Forwarded-For", "6.6.6.6, 1.2.3.4"), ("X-Forwarded-Host", "evil.example, shop.example")], False, "shop.example", 80),
        ([("X-Forwarded-Proto", "rubbish, http")], False, "www.example", 80),
    ],
)  # fmt: skip
def test_scheme_host_and_port(fields: list[tuple[str, str]], secure: bool, host: str, port: int) -> None:
    peer, told = apply(PROXY, *fields)
    assert (peer.secure, told, peer.server_port, peer.server) == (secure, host, port, PROXY.server)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("X-Forwarded-Proto", "ftp"), ("X-Forwarded-Proto", "https;"), ("X-Forwarded-Proto", "on"),
        ("X-Forwarded-Host", "a b"), ("X-Forwarded-Host", "user@shop.example"), ("X-Forwarded-Host", "shop.example/x"),
        ("X-Forwarded-Host", "a:b"), ("X-Forwarded-Host", ":80"), ("X-Forwarded-Host", "\xe9"),
        ("X-Forwarded-Port", "0"), ("X-Forwarded-Port", "65536"), ("X-Forwarded-Port", "-1"), ("X-Forwarded-Port", "http"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused(field: str, value: str) -> None:
    with pytest.raises(Malformed, match=field):
        apply(PROXY, (field, value))


def test_what_the_connection_itself_says_counts_where_nothing_is_told() -> None:
    secure = Peer("10.0.0.2", 1, "10.0.0.9", 443, secure=True)
    assert apply(secure, ("X-Forwarded-For", "1.2.3.4"))[0] == Peer("1.2.3.4", 0, "10.0.0.9", 443, secure=True)
    assert not apply(secure, ("X-Forwarded-Proto", "http"))[0].secure


# -- RFC 7239 ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("told", "wanted"),
    [
        # The RFC's own examples.
        ('for="_gazonk"', ("10.0.0.2", 40000, False, "www.example")),
        ('For="[2001:db8:cafe::17]:4711"', ("2001:db8:cafe::17", 4711, False, "www.example")),
        ("for=192.0.2.60;proto=http;by=203.0.113.43", ("192.0.2.60", 0, False, "www.example")),
        ("for=192.0.2.43, for=198.51.100.17", ("198.51.100.17", 0, False, "www.example")),
        ('for=_hidden, for=_SEVKISEK', ("10.0.0.2", 40000, False, "www.example")),
        ("for=unknown", ("10.0.0.2", 40000, False, "www.example")),
        # Ports, hidden or not.
        ('for="192.0.2.1:80"', ("192.0.2.1", 80, False, "www.example")),
        ('for="192.0.2.1:_p"', ("192.0.2.1", 0, False, "www.example")),
        ('for="[2001:db8::1]:_p"', ("2001:db8::1", 0, False, "www.example")),
        ('for="unknown:80"', ("10.0.0.2", 40000, False, "www.example")),
        # Everything of one hop, and of the right hop.
        ('for=192.0.2.1;proto=https;host="shop.example:444"', ("192.0.2.1", 0, True, "shop.example:444")),
        ("for=6.6.6.6;host=evil.example, for=192.0.2.1;proto=https", ("192.0.2.1", 0, True, "www.example")),
        ("for=192.0.2.1;proto=https;host=a, for=10.0.0.1;proto=http;host=b", ("192.0.2.1", 0, True, "a")),
        ("for=192.0.2.1;proto=https, for=unknown;proto=http;host=b", ("10.0.0.2", 40000, False, "b")),
        ("for=192.0.2.1, proto=https", ("10.0.0.2", 40000, True, "www.example")),
        # Grammar.
        ('FOR = "x"', None), ("for=192.0.2.1;for=192.0.2.2", None), ("for=2001:db8::1", None), ('for="2001:db8::1"', None),
        ("for=192.0.2.1:80", None), ('for="192.0.2.1', None), ('for="a"b', None), ("for", None), ("for=", None),
        ('for="_a b"', None), ("for=192.0.2.1 for=1.2.3.4", None), ("=x", None), ('for="[192.0.2.1]"', None),
        ("proto=ftp", None), ('host="a b"', None), ('host="user@a"', None), ("for=192.0.2.300", None),
        ("for=192.0.2.1; proto=https ;host=a", ("192.0.2.1", 0, True, "a")),
        (';;for=192.0.2.1;;ext="\\"a,b;c=\\\\",,', ("192.0.2.1", 0, False, "www.example")),
        ('for="\\1\\92.0.2.1"', ("192.0.2.1", 0, False, "www.example")),
        ("", ("10.0.0.2", 40000, False, "www.example")),
    ],
)  # fmt: skip
def test_forwarded(told: str, wanted: tuple[str, int, bool, str] | None) -> None:
    if wanted is None:
        with pytest.raises(Malformed, match="Forwarded"):
            apply(PROXY, ("Forwarded", told), believed=("forwarded",))
        return
    peer, host = apply(PROXY, ("Forwarded", told), believed=("forwarded",))
    assert (peer.client, peer.client_port, peer.secure, host) == wanted


@pytest.mark.parametrize("trick", ['for="', 'for=6.6.6.6;x="', 'for=6.6.6.6;x="\\', 'for="6.6.6.6'])
def test_an_open_quotation_mark_swallows_nothing(trick: str) -> None:
    for appended in ("for=192.0.2.1", 'for=192.0.2.1;by="_x"', 'for="[2001:db8::1]"', 'by="";for=192.0.2.1'):
        with pytest.raises(Malformed):
            apply(PROXY, ("Forwarded", f"{trick}, {appended}"), believed=("forwarded",))
        with pytest.raises(Malformed):
            apply(PROXY, ("Forwarded", trick), ("Forwarded", appended), believed=("forwarded",))


# -- whatever comes ---------------------------------------------------------------------------------------------------

VALUES = st.one_of(
    st.text(st.characters(min_codepoint=32, max_codepoint=255, blacklist_characters="\x7f"), max_size=60),
    st.text('for=proto;host,"\\[]:_. 0123456789', max_size=60),
    st.lists(st.ip_addresses().map(str), max_size=4).map(", ".join),
)


@given(
    st.lists(st.tuples(st.sampled_from((*ALL, "forwarded")), VALUES), max_size=5),
    st.sampled_from((ALL, ("forwarded",))),
)
def test_any_fields_give_a_client_or_a_sentence(fields: list[tuple[str, str]], believed: tuple[str, ...]) -> None:
    asked = request()
    asked.headers += [(name.encode(), value.strip().encode("latin-1")) for name, value in fields]
    sentence, peer = "fine", PROXY
    try:
        peer, _ = Forwarding(TRUSTED, believed).apply(asked, PROXY)
    except Malformed as mistake:
        sentence = str(mistake)
    assert sentence.isascii() and sentence.isprintable() and len(sentence) < 400
    assert peer.client and 0 <= peer.client_port <= 65535 and 0 < peer.server_port <= 65535
    asked.host.decode("ascii")


@given(st.text(max_size=40), st.ip_addresses(v=4).map(str))
def test_a_client_cannot_choose_its_address(lie: str, address: str) -> None:
    """Whatever stands before it: the address that the proxy appended counts."""
    told = (lie.encode("latin-1", "replace") + b", " + address.encode()).replace(b"\r", b"").replace(b"\n", b"")
    asked = request()
    asked.headers.append((b"x-forwarded-for", told))
    if not address.startswith("10."):
        assert Forwarding(TRUSTED, ALL).apply(asked, PROXY)[0].client == address


def test_strangers_do_not_fill_the_memory() -> None:
    forwarding = Forwarding(TRUSTED, ALL)
    for number in range(_REMEMBERED + 10):
        forwarding._node(f"192.0.2.{number}")
    assert len(forwarding._nodes) <= _REMEMBERED


def test_single_parts() -> None:
    assert read_node("nobody") is None
    assert read_forwarded("  ") == []
