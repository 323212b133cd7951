"""aiosmtpd, recording.  `aiosmtpd_record.py DIR [--lmtp] [--tls FILE] [--implicit] [--auth]`: a line with its port, then one for each
message, whose octets are in a file of DIR.

Recipients whose name begins with nobody, later and full are refused, the last one behind the message by LMTP.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import json
import os
import ssl
from typing import Any

from aiosmtpd.lmtp import LMTP
from aiosmtpd.smtp import SMTP, AuthResult

__all__: list[str] = []


def tell(what: object) -> None:
    os.write(1, json.dumps(what).encode() + b"\n")


class Handler:
    def __init__(self, folder: str, lmtp: bool) -> None:
        self.files = (os.path.join(folder, str(number)) for number in itertools.count(1))
        self.lmtp = lmtp

    async def handle_RCPT(self, server: Any, session: Any, envelope: Any, address: str, options: Any) -> str:
        if address.startswith("nobody"):
            return "550 5.1.1 Nobody of that name"
        if address.startswith("later"):
            return "451 4.2.1 Come back later"
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 OK"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        file = next(self.files)
        with open(file, "wb") as kept:
            kept.write(envelope.original_content)
        tell(
            {
                "sender": envelope.mail_from,
                "recipients": envelope.rcpt_tos,
                "mail": {"options": envelope.mail_options, "smtputf8": envelope.smtp_utf8},
                "rcpt": [],
                "helo": session.host_name,
                "tls": session.ssl is not None or server.transport.get_extra_info("ssl_object") is not None,
                "user": session.auth_data or "",
                "file": file,
            }
        )
        if not self.lmtp:
            return "250 2.0.0 Kept"
        full = [address.startswith("full") for address in envelope.rcpt_tos]
        return "\r\n".join("552 5.2.2 Mailbox full" if each else "250 2.0.0 Kept" for each in full)


def authenticate(server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
    right = (data.login, data.password) == ("jörg".encode(), "größe".encode())
    return AuthResult(success=right, handled=False, auth_data=data.login.decode())


async def main(options: argparse.Namespace) -> None:
    context = None
    if options.tls:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(options.tls)
    loop = asyncio.get_running_loop()
    handler = Handler(options.directory, options.lmtp)

    def protocol() -> SMTP:
        return (LMTP if options.lmtp else SMTP)(
            handler,
            hostname="aiosmtpd.example",
            data_size_limit=64 << 20,
            enable_SMTPUTF8=True,
            tls_context=None if options.implicit else context,
            auth_require_tls=not options.implicit,
            authenticator=authenticate if options.auth else None,
            loop=loop,
        )

    server = await loop.create_server(protocol, "127.0.0.1", 0, ssl=context if options.implicit else None)
    tell({"port": server.sockets[0].getsockname()[1]})
    await server.serve_forever()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("directory")
    parser.add_argument("--tls")
    parser.add_argument("--implicit", action="store_true")
    parser.add_argument("--lmtp", action="store_true")
    parser.add_argument("--auth", action="store_true")
    asyncio.run(main(parser.parse_args()))
