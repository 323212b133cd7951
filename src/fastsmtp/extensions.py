"""The ESMTP extensions, one entry each: keyword, EHLO line, MAIL and RCPT parameters (RFC 5321 2.2 and 4.1.1.11).

All that is particular to an extension is in its entry: which line EHLO shows and when, how its parameters are parsed
and checked, which field of `MailParams` or `RcptParams` they fill, how a client writes them.  `Capabilities` is the sum
for one kind of connection; it is computed once and shared.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final

from .errors import ProtocolError
from .limits import ESMTP_PARAMETERS
from .options import ServerOptions

__all__ = [
    "EXTENSIONS",
    "Capabilities",
    "Extension",
    "MailParams",
    "Parameter",
    "ParameterError",
    "RcptParams",
    "parse_parameters",
]


@dataclass(frozen=True, slots=True)
class MailParams:
    """The parameters of one MAIL command.

    Attributes:
        size: the announced size in octets, or None (RFC 1870).
        body: "7BIT" or "8BITMIME", or None when not said (RFC 6152).
        smtputf8: addresses and header may hold UTF-8 (RFC 6531).
    """

    size: int | None = None
    body: str | None = None
    smtputf8: bool = False


@dataclass(frozen=True, slots=True)
class RcptParams:
    """The parameters of one RCPT command."""


class ParameterError(ProtocolError):
    """An ESMTP parameter that is not well formed (501 5.5.4) or not known (555 5.5.4).

    Attributes:
        code: the reply code that it deserves.
        reason: a text for the peer that repeats nothing the peer sent.
    """

    def __init__(self, reason: str, code: int = 501) -> None:
        super().__init__(reason, code)
        self.reason = reason
        self.code = code


@dataclass(frozen=True, slots=True)
class Parameter:
    """One ESMTP parameter: how its value is read and written.

    Attributes:
        keyword: the name on the wire, upper case.
        field: the field that it fills.
        parse: value (None: there was none) to the field's value; raises ParameterError.
        encode: the field's value to the text on the wire, or None to leave it out.
    """

    keyword: str
    field: str
    parse: Callable[[str | None], object]
    encode: Callable[[Any], str | None]


@dataclass(frozen=True, slots=True)
class Extension:
    """One service extension.

    Attributes:
        keyword: the EHLO keyword.
        source: the RFC and section that define it.
        advertise: the EHLO line for these options, or None while the extension is off.
        mail: its MAIL parameters.
        rcpt: its RCPT parameters.
    """

    keyword: str
    source: str
    advertise: Callable[[ServerOptions], str | None]
    mail: tuple[Parameter, ...] = ()
    rcpt: tuple[Parameter, ...] = ()


def _parse_size(value: str | None) -> int:
    # RFC 1870 section 6: 1 to 20 digits; a value of 2^63 and more is only too large, never an error.
    if value is None or len(value) > 20 or not (value.isascii() and value.isdigit()):
        raise ParameterError("SIZE takes 1 to 20 digits")
    return int(value)


def _parse_body(value: str | None) -> str:
    body = value.upper() if value else ""
    if body not in ("7BIT", "8BITMIME"):
        raise ParameterError("BODY takes 7BIT or 8BITMIME")
    return body


def _parse_flag(value: str | None) -> bool:
    if value is not None:
        raise ParameterError("SMTPUTF8 takes no value")
    return True


EXTENSIONS: Final[tuple[Extension, ...]] = (
    Extension("PIPELINING", "RFC 2920", lambda options: "PIPELINING"),
    Extension(
        "8BITMIME",
        "RFC 6152",
        lambda options: "8BITMIME",
        mail=(Parameter("BODY", "body", _parse_body, lambda body: f"BODY={body}" if body else None),),
    ),
    Extension(
        "SIZE",
        "RFC 1870",
        # RFC 1870 section 4: 0 says that there is no fixed maximum.
        lambda options: f"SIZE {options.max_message_bytes}",
        mail=(Parameter("SIZE", "size", _parse_size, lambda size: None if size is None else f"SIZE={size}"),),
    ),
    Extension(
        "SMTPUTF8",
        "RFC 6531",
        lambda options: "SMTPUTF8" if options.smtputf8 else None,
        mail=(Parameter("SMTPUTF8", "smtputf8", _parse_flag, lambda on: "SMTPUTF8" if on else None),),
    ),
    Extension("ENHANCEDSTATUSCODES", "RFC 2034", lambda options: "ENHANCEDSTATUSCODES"),
)


class Capabilities:
    """What one kind of connection offers: its EHLO lines and the parameters that MAIL and RCPT take.

    Args:
        options: the server's options.
        extended: False after HELO, where no extension may be used (RFC 5321 3.2).
    """

    __slots__ = ("lines", "mail", "rcpt")

    def __init__(self, options: ServerOptions, extended: bool = True) -> None:
        lines: list[str] = []
        mail: dict[str, Parameter] = {}
        rcpt: dict[str, Parameter] = {}
        for extension in EXTENSIONS if extended else ():
            line = extension.advertise(options)
            if line is not None:
                lines.append(line)
                mail.update((parameter.keyword, parameter) for parameter in extension.mail)
                rcpt.update((parameter.keyword, parameter) for parameter in extension.rcpt)
        self.lines: Final = tuple(lines)
        self.mail: Final[Mapping[str, Parameter]] = mail
        self.rcpt: Final[Mapping[str, Parameter]] = rcpt


# RFC 5321 4.1.2: esmtp-keyword and esmtp-value; RFC 6531 3.3 adds UTF-8 to the value.
_PARAMETER: Final = re.compile(r"([A-Za-z0-9][A-Za-z0-9-]*+)(?:=([^\x00-\x20=\x7f-\x9f\ud800-\udfff]++))?+")


def parse_parameters(text: str, known: Mapping[str, Parameter]) -> dict[str, object]:
    """Parse the parameters of MAIL or RCPT: field name to value.

    Args:
        text: what follows the path; begins with a space, or is empty.
        known: the parameters that this command takes now.

    Raises:
        ParameterError: 501 for bad syntax or a repeated keyword, 555 for an unknown one (RFC 5321 4.1.1.11).
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
        parameter = known.get(match[1].upper())
        if parameter is None:
            raise ParameterError("Parameter not recognized or not implemented", 555)
        if parameter.field in values:
            raise ParameterError("Parameter given twice")
        values[parameter.field] = parameter.parse(match[2])
    return values


def _fields_exist() -> None:
    """An entry that fills a field nobody has is a mistake of ours; it shows at import."""
    for extension in EXTENSIONS:
        for parameters, target in ((extension.mail, MailParams), (extension.rcpt, RcptParams)):
            names = {each.name for each in fields(target)}
            assert all(parameter.field in names for parameter in parameters), extension.keyword


_fields_exist()
