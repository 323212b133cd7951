"""The asyncio shell: hooks, streaming, patience, limits, stopping; on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import io
import logging
from typing import Any

import pytest

from fastsmtp import (
    AuthRequired,
    Conn,
    ConnectionState,
    DataContext,
    DataReader,
    DataTooLarge,
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

from .loops import Runner


class Client:
    """A raw client: what is sent is sent, what comes is read line by line."""

    def __init__(self, server: Server) -> None:
        self._server = server

    async def __aenter__(self) -> Client:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(ConnectionError):
            await self.writer.wait_closed()

    async def line(self) -> str:
        return (await self.reader.readline()).decode().rstrip("\r\n")

    async def ask(self, command: str) -> str:
        self.writer.write(command.encode() + b"\r\n")
        return await self.line()

    async def envelope(self, recipients: int = 1) -> None:
        assert (await self.line()).startswith("220 ")
        assert (await self.ask("HELO x.example")).startswith("250 ")
        assert (await self.ask("MAIL FROM:<a@b.example>")).startswith("250 ")
        for number in range(recipients):
            assert (await self.ask(f"RCPT TO:<{number}@d.example>")).startswith("250 ")
        assert (await self.ask("DATA")).startswith("354 ")


def test_hooks_in_order_and_logout_once(run: Runner) -> None:
    calls: list[str] = []

    class Recording(DefaultSession):
        def connect(self, conn: Conn) -> None:
            calls.append("connect")

        async def helo(self, name: str) -> None:
            await asyncio.sleep(0)
            calls.append(f"helo {name}")

        async def mail(self, sender: str, params: MailParams) -> None:
            await asyncio.sleep(0)
            calls.append(f"mail {sender}")

        def vrfy(self, argument: str) -> Reply:
            return Reply(250, EnhancedCode(2, 1, 5), f"<{argument}>\r\n250 injected")

        async def data(self, reader: DataReader, context: DataContext) -> Reply:
            calls.append(f"data {len(await reader.read())} {context.helo} {context.recipients[0]}")
            return Reply(250, EnhancedCode(2, 0, 0), "taken")

        def reset(self) -> None:
            calls.append("reset")

        async def logout(self) -> None:
            await asyncio.sleep(0)
            calls.append("logout")

    async def main() -> None:
        async with Server(DefaultBackend(Recording), addr="127.0.0.1:0") as server:
            async with Client(server) as client:
                await client.envelope()
                assert await client.ask("hello\r\n.") == "250 2.0.0 taken"
                assert await client.ask("VRFY me") == "250-2.1.5 <me>"
                assert await client.line() == "250 2.1.5 250 injected"
                assert await client.ask("QUIT") == "221 2.0.0 Bye"
                assert await client.reader.read() == b""
            assert server.counters.messages == 1
        expected = ["connect", "helo x.example", "mail a@b.example", "data 7 x.example 0@d.example", "reset", "logout"]
        assert calls == expected

    run(main)


@pytest.mark.parametrize("asynchronous", [False, True])
def test_what_hooks_return_and_raise(run: Runner, asynchronous: bool) -> None:
    results: list[Any] = [
        Reply(550, EnhancedCode(5, 7, 1), "no"),
        SMTPError(451, EnhancedCode(4, 7, 0), "later"),
        ZeroDivisionError("secret"),
        "a string",
        None,
    ]

    class Odd(DefaultSession):
        def mail(self, sender: str, params: MailParams) -> Any:
            def result() -> Any:
                value = results.pop(0)
                if isinstance(value, Exception):
                    raise value
                return value

            async def later() -> Any:
                await asyncio.sleep(0)
                return result()

            return later() if asynchronous else result()

    log = io.StringIO()
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(log))

    async def main() -> None:
        async with Server(DefaultBackend(Odd), addr="127.0.0.1:0", error_logger=logger) as server:
            async with Client(server) as client:
                await client.line()
                await client.ask("HELO x.example")
                for expected in (
                    "550 5.7.1 no",
                    "451 4.7.0 later",
                    "451 4.3.0 Local error in processing",
                    "451 4.3.0 Local error in processing",
                    "250 2.1.0 Sender OK",
                ):
                    assert await client.ask("MAIL FROM:<a@b.example>") == expected
            assert server.counters.errors == 2
        assert "ZeroDivisionError: secret" in log.getvalue() and "returned str" in log.getvalue()

    run(main)


def test_a_backend_is_asked_at_the_first_mail(run: Runner) -> None:
    states: list[ConnectionState] = []

    class Backend:
        async def login(self, state: ConnectionState, username: str, password: str) -> DefaultSession:
            raise AuthRequired

        async def anonymous_login(self, state: ConnectionState) -> DefaultSession:
            states.append(state)
            if len(states) == 1:
                raise AuthRequired
            return DefaultSession()

    async def main() -> None:
        async with Server(Backend(), addr="127.0.0.1:0") as server:
            async with Client(server) as client:
                await client.line()
                await client.ask("HELO x.example")
                assert await client.ask("MAIL FROM:<>") == "530 5.7.0 Please authenticate first"
                assert await client.ask("MAIL FROM:<>") == "250 2.1.0 Sender OK"
        assert states[0].hostname == "x.example" and states[0].protocol == "SMTP" and states[0].remote_addr

    run(main)


def test_backpressure_reaches_the_socket(run: Runner) -> None:
    go = asyncio.Event()
    highest = 0

    class Slow(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> Reply:
            nonlocal highest
            await go.wait()
            async for _ in reader:
                highest = max(highest, reader.buffered)
            return Reply(250, EnhancedCode(2, 0, 0), str(reader.size))

    async def main() -> None:
        async with Server(DefaultBackend(Slow), addr="127.0.0.1:0") as server:
            async with Client(server) as client:
                await client.envelope()
                line = b"x" * 998 + b"\r\n"
                client.writer.write(line * 30_000)  # 30 MB, far more than the kernel's buffers hold
                while not server.counters.connections or not stalled(server):
                    await asyncio.sleep(0)
                go.set()
                await client.writer.drain()
                assert await client.ask(".") == "250 2.0.0 30000000"
            assert highest <= 1_000_000

    def stalled(server: Server) -> bool:
        found: list[bool] = []
        server.for_each_conn(lambda conn: found.append(conn._reading_paused))
        return any(found)

    run(main)


def test_too_large_early_return_and_disconnect(run: Runner) -> None:
    seen: list[object] = []

    class Session(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> Reply | None:
            if context.recipients[0].startswith("early"):
                return Reply(550, EnhancedCode(5, 7, 1), "early")
            try:
                await reader.read()
            except (SMTPError, MessageAborted) as error:
                seen.append(type(error))
                raise
            seen.append("whole")
            return None

        async def logout(self) -> None:
            seen.append("logout")
            done.set()

    done = asyncio.Event()

    async def main() -> None:
        async with Server(DefaultBackend(Session), addr="127.0.0.1:0", max_message_bytes=200_000) as server:
            async with Client(server) as client:
                await client.envelope()
                client.writer.write((b"x" * 98 + b"\r\n") * 10_000 + b"QUIT\r\n.\r\n")
                assert await client.line() == "552 5.3.4 Maximum message size exceeded"
                assert await client.ask("NOOP") == "250 2.0.0 OK"
                assert seen == [DataTooLarge]
                await client.ask("MAIL FROM:<>")
                await client.ask("RCPT TO:<early@d.example>")
                await client.ask("DATA")
                client.writer.write((b"x" * 98 + b"\r\n") * 1_500)
                assert await client.ask(".") == "550 5.7.1 early"
                await client.ask("MAIL FROM:<>")
                await client.ask("RCPT TO:<c@d.example>")
                await client.ask("DATA")
                client.writer.write((b"x" * 98 + b"\r\n") * 1_500)
                await client.writer.drain()
                client.writer.transport.abort()
                await done.wait()
            assert seen == [DataTooLarge, MessageAborted, "logout"]
            assert server.counters.messages == 0

    run(main)


def test_a_short_message_that_ends_early_is_never_seen(run: Runner) -> None:
    class Session(DefaultSession):
        def data(self, reader: DataReader, context: DataContext) -> None:
            raise AssertionError("delivered")

        def logout(self) -> None:
            done.set()

    done = asyncio.Event()

    async def main() -> None:
        async with Server(DefaultBackend(Session), addr="127.0.0.1:0") as server:
            async with Client(server) as client:
                await client.envelope()
                client.writer.write(b"half a message\r\n.\r")
                client.writer.write_eof()
                assert await client.reader.read() == b""
                await done.wait()
            assert server.counters.errors == 0

    run(main)


def test_commands_before_fin_are_answered(run: Runner) -> None:
    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0") as server:
            async with Client(server) as client:
                client.writer.write(b"HELO x.example\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\n.\r\nNOOP\r\nNO")
                client.writer.write_eof()
                lines = (await client.reader.read()).splitlines()
                assert [line[:3] for line in lines] == [b"220", b"250", b"250", b"250", b"354", b"250", b"250"]

    run(main)


@pytest.mark.parametrize("where", ["command", "body", "hook", "data hook"])
def test_patience(run: Runner, where: str) -> None:
    begun = asyncio.Event()

    class Hanging(DefaultSession):
        async def mail(self, sender: str, params: MailParams) -> None:
            if where == "hook":
                begun.set()
                await asyncio.Event().wait()

        async def data(self, reader: DataReader, context: DataContext) -> None:
            await reader.read()
            if where == "data hook":
                begun.set()
                await asyncio.Event().wait()

    def patience_ends(server: Server) -> None:
        server.for_each_conn(lambda conn: conn.timed_out())

    async def main() -> None:
        options = ServerOptions(addr="127.0.0.1:0", error_logger=logging.Logger("test"))
        async with Server(DefaultBackend(Hanging), options=options) as server:
            async with Client(server) as client:
                if where == "command":
                    await client.line()
                    patience_ends(server)
                    assert await client.line() == "421 4.4.2 Timed out"
                elif where == "hook":
                    await client.line()
                    await client.ask("HELO x.example")
                    client.writer.write(b"MAIL FROM:<>\r\n")
                    await begun.wait()
                    patience_ends(server)
                    assert (await client.line()).startswith("451 4.3.0")
                    assert (await client.ask("NOOP")).startswith("250 ")
                else:
                    await client.envelope()
                    if where == "body":
                        client.writer.write(b"begun\r\n")
                        patience_ends(server)
                        assert await client.line() == "421 4.4.2 Timed out"
                    else:
                        client.writer.write(b".\r\n")
                        await begun.wait()
                        patience_ends(server)
                        assert (await client.line()).startswith("451 4.3.0")
                        assert (await client.ask("NOOP")).startswith("250 ")

    run(main)


def test_the_server_looks_at_deadlines(run: Runner) -> None:
    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0", read_timeout=0.05) as server:
            async with Client(server) as client:
                lines = (await client.reader.read()).splitlines()
                assert lines[-1] == b"421 4.4.2 Timed out"

    run(main)


def test_limits_of_connections(run: Runner) -> None:
    async def main() -> None:
        for options in (
            ServerOptions(addr="127.0.0.1:0", max_connections=1),
            ServerOptions(addr="127.0.0.1:0", max_connections_per_address=1),
        ):
            async with Server(DefaultBackend(DefaultSession), options=options) as server:
                async with Client(server) as first:
                    assert (await first.line()).startswith("220 ")
                    async with Client(server) as second:
                        assert (await second.line()).startswith("421 4.7.0 Too many connections")
                        assert await second.reader.read() == b""
                    assert (await first.ask("QUIT")).startswith("221")
                    assert await first.reader.read() == b""
                while server.counters.connections:
                    await asyncio.sleep(0)
                async with Client(server) as third:
                    assert (await third.line()).startswith("220 ")

    run(main)


def test_long_pipelines_leave_others_their_turn(run: Runner) -> None:
    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0") as server:
            async with Client(server) as client, Client(server) as other:
                await client.line()
                await other.line()
                client.writer.write(b"NOOP\r\n" * 10_000)
                assert (await other.ask("NOOP")).startswith("250 ")
                for _ in range(10_000):
                    assert (await client.line()) == "250 2.0.0 OK"

    run(main)


def test_shutdown_finishes_what_runs(run: Runner) -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    class Slow(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            await reader.read()
            begun.set()
            await go.wait()

    async def main() -> None:
        server = Server(DefaultBackend(Slow), addr="127.0.0.1:0")
        await server.start()
        async with Client(server) as idle, Client(server) as busy:
            await idle.line()
            await busy.envelope()
            busy.writer.write(b"x\r\n.\r\n")
            await begun.wait()
            stopping = asyncio.ensure_future(server.shutdown(30))
            assert await idle.line() == "421 4.3.2 Service shutting down"
            assert await idle.reader.read() == b""
            idle.writer.close()
            go.set()
            assert await busy.line() == "250 2.0.0 Message accepted"
            assert await busy.line() == "421 4.3.2 Service shutting down"
            busy.writer.close()
            await stopping
        await server.close()
        await server.wait_closed()

    run(main)


def test_shutdown_has_a_hard_deadline(run: Runner) -> None:
    """Who comes late is not served, and a message that does not end keeps nobody for ever: its hook is told."""
    told: list[str] = []
    begun = asyncio.Event()

    class Waiting(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            begun.set()
            try:
                await reader.read()
            except (MessageAborted, asyncio.CancelledError):
                told.append("broken off")
                raise
            told.append("whole")

        def logout(self) -> None:
            told.append("logout")

    async def main() -> None:
        server = Server(DefaultBackend(Waiting), addr="127.0.0.1:0")
        await server.start()
        port = server.port
        async with Client(server) as client:
            await client.envelope()
            client.writer.write((b"x" * 98 + b"\r\n") * 1_000)
            await begun.wait()
            stopping = asyncio.ensure_future(server.shutdown(0.05))
            await asyncio.sleep(0)
            with pytest.raises(OSError):
                await asyncio.open_connection("127.0.0.1", port)
            await stopping
            assert b"250" not in await client.reader.read()
        assert sorted(told) == ["broken off", "logout"]
        assert server.counters.messages == server.counters.connections == 0

    run(main)


def test_close_does_not_wait_for_a_stubborn_hook(run: Runner) -> None:
    begun = asyncio.Event()
    go = asyncio.Event()

    class Stubborn(DefaultSession):
        async def mail(self, sender: str, params: MailParams) -> None:
            begun.set()
            while not go.is_set():
                try:
                    await go.wait()
                except asyncio.CancelledError:
                    continue

    async def main() -> None:
        server = Server(DefaultBackend(Stubborn), addr="127.0.0.1:0")
        await server.start()
        async with Client(server) as client:
            await client.line()
            await client.ask("HELO x.example")
            client.writer.write(b"MAIL FROM:<>\r\n")
            await begun.wait()
            await server.close()
        go.set()
        await asyncio.sleep(0)

    run(main)


def test_lmtp_statuses(run: Runner) -> None:
    class Session(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            await reader.read()
            context.set_status("1@d.example", SMTPError(550, EnhancedCode(5, 1, 1), "nobody"))
            context.start_delivery("2@d.example", 0.01 if len(context.recipients) == 2 else 600)
            await asyncio.Event().wait() if len(context.recipients) == 2 else None
            if len(context.recipients) > 3:
                raise SMTPError(451, EnhancedCode(4, 2, 0), "the others")

    async def main() -> None:
        async with Server(DefaultBackend(Session), addr="127.0.0.1:0", lmtp=True) as server:
            async with Client(server) as client:
                await client.line()
                client.writer.write(b"LHLO x.example\r\n")
                while (await client.line())[3] == "-":
                    pass
                await client.ask("MAIL FROM:<>")
                for address in ("1", "2", "1", "3"):
                    await client.ask(f"RCPT TO:<{address}@d.example>")
                await client.ask("DATA")
                assert await client.ask(".") == "550 5.1.1 nobody"
                assert await client.line() == "451 4.2.0 the others"
                assert await client.line() == "451 4.2.0 the others"
                assert await client.line() == "451 4.2.0 the others"
                await client.ask("MAIL FROM:<>")
                for address in ("1", "2"):
                    await client.ask(f"RCPT TO:<{address}@d.example>")
                await client.ask("DATA")
                assert await client.ask(".") == "550 5.1.1 nobody"
                assert await client.line() == "451 4.4.7 Delivery timed out"
                assert (await client.ask("NOOP")).startswith("250 ")

    run(main)


def test_debug_trace_is_safe(run: Runner) -> None:
    trace = io.StringIO()

    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0", debug=trace) as server:
            async with Client(server) as client:
                await client.line()
                await client.ask("NOOP \x1b[31m")

    run(main)
    assert "C: NOOP \\x1b[31m" in trace.getvalue() and "\x1b" not in trace.getvalue()


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"], ids=["one address", "all addresses"])
def test_addresses_are_known_when_the_connection_is_lost(run: Runner, host: str) -> None:
    """Asked for no earlier, and where the listener knows the local one, not at all."""
    seen: list[tuple[object, object]] = []

    class Session(DefaultSession):
        def connect(self, conn: Conn) -> None:
            self.conn = conn

        def logout(self) -> None:
            seen.append((self.conn.remote_addr, self.conn.local_addr))

    async def main() -> None:
        async with Server(DefaultBackend(Session), addr=f"{host}:0") as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
            ours = writer.get_extra_info("sockname")
            await reader.readline()
            writer.write(b"QUIT\r\n")
            assert await reader.read() == b"221 2.0.0 Bye\r\n"
            writer.close()
            port = server.port
        assert seen == [(ours, ("127.0.0.1", port))]

    run(main)
