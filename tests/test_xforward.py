"""XFORWARD and XCLIENT (Postfix XFORWARD_README, XCLIENT_README)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.errors import ProtocolError
from fastsmtp.protocol.xforward import (
    XCLIENT_ATTRIBUTES,
    XFORWARD_ATTRIBUTES,
    ForwardError,
    Unavailable,
    Value,
    XClient,
    XForward,
    encode_xclient,
    encode_xforward,
    parse_xclient,
    parse_xforward,
)
from fastsmtp.xtext import encode_xtext

TEMP = Unavailable.TEMPORARY

BOTH: list[tuple[str, dict[str, Value]]] = [
    # The example of XFORWARD_README, with the space at its end.
    (
        "NAME=spike.porcupine.org ADDR=168.100.189.2 PROTO=ESMTP ",
        {"NAME": "spike.porcupine.org", "ADDR": "168.100.189.2", "PROTO": "ESMTP"},
    ),
    ("HELO=spike.porcupine.org", {"HELO": "spike.porcupine.org"}),
    ("helo=x  Port=25", {"HELO": "x", "PORT": 25}),
    ("HELO=[192.0.2.1]", {"HELO": "[192.0.2.1]"}),
    ("HELO=[IPv6:2001:db8::1]", {"HELO": "[IPv6:2001:db8::1]"}),
    ("HELO=win_10", {"HELO": "win_10"}),
    ("NAME=a+2Eb", {"NAME": "a.b"}),
    ("ADDR=IPV6:2001:DB8:0::1", {"ADDR": "2001:db8::1"}),
    ("ADDR=ipv6:::ffff:1.2.3.4", {"ADDR": "::ffff:1.2.3.4"}),
    ("ADDR=IPv6:::ffff:102:304", {"ADDR": "::ffff:1.2.3.4"}),
    ("PORT=1", {"PORT": 1}),
    ("PORT=65535", {"PORT": 65535}),
    ("PROTO=smtp", {"PROTO": "SMTP"}),
    ("PROTO=LMTP", {"PROTO": "LMTP"}),
    ("NAME=[UNAVAILABLE] ADDR=[unavailable] PORT=[Unavailable]", {"NAME": None, "ADDR": None, "PORT": None}),
    ("NAME=[TEMPUNAVAIL] HELO=[tempunavail]", {"NAME": TEMP, "HELO": TEMP}),
    ("NAME=+5BUNAVAILABLE+5D", {"NAME": None}),
]
ONLY_XFORWARD: list[tuple[str, dict[str, Value]]] = [
    ("IDENT=4D2+2Bxyz:1 SOURCE=local", {"IDENT": "4D2+xyz:1", "SOURCE": "LOCAL"}),
    ("SOURCE=REMOTE", {"SOURCE": "REMOTE"}),
    ("IDENT=" + "x" * 255, {"IDENT": "x" * 255}),
    ("PROTO=QMQP", {"PROTO": "QMQP"}),
    ("NAME=any!host?name+2B HELO=a..b", {"NAME": "any!host?name+", "HELO": "a..b"}),
]
ONLY_XCLIENT: list[tuple[str, dict[str, Value]]] = [
    ("LOGIN=j+C3+BCrgen+20x@example", {"LOGIN": "jürgen x@example"}),
    ("LOGIN=[UNAVAILABLE]", {"LOGIN": None}),
    ("DESTADDR=192.0.2.1 DESTPORT=587", {"DESTADDR": "192.0.2.1", "DESTPORT": 587}),
    ("destaddr=IPV6:::1", {"DESTADDR": "::1"}),
]


@pytest.mark.parametrize(("argument", "values"), BOTH + ONLY_XFORWARD)
def test_xforward(argument: str, values: dict[str, Value]) -> None:
    assert parse_xforward(argument) == values


@pytest.mark.parametrize(("argument", "values"), BOTH + ONLY_XCLIENT)
def test_xclient(argument: str, values: dict[str, Value]) -> None:
    assert parse_xclient(argument) == values


BAD = [
    ("", "no attributes"),
    ("   ", "no attributes"),
    ("NAME", "without a value"),
    ("NAME=", "without a value"),
    ("NAME= x", "without a value"),
    ("NAME =x", "without a value"),
    ("=x", "unknown"),
    ("NAMES=x", "unknown"),
    ("NAME=x name=x", "repeated"),
    ("NAME=[UNAVAILABLE] NAME=x", "repeated"),
    ("NAME=a=b", "xtext"),
    ("NAME=+", "xtext"),
    ("NAME=+0", "xtext"),
    ("NAME=+FF", "xtext"),
    ("NAME=a\tADDR=1.2.3.4", "xtext"),
    ("NAME=a\n", "xtext"),
    ("NAME=\x7f", "xtext"),
    ("NAME=é", "ASCII"),
    ("ıDENT=x", "ASCII"),
    ("NAME=+C3+A9", "name"),
    ("NAME=a+20b", "name"),
    ("NAME=a+0D+0AX-Y:+20z", "name"),
    ("NAME=+00", "name"),
    ("NAME=<a>", "name"),
    ("NAME=a(b)", "name"),
    ('NAME="a"', "name"),
    ("NAME=a;b", "name"),
    ("NAME=[x", "name"),
    ("NAME=[UNAVAILABLE", "name"),
    ("HELO=[1.2.3.256]", "name"),
    ("HELO=[x:(y)]", "name"),
    ("HELO=a@b", "name"),
    ("HELO=" + "x" * 256, "too long"),
    ("ADDR=[192.0.2.1]", "address"),
    ("ADDR=192.0.2.01", "address"),
    ("ADDR=192.0.2", "address"),
    ("ADDR=2001:db8::1", "address"),
    ("ADDR=IPV6:", "address"),
    ("ADDR=IPV6:1.2.3.4", "address"),
    ("ADDR=IPV6:::1%lo", "address"),
    ("ADDR=IPV6:::1/64", "address"),
    ("ADDR=host", "address"),
    ("ADDR=1.2.3.4+0A", "address"),
    ("PORT=0", "port"),
    ("PORT=65536", "port"),
    ("PORT=025", "port"),
    ("PORT=-1", "port"),
    ("PORT=+D9+A3", "port"),
    ("PORT=25+0A", "port"),
    ("PORT=" + "9" * 200, "port"),
    ("PROTO=E+20SMTP", "protocol"),
    ("PROTO=" + "x" * 65, "protocol"),
    ("PROTO=SMTP+0A", "protocol"),
]


@pytest.mark.parametrize(("argument", "reason"), BAD)
def test_bad(argument: str, reason: str) -> None:
    for parse in (parse_xforward, parse_xclient):
        with pytest.raises(ForwardError, match=reason) as caught:
            parse(argument)
        assert caught.value.reason == str(caught.value)
        assert isinstance(caught.value, ProtocolError)


@pytest.mark.parametrize(
    "argument",
    [
        "IDENT=a+20b",
        "IDENT=a+0Ab",
        "IDENT=(x)",
        "IDENT=" + "x" * 256,
        "SOURCE=x",
        "SOURCE=LOCAL+0A",
        "LOGIN=x",
        "DESTPORT=1",
    ],
)
def test_bad_xforward(argument: str) -> None:
    with pytest.raises(ForwardError):
        parse_xforward(argument)


@pytest.mark.parametrize(
    "argument",
    ["NAME=[192.0.2.1]", "NAME=a..b", "NAME=-a", "NAME=a!b", "HELO=a!b", "PROTO=QMQP", "LOGIN=+00", "LOGIN=a+0Ab",
     "LOGIN=+C2+85", "LOGIN=" + "+C3+A9" * 128, "DESTADDR=x", "DESTPORT=0", "IDENT=x", "SOURCE=LOCAL"],
)  # fmt: skip
def test_bad_xclient(argument: str) -> None:
    with pytest.raises(ForwardError):
        parse_xclient(argument)


def test_only_what_is_allowed() -> None:
    assert parse_xforward("NAME=x", frozenset({"NAME"})) == {"NAME": "x"}
    with pytest.raises(ForwardError, match="unknown"):
        parse_xforward("NAME=x PORT=1", frozenset({"NAME"}))
    with pytest.raises(ForwardError, match="unknown"):
        parse_xforward("FOO=1", frozenset({"FOO"}))


def test_every_truncation_of_a_command() -> None:
    line = "NAME=a.example ADDR=IPV6:2001:db8::1 PORT=12345 PROTO=ESMTP HELO=[192.0.2.1] IDENT=4+2B2 SOURCE=REMOTE"
    for end in range(len(line)):
        try:
            values = parse_xforward(line[:end])
        except ForwardError:
            continue
        XForward().updated(values)
    assert set(parse_xforward(line)) == XFORWARD_ATTRIBUTES


def test_commands_add_up() -> None:
    first = XForward().updated(parse_xforward("NAME=[TEMPUNAVAIL] ADDR=192.0.2.1 HELO=a"))
    assert first == XForward(addr="192.0.2.1", helo="a", tempunavail=frozenset({"NAME"}))
    second = first.updated(parse_xforward("HELO=[UNAVAILABLE] PORT=25 SOURCE=LOCAL IDENT=q"))
    assert second == XForward(None, "192.0.2.1", None, None, 25, "q", "LOCAL", frozenset({"NAME"}))
    assert second.updated(parse_xforward("NAME=x")).tempunavail == frozenset()
    assert second.updated(parse_xforward("NAME=x")).name == "x"
    assert second.updated(parse_xforward("NAME=[UNAVAILABLE]")).tempunavail == frozenset()
    assert second.updated({}) == second
    assert first.helo == "a"
    client = XClient().updated(parse_xclient("LOGIN=me PORT=[TEMPUNAVAIL]")).updated(parse_xclient("DESTADDR=IPV6:::1"))
    assert client == XClient(login="me", destaddr="::1", tempunavail=frozenset({"PORT"}))


def test_encode() -> None:
    forward = XForward("a+b", "2001:db8::1", "ESMTP", "[192.0.2.1]", 25, "q=1", "REMOTE")
    assert encode_xforward(forward, XFORWARD_ATTRIBUTES) == [
        "XFORWARD NAME=a+2Bb ADDR=IPV6:2001:db8::1 PORT=25 PROTO=ESMTP HELO=[192.0.2.1] IDENT=q+3D1 SOURCE=REMOTE"
    ]
    assert encode_xforward(forward, ["addr", "NAME", "FUTURE"]) == ["XFORWARD NAME=a+2Bb ADDR=IPV6:2001:db8::1"]
    assert encode_xforward(forward, []) == encode_xforward(forward, ["FUTURE"]) == []
    empty = XForward(tempunavail=frozenset({"NAME"}))
    assert encode_xforward(empty, ["NAME", "PROTO"]) == ["XFORWARD NAME=[TEMPUNAVAIL] PROTO=[UNAVAILABLE]"]
    client = XClient("a.example", "192.0.2.1", 25, None, None, "jürgen x", "::1", 587)
    assert encode_xclient(client, XCLIENT_ATTRIBUTES) == [
        "XCLIENT NAME=a.example ADDR=192.0.2.1 PORT=25 HELO=[UNAVAILABLE] LOGIN=j+C3+BCrgen+20x DESTADDR=IPV6:::1 DESTPORT=587"
    ]


@pytest.mark.parametrize("name", ["a b", "a\r\nMAIL", "é", "\udcff", "", "[UNAVAILABLE]", "[tempunavail]", "x" * 256])
def test_encode_what_cannot_be_sent(name: str) -> None:
    assert encode_xforward(XForward(name=name, port=1), ["NAME", "PORT"]) == ["XFORWARD NAME=[UNAVAILABLE] PORT=1"]
    with pytest.raises(ForwardError):
        encode_xclient(XClient(name=name), ["NAME"])


def test_encode_what_fills_more_than_a_line() -> None:
    assert encode_xforward(XForward(ident="+" * 255), ["IDENT"]) == ["XFORWARD IDENT=[UNAVAILABLE]"]
    with pytest.raises(ForwardError, match="too long"):
        encode_xclient(XClient(login="é" * 127), ["LOGIN"])
    for addr, port in (("fe80::1%lo", 1), ("host", 1), ("1.2.3.4", 0), ("1.2.3.4", 65536)):
        with pytest.raises(ForwardError):
            encode_xclient(XClient(addr=addr, port=port), ["ADDR", "PORT"])


def test_lines_are_split() -> None:
    forward = XForward(name="n" * 255, helo="h" * 255, ident="i" * 255)
    lines = encode_xforward(forward, XFORWARD_ATTRIBUTES)
    assert len(lines) == 3
    assert all(len(line) <= 510 for line in lines)


tokens = st.text("abcXYZ019-._+=!?~/", min_size=1, max_size=255)
addresses = st.ip_addresses(v=4).map(str) | st.ip_addresses(v=6).map(str).filter(
    lambda text: not text.startswith("::ffff:")
)
maybe_port = st.none() | st.integers(1, 65535)
labels = st.text("abcXYZ019_", min_size=1, max_size=60)
domains = st.lists(labels, min_size=1, max_size=4).map(".".join)
forwards = st.builds(
    XForward,
    name=st.none() | tokens,
    addr=st.none() | addresses,
    proto=st.sampled_from([None, "SMTP", "ESMTP", "LMTP"]),
    helo=st.none() | tokens | st.just("[192.0.2.1]"),
    port=maybe_port,
    ident=st.none() | tokens,
    source=st.sampled_from([None, "LOCAL", "REMOTE"]),
)
clients = st.builds(
    XClient,
    name=st.none() | domains,
    addr=st.none() | addresses,
    port=maybe_port,
    proto=st.sampled_from([None, "SMTP", "ESMTP", "LMTP"]),
    helo=st.none() | domains,
    login=st.none() | st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=30),
    destaddr=st.none() | addresses,
    destport=maybe_port,
)


@given(forwards, st.sets(st.sampled_from(sorted(XFORWARD_ATTRIBUTES))))
def test_round_trip_xforward(forward: XForward, offered: set[str]) -> None:
    got = XForward()
    for line in encode_xforward(forward, offered):
        assert len(line) <= 510
        verb, _, argument = line.partition(" ")
        assert verb == "XFORWARD"
        got = got.updated(parse_xforward(argument, offered))
    for name in XFORWARD_ATTRIBUTES:
        value = getattr(forward, name.lower())
        fits = value is None or len(encode_xtext(str(value))) < 480
        if name not in offered:
            assert getattr(got, name.lower()) is None
        elif fits:
            assert getattr(got, name.lower()) == value


@given(clients)
def test_round_trip_xclient(client: XClient) -> None:
    got = XClient()
    for line in encode_xclient(client, XCLIENT_ATTRIBUTES):
        assert len(line) <= 510
        got = got.updated(parse_xclient(line.removeprefix("XCLIENT ")))
    assert got == client


pieces = st.sampled_from(
    ["NAME", "ADDR", "PORT", "LOGIN", "IDENT", "=", " ", "IPV6:", "[UNAVAILABLE]", "+", "+0A", "1", ".", ":", "["]
)


@given(st.text() | st.lists(pieces | st.text(max_size=2)).map("".join))
def test_any_text(argument: str) -> None:
    for parse in (parse_xforward, parse_xclient):
        try:
            values = parse(argument)
        except ForwardError:
            continue
        assert values
        for name, value in values.items():
            assert name in XFORWARD_ATTRIBUTES | XCLIENT_ATTRIBUTES
            assert value != ""
            assert not isinstance(value, str) or value.isprintable() or name == "LOGIN"


@given(st.text("NAMEDRPOTHLIS=+0123456789ABCDEF[]:. ", max_size=60), forwards)
def test_what_was_read_can_be_written(argument: str, forward: XForward) -> None:
    try:
        values = parse_xforward(argument)
    except ForwardError:
        return
    result = forward.updated(values)
    for line in encode_xforward(result, values):
        for name, value in parse_xforward(line.partition(" ")[2]).items():
            assert value == values[name]
