"""Send a file to some recipients.  `python examples/send.py HOST PORT FILE SENDER RECIPIENT...`"""

from __future__ import annotations

import asyncio
import sys

from fastsmtp import Client, ConnectionLost, SMTPError


async def main(host: str, port: str, path: str, sender: str, *recipients: str) -> int:
    try:
        with open(path, "rb") as file:
            async with Client(host, int(port)) as client:
                deliveries = await client.send_message(sender, recipients, file)
    except ConnectionLost as error:
        print(f"connection lost: {error}; it {'may have' if error.maybe_delivered else 'has not'} been delivered")
        return 1
    except (OSError, SMTPError) as error:
        print(f"not sent: {error}")
        return 1
    for delivery in deliveries:
        print(f"{delivery.recipient}: {delivery.reply}")
    return 0 if all(delivery.reply.accepted for delivery in deliveries) else 1


if __name__ == "__main__":
    sys.exit(asyncio.run(main(*sys.argv[1:])))
