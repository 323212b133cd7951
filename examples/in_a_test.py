"""A server in two lines, for the tests of a program that sends mail.  `python examples/in_a_test.py`"""

from __future__ import annotations

import asyncio
import smtplib

from fastsmtp import DataContext, DataReader, DefaultBackend, DefaultSession, Server

inbox: list[bytes] = []


class Inbox(DefaultSession):
    def data(self, reader: DataReader, context: DataContext) -> None:
        inbox.append(reader.read_nowait())


def program_under_test(port: int) -> None:
    with smtplib.SMTP("127.0.0.1", port) as client:
        client.sendmail("a@example.org", ["b@example.org"], "Subject: hello\r\n\r\nworld\r\n")


async def main() -> None:
    async with Server(DefaultBackend(Inbox), addr="127.0.0.1:0") as server:
        await asyncio.to_thread(program_under_test, server.port)
    assert inbox == [b"Subject: hello\r\n\r\nworld\r\n"]
    print("one message arrived")


if __name__ == "__main__":
    asyncio.run(main())
