"""Deliveries behind a real server: smtplib on one side, files on the other."""

from __future__ import annotations

import asyncio
import io
import os
import re
import smtplib
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pytest

from fastsmtp import DefaultBackend, Server
from fastsmtp.delivery import DiscardSession, Maildir, MaildirBackend, PrintSession

T = TypeVar("T")


def _serve(backend: Any, client: Callable[[int], T], **options: Any) -> T:
    """Run `client(port)` in a thread against a server."""

    async def main() -> T:
        async with Server(backend(), addr="127.0.0.1:0", **options) as server:
            return await asyncio.to_thread(client, server.port)

    return asyncio.run(main())


def _message(lines: int = 50) -> bytes:
    return b"Subject: hello\r\n\r\n" + b".leading dot, and some text to fill the line\r\n" * lines


def _deliver(path: Path, client: Callable[[int], T], **options: Any) -> tuple[T, list[bytes]]:
    async def main() -> T:
        async with (
            Maildir(path) as maildir,
            Server(MaildirBackend(maildir, domain="mx.example"), addr="127.0.0.1:0", **options) as server,
        ):
            return await asyncio.to_thread(client, server.port)

    result = asyncio.run(main())
    assert not os.listdir(path / "tmp")
    return result, [entry.read_bytes() for entry in sorted((path / "new").iterdir())]


def test_maildir(tmp_path: Path) -> None:
    body = _message()

    def client(port: int) -> bytes:
        with smtplib.SMTP("127.0.0.1", port, "client.example", timeout=30) as smtp:
            assert smtp.sendmail("a@client.example", ["b@mx.example"], body) == {}
            smtp.mail("a@client.example")
            smtp.rcpt("b@mx.example")
            smtp.rcpt("c@mx.example")
            code, text = smtp.data(body)
            assert code == 250
            return text

    text, messages = _deliver(tmp_path / "m", client)
    assert len(messages) == 2
    found = re.fullmatch(rb"2\.0\.0 Ok: queued as (\S+)", text)
    assert found
    assert (tmp_path / "m" / "new" / found[1].decode()).exists()
    for message in messages:
        assert message.endswith(body)
        assert message.startswith(
            b"Return-Path: <a@client.example>\r\n"
            b"Received: from client.example ([127.0.0.1])\r\n\tby mx.example with ESMTP"
        )
    assert b"\tfor <b@mx.example>;\r\n" in messages[0]
    assert b"\tfor " not in messages[1]


@pytest.mark.parametrize("size", [70_000, 5_000_000])
def test_maildir_streams(tmp_path: Path, size: int) -> None:
    body = _message(size // 46)

    def client(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, "client.example", timeout=30) as smtp:
            smtp.sendmail("a@client.example", ["b@mx.example"], body)

    _, (message,) = _deliver(tmp_path / "m", client)
    assert message.endswith(b"\r\n" + body)


@pytest.mark.parametrize("size", [1000, 3_000_000])
def test_a_client_that_leaves_within_a_message(tmp_path: Path, size: int) -> None:
    def client(port: int) -> None:
        smtp = smtplib.SMTP("127.0.0.1", port, "client.example", timeout=30)
        smtp.ehlo()
        smtp.mail("a@client.example")
        smtp.rcpt("b@mx.example")
        smtp.putcmd("DATA")
        assert smtp.getreply()[0] == 354
        smtp.send(_message(size // 46))
        smtp.close()

    _, messages = _deliver(tmp_path / "m", client)
    assert messages == []


def test_a_message_above_the_limit_leaves_nothing(tmp_path: Path) -> None:
    def client(port: int) -> int:
        with smtplib.SMTP("127.0.0.1", port, "client.example", timeout=30) as smtp:
            smtp.ehlo()
            smtp.mail("a@client.example")
            smtp.rcpt("b@mx.example")
            return smtp.data(_message(20_000))[0]

    code, messages = _deliver(tmp_path / "m", client, max_message_bytes=500_000)
    assert code == 552
    assert messages == []


def test_lmtp(tmp_path: Path) -> None:
    def client(port: int) -> None:
        with smtplib.LMTP("127.0.0.1", port, "client.example") as lmtp:
            lmtp.ehlo()
            lmtp.mail("a@client.example")
            lmtp.rcpt("b@mx.example")
            lmtp.rcpt("c@mx.example")
            assert lmtp.data(_message())[0] == 250
            assert lmtp.getreply()[0] == 250  # one for each recipient; smtplib reads the first only

    _, (message,) = _deliver(tmp_path / "m", client, lmtp=True)
    assert b"with LMTP" in message


def test_discard() -> None:
    def client(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, "client.example", timeout=30) as smtp:
            for lines in (0, 10, 100_000):
                smtp.sendmail("a@client.example", ["b@mx.example"], _message(lines))

    _serve(lambda: DefaultBackend(DiscardSession), client)


def test_print() -> None:
    out = io.StringIO()

    def client(port: int) -> None:
        with smtplib.SMTP("127.0.0.1", port, "client.example", timeout=30) as smtp:
            smtp.sendmail("a@client.example", ["b@mx.example"], _message(1))

    _serve(lambda: DefaultBackend(lambda: PrintSession(out)), client)
    assert out.getvalue() == (
        "---------- MAIL FROM:<a@client.example>\n---------- RCPT TO:<b@mx.example>\n"
        "Subject: hello\n\n.leading dot, and some text to fill the line\n---------- 64 octets\n"
    )
