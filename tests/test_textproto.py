"""The public text-protocol API: whole octets, and over a connection."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from fastsmtp import errors, limits, textproto
from fastsmtp.errors import HeaderError, LineTooLong, ProtocolError, ResponseError, UnexpectedEOF
from fastsmtp.textproto import MIMEHeader, Pipeline, Reader, TextConn, Writer


class Source:
    """An input that comes in pieces of `size` octets."""

    def __init__(self, data: bytes, size: int = 65536) -> None:
        self.data = data
        self.size = size

    async def read(self, n: int) -> bytes:
        n = min(n, self.size)
        piece, self.data = self.data[:n], self.data[n:]
        return piece


class Sink:
    """An output that remembers, and counts how often it was waited for."""

    def __init__(self) -> None:
        self.data = b""
        self.drained = 0
        self.closed = 0

    def write(self, data: bytes) -> None:
        self.data += data

    async def drain(self) -> None:
        self.drained += 1

    def close(self) -> None:
        self.closed += 1

    async def wait_closed(self) -> None:
        assert self.closed


sizes = pytest.mark.parametrize("size", [1, 2, 3, 65536])


def reading(data: bytes, test: Callable[[Reader], Awaitable[Any]], size: int = 65536, **options: int) -> Any:
    async def main() -> Any:
        return await test(Reader(Source(data, size), **options))

    return asyncio.run(main())


# ---- whole octets ----


def test_names() -> None:
    assert textproto.IMPLEMENTATION in ("cython", "pure")
    assert textproto.ProtocolError is errors.ProtocolError and textproto.ResponseError is errors.ResponseError
    assert textproto.canonical_mime_header_key("accept-encoding") == "Accept-Encoding"


def test_decode_dot() -> None:
    block = b"a\r\n..b\r\n.\r\n"
    assert textproto.decode_dot(block) == b"a\n.b\n"
    assert textproto.decode_dot(block, keep_crlf=True) == b"a\r\n.b\r\n"
    assert textproto.decode_dot(b".\r\n") == b""
    assert textproto.decode_dot(textproto.encode_dot(b".a\n\n.")) == b".a\n\n.\n"
    for part in (b"", b"a\r\n", b".", b"a\r\n.\r", b"a\n.\n"):
        with pytest.raises(UnexpectedEOF):
            textproto.decode_dot(part)
    for more in (b"\n", b".\r\n", b"QUIT\r\n"):
        with pytest.raises(ProtocolError):
            textproto.decode_dot(block + more)


def test_parse_response() -> None:
    assert textproto.parse_response(b"250-a\r\n250 b\r\n") == (250, "a\nb")
    for expect in (-1, 0, 2, 25, 250):
        assert textproto.parse_response(b"250 ok\r\n", expect) == (250, "ok")
    for expect in (3, 24, 251, 2500):
        with pytest.raises(ResponseError) as caught:
            textproto.parse_response(b"250-a\r\n250 b\r\n", expect)
        assert (caught.value.code, caught.value.message, str(caught.value)) == (250, "a\nb", "250 a\nb")
    with pytest.raises(UnexpectedEOF):
        textproto.parse_response(b"250-a\r\n")
    with pytest.raises(ProtocolError):
        textproto.parse_response(b"250 a\r\n250 b\r\n")
    with pytest.raises(ProtocolError):
        textproto.parse_response(b"hello\r\n")


def test_parse_mime_header() -> None:
    header = textproto.parse_mime_header(b"my-key: 1\r\nLong-Key: a\r\n b\r\nMY-KEY: 2\r\n\r\n")
    assert header == {"My-Key": ["1", "2"], "Long-Key": ["a b"]}
    assert list(header) == ["My-Key", "Long-Key"]
    assert textproto.parse_mime_header(b"a: b") == {"A": ["b"]}
    with pytest.raises(ProtocolError):
        textproto.parse_mime_header(b"a: b\r\n\r\nbody")
    with pytest.raises(HeaderError):
        textproto.parse_mime_header(b"a: b\r\na: c\r\n\r\n", max_fields=1)
    with pytest.raises(HeaderError):
        textproto.parse_mime_header(b"a: b\r\n\r\n", max_bytes=7)


def test_mime_header() -> None:
    header = MIMEHeader({"content-type": ["text/plain"]})
    header.add("x-a", "1")
    header.add("X-A", "2")
    assert header["X-a"] == header.get("x-A") == ["1", "2"]
    assert header.first("x-a") == "1" and header.first("none") == "" and header.first("none", "-") == "-"
    assert header.all("x-a") == ("1", "2") and header.all("none") == ()
    assert "CONTENT-TYPE" in header and "none" not in header
    header["x-b"] = ["3"]
    header.set("x-a", "4")
    header.update([("x-c", ("5", "6"))])
    assert header == {"Content-Type": ["text/plain"], "X-A": ["4"], "X-B": ["3"], "X-C": ["5", "6"]}
    copy = header.copy()
    copy.add("x-a", "7")
    assert header["x-a"] == ["4"] and isinstance(copy, MIMEHeader)
    assert header.setdefault("x-d") == [] and header.setdefault("x-a", ["8"]) == ["4"]
    assert header.pop("x-b") == ["3"] and header.pop("x-b", None) is None
    with pytest.raises(KeyError):
        header.pop("x-b")
    del header["x-d"]
    header.discard("x-c")
    header.discard("x-c")
    assert header.get("x-c") is None and header.get("x-c", []) == []
    assert repr(header) == "MIMEHeader({'Content-Type': ['text/plain'], 'X-A': ['4']})"
    header["x-e"] = []
    assert header.first("x-e", "-") == "-"


# ---- reader ----


@sizes
def test_lines(size: int) -> None:
    async def test(reader: Reader) -> None:
        assert await reader.read_line() == "one"
        assert await reader.read_line_bytes() == b"two\r"
        assert await reader.read_line() == ""
        assert await reader.read_line() == "é\udcff"
        assert not await reader.at_eof()
        with pytest.raises(UnexpectedEOF, match="within a line"):
            await reader.read_line()

    reading("one\r\ntwo\r\r\n\né".encode() + b"\xff\nrest", test, size)


def test_end_of_input() -> None:
    async def test(reader: Reader) -> None:
        assert await reader.read_line() == "x"
        assert await reader.at_eof()
        with pytest.raises(UnexpectedEOF, match="has ended"):
            await reader.read_line()
        with pytest.raises(EOFError):
            await reader.read_continued_line()

    reading(b"x\n", test)


@sizes
def test_lines_have_a_limit(size: int) -> None:
    async def test(reader: Reader) -> None:
        assert await reader.read_line() == "12345678"
        with pytest.raises(LineTooLong):
            await reader.read_line()

    reading(b"12345678\r\n123456789\r\n", test, size, max_line=10)

    async def endless(reader: Reader) -> None:
        with pytest.raises(LineTooLong):
            await reader.read_line()

    reading(b"1" * 11, endless, size, max_line=10)

    async def continued(reader: Reader) -> None:
        with pytest.raises(LineTooLong):
            await reader.read_continued_line()

    reading(b"12345\n 1\n 2\n 3\n", continued, size, max_line=10)


@sizes
def test_continued_lines(size: int) -> None:
    async def test(reader: Reader) -> None:
        assert await reader.read_continued_line() == "Line 1 continued..."
        assert await reader.read_continued_line_bytes() == b"Line 2"
        assert await reader.read_continued_line() == ""
        assert await reader.read_continued_line() == ""  # white space: it is not continued by the next
        assert await reader.read_continued_line() == " never"
        assert await reader.read_continued_line() == ""
        assert await reader.read_continued_line() == "last"
        with pytest.raises(UnexpectedEOF):
            await reader.read_continued_line()

    reading(b"Line 1 \r\n \t continued...\t\r\nLine 2\n\n\t \n never\n\t\n\nlast\r\n", test, size)


def test_code_lines() -> None:
    async def test(reader: Reader) -> None:
        assert await reader.read_code_line() == (123, "hi")
        assert await reader.read_code_line(23) == (234, "bye")
        with pytest.raises(ResponseError) as caught:
            await reader.read_code_line(346)
        assert (caught.value.code, caught.value.message) == (345, "no way")
        with pytest.raises(ProtocolError, match="more than one line"):
            await reader.read_code_line(250)
        with pytest.raises(ResponseError) as caught:
            await reader.read_code_line(3)
        assert (caught.value.code, caught.value.message) == (250, "two")
        with pytest.raises(ProtocolError):
            await reader.read_code_line()
        with pytest.raises(UnexpectedEOF):
            await reader.read_code_line()

    reading(b"123 hi\n234 bye\n345 no way\n250-one\r\n250-two\r\nhello\r\n", test)


@sizes
def test_responses(size: int) -> None:
    async def test(reader: Reader) -> None:
        assert await reader.read_response(220) == (220, "ready")
        assert await reader.read_response(25) == (250, "a\nb\nc")
        assert await reader.read_response() == (123, "First\nSecond\n 234 numbers\nlast")
        with pytest.raises(ResponseError) as caught:
            await reader.read_response(2)
        assert (caught.value.code, caught.value.message) == (550, "no\nnever")
        assert await reader.read_response() == (250, "")
        with pytest.raises(UnexpectedEOF):
            await reader.read_response()

    wire = b"220 ready\r\n250-a\r\n250-b\r\n250 c\r\n123-First\nSecond\n 234 numbers\n123 last\n550-no\r\n550 never\r\n250\r\n250-"
    reading(wire, test, size)


def test_responses_have_limits() -> None:
    async def many(reader: Reader) -> None:
        with pytest.raises(LineTooLong, match="too many lines"):
            await reader.read_response()

    reading(b"250-x\r\n" * (limits.REPLY_LINES + 1), many)

    async def long(reader: Reader) -> None:
        with pytest.raises(LineTooLong):
            await reader.read_response()

    reading(b"250 " + b"x" * 4 * limits.REPLY_LINE, long)


@sizes
def test_dot_encoded_texts(size: int) -> None:
    async def test(reader: Reader) -> None:
        assert await reader.read_dot_bytes() == b"dotlines\nfoo\n.bar\n..baz\nquux\n\n"
        assert await reader.read_dot_lines() == ["dotlines", "foo", ".bar", "", "é"]
        assert await reader.read_dot_lines() == []
        assert await reader.read_dot_bytes(keep_crlf=True) == b"a\r\n"
        assert await reader.read_line() == "QUIT"
        with pytest.raises(UnexpectedEOF):
            await reader.read_dot_bytes()

    wire = "dotlines\r\n.foo\r\n..bar\r\n...baz\r\nquux\r\n\r\n.\r\ndotlines\r\n.foo\r\n..bar\r\n\r\né\r\n.\r\n.\r\na\r\n.\r\nQUIT\r\nrest\r\n."
    reading(wire.encode(), test, size)


@sizes
def test_dot_reader(size: int) -> None:
    async def test(reader: Reader) -> None:
        text = reader.dot_reader()
        assert await text.read(0) == b""
        assert await text.read(1) == b"a"
        rest = b""
        while piece := await text.read(3):
            assert len(piece) <= 3
            rest += piece
        assert rest == b"bc\ndef\n"
        assert await text.read() == await text.read(1) == b""
        assert b"".join([piece async for piece in reader.dot_reader()]) == b"x\n" * 50
        assert await text.read() == b""  # it had been read to its end
        assert await reader.read_line() == "QUIT"

    reading(b"abc\r\ndef\r\n.\r\n" + b"x\r\n" * 50 + b".\r\nQUIT\r\n", test, size)


@sizes
def test_what_is_left_of_a_text_is_thrown_away(size: int) -> None:
    async def test(reader: Reader) -> None:
        first = reader.dot_reader()
        assert await first.read(1) == b"a"
        assert await reader.read_line() == "QUIT"
        with pytest.raises(ValueError, match="another method"):
            await first.read()
        untouched = reader.dot_reader()
        assert await reader.read_dot_bytes() == b"three\n"
        with pytest.raises(ValueError, match="another method"):
            await untouched.read(1)
        cut_off = reader.dot_reader()
        with pytest.raises(UnexpectedEOF):
            await cut_off.read()
        with pytest.raises(UnexpectedEOF):
            await reader.at_eof()

    reading(b"a\r\nb\r\n.\r\nQUIT\r\ntwo\r\n.\r\nthree\r\n.\r\nfour", test, size)


def test_dot_encoded_texts_have_a_limit() -> None:
    async def test(reader: Reader) -> None:
        assert await reader.read_dot_bytes() == b"1234\n"
        with pytest.raises(LineTooLong):
            await reader.read_dot_bytes()

    reading(b"1234\r\n.\r\n12345\r\n.\r\n", test, max_text=5)
    reading(b"1234\r\n.\r\n12345" * 10, lambda reader: reader.read_dot_bytes(), max_text=0)


@sizes
def test_mime_headers(size: int) -> None:
    async def test(reader: Reader) -> None:
        header = await reader.read_mime_header()
        assert header == {"My-Key": ["Value 1", "Value 2"], "Long-Key": ["Even Longer Value"]}
        assert isinstance(header, MIMEHeader)
        assert await reader.read_mime_header() == {}
        assert await reader.read_line() == "body"

    reading(b"my-key: Value 1  \r\nLong-key: Even \n Longer Value\r\nmy-Key: Value 2\r\n\n\r\nbody\r\n", test, size)


@pytest.mark.parametrize(
    ("block", "error"),
    [
        (b" a: b\r\n\r\n", HeaderError),
        (b"no colon\r\n\r\n", HeaderError),
        (b": b\r\n\r\n", HeaderError),
        (b"a b: c\r\n\r\n", HeaderError),
        (b"a: b\0c\r\n\r\n", HeaderError),
        (b"a: b\r\n" * 1001 + b"\r\n", HeaderError),
        (b"a: " + b"b" * 9000, HeaderError),
        (b"a: b\r\n" * 2000, HeaderError),
        (b"a: b\r\n", UnexpectedEOF),
        (b"a: b", UnexpectedEOF),
    ],
)
def test_what_is_no_mime_header(block: bytes, error: type[Exception]) -> None:
    async def test(reader: Reader) -> None:
        with pytest.raises(error):
            await reader.read_mime_header()

    reading(block, test, max_header=9000)


# ---- writer ----


def test_print_line() -> None:
    async def main() -> None:
        sink = Sink()
        writer = Writer(sink)
        await writer.print_line("NOOP é\udcff %s")
        assert sink.data == "NOOP é".encode() + b"\xff %s\r\n" and sink.drained == 1
        for line in ("a\nb", "a\r", "\r\n"):
            with pytest.raises(ProtocolError):
                await writer.print_line(line)
        assert sink.drained == 1

    asyncio.run(main())


def test_dot_writer() -> None:
    async def main() -> None:
        sink = Sink()
        writer = Writer(sink)
        async with writer.dot_writer() as text:
            await text.write(b".a\n")
            await text.write(b".b\r")
            await text.write(b"\n.")
            with pytest.raises(RuntimeError, match="is open"):
                await writer.print_line("x")
            with pytest.raises(RuntimeError, match="is open"):
                writer.dot_writer()
        assert sink.data == b"..a\r\n..b\r\n..\r\n.\r\n" and sink.drained == 4
        with pytest.raises(RuntimeError, match="is closed"):
            await text.write(b"x")
        await text.close()
        await writer.print_line("QUIT")
        text = writer.dot_writer()
        await text.close()
        assert sink.data.endswith(b"\r\nQUIT\r\n.\r\n")

    asyncio.run(main())


def test_a_text_that_broke_off_does_not_look_whole() -> None:
    async def main() -> None:
        sink = Sink()
        writer = Writer(sink)
        with pytest.raises(OSError):
            async with writer.dot_writer() as text:
                await text.write(b"half\n")
                raise OSError("gone")
        assert sink.data == b"half\r\n"
        with pytest.raises(RuntimeError, match="is open"):
            await writer.print_line("QUIT")

    asyncio.run(main())


# ---- pipeline ----


def test_pipeline_keeps_the_order() -> None:
    async def main() -> None:
        pipeline = Pipeline()
        events: list[str] = []

        async def user(number: int) -> None:
            await pipeline.start_request(number)
            events.append(f"request {number}")
            pipeline.end_request(number)
            await pipeline.start_response(number)
            events.append(f"response {number}")
            pipeline.end_response(number)

        numbers = [pipeline.next() for _ in range(5)]
        assert numbers == [0, 1, 2, 3, 4]
        await asyncio.gather(*(user(number) for number in reversed(numbers)))
        for kind in ("request", "response"):
            assert [event for event in events if event.startswith(kind)] == [f"{kind} {number}" for number in numbers]

    asyncio.run(main())


def test_pipeline_out_of_sequence() -> None:
    async def main() -> None:
        pipeline = Pipeline()
        with pytest.raises(ValueError, match="out of sequence"):
            pipeline.end_request(1)
        await pipeline.start_request(0)
        pipeline.end_request(0)
        with pytest.raises(ValueError, match="out of sequence"):
            await pipeline.start_request(0)
        with pytest.raises(ValueError, match="out of sequence"):
            pipeline.end_response(1)

    asyncio.run(main())


@pytest.mark.parametrize("early", [True, False])
def test_a_cancelled_start_gives_up_its_turn(early: bool) -> None:
    async def main() -> None:
        pipeline = Pipeline()
        await pipeline.start_request(0)
        waiting = [asyncio.create_task(pipeline.start_request(number)) for number in (1, 2, 3)]
        await asyncio.sleep(0)
        if not early:
            pipeline.end_request(0)
        waiting[0].cancel()
        waiting[1].cancel()
        if early:
            await asyncio.sleep(0)
            pipeline.end_request(0)
        assert [type(each) for each in await asyncio.gather(*waiting, return_exceptions=True)] == [
            asyncio.CancelledError, asyncio.CancelledError, type(None),
        ]  # fmt: skip
        pipeline.end_request(3)

    asyncio.run(main())


# ---- all of it ----


def test_text_conn() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        async with TextConn(reader, writer) as conn:
            await conn.print_line("220 ready")
            while (line := await conn.read_line()) != "QUIT":
                if line == "DATA":
                    await conn.print_line("354 go on")
                    lines = await conn.read_dot_lines()
                    await conn.print_line(f"250 {len(lines)} lines")
                else:
                    await conn.print_line(f"250-{line}")
                    await conn.print_line("250 ok")
            await conn.print_line("221 bye")

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        async with server:
            streams = await asyncio.open_connection(*server.sockets[0].getsockname()[:2])
            conn = TextConn(*streams)
            assert await conn.read_code_line(220) == (220, "ready")

            async def ask(line: str) -> tuple[int, str]:
                number = await conn.command(line)
                await conn.start_response(number)
                try:
                    return await conn.read_response(2)
                finally:
                    conn.end_response(number)

            assert await asyncio.gather(*(ask(f"NOOP {n}") for n in range(9))) == [
                (250, f"NOOP {n}\nok") for n in range(9)
            ]
            await conn.print_line("DATA")
            assert await conn.read_code_line(3) == (354, "go on")
            async with conn.dot_writer() as text:
                await text.write(b"one\n.two\n")
            assert await conn.read_code_line(250) == (250, "2 lines")
            assert await ask("QUIT") == (221, "bye")
            assert await conn.at_eof()
            await conn.close()
            await conn.close()

    asyncio.run(main())


def test_text_conn_over_anything() -> None:
    async def main() -> None:
        sink = Sink()
        async with TextConn(Source(b"250 ok\r\n"), sink) as conn:
            assert await conn.command("NOOP") == 0
            assert await conn.read_response() == (250, "ok")
            with pytest.raises(ProtocolError):
                await conn.command("NO\nOP")
            assert await conn.command("RSET") == 2
        await conn.close()
        assert sink.closed == 1 and sink.data == b"NOOP\r\nRSET\r\n"

        class Bare:
            def write(self, data: bytes) -> None: ...

            async def drain(self) -> None: ...

        await TextConn(Source(b""), Bare()).close()

    asyncio.run(main())
