"""What one call of the text protocol costs, in both twins.

    python -m pytest bench/test_micro.py --benchmark-group-by=param:case

The figures to compare are ratios within one run: pure against compiled, and each decoder against `memchr`-speed line search.
GB/s of the best round stands in each benchmark's extra_info, and is printed at the end of the line of its test with -s.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from fastsmtp import _textproto_py

CHUNK = 65536
ORDINARY = b"The quick brown fox jumps over the lazy dog, and nobody knows why it does so\r\n"
STUFFED = b".." + ORDINARY[2:]
HEADER = (
    b"Return-Path: <alice@example.org>\r\n"
    b"Received: from mail.example.org (mail.example.org [192.0.2.25])\r\n"
    b"\tby mx.example.net (fastsmtp) with ESMTPS id 4YwXkP2hZKz3x\r\n"
    b"\tfor <bob@example.net>; Sat, 23 Nov 2024 19:14:03 +0000\r\n"
    b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/simple; d=example.org; s=mail;\r\n"
    b"\tt=1732389241; bh=47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=\r\n"
    b"From: Alice <alice@example.org>\r\n"
    b"To: Bob <bob@example.net>\r\n"
    b"Subject: Minutes of the meeting on Saturday, and of the plan for all next weeks\r\n"
    b"Date: Sat, 23 Nov 2024 19:14:01 +0000\r\n"
    b"Message-ID: <20241123191401.4YwXkP@example.org>\r\n"
    b"MIME-Version: 1.0\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 8bit\r\n"
    b"User-Agent: Mutt/2.2.12\r\n"
    b"X-Priority: 3\r\n"
    b"\r\n"
)
COMMAND = b"MAIL FROM:<alice@example.org> SIZE=4096\r\n"
RESPONSE = b"250-mx.example.net\r\n250-PIPELINING\r\n250-SIZE 33554432\r\n250-8BITMIME\r\n250 SMTPUTF8\r\n"


def block(line: bytes) -> bytes:
    """Whole lines, 64 KiB of them."""
    return line * (CHUNK // len(line))


@pytest.fixture(params=["cython", "pure"])
def twin(request: pytest.FixtureRequest) -> ModuleType:
    if request.param == "pure":
        return _textproto_py
    return pytest.importorskip("fastsmtp._textproto")


def measure(benchmark: Any, function: Callable[[], object], octets: int, case: str) -> None:
    benchmark.extra_info["case"] = case
    benchmark(function)
    if benchmark.stats is not None:
        rate = octets / benchmark.stats.stats.min / 1e9
        benchmark.extra_info["GB/s"] = round(rate, 3)
        print(f" {rate:.2f} GB/s, {benchmark.stats.stats.min * 1e6:.2f} us")


@pytest.mark.parametrize("keep_crlf", [True, False], ids=["crlf", "lf"])
@pytest.mark.parametrize("line", [ORDINARY, STUFFED], ids=["ordinary", "stuffed"])
def test_decoder(benchmark: Any, twin: ModuleType, line: bytes, keep_crlf: bool) -> None:
    text = block(line)
    decoder = twin.DotDecoder(keep_crlf)
    measure(benchmark, lambda: decoder.feed(text), len(text), "decoder")


@pytest.mark.parametrize("end", [b"\r\n", b"\n"], ids=["crlf", "lf"])
def test_encoder(benchmark: Any, twin: ModuleType, end: bytes) -> None:
    text = block(ORDINARY[:-2] + end)
    encoder = twin.DotEncoder()
    measure(benchmark, lambda: encoder.feed(text), len(text), "encoder")


def test_whole_message(benchmark: Any, twin: ModuleType) -> None:
    """4 KB with its end: what one delivery costs."""
    text = ORDINARY * 52 + b".\r\n"
    measure(benchmark, lambda: twin.DotDecoder(True).feed(text), len(text), "message")


def test_header_block(benchmark: Any, twin: ModuleType) -> None:
    assert len(twin.parse_header_block(HEADER)[1]) == 13
    measure(benchmark, lambda: twin.parse_header_block(HEADER), len(HEADER), "header")


def test_scan_command(benchmark: Any, twin: ModuleType) -> None:
    measure(benchmark, lambda: twin.scan_command(COMMAND), len(COMMAND), "command")


def test_encode_reply(benchmark: Any, twin: ModuleType) -> None:
    measure(benchmark, lambda: twin.encode_reply(250, "2.1.0", "Sender ok"), 22, "reply")


def test_parse_response(benchmark: Any, twin: ModuleType) -> None:
    measure(benchmark, lambda: twin.parse_response(RESPONSE), len(RESPONSE), "response")


@pytest.mark.parametrize("key", ["content-type", "x-no-such-key"], ids=["common", "other"])
def test_canonical_key(benchmark: Any, twin: ModuleType, key: str) -> None:
    measure(benchmark, lambda: twin.canonical_mime_header_key(key), len(key), "key")


def test_email_parser_for_comparison(benchmark: Any) -> None:
    parser = importlib.import_module("email.parser").BytesHeaderParser()
    measure(benchmark, lambda: parser.parsebytes(HEADER), len(HEADER), "header")
