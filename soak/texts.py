"""Messages that prove themselves: each tells its number, is made from it, and ends in its own hash."""

from __future__ import annotations

import hashlib
import random
import re
from typing import Final

__all__ = ["MARK", "message", "stuffed", "the_number_in"]

MARK: Final = b"X-Soak: "
"""How each message begins; whatever hostile clients send has another beginning."""

_BEGIN: Final = re.compile(rb"X-Soak: (\d+) (text|large|binary)\r\n")
_TRACE: Final = re.compile(rb"Return-Path: <[^\r\n>]*>\r\n(?:Received: [^\r\n]+\r\n(?:\t[^\r\n]+\r\n)+)+")
_SIZES: Final = (10, 800, 2000, 4000, 4000, 4000, 4000, 9000)
_LARGE: Final = 1_000_000
_RARE: Final = ((500, _LARGE), (50, 200_000), (20, 70_000))  # one of so many has so many octets


def message(number: int, kind: str = "text") -> bytes:
    """The message of this number.

    Args:
        kind: "text" in lines of CR LF, many of them with dots in front; "large", the same and large; "binary", octets of any kind.
    """
    numbers = random.Random(number)
    size = next((size for each, size in _RARE if number % each == each - 1), numbers.choice(_SIZES))
    if kind == "large":
        size = _LARGE
    if kind == "binary":
        content = numbers.randbytes(size)
    else:
        digits = numbers.randbytes(size // 2).hex().encode()
        width = numbers.choice((40, 72, 72, 72, 990))
        lines = [digits[at : at + width] for at in range(0, len(digits), width)]
        for index in range(0, len(lines), numbers.choice((1, 3, 7))):
            lines[index] = b"." * numbers.choice((1, 1, 2, 3)) + lines[index][3:]
        content = b"".join(line + b"\r\n" for line in (*lines, b".", b"..", b""))
    begin = MARK + b"%d %s\r\n\r\n" % (number, kind.encode())
    return begin + content + hashlib.sha256(begin + content).hexdigest().encode() + b"\r\n"


def stuffed(text: bytes) -> bytes:
    """As it goes behind DATA, with its end."""
    text = text.replace(b"\r\n.", b"\r\n..")
    return (b"." + text if text.startswith(b".") else text) + b".\r\n"


def the_number_in(file: bytes) -> int:
    """The number of the message that a Maildir's file holds; ValueError when it is not that message, whole and alone."""
    found = _BEGIN.search(file)
    if found is None:
        raise ValueError(f"no message of ours: {file[:200]!r}")
    if not _TRACE.fullmatch(file, 0, found.start()):
        raise ValueError(f"no trace header: {file[: found.start()]!r}")
    number = int(found[1])
    if file[found.start() :] != message(number, found[2].decode()):
        raise ValueError(f"message {number} is not what was sent, {len(file)} octets")
    return number
