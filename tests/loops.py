"""The event loops that whatever touches one is tested on."""

from __future__ import annotations

import asyncio
import importlib.util
from collections.abc import Awaitable, Callable
from typing import Any, TypeAlias

import pytest

__all__ = ["LOOPS", "Runner", "runner"]

Runner: TypeAlias = Callable[[Callable[[], Awaitable[Any]]], None]

LOOPS: list[Any] = [pytest.param(asyncio.new_event_loop, id="asyncio")]
if importlib.util.find_spec("uvloop"):
    import uvloop

    LOOPS.append(pytest.param(uvloop.new_event_loop, id="uvloop"))


def runner(loop_factory: Callable[[], asyncio.AbstractEventLoop]) -> Runner:
    """What runs a coroutine function on a new loop, for a minute at most."""

    def run(main: Callable[[], Awaitable[Any]]) -> None:
        async def bounded() -> None:
            await asyncio.wait_for(main(), 60)

        with asyncio.Runner(loop_factory=loop_factory) as each:
            each.run(bounded())

    return run
