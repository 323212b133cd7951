"""The PROXY protocol (HAProxy's proxy-protocol.txt)."""

from __future__ import annotations

import ipaddress
import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.errors import ProtocolError
from fastsmtp.protocol.proxy import (
    MAX_V1,
    MAX_V2_BLOCK,
    TLV_AUTHORITY,
    TLV_CRC32C,
    TLV_NOOP,
    TLV_SSL,
    TLV_UNIQUE_ID,
    ProxyError,
    ProxyHeader,
    ProxyReader,
    ProxyTLS,
    _crc32c,
    encode_proxy_v1,
    encode_proxy_v2,
)

SIGNATURE = b"\r\n\r\n\x00\r\nQUIT\n"
A4 = ("192.168.0.1", 56324)
B4 = ("192.168.0.11", 25)
A6 = ("2001:db8::1", 65535)
B6 = ("::1", 0)


def read(data: bytes) -> tuple[ProxyHeader, bytes]:
    reader = ProxyReader()
    assert reader.feed(data), "incomplete"
    assert reader.header is not None
    return reader.header, reader.rest


def outcome(pieces: list[bytes]) -> object:
    reader = ProxyReader()
    try:
        for piece in pieces:
            done = reader.feed(piece)
            assert done == (reader.header is not None)
    except ProxyError as error:
        return error.reason
    return reader.header, reader.rest


def octets(data: bytes) -> list[bytes]:
    return [data[n : n + 1] for n in range(len(data))]


def v2(kind: int, block: bytes, command: int = 0x21) -> bytes:
    return SIGNATURE + bytes((command, kind)) + struct.pack("!H", len(block)) + block


def tlv(kind: int, value: bytes) -> bytes:
    return struct.pack("!BH", kind, len(value)) + value


BLOCK4 = bytes((192, 168, 0, 1, 192, 168, 0, 11)) + struct.pack("!HH", 56324, 25)
SSL = struct.pack("!BI", 7, 0) + tlv(0x21, b"TLSv1.3") + tlv(0x22, "Jürgen".encode()) + tlv(0x23, b"X") + tlv(0x99, b"")

HEADERS = [
    (b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 25\r\n", ProxyHeader(1, "PROXY", "TCP4", A4, B4)),
    (b"PROXY TCP4 0.0.0.0 255.255.255.255 0 65535\r\n",
     ProxyHeader(1, "PROXY", "TCP4", ("0.0.0.0", 0), ("255.255.255.255", 65535))),
    (b"PROXY TCP6 2001:DB8::1 0:0:0:0:0:0:0:1 65535 0\r\n", ProxyHeader(1, "PROXY", "TCP6", A6, B6)),
    (b"PROXY TCP6 ::ffff:1.2.3.4 ::FFFF:0102:0304 1 2\r\n",
     ProxyHeader(1, "PROXY", "TCP6", ("::ffff:1.2.3.4", 1), ("::ffff:1.2.3.4", 2))),
    (b"PROXY TCP6 " + b" ".join([b"ffff:" * 7 + b"ffff"] * 2) + b" 65535 65535\r\n",
     ProxyHeader(1, "PROXY", "TCP6", ("ffff:" * 7 + "ffff", 65535), ("ffff:" * 7 + "ffff", 65535))),
    (b"PROXY UNKNOWN\r\n", ProxyHeader(1, "PROXY", "UNKNOWN")),
    (b"PROXY UNKNOWN \r\n", ProxyHeader(1, "PROXY", "UNKNOWN")),
    (b"PROXY UNKNOWN \x00\xff PROXY\r\n", ProxyHeader(1, "PROXY", "UNKNOWN")),
    (b"PROXY UNKNOWN " + b"x" * 91 + b"\r\n", ProxyHeader(1, "PROXY", "UNKNOWN")),
    (v2(0x11, BLOCK4), ProxyHeader(2, "PROXY", "TCP4", A4, B4)),
    (v2(0x21, ipaddress.ip_address("2001:db8::1").packed + bytes(15) + b"\x01\xff\xff\x00\x00"),
     ProxyHeader(2, "PROXY", "TCP6", A6, B6)),
    (v2(0x21, (bytes(10) + b"\xff\xff\x01\x02\x03\x04") * 2 + bytes(4)),
     ProxyHeader(2, "PROXY", "TCP6", ("::ffff:1.2.3.4", 0), ("::ffff:1.2.3.4", 0))),
    (v2(0x31, b"/run/a\0junk".ljust(108, b"\0") + b"\0abstract".ljust(108, b"\0")),
     ProxyHeader(2, "PROXY", "UNIX", "/run/a", "\0abstract")),
    (v2(0x31, b"x" * 108 + bytes(108)), ProxyHeader(2, "PROXY", "UNIX", "x" * 108, "")),
    (v2(0x00, b""), ProxyHeader(2, "PROXY", "UNKNOWN")),
    (v2(0x00, b"whatever"), ProxyHeader(2, "PROXY", "UNKNOWN")),
    (v2(0x01, b"w"), ProxyHeader(2, "PROXY", "UNKNOWN")),
    (v2(0x10, BLOCK4), ProxyHeader(2, "PROXY", "UNKNOWN")),
    (v2(0x12, BLOCK4), ProxyHeader(2, "PROXY", "UNKNOWN")),
    (v2(0x22, bytes(36)), ProxyHeader(2, "PROXY", "UNKNOWN")),
    (v2(0x32, bytes(216)), ProxyHeader(2, "PROXY", "UNKNOWN")),
    (v2(0x00, b"", 0x20), ProxyHeader(2, "LOCAL", "UNKNOWN")),
    (v2(0xFF, b"whatever", 0x20), ProxyHeader(2, "LOCAL", "UNKNOWN")),
    (v2(0x11, BLOCK4, 0x20), ProxyHeader(2, "LOCAL", "UNKNOWN")),
    (v2(0x11, BLOCK4 + tlv(TLV_AUTHORITY, b"mx.example") + tlv(TLV_NOOP, b"") + tlv(TLV_SSL, SSL)),
     ProxyHeader(2, "PROXY", "TCP4", A4, B4, ((2, b"mx.example"), (4, b""), (0x20, SSL)))),
    (v2(0x11, BLOCK4 + tlv(0xE0, b"x" * (MAX_V2_BLOCK - 15))),
     ProxyHeader(2, "PROXY", "TCP4", A4, B4, ((0xE0, b"x" * (MAX_V2_BLOCK - 15)),))),
]  # fmt: skip


@pytest.mark.parametrize(("data", "header"), HEADERS)
def test_known(data: bytes, header: ProxyHeader) -> None:
    follows = b"EHLO [\r\nPROXY"
    assert outcome([data + follows]) == (header, follows)
    assert outcome([data, follows]) == (header, follows)
    assert outcome(octets(data + follows)) == (header, follows)
    for cut in range(min(len(data), 300)):
        reader = ProxyReader()
        assert not reader.feed(data[:cut]), cut
        assert reader.header is None
        assert reader.rest == b""
        assert reader.feed(data[cut:] + b"\r")
        assert reader.rest == b"\r"
        result: object = reader.header
        assert result == header


GOOD4 = b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n"
BAD = [
    b"EHLO x\r\n",
    b"\x16\x03\x01",
    b"proxy TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    b" " + GOOD4,
    b"\r\n" + GOOD4,
    b"PROXY\r\n",
    b"PROXY \r\n",
    b"PROXY  TCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY\tTCP4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY TCP5 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY tcp4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY UDP4 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY UNKNOWNX\r\n",
    b"PROXY UNKNOWN\n",
    b"PROXY UNKNOWN\rX",
    b"PROXY UNKNOWN x\ny\r\n",
    b"PROXY UNKNOWN x\ry\r\n",
    b"PROXY UNKNOWN " + b"x" * 92 + b"\r\n",
    b"PROXY UNKNOWN " + b"x" * 1000,
    b"PROXY TCP4\r\n",
    b"PROXY TCP4 \r\n",
    b"PROXY TCP4 1.2.3.4\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 \r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2 3\r\n",
    b"PROXY TCP4 1.2.3.4  5.6.7.8 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\r\n",
    b"PROXY TCP4 01.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 1.2.3 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 1.2.3.256 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.0x8 1 2\r\n",
    b"PROXY TCP4 1.2.3.4/8 5.6.7.8 1 2\r\n",
    b"PROXY TCP4 ::1 ::2 1 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 01 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 65536\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 999999\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 -1 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 +1 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1_0 2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 \xb2\r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 \r\n",
    b"PROXY TCP4 1.2.3.4 5.6.7.8 1 \xd9\xa3\r\n",
    b"PROXY TCP6 1.2.3.4 5.6.7.8 1 2\r\n",
    b"PROXY TCP6 ::1 ::2%lo 1 2\r\n",
    b"PROXY TCP6 [::1] [::2] 1 2\r\n",
    b"PROXY TCP6 ::1 1::2::3 1 2\r\n",
    b"PROXY TCP6 ::1 12345::2 1 2\r\n",
    b"PROXY TCP6 ::1 1:2:3:4:5:6:7 1 2\r\n",
    b"PROXY TCP6 ::1 ::1.2.3.04 1 2\r\n",
    SIGNATURE + b"\x10\x11\x00\x0c" + BLOCK4,
    SIGNATURE + b"\x31\x11\x00\x0c" + BLOCK4,
    SIGNATURE + b"\x22\x11\x00\x0c" + BLOCK4,
    SIGNATURE[:-1] + b"\x21",
    v2(0x41, BLOCK4),
    v2(0x13, BLOCK4),
    v2(0xF1, BLOCK4),
    v2(0x11, BLOCK4[:-1]),
    v2(0x11, b""),
    v2(0x21, bytes(35)),
    v2(0x31, bytes(215)),
    v2(0x11, BLOCK4 + b"\x04"),
    v2(0x11, BLOCK4 + b"\x04\x00"),
    v2(0x11, BLOCK4 + b"\x04\x00\x01"),
    v2(0x11, BLOCK4 + tlv(4, b"") + b"\xe0\xff\xff"),
    v2(0x11, BLOCK4 + tlv(TLV_CRC32C, bytes(4))),
    v2(0x11, BLOCK4 + tlv(TLV_CRC32C, bytes(3))),
    v2(0x11, BLOCK4 + tlv(TLV_CRC32C, b"")),
    v2(0x11, BLOCK4 + tlv(TLV_SSL, b"\x01\0\0\0")),
    v2(0x11, BLOCK4 + tlv(TLV_SSL, SSL + b"\x22\x00")),
    v2(0x11, BLOCK4 + tlv(TLV_SSL, SSL + b"\x22\x00\x05x")),
    v2(0x11, BLOCK4 + tlv(TLV_SSL, SSL + tlv(0x22, b"other"))),
    v2(0x11, BLOCK4 + tlv(TLV_SSL, SSL) * 2),
    v2(0x11, BLOCK4 + tlv(TLV_SSL, bytes(5) + tlv(0x22, b"\xff"))),
    v2(0x11, BLOCK4 + tlv(0xE0, b"x" * (MAX_V2_BLOCK - 14))),
    v2(0x00, bytes(MAX_V2_BLOCK + 1), 0x20),
    SIGNATURE + b"\x20\x00\xff\xff",
]


@pytest.mark.parametrize("data", BAD)
def test_bad(data: bytes) -> None:
    reason = outcome([data])
    assert isinstance(reason, str)
    assert outcome(octets(data)) == reason
    reader = ProxyReader()
    for _ in range(2):  # A reader that failed stays failed.
        with pytest.raises(ProxyError) as caught:
            reader.feed(data)
        assert caught.value.reason == str(caught.value) == reason
        assert isinstance(caught.value, ProtocolError)
    assert reader.header is None
    assert reader.rest == b""


@pytest.mark.parametrize(
    ("begin", "wrong"),
    [
        (b"", b"E"), (b"", b"\n"), (b"", b"\x16"), (b"P", b"r"), (b"PROXY", b"\r"), (b"PROXY T", b"L"), (b"PROXY TCP", b"5"),
        (b"PROXY UNKNOWN", b"x"), (b"PROXY UNKNOWN\r", b"x"), (b"\r\n", b"E"), (SIGNATURE, b"\x11"), (SIGNATURE, b"\x22"),
        (SIGNATURE + b"\x21", b"\x40"), (SIGNATURE + b"\x21", b"\x13"), (SIGNATURE + b"\x21\x11\x10", b"\x01"),
        (b"PROXY TCP4 1", b"\n"), (b"PROXY UNKNOWN " + b"x" * 92, b"x"), (b"PROXY UNKNOWN " + b"x" * 92, b"\r"),
    ],
)  # fmt: skip
def test_fails_at_the_first_octet_that_does_not_fit(begin: bytes, wrong: bytes) -> None:
    reader = ProxyReader()
    for octet in octets(begin):
        assert not reader.feed(octet)
    with pytest.raises(ProxyError):
        reader.feed(wrong)


def test_nothing_is_no_failure() -> None:
    reader = ProxyReader()
    assert not reader.feed(b"")
    assert reader.feed(GOOD4)
    assert reader.feed(b"")
    assert reader.feed(b"more")
    assert reader.rest == b"more"


def test_the_limit_of_the_block_can_be_set() -> None:
    assert ProxyReader(12).feed(v2(0x11, BLOCK4))
    with pytest.raises(ProxyError, match="too long"):
        ProxyReader(11).feed(v2(0x11, BLOCK4)[:16])
    assert ProxyReader(65535).feed(v2(0x00, bytes(65535)))


def test_checksum() -> None:
    assert _crc32c(b"123456789") == 0xE3069283
    assert _crc32c(bytes(32)) == 0x8A9136AA  # RFC 7143 appendix A.4
    # By hand: the TLV needs not be the last.
    zeroed = v2(0x11, BLOCK4 + tlv(TLV_CRC32C, bytes(4)) + tlv(TLV_NOOP, b"abc"))
    crc = struct.pack("!I", _crc32c(zeroed))
    data = v2(0x11, BLOCK4 + tlv(TLV_CRC32C, crc) + tlv(TLV_NOOP, b"abc"))
    assert read(data)[0].tlvs == ((3, crc), (4, b"abc"))
    # Addresses and values: an octet that changes a TLV's type or length can hide the checksum itself.
    for bit in (octet * 8 + n for octet in (*range(16, 28), *range(31, 35), *range(38, 41)) for n in range(8)):
        wrong = bytearray(data)
        wrong[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ProxyError):
            read(bytes(wrong))
    twice = v2(0x11, BLOCK4 + tlv(TLV_CRC32C, bytes(4)) * 2)
    crc = struct.pack("!I", _crc32c(twice))
    with pytest.raises(ProxyError, match="repeated"):
        read(v2(0x11, BLOCK4 + tlv(TLV_CRC32C, crc) + tlv(TLV_CRC32C, bytes(4))))


def test_tls() -> None:
    header = read(v2(0x11, BLOCK4 + tlv(TLV_SSL, SSL)))[0]
    assert header.tls == ProxyTLS(7, 0, "TLSv1.3", "X", "Jürgen")
    assert header.tls.used
    assert header.tls.verified
    assert header.tlv(TLV_SSL) == SSL
    assert header.tlv(TLV_UNIQUE_ID) is None
    assert read(v2(0x11, BLOCK4))[0].tls is None
    with pytest.raises(ProxyError):
        _ = ProxyHeader(2, "PROXY", "TCP4", A4, B4, ((TLV_SSL, b""),)).tls


@pytest.mark.parametrize(
    ("client", "verify", "verified"),
    [
        (7, 0, True),
        (3, 0, True),
        (5, 0, True),
        (1, 0, False),
        (0, 0, False),
        (6, 0, False),
        (7, 1, False),
        (3, 2**31, False),
    ],
)
def test_verified_needs_a_certificate(client: int, verify: int, verified: bool) -> None:
    assert ProxyTLS(client, verify).verified is verified


def test_encode_known() -> None:
    assert encode_proxy_v1(A4, B4) == b"PROXY TCP4 192.168.0.1 192.168.0.11 56324 25\r\n"
    assert encode_proxy_v1(A6, B6) == b"PROXY TCP6 2001:db8::1 ::1 65535 0\r\n"
    assert encode_proxy_v1(None, B6) == encode_proxy_v1(A4, None) == b"PROXY UNKNOWN\r\n"
    assert encode_proxy_v2(A4, B4) == v2(0x11, BLOCK4)
    assert encode_proxy_v2(None, None) == v2(0, b"")
    assert encode_proxy_v2(A4, B4, command="LOCAL") == v2(0, b"", 0x20)


@pytest.mark.parametrize(
    ("source", "destination"),
    [
        (A4, B6),
        (("x", 1), B4),
        (("fe80::1%lo", 1), B6),
        (("1.2.3.4", 65536), B4),
        (("1.2.3.4", -1), B4),
        (("01.2.3.4", 1), B4),
    ],
)
def test_encode_refuses(source: tuple[str, int], destination: tuple[str, int]) -> None:
    with pytest.raises(ValueError):
        encode_proxy_v1(source, destination)
    with pytest.raises(ValueError):
        encode_proxy_v2(source, destination)


def test_encode_v2_refuses() -> None:
    with pytest.raises(ValueError, match="families"):
        encode_proxy_v2("/run/x", A4)
    with pytest.raises(ValueError, match="path"):
        encode_proxy_v2("/" * 109, "")
    for tlvs in ([(TLV_CRC32C, bytes(4))], [(256, b"")], [(1, bytes(65536))], [(1, bytes(40000))] * 2):
        with pytest.raises(ValueError, match=r"TLV|long"):
            encode_proxy_v2(A4, B4, tlvs=tlvs)
    with pytest.raises(ValueError, match="without addresses"):
        encode_proxy_v2(None, None, tlvs=[(1, b"")])
    with pytest.raises(ValueError, match="without addresses"):
        encode_proxy_v2(A4, B4, command="LOCAL", checksum=True)


ports = st.integers(0, 65535)
tcp4 = st.tuples(st.ip_addresses(v=4).map(str), ports)
tcp6 = st.tuples(st.ip_addresses(v=6).map(str).filter(lambda text: not text.startswith("::ffff:")), ports)
pairs = st.tuples(tcp4, tcp4) | st.tuples(tcp6, tcp6)
paths = st.text(st.characters(codec="utf-8", exclude_characters="\0"), max_size=27)
tlvs = st.lists(
    st.tuples(st.integers(0, 255).filter(lambda kind: kind not in (TLV_CRC32C, TLV_SSL)), st.binary(max_size=40)),
    max_size=5,
)


@st.composite
def cut(draw: st.DrawFn, data: bytes) -> list[bytes]:
    places = [0, *sorted(draw(st.lists(st.integers(0, len(data)), max_size=8))), len(data)]
    return [data[begin:end] for begin, end in zip(places, places[1:], strict=False)]


@given(pairs, st.binary(max_size=30), st.data())
def test_round_trip_v1(pair: tuple[tuple[str, int], tuple[str, int]], rest: bytes, data: st.DataObject) -> None:
    wire = encode_proxy_v1(*pair)
    assert len(wire) <= MAX_V1
    header = ProxyHeader(1, "PROXY", "TCP6" if ":" in pair[0][0] else "TCP4", *pair)
    assert outcome(data.draw(cut(wire + rest))) == (header, rest)


@given(pairs | st.tuples(paths, paths), tlvs, st.booleans(), st.binary(max_size=30), st.data())
def test_round_trip_v2(
    pair: tuple[tuple[str, int], tuple[str, int]] | tuple[str, str],
    extra: list[tuple[int, bytes]],
    checksum: bool,
    rest: bytes,
    data: st.DataObject,
) -> None:
    wire = encode_proxy_v2(*pair, tlvs=extra, checksum=checksum)
    result = outcome(data.draw(cut(wire + rest)))
    assert isinstance(result, tuple)
    header, after = result
    assert after == rest
    assert (header.source, header.destination) == pair
    assert list(header.tlvs)[: len(extra)] == extra
    assert len(header.tlvs) == len(extra) + checksum
    if checksum:
        place = data.draw(st.integers(16, 27) | st.integers(len(wire) - 4, len(wire) - 1))  # No TLV's type or length.
        wrong = wire[:place] + bytes((wire[place] ^ data.draw(st.integers(1, 255)),)) + wire[place + 1 :]
        with pytest.raises(ProxyError):
            if not ProxyReader().feed(wrong):
                raise ProxyError("incomplete")


beginnings = st.sampled_from(
    [b"", b"PROXY ", b"PROXY TCP4 ", b"PROXY TCP6 ", b"PROXY UNKNOWN", SIGNATURE, SIGNATURE + b"\x21\x11"]
)
lines = st.text("0123456789abcdef:. \r\n", max_size=110).map(str.encode)


@given(beginnings, st.binary(max_size=120) | lines, st.data())
def test_any_octets_in_any_cuts(begin: bytes, more: bytes, data: st.DataObject) -> None:
    whole = begin + more
    assert outcome(data.draw(cut(whole))) == outcome([whole]) == outcome(octets(whole))


@given(st.sampled_from([0x00, 0x11, 0x21, 0x31]), st.sampled_from([0x20, 0x21]), st.integers(0, 240), st.data())
def test_any_block(kind: int, command: int, size: int, data: st.DataObject) -> None:
    kinds = st.sampled_from([TLV_SSL, TLV_CRC32C, 1, 0xE0])
    made = st.lists(st.tuples(kinds, st.binary(max_size=12)).map(lambda pair: tlv(*pair)), max_size=4).map(b"".join)
    whole = v2(kind, bytes(size) + data.draw(made) + data.draw(st.binary(max_size=4)), command) + b"rest"
    result = outcome(data.draw(cut(whole)))
    assert result == outcome([whole])
    if isinstance(result, tuple):
        assert result[1] == b"rest"
        _ = result[0].tls
