"""The PROXY protocol, versions 1 and 2: who the client is, told by a proxy before the first octet of SMTP.

Sections are those of HAProxy's proxy-protocol.txt.  Where it leaves a choice, or says less than it takes:

- What begins with no signature fails at the first octet that does not fit, so an SMTP client is never waited for (2.2).
- A CR or LF that is not part of the CRLF is an error, in the ignored part of an UNKNOWN line too (2.1).
- The block of a LOCAL header is skipped unread, and its family byte is not looked at (2.2).  The same goes for the block of
  an unspecified family or transport and for datagrams, which no SMTP comes in: no addresses, no TLVs, no checksum.
- Addresses come back in the form of RFC 5952, an IPv4-mapped one with its dotted part; a zone is refused.

A header tells the truth only as far as its sender does: it is for connections from proxies that the operator named (2).
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Final, Literal

from ..errors import ProtocolError

__all__ = [
    "MAX_V1",
    "MAX_V2_BLOCK",
    "TLV_ALPN",
    "TLV_AUTHORITY",
    "TLV_CRC32C",
    "TLV_NETNS",
    "TLV_NOOP",
    "TLV_SSL",
    "TLV_UNIQUE_ID",
    "ProxyError",
    "ProxyHeader",
    "ProxyReader",
    "ProxyTLS",
    "encode_proxy_v1",
    "encode_proxy_v2",
]

_Command = Literal["PROXY", "LOCAL"]
_Family = Literal["TCP4", "TCP6", "UNIX", "UNKNOWN"]
_Endpoint = tuple[str, int] | str | None

# Section 2.1: the longest line that there can be, CRLF included.
MAX_V1: Final = 107
# Addresses and TLVs of a version 2 header.  Two octets could announce 65535; HAProxy sends a few hundred.
MAX_V2_BLOCK: Final = 4096

# Section 2.2, the registered types of TLVs.
TLV_ALPN: Final = 0x01
TLV_AUTHORITY: Final = 0x02
TLV_CRC32C: Final = 0x03
TLV_NOOP: Final = 0x04
TLV_UNIQUE_ID: Final = 0x05
TLV_SSL: Final = 0x20
TLV_NETNS: Final = 0x30
_SUB_VERSION: Final = 0x21
_SUB_CN: Final = 0x22
_SUB_CIPHER: Final = 0x23

_SIGNATURE: Final = b"\r\n\r\n\x00\r\nQUIT\n"
_V2_FIXED: Final = 16
_LOCAL: Final = 0x20
_PROXY: Final = 0x21
_UNKNOWN: Final = b"PROXY UNKNOWN"
# All that a header can begin with, as far as it is the same for every header of the kind.
_BEGINNINGS: Final = (
    b"PROXY TCP4 ",
    b"PROXY TCP6 ",
    _UNKNOWN + b" ",
    _UNKNOWN + b"\r\n",
    _SIGNATURE + b"\x20",
    _SIGNATURE + b"\x21",
)

_TCP4: Final = struct.Struct("!4s4sHH")
_TCP6: Final = struct.Struct("!16s16sHH")
_UNIX: Final = struct.Struct("!108s108s")
_TLV: Final = struct.Struct("!BH")
_SSL: Final = struct.Struct("!BI")
_TCP4_BYTE: Final = 0x11
_TCP6_BYTE: Final = 0x21
_UNIX_BYTE: Final = 0x31

_line_end = re.compile(rb"[\r\n]").search
_port = re.compile(r"(?:0|[1-9][0-9]{0,4})").fullmatch
_ipv6_characters = re.compile(r"[0-9A-Fa-f:.]{2,45}").fullmatch


class ProxyError(ProtocolError):
    """What a connection began with is no PROXY header, or a bad one: it is to be closed without a word (sections 2, 2.1).

    Attributes:
        reason: what is wrong, in words of ours (nothing of the input).
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True, slots=True)
class ProxyTLS:
    """What the proxy says of the client's TLS (section 2.2.6).

    Attributes:
        client: the bits: 0x01 the client came over TLS, 0x02 with a certificate on this connection, 0x04 with one in
            this TLS session.
        verify: the result of verification; 0 is success, and also what is sent where there was nothing to verify.
        version: the version of TLS, such as "TLSv1.3", or None.
        cipher: the cipher, or None.
        common_name: the CN of the client's certificate, or None.  Believe it only if `verified`.
    """

    client: int
    verify: int
    version: str | None = None
    cipher: str | None = None
    common_name: str | None = None

    @property
    def used(self) -> bool:
        """The client came over TLS."""
        return bool(self.client & 0x01)

    @property
    def verified(self) -> bool:
        """The client came over TLS, presented a certificate, and it was verified."""
        return self.used and bool(self.client & 0x06) and self.verify == 0


@dataclass(frozen=True, slots=True)
class ProxyHeader:
    """What a PROXY header says.

    Attributes:
        version: 1 or 2.
        command: "LOCAL" for a connection of the proxy's own, such as a health check (version 2 only).
        family: of the addresses; "UNKNOWN" if there are none.
        source: the client: address and port, the path of a Unix socket ("" if it has none, a NUL first if it is
            abstract), or None if the real end of the connection is to be taken.
        destination: what the client connected to, in the same form.
        tlvs: type and value of everything else, in order (version 2 only).
    """

    version: int
    command: _Command
    family: _Family
    source: _Endpoint = None
    destination: _Endpoint = None
    tlvs: tuple[tuple[int, bytes], ...] = ()

    def tlv(self, kind: int) -> bytes | None:
        """The value of the first TLV of this type, or None."""
        for number, value in self.tlvs:
            if number == kind:
                return value
        return None

    @property
    def tls(self) -> ProxyTLS | None:
        """The client's TLS, or None if the proxy says nothing of it (section 2.2.6).

        Raises:
            ProxyError: the TLV is malformed; never for a header that a `ProxyReader` gave.
        """
        value = self.tlv(TLV_SSL)
        return None if value is None else _parse_ssl(value)


class ProxyReader:
    """Reads one header, in whatever pieces it comes; the result does not depend on the pieces.

    Attributes:
        header: the header, or None as long as it is not complete.
        rest: the octets that followed it, those of SMTP.
    """

    __slots__ = ("_buffer", "_error", "_max_block", "header", "rest")

    def __init__(self, max_block: int = MAX_V2_BLOCK) -> None:
        """`max_block` limits addresses and TLVs of a version 2 header, in octets."""
        self._buffer = b""
        self._error: ProxyError | None = None
        self._max_block = max_block
        self.header: ProxyHeader | None = None
        self.rest = b""

    def feed(self, data: bytes) -> bool:
        """Take the next octets: True once the header is complete; what follows it is added to `rest`.

        Raises:
            ProxyError: this is no header.  It is raised again by every later call.
        """
        if self._error is not None:
            raise ProxyError(self._error.reason)
        if self.header is not None:
            self.rest += data
            return True
        # At most one header's worth is kept from call to call, so this copies little, one octet at a time as well.
        buffer = self._buffer + data
        try:
            end = self._read(buffer)
        except ProxyError as error:
            self._error = error
            self._buffer = b""
            raise
        if not end:
            self._buffer = buffer
            return False
        self._buffer = b""
        self.rest = buffer[end:]
        return True

    def _read(self, buffer: bytes) -> int:
        """Set `header` and give the index past it, or 0 if more is needed."""
        if not any(buffer[: len(start)] == start[: len(buffer)] for start in _BEGINNINGS):
            raise ProxyError("no PROXY header")
        if buffer.startswith(_SIGNATURE):
            return self._read_v2(buffer)
        return self._read_v1(buffer) if buffer.startswith(b"PROXY ") else 0

    def _read_v1(self, buffer: bytes) -> int:
        match = _line_end(buffer, 0, MAX_V1)
        if match is None:
            if len(buffer) >= MAX_V1:
                raise ProxyError("line too long")
            return 0
        end = match.start() + 2
        if match[0] == b"\n":
            raise ProxyError("LF without CR")
        if end > MAX_V1:
            raise ProxyError("line too long")
        if len(buffer) < end:
            return 0
        if buffer[end - 1] != 0x0A:
            raise ProxyError("CR without LF")
        self.header = _parse_v1(buffer[: end - 2])
        return end

    def _read_v2(self, buffer: bytes) -> int:
        # The beginning was compared, so byte 13 is one of the two commands if it is there at all.
        if len(buffer) > 13 and buffer[12] == _PROXY and (buffer[13] >> 4 > 3 or buffer[13] & 15 > 2):
            raise ProxyError("unassigned address family or transport")
        if len(buffer) < _V2_FIXED:
            return 0
        length = int.from_bytes(buffer[14:16], "big")
        if length > self._max_block:
            raise ProxyError("header too long")
        end = _V2_FIXED + length
        if len(buffer) < end:
            return 0
        self.header = _parse_v2(buffer[:end])
        return end


def _parse_v1(line: bytes) -> ProxyHeader:
    """The line without its CRLF (section 2.1)."""
    if line.startswith(_UNKNOWN):
        return ProxyHeader(1, "PROXY", "UNKNOWN")
    try:
        fields = line.decode("ascii").split(" ")
    except UnicodeDecodeError:
        raise ProxyError("not ASCII") from None
    if len(fields) != 6:
        raise ProxyError("wrong number of fields")
    family: _Family = "TCP4" if fields[1] == "TCP4" else "TCP6"
    read = _ipv4 if family == "TCP4" else _ipv6
    source, destination = read(fields[2]), read(fields[3])
    return ProxyHeader(1, "PROXY", family, (source, _read_port(fields[4])), (destination, _read_port(fields[5])))


def _ipv4(text: str) -> str:
    try:
        return str(IPv4Address(text))  # Takes no leading zeros and nothing but ASCII digits.
    except AddressValueError:
        raise ProxyError("bad IPv4 address") from None


def _ipv6(text: str) -> str:
    if _ipv6_characters(text) is None:
        raise ProxyError("bad IPv6 address")
    try:
        return _ipv6_text(IPv6Address(text))
    except AddressValueError:
        raise ProxyError("bad IPv6 address") from None


def _ipv6_text(address: IPv6Address) -> str:
    # Python 3.13 writes a mapped address so by itself, earlier versions do not.
    mapped = address.ipv4_mapped
    return str(address) if mapped is None else f"::ffff:{mapped}"


def _read_port(text: str) -> int:
    if _port(text) is None or (port := int(text)) > 65535:
        raise ProxyError("bad port")
    return port


def _parse_v2(header: bytes) -> ProxyHeader:
    """The whole header, of the length it announces (section 2.2)."""
    if header[12] == _LOCAL:
        return ProxyHeader(2, "LOCAL", "UNKNOWN")
    kind = header[13]
    family: _Family
    source: _Endpoint
    destination: _Endpoint
    try:
        if kind == _TCP4_BYTE:
            start = _V2_FIXED + _TCP4.size
            source4, destination4, source_port, destination_port = _TCP4.unpack_from(header, _V2_FIXED)
            family = "TCP4"
            source = str(IPv4Address(source4)), source_port
            destination = str(IPv4Address(destination4)), destination_port
        elif kind == _TCP6_BYTE:
            start = _V2_FIXED + _TCP6.size
            source6, destination6, source_port, destination_port = _TCP6.unpack_from(header, _V2_FIXED)
            family = "TCP6"
            source = _ipv6_text(IPv6Address(source6)), source_port
            destination = _ipv6_text(IPv6Address(destination6)), destination_port
        elif kind == _UNIX_BYTE:
            start = _V2_FIXED + _UNIX.size
            source_path, destination_path = _UNIX.unpack_from(header, _V2_FIXED)
            family = "UNIX"
            source = _read_path(source_path)
            destination = _read_path(destination_path)
        else:
            return ProxyHeader(2, "PROXY", "UNKNOWN")
    except struct.error:
        raise ProxyError("header too short for its addresses") from None
    tlvs = _parse_tlvs(header, start)
    _check_tlvs(header, tlvs)
    return ProxyHeader(2, "PROXY", family, source, destination, tuple((number, value) for number, value, _ in tlvs))


def _read_path(field: bytes) -> str:
    # A path ends at its first NUL; an abstract name begins with one and may have others.
    path = field.rstrip(b"\0") if field[0] == 0 else field.partition(b"\0")[0]
    return path.decode("utf-8", "surrogateescape")


def _parse_tlvs(block: bytes, pos: int) -> list[tuple[int, bytes, int]]:
    """Type, value and the index of the value of each TLV in `block[pos:]`."""
    found = []
    while pos < len(block):
        start = pos + _TLV.size
        if start > len(block):
            raise ProxyError("TLV cut short")
        kind, length = _TLV.unpack_from(block, pos)
        pos = start + length
        if pos > len(block):
            raise ProxyError("TLV cut short")
        found.append((kind, block[start:pos], start))
    return found


def _check_tlvs(header: bytes, tlvs: list[tuple[int, bytes, int]]) -> None:
    """The TLVs that say something about trust: one of each, well-formed, and the checksum right (section 2.2.3)."""
    seen = set()
    for kind, value, start in tlvs:
        if kind in (TLV_CRC32C, TLV_SSL):
            if kind in seen:
                raise ProxyError("TLV repeated")
            seen.add(kind)
        if kind == TLV_SSL:
            _parse_ssl(value)
        elif kind == TLV_CRC32C:
            if len(value) != 4:
                raise ProxyError("bad checksum")
            if _crc32c(header[:start] + bytes(4) + header[start + 4 :]) != int.from_bytes(value, "big"):
                raise ProxyError("bad checksum")


def _parse_ssl(value: bytes) -> ProxyTLS:
    """The value of a PP2_TYPE_SSL (section 2.2.6)."""
    if len(value) < _SSL.size:
        raise ProxyError("TLV cut short")
    client, verify = _SSL.unpack_from(value)
    texts: dict[int, str] = {}
    for kind, text, _ in _parse_tlvs(value, _SSL.size):
        if kind in (_SUB_VERSION, _SUB_CN, _SUB_CIPHER):
            if kind in texts:
                raise ProxyError("TLV repeated")
            try:
                texts[kind] = text.decode()
            except UnicodeDecodeError:
                raise ProxyError("TLV not UTF-8") from None
    return ProxyTLS(client, verify, texts.get(_SUB_VERSION), texts.get(_SUB_CIPHER), texts.get(_SUB_CN))


@cache
def _crc32c_table() -> tuple[int, ...]:
    table = []
    for number in range(256):
        for _ in range(8):
            number = number >> 1 ^ (0x82F63B78 if number & 1 else 0)
        table.append(number)
    return tuple(table)


def _crc32c(data: bytes) -> int:
    """CRC32c (RFC 9260 appendix A)."""
    table = _crc32c_table()
    crc = 0xFFFFFFFF
    for octet in data:
        crc = crc >> 8 ^ table[(crc ^ octet) & 0xFF]
    return crc ^ 0xFFFFFFFF


def encode_proxy_v1(source: tuple[str, int] | None, destination: tuple[str, int] | None) -> bytes:
    """A header of version 1 (section 2.1); UNKNOWN if either end is None.

    Raises:
        ValueError: no address, a zone, two families, or no port.
    """
    if source is None or destination is None:
        return _UNKNOWN + b"\r\n"
    first, second = _addresses(source, destination)
    family, write = ("TCP4", str) if isinstance(first, IPv4Address) else ("TCP6", _ipv6_text)
    return f"PROXY {family} {write(first)} {write(second)} {source[1]} {destination[1]}\r\n".encode("ascii")  # type: ignore[arg-type]


def encode_proxy_v2(
    source: _Endpoint,
    destination: _Endpoint,
    *,
    command: _Command = "PROXY",
    tlvs: Iterable[tuple[int, bytes]] = (),
    checksum: bool = False,
) -> bytes:
    """A header of version 2 (section 2.2), with a CRC32c behind the TLVs if `checksum`.

    If either end is None the family is unspecified.  Such a header, and that of LOCAL, has no block: nothing of it
    would be read.

    Raises:
        ValueError: no address, a zone, two families, no port, a path over 108 octets, a TLV that does not fit, a CRC32c
            among the TLVs, or TLVs or a checksum where there is no block.
    """
    if command == "LOCAL" or source is None or destination is None:
        if checksum or any(True for _ in tlvs):
            raise ValueError("no TLVs without addresses")
        return _SIGNATURE + bytes((_LOCAL if command == "LOCAL" else _PROXY, 0, 0, 0))
    if isinstance(source, str) or isinstance(destination, str):
        if not (isinstance(source, str) and isinstance(destination, str)):
            raise ValueError("addresses of two families")
        kind = _UNIX_BYTE
        block = _UNIX.pack(_write_path(source), _write_path(destination))
    else:
        first, second = _addresses(source, destination)
        ipv4 = isinstance(first, IPv4Address)
        kind = _TCP4_BYTE if ipv4 else _TCP6_BYTE
        block = (_TCP4 if ipv4 else _TCP6).pack(first.packed, second.packed, source[1], destination[1])
    for number, value in tlvs:
        if number == TLV_CRC32C or not 0 <= number <= 255 or len(value) > 65535:
            raise ValueError("bad TLV")
        block += _TLV.pack(number, len(value)) + value
    if checksum:
        block += _TLV.pack(TLV_CRC32C, 4) + bytes(4)
    if len(block) > 65535:
        raise ValueError("header too long")
    header = _SIGNATURE + bytes((_PROXY, kind)) + len(block).to_bytes(2, "big") + block
    return header[:-4] + _crc32c(header).to_bytes(4, "big") if checksum else header


def _addresses(source: tuple[str, int], destination: tuple[str, int]) -> tuple[IPv4Address | IPv6Address, ...]:
    found: list[IPv4Address | IPv6Address] = []
    for text, port in (source, destination):
        if not 0 <= port <= 65535:
            raise ValueError("no port")
        if "%" in text:
            raise ValueError("address with a zone")
        found.append(IPv6Address(text) if ":" in text else IPv4Address(text))
    if found[0].version != found[1].version:
        raise ValueError("addresses of two families")
    return tuple(found)


def _write_path(path: str) -> bytes:
    octets = path.encode("utf-8", "surrogateescape")
    if len(octets) > 108:
        raise ValueError("path too long")
    return octets
