"""Replies: what a server answers, a session returns and a client receives (RFC 5321 4.2, RFC 3463, RFC 2034)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Final, NamedTuple

from .errors import FastSMTPError
from .textproto import encode_reply

__all__ = [
    "ALREADY_AUTHENTICATED",
    "AUTHENTICATED",
    "AUTH_CANCELLED",
    "AUTH_FAILED",
    "AUTH_MALFORMED",
    "AUTH_NEEDS_TLS",
    "AUTH_SYNTAX",
    "AUTH_TOO_LONG",
    "AUTH_UNAVAILABLE",
    "BAD_BASE64",
    "BAD_CHARACTERS",
    "BAD_HELLO",
    "BAD_SEQUENCE",
    "BARE_NEWLINE",
    "BDAT_SYNTAX",
    "BINARY_NEEDS_BDAT",
    "BYE",
    "CHUNK_OK",
    "EARLY_TALKER",
    "EIGHT_BIT_UNDECLARED",
    "ETRN_SYNTAX",
    "EXPN_CANNOT",
    "EXPN_NEEDS_ARGUMENT",
    "FORWARD_SYNTAX",
    "HELLO_FIRST",
    "HOOK_FAILED",
    "LINE_TOO_LONG",
    "LONG_LINE_IN_MESSAGE",
    "MAIL_FIRST",
    "MESSAGE_OK",
    "MIXED_WITH_BDAT",
    "NESTED_MAIL",
    "NOT_AUTHORIZED",
    "NOT_IMPLEMENTED",
    "NO_ARGUMENTS",
    "NO_HTTP",
    "NO_RECIPIENTS",
    "NO_VALID_RECIPIENTS",
    "NUL_IN_MESSAGE",
    "OK",
    "QUEUING_STARTED",
    "READY_FOR_TLS",
    "RECIPIENT_OK",
    "SENDER_OK",
    "SHUTTING_DOWN",
    "START_MAIL_INPUT",
    "TIMED_OUT",
    "TLS_REQUIRED",
    "TLS_UNAVAILABLE",
    "TOO_FAST",
    "TOO_LARGE",
    "TOO_MANY_AUTH_FAILURES",
    "TOO_MANY_CONNECTIONS",
    "TOO_MANY_ERRORS",
    "TOO_MANY_RECIPIENTS",
    "UNKNOWN_MECHANISM",
    "UNRECOGNIZED",
    "VRFY_CANNOT",
    "VRFY_NEEDS_ARGUMENT",
    "WRONG_HELLO_LMTP",
    "WRONG_HELLO_SMTP",
    "AuthFailed",
    "AuthRequired",
    "AuthUnsupported",
    "DataTooLarge",
    "EnhancedCode",
    "Reply",
    "SMTPError",
]


class _StatusTriple(NamedTuple):
    status_class: int
    subject: int
    detail: int


class EnhancedCode(_StatusTriple):
    """An enhanced status code, for example ``EnhancedCode(5, 7, 1)`` (RFC 3463 section 2).

    ``EnhancedCode.NOT_SET`` lets the reply's own class speak: a 4xx goes out as 4.0.0.  ``EnhancedCode.NONE`` sends
    none at all; RFC 2034 wants one on every 2xx, 4xx and 5xx but the greeting and the answers to HELO and EHLO.
    """

    __slots__ = ()
    NOT_SET: ClassVar[EnhancedCode]
    NONE: ClassVar[EnhancedCode]

    def __str__(self) -> str:
        return f"{self.status_class}.{self.subject}.{self.detail}"

    @classmethod
    def parse(cls, text: str) -> EnhancedCode | None:
        """The code that ``text`` is ("5.7.1"), or None when it is none (RFC 3463 section 2: 1, 1-3, 1-3 digits)."""
        parts = text.split(".")
        if len(parts) != 3 or not all(part.isascii() and part.isdigit() and len(part) <= 3 for part in parts):
            return None
        if parts[0] not in ("2", "4", "5"):
            return None
        return cls(int(parts[0]), int(parts[1]), int(parts[2]))


EnhancedCode.NOT_SET = EnhancedCode(0, 0, 0)
EnhancedCode.NONE = EnhancedCode(-1, -1, -1)


@dataclass(frozen=True, slots=True)
class Reply:
    """One reply.

    Args:
        code: 200 to 599; ValueError otherwise.
        enhanced_code: the enhanced status code, see `EnhancedCode`.
        message: the text; a line feed makes it a multi-line reply.  Whatever it holds is made safe when it is encoded.
    """

    code: int
    enhanced_code: EnhancedCode = EnhancedCode.NOT_SET
    message: str = ""
    _wire: bytes | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 200 <= self.code <= 599:
            raise ValueError(f"no reply code of SMTP: {self.code}")

    @property
    def accepted(self) -> bool:
        """True for 2xx and 3xx: what was asked for is done, or goes on."""
        return self.code < 400

    def encode(self) -> bytes:
        """The reply as it goes over the wire, encoded once and kept."""
        wire = self._wire
        if wire is None:
            code, status = self.code, self.enhanced_code
            if status == EnhancedCode.NOT_SET and not 300 <= code <= 399:
                enhanced = f"{code // 100}.0.0"
            elif status == EnhancedCode.NONE or status == EnhancedCode.NOT_SET:
                enhanced = ""
            else:
                enhanced = str(status)
            wire = encode_reply(code, enhanced, self.message)
            object.__setattr__(self, "_wire", wire)
        return wire

    def __str__(self) -> str:
        return self.encode().decode("utf-8").rstrip("\r\n").replace("\r\n", "\n")


class SMTPError(FastSMTPError):
    """A reply of class 4 or 5, raised.

    A session hook raises it to refuse; the client raises it for what the server refused.

    Args:
        code: 400 to 599; ValueError otherwise.
        enhanced_code: the enhanced status code, see `EnhancedCode`.
        message: the text for the peer.
    """

    def __init__(self, code: int, enhanced_code: EnhancedCode = EnhancedCode.NOT_SET, message: str = "") -> None:
        if not 400 <= code <= 599:
            raise ValueError(f"no error code of SMTP: {code}")
        super().__init__(code, enhanced_code, message)
        self.reply: Final = Reply(code, EnhancedCode(*enhanced_code), message)

    @classmethod
    def from_reply(cls, reply: Reply) -> SMTPError:
        """The exception that carries `reply`; ValueError when that is no refusal."""
        return SMTPError(reply.code, reply.enhanced_code, reply.message)

    @property
    def code(self) -> int:
        """The three-digit code."""
        return self.reply.code

    @property
    def enhanced_code(self) -> EnhancedCode:
        """The enhanced status code."""
        return self.reply.enhanced_code

    @property
    def message(self) -> str:
        """The text."""
        return self.reply.message

    @property
    def temporary(self) -> bool:
        """True for 4xx: the same may go through later (RFC 5321 4.2.1)."""
        return self.reply.code < 500

    def __str__(self) -> str:
        return str(self.reply)


class AuthRequired(SMTPError):
    """530 5.7.0: the backend takes no mail without authentication (RFC 4954 section 6)."""

    def __init__(self, message: str = "Please authenticate first") -> None:
        super().__init__(530, EnhancedCode(5, 7, 0), message)


class AuthFailed(SMTPError):
    """535 5.7.8: the credentials are wrong (RFC 4954 section 6)."""

    def __init__(self, message: str = "Authentication credentials invalid") -> None:
        super().__init__(535, EnhancedCode(5, 7, 8), message)


class AuthUnsupported(SMTPError):
    """502 5.5.1: the backend knows no authentication (RFC 5321 4.2.4)."""

    def __init__(self, message: str = "Authentication not supported") -> None:
        super().__init__(502, EnhancedCode(5, 5, 1), message)


class DataTooLarge(SMTPError):
    """552 5.3.4: the message is larger than the server takes (RFC 1870 section 6)."""

    def __init__(self, message: str = "Maximum message size exceeded") -> None:
        super().__init__(552, EnhancedCode(5, 3, 4), message)


# The standard replies.  Codes: RFC 5321 4.2.2 and 4.3.2; enhanced codes: RFC 3463 and the IANA registry (RFC 5248).


def _standard(code: int, status: str, message: str) -> Reply:
    return Reply(code, (status and EnhancedCode.parse(status)) or EnhancedCode.NONE, message)


OK: Final = _standard(250, "2.0.0", "OK")
SENDER_OK: Final = _standard(250, "2.1.0", "Sender OK")
RECIPIENT_OK: Final = _standard(250, "2.1.5", "Recipient OK")
MESSAGE_OK: Final = _standard(250, "2.0.0", "Message accepted")
CHUNK_OK: Final = _standard(250, "2.0.0", "Chunk received")
START_MAIL_INPUT: Final = _standard(354, "", "Start mail input; end with <CRLF>.<CRLF>")
BYE: Final = _standard(221, "2.0.0", "Bye")
VRFY_CANNOT: Final = _standard(252, "2.0.0", "Cannot VRFY user, but will accept message and attempt delivery")

UNRECOGNIZED: Final = _standard(500, "5.5.2", "Command not recognized")
LINE_TOO_LONG: Final = _standard(500, "5.5.2", "Line too long")
BAD_CHARACTERS: Final = _standard(500, "5.5.2", "Control characters or bad UTF-8 in command")
NOT_IMPLEMENTED: Final = _standard(502, "5.5.1", "Command not implemented")
NO_ARGUMENTS: Final = _standard(501, "5.5.4", "This command takes no argument")
VRFY_NEEDS_ARGUMENT: Final = _standard(501, "5.5.4", "VRFY needs an argument")
BAD_HELLO: Final = _standard(501, "5.5.4", "A domain name or address literal is needed")
WRONG_HELLO_LMTP: Final = _standard(500, "5.5.1", "This is LMTP, use LHLO")
WRONG_HELLO_SMTP: Final = _standard(500, "5.5.1", "This is SMTP, use EHLO or HELO")
HELLO_FIRST: Final = _standard(503, "5.5.1", "Say hello first")
NESTED_MAIL: Final = _standard(503, "5.5.1", "Sender already given")
MAIL_FIRST: Final = _standard(503, "5.5.1", "MAIL first")
BAD_SEQUENCE: Final = _standard(503, "5.5.1", "Bad sequence of commands")
MIXED_WITH_BDAT: Final = _standard(503, "5.5.1", "A message in chunks has begun")
BINARY_NEEDS_BDAT: Final = _standard(503, "5.5.1", "BINARYMIME needs BDAT")
BDAT_SYNTAX: Final = _standard(501, "5.5.4", "Syntax: BDAT size [LAST]")
NO_RECIPIENTS: Final = _standard(503, "5.5.1", "RCPT first")
NO_VALID_RECIPIENTS: Final = _standard(554, "5.5.1", "No valid recipients")
TOO_MANY_RECIPIENTS: Final = _standard(452, "4.5.3", "Too many recipients")
TOO_LARGE: Final = DataTooLarge().reply
BARE_NEWLINE: Final = _standard(550, "5.6.0", "CR and LF may only come together in a message (RFC 5321 2.3.8)")
LONG_LINE_IN_MESSAGE: Final = _standard(550, "5.6.0", "Line of more than 1000 octets in message")
NUL_IN_MESSAGE: Final = _standard(550, "5.6.0", "NUL in message")
EIGHT_BIT_UNDECLARED: Final = _standard(550, "5.6.1", "8-bit text without BODY=8BITMIME")
HOOK_FAILED: Final = _standard(451, "4.3.0", "Local error in processing")
TOO_MANY_ERRORS: Final = _standard(421, "4.7.0", "Too many errors")
NO_HTTP: Final = _standard(421, "4.7.0", "This is no HTTP server")
TOO_MANY_CONNECTIONS: Final = _standard(421, "4.7.0", "Too many connections, try again later")
TIMED_OUT: Final = _standard(421, "4.4.2", "Timed out")
SHUTTING_DOWN: Final = _standard(421, "4.3.2", "Service shutting down")
AUTHENTICATED: Final = _standard(235, "2.7.0", "Authentication succeeded")
READY_FOR_TLS: Final = _standard(220, "2.0.0", "Ready to start TLS")
TLS_REQUIRED: Final = _standard(530, "5.7.0", "Must issue a STARTTLS command first")
AUTH_NEEDS_TLS: Final = _standard(538, "5.7.11", "Encryption required for authentication")
AUTH_SYNTAX: Final = _standard(501, "5.5.4", "Syntax: AUTH mechanism [initial-response]")
AUTH_CANCELLED: Final = _standard(501, "5.7.0", "Authentication cancelled")
AUTH_TOO_LONG: Final = _standard(500, "5.5.6", "Authentication exchange line is too long")
AUTH_FAILED: Final = _standard(535, "5.7.8", "Authentication credentials invalid")
AUTH_MALFORMED: Final = _standard(501, "5.5.2", "Malformed authentication response")
AUTH_UNAVAILABLE: Final = _standard(454, "4.7.0", "Temporary authentication failure")
TOO_MANY_AUTH_FAILURES: Final = _standard(421, "4.7.0", "Too many authentication failures")
ALREADY_AUTHENTICATED: Final = _standard(503, "5.5.1", "Already authenticated")
BAD_BASE64: Final = _standard(501, "5.5.2", "Cannot decode base64")
UNKNOWN_MECHANISM: Final = _standard(504, "5.5.4", "Authentication mechanism not offered")
NOT_AUTHORIZED: Final = _standard(550, "5.7.1", "Not authorized")
FORWARD_SYNTAX: Final = _standard(501, "5.5.4", "Bad attribute")
EXPN_NEEDS_ARGUMENT: Final = _standard(501, "5.5.4", "EXPN needs an argument")
EXPN_CANNOT: Final = _standard(252, "2.0.0", "Cannot expand the list")
ETRN_SYNTAX: Final = _standard(501, "5.5.4", "Syntax: ETRN node")
QUEUING_STARTED: Final = _standard(250, "2.0.0", "Queuing for node started")
TLS_UNAVAILABLE: Final = _standard(454, "4.7.0", "TLS not available now")
EARLY_TALKER: Final = _standard(554, "5.5.1", "You talked before my greeting")
TOO_FAST: Final = _standard(421, "4.7.0", "Too many connections in a short time")
