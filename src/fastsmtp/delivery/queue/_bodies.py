"""Bodies on their way in and out: small ones in memory, large ones through side files, in threads of their own."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Final, TypeVar

from ._engine import refusal
from ._spool import CHUNK, Spool, SpoolFile, SpoolReader
from .contract import Body, QueueUnavailable

__all__ = ["Bodies", "whole"]

THREADS: Final = 4
"""Threads that write, sync and read side files."""

_T = TypeVar("_T")


class Bodies:
    """The bodies of an open queue.  Used from one event loop.

    Args:
        spool: has the side files.
        inline: octets of a body up to which it gets none.
        on_failure: called with what failed.
    """

    def __init__(self, spool: Spool, inline: int, on_failure: Callable[[str, BaseException], None]) -> None:
        self._spool = spool
        self._inline = inline
        self._on_failure = on_failure
        self._unfinished: set[SpoolFile] = set()
        self._pool: ThreadPoolExecutor | None = None
        self._closed = False

    async def receive(
        self, name: str, body: Body, admit: Callable[[int], None]
    ) -> tuple[int, bytes | None, SpoolFile | None]:
        """Take a body in: its size, and either its octets or a side file that is on the disk.

        A side file is the caller's to `keep` or to `abort`.

        Args:
            name: of a side file.
            body: the body.
            admit: called with the octets so far; raises when they are too many.
        """
        file: SpoolFile | None = None
        parts: list[bytes] = []
        size = waiting = 0
        try:
            async for piece in _pieces(body):
                parts.append(piece)
                size += len(piece)
                waiting += len(piece)
                if waiting >= CHUNK and size > self._inline:
                    admit(size)
                    file = file or self._create(name)
                    await self._in_pool(file.write, parts)
                    parts, waiting = [], 0
            if size <= self._inline:
                return size, b"".join(parts), None
            file = file or self._create(name)
            if parts:
                await self._in_pool(file.write, parts)
            await self._in_pool(file.finish)
        except BaseException:
            if file is not None:
                self.abort(file)
            raise
        return size, None, file

    def keep(self, file: SpoolFile) -> None:
        """Somebody else removes it from now on."""
        self._unfinished.discard(file)

    def abort(self, file: SpoolFile) -> None:
        """No message will have it."""
        if file in self._unfinished:
            self._unfinished.discard(file)
            if self._pool is None:  # nothing was written
                return
            try:
                self._pool.submit(file.abort)
            except RuntimeError:  # the queue is being closed
                file.abort()

    async def read(self, name: str, size: int) -> AsyncGenerator[bytes, None]:
        """A side file in pieces; FileNotFoundError when it is not there, QueueUnavailable when it is too short."""
        file: SpoolReader = await self._in_pool(self._spool.open, name)
        try:
            while piece := await self._in_pool(file.read):
                size -= len(piece)
                yield piece
        finally:
            try:
                self._executor().submit(file.close)
            except RuntimeError:  # the queue is closed, and nothing reads any more
                file.close()
        if size:
            raise QueueUnavailable(f"the body of {name} is damaged")

    def stop(self) -> None:
        """Take nothing more."""
        self._closed = True

    def join(self) -> None:
        """After `stop`: wait for the threads, and remove what is not whole.  Blocks."""
        if self._pool is not None:
            self._pool.shutdown()
        while self._unfinished:
            with contextlib.suppress(KeyError):  # aborted in the event loop at the same time
                self._unfinished.pop().abort()

    def _create(self, name: str) -> SpoolFile:
        file = self._spool.create(name)
        self._unfinished.add(file)
        return file

    def _executor(self) -> ThreadPoolExecutor:
        if self._pool is None:
            self._pool = ThreadPoolExecutor(THREADS, "fastsmtp-queue-files")
        return self._pool

    async def _in_pool(self, function: Callable[..., _T], *arguments: object) -> _T:
        if self._closed:
            raise QueueUnavailable("the queue is closed")
        try:
            return await asyncio.get_running_loop().run_in_executor(self._executor(), function, *arguments)
        except FileNotFoundError:
            raise
        except OSError as error:
            self._on_failure("side file", error)
            raise refusal(error) from error


async def _pieces(body: Body) -> AsyncIterator[bytes]:
    if isinstance(body, bytes):
        yield body
    else:
        async for piece in body:
            yield piece


async def whole(body: bytes, id: str) -> AsyncGenerator[bytes, None]:
    """A body of the database, as `Queue.body` gives it."""
    if body:
        yield body
