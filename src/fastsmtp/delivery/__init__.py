"""Delivery: what a server does with the messages it takes.

Written against the public API only, so that each of these is also an example of a `Session`.
"""

from __future__ import annotations

from .maildir import Maildir, MaildirBackend, MaildirSession, MessageWriter
from .sinks import DiscardSession, PrintSession
from .users import UsersBackend

__all__ = [
    "DiscardSession",
    "Maildir",
    "MaildirBackend",
    "MaildirSession",
    "MessageWriter",
    "PrintSession",
    "UsersBackend",
]
