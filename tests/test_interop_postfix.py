"""Postfix sends to us, by SMTP and LMTP: XFORWARD, DSN, TLS, replies per recipient; on asyncio's loop and on uvloop."""

from __future__ import annotations

import email
import email.policy
import pathlib
import shutil
import socket
import tempfile
from typing import Any

import pytest

from fastsmtp import DataContext, EnhancedCode, OriginalRecipient, RcptParams, Reply, SMTPError
from fastsmtp.session import HookResult

from .inprocess import Arrived, InProcess, LoopFactory, Recording
from .interop.postfix import Postfix, postfix
from .interop.tools import BOTH_LOOPS, HARD, Certificates

pytestmark = [pytest.mark.interop, BOTH_LOOPS]

SMTP_AND_LMTP = pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])

EIGHT = ["BODY=8BITMIME"]
CLIENT = "ADDR=192.0.2.7 NAME=client.example PORT=4321 HELO=hello.example PROTO=ESMTP"


def transport(server: InProcess, lmtp: bool) -> str:
    return f"lmtp:inet:{server.place}" if lmtp else f"smtp:[127.0.0.1]:{server.port}"


def wait(server: InProcess, running: Postfix, count: int = 1) -> list[Arrived]:
    """The messages; or what Postfix has to say."""
    arrived = server.inbox.wait(count)
    assert arrived is not None, f"{server.trace.getvalue()}\n{running.log()}"
    return arrived


def unwrapped(arrived: Arrived) -> bytes:
    """A message without the Received field that Postfix put in front."""
    lines = arrived.text.split(b"\r\n")
    assert lines[0].startswith(b"Received: from ")
    return b"\r\n".join(lines[next(number for number, line in enumerate(lines) if number and line[:1] not in b" \t") :])


@SMTP_AND_LMTP
def test_octets_and_envelope(loop: LoopFactory, lmtp: bool) -> None:
    with InProcess(loop, lmtp=lmtp) as server, postfix(transport(server, lmtp)) as running:
        running.submit(HARD, ["c@d.example", "e@d.example"], mail_options=EIGHT)
        running.submit(HARD, ["δ@d.example"], sender="josé@b.example", mail_options=["SMTPUTF8", *EIGHT])
        arrived = {each.sender: each for each in wait(server, running, 2)}
    plain, international = arrived["a@b.example"], arrived["josé@b.example"]
    assert unwrapped(plain) == unwrapped(international) == HARD
    assert sorted(plain.recipients) == ["c@d.example", "e@d.example"] and international.recipients == ("δ@d.example",)
    assert plain.mail_params.body == "8BITMIME" and plain.mail_params.size is not None
    assert international.mail_params.smtputf8 and not plain.mail_params.smtputf8
    assert plain.helo == "postfix.example" and plain.xforward is None
    assert plain.state.protocol == ("LMTP" if lmtp else "ESMTP")


@SMTP_AND_LMTP
def test_xforward(loop: LoopFactory, lmtp: bool) -> None:
    with InProcess(loop, lmtp=lmtp, allow_xforward=True) as server, postfix(transport(server, lmtp)) as running:
        running.submit(HARD, mail_options=EIGHT, client=CLIENT)
        (arrived,) = wait(server, running)
        xforward = arrived.xforward
        assert xforward is not None and xforward.ident
        running.logged(f"{xforward.ident}: client=client.example[192.0.2.7]")
    assert (xforward.name, xforward.addr, xforward.port) == ("client.example", "192.0.2.7", 4321)
    assert (xforward.proto, xforward.helo, xforward.source) == ("ESMTP", "hello.example", "REMOTE")
    assert xforward.tempunavail == frozenset()
    # What is forwarded is told apart from who is connected.
    address = arrived.state.remote_addr
    assert isinstance(address, tuple) and address[0] == "127.0.0.1"


@SMTP_AND_LMTP
def test_xforward_of_clients_that_differ(loop: LoopFactory, lmtp: bool) -> None:
    """IPv6, and a name that is not known: each message has what belongs to it, over one connection or several."""
    try:
        socket.socket(socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6")
    clients = {
        "v4@b.example": "ADDR=192.0.2.7 NAME=client.example PORT=4321",
        "v6@b.example": "ADDR=IPV6:2001:db8::7 NAME=[UNAVAILABLE] PORT=1234",
        "later@b.example": "ADDR=192.0.2.8 NAME=[TEMPUNAVAIL] PORT=[UNAVAILABLE]",
    }
    with InProcess(loop, lmtp=lmtp, allow_xforward=True) as server:
        with postfix(transport(server, lmtp), kept(lmtp) | {"inet_protocols": "all"}) as running:
            for sender, client in clients.items():
                running.submit(HARD, mail_options=EIGHT, sender=sender, client=client)
            arrived = wait(server, running, 3)
    told = {each.sender: each.xforward for each in arrived}
    assert {sender: each and (each.name, each.addr, each.port) for sender, each in told.items()} == {
        "v4@b.example": ("client.example", "192.0.2.7", 4321),
        "v6@b.example": (None, "2001:db8::7", 1234),
        "later@b.example": (None, "192.0.2.8", None),
    }
    assert len({each and each.ident for each in told.values()}) == 3


@SMTP_AND_LMTP
def test_dsn(loop: LoopFactory, lmtp: bool) -> None:
    with InProcess(loop, lmtp=lmtp, dsn=True) as server, postfix(transport(server, lmtp)) as running:
        running.submit(
            HARD,
            mail_options=["RET=HDRS", "ENVID=QQ+2B314159", *EIGHT],
            rcpt_options=["NOTIFY=SUCCESS,DELAY", "ORCPT=rfc822;c+2Bd@original.example"],
        )
        (arrived,) = wait(server, running)
        assert (arrived.mail_params.ret, arrived.mail_params.envid) == ("HDRS", "QQ+314159")
        (params,) = arrived.rcpt_params
        assert params.notify is not None and sorted(params.notify) == ["DELAY", "SUCCESS"]
        assert params.orcpt == OriginalRecipient("rfc822", "c+d@original.example")
        # Who offers DSN is left to notify: what comes next is the next message.
        running.submit(HARD, mail_options=EIGHT, rcpt_options=["NOTIFY=NEVER"], sender="never@b.example")
        _, second = wait(server, running, 2)
        assert second.rcpt_params[0].notify == ("NEVER",)


def kept(lmtp: bool) -> dict[str, str]:
    """One connection at a time, and it stays open for the next message."""
    name = "lmtp" if lmtp else "smtp"
    return {
        f"{name}_destination_concurrency_limit": "1",
        f"{name}_connection_cache_destinations": "127.0.0.1",
        f"{name}_connection_cache_time_limit": "60s",
        "connection_cache_ttl_limit": "60s",
    }


@SMTP_AND_LMTP
def test_without_dsn_postfix_notifies(loop: LoopFactory, lmtp: bool) -> None:
    with InProcess(loop, lmtp=lmtp) as server, postfix(transport(server, lmtp)) as running:
        running.submit(HARD, mail_options=["ENVID=abc", *EIGHT], rcpt_options=["NOTIFY=SUCCESS"])
        message, notice = wait(server, running, 2)
    assert message.rcpt_params == (RcptParams(),) and message.mail_params.envid is None
    assert (notice.sender, notice.recipients) == ("", ("a@b.example",))
    (status,) = statuses(notice)
    assert status["Action"] == "relayed" and status["Final-Recipient"] == "rfc822; c@d.example"
    assert "250 2.0.0" in status["Diagnostic-Code"]


def statuses(notice: Arrived) -> list[Any]:
    """The fields per recipient of a delivery status notification (RFC 3464)."""
    report = email.message_from_bytes(notice.text, policy=email.policy.default)
    assert report.get_content_type() == "multipart/report"
    (status,) = (part for part in report.walk() if part.get_content_type() == "message/delivery-status")
    blocks: Any = status.get_payload()
    return list(blocks[1:])


class Choosy(Recording):
    """Refuses some at RCPT and, by LMTP, one after the message."""

    def rcpt(self, recipient: str, params: RcptParams) -> HookResult:
        if recipient.startswith("nobody"):
            raise SMTPError(550, EnhancedCode(5, 1, 1), "Nobody of that name")
        return super().rcpt(recipient, params)

    def answer(self, context: DataContext) -> Reply | None:
        if "full@d.example" in context.recipients:
            context.set_status("full@d.example", Reply(552, EnhancedCode(5, 2, 2), "Mailbox full"))
        return None


@SMTP_AND_LMTP
def test_replies_of_each_recipient(loop: LoopFactory, lmtp: bool) -> None:
    """What we say to one recipient is what its sender reads in the bounce."""
    with InProcess(loop, session=Choosy, lmtp=lmtp) as server, postfix(transport(server, lmtp)) as running:
        everybody = ["c@d.example", "nobody@d.example", "full@d.example", "e@d.example"]
        running.submit(HARD, everybody, mail_options=EIGHT)
        message, bounce = wait(server, running, 2)
    assert sorted(message.recipients) == ["c@d.example", "e@d.example", "full@d.example"]
    assert (bounce.sender, bounce.recipients) == ("", ("a@b.example",))
    told = {str(each["Final-Recipient"]): each for each in statuses(bounce)}
    expected = {"rfc822; nobody@d.example": ("5.1.1", "550 5.1.1 Nobody of that name")}
    if lmtp:  # by SMTP a message has one answer
        expected["rfc822; full@d.example"] = ("5.2.2", "552 5.2.2 Mailbox full")
    assert told.keys() == expected.keys()
    for recipient, (code, text) in expected.items():
        assert told[recipient]["Status"] == code
        assert " ".join(told[recipient]["Diagnostic-Code"].split()) == f"smtp; {text}"


class Later(Recording):
    """Takes each message only the second time."""

    def answer(self, context: DataContext) -> Reply | None:
        later = Reply(451, EnhancedCode(4, 3, 2), "Come back")
        return later if len(self.inbox.taken()) == 1 else None


@SMTP_AND_LMTP
def test_a_message_that_is_put_off_comes_again(loop: LoopFactory, lmtp: bool) -> None:
    with InProcess(loop, session=Later, lmtp=lmtp) as server, postfix(transport(server, lmtp)) as running:
        running.submit(HARD, mail_options=EIGHT)
        running.logged("status=deferred (host 127.0.0.1[127.0.0.1] said: 451 4.3.2 Come back")
        for _ in range(30):  # it is passed over as long as its first delivery has not quite ended
            running.flush()
            if server.inbox.wait(2, 2) is not None:
                break
        first, second = wait(server, running, 2)
        assert first.text == second.text and unwrapped(first) == HARD


@SMTP_AND_LMTP
def test_tls(loop: LoopFactory, lmtp: bool, tmp_path: pathlib.Path) -> None:
    pems = Certificates.make(tmp_path)
    name = "lmtp" if lmtp else "smtp"
    with InProcess(loop, lmtp=lmtp, tls=pems.tls(), require_tls=True, allow_xforward=True) as server:
        with postfix(transport(server, lmtp), tls_settings(name, pems)) as running:
            for path in (pems.ca, pems.client):
                shutil.copy(path, running.root)
            running.submit(HARD, mail_options=EIGHT, client=CLIENT)
            (arrived,) = wait(server, running)
            running.logged("Verified TLS connection established to 127.0.0.1[127.0.0.1]")
    assert unwrapped(arrived) == HARD
    assert arrived.tls == "TLSv1.3" and arrived.common_name == "relay.example"
    assert arrived.xforward is not None and arrived.xforward.addr == "192.0.2.7"


def tls_settings(name: str, pems: Certificates) -> dict[str, str]:
    """Postfix as a client that insists on the authority and shows a certificate; the files are in its own directory."""
    return {
        f"{name}_tls_security_level": "secure",
        f"{name}_tls_secure_cert_match": "mx.example",
        f"{name}_tls_CAfile": f"$config_directory/{pems.ca.name}",
        f"{name}_tls_cert_file": f"$config_directory/{pems.client.name}",
        f"{name}_tls_key_file": f"$config_directory/{pems.client.name}",
        f"{name}_tls_loglevel": "1",
    }


@SMTP_AND_LMTP
def test_many_messages_over_kept_connections(loop: LoopFactory, lmtp: bool) -> None:
    with InProcess(loop, lmtp=lmtp, allow_xforward=True) as server:
        with postfix(transport(server, lmtp), kept(lmtp)) as running:
            for number in range(40):
                running.submit(HARD, [f"{number}@d.example"], mail_options=EIGHT)
            arrived = wait(server, running, 40)
        assert server.server.counters.connections_total < 20
    assert sorted(int(each.recipients[0].partition("@")[0]) for each in arrived) == list(range(40))
    assert {unwrapped(each) for each in arrived} == {HARD}
    assert len({each.xforward and each.xforward.ident for each in arrived}) == 40


def test_lmtp_over_a_unix_socket(loop: LoopFactory) -> None:
    with tempfile.TemporaryDirectory(prefix="lmtp-") as folder:
        path = pathlib.Path(folder, "socket")
        options: dict[str, Any] = {
            "addr": "",
            "unix_socket": path,
            "lmtp": True,
            "dsn": True,
            "allow_xforward": ["unix"],
        }
        with InProcess(loop, **options) as server, postfix(f"lmtp:unix:{path}") as running:
            path.parent.chmod(0o755)  # Postfix delivers as a user of its own
            path.chmod(0o666)
            running.submit(HARD, mail_options=["ENVID=abc", *EIGHT], client=CLIENT)
            (arrived,) = wait(server, running)
    assert unwrapped(arrived) == HARD
    assert arrived.state.protocol == "LMTP" and not isinstance(arrived.state.remote_addr, tuple)
    assert arrived.xforward is not None and arrived.xforward.addr == "192.0.2.7"
    assert arrived.mail_params.envid == "abc"
