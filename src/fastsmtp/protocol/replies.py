"""A server's replies, read piece by piece as they come (RFC 5321 4.2).

Stricter than `fastsmtp.textproto.parse_response`, for a client takes its next step from what is read here: only CR LF ends a line,
and every line of a reply has the same code.
"""

from __future__ import annotations

import re
from typing import Final

from .. import limits
from ..errors import LineTooLong, ProtocolError
from ..reply import EnhancedCode, Reply

__all__ = ["ReplyReader"]

_LINE: Final = 4 * limits.REPLY_LINE  # RFC 5321 4.5.3.1.5 allows a quarter of it; many a server's text is longer
_AUTH_LINE: Final = limits.AUTH_LINE + len("334 \r\n")
_CONTROL: Final = re.compile("[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]")


class ReplyReader:
    """Replies out of octets in any cut.

    Attributes:
        challenges: a challenge of AUTH may come, whose line is longer than others (RFC 4954 section 4).
    """

    __slots__ = ("_buffer", "_code", "_lines", "_pos", "_size", "challenges")

    def __init__(self) -> None:
        self._buffer = b""
        self._pos = 0
        self._code = b""  # of the reply whose lines are being read
        self._lines: list[str] = []
        self._size = 0
        self.challenges = False

    @property
    def buffered(self) -> int:
        """Octets received that are no reply yet, those of a reply's first lines included."""
        return len(self._buffer) - self._pos + self._size

    def feed(self, data: bytes) -> None:
        """Take octets from the server."""
        self._buffer = self._buffer[self._pos :] + data if self._pos < len(self._buffer) else data
        self._pos = 0

    def next_reply(self, enhanced: bool = True) -> Reply | None:
        """The next reply, or None: it is not whole yet.

        An enhanced status code is taken for one where it is well formed and of the reply's own class (RFC 2034 section 4), whether
        or not the server offered them; where there is none it is `EnhancedCode.NOT_SET`.  Text that is not UTF-8 is
        made visible with backslashes, and so are control characters.

        Args:
            enhanced: False for the greeting and the answer to HELO, EHLO and LHLO, which have none (RFC 2034 section 4).

        Raises:
            LineTooLong: a line, or the whole reply, is longer than any server's.
            ProtocolError: it is no reply; nothing behind it can be understood.
        """
        while True:
            pos = self._pos
            end = self._buffer.find(b"\n", pos) + 1
            length = (end or len(self._buffer)) - pos
            limit = _AUTH_LINE if self.challenges else _LINE
            if length > limit or self._size + length > limits.REPLY_BYTES:
                raise LineTooLong("reply too long")
            if not end:
                return None
            self._pos = end
            self._size += length
            if not self._take(self._buffer[pos:end]):
                return self._reply(enhanced)
            if len(self._lines) >= limits.REPLY_LINES:
                raise LineTooLong("reply has too many lines")

    def _take(self, line: bytes) -> bool:
        """Take one line; whether another belongs to it."""
        if not line.endswith(b"\r\n"):
            raise ProtocolError("a reply line that does not end in CR LF")
        code, separator, text = line[:3], line[3:-2][:1], line[4:-2]
        if not (code.isdigit() and b"200" <= code <= b"599") or separator not in (b" ", b"-", b""):
            raise ProtocolError("not a reply line")
        if self._code and code != self._code:
            raise ProtocolError("a reply with more than one code")
        self._code = code
        self._lines.append(_visible(text))
        return separator == b"-"

    def _reply(self, enhanced: bool) -> Reply:
        code, lines = int(self._code), self._lines
        self._code = b""
        self._lines = []
        self._size = 0
        status = EnhancedCode.NOT_SET if enhanced else EnhancedCode.NONE
        if enhanced and not 300 <= code <= 399:
            word = lines[0].partition(" ")[0]
            found = EnhancedCode.parse(word)
            if found is not None and found.status_class == code // 100:
                status = found
                lines = [line[len(word) + 1 :] if f"{line} ".startswith(f"{word} ") else line for line in lines]
        return Reply(code, status, "\n".join(lines))


def _visible(octets: bytes) -> str:
    text = octets.decode("utf-8", "backslashreplace")
    if text.isascii() and text.isprintable():
        return text
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
