"""What the next hop of a pass-through relay can do, what follows from that for its client, and the next hop's replies as the client gets them.

An extension that the next hop does not have is not offered.  What is asked for all the same, because the next hop has changed meanwhile or
EHLO was answered before there was a session, is refused, but for what may be left out.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from fastsmtp.client import Client
from fastsmtp.extensions import DeliverBy, MailParams, RcptParams
from fastsmtp.options import ServerOptions
from fastsmtp.protocol.transaction import LOST, Delivery
from fastsmtp.reply import EnhancedCode, Reply, SMTPError

__all__ = ["NO_ANSWER", "Abilities", "answer_for_all", "fit_mail", "fit_rcpt", "hand_back", "narrow"]

NO_ANSWER: Final = Reply(451, EnhancedCode(4, 4, 1), "The next hop does not answer, try again later")

_TRACE_ROOM: Final = 2048  # octets: more than a Received field of ours ever has
_LINES: Final = 20  # of a reply that is handed back
_TEXT: Final = 4096  # characters of it
_NAMED: Final = 10  # recipients that a reply to all names
_SUCCESSES: Final = frozenset({250, 251, 252})
_LOGIN_WANTED: Final = frozenset({530, 534, 535, 538})  # RFC 4954 sections 4.7.2 and 6
_MISCONFIGURED: Final = EnhancedCode(4, 3, 5)
_EXPIRED: Final = Reply(550, EnhancedCode(5, 4, 7), "The time of BY has passed")


@dataclass(frozen=True, slots=True)
class Abilities:
    """What the next hop said in its answer to EHLO or LHLO.

    Attributes:
        keywords: its extensions, in upper case.  Without REQUIRETLS if it is not known who it is (RFC 8689 section 4.2.1).
        max_message_bytes: the largest message that it takes; 0: it does not say.
        max_recipients: the same for recipients of one message.
        deliverby: the least number of seconds for BY with R; 0 is no minimum.
        future_release: the number of seconds that it holds a message at most.
    """

    keywords: frozenset[str] = frozenset()
    max_message_bytes: int = 0
    max_recipients: int = 0
    deliverby: int = 0
    future_release: int = 0

    @classmethod
    def of(cls, client: Client) -> Abilities:
        """Those of the server that the client is connected to."""
        keywords = frozenset(client.extensions)
        if "REQUIRETLS" in keywords and not _is_verified(client):
            keywords -= {"REQUIRETLS"}
        return cls(
            keywords,
            client.max_message_size or 0,
            client.max_recipients or 0,
            _first_number(client.extension("DELIVERBY")),
            _first_number(client.extension("FUTURERELEASE")),
        )


def _is_verified(client: Client) -> bool:
    tls = client.tls_connection_state
    return tls is not None and tls.context.verify_mode == ssl.CERT_REQUIRED and tls.context.check_hostname


def _first_number(params: str | None) -> int:
    word = (params or "").partition(" ")[0].partition(",")[0]
    return int(word) if word.isascii() and word.isdigit() and len(word) <= 9 else 0


def narrow(options: ServerOptions, able: Abilities) -> ServerOptions:
    """The options without what the next hop does not have.

    CHUNKING and PIPELINING are a matter between two neighbours and stay, and so does 8BITMIME, without which eight bits pass as well.
    """
    has = able.keywords
    room = max(1, able.max_message_bytes - _TRACE_ROOM) if able.max_message_bytes else 0
    return replace(
        options,
        smtputf8=options.smtputf8 and "SMTPUTF8" in has,
        binarymime=options.binarymime and has >= {"BINARYMIME", "CHUNKING"},
        dsn=options.dsn and "DSN" in has,
        requiretls=options.requiretls and "REQUIRETLS" in has,
        deliverby=None
        if options.deliverby is None or "DELIVERBY" not in has
        else max(options.deliverby, able.deliverby),
        mt_priority=options.mt_priority if "MT-PRIORITY" in has else None,
        rrvs=options.rrvs and "RRVS" in has,
        future_release=min(options.future_release, able.future_release),
        no_soliciting=options.no_soliciting if "NO-SOLICITING" in has else None,
        max_message_bytes=_least(options.max_message_bytes, room),
        max_recipients=_least(options.max_recipients, able.max_recipients),
    )


def _least(ours: int, theirs: int) -> int:
    """The smaller one of two limits, of which 0 is none."""
    return min(ours, theirs) if ours and theirs else ours or theirs


@dataclass(frozen=True, slots=True)
class _Need:
    """What a parameter needs of the next hop, and the refusal for good."""

    said: Callable[[Any], object]
    keywords: frozenset[str]
    code: int
    enhanced: EnhancedCode


def _need(said: Callable[[Any], object], keywords: str, code: int = 555, status: str = "5.5.4") -> _Need:
    enhanced = EnhancedCode.parse(status)
    assert enhanced is not None
    return _Need(said, frozenset(keywords.split()), code, enhanced)


# RFC 5321 4.1.1.11 has 555; RFC 6531 3.5, RFC 3463 3.7, RFC 8689 section 4.2.1 and RFC 7293 section 14.2 name the others.
_OF_MAIL: Final = (
    _need(lambda params: params.smtputf8, "SMTPUTF8", 550, "5.6.7"),
    _need(lambda params: params.body == "BINARYMIME", "BINARYMIME CHUNKING", 554, "5.6.3"),
    _need(lambda params: params.requiretls, "REQUIRETLS", 550, "5.7.30"),
    _need(lambda params: params.ret is not None or params.envid is not None, "DSN"),
    _need(lambda params: params.by is not None, "DELIVERBY"),
    _need(lambda params: params.hold is not None, "FUTURERELEASE"),
    _need(lambda params: params.solicit is not None, "NO-SOLICITING"),
)
_OF_RCPT: Final = (
    _need(lambda params: params.notify is not None or params.orcpt is not None, "DSN"),
    _need(lambda params: params.rrvs is not None, "RRVS", 550, "5.7.19"),
)


def _check(params: object, needs: Sequence[_Need], able: Abilities, promised: Collection[str]) -> None:
    for need in needs:
        if need.said(params) and not need.keywords <= able.keywords:
            what = min(need.keywords - able.keywords)
            if what in promised:  # who tries again is promised less
                raise SMTPError(451, EnhancedCode(4, 4, 0), f"The next hop does not offer {what} any more")
            raise SMTPError(need.code, need.enhanced, f"The next hop does not offer {what}")


def fit_mail(params: MailParams, able: Abilities, promised: Collection[str], waited: float, added: int) -> MailParams:
    """The parameters of MAIL as the next hop gets them.

    AUTH and MT-PRIORITY are left out where the next hop does not know them (RFC 4954 section 5, RFC 6710 section 4.2).

    Args:
        params: those that the client gave.
        able: what the next hop can do.
        promised: the keywords of extensions that the client may have been offered.
        waited: seconds since the client said MAIL, which are taken off the time of BY (RFC 2852 section 4).
        added: octets that the message grows by.

    Raises:
        SMTPError: one that the next hop does not know and that cannot be left out, or the time of BY has passed.
    """
    if params == MailParams():
        return params
    _check(params, _OF_MAIL, able, promised)
    return replace(
        params,
        size=None if params.size is None else params.size + added,
        auth=params.auth if "AUTH" in able.keywords else None,
        mt_priority=params.mt_priority if "MT-PRIORITY" in able.keywords else None,
        by=None if params.by is None else _aged(params.by, int(waited)),
    )


def _aged(by: DeliverBy, seconds: int) -> DeliverBy:
    left = by.seconds - seconds
    if by.mode == "R" and left <= 0:
        raise SMTPError.from_reply(_EXPIRED)
    return replace(by, seconds=left)


def fit_rcpt(params: RcptParams, able: Abilities, promised: Collection[str]) -> RcptParams:
    """The parameters of RCPT as the next hop gets them; as `fit_mail`.

    RRVS with the action C is left out where the next hop does not know it (RFC 7293 section 3.1).
    """
    if params == RcptParams():
        return params
    if params.rrvs is not None and params.rrvs.action == "C" and "RRVS" not in able.keywords:
        params = replace(params, rrvs=None)
    _check(params, _OF_RCPT, able, promised)
    return params


def hand_back(reply: Reply) -> Reply:
    """A reply of the next hop as the client gets it: the same, but for what is not meant for the client.

    421 closes the connection to the next hop, not the client's: 451.  That a login is wanted is for who configured the relay, and no reason
    to return the mail: 451 4.3.5.  A success that SMTP has not for this command is 250.  What is too long is cut.
    """
    if reply is LOST:
        return NO_ANSWER
    code, enhanced, text = reply.code, reply.enhanced_code, reply.message
    if code == 421:
        code = 451
        if enhanced.status_class != 4:
            enhanced = NO_ANSWER.enhanced_code
    elif code in _LOGIN_WANTED:
        code, enhanced = 451, _MISCONFIGURED
        text = f"The next hop wants a login of the relay: {text}"
    elif code < 300 and code not in _SUCCESSES:
        code = 250
    if len(text) > _TEXT or text.count("\n") >= _LINES:
        text = "\n".join(text[:_TEXT].split("\n")[:_LINES])
    if (code, text) == (reply.code, reply.message):
        return reply
    return Reply(code, enhanced, text)


def answer_for_all(deliveries: Sequence[Delivery]) -> Reply:
    """The one reply for recipients whose replies may differ: SMTP in front of LMTP.

    250 only if all have the message, since nobody would hear of a refused one.  Else a refusal, with the outcome of each in its text: a
    temporary one if any is, since that recipient may still get the message, at the price that those who have it get it again when the
    client tries again; else a permanent one, so that those who have it get it once, and the sender is told who has not.
    """
    refused = [each for each in deliveries if not each.reply.accepted]
    if not refused:
        return deliveries[0].reply
    worst = next((each.reply for each in refused if each.reply.code < 500), refused[0].reply)
    if all(each.reply == worst for each in deliveries):
        return worst
    lines = [f"{len(deliveries) - len(refused)} of {len(deliveries)} recipients have the message, the others have not:"]
    lines += [f"<{each.recipient}>: {_first_line(each.reply)}" for each in refused[:_NAMED]]
    if len(refused) > _NAMED:
        lines.append(f"and {len(refused) - _NAMED} more")
    return Reply(worst.code, worst.enhanced_code, "\n".join(lines))


def _first_line(reply: Reply) -> str:
    return str(reply).partition("\n")[0]
