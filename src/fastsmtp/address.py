"""Addresses of the envelope: paths, mailboxes, domains and address literals.

The grammar is RFC 5321 4.1.2 and 4.1.3 with the UTF-8 of RFC 6531 3.3; sizes are octets of UTF-8 (RFC 5321 4.5.3.1).
Where the grammar and the mail that is really sent differ, this is decided:

- A source route (`<@a,@b:user@c>`) is parsed, checked and dropped (RFC 5321 4.1.1.3, appendix C).
- An underscore counts as a letter of a domain name: RFC 1035 forbids it in host names, mail with it is sent daily.
- A label of ASCII has at most 63 octets (RFC 1035 2.3.4).  A label with other characters takes what IDNA 2008 takes by
  general category (RFC 5892 2.1), so no full-width dot or at-sign; its A-label form is not computed.
- A part of an IPv4 literal has no leading zero, which some read as octal (RFC 6943 3.1.1).
- `::` of an IPv6 literal may stand for one group (RFC 4291 2.2); a zone is refused.
- Control characters (C0, DEL, C1), the Unicode line and paragraph separators and lone surrogates (octets that were
  no UTF-8) are refused everywhere, white space of any script outside quotes.

Whether an address that is not ASCII may be used at all is the caller's question (`require_ascii`).
"""

from __future__ import annotations

import re
import unicodedata
from ipaddress import IPv6Address
from typing import Final

from fastsmtp import limits
from fastsmtp.errors import ProtocolError
from fastsmtp.textproto import scan_domain, scan_path

__all__ = [
    "AddressError",
    "check_domain",
    "is_address_literal",
    "is_domain",
    "is_usual_domain",
    "parse_forward_path",
    "parse_reverse_path",
    "quote_local_part",
    "require_ascii",
    "split_mailbox",
    "unquote_local_part",
]

_BAD_SENDER: Final = (5, 1, 7)
_BAD_RECIPIENT: Final = (5, 1, 3)
_BAD_ARGUMENT: Final = (5, 5, 4)

_LABEL: Final = 63  # octets, RFC 1035 2.3.4

_ATEXT: Final = r"A-Za-z0-9!#$%&'*+/=?^_`{|}~\-"

_atom = re.compile(rf"[{_ATEXT}\u0080-\U0010ffff]++").match
_dot_string = re.compile(rf"[{_ATEXT}\u0080-\U0010ffff]++(?:\.[{_ATEXT}\u0080-\U0010ffff]++)*+").fullmatch
_quoted_string = re.compile(r'"(?:[ !#-\[\]-~\u0080-\U0010ffff]++|\\[ -~])*+"').match
_label = re.compile(r"[A-Za-z0-9_\-\u0080-\U0010ffff]++").match
_OCTET: Final = r"(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_ipv4 = re.compile(rf"{_OCTET}(?:\.{_OCTET}){{3}}").fullmatch
_ipv6 = re.compile(r"[Ii][Pp][Vv]6:([0-9A-Fa-f:.]++)").fullmatch
_general_literal = re.compile(r"(?![Ii][Pp][Vv]6:)[A-Za-z0-9\-]++(?<!-):[!-Z^-~]++").fullmatch
_literal = re.compile(r"\[[!-Z^-~]++\]").match
_quoted_pair = re.compile(r"\\(.)", re.DOTALL).sub
_control = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]").search
_space = re.compile(r"\s").search

# RFC 5892 2.1 (letters and digits, upper case too) and the exceptions of 2.6 that it allows in some context.
_IDNA_CATEGORIES: Final = frozenset({"Ll", "Lu", "Lo", "Lm", "Mn", "Mc", "Nd"})
_IDNA_EXCEPTIONS: Final = frozenset("\u00b7\u0375\u05f3\u05f4\u06fd\u06fe\u0f0b\u200c\u200d\u30fb")


class AddressError(ProtocolError):
    """An address or domain that is none, or none that may be used here.

    Attributes:
        reason: what is wrong, in words of ours (nothing of the input).
        code: 501 for bad syntax and a path that is too long (RFC 5321 4.5.3.1.10); 553 for a mailbox that is not
            allowed: without a domain, a part over its limit, not ASCII where SMTPUTF8 was not asked for.
        enhanced: the enhanced status code (RFC 3463): 5.1.7 for a sender, 5.1.3 for a recipient, 5.5.4 for the
            argument of HELO, 5.6.7 for what needs SMTPUTF8 (RFC 6531 3.5).
    """

    def __init__(self, reason: str, code: int = 501, enhanced: tuple[int, int, int] = _BAD_ARGUMENT) -> None:
        super().__init__(reason, code, enhanced)
        self.reason = reason
        self.code = code
        self.enhanced = enhanced

    def __str__(self) -> str:
        return self.reason


def parse_reverse_path(text: str, start: int = 0) -> tuple[str, int]:
    """Read the reverse-path that begins at `text[start]`: the mailbox, and the index past its ">".

    The mailbox is as typed, without brackets and source route, and "" for the null reverse-path `<>`.
    Raises AddressError.
    """
    usual = scan_path(text, start)
    if usual[1]:
        return usual
    if text.startswith("<>", start):
        return "", start + 2
    return _scan_path(text, start, _BAD_SENDER)


def parse_forward_path(text: str, start: int = 0) -> tuple[str, int]:
    """Read the forward-path that begins at `text[start]`: the mailbox, and the index past its ">".

    The mailbox is as typed, without brackets and source route.  `<Postmaster>` needs no domain, in upper or lower case
    (RFC 5321 4.1.1.3); `<>` is refused.  Raises AddressError.
    """
    usual = scan_path(text, start)
    if usual[1]:
        return usual
    if text[start : start + 12].lower() == "<postmaster>":
        return text[start + 1 : start + 11], start + 12
    return _scan_path(text, start, _BAD_RECIPIENT)


def _scan_path(text: str, start: int, enhanced: tuple[int, int, int]) -> tuple[str, int]:
    """The whole grammar, step by step, for what is not usual and for the reason of a refusal."""
    if not text.startswith("<", start):
        raise AddressError("address not in angle brackets", 501, enhanced)
    if text.startswith("<>", start):
        raise AddressError("empty address", 501, enhanced)
    pos = start + 1
    if text.startswith("@", pos):
        pos = _scan_route(text, pos, enhanced)
    local_start = pos
    pos = _scan_local_part(text, pos, enhanced)
    local_end = pos
    if not text.startswith("@", pos):
        if text.startswith(">", pos):
            raise AddressError("address without a domain", 553, enhanced)
        raise AddressError("bad character in local part" if pos < len(text) else "address not closed", 501, enhanced)
    domain_start = pos + 1
    if text.startswith("[", domain_start):
        pos = _scan_literal(text, domain_start, enhanced)
    else:
        pos = _scan_domain(text, domain_start, enhanced, underscores=True)
    if not text.startswith(">", pos):
        raise AddressError("bad character in domain" if pos < len(text) else "address not closed", 501, enhanced)
    if _octets(text[local_start:local_end]) > limits.LOCAL_PART:
        raise AddressError("local part too long", 553, enhanced)
    if _octets(text[domain_start:pos]) > limits.DOMAIN:
        raise AddressError("domain too long", 553, enhanced)
    if _octets(text[start : pos + 1]) > limits.PATH:
        raise AddressError("path too long", 501, enhanced)
    return text[local_start:pos], pos + 1


def _scan_route(text: str, pos: int, enhanced: tuple[int, int, int]) -> int:
    # A-d-l ":", that is At-domain *( "," At-domain ) ":".  The domains are names, never literals.
    while True:
        begin = pos + 1
        pos = _scan_domain(text, begin, enhanced, underscores=True)
        if _octets(text[begin:pos]) > limits.DOMAIN:
            raise AddressError("domain too long", 553, enhanced)
        if text.startswith(":", pos):
            return pos + 1
        if not text.startswith(",@", pos):
            raise AddressError("bad source route", 501, enhanced)
        pos += 1


def _scan_local_part(text: str, pos: int, enhanced: tuple[int, int, int]) -> int:
    begin = pos
    if text.startswith('"', pos):
        match = _quoted_string(text, pos)
        if match is None:
            raise AddressError("bad quoted local part", 501, enhanced)
        pos = match.end()
    else:
        while True:
            match = _atom(text, pos)
            if match is None:
                raise AddressError("empty or bad atom in local part", 501, enhanced)
            pos = match.end()
            if not text.startswith(".", pos):
                break
            pos += 1
        if _space(text, begin, pos):
            raise AddressError("white space in local part", 501, enhanced)
    if _control(text, begin, pos):
        raise AddressError("bad character in local part", 501, enhanced)
    return pos


def _scan_domain(text: str, pos: int, enhanced: tuple[int, int, int], underscores: bool) -> int:
    while True:
        match = _label(text, pos)
        if match is None:
            raise AddressError("empty or bad label in domain", 501, enhanced)
        label = match[0]
        if label[0] == "-" or label[-1] == "-":
            raise AddressError("label begins or ends with a hyphen", 501, enhanced)
        if not underscores and "_" in label:
            raise AddressError("underscore in domain", 501, enhanced)
        if label.isascii():
            if len(label) > _LABEL:
                raise AddressError("label too long", 501, enhanced)
        elif not all(map(_is_idna_character, label)):
            raise AddressError("bad character in domain", 501, enhanced)
        pos = match.end()
        if not text.startswith(".", pos):
            return pos
        pos += 1


def _is_idna_character(char: str) -> bool:
    return char < "\x80" or unicodedata.category(char) in _IDNA_CATEGORIES or char in _IDNA_EXCEPTIONS


def _scan_literal(text: str, pos: int, enhanced: tuple[int, int, int]) -> int:
    match = _literal(text, pos)
    if match is None or not _is_literal_content(match[0][1:-1]):
        raise AddressError("bad address literal", 501, enhanced)
    return match.end()


def _is_literal_content(content: str) -> bool:
    ipv6 = _ipv6(content)
    if ipv6 is None:
        return _ipv4(content) is not None or _general_literal(content) is not None
    try:
        IPv6Address(ipv6[1])
    except ValueError:
        return False
    return True


def _octets(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def check_domain(text: str, utf8: bool = False, *, underscores: bool = True) -> None:
    """Check the argument of HELO, EHLO or LHLO: a domain or an address literal (RFC 5321 4.1.1.1).

    With `utf8` labels may be U-labels.  `underscores=False` holds names to RFC 1035; many a machine on a local network
    has a name with one.  Raises AddressError (501, 5.5.4).
    """
    if text.startswith("["):
        end = _scan_literal(text, 0, _BAD_ARGUMENT)
    else:
        if not utf8 and not text.isascii():
            raise AddressError("bad character in domain")
        end = _scan_domain(text, 0, _BAD_ARGUMENT, underscores)
    if end != len(text):
        raise AddressError("bad character in domain")
    if _octets(text) > limits.DOMAIN:
        raise AddressError("domain too long")


def is_usual_domain(text: str, underscores: bool = True) -> bool:
    """Tell whether `text` is a domain name of the usual kind, at first sight; what is not may be one yet: see `is_domain`."""
    return scan_domain(text) == len(text) and 0 < len(text) <= limits.DOMAIN and (underscores or "_" not in text)


def is_domain(text: str, utf8: bool = False, *, underscores: bool = True) -> bool:
    """Tell whether `text` is a domain name (no address literal), as `check_domain` judges it."""
    if is_usual_domain(text, underscores):
        return True
    if text.startswith("["):
        return False
    try:
        check_domain(text, utf8, underscores=underscores)
    except AddressError:
        return False
    return True


def is_address_literal(text: str) -> bool:
    """Tell whether `text` is an address literal, brackets included (RFC 5321 4.1.3)."""
    if not text.startswith("["):
        return False
    try:
        check_domain(text)
    except AddressError:
        return False
    return True


def require_ascii(mailbox: str) -> None:
    """Refuse a mailbox that needs SMTPUTF8 (RFC 6531 3.5).  Raises AddressError (553, 5.6.7)."""
    if not mailbox.isascii():
        raise AddressError("address needs SMTPUTF8", 553, (5, 6, 7))


def split_mailbox(mailbox: str) -> tuple[str, str]:
    """Split a mailbox that a parser gave at its "@": local part as typed, domain ("" for Postmaster).

    An "@" within quotes, or within an address literal, is none.  Raises AddressError for a quote that does not end.
    """
    if mailbox.startswith('"'):
        match = _quoted_string(mailbox)
        if match is None or mailbox[match.end() :][:1] not in ("", "@"):
            raise AddressError("bad quoted local part")
        return match[0], mailbox[match.end() + 1 :]
    local, _, domain = mailbox.partition("@")
    return local, domain


def unquote_local_part(local: str) -> str:
    """The local part as a name, without the quotes and backslashes that it may have (RFC 5321 4.1.2)."""
    if len(local) >= 2 and local[0] == '"' == local[-1]:
        return _quoted_pair(r"\1", local[1:-1])
    return local


def quote_local_part(local: str) -> str:
    """A name as a local part: quoted only where it must be (RFC 5321 4.1.2).

    Raises AddressError for characters that no local part can have.
    """
    if _control(local):
        raise AddressError("bad character in local part")
    if _dot_string(local) is not None and not _space(local):
        return local
    return '"' + local.replace("\\", "\\\\").replace('"', '\\"') + '"'
