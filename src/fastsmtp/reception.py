"""The reception of one message: from its first octets to its answer.

    Body events -> DataReader -> the session's data hook -> reply

An async hook starts when the message is whole or `BODY_HIGH_WATER` octets of it wait, so that a small message never suspends
it; a plain one when the message is whole.  Whatever the hook does, the message is consumed to its end, and answered once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .errors import MessageAborted
from .hooks import HookRunner, is_awaitable, streams
from .limits import BODY_HIGH_WATER
from .message import DataContext, DataReader
from .protocol.events import Body
from .protocol.server import ServerProtocol
from .reply import TOO_LARGE, DataTooLarge, EnhancedCode, Reply, SMTPError
from .roster import Roster
from .session import Session

if TYPE_CHECKING:
    from .connection import Conn

__all__ = ["Reception"]

_TOOK_TOO_LONG: Final = Reply(451, EnhancedCode(4, 3, 0), "Processing took too long")


class Reception:
    """One message.

    Args:
        conn: its connection, for the context.
        core: its protocol; the message is answered there.
        roster: counts it.
        session: whose data hook takes it.
        hooks: runs the hook.
        resume: called, never from within the hook, when the connection can go on: the reader has room, or the message is answered.

    Attributes:
        stalled: the session has not read enough yet: take no more from the peer.
        answered: the reply is said; the reception is over.
        lost: the message will not become whole.
    """

    __slots__ = (
        "_conn",
        "_context",
        "_core",
        "_hooks",
        "_reader",
        "_refused",
        "_reply",
        "_resume",
        "_roster",
        "_session",
        "_task",
        "answered",
        "lost",
        "stalled",
    )

    def __init__(
        self,
        conn: Conn,
        core: ServerProtocol,
        roster: Roster,
        session: Session,
        hooks: HookRunner,
        resume: Callable[[], None],
    ) -> None:
        self._conn = conn
        self._core = core
        self._roster = roster
        self._session = session
        self._hooks = hooks
        self._resume = resume
        self._reader = DataReader(self._has_room)
        self._context: DataContext | None = None  # set once the hook has been called
        self._task: asyncio.Task[Any] | None = None  # the hook while it runs
        self._reply: Reply | None = None
        self._refused = False
        self.stalled = False
        self.answered = False
        self.lost = False

    @property
    def running(self) -> bool:
        """The hook runs."""
        return self._task is not None

    @property
    def waits_for_hook(self) -> bool:
        """It is the session's turn, not the peer's."""
        return self._task is not None and (self.stalled or self._core.awaiting_reply)

    def receive(self, loop: asyncio.AbstractEventLoop, event: Body) -> None:
        """Take a piece of the message."""
        reader = self._reader
        if event.refusal is not None:
            if not self._refused:
                self._refused = True
                too_large = event.refusal is TOO_LARGE
                reader.set_exception(DataTooLarge() if too_large else SMTPError.from_reply(event.refusal))
        elif self._context is None or self._task is not None:
            reader.feed_data(event.payload, event.ended)
        else:
            # The hook returned before the end: the rest is consumed, counted and dropped.
            reader.size += len(event.payload)
        if event.ended:
            if self._context is None and not self._refused:
                self._start(loop, reader)
            elif self._task is None:
                self._answer()
            elif self._context is not None:
                self._context.when_answered(self._all_answered)
        elif reader.buffered >= BODY_HIGH_WATER:
            if self._context is None and streams(self._session.data):
                self._start(loop, reader)
            self.stalled = self._task is not None and reader.buffered >= BODY_HIGH_WATER

    def lose(self, why: str) -> None:
        """The message will not become whole: its hook, if it runs, is told by `MessageAborted`."""
        self.lost = True
        if not self._reader.complete and not self._refused:
            self._reader.set_exception(MessageAborted(why))
        if self._context is not None:
            self._context.close()

    def interrupt(self) -> None:
        """Cancel the hook; it is done when it has ended."""
        if self._task is not None:
            self._task.cancel()

    def cancel(self) -> None:
        """Cancel the hook and wait for it no more."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def give_up(self) -> None:
        """The hook's time is over: it is cancelled, the message is answered 451 once it is consumed."""
        self._hooks.given_up("data")
        self.cancel()
        self._over(_TOOK_TOO_LONG)

    def _start(self, loop: asyncio.AbstractEventLoop, reader: DataReader) -> None:
        core = self._core
        assert core.sender is not None
        context = self._context = DataContext(
            self._conn, core.sender, core.mail_params, core.recipients, core.rcpt_params, core.hello, core.xforward
        )
        hook = self._session.data
        try:
            result: Any = hook(reader, context)
        except Exception as error:  # noqa: BLE001 - whatever a session raises is answered
            self._over(self._hooks.failure(error, hook))
            return
        if result is not None and type(result) is not Reply:
            if is_awaitable(result):
                task = self._hooks.start(loop, result)
                if not task.done():
                    self._task = task
                    if reader.complete:
                        context.when_answered(self._all_answered)
                    task.add_done_callback(self._done)
                    return
                result = self._hooks.outcome(task)
            else:
                result = self._hooks.checked(result)
        self._over(result)

    def _done(self, task: asyncio.Task[Any]) -> None:
        if task is not self._task:
            if not task.cancelled():
                task.exception()  # given up on; it may end as it likes
            return
        self._task = None
        self._over(self._hooks.outcome(task))
        self._resume()

    def _over(self, reply: Reply | None) -> None:
        """The hook has returned, perhaps before the message's end."""
        self.stalled = False
        self._reader.let_go()
        self._reply = reply
        if self._core.awaiting_reply and not self.lost:
            self._answer()

    def _all_answered(self) -> None:
        """LMTP: every recipient has its status, some by their deadline: nobody waits for the hook any more."""
        if self._task is not None:
            self.cancel()
            self._answer()
            self._resume()

    def _has_room(self) -> None:
        if self.stalled:
            self.stalled = False
            self._resume()

    def _answer_each(self, replies: list[Reply | None]) -> int:
        """LMTP: a reply for each recipient; how many of them were accepted."""
        self._core.reply_each(replies)
        return sum([each is None or each.accepted for each in replies])

    def _answer(self) -> None:
        core = self._core
        context = self._context
        reply = self._reply
        accepted = len(core.recipients)
        refusal = core.refusal
        if context is None:
            core.reply(None)  # refused before any session saw it
        else:
            if reply is None:
                reply = context.response
            if core.lmtp:
                accepted = self._answer_each([each or reply for each in context.replies or [None] * accepted])
            else:
                if reply is not None and not reply.accepted:
                    accepted = 0
                core.reply(reply)
            context.close()
        self.answered = True
        self._roster.count_message(0 if self._refused else accepted, self._reader.size)
        if self._roster.observer is not None:
            self._roster.observe("message", self._conn, context, refusal or reply, self._reader.size)
