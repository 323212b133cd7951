"""fastsmtp: an asyncio SMTP and LMTP server, with its per-byte work compiled.

A server in two lines:

    from fastsmtp import DefaultBackend, DefaultSession, Server

    async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:2525"):
        ...
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from . import _source  # noqa: F401 - before any other: it decides which body they have

if TYPE_CHECKING:
    from .authfile import AuthFile
    from .client import Client, send_mail
    from .client_connection import ConnectionLost, TimedOut, TLSFailed
    from .client_options import ClientOptions, Timeouts
    from .connection import Conn
    from .counters import Counters
    from .errors import (
        ConfigurationError,
        FastSMTPError,
        HeaderError,
        LineTooLong,
        MessageAborted,
        ProtocolError,
        ResponseError,
        UnexpectedEOF,
    )
    from .extensions import DeliverBy, MailParams, Offer, OriginalRecipient, RcptParams, ValidSince
    from .observer import Observer
    from .options import ServerOptions
    from .pool import Pool
    from .protocol.proxy import ProxyHeader
    from .protocol.transaction import Delivery
    from .protocol.xforward import XClient, XForward
    from .reply import AuthFailed, AuthRequired, AuthUnsupported, DataTooLarge, EnhancedCode, Reply, SMTPError
    from .server import Server
    from .session import (
        Backend,
        ConnectionState,
        DataContext,
        DataReader,
        DefaultBackend,
        DefaultSession,
        Session,
        SessionFactory,
    )
    from .textproto import IMPLEMENTATION, canonical_mime_header_key
    from .tls import TLSFiles

__all__ = [
    "IMPLEMENTATION",
    "AuthFailed",
    "AuthFile",
    "AuthRequired",
    "AuthUnsupported",
    "Backend",
    "Client",
    "ClientOptions",
    "ConfigurationError",
    "Conn",
    "ConnectionLost",
    "ConnectionState",
    "Counters",
    "DataContext",
    "DataReader",
    "DataTooLarge",
    "DefaultBackend",
    "DefaultSession",
    "DeliverBy",
    "Delivery",
    "EnhancedCode",
    "FastSMTPError",
    "HeaderError",
    "LineTooLong",
    "MailParams",
    "MessageAborted",
    "Observer",
    "Offer",
    "OriginalRecipient",
    "Pool",
    "ProtocolError",
    "ProxyHeader",
    "RcptParams",
    "Reply",
    "ResponseError",
    "SMTPError",
    "Server",
    "ServerOptions",
    "Session",
    "SessionFactory",
    "TLSFailed",
    "TLSFiles",
    "TimedOut",
    "Timeouts",
    "UnexpectedEOF",
    "ValidSince",
    "XClient",
    "XForward",
    "canonical_mime_header_key",
    "send_mail",
]

# Names are loaded when first used, so that the lower floors can be imported without asyncio, socket and ssl.
_HOMES: Final = {
    "AuthFailed": "reply",
    "XForward": "protocol.xforward",
    "XClient": "protocol.xforward",
    "ProxyHeader": "protocol.proxy",
    "Observer": "observer",
    "TLSFiles": "tls",
    "Offer": "extensions",
    "AuthFile": "authfile",
    "Client": "client",
    "ClientOptions": "client_options",
    "ConnectionLost": "client_connection",
    "Delivery": "protocol.transaction",
    "Pool": "pool",
    "TLSFailed": "client_connection",
    "TimedOut": "client_connection",
    "Timeouts": "client_options",
    "send_mail": "client",
    "Conn": "connection",
    "Counters": "counters",
    "ConfigurationError": "errors",
    "FastSMTPError": "errors",
    "HeaderError": "errors",
    "LineTooLong": "errors",
    "MessageAborted": "errors",
    "ProtocolError": "errors",
    "ResponseError": "errors",
    "UnexpectedEOF": "errors",
    "DeliverBy": "extensions",
    "MailParams": "extensions",
    "OriginalRecipient": "extensions",
    "RcptParams": "extensions",
    "ValidSince": "extensions",
    "ServerOptions": "options",
    "AuthRequired": "reply",
    "AuthUnsupported": "reply",
    "DataTooLarge": "reply",
    "EnhancedCode": "reply",
    "Reply": "reply",
    "SMTPError": "reply",
    "Server": "server",
    "Backend": "session",
    "ConnectionState": "session",
    "DataContext": "session",
    "DataReader": "session",
    "DefaultBackend": "session",
    "DefaultSession": "session",
    "Session": "session",
    "SessionFactory": "session",
    "IMPLEMENTATION": "textproto",
    "canonical_mime_header_key": "textproto",
}


def __getattr__(name: str) -> object:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = globals()[name] = getattr(import_module(f".{home}", __name__), name)
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
