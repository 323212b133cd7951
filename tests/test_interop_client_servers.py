"""We deliver to go-smtp, Node's smtp-server and aiosmtpd: by the client, through the pass-through relay, by the delivery worker.

Each tells what it got, which is compared octet by octet.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import hashlib
import io
import pathlib
import re
import ssl
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from fastsmtp import MailParams, OriginalRecipient, RcptParams, Server, SMTPError
from fastsmtp.client import Client, Delivery, TLSFailed, send_mail
from fastsmtp.client_options import ClientOptions
from fastsmtp.delivery.relay import RelayBackend
from fastsmtp.extensions import ValidSince
from fastsmtp.pool import Pool
from fastsmtp.sasl import ClientMechanism, CramMD5Client, LoginClient, PlainClient, XOAuth2Client

from .delivering import StaticRoutes, envelope, site
from .interop.recorders import PASSWORD, PEERS, USER, Peer, Recorder, running
from .interop.tools import HARD, Certificates
from .loops import Runner

pytestmark = pytest.mark.interop

ALL = pytest.mark.parametrize("peer", PEERS.values(), ids=PEERS)
LMTP = pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
IMPLICIT = pytest.mark.parametrize("implicit", [False, True], ids=["starttls", "implicit"])
SENDER, TO = "a@b.example", "c@d.example"


def at(recorder: Recorder, **fields: Any) -> ClientOptions:
    return ClientOptions(host="127.0.0.1", port=recorder.port, local_hostname="me.example", **fields)


def codes(deliveries: list[Delivery]) -> list[int]:
    return [each.reply.code for each in deliveries]


def trusting(pems: Certificates, **fields: Any) -> dict[str, Any]:
    """Options of a client that knows the peer by its certificate."""
    context = ssl.create_default_context(cafile=str(pems.ca))
    return {"tls_context": context, "server_hostname": "mx.example", **fields}


async def in_pieces(octets: bytes, size: int = 7) -> AsyncIterator[bytes]:
    for start in range(0, len(octets), size):
        yield octets[start : start + size]


MESSAGES: dict[str, tuple[Callable[[], Any], bytes]] = {
    "octets": (lambda: HARD, HARD),
    "file": (lambda: io.BytesIO(HARD), HARD),
    "pieces": (lambda: in_pieces(HARD), HARD),
    "dots": (lambda: b".\r\n..\r\n.a\r\n\r\n.\r\n", b".\r\n..\r\n.a\r\n\r\n.\r\n"),
    "unix lines": (lambda: HARD.replace(b"\r\n", b"\n"), HARD),
    "no end of line": (lambda: b"Subject: x\r\n\r\n.", b"Subject: x\r\n\r\n.\r\n"),
}
"""What is sent, and what arrives."""


@ALL
@LMTP
@pytest.mark.parametrize("chunking", [True, False], ids=["bdat", "data"])
def test_octets_and_envelope(run: Runner, peer: Peer, lmtp: bool, chunking: bool) -> None:
    async def main() -> None:
        with running(peer, lmtp=lmtp) as recorder:
            trace = io.StringIO()
            async with Client(options=at(recorder, lmtp=lmtp, chunking=chunking, debug=trace)) as client:
                assert client.extensions.keys() == peer.offers
                assert client.max_message_size == 64 << 20
                assert client.max_recipients == (50 if "LIMITS" in peer.offers else None)
                for make, _ in MESSAGES.values():
                    assert codes(await client.send_message(SENDER, [TO, "e@d.example"], make())) == [250, 250]
                assert codes(await client.send_message("josé@b.example", ["δ@d.example"], HARD)) == [250]
                assert (await client.noop()).code == 250
            told = recorder.records(len(MESSAGES) + 1)
            assert [each.text for each in told] == [expected for _, expected in MESSAGES.values()] + [HARD]
            for record in told[:-1]:
                assert (record.sender, record.recipients) == (SENDER, [TO, "e@d.example"])
                assert record.told["helo"] == "me.example" and not record.told["mail"]["smtputf8"]
            assert (told[-1].sender, told[-1].recipients) == ("josé@b.example", ["δ@d.example"])
            assert told[-1].told["mail"]["smtputf8"]
            said = trace.getvalue()
            assert ("BDAT" in said) == (chunking and "CHUNKING" in peer.offers)
            assert f" SIZE={len(HARD)}" in said and "BODY=8BITMIME" in said

    run(main)


@ALL
@LMTP
def test_a_refusal_of_some(peer: Peer, lmtp: bool) -> None:
    everybody = [TO, "nobody@d.example", "full@d.example", "later@d.example", "e@d.example"]
    expected = [250, 550, 552 if lmtp else 250, 451, 250]

    async def main() -> None:
        with running(peer, lmtp=lmtp) as recorder:
            async with Client(options=at(recorder, lmtp=lmtp)) as client:
                for _ in range(2):
                    deliveries = await client.send_message(SENDER, everybody, HARD)
                    assert [each.recipient for each in deliveries] == everybody
                    assert codes(deliveries) == expected
                    assert "Nobody of that name" in deliveries[1].reply.message
                # Nobody is left, and the connection is good for another message.
                assert codes(await client.send_message(SENDER, everybody[1:2], HARD)) == [550]
                assert codes(await client.send_message(SENDER, [TO], HARD)) == [250]
                # Step by step.
                await client.mail(SENDER)
                with pytest.raises(SMTPError, match="Nobody"):
                    await client.rcpt("nobody@d.example")
                await client.rcpt(TO)
                assert codes(await client.data(HARD)) == [550, 250]
                await client.mail(SENDER)
                await client.rcpt(TO)
                await client.reset()
            with pytest.raises(SMTPError, match="Come back later"):
                await send_mail(SENDER, ["later@d.example"], HARD, options=at(recorder, lmtp=lmtp))
            told = recorder.records(4)
            taken = [TO, "full@d.example", "e@d.example"]
            assert [each.recipients for each in told] == [taken, taken, [TO], [TO]]
            assert {each.text for each in told} == {HARD}

    asyncio.run(main())


MECHANISMS: dict[str, Callable[[str], ClientMechanism]] = {
    "PLAIN": lambda password: PlainClient(USER, password),
    "LOGIN": lambda password: LoginClient(USER, password),
    "CRAM-MD5": lambda password: CramMD5Client(USER, password),
    "XOAUTH2": lambda password: XOAuth2Client(USER, "token" if password == PASSWORD else password),
}


@ALL
@LMTP
@IMPLICIT
def test_tls_and_auth(run: Runner, peer: Peer, lmtp: bool, implicit: bool, tmp_path: pathlib.Path) -> None:
    pems = Certificates.make(tmp_path)
    fields: dict[str, Any] = {"lmtp": lmtp, "tls": implicit, "starttls": "never" if implicit else "required"}

    async def main() -> None:
        with running(peer, lmtp=lmtp, tls=pems.server, implicit=implicit, auth=True) as recorder:
            for name in peer.mechanisms:
                async with Client(options=at(recorder, **trusting(pems, **fields))) as client:
                    tls = client.tls_connection_state
                    assert tls is not None and tls.version() == "TLSv1.3"
                    assert set(client.auth_mechanisms) == set(peer.mechanisms)
                    assert client.supports_auth(name.lower()) and not client.supports_auth("X-NONE")
                    with pytest.raises(SMTPError) as caught:
                        await client.auth(MECHANISMS[name]("wrong"))
                    assert caught.value.code == 535
                    assert (await client.auth(MECHANISMS[name](PASSWORD))).code == 235
                    assert codes(await client.send_message(SENDER, [TO], HARD)) == [250]
            login: dict[str, Any] = {"username": USER, "password": PASSWORD}
            assert codes(await send_mail(SENDER, [TO], HARD, **login, options=at(recorder, **trusting(pems, **fields))))
            told = recorder.records(len(peer.mechanisms) + 1)
            assert all(each.told["tls"] and each.told["user"] == USER and each.text == HARD for each in told)
            strangers = trusting(pems, **fields) | {"server_hostname": "other.example"}
            for options in (at(recorder, **fields), at(recorder, **strangers)):
                with pytest.raises(TLSFailed, match="certificate"):
                    await send_mail(SENDER, [TO], HARD, options=options)
            if not implicit:  # where anybody will do, whoever answers is talked to
                await send_mail(SENDER, [TO], HARD, options=at(recorder, lmtp=lmtp))
                assert recorder.records(1)[0].told["tls"]

    run(main)


@ALL
def test_parameters(peer: Peer, tmp_path: pathlib.Path) -> None:
    """Those that the peer knows arrive; the others are refused here."""
    pems = Certificates.make(tmp_path)
    since = datetime.datetime(2020, 2, 3, 4, 5, 6, tzinfo=datetime.UTC)
    mail: dict[str, MailParams] = {
        "DSN": MailParams(ret="HDRS", envid="QQ+314 159"),
        "REQUIRETLS": MailParams(requiretls=True),
        "AUTH": MailParams(auth="e+f@b.example"),
    }
    rcpt: dict[str, RcptParams] = {
        "DSN": RcptParams(("SUCCESS", "DELAY"), OriginalRecipient("rfc822", "c+d@original.example")),
        "RRVS": RcptParams(rrvs=ValidSince(since)),
    }
    told: dict[str, Callable[[dict[str, Any], dict[str, Any]], object]] = {
        "DSN": lambda mail, rcpt: (
            (mail["ret"], mail["envid"]) in (("HDRS", "QQ+314 159"), ("HDRS", "QQ+2B314+20159"))
            and set(rcpt["notify"]) == {"SUCCESS", "DELAY"}
            and rcpt["orcpt"].lower() in ("rfc822;c+d@original.example", "rfc822;c+2bd@original.example")
        ),
        "REQUIRETLS": lambda mail, rcpt: mail["requiretls"] is True,
        "AUTH": lambda mail, rcpt: mail.get("auth", mail.get("AUTH")) in ("e+f@b.example", "e+2Bf@b.example"),
        "RRVS": lambda mail, rcpt: rcpt["rrvs"] == since.timestamp(),
    }

    async def main() -> None:
        with running(peer, tls=pems.server, auth=True) as recorder:
            async with Client(options=at(recorder, **trusting(pems, starttls="required"))) as client:
                for name in sorted({*mail, *rcpt}):
                    sending = client.send_message(
                        SENDER, [(TO, rcpt.get(name, RcptParams()))], HARD, mail.get(name, MailParams())
                    )
                    if client.extension(name.lower()) is None:
                        with pytest.raises(ValueError, match=f"offer {name}|does not offer"):
                            await sending
                        continue
                    if (peer.name, name) == (
                        "aiosmtpd",
                        "AUTH",
                    ):  # it offers AUTH, and does not know AUTH= (RFC 4954 5)
                        assert codes(await sending) == [555]
                        continue
                    assert codes(await sending) == [250], name
                    (record,) = recorder.records(1)
                    assert told[name](record.told["mail"], (record.told["rcpt"] or [{}])[0]), record.told
                    assert record.text == HARD

    asyncio.run(main())


def test_binary_octets(run: Runner) -> None:
    """BINARYMIME to go-smtp: whatever octets there are."""
    octets = bytes(range(256)) * 3000 + b"\n.\n\r.\r\0" + b"x" * 5000

    async def main() -> None:
        with running(PEERS["go-smtp"]) as recorder:
            async with Client(options=at(recorder)) as client:
                for message in (octets, b""):
                    params = MailParams(body="BINARYMIME")
                    assert codes(await client.send_message(SENDER, [TO], message, params)) == [250]
            first, second = recorder.records(2)
            assert (first.text, second.text) == (octets, b"")
            assert first.told["mail"]["body"] == "BINARYMIME"

    run(main)


@pytest.mark.parametrize(
    ("name", "chunking"), [("go-smtp", True), ("go-smtp", False), ("smtp-server", False), ("aiosmtpd", False)]
)
def test_a_large_message(name: str, chunking: bool) -> None:
    line = b"." + b"x" * 74 + b".\r\n"
    block = line * 1000
    count = 30_000_000 // len(block)
    expected = hashlib.sha256()
    for _ in range(count):
        expected.update(block)

    async def blocks() -> AsyncIterator[bytes]:
        for _ in range(count):
            yield block

    async def main() -> None:
        with running(PEERS[name]) as recorder:
            async with Client(options=at(recorder, chunking=chunking)) as client:
                assert codes(await client.send_message(SENDER, [TO], blocks())) == [250]
            (record,) = recorder.records(1)
            assert len(record.text) == count * len(block)
            assert hashlib.sha256(record.text).digest() == expected.digest()

    asyncio.run(main())


@ALL
def test_many_over_kept_connections(peer: Peer) -> None:
    async def main() -> None:
        with running(peer) as recorder:
            destination = at(recorder)
            async with Pool(max_per_destination=3) as pool:
                texts = [b"Subject: %d\r\n\r\n.\r\n" % number for number in range(100)]
                sent = await asyncio.gather(
                    *(pool.send_message(destination, SENDER, [TO], text) for text in texts),
                )
                assert [codes(each) for each in sent] == [[250]] * 100
                assert pool.connections == pool.idle <= 3
            assert sorted(each.text for each in recorder.records(100)) == sorted(texts)

    asyncio.run(main())


@ALL
@pytest.mark.parametrize("back", [False, True], ids=["to-smtp", "to-lmtp"])
@pytest.mark.parametrize("front", [False, True], ids=["smtp", "lmtp"])
def test_pass_through(peer: Peer, front: bool, back: bool) -> None:
    async def main() -> None:
        with running(peer, lmtp=back) as recorder:
            async with (
                RelayBackend(at(recorder, lmtp=back)) as backend,
                Server(backend, addr="127.0.0.1:0", domain="relay.example", lmtp=front, dsn=True) as relay,
                Client("127.0.0.1", relay.port, lmtp=front, local_hostname="client.example") as client,
            ):
                assert (client.extension("DSN") is not None) == ("DSN" in peer.offers)
                assert client.extension("SMTPUTF8") == ""
                assert codes(await client.send_message("josé@b.example", ["δ@d.example"], HARD)) == [250]
                deliveries = await client.send_message(SENDER, ["nobody@d.example", TO, "later@d.example"], HARD)
                assert codes(deliveries) == [550, 250, 451]
                assert "Nobody of that name" in deliveries[0].reply.message
                if front and back:
                    assert codes(await client.send_message(SENDER, ["full@d.example", TO], HARD)) == [552, 250]
                if not back:
                    params = MailParams(body="8BITMIME", ret="FULL")
                    with contextlib.suppress(ValueError):
                        assert codes(await client.send_message(SENDER, [TO], HARD, params)) == [250]
                        assert "DSN" in peer.offers
            told = recorder.records(2 + (front and back) + ("DSN" in peer.offers and not back))
            for record in told:
                trace, rest = cut_trace(record.text)
                assert rest == HARD and b"from client.example ([127.0.0.1])" in trace and b"relay.example" in trace
            assert told[0].recipients == ["δ@d.example"] and told[1].recipients == [TO]
            if "XFORWARD" in peer.offers:
                xforward = told[0].told["xforward"]
                assert (xforward["ADDR"], xforward["HELO"]) == ("127.0.0.1", "client.example")

    asyncio.run(main())


def cut_trace(text: bytes) -> tuple[bytes, bytes]:
    """The Received field in front, and what follows it."""
    match = re.match(rb"Received: [^\r]*\r\n(?:[ \t][^\r]*\r\n)+", text)
    assert match, text[:300]
    return match[0], text[match.end() :]


@ALL
@LMTP
def test_the_delivery_worker(peer: Peer, lmtp: bool, tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        with running(peer, lmtp=lmtp) as recorder:
            async with site(tmp_path, StaticRoutes({"d.example": [recorder.port]}, lmtp=lmtp)) as there:
                params = MailParams(smtputf8=True)
                names = ("c", "nobody", "later", "full", "δ")
                await there.queue.put(envelope(*(f"{name}@d.example" for name in names), params=params), HARD)
                assert await there.watch.saw(5) == [
                    ("c@d.example", "delivered 250"),
                    ("full@d.example", "failed 552" if lmtp else "delivered 250"),
                    ("later@d.example", "pending 451"),
                    ("nobody@d.example", "failed 550"),
                    ("δ@d.example", "delivered 250"),
                ]
                (notice,) = await there.notices()
                said = notice.as_string()
                assert ("nobody@d.example" in said, "full@d.example" in said) == (True, lmtp)
                assert "later@d.example" not in said.partition("--=")[2].partition("message/rfc822")[0]
                await there.queue.put(envelope("c@d.example", sender=""), b"Subject: notice\r\n\r\n.\r\n")
                await there.watch.saw(7)  # the notice was tried as well
            first, second = recorder.records(2)
            assert first.text == HARD and sorted(first.recipients) == ["c@d.example", "full@d.example", "δ@d.example"]
            assert second.text == b"Subject: notice\r\n\r\n.\r\n" and second.sender in ("", "<>")

    asyncio.run(main())
