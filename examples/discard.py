"""The smallest server: accepts every message and drops it.  `python examples/discard.py [PORT]`"""

from __future__ import annotations

import asyncio
import sys

from fastsmtp import DefaultBackend, DefaultSession, Server


async def main(port: int) -> None:
    async with Server(DefaultBackend(DefaultSession), addr=f"127.0.0.1:{port}") as server:
        print(f"listening on port {server.port}", flush=True)
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]) if len(sys.argv) > 1 else 8025))
