"""TLS of the server: STARTTLS (RFC 3207), implicit TLS (RFC 8314), certificates; on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import io
import logging
import pathlib
import ssl
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from fastsmtp import (
    AuthRequired,
    Conn,
    ConnectionState,
    DataContext,
    DataReader,
    DefaultBackend,
    DefaultSession,
    EnhancedCode,
    MailParams,
    MessageAborted,
    Reply,
    Server,
    ServerOptions,
    SMTPError,
)
from fastsmtp.entrance import start_tls
from fastsmtp.errors import ConfigurationError
from fastsmtp.extensions import Offer
from fastsmtp.holds import SHAKING_HANDS
from fastsmtp.protocol import Body, ServerProfile, ServerProtocol, StartTLS
from fastsmtp.protocol.login import Login
from fastsmtp.protocol.proxy import encode_proxy_v1
from fastsmtp.sasl import Credentials, ExternalCredentials, ScramPlusClient, ScramSecret, server_end_point
from fastsmtp.tls import TLSFiles

from .certificates import Authority, TLSClient
from .dialogue import CUTS, cut
from .loops import Runner

READY = "220 2.0.0 Ready to start TLS"
HELLO_FIRST = "503 5.5.1 Say hello first"
BAD_SEQUENCE = "503 5.5.1 Bad sequence of commands"
TAKEN = "250 2.0.0 Message accepted"
EVIL = b"EHLO evil.example\r\nMAIL FROM:<evil@evil.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nevil\r\n.\r\n"


class Inbox:
    """Makes sessions that keep what happens to them.

    Attributes:
        calls: the hooks in their order.
        messages: those that came whole.
        states: the connection's state at each of these.
        aborted: messages that did not come whole.
    """

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.messages: list[bytes] = []
        self.states: list[ConnectionState] = []
        self.aborted = 0
        inbox = self

        class Recording(DefaultSession):
            def helo(self, name: str) -> None:
                inbox.calls.append(f"helo {name}")

            def mail(self, sender: str, params: MailParams) -> None:
                inbox.calls.append(f"mail {sender}")

            async def data(self, reader: DataReader, context: DataContext) -> None:
                try:
                    inbox.messages.append(await reader.read())
                except MessageAborted:
                    inbox.aborted += 1
                    raise
                inbox.states.append(context.state)

            def reset(self) -> None:
                inbox.calls.append("reset")

            def logout(self) -> None:
                inbox.calls.append("logout")

        self.session = Recording

    def serve(self, **fields: Any) -> Server:
        return Server(DefaultBackend(self.session), addr="127.0.0.1:0", **fields)


@pytest.fixture(scope="session")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority(tmp_path_factory.mktemp("authority"))


@pytest.fixture(scope="session")
def tls(authority: Authority) -> TLSFiles:
    return TLSFiles(authority.issue())


@pytest.fixture(scope="session")
def trust(authority: Authority) -> ssl.SSLContext:
    return authority.client()


@pytest.fixture(autouse=True)
def silent(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """Nothing that a peer does at a handshake is worth a warning, ours or the loop's."""
    caplog.set_level(logging.INFO)
    yield
    assert [each.getMessage() for each in caplog.get_records("call") if each.levelno > logging.INFO] == []


async def until(condition: Callable[[], object]) -> None:
    """Turn the loop until it is so; whoever runs the test sets the end of it."""
    while not condition():
        await asyncio.sleep(0.001)


def conns(server: Server) -> list[Conn]:
    found: list[Conn] = []
    server.for_each_conn(found.append)
    return found


# The protocol without I/O


def core(**fields: Any) -> ServerProtocol:
    """A protocol that could begin TLS."""
    options = ServerOptions(tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), allow_xforward=True, **fields)
    protocol = ServerProtocol(ServerProfile(options))
    protocol.offer = Offer(options, tls_available=True, auth=("PLAIN",), xforward=True)
    protocol.greet()
    protocol.data_to_send()
    return protocol


def said(protocol: ServerProtocol, octets: bytes) -> list[str]:
    """The replies to octets; TLS begins when it is asked for, without a handshake."""
    protocol.receive_data(octets)
    while (event := protocol.next_event()) is not None:
        if protocol.awaiting_reply:
            protocol.reply()
        if type(event) is StartTLS:
            protocol.begin_tls()
            protocol.offer = Offer(protocol.offer.options, tls=True, tls_available=True, auth=("PLAIN",), xforward=True)
        elif type(event) is Body:
            raise AssertionError("a message, where none was sent")
    return protocol.data_to_send().decode().split("\r\n")[:-1]


def test_when_starttls_is_accepted() -> None:
    protocol = core()
    assert said(protocol, b"STARTTLS\r\n") == [HELLO_FIRST]
    assert "250-STARTTLS" in said(protocol, b"EHLO x.example\r\n")
    assert said(protocol, b"STARTTLS now\r\n") == ["501 5.5.4 This command takes no argument"]
    assert said(protocol, b"MAIL FROM:<a@b>\r\nSTARTTLS\r\nRSET\r\n")[1] == BAD_SEQUENCE
    assert said(protocol, b"starttls\r\n") == [READY]
    assert said(protocol, b"STARTTLS\r\n") == [BAD_SEQUENCE]
    assert "STARTTLS" not in " ".join(said(protocol, b"EHLO x.example\r\n"))
    assert said(protocol, b"STARTTLS\r\nSTARTTLS x\r\nNOOP\r\n")[::2] == [BAD_SEQUENCE, "250 2.0.0 OK"]


def test_within_a_message_it_is_content() -> None:
    protocol = core()
    said(protocol, b"EHLO x.example\r\n")
    protocol.receive_data(b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\nSTARTTLS\r\n.\r\n")
    events = []
    while (event := protocol.next_event()) is not None:
        events.append(type(event))
        if protocol.awaiting_reply:
            protocol.reply()
    assert StartTLS not in events
    assert protocol.data_to_send().endswith(f"{TAKEN}\r\n".encode())


@pytest.mark.parametrize("how", CUTS)
def test_all_that_was_said_is_forgotten(how: str) -> None:
    protocol = core()
    for piece in cut(b"EHLO x.example\r\nXFORWARD NAME=evil.example\r\nAUTH PLAIN AGEAYg==\r\n", how):
        said(protocol, piece)
    assert protocol.hello and protocol.authenticated and protocol.xforward
    replies = []
    for piece in cut(b"STARTTLS\r\n", how):
        replies += said(protocol, piece)
    assert replies == [READY]
    assert (protocol.hello, protocol.hello_verb, protocol.authenticated) == ("", "", False)
    assert protocol.sender is None and protocol.xforward is None and not protocol.recipients
    for command in (b"MAIL FROM:<a@b> SIZE=1\r\n", b"RCPT TO:<a@b>\r\n", b"DATA\r\n", b"AUTH PLAIN AGEAYg==\r\n"):
        assert said(protocol, command) == [HELLO_FIRST]
    said(protocol, b"HELO x.example\r\n")
    assert said(protocol, b"MAIL FROM:<a@b> SIZE=1\r\n")[0].startswith("555 ")  # HELO's own set of parameters


@pytest.mark.parametrize("behind", [EVIL, b"NOOP\r\n", b"EHLO ev", b"\r", b"\r\n\r\n", b"x" * 5000, b"\x16\x03\x01"])
def test_core_drops_what_stands_behind(behind: bytes) -> None:
    protocol = core()
    said(protocol, b"EHLO x.example\r\n")
    assert said(protocol, b"STARTTLS\r\n" + behind) == [READY]
    assert protocol.buffered == 0
    # A line that was begun in plaintext is not continued under TLS.
    assert said(protocol, b"NOOP\r\n") == ["250 2.0.0 OK"]
    assert protocol.errors == 0


# STARTTLS


def test_delivery(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls) as server:
            async with TLSClient(server) as client:
                await client.line()
                client.send(b"EHLO outside.example\r\n")
                assert "250-STARTTLS" in await client.reply()
                assert await client.ask("STARTTLS") == READY
                await client.handshake(trust)
                client.send(b"EHLO inside.example\r\n")
                assert "STARTTLS" not in " ".join(await client.reply())
                assert await client.ask("STARTTLS") == BAD_SEQUENCE
                await client.envelope()
                assert await client.ask("..dot\r\nhello\r\n.") == TAKEN
                assert await client.ask("QUIT") == "221 2.0.0 Bye"
                assert await client.rest() == b""
            assert (server.counters.tls, server.counters.tls_failures, server.counters.messages) == (1, 0, 1)
        assert inbox.messages == [b".dot\r\nhello\r\n"]
        state = inbox.states[0]
        assert state.tls is not None and state.tls.version() in ("TLSv1.2", "TLSv1.3")
        assert (state.hostname, state.protocol) == ("inside.example", "ESMTP")
        assert inbox.calls[:3] == ["helo outside.example", "reset", "helo inside.example"]
        assert inbox.calls.count("logout") == 1

    run(main)


def test_without_tls_the_state_says_so(run: Runner, tls: TLSFiles) -> None:
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls) as server, TLSClient(server) as client:
            await client.line()
            await client.envelope()
            assert await client.ask("hello\r\n.") == TAKEN
        assert inbox.states[0].tls is None

    run(main)


def test_refusals(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    async def main() -> None:
        async with Inbox().serve(tls=tls) as server, TLSClient(server) as client:
            await client.line()
            assert await client.ask("STARTTLS") == HELLO_FIRST
            assert await client.ask("EHLO x.example", "STARTTLS x") == "501 5.5.4 This command takes no argument"
            assert await client.ask("MAIL FROM:<a@b.example>", "STARTTLS") == BAD_SEQUENCE
            assert await client.ask("RSET", "STARTTLS") == READY
            await client.handshake(trust)
            assert await client.ask("STARTTLS") == BAD_SEQUENCE
            assert await client.ask("MAIL FROM:<a@b.example>") == HELLO_FIRST
            assert await client.ask("EHLO x.example", "STARTTLS") == BAD_SEQUENCE
            assert await client.ask("NOOP") == "250 2.0.0 OK"

    run(main)


def test_lmtp(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls, lmtp=True, require_tls=True) as server, TLSClient(server) as client:
            await client.line()
            assert await client.ask("LHLO x.example", "STARTTLS") == READY
            await client.handshake(trust)
            assert await client.ask("LHLO x.example", "MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
            assert await client.ask("RCPT TO:<c@d.example>", "DATA") == "354 Start mail input; end with <CRLF>.<CRLF>"
            assert await client.ask("hello\r\n.") == TAKEN
        assert inbox.states[0].tls is not None

    run(main)


@pytest.mark.parametrize("give", [lambda: None, lambda: 1 / 0], ids=["none", "raises"])
def test_no_certificate_now(run: Runner, give: Callable[[], Any]) -> None:
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=give, error_logger=logging.Logger("test", logging.CRITICAL + 1)) as server:
            async with TLSClient(server) as client:
                await client.greeted()
                assert await client.ask("STARTTLS") == "454 4.7.0 TLS not available now"
                await client.envelope()  # in plaintext, then
                assert await client.ask("hello\r\n.") == TAKEN
            await server.listen("127.0.0.1:0", implicit_tls=True)
            async with TLSClient(server, server.sockets[1].getsockname()[1]) as client:
                assert await client.rest() == b""

    run(main)


def test_require_tls(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    inbox = Inbox()
    refused = "530 5.7.0 Must issue a STARTTLS command first"
    before = (
        "MAIL FROM:<a@b.example>",
        "RCPT TO:<a@b.example>",
        "DATA",
        "VRFY a",
        "HELP",
        "AUTH PLAIN =",
        "BDAT 0 LAST",
    )

    async def main() -> None:
        async with inbox.serve(tls=tls, require_tls=True) as server:
            async with TLSClient(server) as client:
                await client.greeted()
                for command in before:
                    assert await client.ask(command) == refused
                assert await client.ask("BOGUS") == "500 5.5.2 Command not recognized"
                for command in ("NOOP", "RSET"):
                    assert await client.ask(command) == "250 2.0.0 OK"
                assert await client.ask("STARTTLS") == READY
                await client.handshake(trust)
                await client.envelope()
                assert await client.ask("hello\r\n.") == TAKEN
            async with TLSClient(server) as client:
                await client.line()
                assert await client.ask("QUIT") == "221 2.0.0 Bye"
            await server.listen("127.0.0.1:0", implicit_tls=True)
            async with TLSClient(server, server.sockets[1].getsockname()[1]) as client:
                await client.handshake(trust)
                await client.line()
                await client.envelope()
        assert inbox.calls.count("mail a@b.example") == 2

    run(main)


def test_login_in_plaintext_is_void(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    events: list[str] = []

    class Named(DefaultSession):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def mail(self, sender: str, params: MailParams) -> None:
            events.append(f"mail of {self.name}")

        def logout(self) -> None:
            events.append(f"logout of {self.name}")

    class Users:
        def login(self, state: ConnectionState, username: str, password: str) -> Named:
            return Named(username)

        def anonymous_login(self, state: ConnectionState) -> Named:
            raise AuthRequired

    async def main() -> None:
        server = Server(Users(), addr="127.0.0.1:0", tls=tls, allow_insecure_auth=True)
        async with server, TLSClient(server) as client:
            await client.greeted()
            assert (await client.ask("AUTH PLAIN AGEAYg==")).startswith("235 ")
            assert conns(server)[0].state.username == "a"
            assert await client.ask("STARTTLS") == READY
            await client.handshake(trust)
            assert (
                await client.ask("EHLO x.example", "MAIL FROM:<a@b.example>") == "530 5.7.0 Please authenticate first"
            )
            assert conns(server)[0].state.username == ""
            assert events == ["logout of a"]
            assert (await client.ask("AUTH PLAIN AGIAYg==")).startswith("235 ")
            assert (await client.ask("MAIL FROM:<a@b.example>")).startswith("250 ")
        assert events == ["logout of a", "mail of b", "logout of b"]

    run(main)


def test_auth_only_within_tls(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    class Users:
        def login(self, state: ConnectionState, username: str, password: str) -> DefaultSession:
            assert state.tls is not None
            return DefaultSession()

        def anonymous_login(self, state: ConnectionState) -> DefaultSession:
            return DefaultSession()

    async def main() -> None:
        async with Server(Users(), addr="127.0.0.1:0", tls=tls) as server, TLSClient(server) as client:
            await client.line()
            client.send(b"EHLO x.example\r\n")
            assert "AUTH" not in " ".join(await client.reply())
            assert (await client.ask("AUTH PLAIN AGEAYg==")).startswith("538 5.7.11 ")
            assert await client.ask("STARTTLS") == READY
            await client.handshake(trust)
            client.send(b"EHLO x.example\r\n")
            assert "250-AUTH PLAIN LOGIN" in await client.reply()
            assert (await client.ask("AUTH PLAIN AGEAYg==")).startswith("235 ")

    run(main)


def test_a_login_that_xclient_named_is_void(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """The address stays: without it the client would look like the proxy in front of it."""
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls, allow_xclient=True) as server, TLSClient(server) as client:
            await client.line()
            await client.ask("XCLIENT LOGIN=root HELO=evil.example ADDR=192.0.2.1")
            state = conns(server)[0].state
            assert (state.username, state.hostname, state.remote_addr) == ("root", "evil.example", ("192.0.2.1", 0))
            assert await client.ask("EHLO x.example", "STARTTLS") == READY
            await client.handshake(trust)
            assert await client.ask("NOOP") == "250 2.0.0 OK"
            state = conns(server)[0].state
            assert (state.username, state.hostname, state.remote_addr) == ("", "", ("192.0.2.1", 0))

    run(main)


# What came in plaintext behind STARTTLS (CVE-2011-0411)

BEHIND = {
    "commands": EVIL,
    "one command": b"NOOP\r\n",
    "half a command": b"MAIL FROM:<evil@evil.ex",
    "login": b"AUTH PLAIN AGEAYg==\r\n",
    "half a line end": b"\r",
    "another STARTTLS": b"STARTTLS\r\n",
    "quit": b"QUIT\r\n",
    "long line": b"x" * 3000,
}


async def is_new_inside(client: TLSClient, inbox: Inbox) -> None:
    """Nothing of what came before is answered or was run."""
    assert await client.ask("MAIL FROM:<a@b.example>") == HELLO_FIRST
    await client.envelope()
    assert await client.ask("hello\r\n.") == TAKEN
    assert inbox.messages == [b"hello\r\n"]
    assert [each for each in inbox.calls if "evil" in each] == []
    assert inbox.states[0].username == ""


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_injected_in_the_same_segment(run: Runner, behind: bytes, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls, allow_insecure_auth=True) as server, TLSClient(server) as client:
            await client.greeted()
            client.send(b"STARTTLS\r\n" + behind)
            assert await client.line() == READY
            await client.handshake(trust)
            await is_new_inside(client, inbox)

    run(main)


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_injected_while_a_hook_runs(run: Runner, behind: bytes, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """Several segments wait in our own buffer when STARTTLS comes to its turn."""
    inbox = Inbox()

    async def main() -> None:
        gate = asyncio.Event()

        class Slow(inbox.session):  # type: ignore[name-defined, misc]
            async def vrfy(self, argument: str) -> None:
                await gate.wait()

        inbox.session = Slow
        async with inbox.serve(tls=tls) as server, TLSClient(server) as client:
            await client.greeted()
            client.send(b"VRFY x\r\n")
            core = conns(server)[0]._core
            await until(lambda: core.awaiting_reply)
            waiting = 0
            for piece in (b"STARTT", b"LS\r\n", behind[:3], behind[3:]):
                client.send(piece)
                waiting += len(piece)
                await until(lambda: core.buffered == waiting)  # noqa: B023 - it is awaited here
            gate.set()
            assert (await client.line()).startswith("252 ")
            assert await client.line() == READY
            await client.handshake(trust)
            await is_new_inside(client, inbox)

    run(main)


@pytest.mark.parametrize("octets", [False, True], ids=["segment", "octets"])
def test_injected_after_the_reply(run: Runner, octets: bool, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """What the TLS layer gets is no handshake, and that is the end."""
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls) as server:
            async with TLSClient(server) as client:
                await client.greeted()
                assert await client.ask("STARTTLS") == READY
                for piece in cut(EVIL, "octets" if octets else "whole"):
                    if client.writer.transport.is_closing():
                        break  # it was enough
                    client.send(piece)
                    await asyncio.sleep(0)
                assert b"250" not in await client.rest()
            await until(lambda: not conns(server))
            assert (server.counters.tls, server.counters.tls_failures) == (0, 1)
            assert inbox.calls[0] == "helo x.example"
            assert set(inbox.calls[1:]) <= {"reset", "logout"}

    run(main)


def test_injected_beyond_what_is_read_at_once(run: Runner, tls: TLSFiles) -> None:
    """The rest still waits in the kernel when TLS begins; it must not come up later."""
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls) as server:
            async with TLSClient(server) as client:
                await client.greeted()
                client.send(b"STARTTLS\r\n" + EVIL * 30_000)
                assert await client.line() == READY
                assert b"250" not in await client.rest()
            await until(lambda: not conns(server))
            assert server.counters.tls_failures == 1
            assert [each for each in inbox.calls if "evil" in each] == []

    run(main)


@pytest.mark.parametrize("before", [126, 127, 128, 129])
def test_at_the_end_of_a_turn(run: Runner, before: int, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """The last command of a turn waits for the next one, with reading paused (limits.COMMANDS_PER_TURN)."""
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls) as server, TLSClient(server) as client:
            await client.greeted()
            client.send(b"NOOP\r\n" * before + b"STARTTLS\r\n" + EVIL)
            for _ in range(before):
                assert await client.line() == "250 2.0.0 OK"
            assert await client.line() == READY
            await client.handshake(trust)
            await is_new_inside(client, inbox)

    run(main)


def test_injected_behind_a_proxy_header(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """Implicit TLS: plaintext in the header's own segment is for the TLS layer, which has no use for it."""
    inbox = Inbox()
    header = encode_proxy_v1(("192.0.2.1", 1), ("192.0.2.2", 25))

    async def main() -> None:
        async with inbox.serve(tls=tls, implicit_tls=True, proxy_from=True) as server:
            async with TLSClient(server) as client:
                client.send(header + EVIL)
                with pytest.raises((ssl.SSLError, ConnectionError)):
                    await client.handshake(trust)
            await until(lambda: not conns(server))
            assert (server.counters.tls, server.counters.tls_failures) == (0, 1)
            assert inbox.calls == []

    run(main)


@pytest.mark.parametrize("split", [False, True], ids=["same segment", "half of it"])
def test_client_hello_behind_a_proxy_header(run: Runner, split: bool, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """A proxy sends its header together with what it has of the client."""
    inbox = Inbox()
    header = encode_proxy_v1(("192.0.2.1", 1), ("192.0.2.2", 25))

    async def main() -> None:
        async with inbox.serve(tls=tls, implicit_tls=True, proxy_from=True) as server, TLSClient(server) as client:
            hello = client.hello(trust)
            middle = len(hello) // 2 if split else len(hello)
            client.writer.write(header + hello[:middle])
            if split:
                await until(lambda: conns(server) and conns(server)[0].state.proxy)
                client.writer.write(hello[middle:])
            await client.finish_handshake()
            client.send(b"")
            await client.line()
            await is_new_inside(client, inbox)
            assert inbox.states[0].remote_addr == ("192.0.2.1", 1)
            assert inbox.states[0].tls is not None

    run(main)


@pytest.mark.parametrize("octet", range(2))
def test_reply_that_is_not_read_at_once(run: Runner, octet: int, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """With the 220 more waits to be sent than may: whoever has the transport then is told when it is gone."""
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls) as server, TLSClient(server) as client:
            await client.greeted()
            transport = conns(server)[0]._transport
            transport.set_write_buffer_limits(high=1 << 30)
            size = 0
            while not transport.get_write_buffer_size():  # until the kernel takes no more
                transport.write(b"x" * 100_000)
                size += 100_000
            transport.set_write_buffer_limits(high=transport.get_write_buffer_size() + octet, low=0)
            client.send(b"STARTTLS\r\n")
            await until(lambda: conns(server)[0]._holds & SHAKING_HANDS)
            assert len(await client.reader.readexactly(size)) == size
            assert await client.line() == READY
            await client.handshake(trust)
            await is_new_inside(client, inbox)

    run(main)


# Implicit TLS


def test_implicit_tls(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls, implicit_tls=True) as server, TLSClient(server) as client:
            await client.handshake(trust)
            assert await client.line() == "220 localhost ESMTP ready"
            client.send(b"EHLO x.example\r\n")
            assert "STARTTLS" not in " ".join(await client.reply())
            assert await client.ask("STARTTLS") == BAD_SEQUENCE
            await client.envelope()
            assert await client.ask("hello\r\n.") == TAKEN
            assert server.counters.tls == 1
        assert inbox.states[0].tls is not None

    run(main)


def test_each_listener_chooses(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    async def main() -> None:
        async with Inbox().serve(tls=tls) as server:
            await server.listen("127.0.0.1:0", implicit_tls=True)
            plain, implicit = (each.getsockname()[1] for each in server.sockets)
            async with TLSClient(server, plain) as client:
                await client.starttls(trust)
            async with TLSClient(server, implicit) as client:
                await client.handshake(trust)
                await client.greeted()
        async with Inbox().serve(tls=tls, implicit_tls=True) as server:
            await server.listen("127.0.0.1:0", implicit_tls=False)
            async with TLSClient(server, server.sockets[1].getsockname()[1]) as client:
                await client.starttls(trust)
        async with Inbox().serve() as server:
            with pytest.raises(ConfigurationError, match="implicit_tls needs tls"):
                await server.listen("127.0.0.1:0", implicit_tls=True)

    run(main)


def test_listen_and_serve_tls(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    async def main() -> None:
        with pytest.raises(ConfigurationError):
            await Inbox().serve().listen_and_serve_tls()
        server = Inbox().serve(tls=tls)
        task = asyncio.create_task(server.listen_and_serve_tls())
        await until(lambda: server.sockets)
        async with TLSClient(server) as client:
            await client.handshake(trust)
            await client.greeted()
        await server.shutdown()
        await task

    run(main)


@pytest.mark.parametrize("option", ["implicit_tls", "require_tls"])
def test_options_that_need_tls(option: str) -> None:
    with pytest.raises(ConfigurationError, match="need tls"):
        ServerOptions(**{option: True})  # type: ignore[arg-type]


def test_negative_handshake_timeout() -> None:
    with pytest.raises(ConfigurationError, match="handshake_timeout is negative"):
        ServerOptions(handshake_timeout=-1)


# Handshakes that fail

SHORT = 0.2


@pytest.mark.parametrize("how", ["starttls", "implicit"])
@pytest.mark.parametrize("what", ["nothing", "half a hello", "a hello, slowly"])
def test_handshake_has_a_deadline(run: Runner, how: str, what: str, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    inbox = Inbox()
    implicit = how == "implicit"

    async def main() -> None:
        async with inbox.serve(tls=tls, implicit_tls=implicit, handshake_timeout=SHORT) as server:
            other = server
            if implicit:
                await server.listen("127.0.0.1:0", implicit_tls=False)
            async with TLSClient(other, server.sockets[-1].getsockname()[1]) as neighbour, TLSClient(server) as client:
                await neighbour.greeted()
                if not implicit:
                    await client.greeted()
                    assert await client.ask("STARTTLS") == READY
                closing = asyncio.ensure_future(client.reader.read())
                hello = client.hello(trust)
                if what == "half a hello":
                    client.writer.write(hello[: len(hello) // 2])
                elif what == "a hello, slowly":  # a single octet buys no time
                    for index in range(len(hello) - 1):
                        client.writer.write(hello[index : index + 1])
                        await asyncio.wait([closing], timeout=SHORT / 10)
                        if closing.done():
                            break
                with contextlib.suppress(ConnectionError):
                    await closing
                await until(lambda: len(conns(server)) == 1)
                assert (server.counters.tls, server.counters.tls_failures) == (0, 1)
                assert await neighbour.ask("NOOP") == "250 2.0.0 OK"
        assert inbox.messages == []

    run(main)


@pytest.mark.parametrize(("option", "given"), [(0.0, float("inf")), (5.0, 5.0)])
def test_no_deadline_is_none(run: Runner, option: float, given: float, tls: TLSFiles) -> None:
    """The loops would take "none given" for a minute."""
    asked: list[float] = []

    class Transport(asyncio.Transport):
        def get_protocol(self) -> asyncio.BaseProtocol:
            return asyncio.Protocol()

        def is_closing(self) -> bool:
            return False

    class Loop:
        async def start_tls(self, *_: object, ssl_handshake_timeout: float, **__: object) -> asyncio.Transport:
            asked.append(ssl_handshake_timeout)
            await asyncio.sleep(0)
            return transport

    loop: Any = Loop()
    conn: Any = SimpleNamespace(protocol=asyncio.Protocol())
    transport = Transport()

    async def main() -> None:
        assert await start_tls(loop, transport, conn, tls(), option) is transport
        assert asked == [given]

    run(main)


@pytest.mark.parametrize("how", ["starttls", "implicit"])
def test_no_deadline_on_either_loop(run: Runner, how: str, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    async def main() -> None:
        implicit = how == "implicit"
        async with Inbox().serve(tls=tls, implicit_tls=implicit, handshake_timeout=0) as server:
            async with TLSClient(server) as client:
                if implicit:
                    await client.handshake(trust)
                    await client.greeted()
                else:
                    await client.starttls(trust)
                    assert (await client.ask("EHLO x.example")).startswith("250 ")

    run(main)


def test_handshake_is_no_hook(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """Its deadline is its own: the one for hooks may be shorter."""

    async def main() -> None:
        async with Inbox().serve(tls=tls, hook_timeout=30.0) as server, TLSClient(server) as client:
            await client.greeted()
            assert await client.ask("STARTTLS") == READY
            (conn,) = conns(server)
            assert conn.deadline == float("inf")
            await client.handshake(trust)
            assert await client.ask("NOOP") == "250 2.0.0 OK"
            assert conn.deadline < float("inf")
            assert server.counters.errors == 0

    run(main)


@pytest.mark.parametrize("how", ["starttls", "implicit"])
@pytest.mark.parametrize("garbage", [b"\x00" * 600, b"GET / HTTP/1.0\r\n\r\n", b"\x16\x03\x01\x00\x05hello", b"\x80"])
def test_garbage(run: Runner, how: str, garbage: bytes, tls: TLSFiles, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        logger = logging.getLogger("fastsmtp.test")
        async with Inbox().serve(tls=tls, implicit_tls=how == "implicit", error_logger=logger) as server:
            async with TLSClient(server) as client:
                if how == "starttls":
                    await client.greeted()
                    assert await client.ask("STARTTLS") == READY
                client.send(garbage)
                client.writer.write_eof()
                await client.rest()
            await until(lambda: not conns(server))
            assert (server.counters.tls, server.counters.tls_failures, server.counters.errors) == (0, 1, 0)
            assert server.counters.connections == 0
        (record,) = caplog.records
        assert record.getMessage().startswith("TLS handshake failed: ") and "hello" not in record.getMessage()

    run(main)


def test_others_do_not_notice(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls) as server, TLSClient(server) as good:
            await good.starttls(trust)
            await good.envelope()
            for _ in range(5):
                async with TLSClient(server) as bad:
                    await bad.greeted()
                    assert await bad.ask("STARTTLS") == READY
                    bad.send(b"garbage garbage garbage")
                    await bad.rest()
            assert await good.ask("hello\r\n.") == TAKEN
            await until(lambda: len(conns(server)) == 1)
            assert (server.counters.tls, server.counters.tls_failures) == (1, 5)

    run(main)


@pytest.mark.parametrize("how", ["fin", "reset"])
def test_client_leaves_within_the_handshake(run: Runner, how: str, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls) as server:
            async with TLSClient(server) as client:
                await client.greeted()
                assert await client.ask("STARTTLS") == READY
                client.writer.write(client.hello(trust))
                await client.reader.read(1)
                if how == "fin":
                    client.writer.write_eof()
                else:
                    client.writer.transport.abort()
                await until(lambda: not conns(server))
            assert server.counters.tls_failures == 1
        assert inbox.calls.count("logout") == 1

    run(main)


@pytest.mark.parametrize("how", ["close", "reject", "abort"])
def test_closed_by_us_within_the_handshake(run: Runner, how: str, tls: TLSFiles) -> None:
    """The loops forget to tell us of it: nothing may be left, or a shutdown would wait for ever."""
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls) as server:
            async with TLSClient(server) as client:
                await client.greeted()
                assert await client.ask("STARTTLS") == READY
                (conn,) = conns(server)
                getattr(conn, how)()
                await client.rest()
                await until(lambda: not conns(server))
            assert server.counters.connections == server.counters.tls == 0
        assert inbox.calls.count("logout") == 1

    run(main)


def test_closed_in_the_same_turn(run: Runner, tls: TLSFiles) -> None:
    """The handshake's task has not begun to run then, before Python 3.12."""
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls) as server:
            async with TLSClient(server) as client:
                await client.greeted()
                (conn,) = conns(server)
                conn.data_received(b"STARTTLS\r\n")
                conn.abort()
                await client.rest()
                await until(lambda: not conns(server))
        assert inbox.calls.count("logout") == 1

    run(main)


def test_stopping_within_the_handshake(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """Who is shaking hands may finish, and is told 421 then; the rest of the time is for nobody else."""

    async def main() -> None:
        server = Inbox().serve(tls=tls)
        await server.start()
        async with TLSClient(server) as client, TLSClient(server) as stalled:
            for each in (client, stalled):
                await each.greeted()
                assert await each.ask("STARTTLS") == READY
            stopping = asyncio.ensure_future(server.shutdown(None))
            await until(lambda: server.roster.stopping)
            await client.handshake(trust)
            assert await client.line() == "421 4.3.2 Service shutting down"
            assert await client.rest() == b""
            client.close_notify()
            client.writer.close()
            await until(lambda: len(conns(server)) == 1)
            assert not stopping.done()
            await server.close()
            await stopping
            assert await stalled.rest() == b""
            assert server.counters.connections == 0

    run(main)


def test_stopping_does_not_wait_for_ever(run: Runner, tls: TLSFiles) -> None:
    async def main() -> None:
        server = Inbox().serve(tls=tls, handshake_timeout=0)
        await server.start()
        async with TLSClient(server) as stalled:
            await stalled.greeted()
            assert await stalled.ask("STARTTLS") == READY
            await server.shutdown(0.05)
            assert await stalled.rest() == b""
            assert server.counters.connections == 0

    run(main)


# Certificates


def test_sni(run: Runner, authority: Authority, trust: ssl.SSLContext) -> None:
    files = TLSFiles(
        authority.issue(),
        by_name={
            "Other.Example.": (authority.issue("other.example"), None),
            "*.wild.example": (authority.issue("*.wild.example"), None),
            "one.wild.example": (authority.issue("one.wild.example"), None),
        },
    )
    assert files.end_point is None
    expected = {
        "mx.example": "mx.example",
        "other.example": "other.example",
        "OTHER.example": "other.example",
        "two.wild.example": "*.wild.example",
        "one.wild.example": "one.wild.example",
        "a.b.wild.example": "mx.example",
        "wild.example": "mx.example",
        "unknown.example": "mx.example",
        "": "mx.example",
    }
    context = authority.client()
    context.check_hostname = False

    async def main() -> None:
        async with Inbox().serve(tls=files) as server:
            for asked, shown in expected.items():
                async with TLSClient(server) as client:
                    await client.starttls(context, asked)
                    assert client.shown == shown, asked
                    assert (await client.ask("EHLO x.example")).startswith("250 ")

    run(main)


def test_reload(run: Runner, tmp_path: pathlib.Path) -> None:
    old, new = Authority(tmp_path), Authority(tmp_path)
    path = old.issue("old.example", file="server.pem")
    files = TLSFiles(path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE

    def serial(client: TLSClient) -> bytes:
        assert client.tls is not None
        shown = client.tls.getpeercert(binary_form=True)
        assert shown is not None
        return shown

    async def main() -> None:
        files.reload()
        old.issue("old.example", file="server.pem")
        files.reload()
        async with Inbox().serve(tls=files) as server, TLSClient(server) as before:
            await before.starttls(context)
            new.issue("new.example", file="server.pem")
            async with TLSClient(server) as unaware:  # nothing happens by itself
                await unaware.starttls(context)
                assert serial(unaware) == serial(before)
            files.reload()
            async with TLSClient(server) as after:
                await after.starttls(context)
                assert serial(after) != serial(before)
                assert (await after.ask("EHLO x.example")).startswith("250 ")
            await before.envelope()
            assert await before.ask("hello\r\n.") == TAKEN
            # A bad file, and no file
            good = serial(after)
            path.write_text("-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
            with pytest.raises(ConfigurationError, match="server.pem"):
                files.reload()
            path.unlink()
            with pytest.raises(ConfigurationError, match="(?i)no such file"):
                files.reload()
            async with TLSClient(server) as still:
                await still.starttls(context)
                assert serial(still) == good

    run(main)


def test_channel_binding_outlives_a_reload(run: Runner, tmp_path: pathlib.Path) -> None:
    """Whoever has seen the old certificate logs in with it (SCRAM-SHA-256-PLUS, RFC 5929 section 4.1)."""
    pytest.importorskip("scramp")
    authority = Authority(tmp_path)
    files = TLSFiles(authority.issue())
    secret = ScramSecret.derive("secret")

    class Users:
        auth_mechanisms = ("SCRAM-SHA-256-PLUS",)

        def anonymous_login(self, state: ConnectionState) -> DefaultSession:
            return DefaultSession()

        def login(self, state: ConnectionState, username: str, password: str) -> None:
            return None

        def scram_secret(self, state: ConnectionState, username: str) -> ScramSecret:
            return secret

        def authenticate(self, state: ConnectionState, credentials: Credentials) -> DefaultSession:
            return DefaultSession()

    async def log_in(client: TLSClient) -> str:
        client.send(b"EHLO x.example\r\n")
        assert "250-AUTH SCRAM-SHA-256-PLUS" in await client.reply()
        assert client.tls is not None
        certificate = client.tls.getpeercert(binary_form=True)
        assert certificate is not None
        binding = ("tls-server-end-point", server_end_point(certificate))
        exchange = Login(ScramPlusClient("anna", "secret", binding))
        reply = await client.ask(exchange.first_line().decode().removesuffix("\r\n"))
        while reply.startswith("334 "):
            reply = await client.ask(exchange.answer(reply[4:]).decode().removesuffix("\r\n"))
        return reply

    async def main() -> None:
        async with Server(Users(), addr="127.0.0.1:0", tls=files) as server:
            async with TLSClient(server) as before, TLSClient(server) as after:
                await before.starttls(authority.client())
                authority.issue()
                files.reload()
                await after.starttls(authority.client())
                for client in (before, after):
                    assert await log_in(client) == "235 2.7.0 Authentication succeeded"

    run(main)


def test_reload_is_all_or_nothing(run: Runner, tmp_path: pathlib.Path) -> None:
    """One bad certificate of several, and none of the new ones is in use."""
    authority = Authority(tmp_path)
    files = TLSFiles(authority.issue(), by_name={"other.example": (authority.issue("other.example"), None)})
    context, point = files(), files.end_point
    authority.issue()
    (tmp_path / "other.example.pem").write_text("nothing")
    with pytest.raises(ConfigurationError, match="other.example.pem"):
        files.reload()
    assert files() is context and files.end_point == point
    authority.issue("other.example")
    files.reload()
    assert files() is not context


def test_files_that_are_no_certificates(tmp_path: pathlib.Path, authority: Authority) -> None:
    good, empty = authority.issue(), tmp_path / "empty.pem"
    empty.write_text("")
    pem = good.read_text()
    only_certificate, only_key = tmp_path / "cert.pem", tmp_path / "key.pem"
    begin = pem.index("-----BEGIN CERTIFICATE")
    only_certificate.write_text(pem[begin:])
    only_key.write_text(pem[:begin])
    assert TLSFiles(only_certificate, only_key).end_point == TLSFiles(good).end_point
    for arguments in (
        (empty, None),
        (only_certificate, None),
        (only_key, None),
        (tmp_path, None),
        (tmp_path / "missing.pem", None),
        (only_certificate, empty),
        (only_certificate, tmp_path / "missing.pem"),
        (authority.issue("other.example"), only_key),
    ):
        with pytest.raises(ConfigurationError, match="cannot use the TLS certificate in "):
            TLSFiles(*arguments)
    for ca in (empty, tmp_path / "missing.pem", only_key):
        with pytest.raises(ConfigurationError, match="cannot use the authorities in "):
            TLSFiles(good, client_ca=ca)


def test_key_with_a_passphrase(tmp_path: pathlib.Path, authority: Authority) -> None:
    """It is refused."""
    serialization: Any = pytest.importorskip("cryptography.hazmat.primitives.serialization")
    pem = authority.issue().read_bytes()
    key = serialization.load_pem_private_key(pem[: pem.index(b"-----BEGIN CERTIFICATE")], None)
    locked = tmp_path / "locked.pem"
    locked.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    with pytest.raises(ConfigurationError, match="locked.pem"):
        TLSFiles(authority.issue(), locked)


def test_context(authority: Authority) -> None:
    files = TLSFiles(authority.issue())
    context = files()
    assert context.minimum_version is ssl.TLSVersion.TLSv1_2
    assert context.options & ssl.OP_NO_COMPRESSION and context.options & ssl.OP_NO_RENEGOTIATION
    assert context.verify_mode is ssl.CERT_NONE


def test_end_point_is_the_hash_of_the_certificate(authority: Authority) -> None:
    """RFC 5929 section 4.1: of the server's own certificate, whatever else the file has."""
    path = authority.issue()
    pem = path.read_text()
    der = ssl.PEM_cert_to_DER_cert(pem[pem.index("-----BEGIN CERTIFICATE") : pem.index("-----END CERTIFICATE") + 25])
    assert TLSFiles(path).end_point == hashlib.sha256(der).digest()


def test_context_of_ones_own(run: Runner, authority: Authority, trust: ssl.SSLContext) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue())

    async def main() -> None:
        async with Inbox().serve(tls=context) as server, TLSClient(server) as client:
            await client.starttls(trust)
            assert client.shown == "mx.example"
            assert (await client.ask("EHLO x.example")).startswith("250 ")

    run(main)


# Certificates of clients


class ByCertificate:
    """A backend that knows clients by their certificate's common name."""

    auth_mechanisms = ("EXTERNAL",)

    def __init__(self) -> None:
        self.credentials: list[ExternalCredentials] = []

    def anonymous_login(self, state: ConnectionState) -> DefaultSession:
        return DefaultSession()

    def login(self, state: ConnectionState, username: str, password: str) -> None:
        return None

    def authenticate(self, state: ConnectionState, credentials: ExternalCredentials) -> DefaultSession | None:
        assert state.tls is not None
        self.credentials.append(credentials)
        certificate: Any = state.tls.getpeercert()
        names = [value for each in certificate["subject"] for kind, value in each if kind == "commonName"]
        return DefaultSession() if names == ["relay.example"] else None


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
@pytest.mark.parametrize("sni", [False, True], ids=["one certificate", "several"])
def test_external(run: Runner, version: ssl.TLSVersion, sni: bool, authority: Authority) -> None:
    by_name = {"other.example": (authority.issue("other.example"), None)} if sni else {}
    files = TLSFiles(authority.issue(), by_name=by_name, client_ca=authority.ca)
    name = "other.example" if sni else "mx.example"
    shown = {
        "relay.example": "235 2.7.0 Authentication succeeded",
        "stranger.example": "535 5.7.8 Authentication credentials invalid",
    }

    async def main() -> None:
        backend = ByCertificate()
        async with Server(backend, addr="127.0.0.1:0", tls=files, auth_failure_delay=0) as server:
            for common_name, answer in shown.items():
                context = authority.client(authority.issue(common_name, common_name=common_name))
                context.minimum_version = context.maximum_version = version
                async with TLSClient(server) as client:
                    await client.starttls(context, name)
                    client.send(b"EHLO x.example\r\n")
                    assert "250-AUTH EXTERNAL" in await client.reply()
                    assert await client.ask("AUTH EXTERNAL =") == answer
                    (conn,) = conns(server)
                    tls = conn.state.tls
                    assert tls is not None and tls.getpeercert()
                await until(lambda: not conns(server))
            context = authority.client()
            async with TLSClient(server) as client:
                await client.starttls(context, name)
                client.send(b"EHLO x.example\r\n")
                assert "AUTH" not in " ".join(await client.reply())
                assert (await client.ask("AUTH EXTERNAL ="))[:3] in ("502", "538")
                tls = conns(server)[0].state.tls
                assert tls is not None and not tls.getpeercert()
        assert backend.credentials == [ExternalCredentials("")] * 2

    run(main)


def test_certificate_of_another_authority(run: Runner, authority: Authority, tmp_path: pathlib.Path) -> None:
    files = TLSFiles(authority.issue(), client_ca=authority.ca)
    context = authority.client(Authority(tmp_path).issue("relay.example", common_name="relay.example"))

    async def main() -> None:
        async with Server(ByCertificate(), addr="127.0.0.1:0", tls=files) as server:
            async with TLSClient(server) as client:
                await client.greeted()
                assert await client.ask("STARTTLS") == READY
                with contextlib.suppress(ssl.SSLError, ConnectionError):  # with TLS 1.3 the client is done before us
                    await client.handshake(context)
                    client.send(b"EHLO x.example\r\n")
                    assert await client.rest() == b""
            await until(lambda: not conns(server))
            assert (server.counters.tls, server.counters.tls_failures) == (0, 1)

    run(main)


# Within TLS


def test_pipelined_in_one_record(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    inbox = Inbox()
    batch = (
        b"EHLO x.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\none\r\n.\r\n"
        b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nBDAT 5 LAST\r\ntwo\r\nNOOP\r\nQUIT\r\n"
    )

    async def main() -> None:
        async with inbox.serve(tls=tls) as server, TLSClient(server) as client:
            await client.starttls(trust)
            client.send(batch)
            codes = [(await client.reply())[-1][:3] for _ in range(10)]
            assert codes == ["250", "250", "250", "354", "250", "250", "250", "250", "250", "221"]
            assert await client.rest() == b""
        assert inbox.messages == [b"one\r\n", b"two\r\n"]

    run(main)


def test_an_octet_in_each_record(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    inbox = Inbox()
    batch = b"EHLO x.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\n..one\r\n.\r\nQUIT\r\n"

    async def main() -> None:
        async with inbox.serve(tls=tls) as server, TLSClient(server) as client:
            await client.starttls(trust)
            client.send(*cut(batch, "octets"))
            codes = [(await client.reply())[-1][:3] for _ in range(6)]
            assert codes == ["250", "250", "250", "354", "250", "221"]
            assert await client.rest() == b""
        assert inbox.messages == [b".one\r\n"]

    run(main)


@pytest.mark.parametrize("size", [100, 200_000], ids=["little", "much"])
@pytest.mark.parametrize("how", ["starttls", "implicit"])
def test_commands_with_the_end_of_the_handshake(
    run: Runner, how: str, size: int, tls: TLSFiles, trust: ssl.SSLContext
) -> None:
    """They are there before the handshake's own result is, and are kept for later."""
    inbox = Inbox()
    text = b"x" * 98 + b"\r\n"
    batch = b"EHLO x.example\r\nMAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
    batch += f"BDAT {size} LAST\r\n".encode() + text * (size // 100) + b"QUIT\r\n"

    async def main() -> None:
        async with inbox.serve(tls=tls, implicit_tls=how == "implicit") as server, TLSClient(server) as client:
            if how == "starttls":
                await client.greeted()
                assert await client.ask("STARTTLS") == READY
            await client.handshake(trust, behind=batch)
            if how == "implicit":
                assert (await client.line()).startswith("220 ")
            codes = [(await client.reply())[-1][:3] for _ in range(5)]
            assert codes == ["250", "250", "250", "250", "221"]
        assert [len(each) for each in inbox.messages] == [size]

    run(main)


def test_back_pressure(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """A session that takes its time: what waits for it is little, and all of it arrives."""
    size, most = 5_000_000, 0
    block = b"x" * 98 + b"\r\n"
    digest = hashlib.sha256()

    class Slow(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            nonlocal most
            core = context.conn._core
            while chunk := await reader.read(100_000):
                digest.update(chunk)
                for _ in range(20):
                    await asyncio.sleep(0)
                most = max(most, reader.buffered + core.buffered)

    async def main() -> None:
        async with Server(DefaultBackend(Slow), addr="127.0.0.1:0", tls=tls) as server, TLSClient(server) as client:
            await client.starttls(trust)
            await client.envelope()
            for _ in range(size // 100_000):
                client.send(block * 1000)
                await client.writer.drain()
            assert await client.ask(".") == TAKEN
            assert server.counters.octets == size
        assert digest.digest() == hashlib.sha256(block * (size // 100)).digest()
        assert most < 1_000_000

    run(main)


@pytest.mark.parametrize("how", ["fin", "reset", "close_notify"])
@pytest.mark.parametrize("verb", ["DATA", "BDAT"])
def test_cut_within_the_message(run: Runner, how: str, verb: str, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """However the connection ends, a message that is not whole is none (RFC 8446 section 6.1 on truncation)."""
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls) as server:
            async with TLSClient(server) as client:
                await client.starttls(trust)
                await client.ask("EHLO x.example", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")
                if verb == "DATA":
                    await client.ask("DATA")
                client.send((b"" if verb == "DATA" else b"BDAT 200000 LAST\r\n") + b"x" * 100_000 + b"\r\n.\r")
                (conn,) = conns(server)
                await until(lambda: conn._reception is not None and conn._reception.running)  # the session has begun
                if how == "fin":
                    client.writer.write_eof()
                elif how == "reset":
                    client.writer.transport.abort()
                else:
                    client.close_notify()
                await until(lambda: not conns(server))
            assert (server.counters.messages, server.counters.errors) == (0, 0)
        assert (inbox.messages, inbox.aborted) == ([], 1)
        assert inbox.calls.count("logout") == 1

    run(main)


@pytest.mark.parametrize("how", ["fin", "close_notify"])
def test_end_behind_a_whole_message(run: Runner, how: str, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """The message has come, whoever may still hear the answer."""
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls) as server:
            async with TLSClient(server) as client:
                await client.starttls(trust)
                await client.envelope()
                client.send(b"hello\r\n.\r\n")
                if how == "fin":
                    client.writer.write_eof()
                else:
                    client.close_notify()
                await until(lambda: not conns(server))
            assert server.counters.messages == 1
        assert inbox.messages == [b"hello\r\n"]

    run(main)


@pytest.mark.parametrize("how", ["fin", "close_notify"])
def test_end_while_the_session_opens(run: Runner, how: str, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    async def main() -> None:
        gate = asyncio.Event()
        opening = asyncio.Event()

        class Slow(DefaultSession):
            async def connect(self, conn: Conn) -> None:
                opening.set()
                await gate.wait()

        async with Server(DefaultBackend(Slow), addr="127.0.0.1:0", tls=tls, implicit_tls=True) as server:
            async with TLSClient(server) as client:
                await client.handshake(trust)
                await opening.wait()
                if how == "fin":
                    client.writer.write_eof()
                else:
                    client.close_notify()
                await client.rest()
                gate.set()
                await until(lambda: not conns(server))

    run(main)


def test_damaged_record(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """What was not encrypted by the client ends the connection, and nothing of it is a command."""
    inbox = Inbox()

    async def main() -> None:
        async with inbox.serve(tls=tls) as server:
            async with TLSClient(server) as client:
                await client.starttls(trust)
                await client.envelope()
                client.writer.write(b"evil\r\n.\r\n" + EVIL)
                await client.rest()
                await until(lambda: not conns(server))
            assert server.counters.messages == 0
        assert inbox.messages == []
        assert [each for each in inbox.calls if "evil" in each] == []

    run(main)


def test_shutdown_tells_idle_clients(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    async def main() -> None:
        server = Inbox().serve(tls=tls)
        await server.start()
        await server.listen("127.0.0.1:0", implicit_tls=True)
        async with (
            TLSClient(server) as idle,
            TLSClient(server, server.sockets[1].getsockname()[1]) as implicit,
            TLSClient(server) as busy,
        ):
            await idle.starttls(trust)
            assert (await idle.ask("EHLO x.example")).startswith("250 ")
            await implicit.handshake(trust)
            await implicit.greeted()
            await busy.starttls(trust)
            await busy.envelope()
            stopping = asyncio.ensure_future(server.shutdown(20))
            for client in (idle, implicit):
                assert await client.line() == "421 4.3.2 Service shutting down"
                assert await client.rest() == b""
            assert await busy.ask("hello\r\n.") == TAKEN  # what it was sending may arrive
            assert await busy.line() == "421 4.3.2 Service shutting down"
            assert await busy.rest() == b""
            for client in (idle, implicit, busy):
                client.close_notify()
                client.writer.close()
            await stopping

    run(main)


def test_refused_before_the_handshake(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """Implicit TLS: too many connections are closed without a word, STARTTLS: with one."""

    async def main() -> None:
        async with Inbox().serve(tls=tls, max_connections=1) as server:
            await server.listen("127.0.0.1:0", implicit_tls=True)
            async with TLSClient(server) as first:
                await first.starttls(trust)
                async with TLSClient(server) as client:
                    assert (await client.line()).startswith("421 ")
                async with TLSClient(server, server.sockets[1].getsockname()[1]) as client:
                    assert await client.rest() == b""
                assert await first.ask("NOOP") == "250 2.0.0 OK"

    run(main)


def test_a_session_that_refuses_says_so_within_tls(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    class No(DefaultSession):
        def connect(self, conn: Conn) -> Reply:
            assert conn.tls_connection_state is not None
            return Reply(554, EnhancedCode(5, 7, 1), "not you")

    async def main() -> None:
        async with Server(DefaultBackend(No), addr="127.0.0.1:0", tls=tls, implicit_tls=True) as server:
            async with TLSClient(server) as client:
                await client.handshake(trust)
                assert await client.line() == "554 5.7.1 not you"
                assert await client.ask("QUIT") == "221 2.0.0 Bye"

    run(main)


def test_hook_that_fails_at_starttls(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """The session's reset runs when TLS has begun; what it raises ends nothing."""

    class Bad(DefaultSession):
        async def reset(self) -> None:
            await asyncio.sleep(0)
            raise SMTPError(451, EnhancedCode(4, 3, 0), "no")

    async def main() -> None:
        async with Server(DefaultBackend(Bad), addr="127.0.0.1:0", tls=tls) as server, TLSClient(server) as client:
            await client.starttls(trust)
            assert (await client.ask("EHLO x.example")).startswith("250 ")

    run(main)


def test_trace_shows_both_sides_of_it(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """The debug trace has the dialogue in the clear, and nothing of what was dropped."""
    trace = io.StringIO()

    async def main() -> None:
        async with Inbox().serve(tls=tls, debug=trace) as server, TLSClient(server) as client:
            await client.greeted()
            client.send(b"STARTTLS\r\nNOOP dropped\r\n")
            assert await client.line() == READY
            await client.handshake(trust)
            assert await client.ask("NOOP inside") == "250 2.0.0 OK"
        assert "C: STARTTLS" in trace.getvalue() and "C: NOOP inside" in trace.getvalue()
        assert "dropped" not in trace.getvalue()
        assert base64.b64encode(b"dropped").decode() not in trace.getvalue()

    run(main)


def test_addresses_outlive_the_connection(run: Runner, tls: TLSFiles, trust: ssl.SSLContext) -> None:
    """At logout a session still sees whom it was for, though a TLS transport that is lost knows no addresses."""
    seen: list[object] = []

    class Leaving(DefaultSession):
        conn: Conn

        def connect(self, conn: Conn) -> None:
            self.conn = conn
            seen.extend((conn.remote_addr, conn.local_addr))

        def logout(self) -> None:
            seen.extend((self.conn.remote_addr, self.conn.local_addr))

    async def main() -> None:
        async with Server(DefaultBackend(Leaving), addr="127.0.0.1:0", tls=tls) as server:
            async with TLSClient(server) as client:
                await client.starttls(trust)
            while server.counters.connections:
                await asyncio.sleep(0.001)
        assert len(seen) == 4 and None not in seen and seen[:2] == seen[2:]

    run(main)
