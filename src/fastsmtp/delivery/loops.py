"""Loop detection by the number of Received fields (RFC 5321 6.3)."""

from __future__ import annotations

import re
from typing import Final

from fastsmtp.reply import EnhancedCode, SMTPError

__all__ = ["MAX_HOPS", "LoopGuard"]

MAX_HOPS: Final = 50
"""Received fields that a message may have; RFC 5321 6.3 thinks of 100, Postfix's hopcount_limit is 50."""

# A field's name, with the blanks that old mail has before the colon (RFC 5322 4.5), or the line that ends the header.
_LINE: Final = re.compile(rb"\n(?:received[ \t]{0,16}:|(\r?\n))", re.IGNORECASE)
_LONGEST: Final = len("\nreceived:") + 16


class LoopGuard:
    """Counts the Received fields of one message as it passes, in constant memory and one pass.

    Args:
        limit: how many it may have.

    Attributes:
        count: how many it has so far.
    """

    __slots__ = ("_carry", "_in_header", "_limit", "count")

    def __init__(self, limit: int = MAX_HOPS) -> None:
        self._limit: Final = limit
        self._carry = b"\n"  # what may be the beginning of a match
        self._in_header = True
        self.count = 0

    def feed(self, chunk: bytes) -> None:
        """Look at the next octets, in any cut.

        Raises:
            SMTPError: 554 5.4.6, more Received fields than the limit.
        """
        if not (self._in_header and chunk):
            return
        data = self._carry + chunk
        seen = 0
        for match in _LINE.finditer(data):
            if match[1]:
                self._in_header = False
                return
            seen = match.end()
            self.count += 1
            if self.count > self._limit:
                raise SMTPError(554, EnhancedCode(5, 4, 6), "Too many hops: the message seems to be in a loop")
        start = data.rfind(b"\n", max(seen, len(data) - _LONGEST))
        self._carry = data[start:] if start >= 0 else b""
