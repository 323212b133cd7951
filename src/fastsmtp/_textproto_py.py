"""The text protocol in pure Python; its contract is `_textproto.pyi`.

Written on what the interpreter does in C (find, replace, count, split, regular expressions that do not
backtrack); no loop here runs once per octet.
"""

from __future__ import annotations

import re
from io import IncrementalNewlineDecoder
from operator import attrgetter
from sys import intern
from typing import Final, Never, final

from . import limits
from ._vocabulary import HEADER_KEYS, VERBS
from .errors import HeaderError, LineTooLong, ProtocolError

__all__ = [
    "CONTROL",
    "EIGHT_BIT",
    "IMPLEMENTATION",
    "NOT_UTF8",
    "DotDecoder",
    "DotEncoder",
    "canonical_mime_header_key",
    "encode_dot",
    "encode_reply",
    "find_line",
    "parse_header_block",
    "parse_response",
    "scan_command",
    "scan_domain",
    "scan_path",
]

IMPLEMENTATION: Final[str] = "pure"

CONTROL: Final = 1
EIGHT_BIT: Final = 2
NOT_UTF8: Final = 4

_VERBS: Final = {spelling: intern(verb) for verb in VERBS for spelling in (verb, verb.lower(), verb.capitalize())}
_KEYS: Final = {spelling: intern(key) for key in HEADER_KEYS for spelling in (key, key.lower(), key.upper())}
_KEYS_IN_OCTETS: Final = {spelling.encode(): key for spelling, key in _KEYS.items()}
_SEPARATORS: Final = (b" ", b"-", b"")
_TOKEN: Final = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+", re.ASCII)
_TOKEN_IN_OCTETS: Final = re.compile(rb"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
_CONTROL: Final = re.compile(rb"[\x00-\x1f\x7f]")
_VALUE_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_UNPRINTABLE: Final = re.compile("[\x00-\x1f\x7f-\x9f\ud800-\udfff]")
# Every repetition is possessive, and what follows one begins with another character: one pass, whatever the text is.
_ATOM: Final = r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~\-]++"
_LABEL: Final = r"[A-Za-z0-9_][A-Za-z0-9_\-]{0,62}+(?<!-)"
_USUAL_DOMAIN: Final = re.compile(rf"{_LABEL}(?:\.{_LABEL})*+(?![A-Za-z0-9_\-.])")
_USUAL_PATH: Final = re.compile(rf"<({_ATOM}(?:\.{_ATOM})*+@{_LABEL}(?:\.{_LABEL})*+)>")
_SAFE_PATH: Final = limits.LOCAL_PART + 3
_ENHANCED: Final = re.compile(r"[0-9.]{0,11}")


def _refuse(name: str, data: object, start: int) -> Never:
    """Say what is wrong with the arguments `data` (called `name` by the caller) and `start`."""
    if not isinstance(data, bytes):
        raise TypeError(f"{name} must be bytes, not {type(data).__name__}")
    raise ValueError("start is negative")


def _refuse_text(text: object) -> Never:
    if not isinstance(text, str):
        raise TypeError(f"text must be str, not {type(text).__name__}")
    raise ValueError("start is negative")


def find_line(data: bytes, start: int = 0) -> int:
    if not isinstance(data, bytes) or start < 0:
        _refuse("data", data, start)
    end = data.find(b"\r\n", start)
    return end + 2 if end >= 0 else 0


def scan_command(data: bytes, start: int = 0) -> tuple[int, str, str, int]:
    if not isinstance(data, bytes) or start < 0:
        _refuse("data", data, start)
    end = data.find(b"\r\n", start)
    if end < 0:
        return 0, "", "", 0
    line = data[start:end]
    text = line.decode("utf-8", "surrogateescape")
    word, _, argument = text.partition(" ")
    verb = _VERBS.get(word)
    if verb is None:
        # In octets, so that only ASCII letters change: RFC 5321 2.4 has no others in a verb.
        word = word.encode("utf-8", "surrogateescape").upper().decode("utf-8", "surrogateescape")
        verb = _VERBS.get(word, word)
    flags = 0
    if not (text.isascii() and text.isprintable()):
        if _CONTROL.search(line) is not None:
            flags = CONTROL
        if not line.isascii():
            flags |= EIGHT_BIT
            try:
                line.decode()
            except UnicodeDecodeError:
                flags |= NOT_UTF8
    return end + 2, verb, argument.strip(" "), flags


def scan_domain(text: str, start: int = 0) -> int:
    if not isinstance(text, str) or start < 0:
        _refuse_text(text)
    match = _USUAL_DOMAIN.match(text, start) if text.isascii() else None
    return 0 if match is None else match.end()


def scan_path(text: str, start: int = 0) -> tuple[str, int]:
    if not isinstance(text, str) or start < 0:
        _refuse_text(text)
    match = _USUAL_PATH.match(text, start) if text.isascii() else None
    if match is None or match.end() - start > _SAFE_PATH:
        return "", 0
    return match[1], match.end()


def encode_reply(code: int, enhanced: str, message: str) -> bytes:
    if not 200 <= code <= 599:
        raise ValueError("a reply's code is within 200..599")
    if not isinstance(enhanced, str) or not isinstance(message, str):
        raise TypeError("enhanced and message must be str")
    if _ENHANCED.fullmatch(enhanced) is None:
        raise ValueError("an enhanced status code is digits and dots")
    prefix = f"{enhanced} ".encode() if enhanced else b""
    room = limits.REPLY_LINE - 6 - len(prefix)  # besides the code, its separator and CR LF
    if message.isascii() and message.isprintable() and len(message) <= room:
        return b"%d %b%b\r\n" % (code, prefix, message.encode())
    text = message.replace("\r\n", "\n").replace("\r", "\n")
    lines: list[bytes] = []
    for part in text.split("\n"):
        line = _UNPRINTABLE.sub("?", part).encode()
        start = 0
        while len(line) - start > room:
            end = start + room
            space = line.rfind(b" ", start + 1, end + 1)
            if space > 0:
                lines.append(line[start:space])
                start = space + 1
                continue
            while line[end] & 0xC0 == 0x80:  # at most three steps: not within a UTF-8 character
                end -= 1
            lines.append(line[start:end])
            start = end
        lines.append(line[start:])
    last = lines.pop()
    more = b"%d-%b" % (code, prefix)
    return b"".join([b"%b%b\r\n" % (more, line) for line in lines] + [b"%d %b%b\r\n" % (code, prefix, last)])


def parse_response(block: bytes, start: int = 0) -> tuple[int, int, str]:
    if not isinstance(block, bytes) or start < 0:
        _refuse("block", block, start)
    code = 0
    mark = b""
    message: list[bytes] = []
    while True:
        end = block.find(b"\n", start) + 1
        if (end or len(block)) - start > 4 * limits.REPLY_LINE:
            raise LineTooLong("reply line too long")
        if not end:
            return 0, 0, ""
        line = block[start : end - 1].removesuffix(b"\r")
        start = end
        if code == 0:
            mark = line[:3]
            if len(mark) < 3 or not mark.isdigit() or mark < b"100" or line[3:4] not in _SEPARATORS:
                raise ProtocolError("not a reply line")
            code = int(mark)
            message.append(line[4:])
            if line[3:4] != b"-":
                break
        elif line.startswith(mark) and line[3:4] in _SEPARATORS:
            message.append(line[4:])
            if line[3:4] != b"-":
                break
        else:  # RFC 959 page 36: lines in between need no code
            message.append(line)
        if len(message) >= limits.REPLY_LINES:
            raise LineTooLong("reply has too many lines")
    return start, code, b"\n".join(message).decode("utf-8", "surrogateescape")


def canonical_mime_header_key(key: str) -> str:
    if not isinstance(key, str):
        raise TypeError(f"key must be str, not {type(key).__name__}")
    known = _KEYS.get(key)
    if known is not None:
        return known
    if _TOKEN.fullmatch(key) is None:
        return key
    canonical = "-".join([part.capitalize() for part in key.split("-")])
    return _KEYS.get(canonical, canonical)


def parse_header_block(
    block: bytes, start: int = 0, max_fields: int = 1000, max_bytes: int = 1048576
) -> tuple[int, dict[str, list[str]]]:
    if not isinstance(block, bytes) or start < 0:
        _refuse("block", block, start)
    fields: dict[str, list[str]] = {}
    parts: list[bytes] = []  # of the value of the field that is read
    values: list[str] = []  # where that value goes
    size = len(block)
    count = 0
    position = min(start, size)
    largest = position + max_bytes
    blank = False
    while position < size:
        end = block.find(b"\n", position) + 1
        if end:
            line = block[position : end - 1].removesuffix(b"\r")
        else:
            end = size
            line = block[position:]
        if end > largest:
            raise HeaderError("header block too large")
        position = end
        if not line:
            blank = True
            break
        if line.startswith((b" ", b"\t")):
            if not count:
                raise HeaderError("header block begins with white space")
            text = line
        else:
            if count >= max_fields:
                raise HeaderError("too many header fields")
            name, colon, text = line.partition(b":")
            if not colon:
                raise HeaderError("header line without a colon")
            key = _KEYS_IN_OCTETS.get(name)
            if key is None:
                if _TOKEN_IN_OCTETS.fullmatch(name) is None:
                    raise HeaderError("header key is no token")
                key = canonical_mime_header_key(name.decode("ascii"))
            if count:
                values.append(b" ".join(parts).decode("utf-8", "surrogateescape"))
                parts.clear()
            count += 1
            if key in fields:
                values = fields[key]
            else:
                fields[key] = values = []
        if _VALUE_CONTROL.search(text) is not None:
            raise HeaderError("control character in a header value")
        text = text.strip(b" \t")
        if text:
            parts.append(text)
    if count:
        values.append(b" ".join(parts).decode("utf-8", "surrogateescape"))
    return position if blank else size, fields


def encode_dot(text: bytes) -> bytes:
    if not isinstance(text, bytes):
        _refuse("text", text, 0)
    encoder = DotEncoder()
    return encoder.feed(text) + encoder.finish()


@final
class DotDecoder:
    __slots__ = ("_at_line", "_ended", "_has_8bit", "_has_nul", "_held", "_keep_crlf", "_newlines", "_size")

    def __init__(self, keep_crlf: bool = False) -> None:
        self._keep_crlf = bool(keep_crlf)
        self._ended = False
        self._size = 0
        self._has_nul = False
        self._has_8bit = False
        # It remembers which of CR LF, CR and LF it has met: the fastest look at line ends that Python has
        # (3 GB/s; counting the three takes three passes of 1 GB/s).
        self._newlines = IncrementalNewlineDecoder(None, translate=False)
        self._at_line = True  # what comes next begins a line
        self._held = b""  # CR, or "." or ". CR" that began a line: what they are is not certain yet

    keep_crlf = property(attrgetter("_keep_crlf"))
    ended = property(attrgetter("_ended"))
    size = property(attrgetter("_size"))
    has_nul = property(attrgetter("_has_nul"))
    has_8bit = property(attrgetter("_has_8bit"))

    @property
    def bare_cr(self) -> bool:
        met = self._newlines.newlines
        return met == "\r" or (isinstance(met, tuple) and "\r" in met)

    @property
    def bare_lf(self) -> bool:
        met = self._newlines.newlines
        return met == "\n" or (isinstance(met, tuple) and "\n" in met)

    def feed(self, chunk: bytes, start: int = 0) -> tuple[bytes, int]:
        if not isinstance(chunk, bytes) or start < 0:
            _refuse("chunk", chunk, start)
        if self._ended:
            raise ValueError("the end of data has been seen")
        size = len(chunk)
        if start >= size:
            return b"", 0
        head = b""
        if self._held or (self._at_line and chunk.startswith(b".", start)):
            head, start = self._resolve(chunk, start)
            if self._ended or start == size:
                self._size += len(head)
                return head, start if self._ended else 0
        end = 0
        stop = size
        # From the last one backwards: rfind looks at 3 GB/s for what is not there, find at 1.
        stuffed = chunk.rfind(b"\r\n.", start) >= 0
        if stuffed:
            terminator = chunk.find(b"\r\n.\r\n", start)
            if terminator >= 0:
                self._ended = True
                stop = terminator + 2
                end = terminator + 5
            elif chunk.endswith(b"\r\n.", start):
                self._held = b"."
                stop = size - 1
            elif chunk.endswith(b"\r\n.\r", start):
                self._held = b".\r"
                stop = size - 2
            stuffed = chunk.rfind(b"\r\n.", start, stop) >= 0
        if stop == size and chunk.endswith(b"\r"):
            self._held = b"\r"
            stop = size - 1
        payload = chunk[start:stop]
        self._at_line = payload.endswith(b"\r\n")
        if not payload.isascii():
            self._has_8bit = True
        if b"\0" in payload:
            self._has_nul = True
        self._newlines.decode(payload.decode("latin-1"), True)
        if stuffed:
            payload = payload.replace(b"\r\n.", b"\r\n")
        if not self._keep_crlf:
            # To delete an octet is ten times as fast as to replace two.
            payload = payload.replace(b"\r\n", b"\n") if self.bare_cr else payload.replace(b"\r", b"")
        if head:
            payload = head + payload
        self._size += len(payload)
        return payload, end

    def _resolve(self, chunk: bytes, start: int) -> tuple[bytes, int]:
        """Settle what was held, and a dot that begins the chunk: `(payload, next)`."""
        held = self._held
        head = b""
        if held == b"\r":
            if chunk.startswith(b"\n", start):
                head = b"\r\n" if self._keep_crlf else b"\n"
                start += 1
                self._at_line = True
            else:
                head = b"\r"
                self._newlines.decode("\r", True)
                self._at_line = False
            held = b""
        if not held and self._at_line and chunk.startswith(b".", start):
            held = b"."
            start += 1
        if held == b"." and start < len(chunk):
            self._at_line = False
            held = b""
            if chunk.startswith(b"\r", start):
                held = b".\r"
                start += 1
        if held == b".\r" and start < len(chunk):
            self._at_line = False
            held = b""
            if chunk.startswith(b"\n", start):
                self._ended = True
                start += 1
            else:
                head += b"\r"
                self._newlines.decode("\r", True)
        self._held = held
        return head, start


@final
class DotEncoder:
    __slots__ = ("_after_cr", "_at_line")

    def __init__(self) -> None:
        self._at_line = True
        self._after_cr = False

    def feed(self, chunk: bytes) -> bytes:
        if not isinstance(chunk, bytes):
            _refuse("chunk", chunk, 0)
        if not chunk:
            return b""
        if b"\r" in chunk:
            # Each replaces one octet, which Python does at 4 GB/s; to look for two is four times slower.
            text = chunk.replace(b"\r", b"").replace(b"\n", b"\r\n")
            if text != chunk:  # a bare CR or LF: the long way
                text = chunk.replace(b"\r\n", b"\n").replace(b"\n", b"\r\n")
        else:
            text = chunk.replace(b"\n", b"\r\n")
        if self._after_cr and chunk.startswith(b"\n"):
            text = text[1:]
        if chunk.rfind(b"\n.") >= 0:
            text = text.replace(b"\n.", b"\n..")
        if self._at_line and chunk.startswith(b"."):
            text = b"." + text
        self._at_line = chunk.endswith(b"\n")
        self._after_cr = chunk.endswith(b"\r")
        return chunk if len(text) == len(chunk) else text

    def finish(self) -> bytes:
        end = b".\r\n" if self._at_line else b"\r\n.\r\n"
        self._at_line = True
        self._after_cr = False
        return end
