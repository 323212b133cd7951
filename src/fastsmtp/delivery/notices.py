"""Delivery status notifications: what the sender is told (RFC 3464, RFC 3461 section 6, RFC 6533).

A notice is a message with the null reverse-path, and about such a message there is none (RFC 5321 4.5.5).  It is put into the
same queue before the recipients are settled, so that a crash in between sends it twice, but never not at all.

    failed       to who did not say NOTIFY without FAILURE
    delayed      once, to who did not say NOTIFY without DELAY
    relayed      to who said NOTIFY=SUCCESS, when the next host does not know DSN
"""

from __future__ import annotations

import re
import secrets
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from fastsmtp.address import is_domain
from fastsmtp.errors import ConfigurationError
from fastsmtp.extensions import MailParams, RcptParams

from .handover import Content, Outcome, close
from .queue import Body, Claim, Envelope, Message, Recipient, State, Target
from .trace import date_time

__all__ = ["Kind", "Notice", "Notices", "Report"]

_HEADER: Final = 1 << 16  # octets of a header that are returned
_NEVER: Final = RcptParams(notify=("NEVER",))  # RFC 3461 section 6.1: of a notice nobody is notified
_UNSAFE: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]+")

_SUBJECTS: Final = {
    "failed": "Undelivered mail: returned to sender",
    "delayed": "Delayed mail: still being tried",
    "relayed": "Mail handed on: notices end here",
}
_TEXTS: Final = {
    "failed": "Your message could not be delivered to the recipients below. It is not tried again.",
    "delayed": "Your message could not be delivered yet to the recipients below. You need do nothing: it is tried again{until}.",
    "relayed": "Your message was delivered to the recipients below, or handed on to a host that sends no notices of success.",
}


class Kind(StrEnum):
    """What a notice says."""

    FAILED = "failed"
    DELAYED = "delayed"
    RELAYED = "relayed"


@dataclass(frozen=True, slots=True)
class Report:
    """A recipient that a notice is about."""

    recipient: Recipient
    outcome: Outcome


@dataclass(frozen=True, slots=True)
class Notice:
    """A notice to be put."""

    kind: Kind
    envelope: Envelope
    body: Body


class Notices:
    """Writes notices.

    Args:
        domain: our name, for Reporting-MTA and the sender of notices.
        destination: the key of a sender's destination in the queue: `Routes.destination`.
        lifetime: seconds until a notice is given up.
        max_return: octets of a message up to which it is returned whole to who asks for that by RET=FULL; of a larger one, and without
            RET, only the header is.  A host that refuses the notice for its size would leave the sender without any.
        token: makes what no message has within, for boundaries.
    """

    def __init__(
        self,
        domain: str,
        destination: Callable[[str], str],
        *,
        lifetime: float = 5 * 86400.0,
        max_return: int = 1 << 20,
        token: Callable[[], str] = lambda: secrets.token_hex(16),
    ) -> None:
        if not is_domain(domain) or lifetime <= 0:
            raise ConfigurationError("notices need the domain name of the host, and a lifetime")
        self._domain: Final = domain
        self._destination: Final = destination
        self._lifetime: Final = lifetime
        self._max_return: Final = max_return
        self._token: Final = token

    def wanted(self, kind: Kind, message: Message, report: Report) -> bool:
        """Whether the sender is to be told (RFC 3461 sections 4.1 and 5.2)."""
        notify = report.recipient.params.notify
        if not message.sender:
            return False
        if kind is Kind.RELAYED:
            return notify is not None and "SUCCESS" in notify and not report.outcome.dsn
        if notify is None:
            return True
        return ("FAILURE" if kind is Kind.FAILED else "DELAY") in notify

    def write(self, kind: Kind, claim: Claim, content: Content, reports: Sequence[Report], now: float) -> Notice:
        """A notice about some recipients of a unit.

        Args:
            content: of the message; what could not be read of it is not returned.
            now: seconds since the epoch.
        """
        message = claim.message
        boundary = f"=_{self._token()}"
        utf8 = not (message.sender.isascii() and all(_is_ascii(report.recipient) for report in reports))
        whole = kind is Kind.FAILED and content.loaded and self._returns_whole(message)
        head = "\r\n".join(
            [
                *self._header(kind, message.sender, boundary, now),
                *self._explanation(kind, message, reports, boundary),
                *self._status(kind, message, reports, boundary, utf8, now),
                f"--{boundary}",
                f"Content-Type: {_returned_type(whole, content.header)}",
                "Content-Transfer-Encoding: 8bit",
                "",
                "",
            ]
        ).encode("utf-8", "replace")
        tail = f"\r\n--{boundary}--\r\n".encode()
        envelope = Envelope(
            "",
            (Target(message.sender, self._destination(message.sender), _NEVER),),
            # RFC 8689 section 5: what needed TLS does not travel without it now.
            MailParams(body="8BITMIME", smtputf8=not message.sender.isascii(), requiretls=message.params.requiretls),
            expires=now + self._lifetime,
        )
        if whole:
            return Notice(kind, envelope, _around(head, claim, tail))
        return Notice(kind, envelope, head + _cut(content.header) + tail)

    def _returns_whole(self, message: Message) -> bool:
        params = message.params
        if params.requiretls or params.body == "BINARYMIME":  # RFC 8689 section 5: as if it were RET=HDRS
            return False
        return params.ret == "FULL" and message.size <= self._max_return

    def _header(self, kind: Kind, sender: str, boundary: str, now: float) -> list[str]:
        return [
            f"From: Mail Delivery System <MAILER-DAEMON@{self._domain}>",
            f"To: <{sender}>",
            f"Subject: {_SUBJECTS[kind]}",
            f"Date: {date_time(now)}",
            f"Message-ID: <{self._token()}@{self._domain}>",
            "Auto-Submitted: auto-replied",  # RFC 3834 section 5
            "MIME-Version: 1.0",
            f'Content-Type: multipart/report; report-type=delivery-status;\r\n\tboundary="{boundary}"',
            "Content-Transfer-Encoding: 8bit",
            "",
            "This is a MIME message.",
            "",
        ]

    def _explanation(self, kind: Kind, message: Message, reports: Sequence[Report], boundary: str) -> Iterator[str]:
        until = f" until {date_time(message.expires)}" if message.expires is not None else ""
        yield f"--{boundary}"
        yield "Content-Type: text/plain; charset=utf-8"
        yield "Content-Transfer-Encoding: 8bit"
        yield ""
        yield f"This is the mail system of {self._domain}."
        yield ""
        yield from textwrap.wrap(_TEXTS[kind].format(until=until), 72)
        for report in reports:
            yield ""
            yield f"<{_safe(report.recipient.address)}>"
            if report.outcome.expired:
                yield "    The time for its delivery is over. The last answer was:"
            host = f"{report.outcome.host} said: " if report.outcome.host else ""
            yield from _wrapped(f"{host}{report.outcome.reply}", "    ")
        yield ""

    def _status(
        self, kind: Kind, message: Message, reports: Sequence[Report], boundary: str, utf8: bool, now: float
    ) -> Iterator[str]:
        yield f"--{boundary}"
        yield f"Content-Type: message/{'global-' if utf8 else ''}delivery-status"
        if utf8:
            yield "Content-Transfer-Encoding: 8bit"  # RFC 6533 section 3
        yield ""
        yield f"Reporting-MTA: dns; {self._domain}"
        if message.params.envid is not None:
            yield f"Original-Envelope-Id: {_safe(message.params.envid)}"
        yield f"Arrival-Date: {date_time(message.received)}"
        for report in reports:
            yield ""
            yield from _fields(kind, message, report, now)
        yield ""


def _fields(kind: Kind, message: Message, report: Report, now: float) -> Iterator[str]:
    """What a notice says of one recipient (RFC 3464 section 2.3)."""
    recipient, outcome = report.recipient, report.outcome
    orcpt = recipient.params.orcpt
    if orcpt is not None:
        yield f"Original-Recipient: {orcpt.addr_type};{_safe(orcpt.address)}"
    kind_of_address = "rfc822" if recipient.address.isascii() else "utf-8"
    yield f"Final-Recipient: {kind_of_address};{_safe(recipient.address)}"
    # RFC 2033: who takes a message by LMTP has delivered it.
    yield f"Action: {'delivered' if kind is Kind.RELAYED and outcome.lmtp else kind.value}"
    yield f"Status: {_status_code(outcome)}"
    if outcome.host:
        yield f"Remote-MTA: dns; {_safe(outcome.host)}"
    yield from _wrapped(f"Diagnostic-Code: {'smtp' if outcome.host else 'x-fastsmtp'}; {outcome.reply}", "", " ")
    yield f"Last-Attempt-Date: {date_time(now)}"
    if kind is Kind.DELAYED and message.expires is not None:
        yield f"Will-Retry-Until: {date_time(message.expires)}"


def _status_code(outcome: Outcome) -> str:
    """The enhanced status code, or what the reply's class says (RFC 3464 section 2.3.4)."""
    code = outcome.reply.enhanced_code
    if code.status_class in (2, 4, 5) and code.status_class == outcome.reply.code // 100:
        return str(code)
    return f"{2 if outcome.state is State.DELIVERED else outcome.reply.code // 100}.0.0"


def _returned_type(whole: bool, header: bytes) -> str:
    if header.isascii():
        return "message/rfc822" if whole else "text/rfc822-headers"
    return "message/global" if whole else "message/global-headers"  # RFC 6533 section 4


async def _around(head: bytes, claim: Claim, tail: bytes) -> AsyncIterator[bytes]:
    yield head
    body = claim.body()
    try:
        async for piece in body:
            yield piece
    finally:
        await close(body)
    yield tail


def _cut(header: bytes) -> bytes:
    """A header, or whole lines from its beginning."""
    if len(header) <= _HEADER:
        return header
    return header[: header.rfind(b"\n", 0, _HEADER) + 1]


def _is_ascii(recipient: Recipient) -> bool:
    orcpt = recipient.params.orcpt
    return recipient.address.isascii() and (orcpt is None or orcpt.address.isascii())


def _safe(text: str) -> str:
    """Text of others on a line of ours."""
    return _UNSAFE.sub(" ", text)


def _wrapped(text: str, first: str, indent: str = "    ") -> list[str]:
    """Text of others, folded; what is no ASCII becomes "?"."""
    plain = _safe(text).encode("ascii", "replace").decode("ascii")
    return textwrap.wrap(
        plain, 76, initial_indent=first, subsequent_indent=indent, break_on_hyphens=False, break_long_words=False
    )
