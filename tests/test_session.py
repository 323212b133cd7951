"""The reader of a message, its context, and the defaults to build upon."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp import (
    AuthUnsupported,
    Backend,
    DataContext,
    DataReader,
    DataTooLarge,
    DefaultBackend,
    DefaultSession,
    EnhancedCode,
    MailParams,
    MessageAborted,
    RcptParams,
    Reply,
    Server,
    SMTPError,
)
from fastsmtp.session import HookResult, streaming


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        await asyncio.wait_for(main(), 30)

    asyncio.run(bounded(), debug=True)


def whole(*chunks: bytes) -> DataReader:
    reader = DataReader()
    for chunk in chunks:
        reader.feed_data(chunk)
    reader.feed_eof()
    return reader


def test_reading_what_is_there() -> None:
    async def main() -> None:
        assert await whole(b"ab", b"cd").read() == b"abcd"
        reader = whole(b"ab", b"cd")
        assert [await reader.read(n) for n in (0, 1, 2, 9, 9)] == [b"", b"a", b"bc", b"d", b""]
        assert [chunk async for chunk in whole(b"ab", b"cd")] == [b"abcd"]
        assert [chunk async for chunk in whole()] == []
        assert reader.size == 4 and reader.complete and reader.buffered == 0
        assert await reader.read() == b""

    run(main)


@given(st.lists(st.binary(max_size=9), max_size=9), st.lists(st.integers(0, 12), max_size=30))
def test_any_sizes_give_the_same_octets(chunks: list[bytes], sizes: list[int]) -> None:
    reader = whole(*chunks)
    text = b"".join(reader.read_nowait(size) for size in sizes) + reader.read_nowait()
    assert text == b"".join(chunks)
    assert reader.size == len(text)


def test_reading_what_is_still_to_come() -> None:
    async def main() -> None:
        for how in ("all", "some", "for"):
            reader = DataReader()

            async def take(reader: DataReader = reader, how: str = how) -> bytes:
                if how == "all":
                    return await reader.read()
                if how == "for":
                    return b"".join([chunk async for chunk in reader])
                return await reader.read(100) + await reader.read(100) + await reader.read(100)

            task = asyncio.ensure_future(take())
            for chunk in (b"one ", b"two"):
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                reader.feed_data(chunk)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            reader.feed_eof()
            assert await task == b"one two"

    run(main)


def test_what_ends_early_never_looks_whole() -> None:
    async def main() -> None:
        for error in (MessageAborted("gone"), DataTooLarge()):
            reader = DataReader()
            reader.feed_data(b"half")
            reader.set_exception(error)
            assert not reader.complete
            for read in (reader.read(), reader.read(2)):
                with pytest.raises(type(error)):
                    await read
            with pytest.raises(type(error)):
                reader.read_nowait()
            with pytest.raises(type(error)):
                async for _ in reader:
                    raise AssertionError("a chunk of a message that is none")
        waiting = DataReader()
        task = asyncio.ensure_future(waiting.read())
        await asyncio.sleep(0)
        waiting.set_exception(MessageAborted("gone"))
        with pytest.raises(MessageAborted):
            await task

    run(main)


def test_one_reader_at_a_time() -> None:
    async def main() -> None:
        reader = DataReader()
        first = asyncio.ensure_future(reader.read())
        await asyncio.sleep(0)
        with pytest.raises(RuntimeError):
            await reader.read()
        reader.feed_eof()
        assert await first == b""

    run(main)


def test_room_is_told() -> None:
    told: list[int] = []
    reader = DataReader(lambda: told.append(reader.buffered))
    reader.feed_data(b"x" * 100_000)
    reader.read_nowait(10)
    assert told == []
    reader.read_nowait(90_000)
    assert told == [9_990]


def context(*recipients: str) -> DataContext:
    conn: Any = None
    return DataContext(conn, "a@b", MailParams(), recipients, [RcptParams()] * len(recipients), "x.example")


def test_statuses() -> None:
    async def main() -> None:
        each = context("1@d", "2@d", "1@d")
        refusal = SMTPError(550, EnhancedCode(5, 1, 1), "nobody")
        each.set_status("1@d", refusal)
        each.set_status("1@d", Reply(250))
        assert each.replies == [refusal.reply, None, Reply(250)]
        for name in ("1@d", "3@d"):
            with pytest.raises(ValueError, match="waits"):
                each.set_status(name, Reply(250))
        each.set_smtp_response(refusal)
        assert each.response == refusal.reply
        assert (each.helo, each.sender) == ("x.example", "a@b")

    run(main)


def test_deliveries_have_deadlines() -> None:
    async def main() -> None:
        answered = asyncio.Event()
        each = context("1@d", "2@d", "1@d")
        each.start_delivery("1@d", 0.001)
        each.start_delivery("1@d", 600)
        with pytest.raises(ValueError, match="waits"):
            each.start_delivery("1@d", 1)
        each.when_answered(answered.set)
        while each.replies is None or each.replies[0] is None:
            await asyncio.sleep(0)
        assert each.replies[0].code == 451 and each.replies[0].enhanced_code == (4, 4, 7)
        each.set_status("1@d", Reply(250))
        assert not answered.is_set()
        each.set_status("2@d", Reply(250))
        assert answered.is_set()
        each.close()

    run(main)


def test_defaults() -> None:
    backend = DefaultBackend(DefaultSession)
    assert isinstance(backend, Backend)
    state: Any = None
    one, other = backend.anonymous_login(state), backend.anonymous_login(state)
    assert one is not other
    with pytest.raises(AuthUnsupported):  # no password is right where there is no authentication
        backend.login(state, "user", "password")
    session = DefaultSession()
    session.mail("a@b", MailParams())
    session.rcpt("c@d", RcptParams())
    assert (session.sender, session.recipients) == ("a@b", ["c@d"])
    session.reset()
    assert (session.sender, session.recipients) == (None, [])


class Sometimes(DefaultSession):
    """Answers a whole message at once, and reads another one in pieces."""

    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[int] = []

    @streaming
    def data(self, reader: DataReader, context: DataContext) -> HookResult:
        return Reply(250, message="at once") if reader.complete else self._read(reader)

    async def _read(self, reader: DataReader) -> Reply:
        async for piece in reader:
            self.pieces.append(len(piece))
        return Reply(250, message="in pieces")


@pytest.mark.parametrize(("size", "answer"), [(50, b"at once"), (1_000_000, b"in pieces")])
def test_a_plain_hook_that_streams(size: int, answer: bytes) -> None:
    session = Sometimes()

    async def scenario() -> None:
        async with Server(DefaultBackend(lambda: session), addr="127.0.0.1:0") as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            writer.write(b"EHLO a\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
            await reader.readuntil(b"354")
            writer.write((b"x" * 48 + b"\r\n") * (size // 50) + b".\r\nQUIT\r\n")
            assert answer in await reader.read()
            writer.close()

    asyncio.run(scenario())
    assert sum(session.pieces) == (size if size > 50 else 0)
    assert len(session.pieces) > 1 or size == 50
