"""Hooks that fail where sessions begin, greet, log in and end: one reply of class 4, told once, and others are served meanwhile.

`tests.test_faults` has the hooks of a transaction; here are those of the backend, of the greeting and of the verbs beside the way.
"""

from __future__ import annotations

import asyncio
import io
import logging
from typing import Any, Final

import pytest

from fastsmtp import (
    ConnectionState,
    DataContext,
    DataReader,
    DefaultSession,
    EnhancedCode,
    Reply,
    Server,
    ServerOptions,
)

from .loops import Runner
from .test_faults import conns, until
from .test_shell import Client

SOONER: Final = ["raise", "wrong type"]
LATER: Final = ["raise", "wrong type", "cancelled", "hang", "raise at cancellation", "swallow cancellation"]
KINDS: Final = [f"plain {kind}" for kind in SOONER] + [f"async {kind}" for kind in LATER]
WHERE: Final = [
    "connect",
    "anonymous_login",
    "anonymous_login at MAIL",
    "login",
    "expn",
    "etrn",
    "logout at login",
    "helo again",
]
HANGING: Final = ("hang", "raise at cancellation", "swallow cancellation")


class Fault:
    """What goes wrong, once."""

    def __init__(self, where: str, kind: str) -> None:
        self.where = where
        self.asynchronous, _, self.kind = kind.partition(" ")
        self.begun, self.go, self.done = asyncio.Event(), asyncio.Event(), asyncio.Event()
        self.tried = False
        self.late: Any = "secret"  # what comes of it after it was given up

    @property
    def hangs(self) -> bool:
        return self.kind in HANGING

    def __call__(self, where: str, well: Any = None) -> Any:
        if where != self.where or self.tried:
            return well
        self.tried = True
        return self._later() if self.asynchronous == "async" else self._now()

    def _now(self) -> Any:
        self.done.set()
        if self.kind == "raise":
            raise ZeroDivisionError("secret")
        if self.kind == "cancelled":
            raise asyncio.CancelledError("secret")
        return "secret"

    async def _later(self) -> Any:
        await asyncio.sleep(0)
        self.begun.set()
        if not self.hangs:
            return self._now()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if self.kind == "hang":
                raise
            if self.kind == "raise at cancellation":
                raise ZeroDivisionError("secret") from None
            await self.go.wait()
            return self.late
        finally:
            self.done.set()


class Story:
    """A backend whose hooks fail, and what it saw."""

    auth_mechanisms = ("PLAIN",)

    def __init__(self, fault: Fault) -> None:
        self.fault = fault
        self.session_on_connect = fault.where != "anonymous_login at MAIL"
        self.delivered = 0
        self.sessions: list[Told] = []

    def anonymous_login(self, state: ConnectionState) -> Any:
        where = "anonymous_login" if self.session_on_connect else "anonymous_login at MAIL"
        return self._told(where)

    def login(self, state: ConnectionState, username: str, password: str) -> Any:
        return self._told("login")

    def _told(self, where: str) -> Any:
        if where == self.fault.where and not self.fault.tried:
            # Swallows its cancellation, and then has a session that nobody waits for: it is over at once.
            self.fault.late = late = Told(self)
            if self.fault.kind == "swallow cancellation":
                self.sessions.append(late)
        return self.fault(where, Told(self))


class Told(DefaultSession):
    def __init__(self, story: Story) -> None:
        super().__init__()
        self._story = story
        self.logouts = 0
        self.greeted = 0

    def connect(self, conn: Any) -> Any:
        assert self is not self._story.fault.late
        self._story.sessions.append(self)
        return self._story.fault("connect")

    def helo(self, name: str) -> Any:
        self.greeted += 1
        return self._story.fault("helo again") if self.greeted > 1 else None

    def expn(self, argument: str) -> Any:
        return self._story.fault("expn")

    def etrn(self, argument: str) -> Any:
        return self._story.fault("etrn")

    def data(self, reader: DataReader, context: DataContext) -> None:
        self._story.delivered += 1

    def logout(self) -> Any:
        self.logouts += 1
        return self._story.fault("logout at login")


async def transaction(client: Client) -> None:
    for command, code in (
        ("MAIL FROM:<a@b.example>", "250"),
        ("RCPT TO:<c@d.example>", "250"),
        ("DATA", "354"),
        ("hello\r\n.", "250"),
    ):
        assert (await client.ask(command)).startswith(code)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("where", WHERE)
def test_it_is_told_once_and_others_are_served(run: Runner, where: str, kind: str) -> None:
    async def main() -> None:
        fault = Fault(where, kind)
        story = Story(fault)
        log = io.StringIO()
        logger = logging.Logger("test")
        logger.addHandler(logging.StreamHandler(log))
        options = ServerOptions(
            addr="127.0.0.1:0",
            error_logger=logger,
            allow_insecure_auth=True,
            auth_failure_delay=0,
            expn=True,
            etrn=True,
        )
        async with Server(story, options=options) as server:

            async def neighbour() -> None:
                async with Client(server) as client:
                    assert (await client.line()).startswith("220 ")
                    assert (await client.ask("HELO x")).startswith("250 ")
                    await transaction(client)
                    assert (await client.ask("QUIT")).startswith("221 ")
                    assert await client.reader.read() == b""

            async def answer(client: Client, command: str = "") -> str:
                """The reply that the fault leads to; before it comes, and after, others are served."""
                if command:
                    client.writer.write(command.encode() + b"\r\n")
                if fault.hangs and fault.asynchronous == "async":
                    await fault.begun.wait()
                    await neighbour()
                    for conn in conns(server):
                        conn.timed_out()
                reply = await client.line()
                assert fault.tried
                fault.go.set()
                await fault.done.wait()
                await neighbour()
                return reply

            async with Client(server) as client:
                if where in ("connect", "anonymous_login"):
                    reply = await answer(client)
                    assert reply.startswith(("421 ", "451 ")), reply
                    assert "secret" not in reply
                    if reply.startswith("451 "):  # RFC 5321 3.1 has 554 and 421 there; whichever, no mail is taken
                        assert (await client.ask("HELO x"))[:3] in ("503", "")
                else:
                    assert (await client.line()).startswith("220 ")
                    assert (await client.ask("HELO x")).startswith("250 ")
                    command = {
                        "anonymous_login at MAIL": "MAIL FROM:<a@b.example>",
                        "login": "AUTH PLAIN AHVzZXIAc2VjcmV0",
                        "logout at login": "AUTH PLAIN AHVzZXIAc2VjcmV0",
                        "expn": "EXPN all",
                        "etrn": "ETRN example.org",
                        "helo again": "HELO y",
                    }[where]
                    if where in ("login", "logout at login"):
                        client.writer.write(b"EHLO x\r\n")
                        while (await client.line())[3] == "-":
                            pass
                    reply = await answer(client, command)
                    # The login itself was well if only the session before it could not be told that it is over.
                    expected = (
                        "235 " if where == "logout at login" else ("454 ", "451 ") if where == "login" else "451 "
                    )
                    assert reply.startswith(expected), reply
                    assert "secret" not in reply
                    # In step: the next replies are those to the next commands.
                    assert await client.ask("NOOP") == "250 2.0.0 OK"
                    await transaction(client)
                    assert await client.ask("QUIT") == "221 2.0.0 Bye"
                    assert await client.reader.read() == b""
            await until(lambda: not server.counters.connections)
            assert all(session.logouts == 1 for session in story.sessions), [each.logouts for each in story.sessions]
            if fault.kind != "cancelled":
                # A login that was given up and raises then is counted, and told in the log, once more.
                twice = where == "login" and fault.kind == "raise at cancellation"
                assert server.counters.errors == 1 + twice, log.getvalue()
                assert "secret" not in log.getvalue() or "ZeroDivisionError: secret" in log.getvalue()

    run(main)


def test_every_place_is_tried() -> None:
    assert len(WHERE) * len(KINDS) == 64


def test_a_refusal_is_no_fault(run: Runner) -> None:
    """What the tests above take for a failure is none when a hook refuses in so many words."""

    class Refusing(DefaultSession):
        def connect(self, conn: Any) -> Reply:
            return Reply(554, EnhancedCode(5, 7, 1), "not you")

    class Backend:
        session_on_connect = True

        def anonymous_login(self, state: ConnectionState) -> Refusing:
            return Refusing()

        def login(self, state: ConnectionState, username: str, password: str) -> None:
            return None

    async def main() -> None:
        async with Server(Backend(), addr="127.0.0.1:0") as server:
            async with Client(server) as client:
                assert await client.line() == "554 5.7.1 not you"
                assert (await client.ask("HELO x")).startswith("503 ")
                assert (await client.ask("QUIT")).startswith("221 ")
            assert server.counters.errors == 0

    run(main)
