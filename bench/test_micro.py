"""What one call of the text protocol costs, in both twins, beside what else could do it in Python, and the limits of the machine.

    python -m pytest bench/test_micro.py --benchmark-group-by=param:case

The figures to compare are ratios within one run.  GB/s of the best round stands in each benchmark's extra_info, and is printed at the
end of the line of its test with -s.  `python -m bench.micro` adds Go's net/textproto on the same texts, and makes one table of all.
"""

from __future__ import annotations

import email.parser
import re
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest

from fastsmtp import _textproto_py

from .texts import ARGUMENT, COMMAND, DOMAIN, HEADER, MESSAGE, ORDINARY, RESPONSE, STUFFED, block

LIMIT = "limit of the machine: "
LINES = {"ordinary": ORDINARY, "stuffed": STUFFED}
KEYS = {"common": "content-type", "other": "x-no-such-key"}


@pytest.fixture(params=["cython", "pure"])
def twin(request: pytest.FixtureRequest) -> Any:
    if request.param == "pure":
        return _textproto_py
    return pytest.importorskip("fastsmtp._textproto")


def measure(benchmark: Any, function: Callable[[], object], octets: int, case: str, who: str | ModuleType) -> None:
    if isinstance(who, ModuleType):
        who = "fastsmtp, compiled" if who.IMPLEMENTATION == "cython" else "fastsmtp, pure"
    benchmark.extra_info.update(case=case, who=who, octets=octets)
    benchmark(function)
    if benchmark.stats is not None:
        rate = octets / benchmark.stats.stats.min / 1e9
        benchmark.extra_info["GB/s"] = round(rate, 3)
        print(f" {rate:.2f} GB/s, {benchmark.stats.stats.min * 1e6:.2f} us")


@pytest.mark.parametrize("keep_crlf", [True, False], ids=["crlf", "lf"])
@pytest.mark.parametrize("kind", LINES)
def test_decoder(benchmark: Any, twin: ModuleType, kind: str, keep_crlf: bool) -> None:
    text = block(LINES[kind])
    decoder = twin.DotDecoder(keep_crlf)
    case = f"decode {kind} text{'' if keep_crlf else ' to LF'}"
    measure(benchmark, lambda: decoder.feed(text), len(text), case, twin)


@pytest.mark.parametrize("kind", LINES)
def test_decoder_by_replace(benchmark: Any, kind: str) -> None:
    """It is no decoder: it knows no end and no chunks."""
    text = block(LINES[kind])
    case = f"decode {kind} text"
    measure(benchmark, lambda: text.replace(b"\r\n.", b"\r\n"), len(text), case, "bytes.replace, no decoder")


@pytest.mark.parametrize("kind", LINES)
@pytest.mark.parametrize("what", ["copy", "scan"])
def test_decoder_limits(benchmark: Any, kind: str, what: str) -> None:
    """memcpy, and memchr for an octet that is not there."""
    text = block(LINES[kind])
    function: Callable[[], object] = (lambda: bytearray(text)) if what == "copy" else (lambda: text.find(b"\0"))
    measure(benchmark, function, len(text), f"decode {kind} text", LIMIT + what)


@pytest.mark.parametrize("end", [b"\r\n", b"\n"], ids=["crlf", "lf"])
def test_encoder(benchmark: Any, twin: ModuleType, end: bytes) -> None:
    text = block(ORDINARY[:-2] + end)
    encoder = twin.DotEncoder()
    case = "encode text" if end == b"\r\n" else "encode text from LF"
    measure(benchmark, lambda: encoder.feed(text), len(text), case, twin)


@pytest.mark.parametrize("end", [b"\r\n", b"\n"], ids=["crlf", "lf"])
def test_encoder_as_smtplib(benchmark: Any, end: bytes) -> None:
    """The two expressions of smtplib's `data`."""
    text = block(ORDINARY[:-2] + end)
    ends, dots = re.compile(rb"(?:\r\n|\n|\r(?!\n))"), re.compile(rb"(?m)^\.")
    case = "encode text" if end == b"\r\n" else "encode text from LF"
    measure(benchmark, lambda: dots.sub(b"..", ends.sub(b"\r\n", text)), len(text), case, "as smtplib does")


def test_whole_message(benchmark: Any, twin: ModuleType) -> None:
    """What one delivery costs."""
    measure(benchmark, lambda: twin.DotDecoder(True).feed(MESSAGE), len(MESSAGE), "decode 4 KB and its end", twin)


def test_header_block(benchmark: Any, twin: ModuleType) -> None:
    assert len(twin.parse_header_block(HEADER)[1]) == 13
    measure(benchmark, lambda: twin.parse_header_block(HEADER), len(HEADER), "header of 13 fields", twin)


def test_header_block_by_email(benchmark: Any) -> None:
    parser = email.parser.BytesHeaderParser()
    measure(benchmark, lambda: parser.parsebytes(HEADER), len(HEADER), "header of 13 fields", "email")


def test_find_line(benchmark: Any, twin: ModuleType) -> None:
    measure(benchmark, lambda: twin.find_line(COMMAND), len(COMMAND), "find a line", twin)


def test_find_line_by_find(benchmark: Any) -> None:
    measure(benchmark, lambda: COMMAND.find(b"\r\n"), len(COMMAND), "find a line", "bytes.find")


def test_scan_command(benchmark: Any, twin: ModuleType) -> None:
    measure(benchmark, lambda: twin.scan_command(COMMAND), len(COMMAND), "scan a command", twin)


def test_scan_command_by_split(benchmark: Any) -> None:
    """Without a look at what is in it."""

    def scan() -> tuple[str, str]:
        verb, _, argument = COMMAND[: COMMAND.find(b"\r\n")].decode("utf-8", "surrogateescape").partition(" ")
        return verb.upper(), argument.strip(" ")

    measure(benchmark, scan, len(COMMAND), "scan a command", "bytes.decode and partition")


_PATH = re.compile(r"<([^\s<>@]+@[A-Za-z0-9._-]+)>")


def test_scan_path(benchmark: Any, twin: ModuleType) -> None:
    assert twin.scan_path(ARGUMENT, 5) == ("alice@example.org", 24)
    measure(benchmark, lambda: twin.scan_path(ARGUMENT, 5), 19, "scan a path", twin)


def test_scan_path_by_re(benchmark: Any) -> None:
    """With an expression that lets much pass."""

    def scan() -> tuple[str, int]:
        match = _PATH.match(ARGUMENT, 5)
        assert match is not None
        return match[1], match.end()

    measure(benchmark, scan, 19, "scan a path", "re")


def test_scan_domain(benchmark: Any, twin: ModuleType) -> None:
    assert twin.scan_domain(DOMAIN) == len(DOMAIN)
    measure(benchmark, lambda: twin.scan_domain(DOMAIN), len(DOMAIN), "scan a domain", twin)


def test_encode_reply(benchmark: Any, twin: ModuleType) -> None:
    measure(benchmark, lambda: twin.encode_reply(250, "2.1.0", "Sender ok"), 22, "encode a reply", twin)


def test_encode_reply_by_format(benchmark: Any) -> None:
    code, enhanced, text = 250, "2.1.0", "Sender ok"
    measure(benchmark, lambda: f"{code} {enhanced} {text}\r\n".encode(), 22, "encode a reply", "f-string and encode")


def test_parse_response(benchmark: Any, twin: ModuleType) -> None:
    measure(benchmark, lambda: twin.parse_response(RESPONSE), len(RESPONSE), "parse a reply of 5 lines", twin)


@pytest.mark.parametrize("kind", KEYS)
def test_canonical_key(benchmark: Any, twin: ModuleType, kind: str) -> None:
    key = KEYS[kind]
    measure(benchmark, lambda: twin.canonical_mime_header_key(key), len(key), f"canonical key, {kind}", twin)


@pytest.mark.parametrize("kind", KEYS)
def test_canonical_key_by_title(benchmark: Any, kind: str) -> None:
    key = KEYS[kind]
    measure(benchmark, key.title, len(key), f"canonical key, {kind}", "str.title")
