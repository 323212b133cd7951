"""The text protocol over a connection: reader, writer, pipeline, and the three together.

The connection is anything with ``async read(n)`` on one side and ``write(data)``, ``async drain()`` on the other:
an `asyncio.StreamReader` and `asyncio.StreamWriter`, for example.  No event loop is imported here before it is needed.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from types import TracebackType
from typing import TYPE_CHECKING, Final, Protocol, Self

from . import limits
from ._mimeheader import MIMEHeader
from ._twin import DotDecoder, DotEncoder, parse_header_block, parse_response
from .errors import HeaderError, LineTooLong, ProtocolError, ResponseError, UnexpectedEOF

if TYPE_CHECKING:
    import asyncio

__all__ = ["ByteSink", "ByteSource", "DotReader", "DotWriter", "Pipeline", "Reader", "TextConn", "Writer", "check_code"]

_CHUNK: Final = 65536
_WHITE: Final = b" \t"


class ByteSource(Protocol):
    """Where a `Reader` reads."""

    async def read(self, n: int, /) -> bytes:
        """Up to `n` octets; none at the end of the input."""


class ByteSink(Protocol):
    """Where a `Writer` writes."""

    def write(self, data: bytes, /) -> object:
        """Take `data`, without waiting."""

    async def drain(self) -> None:
        """Wait until more may be written."""


def check_code(code: int, message: str, expect_code: int) -> None:
    """Raise ResponseError unless `code` begins with the digits of `expect_code`; 0 and less accept any."""
    if expect_code > 0 and not str(code).startswith(str(expect_code)):
        raise ResponseError(code, message)


class Reader:
    """Reads lines, replies, headers and dot-encoded text.

    Each method raises UnexpectedEOF when the input ends before, or within, what it reads, and LineTooLong (or
    HeaderError) when that exceeds a limit; the reader is of no more use then.  One task at a time may read.

    Args:
        source: anything with ``async read(n)``.
        max_line: octets of a line with its end, and of a continued line as a whole.
        max_text: octets of a dot-encoded text, decoded; 0 for no limit.
        max_header: octets of a header with its blank line.
    """

    def __init__(
        self,
        source: ByteSource,
        *,
        max_line: int = limits.COMMAND_LINE_FLOOD,
        max_text: int = limits.MESSAGE_BYTES,
        max_header: int = limits.HEADER_BYTES,
    ) -> None:
        self._source = source
        self._max_line = max_line
        self._max_text = max_text
        self._max_header = max_header
        self._buffer = bytearray()
        self._dot: DotReader | None = None

    async def read_line(self) -> str:
        """The next line without its CR LF or LF, as UTF-8 with surrogate escapes."""
        return _text(await self.read_line_bytes())

    async def read_line_bytes(self) -> bytes:
        """The next line without its CR LF or LF."""
        return _without_end(await self._line(self._max_line))

    async def read_continued_line(self) -> str:
        """The next line with those that continue it, as UTF-8 with surrogate escapes; see `read_continued_line_bytes`."""
        return _text(await self.read_continued_line_bytes())

    async def read_continued_line_bytes(self) -> bytes:
        """The next line and all after it that begin with a space or TAB, joined by a single space.

        White space around what is joined, and at the end, is removed.  A line of only white space is never continued.
        """
        parts = [_without_end(await self._line(self._max_line)).rstrip(_WHITE)]
        if not parts[0]:
            return b""
        total = len(parts[0])
        while await self._fill() and self._buffer[0] in _WHITE:
            line = await self._line(self._max_line)
            total += len(line)
            if total > self._max_line:
                raise LineTooLong("continued line too long")
            part = _without_end(line).strip(_WHITE)
            if part:
                parts.append(part)
        return b" ".join(parts)

    async def read_code_line(self, expect_code: int = 0) -> tuple[int, str]:
        """A reply of one line: ``(code, message)``.

        Raises ResponseError when the code does not begin with the digits of `expect_code` (31 accepts 310 to 319; 0 and
        less accept any), ProtocolError when the line is no reply or announces more lines.
        """
        line = await self._line(4 * limits.REPLY_LINE)
        end, code, message = parse_response(line)
        if end:
            check_code(code, message, expect_code)
            return code, message
        check_code(int(line[:3]), _text(_without_end(line[4:])), expect_code)
        raise ProtocolError("a reply of more than one line")

    async def read_response(self, expect_code: int = 0) -> tuple[int, str]:
        """A reply of one line or more: ``(code, message)``, lines separated by LF (RFC 5321 4.2.1, RFC 959 page 36).

        Raises ResponseError as `read_code_line` does, ProtocolError when it is no reply, LineTooLong for more than
        `limits.REPLY_LINES` lines.
        """
        lines: list[bytes] = []
        while True:
            line = await self._line(4 * limits.REPLY_LINE)
            lines.append(line)
            # Only what may be the last line is worth another look at all of them.
            if len(lines) in (1, limits.REPLY_LINES) or (line[:3] == lines[0][:3] and line[3:4] in b" \r\n"):
                end, code, message = parse_response(b"".join(lines))
                if end:
                    check_code(code, message, expect_code)
                    return code, message

    def dot_reader(self, keep_crlf: bool = False) -> DotReader:
        """A reader of the dot-encoded text that comes next (RFC 5321 4.5.2).

        It is valid until another method of this reader is called; what was left of its text is then thrown away.
        """
        self._dot = DotReader(self, self._dot, keep_crlf, self._max_text)
        return self._dot

    async def read_dot_bytes(self, keep_crlf: bool = False) -> bytes:
        """A whole dot-encoded text, decoded; each CR LF becomes LF unless `keep_crlf` is true."""
        return await self.dot_reader(keep_crlf).read()

    async def read_dot_lines(self) -> list[str]:
        """The lines of a dot-encoded text without their ends, as UTF-8 with surrogate escapes."""
        lines = _text(await self.read_dot_bytes()).split("\n")
        del lines[-1]  # behind the last line end
        return lines

    async def read_mime_header(self) -> MIMEHeader:
        """A header with the blank line that ends it (RFC 5322 2.2): canonical key to values in the order they came.

        Raises HeaderError: no colon, an empty or non-token key, a control character, a first line that begins with white
        space, too many fields or octets.
        """
        block = bytearray()
        line = b""
        while line not in (b"\r\n", b"\n"):
            try:
                line = await self._line(self._max_header - len(block))
            except LineTooLong:
                raise HeaderError("header block too large") from None
            if not block and line[0] in _WHITE:
                raise HeaderError("header block begins with white space")
            block += line
        _, fields = parse_header_block(bytes(block), 0, limits.HEADER_FIELDS, self._max_header)
        return MIMEHeader(fields)

    async def at_eof(self) -> bool:
        """Whether the input has ended with nothing left to read."""
        await self._settle()
        return not await self._fill()

    async def _settle(self) -> None:
        """Throw away what is left of a dot-encoded text."""
        if self._dot is not None:
            await self._dot.discard()
            self._dot = None

    async def _fill(self) -> bool:
        """Have one octet at least in the buffer; false at the end of the input."""
        if not self._buffer:
            self._buffer += await self._source.read(_CHUNK)
        return bool(self._buffer)

    async def _line(self, limit: int) -> bytes:
        """The next line with its end."""
        await self._settle()
        buffer = self._buffer
        searched = 0
        while True:
            end = buffer.find(b"\n", searched) + 1
            searched = len(buffer)
            if (end or searched) > limit:
                raise LineTooLong("line too long")
            if end:
                break
            chunk = await self._source.read(_CHUNK)
            if not chunk:
                raise UnexpectedEOF("the input ended within a line" if buffer else "the input has ended")
            buffer += chunk
        line = bytes(buffer[:end])
        del buffer[:end]
        return line

    async def _take(self) -> bytes:
        """All that is buffered, or the next chunk; nothing at the end of the input."""
        if self._buffer:
            chunk = bytes(self._buffer)
            self._buffer.clear()
            return chunk
        return await self._source.read(_CHUNK)

    def _give_back(self, rest: bytes) -> None:
        self._buffer[:0] = rest


class DotReader:
    """One dot-encoded text, piece by piece; see `Reader.dot_reader`.

    ``async for chunk in reader`` and ``await reader.read(n)`` give the decoded text.  They raise UnexpectedEOF when the
    input ends before the end of data, LineTooLong when the text exceeds the limit, ValueError when the text was thrown
    away: never is a part of it taken for the whole.
    """

    __slots__ = ("_decoder", "_invalid", "_limit", "_pending", "_previous", "_reader")

    def __init__(self, reader: Reader, previous: DotReader | None, keep_crlf: bool, limit: int) -> None:
        self._reader = reader
        self._previous = previous
        self._decoder = DotDecoder(keep_crlf)
        self._limit = limit
        self._pending = bytearray()
        self._invalid = False

    async def read(self, n: int = -1) -> bytes:
        """Up to `n` octets of the text, or all of it; ``b""`` behind its end."""
        pending = self._pending
        while n and (n < 0 or not pending) and (chunk := await self._next()):
            pending += chunk
        if n < 0:
            n = len(pending)
        piece = bytes(pending[:n])
        del pending[:n]
        return piece

    async def __aiter__(self) -> AsyncIterator[bytes]:
        while piece := await self.read(_CHUNK):
            yield piece

    async def discard(self) -> None:
        """Read to the end of the text and forget it; the reader is invalid afterwards, if it had not been read to its end."""
        if self._decoder.ended and not self._pending:
            return
        self._limit = 0
        while not self._decoder.ended:
            await self._next()
        self._pending.clear()
        self._invalid = True

    async def _next(self) -> bytes:
        """The next piece that is not empty; an empty one at the end."""
        if self._invalid:
            raise ValueError("another method of the reader was called, which ended this text")
        if self._previous is not None:
            await self._previous.discard()
            self._previous = None
        decoder = self._decoder
        while not decoder.ended:
            chunk = await self._reader._take()
            if not chunk:
                raise UnexpectedEOF("the input ended before the end of data")
            piece, end = decoder.feed(chunk)
            if end:
                self._reader._give_back(chunk[end:])
            if decoder.size > self._limit > 0:
                raise LineTooLong("dot-encoded text too long")
            if piece:
                return piece
        return b""


class Writer:
    """Writes lines and dot-encoded text.

    Args:
        sink: anything with ``write(data)`` and ``async drain()``.
    """

    def __init__(self, sink: ByteSink) -> None:
        self._sink = sink
        self._open_text: DotWriter | None = None

    async def print_line(self, line: str) -> None:
        """Write `line` and CR LF, as UTF-8 with surrogate escapes.

        Raises ProtocolError when it has a CR or LF in it, which would make two lines of it; RuntimeError while a text is open.
        """
        if "\r" in line or "\n" in line:
            raise ProtocolError("a line contains a line end")
        self._write(line.encode("utf-8", "surrogateescape") + b"\r\n", None)
        await self._sink.drain()

    def dot_writer(self) -> DotWriter:
        """A dot-encoded text to write: ``async with writer.dot_writer() as text: await text.write(data)``.

        LF and CR LF both end its lines.  Leaving the block writes the end of data, unless an exception is the reason: a
        text that broke off must not look whole, so nothing can be written behind it and the connection is to be closed.
        """
        if self._open_text is not None:
            raise RuntimeError("a dot-encoded text is open")
        self._open_text = DotWriter(self)
        return self._open_text

    def _write(self, data: bytes, text: DotWriter | None) -> None:
        if self._open_text is not text:
            raise RuntimeError("a dot-encoded text is open" if text is None else "this dot-encoded text is closed")
        self._sink.write(data)


class DotWriter:
    """One dot-encoded text that is written; see `Writer.dot_writer`."""

    __slots__ = ("_encoder", "_writer")

    def __init__(self, writer: Writer) -> None:
        self._writer = writer
        self._encoder = DotEncoder()

    async def write(self, data: bytes) -> None:
        """Encode and write `data`; wait when the other side is slow.  Raises RuntimeError when the text is closed."""
        self._writer._write(self._encoder.feed(data), self)
        await self._writer._sink.drain()

    async def close(self) -> None:
        """Write the missing line end, if any, and the end of data."""
        if self._writer._open_text is self:
            self._writer._write(self._encoder.finish(), self)
            self._writer._open_text = None
            await self._writer._sink.drain()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            await self.close()


class _Sequence:
    """Events numbered from 0 that happen one after the other."""

    def __init__(self) -> None:
        self._current = 0
        self._waiting: dict[int, asyncio.Future[None]] = {}
        self._given_up: set[int] = set()

    async def start(self, number: int) -> None:
        if number < self._current or number in self._waiting:
            raise ValueError("out of sequence")
        if number == self._current:
            return
        import asyncio  # not before somebody has to wait: the lower floors load no event loop

        turn = self._waiting[number] = asyncio.get_running_loop().create_future()
        try:
            await turn
        except asyncio.CancelledError:
            if self._current == number:
                self.end(number)
            else:
                del self._waiting[number]
                self._given_up.add(number)
            raise

    def end(self, number: int) -> None:
        if number != self._current:
            raise ValueError("out of sequence")
        self._current += 1
        while self._current in self._given_up:
            self._given_up.remove(self._current)
            self._current += 1
        turn = self._waiting.pop(self._current, None)
        if turn is not None and not turn.done():
            turn.set_result(None)


class Pipeline:
    """Keeps requests, and the responses to them, of several tasks in order on one connection.

    Each task takes a number and encloses what it does::

        number = pipeline.next()
        await pipeline.start_request(number)
        ...  # send the request
        pipeline.end_request(number)
        await pipeline.start_response(number)
        ...  # read the response
        pipeline.end_response(number)

    Every number that was taken must start and end both, or the tasks behind it wait for ever; a start that is cancelled
    gives up its turn.  Numbers that come out of sequence raise ValueError.
    """

    def __init__(self) -> None:
        self._next = 0
        self._requests = _Sequence()
        self._responses = _Sequence()

    def next(self) -> int:
        """The number of the next request and its response."""
        number = self._next
        self._next += 1
        return number

    async def start_request(self, number: int) -> None:
        """Wait until all requests before this one have ended."""
        await self._requests.start(number)

    def end_request(self, number: int) -> None:
        """The request has been sent (by a server: received)."""
        self._requests.end(number)

    async def start_response(self, number: int) -> None:
        """Wait until all responses before this one have ended."""
        await self._responses.start(number)

    def end_response(self, number: int) -> None:
        """The response has been received (by a server: sent)."""
        self._responses.end(number)


class TextConn(Reader, Writer, Pipeline):
    """A connection that speaks a text protocol: reader, writer and pipeline in one.

    Args:
        reader: anything with ``async read(n)``.
        writer: anything with ``write(data)`` and ``async drain()``; its ``close()`` and ``async wait_closed()`` are used
            where it has them.
        max_line, max_text, max_header: octets, as for `Reader`.
    """

    def __init__(
        self,
        reader: ByteSource,
        writer: ByteSink,
        *,
        max_line: int = limits.COMMAND_LINE_FLOOD,
        max_text: int = limits.MESSAGE_BYTES,
        max_header: int = limits.HEADER_BYTES,
    ) -> None:
        Reader.__init__(self, reader, max_line=max_line, max_text=max_text, max_header=max_header)
        Writer.__init__(self, writer)
        Pipeline.__init__(self)
        self._closed = False

    async def command(self, line: str) -> int:
        """Send `line` when its turn has come; the number returned is for `start_response` and `end_response`."""
        number = self.next()
        await self.start_request(number)
        try:
            await self.print_line(line)
        finally:
            self.end_request(number)
        return number

    async def close(self) -> None:
        """Close the connection; a second call does nothing."""
        if self._closed:
            return
        self._closed = True
        close = getattr(self._sink, "close", None)
        if close is not None:
            close()
        wait_closed = getattr(self._sink, "wait_closed", None)
        if wait_closed is not None:
            await wait_closed()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()


def _without_end(line: bytes) -> bytes:
    if line.endswith(b"\r\n"):
        return line[:-2]
    return line.removesuffix(b"\n")


def _text(octets: bytes) -> str:
    return octets.decode("utf-8", "surrogateescape")
