"""SCRAM-SHA-256 and SCRAM-SHA-256-PLUS (RFC 5802, RFC 7677), spoken by the library scramp (extra `scram`).

scramp has no authorization identity: a client that sends one is refused.  Channel bindings are given as bytes; of TLS 1.3
Python can tell neither tls-exporter (RFC 9266) nor tls-unique, so tls-server-end-point (`server_end_point`) is what is left.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from typing import Any, ClassVar, Final

from fastsmtp.errors import ConfigurationError
from fastsmtp.sasl.mechanism import (
    FIELD,
    RESPONSE,
    Challenge,
    ClientBase,
    Credentials,
    Failure,
    Lookup,
    Outcome,
    SASLError,
    ScramCredentials,
    ServerBase,
    Success,
    Verify,
    decode_text,
)
from fastsmtp.sasl.secret import ITERATIONS, MAX_ITERATIONS, SALT, ScramSecret

__all__ = [
    "ScramClient",
    "ScramPlusClient",
    "ScramPlusServer",
    "ScramServer",
    "server_end_point",
]

# For users that do not exist there is a salt too, always the same for one name.  It must not tell them from others.
_PROCESS_KEY: Final = secrets.token_bytes(32)


def _scramp() -> Any:
    try:
        import scramp  # type: ignore[import-not-found,import-untyped,unused-ignore]
    except ImportError:
        raise ConfigurationError("SCRAM needs the library scramp: pip install 'fastsmtpd[scram]'") from None
    return scramp


def server_end_point(certificate: bytes) -> bytes:
    """The channel binding tls-server-end-point of the server's certificate (DER): its hash (RFC 5929 4.1).

    Raises SASLError for a certificate whose signature names no hash (Ed25519): the RFC leaves it undefined.
    """
    _scramp()
    from asn1crypto.x509 import Certificate  # type: ignore[import-not-found,import-untyped,unused-ignore]

    try:
        signature = Certificate.load(certificate, strict=True)["signature_algorithm"]
        if signature.signature_algo in ("ed25519", "ed448"):  # asn1crypto names the hash within
            raise ValueError
        algorithm = signature.hash_algo
        return hashlib.new("sha256" if algorithm in ("md5", "sha1") else algorithm, certificate).digest()
    except (ValueError, TypeError):
        raise SASLError("no channel binding for this certificate") from None


class ScramServer(ServerBase):
    """SCRAM-SHA-256.

    `channel_binding` is `(type, octets)` when SCRAM-SHA-256-PLUS is offered too; then a client that could bind and was kept
    from it is found out (RFC 5802 6).  `key` makes up the salts of unknown users, and `iterations` their rounds: give the
    same to every worker, and the rounds that real users have.  `nonce` replaces the random one (for tests).
    """

    name: ClassVar[str] = "SCRAM-SHA-256"

    def __init__(
        self,
        channel_binding: tuple[str, bytes] | None = None,
        *,
        key: bytes = _PROCESS_KEY,
        iterations: int = ITERATIONS,
        nonce: str | None = None,
    ) -> None:
        super().__init__()
        self._scramp = _scramp()
        self._binding = channel_binding
        self._key = key
        self._iterations = iterations
        self._nonce = nonce
        self._user = ""
        self._client_first = ""
        self._looking_up = False
        self._server: Any = None
        self._proved = False
        self._make(None)  # refuses a channel binding that cannot be, before anyone is asked

    def found(self, secret: ScramSecret | None) -> Outcome:
        if not self._looking_up:
            raise RuntimeError("found out of order")
        self._looking_up = False
        server = self._make(secret or self._fake(self._user))
        server.set_client_first(self._client_first)
        self._server = server
        return self._keep(Challenge(server.get_server_first().encode()))

    def _next(self, response: bytes | None) -> Outcome:
        if self._proved:
            if response:
                raise SASLError("response not empty")
            return Success(self._user)
        if self._server is not None:
            return self._take_proof(decode_text(response or b"", RESPONSE))
        if response is None:
            return Challenge(b"")
        return self._take_name(decode_text(response, RESPONSE))

    def _take_name(self, message: str) -> Outcome:
        if message.startswith("p=") and not self.name.endswith("-PLUS"):
            raise SASLError("channel binding without -PLUS")
        # A first pass, to no end but to check the message and to learn the name in it.
        try:
            self._make(None).set_client_first(message)
        except self._scramp.ScramException as error:
            if _is_refusal(error):
                return Failure()
            raise SASLError("bad client-first message") from None
        if len(self._user.encode()) > FIELD:
            raise SASLError("field too long")
        self._client_first = message
        self._looking_up = True
        return Lookup(self._user)

    def _take_proof(self, message: str) -> Outcome:
        try:
            self._server.set_client_final(message)
        except self._scramp.ScramException as error:
            if _is_refusal(error):
                return Failure()
            raise SASLError("bad client-final message") from None
        return Verify(ScramCredentials(self._user))

    def _succeed(self, credentials: Credentials, authcid: str | None) -> Outcome:
        self._user = self._user if authcid is None else authcid
        self._proved = True
        return Challenge(self._server.get_server_final().encode())

    def _make(self, secret: ScramSecret | None) -> Any:
        def answer(user: str) -> tuple[bytes, bytes, bytes, int]:
            self._user = user
            found = secret or self._fake(user)
            return found.salt, found.stored_key, found.server_key, found.iterations

        try:
            return self._scramp.ScramMechanism(self.name).make_server(answer, self._binding, self._nonce)
        except self._scramp.ScramException:
            raise SASLError("unusable channel binding") from None

    def _fake(self, user: str) -> ScramSecret:
        salt = hmac.digest(self._key, user.encode(), "sha256")[:SALT]
        return ScramSecret(salt, secrets.token_bytes(32), secrets.token_bytes(32), self._iterations)


class ScramPlusServer(ScramServer):
    """SCRAM-SHA-256-PLUS: bound to the TLS session.  Raises SASLError without a usable `channel_binding`."""

    name: ClassVar[str] = "SCRAM-SHA-256-PLUS"


# Well-formed messages that are refused, by the error names of RFC 5802 7.
_REFUSALS: Final = frozenset(
    {
        "invalid-proof",
        "channel-bindings-dont-match",
        "server-does-support-channel-binding",
        "unsupported-channel-binding-type",
        "invalid-username-encoding",
    }
)


def _is_refusal(error: Any) -> bool:
    return error.server_error is not None and error.server_error.value in _REFUSALS


class ScramClient(ClientBase):
    """SCRAM-SHA-256.  `respond` takes time once (a millisecond per 4096 rounds or so).

    Give `channel_binding` only when the server does not offer SCRAM-SHA-256-PLUS: it tells the server that we could
    (RFC 5802 6).  `complete` is true when the server has proved that it knows the password's secret; a success
    before that is not to be believed.  Raises SASLError for a user name or password that SASLprep does not allow.
    """

    name: ClassVar[str] = "SCRAM-SHA-256"

    def __init__(
        self,
        username: str,
        password: str,
        channel_binding: tuple[str, bytes] | None = None,
        *,
        max_iterations: int = MAX_ITERATIONS,
        nonce: str | None = None,
    ) -> None:
        self._scramp = _scramp()
        self._max_iterations = max_iterations
        try:
            if not password:
                raise ValueError
            self._client = self._scramp.ScramClient([self.name], username, password, channel_binding, nonce)
        except (self._scramp.ScramException, ValueError):
            raise SASLError("unusable user name, password or channel binding") from None
        self._steps = [self._check_server, self._prove]
        self._complete = False

    @property
    def complete(self) -> bool:
        return self._complete

    def initial(self) -> bytes:
        return self._client.get_client_first().encode()  # type: ignore[no-any-return]

    def respond(self, challenge: bytes) -> bytes:
        if not self._steps:
            raise SASLError("unexpected challenge")
        message = decode_text(challenge, RESPONSE)
        try:
            return self._steps.pop()(message)
        except self._scramp.ScramException:
            self._steps.clear()
            raise SASLError("the server's message is not right") from None

    def _prove(self, message: str) -> bytes:
        self._client.set_server_first(message)
        if int(self._client.iterations) > self._max_iterations:
            self._steps.clear()
            raise SASLError("too many iterations")
        return self._client.get_client_final().encode()  # type: ignore[no-any-return]

    def _check_server(self, message: str) -> bytes:
        self._client.set_server_final(message)
        self._complete = True
        return b""


class ScramPlusClient(ScramClient):
    """SCRAM-SHA-256-PLUS: bound to the TLS session.  Raises SASLError without a usable `channel_binding`."""

    name: ClassVar[str] = "SCRAM-SHA-256-PLUS"
