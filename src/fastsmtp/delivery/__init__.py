"""Delivery: what a server does with the messages it takes.

Written against the public API only, so that each of these is also an example of a `Session`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Final

from .loops import LoopGuard
from .maildir import Maildir, MaildirBackend, MaildirSession, MessageWriter
from .relay import RelayBackend, RelaySession
from .sinks import DiscardSession, PrintSession
from .users import UsersBackend

if TYPE_CHECKING:
    from .access import RelayAccess
    from .intake import QueueBackend, QueueSession

__all__ = [
    "DiscardSession",
    "LoopGuard",
    "Maildir",
    "MaildirBackend",
    "MaildirSession",
    "MessageWriter",
    "PrintSession",
    "QueueBackend",
    "QueueSession",
    "RelayAccess",
    "RelayBackend",
    "RelaySession",
    "UsersBackend",
]

# Who needs no queue loads no database.
_LATE: Final = {"QueueBackend": "intake", "QueueSession": "intake", "RelayAccess": "access"}


def __getattr__(name: str) -> object:
    if name not in _LATE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_LATE[name]}", __name__), name)
