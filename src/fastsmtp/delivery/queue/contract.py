"""The queue's contract: what every engine promises, and the values that go in and come out.

A message is put with its envelope and its body.  Each recipient has a *destination*, a key that the caller chooses (the
domain, or a fixed next hop).  What is claimed, delivered and tried again is a *unit*: one message with all of its
recipients of one destination, so that they can share a transaction.  A message leaves the queue when no recipient of it is
pending any more.

Delivery is at least once: what `Queue.put` returned is there until it was settled, and what was delivered but not settled
is delivered again.  Times are seconds since the epoch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterable, AsyncIterator, Callable, Collection, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType
from typing import Final, Self, TypeAlias

from fastsmtp.errors import ConfigurationError, FastSMTPError
from fastsmtp.extensions import MailParams, RcptParams
from fastsmtp.reply import EnhancedCode, Reply, SMTPError

__all__ = [
    "DELIVERED",
    "Body",
    "Claim",
    "Claims",
    "Envelope",
    "Lease",
    "LeaseLost",
    "Message",
    "NoSuchMessage",
    "Page",
    "Queue",
    "QueueError",
    "QueueFull",
    "QueueInUse",
    "QueueUnavailable",
    "QueuedMessage",
    "Recipient",
    "Result",
    "State",
    "Stats",
    "Target",
]

_NO_MAIL_PARAMS: Final = MailParams()
_NO_RCPT_PARAMS: Final = RcptParams()

Body: TypeAlias = bytes | AsyncIterable[bytes]
"""The octets of a message: all of them, or piece by piece."""


class QueueError(FastSMTPError):
    """The root of what a queue raises."""


class QueueFull(QueueError, SMTPError):
    """A limit or the disk does not allow another message: 452 4.3.1.  A session may let it through as its answer."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(452, EnhancedCode(4, 3, 1), "Insufficient system storage")
        self.reason: Final = reason

    def __str__(self) -> str:
        return self.reason or self.message


class QueueUnavailable(QueueError, SMTPError):
    """The queue is closed, or its storage failed: 451 4.3.0.  A session may let it through as its answer."""

    def __init__(self, reason: str = "") -> None:
        super().__init__(451, EnhancedCode(4, 3, 0), "Message could not be queued, try again later")
        self.reason: Final = reason

    def __str__(self) -> str:
        return self.reason or self.message


class QueueInUse(QueueError, ConfigurationError):
    """Another process, or another queue of this one, has the directory open."""


class LeaseLost(QueueError):
    """The lease was settled before, has expired and is another's now, or its message was removed."""


class NoSuchMessage(QueueError, LookupError):
    """No message of that identifier is queued."""


class State(StrEnum):
    """Where a recipient stands."""

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Target:
    """A recipient as it is put.

    Attributes:
        address: the forward-path.
        destination: the key under which its delivery is claimed, not empty.
        params: the parameters of RCPT.
    """

    address: str
    destination: str
    params: RcptParams = _NO_RCPT_PARAMS


@dataclass(frozen=True, slots=True)
class Envelope:
    """What is put with a message's body.

    Attributes:
        sender: the reverse-path, "" for the null one.
        targets: the recipients, one at least.
        params: the parameters of MAIL.
        received: when the message came; None is now.
        expires: when to give up, or None for never.  The queue gives nothing up: it hands a unit out at that time whatever
            its next attempt was to be, and who claims it fails it.
        not_before: the first attempt; None is now.
        priority: units of a higher one are claimed first.
        origin: where the message came from, as XFORWARD has it: whatever the next hop or a log is to be told.
        held: not to be claimed before `Queue.release`.
    """

    sender: str
    targets: tuple[Target, ...]
    params: MailParams = _NO_MAIL_PARAMS
    received: float | None = None
    expires: float | None = None
    not_before: float | None = None
    priority: int = 0
    origin: Mapping[str, str] = field(default_factory=dict)
    held: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """A queued message but for its recipients and its body.

    Attributes:
        id: its name, of ASCII letters and digits; never used for another message of this queue.  Later ones are greater.
        size: octets of the body.
        held: no unit of it is handed out.

    The others are those of `Envelope`.
    """

    id: str
    sender: str
    params: MailParams
    received: float
    expires: float | None
    priority: int
    origin: Mapping[str, str]
    size: int
    held: bool


@dataclass(frozen=True, slots=True)
class Recipient:
    """A recipient of a queued message.

    Attributes:
        number: its place among the message's recipients, from 0; an address may be there twice.
        address: the forward-path.
        destination: the key under which it is claimed.
        params: the parameters of RCPT.
        state: whether it still waits for delivery.
        attempts: deliveries that were tried and had a result.
        next_attempt: not to be tried before this time, while it is pending.
        reply: the last answer, or None before the first.
        delay_reported: the sender was told that it takes long.
    """

    number: int
    address: str
    destination: str
    params: RcptParams
    state: State
    attempts: int
    next_attempt: float
    reply: Reply | None
    delay_reported: bool


@dataclass(frozen=True, slots=True)
class QueuedMessage:
    """A message with all of its recipients in the order in which they were put."""

    message: Message
    recipients: tuple[Recipient, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """Some of the queued messages, the oldest first.

    Attributes:
        messages: what is on this page.
        after: what `Queue.list` takes for the next page, or None when this is the last.
    """

    messages: tuple[QueuedMessage, ...]
    after: str | None


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to deliver one unit.

    Attributes:
        id: its name, unique while the queue is open.
        deadline: from this time on the unit may be given to another.
    """

    id: str
    deadline: float


@dataclass(frozen=True, slots=True)
class Claim:
    """A unit that is leased: one message, one destination.

    Attributes:
        lease: what the results are told with.
        message: the message.
        destination: where to.
        recipients: those of this destination that are pending.
    """

    lease: Lease
    message: Message
    destination: str
    recipients: tuple[Recipient, ...]
    _open: Callable[[str], AsyncIterator[bytes]] = field(repr=False, compare=False)

    def body(self) -> AsyncIterator[bytes]:
        """The message's octets in pieces; each call begins anew.  See `Queue.body`."""
        return self._open(self.message.id)


Claims: TypeAlias = list[Claim]
"""What `Queue.claim` returns."""


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one recipient.

    Attributes:
        state: DELIVERED or FAILED for good, PENDING to try again.
        reply: the answer to remember; None keeps the last one.
        delay_reported: true when the sender was told of the delay now.
    """

    state: State
    reply: Reply | None = None
    delay_reported: bool = False


DELIVERED: Final = Result(State.DELIVERED)
"""Delivered, nothing else to remember."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Figures of a queue.

    Attributes:
        messages: how many are queued, held ones too.
        octets: of their bodies.
        due: units that could be claimed now.
        deferred: units whose time has not come.
        leased: units that are being delivered.
        held: units of held messages.
        oldest: when the oldest message came, or None.
    """

    messages: int
    octets: int
    due: int
    deferred: int
    leased: int
    held: int
    oldest: float | None


class Queue(ABC):
    """A durable queue.  Used from one event loop; `aclose` (or ``async with``) finishes what was begun.

    Every method raises QueueUnavailable when the queue is closed or its storage fails.
    """

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @abstractmethod
    async def put(self, envelope: Envelope, body: Body) -> str:
        """Queue a message; returns its identifier when it will survive a loss of power.

        When it is cancelled or raises while the storage works, the message may be queued nevertheless.  What the body's
        iterator raises passes through, and nothing is queued.

        Raises:
            QueueFull: a limit is reached.
            ValueError: no recipients, a destination that is empty or not printable, a time or priority out of range.
        """

    @abstractmethod
    async def claim(
        self, *, lease: float, limit: int = 1, destination: str | None = None, exclude: Collection[str] = ()
    ) -> Claims:
        """Lease up to `limit` units of one destination that are due, the urgent first, then those that are due longest.

        Does not wait: an empty list says that nothing is due.

        Args:
            lease: seconds until each unit may be given to another.
            destination: which one; None takes the one whose turn it is.
            exclude: destinations that are not to be taken.
        """

    @abstractmethod
    async def ready(self, *, exclude: Collection[str] = ()) -> None:
        """Wait until `claim` with the same `exclude` may find something."""

    @abstractmethod
    async def renew(self, lease: Lease, seconds: float) -> Lease:
        """The same lease with a deadline so many seconds from now.

        Raises:
            LeaseLost: it is another's.
        """

    @abstractmethod
    async def settle(
        self,
        lease: Lease,
        results: Mapping[int, Result],
        *,
        others: Result | None = None,
        retry_at: float | None = None,
    ) -> bool:
        """End a lease with a result for each recipient; durable when it returns.

        When it raises QueueUnavailable the lease goes on and can be settled again.

        Args:
            results: by `Recipient.number`; only recipients of the claim are looked at.
            others: for the recipients without one; None leaves them pending as they were, their attempts not counted.
            retry_at: the next attempt for those that stay pending; None is now.  Not after the message's expiry.

        Returns:
            True when no recipient of the message was left pending: it is gone.

        Raises:
            LeaseLost: it was settled, is another's, or the message was removed; nothing is changed.
        """

    async def acknowledge(
        self,
        lease: Lease,
        reply: Reply | None = None,
        *,
        results: Mapping[int, Result] | None = None,
        retry_at: float | None = None,
    ) -> bool:
        """`settle`: recipients without another result are delivered."""
        return await self.settle(lease, results or {}, others=Result(State.DELIVERED, reply), retry_at=retry_at)

    async def retry(
        self, lease: Lease, at: float, reply: Reply | None = None, *, results: Mapping[int, Result] | None = None
    ) -> bool:
        """`settle`: recipients without another result are tried again."""
        return await self.settle(lease, results or {}, others=Result(State.PENDING, reply), retry_at=at)

    async def fail(
        self,
        lease: Lease,
        reply: Reply | None = None,
        *,
        results: Mapping[int, Result] | None = None,
        retry_at: float | None = None,
    ) -> bool:
        """`settle`: recipients without another result have failed for good.  Who reports that puts the report first."""
        return await self.settle(lease, results or {}, others=Result(State.FAILED, reply), retry_at=retry_at)

    @abstractmethod
    def body(self, id: str) -> AsyncIterator[bytes]:
        """A message's octets in pieces of any size, as they were put.

        A message that is removed while it is read is read to its end or raises; it never looks whole when it is not.

        Raises:
            NoSuchMessage: when the first piece is asked for.
        """

    @abstractmethod
    async def get(self, id: str) -> QueuedMessage:
        """One message.

        Raises:
            NoSuchMessage: it is not there.
        """

    @abstractmethod
    async def list(self, *, after: str | None = None, limit: int = 100, destination: str | None = None) -> Page:
        """A page of messages, the oldest first.

        Args:
            after: `Page.after` of the page before; None begins.
            limit: messages on a page, at most.
            destination: only messages with a recipient of that destination.
        """

    @abstractmethod
    async def hold(self, id: str) -> None:
        """Hand out no more of a message until `release`.  Leases that run go on.

        Raises:
            NoSuchMessage: it is not there.
        """

    @abstractmethod
    async def release(self, id: str) -> None:
        """End `hold`.

        Raises:
            NoSuchMessage: it is not there.
        """

    @abstractmethod
    async def remove(self, id: str) -> None:
        """Drop a message.  Its leases are lost.

        Raises:
            NoSuchMessage: it is not there.
        """

    @abstractmethod
    async def flush(self, destination: str | None = None, *, id: str | None = None) -> int:
        """Make what is deferred due now; returns the number of units.

        Args:
            destination: only what goes there (ETRN, RFC 1985).
            id: only this message.

        Raises:
            NoSuchMessage: there is no message `id`.
        """

    @abstractmethod
    async def stats(self) -> Stats:
        """Figures of now."""

    @abstractmethod
    async def aclose(self) -> None:
        """Finish what was begun and close.  May be called twice."""
