"""What the small measurements work on; the same octets for every rival."""

from __future__ import annotations

__all__ = ["ARGUMENT", "COMMAND", "DOMAIN", "HEADER", "MESSAGE", "ORDINARY", "RESPONSE", "STUFFED", "block"]

CHUNK = 65536
ORDINARY = b"The quick brown fox jumps over the lazy dog, and nobody knows why it does so\r\n"
STUFFED = b".." + ORDINARY[2:]
HEADER = (
    b"Return-Path: <alice@example.org>\r\n"
    b"Received: from mail.example.org (mail.example.org [192.0.2.25])\r\n"
    b"\tby mx.example.net (fastsmtp) with ESMTPS id 4YwXkP2hZKz3x\r\n"
    b"\tfor <bob@example.net>; Sat, 23 Nov 2024 19:14:03 +0000\r\n"
    b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/simple; d=example.org; s=mail;\r\n"
    b"\tt=1732389241; bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\r\n"
    b"From: Alice <alice@example.org>\r\n"
    b"To: Bob <bob@example.net>\r\n"
    b"Subject: Minutes of the meeting on Saturday, and of the plan for all next weeks\r\n"
    b"Date: Sat, 23 Nov 2024 19:14:01 +0000\r\n"
    b"Message-ID: <20241123191401.4YwXkP@example.org>\r\n"
    b"MIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n"
    b"User-Agent: Mutt/2.2.12\r\n"
    b"X-Priority: 3\r\n"
    b"\r\n"
)
COMMAND = b"MAIL FROM:<alice@example.org> SIZE=4096\r\n"
ARGUMENT = "FROM:<alice@example.org> SIZE=4096"
DOMAIN = "mail-out-17.mx.example.org"
RESPONSE = b"250-mx.example.net\r\n250-PIPELINING\r\n250-SIZE 33554432\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"
MESSAGE = ORDINARY * 52 + b".\r\n"  # 4 KB with its end


def block(line: bytes) -> bytes:
    """Whole lines, 64 KiB of them."""
    return line * (CHUNK // len(line))
