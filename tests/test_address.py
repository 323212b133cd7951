"""Paths, mailboxes, domains and address literals: RFC 5321 4.1.2, 4.1.3, 4.5.3.1; RFC 6531 3.3."""

from __future__ import annotations

import pickle
import re
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp import address, limits
from fastsmtp.address import (
    AddressError,
    check_domain,
    is_address_literal,
    is_domain,
    parse_forward_path,
    parse_reverse_path,
    quote_local_part,
    require_ascii,
    split_mailbox,
    unquote_local_part,
)
from fastsmtp.errors import ProtocolError
from fastsmtp.textproto import scan_path

PARSERS = [parse_reverse_path, parse_forward_path]

VALID = [
    "user@example.com",
    "u@d",
    "user@localhost",
    "first.last@example.com",
    "a.b.c.d@x.y.z",
    "user+tag@example.com",
    "!#$%&'*+-/=?^_`{|}~@example.com",
    "-dash-@example.com",
    "1@2",
    "user@1.2.3.4",
    "user@xn--bcher-kva.example",
    "user@a--b.example",
    "user@sub_domain.example.com",
    "user@_dmarc.example.com",
    "user@" + "a" * 63 + ".example",
    '"john doe"@example.com',
    '""@example.com',
    '"a@b"@example.com',
    '"a>b"@example.com',
    '"<>"@example.com',
    '"a\\"b"@example.com',
    '"a\\\\"@example.com',
    '"a\\ b"@example.com',
    '"..dots.."@example.com',
    '" "@example.com',
    "user@[1.2.3.4]",
    "user@[0.0.0.0]",
    "user@[255.255.255.255]",
    "user@[IPv6:::1]",
    "user@[ipv6:::]",
    "user@[IPv6:2001:db8::1]",
    "user@[IPv6:1:2:3:4:5:6:7:8]",
    "user@[IPv6:::ffff:1.2.3.4]",
    "user@[IPv6:1:2:3:4:5:6:7::]",
    "user@[x-tag:anything@all>!]",
    "user@[-t:x]",
    "user@[2001:db8::1]",  # by the grammar a literal of the kind "2001"
    '"quoted"@[1.2.3.4]',
    "münchen@example.com",
    "用户@例子.测试",
    "δοκιμή@παράδειγμα.δοκιμή",
    "user@l·l.example",
    "🐍@example.com",
    '"ü ü"@example.com',
    '"a\u00a0b"@example.com',
]

INVALID_SYNTAX = [
    "",
    " ",
    "user@example.com",
    "<",
    "<<",
    "<user@example.com",
    "user@example.com>",
    "<<user@example.com>>",
    "<<x>>",
    "< user@example.com>",
    "<user@example.com >",
    "<us er@example.com>",
    "<user @example.com>",
    "<user@ example.com>",
    "<user@exam ple.com>",
    "<\tuser@example.com>",
    "<@>",
    "<@example.com>",
    "<user@>",
    "<user@@example.com>",
    "<a@b@c>",
    "<.user@example.com>",
    "<user.@example.com>",
    "<us..er@example.com>",
    "<.@example.com>",
    "<user@.example.com>",
    "<user@example..com>",
    "<user@example.com.>",
    "<user@.>",
    "<user@-example.com>",
    "<user@example-.com>",
    "<user@example.-com>",
    "<user@example.com->",
    "<user@->",
    "<user@exa!mple.com>",
    "<user@example,com>",
    "<user@" + "a" * 64 + ".example>",
    "<us(comment)er@example.com>",
    "<us,er@example.com>",
    "<us;er@example.com>",
    "<us:er@example.com>",
    "<us<er@example.com>",
    "<us\\er@example.com>",
    '<us"er@example.com>',
    "<us[er]@example.com>",
    '<"user@example.com>',
    '<"us"er"@example.com>',
    '<"user"x@example.com>',
    '<x"user"@example.com>',
    '<"user".x@example.com>',
    '<"user\\"@example.com>',
    '<"us\\\ter"@example.com>',
    '<"us\\üer"@example.com>',
    '<"us\ner"@example.com>',
    '<"us\x00er"@example.com>',
    "<us\x00er@example.com>",
    "<us\rer@example.com>",
    "<us\ner@example.com>",
    "<us\r\ner@example.com>",
    "<user@example.com\n>",
    "<user@example\x00.com>",
    "<us\x7fer@example.com>",
    "<us\x80er@example.com>",
    "<us\x85er@example.com>",
    "<us\x9fer@example.com>",
    "<us\u00a0er@example.com>",
    "<us\u2003er@example.com>",
    "<us\u2028er@example.com>",
    "<us\u2029er@example.com>",
    '<"us\u2028er"@example.com>',
    '<"us\x85er"@example.com>',
    "<us\u3000er@example.com>",
    "<us\udcfcer@example.com>",
    '<"us\udcfcer"@example.com>',
    "<user@exa\udcfcmple.com>",
    "<user@exa\x85mple.com>",
    "<user@exa\u00a0mple.com>",
    "<user@example\uff0ecom>",
    "<user@example\u3002com>",
    "<user\uff20x@example\uff20com>",
    "<user@-ü.example>",
    "<user@ü-.example>",
    "<user@[]>",
    "<user@[1.2.3]>",
    "<user@[1.2.3.4>",
    "<user@[1.2.3.4.]>",
    "<user@[1.2.3.4.5]>",
    "<user@[1.2.3.256]>",
    "<user@[01.2.3.4]>",
    "<user@[1.2.3.0004]>",
    "<user@[ 1.2.3.4]>",
    "<user@[1.2.3.4]x>",
    "<user@[1.2.3.4].com>",
    "<user@x[1.2.3.4]>",
    "<user@[1.2.3.\u0664]>",
    "<user@[1.2.3.4\n]>",
    "<user@[IPv6:]>",
    "<user@[IPv6:::g]>",
    "<user@[IPv6:1:2:3]>",
    "<user@[IPv6::1]>",
    "<user@[IPv6:1::2::3]>",
    "<user@[IPv6:12345::]>",
    "<user@[IPv6:fe80::1%eth0]>",
    "<user@[IPv6:::1.2.3.256]>",
    "<user@[tag:]>",
    "<user@[tag-:x]>",
    "<user@[ta_g:x]>",
    "<user@[:x]>",
    "<user@[tag:a b]>",
    "<user@[tag:a[b]>",
    "<user@[tag:a\\b]>",
    "<user@[tag:ü]>",
    "<@a:>",
    "<@a:@b>",
    "<@a,b:user@c>",
    "<@a,:user@c>",
    "<@a user@c>",
    "<@a;user@c>",
    "<@:user@c>",
    "<@a:user@c,@b>",
    "<@[1.2.3.4]:user@c>",
    "<@a, @b:user@c>",
    "<@a.:user@c>",
]

NO_DOMAIN = ["<user>", '<"quoted user">', "<@a:user>", "<@a:postmaster>", '<"postmaster">', "<ü>"]


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("mailbox", VALID)
def test_valid(parse: Any, mailbox: str) -> None:
    path = f"<{mailbox}>"
    assert parse(path) == (mailbox, len(path))
    assert parse(f"FROM:{path} SIZE=1", 5) == (mailbox, 5 + len(path))
    assert parse(f"<@a.example,@b_c:{mailbox}>") == (mailbox, len(path) + len("@a.example,@b_c:"))


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("path", INVALID_SYNTAX)
def test_bad_syntax(parse: Any, path: str) -> None:
    with pytest.raises(AddressError) as caught:
        parse(path)
    assert caught.value.code == 501
    assert caught.value.enhanced == ((5, 1, 7) if parse is parse_reverse_path else (5, 1, 3))
    assert caught.value.reason.isascii() and caught.value.reason.isprintable()


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("path", NO_DOMAIN)
def test_no_domain(parse: Any, path: str) -> None:
    with pytest.raises(AddressError, match="without a domain") as caught:
        parse(path)
    assert caught.value.code == 553


def test_null_reverse_path() -> None:
    assert parse_reverse_path("<>") == ("", 2)
    assert parse_reverse_path("FROM:<> BODY=7BIT", 5) == ("", 7)
    with pytest.raises(AddressError, match="empty address") as caught:
        parse_forward_path("<>")
    assert (caught.value.code, caught.value.enhanced) == (501, (5, 1, 3))


@pytest.mark.parametrize("name", ["Postmaster", "postmaster", "POSTMASTER", "pOsTmAsTeR"])
def test_postmaster(name: str) -> None:
    assert parse_forward_path(f"<{name}>") == (name, 12)
    assert parse_forward_path(f"TO:<{name}> X", 3) == (name, 15)
    assert parse_forward_path(f"<{name}@example.com>") == (f"{name}@example.com", 24)
    with pytest.raises(AddressError):
        parse_reverse_path(f"<{name}>")
    for path in (f"<{name}", f"<{name} >", f"<{name}x>", name):
        with pytest.raises(AddressError):
            parse_forward_path(path)


def test_postmaster_is_ascii() -> None:
    with pytest.raises(AddressError):  # the Kelvin sign and its like fold to ASCII letters
        parse_forward_path("<po\u017ftma\u017fter>")


@pytest.mark.parametrize("parse", PARSERS)
def test_what_follows_is_left(parse: Any) -> None:
    assert parse("<a@b>>") == ("a@b", 5)
    assert parse("<a@b>c") == ("a@b", 5)
    assert parse("xx<a@b><c@d>", 2) == ("a@b", 7)
    for start in (1, 5, 100):
        with pytest.raises(AddressError):
            parse("<a@b>", start)


# Limits: the octets of RFC 5321 4.5.3.1, exactly at the limit allowed.


def labels(size: int, letter: str = "a") -> str:
    """A domain of `size` octets; a label of it has at most 61."""
    octets = len(letter.encode())
    full, rest = divmod(size, 62)
    parts = [letter * (60 // octets) + "x" * (61 - 60 // octets * octets)] * full
    if rest:
        return ".".join([*parts, "x" * rest])
    return ".".join([*parts[:-1], parts[-1] + "x"])


def test_labels() -> None:
    for size in range(1, 300):
        assert len(labels(size)) == size
        assert len(labels(size, "ü").encode()) == size


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    ("before", "letter", "after"),
    [("", "a", ""), ("", "ü", ""), ('"', "a", '"'), ('"', "\\ ", '"'), ("a.", "🐍", "")],
)
@pytest.mark.parametrize("size", [limits.LOCAL_PART - 1, limits.LOCAL_PART, limits.LOCAL_PART + 1])
def test_local_part_limit(parse: Any, before: str, letter: str, after: str, size: int) -> None:
    count, rest = divmod(size - len(before + after), len(letter.encode()))
    local = before + letter * count + "x" * rest + after
    assert len(local.encode()) == size
    path = f"<{local}@example.com>"
    if size <= limits.LOCAL_PART:
        assert parse(path) == (path[1:-1], len(path))
    else:
        with pytest.raises(AddressError, match="local part too long") as caught:
            parse(path)
        assert caught.value.code == 553


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize("letter", ["a", "ü"])
@pytest.mark.parametrize("local", ["u", "u" * 64, '"u u"', "ü"])
@pytest.mark.parametrize("route", ["", "@a,@b:"])
@pytest.mark.parametrize("size", [limits.PATH - 1, limits.PATH, limits.PATH + 1])
def test_path_limit(parse: Any, letter: str, local: str, route: str, size: int) -> None:
    domain = labels(size - len(f"<{route}{local}@>".encode()), letter)
    path = f"<{route}{local}@{domain}>"
    assert len(path.encode()) == size
    if size <= limits.PATH:
        assert parse(path) == (f"{local}@{domain}", len(path))
    else:
        with pytest.raises(AddressError, match="path too long") as caught:
            parse(path)
        assert caught.value.code == 501


@pytest.mark.parametrize("letter", ["a", "ü"])
@pytest.mark.parametrize("size", [limits.DOMAIN - 1, limits.DOMAIN, limits.DOMAIN + 1])
def test_domain_limit(letter: str, size: int) -> None:
    domain = labels(size, letter)
    assert is_domain(domain, utf8=True) == (size <= limits.DOMAIN)
    for path in (f"<u@{domain}>", f"<@{domain}:u@d>"):
        with pytest.raises(AddressError, match="path too long" if size <= limits.DOMAIN else "domain too long"):
            parse_reverse_path(path)
    literal = "[x:" + "y" * (size - 4) + "]"
    assert is_address_literal(literal) == (size <= limits.DOMAIN)


@pytest.mark.parametrize("size", [62, 63, 64])
def test_label_limit(size: int) -> None:
    for domain in ("a" * size, f"x.{'a' * size}", f"{'a' * size}.x", "a" * (size - 2) + "-a"):
        assert is_domain(domain) == (size <= 63)
        for parse in PARSERS:
            if size <= 63:
                assert parse(f"<u@{domain}>")[0] == f"u@{domain}"
            else:
                with pytest.raises(AddressError, match="label too long"):
                    parse(f"<u@{domain}>")


# HELO's argument.


@pytest.mark.parametrize(
    "text", ["localhost", "mail.example.com", "a-b.c", "1.2.3.4", "xn--x-1.y", "[127.0.0.1]", "[IPv6:::1]", "WIN_PC7"]
)
def test_check_domain(text: str) -> None:
    check_domain(text)
    check_domain(text, utf8=True)
    assert is_domain(text) == (text[0] != "[")
    assert is_address_literal(text) == (text[0] == "[")


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "a b",
        "a.",
        ".a",
        "a..b",
        "-a",
        "a-",
        "a\n",
        "a\x00",
        "a@b",
        "<a>",
        "a/b",
        "a:1",
        "::1",
        "[::1]",
        "[1.2.3.4]x",
    ]
    + ["[", "[]", "[1.2.3.4", "[1.2.3.4]\n", "a\udcff", "a\x85", "\u2028", "a\uff0eb", "a" * 64, "*"],
)
def test_check_domain_refuses(text: str) -> None:
    for utf8 in (False, True):
        with pytest.raises(AddressError) as caught:
            check_domain(text, utf8)
        assert (caught.value.code, caught.value.enhanced) == (501, (5, 5, 4))
        assert not is_domain(text, utf8)
        assert not is_address_literal(text)


def test_check_domain_options() -> None:
    assert not is_domain("bücher.example")
    assert is_domain("bücher.example", utf8=True)
    assert is_domain("a_b")
    assert not is_domain("a_b", underscores=False)
    assert is_domain("a-b", underscores=False)


# Mailboxes.


@pytest.mark.parametrize(
    ("mailbox", "local", "domain"),
    [
        ("a@b", "a", "b"),
        ("Postmaster", "Postmaster", ""),
        ('"a@b"@c', '"a@b"', "c"),
        ('"a\\"@b"@c', '"a\\"@b"', "c"),
        ('"a\\\\"@c', '"a\\\\"', "c"),
        ('"a"@[x:y@z]', '"a"', "[x:y@z]"),
        ("a@[x:y@z]", "a", "[x:y@z]"),
        ("ü@ü", "ü", "ü"),
        ("", "", ""),
        ('"a"', '"a"', ""),
    ],
)
def test_split_mailbox(mailbox: str, local: str, domain: str) -> None:
    assert split_mailbox(mailbox) == (local, domain)


@pytest.mark.parametrize("mailbox", ['"', '"a@b', '"a\\"@b', '"a"b@c'])
def test_split_mailbox_refuses(mailbox: str) -> None:
    with pytest.raises(AddressError):
        split_mailbox(mailbox)


@pytest.mark.parametrize(
    ("local", "name"),
    [
        ('"a b"', "a b"),
        ('"a\\"b"', 'a"b'),
        ('"a\\\\"', "a\\"),
        ('""', ""),
        ('".a"', ".a"),
        ("plain", "plain"),
        ("ü", "ü"),
    ],
)
def test_quoting(local: str, name: str) -> None:
    assert unquote_local_part(local) == name
    assert quote_local_part(name) == local


def test_needless_quotes() -> None:
    assert unquote_local_part('"a"') == "a"
    assert unquote_local_part('"\\a"') == "a"
    assert unquote_local_part('"') == '"'


@pytest.mark.parametrize("name", ["a\x00", "\n", "\x7f", "\x85", "\u2029", "\udc80"])
def test_quoting_refuses(name: str) -> None:
    with pytest.raises(AddressError):
        quote_local_part(name)


def test_require_ascii() -> None:
    require_ascii("user@example.com")
    for mailbox in ("ü@example.com", "u@bücher.example"):
        with pytest.raises(AddressError) as caught:
            require_ascii(mailbox)
        assert (caught.value.code, caught.value.enhanced) == (553, (5, 6, 7))


def test_error() -> None:
    error = AddressError("why", 553, (5, 1, 3))
    assert isinstance(error, ProtocolError) and isinstance(error, ValueError)
    assert str(error) == "why"
    again = pickle.loads(pickle.dumps(error))
    assert (again.reason, again.code, again.enhanced) == ("why", 553, (5, 1, 3))
    assert (AddressError("x").code, AddressError("x").enhanced) == (501, (5, 5, 4))


# Properties.

ATEXT = "abcxyzABCXYZ0189!#$%&'*+-/=?^_`{|}~"
atoms = st.text(st.sampled_from(ATEXT), min_size=1, max_size=12)
utf8_atoms = st.text(st.sampled_from(ATEXT + "üß用🐍"), min_size=1, max_size=6)
dot_strings = st.lists(atoms | utf8_atoms, min_size=1, max_size=3).map(".".join)
quoted_strings = st.lists(
    st.text(st.sampled_from(" @<>.,:;()[]!az09ü"), max_size=4) | st.sampled_from(['\\"', "\\\\", "\\ ", "\\a"]),
    max_size=6,
).map(lambda parts: '"' + "".join(parts) + '"')
domain_labels = st.from_regex(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,8}[A-Za-z0-9_])?", fullmatch=True) | st.sampled_from(
    ["bücher", "例子", "xn--bcher-kva"]
)
domains = st.lists(domain_labels, min_size=1, max_size=5).map(".".join)
literals = (
    st.ip_addresses(v=4).map(lambda ip: f"[{ip}]")
    | st.ip_addresses(v=6).map(lambda ip: f"[IPv6:{ip}]")
    | st.ip_addresses(v=6).map(lambda ip: f"[IPv6:{ip.exploded}]")
    | st.from_regex(r"\[tag-?x:[!-Z^-~]{1,12}\]", fullmatch=True)
)
mailboxes = st.builds("{}@{}".format, dot_strings | quoted_strings, domains | literals)
routes = st.lists(domains, max_size=2).map(lambda names: ",".join("@" + name for name in names) + ":" if names else "")
near_paths = st.text(st.sampled_from('<<>>@@@...aa-_0"\\[]:, ,ü\x00\udc80'), max_size=16) | st.builds(
    lambda path, at, what: path[:at] + what + path[at:],
    mailboxes.map("<{}>".format),
    st.integers(0, 40),
    st.sampled_from(["", "a", ".", "@", '"', "<", ">", " ", "-", "\\", "\n", "ü", "[", "a" * 64, "b." * 100]),
)


@given(routes, mailboxes, st.text(max_size=4), st.text(max_size=4))
def test_round_trip(route: str, mailbox: str, before: str, after: str) -> None:
    path = f"<{route}{mailbox}>"
    text = before + path + after
    local, domain = split_mailbox(mailbox)
    fits = (
        len(local.encode()) <= limits.LOCAL_PART
        and len(domain.encode()) <= limits.DOMAIN
        and len(path.encode()) <= limits.PATH
    )
    for parse in PARSERS:
        if fits:
            assert parse(text, len(before)) == (mailbox, len(before) + len(path))
        else:
            with pytest.raises(AddressError):
                parse(text, len(before))
    assert f"{local}@{domain}" == mailbox
    assert is_domain(domain, utf8=True) != is_address_literal(domain)
    name = unquote_local_part(local)
    assert unquote_local_part(quote_local_part(name)) == name


@given(st.text(st.characters(exclude_categories=["Cs", "Cc", "Zl", "Zp"]), max_size=20))
def test_any_name_can_be_a_local_part(name: str) -> None:
    local = quote_local_part(name)
    assert unquote_local_part(local) == name
    if len(local.encode()) <= limits.LOCAL_PART and name:
        assert parse_forward_path(f"<{local}@d>")[0] == f"{local}@d"
        assert split_mailbox(f"{local}@d") == (local, "d")


def outcome(parse: Any, *arguments: Any) -> object:
    try:
        return parse(*arguments)
    except AddressError as error:
        return error.args


@given(near_paths)
def test_the_usual_path_and_the_scanner_agree(text: str) -> None:
    scanned = outcome(address._scan_path, text, 0, (5, 1, 7))
    if not text.startswith("<>"):
        assert outcome(parse_reverse_path, text) == scanned
    usual = scan_path(text)
    if usual[1]:
        assert scanned == usual
    elif isinstance(scanned, tuple) and len(scanned) == 2 and text.isascii() and text[1] not in '"@':
        mailbox, end = scanned
        assert "@[" in mailbox or end > limits.LOCAL_PART + 3


@given(st.text(max_size=30))
def test_any_text(text: str) -> None:
    for parse in PARSERS:
        for candidate in (text, f"<{text}>", f"<a@{text}>", f"<{text}@b>", f'<"{text}"@b>', f"<a@[{text}]>"):
            try:
                mailbox, end = parse(candidate)
            except AddressError:
                continue
            assert candidate[:end].endswith(f"{mailbox}>")
            assert not re.search("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]", mailbox)
            assert mailbox == mailbox.encode().decode()


# The expressions cannot go back: in what they are made of, not by the clock.


def repeats(parsed: Any) -> Iterator[tuple[str, int]]:
    for operation, argument in parsed:
        name = str(operation)
        if name.endswith("_REPEAT"):
            yield name, int(argument[1])
        for part in argument if isinstance(argument, (tuple, list)) else (argument,):
            if type(part).__name__ == "SubPattern":
                yield from repeats(part)
            elif isinstance(part, list):
                for branch in part:
                    if type(branch).__name__ == "SubPattern":
                        yield from repeats(branch)


def test_no_expression_backtracks() -> None:
    patterns = [
        value.__self__ for value in vars(address).values() if isinstance(getattr(value, "__self__", None), re.Pattern)
    ]
    assert len(patterns) >= 10
    unbounded = 0
    for pattern in patterns:
        for name, most in repeats(re._parser.parse(pattern.pattern, pattern.flags)):  # type: ignore[attr-defined]
            assert name == "POSSESSIVE_REPEAT" or most <= 3, pattern.pattern
            unbounded += name == "POSSESSIVE_REPEAT"
    assert unbounded >= 8


@pytest.mark.parametrize("parse", PARSERS)
@pytest.mark.parametrize(
    "piece", ["a", "a.", "a@", "a-", '"', "\\", '\\"', "@a,", "@a.", ".", "<", "[", "1:", "ü", "ü."]
)
def test_long_input_is_refused(parse: Any, piece: str) -> None:
    for head in ("<", "<a@", '<"', "<@", "<a@[IPv6:", "<a@["):
        for tail in ("", ">", "@b>", '"@b>', ":a@b>", "]>"):
            with pytest.raises(AddressError):
                parse(head + piece * 1000 + tail)
