"""kill -9 at any moment: what `put` returned for is in the queue, whole, or was delivered; nothing half is there.

Each round opens the queue in a process of its own, loads it, delivers some of it and kills the process at a random
acknowledgement.  FASTSMTP_KILLS sets the number of rounds.
"""

from __future__ import annotations

import asyncio
import hashlib
import os
import random
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fastsmtp.delivery.queue import Envelope, SQLiteQueue, Target

KILLS = int(os.environ.get("FASTSMTP_KILLS", "5"))
SESSIONS = 8
LONGEST_ROUND = 300  # acknowledgements


def body(number: int) -> bytes:
    """A message that tells its number and proves to be whole; one of ten has a side file."""
    numbers = random.Random(number)
    text = b"%d\n" % number + numbers.randbytes(numbers.choice([10, 4000, 4000, 4000, 4000, 60_000, 9, 9, 9, 300_000]))
    return text + hashlib.sha256(text).digest()


def number_of(text: bytes) -> int:
    number = int(text.split(b"\n", 1)[0])
    assert text == body(number)
    return number


async def whole(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def load(path: str, first: int) -> None:
    """Put and deliver until killed; tells each message that was put (P) and each delivery before it is settled (D)."""

    def tell(kind: bytes, number: int) -> None:
        os.write(1, b"%s %d\n" % (kind, number))

    async def put(queue: SQLiteQueue, session: int) -> None:
        number = first + session
        while True:
            domains = ["x.example", "y.example"][: 1 + number % 2]
            targets = tuple(Target(f"r@{domain}", domain) for domain in domains)
            await queue.put(Envelope("s@example.org", targets), body(number))
            tell(b"P", number)
            number += SESSIONS

    async def deliver(queue: SQLiteQueue) -> None:
        choice = random.Random()
        while True:
            await queue.ready()
            for claim in await queue.claim(lease=60, limit=5):
                number = number_of(await whole(claim.body()))
                if choice.random() < 0.5:
                    await queue.retry(claim.lease, claim.message.received + 1e6)
                else:
                    tell(b"D" + claim.destination[:1].encode(), number)
                    await queue.acknowledge(claim.lease)

    async with SQLiteQueue(path) as queue:
        async with asyncio.TaskGroup() as group:
            for session in range(SESSIONS):
                group.create_task(put(queue, session))
            group.create_task(deliver(queue))


def kill_one(path: Path, first: int, enough: int) -> list[tuple[str, int]]:
    """What one process told until it was killed after so many lines."""
    command = [sys.executable, "-m", "tests.test_queue_kill", str(path), str(first)]
    lines: list[bytes] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                if len(lines) == enough:
                    process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    assert len(lines) >= enough
    told = [line.split() for line in lines if line.endswith(b"\n")]
    return [(kind.decode(), int(number)) for kind, number in told]


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * KILLS)
def test_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "q"
    moments = random.Random()
    put: set[int] = set()
    delivered: set[tuple[str, int]] = set()
    for turn in range(KILLS):
        for kind, number in kill_one(path, turn * 1_000_000 + turn % 2, moments.randrange(1, LONGEST_ROUND)):
            if kind == "P":
                put.add(number)
            else:
                delivered.add((kind[1:], number))

    async def check() -> None:
        found: dict[int, str] = {}
        files = []
        async with SQLiteQueue(path) as queue:
            after = None
            while True:
                page = await queue.list(after=after)
                for each in page.messages:
                    text = await whole(queue.body(each.message.id))
                    number = number_of(text)
                    assert number not in found
                    found[number] = each.message.id
                    assert len(each.recipients) == 1 + number % 2
                    if len(text) > 65536:
                        files.append(each.message.id)
                    for recipient in each.recipients:
                        told = (recipient.destination[0], number) in delivered
                        assert recipient.state == "pending" or told
                after = page.after
                if after is None:
                    break
            assert sorted(os.listdir(path / "bodies")) == files
            assert (await queue.stats()).messages == len(found)
        for number in put - set(found):
            for destination in "xy"[: 1 + number % 2]:
                assert (destination, number) in delivered, number
        # At most what was under way at each kill is there without an answer.
        assert len(set(found) - put) <= KILLS * (SESSIONS + 16)

    asyncio.run(check())


if __name__ == "__main__":
    asyncio.run(load(sys.argv[1], int(sys.argv[2])))
