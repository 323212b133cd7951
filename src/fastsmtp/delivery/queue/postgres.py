"""The queue in a PostgreSQL database: any number of processes on any number of hosts put, claim and settle in it.

`Queue.put` returns after the commit of the transaction that has the message: it is on the server's disk, and on that of its
synchronous standby if one is configured.  What waits while a commit is under way shares the next one.  Leases are rows that
are locked with SKIP LOCKED and marked with a deadline, which passes by the server's clock; what a process had leased that is
gone is claimed by the others.  Claims do not wait for the disk: a crash of the server may forget those of its last moments,
and what was claimed then is delivered twice.

While the database is down every method raises QueueUnavailable, and when it is back each works again.  An answer that was
lost on the way leaves it open whether a message was queued: who put it is told QueueUnavailable.

Connections are made directly or through a pool of sessions, not of transactions: they are set up once, prepare statements
and listen.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import secrets
import time
import weakref
from collections.abc import AsyncIterator, Callable, Collection, Iterable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Final, NamedTuple, Self, TypeVar

from fastsmtp.errors import ConfigurationError

from . import _pgsql
from ._pg import Connection, Database, Query
from ._pglanes import Lane, News
from ._pgputs import Put, Room, Uploads, insert
from ._pgunits import HeldLease, Settlement, Unit, claims, queued, settle
from ._record import apply, check, check_time, encode_recipients, message_number
from .contract import (
    Body,
    Claims,
    Envelope,
    Lease,
    LeaseLost,
    NoSuchMessage,
    Page,
    Queue,
    QueuedMessage,
    QueueUnavailable,
    Result,
    State,
    Stats,
)

__all__ = ["PostgresQueue"]

INLINE: Final = 1 << 16
"""Octets of a body up to which it is in its message's row."""

CONNECTIONS: Final = 4
"""Connections of a queue, besides the two that commit and the one that listens."""

TIMEOUT: Final = 30.0
"""Seconds for a statement."""

LONGEST_WAIT: Final = 5.0
"""Seconds after which `PostgresQueue.ready` looks again: a notification may be lost with the process that owed it."""

WINDOW: Final = 256
"""Units that are looked at, when destinations are excluded, before it is done in the way for large backlogs."""

SWEEP_EVERY: Final = 600.0
"""Seconds between two sweeps."""

SWEEP_AGE: Final = 3600.0
"""Seconds after which a body is swept that nothing was added to."""

FLUSHED: Final = 10_000
"""Units that are made due in one transaction."""

LONGEST_DESTINATION: Final = 2000
"""Octets: what an index takes."""

_T = TypeVar("_T")


class _Turn(NamedTuple):
    """Where the next unit is due.

    Attributes:
        destination: its destination.
        wait: seconds until then.
    """

    destination: str
    wait: float


class PostgresQueue(Queue):
    """A durable queue in a schema of a PostgreSQL database, which is made if it is not there.

    Nothing is connected before the first use or `open`.

    Args:
        dsn: the database, as libpq takes it: ``postgresql://user@host/name``, several hosts to find the primary among them;
            "" has all from the environment.
        schema: whose tables they are.
        max_messages: refuse more of them, None for no limit; among several processes nearly so.
        max_octets: refuse more octets of bodies, None for no limit; likewise.
        inline: octets of a body up to which it is in its message's row.
        connections: how many are used besides the two that commit and the one that listens.
        timeout: seconds for a statement, and to connect.
        clock: seconds since the epoch instead of the server's clock, for tests.
        logger: what logs failures; "fastsmtp.queue" by default.

    Raises:
        ConfigurationError: asyncpg is missing, or that is no name of a schema.
    """

    def __init__(
        self,
        dsn: str = "",
        *,
        schema: str = "fastsmtp",
        max_messages: int | None = None,
        max_octets: int | None = None,
        inline: int = INLINE,
        connections: int = CONNECTIONS,
        timeout: float = TIMEOUT,
        clock: Callable[[], float] | None = None,
        logger: logging.Logger | None = None,
    ) -> None:
        self.schema: Final = schema
        self._inline = inline
        self._clock = clock
        logger = logger if logger is not None else logging.getLogger("fastsmtp.queue")
        self._database = database = Database(dsn, schema, connections, timeout, logger)
        self._room = Room(
            database,
            math.inf if max_messages is None else max_messages,
            math.inf if max_octets is None else max_octets,
        )
        self._uploads = Uploads(database, self._room, inline, self._now)
        self._puts = Lane(database, partial(insert, self._now, database))
        self._settlements = Lane(database, partial(settle, self._now, database))
        self._news = News(database)
        self._claiming: set[asyncio.Task[Claims]] = set()
        self._leased: weakref.WeakSet[Unit] = weakref.WeakSet()
        self._swept = -math.inf
        self._closing: asyncio.Task[None] | None = None
        self._closed = False

    def __repr__(self) -> str:
        return f"<PostgresQueue {self.schema!r}>"

    async def __aenter__(self) -> Self:
        try:
            await self.open()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def open(self) -> None:
        """Make or check the tables.  When the database is down that is left to whoever comes first when it is back.

        Raises:
            ConfigurationError: the server refuses the user, is too old, has tables of another version or of something else.
        """
        self._check_open()
        try:
            await self._database.keep_one()
        except ConfigurationError:
            raise
        except self._database.failures:  # it was logged
            return

    def _now(self) -> float | None:
        """The time for statements: None, for the server's clock, but in tests."""
        return None if self._clock is None else self._clock()

    # Messages come in.

    async def put(self, envelope: Envelope, body: Body) -> str:
        self._check_open()
        _check(envelope)
        content: bytes | None
        number: int | None = None
        if isinstance(body, bytes) and len(body) <= self._inline:
            size, content = len(body), body
        else:
            await self._room.check(0)
            size, content, number = await self._uploads.receive(body)
        try:
            await self._room.check(size)
            self._check_open()
        except BaseException:
            self._uploads.abandon(number)
            raise
        weight = 0 if content is None else size
        stored = self._puts.submit(Put(envelope, size, content, number), weight)
        self._room.reserve(size)
        stored.add_done_callback(partial(self._was_put, size))
        id: str = await stored
        return id

    def _was_put(self, size: int, stored: asyncio.Future[str]) -> None:
        if self._room.stored(size, stored):
            self._news.tell()

    # Units go out.

    async def claim(
        self, *, lease: float, limit: int = 1, destination: str | None = None, exclude: Collection[str] = ()
    ) -> Claims:
        self._check_open()
        if limit < 1 or not 0 < lease < math.inf:
            raise ValueError("limit and lease must be greater than 0")
        claiming = asyncio.create_task(self._claim(lease, limit, destination, exclude))
        self._claiming.add(claiming)
        claiming.add_done_callback(self._claiming.discard)
        try:
            return await asyncio.shield(claiming)
        except asyncio.CancelledError:
            with contextlib.suppress(*self._database.failures):
                await self._give_back([_held(claim.lease).unit for claim in await claiming])
            raise

    async def _claim(self, lease: float, limit: int, destination: str | None, exclude: Collection[str]) -> Claims:
        if destination is not None:
            return [] if destination in exclude else await self._claim_of(destination, lease, limit)
        skipped = list(exclude)
        while (turn := await self._turn(skipped)) is not None and turn.wait <= 0:
            if found := await self._claim_of(turn.destination, lease, limit):
                return found
            skipped.append(turn.destination)  # others are just claiming it
        return []

    async def _claim_of(self, destination: str, lease: float, limit: int) -> Claims:
        token = secrets.randbits(63)
        # Here the deadline is by this machine's clock, and a little early.
        deadline = (self._clock or time.time)() + lease
        rows = await self._query(_fetch(_pgsql.CLAIM, self._now(), destination, limit, token, lease))
        found = claims(rows, destination, token, deadline, self.body)
        self._leased.update(_held(claim.lease).unit for claim in found)
        return found

    async def _give_back(self, units: Iterable[Unit]) -> None:
        """Nobody delivers these."""
        rows = [(each.message, each.number, each.token) for each in units]
        if rows:
            await self._query(_execute(_pgsql.GIVE_BACK, *zip(*rows, strict=True)))
            self._news.tell()

    async def _turn(self, exclude: Collection[str]) -> _Turn | None:
        """The destination of the most urgent unit that is due, or else of the one that is due next."""
        excluded = list(exclude)
        window = WINDOW if excluded else 1
        rows = await self._query(_fetch(_pgsql.TURN, self._now(), excluded, window))
        if any(row["destination"] is None and row["seen"] == window for row in rows):
            rows = await self._query(_fetch(_pgsql.TURN_OF_MANY, self._now(), excluded))
        turns = [_Turn(row["destination"], row["wait"]) for row in rows if row["destination"] is not None]
        for turn in turns:
            if turn.wait <= 0:
                return turn
        return min(turns, key=lambda each: each.wait, default=None)

    async def ready(self, *, exclude: Collection[str] = ()) -> None:
        while True:
            self._check_open()
            await self._sweep()
            seen = self._news.count
            turn = await self._turn(exclude)
            self._check_open()
            if turn is not None and turn.wait <= 0:
                return
            await self._news.wait(seen, LONGEST_WAIT if turn is None else min(turn.wait, LONGEST_WAIT))

    async def _sweep(self) -> None:
        now = time.monotonic()
        if now >= self._swept + SWEEP_EVERY:
            self._swept = now
            await self._uploads.sweep(SWEEP_AGE)

    async def renew(self, lease: Lease, seconds: float) -> Lease:
        self._check_open()
        if not 0 < seconds < math.inf:
            raise ValueError("a lease must be longer than 0 seconds")
        held = _held(lease)
        unit = held.unit
        deadline = (self._clock or time.time)() + seconds
        key = unit.message, unit.number, unit.token
        if not await self._query(_fetch(_pgsql.RENEW, self._now(), *key, seconds)):
            raise LeaseLost("the lease was settled or is another's, or its message was removed")
        return replace(held, deadline=deadline)

    async def settle(
        self,
        lease: Lease,
        results: Mapping[int, Result],
        *,
        others: Result | None = None,
        retry_at: float | None = None,
    ) -> bool:
        self._check_open()
        unit = _held(lease).unit
        outcomes = [results.get(number, others) for number in unit.waiting]
        pending = any(each is None or each.state is State.PENDING for each in outcomes)
        if pending and retry_at is not None:
            check_time(retry_at)
        recipients = ""
        if pending or not unit.alone:
            recipients = encode_recipients(apply(unit.recipients, results, others))
        settled: bool = await self._settlements.submit(Settlement(unit, recipients, pending, retry_at))
        self._leased.discard(unit)
        if pending:
            self._news.wake()
        return settled

    # What is queued.

    async def body(self, id: str) -> AsyncIterator[bytes]:
        number = message_number(id)
        size, content = await self._row(id, _pgsql.BODY, number)
        if content:
            yield content
        if content is not None:
            return
        chunk = 0
        while size > 0:
            rows = await self._query(_fetch(_pgsql.CHUNK, number, chunk))
            if not rows:
                await self._row(id, _pgsql.BODY, number)
                raise QueueUnavailable(f"the body of {id} is damaged")
            octets: bytes = rows[0][0]
            size -= len(octets)
            chunk += 1
            yield octets

    async def get(self, id: str) -> QueuedMessage:
        rows = await self._query(_fetch(_pgsql.GET, message_number(id)))
        for each in queued(rows):
            return each
        raise NoSuchMessage(id)

    async def list(self, *, after: str | None = None, limit: int = 100, destination: str | None = None) -> Page:
        if limit < 1:
            raise ValueError("limit must be greater than 0")
        number = message_number(after) if after is not None else -1
        messages = queued(await self._query(_fetch(_pgsql.LIST, number, limit + 1, destination)))
        more = len(messages) > limit
        return Page(tuple(messages[:limit]), messages[limit - 1].message.id if more else None)

    async def hold(self, id: str) -> None:
        await self._change(id, _pgsql.HOLD, message_number(id))

    async def release(self, id: str) -> None:
        await self._change(id, _pgsql.RELEASE, self._now(), message_number(id))
        self._news.tell()

    async def remove(self, id: str) -> None:
        number = message_number(id)

        async def remove(connection: Connection) -> None:
            if not await connection.fetch(_pgsql.REMOVE, self._database.slot, number):
                raise NoSuchMessage(id)

        await self._query(remove, durable=True)

    async def flush(self, destination: str | None = None, *, id: str | None = None) -> int:
        number = None
        if id is not None:
            number = message_number(id)
            await self._row(id, _pgsql.BODY, number)
        (row,) = await self._query(_fetch(_pgsql.NOW, self._now()))
        total, count = 0, FLUSHED
        while count == FLUSHED:
            status = await self._query(_execute(_pgsql.FLUSH, row[0], destination, number, FLUSHED), durable=True)
            count = int(status.split()[-1])
            total += count
        if total:
            self._news.tell()
        return total

    async def stats(self) -> Stats:
        (row,) = await self._query(_fetch(_pgsql.STATS, self._now()))
        return Stats(**row)

    # The database.

    def _check_open(self) -> None:
        if self._closed:
            raise QueueUnavailable("the queue is closed")

    async def _query(self, query: Query[_T], *, durable: bool = False) -> _T:
        return await self._database.query(query, durable=durable)

    async def _row(self, id: str, sql: str, *arguments: object) -> Any:
        """The one row of a message."""
        self._check_open()
        for row in await self._query(_fetch(sql, *arguments)):
            return row
        raise NoSuchMessage(id)

    async def _change(self, id: str, sql: str, *arguments: object) -> None:
        """Change the units of a message."""
        self._check_open()
        if (await self._query(_execute(sql, *arguments), durable=True)).endswith(" 0"):
            raise NoSuchMessage(id)

    async def aclose(self) -> None:
        if self._closing is None:
            self._closed = True
            self._news.wake()
            self._closing = asyncio.create_task(self._close())
        await asyncio.shield(self._closing)

    async def _close(self) -> None:
        await self._puts.close()
        await self._settlements.close()
        if self._claiming:
            await asyncio.wait(self._claiming)
        with contextlib.suppress(*self._database.failures):  # or else the leases expire
            await self._give_back(self._leased)
        await self._uploads.close()
        await self._news.close()
        await self._database.close()


def _fetch(sql: str, *arguments: object) -> Query[list[Any]]:
    return lambda connection: connection.fetch(sql, *arguments)


def _execute(sql: str, *arguments: object) -> Query[str]:
    return lambda connection: connection.execute(sql, *arguments)


def _held(lease: Lease) -> HeldLease:
    if not isinstance(lease, HeldLease):
        raise LeaseLost("not a lease of this queue")
    return lease


def _check(envelope: Envelope) -> None:
    check(envelope)
    for target in envelope.targets:
        if len(target.destination.encode()) > LONGEST_DESTINATION:
            raise ValueError(f"a destination of more than {LONGEST_DESTINATION} octets")
