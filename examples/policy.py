"""A session with a policy: who may send, to whom, and what is refused.  `python examples/policy.py [PORT]`

Shows each way of refusing: a Reply that is returned, an SMTPError that is raised, and a message that is judged as it streams in.
"""

from __future__ import annotations

import asyncio
import sys

from fastsmtp import (
    DataContext,
    DataReader,
    DefaultBackend,
    DefaultSession,
    EnhancedCode,
    MailParams,
    RcptParams,
    Reply,
    Server,
    SMTPError,
)

LOCAL = "@example.org"


class PolicySession(DefaultSession):
    def mail(self, sender: str, params: MailParams) -> Reply | None:
        super().mail(sender, params)
        if sender.endswith("@spam.example"):
            return Reply(550, EnhancedCode(5, 7, 1), "Not from you")
        return None

    def rcpt(self, recipient: str, params: RcptParams) -> None:
        if not recipient.endswith(LOCAL):
            raise SMTPError(550, EnhancedCode(5, 7, 1), "No relaying")
        super().rcpt(recipient, params)

    async def data(self, reader: DataReader, context: DataContext) -> Reply:
        async for chunk in reader:
            if b"X5O!P%@AP" in chunk:  # an early answer; the rest of the message is consumed for us
                return Reply(554, EnhancedCode(5, 7, 0), "That is a virus")
        return Reply(250, EnhancedCode(2, 0, 0), f"Thank you for {reader.size} octets")


async def main(port: int) -> None:
    async with Server(DefaultBackend(PolicySession), addr=f"127.0.0.1:{port}") as server:
        print(f"listening on port {server.port}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8025))
