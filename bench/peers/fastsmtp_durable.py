"""fastsmtp, answering when the message survives power loss.  `fastsmtp_durable.py PORT maildir|queue DIR [--loop NAME]`"""

from __future__ import annotations

import argparse
import asyncio
import contextlib

from fastsmtp import Backend, DataContext, DataReader, DefaultBackend, DefaultSession, Server
from fastsmtp.delivery import Maildir, MaildirBackend
from fastsmtp.delivery.queue import Envelope, Queue, SQLiteQueue, Target


class Queued(DefaultSession):
    """Puts each message into the queue; it is answered when the queue has it."""

    def __init__(self, queue: Queue) -> None:
        super().__init__()
        self.queue = queue

    async def data(self, reader: DataReader, context: DataContext) -> None:
        targets = tuple(Target(each, each.rpartition("@")[2]) for each in context.recipients)
        await self.queue.put(Envelope(context.sender, targets), await reader.read())


async def main(port: int, kind: str, folder: str) -> None:
    async with contextlib.AsyncExitStack() as stack:
        backend: Backend
        if kind == "maildir":
            backend = MaildirBackend(await stack.enter_async_context(Maildir(folder)))
        else:
            queue = await stack.enter_async_context(SQLiteQueue(folder))
            backend = DefaultBackend(lambda: Queued(queue))
        server = Server(
            backend, addr=f"127.0.0.1:{port}", max_message_bytes=64 << 20, max_connections=20_000, backlog=4096
        )
        await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("kind", choices=("maildir", "queue"))
    parser.add_argument("folder")
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    arguments = parser.parse_args()
    loop_factory = asyncio.new_event_loop
    if arguments.loop == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main(arguments.port, arguments.kind, arguments.folder))
