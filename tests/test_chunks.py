"""BDAT over the asyncio shell: one reader for DATA and BDAT, and no message that is not whole (RFC 3030)."""

from __future__ import annotations

import asyncio

import pytest

from fastsmtp import DataContext, DataReader, DefaultBackend, DefaultSession, MessageAborted, Server
from fastsmtp.limits import BODY_HIGH_WATER

from .loops import Runner

HELLO = b"EHLO x\r\nMAIL FROM:<a@x> BODY=BINARYMIME\r\nRCPT TO:<b@x>\r\n"


class Recorder(DefaultSession):
    """Keeps what came, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.log: list[str] = []

    def mail(self, sender: str, params: object) -> None:
        self.log.append("mail")

    def reset(self) -> None:
        self.log.append("reset")

    def logout(self) -> None:
        self.log.append("logout")

    async def data(self, reader: DataReader, context: DataContext) -> None:
        self.log.append("begun")
        try:
            size = 0
            async for chunk in reader:
                size += len(chunk)
        except MessageAborted:
            await asyncio.sleep(0)  # what comes after it must wait for this
            self.log.append("aborted")
            raise
        self.log.append(f"whole {size}")


async def conversation(server: Server, octets: bytes, last: bytes) -> bytes:
    """Send octets and read replies up to the last one."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(octets)
    replies = b""
    while not replies.endswith(last) and (more := await reader.read(65536)):
        replies += more
    writer.close()
    await writer.wait_closed()
    return replies


def serve(run: Runner, octets: bytes, last: bytes, lmtp: bool = False) -> tuple[list[str], bytes]:
    sessions: list[Recorder] = []

    def factory() -> Recorder:
        sessions.append(Recorder())
        return sessions[-1]

    replies = b""

    async def main() -> None:
        nonlocal replies
        async with Server(DefaultBackend(factory), addr="127.0.0.1:0", lmtp=lmtp) as server:
            replies = await asyncio.wait_for(conversation(server, octets, last), 30)

    run(main)
    return sessions[0].log, replies


def test_a_streamed_message(run: Runner) -> None:
    big = b"\0" * (BODY_HIGH_WATER * 3)
    chunk = b"BDAT %d\r\n%b" % (len(big), big)
    log, replies = serve(run, HELLO + chunk * 3 + b"BDAT 0 LAST\r\nQUIT\r\n", b"Bye\r\n")
    assert replies.count(b"250 2.0.0 Chunk received\r\n") == 3
    assert b"250 2.0.0 Message accepted\r\n221" in replies
    assert log == ["mail", "begun", f"whole {len(big) * 3}", "reset", "logout"]


@pytest.mark.parametrize("command", [b"RSET", b"EHLO y"])
@pytest.mark.parametrize("begun", [True, False])
def test_a_message_given_up_between_chunks(run: Runner, command: bytes, begun: bool) -> None:
    big = b"\0" * (BODY_HIGH_WATER * 2 if begun else 10)
    octets = HELLO + b"BDAT %d\r\n%b" % (len(big), big) + command + b"\r\n"
    octets += b"MAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nBDAT 2 LAST\r\nhiQUIT\r\n"
    log, replies = serve(run, octets, b"Bye\r\n")
    first = ["begun", "aborted"] if begun else []
    assert log == ["mail", *first, "reset", "mail", "begun", "whole 2", "reset", "logout"]
    assert replies.count(b"Message accepted") == 1


def test_a_connection_lost_within_the_last_chunk(run: Runner) -> None:
    log, replies = serve(run, HELLO + b"BDAT 100 LAST\r\nhello", b"Recipient OK\r\n")
    assert log == ["mail", "logout"]
    assert b"accepted" not in replies


def test_a_connection_lost_between_chunks(run: Runner) -> None:
    big = b"\0" * (BODY_HIGH_WATER * 2)
    log, replies = serve(run, HELLO + b"BDAT %d\r\n%b" % (len(big), big), b"Chunk received\r\n")
    assert log == ["mail", "begun", "aborted", "logout"]
    assert b"accepted" not in replies


def test_lmtp(run: Runner) -> None:
    octets = b"LHLO x\r\nMAIL FROM:<a@x>\r\nRCPT TO:<b@x>\r\nRCPT TO:<c@x>\r\nBDAT 1\r\nxBDAT 1 LAST\r\nyQUIT\r\n"
    log, replies = serve(run, octets, b"Bye\r\n", lmtp=True)
    assert replies.count(b"Message accepted") == 2
    assert log == ["mail", "begun", "whole 2", "reset", "logout"]
