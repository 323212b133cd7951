"""Who the peer is and what it may use: greetings, STARTTLS, AUTH, XFORWARD and XCLIENT.

EHLO (RFC 5321 4.1.1.1) -> STARTTLS (RFC 3207) -> EHLO -> AUTH (RFC 4954) -> mail
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import TYPE_CHECKING, Final

from .. import limits
from ..reply import (
    ALREADY_AUTHENTICATED,
    AUTH_CANCELLED,
    AUTH_NEEDS_TLS,
    AUTH_SYNTAX,
    AUTH_TOO_LONG,
    AUTHENTICATED,
    BAD_BASE64,
    BAD_SEQUENCE,
    FORWARD_SYNTAX,
    HELLO_FIRST,
    NO_ARGUMENTS,
    NOT_AUTHORIZED,
    NOT_IMPLEMENTED,
    OK,
    READY_FOR_TLS,
    UNKNOWN_MECHANISM,
    WRONG_HELLO_LMTP,
    WRONG_HELLO_SMTP,
    Reply,
)
from .command import parse_hello
from .events import ANSWERED, STARTTLS, Auth, AuthResponse, ClientIs, Event, Hello
from .lines import LineProtocol
from .xforward import ForwardError, XForward, parse_xclient, parse_xforward

if TYPE_CHECKING:
    from ..extensions import Offer
    from .server import ServerProfile

__all__ = ["AccessProtocol"]

_AUTH: Final = re.compile(r"([A-Za-z0-9_-]{1,20})(?: ++(\S++))?")  # RFC 4422 section 3.1, RFC 4954 section 4


class AccessProtocol(LineProtocol):
    """What comes before mail.

    Attributes:
        lmtp: LMTP is spoken, not SMTP.
        hello: the name given in HELO, EHLO or LHLO, "" before.
        hello_verb: which of the three it was, "" before.
        offer: what EHLO offers here; its options hold for this connection.
        auth_withheld: AUTH would be offered within TLS; the shell sets it.
        authenticated: AUTH has succeeded.
        sender: the reverse-path of the transaction, or None outside of one.
        xforward: what XFORWARD said of the client for this transaction, or None.
    """

    __slots__ = (
        "_capabilities",
        "_offer",
        "_profile",
        "_responding",
        "auth_withheld",
        "authenticated",
        "hello",
        "hello_verb",
        "lmtp",
        "sender",
        "xforward",
    )

    def __init__(self, profile: ServerProfile) -> None:
        LineProtocol.__init__(self, profile.options)
        self._profile = profile
        self._capabilities = profile.basic
        self._responding = False  # the next line is AUTH's, no command
        self.lmtp: Final = profile.options.lmtp
        self.hello = ""
        self.hello_verb = ""
        self._offer = profile.offer
        self.auth_withheld = False
        self.authenticated = False
        self.sender: str | None = None
        self.xforward: XForward | None = None

    def reset_transaction(self) -> None:
        """Forget what belongs to a message."""
        raise NotImplementedError

    @property
    def offer(self) -> Offer:
        """What EHLO offers here."""
        return self._offer

    @offer.setter
    def offer(self, offer: Offer) -> None:
        self._offer = offer
        self._options = offer.options

    def _forget(self) -> None:
        """As if the connection were new."""
        self.reset_transaction()
        self._capabilities = self._profile.basic
        self.hello = self.hello_verb = ""
        self.authenticated = False

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
        return self._wait(Hello(verb, name, bool(self.hello)), AccessProtocol._settle_hello)

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
        if event.verb == "HELO":
            self._capabilities = profile.basic
            self._say(profile.hello if reply is None else reply)
        else:
            # A session may word the answer to HELO; EHLO's lines are a promise of the protocol's own.
            self._capabilities, reply = profile.capabilities(self.offer)
            self._say(reply)

    # STARTTLS

    def _starttls(self, argument: str) -> Event:
        if argument:
            return self._refuse(NO_ARGUMENTS)
        if self.offer.tls:
            return self._refuse(BAD_SEQUENCE)
        if not self.offer.tls_available:
            return self._refuse(NOT_IMPLEMENTED)
        if not self.hello:
            return self._refuse(HELLO_FIRST)
        if self.sender is not None:
            return self._refuse(BAD_SEQUENCE)
        return self._wait(STARTTLS, AccessProtocol._settle_starttls)

    def _settle_starttls(self, reply: Reply | None) -> None:
        self._say(READY_FOR_TLS if reply is None else reply)
        self.must_flush = True

    def begin_tls(self) -> None:
        """TLS begins: what came in plaintext is dropped and all that was said is forgotten (RFC 3207 section 4.2)."""
        self._buffer = b""
        self._pos = self._skipped = 0
        self._forget()

    # AUTH

    def _auth(self, argument: str) -> Event:
        if not self.hello:
            return self._refuse(HELLO_FIRST)
        if not self.offer.auth or self.hello_verb == "HELO":
            return self._refuse(AUTH_NEEDS_TLS if self.auth_withheld else NOT_IMPLEMENTED)
        if self.authenticated:
            return self._refuse(ALREADY_AUTHENTICATED)
        if self.sender is not None:
            return self._refuse(BAD_SEQUENCE)
        match = _AUTH.fullmatch(argument)
        if match is None:
            return self._refuse(AUTH_SYNTAX)
        mechanism = match[1].upper()
        if mechanism not in self.offer.auth:
            return self._refuse(UNKNOWN_MECHANISM)
        initial = match[2]
        response = None
        if initial is not None:
            response = b"" if initial == "=" else _decode(initial.encode())
            if response is None:
                return self._refuse(BAD_BASE64)
        return self._wait(Auth(mechanism, response), AccessProtocol._settle_auth)

    def _settle_auth(self, reply: Reply | None) -> None:
        if reply is not None and not reply.accepted:
            self._refuse(reply)
            return
        self._responding = reply is not None and reply.code == 334
        self.authenticated = not self._responding
        self._say(AUTHENTICATED if reply is None else reply)
        self.must_flush = True

    def challenge(self, octets: bytes) -> None:
        """Answer an event of AUTH with a challenge (RFC 4954 section 4); the next event is the response to it."""
        if self._settle is None:
            raise RuntimeError("no event waits for a reply")
        self._settle = None
        self._responding = True
        wire = b"334 " + base64.b64encode(octets) + b"\r\n"
        self._out.append(wire)
        if self.trace is not None:
            self.trace("S", b"334 ***\r\n")
        self.must_flush = True

    def _next_response(self) -> Event | None:
        """The client's line behind a challenge."""
        buffer, pos = self._buffer, self._pos
        end = buffer.find(b"\r\n", pos)
        if end < 0:
            return self._unended_line(limits.AUTH_LINE)
        self._pos = end + 2
        self._responding = False
        if self.trace is not None:
            self.trace("C", b"***\r\n")
        if self._skipped or end + 2 - pos > limits.AUTH_LINE:
            return self._long_line(end + 2 - pos, AUTH_TOO_LONG)
        line = buffer[pos:end]
        if line == b"*":
            return self._refuse(AUTH_CANCELLED)
        response = _decode(line)
        if response is None:
            return self._refuse(BAD_BASE64)
        return self._wait(AuthResponse(response), AccessProtocol._settle_auth)

    # XFORWARD and XCLIENT

    def _xforward(self, argument: str) -> Event:
        if not self.offer.xforward:
            return self._refuse(NOT_AUTHORIZED if self._options.allow_xforward else NOT_IMPLEMENTED)
        if not self.hello:
            return self._refuse(HELLO_FIRST)
        if self.sender is not None:
            return self._refuse(BAD_SEQUENCE)
        try:
            values = parse_xforward(argument)
        except ForwardError as error:
            return self._refuse(_malformed(error))
        self.xforward = (self.xforward or XForward()).updated(values)
        self._say(OK)
        self.must_flush = True
        return ANSWERED

    def _xclient(self, argument: str) -> Event:
        if not self.offer.xclient:
            return self._refuse(NOT_AUTHORIZED if self._options.allow_xclient else NOT_IMPLEMENTED)
        if self.sender is not None:
            return self._refuse(BAD_SEQUENCE)
        try:
            values = parse_xclient(argument)
        except ForwardError as error:
            return self._refuse(_malformed(error))
        return self._wait(ClientIs(values), AccessProtocol._settle_xclient)

    def _settle_xclient(self, reply: Reply | None) -> None:
        """The session begins anew, with a greeting (XCLIENT_README, Server response)."""
        self._forget()
        self.greet(reply)

    def greet(self, reply: Reply | None = None) -> None:
        """Say the greeting: 220, or the refusal given."""
        raise NotImplementedError


def _malformed(error: ForwardError) -> Reply:
    return Reply(FORWARD_SYNTAX.code, FORWARD_SYNTAX.enhanced_code, f"{FORWARD_SYNTAX.message}: {error.reason}")


def _decode(text: bytes) -> bytes | None:
    """Base64 to the letter: no other characters, right padding (RFC 4954 section 4)."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return None
