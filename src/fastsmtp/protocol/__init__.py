"""The protocol without I/O: bytes in, events out; replies in, bytes out.

Nothing here knows sockets, time or `asyncio`, so the same machine runs under any shell, and in a test under none.
"""

from __future__ import annotations

from .events import Answered, Body, Event, Hello, MailFrom, RcptTo, Reset, Verify
from .server import ServerProfile, ServerProtocol

__all__ = [
    "Answered",
    "Body",
    "Event",
    "Hello",
    "MailFrom",
    "RcptTo",
    "Reset",
    "ServerProfile",
    "ServerProtocol",
    "Verify",
]
