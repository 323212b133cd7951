"""Who may send what how: AUTH, REQUIRETLS, NO-SOLICITING, LIMITS, and the keywords that stand for a verb."""

from __future__ import annotations

from typing import Final

from ..address import AddressError, parse_reverse_path
from ..options import ServerOptions, is_solicitation
from ..xtext import decode_xtext, encode_xtext
from .entry import Extension, Offer, Parameter, flag
from .params import ParameterError

__all__ = [
    "AUTH",
    "ETRN",
    "EXPN",
    "HELP",
    "LIMITS",
    "NO_SOLICITING",
    "REQUIRETLS",
    "STARTTLS",
    "VRFY",
    "XCLIENT",
    "XFORWARD",
]

_SOLICIT_LENGTH: Final = 1000  # RFC 3865 section 2.2
_LIMIT: Final = 999_999  # RFC 9422 section 4: six digits at most

# Verbs


STARTTLS: Final = Extension(
    "STARTTLS", "RFC 3207", lambda offer: "STARTTLS" if offer.tls_available and not offer.tls else None
)
VRFY: Final = Extension("VRFY", "RFC 5321", lambda offer: "VRFY" if offer.options.vrfy else None)
EXPN: Final = Extension("EXPN", "RFC 5321", lambda offer: "EXPN" if offer.options.expn else None)
HELP: Final = Extension("HELP", "RFC 5321", lambda offer: "HELP" if offer.options.advertise_help else None)
ETRN: Final = Extension("ETRN", "RFC 1985", lambda offer: "ETRN" if offer.options.etrn else None)
XFORWARD: Final = Extension(
    "XFORWARD",
    "Postfix XFORWARD_README",
    lambda offer: "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE" if offer.xforward else None,
)
XCLIENT: Final = Extension(
    "XCLIENT",
    "Postfix XCLIENT_README",
    lambda offer: "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT" if offer.xclient else None,
)

# AUTH (RFC 4954)


def _parse_auth(value: str | None, options: ServerOptions) -> str:
    # RFC 4954 section 5: xtext of a mailbox, or <>; RFC 4954 section 8 has both encoded.
    try:
        mailbox = decode_xtext(value or "")
        if mailbox == "<>":
            return ""
        if parse_reverse_path(f"<{mailbox}>") != (mailbox, len(mailbox) + 2) or not mailbox:
            raise ValueError("no mailbox")
    except (ValueError, AddressError):
        raise ParameterError("AUTH takes a mailbox in xtext, or <>") from None
    return mailbox


def _encode_auth(auth: str | None) -> str | None:
    return None if auth is None else f"AUTH={encode_xtext(auth) or '<>'}"


AUTH: Final = Extension(
    "AUTH",
    "RFC 4954",
    lambda offer: f"AUTH {' '.join(offer.auth)}" if offer.auth else None,
    mail=(Parameter("AUTH", "auth", _parse_auth, _encode_auth),),
)

# RFC 8689 section 2: only within TLS.
REQUIRETLS: Final = Extension(
    "REQUIRETLS",
    "RFC 8689",
    lambda offer: "REQUIRETLS" if offer.options.requiretls and offer.tls else None,
    mail=(flag("REQUIRETLS", "requiretls"),),
)

# No soliciting (RFC 3865)


def _advertise_no_soliciting(offer: Offer) -> str | None:
    classes = offer.options.no_soliciting
    return None if classes is None else f"NO-SOLICITING {classes}" if classes else "NO-SOLICITING"


def _parse_solicit(value: str | None, options: ServerOptions) -> tuple[str, ...]:
    if value is None or len(value) > _SOLICIT_LENGTH or not is_solicitation(value):
        raise ParameterError("SOLICIT takes solicitation classes, separated by commas")
    classes = tuple(value.split(","))
    if options.no_soliciting:
        given = {each.lower() for each in classes}
        matching = [each for each in options.no_soliciting.split(",") if each.lower() in given]
        if matching:
            # RFC 3865 sections 2.3 and 2.4: the classes in effect are named; these are ours, not the peer's text.
            raise ParameterError(f"Not accepted here: SOLICIT={','.join(matching)}", 550, (5, 7, 1))
    return classes


NO_SOLICITING: Final = Extension(
    "NO-SOLICITING",
    "RFC 3865",
    _advertise_no_soliciting,
    mail=(
        Parameter(
            "SOLICIT",
            "solicit",
            _parse_solicit,
            lambda classes: None if classes is None else f"SOLICIT={','.join(classes)}",
        ),
    ),
)

# Limits (RFC 9422)


def _advertise_limits(offer: Offer) -> str | None:
    most = offer.options.max_recipients
    return f"LIMITS RCPTMAX={most}" if offer.options.advertise_limits and 0 < most <= _LIMIT else None


LIMITS: Final = Extension("LIMITS", "RFC 9422", _advertise_limits)
