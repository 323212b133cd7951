"""The table of extensions, and what works on all of it: EHLO, reading and writing of parameters."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Final

from ..limits import ESMTP_PARAMETERS
from ..options import ServerOptions
from . import basic, dsn, policy, timing
from .entry import Extension, Known, Offer, Parameter
from .params import MailParams, ParameterError, RcptParams

__all__ = ["EXTENSIONS", "Capabilities", "CapabilityCache", "check_mail", "encode_parameters", "parse_parameters"]

EXTENSIONS: Final[tuple[Extension, ...]] = (
    basic.PIPELINING,
    basic.EIGHT_BIT_MIME,
    basic.SIZE,
    basic.SMTPUTF8,
    basic.CHUNKING,
    basic.BINARYMIME,
    policy.STARTTLS,
    policy.AUTH,
    policy.REQUIRETLS,
    dsn.DSN,
    timing.DELIVERBY,
    timing.MT_PRIORITY,
    timing.RRVS,
    timing.FUTURERELEASE,
    policy.NO_SOLICITING,
    policy.LIMITS,
    policy.VRFY,
    policy.EXPN,
    policy.ETRN,
    policy.HELP,
    policy.XFORWARD,
    policy.XCLIENT,
    basic.ENHANCED_STATUS_CODES,
)
"""In the order of EHLO's lines; of two entries with one parameter the later one reads it."""


class Capabilities:
    """What a connection offers: its EHLO lines and the parameters that MAIL and RCPT take.

    Args:
        offer: what decides it.
        extended: False after HELO, where no extension may be used (RFC 5321 3.2).

    Attributes:
        lines: the lines of EHLO's reply behind the domain.
        mail: the parameters of MAIL by keyword.
        rcpt: the parameters of RCPT by keyword.
        fleeting: a line holds the time of day (FUTURERELEASE does), so it is not to be kept for later EHLOs.
    """

    __slots__ = ("fleeting", "lines", "mail", "rcpt")

    def __init__(self, offer: Offer, extended: bool = True) -> None:
        lines: list[str] = []
        mail: dict[str, Known] = {}
        rcpt: dict[str, Known] = {}
        for extension in EXTENSIONS if extended else ():
            line = extension.advertise(offer)
            if line is not None:
                lines.append(line)
                mail.update((each.keyword, _known(each, offer.options)) for each in extension.mail)
                rcpt.update((each.keyword, _known(each, offer.options)) for each in extension.rcpt)
        self.lines: Final = tuple(lines)
        self.mail: Final[Mapping[str, Known]] = mail
        self.rcpt: Final[Mapping[str, Known]] = rcpt
        self.fleeting: Final = "HOLDUNTIL" in mail


def _known(parameter: Parameter, options: ServerOptions) -> Known:
    parse = parameter.parse

    def parse_here(value: str | None) -> object:
        return parse(value, options)

    return parameter.field, parse_here


class CapabilityCache:
    """The capabilities for each offer that was asked for, each computed once.  One server's: call it with an offer."""

    __slots__ = ("_known",)

    _MOST: Final = 64  # kinds of connection; a server that makes up mechanism names per connection starts anew

    def __init__(self) -> None:
        self._known: dict[Offer, Capabilities] = {}

    def __call__(self, offer: Offer) -> Capabilities:
        """The capabilities for this offer; the same object for an equal one, unless they are fleeting."""
        found = self._known.get(offer)
        if found is None:
            found = Capabilities(offer)
            if not found.fleeting:
                if len(self._known) >= self._MOST:
                    self._known.clear()
                self._known[offer] = found
        return found


# RFC 5321 4.1.2: esmtp-keyword and esmtp-value; RFC 6531 3.3 adds UTF-8 to the value.
_PARAMETER: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*+)(?:=([^\x00-\x20=\x7f-\x9f\ud800-\udfff]++))?+")


def parse_parameters(text: str, known: Mapping[str, Known]) -> dict[str, object]:
    """Parse the parameters of MAIL or RCPT: field name to value.

    Args:
        text: what follows the path; begins with a space, or is empty.
        known: the parameters that this command takes now.

    Raises:
        ParameterError: 501 for bad syntax or a repeated keyword, 555 for an unknown one (RFC 5321 4.1.1.11), and what
            an extension has for a value that it does not grant.
    """
    values: dict[str, object] = {}
    if not text.startswith(" "):
        raise ParameterError("A space must follow the path")
    words = text.split(" ", ESMTP_PARAMETERS * 2)
    if len(words) > ESMTP_PARAMETERS * 2:
        raise ParameterError("Too many parameters")
    for word in words:
        if not word:
            continue
        match = _PARAMETER.fullmatch(word)
        if match is None:
            raise ParameterError("Malformed parameter")
        entry = known.get(match[1].upper())
        if entry is None:
            raise ParameterError("Parameter not recognized or not implemented", 555)
        field, parse = entry
        if field in values:
            raise ParameterError("Parameter given twice")
        values[field] = parse(match[2])
    return values


def check_mail(params: MailParams) -> None:
    """Refuse parameters of MAIL that contradict each other.

    Raises:
        ParameterError: 501.
    """
    timing.check_timing(params.hold, params.by)
    if params.auth and not (params.smtputf8 or params.auth.isascii()):
        raise ParameterError("A non-ASCII mailbox in AUTH needs SMTPUTF8")  # RFC 6531 3.5


# A server that has everything and grants whatever is well formed.
_ANY: Final = ServerOptions(future_release=999_999_999)


def encode_parameters(params: MailParams | RcptParams, known_keywords: Collection[str]) -> str:
    """The parameters as a client writes them behind the path: " SIZE=5 BODY=8BITMIME", or "".

    SIZE, BODY=7BIT and BODY=8BITMIME are silently left out where the server did not offer their extension: the first
    two say nothing that must be said, and most servers without 8BITMIME take eight bits all the same; a client that
    wants to be strict looks for "8BITMIME" itself.  Whatever else is requested must have been offered.

    Args:
        params: the parameters to write.
        known_keywords: the keywords of the server's EHLO reply, in any case, without what follows them.

    Raises:
        ValueError: a parameter needs an extension that the server did not offer, or has an impossible value.
    """
    if isinstance(params, MailParams):
        check_mail(params)
    offered = {keyword.upper() for keyword in known_keywords}
    text = ""
    for extension in EXTENSIONS:
        for parameter in extension.mail if isinstance(params, MailParams) else extension.rcpt:
            value = getattr(params, parameter.field)
            if value is None:
                continue
            try:
                word = parameter.encode(value)
                if word is None:
                    continue
                # What no server would read is not written either, so nothing can slip into the command.
                parse_parameters(" " + word, {parameter.keyword: _known(parameter, _ANY)})
            except (ValueError, TypeError, AttributeError) as error:
                raise ValueError(f"impossible value of {parameter.field}: {error}") from error
            missing = [need for need in _needs(extension) if need not in offered]
            if not missing:
                text += " " + word
            elif not parameter.hint:
                raise ValueError(f"{parameter.field} needs {missing[0]}, which the server does not offer")
    return text


def _needs(extension: Extension) -> tuple[str, ...]:
    # RFC 3030 section 3: BINARYMIME only together with CHUNKING.
    return ("BINARYMIME", "CHUNKING") if extension is basic.BINARYMIME else (extension.keyword,)


def _fields_exist() -> None:
    """An entry that fills a field nobody has is a mistake of ours; it shows at import."""
    for extension in EXTENSIONS:
        for parameters, target in ((extension.mail, MailParams), (extension.rcpt, RcptParams)):
            names = {each.name for each in fields(target)}
            assert all(parameter.field in names for parameter in parameters), extension.keyword


_fields_exist()
