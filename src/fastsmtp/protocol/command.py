"""From a command's argument to its meaning (RFC 5321 4.1.1 and 4.1.2).

Each function raises `CommandError`, which carries the reply; what the peer sent is never repeated in it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final

from ..address import (
    AddressError,
    is_address_literal,
    is_domain,
    is_usual_domain,
    parse_forward_path,
    parse_reverse_path,
)
from ..errors import ProtocolError
from ..extensions import Known, MailParams, ParameterError, RcptParams, check_mail, parse_parameters
from ..reply import BAD_HELLO, BDAT_SYNTAX, TOO_LARGE, EnhancedCode, Reply

__all__ = ["CommandError", "parse_bdat", "parse_hello", "parse_mail", "parse_rcpt"]

_NO_MAIL_PARAMS: Final = MailParams()
_NO_RCPT_PARAMS: Final = RcptParams()
_MAIL_SYNTAX: Final = Reply(501, EnhancedCode(5, 5, 4), "Syntax: MAIL FROM:<address>")
_RCPT_SYNTAX: Final = Reply(501, EnhancedCode(5, 5, 4), "Syntax: RCPT TO:<address>")
_SENDER_NEEDS_UTF8: Final = Reply(553, EnhancedCode(5, 6, 7), "Non-ASCII sender needs SMTPUTF8")
_BDAT: Final = re.compile(r"([0-9]{1,20})( +LAST)?", re.IGNORECASE)
_RECIPIENT_NEEDS_UTF8: Final = Reply(553, EnhancedCode(5, 6, 7), "Non-ASCII recipient needs SMTPUTF8")


class CommandError(ProtocolError):
    """A command that is refused before any session sees it; `reply` says how."""

    def __init__(self, reply: Reply) -> None:
        super().__init__(reply.code, reply.message)
        self.reply = reply


def parse_hello(argument: str, strict: bool) -> str:
    """The name of HELO, EHLO or LHLO: a domain or an address literal (RFC 5321 4.1.1.1).

    Outside strict mode underscores pass in a name, as many a Windows host has them.
    """
    if (
        is_usual_domain(argument, not strict)
        or is_domain(argument, underscores=not strict)
        or is_address_literal(argument)
    ):
        return argument
    raise CommandError(BAD_HELLO)


def parse_mail(
    argument: str, known: Mapping[str, Known], max_message_bytes: int, strict: bool
) -> tuple[str, MailParams]:
    """MAIL's reverse-path and parameters (RFC 5321 4.1.1.2)."""
    start = 5 if argument.startswith("FROM:<") else _path_start(argument, "FROM:", strict)
    if start < 0:
        raise CommandError(_MAIL_SYNTAX)
    try:
        sender, end = parse_reverse_path(argument, start)
    except AddressError as error:
        raise CommandError(_address_reply(error)) from None
    if end == len(argument):
        params = _NO_MAIL_PARAMS
    else:
        params = MailParams(**_parameters(argument[end:], known))  # type: ignore[arg-type]
        if max_message_bytes and params.size is not None and params.size > max_message_bytes:
            raise CommandError(TOO_LARGE)  # RFC 1870 section 6.1 (1)
        try:
            check_mail(params)
        except ParameterError as error:
            raise CommandError(_parameter_reply(error)) from None
    if not (params.smtputf8 or sender.isascii()):
        raise CommandError(_SENDER_NEEDS_UTF8)  # RFC 6531 3.5
    return sender, params


def parse_rcpt(argument: str, known: Mapping[str, Known], smtputf8: bool, strict: bool) -> tuple[str, RcptParams]:
    """RCPT's forward-path and parameters (RFC 5321 4.1.1.3)."""
    start = 3 if argument.startswith("TO:<") else _path_start(argument, "TO:", strict)
    if start < 0:
        raise CommandError(_RCPT_SYNTAX)
    try:
        recipient, end = parse_forward_path(argument, start)
    except AddressError as error:
        raise CommandError(_address_reply(error)) from None
    params = _NO_RCPT_PARAMS
    if end != len(argument):
        params = RcptParams(**_parameters(argument[end:], known))  # type: ignore[arg-type]
    if not (smtputf8 or recipient.isascii()):
        raise CommandError(_RECIPIENT_NEEDS_UTF8)  # RFC 6531 3.5
    return recipient, params


def parse_bdat(argument: str) -> tuple[int, bool]:
    """BDAT's size in octets, and whether it is the last chunk (RFC 3030 section 2)."""
    match = _BDAT.fullmatch(argument)
    if match is None:
        raise CommandError(BDAT_SYNTAX)
    return int(match[1]), match[2] is not None


def _path_start(argument: str, keyword: str, strict: bool) -> int:
    """Index of the path's "<" behind FROM: or TO:, or -1.

    RFC 5321 3.3 allows no blank behind the colon; the world sends one, so it passes outside strict mode.
    """
    start = len(keyword)
    if argument[:start].upper() != keyword:
        return -1
    if not strict:
        while argument.startswith(" ", start):
            start += 1
    return start


def _parameters(text: str, known: Mapping[str, Known]) -> dict[str, object]:
    try:
        return parse_parameters(text, known)
    except ParameterError as error:
        raise CommandError(_parameter_reply(error)) from None


def _parameter_reply(error: ParameterError) -> Reply:
    return Reply(error.code, EnhancedCode(*error.enhanced), error.reason)


def _address_reply(error: AddressError) -> Reply:
    return Reply(error.code, EnhancedCode(*error.enhanced), error.reason)
