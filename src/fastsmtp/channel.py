"""A connection's octets and time: the protocol's shell under asyncio, whatever the commands mean.

It feeds octets to the protocol, gives each event to its handler, and writes the replies: one write per batch of
input, but where RFC 2920 section 3.2 wants a reply at once.  A plain hook costs no task and no turn of the loop.  There are no
timers here: a connection keeps the moment at which its patience ends, and the server looks at it now and then.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import socket
import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Final

from .errors import MessageAborted
from .holds import (
    AT_THE_GATE,
    ENDING,
    HOOK_RUNS,
    NOT_GREETED,
    OTHERS_TURN,
    PEER_IS_DEAF,
    PUNISHED,
    SESSION_FULL,
    SHAKING_HANDS,
)
from .hooks import is_awaitable
from .limits import BODY_HIGH_WATER, COMMANDS_PER_TURN, LINGER
from .protocol import Event
from .protocol.server import ServerProtocol
from .reception import Reception
from .reply import HOOK_FAILED, SHUTTING_DOWN, TIMED_OUT, EnhancedCode, Reply
from .roster import Roster
from .session import Session

if TYPE_CHECKING:
    from .connection import Conn
    from .server import Server

__all__ = ["Channel", "no_answer"]

_FOREVER: Final = float("inf")


class Channel:
    """The part of `Conn` that reads, writes, calls hooks and loses patience.

    An `asyncio.Protocol` in all but name: a compiled class cannot have an interpreted one for its base.
    """

    __slots__ = (
        "_core",
        "_deadline",
        "_eof",
        "_errors",
        "_holds",
        "_hooks",
        "_line_waiter",
        "_loop",
        "_lost",
        "_reading_paused",
        "_reception",
        "_roster",
        "_server",
        "_session",
        "_settle",
        "_task",
        "_transport",
        "_turn",
    )

    _handlers: ClassVar[Mapping[type[Event], Callable[[Any, Any], None]]] = {}
    """What to do at each event."""

    def __init__(self, server: Server, loop: asyncio.AbstractEventLoop) -> None:
        self._server = server
        self._roster: Roster = server.roster
        self._hooks = server.hooks
        self._loop = loop
        self._core = ServerProtocol(server.profile)
        self._transport: asyncio.Transport
        self._session: Session | None = None
        self._task: asyncio.Task[Any] | None = None  # the hook that the next command waits for
        self._settle: Callable[[Any, Reply | None], None] | None = None  # what to do with its reply
        self._reception: Reception | None = None  # the message that arrives
        self._deadline = _FOREVER
        self._turn: asyncio.Handle | None = None  # the next turn at working on the input
        self._line_waiter: asyncio.Future[None] | None = None
        self._holds = 0
        self._reading_paused = False
        self._eof = False
        self._lost = False
        self._errors = 0  # refused commands that the client has waited for

    @property
    def conn(self) -> Conn:
        """This, as sessions see it."""
        return self  # type: ignore[return-value]  # no other class of this family is ever made

    @property
    def protocol(self) -> asyncio.Protocol:
        """This, as asyncio sees it: by its methods."""
        return self  # type: ignore[return-value]

    def _resume(self) -> None:
        """A message's reader has room, or its hook is done: go on, in a turn of our own."""
        raise NotImplementedError

    # What sessions and backends use

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

    def close(self) -> None:
        """Close now; what was written is still sent.  A message that is not whole is never delivered."""
        if not self._lost:
            self._holds |= ENDING
            self._deadline = self._roster.now + LINGER
            self._transport.close()

    # asyncio's side

    def data_received(self, data: bytes) -> None:
        """Octets arrived."""
        if self._holds & ENDING:
            return
        self._core.receive_data(data)
        if not self._holds:
            self._run()
        elif self._line_waiter is not None:
            self._wake_line_waiter()
        else:
            self._watch_reading()

    def eof_received(self) -> bool:
        """The client will send no more; whole commands before that are still answered."""
        if self._core.lmtp and _hung_up(self._transport):
            return False  # so it is lost: who waits for no reply will send all again
        if self._holds & NOT_GREETED:
            self.close()
        self._eof = True
        self._wake_line_waiter()
        self._run()
        # Under TLS nothing can be kept open.
        return not self._holds & (ENDING | SHAKING_HANDS) and self.conn.tls_connection_state is None

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone."""
        if self._lost:
            return
        self._lost = True
        self._holds |= ENDING
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
                reception.interrupt()
        self._end()

    def pause_writing(self) -> None:
        """The client does not read its replies: do no more for it until it does."""
        self._holds |= PEER_IS_DEAF
        timeout = self._server.options.write_timeout
        self._deadline = self._roster.now + timeout if timeout else _FOREVER
        self._watch_reading()

    def resume_writing(self) -> None:
        """It reads again."""
        self._holds &= ~PEER_IS_DEAF
        if not self._holds & ENDING:
            self._renew()
            self._run()

    # Working on the input

    def _run(self) -> None:
        """Work on what has been received until it is used up, a hook has to be waited for, or others want their turn."""
        core = self._core
        if not self._holds and (event := core.next_event()) is not None:
            handlers = self._handlers
            budget = COMMANDS_PER_TURN
            while True:
                handlers[type(event)](self, event)
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
                    self._holds |= OTHERS_TURN
                    self._turn = self._loop.call_soon(self._next_turn, event)
                    break
            if not (core.in_body or self._holds & HOOK_RUNS):
                self._renew()
        self._after()

    def _next_turn(self, event: Event | None = None) -> None:
        self._turn = None
        self._holds &= ~(OTHERS_TURN | PUNISHED)
        if self._holds & ENDING:
            return
        if event is not None:
            self._handlers[type(event)](self, event)
        self._run()

    def _after(self) -> None:
        """Send what is to be said and see whether to read on, or to end."""
        holds = self._holds
        if holds & (ENDING | PUNISHED):
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
        elif self._roster.stopping and not (holds & HOOK_RUNS or core.in_body):
            self.hang_up()
        elif self._reading_paused or holds:
            self._watch_reading()

    def _punish(self, errors: int, event: Event | None = None) -> bool:
        """Commands were refused: the client waits for the answer, if so wanted, and with it the event behind them."""
        self._errors = errors
        delay = self._server.options.error_delay
        if not delay or self._turn is not None:
            return False
        self._holds |= PUNISHED
        self._turn = self._loop.call_later(delay, self._next_turn, event)
        self._watch_reading()
        return True

    def _flush(self) -> None:
        data = self._core.data_to_send()
        if data and not self._holds & ENDING:
            self._transport.write(data)

    def _watch_reading(self) -> None:
        """Read from the socket only what can be worked on, or little enough to keep."""
        if self._holds & (ENDING | SHAKING_HANDS) or self._eof:
            return
        full = self._core.buffered >= BODY_HIGH_WATER and self._line_waiter is None
        wanted = not (full or self._holds & ~HOOK_RUNS)
        if wanted is self._reading_paused:
            self._reading_paused = not wanted
            if wanted:
                self._transport.resume_reading()
            else:
                self._transport.pause_reading()

    def _wake_line_waiter(self) -> None:
        if self._line_waiter is not None and not self._line_waiter.done():
            self._line_waiter.set_result(None)

    # Hooks

    def _call(
        self, settle: Callable[[Any, Reply | None], None], hook: Callable[..., Any], arguments: tuple[object, ...] = ()
    ) -> None:
        """Call a hook and settle its reply, now if it does not suspend, else when it is done.

        `settle` is called with the connection and the reply: a method that is not bound, which costs nothing to make.
        """
        try:
            result = hook(*arguments)
        except Exception as error:  # noqa: BLE001 - whatever a session raises is answered
            settle(self, self._hooks.failure(error, hook))
            return
        if result is not None and type(result) is not Reply:
            if is_awaitable(result):
                task = self._hooks.start(self._loop, result)
                if not task.done():
                    self._settle = settle
                    self._task = task
                    self._holds |= HOOK_RUNS
                    self._renew()
                    task.add_done_callback(self._hook_done)
                    return
                result = self._hooks.outcome(task)
            else:
                result = self._hooks.checked(result)
        settle(self, result)

    def _hook_done(self, task: asyncio.Task[Any]) -> None:
        if task is not self._task:
            if not task.cancelled():
                task.exception()  # given up on; it may end as it likes
            return
        settle = self._settle
        assert settle is not None
        self._task = self._settle = None
        self._holds &= ~HOOK_RUNS
        reply = self._hooks.outcome(task)
        if self._lost:
            self._end()
        elif not self._holds & ENDING:
            settle(self, reply)
            self._renew()
            self._run()

    # Patience and ends

    def _renew(self) -> None:
        """A new deadline for what is waited for now; a deaf peer's own goes on."""
        holds = self._holds
        roster = self._roster
        if not (holds or self._lost) and roster.read_timeout:
            self._deadline = roster.now + roster.read_timeout  # what it nearly always is
        elif self._lost or not holds & PEER_IS_DEAF:
            options = self._server.options
            hook = self._lost or holds & (HOOK_RUNS | SESSION_FULL)
            timeout = options.hook_timeout if hook else options.read_timeout
            if holds & SHAKING_HANDS and not self._lost:
                timeout = 0  # the loop sees to it
            self._deadline = roster.now + timeout if timeout else _FOREVER

    def timed_out(self) -> None:
        """The server's patience has ended: what for depends on what the connection is doing."""
        self._deadline = _FOREVER
        reception = self._reception
        if self._lost:
            self._hooks.given_up("after its connection was lost")
            self._abandon()
        elif self._holds & (ENDING | PEER_IS_DEAF | AT_THE_GATE):
            if self._holds & (ENDING | AT_THE_GATE) == AT_THE_GATE:
                self._server.counters.proxy_failures += 1
            _drop_unsent(self._transport)
            self._transport.abort()
        elif self._task is not None:
            settle = self._settle
            assert settle is not None
            self._hooks.given_up("a command's")
            self._cancel()
            settle(self, HOOK_FAILED)
            self._renew()
            self._run()
        elif reception is not None and reception.waits_for_hook:
            reception.give_up()
            self._resume()
        else:
            self.hang_up(TIMED_OUT, "timed out within the message")

    def hang_up(self, reply: Reply = SHUTTING_DOWN, why: str = "the server is stopping") -> None:
        """Say 421 and close; a message that is not whole is lost to its session."""
        if self._holds & ENDING:
            return
        if self._holds & (AT_THE_GATE | SHAKING_HANDS):
            self.close()  # without a word: neither who it is nor whether TLS comes first is known
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
        self._holds |= ENDING
        if not self._lost:
            self._transport.abort()
        self._abandon()

    def _cancel(self) -> None:
        task, self._task = self._task, None
        self._settle = None
        self._holds &= ~HOOK_RUNS
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
        client's rest is read and dropped until it closes, or for `LINGER` seconds.
        """
        if self._holds & ENDING:
            return
        self._holds |= ENDING
        if self._task is not None:
            self._task.cancel()
        self._deadline = self._roster.now + LINGER
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

    def _end(self) -> None:
        """The connection is lost: once no hook runs, tell the session, once, and the server."""
        if self._task is not None or (self._reception is not None and self._reception.running):
            return
        self._reception = None
        session, self._session = self._session, None
        if session is None:
            self._roster.detach(self)
        else:
            self._call(no_answer, session.logout)
            if self._task is None:
                self._roster.detach(self)


def no_answer(conn: Channel, reply: Reply | None) -> None:
    """reset and logout answer nobody."""


def _drop_unsent(transport: asyncio.Transport) -> None:
    """Let the kernel forget what the peer has not taken when the connection is closed, and send RST.

    Else it keeps trying for minutes (tcp_orphan_retries, tcp(7)), with all that its buffers hold, and the peer may not even learn of it.
    """
    sock = transport.get_extra_info("socket")
    if sock is None or not hasattr(os, "dup"):
        return
    with contextlib.suppress(OSError), socket.socket(fileno=os.dup(sock.fileno())) as twin:
        twin.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _hung_up(transport: asyncio.Transport) -> bool:
    """Tell a peer that has closed a Unix socket from one that only sends no more; over TCP nothing tells before a write."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != getattr(socket, "AF_UNIX", None):
        return False
    poll = select.poll()
    poll.register(sock.fileno(), 0)
    return any(events & select.POLLHUP for _, events in poll.poll(0))
