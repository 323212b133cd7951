"""Sessions that keep nothing: `DiscardSession` for measurements, `PrintSession` to look at what comes."""

from __future__ import annotations

import codecs
import re
from collections.abc import Awaitable, Callable
from typing import Final, TextIO

from fastsmtp.reply import Reply
from fastsmtp.session import DataContext, DataReader, DefaultSession, streaming

__all__ = ["DiscardSession", "PrintSession", "printable"]

_CONTROL: Final = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u200e\u200f\u2028-\u202e\u2066-\u2069]|\r(?!\n)")


def printable(text: str) -> str:
    """`text` for a terminal: CR LF becomes LF, tabs and line feeds stay.

    Other control characters, and those that turn the writing direction, become visible escapes such as ``\\x1b``.
    """
    return _CONTROL.sub(_escape, text).replace("\r\n", "\n")


def _escape(match: re.Match[str]) -> str:
    code = ord(match.group())
    return f"\\x{code:02x}" if code < 256 else f"\\u{code:04x}"


class DiscardSession(DefaultSession):
    """Takes every message and keeps nothing of it, in constant memory."""

    @streaming
    def data(self, reader: DataReader, context: DataContext) -> Awaitable[None] | None:
        """Read to the end and drop."""
        return None if reader.complete else self._drop(reader)

    async def _drop(self, reader: DataReader) -> None:
        async for _ in reader:
            pass


class PrintSession(DefaultSession):
    """Prints each envelope and message, chunk by chunk as it comes.

    Each message is printed as one block when it fits a chunk; longer ones of several connections may interleave.

    Args:
        stream: where to; what the stream's encoding lacks is printed as escapes.
    """

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    async def data(self, reader: DataReader, context: DataContext) -> Reply | None:
        """Print it; the last line tells whether the message came whole."""
        decode: Callable[..., str] = codecs.getincrementaldecoder("utf-8")("backslashreplace").decode
        lines = [f"---------- MAIL FROM:<{printable(context.sender)}>\n"]
        lines += [f"---------- RCPT TO:<{printable(recipient)}>\n" for recipient in context.recipients]
        head = "".join(lines)
        held = ""
        try:
            async for chunk in reader:
                text = held + decode(chunk)
                held = "\r" if text.endswith("\r") else ""  # its line feed may be in the next chunk
                self._write(head + printable(text[:-1] if held else text))
                head = ""
        except BaseException:
            self._write(f"{head}\n---------- cut off after {reader.size} octets\n")
            raise
        self._write(f"{head}{printable(held + decode(b'', True))}---------- {reader.size} octets\n")
        return None

    def _write(self, text: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        self._stream.flush()
