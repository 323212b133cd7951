"""A next hop that fails in every way at every step, behind the pass-through relay: its client is never told 250 for nothing."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from fastsmtp import Server
from fastsmtp.client import Client
from fastsmtp.client_options import ClientOptions, Timeouts
from fastsmtp.delivery.relay import RelayBackend
from fastsmtp.pool import Pool

from .fake_server import fake
from .faulty import CASES, FAULTS, IMPATIENT, NO, STALLS, STEPS, Hop
from .loops import LOOPS, runner

PAIRS = [*((False, *case) for case in CASES), *((True, *case) for case in CASES if case[0] == "lmtp")]
"""SMTP to every kind of next hop, LMTP to LMTP."""


@pytest.mark.parametrize(
    ("loop", "lmtp", "how", "step"),
    [
        pytest.param(loop.values[0], *pair, marks=[] if pair[1] == "one by one" else [pytest.mark.slow])
        for loop, pair in zip(itertools.cycle(LOOPS), PAIRS, strict=False)
    ],
)
def test_every_fault_at_every_step(
    loop: Callable[[], asyncio.AbstractEventLoop], lmtp: bool, how: str, step: str
) -> None:
    """The client keeps its connection, and its next message goes through when the next hop is well again."""
    size = 5_000 if step in ("body", "BDAT") else 0

    async def main() -> None:
        async with fake(STEPS[how], kind=Hop) as hop:
            assert isinstance(hop, Hop)

            def relay_to(timeouts: Timeouts) -> RelayBackend:
                options = ClientOptions(host="127.0.0.1", port=hop.port, lmtp=hop.lmtp, timeouts=timeouts)
                return RelayBackend(options, pool=pool)

            async with (
                Pool(max_idle=0) as pool,
                relay_to(Timeouts(quit=0.5)) as patient,
                relay_to(IMPATIENT) as impatient,
            ):
                for backend, names in ((patient, FAULTS.keys() - STALLS), (impatient, STALLS)):
                    if step == "body" and backend is impatient:
                        continue  # the client's patience is with what is written: test_client has that
                    async with Server(backend, addr="127.0.0.1:0", lmtp=lmtp) as relay:
                        for number, name in enumerate(sorted(names)):
                            hop.step, hop.fault = step, FAULTS[name]
                            async with Client("127.0.0.1", relay.port, lmtp=lmtp) as client:
                                await send(client, hop, name, number, backend is patient)

    async def send(client: Client, hop: Hop, name: str, number: int, again: bool) -> None:
        subject = b"Subject: %d;\r\n" % number
        message = subject + b"\r\n" + (b"x" * 70 + b"\r\n") * (1 + size)
        before = len(hop.messages)
        sent = await client.send_message("a@b.example", ["c@x.example", "d@x.example"], message)
        codes = [each.reply.code for each in sent]
        if 250 in codes:  # by LMTP to LMTP, the one who was answered for
            assert step == "second" and lmtp and codes.pop(0) == 250, (name, codes)
            assert any(subject in each for each in hop.messages[before:])
        refused = FAULTS[name] == NO and step not in ("greeting", "EHLO", "LHLO")
        assert set(codes) == {551 if refused else 451}, (name, codes)
        assert client.usable
        hop.step = ""
        if again:  # not where it may be too slow by chance
            sent = await client.send_message("a@b.example", ["c@x.example"], message)
            assert [each.reply.code for each in sent] == [250], name
            assert subject in hop.messages[-1]

    runner(loop)(main)
