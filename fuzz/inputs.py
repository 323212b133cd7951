"""Octets and text worth trying: big blobs of what matters, out of which small inputs are cut for next to nothing."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from typing import Final

from fastsmtp._vocabulary import HEADER_KEYS, VERBS

__all__ = [
    "ADDRESSES",
    "COMMANDS",
    "COMMAND_LINES",
    "DOTS",
    "DOT_LINES",
    "HEADERS",
    "HEADER_LINES",
    "KEYS",
    "REPLIES",
    "REPLY_LINES",
    "SIZES",
    "WORDS",
    "blob",
    "slices",
    "text_blob",
    "text_slices",
]

# Around the widths of the compiled scans (8, 16, 64), of its buffers (32, 256, 512, 1024) and of the limits on lines (2048).
_EDGES: Final = [
    width + near for width in (8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096) for near in (-2, -1, 0, 1, 2, 3)
]
SIZES: Final = [*range(40)] * 12 + [*range(40, 140)] * 2 + _EDGES
_RUNS: Final = [
    b"r" * each for each in (3, 7, 8, 9, 13, 15, 16, 17, 29, 31, 32, 33, 47, 61, 62, 63, 64, 65, 66, 127, 128, 129)
]
_FEW: Final = [b"\r", b"\n", b".", b" ", b"-", b":", b"2", b"a", b"\0", b"\xff"]
_OCTETS: Final = [bytes((octet,)) for octet in range(256)]
_HIGH: Final = [
    b"\x80",
    b"\x9f",
    b"\xff",
    "é".encode(),
    "漢".encode(),
    "😀".encode(),
    b"\xc3",
    b"\xed\xa0\x80",
    b"\xf4\x90\x80\x80",
]
_CONTROLS: Final = [b"\0", b"\t", b"\x1f", b"\x7f"]

DOTS: Final = [
    *([b"\r", b"\n", b".", b"\r\n", b"\r\n.", b"\r\n..", b"\r\n.\r", b"\r\n.\r\n", b".\r\n", b"\n.\n", b"\r\r\n", b"\n\r"] * 6),
    *_RUNS, *_HIGH, *_CONTROLS, *([b"a", b" ", b"ordinary text"] * 4),
]  # fmt: skip
COMMANDS: Final = [
    *[each.encode() for verb in VERBS for each in (verb, verb.lower(), verb.capitalize(), verb.swapcase(), verb[:-1])],
    *([b"\r\n", b"\r\n", b" ", b"  ", b"\r", b"\n", b" \r\n"] * 20),
    *([b"FROM:<a@b.example>", b"TO:<c@d.example>", b" SIZE=123", b" BODY=8BITMIME", b"mail FROM:<>\r\n", b"X"] * 5),
    *_RUNS, *(_HIGH * 2), *(_CONTROLS * 3),
]  # fmt: skip
REPLIES: Final = [
    *([b"250-", b"250 ", b"250", b"\r\n", b"\n", b"250 ok\r\n", b"250-more\r\n", b"\r\n250-", b"\r\n250 "] * 9),
    *([b"25", b"251 ", b"099 ", b"100 ", b"999-", b"354 go\r\n", b"2.1.0 ", b"250\r\n", b"\r", b"-", b" ", b"4", b"x"] * 3),
    *_RUNS, *_HIGH, *_CONTROLS, b"y" * 1030, b"z" * 2043, b"250-x\r\n" * 255, b"250-\n" * 254,
]  # fmt: skip
HEADERS: Final = [
    *[each.encode() for key in HEADER_KEYS for each in (key, key.lower())],
    *([b": ", b":", b"\r\n", b"\n", b" value\r\n", b": value\r\n", b"\r\n ", b"\r\n\t", b" \t", b"a: b\r\n", b"\r\n\r\n", b"\n\n"] * 16),
    *([b"X-Other-", b"-", b"_", b"(", b"\r", b" \r\n", b"k" * 31, b"k" * 32, b"k" * 33, b"v" * 1023, b"v" * 1025, b"A"] * 3),
    *_RUNS, *_HIGH, *_CONTROLS,
]  # fmt: skip
# Whole lines, most of which are right.
DOT_LINES: Final = [
    *[b"x" * each + b"\r\n" for each in (0, 1, 5, 14, 15, 30, 61, 62, 63, 64, 76, 76, 76, 126, 998)],
    *([b".x\r\n", b"..\r\n", b"...\r\n"] * 3),
    b"caf\xc3\xa9\r\n", b"bare\n", b"bare\r", b"nul\0\r\n", b".\r\n", b"\r\r\n", b". \r\n",
]  # fmt: skip
COMMAND_LINES: Final = [
    b"EHLO client.example\r\n", b"MAIL FROM:<a@b.example> SIZE=1000 BODY=8BITMIME\r\n",
    b"RCPT TO:<c@d.example> NOTIFY=NEVER\r\n",
    b"rcpt to:<@a,@b:c@d>\r\n", b"DATA\r\n", b"Bdat 1000 LAST\r\n", b"RSET\r\n", b"NOOP  \r\n", b"quit\r\n",
    b"AUTH PLAIN AGpvZQBzZWNyZXQ=\r\n",
    b"XFORWARD NAME=x ADDR=192.0.2.1\r\n", "MAIL FROM:<ä@ö.example> SMTPUTF8\r\n".encode(), b"VRFY \xff\r\n",
    b"HELP \tx\r\n", b"x" * 520 + b"\r\n",
]  # fmt: skip
REPLY_LINES: Final = [
    *([b"250-PIPELINING\r\n", b"250-SIZE 33554432\r\n", b"250-\r\n"] * 4),
    *([b"250 HELP\r\n", b"250 \r\n", b"250\r\n", b"250 ok\n"] * 2),
    b"550-5.1.1 no such user\r\n", b"550 5.1.1 really\r\n", b"250-n\xc3\xa9e\xff\r\n", b"no code\r\n", b" 250 x\r\n",
    b"251-x\r\n", b"250-x\r\r\n",
]  # fmt: skip
HEADER_LINES: Final = [
    *[each.encode() + b": value\r\n" for each in HEADER_KEYS],
    *([b"\tfolded\r\n", b"  folded more \r\n", b" \r\n", b"X-Own: \t x \t\r\n"] * 12),
    *[b"x-" + b"y" * each + b": long key\r\n" for each in (28, 29, 30, 31, 32)],
    *[b"A:" + b"v" * each + b"\n" for each in (0, 1, 1000, 1023, 1025)],
    *([b"subject: caf\xc3\xa9 \xff\r\n", b"to:\r\n", b"to:\r\n a,\r\n\tb\r\n", b"\r\n"] * 4), b"no colon\r\n",
    b": x\r\n", b"a b: c\r\n",
    b"a: \0\r\n",
]  # fmt: skip
KEYS: Final = [
    *HEADER_KEYS, *[key.lower() for key in HEADER_KEYS], *[key.upper() for key in HEADER_KEYS],
    *(["-", "--", "x-", "X", "a", "Z", "0", "_", "!", "from", "to", "id"] * 20),
    *[" ", ":", "\0", "\x7f", "é", "ſ", "K", "ß", "漢", "\ud800", "q" * 31, "q" * 32, "q" * 33, "(", ")", "@", "\n"],
]  # fmt: skip
ADDRESSES: Final = [
    *(["<", ">", "@", ".", "-", "_", "a", "Z", "0", "joe", "x.example", "<joe@x.example>", "a.b@c", "<a@b>", "<>"] * 6),
    *["x" * each for each in (50, 57, 58, 59, 60, 61, 62, 63, 64, 65)], *"!#$%&'*+/=?^`{|}~ \"(),:;[\\]\t\0\x7f",
    *["<" + "l" * each + "@d>" for each in (59, 60, 61, 62, 63, 64, 65)], "é", "漢", "\ud800", "\u0660", "a-", "-a", "..", "_a",
]  # fmt: skip
WORDS: Final = [
    *(["a", "word ", " ", "\n", "\r", "\r\n", "lorem ipsum dolor "] * 6),
    *["é", "漢" * 90, "漢", "😀", "😀" * 130, "\0", "\t", "\x7f", "\x80", "\x85", "\x9f", "\xa0", "\ud800", "\udc80", "\udfff", "\u2028"],
    *["x" * each for each in (1, 7, 8, 9, 250, 498, 499, 500, 501, 505, 506, 507, 508, 1000)], " " * 40, " " * 510,
    " x" * 260,
]  # fmt: skip


def blob(rng: random.Random, tokens: Sequence[bytes], size: int, lines: Sequence[bytes] = ()) -> bytes:
    """About `size` octets: stretches of lines, of the tokens, of a few octets only, and of any octets."""
    parts: list[bytes] = []
    have = 0
    while have < size:
        kind = rng.random()
        if kind < 0.4 and lines:
            stretch = b"".join(rng.choices(lines, k=20))
        elif kind < 0.82:
            stretch = b"".join(rng.choices(tokens, k=60))
        elif kind < 0.94:
            stretch = b"".join(rng.choices(_FEW, k=120))
        else:
            stretch = b"".join(rng.choices(_OCTETS, k=80))
        parts.append(stretch)
        have += len(stretch)
    return b"".join(parts)


def text_blob(rng: random.Random, tokens: Sequence[str], size: int) -> str:
    """About `size` characters, of tokens and of any characters."""
    parts: list[str] = []
    have = 0
    while have < size:
        stretch = "".join(rng.choices(tokens, k=40))
        if rng.random() < 0.1:
            stretch = "".join(map(chr, rng.choices(range(0x110000), k=30))) + "".join(
                map(chr, rng.choices(range(256), k=60))
            )
        parts.append(stretch)
        have += len(stretch)
    return "".join(parts)


def slices(
    rng: random.Random, octets: bytes, count: int, sizes: Sequence[int] = SIZES, *, lines: bool = False
) -> Iterator[bytes]:
    """So many pieces of `octets`, of these sizes; with `lines` they begin where lines do, and half of them end so."""
    places: Sequence[int] = [match.end() for match in re.finditer(b"\n", octets)] if lines else range(len(octets))
    for place, size in zip(rng.choices(places, k=count), rng.choices(sizes, k=count), strict=True):
        end = place + size
        if lines and size & 1:
            end = octets.rfind(b"\n", place, end) + 1 or end
        yield octets[place:end]


def text_slices(rng: random.Random, text: str, count: int, sizes: Sequence[int] = SIZES) -> Iterator[str]:
    """So many pieces of `text`, of these sizes."""
    for place, size in zip(rng.choices(range(len(text)), k=count), rng.choices(sizes, k=count), strict=True):
        yield text[place : place + size]
