"""Micro benchmarks of both twins (pytest-benchmark); throughput in GB/s is in each result's extra_info."""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

import pytest

from fastsmtp import _textproto_py as pure

TWINS = [pytest.param(pure, id="pure")]
with contextlib.suppress(ImportError):
    TWINS.append(pytest.param(importlib.import_module("fastsmtp._textproto"), id="cython"))

LINE = b"The quick brown fox jumps over the lazy dog and goes on for some more time."[:76] + b"\r\n"
TEXT = (LINE * 841)[: 64 * 1024]
STUFFED = (b".." + LINE[2:]) * 841
HEADER = (
    b"Return-Path: <sender@example.org>\r\n"
    b"Received: from mail.example.org (mail.example.org [192.0.2.1])\r\n\tby mx.example.net with ESMTPS id 4XyZ1234;\r\n"
    b"\tMon, 23 Nov 2026 12:00:00 +0000\r\n"
    b"DKIM-Signature: v=1; a=rsa-sha256; c=relaxed/relaxed; d=example.org; s=mail;\r\n\tbh=" + b"A" * 44 + b"; b=" + b"B" * 80
    + b"\r\nFrom: Sender <sender@example.org>\r\nTo: Recipient <recipient@example.net>\r\nCc: other@example.net\r\n"
    b"Subject: A subject of the usual length\r\nDate: Mon, 23 Nov 2026 12:00:00 +0000\r\n"
    b"Message-ID: <20261123120000.1234@example.org>\r\nMIME-Version: 1.0\r\nContent-Type: text/plain; charset=utf-8\r\n"
    b"Content-Transfer-Encoding: 8bit\r\nUser-Agent: test\r\n\r\n"
)
benchmark_twins = pytest.mark.parametrize("twin", TWINS)


def rate(benchmark: Any, octets: int) -> None:
    if benchmark.stats:
        benchmark.extra_info["GB/s"] = round(octets / benchmark.stats["median"] / 1e9, 2)
        benchmark.extra_info["twin octets"] = octets


@benchmark_twins
@pytest.mark.parametrize("keep_crlf", [True, False], ids=["crlf", "lf"])
@pytest.mark.parametrize("text", [TEXT, STUFFED], ids=["text", "stuffed"])
def test_dot_decoder(benchmark: Any, twin: Any, text: bytes, keep_crlf: bool) -> None:
    decoder = twin.DotDecoder(keep_crlf)
    benchmark(decoder.feed, text)
    rate(benchmark, len(text))


@benchmark_twins
def test_encode_dot(benchmark: Any, twin: Any) -> None:
    benchmark(twin.encode_dot, TEXT)
    rate(benchmark, len(TEXT))


@benchmark_twins
def test_header_block(benchmark: Any, twin: Any) -> None:
    assert len(benchmark(twin.parse_header_block, HEADER)[1]) == 13
    rate(benchmark, len(HEADER))


@benchmark_twins
def test_scan_command(benchmark: Any, twin: Any) -> None:
    benchmark(twin.scan_command, b"MAIL FROM:<sender@example.org> SIZE=4096\r\n")


@benchmark_twins
def test_encode_reply(benchmark: Any, twin: Any) -> None:
    benchmark(twin.encode_reply, 250, "2.1.0", "Sender OK")


@benchmark_twins
def test_parse_response(benchmark: Any, twin: Any) -> None:
    benchmark(twin.parse_response, b"250-example.org\r\n250-PIPELINING\r\n250 SIZE 1000\r\n")


@benchmark_twins
def test_canonical_key(benchmark: Any, twin: Any) -> None:
    benchmark(twin.canonical_mime_header_key, "content-type")
