"""Twice the input is twice the work: calls are counted, not time."""

from __future__ import annotations

import sys
from collections.abc import Callable

import pytest

from fastsmtp import ServerOptions, limits
from fastsmtp import _textproto_py as pure
from fastsmtp.protocol import ServerProfile, ServerProtocol
from fastsmtp.protocol.client import ClientProtocol
from fastsmtp.protocol.proxy import ProxyError, ProxyReader

OPTIONS = ServerOptions(max_errors=0, max_recipients=0, dsn=True, max_message_bytes=0, bare_newlines="keep")
HELLO = b"EHLO x.example\r\n"
MAIL = HELLO + b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"


def calls(function: Callable[[], object]) -> int:
    """How many functions are called, of Python and of C."""
    count = 0

    def profile(frame: object, event: str, argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(profile)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


def serve(data: bytes, step: int) -> int:
    """The octets that were kept from one piece to the next: each is copied again."""
    protocol = ServerProtocol(ServerProfile(OPTIONS))
    protocol.greet()
    kept = 0
    for start in range(0, len(data), step):
        protocol.receive_data(data[start : start + step])
        while protocol.next_event() is not None:
            if protocol.awaiting_reply:
                protocol.reply()
        protocol.data_to_send()
        kept += protocol.buffered
    return kept


# What comes first, and what comes n times.
DIALOGUES = {
    "commands": (HELLO, b"NOOP\r\n"),
    "rubbish": (HELLO, b"\xff\r\n"),
    "recipients": (MAIL, b"RCPT TO:<c@d.example> NOTIFY=NEVER\r\n"),
    "bad recipients": (MAIL, b"RCPT TO:<" + b"(" * 200 + b"\r\n"),
    "transactions": (HELLO, MAIL + b"DATA\r\nx\r\n.\r\n"),
    "resets": (HELLO, MAIL + b"RSET\r\n"),
    "body": (MAIL + b"DATA\r\n", b"..x\r\n\n.\n\r.\r"),
    "chunks": (MAIL, b"BDAT 2\r\nxy"),
    "refused chunks": (HELLO, b"BDAT 9\r\nQUIT\r\nxyz"),
    "long lines": (HELLO, b"x" * 3000 + b"\r\n"),
    "unended lines": (HELLO, b"AUTH " + b"x" * 12000 + b"\r\n"),
    "parameters": (HELLO, b"MAIL FROM:<a@b>" + b" X=" * 60 + b"\r\n"),
    "sources": (HELLO, b"MAIL FROM:<" + b"@a," * 60 + b":x@y>\r\n"),
}


@pytest.mark.parametrize("step", [1, 1000, 1 << 30], ids=["octets", "pieces", "whole"])
@pytest.mark.parametrize("name", DIALOGUES)
def test_server(name: str, step: int) -> None:
    first, again = DIALOGUES[name]
    count = 40 if len(again) < 100 else 8
    one, two = first + again * count, first + again * count * 2
    work = calls(lambda: serve(one, step)), calls(lambda: serve(two, step))
    assert work[1] <= 2.1 * work[0]
    if step == 1:
        assert work[1] > 1.3 * work[0]
    kept = serve(two, step)
    limit = limits.AUTH_LINE if name == "unended lines" else limits.COMMAND_LINE
    assert kept <= (len(two) // step + 1) * limit


def hear(data: bytes, step: int) -> None:
    protocol = ClientProtocol(hello_name="x.example")
    for start in range(0, len(data), step):
        protocol.receive_data(data[start : start + step])
        while protocol.next_event() is not None:
            pass


@pytest.mark.parametrize("step", [1, 1 << 30])
def test_client(step: int) -> None:
    work = [calls(lambda lines=lines: hear(b"220-x\r\n" * lines + b"220 y\r\n", step)) for lines in (100, 200)]  # type: ignore[misc]
    assert 1.5 * work[0] < work[1] <= 2.1 * work[0]


@pytest.mark.parametrize("again", [b"A: b\r\n", b"A:\r\n", b"x: y\r\n z\r\n"])
def test_header_blocks(again: bytes) -> None:
    work = [calls(lambda count=count: pure.parse_header_block(again * count + b"\r\n")) for count in (200, 400)]  # type: ignore[misc]
    assert 1.5 * work[0] < work[1] <= 2.1 * work[0]


def test_proxy_headers() -> None:
    def read(data: bytes) -> None:
        reader = ProxyReader()
        try:
            for place in range(len(data)):
                reader.feed(data[place : place + 1])
        except ProxyError:
            pass

    tlvs = [
        b"\r\n\r\n\x00\r\nQUIT\n\x21\x11" + (12 + size).to_bytes(2) + bytes(12) + b"\xee\x00\x00" * (size // 3)
        for size in (300, 600)
    ]
    work = [calls(lambda data=data: read(data)) for data in tlvs]  # type: ignore[misc]
    assert work[1] <= 2.1 * work[0]
