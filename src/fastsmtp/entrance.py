"""Before the first word of SMTP: the PROXY header, and TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Generator
from typing import TYPE_CHECKING, Any

from .protocol.proxy import ProxyError, ProxyReader

if TYPE_CHECKING:
    import ssl

    from .connection import Conn

__all__ = ["ProxyGate", "start_tls"]


class ProxyGate(asyncio.Protocol):
    """Stands in for a connection until its PROXY header is there; garbage closes it without a word.

    Its deadline is the connection's, which single octets do not renew.
    """

    __slots__ = ("_conn", "_reader", "_transport")

    def __init__(self, conn: Conn, transport: asyncio.Transport) -> None:
        self._conn = conn
        self._transport = transport
        self._reader = ProxyReader()

    def data_received(self, data: bytes) -> None:
        """Octets of the header, and perhaps what follows it."""
        try:
            whole = self._reader.feed(data)
        except ProxyError as error:
            self._conn.server.logger.info("not a PROXY header: %s", error.reason)
            self._transport.abort()
            return
        if whole:
            header = self._reader.header
            assert header is not None
            self._transport.set_protocol(self._conn)
            self._conn.proxied(header)
            if self._reader.rest:
                self._conn.data_received(self._reader.rest)

    def connection_lost(self, exc: Exception | None) -> None:
        """It did not wait."""
        self._conn.connection_lost(exc)


def start_tls(
    loop: asyncio.AbstractEventLoop,
    transport: asyncio.Transport,
    conn: Conn,
    context: ssl.SSLContext,
    timeout: float,
) -> Awaitable[asyncio.Transport | None]:
    """Shake hands as a server: None when that fails, and then the connection is lost and has been told so.

    When this returns, the loop's TLS protocol has the transport: no octet that comes from now on is taken for plaintext.  While it
    has, it tells nobody that the connection is lost.
    """
    handshake = loop.start_tls(transport, conn, context, server_side=True, ssl_handshake_timeout=timeout or None)
    # The first step, which takes the transport over, is done here and now; a task would take it after the next octets came.
    return _outcome(loop, transport, conn, _Begun(handshake))


class _Begun:
    """A coroutine whose first step is done, to be awaited for the rest."""

    __slots__ = ("_coroutine", "_error", "_pending")

    def __init__(self, coroutine: Coroutine[Any, Any, Any]) -> None:
        self._coroutine = coroutine
        self._error: Exception | None = None
        try:
            self._pending = coroutine.send(None)
        except Exception as error:  # noqa: BLE001 - raised where it is awaited
            self._error = error

    def __await__(self) -> Generator[Any, Any, Any]:
        if self._error is not None:
            raise self._error
        pending = self._pending
        while True:
            try:
                try:
                    value = yield pending
                except BaseException as error:  # noqa: BLE001 - a cancellation belongs to it
                    pending = self._coroutine.throw(error)
                else:
                    pending = self._coroutine.send(value)
            except StopIteration as stop:
                return stop.value


async def _outcome(
    loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, conn: Conn, handshake: Awaitable[asyncio.Transport]
) -> asyncio.Transport | None:
    try:
        return await handshake
    except BaseException as error:
        transport.abort()
        loop.call_soon(conn.connection_lost, None)
        if not isinstance(error, Exception):
            raise
        conn.server.counters.tls_failures += 1
        conn.server.logger.info("TLS handshake failed: %s", type(error).__name__)
        return None
