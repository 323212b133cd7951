"""A message of 100 MB passes through, and the process that handed it on has less than 80 MB."""

from __future__ import annotations

import hashlib
import re
import socket
from pathlib import Path

import pytest

from .relaying import relaying, sink, until, without_trace

BLOCK = (b"x" * 998 + b"\r\n") * 100
BLOCKS = 1000  # 100 MB
MOST = 80 << 20


def peak(pid: int) -> int:
    """VmHWM, in octets."""
    match = re.search(r"VmHWM:\s*([0-9]+) kB", Path(f"/proc/{pid}/status").read_text())
    assert match
    return int(match[1]) << 10


def send(port: int, verb: bytes) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=120) as sock, sock.makefile("rb") as replies:

        def ask(line: bytes, code: bytes) -> None:
            sock.sendall(line)
            while (reply := replies.readline())[3:4] == b"-":
                pass
            assert reply.startswith(code), reply

        ask(b"", b"220")
        ask(b"EHLO client.example\r\n", b"250")
        ask(b"MAIL FROM:<a@b.example>\r\n", b"250")
        ask(b"RCPT TO:<c@d.example>\r\n", b"250")
        if verb == b"DATA":
            ask(b"DATA\r\n", b"354")
        else:
            sock.sendall(b"BDAT %d LAST\r\n" % (BLOCKS * len(BLOCK)))
        for _ in range(BLOCKS):
            sock.sendall(BLOCK)
        ask(b".\r\n" if verb == b"DATA" else b"", b"250")


@pytest.mark.slow
@pytest.mark.parametrize(("place", "verb"), [("none", b"DATA"), ("none", b"BDAT"), ("sqlite", b"DATA")])
def test_100_megabytes(tmp_path: Path, place: str, verb: bytes) -> None:
    if not Path("/proc/self/status").exists():
        pytest.skip("no /proc")
    with sink(digest) as box:
        with relaying("--to", box.url, "--queue", place if place == "none" else f"sqlite:{tmp_path}/q") as relay:
            send(relay.port, verb)
            until(lambda: box.messages)
            most = peak(relay.process.pid)
            assert relay.stop()[0] == 0
    print(f"{place} {verb.decode()}: {most >> 20} MB")
    assert box.messages[0].octets == digest(BLOCK * BLOCKS)
    assert most < MOST


def digest(octets: bytes) -> bytes:
    return hashlib.sha256(without_trace(octets)).digest()
