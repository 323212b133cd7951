"""OpenSSL's s_client: handshakes as they come, client certificates, resumption; on asyncio's loop and on uvloop."""

from __future__ import annotations

import pathlib
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from fastsmtp.sasl import ExternalCredentials

from .inprocess import InProcess, LoopFactory
from .interop.tools import BOTH_LOOPS, HARD, Certificates, finish, tool

pytestmark = [pytest.mark.interop, BOTH_LOOPS]


class Dialogue:
    """SMTP by hand, through s_client."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        self._process = process

    def reply(self) -> list[str]:
        """One reply, its lines."""
        assert self._process.stdout is not None
        lines: list[str] = []
        while not lines or lines[-1][3:4] == "-":
            line = self._process.stdout.readline().decode().rstrip("\r\n")
            assert line, f"closed after {lines}"
            lines.append(line)
        return lines

    def ask(self, command: bytes) -> list[str]:
        assert self._process.stdin is not None
        self._process.stdin.write(command + b"\r\n")
        self._process.stdin.flush()
        return self.reply()

    def send(self, text: bytes) -> None:
        """A message, and QUIT."""
        assert self.ask(b"MAIL FROM:<a@b.example>")[0].startswith("250 ")
        assert self.ask(b"RCPT TO:<c@d.example>")[0].startswith("250 ")
        assert self.ask(b"DATA")[0].startswith("354 ")
        stuffed = text.replace(b"\n.", b"\n..")
        assert self.ask(stuffed + b".")[0].startswith("250 ")
        assert self.ask(b"QUIT")[0].startswith("221 ")
        assert self._process.wait(60) == 0


@contextmanager
def s_client(server: InProcess, *arguments: str | pathlib.Path) -> Iterator[Dialogue]:
    """s_client after its handshake.  Its own remarks go to standard error, as does what is said before TLS."""
    command = [tool("openssl"), "s_client", "-connect", server.place, "-quiet", *map(str, arguments)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        try:
            yield Dialogue(process)
        finally:
            if process.poll() is None:
                process.kill()


@pytest.mark.parametrize("version", ["1.2", "1.3"])
@pytest.mark.parametrize("how", ["smtp", "lmtp", "implicit"])
def test_dialogue(loop: LoopFactory, how: str, version: str, tmp_path: pathlib.Path) -> None:
    pems = Certificates.make(tmp_path)
    lmtp, implicit = how == "lmtp", how == "implicit"
    arguments: list[str | pathlib.Path] = ["-CAfile", pems.ca, "-verify_return_error", "-verify_hostname", "mx.example"]
    arguments += [f"-tls{version.replace('.', '_')}"]
    if not implicit:
        arguments += ["-starttls", how, "-name", "s-client.example"]
    with InProcess(loop, tls=pems.tls(), lmtp=lmtp, implicit_tls=implicit) as server:
        with s_client(server, *arguments) as client:
            if implicit:  # with STARTTLS, s_client has read the greeting
                assert client.reply() == ["220 mx.example ESMTP ready"]
            said = client.ask(b"LHLO inside.example" if lmtp else b"EHLO inside.example")
            assert "STARTTLS" not in " ".join(said)
            assert client.ask(b"STARTTLS")[0].startswith("503 ")
            client.send(HARD)
        arrived = server.only()
    assert (arrived.text, arrived.tls, arrived.helo) == (HARD, f"TLSv{version}", "inside.example")
    if not implicit:
        assert server.said()[0] == f"{'LHLO' if lmtp else 'EHLO'} s-client.example"


def test_what_was_said_before_tls_is_forgotten(loop: LoopFactory, tmp_path: pathlib.Path) -> None:
    with InProcess(loop, tls=Certificates.make(tmp_path).tls()) as server:
        with s_client(server, "-starttls", "smtp") as client:
            assert client.ask(b"MAIL FROM:<a@b.example>")[0].startswith("503 ")  # no EHLO within TLS
            client.ask(b"EHLO inside.example")
            client.send(HARD)
        assert server.only().helo == "inside.example"


def test_certificate_of_the_client(loop: LoopFactory, tmp_path: pathlib.Path) -> None:
    pems = Certificates.make(tmp_path)
    users = {"certificates": frozenset({"relay.example"}), "auth_required": True}
    with InProcess(loop, tls=pems.tls(), auth=("EXTERNAL",), users=users) as server:
        with s_client(server, "-starttls", "smtp", "-cert", pems.client, "-key", pems.client) as client:
            assert "250-AUTH EXTERNAL" in client.ask(b"EHLO inside.example")
            assert client.ask(b"AUTH EXTERNAL =")[0].startswith("235 ")
            client.send(HARD)
        with s_client(server, "-starttls", "smtp") as client:
            assert "AUTH" not in " ".join(client.ask(b"EHLO inside.example"))
            assert client.ask(b"AUTH EXTERNAL =")[0][0] == "5"
            assert client.ask(b"MAIL FROM:<a@b.example>")[0].startswith("530 ")
        arrived = server.only()
    assert arrived.common_name == "relay.example"
    assert isinstance(arrived.credentials, ExternalCredentials)


@pytest.mark.parametrize("version", ["-tls1_2", "-tls1_3"])
def test_resumed_session(loop: LoopFactory, version: str, tmp_path: pathlib.Path) -> None:
    """A client that comes back with its session is known by the same certificate."""
    pems = Certificates.make(tmp_path)
    ticket = tmp_path / "session"
    common: list[str | pathlib.Path] = [version, "-cert", pems.client, "-key", pems.client]
    with InProcess(loop, tls=pems.tls(), implicit_tls=True) as server:
        for option in ("-sess_out", "-sess_in"):
            with s_client(server, *common, option, ticket) as client:
                client.reply()
                client.ask(b"EHLO x.example")
                client.send(HARD)
        first, second = server.wait(2)
    assert first.state.tls is not None and not first.state.tls.session_reused
    assert second.state.tls is not None and second.state.tls.session_reused
    assert first.common_name == second.common_name == "relay.example"


@pytest.mark.parametrize(
    "arguments",
    [
        ["-tls1_1", "-cipher", "ALL:@SECLEVEL=0"],
        ["-CAfile", "{stranger}", "-verify_return_error"],
        ["-CAfile", "{ca}", "-verify_return_error", "-verify_hostname", "wrong.example"],
        ["-cert", "{strange_client}", "-key", "{strange_client}", "-tls1_2"],
    ],
    ids=["old version", "unknown authority", "wrong name", "strange client"],
)
def test_handshake_that_fails(loop: LoopFactory, arguments: list[str], tmp_path: pathlib.Path) -> None:
    pems = Certificates.make(tmp_path)
    (tmp_path / "other").mkdir()
    strange = Certificates.make(tmp_path / "other").client
    words = [each.format(ca=pems.ca, stranger=pems.stranger, strange_client=strange) for each in arguments]
    with InProcess(loop, tls=pems.tls()) as server:
        command = [tool("openssl"), "s_client", "-connect", server.place, "-starttls", "smtp", *words]
        finish(command, code=1)
        with s_client(server, "-starttls", "smtp", "-CAfile", pems.ca, "-verify_return_error") as client:
            client.ask(b"EHLO x.example")
            client.send(HARD)
        assert server.only().tls == "TLSv1.3"
        assert server.server.counters.tls_failures == 1
