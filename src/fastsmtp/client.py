"""The asyncio client: SMTP and LMTP, over TCP and Unix sockets, plain and under TLS.

    async with Client("mx.example.org", starttls="required") as client:
        for delivery in await client.send_message("a@example.org", ["b@example.org"], message):
            print(delivery.recipient, delivery.reply)

What goes wrong is raised:

    SMTPError           the server refused; it carries the reply
    ConnectionLost      the connection is gone, with what is known of a message that was on its way
      TimedOut          because the server was too slow
      TLSFailed         because there was no TLS
    ProtocolError       an argument cannot be sent, or needs what the server does not offer; nothing was sent
    OSError             no connection; all of ConnectionLost are OSErrors too
"""

from __future__ import annotations

import ssl
from collections.abc import Iterable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Any, Final, TypeAlias

from .client_base import ClientBase
from .client_body import Message, MessageReader, Outgoing
from .client_connection import ClientConnection, ConnectionLost, TimedOut, TLSFailed
from .client_options import ClientOptions, Timeouts
from .extensions import MailParams, RcptParams
from .protocol.requests import Unsendable
from .protocol.transaction import LOST, Delivery, Transaction
from .reply import Reply, SMTPError

__all__ = [
    "Client",
    "ClientOptions",
    "ConnectionLost",
    "Delivery",
    "Message",
    "MessageReader",
    "Recipient",
    "TLSFailed",
    "TimedOut",
    "Timeouts",
    "Unsendable",
    "send_mail",
]

Recipient: TypeAlias = str | tuple[str, RcptParams]
"""A mailbox, alone or with the parameters of its RCPT."""

_NO_MAIL_PARAMS: Final = MailParams()
_NO_RCPT_PARAMS: Final = RcptParams()


class Client(ClientBase):
    """A client of one server, for one task at a time.

    `async with` connects and says hello, with TLS as the options have it; at the end it says QUIT, or breaks the connection
    off if the block was left by an exception.  A task that is cancelled while it waits for the server breaks the connection off too:
    a message is never ended before it is whole.

    Args:
        host, port: the server; or `unix_socket`.
        options: all options in one value; else its fields are taken as keyword arguments.
    """

    # Messages

    async def send_message(
        self, sender: str, recipients: Iterable[Recipient], message: Message, params: MailParams | None = None
    ) -> list[Delivery]:
        """Send one message: what became of each recipient, in their order, refusals included.

        What the server allows is used: the envelope goes in one group (PIPELINING), the message in chunks (CHUNKING).  SIZE and BODY
        are said if they are known and `params` does not say them.  Lines may end as they like in a message, but with
        BODY=BINARYMIME.

        Args:
            sender: the mailbox, "" for the null reverse-path.
            recipients: mailboxes, at least one, alone or with parameters.  The same may come twice.
            message: see `fastsmtp.client_body`.  If it raises, the connection is broken off, and nobody gets half of it.
            params: the parameters of MAIL.  Without them SMTPUTF8 is said if an address needs it, or the header of a message in
                memory; with them only what they say.

        Raises:
            DataTooLarge: larger than the server says it takes; nothing was sent.
            ConnectionLost: it tells what is known of each recipient, and whether the others may have the message.
            ProtocolError: as `mail` and `rcpt`; nothing was sent.
        """
        self._ready()
        recipients = list(recipients)
        outgoing = Outgoing(message, params is not None and params.body == "BINARYMIME")
        if params is None:
            params = _NO_MAIL_PARAMS
            if self._wants_utf8(sender, recipients, outgoing):
                params = replace(params, smtputf8=True)
        if params.size is None and outgoing.size is not None:
            params = replace(params, size=outgoing.size)
        if params.body is None and outgoing.eight_bit is not False:
            params = replace(params, body="8BITMIME")
        self._check_params(params)
        transaction = self._protocol.transaction(sender, recipients, params, chunking=self.options.chunking)
        return await self._deliver(transaction, outgoing)

    async def mail(self, sender: str, params: MailParams = _NO_MAIL_PARAMS) -> Reply:
        """Begin a transaction step by step: `mail`, `rcpt` for each recipient, `data`.

        Raises:
            SMTPError: refused.
            DataTooLarge: the announced size is more than the server takes; nothing was sent.
            ProtocolError: an address or parameter that cannot be sent, or that needs what the server does not offer.
        """
        self._ready()
        self._check_params(params)
        command = self._protocol.mail(sender, params)
        self._mail = command
        self._rcpts = []
        self._busy = True
        try:
            return await self._ask(command)
        except SMTPError:
            self._end_transaction()
            raise

    async def rcpt(self, recipient: str, params: RcptParams = _NO_RCPT_PARAMS) -> Reply:
        """Add a recipient.  SMTPError if it is refused; the others stay."""
        self._ready()
        command = self._protocol.rcpt(recipient, params)
        self._rcpts.append(command)
        return await self._ask(command)

    async def data(self, message: Message) -> list[Delivery]:
        """Send the message: what became of each recipient that `rcpt` was given, refused ones included.  As `send_message`."""
        self._ready()
        mail, protocol = self._mail, self._protocol
        if mail is None or not self._rcpts:
            raise RuntimeError("no transaction" if mail is None else "no recipients")
        assert mail.envelope is not None
        binary = mail.envelope.params.body == "BINARYMIME"
        outgoing = Outgoing(message, binary)
        chunked = binary or (self.options.chunking and "CHUNKING" in protocol.extensions)
        transaction = Transaction(protocol, mail, self._rcpts, None if chunked else protocol.data(), binary)
        return await self._deliver(transaction, outgoing)

    async def reset(self) -> Reply:
        """Say RSET: the transaction ends."""
        self._ready()
        reply = await self._ask(self._protocol.reset())
        self._end_transaction()
        return reply

    def _wants_utf8(self, sender: str, recipients: Sequence[Recipient], outgoing: Outgoing) -> bool:
        mailboxes = [sender, *(each if isinstance(each, str) else each[0] for each in recipients)]
        if not all(map(str.isascii, mailboxes)):
            return True
        # Headers of eight bits are as old as mail; where they cannot be announced they go as they are.
        return outgoing.utf8_header and "SMTPUTF8" in self._protocol.extensions

    def _check_params(self, params: MailParams) -> None:
        if params.requiretls and not self._server_is_verified:
            raise Unsendable(
                "REQUIRETLS needs TLS with a server whose certificate was verified"
            )  # RFC 8689 section 4.2.1

    @property
    def _server_is_verified(self) -> bool:
        tls = self.tls_connection_state
        return tls is not None and tls.context.verify_mode == ssl.CERT_REQUIRED and tls.context.check_hostname

    async def _deliver(self, transaction: Transaction, outgoing: Outgoing) -> list[Delivery]:
        connection = self._connection
        assert connection is not None
        self._busy = True
        self.messages += 1
        try:
            connection.advance()
            await connection.wait(lambda: transaction.wants_body or transaction.done)
            ended = await self._write(connection, transaction, outgoing)
            await connection.wait(lambda: transaction.done)
        except BaseException:
            connection.abort()
            raise
        deliveries = transaction.deliveries
        if any(each.reply is LOST for each in deliveries):
            raise connection.lost(deliveries, ended)
        self._end_transaction()
        return deliveries

    async def _write(self, connection: ClientConnection, transaction: Transaction, outgoing: Outgoing) -> bool:
        """Write the message as long as the server wants it; whether its end was written."""
        async with aclosing(outgoing.pieces()) as pieces:
            while transaction.wants_body:
                piece, last = await anext(pieces)
                if not transaction.wants_body:
                    break
                if last:
                    transaction.finish(piece)
                    connection.advance()
                    return True
                transaction.write(piece)
                connection.advance()
                await connection.drain()
                await connection.wait(lambda: not transaction.blocked)
        return False

    # Other commands

    async def noop(self) -> Reply:
        """Say NOOP."""
        self._ready()
        return await self._ask(self._protocol.noop())

    async def verify(self, name: str) -> Reply:
        """Say VRFY (RFC 5321 3.5.1)."""
        self._ready()
        return await self._ask(self._protocol.verify(name))

    async def expand(self, name: str) -> Reply:
        """Say EXPN (RFC 5321 3.5.1)."""
        self._ready()
        return await self._ask(self._protocol.expand(name))

    async def help(self, topic: str = "") -> Reply:
        """Say HELP."""
        self._ready()
        return await self._ask(self._protocol.help(topic))

    async def command(self, verb: str, argument: str = "") -> Reply:
        """Say a verb that has no method here, ETRN for example; its reply must be the only one and not ask for more."""
        self._ready()
        return await self._ask(self._protocol.command(verb, argument))


async def send_mail(
    sender: str,
    recipients: Iterable[Recipient],
    message: Message,
    params: MailParams | None = None,
    *,
    username: str = "",
    password: str = "",
    options: ClientOptions | None = None,
    **fields: Any,
) -> list[Delivery]:
    """Connect, log in if there is a username, send one message, and quit; the fields are those of `ClientOptions`.

    Raises:
        SMTPError: no recipient got it; the first refusal.  A refusal of some is no exception: see what is returned.
        OSError, ProtocolError: as `Client`.
    """
    async with Client(options=options, **fields) as client:
        if username:
            await client.login(username, password)
        deliveries = await client.send_message(sender, recipients, message, params)
    if not any(each.reply.accepted for each in deliveries):
        raise SMTPError.from_reply(deliveries[0].reply)
    return deliveries
