"""Client libraries of other languages: Node's nodemailer, Go's net/smtp, Python's aiosmtplib; and curl's OAuth.

Each on asyncio's loop and on uvloop.
"""

from __future__ import annotations

import asyncio
import functools
import json
import os
import pathlib
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from fastsmtp import EnhancedCode, OriginalRecipient, RcptParams, Reply, SMTPError
from fastsmtp.sasl import CramMD5Credentials, ExternalCredentials, PlainCredentials, TokenCredentials
from fastsmtp.session import HookResult

from .inprocess import InProcess, LoopFactory, Recording
from .interop.tools import BOTH_LOOPS, HARD, Certificates, finish, missing, tool

pytestmark = [pytest.mark.interop, BOTH_LOOPS]

PEERS = pathlib.Path(__file__).parent / "interop"
PASSWORDS = {"passwords": {"anna": "pass word=:", "jörg": "größe"}}
TOKENS = {"tokens": {"anna": "vF9dft4qmTc2Nvb3RlckBhbHRhdmlzdGEuY29tCg=="}}
KINDS: dict[str, type] = {
    "PLAIN": PlainCredentials,
    "LOGIN": PlainCredentials,
    "CRAM-MD5": CramMD5Credentials,
    "XOAUTH2": TokenCredentials,
    "OAUTHBEARER": TokenCredentials,
    "EXTERNAL": ExternalCredentials,
}


class Choosy(Recording):
    """No mail for nobody, and one mailbox that is full."""

    def rcpt(self, recipient: str, params: RcptParams) -> HookResult:
        if recipient.startswith("nobody"):
            raise SMTPError(550, EnhancedCode(5, 1, 1), "Nobody of that name")
        return super().rcpt(recipient, params)

    def answer(self, context: Any) -> Reply | None:
        full = Reply(552, EnhancedCode(5, 2, 2), "Mailbox full")
        if context.conn.server.options.lmtp and "full@d.example" in context.recipients:
            context.set_status("full@d.example", full)
            return None
        return full if context.recipients == ["full@d.example"] else None

    def vrfy(self, argument: str) -> Reply:
        known = argument == "anna"
        return (
            Reply(250, EnhancedCode(2, 1, 5), "<anna@d.example>") if known else Reply(550, EnhancedCode(5, 1, 1), "No")
        )


# nodemailer


@functools.cache
def node() -> tuple[str, dict[str, str]]:
    """Node, and the environment in which it finds nodemailer: where `make interop` has put it, or NODE_PATH."""
    program = tool("node")
    installed = pathlib.Path(sys.prefix, "interop", "node_modules")
    env = {"NODE_PATH": os.pathsep.join((str(installed), os.environ.get("NODE_PATH", "")))}
    command = [program, "-e", "require.resolve('nodemailer')"]
    if subprocess.run(command, env=os.environ | env, capture_output=True, check=False).returncode:
        missing("nodemailer is not installed")
    return program, env


def nodemailer(server: InProcess, *messages: dict[str, Any], **options: Any) -> list[dict[str, Any]]:
    """What became of each message."""
    program, env = node()
    transport = {"host": "127.0.0.1", "port": server.port, "name": "node.example", "ignoreTLS": True} | options
    asked = json.dumps({"transport": transport, "messages": messages})
    done = finish([program, str(PEERS / "nodemailer" / "send.cjs")], stdin=asked, env=env)
    results: list[dict[str, Any]] = json.loads(done.stdout)
    return results


def raw(*recipients: str, text: bytes = HARD, **envelope: Any) -> dict[str, Any]:
    """A message that nodemailer is to send as it is."""
    to = list(recipients) or ["c@d.example"]
    return {"raw": text.decode(), "envelope": {"from": "a@b.example", "to": to, "use8BitMime": True} | envelope}


def node_tls(pems: Certificates, **more: str) -> dict[str, Any]:
    """Its options of TLS."""
    return {"ca": pems.ca.read_text(), "servername": "mx.example"} | more


def test_nodemailer_octets_and_envelope(loop: LoopFactory) -> None:
    dsn = {"id": "QQ+314159", "return": "headers", "notify": ["success", "delay"], "recipient": "c+d@original.example"}
    with InProcess(loop, dsn=True) as server:
        (result,) = nodemailer(server, raw("c@d.example", "δ@d.example") | {"dsn": dsn})
        arrived = server.only()
    assert result["accepted"] == ["c@d.example", "δ@d.example"] and result["response"].startswith("250 2.0.0 ")
    assert arrived.text == HARD and arrived.helo == "node.example"
    assert (arrived.sender, arrived.recipients) == ("a@b.example", ("c@d.example", "δ@d.example"))
    params = arrived.mail_params
    assert (params.body, params.smtputf8, params.ret, params.envid) == ("8BITMIME", True, "HDRS", "QQ+314159")
    expected = RcptParams(notify=("SUCCESS", "DELAY"), orcpt=OriginalRecipient("rfc822", "c+d@original.example"))
    assert arrived.rcpt_params == (expected, expected)


@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
def test_nodemailer_refused(loop: LoopFactory, lmtp: bool) -> None:
    with InProcess(loop, session=Choosy, lmtp=lmtp) as server:
        some, none, full, after = nodemailer(
            server,
            raw("nobody@d.example", "c@d.example", "full@d.example"),
            raw("nobody@d.example", "nobody2@d.example"),
            raw("full@d.example"),
            raw("e@d.example"),
            lmtp=lmtp,
            pool=True,
            maxConnections=1,
        )
        arrived = {each.recipients for each in server.wait(3)}
    assert some["accepted"] == ["c@d.example", *(["full@d.example"] if not lmtp else [])]
    assert [each["response"] for each in some["refusals"]] == [
        "550 5.1.1 Nobody of that name",
        *(["552 5.2.2 Mailbox full"] if lmtp else []),
    ]
    assert none["responseCode"] == 550
    if lmtp:  # refused for each of its recipients, it is no error of the message
        assert full["accepted"] == [] and full["refusals"][0]["responseCode"] == 552
    else:
        assert full["responseCode"] == 552
    assert after["accepted"] == ["e@d.example"]
    assert arrived == {("c@d.example", "full@d.example"), ("full@d.example",), ("e@d.example",)}


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
def test_nodemailer_tls(loop: LoopFactory, implicit: bool, tmp_path: pathlib.Path) -> None:
    pems = Certificates.make(tmp_path)
    client = {"cert": pems.client.read_text(), "key": pems.client.read_text()}
    how = {"secure": True} if implicit else {"requireTLS": True, "ignoreTLS": False}
    with InProcess(loop, tls=pems.tls(), implicit_tls=implicit, require_tls=True, requiretls=True) as server:
        message = raw() | {"requireTLSExtensionEnabled": True}
        (result,) = nodemailer(server, message, tls=node_tls(pems, **client), **how)
        assert result["accepted"], result
        arrived = server.only()
        assert arrived.tls == "TLSv1.3" and arrived.common_name == "relay.example" and arrived.text == HARD
        assert arrived.mail_params.requiretls
        (result,) = nodemailer(server, raw(), tls={"ca": pems.stranger.read_text()}, **how)
        assert result["code"] in ("ETLS", "ESOCKET")
        assert len(server.wait()) == 1


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"])
def test_nodemailer_auth(loop: LoopFactory, mechanism: str, tmp_path: pathlib.Path) -> None:
    pems = Certificates.make(tmp_path)
    users: dict[str, Any] = PASSWORDS | TOKENS | {"auth_required": True}
    with InProcess(loop, auth=(mechanism,), users=users, tls=pems.tls()) as server:
        logins: list[dict[str, str]] = [{"user": "anna", "pass": "pass word=:"}, {"user": "anna", "pass": "wrong"}]
        if mechanism == "XOAUTH2":
            token = users["tokens"]["anna"]
            logins = [{"type": "OAuth2", "user": "anna", "accessToken": each} for each in (token, "wrong")]
        options = {"tls": node_tls(pems), "ignoreTLS": False, "requireTLS": True}
        right, wrong = (nodemailer(server, raw(), auth=login, **options)[0] for login in logins)
        assert right["accepted"] and (wrong["code"], wrong["responseCode"]) == ("EAUTH", 535)
        arrived = server.only()
    assert arrived.state.username == "anna" and isinstance(arrived.credentials, KINDS[mechanism])


def test_nodemailer_composes_and_keeps_connections(loop: LoopFactory) -> None:
    """Messages of its own making, with an attachment of some size, over a few kept connections."""
    attachment = {"filename": "a.bin", "content": "\0\r\n.\r\n" * 50_000}
    text = ".\n..\n\nfrom\n" * 100
    message = {"from": "a@b.example", "to": "c@d.example", "text": text, "attachments": [attachment]}
    with InProcess(loop) as server:
        results = nodemailer(server, *[message] * 20, pool=True, maxConnections=3, maxMessages=10)
        assert all(each["accepted"] for each in results)
        arrived = server.wait(20)
        assert server.server.counters.connections_total <= 4
    assert all(len(each.text) > 400_000 and each.text.count(b"\r\n") == each.text.count(b"\n") for each in arrived)


# Go


@pytest.fixture(scope="module")
def netsmtp() -> Any:
    """The Go program, built once."""
    go = tool("go")
    with tempfile.TemporaryDirectory(prefix="netsmtp-") as folder:
        program = os.path.join(folder, "netsmtp")
        cache = subprocess.run([go, "env", "GOCACHE"], capture_output=True, text=True, check=False).stdout.strip()
        env = {"GOFLAGS": "-mod=mod", "GOPROXY": "off", "GOTOOLCHAIN": "local", "GOWORK": "off", "CGO_ENABLED": "0"}
        if not cache or cache == "off":
            env["GOCACHE"] = os.path.join(folder, "cache")
        finish([go, "build", "-C", str(PEERS / "netsmtp"), "-o", program, "."], env=env)
        yield program


def go_message(*recipients: str, sender: str = "a@b.example", verify: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"From": sender, "To": recipients or ("c@d.example",), "Text": HARD.decode(), "Verify": verify}


def through_go(
    program: str, server: InProcess, *messages: dict[str, Any], env: dict[str, str] | None = None, **asked: Any
) -> dict[str, Any]:
    request = {"Addr": server.place, "Name": "127.0.0.1", "Helo": "go.example", "Messages": messages} | asked
    told: dict[str, Any] = json.loads(finish([program], stdin=json.dumps(request), env=env).stdout)
    return told


def test_go_octets_and_envelope(loop: LoopFactory, netsmtp: str) -> None:
    with InProcess(loop, session=Choosy, vrfy=True) as server:
        told = through_go(
            netsmtp,
            server,
            go_message(verify=("anna",)),
            go_message(verify=("nobody",)),
            go_message("c@d.example", "nobody@d.example"),
            go_message("full@d.example"),
            go_message("e@d.example", "δ@d.example", sender="josé@b.example"),
        )
        arrived = [each for each in server.wait(3) if each.recipients != ("full@d.example",)]
    errors = [each.replace('"', "") for each in told["Errors"]]  # newer ones quote
    assert errors == ["", "550 5.1.1 No", "550 5.1.1 Nobody of that name", "552 5.2.2 Mailbox full", ""]
    assert {"8BITMIME", "PIPELINING", "SIZE", "SMTPUTF8"} == told["Extensions"].keys()
    first, last = arrived
    assert first.text == last.text == HARD and first.helo == "go.example"
    assert first.mail_params.body == "8BITMIME" and first.mail_params.smtputf8
    assert (last.sender, last.recipients) == ("josé@b.example", ("e@d.example", "δ@d.example"))


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "CRAM-MD5"])
def test_go_tls_and_auth(
    loop: LoopFactory, netsmtp: str, mechanism: str, implicit: bool, tmp_path: pathlib.Path
) -> None:
    pems = Certificates.make(tmp_path)
    users: dict[str, Any] = PASSWORDS | {"auth_required": True}
    with InProcess(
        loop, auth=(mechanism,), users=users, tls=pems.tls(), implicit_tls=implicit, require_tls=True
    ) as server:
        asked: dict[str, Any] = {"CA": str(pems.ca), "Implicit": implicit, "Name": "mx.example", "Mechanism": mechanism}
        told = through_go(netsmtp, server, go_message(), User="jörg", Password="größe", **asked)
        assert told["Errors"] == [""] and told["TLS"] == "TLS 1.3"
        assert told["Extensions"]["AUTH"] == mechanism and "STARTTLS" not in told["Extensions"]
        arrived = server.only()
        assert (arrived.text, arrived.tls, arrived.state.username) == (HARD, "TLSv1.3", "jörg")
        assert isinstance(arrived.credentials, KINDS[mechanism])
        (error,) = through_go(netsmtp, server, go_message(), User="jörg", Password="wrong", **asked)["Errors"]
        assert error.startswith("535 ") and "5.7.8" in error
        (error,) = through_go(netsmtp, server, go_message(), **asked | {"CA": str(pems.stranger)})["Errors"]
        assert "unknown authority" in error
        assert len(server.wait()) == 1


def test_go_send_mail(loop: LoopFactory, netsmtp: str, tmp_path: pathlib.Path) -> None:
    """smtp.SendMail does all by itself: TLS because it is offered, AUTH, the message, QUIT."""
    pems = Certificates.make(tmp_path)
    with InProcess(loop, auth=("PLAIN",), users=PASSWORDS, tls=pems.tls()) as server:
        login: dict[str, Any] = {"Mechanism": "PLAIN", "User": "anna", "Password": "pass word=:", "SendMail": True}
        env = {"SSL_CERT_FILE": str(pems.ca)}
        told = through_go(netsmtp, server, go_message(), go_message("e@d.example"), env=env, **login)
        assert told["Errors"] == ["", ""]
        arrived = server.wait(2)
    assert [each.recipients for each in arrived] == [("c@d.example",), ("e@d.example",)]
    assert {(each.text, each.tls, each.state.username) for each in arrived} == {(HARD, "TLSv1.3", "anna")}


# aiosmtplib


@pytest.fixture
def aiosmtplib() -> Any:
    try:
        import aiosmtplib
    except ImportError:
        missing("aiosmtplib is not installed")
    return aiosmtplib


@asynccontextmanager
async def connected(aiosmtplib: Any, **options: Any) -> AsyncIterator[Any]:
    """A client, and after QUIT the end of its connection: with TLS it takes both sides, and `async with` does not wait for it."""
    async with asyncio.timeout(60):
        async with aiosmtplib.SMTP(timeout=60, **options) as client:
            sock = client.get_transport_info("socket")
            yield client
        while sock.fileno() != -1:
            await asyncio.sleep(0.001)


def test_aiosmtplib_octets_and_envelope(loop: LoopFactory, aiosmtplib: Any, tmp_path: pathlib.Path) -> None:
    async def main(**where: Any) -> None:
        async with connected(aiosmtplib, local_hostname="aio.example", **where) as client:
            options = ["BODY=8BITMIME", "SMTPUTF8", "RET=FULL", "ENVID=QQ+2B314159"]
            refused, said = await client.sendmail(
                "josé@b.example",
                ["nobody@d.example", "δ@d.example"],
                HARD,
                mail_options=options,
                rcpt_options=["NOTIFY=NEVER", "ORCPT=rfc822;c+2Bd@original.example"],
            )
            assert {name: response.code for name, response in refused.items()} == {"nobody@d.example": 550}
            assert said.startswith("2.0.0 ")
            with pytest.raises(aiosmtplib.SMTPDataError) as caught:
                await client.sendmail("a@b.example", ["full@d.example"], HARD, mail_options=["BODY=8BITMIME"])
            assert (caught.value.code, caught.value.message) == (552, "5.2.2 Mailbox full")
            assert (await client.vrfy("anna")).message == "2.1.5 <anna@d.example>"
            assert (await client.noop()).code == (await client.rset()).code == 250
            assert await client.help()

    path = tmp_path / "socket"
    with InProcess(loop, session=Choosy, dsn=True, vrfy=True, unix_socket=path) as server:
        for where in ({"hostname": "127.0.0.1", "port": server.port}, {"socket_path": str(path)}):
            asyncio.run(main(**where))
        arrived = [each for each in server.wait(4) if each.recipients == ("δ@d.example",)]
    for each in arrived:
        assert each.text == HARD and (each.sender, each.helo) == ("josé@b.example", "aio.example")
        params = each.mail_params
        assert (params.body, params.smtputf8, params.ret, params.envid) == ("8BITMIME", True, "FULL", "QQ+314159")
        assert each.rcpt_params == (RcptParams(("NEVER",), OriginalRecipient("rfc822", "c+d@original.example")),)
    assert [isinstance(each.state.remote_addr, tuple) for each in arrived] == [True, False]


@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2"])
def test_aiosmtplib_tls_and_auth(
    loop: LoopFactory, aiosmtplib: Any, mechanism: str, implicit: bool, tmp_path: pathlib.Path
) -> None:
    pems = Certificates.make(tmp_path)
    context = ssl.create_default_context(cafile=str(pems.ca))
    users: dict[str, Any] = PASSWORDS | TOKENS | {"auth_required": True}

    async def main(port: int) -> None:
        how: dict[str, Any] = {"use_tls": implicit, "start_tls": False, "tls_context": context}
        async with connected(aiosmtplib, hostname="127.0.0.1", port=port, **how) as client:
            if not implicit:
                assert not client.supports_extension("AUTH")
                await client.starttls(tls_context=context)
            await client.ehlo()
            with pytest.raises(aiosmtplib.SMTPAuthenticationError) as caught:
                await login(client, "wrong")
            assert caught.value.code == 535
            await login(client, TOKENS["tokens"]["anna"] if mechanism == "XOAUTH2" else "pass word=:")
            await client.sendmail("a@b.example", ["c@d.example"], HARD, mail_options=["BODY=8BITMIME"])

    async def login(client: Any, secret: str) -> None:
        method = {"PLAIN": "plain", "LOGIN": "login", "CRAM-MD5": "crammd5", "XOAUTH2": "xoauth2"}[mechanism]
        await getattr(client, f"auth_{method}")("anna", secret)

    with InProcess(
        loop, auth=(mechanism,), users=users, tls=pems.tls(), implicit_tls=implicit, require_tls=True
    ) as server:
        asyncio.run(main(server.port))
        arrived = server.only()
    assert (arrived.text, arrived.tls, arrived.state.username) == (HARD, "TLSv1.3", "anna")
    assert isinstance(arrived.credentials, KINDS[mechanism])


def test_aiosmtplib_many_at_a_time(loop: LoopFactory, aiosmtplib: Any) -> None:
    async def one(port: int, number: int) -> None:
        async with connected(aiosmtplib, hostname="127.0.0.1", port=port) as client:
            for each in range(5):
                await client.sendmail(
                    "a@b.example", [f"{number}-{each}@d.example"], HARD, mail_options=["BODY=8BITMIME"]
                )

    async def main(port: int) -> None:
        await asyncio.gather(*(one(port, number) for number in range(20)))

    with InProcess(loop) as server:
        asyncio.run(main(server.port))
        arrived = server.wait(100)
    assert len({each.recipients for each in arrived}) == 100 and {each.text for each in arrived} == {HARD}


# curl


@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5", "XOAUTH2", "OAUTHBEARER", "EXTERNAL"])
@pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
def test_curl_tls_and_auth(loop: LoopFactory, implicit: bool, mechanism: str, tmp_path: pathlib.Path) -> None:
    pems = Certificates.make(tmp_path)
    message = tmp_path / "message"
    message.write_bytes(HARD)
    users: dict[str, Any] = PASSWORDS | TOKENS | {"auth_required": True, "certificates": frozenset({"relay.example"})}
    with InProcess(loop, auth=(mechanism,), users=users, tls=pems.tls(), implicit_tls=implicit) as server:
        scheme = "smtps" if implicit else "smtp"
        command = [tool("curl"), "-sS", "--ssl-reqd", "--cacert", str(pems.ca), "--upload-file", str(message)]
        command += ["--mail-from", "<a@b.example>", "--mail-rcpt", "<c@d.example>"]
        command += ["--cert", str(pems.client), "--key", str(pems.client), f"{scheme}://{server.place}/curl.example"]
        if mechanism in ("XOAUTH2", "OAUTHBEARER"):
            right, wrong = (["--user", "anna", "--oauth2-bearer", each] for each in (TOKENS["tokens"]["anna"], "wrong"))
        else:
            right, wrong = (["--user", f"anna:{each}"] for each in ("pass word=:", "wrong"))
        if mechanism == "EXTERNAL":  # no password, and the certificate decides
            right = ["--user", "anna:"]
        command += ["--login-options", f"AUTH={mechanism}"]
        finish([*command, *right])
        finish([*command, *right, "--sasl-ir"])
        if mechanism == "EXTERNAL":
            finish([*command, "--user", ":", "--sasl-ir"])
        else:
            assert "Login denied" in finish([*command, *wrong], code=67).stderr
        arrived = server.wait(3 if mechanism == "EXTERNAL" else 2)
    for each in arrived:
        assert (each.text, each.tls, each.helo) == (HARD, "TLSv1.3", "curl.example")
        assert each.common_name == "relay.example"
        assert isinstance(each.credentials, KINDS[mechanism])
