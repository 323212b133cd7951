"""One connection of a client: the protocol's shell under asyncio.

It feeds octets to the protocol, writes what the protocol has to say, wakes who waits for that, and loses patience.  There is
one timer for each connection, and none when nothing is waited for.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from . import limits
from .errors import FastSMTPError, ProtocolError, UnexpectedEOF

if TYPE_CHECKING:
    from .client_options import Timeouts
    from .protocol.client import ClientProtocol
    from .protocol.transaction import Delivery

__all__ = ["ClientConnection", "ConnectionLost", "TLSFailed", "TimedOut"]

_FOREVER: Final = float("inf")
_LONG: Final = 86400.0


class ConnectionLost(FastSMTPError, ConnectionError):
    """The connection is lost, or cannot be used any more: closed by the server, or what it said was no SMTP.

    Attributes:
        deliveries: what is known of each recipient, if a message was being sent; who got no reply has 451 4.4.2.
        maybe_delivered: the whole message had been sent when the connection was lost, so that recipients without a reply may have it,
            and get it twice when it is sent again (RFC 1047).  If False, nobody has it of whom `deliveries` does not say so.
    """

    def __init__(self, reason: str, deliveries: Sequence[Delivery] = (), maybe_delivered: bool = False) -> None:
        super().__init__(reason)
        self.deliveries: Final = tuple(deliveries)
        self.maybe_delivered: Final = maybe_delivered


class TimedOut(ConnectionLost, TimeoutError):
    """The server was too slow, and the connection was closed."""


class TLSFailed(ConnectionLost):
    """The TLS handshake failed, or the server would not have TLS where it is required.  The cause tells more."""


class ClientConnection(asyncio.Protocol):
    """A connection to a server.

    The methods that asyncio calls (`connection_made` to `resume_writing`) are not for others.

    Attributes:
        protocol: the client's side of SMTP.
        transport: asyncio's side of the connection.
        plain: octets are taken; False until an implicit TLS has begun.
        closed: the transport is gone.
        on_end: called when the connection can no longer be used.
    """

    __slots__ = (
        "_deadline",
        "_left",
        "_loop",
        "_mark",
        "_paused",
        "_reason",
        "_timeouts",
        "_timer",
        "_waiters",
        "_write_deadline",
        "closed",
        "on_end",
        "plain",
        "protocol",
        "transport",
    )

    def __init__(
        self, loop: asyncio.AbstractEventLoop, protocol: ClientProtocol, timeouts: Timeouts, plain: bool
    ) -> None:
        self.protocol: Final = protocol
        self.transport: asyncio.Transport
        self.plain = plain
        self.closed = False
        self.on_end: Callable[[], object] | None = None
        self._loop: Final = loop
        self._timeouts: Final = timeouts
        self._waiters: list[asyncio.Future[None]] = []
        self._reason: tuple[type[ConnectionLost], str, BaseException | None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._deadline = _FOREVER  # of the reply that is due next
        self._mark: tuple[object, ...] = ()  # which reply that is
        self._paused = False
        self._write_deadline = _FOREVER  # of the server's taking more
        self._left = 0  # octets that waited to be taken when a deadline was set

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection stands."""
        self.transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport by type

    def data_received(self, data: bytes) -> None:
        """Octets arrived."""
        if not self.plain:
            self.fail(TLSFailed, "the server does not begin with TLS")
            return
        try:
            self.protocol.receive_data(data)
        except ProtocolError as error:
            self.fail(ConnectionLost, str(error), error)
            return
        self.advance()

    def eof_received(self) -> None:
        """The server will say no more; asyncio closes the connection."""
        self._lose(ConnectionLost, "the server closed the connection")

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        self.closed = True
        self._lose(ConnectionLost, "the connection is lost" if exc else "the connection is closed", exc)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._wake()

    def pause_writing(self) -> None:
        """The server does not take what is written as fast as it is."""
        self._paused = True
        self._expect_progress()

    def resume_writing(self) -> None:
        """It has taken enough of it."""
        self._paused = False
        self._write_deadline = _FOREVER
        self._wake()

    # The exchange

    def advance(self) -> None:
        """Work on what was received and queued: write what is to be said, wake who waits."""
        protocol = self.protocol
        try:
            while protocol.next_event() is not None:
                pass
        except ProtocolError as error:
            self.fail(ConnectionLost, f"the server broke the protocol: {error}", error)
            return
        data = protocol.data_to_send()
        if data:
            self.transport.write(data)
        self._expect_reply()
        if protocol.closing:
            self._close_gently()
        self._wake()

    async def wait(self, ready: Callable[[], bool]) -> None:
        """Wait until that is so.  Who is cancelled within breaks the connection off, as it is in no known state then.

        Raises:
            ConnectionLost: it will never be so.
        """
        while not ready():
            self.check()
            future = self._loop.create_future()
            self._waiters.append(future)
            try:
                await future
            except BaseException:
                self.abort()
                raise

    async def drain(self) -> None:
        """Wait until the server has taken enough of what was written, or is lost."""
        await self.wait(lambda: not self._paused or self._reason is not None)

    async def wait_closed(self) -> None:
        """Wait until the transport is gone; it is given some seconds to go."""
        if not self.closed:
            timer = self._loop.call_later(limits.LINGER, self.transport.abort)
            try:
                while not self.closed:
                    future = self._loop.create_future()
                    self._waiters.append(future)
                    await future
            finally:
                timer.cancel()

    async def start_tls(self, context: ssl.SSLContext, server_hostname: str | None) -> None:
        """Do the handshake.

        Raises:
            TLSFailed: it failed, and the connection is gone.
        """
        seconds = self._timeouts.handshake
        try:
            async with asyncio.timeout(seconds or None):
                transport = await self._loop.start_tls(
                    self.transport,
                    self,
                    context,
                    server_hostname=server_hostname,
                    ssl_handshake_timeout=2 * seconds or _LONG,
                )
        except BaseException as error:
            # Within the handshake the loop does not tell this protocol that the connection is lost.
            self.fail(TLSFailed, _tls_reason(error), error)
            self._loop.call_soon(self.connection_lost, None)
            if isinstance(error, OSError | ValueError):
                raise self.lost() from error
            raise
        assert transport is not None
        self.transport = transport
        self.plain = True

    # The end

    @property
    def usable(self) -> bool:
        """Commands can be sent."""
        return self._reason is None and not self.protocol.closing

    def check(self) -> None:
        """Raise ConnectionLost if the connection is lost."""
        if self._reason is not None:
            raise self.lost()

    def lost(self, deliveries: Sequence[Delivery] = (), maybe_delivered: bool = False) -> ConnectionLost:
        """The exception that tells why the connection is lost."""
        kind, reason, cause = self._reason or (ConnectionLost, "the connection is closing", None)
        error = kind(reason, deliveries, maybe_delivered)
        error.__cause__ = cause
        return error

    def fail(self, kind: type[ConnectionLost], reason: str, cause: BaseException | None = None) -> None:
        """Break the connection off because of the server."""
        self._lose(kind, reason, cause)
        self.transport.abort()

    def abort(self) -> None:
        """Break the connection off: nothing more is sent, not even what was written and is not sent yet."""
        self.fail(ConnectionLost, "the connection was broken off")

    def close(self) -> None:
        """Close the connection without a word; abort it if anything is going on."""
        if self.protocol.awaiting is None:
            self._lose(ConnectionLost, "the connection was closed")
            self.transport.close()
        else:
            self.abort()

    def _close_gently(self) -> None:
        self.transport.close()
        self._ended()

    def _lose(self, kind: type[ConnectionLost], reason: str, cause: BaseException | None = None) -> None:
        if self._reason is None:
            self._reason = (kind, reason, cause)
            self._deadline = self._write_deadline = _FOREVER
            with suppress(UnexpectedEOF):
                self.protocol.receive_eof()
            self._ended()
            self._wake()

    def _ended(self) -> None:
        callback, self.on_end = self.on_end, None
        if callback is not None:
            callback()

    def _wake(self) -> None:
        waiters, self._waiters = self._waiters, []
        for future in waiters:
            if not future.done():
                future.set_result(None)

    # Patience

    def _expect_reply(self) -> None:
        """A reply came or a command went: what is due next, and until when?"""
        command = self.protocol.awaiting
        if command is None or command.wants_body:
            self._mark = ()
            self._deadline = _FOREVER
            return
        mark = (command, command.verb, command.last, len(command.replies))
        if mark != self._mark:
            self._mark = mark
            seconds = self._timeouts.reply_to(command)
            self._left = self.transport.get_write_buffer_size()
            self._deadline = self._loop.time() + seconds if seconds else _FOREVER
            self._set_timer(self._deadline)

    def _expect_progress(self) -> None:
        if self._timeouts.block:
            self._left = self.transport.get_write_buffer_size()
            self._write_deadline = self._loop.time() + self._timeouts.block
            self._set_timer(self._write_deadline)

    def _set_timer(self, when: float) -> None:
        """Have a look at that time; a look too early costs less than a timer for each command."""
        if when == _FOREVER or self._reason is not None:
            return
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        deaf, late = self._write_deadline <= now, self._deadline <= now
        if deaf or late:
            left = self.transport.get_write_buffer_size()
            command = self.protocol.awaiting
            if left >= self._left:
                self._give_up(deaf)
                return
            # It is slow, but it takes what is written: a reply cannot come before that is done.
            self._left = left
            if deaf:
                self._write_deadline = now + self._timeouts.block
            if late:
                self._deadline = now + self._timeouts.reply_to(command) if command is not None else _FOREVER
        self._set_timer(min(self._deadline, self._write_deadline))

    def _give_up(self, deaf: bool) -> None:
        command = self.protocol.awaiting
        if deaf or command is None:
            self.fail(TimedOut, "the server takes nothing more of what is written")
        else:
            self.fail(TimedOut, f"no reply to {command.verb} in time" if command.verb else "no greeting in time")


def _tls_reason(error: BaseException) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the server's certificate is not accepted: {error.verify_message}"
    if isinstance(error, TimeoutError):
        return "no TLS handshake in time"
    return "the TLS handshake failed"
