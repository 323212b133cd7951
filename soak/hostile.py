"""Hostile clients, in a process of their own: slow, deaf, flooding, malformed, and gone in the middle.

    python -m soak.hostile PLACE... (JSON)

It goes on until SIGTERM, and prints what it did and what it found wrong as a line of JSON.  What can be asked of the answer that a hostile
client gets is asked: replies are well-formed and as many as the commands, who is slow is left in time, who is too many is told so.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import random
import re
import signal
import socket
import ssl
import struct
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, TypeAlias

from .places import Place

__all__ = ["Attack", "Attacker", "Hung", "Raw", "attacks_on"]

_REPLY: Final = re.compile(rb"(?:\d{3}-[\x20-\xff]*\r\n)*\d{3} [\x20-\xff]*\r\n")
_LINE: Final = re.compile(rb"\d{3}([ -])[\x20-\xff]*\r\n")
_LATE: Final = 45.0  # seconds more than the server's patience, on a busy machine
_SENDING: Final = 0.4  # seconds between the octets of who is slow
_BODY: Final = b"X-Hostile: this must never be stored\r\n\r\n" + b"".join(b"%070d\r\n" % each for each in range(2000))
_ENVELOPE: Final = b"MAIL FROM:<h@hostile.example>\r\nRCPT TO:<r@server.example>\r\n"


class Hung(Exception):
    """What must come does not come, or is not what must come."""


class Raw:
    """A socket in one's own hands."""

    def __init__(self, place: Place, address: str = "127.0.0.2") -> None:
        self.place: Final = place
        self.address: Final = address
        self.sock = socket.socket(socket.AF_UNIX if place.path else socket.AF_INET)
        self.sock.setblocking(False)
        self.received = b""
        self._loop: Final = asyncio.get_running_loop()

    async def __aenter__(self) -> Raw:
        try:
            if self.place.path:
                await self._loop.sock_connect(self.sock, self.place.path)
            else:
                self.sock.bind((self.address, 0))
                await self._loop.sock_connect(self.sock, ("127.0.0.1", self.place.port))
        except BaseException:
            self.sock.close()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.sock.close()

    def reset(self) -> None:
        """Close with RST."""
        if not self.place.path:
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.sock.close()

    async def send(self, octets: bytes) -> None:
        await asyncio.wait_for(self._loop.sock_sendall(self.sock, octets), self.place.patience + _LATE)

    async def read(self, limit: float | None = None) -> bytes:
        """What comes next; b"" is the end.  Raises Hung when nothing comes."""
        try:
            limit = self.place.patience + _LATE if limit is None else limit
            return await asyncio.wait_for(self._loop.sock_recv(self.sock, 65536), limit)
        except TimeoutError:
            raise Hung("neither an answer nor an end") from None

    async def line(self) -> bytes:
        while b"\r\n" not in self.received:
            data = await self.read()
            if not data:
                raise ConnectionResetError
            self.received += data
        line, end, self.received = self.received.partition(b"\r\n")
        if _LINE.fullmatch(line + end) is None:
            raise Hung(f"no reply line: {line!r}")
        return line

    async def reply(self) -> bytes:
        """The last line of the next reply."""
        while (line := await self.line())[3:4] == b"-":
            pass
        return line

    async def rest(self) -> bytes:
        """All that comes until the end."""
        while data := await self.read():
            self.received += data
        return self.received

    def end(self) -> None:
        """Say nothing more."""
        with contextlib.suppress(OSError):
            self.sock.shutdown(socket.SHUT_WR)

    async def ask(self, command: bytes, code: bytes) -> None:
        await self.send(command + b"\r\n")
        await self.due(code)

    async def due(self, code: bytes) -> None:
        line = await self.reply()
        if line.startswith(b"421"):
            raise ConnectionResetError  # the server stops, or is full
        if not line.startswith(code):
            raise Hung(f"{code.decode()} was due, not {line!r}")

    async def greeted(self) -> None:
        """As far as an honest client would come, in plaintext."""
        if self.place.proxy:
            await self.send(self.place.header(self.address))
        await self.due(b"220")
        await self.ask(self.place.hello + b" hostile.example", b"250")

    async def to_data(self) -> None:
        await self.greeted()
        await self.send(_ENVELOPE + b"DATA\r\n")
        for code in (b"250", b"250", b"354"):
            await self.due(code)


Attack: TypeAlias = Callable[["Attacker", Raw], Awaitable[None]]


class Attacker:
    """Attacks one server.

    Attributes:
        counts: how often each attack was made.
        violations: what the server did wrong.
    """

    def __init__(self, place: Place) -> None:
        self.place: Final = place
        self.counts: Final[collections.Counter[str]] = collections.Counter()
        self.violations: Final[list[str]] = []

    async def attack(self, attack: Attack, address: str = "127.0.0.2") -> None:
        """Once; that the server is stopped, or ends the connection, is no fault."""
        name = attack.__name__
        try:
            async with Raw(self.place, address) as raw:
                await attack(self, raw)
            self.counts[name] += 1
        except (OSError, EOFError):
            self.counts[f"{name}, cut off"] += 1
        except Hung as error:
            self.violations.append(f"{self.place.name}: {name}: {error}")
        except Exception as error:  # noqa: BLE001 - told to who started this
            self.violations.append(f"{self.place.name}: {name}: {type(error).__name__}: {error}")

    # Slow ones: the server must leave them in its own time

    async def _trickle(self, raw: Raw, octets: bytes, *, silent: bool = False) -> None:
        """Send octet by octet until the server ends the connection, with 421 where it may talk."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + raw.place.patience + _LATE
        reading = asyncio.ensure_future(raw.rest())
        try:
            for octet in octets:
                if reading.done():
                    break
                if loop.time() > deadline:
                    raise Hung("a slow client is never left")
                with contextlib.suppress(OSError):
                    await raw.send(bytes((octet,)))
                await asyncio.wait((reading,), timeout=_SENDING)
            received = await reading
        finally:
            reading.cancel()
        if silent:
            return
        last = received.splitlines(keepends=True)[-1:] or [b""]
        if not last[0].startswith(b"421 ") or _REPLY.search(received) is None:
            raise Hung(f"left without 421: {received[-200:]!r}")

    async def says_nothing(self, raw: Raw) -> None:
        """Connects, and that is all."""
        if raw.place.greets_at_once:
            await raw.due(b"220")
        received = await raw.rest()
        if raw.place.greets_at_once and not received.startswith(b"421 "):
            raise Hung(f"left without 421: {received!r}")

    async def slow_command(self, raw: Raw) -> None:
        await raw.greeted()
        await self._trickle(raw, b"NOOP " + b"x" * 2000)

    async def slow_body(self, raw: Raw) -> None:
        await raw.to_data()
        await self._trickle(raw, _BODY)

    async def slow_chunk(self, raw: Raw) -> None:
        await raw.greeted()
        await raw.send(_ENVELOPE + b"BDAT 100000 LAST\r\n")
        await self._trickle(raw, _BODY)

    async def slow_handshake(self, raw: Raw) -> None:
        if raw.place.proxy:
            await raw.send(raw.place.header(raw.address))
        if not raw.place.tls:
            await raw.greeted()
            await raw.ask(b"STARTTLS", b"220")
        await self._trickle(raw, _client_hello()[:-1], silent=True)

    async def slow_proxy_header(self, raw: Raw) -> None:
        await self._trickle(raw, raw.place.header(raw.address)[:-1], silent=True)

    async def never_reads(self, raw: Raw) -> None:
        """Asks and asks, and takes no answer, until it is dropped."""
        raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await raw.greeted()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + raw.place.patience + _LATE
        while loop.time() < deadline:
            try:
                raw.sock.send(b"HELP\r\n" * 500)
            except BlockingIOError:
                await asyncio.sleep(0.3)
            except OSError:
                return  # dropped
            else:
                await asyncio.sleep(0.05)
        raise Hung("who never reads is never left")

    async def half_open(self, raw: Raw) -> None:
        """Sends its end in the middle of something, and stays."""
        await raw.greeted()
        await raw.send(
            random.choice((b"", b"NOO", _ENVELOPE, _ENVELOPE + b"DATA\r\nX-Hostile: half\r\n", b"BDAT 5 LAST\r\nab"))
        )
        raw.sock.shutdown(socket.SHUT_WR)
        await raw.rest()

    # Quick ones

    async def flood(self, raw: Raw) -> None:
        """A pipeline without end, all of it answered."""
        await raw.greeted()
        commands = [random.choice((b"RSET", b"NOOP x", b"HELP", b"VRFY x", b"EHLO a.example")) for _ in range(1000)]
        if raw.place.lmtp:
            commands = [command.replace(b"EHLO", b"LHLO") for command in commands]
        sending = asyncio.ensure_future(raw.send(b"".join(command + b"\r\n" for command in commands) + b"QUIT\r\n"))
        try:
            received = await raw.rest()
            await sending
        finally:
            sending.cancel()
        replies = _REPLY.findall(received)
        if b"".join(replies) != received:
            raise Hung(f"not well-formed: {received[-300:]!r}")
        stopped = replies[-1:] != [] and replies[-1].startswith(b"421")
        if len(replies) != len(commands) + 1 and not stopped:
            raise Hung(f"{len(replies)} replies to {len(commands) + 1} commands")

    async def malformed(self, raw: Raw) -> None:
        """Lines that are none: each gets one reply, and after the last the connection ends."""
        await raw.greeted()
        lines = [random.choice(_BAD_LINES)() for _ in range(30)]
        with contextlib.suppress(OSError):
            await raw.send(b"".join(line + b"\r\n" for line in lines))
        received = await raw.rest()
        replies = _REPLY.findall(received)
        if b"".join(replies) != received or not replies:
            raise Hung(f"not well-formed: {received[-300:]!r}")
        if len(replies) > len(lines) + 1 or not replies[-1].startswith(b"421"):
            raise Hung(f"{len(replies)} replies to {len(lines)} lines, the last {replies[-1]!r}")
        for reply in replies:
            if not reply.startswith((b"421", b"5")):
                raise Hung(f"a bad line was answered {reply!r}")

    async def smuggle(self, raw: Raw) -> None:
        """An end of data that is none: one message, one reply, and nothing behind it is run."""
        await raw.to_data()
        end = random.choice((b"\n.\n", b"\n.\r\n", b"\r\n.\n", b"\r.\r", b"\r\n.\r"))
        await raw.send(b"X-Hostile: smuggled" + end + _ENVELOPE + b"DATA\r\nX-Hostile: 2\r\n")
        await raw.send(b"\r\n.\r\nQUIT\r\n")
        received = await raw.rest()
        replies = _REPLY.findall(received)
        codes = [reply[:3] for reply in replies]
        if codes not in ([b"550", b"221"], [b"550", b"421"], [b"421"]):  # 421: the server stops
            raise Hung(f"{end!r} was answered {codes}")

    async def garbage(self, raw: Raw) -> None:
        """Octets of any kind, instead of TLS, of a PROXY header, or of commands."""
        if raw.place.proxy and random.random() < 0.7:
            await raw.send(raw.place.header(raw.address))
        if raw.place.starttls and random.random() < 0.7:
            await raw.greeted()
            await raw.ask(b"STARTTLS", b"220")
        hello = bytearray(_client_hello())
        for _ in range(random.randrange(5)):
            hello[random.randrange(len(hello))] = random.randrange(256)
        await raw.send(
            random.choice(
                (
                    random.randbytes(random.randrange(1, 3000)),
                    bytes(hello),
                    bytes(hello[: random.randrange(len(hello))]),
                )
            )
        )
        await self._leave(raw)

    async def _secured(self, raw: Raw) -> tuple[ssl.SSLObject, ssl.MemoryBIO, ssl.MemoryBIO]:
        """Shakes hands; TLS, what is fed to it, and what comes out of it."""
        if raw.place.proxy:
            await raw.send(raw.place.header(raw.address))
        if not raw.place.tls:
            await raw.greeted()
            await raw.ask(b"STARTTLS", b"220")
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = raw.place.context().wrap_bio(incoming, outgoing, server_hostname="mx.example")
        while True:
            try:
                tls.do_handshake()
                await raw.send(outgoing.read())
                return tls, incoming, outgoing
            except ssl.SSLWantReadError:
                await raw.send(outgoing.read())
                data = await raw.read()
                if not data:
                    raise ConnectionResetError from None
                incoming.write(data)

    async def tls_then_garbage(self, raw: Raw) -> None:
        """Shakes hands, and then sends what is not TLS, or half a record, or ends without close_notify."""
        tls, _, outgoing = await self._secured(raw)
        tls.write(b"EHLO hostile.example\r\n" + _ENVELOPE + b"DATA\r\nX-Hostile: in TLS\r\n")
        record = outgoing.read()
        await raw.send(record if random.random() < 0.5 else record[: random.randrange(1, len(record))])
        if random.random() < 0.5:
            await raw.send(random.randbytes(random.randrange(1, 500)))
        await self._leave(raw)

    async def never_reads_in_tls(self, raw: Raw) -> None:
        """Asks and asks within TLS, and takes no answer, until it is dropped."""
        raw.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        tls, _, outgoing = await self._secured(raw)
        loop = asyncio.get_running_loop()
        deadline = loop.time() + raw.place.patience + _LATE
        rest = b""
        while loop.time() < deadline:
            if not rest:
                tls.write(b"HELP\r\n" * 500)
                rest = outgoing.read()
            try:
                rest = rest[raw.sock.send(rest) :]
            except BlockingIOError:
                await asyncio.sleep(0.3)
            except OSError:
                return  # dropped
            else:
                await asyncio.sleep(0.05)
        raise Hung("who never reads is never left")

    async def flood_in_tls(self, raw: Raw) -> None:
        """A pipeline within TLS, all of it answered."""
        tls, incoming, outgoing = await self._secured(raw)
        count = 500
        tls.write(b"NOOP\r\n" * count + b"QUIT\r\n")
        sending = asyncio.ensure_future(raw.send(outgoing.read()))
        received = b""
        try:
            while not received.endswith(b"221 2.0.0 Bye\r\n"):
                try:
                    received += tls.read(65536)
                except ssl.SSLWantReadError:
                    data = await raw.read()
                    if not data:
                        break
                    incoming.write(data)
                except ssl.SSLError:
                    break
            await sending
        finally:
            sending.cancel()
        replies = _REPLY.findall(received)
        due = count + 1 + raw.place.tls  # its greeting comes within TLS
        if b"".join(replies) != received or (len(replies) != due and not replies[-1:][0].startswith(b"421")):
            raise Hung(f"{len(replies)} replies to {due} commands: {received[-100:]!r}")

    async def gone(self, raw: Raw) -> None:
        """Vanishes in the middle of a command, a body, a chunk or a handshake."""
        if raw.place.tls:
            await raw.send(raw.place.header(raw.address) if raw.place.proxy else b"")
            await raw.send(_client_hello()[: random.randrange(500)])
        else:
            await raw.greeted()
            body = _ENVELOPE + b"DATA\r\n" + _BODY
            chunk = _ENVELOPE + b"BDAT %d LAST\r\n" % (len(_BODY) + 1) + _BODY
            octets = random.choice((body, chunk, b"RSET\r\n" * 300, b"STARTTLS\r\n" + _client_hello()))
            with contextlib.suppress(TimeoutError):
                await raw.send(octets[: random.randrange(len(octets))])
        if random.random() < 0.5:
            await asyncio.sleep(random.random() / 10)
        await self._leave(raw)

    async def _leave(self, raw: Raw) -> None:
        """In one of the ways there are."""
        way = random.randrange(4)
        if way == 0:
            raw.reset()
        elif way == 1:
            raw.sock.shutdown(socket.SHUT_WR)
            await raw.rest()
        elif way == 2:
            await asyncio.sleep(random.random())

    async def storm(self, raw: Raw) -> None:
        """More connections from one address than it may have, at once: those above the limit are told 421."""
        place = raw.place
        total = place.most_of_one + 50
        if not place.most_of_one or not place.greets_at_once:
            await self._connect_many(place, ["127.0.0.4"] * 60)
            return
        address = f"127.0.1.{random.randrange(1, 255)}"
        greetings = await self._connect_many(place, [address] * total)
        welcome = sum(line.startswith(b"220") for line in greetings)
        told = sum(line.startswith(b"421") for line in greetings)
        # Fewer are welcome when the limit in all is reached; never more.
        if welcome > place.most_of_one or welcome + told < len(greetings):
            raise Hung(f"of {total} connections {welcome} were welcome and {told} turned away")

    async def overcrowd(self, raw: Raw) -> None:
        """More connections than the server takes in all, for a moment."""
        place = raw.place
        each = max(1, place.most_of_one - 1)
        count = place.most + 20
        greetings = await self._connect_many(place, [f"127.0.2.{1 + at // each}" for at in range(count)])
        welcome = sum(line.startswith(b"220") for line in greetings)
        told = sum(line.startswith(b"421") for line in greetings)
        if welcome > place.most or welcome + told < len(greetings):
            raise Hung(f"of {count} connections {welcome} were welcome and {told} turned away")

    async def _connect_many(self, place: Place, addresses: Sequence[str]) -> list[bytes]:
        """The greetings of so many connections that are open at one time; none while the server is stopped."""
        greetings = []
        async with contextlib.AsyncExitStack() as stack:
            raws = []
            try:
                for address in addresses:
                    raws.append(await stack.enter_async_context(Raw(place, address)))
                if place.greets_at_once:
                    for each in raws:
                        greetings.append(await each.reply())
            except OSError:
                return []
            for each in raws:
                if random.random() < 0.3:
                    each.reset()
        return greetings


def _client_hello() -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    outgoing = ssl.MemoryBIO()
    tls = context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname="mx.example")
    with contextlib.suppress(ssl.SSLWantReadError):
        tls.do_handshake()
    return outgoing.read()


def _unprintable() -> bytes:
    """Octets of which none ends a line, and the first is no letter."""
    return (
        b"\x01" + bytes(random.choice((0, 1, 9, 11, 13, 27, 127, 128, 255)) for _ in range(random.randrange(50))) + b"x"
    )


_BAD_LINES: Final[Sequence[Callable[[], bytes]]] = (
    _unprintable,
    lambda: b"",
    lambda: b"X" * random.randrange(1, 60_000),
    lambda: b"NO\nOP",
    lambda: b"MAIL FROM:<" + b"a" * random.randrange(3000) + b"@>",
    lambda: b"MAIL FROM:<a@b> " + b"X=1 " * random.randrange(1, 300),
    lambda: b"RCPT TO:<r@server.example>",
    lambda: b"GET / HTTP/1.1",
    lambda: b"BOGUS " + random.randbytes(5).hex().encode(),
    lambda: b"DATA",
    lambda: b"AUTH PLAIN AGEAYg==",
    lambda: b"XCLIENT NAME=a",
)


def attacks_on(place: Place) -> tuple[list[Attack], list[Attack]]:
    """Slow and quick ones."""
    slow: list[Attack] = [Attacker.says_nothing]
    quick: list[Attack] = [Attacker.garbage, Attacker.gone, Attacker.storm]
    if not place.tls:
        slow += [
            Attacker.slow_command,
            Attacker.slow_body,
            Attacker.slow_chunk,
            Attacker.never_reads,
            Attacker.half_open,
        ]
        quick += [Attacker.flood, Attacker.malformed, Attacker.smuggle]
    if place.tls or place.starttls:
        slow += [Attacker.slow_handshake, Attacker.never_reads_in_tls]
        quick += [Attacker.tls_then_garbage, Attacker.flood_in_tls]
    if place.proxy:
        slow.append(Attacker.slow_proxy_header)
    if place.most and place.greets_at_once:
        quick.append(Attacker.overcrowd)
    return slow, quick


async def _besiege(attackers: Sequence[Attacker], stop: asyncio.Event) -> None:
    async def slowly(attacker: Attacker, attack: Attack) -> None:
        while not stop.is_set():
            await attacker.attack(attack)
            await _pause(stop, 1.0)

    async def quickly(attacker: Attacker, attack: Attack, pause: float) -> None:
        while not stop.is_set():
            await _pause(stop, random.expovariate(1 / pause))
            await attacker.attack(attack, f"127.0.0.{random.randrange(2, 250)}")

    tasks = []
    for attacker in attackers:
        slow, quick = attacks_on(attacker.place)
        tasks += [asyncio.ensure_future(slowly(attacker, each)) for each in slow]
        rare = (Attacker.storm, Attacker.overcrowd, Attacker.flood, Attacker.flood_in_tls)
        tasks += [asyncio.ensure_future(quickly(attacker, each, 8.0 if each in rare else 2.0)) for each in quick]
    await stop.wait()
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _pause(stop: asyncio.Event, seconds: float) -> None:
    with contextlib.suppress(TimeoutError):
        await asyncio.wait_for(stop.wait(), seconds)


async def _main(places: Sequence[Place]) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    attackers = [Attacker(place) for place in places]
    await _besiege(attackers, stop)
    counts = {attacker.place.name: dict(sorted(attacker.counts.items())) for attacker in attackers}
    violations = [each for attacker in attackers for each in attacker.violations]
    used = os.times()
    print(json.dumps({"attacks": counts, "violations": violations, "cpu": used.user + used.system}), flush=True)
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main([Place.from_json(text) for text in sys.argv[1:]])))
