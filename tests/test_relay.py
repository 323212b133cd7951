"""The pass-through relay: what goes through, what comes back, and nothing else; on asyncio's loop and on uvloop."""

from __future__ import annotations

import asyncio
import contextlib
import email.utils
import logging
import pathlib
import re
import socket
import ssl
import struct
import sys
import tracemalloc
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp import (
    Client,
    ClientOptions,
    ConfigurationError,
    DataContext,
    DataReader,
    DefaultBackend,
    DefaultSession,
    DeliverBy,
    Delivery,
    EnhancedCode,
    MailParams,
    OriginalRecipient,
    Pool,
    RcptParams,
    Reply,
    Server,
    Session,
    SMTPError,
    Timeouts,
    ValidSince,
    XForward,
)
from fastsmtp.authfile import AuthFile
from fastsmtp.delivery import LoopGuard, RelayBackend, RelaySession, UsersBackend
from fastsmtp.delivery._nexthop import Abilities, answer_for_all, fit_mail, fit_rcpt, hand_back, narrow
from fastsmtp.options import ServerOptions

from .certificates import Authority
from .dialogue import cut
from .fake_server import CLOSE, SILENCE, Fake, fake
from .loops import Runner

SENDER = "a@example.org"
TO = "b@example.org"
MESSAGE = b"Subject: x\r\n\r\nhello\r\n.dot\r\n"
BODY = b"Subject: x\r\n\r\n" + b"0123456789abcdef" * 4 * 16 + b"\r\n"
KEPT = Reply(250, EnhancedCode(2, 6, 7), "kept as 4711")
NOBODY = Reply(550, EnhancedCode(5, 1, 1), "nobody\nof that name")
FULL = Reply(452, EnhancedCode(4, 2, 2), "mailbox full")
NO_ANSWER = (451, EnhancedCode(4, 4, 1))
LMTP = [pytest.param(False, id="smtp"), pytest.param(True, id="lmtp")]
EVERYTHING: dict[str, Any] = {
    "dsn": True,
    "deliverby": 0,
    "mt_priority": "MIXER",
    "rrvs": True,
    "future_release": 86400,
    "no_soliciting": "",
}


@dataclass
class Kept:
    """A message that has arrived at the next hop."""

    sender: str
    params: MailParams
    recipients: list[tuple[str, RcptParams]]
    octets: bytes
    xforward: XForward | None
    lmtp: bool


class Store:
    """The next hop.

    Attributes:
        replies: what is answered to a sender, to a recipient, or in LMTP to the message for one ("." before its name).
        messages: what came whole.
        broken: messages whose end did not come.
    """

    def __init__(self, **replies: Reply) -> None:
        self.replies: dict[str, Reply] = dict(replies)
        self.messages: list[Kept] = []
        self.broken = 0

    def session(self) -> Session:
        return StoreSession(self)


class StoreSession(DefaultSession):
    def __init__(self, store: Store) -> None:
        super().__init__()
        self._store = store

    def mail(self, sender: str, params: MailParams) -> Reply | None:
        super().mail(sender, params)
        return self._store.replies.get(sender)

    def rcpt(self, recipient: str, params: RcptParams) -> Reply | None:
        super().rcpt(recipient, params)
        return self._store.replies.get(recipient)

    async def data(self, reader: DataReader, context: DataContext) -> Reply | None:
        store = self._store
        try:
            octets = await reader.read()
        except Exception:
            store.broken += 1
            raise
        recipients = list(zip(context.recipients, context.rcpt_params, strict=True))
        lmtp = context.conn.server.options.lmtp
        store.messages.append(Kept(context.sender, context.mail_params, recipients, octets, context.xforward, lmtp))
        for recipient in context.recipients:
            if (reply := store.replies.get(f".{recipient}")) is not None:
                context.set_status(recipient, reply)
        return store.replies.get(".", KEPT)


@asynccontextmanager
async def next_hop(store: Store, **options: Any) -> AsyncIterator[Server]:
    async with Server(DefaultBackend(store.session), addr="127.0.0.1:0", domain="mx.example", **options) as server:
        yield server


def at(server: Server | Fake, **fields: Any) -> ClientOptions:
    return ClientOptions(host="127.0.0.1", port=server.port, local_hostname="me.example", **fields)


@asynccontextmanager
async def relaying(
    destination: ClientOptions, backend: dict[str, Any] | None = None, **options: Any
) -> AsyncIterator[Server]:
    """A relay; its next hop is to be reached at once or not at all."""
    async with (
        RelayBackend(destination, **(backend or {})) as relay,
        Server(relay, addr="127.0.0.1:0", domain="relay.example", **options) as server,
    ):
        yield server


@asynccontextmanager
async def talking(server: Server) -> AsyncIterator[Peer]:
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    try:
        yield Peer(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


class Peer:
    """A client octet by octet."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def reply(self) -> str:
        lines = []
        while True:
            line = (await self.reader.readuntil(b"\r\n")).decode()[:-2]
            lines.append(line)
            if line[3:4] != "-":
                return "\n".join(lines)

    async def say(self, *lines: str) -> list[str]:
        """Say lines one by one: their replies, the greeting before them if it is the first thing read."""
        replies = []
        for line in lines:
            self.writer.write(line.encode() + b"\r\n")
            replies.append(await self.reply())
        return replies

    async def hello(self) -> str:
        assert (await self.reply()).startswith("220 ")
        return (await self.say("EHLO client.example"))[0]

    def cut(self) -> None:
        """RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


async def until(condition: Callable[[], object]) -> None:
    """Turn the loop until it is so."""
    while not condition():
        await asyncio.sleep(0)


def pool_of(relay: Server) -> Pool:
    backend = relay.backend
    assert isinstance(backend, RelayBackend)
    return backend.pool


async def no_connections(pool: Pool) -> None:
    await until(lambda: not pool.connections)


def codes(deliveries: Iterable[Delivery]) -> list[tuple[int, EnhancedCode]]:
    return [(each.reply.code, each.reply.enhanced_code) for each in deliveries]


def without_trace(octets: bytes) -> bytes:
    """The message behind the one field that the relay puts in front."""
    match = re.match(rb"Received: [^\r]*\r\n(?:[ \t][^\r]*\r\n)+", octets)
    assert match, octets[:300]
    return octets[match.end() :]


# What goes through


@pytest.mark.parametrize("back", LMTP)
@pytest.mark.parametrize("front", LMTP)
@pytest.mark.parametrize("chunking", [True, False])
def test_each_pair_of_protocols(run: Runner, front: bool, back: bool, chunking: bool) -> None:
    async def main() -> None:
        store = Store()
        async with (
            next_hop(store, lmtp=back, chunking=chunking) as mx,
            relaying(at(mx, lmtp=back), lmtp=front) as relay,
            Client(options=at(relay, lmtp=front, chunking=chunking)) as client,
        ):
            for _ in range(3):
                sent = await client.send_message(SENDER, [TO, "c@example.org"], MESSAGE)
                assert [each.reply for each in sent] == [KEPT, KEPT]
            assert mx.counters.connections == 1
        assert len(store.messages) == 3
        for each in store.messages:
            assert each.lmtp is back
            assert each.sender == SENDER
            assert [recipient for recipient, _ in each.recipients] == [TO, "c@example.org"]
            assert without_trace(each.octets) == MESSAGE

    run(main)


def test_received_field(run: Runner) -> None:
    async def main() -> None:
        store = Store()
        async with next_hop(store) as mx, relaying(at(mx)) as relay, Client(options=at(relay)) as client:
            await client.send_message(SENDER, [TO], MESSAGE)
        head, _, date = store.messages[0].octets[: -len(MESSAGE)].rpartition(b";\r\n\t")
        assert head == b"Received: from me.example ([127.0.0.1])\r\n\tby relay.example with ESMTP"
        assert abs(email.utils.parsedate_to_datetime(date.decode()) - datetime.now(UTC)) < timedelta(minutes=1)

    run(main)


def test_connections_are_shared(run: Runner) -> None:
    """One connection to the next hop serves one client after the other, RSET and refusals included."""

    async def main() -> None:
        async with fake({"MAIL": b"250 ok\r\n"}) as mx, relaying(at(mx)) as relay:
            for _ in range(3):
                async with talking(relay) as peer:
                    await peer.hello()
                    assert await peer.say(f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{TO}>", "RSET")
                    mx.replies["MAIL"] = b"550 5.7.1 not from you\r\n"
                    assert await peer.say(f"MAIL FROM:<{SENDER}>") == ["550 5.7.1 not from you"]
                    mx.replies["MAIL"] = b"250 ok\r\n"
                    assert await peer.say(f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{TO}>", "RSET", "QUIT")
            assert mx.connections == 1
            assert mx.lines.count("RSET") == 6

    run(main)


def test_many_at_once(run: Runner) -> None:
    """More clients than connections to the next hop: each message arrives once, with its own envelope."""

    async def main() -> None:
        store = Store()

        async def send(relay: Server, number: int) -> None:
            async with Client(options=at(relay)) as client:
                for each in range(3):
                    name = f"{number}-{each}"
                    size = 100_000 if (number + each) % 5 == 0 else 10
                    message = f"Subject: {name}\r\n\r\n".encode() + b"x" * size + b"\r\n"
                    sent = await client.send_message(f"s{name}@example.org", [f"r{name}@example.org"], message)
                    assert [each.reply for each in sent] == [KEPT]

        async with next_hop(store) as mx, Pool(max_per_destination=3) as pool:
            async with relaying(at(mx), {"pool": pool}) as relay:
                await asyncio.gather(*(send(relay, number) for number in range(20)))
            assert pool.connections == pool.idle <= 3
        assert len(store.messages) == 60
        for each in store.messages:
            name = each.sender[1:].partition("@")[0]
            assert [recipient for recipient, _ in each.recipients] == [f"r{name}@example.org"]
            assert without_trace(each.octets).startswith(f"Subject: {name}\r\n\r\nxxx".encode())

    run(main)


def test_the_empty_message_and_the_null_sender(run: Runner) -> None:
    async def main() -> None:
        store = Store()
        async with next_hop(store) as mx, relaying(at(mx)) as relay, talking(relay) as peer:
            await peer.hello()
            await peer.say("MAIL FROM:<>", "RCPT TO:<Postmaster>", "DATA")
            assert await peer.say(".") == ["250 2.6.7 kept as 4711"]
        assert store.messages[0].sender == "" and store.messages[0].recipients[0][0] == "Postmaster"
        assert without_trace(store.messages[0].octets) == b""

    run(main)


@pytest.mark.parametrize("how", ["whole", "octets"])
def test_any_cut(run: Runner, how: str) -> None:
    async def main() -> None:
        store = Store()
        async with next_hop(store) as mx, relaying(at(mx)) as relay, talking(relay) as peer:
            await peer.hello()
            text = f"MAIL FROM:<{SENDER}>\r\nRCPT TO:<{TO}>\r\nDATA\r\n..\r\nx\r\n..x\r\n.\r\n".encode()
            for piece in cut(text, how):
                peer.writer.write(piece)
                await peer.writer.drain()
            assert [(await peer.reply())[:3] for _ in range(4)] == ["250", "250", "354", "250"]
        assert without_trace(store.messages[0].octets) == b".\r\nx\r\n.x\r\n"

    run(main)


def test_binary_octets_pass_unchanged(run: Runner) -> None:
    async def main() -> None:
        store = Store()
        octets = b"Subject: x\r\n\r\n\r\n.\r\n\n\r\0\xff" + bytes(range(256)) * 1024
        async with next_hop(store) as mx, relaying(at(mx)) as relay, Client(options=at(relay)) as client:
            sent = await client.send_message(SENDER, [TO], octets, MailParams(body="BINARYMIME"))
            assert codes(sent) == [(250, EnhancedCode(2, 6, 7))]
        assert store.messages[0].params.body == "BINARYMIME"
        assert without_trace(store.messages[0].octets) == octets

    run(main)


def test_parameters_are_handed_on(run: Runner) -> None:
    soon = datetime.now(UTC).replace(microsecond=0) + timedelta(hours=1)
    rcpt = RcptParams(("SUCCESS", "DELAY"), OriginalRecipient("rfc822", "x+y@example.org"), ValidSince(soon, "C"))

    async def main() -> None:
        store = Store()
        async with (
            next_hop(store, **EVERYTHING) as mx,
            relaying(at(mx), **EVERYTHING) as relay,
            Client(options=at(relay)) as client,
        ):
            every = MailParams(
                body="8BITMIME",
                smtputf8=True,
                ret="HDRS",
                envid="no 4711",
                mt_priority=-4,
                by=DeliverBy(7200, "R", trace=True),
                solicit=("org.example:ADV",),
            )
            for params in (every, replace(every, by=None, hold=60), replace(every, by=None, hold=soon), MailParams()):
                await client.mail("m\u00fcller@example.org" if params.smtputf8 else SENDER, params)
                await client.rcpt(TO, rcpt)
                await client.rcpt("c@example.org", RcptParams(notify=("NEVER",)))
                assert codes(await client.data(MESSAGE)) == [(250, EnhancedCode(2, 6, 7))] * 2
                kept = store.messages.pop()
                by = kept.params.by
                if by is not None:  # what passed since is taken off
                    assert 7100 < by.seconds <= 7200
                    by = replace(by, seconds=7200)
                assert replace(kept.params, by=by) == params
                assert kept.recipients == [(TO, rcpt), ("c@example.org", RcptParams(notify=("NEVER",)))]
                assert kept.octets.startswith(b"Received: ")

    run(main)


def test_size_grows_by_what_is_added(run: Runner) -> None:
    async def main() -> None:
        store = Store()
        async with next_hop(store) as mx, relaying(at(mx)) as relay, Client(options=at(relay)) as client:
            await client.send_message(SENDER, [TO], MESSAGE, MailParams(size=len(MESSAGE)))
        assert store.messages[0].params.size == len(store.messages[0].octets)

    run(main)


def test_requiretls(run: Runner, tmp_path: pathlib.Path) -> None:
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority.issue("mx.example"))
    tls: dict[str, Any] = {"starttls": "required", "server_hostname": "mx.example"}

    async def main() -> None:
        store = Store()
        async with next_hop(store, tls=context, requiretls=True) as mx:
            known, unknown = authority.client(), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
            unknown.check_hostname = False
            unknown.verify_mode = ssl.CERT_NONE
            for back, offered in ((known, True), (unknown, False)):
                async with (
                    relaying(at(mx, tls_context=back, **tls), tls=context, requiretls=True) as relay,
                    Client(options=at(relay, tls_context=known, **tls)) as client,
                ):
                    assert (client.extension("REQUIRETLS") is not None) is offered
                    if offered:
                        await client.send_message(SENDER, [TO], MESSAGE, MailParams(requiretls=True))
        assert [each.params.requiretls for each in store.messages] == [True]
        assert b"with ESMTPS" in store.messages[0].octets

    run(main)


# What is offered


def keywords(hello: str) -> set[str]:
    return {line[4:].partition(" ")[0] for line in hello.split("\n")[1:]}


ALWAYS = {"PIPELINING", "8BITMIME", "SIZE", "CHUNKING", "ENHANCEDSTATUSCODES"}
ALL = ALWAYS | {"SMTPUTF8", "BINARYMIME", "DSN", "DELIVERBY", "MT-PRIORITY", "RRVS", "FUTURERELEASE", "NO-SOLICITING"}


def test_offer_is_the_next_hops(run: Runner) -> None:
    async def main() -> None:
        async with fake() as mx, relaying(at(mx), **EVERYTHING) as relay:
            async with talking(relay) as peer:
                assert keywords(await peer.hello()) == ALWAYS
            # A next hop with all of that: the connection that is kept is not asked again, the next one is.
            mx.replies["EHLO"] = "".join(f"250-{each}\r\n" for each in ("mx.example", *sorted(ALL))).encode()
            mx.replies["EHLO"] += b"250 FUTURERELEASE 3600 2038-01-01T00:00:00Z\r\n"
            mx.replies["MAIL"] = b"421 4.3.2 restarting\r\n" + CLOSE
            async with talking(relay) as peer:
                await peer.hello()
                assert await peer.say(f"MAIL FROM:<{SENDER}>") == ["451 4.3.2 restarting"]
                assert await peer.say(f"MAIL FROM:<{SENDER}>") == ["451 4.3.2 restarting"]
            async with talking(relay) as peer:
                assert keywords(await peer.hello()) == ALL

    run(main)


def test_offer_without_a_next_hop(run: Runner) -> None:
    async def main() -> None:
        async with fake() as gone:
            pass
        async with relaying(at(gone), **EVERYTHING) as relay, talking(relay) as peer:
            assert keywords(await peer.hello()) == ALWAYS
            assert (await peer.say(f"MAIL FROM:<{SENDER}>"))[0].startswith("451 4.4.1 ")

    run(main)


def test_numbers_of_the_offer() -> None:
    theirs = Abilities(frozenset({"DELIVERBY", "FUTURERELEASE"}), 100_000, 5, 60, 3600)
    ours = ServerOptions(max_message_bytes=0, max_recipients=10, deliverby=30, future_release=7200)
    options = narrow(ours, theirs)
    assert 90_000 < options.max_message_bytes < 100_000
    assert (options.max_recipients, options.deliverby, options.future_release) == (5, 60, 3600)
    options = narrow(replace(ours, max_message_bytes=1000, max_recipients=2, deliverby=90, future_release=5), theirs)
    assert (options.max_message_bytes, options.max_recipients) == (1000, 2)
    assert (options.deliverby, options.future_release) == (90, 5)
    options = narrow(ours, Abilities())
    assert (options.max_message_bytes, options.max_recipients) == (0, 10)
    assert options.deliverby is None and options.future_release == 0
    assert narrow(ours, Abilities(max_message_bytes=5)).max_message_bytes == 1  # not 0, which is no limit


def test_size_of_the_next_hop(run: Runner) -> None:
    async def main() -> None:
        store = Store()
        async with next_hop(store, max_message_bytes=10_000) as mx, relaying(at(mx)) as relay:
            async with Client(options=at(relay)) as client:
                largest = client.max_message_size
                assert largest is not None and 7000 < largest < 10_000
                sent = await client.send_message(SENDER, [TO], b"x" * (largest - 2) + b"\r\n")
                assert sent[0].reply == KEPT
            async with talking(relay) as peer:
                await peer.hello()
                assert (await peer.say(f"MAIL FROM:<{SENDER}> SIZE={largest + 1}"))[0].startswith("552 5.3.4 ")

    run(main)


@pytest.mark.parametrize(
    ("params", "keyword", "code", "status"),
    [
        (MailParams(smtputf8=True), "SMTPUTF8", 550, (5, 6, 7)),
        (MailParams(body="BINARYMIME"), "BINARYMIME", 554, (5, 6, 3)),
        (MailParams(requiretls=True), "REQUIRETLS", 550, (5, 7, 30)),
        (MailParams(ret="FULL"), "DSN", 555, (5, 5, 4)),
        (MailParams(envid="x"), "DSN", 555, (5, 5, 4)),
        (MailParams(by=DeliverBy(60, "N")), "DELIVERBY", 555, (5, 5, 4)),
        (MailParams(hold=60), "FUTURERELEASE", 555, (5, 5, 4)),
        (MailParams(solicit=("a",)), "NO-SOLICITING", 555, (5, 5, 4)),
        (RcptParams(notify=("NEVER",)), "DSN", 555, (5, 5, 4)),
        (RcptParams(orcpt=OriginalRecipient("rfc822", "x")), "DSN", 555, (5, 5, 4)),
        (RcptParams(rrvs=ValidSince(datetime.now(UTC))), "RRVS", 550, (5, 7, 19)),
    ],
)
def test_what_the_next_hop_lacks(
    params: MailParams | RcptParams, keyword: str, code: int, status: tuple[int, int, int]
) -> None:
    def fit(able: Abilities, promised: frozenset[str]) -> object:
        if isinstance(params, MailParams):
            return fit_mail(params, able, promised, 0, 0)
        return fit_rcpt(params, able, promised)

    assert fit(Abilities(frozenset({keyword, "CHUNKING"})), frozenset()) == params
    with pytest.raises(SMTPError, match=f"does not offer {keyword}$") as refused:
        fit(Abilities(frozenset({"CHUNKING"})), frozenset())
    assert (refused.value.code, refused.value.enhanced_code) == (code, status)
    with pytest.raises(SMTPError, match=f"does not offer {keyword} any more") as refused:
        fit(Abilities(frozenset({"CHUNKING"})), frozenset({keyword}))
    assert refused.value.code == 451


def test_what_may_be_left_out() -> None:
    assert fit_mail(MailParams(auth="", mt_priority=3, size=5), Abilities(), (), 0, 200) == MailParams(size=205)
    both = Abilities(frozenset({"AUTH", "MT-PRIORITY"}))
    assert fit_mail(MailParams(auth="a@b.example", mt_priority=3), both, (), 0, 200) == MailParams(
        auth="a@b.example", mt_priority=3
    )
    since = ValidSince(datetime.now(UTC), "C")
    assert fit_rcpt(RcptParams(rrvs=since), Abilities(), ()) == RcptParams()
    assert fit_rcpt(RcptParams(rrvs=since), Abilities(frozenset({"RRVS"})), ()) == RcptParams(rrvs=since)


def test_the_time_of_by_runs() -> None:
    able = Abilities(frozenset({"DELIVERBY"}))
    assert fit_mail(MailParams(by=DeliverBy(60, "N", True)), able, (), 61.5, 0).by == DeliverBy(-1, "N", True)
    assert fit_mail(MailParams(by=DeliverBy(60, "R")), able, (), 0.9, 0).by == DeliverBy(60, "R")
    with pytest.raises(SMTPError) as refused:
        fit_mail(MailParams(by=DeliverBy(60, "R")), able, (), 60, 0)
    assert (refused.value.code, refused.value.enhanced_code) == (550, (5, 4, 7))


def test_extension_that_is_gone(run: Runner) -> None:
    """It was offered, and the next hop has lost it: no bounce, and the next connection is told the truth."""

    async def main() -> None:
        async with fake({"EHLO": b"250-mx.example\r\n250 DSN\r\n"}) as mx, relaying(at(mx), dsn=True) as relay:
            async with talking(relay) as peer:
                assert "DSN" in keywords(await peer.hello())
                mx.replies["EHLO"] = b"250 mx.example\r\n"
                mx.replies["MAIL"] = b"421 go\r\n" + CLOSE
                assert (await peer.say(f"MAIL FROM:<{SENDER}>"))[0].startswith("451 ")
                mx.replies["MAIL"] = b"250 ok\r\n"
                assert (await peer.say(f"MAIL FROM:<{SENDER}> RET=FULL"))[0].startswith("451 4.4.0 ")
                assert (await peer.say(f"MAIL FROM:<{SENDER}>"))[0].startswith("250 ")
                assert (await peer.say(f"RCPT TO:<{TO}> NOTIFY=NEVER"))[0].startswith("451 4.4.0 ")
                assert (await peer.say(f"RCPT TO:<{TO}>"))[0].startswith("250 ")
            async with talking(relay) as peer:
                assert "DSN" not in keywords(await peer.hello())

    run(main)


# What comes back


def test_replies_are_the_next_hops(run: Runner) -> None:
    async def main() -> None:
        async with (
            fake(
                {
                    "MAIL": b"250 2.1.0 from you\r\n",
                    "RCPT": b"251 2.1.5 will forward\r\n",
                    ".": b"250-2.0.0 thanks\r\n250 2.0.0 kept\r\n",
                }
            ) as mx,
            relaying(at(mx)) as relay,
            talking(relay) as peer,
        ):
            await peer.hello()
            replies = await peer.say(f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{TO}>")
            assert replies == ["250 2.1.0 from you", "251 2.1.5 will forward"]
            mx.replies["RCPT"] = b"550-5.1.1 nobody\r\n550 5.1.1 of that name\r\n"
            assert await peer.say(f"RCPT TO:<{TO}>") == ["550-5.1.1 nobody\n550 5.1.1 of that name"]
            assert (await peer.say("DATA"))[0].startswith("354 ")
            assert await peer.say("Subject: x\r\n\r\nhello\r\n.") == ["250-2.0.0 thanks\n250 2.0.0 kept"]
            mx.replies["MAIL"] = b"552 5.3.4 too large\r\n"
            assert await peer.say(f"MAIL FROM:<{SENDER}>") == ["552 5.3.4 too large"]

    run(main)


@pytest.mark.parametrize("code", [450, 451, 452, 455, 500, 550, 552, 553, 554, 555])
def test_refusals_at_each_step(run: Runner, code: int) -> None:
    async def main() -> None:
        said = b"%d %d.7.9 no: %%b\r\n" % (code, code // 100)
        async with (
            fake({"EHLO": b"250-mx.example\r\n250 PIPELINING\r\n"}) as mx,
            relaying(at(mx)) as relay,
            talking(relay) as peer,
        ):
            await peer.hello()
            for step in ("MAIL", "RCPT", "DATA", "."):
                before = mx.replies.get(step)
                mx.replies[step] = said % step.encode()
                replies = await peer.say(f"MAIL FROM:<{SENDER}>")
                if step != "MAIL":
                    replies += await peer.say(f"RCPT TO:<{TO}>")
                    if step != "RCPT":
                        assert (await peer.say("DATA"))[0].startswith("354 ")
                        replies += await peer.say("Subject: x\r\n\r\nhello\r\n.")
                assert replies[-1] == f"{code} {code // 100}.7.9 no: {step}"
                assert all(each.startswith("250 ") for each in replies[:-1])
                await peer.say("RSET")
                if before is None:
                    del mx.replies[step]
                else:
                    mx.replies[step] = before
            assert mx.connections == 1

    run(main)


def test_text_is_made_safe(run: Runner) -> None:
    async def main() -> None:
        evil = b"550 5.7.1 \x1b[2J\x00\xff\xc2\x85" + b"x" * 600 + b"\r\n"
        async with fake({"RCPT": evil}) as mx, relaying(at(mx)) as relay, talking(relay) as peer:
            await peer.hello()
            (_, reply) = await peer.say(f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{TO}>")
            assert re.fullmatch(r"[ -~\n]+", reply)
            assert all(re.match(r"550[ -]5\.7\.1 ", line) and len(line) <= 510 for line in reply.split("\n"))
            mx.replies["RCPT"] = b"550-5.7.1 more\r\n" * 200 + b"550 5.7.1 end\r\n"
            (reply,) = await peer.say(f"RCPT TO:<{TO}>")
            assert 1 < reply.count("\n") < 50
            assert await peer.say("NOOP") == ["250 2.0.0 OK"]

    run(main)


def test_hand_back() -> None:
    for reply in (Reply(250), Reply(251, message="x"), Reply(450), FULL, NOBODY, Reply(554)):
        assert hand_back(reply) is reply
    assert hand_back(Reply(221, message="x")) == Reply(250, message="x")
    assert hand_back(Reply(421, EnhancedCode(4, 3, 2), "x")) == Reply(451, EnhancedCode(4, 3, 2), "x")
    assert hand_back(Reply(421, message="x")) == Reply(451, EnhancedCode(4, 4, 1), "x")
    for code in (530, 534, 535, 538):
        reply = hand_back(Reply(code, EnhancedCode(5, 7, 0), "log in"))
        assert (reply.code, reply.enhanced_code) == (451, (4, 3, 5)) and reply.message.endswith(": log in")
    assert len(hand_back(Reply(550, message="x" * 60_000)).message) < 5000
    assert hand_back(Reply(550, message="x\n" * 60)).message.count("\n") < 20


@pytest.mark.parametrize("back", LMTP)
def test_lmtp_gets_a_reply_for_each(run: Runner, back: bool) -> None:
    async def main() -> None:
        store = Store()
        store.replies |= {
            "refused@example.org": NOBODY,
            ".full@example.org": FULL,
            ".gone@example.org": NOBODY,
        }
        names = ["full", "refused", "b", "gone", "refused", "full", "b"]
        async with (
            next_hop(store, lmtp=back) as mx,
            relaying(at(mx, lmtp=back), lmtp=True) as relay,
            Client(options=at(relay, lmtp=True)) as client,
        ):
            for _ in range(2):
                sent = await client.send_message(SENDER, [f"{each}@example.org" for each in names], MESSAGE)
                asked = {"refused": NOBODY} | ({"full": FULL, "gone": NOBODY} if back else {})
                expected = [asked.get(each, KEPT) for each in names]
                assert [each.reply for each in sent] == expected

    run(main)


MIXED = [
    ([KEPT, KEPT], KEPT),
    ([KEPT, Reply(250, message="other")], KEPT),
    ([NOBODY, NOBODY], NOBODY),
    ([FULL], FULL),
]


@pytest.mark.parametrize(("replies", "expected"), MIXED)
def test_one_reply_for_equal_ones(replies: list[Reply], expected: Reply) -> None:
    assert answer_for_all([Delivery(TO, each) for each in replies]) == expected


@pytest.mark.parametrize(
    ("replies", "code", "status"),
    [
        ([KEPT, NOBODY], 550, (5, 1, 1)),
        ([NOBODY, KEPT], 550, (5, 1, 1)),
        ([KEPT, FULL], 452, (4, 2, 2)),
        ([KEPT, NOBODY, FULL], 452, (4, 2, 2)),
        ([NOBODY, FULL], 452, (4, 2, 2)),
        ([NOBODY, Reply(552, EnhancedCode(5, 2, 2), "full")], 550, (5, 1, 1)),
    ],
)
def test_one_reply_for_different_ones(replies: list[Reply], code: int, status: tuple[int, int, int]) -> None:
    reply = answer_for_all([Delivery(f"{index}@example.org", each) for index, each in enumerate(replies)])
    assert (reply.code, reply.enhanced_code) == (code, status)
    assert reply.message.startswith(f"{replies.count(KEPT)} of {len(replies)} recipients have the message")
    for index, each in enumerate(replies):
        assert (f"<{index}@example.org>: {each.code}" in reply.message) is not each.accepted


def test_one_reply_for_many_is_short() -> None:
    reply = answer_for_all([Delivery(TO, FULL)] * 999 + [Delivery(TO, NOBODY)])
    assert reply.message.count("\n") < 15 and reply.message.endswith("and 990 more")


def test_smtp_before_lmtp(run: Runner) -> None:
    async def main() -> None:
        store = Store()
        store.replies |= {".full@example.org": FULL, ".gone@example.org": NOBODY, "refused@example.org": NOBODY}

        async def send(client: Client, *names: str) -> list[tuple[int, EnhancedCode]]:
            return codes(await client.send_message(SENDER, [f"{each}@example.org" for each in names], MESSAGE))

        async with (
            next_hop(store, lmtp=True) as mx,
            relaying(at(mx, lmtp=True)) as relay,
            Client(options=at(relay)) as client,
        ):
            good, full, gone = (250, (2, 6, 7)), (452, (4, 2, 2)), (550, (5, 1, 1))
            assert await send(client, "a", "b") == [good, good]
            assert await send(client, "a", "refused", "b") == [good, gone, good]  # by RCPT: nothing to decide
            assert await send(client, "a", "full") == [full, full]
            assert await send(client, "a", "gone") == [gone, gone]
            assert await send(client, "gone", "a", "full") == [full, full, full]
        # With one recipient each there is nothing to decide either.
        async with (
            next_hop(store, lmtp=True) as mx,
            relaying(at(mx, lmtp=True), max_recipients=1) as relay,
            Client(options=at(relay)) as client,
        ):
            assert await send(client, "gone", "a", "full") == [gone, (452, (4, 5, 3)), (452, (4, 5, 3))]

    run(main)


# XFORWARD


def test_xforward(run: Runner) -> None:
    async def main() -> None:
        store = Store()
        async with (
            next_hop(store, allow_xforward=True) as mx,
            relaying(at(mx), allow_xforward=True) as relay,
            Client(options=at(relay)) as client,
        ):
            said = XForward("c.example", "192.0.2.9", "ESMTP", "hello.example", 4711, "ident", "REMOTE")
            await client.xforward(said)
            await client.send_message(SENDER, [TO], MESSAGE)
            await client.send_message(SENDER, [TO], MESSAGE)  # it holds for one message
        first, second = store.messages
        assert first.xforward == said
        assert first.octets.startswith(b"Received: from hello.example ([192.0.2.9])\r\n")
        assert second.xforward is not None
        assert replace(second.xforward, port=None) == XForward(
            addr="127.0.0.1", proto="ESMTP", helo="me.example", source="REMOTE"
        )

    run(main)


def test_xforward_of_a_unix_socket(run: Runner, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        store = Store()
        path = tmp_path / "relay"
        async with (
            next_hop(store, allow_xforward=True) as mx,
            RelayBackend(at(mx)) as backend,
            Server(backend, addr="", unix_socket=path),
            Client(unix_socket=path, local_hostname="me.example") as client,
        ):
            await client.send_message(SENDER, [TO], MESSAGE)
        assert store.messages[0].xforward == XForward(proto="ESMTP", helo="me.example", source="LOCAL")

    run(main)


@pytest.mark.parametrize("reply", [b"550 5.7.0 not you\r\n", b"421 4.3.2 no\r\n" + CLOSE])
@pytest.mark.parametrize("offered", [b"XFORWARD NAME ADDR", b"XFORWARD OTHER"])
def test_xforward_refused(run: Runner, offered: bytes, reply: bytes) -> None:
    """No mail waits for it, but it does for a connection."""

    async def main() -> None:
        replies = {"EHLO": b"250-mx.example\r\n250 %b\r\n" % offered, "XFORWARD": reply}
        async with fake(replies) as mx, relaying(at(mx)) as relay, Client(options=at(relay)) as client:
            sent = await client.send_message(SENDER, [TO], MESSAGE)
            lost = reply.endswith(CLOSE) and b"NAME" in offered
            assert sent[0].reply.code == (451 if lost else 250)

    run(main)


# Loops


def test_loops(run: Runner) -> None:
    async def main() -> None:
        store = Store()
        async with (
            next_hop(store) as mx,
            relaying(at(mx)) as relay,
            Client(options=at(relay)) as client,
        ):
            for count, filler, code in (
                (50, b"", (250, (2, 6, 7))),
                (51, b"", (554, (5, 4, 6))),
                (50, b"X: y\r\n" * 50_000, (250, (2, 6, 7))),
                (51, b"X: y\r\n" * 50_000, (554, (5, 4, 6))),
            ):
                message = filler + b"Received: from a\r\n\tby b\r\n" * count + MESSAGE
                assert codes(await client.send_message(SENDER, [TO], message)) == [code]
            assert [each.octets.count(b"\r\nReceived: ") for each in store.messages] == [50, 50]
            message = MESSAGE + b"Received: x\r\n" * 60  # of a message that is quoted
            assert codes(await client.send_message(SENDER, [TO], message)) == [(250, (2, 6, 7))]

    run(main)


def count(header: bytes, pieces: Iterable[bytes]) -> int:
    guard = LoopGuard()
    for piece in pieces:
        guard.feed(piece)
    return guard.count


@pytest.mark.parametrize("how", ["whole", "octets"])
@pytest.mark.parametrize(
    ("header", "expected"),
    [
        (b"", 0),
        (b"Received: x\r\n", 1),
        (b"RECEIVED: x\r\nreceived \t : y\r\n\tReceived: z\r\n", 2),
        (b"X: Received: x\r\nReceivedx: y\r\nReceived-SPF: z\r\nNot-Received: a\r\n", 0),
        (b"Received:x\r\n\r\nReceived: y\r\n", 1),
        (b"\r\nReceived: y\r\n", 0),
        (b"Received:\nReceived:\n\nReceived:\n", 2),
        (b"X\r\n" * 1000 + b"Received: x\r\nReceived: x", 2),
    ],
)
def test_counting(header: bytes, expected: int, how: str) -> None:
    assert count(header, cut(header, how)) == expected


@given(
    st.lists(st.sampled_from([b"Received", b"received ", b":", b"\r\n", b"\n", b" ", b"x", b"\t"]), max_size=60),
    st.data(),
)
def test_counting_in_any_cut(words: list[bytes], data: st.DataObject) -> None:
    header = b"".join(words)
    pieces = []
    rest = header
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        pieces.append(rest[:size])
        rest = rest[size:]
    assert count(header, pieces) == count(header, [header])


# A next hop that fails

STAGES = ["greeting", "EHLO", "MAIL", "RCPT", "DATA", "."]


@asynccontextmanager
async def failing(
    replies: dict[str, bytes], kind: type[Fake] = Fake, **options: Any
) -> AsyncIterator[tuple[Fake, Server]]:
    lmtp = options.pop("lmtp", False)
    timeouts = options.pop("timeouts", Timeouts())
    async with fake(replies, kind=kind) as mx, relaying(at(mx, lmtp=lmtp, timeouts=timeouts), **options) as relay:
        yield mx, relay


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("size", [20, 300_000])
@pytest.mark.parametrize(
    "how", [b"", b"421 4.3.2 going\r\n", b"421 going\r\n", b"gibberish\r\n", b"354 go on\r\n250 done\r\n"]
)
def test_next_hop_closes(run: Runner, stage: str, how: bytes, size: int) -> None:
    """451, never 250 and never 421, whatever it was doing; the client's connection lives."""
    if stage in ("DATA", ".") and how.startswith(b"354"):
        how = b"250 done\r\n" if stage == "DATA" else b"354 go on\r\n"

    async def main() -> None:
        replies = {"EHLO": b"250-mx.example\r\n250-PIPELINING\r\n250 8BITMIME\r\n", stage: how + CLOSE}
        async with failing(replies) as (mx, relay), Client(options=at(relay)) as client:
            sent = await client.send_message(SENDER, [TO, TO], b"x" * size)
            for each in sent:
                expected = (4, 3, 2) if how.startswith(b"421 4.3.2") and stage not in STAGES[:2] else (4, 4, 1)
                assert (each.reply.code, each.reply.enhanced_code) == (451, expected)
            assert client.usable
            # It is back: so is the relay.
            good = {"greeting": b"220 mx.example\r\n", "DATA": b"354 go on\r\n"}
            mx.replies[stage] = good.get(stage, b"250 back\r\n")
            assert (await client.send_message(SENDER, [TO], MESSAGE))[0].reply.code == 250

    run(main)


@pytest.mark.parametrize("word", [b"", b"421 4.3.2 going\r\n"])
def test_next_hop_closes_between_commands(run: Runner, word: bytes) -> None:
    """What it accepted before that does not count; neither does that RSET is not answered."""

    async def main() -> None:
        async with failing({"RCPT": b"250 ok\r\n" + word + CLOSE}) as (mx, relay), talking(relay) as peer:
            await envelope(peer)
            sessions: list[Any] = []
            relay.for_each_conn(lambda conn: sessions.append(conn.session))
            await until(lambda: not sessions[0]._hop.client.usable)
            replies = await peer.say(f"RCPT TO:<{TO}>", "DATA", "x\r\n.")
            assert replies[1].startswith("354 ")
            status = "451 4.3.2 " if word else "451 4.4.1 "
            assert replies[0].startswith(status) and replies[2].startswith(status)
            mx.replies |= {"RCPT": b"250 ok\r\n", "RSET": CLOSE}
            replies = await peer.say(f"MAIL FROM:<{SENDER}>", "RSET", f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{TO}>")
            assert all(each.startswith("250 ") for each in replies)

    run(main)


def test_next_hop_is_down(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        store = Store()
        async with next_hop(store) as mx:
            port = mx.port
            async with RelayBackend(at(mx)) as backend, Server(backend, addr="127.0.0.1:0") as relay:
                await mx.shutdown(1)
                async with Client(options=at(relay)) as client:
                    assert codes(await client.send_message(SENDER, [TO], MESSAGE)) == [NO_ANSWER]
                    async with next_hop(store, backlog=5) as other:
                        backend.destination = at(other)  # type: ignore[misc]  # as if it were back
                        assert (await client.send_message(SENDER, [TO], MESSAGE))[0].reply == KEPT
        assert f"127.0.0.1:{port}" in caplog.text

    with caplog.at_level(logging.WARNING, "fastsmtp.relay"):
        run(main)


@pytest.mark.parametrize("greeting", [b"554 5.7.1 not you\r\n", b"421 4.3.2 busy\r\n", b"550 no\r\n"])
def test_next_hop_turns_the_relay_away(run: Runner, greeting: bytes) -> None:
    """That is no word on the mail."""

    async def main() -> None:
        async with failing({"greeting": greeting}) as (_, relay), Client(options=at(relay)) as client:
            assert codes(await client.send_message(SENDER, [TO], MESSAGE)) == [NO_ANSWER]

    run(main)


def test_next_hop_wants_a_login(run: Runner) -> None:
    async def main() -> None:
        async with (
            failing({"MAIL": b"530 5.7.0 Authentication required\r\n"}) as (_, relay),
            Client(options=at(relay)) as client,
        ):
            assert codes(await client.send_message(SENDER, [TO], MESSAGE)) == [(451, (4, 3, 5))]

    run(main)


@pytest.mark.parametrize("stage", STAGES)
def test_next_hop_is_silent(run: Runner, stage: str) -> None:
    async def main() -> None:
        timeouts = Timeouts(greeting=0.05, hello=0.05, mail=0.05, rcpt=0.05, data=0.05, end=0.05)
        async with (
            failing({stage: SILENCE}, timeouts=timeouts) as (_, relay),
            Client(options=at(relay)) as client,
        ):
            assert codes(await client.send_message(SENDER, [TO], MESSAGE)) == [NO_ANSWER]

    run(main)


def test_kept_connection_that_has_been_closed(run: Runner) -> None:
    """The next hop closes what was kept as soon as it is used again: another connection is taken, nobody sees it."""

    class Tired(Fake):
        async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str) -> bool:
            if what == "MAIL" and self.messages and self.connections == 1:
                writer.write(tired)
                return False
            return await super()._say(reader, writer, what)

    tired = b""

    async def main() -> None:
        async with failing({}, kind=Tired) as (mx, relay), Client(options=at(relay)) as client:
            for _ in range(2):
                assert (await client.send_message(SENDER, [TO], MESSAGE))[0].reply.code == 250
            assert mx.connections == 2 and len(mx.messages) == 2

    run(main)
    tired = b"421 4.4.2 idle for too long\r\n"
    run(main)


class Midway(Fake):
    """Says something in the middle of a message."""

    async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str) -> bool:
        going = await super()._say(reader, writer, what)
        if what == "DATA":
            while len(self._buffer) < 100_000:
                await self._more(reader)
            word = self.replies["midway"]
            writer.write(word.removesuffix(CLOSE))
            if not word.endswith(CLOSE):
                while True:
                    await self._more(reader)
            return False
        return going


@pytest.mark.parametrize("chunking", [True, False])
@pytest.mark.parametrize(
    ("word", "code", "status"),
    [
        (b"552 5.3.4 too large\r\n", 552, (5, 3, 4)),
        (b"452 4.3.1 disk full\r\n", 452, (4, 3, 1)),
        (b"250 2.0.0 enough\r\n", *NO_ANSWER),
        (b"421 4.3.2 going\r\n", 451, (4, 3, 2)),
        (CLOSE, *NO_ANSWER),
    ],
)
def test_early_answer(run: Runner, word: bytes, code: int, status: tuple[int, int, int], chunking: bool) -> None:
    """What the next hop says in the middle of a message is the answer; the rest is read and dropped."""

    async def main() -> None:
        async with (
            failing({"midway": word}, kind=Midway) as (mx, relay),
            Client(options=at(relay, chunking=chunking)) as client,
        ):
            sent = await client.send_message(SENDER, [TO], b"x" * 78 + b"\r\n" + BODY * 3000)
            assert codes(sent) == [(code, status)]
            assert not mx.messages
            assert client.usable

    run(main)


def test_early_answer_to_a_chunk(run: Runner) -> None:
    async def main() -> None:
        replies = {"EHLO": b"250-mx.example\r\n250 CHUNKING\r\n", "BDAT": b"552 5.3.4 too large\r\n"}
        async with failing(replies) as (mx, relay), Client(options=at(relay)) as client:
            assert codes(await client.send_message(SENDER, [TO], BODY * 3000)) == [(552, (5, 3, 4))]
            assert not mx.messages
            assert codes(await client.send_message(SENDER, [TO], MESSAGE)) == [(250, (2, 0, 0))]
            assert mx.connections == 1

    run(main)


def test_lmtp_next_hop_closes_between_replies(run: Runner) -> None:
    """Who was answered has the message, and LMTP's client is told so; SMTP's gets a temporary refusal."""

    async def main() -> None:
        replies = {".": b"250 2.1.5 kept\r\n550 5.2.1 not you\r\n" + CLOSE}
        for front in (True, False):
            async with (
                fake(replies) as mx,
                relaying(at(mx, lmtp=True), lmtp=front) as relay,
                Client(options=at(relay, lmtp=front)) as client,
            ):
                sent = await client.send_message(SENDER, [TO, "c@example.org", "d@example.org"], MESSAGE)
                if front:
                    assert codes(sent) == [(250, (2, 1, 5)), (550, (5, 2, 1)), NO_ANSWER]
                else:
                    assert codes(sent) == [NO_ANSWER] * 3
                    assert "1 of 3 recipients" in sent[0].reply.message

    run(main)


def test_hook_that_is_given_up(run: Runner) -> None:
    """The relay's own patience: 451, and the connection to the next hop is broken off before the end."""

    async def main() -> None:
        for stage in ("MAIL", "RCPT", "."):
            async with failing({stage: SILENCE}, hook_timeout=0.05) as (mx, relay):
                async with Client(options=at(relay)) as client:
                    sent = await client.send_message(SENDER, [TO], MESSAGE)
                    assert codes(sent) == [(451, (4, 3, 0))]
                    await mx.gone.wait()
                await no_connections(pool_of(relay))

    run(main)


@pytest.mark.parametrize("whose", ["hook", "client"])
def test_next_hop_that_does_not_read(run: Runner, whose: str, caplog: pytest.LogCaptureFixture) -> None:
    """It is given up, and the rest of the message is read and dropped."""

    class Deaf(Fake):
        async def _say(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, what: str) -> bool:
            going = await super()._say(reader, writer, what)
            if what == "DATA":
                await asyncio.Event().wait()
            return going

    async def main() -> None:
        patience: dict[str, Any] = {"hook_timeout": 0.1} if whose == "hook" else {"timeouts": Timeouts(block=0.1)}
        async with (
            failing({}, kind=Deaf, max_message_bytes=0, **patience) as (_, relay),
            Client(options=at(relay)) as client,
        ):
            sent = await client.send_message(SENDER, [TO], generated(48_000_000))
            assert codes(sent) == [(451, (4, 3, 0)) if whose == "hook" else NO_ANSWER]
            assert not pool_of(relay).connections

    run(main)
    assert bool(caplog.records) is (whose == "hook")
    assert all("did not return in time" in each.message for each in caplog.records)


def test_patience(run: Runner) -> None:
    """Nobody waits for ever for a connection."""

    async def main() -> None:
        async with fake() as mx, Pool(max_per_destination=1) as pool:
            async with relaying(at(mx), {"pool": pool, "patience": 0.05}) as relay, talking(relay) as peer:
                await peer.hello()
                async with pool.connection(at(mx)):
                    assert (await peer.say(f"MAIL FROM:<{SENDER}>"))[0].startswith("451 4.4.1 ")
                    assert pool.waiting == 0
                # It is free now, and needs no waiting.
                assert (await peer.say(f"MAIL FROM:<{SENDER}>"))[0].startswith("250 ")
            async with pool.connection(at(mx)):  # which was not closed, as it is not the relay's
                pass

    run(main)


# A client that fails


async def envelope(peer: Peer) -> None:
    await peer.hello()
    replies = await peer.say(f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{TO}>")
    assert all(each.startswith("250 ") for each in replies)


FIN_STAGES = ["hello", "MAIL", "RCPT", "DATA", "header", "body", "almost", "chunk", "between", "last chunk"]


@pytest.mark.parametrize("chunking", [True, False])
@pytest.mark.parametrize("rst", [False, True])
@pytest.mark.parametrize("stage", FIN_STAGES)
def test_client_disconnects(run: Runner, stage: str, rst: bool, chunking: bool) -> None:
    """Whenever that is, the next hop gets nothing, and no connection hangs."""
    said = {
        "hello": [],
        "MAIL": [f"MAIL FROM:<{SENDER}>"],
        "RCPT": [f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{TO}>"],
    }
    data = {
        "DATA": b"DATA\r\n",
        "header": b"DATA\r\nSubject: x\r\n",
        "body": b"DATA\r\n" + BODY * 200,
        "almost": b"DATA\r\n" + BODY * 200 + b"\r\n.\r",
        "chunk": b"BDAT 1000000\r\n" + BODY * 200,
        "between": b"BDAT %d\r\n" % (len(BODY) * 200) + BODY * 200,
        "last chunk": b"BDAT %d LAST\r\n" % (len(BODY) * 200 + 1) + BODY * 200,
    }

    async def main() -> None:
        store = Store()
        async with next_hop(store, chunking=chunking) as mx, relaying(at(mx)) as relay:
            async with talking(relay) as peer:
                await peer.hello()
                await peer.say(*said.get(stage, said["RCPT"]))
                if stage in data:
                    peer.writer.write(data[stage])
                    await peer.writer.drain()
                    if stage != "chunk" and stage != "last chunk":
                        await peer.reply()
                if rst:
                    peer.cut()
                else:
                    peer.writer.write_eof()
                    await peer.reader.read()
            await until(lambda: not relay.counters.connections)
            assert not store.messages
            assert pool_of(relay).connections == pool_of(relay).idle  # none is in use
            async with Client(options=at(relay)) as client:
                assert (await client.send_message(SENDER, [TO], MESSAGE))[0].reply == KEPT
        assert len(store.messages) == 1

    run(main)


def test_whole_message_before_fin_is_delivered(run: Runner) -> None:
    async def main() -> None:
        store = Store()
        async with next_hop(store) as mx, relaying(at(mx)) as relay, talking(relay) as peer:
            await envelope(peer)
            peer.writer.write(b"DATA\r\n" + MESSAGE.replace(b"\r\n.", b"\r\n..") + b".\r\nQUIT\r\n")
            peer.writer.write_eof()
            assert (await peer.reply())[:3] == "354"
            assert (await peer.reply()) == "250 2.6.7 kept as 4711"
            assert (await peer.reply())[:3] == "221"
        assert without_trace(store.messages[0].octets) == MESSAGE

    run(main)


def test_lmtp_client_that_does_not_wait(run: Runner) -> None:
    """LMTP: who hangs up before the replies sends it all again, so the next hop is not waited for either."""

    async def main() -> None:
        async with fake({".": SILENCE}) as mx:
            async with relaying(at(mx, lmtp=True), lmtp=True) as relay:
                async with talking(relay) as peer:
                    await peer.reply()
                    await peer.say("LHLO client.example", f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{TO}>", "DATA")
                    peer.writer.write(MESSAGE + b"\r\n.\r\n")
                    await until(lambda: mx.messages)
                    peer.cut()
                await mx.gone.wait()
                await until(lambda: not relay.counters.connections)
                assert not pool_of(relay).connections

    run(main)


@pytest.mark.parametrize("chunking", [True, False])
def test_refused_by_the_relay_itself(run: Runner, chunking: bool) -> None:
    """A bare LF, or more than the limit, in the middle: the next hop gets no part."""

    async def main() -> None:
        store = Store()
        async with (
            next_hop(store, chunking=chunking) as mx,
            relaying(at(mx), max_message_bytes=400_000) as relay,
            talking(relay) as peer,
        ):
            await envelope(peer)
            await peer.say("DATA")
            peer.writer.write(BODY * 200 + b"x\ny\r\n.\r\n")
            assert (await peer.reply()).startswith("550 5.6.0 ")
            await peer.say(f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{TO}>", "DATA")
            peer.writer.write(BODY * 1000 + b"\r\n.\r\n")
            assert (await peer.reply()).startswith("552 5.3.4 ")
            assert not store.messages
            replies = await peer.say(f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{TO}>", "DATA", "x\r\n.")
            assert replies[-1] == "250 2.6.7 kept as 4711"

    run(main)


def test_reset_between_chunks(run: Runner) -> None:
    async def main() -> None:
        store = Store()
        async with next_hop(store) as mx, relaying(at(mx)) as relay, talking(relay) as peer:
            for size in (10, 200_000):
                if size == 10:
                    await envelope(peer)
                else:
                    await peer.say(f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{TO}>")
                peer.writer.write(b"BDAT %d\r\n" % size + b"x" * size)
                assert (await peer.reply()).startswith("250 ")
                assert (await peer.say("RSET"))[0].startswith("250 ")
            assert not store.messages
            replies = await peer.say(f"MAIL FROM:<{SENDER}>", f"RCPT TO:<{TO}>", "BDAT 3 LAST\r\nx")
            assert replies[-1].startswith("250 ")
        assert len(store.messages) == 1

    run(main)


# Memory


class SlowSession(DefaultSession):
    """Reads in small bits, and lets others go first."""

    def __init__(self, sizes: list[int]) -> None:
        super().__init__()
        self._sizes = sizes

    async def data(self, reader: DataReader, context: DataContext) -> None:
        while await reader.read(8192):
            await asyncio.sleep(0)
        self._sizes.append(reader.size)


async def generated(octets: int) -> AsyncIterator[bytes]:
    block = (b"x" * 76 + b"\r\n") * 200
    while octets > 0:
        yield block
        octets -= len(block)


def through(octets: int, chunking: bool, lmtp: bool) -> Callable[[], Any]:
    async def main() -> None:
        sizes: list[int] = []
        async with (
            Server(
                DefaultBackend(lambda: SlowSession(sizes)),
                addr="127.0.0.1:0",
                max_message_bytes=0,
                chunking=chunking,
                lmtp=lmtp,
            ) as mx,
            relaying(at(mx, lmtp=lmtp), max_message_bytes=0) as relay,
            Client(options=at(relay)) as client,
        ):
            tracemalloc.start()
            try:
                assert (await client.send_message(SENDER, [TO], generated(octets)))[0].reply.code == 250
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            assert octets <= sizes[0] < octets + 20_000
            assert peak < 6_000_000  # of all four: who sends, both sides of the relay, and who receives

    return main


@pytest.mark.parametrize(("chunking", "lmtp"), [(True, False), (False, True)])
def test_memory_is_bounded(run: Runner, chunking: bool, lmtp: bool) -> None:
    run(through(16_000_000, chunking, lmtp))


@pytest.mark.slow
@pytest.mark.parametrize("chunking", [True, False])
def test_memory_is_bounded_for_large_messages(run: Runner, chunking: bool) -> None:
    run(through(100_000_000, chunking, False))


def test_back_pressure(run: Runner) -> None:
    """A next hop that does not read stops the sender: all that it can write is in buffers of fixed size."""

    async def main() -> None:
        go = asyncio.Event()
        given = 0

        class Stuck(DefaultSession):
            async def data(self, reader: DataReader, context: DataContext) -> None:
                await go.wait()
                async for _ in reader:
                    pass

        async def counted() -> AsyncIterator[bytes]:
            nonlocal given
            async for block in generated(48_000_000):
                given += len(block)
                yield block

        async with (
            Server(DefaultBackend(Stuck), addr="127.0.0.1:0", max_message_bytes=0) as mx,
            relaying(at(mx), max_message_bytes=0) as relay,
            Client(options=at(relay)) as client,
        ):
            sending = asyncio.ensure_future(client.send_message(SENDER, [TO], counted()))
            await until(lambda: given)
            before = 0
            while given != before:  # until nothing moves: all that it takes is turns of the loop
                before = given
                for _ in range(2000):
                    await asyncio.sleep(0)
            assert not sending.done()
            assert given < 40_000_000
            go.set()
            assert (await sending)[0].reply.code == 250

    run(main)


# Sessions of one's own, and configuration


def test_session_with_a_policy(run: Runner) -> None:
    class Policy(RelaySession):
        async def rcpt(self, recipient: str, params: RcptParams) -> Reply | None:
            if recipient.startswith("early"):
                raise SMTPError(550, EnhancedCode(5, 7, 1), "No relaying")
            reply = await super().rcpt(recipient, params)
            if recipient.startswith("late"):
                return NOBODY
            return reply

    async def main() -> None:
        store = Store()
        async with (
            next_hop(store) as mx,
            relaying(at(mx), {"session": Policy}) as relay,
            Client(options=at(relay)) as client,
        ):
            sent = await client.send_message(SENDER, ["early@example.org", TO], MESSAGE)
            assert codes(sent) == [(550, (5, 7, 1)), (250, (2, 6, 7))]
            # Who was refused behind the next hop's back would get the message all the same.
            logging.disable()
            try:
                sent = await client.send_message(SENDER, ["late@example.org", TO], MESSAGE)
            finally:
                logging.disable(logging.NOTSET)
            assert codes(sent) == [(550, (5, 1, 1)), (451, (4, 3, 0))]
        assert len(store.messages) == 1

    run(main)


def test_mail_that_is_refused_behind_the_next_hop(run: Runner) -> None:
    class Policy(RelaySession):
        async def mail(self, sender: str, params: MailParams) -> Reply | None:
            reply = await super().mail(sender, params)
            return NOBODY if sender.startswith("late") else reply

    async def main() -> None:
        async with fake() as mx, relaying(at(mx), {"session": Policy}) as relay, Client(options=at(relay)) as client:
            assert codes(await client.send_message("late@example.org", [TO], MESSAGE)) == [(550, (5, 1, 1))]
            assert codes(await client.send_message(SENDER, [TO], MESSAGE)) == [(250, (2, 0, 0))]
            assert mx.connections == 1 and mx.lines.count("RSET") == 1

    run(main)


def test_login_first(run: Runner, tmp_path: pathlib.Path) -> None:
    """A session that comes only with a login: EHLO promised what the next hop does not have."""

    async def main() -> None:
        users = AuthFile(tmp_path / "users", missing_ok=True)
        users.add("anna", "secret", iterations=4096)
        async with (
            fake() as mx,
            RelayBackend(at(mx)) as backend,
            Server(UsersBackend(backend, users, required=True), addr="127.0.0.1:0", allow_insecure_auth=True) as relay,
            Client(options=at(relay, allow_insecure_auth=True)) as client,
        ):
            with pytest.raises(SMTPError) as refused:
                await client.mail(SENDER)
            assert refused.value.code == 530
            await client.login("anna", "secret")
            with pytest.raises(SMTPError) as refused:
                await client.mail(SENDER, MailParams(smtputf8=True))
            assert (refused.value.code, refused.value.enhanced_code) == (550, (5, 6, 7))
            assert codes(await client.send_message(SENDER, [TO], MESSAGE)) == [(250, (2, 0, 0))]
            assert b"with ESMTPA;" in mx.messages[0]
        users.close()

    run(main)


def test_configuration() -> None:
    for fields in ({"patience": 0}, {"max_hops": 0}):
        with pytest.raises(ConfigurationError):
            RelayBackend(ClientOptions(host="mx.example"), **fields)  # type: ignore[arg-type]


def test_closed_pool(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with fake() as mx, relaying(at(mx)) as relay:
            await pool_of(relay).close()
            async with talking(relay) as peer:
                await peer.hello()
                assert (await peer.say(f"MAIL FROM:<{SENDER}>"))[0].startswith("451 4.3.0 ")

    run(main)
    assert "the pool is closed" in caplog.text


def test_address_that_cannot_be_handed_on(run: Runner) -> None:
    """The command would be longer than any server takes."""

    async def main() -> None:
        wide = "utf-8;" + "\u00fc" * 400
        async with (
            fake({"EHLO": b"250-mx.example\r\n250-SMTPUTF8\r\n250 DSN\r\n"}) as mx,
            relaying(at(mx), dsn=True) as relay,
            talking(relay) as peer,
        ):
            await peer.hello()
            replies = await peer.say(
                f"MAIL FROM:<{SENDER}> SMTPUTF8", f"RCPT TO:<{TO}> ORCPT={wide}", f"RCPT TO:<{TO}>", "DATA", "x\r\n."
            )
            assert [each[:3] for each in replies] == ["250", "555", "250", "354", "250"]

    run(main)


def test_example(run: Runner) -> None:
    async def main() -> None:
        store = Store()
        path = pathlib.Path(__file__).parent.parent / "examples" / "relay.py"
        async with next_hop(store) as mx:
            process = await asyncio.create_subprocess_exec(
                sys.executable, str(path), "0", "127.0.0.1", str(mx.port), stdout=asyncio.subprocess.PIPE
            )
            assert process.stdout is not None
            try:
                match = re.search(rb"port (\d+)", await process.stdout.readline())
                assert match
                async with Client("127.0.0.1", int(match[1])) as client:
                    sent = await client.send_message(SENDER, [TO, "c@elsewhere.example"], MESSAGE)
                    assert codes(sent) == [(250, (2, 6, 7)), (550, (5, 7, 1))]
            finally:
                process.kill()
                await process.communicate()
        assert len(store.messages) == 1

    run(main)
