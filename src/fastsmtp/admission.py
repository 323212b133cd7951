"""Who the client is and what it may do: the shell's side of PROXY, the greeting, TLS, AUTH, XCLIENT and the choice of a session."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Final

from . import limits
from .authentication import Exchange, failure_delay, session_from
from .channel import Channel, no_answer
from .entrance import ProxyGate, start_tls
from .holds import AT_THE_GATE, ENDING, NOT_GREETED, PEER_IS_DEAF, SHAKING_HANDS
from .hooks import given_up, is_awaitable
from .protocol import Auth, AuthResponse, ClientIs, MailFrom, StartTLS, XClient
from .reply import AUTH_FAILED, EARLY_TALKER, HOOK_FAILED, TLS_UNAVAILABLE, TOO_MANY_AUTH_FAILURES, AuthRequired, Reply
from .session import Address, ConnectionState, Session
from .tracing import tracer

if TYPE_CHECKING:
    import ssl

    from .protocol.proxy import ProxyHeader
    from .server import Server

__all__ = ["Admission"]

_PROTOCOLS: Final = {"": "SMTP", "HELO": "SMTP", "EHLO": "ESMTP", "LHLO": "LMTP"}


class Admission(Channel):
    """The part of `Conn` that knows the client."""

    __slots__ = (
        "_auth_failures",
        "_client_unknown",
        "_end_point",
        "_exchange",
        "_implicit_tls",
        "_peername",
        "_proxy",
        "_sockname",
        "_tls",
        "_username",
        "_xclient",
    )

    def __init__(
        self, server: Server, loop: asyncio.AbstractEventLoop, implicit_tls: bool, sockname: Address = None
    ) -> None:
        Channel.__init__(self, server, loop)
        self._implicit_tls = implicit_tls
        self._peername: Address = None  # not asked for yet
        self._sockname = sockname
        self._tls: ssl.SSLObject | None = None
        self._proxy: ProxyHeader | None = None
        self._xclient: XClient | None = None
        self._client_unknown = False  # XCLIENT said that its address is not known
        self._end_point: bytes | None = None
        self._exchange: Exchange | None = None  # AUTH, while it goes on
        self._auth_failures = 0
        self._username: str | None = None  # None: nobody has authenticated

    # What sessions and backends use

    @property
    def state(self) -> ConnectionState:
        """What is known of the connection now."""
        core, xclient = self._core, self._xclient
        # In their order: by name they cost 1 us more, for each connection.
        return ConnectionState(
            core.hello or (xclient and xclient.helo) or "",
            self.remote_addr,
            self.local_addr,
            self._tls,
            _PROTOCOLS[core.hello_verb],
            self._username or (xclient and xclient.login) or "",
            self._proxy,
            xclient,
        )

    @property
    def remote_addr(self) -> Address:
        """The client's socket address, as PROXY or XCLIENT have it if they were allowed to; ("", 0) if they do not know it."""
        xclient = self._xclient
        if xclient is not None and xclient.addr is not None:
            return (xclient.addr, xclient.port or 0)
        return ("", 0) if self._client_unknown else self.peer_addr

    @property
    def peer_addr(self) -> Address:
        """The address of who speaks to us, which XCLIENT does not change: what decides whom to trust."""
        proxy = self._proxy
        if proxy is not None and proxy.command == "PROXY":
            # A Unix socket there is on the proxy's machine: none of those that "unix" trusts.
            return proxy.source if isinstance(proxy.source, tuple) else ("", 0)
        if self._peername is None:
            self._peername = self._transport.get_extra_info("peername")
        return self._peername

    @property
    def local_addr(self) -> Address:
        """The server's socket address, as PROXY or XCLIENT have it if they were allowed to."""
        xclient, proxy = self._xclient, self._proxy
        if xclient is not None and xclient.destaddr is not None:
            return (xclient.destaddr, xclient.destport or 0)
        if proxy is not None and proxy.destination is not None:
            return proxy.destination
        return self._sockname

    @property
    def username(self) -> str:
        """Who the client has authenticated as, "" for nobody."""
        return self._username or ""

    @property
    def tls_connection_state(self) -> ssl.SSLObject | None:
        """The TLS object, or None in plaintext."""
        return self._tls

    @property
    def end_point(self) -> bytes | None:
        """The channel binding of the certificate that the client was shown (RFC 5929 section 4.1), or None."""
        return self._end_point

    def withhold_auth(self, until_tls: bool) -> None:
        """AUTH is not offered, or only within TLS.  For the server."""
        self._core.auth_withheld = until_tls

    # The entrance

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport by type
        if self._sockname is None:
            self._learn_addresses()  # else when they are asked for: to make one costs 0.5 us
        server = self._server
        if server.options.debug is not None:
            self._core.trace = tracer(server.options.debug, f"{id(self):x}")
        refusal = self._roster.attach(self)
        self._renew()
        if server.proxies is not None and self.peer_addr in server.proxies:
            self._holds |= AT_THE_GATE
            self._deadline = self._roster.now + limits.PROXY_TIMEOUT
            self._transport.set_protocol(ProxyGate(self.conn, self._transport, refusal))
        else:
            self._admit(refusal)

    def _learn_addresses(self) -> None:
        """Keep them, since a TLS transport that is lost knows none, nor a Unix socket's."""
        self._peername = self._transport.get_extra_info("peername")
        if self._sockname is None:
            self._sockname = self._transport.get_extra_info("sockname")

    def proxied(self, header: ProxyHeader, rest: bytes, refusal: Reply | None) -> None:
        """The PROXY header has come, and `rest` behind it.  For the gate."""
        self._holds &= ~AT_THE_GATE
        self._proxy = header
        self._renew()
        self._admit(refusal, rest)

    def _admit(self, refusal: Reply | None, received: bytes = b"") -> None:
        """The client's address is known: is it welcome, and does it begin with TLS?"""
        if self._roster.by_address:
            refusal = self._roster.admit(self, self.remote_addr) or refusal
        if not self._implicit_tls:
            self._begin(refusal)
            if received:
                self.data_received(received)
        elif refusal is None and (context := self._server.tls_context()) is not None:
            self._call(Admission._begin, self._shake_hands, (context, received))
        else:
            self.close()  # a handshake only to say no would cost more than it is worth

    def _begin(self, refusal: Reply | None) -> None:
        """SMTP begins, after a while if so wanted."""
        delay = self._server.options.greeting_delay
        if delay and refusal is None:
            self._holds |= NOT_GREETED
            self._turn = self._loop.call_later(delay, self._begin_late)
        else:
            self._welcome(refusal)

    def _begin_late(self) -> None:
        self._turn = None
        self._holds &= ~NOT_GREETED
        if not self._holds & ENDING:
            self._welcome(EARLY_TALKER if self._core.buffered else None)

    def _welcome(self, refusal: Reply | None) -> None:
        if refusal is not None:
            self._greeted(refusal)
        elif self._server.session_on_connect:
            self._call(_GREETED, self._open)
        else:
            self._greeted(None)
        self._after()

    def _greeted(self, reply: Reply | None) -> None:
        server, session = self._server, self._session
        if not server.profile.alike or hasattr(session, "auth") or hasattr(session, "offer"):
            self._core.offer = server.offer_for(self.conn)
        if reply is not None and reply.accepted:
            reply = None
        if self._roster.observer is not None:
            if reply is None:
                self._roster.observe("connected", self)
            else:
                self._roster.observe("rejected", self, reply)
        self._core.greet(reply)

    # TLS

    def _start_tls(self, event: StartTLS) -> None:
        context = self._server.tls_context()
        if context is None:
            self._core.reply(TLS_UNAVAILABLE)
            return
        self._core.reply(None)
        self._flush()
        self._call(Admission._start_over, self._shake_hands, (context,))

    def _shake_hands(self, context: ssl.SSLContext, received: bytes = b"") -> Awaitable[Reply | None]:
        self._learn_addresses()
        self._core.begin_tls()
        self._end_point = getattr(self._server.options.tls, "end_point", None)  # goes with the context
        deaf = self._holds & PEER_IS_DEAF
        self._holds = self._holds & ~PEER_IS_DEAF | SHAKING_HANDS
        timeout = self._server.options.handshake_timeout
        handshake = start_tls(self._loop, self._transport, self.conn, context, timeout, received)
        if deaf:
            self._transport.get_protocol().pause_writing()  # as who has the transport will hear when that is over
        # Nobody else sees how it ends, so it is never cancelled: closing the transport ends it.
        return asyncio.shield(self._loop.create_task(self._secure(handshake)))

    async def _secure(self, handshake: Awaitable[asyncio.Transport | None]) -> Reply | None:
        transport = await handshake
        self._holds &= ~SHAKING_HANDS
        if transport is None:
            self._holds |= ENDING
        else:
            self._transport = transport
            self._tls = transport.get_extra_info("ssl_object")
            self._reading_paused = False
            self._server.counters.tls += 1
        return None

    def _start_over(self, reply: Reply | None) -> None:
        """TLS has begun: the client starts over, and a login is forgotten (RFC 3207 section 4.2)."""
        session, xclient = self._session, self._xclient
        known = self._username is not None
        self._username = None
        if xclient is not None:
            known = known or bool(xclient.login)
            self._xclient = replace(xclient, helo=None, login=None)  # but not its address: ours to trust is the proxy's
        if known:
            self._session = None  # the next one is asked for at MAIL
        self._core.offer = self._server.offer_for(self.conn)
        if session is not None:
            self._call(no_answer, session.logout if known else session.reset)

    # AUTH and XCLIENT

    def _auth(self, event: Auth) -> None:
        self._exchange = Exchange(self.conn, event.mechanism)
        self._call(Admission._auth_stepped, self._auth_step, (self._exchange, event.response))

    def _auth_response(self, event: AuthResponse) -> None:
        assert self._exchange is not None
        self._call(Admission._auth_stepped, self._auth_step, (self._exchange, event.response))

    async def _auth_step(self, exchange: Exchange, response: bytes | None) -> Reply | None:
        counted = exchange.refused
        reply = await exchange.step(response)
        session = exchange.session
        if reply is None and session is not None and session is not self._session:
            reply = await self._introduce(session)
        if not counted and (exchange.refused or (reply is not None and reply.code == 535)):
            self._auth_failures += 1
            self._server.counters.auth_failures += 1
            self._roster.observe("auth_failed", self)
            await asyncio.sleep(failure_delay(self._server.options.auth_failure_delay, self._auth_failures))
            if reply is None and self._has_failed_enough:
                reply = AUTH_FAILED  # instead of the challenge that would say why
        return reply

    @property
    def _has_failed_enough(self) -> bool:
        return self._auth_failures >= self._server.options.max_auth_failures > 0

    def _auth_stepped(self, reply: Reply | None) -> None:
        exchange = self._exchange
        assert exchange is not None
        if reply is None and exchange.session is None:
            self._core.challenge(exchange.challenge)
            return
        self._exchange = None
        self._core.reply(reply)
        if reply is None:
            before, self._session = self._session, exchange.session
            self._username = exchange.username
            self._core.offer = self._server.offer_for(self.conn)
            self._server.counters.authenticated += 1
            self._roster.observe("authenticated", self, self._username)
            if before is not None and before is not self._session:
                self._call(no_answer, before.logout)
        elif self._has_failed_enough and not self._core.closing:
            self._core.say(TOO_MANY_AUTH_FAILURES)

    def _client_is(self, event: ClientIs) -> None:
        self._xclient = xclient = (self._xclient or XClient()).updated(event.values)
        if "ADDR" in event.values:
            self._client_unknown = xclient.addr is None
        self._username = None
        self._call(Admission._reopened, self._reopen)

    async def _reopen(self) -> Reply | None:
        """XCLIENT: another client, so another session."""
        session, self._session = self._session, None
        if session is not None:
            await self._hooks.call(session, "logout")
        if not self._server.session_on_connect or given_up():
            return None
        reply: Reply | None = await self._hooks.call(self, "_open")
        return None if reply is None or reply.accepted else reply

    def _reopened(self, reply: Reply | None) -> None:
        self._core.offer = self._server.offer_for(self.conn)
        self._core.reply(reply)

    def _end(self) -> None:
        self._exchange = None  # it holds us
        Channel._end(self)

    # Sessions

    def _open(self) -> Any:
        """Ask for the anonymous session and its connect hook; the reply is the greeting."""
        factory = self._server.factory
        try:
            session: Any = factory() if factory is not None else self._server.backend.anonymous_login(self.state)
        except AuthRequired:
            return None  # the client may yet authenticate; MAIL asks again
        if not hasattr(session, "mail"):
            if is_awaitable(session):
                return self._open_later(session)
            session = session_from(session)
        self._session = session
        hook = getattr(session, "connect", None)
        return None if hook is None else hook(self.conn)

    async def _open_later(self, awaitable: Awaitable[Session]) -> Reply | None:
        try:
            session = session_from(await awaitable)
        except AuthRequired:
            return None
        if given_up():
            return await self._hooks.call(session, "logout")
        self._session = session
        return await self._hooks.call(session, "connect", self.conn)

    async def _open_and_mail(self, event: MailFrom) -> Reply | None:
        """A session that is made at its first MAIL sees connect and helo before it, as any other."""
        session: Any = self._server.backend.anonymous_login(self.state)
        if is_awaitable(session):
            session = await session
        reply = await self._introduce(session_from(session))
        if reply is not None:
            return reply
        self._session = session
        return await self._hooks.call(session, "mail", event.sender, event.params)

    async def _introduce(self, session: Session) -> Reply | None:
        """A session that comes late sees connect and helo first; a refusal by one of them, and then it is over at once."""
        welcome = False
        try:
            for name, argument in (("connect", self.conn), ("helo", self._core.hello)):
                if given_up():
                    return HOOK_FAILED
                reply = await self._hooks.call(session, name, argument)
                if reply is not None and not reply.accepted:
                    return reply
            welcome = not given_up()
        finally:
            if not welcome:
                await self._hooks.call(session, "logout")
        return None if welcome else HOOK_FAILED


_GREETED: Final = Admission._greeted  # looked up once
