"""Sets of networks: whom an operator trusts."""

from __future__ import annotations

import ipaddress
from collections.abc import Sequence
from typing import Final

from .errors import ConfigurationError

__all__ = ["Networks"]

_LOOPBACK: Final = ("127.0.0.0/8", "::1/128", "unix")
_MOST_KNOWN: Final = 4096  # hosts whose answer is remembered: to parse an address takes 4 us


class Networks:
    """IP networks and "unix" for Unix sockets.

    Args:
        members: such as "192.0.2.0/24", "2001:db8::1" or "unix"; True is loopback and Unix sockets, False nobody.

    Raises:
        ConfigurationError: a member is none of these.
    """

    __slots__ = ("_known", "_networks", "_unix")

    def __init__(self, members: bool | Sequence[str]) -> None:
        if isinstance(members, str):
            raise ConfigurationError(f"a list of networks is needed, not {members!r}")
        if isinstance(members, bool):
            members = _LOOPBACK if members else ()
        self._unix: Final = "unix" in members
        self._known: Final[dict[str, bool]] = {}
        try:
            self._networks: Final = tuple(ipaddress.ip_network(each) for each in members if each != "unix")
        except ValueError as error:
            raise ConfigurationError(str(error)) from None

    def __bool__(self) -> bool:
        return self._unix or bool(self._networks)

    def __contains__(self, address: object) -> bool:
        """Tell whether a socket address belongs to them: (host, ...), or a Unix socket's path.

        None is nobody's: a TCP peer that is gone already has it.
        """
        if not isinstance(address, tuple):
            return self._unix and address is not None
        if not self._networks:
            return False
        host = str(address[0])
        found = self._known.get(host)
        if found is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            found = self._known[host] = self._look_up(host)
        return found

    def _look_up(self, host: str) -> bool:
        try:
            address = ipaddress.ip_address(host.partition("%")[0])
        except ValueError:
            return False
        if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        return any(address in network for network in self._networks)
