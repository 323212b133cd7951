"""Receiving a message: dots, limits and the policy on what may be in it (RFC 5321 4.5.2, 2.3.8)."""

from __future__ import annotations

import re
from typing import Final

from ..options import ServerOptions
from ..reply import BARE_NEWLINE, EIGHT_BIT_UNDECLARED, NUL_IN_MESSAGE, TOO_LARGE, Reply
from ..textproto import DotDecoder

__all__ = ["DataReceiver"]

_BARE: Final = re.compile(rb"\r(?!\n)|(?<!\r)\n")


class DataReceiver:
    """The body of one DATA command.

    It ends in exactly two ways: complete, or refused while its octets are still consumed as body up to the end; the third, a
    closed connection, is its owner's.

    Attributes:
        refusal: why the message is refused, or None.
        ended: the end of data has been seen.
    """

    __slots__ = ("_bare", "_decoder", "_eight_bit_ok", "_limit", "_strict", "ended", "refusal")

    def __init__(self, options: ServerOptions, eight_bit_ok: bool) -> None:
        self._decoder = DotDecoder(keep_crlf=True)
        self._limit = options.max_message_bytes
        self._bare = options.bare_newlines
        self._strict = options.strict
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
                return _BARE.sub(b"\r\n", payload), end
            self.refusal = BARE_NEWLINE
        elif self._strict and decoder.has_nul:
            self.refusal = NUL_IN_MESSAGE
        elif self._strict and decoder.has_8bit and not self._eight_bit_ok:
            self.refusal = EIGHT_BIT_UNDECLARED
        return (payload, end) if self.refusal is None else (b"", end)
