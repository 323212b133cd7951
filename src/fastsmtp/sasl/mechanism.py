"""What every mechanism speaks: outcomes, credentials, and the two shapes of a mechanism (RFC 4422).

A server mechanism never looks a user up and never checks a password: that may take time, or an `await`.  It answers
`step(response)` with one of these, and whoever runs it does the rest:

    Challenge(data)     send it, give the peer's response to `step`
    Lookup(user)        find the user's stored secret, tell `found(secret)`   (SCRAM only)
    Verify(credentials) check them, tell `verified(ok)`
    Success(...)        done
    Failure(reason)     refused; the reason is the same whatever was wrong
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass, field
from typing import ClassVar, Final, Protocol, TypeAlias

from fastsmtp.errors import ProtocolError
from fastsmtp.sasl.prep import saslprep
from fastsmtp.sasl.secret import ScramSecret

__all__ = [
    "FIELD",
    "RESPONSE",
    "AnonymousCredentials",
    "Challenge",
    "ClientBase",
    "ClientMechanism",
    "CramMD5Credentials",
    "Credentials",
    "ExternalCredentials",
    "Failure",
    "Lookup",
    "Outcome",
    "PlainCredentials",
    "SASLError",
    "ScramCredentials",
    "ServerBase",
    "ServerMechanism",
    "Success",
    "TokenCredentials",
    "Verify",
    "decode_text",
    "encode_text",
    "has_control",
]

RESPONSE: Final = 9216
"""Octets of one response or challenge: what fits the 12288 of base64 that RFC 4954 4 asks for."""

FIELD: Final = 1024
"""Octets of one identity or password (RFC 4616 2 asks for 255)."""


class SASLError(ProtocolError):
    """A message that is none of its mechanism's.  The text is ours, with nothing of the message in it."""


@dataclass(frozen=True, slots=True)
class PlainCredentials:
    """User and password, prepared by SASLprep (RFC 4616; of LOGIN too, which has no authzid)."""

    authzid: str
    authcid: str
    password: str = field(repr=False)

    def verify(self, password: str) -> bool:
        """Compare with a password known in the clear, in constant time.

        False, too, for a password that SASLprep does not allow.
        """
        try:
            expected = saslprep(password)
        except ValueError:
            return False
        return hmac.compare_digest(expected.encode(), self.password.encode())


@dataclass(frozen=True, slots=True)
class CramMD5Credentials:
    """User and keyed digest of our challenge (RFC 2195).  Only who has the password in the clear can check it."""

    authcid: str
    challenge: bytes
    digest: str = field(repr=False)

    def verify(self, password: str) -> bool:
        """Check the digest, in constant time.  False, too, for a password that SASLprep does not allow."""
        try:
            key = saslprep(password).encode()
        except ValueError:
            return False
        return hmac.compare_digest(hmac.new(key, self.challenge, "md5").hexdigest(), self.digest)


@dataclass(frozen=True, slots=True)
class TokenCredentials:
    """A bearer token (XOAUTH2, RFC 7628); `user`, `host` and `port` are what the client claims, "" or None if nothing."""

    user: str
    token: str = field(repr=False)
    host: str = ""
    port: int | None = None


@dataclass(frozen=True, slots=True)
class ExternalCredentials:
    """Who the client wants to be; who it is, TLS has told ("" for just that; RFC 4422 appendix A)."""

    authzid: str


@dataclass(frozen=True, slots=True)
class AnonymousCredentials:
    """What an anonymous client says of itself: an email address, some text, or nothing (RFC 4505)."""

    trace: str


@dataclass(frozen=True, slots=True)
class ScramCredentials:
    """A user whose proof is already found to be right (RFC 5802); to decide is whether this user may log in."""

    authcid: str


Credentials: TypeAlias = (
    PlainCredentials
    | CramMD5Credentials
    | TokenCredentials
    | ExternalCredentials
    | AnonymousCredentials
    | ScramCredentials
)


@dataclass(frozen=True, slots=True)
class Challenge:
    """Octets for the client; b"" for an empty challenge."""

    data: bytes


@dataclass(frozen=True, slots=True)
class Lookup:
    """Whose stored secret is wanted; the answer goes to `found`."""

    user: str


@dataclass(frozen=True, slots=True)
class Verify:
    """What is to be checked; the answer goes to `verified`."""

    credentials: Credentials


@dataclass(frozen=True, slots=True)
class Success:
    """Logged in as `authcid`, to act as `authzid` ("" for itself)."""

    authcid: str
    authzid: str = ""


@dataclass(frozen=True, slots=True)
class Failure:
    """Not logged in.  One text for all causes, so that it does not tell which users exist."""

    reason: str = "authentication failed"


Outcome: TypeAlias = Challenge | Lookup | Verify | Success | Failure


class ServerMechanism(Protocol):
    """The server side of one exchange; make a new one for each."""

    @property
    def name(self) -> str:
        """As registered with IANA, in upper case."""

    def step(self, response: bytes | None) -> Outcome:
        """Take the client's response; None at the start when no initial response came (b"" is an empty one).

        Raises SASLError; the exchange is over then.
        """

    def verified(self, ok: bool, authcid: str | None = None) -> Outcome:
        """Take the answer to Verify.  `authcid` names the user where the mechanism does not (EXTERNAL, tokens)."""


class ClientMechanism(Protocol):
    """The client side of one exchange; make a new one for each."""

    @property
    def name(self) -> str:
        """As registered with IANA, in upper case."""

    @property
    def complete(self) -> bool:
        """Whether the server's success may be believed now.  (SCRAM: the server has proved that it knows us.)"""

    def initial(self) -> bytes | None:
        """The initial response, None when the mechanism has none; to be called once, before `respond`."""

    def respond(self, challenge: bytes) -> bytes:
        """Answer a challenge.  Raises SASLError."""


class ServerBase:
    """The order of calls and the size of responses, for server mechanisms.

    A mechanism has `name`, `_next(response)`, and `_identity(credentials)` where its credentials have no `authcid`.
    """

    name: ClassVar[str]

    def __init__(self) -> None:
        self._ready = True
        self._credentials: Credentials | None = None

    def step(self, response: bytes | None) -> Outcome:
        if not self._ready:
            raise RuntimeError("step out of order")
        self._ready = False
        if response is not None and len(response) > RESPONSE:
            raise SASLError("response too long")
        return self._keep(self._next(response))

    def verified(self, ok: bool, authcid: str | None = None) -> Outcome:
        credentials = self._credentials
        if credentials is None:
            raise RuntimeError("verified out of order")
        self._credentials = None
        return self._keep(self._succeed(credentials, authcid) if ok else self._fail())

    def found(self, secret: ScramSecret | None) -> Outcome:
        """Take the answer to Lookup: None for a user that does not exist."""
        raise RuntimeError("found out of order")

    def _keep(self, outcome: Outcome) -> Outcome:
        self._ready = isinstance(outcome, Challenge)
        if isinstance(outcome, Verify):
            self._credentials = outcome.credentials
        return outcome

    def _next(self, response: bytes | None) -> Outcome:
        raise NotImplementedError

    def _succeed(self, credentials: Credentials, authcid: str | None) -> Outcome:
        if authcid is None:
            authcid = getattr(credentials, "authcid", "")
        return Success(authcid, getattr(credentials, "authzid", ""))

    def _fail(self) -> Outcome:
        return Failure()


class ClientBase:
    """A client mechanism of one message, sent first; mechanisms of more override `respond`."""

    name: ClassVar[str]

    @property
    def complete(self) -> bool:
        return True

    def initial(self) -> bytes | None:
        raise NotImplementedError

    def respond(self, challenge: bytes) -> bytes:
        raise SASLError("unexpected challenge")


_CONTROL: Final = frozenset(map(chr, (*range(0x20), *range(0x7F, 0xA0), 0x2028, 0x2029)))


def has_control(text: str) -> bool:
    """Tell whether there is a control character (C0, DEL, C1) or a Unicode line end in `text`."""
    return not _CONTROL.isdisjoint(text)


def decode_text(data: bytes, limit: int = FIELD) -> str:
    """One field of a message as text.  Raises SASLError when it is too long or no UTF-8."""
    if len(data) > limit:
        raise SASLError("field too long")
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise SASLError("not UTF-8") from None


def encode_text(text: str) -> bytes:
    """A client's field as octets.  Raises SASLError for lone surrogates."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise SASLError("unusable text") from None
