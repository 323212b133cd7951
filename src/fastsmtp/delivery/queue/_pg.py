"""Connections to PostgreSQL: how a session is set up, what is made and checked first, and a few that are shared."""

from __future__ import annotations

import asyncio
import importlib
import logging
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, TypeAlias, TypeVar

from fastsmtp.errors import ConfigurationError

from . import _pgsql
from .contract import QueueFull, QueueUnavailable

__all__ = ["TRIES", "Connection", "Database", "Query"]

TRIES: Final = 3
"""How often a transaction is tried that another one stood in the way of."""

BACK_OFF: Final = 0.25
"""Seconds after a failure to connect for which the next one is not tried."""

CLOSE_TIMEOUT: Final = 5.0
"""Seconds for the server to take notice that a connection ends."""

OLDEST: Final = 12
"""The oldest major version of the server."""

_SCHEMA_NAME: Final = re.compile(r"[a-z_][a-z0-9_]{0,47}")

_T = TypeVar("_T")

Query: TypeAlias = Callable[["Connection"], Awaitable[_T]]


class Connection(Protocol):
    """What is used of asyncpg's connection."""

    async def execute(self, query: str, *arguments: Any, timeout: float | None = None) -> str: ...
    async def fetch(self, query: str, *arguments: Any, timeout: float | None = None) -> list[Any]: ...
    async def fetchrow(self, query: str, *arguments: Any, timeout: float | None = None) -> Any: ...
    async def fetchval(self, query: str, *arguments: Any, timeout: float | None = None) -> Any: ...
    async def add_listener(self, channel: str, callback: Callable[..., None]) -> None: ...
    def add_log_listener(self, callback: Callable[..., None]) -> None: ...
    def add_termination_listener(self, callback: Callable[..., None]) -> None: ...
    def get_server_version(self) -> Any: ...
    def is_closed(self) -> bool: ...
    def is_in_transaction(self) -> bool: ...
    async def close(self, *, timeout: float | None = None) -> None: ...
    def terminate(self) -> None: ...


class Database:
    """The database of a queue, and a few connections to it whose commits need not be durable.

    Args:
        dsn: where it is, as libpq takes it; "" has all from the environment.
        schema: the schema that has the tables; it is made when it is not there.
        connections: how many are shared.
        timeout: seconds for a statement, and to connect.
        logger: what logs failures.

    Attributes:
        slot: this queue's row of the tally, once a connection was made.

    Raises:
        ConfigurationError: asyncpg is missing, or that is no name of a schema.
    """

    def __init__(self, dsn: str, schema: str, connections: int, timeout: float, logger: logging.Logger) -> None:
        try:
            self._asyncpg: Any = importlib.import_module("asyncpg")
        except ImportError:
            raise ConfigurationError("asyncpg is not installed: pip install 'fastsmtpd[postgres]'") from None
        if not _SCHEMA_NAME.fullmatch(schema):
            raise ConfigurationError(f"not the name of a schema: {schema!r}")
        self.schema: Final = schema
        self.channel: Final = f"fastsmtp_{schema}"
        self.slot = -1
        self._dsn = dsn
        self._timeout = timeout
        self._logger = logger
        self._idle: list[Connection] = []
        self._free = asyncio.Semaphore(connections)
        self._connections = connections
        self._closed = False
        self._preparing = asyncio.Lock()
        self._failed: tuple[float, str] | None = None
        errors = self._asyncpg
        self.failures: Final[tuple[type[Exception], ...]] = (
            errors.PostgresError,
            errors.InterfaceError,
            errors.InternalClientError,
            ConfigurationError,
            QueueUnavailable,
            OSError,
            TimeoutError,
        )
        self._in_the_way = (errors.DeadlockDetectedError, errors.SerializationError)

    def refusal(self, error: Exception) -> QueueFull | QueueUnavailable:
        """What the caller is told of a failure."""
        told = QueueFull if isinstance(error, self._asyncpg.DiskFullError) else QueueUnavailable
        return told(_text(error))

    def log(self, step: str, error: Exception) -> None:
        """A failure."""
        self._logger.error("queue %s: %s failed: %s", self.schema, step, _text(error))

    def was_in_the_way(self, error: Exception) -> bool:
        """Another transaction was: this one was rolled back, and may be tried again."""
        return isinstance(error, self._in_the_way)

    # Connecting.

    async def connect(self, *, durable: bool) -> Connection:
        """A connection with a session for the queue's tables; the first makes them.

        Args:
            durable: whether its commits wait for the disk, and for the standby if there is one.

        Raises:
            ConfigurationError: the server refuses this user, or has something else in the schema.
            QueueUnavailable: another attempt has just failed.
        """
        if self._failed is not None and time.monotonic() < self._failed[0]:
            raise QueueUnavailable(self._failed[1])
        try:
            connection = await self._connect(durable)
            if self.slot < 0:
                try:
                    await self._prepare(connection)
                except BaseException:
                    connection.terminate()
                    raise
        except self.failures as error:
            if self._failed is None:
                self.log("connect", error)
            self._failed = time.monotonic() + BACK_OFF, _text(error)
            raise
        if self._failed is not None:
            self._failed = None
            self._logger.info("queue %s: connected again", self.schema)
        return connection

    async def _connect(self, durable: bool) -> Connection:
        errors = self._asyncpg
        options: dict[str, Any] = {}
        if "target_session_attrs" not in self._dsn:
            options["target_session_attrs"] = "read-write"
        try:
            connection: Connection = await errors.connect(
                self._dsn or None,
                timeout=self._timeout,
                command_timeout=self._timeout,
                max_cached_statement_lifetime=0,
                server_settings={
                    **_pgsql.SETTINGS,
                    "search_path": self.schema,
                    "synchronous_commit": "on" if durable else "off",
                },
                **options,
            )
        except (
            errors.InvalidAuthorizationSpecificationError,
            errors.InvalidCatalogNameError,
            errors.ClientConfigurationError,
        ) as error:
            raise ConfigurationError(f"cannot open queue {self.schema}: {error}") from error
        return connection

    async def _prepare(self, connection: Connection) -> None:
        """Make or check the tables, once."""
        async with self._preparing:
            if self.slot >= 0:
                return
            try:
                await self._check_server(connection)
                await connection.execute("BEGIN")
                await connection.execute("SELECT pg_advisory_xact_lock(hashtext($1))", self.channel)
                if await connection.fetchval("SELECT to_regclass('about')") is None:
                    await self._create(connection)
                version = await connection.fetchval("SELECT version FROM about")
                if version != _pgsql.VERSION:
                    raise ConfigurationError(f"tables of version {version}, this program knows {_pgsql.VERSION}")
                await connection.execute("COMMIT")
                self.slot = await connection.fetchval("SELECT nextval('slot')")
            except ConfigurationError as error:
                raise ConfigurationError(f"cannot open queue {self.schema}: {error}") from error
            except self._asyncpg.SyntaxOrAccessError as error:
                raise ConfigurationError(f"cannot open queue {self.schema}: {error}") from error

    async def _check_server(self, connection: Connection) -> None:
        if connection.get_server_version().major < OLDEST:
            raise ConfigurationError(f"the server is older than PostgreSQL {OLDEST}")
        names = "server_encoding", "synchronous_standby_names", "fsync"
        encoding, standbys, fsync = [await connection.fetchval(f"SHOW {name}") for name in names]
        if encoding != "UTF8":
            raise ConfigurationError(f"the database's encoding is {encoding}, not UTF8")
        if not standbys:
            self._logger.warning(
                "queue %s: no synchronous standby is configured: messages that were accepted are lost with the server's disk",
                self.schema,
            )
        if fsync != "on":
            self._logger.warning("queue %s: fsync is off: a loss of power may destroy the database", self.schema)

    async def _create(self, connection: Connection) -> None:
        if await connection.fetchval("SELECT to_regnamespace($1)", self.schema) is None:
            await connection.execute(f"CREATE SCHEMA {self.schema}")
        await connection.execute(_pgsql.CREATE)
        self._logger.info("queue %s: tables made", self.schema)

    # The shared connections.

    async def query(self, query: Query[_T], *, durable: bool = False) -> _T:
        """What `query` returns; it is called again when another transaction was in its way.

        Args:
            query: is given a connection.
            durable: do it in a transaction whose commit is.

        Raises:
            QueueUnavailable: no connection can be had, or what was done with it failed.
            QueueFull: the server's disk is full.
        """
        if self._closed:
            raise QueueUnavailable("the queue is closed")
        async with self._free:
            for left in reversed(range(TRIES)):
                try:
                    return await self._try(query, durable)
                except self.failures as error:
                    if not left or not self.was_in_the_way(error):
                        raise self.refusal(error) from error
        raise AssertionError

    async def _try(self, query: Query[_T], durable: bool) -> _T:
        connection = self._take() or await self.connect(durable=False)
        try:
            if not durable:
                return await query(connection)
            await connection.execute("BEGIN; SET LOCAL synchronous_commit TO on")
            result = await query(connection)
            await connection.execute("COMMIT")
            return result
        except BaseException as error:
            if isinstance(error, self.failures):
                self.log("statement", error)
            await self.clean(connection, error)
            raise
        finally:
            if not connection.is_closed():
                self._idle.append(connection)

    async def clean(self, connection: Connection, error: BaseException) -> None:
        """Make a connection usable again on which something failed, or end it."""
        if isinstance(error, self._asyncpg.ReadOnlySQLTransactionError):  # a standby: another server took its place
            connection.terminate()
        if not connection.is_closed() and connection.is_in_transaction():
            try:
                await connection.execute("ROLLBACK")
            except BaseException as another:
                connection.terminate()
                if not isinstance(another, self.failures):
                    raise

    async def keep_one(self) -> None:
        """Connect, for the next query.

        Raises:
            ConfigurationError: see `connect`.
        """
        self._idle.append(await self.connect(durable=False))

    async def close(self) -> None:
        """Wait for the queries that run, and close the connections."""
        self._closed = True
        for _ in range(self._connections):
            await self._free.acquire()
        while self._idle:
            await self.disconnect(self._idle.pop())

    async def disconnect(self, connection: Connection) -> None:
        """Close a connection."""
        try:
            await connection.close(timeout=CLOSE_TIMEOUT)
        except self.failures:
            connection.terminate()

    def _take(self) -> Connection | None:
        while self._idle:
            connection = self._idle.pop()
            if not connection.is_closed():
                return connection
        return None


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__
