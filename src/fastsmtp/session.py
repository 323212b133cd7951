"""What an application implements and is handed: Backend, Session, DataReader, DataContext.

A `Backend` gives each connection a `Session`; the session's hooks are called in the order of the protocol, one at a time per
connection::

    connect -> helo -> mail -> rcpt ... -> data -> reset -> ... -> logout

A hook is `def` or `async def`.  It returns None (the standard reply) or a `Reply`, or raises `SMTPError`, which carries one.  Anything
else that it raises is logged and answered 451 4.3.0; the connection lives.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, runtime_checkable

from . import limits
from .extensions import MailParams, RcptParams
from .reply import AuthUnsupported, EnhancedCode, Reply, SMTPError

if TYPE_CHECKING:
    import ssl

    from .connection import Conn
    from .protocol.proxy import ProxyHeader
    from .protocol.xforward import XClient, XForward

__all__ = [
    "Address",
    "Backend",
    "ConnectionState",
    "DataContext",
    "DataReader",
    "DefaultBackend",
    "DefaultSession",
    "HookResult",
    "Session",
    "SessionFactory",
    "streaming",
]

_Hook = TypeVar("_Hook", bound=Callable[..., Any])

HookResult: TypeAlias = Reply | None | Awaitable[Reply | None]
"""What a hook may return: a reply, None for the standard one, or an awaitable of either."""

Address: TypeAlias = tuple[Any, ...] | str | None
"""A socket address as Python gives it: (host, port[, ...]), a Unix socket's path, or None."""

_LOW_WATER: Final = limits.BODY_HIGH_WATER // 2
_DELIVERY_TIMED_OUT: Final = Reply(451, EnhancedCode(4, 4, 7), "Delivery timed out")


@dataclass(slots=True)
class ConnectionState:
    """What is known of a connection at one moment.

    Attributes:
        hostname: the name that the client gave in HELO, EHLO or LHLO; "" before.
        remote_addr: the client's socket address.
        local_addr: ours.
        tls: the TLS object, or None in plaintext; `tls.getpeercert()` is the client's certificate.
        username: who the client has authenticated as, or XCLIENT says so; "" for nobody.
        protocol: "SMTP", "ESMTP" or "LMTP", for the with-clause of Received: (RFC 3848).
        proxy: the PROXY header that came before, or None; the addresses are the ones that it names.
        xclient: what XCLIENT said of the client, or None; it is part of the other attributes already.
    """

    hostname: str
    remote_addr: Address
    local_addr: Address
    tls: ssl.SSLObject | None
    protocol: str
    username: str = ""
    proxy: ProxyHeader | None = None
    xclient: XClient | None = None


class Session(Protocol):
    """One client's session; see the module's text for what a hook may return and raise.

    These may be there as well, and are then called: ``connect(conn)`` before the greeting (its refusal, 554 or 421, is the greeting),
    ``helo(name)`` at HELO, EHLO and LHLO, ``vrfy(argument)`` at VRFY, ``expn(argument)`` at EXPN, ``etrn(node)`` at ETRN,
    ``offer(offer)``, which may change what this connection is offered and its options, and
    ``auth(credentials)``, which decides about an AUTH whose mechanism is in the attribute ``auth_mechanisms`` (PLAIN and LOGIN without it).
    """

    def mail(self, sender: str, params: MailParams) -> HookResult:
        """MAIL: a transaction begins; `sender` is "" for the null reverse-path (RFC 5321 4.1.1.2)."""

    def rcpt(self, recipient: str, params: RcptParams) -> HookResult:
        """RCPT: one more recipient (RFC 5321 4.1.1.3)."""

    def data(self, reader: DataReader, context: DataContext) -> HookResult:
        """The message.  What it returns is the answer to the whole message: returning None says 250, and the message is then ours.

        An `async def` is called when the message is whole or 64 KiB of it are there, and streams the rest; a plain
        `def` is called when it is whole, and finds it in `reader.read_nowait()`, unless it is decorated with `streaming`.
        """

    def reset(self) -> Awaitable[None] | None:
        """The transaction is over: a message was answered, or RSET or a new greeting came."""

    def logout(self) -> Awaitable[None] | None:
        """The session is over.  Called exactly once."""


SessionFactory: TypeAlias = Callable[[], Session]
"""Makes a session for a new connection: a class, or any callable."""


@runtime_checkable
class Backend(Protocol):
    """Gives sessions to clients.  Both methods may be `async`.

    A backend whose attribute `session_on_connect` is true is asked for an anonymous session when the connection opens, so that its
    `connect` and `helo` hooks can refuse; another one when it is first needed, which is MAIL.
    """

    def login(self, state: ConnectionState, username: str, password: str) -> Session | None | Awaitable[Session | None]:
        """The session of a user who has authenticated by password; None, or AuthFailed raised, refuses.

        `fastsmtp.authentication` tells which other methods a backend may have for other mechanisms.
        """

    def anonymous_login(self, state: ConnectionState) -> Session | Awaitable[Session]:
        """The session of a client that did not authenticate; raises AuthRequired to insist."""


def streaming(hook: _Hook) -> _Hook:
    """Decorate a plain `data` hook that is called as an async one is: when the message is whole or 64 KiB of it are there.

    It answers a message that is `reader.complete` at once, which costs no task, and returns an awaitable for one that is not.
    """
    hook.streams = True  # type: ignore[attr-defined]
    return hook


class DefaultBackend:
    """A backend without authentication: `factory()` makes the session of every connection."""

    session_on_connect: Final = True
    auth_mechanisms: tuple[str, ...] = ()

    def __init__(self, factory: SessionFactory) -> None:
        self.factory: Final = factory

    def login(self, state: ConnectionState, username: str, password: str) -> Session:
        """Always raises AuthUnsupported: no password is right here."""
        raise AuthUnsupported

    def anonymous_login(self, state: ConnectionState) -> Session:
        """A new session."""
        return self.factory()


class DefaultSession:
    """A session to build upon: it keeps the envelope, accepts everything, and drops each message after reading it.

    Attributes:
        sender: the reverse-path, or None outside of a transaction.
        recipients: the forward-paths so far.
    """

    def __init__(self) -> None:
        self.sender: str | None = None
        self.recipients: list[str] = []

    def mail(self, sender: str, params: MailParams) -> HookResult:
        """Keep the sender."""
        self.sender = sender
        return None

    def rcpt(self, recipient: str, params: RcptParams) -> HookResult:
        """Keep the recipient."""
        self.recipients.append(recipient)
        return None

    if TYPE_CHECKING:  # an override may be plain or async

        def data(self, reader: DataReader, context: DataContext) -> HookResult:
            """Read the message to its end and drop it."""

    else:

        async def data(self, reader: DataReader, context: DataContext) -> None:
            """Read the message to its end and drop it."""
            async for _ in reader:
                pass

    def reset(self) -> Awaitable[None] | None:
        """Forget the envelope."""
        self.sender = None
        self.recipients = []
        return None

    def logout(self) -> Awaitable[None] | None:
        """Nothing is held."""
        return None


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
