"""Load and faults: what peers, hooks and the system do to a server, and that it goes on; on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import io
import logging
import os
import pathlib
import socket
import ssl
import struct
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from fastsmtp import (
    Conn,
    DataContext,
    DataReader,
    DefaultBackend,
    DefaultSession,
    EnhancedCode,
    MailParams,
    MessageAborted,
    RcptParams,
    Reply,
    Server,
    ServerOptions,
    limits,
)
from fastsmtp.holds import PEER_IS_DEAF
from fastsmtp.protocol import ServerProtocol
from fastsmtp.reception import Reception
from fastsmtp.session import HookResult

from .certificates import Authority
from .loops import LOOPS, Runner
from .serving import Serving, serving
from .test_shell import Client

resource: Any = pytest.importorskip("resource")  # not on Windows, which lacks Unix sockets as well
FAILED = "451 4.3.0 Local error in processing"
READ_AT_ONCE = 256 * 1024  # the most that asyncio and uvloop take from a socket at a time


async def until(condition: Callable[[], object], turns: int = 100_000) -> None:
    """Turn the loop until it is so."""
    for _ in range(turns):
        if condition():
            return
        await asyncio.sleep(0)
    raise AssertionError("it does not come")


def quiet() -> logging.Logger:
    return logging.Logger("test", logging.CRITICAL + 1)


def conns(server: Server) -> list[Conn]:
    found: list[Conn] = []
    server.for_each_conn(found.append)
    return found


class Clock:
    """A server's time, ours to turn: the server itself does not look at its deadlines any more."""

    def __init__(self, server: Server) -> None:
        assert server.roster._ticker is not None  # there is a connection
        server.roster._ticker.cancel()
        self._server = server

    def advance(self, seconds: float) -> None:
        self._server.roster.now += seconds
        for conn in conns(self._server):
            if conn.deadline <= self._server.roster.now:
                conn.timed_out()


class Wire(asyncio.Transport):
    """A transport without a socket that keeps every write."""

    def __init__(self, server: Server) -> None:
        super().__init__({"peername": ("192.0.2.1", 1), "sockname": ("192.0.2.2", 25)})
        self.writes: list[bytes] = []
        self.closed = False
        self.eof = False
        self._loop = asyncio.get_running_loop()
        self.conn = Conn(server, self._loop)
        self.conn.connection_made(self)

    def write(self, data: bytes | bytearray | memoryview[Any]) -> None:
        assert not self.eof
        if not self.closed:
            self.writes.append(bytes(data))

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        self.eof = True

    def pause_reading(self) -> None:
        pass

    def resume_reading(self) -> None:
        pass

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self._loop.call_soon(self.conn.connection_lost, None)

    abort = close

    def feed(self, data: bytes) -> list[str]:
        """The codes of each write that comes of it at once."""
        self.writes.clear()
        self.conn.data_received(data)
        return self.taken()

    def taken(self) -> list[str]:
        writes = [codes(each) for each in self.writes]
        self.writes.clear()
        return writes


def codes(replies: bytes) -> str:
    return " ".join(line[:3].decode() for line in replies.splitlines() if line[3:4] == b" ")


def reset(sock: socket.socket) -> None:
    """Close with RST."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


# Out of file descriptors


@contextlib.contextmanager
def starved(served: Serving, spare: int) -> Iterator[tuple[list[str], Callable[[], bool]]]:
    """Let the server have only so many file descriptors more than now.

    Gives the lines that it logs meanwhile, and what tells whether it has closed all that it opened since.
    """
    with socket.create_connection(("127.0.0.1", served.port), 30) as sock:
        sock.sendall(b"QUIT\r\n")
        while sock.recv(4096):
            pass  # what the loop itself needs is open now
    pid = served.process.pid
    used = len(os.listdir(f"/proc/{pid}/fd"))
    _, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (used + spare, hard))
    lines: list[str] = []
    assert served.process.stderr is not None
    reader = threading.Thread(target=lines.extend, args=(served.process.stderr,))
    reader.start()
    try:
        yield lines, lambda: len(os.listdir(f"/proc/{pid}/fd")) <= used
    finally:
        if served.process.poll() is None:
            served.process.terminate()
        served.process.wait(30)
        reader.join()


def too_many_files(loop: str) -> list[str]:
    """A server runs out of file descriptors and serves again; what it logged."""
    with serving("--discard", "--port", "0", "--loop", loop) as served, starved(served, 6) as (lines, idle):
        address = ("127.0.0.1", served.port)
        with contextlib.ExitStack() as stack:
            clients = [stack.enter_context(socket.create_connection(address, 30)) for _ in range(20)]
            assert clients[0].recv(4) == b"220 "
            if loop == "asyncio":
                while not any("out of system resource" in line for line in lines):
                    assert served.process.poll() is None
                    os.sched_yield()
            else:
                assert clients[-1].recv(4) == b""  # libuv drops what it cannot hold
        if loop != "asyncio":
            while not idle():
                os.sched_yield()
        # asyncio looks again after a second; meanwhile the kernel holds the connection.
        with contextlib.closing(socket.create_connection(address, 30)) as sock:
            sock.sendall(b"HELO x.example\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\nhello\r\n.\r\nQUIT\r\n")
            received = b"".join(iter(lambda: sock.recv(4096), b""))
        assert codes(received) == "220 250 250 250 354 250 221"
        assert served.process.poll() is None
    assert served.process.returncode == 0
    return lines


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit")
@pytest.mark.parametrize("loop", [each.id for each in LOOPS])
def test_out_of_file_descriptors(loop: str) -> None:
    lines = too_many_files(loop)
    assert "1 messages" in lines[-1]
    # It is not logged a thousand times.
    assert sum("out of system resource" in line for line in lines) < 150


# Peers that do not read


class Deaf:
    """A client that sends and never reads, with the smallest buffers on both sides."""

    async def connect(self, server: Server) -> Conn:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.setblocking(False)
        before = conns(server)
        await asyncio.get_running_loop().sock_connect(self.sock, ("127.0.0.1", server.port))
        await until(lambda: len(conns(server)) > len(before))
        (conn,) = (each for each in conns(server) if each not in before)
        fileno = conn._transport.get_extra_info("socket").fileno()
        with socket.socket(fileno=os.dup(fileno)) as ours:
            ours.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return conn

    async def send(self, block: bytes, until_refused: int = 200) -> int:
        """Send until the kernel has taken nothing for so many turns of the loop; octets sent."""
        sent = refused = position = 0
        while refused < until_refused:
            try:
                count = self.sock.send(block[position:])
            except BlockingIOError:
                refused += 1
                await asyncio.sleep(0)
            else:
                refused = 0
                sent += count
                position = (position + count) % len(block)
        return sent


@pytest.mark.parametrize(
    "command",
    [
        "RSET",
        "HELP",
    ],
)
def test_a_deaf_peer_is_bounded_and_dropped(run: Runner, command: str) -> None:
    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0", write_timeout=7) as server:
            deaf = Deaf()
            conn = await deaf.connect(server)
            clock = Clock(server)
            with deaf.sock:
                sent = 0
                while not conn._reading_paused:
                    sent += await deaf.send((command + "\r\n").encode() * 20_000)
                assert conn._core.buffered <= READ_AT_ONCE + limits.BODY_HIGH_WATER
                size = conn._transport.get_write_buffer_size()
                assert 0 < size <= 64 * 1024 + limits.COMMANDS_PER_TURN * limits.REPLY_LINE
                async with Client(server) as other:
                    assert (await other.line()).startswith("220 ")
                    assert (await other.ask("NOOP")).startswith("250 ")
                    assert (await other.ask("QUIT")).startswith("221 ")
                clock.advance(6)
                sent += await deaf.send((command + "\r\n").encode() * 20_000)
                assert sent < 16_000_000  # what the kernel's buffers may hold, and no more
                assert conns(server) == [conn] and conn._reading_paused
                assert 0 < conn._transport.get_write_buffer_size() <= size
                clock.advance(2)
                await until(lambda: not server.counters.connections)
                with pytest.raises(ConnectionError):
                    await deaf.send(b"NOOP\r\n" * 1000)

    run(main)


def test_what_a_deaf_peer_has_not_taken_is_forgotten(run: Runner) -> None:
    """Dropped, it is told so by RST at once: the kernel must not keep trying for minutes, with all that is in its buffers."""

    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0", write_timeout=7) as server:
            deaf = Deaf()
            conn = await deaf.connect(server)
            clock = Clock(server)
            with deaf.sock:
                deaf.sock.send(b"HELP\r\n" * 10_000)  # all of it is read: else closing would send RST in any case
                await until(lambda: conn._holds & PEER_IS_DEAF)
                assert deaf.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0
                clock.advance(8)
                await until(lambda: not server.counters.connections)
                assert deaf.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == errno.ECONNRESET

    run(main)


def test_a_deaf_peer_is_dropped_by_the_clock(run: Runner) -> None:
    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0", write_timeout=0.05) as server:
            deaf = Deaf()
            await deaf.connect(server)
            with deaf.sock, pytest.raises(ConnectionError):
                await deaf.send(b"RSET\r\n" * 20_000, 10_000_000)
            await until(lambda: not server.counters.connections)

    run(main)


def test_a_deaf_peer_that_hears_again_gets_everything(run: Runner) -> None:
    total = 30_000

    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0") as server:
            async with Client(server) as client:
                await client.line()
                client.writer.write(b"HELP\r\n" * total + b"QUIT\r\n")
                await until(lambda: conns(server)[0]._reading_paused)
                received = await client.reader.read()
                assert received.count(b"\r\n") == received.count(b"214 ") + 1 == total + 1
                assert received.endswith(b"221 2.0.0 Bye\r\n")

    run(main)


# Bodies that trickle


@pytest.mark.parametrize(("octets", "end"), [(1, 11), (50, 19), (99, None), (100, None), (150, None)])
def test_the_least_rate_of_a_body(run: Runner, octets: int, end: int | None) -> None:
    delivered: list[bytes] = []

    class Session(DefaultSession):
        def data(self, reader: DataReader, context: DataContext) -> None:
            delivered.append(reader.read_nowait())

    async def main() -> None:
        options = ServerOptions(addr="127.0.0.1:0", read_timeout=10, min_body_rate=100)
        async with Server(DefaultBackend(Session), options=options) as server:
            wire = Wire(server)
            clock = Clock(server)
            assert wire.feed(b"HELO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n")[-1].endswith("354")
            sent = 0
            second = 0
            for second in range(1, 61):  # noqa: B007 - it is looked at below
                clock.advance(1)
                if wire.eof:
                    break
                wire.conn.data_received(b"x" * octets)
                sent += octets
            if end is None:
                assert not wire.eof
                assert wire.feed(b"\r\n.\r\n") == ["250"]
                assert delivered == [b"x" * sent + b"\r\n"]
            else:
                assert abs(second - end) <= 1
                assert wire.taken() == ["421"]
                wire.conn.data_received(b"\r\n.\r\n")
                assert not delivered and not wire.taken()
            wire.close()
            await until(lambda: not server.counters.connections)
            assert len(delivered) == server.counters.messages == (end is None)

    run(main)


def test_a_burst_buys_no_more_than_the_time_for_silence(run: Runner) -> None:
    async def main() -> None:
        options = ServerOptions(addr="127.0.0.1:0", read_timeout=10, min_body_rate=100)
        async with Server(DefaultBackend(DefaultSession), options=options) as server:
            wire = Wire(server)
            clock = Clock(server)
            wire.feed(b"HELO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n" + b"x" * 60_000)
            clock.advance(9)
            assert not wire.eof
            clock.advance(2)
            assert wire.eof and wire.taken() == ["421"]
            wire.close()

    run(main)


@pytest.mark.parametrize(
    "refused",
    [
        "the hook returned",
        "too large",
    ],
)
def test_an_honest_sender_of_a_refused_message_is_not_cut(run: Runner, refused: str) -> None:
    class Session(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> Reply | None:
            return Reply(550, EnhancedCode(5, 7, 1), "no")

    async def main() -> None:
        options = ServerOptions(
            addr="127.0.0.1:0",
            read_timeout=10,
            min_body_rate=100,
            max_message_bytes=50_000 if refused == "too large" else 0,
        )
        async with Server(DefaultBackend(Session), options=options) as server:
            wire = Wire(server)
            clock = Clock(server)
            wire.feed(b"HELO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n")
            wire.conn.data_received(b"x" * 70_000)
            for _ in range(3):
                await asyncio.sleep(0)
            for _ in range(30):
                clock.advance(1)
                assert not wire.eof
                wire.conn.data_received(b"x" * 1000)
            assert wire.feed(b"\r\n.\r\n")[0] == ("552" if refused == "too large" else "550")
            wire.close()

    run(main)


def test_a_trickling_body_by_the_clock(run: Runner) -> None:
    class Session(DefaultSession):
        def data(self, reader: DataReader, context: DataContext) -> None:
            raise AssertionError("delivered")

    async def main() -> None:
        options = ServerOptions(addr="127.0.0.1:0", read_timeout=0.5, min_body_rate=100_000, error_logger=quiet())
        async with Server(DefaultBackend(Session), options=options) as server:
            async with Client(server) as client:
                await client.line()
                client.writer.write(b"HELO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n")
                for _ in range(4):
                    await client.line()
                answer = asyncio.ensure_future(client.line())
                while not answer.done():
                    client.writer.write(b"x")
                    await asyncio.wait((answer,), timeout=0.01)
                assert await answer == "421 4.4.2 Timed out"
                assert await client.reader.read() == b""
            assert server.counters.errors == 0

    run(main)


# Hooks

SOONER = ["raise", "wrong type"]
LATER = ["raise", "wrong type", "cancelled", "hang", "raise at cancellation", "swallow cancellation"]


@pytest.mark.parametrize("kind", [f"plain {kind}" for kind in SOONER] + [f"async {kind}" for kind in LATER])
@pytest.mark.parametrize("where", ["helo", "mail", "rcpt", "data", "reset", "reset after data", "vrfy", "logout"])
def test_hooks_that_fail(run: Runner, where: str, kind: str) -> None:
    asynchronous = kind.startswith("async ")
    kind = kind.partition(" ")[2]
    hangs = kind in ("hang", "raise at cancellation", "swallow cancellation")
    log = io.StringIO()
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(log))
    begun, go, done = asyncio.Event(), asyncio.Event(), asyncio.Event()
    logouts = 0

    def now() -> Any:
        done.set()
        if kind == "raise":
            raise ZeroDivisionError("secret")
        if kind == "cancelled":
            raise asyncio.CancelledError("secret")
        return "secret"

    async def later() -> Any:
        await asyncio.sleep(0)
        begun.set()
        if not hangs:
            return now()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if kind == "hang":
                raise
            if kind == "raise at cancellation":
                raise ZeroDivisionError("secret") from None
            await go.wait()
            return Reply(250, EnhancedCode(2, 0, 0), "secret")
        finally:
            done.set()

    def act(name: str) -> HookResult:
        if name != where.partition(" ")[0] or begun.is_set() or done.is_set():
            return None
        result: HookResult = later() if asynchronous else now()
        return result

    class Faulty(DefaultSession):
        def helo(self, name: str) -> HookResult:
            return act("helo")

        def mail(self, sender: str, params: MailParams) -> HookResult:
            return act("mail")

        def rcpt(self, recipient: str, params: RcptParams) -> HookResult:
            return act("rcpt")

        def data(self, reader: DataReader, context: DataContext) -> HookResult:
            return act("data")

        def reset(self) -> Any:
            return act("reset")

        def vrfy(self, argument: str) -> HookResult:
            return act("vrfy")

        def logout(self) -> Any:
            nonlocal logouts
            logouts += 1
            return act("logout")

    async def main() -> None:
        options = ServerOptions(addr="127.0.0.1:0", error_logger=logger)
        async with Server(DefaultBackend(Faulty), options=options) as server:

            async def impatience() -> None:
                await begun.wait()
                for conn in conns(server):
                    conn.timed_out()

            async def tried(client: Client, command: str, name: str, expected: str) -> None:
                """The command is refused when its hook fails, and accepted the second time."""
                if name == where:
                    client.writer.write(command.encode() + b"\r\n")
                    if hangs:
                        await impatience()
                    answer = await client.line()
                    assert answer == FAILED or (name == "data" and answer == "451 4.3.0 Processing took too long")
                    go.set()
                    await done.wait()
                    if name == "data":
                        return
                assert (await client.ask(command)).startswith(expected)

            async with Client(server) as client:
                await client.line()
                await tried(client, "HELO x", "helo", "250 ")
                if where != "reset after data":
                    await tried(client, "RSET", "reset", "250 ")
                await tried(client, "VRFY x", "vrfy", "25")
                await tried(client, "MAIL FROM:<>", "mail", "250 2.1.0")
                await tried(client, "RCPT TO:<a@b>", "rcpt", "250 2.1.5")
                assert (await client.ask("DATA")).startswith("354 ")
                await tried(client, "hello\r\n.", "data", "250 ")
                if where == "reset after data":
                    if hangs:
                        await impatience()
                    await done.wait() if kind != "swallow cancellation" else go.set()
                assert (await client.ask("NOOP")) == "250 2.0.0 OK"
                assert (await client.ask("RSET")) == "250 2.0.0 OK"
                assert (await client.ask("QUIT")) == "221 2.0.0 Bye"
                assert await client.reader.read() == b""
            if where == "logout" and hangs:
                await impatience()
                go.set()
            await done.wait()
            await until(lambda: not server.counters.connections)
            assert logouts == 1
            assert server.counters.messages == (where != "data")
            async with Client(server) as client:
                assert (await client.line()).startswith("220 ")
                assert (await client.ask("QUIT")).startswith("221 ")
            if kind != "cancelled":
                assert server.counters.errors == 1
                assert log.getvalue()

    run(main)


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize(
    "kind", ["raise at once", "raise midway", "return early", "refuse early", "hang", "hang midway"]
)
def test_data_hooks_that_fail_in_a_long_message(run: Runner, kind: str, lmtp: bool) -> None:
    begun = asyncio.Event()

    class Faulty(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> Reply | None:
            if context.sender == "well@x":
                assert len(await reader.read()) == 7
                return None
            if kind.endswith("midway"):
                await reader.read(10)
            if kind.startswith("raise"):
                raise ZeroDivisionError("secret")
            if kind == "refuse early":
                return Reply(550, EnhancedCode(5, 7, 1), "no")
            if kind == "return early":
                return None
            begun.set()
            await asyncio.Event().wait()
            return None

    async def main() -> None:
        options = ServerOptions(addr="127.0.0.1:0", error_logger=quiet(), lmtp=lmtp)
        async with Server(DefaultBackend(Faulty), options=options) as server:
            async with Client(server) as client:
                await client.line()
                client.writer.write(b"LHLO x\r\n" if lmtp else b"EHLO x\r\n")
                while (await client.line())[3] == "-":
                    pass
                for sender in ("ill@x", "well@x", "well@x"):
                    await client.ask(f"MAIL FROM:<{sender}>")
                    await client.ask("RCPT TO:<a@b>")
                    await client.ask("RCPT TO:<c@d>")
                    await client.ask("DATA")
                    if sender == "ill@x":
                        client.writer.write(b"VRFY me\r\n" * 50_000)
                        if kind.startswith("hang"):
                            await begun.wait()
                            (conn,) = conns(server)
                            await until(lambda: conn._reception is not None and conn._reception.stalled)  # noqa: B023
                            conn.timed_out()
                    else:
                        client.writer.write(b"hello\r\n")
                    answer = await client.ask(".")
                    expected = {"ra": FAILED, "re": "250 2.0.0", "ha": "451 4.3.0 Processing took too long"}[kind[:2]]
                    expected = "550 5.7.1 no" if kind == "refuse early" else expected
                    assert answer.startswith(expected if sender == "ill@x" else "250 2.0.0")
                    if lmtp:
                        assert await client.line() == answer
                assert await client.ask("NOOP") == "250 2.0.0 OK"
                assert await client.ask("QUIT") == "221 2.0.0 Bye"
            assert server.counters.messages == 2 + (kind == "return early")

    run(main)


def test_hooks_that_are_given_up_by_the_clock(run: Runner) -> None:
    class Hanging(DefaultSession):
        async def mail(self, sender: str, params: MailParams) -> None:
            await asyncio.Event().wait()

        async def logout(self) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        options = ServerOptions(addr="127.0.0.1:0", error_logger=quiet(), hook_timeout=0.05)
        async with Server(DefaultBackend(Hanging), options=options) as server:
            async with Client(server) as client:
                await client.line()
                await client.ask("HELO x")
                assert await client.ask("MAIL FROM:<>") == FAILED
                assert await client.ask("NOOP") == "250 2.0.0 OK"
            while server.counters.connections:
                await asyncio.sleep(0)
            assert server.counters.errors == 2

    run(main)


def test_a_reset_after_a_streamed_message_has_the_time_of_a_hook(run: Runner) -> None:
    class Session(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            await reader.read()
            await asyncio.sleep(0)

        async def reset(self) -> None:
            await asyncio.Event().wait()

    async def main() -> None:
        options = ServerOptions(addr="127.0.0.1:0", read_timeout=1000, hook_timeout=10, error_logger=quiet())
        async with Server(DefaultBackend(Session), options=options) as server:
            wire = Wire(server)
            wire.feed(b"HELO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\nhello\r\n.\r\n")
            await until(lambda: server.counters.messages)
            for _ in range(5):
                await asyncio.sleep(0)
            late = wire.conn.deadline > server.roster.now + 10
            wire.conn.abort()
            assert not late

    run(main)


def test_a_plain_hook_that_raises_cancellederror_costs_its_connection_at_most(run: Runner) -> None:
    class Odd(DefaultSession):
        def mail(self, sender: str, params: MailParams) -> None:
            raise asyncio.CancelledError("secret")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_exception_handler(lambda *_: None)
        async with Server(DefaultBackend(Odd), addr="127.0.0.1:0", error_logger=quiet()) as server:
            async with Client(server) as client:
                await client.line()
                await client.ask("HELO x")
                answer = await client.ask("MAIL FROM:<>")
                assert answer in (FAILED, "")
            await until(lambda: not server.counters.connections)
            async with Client(server) as client:
                assert (await client.line()).startswith("220 ")

    run(main)


def test_no_hook_runs_after_the_last_word(run: Runner) -> None:
    calls: list[str] = []

    class Session(DefaultSession):
        def vrfy(self, argument: str) -> None:
            calls.append(argument)

    async def main() -> None:
        async with Server(DefaultBackend(Session), addr="127.0.0.1:0") as server:
            wire = Wire(server)
            turn = limits.COMMANDS_PER_TURN
            wire.feed(b"".join(b"VRFY %d\r\n" % number for number in range(turn + 5)))
            before = len(calls)
            wire.conn.reject()
            for _ in range(5):
                await asyncio.sleep(0)
            wire.close()
            await until(lambda: not server.counters.connections)
            assert len(calls) == before == turn

    run(main)


# One write per batch


def test_writes_per_batch(run: Runner) -> None:
    class Session(DefaultSession):
        def data(self, reader: DataReader, context: DataContext) -> None:
            reader.read_nowait()

    class Eager(DefaultSession):
        async def mail(self, sender: str, params: MailParams) -> None:
            pass

        async def rcpt(self, recipient: str, params: RcptParams) -> None:
            pass

    async def main() -> None:
        mail, rcpt = b"MAIL FROM:<a@b.example>\r\n", b"RCPT TO:<c@d.example>\r\n"
        sessions = [Session] + [Eager] * (sys.version_info >= (3, 12))  # before, each async hook costs a turn
        for session in sessions:
            async with Server(DefaultBackend(session), addr="127.0.0.1:0") as server:
                wire = Wire(server)
                assert wire.taken() == ["220"]
                assert wire.feed(b"EHLO x\r\n") == ["250"]
                assert wire.feed(mail + rcpt * 3 + b"RSET\r\n" + mail + rcpt + b"DATA\r\n") == [
                    "250 250 250 250 250 250 250 354"
                ]
                wire.conn.data_received(b"hello\r\n.\r\n")
                await until(lambda: not wire.conn._core.in_body)  # noqa: B023
                wire.taken()
                batch = (mail + rcpt * 4 + b"RSET\r\n") * 8 + mail + rcpt
                assert wire.feed(batch) == [" ".join(["250"] * 50)]
                assert wire.feed(b"RSET\r\n") == ["250"]
                # Refused commands of the group wait for nothing, and keep their place.
                writes = wire.feed(mail + b"NONSENSE\r\n" + rcpt + b"RSET\r\n")
                assert " ".join(writes) == "250 500 250 250" and len(writes) <= 2
                # NOOP ends a group (RFC 2920 3.1).
                writes = wire.feed(mail + rcpt + b"NOOP\r\n" + rcpt + b"RSET\r\n")
                assert " ".join(writes) == "250 250 250 250 250" and len(writes) <= 2
                if session is Session:
                    # The end of a message may begin a group; its answer is never held back.
                    assert wire.feed(mail + rcpt + b"DATA\r\n") == ["250 250 354"]
                    writes = wire.feed(b"hello\r\n.\r\n" + mail + rcpt + b"DATA\r\n")
                    assert " ".join(writes) == "250 250 250 354" and len(writes) <= 2
                    writes = wire.feed(b".\r\n" + mail + rcpt)
                    assert " ".join(writes) == "250 250 250" and len(writes) <= 2
                    whole = mail + rcpt + b"DATA\r\nhello\r\n.\r\n"
                    assert wire.feed(b"RSET\r\n") == ["250"]
                    writes = wire.feed(whole * 3)
                    assert " ".join(writes) == "250 250 354 250 " * 2 + "250 250 354 250"
                    assert len(writes) <= 6
                    assert server.counters.messages == 6
                wire.close()
                await until(lambda: not server.counters.connections)

    run(main)


def test_what_comes_octet_by_octet_is_answered_alike(run: Runner) -> None:
    class Session(DefaultSession):
        def data(self, reader: DataReader, context: DataContext) -> None:
            reader.read_nowait()

    async def main() -> None:
        async with Server(DefaultBackend(Session), addr="127.0.0.1:0") as server:
            wire = Wire(server)
            for octet in b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n..\r\n.\r\nNOOP\r\nQUIT\r\n":
                wire.conn.data_received(bytes((octet,)))
            assert wire.taken() == "220 250 250 250 354 250 250 221".split()
            assert wire.closed
            await until(lambda: not server.counters.connections)

    run(main)


# Leaks


def alive() -> int:
    gc.collect()
    kinds = (Conn, Reception, ServerProtocol, DataReader, DataContext)
    return sum(type(each) in kinds for each in gc.get_objects())


@pytest.mark.skipif(sys.gettrace() is not None, reason="the tracer holds frames")
def test_nothing_of_a_connection_stays(run: Runner) -> None:
    total = 300
    hooks = 0

    class Session(DefaultSession):
        async def mail(self, sender: str, params: MailParams) -> None:
            nonlocal hooks
            if sender == "hang@x":
                hooks += 1
                await asyncio.Event().wait()

        async def data(self, reader: DataReader, context: DataContext) -> None:
            nonlocal hooks
            if context.sender == "hang.data@x":
                hooks += 1
                await asyncio.Event().wait()
            async for _ in reader:
                pass

    def session() -> Session:
        return Session()

    async def visit(server: Server, number: int) -> None:
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        with sock:
            await loop.sock_connect(sock, ("127.0.0.1", server.port))
            kind = number % 6
            sender = {4: "hang@x", 5: "hang.data@x"}.get(kind, "a@x")
            await loop.sock_sendall(
                sock, b"HELO x\r\nMAIL FROM:<%b>\r\nRCPT TO:<a@b>\r\nDATA\r\nhello\r\n" % sender.encode()
            )
            replies = b""
            while codes(replies) != ("220 250" if kind == 4 else "220 250 250 250 354"):
                replies += await loop.sock_recv(sock, 4096)
            if kind == 0:
                await loop.sock_sendall(sock, b".\r\nQUIT\r\n")
                while await loop.sock_recv(sock, 4096):
                    pass
            elif kind == 1:
                await loop.sock_sendall(sock, b"x" * 100_000)  # the hook runs
                reset(sock)
            elif kind in (2, 4):
                reset(sock)
            elif kind == 5:
                await loop.sock_sendall(sock, b".\r\n")

    async def main() -> None:
        before = alive()
        backend = DefaultBackend(session)
        async with Server(backend, addr="127.0.0.1:0", error_logger=quiet(), hook_timeout=1000) as server:
            for start in range(0, total, 50):
                await asyncio.gather(*(visit(server, number) for number in range(start, start + 50)))
            await until(lambda: server.counters.connections_total == total)
            # A whole message's hook may go on without its connection; only its deadline ends it.
            await until(lambda: server.counters.connections == total // 6 and hooks == total // 3)
            Clock(server).advance(2000)
            await until(lambda: not server.counters.connections)
            assert not server.roster._per_address and not conns(server)
            for _ in range(50):
                if alive() <= before:
                    break
                await asyncio.sleep(0)
            assert alive() <= before
            assert server.counters.messages == total // 6

    run(main)


CYCLES = {
    "a long message that ends early": b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n" + b"x" * 200_000,
    "a message that is too large": b"EHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n"
    + b"x\r\n" * 200_000
    + b".\r\n",
    "a login that ends early": b"EHLO x\r\nAUTH PLAIN\r\n",
    "a hook that raises": b"EHLO x\r\nVRFY x\r\n",
    "a handshake that fails": b"EHLO x\r\nSTARTTLS\r\n",
    "a header that is none": b"PROXY UNKNOWN?\r\n",
}


@pytest.mark.skipif(sys.gettrace() is not None, reason="the tracer holds frames")
@pytest.mark.parametrize("name", CYCLES)
def test_nothing_waits_for_the_garbage_collector(run: Runner, tmp_path: pathlib.Path, name: str) -> None:
    """What a hostile client leaves behind is gone with it: else a few hundred of them would cost a hundred megabytes."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(Authority(tmp_path).issue())

    class Session(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            async for _ in reader:
                pass

        def vrfy(self, argument: str) -> None:
            raise ZeroDivisionError

    async def main() -> None:
        options = ServerOptions(
            addr="127.0.0.1:0",
            error_logger=quiet(),
            allow_insecure_auth=True,
            tls=context,
            proxy_from=("127.0.0.0/8",) if "header" in name else (),
            max_message_bytes=300_000,
        )
        backend = DefaultBackend(Session)
        backend.auth_mechanisms = ("PLAIN",)
        met = 0

        def left() -> int:
            return sum(type(each) is Conn for each in gc.get_objects())

        async with Server(backend, options=options) as server:
            gc.collect()
            before = left()
            gc.disable()
            try:
                for _ in range(3):
                    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
                    await until(lambda: server.counters.connections)
                    met += 1
                    writer.write(CYCLES[name])
                    if "handshake" in name:
                        while b"Ready" not in await reader.readline():
                            pass
                        writer.write(b"no TLS\r\n" * 1000)
                    elif "login" in name:
                        while b"334" not in await reader.readline():
                            pass
                    elif "raises" in name:
                        while b"451" not in await reader.readline():
                            pass
                    elif "too large" in name:
                        while b"552" not in await reader.readline():
                            pass
                    elif "ends early" in name:
                        await until(lambda: [each for each in conns(server) if each._reception is not None])
                        await writer.drain()
                    writer.transport.abort()
                    await until(lambda: not server.counters.connections)
                for _ in range(100):
                    if left() <= before:
                        break
                    await asyncio.sleep(0)
                assert left() <= before
                assert met == 3
            finally:
                gc.enable()

    run(main)


# Cut off


END = b"\r\n.\r\n"


def dialogue(number: int, lmtp: bool = False) -> bytes:
    return (
        b"EHLO x\r\nMAIL FROM:<%04d@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nSubject: %04d\r\n\r\n..hello\r\n.\r\nQUIT\r\n"
        % (number, number)
    )


def replies_due(sent: bytes) -> int:
    """Replies that the whole commands in the first octets of the dialogue get, the greeting included."""
    head, data, body = sent.partition(b"DATA\r\n")
    if not data:
        return 1 + head.count(b"\r\n")
    end = body.find(END)
    return 5 + (1 + body.count(b"\r\n", end + len(END)) if end >= 0 else 0)


@pytest.mark.parametrize("how", ["FIN", "RST", "half closed", "FIN at once", "RST at once"])
def test_cut_off_at_every_octet(run: Runner, how: str) -> None:
    delivered: dict[str, bytes] = {}
    logouts = 0
    size = len(dialogue(0))
    complete = {f"{cut:04}" for cut in range(size + 1) if END in dialogue(cut)[:cut].partition(b"DATA\r\n")[2]}
    assert len(complete) == len(b"QUIT\r\n") + 1

    class Session(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            body = await reader.read()
            name = context.sender.partition("@")[0]
            assert name not in delivered
            delivered[name] = body

        def logout(self) -> None:
            nonlocal logouts
            logouts += 1

    async def visit(server: Server, cut: int) -> None:
        loop = asyncio.get_running_loop()
        sock = socket.socket()
        sock.setblocking(False)
        sent = dialogue(cut)[:cut]
        with sock:
            await loop.sock_connect(sock, ("127.0.0.1", server.port))
            await loop.sock_sendall(sock, sent)
            if how == "half closed":
                sock.shutdown(socket.SHUT_WR)
            due, replies = replies_due(sent), b""
            while not how.endswith("at once") and len(codes(replies).split()) < due:
                chunk = await loop.sock_recv(sock, 4096)
                assert chunk, (cut, replies)
                replies += chunk
            if how == "half closed":
                assert await loop.sock_recv(sock, 4096) == b""
            if how.startswith("RST"):
                reset(sock)

    async def main() -> None:
        async with Server(DefaultBackend(Session), addr="127.0.0.1:0", error_logger=quiet()) as server:
            for start in range(0, size + 1, 50):
                await asyncio.gather(*(visit(server, cut) for cut in range(start, min(start + 50, size + 1))))
            await until(lambda: server.counters.connections_total == size + 1 and not server.counters.connections)
            assert server.counters.errors == 0
        assert logouts == size + 1
        if how == "RST at once":
            assert set(delivered) <= complete
        else:
            assert set(delivered) == complete
        for name, body in delivered.items():
            assert body == b"Subject: %b\r\n\r\n.hello\r\n" % name.encode()

    run(main)


@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_cut_off_in_a_long_message(run: Runner, how: str) -> None:
    """The hook runs already: it is told, once, and nothing looks whole to it."""
    told: list[str] = []
    chunk = b"x" * 998 + b"\r\n"

    class Session(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            begun.set()
            try:
                async for _ in reader:
                    pass
            except MessageAborted:
                told.append("aborted")
                raise
            told.append("whole")

        def logout(self) -> None:
            told.append("logout")
            over.set()

    begun, over = asyncio.Event(), asyncio.Event()

    async def main() -> None:
        async with Server(DefaultBackend(Session), addr="127.0.0.1:0") as server:
            for ending in (b"", b"\r", b"\r\n", b"\r\n.", b"\r\n.\r"):
                begun.clear()
                over.clear()
                told.clear()
                async with Client(server) as client:
                    await client.envelope()
                    client.writer.write(chunk * 200 + ending)
                    await client.writer.drain()
                    await begun.wait()
                    if how == "FIN":
                        client.writer.write_eof()
                        assert await client.reader.read() == b""
                    else:
                        client.writer.transport.abort()
                    await over.wait()
                assert told == ["aborted", "logout"]
            assert server.counters.messages == server.counters.errors == 0

    run(main)


# Listeners


async def greets(address: tuple[str, int] | str) -> str:
    if isinstance(address, str):
        reader, writer = await asyncio.open_unix_connection(address)
    else:
        reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(b"QUIT\r\n")
        return codes(await reader.read())
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


def listening(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex(("127.0.0.1", port)) == 0


def test_several_listeners(run: Runner, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        path, other = str(tmp_path / "sock"), str(tmp_path / "other")
        options = ServerOptions(addr="127.0.0.1:0", unix_socket=path, max_connections_per_address=1)
        server = Server(DefaultBackend(DefaultSession), options=options)
        await server.start()
        await server.listen("127.0.0.1:0")
        made = socket.create_server(("127.0.0.1", 0))
        await server.listen(sock=made)
        unix = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        unix.bind(other)
        await server.listen(sock=unix)
        names = [each.getsockname() for each in server.sockets]
        assert len(names) == 5 and server.port == names[0][1]
        for name in names:
            assert await greets(name) == "220 221"
            await until(lambda: not server.counters.connections)
        assert server.counters.connections_total == 5
        ports = [name[1] for name in names if isinstance(name, tuple)]
        assert len(set(ports)) == 3
        with pytest.raises(TypeError):
            await server.listen()
        with pytest.raises(TypeError):
            await server.listen("127.0.0.1:0", unix_socket=path)
        await asyncio.gather(server.close(), server.close())
        await server.close()
        await server.wait_closed()
        assert not os.path.exists(path)
        assert not server.sockets and not any(map(listening, ports))
        with pytest.raises(RuntimeError):
            await server.listen("127.0.0.1:0")
        os.unlink(other) if os.path.exists(other) else None

    run(main)


def test_stopping_before_starting(run: Runner) -> None:
    async def main() -> None:
        for stop in (Server.close, Server.shutdown):
            server = Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0")
            await stop(server)
            await stop(server)
            await server.wait_closed()
            with pytest.raises(RuntimeError):
                await server.start()
            assert not server.sockets

    run(main)


def test_close_while_shutting_down(run: Runner) -> None:
    async def main() -> None:
        server = Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0")
        await server.start()
        async with Client(server) as client:
            await client.envelope()
            stopping = asyncio.ensure_future(server.shutdown(None))
            await asyncio.sleep(0)
            assert not stopping.done()
            await server.close()
            await stopping
            assert await client.line() in ("", "421 4.3.2 Service shutting down")
        assert server.counters.connections == 0

    run(main)


@pytest.mark.parametrize(
    "unix",
    [
        True,
        False,
    ],
)
def test_close_while_starting(run: Runner, tmp_path: pathlib.Path, unix: bool) -> None:
    async def main() -> None:
        path = tmp_path / "sock"
        server = Server(DefaultBackend(DefaultSession), addr="localhost:0", unix_socket=path if unix else None)
        starting = asyncio.ensure_future(server.start())
        await asyncio.sleep(0)
        assert not starting.done()
        await server.close()
        with contextlib.suppress(RuntimeError):
            await starting
        left = server.sockets
        await server.close()  # so that the failing test leaves nothing
        assert not left and not path.exists()

    run(main)


def test_what_cannot_be_listened_on(run: Runner, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as busy:
            port = busy.getsockname()[1]
            server = Server(DefaultBackend(DefaultSession), addr=f"127.0.0.1:{port}", unix_socket=tmp_path / "sock")
            with pytest.raises(OSError) as raised:
                await server.start()
            assert raised.value.errno == errno.EADDRINUSE
            assert not server.sockets and not (tmp_path / "sock").exists()
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        server = Server(
            DefaultBackend(DefaultSession), addr=f"127.0.0.1:{port}", unix_socket=tmp_path / "none" / "sock"
        )
        with pytest.raises(OSError):
            await server.start()
        assert not server.sockets and not listening(port)
        # A listener that fails later takes nothing from those that serve.
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0") as server:
            with pytest.raises(OSError):
                await server.listen(f"127.0.0.1:{server.port}")
            assert len(server.sockets) == 1
            assert await greets(("127.0.0.1", server.port)) == "220 221"

    run(main)


def test_a_unix_socket_that_another_server_took_over_stays(run: Runner, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        path = tmp_path / "sock"
        first = Server(DefaultBackend(DefaultSession), addr="", unix_socket=path)
        await first.start()
        path.unlink()
        async with Server(DefaultBackend(DefaultSession), addr="", unix_socket=path):
            await first.close()
            assert path.exists()
            assert await greets(str(path)) == "220 221"

    run(main)


# QUIT


@pytest.mark.parametrize("more", [1, 10_000, 1_000_000])
def test_what_follows_quit_is_not_run(run: Runner, more: int) -> None:
    calls: list[str] = []

    class Session(DefaultSession):
        def helo(self, name: str) -> None:
            calls.append(name)

        def mail(self, sender: str, params: MailParams) -> None:
            calls.append(sender)

        def logout(self) -> None:
            calls.append("logout")

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with Server(DefaultBackend(Session), addr="127.0.0.1:0") as server:
            sock = socket.socket()
            sock.setblocking(False)
            with sock:
                await loop.sock_connect(sock, ("127.0.0.1", server.port))
                with contextlib.suppress(ConnectionError):
                    await loop.sock_sendall(
                        sock, b"HELO x\r\nQUIT\r\n" + b"MAIL FROM:<a@b.example>\r\n" * (more // 25 + 1)
                    )
                received = b""
                with contextlib.suppress(ConnectionError):
                    while chunk := await loop.sock_recv(sock, 4096):
                        received += chunk
                assert codes(received) == "220 250 221"
            await until(lambda: not server.counters.connections)
        assert calls == ["x", "logout"]

    run(main)


# Limits of connections


def test_the_limit_of_all_connections(run: Runner) -> None:
    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0", max_connections=3) as server:
            for _ in range(2):
                async with contextlib.AsyncExitStack() as stack:
                    held = [await stack.enter_async_context(Client(server)) for _ in range(3)]
                    for client in held:
                        assert (await client.line()).startswith("220 ")
                    for _ in range(5):
                        async with Client(server) as refused:
                            refused.writer.write(b"HELO x\r\nMAIL FROM:<>\r\n")
                            received = await refused.reader.read()
                            assert received == b"421 4.7.0 Too many connections, try again later\r\n" or (
                                received.startswith(b"421 4.7.0 ") and received.count(b"\r\n") == 1
                            )
                    for client in held:
                        assert (await client.ask("NOOP")) == "250 2.0.0 OK"
                await until(lambda: not server.counters.connections)
            assert server.counters.connections_total == 16

    run(main)


def test_the_limit_of_one_address(run: Runner, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        options = ServerOptions(addr="127.0.0.1:0", max_connections_per_address=2, max_connections=0)
        async with Server(DefaultBackend(DefaultSession), options=options) as server:
            async with Client(server) as first, Client(server) as second:
                assert (await first.line()).startswith("220 ")
                assert (await second.line()).startswith("220 ")
                async with Client(server) as third:
                    assert (await third.line()).startswith("421 4.7.0 ")
                    assert await third.reader.read() == b""
                if sys.platform == "linux":  # all of 127.0.0.0/8 is ours
                    reader, writer = await asyncio.open_connection(
                        "127.0.0.1", server.port, local_addr=("127.0.0.2", 0)
                    )
                    assert (await reader.readline()).startswith(b"220 ")
                    writer.close()
                    await writer.wait_closed()
                await until(lambda: server.counters.connections == 2)
                assert (await first.ask("QUIT")).startswith("221 ")
                await until(lambda: server.counters.connections == 1)
                async with Client(server) as fourth:
                    assert (await fourth.line()).startswith("220 ")
            await until(lambda: not server.counters.connections)
            assert not server.roster._per_address

    run(main)


def test_clients_that_are_refused_and_stay_are_dropped(run: Runner) -> None:
    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0", max_connections=1) as server:
            async with contextlib.AsyncExitStack() as stack:
                held = await stack.enter_async_context(Client(server))
                assert (await held.line()).startswith("220 ")
                clock = Clock(server)
                refused = [await stack.enter_async_context(Client(server)) for _ in range(10)]
                for client in refused:
                    assert (await client.line()).startswith("421 ")
                    assert await client.reader.read() == b""
                clock.advance(limits.LINGER + 1)
                await until(lambda: server.counters.connections == 1)
                assert (await held.ask("NOOP")).startswith("250 ")

    run(main)
