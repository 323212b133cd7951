"""We deliver to Postfix and to its smtp-sink: by the client, through the pass-through relay, by the delivery worker.

What Postfix has taken it gives to a server of ours, which keeps it; smtp-sink writes files.
"""

from __future__ import annotations

import asyncio
import io
import os
import pathlib
import shutil
import ssl
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from fastsmtp import MailParams, OriginalRecipient, RcptParams, Server, SMTPError
from fastsmtp.client import Client, Delivery, TLSFailed, send_mail
from fastsmtp.client_options import ClientOptions, Timeouts
from fastsmtp.delivery.relay import RelayBackend
from fastsmtp.pool import Pool
from fastsmtp.protocol.xforward import XClient
from fastsmtp.reply import DataTooLarge

from .delivering import StaticRoutes, envelope, site
from .inprocess import Arrived, InProcess
from .interop.postfix import Postfix, postfix
from .interop.tools import HARD, Certificates, reserved_port, tool
from .loops import Runner

pytestmark = pytest.mark.interop

LMTP = pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
SENDER, TO = "a@b.example", "c@d.example"
EIGHT = MailParams(body="8BITMIME")
REFUSALS = "inline:{{nobody@d.example = 550 5.1.1 Nobody of that name}, {later@d.example = 451 4.2.1 Come back later}}"


def at(port: int, **fields: Any) -> ClientOptions:
    return ClientOptions(host="127.0.0.1", port=port, local_hostname="me.example", **fields)


def codes(deliveries: list[Delivery]) -> list[int]:
    return [each.reply.code for each in deliveries]


# Postfix


@contextmanager
def mta(**settings: object) -> Iterator[tuple[Postfix, InProcess]]:
    """Postfix, and where its mail ends."""
    ours = {
        "smtpd_recipient_restrictions": f"check_recipient_access {REFUSALS}, permit_mynetworks, reject",
        "smtpd_authorized_xforward_hosts": "127.0.0.0/8",
        "message_size_limit": 40_000_000,
    }
    with InProcess(asyncio.new_event_loop, dsn=True, max_message_bytes=0) as end:
        with postfix(f"smtp:[127.0.0.1]:{end.port}", ours | settings) as running:
            yield running, end


def arrived(end: InProcess, running: Postfix, count: int) -> list[Arrived]:
    found = end.inbox.wait(count)
    assert found is not None, f"{len(end.inbox.taken())} of {count}\n{running.log()}"
    return found


def cut_trace(text: bytes, fields: int = 1) -> bytes:
    """A message without so many Received fields."""
    lines = text.split(b"\r\n")
    for _ in range(fields):
        assert lines[0].startswith(b"Received: ")
        del lines[0]
        while lines[0][:1] in (b" ", b"\t"):
            del lines[0]
    return b"\r\n".join(lines)


@pytest.mark.parametrize("chunking", [True, False], ids=["bdat", "data"])
def test_postfix_octets_and_envelope(run: Runner, chunking: bool) -> None:
    dsn = MailParams(ret="HDRS", envid="QQ+314159", body="8BITMIME")
    original = RcptParams(("SUCCESS", "DELAY"), OriginalRecipient("rfc822", "c+d@original.example"))
    trace = io.StringIO()

    async def main(port: int) -> None:
        async with Client(options=at(port, chunking=chunking, debug=trace)) as client:
            offered = "PIPELINING SIZE VRFY ETRN XCLIENT XFORWARD ENHANCEDSTATUSCODES 8BITMIME DSN SMTPUTF8 CHUNKING"
            assert client.extensions.keys() == set(offered.split())
            assert client.max_message_size == 40_000_000
            assert (await client.verify(TO)).code == 252
            with pytest.raises(SMTPError, match="Nobody of that name"):
                await client.verify("nobody@d.example")
            everybody = [TO, "nobody@d.example", "later@d.example", "e@d.example"]
            for _ in range(2):
                deliveries = await client.send_message(SENDER, everybody, HARD)
                assert codes(deliveries) == [250, 550, 451, 250]
                assert "queued as" in deliveries[0].reply.message
                assert "Nobody of that name" in deliveries[1].reply.message
            assert codes(await client.send_message(SENDER, everybody[1:3], HARD)) == [550, 451]
            assert codes(await client.send_message("josé@b.example", ["δ@d.example"], HARD)) == [250]
            assert codes(await client.send_message("dsn@b.example", [(TO, original)], HARD, dsn)) == [250]
            assert codes(await client.send_message("", [TO], b"Subject: notice\n\n.\n..\n")) == [250]
            # Step by step, and given up.
            await client.mail(SENDER)
            await client.rcpt(TO)
            await client.reset()
            with pytest.raises(DataTooLarge):
                await client.send_message(SENDER, [TO], b"", MailParams(size=40_000_001))
            await client.noop()

    with mta() as (running, end):
        run(lambda: main(running.port))
        found = arrived(end, running, 5)
        assert len(found) == 5
    by_sender = {each.sender: each for each in found}
    assert sorted(by_sender[SENDER].recipients) == [TO, "e@d.example"]
    for sender in (SENDER, "josé@b.example", "dsn@b.example"):
        assert cut_trace(by_sender[sender].text) == HARD
    assert by_sender[""].text.endswith(b"Subject: notice\r\n\r\n.\r\n..\r\n")
    assert by_sender["josé@b.example"].mail_params.smtputf8
    params = by_sender["dsn@b.example"].mail_params
    assert (params.ret, params.envid) == ("HDRS", "QQ+314159")
    assert by_sender["dsn@b.example"].rcpt_params == (original,)
    said = trace.getvalue()
    assert ("BDAT" in said) == chunking and f"SIZE={len(HARD)}" in said


def test_postfix_tls(run: Runner, tmp_path: pathlib.Path) -> None:
    pems = Certificates.make(tmp_path)
    context = ssl.create_default_context(cafile=str(pems.ca))

    async def main(port: int) -> None:
        known = at(port, starttls="required", tls_context=context, server_hostname="mx.example")
        for options in (known, at(port)):
            async with Client(options=options) as client:
                tls = client.tls_connection_state
                assert tls is not None and tls.version() == "TLSv1.3" and client.extension("STARTTLS") is None
                assert codes(await client.send_message(SENDER, [TO], HARD)) == [250]
        strangers = ssl.create_default_context(cafile=str(pems.stranger))
        for fields in ({"tls_context": strangers}, {"tls_context": context, "server_hostname": "other.example"}):
            with pytest.raises(TLSFailed, match="certificate"):
                await send_mail(SENDER, [TO], HARD, options=at(port, starttls="required", **fields))

    files = {"smtpd_tls_chain_files": "$config_directory/server.pem", "smtpd_tls_security_level": "may"}
    with mta(**files, smtpd_tls_received_header="yes") as (running, end):
        shutil.copy(pems.server, running.root / "server.pem")
        run(lambda: main(running.port))
        found = arrived(end, running, 2)
        assert len(found) == 2
        assert all(cut_trace(each.text) == HARD and b"using TLSv1.3" in each.text for each in found)


@pytest.mark.parametrize("chunking", [True, False], ids=["bdat", "data"])
def test_postfix_large_message(chunking: bool) -> None:
    block = (b"." + b"x" * 74 + b".\r\n") * 1000
    count = 30_000_000 // len(block)

    async def blocks() -> AsyncIterator[bytes]:
        yield b"Subject: large\r\n\r\n"
        for _ in range(count):
            yield block

    async def main(port: int) -> None:
        async with Client(options=at(port, chunking=chunking)) as client:
            assert codes(await client.send_message(SENDER, [TO], blocks())) == [250]

    with mta() as (running, end):
        asyncio.run(main(running.port))
        (found,) = arrived(end, running, 1)
    assert cut_trace(found.text) == b"Subject: large\r\n\r\n" + block * count


def test_postfix_many_over_kept_connections() -> None:
    texts = [b"Subject: %d\r\n\r\n.%d\r\n" % (number, number) for number in range(100)]

    async def main(port: int) -> None:
        async with Pool(max_per_destination=3) as pool:
            sent = await asyncio.gather(*(pool.send_message(at(port), SENDER, [TO], text) for text in texts))
            assert [codes(each) for each in sent] == [[250]] * 100
            assert pool.connections == pool.idle <= 3

    with mta() as (running, end):
        asyncio.run(main(running.port))
        found = arrived(end, running, 100)
        assert running.log().count("smtpd") and running.log().count(": connect from") <= 4
    assert sorted(each.text[each.text.index(b"Subject: ") :] for each in found) == sorted(texts)


def test_postfix_xclient() -> None:
    async def main(port: int) -> None:
        async with Client(options=at(port)) as client:
            client_of = XClient(name="client.example", addr="192.0.2.7", port=4321, helo="hello.example", proto="ESMTP")
            assert (await client.xclient(client_of)).code == 220
            assert codes(await client.send_message(SENDER, [TO], HARD)) == [250]

    with mta() as (running, end):
        asyncio.run(main(running.port))
        arrived(end, running, 1)
        running.logged("client=client.example[192.0.2.7]")


@pytest.mark.parametrize("lmtp", [False, True], ids=["smtp", "lmtp"])
def test_postfix_behind_the_pass_through_relay(lmtp: bool) -> None:
    """Replies, octets and the client's address for the log."""

    async def main(port: int) -> None:
        async with (
            RelayBackend(at(port)) as backend,
            Server(
                backend, addr="127.0.0.1:0", domain="relay.example", lmtp=lmtp, dsn=True, max_message_bytes=0
            ) as relay,
            Client("127.0.0.1", relay.port, lmtp=lmtp, local_hostname="client.example") as client,
        ):
            assert client.extension("dsn") == "" and client.max_message_size == 40_000_000 - 2048
            deliveries = await client.send_message(SENDER, ["nobody@d.example", TO, "later@d.example"], HARD)
            assert codes(deliveries) == [550, 250, 451] and "queued as" in deliveries[1].reply.message
            params = MailParams(body="8BITMIME", smtputf8=True, ret="FULL", envid="abc")
            assert codes(await client.send_message("josé@b.example", ["δ@d.example"], HARD, params)) == [250]

    with mta() as (running, end):
        asyncio.run(main(running.port))
        found = arrived(end, running, 2)
        running.logged("orig_client=")
    for each in found:
        assert cut_trace(each.text, 2) == HARD
        assert b"from client.example ([127.0.0.1])" in each.text
    assert {each.mail_params.envid for each in found} == {None, "abc"}


def test_postfix_of_the_delivery_worker(tmp_path: pathlib.Path) -> None:
    async def main(port: int) -> None:
        async with site(tmp_path, StaticRoutes({"d.example": [port]})) as there:
            everybody = [f"{name}@d.example" for name in ("c", "nobody", "later", "δ")]
            await there.queue.put(envelope(*everybody, params=MailParams(smtputf8=True)), HARD)
            assert await there.watch.saw(4) == [
                ("c@d.example", "delivered 250"),
                ("later@d.example", "pending 451"),
                ("nobody@d.example", "failed 550"),
                ("δ@d.example", "delivered 250"),
            ]
            (notice,) = await there.notices()
            assert "Final-Recipient: rfc822;nobody@d.example" in notice.as_string()

    with mta() as (running, end):
        asyncio.run(main(running.port))
        (found,) = arrived(end, running, 1)
    assert cut_trace(found.text) == HARD and sorted(found.recipients) == ["c@d.example", "δ@d.example"]


# smtp-sink


class Sink:
    """A running smtp-sink, and what it has kept."""

    def __init__(self, port: int, folder: pathlib.Path) -> None:
        self.port = port
        self._folder = folder

    def kept(self) -> list[tuple[dict[bytes, list[bytes]], bytes]]:
        """Each message: what its sender said, by the field's name, and its octets."""
        found = []
        for path in sorted(self._folder.iterdir()):
            head, _, rest = path.read_bytes().partition(b"Received: ")
            said: dict[bytes, list[bytes]] = {}
            for line in head.splitlines():
                name, _, value = line.partition(b": ")
                said.setdefault(name, []).append(value)
            lines = rest.split(b"\n")
            while lines.pop(0) and lines[0][:1] == b"\t":
                pass
            # Line ends of its own, and an empty line at the end.
            assert lines[-2:] == [b"", b""]
            found.append((said, b"\r\n".join(lines[:-1])))
        return found


@contextmanager
def sink(*options: str) -> Iterator[Sink]:
    program = tool("smtp-sink")
    with reserved_port() as port, tempfile.TemporaryDirectory(prefix="sink-") as folder:
        os.chmod(folder, 0o777)
        user = ["-u", "postfix"] if os.geteuid() == 0 else []
        command = [program, *user, "-d", f"{folder}/%M.", "-h", "sink.example", *options, f"127.0.0.1:{port}", "10"]
        with subprocess.Popen(command) as process:
            try:
                yield Sink(port, pathlib.Path(folder))
            finally:
                process.kill()


async def listening(options: ClientOptions) -> None:
    """Wait until the program listens; it does not say when."""
    while True:
        try:
            async with Client(options=options):
                return
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)
        except SMTPError:
            return


@LMTP
@pytest.mark.parametrize("options", [[], ["-p"], ["-e"], ["-8"], ["-E"]], ids=" ".join)
def test_sink_octets_and_envelope(lmtp: bool, options: list[str]) -> None:
    """With and without PIPELINING, ESMTP, 8BITMIME and enhanced status codes."""
    if lmtp:
        options = ["-L", *options]

    async def main(there: Sink) -> None:
        where = at(there.port, lmtp=lmtp)
        await listening(where)
        async with Client(options=where) as client:
            for option, name in (("-p", "pipelining"), ("-8", "8bitmime"), ("-E", "enhancedstatuscodes")):
                assert (client.extension(name) is None) == (option in options or ("-e" in options and not lmtp))
            for text in (HARD, HARD[:-2], b".\n..\n\n.\n"):
                assert codes(await client.send_message(SENDER, [TO, "e@d.example"], text)) == [250, 250]
            assert codes(await client.send_message("", [TO], HARD)) == [250]

    with sink(*options) as there:
        asyncio.run(main(there))
        kept = there.kept()
    assert sorted(text for _, text in kept) == sorted([HARD, HARD, b".\r\n..\r\n\r\n.\r\n", HARD])
    for said, _ in kept:
        assert said[b"X-Client-Proto"] == [b"LMTP" if lmtp else b"SMTP" if "-e" in options else b"ESMTP"]
        assert said[b"X-Helo-Args"] == [b"me.example"]
        assert b"<c@d.example>" in said[b"X-Rcpt-Args"]
    assert sorted(said[b"X-Mail-Args"][0].split()[0] for said, _ in kept)[0] == b"<>"


@LMTP
@pytest.mark.parametrize("verb", ["mail", "rcpt", "data", "."])
@pytest.mark.parametrize("how", ["-f", "-r", "-q"])
def test_sink_that_refuses(lmtp: bool, verb: str, how: str, tmp_path: pathlib.Path) -> None:
    """Hard and soft refusals and a closed connection, by the delivery worker: nobody is lost."""
    kind = ["-L"] if lmtp else []

    async def main(there: Sink) -> None:
        await listening(at(there.port, lmtp=lmtp))
        routes = StaticRoutes({"d.example": [there.port]}, lmtp=lmtp, timeouts=Timeouts(quit=1))
        async with site(tmp_path, routes) as worker:
            id = await worker.queue.put(envelope(TO, "e@d.example"), HARD)
            outcomes = await worker.watch.saw(2)
            assert {fate.partition(" ")[0] for _, fate in outcomes} == {"failed" if how == "-f" else "pending"}
            if how == "-f":
                (notice,) = await worker.notices()
                said = notice.as_string()
                assert f"rfc822;{TO}" in said and "rfc822;e@d.example" in said
            else:
                queued = await worker.queue.get(id)
                assert [each.address for each in queued.recipients] == [TO, "e@d.example"]

    with sink(*kind, how, verb) as there:
        asyncio.run(main(there))


@LMTP
def test_sink_behind_the_pass_through_relay(lmtp: bool) -> None:
    async def main(there: Sink) -> None:
        where = at(there.port, lmtp=lmtp)
        await listening(where)
        async with (
            RelayBackend(where) as backend,
            Server(backend, addr="127.0.0.1:0", domain="relay.example", lmtp=lmtp) as relay,
            Client("127.0.0.1", relay.port, lmtp=lmtp, local_hostname="client.example") as client,
        ):
            for _ in range(3):
                assert codes(await client.send_message(SENDER, [TO, "e@d.example"], HARD)) == [250, 250]

    with sink(*(["-L"] if lmtp else [])) as there:
        asyncio.run(main(there))
        kept = there.kept()
    assert [cut_trace(text) for _, text in kept] == [HARD] * 3
