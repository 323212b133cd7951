"""Hostile clients that play dialogues at random: known ones, altered, spliced and cut anywhere.

    python -m soak.mutants PLACE... (JSON)

What a server answers is judged without a model of it: replies are well-formed, each command has one, after 421 and after QUIT comes the
end, and a client that has sent its end is left.  Each dialogue is made from a number, which is told with what is found wrong.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
import pathlib
import random
import re
import signal
import ssl
import sys
from collections.abc import Sequence
from typing import Final

from tests.dialogue import load

from .hostile import Hung, Raw
from .places import Place

__all__ = ["Mutator", "Player"]

_DIALOGUES: Final = pathlib.Path(__file__).parent.parent / "tests" / "dialogues"
_REPLY: Final = re.compile(rb"(?:(\d{3})-[\x20-\xff]*\r\n)*(\d{3}) [\x20-\xff]*\r\n")
_ALONE: Final = (b"DATA", b"BDAT", b"AUTH", b"STARTTLS", b"QUIT", b"XCLIENT")  # what follows depends on the answer
_BDAT: Final = re.compile(rb"BDAT +(\d{1,5})( +LAST)? *", re.IGNORECASE)
_MANY: Final = re.compile(rb"BDAT +\d{6}", re.IGNORECASE)
_WORDS: Final = (
    *(
        b"EHLO x.example",
        b"LHLO x.example",
        b"HELO x",
        b"MAIL FROM:<a@b.example>",
        b"MAIL FROM:<> BODY=8BITMIME SIZE=10",
    ),
    *(
        b"RCPT TO:<c@d.example>",
        b"RCPT TO:<Postmaster>",
        b"DATA",
        b"BDAT 0 LAST",
        b"BDAT 7",
        b"BDAT 30 LAST",
        b"RSET",
        b"NOOP",
    ),
    *(
        b"VRFY x",
        b"HELP",
        b"STARTTLS",
        b"AUTH PLAIN",
        b"AUTH LOGIN",
        b"AUTH PLAIN AGEAYg==",
        b"XFORWARD NAME=a ADDR=192.0.2.1",
    ),
)
_BITS: Final = (
    b"\0",
    b"\r",
    b"\n",
    b" ",
    b"<",
    b">",
    b"@",
    b":",
    b"=",
    b".",
    b"\xff",
    b"\xc3\xa9",
    b'"',
    b"\\",
    b"%s",
    b"x" * 600,
)
_PLAYERS: Final = 6  # of each server, at a time
_PAUSE: Final = 0.1  # seconds between the dialogues of one
_CUTS: Final = 6


class Mutator:
    """Makes dialogues from numbers."""

    def __init__(self) -> None:
        self._plays: Final = [
            b"".join(step.sent for step in load(path).steps) for path in sorted(_DIALOGUES.rglob("*.txt"))
        ]
        self._lines: Final = sorted({line for play in self._plays for line in play.split(b"\r\n") if len(line) < 2000})

    def line(self, chance: random.Random) -> bytes:
        """A command, as it should be or altered; without an end."""
        line = chance.choice(_WORDS if chance.random() < 0.6 else self._lines)
        if chance.random() < 0.3:
            line = self.altered(chance, line)
        return line.replace(b"\r\n", b"\r")

    def octets(self, chance: random.Random) -> bytes:
        """All that a client says in one connection."""
        play = chance.choice(self._plays)
        if chance.random() < 0.5:
            other = chance.choice(self._plays)
            play = play[: chance.randrange(len(play) + 1)] + other[chance.randrange(len(other) + 1) :]
        for _ in range(chance.choice((0, 1, 1, 2, 5))):
            play = self.altered(chance, play)
        return play

    def altered(self, chance: random.Random, octets: bytes) -> bytes:
        """Something cut out, put in, doubled or changed."""
        start = chance.randrange(len(octets) + 1)
        end = min(len(octets), start + chance.choice((0, 1, 1, 2, 10)))
        middle = octets[start:end]
        what = chance.randrange(5)
        if what == 0:
            middle = b""
        elif what == 1:
            middle = chance.choice(_BITS) + middle
        elif what == 2:
            middle = chance.randbytes(len(middle) or 1)
        elif what == 3:
            middle *= chance.choice((2, 3, 40))
        else:
            middle = middle.swapcase()
        return octets[:start] + middle + octets[end:]


class Player:
    """Plays them on one server.

    Attributes:
        counts: dialogues, commands, replies.
        violations: what the server did wrong.
    """

    def __init__(self, place: Place, mutator: Mutator) -> None:
        self.place: Final = place
        self.counts: Final[collections.Counter[str]] = collections.Counter()
        self.violations: Final[list[str]] = []
        self._mutator: Final = mutator

    async def play(self, number: int) -> None:
        """The dialogue of this number, in one of the two ways."""
        chance = random.Random(number)
        counted = chance.random() < 0.5
        try:
            async with Raw(self.place, f"127.0.3.{1 + number % 250}") as raw:
                if self.place.proxy:
                    await raw.send(self.place.header(raw.address))
                stream: Raw | Secured = raw
                if self.place.tls:
                    stream = Secured(raw)
                    await stream.handshake()
                await (self._counted if counted else self._at_once)(stream, chance)
            self.counts["dialogues"] += 1
        except (OSError, EOFError):
            self.counts["cut off"] += 1
        except Hung as error:
            self.violations.append(f"{self.place.name}: dialogue {number}: {error}")
        except Exception as error:  # noqa: BLE001 - told to who started this
            self.violations.append(f"{self.place.name}: dialogue {number}: {type(error).__name__}: {error}")

    async def _send(self, raw: Raw | Secured, chance: random.Random, octets: bytes) -> None:
        """In pieces, with pauses between some."""
        cuts = sorted(chance.randrange(len(octets) + 1) for _ in range(chance.randrange(_CUTS)))
        for start, end in zip([0, *cuts], [*cuts, len(octets)], strict=True):
            if start != end:
                await raw.send(octets[start:end])
                if chance.random() < 0.5:
                    await asyncio.sleep(chance.choice((0, 0, 0.001, 0.01)))

    # Command by command: as many replies as commands

    async def _counted(self, raw: Raw | Secured, chance: random.Random) -> None:
        await self._code(raw, "the greeting")
        waiting: list[bytes] = []
        if chance.random() < 0.8:
            waiting.append(raw.place.hello + b" x.example")
        for _ in range(chance.randrange(1, 40)):
            line = self._mutator.line(chance)
            if not line.strip().upper().startswith(_ALONE):
                waiting.append(line)
                if chance.random() < 0.7:
                    continue
                line = b""
            if not await self._batch(raw, chance, waiting):
                return
            waiting = []
            if line and not await self._alone(raw, chance, line):
                return
        if await self._batch(raw, chance, [*waiting, b"QUIT"]):
            raise Hung("QUIT was not answered 221")

    async def _batch(self, raw: Raw | Secured, chance: random.Random, lines: Sequence[bytes]) -> bool:
        """Commands in one pipeline; whether the connection is still there."""
        await self._send(raw, chance, b"".join(line + b"\r\n" for line in lines))
        for line in lines:
            code = await self._code(raw, line)
            if code in (b"421", b"221"):
                await self._ended(raw, code)
                return False
            if code in (b"354", b"334"):
                raise Hung(f"{line!r} was answered {code!r}")
        return True

    async def _alone(self, raw: Raw | Secured, chance: random.Random, line: bytes) -> bool:
        """A command after which it depends; whether the connection is still there."""
        chunk = _BDAT.fullmatch(line)
        if chunk is None and _MANY.match(line):
            return True  # too many octets to be sent
        octets = chance.randbytes(int(chunk[1])) if chunk is not None else b""
        await self._send(raw, chance, line + b"\r\n" + octets)
        code = await self._code(raw, line)
        for last in (False, False, False, True):
            if code != b"334":
                break
            answer = (
                b"*"
                if last
                else chance.choice((b"*", b"!", b"AGEAYg==", b"dXNlcg==", b"", b"=", b"x" * 13000, chance.randbytes(9)))
            )
            await self._send(raw, chance, answer.replace(b"\r\n", b"") + b"\r\n")
            code = await self._code(raw, line)
        if code == b"354":
            body = self._mutator.octets(chance)
            while b"\r\n.\r\n" in body:
                body = body.replace(b"\r\n.\r\n", b"\r\n..\r\n")
            await self._send(raw, chance, b"x" + body + b"x\r\n.\r\n")
            code = await self._code(raw, b"the message")
        if raw.place.lmtp and not code.startswith((b"421", b"221")):
            # Each recipient has its reply; HELP's, which no other command gives, comes behind the last.
            await raw.send(b"HELP\r\n")
            while code not in (b"214", b"421"):
                code = await self._code(raw, b"HELP")
        if code in (b"421", b"221") or (code == b"501" and line[:4].upper() == b"BDAT"):
            await self._ended(raw, code)
            return False
        # Behind STARTTLS no more is said in plaintext; garbage ends it.
        if code == b"220":
            with contextlib.suppress(OSError):
                await raw.send(chance.randbytes(100))
            await raw.rest()
            return False
        return True

    async def _code(self, raw: Raw | Secured, what: object) -> bytes:
        line = await raw.reply()
        self.counts["replies"] += 1
        if not b"200" <= line[:3] <= b"599" or len(line) > 510:
            raise Hung(f"{what!r} was answered {line!r}")
        return line[:3]

    async def _ended(self, raw: Raw | Secured, code: bytes) -> None:
        """Behind 421 and 221 comes nothing; behind a chunk of unknown size nothing but that these are too many errors."""
        rest = await raw.rest()
        if rest and not (code == b"501" and rest == b"421 4.7.0 Too many errors\r\n"):
            raise Hung(f"behind the last reply came {rest[:200]!r}")

    # All at once, then the end: as well-formed as ever

    async def _at_once(self, raw: Raw | Secured, chance: random.Random) -> None:
        octets = self._mutator.octets(chance)
        reading = asyncio.ensure_future(raw.rest())
        try:
            with contextlib.suppress(OSError):
                await self._send(raw, chance, octets)
            raw.end()
            received = await reading
        finally:
            reading.cancel()
        plain, tls, _ = received.partition(b"220 2.0.0 Ready to start TLS\r\n")
        plain += tls
        replies = list(_REPLY.finditer(plain))
        self.counts["replies"] += len(replies)
        if b"".join(each[0] for each in replies) != plain:
            raise Hung(f"not well-formed, to {octets!r}: {plain!r}")
        if any(each[1] is not None and each[1] != each[2] for each in replies):
            raise Hung(f"a reply of two codes, to {octets!r}: {plain!r}")
        recipients = octets.upper().count(b"RCPT") + 1 if self.place.lmtp else 1
        if len(replies) > 2 + recipients * (octets.count(b"\r\n") + 1):
            raise Hung(f"{len(replies)} replies to {octets!r}")


class Secured:
    """The same within TLS."""

    def __init__(self, raw: Raw) -> None:
        self.place: Final = raw.place
        self._raw: Final = raw
        self._received = b""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls: Final = _contexts(raw.place).wrap_bio(self._incoming, self._outgoing, server_hostname="mx.example")

    async def handshake(self) -> None:
        while True:
            try:
                self._tls.do_handshake()
            except ssl.SSLWantReadError:
                await self._raw.send(self._outgoing.read())
                if not await self._more():
                    raise ConnectionResetError from None
            else:
                break
        await self._raw.send(self._outgoing.read())

    async def _more(self) -> bool:
        data = await self._raw.read()
        self._incoming.write(data)
        return bool(data)

    async def send(self, octets: bytes) -> None:
        if octets:
            self._tls.write(octets)
            await self._raw.send(self._outgoing.read())

    async def _read(self) -> bytes:
        """What comes next; b"" is the end."""
        while True:
            try:
                return self._tls.read(65536)
            except ssl.SSLWantReadError:
                if not await self._more():
                    return b""
            except ssl.SSLError:
                return b""

    async def reply(self) -> bytes:
        while True:
            found = _REPLY.match(self._received)
            if found is not None:
                self._received = self._received[found.end() :]
                return found[0].splitlines()[-1]
            data = await self._read()
            if not data:
                raise ConnectionResetError
            self._received += data

    async def rest(self) -> bytes:
        received, self._received = self._received, b""
        while data := await self._read():
            received += data
        return received

    def end(self) -> None:
        """TLS has no end that is only one side's: the connection ends here."""
        self._raw.end()


_KNOWN: Final[dict[str, ssl.SSLContext]] = {}


def _contexts(place: Place) -> ssl.SSLContext:
    if place.ca not in _KNOWN:
        _KNOWN[place.ca] = place.context()
    return _KNOWN[place.ca]


async def _main(places: Sequence[Place]) -> int:
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    mutator = Mutator()
    players = [Player(place, mutator) for place in places]

    async def many(player: Player) -> None:
        while not stop.is_set():
            await player.play(random.getrandbits(48))
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), random.random() * 2 * _PAUSE)

    await asyncio.gather(*(many(player) for player in players for _ in range(_PLAYERS)))
    used = os.times()
    print(
        json.dumps(
            {
                "attacks": {player.place.name: dict(player.counts) for player in players},
                "violations": [each for player in players for each in player.violations],
                "cpu": used.user + used.system,
            }
        ),
        flush=True,
    )
    return 0


if __name__ == "__main__":
    sys.exit(asyncio.run(_main([Place.from_json(text) for text in sys.argv[1:]])))
