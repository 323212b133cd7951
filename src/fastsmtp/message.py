"""A message as a session is handed it: `DataReader`, its octets, and `DataContext`, its envelope and its answer."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Final

from . import limits
from .extensions import MailParams, RcptParams
from .reply import EnhancedCode, Reply, SMTPError

if TYPE_CHECKING:
    from .connection import Conn
    from .protocol.xforward import XForward
    from .session import ConnectionState

__all__ = ["DataContext", "DataReader"]

_LOW_WATER: Final = limits.BODY_HIGH_WATER // 2
_DELIVERY_TIMED_OUT: Final = Reply(451, EnhancedCode(4, 4, 7), "Delivery timed out")


class DataReader:
    """A message as it arrives: CR LF as sent, dots removed, the end-of-data line not included.

    A message that ends early never looks whole: every way of reading raises then, `SMTPError` for one that is refused
    (`DataTooLarge` above the limit), `MessageAborted` for a lost connection, a time-out or a stopping server.

    Attributes:
        size: octets that have arrived so far.
        complete: the whole message has arrived.
    """

    __slots__ = ("_buffered", "_chunks", "_error", "_on_low", "_waiter", "complete", "size")

    def __init__(self, on_low: Callable[[], None] | None = None) -> None:
        self._chunks: list[bytes] = []
        self._buffered = 0
        self._error: Exception | None = None
        self._on_low = on_low
        self._waiter: asyncio.Future[None] | None = None
        self.complete = False
        self.size = 0

    async def read(self, n: int = -1) -> bytes:
        """Up to `n` octets as soon as any are there, all of the message for n < 0; b"" at its end."""
        if n >= 0:
            while n and not self._buffered and not self.complete:
                await self._wait()
            return self.read_nowait(n)
        if self.complete:
            return self.read_nowait()
        parts: list[bytes] = []
        while True:
            parts.append(self.read_nowait())
            if self.complete:
                return b"".join(parts)
            await self._wait()

    def read_nowait(self, n: int = -1) -> bytes:
        """Up to `n` of the octets that wait now, all of them for n < 0.  b"" is the end only when `complete` is true."""
        if self._error is not None:
            raise self._error
        chunks = self._chunks
        if 0 <= n < self._buffered:
            # Take whole chunks and cut the last; the rest stays in front.
            taken: list[bytes] = []
            missing = n
            used = 0
            for chunk in chunks:
                if len(chunk) > missing:
                    break
                taken.append(chunk)
                missing -= len(chunk)
                used += 1
            del chunks[:used]
            if missing:
                taken.append(chunks[0][:missing])
                chunks[0] = chunks[0][missing:]
            data = b"".join(taken)
        else:
            data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
            chunks.clear()
        self._buffered -= len(data)
        if self._buffered <= _LOW_WATER and self._on_low is not None:
            self._on_low()
        return data

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The message in pieces as they come; leaving the loop early drops nothing."""
        while True:
            while not self._buffered and not self.complete:
                await self._wait()
            data = self.read_nowait()
            if not data:
                return
            yield data

    @property
    def buffered(self) -> int:
        """Octets that have arrived and were not read yet."""
        return self._buffered

    # The connection's side

    def feed_data(self, data: bytes, last: bool = False) -> None:
        """Add octets; after the last ones the message is whole."""
        if data:
            self._chunks.append(data)
            self._buffered += len(data)
            self.size += len(data)
        if last:
            self.complete = True
            self._on_low = None
        if self._waiter is not None and (data or last):
            self._wake()

    def feed_eof(self) -> None:
        """The message is whole."""
        self.feed_data(b"", last=True)

    def set_exception(self, error: Exception) -> None:
        """The message will not be whole: what waits is dropped, reading raises `error`."""
        self._error = error
        self.let_go()
        self.complete = False
        self._chunks.clear()
        self._buffered = 0
        self._wake()

    def let_go(self) -> None:
        """Tell nobody any more that there is room; it would be a cycle of references, through whoever feeds."""
        self._on_low = None

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)

    async def _wait(self) -> None:
        if self._error is not None:
            raise self._error
        if self._waiter is not None:
            raise RuntimeError("another task reads this message already")
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None


class DataContext:
    """The transaction that a message belongs to, and how it is to be answered.

    Attributes:
        conn: the connection.
        sender: the reverse-path, "" for the null one.
        mail_params: the parameters of MAIL.
        recipients: the accepted forward-paths in their order.
        rcpt_params: the parameters of each RCPT, in the same order.
        xforward: what a trusted peer said of the client behind it, or None.
    """

    __slots__ = (
        "_expired",
        "_helo",
        "_on_answered",
        "_replies",
        "_response",
        "_timers",
        "conn",
        "mail_params",
        "rcpt_params",
        "recipients",
        "sender",
        "xforward",
    )

    def __init__(
        self,
        conn: Conn,
        sender: str,
        mail_params: MailParams,
        recipients: Sequence[str],
        rcpt_params: Sequence[RcptParams],
        helo: str,
        xforward: XForward | None = None,
    ) -> None:
        self.xforward: Final = xforward
        self.conn: Final = conn
        self.sender: Final = sender
        self.mail_params: Final = mail_params
        self.recipients: Final = recipients
        self.rcpt_params: Final = rcpt_params
        self._helo = helo
        self._response: Reply | None = None
        self._replies: list[Reply | None] | None = None
        self._timers: dict[int, asyncio.TimerHandle] | None = None
        self._on_answered: Callable[[], None] | None = None
        self._expired = False

    @property
    def helo(self) -> str:
        """The name that the client gave in its greeting."""
        return self._helo

    @property
    def state(self) -> ConnectionState:
        """The connection's state."""
        return self.conn.state

    def set_smtp_response(self, reply: Reply | SMTPError | None) -> None:
        """The answer to the message if the hook itself returns None.  For LMTP: of each recipient without a status."""
        self._response = reply.reply if isinstance(reply, SMTPError) else reply

    def set_status(self, recipient: str, reply: Reply | SMTPError) -> None:
        """LMTP: the answer for one recipient (RFC 2033 4.2); without LMTP the statuses are not used.

        A recipient that was given twice is answered twice, in the order of the calls.

        Raises:
            ValueError: no such recipient, or all of that name are answered.
        """
        answer = reply.reply if isinstance(reply, SMTPError) else reply
        replies = self._slots()
        for index, each in enumerate(self.recipients):
            if each == recipient and replies[index] is None:
                self._answer(index, answer)
                return
        raise ValueError(f"no recipient of that name waits for a status: {recipient!r}")

    def start_delivery(self, recipient: str, timeout: float) -> None:
        """LMTP: give one recipient's delivery a deadline in seconds; if it has no status by then it is answered 451 4.4.7.

        Called twice for a recipient that was given twice, it starts one deadline for each.

        Raises:
            ValueError: no such recipient, or all of that name are answered or started.
        """
        replies = self._slots()
        if self._timers is None:
            self._timers = {}
        for index, each in enumerate(self.recipients):
            if each == recipient and replies[index] is None and index not in self._timers:
                loop = asyncio.get_running_loop()
                self._timers[index] = loop.call_later(timeout, self._expire, index)
                return
        raise ValueError(f"no recipient of that name waits for a delivery: {recipient!r}")

    def _slots(self) -> list[Reply | None]:
        if self._replies is None:
            self._replies = [None] * len(self.recipients)
        return self._replies

    def _expire(self, index: int) -> None:
        self._expired = True
        self._answer(index, _DELIVERY_TIMED_OUT)

    def _answer(self, index: int, reply: Reply) -> None:
        replies = self._slots()
        if replies[index] is not None:
            return
        replies[index] = reply
        if self._timers is not None and (timer := self._timers.pop(index, None)) is not None:
            timer.cancel()
        self._tell()

    def _tell(self) -> None:
        # A hook that answers everybody itself ends by itself; one whose deliveries expired may hang for ever.
        if self._on_answered is not None and self._expired and self._replies is not None and None not in self._replies:
            self._on_answered()

    # The connection's side

    @property
    def response(self) -> Reply | None:
        """What `set_smtp_response` was last given."""
        return self._response

    @property
    def replies(self) -> Sequence[Reply | None] | None:
        """The statuses by recipient, or None when none was set or started."""
        return self._replies

    def when_answered(self, callback: Callable[[], None]) -> None:
        """Call back once every recipient has a status, one of them by its deadline: the hook need not be waited for."""
        self._on_answered = callback
        self._tell()

    def close(self) -> None:
        """Stop all deadlines."""
        self._on_answered = None
        if self._timers is not None:
            for timer in self._timers.values():
                timer.cancel()
            self._timers = None
