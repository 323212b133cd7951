"""Honest clients: they send messages that prove themselves and take every reply to the letter."""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import ssl
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from .ledger import Ledger
from .places import Place
from .texts import message, stuffed

__all__ = ["Client", "Interrupted", "State", "Wrong", "clients_of", "keep_going", "keeper", "visitor"]

_LINE: Final = re.compile(rb"(\d{3})([ -])[\x20-\xff]*\r\n")
_ANSWER: Final = 120.0  # seconds for a reply: far longer than any that should be needed
_ERRORS: Final = 12  # refused commands of a connection; the server hangs up after 20
_PIECE: Final = 20_000  # octets that a slow client sends at a time
_LONGEST_PAUSE: Final = 3.0
_TOO_MANY: Final = b"421 4.7.0 Too many connections"

# What a server answers to commands beside the way, outside of a transaction.
_ASIDE: Final = (
    (b"NOOP", b"250"),
    (b"NOOP with a word", b"250"),
    (b"RSET", b"250"),
    (b"VRFY someone", b"252"),
    (b"HELP", b"214"),
    (b"DATA", b"503"),
    (b"RCPT TO:<r@server.example>", b"503"),
    (b"MAIL FROM:<a@client.example> FOO=1", b"555"),
    (b"MAIL FROM:<no address at all>", b"501"),
    (b"MAIL FROM:<a@client.example> SIZE=99999999999", b"552"),
    (b"TURN", b"502"),
    (b"WHAT IS THIS", b"500"),
    (b"QUIT now", b"501"),
)


class Wrong(Exception):
    """A reply that must not be."""


class Interrupted(Exception):
    """The connection has ended: with 421, or without a word."""

    def __init__(self, text: bytes = b"", answered: bool = False) -> None:
        super().__init__(text.decode("ascii", "replace"))
        self.text = text
        self.answered = answered


class State:
    """What honest clients of one server have in common.

    Attributes:
        place: where it is.
        stops: how often it was stopped; a connection that ends is excused if this has changed since it began.
        down: it is stopped now.
        killed: it may be killed at any moment, and what was not answered may be there or not.
        latencies: seconds from MAIL to the last reply, of each message that was not slow on purpose.
    """

    def __init__(self, place: Place, ledger: Ledger) -> None:
        self.place: Final = place
        self.ledger: Final = ledger
        self.stops = 0
        self.down = False
        self.killed = False
        self.latencies: Final[list[float]] = []
        self.context: Final = place.context() if place.ca else None


class Client:
    """One connection."""

    def __init__(self, state: State) -> None:
        self.state: Final = state
        self.errors = 0
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def open(self) -> None:
        """Connect, be greeted, greet."""
        try:
            self._reader, self._writer = await asyncio.wait_for(self.state.place.connect(), _ANSWER)
        except (OSError, ssl.SSLError, EOFError) as error:
            raise Interrupted(str(error).encode()) from error
        try:
            await self.expect(b"220")
            await self.hello()
        except BaseException:
            self._writer.transport.abort()
            raise

    async def hello(self) -> None:
        await self.ask(self.state.place.hello + b" client.example", b"250")

    async def start_tls(self) -> None:
        """Be greeted again, within TLS."""
        assert self.state.context is not None
        await self.ask(b"STARTTLS", b"220")
        try:
            await self._writer.start_tls(self.state.context, server_hostname="mx.example")
        except (OSError, ssl.SSLError, EOFError) as error:
            raise Interrupted(str(error).encode()) from error
        await self.hello()
        await self.ask(b"STARTTLS", b"503")
        self.errors += 1

    async def close(self, *, politely: bool = True) -> None:
        """QUIT, and wait for the end."""
        try:
            if politely:
                await self.ask(b"QUIT", b"221")
                if await asyncio.wait_for(self._reader.read(1), _ANSWER):
                    raise Wrong("octets behind the answer to QUIT")
        except OSError as error:
            raise Interrupted(str(error).encode()) from error
        finally:
            self._writer.transport.abort()

    def abort(self) -> None:
        self._writer.transport.abort()

    async def send(self, octets: bytes) -> None:
        try:
            self._writer.write(octets)
            await asyncio.wait_for(self._writer.drain(), _ANSWER)
        except (OSError, ssl.SSLError):
            pass  # what there is to know will be read

    async def reply(self) -> bytes:
        """The last line of the next reply."""
        try:
            while True:
                line = await asyncio.wait_for(self._reader.readline(), _ANSWER)
                if not line.endswith(b"\n"):
                    raise Interrupted(line)
                found = _LINE.fullmatch(line)
                if found is None or len(line) > 512:
                    raise Wrong(f"no reply line: {line!r}")
                if found[2] == b" ":
                    return line
        except (OSError, ssl.SSLError) as error:
            raise Interrupted(str(error).encode()) from error
        except TimeoutError:
            raise Wrong("no answer") from None

    async def expect(self, *codes: bytes) -> None:
        """So many replies, with these codes."""
        for code in codes:
            line = await self.reply()
            self.state.ledger.counts["replies"] += 1
            if line.startswith(b"421"):
                raise Interrupted(line, answered=True)
            if not line.startswith(code):
                raise Wrong(f"{code.decode()} was due, not {line!r}")

    async def ask(self, command: bytes, *codes: bytes) -> None:
        await self.send(command + b"\r\n")
        await self.expect(*codes)

    async def aside(self) -> None:
        """Something beside the way, right or wrong."""
        command, code = random.choice(_ASIDE)
        self.errors += code >= b"500"
        await self.ask(command, code)

    async def refused_message(self) -> None:
        """A message with a bare LF: refused once, after its end, and nothing of it is kept."""
        await self.ask(b"MAIL FROM:<a@client.example>", b"250")
        await self.ask(b"RCPT TO:<b@server.example>", b"250")
        await self.ask(b"DATA", b"354")
        await self.send(b"X-Hostile: bare\n.\nMAIL FROM:<c@client.example>\r\n.\r\n")
        await self.expect(b"550")

    async def message(self, way: Way, recipients: int = 1) -> None:
        """One message: its promise, or that there is none, goes into the ledger."""
        ledger = self.state.ledger
        number = ledger.number()
        began = time.perf_counter()
        try:
            await way(self, number, recipients)
        except Interrupted as error:
            if not error.answered and self.state.killed:
                ledger.unknown()
            elif not error.answered and self._ended:
                ledger.violation(f"{self.state.place.name}: message {number} was sent whole and never answered")
            else:
                ledger.refused(number)
            raise
        except Wrong:
            ledger.refused(number)
            raise
        if way is not Client.paced:
            self.state.latencies.append(time.perf_counter() - began)
        ledger.promised(number, self.state.place.name)

    # The ways of a message

    _ended = False

    def _envelope(self, recipients: int, parameters: bytes = b"") -> list[bytes]:
        return [
            b"MAIL FROM:<a@client.example>" + parameters,
            *(b"RCPT TO:<r%d@server.example>" % each for each in range(recipients)),
        ]

    def _finals(self, recipients: int) -> list[bytes]:
        return [b"250"] * (recipients if self.state.place.lmtp else 1)

    async def plain(self, number: int, recipients: int) -> None:
        """DATA, each command answered before the next."""
        self._ended = False
        for command in self._envelope(recipients):
            await self.ask(command, b"250")
        await self.ask(b"DATA", b"354")
        await self.send(stuffed(message(number)))
        self._ended = True
        await self.expect(*self._finals(recipients))

    async def pipelined(self, number: int, recipients: int) -> None:
        """All up to DATA in one packet."""
        self._ended = False
        commands = [b"NOOP", b"RSET", *self._envelope(recipients), b"DATA"]
        await self.send(b"".join(command + b"\r\n" for command in commands))
        await self.expect(*[b"250"] * (len(commands) - 1), b"354")
        await self.send(stuffed(message(number)))
        self._ended = True
        await self.expect(*self._finals(recipients))

    async def chunks(self, number: int, recipients: int) -> None:
        """BDAT in one packet with all that goes before it, in chunks of any size."""
        self._ended = False
        text = message(number, "binary")
        out = [command + b"\r\n" for command in self._envelope(recipients, b" BODY=BINARYMIME")]
        answers = [b"250"] * len(out)
        at = 0
        while len(text) - at > 10 and random.random() < 0.7:
            size = random.randrange(1, len(text) - at)
            out.append(b"BDAT %d\r\n" % size + text[at : at + size])
            answers.append(b"250")
            at += size
        out.append(b"BDAT %d LAST\r\n" % (len(text) - at) + text[at:])
        await self.send(b"".join(out))
        self._ended = True
        await self.expect(*answers, *self._finals(recipients))

    async def paced(self, number: int, recipients: int) -> None:
        """A large message over a slow line, which is not cut."""
        self._ended = False
        for command in self._envelope(recipients):
            await self.ask(command, b"250")
        await self.ask(b"DATA", b"354")
        octets = stuffed(message(number, "large"))
        for at in range(0, len(octets), _PIECE):
            await asyncio.sleep(0.1)
            await self.send(octets[at : at + _PIECE])
        self._ended = True
        await self.expect(*self._finals(recipients))


Way: TypeAlias = Callable[[Client, int, int], Awaitable[None]]
_Pause: TypeAlias = Callable[[], Awaitable[None]]


async def keeper(state: State, way: Way, tls: bool, pause: _Pause, stop: asyncio.Event) -> None:
    """Many messages on one connection."""
    client = Client(state)
    await client.open()
    try:
        if tls:
            await client.start_tls()
        for _ in range(random.randrange(20, 200)):
            await pause()
            if stop.is_set():
                break
            await client.message(way, random.choice((1, 1, 1, 3)))
            if random.random() < 0.1 and client.errors < _ERRORS:
                await client.aside()
            if random.random() < 0.02:
                await client.refused_message()
        await client.close()
    finally:
        client.abort()


async def visitor(state: State, way: Way, tls: bool, pause: _Pause, stop: asyncio.Event) -> None:
    """A connection for each message."""
    await pause()
    if stop.is_set() or state.down:
        return
    client = Client(state)
    await client.open()
    try:
        if tls:
            await client.start_tls()
        await client.message(way)
        await client.close(politely=random.random() < 0.9)
    finally:
        client.abort()


_Habit: TypeAlias = Callable[[State, Way, bool, _Pause, asyncio.Event], Awaitable[None]]


def clients_of(place: Place) -> Sequence[tuple[_Habit, Way, bool]]:
    """The honest clients of a server: how they come, how they send, and whether within STARTTLS."""
    common: list[tuple[_Habit, Way, bool]] = [
        (keeper, Client.plain, False),
        (keeper, Client.pipelined, False),
        (keeper, Client.chunks, False),
        (visitor, Client.plain, False),
        (visitor, Client.pipelined, False),
        (visitor, Client.chunks, False),
    ]
    if place.starttls:
        common += [(keeper, Client.pipelined, True), (visitor, Client.plain, True)]
    if not place.lmtp:
        common.append((visitor, Client.paced, False))
    return common


async def keep_going(state: State, habit: _Habit, way: Way, tls: bool, rate: float, stop: asyncio.Event) -> None:
    """One honest client after the other until told to stop; whatever goes wrong is a violation.

    Args:
        rate: messages a second.
    """
    ledger = state.ledger
    name = f"{state.place.name}: {way.__name__}"

    async def pause() -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(stop.wait(), min(random.expovariate(rate), _LONGEST_PAUSE))

    while not stop.is_set():
        stops = state.stops
        if state.down:
            await asyncio.sleep(0.05)
            continue
        try:
            await habit(state, way, tls, pause, stop)
        except Interrupted as error:
            if error.text.startswith(_TOO_MANY) and state.place.most:
                ledger.counts["turned away"] += 1
            elif state.down or state.stops != stops:
                ledger.counts["interrupted by a stop"] += 1
            else:
                ledger.violation(f"{name}: interrupted: {error}")
        except Wrong as error:
            ledger.violation(f"{name}: {error}")
        except Exception as error:  # noqa: BLE001 - an honest client must not die unseen
            ledger.violation(f"{name}: {type(error).__name__}: {error}")
