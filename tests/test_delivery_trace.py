"""Received and Return-Path: grammar, folding, and peers that try to write headers of their own."""

from __future__ import annotations

import email
import email.policy
import email.utils
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.delivery.trace import date_time, received_from, received_header, return_path_header, with_clause


def test_received_header() -> None:
    header = received_header(
        received_from("client.example", ("192.0.2.1", 4711)),
        by_domain="mx.example",
        with_protocol="ESMTPS",
        id="123.M4P5Q6.host",
        for_recipient="user@example.org",
        when="Fri, 21 Nov 1997 09:55:06 -0600",
    )
    assert header == (
        b"Received: from client.example ([192.0.2.1])\r\n"
        b"\tby mx.example with ESMTPS id 123.M4P5Q6.host\r\n"
        b"\tfor <user@example.org>;\r\n"
        b"\tFri, 21 Nov 1997 09:55:06 -0600\r\n"
    )


def test_without_recipient() -> None:
    header = received_header("from a.example", by_domain="b.example", with_protocol="SMTP", when=0.0)
    assert b"for" not in header
    assert header.startswith(b"Received: from a.example\r\n\tby b.example with SMTP;\r\n\t")


def test_long_identifier_is_folded() -> None:
    header = received_header(
        "from a.example", by_domain="a-rather-long-name.example.org", with_protocol="ESMTP", id="1234567890" * 4
    )
    assert all(len(line) < 78 for line in header.split(b"\r\n"))
    assert b"\r\n\tid 1234" in header


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        (("192.0.2.1", 1), " ([192.0.2.1])"),
        (("2001:db8::1", 1, 0, 0), " ([IPv6:2001:db8::1])"),
        (("fe80::1%eth0", 1, 0, 2), " ([IPv6:fe80::1])"),
        (("::ffff:192.0.2.1", 1, 0, 0), " ([192.0.2.1])"),
        ("/run/mail.sock", ""),
        ("", ""),
        (None, ""),
        ((), ""),
        (("no address", 1), ""),
    ],
)
def test_address_of_the_peer(address: object, expected: str) -> None:
    assert received_from("a.example", address) == f"from a.example{expected}"


@pytest.mark.parametrize(
    ("helo", "expected"),
    [
        ("a.example", "from a.example ([192.0.2.1])"),
        ("[192.0.2.7]", "from [192.0.2.7] ([192.0.2.1])"),
        ("[IPv6:2001:db8::1]", "from [IPv6:2001:db8::1] ([192.0.2.1])"),
        ("a b", "from [192.0.2.1] ([192.0.2.1]) (a b)"),
        ("a\r\nX: y", "from [192.0.2.1] ([192.0.2.1]) (a??X: y)"),
        ("x) by evil (y\\", "from [192.0.2.1] ([192.0.2.1]) (x\\) by evil \\(y\\\\)"),
        ("\udcff\x85\u2028", "from [192.0.2.1] ([192.0.2.1]) (???)"),
        ("", "from [192.0.2.1] ([192.0.2.1])"),
    ],
)
def test_name_of_the_peer(helo: str, expected: str) -> None:
    assert received_from(helo, ("192.0.2.1", 1)) == expected


def test_utf8_needs_smtputf8() -> None:
    assert received_from("b\u00fccher.example", None) == "from unknown (b?cher.example)"
    assert received_from("b\u00fccher.example", None, smtputf8=True) == "from b\u00fccher.example"
    for protocol, expected in (("ESMTP", False), ("UTF8SMTP", True), ("UTF8LMTPS", True)):
        header = received_header(
            "from a", by_domain="b", with_protocol=protocol, for_recipient="m\u00fcller@example.org"
        )
        assert (b"for <m\xc3\xbcller@example.org>" in header) is expected


@pytest.mark.parametrize(
    ("protocol", "tls", "authenticated", "smtputf8", "expected"),
    [
        ("SMTP", False, False, False, "SMTP"),
        ("ESMTP", False, False, False, "ESMTP"),
        ("ESMTP", True, False, False, "ESMTPS"),
        ("ESMTP", False, True, False, "ESMTPA"),
        ("ESMTP", True, True, False, "ESMTPSA"),
        ("LMTP", False, False, False, "LMTP"),
        ("LMTP", True, True, False, "LMTPSA"),
        ("ESMTP", False, False, True, "UTF8SMTP"),
        ("ESMTP", True, True, True, "UTF8SMTPSA"),
        ("LMTP", True, False, True, "UTF8LMTPS"),
        ("ESMTPSA", True, True, True, "ESMTPSA"),
        ("evil\r\n", False, False, False, "SMTP"),
    ],
)
def test_with_clause(protocol: str, tls: bool, authenticated: bool, smtputf8: bool, expected: str) -> None:
    assert with_clause(protocol, tls=tls, authenticated=authenticated, smtputf8=smtputf8) == expected


@pytest.mark.parametrize("zone", ["UTC", "EST5EDT", "IST-5:30", "NST3:30"])
def test_date_time(zone: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        for when in (0, 951_782_400, 1_700_000_000):
            text = date_time(when)
            assert email.utils.parsedate_to_datetime(text).timestamp() == when
            assert email.utils.format_datetime(email.utils.parsedate_to_datetime(text)).lstrip() in (
                text,
                text.replace(", ", ", 0", 1) if text[6] == " " else text,
            )
    finally:
        monkeypatch.undo()
        time.tzset()


def test_date_time_is_now() -> None:
    assert abs(email.utils.parsedate_to_datetime(date_time()).timestamp() - time.time()) < 10


@pytest.mark.parametrize(
    ("sender", "expected"),
    [
        ("", b"Return-Path: <>\r\n"),
        ("a@example.org", b"Return-Path: <a@example.org>\r\n"),
        ('"a b"@example.org', b'Return-Path: <"a b"@example.org>\r\n'),
        ("m\u00fcller@example.org", b"Return-Path: <m\xc3\xbcller@example.org>\r\n"),
        ("a@b\r\nX: y", b"Return-Path: <>\r\n"),
        ("a@b> X", b"Return-Path: <>\r\n"),
        ("a@b\udcff", b"Return-Path: <>\r\n"),
    ],
)
def test_return_path(sender: str, expected: bytes) -> None:
    assert return_path_header(sender) == expected


@given(helo=st.text(), recipient=st.text(), identifier=st.text(), sender=st.text(), smtputf8=st.booleans())
def test_nothing_a_peer_sends_makes_a_header(
    helo: str, recipient: str, identifier: str, sender: str, smtputf8: bool
) -> None:
    clause = received_from(helo, ("192.0.2.1", 25), smtputf8=smtputf8)
    protocol = with_clause("ESMTP", smtputf8=smtputf8)
    block = return_path_header(sender) + received_header(
        clause, by_domain="mx.example", with_protocol=protocol, id=identifier, for_recipient=recipient
    )
    lines = block.split(b"\r\n")
    assert lines.pop() == b""
    assert lines[0].startswith(b"Return-Path: <")
    assert lines[1].startswith(b"Received: from ")
    assert all(line.startswith(b"\t") and line.strip() for line in lines[2:])
    assert not any(b"\r" in line or b"\n" in line or b"\0" in line for line in lines)
    message = email.message_from_bytes(block + b"\r\nbody", policy=email.policy.compat32)
    assert sorted(message.keys()) == ["Received", "Return-Path"]
