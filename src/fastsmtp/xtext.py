"""xtext: any text within the printable characters of an ESMTP parameter (RFC 3461 section 4)."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["decode_xtext", "encode_xtext"]

# xchar is "!" to "~" but "+" and "="; RFC 3461 wants upper-case digits behind "+", and lower-case ones are read as well.
_XTEXT: Final = re.compile(r"(?:[!-*,-<>-~]|\+[0-9A-Fa-f]{2})*+")
_ENCODED: Final = re.compile(r"(?:\+[0-9A-Fa-f]{2})+")
_NOT_XCHAR: Final = re.compile(rb"[^!-*,-<>-~]")


def encode_xtext(text: str) -> str:
    """`text` as xtext; what is not printable ASCII, "+" and "=" become "+" and two hexadecimal digits per octet of UTF-8."""
    return _NOT_XCHAR.sub(lambda match: b"+%02X" % match[0][0], text.encode()).decode("ascii")


def decode_xtext(text: str) -> str:
    """The text that an xtext stands for.

    Raises:
        ValueError: it is no xtext, or what it stands for is not UTF-8.
    """
    if _XTEXT.fullmatch(text) is None:
        raise ValueError("malformed xtext")
    if "+" not in text:
        return text
    octets = _ENCODED.sub(lambda match: bytes.fromhex(match[0].replace("+", "")).decode("latin-1"), text)
    return octets.encode("latin-1").decode("utf-8")
