"""swaks: TLS, AUTH, XCLIENT, PROXY and pipelining, and what the session made of it; on asyncio's loop and on uvloop."""

from __future__ import annotations

import hashlib
import hmac
import pathlib
import ssl
from typing import Any, ClassVar

import pytest

from fastsmtp import EnhancedCode, RcptParams, Reply, SMTPError
from fastsmtp.sasl import Challenge, CramMD5Credentials, Outcome, PlainCredentials, SASLError, ServerBase, Verify
from fastsmtp.session import HookResult

from .inprocess import InProcess, LoopFactory, Recording
from .interop.tools import BOTH_LOOPS, HARD, Certificates, finish, tool

pytestmark = [pytest.mark.interop, BOTH_LOOPS]

PASSWORDS = {"passwords": {"anna": "pass word=:", "jörg": "größe"}}
REFUSED_AUTH = 28  # swaks' exit codes
REFUSED_TLS = 29
REFUSED_RECIPIENTS = 24


def swaks(server: InProcess, *arguments: str, to: str = "c@d.example", code: int = 0) -> str:
    """Send a message; all that swaks saw."""
    command = [tool("swaks"), "--server", server.place, "--from", "a@b.example", "--to", to, "--helo", "swaks.example"]
    return finish([*command, *arguments], code=code).stdout


@pytest.mark.parametrize("arguments", [[], ["--pipeline"]], ids=["plain", "pipelined"])
def test_octets(loop: LoopFactory, arguments: list[str], tmp_path: pathlib.Path) -> None:
    path = tmp_path / "message"
    path.write_bytes(HARD.replace(b"\n.", b"\n..") + b".\r\n")  # swaks is told to send it as it is
    with InProcess(loop) as server:
        swaks(server, "--data", f"@{path}", "--no-data-fixup", *arguments)
        arrived = server.only()
    assert arrived.text == HARD
    assert (arrived.sender, arrived.recipients, arrived.helo) == ("a@b.example", ("c@d.example",), "swaks.example")
    assert arrived.state.protocol == "ESMTP" and arrived.tls is None


class Choosy(Recording):
    """No mail for nobody."""

    def rcpt(self, recipient: str, params: RcptParams) -> HookResult:
        if recipient.startswith("nobody"):
            raise SMTPError(550, EnhancedCode(5, 1, 1), "Nobody of that name")
        return super().rcpt(recipient, params)


def test_pipelining_with_refused_recipients(loop: LoopFactory) -> None:
    with InProcess(loop, session=Choosy) as server:
        swaks(server, "--pipeline", to="nobody@d.example,c@d.example,nobody2@d.example,e@d.example")
        assert server.only().recipients == ("c@d.example", "e@d.example")
        seen = swaks(server, "--pipeline", to="nobody@d.example", code=REFUSED_RECIPIENTS)
        assert "550 5.1.1 Nobody of that name" in seen
        assert len(server.wait()) == 1


@pytest.mark.parametrize("version", ["TLSv1.2", "TLSv1.3"])
@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
def test_tls(loop: LoopFactory, implicit: bool, version: str, tmp_path: pathlib.Path) -> None:
    pems = Certificates.make(tmp_path)
    with InProcess(loop, tls=pems.tls(), implicit_tls=implicit, require_tls=True) as server:
        arguments = ["-tlsc" if implicit else "-tls", "--tls-protocol", version.lower().replace(".", "_")]
        arguments += ["--tls-verify", "--tls-ca-path", str(pems.ca), "--tls-sni", "mx.example", "--pipeline"]
        swaks(server, *arguments)
        swaks(server, *arguments, "--tls-cert", str(pems.client), "--tls-key", str(pems.client))
        first, second = server.wait(2)
        assert first.tls == second.tls == version
        assert not first.certificate and second.common_name == "relay.example"
        assert server.server.counters.tls == 2
        if not implicit:
            seen = swaks(server, code=23)  # MAIL is refused
            assert "530 5.7.0" in seen


def test_tls_with_the_certificate_of_the_name(loop: LoopFactory, tmp_path: pathlib.Path) -> None:
    pems = Certificates.make(tmp_path)
    with InProcess(loop, tls=pems.tls()) as server:
        for name, pem in (("other.example", pems.other), ("mx.example", pems.server)):
            shown = tmp_path / name
            swaks(server, "-tls", "--tls-sni", name, "--tls-get-peer-cert", str(shown))
            ours = pem.read_text()
            assert ssl.PEM_cert_to_DER_cert(shown.read_text()) == ssl.PEM_cert_to_DER_cert(
                ours[ours.index("-----BEGIN CERT") : ours.index("-----END CERTIFICATE-----") + 26]
            )
        assert [each.tls for each in server.wait(2)] == ["TLSv1.3"] * 2


def test_tls_that_fails_hurts_nobody(loop: LoopFactory, tmp_path: pathlib.Path) -> None:
    pems = Certificates.make(tmp_path)
    with InProcess(loop, tls=pems.tls()) as server:
        swaks(server, "-tls", "--tls-verify", "--tls-ca-path", str(pems.stranger), code=REFUSED_TLS)
        swaks(server, "-tls", "--tls-protocol", "tlsv1_1", "--tls-cipher", "ALL:@SECLEVEL=0", code=REFUSED_TLS)
        swaks(server, "-tls")
        assert server.only().tls == "TLSv1.3"


@pytest.mark.parametrize("secure", [True, False], ids=["tls", "plaintext"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_auth(loop: LoopFactory, mechanism: str, secure: bool, tmp_path: pathlib.Path) -> None:
    tls = Certificates.make(tmp_path).tls() if secure else None
    with InProcess(loop, auth=(mechanism,), users=PASSWORDS, tls=tls, allow_insecure_auth=not secure) as server:
        arguments = ["--auth", mechanism, *(["-tls"] if secure else [])]
        for user, password in PASSWORDS["passwords"].items():
            swaks(server, *arguments, "--auth-user", user, "--auth-password", password)
        seen = swaks(server, *arguments, "--auth-user", "anna", "--auth-password", "wrong", code=REFUSED_AUTH)
        assert "535 5.7.8" in seen
        arrived = server.wait(2)
        assert [each.state.username for each in arrived] == ["anna", "jörg"]
        kind = CramMD5Credentials if mechanism == "CRAM-MD5" else PlainCredentials
        assert all(isinstance(each.credentials, kind) for each in arrived)
        assert (server.server.counters.authenticated, server.server.counters.auth_failures) == (2, 1)
        assert "pass word" not in server.trace.getvalue()


def test_auth_needs_tls(loop: LoopFactory, tmp_path: pathlib.Path) -> None:
    tls = Certificates.make(tmp_path).tls()
    with InProcess(loop, auth=("PLAIN", "LOGIN"), users=PASSWORDS, tls=tls) as server:
        login = ["--auth", "--auth-user", "anna", "--auth-password", "pass word=:"]
        assert "AUTH" not in swaks(server, *login, code=REFUSED_AUTH).partition("*** Host did not")[0]
        swaks(server, *login, "-tls")
        assert server.only().state.username == "anna"


class CramSHA1(ServerBase):
    """CRAM-MD5 with another digest: a mechanism that is not built in, which swaks knows from Exim."""

    name: ClassVar[str] = "CRAM-SHA1"
    _sent = False

    def _next(self, response: bytes | None) -> Outcome:
        if not self._sent:
            self._sent = True
            return Challenge(b"<1896.697170952@mx.example>")
        user, _, digest = (response or b"").decode().rpartition(" ")
        expected = hmac.new(b"secret", b"<1896.697170952@mx.example>", hashlib.sha1).hexdigest()
        if not hmac.compare_digest(digest, expected):
            raise SASLError("wrong digest")
        return Verify(PlainCredentials("", user, PASSWORDS["passwords"][user]))


def test_auth_with_a_mechanism_of_the_application(loop: LoopFactory) -> None:
    server = InProcess(loop, users=PASSWORDS, allow_insecure_auth=True)
    server.server.enable_auth("CRAM-SHA1", lambda conn: CramSHA1())
    with server:
        login = ["--auth", "CRAM-SHA1", "--auth-user", "anna", "--auth-password"]
        swaks(server, *login, "secret")
        swaks(server, *login, "wrong", code=REFUSED_AUTH)
        assert server.only().state.username == "anna"


def test_xclient(loop: LoopFactory, tmp_path: pathlib.Path) -> None:
    everything = ["--xclient-addr", "192.0.2.7", "--xclient-name", "client.example", "--xclient-port", "4321"]
    everything += ["--xclient-proto", "ESMTP", "--xclient-helo", "hello.example", "--xclient-login", "anna+x=y"]
    everything += ["--xclient-destaddr", "192.0.2.25", "--xclient-destport", "2525"]
    two = ["--xclient-addr", "IPV6:2001:db8::7", "--xclient-delim", "--xclient-name", "[UNAVAILABLE]"]
    with InProcess(loop, allow_xclient=True, tls=Certificates.make(tmp_path).tls()) as server:
        swaks(server, *everything)
        swaks(server, *two, "--pipeline")
        swaks(server, *everything, "-tls")
        swaks(server, *everything, "-tls", "--xclient-before-starttls")
        whole, parts, within, before = server.wait(4)
    for each in (whole, within, before):
        assert each.state.remote_addr == ("192.0.2.7", 4321) and each.state.local_addr == ("192.0.2.25", 2525)
        assert each.state.xclient is not None and each.state.xclient.name == "client.example"
        assert each.helo == "swaks.example"
    for each in (whole, within):
        assert each.state.username == "anna+x=y"
        assert each.state.xclient is not None and each.state.xclient.helo == "hello.example"
    assert before.state.username == ""  # what was said of a login is forgotten with TLS, as a login is
    assert [each.tls for each in (whole, within, before)] == [None, "TLSv1.3", "TLSv1.3"]
    assert parts.state.remote_addr == ("2001:db8::7", 0)
    assert parts.state.xclient is not None and parts.state.xclient.name is None


def test_xclient_of_a_peer_that_is_not_trusted(loop: LoopFactory) -> None:
    with InProcess(loop, allow_xclient=["192.0.2.0/24"]) as server:
        seen = swaks(server, "--xclient-addr", "192.0.2.7", code=33)
        assert "250 ENHANCEDSTATUSCODES" in seen and "XCLIENT" not in seen
        assert not server.inbox.taken()


PROXIES: list[Any] = [
    pytest.param(["TCP4", "192.0.2.7", "192.0.2.25"], 1, id="v1-TCP4"),
    pytest.param(["TCP6", "2001:db8::7", "2001:db8::25"], 1, id="v1-TCP6"),
    pytest.param(["AF_INET", "192.0.2.7", "192.0.2.25"], 2, id="v2-INET"),
    pytest.param(["AF_INET6", "2001:db8::7", "2001:db8::25"], 2, id="v2-INET6"),
]


@pytest.mark.parametrize("implicit", [False, True], ids=["plaintext", "implicit"])
@pytest.mark.parametrize(("addresses", "version"), PROXIES)
def test_proxy(loop: LoopFactory, addresses: list[str], version: int, implicit: bool, tmp_path: pathlib.Path) -> None:
    family, source, destination = addresses
    arguments = ["--proxy-version", str(version), "--proxy-family", family, "--proxy-source", source]
    arguments += ["--proxy-source-port", "4321", "--proxy-dest", destination, "--proxy-dest-port", "2525"]
    if version == 2:
        arguments += ["--proxy-protocol", "STREAM", "--proxy-command", "PROXY"]
    tls: dict[str, Any] = {"tls": Certificates.make(tmp_path).tls(), "implicit_tls": True} if implicit else {}
    with InProcess(loop, proxy_from=True, **tls) as server:
        swaks(server, *arguments, *(["-tlsc"] if implicit else []))
        state = server.only().state
    assert state.proxy is not None
    assert (state.proxy.version, state.proxy.command) == (version, "PROXY")
    assert state.remote_addr == (source, 4321) and state.local_addr == (destination, 2525)
    assert (state.tls is not None) is implicit


def test_proxy_that_is_none(loop: LoopFactory) -> None:
    # LOCAL, with a block of 0x0101 octets: no argument can have NUL, and the LOCAL that swaks makes itself has a command
    # that is not assigned.
    local = ["--proxy-version", "2", "--proxy", "\x20\x01\x01\x01" + "x" * 0x101]
    with InProcess(loop, proxy_from=True) as server:
        swaks(server, *local)
        state = server.only().state
        assert state.proxy is not None and state.proxy.command == "LOCAL"
        assert isinstance(state.remote_addr, tuple) and state.remote_addr[0] == "127.0.0.1"
        seen = swaks(server, "--proxy", "TCP4 192.0.2.7 nonsense", code=6)
        assert "<-" not in seen  # closed without a word
        assert len(server.wait()) == 1


def test_lmtp(loop: LoopFactory, tmp_path: pathlib.Path) -> None:
    class Full(Recording):
        def answer(self, context: Any) -> Reply | None:
            context.set_status("full@d.example", Reply(452, EnhancedCode(4, 2, 2), "Mailbox full"))
            return None

    path = str(tmp_path / "lmtp")
    with InProcess(loop, session=Full, lmtp=True, addr="", unix_socket=path) as server:
        command = [tool("swaks"), "--socket", path, "--protocol", "LMTP", "--from", "a@b.example"]
        seen = finish([*command, "--to", "c@d.example,full@d.example,e@d.example"], code=0).stdout
        assert server.only().state.protocol == "LMTP"
    said = [line[4:] for line in seen.splitlines() if line[:4] in ("<-  ", "<** ")]
    after = said[next(index for index, line in enumerate(said) if line.startswith("354")) + 1 :]
    assert [line[:3] for line in after] == ["250", "452", "250", "221"]
