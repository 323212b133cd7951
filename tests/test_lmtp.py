"""LMTP (RFC 2033): a reply for each recipient, deliveries beside each other, deadlines, and clients that hang up."""

from __future__ import annotations

import asyncio
import pathlib
import re
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from fastsmtp import (
    DataContext,
    DataReader,
    DefaultBackend,
    DefaultSession,
    EnhancedCode,
    MessageAborted,
    Reply,
    Server,
    SMTPError,
)

from .loops import Runner

FULL = Reply(452, EnhancedCode(4, 2, 2), "Mailbox full")
OK = "250 2.0.0 Message accepted"


class Client:
    """Speaks LMTP as far as the replies to a message."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def line(self) -> str:
        return (await self.reader.readline()).decode().rstrip("\r\n")

    async def reply(self) -> str:
        while (line := await self.line())[3:4] == "-":
            pass
        return line

    async def envelope(self, *recipients: str) -> None:
        self.writer.write(b"LHLO x.example\r\nMAIL FROM:<s@x.example>\r\n")
        self.writer.writelines(f"RCPT TO:<{recipient}>\r\n".encode() for recipient in recipients)
        for _ in range(3 + len(recipients)):  # the greeting too
            assert (await self.reply())[0] == "2"

    async def send(self, text: bytes = b"x\r\n") -> None:
        self.writer.write(b"DATA\r\n")
        assert (await self.reply()).startswith("354 ")
        self.writer.write(text + b".\r\n")


@asynccontextmanager
async def connected(session: Callable[[], DefaultSession]) -> AsyncIterator[tuple[Server, Client]]:
    with tempfile.TemporaryDirectory() as folder:
        path = f"{folder}/lmtp"
        async with Server(DefaultBackend(session), addr="", unix_socket=path, lmtp=True) as server:
            reader, writer = await asyncio.open_unix_connection(path)
            try:
                yield server, Client(reader, writer)
            finally:
                writer.close()
                await writer.wait_closed()


async def gone(server: Server) -> None:
    """Wait until no connection is left."""
    while server.counters.connections:
        await asyncio.sleep(0.001)


def test_replies_in_the_order_of_recipients_whatever_that_of_statuses(run: Runner) -> None:
    class Store(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> Reply:
            await reader.read()
            context.set_status("c@d.example", FULL)
            context.set_status("a@d.example", SMTPError(550, EnhancedCode(5, 1, 1), "no a"))
            context.set_status("a@d.example", Reply(250, EnhancedCode(2, 1, 5), "a again"))
            return Reply(250, EnhancedCode(2, 6, 0), "the others")

    async def main() -> None:
        async with connected(Store) as (server, client):
            await client.envelope("a@d.example", "b@d.example", "a@d.example", "c@d.example")
            await client.send()
            replies = [await client.reply() for _ in range(4)]
            assert replies == ["550 5.1.1 no a", "250 2.6.0 the others", "250 2.1.5 a again", "452 4.2.2 Mailbox full"]
            assert (server.counters.messages, server.counters.recipients) == (1, 2)

    run(main)


def test_deliveries_beside_each_other(run: Runner) -> None:
    """Each waits for all others, so that they only end when they run at the same time."""

    class Store(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            await reader.read()
            barrier = asyncio.Barrier(len(context.recipients))

            async def deliver(number: int, recipient: str) -> None:
                await barrier.wait()
                context.set_status(recipient, Reply(250, EnhancedCode(2, 1, 5), f"delivery {number}"))

            async with asyncio.TaskGroup() as group:
                for number, recipient in enumerate(context.recipients):
                    group.create_task(deliver(number, recipient))

    async def main() -> None:
        async with connected(Store) as (_, client):
            names = [f"{number}@d.example" for number in range(20)]
            await client.envelope(*names)
            await client.send()
            assert [await client.reply() for _ in names] == [f"250 2.1.5 delivery {number}" for number in range(20)]

    run(main)


def test_one_that_hangs_holds_up_nobody(run: Runner) -> None:
    ended = asyncio.Event()

    class Store(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            await reader.read()
            for recipient in context.recipients:
                context.start_delivery(recipient, 0.01 if recipient.startswith("slow") else 600)
            context.set_status("a@d.example", FULL)
            context.set_status("b@d.example", Reply(250, EnhancedCode(2, 0, 0), "b"))
            try:
                await asyncio.Event().wait()
            finally:
                ended.set()

    async def main() -> None:
        async with connected(Store) as (server, client):
            await client.envelope("a@d.example", "slow@d.example", "b@d.example")
            await client.send()
            replies = [await client.reply() for _ in range(3)]
            assert replies == ["452 4.2.2 Mailbox full", "451 4.4.7 Delivery timed out", "250 2.0.0 b"]
            await ended.wait()
            client.writer.write(b"NOOP\r\n")
            assert (await client.reply()).startswith("250 ")
            assert server.counters.errors == 0

    run(main)


def test_a_status_after_the_deadline_is_too_late(run: Runner) -> None:
    class Store(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            await reader.read()
            context.start_delivery("slow@d.example", 0)
            while context.replies is None or context.replies[0] is None:
                await asyncio.sleep(0)
            with pytest.raises(ValueError, match="waits"):
                context.set_status("slow@d.example", Reply(250, EnhancedCode(2, 0, 0), "late"))
            context.set_status("b@d.example", FULL)

    async def main() -> None:
        async with connected(Store) as (_, client):
            await client.envelope("slow@d.example", "b@d.example")
            await client.send()
            assert await client.reply() == "451 4.4.7 Delivery timed out"
            assert await client.reply() == "452 4.2.2 Mailbox full"

    run(main)


def test_a_failure_leaves_the_statuses_that_are_set(run: Runner) -> None:
    class Store(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            context.set_status("a@d.example", Reply(250, EnhancedCode(2, 0, 0), "stored"))
            raise RuntimeError("a bug")

    async def main() -> None:
        async with connected(Store) as (server, client):
            await client.envelope("a@d.example", "b@d.example")
            await client.send()
            assert await client.reply() == "250 2.0.0 stored"
            assert (await client.reply()).startswith("451 4.3.0 ")
            assert server.counters.errors == 1

    run(main)


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "within"])
def test_a_client_that_hangs_up_cancels_the_delivery(run: Runner, whole: bool) -> None:
    """It saw no reply and will send all again: what is delivered now would come twice."""
    begun = asyncio.Event()
    ends: list[str] = []

    class Store(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            try:
                if whole:
                    await reader.read()
                else:
                    await reader.read(1)
                begun.set()
                await reader.read()
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                ends.append("cancelled")
                raise
            except MessageAborted:
                ends.append("aborted")
                raise

        def logout(self) -> None:
            ends.append("logout")

    async def main() -> None:
        async with connected(Store) as (server, client):
            await client.envelope("a@d.example", "b@d.example")
            if whole:
                await client.send()
            else:
                client.writer.write(b"DATA\r\n" + b"x" * 70 + b"\r\n")
                assert (await client.reply()).startswith("354 ")
                client.writer.write((b"x" * 70 + b"\r\n") * 2000)
            await begun.wait()
            client.writer.transport.abort()
            await gone(server)
            # One that has to wait for more of the message is told; one that has it all is cancelled.
            assert ends == ["cancelled" if whole else "aborted", "logout"]
            assert server.counters.messages == 0

    run(main)


def test_a_shielded_delivery_goes_on(run: Runner) -> None:
    begun = asyncio.Event()
    stored = asyncio.Event()
    go = asyncio.Event()

    class Store(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            await reader.read()

            async def past_the_point_of_no_return() -> None:
                begun.set()
                await go.wait()
                stored.set()

            await asyncio.shield(asyncio.ensure_future(past_the_point_of_no_return()))

    async def main() -> None:
        async with connected(Store) as (server, client):
            await client.envelope("a@d.example")
            await client.send()
            await begun.wait()
            client.writer.transport.abort()
            await gone(server)
            go.set()
            await stored.wait()

    run(main)


def test_the_example_in_the_docs(tmp_path: pathlib.Path) -> None:
    page = (pathlib.Path(__file__).parent.parent / "docs" / "lmtp.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)[0]
    script = tmp_path / "store.py"
    code = code.replace("await server.serve", 'print("ready", flush=True); await server.serve')
    script.write_text(code.replace("./lmtp", str(tmp_path / "lmtp")))
    process = subprocess.Popen([sys.executable, script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        assert process.stdout.readline() == "ready\n"

        async def main() -> None:
            reader, writer = await asyncio.open_unix_connection(tmp_path / "lmtp")
            client = Client(reader, writer)
            await client.envelope("full@d.example", "a@d.example")
            await client.send()
            assert [await client.reply(), await client.reply()] == ["452 4.2.2 Mailbox full", OK]
            writer.close()
            await writer.wait_closed()

        asyncio.run(main())
        assert process.stdout.readline() == "3 octets for a@d.example\n"
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
