"""Kept connections: who gets which, and when they end; on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any

import pytest

from fastsmtp import ConfigurationError, SMTPError
from fastsmtp.client import Client, ClientOptions, ConnectionLost
from fastsmtp.pool import Pool

from .fake_server import CLOSE, SILENCE, Fake, fake
from .loops import Runner

SENDER = "a@example.org"
TO = ["b@example.org"]
MESSAGE = b"Subject: x\r\n\r\nhello\r\n"


def at(server: Fake, **fields: Any) -> ClientOptions:
    return ClientOptions(host="127.0.0.1", port=server.port, local_hostname="me.example", **fields)


async def until(condition: Callable[[], object]) -> None:
    """Turn the loop until it is so."""
    while not condition():
        await asyncio.sleep(0)


async def settle() -> None:
    """Let everything happen that needs no octets from elsewhere."""
    for _ in range(20):
        await asyncio.sleep(0)


class Borrower:
    """A task that has a connection until it is told to give it back, or waits for one."""

    def __init__(self, pool: Pool, destination: ClientOptions) -> None:
        self.client: Client | None = None
        self._release = asyncio.Event()
        self.task = asyncio.ensure_future(self._run(pool, destination))

    async def _run(self, pool: Pool, destination: ClientOptions) -> None:
        async with pool.connection(destination) as self.client:
            await self._release.wait()

    async def has(self) -> Client:
        await until(lambda: self.client is not None or self.task.done())
        assert self.client is not None
        return self.client

    async def done(self) -> None:
        self._release.set()
        await self.task


def test_connections_are_kept(run: Runner) -> None:
    async def main() -> None:
        async with fake() as server:
            async with Pool() as pool:
                for _ in range(5):
                    sent = await pool.send_message(at(server), SENDER, TO, MESSAGE)
                    assert [each.reply.code for each in sent] == [250]
                    assert (pool.connections, pool.idle, pool.waiting) == (1, 1, 0)
                assert server.connections == 1 and len(server.messages) == 5
                await pool.send_message(at(server, pipelining=False), SENDER, TO, MESSAGE)  # another destination
                assert server.connections == 2
            assert pool.connections == pool.idle == 0 and not pool._places
            assert server.lines.count("QUIT") == 2
            with pytest.raises(RuntimeError, match="closed"):
                await pool.send_message(at(server), SENDER, TO, MESSAGE)

    run(main)


def test_last_used_first(run: Runner) -> None:
    async def main() -> None:
        async with fake() as server, Pool() as pool:
            one, two = Borrower(pool, at(server)), Borrower(pool, at(server))
            first, second = await one.has(), await two.has()
            assert first is not second
            await two.done()
            await one.done()
            for _ in range(3):
                async with pool.connection(at(server)) as client:
                    assert client is first
            assert pool.idle == 2

    run(main)


def test_a_task_for_each_does_not_exist(run: Runner) -> None:
    async def main() -> None:
        async with fake() as server, Pool(max_per_destination=20) as pool:
            before = len(asyncio.all_tasks())
            borrowers = [Borrower(pool, at(server)) for _ in range(10)]
            for each in borrowers:
                await each.has()
            for each in borrowers:
                await each.done()
            assert pool.idle == 10
            assert len(asyncio.all_tasks()) == before + 10  # those of the fake server

    run(main)


def test_limit_of_a_destination(run: Runner) -> None:
    async def main() -> None:
        async with fake() as server, fake() as other, Pool(max_per_destination=2) as pool:
            borrowers = [Borrower(pool, at(server)) for _ in range(5)]
            await borrowers[0].has()
            await borrowers[1].has()
            await settle()
            assert pool.connections == 2 and pool.waiting == 3
            async with pool.connection(at(other)):  # which does not wait behind them
                assert pool.connections == 3
            for number in range(3):
                await borrowers[number].done()
                await borrowers[number + 2].has()
                assert all(each.client is None for each in borrowers[number + 3 :])
            assert server.connections == 2
            await borrowers[3].done()
            await borrowers[4].done()

    run(main)


def test_limit_in_all_and_fairness(run: Runner) -> None:
    """A busy destination does not keep what it has when another one has waited longer."""

    async def main() -> None:
        async with fake() as busy, fake() as other, Pool(max_connections=2) as pool:
            one, two = Borrower(pool, at(busy)), Borrower(pool, at(busy))
            await one.has()
            await two.has()
            third = Borrower(pool, at(busy))
            await settle()
            patient = Borrower(pool, at(other))
            await settle()
            fourth = Borrower(pool, at(busy))
            await settle()
            assert pool.waiting == 3 and pool.connections == 2
            await one.done()
            await third.has()
            await two.done()
            await patient.has()
            assert fourth.client is None and pool.connections == 2
            await until(lambda: "QUIT" in busy.lines)  # the idle one made room
            await patient.done()
            await fourth.has()
            for each in (third, fourth):
                await each.done()
            assert pool.connections <= 2

    run(main)


def test_idle_ones_make_room(run: Runner) -> None:
    async def main() -> None:
        async with fake() as one, fake() as two, Pool(max_connections=1) as pool:
            for _ in range(3):
                await pool.send_message(at(one), SENDER, TO, MESSAGE)
                await pool.send_message(at(two), SENDER, TO, MESSAGE)
            assert pool.connections == 1 and len(pool._places) == 1
            await one.gone.wait()
            assert one.connections == two.connections == 3

    run(main)


def test_messages_of_a_connection(run: Runner) -> None:
    async def main() -> None:
        async with fake() as server, Pool(max_messages=2) as pool:
            for number in range(6):
                await pool.send_message(at(server), SENDER, TO, MESSAGE)
                assert pool.idle == (number + 1) % 2
            assert server.connections == 3

    run(main)


def test_idle_for_too_long(run: Runner) -> None:
    async def main() -> None:
        async with fake() as server, Pool(max_idle=0.02) as pool:
            borrowers = [Borrower(pool, at(server)) for _ in range(3)]
            for each in borrowers:
                await each.has()
            for each in borrowers:
                await each.done()
            await until(lambda: server.lines.count("QUIT") == 3)
            assert pool.connections == 0 and pool._timer is None and not pool._places
        async with fake() as server, Pool(max_idle=0) as pool:
            await pool.send_message(at(server), SENDER, TO, MESSAGE)
            assert pool.connections == 0
            await until(lambda: "QUIT" in server.lines)

    run(main)


def test_too_old(run: Runner) -> None:
    async def main() -> None:
        async with fake() as server, Pool(max_age=0.001) as pool:
            for _ in range(3):
                async with pool.connection(at(server)):
                    await asyncio.sleep(0.002)
            assert server.connections == 3 and pool.idle == 0

    run(main)


def test_health(run: Runner) -> None:
    async def main() -> None:
        async with fake() as server, Pool(check_after=0) as pool:
            await pool.send_message(at(server), SENDER, TO, MESSAGE)
            await pool.send_message(at(server), SENDER, TO, MESSAGE)
            assert server.connections == 1 and server.lines.count("NOOP") == 1
            for reply in (b"421 4.4.2 too late\r\n" + CLOSE, b"500 what?\r\n", CLOSE, b"garbage\r\n"):
                server.replies["NOOP"] = reply
                before = server.connections
                await pool.send_message(at(server), SENDER, TO, MESSAGE)
                assert server.connections == before + 1 and pool.connections == 1
            assert len(server.messages) == 6

    run(main)


@pytest.mark.parametrize("last", [CLOSE, b"421 4.4.2 idle\r\n" + CLOSE, b"garbage\r\n"])
def test_lost_while_idle(run: Runner, last: bytes) -> None:
    async def main() -> None:
        async with fake({"HELP": b"250 ok\r\n" + last}) as server, Pool() as pool:
            for number in range(3):
                async with pool.connection(at(server)) as client:
                    with contextlib.suppress(SMTPError, ConnectionLost):
                        await client.help()
                await until(lambda: pool.idle == 0)
                assert pool.connections == 0 and server.connections == number + 1

    run(main)


def test_a_lost_one_lets_the_next_in(run: Runner) -> None:
    async def main() -> None:
        async with fake({"NOOP": CLOSE}) as server, Pool(max_connections=1) as pool:
            one = Borrower(pool, at(server))
            client = await one.has()
            two = Borrower(pool, at(server))
            with pytest.raises(ConnectionLost):
                await client.noop()
            assert two.client is None
            await one.done()
            assert await two.has() is not client
            await two.done()

    run(main)


def test_what_is_not_kept(run: Runner) -> None:
    async def main() -> None:
        async with fake({"VRFY": b"550 no\r\n"}) as server, Pool() as pool:
            with pytest.raises(SMTPError):
                async with pool.connection(at(server)) as client:
                    await client.verify("x")
            assert pool.idle == 1  # a refusal is no reason to close
            with pytest.raises(ZeroDivisionError):
                async with pool.connection(at(server)):
                    raise ZeroDivisionError
            assert pool.connections == 0
            async with pool.connection(at(server)) as client:
                await client.mail(SENDER)
            assert pool.connections == 0
            async with pool.connection(at(server)) as client:
                await client.quit()
            assert pool.connections == 0

    run(main)


def test_connecting_fails(run: Runner) -> None:
    async def main() -> None:
        async with fake({"greeting": b"554 no\r\n"}) as server, Pool(max_connections=1) as pool:
            borrowers = [Borrower(pool, at(server)) for _ in range(3)]
            for result in await asyncio.gather(*(each.task for each in borrowers), return_exceptions=True):
                assert isinstance(result, SMTPError)
            assert pool.connections == pool.waiting == 0 and not pool._places

    run(main)


def test_prepare(run: Runner) -> None:
    async def main() -> None:
        async def prepare(client: Client) -> None:
            await client.verify("me")

        async with fake() as server, Pool(prepare=prepare) as pool:
            await pool.send_message(at(server), SENDER, TO, MESSAGE)
            await pool.send_message(at(server), SENDER, TO, MESSAGE)
            assert server.lines.count("VRFY me") == 1
        async with fake({"VRFY": b"550 no\r\n"}) as server, Pool(prepare=prepare) as pool:
            with pytest.raises(SMTPError):
                await pool.send_message(at(server), SENDER, TO, MESSAGE)
            assert pool.connections == 0
            await server.gone.wait()

    run(main)


def test_who_waits_is_cancelled(run: Runner) -> None:
    async def main() -> None:
        async with fake() as server, Pool(max_connections=1) as pool:
            one = Borrower(pool, at(server))
            await one.has()
            two, three = Borrower(pool, at(server)), Borrower(pool, at(server))
            await settle()
            two.task.cancel()
            await settle()
            assert pool.waiting == 1
            await one.done()
            await three.has()
            # Given a connection, and cancelled before it could take it: it goes to the next.
            four, five = Borrower(pool, at(server)), Borrower(pool, at(server))
            await settle()
            three._release.set()
            await until(lambda: three.task.done())
            four.task.cancel()
            assert four.client is None or pool.waiting == 1
            await five.has()
            await five.done()
            assert pool.connections == 1 and server.connections <= 2
            # Cancelled as soon as it has begun to wait.
            six = Borrower(pool, at(server))
            six.task.cancel()
            await asyncio.wait([six.task])
            await pool.send_message(at(server), SENDER, TO, MESSAGE)

    run(main)


def test_cancelled_before_it_is_told(run: Runner) -> None:
    """A lease that is granted in the turn in which its taker is cancelled goes on to the next."""

    async def main() -> None:
        for granted in ("a connection", "leave to connect"):
            async with fake() as server, Pool(max_connections=1) as pool:
                async with pool.connection(at(server)) as client:
                    two, three = Borrower(pool, at(server)), Borrower(pool, at(server))
                    await settle()
                    if granted != "a connection":
                        client.close()
                two.task.cancel()  # the lease is its, and it does not know
                await asyncio.wait([two.task])
                assert two.task.cancelled() and two.client is None
                assert (await three.has() is client) is (granted == "a connection")
                await three.done()
                assert pool.connections == 1 and pool.waiting == 0

    run(main)


def test_cancelled_while_connecting(run: Runner) -> None:
    async def main() -> None:
        async with fake({"EHLO": SILENCE}) as server, Pool(max_connections=1) as pool:
            one = Borrower(pool, at(server))
            await until(lambda: server.lines)
            one.task.cancel()
            await asyncio.wait([one.task])
            assert pool.connections == 0 and not pool._places
            await server.gone.wait()

    run(main)


def test_cancelled_within_a_message(run: Runner) -> None:
    async def main() -> None:
        async with fake({".": SILENCE}) as server, Pool() as pool:
            task = asyncio.ensure_future(pool.send_message(at(server), SENDER, TO, MESSAGE))
            await until(lambda: server.messages)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert pool.connections == 0
            await server.gone.wait()

    run(main)


def test_closing(run: Runner) -> None:
    async def main() -> None:
        async with fake() as server:
            pool = Pool(max_connections=2)
            one, two = Borrower(pool, at(server)), Borrower(pool, at(server))
            await one.has()
            await two.has()
            three = Borrower(pool, at(server))
            await settle()
            await two.done()
            await three.has()
            four = Borrower(pool, at(server))
            await settle()
            await one.done()
            await four.has()
            five = Borrower(pool, at(server))
            await settle()
            await pool.close()
            with pytest.raises(RuntimeError, match="closed"):
                await five.task
            assert pool.connections == 2 and pool.waiting == 0
            await three.done()
            await four.done()
            assert pool.connections == 0 and not pool._places
            await until(lambda: server.lines.count("QUIT") == 2)
            await pool.close()

    run(main)


def test_many(run: Runner) -> None:
    async def main() -> None:
        async with fake() as one, fake() as two, Pool(max_connections=5, max_per_destination=3, max_messages=7) as pool:
            most = 0

            async def send(number: int) -> None:
                nonlocal most
                await pool.send_message(at((one, two)[number % 2]), SENDER, TO, MESSAGE)
                most = max(most, pool.connections)

            await asyncio.gather(*(send(number) for number in range(200)))
            assert len(one.messages) == len(two.messages) == 100
            assert most <= 5 and pool.waiting == 0 and not pool._wanting

    run(main)


@pytest.mark.parametrize(
    "fields", [{"max_connections": 0}, {"max_per_destination": 0}, {"max_messages": -1}, {"max_idle": -1}]
)
def test_impossible_limits(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        Pool(**fields)
