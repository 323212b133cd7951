"""The protocol without I/O: bytes in, events out; replies in, bytes out.

Nothing here knows sockets, time or `asyncio`, so the same machine runs under any shell, and in a test under none.
"""

from __future__ import annotations

from .events import (
    Answered,
    Auth,
    AuthResponse,
    Body,
    ClientIs,
    Event,
    Expand,
    Hello,
    MailFrom,
    RcptTo,
    Reset,
    StartQueue,
    StartTLS,
    Verify,
)
from .server import ServerProfile, ServerProtocol
from .xforward import XClient, XForward

__all__ = [
    "Answered",
    "Auth",
    "AuthResponse",
    "Body",
    "ClientIs",
    "Event",
    "Expand",
    "Hello",
    "MailFrom",
    "RcptTo",
    "Reset",
    "ServerProfile",
    "ServerProtocol",
    "StartQueue",
    "StartTLS",
    "Verify",
    "XClient",
    "XForward",
]
