"""The session in front of a queue, over a real server: what is queued, with which envelope, and what clients are told."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from fastsmtp import (
    Client,
    ClientOptions,
    Conn,
    DeliverBy,
    EnhancedCode,
    MailParams,
    RcptParams,
    Reply,
    Server,
    SMTPError,
)
from fastsmtp.delivery import QueueBackend, QueueSession, RelayAccess, intake
from fastsmtp.delivery.queue import Body, Envelope, QueuedMessage, SQLiteQueue, Target
from fastsmtp.delivery.schedule import Schedule
from fastsmtp.errors import ConfigurationError
from fastsmtp.protocol.xforward import XClient, XForward

from .delivering import Clock, StaticRoutes
from .loops import Runner

BODY = b"Subject: hello\r\n\r\nworld\r\n"
ALL: dict[str, Any] = {
    "dsn": True,
    "deliverby": 0,
    "mt_priority": "",
    "future_release": 86400,
    "etrn": True,
    "allow_xforward": True,
}
SCHEDULE = Schedule(lifetime=1000.0)


class Front:
    """A queue behind a server, with a clock of its own."""

    def __init__(self, queue: SQLiteQueue, server: Server, clock: Clock) -> None:
        self.queue = queue
        self.server = server
        self.clock = clock

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Client]:
        options = ClientOptions(host="127.0.0.1", port=self.server.port, local_hostname="client.example")
        async with Client(options=options) as client:
            yield client

    async def only(self) -> tuple[QueuedMessage, bytes]:
        """The one message that is queued."""
        (message,) = (await self.queue.list()).messages
        return message, b"".join([piece async for piece in self.queue.body(message.message.id)])


@asynccontextmanager
async def front(path: Path, *, limits: dict[str, Any] | None = None, **settings: Any) -> AsyncIterator[Front]:
    clock = Clock()
    backend_settings = {
        name: settings.pop(name) for name in ("access", "max_hops", "prefix", "session") if name in settings
    }
    async with SQLiteQueue(path / "queue", clock=clock, **limits or {}) as queue:
        backend = QueueBackend(
            queue, StaticRoutes({}), schedule=SCHEDULE, domain="mx.example", clock=clock, **backend_settings
        )
        async with Server(backend, addr="127.0.0.1:0", **ALL | settings) as server:
            yield Front(queue, server, clock)


def test_a_message_is_queued_with_its_envelope(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with front(tmp_path, prefix="7-") as it, it.client() as client:
            by = DeliverBy(900, "R")
            params = MailParams(size=25, body="8BITMIME", ret="HDRS", envid="e1", mt_priority=3, by=by)
            notify = RcptParams(notify=("FAILURE",))
            sent = await client.send_message("s@home.example", [("a@x.example", notify), "b@y.example"], BODY, params)
            queued, body = await it.only()
            message, now = queued.message, it.clock.now
            assert {each.reply.message for each in sent} == {f"Ok: queued as 7-{message.id}"}
            assert message.sender == "s@home.example"
            assert message.params == MailParams(body="8BITMIME", ret="HDRS", envid="e1", mt_priority=3, by=by)
            assert (message.received, message.expires, message.priority, message.size) == (now, now + 900, 3, len(body))
            assert message.origin == {"PROTO": "ESMTP", "HELO": "client.example", "ADDR": "127.0.0.1"}
            assert [(each.address, each.destination) for each in queued.recipients] == [
                ("a@x.example", "x.example"),
                ("b@y.example", "y.example"),
            ]
            assert [each.params for each in queued.recipients] == [notify, RcptParams()]
            assert body.startswith(b"Received: from client.example ([127.0.0.1])\r\n\tby mx.example with ESMTP;\r\n\t")
            assert body.endswith(b"\r\n" + BODY)

    run(main)


def test_its_life_is_counted_from_its_release(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with front(tmp_path) as it, it.client() as client:
            await client.send_message("s@home.example", ["a@x.example"], BODY, MailParams(hold=600))
            (queued, _), now = await it.only(), it.clock.now
            assert queued.recipients[0].next_attempt == now + 600
            assert queued.message.expires == now + 1600
            assert queued.message.params.hold is None
            assert await it.queue.claim(lease=60) == []
            await it.queue.remove(queued.message.id)

            until = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
            await client.send_message("s@home.example", ["a@x.example"], BODY, MailParams(hold=until))
            queued, _ = await it.only()
            assert queued.recipients[0].next_attempt == until.timestamp()

    run(main)


def test_xforward_is_what_the_trace_and_the_origin_say(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with front(tmp_path) as it, it.client() as client:
            await client.xforward(XForward(addr="192.0.2.9", helo="far.example", name="far.example", ident="Q7"))
            await client.send_message("s@home.example", ["a@x.example"], BODY)
            queued, body = await it.only()
            assert body.startswith(b"Received: from far.example ([192.0.2.9])\r\n")
            assert queued.message.origin == {
                "PROTO": "ESMTP",
                "HELO": "far.example",
                "ADDR": "192.0.2.9",
                "NAME": "far.example",
                "IDENT": "Q7",
            }

    run(main)


async def _raw(port: int, *lines: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for line in (b"", *lines):
        if line:
            writer.write(line + b"\r\n")
        while (await reader.readline())[3:4] == b"-":
            pass
    return reader, writer


@pytest.mark.parametrize("size", [0, 30, 65_400, 65_600, 1_000_000])
def test_every_octet_is_queued_whatever_the_size(run: Runner, tmp_path: Path, size: int) -> None:
    text = (b"." + b"x" * 70 + b"\r\n") * (size // 73)

    async def main() -> None:
        async with front(tmp_path) as it, it.client() as client:
            await client.send_message("s@home.example", ["a@x.example"], text)
            queued, body = await it.only()
            head = body[: len(body) - len(text)]
            assert body[len(head) :] == text and len(body) == queued.message.size
            assert head.startswith(b"Received: ") and head.endswith(b"\r\n")
            assert head.count(b"\n") == head.count(b"\r\n\t") + 1

    run(main)


def test_a_message_without_its_end_is_not_queued(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with front(tmp_path) as it:
            _, writer = await _raw(
                it.server.port, b"EHLO c.example", b"MAIL FROM:<s@h.example>", b"RCPT TO:<a@x.example>", b"DATA"
            )
            writer.write(b"x" * 70 + b"\r\n")
            writer.write((b"y" * 70 + b"\r\n") * 10_000)
            await writer.drain()
            writer.transport.abort()
            async with it.client() as client:
                await client.send_message("s@home.example", ["a@x.example"], BODY)
            while len(list(it.server.roster.conns)):
                await asyncio.sleep(0.001)
            assert (await it.queue.stats()).messages == 1
            assert await asyncio.to_thread(lambda: list((tmp_path / "queue" / "bodies").iterdir())) == []

    run(main)


def test_a_loop_is_refused(run: Runner, tmp_path: Path) -> None:
    received = b"Received: from a.example by b.example; Fri, 21 Nov 1997 09:55:06 -0600\r\n"

    async def main() -> None:
        async with front(tmp_path, max_hops=2) as it, it.client() as client:
            (sent,) = await client.send_message("s@home.example", ["a@x.example"], received * 2 + BODY)
            assert sent.reply.code == 250
            for tail in (b"", b"x" * 70 + b"\r\n"):
                (sent,) = await client.send_message(
                    "s@home.example", ["a@x.example"], received * 3 + BODY + tail * 3000
                )
                assert sent.reply == Reply(
                    554, EnhancedCode(5, 4, 6), "Too many hops: the message seems to be in a loop"
                )
            assert (await it.queue.stats()).messages == 1

    run(main)


def test_a_full_queue_is_452_and_one_that_fails_451(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with front(tmp_path, limits={"max_messages": 1, "max_octets": 10_000}) as it, it.client() as client:
            (sent,) = await client.send_message("s@home.example", ["a@x.example"], b"x" * 10_000)
            assert sent.reply == Reply(452, EnhancedCode(4, 3, 1), "Insufficient system storage")
            replies = [
                (await client.send_message("s@home.example", ["a@x.example"], BODY))[0].reply.code for _ in range(2)
            ]
            assert replies == [250, 452]
            await it.queue.aclose()
            for body in (BODY, b"x" * 200_000):
                (sent,) = await client.send_message("s@home.example", ["a@x.example"], body)
                assert sent.reply == Reply(451, EnhancedCode(4, 3, 0), "Message could not be queued, try again later")

    run(main)


def test_lmtp_too(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with front(tmp_path, lmtp=True) as it:
            options = ClientOptions(host="127.0.0.1", port=it.server.port, lmtp=True)
            async with Client(options=options) as client:
                sent = await client.send_message("s@home.example", ["a@x.example", "b@x.example"], BODY)
                assert [each.reply.code for each in sent] == [250, 250]
            queued, body = await it.only()
            assert len(queued.recipients) == 2 and b" with LMTP;" in body

    run(main)


# Who may relay


def test_who_may_relay(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        access = RelayAccess(["192.0.2.0/24"], ["Example.ORG", ".example.net", "bücher.example"])
        async with front(tmp_path, access=access, allow_xclient=True) as it, it.client() as client:
            await client.mail("s@home.example")
            for open_to_all in ("a@example.org", "a@EXAMPLE.org", "a@b.c.example.net", "Postmaster"):
                assert (await client.rcpt(open_to_all)).code == 250, open_to_all
            for closed in ("a@example.net", "a@sub.example.org", "a@x.example", "a@xexample.net"):
                with pytest.raises(SMTPError) as refused:
                    await client.rcpt(closed)
                assert refused.value.reply == Reply(550, EnhancedCode(5, 7, 1), "Relaying denied"), closed
            await client.reset()
            for address, code in (("192.0.2.7", 250), ("198.51.100.1", 550), ("192.0.2.200", 250)):
                await client.xclient(XClient(addr=address))
                (sent,) = await client.send_message("s@home.example", ["a@x.example"], BODY)
                assert sent.reply.code == code, address

    run(main)


def test_a_login_is_asked_for_where_there_is_one(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        access = RelayAccess(["192.0.2.0/24"], login=True)
        async with front(tmp_path, access=access, allow_xclient=True) as it, it.client() as client:
            await client.mail("s@home.example")
            with pytest.raises(SMTPError) as refused:
                await client.rcpt("a@x.example")
            assert refused.value.reply == Reply(530, EnhancedCode(5, 7, 0), "Authentication required")
            await client.reset()
            await client.xclient(XClient(login="anna"))
            await client.send_message("s@home.example", ["a@x.example"], BODY, MailParams(mt_priority=9))
            queued, _ = await it.only()
            assert queued.message.origin["USER"] == "anna" and queued.message.priority == 9

    run(main)


def test_a_stranger_is_not_served_before_others(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        access = RelayAccess(["192.0.2.0/24"], ["x.example"])
        async with front(tmp_path, access=access) as it, it.client() as client:
            await client.send_message("s@home.example", ["a@x.example"], BODY, MailParams(mt_priority=9))
            assert (await it.only())[0].message.priority == 0
            with pytest.raises(SMTPError, match="458"):
                await client.command("ETRN", "x.example")

    run(main)


def test_no_network_is_no_network() -> None:
    with pytest.raises(ConfigurationError):
        RelayAccess(["here"])


def test_etrn_makes_deferred_mail_due(run: Runner, tmp_path: Path) -> None:
    async def main() -> None:
        async with front(tmp_path) as it, it.client() as client:
            for domain in ("x.example", "x.example", "y.example"):
                await client.send_message("s@home.example", [f"a@{domain}"], BODY, MailParams(hold=600))
            reply = await client.command("ETRN", "x.example")
            assert (reply.code, reply.message) == (253, "2 pending messages for that node started")
            assert len(await it.queue.claim(lease=60, limit=5)) == 2
            assert (await client.command("ETRN", "z.example")).code == 251
            with pytest.raises(SMTPError, match="459"):
                await client.command("ETRN", "@x.example")

    run(main)


def test_a_session_of_ones_own(run: Runner, tmp_path: Path) -> None:
    class Selective(QueueSession):
        def rcpt(self, recipient: str, params: RcptParams) -> Reply | None:
            if recipient.startswith("nobody@"):
                raise SMTPError(550, EnhancedCode(5, 1, 1), "No such user")
            return super().rcpt(recipient, params)

    async def main() -> None:
        async with front(tmp_path, session=Selective) as it, it.client() as client:
            sent = await client.send_message("s@home.example", ["nobody@x.example", "a@x.example"], BODY)
            assert [each.reply.code for each in sent] == [550, 250]
            assert len((await it.only())[0].recipients) == 1

    run(main)


def test_the_disk_gives_the_pace(run: Runner, tmp_path: Path) -> None:
    """A queue that takes nothing leaves the client's octets in the socket, but for a window."""
    taken: asyncio.Event

    class Slow(SQLiteQueue):
        async def put(self, envelope: Envelope, body: Any) -> str:
            pieces = aiter(body)
            await anext(pieces)
            await taken.wait()
            await pieces.aclose()
            return "0"

    async def main() -> None:
        nonlocal taken
        taken = asyncio.Event()
        async with Slow(tmp_path / "slow") as queue:
            backend = QueueBackend(queue, StaticRoutes({}))
            async with Server(backend, addr="127.0.0.1:0", max_message_bytes=1 << 30) as server:
                reader, writer = await _raw(
                    server.port, b"EHLO c.example", b"MAIL FROM:<s@h.example>", b"RCPT TO:<a@x.example>", b"DATA"
                )
                sock = writer.get_extra_info("socket")
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
                sent = 0
                while sent < 64_000_000:
                    writer.write(b"x" * 998 + b"\r\n")
                    sent += 1000
                    if writer.transport.get_write_buffer_size() > 1_000_000:
                        break
                else:
                    pytest.fail("the server took it all")
                taken.set()
                writer.write(b".\r\n")
                assert (await reader.readline()).startswith(b"250 ")
                writer.close()

    run(main)


@pytest.mark.parametrize("busy", [True, False])
def test_deliveries_stand_back_while_mail_comes_in(
    run: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, busy: bool
) -> None:
    monkeypatch.setattr(intake, "BUSY", 0.0 if busy else 1000.0)

    class Gated(SQLiteQueue):
        gate: asyncio.Event

        async def put(self, envelope: Envelope, body: Body) -> str:
            await self.gate.wait()
            return await super().put(envelope, body)

    async def main() -> None:
        async with Gated(tmp_path / "queue") as queue:
            queue.gate = asyncio.Event()
            backend = QueueBackend(queue, StaticRoutes({}))
            target = Envelope("", (Target("a@x.example", "x.example"),))

            async def stream() -> AsyncIterator[bytes]:
                yield BODY

            async def waits() -> bool:
                calm = asyncio.create_task(backend.calm())
                for _ in range(3):
                    await asyncio.sleep(0)
                done = calm.done()
                await calm  # in any case only for a moment: some deliveries go on
                return not done

            assert not await waits()
            tasks = [asyncio.create_task(backend.store(target, stream()))]
            await asyncio.sleep(0)
            assert not await waits()  # clients that are slow count for nothing
            tasks.append(asyncio.create_task(backend.store(target, BODY)))
            await asyncio.sleep(0)
            assert await waits() == busy
            last = asyncio.create_task(backend.calm())
            queue.gate.set()
            await asyncio.gather(*tasks, last)
            assert not await waits()

    run(main)


class SlowQueue(SQLiteQueue):
    """Takes nothing of a message in pieces beyond the first until it may."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.may = asyncio.Event()

    async def put(self, envelope: Envelope, body: Body) -> str:
        if isinstance(body, bytes):
            return await super().put(envelope, body)
        pieces = body

        async def slowly() -> AsyncIterator[bytes]:
            async for piece in pieces:
                yield piece
                await self.may.wait()

        return await super().put(envelope, slowly())


def test_a_slow_queue_slows_its_client(run: Runner, tmp_path: Path) -> None:
    """Neither the server's memory nor its answer runs ahead of the disk."""
    size = 40_000_000  # more than the sockets' buffers of both sides

    async def main() -> None:
        async with SlowQueue(tmp_path / "queue") as queue:
            async with Server(QueueBackend(queue, StaticRoutes({})), addr="127.0.0.1:0", max_message_bytes=0) as server:
                reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                writer.write(b"EHLO c\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
                await reader.readuntil(b"354")
                await reader.readline()
                sent = 0

                async def send() -> None:
                    nonlocal sent
                    line = (b"x" * 98 + b"\r\n") * 1000
                    while sent < size:
                        writer.write(line)
                        await writer.drain()
                        sent += len(line)
                    writer.write(b".\r\n")

                sending = asyncio.create_task(send())
                before = -1
                while before != sent:  # until nothing moves any more
                    before = sent
                    await asyncio.wait([sending], timeout=0.3)
                assert not sending.done() and sent < size
                held: list[int] = []

                def look(conn: Conn) -> None:
                    assert conn._reception is not None
                    held.append(conn._reception._reader.buffered + conn._core.buffered)

                server.for_each_conn(look)
                assert len(held) == 1 and held[0] < 2_000_000
                queue.may.set()
                await sending
                assert (await reader.readline()).startswith(b"250 ")
                writer.close()
            (message,) = (await queue.list()).messages
            assert message.message.size > size

    run(main)
