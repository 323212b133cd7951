"""Dialogues as text files, run on the bare core and over a socket.

    # a comment
    @lmtp true                 an option of ServerOptions, before the first line
    C: MAIL FROM:<a@b>         a line from the client; CR LF is added
    C+ octets\\r\\n              octets from the client, with Python's escapes
    S: 250 2.1.0 Sender OK     a reply line, to the letter
    S: 250...                  a reply line that begins so
    M: 12                      the session was given a message of so many octets
    EOF                        the server has closed, or is closing

The client's octets are sent whole up to the next S:, line by line, or one at a time; the replies must be the same.
"""

from __future__ import annotations

import ast
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, field

__all__ = ["CUTS", "Dialogue", "Step", "cut", "load", "matches"]

CUTS = ("whole", "lines", "octets")


@dataclass(frozen=True, slots=True)
class Step:
    """What the client sends, what must come back, the messages that must have arrived, and whether it ends there."""

    sent: bytes
    replies: tuple[str, ...]
    messages: tuple[int, ...] = ()
    closed: bool = False


@dataclass(frozen=True, slots=True)
class Dialogue:
    """One file."""

    name: str
    options: dict[str, object] = field(default_factory=dict)
    steps: tuple[Step, ...] = ()


def load(path: pathlib.Path) -> Dialogue:
    """Read a file; ValueError names a line that is none."""
    options: dict[str, object] = {}
    steps: list[Step] = []
    sent, replies, messages = b"", [], []  # type: ignore[var-annotated]
    closed = False

    def finish() -> None:
        nonlocal sent, replies, messages, closed
        if sent or replies or messages or closed:
            steps.append(Step(sent, tuple(replies), tuple(messages), closed))
        sent, replies, messages, closed = b"", [], [], False

    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        if line.startswith(("C: ", "C:", "C+ ")) and (replies or messages or closed):
            finish()
        if line.startswith("@"):
            key, _, value = line[1:].partition(" ")
            options[key] = {"true": True, "false": False}.get(value, int(value) if value.isdigit() else value)
        elif line.startswith("C+ "):
            sent += ast.literal_eval(f'b"{line[3:]}"')
        elif line.startswith("C:"):
            sent += line[3:].encode() + b"\r\n"
        elif line.startswith("S: "):
            replies.append(line[3:])
        elif line.startswith("M: "):
            messages.append(int(line[3:]))
        elif line == "EOF":
            closed = True
        else:
            raise ValueError(f"{path.name}:{number}: {line!r}")
    finish()
    return Dialogue(path.stem, options, tuple(steps))


def cut(data: bytes, how: str) -> Iterator[bytes]:
    """`data` in pieces."""
    if how == "whole":
        if data:
            yield data
    elif how == "lines":
        yield from data.splitlines(keepends=True)
    else:
        for index in range(len(data)):
            yield data[index : index + 1]


def matches(expected: str, line: str) -> bool:
    """A reply line against what the file says."""
    return line.startswith(expected[:-3]) if expected.endswith("...") else line == expected
