"""The server's side of SMTP and LMTP as a state machine (RFC 5321 4.1.4, RFC 2033).

    receive_data(bytes) -> next_event() -> reply(...) -> data_to_send()

A command that the state does not allow never becomes an event.  While an event waits for its reply, `next_event` gives None, so
the next command is not looked at before the last one is answered: order is structural, and a shell that
stops asking exerts back-pressure.

    greeting -> hello -> [MAIL -> RCPT ... -> DATA -> body] -> ... -> QUIT
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from .. import limits
from ..extensions import Capabilities, MailParams, Offer, RcptParams
from ..options import ServerOptions
from ..reply import (
    BAD_CHARACTERS,
    BAD_SEQUENCE,
    BINARY_NEEDS_BDAT,
    BYE,
    CHUNK_OK,
    HELLO_FIRST,
    LINE_TOO_LONG,
    MAIL_FIRST,
    MESSAGE_OK,
    MIXED_WITH_BDAT,
    NESTED_MAIL,
    NO_ARGUMENTS,
    NO_RECIPIENTS,
    NO_VALID_RECIPIENTS,
    NOT_IMPLEMENTED,
    OK,
    RECIPIENT_OK,
    SENDER_OK,
    START_MAIL_INPUT,
    TOO_MANY_ERRORS,
    TOO_MANY_RECIPIENTS,
    UNRECOGNIZED,
    VRFY_CANNOT,
    VRFY_NEEDS_ARGUMENT,
    WRONG_HELLO_LMTP,
    WRONG_HELLO_SMTP,
    EnhancedCode,
    Reply,
)
from ..textproto import CONTROL, NOT_UTF8, scan_command
from .body import ChunkReceiver, DataReceiver
from .command import CommandError, parse_bdat, parse_hello, parse_mail, parse_rcpt
from .events import ANSWERED, RESET, Body, Event, Hello, MailFrom, RcptTo, Verify

__all__ = ["ServerProfile", "ServerProtocol"]

_NO_PARAMS: Final = MailParams()


class ServerProfile:
    """What all connections of one server share: its options and what follows from them, computed once.

    Args:
        options: the server's options.
    """

    __slots__ = ("_ehlo", "basic", "commands", "extended", "greeting", "hello", "help", "options")

    def __init__(self, options: ServerOptions) -> None:
        self.options: Final = options
        offer = Offer(options)
        self.extended: Final = Capabilities(offer)
        self.basic: Final = Capabilities(offer, extended=False)
        none = EnhancedCode.NONE
        words = options.greeting or ("LMTP ready" if options.lmtp else "ESMTP ready")
        self.greeting: Final = Reply(220, none, f"{options.domain} {words}")
        self.hello: Final = Reply(250, none, options.domain)
        self._ehlo: Final = self._ehlo_with(self.extended)
        self.commands: Final = {verb: _COMMANDS[verb] for verb in _COMMANDS if verb != "BDAT" or options.chunking}
        verbs = self.commands.keys() - ({"HELO", "EHLO"} if options.lmtp else {"LHLO"})
        self.help: Final = Reply(214, EnhancedCode(2, 0, 0), "Commands: " + " ".join(sorted(verbs)))

    @property
    def ehlo(self) -> Reply:
        """The answer to EHLO and LHLO."""
        if self.extended.fleeting:
            return self._ehlo_with(Capabilities(Offer(self.options)))
        return self._ehlo

    def _ehlo_with(self, capabilities: Capabilities) -> Reply:
        return Reply(250, EnhancedCode.NONE, "\n".join((self.options.domain, *capabilities.lines)))


class ServerProtocol:
    """One connection's protocol.

    Attributes:
        lmtp: LMTP is spoken, not SMTP.
        closing: a last reply (221 or 421) is said; send it and close.  Nothing more is read.
        quit: it was the client who ended it.
        must_flush: a reply is waiting that must not be held back until the batch ends (RFC 2920 section 3.2).
        hello: the name given in HELO, EHLO or LHLO, "" before.
        hello_verb: which of the three it was, "" before.
        sender: the reverse-path of the transaction, or None outside of one.
        mail_params: its parameters.
        recipients: the forward-paths accepted so far.
        rcpt_params: their parameters, in the same order.
        errors: refused commands so far.
        trace: called with "C" or "S" and a line's octets, when set.
    """

    __slots__ = (
        "_buffer",
        "_capabilities",
        "_chunks",
        "_commands",
        "_discard",
        "_event",
        "_options",
        "_out",
        "_pos",
        "_profile",
        "_receiver",
        "_settle",
        "_skipped",
        "_tried_recipients",
        "closing",
        "errors",
        "hello",
        "hello_verb",
        "lmtp",
        "mail_params",
        "must_flush",
        "quit",
        "rcpt_params",
        "recipients",
        "sender",
        "trace",
    )

    def __init__(self, profile: ServerProfile) -> None:
        self._profile = profile
        self._options = profile.options
        self._capabilities = profile.basic
        self._buffer = b""
        self._pos = 0
        self._skipped = 0
        self._out: list[bytes] = []
        self._event: Event = ANSWERED
        self._settle: Callable[[ServerProtocol, Reply | None], None] | None = None
        self._receiver: DataReceiver | ChunkReceiver | None = None  # whose octets arrive now
        self._chunks: ChunkReceiver | None = None  # the message that comes in chunks, between them too
        self._discard = 0  # octets of a chunk that belongs to no message
        self._tried_recipients = False
        self._commands: Mapping[str, Callable[[ServerProtocol, str], Event]] = profile.commands
        self.lmtp = profile.options.lmtp
        self.closing = False
        self.quit = False
        self.must_flush = False
        self.errors = 0
        self.hello = ""
        self.hello_verb = ""
        self.sender: str | None = None
        self.mail_params = _NO_PARAMS
        self.recipients: list[str] = []
        self.rcpt_params: list[RcptParams] = []
        self.trace: Callable[[str, bytes], None] | None = None

    # Input and output

    def greet(self, reply: Reply | None = None) -> None:
        """Say the greeting: 220, or the refusal given: 421 closes, after 554 only QUIT is done (RFC 5321 3.1)."""
        if reply is None:
            reply = self._profile.greeting
        else:
            self._commands = _TURNED_AWAY
        self._say(reply)
        self.must_flush = True

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
    def in_body(self) -> bool:
        """The peer is sending a message, or one waits for its reply."""
        return self._receiver is not None or self._chunks is not None

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

    def next_event(self) -> Event | None:
        """The next event, or None: more octets are needed, an event waits for its reply, or the end has come."""
        if self._settle is not None or self.closing:
            return None
        if self._receiver is not None:
            return self._next_body(self._receiver)
        pos = self._pos
        buffer = self._buffer
        if pos >= len(buffer):
            return None
        if self._discard:
            return self._discard_chunk()
        end, verb, argument, flags = scan_command(buffer, pos)
        if not end:
            return self._unended_line()
        self._pos = end
        if self.trace is not None:
            self.trace("C", buffer[pos:end])
        if self._skipped or end - pos > limits.COMMAND_LINE:
            return self._long_line(end - pos)
        if flags & (CONTROL | NOT_UTF8):
            return self._refuse(BAD_CHARACTERS)
        handler = self._commands.get(verb)
        if handler is None:
            return self._unknown(verb)
        try:
            return handler(self, argument)
        except CommandError as error:
            return self._refuse(error.reply)

    def _unknown(self, verb: str) -> Event:
        if self._commands is _TURNED_AWAY:
            return self._refuse(BAD_SEQUENCE)
        return self._refuse(NOT_IMPLEMENTED if verb in _NOT_IMPLEMENTED else UNRECOGNIZED)

    def reply(self, reply: Reply | None = None) -> None:
        """Answer the event that waits; None is its standard reply.  RuntimeError when none waits."""
        settle = self._settle
        if settle is None:
            raise RuntimeError("no event waits for a reply")
        self._settle = None
        settle(self, reply)

    def reply_each(self, replies: Sequence[Reply | None]) -> None:
        """Answer an ended LMTP message, one reply per accepted recipient, in their order (RFC 2033 4.2).

        ValueError when the count differs.
        """
        if self._receiver is None or self._settle is None:
            raise RuntimeError("no message waits for its replies")
        if len(replies) != len(self.recipients):
            raise ValueError(f"{len(self.recipients)} replies are due, not {len(replies)}")
        self._settle = None
        refusal = self._receiver.refusal
        for reply in replies:
            self._say(refusal or reply or MESSAGE_OK)
        self._end_message()

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

    def reset_transaction(self) -> None:
        """Forget sender, recipients, their parameters and the chunks of a message."""
        self.sender = None
        self._chunks = None
        self.mail_params = _NO_PARAMS
        self._tried_recipients = False
        # New lists: a session's context may still hold the old ones.
        if self.recipients:
            self.recipients = []
            self.rcpt_params = []

    # Lines

    def _unended_line(self) -> Event | None:
        waiting = len(self._buffer) - self._pos
        if self._skipped + waiting > limits.COMMAND_LINE:
            # The line will be refused: count it, and keep only what may be half of its end.
            keep = 1 if self._buffer.endswith(b"\r") else 0
            self._skipped += waiting - keep
            self._buffer = b"\r" if keep else b""
            self._pos = 0
            if self._skipped + keep > limits.COMMAND_LINE_FLOOD:
                return self._flood()
        return None

    def _long_line(self, length: int) -> Event:
        length += self._skipped
        self._skipped = 0
        if length > limits.COMMAND_LINE_FLOOD:
            return self._flood()
        return self._refuse(LINE_TOO_LONG)

    def _flood(self) -> Event:
        self.errors += 1
        self.say(TOO_MANY_ERRORS)
        return ANSWERED

    # Replies

    def _say(self, reply: Reply) -> None:
        wire = reply.encode()
        self._out.append(wire)
        if self.trace is not None:
            self.trace("S", wire)
        if reply.code == 421:
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

    def _wait(self, event: Event, settle: Callable[[ServerProtocol, Reply | None], None]) -> Event:
        self._event = event
        self._settle = settle
        return event

    def _settle_plain(self, reply: Reply | None) -> None:
        self._say(OK if reply is None else reply)

    # Hello

    def _helo(self, argument: str) -> Event:
        return self._greeted("HELO", argument)

    def _ehlo(self, argument: str) -> Event:
        return self._greeted("EHLO", argument)

    def _lhlo(self, argument: str) -> Event:
        return self._greeted("LHLO", argument)

    def _greeted(self, verb: str, argument: str) -> Event:
        if self.lmtp != (verb == "LHLO"):
            return self._refuse(WRONG_HELLO_LMTP if self.lmtp else WRONG_HELLO_SMTP)
        name = parse_hello(argument, self._options.strict)
        return self._wait(Hello(verb, name, bool(self.hello)), ServerProtocol._settle_hello)

    def _settle_hello(self, reply: Reply | None) -> None:
        event = self._event
        assert isinstance(event, Hello)
        self.must_flush = True
        if reply is not None and not reply.accepted:
            self._say(reply)  # a refused greeting changes nothing (RFC 5321 4.1.4)
            return
        self.reset_transaction()
        self.hello = event.name
        self.hello_verb = event.verb
        profile = self._profile
        extended = event.verb != "HELO"
        self._capabilities = profile.extended if extended else profile.basic
        # A session may word the answer to HELO; EHLO's lines are a promise of the protocol's own.
        self._say(profile.ehlo if extended else profile.hello if reply is None else reply)

    # The transaction

    def _mail(self, argument: str) -> Event:
        if not self.hello:
            return self._refuse(HELLO_FIRST)
        if self.sender is not None:
            return self._refuse(NESTED_MAIL)
        options = self._options
        sender, params = parse_mail(argument, self._capabilities.mail, options.max_message_bytes, options.strict)
        event = self._event = MailFrom(sender, params)
        self._settle = ServerProtocol._settle_mail
        return event

    def _settle_mail(self, reply: Reply | None) -> None:
        event = self._event
        assert type(event) is MailFrom
        if reply is None or reply.accepted:
            self.sender = event.sender
            self.mail_params = event.params
        self._say(SENDER_OK if reply is None else reply)

    def _rcpt(self, argument: str) -> Event:
        if self.sender is None:
            return self._refuse(MAIL_FIRST if self.hello else HELLO_FIRST)
        if self._chunks is not None:
            return self._refuse(MIXED_WITH_BDAT)
        self._tried_recipients = True
        options = self._options
        recipient, params = parse_rcpt(argument, self._capabilities.rcpt, self.mail_params.smtputf8, options.strict)
        if len(self.recipients) >= options.max_recipients > 0:
            # Not an error of the peer: RFC 5321 4.5.3.1.10 lets it send the others in another transaction.
            self._say(TOO_MANY_RECIPIENTS)
            return ANSWERED
        event = self._event = RcptTo(recipient, params)
        self._settle = ServerProtocol._settle_rcpt
        return event

    def _settle_rcpt(self, reply: Reply | None) -> None:
        event = self._event
        assert type(event) is RcptTo
        if reply is None or reply.accepted:
            self.recipients.append(event.recipient)
            self.rcpt_params.append(event.params)
        self._say(RECIPIENT_OK if reply is None else reply)

    def _data(self, argument: str) -> Event:
        if argument:
            return self._refuse(NO_ARGUMENTS)
        if not self.recipients:
            return self._refuse(self._no_recipients())
        if self._chunks is not None:
            return self._refuse(MIXED_WITH_BDAT)
        if self.mail_params.body == "BINARYMIME":
            return self._refuse(BINARY_NEEDS_BDAT)
        self._receiver = DataReceiver(self._options, self._eight_bit_ok)
        self._say(START_MAIL_INPUT)
        self.must_flush = True
        return ANSWERED

    def _no_recipients(self) -> Reply:
        if self.sender is None:
            return MAIL_FIRST if self.hello else HELLO_FIRST
        return NO_VALID_RECIPIENTS if self._tried_recipients else NO_RECIPIENTS

    @property
    def _eight_bit_ok(self) -> bool:
        return self.mail_params.body in ("8BITMIME", "BINARYMIME") or self.mail_params.smtputf8

    def _bdat(self, argument: str) -> Event:
        try:
            size, last = parse_bdat(argument)
        except CommandError as error:
            # Where this chunk ends cannot be known, so what follows cannot be told from commands.
            self._refuse(error.reply)
            self._close()
            return ANSWERED
        if not self.recipients:
            self._discard = size
            return ANSWERED if size else self._refuse(self._no_recipients())
        chunks = self._chunks
        if chunks is None:
            binary = self.mail_params.body == "BINARYMIME"
            chunks = self._chunks = ChunkReceiver(self._options, self._eight_bit_ok, binary)
        chunks.begin(size, last)
        self._receiver = chunks
        # An empty chunk has nothing to wait for.
        return ANSWERED if size else self._take_chunk(chunks)

    def _discard_chunk(self) -> Event | None:
        end = min(len(self._buffer), self._pos + self._discard)
        self._discard -= end - self._pos
        self._pos = end
        return None if self._discard else self._refuse(self._no_recipients())

    def _take_chunk(self, chunks: ChunkReceiver) -> Event:
        start = self._pos
        payload, self._pos = chunks.receive(self._buffer, start)
        if chunks.ended:
            self._settle = ServerProtocol._settle_body
        elif not chunks.left:
            self._receiver = None
            self._say(chunks.refusal or CHUNK_OK)
            self.must_flush = True
        return Body(payload, chunks.ended, chunks.refusal, self._pos - start)

    def _next_body(self, receiver: DataReceiver | ChunkReceiver) -> Event | None:
        if self._pos >= len(self._buffer):
            return None
        if type(receiver) is ChunkReceiver:
            return self._take_chunk(receiver)
        start = self._pos
        payload, self._pos = receiver.receive(self._buffer, start)
        if receiver.ended:
            self._settle = ServerProtocol._settle_body
        return Body(payload, receiver.ended, receiver.refusal, self._pos - start)

    def _settle_body(self, reply: Reply | None) -> None:
        assert self._receiver is not None
        answer = self._receiver.refusal or reply or MESSAGE_OK
        for _ in range(len(self.recipients) if self.lmtp else 1):
            self._say(answer)
        self._end_message()

    def _end_message(self) -> None:
        self._receiver = None
        self.must_flush = True
        self.reset_transaction()

    def _rset(self, argument: str) -> Event:
        if argument:
            return self._refuse(NO_ARGUMENTS)
        self.reset_transaction()
        return self._wait(RESET, ServerProtocol._settle_plain)

    # The rest

    def _noop(self, argument: str) -> Event:
        self._say(OK)
        self.must_flush = True
        return ANSWERED

    def _help(self, argument: str) -> Event:
        self._say(self._profile.help)
        self.must_flush = True
        return ANSWERED

    def _vrfy(self, argument: str) -> Event:
        if not argument:
            return self._refuse(VRFY_NEEDS_ARGUMENT)
        return self._wait(Verify(argument), ServerProtocol._settle_vrfy)

    def _settle_vrfy(self, reply: Reply | None) -> None:
        self._say(VRFY_CANNOT if reply is None else reply)
        self.must_flush = True

    def _quit(self, argument: str) -> Event:
        if argument:
            return self._refuse(NO_ARGUMENTS)
        self._say(BYE)
        self.quit = True
        self._close()
        return ANSWERED


_COMMANDS: Final[Mapping[str, Callable[[ServerProtocol, str], Event]]] = {
    "HELO": ServerProtocol._helo,
    "EHLO": ServerProtocol._ehlo,
    "LHLO": ServerProtocol._lhlo,
    "MAIL": ServerProtocol._mail,
    "RCPT": ServerProtocol._rcpt,
    "DATA": ServerProtocol._data,
    "BDAT": ServerProtocol._bdat,
    "RSET": ServerProtocol._rset,
    "NOOP": ServerProtocol._noop,
    "VRFY": ServerProtocol._vrfy,
    "HELP": ServerProtocol._help,
    "QUIT": ServerProtocol._quit,
}

_TURNED_AWAY: Final[Mapping[str, Callable[[ServerProtocol, str], Event]]] = {"QUIT": ServerProtocol._quit}

# Verbs of RFC 5321 and its elders that exist elsewhere: 502, not 500 (RFC 5321 4.2.4).
_NOT_IMPLEMENTED: Final = frozenset(
    {"EXPN", "TURN", "SEND", "SOML", "SAML", "STARTTLS", "AUTH", "BDAT", "ETRN", "XFORWARD", "XCLIENT"}
)
