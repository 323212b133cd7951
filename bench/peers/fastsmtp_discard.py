"""fastsmtp, accepting and dropping.  `fastsmtp_discard.py PORT uvloop|asyncio plain|async|stream`"""

from __future__ import annotations

import asyncio
import sys

from fastsmtp import (
    DataContext,
    DataReader,
    DefaultBackend,
    DefaultSession,
    MailParams,
    RcptParams,
    Server,
)


class Plain(DefaultSession):
    """Plain hooks."""

    def data(self, reader: DataReader, context: DataContext) -> None:
        reader.read_nowait()


class Async(DefaultSession):
    """Every hook a coroutine."""

    async def mail(self, sender: str, params: MailParams) -> None:
        self.sender = sender

    async def rcpt(self, recipient: str, params: RcptParams) -> None:
        self.recipients.append(recipient)

    async def data(self, reader: DataReader, context: DataContext) -> None:
        await reader.read()


class Stream(DefaultSession):
    """The message in pieces."""

    async def data(self, reader: DataReader, context: DataContext) -> None:
        async for _ in reader:
            pass


async def main(port: int, hooks: str) -> None:
    session = {"plain": Plain, "async": Async, "stream": Stream}[hooks]
    server = Server(DefaultBackend(session), addr=f"127.0.0.1:{port}", max_message_bytes=0)
    await server.serve_forever()


if __name__ == "__main__":
    loop_factory = asyncio.new_event_loop
    if sys.argv[2] == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main(int(sys.argv[1]), sys.argv[3]))
