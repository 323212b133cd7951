"""The table of extensions and the parameters it brings."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp import MailParams, ServerOptions
from fastsmtp.extensions import EXTENSIONS, Capabilities, ParameterError, parse_parameters

KNOWN = Capabilities(ServerOptions()).mail


def test_what_is_advertised() -> None:
    lines = Capabilities(ServerOptions(max_message_bytes=7, smtputf8=False)).lines
    assert lines == ("PIPELINING", "8BITMIME", "SIZE 7", "ENHANCEDSTATUSCODES")
    assert Capabilities(ServerOptions(), extended=False).lines == ()
    assert not Capabilities(ServerOptions(), extended=False).mail
    assert "SMTPUTF8" not in Capabilities(ServerOptions(smtputf8=False)).mail


def test_parsing() -> None:
    values = parse_parameters(" size=12  BODY=8bitmime SMTPUTF8", KNOWN)
    assert values == {"size": 12, "body": "8BITMIME", "smtputf8": True}


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("SIZE=1", 501),
        (" SIZE", 501),
        (" SIZE=", 501),
        (" SIZE=1=2", 501),
        (" SIZE=+1", 501),
        (" SIZE=٣", 501),
        (" SIZE=123456789012345678901", 501),
        (" SIZE=1 size=1", 501),
        (" =1", 501),
        (" -X=1", 501),
        (" BODY", 501),
        (" SMTPUTF8=", 501),
        (" X=1", 555),
        (" " + "X " * 100, 501),
    ],
)
def test_refusals(text: str, code: int) -> None:
    with pytest.raises(ParameterError) as caught:
        parse_parameters(text, KNOWN)
    assert caught.value.code == code


@given(st.text())
def test_only_documented_errors(text: str) -> None:
    try:
        parse_parameters(" " + text, KNOWN)
    except ParameterError as error:
        assert error.code in (501, 555)
        assert error.reason.isascii()


def test_what_is_written_is_read_again() -> None:
    params = MailParams(size=5, body="8BITMIME", smtputf8=True)
    words = []
    for extension in EXTENSIONS:
        assert extension.source.startswith("RFC ")
        for parameter in extension.mail:
            word = parameter.encode(getattr(params, parameter.field))
            assert word is not None
            words.append(word)
            assert parameter.encode(getattr(MailParams(), parameter.field)) is None
    values = parse_parameters(" " + " ".join(words), KNOWN)
    assert values == {"size": 5, "body": "8BITMIME", "smtputf8": True}
