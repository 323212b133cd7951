"""What clients say: dialogues by grammar, those of `tests/dialogues`, and both of them spoiled."""

from __future__ import annotations

import pathlib
import random
from collections.abc import Sequence
from typing import Final

from tests.dialogue import Dialogue, load

__all__ = ["ADDRESSES", "bodies", "cut", "dialogue", "seeds", "spoil"]

FOLDER: Final = pathlib.Path(__file__).parent.parent / "tests" / "dialogues"

ADDRESSES: Final = [
    *([b"a@b.example", b"joe@x.example", b"", b"postmaster", b"c@d.example"] * 3), b"Postmaster",
    b"@one,@two:joe@three.example", b"a@[192.0.2.1]",
    b'"q r"@x.example', b'"a\\"b"@x', b"a@[IPv6:2001:db8::1]", "jürgen@bücher.example".encode(), b"x" * 64 + b"@y",
    b"x" * 65 + b"@y", b"a@" + b"y." * 127,
    b"a", b"a@", b"@b", b"a@b@c", b"a..b@c", b".a@c", b"a@-b", b"a b@c", b"a\0@c", b"\xff@c", b"a@[1.2.3.4",
    b"a@[999.1.1.1]", b'"a@b', b"<a@b>", b"a@b.",
]  # fmt: skip
_HELLO: Final = [
    *([b"EHLO client.example", b"LHLO client.example"] * 6),
    *([b"HELO client.example", b"EHLO [192.0.2.1]", b"EHLO [IPv6:2001:db8::1]"] * 2), b"ehlo x",
    b"EHLO", b"EHLO  x ", b"HELO under_score", b"EHLO a b", b"EHLO [x]", b"LHLO -", b"EHLO " + b"x" * 300,
    b"HELO \xff",
]  # fmt: skip
_MAIL: Final = [
    *([b"SIZE=1000", b"BODY=8BITMIME", b"SMTPUTF8", b"BODY=BINARYMIME"] * 4), b"BODY=7BIT", b"RET=HDRS", b"RET=FULL",
    b"ENVID=a+2Bb", b"BY=60;R", b"BY=-5;NT",
    b"MT-PRIORITY=3", b"HOLDFOR=60", b"HOLDUNTIL=2030-01-01T00:00:00Z", b"AUTH=<>", b"AUTH=a+40b.example",
    b"REQUIRETLS", b"SOLICIT=org.example:ADV",
    b"SIZE=99999999999", b"SIZE=", b"SIZE", b"BODY", b"X=1", b"NOTIFY=NEVER", b"ENVID=a+0A", b"SIZE=1 SIZE=2", b"=",
    b"A=B=C", b"RET=\xc3\xa9",
]  # fmt: skip
_RCPT: Final = [
    *([b"NOTIFY=SUCCESS,DELAY", b"NOTIFY=NEVER", b"ORCPT=rfc822;a+2Bb@c"] * 3), b"NOTIFY=NEVER,SUCCESS",
    b"ORCPT=utf-8;\\x{E9}@c", b"ORCPT=rfc822",
    b"RRVS=2014-04-03T23:01:00Z", b"RRVS=2014-04-03T23:01:00Z;C", b"RRVS=x", b"SIZE=5", b"ORCPT=\xff",
]  # fmt: skip
_OTHERS: Final = [
    *([b"NOOP", b"RSET", b"HELP", b"VRFY joe", b"EXPN list", b"ETRN x.example", b"rset ", b"STARTTLS"] * 3),
    b"NOOP x", b"RSET x", b"VRFY", b"EXPN", b"ETRN",
    b"ETRN @x", b"ETRN #q", b"STARTTLS x", b"DATA x", b"QUIT x", b"QUIT", b"TURN", b"SEND FROM:<a@b>", b"XYZZY", b"",
    b" ", b"NOOP\t", b"NO\0OP", b"NOOP \xff",
    b"HELP \xc3\xa9", b"MAIL", b"RCPT", b"MAIL FROM:", b"RCPT TO:", b"MAIL TO:<a@b>", b"RCPT FROM:<a@b>", b"BDAT",
    b"BDAT x", b"BDAT -1", b"BDAT 5 FIRST",
    b"BDAT 5\tLAST", b"BDAT\t5", b"AUTH", b"AUTH X y z", b"N" * 2046, b"N" * 2047, b"AUTH PLAIN " + b"QUFB" * 3000,
    b"MAIL FROM:<a@b>" + b" " * 2100,
    b"GET / HTTP/1.1", b"EHLO\nQUIT", b"NOOP\rQUIT", b"NOOP\r", b"\n", b"\r", b".", b"..",
]  # fmt: skip
_FORWARD: Final = [
    b"NAME=client.example", b"NAME=[UNAVAILABLE]", b"ADDR=192.0.2.7", b"ADDR=IPV6:2001:db8::7", b"ADDR=x",
    b"PROTO=ESMTP", b"PROTO=SMTP", b"PROTO=QMQP",
    b"HELO=x.example", b"HELO=a+20b", b"PORT=25", b"PORT=99999", b"IDENT=q+3D1", b"SOURCE=LOCAL", b"SOURCE=x",
    b"LOGIN=joe", b"LOGIN=+0A", b"DESTADDR=192.0.2.8",
    b"DESTPORT=25", b"NAME=", b"NAME", b"NAME=[TEMPUNAVAIL]", b"NAME=+ZZ", b"X=1", b"NAME=\xc3\xa9",
    b"NAME=" + b"n" * 256,
]  # fmt: skip
_RESPONSES: Final = [
    b"AGpvZQBzZWNyZXQ=", b"am9l", b"c2VjcmV0", b"=", b"*", b"", b"!", b"QQ", b"QQ=", b"QQ==", b"QQ==x", b" am9l",
    b"am9l ", b"QUFB" * 3071, b"QUFB" * 3072, b"\xff",
]  # fmt: skip
_MECHANISMS: Final = [b"PLAIN", b"LOGIN", b"plain", b"CRAM-MD5", b"X", b"SCRAM-SHA-256", b"PLAIN\t"]
_BODY_LINES: Final = [
    *([b"Subject: x\r\n", b"\r\n", b"ordinary text\r\n", b"..\r\n", b".x\r\n", b"..x\r\n", b"x" * 76 + b"\r\n"] * 4),
    b"x" * 998 + b"\r\n", b"caf\xc3\xa9\r\n",
    b"\0\r\n", b"bare\n", b"bare\r", b"\n.\n", b"\r.\r", b"\n.\r\n", b"\r\n.\n", b"\r\n.\r", b".\r\r\n", b"\r\r\n",
    b". \r\n", b"\r\n\0.\r\n", b"QUIT\r\n", b"RSET\r\n", b"\xff" * 70,
]  # fmt: skip
_ENDS: Final = [b".\r\n"] * 12 + [b"\r\n.\r\n"] * 6 + [b".\n", b".\r", b"\n.\n", b"", b"\r\n.", b".\r\n.\r\n"]
_SPOILERS: Final = [
    b"\r\n", b"\n", b"\r", b".", b"\r\n.\r\n", b"\0", b"\xff", b" ", b"\t", b"<", b">", b"@", b"=", b"+", b";", b",",
    b'"', b"\\", b"[", b"]", b"\xc3\xa9", b"\x7f", b"1",
    b"LAST", b"x" * 70, b"x" * 2100, b"y" * 70000,
]  # fmt: skip
_SPOILERS_WEIGHTS: Final = [8] * (len(_SPOILERS) - 3) + [4, 2, 1]


def bodies(rng: random.Random, most: int = 12) -> bytes:
    """The lines of a message, without its end."""
    return b"".join(rng.choices(_BODY_LINES, k=int(rng.random() * most)))


def _mail(rng: random.Random) -> bytes:
    parameters = rng.choices(_MAIL, k=rng.choice((0, 0, 0, 1, 1, 2, 3)))
    return b" ".join((b"MAIL FROM:<%b>" % rng.choice(ADDRESSES), *parameters)) + b"\r\n"


def _rcpt(rng: random.Random) -> bytes:
    parameters = rng.choices(_RCPT, k=rng.choice((0, 0, 0, 0, 1, 2)))
    return b" ".join((b"RCPT TO:<%b>" % rng.choice(ADDRESSES), *parameters)) + b"\r\n"


def _chunks(rng: random.Random) -> list[bytes]:
    said = []
    for last in [b""] * rng.choice((0, 0, 1, 1, 2, 3)) + [b" LAST"]:
        body = bodies(rng, 6)
        size = len(body)
        if rng.random() < 0.05:
            size = rng.choice((size + 1, size - 1, 0, 5, 10**6, 10**19))
        if rng.random() < 0.05:
            said.append(rng.choice((_mail(rng), _rcpt(rng), b"RSET\r\n", b"DATA\r\n", b"NOOP\r\n", b"EHLO x\r\n")))
        said += [b"BDAT %d%b\r\n" % (max(0, size), last), body]
    return said


def _scene(rng: random.Random) -> list[bytes]:
    kind = rng.random()
    if kind < 0.62:
        said = [_mail(rng)] + [_rcpt(rng) for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 5)))]
        if kind < 0.36:
            return [*said, b"DATA\r\n", bodies(rng), rng.choice(_ENDS)]
        return said + _chunks(rng)
    if kind < 0.67:
        return [rng.choice(_HELLO) + b"\r\n"]
    if kind < 0.76:
        said = [b"AUTH %b\r\n" % rng.choice(_MECHANISMS)]
        if rng.random() < 0.6:
            said = [b"AUTH %b %b\r\n" % (rng.choice(_MECHANISMS), rng.choice(_RESPONSES))]
        return said + [each + b"\r\n" for each in rng.choices(_RESPONSES, k=rng.choice((0, 1, 2)))]
    if kind < 0.83:
        verb = b"XFORWARD " if kind < 0.8 else b"XCLIENT "
        return [verb + b" ".join(rng.choices(_FORWARD, k=rng.choice((0, 1, 1, 2, 3)))) + b"\r\n"]
    return [rng.choice(_OTHERS) + b"\r\n"]


def dialogue(rng: random.Random) -> list[bytes]:
    """What one client says, in commands and bodies; most of it is right."""
    said = [rng.choice(_HELLO) + b"\r\n"] if rng.random() < 0.95 else []
    for _ in range(rng.choice((1, 1, 2, 2, 3, 4, 6))):
        said += _scene(rng)
    if rng.random() < 0.2:
        said.append(b"QUIT\r\n")
        said += _scene(rng)
    return said


def seeds() -> list[tuple[Dialogue, list[bytes]]]:
    """The dialogues of the tests, and what the client says in each, by lines."""
    found = []
    for path in sorted(FOLDER.rglob("*.txt")):
        each = load(path)
        found.append((each, b"".join(step.sent for step in each.steps).splitlines(keepends=True)))
    return found


def spoil(rng: random.Random, said: list[bytes], others: Sequence[Sequence[bytes]]) -> list[bytes]:
    """The same with a few mistakes: of lines, or of octets."""
    said = list(said)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 6))):
        if not said:
            return [rng.choice(_SPOILERS)]
        place = rng.randrange(len(said))
        kind = rng.randrange(10)
        if kind == 0:
            del said[place]
        elif kind == 1:
            said.insert(place, said[rng.randrange(len(said))])
        elif kind == 2:
            other = rng.randrange(len(said))
            said[place], said[other] = said[other], said[place]
        elif kind == 3:
            other_said = rng.choice(others)
            said[place:place] = other_said[rng.randrange(len(other_said) + 1) :][:5]
        elif kind == 4:
            said[place] = said[place].swapcase()
        else:
            line = said[place]
            where = rng.randrange(len(line) + 1)
            upto = where if kind < 8 else min(len(line), where + rng.choice((1, 1, 2, 5)))
            middle = rng.choices(_SPOILERS, _SPOILERS_WEIGHTS)[0] if kind < 9 else b""
            said[place] = line[:where] + middle + line[upto:]
    return said


def cut(rng: random.Random, data: bytes) -> list[bytes]:
    """`data` in pieces."""
    size = len(data)
    kind = rng.random()
    if kind < 0.15 and size < 1500:
        return [data[place : place + 1] for place in range(size)]
    if kind < 0.3:
        return data.splitlines(keepends=True)
    if kind < 0.4:
        step = rng.choice((2, 3, 7, 16, 64, 1000))
        return [data[place : place + step] for place in range(0, size, step)]
    marks = [0, *sorted(rng.choices(range(size + 1), k=rng.choice((1, 1, 2, 3, 5, 9)))), size]
    return [data[start:end] for start, end in zip(marks, marks[1:], strict=False) if start < end]
