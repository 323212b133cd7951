"""What every engine of the durable queue promises; each test runs on each engine."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from fastsmtp.delivery.queue import (
    DELIVERED,
    Claim,
    Envelope,
    Lease,
    LeaseLost,
    NoSuchMessage,
    PostgresQueue,
    Queue,
    QueueFull,
    QueueUnavailable,
    Result,
    SQLiteQueue,
    State,
    Target,
)
from fastsmtp.extensions import DeliverBy, MailParams, OriginalRecipient, RcptParams, ValidSince
from fastsmtp.reply import EnhancedCode, Reply

from . import postgres
from .loops import Runner

BUSY = Reply(450, EnhancedCode(4, 2, 1), "busy")
NO = Reply(550, EnhancedCode(5, 1, 1), "no such user")
LATER = Result(State.PENDING, BUSY)
FAILED = Result(State.FAILED, NO)


class Clock:
    """Seconds since the epoch that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.25

    def __call__(self) -> float:
        return self.now


class Engine:
    """Opens one queue again and again."""

    def __init__(self, make: Callable[..., Queue]) -> None:
        self._make = make
        self.clock = Clock()

    def open(self, **limits: Any) -> Queue:
        return self._make(clock=self.clock, **limits)


def _sqlite(tmp_path: Path) -> Engine:
    return Engine(lambda **options: SQLiteQueue(tmp_path / "queue", **options))


def _postgres(tmp_path: Path) -> Engine:
    if reason := postgres.absence():
        pytest.skip(reason)
    dsn, schema = postgres.shared().dsn, postgres.schema_name()
    return Engine(lambda **options: PostgresQueue(dsn, schema=schema, **options))


ENGINES = [pytest.param(_sqlite, id="sqlite"), pytest.param(_postgres, id="postgres")]


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest, tmp_path: Path) -> Engine:
    made: Engine = request.param(tmp_path)
    return made


def to(*addresses: str, **options: Any) -> Envelope:
    """An envelope whose recipients' destinations are their domains."""
    return Envelope("s@example.org", tuple(Target(each, each.rpartition("@")[2]) for each in addresses), **options)


async def text(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


async def one(queue: Queue, **options: Any) -> Claim:
    (claim,) = await queue.claim(lease=60, **options)
    return claim


async def empty(queue: Queue) -> bool:
    stats = await queue.stats()
    return not stats.messages and not stats.octets and not (await queue.list()).messages


def test_a_message_goes_in_and_out(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            id = await queue.put(to("a@x.example"), b"body")
            assert id.isascii() and id.isalnum()
            claim = await one(queue)
            assert claim.message.id == id
            assert (claim.message.sender, claim.message.size, claim.message.held) == ("s@example.org", 4, False)
            assert claim.message.received == engine.clock.now
            assert claim.destination == "x.example"
            assert claim.lease.deadline == engine.clock.now + 60
            (recipient,) = claim.recipients
            assert (recipient.number, recipient.address, recipient.destination) == (0, "a@x.example", "x.example")
            assert (recipient.state, recipient.attempts, recipient.reply) == (State.PENDING, 0, None)
            assert await text(claim.body()) == await text(claim.body()) == await text(queue.body(id)) == b"body"
            assert await queue.claim(lease=60) == []
            assert await queue.acknowledge(claim.lease)
            assert await empty(queue)

    run(main)


FULL = Envelope(
    "sender@exämple.org",
    (
        Target("a@x.example", "x.example"),
        Target(
            "b@y.example",
            "lmtp+unix:/run/a socket",
            RcptParams(("SUCCESS", "DELAY"), OriginalRecipient("rfc822", "b+ü\udc80"), None),
        ),
        Target("a@x.example", "x.example", RcptParams(rrvs=ValidSince(datetime(2024, 2, 29, tzinfo=UTC), "C"))),
    ),
    MailParams(
        size=12,
        body="8BITMIME",
        smtputf8=True,
        ret="HDRS",
        envid="e\x00 id",
        requiretls=True,
        by=DeliverBy(-5, "N", True),
        mt_priority=-3,
        hold=datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC),
        solicit=("org.example:ADV",),
        auth="",
    ),
    received=1_600_000_000.125,
    expires=1_800_000_000.5,
    priority=-3,
    origin={"NAME": "client.example", "ADDR": "192.0.2.1"},
)


def test_the_envelope_is_kept(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            id = await queue.put(FULL, b"")
        async with engine.open() as queue:
            queued = await queue.get(id)
            message = queued.message
            assert (message.sender, message.params, message.origin) == (FULL.sender, FULL.params, FULL.origin)
            assert (message.received, message.expires, message.priority) == (FULL.received, FULL.expires, -3)
            assert [(each.address, each.destination, each.params) for each in queued.recipients] == [
                (each.address, each.destination, each.params) for each in FULL.targets
            ]
            first = await one(queue, destination="x.example")
            assert [each.number for each in first.recipients] == [0, 2]
            assert first.message == message
            second = await one(queue)
            assert second.destination == "lmtp+unix:/run/a socket"
            assert second.recipients == queued.recipients[1:2]
            assert await text(first.body()) == b""
            for claim in (first, second):
                await queue.acknowledge(claim.lease)
            assert await empty(queue)

    run(main)


def test_hold_for_seconds_is_kept(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            id = await queue.put(to("a@x.example", params=MailParams(hold=60)), b"")
            assert (await queue.get(id)).message.params.hold == 60

    run(main)


@pytest.mark.parametrize("size", [0, 1, 65536, 65537, 3_000_001])
def test_bodies_of_any_size(engine: Engine, run: Runner, size: int) -> None:
    body = random.Random(size).randbytes(size)

    async def pieces(step: int) -> AsyncIterator[bytes]:
        yield b""
        for at in range(0, size, step):
            yield body[at : at + step]

    async def main() -> None:
        async with engine.open() as queue:
            ids = [
                await queue.put(to("a@x.example"), each) for each in (body, pieces(50_000), pieces(max(1, size - 1)))
            ]
            assert (await queue.stats()).octets == 3 * size
        async with engine.open() as queue:
            assert [await text(queue.body(id)) for id in ids] == [body] * 3
            claims = await queue.claim(lease=60, limit=3)
            for claim in claims:
                assert await text(claim.body()) == body
                assert claim.message.size == size
                await queue.acknowledge(claim.lease)
            assert await empty(queue)
            for id in ids:
                with pytest.raises(NoSuchMessage):
                    await text(queue.body(id))

    run(main)


@pytest.mark.parametrize("size", [10, 1_000_000])
def test_what_the_body_raises_passes_through(engine: Engine, run: Runner, size: int) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield bytes(size)
        raise ConnectionResetError("the peer is gone")

    async def main() -> None:
        async with engine.open() as queue:
            with pytest.raises(ConnectionResetError, match="the peer is gone"):
                await queue.put(to("a@x.example"), broken())
            assert await empty(queue)
        async with engine.open() as queue:
            assert await empty(queue)
            assert await queue.claim(lease=60) == []

    run(main)


@pytest.mark.parametrize(
    "envelope",
    [
        to(),
        Envelope("", (Target("a@x.example", ""),)),
        Envelope("", (Target("a@x.example", "x.example"), Target("a@x.example", "x\0"))),
        Envelope("", (Target("a@x.example", "\ud800"),)),
        to("a@x.example", expires=math.nan),
        to("a@x.example", not_before=math.inf),
        to("a@x.example", priority=1 << 40),
    ],
)
def test_impossible_envelopes(engine: Engine, run: Runner, envelope: Envelope) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            with pytest.raises(ValueError):
                await queue.put(envelope, b"x")
            assert await empty(queue)

    run(main)


def test_impossible_arguments(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            for arguments in ({"lease": 0}, {"lease": math.inf}, {"lease": 1, "limit": 0}):
                with pytest.raises(ValueError):
                    await queue.claim(**arguments)
            with pytest.raises(ValueError):
                await queue.list(limit=0)
            await queue.put(to("a@x.example"), b"x")
            claim = await one(queue)
            with pytest.raises(ValueError):
                await queue.retry(claim.lease, math.nan)
            with pytest.raises(ValueError):
                await queue.renew(claim.lease, 0)
            assert await queue.acknowledge(claim.lease)

    run(main)


def test_each_recipient_has_its_own_result(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        addresses = [f"{name}@x.example" for name in "abcd"]
        async with engine.open() as queue:
            id = await queue.put(to(*addresses), b"x")
            claim = await one(queue)
            results = {0: DELIVERED, 1: FAILED, 2: LATER, 9: FAILED}
            at = engine.clock.now + 100
            assert not await queue.settle(claim.lease, results, retry_at=at)
            assert await queue.claim(lease=60) == []
            recipients = (await queue.get(id)).recipients
            assert [each.state for each in recipients] == ["delivered", "failed", "pending", "pending"]
            assert [each.reply for each in recipients] == [None, NO, BUSY, None]
            assert [each.attempts for each in recipients] == [1, 1, 1, 0]
            assert [each.next_attempt for each in recipients[2:]] == [at, at]
        async with engine.open() as queue:
            assert (await queue.get(id)).recipients == recipients
            engine.clock.now = at
            claim = await one(queue)
            assert claim.recipients == recipients[2:]
            told = Result(State.PENDING, delay_reported=True)
            assert not await queue.retry(claim.lease, at + 50, results={2: told})
            engine.clock.now += 50
            claim = await one(queue)
            assert [each.delay_reported for each in claim.recipients] == [True, False]
            assert [each.reply for each in claim.recipients] == [BUSY, None]
            assert [each.attempts for each in claim.recipients] == [2, 1]
            assert await queue.fail(claim.lease, NO, results={2: DELIVERED})
            assert await empty(queue)

    run(main)


def test_a_message_leaves_with_its_last_destination(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            id = await queue.put(to("a@x.example", "b@y.example", "c@x.example"), bytes(100_000))
            x, y = await one(queue, destination="x.example"), await one(queue, destination="y.example")
            assert not await queue.acknowledge(x.lease)
            states = [each.state for each in (await queue.get(id)).recipients]
            assert states == [State.DELIVERED, State.PENDING, State.DELIVERED]
            assert len(await text(y.body())) == 100_000
            assert await queue.fail(y.lease, NO)
            assert await empty(queue)

    run(main)


def test_two_destinations_settled_together(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            await queue.put(to("a@x.example", "b@y.example"), b"x")
            claims = [await one(queue), await one(queue)]
            gone = await asyncio.gather(*(queue.acknowledge(claim.lease) for claim in claims))
            assert sorted(gone) == [False, True]
            assert await empty(queue)

    run(main)


def test_nothing_to_say_gives_the_unit_back(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            await queue.put(to("a@x.example"), b"x")
            claim = await one(queue)
            assert not await queue.settle(claim.lease, {})
            again = await one(queue)
            assert again.recipients == claim.recipients
            assert again.lease.id != claim.lease.id

    run(main)


def test_a_lease_expires(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            id = await queue.put(to("a@x.example"), b"x")
            first = await one(queue)
            engine.clock.now += 59
            assert await queue.claim(lease=60) == []
            engine.clock.now += 1
            second = await one(queue)
            assert second.message.id == id
            for settle in (queue.acknowledge(first.lease), queue.renew(first.lease, 60)):
                with pytest.raises(LeaseLost):
                    await settle
            assert await queue.acknowledge(second.lease)
            with pytest.raises(LeaseLost):
                await queue.acknowledge(second.lease)
            with pytest.raises(LeaseLost):
                await queue.acknowledge(Lease("no-such-lease", 0.0))

    run(main)


def test_an_expired_lease_is_good_until_another_has_it(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            await queue.put(to("a@x.example"), b"x")
            claim = await one(queue)
            engine.clock.now += 61
            assert (await queue.stats()).messages == 1
            assert await queue.acknowledge(claim.lease)
            assert await queue.claim(lease=60) == []

    run(main)


def test_renew(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            await queue.put(to("a@x.example"), b"x")
            claim = await one(queue)
            for _ in range(200):
                engine.clock.now += 50
                lease = await queue.renew(claim.lease, 60)
                assert (lease.id, lease.deadline) == (claim.lease.id, engine.clock.now + 60)
                assert await queue.claim(lease=60) == []
            engine.clock.now += 60
            again = await one(queue)
            with pytest.raises(LeaseLost):
                await queue.renew(lease, 60)
            assert await queue.acknowledge(again.lease)

    run(main)


def test_a_renewed_lease_that_had_expired(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            await queue.put(to("a@x.example"), b"x")
            claim = await one(queue)
            engine.clock.now += 61
            await queue.ready()  # it may be claimed now
            await queue.renew(claim.lease, 60)
            assert await queue.claim(lease=60) == []
            assert await queue.acknowledge(claim.lease)

    run(main)


def test_what_was_leased_is_free_after_a_restart(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            ids = [await queue.put(to("a@x.example"), b"x") for _ in range(3)]
            claims = await queue.claim(lease=600, limit=2)
            await queue.acknowledge(claims[0].lease)
        engine.clock.now += 600
        async with engine.open() as queue:
            again = await queue.claim(lease=60, limit=9)
            assert [claim.message.id for claim in again] == ids[1:]

    run(main)


def test_who_is_first(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:

            async def put(body: bytes, destination: str, **options: Any) -> None:
                engine.clock.now += 1
                await queue.put(to(f"a@{destination}", **options), body)

            async def claimed(**options: Any) -> list[bytes]:
                claims = await queue.claim(lease=60, **options)
                assert len({claim.destination for claim in claims}) < 2
                return [await text(claim.body()) for claim in claims]

            for body in (b"1", b"2", b"3"):
                await put(body, "x.example")
            await put(b"4", "y.example")
            await put(b"5", "x.example", priority=4)
            await put(b"6", "x.example", priority=-4)
            await put(b"7", "z.example", not_before=engine.clock.now + 1000)
            assert await claimed(limit=2) == [b"5", b"1"]
            assert await claimed(limit=9, exclude=["x.example"]) == [b"4"]
            assert await claimed(limit=9, exclude=["x.example"]) == []
            assert await claimed(limit=9, destination="x.example", exclude=["x.example"]) == []
            assert await claimed(limit=9, destination="none.example") == []
            await put(b"8", "x.example", priority=1)
            assert await claimed(limit=9, destination="x.example") == [b"8", b"2", b"3", b"6"]
            assert await claimed(limit=9) == []
            engine.clock.now += 1000
            assert await claimed(destination="z.example") == [b"7"]

    run(main)


def test_a_backlog_of_one_destination_does_not_hide_others(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            for _ in range(300):
                await queue.put(to("a@x.example"), b"x")
            engine.clock.now += 1
            await queue.put(to("a@y.example"), b"y")
            seen = []
            while claims := await queue.claim(lease=60, limit=10, exclude={"x.example"}):
                seen += [claim.destination for claim in claims]
            assert seen == ["y.example"]
            while claims := await queue.claim(lease=60, limit=7):
                seen += [claim.destination for claim in claims]
            assert len(seen) == 301

    run(main)


def test_nothing_is_claimed_twice(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            seen: list[str] = []
            put: list[str] = []

            async def source(number: int) -> None:
                for _ in range(30):
                    put.append(await queue.put(to(f"a@{number % 3}.example", priority=number % 2), b"x"))

            async def sink() -> None:
                while len(seen) < 180:
                    claims = await queue.claim(lease=60, limit=7)
                    if not claims:
                        await queue.ready()
                    for claim in claims:
                        seen.append(claim.message.id)
                        if len(seen) == 180:
                            finished.set()
                    await asyncio.gather(*(queue.acknowledge(claim.lease) for claim in claims))

            finished = asyncio.Event()
            async with asyncio.TaskGroup() as group:
                sinks = [group.create_task(sink()) for _ in range(3)]
                for number in range(6):
                    group.create_task(source(number))
                await finished.wait()
                pending = set(sinks)
                while pending:
                    # Who waits for something would wait for ever; and one that comes may be another's before it has looked.
                    await queue.put(to("a@last.example"), b"x")
                    _, pending = await asyncio.wait(pending, timeout=1)
            assert sorted(seen)[: len(put)] == sorted(put)
            assert len(set(seen)) == len(seen)

    run(main)


def test_expiry_comes_before_the_next_attempt(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            start = engine.clock.now
            id = await queue.put(to("a@x.example", expires=start + 100), b"x")
            claim = await one(queue)
            await queue.retry(claim.lease, start + 1000, BUSY)
            assert (await queue.get(id)).recipients[0].next_attempt == start + 100
            engine.clock.now = start + 99
            assert await queue.claim(lease=60) == []
            engine.clock.now = start + 100
            claim = await one(queue)
            assert claim.message.expires == start + 100
            await queue.fail(claim.lease)
            await queue.put(to("a@x.example", expires=start + 200, not_before=start + 900), b"x")
            assert await queue.claim(lease=60) == []
            engine.clock.now = start + 200
            assert len(await queue.claim(lease=60)) == 1

    run(main)


def test_hold_and_release(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            ids = [
                await queue.put(to("a@x.example", "b@y.example", held=True), b"1"),
                await queue.put(to("a@x.example"), b"2"),
            ]
            await queue.hold(ids[1])
            await queue.hold(ids[1])
            assert [each.message.held for each in (await queue.list()).messages] == [True, True]
            assert await queue.claim(lease=60) == []
            stats = await queue.stats()
            assert (stats.messages, stats.due, stats.deferred, stats.held) == (2, 0, 0, 3)
        async with engine.open() as queue:
            assert await queue.claim(lease=60) == []
            await queue.release(ids[0])
            assert not (await queue.get(ids[0])).message.held
            assert [claim.message.id for claim in [await one(queue), await one(queue)]] == [ids[0]] * 2
            assert await queue.claim(lease=60) == []
            await queue.release(ids[1])
            assert (await one(queue)).message.id == ids[1]
            for change in (queue.hold, queue.release):
                for id in ("0" * 13, "nonsense", "", "-1", "f" * 16):
                    with pytest.raises(NoSuchMessage):
                        await change(id)

    run(main)


def test_hold_while_leased(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            id = await queue.put(to("a@x.example", "b@x.example"), b"1")
            claim = await one(queue)
            await queue.hold(id)
            stats = await queue.stats()
            assert (stats.due, stats.deferred, stats.leased, stats.held) == (0, 0, 1, 0)
            assert not await queue.settle(claim.lease, {0: DELIVERED})
            assert await queue.claim(lease=60) == []
            assert (await queue.stats()).held == 1
            await queue.release(id)
            claim = await one(queue)
            assert [each.number for each in claim.recipients] == [1]
            await queue.hold(id)
            assert await queue.acknowledge(claim.lease)

    run(main)


def test_release_keeps_the_next_attempt(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            id = await queue.put(to("a@x.example", not_before=engine.clock.now + 50), b"1")
            await queue.hold(id)
            await queue.release(id)
            assert await queue.claim(lease=60) == []
            engine.clock.now += 50
            assert (await one(queue)).message.id == id

    run(main)


def test_remove(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            ids = [await queue.put(to("a@x.example", "b@y.example"), bytes(size)) for size in (3, 200_000)]
            leases = [(await one(queue, destination="x.example")).lease for _ in ids]
            for id in ids:
                await queue.remove(id)
                with pytest.raises(NoSuchMessage):
                    await queue.remove(id)
                with pytest.raises(NoSuchMessage):
                    await queue.get(id)
            for lease in leases:
                with pytest.raises(LeaseLost):
                    await queue.acknowledge(lease)
            assert await queue.claim(lease=60) == []
            assert await empty(queue)

    run(main)


def test_flush(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            later = engine.clock.now + 1000
            ids = [await queue.put(to(f"a@{name}.example", not_before=later), b"x") for name in "xxyy"]
            held = await queue.put(to("a@x.example", not_before=later, held=True), b"x")
            assert await queue.claim(lease=60) == []
            assert await queue.flush("none.example") == 0
            assert await queue.flush("x.example") == 2
            claims = await queue.claim(lease=60, limit=9)
            assert [claim.message.id for claim in claims] == ids[:2]
            assert await queue.flush(id=ids[2]) == 1
            assert [claim.message.id for claim in await queue.claim(lease=60, limit=9)] == ids[2:3]
            assert await queue.flush() == 1
            assert [claim.message.id for claim in await queue.claim(lease=60, limit=9)] == ids[3:]
            assert (await queue.get(held)).recipients[0].next_attempt == later
            with pytest.raises(NoSuchMessage):
                await queue.flush(id="0" * 13)

    run(main)


def test_list(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            assert (await queue.list()).messages == ()
            ids = [await queue.put(to(f"a@{'xy'[n % 2]}.example", "b@z.example"), b"x") for n in range(7)]
            assert sorted(ids) == ids
            seen: list[str] = []
            pages = 0
            after = None
            while True:
                page = await queue.list(after=after, limit=3)
                seen += [each.message.id for each in page.messages]
                pages += 1
                after = page.after
                if after is None:
                    break
            assert (seen, pages) == (ids, 3)
            page = await queue.list(destination="y.example", limit=3)
            assert [each.message.id for each in page.messages] == ids[1::2]
            assert page.after is None
            assert [each.address for each in page.messages[0].recipients] == ["a@y.example", "b@z.example"]
            (first, *_), rest = page.messages, await queue.list(after=ids[5])
            assert await queue.get(first.message.id) == first
            assert [each.message.id for each in rest.messages] == ids[6:]

    run(main)


def test_stats(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            stats = await queue.stats()
            assert (stats.messages, stats.octets, stats.oldest) == (0, 0, None)
            start = engine.clock.now
            await queue.put(to("a@x.example", "b@y.example"), b"12345")
            engine.clock.now += 10
            await queue.put(to("a@x.example", not_before=start + 1000), b"123")
            stats = await queue.stats()
            assert (stats.messages, stats.octets, stats.oldest) == (2, 8, start)
            assert (stats.due, stats.deferred, stats.leased, stats.held) == (2, 1, 0, 0)
            claim = await one(queue)
            stats = await queue.stats()
            assert (stats.due, stats.deferred, stats.leased, stats.held) == (1, 1, 1, 0)
            await queue.retry(claim.lease, start + 500)
            stats = await queue.stats()
            assert (stats.due, stats.deferred, stats.leased, stats.held) == (1, 2, 0, 0)
        async with engine.open() as queue:
            assert await queue.stats() == stats

    run(main)


def test_ready(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:

            async def waits(**options: Any) -> asyncio.Task[None]:
                task = asyncio.create_task(queue.ready(**options))
                await queue.stats()
                assert not task.done()
                return task

            waiting = await waits()
            excluding = await waits(exclude=["x.example"])
            await queue.put(to("a@x.example"), b"x")
            await waiting
            await queue.ready()
            assert not excluding.done()
            claim = await one(queue)
            waiting = await waits()
            await queue.retry(claim.lease, engine.clock.now)
            await waiting
            id = (await one(queue)).message.id
            waiting = await waits()
            await queue.remove(id)
            id = await queue.put(to("a@y.example", held=True), b"x")
            assert not waiting.done() and not excluding.done()
            await queue.release(id)
            await waiting
            await excluding
            await queue.put(to("a@z.example", not_before=engine.clock.now + 0.05), b"x")
            await one(queue)
            waiting = await waits()
            engine.clock.now += 0.05
            await waiting
            assert len(await queue.claim(lease=60)) == 1

    run(main)


def test_ready_when_a_lease_expires(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            await queue.put(to("a@x.example"), b"x")
            await queue.claim(lease=0.05)
            waiting = asyncio.create_task(queue.ready())
            await queue.stats()
            assert not waiting.done()
            engine.clock.now += 0.05
            await waiting
            assert len(await queue.claim(lease=60)) == 1

    run(main)


def test_limits(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open(max_messages=2) as queue:
            ids = [await queue.put(to("a@x.example"), b"x") for _ in range(2)]
            with pytest.raises(QueueFull) as caught:
                await queue.put(to("a@x.example"), b"x")
            assert (caught.value.code, caught.value.enhanced_code) == (452, (4, 3, 1))
            await queue.remove(ids[0])
            await queue.put(to("a@x.example"), b"x")
        async with engine.open(max_octets=200_000) as queue:
            await queue.put(to("a@x.example"), bytes(199_998))
            for body in (b"x", bytes(300_000)):
                with pytest.raises(QueueFull):
                    await queue.put(to("a@x.example"), body)

            async def endless() -> AsyncIterator[bytes]:
                while True:
                    yield bytes(10_000)

            with pytest.raises(QueueFull):
                await queue.put(to("a@x.example"), endless())
            assert (await queue.stats()).octets == 200_000

    run(main)


def test_limits_hold_for_what_is_under_way(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open(max_messages=5) as queue:
            outcomes = await asyncio.gather(
                *(queue.put(to("a@x.example"), b"x") for _ in range(9)), return_exceptions=True
            )
            assert sum(isinstance(each, QueueFull) for each in outcomes) == 4
            assert (await queue.stats()).messages == 5

    run(main)


def test_a_cancelled_put_is_whole_or_nothing(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            for size in (10, 500_000):
                for turns in range(6):
                    task = asyncio.create_task(queue.put(to("a@x.example"), bytes(size)))
                    for _ in range(turns):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.wait([task])
            await queue.put(to("a@x.example"), b"last")
        async with engine.open() as queue:
            messages = (await queue.list()).messages
            assert messages
            for each in messages:
                assert len(await text(queue.body(each.message.id))) == each.message.size
            assert (await queue.stats()).messages == len(messages)

    run(main)


def test_a_cancelled_claim_leases_nothing(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            await queue.put(to("a@x.example"), b"x")
            task = asyncio.create_task(queue.claim(lease=600))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await queue.ready()
            assert len(await queue.claim(lease=60)) == 1

    run(main)


def test_a_body_that_is_read_while_its_message_goes(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        body = random.Random(1).randbytes(2_000_000)
        async with engine.open() as queue:
            id = await queue.put(to("a@x.example"), body)
            pieces = queue.body(id)
            begun = await anext(pieces)
            await queue.remove(id)
            try:
                rest = await text(pieces)
            except (NoSuchMessage, QueueUnavailable):
                return
            assert begun + rest == body

    run(main)


def test_a_body_that_is_not_read_to_its_end(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        async with engine.open() as queue:
            id = await queue.put(to("a@x.example"), bytes(2_000_000))
            pieces: Any = queue.body(id)
            assert await anext(pieces)
            await pieces.aclose()
            assert len(await text(queue.body(id))) == 2_000_000

    run(main)


def test_identifiers_are_not_used_again(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        seen: list[str] = []
        for step in (0, 10, -100_000, 5):
            engine.clock.now += step
            async with engine.open() as queue:
                for _ in range(3):
                    seen.append(await queue.put(to("a@x.example"), b"x"))
                    await queue.remove(seen[-1])
        assert len(set(seen)) == len(seen)
        assert sorted(seen) == seen

    run(main)


def test_closed(engine: Engine, run: Runner) -> None:
    async def main() -> None:
        queue = engine.open()
        await queue.put(to("a@x.example"), b"x")
        claim = await one(queue)
        waiting = asyncio.create_task(queue.ready())
        await queue.stats()
        putting = asyncio.gather(*(queue.put(to("a@x.example"), b"x") for _ in range(5)))
        await asyncio.sleep(0)
        await queue.aclose()
        await queue.aclose()
        assert len(await putting) == 5
        with pytest.raises(QueueUnavailable) as caught:
            await waiting
        assert (caught.value.code, caught.value.enhanced_code) == (451, (4, 3, 0))
        attempts: list[Any] = [
            queue.put(to("a@x.example"), b"x"),
            queue.put(to("a@x.example"), bytes(1_000_000)),
            queue.claim(lease=60),
            queue.ready(),
            queue.renew(claim.lease, 60),
            queue.acknowledge(claim.lease),
            text(queue.body(claim.message.id)),
            queue.get(claim.message.id),
            queue.list(),
            queue.hold(claim.message.id),
            queue.release(claim.message.id),
            queue.remove(claim.message.id),
            queue.flush(),
            queue.stats(),
        ]
        for attempt in attempts:
            with pytest.raises(QueueUnavailable):
                await attempt
        async with engine.open() as queue:
            assert (await queue.stats()).messages == 6

    run(main)
