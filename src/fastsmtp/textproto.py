"""The text protocol, on whole ``bytes`` and over a connection (RFC 5321 4.2 and 4.5.2, RFC 5322 2.2, RFC 959 page 36).

The work on octets is done by one of two twins with the same contract: the compiled `_textproto`, or the pure
`_textproto_py` where no extension was built.  `IMPLEMENTATION` tells which; ``FASTSMTP_PURE=1`` and
``FASTSMTP_REQUIRE_EXTENSION=1`` in the environment choose.

On whole ``bytes`` work `decode_dot`, `encode_dot`, `parse_mime_header` and `parse_response`; piece by piece
`DotDecoder` and `DotEncoder`; over anything with ``async read(n)`` and ``write(data)`` work `Reader`, `Writer` and
`TextConn`.
"""

from __future__ import annotations

from . import _twin
from ._mimeheader import MIMEHeader, parse_mime_header
from ._textio import DotReader, DotWriter, Pipeline, Reader, TextConn, Writer, check_code
from ._twin import (
    CONTROL,
    EIGHT_BIT,
    IMPLEMENTATION,
    NOT_UTF8,
    DotDecoder,
    DotEncoder,
    canonical_mime_header_key,
    encode_dot,
    encode_reply,
    find_line,
    scan_command,
    scan_domain,
    scan_path,
)
from .errors import ProtocolError, ResponseError, UnexpectedEOF

__all__ = [
    "CONTROL",
    "EIGHT_BIT",
    "IMPLEMENTATION",
    "NOT_UTF8",
    "DotDecoder",
    "DotEncoder",
    "DotReader",
    "DotWriter",
    "MIMEHeader",
    "Pipeline",
    "ProtocolError",
    "Reader",
    "ResponseError",
    "TextConn",
    "Writer",
    "canonical_mime_header_key",
    "decode_dot",
    "encode_dot",
    "encode_reply",
    "find_line",
    "parse_mime_header",
    "parse_response",
    "scan_command",
    "scan_domain",
    "scan_path",
]


def decode_dot(block: bytes, keep_crlf: bool = False) -> bytes:
    """The text that `block`, one dot-encoded text with its end, stands for (RFC 5321 4.5.2).

    Each CR LF becomes LF unless `keep_crlf` is true.
    Raises UnexpectedEOF when the end of data is missing, ProtocolError when octets follow it.
    """
    payload, end = DotDecoder(keep_crlf).feed(block)
    if not end:
        raise UnexpectedEOF("the end of data is missing")
    if end != len(block):
        raise ProtocolError("octets after the end of data")
    return payload


def parse_response(block: bytes, expect_code: int = 0) -> tuple[int, str]:
    """The one reply that `block` is: `(code, message)`, the lines of message separated by LF.

    The code must begin with the digits of `expect_code` (31 accepts 310 to 319); 0 and less accept any.  Both
    multi-line forms are understood (RFC 959 page 36).  Raises ResponseError for another code, UnexpectedEOF when the
    reply has not ended, ProtocolError when it is none or octets follow it.
    """
    end, code, message = _twin.parse_response(block)
    if not end:
        raise UnexpectedEOF("the reply has not ended")
    if end != len(block):
        raise ProtocolError("octets after the reply")
    check_code(code, message, expect_code)
    return code, message
