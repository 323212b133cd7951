"""Who may relay: to anybody, or to the domains that everybody may send to (RFC 5321 section 7.9)."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import TYPE_CHECKING, Final

from fastsmtp.address import AddressError, split_mailbox
from fastsmtp.networks import Networks
from fastsmtp.reply import EnhancedCode, SMTPError

from .routes import domain_of

if TYPE_CHECKING:
    from fastsmtp.connection import Conn

__all__ = ["RelayAccess"]

_DENIED: Final = SMTPError(550, EnhancedCode(5, 7, 1), "Relaying denied").reply
_LOG_IN: Final = SMTPError(530, EnhancedCode(5, 7, 0), "Authentication required").reply


class RelayAccess:
    """Decides about recipients.  Whoever has logged in may send to any, and so may clients of some networks.

    The client's address is the one that PROXY or XCLIENT name, if there was one.

    Args:
        networks: clients that may send to any recipient, such as "192.0.2.0/24" or "unix"; True is loopback and Unix sockets.
        domains: recipients' domains that anybody may send to; with a dot before it, the domains below it.
        login: others are asked to log in (530), not only refused (550).

    Raises:
        ConfigurationError: a network is none.
    """

    def __init__(
        self, networks: bool | Sequence[str] = True, domains: Collection[str] = (), *, login: bool = False
    ) -> None:
        self._networks: Final = Networks(networks)
        self._domains: Final = frozenset(map(_domain, domains))
        self._refusal: Final = _LOG_IN if login else _DENIED

    def trusts(self, conn: Conn) -> bool:
        """Tell whether the client may send to any recipient.  It may change with a login, with XCLIENT and with TLS."""
        return conn.remote_addr in self._networks or bool(conn.state.username)

    def welcomes(self, recipient: str) -> bool:
        """Tell whether anybody may send to this recipient."""
        if not self._domains:
            return False
        name = domain_of(recipient, "")
        if not name:
            return _is_postmaster(recipient)
        if name in self._domains:
            return True
        while name:
            name = name.partition(".")[2]
            if f".{name}" in self._domains:
                return True
        return False

    def refuse(self) -> SMTPError:
        """The answer to the others."""
        return SMTPError.from_reply(self._refusal)


def _domain(name: str) -> str:
    below = "." if name.startswith(".") else ""
    return below + domain_of(f"x@{name.removeprefix('.')}", "")


def _is_postmaster(recipient: str) -> bool:
    """RFC 5321 section 4.5.1: every server takes mail for it."""
    try:
        return split_mailbox(recipient)[0].lower() == "postmaster"
    except AddressError:
        return recipient.lower() == "postmaster"
