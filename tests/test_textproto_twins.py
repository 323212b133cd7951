"""One suite for both twins: what `_textproto.pyi` promises."""

from __future__ import annotations

import ast
import importlib
import inspect
import os
import pathlib
import re
import subprocess
import sys
from typing import Any

import pytest

import fastsmtp
from fastsmtp import _textproto_py, limits
from fastsmtp._vocabulary import HEADER_KEYS, VERBS
from fastsmtp.errors import HeaderError, LineTooLong, ProtocolError

CONTRACT = pathlib.Path(fastsmtp.__file__).with_name("_textproto.pyi")
CONTROL, EIGHT_BIT, NOT_UTF8 = 1, 2, 4


def _compiled() -> Any:
    try:
        return importlib.import_module("fastsmtp._textproto")
    except ImportError:
        return None


@pytest.fixture(params=["pure", "cython"])
def twin(request: pytest.FixtureRequest) -> Any:
    if request.param == "pure":
        return _textproto_py
    module = _compiled()
    if module is None:
        pytest.skip("no extension was built")
    return module


# ---- the contract ----


def test_implementation(twin: Any) -> None:
    assert twin.IMPLEMENTATION == ("pure" if twin is _textproto_py else "cython")
    assert (twin.CONTROL, twin.EIGHT_BIT, twin.NOT_UTF8) == (CONTROL, EIGHT_BIT, NOT_UTF8)


def test_signatures_are_those_of_the_contract(twin: Any) -> None:
    tree = ast.parse(CONTRACT.read_text(encoding="utf-8"))
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    functions = [(twin, node) for node in tree.body if isinstance(node, ast.FunctionDef)]
    for name, body in classes.items():
        functions += [(getattr(twin, name), method) for method in body.body if isinstance(method, ast.FunctionDef)]
    assert len(functions) > 10
    for owner, node in functions:
        if node.name == "__init__":
            continue  # a compiled __init__ has no signature to look at; stubtest looks at the class
        parameters = inspect.signature(getattr(owner, node.name)).parameters
        assert list(parameters) == [argument.arg for argument in node.args.args], node.name
        defaults = [each.default for each in parameters.values() if each.default is not inspect.Parameter.empty]
        assert defaults == [ast.literal_eval(each) for each in node.args.defaults], node.name


def test_all_is_that_of_the_contract(twin: Any) -> None:
    names = [node for node in ast.parse(CONTRACT.read_text(encoding="utf-8")).body if isinstance(node, ast.Assign)]
    assert ast.literal_eval(names[0].value) == twin.__all__


@pytest.mark.parametrize("name", ["find_line", "scan_command", "parse_response", "parse_header_block"])
def test_arguments_are_checked(twin: Any, name: str) -> None:
    function = getattr(twin, name)
    for wrong in ("text", bytearray(b"x"), memoryview(b"x"), None, 7):
        with pytest.raises(TypeError, match=f"must be bytes, not {type(wrong).__name__}"):
            function(wrong)
    with pytest.raises(ValueError, match="^start is negative$"):
        function(b"x\r\n", -1)


def test_other_arguments_are_checked(twin: Any) -> None:
    with pytest.raises(TypeError, match="text must be bytes, not str"):
        twin.encode_dot("x")
    with pytest.raises(TypeError, match="chunk must be bytes, not str"):
        twin.DotEncoder().feed("x")
    with pytest.raises(TypeError, match="chunk must be bytes, not bytearray"):
        twin.DotDecoder().feed(bytearray(b"x"))
    with pytest.raises(ValueError, match="^start is negative$"):
        twin.DotDecoder().feed(b"x", -1)
    with pytest.raises(TypeError, match="key must be str, not bytes"):
        twin.canonical_mime_header_key(b"x")
    with pytest.raises(TypeError, match="must be str"):
        twin.encode_reply(250, "", b"x")
    for function in (twin.scan_domain, twin.scan_path):
        with pytest.raises(TypeError, match="text must be str, not bytes"):
            function(b"<a@b>")
        with pytest.raises(ValueError, match="^start is negative$"):
            function("<a@b>", -1)


# ---- lines and commands ----


@pytest.mark.parametrize(
    ("data", "start", "expected"),
    [
        (b"", 0, 0),
        (b"\r\n", 0, 2),
        (b"\r\n", 1, 0),
        (b"a\nb\rc\r\r\nd\r\n", 0, 8),
        (b"a\nb\rc\r\r\nd\r\n", 8, 11),
        (b"ab\r", 0, 0),
        (b"ab\r\n", 50, 0),
        (b"ab\r\n", sys.maxsize, 0),  # no pointer is made of it: undefined in C, and seen by the build with all checks
    ],
)
def test_find_line(twin: Any, data: bytes, start: int, expected: int) -> None:
    assert twin.find_line(data, start) == expected


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"NOOP\r\n", ("NOOP", "", 0)),
        (b"mail FROM:<a@b>  \r\n", ("MAIL", "FROM:<a@b>", 0)),
        (b"rCpT   TO:<a@b>\r\n", ("RCPT", "TO:<a@b>", 0)),
        (b"StartTLSfoo\r\n", ("STARTTLSFOO", "", 0)),
        (b" QUIT\r\n", ("", "QUIT", 0)),
        (b"\r\n", ("", "", 0)),
        (b"NOOP\tx\r\n", ("NOOP\tX", "", CONTROL)),
        (b"MAIL\0 x\r\n", ("MAIL\0", "x", CONTROL)),
        (b"NOOP \ta\t \r\n", ("NOOP", "\ta\t", CONTROL)),
        (b"NOOP a\nb\r\n", ("NOOP", "a\nb", CONTROL)),
        (b"NOOP a\rb\r\n", ("NOOP", "a\rb", CONTROL)),
        (b"NOOP \x7f\r\n", ("NOOP", "\x7f", CONTROL)),
        (b"NOOP ~ \r\n", ("NOOP", "~", 0)),
        ("NOOP é\r\n".encode(), ("NOOP", "é", EIGHT_BIT)),
        ("straße\r\n".encode(), ("STRAßE", "", EIGHT_BIT)),
        (b"NOOP \xff\r\n", ("NOOP", "\udcff", EIGHT_BIT | NOT_UTF8)),
        (b"\xc3 \xa9\0\r\n", ("\udcc3", "\udca9\0", CONTROL | EIGHT_BIT | NOT_UTF8)),
    ],
)
def test_scan_command(twin: Any, line: bytes, expected: tuple[str, str, int]) -> None:
    verb, argument, flags = expected
    assert twin.scan_command(line + b"QUIT\r\n") == (len(line), verb, argument, flags)
    assert twin.scan_command(b"x\r\n" + line, 3) == (3 + len(line), verb, argument, flags)
    assert twin.scan_command(line[:-1]) == twin.scan_command(line[:-2]) == (0, "", "", 0)


@pytest.mark.parametrize("size", range(20))
def test_flags_see_each_octet(twin: Any, size: int) -> None:
    for octet, flag in ((0, CONTROL), (31, CONTROL), (32, 0), (126, 0), (127, CONTROL), (128, EIGHT_BIT | NOT_UTF8)):
        for place in range(size):
            line = b"x" * place + bytes((octet,)) + b"x" * (size - place - 1)
            assert twin.scan_command(line + b"\r\n")[3] == flag, line


@pytest.mark.parametrize("verb", VERBS)
def test_known_verbs_are_one_object(twin: Any, verb: str) -> None:
    spellings = [
        spelling.encode()
        for spelling in (verb, verb.lower(), verb.capitalize(), verb.swapcase(), verb[0].lower() + verb[1:])
    ]
    assert {id(twin.scan_command(spelling + b" x\r\n")[1]) for spelling in spellings} == {id(sys.intern(verb))}


# ---- addresses ----


@pytest.mark.parametrize(
    ("text", "end"),
    [
        ("a", 1),
        ("mx_1.example-2.org", 18),
        ("example.org>", 11),
        ("example.org SIZE=1", 11),
        ("l" * 63 + ".b", 65),
        ("l" * 64 + ".b", 0),
        ("a." + "l" * 64, 0),
        ("", 0),
        (".a", 0),
        ("a.", 0),
        ("a..b", 0),
        ("-a", 0),
        ("a-", 0),
        ("a-.b", 0),
        ("a.-b", 0),
        ("a>ü", 0),
        ("ü", 0),
        ("[127.0.0.1]", 0),
    ],
)
def test_scan_domain(twin: Any, text: str, end: int) -> None:
    assert twin.scan_domain(text) == end
    assert twin.scan_domain("<@" + text, 2) == (end + 2 if end else 0)


@pytest.mark.parametrize(
    ("text", "mailbox"),
    [
        ("<a@b>", "a@b"),
        ("<first.last+tag@mx_1.example-2.org> SIZE=1", "first.last+tag@mx_1.example-2.org"),
        ("<!#$%&'*+-/=?^_`{|}~@b>>", "!#$%&'*+-/=?^_`{|}~@b"),
        ("<" + "l" * 64 + "@b>", ""),
        ("<" + "l" * 63 + "@bc>", ""),
        ("<" + "l" * 63 + "@b", ""),
        ("<" + "l" * 63 + "@b>", "l" * 63 + "@b"),
        ("", ""),
        ("<", ""),
        ("<>", ""),
        ("<a>", ""),
        ("<a@>", ""),
        ("<@b>", ""),
        ("<a@b", ""),
        ("a@b>", ""),
        ("<a@@b>", ""),
        ("<a@b@c>", ""),
        ("<.a@b>", ""),
        ("<a.@b>", ""),
        ("<a..b@c>", ""),
        ("<a@b.>", ""),
        ("<a@-b>", ""),
        ("<a@b >", ""),
        ("<a b@c>", ""),
        ('<"a"@b>', ""),
        ("<@a:b@c>", ""),
        ("<a@[127.0.0.1]>", ""),
        ("<a@b>ü", ""),
        ("<ü@b>", ""),
        ("<a\0@b>", ""),
        ("<a@b\n>", ""),
    ],
)
def test_scan_path(twin: Any, text: str, mailbox: str) -> None:
    end = len(mailbox) + 2 if mailbox else 0
    assert len(mailbox) + 2 < limits.LOCAL_PART + 4
    assert twin.scan_path(text) == (mailbox, end)
    assert twin.scan_path("FROM:" + text, 5) == (mailbox, end + 5 if end else 0)
    assert twin.scan_path(text, len(text)) == twin.scan_path(text, len(text) + 9) == ("", 0)


# ---- replies ----


@pytest.mark.parametrize(
    ("code", "enhanced", "message", "expected"),
    [
        (250, "", "OK", b"250 OK\r\n"),
        (250, "2.1.0", "Sender ok", b"250 2.1.0 Sender ok\r\n"),
        (354, "", "", b"354 \r\n"),
        (
            550,
            "5.7.1",
            "one\ntwo\r\nthree\rfour",
            b"550-5.7.1 one\r\n550-5.7.1 two\r\n550-5.7.1 three\r\n550 5.7.1 four\r\n",
        ),
        (250, "", "a\n", b"250-a\r\n250 \r\n"),
        (250, "", "a\n\nb", b"250-a\r\n250-\r\n250 b\r\n"),
        (200, "", "tab\tnul\0del\x7fnel\x85c1\x9f nbsp\xa0", b"200 tab?nul?del?nel?c1? nbsp\xc2\xa0\r\n"),
        (599, "", "\ud800x\udfff é 😀", "599 ?x? é 😀\r\n".encode()),
    ],
)
def test_encode_reply(twin: Any, code: int, enhanced: str, message: str, expected: bytes) -> None:
    assert twin.encode_reply(code, enhanced, message) == expected


def test_long_replies_are_folded(twin: Any) -> None:
    exact = "x" * (limits.REPLY_LINE - 6)
    assert twin.encode_reply(250, "", exact) == b"250 " + exact.encode() + b"\r\n"
    assert twin.encode_reply(250, "", exact + "y") == b"250-" + exact.encode() + b"\r\n250 y\r\n"
    assert twin.encode_reply(250, "", exact + " y") == b"250-" + exact.encode() + b"\r\n250 y\r\n"
    assert twin.encode_reply(250, "", "a " + exact) == b"250-a\r\n250 " + exact.encode() + b"\r\n"
    words = "lorem ipsum " * 200
    lines = twin.encode_reply(550, "5.7.1", words).split(b"\r\n")[:-1]
    assert all(len(line) <= limits.REPLY_LINE - 2 for line in lines)
    assert [line[:10] for line in lines] == [b"550-5.7.1 "] * (len(lines) - 1) + [b"550 5.7.1 "]
    assert b" ".join(line[10:] for line in lines).decode() == words
    for wide in ("é", "漢", "😀"):
        lines = twin.encode_reply(250, "", "x" + wide * 1000).split(b"\r\n")[:-1]
        assert "".join(line[4:].decode() for line in lines) == "x" + wide * 1000


@pytest.mark.parametrize("code", [-250, 0, 199, 600, 2500, 1 << 70])
def test_codes_that_are_none(twin: Any, code: int) -> None:
    with pytest.raises(ValueError, match="200..599"):
        twin.encode_reply(code, "", "x")


@pytest.mark.parametrize("enhanced", ["5.7.1\r\n", "x", "5 7 1", "٥.٧.١", "1" * 12])
def test_enhanced_codes_that_are_none(twin: Any, enhanced: str) -> None:
    with pytest.raises(ValueError, match="digits and dots"):
        twin.encode_reply(550, enhanced, "x")


@pytest.mark.parametrize(
    ("block", "code", "message"),
    [
        (b"220 mail ready\r\n", 220, "mail ready"),
        (b"220 mail ready\n", 220, "mail ready"),
        (b"250\r\n", 250, ""),
        (b"250 \r\n", 250, ""),
        (b"250-a\r\n250-b\r\n250 c\r\n", 250, "a\nb\nc"),
        (b"250-a\r\n250\r\n", 250, "a\n"),
        (
            b"123-First\r\nSecond\r\n 234 numbers\r\n124 other\r\n123x\r\n123 last\r\n",
            123,
            "First\nSecond\n 234 numbers\n124 other\n123x\nlast",
        ),
        ("250 é".encode() + b"\xff\r\n", 250, "é\udcff"),
        (b"250 a\rb\r\r\n", 250, "a\rb\r"),
    ],
)
def test_parse_response(twin: Any, block: bytes, code: int, message: str) -> None:
    assert twin.parse_response(block + b"250 next\r\n") == (len(block), code, message)
    assert twin.parse_response(b"xx" + block, 2) == (len(block) + 2, code, message)
    for cut in range(len(block)):
        assert twin.parse_response(block[:cut]) == (0, 0, "")


@pytest.mark.parametrize(
    "block",
    [b"\r\n", b"25\r\n", b"25x ok\r\n", b"250x\r\n", b"099 x\r\n", b" 250 x\r\n", "٢٥٠ x\r\n".encode(), b"+25 x\r\n"],
)
def test_what_is_no_response(twin: Any, block: bytes) -> None:
    with pytest.raises(ProtocolError, match="^not a reply line$"):
        twin.parse_response(block)


def test_responses_have_limits(twin: Any) -> None:
    longest = b"250 " + b"x" * (4 * limits.REPLY_LINE - 6) + b"\r\n"
    assert twin.parse_response(longest)[0] == len(longest)
    for block in (b"250 x" + longest[4:], b"x" * (4 * limits.REPLY_LINE + 1)):
        with pytest.raises(LineTooLong, match="line too long"):
            twin.parse_response(block)
    most = b"250-x\r\n" * (limits.REPLY_LINES - 1)
    assert twin.parse_response(most) == (0, 0, "")
    assert twin.parse_response(most + b"250 x\r\n")[1] == 250
    with pytest.raises(LineTooLong, match="too many lines"):
        twin.parse_response(most + b"250-x\r\n")


# ---- headers ----


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("accept-encoding", "Accept-Encoding"),
        ("MIME-VERSION", "Mime-Version"),
        ("uSER-aGENT", "User-Agent"),
        ("x--y-", "X--Y-"),
        ("-a", "-A"),
        ("a_b.c!d", "A_b.c!d"),
        ("1abc-2DEF", "1abc-2def"),
        ("X-" + "a" * 60, "X-A" + "a" * 59),
        ("", ""),
        ("C Ontent-Transfer-Encoding", "C Ontent-Transfer-Encoding"),
        ("foo bar", "foo bar"),
        ("foo:", "foo:"),
        ("üser-agent", "üser-agent"),
        ("a\0", "a\0"),
        ("foo(bar)" + "x" * 60, "foo(bar)" + "x" * 60),
        ("ſubject", "ſubject"),
    ],
)
def test_canonical_mime_header_key(twin: Any, key: str, expected: str) -> None:
    assert twin.canonical_mime_header_key(key) == expected


@pytest.mark.parametrize("key", HEADER_KEYS)
def test_common_keys_are_one_object(twin: Any, key: str) -> None:
    for spelling in (key, key.lower(), key.upper(), key.swapcase()):
        assert twin.canonical_mime_header_key(spelling) is sys.intern(key)
        assert next(iter(twin.parse_header_block(spelling.encode() + b": x\r\n")[1])) is sys.intern(key)


@pytest.mark.parametrize(
    ("block", "fields"),
    [
        (
            b"my-key: Value 1  \r\nLong-key: Even \n Longer Value\r\nmy-Key: Value 2\r\n\n",
            {"My-Key": ["Value 1", "Value 2"], "Long-Key": ["Even Longer Value"]},
        ),
        (b"\r\n", {}),
        (b"\n", {}),
        (b"A:b\r\n\r\n", {"A": ["b"]}),
        (b"A:\r\n \t \r\n b\r\n\t\r\n c \r\n\r\n", {"A": ["b c"]}),
        (b"A:\r\n\r\n", {"A": [""]}),
        (b"A: \t x\ty \t\r\n\r\n", {"A": ["x\ty"]}),
        ("A: é".encode() + b"\xff\r\n " + "漢\r\n\r\n".encode(), {"A": ["é\udcff 漢"]}),
        (b"A: b: c\r\n\r\n", {"A": ["b: c"]}),
        (b"A: " + b"x" * 2000 + b"\r\n " + b"y" * 2000 + b"\r\n\r\n", {"A": ["x" * 2000 + " " + "y" * 2000]}),
    ],
)
def test_parse_header_block(twin: Any, block: bytes, fields: dict[str, list[str]]) -> None:
    assert twin.parse_header_block(block + b"body\r\n") == (len(block), fields)
    assert twin.parse_header_block(b"\n " + block, 2) == (len(block) + 2, fields)


def test_header_block_without_its_end(twin: Any) -> None:
    assert twin.parse_header_block(b"") == (0, {})
    assert twin.parse_header_block(b"A: b") == (4, {"A": ["b"]})
    assert twin.parse_header_block(b"A: b\r\n c") == (8, {"A": ["b c"]})
    assert twin.parse_header_block(b"A: b\r\n", 99) == (6, {})


@pytest.mark.parametrize(
    ("block", "reason"),
    [
        (b" A: b\r\n\r\n", "begins with white space"),
        (b"\tA: b\r\n\r\n", "begins with white space"),
        (b"A: b\r\nno colon\r\n\r\n", "without a colon"),
        (b"Foo-\r\n\tBar: foo\r\n\r\n", "without a colon"),
        (b": b\r\n\r\n", "no token"),
        (b"A : b\r\n\r\n", "no token"),
        (b"A b: c\r\n\r\n", "no token"),
        (b"A\0: c\r\n\r\n", "no token"),
        ("é: c\r\n\r\n".encode(), "no token"),
        (b"(" + b"a" * 80 + b": c\r\n\r\n", "no token"),
        (b"A: b\0\r\n\r\n", "control character"),
        (b"A: b\rc\r\n\r\n", "control character"),
        (b"A: b\r\n c\x7f\r\n\r\n", "control character"),
        (b"A: b\r", "control character"),
        (b"\r", "without a colon"),
    ],
)
def test_what_is_no_header(twin: Any, block: bytes, reason: str) -> None:
    with pytest.raises(HeaderError, match=reason):
        twin.parse_header_block(block)


def test_headers_have_limits(twin: Any) -> None:
    block = b"A: b\r\n" * 5 + b"\r\n"
    assert twin.parse_header_block(block, 0, 5, len(block))[0] == len(block)
    with pytest.raises(HeaderError, match="too many header fields"):
        twin.parse_header_block(block, 0, 4)
    with pytest.raises(HeaderError, match="too large"):
        twin.parse_header_block(block, 0, 5, len(block) - 1)
    with pytest.raises(HeaderError, match="too large"):
        twin.parse_header_block(b"A: " + b"x" * 100, max_bytes=100)


# ---- dot-encoding ----


@pytest.mark.parametrize(
    ("text", "wire"),
    [
        (b"", b".\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"a\n", b"a\r\n.\r\n"),
        (b"a\r\n", b"a\r\n.\r\n"),
        (b"\n", b"\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b".\r\n.\n.", b"..\r\n..\r\n..\r\n.\r\n"),
        (b"a\n\r\n\n", b"a\r\n\r\n\r\n.\r\n"),
        (b"a\rb\r\r\n\r.", b"a\rb\r\r\n\r.\r\n.\r\n"),
        (b"a\r", b"a\r\r\n.\r\n"),
        (b"a.b.\n", b"a.b.\r\n.\r\n"),
    ],
)
def test_encode_dot(twin: Any, text: bytes, wire: bytes) -> None:
    assert twin.encode_dot(text) == wire
    encoder = twin.DotEncoder()
    for _ in range(2):  # it is ready for another text
        assert encoder.feed(text) + encoder.finish() == wire
        assert b"".join([encoder.feed(text[i : i + 1]) for i in range(len(text))]) + encoder.finish() == wire
    assert encoder.feed(b"") == b""


def decode(twin: Any, data: bytes, keep_crlf: bool, size: int) -> tuple[bytes, int, Any]:
    """What a decoder makes of `data` in chunks of `size`: payload, index of the end, decoder."""
    decoder = twin.DotDecoder(keep_crlf)
    text = b""
    for start in range(0, len(data), size):
        payload, end = decoder.feed(data[start : start + size])
        text += payload
        if end:
            return text, start + end, decoder
    return text, 0, decoder


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("wire", "text", "bare"),
    [
        (b".\r\n", b"", ""),
        (b"a\r\n.\r\n", b"a\r\n", ""),
        (b"..\r\n.\r\n", b".\r\n", ""),
        (b"..a\r\n...\r\n.b\r\n.\r\n", b".a\r\n..\r\nb\r\n", ""),
        (b"\r\n\r\n.\r\n", b"\r\n\r\n", ""),
        (b"a\n.\r\nb\r\n.\r\n", b"a\n.\r\nb\r\n", "lf"),
        (b"a\n.\nb\r\n.\r\n", b"a\n.\nb\r\n", "lf"),
        (b"a\r\n.\nb\r\n.\r\n", b"a\r\n\nb\r\n", "lf"),
        (b".\n.\r\nb\r\n.\r\n", b"\n.\r\nb\r\n", "lf"),
        (b"a\r.\r\nb\r\n.\r\n", b"a\r.\r\nb\r\n", "cr"),
        (b"a\r\n.\rb\r\n.\r\n", b"a\r\n\rb\r\n", "cr"),
        (b"a\r\n.\r\r\n.\r\n", b"a\r\n\r\r\n", "cr"),
        (b"a\r\r\n.\r\n", b"a\r\r\n", "cr"),
        (b"\r\r\n.\r\n", b"\r\r\n", "cr"),
        (b"\r.\r\n.\r\n", b"\r.\r\n", "cr"),
        (b"\n.\r\n\r\n.\r\n", b"\n.\r\n\r\n", "lf"),
        (b".\r.\r\n.\r\n", b"\r.\r\n", "cr"),
        (b"a\r\n. \r\n.\r\n", b"a\r\n \r\n", ""),
        (b"a\n\r.\r\n\n\r\n.\r\n", b"a\n\r.\r\n\n\r\n", "cr lf"),
    ],
)
def test_dot_decoder(twin: Any, wire: bytes, text: bytes, bare: str, size: int) -> None:
    rest = b"RSET\r\n\0\xff\r\r\n\n.\r\n"
    for keep_crlf, expected in ((True, text), (False, text.replace(b"\r\n", b"\n"))):
        payload, end, decoder = decode(twin, wire + rest, keep_crlf, size)
        assert (payload, end) == (expected, len(wire))
        assert (decoder.ended, decoder.size, decoder.keep_crlf) == (True, len(expected), keep_crlf)
        assert (decoder.bare_cr, decoder.bare_lf) == ("cr" in bare, "lf" in bare)
        assert not decoder.has_nul and not decoder.has_8bit
        with pytest.raises(ValueError, match="^the end of data has been seen$"):
            decoder.feed(b"x")


@pytest.mark.parametrize("lead", range(0, 140, 3))
def test_decoder_at_every_place_of_a_block(twin: Any, lead: int) -> None:
    """What is looked for may lie anywhere in the 64 octets that the compiled twin takes at a time, and across two."""
    front = b"a" * lead
    for keep_crlf in (True, False):
        for wire, text, bare in (
            (b"\r\n.\r\n", b"\r\n", ""),
            (b"\r\n..x\r\n.\r\n", b"\r\n.x\r\n", ""),
            (b"\r\n.\r\r\n.\r\n", b"\r\n\r\r\n", "cr"),
            (b"\n.\r\n" + b"b" * 70 + b"\r\n.\r\n", b"\n.\r\n" + b"b" * 70 + b"\r\n", "lf"),
            (b"\r" + b"b" * 70 + b"\r\n.\r\n", b"\r" + b"b" * 70 + b"\r\n", "cr"),
        ):
            expected = front + (text if keep_crlf else text.replace(b"\r\n", b"\n"))
            for rest in (b"", b"\0\xff\r\n" * 30):
                payload, end, decoder = decode(twin, front + wire + rest, keep_crlf, 1000)
                assert (payload, end) == (expected, lead + len(wire))
                assert (decoder.bare_cr, decoder.bare_lf) == ("cr" in bare, "lf" in bare)
                assert not decoder.has_nul and not decoder.has_8bit
        for odd, attribute in ((b"\0", "has_nul"), (b"\x80", "has_8bit"), (b"\n", "bare_lf"), (b"\rx", "bare_cr")):
            wire = front + odd + b"b" * 100
            payload, _, decoder = decode(twin, wire, keep_crlf, 1000)
            assert payload == wire
            assert [name for name in ("has_nul", "has_8bit", "bare_lf", "bare_cr") if getattr(decoder, name)] == [
                attribute
            ]


@pytest.mark.parametrize("keep_crlf", [True, False])
def test_what_a_decoder_holds_back(twin: Any, keep_crlf: bool) -> None:
    end_of_line = b"\r\n" if keep_crlf else b"\n"
    decoder = twin.DotDecoder(keep_crlf)
    for chunk, payload in (
        (b"a\r", b"a"),
        (b"\n", end_of_line),
        (b".", b""),
        (b"\r", b""),
        (b"x\r\n.", b"\rx" + end_of_line),
        (b".\r", b"."),
        (b"\r", b"\r"),
        (b"\n.\r", end_of_line),
    ):
        assert decoder.feed(chunk) == (payload, 0), chunk
    assert not decoder.ended and decoder.bare_cr
    assert decoder.feed(b"\nQUIT") == (b"", 1)
    assert decoder.ended


def test_decoder_starts_within_a_chunk(twin: Any) -> None:
    decoder = twin.DotDecoder(True)
    assert decoder.feed(b"DATA\r\n..a\r\n.\r\nQUIT\r\n", 6) == (b".a\r\n", 14)
    decoder = twin.DotDecoder(True)
    assert decoder.feed(b"DATA\r\n", 6) == decoder.feed(b"DATA\r\n", 99) == (b"", 0)
    assert decoder.feed(b"DATA\r\n.\r\nQUIT\r\n", 6) == (b"", 9)


@pytest.mark.parametrize("keep_crlf", [True, False])
def test_unchanged_chunks_are_not_copied(twin: Any, keep_crlf: bool) -> None:
    line = b"x" * 70 + (b"\r\n" if keep_crlf else b"\n.")
    for count in (1, 3, 1000):
        chunk = line * count + b"x"
        decoder = twin.DotDecoder(keep_crlf)
        assert decoder.feed(chunk)[0] is chunk
        assert decoder.feed(chunk)[0] is chunk
        assert decoder.size == 2 * len(chunk)


def test_unchanged_chunks_are_not_copied_by_an_encoder(twin: Any) -> None:
    chunk = b"text\r\nx.\r\n" * 10
    encoder = twin.DotEncoder()
    assert encoder.feed(chunk) is chunk


@pytest.mark.parametrize("name", ["keep_crlf", "ended", "size", "bare_cr", "bare_lf", "has_nul", "has_8bit"])
def test_attributes_are_read_only(twin: Any, name: str) -> None:
    decoder = twin.DotDecoder()
    value = getattr(decoder, name)
    assert type(value) is (int if name == "size" else bool)
    with pytest.raises(AttributeError):
        setattr(decoder, name, value)


# ---- the choice ----


def choose(**environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("FASTSMTP_")}
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", "from fastsmtp import textproto; print(textproto.IMPLEMENTATION)"],
        env={**kept, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_the_environment_chooses() -> None:
    built = _compiled() is not None
    assert choose().stdout.strip() == ("cython" if built else "pure")
    assert choose(FASTSMTP_PURE="1").stdout.strip() == "pure"
    assert choose(FASTSMTP_PURE="0").stdout.strip() == choose().stdout.strip()
    required = choose(FASTSMTP_REQUIRE_EXTENSION="1")
    if built:
        assert required.stdout.strip() == "cython"
    else:
        assert "ImportError: FASTSMTP_REQUIRE_EXTENSION is set" in required.stderr
    both = choose(FASTSMTP_PURE="1", FASTSMTP_REQUIRE_EXTENSION="1")
    assert re.search("^ImportError: .* contradict each other$", both.stderr, re.MULTILINE)


def test_a_missing_extension_is_an_error_when_required() -> None:
    code = (
        "import os, sys\nsys.modules['fastsmtp._textproto'] = None\n"
        "os.environ['FASTSMTP_REQUIRE_EXTENSION'] = '1'\nos.environ.pop('FASTSMTP_PURE', None)\nimport fastsmtp.textproto"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "ImportError: FASTSMTP_REQUIRE_EXTENSION is set, but the extension" in done.stderr
