"""The session in front of a queue: each message is answered 250 when it is in there, and is somebody else's to deliver.

    client -> MAIL, RCPT ..., message -> QueueSession -> Queue.put -> 250 "queued as ..."

A small message is handed over whole, a large one piece by piece as fast as the queue takes it: then its client has to wait, whatever
the message's size.  A full queue answers 452, one whose storage fails 451.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import TYPE_CHECKING, Final

from fastsmtp.errors import ConfigurationError
from fastsmtp.extensions import MailParams, RcptParams
from fastsmtp.reply import EnhancedCode, Reply
from fastsmtp.session import DataContext, DataReader, DefaultBackend, DefaultSession, Session

from .loops import MAX_HOPS, LoopGuard
from .queue import Body, Envelope, Queue, Target
from .routes import Routes
from .schedule import Schedule
from .trace import ReceivedWriter, date_time

if TYPE_CHECKING:
    from fastsmtp.connection import Conn

    from .access import RelayAccess

__all__ = ["QueueBackend", "QueueSession"]

BUSY: Final = 0.00025
"""Seconds of a turn of the event loop from which on it is busy: some eight events in each, which is 85 % of a core."""

COURTESY: Final = 0.05
"""Seconds for which a delivery stands back then, at most: so a part of them goes on whatever comes in."""

_SMOOTH: Final = 8  # turns over which their length is averaged

_DEFAULT_SCHEDULE: Final = Schedule()
_NOT_OURS: Final = Reply(458, EnhancedCode(4, 7, 1), "Nothing is queued for you to ask for")
_NO_SUCH_GROUP: Final = Reply(459, EnhancedCode(4, 5, 4), "Domains are known here, no groups of them")


class QueueBackend(DefaultBackend):
    """Gives each client a session that puts its mail into one queue.

        async with SQLiteQueue(path) as queue, DeliveryWorker(queue, routes, domain=domain), Server(QueueBackend(queue, routes)) as server:
            await server.serve_forever()

    Args:
        queue: where to; who opened it closes it, after the server.
        routes: names the destination of each recipient.
        schedule: says when a message is given up.
        access: who may send where; None: that is decided elsewhere.
        domain: the server's name in Received.
        session: makes a session of this backend, `QueueSession` or a class made from it.
        max_hops: the number of Received fields that a message may have; with more it is in a loop (RFC 5321 6.3).
        prefix: what stands before a message's identifier where a client is told of it, to tell several queues apart.
        clock: seconds since the epoch, the queue's clock.
    """

    def __init__(
        self,
        queue: Queue,
        routes: Routes,
        *,
        schedule: Schedule = _DEFAULT_SCHEDULE,
        access: RelayAccess | None = None,
        domain: str = "localhost",
        session: Callable[[QueueBackend], Session] | None = None,
        max_hops: int = MAX_HOPS,
        prefix: str = "",
        clock: Callable[[], float] = time.time,
    ) -> None:
        if max_hops < 1:
            raise ConfigurationError("max_hops is more than 0")
        make = session or QueueSession
        super().__init__(lambda: make(self))
        self.queue: Final = queue
        self.routes: Final = routes
        self.schedule: Final = schedule
        self.access: Final = access
        self.domain: Final = domain
        self.max_hops: Final = max_hops
        self.prefix: Final = prefix
        self.clock: Final = clock
        self._second = -1
        self._date = ""
        self._storing = 0
        self._turn = 0.0
        self._waiting: set[asyncio.Future[None]] = set()

    async def store(self, envelope: Envelope, body: Body) -> str:
        """`Queue.put`, which deliveries by `calm` stand back for, if the message is whole: a large one comes as fast as its client sends."""
        if not isinstance(body, bytes):
            return await self.queue.put(envelope, body)
        self._storing += 1
        try:
            return await self.queue.put(envelope, body)
        finally:
            self._storing -= 1
            if self._waiting and not self._storing:
                for each in self._waiting:
                    if not each.done():
                        each.set_result(None)

    async def calm(self) -> None:
        """Wait as long as messages are being stored, if the event loop is busy, but only for a moment.

        A worker's `courtesy`: a burst is taken before it is delivered, and an idle machine does both at once.
        """
        began = time.perf_counter()
        await asyncio.sleep(0)
        self._turn += (time.perf_counter() - began - self._turn) / _SMOOTH
        if self._turn < BUSY or not self._storing:
            return
        loop = asyncio.get_running_loop()
        waiter = loop.create_future()
        timer = loop.call_later(COURTESY, _wake, waiter)
        self._waiting.add(waiter)
        try:
            await waiter
        finally:
            timer.cancel()
            self._waiting.discard(waiter)

    def date(self, now: float) -> str:
        """A date-time for Received, made once a second."""
        if int(now) != self._second:
            self._second = int(now)
            self._date = date_time(now)
        return self._date


class QueueSession(DefaultSession):
    """Queues the mail of one client.

    A class made from it may refuse by its own `mail`, `rcpt` and `data`, before it calls these.

    Args:
        backend: knows the queue.
    """

    def __init__(self, backend: QueueBackend) -> None:
        super().__init__()
        self._backend: Final = backend
        self._conn: Conn | None = None
        self._received: Final = ReceivedWriter(backend.domain)
        self._trusted: bool | None = None  # None: not asked yet
        self._origin: tuple[tuple[object, ...], dict[str, str]] | None = None

    def connect(self, conn: Conn) -> None:
        """Keep the connection, which tells who the client is."""
        self._conn = conn

    def helo(self, name: str) -> None:
        """A new greeting, perhaps within TLS now."""
        self._received.forget()
        self._trusted = self._origin = None

    def rcpt(self, recipient: str, params: RcptParams) -> Reply | None:
        """Accept a recipient that the client may send to."""
        access = self._backend.access
        if access is not None and not self._is_trusted and not access.welcomes(recipient):
            raise access.refuse()
        self.recipients.append(recipient)
        return None

    async def etrn(self, node: str) -> Reply | None:
        """Try again what waits for a domain (RFC 1985)."""
        if not self._is_trusted:
            return _NOT_OURS
        if node.startswith(("@", "#")):
            return _NO_SUCH_GROUP
        count = await self._backend.queue.flush(self._backend.routes.destination(f"postmaster@{node}"))
        if not count:
            return Reply(251, EnhancedCode(2, 0, 0), "Nothing is deferred for that node")
        return Reply(253, EnhancedCode(2, 0, 0), f"{count} pending messages for that node started")

    async def data(self, reader: DataReader, context: DataContext) -> Reply | None:
        """Queue the message; 250 says that it will survive."""
        backend = self._backend
        now = backend.clock()
        head = self._received.field(context, when=backend.date(now))
        guard = LoopGuard(backend.max_hops)
        envelope = self.envelope(context, now)
        if reader.complete:
            body = reader.read_nowait()
            guard.feed(body)
            id = await backend.store(envelope, head + body)
        else:
            async with aclosing(_stream(head, reader, guard)) as pieces:
                id = await backend.store(envelope, pieces)
        return Reply(250, EnhancedCode(2, 0, 0), f"Ok: queued as {backend.prefix}{id}")

    def envelope(self, context: DataContext, now: float) -> Envelope:
        """What a message is put with.

        HOLDFOR and HOLDUNTIL are the time of the first attempt, from which its life counts.  A message that BY wants back is handed out when
        that time is over (RFC 2852).
        """
        backend = self._backend
        params = context.mail_params
        hold, by = params.hold, params.by
        not_before: float | None = None
        if hold is not None:
            not_before = now + hold if isinstance(hold, int) else hold.timestamp()
        expires = backend.schedule.expires(now if not_before is None else not_before)
        if by is not None and by.mode == "R":
            expires = min(expires, now + by.seconds)
        destination = backend.routes.destination
        return Envelope(
            context.sender,
            tuple(
                Target(address, destination(address), each)
                for address, each in zip(context.recipients, context.rcpt_params, strict=True)
            ),
            self._params(params),
            now,
            expires,
            not_before,
            self._priority(params),
            self._origin_of(context),
        )

    def _origin_of(self, context: DataContext) -> dict[str, str]:
        """The same for most messages of a session."""
        key = (context.helo, context.xforward, context.conn.username)
        origin = self._origin
        if origin is None or origin[0] != key:
            self._origin = origin = (key, _origin(context))
        return origin[1]

    @property
    def _is_trusted(self) -> bool:
        if self._trusted is None:
            access, conn = self._backend.access, self._conn
            self._trusted = access is None or (conn is not None and access.trusts(conn))
        return self._trusted

    def _params(self, params: MailParams) -> MailParams:
        """Those that are still of interest: the size is known, and that it was held says when."""
        if params.auth and not (self._conn is not None and self._conn.state.username):
            params = replace(params, auth="")  # RFC 4954 section 5: whoever says so is not to be believed
        if params.size is not None or params.hold is not None:
            params = replace(params, size=None, hold=None)
        return params

    def _priority(self, params: MailParams) -> int:
        """Who is not trusted is not served before others (RFC 6710 section 5)."""
        priority = params.mt_priority or 0
        return priority if self._is_trusted else min(priority, 0)


async def _stream(head: bytes, reader: DataReader, guard: LoopGuard) -> AsyncGenerator[bytes, None]:
    first = True
    async for piece in reader:
        guard.feed(piece)
        yield head + piece if first else piece
        first = False
    if first:
        yield head


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _origin(context: DataContext) -> dict[str, str]:
    """Where a message comes from, by the names of XFORWARD."""
    forwarded = context.xforward
    state = context.conn.state
    origin = {"PROTO": state.protocol, "HELO": context.helo}
    address = state.remote_addr
    if isinstance(address, tuple) and address[0]:
        origin["ADDR"] = str(address[0])
    if state.username:
        origin["USER"] = state.username
    if forwarded is not None:
        given = {"NAME": forwarded.name, "ADDR": forwarded.addr, "PROTO": forwarded.proto, "HELO": forwarded.helo}
        given["IDENT"] = forwarded.ident
        origin |= {name: value for name, value in given.items() if value}
    return origin
