"""Other people's programs: where they are, how they are run, what certificates they are shown."""

from __future__ import annotations

import os
import pathlib
import shutil
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NoReturn

import pytest
import trustme

from fastsmtp.tls import TLSFiles

from ..loops import LOOPS

__all__ = ["BOTH_LOOPS", "HARD", "PATH", "Certificates", "finish", "missing", "reserved_port", "tool"]

PATH = os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin:/usr/local/go/bin"

BOTH_LOOPS = pytest.mark.parametrize("loop", LOOPS)

# What breaks when dots, line ends, 8-bit text or long lines are not carried as they are.
HARD = (
    b"From: <a@b.example>\r\nSubject: hard\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n\r\n"
    b".\r\n..\r\n...\r\n.one\r\n \t\r\n\r\n\r\ntrailing \t \r\nFrom here\r\n"
    + "grüße, 日本, \U0001f4ec\r\n".encode()
    + b"x" * 990
    + b"\r\n."
    + b"y" * 900
    + b"\r\nQUIT\r\nDATA\r\n\r\n.\r\n"
)


def missing(reason: str) -> NoReturn:
    """Skip for want of software, or fail where all of it must be there (FASTSMTP_REQUIRE_INTEROP=1)."""
    if os.environ.get("FASTSMTP_REQUIRE_INTEROP") == "1":
        pytest.fail(reason)
    pytest.skip(reason)


def tool(name: str) -> str:
    """The path of a program."""
    found = shutil.which(name, path=PATH)
    if found is None:
        missing(f"{name} is not installed")
    return found


def finish(
    command: list[str], *, stdin: str | None = None, env: dict[str, str] | None = None, code: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; it must return `code`."""
    done = subprocess.run(
        command,
        input="" if stdin is None else stdin,
        env=None if env is None else os.environ | env,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == code, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done


@contextmanager
def reserved_port() -> Iterator[int]:
    """A port that the system gives to nobody else, for a program that cannot say which one it was given.

    The program must set SO_REUSEADDR, as servers do.
    """
    with socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        yield port


@dataclass(frozen=True, slots=True)
class Certificates:
    """An authority and what it signed, as PEM files.

    Attributes:
        ca: the authority.
        server: certificate and key of 127.0.0.1 and mx.example.
        other: of other.example.
        client: of a client with the CN "relay.example".
        stranger: an authority that signed none of them.
    """

    ca: pathlib.Path
    server: pathlib.Path
    other: pathlib.Path
    client: pathlib.Path
    stranger: pathlib.Path

    @classmethod
    def make(cls, folder: pathlib.Path) -> Certificates:
        """New ones."""
        authority = trustme.CA()
        made = cls(*(folder / f"{name}.pem" for name in ("ca", "server", "other", "client", "stranger")))
        authority.cert_pem.write_to_path(str(made.ca))
        trustme.CA().cert_pem.write_to_path(str(made.stranger))
        for path, names, common_name in (
            (made.server, ("127.0.0.1", "mx.example"), None),
            (made.other, ("other.example",), None),
            (made.client, ("relay.example",), "relay.example"),
        ):
            certificate = authority.issue_cert(*names, common_name=common_name)
            certificate.private_key_and_cert_chain_pem.write_to_path(str(path))
        return made

    def tls(self) -> TLSFiles:
        """For a server that asks clients for a certificate, and has another one for other.example."""
        return TLSFiles(self.server, by_name={"other.example": (self.other, None)}, client_ca=self.ca)
