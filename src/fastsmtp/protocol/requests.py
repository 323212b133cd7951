"""A client's commands: how they are written, and what became of them (RFC 5321 4.1.1, RFC 2920)."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from io import IncrementalNewlineDecoder
from typing import Any, Final, TypeAlias

from .. import limits
from ..address import AddressError, parse_forward_path, parse_reverse_path, require_ascii
from ..errors import FastSMTPError, ProtocolError
from ..extensions import MailParams, RcptParams, encode_parameters
from ..reply import NO_VALID_RECIPIENTS, Reply, SMTPError

__all__ = [
    "CanonicalText",
    "Command",
    "Envelope",
    "Piece",
    "Settle",
    "Unsendable",
    "command_line",
    "parse_extensions",
    "recipient_line",
    "sender_line",
]

Piece: TypeAlias = bytes | memoryview

_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_KEYWORD: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9-]*+")
_NO_RCPT_PARAMS: Final = RcptParams()


class Unsendable(ProtocolError):
    """What no command can hold, or what needs an extension that the server did not offer.  Nothing of it was queued."""


class Envelope:
    """One transaction, as far as it has come.

    Attributes:
        params: the parameters of its MAIL.
        waiting: recipients whose replies are still to come.
        accepted: recipients that were accepted.
        refusal: why there is no use in going on: of MAIL, of DATA or of a chunk; or None.
        tried: a recipient was given.
        body: "DATA" or "BDAT", whichever sends the message; "" before.
        closed: nothing more belongs to it.
    """

    __slots__ = ("accepted", "body", "closed", "params", "refusal", "tried", "waiting")

    def __init__(self, params: MailParams) -> None:
        self.params: Final = params
        self.waiting = 0
        self.accepted = 0
        self.refusal: Reply | None = None
        self.tried = False
        self.body = ""
        self.closed = False

    @property
    def hopeless(self) -> Reply | None:
        """The refusal that makes sending the message pointless, or None."""
        if self.refusal is None and self.tried and not (self.waiting or self.accepted):
            return NO_VALID_RECIPIENTS
        return self.refusal


class Command:
    """A command, and what the server answered.

    Attributes:
        verb: what is said, in upper case; "" for the greeting, which the server says unasked.
        recipient: of RCPT, the mailbox.
        sent: it went out.  If it is done and was not sent, `reply` says what made it pointless.
        wants_body: the server waits for the message (354); the command is not done yet.
        done: there is nothing more to come.
        reply: the final reply, the last one where there are more; None before.
        replies: the answers to a message: one, or in LMTP one per accepted recipient in their order (RFC 2033 4.2).
        error: what is wrong besides the reply: the SASLError that ended AUTH; or None.
    """

    # The rest is the protocol's: what is to be written, what takes a reply and tells whether it was the last, the
    # transaction, whether it is the last chunk or the message's end is written, whether nobody is told of it.
    __slots__ = (
        "done",
        "envelope",
        "error",
        "hidden",
        "last",
        "pieces",
        "recipient",
        "replies",
        "reply",
        "sent",
        "settle",
        "verb",
        "wants_body",
    )

    def __init__(
        self, verb: str, pieces: Sequence[Piece], settle: Settle, envelope: Envelope | None = None, recipient: str = ""
    ) -> None:
        self.verb = verb
        self.recipient: Final = recipient
        self.sent = False
        self.wants_body = False
        self.done = False
        self.reply: Reply | None = None
        self.replies: list[Reply] = []
        self.error: FastSMTPError | None = None
        self.pieces = pieces
        self.settle: Final = settle
        self.envelope: Final = envelope
        self.last = False
        self.hidden = False

    def result(self) -> Reply:
        """The reply.  Raises SMTPError for a refusal, `error` if there is one, RuntimeError before the command is done."""
        if not self.done or self.reply is None:
            raise RuntimeError("the command is not done")
        if self.error is not None:
            raise self.error
        if not self.reply.accepted:
            raise SMTPError.from_reply(self.reply)
        return self.reply

    @property
    def pointless(self) -> Reply | None:
        """The refusal because of which this need not be sent any more, or None."""
        envelope = self.envelope
        if envelope is None:
            return None
        return envelope.refusal if self.verb in ("MAIL", "RCPT") else envelope.hopeless

    def finish(self, reply: Reply) -> None:
        """Take the final reply."""
        self.reply = reply
        self.done = True
        self.wants_body = False
        envelope = self.envelope
        if envelope is None:
            return
        if self.verb == "RCPT":
            envelope.waiting -= 1
            envelope.accepted += reply.accepted
        elif not reply.accepted and envelope.refusal is None:
            envelope.refusal = reply


Settle: TypeAlias = Callable[[Any, Command, Reply], bool]


def command_line(verb: str, argument: str = "") -> bytes:
    """A command as it goes over the wire.  Raises Unsendable for what would not be one line, or one too long."""
    text = f"{verb} {argument}" if argument else verb
    if _CONTROL.search(text) is not None:
        raise Unsendable("control character in a command")
    line = text.encode() + b"\r\n"
    if len(line) > limits.COMMAND_LINE:
        raise Unsendable("command line too long")
    return line


def sender_line(sender: str, params: MailParams, extensions: dict[str, str]) -> bytes:
    """MAIL (RFC 5321 4.1.1.2); `sender` is the mailbox without brackets, "" for the null reverse-path.

    Raises AddressError, Unsendable.
    """
    if parse_reverse_path(f"<{sender}>") != (sender, len(sender) + 2):
        raise AddressError("no mailbox", 501, (5, 1, 7))
    if not params.smtputf8:
        require_ascii(sender)
    return command_line("MAIL", f"FROM:<{sender}>{_parameters(params, extensions)}")


def recipient_line(recipient: str, params: RcptParams, smtputf8: bool, extensions: dict[str, str]) -> bytes:
    """RCPT (RFC 5321 4.1.1.3); `recipient` is the mailbox without brackets.  Raises AddressError, Unsendable."""
    if parse_forward_path(f"<{recipient}>") != (recipient, len(recipient) + 2):
        raise AddressError("no mailbox", 501, (5, 1, 3))
    if not smtputf8:
        require_ascii(recipient)
    written = "" if params == _NO_RCPT_PARAMS else _parameters(params, extensions)
    return command_line("RCPT", f"TO:<{recipient}>{written}")


def _parameters(params: MailParams | RcptParams, extensions: dict[str, str]) -> str:
    try:
        return encode_parameters(params, extensions)
    except ProtocolError:
        raise
    except ValueError as error:
        raise Unsendable(str(error)) from error


def parse_extensions(message: str) -> dict[str, str]:
    """The lines of EHLO's reply behind the first: keyword in upper case to its parameters (RFC 5321 4.1.1.1).

    Lines that are none are passed over.  "AUTH=" in place of "AUTH ", as servers of old have it, is AUTH too.
    """
    extensions: dict[str, str] = {}
    for line in message.split("\n")[1:]:
        keyword, _, params = line.strip().partition(" ")
        keyword = keyword.upper()
        if keyword.startswith("AUTH="):
            keyword, params = "AUTH", f"{keyword[5:]} {params}"
        if _KEYWORD.fullmatch(keyword) is None:
            continue
        words = params.split()
        if keyword == "AUTH":
            words = [*extensions.get("AUTH", "").split(), *words]
        extensions[keyword] = " ".join(words)
    return extensions


class CanonicalText:
    """CR LF at every end of line of a message that is sent (RFC 5321 2.3.8).

    A CR or LF alone becomes one.  Left as it is it would be a line's end to one receiver and text to another, and what follows
    it the end of data to one of them.
    """

    __slots__ = ("_cr", "_line")

    def __init__(self) -> None:
        self._cr = False  # held back until it is known whether LF follows
        self._line = False  # a line has begun

    def feed(self, chunk: bytes) -> bytes:
        """The next piece; what needs no change is returned as it is, uncopied."""
        if not chunk:
            return chunk
        if self._cr:
            chunk = b"\r" + chunk
        self._cr = chunk.endswith(b"\r")
        if self._cr:
            chunk = chunk[:-1]
        # It remembers which line ends it has met, and is faster than to count them.
        newlines = IncrementalNewlineDecoder(None, translate=False)
        newlines.decode(chunk.decode("latin-1"), True)
        if newlines.newlines not in (None, "\r\n"):
            chunk = chunk.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
        self._line = self._cr or not chunk.endswith(b"\n")
        return chunk

    def finish(self) -> bytes:
        """The line end that is missing at the end of the text, if any."""
        return b"\r\n" if self._line else b""
