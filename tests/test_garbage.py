"""What is over is freed at once: no connection and no message leaves a cycle of references for the garbage collector."""

from __future__ import annotations

import asyncio
import gc
import io
import subprocess
import sys
from collections.abc import Iterator

import pytest

from fastsmtp import DataContext, DataReader, DefaultBackend, DefaultSession, MailParams, Reply, Server

from .loops import Runner

MESSAGE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n", b"Subject: x\r\n\r\ny\r\n.\r\n"


class Plain(DefaultSession):
    def data(self, reader: DataReader, context: DataContext) -> None:
        reader.read_nowait()


class Streaming(DefaultSession):
    async def mail(self, sender: str, params: MailParams) -> None:
        await asyncio.sleep(0)

    async def data(self, reader: DataReader, context: DataContext) -> Reply | None:
        async for _ in reader:
            await asyncio.sleep(0)
        return None


class Early(DefaultSession):
    async def data(self, reader: DataReader, context: DataContext) -> None:
        await reader.read(1)


@pytest.fixture
def collected() -> Iterator[list[object]]:
    """What the collector finds, instead of freeing it; nothing is found before the test asks.

    What was there before is not looked at, which makes each look quick.
    """
    gc.collect(0)
    gc.freeze()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        yield gc.garbage
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.unfreeze()
        gc.enable()


@pytest.mark.parametrize("debug", [None, io.StringIO()], ids=["quiet", "traced"])
@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("session", [Plain, Streaming, Early])
def test_no_cycles(
    run: Runner, collected: list[object], session: type[DefaultSession], lmtp: bool, debug: io.StringIO | None
) -> None:
    async def converse(server: Server, body: bytes) -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
        for octets in (b"LHLO x.example\r\n" if lmtp else b"EHLO x.example\r\n", MESSAGE[0]):
            writer.write(octets)
        await reader.readuntil(b"354 ")
        writer.write(body + MESSAGE[1])
        writer.write(MESSAGE[0])
        await reader.readuntil(b"354 ")
        writer.write(b"x\r\n.\r\nRSET\r\nQUIT\r\n")
        assert b"\r\n221 " in await reader.read()
        writer.close()
        await writer.wait_closed()

    async def main() -> None:
        async with Server(DefaultBackend(session), addr="127.0.0.1:0", lmtp=lmtp, debug=debug) as server:
            gc.collect()
            collected.clear()  # what earlier tests left
            for body in (b"", b"x" * 70 + b"\r\n", (b"y" * 70 + b"\r\n") * 4000):
                await converse(server, body)
            while server.counters.connections:
                await asyncio.sleep(0)
            gc.collect()
            ours = {type(each).__name__ for each in collected if type(each).__module__.startswith("fastsmtp.")}
            assert not ours

    run(main)


def test_serve_settles_its_memory() -> None:
    code = (
        "import gc\nfrom fastsmtp._memory import settle\nbefore = gc.get_threshold()\nsettle()\n"
        "assert gc.get_freeze_count() > 0 and gc.get_threshold()[0] > before[0]"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
