"""The queue in PostgreSQL: several processes, a server that goes and comes back, its standby, what it refuses, crashes."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import random
import signal
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest

from fastsmtp.delivery.queue import (
    Claim,
    Envelope,
    Lease,
    LeaseLost,
    NoSuchMessage,
    PostgresQueue,
    QueueFull,
    QueueUnavailable,
    Result,
    State,
    Target,
    _pglanes,
    _pgputs,
    _pgsql,
    postgres,
)
from fastsmtp.errors import ConfigurationError

from . import postgres as servers
from .loops import Runner

pytestmark = pytest.mark.skipif(bool(servers.absence()), reason=servers.absence())

ENVELOPE = Envelope("s@example.org", (Target("a@x.example", "x.example"),))
TWO = Envelope("s@example.org", (Target("a@x.example", "x.example"), Target("b@y.example", "y.example")))
LARGE = 600_000  # three chunks


class Place:
    """A schema of a server, in which queues are opened."""

    def __init__(self, server: servers.Cluster) -> None:
        self.server = server
        self.schema = servers.schema_name()

    def open(self, **options: Any) -> PostgresQueue:
        return PostgresQueue(self.server.dsn, schema=self.schema, **options)

    def sql(self, command: str) -> str:
        return self.server.sql(f"SET search_path TO {self.schema}; {command}")

    def count(self, table: str) -> int:
        return int(self.sql(f"SELECT count(*) FROM {table}"))


class Clock:
    """Seconds since the epoch that pass when a test says so."""

    now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def place() -> Place:
    return Place(servers.shared())


@pytest.fixture
def own() -> Iterator[Place]:
    """On a server that the test may stop."""
    server = servers.Cluster(servers.FAST)
    yield Place(server)
    server.remove()


async def text(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def pieces_of(body: bytes, step: int) -> AsyncIterator[bytes]:
    for at in range(0, len(body), step):
        yield body[at : at + step]


async def one(queue: PostgresQueue, **options: Any) -> Claim:
    (claim,) = await queue.claim(**{"lease": 60, **options})
    return claim


async def until(attempt: Callable[[], Awaitable[Any]], *errors: type[Exception]) -> Any:
    """What `attempt` returns when it raises nothing of this any more."""
    while True:
        try:
            return await attempt()
        except errors:
            await asyncio.sleep(0.01)


async def in_thread(function: Callable[..., Any], *arguments: Any) -> Any:
    return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


# Several queues.


def test_two_queues_share_the_work(place: Place, run: Runner) -> None:
    async def main() -> None:
        seen: list[str] = []

        async def work(queue: PostgresQueue) -> int:
            count = 0
            while len(seen) < 200:
                claims = await queue.claim(lease=60, limit=3)
                if not claims:
                    await asyncio.wait([asyncio.ensure_future(queue.ready()), finished], return_when="FIRST_COMPLETED")
                for claim in claims:
                    assert await text(claim.body()) == claim.message.sender.encode()
                    seen.append(claim.message.id)
                    assert await queue.acknowledge(claim.lease)
                count += len(claims)
            if not finished.done():
                finished.set_result(None)
            return count

        finished = asyncio.get_running_loop().create_future()
        async with place.open() as first, place.open() as second:
            ids = await asyncio.gather(
                *(
                    (first, second)[number % 2].put(Envelope(f"{number}", ENVELOPE.targets), b"%d" % number)
                    for number in range(200)
                )
            )
            assert len(set(ids)) == 200
            counts = await asyncio.gather(work(first), work(second), work(first), work(second))
            assert sorted(seen) == sorted(ids)
            assert counts[0] + counts[2] and counts[1] + counts[3]
            assert await first.stats() == await second.stats()
            assert (await first.stats()).messages == 0
            assert place.count("unit") == 0

    run(main)


def test_tables_are_made_once(place: Place, run: Runner) -> None:
    async def main() -> None:
        queues = [place.open() for _ in range(6)]
        ids = await asyncio.gather(*(queue.put(ENVELOPE, b"x") for queue in queues))
        assert len({*ids}) == 6
        assert (await queues[0].stats()).messages == 6
        await asyncio.gather(*(queue.aclose() for queue in queues))
        assert repr(queues[0]) == f"<PostgresQueue {place.schema!r}>"

    run(main)


def test_another_queue_is_told(place: Place, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "LONGEST_WAIT", 1000.0)

    async def main() -> None:
        async with place.open() as sending, place.open() as receiving:
            for _ in range(3):
                waiting = asyncio.create_task(sending.ready())
                await sending.stats()
                id = await receiving.put(ENVELOPE, b"x")
                await waiting
                claim = await one(sending)
                assert claim.message.id == id
                await sending.acknowledge(claim.lease)
            held = await receiving.put(Envelope("", ENVELOPE.targets, held=True), b"x")
            waiting = asyncio.create_task(sending.ready())
            await sending.stats()
            await receiving.release(held)
            await waiting

    run(main)


def test_the_last_news_are_told_before_the_end(place: Place, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "LONGEST_WAIT", 1000.0)

    async def main() -> None:
        async with place.open() as sending:
            waiting = asyncio.create_task(sending.ready())
            while not (
                listening := place.server.sql("SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'LISTEN%'")
            ):
                await asyncio.sleep(0.01)
            assert listening
            async with place.open() as receiving:
                await receiving.put(ENVELOPE, b"x")
            await waiting

    run(main)


def test_leases_expire_by_the_clock_of_the_server(place: Place, run: Runner) -> None:
    async def main() -> None:
        async with place.open() as first, place.open() as second:
            before = time.time()
            id = await first.put(ENVELOPE, b"x")
            claim = await one(first, lease=0.1)
            assert before < claim.lease.deadline - 0.1 <= time.time()
            await second.ready()
            again = await one(second)
            assert again.message.id == id
            for attempt in (
                first.acknowledge(claim.lease),
                first.renew(claim.lease, 60),
                first.settle(claim.lease, {}),
            ):
                with pytest.raises(LeaseLost):
                    await attempt
            with pytest.raises(LeaseLost):
                await first.renew(Lease(claim.lease.id, claim.lease.deadline), 60)
            assert await second.acknowledge(again.lease)

    run(main)


def test_what_is_closed_gives_its_leases_back(place: Place, run: Runner) -> None:
    async def main() -> None:
        async with place.open() as first, place.open() as second:
            ids = [await first.put(ENVELOPE, b"x") for _ in range(3)]
            claims = await first.claim(lease=600, limit=3)
            await first.retry(claims[0].lease, time.time() + 600)
            await first.hold(ids[2])
            await first.aclose()
            assert [claim.message.id for claim in await second.claim(lease=60, limit=9)] == ids[1:2]
            assert (await second.stats()).leased == 1
            await second.release(ids[2])
            assert (await one(second)).message.id == ids[2]

    run(main)


def test_the_destinations_of_a_message_end_in_two_queues_at_once(place: Place, run: Runner) -> None:
    async def main() -> None:
        async with place.open() as first, place.open() as second:
            for size in (10, LARGE):
                for _ in range(5):
                    await first.put(TWO, bytes(size))
                    leases = (await one(first)).lease, (await one(second)).lease
                    gone = await asyncio.gather(first.acknowledge(leases[0]), second.fail(leases[1]))
                    assert sorted(gone) == [False, True]
            assert [place.count(table) for table in ("message", "unit", "chunk", "incoming")] == [0, 0, 0, 0]
            assert (await second.stats()).octets == 0

    run(main)


def test_a_unit_is_settled_once(place: Place, run: Runner) -> None:
    async def main() -> None:
        async with place.open() as queue:
            for envelope in (ENVELOPE, TWO):
                await queue.put(envelope, b"x")
                lease = (await one(queue)).lease
                later = Result(State.PENDING)
                outcomes = await asyncio.gather(
                    queue.settle(lease, {}, others=later, retry_at=time.time() + 600),
                    queue.acknowledge(lease),
                    queue.acknowledge(lease),
                    return_exceptions=True,
                )
                assert [type(each) for each in outcomes] == [bool, LeaseLost, LeaseLost]
            assert (await queue.stats()).deferred == 2

    run(main)


def test_a_group_of_everything(place: Place, run: Runner) -> None:
    async def main() -> None:
        async with place.open() as queue:
            for body in (b"x", bytes(LARGE)):
                for envelope in (ENVELOPE, TWO, TWO, ENVELOPE):
                    await queue.put(envelope, body)
            claims = await queue.claim(lease=60, limit=20, destination="x.example")
            others = await queue.claim(lease=60, limit=20, destination="y.example")
            await queue.remove(claims[0].message.id)
            groups = queue._settlements.groups
            outcomes = await asyncio.gather(
                *(queue.acknowledge(claim.lease) for claim in claims[:6]),
                *(queue.retry(claim.lease, time.time() + 600) for claim in claims[6:]),
                *(queue.fail(claim.lease) for claim in others),
                return_exceptions=True,
            )
            assert queue._settlements.groups - groups == 1
            assert isinstance(outcomes[0], LeaseLost)
            # one, two, two, one; one, two; two and one wait.
            assert outcomes[1:8] == [False, False, True, True, False, False, False]
            assert outcomes[8:] == [True, True, True, False]
            stats = await queue.stats()
            assert (stats.messages, stats.octets, stats.deferred) == (2, 2 * LARGE, 2)
            assert place.count("chunk") == 6

    run(main)


def test_what_waits_shares_a_transaction(place: Place, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with place.open() as queue:
            assert len(set(await asyncio.gather(*(queue.put(ENVELOPE, b"x") for _ in range(50))))) == 50
            assert queue._puts.groups == 1
            claims = await queue.claim(lease=60, limit=50)
            await asyncio.gather(*(queue.acknowledge(claim.lease) for claim in claims))
            assert queue._settlements.groups == 1
            with monkeypatch.context() as patch:
                patch.setattr(_pglanes, "GROUP", 20)
                await asyncio.gather(*(queue.put(ENVELOPE, b"x") for _ in range(50)))
                assert queue._puts.groups == 4
                patch.setattr(_pglanes, "WEIGHT", 2500)
                await asyncio.gather(*(queue.put(ENVELOPE, bytes(1000)) for _ in range(6)))
                await queue.put(ENVELOPE, bytes(9000))
                assert queue._puts.groups == 8

    run(main)


def test_another_transaction_in_the_way(place: Place, run: Runner) -> None:
    async def main() -> None:
        async with place.open() as queue:
            await queue.put(ENVELOPE, b"x")
            place.sql(
                "CREATE SEQUENCE tries; CREATE FUNCTION stumble() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN IF nextval('tries') % 3 > 0 THEN RAISE deadlock_detected; END IF; RETURN NULL; END $$;"
                " CREATE TRIGGER stumble AFTER INSERT OR UPDATE ON unit EXECUTE FUNCTION stumble()"
            )
            id = await queue.put(ENVELOPE, b"y")
            claims = await queue.claim(lease=60, limit=2)
            assert [claim.message.id for claim in claims][1:] == [id]
            await queue.hold(id)
            place.sql(
                "CREATE OR REPLACE FUNCTION stumble() RETURNS trigger LANGUAGE plpgsql AS"
                " 'BEGIN RAISE deadlock_detected; END'"
            )
            attempts: list[Awaitable[object]] = [
                queue.put(ENVELOPE, b"z"),
                queue.retry(claims[0].lease, 0.0),
                queue.hold(id),
                queue.claim(lease=60, destination="x.example"),
            ]
            for attempt in attempts:
                with pytest.raises(QueueUnavailable, match="deadlock_detected"):
                    await attempt
            place.sql("DROP TRIGGER stumble ON unit")
            assert await queue.acknowledge(claims[0].lease)
            assert (await queue.stats()).messages == 1

    run(main)


# Limits.


def test_limits_count_what_others_put(place: Place, run: Runner) -> None:
    async def main() -> None:
        async with place.open(max_messages=3) as limited, place.open() as other:
            await limited.put(ENVELOPE, b"x")
            for _ in range(2):
                await other.put(ENVELOPE, b"x")
            limited._room._read -= 2 * _pgputs.STALE
            with pytest.raises(QueueFull):
                await limited.put(ENVELOPE, b"x")
            await other.acknowledge((await one(other)).lease)
            await limited.put(ENVELOPE, b"x")

    run(main)


def test_a_full_disk_of_the_server(place: Place, run: Runner) -> None:
    async def main() -> None:
        async with place.open() as queue:
            await queue.put(ENVELOPE, b"x")
            place.sql(
                "CREATE FUNCTION full_disk() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE disk_full; END';"
                " CREATE TRIGGER message AFTER INSERT ON message EXECUTE FUNCTION full_disk();"
                " CREATE TRIGGER chunk AFTER INSERT ON chunk EXECUTE FUNCTION full_disk()"
            )
            for body in (b"x", bytes(LARGE)):
                outcomes = await asyncio.gather(*(queue.put(ENVELOPE, body) for _ in range(3)), return_exceptions=True)
                assert [type(each) for each in outcomes] == [QueueFull] * 3
            # What makes room goes on.
            assert await queue.acknowledge((await one(queue)).lease)
            place.sql("DROP TRIGGER message ON message; DROP TRIGGER chunk ON chunk")
            await queue.put(ENVELOPE, bytes(LARGE))
            stats = await queue.stats()
            assert (stats.messages, stats.octets) == (1, LARGE)
            assert place.count("chunk") == 3

    run(main)


# Large bodies.


def test_bodies_in_chunks(place: Place, run: Runner) -> None:
    async def main() -> None:
        body = random.Random(1).randbytes(1_000_000)
        async with place.open() as queue:
            for step in (len(body), 300_000, 4096):
                id = await queue.put(ENVELOPE, pieces_of(body, step))
                sizes = [len(piece) async for piece in queue.body(id)]
                assert sum(sizes) == len(body)
                assert max(sizes) <= 2 * _pgputs.CHUNK
                claim = await one(queue)
                assert await text(claim.body()) == body
                assert await queue.acknowledge(claim.lease)
                assert place.count("chunk") == place.count("incoming") == 0

    run(main)


def test_memory_is_bounded(place: Place, run: Runner) -> None:
    size = 15_000_000

    async def endless() -> AsyncIterator[bytes]:
        for _ in range(size // 10_000):
            yield bytes(10_000)

    async def main() -> None:
        async with place.open() as queue:
            tracemalloc.start()
            try:
                id = await queue.put(ENVELOPE, endless())
                length = 0
                async for piece in queue.body(id):
                    length += len(piece)
                assert length == size
                assert tracemalloc.get_traced_memory()[1] < size / 4
            finally:
                tracemalloc.stop()

    run(main)


def test_a_body_that_does_not_end_leaves_nothing(place: Place, run: Runner) -> None:
    async def main() -> None:
        started = asyncio.Event()

        async def stuck() -> AsyncIterator[bytes]:
            yield bytes(LARGE)
            started.set()
            await asyncio.Event().wait()

        async def broken() -> AsyncIterator[bytes]:
            yield bytes(LARGE)
            raise ConnectionResetError("the peer is gone")

        async with place.open(max_octets=2 * LARGE) as queue:
            with pytest.raises(ConnectionResetError):
                await queue.put(ENVELOPE, broken())
            putting = asyncio.create_task(queue.put(ENVELOPE, stuck()))
            await started.wait()
            assert place.count("incoming") >= 1
            putting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await putting
            with pytest.raises(QueueFull):
                await queue.put(ENVELOPE, bytes(3 * LARGE))
        assert [place.count(each) for each in ("incoming", "chunk", "message")] == [0, 0, 0]

    run(main)


def test_what_nobody_goes_on_with_is_swept(place: Place, run: Runner) -> None:
    async def main() -> None:
        clock = Clock()
        for more in (bytes(LARGE), b""):
            go_on = asyncio.Event()
            started = asyncio.Event()

            async def slow(go_on: asyncio.Event, started: asyncio.Event, more: bytes) -> AsyncIterator[bytes]:
                yield bytes(LARGE)
                started.set()
                await go_on.wait()
                yield more

            async with place.open(clock=clock) as queue, place.open(clock=clock) as other:
                putting = asyncio.create_task(queue.put(ENVELOPE, slow(go_on, started, more)))
                await started.wait()
                kept = await other.put(ENVELOPE, bytes(LARGE))
                await other.ready()
                assert place.count("incoming") == 1
                clock.now += postgres.SWEEP_AGE + 1
                other._swept = -postgres.SWEEP_EVERY
                await other.ready()
                assert (place.count("incoming"), place.count("chunk")) == (0, 3)
                go_on.set()
                with pytest.raises(QueueUnavailable, match="swept"):
                    await putting
                assert len(await text(queue.body(kept))) == LARGE
                await other.remove(kept)
            assert [place.count(each) for each in ("incoming", "chunk", "message")] == [0, 0, 0]

    run(main)


def test_a_body_of_which_a_chunk_is_lost(place: Place, run: Runner) -> None:
    async def main() -> None:
        async with place.open() as queue:
            id = await queue.put(ENVELOPE, bytes(LARGE))
            pieces = queue.body(id)
            await anext(pieces)
            place.sql("DELETE FROM chunk WHERE number = 1")
            with pytest.raises(QueueUnavailable, match="damaged"):
                await anext(pieces)
            pieces = queue.body(id)
            await anext(pieces)
            await queue.remove(id)
            with pytest.raises(NoSuchMessage):
                await anext(pieces)

    run(main)


# Claims.


def test_a_backlog_hides_nothing(place: Place, run: Runner) -> None:
    clock = Clock()

    async def main() -> None:
        async with place.open(clock=clock) as queue:

            def to(destination: str, **options: Any) -> Envelope:
                return Envelope("", (Target("a@x", destination),), **options)

            backlog = [to(f"{number % 3}.example", priority=number % 2) for number in range(3 * postgres.WINDOW)]
            await asyncio.gather(*(queue.put(each, b"x") for each in backlog))
            backlogged = ["0.example", "1.example", "2.example"]
            await queue.put(to("low.example", priority=-1), b"x")
            await queue.put(to("high.example"), b"x")
            await queue.put(to("later.example", not_before=clock.now + 1000), b"x")
            await queue.ready(exclude=backlogged)
            assert (await one(queue, lease=5000, exclude=backlogged)).destination == "high.example"
            assert (await one(queue, lease=5000, exclude=backlogged)).destination == "low.example"
            assert await queue.claim(lease=60, exclude=backlogged) == []
            clock.now += 1000
            await queue.ready(exclude=backlogged)
            assert (await one(queue, lease=5000, exclude=backlogged)).destination == "later.example"
            assert await queue.claim(lease=60, exclude=backlogged) == []

    run(main)


def test_many_are_flushed(place: Place, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "FLUSHED", 2)

    async def main() -> None:
        async with place.open() as queue:
            later = Envelope("", ENVELOPE.targets, not_before=time.time() + 1000)
            await asyncio.gather(*(queue.put(later, b"x") for _ in range(5)))
            assert await queue.flush() == 5
            assert await queue.flush() == 0
            assert len(await queue.claim(lease=60, limit=9)) == 5

    run(main)


def test_a_destination_that_no_index_takes(place: Place, run: Runner) -> None:
    async def main() -> None:
        async with place.open() as queue:
            longest = "é" * (postgres.LONGEST_DESTINATION // 2)
            await queue.put(Envelope("", (Target("a@x", longest),)), b"x")
            with pytest.raises(ValueError, match="destination"):
                await queue.put(Envelope("", (Target("a@x", longest + "x"),)), b"x")
            assert (await one(queue)).destination == longest

    run(main)


def test_each_statement_has_its_index(place: Place) -> None:
    async def main() -> None:
        async with place.open() as queue:
            await queue.put(ENVELOPE, b"x")
            statements: list[tuple[str, list[Any]]] = [
                (_pgsql.CLAIM, [None, "x.example", 10, 1, 60.0]),
                (_pgsql.TURN, [None, ["y.example"], 256]),
                (_pgsql.TURN_OF_MANY, [None, ["y.example"]]),
                (_pgsql.FINISH, [1, [1], [0], [1]]),
                (_pgsql.SETTLE, [None, [1], [0], [1], ["x"], [True], [None], [None]]),
                (_pgsql.END, [1, [1]]),
                (_pgsql.LOCK, [[1]]),
                (_pgsql.RENEW, [None, 1, 0, 1, 60.0]),
                (_pgsql.GIVE_BACK, [[1], [0], [1]]),
                (_pgsql.GET, [1]),
                (_pgsql.LIST, [1, 10, "x.example"]),
                (_pgsql.REMOVE, [1, 1]),
                (_pgsql.ABANDON, [1]),
            ]
            connection = await queue._database.connect(durable=False)
            try:
                for sql, arguments in statements:
                    plan = "\n".join(row[0] for row in await connection.fetch(f"EXPLAIN {sql}", *arguments))
                    for table in ("message", "unit", "chunk"):
                        assert f"Seq Scan on {table}" not in plan, plan
                    assert "Sort Key: due" not in plan, plan
            finally:
                await connection.close()

    asyncio.run(main())


# Opening.


def test_what_cannot_be_opened(run: Runner) -> None:
    async def main() -> None:
        server = servers.shared()
        newer, other = Place(server), Place(server)
        async with newer.open():
            newer.sql("UPDATE about SET version = 99")
        server.sql(f"CREATE SCHEMA {other.schema}")
        other.sql("CREATE TABLE message (words text)")
        if server.sql("SELECT count(*) FROM pg_database WHERE datname = 'latin'") == "0":
            server.sql("CREATE DATABASE latin ENCODING LATIN1 TEMPLATE template0 LC_COLLATE 'C' LC_CTYPE 'C'")
            server.sql("CREATE ROLE reader LOGIN")
        for dsn, schema, reason in (
            (server.dsn, newer.schema, "tables of version 99"),
            (server.dsn, other.schema, "already exists"),
            (server.dsn_for(database="none"), "x", '"none" does not exist'),
            (server.dsn_for("reader"), "y", "permission denied"),
            (server.dsn_for(database="latin"), "x", "encoding is LATIN1"),
            ("mysql://localhost/", "x", "invalid DSN"),
        ):
            with pytest.raises(ConfigurationError, match=reason):
                async with PostgresQueue(dsn, schema=schema):
                    raise AssertionError
            queue = PostgresQueue(dsn, schema=schema)
            with pytest.raises(QueueUnavailable, match=reason):
                await queue.put(ENVELOPE, b"x")
            await queue.aclose()
        for name in ("", "Name", "a-b", "1a", 'x"', "x" * 49):
            with pytest.raises(ConfigurationError, match="name of a schema"):
                PostgresQueue(schema=name)

    run(main)


def test_without_asyncpg(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "asyncpg", None)
    with pytest.raises(ConfigurationError, match=r"fastsmtpd\[postgres\]"):
        PostgresQueue()


# The server goes and comes back.


async def refused(queue: PostgresQueue, claim: Claim) -> None:
    """All of it says that the queue is unavailable."""
    id = claim.message.id
    attempts: list[Awaitable[object]] = [
        queue.put(ENVELOPE, b"x"),
        queue.put(ENVELOPE, bytes(LARGE)),
        queue.claim(lease=60),
        queue.ready(),
        queue.renew(claim.lease, 60),
        queue.acknowledge(claim.lease),
        text(queue.body(id)),
        queue.get(id),
        queue.list(),
        queue.hold(id),
        queue.release(id),
        queue.remove(id),
        queue.flush(),
        queue.stats(),
    ]
    for attempt in attempts:
        with pytest.raises(QueueUnavailable) as caught:
            await attempt
        assert (caught.value.code, caught.value.enhanced_code) == (451, (4, 3, 0))


def test_the_server_is_stopped_and_started(
    own: Place, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO, "fastsmtp.queue")
    # Who waits may not have come to listen yet when the server stops.
    monkeypatch.setattr("fastsmtp.delivery.queue.postgres.LONGEST_WAIT", 0.2)

    async def main() -> None:
        async with own.open(timeout=5) as queue:
            ids = [await queue.put(ENVELOPE, body) for body in (b"1", b"2", bytes(LARGE))]
            claim = await one(queue)
            assert (await one(queue)).message.id == ids[1]
            assert (await one(queue)).message.id == ids[2]
            waiting = asyncio.create_task(queue.ready())
            for mode in ("fast", "immediate"):
                # A crash forgets claims after which nothing was stored.
                ids.append(await queue.put(Envelope("", ENVELOPE.targets, held=True), b"held"))
                await in_thread(own.server.stop, mode)
                with pytest.raises(QueueUnavailable):
                    await waiting
                await refused(queue, claim)
                async with own.open() as another:  # it can be opened before the database is there
                    with pytest.raises(QueueUnavailable):
                        await another.stats()
                    await in_thread(own.server.start)
                    await until(another.stats, QueueUnavailable)
                await until(queue.stats, QueueUnavailable)
                ids.append(await until(lambda: queue.put(ENVELOPE, b"new"), QueueUnavailable))
                assert (await one(queue)).message.id == ids[-1]
                waiting = asyncio.create_task(queue.ready())
            assert await until(lambda: queue.acknowledge(claim.lease), QueueUnavailable)
            assert [each.message.id for each in (await queue.list()).messages] == ids[1:]
            await queue.put(ENVELOPE, b"last")
            await waiting

    asyncio.run(main())
    assert 0 < sum("connect failed" in record.getMessage() for record in caplog.records) < 10
    assert any("connected again" in record.getMessage() for record in caplog.records)


def test_connections_are_bounded(place: Place, run: Runner) -> None:
    def connected() -> int:
        others = "backend_type = 'client backend' AND pid <> pg_backend_pid()"
        return int(place.server.sql(f"SELECT count(*) FROM pg_stat_activity WHERE {others}"))

    async def main() -> None:
        before = connected()
        async with place.open(connections=2) as queue:
            await queue.put(ENVELOPE, b"x")
            asked = [asyncio.ensure_future(queue.list()) for _ in range(200)]
            assert (
                before < await in_thread(connected) <= before + 5
            )  # with the two that commit, and the one that listens
            await asyncio.gather(*asked)
            assert before < await in_thread(connected) <= before + 5

    run(main)


def test_connections_that_are_cut(place: Place, run: Runner) -> None:
    async def main() -> None:
        async with place.open() as queue:
            for _ in range(3):
                await queue.put(ENVELOPE, b"x")
                claim = await one(queue)
                waiting = asyncio.create_task(queue.ready())
                await queue.stats()
                await in_thread(
                    place.sql,
                    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
                    " WHERE application_name = 'fastsmtp' AND pid <> pg_backend_pid()",
                )
                await until(lambda: queue.put(ENVELOPE, b"y"), QueueUnavailable)
                with contextlib.suppress(QueueUnavailable):
                    await waiting
                await until(queue.ready, QueueUnavailable)
                again = await until(lambda: queue.claim(lease=60), QueueUnavailable)
                assert len(again) == 1
                for each in (claim, *again):
                    assert await until(lambda each=each: queue.acknowledge(each.lease), QueueUnavailable)  # type: ignore[misc]
            assert (await queue.stats()).messages == 0

    run(main)


def test_kill_9_of_the_server_under_load(own: Place) -> None:
    async def main() -> None:
        put: dict[str, bytes] = {}
        refusals = 0
        more = True

        async def source(queue: PostgresQueue, number: int) -> None:
            nonlocal refusals
            count = 0
            while more:
                body = b"%d %d " % (number, count) + bytes((10, 10, 10, 200_000)[count % 4])
                count += 1
                try:
                    put[await queue.put(ENVELOPE, body)] = body
                except QueueUnavailable:
                    refusals += 1
                    await asyncio.sleep(0.01)

        async with own.open(timeout=5) as first, own.open(timeout=5) as second:
            sources = [asyncio.create_task(source((first, second)[number % 2], number)) for number in range(8)]
            while len(put) < 50:
                await asyncio.sleep(0.01)
            own.server.kill()
            while not refusals:
                await asyncio.sleep(0.01)
            await in_thread(own.server.start_again)
            while len(put) < 100:
                await asyncio.sleep(0.01)
            more = False
            await asyncio.gather(*sources)
            for id, body in put.items():
                assert await until(lambda id=id: text(first.body(id)), QueueUnavailable) == body  # type: ignore[misc]
            stats = await first.stats()
            assert len(put) <= stats.messages <= len(put) + refusals
            assert stats.messages == own.count("message")
            assert stats.octets == int(own.sql("SELECT sum(size) FROM message"))

    asyncio.run(main())


# The standby.


@pytest.fixture(scope="module")
def pair() -> Iterator[tuple[servers.Cluster, servers.Cluster]]:
    with servers.standby() as both:
        yield both


def test_a_warning_without_a_standby(
    place: Place, pair: tuple[servers.Cluster, servers.Cluster], caplog: pytest.LogCaptureFixture
) -> None:
    async def main(place: Place) -> list[str]:
        caplog.clear()
        async with place.open() as queue:
            await queue.put(ENVELOPE, b"x")
        return [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]

    assert "no synchronous standby" in asyncio.run(main(place))[0]
    assert not any("standby" in each for each in asyncio.run(main(Place(pair[0]))))


def test_the_standby_has_what_was_accepted(pair: tuple[servers.Cluster, servers.Cluster]) -> None:
    async def main() -> None:
        primary, second = pair
        place = Place(primary)
        async with place.open(timeout=0.5) as queue:
            ids = [await until(lambda: queue.put(ENVELOPE, b"1"), QueueUnavailable)]
            await in_thread(second.stop)
            with pytest.raises(QueueUnavailable):
                await queue.put(ENVELOPE, b"2")  # it is in doubt: not refused by the primary
            for _ in range(2):
                with pytest.raises(QueueUnavailable):
                    await queue.put(ENVELOPE, b"3")  # these are not
            await in_thread(second.start)
            ids.append(await until(lambda: queue.put(ENVELOPE, b"4"), QueueUnavailable))
            listed = (await queue.list()).messages
            assert set(ids) <= {each.message.id for each in listed}
            assert b"3" not in [await text(queue.body(each.message.id)) for each in listed]

    asyncio.run(main())


def test_a_wait_for_the_standby_that_is_called_off(pair: tuple[servers.Cluster, servers.Cluster]) -> None:
    async def main() -> None:
        primary, second = pair
        place = Place(primary)
        async with place.open() as queue:
            await queue.put(ENVELOPE, b"1")
            await in_thread(second.stop)
            try:
                putting = asyncio.create_task(queue.put(ENVELOPE, b"2"))
                cancel = "SELECT count(pg_cancel_backend(pid)) FROM pg_stat_activity WHERE wait_event = 'SyncRep'"
                while await in_thread(primary.sql, cancel) == "0":
                    await asyncio.sleep(0.01)
                with pytest.raises(QueueUnavailable, match="synchronous replication"):
                    await putting
            finally:
                await in_thread(second.start)
            await queue.put(ENVELOPE, b"3")

    asyncio.run(main())


def test_a_server_that_only_reads(pair: tuple[servers.Cluster, servers.Cluster]) -> None:
    async def main() -> None:
        primary, second = pair
        place = Place(primary)
        async with place.open() as queue:
            await queue.put(ENVELOPE, b"1")
            async with PostgresQueue(second.dsn, schema=place.schema) as other:
                with pytest.raises(QueueUnavailable):
                    await other.put(ENVELOPE, b"2")
            both = primary.dsn.replace(f"host={primary.directory}", f"host={second.directory},{primary.directory}")
            async with PostgresQueue(both, schema=place.schema) as other:
                await other.put(ENVELOPE, b"3")
            assert (await queue.stats()).messages == 2

    asyncio.run(main())


# Crashes of a process.


def body_of(number: int) -> bytes:
    """A message that tells its number and proves to be whole."""
    numbers = random.Random(number)
    words = b"%d\n" % number + numbers.randbytes(numbers.choice([10, 4000, 4000, 300_000]))
    return words + hashlib.sha256(words).digest()


async def load(dsn: str, schema: str, first: int) -> None:
    """Put and deliver until killed; tells each message that was put (P) and each delivery before it is settled (D)."""

    def tell(kind: bytes, number: int) -> None:
        os.write(1, b"%s %d\n" % (kind, number))

    async def put(queue: PostgresQueue, number: int) -> None:
        while True:
            await queue.put(ENVELOPE, body_of(number))
            tell(b"P", number)
            number += 8

    async def deliver(queue: PostgresQueue) -> None:
        while True:
            await queue.ready()
            for claim in await queue.claim(lease=0.5, limit=5):
                number = int((await text(claim.body())).split(b"\n", 1)[0])
                if number % 2:
                    await queue.retry(claim.lease, claim.message.received + 1e6)
                else:
                    tell(b"D", number)
                    await queue.acknowledge(claim.lease)

    async with PostgresQueue(dsn, schema=schema) as queue:
        async with asyncio.TaskGroup() as group:
            for session in range(8):
                group.create_task(put(queue, first + session))
            group.create_task(deliver(queue))


def kill_one(place: Place, first: int, enough: int) -> list[tuple[bytes, int]]:
    """What one process told until it was killed after so many lines."""
    command = [sys.executable, "-m", "tests.test_queue_postgres", place.server.dsn, place.schema, str(first)]
    lines: list[bytes] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        try:
            for line in process.stdout:
                lines.append(line)
                if len(lines) == enough:
                    process.send_signal(signal.SIGKILL)
        finally:
            process.kill()
    assert process.returncode == -signal.SIGKILL
    told = [line.split() for line in lines if line.endswith(b"\n")]
    return [(kind, int(number)) for kind, number in told]


def kill_all(place: Place, rounds: int) -> None:
    """Kill processes under load; the queue has what was put and not delivered, whole, and another finishes it."""
    put: set[int] = set()
    delivered: set[int] = set()
    moments = random.Random()
    for turn in range(rounds):
        for kind, number in kill_one(place, turn * 1_000_000, moments.randrange(1, 200)):
            (put if kind == b"P" else delivered).add(number)

    async def check() -> None:
        found: set[int] = set()
        async with place.open() as queue:
            while (await queue.stats()).messages:
                await queue.flush()
                await queue.ready()
                for claim in await queue.claim(lease=60, limit=50):
                    words = await text(claim.body())
                    number = int(words.split(b"\n", 1)[0])
                    assert words == body_of(number)
                    assert number not in found
                    found.add(number)
                    await queue.acknowledge(claim.lease)
            await queue._uploads.sweep(0)
        assert put <= found | delivered
        # At most what was under way at each kill is there without an answer.
        assert len(found - put) <= rounds * 8
        assert [place.count(each) for each in ("message", "unit", "chunk", "incoming")] == [0, 0, 0, 0]

    asyncio.run(check())


@pytest.mark.timeout(60)
def test_a_process_is_killed(place: Place) -> None:
    kill_all(place, 1)


KILLS = int(os.environ.get("FASTSMTP_KILLS", "5"))


@pytest.mark.slow
@pytest.mark.timeout(60 + 10 * KILLS)
def test_processes_are_killed(place: Place) -> None:
    kill_all(place, KILLS)


if __name__ == "__main__":
    asyncio.run(load(sys.argv[1], sys.argv[2], int(sys.argv[3])))
