"""Replies, enhanced status codes and the errors that carry them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp import AuthRequired, AuthUnsupported, DataTooLarge, EnhancedCode, Reply, SMTPError
from fastsmtp import reply as standard


def test_enhanced_codes() -> None:
    assert str(EnhancedCode(5, 7, 1)) == "5.7.1"
    assert EnhancedCode.parse("4.3.12") == (4, 3, 12)
    for text in ("", "5.7", "3.0.0", "5.7.1.2", "5.7.x", "5.7.1234", "5..1", "٥.7.1"):
        assert EnhancedCode.parse(text) is None, text


@pytest.mark.parametrize(
    ("reply", "wire"),
    [
        (Reply(250), b"250 2.0.0 \r\n"),
        (Reply(451, EnhancedCode.NOT_SET, "later"), b"451 4.0.0 later\r\n"),
        (Reply(550, EnhancedCode.NONE, "no"), b"550 no\r\n"),
        (Reply(354, message="go on"), b"354 go on\r\n"),
        (Reply(250, EnhancedCode(2, 1, 5), "a\nb"), b"250-2.1.5 a\r\n250 2.1.5 b\r\n"),
        (
            Reply(550, EnhancedCode(5, 7, 1), "a\r\n250 ok\rb\x00c\ud800"),
            b"550-5.7.1 a\r\n550-5.7.1 250 ok\r\n550 5.7.1 b?c?\r\n",
        ),
    ],
)
def test_wire_form(reply: Reply, wire: bytes) -> None:
    assert reply.encode() == wire
    assert reply.encode() is reply.encode()  # encoded once


@given(st.integers(200, 599), st.text())
def test_nothing_in_a_text_makes_a_reply_of_its_own(code: int, message: str) -> None:
    wire = Reply(code, message=message).encode()
    assert wire.endswith(b"\r\n")
    lines = wire[:-2].split(b"\r\n")
    assert all(line.startswith(b"%d-" % code) for line in lines[:-1]) and lines[-1].startswith(b"%d " % code)
    assert b"\r" not in wire.replace(b"\r\n", b"") and b"\n" not in wire.replace(b"\r\n", b"") and b"\0" not in wire


def test_codes_have_bounds() -> None:
    for code in (0, 199, 600, -250):
        with pytest.raises(ValueError, match="no reply code"):
            Reply(code)
    for code in (250, 354, 399, 600):
        with pytest.raises(ValueError, match="no error code"):
            SMTPError(code)


def test_errors_carry_replies() -> None:
    error = SMTPError(451, EnhancedCode(4, 7, 0), "later")
    assert (error.code, error.enhanced_code, error.message, error.temporary) == (451, (4, 7, 0), "later", True)
    assert error.reply == Reply(451, EnhancedCode(4, 7, 0), "later")
    assert str(error) == "451 4.7.0 later"
    assert SMTPError.from_reply(error.reply).reply == error.reply
    assert not SMTPError(550).temporary
    assert [each().code for each in (AuthRequired, AuthUnsupported, DataTooLarge)] == [530, 502, 552]
    assert str(DataTooLarge()) == "552 5.3.4 Maximum message size exceeded"


def test_standard_replies_keep_the_rules() -> None:
    for name in standard.__all__:
        reply = getattr(standard, name)
        if isinstance(reply, Reply):
            assert reply.message
            if reply.code == 354:  # RFC 2034: no enhanced code on 3xx
                assert reply.enhanced_code == EnhancedCode.NONE
            else:
                assert reply.enhanced_code.status_class == reply.code // 100, name
            assert len(reply.encode()) <= 512
