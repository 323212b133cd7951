"""What happens in a server, told as it happens: for logs and statistics of one's own."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .connection import Conn
    from .reply import Reply
    from .session import DataContext

__all__ = ["Observer"]


class Observer:
    """Is called back by a server whose option `observer` it is; override what is wanted.

    The calls are plain and belong to the event loop: they must be short.  An exception is logged and changes nothing.  What is in a
    connection's state was sent by the peer: make it safe before it goes into a log.
    """

    __slots__ = ()

    def connected(self, conn: Conn) -> None:
        """A client is welcome: the greeting is about to be said."""

    def disconnected(self, conn: Conn) -> None:
        """A connection is over, its session logged out.  Also of one that was never welcome."""

    def message(self, conn: Conn, context: DataContext | None, reply: Reply | None, octets: int) -> None:
        """A message was answered.

        Args:
            conn: the connection.
            context: its transaction; None for one that was refused before any session saw it.
            reply: the answer, None for the standard one, 250; for LMTP `context.replies` has one for each recipient.
            octets: its size.
        """

    def rejected(self, conn: Conn, reply: Reply) -> None:
        """A MAIL or RCPT was answered 4xx or 5xx by the session, or a connection was turned away."""

    def authenticated(self, conn: Conn, username: str) -> None:
        """A client has authenticated."""

    def auth_failed(self, conn: Conn) -> None:
        """Credentials were wrong."""
