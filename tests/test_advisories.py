"""Others' mistakes: a test for each class of fault that mail software is publicly known for, named after the class.

Each docstring cites where it was found.  Some of it other tests show more thoroughly; here stands what the advisory tells.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib
import io
import itertools
import pathlib
import pkgutil
import re
import ssl
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import fastsmtp
from fastsmtp import (
    Client,
    ClientOptions,
    ConfigurationError,
    ConnectionLost,
    DefaultBackend,
    DefaultSession,
    MailParams,
    OriginalRecipient,
    RcptParams,
    Reply,
    Server,
    ServerOptions,
    TLSFiles,
    limits,
)
from fastsmtp.address import AddressError, parse_forward_path, split_mailbox
from fastsmtp.delivery import Maildir, MaildirBackend
from fastsmtp.errors import HeaderError, LineTooLong, ProtocolError
from fastsmtp.extensions import Offer
from fastsmtp.protocol import Body, MailFrom, RcptTo, ServerProfile, ServerProtocol
from fastsmtp.protocol.client import ClientProtocol
from fastsmtp.protocol.events import ANSWERED
from fastsmtp.protocol.proxy import encode_proxy_v1, encode_proxy_v2
from fastsmtp.protocol.replies import ReplyReader
from fastsmtp.sasl import SERVERS, LoginClient, PlainClient

from .certificates import Authority
from .client_support import ALL, GO, OK, greeted, tell
from .dialogue import CUTS, cut
from .fake_server import fake
from .loops import Runner
from .test_auth import Answering, authenticating_core
from .test_faults import Clock, Wire, conns
from .test_shell import Client as RawClient
from .test_textproto_twins import twin as twin  # a fixture
from .test_tls import core as starttls_core
from .test_tls import said as said_to

GREETED = b"EHLO client.example\r\n"
ENVELOPE = b"MAIL FROM:<a@b.example>\r\nRCPT TO:<c@d.example>\r\n"
SMUGGLED = b"MAIL FROM:<evil@b.example>\r\nRCPT TO:<c@d.example>\r\nDATA\r\nSubject: smuggled\r\n\r\n.\r\n"


def core(**fields: Any) -> ServerProtocol:
    protocol = ServerProtocol(ServerProfile(ServerOptions(**fields)))
    protocol.greet()
    protocol.data_to_send()
    return protocol


def talk(protocol: ServerProtocol, data: bytes, how: str = "whole") -> tuple[list[str], list[Any]]:
    """Say it in pieces and accept everything: the codes of the replies, and the events."""
    events: list[Any] = []
    out = b""
    for piece in cut(data, how):
        protocol.receive_data(piece)
        while (event := protocol.next_event()) is not None:
            if event is not ANSWERED:
                events.append(event)
            if protocol.awaiting_reply:
                protocol.reply()
        out += protocol.data_to_send()
    lines = out.decode().split("\r\n")
    assert lines.pop() == ""
    return [line[:3] for line in lines if line[3:4] != "-"], events


# The end of a message

BREAKS = {
    "LF": b"\n",
    "CR": b"\r",
    "CRLF": b"\r\n",
    "CRCRLF": b"\r\r\n",
    "LFCR": b"\n\r",
    "CRNULLF": b"\r\0\n",
    "NULCRLF": b"\0\r\n",
    "CRLFNUL": b"\r\n\0",
    "NUL": b"\0",
    "blank CRLF": b" \r\n",
    "CRLF blank": b"\r\n ",
    "VT": b"\x0b",
    "FF": b"\x0c",
    "RS": b"\x1e",
    "NEL in Latin-1": b"\x85",
    "NEL in UTF-8": b"\xc2\x85",
    "LS in UTF-8": b"\xe2\x80\xa8",
    "LF overlong": b"\xc0\x8a",
    "LF in EBCDIC": b"\x25",
    "CRLF in UTF-16": b"\0\r\0\n",
    "nothing": b"",
}


@pytest.mark.parametrize("how", ["whole", "octets"])
@pytest.mark.parametrize("policy", ["reject", "normalize", "keep"])
def test_end_of_data_smuggling(policy: str, how: str) -> None:
    """CVE-2023-51764 (Postfix), CVE-2023-51765 (sendmail), CVE-2023-51766 (Exim), CVE-2023-51747 (James), CVE-2024-27305 (aiosmtpd).

    CERT/CC VU#302671: whatever else another server takes for CR LF "." CR LF is text here: one message or one refusal.
    """
    for before, after in itertools.product(BREAKS.values(), repeat=2):
        text = b"text" + before + b"." + after + SMUGGLED
        if b"\r\n.\r\n" in text[: -len(SMUGGLED)]:
            continue  # which is the end
        protocol = core(bare_newlines=policy, max_errors=0)
        codes, events = talk(protocol, GREETED + ENVELOPE + b"DATA\r\n" + text + b"NOOP\r\n", how)
        assert codes[:4] == ["250", "250", "250", "354"]
        assert codes[4:] in (["250", "250"], ["550", "250"]), (before, after, codes)
        assert [event.sender for event in events if isinstance(event, MailFrom)] == ["a@b.example"]
        assert sum(isinstance(event, Body) and event.ended for event in events) == 1
        assert protocol.sender is None and protocol.errors == 0


@pytest.mark.parametrize("chunking", [False, True])
def test_smuggling_through_the_client(chunking: bool) -> None:
    """VU#302671, SEC Consult's "SMTP Smuggling": the other half of the fault is a server that sends on what the next one misreads.

    What our client sends has no line end but CR LF and no dot at a line's beginning but a doubled one, so no server, strict or not,
    finds an end in it before ours.
    """
    ends = [first + b"." + second for first in (b"\n", b"\r", b"\r\n") for second in (b"\n", b"\r", b"\r\n")]
    for before, after in itertools.product(BREAKS.values(), repeat=2):
        protocol = greeted(b"CHUNKING" if chunking else b"SIZE")
        one = protocol.transaction("a@b.example", ["c@d.example"], chunking=chunking)
        sent = b""
        for reply in (OK, OK) if chunking else (OK, OK, GO):
            sent += protocol.data_to_send()
            tell(protocol, reply)
        assert one.wants_body
        one.finish(b"text" + before + b"." + after + SMUGGLED)
        wire = protocol.data_to_send()
        if chunking:
            head, _, body = wire.partition(b"\r\n")
            assert head == b"BDAT %d LAST" % len(body)
            assert b"\r" not in body.replace(b"\r\n", b"") and b"\n" not in body.replace(b"\r\n", b"")
        else:
            assert wire.endswith(b"\r\n.\r\n")
            body = wire[:-3]
            assert not any(end in body for end in ends)
            assert b"\r" not in body.replace(b"\r\n", b"") and b"\n" not in body.replace(b"\r\n", b"")


# STARTTLS


@pytest.mark.parametrize("how", CUTS)
def test_plaintext_injected_at_starttls(how: str) -> None:
    """CVE-2011-0411 (Postfix and others, CERT/CC VU#555316), CVE-2021-33515 (Dovecot's submission), CVE-2024-34083 (aiosmtpd).

    What came in plaintext behind STARTTLS is not run under TLS: not as a command, and not as a message that swallows the login.
    """
    evil = b"RSET\r\n" + GREETED + ENVELOPE + b"DATA\r\n"
    protocol = starttls_core()
    said_to(protocol, GREETED)
    if how == "whole":  # in one segment, as in the advisory; TLS begins before the next one is read
        assert said_to(protocol, b"STARTTLS\r\n" + evil) == ["220 2.0.0 Ready to start TLS"]
    else:  # or in more, all of them before STARTTLS comes to its turn
        protocol.receive_data(b"VRFY somebody\r\n")
        protocol.next_event()
        assert protocol.awaiting_reply
        for piece in cut(b"STARTTLS\r\n" + evil, how):
            protocol.receive_data(piece)
        protocol.reply()
        assert said_to(protocol, b"")[1:] == ["220 2.0.0 Ready to start TLS"]
    assert (protocol.buffered, protocol.in_body, protocol.sender, protocol.hello) == (0, False, None, "")
    assert "250-AUTH PLAIN" in said_to(protocol, GREETED)


@pytest.mark.parametrize("how", CUTS)
def test_responses_injected_at_starttls(how: str) -> None:
    """Poddebniak, Ising, Böck, Schinzel: "Why TLS is better without STARTTLS" (USENIX Security 2021), CVE-2021-38371 (Exim).

    Replies that a client was sent in plaintext behind the 220 would be taken for those of the TLS session.
    """
    for evil in (b"250 evil\r\n", b"250-evil\r\n250 AUTH PLAIN\r\n", b"235 2.7.0 welcome\r\n", b"2", b"\r\n", b"\0"):
        protocol = greeted()
        protocol.start_tls()
        assert protocol.data_to_send() == b"STARTTLS\r\n"
        with pytest.raises(ProtocolError):
            tell(protocol, b"220 go on\r\n" + evil, how)
        assert protocol.closing and not protocol.tls and protocol.data_to_send() == b""


@pytest.mark.parametrize(
    "replies",
    [{}, {"EHLO": b"250-mx\r\n250 STARTTLS\r\n", "STARTTLS": b"454 4.7.0 not now\r\n"}, {"EHLO": b"502 what?\r\n"}],
    ids=["not offered", "refused", "no EHLO"],
)
def test_starttls_stripped(run: Runner, replies: dict[str, bytes]) -> None:
    """CVE-2016-0772 (Python's smtplib): who cuts STARTTLS out of the dialogue gets no mail and no password."""

    async def main() -> None:
        async with fake(replies) as server:
            with pytest.raises(ConnectionLost):
                async with Client("127.0.0.1", server.port, starttls="required") as client:
                    await client.login("anna", "secret")
            assert {line.split(" ")[0] for line in server.lines} <= {"EHLO", "HELO", "STARTTLS", "QUIT"}

    run(main)


# Injection into commands

INJECTIONS = {
    "CRLF": "\r\nDATA\r\n",
    "LF": "\nDATA\n",
    "CR": "\rDATA\r",
    "a CR at the end": "\r",
    "a LF at the end": "\n",
    "NUL": "\0",
    "NEL": "\x85DATA",
    "LS": "\u2028DATA",
    "CRLF in the low octets": "\u010d\u010aDATA\u010d\u010a",
    "a surrogate": "\udc0d\udc0a",
}
UTF8 = MailParams(smtputf8=True)
ARGUMENTS: dict[str, Callable[[ClientProtocol, str], object]] = {
    "sender": lambda client, evil: client.mail(f"a{evil}@b.example", UTF8),
    "sender's domain": lambda client, evil: client.mail(f"a@b.example{evil}", UTF8),
    "quoted sender": lambda client, evil: client.mail(f'"a{evil}"@b.example', UTF8),
    "recipient": lambda client, evil: client.transaction("a@b.example", [f"c@d.example>{evil}"], UTF8),
    "quoted recipient": lambda client, evil: client.transaction("a@b.example", [f'"c{evil}"@d.example'], UTF8),
    "ENVID": lambda client, evil: client.mail("a@b.example", MailParams(envid=f"x{evil}", smtputf8=True)),
    "RET": lambda client, evil: client.mail("a@b.example", MailParams(ret=f"FULL{evil}")),
    "BODY": lambda client, evil: client.mail("a@b.example", MailParams(body=f"8BITMIME{evil}")),
    "SIZE": lambda client, evil: client.mail("a@b.example", MailParams(size=f"1{evil}")),  # type: ignore[arg-type]
    "AUTH": lambda client, evil: client.mail("a@b.example", MailParams(auth=f"a@b{evil}", smtputf8=True)),
    "NOTIFY": lambda client, evil: client.transaction(
        "a@b.example", [("c@d.example", RcptParams(notify=(f"NEVER{evil}",)))]
    ),
    "ORCPT": lambda client, evil: client.transaction(
        "a@b.example", [("c@d.example", RcptParams(orcpt=OriginalRecipient("rfc822", f"c@d{evil}")))]
    ),
    "VRFY": lambda client, evil: client.verify(f"x{evil}"),
    "EXPN": lambda client, evil: client.expand(f"x{evil}"),
    "HELP": lambda client, evil: client.help(f"x{evil}"),
    "another verb": lambda client, evil: client.command(f"ETRN{evil}"),
    "its argument": lambda client, evil: client.command("ETRN", f"x{evil}"),
    "user": lambda client, evil: client.auth(PlainClient(f"joe{evil}", "secret")),
}


@pytest.mark.parametrize("evil", INJECTIONS.values(), ids=INJECTIONS)
@pytest.mark.parametrize("where", ARGUMENTS)
def test_commands_injected_through_arguments(where: str, evil: str) -> None:
    """CVE-2015-9096 (Ruby's Net::SMTP), bpo-43124 (Python's smtplib), GHSA-c7w3-x93f-qmm8 (nodemailer: SIZE), CVE-2025-7962 (Jakarta Mail).

    Terada, "SMTP Injection via recipient email addresses" (MBSD, 2015).  An argument is refused before an octet is sent, or it stays
    within its one line.
    """
    client = greeted(b"SIZE" if where == "SIZE" else ALL)
    client.data_to_send()
    try:
        ARGUMENTS[where](client, evil)
    except (ProtocolError, ValueError):
        assert client.data_to_send() == b"" and client.awaiting is None
        return
    wire = client.data_to_send()
    lines = wire.split(b"\r\n")
    verbs = [line.split(b" ")[0] for line in lines[:-1]]
    assert lines[-1] == b"" and b"\n" not in b"".join(lines) and b"\r" not in b"".join(lines) and b"\0" not in wire
    assert verbs in ([b"MAIL"], [b"MAIL", b"RCPT", b"DATA"], [b"VRFY"], [b"EXPN"], [b"AUTH"]), wire
    # What may hold anything is encoded, and what SMTPUTF8 allows is sent as UTF-8: a character's low octet is never a line end.
    assert where in ("ENVID", "ORCPT", "user", "AUTH") or evil.isprintable()


@pytest.mark.parametrize("evil", INJECTIONS.values(), ids=INJECTIONS)
def test_commands_injected_through_options(evil: str) -> None:
    """GHSA-vvjj-xcjg-gr5g (nodemailer): the name that a client calls itself."""
    with pytest.raises(ConfigurationError):
        ClientOptions(host="mx.example", local_hostname=f"client.example{evil}")
    with pytest.raises(ProtocolError):
        ClientProtocol(hello_name=f"client.example{evil}")


@pytest.mark.parametrize("how", CUTS)
def test_commands_injected_into_a_line(how: str) -> None:
    """The server's half of the same (RFC 5321 2.3.8): a line that another server splits at CR, LF or NUL is one command here, and is refused."""
    for evil in (b"\n", b"\r", b"\n\r", b"\r\r", b"\0", b"\r\0\n"):
        for line in (b"MAIL FROM:<a@b.example>%bRCPT TO:<c@d.example>\r\n", b"NOOP%b" + GREETED, b"VRFY x%b\r\n"):
            codes, events = talk(core(), GREETED + line % evil + b"NOOP\r\n", how)
            assert codes == ["250", "500", "250"], (line, evil)
            assert len(events) == 1
    # Nor does what an xtext hides come out as a line (RFC 3461 section 4): it is refused, or is one value.
    codes, events = talk(core(dsn=True), GREETED + b"MAIL FROM:<a@b.example> ENVID=x+0D+0ADATA\r\n", how)
    assert codes[1:] in (["501"], ["250"])
    assert all("\r" not in str(event.params.envid) for event in events if isinstance(event, MailFrom))


# Chunks


@pytest.mark.parametrize("how", CUTS)
def test_chunks_are_counted_not_looked_at(how: str) -> None:
    """CVE-2017-16943 and CVE-2017-16944 (Exim): BDAT while "." ends a message, and what is not a size."""
    for text in (b".\r\n", b"\r\n.\r\n", b"BDAT 1 LAST\r\n", b"QUIT\r\n"):
        protocol = core()
        codes, events = talk(
            protocol, GREETED + ENVELOPE + b"BDAT %d\r\n%bBDAT 0 LAST\r\nNOOP\r\n" % (len(text), text), how
        )
        assert codes == ["250", "250", "250", "250", "250", "250"]
        assert b"".join(event.payload for event in events if isinstance(event, Body)) == text
    sizes = (b"", b"-1", b"+1", b"0x1", b"1e3", b"1.0", b"1 1", "\u0661".encode(), b"1 LASTX", b"1LAST", b"9" * 21)
    for size in sizes:
        codes, events = talk(core(), GREETED + ENVELOPE + b"BDAT " + size + b"\r\n.\r\nQUIT\r\nNOOP\r\n", how)
        assert codes == ["250", "250", "250", "501"] and len(events) == 3  # and nothing behind it is read


@pytest.mark.parametrize("size", [2**31 - 1, 2**31, 2**32, 2**63 - 1, 2**63, 2**64 + 1])
def test_the_size_of_a_chunk_is_no_memory(size: int) -> None:
    """CWE-789: nothing is allocated for what a chunk says it will be, and no size wraps around."""
    protocol = core(max_message_bytes=0)
    codes, events = talk(protocol, GREETED + ENVELOPE + b"BDAT %d LAST\r\n" % size + b"x" * 1000 + b"\r\nQUIT\r\n")
    assert codes == ["250", "250", "250"] and not protocol.closing and protocol.buffered == 0
    assert sum(len(event.payload) for event in events if isinstance(event, Body)) == 1008
    codes, _ = talk(core(), GREETED + ENVELOPE + b"BDAT %d LAST\r\n" % size + b"QUIT\r\n")
    assert codes == ["250", "250", "250"]  # refused when its octets are over, which will take a while


# AUTH


@pytest.mark.parametrize("how", ["whole", "octets"])
def test_responses_of_every_length(how: str) -> None:
    """CVE-2018-6789 (Exim: base64 of 4n + 3 characters), CVE-2023-42115 (Exim: a number within a response), CVE-2023-42116."""
    for length, octet in itertools.product(range(1, 70), (b"A", b"=", b"/", b"-", b"\xff", b"*")):
        for command in (
            b"AUTH PLAIN %b\r\n",
            b"AUTH PLAIN\r\n%b\r\n",
            b"AUTH LOGIN %b\r\n*\r\n",
            b"AUTH LOGIN\r\n%b\r\n*\r\n",
        ):
            protocol = authenticating_core(max_errors=0)
            answer = Answering()
            out = b""
            for piece in cut(GREETED + command % (octet * length) + b"NOOP\r\n", how):
                protocol.receive_data(piece)
                while (event := protocol.next_event()) is not None:
                    answer(protocol, event)
                out += protocol.data_to_send()
            assert out.endswith(b"250 2.0.0 OK\r\n") and not protocol.authenticated, (length, octet, command)


@pytest.mark.parametrize("first", sorted(set(SERVERS) - {"SCRAM-SHA-256-PLUS"}))
def test_a_mechanism_after_one_that_failed(first: str) -> None:
    """CVE-2011-1720 (Postfix with Cyrus SASL): nothing of a failed exchange is left for the next mechanism."""
    right = base64.b64encode(b"\0anna\0pencil")
    for second in ("PLAIN", "LOGIN"):
        protocol = authenticating_core(max_errors=0)
        protocol.offer = Offer(protocol.offer.options, auth=tuple(sorted(SERVERS)))
        answer = Answering()
        words = [
            b"AUTH " + first.encode(),
            right,
            b"*",
            b"AUTH " + second.encode(),
            right,
            b"*",
            b"AUTH PLAIN " + right,
        ]
        for line in (GREETED[:-2], *words):
            protocol.receive_data(line + b"\r\n")
            while (event := protocol.next_event()) is not None:
                answer(protocol, event)
        assert protocol.authenticated and protocol.data_to_send().count(b"235 ") == 1


# Long and odd arguments


@pytest.mark.parametrize("how", ["whole", "octets"])
def test_the_longest_names(how: str) -> None:
    """CVE-2019-16928 (Exim: a long EHLO); names and addresses that end in a backslash, as in CVE-2019-15846."""
    for name in (
        b"a" * 255,
        b"a." * 127 + b"a",
        b"a" * 2000,
        b"a\\",
        b"\\",
        b"[" + b"1" * 254,
        b"[IPv6:" + b":" * 240 + b"]",
    ):
        codes, _ = talk(core(), b"EHLO " + name + b"\r\nNOOP\r\n", how)
        assert codes in (["501", "250"], ["250", "250"]), name
    for path in (b'<"a\\">', b'<"a\\"@b.example>', b'<"\\', b"<a\\@b.example>", b"<a@b.example\\>"):
        codes, events = talk(core(), GREETED + b"MAIL FROM:" + path + b"\r\nNOOP\r\n", how)
        assert codes == ["250", "501", "250"] and len(events) == 1, path


@pytest.mark.parametrize("name", ["a\\", "\\", "*", "*.example", "x" * 63, "a" * 63 + ".example", "MX.Example"])
def test_server_names_of_clients(tmp_path: pathlib.Path, name: str) -> None:
    """CVE-2019-15846 (Exim: a server name in TLS that ends in a backslash): it picks a certificate, or none of its own, and that is all."""
    authority = Authority(tmp_path)
    own, other = authority.issue(), authority.issue("other.example")
    files = TLSFiles(own, by_name={"mx.example": (own, None), "*.other.example": (other, None)})
    ours, theirs = ssl.MemoryBIO(), ssl.MemoryBIO()
    context = authority.client()
    context.check_hostname = False
    client = context.wrap_bio(theirs, ours, server_hostname=name)
    server = files().wrap_bio(ours, theirs, server_side=True)
    done = 0
    for _ in range(10):
        for side in (client, server):
            with contextlib.suppress(ssl.SSLWantReadError):
                side.do_handshake()
                done += 1
    assert done >= 2
    certificate = client.getpeercert()
    assert certificate is not None and ("DNS", "mx.example") in certificate["subjectAltName"]


def test_names_for_a_shell_stay_names(tmp_path: pathlib.Path) -> None:
    """CVE-2019-10149 (Exim expands a recipient), CVE-2020-7247 (OpenSMTPD gives a sender to a shell): an address is never run nor a path."""
    senders = [";touch${IFS}x;", "$(touch x)", "`touch x`", "|touch x", "${run{/bin/touch x}}"]
    recipients = ["${run{\\x2fbin\\x2ftouch\\x20x}}", "../../x", "/etc/x", "|x", "~/x", "..", "x/../../new/y"]

    async def main() -> None:
        async with Maildir(tmp_path / "box") as maildir:
            async with Server(MaildirBackend(maildir, domain="mx.example"), addr="127.0.0.1:0") as server:
                for sender, recipient in itertools.product(senders, recipients):
                    quoted = (f'"{each}"'.replace("\\", "\\\\") for each in (sender, recipient))
                    async with Client("127.0.0.1", server.port) as client:
                        mailboxes = [f"{each}@b.example" for each in quoted]
                        (delivery,) = await client.send_message(mailboxes[0], [mailboxes[1]], b"Subject: x\r\n\r\n")
                        assert delivery.reply.accepted, (sender, recipient, delivery.reply)

    asyncio.run(main())
    assert [each.name for each in tmp_path.iterdir()] == ["box"]
    assert sorted(each.name for each in (tmp_path / "box").iterdir()) == ["cur", "new", "tmp"]
    messages = [each.read_bytes() for each in (tmp_path / "box" / "new").iterdir()]
    assert len(messages) == len(senders) * len(recipients)
    assert all(each.startswith(b'Return-Path: <"') and each.endswith(b"\r\nSubject: x\r\n\r\n") for each in messages)


@pytest.mark.parametrize(
    ("path", "local", "domain"),
    [
        ('<"evil@attacker.example x"@internal.example>', '"evil@attacker.example x"', "internal.example"),
        ('<"a@b"@c.example>', '"a@b"', "c.example"),
        ('<"a\\"@b.example\\""@c.example>', '"a\\"@b.example\\""', "c.example"),
        ('<"<evil@attacker.example>"@c.example>', '"<evil@attacker.example>"', "c.example"),
        ('<"a,b;c:d"@c.example>', '"a,b;c:d"', "c.example"),
    ],
)
def test_quoted_local_parts_stay_whole(path: str, local: str, domain: str) -> None:
    """CVE-2025-13033 (nodemailer, GHSA-mm7p-fcc7-pg87): mail for one domain went to the one in the quotes."""
    mailbox, end = parse_forward_path(path)[:2]
    assert split_mailbox(mailbox) == (local, domain) and end == len(path)
    _, events = talk(core(), GREETED + b"MAIL FROM:<>\r\nRCPT TO:" + path.encode() + b"\r\n")
    assert [event.recipient for event in events if isinstance(event, RcptTo)] == [mailbox]
    client = greeted()
    client.data_to_send()
    client.transaction("", [mailbox])
    assert b"RCPT TO:<" + mailbox.encode() + b">\r\n" in client.data_to_send()


@pytest.mark.parametrize(
    "path", ["<a@evil.example@c.example>", "<a@c.example@>", "<a@b(c)>", "<a@b>c@d>", '<"a"b@c>', "<a@b@>"]
)
def test_two_domains_are_none(path: str) -> None:
    """CVE-2019-16056 and CVE-2023-27043 (Python's email): what different parsers find different domains in is refused."""
    codes, events = talk(core(), GREETED + b"MAIL FROM:<>\r\nRCPT TO:" + path.encode() + b"\r\n")
    assert codes == ["250", "250", "501"] and len(events) == 2
    with pytest.raises(AddressError):
        greeted().transaction("", [path[1:-1]])


# Replies that flood a client


@pytest.mark.parametrize(
    "piece",
    [
        b"2",
        b"250-x",
        b"250-x\r\n",
        b"250-\r\n",
        b"250 " + b"x" * 400,
        b"220-" + b"x" * 400 + b"\r\n",
        b"\0",
        b"\r",
        b"\n",
    ],
)
def test_replies_without_end(piece: bytes) -> None:
    """CVE-2013-1752 (Python: smtplib reads lines of any length), CVE-2020-8794 (OpenSMTPD: a reply of many lines), CVE-2019-3823 (curl)."""
    reader = ReplyReader()
    fed = 0
    with pytest.raises(ProtocolError):
        while fed < 10 * limits.REPLY_BYTES:
            reader.feed(piece)
            fed += len(piece)
            assert reader.next_reply() is None
            assert reader.buffered <= limits.REPLY_BYTES + len(piece)
    assert fed <= limits.REPLY_BYTES + len(piece)


def test_challenges_without_end() -> None:
    """A server that goes on asking is left, and is not told a password twice."""
    client = greeted()
    client.data_to_send()
    client.auth(LoginClient("joe", "secret"))
    sent = b""
    with pytest.raises(ProtocolError):
        for _ in range(10):
            tell(client, b"334 UGFzc3dvcmQ6\r\n")
            sent += client.data_to_send()
    assert client.closing and sent.count(base64.b64encode(b"secret")) == 1


def test_a_next_hops_reply_stays_a_reply() -> None:
    """CVE-2020-8794 (OpenSMTPD): lines of a reply became lines of the queue.  Whatever a text holds, it makes one reply."""
    reader = ReplyReader()
    reader.feed(b"550-5.1.1 x\ntype: mda\r\n550 dispatcher: x\r250 ok\r\n")
    with pytest.raises(ProtocolError):
        reader.next_reply()
    reader = ReplyReader()
    reader.feed(b"550-5.1.1 a\x00b\r\n550 5.1.1 \x1b[31m\xe2\x80\xa8 250 ok\r\n")
    reply = reader.next_reply()
    assert reply is not None
    lines = Reply(reply.code, reply.enhanced_code, reply.message + "\r\n250 ok").encode().split(b"\r\n")
    assert [line[:3] for line in lines] == [b"550", b"550", b"550", b""]
    assert all(line.decode().isprintable() for line in lines)


# Exhaustion


@pytest.mark.parametrize("begin", [b"", b"EHLO x\r\n", b"EHLO x\r\n" + ENVELOPE])
def test_slow_clients(run: Runner, begin: bytes) -> None:
    """CVE-2007-6750 (Slowloris): an octet now and then renews no deadline, whatever is being waited for."""

    async def main() -> None:
        options = ServerOptions(addr="127.0.0.1:0", read_timeout=100)
        async with Server(DefaultBackend(DefaultSession), options=options) as server:
            wire = Wire(server)
            clock = Clock(server)
            wire.feed(begin)
            for _ in range(11):
                clock.advance(9)
                wire.conn.data_received(b"x")
            assert not wire.eof
            clock.advance(9)
            assert wire.eof and wire.taken()[-1] == "421"
            wire.close()

    run(main)


def test_many_connections(run: Runner) -> None:
    """CWE-770, RFC 5321 7.8: whoever comes too often is told so, and leaves room to the others."""

    async def main() -> None:
        options = ServerOptions(
            addr="127.0.0.1:0", max_connections=10, max_connections_per_address=8, max_connection_rate=30
        )
        async with Server(DefaultBackend(DefaultSession), options=options) as server:
            greetings = []
            for _ in range(3):
                clients = [RawClient(server) for _ in range(12)]
                for each in clients:
                    await each.__aenter__()
                greetings += [(await each.line())[:3] for each in clients]
                assert len(conns(server)) <= 12
                for each in clients:
                    await each.__aexit__()
                while server.counters.connections:
                    await asyncio.sleep(0)
            assert greetings[:12] == ["220"] * 8 + ["421"] * 4
            assert greetings.count("220") <= 24 and set(greetings) == {"220", "421"}

    run(main)


@pytest.mark.parametrize(
    "block",
    [
        b"X-A: b\r\n" * 200_000,
        b"Subject: x\r\n" + b" y\r\n" * 400_000,
        b"X" * 2_000_000,
        b"X: " + b"y" * 2_000_000 + b"\r\n",
        b"".join(b"X-%d:\r\n" % number for number in range(100_000)),
    ],
    ids=["fields", "continuations", "a name", "a value", "names"],
)
def test_header_bombs(twin: Any, block: bytes) -> None:
    """CVE-2023-24534 and CVE-2023-45290 (Go's net/textproto): a header has a number of fields and of octets, and then it is refused."""
    with pytest.raises((HeaderError, LineTooLong)):
        twin.parse_header_block(block + b"\r\n", 0, limits.HEADER_FIELDS, limits.HEADER_BYTES)


def test_many_recipients_and_parameters() -> None:
    """CWE-400: a line full of parameters is refused as one, and who names recipients for ever ends at the limit."""
    protocol = core(max_recipients=100, max_errors=0, dsn=True)
    talk(protocol, GREETED)
    for word in (b" SIZE=1", b" x", b" =", b" RET=FULL", b" A=" + b"b" * 100):
        line = b"MAIL FROM:<a@b.example>" + word * ((limits.COMMAND_LINE - 25) // len(word)) + b"\r\n"
        assert talk(protocol, line)[0] in (["501"], ["555"]), word
    codes, _ = talk(protocol, b"MAIL FROM:<>\r\n" + b"RCPT TO:<c@d.example>\r\n" * 5000)
    assert codes == ["250"] * 101 + ["452"] * 4900 and len(protocol.recipients) == 100


def repeats(parsed: Any, within: bool = False) -> Iterator[tuple[str, int, bool]]:
    """The repetitions of a parsed expression: name, upper bound, and whether it is within another."""
    for operation, argument in parsed:
        name = str(operation)
        repeat = name.endswith("_REPEAT")
        if repeat:
            yield name, int(argument[1]), within
        inner = within or (repeat and int(argument[1]) > 1)
        for part in argument if isinstance(argument, (tuple, list)) else (argument,):
            if type(part).__name__ == "SubPattern":
                yield from repeats(part, inner)
            elif isinstance(part, list):
                for branch in part:
                    if type(branch).__name__ == "SubPattern":
                        yield from repeats(branch, inner)


def test_no_expression_backtracks() -> None:
    """CVE-2018-1060 (Python's poplib), CWE-1333: of repetitions that give back an expression has one at most, and not within another."""
    patterns: dict[Any, str] = {}
    for module in pkgutil.walk_packages(fastsmtp.__path__, "fastsmtp."):
        if module.name.endswith("__main__"):
            continue
        try:
            loaded = importlib.import_module(module.name)
        except ImportError:
            continue  # an extra that is not installed, or no extension
        for value in vars(loaded).values():
            pattern = value if isinstance(value, re.Pattern) else getattr(value, "__self__", None)
            if isinstance(pattern, re.Pattern):
                patterns[pattern] = module.name
    assert len(patterns) > 50
    for pattern, name in patterns.items():
        parsed = re._parser.parse(pattern.pattern, pattern.flags & ~re.DEBUG)  # type: ignore[attr-defined]
        greedy = [each for each in repeats(parsed) if each[0] != "POSSESSIVE_REPEAT" and each[1] > 1000]
        assert len(greedy) <= 1 and not any(within for _, _, within in greedy), (name, pattern.pattern)


# Who says who the client is


@pytest.mark.parametrize(
    "second",
    [
        encode_proxy_v1(("203.0.113.1", 1), ("198.51.100.1", 25)),
        encode_proxy_v2(("203.0.113.1", 1), ("198.51.100.1", 25)),
    ],
)
def test_proxy_headers_of_clients(run: Runner, second: bytes) -> None:
    """CVE-2023-42117 (Exim); the PROXY protocol's section 2: only a trusted peer's first octets are a header, a client's own are commands."""

    async def main() -> None:
        for header, address in (
            (b"", "127.0.0.1"),
            (encode_proxy_v1(("192.0.2.9", 7), ("198.51.100.1", 25)), "192.0.2.9"),
        ):
            async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0", proxy_from=bool(header)) as server:
                async with RawClient(server) as client:
                    client.writer.write(header + second + b"\r\n")
                    assert (await client.line()).startswith("220 ")
                    assert (await client.line()).startswith("500 ")
                    (conn,) = conns(server)
                    remote: Any = conn.state.remote_addr
                    assert remote[0] == address

    run(main)


@pytest.mark.parametrize("verb", ["XCLIENT", "XFORWARD"])
def test_identity_spoofed_by_xclient(verb: str) -> None:
    """Postfix's XCLIENT_README and XFORWARD_README, "Security": nobody may say it by default, and decoding opens no second line."""
    for line in (f"{verb} ADDR=127.0.0.1 NAME=localhost", f"{verb} NAME=a+0D+0AMAIL+20FROM:<>", verb):
        codes, events = talk(core(), GREETED + line.encode() + b"\r\nNOOP\r\n")
        assert codes == ["250", "502", "250"] and len(events) == 1
    options = ServerOptions(allow_xforward=True, allow_xclient=True)
    for evil in ("+0D+0A", "+0A", "+00", "a+20b", "+1B[31m", "+7F", "+C2+85", "+E2+80+A8"):
        protocol = core(max_errors=0)
        protocol.offer = Offer(options, xforward=True, xclient=True)
        for name in ("NAME", "HELO", "PROTO", "ADDR", "PORT"):
            codes, events = talk(protocol, GREETED + f"{verb} {name}=a{evil}\r\n".encode())
            assert codes == ["250", "501"] and len(events) == 1, (name, evil)


# Another protocol


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("begin", [b"", GREETED, GREETED + ENVELOPE])
def test_commands_in_an_http_request(begin: bytes, how: str) -> None:
    """Topf, "The HTML Form Protocol Attack" (2001), CVE-2021-3618 (ALPACA): a browser posts a form, and it is a dialogue of SMTP."""
    request = b"POST / HTTP/1.1\r\nHost: mx.example\r\n\r\n" + GREETED + ENVELOPE + b"DATA\r\n.\r\n"
    protocol = core()
    before, _ = talk(protocol, begin)
    codes, events = talk(protocol, request, how)
    assert codes == ["421"] and events == [] and protocol.closing and "421" not in before
    # Within a message it is text.
    codes, _ = talk(core(), GREETED + ENVELOPE + b"DATA\r\n" + request + b"NOOP\r\n", how)
    assert codes == ["250", "250", "250", "354", "250", "250"]


# Logs


def test_log_injection(run: Runner) -> None:
    """CWE-117, CWE-150: what a peer sends makes no line of a trace, and no control sequence of a terminal."""
    trace = io.StringIO()
    lines = [bytes((octet,)) * 3 for octet in range(256) if octet not in b"\r\n"] + [
        b"\xe2\x80\xa8",
        b"\xe2\x80\xae",
        b"\xc2\x9b31m",
    ]

    async def main() -> None:
        async with Server(DefaultBackend(DefaultSession), addr="127.0.0.1:0", debug=trace, max_errors=0) as server:
            async with RawClient(server) as client:
                await client.line()
                for each in (*lines, b"a\nS: 250 forged", b"a\rS: 250 forged"):
                    client.writer.write(b"NOOP " + each + b"\r\n")
                    assert (await client.line())[:3] in ("250", "500")
                assert (await client.ask("QUIT"))[:3] == "221"
                assert await client.reader.read() == b""

    run(main)
    said = trace.getvalue().split("\n")
    assert said.pop() == "" and len(said) == 1 + 2 * (len(lines) + 3)
    assert all(line.isprintable() for line in said)
    assert not any(re.match(r"\S+ S: 250 forged", line) for line in said)
