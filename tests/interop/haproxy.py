"""A HAProxy in front of a server: one frontend, one server behind it, its configuration in the test's directory."""

from __future__ import annotations

import pathlib
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from .tools import tool

__all__ = ["HAProxy", "haproxy"]

CONFIGURATION = """
global
    stats socket {stats} mode 600
defaults
    mode tcp
    timeout connect 30s
    timeout client 60s
    timeout server 60s
    timeout check 30s
frontend front
    bind fd@{listener} {bind}
    {frontend}
    default_backend back
backend back
    {backend}
    server ours {place} {server}
"""


@dataclass(frozen=True, slots=True)
class HAProxy:
    """A running HAProxy.

    Attributes:
        port: where it takes connections.
        stats: the path of its control socket.
    """

    port: int
    stats: pathlib.Path

    def checked(self) -> dict[str, str]:
        """The server's line of `show stat`, once a check has ended."""
        deadline = time.monotonic() + 60
        while True:
            line = self._stat()
            if line.get("check_status", "").lstrip("* ") not in ("", "INI"):
                return line
            assert time.monotonic() < deadline, line
            time.sleep(0.02)

    def _stat(self) -> dict[str, str]:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(self.stats))
            sock.sendall(b"show stat\n")
            with sock.makefile("r") as file:
                heading, *lines = file.read().lstrip("# ").splitlines()
        fields = [dict(zip(heading.split(","), line.split(","), strict=False)) for line in lines]
        return next(each for each in fields if each.get("svname") == "ours")


@contextmanager
def haproxy(
    folder: pathlib.Path,
    place: str,
    *,
    bind: str = "",
    frontend: str = "",
    backend: str = "",
    server: str = "send-proxy-v2",
) -> Iterator[HAProxy]:
    """HAProxy before the server at `place`; the rest is added to the lines of its configuration.

    It takes connections from the moment it is there: it is handed a socket that listens already.
    """
    program = tool("haproxy")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        stats = folder / "stats"
        path = folder / "haproxy.cfg"
        path.write_text(
            CONFIGURATION.format(
                stats=stats,
                listener=listener.fileno(),
                place=place,
                bind=bind,
                frontend=frontend,
                backend=backend,
                server=server,
            )
        )
        command = [program, "-db", "-q", "-f", str(path)]
        with subprocess.Popen(command, pass_fds=(listener.fileno(),)) as process:
            try:
                deadline = time.monotonic() + 60
                while not stats.exists():
                    assert process.poll() is None, "HAProxy does not start"
                    assert time.monotonic() < deadline
                    time.sleep(0.02)
                yield HAProxy(listener.getsockname()[1], stats)
            finally:
                process.kill()
