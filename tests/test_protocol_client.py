"""The client's protocol without I/O: transactions in any cut, and every refusal."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fastsmtp import DataTooLarge, EnhancedCode, MailParams, RcptParams, Reply, SMTPError, limits
from fastsmtp.address import AddressError
from fastsmtp.errors import ProtocolError, UnexpectedEOF
from fastsmtp.extensions import ValidSince
from fastsmtp.protocol.client import ClientProtocol
from fastsmtp.protocol.requests import CanonicalText, Unsendable
from fastsmtp.protocol.transaction import LOST
from fastsmtp.protocol.xforward import ForwardError, XClient, XForward
from fastsmtp.sasl import LoginClient, PlainClient

from .client_support import ALL, ESMTP, GO, NO, OK, codes, greeted, steps, tell
from .dialogue import CUTS


@pytest.fixture(params=CUTS)
def how(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


# A transaction


def test_a_pipelined_transaction(how: str) -> None:
    protocol = greeted()
    protocol.data_to_send()
    one = protocol.transaction("a@b.example", ["c@d", "e@f", "c@d"], MailParams(size=5, body="8BITMIME"))
    assert protocol.data_to_send() == (
        b"MAIL FROM:<a@b.example> BODY=8BITMIME SIZE=5\r\nRCPT TO:<c@d>\r\nRCPT TO:<e@f>\r\nRCPT TO:<c@d>\r\nDATA\r\n"
    )
    assert not one.wants_body and not one.done
    with pytest.raises(RuntimeError):
        _ = one.deliveries
    one.write(b"too early")
    one.finish(b"too early")
    events = tell(protocol, OK + b"250 2.1.5 fine\r\n" + NO + b"251 will forward\r\n" + GO, how)
    assert [event.verb for event in events] == ["MAIL", "RCPT", "RCPT", "RCPT", "DATA"]
    assert events[:4] == [one.mail, *one.recipients] and events[4].wants_body
    assert one.wants_body and not one.done
    assert protocol.data_to_send() == b""
    one.write(b"Subject: x\r\n")
    one.write(b"\r\n.dot\n.")
    one.finish(b"end\rlast")
    assert protocol.data_to_send() == b"Subject: x\r\n\r\n..dot\r\n..end\r\nlast\r\n.\r\n"
    assert not one.wants_body and not one.done
    one.write(b"too late")
    assert tell(protocol, b"250 2.6.0 queued\r\n", how) == [events[4]]
    assert one.done
    assert [(each.recipient, str(each.reply)) for each in one.deliveries] == [
        ("c@d", "250 2.6.0 queued"),
        ("e@f", "550 5.1.1 nobody"),
        ("c@d", "250 2.6.0 queued"),
    ]
    assert protocol.data_to_send() == b""


@pytest.mark.parametrize("pipelining", [True, False])
def test_one_command_at_a_time(pipelining: bool, how: str) -> None:
    protocol = greeted(b"8BITMIME" if pipelining else ALL, pipelining=pipelining)
    protocol.data_to_send()
    one = protocol.transaction("", ["c@d", "e@f"])
    assert list(steps(protocol, [OK, NO, OK, GO], how)) == [
        b"MAIL FROM:<>\r\n",
        b"RCPT TO:<c@d>\r\n",
        b"RCPT TO:<e@f>\r\n",
        b"DATA\r\n",
        b"",
    ]
    one.finish(b"hi")
    assert list(steps(protocol, [OK], how)) == [b"hi\r\n.\r\n", b""]
    assert codes(one) == [("c@d", 550), ("e@f", 250)]


def test_mail_refused_one_at_a_time(how: str) -> None:
    protocol = greeted(None)
    protocol.data_to_send()
    one = protocol.transaction("a@b", ["c@d", "e@f"])
    events = tell(protocol, b"451 4.3.0 later\r\n", how)
    assert [event.verb for event in events] == ["MAIL", "RCPT", "RCPT", "DATA"]
    assert [event.sent for event in events] == [True, False, False, False]
    assert protocol.data_to_send() == b"MAIL FROM:<a@b>\r\n"
    assert one.done and codes(one) == [("c@d", 451), ("e@f", 451)]
    two = protocol.transaction("a@b", ["c@d"])
    assert protocol.data_to_send() == b"MAIL FROM:<a@b>\r\n"  # there is nothing to reset
    assert not two.done


def test_mail_refused_in_a_group(how: str) -> None:
    """What RCPT is told then, 503 by most servers, says nothing of the recipients: they are refused as MAIL is."""
    protocol = greeted()
    protocol.data_to_send()
    one = protocol.transaction("a@b", ["c@d", "e@f"])
    tell(protocol, b"451 4.3.0 later\r\n" + b"503 5.5.1 MAIL first\r\n" * 3, how)
    assert one.done and codes(one) == [("c@d", 451), ("e@f", 451)]


def test_all_recipients_refused_one_at_a_time(how: str) -> None:
    protocol = greeted(None)
    protocol.data_to_send()
    one = protocol.transaction("a@b", ["c@d", "e@f"])
    tell(protocol, OK, how)
    tell(protocol, NO, how)
    events = tell(protocol, b"452 later\r\n", how)
    assert [(event.verb, event.sent) for event in events] == [("RCPT", True), ("DATA", False)]
    assert events[1].reply == Reply(554, EnhancedCode(5, 5, 1), "No valid recipients")
    assert one.done and codes(one) == [("c@d", 550), ("e@f", 452)]
    protocol.data_to_send()
    protocol.transaction("a@b", ["c@d"])
    events = []
    sent = []
    for _ in range(2):
        sent.append(protocol.data_to_send())
        events += tell(protocol, OK, how)
    assert sent == [b"RSET\r\n", b"MAIL FROM:<a@b>\r\n"]
    assert [event.verb for event in events] == ["MAIL"]  # nobody asked for the RSET


@pytest.mark.parametrize("reply", [b"554 no valid recipients\r\n", b"503 what?\r\n"])
def test_all_recipients_refused(reply: bytes, how: str) -> None:
    protocol = greeted()
    one = protocol.transaction("a@b", ["c@d", "e@f"])
    tell(protocol, OK + NO + NO + reply, how)
    assert one.done and not one.wants_body and codes(one) == [("c@d", 550), ("e@f", 550)]
    protocol.data_to_send()
    protocol.transaction("a@b", ["c@d"])
    assert protocol.data_to_send() == b"RSET\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n"
    assert [event.verb for event in tell(protocol, OK * 3 + GO, how)] == ["MAIL", "RCPT", "DATA"]


@pytest.mark.parametrize(
    ("reply", "code"),
    [(b"250 an empty message for nobody\r\n", 554), (b"551 5.5.1 no\r\n", 551), (b"421 bye\r\n", 421)],
)
def test_a_message_is_wanted_for_nobody(reply: bytes, code: int, how: str) -> None:
    protocol = greeted()
    one = protocol.transaction("a@b", ["c@d"])
    protocol.data_to_send()
    assert [event.verb for event in tell(protocol, OK + NO + GO, how)] == ["MAIL", "RCPT"]
    assert protocol.data_to_send() == b".\r\n"
    assert not one.wants_body and not one.done
    (data,) = tell(protocol, reply, how)
    assert data.reply is not None and data.reply.code == code
    assert one.done and codes(one) == [("c@d", 550)]


def test_a_message_is_wanted_without_a_sender() -> None:
    protocol = greeted()
    protocol.transaction("a@b", ["c@d"])
    with pytest.raises(ProtocolError, match="cannot be sent"):
        tell(protocol, NO + OK + GO)


def test_lmtp_wants_a_message_for_nobody() -> None:
    protocol = greeted(lmtp=True)
    protocol.transaction("a@b", ["c@d"])
    with pytest.raises(ProtocolError, match="cannot be sent"):
        tell(protocol, OK + NO + GO)


def test_data_refused(how: str) -> None:
    protocol = greeted()
    one = protocol.transaction("a@b", ["c@d", "e@f"])
    tell(protocol, OK + OK + NO + b"451 4.3.0 later\r\n", how)
    assert one.done and codes(one) == [("c@d", 451), ("e@f", 550)]
    protocol.data_to_send()
    protocol.mail("a@b")
    assert protocol.data_to_send() == b"RSET\r\nMAIL FROM:<a@b>\r\n"


def test_message_refused(how: str) -> None:
    protocol = greeted()
    one = protocol.transaction("a@b", ["c@d", "e@f"])
    tell(protocol, OK + OK + NO + GO, how)
    one.finish()
    protocol.data_to_send()
    tell(protocol, b"554 5.7.1 spam\r\n", how)
    assert one.done and codes(one) == [("c@d", 554), ("e@f", 550)]
    protocol.mail("a@b")
    assert protocol.data_to_send() == b"MAIL FROM:<a@b>\r\n"


def test_lmtp_replies(how: str) -> None:
    protocol = greeted(lmtp=True)
    one = protocol.transaction("a@b", ["c@d", "x@y", "c@d", "e@f"])
    tell(protocol, OK + OK + NO + OK + OK + GO, how)
    one.finish(b"hi\r\n")
    assert tell(protocol, b"250 2.0.0 first\r\n450 4.2.2 second\r\n", how) == []
    assert not one.done
    (data,) = tell(protocol, b"552 5.2.2 third\r\n", how)
    assert [reply.code for reply in data.replies] == [250, 450, 552]
    assert codes(one) == [("c@d", 250), ("x@y", 550), ("c@d", 450), ("e@f", 552)]
    protocol.data_to_send()
    protocol.mail("a@b")
    assert protocol.data_to_send() == b"MAIL FROM:<a@b>\r\n"


def test_lmtp_interrupted(how: str) -> None:
    protocol = greeted(lmtp=True)
    one = protocol.transaction("a@b", ["c@d", "e@f"])
    tell(protocol, OK + OK + OK + GO, how)
    one.finish(b"hi\r\n")
    tell(protocol, b"250 2.0.0 first\r\n421 bye\r\n", how)
    assert codes(one) == [("c@d", 250), ("e@f", 421)]
    protocol = greeted(lmtp=True)
    one = protocol.transaction("a@b", ["c@d", "e@f"])
    tell(protocol, OK + OK + OK + GO, how)
    one.finish(b"hi\r\n")
    tell(protocol, b"250 2.0.0 first\r\n", how)
    with pytest.raises(UnexpectedEOF):
        protocol.receive_eof()
    assert one.done and [each.reply for each in one.deliveries] == [Reply(250, EnhancedCode(2, 0, 0), "first"), LOST]


@pytest.mark.parametrize("stage", range(5))
def test_421_at_any_time(stage: int, how: str) -> None:
    protocol = greeted()
    one = protocol.transaction("a@b", ["c@d", "e@f"])
    events = tell(protocol, b"".join([OK, NO, OK, GO][:stage]) + b"421 4.3.2 stopping\r\n" + OK, how)
    assert events[-1].verb == "DATA" and all(event.done for event in events)
    assert protocol.closing and one.done and not one.wants_body
    assert codes(one) == [("c@d", 550 if stage > 1 else 421), ("e@f", 421)]
    one.write(b"no more")
    one.finish()
    assert not protocol.data_to_send().endswith(b"no more")


def test_refused_before_the_message_has_ended(how: str) -> None:
    protocol = greeted()
    one = protocol.transaction("a@b", ["c@d"])
    tell(protocol, OK + OK + GO, how)
    one.write(b"begun\r\n")
    (data,) = tell(protocol, b"552 5.3.4 too much\r\n", how)
    assert data.done and protocol.closing and codes(one) == [("c@d", 552)]
    with pytest.raises(RuntimeError, match="closing"):  # not with 552: that is about this message
        protocol.mail("a@b")


def test_accepted_before_the_message_has_ended() -> None:
    protocol = greeted()
    protocol.transaction("a@b", ["c@d"])
    with pytest.raises(ProtocolError, match="not ended"):
        tell(protocol, OK + OK + GO + OK)


def test_messages_in_one_pipeline() -> None:
    protocol = greeted()
    one = protocol.transaction("a@b", ["c@d"])
    tell(protocol, OK + OK + GO)
    protocol.data_to_send()
    one.finish(b"1")
    two = protocol.transaction("a@b", ["e@f"])
    assert protocol.data_to_send() == b"1\r\n.\r\nMAIL FROM:<a@b>\r\nRCPT TO:<e@f>\r\nDATA\r\n"
    tell(protocol, b"554 no\r\n" + OK + OK + GO)
    two.finish(b"2")
    protocol.quit()
    assert protocol.data_to_send() == b"2\r\n.\r\nQUIT\r\n"
    tell(protocol, OK + b"221 bye\r\n")
    assert protocol.closing and codes(one) == [("c@d", 554)] and codes(two) == [("e@f", 250)]


def test_groups_end_where_they_must() -> None:
    protocol = greeted()
    protocol.data_to_send()
    protocol.reset()
    protocol.mail("a@b")
    protocol.noop()
    protocol.rcpt("c@d")
    protocol.verify("x")
    protocol.data()
    assert list(steps(protocol, [OK * 3, OK + OK, GO])) == [
        b"RSET\r\nMAIL FROM:<a@b>\r\nNOOP\r\n",
        b"RCPT TO:<c@d>\r\nVRFY x\r\n",
        b"DATA\r\n",
        b"",
    ]


def test_reset() -> None:
    protocol = greeted()
    protocol.data_to_send()
    protocol.mail("a@b")
    rcpt = protocol.rcpt("c@d")
    assert rcpt.recipient == "c@d"
    protocol.reset()
    protocol.mail("e@f")
    assert protocol.data_to_send() == b"MAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nRSET\r\nMAIL FROM:<e@f>\r\n"
    tell(protocol, NO + b"503 no\r\n" + OK + OK)
    protocol.reset()
    with pytest.raises(RuntimeError, match="no transaction"):
        protocol.rcpt("c@d")


def test_a_sender_that_the_server_already_has() -> None:
    protocol = greeted(None)
    protocol.data_to_send()
    protocol.transaction("a@b", ["c@d"])
    tell(protocol, b"503 nested\r\n")
    protocol.data_to_send()
    protocol.mail("a@b")
    assert protocol.data_to_send() == b"RSET\r\n"


# Chunks


def test_a_message_in_chunks(how: str) -> None:
    protocol = greeted()
    one = protocol.transaction("a@b", ["c@d", "e@f"], MailParams(size=6), chunking=True)
    protocol.data_to_send()
    tell(protocol, OK + NO, how)
    assert not one.wants_body
    tell(protocol, OK, how)
    assert one.wants_body and not one.done
    one.write(b"a\n.\r")
    one.write(b"")
    one.write(b"\r")
    one.write(b"b")
    one.finish(b"c")
    assert protocol.data_to_send() == (b"BDAT 4\r\na\r\n.BDAT 2\r\n\r\nBDAT 3\r\n\r\nbBDAT 3 LAST\r\nc\r\n")
    two_is_held = protocol.mail("a@b")
    assert protocol.data_to_send() == b"" and not two_is_held.sent
    tell(protocol, OK * 3, how)
    assert not one.done
    tell(protocol, b"250 2.6.0 queued\r\n", how)
    assert codes(one) == [("c@d", 550), ("e@f", 250)]
    assert protocol.data_to_send() == b"MAIL FROM:<a@b>\r\n"


def test_octets_are_left_as_they_are() -> None:
    protocol = greeted()
    octets = bytes(range(256)) * 2 + b"\r"
    one = protocol.transaction("a@b", ["c@d"], MailParams(body="BINARYMIME"))
    assert protocol.data_to_send().endswith(b"MAIL FROM:<a@b> BODY=BINARYMIME\r\nRCPT TO:<c@d>\r\n")
    tell(protocol, OK + OK)
    one.write(octets)
    pieces = protocol.pieces_to_send()
    assert pieces == [b"BDAT 513\r\n", octets] and pieces[1] is octets
    one.finish()
    assert protocol.data_to_send() == b"BDAT 0 LAST\r\n"


def test_chunks_by_hand() -> None:
    protocol = greeted()
    protocol.mail("a@b")
    with pytest.raises(RuntimeError, match="no recipients"):
        protocol.bdat(b"x")
    protocol.rcpt("c@d")
    view = memoryview(b"hello world")[6:]
    first = protocol.bdat(view)
    assert not first.sent  # RFC 3030 section 2: when the envelope is answered
    with pytest.raises(RuntimeError, match="has begun"):
        protocol.data()
    with pytest.raises(RuntimeError, match="has begun"):
        protocol.rcpt("e@f")
    protocol.data_to_send()
    tell(protocol, OK + OK)
    pieces = protocol.pieces_to_send()
    assert pieces == [b"BDAT 5\r\n", b"world"] and pieces[1] is view
    protocol.bdat(memoryview(b""), last=True)
    assert protocol.data_to_send() == b"BDAT 0 LAST\r\n"
    with pytest.raises(RuntimeError, match="no transaction"):
        protocol.bdat(b"x")


def test_a_refused_chunk(how: str) -> None:
    protocol = greeted()
    one = protocol.transaction("a@b", ["c@d"], chunking=True)
    tell(protocol, OK + OK, how)
    one.write(b"1\r\n")
    one.write(b"2\r\n")
    protocol.data_to_send()
    tell(protocol, b"452 4.3.1 full\r\n", how)
    assert not one.wants_body and not one.done  # the second one is still to be answered
    one.finish(b"3")
    assert protocol.data_to_send() == b""
    tell(protocol, b"503 5.5.1 what?\r\n", how)
    assert codes(one) == [("c@d", 452)]
    protocol.mail("a@b")
    assert protocol.data_to_send() == b"RSET\r\nMAIL FROM:<a@b>\r\n"


def test_a_last_chunk_accepted_behind_a_refused_one() -> None:
    protocol = greeted()
    one = protocol.transaction("a@b", ["c@d"], chunking=True)
    tell(protocol, OK + OK)
    one.write(b"1\r\n")
    one.finish(b"2\r\n")
    tell(protocol, b"452 4.3.1 full\r\n" + OK)
    assert codes(one) == [("c@d", 452)]


def test_chunks_in_lmtp(how: str) -> None:
    protocol = greeted(lmtp=True)
    one = protocol.transaction("a@b", ["c@d", "c@d"], chunking=True)
    protocol.data_to_send()
    tell(protocol, OK * 3, how)
    one.write(b"1\r\n")
    one.finish(b"2\r\n")
    assert protocol.data_to_send() == b"BDAT 3\r\n1\r\n"
    tell(protocol, OK, how)
    assert protocol.data_to_send() == b"BDAT 3 LAST\r\n2\r\n"
    tell(protocol, b"250 one\r\n", how)
    assert not one.done
    tell(protocol, b"450 two\r\n", how)
    assert codes(one) == [("c@d", 250), ("c@d", 450)]


def test_no_last_chunk_in_lmtp_behind_a_refused_one() -> None:
    protocol = greeted(lmtp=True)
    one = protocol.transaction("a@b", ["c@d", "e@f"], chunking=True)
    tell(protocol, OK * 3)
    one.write(b"1\r\n")
    one.finish(b"2\r\n")
    protocol.data_to_send()
    events = tell(protocol, b"452 full\r\n")
    assert [(event.verb, event.sent) for event in events] == [("BDAT", True), ("BDAT", False)]
    assert codes(one) == [("c@d", 452), ("e@f", 452)]
    assert protocol.data_to_send() == b""


def test_421_between_chunks() -> None:
    protocol = greeted()
    one = protocol.transaction("a@b", ["c@d"], chunking=True)
    tell(protocol, OK + OK)
    one.write(b"1\r\n")
    tell(protocol, OK)
    assert one.wants_body and not one.done
    tell(protocol, b"421 bye\r\n")
    assert not one.wants_body and codes(one) == [("c@d", 421)]


def test_lost_between_chunks() -> None:
    protocol = greeted()
    one = protocol.transaction("a@b", ["c@d"], chunking=True)
    tell(protocol, OK + OK)
    one.write(b"1\r\n")
    tell(protocol, OK)
    protocol.receive_eof()
    assert [each.reply for each in one.deliveries] == [LOST]


def test_chunks_with_all_recipients_refused() -> None:
    protocol = greeted()
    one = protocol.transaction("a@b", ["c@d", "e@f"], chunking=True)
    protocol.data_to_send()
    tell(protocol, OK + NO + NO)
    assert one.done and not one.wants_body and codes(one) == [("c@d", 550), ("e@f", 550)]
    assert protocol.data_to_send() == b""


def test_chunking_that_is_not_offered() -> None:
    protocol = greeted(b"PIPELINING")
    protocol.data_to_send()
    protocol.transaction("a@b", ["c@d"], chunking=True)
    assert protocol.data_to_send().endswith(b"DATA\r\n")


# What is refused before an octet of it is sent

Ask = Callable[[ClientProtocol], object]
BINARY = MailParams(body="BINARYMIME")
UTF8 = MailParams(smtputf8=True)
REFUSED: list[tuple[bytes | None, Ask, type[Exception]]] = [
    (ALL, lambda p: p.mail("a@b\r\nRCPT TO:<x@y>"), AddressError),
    (ALL, lambda p: p.mail("a@b> SIZE=1\r\nX"), AddressError),
    (ALL, lambda p: p.mail("a@b> SIZE=1"), AddressError),
    (ALL, lambda p: p.mail("a@b\0"), AddressError),
    (ALL, lambda p: p.mail("<a@b>"), AddressError),
    (ALL, lambda p: p.mail("@x:a@b"), AddressError),
    (ALL, lambda p: p.mail("a"), AddressError),
    (ALL, lambda p: p.mail("ä@b"), AddressError),
    (ALL, lambda p: p.mail("a@b\udc80", UTF8), AddressError),
    (b"SIZE", lambda p: p.mail("ä@b", UTF8), Unsendable),
    (b"SIZE", lambda p: p.mail("a@b", UTF8), Unsendable),
    (None, lambda p: p.mail("a@b", MailParams(envid="x")), Unsendable),
    (ALL, lambda p: p.mail("a@b", MailParams(envid="x\n")), Unsendable),
    (ALL, lambda p: p.mail("a@b", MailParams(ret="X\r\nDATA")), Unsendable),
    (ALL, lambda p: p.mail("a@b", MailParams(body="8BITMIME\r\nDATA")), Unsendable),
    (ALL, lambda p: p.mail("a@b", MailParams(auth="ä@b")), ProtocolError),
    (b"CHUNKING", lambda p: p.mail("a@b", BINARY), Unsendable),
    (b"BINARYMIME", lambda p: p.mail("a@b", BINARY), Unsendable),
    (ALL, lambda p: p.mail("a@b", MailParams(size=1001)), DataTooLarge),
    (ALL, lambda p: p.transaction("a@b", ["c@d"], MailParams(size=1001)), SMTPError),
    (ALL, lambda p: p.transaction("a@b", []), Unsendable),
    (ALL, lambda p: p.transaction("a@b", ["c@d", "ä@d"]), AddressError),
    (ALL, lambda p: p.transaction("a@b", ["c@d", ""]), AddressError),
    (ALL, lambda p: p.transaction("a@b", ["c@d", "@x:c@d"]), AddressError),
    (ALL, lambda p: p.transaction("a@b", ["c@d", "c@d\r\nDATA"]), AddressError),
    (None, lambda p: p.transaction("a@b", ["c@d", ("c@d", RcptParams(notify=("NEVER",)))]), Unsendable),
    (ALL, lambda p: p.transaction("a@b", [("c@d", RcptParams(notify=("NEVER\r\nX",)))]), Unsendable),
    (ALL, lambda p: p.transaction("a@b", [("c@d", RcptParams(rrvs=ValidSince(datetime.now(UTC))))]), Unsendable),
    (ALL, lambda p: p.rcpt("c@d"), RuntimeError),
    (ALL, lambda p: p.data(), RuntimeError),
    (ALL, lambda p: p.send_data(b"x"), RuntimeError),
    (ALL, lambda p: p.end_data(), RuntimeError),
    (ALL, lambda p: p.bdat(b"x"), RuntimeError),
    (ALL, lambda p: p.verify(""), Unsendable),
    (ALL, lambda p: p.verify("x\r\nQUIT"), Unsendable),
    (ALL, lambda p: p.verify("x\x85"), Unsendable),
    (b"SIZE", lambda p: p.verify("ä"), Unsendable),
    (ALL, lambda p: p.expand("x\n"), Unsendable),
    (ALL, lambda p: p.expand("x" * limits.COMMAND_LINE), Unsendable),
    (ALL, lambda p: p.help("\x7f"), Unsendable),
    (ALL, lambda p: p.help("ä"), Unsendable),
    (ALL, lambda p: p.command("X Y"), Unsendable),
    (ALL, lambda p: p.command("XY\r\n"), Unsendable),
    (ALL, lambda p: p.command(""), Unsendable),
    (ALL, lambda p: p.command("data"), Unsendable),
    (ALL, lambda p: p.command("XY", "\r\n"), Unsendable),
    (b"SIZE", lambda p: p.start_tls(), Unsendable),
    (b"SIZE", lambda p: p.auth(PlainClient("a", "b")), Unsendable),
    (b"AUTH LOGIN", lambda p: p.auth(PlainClient("a", "b")), Unsendable),
    (b"SIZE", lambda p: p.xforward(XForward()), Unsendable),
    (b"XFORWARD", lambda p: p.xforward(XForward()), Unsendable),
    (b"SIZE", lambda p: p.xclient(XClient()), Unsendable),
    (b"XCLIENT NAME", lambda p: p.xclient(XClient(name="x\r\n")), ForwardError),
    (ALL, lambda p: p.begin_tls(), RuntimeError),
]


@pytest.mark.parametrize("number", range(len(REFUSED)))
def test_refused_before_it_is_sent(number: int) -> None:
    extensions, ask, error = REFUSED[number]
    protocol = greeted(extensions)
    protocol.data_to_send()
    with pytest.raises(error) as caught:
        ask(protocol)
    assert isinstance(caught.value, RuntimeError | SMTPError | ProtocolError)
    assert protocol.data_to_send() == b"" and protocol.awaiting is None and not protocol.closing
    one = protocol.transaction("a@b", ["c@d"])  # it goes on as if nothing had been asked
    protocol.data_to_send()
    assert not one.done and protocol.awaiting is one.mail


def test_the_size_error_is_the_servers() -> None:
    protocol = greeted()
    with pytest.raises(SMTPError) as caught:
        protocol.mail("a@b", MailParams(size=1001))
    assert (caught.value.code, caught.value.enhanced_code) == (552, (5, 3, 4))
    protocol.mail("a@b", MailParams(size=1000))


@pytest.mark.parametrize("name", ["", "x y", "x\r\nQUIT", "ä.example", "[1.2.3]"])
def test_bad_hello_names(name: str) -> None:
    with pytest.raises(ProtocolError):
        ClientProtocol(hello_name=name)


def test_order() -> None:
    protocol = greeted()
    protocol.mail("a@b", BINARY)
    for ask in (
        lambda: protocol.mail("a@b"),
        lambda: protocol.data(),
        lambda: protocol.transaction("a@b", ["c@d"]),
        lambda: protocol.start_tls(),
        lambda: protocol.auth(PlainClient("a", "b")),
    ):
        with pytest.raises(RuntimeError):
            ask()
    protocol.rcpt("c@d")
    with pytest.raises(Unsendable, match="BDAT"):
        protocol.data()
    protocol.hello()
    for ask in (
        lambda: protocol.mail("a@b"),
        lambda: protocol.noop(),
        lambda: protocol.hello(),
        lambda: protocol.quit(),
    ):
        with pytest.raises(RuntimeError, match="wait for the reply to EHLO"):
            ask()
    tell(protocol, OK + OK + ESMTP % ALL)
    one = protocol.transaction("a@b", ["c@d"])
    with pytest.raises(RuntimeError, match="by DATA"):
        protocol.bdat(b"x")
    tell(protocol, OK + OK + GO)
    for ask in (lambda: protocol.noop(), lambda: protocol.reset(), lambda: protocol.quit(), lambda: protocol.hello()):
        with pytest.raises(RuntimeError, match="has not ended"):
            ask()
    one.finish()
    protocol.quit()
    with pytest.raises(RuntimeError, match="wait for the reply to QUIT"):
        protocol.noop()


# Text


@given(st.lists(st.sampled_from([b"\r", b"\n", b"\r\n", b"x", b".", b"\xff"]), max_size=12).map(b"".join), st.data())
def test_canonical_text(text: bytes, data: st.DataObject) -> None:
    edges = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=4))})
    canonical = CanonicalText()
    found = b"".join(canonical.feed(text[a:b]) for a, b in zip(edges, edges[1:], strict=False)) + canonical.finish()
    wanted = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n").replace(b"\n", b"\r\n")
    assert found == (wanted if not wanted or wanted.endswith(b"\n") else wanted + b"\r\n")


def test_canonical_text_is_not_copied() -> None:
    chunk = b"line\r\n" * 100
    assert CanonicalText().feed(chunk) is chunk


# Any cut gives the same

REPLIES = [
    OK, NO, GO, b"421 bye\r\n", b"250-a\r\n250 2.1.5 b\r\n", b"550-5.1.1 a\r\n550 5.1.1 b\r\n", b"503 no\r\n", b"235 2.7.0 hi\r\n",
    b"334 QQ==\r\n", b"220 x\r\n",
]  # fmt: skip
PIECES = [*REPLIES, b"250 ", b"2.1.5 x", b"\r\n", b"\r", b"\n", b"-", b"\xff", b"\0"]
said_by_servers = st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join) | st.binary(max_size=60)
Begin = Callable[[ClientProtocol], object]


def outcome(begin: Begin, extensions: bytes, lmtp: bool, pieces: list[bytes], body: bool) -> object:
    """All that can be seen of what became of these replies."""
    protocol = greeted(extensions, lmtp=lmtp)
    protocol.data_to_send()
    begin(protocol)
    events: list[object] = []
    sent = protocol.data_to_send()
    error = None
    try:
        for piece in pieces:
            protocol.receive_data(piece)
            while (event := protocol.next_event()) is not None:
                events.append((event.verb, event.sent, event.wants_body, event.done, event.reply, tuple(event.replies)))
                if event.wants_body and body:
                    protocol.send_data(b"hello\r\n")
                    protocol.end_data()
            sent += protocol.data_to_send()
    except ProtocolError as caught:
        error = type(caught), str(caught)
    # At the end of the connection, what was not taken yet is not to be sent any more.
    return events, None if protocol.closing else sent, error, protocol.closing, protocol.refusal, protocol.authenticated


def begin_group(protocol: ClientProtocol) -> None:
    protocol.transaction("a@b", ["c@d", "c@d", "e@f"])


def begin_chunks(protocol: ClientProtocol) -> None:
    protocol.mail("a@b")
    protocol.rcpt("c@d")
    protocol.rcpt("e@f")
    protocol.bdat(b"12")
    protocol.bdat(b"3", last=True)
    protocol.noop()


def begin_auth(protocol: ClientProtocol) -> None:
    protocol.auth(LoginClient("joe", "secret"))


@settings(max_examples=300)
@given(said_by_servers, st.lists(st.integers(0, 120), max_size=8), st.booleans())
def test_any_cut_of_the_replies_to_a_group(data: bytes, cuts: list[int], lmtp: bool) -> None:
    edges = sorted({min(each, len(data)) for each in cuts} | {0, len(data)})
    pieces = [data[start:end] for start, end in zip(edges, edges[1:], strict=False)]
    whole = outcome(begin_group, ALL, lmtp, [data], False)
    assert outcome(begin_group, ALL, lmtp, pieces, False) == whole
    assert outcome(begin_group, ALL, lmtp, [bytes([octet]) for octet in data], False) == whole


@settings(max_examples=300)
@given(
    st.lists(st.sampled_from(REPLIES), max_size=12),
    st.sampled_from([begin_group, begin_chunks, begin_auth]),
    st.booleans(),
    st.booleans(),
)
def test_any_cut_of_one_reply_after_the_other(replies: list[bytes], begin: Begin, lmtp: bool, pipelining: bool) -> None:
    extensions = ALL if pipelining else b"CHUNKING\r\n250-AUTH LOGIN"
    whole = outcome(begin, extensions, lmtp, replies, True)
    octets = [bytes([octet]) for reply in replies for octet in reply]
    assert outcome(begin, extensions, lmtp, octets, True) == whole


@settings(max_examples=200)
@given(said_by_servers, st.booleans(), st.booleans())
def test_no_recipient_is_delivered_without_a_reply_that_says_so(data: bytes, lmtp: bool, chunking: bool) -> None:
    protocol = greeted(lmtp=lmtp)
    one = protocol.transaction("a@b", ["c@d", "c@d", "e@f"], chunking=chunking)
    try:
        for piece in data.splitlines(keepends=True):
            protocol.receive_data(piece)
            while protocol.next_event() is not None:
                if one.wants_body:
                    one.finish(b"hello\r\n")
        protocol.receive_eof()
    except (ProtocolError, UnexpectedEOF):
        pass
    assert one.done and len(one.deliveries) == 3
    delivered = sum(each.reply.accepted for each in one.deliveries)
    accepted = sum(rcpt.reply is not None and rcpt.reply.accepted for rcpt in one.recipients)
    assert delivered <= accepted
    if delivered:
        assert one.mail.result().accepted
        assert data.count(b"\r\n") >= (5 if chunking else 6)


def test_an_answer_that_came_before_its_question() -> None:
    protocol = greeted()
    one = protocol.transaction("a@b", ["c@d"])
    protocol.receive_data(OK + OK + GO + OK)
    while not one.wants_body:
        protocol.next_event()
    one.finish(b"x")
    with pytest.raises(ProtocolError, match="nothing asked"):
        protocol.next_event()
    assert one.done and [each.reply for each in one.deliveries] == [LOST]
    protocol = greeted()
    protocol.auth(LoginClient("joe", "secret"))
    with pytest.raises(ProtocolError, match="nothing asked"):
        tell(protocol, b"334 \r\n235 welcome\r\n")
    assert not protocol.authenticated
    protocol = greeted()
    auth = protocol.auth(LoginClient("joe", "secret"))
    assert tell(protocol, b"334 \r\n535 no\r\n") == [auth]
