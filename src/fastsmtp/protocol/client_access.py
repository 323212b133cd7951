"""Who the server is and what it offers: greeting, hello, STARTTLS, AUTH, XFORWARD and XCLIENT, from the client's side.

EHLO (RFC 5321 4.1.1.1) -> STARTTLS (RFC 3207) -> EHLO -> AUTH (RFC 4954) -> mail
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ..address import check_domain
from ..reply import Reply
from ..sasl import ClientMechanism, SASLError
from .exchange import Exchange
from .login import Login
from .requests import Command, Envelope, Unsendable, command_line, parse_extensions
from .xforward import XClient, XForward, encode_xclient, encode_xforward

__all__ = ["ClientAccess"]

_HELO_INSTEAD: Final = frozenset({500, 501, 502, 504, 550})  # RFC 5321 3.2 and 4.1.4: the server does not know EHLO


class ClientAccess(Exchange):
    """What comes before mail.

    Attributes:
        greeting: the server's greeting, as a command that nobody sent.
        tls: the connection is under TLS; whoever opened it so sets it.
        hello_verb: EHLO, HELO or LHLO once the server has accepted it, "" before.
        server_name: what the server called itself in its answer to that.
        extensions: what it offered then: keyword in upper case to parameters.
        authenticated: AUTH has succeeded.
    """

    __slots__ = (
        "_barrier",
        "_body",
        "_envelope",
        "_extensions",
        "_hello_name",
        "_may_pipeline",
        "authenticated",
        "extensions",
        "greeting",
        "hello_verb",
        "server_name",
        "tls",
    )

    def __init__(self, lmtp: bool, hello_name: str, pipelining: bool) -> None:
        super().__init__(lmtp)
        check_domain(hello_name)
        self._hello_name: Final = hello_name
        self._may_pipeline: Final = pipelining
        self._barrier: Command | None = None  # changes what may be said, so it is waited for
        self._envelope: Envelope | None = None  # the transaction of the last MAIL that was queued
        self._body: Command | None = None  # the DATA whose message is being written
        self._extensions: dict[str, str] = {}
        self.extensions: Final[Mapping[str, str]] = MappingProxyType(self._extensions)
        self.tls = False
        self.hello_verb = ""
        self.server_name = ""
        self.authenticated = False
        self.greeting: Final = Command("", (), ClientAccess._settle_greeting)
        self._write(self.greeting)

    # What the server offers

    def extension(self, name: str) -> str | None:
        """The parameters of an extension that the server offered, "" if it has none; None: it was not offered."""
        return self._extensions.get(name.upper())

    @property
    def auth_mechanisms(self) -> tuple[str, ...]:
        """The SASL mechanisms that the server offered, in upper case and its order."""
        return tuple(self._extensions.get("AUTH", "").upper().split())

    def supports_auth(self, mechanism: str) -> bool:
        """Tell whether the server offered this SASL mechanism."""
        return mechanism.upper() in self.auth_mechanisms

    @property
    def max_message_size(self) -> int | None:
        """The largest message that the server says it takes; None: it does not say, or knows no maximum (RFC 1870 section 4)."""
        return _number(self._extensions.get("SIZE", ""))

    @property
    def max_recipients(self) -> int | None:
        """The number of recipients of one message that the server takes, if it says so (RFC 9422 section 4, RCPTMAX)."""
        for word in self._extensions.get("LIMITS", "").upper().split():
            if word.startswith("RCPTMAX="):
                return _number(word[8:])
        return None

    # Hello

    def hello(self) -> Command:
        """Say EHLO, or LHLO; HELO if the server does not know EHLO.  It ends a transaction, as `reset` does."""
        verb = "LHLO" if self.lmtp else "EHLO"
        self._check_between()
        self._end_envelope()
        return self._ask_alone(Command(verb, (command_line(verb, self._hello_name),), ClientAccess._settle_hello))

    def _settle_greeting(self, command: Command, reply: Reply) -> bool:
        self._expect_done(reply)
        if not reply.accepted:
            self.refusal = reply
        return True

    def _settle_hello(self, command: Command, reply: Reply) -> bool:
        self._expect_done(reply)
        if not reply.accepted:
            if command.verb != "EHLO" or reply.code not in _HELO_INSTEAD:
                return True
            command.verb = "HELO"
            self._write_line(command_line("HELO", self._hello_name))
            return False
        self._forget()
        self.hello_verb = command.verb
        self.server_name = reply.message.split("\n", 1)[0].strip().partition(" ")[0]
        if command.verb != "HELO":
            self._extensions.update(parse_extensions(reply.message))
        self._pipelining = self._may_pipeline and "PIPELINING" in self._extensions
        return True

    def _forget(self) -> None:
        """What an EHLO told holds no more."""
        self._extensions.clear()
        self._pipelining = False
        self._open = None
        self.hello_verb = self.server_name = ""

    # STARTTLS

    def start_tls(self) -> Command:
        """Say STARTTLS (RFC 3207).  When it is accepted, do the handshake and call `begin_tls`; nothing is said before that."""
        self._check_idle()
        self._require("STARTTLS")
        if self.tls:
            raise RuntimeError("TLS has begun already")
        return self._ask_alone(Command("STARTTLS", (b"STARTTLS\r\n",), ClientAccess._settle_starttls))

    def _settle_starttls(self, command: Command, reply: Reply) -> bool:
        self._expect_done(reply)
        if reply.accepted:
            if self._reader.buffered:
                self._fail("octets in plaintext behind the reply to STARTTLS")
            self._awaiting_tls = True
        return True

    def begin_tls(self) -> None:
        """TLS has begun: what the server said in plaintext is forgotten (RFC 3207 section 4.2); say hello again."""
        if not self._awaiting_tls:
            raise RuntimeError("STARTTLS was not accepted")
        self._awaiting_tls = False
        self.tls = True
        self.authenticated = False
        self._forget()

    # AUTH

    def auth(self, mechanism: ClientMechanism) -> Command:
        """Run the exchange of one SASL mechanism (RFC 4954), from its first message to the server's verdict.

        If the mechanism cannot go on it is cancelled, and the command's `error` is its SASLError.  So it is for a server that
        grants what it has not proved to be allowed to; the connection is closing then.
        """
        self._check_idle()
        if not self.supports_auth(mechanism.name):
            raise Unsendable("the server does not offer this mechanism")
        if self.authenticated:
            raise RuntimeError("authenticated already")
        login = Login(mechanism)
        first = login.first_line()

        def settle(protocol: ClientAccess, command: Command, reply: Reply) -> bool:
            return protocol._settle_auth(command, reply, login)

        return self._ask_alone(Command("AUTH", (first,), settle))

    def _settle_auth(self, command: Command, reply: Reply, login: Login) -> bool:
        if reply.code == 334:
            if command.error is not None:
                self._fail("a challenge after the end of AUTH")
            try:
                line = login.answer(reply.message)
            except SASLError as error:
                command.error = error
                line = b"*\r\n"  # RFC 4954 section 4: that cancels it
            self._write_line(line, b"***\r\n")
            return False
        self._expect_done(reply)
        if reply.accepted:
            if command.error is None and not login.complete:
                command.error = SASLError("the server did not prove who it is")
            if command.error is not None:
                self.closing = True
            else:
                self.authenticated = True
        return True

    # XFORWARD and XCLIENT

    def xforward(self, xforward: XForward) -> Command:
        """Say who the client behind us is, for logs (Postfix XFORWARD_README); all in one, in as many lines as it takes."""
        self._check_idle()
        lines = encode_xforward(xforward, self._require("XFORWARD").split())
        return self._ask_lines("XFORWARD", lines)

    def xclient(self, xclient: XClient) -> Command:
        """Take the place of the client behind us (Postfix XCLIENT_README).  If it is accepted, say hello again."""
        self._check_idle()
        lines = encode_xclient(xclient, self._require("XCLIENT").split())
        return self._ask_lines("XCLIENT", lines)

    def _ask_lines(self, verb: str, lines: list[str]) -> Command:
        if not lines:
            raise Unsendable(f"the server does not offer any attribute of {verb}")
        first, *more = [command_line(line) for line in lines]
        more.reverse()

        def settle(protocol: ClientAccess, command: Command, reply: Reply) -> bool:
            protocol._expect_done(reply)
            if reply.accepted and verb == "XCLIENT":
                protocol._forget()  # the session begins anew
                protocol.authenticated = False
            if reply.accepted and more:
                protocol._write_line(more.pop())
                return False
            return True

        return self._ask_alone(Command(verb, (first,), settle))

    # What the state allows

    def _require(self, name: str) -> str:
        params = self._extensions.get(name)
        if params is None:
            raise Unsendable(f"the server does not offer {name}")
        return params

    def _check_between(self, turned_away: bool = False) -> None:
        """Something may be said, and no message is being written."""
        if self.closing or not turned_away:
            self._check_open()
        if self._barrier is not None and not self._barrier.done:
            raise RuntimeError(f"wait for the reply to {self._barrier.verb}")
        if self._awaiting_tls:
            raise RuntimeError("wait for TLS")
        if self._body is not None:
            raise RuntimeError("the message has not ended")

    def _check_idle(self) -> None:
        """Hello was said, and no transaction goes on."""
        self._check_between()
        if not self.hello_verb:
            raise RuntimeError("say hello first")
        envelope = self._envelope
        if envelope is not None and not envelope.closed and envelope.hopeless is None:
            raise RuntimeError("a transaction is going on")

    def _ask_alone(self, command: Command) -> Command:
        self._barrier = command
        return self._ask(command)

    def _abandon(self) -> None:
        super()._abandon()
        self._body = None

    def _end_envelope(self) -> None:
        if self._envelope is not None:
            self._envelope.closed = True


def _number(text: str) -> int | None:
    """A number that limits something; None for none, and for 0."""
    return int(text) or None if text.isascii() and text.isdigit() and len(text) <= 20 else None
