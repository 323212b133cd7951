"""What the tests of the client's protocol share."""

from __future__ import annotations

from collections.abc import Iterator

from fastsmtp.protocol.client import ClientProtocol
from fastsmtp.protocol.requests import Command
from fastsmtp.protocol.transaction import Transaction

from .dialogue import cut

__all__ = ["ALL", "ESMTP", "GO", "NO", "OK", "codes", "greeted", "steps", "tell"]

ESMTP = b"250-mx.example at your service\r\n250-%b\r\n250 HELP\r\n"
ALL = (
    b"PIPELINING\r\n250-8BITMIME\r\n250-SIZE 1000\r\n250-SMTPUTF8\r\n250-CHUNKING\r\n250-BINARYMIME\r\n250-DSN\r\n"
    b"250-STARTTLS\r\n250-AUTH PLAIN LOGIN X-PROVE\r\n250-ENHANCEDSTATUSCODES"
)
OK = b"250 2.0.0 ok\r\n"
NO = b"550 5.1.1 nobody\r\n"
GO = b"354 go on\r\n"


def tell(protocol: ClientProtocol, data: bytes, how: str = "whole") -> list[Command]:
    """The server says this, in pieces; what became of it."""
    events = []
    for piece in cut(data, how):
        protocol.receive_data(piece)
        while (event := protocol.next_event()) is not None:
            events.append(event)
    return events


def greeted(
    extensions: bytes | None = ALL, how: str = "whole", *, lmtp: bool = False, pipelining: bool = True
) -> ClientProtocol:
    """After EHLO, or HELO when there are no extensions."""
    protocol = ClientProtocol(lmtp=lmtp, hello_name="client.example", pipelining=pipelining)
    protocol.hello()
    assert protocol.data_to_send() == b""
    tell(protocol, b"220 mx.example ready\r\n", how)
    assert protocol.data_to_send() == (b"LHLO" if lmtp else b"EHLO") + b" client.example\r\n"
    if extensions is None:
        tell(protocol, b"502 what?\r\n", how)
        assert protocol.data_to_send() == b"HELO client.example\r\n"
        tell(protocol, b"250 mx.example\r\n", how)
    else:
        tell(protocol, ESMTP % extensions, how)
    return protocol


def codes(transaction: Transaction) -> list[tuple[str, int]]:
    return [(each.recipient, each.reply.code) for each in transaction.deliveries]


def steps(protocol: ClientProtocol, replies: list[bytes], how: str = "whole") -> Iterator[bytes]:
    """What is sent before each reply."""
    for reply in replies:
        yield protocol.data_to_send()
        tell(protocol, reply, how)
    yield protocol.data_to_send()
