"""``fastsmtp send``: one message or many alike, through the standard library's client."""

from __future__ import annotations

import argparse
import email.utils
import os
import smtplib
import sys

__all__ = ["send"]


def send(arguments: argparse.Namespace) -> int:
    """Send; a line per refused recipient; the exit code is 0 when nothing was refused."""
    recipients: list[str] = arguments.recipients or ["recipient@example.org"]
    try:
        message = _message(arguments, recipients)
    except OSError as error:
        print(f"fastsmtp: cannot read the message: {error.strerror or error}", file=sys.stderr)
        return 1
    refused = 0
    try:
        with _connect(arguments) as client:
            client.ehlo_or_helo_if_needed()
            options = []
            if not all(map(str.isascii, (arguments.sender, *recipients))):
                options.append("SMTPUTF8")
                client.command_encoding = "utf-8"
            if not message.isascii() and client.has_extn("8bitmime"):
                options.append("BODY=8BITMIME")
            for _ in range(arguments.count):
                refused += _transaction(client, arguments.sender, recipients, message, options)
    except smtplib.SMTPResponseException as error:
        print(f"fastsmtp: refused: {error.smtp_code} {_safe(error.smtp_error)}", file=sys.stderr)
        return 1
    except (OSError, smtplib.SMTPException) as error:
        print(f"fastsmtp: cannot send: {getattr(error, 'strerror', None) or error}", file=sys.stderr)
        return 1
    return 1 if refused else 0


def _transaction(client: smtplib.SMTP, sender: str, recipients: list[str], message: bytes, options: list[str]) -> int:
    """Send one message; how many recipients were refused.  `smtplib.sendmail` knows one answer to a message, LMTP has one for each."""
    code, text = client.mail(sender, options)
    if code != 250:
        raise smtplib.SMTPResponseException(code, text)
    accepted = []
    refused = 0
    for recipient in recipients:
        code, text = client.rcpt(recipient)
        if code in (250, 251):
            accepted.append(recipient)
        else:
            refused += 1
            print(f"fastsmtp: {recipient}: {code} {_safe(text)}", file=sys.stderr)
    if not accepted:
        client.rset()
        return refused
    answers = [client.data(message)]
    if isinstance(client, smtplib.LMTP):
        answers += [client.getreply() for _ in accepted[1:]]
    for recipient, (code, text) in zip(accepted, answers, strict=False):
        if code != 250:
            refused += 1
            print(f"fastsmtp: {recipient}: {code} {_safe(text)}", file=sys.stderr)
    return refused


def _connect(arguments: argparse.Namespace) -> smtplib.SMTP:
    if arguments.unix:
        return smtplib.LMTP(os.path.abspath(arguments.unix), timeout=arguments.timeout)
    kind = smtplib.LMTP if arguments.lmtp else smtplib.SMTP
    return kind(arguments.host, arguments.port, timeout=arguments.timeout)


def _message(arguments: argparse.Namespace, recipients: list[str]) -> bytes:
    if arguments.file == "-":
        standard_input: bytes = sys.stdin.buffer.read()
        return standard_input
    if arguments.file:
        with open(arguments.file, "rb") as file:
            return file.read()
    head = (
        f"From: <{arguments.sender}>\r\nTo: {', '.join(f'<{each}>' for each in recipients)}\r\n"
        f"Subject: {arguments.subject}\r\nDate: {email.utils.formatdate(localtime=True)}\r\n"
        f"Message-ID: {email.utils.make_msgid(domain='localhost')}\r\n"
        "MIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\nContent-Transfer-Encoding: 8bit\r\n\r\n"
        "Sent by fastsmtp send.\r\n"
    ).encode()
    line = b"x" * 76 + b"\r\n"
    size: int = arguments.size
    return head + line * (max(0, size - len(head)) // len(line))


def _safe(text: bytes | str) -> str:
    decoded = text.decode("utf-8", "backslashreplace") if isinstance(text, bytes) else text
    return "".join(char if char.isprintable() else " " for char in decoded)
