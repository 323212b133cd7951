"""The client's side of SMTP and LMTP as a state machine (RFC 5321 4.1.4, RFC 2033).

    hello(), mail(...), ... -> data_to_send();  receive_data(bytes) -> next_event()

A method queues one command and returns it; nothing is queued when it raises.  The command is written as soon as it may be, and
`next_event` gives it back when it is done.  Whole messages are sent by `ClientProtocol.transaction`.

    greeting -> hello -> [start_tls -> begin_tls -> hello] -> [auth] -> [MAIL -> RCPT ... -> DATA -> body] -> ... -> quit
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

from ..extensions import MailParams, RcptParams
from ..reply import NO_VALID_RECIPIENTS, DataTooLarge, Reply
from ..textproto import DotEncoder
from .client_access import ClientAccess
from .exchange import Exchange
from .requests import CanonicalText, Command, Envelope, Piece, Unsendable, command_line, recipient_line, sender_line
from .transaction import Transaction

__all__ = ["ClientProtocol"]

_NO_MAIL_PARAMS: Final = MailParams()
_NO_RCPT_PARAMS: Final = RcptParams()
_VERB: Final = re.compile(r"[A-Z][A-Z0-9]{1,15}")
_OWN_VERBS: Final = frozenset(
    {"HELO", "EHLO", "LHLO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "BDAT", "RSET", "QUIT", "XCLIENT", "XFORWARD"}
)


class ClientProtocol(ClientAccess):
    """One connection's protocol.  It begins by waiting for the greeting, and commands may be queued before that has come.

    Methods that queue a command raise, before anything of it is queued:

    - ProtocolError (`Unsendable`, AddressError, ForwardError, SASLError) for an argument that no command may hold, and for
      what needs an extension that the server did not offer;
    - SMTPError when the server has closed with 421, or turned us away by its greeting;
    - RuntimeError for what the state does not allow.

    Args:
        lmtp: speak LMTP (RFC 2033).
        hello_name: the domain or address literal that the client calls itself.
        pipelining: False never to send a command before the last one is answered, for servers that offer PIPELINING and fail at it.
    """

    __slots__ = ("_encoder", "_text")

    def __init__(self, *, lmtp: bool = False, hello_name: str = "localhost", pipelining: bool = True) -> None:
        super().__init__(lmtp, hello_name, pipelining)
        self._text = CanonicalText()
        self._encoder: Final = DotEncoder()

    # The transaction

    def transaction(
        self,
        sender: str,
        recipients: Iterable[str | tuple[str, RcptParams]],
        params: MailParams = _NO_MAIL_PARAMS,
        *,
        chunking: bool = False,
    ) -> Transaction:
        """Begin to send one message: MAIL, RCPT for each recipient, and DATA, in one group where the server allows that.

        Args:
            sender: the mailbox, "" for the null reverse-path.
            recipients: mailboxes, at least one, alone or with parameters.  The same may come twice.
            params: the parameters of MAIL.
            chunking: send by BDAT (RFC 3030) if the server offers CHUNKING; with BODY=BINARYMIME that is done anyway.
        """
        self._check_idle()
        envelope = Envelope(params)
        mail = self._mail_command(sender, envelope)
        rcpts = []
        for each in recipients:
            recipient, rcpt_params = (each, _NO_RCPT_PARAMS) if isinstance(each, str) else each
            rcpts.append(self._rcpt_command(recipient, rcpt_params, envelope))
        if not rcpts:
            raise Unsendable("no recipients")
        binary = params.body == "BINARYMIME"
        chunked = binary or (chunking and "CHUNKING" in self._extensions)
        self._begin(mail)
        for command in rcpts:
            self._add_recipient(command)
        return Transaction(self, mail, rcpts, None if chunked else self.data(), binary)

    def mail(self, sender: str, params: MailParams = _NO_MAIL_PARAMS) -> Command:
        """Begin a transaction.  If the last one came to nothing, RSET goes before it.

        Raises:
            DataTooLarge: the announced size is more than the server takes (RFC 1870 section 6).
        """
        self._check_idle()
        return self._begin(self._mail_command(sender, Envelope(params)))

    def rcpt(self, recipient: str, params: RcptParams = _NO_RCPT_PARAMS) -> Command:
        """Add a recipient."""
        envelope = self._transaction_now()
        if envelope.body:
            raise RuntimeError("the message has begun")
        return self._add_recipient(self._rcpt_command(recipient, params, envelope))

    def data(self) -> Command:
        """Announce the message.  When `next_event` gives the command with `wants_body`, call `send_data` and `end_data`.

        If no recipient was accepted and the server wants the message all the same, an empty one is sent
        and the command is refused (RFC 2920 3.1).
        """
        envelope = self._transaction_now()
        if envelope.body or not envelope.tried:
            raise RuntimeError("the message has begun" if envelope.body else "no recipients")
        if envelope.params.body == "BINARYMIME":
            raise Unsendable("BINARYMIME needs BDAT")
        envelope.body = "DATA"
        return self._ask(Command("DATA", (b"DATA\r\n",), ClientProtocol._settle_data, envelope))

    def send_data(self, chunk: bytes) -> None:
        """Write a piece of the message, in which any CR, LF or CR LF ends a line."""
        if self._body is None:
            raise RuntimeError("the server does not wait for a message")
        self._write_text(self._text.feed(chunk))

    def end_data(self) -> None:
        """Write the end of the message."""
        command = self._body
        if command is None:
            raise RuntimeError("the server does not wait for a message")
        self._write_text(self._text.finish())
        self._end_body(command)
        self._premature = self._reader.buffered > 0
        self._open = None  # RFC 5321 4.1.1.4: whatever the reply, the server forgets sender and recipients
        self._release()

    def bdat(self, chunk: Piece, last: bool = False) -> Command:
        """Send a chunk of the message, octet by octet as it is (RFC 3030 section 2)."""
        envelope = self._transaction_now()
        self._require("CHUNKING")
        if envelope.body == "DATA" or not envelope.tried:
            raise RuntimeError("the message is sent by DATA" if envelope.body else "no recipients")
        size = chunk.nbytes if isinstance(chunk, memoryview) else len(chunk)
        line = b"BDAT %d%b\r\n" % (size, b" LAST" if last else b"")
        command = Command("BDAT", (line, chunk) if size else (line,), ClientProtocol._settle_chunk, envelope)
        command.last = last
        envelope.body = "BDAT"
        envelope.closed = last
        return self._ask(command)

    def _mail_command(self, sender: str, envelope: Envelope) -> Command:
        params = envelope.params
        most = self.max_message_size
        if most is not None and params.size is not None and params.size > most:
            raise DataTooLarge()
        line = sender_line(sender, params, self._extensions)
        return Command("MAIL", (line,), ClientProtocol._settle_mail, envelope)

    def _rcpt_command(self, recipient: str, params: RcptParams, envelope: Envelope) -> Command:
        line = recipient_line(recipient, params, envelope.params.smtputf8, self._extensions)
        return Command("RCPT", (line,), Exchange._settle_plain, envelope, recipient)

    def _begin(self, command: Command) -> Command:
        self._envelope = command.envelope
        return self._ask(command)

    def _add_recipient(self, command: Command) -> Command:
        assert command.envelope is not None
        command.envelope.tried = True
        command.envelope.waiting += 1
        return self._ask(command)

    def _settle_mail(self, command: Command, reply: Reply) -> bool:
        self._expect_done(reply)
        # 503 says that there is a sender already.
        if not reply.accepted and reply.code != 503 and self._open is command.envelope:
            self._open = None
        return True

    def _settle_data(self, command: Command, reply: Reply) -> bool:
        envelope = command.envelope
        assert envelope is not None
        if not (command.wants_body or command.last):
            return not self._go_ahead(command, envelope, reply)
        if command.wants_body and reply.accepted:
            self._fail("a reply to a message that has not ended")
        self._expect_done(reply)
        if command.wants_body:
            self._finish(command, reply)
            self._abandon()  # there is no way to break off a message but to close
            return False
        if not envelope.accepted:
            command.reply = NO_VALID_RECIPIENTS if reply.accepted else reply
            return True
        command.replies.append(reply)
        return not self.lmtp or len(command.replies) == envelope.accepted

    def _go_ahead(self, command: Command, envelope: Envelope, reply: Reply) -> bool:
        """Take the first reply to DATA; whether another one follows."""
        if not reply.accepted:
            return False
        if reply.code < 300:
            self._fail("a reply of the wrong class")
        if envelope.hopeless is None:
            command.wants_body = True
            self._body = command
            self._text = CanonicalText()
            self._events.append(command)
        elif self.lmtp or envelope.accepted:
            # RFC 2033 4.2 forbids the first, and as many replies would follow as there are recipients: none.  The second
            # has recipients but no sender; an empty message would reach them.
            self._fail("a message is wanted that cannot be sent")
        else:
            self._end_body(command)
        return True

    def _write_text(self, text: bytes) -> None:
        piece = self._encoder.feed(text)
        if piece:
            self._out.append(piece)

    def _end_body(self, command: Command) -> None:
        self._out.append(self._encoder.finish())
        self._body = None
        command.wants_body = False
        command.last = True
        assert command.envelope is not None
        command.envelope.closed = True

    def _settle_chunk(self, command: Command, reply: Reply) -> bool:
        self._expect_done(reply)
        envelope = command.envelope
        assert envelope is not None
        if command.last:
            command.replies.append(reply)
            if self.lmtp and len(command.replies) < envelope.accepted:
                return False
            if reply.accepted and self._open is envelope:
                self._open = None
        return True

    def reset(self) -> Command:
        """Say RSET: the transaction ends."""
        self._check_between()
        self._end_envelope()
        return self._ask(Command("RSET", (b"RSET\r\n",), Exchange._settle_plain))

    # The rest

    def noop(self) -> Command:
        """Say NOOP."""
        return self._ask_plain("NOOP")

    def verify(self, name: str) -> Command:
        """Say VRFY (RFC 5321 3.5.1); one that is not ASCII needs SMTPUTF8 (RFC 6531 3.7.4.2)."""
        return self._ask_name("VRFY", name)

    def expand(self, name: str) -> Command:
        """Say EXPN (RFC 5321 3.5.1), as `verify`."""
        return self._ask_name("EXPN", name)

    def help(self, topic: str = "") -> Command:
        """Say HELP."""
        return self._ask_plain("HELP", topic)

    def command(self, verb: str, argument: str = "") -> Command:
        """Say a verb that this class knows nothing of, ETRN for example.  Its reply must be the only one, and not ask for more."""
        verb = verb.upper()
        if _VERB.fullmatch(verb) is None or verb in _OWN_VERBS:
            raise Unsendable("not a verb for this method")
        return self._ask_plain(verb, argument)

    def quit(self) -> Command:
        """Say QUIT.  Nothing can be said after it."""
        self._check_between(turned_away=True)
        return self._ask_alone(Command("QUIT", (b"QUIT\r\n",), ClientProtocol._settle_quit))

    def _settle_quit(self, command: Command, reply: Reply) -> bool:
        self.closing = True
        return True

    def _ask_name(self, verb: str, name: str) -> Command:
        if not name:
            raise Unsendable(f"{verb} needs an argument")
        if not name.isascii():
            self._require("SMTPUTF8")
            name += " SMTPUTF8"
        return self._ask_plain(verb, name, ascii_only=False)

    def _ask_plain(self, verb: str, argument: str = "", *, ascii_only: bool = True) -> Command:
        if ascii_only and not argument.isascii():
            raise Unsendable("an argument that is not ASCII")
        self._check_between()
        return self._ask(Command(verb, (command_line(verb, argument),), Exchange._settle_plain))

    def _transaction_now(self) -> Envelope:
        self._check_between()
        if self._envelope is None or self._envelope.closed:
            raise RuntimeError("no transaction")
        return self._envelope
