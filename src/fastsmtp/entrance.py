"""Before the first word of SMTP: the PROXY header, and TLS."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Coroutine, Generator
from typing import TYPE_CHECKING, Any, Final

from .protocol.proxy import ProxyError, ProxyReader

if TYPE_CHECKING:
    import ssl

    from .connection import Conn
    from .reply import Reply

__all__ = ["ProxyGate", "start_tls"]

_NO_LIMIT: Final = float("inf")


class ProxyGate(asyncio.Protocol):
    """Stands in for a connection until its PROXY header is there; garbage closes it without a word.

    Its deadline is the connection's, which single octets do not renew.

    Args:
        conn: the connection.
        transport: its transport.
        refusal: what the connection is told as soon as its header is there, or None.
    """

    __slots__ = ("_conn", "_reader", "_refusal", "_transport")

    def __init__(self, conn: Conn, transport: asyncio.Transport, refusal: Reply | None) -> None:
        self._conn = conn
        self._transport = transport
        self._refusal = refusal
        self._reader = ProxyReader()

    def data_received(self, data: bytes) -> None:
        """Octets of the header, and perhaps what follows it."""
        try:
            whole = self._reader.feed(data)
        except ProxyError as error:
            self._conn.server.counters.proxy_failures += 1
            self._conn.server.logger.info("not a PROXY header: %s", error.reason)
            self._transport.abort()
            error.__traceback__ = None  # it holds us, and the reader holds it: a cycle
            return
        if whole:
            header = self._reader.header
            assert header is not None
            self._transport.set_protocol(self._conn.protocol)
            self._conn.proxied(header, self._reader.rest, self._refusal)

    def connection_lost(self, exc: Exception | None) -> None:
        """It did not wait."""
        self._conn.connection_lost(exc)


def start_tls(
    loop: asyncio.AbstractEventLoop,
    transport: asyncio.Transport,
    conn: Conn,
    context: ssl.SSLContext,
    timeout: float,
    received: bytes = b"",
) -> Awaitable[asyncio.Transport | None]:
    """Shake hands as a server: None when that fails, and then the connection is lost and has been told so.

    `received` are octets of the handshake that were read already, behind a PROXY header.

    When this returns, the loop's TLS protocol has the transport: no octet that comes from now on is taken for plaintext.  While it
    has, it tells nobody that the connection is lost.
    """
    handshake = loop.start_tls(
        transport, conn.protocol, context, server_side=True, ssl_handshake_timeout=timeout or _NO_LIMIT
    )
    # The first step, which takes the transport over, is done here and now; a task would take it after the next octets came.
    begun = _Begun(handshake)
    protocol = transport.get_protocol()
    if received and protocol is not conn.protocol:
        # The TLS protocol is told of its transport in the next turn, and of these octets right behind that: before others are read.
        loop.call_soon(_feed, protocol, received)
    return _outcome(loop, transport, conn, begun)


def _feed(protocol: Any, octets: bytes) -> None:
    """Give octets to an `asyncio.BufferedProtocol`, which both loops' TLS protocols are (uvloop's not by type)."""
    while octets:
        buffer = protocol.get_buffer(len(octets))
        count = min(len(buffer), len(octets))
        buffer[:count] = octets[:count]
        protocol.buffer_updated(count)
        octets = octets[count:]


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
        secured = await handshake
        if not transport.is_closing():
            return secured
        why = "closed by us"  # the loops take that for a success
    except Exception as error:  # noqa: BLE001 - what it was is the peer's affair
        why = type(error).__name__
        # The loop's frame, which the traceback holds, holds a future that holds the error: a cycle, and in it all of TLS's buffers, a
        # quarter of a megabyte for each handshake that failed, until the garbage collector came by.
        error.__traceback__ = None
    except BaseException:
        _lose(loop, transport, conn)
        raise
    _lose(loop, transport, conn)
    conn.server.counters.tls_failures += 1
    conn.server.logger.info("TLS handshake failed: %s", why)
    return None


def _lose(loop: asyncio.AbstractEventLoop, transport: asyncio.Transport, conn: Conn) -> None:
    transport.abort()
    loop.call_soon(conn.connection_lost, None)
