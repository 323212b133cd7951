"""XFORWARD and XCLIENT: what a trusted peer says of the client behind it (Postfix XFORWARD_README, XCLIENT_README).

Both commands have the same form, `NAME=value ADDR=value ...`, the values in xtext.  Where the two pages say less than it takes:

- Spaces before, between and after the attributes may be any number: Postfix reads it so, its own example ends with one.
- A value is not empty, has at most 255 octets, and is judged as decoded.  Values that are not xtext are refused; Postfix
  before 2.3 sent such.
- [UNAVAILABLE] and [TEMPUNAVAIL], in any case, are taken for every attribute.
- ADDR and DESTADDR are an IPv4 address or "IPV6:" and an IPv6 address, no brackets, no zone; what they become has no prefix
  and is in the form of RFC 5952.  XFORWARD_README lets ADDR be something else, Postfix never sends it.
- NAME and HELO of XFORWARD may be no DNS names: anything without control, space, 8-bit and header specials passes.
  XCLIENT decides over access, so there they are held to the rules of EHLO.
- PROTO of XFORWARD may be any name of at most 64 characters (Postfix sends QMQP); of XCLIENT: SMTP, ESMTP or LMTP.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from ipaddress import AddressValueError, IPv4Address, IPv6Address
from typing import Any, Final, TypeVar

from ..address import is_address_literal, is_domain
from ..errors import ProtocolError
from ..xtext import decode_xtext, encode_xtext

__all__ = [
    "XCLIENT_ATTRIBUTES",
    "XFORWARD_ATTRIBUTES",
    "ForwardError",
    "Unavailable",
    "Value",
    "XClient",
    "XForward",
    "encode_xclient",
    "encode_xforward",
    "parse_xclient",
    "parse_xforward",
]

_VALUE: Final = 255  # octets, decoded: XFORWARD_README note 1, XCLIENT_README note 1
_COMMAND: Final = 510  # octets of a command without its CRLF: XFORWARD_README note 2, XCLIENT_README note 1

# Printable ASCII but the specials of RFC 5322 3.2.3; an identifier may have a colon.
_token = re.compile(r"[!#-'*+\-./0-9=?A-Z^-~]++").fullmatch
_identifier = re.compile(r"[!#-'*+\-./0-9:=?A-Z^-~]++").fullmatch
_literal_characters = re.compile(r"\[[0-9A-Za-z:.\-]++\]").fullmatch
_protocol = re.compile(r"[0-9A-Za-z][0-9A-Za-z.\-/]{0,63}").fullmatch
_port = re.compile(r"[1-9][0-9]{0,4}").fullmatch
_ipv6_characters = re.compile(r"[0-9A-Fa-f:.]{2,45}").fullmatch
_control = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]").search

_CLIENT_PROTOCOLS: Final = frozenset({"SMTP", "ESMTP", "LMTP"})
_SOURCES: Final = frozenset({"LOCAL", "REMOTE"})


class ForwardError(ProtocolError):
    """The argument of XFORWARD or XCLIENT is malformed: 501.

    Attributes:
        reason: what is wrong, in words of ours (nothing of the input).
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class Unavailable(Enum):
    """Values that say why there is none.  For good is None."""

    TEMPORARY = "[TEMPUNAVAIL]"


Value = str | int | Unavailable | None


@dataclass(frozen=True, slots=True)
class XForward:
    """The client as XFORWARD described it: for logs and trace, no matter of access.

    What is None was given as [UNAVAILABLE], or never.  An ADDR given as [UNAVAILABLE] marks a local submission.

    Attributes:
        name: NAME, the host name.
        addr: ADDR, an IPv4 or IPv6 address without prefix or brackets.
        proto: PROTO in upper case, such as "ESMTP".
        helo: HELO, the name that the client gave itself.
        port: PORT.
        ident: IDENT, the peer's own name for the message (its queue identifier).
        source: SOURCE, "LOCAL" or "REMOTE".
        tempunavail: names of the attributes that were given as [TEMPUNAVAIL]; they are None.
    """

    name: str | None = None
    addr: str | None = None
    proto: str | None = None
    helo: str | None = None
    port: int | None = None
    ident: str | None = None
    source: str | None = None
    tempunavail: frozenset[str] = frozenset()

    def updated(self, values: Mapping[str, Value]) -> XForward:
        """This with what one more command said; what it did not mention stays (XFORWARD_README, Server operation)."""
        return _updated(self, values)


@dataclass(frozen=True, slots=True)
class XClient:
    """The client as XCLIENT described it: it takes the place of the real one (XCLIENT_README).

    What is None was given as [UNAVAILABLE], or never.

    Attributes:
        name: NAME, the host name.
        addr: ADDR, an IPv4 or IPv6 address without prefix or brackets.
        port: PORT.
        proto: PROTO in upper case: "SMTP", "ESMTP" or "LMTP".
        helo: HELO, a domain or an address literal.
        login: LOGIN, the name under which the client authenticated.
        destaddr: DESTADDR, the server's address that the client used, as `addr`.
        destport: DESTPORT.
        tempunavail: names of the attributes that were given as [TEMPUNAVAIL]; they are None.
    """

    name: str | None = None
    addr: str | None = None
    port: int | None = None
    proto: str | None = None
    helo: str | None = None
    login: str | None = None
    destaddr: str | None = None
    destport: int | None = None
    tempunavail: frozenset[str] = frozenset()

    def updated(self, values: Mapping[str, Value]) -> XClient:
        """This with what one more command said; what it did not mention stays."""
        return _updated(self, values)


_Described = TypeVar("_Described", XForward, XClient)


def _updated(old: _Described, values: Mapping[str, Value]) -> _Described:
    fields: dict[str, Any] = {}
    temporary = set(old.tempunavail)
    for name, value in values.items():
        if value is Unavailable.TEMPORARY:
            temporary.add(name)
            value = None
        else:
            temporary.discard(name)
        fields[name.lower()] = value
    return replace(old, tempunavail=frozenset(temporary), **fields)


def _read_address(text: str) -> str:
    if text[:5].upper() != "IPV6:":
        try:
            return str(IPv4Address(text))
        except AddressValueError:
            raise ForwardError("bad address") from None
    if _ipv6_characters(text, 5) is None:
        raise ForwardError("bad address")
    try:
        address = IPv6Address(text[5:])
    except AddressValueError:
        raise ForwardError("bad address") from None
    # Python 3.13 writes a mapped address so by itself, earlier versions do not.
    mapped = address.ipv4_mapped
    return str(address) if mapped is None else f"::ffff:{mapped}"


def _read_port(text: str) -> int:
    if _port(text) is None or (port := int(text)) > 65535:
        raise ForwardError("bad port")
    return port


def _is_literal(text: str) -> bool:
    return _literal_characters(text) is not None and is_address_literal(text)


def _read_any_name(text: str) -> str:
    if _token(text) is None and not _is_literal(text):
        raise ForwardError("bad name")
    return text


def _read_host_name(text: str) -> str:
    if not is_domain(text):
        raise ForwardError("bad name")
    return text


def _read_hello(text: str) -> str:
    if not is_domain(text) and not _is_literal(text):
        raise ForwardError("bad name")
    return text


def _read_any_protocol(text: str) -> str:
    if _protocol(text) is None:
        raise ForwardError("bad protocol")
    return text.upper()


def _read_client_protocol(text: str) -> str:
    if text.isascii() and text.upper() in _CLIENT_PROTOCOLS:
        return text.upper()
    raise ForwardError("bad protocol")


def _read_ident(text: str) -> str:
    if _identifier(text) is None:
        raise ForwardError("bad identifier")
    return text


def _read_source(text: str) -> str:
    if text.isascii() and text.upper() in _SOURCES:
        return text.upper()
    raise ForwardError("bad source")


def _read_login(text: str) -> str:
    if _control(text) is not None:
        raise ForwardError("bad login")
    return text


_Reader = Callable[[str], str | int]

# Each attribute and how its value is read, in the order in which they are sent.
_XFORWARD: Final[Mapping[str, _Reader]] = {
    "NAME": _read_any_name,
    "ADDR": _read_address,
    "PORT": _read_port,
    "PROTO": _read_any_protocol,
    "HELO": _read_any_name,
    "IDENT": _read_ident,
    "SOURCE": _read_source,
}
_XCLIENT: Final[Mapping[str, _Reader]] = {
    "NAME": _read_host_name,
    "ADDR": _read_address,
    "PORT": _read_port,
    "PROTO": _read_client_protocol,
    "HELO": _read_hello,
    "LOGIN": _read_login,
    "DESTADDR": _read_address,
    "DESTPORT": _read_port,
}

# What this module knows, and so what a server can offer.
XFORWARD_ATTRIBUTES: Final = frozenset(_XFORWARD)
XCLIENT_ATTRIBUTES: Final = frozenset(_XCLIENT)


def parse_xforward(argument: str, allowed: Collection[str] = XFORWARD_ATTRIBUTES) -> dict[str, Value]:
    """The attributes of an XFORWARD command, by their names in upper case (XFORWARD_README, Command syntax).

    Only those in `allowed`, the ones that EHLO offered, are taken.

    Raises:
        ForwardError: no attribute, one that is unknown or comes twice, or a value that it cannot have.
    """
    return _parse(argument, allowed, _XFORWARD)


def parse_xclient(argument: str, allowed: Collection[str] = XCLIENT_ATTRIBUTES) -> dict[str, Value]:
    """The attributes of an XCLIENT command, by their names in upper case (XCLIENT_README, Command syntax).

    Only those in `allowed`, the ones that EHLO offered, are taken.

    Raises:
        ForwardError: no attribute, one that is unknown or comes twice, or a value that it cannot have.
    """
    return _parse(argument, allowed, _XCLIENT)


def _parse(argument: str, allowed: Collection[str], known: Mapping[str, _Reader]) -> dict[str, Value]:
    if not argument.isascii():  # Else upper() would make ASCII of other letters.
        raise ForwardError("not ASCII")
    values: dict[str, Value] = {}
    for pair in argument.split(" "):
        if not pair:
            continue
        name, equals, wire = pair.partition("=")
        name = name.upper()
        if not equals or not wire:
            raise ForwardError("attribute without a value")
        if name not in known or name not in allowed:
            raise ForwardError("unknown attribute")
        if name in values:
            raise ForwardError("attribute repeated")
        try:
            text = decode_xtext(wire)
        except ValueError:
            raise ForwardError("malformed xtext") from None
        values[name] = _read(text, known[name])
    if not values:
        raise ForwardError("no attributes")
    return values


def _read(text: str, reader: _Reader) -> Value:
    if len(text.encode()) > _VALUE:
        raise ForwardError("value too long")
    if text.startswith("["):
        word = text.upper()
        if word == "[UNAVAILABLE]":
            return None
        if word == "[TEMPUNAVAIL]":
            return Unavailable.TEMPORARY
    return reader(text)


def encode_xforward(xforward: XForward, offered: Collection[str]) -> list[str]:
    """XFORWARD commands, without CRLF and of at most 510 octets, that say all of this; none if nothing is `offered`.

    Each attribute that the server offers is sent, so that nothing is left of an earlier client.  What cannot be sent,
    because no server would take the value or it fills more than a line, is [UNAVAILABLE]: no mail waits for a log line.
    """
    return _commands("XFORWARD", _pairs(xforward, offered, _XFORWARD, strict=False))


def encode_xclient(xclient: XClient, offered: Collection[str]) -> list[str]:
    """XCLIENT commands, without CRLF and of at most 510 octets, that say all of this; none if nothing is `offered`.

    Each attribute that the server offers is sent, but PROTO if it is None, for which XCLIENT has no word.  The session
    begins anew with each command (XCLIENT_README, Server response).

    Raises:
        ForwardError: a value that XCLIENT cannot carry.
    """
    return _commands("XCLIENT", _pairs(xclient, offered, _XCLIENT, strict=True))


def _pairs(
    described: XForward | XClient, offered: Collection[str], known: Mapping[str, _Reader], strict: bool
) -> list[str]:
    wanted = {name.upper() for name in offered}
    pairs = []
    for name, reader in known.items():
        if name not in wanted:
            continue
        value: str | int | None = getattr(described, name.lower())
        if value is None:
            if strict and name == "PROTO":
                continue
            word = Unavailable.TEMPORARY.value if name in described.tempunavail else "[UNAVAILABLE]"
            pairs.append(f"{name}={word}")
            continue
        try:
            pairs.append(f"{name}={_write(name, value, reader)}")
        except ForwardError:
            if strict:
                raise
            pairs.append(f"{name}=[UNAVAILABLE]")
    return pairs


def _write(name: str, value: str | int, reader: _Reader) -> str:
    """A value in xtext, after it was read as the server will read it."""
    text = str(value)
    if reader is _read_address and ":" in text:
        text = f"IPV6:{text}"
    try:
        read = _read(text, reader) if text else None
    except UnicodeEncodeError:
        raise ForwardError("not UTF-8") from None
    if read is None or read is Unavailable.TEMPORARY:
        raise ForwardError("value that means none")
    wire = encode_xtext(text)
    if len(name) + 1 + len(wire) > _COMMAND - len("XFORWARD "):
        raise ForwardError("value too long")
    return wire


def _commands(verb: str, pairs: list[str]) -> list[str]:
    lines: list[str] = []
    for pair in pairs:
        if lines and len(lines[-1]) + 1 + len(pair) <= _COMMAND:
            lines[-1] += f" {pair}"
        else:
            lines.append(f"{verb} {pair}")
    return lines
