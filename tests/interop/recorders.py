"""Servers of other people that record what they are sent: go-smtp, Node's smtp-server and aiosmtpd.

Each is a program that tells its port, then each message before it answers it.
"""

from __future__ import annotations

import importlib.util
import json
import os
import pathlib
import queue
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any

from .tools import missing, tool

__all__ = ["PASSWORD", "PEERS", "USER", "Peer", "Record", "Recorder", "running"]

USER, PASSWORD = "jörg", "größe"

_HERE = pathlib.Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Record:
    """A message as the peer saw it.

    Attributes:
        told: all that the peer says of it.
        text: its octets.
    """

    told: dict[str, Any]
    text: bytes

    @property
    def sender(self) -> str:
        sender: str = self.told["sender"]
        return sender

    @property
    def recipients(self) -> list[str]:
        recipients: list[str] = self.told["recipients"]
        return recipients


class Recorder:
    """A running peer.

    Attributes:
        port: where it takes mail.
    """

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._lines: queue.Queue[bytes] = queue.Queue()
        self._process = process
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        self.port: int = self._next()["port"]

    def records(self, count: int) -> list[Record]:
        """The next messages; whoever sent them has their answers."""
        return [Record(told, pathlib.Path(told["file"]).read_bytes()) for told in (self._next() for _ in range(count))]

    def stop(self) -> list[bytes]:
        """End it; what it told of more messages."""
        self._process.kill()
        self._reader.join()
        return list(self._lines.queue)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)

    def _next(self) -> dict[str, Any]:
        told: dict[str, Any] = json.loads(self._lines.get(timeout=30))
        return told


@dataclass(frozen=True)
class Peer:
    """A server that can be had.

    Attributes:
        name: the program's.
        command: what starts it, but for its arguments.
        offers: extensions that it has, STARTTLS and AUTH aside.
        mechanisms: of SASL.
    """

    name: str
    command: Callable[[], list[str]]
    offers: frozenset[str]
    mechanisms: tuple[str, ...]


def _go() -> list[str]:
    """The Go program, where `make interop` has built it."""
    program = pathlib.Path(sys.prefix, "interop", "gosmtp")
    if not program.exists():
        missing("go-smtp is not built: make interop does it")
    return [str(program)]


@cache
def _node() -> list[str]:
    """Node, and smtp-server where `make interop` has put it, or in NODE_PATH."""
    installed = pathlib.Path(sys.prefix, "interop", "node_modules")
    paths = os.pathsep.join((str(installed), os.environ.get("NODE_PATH", "")))
    command = ["env", f"NODE_PATH={paths}", tool("node")]
    if subprocess.run([*command, "-e", "require.resolve('smtp-server')"], capture_output=True, check=False).returncode:
        missing("smtp-server is not installed")
    return [*command, str(_HERE / "nodemailer" / "record.cjs")]


def _aiosmtpd() -> list[str]:
    if importlib.util.find_spec("aiosmtpd") is None:
        missing("aiosmtpd is not installed")
    return [sys.executable, "-W", "ignore", str(_HERE / "aiosmtpd_record.py")]


PEERS = {
    peer.name: peer
    for peer in (
        Peer(
            "go-smtp",
            _go,
            frozenset(
                "PIPELINING 8BITMIME ENHANCEDSTATUSCODES CHUNKING SMTPUTF8 BINARYMIME DSN SIZE LIMITS RRVS".split()
            ),
            ("PLAIN",),
        ),
        Peer(
            "smtp-server",
            _node,
            frozenset("PIPELINING 8BITMIME SMTPUTF8 ENHANCEDSTATUSCODES DSN SIZE XFORWARD".split()),
            ("PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"),
        ),
        Peer("aiosmtpd", _aiosmtpd, frozenset("SIZE 8BITMIME SMTPUTF8 HELP".split()), ("PLAIN", "LOGIN")),
    )
}


@contextmanager
def running(
    peer: Peer, *, lmtp: bool = False, tls: pathlib.Path | None = None, implicit: bool = False, auth: bool = False
) -> Iterator[Recorder]:
    """A peer on a port of its own; everything that was sent must have been looked at.

    Args:
        tls: its certificate and key.
        implicit: begin with TLS, in place of STARTTLS.
    """
    words = [*(["-lmtp"] if lmtp else []), *(["-tls", str(tls)] if tls else [])]
    words += [*(["-implicit"] if implicit else []), *(["-auth"] if auth else [])]
    if peer.name != "go-smtp":
        words = [f"-{word}" if word.startswith("-") else word for word in words]
    with tempfile.TemporaryDirectory(prefix="recorder-") as folder:
        with subprocess.Popen([*peer.command(), folder, *words], stdout=subprocess.PIPE) as process:
            try:
                recorder = Recorder(process)
                yield recorder
                assert recorder.stop() == []
            finally:
                process.kill()
