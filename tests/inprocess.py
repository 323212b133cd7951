"""A server in a thread of the test process: other programs talk to it, and the test sees what its sessions were given."""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from fastsmtp import (
    AuthRequired,
    ConnectionState,
    DataContext,
    DataReader,
    DefaultSession,
    MailParams,
    RcptParams,
    Reply,
    Server,
)
from fastsmtp.protocol.xforward import XForward
from fastsmtp.sasl import (
    AnonymousCredentials,
    CramMD5Credentials,
    Credentials,
    ExternalCredentials,
    PlainCredentials,
    ScramCredentials,
    ScramSecret,
    TokenCredentials,
)

__all__ = ["Arrived", "InProcess", "Inbox", "LoopFactory", "Recording", "Users"]

LoopFactory = Callable[[], asyncio.AbstractEventLoop]


@dataclass(frozen=True, slots=True)
class Arrived:
    """One message as its session saw it.

    Attributes:
        text: its octets.
        tls: the version of TLS, or None.
        certificate: the client's certificate as `getpeercert` gives it, or None.
        credentials: what the client authenticated with, or None.
    """

    sender: str
    mail_params: MailParams
    recipients: tuple[str, ...]
    rcpt_params: tuple[RcptParams, ...]
    text: bytes
    helo: str
    xforward: XForward | None
    state: ConnectionState
    tls: str | None
    certificate: dict[str, Any] | None
    credentials: Credentials | None

    @property
    def common_name(self) -> str:
        """The CN of the client's certificate."""
        assert self.certificate is not None
        name: str = dict(pair for each in self.certificate["subject"] for pair in each)["commonName"]
        return name


class Inbox:
    """Messages that arrive in one thread and are waited for in another."""

    def __init__(self) -> None:
        self._arrived: list[Arrived] = []
        self._changed = threading.Condition()

    def put(self, arrived: Arrived) -> None:
        with self._changed:
            self._arrived.append(arrived)
            self._changed.notify_all()

    def wait(self, count: int, timeout: float = 60) -> list[Arrived] | None:
        """All that arrived, once there are so many; None when they do not come."""
        with self._changed:
            if not self._changed.wait_for(lambda: len(self._arrived) >= count, timeout):
                return None
            return list(self._arrived)

    def taken(self) -> list[Arrived]:
        with self._changed:
            return list(self._arrived)


class Recording(DefaultSession):
    """Keeps each message in the inbox; subclasses refuse."""

    def __init__(self, inbox: Inbox, credentials: Credentials | None) -> None:
        super().__init__()
        self.inbox = inbox
        self.credentials = credentials

    async def data(self, reader: DataReader, context: DataContext) -> Reply | None:
        text = await reader.read()
        tls = context.state.tls
        self.inbox.put(
            Arrived(
                sender=context.sender,
                mail_params=context.mail_params,
                recipients=tuple(context.recipients),
                rcpt_params=tuple(context.rcpt_params),
                text=text,
                helo=context.helo,
                xforward=context.xforward,
                state=context.state,
                tls=None if tls is None else tls.version(),
                certificate=None if tls is None else tls.getpeercert(),
                credentials=self.credentials,
            )
        )
        return self.answer(context)

    def answer(self, context: DataContext) -> Reply | None:
        """What is said to a message that is kept."""
        return None


@dataclass(slots=True)
class Users:
    """A backend with users in memory.

    Attributes:
        auth_mechanisms: what is offered.
        passwords: in the clear, by user.
        tokens: who may come with which bearer token.
        certificates: CNs that may authenticate by certificate.
        session: makes the sessions.
        auth_required: no mail without authentication.
    """

    inbox: Inbox
    auth_mechanisms: tuple[str, ...] = ()
    passwords: dict[str, str] = field(default_factory=dict)
    tokens: dict[str, str] = field(default_factory=dict)
    certificates: frozenset[str] = frozenset()
    session: type[Recording] = Recording
    auth_required: bool = False

    @property
    def session_on_connect(self) -> bool:
        return not self.auth_required

    def anonymous_login(self, state: ConnectionState) -> Recording:
        if self.auth_required:
            raise AuthRequired
        return self.session(self.inbox, None)

    def login(self, state: ConnectionState, username: str, password: str) -> Recording | None:
        return self.authenticate(state, PlainCredentials("", username, password))

    def authenticate(self, state: ConnectionState, credentials: Credentials) -> Recording | None:
        return self.session(self.inbox, credentials) if self._right(state, credentials) else None

    def scram_secret(self, state: ConnectionState, username: str) -> ScramSecret:
        return ScramSecret.derive(self.passwords[username], iterations=4096)

    def _right(self, state: ConnectionState, credentials: Credentials) -> bool:
        match credentials:
            case PlainCredentials(_, user, _) | CramMD5Credentials(user, _, _):
                return user in self.passwords and credentials.verify(self.passwords[user])
            case TokenCredentials(user, token):
                return self.tokens.get(user) == token
            case ExternalCredentials():
                certificate: Any = state.tls and state.tls.getpeercert()
                names = {value for each in (certificate or {}).get("subject", ()) for _, value in each}
                return bool(names & self.certificates)
            case ScramCredentials() | AnonymousCredentials():
                return True


class InProcess:
    """A running server.  It stops with the `with` block, and no hook may have failed then.

    Args:
        loop_factory: makes its loop.
        session: the class of the sessions.
        auth: the SASL mechanisms that are offered.
        users: the other fields of `Users`.
        options: those of the server.

    Attributes:
        backend: its users and sessions.
        server: the server; its counters may be read.
        trace: all that was said, TLS removed and secrets masked.
    """

    def __init__(
        self,
        loop_factory: LoopFactory,
        *,
        session: type[Recording] = Recording,
        auth: tuple[str, ...] = (),
        users: dict[str, Any] | None = None,
        **options: Any,
    ) -> None:
        self.inbox = Inbox()
        self.trace = io.StringIO()
        self.backend = Users(self.inbox, auth, session=session, **(users or {}))
        ours: dict[str, Any] = {"addr": "127.0.0.1:0", "domain": "mx.example", "auth_failure_delay": 0}
        self.server = Server(self.backend, **ours | {"debug": self.trace} | options)
        self._loop_factory = loop_factory
        self._started: Future[asyncio.AbstractEventLoop] = Future()
        self._stop: asyncio.Event
        self._thread = threading.Thread(target=self._run, name="server")

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def place(self) -> str:
        return f"127.0.0.1:{self.port}"

    def wait(self, count: int = 1) -> list[Arrived]:
        """All messages that arrived, once there are so many."""
        arrived = self.inbox.wait(count)
        assert arrived is not None, f"{len(self.inbox.taken())} of {count} messages\n{self.trace.getvalue()}"
        return arrived

    def only(self) -> Arrived:
        """The one message that came; whoever sent it has its answer."""
        (arrived,) = self.wait()
        return arrived

    def said(self, who: str = "C") -> list[str]:
        """The lines that clients ("C") or the server ("S") said so far."""
        lines = (line.partition(" ")[2].partition(": ") for line in self.trace.getvalue().splitlines())
        return [text for each, _, text in lines if each == who]

    def __enter__(self) -> Self:
        self._thread.start()
        self._started.result(60)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._started.result().call_soon_threadsafe(self._stop.set)
        self._thread.join(60)
        assert not self._thread.is_alive(), "the server does not stop"
        if kind is None:
            assert self.server.counters.errors == 0, "a hook failed"

    def _run(self) -> None:
        try:
            with asyncio.Runner(loop_factory=self._loop_factory) as runner:
                runner.run(self._main())
        except BaseException as error:
            if self._started.done():
                raise
            self._started.set_exception(error)

    async def _main(self) -> None:
        self._stop = asyncio.Event()
        await self.server.start()
        self._started.set_result(asyncio.get_running_loop())
        await self._stop.wait()
        await self.server.shutdown(30)
