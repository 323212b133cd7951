"""Sessions that keep nothing."""

from __future__ import annotations

import asyncio
import io
import itertools
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.delivery.sinks import DiscardSession, PrintSession, printable
from fastsmtp.errors import MessageAborted
from fastsmtp.session import DataReader
from tests.delivery_support import context, whole


def test_discard_streams_in_constant_memory() -> None:
    async def main() -> None:
        reader = DataReader()
        dropping = DiscardSession().data(reader, context())
        assert dropping is not None
        task = asyncio.ensure_future(dropping)
        tracemalloc.start()
        try:
            for _ in range(1000):
                reader.feed_data(bytes(65536))
                await asyncio.sleep(0)
            reader.feed_eof()
            await task
            assert tracemalloc.get_traced_memory()[1] < 1_000_000
        finally:
            tracemalloc.stop()
        assert reader.size == 65_536_000

    asyncio.run(main())


def test_discard_does_not_take_a_message_that_was_cut() -> None:
    async def main() -> None:
        reader = DataReader()
        reader.feed_data(b"half")
        reader.set_exception(MessageAborted("gone"))
        with pytest.raises(MessageAborted):
            dropping = DiscardSession().data(reader, context())
            assert dropping is not None
            await dropping

    asyncio.run(main())


def _print(body: list[bytes]) -> str:
    out = io.StringIO()

    async def main() -> None:
        reader = DataReader()
        task = asyncio.ensure_future(PrintSession(out).data(reader, context("a@b", "c@d", "e@f")))
        await asyncio.sleep(0)
        for chunk in body:
            reader.feed_data(chunk)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        reader.feed_eof()
        assert await task is None

    asyncio.run(main())
    return out.getvalue()


def test_print() -> None:
    assert _print([b"Subject: x\r\n\r\n\tb\x1b[2Jody \xc3\xa4\xff\r\n"]) == (
        "---------- MAIL FROM:<a@b>\n---------- RCPT TO:<c@d>\n---------- RCPT TO:<e@f>\n"
        "Subject: x\n\n\tb\\x1b[2Jody \u00e4\\xff\n---------- 29 octets\n"
    )


def test_print_of_an_empty_message() -> None:
    assert _print([]).endswith("RCPT TO:<e@f>\n---------- 0 octets\n")


@given(st.binary(max_size=60), st.lists(st.integers(0, 60), max_size=6))
def test_print_does_not_depend_on_chunks(body: bytes, cuts: list[int]) -> None:
    places = sorted({0, len(body), *(cut for cut in cuts if cut < len(body))})
    chunks = [body[a:b] for a, b in itertools.pairwise(places)]
    assert _print(chunks) == _print([body])


def test_print_says_when_a_message_is_cut() -> None:
    out = io.StringIO()

    async def main() -> None:
        reader = DataReader()
        reader.feed_data(b"half")
        task = asyncio.ensure_future(PrintSession(out).data(reader, context()))
        await asyncio.sleep(0)
        reader.set_exception(MessageAborted("gone"))
        with pytest.raises(MessageAborted):
            await task

    asyncio.run(main())
    assert out.getvalue().endswith("half\n---------- cut off after 4 octets\n")


def test_print_to_a_terminal_without_utf8() -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding="ascii", newline="")

    async def main() -> None:
        await PrintSession(stream).data(whole("\u00e4\r\n".encode()), context())

    asyncio.run(main())
    assert b"\n\\xe4\n" in raw.getvalue()


@given(st.text())
def test_printable(text: str) -> None:
    safe = printable(text)
    assert not any(ord(char) < 32 and char not in "\n\t" for char in safe)
    assert not any(0x7F <= ord(char) < 0xA0 for char in safe)
