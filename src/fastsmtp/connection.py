# cython: annotation_typing=True
# Where this is compiled, `event: MailFrom` is a type: its attributes are read without a look-up.
"""One connection, as sessions and backends see it: each event of the protocol becomes a call of a hook."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, ClassVar, Final

from .admission import Admission
from .channel import no_answer
from .holds import HOOK_RUNS, OTHERS_TURN, SESSION_FULL
from .protocol.events import (
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
    StartQueue,
    StartTLS,
    Verify,
)
from .protocol.xforward import XForward
from .reception import Reception
from .reply import NOT_IMPLEMENTED, TOO_MANY_CONNECTIONS, Reply
from .session import Address, Session

if TYPE_CHECKING:
    from .server import Server

__all__ = ["Conn"]


class Conn(Admission):
    """A client's connection, as sessions and backends see it.

    The methods that asyncio calls (`connection_made` to `resume_writing`) are not for others.
    """

    __slots__ = ("_after_loss",)

    def __init__(
        self,
        server: Server,
        loop: asyncio.AbstractEventLoop,
        implicit_tls: bool = False,
        sockname: Address = None,
    ) -> None:
        Admission.__init__(self, server, loop, implicit_tls, sockname)
        # The command that waits for a lost message's hook.
        self._after_loss: tuple[Callable[[Any], None], Event] | None = None

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
    def xforward(self) -> XForward | None:
        """What a trusted peer said of the client behind it for this transaction, or None."""
        return self._core.xforward

    def reject(self, reply: Reply = TOO_MANY_CONNECTIONS) -> None:
        """Say 421 and close."""
        self.hang_up(reply, "the connection was rejected")

    # Greetings and envelopes

    def _answered(self, event: Answered) -> None:
        if self._core.in_body and self._reception is None:
            self._renew()  # DATA or the first BDAT: the message's own deadline begins

    def _hello(self, event: Hello) -> None:
        if self._reception is not None:
            self._drop_message(self._hello, event)
            return
        session = self._session
        if session is not None and event.again:
            self._call(_SETTLED, self._greet_again, (session, event.name))
            return
        hook = getattr(session, "helo", None)
        if hook is None:
            self._core.reply(None)
        else:
            self._call(_SETTLED, hook, (event.name,))

    async def _greet_again(self, session: Session, name: str) -> Reply | None:
        reply = await self._hooks.call(session, "helo", name)
        if reply is None or reply.accepted:
            # Accepted: it is a RSET as well (RFC 5321 4.1.4); a refused one changes nothing.
            await self._hooks.call(session, "reset")
        return reply

    def _mail(self, event: MailFrom) -> None:
        session = self._session
        if session is None:
            self._call(_SETTLE_COUNTED, self._open_and_mail, (event,))
        else:
            self._call(_SETTLE_COUNTED, session.mail, (event.sender, event.params))

    def _rcpt(self, event: RcptTo) -> None:
        session = self._session
        assert session is not None
        self._call(_SETTLE_COUNTED, session.rcpt, (event.recipient, event.params))

    def _settled(self, reply: Reply | None) -> None:
        self._core.reply(reply)

    def _settle_counted(self, reply: Reply | None) -> None:
        if reply is not None and reply.code >= 400:
            self._roster.rejected(self, reply)
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
            self._call(_SETTLED, hook, arguments)

    # Messages

    def _body(self, event: Body) -> None:
        reception = self._reception
        if reception is None:
            assert self._session is not None
            reception = self._reception = Reception(
                self, self._core, self._roster, self._session, self._hooks, self._resume
            )
        reception.receive(self._loop, event)
        if reception.answered:
            self._message_answered()
        elif reception.waits_for_hook:
            self._holds |= SESSION_FULL if reception.stalled else HOOK_RUNS
            self._renew()
        elif not event.ended:
            # What arrives buys time at the least rate, up to the time-out for silence.
            options = self._server.options
            if options.min_body_rate:
                self._deadline += event.octets / options.min_body_rate
            if not options.min_body_rate or self._deadline > self._roster.now + options.read_timeout:
                self._renew()

    def _drop_message(self, then: Callable[[Any], None], event: Event) -> None:
        """The client gives up a message between two chunks: first its hook ends, then the command is done."""
        reception = self._reception
        assert reception is not None
        self._core.reset_transaction()
        reception.lose("the client gave the message up")
        if reception.running:
            self._holds |= HOOK_RUNS
            self._after_loss = (then, event)
            self._renew()
        else:
            self._reception = None
            then(event)

    def _message_answered(self) -> None:
        self._reception = None
        session = self._session
        if session is not None:
            self._call(no_answer, session.reset)

    def _resume(self) -> None:
        """A message's reader has room, or its hook is done: go on, in a turn of our own."""
        reception = self._reception
        self._holds &= ~(SESSION_FULL | HOOK_RUNS)
        if self._lost:
            self._end()
            return
        if reception is not None and reception.answered:
            self._message_answered()
        elif self._after_loss is not None:
            then, event = self._after_loss
            self._after_loss = self._reception = None
            then(event)
        self._renew()
        if self._turn is None:
            self._holds |= OTHERS_TURN
            self._turn = self._loop.call_soon(self._next_turn)

    _handlers: ClassVar = {
        Answered: _answered,
        Hello: _hello,
        MailFrom: _mail,
        RcptTo: _rcpt,
        Body: _body,
        Reset: _reset,
        Verify: _verify,
        Expand: _expand,
        StartQueue: _start_queue,
        StartTLS: Admission._start_tls,
        Auth: Admission._auth,
        AuthResponse: Admission._auth_response,
        ClientIs: Admission._client_is,
    }


# Looked up once.
_SETTLED: Final = Conn._settled
_SETTLE_COUNTED: Final = Conn._settle_counted
