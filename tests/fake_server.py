"""A server that follows a script, wrong ones too."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager

__all__ = ["CLOSE", "ESMTP", "SILENCE", "STEPS", "Fake", "fake"]

CLOSE = b"(close)"
SILENCE = b"(silence)"
ESMTP = b"250-mx.example\r\n250-PIPELINING\r\n250 CHUNKING\r\n"
STEPS = ("greeting", "EHLO", "MAIL", "RCPT", "DATA", ".")
"""The replies of a transaction by DATA, in their order; "." is that to the message."""

_REPLIES = {
    "greeting": b"220 mx.example ESMTP\r\n",
    "EHLO": b"250 mx.example\r\n",
    "LHLO": b"250 mx.example\r\n",
    "DATA": b"354 go on\r\n",
    "QUIT": b"221 bye\r\n",
    "STARTTLS": b"220 go on\r\n",
}


class Fake:
    """What was asked, and how it is answered.

    Args:
        replies: what is said to a verb, in place of the reply of a good server: octets, CLOSE, SILENCE or octets and CLOSE.
            "." is for the message, "BDAT" for a chunk, "LAST" for the last one.

    Attributes:
        lines: the commands, in order.
        batches: what came from the client, read by read.
        messages: those whose end has come, dots and all.
        connections: how many there were.
        gone: the client has closed a connection.
    """

    def __init__(self, replies: Mapping[str, bytes]) -> None:
        self.replies = {**_REPLIES, **replies}
        self.lines: list[str] = []
        self.batches: list[bytes] = []
        self.messages: list[bytes] = []
        self.connections = 0
        self.port = 0
        self.gone = asyncio.Event()
        self.context: ssl.SSLContext | None = None
        self._buffer = b""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._buffer = b""
        try:
            if await self._say(reader, writer, "greeting"):
                await self._talk(reader, writer)
        except (ConnectionError, EOFError, ssl.SSLError):
            pass
        finally:
            self.gone.set()
            writer.close()
            with contextlib.suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while True:
            line = (await self._until(reader, b"\r\n")).decode()[:-2]
            self.lines.append(line)
            verb, *words = line.split(" ")
            said = verb
            if verb == "BDAT":
                size = int(words[0])
                while len(self._buffer) < size:
                    await self._more(reader)
                self._keep(self._buffer[:size], words[-1] == "LAST")
                self._buffer = self._buffer[size:]
                said = "LAST" if words[-1] == "LAST" else "BDAT"
            if not await self._say(reader, writer, said):
                return
            if verb == "QUIT":
                return
            if verb == "STARTTLS" and self.context is not None and self.replies[verb].startswith(b"2"):
                await writer.start_tls(self.context)
            if verb == "DATA" and self.replies[verb].startswith(b"3"):
                self._keep(await self._until(reader, b".\r\n"), True)
                if not await self._say(reader, writer, "."):
                    return

    _partial = b""

    def _keep(self, octets: bytes, last: bool) -> None:
        self._partial += octets
        if last:
            self.messages.append(self._partial)
            self._partial = b""

    async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str) -> bool:
        reply = self.replies.get(what, b"250 ok\r\n")
        if reply == SILENCE:
            while await reader.read(65536):
                pass
            return False
        closes = reply.endswith(CLOSE)
        writer.write(reply.removesuffix(CLOSE))
        await writer.drain()
        return not closes

    async def _more(self, reader: asyncio.StreamReader) -> None:
        data = await reader.read(65536)
        if not data:
            raise EOFError
        self.batches.append(data)
        self._buffer += data

    async def _until(self, reader: asyncio.StreamReader, end: bytes) -> bytes:
        while (at := self._buffer.find(end)) < 0:
            await self._more(reader)
        found = self._buffer[: at + len(end)]
        self._buffer = self._buffer[at + len(end) :]
        return found


@asynccontextmanager
async def fake(
    replies: Mapping[str, bytes] | None = None, context: ssl.SSLContext | None = None, kind: type[Fake] = Fake
) -> AsyncIterator[Fake]:
    """A fake server on a port of its own; its tasks end with the block."""
    server = kind(replies or {})
    server.context = context
    tasks: set[asyncio.Task[None]] = set()

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        tasks.add(task)
        with contextlib.suppress(asyncio.CancelledError):  # asyncio would log it
            await server.serve(reader, writer)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
