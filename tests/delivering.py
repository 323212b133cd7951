"""What the tests of the delivery worker share: a queue with a clock of its own, next hops, and who watches."""

from __future__ import annotations

import asyncio
import email
import email.policy
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from email.message import EmailMessage
from pathlib import Path
from typing import Any

from fastsmtp import DataContext, DataReader, DefaultBackend, DefaultSession, Server
from fastsmtp.client_options import ClientOptions, Timeouts
from fastsmtp.delivery.handover import Outcome
from fastsmtp.delivery.notices import Kind
from fastsmtp.delivery.queue import Envelope, Message, QueuedMessage, Recipient, SQLiteQueue, Target
from fastsmtp.delivery.routes import Hop, Routes, TLSPolicies, TLSPolicy, Unroutable
from fastsmtp.delivery.worker import DeliveryObserver, DeliveryWorker
from fastsmtp.extensions import MailParams, RcptParams
from fastsmtp.reply import Reply, SMTPError

__all__ = [
    "BODY",
    "QUICK",
    "Clock",
    "Inbox",
    "Site",
    "StaticRoutes",
    "Watch",
    "closed_port",
    "envelope",
    "inbox",
    "site",
]

BODY = b"Subject: hello\r\n\r\nworld\r\n"
QUICK = Timeouts(**dict.fromkeys(("greeting", "hello", "mail", "rcpt", "data", "end"), 0.05), quit=0.05)
"""For hosts that say nothing: the test waits for that, and for nothing else."""


class Clock:
    """Seconds since the epoch that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0

    def __call__(self) -> float:
        return self.now


class Watch(DeliveryObserver):
    """Remembers what it is told."""

    __slots__ = ("_change", "notices", "outcomes")

    def __init__(self) -> None:
        self.outcomes: list[tuple[str, Outcome]] = []
        self.notices: list[Kind] = []
        self._change = asyncio.Event()

    def outcome(self, message: Message, recipient: Recipient, outcome: Outcome) -> None:
        self.outcomes.append((recipient.address, outcome))
        self._change.set()

    def notice(self, message: Message, kind: Kind, id: str) -> None:
        self.notices.append(kind)

    async def until(self, condition: Callable[[], object]) -> None:
        """Wait until outcomes make it so."""
        while not condition():
            self._change.clear()
            await self._change.wait()

    async def saw(self, count: int) -> list[tuple[str, str]]:
        """So many outcomes: addresses with their states and codes, in the order of addresses."""
        await self.until(lambda: len(self.outcomes) >= count)
        return sorted((address, f"{each.state} {each.reply.code}") for address, each in self.outcomes)


class StaticRoutes(Routes):
    """By domain, to ports of this machine; a port below 0 is a reply, with the sign turned."""

    def __init__(self, ports: Mapping[str, Sequence[int]], **options: Any) -> None:
        self._ports = ports
        self.options = options
        self.policies = TLSPolicies(options.pop("tls", TLSPolicy.MAY), context=options.pop("context", None))
        self.authentic = options.pop("authentic", True)

    def destination(self, address: str) -> str:
        return address.rpartition("@")[2]

    async def hops(self, destination: str) -> Sequence[Hop]:
        hops: list[Hop] = []
        for port in self._ports.get(destination, ()):
            if port < 0:
                raise Unroutable(-port, f"{-port // 100}.4.4", "no route")
            fields: dict[str, Any] = {"host": "127.0.0.1", "port": port, "local_hostname": "me.example"}
            options = ClientOptions(**fields | self.options)
            hops.append(self.policies.hop(options, self.policies.default, f"mx{len(hops)}.example", self.authentic))
        if not hops:
            raise Unroutable(451, "4.4.3", "no answer of DNS")
        return hops


class Site:
    """A queue, a worker and a watch."""

    def __init__(self, queue: SQLiteQueue, worker: DeliveryWorker, clock: Clock, watch: Watch) -> None:
        self.queue = queue
        self.worker = worker
        self.clock = clock
        self.watch = watch

    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.clock.now += seconds
        self.worker._news.set()

    async def queued(self) -> list[QueuedMessage]:
        return [*(await self.queue.list()).messages]

    async def notices(self) -> list[EmailMessage]:
        """The notices in the queue."""
        found = []
        for each in await self.queued():
            if not each.message.sender:
                found.append(await self.read(each.message.id))
        return found

    async def read(self, id: str) -> EmailMessage:
        octets = b"".join([piece async for piece in self.queue.body(id)])
        parsed = email.message_from_bytes(octets, policy=email.policy.SMTP)
        assert isinstance(parsed, EmailMessage)
        return parsed


@asynccontextmanager
async def site(
    path: Path, routes: Routes, *, queue: type[SQLiteQueue] = SQLiteQueue, start: bool = True, **options: Any
) -> AsyncIterator[Site]:
    """A worker that delivers, one unit at a time if the test does not say more."""
    clock, watch = Clock(), Watch()
    settings: dict[str, Any] = {
        "domain": "me.example",
        "observer": watch,
        "clock": clock,
        "chance": lambda: 0.5,
        "pause": 0.0,
    }
    settings |= {"concurrency": 1, **options}
    limits = settings.pop("limits", {})
    async with queue(path / "queue", clock=clock, **limits) as opened:
        worker = DeliveryWorker(opened, routes, **settings)
        if start:
            worker.start()
        try:
            yield Site(opened, worker, clock, watch)
        finally:
            await worker.stop(5)
        assert not worker.held and not worker.running


def envelope(*addresses: str | tuple[str, RcptParams], sender: str = "s@home.example", **fields: Any) -> Envelope:
    """An envelope whose destinations are the domains of the addresses."""
    pairs = [(each, RcptParams()) if isinstance(each, str) else each for each in addresses]
    targets = tuple(Target(address, address.rpartition("@")[2], params) for address, params in pairs)
    return Envelope(sender, targets, **fields)


class Inbox:
    """What a next hop has got, and what it says.

    Attributes:
        messages: sender, recipients and octets.
        params: the parameters of each message, and of its recipients.
        replies: to recipients, by address; the others are welcome.
        final: by address, the replies to the message by LMTP.
        sizes: octets of each message, when they are not kept.
        running: messages that arrive now, and the most there ever were.
    """

    def __init__(self) -> None:
        self.messages: list[tuple[str, tuple[str, ...], bytes]] = []
        self.params: list[tuple[MailParams, tuple[RcptParams, ...]]] = []
        self.replies: dict[str, Reply] = {}
        self.final: dict[str, Reply] = {}
        self.keep = True
        self.sizes: list[int] = []
        self.running = self.most = 0
        self.gate: asyncio.Event | None = None
        self.server: Server

    @property
    def port(self) -> int:
        return self.server.port

    @property
    def recipients(self) -> list[str]:
        """All that have got a message, in their order."""
        return sorted(each for _, recipients, _ in self.messages for each in recipients)


class _Session(DefaultSession):
    def __init__(self, box: Inbox) -> None:
        super().__init__()
        self._box = box

    def rcpt(self, recipient: str, params: RcptParams) -> None:
        reply = self._box.replies.get(recipient)
        if reply is not None:
            raise SMTPError.from_reply(reply)
        super().rcpt(recipient, params)

    async def data(self, reader: DataReader, context: DataContext) -> None:
        box = self._box
        box.running += 1
        box.most = max(box.most, box.running)
        try:
            if box.gate is not None:
                await box.gate.wait()
            octets, size = b"", 0
            async for chunk in reader:
                size += len(chunk)
                octets += chunk if box.keep else b""
        finally:
            box.running -= 1
        box.sizes.append(size)
        box.messages.append((context.sender, tuple(context.recipients), octets))
        box.params.append((context.mail_params, tuple(context.rcpt_params)))
        for recipient, reply in box.final.items():
            if recipient in context.recipients:
                context.set_status(recipient, reply)


@asynccontextmanager
async def inbox(**options: Any) -> AsyncIterator[Inbox]:
    """A next hop."""
    box = Inbox()
    settings: dict[str, Any] = {"addr": "127.0.0.1:0", "domain": "mx.example", "dsn": True}
    async with Server(DefaultBackend(lambda: _Session(box)), **settings | options) as server:
        box.server = server
        yield box


@contextmanager
def closed_port() -> Iterator[int]:
    """A port at which nobody listens."""
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]
