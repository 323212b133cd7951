"""A message to send, whatever it is kept in, as pieces of a good size; never as a whole copy.

bytes, bytearray, memoryview    a file, or whatever has `read(n)`, plain or async    an iterable or async iterable of bytes
"""

from __future__ import annotations

import asyncio
import inspect
import io
import os
import stat
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Iterable, Iterator
from typing import Any, Final, Protocol, TypeAlias, runtime_checkable

from .protocol.requests import CanonicalText

__all__ = ["Message", "MessageReader", "Outgoing"]


@runtime_checkable
class MessageReader(Protocol):
    """A file opened in binary mode, an `asyncio.StreamReader`, a `DataReader`: what is read until it gives b""."""

    def read(self, n: int, /) -> Any: ...


Message: TypeAlias = bytes | bytearray | memoryview | MessageReader | Iterable[bytes] | AsyncIterable[bytes]

_PIECE: Final = 64 * 1024  # what is smaller is gathered: with BDAT each piece is a command
_LARGEST: Final = 256 * 1024  # and what is larger is cut
_PATIENCE: Final = (
    10.0  # seconds after which what was gathered goes out, so that a slow source does not look like a dead client
)


class Outgoing:
    """A message on its way out; to be read once.

    Attributes:
        size: its octets as they go over the wire, before dots are doubled; None if that is not known, for a file a good guess
            (RFC 1870 section 5).
        eight_bit: it has octets over 127; None if that is not known.
        utf8_header: its header has some; False if that is not known.

    Raises:
        TypeError: it is text, or nothing that holds a message.
    """

    __slots__ = ("_message", "eight_bit", "size", "utf8_header")

    def __init__(self, message: Message, binary: bool = False) -> None:
        self.size: int | None = None
        self.eight_bit: bool | None = None
        self.utf8_header = False
        if isinstance(message, bytes | bytearray | memoryview):
            whole = message if isinstance(message, bytes) else _octets(message)
            self._message: Message = whole
            self.size = len(whole) if binary else _canonical_size(whole)
            self.eight_bit = not (whole.isascii() if isinstance(whole, bytes) else all(map(bytes.isascii, _cut(whole))))
            self.utf8_header = self.eight_bit and _has_utf8_header(_cut(whole))
            return
        if isinstance(message, str | io.TextIOBase):
            raise TypeError("a message is bytes, not text")
        if isinstance(message, MessageReader):
            self.size = _file_size(message)
        elif not isinstance(message, Iterable | AsyncIterable):
            raise TypeError(f"no message: {type(message).__name__}")
        self._message = message

    async def pieces(self) -> AsyncGenerator[tuple[bytes, bool]]:
        """Its pieces, the last one, perhaps empty, marked."""
        message = self._message
        if isinstance(message, bytes | memoryview):
            left = len(message)
            for piece in _cut(message):
                left -= len(piece)
                yield piece, not left
            return
        assert not isinstance(message, bytearray)  # it is a memoryview by now
        time = asyncio.get_running_loop().time
        gathered: list[bytes] = []
        size = 0
        until = time() + _PATIENCE
        async for part in _parts(message):
            gathered.append(part)
            size += len(part)
            if size >= _PIECE or time() >= until:
                whole = b"".join(gathered)
                for start in range(0, size, _LARGEST):
                    yield whole[start : start + _LARGEST], False
                gathered.clear()
                size = 0
                until = time() + _PATIENCE
        yield b"".join(gathered), True


def _parts(message: MessageReader | Iterable[bytes] | AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    if isinstance(message, MessageReader):
        return _read(message)
    if isinstance(message, AsyncIterable):
        return aiter(message)
    return _each(message)


async def _each(parts: Iterable[bytes]) -> AsyncGenerator[bytes]:
    for part in parts:
        yield part


async def _read(file: MessageReader) -> AsyncGenerator[bytes]:
    # A file of the disk can keep us waiting, so a thread waits for it.
    direct = isinstance(file, io.BytesIO) or inspect.iscoroutinefunction(file.read)
    while True:
        part = file.read(_LARGEST) if direct else await asyncio.to_thread(file.read, _LARGEST)
        if inspect.isawaitable(part):
            part = await part
        if part is None:  # it is not at its end, but has nothing now (io.RawIOBase.read)
            raise BlockingIOError("a message that is read without waiting for it")
        if not part:
            return
        yield part


def _octets(message: bytearray | memoryview) -> memoryview | bytes:
    """What is there, uncopied but for a view with gaps."""
    view = memoryview(message)
    return view.cast("B") if view.c_contiguous else bytes(view)


def _cut(message: bytes | memoryview) -> Iterator[bytes]:
    """Pieces, one at least; what is small is not copied."""
    if isinstance(message, bytes) and len(message) <= _LARGEST:
        yield message
        return
    for start in range(0, len(message) or 1, _LARGEST):
        yield bytes(message[start : start + _LARGEST])


def _canonical_size(message: bytes | memoryview) -> int:
    """Octets once each CR, LF or CR LF is CR LF, with one at the end (RFC 5321 2.3.8)."""
    if isinstance(message, bytes):
        ends = message.count(b"\r\n")
        alone = message.count(b"\n") + message.count(b"\r") - 2 * ends
        return len(message) + alone + (0 if not message or message.endswith((b"\n", b"\r")) else 2)
    text = CanonicalText()
    return sum(len(text.feed(piece)) for piece in _cut(message)) + len(text.finish())


def _file_size(file: Any) -> int | None:
    """What is left of a regular file, or of octets in memory."""
    try:
        if isinstance(file, io.BytesIO):
            return len(file.getbuffer()) - file.tell()
        status = os.fstat(file.fileno())
        return max(0, status.st_size - int(file.tell())) if stat.S_ISREG(status.st_mode) else None
    except (AttributeError, OSError, ValueError, TypeError):
        return None


def _has_utf8_header(pieces: Iterable[bytes]) -> bool:
    tail = b""
    for piece in pieces:
        text = tail + piece if tail else piece
        ends = [end for blank in (b"\r\n\r\n", b"\n\n") if (end := text.find(blank)) >= 0]
        if ends or not piece.isascii():
            return not text[: min(ends, default=None)].isascii()
        tail = piece[-3:]
    return False
