"""The queue's tables and what is done with them, for one connection in one thread at a time.

A message's row is written once and deleted once.  What changes is in the rows of its units.  A unit is *due* at the
earlier of its next attempt and the message's expiry; no value there says that it is not to be claimed: it is held, or none
of its recipients is pending, and then it has no next attempt either.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection, Iterable, Sequence
from functools import cache
from typing import Any, Final, NamedTuple, TypeAlias

from ._lanes import Lane
from ._record import (
    StoredRecipient,
    decode_envelope,
    decode_recipients,
    message_id,
    queued_recipient,
)
from .contract import LeaseLost, Message, NoSuchMessage, QueuedMessage, Recipient, State

__all__ = [
    "Body",
    "Claimed",
    "Figures",
    "MessageRow",
    "Taken",
    "Transaction",
    "UnitKey",
    "UnitRow",
    "bounds",
    "claim",
    "get",
    "insert",
    "list_messages",
    "locate",
    "prepare",
    "stats",
    "totals",
]

VERSION: Final = 1
"""Of the tables; `PRAGMA user_version`."""

APPLICATION: Final = 0x46534D51
"""`PRAGMA application_id`: FSMQ."""

_SCHEMA: Final = f"""
BEGIN IMMEDIATE;
CREATE TABLE message (
    id INTEGER PRIMARY KEY,
    received REAL NOT NULL,
    expires REAL,
    priority INTEGER NOT NULL,
    size INTEGER NOT NULL,
    units INTEGER NOT NULL,
    envelope TEXT NOT NULL,
    body BLOB                       -- NULL: in a side file
);
CREATE TABLE unit (
    message INTEGER NOT NULL,
    number INTEGER NOT NULL,
    destination TEXT NOT NULL,
    priority INTEGER NOT NULL,
    due REAL,
    next_attempt REAL,
    held INTEGER NOT NULL,
    recipients TEXT NOT NULL,
    PRIMARY KEY (message, number)
) WITHOUT ROWID;
CREATE INDEX unit_due ON unit (destination, priority, due) WHERE due IS NOT NULL;
CREATE TABLE mark (high INTEGER NOT NULL);      -- no message has this number or a greater one
INSERT INTO mark VALUES (0);
PRAGMA application_id = {APPLICATION};
PRAGMA user_version = {VERSION};
COMMIT;
"""

MessageRow: TypeAlias = tuple[int, float, float | None, int, int, int, str, bytes | None]
UnitRow: TypeAlias = tuple[int, int, str, int, float | None, float, int, str]
UnitKey: TypeAlias = tuple[int, int]
"""Message and number of a unit."""
Taken: TypeAlias = set[UnitKey]
Body: TypeAlias = bytes | None
"""What the database has of a body; None when a side file has it."""

ROWS: Final = (64, 16, 4, 1)
"""How many rows one statement takes.  Few statements for a group: each gives the interpreter's lock away and must get it
back from a busy event loop."""

CHECKPOINT: Final = 8000
"""Pages of the log after which they are copied into the database: the fewer times, the fewer pages of short-lived messages."""

HORIZON: Final = 60_000_000
"""Numbers that are marked as used at a time, so that most transactions need not mark any: those of a minute."""


# The database.


def prepare(connection: sqlite3.Connection) -> int:
    """Set a connection up, make or check the tables; returns the number from which on none was used.

    Raises:
        sqlite3.Error: it is no database, or damaged.
        ValueError: it is a database of something else, or of a newer version.
    """
    connection.execute("PRAGMA busy_timeout = 30000")
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT}")
    connection.execute("PRAGMA fullfsync = ON")  # macOS: fsync(2) stops at the drive's cache
    connection.execute("PRAGMA checkpoint_fullfsync = ON")
    version = _one(connection, "PRAGMA user_version")
    if version == 0 and not _one(connection, "SELECT count(*) FROM sqlite_master"):
        connection.executescript(_SCHEMA)
    elif _one(connection, "PRAGMA application_id") != APPLICATION:
        raise ValueError("a database of something else")
    elif version != VERSION:
        raise ValueError(f"a database of version {version}, this program knows {VERSION}")
    return int(_one(connection, "SELECT high FROM mark"))


def totals(connection: sqlite3.Connection) -> tuple[int, int]:
    """How many messages there are, and the octets of their bodies."""
    count, octets = connection.execute("SELECT count(*), coalesce(sum(size), 0) FROM message").fetchone()
    return count, octets


def bounds(connection: sqlite3.Connection) -> list[Lane]:
    """All lanes."""
    rows = connection.execute(
        "SELECT destination, priority, min(due) FROM unit WHERE due IS NOT NULL GROUP BY destination, priority"
    )
    return [Lane(*row) for row in rows]


def _one(connection: sqlite3.Connection, sql: str, *arguments: object) -> Any:
    row = connection.execute(sql, arguments).fetchone()
    return None if row is None else row[0]


# Groups.


@cache
def _insert(table: str, columns: int, rows: int) -> str:
    return f"INSERT INTO {table} VALUES " + ",".join([f"({','.join('?' * columns)})"] * rows)


@cache
def _delete(table: str, column: str, rows: int) -> str:
    return f"DELETE FROM {table} WHERE {column} IN ({','.join('?' * rows)})"


def _chunks(count: int) -> Iterable[tuple[int, int]]:
    """Cut so many rows into pieces whose sizes are of `ROWS`: where each begins, and its size."""
    at = 0
    for rows in ROWS:
        while count - at >= rows:
            yield at, rows
            at += rows


def _insert_all(connection: sqlite3.Connection, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    for at, count in _chunks(len(rows)):
        arguments = [value for row in rows[at : at + count] for value in row]
        connection.execute(_insert(table, len(rows[0]), count), arguments)


def insert(connection: sqlite3.Connection, messages: Sequence[MessageRow], units: Sequence[UnitRow]) -> None:
    """Add messages."""
    _insert_all(connection, "message", messages)
    _insert_all(connection, "unit", units)


class Transaction:
    """What changes may do within the writer's transaction.

    Attributes:
        files: names of side files to be removed when it is committed.
    """

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection: Final = connection
        self.files: Final[list[str]] = []

    def mark(self, high: int) -> None:
        """Numbers below `high` may have been used."""
        self._connection.execute("UPDATE mark SET high = ?", (high,))

    def delete(self, messages: Sequence[int]) -> None:
        """Remove whole messages; it does not matter whether they are there.  Their side files are the caller's."""
        for at, count in _chunks(len(messages)):
            numbers = messages[at : at + count]
            self._connection.execute(_delete("unit", "message", count), numbers)
            self._connection.execute(_delete("message", "id", count), numbers)

    def settle(self, key: UnitKey, recipients: str, next_attempt: float | None) -> bool:
        """Note an attempt, and when the next one is due; returns whether the message is gone.

        Raises:
            LeaseLost: the unit is gone already.
        """
        changed = self._connection.execute(
            "UPDATE unit SET recipients = ?, next_attempt = ?, due = CASE WHEN held THEN NULL ELSE ? END"
            " WHERE message = ? AND number = ?",
            (recipients, next_attempt, next_attempt, *key),
        )
        if not changed.rowcount:
            raise LeaseLost("its message was removed")
        if next_attempt is not None or self._pending(key[0]):
            return False
        self._remove(key[0])
        return True

    def hold(self, number: int) -> None:
        """Let no unit of a message be due."""
        self._require(number)
        self._connection.execute("UPDATE unit SET held = 1, due = NULL WHERE message = ?", (number,))

    def release(self, number: int) -> tuple[int, list[Lane]]:
        """End `hold`; returns how many units, and where they wait."""
        self._require(number)
        expires = _one(self._connection, "SELECT expires FROM message WHERE id = ?", number)
        self._connection.execute(
            "UPDATE unit SET held = 0, due = min(next_attempt, coalesce(?, next_attempt)) WHERE message = ?",
            (expires, number),
        )
        sql = "SELECT destination, priority, due FROM unit WHERE message = ? AND due IS NOT NULL"
        lanes = [Lane(*row) for row in self._connection.execute(sql, (number,))]
        return len(lanes), lanes

    def remove(self, number: int) -> int:
        """Remove a message; returns its size."""
        size = _one(self._connection, "SELECT size FROM message WHERE id = ?", number)
        if size is None:
            raise NoSuchMessage(message_id(number))
        self._remove(number)
        return int(size)

    def flush(self, now: float, destination: str | None, number: int | None) -> tuple[int, list[Lane]]:
        """Make what is deferred due; returns how many units, and where they wait."""
        conditions = "due > ?"
        arguments: tuple[Any, ...] = (now,)
        if destination is not None:
            conditions, arguments = conditions + " AND destination = ?", (*arguments, destination)
        if number is not None:
            self._require(number)
            conditions, arguments = conditions + " AND message = ?", (*arguments, number)
        lanes = self._connection.execute(
            f"SELECT destination, priority, ? FROM unit WHERE {conditions} GROUP BY destination, priority",
            (now, *arguments),
        ).fetchall()
        changed = self._connection.execute(
            f"UPDATE unit SET due = ?, next_attempt = ? WHERE {conditions}", (now, now, *arguments)
        )
        return changed.rowcount, [Lane(*lane) for lane in lanes]

    def _pending(self, number: int) -> bool:
        sql = "SELECT 1 FROM unit WHERE message = ? AND next_attempt IS NOT NULL LIMIT 1"
        return _one(self._connection, sql, number) is not None

    def _remove(self, number: int) -> None:
        if _one(self._connection, "SELECT body IS NULL FROM message WHERE id = ?", number):
            self.files.append(message_id(number))
        self.delete([number])

    def _require(self, number: int) -> None:
        if _one(self._connection, "SELECT 1 FROM message WHERE id = ?", number) is None:
            raise NoSuchMessage(message_id(number))


# What is claimed.


class Claimed(NamedTuple):
    """A unit that is to be delivered.

    Attributes:
        alone: the message has no other unit.
        recipients: all of the unit, also those that are not pending.
        waiting: the same that are pending, as the caller sees them.
    """

    key: UnitKey
    due: float
    destination: str
    alone: bool
    message: Message
    recipients: list[StoredRecipient]
    waiting: tuple[Recipient, ...]
    body: Body


_CLAIM: Final = """
SELECT u.due, u.message, u.number, u.next_attempt, u.recipients,
    m.received, m.expires, m.priority, m.size, m.units, m.envelope, m.body
FROM unit AS u INDEXED BY unit_due CROSS JOIN message AS m ON m.id = u.message
WHERE u.destination = ? AND u.priority = ? AND u.due >= ? AND u.due IS NOT NULL ORDER BY u.due, u.message, u.number
"""


def claim(
    connection: sqlite3.Connection, lanes: Sequence[Lane], now: float, limit: int, taken: Taken
) -> tuple[list[Claimed], list[Lane]]:
    """Find units that are due and not taken, take them, and say what is left of the lanes.

    Args:
        lanes: of one destination, the urgent first.
        taken: units that are leased; those that are found are added.
    """
    found: list[Claimed] = []
    left: list[Lane] = []
    try:
        for lane in lanes:
            if len(found) >= limit:
                left.append(lane)
                continue
            rest = _claim_lane(connection, lane, now, limit, taken, found)
            if rest is not None:
                left.append(lane._replace(due=rest))
    except BaseException:
        taken.difference_update(each.key for each in found)
        raise
    return found, left


def _claim_lane(
    connection: sqlite3.Connection, lane: Lane, now: float, limit: int, taken: Taken, found: list[Claimed]
) -> float | None:
    """Returns when what is left there is due."""
    cursor = connection.execute(_CLAIM, (lane.destination, lane.priority, lane.due))
    try:
        while rows := cursor.fetchmany(limit - len(found) + 1):
            for row in rows:
                key = row[1], row[2]
                if key in taken:
                    continue
                if row[0] > now or len(found) >= limit:
                    return float(row[0])
                claimed = _claimed(lane.destination, row)
                taken.add(key)
                found.append(claimed)
        return None
    finally:
        cursor.close()


def _claimed(destination: str, row: tuple[Any, ...]) -> Claimed:
    due, number, unit, next_attempt, text, received, expires, priority, size, units, envelope, body = row
    sender, params, origin = decode_envelope(envelope)
    recipients = decode_recipients(text)
    message = Message(message_id(number), sender, params, received, expires, priority, origin, size, False)
    waiting = tuple(
        queued_recipient(each, destination, next_attempt) for each in recipients if each.state is State.PENDING
    )
    return Claimed((number, unit), due, destination, units == 1, message, recipients, waiting, body)


# What is read.


def locate(connection: sqlite3.Connection, number: int) -> tuple[int, Body]:
    """A body's size and, unless a side file has it, the body.

    Raises:
        NoSuchMessage: it is not there.
    """
    row = connection.execute("SELECT size, body FROM message WHERE id = ?", (number,)).fetchone()
    if row is None:
        raise NoSuchMessage(message_id(number))
    return row[0], row[1]


_MESSAGE: Final = "SELECT id, received, expires, priority, size, envelope FROM message WHERE "
_UNITS: Final = "SELECT destination, next_attempt, held, recipients FROM unit WHERE message = ? ORDER BY number"


def get(connection: sqlite3.Connection, number: int) -> QueuedMessage:
    """One message.

    Raises:
        NoSuchMessage: it is not there.
    """
    with _Snapshot(connection):
        row = connection.execute(_MESSAGE + "id = ?", (number,)).fetchone()
        if row is None:
            raise NoSuchMessage(message_id(number))
        return _queued(connection, row)


def list_messages(
    connection: sqlite3.Connection, after: int, limit: int, destination: str | None
) -> list[QueuedMessage]:
    """Messages that came after one."""
    arguments: list[Any] = [after]
    sql = _MESSAGE + "id > ?"
    if destination is not None:
        sql += " AND EXISTS (SELECT 1 FROM unit WHERE message = id AND destination = ?)"
        arguments.append(destination)
    with _Snapshot(connection):
        rows = connection.execute(sql + " ORDER BY id LIMIT ?", (*arguments, limit)).fetchall()
        return [_queued(connection, row) for row in rows]


def _queued(connection: sqlite3.Connection, row: tuple[Any, ...]) -> QueuedMessage:
    number, received, expires, priority, size, envelope = row
    sender, params, origin = decode_envelope(envelope)
    recipients: list[Recipient] = []
    held = False
    for destination, next_attempt, unit_held, text in connection.execute(_UNITS, (number,)):
        held = held or bool(unit_held)
        recipients += [queued_recipient(each, destination, next_attempt) for each in decode_recipients(text)]
    recipients.sort(key=lambda each: each.number)
    message = Message(message_id(number), sender, params, received, expires, priority, origin, size, held)
    return QueuedMessage(message, tuple(recipients))


class Figures(NamedTuple):
    """Units that are not leased by their state, and when the oldest message came."""

    due: int
    deferred: int
    held: int
    oldest: float | None


def stats(connection: sqlite3.Connection, now: float, leased: Collection[UnitKey]) -> Figures:
    """Count."""
    with _Snapshot(connection):
        due = _one(connection, "SELECT count(*) FROM unit WHERE due <= ?", now)
        deferred = _one(connection, "SELECT count(*) FROM unit WHERE due > ?", now)
        held = _one(connection, "SELECT count(*) FROM unit WHERE held AND next_attempt IS NOT NULL")
        for key in leased:
            sql = "SELECT due, held FROM unit WHERE message = ? AND number = ? AND next_attempt IS NOT NULL"
            row = connection.execute(sql, key).fetchone()
            if row is not None:
                held -= row[1]
                due -= row[0] is not None and row[0] <= now
                deferred -= row[0] is not None and row[0] > now
        oldest = _one(connection, "SELECT received FROM message ORDER BY id LIMIT 1")
    return Figures(due, deferred, held, oldest)


class _Snapshot:
    """Several reads of one state."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __enter__(self) -> None:
        self._connection.execute("BEGIN")

    def __exit__(self, *_: object) -> None:
        self._connection.execute("COMMIT")
