"""Connections to PostgreSQL with a purpose: those that commit in groups, and the one that listens."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, Final, Generic, TypeVar

from . import _pgsql
from ._pg import TRIES, Connection, Database
from .contract import QueueUnavailable

__all__ = ["Lane", "News"]

GROUP: Final = 1000
"""Pieces of work that share a transaction, at most."""

WEIGHT: Final = 1 << 22
"""Octets of bodies that share a transaction, at most, but for the first."""

LISTEN_AGAIN: Final = 1.0
"""Seconds after which the listener connects again."""

TELL: Final = 0.05
"""Seconds between two notifications of a process: each of them takes a lock of the whole server."""

_W = TypeVar("_W")


class Lane(Generic[_W]):
    """A connection whose commits are durable, for work that is done in groups.

    What is submitted while a group is being committed makes the next one; no timer, no artificial delay.  After a failure
    an empty commit precedes the next group.  So when commits wait for a standby that is gone, what clients are told to send
    again is not queued once more at each attempt.

    Args:
        database: where to.
        perform: does a group's work, and returns the result of each; one that is an exception is raised.

    Attributes:
        groups: transactions that were committed.
    """

    def __init__(
        self, database: Database, perform: Callable[[Connection, Sequence[_W]], Awaitable[Sequence[object]]]
    ) -> None:
        self._database = database
        self._perform = perform
        self._waiting: deque[tuple[_W, int, asyncio.Future[Any]]] = deque()
        self._connection: Connection | None = None
        self._task: asyncio.Task[None] | None = None
        self._doubtful = False
        self._warning = ""
        self.groups = 0

    def submit(self, work: _W, weight: int = 0) -> asyncio.Future[Any]:
        """Have it done; the future is told the result when it is durable."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((work, weight, future))
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return future

    async def close(self) -> None:
        """Finish what was submitted."""
        if self._task is not None:
            await asyncio.shield(self._task)
        if self._connection is not None:
            connection, self._connection = self._connection, None
            await self._database.disconnect(connection)

    async def _run(self) -> None:
        try:
            while self._waiting:
                group = self._next()
                results = await self._commit([work for work, _, _ in group])
                for (_, _, future), result in zip(group, results, strict=True):
                    if future.done():
                        continue
                    if isinstance(result, Exception):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
        finally:
            self._task = None

    def _next(self) -> list[tuple[_W, int, asyncio.Future[Any]]]:
        group = [self._waiting.popleft()]
        weight = group[0][1]
        while self._waiting and len(group) < GROUP and weight + self._waiting[0][1] <= WEIGHT:
            group.append(self._waiting.popleft())
            weight += group[-1][1]
        return group

    async def _commit(self, works: Sequence[_W]) -> Sequence[object]:
        database = self._database
        for left in reversed(range(TRIES)):
            try:
                results = await self._try(works)
            except Exception as error:  # noqa: BLE001
                if left and database.was_in_the_way(error):
                    continue
                self._doubtful = True
                known = isinstance(error, database.failures)
                # One for each: they are raised in several places.
                return [database.refusal(error) if known else error for _ in works]
            self.groups += 1
            return results
        raise AssertionError

    async def _try(self, works: Sequence[_W]) -> Sequence[object]:
        database = self._database
        connection = self._connection
        if connection is None or connection.is_closed():
            connection = self._connection = await database.connect(durable=True)
            connection.add_log_listener(self._warned)
        try:
            self._warning = ""
            if self._doubtful:
                await connection.execute(_pgsql.PROBE, database.slot)
                self._check()
                self._doubtful = False
            results = await self._perform(connection, works)
            self._check()
            return results
        except BaseException as error:
            if isinstance(error, Exception):
                database.log("commit", error)
            await database.clean(connection, error)
            raise

    def _check(self) -> None:
        if self._warning:
            raise QueueUnavailable(self._warning)

    def _warned(self, connection: Any, message: Any) -> None:
        """A commit that was told not to wait for the standby any more says so with a warning, and with no error."""
        if message.severity_en == "WARNING":
            self._warning = message.message


class News:
    """Wakes those who wait for something to claim: news of this process, and what others tell by NOTIFY."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._name = secrets.token_hex(8)
        self._waiting: set[asyncio.Future[None]] = set()
        self._listening: asyncio.Task[None] | None = None
        self._telling: asyncio.Task[None] | None = None
        self._untold = False
        self.count = 0

    def wake(self) -> None:
        """There is something new: here."""
        self.count += 1
        for future in self._waiting:
            if not future.done():
                future.set_result(None)

    def tell(self) -> None:
        """There is something new: here and elsewhere."""
        self.wake()
        self._untold = True
        if self._telling is None:
            self._telling = asyncio.create_task(self._tell())

    async def wait(self, count: int, seconds: float) -> None:
        """Wait until there was something new since `count`, but only so long."""
        if self._listening is None:
            self._listening = asyncio.create_task(self._listen())
        if self.count != count:
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.add(future)
        timer = asyncio.get_running_loop().call_later(max(seconds, 0.0), _wake, future)
        try:
            await future
        finally:
            timer.cancel()
            self._waiting.discard(future)

    async def close(self) -> None:
        """Tell what was not told, and listen no more."""
        for task in (self._telling, self._listening):
            if task is not None:
                task.cancel()
                await asyncio.wait([task])
        if self._untold:
            await self._notify()

    async def _tell(self) -> None:
        try:
            while self._untold:
                await self._notify()
                await asyncio.sleep(TELL)
        finally:
            self._telling = None

    async def _notify(self) -> None:
        self._untold = False
        try:
            await self._database.query(lambda each: each.execute(_pgsql.NOTIFY, self._database.channel, self._name))
        except self._database.failures:
            pass  # the others look from time to time
        except BaseException:
            self._untold = True
            raise

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(*self._database.failures):
                await self._listen_once()
            await asyncio.sleep(LISTEN_AGAIN)

    async def _listen_once(self) -> None:
        connection = await self._database.connect(durable=False)
        try:
            lost = asyncio.Event()
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(self._database.channel, self._heard)
            self.wake()  # something may have been told before
            await lost.wait()
            self.wake()
        finally:
            await self._database.disconnect(connection)

    def _heard(self, connection: Any, pid: int, channel: str, payload: str) -> None:
        if payload != self._name:
            self.wake()


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)
