"""The generator for what smtp-source cannot do: pipelining, BDAT, TLS, AUTH, thousands of idle connections, latencies.

    python -m bench.load PORT --connections N --messages N [--size OCTETS] [--fresh] [--idle N] [--bdat] [--tls CA] [--auth]

One process on asyncio (uvloop where it is) that sends octets made beforehand and does no more with replies than count them; a reply
that refuses ends it with an error, so that a server that takes nothing does not look fast.  Each time something is to be read from
the server it prints a line of JSON, `{"stage": NAME}`, and waits for a line: "warm" when the first idle connections are open, "ready" before the
messages, "done" after them, with what it measured.

Latency is the time from the answer to a connection's message (or its beginning) to that of its next one: what a sender that never
rests sees.  With fresh connections it includes connecting, greeting and handshake.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import ssl
import sys
import time
from array import array
from collections.abc import Iterator
from typing import Any

from .wire import BODIES, Dialogue, Step, body, dialogue

WARM = 100  # connections that a server may make its first buffers for
OPENING = 64  # connections that are being opened at a time


class Refused(Exception):
    """The server said no, or hung up."""


class Work:
    """What all connections share: the messages that are left, and how long each took."""

    def __init__(self, messages: int) -> None:
        self.left = messages
        self.latencies = array("d")

    def take(self) -> bool:
        self.left -= 1
        return self.left >= 0


class Connection(asyncio.Protocol):
    """One client.  `play` runs steps; what the server says is counted, not read."""

    def __init__(self, context: ssl.SSLContext | None) -> None:
        self.loop = asyncio.get_running_loop()
        self.context = context
        self.transport: Any = None
        self.steps: Iterator[Step] = iter(())
        self.step = Step(b"", 0)
        self.missing = 0
        self.rest = b""
        self.work: Work | None = None
        self.started = 0.0
        self.finished: asyncio.Future[None] | None = None
        self.upgrade: asyncio.Task[None] | None = None

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def play(self, steps: Iterator[Step], work: Work | None = None) -> asyncio.Future[None]:
        """Send these steps one after the other; done when the last is answered."""
        self.finished = self.loop.create_future()
        self.steps, self.work, self.started = steps, work, time.perf_counter()
        self.advance()
        return self.finished

    def advance(self) -> None:
        step = next(self.steps, None)
        if step is None:
            assert self.finished is not None
            if not self.finished.done():
                self.finished.set_result(None)
            return
        self.step, self.missing = step, step.replies
        if step.octets:
            self.transport.write(step.octets)
        elif self.rest:  # the greeting was there before anybody asked
            rest, self.rest = self.rest, b""
            self.data_received(rest)

    def data_received(self, data: bytes) -> None:
        if not self.missing:
            self.rest += data
            return
        if self.rest:
            data = self.rest + data
        *lines, self.rest = data.split(b"\r\n")
        for line in lines:
            if line[:1] not in (b"2", b"3"):
                self.fail(Refused(line.decode(errors="replace")))
                return
            if line[3:4] != b"-":
                self.missing -= 1
        if self.missing <= 0:
            self.answered()

    def answered(self) -> None:
        step = self.step
        if step.messages and self.work is not None:
            now = time.perf_counter()
            self.work.latencies.append(now - self.started)
            self.started = now
        if step.starts_tls:
            self.upgrade = self.loop.create_task(self.start_tls())
        else:
            self.advance()

    async def start_tls(self) -> None:
        assert self.context is not None
        try:
            self.transport = await self.loop.start_tls(self.transport, self, self.context, server_hostname="localhost")
        except (OSError, ssl.SSLError) as error:
            self.fail(error)
        else:
            self.advance()

    def connection_lost(self, error: Exception | None) -> None:
        self.fail(error or Refused("the server hung up"))

    def fail(self, error: Exception) -> None:
        if self.finished is not None and not self.finished.done():
            self.finished.set_exception(error)


class Generator:
    """Opens connections, runs messages over them, and says what it took."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        self.dialogue: Dialogue = dialogue(
            body(options.body, options.size), bdat=options.bdat, tls=bool(options.tls), auth=options.auth
        )
        self.context = ssl.create_default_context(cafile=options.tls) if options.tls else None
        self.work = Work(options.messages)
        self.held: list[Connection] = []

    async def connect(self) -> Connection:
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: Connection(self.context), "127.0.0.1", self.options.port)
        await connection.play(iter(self.dialogue.opening))
        return connection

    async def open(self, count: int) -> list[Connection]:
        """`count` connections that have said EHLO, and what comes before the first message."""
        opened: list[Connection] = []
        while len(opened) < count:
            batch = min(OPENING, count - len(opened))
            opened += await asyncio.gather(*(self.connect() for _ in range(batch)))
        return opened

    async def fresh(self) -> None:
        """One connection after the other, a message each."""
        while self.work.take():
            began = time.perf_counter()
            connection = await self.connect()
            await connection.play(self.dialogue.messages(iter((True, False)).__next__))
            await connection.play(iter((self.dialogue.closing,)))
            self.work.latencies.append(time.perf_counter() - began)
            connection.transport.close()

    async def run(self) -> None:
        options = self.options
        if options.idle:
            self.held += await self.open(WARM)
            tell("warm")
            self.held += await self.open(options.idle)
        kept = [] if options.fresh else await self.open(options.connections)
        tell("ready")
        began = time.perf_counter()
        if options.fresh:
            await asyncio.gather(*(self.fresh() for _ in range(options.connections)))
        else:
            await asyncio.gather(*(each.play(self.dialogue.messages(self.work.take), self.work) for each in kept))
        tell("done", seconds=time.perf_counter() - began, **percentiles(self.work.latencies))


def percentiles(latencies: array[float]) -> dict[str, float]:
    """Median, 99th percentile and worst, in seconds."""
    ordered = sorted(latencies)
    last = len(ordered) - 1
    return {"p50": ordered[round(last * 0.5)], "p99": ordered[round(last * 0.99)], "worst": ordered[last]}


def tell(stage: str, **more: float) -> None:
    """Say where we are; go on when the other side has read what it wants to."""
    print(json.dumps({"stage": stage, **more}), flush=True)
    sys.stdin.readline()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("port", type=int)
    parser.add_argument("--connections", type=int, default=20)
    parser.add_argument("--messages", type=int, default=1000)
    parser.add_argument("--size", type=int, default=4096, help="octets of a message")
    parser.add_argument("--body", choices=tuple(BODIES), default="plain")
    parser.add_argument("--fresh", action="store_true", help="a connection for each message")
    parser.add_argument("--idle", type=int, default=0, help="connections that say EHLO and no more")
    parser.add_argument("--bdat", action="store_true")
    parser.add_argument("--tls", metavar="CA", help="STARTTLS, and trust this authority")
    parser.add_argument("--auth", action="store_true")
    options = parser.parse_args()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    try:
        import uvloop

        loop_factory = uvloop.new_event_loop
    except ImportError:
        loop_factory = asyncio.new_event_loop
    try:
        with asyncio.Runner(loop_factory=loop_factory) as runner:
            runner.run(Generator(options).run())
    except (Refused, OSError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
