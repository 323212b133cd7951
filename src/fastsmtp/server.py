"""The asyncio server: listeners, limits, patience and the way to stop."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import logging
import os
import socket
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .authentication import Authenticator, MechanismFactory
from .connection import Conn
from .counters import Counters
from .errors import ConfigurationError
from .extensions import Offer
from .hooks import HookRunner
from .networks import Networks
from .options import ServerOptions, split_addr
from .protocol import ServerProfile
from .roster import Roster
from .session import Address, Backend, DefaultBackend

if TYPE_CHECKING:
    import ssl
    from types import TracebackType
    from typing import Self

__all__ = ["Server"]

_ACCEPTS_PER_TURN: Final = 16
_MOST_OFFERS: Final = 64  # kinds of connection


@dataclass(slots=True)
class _Listener:
    server: asyncio.Server
    unlink: str | None
    identity: tuple[int, int] | None


class Server:
    """An SMTP or LMTP server.

        async with Server(DefaultBackend(MySession), addr="127.0.0.1:2525"):
            ...

    Args:
        backend: gives each connection its session.
        options: a ready `ServerOptions`; or its fields as keyword arguments, never both.

    Raises:
        ConfigurationError: an option is impossible.
    """

    def __init__(self, backend: Backend, *, options: ServerOptions | None = None, **fields: Any) -> None:
        if options is not None and fields:
            raise TypeError("give options, or its fields, not both")
        self.backend: Final = backend
        self.options: Final = options if options is not None else ServerOptions(**fields)
        self.profile: Final = ServerProfile(self.options)
        # What a DefaultBackend gives does not depend on who asks.
        self.factory: Final = backend.factory if type(backend) is DefaultBackend else None
        self.session_on_connect: Final = bool(getattr(backend, "session_on_connect", False))
        self.logger: Final = self.options.error_logger or logging.getLogger("fastsmtp")
        self.counters: Final = Counters()
        self.hooks: Final = HookRunner(self.logger, self.counters)
        self.authenticator: Final = Authenticator(backend)
        self.roster: Final = Roster(self.options, self.counters, self.logger)
        self.proxies: Final = Networks(self.options.proxy_from) or None
        self._xforward: Final = Networks(self.options.allow_xforward)
        self._xclient: Final = Networks(self.options.allow_xclient)
        self._offers: Final[dict[tuple[bool, tuple[str, ...], bool, bool], Offer]] = {}
        self._listeners: list[_Listener] = []
        self._closed: asyncio.Event | None = None
        self._see_whether_alike()

    # Starting

    async def start(self, *, implicit_tls: bool | None = None) -> None:
        """Listen on `addr` and `unix_socket` of the options, and return.

        Raises:
            OSError: an address cannot be listened on; nothing is left open then.
        """
        try:
            if self.options.addr:
                await self.listen(self.options.addr, implicit_tls=implicit_tls)
            if self.options.unix_socket is not None:
                await self.listen(unix_socket=self.options.unix_socket, implicit_tls=implicit_tls)
        except BaseException:
            await self.close()
            raise

    async def listen(
        self,
        addr: str | None = None,
        *,
        unix_socket: str | os.PathLike[str] | None = None,
        sock: socket.socket | None = None,
        implicit_tls: bool | None = None,
    ) -> None:
        """Add one listener: an address, a Unix socket's path, or a socket that is bound already.

        Args:
            addr: "host:port".
            unix_socket: a path.
            sock: a bound socket; the server closes it.
            implicit_tls: connections begin with TLS (RFC 8314 section 3.3); as the options say if not given.

        Raises:
            ConfigurationError: `addr` is no "host:port".
            OSError: it cannot be listened on.
            TypeError: not exactly one of the three is given.
            RuntimeError: the server is stopped.
        """
        if sum(each is not None for each in (addr, unix_socket, sock)) != 1:
            raise TypeError("give one of addr, unix_socket and sock")
        if self.roster.stopping:
            raise RuntimeError("the server is stopped")
        loop = asyncio.get_running_loop()
        self.roster.open(loop)
        if self._closed is None:
            self._closed = asyncio.Event()
        if implicit_tls is None:
            implicit_tls = self.options.implicit_tls
        elif implicit_tls and self.options.tls is None:
            raise ConfigurationError("implicit_tls needs tls")
        unlink = None
        backlog = min(self.options.backlog, _ACCEPTS_PER_TURN)

        sockname: Address = None  # not known, or not the same for all

        def make() -> asyncio.BaseProtocol:
            return Conn(self, loop, implicit_tls, sockname).protocol

        if addr is not None:
            host, port = split_addr(addr)
            server = await loop.create_server(make, host or None, port, backlog=backlog)
            sockname = _common_sockname(server.sockets)
        elif unix_socket is not None:
            unlink = os.fspath(unix_socket)
            server = await loop.create_unix_server(make, unlink, backlog=backlog)
        elif sock is not None:
            unix = sock.family == getattr(socket, "AF_UNIX", None)
            create: Callable[..., Any] = loop.create_unix_server if unix else loop.create_server
            # Python 3.13 would remove the path of a Unix socket: it belongs to who bound it, systemd or another worker.
            keep = {"cleanup_socket": False} if "cleanup_socket" in inspect.signature(create).parameters else {}
            server = await create(make, sock=sock, backlog=backlog, **keep)
        else:
            raise AssertionError("one of the three is given")
        for each in server.sockets:
            with socket.socket(fileno=os.dup(each.fileno())) as twin:
                twin.listen(self.options.backlog)
        listener = _Listener(server, unlink, _identity(unlink))
        self._listeners.append(listener)
        if self.roster.stopping:  # closed meanwhile
            await self.close()
            raise RuntimeError("the server is stopped")

    async def serve(self, sock: socket.socket) -> None:
        """Serve on a ready-made listening socket until the server is closed."""
        await self.listen(sock=sock)
        await self.wait_closed()

    async def listen_and_serve(self) -> None:
        """Listen on the options' addresses and serve until the server is closed."""
        await self.start()
        await self.wait_closed()

    async def listen_and_serve_tls(self) -> None:
        """The same with TLS from the first octet on (RFC 8314 section 3.3), whatever the options say.

        Raises:
            ConfigurationError: the option `tls` is not set.
        """
        await self.start(implicit_tls=True)
        await self.wait_closed()

    async def serve_forever(self) -> None:
        """Serve until closed or cancelled; starts first if that was not done.  Cancelled, it closes the server."""
        if not self._listeners:
            await self.start()
        try:
            await self.wait_closed()
        except asyncio.CancelledError:
            await self.close()
            raise

    @property
    def sockets(self) -> Sequence[socket.socket]:
        """The listening sockets."""
        return tuple(sock for listener in self._listeners for sock in listener.server.sockets)

    @property
    def port(self) -> int:
        """The port of the first TCP listener.

        Raises:
            RuntimeError: there is none.
        """
        for sock in self.sockets:
            if sock.family in (socket.AF_INET, socket.AF_INET6):
                port: int = sock.getsockname()[1]
                return port
        raise RuntimeError("no TCP listener")

    # Stopping

    async def shutdown(self, timeout: float | None = 30.0) -> None:
        """Stop gently.

        No new connections; idle ones get 421; a message whose end has arrived is finished and answered, one that still
        arrives may do so; after `timeout` seconds (None: no end) the rest is dropped.
        """
        self._stop_listening()
        for conn in tuple(self.roster.conns):
            conn.shut_down()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.roster.emptied()
        await self.close()

    async def close(self) -> None:
        """Stop at once: listeners and connections are dropped, hooks cancelled.  May be called any time, and again."""
        self._stop_listening()
        for conn in tuple(self.roster.conns):
            conn.abort()
        await self.roster.emptied()
        for listener in self._listeners:
            await listener.server.wait_closed()
            if listener.unlink is not None and listener.identity == _identity(listener.unlink):
                with contextlib.suppress(OSError):
                    os.unlink(listener.unlink)
        self._listeners.clear()
        self.roster.close()
        if self._closed is not None:
            self._closed.set()

    async def wait_closed(self) -> None:
        """Wait until the server has been closed."""
        if self._closed is not None:
            await self._closed.wait()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            await self.shutdown()
        else:
            await self.close()

    def _stop_listening(self) -> None:
        self.roster.stopping = True
        for listener in self._listeners:
            listener.server.close()

    # Connections

    def for_each_conn(self, callback: Callable[[Conn], object]) -> None:
        """Call back with each connection that is open now."""
        for each in tuple(self.roster.conns):
            callback(each.conn)

    def enable_auth(self, name: str, factory: MechanismFactory | None = None) -> None:
        """Offer one more SASL mechanism.

        Args:
            name: as registered with IANA.
            factory: makes the server side of one exchange; without it the built-in mechanism of that name is used, and
                `Backend.authenticate` decides about its credentials.

        Raises:
            ConfigurationError: no such mechanism is built in, or that is no name of one.
        """
        self.authenticator.enable(name, factory)
        self._see_whether_alike()

    def _see_whether_alike(self) -> None:
        may_auth = self.authenticator and not self.options.disable_auth
        self.profile.alike = not (may_auth or self.options.tls or self._xforward or self._xclient)

    def tls_context(self) -> ssl.SSLContext | None:
        """The context for a handshake that begins now, or None when there is none.  For connections."""
        tls = self.options.tls
        try:
            return tls() if callable(tls) else tls
        except Exception:
            self.logger.exception("no TLS context")
            return None

    def offer_for(self, conn: Conn) -> Offer:
        """What this connection is offered as it is now.  For connections."""
        offer = self._offer_for(conn)
        change: Any = getattr(conn.session, "offer", None)
        if change is None:
            return offer
        try:
            changed = change(offer)
            if type(changed) is Offer:
                return changed
            raise TypeError(f"offer returned {type(changed).__name__}, not an Offer")
        except Exception:
            self.logger.exception("the session's offer failed")
            return offer

    def _offer_for(self, conn: Conn) -> Offer:
        options = self.options
        may_auth = not options.disable_auth and (self.authenticator or hasattr(conn.session, "auth"))
        if not may_auth and self.profile.alike:
            return self.profile.offer
        secure = conn.tls_connection_state is not None
        mechanisms: tuple[str, ...] = ()
        if may_auth:
            if secure or options.allow_insecure_auth:
                mechanisms = self.authenticator.offered(conn)
            else:
                conn.withhold_auth(options.tls is not None)
        peer = conn.peer_addr
        key = (secure, mechanisms, peer in self._xforward, peer in self._xclient)
        offer = self._offers.get(key)
        if offer is None:
            if len(self._offers) >= _MOST_OFFERS:
                self._offers.clear()
            offer = self._offers[key] = Offer(options, key[0], options.tls is not None, *key[1:])
        return offer


def _common_sockname(sockets: Sequence[socket.socket]) -> Address:
    """The local address of all connections to these listeners, so that none has to be asked for its own; None if they may differ."""
    if len(sockets) != 1:
        return None
    sockname: tuple[Any, ...] = sockets[0].getsockname()
    return None if sockname[0] in ("0.0.0.0", "::") else sockname


def _identity(path: str | None) -> tuple[int, int] | None:
    """Which file is at a path, so that a socket that another server has put there since is left alone."""
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError:
        return None
    return status.st_dev, status.st_ino
