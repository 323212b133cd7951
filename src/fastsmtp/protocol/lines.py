"""Lines and replies: what a connection's protocol does before it knows any verb (RFC 5321 4.5.3.1, RFC 2920 3.2)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .. import limits
from ..options import ServerOptions
from ..reply import LINE_TOO_LONG, OK, TOO_MANY_ERRORS, Reply
from .events import ANSWERED, Event

__all__ = ["LineProtocol"]


class LineProtocol:
    """Input and output, and one reply for each event.

    Attributes:
        closing: a last reply (221 or 421) is said; send it and close.  Nothing more is read.
        must_flush: a reply is waiting that must not be held back until the batch ends (RFC 2920 section 3.2).
        errors: refused commands so far.
        trace: called with "C" or "S" and a line's octets, when set.
    """

    __slots__ = (
        "_buffer",
        "_event",
        "_options",
        "_out",
        "_pos",
        "_settle",
        "_skipped",
        "closing",
        "errors",
        "must_flush",
        "trace",
    )

    def __init__(self, options: ServerOptions) -> None:
        self._options = options
        self._buffer = b""
        self._pos = 0
        self._skipped = 0
        self._out: list[bytes] = []
        self._event: Event = ANSWERED
        self._settle: Callable[[Any, Reply | None], None] | None = None
        self.closing = False
        self.must_flush = False
        self.errors = 0
        self.trace: Callable[[str, bytes], None] | None = None

    def receive_data(self, data: bytes) -> None:
        """Take octets from the peer.  They stay unread while an event waits for its reply."""
        if self.closing:
            return
        if self._pos >= len(self._buffer):
            self._buffer = data
        else:
            self._buffer = self._buffer[self._pos :] + data
        self._pos = 0

    @property
    def buffered(self) -> int:
        """Octets received and not looked at yet."""
        return len(self._buffer) - self._pos

    @property
    def awaiting_reply(self) -> bool:
        """An event has been given that was not answered yet."""
        return self._settle is not None

    def data_to_send(self) -> bytes:
        """The replies said since the last call, as one piece."""
        self.must_flush = False
        out = self._out
        if not out:
            return b""
        data = out[0] if len(out) == 1 else b"".join(out)
        out.clear()
        return data

    def reply(self, reply: Reply | None = None) -> None:
        """Answer the event that waits; None is its standard reply.  RuntimeError when none waits."""
        settle = self._settle
        if settle is None:
            raise RuntimeError("no event waits for a reply")
        self._settle = None
        settle(self, reply)

    def say(self, reply: Reply) -> None:
        """Say something outside of the order of events: a 421 at a time-out or shutdown, an extension's own lines.

        A 421 ends the connection (RFC 5321 3.8).
        """
        self._say(reply)
        self.must_flush = True

    def read_line(self) -> bytes | None:
        """Take the next raw line from the input while an event waits, without its line end; None: not there yet.

        For extensions that talk to the peer on their own.  A line longer than the limit ends the connection.
        """
        end = self._buffer.find(b"\r\n", self._pos)
        if end < 0:
            if self.buffered > limits.COMMAND_LINE:
                self._flood()
            return None
        line = self._buffer[self._pos : end]
        self._pos = end + 2
        return line

    # Lines

    def _unended_line(self, limit: int) -> Event | None:
        waiting = len(self._buffer) - self._pos
        if self._skipped + waiting > limit:
            # The line will be refused: count it, and keep only what may be half of its end.
            keep = 1 if self._buffer.endswith(b"\r") else 0
            self._skipped += waiting - keep
            self._buffer = b"\r" if keep else b""
            self._pos = 0
            if self._skipped + keep > limits.COMMAND_LINE_FLOOD:
                return self._flood()
        return None

    def _long_line(self, length: int, reply: Reply = LINE_TOO_LONG) -> Event:
        length += self._skipped
        self._skipped = 0
        if length > limits.COMMAND_LINE_FLOOD:
            return self._flood()
        return self._refuse(reply)

    def _flood(self) -> Event:
        self.errors += 1
        self.say(TOO_MANY_ERRORS)
        return ANSWERED

    # Replies

    def _say(self, reply: Reply) -> None:
        wire = reply._wire or reply.encode()
        self._out.append(wire)
        if self.trace is not None:
            self.trace("S", wire)
        if wire.startswith(b"421"):
            self._close()

    def _close(self) -> None:
        self.closing = True
        self.must_flush = True
        self._buffer = b""
        self._pos = 0

    def _refuse(self, reply: Reply) -> Event:
        self.errors += 1
        self._say(reply)
        if self.errors >= self._options.max_errors > 0 and not self.closing:
            self._say(TOO_MANY_ERRORS)
        # RFC 2920 section 3.2: replies to what is not MAIL, RCPT or RSET are not held back.
        self.must_flush = True
        return ANSWERED

    def _wait(self, event: Event, settle: Callable[[Any, Reply | None], None]) -> Event:
        self._event = event
        self._settle = settle
        return event

    def _settle_plain(self, reply: Reply | None) -> None:
        self._say(OK if reply is None else reply)
