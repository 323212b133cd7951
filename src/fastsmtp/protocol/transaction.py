"""One message to its recipients, from MAIL to the last reply (RFC 5321 3.3, RFC 2920, RFC 3030, RFC 2033)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from ..reply import EnhancedCode, Reply
from .requests import CanonicalText, Command, Envelope

if TYPE_CHECKING:
    from .client import ClientProtocol

__all__ = ["LOST", "Delivery", "Transaction"]

LOST: Final = Reply(451, EnhancedCode(4, 4, 2), "Connection lost before the reply")
"""In place of the reply that a recipient did not get."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one recipient: the last reply that concerns it."""

    recipient: str
    reply: Reply


class Transaction:
    """One message; `ClientProtocol.transaction` makes it, when its envelope is queued.

        protocol.transaction(...) -> wants_body -> write(chunk) ... -> finish() -> done -> deliveries

    `wants_body` and `done` change by what `ClientProtocol.next_event` reads.  If no recipient is accepted, `done` comes
    without `wants_body`.

    Attributes:
        mail: the MAIL command.
        recipients: the RCPT commands, in the order of the recipients.
    """

    __slots__ = ("_binary", "_body", "_chunked", "_envelope", "_finished", "_protocol", "_text", "mail", "recipients")

    def __init__(
        self, protocol: ClientProtocol, mail: Command, recipients: Sequence[Command], data: Command | None, binary: bool
    ) -> None:
        assert mail.envelope is not None
        self._protocol: Final = protocol
        self._envelope: Final[Envelope] = mail.envelope
        self._chunked: Final = data is None
        self._body = data  # DATA, or the chunk that was sent last
        self._binary: Final = binary
        self._text: Final = CanonicalText()
        self._finished = False
        self.mail: Final = mail
        self.recipients: Final = recipients

    @property
    def wants_body(self) -> bool:
        """The message is to be written now."""
        if self._envelope.closed or self._protocol.closing:
            return False
        if self._chunked:
            return not self._envelope.waiting and self._envelope.hopeless is None
        return self._body is not None and self._body.wants_body

    @property
    def done(self) -> bool:
        """All is known."""
        if self._protocol.closing:
            return True
        if self._body is not None and not self._body.done:
            return False
        if self._chunked:
            return self._finished if self._envelope.hopeless is None else not self._envelope.waiting
        return True

    @property
    def blocked(self) -> bool:
        """The last piece waits here until the server has answered what went before: write no more now."""
        return self._chunked and self._body is not None and not (self._body.sent or self._body.done)

    def write(self, chunk: bytes) -> None:
        """Write a piece of the message.

        Any CR, LF or CR LF ends a line, but with BODY=BINARYMIME the octets go as they are.  Nothing is done when the message has been
        refused meanwhile, as `wants_body` tells.
        """
        if not self.wants_body:
            return
        if not self._chunked:
            self._protocol.send_data(chunk)
            return
        if not self._binary:
            chunk = self._text.feed(chunk)
        if chunk:
            self._body = self._protocol.bdat(chunk)

    def finish(self, chunk: bytes = b"") -> None:
        """Write the last piece and the end of the message."""
        if not self.wants_body:
            return
        if not self._chunked:
            self._protocol.send_data(chunk)
            self._protocol.end_data()
        else:
            if not self._binary:
                chunk = self._text.feed(chunk)
                rest = self._text.finish()
                chunk = chunk + rest if rest else chunk
            self._body = self._protocol.bdat(chunk, last=True)
        self._finished = True

    @property
    def deliveries(self) -> list[Delivery]:
        """What became of each recipient, in their order.  RuntimeError before the transaction is done.

        If the connection was lost, what the server had answered until then still counts (in LMTP a part of the recipients may have
        the message), and the others have 451 4.4.2.
        """
        if not self.done:
            raise RuntimeError("the transaction is not done")
        refused = self.mail.reply
        if refused is not None and not refused.accepted:
            # RCPT behind a refused MAIL is refused for its order only (503), whatever that says of the recipient.
            return [Delivery(command.recipient, refused) for command in self.recipients]
        finals = iter(self._finals())
        return [
            Delivery(command.recipient, next(finals) if reply.accepted else reply)
            for command in self.recipients
            for reply in (command.reply or self._protocol.refusal or LOST,)
        ]

    def _finals(self) -> list[Reply]:
        """The final reply for each recipient that was accepted."""
        body, envelope = self._body, self._envelope
        replies = list(body.replies) if body is not None and self._protocol.lmtp else []
        rest = envelope.refusal
        if rest is None and body is not None and body.last and body.done:
            rest = body.reply
        replies += [rest or self._protocol.refusal or LOST] * (envelope.accepted - len(replies))
        return replies
