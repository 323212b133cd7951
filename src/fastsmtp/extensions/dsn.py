"""Delivery status notifications (RFC 3461), with addresses in UTF-8 (RFC 6533)."""

from __future__ import annotations

import re
from typing import Final

from ..options import ServerOptions
from ..xtext import decode_xtext, encode_xtext
from .entry import Extension, Parameter
from .params import OriginalRecipient, ParameterError

__all__ = ["DSN"]

# RFC 3461 sections 4.2 and 4.4; of the value, as it is on the wire.
_ENVID_LENGTH: Final = 100
_ORCPT_LENGTH: Final = 500

_PRINTABLE: Final = re.compile(r"[ -~]++")
_ATOM: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/?^_`{|}~-]++")  # no "=", which ends the keyword of a parameter
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")

# RFC 6533 section 3: QUCHAR, EmbeddedUnicodeChar, and the code points that HEXPOINT may be (ours: without controls).
_UNITEXT: Final = re.compile(r"(?:[!-*,-<>-\[\]-~\xa0-\U0010ffff]|\\x\{[1-9A-Fa-f][0-9A-Fa-f]{1,5}\})++")
_EMBEDDED: Final = re.compile(r"\\x\{([0-9A-Fa-f]++)\}")
_TO_EMBED: Final = re.compile(r"[^!-*,-<>-\[\]-~]")


def _parse_ret(value: str | None, options: ServerOptions) -> str:
    ret = value.upper() if value else ""
    if ret not in ("FULL", "HDRS"):
        raise ParameterError("RET takes FULL or HDRS")
    return ret


def _parse_envid(value: str | None, options: ServerOptions) -> str:
    # RFC 3461 section 4.4: printable ASCII once decoded.
    if value is None or len(value) > _ENVID_LENGTH:
        raise ParameterError("ENVID takes 1 to 100 characters")
    try:
        envid = decode_xtext(value)
    except ValueError:
        raise ParameterError("ENVID is malformed xtext") from None
    if _PRINTABLE.fullmatch(envid) is None:
        raise ParameterError("ENVID takes printable ASCII only")
    return envid


def _parse_notify(value: str | None, options: ServerOptions) -> tuple[str, ...]:
    words = tuple(value.upper().split(",", 4)) if value else ()
    if words != ("NEVER",) and not (
        words and len(set(words)) == len(words) and {"SUCCESS", "FAILURE", "DELAY"}.issuperset(words)
    ):
        raise ParameterError("NOTIFY takes NEVER, or some of SUCCESS, FAILURE and DELAY")
    return words


def _parse_orcpt(value: str | None, options: ServerOptions) -> OriginalRecipient:
    if value is None or len(value) > _ORCPT_LENGTH:
        raise ParameterError("ORCPT takes 1 to 500 characters")
    addr_type, _, text = value.partition(";")
    if not text or _ATOM.fullmatch(addr_type) is None:
        raise ParameterError("ORCPT takes an address type, a semicolon and an address")
    try:
        address = _decode_utf8(text, options) if addr_type.lower() == "utf-8" else decode_xtext(text)
    except ValueError:
        raise ParameterError("ORCPT has a malformed address") from None
    if _CONTROL.search(address) is not None:
        raise ParameterError("ORCPT has a control character")
    return OriginalRecipient(addr_type, address)


def _decode_utf8(text: str, options: ServerOptions) -> str:
    # RFC 6533 section 3: UTF-8 as it is only where SMTPUTF8 is offered.
    if _UNITEXT.fullmatch(text) is None or not (options.smtputf8 or text.isascii()):
        raise ValueError("malformed utf-8 address")
    return _EMBEDDED.sub(_point, text)


def _point(match: re.Match[str]) -> str:
    char = chr(int(match[1], 16))
    if char < "\xa0" and char not in " +=\\":
        raise ValueError("a character that is not to be embedded")
    return char


def _encode_orcpt(orcpt: OriginalRecipient | None) -> str | None:
    """In utf-8-addr-xtext, which passes with and without SMTPUTF8."""
    if orcpt is None:
        return None
    if orcpt.addr_type.lower() == "utf-8":
        text = _TO_EMBED.sub(lambda match: f"\\x{{{ord(match[0]):02X}}}", orcpt.address)
    else:
        text = encode_xtext(orcpt.address)
    return f"ORCPT={orcpt.addr_type};{text}"


DSN: Final = Extension(
    "DSN",
    "RFC 3461",
    lambda offer: "DSN" if offer.options.dsn else None,
    mail=(
        Parameter("RET", "ret", _parse_ret, lambda ret: None if ret is None else f"RET={ret}"),
        Parameter(
            "ENVID", "envid", _parse_envid, lambda envid: None if envid is None else f"ENVID={encode_xtext(envid)}"
        ),
    ),
    rcpt=(
        Parameter(
            "NOTIFY",
            "notify",
            _parse_notify,
            lambda notify: None if notify is None else f"NOTIFY={','.join(notify)}",
        ),
        Parameter("ORCPT", "orcpt", _parse_orcpt, _encode_orcpt),
    ),
)
