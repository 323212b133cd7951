"""What an operator turns on: rates, a late greeting, a tarpit, an observer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp import Conn, DataContext, DataReader, DefaultBackend, DefaultSession, MailParams, Reply, Server, SMTPError
from fastsmtp.observer import Observer
from fastsmtp.rates import RateLimit

from .loops import Runner
from .test_faults import Wire, until
from .test_shell import Client


class Held:
    """A loop's `call_later`, caught: what was to come later, and after how long."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, conn: Conn) -> None:
        self.due: list[tuple[float, Callable[..., None], tuple[Any, ...]]] = []
        held = self

        class Loop:
            def call_later(self, delay: float, callback: Callable[..., None], *arguments: Any) -> asyncio.Handle:
                held.due.append((delay, callback, arguments))
                return asyncio.Handle(callback, arguments, asyncio.get_running_loop())

            def __getattr__(self, name: str) -> Any:
                return getattr(asyncio.get_running_loop(), name)

        monkeypatch.setattr(conn, "_loop", Loop())

    def release(self) -> float:
        delay, callback, arguments = self.due.pop()
        callback(*arguments)
        return delay


# Rates


def test_the_rate_of_one_address(run: Runner) -> None:
    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0", max_connection_rate=2) as server:
            for expected in ("220 localhost ESMTP ready", "220 localhost ESMTP ready", "421 4.7.0 Too many"):
                async with Client(server) as client:
                    assert (await client.line()).startswith(expected)

    run(main)


def test_the_rate_fills_again() -> None:
    limit = RateLimit(2)
    assert [limit.allows("a", 0.0) for _ in range(3)] == [True, True, False]
    assert limit.allows("b", 0.0)
    assert not limit.allows("a", 29.0)
    assert limit.allows("a", 31.0)
    assert not limit.allows("a", 31.0)
    assert [limit.allows("a", 1000.0) for _ in range(3)] == [True, True, False]


def test_the_rate_forgets() -> None:
    limit = RateLimit(1)
    for number in range(100_000):
        assert limit.allows(str(number), number / 10)
    assert len(limit) < 3000  # 600 within a minute, and what came since the last sweep


@given(st.integers(1, 100), st.lists(st.floats(0, 30), max_size=200))
def test_the_rate_is_never_exceeded(most: int, pauses: list[float]) -> None:
    limit, now, allowed = RateLimit(most), 0.0, []
    for pause in pauses:
        now += pause
        if limit.allows("a", now):
            allowed.append(now)
    for start in allowed:
        # A full bucket and what a minute adds to it.
        assert sum(start <= moment <= start + 60 for moment in allowed) <= 2 * most + 1


# A late greeting


@pytest.mark.parametrize("talks", [b"", b"E", b"EHLO x\r\n"])
def test_a_late_greeting(run: Runner, monkeypatch: pytest.MonkeyPatch, talks: bytes) -> None:
    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0", greeting_delay=3600) as server:
            wire = Wire(server)
            assert wire.taken() == []
            turn = wire.conn._turn
            assert turn is not None
            assert wire.feed(talks) == []
            turn.cancel()
            wire.conn._begin_late()
            if not talks:
                assert wire.taken() == ["220"]
                assert wire.feed(b"EHLO x\r\n") == ["250"]
            else:
                assert wire.taken()[0].startswith("554")
                assert set(" ".join(wire.feed(b"\r\nEHLO x\r\nMAIL FROM:<>\r\n")).split()) == {"503"}
                assert wire.feed(b"QUIT\r\n") == ["221"]
            wire.close()

    run(main)


def test_who_leaves_before_a_late_greeting(run: Runner) -> None:
    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0", greeting_delay=3600) as server:
            async with Client(server):
                await until(lambda: server.counters.connections)
            await until(lambda: not server.counters.connections)

    run(main)


# A tarpit


def test_refused_commands_are_answered_late(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0", error_delay=7, max_errors=4) as server:
            wire = Wire(server)
            assert wire.taken() == ["220"]
            held = Held(monkeypatch, wire.conn)
            assert wire.feed(b"NOOP\r\n") == ["250"]
            assert wire.feed(b"FOO\r\n") == []
            assert wire.feed(b"NOOP\r\n") == []  # nor is anything behind it looked at
            assert held.release() == 7
            assert " ".join(wire.taken()) == "500 250"
            assert wire.feed(b"NOOP\r\nFOO\r\nNOOP\r\nBAR\r\nBAZ\r\nNOOP\r\n") == []
            late = []
            while held.due:
                held.release()
                late += wire.taken()
            assert " ".join(late) == "250 500 250 500 500 421"
            assert wire.eof
            wire.close()

    run(main)


# An observer


class Recorder(Observer):
    def __init__(self) -> None:
        self.log: list[str] = []

    def connected(self, conn: Conn) -> None:
        self.log.append("connected")

    def disconnected(self, conn: Conn) -> None:
        assert conn.remote_addr is not None
        self.log.append("disconnected")

    def message(self, conn: Conn, context: DataContext | None, reply: Reply | None, octets: int) -> None:
        sender = "?" if context is None else context.sender
        self.log.append(f"message {sender} {250 if reply is None else reply.code} {octets}")

    def rejected(self, conn: Conn, reply: Reply) -> None:
        self.log.append(f"rejected {reply.code}")


class Choosy(DefaultSession):
    def mail(self, sender: str, params: MailParams) -> None:
        if sender == "bad@x":
            raise SMTPError(550)

    async def data(self, reader: DataReader, context: DataContext) -> Reply | None:
        if await reader.read() == b"no\r\n":
            return Reply(554)
        return None


def test_an_observer_is_told(run: Runner) -> None:
    observer = Recorder()

    async def main() -> None:
        server = Server(
            DefaultBackend(Choosy), addr="127.0.0.1:0", observer=observer, max_message_bytes=10, max_connections=1
        )
        async with server, Client(server) as client:
            await client.line()
            async with Client(server) as other:
                assert (await other.line()).startswith("421 ")
            client.writer.write(b"HELO x\r\nMAIL FROM:<bad@x>\r\n")
            for text in (b"yes", b"no", b"much too long"):
                client.writer.write(b"MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nDATA\r\n%b\r\n.\r\n" % text)
            client.writer.write(b"QUIT\r\n")
            await client.reader.read()

    run(main)
    assert sorted(observer.log) == sorted(
        [
            "connected",
            "rejected 421",
            "disconnected",
            "rejected 550",
            "message a@x 250 5",
            "message a@x 554 4",
            "message ? 552 0",
            "disconnected",
        ]
    )


def test_an_observer_that_fails_changes_nothing(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    class Broken(Observer):
        def connected(self, conn: Conn) -> None:
            raise ZeroDivisionError

        disconnected = connected

    async def main() -> None:
        logger = logging.getLogger("fastsmtp.test")
        backend = DefaultBackend(DefaultSession)
        async with Server(backend, addr="127.0.0.1:0", observer=Broken(), error_logger=logger) as server:
            async with Client(server) as client:
                assert await client.line() == "220 localhost ESMTP ready"
                assert await client.ask("QUIT") == "221 2.0.0 Bye"
            await until(lambda: not server.counters.connections)

    run(main)
    assert [record.message for record in caplog.records] == ["the observer failed"] * 2
