"""A next hop that fails in every way at every step, end to end: each recipient is delivered to in the end, or its sender is told.

The sender's own host is a server too: a notice counts when it has arrived there.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from fastsmtp.client_options import Timeouts
from fastsmtp.delivery.handover import Outcome
from fastsmtp.delivery.queue import State
from fastsmtp.delivery.routes import Hop as NextHop

from .delivering import Inbox, Site, StaticRoutes, closed_port, envelope, inbox, site
from .fake_server import fake
from .faulty import BUSY, CASES, FAULTS, IMPATIENT, NO, STALLS, STEPS, Hop
from .loops import LOOPS, Runner, runner


class Post:
    """A worker between a next hop and the host of the sender."""

    def __init__(self, at: Site, hop: Hop, home: Inbox, routes: StaticRoutes) -> None:
        self.at, self.hop, self.home, self.routes = at, hop, home, routes
        self._numbers = itertools.count()

    def fates(self, address: str) -> list[Outcome]:
        return [outcome for each, outcome in self.at.watch.outcomes if each == address]

    def is_delivered(self, address: str) -> bool:
        return any(outcome.state is State.DELIVERED for outcome in self.fates(address))

    def is_told(self, address: str) -> bool:
        """The sender has a notice of failure about it."""
        field = f"Final-Recipient: rfc822;{address}\r\nAction: failed\r\n".encode()
        return any(sender == "" and field in octets for sender, _, octets in self.home.messages)

    async def put(self, lifetime: float = 1e6, size: int = 0) -> tuple[str, str]:
        """A message to two recipients that nobody else has."""
        number = next(self._numbers)
        names = (f"a{number}@x.example", f"b{number}@x.example")
        body = b"Subject: %d;\r\n\r\n" % number + (b"x" * 70 + b"\r\n") * (1 + size)
        await self.at.queue.put(envelope(*names, expires=self.at.clock.now + lifetime), body)
        return names

    async def tried(self, names: tuple[str, ...], times: int = 1) -> None:
        await self.at.watch.until(lambda: all(len(self.fates(name)) >= times for name in names))

    async def settled(self, names: tuple[str, ...]) -> None:
        """Wait until each is delivered to, or its sender has been told."""
        await self.at.watch.until(lambda: all(self.is_delivered(name) or self.is_told(name) for name in names))

    def has_arrived(self, names: tuple[str, ...]) -> bool:
        subject = f"Subject: {names[0][1:].partition('@')[0]};\r\n".encode()
        return any(subject in octets for octets in self.hop.messages)


@asynccontextmanager
async def post(path: Path, how: str, port: int = 0) -> AsyncIterator[Post]:
    async with fake(STEPS[how], kind=Hop) as hop, inbox() as home:
        assert isinstance(hop, Hop)
        ports = {"x.example": [port or hop.port]}
        routes = Routes(ports, home.port, lmtp=hop.lmtp)
        async with site(path, routes) as at:
            yield Post(at, hop, home, routes)
            assert (await at.queue.stats()).messages == 0


class Routes(StaticRoutes):
    """The sender's host always speaks SMTP, and is waited for."""

    def __init__(self, ports: dict[str, list[int]], home: int, **options: Any) -> None:
        super().__init__(ports, **options)
        self._home = StaticRoutes({"home.example": [home]})

    async def hops(self, destination: str) -> Sequence[NextHop]:
        if destination == "home.example":
            return await self._home.hops(destination)
        return await super().hops(destination)


@pytest.mark.parametrize(
    ("loop", "how", "step"),
    [(loop.values[0], *case) for loop, case in zip(itertools.cycle(LOOPS), CASES, strict=False)],
)
def test_every_fault_at_every_step(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop], how: str, step: str
) -> None:
    """Once with a next hop that recovers, once with one that does not until the message's time is over."""

    async def main() -> None:
        async with post(tmp_path, how) as at:
            size = 5_000 if step in ("body", "BDAT") else 0
            for name, fault in FAULTS.items():
                if step == "body" and name in STALLS:
                    continue  # the client's patience is with what is written: test_client has that
                for lifetime in (10.0,) if name in STALLS and step != "." else (1e6, 10.0):
                    at.hop.step, at.hop.fault = step, fault
                    at.routes.options["timeouts"] = IMPATIENT if name in STALLS else Timeouts(quit=0.5)
                    names = await at.put(lifetime, size)
                    await at.tried(names)
                    for recipient in names:
                        (outcome,) = at.fates(recipient)
                        if name == "refused for good" and not (step == "second" and recipient == names[0]):
                            assert outcome.state is State.FAILED, (name, outcome)
                        elif outcome.state is not State.PENDING:
                            # What is known is kept: a reply that came before the fault.
                            assert outcome.state is State.DELIVERED and at.has_arrived(names), (name, outcome)
                    if lifetime > 10:
                        at.hop.step = ""
                        at.routes.options["timeouts"] = Timeouts()
                    at.at.advance(100)
                    await at.settled(names)
                    for recipient in names:
                        assert at.is_delivered(recipient) != at.is_told(recipient), (name, recipient)
                        if at.is_delivered(recipient):
                            assert at.has_arrived(names)
                        elif lifetime > 10:
                            assert name == "refused for good"
                    at.at.advance(1000)  # no host is left alone any more

    runner(loop)(main)


@pytest.mark.parametrize("fault", FAULTS)
def test_starttls(tmp_path: Path, fault: str) -> None:
    """With TLS where it can be had: a refusal is no obstacle, and what else goes wrong is no reason to go on in plaintext."""

    async def main() -> None:
        async with post(tmp_path, "one by one") as at:
            at.hop.replies["EHLO"] = b"250-mx.example\r\n250 STARTTLS\r\n"
            at.hop.step, at.hop.fault = "STARTTLS", FAULTS[fault]
            at.routes.options["timeouts"] = IMPATIENT if fault in STALLS else Timeouts()
            names = await at.put(10.0)
            await at.tried(names)
            fates = {at.fates(name)[0].state for name in names}
            refused = fault.startswith("refused")
            assert fates == {State.DELIVERED if refused else State.PENDING}
            at.at.advance(100)
            await at.settled(names)
            assert all(at.is_delivered(name) == refused for name in names) and at.has_arrived(names) == refused

    asyncio.run(main())


@pytest.mark.parametrize("how", STEPS)
def test_each_recipient_has_its_own_end(tmp_path: Path, run: Runner, how: str) -> None:
    """One is taken, one refused for good, one put off until it is taken, one put off until its time is over."""

    async def main() -> None:
        async with post(tmp_path, how) as at:
            names = tuple(f"{name}@x.example" for name in ("yes", "no", "later", "never"))
            _, no, later, never = names
            at.hop.refusals = {no: NO, later: BUSY, never: b"452 4.2.2 full\r\n"}
            await at.at.queue.put(envelope(*names, expires=at.at.clock.now + 300), b"Subject: four\r\n\r\n")
            await at.tried(names)
            states = [at.fates(name)[0].state for name in names]
            assert states == [State.DELIVERED, State.FAILED, State.PENDING, State.PENDING]
            del at.hop.refusals[later]
            at.at.advance(100)
            await at.tried((later, never), 2)
            assert at.is_delivered(later)
            at.at.advance(300)
            await at.settled(names)
            assert [at.is_delivered(name) for name in names] == [True, False, True, False]
            assert [at.is_told(name) for name in names] == [False, True, False, True]
            assert len(at.hop.messages) == 2 and len(at.home.messages) == 2

    run(main)


def test_nobody_listens(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        with closed_port() as port:
            async with post(tmp_path, "one by one", port) as at:
                names = await at.put(1000.0)
                await at.tried(names)
                assert {at.fates(name)[0].state for name in names} == {State.PENDING}
                at.at.advance(500)
                await at.tried(names, 2)
                at.at.advance(600)
                await at.settled(names)
                assert all(at.is_told(name) for name in names)

    run(main)
