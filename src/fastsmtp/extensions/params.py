"""What the parameters of MAIL and RCPT mean, in frozen values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from ..errors import ProtocolError

__all__ = ["DeliverBy", "MailParams", "OriginalRecipient", "ParameterError", "RcptParams", "ValidSince"]


@dataclass(frozen=True, slots=True)
class DeliverBy:
    """Until when a message is to be delivered (RFC 2852 section 4).

    Attributes:
        seconds: the time that is left; zero or negative when it has passed, with mode "N" only.
        mode: what happens then: "N" notifies the sender and goes on, "R" returns the message.
        trace: each relay that takes the message on is to be reported too.
    """

    seconds: int
    mode: Literal["N", "R"]
    trace: bool = False


@dataclass(frozen=True, slots=True)
class OriginalRecipient:
    """The recipient as the sender gave it (RFC 3461 section 4.2, RFC 6533 section 3).

    Attributes:
        addr_type: the kind of address as typed, "rfc822" or "utf-8" as a rule.
        address: the address, decoded; it need not follow any syntax.
    """

    addr_type: str
    address: str


@dataclass(frozen=True, slots=True)
class ValidSince:
    """Deliver only if the mailbox has had one owner since then (RFC 7293 section 3.1).

    Attributes:
        since: an aware time.
        action: where the next server does not know RRVS: "R" rejects, "C" continues.
    """

    since: datetime
    action: Literal["R", "C"] = "R"


@dataclass(frozen=True, slots=True)
class MailParams:
    """The parameters of one MAIL command.

    Attributes:
        size: the announced size in octets, or None (RFC 1870).
        body: "7BIT", "8BITMIME" or "BINARYMIME", or None when not said (RFC 6152, RFC 3030).
        smtputf8: addresses and header may hold UTF-8 (RFC 6531).
        ret: what a failure notice returns, "FULL" or "HDRS", or None (RFC 3461 section 4.3).
        envid: the sender's name for this transaction, decoded, or None (RFC 3461 section 4.4).
        requiretls: each further hop must use TLS and know REQUIRETLS (RFC 8689).
        by: until when to deliver, or None (RFC 2852).
        mt_priority: from -9, least, to 9, most urgent, or None (RFC 6710).
        hold: not to be released for so many seconds (HOLDFOR), or before this time (HOLDUNTIL), or None (RFC 4865).
        solicit: the classes of solicitation that the message belongs to, or None (RFC 3865).
        auth: the mailbox of who submitted the message, "" for <>, that is nobody we trust, or None (RFC 4954 section 5).
    """

    size: int | None = None
    body: str | None = None
    smtputf8: bool = False
    ret: str | None = None
    envid: str | None = None
    requiretls: bool = False
    by: DeliverBy | None = None
    mt_priority: int | None = None
    hold: int | datetime | None = None
    solicit: tuple[str, ...] | None = None
    auth: str | None = None


@dataclass(frozen=True, slots=True)
class RcptParams:
    """The parameters of one RCPT command.

    Attributes:
        notify: when to notify the sender: ("NEVER",) or some of "SUCCESS", "FAILURE", "DELAY" as typed, or None
            (RFC 3461 section 4.1).
        orcpt: the recipient that the sender gave first, or None (RFC 3461 section 4.2).
        rrvs: since when the mailbox must have had its owner, or None (RFC 7293).
    """

    notify: tuple[str, ...] | None = None
    orcpt: OriginalRecipient | None = None
    rrvs: ValidSince | None = None


class ParameterError(ProtocolError):
    """An ESMTP parameter that is not well formed (501 5.5.4), not known (555 5.5.4) or not granted.

    Attributes:
        reason: a text for the peer that repeats nothing the peer sent.
        code: the reply code that it deserves.
        enhanced: the enhanced status code.
    """

    def __init__(self, reason: str, code: int = 501, enhanced: tuple[int, int, int] = (5, 5, 4)) -> None:
        super().__init__(reason, code, enhanced)
        self.reason = reason
        self.code = code
        self.enhanced = enhanced

    def __str__(self) -> str:
        return self.reason
