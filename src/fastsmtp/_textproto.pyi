"""The one contract of the twins `_textproto` (compiled) and `_textproto_py` (pure).

Results are builtins, exceptions come from `fastsmtp.errors`.  Nothing here knows policy, order or reply texts.
"""

from typing import Final, final

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

IMPLEMENTATION: Final[str]  # "cython" or "pure"

CONTROL: Final = 1  # flag of scan_command: the line has an octet < 32 or 127 (bare CR and LF among them)
EIGHT_BIT: Final = 2  # flag of scan_command: the line has an octet > 127
NOT_UTF8: Final = 4  # flag of scan_command: the line is no valid UTF-8 (the octets appear as surrogate escapes)

def find_line(data: bytes, start: int = 0) -> int:
    """Index just past the next CR LF in `data` at or after `start`, or 0 when there is none."""

def scan_command(data: bytes, start: int = 0) -> tuple[int, str, str, int]:
    """Take one CR LF ended command line from `data[start:]`: `(next, verb, argument, flags)`.

    `next` is the index just past its CR LF, or 0 when the line has not ended (the rest is then "", "", 0).
    `verb` is what precedes the first space, in upper case, the known verbs interned; `argument` is what follows that
    space with leading and trailing spaces removed.  Octets over 127 are decoded as UTF-8 with surrogate escapes.
    """

def scan_domain(text: str, start: int = 0) -> int:
    """Index past the usual domain that begins at `text[start]`, or 0.

    Usual are labels of 1 to 63 ASCII letters, digits, hyphens and underscores, no hyphen first or last, with a dot between two (RFC 1035
    2.3.4); behind them comes none of these characters.  What gets 0 may be a domain all the same; a text that is not ASCII throughout gets it.
    """

def scan_path(text: str, start: int = 0) -> tuple[str, int]:
    """The usual path that begins at `text[start]`: `(mailbox, end)`, `end` the index past its ">"; or ("", 0).

    Usual is "<", a dot-string of ASCII, "@", a domain as `scan_domain` has it, and ">" (RFC 5321 4.1.2), with fewer than limits.LOCAL_PART + 4
    characters in all: no part of it can be over its limit then.  What gets ("", 0) may be a path all the same; a text that is not ASCII
    throughout gets it.
    """

def encode_reply(code: int, enhanced: str, message: str) -> bytes:
    """One reply in wire form; a line per line feed in `message`, the last with a space after the code.

    `enhanced` ("5.7.1", or "" for none) is put on every line (RFC 2034 section 4).  Control characters and lone
    surrogates become "?"; other text is UTF-8.  CR LF, CR and LF each separate lines.  Lines over 512 octets are folded
    into more lines at a space, or at a UTF-8 character boundary (RFC 5321 4.5.3.1.5).
    Raises ValueError when code is not within 200..599.
    """

def parse_response(block: bytes, start: int = 0) -> tuple[int, int, str]:
    """Parse one reply from `block[start:]`: `(next, code, message)`; lines of message are separated by LF.

    `next` is the index past it, or 0 when it has not ended.  Lines end in CR LF or LF.  Both multi-line forms of RFC 959 (page 36)
    are understood.  Raises ProtocolError for what is no reply; LineTooLong beyond limits.REPLY_LINES lines or
    lines longer than 4 * limits.REPLY_LINE.  Text is decoded as UTF-8 with surrogate escapes.
    """

def canonical_mime_header_key(key: str) -> str:
    """Go's rule: first letter and each after a hyphen upper, the rest lower; unchanged when any char is no RFC 7230/5322 token
    character.  Common keys come back as one interned object."""

def parse_header_block(
    block: bytes, start: int = 0, max_fields: int = 1000, max_bytes: int = 1048576
) -> tuple[int, dict[str, list[str]]]:
    """Parse header fields up to and including the blank line: `(next, fields)`; `next` is the index past the blank line
    (or len(block) when the block ends without one).

    Keys canonical, values in input order, folded lines joined by one space, surrounding white space elided, UTF-8 with
    surrogate escapes.  Lines end in CR LF or LF.  Raises HeaderError: first line begins with white space, no colon, an empty or non-token
    key, a control character (other than TAB) in a value, more than max_fields fields or max_bytes octets.
    """

def encode_dot(text: bytes) -> bytes:
    """Whole text, dot-encoded: each bare LF becomes CR LF, each line's leading dot is doubled, a missing last line end is
    added, then "." CR LF.  (A bare CR stays.)"""

@final
class DotDecoder:
    """Incremental decoder of dot-encoded data (RFC 5321 4.5.2).  Only CR LF "." CR LF, or "." CR LF first thing, ends it."""

    keep_crlf: Final[bool]
    ended: bool  # read-only: the end has been seen
    size: int  # read-only: octets of payload given so far
    bare_cr: bool  # read-only: a CR without a following LF was within the data
    bare_lf: bool  # read-only: a LF without a preceding CR was within the data
    has_nul: bool  # read-only
    has_8bit: bool  # read-only: an octet > 127 was within the data
    def __init__(self, keep_crlf: bool = False) -> None: ...
    def feed(self, chunk: bytes, start: int = 0) -> tuple[bytes, int]:
        """Decode `chunk[start:]`: `(payload, end)`.

        `end` is the index in chunk just past the end-of-data line, or 0 while the end has not come; what follows stays with
        the caller.  Between chunks only what is not certain is held back: a last CR, or a dot, or a dot and
        CR, that begin a line.  With keep_crlf=True the payload is the text as sent with leading dots removed;
        else each CR LF becomes LF (bare CR and LF stay, and are flagged).  A chunk that needs no change is returned as it is, uncopied.
        After the end: raises ValueError.
        """

@final
class DotEncoder:
    """Incremental dot encoder; the same rules as encode_dot."""

    def feed(self, chunk: bytes) -> bytes: ...
    def finish(self) -> bytes:
        """The missing line end, if any, and "." CR LF.  The encoder is ready for another text afterwards."""
