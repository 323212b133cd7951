"""Where the servers of a soak are, for clients in any process."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import socket
import ssl
import struct
from dataclasses import dataclass

__all__ = ["Place"]


@dataclass(frozen=True, slots=True)
class Place:
    """One server, as its clients see it.

    Attributes:
        port: on 127.0.0.1, or 0.
        path: of its Unix socket, or "".
        starttls: STARTTLS is offered.
        tls: it begins with TLS.
        proxy: each connection begins with a PROXY header.
        ca: the file of who signed its certificate.
        patience: seconds after which it has left any slow client.
        most: connections at a time.
        most_of_one: the same of one address.
    """

    name: str
    port: int = 0
    path: str = ""
    lmtp: bool = False
    starttls: bool = False
    tls: bool = False
    proxy: bool = False
    ca: str = ""
    patience: float = 60.0
    most: int = 0
    most_of_one: int = 0

    @property
    def hello(self) -> bytes:
        """The verb of its greeting."""
        return b"LHLO" if self.lmtp else b"EHLO"

    @property
    def greets_at_once(self) -> bool:
        """Its banner comes without being asked for."""
        return not (self.tls or self.proxy)

    def context(self) -> ssl.SSLContext:
        """For TLS with it."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.load_verify_locations(self.ca)
        return context

    async def connect(self, address: str = "127.0.0.1") -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection from this loopback address, with its PROXY header sent and its TLS begun.  Raises OSError."""
        if self.path:
            return await asyncio.open_unix_connection(self.path)
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, local_addr=(address, 0))
        if self.proxy:
            writer.write(self.header(address))
        if self.tls:
            await writer.start_tls(self.context(), server_hostname="mx.example")
        return reader, writer

    def header(self, address: str) -> bytes:
        """The PROXY header of a client at this address, of either version."""
        if random.random() < 0.5:
            return f"PROXY TCP4 {address} 127.0.0.1 40000 {self.port}\r\n".encode()
        addresses = socket.inet_aton(address) + socket.inet_aton("127.0.0.1") + struct.pack("!HH", 40000, self.port)
        return b"\r\n\r\n\0\r\nQUIT\n" + bytes((0x21, 0x11)) + struct.pack("!H", len(addresses)) + addresses

    def to_json(self) -> str:
        """For another process."""
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Place:
        """From another process."""
        return cls(**json.loads(text))
