"""The asyncio client against our own server and against servers that misbehave; on asyncio's loop and on uvloop."""

from __future__ import annotations

import array
import asyncio
import io
import os
import pathlib
import socket
import ssl
import sys
import tracemalloc
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import pytest
import trustme

from fastsmtp import (
    ConfigurationError,
    ConnectionState,
    DataContext,
    DataReader,
    DataTooLarge,
    DefaultBackend,
    DefaultSession,
    EnhancedCode,
    MailParams,
    MessageAborted,
    OriginalRecipient,
    RcptParams,
    Reply,
    Server,
    Session,
    SMTPError,
    dial,
)
from fastsmtp.client import (
    Client,
    ClientOptions,
    ConnectionLost,
    Message,
    TimedOut,
    Timeouts,
    TLSFailed,
    Unsendable,
    send_mail,
)
from fastsmtp.client_body import Outgoing
from fastsmtp.client_connection import ClientConnection
from fastsmtp.protocol import XClient, XForward
from fastsmtp.protocol.client import ClientProtocol
from fastsmtp.protocol.proxy import encode_proxy_v1, encode_proxy_v2
from fastsmtp.protocol.transaction import LOST, Delivery
from fastsmtp.sasl import PlainClient, SASLError, ScramSecret, TokenCredentials
from fastsmtp.tls import TLSFiles

from .fake_server import CLOSE, ESMTP, SILENCE, STEPS, Fake, fake
from .loops import Runner

MESSAGE = b"Subject: x\r\n\r\n.dot\r\n..\r\nlast\r\n"
SENDER = "a@example.org"
TO = ["b@example.org"]
HERE = "127.0.0.1"
NEVER = ssl.create_default_context()  # trusts nobody we know


class Inbox:
    """What arrived, by sender, recipients, parameters and message."""

    def __init__(self) -> None:
        self.mail: list[tuple[str, list[str], bytes]] = []
        self.params: list[MailParams] = []
        self.rcpt_params: list[RcptParams] = []
        self.states: list[ConnectionState] = []
        self.aborted = asyncio.Event()
        self.began = asyncio.Event()

    def backend(self) -> DefaultBackend:
        inbox = self

        class Keeping(DefaultSession):
            def mail(self, sender: str, params: MailParams) -> None:
                inbox.params.append(params)
                super().mail(sender, params)

            def rcpt(self, recipient: str, params: RcptParams) -> Reply | None:
                inbox.rcpt_params.append(params)
                if recipient.startswith("no"):
                    return Reply(550, EnhancedCode(5, 1, 1), "nobody")
                super().rcpt(recipient, params)
                return None

            async def data(self, reader: DataReader, context: DataContext) -> Reply | None:
                inbox.states.append(context.state)
                inbox.began.set()
                parts = []
                try:
                    async for part in reader:
                        parts.append(part)
                except MessageAborted:
                    inbox.aborted.set()
                    raise
                for recipient in context.recipients:
                    if recipient.startswith("late") and context.state.protocol == "LMTP":
                        context.set_status(recipient, Reply(452, EnhancedCode(4, 2, 2), "full"))
                inbox.mail.append((context.sender, list(context.recipients), b"".join(parts)))
                return None

        class Everybody(DefaultBackend):
            auth_mechanisms = ("PLAIN", "LOGIN")

            def login(self, state: ConnectionState, username: str, password: str) -> Session:
                return Keeping()

        return Everybody(Keeping)


def codes(deliveries: list[Delivery] | tuple[Delivery, ...]) -> list[tuple[str, int]]:
    return [(each.recipient, each.reply.code) for each in deliveries]


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    return trustme.CA()


@pytest.fixture(scope="module")
def served(authority: trustme.CA) -> ssl.SSLContext:
    """The context of a server that is called localhost."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost", HERE).configure_cert(context)
    return context


@pytest.fixture(scope="module")
def trusting(authority: trustme.CA) -> ssl.SSLContext:
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


# Messages


@pytest.mark.parametrize("pipelining", [True, False])
@pytest.mark.parametrize("chunking", [True, False])
@pytest.mark.parametrize("lmtp", [False, True])
def test_messages(run: Runner, lmtp: bool, chunking: bool, pipelining: bool) -> None:
    async def main() -> None:
        inbox = Inbox()
        async with Server(inbox.backend(), addr=f"{HERE}:0", lmtp=lmtp) as server:
            async with Client(
                HERE, server.port, lmtp=lmtp, chunking=chunking, pipelining=pipelining, local_hostname="me.example"
            ) as client:
                assert client.greeting is not None and client.greeting.code == 220
                assert client.server_name == "localhost" and client.extension("pipelining") == ""
                for number in range(3):
                    recipients = ["one@x.example", "no@x.example", "late@x.example", "one@x.example"]
                    deliveries = await client.send_message(f"{number}@x.example", recipients, MESSAGE)
                    late = 452 if lmtp else 250
                    assert [code for _, code in codes(deliveries)] == [250, 550, late, 250]
                    assert client.idle
                    assert inbox.mail.pop() == (
                        f"{number}@x.example",
                        ["one@x.example", "late@x.example", "one@x.example"],
                        MESSAGE,
                    )
                assert client.messages == 3
                assert codes(await client.send_message("", ["no@x", "no@y"], MESSAGE)) == [("no@x", 550), ("no@y", 550)]
                assert codes(await client.send_message("", ["y@x"], b"")) == [("y@x", 250)]
            assert inbox.mail == [("", ["y@x"], b"")]
            assert inbox.states[0].hostname == "me.example"
            assert not client.usable and repr(client) == f"<Client {HERE}:{server.port}, not connected>"

    run(main)


async def _slowly(parts: list[bytes]) -> AsyncIterator[bytes]:
    for part in parts:
        await asyncio.sleep(0)
        yield part


class _Reader:
    """What a relay reads from, for example."""

    def __init__(self, octets: bytes) -> None:
        self._file = io.BytesIO(octets)

    async def read(self, n: int) -> bytes:
        await asyncio.sleep(0)
        return self._file.read(min(n, 1000))


LINES = [b"%06d %b\r\n" % (number, b"x" * 60) for number in range(12000)]  # more than three pieces
WHOLE = b"".join(LINES)
KINDS: dict[str, Callable[[pathlib.Path], Message]] = {
    "bytes": lambda path: WHOLE,
    "bytearray": lambda path: bytearray(WHOLE),
    "memoryview": lambda path: memoryview(WHOLE),
    "file": lambda path: path.open("rb"),
    "memory": lambda path: io.BytesIO(WHOLE),
    "lines": lambda path: LINES,
    "generator": lambda path: (line for line in LINES),
    "one large part": lambda path: iter([WHOLE]),
    "async": lambda path: _slowly(LINES),
    "async reader": lambda path: _Reader(WHOLE),
    "unix lines": lambda path: WHOLE.replace(b"\r\n", b"\n"),
}


@pytest.mark.parametrize("chunking", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_message_is_kept_in(run: Runner, tmp_path: pathlib.Path, kind: str, chunking: bool) -> None:
    path = tmp_path / "message"
    path.write_bytes(WHOLE)

    async def main() -> None:
        inbox = Inbox()
        async with Server(inbox.backend(), addr=f"{HERE}:0") as server:
            async with Client(HERE, server.port, chunking=chunking) as client:
                message = KINDS[kind](path)
                try:
                    assert codes(await client.send_message(SENDER, TO, message)) == [(TO[0], 250)]
                finally:
                    if isinstance(message, io.IOBase):
                        message.close()
            assert inbox.mail == [(SENDER, TO, WHOLE)]
            known = kind in ("bytes", "bytearray", "memoryview", "unix lines", "file", "memory")
            assert inbox.params[0].size == (len(WHOLE) if known else None)

    run(main)


@pytest.mark.parametrize("size", [0, 1, 65535, 65536, 65537, 262144, 262145, 600000])
@pytest.mark.parametrize("chunking", [True, False])
def test_pieces_of_any_size(run: Runner, chunking: bool, size: int) -> None:
    async def main() -> None:
        inbox = Inbox()
        message = (b"x" * 998 + b"\r\n") * (size // 1000 + 1)
        message = message[: max(0, size - 2)] + b"\r\n" if size else b""
        async with Server(inbox.backend(), addr=f"{HERE}:0") as server:
            async with Client(HERE, server.port, chunking=chunking) as client:
                await client.send_message(SENDER, TO, message)
                await client.send_message(SENDER, TO, iter([message[:70], message[70:]]))
        assert [each for _, _, each in inbox.mail] == [message] * 2

    run(main)


def test_chunks_are_large(run: Runner) -> None:
    async def main() -> None:
        async with fake({"EHLO": ESMTP}) as server:
            async with Client(HERE, server.port) as client:
                await client.send_message(SENDER, TO, LINES)
                await client.send_message(SENDER, TO, [b"Subject: x\r\n", b"\r\n"])
            sizes = [int(line.split(" ")[1]) for line in server.lines if line.startswith("BDAT")]
            assert sum(sizes[:-1]) == len(WHOLE) and sizes[-1] == 14
            assert all(65536 <= size <= 262144 for size in sizes[:-2])
            assert server.messages == [WHOLE, b"Subject: x\r\n\r\n"]

    run(main)


@pytest.mark.parametrize("wrong", ["text", io.StringIO("text"), 5, None])
def test_what_is_no_message(wrong: Any) -> None:
    with pytest.raises(TypeError):
        Outgoing(wrong)


@pytest.mark.parametrize(
    ("message", "size"),
    [(b"", 0), (b"x", 3), (b"x\n", 3), (b"x\r", 3), (b"x\r\n", 3), (b"\n\r\n\r", 6), (b"a\rb\nc\r\nd", 12)],
)
@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_size_is_that_on_the_wire(kind: type, message: bytes, size: int) -> None:
    assert Outgoing(kind(message)).size == size
    assert Outgoing(kind(message), binary=True).size == len(message)


@pytest.mark.parametrize("kind", [bytes, bytearray, memoryview])
def test_where_eight_bits_are(kind: type) -> None:
    """In pieces as in one: a header that ends across two of them, and one without an end."""
    header = b"x: " + b"y" * (256 * 1024 - 5)
    cases = {
        header + b"\r\n\r\n" + b"z" * 10: (False, False),
        header + b"\r\n\r\n" + b"\xc3\xa4": (True, False),
        header + b"\n\n\xc3\xa4" + b"z" * 300_000: (True, False),
        header + b"\xc3\xa4\r\n\r\nz": (True, True),
        b"z" * 300_000 + b"\xc3\xa4": (True, True),
        b"\xc3\xa4: a\r\n\r\n": (True, True),
    }
    for message, expected in cases.items():
        outgoing = Outgoing(kind(message))
        assert (outgoing.eight_bit, outgoing.utf8_header) == expected


def test_a_view_is_not_copied(run: Runner) -> None:
    """What is kept in a bytearray is sent from there, and so is a part of it; a view with gaps, or of other items, in its octets."""
    kept = bytearray(WHOLE * 20)

    async def main() -> None:
        tracemalloc.start()
        try:
            count = 0
            async for piece, _ in Outgoing(kept).pieces():
                count += len(piece)
            assert count == len(kept)
            assert tracemalloc.get_traced_memory()[1] < len(kept) / 4
        finally:
            tracemalloc.stop()
        words = array.array("H", b"\r\n\r\n")
        for view in (memoryview(kept)[7:20], memoryview(kept)[:20:2], memoryview(words)):
            assert [piece async for piece in Outgoing(view).pieces()] == [(view.tobytes(), True)]

    run(main)


def test_a_file_that_has_nothing_now(run: Runner) -> None:
    """A pipe that nobody waits for is not at its end: half a message is never whole."""

    async def main() -> None:
        inbox = Inbox()
        async with Server(inbox.backend(), addr=f"{HERE}:0") as server:
            read, write = os.pipe()
            os.set_blocking(read, False)
            with open(read, "rb", buffering=0) as file, open(write, "wb", buffering=0) as other:
                other.write(MESSAGE)
                with pytest.raises(BlockingIOError):
                    await send_mail(SENDER, TO, file, host=HERE, port=server.port)
            assert not inbox.mail

    run(main)


def test_before_there_is_a_connection() -> None:
    client = Client(HERE, 25)
    assert client.extension("size") is None and client.max_message_size is None and client.max_recipients is None
    assert not (client.supports_auth("plain") or client.extensions or client.auth_mechanisms or client.authenticated)
    assert (client.server_name, client.greeting, client.tls_connection_state) == ("", None, None)


def test_size_of_the_rest_of_a_file(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(b"skip" + MESSAGE)
    with path.open("rb") as file:
        file.seek(4)
        assert Outgoing(file).size == len(MESSAGE)
    with socket.socket() as sock, sock.makefile("rb") as stream:
        assert Outgoing(stream).size is None
    assert Outgoing(_Reader(b"")).size is None


def test_pipelined_in_one_group(run: Runner) -> None:
    async def main() -> None:
        async with fake({"EHLO": b"250-x\r\n250 PIPELINING\r\n"}) as server:
            async with Client(HERE, server.port) as client:
                await client.send_message(SENDER, ["b@x", "c@x"], MESSAGE)
            group = b"MAIL FROM:<a@example.org>\r\nRCPT TO:<b@x>\r\nRCPT TO:<c@x>\r\nDATA\r\n"
            assert group in server.batches

    run(main)


def test_parameters_are_decided(run: Runner) -> None:
    async def main() -> None:
        inbox = Inbox()
        async with Server(inbox.backend(), addr=f"{HERE}:0", dsn=True, max_message_bytes=100) as server:
            async with Client(HERE, server.port) as client:
                assert client.max_message_size == 100 and client.max_recipients is None
                await client.send_message(SENDER, TO, b"x: y\r\n\r\n")
                await client.send_message(SENDER, TO, b"x: y\r\n\r\n\xc3\xa4")
                await client.send_message(SENDER, TO, b"x: \xc3\xa4\r\n\r\n")
                await client.send_message("ä@x.example", TO, b"x: y\r\n\r\n")
                await client.send_message(SENDER, ["ö@x.example"], iter([b"x"]))
                assert [(each.size, each.body, each.smtputf8) for each in inbox.params] == [
                    (8, None, False),
                    (12, "8BITMIME", False),
                    (9, "8BITMIME", True),
                    (8, None, True),
                    (None, "8BITMIME", True),
                ]
                with pytest.raises(DataTooLarge):
                    await client.send_message(SENDER, TO, b"x" * 101)
                with pytest.raises(Unsendable, match="no recipients"):
                    await client.send_message(SENDER, [], MESSAGE)
                for bad in ("x\r\nQUIT", "x@y>\r\nQUIT", "x\0@y"):
                    with pytest.raises(ValueError):
                        await client.send_message(bad, TO, MESSAGE)
                    with pytest.raises(ValueError):
                        await client.send_message(SENDER, [bad], MESSAGE)
                with pytest.raises(Unsendable, match="REQUIRETLS"):
                    await client.send_message(SENDER, TO, MESSAGE, MailParams(requiretls=True))
                with pytest.raises(ValueError):  # what is given is sent as it is
                    await client.send_message("ä@x.example", TO, MESSAGE, MailParams())
                params = RcptParams(("SUCCESS",), OriginalRecipient("rfc822", "o@x"))
                await client.send_message(SENDER, [(TO[0], params)], MESSAGE, MailParams(ret="HDRS", envid="e"))
                assert inbox.params[-1] == MailParams(size=len(MESSAGE), ret="HDRS", envid="e")
                assert inbox.rcpt_params[-1] == params
                octets = bytes(range(256))[:90]
                await client.send_message(SENDER, TO, octets, MailParams(body="BINARYMIME"))
                assert inbox.mail[-1][2] == octets
                assert len(inbox.mail) == len(inbox.params)  # what was refused before it was sent was not sent

    run(main)


def test_where_nothing_is_offered(run: Runner) -> None:
    async def main() -> None:
        async with fake({"EHLO": b"502 what?\r\n"}) as server:
            async with Client(HERE, server.port) as client:
                await client.send_message(SENDER, TO, b"\xc3\xa4: \xc3\xa4")
                with pytest.raises(ValueError):
                    await client.send_message("ä@x", TO, MESSAGE)
                with pytest.raises(Unsendable):
                    await client.login("joe", "secret")
            assert server.lines[1].startswith("HELO ")
            assert server.lines[2:] == [f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{TO[0]}>", "DATA", "QUIT"]
            assert server.messages == [b"\xc3\xa4: \xc3\xa4\r\n.\r\n"]

    run(main)


def test_step_by_step(run: Runner) -> None:
    async def main() -> None:
        inbox = Inbox()
        async with Server(inbox.backend(), addr=f"{HERE}:0") as server:
            for chunking in (True, False):
                async with Client(HERE, server.port, chunking=chunking) as client:
                    with pytest.raises(RuntimeError):
                        await client.data(MESSAGE)
                    assert (await client.mail(SENDER)).code == 250
                    with pytest.raises(RuntimeError):
                        await client.data(MESSAGE)
                    await client.rcpt("one@x")
                    with pytest.raises(SMTPError) as caught:
                        await client.rcpt("no@x")
                    assert caught.value.code == 550 and not client.idle
                    assert codes(await client.data(_slowly([MESSAGE]))) == [("one@x", 250), ("no@x", 550)]
                    assert client.idle
                    await client.mail(SENDER)
                    await client.rcpt("two@x")
                    assert (await client.reset()).code == 250 and client.idle
                    await client.mail(SENDER)
                    with pytest.raises(SMTPError):
                        await client.rcpt("no@x")
                    assert codes(await client.data(MESSAGE)) == [("no@x", 550)]
                    with pytest.raises(ValueError):
                        await client.mail("c@x\n")
                    await client.mail("c@x")
                    assert (await client.hello()).code == 250 and client.idle
                    await client.mail("d@x")
                assert inbox.mail == [(SENDER, ["one@x"], MESSAGE)]
                inbox.mail.clear()

    run(main)


def test_other_commands(run: Runner) -> None:
    async def main() -> None:
        async with fake({"VRFY": b"252 perhaps\r\n", "EXPN": b"550 no\r\n", "ETRN": b"251 started\r\n"}) as server:
            async with Client(HERE, server.port, local_hostname="[192.0.2.1]") as client:
                assert (await client.noop()).code == 250
                assert (await client.verify("me")).message == "perhaps"
                with pytest.raises(SMTPError):
                    await client.expand("list")
                assert (await client.help()).code == 250
                assert (await client.command("etrn", "x.example")).code == 251
                for unsendable in ("x\r\nQUIT", "x\nQUIT", "x\0"):
                    with pytest.raises(Unsendable):
                        await client.verify(unsendable)
            assert server.lines == [
                "EHLO [192.0.2.1]",
                "NOOP",
                "VRFY me",
                "EXPN list",
                "HELP",
                "ETRN x.example",
                "QUIT",
            ]

    run(main)


def test_send_mail(run: Runner) -> None:
    async def main() -> None:
        inbox = Inbox()
        async with Server(inbox.backend(), addr=f"{HERE}:0", allow_insecure_auth=True) as server:
            sent = await send_mail(
                SENDER,
                ["no@x", "b@x"],
                MESSAGE,
                host=HERE,
                port=server.port,
                username="joe",
                password="x",
                allow_insecure_auth=True,
            )
            assert codes(sent) == [("no@x", 550), ("b@x", 250)]
            assert inbox.states[0].username == "joe"
            with pytest.raises(SMTPError, match="nobody"):
                await send_mail(SENDER, ["no@x"], MESSAGE, options=ClientOptions(host=HERE, port=server.port))

    run(main)


# Connecting


def test_unix_socket(run: Runner, tmp_path: pathlib.Path) -> None:
    if not hasattr(socket, "AF_UNIX"):
        pytest.skip("no Unix sockets")

    async def main() -> None:
        inbox = Inbox()
        path = tmp_path / "s"
        async with Server(inbox.backend(), addr="", unix_socket=path, lmtp=True, allow_insecure_auth=True) as server:
            assert server
            async with Client(unix_socket=path, lmtp=True) as client:
                await client.login("joe", "secret")  # nobody else reads a Unix socket
                assert codes(await client.send_message(SENDER, ["late@x", "b@x"], MESSAGE)) == [
                    ("late@x", 452),
                    ("b@x", 250),
                ]
            assert str(path) in repr(client)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(path))
                client = Client(lmtp=True, port=24)
                assert (await client.connect(sock)).code == 220
                await client.noop()
                await client.quit()

    run(main)


def test_nobody_listens(run: Runner, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        with socket.socket() as sock:
            sock.bind((HERE, 0))
            client = Client(HERE, sock.getsockname()[1])
            with pytest.raises(ConnectionRefusedError):
                await client.connect()
            await client.quit()
            with pytest.raises(RuntimeError, match="not connected"):
                await client.noop()
        if hasattr(socket, "AF_UNIX"):
            with pytest.raises(FileNotFoundError):
                await Client(unix_socket=tmp_path / "none").connect()

    run(main)


def test_source_address(run: Runner) -> None:
    async def main() -> None:
        inbox = Inbox()
        async with Server(inbox.backend(), addr=f"{HERE}:0") as server:
            async with Client(HERE, server.port, local_addr=("127.0.0.2", 0)) as client:
                await client.send_message(SENDER, TO, MESSAGE)
            address = inbox.states[0].remote_addr
            assert address is not None and address[0] == "127.0.0.2"
            with pytest.raises(OSError, match="no address"):
                await Client(HERE, server.port, local_addr=("::1", 0)).connect()
            with pytest.raises(OSError):
                await Client(HERE, server.port, local_addr=("192.0.2.1", 0)).connect()

    run(main)


def test_own_name(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with fake() as server:
            for machine, name in (
                ("m.example.org", "m.example.org"),
                ("m", "[127.0.0.1]"),
                ("m_x.local", "[127.0.0.1]"),
            ):
                monkeypatch.setattr(socket, "gethostname", lambda machine=machine: machine)
                async with Client(HERE, server.port):
                    assert server.lines[-1] == f"EHLO {name}"

    run(main)


def test_addresses_are_raced(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first address never answers, the second refuses, the third is the server."""

    async def main() -> None:
        tried = []
        attempt = dial._attempt
        stuck = asyncio.Event()

        async def slow(endpoint: Any, local_addr: Any) -> socket.socket:
            tried.append(endpoint[1][0])
            if endpoint[1][0] == "::1":
                try:
                    await asyncio.Event().wait()
                finally:
                    stuck.set()
            return await attempt(endpoint, local_addr)

        async def resolve(host: str, port: int) -> list[Any]:
            refused = ("127.0.0.1", closed)
            return [(socket.AF_INET6, ("::1", port, 0, 0)), (socket.AF_INET, refused), (socket.AF_INET, (HERE, port))]

        monkeypatch.setattr(dial, "_attempt", slow)
        monkeypatch.setattr(dial, "resolve", resolve)
        with socket.socket() as sock:
            sock.bind((HERE, 0))
            closed = sock.getsockname()[1]
            async with fake() as server:
                async with Client("mx.example", server.port, happy_eyeballs_delay=0.01) as client:
                    await client.noop()
                await stuck.wait()  # the loser was cancelled
                assert tried == ["::1", HERE, HERE]
            with pytest.raises(ConnectionRefusedError):
                await dial.dial("mx.example", closed, ("127.0.0.1", 0))
            with pytest.raises(TimedOut, match="no connection to mx.example:"):
                await Client("mx.example", closed, happy_eyeballs_delay=0, timeouts=Timeouts(connect=0.05)).connect()

    run(main)


def test_families_take_turns() -> None:
    six, four = socket.AF_INET6, socket.AF_INET
    ends: list[Any] = [(six, "a"), (six, "b"), (six, "c"), (four, "d")]
    assert dial.interleave(ends) == [ends[0], ends[3], ends[1], ends[2]]
    assert dial.interleave([]) == []


def test_names_are_resolved(run: Runner) -> None:
    async def main() -> None:
        assert list(await dial.resolve("127.0.0.1", 25)) == [(socket.AF_INET, ("127.0.0.1", 25))]
        assert list(await dial.resolve("::1", 25)) == [(socket.AF_INET6, ("::1", 25))]
        assert any(end[0] == HERE for _, end in await dial.resolve("localhost", 25))
        with pytest.raises(OSError):
            await dial.resolve("does-not-exist.invalid", 25)
        for name in ("a..b", ".", "a" * 64 + ".example", "\udc80.example", "é" * 100):
            with pytest.raises(OSError):
                await Client(name, 25).connect()

    run(main)


def test_proxy_header(run: Runner) -> None:
    async def main() -> None:
        inbox = Inbox()
        ends = ("192.0.2.7", 1234), ("192.0.2.8", 25)
        async with Server(inbox.backend(), addr=f"{HERE}:0", proxy_from=True) as server:
            for header in (encode_proxy_v1(*ends), encode_proxy_v2(*ends)):
                async with Client(HERE, server.port, proxy_header=header) as client:
                    await client.send_message(SENDER, TO, MESSAGE)
                assert inbox.states.pop().remote_addr == ends[0]

    run(main)


def test_xforward_and_xclient(run: Runner) -> None:
    async def main() -> None:
        inbox = Inbox()
        async with Server(inbox.backend(), addr=f"{HERE}:0", allow_xforward=True, allow_xclient=True) as server:
            async with Client(HERE, server.port, local_hostname="me.example") as client:
                await client.xforward(XForward(name="x.example", addr="192.0.2.9"))
                await client.xclient(XClient(addr="192.0.2.10", login="joe"))
                await client.send_message(SENDER, TO, MESSAGE)
            state = inbox.states[0]
            assert state.remote_addr == ("192.0.2.10", 0) and state.username == "joe"
        async with fake() as plain, Client(HERE, plain.port) as client:
            with pytest.raises(Unsendable):
                await client.xforward(XForward(name="x.example"))

    run(main)


@pytest.mark.parametrize(
    "fields",
    [
        {"starttls": "maybe"},
        {"local_hostname": "a b"},
        {"port": 70000},
        {"lmtp": True},
        {"host": ""},
        {"local_addr": ("x.example", 0)},
        {"happy_eyeballs_delay": -1},
    ],
)
def test_impossible_options(fields: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        ClientOptions(**fields)


def test_options() -> None:
    with pytest.raises(ConfigurationError):
        Timeouts(mail=-1)
    with pytest.raises(TypeError):
        Client("x", options=ClientOptions())
    assert ClientOptions(host="x") == ClientOptions(host="x") and len({ClientOptions(), ClientOptions()}) == 1
    assert ClientOptions(host="::1", tls=True).place == "[::1]:465"
    assert ClientOptions(host="x").place == "x:25"


# TLS


@pytest.mark.parametrize("how", ["starttls", "implicit", "proxied"])
def test_tls(run: Runner, served: ssl.SSLContext, trusting: ssl.SSLContext, how: str) -> None:
    async def main() -> None:
        inbox = Inbox()
        implicit = how != "starttls"
        header = encode_proxy_v1(("192.0.2.7", 1), ("192.0.2.8", 2)) if how == "proxied" else b""
        async with Server(
            inbox.backend(),
            addr=f"{HERE}:0",
            tls=served,
            implicit_tls=implicit,
            requiretls=True,
            proxy_from=bool(header),
        ) as server:
            async with Client(
                "localhost",
                server.port,
                tls=implicit,
                starttls="required",
                tls_context=trusting,
                proxy_header=header,
                local_addr=(HERE, 0),
            ) as client:
                assert client.tls_connection_state is not None and client.extension("STARTTLS") is None
                await client.login("joe", "secret")
                assert client.authenticated
                await client.send_message(SENDER, TO, WHOLE, MailParams(requiretls=True))
                await client.send_message(SENDER, TO, MESSAGE)
            assert [each[2] for each in inbox.mail] == [WHOLE, MESSAGE]
            assert inbox.states[0].tls is not None and inbox.states[0].username == "joe"

    run(main)


def test_tls_if_offered(run: Runner, served: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    async def main() -> None:
        inbox = Inbox()
        async with Server(inbox.backend(), addr=f"{HERE}:0", tls=served) as server:
            async with Client(HERE, server.port) as client:  # a certificate that nobody knows is better than none
                assert client.tls_connection_state is not None
                with pytest.raises(Unsendable, match="no password"):
                    await client.login("joe", "secret")
                with pytest.raises(Unsendable, match="no password"):
                    await client.auth(PlainClient("joe", "secret"))
                with pytest.raises(Unsendable, match="REQUIRETLS"):
                    await client.mail(SENDER, MailParams(requiretls=True))
                await client.send_message(SENDER, TO, MESSAGE)
            async with Client(HERE, server.port, tls_context=trusting) as client:
                await client.login("joe", "secret")
            async with Client(HERE, server.port, starttls="never") as client:
                assert client.tls_connection_state is None
        for reply in (b"454 4.7.0 not now\r\n", b"501 no\r\n"):
            async with fake({"EHLO": b"250-x\r\n250 STARTTLS\r\n", "STARTTLS": reply}) as other:
                async with Client(HERE, other.port) as client:
                    assert client.tls_connection_state is None
                    await client.send_message(SENDER, TO, MESSAGE)

    run(main)


def test_tls_that_is_not_to_be_had(run: Runner, served: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    async def refused(**fields: Any) -> TLSFailed:
        with pytest.raises(TLSFailed) as caught:
            await Client(**fields).connect()
        return caught.value

    async def main() -> None:
        inbox = Inbox()
        async with Server(inbox.backend(), addr=f"{HERE}:0", tls=served) as server:
            error = await refused(host=HERE, port=server.port, starttls="required")
            assert "certificate" in str(error) and isinstance(error.__cause__, ssl.SSLCertVerificationError)
            await refused(host=HERE, port=server.port, tls_context=NEVER)
            await refused(
                host=HERE, port=server.port, starttls="required", tls_context=trusting, server_hostname="other.example"
            )
            error = await refused(host=HERE, port=server.port, tls=True, tls_context=trusting)  # it is no TLS port
            assert not error.maybe_delivered
        for replies in (
            {},
            {"EHLO": b"250-x\r\n250 STARTTLS\r\n", "STARTTLS": b"454 no\r\n"},
            {"EHLO": b"250-x\r\n250 STARTTLS\r\n", "STARTTLS": CLOSE},
        ):
            async with fake(replies) as other:
                with pytest.raises(ConnectionLost):
                    await Client(HERE, other.port, starttls="required").connect()
                await other.gone.wait()
                assert not [line for line in other.lines if line.startswith("MAIL")]

    run(main)


@pytest.mark.parametrize("behind", [b"250 injected\r\n", b"2", b"220 go on\r\n250-x\r\n250 AUTH PLAIN\r\n"])
def test_what_is_injected_behind_starttls(
    run: Runner, served: ssl.SSLContext, trusting: ssl.SSLContext, behind: bytes
) -> None:
    async def main() -> None:
        replies = {"EHLO": b"250-x\r\n250 STARTTLS\r\n", "STARTTLS": b"220 go on\r\n" + behind}
        async with fake(replies, served) as server:
            for starttls in ("required", "if-offered"):
                with pytest.raises(ConnectionLost, match=r"plaintext|handshake") as caught:
                    await Client(HERE, server.port, starttls=starttls, tls_context=trusting).connect()
                assert not caught.value.maybe_delivered
            assert [line.split(" ")[0] for line in server.lines] == ["EHLO", "STARTTLS"] * 2

    run(main)


def test_tls_by_hand(run: Runner, served: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    async def main() -> None:
        inbox = Inbox()
        async with Server(inbox.backend(), addr=f"{HERE}:0", tls=served) as server:
            async with Client(HERE, server.port, starttls="never", tls_context=trusting) as client:
                assert (await client.start_tls()).code == 220
                assert client.tls_connection_state is not None
                with pytest.raises(Unsendable):
                    await client.start_tls()
                await client.send_message(SENDER, TO, MESSAGE)
            assert inbox.states[0].tls is not None
        replies = {"EHLO": b"250-x\r\n250 STARTTLS\r\n", "STARTTLS": b"421 4.3.2 down\r\n"}
        async with fake(replies) as down:
            with pytest.raises(SMTPError, match="down"):
                await Client(HERE, down.port).connect()

    run(main)


def test_cancelled_within_the_handshake(run: Runner) -> None:
    async def main() -> None:
        async with fake({"EHLO": b"250-x\r\n250 STARTTLS\r\n"}) as server:
            client = Client(HERE, server.port)
            task = asyncio.ensure_future(client.connect())
            while b"\x16" not in b"".join(server.batches):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not client.usable
            await client.quit()
            await server.gone.wait()

    run(main)


def test_hello_refused_within_tls(run: Runner, served: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    async def main() -> None:
        class Second(Fake):
            async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str) -> bool:
                if what == "STARTTLS":
                    self.replies["EHLO"] = b"554 not you\r\n"
                return await super()._say(reader, writer, what)

        async with fake({"EHLO": b"250-x\r\n250 STARTTLS\r\n"}, served, Second) as server:
            with pytest.raises(SMTPError, match="not you"):
                await Client(HERE, server.port, tls_context=trusting).connect()
            assert [line.split(" ")[0] for line in server.lines] == ["EHLO", "STARTTLS", "EHLO", "QUIT"]

    run(main)


@pytest.mark.parametrize("implicit", [True, False])
def test_a_handshake_that_stalls(run: Runner, implicit: bool, trusting: ssl.SSLContext) -> None:
    async def main() -> None:
        replies = {"greeting": SILENCE} if implicit else {"EHLO": b"250-x\r\n250 STARTTLS\r\n"}
        async with fake(replies) as server:
            with pytest.raises(TLSFailed, match="in time"):
                await Client(
                    HERE, server.port, tls=implicit, tls_context=trusting, timeouts=Timeouts(handshake=0.05)
                ).connect()

    run(main)


# AUTH


class _Users(DefaultBackend):
    auth_mechanisms = ("SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "CRAM-MD5", "PLAIN", "LOGIN", "XOAUTH2", "OAUTHBEARER")
    scram_iterations = 4096

    def __init__(self) -> None:
        super().__init__(DefaultSession)
        self.seen: list[str] = []

    def authenticate(self, state: ConnectionState, credentials: Any) -> Session | None:
        self.seen.append(type(credentials).__name__)
        if isinstance(credentials, TokenCredentials):
            return DefaultSession() if credentials.token == "secret" else None
        if hasattr(credentials, "verify"):
            return DefaultSession() if credentials.verify("secret") else None
        return DefaultSession()

    def scram_secret(self, state: ConnectionState, username: str) -> ScramSecret | None:
        return ScramSecret.derive("secret", iterations=4096) if username == "joe" else None


@pytest.mark.parametrize(
    ("offered", "expected"),
    [
        (_Users.auth_mechanisms, "SCRAM-SHA-256"),
        (("PLAIN", "LOGIN"), "PLAIN"),
        (("LOGIN",), "LOGIN"),
        (("PLAIN", "CRAM-MD5"), "CRAM-MD5"),
    ],
)
def test_the_best_mechanism(
    run: Runner,
    served: ssl.SSLContext,
    trusting: ssl.SSLContext,
    monkeypatch: pytest.MonkeyPatch,
    offered: tuple[str, ...],
    expected: str,
) -> None:
    pytest.importorskip("scramp")
    monkeypatch.setattr(_Users, "auth_mechanisms", offered)

    async def main() -> None:
        trace = io.StringIO()
        async with Server(_Users(), addr=f"{HERE}:0", tls=served, auth_failure_delay=0) as server:
            async with Client(HERE, server.port, tls_context=trusting, debug=trace) as client:
                with pytest.raises(SMTPError) as caught:
                    await client.login("joe", "wrong")
                assert caught.value.code == 535 and not client.authenticated
                assert (await client.login("joe", "secret")).code == 235
                assert client.supports_auth(expected.lower())
        text = trace.getvalue()
        assert f"C: AUTH {expected}" in text and text.count("C: AUTH") == 2
        for secret in ("secret", "c2VjcmV0", "am9l"):  # the last two are parts of base64
            assert secret not in text

    run(main)


def test_bound_to_the_tls_session(
    run: Runner, authority: trustme.CA, trusting: ssl.SSLContext, tmp_path: pathlib.Path
) -> None:
    pytest.importorskip("scramp")
    pem = tmp_path / "server.pem"
    authority.issue_cert(HERE).private_key_and_cert_chain_pem.write_to_path(pem)

    async def main() -> None:
        trace = io.StringIO()
        async with Server(_Users(), addr=f"{HERE}:0", tls=TLSFiles(pem), auth_failure_delay=0) as server:
            async with Client(HERE, server.port, tls_context=trusting, debug=trace) as client:
                with pytest.raises(SMTPError):
                    await client.login("joe", "wrong")
                await client.login("joe", "secret")
        assert trace.getvalue().count("C: AUTH SCRAM-SHA-256-PLUS") == 2

    run(main)


def test_tokens(run: Runner, served: ssl.SSLContext, trusting: ssl.SSLContext) -> None:
    async def main() -> None:
        async with Server(_Users(), addr=f"{HERE}:0", tls=served, auth_failure_delay=0) as server:
            async with Client(HERE, server.port, tls_context=trusting) as client:
                with pytest.raises(SMTPError):
                    await client.login("joe", token="wrong")
                assert (await client.login("joe", token="secret")).code == 235

    run(main)


def test_a_mechanism_that_the_server_only_says_it_has(run: Runner) -> None:
    async def main() -> None:
        replies = {"EHLO": b"250-x\r\n250 AUTH LOGIN PLAIN\r\n", "AUTH": b"504 5.5.4 no\r\n"}
        async with fake(replies) as server:
            async with Client(HERE, server.port, allow_insecure_auth=True) as client:
                with pytest.raises(SMTPError) as caught:
                    await client.login("joe", "secret")
                assert caught.value.code == 504
                with pytest.raises(Unsendable):
                    await client.login("joe", token="secret")
            assert [line.split(" ")[:2] for line in server.lines if line.startswith("AUTH")] == [
                ["AUTH", "PLAIN"],
                ["AUTH", "LOGIN"],
            ]

    run(main)


def test_a_server_that_proves_nothing(run: Runner) -> None:
    pytest.importorskip("scramp")

    async def main() -> None:
        async with fake({"EHLO": b"250-x\r\n250 AUTH SCRAM-SHA-256\r\n", "AUTH": b"235 come in\r\n"}) as server:
            async with Client(HERE, server.port) as client:
                with pytest.raises(SASLError):
                    await client.login("joe", "secret")
                assert not client.usable
                with pytest.raises((ConnectionLost, RuntimeError)):
                    await client.send_message(SENDER, TO, MESSAGE)

    run(main)


def test_no_password_in_plaintext(run: Runner) -> None:
    async def main() -> None:
        async with fake({"EHLO": b"250-x\r\n250 AUTH PLAIN LOGIN XOAUTH2\r\n"}) as server:
            async with Client(HERE, server.port) as client:
                with pytest.raises(Unsendable, match="no password"):
                    await client.login("joe", "secret")
                with pytest.raises(Unsendable, match="no password"):
                    await client.login("joe", token="secret")
            assert [line.split(" ")[0] for line in server.lines] == ["EHLO", "QUIT"]

    run(main)


# Servers that misbehave


def phase(step: str) -> str:
    return {"greeting": "greeting", "EHLO": "hello", ".": "end", "LAST": "end"}.get(step, step.lower())


async def misbehave(step: str, reply: bytes, timeouts: Timeouts | None = None, **more: bytes) -> ConnectionLost:
    """Send to a server that says this at that step; the exception."""
    async with fake({**more, step: reply}) as server:
        with pytest.raises(ConnectionLost) as caught:
            async with Client(HERE, server.port, timeouts=timeouts or Timeouts()) as client:
                await client.send_message(SENDER, TO, MESSAGE)
        await server.gone.wait()
        return caught.value


@pytest.mark.parametrize("step", STEPS)
def test_closed_at_every_step(run: Runner, step: str) -> None:
    async def main() -> None:
        for reply in (CLOSE, b"2" + CLOSE, b"250-half\r\n" + CLOSE, b"250-half" + CLOSE):
            error = await misbehave(step, reply)
            assert error.maybe_delivered is (step == ".")
            if step in ("greeting", "EHLO"):
                assert error.deliveries == ()
            else:
                assert error.deliveries == (Delivery(TO[0], LOST),)

    run(main)


GARBAGE = {
    "text": b"hello\r\n",
    "two codes": b"250-a\r\n251 b\r\n",
    "bare LF": b"250 ok\n",
    "no digits": b"2x0 ok\r\n",
    "impossible code": b"999 ok\r\n",
    "a line without end": b"250 " + b"x" * 100_000,
    "lines without end": b"250-x\r\n" * 10_000,
    "NUL": b"\0" * 10 + b"\r\n",
    "octets": bytes(range(256)),
}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_garbage_at_every_step(run: Runner, garbage: str) -> None:
    async def main() -> None:
        for step in STEPS:
            error = await misbehave(step, GARBAGE[garbage])
            assert error.maybe_delivered is (step == ".")
            assert isinstance(error.__cause__, ValueError)

    run(main)


@pytest.mark.parametrize("step", STEPS)
def test_silence_at_every_step(run: Runner, step: str) -> None:
    async def main() -> None:
        error = await misbehave(step, SILENCE, Timeouts(**{phase(step): 0.02}))
        assert isinstance(error, TimedOut) and isinstance(error, TimeoutError)
        assert error.maybe_delivered is (step == ".")

    run(main)


OTHERS: dict[str, Callable[[Client], Awaitable[object]]] = {
    "STARTTLS": lambda client: client.start_tls(),
    "AUTH": lambda client: client.auth(PlainClient("user", "secret")),
    "NOOP": lambda client: client.noop(),
    "RSET": lambda client: client.reset(),
    "VRFY": lambda client: client.verify("user"),
    "EXPN": lambda client: client.expand("list"),
    "HELP": lambda client: client.help(),
    "XCLIENT": lambda client: client.xclient(XClient(name="a.example")),
    "XFORWARD": lambda client: client.xforward(XForward(name="a.example")),
    "ETRN": lambda client: client.command("ETRN", "a.example"),
}


@pytest.mark.parametrize("verb", OTHERS)
@pytest.mark.parametrize("reply", [SILENCE, CLOSE, b"what?\r\n", b"250-half\r\n" + SILENCE, b"354 go on\r\n"])
def test_trouble_at_other_commands(verb: str, reply: bytes) -> None:
    """None of them is waited for longer than `Timeouts.command`."""
    offer = b"250-x\r\n250-STARTTLS\r\n250-AUTH PLAIN\r\n250-XCLIENT NAME\r\n250 XFORWARD NAME\r\n"
    silent = reply.endswith(SILENCE)

    class Stalls(Fake):
        async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str) -> bool:
            if what == verb and silent:
                writer.write(reply.removesuffix(SILENCE))
                while await reader.read(65536):
                    pass
                return False
            return await super()._say(reader, writer, what)

    async def main() -> None:
        async with fake({"EHLO": offer, verb: reply}, kind=Stalls) as server:
            timeouts = Timeouts(command=0.02) if silent else Timeouts()
            options = ClientOptions(
                host=HERE, port=server.port, starttls="never", allow_insecure_auth=True, timeouts=timeouts
            )
            client = Client(options=options)
            await client.connect()
            with pytest.raises(TimedOut if silent else ConnectionLost) as caught:
                await OTHERS[verb](client)
            assert not silent or f"no reply to {verb} in time" in str(caught.value)
            assert not client.usable
            await client.wait_closed()

    asyncio.run(main())


@pytest.mark.parametrize("step", ["BDAT", "LAST"])
def test_silence_at_chunks(run: Runner, step: str) -> None:
    async def main() -> None:
        async with fake({"EHLO": b"250-x\r\n250 CHUNKING\r\n", step: SILENCE}) as server:
            timeouts = Timeouts(block=0.02) if step == "BDAT" else Timeouts(end=0.02)
            with pytest.raises(TimedOut) as caught:
                async with Client(HERE, server.port, timeouts=timeouts) as client:
                    await client.send_message(SENDER, TO, LINES)
            assert caught.value.maybe_delivered is (step == "LAST")

    run(main)


def test_octets_do_not_renew_patience(run: Runner) -> None:
    async def drip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while not reader.at_eof():
                writer.write(b"2")
                await writer.drain()
                await asyncio.sleep(0.001)
        except ConnectionError:
            pass
        finally:
            writer.close()

    async def main() -> None:
        listener = await asyncio.start_server(drip, HERE, 0)
        async with listener:
            port = listener.sockets[0].getsockname()[1]
            with pytest.raises(TimedOut, match="no greeting in time"):
                await Client(HERE, port, timeouts=Timeouts(greeting=0.1)).connect()

    run(main)


@pytest.mark.parametrize("closing", [b"", CLOSE])
@pytest.mark.parametrize("step", STEPS)
def test_421_at_every_step(run: Runner, step: str, closing: bytes) -> None:
    async def main() -> None:
        async with fake({step: b"421 4.3.2 going down\r\n" + closing}) as server:
            client = Client(HERE, server.port)
            if step in ("greeting", "EHLO"):
                with pytest.raises(SMTPError) as caught:
                    await client.connect()
                assert caught.value.code == 421
            else:
                await client.connect()
                assert codes(await client.send_message(SENDER, TO, MESSAGE)) == [(TO[0], 421)]
                assert not client.usable
                with pytest.raises(SMTPError):
                    await client.send_message(SENDER, TO, MESSAGE)
            await client.quit()
            await server.gone.wait()

    run(main)


def test_421_while_nothing_goes_on(run: Runner) -> None:
    async def main() -> None:
        async with fake({"NOOP": b"250 ok\r\n421 4.4.2 idle\r\n"}) as server, Client(HERE, server.port) as client:
            await client.noop()
            with pytest.raises(SMTPError, match="idle"):
                while True:
                    await client.noop()
            assert not client.idle

    run(main)


def test_closed_while_nothing_goes_on(run: Runner) -> None:
    async def main() -> None:
        async with fake({"NOOP": b"250 ok\r\n" + CLOSE}) as server, Client(HERE, server.port) as client:
            await client.noop()
            await server.gone.wait()
            with pytest.raises(ConnectionLost):
                while True:
                    await client.help()
            assert not client.usable

    run(main)


@pytest.mark.parametrize(
    ("step", "code"), [("greeting", 554), ("EHLO", 451), ("MAIL", 451), ("RCPT", 550), ("DATA", 451)]
)
def test_refused_at_every_step(run: Runner, step: str, code: int) -> None:
    async def main() -> None:
        async with fake({step: b"%d no\r\n" % code}) as server:
            client = Client(HERE, server.port)
            if step in ("greeting", "EHLO"):
                with pytest.raises(SMTPError) as caught:
                    await client.connect()
                assert caught.value.code == code
            else:
                await client.connect()
                assert codes(await client.send_message(SENDER, TO, MESSAGE)) == [(TO[0], code)]
                assert client.idle and codes(await client.send_message(SENDER, TO, MESSAGE)) == [(TO[0], code)]
                await client.quit()
            await server.gone.wait()
            assert server.lines[-1] == "QUIT" and server.messages == []

    run(main)


def test_a_reply_that_nobody_asked_for(run: Runner) -> None:
    async def main() -> None:
        error = await misbehave("MAIL", b"250 ok\r\n250 ok\r\n250 ok\r\n250 ok\r\n")
        assert not error.maybe_delivered
        error = await misbehave("DATA", b"354 go\r\n250 taken\r\n")
        assert not error.maybe_delivered

    run(main)


def test_refused_while_the_source_is_waited_for(run: Runner) -> None:
    async def main() -> None:
        async with fake({"DATA": b"354 go\r\n552 enough\r\n"}) as server:
            async with Client(HERE, server.port) as client:

                async def late() -> AsyncIterator[bytes]:
                    while client.usable:
                        await asyncio.sleep(0)
                    yield b"too late"

                assert codes(await client.send_message(SENDER, TO, late())) == [(TO[0], 552)]

    run(main)


@pytest.mark.parametrize("code", [421, 552])
@pytest.mark.parametrize("lmtp", [True, False])
def test_answered_before_the_message_is_whole(run: Runner, lmtp: bool, code: int) -> None:
    async def main() -> None:
        async with fake({"DATA": b"354 go\r\n%d enough\r\n" % code}) as server:

            async def endless() -> AsyncIterator[bytes]:
                while True:
                    await asyncio.sleep(0)
                    yield b"x" * 1000 + b"\r\n"

            async with Client(HERE, server.port, lmtp=lmtp) as client:
                assert codes(await client.send_message(SENDER, ["a@x", "b@x"], endless())) == [
                    ("a@x", code),
                    ("b@x", code),
                ]
                assert not client.usable
            await server.gone.wait()
            assert server.messages == []

    run(main)


def test_lmtp_lost_between_replies(run: Runner) -> None:
    async def main() -> None:
        async with fake({".": b"250 ok\r\n452 full\r\n" + CLOSE}) as server:
            with pytest.raises(ConnectionLost) as caught:
                async with Client(HERE, server.port, lmtp=True) as client:
                    await client.send_message(SENDER, ["a@x", "b@x", "c@x", "d@x"], MESSAGE)
            assert codes(caught.value.deliveries) == [("a@x", 250), ("b@x", 452), ("c@x", 451), ("d@x", 451)]
            assert caught.value.maybe_delivered

    run(main)


def test_answered_and_closed_at_once(run: Runner) -> None:
    async def main() -> None:
        async with fake({".": b"250 ok\r\n" + CLOSE}) as server, Client(HERE, server.port) as client:
            assert codes(await client.send_message(SENDER, TO, MESSAGE)) == [(TO[0], 250)]

    run(main)


def test_refused_within_the_message(run: Runner) -> None:
    async def main() -> None:
        read = 0

        def parts() -> Iterator[bytes]:
            nonlocal read
            for _ in range(1000):
                read += 1
                yield b"x" * 65536

        async with fake({"EHLO": b"250-x\r\n250 CHUNKING\r\n", "BDAT": b"552 too large\r\n"}) as server:
            async with Client(HERE, server.port) as client:
                assert codes(await client.send_message(SENDER, TO, parts())) == [(TO[0], 552)]
                assert read < 100 and client.idle

    run(main)


@pytest.mark.parametrize("extension", [b"CHUNKING", b"HELP"])
def test_a_server_that_reads_nothing(run: Runner, extension: bytes) -> None:
    async def main() -> None:
        read = 0

        async def parts() -> AsyncIterator[bytes]:
            nonlocal read
            for _ in range(4000):
                read += 1
                yield b"x" * 65536

        stop = asyncio.Event()

        async def deaf(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writer.write(b"220 x\r\n")
            for _ in range(3):
                line = await reader.readline()
                writer.write(
                    b"250-x\r\n250-PIPELINING\r\n250 %b\r\n" % extension if line[:4] == b"EHLO" else b"250 ok\r\n"
                )
            if extension != b"CHUNKING":
                await reader.readline()
                writer.write(b"354 go\r\n")
            await stop.wait()
            writer.transport.abort()

        listener = await asyncio.start_server(deaf, HERE, 0, limit=1024)
        port = listener.sockets[0].getsockname()[1]
        try:
            with pytest.raises(TimedOut) as caught:
                async with Client(HERE, port, timeouts=Timeouts(block=0.1)) as client:
                    await client.send_message(SENDER, TO, parts())
            assert not caught.value.maybe_delivered
            assert 0 < read < 1000  # what sockets hold, and not all of it
        finally:
            stop.set()
            listener.close()

    run(main)


@pytest.mark.parametrize("how", ["DATA", "BDAT", "TLS"])
def test_a_server_that_pauses(run: Runner, served: ssl.SSLContext, trusting: ssl.SSLContext, how: str) -> None:
    """Nothing more is read from the source while the server reads nothing, and it goes on when the server does."""

    async def main() -> None:
        produced = 0
        connections: list[Any] = []

        async def parts() -> AsyncIterator[bytes]:
            nonlocal produced
            for _ in range(400):
                produced += 1
                yield LINES[0] * 1000

        class Pausing(DefaultSession):
            async def data(self, reader: DataReader, context: DataContext) -> Reply:
                still = 0
                while still < 200:
                    before = produced
                    await asyncio.sleep(0)
                    still = still + 1 if connections[0]._paused and produced == before else 0
                assert produced < 400
                size = 0
                async for part in reader:
                    size += len(part)
                return Reply(250, EnhancedCode(2, 0, 0), str(size))

        async with Server(DefaultBackend(Pausing), addr=f"{HERE}:0", tls=served) as server:
            starttls = "required" if how == "TLS" else "never"
            async with Client(
                HERE, server.port, chunking=how == "BDAT", starttls=starttls, tls_context=trusting
            ) as client:
                connections.append(client._connection)
                deliveries = await client.send_message(SENDER, TO, parts())
                assert deliveries[0].reply.message == str(400 * 1000 * len(LINES[0]))

    run(main)


class _Handle:
    def __init__(self, when: float, call: Callable[[], None]) -> None:
        self._when = when
        self.call = call
        self.cancelled = False

    def when(self) -> float:
        return self._when

    def cancel(self) -> None:
        self.cancelled = True


class _Still:
    """A loop whose time stands still until it is told, and a transport that takes what it is told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.handles: list[_Handle] = []
        self.buffered = 0
        self.aborted = self.closed = False
        self.written = b""

    def time(self) -> float:
        return self.now

    def call_at(self, when: float, call: Callable[[], None]) -> _Handle:
        self.handles.append(_Handle(when, call))
        return self.handles[-1]

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def write(self, data: bytes) -> None:
        self.written += data

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.closed = True

    def advance(self, seconds: float) -> None:
        end = self.now + seconds
        while due := [each for each in self.handles if each.when() <= end and not each.cancelled]:
            first = min(due, key=_Handle.when)
            self.handles.remove(first)
            self.now = max(self.now, first.when())
            first.call()
        self.now = end


def still(timeouts: Timeouts, offer: bytes) -> tuple[Any, ClientConnection, ClientProtocol]:
    """A connection after EHLO, without a loop and a network."""
    world: Any = _Still()
    protocol = ClientProtocol(hello_name="me.example")
    connection = ClientConnection(world, protocol, timeouts, plain=True)
    connection.connection_made(world)
    connection.data_received(b"220 x\r\n")
    protocol.hello()
    connection.advance()
    connection.data_received(b"250-x\r\n250 " + offer + b"\r\n")
    assert connection.usable
    return world, connection, protocol


def test_slow_is_not_deaf() -> None:
    world, connection, protocol = still(Timeouts(block=10), b"HELP")
    transaction = protocol.transaction(SENDER, TO)
    connection.advance()
    for _ in range(2):
        connection.data_received(b"250 ok\r\n")
    connection.data_received(b"354 go\r\n")
    assert transaction.wants_body
    transaction.write(b"x" * 100_000)
    connection.advance()
    world.buffered = 100
    connection.pause_writing()
    for left in range(99, 90, -1):
        world.advance(9)
        world.buffered = left
        world.advance(1)
        assert connection.usable
    world.advance(9.9)
    assert connection.usable
    world.advance(0.2)
    assert not connection.usable and world.aborted
    with pytest.raises(TimedOut, match="takes nothing"):
        connection.check()


def test_no_reply_before_it_is_written() -> None:
    world, connection, protocol = still(Timeouts(block=10, end=10), b"CHUNKING")
    transaction = protocol.transaction(SENDER, TO, chunking=True)
    connection.advance()
    for _ in range(2):
        connection.data_received(b"250 ok\r\n")
    transaction.finish(b"x" * 1000)
    world.buffered = 1000
    connection.advance()
    for left in (900, 100, 0):
        world.buffered = left
        world.advance(10)
        assert connection.usable
    world.advance(9)
    assert connection.usable
    world.advance(1)
    with pytest.raises(TimedOut, match="no reply to BDAT"):
        connection.check()


def test_patience_is_renewed_by_replies_only() -> None:
    world, connection, protocol = still(Timeouts(mail=10, rcpt=20), b"PIPELINING")
    transaction = protocol.transaction(SENDER, ["b@x", "c@x"])
    connection.advance()
    world.advance(9)
    connection.data_received(b"250")
    connection.data_received(b" ok\r\n")
    for _ in range(19):
        world.advance(1)
        connection.data_received(b"2" if not _ else b"50-x\r\n2" if _ < 18 else b"50 x\r\n")
    assert connection.usable and len(world.handles) <= 2
    world.advance(19)
    assert connection.usable
    world.advance(1)
    assert not connection.usable and transaction.done
    with pytest.raises(TimedOut, match="no reply to RCPT"):
        connection.check()


def test_nothing_waited_for_needs_no_patience() -> None:
    world, connection, _ = still(Timeouts(), b"HELP")
    world.advance(10_000)
    assert connection.usable and not world.handles


@pytest.mark.parametrize("late", [b"250 injected\r\n", b"\x16\x03"])
def test_what_comes_after_the_reply_to_starttls_and_before_the_handshake(late: bytes) -> None:
    world, connection, protocol = still(Timeouts(), b"STARTTLS")
    command = protocol.start_tls()
    connection.advance()
    connection.data_received(b"220 go\r\n")
    assert command.done and connection.usable
    connection.data_received(late)
    assert world.aborted and not connection.usable
    with pytest.raises(ConnectionLost, match="plaintext"):
        connection.check()


def test_server_takes_its_time(run: Runner) -> None:
    """Patience is for each reply, not for all of them."""

    async def main() -> None:
        inbox = Inbox()
        async with Server(inbox.backend(), addr=f"{HERE}:0") as server:
            everything = Timeouts(
                connect=0, handshake=0, greeting=0, hello=0, mail=0, rcpt=0, data=0, block=0, end=0, command=0, quit=0
            )
            async with Client(HERE, server.port, timeouts=everything) as client:
                await client.send_message(SENDER, TO, LINES)
            assert inbox.mail

    run(main)


# Cancellation


@pytest.mark.parametrize("chunking", [True, False])
@pytest.mark.parametrize("lmtp", [True, False])
@pytest.mark.parametrize("how", ["cancelled", "raises"])
def test_half_a_message_is_never_whole(run: Runner, how: str, lmtp: bool, chunking: bool) -> None:
    async def main() -> None:
        inbox = Inbox()
        waiting = asyncio.Event()

        async def half() -> AsyncIterator[bytes]:
            yield WHOLE[:300_000]
            await inbox.began.wait()
            waiting.set()
            if how == "raises":
                raise ZeroDivisionError
            await asyncio.Event().wait()

        async with Server(inbox.backend(), addr=f"{HERE}:0", lmtp=lmtp) as server:
            client = Client(HERE, server.port, lmtp=lmtp, chunking=chunking)
            await client.connect()
            task = asyncio.ensure_future(client.send_message(SENDER, TO, half()))
            await waiting.wait()
            if how == "cancelled":
                task.cancel()
            with pytest.raises(asyncio.CancelledError if how == "cancelled" else ZeroDivisionError):
                await task
            await inbox.aborted.wait()
            assert inbox.mail == [] and not client.usable
            with pytest.raises(ConnectionLost):
                await client.noop()
            await client.quit()
            assert server.counters.messages == 0

    run(main)


@pytest.mark.parametrize("step", STEPS)
def test_cancelled_at_every_step(run: Runner, step: str) -> None:
    async def main() -> None:
        async with fake({step: SILENCE}) as server:

            async def send() -> None:
                async with Client(HERE, server.port) as client:
                    await client.send_message(SENDER, TO, MESSAGE)

            task = asyncio.ensure_future(send())
            verb = "EHLO" if step == "greeting" else step
            while not server.connections or not (
                step == "greeting" or server.messages or any(line.startswith(verb) for line in server.lines)
            ):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    run(main)


def test_a_block_left_by_an_exception(run: Runner) -> None:
    async def main() -> None:
        async with fake() as server:
            with pytest.raises(ZeroDivisionError):
                async with Client(HERE, server.port) as client:
                    await client.mail(SENDER)
                    raise ZeroDivisionError
            await server.gone.wait()
            assert server.lines[-1].startswith("MAIL")
        async with fake({"MAIL": b"550 no\r\n"}) as server:
            with pytest.raises(SMTPError):
                async with Client(HERE, server.port) as client:
                    await client.mail(SENDER)
            assert server.lines[-1] == "QUIT"
            with pytest.raises(RuntimeError, match="connected already"):
                await client.connect()

    run(main)


def test_quit_that_nobody_answers(run: Runner) -> None:
    async def main() -> None:
        for reply in (SILENCE, CLOSE, b"garbage\r\n", b"421 bye\r\n", b"500 what?\r\n"):
            async with fake({"QUIT": reply}) as server:
                async with Client(HERE, server.port, timeouts=Timeouts(quit=0.02)) as client:
                    await client.noop()
                await client.quit()

    run(main)


# The trace


def test_trace(run: Runner) -> None:
    async def main() -> None:
        trace = io.StringIO()
        async with fake({"greeting": b"220 \x1b[31m\xff\r\n"}) as server:
            async with Client(HERE, server.port, debug=trace, local_hostname="me.example") as client:
                await client.send_message(SENDER, TO, MESSAGE)
        lines = [line.split(" ", 1)[1] for line in trace.getvalue().splitlines()]
        assert lines[0].startswith("S: 220 ") and "\x1b" not in lines[0]
        assert lines[1] == "C: EHLO me.example"
        assert "C: DATA" in lines and not any("dot" in line for line in lines)

    run(main)


# The example


def test_example(run: Runner, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(MESSAGE)
    script = pathlib.Path(__file__).parent.parent / "examples" / "send.py"

    async def main() -> None:
        inbox = Inbox()
        async with Server(inbox.backend(), addr=f"{HERE}:0") as server:
            arguments = (str(script), HERE, str(server.port), str(path), SENDER, "b@x", "no@x")
            process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdout=asyncio.subprocess.PIPE)
            out, _ = await process.communicate()
            assert out.decode().splitlines() == ["b@x: 250 2.0.0 Message accepted", "no@x: 550 5.1.1 nobody"]
            assert process.returncode == 1 and inbox.mail == [(SENDER, ["b@x"], MESSAGE)]

    run(main)
