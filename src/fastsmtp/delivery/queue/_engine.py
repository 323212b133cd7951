"""The threads behind the queue: one that writes in groups, one that reads.

What the event loop asks for within one turn is handed over at once.  The writer takes all that waits: it syncs the side
files' directory, runs puts and changes in one transaction, commits, tells the event loop once, and reads what is claimed.
While it waits for the disk the next group gathers; no timer, no artificial delay.

Claims are read in the writer's thread on purpose: so each is in order with the changes around it.  What was settled before
is not seen, and what is settled after is still leased when the event loop looks at the claim.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import sqlite3
import threading
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any, Final

from . import _store
from ._spool import Spool
from ._store import Transaction
from .contract import QueueFull, QueueUnavailable

__all__ = ["Change", "Claim", "Finish", "Put", "Read", "Reader", "Work", "Writer", "refusal"]


def refusal(error: BaseException) -> BaseException:
    """What the caller is told of a failure."""
    if isinstance(error, sqlite3.Error):
        full = getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_FULL
    elif isinstance(error, OSError):
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
    else:
        return error
    told = QueueFull(str(error)) if full else QueueUnavailable(str(error))
    told.__cause__ = error
    return told


class Work:
    """Something to be done in a thread, and what came of it.

    Attributes:
        future: who waits for it, perhaps no longer.
        result: what it returned ...
        error: ... or why it failed.
    """

    __slots__ = ("error", "future", "result")

    def __init__(self) -> None:
        self.future: Final[asyncio.Future[Any]] = asyncio.get_running_loop().create_future()
        self.result: Any = None
        self.error: BaseException | None = None

    def done(self) -> None:
        """Called in the event loop afterwards, before `future` is told, whether or not somebody still waits for it."""


class Put(Work):
    """A message to be stored.

    Args:
        message: its row.
        units: the rows of its units.
        file: the name of the side file that has the body, synced, or "".
        then: called in the event loop afterwards.
    """

    __slots__ = ("file", "message", "then", "units")

    def __init__(
        self, message: _store.MessageRow, units: list[_store.UnitRow], file: str, then: Callable[[Put], None]
    ) -> None:
        super().__init__()
        self.message: Final = message
        self.units: Final = units
        self.file: Final = file
        self.then: Final = then

    def done(self) -> None:
        self.then(self)


class Finish(Work):
    """A message with one unit that is settled for good.

    Args:
        number: the message's.
        file: the name of its side file, or "".
        then: called in the event loop afterwards.
    """

    __slots__ = ("file", "number", "then")

    def __init__(self, number: int, file: str, then: Callable[[Work], None]) -> None:
        super().__init__()
        self.number: Final = number
        self.file: Final = file
        self.then: Final = then
        self.result = True

    def done(self) -> None:
        self.then(self)


class Change(Work):
    """What `function(transaction)` returns, when it is committed.

    What it raises is for its caller alone: it must not have changed anything then, unless it is an error of SQLite.
    """

    __slots__ = ("function", "then")

    def __init__(self, function: Callable[[Transaction], Any], then: Callable[[Work], None]) -> None:
        super().__init__()
        self.function: Final = function
        self.then: Final = then

    def done(self) -> None:
        self.then(self)


class Claim(Work):
    """What `function(connection)` reads, in order with the changes."""

    __slots__ = ("function", "then")

    def __init__(self, function: Callable[[sqlite3.Connection], Any], then: Callable[[Work], None]) -> None:
        super().__init__()
        self.function: Final = function
        self.then: Final = then

    def done(self) -> None:
        self.then(self)


class Read(Work):
    """What `function(connection)` returns, at any time."""

    __slots__ = ("function",)

    def __init__(self, function: Callable[[sqlite3.Connection], Any]) -> None:
        super().__init__()
        self.function: Final = function


class _Thread:
    """A thread that works off what one event loop hands it."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._queue: SimpleQueue[list[Any] | None] = SimpleQueue()
        self._outbox: list[Any] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    # Called from the event loop.

    def submit(self, work: Work) -> asyncio.Future[Any]:
        """Hand over a piece of work; goes to the thread with all else of this turn of the event loop."""
        if self._stopped:
            raise QueueUnavailable("the queue is closed")
        if not self._outbox:
            self._start().call_soon(self._hand_over)
        self._outbox.append(work)
        return work.future

    def stop(self) -> None:
        """Take nothing more; what was handed over is still done."""
        if not self._stopped:
            self._stopped = True
            self._hand_over()
            self._queue.put(None)

    def join(self) -> None:
        """After `stop`: wait for the end.  Blocks."""
        if self._thread is not None:
            self._thread.join()

    def _start(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()
        return self._loop

    def _hand_over(self) -> None:
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            self._queue.put(outbox)

    # In the thread.

    def _run(self) -> None:
        running = True
        while running:
            group: list[Any] = []
            waiting = self._queue.get()
            while waiting is not None:
                group += waiting
                try:
                    waiting = self._queue.get_nowait()
                except Empty:
                    break
            running = waiting is not None
            if group:
                self._work(group)

    def _work(self, group: list[Any]) -> None:
        raise NotImplementedError

    def _tell(self, group: list[Any]) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop was closed under us: nobody waits any more
            self._loop.call_soon_threadsafe(_complete, group)


def _complete(group: list[Work]) -> None:
    """Runs in the event loop, once for a whole group."""
    for work in group:
        work.done()
        future = work.future
        if not future.done():
            if work.error is None:
                future.set_result(work.result)
            else:
                future.set_exception(refusal(work.error))


def _call(work: Change | Claim | Read, argument: Any) -> None:
    try:
        work.result = work.function(argument)
    except Exception as error:  # noqa: BLE001
        work.error = error


class Reader(_Thread):
    """Reads with a connection of its own, in the order in which it is asked."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        super().__init__("fastsmtp-queue-reader")
        self._connection = connection

    def _work(self, group: list[Read]) -> None:
        for work in group:
            _call(work, self._connection)
            self._tell([work])


class Writer(_Thread):
    """Puts and changes in group commits.

    Args:
        connection: in autocommit mode.
        spool: has the side files.
        high: numbers below it may have been used.
        min_free: octets that puts leave free.
        on_failure: called in the thread with what failed, once per failed group.

    Attributes:
        groups: transactions that were committed.
    """

    def __init__(
        self,
        connection: sqlite3.Connection,
        spool: Spool,
        *,
        high: int,
        min_free: int,
        on_failure: Callable[[str, BaseException], None],
    ) -> None:
        super().__init__("fastsmtp-queue-writer")
        self._connection = connection
        self._spool = spool
        self._high = high
        self._min_free = min_free
        self._on_failure = on_failure
        self._trash: list[str] = []  # side files that no message names
        self._doubtful: list[str] = []  # side files of puts that were refused, and may come back with a crash
        self.groups = 0

    def _work(self, group: list[Work]) -> None:
        puts: list[Put] = []
        finished: list[Finish] = []
        changes: list[Change] = []
        claims: list[Claim] = []
        for work in group:
            if isinstance(work, Put):
                puts.append(work)
            elif isinstance(work, Finish):
                finished.append(work)
            elif isinstance(work, Change):
                changes.append(work)
            elif isinstance(work, Claim):
                claims.append(work)
        if puts or finished or changes:
            self._store(puts, finished, changes)
        self._empty_trash()
        for claim in claims:
            _call(claim, self._connection)
            if isinstance(claim.error, sqlite3.Error):
                self._on_failure("claim", claim.error)
            self._tell([claim])

    def _store(self, puts: list[Put], finished: list[Finish], changes: list[Change]) -> None:
        error = self._commit(puts, finished, changes)
        if error is not None and puts and (finished or changes):
            # What the puts ask for may be too much; what makes room must not fail with them.
            self._refuse(puts, error)
            self._tell(puts)
            puts = []
            error = self._commit([], finished, changes)
        if error is not None:
            self._refuse(puts, error)
            for work in (*finished, *changes):
                work.error = error
        self._tell([*puts, *finished, *changes])

    def _commit(self, puts: list[Put], finished: list[Finish], changes: list[Change]) -> Exception | None:
        step = "sync"
        connection = self._connection
        transaction = Transaction(connection)
        high = self._high
        try:
            if puts:
                self._check_room()
                if any(put.file for put in puts):
                    self._spool.sync()
            step = "transaction"
            if connection.in_transaction:  # it could not be rolled back when it failed
                connection.execute("ROLLBACK")
            connection.execute("BEGIN IMMEDIATE")
            try:
                if puts:
                    high = self._insert(transaction, puts)
                if finished:
                    transaction.delete([each.number for each in finished])
                for change in changes:
                    change.error = None
                    _call(change, transaction)
                    if isinstance(change.error, sqlite3.Error):
                        raise change.error
                step = "commit"
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # some errors have rolled back already
                    with contextlib.suppress(sqlite3.Error):
                        connection.execute("ROLLBACK")
                raise
        except Exception as error:  # noqa: BLE001
            self._on_failure(step, error)
            return error
        self._high = high
        self.groups += 1
        self._trash += [*self._doubtful, *transaction.files, *(each.file for each in finished if each.file)]
        self._doubtful = []
        return None

    def _insert(self, transaction: Transaction, puts: list[Put]) -> int:
        high = self._high
        last = max(put.message[0] for put in puts)
        if last >= high:
            high = last + _store.HORIZON
            transaction.mark(high)
        _store.insert(self._connection, [put.message for put in puts], [unit for put in puts for unit in put.units])
        return high

    def _check_room(self) -> None:
        """Space within the database that can be used again counts as free."""
        if not self._min_free:
            return
        free = self._spool.free_octets()
        if free < self._min_free:
            pages = self._connection.execute("PRAGMA freelist_count").fetchone()[0]
            size = self._connection.execute("PRAGMA page_size").fetchone()[0]
            if free + pages * size < self._min_free:
                raise OSError(errno.ENOSPC, f"less than {self._min_free} octets are free")

    def _refuse(self, puts: list[Put], error: Exception) -> None:
        """A commit that failed may still be found after a crash, until another one has taken its place: so the side files
        stay until then.  Not so when the disk is full, for that is known before anything is committed."""
        files = [put.file for put in puts if put.file]
        if isinstance(refusal(error), QueueFull):
            self._trash += files
        else:
            self._doubtful += files
        for put in puts:
            put.error = error

    def _empty_trash(self) -> None:
        names, self._trash = self._trash, []
        for name in names:
            try:
                self._spool.remove(name)
            except OSError as error:  # swept at the next start
                self._on_failure("remove", error)
