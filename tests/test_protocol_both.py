"""The client's protocol against the server's, in memory."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from fastsmtp import DataTooLarge, EnhancedCode, MailParams, RcptParams, Reply, ServerOptions, SMTPError
from fastsmtp.extensions import DeliverBy, Offer, OriginalRecipient, ValidSince
from fastsmtp.protocol import (
    Auth,
    AuthResponse,
    Body,
    ClientIs,
    Hello,
    MailFrom,
    RcptTo,
    Reset,
    ServerProfile,
    ServerProtocol,
    StartTLS,
)
from fastsmtp.protocol.client import ClientProtocol
from fastsmtp.protocol.requests import Command
from fastsmtp.protocol.xforward import XClient, XForward
from fastsmtp.sasl import LoginClient, PlainClient

from .client_support import codes, tell
from .dialogue import CUTS, cut


@pytest.fixture(params=CUTS)
def how(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


class Server:
    """A `ServerProtocol` that keeps messages, and answers as it is told."""

    def __init__(self, *, xtls: bool = False, **fields: object) -> None:
        self.options = ServerOptions(domain="mx.example", **fields)  # type: ignore[arg-type]
        self.protocol = ServerProtocol(ServerProfile(self.options))
        self.protocol.offer = Offer(
            self.options, tls_available=xtls, auth=("PLAIN", "LOGIN"), xforward=True, xclient=True
        )
        self.refused: dict[str, Reply] = {}
        self.log: list[object] = []
        self.messages: list[tuple[str, list[str], bytes]] = []
        self._text = b""
        self.protocol.greet()

    def exchange(self, data: bytes) -> bytes:
        """Take octets, give octets."""
        protocol = self.protocol
        protocol.receive_data(data)
        while (event := protocol.next_event()) is not None:
            self.take(event)
        return protocol.data_to_send()

    def take(self, event: object) -> None:
        protocol = self.protocol
        if isinstance(event, Body):
            self._text += event.payload
            if event.ended:
                if event.refusal is None:
                    self.messages.append((protocol.sender or "", list(protocol.recipients), self._text))
                self._text = b""
                self.answer_message()
        elif isinstance(event, MailFrom):
            self.log.append(event)
            protocol.reply(self.refused.get(event.sender))
        elif isinstance(event, RcptTo):
            self.log.append(event)
            protocol.reply(self.refused.get(event.recipient))
        elif isinstance(event, Auth):
            if event.response is None:
                protocol.challenge(b"Username:")
            else:
                protocol.reply(None if event.response == b"\0joe\0secret" else Reply(535, EnhancedCode(5, 7, 8), "no"))
        elif isinstance(event, AuthResponse):
            self.log.append(event.response)
            if event.response == b"joe":
                protocol.challenge(b"Password:")
            else:
                protocol.reply()
        elif isinstance(event, StartTLS):
            protocol.reply()
            self.log.append("tls")
        elif isinstance(event, Hello | Reset | ClientIs):
            self.log.append(event)
            protocol.reply()
        elif protocol.awaiting_reply:
            protocol.reply()

    def answer_message(self) -> None:
        protocol = self.protocol
        if protocol.lmtp:
            protocol.reply_each([self.refused.get(f"late:{each}") for each in protocol.recipients])
        else:
            protocol.reply()


def play(client: ClientProtocol, server: Server, how: str, first: bytes = b"") -> list[Command]:
    """Carry octets between the two until both are silent."""
    events = []
    answer = first or server.protocol.data_to_send()
    while True:
        events += tell(client, answer, how)
        sent = client.data_to_send()
        if not sent:
            return events
        answer = b"".join(server.exchange(piece) for piece in cut(sent, how))


def meet(how: str, *, pipelining: bool = True, xtls: bool = False, **fields: object) -> tuple[ClientProtocol, Server]:
    server = Server(xtls=xtls, **fields)
    client = ClientProtocol(lmtp=bool(fields.get("lmtp")), hello_name="client.example", pipelining=pipelining)
    hello = client.hello()
    play(client, server, how)
    assert hello.result().code == 250 and client.server_name == "mx.example"
    return client, server


MESSAGE = b"Subject: x\r\n\r\n.\r\n..\r\n.x\r\nlast\r\n"


@pytest.mark.parametrize("lmtp", [False, True])
@pytest.mark.parametrize("chunking", [False, True])
@pytest.mark.parametrize("pipelining", [False, True])
def test_against_the_server(lmtp: bool, chunking: bool, pipelining: bool, how: str) -> None:
    client, server = meet(how, lmtp=lmtp, pipelining=pipelining)
    server.refused = {"bad@x.example": Reply(550, EnhancedCode(5, 1, 1), "nobody"), "late:full@x.example": Reply(452)}
    recipients = ["one@x.example", "bad@x.example", "full@x.example", "one@x.example"]
    for number in range(3):
        one = client.transaction(f"s{number}@x.example", recipients, chunking=chunking)
        play(client, server, how)
        assert one.wants_body
        for start in range(0, len(MESSAGE), 7):
            one.write(MESSAGE[start : start + 7].replace(b"\r", b""))
            play(client, server, how)
        one.finish()
        play(client, server, how)
        late = 452 if lmtp else 250
        assert [code for _, code in codes(one)] == [250, 550, late, 250]
        good = ["one@x.example", "full@x.example", "one@x.example"]
        assert server.messages[-1] == (f"s{number}@x.example", good, MESSAGE)
    assert len(server.messages) == 3
    assert server.protocol.errors == 0
    client.quit()
    play(client, server, how)
    assert client.closing and server.protocol.closing


@pytest.mark.parametrize("pipelining", [False, True])
def test_against_the_server_failures(pipelining: bool, how: str) -> None:
    client, server = meet(how, pipelining=pipelining)
    server.refused = {
        "bad@x.example": Reply(550, EnhancedCode(5, 1, 1), "nobody"),
        "no@x.example": Reply(450, EnhancedCode(4, 7, 1), "not now"),
    }
    for sender, chunking in (
        ("s@x.example", False),
        ("s@x.example", True),
        ("no@x.example", False),
        ("no@x.example", True),
    ):
        one = client.transaction(sender, ["bad@x.example", "bad@x.example"], chunking=chunking)
        play(client, server, how)
        assert one.done and not one.wants_body
        first = 450 if sender.startswith("no") else 550
        assert codes(one) == [("bad@x.example", first)] * 2
    one = client.transaction("s@x.example", ["bad@x.example", "good@x.example"])
    play(client, server, how)
    one.finish(b"whole\n")
    play(client, server, how)
    assert codes(one) == [("bad@x.example", 550), ("good@x.example", 250)]
    assert server.messages == [("s@x.example", ["good@x.example"], b"whole\r\n")]


def test_against_the_server_parameters(how: str) -> None:
    client, server = meet(how, dsn=True, deliverby=10, mt_priority="", rrvs=True)
    params = MailParams(
        size=400,
        body="BINARYMIME",
        smtputf8=True,
        ret="HDRS",
        envid="a+b=c d",
        by=DeliverBy(60, "R", True),
        mt_priority=-3,
        auth="",
    )
    rcpt = RcptParams(
        ("SUCCESS", "DELAY"), OriginalRecipient("utf-8", "ö@x y"), ValidSince(datetime(2020, 1, 2, tzinfo=UTC))
    )
    octets = bytes(range(256))
    one = client.transaction("ä@x.example", [("ü@x.example", rcpt), '"q r"@[192.0.2.1]'], params)
    play(client, server, how)
    one.write(octets)
    one.finish(b"\n\r")
    play(client, server, how)
    assert [code for _, code in codes(one)] == [250, 250]
    assert server.log[-3:] == [
        MailFrom("ä@x.example", params),
        RcptTo("ü@x.example", rcpt),
        RcptTo('"q r"@[192.0.2.1]', RcptParams()),
    ]
    assert server.messages[0][2] == octets + b"\n\r"


def test_against_the_server_size(how: str) -> None:
    client, server = meet(how, max_message_bytes=20)
    assert client.max_message_size == 20
    with pytest.raises(DataTooLarge):
        client.transaction("a@x", ["b@x"], MailParams(size=21))
    for chunking in (False, True):
        one = client.transaction("a@x", ["b@x"], chunking=chunking)
        play(client, server, how)
        one.write(b"x" * 10)
        one.write(b"x" * 20)
        play(client, server, how)
        one.finish()
        play(client, server, how)
        assert codes(one) == [("b@x", 552)]
    one = client.transaction("a@x", ["b@x"], MailParams(size=20))
    play(client, server, how)
    one.finish(b"x")
    play(client, server, how)
    assert codes(one) == [("b@x", 250)] and len(server.messages) == 1


def test_against_the_server_access(how: str) -> None:
    client, server = meet(how, xtls=True, allow_xforward=True, allow_xclient=True)
    start = client.start_tls()
    play(client, server, how)
    assert start.result().code == 220
    server.protocol.offer = Offer(server.options, tls=True, auth=("PLAIN", "LOGIN"), xforward=True, xclient=True)
    server.protocol.begin_tls()
    client.begin_tls()
    client.hello()
    play(client, server, how, b"")
    assert client.extension("STARTTLS") is None and client.supports_auth("PLAIN")
    auth = client.auth(PlainClient("joe", "wrong"))
    play(client, server, how)
    with pytest.raises(SMTPError):
        auth.result()
    auth = client.auth(LoginClient("joe", "secret"))
    play(client, server, how)
    assert auth.result().code == 235 and client.authenticated and server.protocol.authenticated
    forward = client.xforward(XForward(name="a.example", addr="2001:db8::1", helo="b", port=25))
    play(client, server, how)
    assert forward.result().code == 250
    assert server.protocol.xforward == XForward(name="a.example", addr="2001:db8::1", helo="b", port=25)
    one = client.xclient(XClient(name="a.example", addr="192.0.2.1", login="joe", proto="ESMTP"))
    play(client, server, how)
    assert one.result().code == 220
    said = server.log[-1]
    assert isinstance(said, ClientIs) and said.values["LOGIN"] == "joe" and said.values["ADDR"] == "192.0.2.1"
    hello = client.hello()
    play(client, server, how)
    assert hello.result().code == 250
    for command in (client.noop(), client.help(), client.reset(), client.verify("x")):
        play(client, server, how)
        assert command.result().accepted


def test_against_the_server_when_it_stops(how: str) -> None:
    client, server = meet(how)
    one = client.transaction("a@x", ["b@x"])
    play(client, server, how)
    one.write(b"half\r\n")
    play(client, server, how)
    server.protocol.say(Reply(421, EnhancedCode(4, 3, 2), "stopping"))
    play(client, server, how, server.protocol.data_to_send())
    assert client.closing and codes(one) == [("b@x", 421)] and server.messages == []
