"""What becomes of queued messages, in the log: a record for each outcome of a recipient, and for each notice."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final

from ._logs import log_event
from .delivery.queue import State
from .delivery.worker import DeliveryObserver

if TYPE_CHECKING:
    from .delivery.handover import Outcome
    from .delivery.notices import Kind
    from .delivery.queue import Message, Recipient

__all__ = ["DeliveryLog"]

_EVENTS: Final = {State.DELIVERED: "delivered", State.PENDING: "deferred", State.FAILED: "failed"}


class DeliveryLog(DeliveryObserver):
    """Takes outcomes and notices into the log.

    Args:
        prefix: stands before the identifiers.
    """

    __slots__ = ("_prefix",)

    def __init__(self, prefix: str = "") -> None:
        self._prefix: Final = prefix

    def outcome(self, message: Message, recipient: Recipient, outcome: Outcome) -> None:
        """A recipient was tried."""
        fields: dict[str, Any] = {
            "sender": message.sender,
            "recipient": recipient.address,
            "destination": recipient.destination,
            "attempts": recipient.attempts + 1,
            "seconds": round(time.time() - message.received, 3),
            "code": outcome.reply.code,
            "reply": str(outcome.reply),
        }
        if outcome.host:
            fields["host"] = outcome.host
        if outcome.expired:
            fields["expired"] = True
        log_event(_EVENTS[outcome.state], {"id": self._prefix + message.id}, fields)

    def notice(self, message: Message, kind: Kind, id: str) -> None:
        """Its sender will hear of it."""
        log_event("notice", {"id": self._prefix + message.id}, {"kind": str(kind), "notice": self._prefix + id})
