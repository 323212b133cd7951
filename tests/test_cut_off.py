"""FIN and RST at every octet of a dialogue: plain, pipelined, in chunks, LMTP, with a login, behind XFORWARD; on asyncio's loop and on uvloop.

What a cut dialogue is answered is the beginning of what the whole one is; what is delivered is what had arrived whole; the session is told once.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import pathlib
import socket
import ssl
from dataclasses import dataclass, field
from typing import Any, Final

import pytest

from fastsmtp import ConnectionState, DataContext, DataReader, DefaultSession, Server, ServerOptions

from .certificates import Authority
from .loops import Runner
from .test_faults import Wire, quiet, reset, until

ENVELOPE: Final = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
TWO: Final = ENVELOPE + b"RCPT TO:<e@f.example>\r\n"
LOGIN: Final = base64.b64encode(b"\0user\0secret")


@dataclass(frozen=True, slots=True)
class Play:
    """One dialogue.

    Attributes:
        octets: the whole of it.
        bodies: the messages that it delivers, each with the octets after which it is whole.
    """

    octets: bytes
    bodies: tuple[tuple[int, bytes], ...]
    options: dict[str, Any] = field(default_factory=dict)


def play(*pieces: bytes | tuple[bytes, bytes], **options: Any) -> Play:
    """A dialogue of these pieces; one with a body beside it delivers that with its last octet."""
    octets = b""
    bodies = []
    for piece in pieces:
        octets += piece[0] if isinstance(piece, tuple) else piece
        if isinstance(piece, tuple):
            bodies.append((len(octets), piece[1]))
    return Play(octets, tuple(bodies), options)


HELLO: Final = b"EHLO x.example\r\n"
DATA: Final = (b"DATA\r\nS: x\r\n\r\n..dot\r\n\r\n.\r\n", b"S: x\r\n\r\n.dot\r\n\r\n")
CHUNKS: Final = (b"BDAT 4\r\nS: xBDAT 0\r\nBDAT 9 LAST\r\n\r\n\r\n.\r\n\0\n", b"S: x\r\n\r\n.\r\n\0\n")
PLAYS: Final = {
    "data": play(HELLO, ENVELOPE, DATA, b"QUIT\r\n"),
    "two messages": play(HELLO, ENVELOPE, DATA, b"RSET\r\n", TWO, DATA, b"NOOP\r\nQUIT\r\n"),
    "chunks": play(HELLO, ENVELOPE.replace(b">\r", b"> BODY=BINARYMIME\r", 1), CHUNKS, b"QUIT\r\n"),
    "refused chunks": play(
        HELLO, b"BDAT 20\r\n" + b"NOOP\r\n" * 3 + b"\r\n", b"BDAT 0 LAST\r\n", ENVELOPE, DATA, b"QUIT\r\n"
    ),
    "a bare LF": play(HELLO, ENVELOPE, b"DATA\r\nx\n.\nNOOP\r\n.\r\n", ENVELOPE, DATA, b"QUIT\r\n"),
    "lmtp": play(b"LHLO x.example\r\n", TWO, DATA, TWO, CHUNKS, b"QUIT\r\n", lmtp=True, bare_newlines="keep"),
    "login": play(
        HELLO,
        b"AUTH PLAIN\r\n*\r\nAUTH PLAIN\r\n" + LOGIN + b"\r\n",
        ENVELOPE,
        DATA,
        b"QUIT\r\n",
        allow_insecure_auth=True,
        auth_failure_delay=0,
    ),
    "xforward": play(
        HELLO,
        b"XFORWARD NAME=spike.example ADDR=192.0.2.7 PORT=25\r\nXFORWARD PROTO=ESMTP HELO=spike.example\r\n",
        ENVELOPE,
        DATA,
        b"QUIT\r\n",
        allow_xforward=("192.0.2.0/24", "127.0.0.0/8"),
    ),
}


class Story:
    """A backend, and what its sessions were told.

    Args:
        asynchronous: every hook suspends.
    """

    auth_mechanisms = ("PLAIN",)
    session_on_connect = True

    def __init__(self, asynchronous: bool) -> None:
        self.asynchronous = asynchronous
        self.delivered: list[bytes] = []
        self.sessions = 0
        self.logouts = 0

    def anonymous_login(self, state: ConnectionState) -> Told:
        self.sessions += 1
        return Told(self)

    def login(self, state: ConnectionState, username: str, password: str) -> Told:
        assert (username, password) == ("user", "secret")
        self.sessions += 1
        return Told(self)


class Told(DefaultSession):
    def __init__(self, story: Story) -> None:
        super().__init__()
        self._story = story
        self._over = False

    def _now_or_later(self) -> Any:
        assert not self._over
        return asyncio.sleep(0) if self._story.asynchronous else None

    def mail(self, sender: str, params: Any) -> Any:
        super().mail(sender, params)
        return self._now_or_later()

    def rcpt(self, recipient: str, params: Any) -> Any:
        super().rcpt(recipient, params)
        return self._now_or_later()

    def reset(self) -> Any:
        super().reset()
        return self._now_or_later()

    async def data(self, reader: DataReader, context: DataContext) -> None:
        assert not self._over
        if self._story.asynchronous:
            await asyncio.sleep(0)
        self._story.delivered.append(await reader.read())

    def logout(self) -> Any:
        later = self._now_or_later()
        self._over = True
        self._story.logouts += 1
        return later


def options_of(each: Play, **more: Any) -> ServerOptions:
    options: dict[str, Any] = {"addr": "127.0.0.1:0", "error_logger": quiet()}
    return ServerOptions(**options | each.options | more)


async def settled(wire: Wire) -> bytes:
    """All that is said once no hook has anything to do."""
    for _ in range(60):
        await asyncio.sleep(0)
    return b"".join(wire.writes)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain hooks", "async hooks"])
@pytest.mark.parametrize("how", ["FIN", "RST"])
@pytest.mark.parametrize("name", PLAYS)
def test_at_every_octet(run: Runner, name: str, how: str, asynchronous: bool) -> None:
    each = PLAYS[name]

    async def main() -> None:
        story = Story(asynchronous)
        async with Server(story, options=options_of(each)) as server:
            whole = Wire(server)
            whole.conn.data_received(each.octets)
            everything = await settled(whole)
            assert everything.endswith(b"221 2.0.0 Bye\r\n")
            assert story.delivered == [body for _, body in each.bodies]
            whole.abort()
            for cut in range(len(each.octets) + 1):
                story.delivered.clear()
                wire = Wire(server)
                wire.conn.data_received(each.octets[:cut])
                if how == "FIN":
                    if not wire.conn.eof_received():
                        wire.close()
                    said = await settled(wire)
                    assert wire.closed or wire.eof, (cut, said)
                    assert everything.startswith(said) and said.endswith(b"\r\n")
                    assert said.count(b"\r\n") >= 1
                    due = [body for end, body in each.bodies if end <= cut]
                    assert story.delivered == due, cut
                else:
                    said = b"".join(wire.writes)
                    wire.closed = True
                    wire.conn.connection_lost(ConnectionResetError())
                    await settled(wire)
                    assert everything.startswith(said)
                    # What had arrived whole may be delivered although nobody is there; nothing else, and nothing twice.
                    due = [body for end, body in each.bodies if end <= cut]
                    assert story.delivered == due[: len(story.delivered)], cut
                wire.abort()
                await settled(wire)
            await until(lambda: not server.counters.connections)
            assert story.logouts == story.sessions
            assert server.counters.errors == 0
        assert story.sessions >= len(each.octets)

    run(main)


@pytest.mark.parametrize("how", ["FIN", "RST", "garbage"])
@pytest.mark.parametrize("implicit", [False, True], ids=["STARTTLS", "TLS from the start"])
def test_at_every_record_of_tls(run: Runner, tmp_path: pathlib.Path, how: str, implicit: bool) -> None:
    """Cut within the handshake, within records and between them: a message is delivered when its last record is there."""
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue())
    story = Story(False)
    each = PLAYS["data"]
    before = b"" if implicit else b"EHLO x.example\r\nSTARTTLS\r\n"

    async def visit(server: Server, cut: int) -> tuple[int, bool]:
        """Send no more than so many octets: how many were to be sent, and whether the whole message was."""
        loop = asyncio.get_running_loop()
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = authority.client().wrap_bio(incoming, outgoing, server_hostname="mx.example")
        sent = 0
        with socket.socket() as sock:
            sock.setblocking(False)
            await loop.sock_connect(sock, ("127.0.0.1", server.port))

            async def send(octets: bytes) -> None:
                nonlocal sent
                piece = octets[: max(0, cut - sent)]
                sent += len(octets)
                await loop.sock_sendall(sock, piece)
                if sent > cut:
                    raise EOFError

            async def receive() -> bytes:
                data = await loop.sock_recv(sock, 65536)
                if not data:
                    raise EOFError
                return data

            whole = False
            with contextlib.suppress(EOFError, ConnectionError):
                if before:
                    await send(before)
                    plain = b""
                    while not plain.endswith(b"220 2.0.0 Ready to start TLS\r\n"):
                        plain += await receive()
                while True:
                    try:
                        tls.do_handshake()
                        break
                    except ssl.SSLWantReadError:
                        await send(outgoing.read())
                        incoming.write(await receive())
                await send(outgoing.read())
                for line in each.octets.removesuffix(b"QUIT\r\n").splitlines(keepends=True):
                    tls.write(line)
                    await send(outgoing.read())
                whole = True
            if how == "FIN":
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_WR)
                    while await loop.sock_recv(sock, 65536):
                        pass
            elif how == "garbage":
                with contextlib.suppress(OSError):
                    await loop.sock_sendall(sock, b"\x17\x03\x03\x00\x20" + b"\xff" * 20_000)
                    sock.shutdown(socket.SHUT_WR)
                    while await loop.sock_recv(sock, 65536):
                        pass
            else:
                reset(sock)
        return sent, whole

    async def main() -> None:
        options = options_of(each, tls=context, implicit_tls=implicit)
        async with Server(story, options=options) as server:
            size, whole = await visit(server, 10**9)
            assert whole
            visits = 1
            for cut in [*range(0, size, 29), size - 2, size - 1]:
                story.delivered.clear()
                _, whole = await visit(server, cut)
                visits += 1
                await until(lambda: not server.counters.connections)
                if how != "RST":
                    assert story.delivered == [DATA[1]] * whole, cut
                assert len(story.delivered) <= whole
            assert story.logouts == story.sessions
            assert server.counters.errors == 0

    run(main)


@pytest.mark.parametrize("name", ["data", "chunks", "lmtp"])
def test_a_message_without_its_last_octet(run: Runner, name: str) -> None:
    """Everything but one octet, and then silence: the session sees no whole message, and the server's patience ends."""
    each = PLAYS[name]

    async def main() -> None:
        story = Story(False)
        async with Server(story, options=options_of(each)) as server:
            for end, _ in each.bodies:
                story.delivered.clear()
                wire = Wire(server)
                wire.conn.data_received(each.octets[: end - 1])
                before = [body for other, body in each.bodies if other < end]
                await settled(wire)
                assert story.delivered == before
                wire.conn.timed_out()
                assert (await settled(wire)).endswith(b"421 4.4.2 Timed out\r\n")
                wire.conn.data_received(each.octets[end - 1 :])
                await settled(wire)
                assert story.delivered == before
                wire.abort()
            await until(lambda: not server.counters.connections)
            assert story.logouts == story.sessions

    run(main)
