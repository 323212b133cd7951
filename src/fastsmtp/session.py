"""What an application implements and is handed: Backend, Session, DataReader, DataContext.

A `Backend` gives each connection a `Session`; the session's hooks are called in the order of the protocol, one at a time per
connection::

    connect -> helo -> mail -> rcpt ... -> data -> reset -> ... -> logout

A hook is `def` or `async def`.  It returns None (the standard reply) or a `Reply`, or raises `SMTPError`, which carries one.  Anything
else that it raises is logged and answered 451 4.3.0; the connection lives.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeAlias, TypeVar, runtime_checkable

from .extensions import MailParams, RcptParams
from .message import DataContext, DataReader
from .reply import AuthUnsupported, Reply

if TYPE_CHECKING:
    import ssl

    from .protocol.proxy import ProxyHeader
    from .protocol.xforward import XClient

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
