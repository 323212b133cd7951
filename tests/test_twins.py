"""The twins side by side: any input, any chunking, the same results, errors and state."""

from __future__ import annotations

import importlib
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp import _textproto_py as pure

try:
    compiled: ModuleType | None = importlib.import_module("fastsmtp._textproto")
except ImportError:  # FASTSMTP_REQUIRE_EXTENSION makes that an error, see conftest
    compiled = None

TWINS = [pytest.param(pure, id="pure")]
if compiled is not None:
    TWINS.append(pytest.param(compiled, id="cython"))
both = pytest.mark.skipif(compiled is None, reason="no extension was built")

TOKENS = [b"\r", b"\n", b".", b"\r\n", b"\r\n.\r\n", b"x", b"\0", b"\xff", "é".encode(), b" ", b":", b"\t", b"-", b"250", b"Key"]
octets = st.lists(st.sampled_from(TOKENS) | st.binary(max_size=3), max_size=24).map(b"".join)
STATE = ("ended", "size", "bare_cr", "bare_lf", "has_nul", "has_8bit", "keep_crlf")


def outcome(function: Any, *arguments: object) -> object:
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - the error is the result
        return type(error), error.args


@both
@given(octets, st.integers(0, 5))
def test_functions_agree(data: bytes, start: int) -> None:
    assert compiled is not None
    for name in ("find_line", "scan_command", "parse_response"):
        assert outcome(getattr(pure, name), data, start) == outcome(getattr(compiled, name), data, start), name
    assert pure.encode_dot(data) == compiled.encode_dot(data)
    for limits in ((), (start, 2, 1000), (start, 1000, 12)):
        assert outcome(pure.parse_header_block, data, *limits) == outcome(compiled.parse_header_block, data, *limits)


@both
@given(st.integers(100, 700), st.sampled_from(["", "2.0.0", "5.7.1"]), st.text(max_size=700))
def test_replies_agree(code: int, enhanced: str, message: str) -> None:
    assert compiled is not None
    expected = outcome(pure.encode_reply, code, enhanced, message)
    assert outcome(compiled.encode_reply, code, enhanced, message) == expected
    if isinstance(expected, bytes):
        assert all(32 <= octet < 127 or octet > 127 for line in expected[:-2].split(b"\r\n") for octet in line)
        assert all(len(line) <= 510 for line in expected.split(b"\r\n"))
        assert pure.parse_response(expected)[:2] == (len(expected), code)


@both
@given(st.text(max_size=20))
def test_keys_agree(key: str) -> None:
    assert compiled is not None
    assert pure.canonical_mime_header_key(key) == compiled.canonical_mime_header_key(key)


@both
@given(octets, st.lists(st.integers(0, 40), max_size=8), st.booleans())
def test_decoders_agree(data: bytes, cuts: list[int], keep: bool) -> None:
    assert compiled is not None
    one, other = pure.DotDecoder(keep), compiled.DotDecoder(keep)
    edges = sorted({min(each, len(data)) for each in cuts} | {0, len(data)})
    for start, end in zip(edges, edges[1:], strict=False):
        chunk = data[start:end]
        first, second = outcome(one.feed, chunk), outcome(other.feed, chunk)
        assert first == second
        for name in STATE:
            assert getattr(one, name) == getattr(other, name), name


def reference(data: bytes) -> tuple[bytes, int] | None:
    """The text in wire form and where it ends, by the definition of RFC 5321 4.5.2."""
    framed = b"\r\n" + data
    end = framed.find(b"\r\n.\r\n")
    if end < 0:
        return None
    return framed[: end + 2].replace(b"\r\n.", b"\r\n")[2:], end + 3


@pytest.mark.parametrize("twin", TWINS)
@given(data=octets, cuts=st.lists(st.integers(0, 40), max_size=8))
def test_decoder_is_right_in_any_cut(twin: Any, data: bytes, cuts: list[int]) -> None:
    expected = reference(data)
    decoder = twin.DotDecoder(True)
    edges = sorted({min(each, len(data)) for each in cuts} | {0, len(data)})
    text, taken = b"", 0
    for start, end in zip(edges, edges[1:], strict=False):
        payload, stop = decoder.feed(data[start:end])
        text += payload
        if stop:
            taken = start + stop
            break
    assert decoder.size == len(text)
    if expected is None:
        assert not decoder.ended and not taken
    else:
        assert decoder.ended and (text, taken) == expected
        assert decoder.bare_cr == (text.count(b"\r") > text.count(b"\r\n"))
        assert decoder.bare_lf == (text.count(b"\n") > text.count(b"\r\n"))
        assert decoder.has_nul == (b"\0" in text)
        assert decoder.has_8bit == (not text.isascii())
        with pytest.raises(ValueError):
            decoder.feed(b"more")


@pytest.mark.parametrize("twin", TWINS)
@given(text=octets, cuts=st.lists(st.integers(0, 40), max_size=8))
def test_encoding_comes_back(twin: Any, text: bytes, cuts: list[int]) -> None:
    whole = twin.encode_dot(text)
    encoder = twin.DotEncoder()
    edges = sorted({min(each, len(text)) for each in cuts} | {0, len(text)})
    pieces = b"".join(encoder.feed(text[start:end]) for start, end in zip(edges, edges[1:], strict=False))
    assert pieces + encoder.finish() == whole
    payload, end = twin.DotDecoder(True).feed(whole)
    assert end == len(whole)
    assert payload.replace(b"\r\n", b"\n").startswith(text.replace(b"\r\n", b"\n"))


@pytest.mark.parametrize("twin", TWINS)
def test_an_unchanged_chunk_is_not_copied(twin: Any) -> None:
    chunk = (b"x" * 76 + b"\r\n") * 100 + b"x"
    decoder = twin.DotDecoder(True)
    assert decoder.feed(chunk)[0] is chunk


@pytest.mark.parametrize("twin", TWINS)
@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"MAIL FROM:<a@b>\r\nX", (17, "MAIL", "FROM:<a@b>", 0)),
        (b"noop\r\n", (6, "NOOP", "", 0)),
        (b"noop", (0, "", "", 0)),
        (b"EHLO  x \r\n", (10, "EHLO", "x", 0)),
        (b"A\nB\r\n", (5, "A\nB", "", 1)),
        ("é\r\n".encode(), (4, "é", "", 2)),
    ],
)
def test_scan_command(twin: Any, line: bytes, expected: tuple[int, str, str, int]) -> None:
    assert twin.scan_command(line) == expected


@pytest.mark.parametrize("twin", TWINS)
def test_header_block(twin: Any) -> None:
    block = b"subject: one\r\n two\r\nX-A:\tb\nx-a: c\r\n\r\nbody"
    assert twin.parse_header_block(block) == (len(block) - 4, {"Subject": ["one two"], "X-A": ["b", "c"]})
    assert twin.canonical_mime_header_key("accept-encoding") == "Accept-Encoding"
    assert twin.canonical_mime_header_key("no key") == "no key"


@pytest.mark.parametrize("twin", TWINS)
def test_names_of_the_implementation(twin: Any) -> None:
    assert twin.IMPLEMENTATION == ("pure" if twin is pure else "cython")
