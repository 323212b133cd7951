"""What a client of the generator says: whole dialogues in octets, made before anything is measured.

A message that is pipelined as RFC 2920 allows takes one round trip: its text and the next one's MAIL, RCPT and DATA leave together,
since DATA must be the last of a group.  BDAT (RFC 3030) needs no 354, so that a message is a group of its own.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from .texts import ORDINARY, STUFFED

__all__ = ["BODIES", "Dialogue", "Step", "body", "dialogue"]

_ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
_EHLO = b"EHLO load.example\r\n"
_HEADER = b"From: <a@b.example>\r\nTo: <c@d.example>\r\nSubject: load\r\n\r\n"


class Step(NamedTuple):
    """What is sent at once, and how many replies end the step."""

    octets: bytes
    replies: int
    messages: int = 0  # how many of the replies accept a message
    starts_tls: bool = False


@dataclass(frozen=True, slots=True)
class Dialogue:
    """A connection from its greeting to QUIT."""

    opening: tuple[Step, ...]
    first: Step | None  # where a message and the next share a step: the first one's beginning,
    each: Step
    last: Step | None  # and the last one's end
    closing: Step

    def messages(self, another: Callable[[], bool]) -> Iterator[Step]:
        """The steps of one message after the other for as long as `another` says that there is one."""
        if not another():
            return
        yield self.each if self.first is None else self.first
        while another():
            yield self.each
        if self.last is not None:
            yield self.last


def _lines(line: bytes, size: int) -> bytes:
    return (line * (size // len(line) + 1))[: max(0, size - 2)] + b"\r\n"


def _plain(size: int) -> bytes:
    return _HEADER + _lines(ORDINARY, size - len(_HEADER))


def _stuffed(size: int) -> bytes:
    count = max(1, (size - len(_HEADER)) // len(STUFFED))
    return _HEADER + STUFFED * count


BODIES = {"plain": _plain, "stuffed": _stuffed}
"""Texts as they are on the wire, by kind: ordinary lines, and each line dot-stuffed."""


def body(kind: str, size: int) -> bytes:
    """A text of about `size` octets, dot-encoded but without its end."""
    text = BODIES[kind](size)
    return text if text.endswith(b"\r\n") else text + b"\r\n"


def dialogue(text: bytes, *, bdat: bool = False, tls: bool = False, auth: bool = False) -> Dialogue:
    """The dialogue of a client that sends `text` again and again."""
    opening = [Step(b"", 1), Step(_EHLO, 1)]
    if tls:
        opening += [Step(b"STARTTLS\r\n", 1, starts_tls=True), Step(_EHLO, 1)]
    if auth:
        opening.append(Step(b"AUTH PLAIN " + base64.b64encode(b"\0user\0secret") + b"\r\n", 1))
    closing = Step(b"QUIT\r\n", 1)
    if bdat:
        each = Step(_ENVELOPE + b"BDAT %d LAST\r\n" % len(text) + text, 3, 1)
        return Dialogue(tuple(opening), None, each, None, closing)
    envelope, text = _ENVELOPE + b"DATA\r\n", text + b".\r\n"
    return Dialogue(tuple(opening), Step(envelope, 3), Step(text + envelope, 4, 1), Step(text, 1, 1), closing)
