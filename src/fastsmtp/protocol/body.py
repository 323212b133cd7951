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

    __slots__ = ("_bare", "_decoder", "_eight_bit_ok", "_limit", "_lines", "ended", "refusal")

    def __init__(self, options: ServerOptions, eight_bit_ok: bool) -> None:
        self._decoder = DotDecoder(keep_crlf=True)
        self._limit = options.max_message_bytes
        self._bare = options.bare_newlines
        self._lines = _Lines() if options.strict else None
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
        # Judged by all that has come, not by this piece: the reason is the same however the octets were cut.
        bare = decoder.bare_cr or decoder.bare_lf
        if decoder.size > self._limit > 0:
            self.refusal = TOO_LARGE
        elif bare and self._bare == "reject":
            self.refusal = BARE_NEWLINE
        else:
            if bare and self._bare == "normalize":
                # A CR at the end of a chunk is held back by the decoder, so no CR LF is ever torn apart here.
                payload = _BARE.sub(b"\r\n", payload)
            if (lines := self._lines) is not None:
                if decoder.has_nul:
                    self.refusal = NUL_IN_MESSAGE
                elif decoder.has_8bit and not self._eight_bit_ok:
                    self.refusal = EIGHT_BIT_UNDECLARED
                elif self.refusal is None and lines.too_long(payload):
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
        "ended",
        "left",
        "refusal",
    )

    def __init__(self, options: ServerOptions, eight_bit_ok: bool, binary: bool) -> None:
        self._limit = options.max_message_bytes
        self._bare = options.bare_newlines
        self._eight_bit_ok = eight_bit_ok
        self._binary = binary
        self._lines = _Lines() if options.strict else None
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
        if self.refusal is TOO_LARGE:
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
        bare = False
        if self._bare != "keep":
            ends = payload.count(b"\r\n")
            bare = not (payload.count(b"\n") == ends == payload.count(b"\r"))
        # As with DATA, a later piece may have the better reason.
        reason = self.refusal
        if bare and self._bare == "reject":
            reason = BARE_NEWLINE
        elif reason is not BARE_NEWLINE:
            if bare:
                payload = _BARE.sub(b"\r\n", payload)
            if (lines := self._lines) is not None:
                if b"\0" in payload:
                    reason = NUL_IN_MESSAGE
                elif reason is not NUL_IN_MESSAGE and not (self._eight_bit_ok or payload.isascii()):
                    reason = EIGHT_BIT_UNDECLARED
                elif reason is None and lines.too_long(payload):
                    reason = LONG_LINE_IN_MESSAGE
        self.refusal = reason
        return payload if reason is None else b""
