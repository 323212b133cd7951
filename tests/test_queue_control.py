"""A queue's management over its socket: the same as by hand, and what goes wrong is said."""

from __future__ import annotations

import asyncio
import os
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fastsmtp import DeliverBy, EnhancedCode, MailParams, OriginalRecipient, RcptParams, Reply, ValidSince
from fastsmtp.delivery.queue import (
    Envelope,
    NoSuchMessage,
    QueueControl,
    QueueUnavailable,
    RemoteQueue,
    SQLiteQueue,
    Target,
)
from fastsmtp.errors import ConfigurationError

from .loops import Runner


@asynccontextmanager
async def pair(path: Path) -> AsyncIterator[tuple[SQLiteQueue, RemoteQueue]]:
    async with SQLiteQueue(path / "q") as queue, QueueControl(queue, str(path / "q" / "control")):
        remote = RemoteQueue(str(path / "q" / "control"))
        try:
            yield queue, remote
        finally:
            await remote.aclose()


def test_it_says_what_the_queue_says(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (queue, remote):
            params = MailParams(
                body="8BITMIME", smtputf8=True, ret="FULL", envid="e", by=DeliverBy(60, "N", True), solicit=("a", "b")
            )
            rcpt = RcptParams(
                ("FAILURE", "DELAY"),
                OriginalRecipient("rfc822", "x@y"),
                ValidSince(datetime(2020, 1, 2, tzinfo=UTC), "C"),
            )
            targets = (Target("a@x.example", "x.example", rcpt), Target("jö@y.example", "y.example"))
            first = await queue.put(Envelope("s@h.example", targets, params, origin={"HELO": "h"}, priority=2), b"one")
            second = await queue.put(Envelope("", targets[:1], expires=2e9), b"two" * 100_000)
            (claim,) = await queue.claim(lease=60, destination="x.example")
            await queue.retry(claim.lease, 1.9e9, Reply(450, EnhancedCode(4, 2, 0), "später"))
            for id in (first, second):
                assert await remote.get(id) == await queue.get(id)
                octets = b"".join([piece async for piece in remote.body(id)])
                assert octets == b"".join([piece async for piece in queue.body(id)])
            for destination in (None, "y.example"):
                assert await remote.list(destination=destination) == await queue.list(destination=destination)
            page = await remote.list(limit=1)
            assert page.after == first
            assert (await remote.list(limit=1, after=page.after)).messages[0].message.id == second
            assert await remote.stats() == await queue.stats()

    run(main)


def test_it_changes_what_the_queue_has(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (queue, remote):
            later = Envelope("", (Target("a@x.example", "x.example"),), not_before=2e9)
            id = await queue.put(later, b"")
            await remote.hold(id)
            assert (await queue.get(id)).message.held
            await remote.release(id)
            assert not (await queue.get(id)).message.held
            assert [await remote.flush("y.example"), await remote.flush("x.example")] == [0, 1]
            assert await remote.flush(id=id) == 0
            await remote.remove(id)
            for attempt in (remote.get, remote.hold, remote.release, remote.remove):
                with pytest.raises(NoSuchMessage):
                    await attempt(id)
            with pytest.raises(NoSuchMessage):
                await anext(remote.body(id))
            with pytest.raises(ValueError, match="limit"):
                await remote.list(limit=0)
            assert (await remote.stats()).messages == 0  # it goes on

    run(main)


def test_a_body_that_is_not_read_to_its_end(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (queue, remote):
            id = await queue.put(Envelope("", (Target("a@x.example", "x.example"),)), b"x" * 3_000_000)
            body = remote.body(id)
            await anext(body)
            await body.aclose()
            assert (await remote.stats()).messages == 1

    run(main)


def test_a_damaged_body_does_not_look_whole(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (queue, remote):
            id = await queue.put(Envelope("", (Target("a@x.example", "x.example"),)), b"x" * 3_000_000)
            os.truncate(tmp_path / "q" / "bodies" / id, 2_000_000)
            with pytest.raises(QueueUnavailable):
                async for _ in remote.body(id):
                    pass

    run(main)


def test_nobody_else_may_ask(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path):
            assert (tmp_path / "q" / "control").stat().st_mode & 0o777 == 0o600
        assert not (tmp_path / "q" / "control").exists()

    run(main)


def test_a_socket_that_a_dead_process_left_is_replaced(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (_, remote):
            await remote.stats()
            os.rename(tmp_path / "q" / "control", tmp_path / "left")
        os.rename(tmp_path / "left", tmp_path / "q" / "control")
        with pytest.raises(QueueUnavailable):
            await remote.stats()
        async with pair(tmp_path) as (_, remote):
            assert (await remote.stats()).messages == 0

    run(main)


def test_a_long_path(run: Runner, tmp_path: Path) -> None:
    if not Path("/proc/self/fd").exists():
        pytest.skip("no /proc")

    async def main() -> None:
        folder = tmp_path / ("x" * 100)
        folder.mkdir()
        async with pair(folder) as (_, remote):
            assert (await remote.stats()).messages == 0

    run(main)


def test_a_path_that_cannot_be(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with SQLiteQueue(tmp_path / "q") as queue:
            with pytest.raises(ConfigurationError, match="cannot listen on"):
                await QueueControl(queue, str(tmp_path / "no" / "control")).start()

    run(main)


@pytest.mark.parametrize("rubbish", [b"\xff\xff\xff\xff", b"\0\0\0\x02[]", b'\0\0\0\x0b{"do":"no"}', b"\0\0\0\x09"])
def test_rubbish_harms_nobody(run: Runner, tmp_path: Path, rubbish: bytes) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (_, remote):
            reader, writer = await asyncio.open_unix_connection(str(tmp_path / "q" / "control"))
            writer.write(rubbish)
            if writer.can_write_eof():
                writer.write_eof()
            answer = await reader.read()
            if answer:
                (length,) = struct.unpack(">I", answer[:4])
                assert length == len(answer) - 4 and b'"error": "QueueUnavailable"' in answer
            writer.close()
            assert (await remote.stats()).messages == 0

    run(main)


def test_who_asks_is_told_that_the_queue_was_closed(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with pair(tmp_path) as (queue, remote):
            await remote.stats()
            await queue.aclose()
            with pytest.raises(QueueUnavailable, match="closed"):
                await remote.stats()

    run(main)
