"""Hypothesis: any input in any cut, and both twins give the same results, errors and state; both are right."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fastsmtp import _textproto_py as pure
from fastsmtp import limits

try:
    compiled: ModuleType | None = importlib.import_module("fastsmtp._textproto")
except ImportError:
    compiled = None

TWINS = [pure] if compiled is None else [pure, compiled]
STATE = ("keep_crlf", "ended", "size", "bare_cr", "bare_lf", "has_nul", "has_8bit")
both = pytest.mark.skipif(compiled is None, reason="no extension was built")

# Runs of text longer than the blocks of the compiled scanner, between what matters to it.
TEXT = [
    b"\r",
    b"\n",
    b".",
    b"\r\n",
    b"\r\n.",
    b"\r\n..",
    b"\r\n.\r",
    b"\r\n.\r\n",
    b"\n.\n",
    b"\0",
    b"\xff",
    b"a",
    b"b" * 17,
    b"c" * 61,
    b"d" * 64,
]
texts = st.lists(st.sampled_from(TEXT) | st.binary(max_size=3), max_size=40).map(b"".join)
cuts = st.lists(st.integers(0, 400), max_size=8)


def outcome(function: Callable[..., object], *arguments: object) -> object:
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - the error is the result
        return type(error), error.args


def same(name: str, *arguments: object) -> object:
    results = [outcome(getattr(twin, name), *arguments) for twin in TWINS]
    assert results[0] == results[-1], name
    return results[0]


def pieces(data: bytes, edges: list[int]) -> list[bytes]:
    marks = sorted({0, len(data), *(edge for edge in edges if edge < len(data))})
    return [data[start:end] for start, end in zip(marks, marks[1:], strict=False)]


def one_octet_at_a_time(data: bytes) -> tuple[bytes, int, bool, bool]:
    """RFC 5321 4.5.2 word by word, in wire form: text, index behind the end, bare CR, bare LF."""
    text = bytearray()
    at_line, bare_cr, bare_lf = True, False, False
    i = 0
    while i < len(data):
        if at_line and data[i : i + 1] == b".":
            if b".\r\n".startswith(data[i : i + 3]):
                return bytes(text), i + 3 if data[i : i + 3] == b".\r\n" else 0, bare_cr, bare_lf
            at_line = False
            i += 1
            continue
        at_line = data[i : i + 2] == b"\r\n"
        if at_line:
            text += b"\r\n"
            i += 2
            continue
        if data[i] == 13:
            if i + 1 == len(data):
                break  # it is not certain yet
            bare_cr = True
        bare_lf |= data[i] == 10
        text.append(data[i])
        i += 1
    return bytes(text), 0, bare_cr, bare_lf


@given(texts, cuts, st.booleans(), st.integers(0, 3))
@example(b"\r\n\r. \r\n", [3], True, 0)  # a dot behind a bare CR that was held back
@example(b"\r\n.\r\r\n.\r\n", [5], True, 0)
@example(b"x" * 62 + b"\r\n" + b".." + b"y" * 62 + b"\r\n..\r\n.\r\n", [], True, 0)
@example(b"x" * 127 + b"\r\n.\r\n", [128, 129, 130], False, 0)
def test_decoders(data: bytes, edges: list[int], keep_crlf: bool, start: int) -> None:
    text, end, bare_cr, bare_lf = one_octet_at_a_time(data)
    expected = text if keep_crlf else text.replace(b"\r\n", b"\n")
    histories = []
    for twin in TWINS:
        decoder = twin.DotDecoder(keep_crlf)
        history: list[object] = []
        decoded, done, taken = b"", 0, 0
        for chunk in pieces(data, edges):
            payload, stop = decoder.feed(b"." * start + chunk, start)
            history.append((payload, stop, *(getattr(decoder, name) for name in STATE)))
            decoded += payload
            if stop:
                taken = done + stop - start
                break
            done += len(chunk)
        assert (decoded, taken, decoder.bare_cr, decoder.bare_lf) == (expected, end, bare_cr, bare_lf)
        assert (decoder.ended, decoder.size) == (end > 0, len(expected))
        assert (decoder.has_nul, decoder.has_8bit) == (b"\0" in expected, not expected.isascii())
        if decoder.ended:
            history.append(outcome(decoder.feed, b"more"))
        histories.append(history)
    assert histories[0] == histories[-1]


@given(texts, st.booleans())
def test_what_comes_back_uncopied(data: bytes, keep_crlf: bool) -> None:
    results = [twin.DotDecoder(keep_crlf).feed(data)[0] for twin in TWINS]
    if len(data) > 1:
        assert len({result is data for result in results}) == 1
        assert all(result is data or result != data for result in results)


@given(texts, cuts)
def test_encoders(data: bytes, edges: list[int]) -> None:
    histories = []
    for twin in TWINS:
        encoder = twin.DotEncoder()
        history = [encoder.feed(piece) for piece in pieces(data, edges)]
        history.append(encoder.finish())
        assert b"".join(history) == twin.encode_dot(data)
        histories.append(history)
    assert histories[0] == histories[-1]


@given(texts)
def test_encoding_comes_back(data: bytes) -> None:
    lines = re.sub(rb"(?<!\r)\n", b"\r\n", data)
    if lines and not lines.endswith(b"\r\n"):
        lines += b"\r\n"
    for twin in TWINS:
        wire = twin.encode_dot(data)
        assert twin.DotDecoder(True).feed(wire) == (lines, len(wire))


LINE = [
    b"MAIL",
    b"rcpt",
    b"Ehlo",
    b"StartTLS",
    b"QUITX",
    b" ",
    b"FROM:<a@b>",
    b"\r\n",
    b"\r",
    b"\n",
    b"\t",
    b"\0",
    b"\x7f",
    "é".encode(),
    b"\xff",
]


@given(st.lists(st.sampled_from(LINE) | st.binary(max_size=3), max_size=9).map(b"".join), st.integers(0, 30))
def test_commands(data: bytes, start: int) -> None:
    assert same("find_line", data, start) == data.find(b"\r\n", start) + 2 - (data.find(b"\r\n", start) < 0)
    same("scan_command", data, start)


ADDRESS = [
    "<",
    ">",
    "@",
    ".",
    "-",
    "_",
    "a",
    "Z9",
    "!#$%",
    '"',
    "[",
    " ",
    "\0",
    "ü",
    "\u0100",
    "\ud800",
    "l" * 31,
    "l" * 62,
    "l" * 63,
]


@given(st.lists(st.sampled_from(ADDRESS) | st.text(max_size=2), max_size=9).map("".join), st.integers(0, 9))
def test_addresses(text: str, start: int) -> None:
    same("scan_domain", text, start)
    same("scan_path", text, start)


REPLY = [
    b"250",
    b"251",
    b"25",
    b"-",
    b" ",
    b"250-a\r\n",
    b"250 b\r\n",
    b"250\r\n",
    b"\r\n",
    b"\n",
    b"\r",
    b"x",
    b"\xff",
    b"099 ",
    b"y" * 1030,
]


@given(st.lists(st.sampled_from(REPLY) | st.binary(max_size=3), max_size=12).map(b"".join), st.integers(0, 6))
def test_responses(data: bytes, start: int) -> None:
    same("parse_response", data, start)


WORDS = [
    "a",
    "word ",
    "é",
    "漢" * 90,
    "😀",
    "\n",
    "\r",
    "\r\n",
    "\0",
    "\t",
    "\x7f",
    "\x85",
    "\x9f",
    "\xa0",
    "\ud800",
    "\udfff",
    "x" * 250,
    " " * 40,
]


@given(
    st.integers(190, 610),
    st.sampled_from(["", "2.0.0", "5.7.13", "x"]),
    st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=25).map("".join),
)
def test_replies(code: int, enhanced: str, message: str) -> None:
    wire = same("encode_reply", code, enhanced, message)
    if not isinstance(wire, bytes):
        assert not 200 <= code <= 599 or enhanced == "x"
        return
    lines = wire.removesuffix(b"\r\n").split(b"\r\n")
    assert len(lines) > message.replace("\r\n", "\n").replace("\r", "\n").count("\n")
    for line in lines:
        assert len(line) <= limits.REPLY_LINE - 2
        assert not re.search("[\0-\x1f\x7f-\x9f]", line.decode())
        assert line.startswith(f"{code}{' ' if line is lines[-1] else '-'}{enhanced}".encode())
    if len(lines) <= limits.REPLY_LINES:
        assert pure.parse_response(wire)[:2] == (len(wire), code)


@given(
    st.lists(
        st.sampled_from(["from", "MESSAGE", "-", "iD", "_", " ", ":", "é", "q" * 33]) | st.text(max_size=2), max_size=6
    ).map("".join)
)
def test_keys(key: str) -> None:
    canonical: Any = same("canonical_mime_header_key", key)
    assert canonical.lower() == key.lower() and same("canonical_mime_header_key", canonical) == canonical


HEADER = [
    b"A",
    b"Content-Type",
    b"subject",
    b":",
    b": ",
    b" ",
    b"\t",
    b"\r\n",
    b"\n",
    b"\r",
    b"a: b\r\n",
    b"\r\n ",
    b"\0",
    b"\x7f",
    "é".encode(),
    b"\xff",
    b"x" * 40,
    b"v" * 1100,
]


@given(
    st.lists(st.sampled_from(HEADER) | st.binary(max_size=3), max_size=16).map(b"".join),
    st.integers(0, 4), st.sampled_from([1000, 0, 1, 3]), st.sampled_from([1 << 20, 0, 3, 30]),
)  # fmt: skip
def test_header_blocks(data: bytes, start: int, max_fields: int, max_bytes: int) -> None:
    same("parse_header_block", data, start, max_fields, max_bytes)


@both
@given(st.binary(max_size=300), st.integers(0, 310))
def test_any_octets(data: bytes, start: int) -> None:
    for name in ("find_line", "scan_command", "parse_response", "parse_header_block"):
        same(name, data, start)
