"""What a service manager and ``fastsmtp serve`` tell each other: sd_listen_fds(3) and sd_notify(3), without its library."""

from __future__ import annotations

import logging
import os
import socket
from typing import Final

from .errors import ConfigurationError

__all__ = ["listen_fds", "notify"]

_FIRST: Final = 3  # SD_LISTEN_FDS_START
_LOG: Final = logging.getLogger("fastsmtp")


def listen_fds() -> list[int]:
    """The file descriptors of the sockets that this process was started with; they are given out once.

    Raises:
        ConfigurationError: there are none, or they are another process's.
    """
    pid, count = (os.environ.pop(name, "") for name in ("LISTEN_PID", "LISTEN_FDS"))
    os.environ.pop("LISTEN_FDNAMES", None)
    if not (count.isascii() and count.isdigit() and int(count)) or pid != str(os.getpid()):
        raise ConfigurationError("systemd has given no sockets: is there a .socket unit of the same name?")
    return list(range(_FIRST, _FIRST + int(count)))


def notify(state: str) -> None:
    """Tell the service manager, such as "READY=1"; nothing if NOTIFY_SOCKET names none.  It cannot fail."""
    address = os.environ.get("NOTIFY_SOCKET", "")
    if not address.startswith(("/", "@")):
        return
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.sendto(state.encode(), f"\0{address[1:]}" if address.startswith("@") else address)
    except OSError as error:
        _LOG.warning("cannot tell the service manager %s: %s", state, error.strerror or error)
