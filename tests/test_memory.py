"""100 MB through every process of ours, each below 80 MB: client, pass-through relay, next hop, and a queue with its worker.

Each is a process of its own, as its memory is what the system counts.  `python -m tests.test_memory ROLE ARGUMENTS` is one.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import pathlib
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fastsmtp import DataContext, DataReader, DefaultBackend, DefaultSession, Server
from fastsmtp.client import Client
from fastsmtp.client_options import ClientOptions
from fastsmtp.delivery.queue import Envelope, SQLiteQueue, Target
from fastsmtp.delivery.relay import RelayBackend
from fastsmtp.delivery.routes import FixedRoutes
from fastsmtp.delivery.worker import DeliveryWorker

MEGABYTE = 1_000_000
MOST = 80 * MEGABYTE
HEADER = b"Subject: large\r\n\r\n"
BLOCK = (b"." + b"x" * 74 + b".\r\n") * 1000
COUNT = -(-100 * MEGABYTE // len(BLOCK))


async def generated() -> AsyncIterator[bytes]:
    yield HEADER
    for _ in range(COUNT):
        yield BLOCK


def expected() -> str:
    digest = hashlib.sha256()
    for _ in range(COUNT):
        digest.update(BLOCK)
    return digest.hexdigest()


# The programs.


def tell(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def peak() -> int:
    """The most octets that this process ever had."""
    for line in pathlib.Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")


class Digesting(DefaultSession):
    """Tells what became of a message: the digest of what follows its header."""

    async def data(self, reader: DataReader, context: DataContext) -> None:
        digest = hashlib.sha256()
        head: bytes | None = b""
        async for chunk in reader:
            if head is None:
                digest.update(chunk)
                continue
            head += chunk
            _, end, rest = head.partition(b"\r\n\r\n")
            if end:
                digest.update(rest)
                head = None
        tell(digest=digest.hexdigest())


async def until_closed() -> None:
    """Until the test closes our standard input."""
    await asyncio.to_thread(sys.stdin.read)


async def serve(backend: Any, lmtp: bool, chunking: bool) -> None:
    options: dict[str, Any] = {"addr": "127.0.0.1:0", "lmtp": lmtp, "chunking": chunking, "max_message_bytes": 0}
    async with Server(backend, **options) as server:
        tell(port=server.port)
        await until_closed()


def destination(port: str, lmtp: bool) -> ClientOptions:
    return ClientOptions(host="127.0.0.1", port=int(port), lmtp=lmtp)


async def program(role: str, *words: str) -> None:
    lmtp, chunking = "lmtp" in words, "chunking" in words
    if role == "next-hop":
        await serve(DefaultBackend(Digesting), lmtp, chunking)
    elif role == "relay":
        async with RelayBackend(destination(words[0], "to-lmtp" in words)) as backend:
            await serve(backend, lmtp, chunking)
    elif role == "client":
        message: Any = generated() if words[1] == "generated" else open(words[1], "rb")  # noqa: SIM115
        async with Client(options=destination(words[0], lmtp)) as client:
            (delivery,) = await client.send_message("a@b.example", ["c@d.example"], message)
        tell(code=delivery.reply.code)
    elif role == "queue":
        scheme = "lmtp" if lmtp else "smtp"
        async with SQLiteQueue(pathlib.Path(words[1])) as queue:
            await queue.put(Envelope("a@b.example", (Target("c@d.example", "x"),)), generated())
            async with DeliveryWorker(queue, FixedRoutes(f"{scheme}://127.0.0.1:{words[0]}"), domain="me.example"):
                while (await queue.stats()).messages:
                    await asyncio.sleep(0.01)
        tell(code=250)
    tell(peak=peak())


# The tests.


class Program:
    """One that runs."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def told(self, what: str) -> Any:
        """The next thing that it tells."""
        assert self._process.stdout is not None
        return json.loads(self._process.stdout.readline())[what]

    def check(self) -> None:
        """It ends, and had no more memory than it may have."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        assert 10 * MEGABYTE < self.told("peak") < MOST
        assert self._process.wait(30) == 0


@contextmanager
def started(*words: object) -> Iterator[Program]:
    command = [sys.executable, "-m", "tests.test_memory", *map(str, words)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield Program(process)
        finally:
            process.kill()


def flags(**which: bool) -> list[str]:
    return [name.replace("_", "-") for name, given in which.items() if given]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("front", "back", "chunking", "source"),
    [
        ("smtp", "smtp", True, "generated"),
        ("smtp", "smtp", False, "file"),
        ("smtp", "lmtp", False, "generated"),
        ("lmtp", "lmtp", True, "file"),
    ],
)
def test_through_client_relay_and_next_hop(
    tmp_path: pathlib.Path, front: str, back: str, chunking: bool, source: str
) -> None:
    if source == "file":
        source = str(tmp_path / "message")
        with open(source, "wb") as file:
            file.write(HEADER)
            for _ in range(COUNT):
                file.write(BLOCK)
    with started("next-hop", *flags(lmtp=back == "lmtp", chunking=chunking)) as hop:
        port = hop.told("port")
        with started("relay", port, *flags(lmtp=front == "lmtp", to_lmtp=back == "lmtp", chunking=chunking)) as relay:
            with started("client", relay.told("port"), source, *flags(lmtp=front == "lmtp")) as client:
                assert client.told("code") == 250
                client.check()
            relay.check()
        assert hop.told("digest") == expected()
        hop.check()


@pytest.mark.slow
@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
def test_through_queue_and_worker(tmp_path: pathlib.Path, lmtp: bool) -> None:
    with started("next-hop", *flags(lmtp=lmtp, chunking=not lmtp)) as hop:
        with started("queue", hop.told("port"), tmp_path / "queue", *flags(lmtp=lmtp)) as queue:
            assert queue.told("code") == 250
            queue.check()
        assert hop.told("digest") == expected()
        hop.check()


if __name__ == "__main__":
    asyncio.run(program(*sys.argv[1:]))
