"""A relay that stores nothing: each message goes to the next hop while it arrives.  `python examples/relay.py PORT HOST NEXT_PORT`

Takes mail for one domain only: whoever lets everybody send to everywhere is an open relay.
"""

from __future__ import annotations

import asyncio
import sys

from fastsmtp import ClientOptions, EnhancedCode, RcptParams, Reply, Server, SMTPError
from fastsmtp.delivery import RelayBackend, RelaySession

OURS = "@example.org"


class Inbound(RelaySession):
    async def rcpt(self, recipient: str, params: RcptParams) -> Reply | None:
        if not recipient.lower().endswith(OURS):
            raise SMTPError(550, EnhancedCode(5, 7, 1), "No relaying")
        return await super().rcpt(recipient, params)


async def main(port: int, host: str, next_port: int) -> None:
    next_hop = ClientOptions(host=host, port=next_port)
    async with (
        RelayBackend(next_hop, session=Inbound) as backend,
        Server(backend, addr=f"127.0.0.1:{port}") as server,
    ):
        print(f"listening on port {server.port}, next hop {next_hop.place}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
