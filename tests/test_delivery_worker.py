"""The delivery worker: from the queue to next hops of every kind, good and bad."""

from __future__ import annotations

import asyncio
import logging
import tracemalloc
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from fastsmtp import Client, ConfigurationError
from fastsmtp.client_options import Timeouts
from fastsmtp.delivery.queue import (
    Body,
    Claims,
    Envelope,
    Lease,
    QueueFull,
    QueueUnavailable,
    Result,
    SQLiteQueue,
    State,
)
from fastsmtp.delivery.routes import FixedRoutes
from fastsmtp.delivery.schedule import Schedule
from fastsmtp.delivery.worker import DeliveryWorker
from fastsmtp.extensions import DeliverBy, MailParams, RcptParams, ValidSince
from fastsmtp.pool import Pool
from fastsmtp.reply import EnhancedCode, Reply, SMTPError

from .certificates import Authority
from .delivering import BODY, QUICK, Site, StaticRoutes, Watch, closed_port, envelope, inbox, site
from .fake_server import CLOSE, SILENCE, Fake, fake
from .loops import Runner

BUSY = Reply(450, EnhancedCode(4, 2, 1), "busy")
NO = Reply(550, EnhancedCode(5, 1, 1), "nobody")
HOUR = 3600.0


async def empty(at: Site) -> bool:
    stats = await at.queue.stats()
    return not (stats.messages or stats.leased)


# What goes well


def test_a_message_is_delivered(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with inbox() as box, site(tmp_path, FixedRoutes(f"smtp://127.0.0.1:{box.port}")) as at:
            await at.queue.put(envelope("a@x.example", "b@y.example"), BODY)
            assert await at.watch.saw(2) == [("a@x.example", "delivered 250"), ("b@y.example", "delivered 250")]
            assert sorted(box.messages) == [
                ("s@home.example", ("a@x.example",), BODY),
                ("s@home.example", ("b@y.example",), BODY),
            ]
            assert await empty(at)
            counters = at.worker.counters
            assert (counters.claimed, counters.delivered, counters.deferred, counters.failed) == (2, 2, 0, 0)
            assert at.watch.outcomes[0][1].host == f"127.0.0.1:{box.port}"
            assert box.server.counters.connections_total == 1

    run(main)


def test_recipients_of_a_destination_share_a_transaction(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with inbox() as box, site(tmp_path, StaticRoutes({"x.example": [box.port]})) as at:
            await at.queue.put(envelope("a@x.example", "b@x.example", "a@x.example"), BODY)
            await at.watch.saw(3)
            assert box.messages == [("s@home.example", ("a@x.example", "b@x.example", "a@x.example"), BODY)]

    run(main)


def test_tasks_and_connections_are_bounded(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with inbox() as box:
            box.gate = asyncio.Event()
            routes = StaticRoutes({"x.example": [box.port], "y.example": [box.port]})
            options: dict[str, Any] = {"concurrency": 12, "per_destination": 8, "batch": 10}
            async with site(tmp_path, routes, start=False, **options) as at:
                for number in range(100):
                    await at.queue.put(envelope(f"{number}@{'xy'[number % 2]}.example"), BODY)
                before = len(asyncio.all_tasks())
                at.worker.start()
                while box.running < 4 or at.worker.running < 12:
                    await asyncio.sleep(0)
                # Both destinations have their share, though one of them could have taken more.
                assert at.worker.running == 12
                assert at.worker.held <= 40
                assert len(asyncio.all_tasks()) < before + 12 + 20  # some of them the server's
                box.gate.set()
                await at.watch.saw(100)
                assert len(box.recipients) == len(set(box.recipients)) == 100
                assert box.most <= 4  # the connections of the pool to one host
                assert box.server.counters.connections_total <= 4
                assert await empty(at)

    run(main)


def test_others_go_first_before_each_unit(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        free = asyncio.Semaphore(0)
        asked = 0

        async def courtesy() -> None:
            nonlocal asked
            asked += 1
            await free.acquire()

        async with inbox() as box:
            routes = StaticRoutes({"x.example": [box.port]})
            async with site(tmp_path, routes, courtesy=courtesy) as at:
                for number in range(3):
                    await at.queue.put(envelope(f"{number}@x.example"), BODY)
                for number in range(1, 4):
                    while asked < number:
                        await asyncio.sleep(0)
                    assert len(box.messages) == number - 1
                    free.release()
                    await at.watch.saw(number)
                assert await empty(at)

    run(main)


def test_a_slow_destination_does_not_hold_up_others(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with inbox() as slow, inbox() as fast:
            slow.gate = asyncio.Event()
            routes = StaticRoutes({"slow.example": [slow.port], "fast.example": [fast.port]})
            options: dict[str, Any] = {"concurrency": 3, "per_destination": 2, "batch": 4}
            async with site(tmp_path, routes, start=False, **options) as at:
                for number in range(20):
                    await at.queue.put(envelope(f"{number}@slow.example"), BODY)
                for number in range(20):
                    await at.queue.put(envelope(f"{number}@fast.example"), BODY)
                at.worker.start()
                await at.watch.saw(20)
                assert len(fast.messages) == 20 and not slow.messages
                slow.gate.set()
                await at.watch.saw(40)

    run(main)


def test_an_old_connection_that_has_ended_is_no_failure(tmp_path: Path, run: Runner) -> None:
    class Tired(Fake):
        """Ends a connection at its second message."""

        async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str) -> bool:
            if what == "EHLO":
                self.seen = 0
            if what == "MAIL":
                self.seen += 1
                if self.seen > 1:
                    return False
            return await super()._say(reader, writer, what)

    async def main() -> None:
        async with fake(kind=Tired) as server, site(tmp_path, StaticRoutes({"x.example": [server.port]})) as at:
            for number in range(3):
                await at.queue.put(envelope(f"{number}@x.example"), BODY)
            await at.watch.saw(3)
            assert at.worker.counters.delivered == 3 and server.connections == 3

    run(main)


def test_large_messages_pass_through_in_pieces(tmp_path: Path) -> None:
    pieces, piece = 40, b"x" * 76 + b"\r\n"

    async def body() -> AsyncIterator[bytes]:
        yield b"Subject: large\r\n\r\n"
        for _ in range(pieces):
            yield piece * 10_000

    async def main() -> None:
        async with inbox(max_message_bytes=0) as box, site(tmp_path, StaticRoutes({"x.example": [box.port]})) as at:
            box.keep = False
            tracemalloc.start()
            try:
                await at.queue.put(envelope("a@x.example"), body())
                await at.watch.saw(1)
                peak = tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()
            assert box.sizes == [18 + pieces * 10_000 * 78]
            assert peak < 8_000_000 < box.sizes[0] / 3

    asyncio.run(main())


# Refusals


def test_each_recipient_has_a_fate_of_its_own(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with inbox() as box, site(tmp_path, StaticRoutes({"x.example": [box.port]})) as at:
            box.replies = {"later@x.example": BUSY, "no@x.example": NO}
            id = await at.queue.put(envelope("later@x.example", "no@x.example", "yes@x.example"), BODY)
            assert await at.watch.saw(3) == [
                ("later@x.example", "pending 450"),
                ("no@x.example", "failed 550"),
                ("yes@x.example", "delivered 250"),
            ]
            assert box.recipients == ["yes@x.example"]
            later, no, yes = (await at.queue.get(id)).recipients
            assert (later.state, later.attempts, later.reply) == (State.PENDING, 1, BUSY)
            assert later.next_attempt == at.clock.now + 60
            assert (no.state, yes.state) == (State.FAILED, State.DELIVERED)
            (notice,) = await at.notices()
            assert "no@x.example" in notice.as_string() and "later@x.example" not in notice.as_string()
            box.replies = {}
            at.advance(60)
            await at.watch.until(lambda: at.worker.counters.delivered == 2)
            assert box.recipients == ["later@x.example", "yes@x.example"]
            assert len([each for each in await at.queued() if each.message.sender]) == 0

    run(main)


def test_lmtp_answers_for_each_recipient(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with inbox(lmtp=True) as box, site(tmp_path, FixedRoutes(f"lmtp://127.0.0.1:{box.port}")) as at:
            box.final = {"later@x.example": BUSY, "no@x.example": NO}
            await at.queue.put(envelope("later@x.example", "no@x.example", "yes@x.example", sender=""), BODY)
            assert await at.watch.saw(3) == [
                ("later@x.example", "pending 450"),
                ("no@x.example", "failed 550"),
                ("yes@x.example", "delivered 250"),
            ]

    run(main)


def test_lmtp_connection_lost_between_the_replies(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with fake({".": b"250 first\r\n" + CLOSE}) as server:
            routes = FixedRoutes(f"lmtp://127.0.0.1:{server.port}")
            async with site(tmp_path, routes) as at:
                await at.queue.put(Envelope("", envelope("a@x.example", "b@x.example").targets), BODY)
                assert await at.watch.saw(2) == [("a@x.example", "delivered 250"), ("b@x.example", "pending 451")]
                server.replies["."] = b"250 second\r\n"
                at.advance(60)
                await at.watch.until(lambda: at.worker.counters.delivered == 2)
                assert server.lines.count("RCPT TO:<a@x.example>") == 1
                assert server.lines.count("RCPT TO:<b@x.example>") == 2

    run(main)


@pytest.mark.parametrize("lmtp", [False, True])
def test_too_many_recipients_go_in_several_transactions(tmp_path: Path, lmtp: bool) -> None:
    async def main() -> None:
        async with inbox(max_recipients=2, lmtp=lmtp) as box:
            kind = "lmtp" if lmtp else "smtp"
            async with site(tmp_path, FixedRoutes(f"{kind}://127.0.0.1:{box.port}")) as at:
                await at.queue.put(envelope(*(f"{each}@x.example" for each in "abcde")), BODY)
                await at.watch.saw(5)
                assert [len(recipients) for _, recipients, _ in box.messages] == [2, 2, 1]
                assert at.worker.counters.delivered == 5 and box.server.counters.connections_total == 1

    asyncio.run(main())


def test_recipients_of_a_transaction_are_limited(tmp_path: Path) -> None:
    async def main() -> None:
        async with inbox() as box:
            async with site(tmp_path, FixedRoutes(f"smtp://127.0.0.1:{box.port}"), max_recipients=3) as at:
                await at.queue.put(envelope(*(f"{each}@x.example" for each in "abcde")), BODY)
                await at.watch.saw(5)
                assert [len(recipients) for _, recipients, _ in box.messages] == [3, 2]

    asyncio.run(main())


def test_a_message_that_is_too_large_fails(tmp_path: Path) -> None:
    async def main() -> None:
        async with inbox(max_message_bytes=20) as box, site(tmp_path, StaticRoutes({"x.example": [box.port]})) as at:
            await at.queue.put(envelope("a@x.example"), BODY)
            assert await at.watch.saw(1) == [("a@x.example", "failed 552")]
            assert at.watch.notices == ["failed"]

    asyncio.run(main())


# Next hops that are down, refuse, stall, or close


def test_a_next_hop_that_is_down(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        with closed_port() as port:
            ports = [port]
            async with inbox() as box, site(tmp_path, StaticRoutes({"x.example": ports})) as at:
                await at.queue.put(envelope("a@x.example"), BODY)
                assert await at.watch.saw(1) == [("a@x.example", "pending 451")]
                (_, outcome), *_ = at.watch.outcomes
                assert outcome.reply.enhanced_code == (4, 4, 1) and not outcome.host
                assert not at.watch.notices
                ports[0] = box.port
                at.advance(60)
                await at.watch.until(lambda: at.worker.counters.delivered)
                assert await empty(at)

    run(main)


def test_a_host_that_is_down_is_left_alone(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with fake({"greeting": CLOSE}) as server:
            async with site(tmp_path, StaticRoutes({"x.example": [server.port]}), rest=100) as at:
                for number in range(5):
                    await at.queue.put(envelope(f"{number}@x.example"), BODY)
                await at.watch.saw(5)
                assert server.connections == 1  # the others were deferred without another try
                del server.replies["greeting"]
                server.replies["greeting"] = b"220 back\r\n"
                at.advance(60)
                await at.watch.saw(10)
                assert server.connections == 1
                at.advance(120)
                await at.watch.until(lambda: at.worker.counters.delivered == 5)
                assert server.connections == 2

    run(main)


@pytest.mark.parametrize(
    ("greeting", "fate"),
    [
        (b"554 5.3.2 no mail here\r\n", "failed 554"),
        (b"521 5.3.2 never\r\n", "failed 521"),
        (b"421 4.3.2 not now\r\n", "pending 421"),
        (b"450 later\r\n", "pending 450"),
        (b"what?\r\n", "pending 451"),
    ],
)
def test_a_next_hop_that_turns_us_away(tmp_path: Path, greeting: bytes, fate: str) -> None:
    async def main() -> None:
        async with fake({"greeting": greeting}) as server:
            async with site(tmp_path, StaticRoutes({"x.example": [server.port]})) as at:
                await at.queue.put(envelope("a@x.example"), BODY)
                assert await at.watch.saw(1) == [("a@x.example", fate)]
                assert at.watch.notices == (["failed"] if "failed" in fate else [])

    asyncio.run(main())


@pytest.mark.parametrize("step", ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "."])
@pytest.mark.parametrize("reply", [SILENCE, CLOSE, b"4", b"5"])
def test_trouble_at_every_step(tmp_path: Path, run: Runner, step: str, reply: bytes) -> None:
    says = {b"4": b"451 4.3.0 not now\r\n", b"5": b"551 5.7.1 no\r\n"}.get(reply, reply)
    fate = State.FAILED if reply == b"5" else State.PENDING

    async def main() -> None:
        async with fake({step: says}) as server:
            routes = StaticRoutes({"x.example": [server.port]}, timeouts=QUICK if reply == SILENCE else Timeouts())
            async with site(tmp_path, routes) as at:
                id = await at.queue.put(envelope("a@x.example", "b@x.example"), BODY)
                await at.watch.saw(2)
                assert [each.state for _, each in at.watch.outcomes] == [fate, fate]
                assert len(await at.notices()) == (fate is State.FAILED)
                if fate is State.PENDING:
                    server.replies = Fake({}).replies
                    routes.options["timeouts"] = Timeouts()
                    at.advance(60)
                    await at.watch.saw(4)
                    assert at.worker.counters.delivered == 2
                    with pytest.raises(LookupError):
                        await at.queue.get(id)

    run(main)


def test_a_lost_end_of_a_message_may_double_it_and_never_loses_it(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with fake({".": CLOSE}) as first, inbox() as second:
            async with site(tmp_path, StaticRoutes({"x.example": [first.port, second.port]})) as at:
                await at.queue.put(envelope("a@x.example"), BODY)
                assert await at.watch.saw(1) == [("a@x.example", "pending 451")]
                assert not second.messages  # the first host may have it
                first.replies["."] = b"250 ok\r\n"
                at.advance(60)
                await at.watch.saw(2)
                assert len(first.messages) == 2 and not second.messages

    run(main)


def test_a_connection_lost_between_transactions(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with fake({".": b"250 ok\r\n" + CLOSE}) as first, fake({"MAIL": b"250 ok\r\n"}) as second:
            routes = StaticRoutes({"x.example": [first.port, second.port]})
            async with site(tmp_path, routes, max_recipients=1) as at:
                await at.queue.put(envelope("a@x.example", "b@x.example", "c@x.example"), BODY)
                await at.watch.saw(3)
                assert at.worker.counters.delivered == 3
                assert (len(first.messages), len(second.messages)) == (1, 2)

    run(main)


def test_an_old_connection_that_says_good_bye(tmp_path: Path, run: Runner) -> None:
    class Polite(Fake):
        """Ends a connection at its second message, with a word."""

        async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str) -> bool:
            if what == "EHLO":
                self.seen = 0
            if what == "MAIL":
                self.seen += 1
                self.replies["MAIL"] = b"421 4.4.2 good bye\r\n" + CLOSE if self.seen > 1 else b"250 ok\r\n"
            return await super()._say(reader, writer, what)

    async def main() -> None:
        async with fake(kind=Polite) as server, site(tmp_path, StaticRoutes({"x.example": [server.port]})) as at:
            for number in range(2):
                await at.queue.put(envelope(f"{number}@x.example"), BODY)
            await at.watch.saw(2)
            assert at.worker.counters.delivered == 2 and server.connections == 2

    run(main)


def test_long_replies_are_cut(tmp_path: Path) -> None:
    async def main() -> None:
        async with fake({"RCPT": b"550-" + b"x" * 400 + b"\r\n"}) as server:
            server.replies["RCPT"] = server.replies["RCPT"] * 50 + b"550 end\r\n"
            async with site(tmp_path, StaticRoutes({"x.example": [server.port]})) as at:
                await at.queue.put(envelope("a@x.example"), BODY)
                await at.watch.saw(1)
                assert len(at.watch.outcomes[0][1].reply.message) == 1000

    asyncio.run(main())


# More than one host


def test_the_next_host_is_tried(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        with closed_port() as down:
            async with fake({"greeting": b"554 no\r\n"}) as rude, inbox() as box:
                routes = StaticRoutes({"x.example": [down, rude.port, box.port]})
                async with site(tmp_path, routes) as at:
                    await at.queue.put(envelope("a@x.example"), BODY)
                    assert await at.watch.saw(1) == [("a@x.example", "delivered 250")]
                    assert at.watch.outcomes[0][1].host == "mx2.example"

    run(main)


def test_what_may_change_counts_more_than_what_will_not(tmp_path: Path) -> None:
    async def main() -> None:
        with closed_port() as down:
            async with fake({"greeting": b"554 no\r\n"}) as rude:
                for ports in ([down, rude.port], [rude.port, down]):
                    async with site(tmp_path, StaticRoutes({"x.example": ports})) as at:
                        id = await at.queue.put(envelope("a@x.example"), BODY)
                        assert await at.watch.saw(1) == [("a@x.example", "pending 451")]
                        await at.queue.remove(id)

    asyncio.run(main())


def test_who_is_refused_for_now_is_tried_at_the_next_host(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with inbox() as first, inbox() as second, inbox() as third:
            first.replies = {"later@x.example": BUSY, "no@x.example": NO}
            second.replies = {"later@x.example": BUSY}
            routes = StaticRoutes({"x.example": [first.port, second.port, third.port]})
            async with site(tmp_path, routes) as at:
                await at.queue.put(envelope("later@x.example", "no@x.example", "yes@x.example"), BODY)
                assert [fate for _, fate in await at.watch.saw(3)] == ["pending 450", "failed 550", "delivered 250"]
                second.replies = {}
                at.advance(60)
                await at.watch.until(lambda: at.worker.counters.delivered == 2)
                assert (first.recipients, second.recipients) == (["yes@x.example"], ["later@x.example"])
                assert (
                    not third.messages and not third.server.counters.connections_total
                )  # two hosts are enough at a time

    run(main)


@pytest.mark.parametrize(("code", "fate"), [(450, "pending 450"), (550, "failed 550")])
def test_no_route(tmp_path: Path, code: int, fate: str) -> None:
    async def main() -> None:
        async with site(tmp_path, StaticRoutes({"x.example": [-code]})) as at:
            await at.queue.put(envelope("a@x.example"), BODY)
            assert await at.watch.saw(1) == [("a@x.example", fate)]

    asyncio.run(main())


# Time


def test_pauses_become_longer(tmp_path: Path) -> None:
    async def main() -> None:
        schedule = Schedule(first=60, factor=3, longest=1000, delay_notice=None)
        async with site(tmp_path, StaticRoutes({"x.example": [-450]}), schedule=schedule) as at:
            id = await at.queue.put(envelope("a@x.example"), BODY)
            for count, pause in enumerate((60, 180, 540, 1000, 1000), 1):
                await at.watch.saw(count)
                (recipient,) = (await at.queue.get(id)).recipients
                assert recipient.next_attempt == at.clock.now + pause
                at.advance(pause)
            await at.watch.saw(6)
            assert not await at.notices()

    asyncio.run(main())


def test_expiry(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with (
            inbox() as box,
            site(tmp_path, StaticRoutes({"x.example": [box.port], "home.example": [-450]})) as at,
        ):
            box.replies = {"a@x.example": BUSY}
            await at.queue.put(envelope("a@x.example", expires=at.clock.now + 100), BODY)
            await at.watch.saw(1)
            box.replies = {}
            at.advance(100)
            await at.watch.until(lambda: at.worker.counters.failed)
            assert not box.messages  # its time was over: it was not tried again
            assert at.worker.counters.expired == 1
            (notice,) = await at.notices()
            text = notice.as_string()
            assert "Action: failed" in text and "Status: 4.2.1" in text and "time for its delivery is over" in text
            assert at.watch.notices == ["failed"]

    run(main)


def test_a_message_that_was_never_tried_is_tried_though_its_time_is_over(tmp_path: Path) -> None:
    async def main() -> None:
        async with inbox() as box:
            box.replies = {"no@x.example": BUSY}
            async with site(tmp_path, StaticRoutes({"x.example": [box.port]}), start=False) as at:
                await at.queue.put(envelope("a@x.example", "no@x.example", expires=at.clock.now + 100), BODY)
                at.clock.now += 200
                at.worker.start()
                assert await at.watch.saw(2) == [("a@x.example", "delivered 250"), ("no@x.example", "failed 450")]
                assert at.watch.notices == ["failed"]

    asyncio.run(main())


def test_the_senders_deadline_returns_the_message(tmp_path: Path) -> None:
    async def main() -> None:
        async with site(tmp_path, StaticRoutes({"x.example": [-450]})) as at:
            params = MailParams(by=DeliverBy(100, "R"))
            await at.queue.put(envelope("a@x.example", params=params, expires=at.clock.now + HOUR), BODY)
            await at.watch.saw(1)
            at.advance(60)
            await at.watch.saw(2)
            at.advance(40)  # the next attempt is not after the deadline
            await at.watch.until(lambda: at.worker.counters.failed)
            assert at.watch.notices == ["failed"]

    asyncio.run(main())


def test_the_delay_is_reported_once(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        schedule = Schedule(first=HOUR, longest=HOUR, jitter=0, delay_notice=2 * HOUR)
        routes = StaticRoutes({"x.example": [-450], "home.example": [-450]})
        async with site(tmp_path, routes, schedule=schedule) as at:
            id = await at.queue.put(envelope("a@x.example", expires=at.clock.now + 100 * HOUR), BODY)
            told: list[int] = []
            for _ in range(5):
                await at.watch.until(lambda: [a for a, _ in at.watch.outcomes].count("a@x.example") > len(told))
                told.append(len(at.watch.notices))
                at.advance(HOUR)
            assert told == [0, 0, 1, 1, 1]
            (notice,) = await at.notices()
            assert "Action: delayed" in notice.as_string() and "Will-Retry-Until: " in notice.as_string()
            (recipient,) = (await at.queue.get(id)).recipients
            assert recipient.delay_reported

    run(main)


def test_delay_of_a_message_with_a_deadline_that_notifies(tmp_path: Path) -> None:
    async def main() -> None:
        async with site(tmp_path, StaticRoutes({"x.example": [-450], "home.example": [-450]})) as at:
            await at.queue.put(envelope("a@x.example", params=MailParams(by=DeliverBy(50, "N"))), BODY)
            await at.watch.saw(1)
            assert not at.watch.notices
            at.advance(60)
            await at.watch.saw(2)
            assert at.watch.notices == ["delayed"]

    asyncio.run(main())


# Loops


@pytest.mark.parametrize(("count", "fate"), [(3, "delivered 250"), (4, "failed 554")])
def test_loops_end(tmp_path: Path, count: int, fate: str) -> None:
    async def main() -> None:
        async with inbox() as box, site(tmp_path, StaticRoutes({"x.example": [box.port]}), max_hops=3) as at:
            header = b"Received: from a\r\n\tby b;\r\n\tReceived: folded\r\n" * count + b"Subject: x\r\n"
            await at.queue.put(envelope("a@x.example"), header + b"\r\nReceived: in the text\r\n")
            assert await at.watch.saw(1) == [("a@x.example", fate)]
            if "failed" in fate:
                assert at.watch.outcomes[0][1].reply.enhanced_code == (5, 4, 6)
                assert at.watch.notices == ["failed"]

    asyncio.run(main())


# Parameters


def test_parameters_are_handed_on(tmp_path: Path) -> None:
    async def main() -> None:
        options = {"deliverby": 0, "mt_priority": "", "rrvs": True, "no_soliciting": "", "binarymime": True}
        async with inbox(**options) as box, site(tmp_path, StaticRoutes({"x.example": [box.port]})) as at:
            from datetime import UTC, datetime

            rcpt = RcptParams(("SUCCESS", "DELAY"), None, ValidSince(datetime(2020, 1, 1, tzinfo=UTC)))
            by = DeliverBy(500, "R", True)
            params = MailParams(
                body="8BITMIME", smtputf8=True, ret="HDRS", envid="x y", by=by, mt_priority=3, solicit=("a",), hold=5
            )
            received = at.clock.now - 100
            await at.queue.put(envelope(("ü@x.example", rcpt), params=params, received=received), BODY)
            await at.watch.saw(1)
            ((got, (got_rcpt,)),) = box.params
            assert got_rcpt == rcpt
            assert got == MailParams(
                size=len(BODY),
                body="8BITMIME",
                smtputf8=True,
                ret="HDRS",
                envid="x y",
                by=DeliverBy(400, "R", True),
                mt_priority=3,
                solicit=("a",),
            )

    asyncio.run(main())


def test_binary_messages_arrive_octet_by_octet(tmp_path: Path) -> None:
    async def main() -> None:
        octets = b"Subject: x\r\n\r\n\0\r\n\nno line end, \xff"
        async with inbox(binarymime=True) as box, site(tmp_path, StaticRoutes({"x.example": [box.port]})) as at:
            await at.queue.put(envelope("a@x.example", params=MailParams(body="BINARYMIME")), octets)
            await at.watch.saw(1)
            assert box.messages[0][2] == octets

    asyncio.run(main())


@pytest.mark.parametrize(
    ("params", "to", "body", "fates"),
    [
        (
            MailParams(ret="FULL", envid="x", mt_priority=3, solicit=("a",), auth="x@y.example"),
            "a@",
            BODY,
            "delivered 250",
        ),
        (MailParams(by=DeliverBy(500, "R")), "a@", BODY, "delivered 250"),
        (MailParams(smtputf8=True), "a@", BODY, "delivered 250"),
        (MailParams(smtputf8=True), "ü@", BODY, "failed 553"),
        (MailParams(smtputf8=True), "a@", "Subject: ü\r\n\r\n".encode(), "failed 554"),
        (MailParams(body="BINARYMIME"), "a@", BODY, "failed 554"),
        (MailParams(body="8BITMIME"), "a@", "Subject: x\r\n\r\nü\r\n".encode(), "delivered 250"),
    ],
)
def test_a_host_without_extensions(tmp_path: Path, params: MailParams, to: str, body: bytes, fates: str) -> None:
    async def main() -> None:
        async with fake() as server, site(tmp_path, StaticRoutes({"x.example": [server.port]})) as at:
            await at.queue.put(envelope(f"{to}x.example", "plain@x.example", params=params), body)
            for address, fate in await at.watch.saw(2):
                assert fate == ("delivered 250" if address == "plain@x.example" and "553" in fates else fates), address
            if server.messages:
                assert "MAIL FROM:<s@home.example>" in server.lines
            assert not any("BINARYMIME" in line or "SMTPUTF8" in line for line in server.lines)

    asyncio.run(main())


def test_who_cannot_be_named_does_not_hurt_the_others(tmp_path: Path) -> None:
    async def main() -> None:
        async with inbox() as box, site(tmp_path, StaticRoutes({"x.example": [box.port]})) as at:
            await at.queue.put(envelope("a@x.example", "no mailbox@x.example", "b@x.example"), BODY)
            assert await at.watch.saw(3) == [
                ("a@x.example", "delivered 250"),
                ("b@x.example", "delivered 250"),
                ("no mailbox@x.example", "failed 554"),
            ]
            assert box.recipients == ["a@x.example", "b@x.example"]

    asyncio.run(main())


@pytest.mark.parametrize(("action", "fate"), [("R", "failed 550"), ("C", "delivered 250")])
def test_an_owner_that_cannot_be_asked_for(tmp_path: Path, action: Any, fate: str) -> None:
    async def main() -> None:
        from datetime import UTC, datetime

        rcpt = RcptParams(rrvs=ValidSince(datetime(2020, 1, 1, tzinfo=UTC), action))
        async with inbox() as box, site(tmp_path, StaticRoutes({"x.example": [box.port]})) as at:
            await at.queue.put(envelope(("a@x.example", rcpt)), BODY)
            assert await at.watch.saw(1) == [("a@x.example", fate)]

    asyncio.run(main())


# TLS


@pytest.mark.parametrize(
    ("policy", "server", "fate"),
    [
        ("none", "good", "delivered 250"),
        ("may", "good", "delivered 250"),
        ("may", "wrong", "delivered 250"),
        ("may", "plain", "delivered 250"),
        ("encrypt", "good", "delivered 250"),
        ("encrypt", "wrong", "delivered 250"),
        ("encrypt", "plain", "pending 454"),
        ("verify", "good", "delivered 250"),
        ("verify", "wrong", "pending 454"),
        ("verify", "plain", "pending 454"),
    ],
)
def test_policies_of_tls(tmp_path: Path, run: Runner, policy: str, server: str, fate: str) -> None:
    authority = Authority(tmp_path)
    options: dict[str, Any] = {}
    if server != "plain":
        from fastsmtp.tls import TLSFiles

        options["tls"] = TLSFiles(authority.issue("mx.example" if server == "good" else "other.example"))

    async def main() -> None:
        async with inbox(**options) as box:
            routes = StaticRoutes(
                {"x.example": [box.port]}, tls=policy, context=authority.client(), server_hostname="mx.example"
            )
            async with site(tmp_path, routes) as at:
                await at.queue.put(envelope("a@x.example"), BODY)
                assert await at.watch.saw(1) == [("a@x.example", fate)]
                used = server != "plain" and policy != "none" and fate.startswith("delivered")
                assert box.server.counters.tls == used + (server == "wrong" and policy == "verify") * 0

    run(main)


def test_a_handshake_that_fails_does_not_stop_mail_that_needs_none(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with fake(
            {"EHLO": b"250-mx.example\r\n250 STARTTLS\r\n", "STARTTLS": b"220 go on\r\n" + CLOSE}
        ) as server:
            async with site(tmp_path, StaticRoutes({"x.example": [server.port]}), rest=100) as at:
                await at.queue.put(envelope("a@x.example"), BODY)
                await at.queue.put(envelope("b@x.example"), BODY)
                await at.watch.saw(2)
                assert at.worker.counters.delivered == 2
                assert server.lines.count("STARTTLS") == 1  # it is not tried again for a while

    run(main)


REQUIRE = MailParams(requiretls=True)


@pytest.mark.parametrize(
    ("case", "status"),
    [
        ("good", (2, 0, 0)),
        ("not offered", (5, 7, 30)),
        ("wrong name", (5, 7, 10)),
        ("no TLS", (5, 7, 10)),
        ("unsigned DNS", (5, 7, 10)),
    ],
)
def test_requiretls(tmp_path: Path, case: str, status: tuple[int, ...]) -> None:
    from fastsmtp.tls import TLSFiles

    authority = Authority(tmp_path)
    files = TLSFiles(authority.issue("other.example" if case == "wrong name" else "mx.example"))
    options: dict[str, Any] = {"requiretls": case != "not offered", "tls": None if case == "no TLS" else files}

    async def main() -> None:
        async with inbox(**options) as box:
            routes = StaticRoutes(
                {"x.example": [box.port], "home.example": [box.port]},
                context=authority.client(),
                server_hostname="mx.example",
                authentic=case != "unsigned DNS",
            )
            async with site(tmp_path, routes) as at:
                await at.queue.put(envelope("a@x.example", params=REQUIRE), BODY)
                await at.watch.saw(1)
                outcome = at.watch.outcomes[0][1]
                assert outcome.reply.enhanced_code == status
                if case == "good":
                    assert box.params[0][0].requiretls
                    return
                assert outcome.state is State.FAILED
                # The notice asks for the same, but is not stopped by its lack.
                await at.watch.saw(2)
                assert at.watch.outcomes[1][1].state is State.DELIVERED
                assert [sender for sender, _, _ in box.messages] == [""]
                assert box.messages[0][2].count(b"world") == 0

    asyncio.run(main())


def test_requiretls_waits_for_a_host_that_is_down(tmp_path: Path) -> None:
    async def main() -> None:
        with closed_port() as port:
            async with site(tmp_path, StaticRoutes({"x.example": [port]})) as at:
                await at.queue.put(envelope("a@x.example", params=REQUIRE), BODY)
                assert await at.watch.saw(1) == [("a@x.example", "pending 451")]

    asyncio.run(main())


def test_requiretls_ends_at_a_socket_of_this_machine(tmp_path: Path) -> None:
    async def main() -> None:
        path = tmp_path / "s"
        async with inbox(addr="", unix_socket=path, lmtp=True) as box:
            async with site(tmp_path, FixedRoutes(f"lmtp+unix://{path}")) as at:
                await at.queue.put(envelope("a@x.example", params=REQUIRE), BODY)
                assert await at.watch.saw(1) == [("a@x.example", "delivered 250")]
                assert box.recipients == ["a@x.example"]

    asyncio.run(main())


def test_a_login_that_fails_is_no_fault_of_the_message(tmp_path: Path) -> None:
    async def refused(client: Client) -> None:
        raise SMTPError(535, EnhancedCode(5, 7, 8), "wrong password")

    async def log_in(client: Client) -> None:
        await client.login("user", "password")  # which the host does not offer

    async def main() -> None:
        async with inbox() as box:
            for prepare in (refused, log_in):
                async with Pool(prepare=prepare) as pool:
                    async with site(tmp_path, StaticRoutes({"x.example": [box.port]}), pool=pool) as at:
                        id = await at.queue.put(envelope("a@x.example"), BODY)
                        assert await at.watch.saw(1) == [("a@x.example", "pending 454")]
                        await at.queue.remove(id)

    asyncio.run(main())


# The queue fails


class Flawed(SQLiteQueue):
    """Fails when it is told to.

    Attributes:
        settle_errors, put_errors, claim_errors: what the next calls raise.
        renewals: how many there were.
    """

    settle_errors: list[BaseException]
    put_errors: list[BaseException]
    claim_errors: list[BaseException]
    renewals = 0

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.settle_errors, self.put_errors, self.claim_errors = [], [], []
        self.renewed = asyncio.Event()

    async def put(self, envelope: Envelope, body: Body) -> str:
        if self.put_errors and not envelope.sender:
            raise self.put_errors.pop()
        return await super().put(envelope, body)

    async def claim(self, **options: Any) -> Claims:
        if self.claim_errors:
            raise self.claim_errors.pop()
        return await super().claim(**options)

    async def settle(
        self,
        lease: Lease,
        results: Mapping[int, Result],
        *,
        others: Result | None = None,
        retry_at: float | None = None,
    ) -> bool:
        if self.settle_errors:
            raise self.settle_errors.pop()
        return await super().settle(lease, results, others=others, retry_at=retry_at)

    async def renew(self, lease: Lease, seconds: float) -> Lease:
        self.renewals += 1
        if self.renewals >= 2:
            self.renewed.set()
        return await super().renew(lease, seconds)


def flawed(at: Site) -> Flawed:
    assert isinstance(at.queue, Flawed)
    return at.queue


def test_a_result_that_cannot_be_stored_is_stored_later(
    tmp_path: Path, run: Runner, caplog: pytest.LogCaptureFixture
) -> None:
    async def main() -> None:
        async with inbox() as box, site(tmp_path, StaticRoutes({"x.example": [box.port]}), queue=Flawed) as at:
            flawed(at).settle_errors = [QueueUnavailable("the disk is gone")] * 5
            flawed(at).claim_errors = [QueueUnavailable("the disk is gone")] * 5
            await at.queue.put(envelope("a@x.example"), BODY)
            await at.watch.saw(1)
            assert len(box.messages) == 1 and await empty(at)

    with caplog.at_level(logging.ERROR, "fastsmtp.delivery"):
        run(main)
    assert {each.getMessage() for each in caplog.records} == {"the queue fails: the disk is gone"}
    assert len(caplog.records) <= 2  # for each outage, not for each call


def test_nothing_fails_without_its_notice(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with inbox() as box, site(tmp_path, StaticRoutes({"x.example": [box.port]}), queue=Flawed) as at:
            box.replies = {"no@x.example": NO}
            flawed(at).put_errors = [QueueUnavailable("x"), QueueFull("x")]
            await at.queue.put(envelope("no@x.example", "yes@x.example"), BODY)
            for count in (2, 3):  # delivered is delivered, though the failure cannot be told yet
                await at.watch.saw(count)
                assert (at.worker.counters.failed, at.worker.counters.delivered, at.watch.notices) == (0, 1, [])
                at.advance(HOUR)
            await at.watch.until(lambda: at.worker.counters.failed)
            assert at.watch.notices == ["failed"] and len(await at.notices()) == 1
            assert box.recipients == ["yes@x.example"]
            assert at.worker.counters.notices_refused == 2

    run(main)


def test_expired_and_no_room_for_the_notice(tmp_path: Path) -> None:
    async def main() -> None:
        async with site(tmp_path, StaticRoutes({"x.example": [-450]}), queue=Flawed) as at:
            flawed(at).put_errors = [QueueFull("x")] * 3
            await at.queue.put(envelope("a@x.example", expires=at.clock.now + 50), BODY)
            await at.watch.saw(1)
            at.advance(50)
            await at.watch.until(lambda: at.worker.counters.failed)
            assert at.watch.notices == ["failed"] and at.worker.counters.notices_refused == 3

    asyncio.run(main())


def test_a_crash_between_notice_and_result_loses_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Dead(SQLiteQueue):
        """Stores no result."""

        async def settle(self, *arguments: Any, **options: Any) -> bool:
            raise QueueUnavailable("dead")

    async def main() -> None:
        async with inbox() as box:
            box.replies = {"no@x.example": NO}
            routes = StaticRoutes({"x.example": [box.port], "home.example": [-450]})
            async with site(tmp_path, routes, queue=Dead, pause=1e6) as at:
                await at.queue.put(envelope("no@x.example"), BODY)
                while not at.watch.notices:
                    await asyncio.sleep(0)
                await at.worker.stop(0)
                assert not at.watch.outcomes
            async with site(tmp_path, routes) as at:
                await at.watch.until(lambda: at.worker.counters.failed)
                assert len(await at.notices()) == 2  # twice, but never not at all

    asyncio.run(main())
    assert "could not be given back" in caplog.text


def test_a_message_that_is_removed_meanwhile(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with inbox() as box, site(tmp_path, StaticRoutes({"x.example": [box.port]})) as at:
            box.gate = asyncio.Event()
            id = await at.queue.put(envelope("a@x.example"), BODY)
            while not box.running:
                await asyncio.sleep(0)
            await at.queue.remove(id)
            box.gate.set()
            while at.worker.held:
                await asyncio.sleep(0)
            assert at.worker.counters.lost == 1 and not at.watch.outcomes

    run(main)


def test_a_lease_that_is_lost_before_its_turn(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with inbox() as box, site(tmp_path, StaticRoutes({"x.example": [box.port]}), start=False) as at:
            box.gate = asyncio.Event()
            await at.queue.put(envelope("first@x.example"), BODY)
            id = await at.queue.put(envelope("second@x.example"), BODY)
            at.worker.start()
            while not box.running:
                await asyncio.sleep(0)
            assert at.worker.held == 2
            at.clock.now += 400  # longer than a lease
            await at.queue.remove(id)
            box.gate.set()
            while at.worker.held:
                await asyncio.sleep(0)
            assert at.worker.counters.lost >= 1
            assert "second@x.example" not in box.recipients and box.recipients[0] == "first@x.example"

    run(main)


def test_a_bug_of_the_queue_does_not_end_the_worker(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with (
            inbox() as box,
            site(tmp_path, StaticRoutes({"x.example": [box.port]}), queue=Flawed, start=False) as at,
        ):
            flawed(at).claim_errors = [ZeroDivisionError()]
            flawed(at).settle_errors = [ZeroDivisionError()]
            await at.queue.put(envelope("a@x.example"), BODY)
            at.worker.start()
            while not at.worker.counters.errors or at.worker.held:
                await asyncio.sleep(0)
            at.advance(300)  # its lease has ended
            await at.watch.saw(1)
            assert len(box.messages) == 2

    asyncio.run(main())
    assert [each.getMessage().split()[0] for each in caplog.records] == ["claiming", "message"]


def test_a_body_that_cannot_be_read_is_tried_again(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with inbox() as box, site(tmp_path, StaticRoutes({"x.example": [box.port]}), start=False) as at:
            body = BODY * 10_000
            await at.queue.put(envelope("a@x.example", expires=at.clock.now + HOUR), body)
            (file,) = [path for path in (tmp_path / "queue").rglob("*") if path.is_file() and path.read_bytes() == body]
            at.worker._logger.disabled = True
            file.write_bytes(body[:200_000])
            at.worker.start()
            assert await at.watch.saw(1) == [("a@x.example", "pending 451")]
            assert not box.messages
            at.advance(HOUR)
            await at.watch.until(lambda: at.worker.counters.failed)
            assert at.watch.notices == ["failed"]
            at.worker._logger.disabled = False

    run(main)


def test_leases_are_renewed(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with inbox() as box:
            box.gate = asyncio.Event()
            async with site(tmp_path, StaticRoutes({"x.example": [box.port]}), queue=Flawed, lease=0.03) as at:
                await at.queue.put(envelope("a@x.example"), BODY)
                while not box.running:
                    await asyncio.sleep(0)
                at.clock.now += 0.02
                while flawed(at).renewals < 1:
                    await asyncio.sleep(0)
                at.clock.now += 0.02  # past the deadline that it was claimed with
                await flawed(at).renewed.wait()
                box.gate.set()
                await at.watch.saw(1)
                assert len(box.messages) == 1 and at.worker.counters.claimed == 1 and at.worker.counters.lost == 0

    run(main)


def test_a_bug_does_not_lose_a_message(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(StaticRoutes):
        async def hops(self, destination: str) -> Any:
            raise ZeroDivisionError

    class BadWatch(Watch):
        def outcome(self, *arguments: Any) -> None:
            super().outcome(*arguments)
            raise ZeroDivisionError

    async def main() -> None:
        watch = BadWatch()
        async with site(tmp_path, Broken({}), observer=watch) as at:
            id = await at.queue.put(envelope("a@x.example"), BODY)
            assert await watch.saw(1) == [("a@x.example", "pending 451")]
            assert (await at.queue.get(id)).recipients[0].state is State.PENDING
            assert at.worker.counters.errors == 1

    asyncio.run(main())
    assert sorted({each.getMessage().split()[0] for each in caplog.records}) == ["delivery", "the"]


# The end


def test_stop_finishes_what_runs_and_gives_back_the_rest(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with inbox() as box:
            box.gate = asyncio.Event()
            async with site(tmp_path, StaticRoutes({"x.example": [box.port]}), start=False) as at:
                ids = [await at.queue.put(envelope(f"{number}@x.example"), BODY) for number in range(10)]
                at.worker.start()
                while not box.running:
                    await asyncio.sleep(0)
                assert at.worker.held > 1
                stopping = asyncio.ensure_future(at.worker.stop(60))
                while at.worker.held > 1:
                    await asyncio.sleep(0)
                assert not stopping.done()
                box.gate.set()
                await stopping
                assert len(box.messages) == at.worker.counters.delivered == 1
                stats = await at.queue.stats()
                assert (stats.leased, stats.due, stats.deferred) == (0, 9, 0)
                for id in ids[1:]:
                    (recipient,) = (await at.queue.get(id)).recipients
                    assert (recipient.attempts, recipient.next_attempt) == (0, at.clock.now)

    run(main)


def test_stop_breaks_off_what_does_not_end(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with fake({"DATA": SILENCE}) as server, site(tmp_path, StaticRoutes({"x.example": [server.port]})) as at:
            id = await at.queue.put(envelope("a@x.example"), BODY)
            while "DATA" not in server.lines:
                await asyncio.sleep(0)
            await at.worker.stop(0)
            await server.gone.wait()
            (recipient,) = (await at.queue.get(id)).recipients
            assert (recipient.state, recipient.attempts) == (State.PENDING, 0)
            assert (await at.queue.stats()).leased == 0

    run(main)


def test_stop_stores_what_is_known(tmp_path: Path, run: Runner) -> None:
    class Stuck(Flawed):
        tries = 0

        async def settle(self, *arguments: Any, **options: Any) -> bool:
            self.tries += 1
            return await super().settle(*arguments, **options)

    async def main() -> None:
        async with (
            inbox() as box,
            site(tmp_path, StaticRoutes({"x.example": [box.port]}), queue=Stuck, pause=1e6) as at,
        ):
            at.worker._logger.disabled = True
            assert isinstance(at.queue, Stuck)
            at.queue.settle_errors = [QueueUnavailable("x")]
            await at.queue.put(envelope("a@x.example"), BODY)
            while not at.queue.tries:
                await asyncio.sleep(0)
            await at.worker.stop(0)
            assert len(box.messages) == 1 and await empty(at)
            at.worker._logger.disabled = False

    run(main)


def test_start_twice_and_stop_twice(tmp_path: Path) -> None:
    async def main() -> None:
        async with site(tmp_path, StaticRoutes({})) as at:
            with pytest.raises(RuntimeError, match="started"):
                at.worker.start()
            await at.worker.stop()
            await at.worker.stop()
            with pytest.raises(RuntimeError, match="started"):
                at.worker.start()

    asyncio.run(main())


@pytest.mark.parametrize(
    "option", [{"concurrency": 0}, {"batch": 0}, {"lease": 0}, {"rest": -1}, {"max_recipients": 0}]
)
def test_impossible_limits(tmp_path: Path, option: dict[str, Any]) -> None:
    with SQLiteQueueOf(tmp_path) as queue, pytest.raises(ConfigurationError):
        DeliveryWorker(queue, StaticRoutes({}), domain="me.example", **option)


class SQLiteQueueOf:
    """A queue that is closed at the end."""

    def __init__(self, path: Path) -> None:
        self._queue = SQLiteQueue(path / "queue")

    def __enter__(self) -> SQLiteQueue:
        return self._queue

    def __exit__(self, *_: object) -> None:
        self._queue.close()


@pytest.mark.parametrize(
    "option",
    [{"first": 0}, {"first": 10, "longest": 5}, {"factor": 0.5}, {"jitter": 1}, {"lifetime": 0}, {"delay_notice": -1}],
)
def test_impossible_schedules(option: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Schedule(**option)


def test_jitter() -> None:
    schedule = Schedule(first=100, factor=2, longest=1000, jitter=0.25)
    chances = iter((0.0, 0.5, 1.0))
    assert [schedule.pause(1, lambda: next(chances)) for _ in range(3)] == [75, 100, 125]
    assert schedule.pause(10**9, lambda: 0.5) == 1000
    assert schedule.expires(5) == 5 + 5 * 86400
