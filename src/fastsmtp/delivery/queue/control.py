"""A queue's management over a Unix socket: what one process has open, another one lists and changes.

    QueueControl   beside a queue: listens at a path that only its user may connect to
    RemoteQueue    elsewhere: asks it

Each message of the protocol is four octets, its length, and so many octets.  A request is a JSON object, ``{"do": NAME, ...arguments}``; its
answer is ``{"ok": RESULT}``, or ``{"error": CLASS, "text": WHY}``.  After the answer to ``body`` come the body's pieces and an empty
one, without which it is not whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import socket
import struct
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import asdict
from types import TracebackType
from typing import Any, Final, Protocol, Self

from fastsmtp.errors import ConfigurationError

from ._record import message_from, message_json
from .contract import NoSuchMessage, Page, Queue, QueuedMessage, QueueFull, QueueUnavailable, Stats

__all__ = ["QueueConsole", "QueueControl", "RemoteQueue"]

_HEAD: Final = struct.Struct(">I")
_LONGEST: Final = 1 << 28  # octets of one message of the protocol
_PATIENCE: Final = 30.0  # seconds for an answer; counting a large queue takes a while
_PATH: Final = 100  # octets of a socket's path that every system takes

_ERRORS: Final[dict[str, type[Exception]]] = {
    "NoSuchMessage": NoSuchMessage,
    "QueueFull": QueueFull,
    "QueueUnavailable": QueueUnavailable,
    "ValueError": ValueError,
}


class QueueConsole(Protocol):
    """What can be done to a queue by hand; see `Queue`, of which it is a part."""

    async def list(self, *, after: str | None = None, limit: int = 100, destination: str | None = None) -> Page:
        """A page of messages."""

    async def get(self, id: str) -> QueuedMessage:
        """One message."""

    def body(self, id: str) -> AsyncIterator[bytes]:
        """A message's octets."""

    async def hold(self, id: str) -> None:
        """Hand it out no more."""

    async def release(self, id: str) -> None:
        """End `hold`."""

    async def remove(self, id: str) -> None:
        """Drop it."""

    async def flush(self, destination: str | None = None, *, id: str | None = None) -> int:
        """Make what is deferred due."""

    async def stats(self) -> Stats:
        """Figures."""

    async def aclose(self) -> None:
        """Close."""


class QueueControl:
    """Answers for a queue, from `start` (or ``async with``) to `aclose`.

    Args:
        queue: the queue.  It is not closed.
        path: where to listen.  What is there is removed: whoever has a queue's directory locked owns the socket in it.
        logger: what logs unexpected failures; "fastsmtp.queue" by default.
    """

    def __init__(self, queue: Queue, path: str, *, logger: logging.Logger | None = None) -> None:
        self._queue: Final = queue
        self._path: Final = path
        self._logger: Final = logger if logger is not None else logging.getLogger("fastsmtp.queue")
        self._server: asyncio.Server | None = None
        self._talks: Final[set[asyncio.Task[None]]] = set()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigurationError: it cannot.
        """
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)
            with _reachable(self._path) as address:
                sock.bind(address)
            os.chmod(self._path, 0o600)  # nobody can connect yet
            self._server = await asyncio.start_unix_server(self._accept, sock=sock)
        except OSError as error:
            sock.close()
            raise ConfigurationError(f"cannot listen on {self._path}: {error.strerror or error}") from error

    async def aclose(self) -> None:
        """End what is under way, and remove the socket.  May be called twice."""
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        with contextlib.suppress(OSError):
            os.unlink(self._path)
        for task in list(self._talks):
            task.cancel()
        await asyncio.gather(*self._talks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._talks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while True:
                    await self._answer(await _receive(reader), writer)
        except asyncio.CancelledError:
            pass  # `aclose`; a stream's task that is cancelled would be logged
        finally:
            self._talks.discard(task)
            writer.close()

    async def _answer(self, request: bytes, writer: asyncio.StreamWriter) -> None:
        try:
            arguments = json.loads(request)
            do = _REQUESTS[arguments.pop("do")]
            if do is None:
                await self._send_body(writer, **arguments)
                return
            answer = {"ok": await do(self._queue, **arguments)}
        except (ConnectionError, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001 - told to the other side
            answer = self._explain(error)
        await _send(writer, json.dumps(answer).encode())

    async def _send_body(self, writer: asyncio.StreamWriter, id: str) -> None:
        message = await self._queue.get(id)
        await _send(writer, json.dumps({"ok": message.message.size}).encode())
        try:
            async for piece in self._queue.body(id):
                if piece:
                    await _send(writer, piece)
            await _send(writer, b"")
        except (QueueUnavailable, NoSuchMessage):
            writer.close()  # too late for an answer: without its end it is not whole

    def _explain(self, error: Exception) -> dict[str, str]:
        for name, kind in _ERRORS.items():
            if isinstance(error, kind):
                return {"error": name, "text": str(error)}
        self._logger.error("a request for the queue failed", exc_info=error)
        return {
            "error": "QueueUnavailable",
            "text": "the request failed; the log of the process that has the queue says why",
        }


async def _list(queue: Queue, **arguments: Any) -> dict[str, Any]:
    page = await queue.list(**arguments)
    return {"messages": [message_json(each) for each in page.messages], "after": page.after}


async def _get(queue: Queue, id: str) -> dict[str, Any]:
    return message_json(await queue.get(id))


async def _stats(queue: Queue) -> dict[str, Any]:
    return asdict(await queue.stats())


_REQUESTS: Final[dict[str, Callable[..., Awaitable[Any]] | None]] = {
    "list": _list,
    "get": _get,
    "body": None,
    "hold": lambda queue, id: queue.hold(id),
    "release": lambda queue, id: queue.release(id),
    "remove": lambda queue, id: queue.remove(id),
    "flush": lambda queue, destination=None, id=None: queue.flush(destination, id=id),
    "stats": _stats,
}


class RemoteQueue:
    """The queue of another process, by its `QueueControl`: a `QueueConsole`.

    Every method raises QueueUnavailable when that process does not answer.  Used by one task.

    Args:
        path: the socket.
    """

    def __init__(self, path: str) -> None:
        self._path: Final = path
        self._connection: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def connect(self) -> None:
        """Connect, if that was not done.

        Raises:
            OSError: nobody listens there.
        """
        if self._connection is None:
            with _reachable(self._path) as address:
                self._connection = await asyncio.open_unix_connection(address)

    async def list(self, *, after: str | None = None, limit: int = 100, destination: str | None = None) -> Page:
        """A page of messages; see `Queue.list`."""
        answer = await self._ask("list", after=after, limit=limit, destination=destination)
        return Page(tuple(map(message_from, answer["messages"])), answer["after"])

    async def get(self, id: str) -> QueuedMessage:
        """One message; see `Queue.get`."""
        return message_from(await self._ask("get", id=id))

    async def body(self, id: str) -> AsyncGenerator[bytes, None]:
        """A message's octets; see `Queue.body`.  Nothing else may be asked meanwhile."""
        await self._ask("body", id=id)
        ended = False
        try:
            while piece := await self._receive():
                yield piece
            ended = True
        finally:
            if not ended:
                await self.aclose()  # what is left of the body is no answer to the next question

    async def hold(self, id: str) -> None:
        """See `Queue.hold`."""
        await self._ask("hold", id=id)

    async def release(self, id: str) -> None:
        """See `Queue.release`."""
        await self._ask("release", id=id)

    async def remove(self, id: str) -> None:
        """See `Queue.remove`."""
        await self._ask("remove", id=id)

    async def flush(self, destination: str | None = None, *, id: str | None = None) -> int:
        """See `Queue.flush`."""
        return int(await self._ask("flush", destination=destination, id=id))

    async def stats(self) -> Stats:
        """See `Queue.stats`."""
        return Stats(**await self._ask("stats"))

    async def aclose(self) -> None:
        """Hang up."""
        connection, self._connection = self._connection, None
        if connection is not None:
            connection[1].close()
            with contextlib.suppress(OSError):
                await connection[1].wait_closed()

    async def _ask(self, do: str, **arguments: Any) -> Any:
        try:
            await self.connect()
            assert self._connection is not None
            await _send(self._connection[1], json.dumps({"do": do, **arguments}).encode())
        except OSError as error:
            raise QueueUnavailable(f"{self._path}: {error.strerror or error}") from error
        answer = json.loads(await self._receive())
        if "error" in answer:
            raise _ERRORS.get(answer["error"], QueueUnavailable)(answer["text"])
        return answer["ok"]

    async def _receive(self) -> bytes:
        if self._connection is None:
            raise QueueUnavailable("the connection is closed")
        try:
            async with asyncio.timeout(_PATIENCE):
                return await _receive(self._connection[0])
        except TimeoutError:
            why = "no answer"
        except (OSError, asyncio.IncompleteReadError):
            why = "the process that has it is gone"
        await self.aclose()
        raise QueueUnavailable(f"{self._path}: {why}")


async def _send(writer: asyncio.StreamWriter, octets: bytes) -> None:
    writer.write(_HEAD.pack(len(octets)) + octets)
    await writer.drain()


async def _receive(reader: asyncio.StreamReader) -> bytes:
    (length,) = _HEAD.unpack(await reader.readexactly(_HEAD.size))
    if length > _LONGEST:
        raise ConnectionError("that is not this protocol")
    return await reader.readexactly(length)


@contextlib.contextmanager
def _reachable(path: str) -> Iterator[str]:
    """The path of a socket, in a form that is short enough for one."""
    if len(os.fsencode(path)) <= _PATH:
        yield path
        return
    directory, name = os.path.split(path)
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{fd}/{name}"
    finally:
        os.close(fd)
