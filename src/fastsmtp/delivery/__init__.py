"""Delivery: what a server does with the messages it takes.

Written against the public API only, so that each of these is also an example of a `Session`.
"""

from __future__ import annotations

from .loops import LoopGuard
from .maildir import Maildir, MaildirBackend, MaildirSession, MessageWriter
from .relay import RelayBackend, RelaySession
from .sinks import DiscardSession, PrintSession
from .users import UsersBackend

__all__ = [
    "DiscardSession",
    "LoopGuard",
    "Maildir",
    "MaildirBackend",
    "MaildirSession",
    "MessageWriter",
    "PrintSession",
    "RelayBackend",
    "RelaySession",
    "UsersBackend",
]
