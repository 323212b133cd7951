"""How units leave PostgreSQL: what a claim's rows say, and how results are stored in groups."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final, NamedTuple, TypeAlias

from . import _pgsql
from ._bodies import whole
from ._pg import Connection, Database
from ._record import StoredRecipient, decode_envelope, decode_recipients, message_id, queued_recipient
from .contract import Claim, Lease, LeaseLost, Message, QueuedMessage, Recipient, State

__all__ = ["HeldLease", "Settlement", "Unit", "claims", "queued", "settle"]

_LOST: Final = "the lease was settled or is another's, or its message was removed"


@dataclass(frozen=True, slots=True, weakref_slot=True, eq=False)
class Unit:
    """A unit that is leased.

    Attributes:
        message: the message's number.
        number: the unit's.
        token: what its row is marked with.
        alone: the message has no other unit.
        expires: when the message does.
        recipients: all of the unit, also those that are not pending.
        waiting: the numbers of those that are.
    """

    message: int
    number: int
    token: int
    alone: bool
    expires: float | None
    recipients: list[StoredRecipient]
    waiting: list[int]

    @property
    def key(self) -> tuple[int, int]:
        """What no other unit has."""
        return self.message, self.number


@dataclass(frozen=True, slots=True)
class HeldLease(Lease):
    """A lease that knows its unit."""

    unit: Unit = field(repr=False, compare=False)


def claims(
    rows: Iterable[Any],
    destination: str,
    token: int,
    deadline: float,
    opener: Callable[[str], AsyncIterator[bytes]],
) -> list[Claim]:
    """What `_pgsql.CLAIM` has leased.

    Args:
        opener: reads a body that is in chunks.
    """
    found = []
    for row in rows:
        recipients = decode_recipients(row["recipients"])
        message = _message(row, row["message"], held=False)
        waiting = _visible(
            (each for each in recipients if each.state is State.PENDING), destination, row["next_attempt"]
        )
        unit = Unit(
            row["message"],
            row["number"],
            token,
            row["units"] == 1,
            message.expires,
            recipients,
            [each.number for each in waiting],
        )
        lease = HeldLease(f"{message.id}-{unit.number}-{token:016x}", deadline, unit)
        body = row["body"]
        found.append(Claim(lease, message, destination, waiting, opener if body is None else partial(whole, body)))
    return found


def queued(rows: Iterable[Any]) -> list[QueuedMessage]:
    """The messages of `_pgsql.GET` and `_pgsql.LIST`."""
    found: dict[int, list[Any]] = {}
    for row in rows:
        found.setdefault(row["id"], []).append(row)
    return [_queued(units) for units in found.values()]


def _queued(units: list[Any]) -> QueuedMessage:
    recipients: list[Recipient] = []
    for row in units:
        recipients += _visible(decode_recipients(row["recipients"]), row["destination"], row["next_attempt"])
    recipients.sort(key=lambda each: each.number)
    held = any(row["held"] for row in units)
    return QueuedMessage(_message(units[0], units[0]["id"], held=held), tuple(recipients))


def _message(row: Any, number: int, *, held: bool) -> Message:
    sender, params, origin = decode_envelope(row["envelope"])
    return Message(
        message_id(number),
        sender,
        params,
        row["received"],
        row["expires"],
        row["priority"],
        origin,
        row["size"],
        held,
    )


def _visible(
    recipients: Iterable[StoredRecipient], destination: str, next_attempt: float | None
) -> tuple[Recipient, ...]:
    return tuple(queued_recipient(each, destination, next_attempt) for each in recipients)


class Settlement(NamedTuple):
    """What became of a unit.

    Attributes:
        unit: the unit.
        recipients: how they are stored now.
        pending: some of them are tried again ...
        at: ... at this time, None for now.
    """

    unit: Unit
    recipients: str
    pending: bool
    at: float | None


_Works: TypeAlias = Sequence[Settlement]


async def settle(
    clock: Callable[[], float | None], database: Database, connection: Connection, works: _Works
) -> list[bool | LeaseLost]:
    """Store results; returns for each whether the message is gone."""
    first: dict[tuple[int, int], Settlement] = {}
    for work in works:
        first.setdefault(work.unit.key, work)
    finished = [work for work in first.values() if work.unit.alone and not work.pending]
    others = [work for work in first.values() if not work.unit.alone or work.pending]
    ended = [work for work in others if not work.pending]
    several = bool(finished and others or ended)
    if several:
        await connection.execute("BEGIN")
    settled: set[tuple[int, int]] = set()
    gone: set[int] = set()
    if others:
        settled = await _update(clock, connection, others)
    if finished:
        gone = await _finish(database, connection, finished)
        settled.update(work.unit.key for work in finished if work.unit.message in gone)
    if messages := sorted({work.unit.message for work in ended if work.unit.key in settled}):
        await connection.execute(_pgsql.LOCK, messages)
        gone.update(row[0] for row in await connection.fetch(_pgsql.END, database.slot, messages))
    if several:
        await connection.execute("COMMIT")
    outcomes: list[bool | LeaseLost] = []
    for work in reversed(works):
        message, key = work.unit.message, work.unit.key
        if first[key] is not work or key not in settled:
            outcomes.append(LeaseLost(_LOST))
        else:
            outcomes.append(not work.pending and message in gone)
            gone.discard(message)  # it is the last one that ends it
    return outcomes[::-1]


async def _update(clock: Callable[[], float | None], connection: Connection, works: _Works) -> set[tuple[int, int]]:
    rows = await connection.fetch(
        _pgsql.SETTLE,
        clock(),
        *_columns(works),
        [work.recipients for work in works],
        [work.pending for work in works],
        [work.at for work in works],
        [work.unit.expires for work in works],
    )
    return {(row[0], row[1]) for row in rows}


async def _finish(database: Database, connection: Connection, works: _Works) -> set[int]:
    return {row[0] for row in await connection.fetch(_pgsql.FINISH, database.slot, *_columns(works))}


def _columns(works: _Works) -> tuple[list[int], list[int], list[int]]:
    """What finds the rows of units, as long as they are leased."""
    units = [work.unit for work in works]
    return [each.message for each in units], [each.number for each in units], [each.token for each in units]
