"""Receiving a message: dots or chunks, limits and the policy on what may be in it (RFC 5321 4.5.2, 2.3.8, RFC 3030)."""

from __future__ import annotations

import re
from typing import Final

from .. import limits
from ..options import ServerOptions
from ..reply import BARE_NEWLINE, EIGHT_BIT_UNDECLARED, LONG_LINE_IN_MESSAGE, NUL_IN_MESSAGE, TOO_LARGE, Reply
from ..textproto import DotDecoder

__all__ = ["ChunkReceiver", "DataReceiver"]

_BARE: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n")


class _Lines:
    """How long the lines of a text are that comes in pieces, none of which ends between CR and LF."""

    __slots__ = ("_begun",)

    def __init__(self) -> None:
        self._begun = 0  # octets of the line that has no end yet

    def too_long(self, payload: bytes) -> bool:
        """Tell whether a line that this piece is in is longer than may be (RFC 5321 4.5.3.1.6)."""
        lines = payload.split(b"\r\n")
        first = self._begun + len(lines[0])
        self._begun = len(lines[-1]) if len(lines) > 1 else first
        return max(first, *map(len, lines)) > limits.TEXT_LINE - 2


class DataReceiver:
    """The body of one DATA command.

    It ends in exactly two ways: complete, or refused while its octets are still consumed as body up to the end; the third, a
    closed connection, is its owner's.

    Attributes:
        refusal: why the message is refused, or None.
        ended: the end of data has been seen.
    """

    __slots__ = ("_bare", "_decoder", "_eight_bit_ok", "_limit", "_lines", "_strict", "ended", "refusal")

    def __init__(self, options: ServerOptions, eight_bit_ok: bool) -> None:
        self._decoder = DotDecoder(keep_crlf=True)
        self._limit = options.max_message_bytes
        self._bare = options.bare_newlines
        self._strict = options.strict
        self._lines = _Lines()
        self._eight_bit_ok = eight_bit_ok
        self.refusal: Reply | None = None
        self.ended = False

    def receive(self, data: bytes, start: int) -> tuple[bytes, int]:
        """Take `data[start:]`: the payload in it, and the index past what belongs to the message."""
        decoder = self._decoder
        payload, end = decoder.feed(data, start)
        if end:
            self.ended = True
        else:
            end = len(data)
        if self.refusal is not None:
            return b"", end
        if decoder.size > self._limit > 0:
            self.refusal = TOO_LARGE
        elif (decoder.bare_cr or decoder.bare_lf) and self._bare != "keep":
            if self._bare == "normalize":
                # A CR at the end of a chunk is held back by the decoder, so no CR LF is ever torn apart here.
                payload = _BARE.sub(b"\r\n", payload)
            else:
                self.refusal = BARE_NEWLINE
        if self._strict and self.refusal is None:
            if decoder.has_nul:
                self.refusal = NUL_IN_MESSAGE
            elif decoder.has_8bit and not self._eight_bit_ok:
                self.refusal = EIGHT_BIT_UNDECLARED
            elif self._lines.too_long(payload):
                self.refusal = LONG_LINE_IN_MESSAGE
        return (payload, end) if self.refusal is None else (b"", end)


class ChunkReceiver:
    """The chunks of one message's BDAT commands (RFC 3030 section 2).

    A refused chunk is consumed as a chunk, and so are those behind it; the message stays refused.

    Attributes:
        refusal: why the message is refused, or None.
        left: octets of the current chunk that are still to come.
        ended: the last chunk is whole.
    """

    __slots__ = (
        "_bare",
        "_binary",
        "_cr",
        "_eight_bit_ok",
        "_last",
        "_limit",
        "_lines",
        "_size",
        "_strict",
        "ended",
        "left",
        "refusal",
    )

    def __init__(self, options: ServerOptions, eight_bit_ok: bool, binary: bool) -> None:
        self._limit = options.max_message_bytes
        self._bare = options.bare_newlines
        self._strict = options.strict
        self._eight_bit_ok = eight_bit_ok
        self._binary = binary
        self._lines = _Lines()
        self._size = 0
        self._cr = False  # a CR is held back until it is known whether LF follows
        self._last = False
        self.refusal: Reply | None = None
        self.left = 0
        self.ended = False

    def begin(self, size: int, last: bool) -> None:
        """A chunk of this size begins; a message that would be too large is refused before an octet of it is taken."""
        self._size += size
        if self._size > self._limit > 0 and self.refusal is None:
            self.refusal = TOO_LARGE
        self.left = size
        self._last = last

    def receive(self, data: bytes, start: int) -> tuple[bytes, int]:
        """Take `data[start:]`: the payload in it, and the index past what belongs to the chunk."""
        end = min(len(data), start + self.left)
        self.left -= end - start
        self.ended = self._last and not self.left
        if self.refusal is not None:
            return b"", end
        payload = data[start:end]
        if not self._binary:
            payload = self._text(payload)
        return payload, end

    def _text(self, payload: bytes) -> bytes:
        """Apply to text what DATA's text is held to; octets of BINARYMIME are left as they are."""
        if self._cr:
            payload = b"\r" + payload
        self._cr = not self.ended and payload.endswith(b"\r")
        if self._cr:
            payload = payload[:-1]
        lines = payload.count(b"\r\n")
        if self._bare != "keep" and not (payload.count(b"\n") == lines == payload.count(b"\r")):
            if self._bare == "normalize":
                payload = _BARE.sub(b"\r\n", payload)
            else:
                self.refusal = BARE_NEWLINE
        if self._strict and self.refusal is None:
            if b"\0" in payload:
                self.refusal = NUL_IN_MESSAGE
            elif not (self._eight_bit_ok or payload.isascii()):
                self.refusal = EIGHT_BIT_UNDECLARED
            elif self._lines.too_long(payload):
                self.refusal = LONG_LINE_IN_MESSAGE
        return payload if self.refusal is None else b""
