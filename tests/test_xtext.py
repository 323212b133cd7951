"""xtext (RFC 3461 section 4)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.xtext import decode_xtext, encode_xtext


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_round_trip(text: str) -> None:
    wire = encode_xtext(text)
    assert all("!" <= char <= "~" and char != "=" for char in wire)
    assert decode_xtext(wire) == text


@pytest.mark.parametrize(
    ("text", "wire"),
    [("", ""), ("plain", "plain"), ("a+b=c", "a+2Bb+3Dc"), ("a b\r\n", "a+20b+0D+0A"), ("é", "+C3+A9"), ("~!", "~!")],
)
def test_known(text: str, wire: str) -> None:
    assert encode_xtext(text) == wire
    assert decode_xtext(wire) == text


@pytest.mark.parametrize("wire", ["+", "+4", "+G0", "a=b", "a b", "é", "\x00", "+FF", "+C3", "a\n"])
def test_malformed(wire: str) -> None:
    with pytest.raises(ValueError, match=r"xtext|codec"):
        decode_xtext(wire)


def test_lower_case_digits_are_read() -> None:
    assert decode_xtext("+2b+c3+a9") == "+é"
