"""``fastsmtp relay``: messages are queued and delivered by the process that took them, or handed on while they arrive."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import ipaddress
import logging
import socket
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from ._application import Application, Running
from ._board import Board, Display, Figure, Kind
from ._spools import Spools, join_id
from .client_options import ClientOptions
from .delivery import QueueBackend, RelayAccess, RelayBackend
from .delivery.queue import PostgresQueue, Queue, QueueControl, QueueError, QueueInUse, SQLiteQueue
from .delivery.routes import FixedRoutes, Routes, TLSPolicies
from .delivery.schedule import Schedule
from .delivery.worker import DeliveryCounters, DeliveryWorker
from .errors import ConfigurationError
from .pool import Pool

if TYPE_CHECKING:
    from ._listen import Listening
    from .client import Client
    from .delivery.worker import DeliveryObserver

__all__ = ["FIGURES", "Relay"]

_LOG: Final = logging.getLogger("fastsmtp")
_PAUSE: Final = 0.2  # seconds before a locked queue is tried again
_SAMPLE: Final = 1.0  # seconds between two looks at the queue,
_SHARE: Final = 20  # or so many times what a look takes
_HOLD: Final = 99_999_999  # seconds, where the next hop says how many

FIGURES: Final = (
    *(Figure(f"queue_{name}", Kind.STORED) for name in ("messages", "octets", "due", "deferred", "leased", "held")),
    Figure("queue_oldest", Kind.SINCE),
    *(Figure(name) for name in ("delivered", "deferred", "failed", "expired")),
    *(Figure(f"notices_{name}") for name in ("failed", "delayed", "relayed", "refused")),
    *(Figure(name) for name in ("unreported", "lost", "delivery_errors")),
)
"""What the board has of a queue and its delivery."""


class Relay(Application):
    """Hands mail on."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__(arguments)
        self.queued: Final = arguments.queue != "none"
        self.figures = FIGURES if self.queued else ()
        self.schedule: Final = Schedule(
            first=arguments.retry_first,
            longest=arguments.retry_longest,
            lifetime=arguments.lifetime,
            delay_notice=arguments.delay_notice or None,
        )
        scheme, _, path = arguments.queue.partition(":")
        self.spools: Final = Spools(path) if scheme == "sqlite" else None
        self.options: Mapping[str, Any] = {
            "dsn": True,
            "requiretls": True,
            "deliverby": 0,
            "mt_priority": "",
            "rrvs": True,
            "future_release": max(1, int(arguments.lifetime)) if self.queued else _HOLD,
            "etrn": arguments.to == "mx:",
        }

    def display(self, board: Board) -> Display:
        """What is shown on a terminal."""
        return _QueueDisplay(board) if self.queued else Display(board)

    def refusal(self, listening: Listening) -> str | None:
        """An open relay does not start."""
        arguments = self.arguments
        if arguments.require_auth or arguments.allow_from or arguments.relay_domains:
            return None
        if any(_is_public(sock) for sock in listening.groups[0]):
            return (
                f"{listening.place} can be reached from elsewhere: "
                "--require-auth, --allow-from or --relay-domains must say who may relay"
            )
        return None

    def prepare(self) -> None:
        """See that the next hop is one, lock the directory, or see that the database is one of ours if it is up."""
        self.routes()
        self.password()
        if self.spools is not None:
            self.spools.lock()
        elif self.queued and self.arguments.workers > 1:
            asyncio.run(self._look_at_database())

    def forked(self) -> None:
        """The lock is the parent's."""
        if self.spools is not None:
            self.spools.let_go()

    def close(self) -> None:
        """Unlock the directory."""
        if self.spools is not None:
            self.spools.let_go()

    async def open(self, worker: int) -> Running:
        """Begin to take mail, and to deliver it."""
        async with contextlib.AsyncExitStack() as stack:
            if not self.queued:
                hop = (await self.routes().hops(""))[0]
                most = self.arguments.concurrency
                pool = Pool(max_connections=most, max_per_destination=most, prepare=self.log_in())
                await stack.enter_async_context(pool)
                relay = RelayBackend(hop.options, pool=pool, access=self.access())
                await stack.enter_async_context(relay)
                return _PassingThrough(relay, stack.pop_all())
            relaying = _Relaying(self, worker)
            stack.push_async_callback(relaying.close)
            await relaying.begin()
            stack.pop_all()
            return relaying

    # What is made of the options

    def routes(self) -> Routes:
        """Where to.

        Raises:
            ConfigurationError: a file cannot be read, or DNS cannot be asked.
        """
        arguments = self.arguments
        policies = dict(arguments.next_hop_tls)
        default = policies.pop("", None)
        context = _trusting(arguments.next_hop_ca)
        name = "" if arguments.domain == "localhost" else arguments.domain
        options = ClientOptions(local_hostname=name)
        if arguments.to != "mx:":
            return FixedRoutes(arguments.to, tls=default, options=options, context=context)
        from .delivery.mx import MXRoutes

        tls = TLSPolicies(default or "may", policies, context)
        return MXRoutes(arguments.domain, tls=tls, options=options)

    def access(self) -> RelayAccess:
        """Who may relay."""
        arguments = self.arguments
        return RelayAccess(arguments.allow_from or True, arguments.relay_domains, login=arguments.auth_file is not None)

    def password(self) -> str:
        """The one for the next hop.

        Raises:
            ConfigurationError: the file cannot be read, or is empty.
        """
        path = self.arguments.next_hop_password_file
        if path is None:
            return ""
        try:
            with open(path, encoding="utf-8") as file:
                password = file.readline().rstrip("\r\n")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}") from None
        if not password:
            raise ConfigurationError(f"there is no password in {path}")
        return password

    def log_in(self) -> Callable[[Client], Awaitable[object]] | None:
        """What is done with each new connection."""
        user, password = self.arguments.next_hop_user, self.password()
        return None if user is None else lambda client: client.login(user, password)

    def database(self, logger: logging.Logger) -> PostgresQueue:
        """The queue in a database."""
        arguments = self.arguments
        return PostgresQueue(
            arguments.queue,
            max_messages=arguments.queue_max_messages or None,
            max_octets=arguments.queue_max_octets or None,
            logger=logger,
        )

    async def _look_at_database(self) -> None:
        logger = logging.getLogger("fastsmtp.relay.start")
        logger.setLevel(logging.CRITICAL)  # the workers say it
        async with self.database(logger):
            pass


class _PassingThrough(Running):
    def __init__(self, backend: RelayBackend, stack: contextlib.AsyncExitStack) -> None:
        super().__init__(backend)
        self._stack = stack

    async def close(self) -> None:
        await self._stack.aclose()


@dataclass(slots=True)
class _Figures:
    """The attributes are those of `FIGURES`."""

    queue_messages: int = 0
    queue_octets: int = 0
    queue_due: int = 0
    queue_deferred: int = 0
    queue_leased: int = 0
    queue_held: int = 0
    queue_oldest: int = 0
    delivered: int = 0
    deferred: int = 0
    failed: int = 0
    expired: int = 0
    notices_failed: int = 0
    notices_delayed: int = 0
    notices_relayed: int = 0
    notices_refused: int = 0
    unreported: int = 0
    lost: int = 0
    delivery_errors: int = 0

    def count(self, counters: Sequence[DeliveryCounters]) -> None:
        """Take the sums of these."""
        for name in ("delivered", "deferred", "failed", "expired", "notices_refused", "unreported", "lost"):
            setattr(self, name, sum(getattr(each, name) for each in counters))
        for kind in ("failed", "delayed", "relayed"):
            setattr(self, f"notices_{kind}", sum(each.notices[kind] for each in counters))
        self.delivery_errors = sum(each.errors for each in counters)

    async def look(self, queues: Sequence[Queue]) -> None:
        """Take the figures of these."""
        stats = [await each.stats() for each in queues]
        for name in ("messages", "octets", "due", "deferred", "leased", "held"):
            setattr(self, f"queue_{name}", sum(getattr(each, name) for each in stats))
        self.queue_oldest = int(min((each.oldest for each in stats if each.oldest is not None), default=0))


class _Relaying(Running):
    """A queue that takes mail, the queues that nobody else has any more, and who delivers what is in them.

    Args:
        relay: knows the options.
        worker: which of the processes this is.
    """

    def __init__(self, relay: Relay, worker: int) -> None:
        self._relay: Final = relay
        self._worker: Final = worker
        self._routes: Final = relay.routes()
        arguments = relay.arguments
        self._pool: Final = Pool(
            max_connections=arguments.concurrency,
            max_per_destination=(arguments.per_destination + 1) // 2,
            prepare=relay.log_in(),
        )
        self._stack: Final = contextlib.AsyncExitStack()
        self._queues: Final[list[Queue]] = []
        self._workers: Final[list[DeliveryWorker]] = []
        self._figures: Final = _Figures()
        self._tasks: Final[list[asyncio.Task[None]]] = []
        self.counters = (self._figures,)

    async def begin(self) -> None:
        """Open the queue of this worker, and begin to deliver."""
        relay, worker = self._relay, self._worker
        await self._stack.enter_async_context(self._pool)
        if relay.spools is None:
            queue: Queue = await self._open_database()
            prefix = ""
        else:
            queue = await self._open_spool(worker)
            prefix = join_id(worker, "")
            workers = relay.arguments.workers
            orphans = [each for each in relay.spools.numbers() if each >= workers and each % workers == worker]
            self._tasks.extend(asyncio.create_task(self._adopt(each)) for each in orphans)
        self.backend = backend = QueueBackend(
            queue,
            self._routes,
            schedule=relay.schedule,
            access=relay.access(),
            domain=relay.arguments.domain,
            prefix=prefix,
        )
        self._deliver(queue, prefix, backend.calm)
        self._tasks.append(asyncio.create_task(self._sample()))

    async def stop(self, timeout: float) -> None:
        """Deliver nothing more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(each.stop(timeout) for each in self._workers))
        with contextlib.suppress(QueueError):
            await self._look()

    async def close(self) -> None:
        """Close the queues."""
        await self.stop(0)
        await self._stack.aclose()

    # Queues

    async def _open_database(self) -> PostgresQueue:
        logger = logging.getLogger("fastsmtp.queue")
        if self._worker:
            logger.addFilter(_says_no_warning)  # the first worker says what all of them find
        queue = await self._stack.enter_async_context(self._relay.database(logger))
        return queue

    async def _open_spool(self, number: int) -> SQLiteQueue:
        """Open a queue of the directory.  What another process has open is waited for: the one before, or somebody who looks at it."""
        spools, arguments = self._relay.spools, self._relay.arguments
        assert spools is not None
        said = False
        while True:
            try:
                queue = SQLiteQueue(
                    spools.queue(number),
                    max_messages=arguments.queue_max_messages or None,
                    max_octets=arguments.queue_max_octets or None,
                    min_free=arguments.queue_min_free,
                )
                break
            except QueueInUse as error:
                if not said:
                    said = True
                    _LOG.warning("%s; waiting for that", error)
                await asyncio.sleep(_PAUSE)
        await self._stack.enter_async_context(queue)
        await self._stack.enter_async_context(QueueControl(queue, spools.control(number)))
        return queue

    async def _adopt(self, number: int) -> None:
        """Deliver what is in the queue of a worker that there is no more."""
        try:
            self._deliver(await self._open_spool(number), join_id(number, ""))
        except (ConfigurationError, QueueError) as error:
            _LOG.error("what is in queue %d is not delivered: %s", number, error)

    def _deliver(self, queue: Queue, prefix: str, courtesy: Callable[[], Awaitable[None]] | None = None) -> None:
        relay = self._relay
        arguments = relay.arguments
        observer: DeliveryObserver | None = None
        if arguments.verbose:
            from ._deliverylog import DeliveryLog

            observer = DeliveryLog(prefix)
        worker = DeliveryWorker(
            queue,
            self._routes,
            domain=arguments.domain,
            schedule=relay.schedule,
            pool=self._pool,
            concurrency=arguments.concurrency,
            per_destination=arguments.per_destination,
            lease=arguments.lease,
            courtesy=courtesy,
            observer=observer,
        )
        worker.start()
        self._queues.append(queue)
        self._workers.append(worker)

    # Figures

    async def _sample(self) -> None:
        while True:
            began = time.monotonic()
            with contextlib.suppress(QueueError):
                await self._look()
            await asyncio.sleep(max(_SAMPLE, _SHARE * (time.monotonic() - began)))

    async def _look(self) -> None:
        self._figures.count([each.counters for each in self._workers])
        if self._relay.spools is not None or not self._worker:  # a database is the same for all
            await self._figures.look(self._queues)


class _QueueDisplay(Display):
    def line(self, total: Mapping[str, int], rate: Callable[[str], float]) -> str:
        return (
            f"{total['messages']} accepted, {rate('messages'):.0f}/s, {total['delivered']} delivered, "
            f"{rate('delivered'):.0f}/s, {total['deferred']} deferred, {total['failed']} failed, "
            f"{total['queue_messages']} queued, {total['connections']} connections, {total['rejected']} refused"
        )

    def words(self, total: Mapping[str, int]) -> str:
        return (
            f"{total['messages']} messages for {total['recipients']} recipients accepted, {total['rejected']} refused; "
            f"{total['delivered']} recipients delivered, {total['deferred']} times deferred, {total['failed']} failed; "
            f"{total['queue_messages']} messages queued, {total['connections_total']} connections, "
            f"{total['errors'] + total['delivery_errors']} errors"
        )


def _is_public(sock: socket.socket) -> bool:
    """Tell whether others than this machine may connect to a socket."""
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    return not ipaddress.ip_address(str(sock.getsockname()[0]).partition("%")[0]).is_loopback


def _trusting(path: str | None) -> ssl.SSLContext | None:
    """A context for these authorities."""
    if path is None:
        return None
    try:
        return ssl.create_default_context(cafile=path)
    except (OSError, ssl.SSLError) as error:
        raise ConfigurationError(f"cannot use {path}: {error.strerror or error}") from None


def _says_no_warning(record: logging.LogRecord) -> bool:
    return record.levelno != logging.WARNING
