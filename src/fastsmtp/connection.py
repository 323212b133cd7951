"""One connection: the protocol's shell under asyncio.

It feeds octets to the protocol, gives each event to the session's hook, and writes the replies: one write per batch of
input, but where RFC 2920 section 3.2 wants a reply at once.  A plain hook costs no task and no turn of the loop.  There are no
timers here: a connection keeps the moment at which its patience ends, and the server looks at it now and then.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from . import limits
from .authentication import Exchange, failure_delay
from .entrance import ProxyGate, start_tls
from .errors import MessageAborted
from .protocol import (
    Answered,
    Auth,
    AuthResponse,
    Body,
    ClientIs,
    Event,
    Expand,
    Hello,
    MailFrom,
    RcptTo,
    Reset,
    ServerProtocol,
    StartQueue,
    StartTLS,
    Verify,
    XClient,
    XForward,
)
from .reception import Reception
from .reply import (
    EARLY_TALKER,
    HOOK_FAILED,
    NOT_IMPLEMENTED,
    SHUTTING_DOWN,
    TIMED_OUT,
    TLS_UNAVAILABLE,
    TOO_MANY_AUTH_FAILURES,
    TOO_MANY_CONNECTIONS,
    EnhancedCode,
    Reply,
)
from .session import Address, ConnectionState, Session

if TYPE_CHECKING:
    import ssl

    from .protocol.proxy import ProxyHeader
    from .server import Server

__all__ = ["Conn"]

_FOREVER: Final = float("inf")

# Reasons to leave the input alone, kept in one number that is looked at after each event.
_HOOK_RUNS: Final = 1  # the next command waits for a hook
_PEER_IS_DEAF: Final = 2  # the peer does not read its replies
_OTHERS_TURN: Final = 4  # other connections get their turn first
_ENDING: Final = 8  # the last word is said, or the connection is lost
_SESSION_FULL: Final = 16  # the session has not read enough of its message
_AT_THE_GATE: Final = 32  # the PROXY header has not come
_NOT_GREETED: Final = 64  # the greeting waits on purpose
_PUNISHED: Final = 128  # the answers to refused commands do


class Conn(asyncio.Protocol):
    """A client's connection, as sessions and backends see it.

    The methods that asyncio calls (`connection_made` to `resume_writing`) are not for others.
    """

    __slots__ = (
        "_after_loss",
        "_auth_failures",
        "_core",
        "_deadline",
        "_eof",
        "_errors",
        "_exchange",
        "_holds",
        "_hooks",
        "_implicit_tls",
        "_line_waiter",
        "_loop",
        "_lost",
        "_proxy",
        "_reading_paused",
        "_reception",
        "_server",
        "_session",
        "_settle",
        "_task",
        "_transport",
        "_turn",
        "_username",
        "_xclient",
    )

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop, implicit_tls: bool = False) -> None:
        self._server = server
        self._hooks = server.hooks
        self._loop = loop
        self._core = ServerProtocol(server.profile)
        self._transport: asyncio.Transport
        self._session: Session | None = None
        self._task: asyncio.Task[Any] | None = None  # the hook that the next command waits for
        self._settle: Callable[[Reply | None], None] | None = None  # what to do with its reply
        self._reception: Reception | None = None  # the message that arrives
        self._after_loss: tuple[Callable[[Any], None], Event] | None = (
            None  # the command that waits for a lost message's hook
        )
        self._deadline = _FOREVER
        self._turn: asyncio.Handle | None = None  # the next turn at working on the input
        self._line_waiter: asyncio.Future[None] | None = None
        self._holds = 0
        self._reading_paused = False
        self._eof = False
        self._lost = False
        self._implicit_tls = implicit_tls
        self._proxy: ProxyHeader | None = None
        self._xclient: XClient | None = None
        self._exchange: Exchange | None = None  # AUTH, while it goes on
        self._auth_failures = 0
        self._errors = 0  # refused commands that the client has waited for
        self._username = ""

    # What sessions and backends use

    @property
    def server(self) -> Server:
        """The server that this connection belongs to."""
        return self._server

    @property
    def session(self) -> Session | None:
        """The session, or None before there is one."""
        return self._session

    def set_session(self, session: Session | None) -> None:
        """Put another session in place; a transaction that was begun is forgotten, the old session is not logged out."""
        self._core.reset_transaction()
        self._session = session

    @property
    def state(self) -> ConnectionState:
        """What is known of the connection now."""
        core, xclient = self._core, self._xclient
        return ConnectionState(
            hostname=core.hello or (xclient and xclient.helo) or "",
            remote_addr=self.remote_addr,
            local_addr=self.local_addr,
            tls=self.tls_connection_state,
            protocol={"EHLO": "ESMTP", "LHLO": "LMTP"}.get(core.hello_verb, "SMTP"),
            username=self._username or (xclient and xclient.login) or "",
            proxy=self._proxy,
            xclient=xclient,
        )

    @property
    def remote_addr(self) -> Address:
        """The client's socket address, as PROXY or XCLIENT have it if they were allowed to."""
        xclient = self._xclient
        if xclient is not None and xclient.addr is not None:
            return (xclient.addr, xclient.port or 0)
        return self.peer_addr

    @property
    def peer_addr(self) -> Address:
        """The address of who speaks to us, which XCLIENT does not change: what decides whom to trust."""
        proxy = self._proxy
        if proxy is not None and proxy.command == "PROXY":
            return proxy.source or ("", 0)
        address: Address = self._transport.get_extra_info("peername")
        return address

    @property
    def local_addr(self) -> Address:
        """The server's socket address, as PROXY or XCLIENT have it if they were allowed to."""
        xclient, proxy = self._xclient, self._proxy
        if xclient is not None and xclient.destaddr is not None:
            return (xclient.destaddr, xclient.destport or 0)
        if proxy is not None and proxy.destination is not None:
            return proxy.destination
        address: Address = self._transport.get_extra_info("sockname")
        return address

    @property
    def username(self) -> str:
        """Who the client has authenticated as, "" for nobody."""
        return self._username

    @property
    def xforward(self) -> XForward | None:
        """What a trusted peer said of the client behind it for this transaction, or None."""
        return self._core.xforward

    @property
    def tls_connection_state(self) -> ssl.SSLObject | None:
        """The TLS object, or None in plaintext."""
        tls: ssl.SSLObject | None = self._transport.get_extra_info("ssl_object")
        return tls

    @property
    def deadline(self) -> float:
        """The loop time at which the server loses patience."""
        return self._deadline

    def write_response(self, code: int, enhanced_code: EnhancedCode = EnhancedCode.NOT_SET, *text: str) -> None:
        """Send a reply at once, a line per text.  For extensions; 421 closes the connection."""
        self._core.say(Reply(code, enhanced_code, "\n".join(text)))
        self._flush()
        if self._core.closing:
            self._finish()

    async def read_line(self) -> bytes:
        """The next line from the client, without CR LF, while a hook runs.  For extensions.

        Raises:
            MessageAborted: the connection is lost.
        """
        while (line := self._core.read_line()) is None:
            if self._lost or self._eof or self._core.closing:
                raise MessageAborted("the connection is lost")
            self._line_waiter = self._loop.create_future()
            self._watch_reading()
            try:
                await self._line_waiter
            finally:
                self._line_waiter = None
        return line

    def withhold_auth(self, until_tls: bool) -> None:
        """AUTH is not offered, or only within TLS.  For the server."""
        self._core.auth_withheld = until_tls

    def reject(self, reply: Reply = TOO_MANY_CONNECTIONS) -> None:
        """Say 421 and close."""
        self.hang_up(reply, "the connection was rejected")

    def close(self) -> None:
        """Close now; what was written is still sent.  A message that is not whole is never delivered."""
        if not self._lost:
            self._holds |= _ENDING
            self._deadline = self._server.now + limits.LINGER
            self._transport.close()

    # asyncio's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """A client connected."""
        self._transport = transport  # type: ignore[assignment]  # uvloop's is no asyncio.Transport by type
        server = self._server
        if server.options.debug is not None:
            self._core.trace = self._trace
        refusal = server.attach(self)
        self._renew()
        if server.proxies and self.peer_addr in server.proxies:
            self._holds |= _AT_THE_GATE
            self._deadline = server.now + limits.PROXY_TIMEOUT
            self._transport.set_protocol(ProxyGate(self, self._transport))
        else:
            self._admit(refusal)

    def proxied(self, header: ProxyHeader) -> None:
        """The PROXY header has come.  For the gate."""
        self._holds &= ~_AT_THE_GATE
        self._proxy = header
        self._renew()
        self._admit(SHUTTING_DOWN if self._server.stopping else None)

    def _admit(self, refusal: Reply | None) -> None:
        """The client's address is known: is it welcome, and does it begin with TLS?"""
        refusal = self._server.admit(self) or refusal
        if not self._implicit_tls:
            self._begin(refusal)
        elif refusal is None and (context := self._server.tls_context()) is not None:
            self._call(self._begin, self._shake_hands, context)
        else:
            self.close()  # a handshake only to say no would cost more than it is worth

    def _begin(self, refusal: Reply | None) -> None:
        """SMTP begins, after a while if so wanted."""
        delay = self._server.options.greeting_delay
        if delay and refusal is None:
            self._holds |= _NOT_GREETED
            self._turn = self._loop.call_later(delay, self._begin_late)
        else:
            self._welcome(refusal)

    def _begin_late(self) -> None:
        self._turn = None
        self._holds &= ~_NOT_GREETED
        if not self._holds & _ENDING:
            self._welcome(EARLY_TALKER if self._core.buffered else None)

    def _welcome(self, refusal: Reply | None) -> None:
        if refusal is not None:
            self._greeted(refusal)
        elif self._server.session_on_connect:
            self._call(self._greeted, self._open)
        else:
            self._greeted(None)
        self._after()

    def data_received(self, data: bytes) -> None:
        """Octets arrived."""
        holds = self._holds
        if holds & _ENDING:
            return
        self._core.receive_data(data)
        if not holds:
            self._run()
        elif self._line_waiter is not None:
            self._wake_line_waiter()
        else:
            self._watch_reading()

    def eof_received(self) -> bool:
        """The client will send no more; whole commands before that are still answered."""
        if self._holds & _NOT_GREETED:
            self.close()
        self._eof = True
        self._wake_line_waiter()
        self._run()
        return not self._holds & _ENDING and not self._core.offer.tls  # under TLS nothing can be kept open

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        if self._lost:
            return
        self._lost = True
        self._holds |= _ENDING
        self._renew()
        if self._turn is not None:
            self._turn.cancel()
        self._wake_line_waiter()
        if self._task is not None:
            self._task.cancel()
        reception = self._reception
        if reception is not None:
            reception.lose("the connection was lost within the message")
            if self._core.lmtp and reception.waits_for_hook:
                # The client will try again; what is delivered now would come twice.
                reception.cancel()
        self._end()

    def pause_writing(self) -> None:
        """The client does not read its replies: do no more for it until it does."""
        self._holds |= _PEER_IS_DEAF
        timeout = self._server.options.write_timeout
        self._deadline = self._server.now + timeout if timeout else _FOREVER
        self._watch_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        self._holds &= ~_PEER_IS_DEAF
        if not self._holds & _ENDING:
            self._renew()
            self._run()

    # Working on the input

    def _run(self) -> None:
        """Work on what has been received until it is used up, a hook has to be waited for, or others want their turn."""
        core = self._core
        if not self._holds and (event := core.next_event()) is not None:
            budget = limits.COMMANDS_PER_TURN
            while True:
                _HANDLERS[type(event)](self, event)
                if self._holds:
                    break
                event = core.next_event()
                if event is None:
                    break
                if core.must_flush:
                    if core.errors != self._errors and self._punish(core.errors, event):
                        break
                    self._flush()
                budget -= 1
                if not budget:
                    self._holds |= _OTHERS_TURN
                    self._turn = self._loop.call_soon(self._next_turn, event)
                    break
            if not (core.in_body or self._holds & _HOOK_RUNS):
                self._renew()
        self._after()

    def _next_turn(self, event: Event | None = None) -> None:
        self._turn = None
        self._holds &= ~(_OTHERS_TURN | _PUNISHED)
        if self._holds & _ENDING:
            return
        if event is not None:
            _HANDLERS[type(event)](self, event)
        self._run()

    def _resume(self) -> None:
        """A message's reader has room, or its hook is done: go on, in a turn of our own."""
        reception = self._reception
        self._holds &= ~(_SESSION_FULL | _HOOK_RUNS)
        if self._lost:
            self._end()
            return
        if reception is not None and reception.answered:
            self._message_answered(reception)
        elif self._after_loss is not None:
            then, event = self._after_loss
            self._after_loss = self._reception = None
            then(event)
        self._renew()
        if self._turn is None:
            self._holds |= _OTHERS_TURN
            self._turn = self._loop.call_soon(self._next_turn)

    def _after(self) -> None:
        """Send what is to be said and see whether to read on, or to end."""
        holds = self._holds
        if holds & (_ENDING | _PUNISHED):
            return
        core = self._core
        if core.errors != self._errors and self._punish(core.errors):
            return
        data = core.data_to_send()
        if data:
            self._transport.write(data)
        if core.closing:
            self._finish()
        elif self._eof and not (holds or core.awaiting_reply):
            self.close()
        elif self._server.stopping and not (holds & _HOOK_RUNS or core.in_body):
            self.hang_up()
        elif self._reading_paused or holds:
            self._watch_reading()

    def _punish(self, errors: int, event: Event | None = None) -> bool:
        """Commands were refused: the client waits for the answer, if so wanted, and with it the event behind them."""
        self._errors = errors
        delay = self._server.options.error_delay
        if not delay or self._turn is not None:
            return False
        self._holds |= _PUNISHED
        self._turn = self._loop.call_later(delay, self._next_turn, event)
        self._watch_reading()
        return True

    def _flush(self) -> None:
        data = self._core.data_to_send()
        if data and not self._holds & _ENDING:
            self._transport.write(data)

    def _watch_reading(self) -> None:
        """Read from the socket only what can be worked on, or little enough to keep."""
        if self._holds & _ENDING or self._eof:
            return
        full = self._core.buffered >= limits.BODY_HIGH_WATER and self._line_waiter is None
        wanted = not (full or self._holds & ~_HOOK_RUNS)
        if wanted is self._reading_paused:
            self._reading_paused = not wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _wake_line_waiter(self) -> None:
        if self._line_waiter is not None and not self._line_waiter.done():
            self._line_waiter.set_result(None)

    # Events

    def _answered(self, event: Answered) -> None:
        if self._core.in_body and self._reception is None:
            self._renew()  # DATA or the first BDAT: the message's own deadline begins

    def _hello(self, event: Hello) -> None:
        if self._reception is not None:
            self._drop_message(self._hello, event)
            return
        session = self._session
        if session is not None and event.again:
            self._call(self._core.reply, self._greet_again, session, event.name)
        else:
            self._optional(session, "helo", event.name)

    async def _greet_again(self, session: Session, name: str) -> Reply | None:
        reply = await self._hooks.call(session, "helo", name)
        if reply is None or reply.accepted:
            # Accepted: it is a RSET as well (RFC 5321 4.1.4); a refused one changes nothing.
            await self._hooks.call(session, "reset")
        return reply

    def _mail(self, event: MailFrom) -> None:
        session = self._session
        if session is None:
            self._call(self._settle_counted, self._open_and_mail, event)
        else:
            self._call(self._settle_counted, session.mail, event.sender, event.params)

    def _rcpt(self, event: RcptTo) -> None:
        session = self._session
        assert session is not None
        self._call(self._settle_counted, session.rcpt, event.recipient, event.params)

    def _settle_counted(self, reply: Reply | None) -> None:
        if reply is not None and reply.code >= 400:
            self._server.rejected(self, reply)
        self._core.reply(reply)

    def _reset(self, event: Reset) -> None:
        if self._reception is not None:
            self._drop_message(self._reset, event)
            return
        self._optional(self._session, "reset")

    def _verify(self, event: Verify) -> None:
        self._optional(self._session, "vrfy", event.argument)

    def _expand(self, event: Expand) -> None:
        self._optional(self._session, "expn", event.argument, missing=NOT_IMPLEMENTED)

    def _start_queue(self, event: StartQueue) -> None:
        self._optional(self._session, "etrn", event.node, missing=NOT_IMPLEMENTED)

    def _optional(self, session: Session | None, name: str, *arguments: object, missing: Reply | None = None) -> None:
        hook = getattr(session, name, None)
        if hook is None:
            self._core.reply(missing)
        else:
            self._call(self._core.reply, hook, *arguments)

    def _body(self, event: Body) -> None:
        reception = self._reception
        if reception is None:
            assert self._session is not None
            reception = self._reception = Reception(self, self._core, self._session, self._hooks, self._resume)
        reception.receive(self._loop, event)
        if reception.answered:
            self._message_answered(reception)
        elif reception.waits_for_hook:
            self._holds |= _SESSION_FULL if reception.stalled else _HOOK_RUNS
            self._renew()
        elif not event.ended:
            # What arrives buys time at the least rate, up to the time-out for silence.
            options = self._server.options
            if options.min_body_rate:
                self._deadline += event.octets / options.min_body_rate
            if not options.min_body_rate or self._deadline > self._server.now + options.read_timeout:
                self._renew()

    def _drop_message(self, then: Callable[[Any], None], event: Event) -> None:
        """The client gives up a message between two chunks: first its hook ends, then the command is done."""
        reception = self._reception
        assert reception is not None
        self._core.reset_transaction()
        reception.lose("the client gave the message up")
        if reception.running:
            self._holds |= _HOOK_RUNS
            self._after_loss = (then, event)
            self._renew()
        else:
            self._reception = None
            then(event)

    def _message_answered(self, reception: Reception) -> None:
        self._reception = None
        session = self._session
        if session is not None:
            self._call(_no_answer, session.reset)

    # TLS and who the client is

    def _start_tls(self, event: StartTLS) -> None:
        context = self._server.tls_context()
        if context is None:
            self._core.reply(TLS_UNAVAILABLE)
            return
        self._core.reply(None)
        self._flush()
        self._call(self._start_over, self._shake_hands, context)

    def _shake_hands(self, context: ssl.SSLContext) -> Awaitable[Reply | None]:
        self._core.begin_tls()
        self._holds &= ~_PEER_IS_DEAF
        timeout = self._server.options.handshake_timeout
        return self._secure(start_tls(self._loop, self._transport, self, context, timeout))

    async def _secure(self, handshake: Awaitable[asyncio.Transport | None]) -> Reply | None:
        transport = await handshake
        if transport is None:
            self._holds |= _ENDING
        else:
            self._transport = transport
            self._reading_paused = False
            self._server.counters.tls += 1
        return None

    def _start_over(self, reply: Reply | None) -> None:
        """TLS has begun: the client starts over, and a login is forgotten (RFC 3207 section 4.2)."""
        session = self._session
        self._core.offer = self._server.offer_for(self)
        if session is None:
            return
        if self._username:
            self._username = ""
            self._session = None  # the next one is asked for at MAIL
            self._call(_no_answer, session.logout)
        else:
            self._call(_no_answer, session.reset)

    def _auth(self, event: Auth) -> None:
        self._exchange = Exchange(self, event.mechanism)
        self._call(self._auth_stepped, self._auth_step, self._exchange, event.response)

    def _auth_response(self, event: AuthResponse) -> None:
        assert self._exchange is not None
        self._call(self._auth_stepped, self._auth_step, self._exchange, event.response)

    async def _auth_step(self, exchange: Exchange, response: bytes | None) -> Reply | None:
        reply = await exchange.step(response)
        session = exchange.session
        if reply is None and session is not None and session is not self._session:
            reply = await self._introduce(session)
            if reply is None:
                before, self._session = self._session, session
                if before is not None:
                    await self._hooks.call(before, "logout")
        if reply is not None and reply.code == 535:
            self._auth_failures += 1
            self._server.counters.auth_failures += 1
            self._server.observe("auth_failed", self)
            await asyncio.sleep(failure_delay(self._server.options.auth_failure_delay, self._auth_failures))
        return reply

    def _auth_stepped(self, reply: Reply | None) -> None:
        exchange = self._exchange
        assert exchange is not None
        if reply is None and exchange.session is None:
            self._core.challenge(exchange.challenge)
            return
        self._exchange = None
        self._core.reply(reply)
        if reply is None:
            self._username = exchange.username
            self._core.offer = self._server.offer_for(self)
            self._server.counters.authenticated += 1
            self._server.observe("authenticated", self, self._username)
        elif self._auth_failures >= self._server.options.max_auth_failures > 0 and not self._core.closing:
            self._core.say(TOO_MANY_AUTH_FAILURES)

    def _client_is(self, event: ClientIs) -> None:
        self._xclient = (self._xclient or XClient()).updated(event.values)
        self._username = ""
        self._call(self._core.reply, self._reopen)

    async def _reopen(self) -> Reply | None:
        """XCLIENT: another client, so another session."""
        session, self._session = self._session, None
        if session is not None:
            await self._hooks.call(session, "logout")
        if not self._server.session_on_connect:
            return None
        reply: Reply | None = await self._hooks.call(self, "_open")
        return None if reply is None or reply.accepted else reply

    # Sessions

    def _open(self) -> Any:
        """Ask for the anonymous session and its connect hook; the reply is the greeting."""
        session: Any = self._server.backend.anonymous_login(self.state)
        if inspect.isawaitable(session):
            return self._open_later(session)
        self._session = session
        hook = getattr(session, "connect", None)
        return None if hook is None else hook(self)

    async def _open_later(self, session: Awaitable[Session]) -> Reply | None:
        self._session = opened = await session
        return await self._hooks.call(opened, "connect", self)

    async def _open_and_mail(self, event: MailFrom) -> Reply | None:
        """A session that is made at its first MAIL sees connect and helo before it, as any other."""
        session: Any = self._server.backend.anonymous_login(self.state)
        if inspect.isawaitable(session):
            session = await session
        reply = await self._introduce(session)
        if reply is not None:
            return reply
        self._session = session
        return await self._hooks.call(session, "mail", event.sender, event.params)

    async def _introduce(self, session: Session) -> Reply | None:
        """A session that comes late sees connect and helo first; a refusal by one of them."""
        for name, argument in (("connect", self), ("helo", self._core.hello)):
            reply = await self._hooks.call(session, name, argument)
            if reply is not None and not reply.accepted:
                return reply
        return None

    def _greeted(self, reply: Reply | None) -> None:
        server = self._server
        self._core.offer = server.offer_for(self)
        if reply is not None and reply.accepted:
            reply = None
        if server.observer is not None:
            if reply is None:
                server.observe("connected", self)
            else:
                server.observe("rejected", self, reply)
        self._core.greet(reply)

    def _end(self) -> None:
        """The connection is lost: once no hook runs, tell the session, once, and the server."""
        if self._task is not None or (self._reception is not None and self._reception.running):
            return
        self._reception = None
        session, self._session = self._session, None
        if session is None:
            self._server.detach(self)
        else:
            self._call(_no_answer, session.logout)
            if self._task is None:
                self._server.detach(self)

    # Hooks

    def _call(self, settle: Callable[[Reply | None], None], hook: Callable[..., Any], *arguments: object) -> None:
        """Call a hook and settle its reply, now if it does not suspend, else when it is done."""
        try:
            result = hook(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a session raises is answered
            settle(self._hooks.failure(error, hook))
            return
        if result is not None and type(result) is not Reply:
            if inspect.isawaitable(result):
                task = self._hooks.start(self._loop, result)
                if not task.done():
                    self._settle = settle
                    self._task = task
                    self._holds |= _HOOK_RUNS
                    self._renew()
                    task.add_done_callback(self._hook_done)
                    return
                result = self._hooks.outcome(task)
            else:
                result = self._hooks.checked(result)
        settle(result)

    def _hook_done(self, task: asyncio.Task[Any]) -> None:
        if task is not self._task:
            if not task.cancelled():
                task.exception()  # given up on; it may end as it likes
            return
        settle = self._settle
        assert settle is not None
        self._task = self._settle = None
        self._holds &= ~_HOOK_RUNS
        reply = self._hooks.outcome(task)
        if self._lost:
            self._end()
        elif not self._holds & _ENDING:
            settle(reply)
            self._renew()
            self._run()

    # Patience

    def _renew(self) -> None:
        """A new deadline for what is waited for now; a deaf peer's own goes on."""
        holds = self._holds
        if self._lost or not holds & _PEER_IS_DEAF:
            options = self._server.options
            hook = self._lost or holds & (_HOOK_RUNS | _SESSION_FULL)
            timeout = options.hook_timeout if hook else options.read_timeout
            self._deadline = self._server.now + timeout if timeout else _FOREVER

    def timed_out(self) -> None:
        """The server's patience has ended: what for depends on what the connection is doing."""
        self._deadline = _FOREVER
        reception = self._reception
        if self._lost:
            self._hooks.given_up("after its connection was lost")
            self._abandon()
        elif self._holds & (_ENDING | _PEER_IS_DEAF | _AT_THE_GATE):
            self._transport.abort()
        elif self._task is not None:
            settle = self._settle
            assert settle is not None
            self._hooks.given_up("a command's")
            self._cancel()
            settle(HOOK_FAILED)
            self._renew()
            self._run()
        elif reception is not None and reception.waits_for_hook:
            reception.give_up()
            self._resume()
        else:
            self.hang_up(TIMED_OUT, "timed out within the message")

    def hang_up(self, reply: Reply = SHUTTING_DOWN, why: str = "the server is stopping") -> None:
        """Say 421 and close; a message that is not whole is lost to its session."""
        if self._holds & _ENDING:
            return
        if self._reception is not None:
            self._reception.lose(why)
        self._core.say(reply)
        self._flush()
        self._finish()

    def shut_down(self) -> None:
        """Hang up now if nothing is being done for the client; else `_after` does as soon as that is done."""
        if not (self._core.in_body or self._task is not None):
            self.hang_up()

    def abort(self) -> None:
        """Drop the connection and its hooks at once."""
        self._holds |= _ENDING
        if not self._lost:
            self._transport.abort()
        self._abandon()

    def _cancel(self) -> None:
        task, self._task = self._task, None
        self._settle = None
        self._holds &= ~_HOOK_RUNS
        if task is not None:
            task.cancel()

    def _abandon(self) -> None:
        """Cancel what runs and wait for it no more."""
        self._cancel()
        if self._reception is not None:
            self._reception.cancel()
        if self._lost:
            self._end()

    def _finish(self) -> None:
        """Close after a last reply, so that the client gets to see it.

        Closing a socket with unread input sends RST, which may overtake the reply; so after a 421 our side is shut first and the
        client's rest is read and dropped until it closes, or for `limits.LINGER` seconds.
        """
        if self._holds & _ENDING:
            return
        self._holds |= _ENDING
        if self._task is not None:
            self._task.cancel()
        self._deadline = self._server.now + limits.LINGER
        if self._core.quit or self._eof or not self._transport.can_write_eof():
            self._transport.close()
            return
        try:
            self._transport.write_eof()
            if self._reading_paused:
                self._reading_paused = False
                self._transport.resume_reading()
        except (OSError, RuntimeError):  # it is gone, which we will be told in a moment
            self._transport.close()

    def _trace(self, who: str, octets: bytes) -> None:
        debug = self._server.options.debug
        if debug is not None:
            for line in octets.decode("utf-8", "backslashreplace").removesuffix("\r\n").split("\r\n"):
                safe = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in line)
                debug.write(f"{id(self):x} {who}: {safe}\n")


def _no_answer(reply: Reply | None) -> None:
    """reset and logout answer nobody."""


_HANDLERS: Final[dict[type[Event], Callable[[Conn, Any], None]]] = {
    Answered: Conn._answered,
    Hello: Conn._hello,
    MailFrom: Conn._mail,
    RcptTo: Conn._rcpt,
    Body: Conn._body,
    Reset: Conn._reset,
    Verify: Conn._verify,
    Expand: Conn._expand,
    StartQueue: Conn._start_queue,
    StartTLS: Conn._start_tls,
    Auth: Conn._auth,
    AuthResponse: Conn._auth_response,
    ClientIs: Conn._client_is,
}
