"""fastsmtp, accepting and dropping.  `fastsmtp_discard.py PORT [--loop NAME] [--hooks NAME] [--tls FILE] [--lmtp] [--auth]`"""

from __future__ import annotations

import argparse
import asyncio
import os
import ssl
from typing import Any

from fastsmtp import (
    ConnectionState,
    DataContext,
    DataReader,
    DefaultBackend,
    DefaultSession,
    MailParams,
    RcptParams,
    Server,
)
from fastsmtp.delivery import DiscardSession


class Async(DefaultSession):
    """Every hook a coroutine."""

    async def mail(self, sender: str, params: MailParams) -> None:
        self.sender = sender

    async def rcpt(self, recipient: str, params: RcptParams) -> None:
        self.recipients.append(recipient)

    async def data(self, reader: DataReader, context: DataContext) -> None:
        await reader.read()


class Stream(DefaultSession):
    """The message in pieces."""

    async def data(self, reader: DataReader, context: DataContext) -> None:
        async for _ in reader:
            pass


class Users(DefaultBackend):
    """One user."""

    auth_mechanisms = ("PLAIN",)

    def login(self, state: ConnectionState, username: str, password: str) -> Any:
        return self.factory() if (username, password) == ("user", "secret") else None


class Whole(DefaultSession):
    """The message as one piece."""

    def data(self, reader: DataReader, context: DataContext) -> None:
        reader.read_nowait()


HOOKS = {"plain": DiscardSession, "async": Async, "stream": Stream, "whole": Whole, "traced": DiscardSession}


async def main(options: argparse.Namespace) -> None:
    more: dict[str, Any] = {}
    if options.tls:
        more["tls"] = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        more["tls"].load_cert_chain(options.tls)
    if options.hooks == "traced":
        more["debug"] = open(os.devnull, "w")  # noqa: SIM115 - open as long as the process runs
    server = Server(
        (Users if options.auth else DefaultBackend)(HOOKS[options.hooks]),
        addr=f"127.0.0.1:{options.port}",
        lmtp=options.lmtp,
        allow_insecure_auth=options.auth,
        max_message_bytes=64 << 20,
        max_recipients=1000,
        max_connections=20_000,
        backlog=4096,
        **more,
    )
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
    parser.add_argument("--hooks", choices=tuple(HOOKS), default="plain")
    parser.add_argument("--tls")
    parser.add_argument("--lmtp", action="store_true")
    parser.add_argument("--auth", action="store_true")
    arguments = parser.parse_args()
    loop_factory = asyncio.new_event_loop
    if arguments.loop == "uvloop":
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(main(arguments))
