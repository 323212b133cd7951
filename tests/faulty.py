"""A next hop that fails at one step, in one of many ways."""

from __future__ import annotations

import asyncio
import itertools
import socket
import struct
from collections.abc import Mapping

from fastsmtp.client_options import Timeouts

from .fake_server import CLOSE, SILENCE, Fake

__all__ = ["BUSY", "CASES", "FAULTS", "IMPATIENT", "NO", "STALLS", "STEPS", "Hop"]

RESET, ENDLESS_LINES, ENDLESS_LINE, DRIP = b"(reset)", b"(lines)", b"(line)", b"(drip)"
BUSY, NO = b"451 4.3.0 not now\r\n", b"551 5.7.1 no\r\n"

FAULTS: dict[str, bytes] = {
    "refused for now": BUSY,
    "refused for good": NO,
    "421": b"421 4.3.2 going down\r\n",
    "421 and closed": b"421 4.3.2 going down\r\n" + CLOSE,
    "closed": CLOSE,
    "reset": RESET,
    "silent": SILENCE,
    "words": b"what is it?\r\n",
    "octets": b"\x00\x01\xfe\xff\x00\r\n\r\n",
    "a code too high": b"650 6.0.0 what?\r\n",
    "bare LF": b"250 ok\n",
    "two codes": b"250-ok\r\n550 no\r\n",
    "half a line, then closed": b"25" + CLOSE,
    "half a reply, then closed": b"250-ok\r\n" + CLOSE,
    "half a reply, then silent": b"250-ok\r\n" + SILENCE,
    "lines without end": ENDLESS_LINES,
    "a line without end": ENDLESS_LINE,
    "octet by octet": DRIP,
}
IMPATIENT = Timeouts(
    **dict.fromkeys(("greeting", "hello", "mail", "rcpt", "data", "block", "end", "command", "quit"), 0.02)
)
"""A next hop that is too slow by chance fails like one that stalls."""
STALLS = frozenset({"silent", "half a reply, then silent", "octet by octet"})

STEPS: dict[str, dict[str, bytes]] = {
    "one by one": {},
    "pipelined": {"EHLO": b"250-mx.example\r\n250 PIPELINING\r\n"},
    "in chunks": {"EHLO": b"250-mx.example\r\n250-PIPELINING\r\n250 CHUNKING\r\n"},
    "lmtp": {"LHLO": b"250-mx.example\r\n250 PIPELINING\r\n"},
}
"""How a message is sent, by what the next hop offers."""

CASES = [
    *(("one by one", step) for step in ("greeting", "EHLO", "MAIL", "RCPT", "DATA", "body", ".")),
    *(("pipelined", step) for step in ("MAIL", "RCPT", "DATA", "body", ".")),
    *(("in chunks", step) for step in ("MAIL", "RCPT", "BDAT", "LAST")),
    *(("lmtp", step) for step in ("LHLO", "MAIL", "RCPT", "DATA", "body", ".", "second")),
]


class Hop(Fake):
    """A next hop that fails at one step, in one way.

    Attributes:
        step, fault: which; no step, and it is a good one.
        refusals: replies to recipients, by address.
        lmtp: it answers for each recipient.
    """

    def __init__(self, replies: Mapping[str, bytes]) -> None:
        super().__init__(replies)
        self.step, self.fault = "", b""
        self.refusals: dict[str, bytes] = {}
        self.lmtp = "LHLO" in replies
        self._writer: asyncio.StreamWriter
        self._sender, self._recipients = False, 0

    async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str) -> bool:
        if what == "MAIL":
            self._sender, self._recipients = what != self.step, 0
        if what == self.step:
            if what == "." and self.lmtp and self.fault in (BUSY, NO):
                writer.write(self.fault * (self._recipients - 1))
            return await self._fail(reader, writer)
        reply = self.replies.get(what, b"250 ok\r\n")
        if what == "RCPT":
            reply = self.refusals.get(self.lines[-1][9:-1], reply) if self._sender else b"503 no sender\r\n"
            self._recipients += reply.startswith(b"2")
        elif what == "DATA":
            if not self._recipients:
                reply = b"554 no recipients\r\n"
        elif what in (".", "LAST") and self.lmtp:
            for _ in range(self._recipients - 1):
                writer.write(reply)
                if self.step == "second":
                    await writer.drain()
                    return await self._fail(reader, writer)
        writer.write(reply)
        await writer.drain()
        if what == "DATA" and not self._recipients:
            await self._talk(reader, writer)  # no message follows
            return False
        return True

    async def _until(self, reader: asyncio.StreamReader, end: bytes) -> bytes:
        if end == b".\r\n" and self.step == "body":
            await self._more(reader)
            if not await self._fail(reader, self._writer):
                raise EOFError
        return await super()._until(reader, end)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writer = writer
        self._sender, self._recipients = False, 0
        await super().serve(reader, writer)

    async def _fail(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        fault = self.fault
        if fault == RESET:
            sock = writer.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            writer.transport.abort()
            return False
        if fault in (ENDLESS_LINES, ENDLESS_LINE):
            while True:
                writer.write((b"250-more\r\n" if fault == ENDLESS_LINES else b"250 more ") * 100)
                await writer.drain()
        if fault == DRIP:
            for octet in itertools.cycle(b"250-more\r\n"):
                writer.write(bytes([octet]))
                await writer.drain()
                await asyncio.sleep(0.005)
        closes, silent = fault.endswith(CLOSE), fault.endswith(SILENCE)
        writer.write(fault.removesuffix(CLOSE).removesuffix(SILENCE))
        await writer.drain()
        if silent:
            while await reader.read(65536):
                pass
        return not (closes or silent)
