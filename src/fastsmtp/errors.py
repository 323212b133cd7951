"""The exceptions that are no replies.

    FastSMTPError
    +-- ProtocolError           what a peer or a caller sent does not parse           (also ValueError)
    |   +-- LineTooLong         a line or a block is longer than its limit
    |   +-- HeaderError         a header block that is none
    +-- ResponseError           a reply with another code than the one expected
    +-- UnexpectedEOF           the input ended within a line, block or reply         (also EOFError)
    +-- MessageAborted          the message ended early: disconnected, timed out, reset (also ConnectionError)
    +-- ConfigurationError      options that contradict each other                    (also ValueError)

Replies that are raised (`SMTPError` and its kin) live in `fastsmtp.reply`.
"""

from __future__ import annotations

__all__ = [
    "ConfigurationError",
    "FastSMTPError",
    "HeaderError",
    "LineTooLong",
    "MessageAborted",
    "ProtocolError",
    "ResponseError",
    "UnexpectedEOF",
]


class FastSMTPError(Exception):
    """The root of every exception of this package."""


class ProtocolError(FastSMTPError, ValueError):
    """The input does not follow the protocol's grammar."""


class LineTooLong(ProtocolError):
    """A line, reply or block exceeds its limit."""


class HeaderError(ProtocolError):
    """A header block does not parse, or exceeds its limits."""


class ResponseError(FastSMTPError):
    """A reply came with a code other than the one expected.

    Attributes:
        code: the three-digit code that came.
        message: its text, lines separated by a line feed.
    """

    def __init__(self, code: int, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message

    def __str__(self) -> str:
        return f"{self.code:03d} {self.message}"


class UnexpectedEOF(FastSMTPError, EOFError):
    """The input ended in the middle of a line, a block or a reply."""


class MessageAborted(FastSMTPError, ConnectionError):
    """The message ended before its end: the peer disconnected, timed out, or the server is stopping."""


class ConfigurationError(FastSMTPError, ValueError):
    """An option has an impossible value, or two options contradict each other."""
