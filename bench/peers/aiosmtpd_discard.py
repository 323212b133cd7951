"""aiosmtpd, accepting and dropping.  `aiosmtpd_discard.py PORT [--loop NAME] [--tls FILE] [--lmtp] [--auth]`"""

from __future__ import annotations

import argparse
import asyncio
import ssl
from typing import Any

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, AuthResult


class Handler:
    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        return "250 OK"


def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    return AuthResult(success=(data.login, data.password) == (b"user", b"secret"), handled=False)


async def main(options: argparse.Namespace) -> None:
    context = None
    if options.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.tls)
    loop = asyncio.get_running_loop()

    def protocol() -> SMTP:
        return (LMTP if options.lmtp else SMTP)(
            Handler(),
            hostname="localhost",
            data_size_limit=64 << 20,
            timeout=300,
            tls_context=context,
            auth_require_tls=False,
            authenticator=authenticate if options.auth else None,
            loop=loop,
        )

    server = await loop.create_server(protocol, "127.0.0.1", options.port, backlog=4096)
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("port", type=int)
    parser.add_argument("--loop", choices=("uvloop", "asyncio"), default="uvloop")
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
