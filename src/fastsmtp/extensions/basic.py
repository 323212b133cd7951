"""Size, character sets, kinds of body, pipelining: what about every server has."""

from __future__ import annotations

from typing import Final

from ..options import ServerOptions
from .entry import Extension, Parameter, flag
from .params import ParameterError

__all__ = ["BINARYMIME", "CHUNKING", "EIGHT_BIT_MIME", "ENHANCED_STATUS_CODES", "PIPELINING", "SIZE", "SMTPUTF8"]

_TEXT: Final = ("7BIT", "8BITMIME")


def _parse_size(value: str | None, options: ServerOptions) -> int:
    # RFC 1870 section 6: 1 to 20 digits; a value of 2^63 and more is only too large, never an error.
    if value is None or len(value) > 20 or not (value.isascii() and value.isdigit()):
        raise ParameterError("SIZE takes 1 to 20 digits")
    return int(value)


def _encode_size(size: int | None) -> str | None:
    return None if size is None else f"SIZE={size}"


def _parse_body(value: str | None, options: ServerOptions) -> str:
    body = value.upper() if value else ""
    if body not in _TEXT:
        raise ParameterError("BODY takes 7BIT or 8BITMIME")
    return body


def _parse_any_body(value: str | None, options: ServerOptions) -> str:
    body = value.upper() if value else ""
    if body != "BINARYMIME" and body not in _TEXT:
        raise ParameterError("BODY takes 7BIT, 8BITMIME or BINARYMIME")
    return body


PIPELINING: Final = Extension("PIPELINING", "RFC 2920", lambda offer: "PIPELINING")
EIGHT_BIT_MIME: Final = Extension(
    "8BITMIME",
    "RFC 6152",
    lambda offer: "8BITMIME",
    mail=(
        Parameter(
            "BODY",
            "body",
            _parse_body,
            lambda body: None if body is None or body == "BINARYMIME" else f"BODY={body}",
            hint=True,
        ),
    ),
)
SIZE: Final = Extension(
    "SIZE",
    "RFC 1870",
    # RFC 1870 section 4: 0 says that there is no fixed maximum.
    lambda offer: f"SIZE {offer.options.max_message_bytes}",
    mail=(Parameter("SIZE", "size", _parse_size, _encode_size, hint=True),),
)
SMTPUTF8: Final = Extension(
    "SMTPUTF8",
    "RFC 6531",
    lambda offer: "SMTPUTF8" if offer.options.smtputf8 else None,
    mail=(flag("SMTPUTF8", "smtputf8"),),
)
CHUNKING: Final = Extension("CHUNKING", "RFC 3030", lambda offer: "CHUNKING" if offer.options.chunking else None)
# Behind 8BITMIME in the table, as its BODY takes the place of that one's (RFC 3030 section 3); nothing without CHUNKING.
BINARYMIME: Final = Extension(
    "BINARYMIME",
    "RFC 3030",
    lambda offer: "BINARYMIME" if offer.options.chunking and offer.options.binarymime else None,
    mail=(
        Parameter("BODY", "body", _parse_any_body, lambda body: "BODY=BINARYMIME" if body == "BINARYMIME" else None),
    ),
)
ENHANCED_STATUS_CODES: Final = Extension("ENHANCEDSTATUSCODES", "RFC 2034", lambda offer: "ENHANCEDSTATUSCODES")
