"""How many messages a durable queue takes and hands out: put by number of sessions, then claim and settle in batches.

    python bench/queue_commit.py [--dir DIR] [--messages N] [--size OCTETS] [--loop uvloop] [--inline OCTETS]

Each session waits for its put before the next, as an SMTP session does.  `through` puts, claims, reads the body and settles
at the same time.  Everything is written below DIR (default: the current directory; it must be on a real disk) and removed
at the end.  CPU is user and system time of this process, without kernel threads.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

from fastsmtp.delivery.queue import Envelope, SQLiteQueue, Target

__all__ = ["main"]

ENVELOPE = Envelope("sender@example.org", (Target("recipient@example.com", "example.com"),))


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


async def _timed(name: str, sessions: int, queue: SQLiteQueue, work: Callable[[], Awaitable[int]]) -> None:
    groups, cpu, began = queue.groups, _cpu(), time.perf_counter()
    done = await work()
    wall, cpu, groups = time.perf_counter() - began, _cpu() - cpu, queue.groups - groups
    row = f"{name:8} {sessions:8} {done / wall:7.0f} {cpu / done * 1e6:10.0f} {done / max(1, groups):9.1f}"
    print(row, flush=True)


async def _put(queue: SQLiteQueue, sessions: int, messages: int, body: bytes) -> int:
    async def session() -> None:
        for _ in range(messages // sessions):
            await queue.put(ENVELOPE, body)

    await asyncio.gather(*(session() for _ in range(sessions)))
    return messages // sessions * sessions


async def _drain(queue: SQLiteQueue, workers: int, batch: int, messages: int) -> int:
    left = messages

    async def worker() -> None:
        nonlocal left
        while left > 0:
            claims = await queue.claim(lease=60, limit=batch)
            if not claims:
                await queue.ready()
            left -= len(claims)
            for claim in claims:
                async for _ in claim.body():
                    pass
            await asyncio.gather(*(queue.acknowledge(claim.lease) for claim in claims))

    tasks = [asyncio.create_task(worker()) for _ in range(workers)]
    await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    while (await queue.stats()).leased:
        await asyncio.sleep(0)
    for task in tasks:
        task.cancel()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    for result in results:
        if isinstance(result, Exception):
            raise result
    return messages


async def _measure(path: str, options: argparse.Namespace) -> None:
    body = os.urandom(options.size)
    for sessions in (1, 20, 100):
        messages = max(sessions, min(options.messages, 500 * sessions))
        async with SQLiteQueue(os.path.join(path, str(sessions)), inline=options.inline) as queue:
            await queue.put(ENVELOPE, body)
            await _timed("put", sessions, queue, lambda: _put(queue, sessions, messages, body))  # noqa: B023
            await _timed("drain", sessions, queue, lambda: _drain(queue, 2, sessions, messages + 1))  # noqa: B023
    for sessions in (20, 100):
        messages = options.messages
        async with SQLiteQueue(os.path.join(path, f"t{sessions}"), inline=options.inline) as queue:

            async def both() -> int:
                done, _ = await asyncio.gather(
                    _put(queue, sessions, messages, body),  # noqa: B023
                    _drain(queue, 2, sessions, messages // sessions * sessions),  # noqa: B023
                )
                return done

            await _timed("through", sessions, queue, both)


def _run(coroutine: Coroutine[Any, Any, None], loop: str) -> None:
    if loop == "uvloop":
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(coroutine)
    else:
        asyncio.run(coroutine)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=".")
    parser.add_argument("--messages", type=int, default=20000, help="per row")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--inline", type=int, default=65536)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    options = parser.parse_args()
    base = tempfile.mkdtemp(prefix="queue-bench-", dir=options.dir)
    try:
        print(f"{'':8} {'sessions':>8} {'msg/s':>7} {'CPU us/msg':>10} {'per group':>9}")
        _run(_measure(base, options), options.loop)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
