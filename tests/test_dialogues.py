"""Every dialogue, on the bare core and over a socket, in every cut."""

from __future__ import annotations

import asyncio
import pathlib
from collections.abc import Callable

import pytest

from fastsmtp import DataContext, DataReader, DefaultBackend, DefaultSession, Server, ServerOptions
from fastsmtp.protocol import Body, Hello, Reset, ServerProfile, ServerProtocol

from .dialogue import CUTS, Dialogue, cut, load, matches
from .loops import LOOPS

FILES = sorted((pathlib.Path(__file__).parent / "dialogues").glob("*.txt"))
DIALOGUES = [pytest.param(load(path), id=path.stem) for path in FILES]


def compare(step_replies: tuple[str, ...], lines: list[str]) -> None:
    assert len(lines) == len(step_replies), lines
    for expected, line in zip(step_replies, lines, strict=True):
        assert matches(expected, line), f"{expected!r} was expected, not {line!r}"


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_on_the_core(dialogue: Dialogue, how: str) -> None:
    core = ServerProtocol(ServerProfile(ServerOptions(**dialogue.options)))  # type: ignore[arg-type]
    core.greet()
    messages: list[int] = []
    size = 0
    for step in dialogue.steps:
        out = b""
        for piece in cut(step.sent, how):
            core.receive_data(piece)
            while (event := core.next_event()) is not None:
                if isinstance(event, Body):
                    size += len(event.payload)
                    if event.ended:
                        if event.refusal is None:
                            messages.append(size)
                        size = 0
                elif isinstance(event, Reset | Hello):
                    size = 0
                if core.awaiting_reply:
                    core.reply()
            out += core.data_to_send()
        out += core.data_to_send()
        assert out.endswith(b"\r\n") or not out
        compare(step.replies, out.decode().split("\r\n")[:-1])
        assert tuple(messages) == step.messages
        messages.clear()
        assert core.closing is step.closed


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("how", ["whole", "octets"])
@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_over_a_socket(dialogue: Dialogue, how: str, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    messages: list[int] = []

    class Recording(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            await reader.read()
            messages.append(reader.size)

    options = ServerOptions(addr="127.0.0.1:0", **dialogue.options)  # type: ignore[arg-type]

    async def main() -> None:
        async with Server(DefaultBackend(Recording), options=options) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            for step in dialogue.steps:
                for piece in cut(step.sent, how):
                    writer.write(piece)
                    if how == "octets":
                        await asyncio.sleep(0)
                lines = [(await reader.readline()).decode().removesuffix("\r\n") for _ in step.replies]
                compare(step.replies, lines)
                assert tuple(messages) == step.messages
                messages.clear()
                if step.closed:
                    assert await reader.read() == b""
            writer.close()
            await writer.wait_closed()

    with asyncio.Runner(loop_factory=loop, debug=True) as runner:
        runner.run(asyncio.wait_for(main(), 30))
