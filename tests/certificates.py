"""Certificates for tests, and a client that has TLS in its own hands: what goes into one packet, and how it ends."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import ssl
from collections.abc import Iterator

import trustme

from fastsmtp import Server

__all__ = ["Authority", "TLSClient"]

_ENOUGH = 65536


class Authority:
    """An authority of its own, whose files go into a folder.

    Attributes:
        ca: its certificate, a PEM file.
    """

    def __init__(self, folder: pathlib.Path) -> None:
        self._authority = trustme.CA()
        self._folder = folder
        self.ca = folder / "ca.pem"
        self._authority.cert_pem.write_to_path(str(self.ca))

    def issue(self, name: str = "mx.example", *, file: str = "", common_name: str | None = None) -> pathlib.Path:
        """Key and certificate of a host name, in the PEM file `file`, or one called by that name."""
        path = self._folder / (file or f"{name.replace('*', 'any')}.pem")
        issued = self._authority.issue_cert(name, common_name=common_name)
        issued.private_key_and_cert_chain_pem.write_to_path(str(path))
        return path

    def client(self, certificate: pathlib.Path | None = None) -> ssl.SSLContext:
        """The context of a client that trusts this authority, and shows `certificate`."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.ca)
        if certificate is not None:
            context.load_cert_chain(certificate)
        return context


class TLSClient:
    """A client that encrypts by itself, on a plain socket.

    Attributes:
        tls: the TLS object once a handshake has begun; None in plaintext.
    """

    def __init__(self, server: Server, port: int = 0) -> None:
        self._port = port or server.port
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._received = b""
        self.tls: ssl.SSLObject | None = None

    async def __aenter__(self) -> TLSClient:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    # Raw octets

    async def handshake(self, context: ssl.SSLContext, name: str = "mx.example", behind: bytes = b"") -> None:
        """Shake hands; `behind` is encrypted and leaves together with the handshake's last octets."""
        self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname=name or None)
        await self.finish_handshake()
        self.send(behind)

    def hello(self, context: ssl.SSLContext) -> bytes:
        """Begin: the octets of a ClientHello, unsent."""
        tls = self.tls = context.wrap_bio(self._incoming, self._outgoing, server_hostname="mx.example")
        with contextlib.suppress(ssl.SSLWantReadError):
            tls.do_handshake()
        return self._outgoing.read()

    async def finish_handshake(self) -> None:
        """Go on until it is done; its last octets leave with what is sent next."""
        assert self.tls is not None
        while True:
            try:
                self.tls.do_handshake()
                return
            except ssl.SSLWantReadError:
                self.writer.write(self._outgoing.read())
                octets = await self.reader.read(_ENOUGH)
                if not octets:
                    raise ConnectionResetError("closed within the handshake") from None
                self._incoming.write(octets)

    def send(self, *pieces: bytes) -> None:
        """Send octets as they are, or in a record for each piece, in one write."""
        if self.tls is None:
            self.writer.write(b"".join(pieces))
            return
        for piece in pieces:
            for begin in range(0, len(piece), 16384):
                self.tls.write(piece[begin : begin + 16384])
        self.writer.write(self._outgoing.read())

    def close_notify(self) -> None:
        """Say that no more comes, as TLS wants it (RFC 8446 section 6.1)."""
        assert self.tls is not None
        with contextlib.suppress(ssl.SSLWantReadError, ssl.SSLSyscallError):
            self.tls.unwrap()
        self.writer.write(self._outgoing.read())

    async def _more(self) -> bool:
        """Read a piece; False when the other side has closed."""
        while True:
            if self.tls is not None:
                try:
                    octets = self.tls.read(_ENOUGH)
                except ssl.SSLWantReadError:
                    pass
                except (ssl.SSLZeroReturnError, ssl.SSLEOFError):
                    return False
                else:
                    self._received += octets
                    return bool(octets)
            try:
                octets = await self.reader.read(_ENOUGH)
            except ConnectionError:
                octets = b""
            if self.tls is None:
                self._received += octets
                return bool(octets)
            if octets:
                self._incoming.write(octets)
            else:
                self._incoming.write_eof()

    # Lines

    async def line(self) -> str:
        """The next line; what there is of it when the other side has closed."""
        while b"\n" not in self._received and await self._more():
            pass
        line, end, self._received = self._received.partition(b"\n")
        return (line + end).decode().rstrip("\r\n")

    async def rest(self) -> bytes:
        """All that comes until the other side closes."""
        while await self._more():
            pass
        rest, self._received = self._received, b""
        return rest

    async def reply(self) -> list[str]:
        """A reply, its lines."""
        lines = [await self.line()]
        while lines[-1][3:4] == "-":
            lines.append(await self.line())
        return lines

    async def ask(self, *commands: str) -> str:
        """Send commands at once; the last line of the reply to the last of them."""
        self.send("".join(f"{each}\r\n" for each in commands).encode())
        lines = [(await self.reply())[-1] for _ in commands]
        return lines[-1]

    async def greeted(self) -> None:
        """Take the greeting, and say EHLO."""
        assert (await self.line()).startswith("220 ")
        assert (await self.ask("EHLO x.example")).startswith("250 ")

    async def starttls(self, context: ssl.SSLContext, name: str = "mx.example") -> None:
        """From the greeting into TLS."""
        await self.greeted()
        assert await self.ask("STARTTLS") == "220 2.0.0 Ready to start TLS"
        await self.handshake(context, name)

    async def envelope(self) -> None:
        """From EHLO to 354."""
        assert (await self.ask("EHLO inside.example")).startswith("250 ")
        assert (await self.ask("MAIL FROM:<a@b.example>")).startswith("250 ")
        assert (await self.ask("RCPT TO:<c@d.example>")).startswith("250 ")
        assert (await self.ask("DATA")).startswith("354 ")

    @property
    def shown(self) -> str:
        """The host name of the certificate that the server has shown."""
        assert self.tls is not None
        certificate = self.tls.getpeercert()
        assert certificate is not None
        names: list[str] = [value for kind, value in _pairs(certificate["subjectAltName"]) if kind == "DNS"]
        return names[0]


def _pairs(names: object) -> Iterator[tuple[str, str]]:
    assert isinstance(names, tuple)
    yield from names
