"""AUTH (RFC 4954): a SASL mechanism on one side, the backend or the session that knows the users on the other.

Who decides, for each kind of credentials:

    session.auth(credentials)                    if the session has it: it stays the session
    backend.authenticate(state, credentials)     if the backend has it: gives the session of the user
    backend.login(state, username, password)     for user and password (PLAIN, LOGIN)
    backend.scram_secret(state, username)        gives what is stored of a password, for SCRAM

Each may be plain or async.  None for a session, or `AuthFailed` raised, is 535; any other exception is 454.  A session's attribute
`username`, if it has one, tells who the user is; else that is who the client says (EXTERNAL and tokens need not say it).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final

from .errors import ConfigurationError
from .hooks import is_awaitable
from .reply import (
    AUTH_FAILED,
    AUTH_MALFORMED,
    AUTH_UNAVAILABLE,
    AuthUnsupported,
    Reply,
    SMTPError,
)
from .sasl import (
    SERVERS,
    Challenge,
    Failure,
    Lookup,
    Outcome,
    PlainCredentials,
    SASLError,
    ServerMechanism,
    Success,
    Verify,
)
from .session import Session

if TYPE_CHECKING:
    from .connection import Conn

__all__ = ["Authenticator", "Exchange", "MechanismFactory", "failure_delay", "session_from"]

MechanismFactory = Callable[["Conn"], ServerMechanism]
"""Makes the server side of one exchange for a connection."""

_PASSWORD: Final = ("PLAIN", "LOGIN")
_SCRAM: Final = "SCRAM-SHA-256"
_LONGEST_DELAY: Final = 10.0


class Authenticator:
    """The mechanisms of one server.

    Args:
        backend: the server's backend; its attribute `auth_mechanisms`, if there, names what it can verify, else that is user
            and password, and SCRAM if it has `scram_secret` and `authenticate`.
    """

    def __init__(self, backend: object) -> None:
        self._factories: dict[str, MechanismFactory] = {}
        names = getattr(backend, "auth_mechanisms", None)
        if names is None:
            names = _PASSWORD
            knows_scram = hasattr(backend, "scram_secret") and hasattr(backend, "authenticate")
            if knows_scram and importlib.util.find_spec("scramp") is not None:
                names = (f"{_SCRAM}-PLUS", _SCRAM, *_PASSWORD)
        for name in names:
            self.enable(name)
        self._of_backend: tuple[str, ...] = tuple(self._factories)

    def enable(self, name: str, factory: MechanismFactory | None = None) -> None:
        """Offer one more mechanism; without a factory it is the built-in one of that name."""
        name = name.upper()
        if factory is None:
            if name not in SERVERS:
                raise ConfigurationError(f"no SASL mechanism of that name is built in: {name!r}")
            factory = self._built_in(name)
        elif not (0 < len(name) <= 20 and name.isascii() and name.replace("-", "").replace("_", "").isalnum()):
            raise ConfigurationError(f"no name of a SASL mechanism: {name!r}")
        self._factories[name] = factory
        self._of_backend = tuple(self._factories)

    def _built_in(self, name: str) -> MechanismFactory:
        make: Any = SERVERS[name]
        if not name.startswith("SCRAM-"):
            return lambda conn: make()

        def scram(conn: Conn) -> ServerMechanism:
            end_point = conn.end_point
            iterations = getattr(conn.server.backend, "scram_iterations", None)
            more = {} if iterations is None else {"iterations": iterations}
            mechanism: ServerMechanism = make(end_point and ("tls-server-end-point", end_point), **more)
            return mechanism

        return scram

    def __bool__(self) -> bool:
        """Tell whether there is any mechanism, sessions' own ones aside."""
        return bool(self._of_backend)

    def offered(self, conn: Conn) -> tuple[str, ...]:
        """The mechanisms for this connection as it is now."""
        names = list(self._of_backend)
        session = conn.session
        if hasattr(session, "auth"):
            names += [name for name in getattr(session, "auth_mechanisms", _PASSWORD) if name not in names]
        tls = conn.tls_connection_state
        if tls is None or not tls.getpeercert():
            names = [name for name in names if name != "EXTERNAL"]
        if conn.end_point is None:
            names = [name for name in names if not name.endswith("-PLUS")]
        return tuple(names)

    def make(self, name: str, conn: Conn) -> ServerMechanism:
        """The server side of one exchange."""
        return (self._factories.get(name) or self._built_in(name))(conn)


class Exchange:
    """One AUTH command and what follows it, up to its end.

    Attributes:
        challenge: what to send next when `step` has returned None and `session` is None too.
        refused: credentials were found wrong; what the client is told may still be a challenge (RFC 7628 section 3.2.3).
        session: the user's session, once it is over and well.
        username: who that is.
    """

    __slots__ = ("_conn", "_mechanism", "_name", "_verified", "challenge", "refused", "session", "username")

    def __init__(self, conn: Conn, name: str) -> None:
        self._conn = conn
        self._name = name
        self._mechanism: Any = None
        self._verified: Session | None = None
        self.challenge = b""
        self.refused = False
        self.session: Session | None = None
        self.username = ""

    async def step(self, response: bytes | None) -> Reply | None:
        """Take a response.  A reply ends the exchange in failure; None goes on, or it is over."""
        try:
            return await self._run(response)
        except SASLError:
            return AUTH_MALFORMED
        except SMTPError as error:
            return error.reply
        except Exception:  # whatever a callback raises is never a success
            self._conn.server.counters.errors += 1
            self._conn.server.logger.exception("authentication failed to work")
            return AUTH_UNAVAILABLE

    async def _run(self, response: bytes | None) -> Reply | None:
        if self._mechanism is None:
            self._mechanism = self._conn.server.authenticator.make(self._name, self._conn)
        outcome: Outcome = self._mechanism.step(response)
        while True:
            if isinstance(outcome, Lookup):
                outcome = self._mechanism.found(await self._secret(outcome.user))
            elif isinstance(outcome, Verify):
                found = await self._verify(outcome.credentials)
                session = self._verified = None if found is None else session_from(found)
                self.refused = session is None
                outcome = self._mechanism.verified(not self.refused, getattr(session, "username", None) or None)
            elif isinstance(outcome, Challenge):
                self.challenge = outcome.data
                return None
            elif isinstance(outcome, Success):
                self.username = outcome.authzid or outcome.authcid
                self.session = self._conn.session if self._verified is None else self._verified
                return None if self.session is not None else AUTH_FAILED
            else:
                assert isinstance(outcome, Failure)
                return AUTH_FAILED

    async def _secret(self, user: str) -> Any:
        lookup = getattr(self._conn.server.backend, "scram_secret", None)
        if lookup is None:
            raise AuthUnsupported
        found = lookup(self._conn.state, user)
        return await found if is_awaitable(found) else found

    async def _verify(self, credentials: Any) -> Any:
        """What a callback gives for the session of whom these credentials are, None for nobody's."""
        conn = self._conn
        session = conn.session
        hook = getattr(session, "auth", None)
        if hook is not None:
            reply = hook(credentials)
            if is_awaitable(reply):
                reply = await reply
            if reply is not None and not reply.accepted:
                raise SMTPError.from_reply(reply)
            return session
        backend: Any = conn.server.backend
        authenticate = getattr(backend, "authenticate", None)
        if authenticate is not None:
            found = authenticate(conn.state, credentials)
        elif not isinstance(credentials, PlainCredentials):
            raise AuthUnsupported
        elif credentials.authzid not in ("", credentials.authcid):
            return None  # to act for another is nothing that `login` could decide
        else:
            found = backend.login(conn.state, credentials.authcid, credentials.password)
        return await found if is_awaitable(found) else found


def failure_delay(first: float, failures: int) -> float:
    """Seconds before the failure of this number is answered."""
    return min(first * (1 << min(failures - 1, 8)), _LONGEST_DELAY)


def session_from(result: Any) -> Session:
    """What a backend gave, if that is a session; raises TypeError.  True or False is none, and lets nobody in."""
    if not hasattr(result, "mail"):
        raise TypeError(f"a backend gave {type(result).__name__}, not a Session")
    return result  # type: ignore[no-any-return]
