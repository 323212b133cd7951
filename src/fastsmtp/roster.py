"""Who is connected to a server: how many may be, from where, and until when each is waited for."""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Final

from .counters import Counters
from .options import ServerOptions
from .rates import RateLimit
from .reply import SHUTTING_DOWN, TOO_FAST, TOO_MANY_CONNECTIONS, Reply

if TYPE_CHECKING:
    from .channel import Channel
    from .observer import Observer
    from .session import Address

__all__ = ["Roster"]

_LONGEST_TICK: Final = 1.0
_SHORTEST_TICK: Final = 0.005


class Roster:
    """The connections of one server.

    Args:
        options: the server's limits.
        counters: counts them.
        logger: hears of an observer that failed.

    Attributes:
        by_address: there is a limit on what comes from one address: ask `admit`.
        now: the loop time at the last look at the deadlines.
        read_timeout: as in the options.
        stopping: no new connection is wanted.
        observer: hears of them, or None.
        conns: who is there, with the key under which its address is counted.
    """

    __slots__ = (
        "_counters",
        "_empty",
        "_logger",
        "_loop",
        "_most",
        "_most_per_address",
        "_per_address",
        "_rate",
        "_tick",
        "_ticker",
        "by_address",
        "conns",
        "now",
        "observer",
        "read_timeout",
        "stopping",
    )

    def __init__(self, options: ServerOptions, counters: Counters, logger: logging.Logger) -> None:
        self._counters = counters
        self._logger = logger
        self._most = options.max_connections
        self._most_per_address = options.max_connections_per_address
        self._rate = RateLimit(options.max_connection_rate) if options.max_connection_rate else None
        self._per_address: dict[str, int] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._empty: asyncio.Event | None = None
        timeouts = (options.read_timeout, options.write_timeout, options.hook_timeout)
        shortest = min([each for each in timeouts if each], default=_LONGEST_TICK)
        self._tick = min(_LONGEST_TICK, max(_SHORTEST_TICK, shortest / 4))
        self.by_address = self._most_per_address > 0 or self._rate is not None
        self.conns: dict[Channel, str] = {}
        self.now = 0.0
        self.observer: Observer | None = options.observer
        self.read_timeout = options.read_timeout
        self.stopping = False

    def open(self, loop: asyncio.AbstractEventLoop) -> None:
        """Connections may come, on this loop."""
        self._loop = loop
        self.now = loop.time()

    def close(self) -> None:
        """Look at the deadlines no more."""
        if self._ticker is not None:
            self._ticker.cancel()
            self._ticker = None

    async def emptied(self) -> None:
        """Wait until nobody is there."""
        while self.conns:
            if self._empty is None:
                self._empty = asyncio.Event()
            self._empty.clear()
            await self._empty.wait()

    def attach(self, conn: Channel) -> Reply | None:
        """Count a new connection; a reply refuses it."""
        counters = self._counters
        counters.connections += 1
        counters.connections_total += 1
        self.conns[conn] = ""
        if self._ticker is None:
            self._sweep()
        if self.stopping:
            return SHUTTING_DOWN
        if len(self.conns) > self._most > 0:
            return TOO_MANY_CONNECTIONS
        return None

    def admit(self, conn: Channel, address: Address) -> Reply | None:
        """Look at a new connection's address, now that it is known; a reply refuses it."""
        if not isinstance(address, tuple):
            return None  # whoever may open a Unix socket is one of us
        key = str(address[0])
        if not key:
            return None  # a proxy that does not know its client's address; the limit in all holds
        if self._most_per_address:
            self.conns[conn] = key
            count = self._per_address[key] = self._per_address.get(key, 0) + 1
            if count > self._most_per_address:
                return TOO_MANY_CONNECTIONS
        if self._rate is not None and not self._rate.allows(key, self.now):
            return TOO_FAST
        return None

    def detach(self, conn: Channel) -> None:
        """Forget a connection that is lost and whose hooks have ended."""
        key = self.conns.pop(conn, None)
        if key is None:
            return
        if self.observer is not None:
            self.observe("disconnected", conn)
        self._counters.connections -= 1
        if key:
            self._per_address[key] -= 1
            if not self._per_address[key]:
                del self._per_address[key]
        if self._empty is not None and not self.conns:
            self._empty.set()

    def count_message(self, accepted: int, octets: int) -> None:
        """Count an answered message; so many of its recipients were accepted."""
        counters = self._counters
        if accepted:
            counters.messages += 1
            counters.recipients += accepted
            counters.octets += octets
        else:
            counters.rejected += 1

    def rejected(self, conn: Channel, reply: Reply) -> None:
        """Count what a session refused."""
        self._counters.rejected += 1
        if self.observer is not None:
            self.observe("rejected", conn, reply)

    def observe(self, what: str, *arguments: object) -> None:
        """Tell the observer, if there is one."""
        if self.observer is not None:
            try:
                getattr(self.observer, what)(*arguments)
            except Exception:
                self._logger.exception("the observer failed")

    def _sweep(self) -> None:
        """Look at every connection's deadline: 60 ns each and once a second, where a timer per command would cost 1 us each."""
        loop = self._loop
        assert loop is not None
        now = self.now = loop.time()
        self._ticker = None
        for conn in [conn for conn in self.conns if conn.deadline <= now]:
            conn.timed_out()
        if self.conns:
            self._ticker = loop.call_later(self._tick, self._sweep)
