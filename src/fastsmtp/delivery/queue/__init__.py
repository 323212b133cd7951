"""The durable queue: its contract, and its engines: in a directory of this machine, and in a PostgreSQL database."""

from __future__ import annotations

from ._lock import LOCK, lock_directory
from ._record import message_json
from .contract import (
    DELIVERED,
    Body,
    Claim,
    Claims,
    Envelope,
    Lease,
    LeaseLost,
    Message,
    NoSuchMessage,
    Page,
    Queue,
    QueuedMessage,
    QueueError,
    QueueFull,
    QueueInUse,
    QueueUnavailable,
    Recipient,
    Result,
    State,
    Stats,
    Target,
)
from .control import QueueConsole, QueueControl, RemoteQueue
from .postgres import PostgresQueue
from .sqlite import SQLiteQueue

__all__ = [
    "DELIVERED",
    "LOCK",
    "Body",
    "Claim",
    "Claims",
    "Envelope",
    "Lease",
    "LeaseLost",
    "Message",
    "NoSuchMessage",
    "Page",
    "PostgresQueue",
    "Queue",
    "QueueConsole",
    "QueueControl",
    "QueueError",
    "QueueFull",
    "QueueInUse",
    "QueueUnavailable",
    "QueuedMessage",
    "Recipient",
    "RemoteQueue",
    "Result",
    "SQLiteQueue",
    "State",
    "Stats",
    "Target",
    "lock_directory",
    "message_json",
]
