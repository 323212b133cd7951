"""Delivery status notifications: who gets which, and what is in them (RFC 3464, RFC 3461, RFC 6533, RFC 8689)."""

from __future__ import annotations

import asyncio
import email
import email.policy
import email.utils
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from email.message import Message as Parsed
from pathlib import Path
from typing import Any

import pytest

from fastsmtp import ConfigurationError
from fastsmtp.delivery.handover import Content, Outcome
from fastsmtp.delivery.notices import Kind, Notice, Notices, Report
from fastsmtp.delivery.queue import Claim, Lease, Message, QueueUnavailable, Recipient, State
from fastsmtp.extensions import MailParams, OriginalRecipient, RcptParams
from fastsmtp.reply import EnhancedCode, Reply

from .delivering import BODY, StaticRoutes, envelope, inbox, site
from .fake_server import fake
from .loops import Runner

NO = Reply(550, EnhancedCode(5, 1, 1), "nobody")
NOW = 1_700_000_000.0
RECIPIENT = Recipient(0, "a@x.example", "x.example", RcptParams(), State.PENDING, 0, NOW, None, False)
FAILED = Outcome(State.FAILED, NO, "mx.x.example")
MESSAGE = Message("1", "s@home.example", MailParams(), NOW - 100, NOW + 5000, 0, {}, len(BODY), False)


def claim(message: Message = MESSAGE, body: bytes | Sequence[bytes] = BODY) -> Claim:
    async def pieces(_: str) -> AsyncIterator[bytes]:
        for piece in [body] if isinstance(body, bytes) else body:
            yield piece

    size = len(body) if isinstance(body, bytes) else sum(map(len, body))
    return Claim(Lease("1", NOW + 100), replace(message, size=size), "x.example", (RECIPIENT,), pieces)


def write(
    kind: Kind = Kind.FAILED,
    unit: Claim | None = None,
    reports: Sequence[Report] = (Report(RECIPIENT, FAILED),),
    **options: Any,
) -> tuple[Notice, bytes]:
    """A notice, and its octets."""
    unit = unit or claim()
    notices = Notices("me.example", lambda address: "to:" + address, **options)

    async def main() -> tuple[Notice, bytes]:
        content = Content(unit)
        await content.load()
        notice = notices.write(kind, unit, content, reports, NOW)
        if isinstance(notice.body, bytes):
            return notice, notice.body
        return notice, b"".join([piece async for piece in notice.body])

    return asyncio.run(main())


def parse(octets: bytes) -> list[Parsed]:
    """The notice, and its three parts; as strict as the standard library is."""
    assert b"\n" not in octets.replace(b"\r\n", b"") and b"\r" not in octets.replace(b"\r\n", b"")
    whole = email.message_from_bytes(octets, policy=email.policy.SMTP.clone(raise_on_defect=True))
    assert whole.get_content_type() == "multipart/report" and whole.get_param("report-type") == "delivery-status"
    parts = whole.get_payload()
    assert isinstance(parts, list) and len(parts) == 3
    return [whole, *parts]


def status(part: Parsed) -> list[dict[str, str]]:
    """The blocks of fields of a delivery status."""
    blocks = part.get_payload()
    assert isinstance(blocks, list)
    return [{name: " ".join(str(value).split()) for name, value in block.items()} for block in blocks]  # type: ignore[union-attr]


# What is in it


def test_a_notice_of_failure() -> None:
    notice, octets = write()
    sent = notice.envelope
    (target,) = sent.targets
    assert (sent.sender, target.address, target.destination) == ("", "s@home.example", "to:s@home.example")
    assert target.params == RcptParams(notify=("NEVER",))
    assert sent.expires == NOW + 5 * 86400 and not (sent.params.smtputf8 or sent.params.requiretls)
    whole, text, report, header = parse(octets)
    assert whole["From"] == "Mail Delivery System <MAILER-DAEMON@me.example>"
    assert whole["To"] == "s@home.example" and whole["Auto-Submitted"] == "auto-replied"
    assert email.utils.parsedate_to_datetime(whole["Date"]).timestamp() == NOW
    assert whole["Message-ID"].endswith("@me.example>")
    words = text.get_payload()
    assert isinstance(words, str) and "<a@x.example>" in words and "mx.x.example said: 550 5.1.1 nobody" in words
    assert report.get_content_type() == "message/delivery-status"
    about, recipient = status(report)
    assert list(about) == ["Reporting-MTA", "Arrival-Date"] and about["Reporting-MTA"] == "dns; me.example"
    assert email.utils.parsedate_to_datetime(about["Arrival-Date"]).timestamp() == NOW - 100
    assert email.utils.parsedate_to_datetime(recipient.pop("Last-Attempt-Date")).timestamp() == NOW
    assert recipient == {
        "Final-Recipient": "rfc822;a@x.example",
        "Action": "failed",
        "Status": "5.1.1",
        "Remote-MTA": "dns; mx.x.example",
        "Diagnostic-Code": "smtp; 550 5.1.1 nobody",
    }
    assert header.get_content_type() == "text/rfc822-headers"
    assert b"Subject: hello\r\n" in octets and b"world" not in octets


def test_what_the_sender_named_is_named() -> None:
    message = replace(MESSAGE, params=MailParams(envid="QQ 314+159"))
    params = RcptParams(orcpt=OriginalRecipient("rfc822", "Bob+Home@y.example"))
    _, octets = write(unit=claim(message), reports=[Report(replace(RECIPIENT, params=params), FAILED)])
    about, recipient = status(parse(octets)[2])
    assert about["Original-Envelope-Id"] == "QQ 314+159"
    assert list(recipient)[:2] == ["Original-Recipient", "Final-Recipient"]
    assert recipient["Original-Recipient"] == "rfc822;Bob+Home@y.example"


def test_a_notice_of_delay() -> None:
    outcome = Outcome(State.PENDING, Reply(451, EnhancedCode(4, 4, 1), "mx: Connection refused"))
    _, octets = write(Kind.DELAYED, reports=[Report(RECIPIENT, outcome)])
    whole, text, report, _ = parse(octets)
    assert "till being tried" in whole["Subject"]
    words = text.get_payload()
    assert isinstance(words, str) and "tried again until" in " ".join(words.split())
    recipient = status(report)[1]
    assert (recipient["Action"], recipient["Status"]) == ("delayed", "4.4.1")
    assert email.utils.parsedate_to_datetime(recipient["Will-Retry-Until"]).timestamp() == NOW + 5000
    # No host has said that.
    assert "Remote-MTA" not in recipient and recipient["Diagnostic-Code"].startswith("x-fastsmtp; 451")
    _, octets = write(Kind.DELAYED, claim(replace(MESSAGE, expires=None)), [Report(RECIPIENT, outcome)])
    assert "Will-Retry-Until" not in status(parse(octets)[2])[1]


@pytest.mark.parametrize(("lmtp", "action"), [(False, "relayed"), (True, "delivered")])
def test_a_notice_of_success(lmtp: bool, action: str) -> None:
    outcome = Outcome(State.DELIVERED, Reply(250, EnhancedCode.NONE, "ok"), "mx", lmtp=lmtp)
    message = replace(MESSAGE, params=MailParams(ret="FULL"))
    _, octets = write(Kind.RELAYED, claim(message), [Report(RECIPIENT, outcome)])
    recipient = status(parse(octets)[2])[1]
    assert (recipient["Action"], recipient["Status"]) == (action, "2.0.0")
    assert b"world" not in octets  # RFC 3461 section 4.3: RET is for failures


def test_an_expired_message() -> None:
    outcome = Outcome(State.FAILED, Reply(450, EnhancedCode.NONE, "busy"), expired=True)
    _, octets = write(reports=[Report(RECIPIENT, outcome)])
    _, text, report, _ = parse(octets)
    words = text.get_payload()
    assert isinstance(words, str) and "time for its delivery is over" in words
    assert (status(report)[1]["Action"], status(report)[1]["Status"]) == ("failed", "4.0.0")


def test_several_recipients() -> None:
    reports = [Report(replace(RECIPIENT, number=n, address=f"{n}@x.example"), FAILED) for n in range(300)]
    _, octets = write(reports=reports)
    blocks = status(parse(octets)[2])
    assert [each["Final-Recipient"] for each in blocks[1:]] == [f"rfc822;{n}@x.example" for n in range(300)]


@pytest.mark.parametrize(
    "code", [EnhancedCode(2, 0, 0), EnhancedCode(4, 1, 1), EnhancedCode.NONE, EnhancedCode.NOT_SET]
)
def test_a_code_that_contradicts_the_reply(code: EnhancedCode) -> None:
    _, octets = write(reports=[Report(RECIPIENT, replace(FAILED, reply=Reply(550, code, "x")))])
    assert status(parse(octets)[2])[1]["Status"] == "5.0.0"


# What is returned


@pytest.mark.parametrize(
    ("params", "size", "kind", "whole"),
    [
        (MailParams(), 100, Kind.FAILED, False),
        (MailParams(ret="HDRS"), 100, Kind.FAILED, False),
        (MailParams(ret="FULL"), 100, Kind.FAILED, True),
        (MailParams(ret="FULL"), 100, Kind.DELAYED, False),
        (MailParams(ret="FULL"), 1000, Kind.FAILED, True),
        (MailParams(ret="FULL"), 1001, Kind.FAILED, False),
        (MailParams(ret="FULL", requiretls=True), 100, Kind.FAILED, False),
        (MailParams(ret="FULL", body="BINARYMIME"), 100, Kind.FAILED, False),
    ],
)
def test_header_or_all(params: MailParams, size: int, kind: Kind, whole: bool) -> None:
    head = b"Subject: hello\r\nX: y\r\n\r\n"
    body = head + b"x" * (size - len(head))
    notice, octets = write(kind, claim(replace(MESSAGE, params=params), body), max_return=1000)
    returned = parse(octets)[3]
    assert returned.get_content_type() == ("message/rfc822" if whole else "text/rfc822-headers")
    assert (body in octets) == whole and b"Subject: hello\r\nX: y\r\n" in octets
    assert isinstance(notice.body, bytes) is not whole
    assert notice.envelope.params.requiretls == params.requiretls


def test_a_large_message_is_returned_in_pieces() -> None:
    pieces = [b"Subject: x\r\n\r\n", *[b"line\r\n" * 10_000] * 10]
    notice, octets = write(unit=claim(replace(MESSAGE, params=MailParams(ret="FULL")), pieces))
    assert not isinstance(notice.body, bytes) and b"".join(pieces) in octets
    parse(octets)


def test_a_long_header_is_cut_at_a_line() -> None:
    header = b"".join(b"X-%d: %b\r\n" % (number, b"x" * 500) for number in range(300))
    _, octets = write(unit=claim(body=header + b"\r\ntext"))
    assert len(octets) < 70_000
    lines = octets.split(b"\r\n")
    returned = [line for line in lines if line.startswith(b"X-")]
    assert len(returned) > 100 and all(line.endswith(b"x" * 500) for line in returned)


def test_a_message_that_cannot_be_read() -> None:
    async def broken(_: str) -> AsyncIterator[bytes]:
        raise QueueUnavailable("damaged")
        yield b""

    unit = Claim(Lease("1", NOW), replace(MESSAGE, params=MailParams(ret="FULL")), "x.example", (RECIPIENT,), broken)
    content = Content(unit)

    async def main() -> None:
        with pytest.raises(QueueUnavailable):
            await content.load()

    asyncio.run(main())
    notice = Notices("me.example", str).write(Kind.FAILED, unit, content, [Report(RECIPIENT, FAILED)], NOW)
    assert isinstance(notice.body, bytes)
    parse(notice.body)


@pytest.mark.parametrize(
    "body", [b"", b"\r\n", b"no header at all", b"Subject: x\r\n", b"Subject: x\n\ntext\n", b"\r\n\r\n"]
)
def test_strange_messages(body: bytes) -> None:
    _, octets = write(unit=claim(body=body))
    assert octets.count(b"boundary=") == 1 and octets.rstrip().endswith(b"--")


@pytest.mark.parametrize("cut", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("text", [b"A: b\r\nC: d\r\n\r\n", b"A: b\nC: d\n\n", b"\r\n", b"\n"])
def test_the_header_in_any_cut(text: bytes, cut: int) -> None:
    body = text + b"text\r\n\r\nReceived: x\r\n" * 3
    unit = claim(body=[body[start : start + cut] for start in range(0, len(body), cut)])
    content = Content(unit)
    asyncio.run(content.load())
    assert content.header == text[: -2 if text.endswith(b"\r\n") else -1]
    assert content.whole == body


# Text of others


def test_text_of_others_stays_where_it_belongs() -> None:
    evil = "x\r\nAction: delivered\n\n--boundary\u2028\x00\x1b[31m" + "y" * 3000
    outcome = Outcome(State.FAILED, Reply(550, EnhancedCode(5, 1, 1), evil), "mx\r\nStatus: 2.0.0")
    params = RcptParams(orcpt=OriginalRecipient("rfc822", "a\r\nAction: delivered"))
    message = replace(MESSAGE, params=MailParams(envid="x\r\n\r\nAction: delivered"))
    _, octets = write(unit=claim(message), reports=[Report(replace(RECIPIENT, params=params), outcome)])
    about, recipient = status(parse(octets)[2])
    assert set(about) == {"Reporting-MTA", "Original-Envelope-Id", "Arrival-Date"}
    assert (recipient["Action"], recipient["Status"]) == ("failed", "5.1.1")
    assert b"\x00" not in octets and b"\x1b" not in octets


def test_the_boundary_is_in_no_message() -> None:
    tokens = iter(["first", "second", "third", "fourth"])
    _, one = write(token=lambda: next(tokens))
    assert b'boundary="=_first"' in one and b"<second@me.example>" in one
    assert write()[1].split(b"boundary=")[1][:40] != write()[1].split(b"boundary=")[1][:40]


def test_addresses_that_are_not_ascii() -> None:
    message = replace(MESSAGE, sender="ü@home.example", params=MailParams(smtputf8=True))
    recipient = replace(RECIPIENT, address="ö@x.example")
    notice, octets = write(unit=claim(message, "Subject: ä\r\n\r\n".encode()), reports=[Report(recipient, FAILED)])
    assert notice.envelope.params.smtputf8
    text = octets.decode()
    assert "Content-Type: message/global-delivery-status" in text and "Content-Type: message/global-headers" in text
    assert "Final-Recipient: utf-8;ö@x.example" in text and "To: <ü@home.example>" in text and "Subject: ä" in text
    # A sender that needs no SMTPUTF8 gets its notice without.
    notice, octets = write(reports=[Report(recipient, FAILED)])
    assert not notice.envelope.params.smtputf8 and b"global-delivery-status" in octets


def test_lines_are_short_enough() -> None:
    reply = Reply(550, EnhancedCode(5, 1, 1), "\n".join(["many words of a host " * 20] * 10))
    reports = [Report(RECIPIENT, replace(FAILED, reply=reply))]
    _, octets = write(reports=reports)
    assert max(map(len, octets.split(b"\r\n"))) <= 998  # RFC 5322 2.1.1


@pytest.mark.parametrize("domain", ["", "no domain", "a\r\nb"])
def test_impossible_names(domain: str) -> None:
    with pytest.raises(ConfigurationError):
        Notices(domain, str)


# Who is told what


@pytest.mark.parametrize(
    ("notify", "failed", "delayed", "relayed"),
    [
        (None, True, True, False),
        (("NEVER",), False, False, False),
        (("FAILURE",), True, False, False),
        (("DELAY",), False, True, False),
        (("SUCCESS",), False, False, True),
        (("SUCCESS", "FAILURE", "DELAY"), True, True, True),
    ],
)
def test_notify(notify: tuple[str, ...] | None, failed: bool, delayed: bool, relayed: bool) -> None:
    notices = Notices("me.example", str)
    recipient = replace(RECIPIENT, params=RcptParams(notify=notify))
    report = Report(recipient, FAILED)
    wanted = [notices.wanted(kind, MESSAGE, report) for kind in (Kind.FAILED, Kind.DELAYED, Kind.RELAYED)]
    assert wanted == [failed, delayed, relayed]
    assert not any(notices.wanted(kind, replace(MESSAGE, sender=""), report) for kind in Kind)
    assert not notices.wanted(Kind.RELAYED, MESSAGE, Report(recipient, replace(FAILED, dsn=True)))


@pytest.mark.parametrize("dsn", [True, False])
def test_notices_of_success_are_the_next_hosts_or_ours(tmp_path: Path, run: Runner, dsn: bool) -> None:
    success = RcptParams(notify=("SUCCESS",), orcpt=OriginalRecipient("rfc822", "o@y.example"))

    async def main() -> None:
        async with inbox(dsn=dsn) as box:
            async with site(tmp_path, StaticRoutes({"x.example": [box.port], "home.example": [-450]})) as at:
                params = MailParams(envid="E", ret="HDRS")
                await at.queue.put(envelope(("a@x.example", success), "b@x.example", params=params), BODY)
                await at.watch.saw(2)
                ((got, rcpts),) = box.params
                if dsn:
                    assert (got.envid, got.ret, rcpts) == ("E", "HDRS", (success, RcptParams()))
                    assert not at.watch.notices and not await at.queued()
                    return
                assert (got.envid, got.ret, rcpts) == (None, None, (RcptParams(), RcptParams()))
                assert at.watch.notices == ["relayed"]
                (notice,) = await at.notices()
                text = notice.as_string()
                assert "Action: relayed" in text and "rfc822;o@y.example" in text and "b@x.example" not in text

    run(main)


def test_there_is_no_notice_about_a_notice(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with site(tmp_path, StaticRoutes({"x.example": [-550], "home.example": [-550]})) as at:
            await at.queue.put(envelope("a@x.example"), BODY)
            assert await at.watch.saw(2) == [("a@x.example", "failed 550"), ("s@home.example", "failed 550")]
            assert at.watch.notices == ["failed"] and not await at.queued()
            assert at.worker.counters.unreported == 1  # the notice

    run(main)


def test_never_is_never(tmp_path: Path) -> None:
    async def main() -> None:
        async with site(tmp_path, StaticRoutes({"x.example": [-550]})) as at:
            await at.queue.put(envelope(("a@x.example", RcptParams(notify=("NEVER",)))), BODY)
            await at.watch.saw(1)
            assert not at.watch.notices and not await at.queued() and at.worker.counters.unreported == 1

    asyncio.run(main())


def test_a_notice_travels_as_other_mail_does(tmp_path: Path, run: Runner) -> None:
    text = b"Subject: x\r\n\r\n" + b"line\r\n" * 30_000

    async def main() -> None:
        async with (
            inbox() as home,
            site(tmp_path, StaticRoutes({"x.example": [-550], "home.example": [home.port]})) as at,
        ):
            await at.queue.put(envelope("a@x.example", params=MailParams(ret="FULL")), text)
            await at.watch.saw(2)
            ((sender, recipients, octets),) = home.messages
            assert (sender, recipients) == ("", ("s@home.example",))
            assert text in octets and home.params[0][1] == (RcptParams(notify=("NEVER",)),)
            parse(octets)
            assert not await at.queued()

    run(main)


def test_a_notice_to_a_host_without_extensions(tmp_path: Path) -> None:
    async def main() -> None:
        async with (
            fake() as home,
            site(tmp_path, StaticRoutes({"x.example": [-550], "home.example": [home.port]})) as at,
        ):
            await at.queue.put(envelope("a@x.example", params=MailParams(requiretls=True)), BODY)
            await at.watch.saw(2)
            assert "MAIL FROM:<>" in home.lines and "RCPT TO:<s@home.example>" in home.lines

    asyncio.run(main())
