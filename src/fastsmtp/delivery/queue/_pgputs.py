"""How messages come into PostgreSQL: what the limits allow, large bodies in chunks while they arrive, and groups of rows."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Final, NamedTuple

from . import _pgsql
from ._pg import Connection, Database
from ._record import encode_envelope, message_id, units_of
from .contract import Body, Envelope, QueueFull, QueueUnavailable

__all__ = ["CHUNK", "Put", "Room", "Uploads", "insert"]

CHUNK: Final = 1 << 18
"""Octets of a chunk, about: what is held in memory of a large body."""

STALE: Final = 1.0
"""Seconds for which figures are believed: other processes put and settle too."""


class Room:
    """What is queued, and whether more may be.

    Exact as long as one process puts; among several, what the others put within `STALE` seconds is not seen.

    Args:
        database: has the figures.
        messages: refuse more of them.
        octets: refuse more octets of bodies.
    """

    def __init__(self, database: Database, messages: float, octets: float) -> None:
        self._database = database
        self._limits = messages, octets
        self._messages = self._octets = 0
        self._coming_messages = self._coming_octets = 0
        self._read = -math.inf

    async def check(self, size: int) -> None:
        """Refuse a message of such a size, or that is so large already.

        Raises:
            QueueFull: it is too much.
        """
        if self._limits == (math.inf, math.inf):
            return
        fresh = time.monotonic() < self._read + STALE
        if not fresh:
            await self._refresh()
        if self._excess(size) and fresh:
            await self._refresh()
        if excess := self._excess(size):
            raise QueueFull(excess)

    def reserve(self, size: int) -> None:
        """A message of such a size is being stored."""
        self._coming_messages += 1
        self._coming_octets += size

    def stored(self, size: int, future: asyncio.Future[str]) -> bool:
        """It was, or was not, or nobody waits for that any more; returns whether it may have been."""
        self._coming_messages -= 1
        self._coming_octets -= size
        if future.cancelled():
            return True
        if future.exception() is not None:
            return False
        self._messages += 1
        self._octets += size
        return True

    async def _refresh(self) -> None:
        self._messages, self._octets = await self._database.query(lambda each: each.fetchrow(_pgsql.TOTALS))
        self._read = time.monotonic()

    def _excess(self, size: int) -> str:
        """What is too much, or ""."""
        messages = self._messages + self._coming_messages
        octets = self._octets + self._coming_octets
        if messages >= self._limits[0]:
            return f"{messages} messages are queued"
        if octets + size > self._limits[1]:
            return f"{octets} octets are queued, {size} more are too many"
        return ""


class Uploads:
    """Bodies that are stored while they arrive.

    Until its message is stored a body is registered as incoming; what nobody adds to is swept after a time.

    Args:
        database: where to.
        room: says how much.
        inline: octets of a body up to which it is kept in its message's row.
        clock: the time for statements.
    """

    def __init__(self, database: Database, room: Room, inline: int, clock: Callable[[], float | None]) -> None:
        self._database = database
        self._room = room
        self._inline = inline
        self._clock = clock
        self._tasks: set[asyncio.Task[None]] = set()

    async def receive(self, body: Body) -> tuple[int, bytes | None, int | None]:
        """Take a body in: its size, and either its octets or the number of the message that has its chunks."""
        number: int | None = None
        parts: list[bytes | memoryview] = []
        size = waiting = chunks = 0
        try:
            async for piece in _pieces(body):
                parts.append(piece)
                size += len(piece)
                waiting += len(piece)
                if waiting >= CHUNK and size > self._inline:
                    await self._room.check(size)
                    number = await self._add(number, chunks, b"".join(parts))
                    chunks += 1
                    waiting = 0
                    parts = []
            rest = b"".join(parts)
            if size <= self._inline:
                return size, rest, None
            if rest:
                number = await self._add(number, chunks, rest)
        except BaseException:
            self.abandon(number)
            raise
        return size, None, number

    def abandon(self, number: int | None) -> None:
        """No message will have these chunks: remove them soon."""
        if number is not None:
            task = asyncio.create_task(self._remove(number))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def sweep(self, age: float) -> int:
        """Remove what nobody has added to for so many seconds; returns how many bodies."""
        count: int = await self._database.query(lambda each: each.fetchval(_pgsql.SWEEP, self._clock(), age))
        return count

    async def close(self) -> None:
        """Wait for what is being removed."""
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _add(self, number: int | None, chunk: int, octets: bytes) -> int:
        async def add(connection: Connection) -> int:
            if number is None:
                begun: int = await connection.fetchval(_pgsql.START, self._clock(), octets)
                return begun
            if not await connection.fetchval(_pgsql.APPEND, self._clock(), number, chunk, octets):
                raise QueueUnavailable(f"the body of {message_id(number)} was swept: it came too slowly")
            return number

        return await self._database.query(add)

    async def _remove(self, number: int) -> None:
        async def remove(connection: Connection) -> None:
            await connection.execute("BEGIN")
            await connection.execute(_pgsql.DROP_INCOMING, number)
            await connection.execute(_pgsql.ABANDON, number)
            await connection.execute("COMMIT")

        try:
            await self._database.query(remove)
        except self._database.failures:
            return  # it will be swept


async def _pieces(body: Body) -> AsyncIterator[bytes | memoryview]:
    """A body in pieces that are no larger than a chunk."""
    if isinstance(body, bytes):
        view = memoryview(body)
        for at in range(0, len(body), CHUNK):
            yield view[at : at + CHUNK]
        return
    async for piece in body:
        if len(piece) <= CHUNK:
            yield piece
        else:
            async for part in _pieces(bytes(piece)):
                yield part


class Put(NamedTuple):
    """A message to be stored.

    Attributes:
        envelope: its envelope.
        size: octets of its body.
        body: its body, unless it is in chunks.
        number: the message's number when it is.
    """

    envelope: Envelope
    size: int
    body: bytes | None
    number: int | None


async def insert(
    clock: Callable[[], float | None], database: Database, connection: Connection, puts: Sequence[Put]
) -> list[str | QueueUnavailable]:
    """Store messages; returns the identifier of each."""
    envelopes = [put.envelope for put in puts]
    parted = [units_of(each) for each in envelopes]
    units = [
        (place, number, destination, -each.priority, each.not_before, each.expires, each.held, recipients)
        for place, (each, units) in enumerate(zip(envelopes, parted, strict=True), 1)
        for number, (destination, recipients) in enumerate(units)
    ]
    rows = await connection.fetch(
        _pgsql.PUT,
        clock(),
        database.slot,
        [put.number for put in puts],
        [each.received for each in envelopes],
        [each.expires for each in envelopes],
        [each.priority for each in envelopes],
        [put.size for put in puts],
        [len(units) for units in parted],
        [encode_envelope(each) for each in envelopes],
        [put.body for put in puts],
        *zip(*units, strict=True),
    )
    return [_outcome(row[0]) for row in rows]


def _outcome(number: int | None) -> str | QueueUnavailable:
    return QueueUnavailable("its body was swept: it came too slowly") if number is None else message_id(number)
