"""Commands out, replies in: what a client does before it knows any verb (RFC 5321 4.1.4 and 4.2, RFC 2920 3.1).

A command leaves when the server may be sent it: at once when nothing is outstanding, or, where PIPELINING was offered, in one group with
what precedes it.  Replies are matched with commands by their order.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final, NoReturn

from ..errors import ProtocolError, UnexpectedEOF
from ..reply import Reply, SMTPError
from .replies import ReplyReader
from .requests import Command, Envelope, Piece

__all__ = ["Exchange"]

# RFC 2920 3.1: all others are the last of their group.  DATA is too, until its message has been written.
_ANYWHERE: Final = frozenset({"MAIL", "RCPT", "RSET", "BDAT"})

# What is refused within a transaction (RFC 5321 4.1.4, RFC 3207 section 4.2, RFC 4954 section 4).
_BETWEEN: Final = frozenset({"MAIL", "STARTTLS", "AUTH", "XFORWARD", "XCLIENT"})

# RFC 2034 section 4: the replies without enhanced status codes.  XCLIENT is answered with a greeting.
_PLAIN: Final = frozenset({"", "EHLO", "HELO", "LHLO", "XCLIENT"})


class Exchange:
    """Input and output, and a reply for each command.

    Attributes:
        lmtp: LMTP is spoken, not SMTP.
        closing: the exchange is over: close the connection.  Nothing more is read or written.
        refusal: the 421 that ended it, or the greeting that turns us away (only QUIT is left then, RFC 5321 3.1); or None.
        trace: called with "C" or "S" and a command's or reply's octets, when set.  Secrets are masked.
    """

    __slots__ = (
        "_awaiting_tls",
        "_events",
        "_open",
        "_out",
        "_pipelining",
        "_premature",
        "_queue",
        "_reader",
        "_sent",
        "closing",
        "lmtp",
        "refusal",
        "trace",
    )

    def __init__(self, lmtp: bool) -> None:
        self.lmtp: Final = lmtp
        self.closing = False
        self.refusal: Reply | None = None
        self.trace: Callable[[str, bytes], None] | None = None
        self._reader: Final = ReplyReader()
        self._queue: Final[deque[Command]] = deque()  # not sent yet
        self._sent: Final[deque[Command]] = deque()  # not answered yet
        self._events: Final[deque[Command]] = deque()
        self._out: list[Piece] = []
        self._open: Envelope | None = None  # the transaction that the server may be in
        self._pipelining = False
        self._premature = False  # what is buffered came before what it would answer was written
        self._awaiting_tls = False  # STARTTLS was granted, and TLS has not begun

    # Input and output

    def receive_data(self, data: bytes) -> None:
        """Take octets from the server; `next_event` tells what they mean.

        Raises:
            ProtocolError: they came in plaintext behind the reply to STARTTLS (RFC 3207 section 6): an attack.
        """
        if self.closing or not data:
            return
        if self._awaiting_tls:
            self._fail("octets in plaintext behind the reply to STARTTLS")
        self._reader.feed(data)

    def receive_eof(self) -> None:
        """The server has closed the connection.

        Raises:
            UnexpectedEOF: a reply was still due, and not only to QUIT.
        """
        if self.closing:
            return
        due = self._reader.buffered or any(command.verb != "QUIT" for command in (*self._sent, *self._queue))
        self._abandon()
        if due:
            raise UnexpectedEOF("the server closed the connection while a reply was due")

    def next_event(self) -> Command | None:
        """The next command that is done, or that wants its body now; None: more octets are needed, or the end has come.

        Raises:
            ProtocolError: what the server said is no reply, none to what was asked, or none that was asked for; close the connection.
        """
        while not self._events:
            if self.closing:
                return None
            head = self._sent[0] if self._sent else None
            self._reader.challenges = head is not None and head.verb == "AUTH"
            try:
                reply = self._reader.next_reply(head is None or head.verb not in _PLAIN)
            except ProtocolError:
                self._abandon()
                raise
            if reply is None:
                return None
            self._take(head, reply)
        return self._events.popleft()

    def data_to_send(self) -> bytes:
        """What is to be written, as one piece."""
        return b"".join(self.pieces_to_send())

    def pieces_to_send(self) -> list[Piece]:
        """What is to be written, in as many pieces as it was made of, so that a chunk of a message is not copied."""
        pieces = self._out
        self._out = []
        return pieces

    @property
    def awaiting(self) -> Command | None:
        """The command whose reply is due next; its verb tells how long to wait (RFC 5321 4.5.3.2)."""
        return self._sent[0] if self._sent else None

    # Commands

    def _ask(self, command: Command) -> Command:
        """Queue a command, and write it if it may be written now."""
        self._queue.append(command)
        self._release()
        return command

    def _release(self) -> None:
        """Write what may be written now."""
        queue, sent = self._queue, self._sent
        while queue and not self._awaiting_tls:
            command = queue[0]
            refusal = command.pointless
            if refusal is None and command.verb != "QUIT":
                refusal = self.refusal
            if refusal is not None:
                self._finish(queue.popleft(), refusal)
                continue
            if sent and not self._may_follow(sent[-1], command):
                return
            if not sent and self._reader.buffered:
                return  # what came before it was asked for is no answer: next_event will say so
            if self._open is not None and command.verb in _BETWEEN:
                # The last transaction came to nothing, and the server still holds its sender (RFC 5321 4.1.4).
                command = Command("RSET", (b"RSET\r\n",), Exchange._settle_plain)
                command.hidden = True
            else:
                queue.popleft()
            self._write(command)

    def _may_follow(self, last: Command, command: Command) -> bool:
        """Tell whether a command may be written while another is not answered yet."""
        if not self._pipelining:
            return False
        if command.verb == "BDAT":
            # RFC 3030 section 2: once all replies to MAIL and RCPT are there.  In LMTP one by one: how many replies a
            # last chunk behind a refused one gets is not certain.
            return last.verb == "BDAT" and not self.lmtp
        if command.verb == "MAIL":
            # Behind a last chunk it has to be known first whether RSET is needed.
            return last.verb == "RSET" or (last.verb == "DATA" and last.last)
        return last.verb in _ANYWHERE or last.last

    def _write(self, command: Command) -> None:
        if self.trace is not None:
            self._trace_command(command)
        self._out.extend(command.pieces)
        command.pieces = ()
        command.sent = True
        self._sent.append(command)
        if command.verb == "MAIL":
            self._open = command.envelope
        elif command.verb == "RSET":
            self._open = None

    def _write_line(self, line: bytes, shown: bytes | None = None) -> None:
        """Write what belongs to a command whose first line is written; `shown` is what the trace shows."""
        if self.trace is not None:
            self.trace("C", line if shown is None else shown)
        self._out.append(line)
        self._premature = self._reader.buffered > 0

    def _trace_command(self, command: Command) -> None:
        assert self.trace is not None
        line = bytes(command.pieces[0])
        # An initial response has secrets.
        self.trace("C", b" ".join((*line.split()[:2], b"***\r\n")) if command.verb == "AUTH" else line)

    # Replies

    def _take(self, command: Command | None, reply: Reply) -> None:
        if self.trace is not None:
            self.trace("S", b"334 ***\r\n" if reply.code == 334 else reply.encode())
        if reply.code == 421:
            self._shut(reply)  # at any time, unasked too (RFC 5321 3.8)
            return
        if command is None or (self._premature and reply.accepted):
            self._fail("a reply that nothing asked for")
        self._premature = False
        if command.settle(self, command, reply):
            self._sent.popleft()
            self._finish(command, command.reply or reply)
        self._release()

    def _finish(self, command: Command, reply: Reply) -> None:
        command.finish(reply)
        if not command.hidden:
            self._events.append(command)

    def _settle_plain(self, command: Command, reply: Reply) -> bool:
        self._expect_done(reply)
        return True

    def _expect_done(self, reply: Reply) -> None:
        """A reply that asks for more where there is no more is none of this protocol."""
        if 300 <= reply.code <= 399:
            self._fail("a reply of the wrong class")

    # The end

    def _shut(self, reply: Reply) -> None:
        """The server ends it: this is the reply to all that is outstanding."""
        self.refusal = reply
        commands = (*self._sent, *self._queue)
        self._abandon()
        for command in commands:
            self._finish(command, reply)

    def _abandon(self) -> None:
        self.closing = True
        self._sent.clear()
        self._queue.clear()
        self._out.clear()

    def _fail(self, reason: str) -> NoReturn:
        self._abandon()
        raise ProtocolError(reason)

    def _check_open(self) -> None:
        """Raise SMTPError when the server turned us away, RuntimeError when the exchange is over for another reason."""
        if self.refusal is not None:
            raise SMTPError.from_reply(self.refusal)
        if self.closing:
            raise RuntimeError("the connection is closing")
