"""Which SASL mechanism a client takes: the best that the server offers and that does not tell the secret to others."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Final, TypeAlias

from .errors import ConfigurationError
from .sasl import (
    ClientMechanism,
    CramMD5Client,
    LoginClient,
    OAuthBearerClient,
    PlainClient,
    SASLError,
    ScramClient,
    ScramPlusClient,
    XOAuth2Client,
    server_end_point,
)

if TYPE_CHECKING:
    import ssl

__all__ = ["REVEALING", "channel_binding", "password_mechanisms", "token_mechanisms"]

REVEALING: Final = frozenset({"PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER"})
"""Mechanisms that send a secret which whoever reads it can use."""

_Binding: TypeAlias = tuple[str, bytes]
_Make: TypeAlias = Callable[[], ClientMechanism]


def password_mechanisms(
    offered: Sequence[str], username: str, password: str, binding: _Binding | None, revealing: bool
) -> list[_Make]:
    """What makes the mechanisms that can be used with a password, the best first.

    Args:
        offered: what the server offers, in upper case.
        binding: the channel binding of the TLS session, if there is one.
        revealing: the password may be sent as it is.
    """
    makers: dict[str, _Make] = {}
    if importlib.util.find_spec("scramp") is not None:
        if binding is not None:
            makers["SCRAM-SHA-256-PLUS"] = lambda: ScramPlusClient(username, password, binding)
        # Told only where PLUS is not offered: then the server knows whether that was hidden from us (RFC 5802 section 6).
        seen = None if "SCRAM-SHA-256-PLUS" in offered else binding
        makers["SCRAM-SHA-256"] = lambda: ScramClient(username, password, seen)
    makers["CRAM-MD5"] = lambda: CramMD5Client(username, password)
    if revealing:
        makers["PLAIN"] = lambda: PlainClient(username, password)
        makers["LOGIN"] = lambda: LoginClient(username, password)
    return [make for name, make in makers.items() if name in offered]


def token_mechanisms(
    offered: Sequence[str], username: str, token: str, host: str, port: int, revealing: bool
) -> list[_Make]:
    """The same with a bearer token (RFC 7628)."""
    makers: dict[str, _Make] = {}
    if revealing:
        makers["OAUTHBEARER"] = lambda: OAuthBearerClient(username, token, host, port)
        makers["XOAUTH2"] = lambda: XOAuth2Client(username, token)
    return [make for name, make in makers.items() if name in offered]


def channel_binding(tls: ssl.SSLObject | None) -> _Binding | None:
    """The binding tls-server-end-point of a TLS session (RFC 5929 section 4), or None where there can be none."""
    certificate = tls.getpeercert(True) if tls is not None else None
    if certificate is None:
        return None
    try:
        return "tls-server-end-point", server_end_point(certificate)
    except (SASLError, ConfigurationError):
        return None
