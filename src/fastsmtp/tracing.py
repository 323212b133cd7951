"""Text from a peer, made safe to show; and the debug trace of a connection, on either side."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .options import TraceWriter

__all__ = ["printable", "tracer"]


def printable(text: str) -> str:
    """The text with whatever a terminal could take for a command, line ends too, as escapes."""
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


def tracer(debug: TraceWriter, name: str) -> Callable[[str, bytes], None]:
    """What writes a connection's trace, a line for each line: who said it, "C" or "S", and what, printable.

    It holds no connection: a connection that held its own bound method would be a cycle of references.
    """

    def trace(who: str, octets: bytes) -> None:
        for line in octets.decode("utf-8", "backslashreplace").removesuffix("\r\n").split("\r\n"):
            debug.write(f"{name} {who}: {printable(line)}\n")

    return trace
