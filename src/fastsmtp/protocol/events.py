"""What the server's protocol tells its shell.

Each event but `Answered` and an unfinished `Body` waits for exactly one `ServerProtocol.reply`.  They are made once per command on
the hot path; a frozen dataclass costs 0.4 us more per event, so these are slotted but not frozen.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, TypeAlias

from ..extensions import MailParams, RcptParams
from ..reply import Reply
from .xforward import Value

__all__ = [
    "ANSWERED",
    "RESET",
    "STARTTLS",
    "Answered",
    "Auth",
    "AuthResponse",
    "Body",
    "ClientIs",
    "Event",
    "Expand",
    "Hello",
    "MailFrom",
    "RcptTo",
    "Reset",
    "StartQueue",
    "StartTLS",
    "Verify",
]


@dataclass
class Hello:
    """HELO, EHLO or LHLO with an acceptable name; `again` when a greeting was accepted before (it is then also a RSET)."""

    verb: str
    name: str
    again: bool


@dataclass
class MailFrom:
    """MAIL: the reverse-path's mailbox ("" for the null reverse-path) and its parameters."""

    sender: str
    params: MailParams


@dataclass
class RcptTo:
    """RCPT: the forward-path's mailbox and its parameters."""

    recipient: str
    params: RcptParams


@dataclass
class Body:
    """A piece of the message.

    Attributes:
        payload: its octets, CR LF kept, dots removed.
        ended: the message is whole, or its refused rest is consumed: answer it.
        refusal: why the message is refused; set as soon as that is known, and then payload is empty.
        octets: how much of the input this piece was, of a refused message too.
    """

    payload: bytes
    ended: bool
    refusal: Reply | None
    octets: int = field(default=0, compare=False)


@dataclass(slots=True)
class Reset:
    """RSET."""


@dataclass(slots=True)
class Verify:
    """VRFY with its argument."""

    argument: str


@dataclass(slots=True)
class Expand:
    """EXPN with its argument."""

    argument: str


@dataclass(slots=True)
class StartQueue:
    """ETRN with its node (RFC 1985 section 5)."""

    node: str


@dataclass(slots=True)
class StartTLS:
    """STARTTLS: answer it, send the answer, then `ServerProtocol.begin_tls` and the handshake."""


@dataclass(slots=True)
class Auth:
    """AUTH with the mechanism's name, upper case, and the initial response if there was one.

    Answer it, and each `AuthResponse`, with a reply, None for 235, or with `ServerProtocol.challenge`.
    """

    mechanism: str
    response: bytes | None = field(repr=False)


@dataclass(slots=True)
class AuthResponse:
    """The response to a challenge."""

    response: bytes = field(repr=False)


@dataclass(slots=True)
class ClientIs:
    """XCLIENT and what it says of the client."""

    values: dict[str, Value]


@dataclass(slots=True)
class Answered:
    """A command that the protocol answered itself, refused ones among them; nothing to do."""


RESET: Final = Reset()
STARTTLS: Final = StartTLS()
ANSWERED: Final = Answered()

Event: TypeAlias = (
    Hello
    | MailFrom
    | RcptTo
    | Body
    | Reset
    | Verify
    | Expand
    | StartQueue
    | StartTLS
    | Auth
    | AuthResponse
    | ClientIs
    | Answered
)
