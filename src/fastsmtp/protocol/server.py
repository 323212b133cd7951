"""The server's side of SMTP and LMTP as a state machine (RFC 5321 4.1.4, RFC 2033).

    receive_data(bytes) -> next_event() -> reply(...) -> data_to_send()

A command that the state does not allow never becomes an event.  While an event waits for its reply, `next_event` gives None, so
the next command is not looked at before the last one is answered: order is structural, and a shell that
stops asking exerts back-pressure.

    greeting -> hello -> [MAIL -> RCPT ... -> DATA -> body] -> ... -> QUIT
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Final

from ..address import is_domain
from ..extensions import Capabilities, CapabilityCache, MailParams, Offer, RcptParams
from ..limits import AUTH_LINE, COMMAND_LINE
from ..options import ServerOptions
from ..reply import (
    BAD_CHARACTERS,
    BAD_SEQUENCE,
    BINARY_NEEDS_BDAT,
    BYE,
    CHUNK_OK,
    ETRN_SYNTAX,
    EXPN_CANNOT,
    EXPN_NEEDS_ARGUMENT,
    HELLO_FIRST,
    LINE_TOO_LONG,
    MAIL_FIRST,
    MESSAGE_OK,
    MIXED_WITH_BDAT,
    NESTED_MAIL,
    NO_ARGUMENTS,
    NO_HTTP,
    NO_RECIPIENTS,
    NO_VALID_RECIPIENTS,
    NOT_IMPLEMENTED,
    OK,
    QUEUING_STARTED,
    RECIPIENT_OK,
    SENDER_OK,
    START_MAIL_INPUT,
    TLS_REQUIRED,
    TOO_MANY_RECIPIENTS,
    UNRECOGNIZED,
    VRFY_CANNOT,
    VRFY_NEEDS_ARGUMENT,
    EnhancedCode,
    Reply,
)
from ..textproto import CONTROL, NOT_UTF8, scan_command
from .access import AccessProtocol
from .body import ChunkReceiver, DataReceiver
from .command import CommandError, parse_bdat, parse_mail, parse_rcpt
from .events import ANSWERED, RESET, Body, Event, Expand, MailFrom, RcptTo, StartQueue, Verify

__all__ = ["ServerProfile", "ServerProtocol"]

_NO_PARAMS: Final = MailParams()
_MOST_KINDS: Final = 64  # kinds of connection whose EHLO reply is kept


class ServerProfile:
    """What all connections of one server share: its options and what follows from them, computed once.

    Args:
        options: the server's options.

    Attributes:
        offer: what a connection is offered that is nothing special.
        alike: no connection is anything special, unless its session has it so.
    """

    __slots__ = (
        "_cache",
        "_ehlo",
        "_extended",
        "_replies",
        "alike",
        "basic",
        "commands",
        "greeting",
        "hello",
        "help",
        "offer",
        "options",
        "plaintext_commands",
    )

    def __init__(self, options: ServerOptions) -> None:
        self.options: Final = options
        self.alike = False
        self.offer: Final = Offer(options)
        self.basic: Final = Capabilities(self.offer, extended=False)
        self._cache: Final = CapabilityCache()
        self._extended: Final = self._cache(self.offer)
        self._ehlo: Final = self._reply(self._extended)
        self._replies: Final[dict[Capabilities, Reply]] = {}
        words = options.greeting or ("LMTP ready" if options.lmtp else "ESMTP ready")
        self.greeting: Final = Reply(220, EnhancedCode.NONE, f"{options.domain} {words}")
        self.hello: Final = Reply(250, EnhancedCode.NONE, options.domain)
        # RFC 3207 section 4: what a server that requires TLS still does without.
        self.commands: Final = _COMMANDS
        # BDAT is not done either, but its chunk is taken for one.
        before_tls = ("HELO", "EHLO", "LHLO", "STARTTLS", "NOOP", "RSET", "QUIT", "XCLIENT", "BDAT")
        self.plaintext_commands: Final = {
            verb: _COMMANDS[verb] for verb in before_tls if verb != "BDAT" or options.chunking
        }
        off = {
            verb for verb, on in (("BDAT", options.chunking), ("EXPN", options.expn), ("ETRN", options.etrn)) if not on
        }
        unsaid = {*off, "STARTTLS", "AUTH", "XFORWARD", "XCLIENT", *(("HELO", "EHLO") if options.lmtp else ("LHLO",))}
        self.help: Final = Reply(
            214, EnhancedCode(2, 0, 0), "Commands: " + " ".join(sorted(self.commands.keys() - unsaid))
        )

    def capabilities(self, offer: Offer) -> tuple[Capabilities, Reply]:
        """What this connection may use, and the answer to EHLO or LHLO that says so."""
        if offer is self.offer and not self._extended.fleeting:
            return self._extended, self._ehlo
        found = self._cache(offer)
        if found.fleeting:
            return found, self._reply(found)
        reply = self._replies.get(found)
        if reply is None:
            if len(self._replies) >= _MOST_KINDS:
                self._replies.clear()
            reply = self._replies[found] = self._reply(found)
        return found, reply

    def _reply(self, capabilities: Capabilities) -> Reply:
        return Reply(250, EnhancedCode.NONE, "\n".join((self.options.domain, *capabilities.lines)))


class ServerProtocol(AccessProtocol):
    """One connection's protocol.

    Attributes:
        quit: it was the client who ended it.
        mail_params: the parameters of the transaction's MAIL.
        recipients: the forward-paths accepted so far.
        rcpt_params: their parameters, in the same order.
    """

    __slots__ = (
        "_chunks",
        "_commands",
        "_discard",
        "_receiver",
        "_tried_recipients",
        "mail_params",
        "quit",
        "rcpt_params",
        "recipients",
    )

    def __init__(self, profile: ServerProfile) -> None:
        AccessProtocol.__init__(self, profile)
        self._receiver: DataReceiver | ChunkReceiver | None = None  # whose octets arrive now
        self._chunks: ChunkReceiver | None = None  # the message that comes in chunks, between them too
        self._discard = 0  # octets of a chunk that belongs to no message
        self._tried_recipients = False
        self._commands: Mapping[str, Callable[[ServerProtocol, str], Event]] = profile.commands
        self.quit = False
        self.mail_params = _NO_PARAMS
        self.recipients: list[str] = []
        self.rcpt_params: list[RcptParams] = []

    # Input and output

    def greet(self, reply: Reply | None = None) -> None:
        """Say the greeting: 220, or the refusal given: 421 closes, after 554 only QUIT is done (RFC 5321 3.1)."""
        profile = self._profile
        if reply is None:
            reply = profile.greeting
            self._commands = (
                profile.plaintext_commands if self._options.require_tls and not self.offer.tls else profile.commands
            )
        else:
            self._commands = _TURNED_AWAY
        self._say(reply)
        self.must_flush = True

    @property
    def refusal(self) -> Reply | None:
        """Why the message that arrives is refused, or None."""
        return None if self._receiver is None else self._receiver.refusal

    @property
    def in_body(self) -> bool:
        """The peer is sending a message, or one waits for its reply."""
        return self._receiver is not None or self._chunks is not None

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
        if self._discard or self._responding:
            return self._discard_chunk() if self._discard else self._next_response()
        end, verb, argument, flags = scan_command(buffer, pos)
        if not end:
            word = buffer[pos : pos + 5].upper()
            if word[:4] == b"BDAT" and len(buffer) - pos > COMMAND_LINE and self._bdat_counts:
                return self._unreadable("BDAT", LINE_TOO_LONG)
            return self._unended_line(AUTH_LINE if word == b"AUTH " else COMMAND_LINE)
        self._pos = end
        if self.trace is not None:
            self.trace("C", b"***\r\n" if self._skipped else _masked(buffer[pos:end]))
        if (end - pos > COMMAND_LINE and (verb != "AUTH" or end - pos > AUTH_LINE)) or self._skipped:
            if verb[:4] == "BDAT" and self._bdat_counts:
                return self._unreadable(verb, LINE_TOO_LONG)
            return self._long_line(end - pos)
        if flags & (CONTROL | NOT_UTF8):
            return self._unreadable(verb, BAD_CHARACTERS)
        handler = self._commands.get(verb)
        if handler is None:
            return self._unknown(verb)
        try:
            return handler(self, argument)
        except CommandError as error:
            return self._refuse(error.reply)

    @property
    def _bdat_counts(self) -> bool:
        """BDAT is known here, and where the line begins is where it begins."""
        return self._options.chunking and not self._skipped

    def _unreadable(self, verb: str, reply: Reply) -> Event:
        """Refuse a line whatever it says; behind a BDAT end the connection too.

        Where its chunk ends cannot be known, so what follows cannot be told from commands.
        """
        self._refuse(reply)
        if verb[:4] == "BDAT" and self._options.chunking:
            self._close()
        return ANSWERED

    def _unknown(self, verb: str) -> Event:
        if self._commands is _TURNED_AWAY:
            return self._refuse(BAD_SEQUENCE)
        if self._commands is not self._profile.commands and verb in self._profile.commands:
            return self._refuse(TLS_REQUIRED)
        if verb in _HTTP:
            return self._refuse(NO_HTTP)
        return self._refuse(NOT_IMPLEMENTED if verb in _NOT_IMPLEMENTED else UNRECOGNIZED)

    def reply_each(self, replies: Sequence[Reply | None]) -> None:
        """Answer an ended LMTP message, one reply per accepted recipient, in their order (RFC 2033 4.2).

        A 421 among them is said as 451, and once more behind the last.  ValueError when the count differs.
        """
        if self._receiver is None or self._settle is None:
            raise RuntimeError("no message waits for its replies")
        if len(replies) != len(self.recipients):
            raise ValueError(f"{len(self.recipients)} replies are due, not {len(replies)}")
        self._settle = None
        refusal = self._receiver.refusal
        self._say_each([refusal or reply or MESSAGE_OK for reply in replies])
        self._end_message()

    def _say_each(self, replies: Sequence[Reply]) -> None:
        """Answer each recipient of LMTP.

        A 421 is the last that a client reads, and the end of all that it waits for (RFC 5321 3.8): it would send again what others
        have accepted.  So the recipient gets it as 451, and the connection ends behind the last of them.
        """
        end = None
        for reply in replies:
            if reply.code == 421:
                end = reply
                reply = replace(reply, code=451)
            self._say(reply)
        if end is not None:
            self._say(end)

    def reset_transaction(self) -> None:
        """Forget sender, recipients, their parameters, XFORWARD and the chunks of a message."""
        self.sender = None
        self.xforward = None
        self._chunks = None
        self.mail_params = _NO_PARAMS
        self._tried_recipients = False
        # New lists: a session's context may still hold the old ones.
        if self.recipients:
            self.recipients = []
            self.rcpt_params = []

    # The transaction

    def _mail(self, argument: str) -> Event:
        if not self.hello:
            return self._refuse(HELLO_FIRST)
        if self.sender is not None:
            return self._refuse(NESTED_MAIL)
        options = self._options
        sender, params = parse_mail(argument, self._capabilities.mail, options.max_message_bytes, options.strict)
        if params.auth and not self.authenticated:
            params = replace(params, auth="")  # whoever says so is not trusted (RFC 4954 section 5)
        event = self._event = MailFrom(sender, params)
        self._settle = _SETTLE_MAIL
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
        self._settle = _SETTLE_RCPT
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
        if self._commands is not self._profile.commands:
            return BAD_SEQUENCE if self._commands is _TURNED_AWAY else TLS_REQUIRED
        if self.sender is None:
            return MAIL_FIRST if self.hello else HELLO_FIRST
        return NO_VALID_RECIPIENTS if self._tried_recipients else NO_RECIPIENTS

    @property
    def _eight_bit_ok(self) -> bool:
        return self.mail_params.body in ("8BITMIME", "BINARYMIME") or self.mail_params.smtputf8

    def _bdat(self, argument: str) -> Event:
        if not self._options.chunking:
            return self._refuse(NOT_IMPLEMENTED)
        try:
            size, last = parse_bdat(argument)
        except CommandError as error:
            return self._unreadable("BDAT", error.reply)
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
            self._settle = _SETTLE_BODY
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
            self._settle = _SETTLE_BODY
        return Body(payload, receiver.ended, receiver.refusal, self._pos - start)

    def _settle_body(self, reply: Reply | None) -> None:
        assert self._receiver is not None
        answer = self._receiver.refusal or reply or MESSAGE_OK
        if self.lmtp:
            self._say_each([answer] * len(self.recipients))
        else:
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

    def _expn(self, argument: str) -> Event:
        if not self._options.expn:
            return self._refuse(NOT_IMPLEMENTED)
        if not argument:
            return self._refuse(EXPN_NEEDS_ARGUMENT)
        return self._wait(Expand(argument), ServerProtocol._settle_expn)

    def _settle_expn(self, reply: Reply | None) -> None:
        self._say(EXPN_CANNOT if reply is None else reply)
        self.must_flush = True

    def _etrn(self, argument: str) -> Event:
        if not self._options.etrn:
            return self._refuse(NOT_IMPLEMENTED)
        if not self.hello:
            return self._refuse(HELLO_FIRST)
        if self.sender is not None:
            return self._refuse(BAD_SEQUENCE)
        if not (is_domain(argument.removeprefix("@")) or (argument.startswith("#") and len(argument) > 1)):
            return self._refuse(ETRN_SYNTAX)
        return self._wait(StartQueue(argument), ServerProtocol._settle_etrn)

    def _settle_etrn(self, reply: Reply | None) -> None:
        self._say(QUEUING_STARTED if reply is None else reply)
        self.must_flush = True

    def begin_tls(self) -> None:
        """TLS begins: what came in plaintext is dropped and all that was said is forgotten (RFC 3207 section 4.2)."""
        super().begin_tls()
        self._commands = self._profile.commands

    def _quit(self, argument: str) -> Event:
        if argument:
            return self._refuse(NO_ARGUMENTS)
        self._say(BYE)
        self.quit = True
        self._close()
        return ANSWERED


# Looked up once, not for each command.
_SETTLE_MAIL: Final = ServerProtocol._settle_mail
_SETTLE_RCPT: Final = ServerProtocol._settle_rcpt
_SETTLE_BODY: Final = ServerProtocol._settle_body

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
    "EXPN": ServerProtocol._expn,
    "ETRN": ServerProtocol._etrn,
    "STARTTLS": ServerProtocol._starttls,
    "AUTH": ServerProtocol._auth,
    "XFORWARD": ServerProtocol._xforward,
    "XCLIENT": ServerProtocol._xclient,
    "QUIT": ServerProtocol._quit,
}

_TURNED_AWAY: Final[Mapping[str, Callable[[ServerProtocol, str], Event]]] = {
    "QUIT": ServerProtocol._quit,
    "BDAT": ServerProtocol._bdat,  # to take its chunk for one
}

# Verbs of RFC 5321 and its elders that exist elsewhere: 502, not 500 (RFC 5321 4.2.4).
_NOT_IMPLEMENTED: Final = frozenset({"TURN", "SEND", "SOML", "SAML"})
# A browser was made to speak to us, and the commands are in what it posts: nothing more is read, as Postfix does.
_HTTP: Final = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"})


# In letters of one case: an initial response that stands in the mechanism's place has both.
_SHOWN: Final = re.compile(rb"[A-Z0-9_-]{1,20}|[a-z0-9_-]{1,20}")


def _masked(line: bytes) -> bytes:
    """A line for the trace, without an initial response's secrets."""
    if line.lstrip()[:4].upper() != b"AUTH":
        return line
    verb, *rest = line.split(maxsplit=2)
    shown = [verb] if verb.upper() == b"AUTH" else []
    if shown and rest and _SHOWN.fullmatch(rest[0]) is not None:
        shown.append(rest[0])
    return b" ".join((*shown, b"***\r\n"))
