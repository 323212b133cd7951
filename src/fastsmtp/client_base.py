"""What a client does before and beside mail: connecting, TLS, AUTH, what the server offers, and the end."""

from __future__ import annotations

import asyncio
import socket
import ssl
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import cache
from typing import Any, Final, Self

from .address import is_domain
from .client_connection import ClientConnection, ConnectionLost, TimedOut, TLSFailed
from .client_login import REVEALING, channel_binding, password_mechanisms, token_mechanisms
from .client_options import ClientOptions
from .dial import dial, dial_unix
from .protocol.client import ClientProtocol
from .protocol.requests import Command, Unsendable
from .protocol.xforward import XClient, XForward
from .reply import Reply, SMTPError
from .sasl import ClientMechanism
from .tracing import tracer

__all__ = ["ClientBase"]

_NO_SECRETS: Final = (
    "no password is sent without TLS to a server that is known: tls, starttls='required' or a tls_context"
)


class ClientBase:
    """A connection to a server; `fastsmtp.client.Client` is what is used.

    Attributes:
        options: where it connects to, and how.
        messages: messages that were begun.
    """

    def __init__(self, host: str = "", port: int = 0, *, options: ClientOptions | None = None, **fields: Any) -> None:
        if host:
            fields["host"] = host
        if port:
            fields["port"] = port
        if options is not None and fields:
            raise TypeError("give options, or its fields, not both")
        self.options: Final = options if options is not None else ClientOptions(**fields)
        self.messages = 0
        self._connection: ClientConnection | None = None
        self._protocol = ClientProtocol(lmtp=self.options.lmtp)  # before there is a connection: nothing is offered
        self._mail: Command | None = None  # of the transaction that goes on step by step
        self._rcpts: list[Command] = []
        self._busy = False  # with a message
        self._trusted = False  # the server is who it should be

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.options.place}, {'connected' if self.usable else 'not connected'}>"

    async def __aenter__(self) -> Self:
        if self._connection is None:
            await self.connect()
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or issubclass(kind, SMTPError):
            await self.quit()
        else:
            self.close()
            await self.wait_closed()

    # Connecting

    async def connect(self, sock: socket.socket | None = None) -> Reply:
        """Connect and say hello, with TLS as the options have it; the server's greeting.

        Args:
            sock: a connected socket to take, in place of making a connection.

        Raises:
            OSError: no connection.
            SMTPError: the server turned us away.
            ConnectionLost: it was lost meanwhile.
            TLSFailed: the handshake failed, or STARTTLS was not to be had where it is required.
        """
        if self._connection is not None:
            raise RuntimeError("connected already")
        try:
            await self._open(sock)
            greeting = await self._settle(self._protocol.greeting)
            await self.hello()
            if not self.options.tls and self.options.starttls != "never":
                await self._upgrade(required=self.options.starttls == "required")
        except SMTPError:
            await self.quit()
            raise
        except Exception:
            self.close()
            await self.wait_closed()
            raise
        except BaseException:
            self.close()
            raise
        return greeting

    async def _open(self, sock: socket.socket | None) -> None:
        options = self.options
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(options.timeouts.connect or None):
                if sock is None:
                    sock = await self._dial()
        except TimeoutError:
            raise TimedOut(f"no connection to {options.place} in time") from None
        self._protocol = protocol = ClientProtocol(
            lmtp=options.lmtp, hello_name=options.local_hostname or _own_name(sock), pipelining=options.pipelining
        )
        if options.debug is not None:
            protocol.trace = tracer(options.debug, f"{id(self):x}")
        connection = ClientConnection(loop, protocol, options.timeouts, plain=not options.tls)
        create: Any = loop.create_connection
        if sock.family not in (socket.AF_INET, socket.AF_INET6):
            create = loop.create_unix_connection
        try:
            await create(lambda: connection, sock=sock)
        except BaseException:
            sock.close()
            raise
        self._connection = connection
        if options.proxy_header:
            connection.transport.write(options.proxy_header)
        if options.tls:
            await self._shake_hands(connection, required=True)
            protocol.tls = True
        connection.advance()

    async def _dial(self) -> socket.socket:
        options = self.options
        if options.unix_socket is not None:
            return await dial_unix(options.unix_socket)
        return await dial(options.host, options.real_port, options.local_addr, options.happy_eyeballs_delay)

    async def _upgrade(self, required: bool) -> None:
        if "STARTTLS" not in self._protocol.extensions:
            if required:
                raise TLSFailed("the server does not offer STARTTLS")
            return
        try:
            await self._ask(self._protocol.start_tls())
        except SMTPError as error:
            if error.code == 421:
                raise
            if required:
                raise TLSFailed(f"STARTTLS was refused: {error}") from error
        else:
            await self._begin_tls(required)

    async def start_tls(self) -> Reply:
        """Say STARTTLS (RFC 3207), do the handshake, and say hello again.  `connect` does it as the options have it."""
        self._ready()
        reply = await self._ask(self._protocol.start_tls())
        await self._begin_tls(required=self.options.starttls == "required")
        return reply

    async def _begin_tls(self, required: bool) -> None:
        await self._shake_hands(self._ready(), required)
        self._protocol.begin_tls()
        await self.hello()

    async def _shake_hands(self, connection: ClientConnection, required: bool) -> None:
        context = self.options.tls_context
        self._trusted = required or context is not None
        if context is None:
            context = _context(required)
        await connection.start_tls(context, self.options.tls_name)

    async def hello(self) -> Reply:
        """Say EHLO, or LHLO; HELO where EHLO is not known.  That ends a transaction."""
        self._ready()
        reply = await self._ask(self._protocol.hello())
        self._end_transaction()
        return reply

    # What the server is and offers

    @property
    def usable(self) -> bool:
        """The connection stands, as far as is known."""
        return self._connection is not None and self._connection.usable

    @property
    def idle(self) -> bool:
        """The connection stands, and no transaction goes on."""
        return self.usable and not self._busy and self._protocol.awaiting is None

    @property
    def greeting(self) -> Reply | None:
        """The server's greeting."""
        return self._protocol.greeting.reply if self._connection is not None else None

    @property
    def server_name(self) -> str:
        """What the server called itself in its answer to hello."""
        return self._protocol.server_name

    @property
    def extensions(self) -> Mapping[str, str]:
        """What the server offers: keywords in upper case, and their parameters."""
        return self._protocol.extensions

    def extension(self, name: str) -> str | None:
        """The parameters of an extension that the server offers, "" if it has none; None: it is not offered."""
        return self._protocol.extension(name)

    @property
    def auth_mechanisms(self) -> tuple[str, ...]:
        """The SASL mechanisms that the server offers, in upper case and its order."""
        return self._protocol.auth_mechanisms

    def supports_auth(self, mechanism: str) -> bool:
        """Tell whether the server offers this SASL mechanism."""
        return self._protocol.supports_auth(mechanism)

    @property
    def authenticated(self) -> bool:
        """AUTH has succeeded."""
        return self._protocol.authenticated

    @property
    def max_message_size(self) -> int | None:
        """The largest message that the server says it takes; None: it does not say, or knows no maximum."""
        return self._protocol.max_message_size

    @property
    def max_recipients(self) -> int | None:
        """The number of recipients of one message that the server takes, if it says so (RFC 9422)."""
        return self._protocol.max_recipients

    @property
    def tls_connection_state(self) -> ssl.SSLObject | None:
        """The TLS object, or None in plaintext."""
        if self._connection is None:
            return None
        tls: ssl.SSLObject | None = self._connection.transport.get_extra_info("ssl_object")
        return tls

    # AUTH

    async def login(self, username: str, password: str = "", *, token: str = "") -> Reply:
        """Authenticate with a password, or a bearer token, by the best mechanism that the server and we have.

        SCRAM-SHA-256-PLUS, SCRAM-SHA-256 and CRAM-MD5 keep a password secret.  PLAIN and LOGIN do not, nor do OAUTHBEARER and
        XOAUTH2 a token: they need TLS with a server that is known, a Unix socket, or `allow_insecure_auth`.  The next mechanism is
        tried only if the server does not know one that it offered (504), not when it refuses the password.

        Raises:
            SMTPError: refused; 535 for wrong credentials.
            Unsendable: the server offers no mechanism that can be used.
            SASLError: the server did not prove who it is, or a name or password that cannot be sent.
        """
        self._ready()
        offered = self.auth_mechanisms
        revealing = self._may_reveal
        if token:
            host = self.options.tls_name or ""
            makers = token_mechanisms(offered, username, token, host, self.options.real_port, revealing)
        else:
            binding = channel_binding(self.tls_connection_state)
            makers = password_mechanisms(offered, username, password, binding, revealing)
        if not makers:
            needs_tls = not revealing and not REVEALING.isdisjoint(offered)
            raise Unsendable(_NO_SECRETS if needs_tls else "the server offers no mechanism that can be used")
        for make in makers[:-1]:
            try:
                return await self.auth(make())
            except SMTPError as error:
                if error.code != 504:
                    raise
        return await self.auth(makers[-1]())

    async def auth(self, mechanism: ClientMechanism) -> Reply:
        """Authenticate by one SASL mechanism (RFC 4954), any of `fastsmtp.sasl` or your own.  As `login`, which chooses one."""
        self._ready()
        if mechanism.name in REVEALING and not self._may_reveal:
            raise Unsendable(_NO_SECRETS)
        return await self._ask(self._protocol.auth(mechanism))

    @property
    def _may_reveal(self) -> bool:
        if self.options.allow_insecure_auth:
            return True
        assert self._connection is not None
        if self._protocol.tls and self._trusted:
            return True
        sock = self._connection.transport.get_extra_info("socket")
        return sock is not None and sock.family not in (socket.AF_INET, socket.AF_INET6)

    # Who the client behind us is

    async def xforward(self, xforward: XForward) -> Reply:
        """Say who the client behind us is, for the server's logs (Postfix XFORWARD_README)."""
        self._ready()
        return await self._ask(self._protocol.xforward(xforward))

    async def xclient(self, xclient: XClient) -> Reply:
        """Take the place of the client behind us (Postfix XCLIENT_README), and say hello again."""
        self._ready()
        reply = await self._ask(self._protocol.xclient(xclient))
        await self.hello()
        return reply

    # The end

    async def quit(self) -> None:
        """Say QUIT and close.  That the server does not answer, or is gone already, is no error."""
        connection = self._connection
        if connection is None:
            return
        if (command := self.part()) is not None:
            with suppress(ConnectionLost):
                await connection.wait(lambda: command.done)
        await self.wait_closed()

    def part(self) -> Command | None:
        """Say QUIT and let the connection close by itself; None if there is nothing left to say."""
        connection = self._connection
        if connection is None or connection.closed:
            return None
        try:
            command = self._protocol.quit()
        except (SMTPError, RuntimeError):
            connection.close()
            return None
        connection.advance()
        return command

    def close(self) -> None:
        """Close the connection without a word.  A message that is not whole will not be delivered."""
        if self._connection is not None:
            self._connection.close()

    async def wait_closed(self) -> None:
        """Wait until the connection is gone."""
        if self._connection is not None:
            await self._connection.wait_closed()

    def on_end(self, callback: Callable[[], object] | None) -> None:
        """Have this called once when the connection can no longer be used; None takes that back.  For pools."""
        assert self._connection is not None
        self._connection.on_end = callback

    # Asking

    def _ready(self) -> ClientConnection:
        connection = self._connection
        if connection is None:
            raise RuntimeError("not connected")
        if self._protocol.refusal is None:
            connection.check()
        return connection

    async def _ask(self, command: Command) -> Reply:
        assert self._connection is not None
        self._connection.advance()
        return await self._settle(command)

    async def _settle(self, command: Command) -> Reply:
        assert self._connection is not None
        await self._connection.wait(lambda: command.done)
        return command.result()

    def _end_transaction(self) -> None:
        self._busy = False
        self._mail = None
        self._rcpts = []


@cache
def _context(verified: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
    if not verified:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _own_name(sock: socket.socket) -> str:
    """The machine's full name, else the address of this end (RFC 5321 4.1.4 and 4.1.3)."""
    name = socket.gethostname()
    if "." in name and is_domain(name, underscores=False):
        return name
    if sock.family == socket.AF_INET:
        return f"[{sock.getsockname()[0]}]"
    if sock.family == socket.AF_INET6:
        address = sock.getsockname()[0].partition("%")[0]
        return f"[IPv6:{address}]"
    return "localhost"
