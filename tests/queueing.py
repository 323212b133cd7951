"""A server whose sessions put into a queue on SQLite, as a process of its own: `python -m tests.queueing DIRECTORY`."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys

from fastsmtp import DataContext, DataReader, DefaultBackend, DefaultSession, Server
from fastsmtp.delivery.queue import Envelope, SQLiteQueue, Target

__all__ = ["QueueSession"]


class QueueSession(DefaultSession):
    """Puts each message into the queue, all recipients to one destination."""

    def __init__(self, queue: SQLiteQueue) -> None:
        super().__init__()
        self._queue = queue

    async def data(self, reader: DataReader, context: DataContext) -> None:
        """250 says that it is queued."""
        targets = tuple(Target(recipient, "next.example") for recipient in context.recipients)
        envelope = Envelope(context.sender, targets)
        await self._queue.put(envelope, reader.read_nowait() if reader.complete else aiter(reader))


async def _main(path: str) -> None:
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop.set)
    async with SQLiteQueue(path, min_free=0) as queue:
        async with Server(DefaultBackend(lambda: QueueSession(queue)), addr="127.0.0.1:0") as server:
            print(f"listening on 127.0.0.1:{server.port}", file=sys.stderr, flush=True)
            await stop.wait()


if __name__ == "__main__":
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING)
    asyncio.run(_main(sys.argv[1]))
