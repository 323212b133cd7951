"""A connected socket: names looked up, both address families tried (RFC 8305)."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import socket
from collections.abc import Sequence
from itertools import zip_longest
from typing import Final, TypeAlias

__all__ = ["dial", "dial_unix", "interleave", "resolve"]

_Endpoint: TypeAlias = tuple[socket.AddressFamily, tuple[str, int] | tuple[str, int, int, int]]

_FAMILY: Final = {4: socket.AF_INET, 6: socket.AF_INET6}


async def dial(host: str, port: int, local_addr: tuple[str, int] | None = None, delay: float = 0.25) -> socket.socket:
    """A socket connected to whichever address of the host answers first.

    The next address is tried when the last one has failed, or has not answered after `delay` seconds.

    Args:
        local_addr: the address and port to come from; only addresses of its family are tried.

    Raises:
        OSError: no address, or what the last one tried failed with.
    """
    endpoints = interleave(await resolve(host, port))
    if local_addr is not None:
        family = _FAMILY[ipaddress.ip_address(local_addr[0]).version]
        endpoints = [each for each in endpoints if each[0] == family]
    if not endpoints:
        raise OSError(f"no address for {host}")
    if len(endpoints) == 1:
        return await _attempt(endpoints[0], local_addr)
    return await _race(endpoints, local_addr, delay)


async def dial_unix(path: str | os.PathLike[str]) -> socket.socket:
    """A socket connected to a Unix socket.  Raises OSError."""
    return await _connected(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM), os.fspath(path))


async def resolve(host: str, port: int) -> Sequence[_Endpoint]:
    """The addresses of a host, in the order of the system's preference (RFC 6724).  Raises OSError."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        if "%" not in host:
            return [(_FAMILY[address.version], (host, port))]
    loop = asyncio.get_running_loop()
    try:
        found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError:  # an empty label, or one that is too long: no name that DNS can have (RFC 1035 2.3.4)
        raise socket.gaierror(socket.EAI_NONAME, "no name that a host can have") from None
    return [(family, endpoint) for family, _, _, _, endpoint in found]  # type: ignore[misc]


def interleave(endpoints: Sequence[_Endpoint]) -> list[_Endpoint]:
    """The families in turn, beginning with that of the first (RFC 8305 section 4)."""
    if not endpoints:
        return []
    first = [each for each in endpoints if each[0] == endpoints[0][0]]
    others = [each for each in endpoints if each[0] != endpoints[0][0]]
    return [each for pair in zip_longest(first, others) for each in pair if each is not None]


async def _race(endpoints: Sequence[_Endpoint], local_addr: tuple[str, int] | None, delay: float) -> socket.socket:
    waiting = list(reversed(endpoints))
    running: set[asyncio.Task[socket.socket]] = set()
    won: socket.socket | None = None
    error: BaseException | None = None
    try:
        while won is None and (waiting or running):
            if waiting:
                running.add(asyncio.ensure_future(_attempt(waiting.pop(), local_addr)))
            done, running = await asyncio.wait(
                running, timeout=delay if waiting else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                error = task.exception() or error
                if task.exception() is not None:
                    continue
                if won is None:
                    won = task.result()
                else:
                    task.result().close()
    finally:
        for task in running:
            task.cancel()
            task.add_done_callback(_forget)
    if won is None:
        assert error is not None
        raise error
    return won


def _forget(task: asyncio.Task[socket.socket]) -> None:
    """A task that lost the race; it may have connected all the same."""
    if not task.cancelled() and task.exception() is None:
        task.result().close()


async def _attempt(endpoint: _Endpoint, local_addr: tuple[str, int] | None) -> socket.socket:
    family, address = endpoint
    sock = socket.socket(family, socket.SOCK_STREAM)
    if local_addr is not None:
        try:
            sock.bind(local_addr)
        except BaseException:
            sock.close()
            raise
    return await _connected(sock, address)


async def _connected(sock: socket.socket, address: object) -> socket.socket:
    try:
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, address)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise
    return sock
