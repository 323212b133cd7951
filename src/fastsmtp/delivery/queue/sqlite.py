"""The queue in a directory of this machine: SQLite of the standard library, and side files for large bodies.

`Queue.put` returns after the commit of the transaction that has the message, and of the sync of that: write-ahead log,
``synchronous=FULL``.  Whatever waits while the disk is busy shares the next transaction, so that the busier the queue is the
less each message costs.  One queue of one process has the directory; give each worker its own.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import aclosing
from functools import partial
from typing import Final, TypeVar

from fastsmtp.errors import ConfigurationError

from .._groupsync import Files
from . import _store
from ._bodies import Bodies, whole
from ._engine import Change, Finish, Put, Read, Reader, Work, Writer
from ._engine import Claim as ClaimWork
from ._lanes import Lane, Lanes
from ._leases import Leased, Leases
from ._record import (
    apply,
    check,
    check_time,
    encode_envelope,
    encode_recipients,
    message_id,
    message_number,
    units_of,
)
from ._spool import Spool, SpoolFile
from ._store import Claimed
from .contract import (
    Body,
    Claim,
    Claims,
    Envelope,
    Lease,
    LeaseLost,
    NoSuchMessage,
    Page,
    Queue,
    QueuedMessage,
    QueueFull,
    QueueUnavailable,
    Result,
    State,
    Stats,
)

__all__ = ["SQLiteQueue"]

INLINE: Final = 1 << 16
"""Octets of a body up to which it is stored in the database: larger ones would be written twice."""

MIN_FREE: Final = 1 << 26
"""Octets that puts leave free on the file system."""

SHRINK: Final = 1 << 26
"""Octets from which the database of an empty queue is made small at the start."""

LONGEST_WAIT: Final = 30.0
"""Seconds after which `SQLiteQueue.ready` looks at the clock again: it may have been set."""

_T = TypeVar("_T")


class SQLiteQueue(Queue):
    """A durable queue in a directory, which is made if it is not there.

    Args:
        path: the directory; its parent must be there.
        max_messages: refuse more of them, None for no limit.
        max_octets: refuse more octets of bodies, None for no limit.
        min_free: octets that puts leave free on the file system, 0 to fill it.
        inline: octets of a body up to which it is stored in the database.
        clock: seconds since the epoch, for tests.
        logger: what logs failures; "fastsmtp.queue" by default.
        files: the system calls for side files, for tests.
        connect: opens the database, for tests.

    Raises:
        QueueInUse: another process, or another queue of this one, has it open.
        ConfigurationError: it is something else, or cannot be written.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_messages: int | None = None,
        max_octets: int | None = None,
        min_free: int = MIN_FREE,
        inline: int = INLINE,
        clock: Callable[[], float] = time.time,
        logger: logging.Logger | None = None,
        files: Files | None = None,
        connect: Callable[..., sqlite3.Connection] = sqlite3.connect,
    ) -> None:
        self.path: Final = os.path.abspath(path)
        self._max_messages = math.inf if max_messages is None else max_messages
        self._max_octets = math.inf if max_octets is None else max_octets
        self._inline = inline
        self._clock = clock
        self._logger = logger if logger is not None else logging.getLogger("fastsmtp.queue")
        self._spool = Spool(self.path, files)
        self._connections: list[sqlite3.Connection] = []
        self._lanes = Lanes()
        self._leases = Leases()
        self._waiting: set[asyncio.Future[None]] = set()
        self._bodies = Bodies(self._spool, inline, self._log_failure)
        self._closing: asyncio.Task[None] | None = None
        self._closed = False
        try:
            high = self._load(connect)
        except (sqlite3.Error, OSError, ValueError) as error:
            self._close_storage()
            raise ConfigurationError(f"cannot open queue {self.path}: {error}") from error
        except BaseException:
            self._close_storage()
            raise
        self._last_number = high - 1
        self._writer = Writer(
            self._connections[0], self._spool, high=high, min_free=min_free, on_failure=self._log_failure
        )
        self._reader = Reader(self._connections[1])

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r}>"

    @property
    def groups(self) -> int:
        """Transactions committed so far."""
        return self._writer.groups

    def _load(self, connect: Callable[..., sqlite3.Connection]) -> int:
        for _ in range(2):
            connection = connect(self._spool.database, isolation_level=None, check_same_thread=False)
            self._connections.append(connection)
            high = _store.prepare(connection)
        writer = self._connections[0]
        self._messages, self._octets = _store.totals(writer)
        if not self._messages and os.path.getsize(self._spool.database) >= SHRINK:
            writer.execute("VACUUM")
        self._sweep(writer)
        self._spool.sync_directories()
        for lane in _store.bounds(writer):
            self._lanes.offer(*lane)
        return high

    def _sweep(self, connection: sqlite3.Connection) -> None:
        """Remove side files of messages that were never stored, or are gone."""
        removed = 0
        for name in self._spool.names():
            try:
                orphan = _store.locate(connection, message_number(name))[1] is not None
            except NoSuchMessage:
                orphan = True
            if orphan:
                self._spool.remove(name)
                removed += 1
        if removed:
            self._logger.info("queue %s: %d orphaned bodies removed", self.path, removed)

    # Messages come in.

    async def put(self, envelope: Envelope, body: Body) -> str:
        self._check_open()
        now = self._clock()
        check(envelope)
        number = self._last_number = max(self._last_number + 1, int(now * 1e6))
        content: _store.Body
        file: SpoolFile | None = None
        if isinstance(body, bytes) and len(body) <= self._inline:
            size, content = len(body), body
            self._admit(size)
        else:
            self._admit(0)
            size, content, file = await self._bodies.receive(message_id(number), body, self._admit)
        try:
            self._admit(size)
            put = self._plan(envelope, number, now, size, content)
            stored = self._writer.submit(put)
        except BaseException:
            if file is not None:
                self._bodies.abort(file)
            raise
        if file is not None:
            self._bodies.keep(file)  # the writer's now
        self._messages += 1
        self._octets += size
        await stored
        return message_id(number)

    def _admit(self, size: int) -> None:
        if self._messages >= self._max_messages:
            raise QueueFull(f"{self._messages} messages are queued")
        if self._octets + size > self._max_octets:
            raise QueueFull(f"{self._octets} octets are queued, {size} more are too many")

    def _plan(self, envelope: Envelope, number: int, now: float, size: int, content: _store.Body) -> Put:
        """The rows of a message."""
        units = units_of(envelope)
        expires, priority = envelope.expires, envelope.priority
        first = now if envelope.not_before is None else envelope.not_before
        due = None if envelope.held else first if expires is None else min(first, expires)
        received = now if envelope.received is None else envelope.received
        message = (number, received, expires, priority, size, len(units), encode_envelope(envelope), content)
        rows = [
            (number, index, destination, priority, due, first, int(envelope.held), recipients)
            for index, (destination, recipients) in enumerate(units)
        ]
        return Put(message, rows, "" if content is not None else message_id(number), self._was_put)

    def _was_put(self, put: Put) -> None:
        if put.error is not None:
            self._gone(put.message[4])
            return
        for _, _, destination, priority, due, *_ in put.units:
            if due is not None:
                self._offer(Lane(destination, priority, due))

    def _gone(self, size: int) -> None:
        self._messages -= 1
        self._octets -= size

    # Units go out.

    async def claim(
        self, *, lease: float, limit: int = 1, destination: str | None = None, exclude: Collection[str] = ()
    ) -> Claims:
        self._check_open()
        if limit < 1 or not 0 < lease < math.inf:
            raise ValueError("limit and lease must be greater than 0")
        while True:
            now = self._clock()
            self._expire(now)
            lanes = self._take(now, destination, exclude)
            if not lanes:
                return []
            find = partial(_store.claim, lanes=lanes, now=now, limit=limit, taken=self._leases.taken)
            claims: Claims = await self._writer.submit(ClaimWork(find, partial(self._was_claimed, lanes, lease)))
            if claims:
                return claims

    def _take(self, now: float, destination: str | None, exclude: Collection[str]) -> Sequence[Lane]:
        """The lanes of a destination that are due, the urgent first."""
        lanes: list[Lane] = []
        if destination is None:
            first = self._lanes.take(now, exclude)
            if first is None:
                return lanes
            lanes.append(first)
            destination = first.destination
        elif destination in exclude:
            return lanes
        while (lane := self._lanes.take_of(destination, now)) is not None:
            lanes.append(lane)
        return lanes

    def _was_claimed(self, lanes: Sequence[Lane], seconds: float, work: Work) -> None:
        if work.error is not None:
            for lane in lanes:
                self._offer(lane)
            return
        found, left = work.result
        for lane in left:
            self._offer(lane)
        if work.future.cancelled():
            for each in found:
                self._leases.taken.discard(each.key)
                self._offer(_lane_of(each, each.due))
            return
        deadline = self._clock() + seconds
        work.result = [claim for each in found if (claim := self._grant(each, deadline)) is not None]

    def _grant(self, claimed: Claimed, deadline: float) -> Claim | None:
        lease = self._leases.grant(claimed, deadline)
        if lease is None:
            return None
        body = claimed.body
        opener: Callable[[str], AsyncIterator[bytes]] = self.body
        if body is not None:
            opener = partial(whole, body)
        return Claim(lease, claimed.message, claimed.destination, claimed.waiting, opener)

    async def ready(self, *, exclude: Collection[str] = ()) -> None:
        loop = asyncio.get_running_loop()
        while True:
            self._check_open()
            now = self._clock()
            self._expire(now)
            earliest = self._lanes.earliest(now, exclude)
            if earliest is not None and earliest <= now:
                return
            times = [now + LONGEST_WAIT, earliest, self._leases.next_deadline()]
            news = loop.create_future()
            timer = loop.call_later(max(0.0, min(each for each in times if each is not None) - now), _wake, news)
            self._waiting.add(news)
            try:
                await news
            finally:
                timer.cancel()
                self._waiting.discard(news)

    def _offer(self, lane: Lane) -> None:
        if self._lanes.offer(*lane):
            self._wake_all()

    def _wake_all(self) -> None:
        for future in self._waiting:
            _wake(future)

    def _expire(self, now: float) -> None:
        for leased in self._leases.expire(now):
            self._offer(_lane_of(leased.claimed, leased.claimed.due))

    async def renew(self, lease: Lease, seconds: float) -> Lease:
        self._check_open()
        if not 0 < seconds < math.inf:
            raise ValueError("a lease must be longer than 0 seconds")
        return self._leases.renew(self._leases.find(lease), self._clock() + seconds)

    async def settle(
        self,
        lease: Lease,
        results: Mapping[int, Result],
        *,
        others: Result | None = None,
        retry_at: float | None = None,
    ) -> bool:
        self._check_open()
        leased = self._leases.find(lease)
        claimed = leased.claimed
        message = claimed.message
        outcomes = [results.get(each.number, others) for each in claimed.waiting]
        final = all(each is not None and each.state is not State.PENDING for each in outcomes)
        work: Work
        if final and claimed.alone:
            file = "" if claimed.body is not None else message.id
            work = Finish(leased.number, file, partial(self._was_settled, leased, None))
        else:
            at: float | None = None
            if not final:
                at = self._clock() if retry_at is None else retry_at
                check_time(at)
                at = at if message.expires is None else min(at, message.expires)
            text = encode_recipients(apply(claimed.recipients, results, others))
            store = partial(_settle, key=claimed.key, recipients=text, next_attempt=at)
            work = Change(store, partial(self._was_settled, leased, at))
        settled = self._writer.submit(work)
        leased.settling = True
        gone: bool = await settled
        return gone

    def _was_settled(self, leased: Leased, at: float | None, work: Work) -> None:
        if work.error is not None and not isinstance(work.error, LeaseLost):
            self._leases.resume(leased)
            self._wake_all()
            return
        self._leases.end(leased)
        if work.error is None and work.result:
            self._gone(leased.claimed.message.size)
        elif at is not None:
            self._offer(_lane_of(leased.claimed, at))

    # What is queued.

    async def body(self, id: str) -> AsyncIterator[bytes]:
        size, content = await self._read(partial(_store.locate, number=message_number(id)))
        try:
            async with aclosing(whole(content, id) if content is not None else self._bodies.read(id, size)) as pieces:
                async for piece in pieces:
                    yield piece
        except FileNotFoundError:
            await self._read(partial(_store.locate, number=message_number(id)))
            raise QueueUnavailable(f"the body of {id} is lost") from None

    async def get(self, id: str) -> QueuedMessage:
        return await self._read(partial(_store.get, number=message_number(id)))

    async def list(self, *, after: str | None = None, limit: int = 100, destination: str | None = None) -> Page:
        if limit < 1:
            raise ValueError("limit must be greater than 0")
        number = message_number(after) if after is not None else -1
        read = partial(_store.list_messages, after=number, limit=limit + 1, destination=destination)
        messages = await self._read(read)
        more = len(messages) > limit
        return Page(tuple(messages[:limit]), messages[limit - 1].message.id if more else None)

    async def hold(self, id: str) -> None:
        number = message_number(id)
        await self._change(lambda transaction: transaction.hold(number), _nothing)

    async def release(self, id: str) -> None:
        number = message_number(id)
        await self._change(lambda transaction: transaction.release(number), self._offer_all)

    async def remove(self, id: str) -> None:
        self._check_open()
        number = message_number(id)
        lost = self._leases.forget(number)

        def removed(work: Work) -> None:
            if work.error is None:
                self._gone(work.result)
                return
            for each in lost:
                self._offer(_lane_of(each.claimed, each.claimed.due))

        await self._change(lambda transaction: transaction.remove(number), removed)

    async def flush(self, destination: str | None = None, *, id: str | None = None) -> int:
        number = None if id is None else message_number(id)
        now = self._clock()
        count, _ = await self._change(lambda transaction: transaction.flush(now, destination, number), self._offer_all)
        return int(count)

    async def stats(self) -> Stats:
        leased = self._leases.running()
        figures = await self._read(partial(_store.stats, now=self._clock(), leased=leased))
        return Stats(
            self._messages, self._octets, figures.due, figures.deferred, len(leased), figures.held, figures.oldest
        )

    # Threads.

    def _check_open(self) -> None:
        if self._closed:
            raise QueueUnavailable("the queue is closed")

    async def _change(self, function: Callable[[_store.Transaction], _T], then: Callable[[Work], None]) -> _T:
        self._check_open()
        result: _T = await self._writer.submit(Change(function, then))
        return result

    def _offer_all(self, work: Work) -> None:
        if work.error is None:
            for lane in work.result[1]:
                self._offer(lane)

    async def _read(self, function: Callable[[sqlite3.Connection], _T]) -> _T:
        self._check_open()
        result: _T = await self._reader.submit(Read(function))
        return result

    def _log_failure(self, step: str, error: BaseException) -> None:
        self._logger.error("queue %s: %s failed: %s", self.path, step, error)

    def close(self) -> None:
        """Finish what was begun, and close; blocks until the disk has it all.  May be called twice."""
        self._stop()
        self._join()

    async def aclose(self) -> None:
        if self._closing is None:
            self._stop()
            self._closing = asyncio.create_task(asyncio.to_thread(self._join))
        if not self._closing.done():
            await asyncio.shield(self._closing)

    def _stop(self) -> None:
        if not self._closed:
            self._closed = True
            self._writer.stop()
            self._reader.stop()
            self._bodies.stop()
            self._wake_all()

    def _join(self) -> None:
        self._writer.join()
        self._reader.join()
        self._bodies.join()
        self._close_storage()

    def _close_storage(self) -> None:
        while self._connections:
            self._connections.pop().close()
        self._spool.close()


def _settle(transaction: _store.Transaction, key: _store.UnitKey, recipients: str, next_attempt: float | None) -> bool:
    return transaction.settle(key, recipients, next_attempt)


def _lane_of(claimed: Claimed, due: float) -> Lane:
    return Lane(claimed.destination, claimed.message.priority, due)


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


def _nothing(work: Work) -> None:
    """For changes after which nothing is claimed that was not before."""
