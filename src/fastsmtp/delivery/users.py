"""Users of a file in front of another backend: `UsersBackend` decides who they are, the other what becomes of their mail."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import TYPE_CHECKING, Final

from fastsmtp.reply import AuthRequired
from fastsmtp.sasl import Credentials, PlainCredentials, ScramCredentials
from fastsmtp.session import Backend, ConnectionState, Session

if TYPE_CHECKING:
    from fastsmtp.authfile import AuthFile
    from fastsmtp.sasl import ScramSecret

__all__ = ["UsersBackend"]


class UsersBackend:
    """Lets the users of a file log in by PLAIN and LOGIN, and by SCRAM-SHA-256 with the extra `scram`; all get the same sessions.

    Args:
        backend: makes the sessions, by its `anonymous_login`.
        users: the file; who opened it reloads and closes it.
        required: there is no session, and so no mail, without a login (530); one that a trusted peer names by XCLIENT is one.

    Attributes:
        session_on_connect: as the backend has it; False if a login is required, since who has not logged in has no session.
    """

    def __init__(self, backend: Backend, users: AuthFile, *, required: bool = False) -> None:
        self.backend: Final = backend
        self.users: Final = users
        self.required: Final = required
        self.session_on_connect: Final = not required and bool(getattr(backend, "session_on_connect", False))

    def anonymous_login(self, state: ConnectionState) -> Session | Awaitable[Session]:
        """The backend's; raises AuthRequired if a login is required and no trusted peer vouches for one by XCLIENT."""
        if self.required and not state.username:
            raise AuthRequired
        return self.backend.anonymous_login(state)

    async def login(self, state: ConnectionState, username: str, password: str) -> Session | None:
        """A session for whoever has the user's password."""
        return await self._session(state) if await self.users.verify(username, password) else None

    def scram_secret(self, state: ConnectionState, username: str) -> ScramSecret:
        """What the file stores of the user's password; for others, what no password fits."""
        return self.users.lookup(username)

    async def authenticate(self, state: ConnectionState, credentials: Credentials) -> Session | None:
        """A session for these credentials; nobody may act for another."""
        match credentials:
            case ScramCredentials():
                return await self._session(state)
            case PlainCredentials(authzid, authcid, password) if authzid in ("", authcid):
                return await self.login(state, authcid, password)
        return None

    async def _session(self, state: ConnectionState) -> Session:
        session = self.backend.anonymous_login(state)
        return await session if isinstance(session, Awaitable) else session
