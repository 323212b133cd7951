"""What an entry of the table of extensions is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from ..options import ServerOptions
from .params import ParameterError

__all__ = ["Extension", "Known", "Offer", "Parameter", "flag"]


@dataclass(frozen=True, slots=True)
class Offer:
    """What decides the EHLO lines of one connection; a key for `CapabilityCache`.

    Attributes:
        options: the server's options.
        tls: the connection is under TLS.
        tls_available: STARTTLS would work.
        auth: the names of the SASL mechanisms that AUTH takes now.
        xforward: this peer may say XFORWARD.
        xclient: this peer may say XCLIENT.
    """

    # Compared but not hashed: an option may be an object that has no hash, and hashing them all takes time.
    options: ServerOptions = field(hash=False)
    tls: bool = False
    tls_available: bool = False
    auth: tuple[str, ...] = ()
    xforward: bool = False
    xclient: bool = False


@dataclass(frozen=True, slots=True)
class Parameter:
    """One ESMTP parameter: how its value is read and written.

    Attributes:
        keyword: the name on the wire, upper case.
        field: the field that it fills.
        parse: value (None: there was none) and the server's options to the field's value; raises ParameterError.
        encode: the field's value to the text on the wire, or None to leave it out.
        hint: a client leaves it out where the server did not offer the extension.
    """

    keyword: str
    field: str
    parse: Callable[[str | None, ServerOptions], object]
    encode: Callable[[Any], str | None]
    hint: bool = False


Known: TypeAlias = tuple[str, Callable[[str | None], object]]
"""A parameter that a command takes now: the field that it fills, and what reads its value."""


@dataclass(frozen=True, slots=True)
class Extension:
    """One service extension.

    Attributes:
        keyword: the EHLO keyword.
        source: the RFC that defines it.
        advertise: the EHLO line for this offer, or None while the extension is off.
        mail: its MAIL parameters.
        rcpt: its RCPT parameters.
    """

    keyword: str
    source: str
    advertise: Callable[[Offer], str | None]
    mail: tuple[Parameter, ...] = ()
    rcpt: tuple[Parameter, ...] = ()


def flag(keyword: str, field: str) -> Parameter:
    """A parameter without a value, true when it is there."""

    def parse(value: str | None, options: ServerOptions) -> bool:
        if value is not None:
            raise ParameterError(f"{keyword} takes no value")
        return True

    return Parameter(keyword, field, parse, lambda on: keyword if on else None)
