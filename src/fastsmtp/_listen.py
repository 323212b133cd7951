"""The listening sockets of ``fastsmtp serve``: made here, or inherited from who started it.

With several workers each TCP port has one listening socket per worker (SO_REUSEPORT), so that the kernel spreads the connections; the
parent keeps them all, so that what waits in a dead worker's backlog is served by the worker that takes its place.
"""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Sequence
from typing import Final

__all__ = ["Listening", "inherit", "listen", "place_of"]

_BACKLOG: Final = 1024


class Listening:
    """The listening sockets of all workers.

    Attributes:
        groups: those of each worker.
        place: where they listen, for people.
    """

    def __init__(self, groups: Sequence[Sequence[socket.socket]], place: str, unlink: str | None = None) -> None:
        self.groups: Final = groups
        self.place: Final = place
        self._unlink = unlink

    def close(self, keep: int | None = None) -> None:
        """Close this process's sockets, but those of the worker `keep`."""
        for worker, sockets in enumerate(self.groups):
            if worker != keep:
                for sock in sockets:
                    sock.close()

    def remove(self) -> None:
        """Remove what stands for them in the file system."""
        if self._unlink is not None:
            with contextlib.suppress(OSError):
                os.unlink(self._unlink)


def listen(host: str, port: int, unix: str | None, workers: int) -> Listening:
    """Listen at a path, or else at an address.

    Raises:
        OSError: it cannot be listened on; nothing is left open then.
    """
    if unix:
        sock = _listen_unix(unix)
        return Listening([[sock] if worker == 0 else [sock.dup()] for worker in range(workers)], unix, unix)
    infos = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = infos[0]
    groups: list[list[socket.socket]] = []
    try:
        # Without SO_REUSEPORT first: a port that another program shares is busy all the same.
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            address = probe.getsockname()
            if workers == 1:
                probe.listen(_BACKLOG)
                groups.append([probe.dup()])
        if workers > 1:
            for _ in range(workers):
                sock = socket.socket(family, kind, protocol)
                groups.append([sock])
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if hasattr(socket, "SO_REUSEPORT"):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind(address)
            for (sock,) in groups:
                sock.listen(_BACKLOG)
    except BaseException:
        Listening(groups, "").close()
        raise
    return Listening(groups, place_of(str(address[0]), int(address[1])))


def inherit(fds: Sequence[int], workers: int) -> Listening:
    """Listen on sockets that this process was started with.  All workers share them; what stands for them in the file system stays.

    Raises:
        OSError: one of these file descriptors is no listening stream socket.
    """
    groups: list[list[socket.socket]] = [[] for _ in range(workers)]
    places = []
    try:
        for fd in fds:
            try:
                os.set_inheritable(fd, False)
                sock = socket.socket(fileno=fd)
                groups[0].append(sock)
                if sock.type != socket.SOCK_STREAM or not sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
                    raise OSError(errno.EINVAL, "it is no listening stream socket")
                places.append(_place(sock))
                for group in groups[1:]:
                    group.append(sock.dup())
            except OSError as error:
                raise OSError(error.errno, f"file descriptor {fd}: {error.strerror}") from None
    except BaseException:
        Listening(groups, "").close()
        raise
    return Listening(groups, ",".join(places))


def _place(sock: socket.socket) -> str:
    name = sock.getsockname()
    if isinstance(name, tuple):
        return place_of(str(name[0]), int(name[1]))
    return f"@{name[1:].decode(errors='replace')}" if isinstance(name, bytes) else str(name)


def place_of(host: str, port: int) -> str:
    """host:port, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen_unix(path: str) -> socket.socket:
    """A socket at `path`; one that a dead server left there is replaced, one that answers is not."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock
