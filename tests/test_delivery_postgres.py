"""Delivery workers on one PostgreSQL: processes that share the work and are killed, a database that is stopped and started."""

from __future__ import annotations

import asyncio
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager

import pytest

from fastsmtp import DataContext, DataReader, DefaultBackend, DefaultSession, Server, SMTPError
from fastsmtp.client import Client
from fastsmtp.client_options import ClientOptions
from fastsmtp.delivery.queue import Envelope, PostgresQueue, Target
from fastsmtp.delivery.routes import FixedRoutes
from fastsmtp.delivery.worker import DeliveryWorker

from . import postgres as servers

pytestmark = [pytest.mark.slow, pytest.mark.skipif(bool(servers.absence()), reason=servers.absence())]

LEASE = 1.0


class Hop:
    """The next hop.

    Attributes:
        begun: who began a message and has not ended it, by the name that it says hello with.
        arrived: subjects of the messages that came whole, and who sent them.
        gate: messages are read only when it is open.
    """

    def __init__(self) -> None:
        self.begun: list[str] = []
        self.arrived: list[tuple[str, str]] = []
        self.gate = asyncio.Event()
        self.news = asyncio.Condition()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait until what arrives makes it so."""
        async with self.news:
            await self.news.wait_for(condition)

    def subjects(self) -> set[str]:
        return {subject for subject, _ in self.arrived}


class HopSession(DefaultSession):
    def __init__(self, hop: Hop) -> None:
        super().__init__()
        self._hop = hop

    async def data(self, reader: DataReader, context: DataContext) -> None:
        hop, name = self._hop, context.helo
        async with hop.news:
            hop.begun.append(name)
            hop.news.notify_all()
        await hop.gate.wait()
        octets = await reader.read()
        async with hop.news:
            hop.begun.remove(name)
            hop.arrived.append((octets.decode().partition("\r\n")[0], name))
            hop.news.notify_all()


@asynccontextmanager
async def next_hop() -> AsyncIterator[tuple[Hop, str]]:
    hop = Hop()
    async with Server(DefaultBackend(lambda: HopSession(hop)), addr="127.0.0.1:0") as server:
        yield hop, f"smtp://127.0.0.1:{server.port}"


def worker_of(queue: PostgresQueue, url: str, name: str) -> DeliveryWorker:
    routes = FixedRoutes(url, options=ClientOptions(local_hostname=name))
    return DeliveryWorker(queue, routes, domain="me.example", lease=LEASE, concurrency=2, batch=4, pause=0.05)


async def work(dsn: str, schema: str, url: str, name: str) -> None:
    """A process of its own: a worker, until the test kills it or closes its standard input."""
    async with PostgresQueue(dsn, schema=schema) as queue, worker_of(queue, url, name):
        await asyncio.to_thread(sys.stdin.read)


@contextlib.contextmanager
def process(dsn: str, schema: str, url: str, name: str) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-m", "tests.test_delivery_postgres", dsn, schema, url, name]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as started:
        try:
            yield started
        finally:
            started.kill()


def envelope(number: int) -> Envelope:
    return Envelope("", (Target(f"{number}@x.example", "x.example"),))


def test_one_of_two_processes_is_killed() -> None:
    """Both have units in their hands; one dies, its leases expire, and the other delivers what it had."""
    server, schema = servers.shared(), servers.schema_name()
    subjects = {f"Subject: {number}" for number in range(20)}

    async def main() -> None:
        async with next_hop() as (hop, url), PostgresQueue(server.dsn, schema=schema) as queue:
            for number in range(len(subjects)):
                await queue.put(envelope(number), b"Subject: %d\r\n\r\n" % number)
            first, second = "first.example", "second.example"
            with process(server.dsn, schema, url, first) as doomed, process(server.dsn, schema, url, second) as other:
                await hop.until(lambda: {first, second} <= set(hop.begun))
                assert (await queue.stats()).leased >= 2
                doomed.kill()
                doomed.wait()
                assert not hop.arrived
                hop.gate.set()
                await hop.until(lambda: hop.subjects() == subjects)
                while (await queue.stats()).messages:
                    await asyncio.sleep(0.01)
                assert other.stdin is not None
                other.stdin.close()
                assert await asyncio.to_thread(other.wait, 60) == 0
            assert second in {name for _, name in hop.arrived}
            # What the other had in its hands came once; of the dead one's two units, each at most once more.
            assert len(hop.arrived) <= len(subjects) + 2

    asyncio.run(main())


class PuttingSession(DefaultSession):
    """Puts each message into the queue."""

    def __init__(self, queue: PostgresQueue) -> None:
        super().__init__()
        self._queue = queue

    async def data(self, reader: DataReader, context: DataContext) -> None:
        targets = tuple(Target(each, "x.example") for each in context.recipients)
        await self._queue.put(Envelope(context.sender, targets), reader)


@pytest.mark.parametrize("mode", ["fast", "immediate"])
def test_the_database_is_stopped_and_started(mode: str) -> None:
    """Clients get 451 meanwhile; what they were told 250 for is delivered, and the worker goes on by itself."""
    server, schema = servers.Cluster(servers.FAST | {"fsync": "on"}), "fastsmtp"

    async def main() -> None:
        async with next_hop() as (hop, url), PostgresQueue(server.dsn, schema=schema, timeout=5) as queue:
            hop.gate.set()
            accepted: set[str] = set()
            refused: list[SMTPError] = []
            more = True

            async def client(port: int, name: str) -> None:
                number = 0
                async with Client("127.0.0.1", port) as connection:
                    while more:
                        number += 1
                        subject = f"Subject: {name}{number}"
                        (sent,) = await connection.send_message("", ["a@x.example"], f"{subject}\r\n\r\n".encode())
                        if sent.reply.accepted:
                            accepted.add(subject)
                        else:
                            refused.append(SMTPError.from_reply(sent.reply))
                            await asyncio.sleep(0.01)

            async with (
                Server(DefaultBackend(lambda: PuttingSession(queue)), addr="127.0.0.1:0") as ours,
                worker_of(queue, url, "me.example"),
                asyncio.TaskGroup() as clients,
            ):
                for name in "abcd":
                    clients.create_task(client(ours.port, name))
                await hop.until(lambda: len(hop.arrived) > 20)
                await asyncio.to_thread(server.stop, mode)
                while not refused:
                    await asyncio.sleep(0.01)
                before = len(accepted)
                await asyncio.to_thread(server.start)
                while len(accepted) < before + 20:
                    await asyncio.sleep(0.01)
                more = False
                await hop.until(lambda: accepted <= hop.subjects())
                while (await queue.stats()).messages:
                    await asyncio.sleep(0.01)
            assert {error.code for error in refused} == {451}

    try:
        asyncio.run(main())
    finally:
        server.remove()


if __name__ == "__main__":
    asyncio.run(work(*sys.argv[1:]))
