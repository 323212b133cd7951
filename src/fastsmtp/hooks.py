"""Calling a session's hooks: plain or async, and what they raise made a reply."""

from __future__ import annotations

import asyncio
import inspect
import logging
import sys
from collections.abc import Awaitable
from dataclasses import dataclass
from types import GeneratorType
from typing import TYPE_CHECKING, Any, Final

from .counters import Counters
from .errors import MessageAborted
from .reply import HOOK_FAILED, Reply, SMTPError

if TYPE_CHECKING:
    from typing_extensions import TypeIs

__all__ = ["HookRunner", "given_up", "is_awaitable", "streams"]


class HookRunner:
    """Runs the hooks of one server's sessions.

    Args:
        logger: gets the traceback of what is no SMTPError.
        counters: counts these.
    """

    __slots__ = ("_counters", "_logger")

    def __init__(self, logger: logging.Logger, counters: Counters) -> None:
        self._logger: Final = logger
        self._counters: Final = counters

    def outcome(self, task: asyncio.Task[Any]) -> Reply | None:
        """The reply of a hook's task that is done."""
        if task.cancelled():
            return HOOK_FAILED
        result = task.result()
        if type(result) is _Failure:
            return self.failure(result.error, result.hook)
        return self.checked(result)

    def checked(self, result: object) -> Reply | None:
        """A hook's result, if it is one; else 451."""
        if result is None or isinstance(result, Reply):
            return result
        self._counters.errors += 1
        self._logger.error("a session hook returned %s, not a Reply or None", type(result).__name__)
        return HOOK_FAILED

    def failure(self, error: Exception, hook: object) -> Reply:
        """The reply that an exception is answered with; its text never reaches the peer unless it is an SMTPError."""
        # What aborted a message was the peer, and nobody waits for the answer.
        if not isinstance(error, (SMTPError, MessageAborted)):
            self._counters.errors += 1
            name = getattr(hook, "__qualname__", type(hook).__name__)
            self._logger.error("session hook %s failed", name, exc_info=error)
        # A message's reader keeps what it raised, whose traceback holds the reader, its connection and the hook's frames: a cycle that
        # would wait for the garbage collector, with all that the message has in memory.
        error.__traceback__ = None
        return error.reply if isinstance(error, SMTPError) else HOOK_FAILED

    def given_up(self, what: str) -> None:
        """Log a hook that did not return in time."""
        self._counters.errors += 1
        self._logger.error("a session hook did not return in time: %s", what)

    @staticmethod
    def start(loop: asyncio.AbstractEventLoop, awaitable: Awaitable[Any]) -> asyncio.Task[Any]:
        """Begin an async hook.

        From Python 3.12 on, one that does not suspend is done when this returns, without a turn of the loop.
        """
        if sys.version_info >= (3, 12):
            return asyncio.Task(_guarded(awaitable), loop=loop, eager_start=True)
        task = loop.create_task(_guarded(awaitable))
        if asyncio.iscoroutine(awaitable):
            # Cancelled before its first turn it was never awaited, and Python would complain of that.
            task.add_done_callback(lambda _: awaitable.close())
        return task

    @staticmethod
    async def call(target: object, name: str, *arguments: object) -> Reply | None:
        """Call a hook that may be missing, plain or async; raises TypeError when it returns something else."""
        hook = getattr(target, name, None)
        reply: Any = None if hook is None else hook(*arguments)
        if is_awaitable(reply):
            reply = await reply
        if reply is not None and not isinstance(reply, Reply):
            raise TypeError(f"{name} returned {type(reply).__name__}, not a Reply or None")
        return reply


@dataclass(frozen=True, slots=True)
class _Failure:
    error: Exception
    hook: object


async def _guarded(awaitable: Awaitable[Any]) -> Any:
    # An exception becomes a result here, since CPython 3.12.1 crashes when an eager task that failed is asked for it.
    try:
        return await awaitable
    except Exception as error:  # noqa: BLE001 - whatever a session raises is answered
        return _Failure(error, awaitable)


def is_awaitable(result: object) -> TypeIs[Awaitable[Any]]:
    """As `inspect.isawaitable`, whose abstract base class makes it four times as slow."""
    return hasattr(type(result), "__await__") or (isinstance(result, GeneratorType) and inspect.isawaitable(result))


def given_up() -> bool:
    """Tell, within a hook's task, whether the connection waits for it no more: a hook may have swallowed its cancellation."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def streams(hook: object) -> bool:
    """True for a hook that can take a message that is still arriving: an async one, or one that is decorated as `streaming`."""
    return inspect.iscoroutinefunction(hook) or getattr(hook, "streams", False) is True
