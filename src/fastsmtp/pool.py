"""Connections that are kept for the next message, with limits per destination and in all.

    async with Pool() as pool:
        deliveries = await pool.send_message(ClientOptions(host="mx.example.org"), sender, recipients, message)

A destination is a `ClientOptions`: equal ones share connections.  Who waits is served in order of arrival, across destinations too.
An idle connection has no task; one timer closes those that were idle for too long.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Final

from .client import Client, Delivery, Message, Recipient
from .client_connection import ConnectionLost
from .client_options import ClientOptions
from .errors import ConfigurationError
from .extensions import MailParams
from .reply import SMTPError

__all__ = ["Pool"]


class _Kept:
    """A connection, and since when it is there and idle."""

    __slots__ = ("born", "client", "since")

    def __init__(self, client: Client, now: float) -> None:
        self.client: Final = client
        self.born: Final = now
        self.since = now


class _Place:
    """A destination: its idle connections, who waits for one, and how many there are with those in use."""

    __slots__ = ("count", "idle", "options", "waiters")

    def __init__(self, options: ClientOptions) -> None:
        self.options: Final = options
        self.idle: Final[list[_Kept]] = []
        self.waiters: Final[deque[_Waiter]] = deque()
        self.count = 0


class _Waiter:
    """Who waits: a number in order of arrival, and a future for a connection, or for None: leave to make one."""

    __slots__ = ("future", "number")

    def __init__(self, number: int, future: asyncio.Future[_Kept | None]) -> None:
        self.number: Final = number
        self.future: Final = future


class Pool:
    """Kept connections of any number of destinations.

    Args:
        max_connections: connections in all, in use and idle.
        max_per_destination: connections to one destination.
        max_messages: messages over one connection before it is closed; 0 is no limit.
        max_idle: seconds that a connection is kept without use; less than servers wait, which is 300 by RFC 5321 4.5.3.2.7.  0 keeps
            none.
        max_age: seconds after which a connection is not used again, so that changes of the destination's addresses are seen;
            0 is no limit.
        check_after: seconds without use after which a connection has to answer NOOP before it is used again.
        prepare: called with each new client when it is connected, to log in for example.

    Attributes:
        connections: how many there are, in use and idle.
        waiting: how many wait for one.
    """

    def __init__(
        self,
        *,
        max_connections: int = 100,
        max_per_destination: int = 10,
        max_messages: int = 100,
        max_idle: float = 30.0,
        max_age: float = 300.0,
        check_after: float = 5.0,
        prepare: Callable[[Client], Awaitable[object]] | None = None,
    ) -> None:
        if max_connections < 1 or max_per_destination < 1:
            raise ConfigurationError("a pool needs room for one connection")
        if min(max_messages, max_idle, max_age, check_after) < 0:
            raise ConfigurationError("a limit of a pool is negative")
        self.connections = 0
        self.waiting = 0
        self._max: Final = max_connections
        self._max_each: Final = max_per_destination
        self._max_messages: Final = max_messages
        self._max_idle: Final = max_idle
        self._max_age: Final = max_age
        self._check_after: Final = check_after
        self._prepare: Final = prepare
        self._places: Final[dict[ClientOptions, _Place]] = {}
        self._wanting: Final[dict[_Place, None]] = {}  # those with waiters
        self._idle: Final[dict[_Kept, _Place]] = {}  # longest idle first
        self._arrivals = 0
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    @property
    def idle(self) -> int:
        """How many connections are idle."""
        return len(self._idle)

    async def __aenter__(self) -> Pool:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def send_message(
        self,
        destination: ClientOptions,
        sender: str,
        recipients: Iterable[Recipient],
        message: Message,
        params: MailParams | None = None,
    ) -> list[Delivery]:
        """`Client.send_message` over a kept connection or a new one.

        Raises also what `connection` does.
        """
        async with self.connection(destination) as client:
            return await client.send_message(sender, recipients, message, params)

    @asynccontextmanager
    async def connection(self, destination: ClientOptions) -> AsyncIterator[Client]:
        """A client that is connected, for a while, which includes waiting for one.

        It is kept afterwards if nothing goes on with it: no transaction, and the block was not left by another exception than an
        SMTPError.

        Raises:
            RuntimeError: the pool is closed.
            OSError, SMTPError, ProtocolError: as `Client.connect` and `prepare`.
        """
        place, kept = await self._lease(destination)
        keep = False
        try:
            yield kept.client
            keep = True
        except SMTPError:
            keep = True
            raise
        finally:
            self._give_back(place, kept, keep)

    async def close(self) -> None:
        """Close the idle connections, and those in use when they are given back.  Who waits gets RuntimeError."""
        self._closed = True
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        for place in list(self._wanting):
            for waiter in place.waiters:
                if not waiter.future.done():
                    waiter.future.set_exception(RuntimeError("the pool is closed"))
            self.waiting -= len(place.waiters)
            place.waiters.clear()
        self._wanting.clear()
        clients = [self._take(kept).client for kept in list(self._idle)]
        await asyncio.gather(*(client.quit() for client in clients))

    # Lending

    async def _lease(self, destination: ClientOptions) -> tuple[_Place, _Kept]:
        if self._closed:
            raise RuntimeError("the pool is closed")
        place = self._places.get(destination)
        if place is None:
            place = self._places[destination] = _Place(destination)
        kept = await self._wait_turn(place)
        try:
            if kept is not None and not await self._is_well(kept):
                kept.client.part()
                kept = None
            if kept is None:
                kept = _Kept(await self._connect(place), asyncio.get_running_loop().time())
        except BaseException:
            if kept is not None:
                kept.client.close()
            self._vacate(place)
            raise
        return place, kept

    async def _wait_turn(self, place: _Place) -> _Kept | None:
        self._arrivals += 1
        waiter = _Waiter(self._arrivals, asyncio.get_running_loop().create_future())
        place.waiters.append(waiter)
        self._wanting[place] = None
        self.waiting += 1
        self._serve()
        try:
            return await waiter.future
        except asyncio.CancelledError:
            if waiter in place.waiters:
                place.waiters.remove(waiter)
                self.waiting -= 1
            elif waiter.future.done() and not waiter.future.cancelled() and waiter.future.exception() is None:
                kept = waiter.future.result()
                if kept is None:
                    self._vacate(place)
                else:
                    self._give_back(place, kept, True)
            self._forget_if_unused(place)
            raise

    def _serve(self) -> None:
        """Give what there is to those who wait, whoever came first."""
        while self._wanting:
            able = [place for place in self._wanting if self._can_serve(place)]
            if not able:
                return
            place = min(able, key=lambda each: each.waiters[0].number)
            waiter = place.waiters.popleft()
            self.waiting -= 1
            if not place.waiters:
                del self._wanting[place]
            if waiter.future.done():
                continue  # cancelled, and not yet told
            if place.idle:
                waiter.future.set_result(self._take(place.idle[-1], vacate=False))
                continue
            if self.connections >= self._max:
                self._make_room()
            place.count += 1
            self.connections += 1
            waiter.future.set_result(None)

    def _can_serve(self, place: _Place) -> bool:
        if place.idle:
            return True
        # An idle connection to another destination can make room.
        return place.count < self._max_each and (self.connections < self._max or bool(self._idle))

    def _make_room(self) -> None:
        """Close the connection that was idle for longest, for who waits for another destination."""
        oldest = next(iter(self._idle))
        place = self._idle[oldest]
        self._take(oldest, vacate=False)
        place.count -= 1
        self.connections -= 1
        self._forget_if_unused(place)
        oldest.client.part()

    async def _is_well(self, kept: _Kept) -> bool:
        """Whether a kept connection can be used."""
        now = asyncio.get_running_loop().time()
        if not kept.client.idle or self._is_worn(kept, now):
            return False
        if now - kept.since >= self._check_after:
            try:
                await kept.client.noop()
            except (SMTPError, ConnectionLost):
                return False
        return True

    def _is_worn(self, kept: _Kept, now: float) -> bool:
        if self._max_age and now - kept.born >= self._max_age:
            return True
        return bool(self._max_messages) and kept.client.messages >= self._max_messages

    async def _connect(self, place: _Place) -> Client:
        client = Client(options=place.options)
        await client.connect()
        if self._prepare is not None:
            try:
                await self._prepare(client)
            except BaseException:
                client.close()
                raise
        return client

    # Taking back

    def _give_back(self, place: _Place, kept: _Kept, keep: bool) -> None:
        client = kept.client
        now = asyncio.get_running_loop().time()
        if keep and client.idle and self._max_idle and not self._closed and not self._is_worn(kept, now):
            kept.since = now
            place.idle.append(kept)
            self._idle[kept] = place
            client.on_end(lambda: self._take(kept))
            self._serve()
            self._set_timer()
            return
        if keep and client.idle:
            client.part()
        else:
            client.close()
        self._vacate(place)

    def _take(self, kept: _Kept, vacate: bool = True) -> _Kept:
        """Take a connection out of the idle ones."""
        place = self._idle.pop(kept)
        place.idle.remove(kept)
        kept.client.on_end(None)
        if vacate:
            self._vacate(place)
        return kept

    def _vacate(self, place: _Place) -> None:
        """There is room for one connection more."""
        place.count -= 1
        self.connections -= 1
        self._forget_if_unused(place)
        self._serve()

    def _forget_if_unused(self, place: _Place) -> None:
        if not place.waiters:
            self._wanting.pop(place, None)
            if not place.count:
                self._places.pop(place.options, None)

    def _set_timer(self) -> None:
        if self._timer is None and self._idle:
            oldest = next(iter(self._idle))
            self._timer = asyncio.get_running_loop().call_at(oldest.since + self._max_idle, self._sweep)

    def _sweep(self) -> None:
        """Close what was idle for too long."""
        self._timer = None
        now = asyncio.get_running_loop().time()
        while self._idle:
            oldest = next(iter(self._idle))
            if oldest.since + self._max_idle > now:
                break
            self._take(oldest).client.part()
        self._set_timer()
