"""The table of extensions and the parameters it brings."""

from __future__ import annotations

import dataclasses
import io
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp import ConfigurationError, MailParams, RcptParams, ServerOptions
from fastsmtp.extensions import (
    EXTENSIONS,
    Capabilities,
    CapabilityCache,
    DeliverBy,
    Offer,
    OriginalRecipient,
    ParameterError,
    ValidSince,
    check_mail,
    encode_parameters,
    parse_parameters,
)
from fastsmtp.protocol.command import CommandError, parse_mail, parse_rcpt

PLAIN = Capabilities(Offer(ServerOptions()))
EVERYTHING = ServerOptions(
    dsn=True,
    requiretls=True,
    deliverby=60,
    mt_priority="MIXER",
    rrvs=True,
    future_release=86400,
    no_soliciting="net.example:ADV,org.example:ADV:ADLT",
    advertise_limits=True,
    advertise_help=True,
    vrfy=True,
    expn=True,
    etrn=True,
)
FULL_OFFER = Offer(EVERYTHING, tls=True, tls_available=True, auth=("PLAIN", "LOGIN"), xforward=True, xclient=True)
FULL = Capabilities(FULL_OFFER)
KEYWORDS = [extension.keyword for extension in EXTENSIONS]


def lines(offer: Offer | None = None, **options: Any) -> tuple[str, ...]:
    return Capabilities(offer or Offer(ServerOptions(**options))).lines


def zulu(moment: datetime) -> str:
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


# EHLO


def test_what_is_advertised() -> None:
    assert lines(max_message_bytes=7, smtputf8=False, chunking=False) == (
        "PIPELINING",
        "8BITMIME",
        "SIZE 7",
        "ENHANCEDSTATUSCODES",
    )
    assert lines() == (
        "PIPELINING",
        "8BITMIME",
        "SIZE 33554432",
        "SMTPUTF8",
        "CHUNKING",
        "BINARYMIME",
        "ENHANCEDSTATUSCODES",
    )
    assert Capabilities(FULL_OFFER, extended=False).lines == ()
    assert not Capabilities(FULL_OFFER, extended=False).mail
    assert not Capabilities(FULL_OFFER, extended=False).rcpt
    assert "SMTPUTF8" not in Capabilities(Offer(ServerOptions(smtputf8=False))).mail
    assert "BINARYMIME" not in lines(binarymime=False)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"dsn": True}, "DSN"),
        ({"deliverby": 0}, "DELIVERBY"),
        ({"deliverby": 60}, "DELIVERBY 60"),
        ({"mt_priority": ""}, "MT-PRIORITY"),
        ({"mt_priority": "STANAG4406"}, "MT-PRIORITY STANAG4406"),
        ({"rrvs": True}, "RRVS"),
        ({"no_soliciting": ""}, "NO-SOLICITING"),
        ({"no_soliciting": "net.example:ADV"}, "NO-SOLICITING net.example:ADV"),
        ({"advertise_limits": True}, "LIMITS RCPTMAX=1000"),
        ({"vrfy": True}, "VRFY"),
        ({"expn": True}, "EXPN"),
        ({"etrn": True}, "ETRN"),
        ({"advertise_help": True}, "HELP"),
    ],
)
def test_one_option_one_line(options: dict[str, Any], line: str) -> None:
    assert set(lines(**options)) - set(lines()) == {line}


@pytest.mark.parametrize("most", [0, 1_000_000])
def test_a_limit_that_cannot_be_said_is_not(most: int) -> None:
    assert lines(advertise_limits=True, max_recipients=most) == lines()


@pytest.mark.parametrize(
    ("offer", "line"),
    [
        ({"tls_available": True}, "STARTTLS"),
        ({"auth": ("PLAIN", "SCRAM-SHA-256")}, "AUTH PLAIN SCRAM-SHA-256"),
        ({"xforward": True}, "XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE"),
        ({"xclient": True}, "XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"),
    ],
)
def test_what_the_connection_decides(offer: dict[str, Any], line: str) -> None:
    assert set(lines(Offer(ServerOptions(), **offer))) - set(lines()) == {line}


def test_within_tls() -> None:
    options = ServerOptions(requiretls=True)
    assert lines(Offer(options, tls_available=True)) != lines(Offer(options, tls=True, tls_available=True))
    assert "REQUIRETLS" not in lines(Offer(options, tls_available=True))
    assert "REQUIRETLS" not in Capabilities(Offer(options, tls_available=True)).mail
    assert "REQUIRETLS" in lines(Offer(options, tls=True, tls_available=True))
    assert "STARTTLS" not in lines(Offer(options, tls=True, tls_available=True))


def test_future_release_tells_how_far() -> None:
    before = datetime.now(UTC).replace(microsecond=0)
    (line,) = set(lines(future_release=3600)) - set(lines())
    keyword, interval, moment = line.split(" ")
    assert (keyword, interval) == ("FUTURERELEASE", "3600")
    assert before <= datetime.fromisoformat(moment) - timedelta(hours=1) <= datetime.now(UTC)


def test_lines_fit_a_reply() -> None:
    longest = Offer(ServerOptions(no_soliciting="a" * 400, mt_priority="a" * 20, future_release=999999999))
    for offer in (FULL_OFFER, longest):
        for line in lines(offer):
            assert len(f"250-{line}\r\n") <= 512
            assert line.isascii()
            assert line.isprintable()
    assert [line.split(" ")[0] for line in FULL.lines] == [each for each in KEYWORDS if each != "STARTTLS"]


def test_capabilities_are_computed_once() -> None:
    options = ServerOptions(debug=type("Unhashable", (io.StringIO,), {"__hash__": None})())
    cache = CapabilityCache()
    first = cache(Offer(options, tls=True, auth=("PLAIN",)))
    assert cache(Offer(options, tls=True, auth=("PLAIN",))) is first
    assert cache(Offer(options, auth=("PLAIN",))) is not first
    assert not first.fleeting
    for number in range(1000):
        assert cache(Offer(options, auth=(str(number),))).lines
    assert len(cache._known) <= 64


def test_what_holds_the_time_is_not_kept() -> None:
    cache = CapabilityCache()
    offer = Offer(ServerOptions(future_release=1))
    assert cache(offer).fleeting
    assert cache(offer) is not cache(offer)


@pytest.mark.parametrize(
    "options",
    [
        {"deliverby": -1},
        {"deliverby": 1_000_000_000},
        {"future_release": -1},
        {"future_release": 1_000_000_000},
        {"mt_priority": "two words"},
        {"mt_priority": "a" * 21},
        {"mt_priority": "a\r\nb"},
        {"no_soliciting": "1a"},
        {"no_soliciting": "a,,b"},
        {"no_soliciting": "a b"},
        {"no_soliciting": "a\n"},
        {"no_soliciting": "a" * 401},
    ],
)
def test_impossible_options(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigurationError):
        ServerOptions(**options)


# Reading


def mail(text: str, capabilities: Capabilities = FULL) -> dict[str, object]:
    return parse_parameters(" " + text, capabilities.mail)


def rcpt(text: str, capabilities: Capabilities = FULL) -> dict[str, object]:
    return parse_parameters(" " + text, capabilities.rcpt)


def test_parsing() -> None:
    values = parse_parameters(" size=12  BODY=8bitmime SMTPUTF8", PLAIN.mail)
    assert values == {"size": 12, "body": "8BITMIME", "smtputf8": True}


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("BODY=binarymime", {"body": "BINARYMIME"}),
        ("BODY=7BIT", {"body": "7BIT"}),
        ("RET=full", {"ret": "FULL"}),
        ("ret=HDRS", {"ret": "HDRS"}),
        ("ENVID=QQ314159", {"envid": "QQ314159"}),
        ("ENVID=a+2B+20b+3D", {"envid": "a+ b="}),
        ("ENVID=" + "a" * 100, {"envid": "a" * 100}),
        ("REQUIRETLS", {"requiretls": True}),
        ("BY=60;R", {"by": DeliverBy(60, "R")}),
        ("BY=+120;rt", {"by": DeliverBy(120, "R", True)}),
        ("BY=-999999999;N", {"by": DeliverBy(-999999999, "N")}),
        ("BY=0;nT", {"by": DeliverBy(0, "N", True)}),
        ("BY=1;N", {"by": DeliverBy(1, "N")}),
        ("MT-PRIORITY=-9", {"mt_priority": -9}),
        ("mt-priority=0", {"mt_priority": 0}),
        ("MT-PRIORITY=9", {"mt_priority": 9}),
        ("HOLDFOR=1", {"hold": 1}),
        ("HOLDFOR=86400", {"hold": 86400}),
        ("SOLICIT=org.example:ADV", {"solicit": ("org.example:ADV",)}),
        ("SOLICIT=a,b-c_d.e:F9", {"solicit": ("a", "b-c_d.e:F9")}),
        ("AUTH=<>", {"auth": ""}),
        ("AUTH=+3C+3E", {"auth": ""}),
        ("AUTH=e+3Dmc2@example.com", {"auth": "e=mc2@example.com"}),
        ("AUTH=+22a+20b+22@example.com", {"auth": '"a b"@example.com'}),
    ],
)
def test_mail_parameters(text: str, values: dict[str, object]) -> None:
    assert mail(text) == values
    assert getattr(MailParams(**values), next(iter(values))) == next(iter(values.values()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("BODY=8BIT", 501),
        ("RET", 501),
        ("RET=ALL", 501),
        ("RET=FULL RET=FULL", 501),
        ("ENVID", 501),
        ("ENVID=", 501),
        ("ENVID=" + "a" * 101, 501),
        ("ENVID=+", 501),
        ("ENVID=+0D+0AX", 501),
        ("ENVID=+00", 501),
        ("ENVID=+09", 501),
        ("ENVID=+C3+A9", 501),
        ("ENVID=+FF", 501),
        ("ENVID=é", 501),
        ("REQUIRETLS=", 501),
        ("REQUIRETLS=1", 501),
        ("BY", 501),
        ("BY=60", 501),
        ("BY=60;", 501),
        ("BY=60;X", 501),
        ("BY=60;RX", 501),
        ("BY=;R", 501),
        ("BY=1234567890;R", 501),
        ("BY=٣;N", 501),
        ("BY=0;R", 501),
        ("BY=-1;R", 501),
        ("BY=59;R", 555),
        ("MT-PRIORITY", 501),
        ("MT-PRIORITY=10", 501),
        ("MT-PRIORITY=+1", 501),
        ("MT-PRIORITY=-0", 501),
        ("MT-PRIORITY=٣", 501),
        ("MT-PRIORITY=1 MT-PRIORITY=1", 501),
        ("HOLDFOR", 501),
        ("HOLDFOR=0", 501),
        ("HOLDFOR=01", 501),
        ("HOLDFOR=-1", 501),
        ("HOLDFOR=86401", 501),
        ("HOLDFOR=1234567890", 501),
        ("HOLDUNTIL", 501),
        ("HOLDUNTIL=tomorrow", 501),
        ("HOLDUNTIL=2007-05-01T00:00:00Z", 501),
        ("HOLDUNTIL=9999-12-31T23:59:59Z", 501),
        ("HOLDUNTIL=0001-01-01T00:00:00Z", 501),
        ("HOLDUNTIL=0000-01-01T00:00:00Z", 501),
        ("SOLICIT", 501),
        ("SOLICIT=1a", 501),
        ("SOLICIT=a,", 501),
        ("SOLICIT=a/b", 501),
        ("SOLICIT=" + "a" * 1001, 501),
        ("SOLICIT=x,NET.example:adv", 550),
        ("AUTH", 501),
        ("AUTH=bob", 501),
        ("AUTH=a@b+", 501),
        ("AUTH=a@b+0D+0A", 501),
        ("AUTH=a@b@c", 501),
        ("AUTH=@a:b@c", 501),
        ("AUTH=a@b>", 501),
        ("AUTH=<a@b>", 501),
        ("AUTH=é@b.example", 501),
        ("NOTIFY=NEVER", 555),
        ("ORCPT=rfc822;a@b", 555),
        ("RRVS=2014-04-03T23:01:00Z", 555),
    ],
)
def test_bad_mail_parameters(text: str, code: int) -> None:
    with pytest.raises(ParameterError) as caught:
        mail(text)
    assert caught.value.code == code
    assert caught.value.reason.isascii()


def test_hold_until() -> None:
    soon = (datetime.now(UTC) + timedelta(hours=1)).replace(microsecond=0)
    assert mail(f"HOLDUNTIL={zulu(soon)}") == {"hold": soon}
    assert mail(f"HOLDUNTIL={zulu(soon).lower()}") == {"hold": soon}
    assert mail(f"HOLDUNTIL={zulu(soon)[:-1]}.25Z") == {"hold": soon + timedelta(milliseconds=250)}
    assert mail(f"HOLDUNTIL={zulu(soon)[:-1]}+00:00") == {"hold": soon}
    for text in (
        f"HOLDUNTIL={zulu(soon)[:-1]}",
        f"HOLDUNTIL={zulu(soon)[:-1]}+01:00",
        f"HOLDUNTIL={zulu(soon + timedelta(days=1))}",
        f"HOLDUNTIL={zulu(soon)} HOLDFOR=5",
        f"HOLDFOR=5 HOLDUNTIL={zulu(soon)}",
    ):
        with pytest.raises(ParameterError) as caught:
            mail(text)
        assert caught.value.code == 501


def test_classes_that_are_refused_are_named() -> None:
    with pytest.raises(ParameterError) as caught:
        mail("SOLICIT=other,org.example:adv:adlt")
    assert caught.value.enhanced == (5, 7, 1)
    assert caught.value.reason == "Not accepted here: SOLICIT=org.example:ADV:ADLT"


NOON = datetime(2014, 4, 3, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("NOTIFY=never", {"notify": ("NEVER",)}),
        ("NOTIFY=SUCCESS", {"notify": ("SUCCESS",)}),
        ("NOTIFY=delay,FAILURE,Success", {"notify": ("DELAY", "FAILURE", "SUCCESS")}),
        ("ORCPT=rfc822;Bob@Example.COM", {"orcpt": OriginalRecipient("rfc822", "Bob@Example.COM")}),
        ("ORCPT=rfc822;a+2Bb@c.example", {"orcpt": OriginalRecipient("rfc822", "a+b@c.example")}),
        ("ORCPT=x400;c/fr;s/x", {"orcpt": OriginalRecipient("x400", "c/fr;s/x")}),
        ("ORCPT=utf-8;a@b.example", {"orcpt": OriginalRecipient("utf-8", "a@b.example")}),
        ("ORCPT=UTF-8;jos\\x{E9}@b.example", {"orcpt": OriginalRecipient("UTF-8", "josé@b.example")}),
        ("ORCPT=utf-8;josé@b.example", {"orcpt": OriginalRecipient("utf-8", "josé@b.example")}),
        ("ORCPT=utf-8;\\x{1F600}\\x{5C}\\x{2b}@b", {"orcpt": OriginalRecipient("utf-8", "😀\\+@b")}),
        ("RRVS=2014-04-03T12:00:00Z", {"rrvs": ValidSince(NOON)}),
        ("RRVS=2014-04-03T14:00:00+02:00;c", {"rrvs": ValidSince(NOON, "C")}),
        ("RRVS=2014-04-03T11:30:00-00:30;R", {"rrvs": ValidSince(NOON, "R")}),
        ("RRVS=2012-06-30T23:59:60Z", {"rrvs": ValidSince(datetime(2012, 6, 30, 23, 59, 59, tzinfo=UTC))}),
    ],
)
def test_rcpt_parameters(text: str, values: dict[str, object]) -> None:
    assert rcpt(text) == values
    assert getattr(RcptParams(**values), next(iter(values))) == next(iter(values.values()))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "NOTIFY",
        "NOTIFY=",
        "NOTIFY=ALWAYS",
        "NOTIFY=NEVER,SUCCESS",
        "NOTIFY=SUCCESS,SUCCESS",
        "NOTIFY=SUCCESS,",
        "NOTIFY=SUCCESS,FAILURE,DELAY,SUCCESS",
        "NOTIFY=NEVER,NEVER",
        "NOTIFY=NEVER NOTIFY=NEVER",
        "ORCPT",
        "ORCPT=rfc822",
        "ORCPT=rfc822;",
        "ORCPT=;a@b",
        "ORCPT=a b;a@b",
        "ORCPT=a.b;a@b",
        "ORCPT=rfc822;a+0D+0Ab",
        "ORCPT=rfc822;a+00b",
        "ORCPT=rfc822;a+b",
        "ORCPT=rfc822;é@b",
        "ORCPT=rfc822;+FF@b",
        "ORCPT=rfc822;" + "a" * 494,
        "ORCPT=utf-8;a+2Bb@c",
        "ORCPT=utf-8;a\\b@c",
        "ORCPT=utf-8;\\x{0D}@c",
        "ORCPT=utf-8;\\x{85}@c",
        "ORCPT=utf-8;\\x{41}@c",
        "ORCPT=utf-8;\\x{D800}@c",
        "ORCPT=utf-8;\\x{110000}@c",
        "ORCPT=utf-8;\\x{2028}@c",
        "ORCPT=utf-8;\u2028@c",
        "ORCPT=utf-8;\\x{}@c",
        "RRVS",
        "RRVS=yesterday",
        "RRVS=2014-04-03",
        "RRVS=2014-04-03T12:00:00",
        "RRVS=2014-04-03T12:00:00.5Z",
        "RRVS=2014-04-03T12:00:00Z;",
        "RRVS=2014-04-03T12:00:00Z;X",
        "RRVS=2014-04-03T12:00:00Z;R;C",
        "RRVS=2014-02-30T12:00:00Z",
        "RRVS=2014-04-03T12:00:61Z",
        "RRVS=2014-04-03T12:00:00+25:00",
        "RRVS=2014-04-03T12:00:00Z;R RRVS=2014-04-03T12:00:00Z;R",
    ],
)
def test_bad_rcpt_parameters(text: str) -> None:
    with pytest.raises(ParameterError) as caught:
        rcpt(text)
    assert (caught.value.code, caught.value.enhanced) == (501, (5, 5, 4))


def test_utf8_in_orcpt_needs_smtputf8() -> None:
    without = Capabilities(Offer(ServerOptions(dsn=True, smtputf8=False)))
    assert rcpt("ORCPT=utf-8;jos\\x{E9}@b", without) == {"orcpt": OriginalRecipient("utf-8", "josé@b")}
    with pytest.raises(ParameterError):
        rcpt("ORCPT=utf-8;josé@b", without)


@pytest.mark.parametrize(
    "text",
    [
        "RET=FULL",
        "ENVID=a",
        "REQUIRETLS",
        "BY=60;R",
        "MT-PRIORITY=1",
        "HOLDFOR=1",
        "HOLDUNTIL=2045-01-01T00:00:00Z",
        "SOLICIT=a",
        "AUTH=<>",
        "NOTIFY=NEVER",
        "ORCPT=rfc822;a@b",
        "RRVS=2014-04-03T23:01:00Z",
    ],
)
def test_off_is_not_recognized(text: str) -> None:
    for known in (PLAIN.mail, PLAIN.rcpt):
        with pytest.raises(ParameterError) as caught:
            parse_parameters(" " + text, known)
        assert (caught.value.code, caught.value.enhanced) == (555, (5, 5, 4))


@pytest.mark.parametrize("options", [{"chunking": False}, {"binarymime": False}])
def test_binarymime_off(options: dict[str, Any]) -> None:
    with pytest.raises(ParameterError) as caught:
        mail("BODY=BINARYMIME", Capabilities(Offer(ServerOptions(**options))))
    assert caught.value.code == 501


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("SIZE=1", 501),
        (" SIZE", 501),
        (" SIZE=", 501),
        (" SIZE=1=2", 501),
        (" SIZE=+1", 501),
        (" SIZE=٣", 501),
        (" SIZE=123456789012345678901", 501),
        (" SIZE=1 size=1", 501),
        (" =1", 501),
        (" -X=1", 501),
        (" BODY", 501),
        (" SMTPUTF8=", 501),
        (" X=1", 555),
        (" " + "X " * 100, 501),
    ],
)
def test_refusals(text: str, code: int) -> None:
    with pytest.raises(ParameterError) as caught:
        parse_parameters(text, PLAIN.mail)
    assert caught.value.code == code


@given(st.text())
def test_only_documented_errors(text: str) -> None:
    try:
        parse_parameters(" " + text, FULL.mail)
    except ParameterError as error:
        assert error.code in (501, 550, 555)
        assert error.reason.isascii()


@given(st.sampled_from(sorted({*FULL.mail, *FULL.rcpt})), st.text(alphabet=st.characters(exclude_characters=" ")))
def test_only_documented_errors_of_values(keyword: str, value: str) -> None:
    for known in (FULL.mail, FULL.rcpt):
        try:
            parse_parameters(f" {keyword}={value}", known)
        except ParameterError as error:
            assert error.code in (501, 550, 555)
            assert error.reason.isascii()


# In the commands


@pytest.mark.parametrize(
    ("argument", "reply"),
    [
        ("FROM:<a@b> HOLDFOR=61 BY=60;R", "501 5.5.4 The message would be released after the time of BY"),
        ("FROM:<a@b> HOLDFOR=1 BY=0;N", "501 5.5.4 The message would be released after the time of BY"),
        ("FROM:<a@b> AUTH=jos+C3+A9@b", "501 5.5.4 A non-ASCII mailbox in AUTH needs SMTPUTF8"),
        ("FROM:<a@b> MT-PRIORITY=x", "501 5.5.2 MT-PRIORITY takes -9 to 9"),
        ("FROM:<a@b> SOLICIT=net.example:ADV", "550 5.7.1 Not accepted here: SOLICIT=net.example:ADV"),
        ("FROM:<a@b> BY=1;R", "555 5.5.4 BY is below the minimum of DELIVERBY"),
    ],
)
def test_replies_of_mail(argument: str, reply: str) -> None:
    with pytest.raises(CommandError) as caught:
        parse_mail(argument, FULL.mail, 0, True)
    assert str(caught.value.reply) == reply


def test_parameters_that_agree() -> None:
    _, params = parse_mail("FROM:<a@b> HOLDFOR=60 BY=60;R AUTH=jos+C3+A9@b SMTPUTF8", FULL.mail, 0, True)
    assert params == MailParams(smtputf8=True, by=DeliverBy(60, "R"), hold=60, auth="josé@b")
    assert parse_rcpt("TO:<a@b> NOTIFY=NEVER", FULL.rcpt, False, True)[1] == RcptParams(notify=("NEVER",))
    now = datetime.now(UTC)
    check_mail(MailParams(hold=now + timedelta(seconds=50), by=DeliverBy(60, "R")))
    with pytest.raises(ParameterError):
        check_mail(MailParams(hold=now + timedelta(seconds=90), by=DeliverBy(60, "R")))


# Writing

MAILBOX = st.from_regex(r"[a-z!#%&'*+/=?^_`{|}~-]{1,20}@[a-z]{1,20}\.example", fullmatch=True)
PRINTABLE = st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), min_size=1, max_size=30)
TEXT = st.text(
    st.characters(min_codepoint=0x20, exclude_characters="\u2028\u2029", exclude_categories=("Cc", "Cs")),
    min_size=1,
    max_size=30,
)
OFFSETS = st.integers(-23 * 60, 23 * 60).map(lambda minutes: timezone(timedelta(minutes=minutes)))
SECOND = st.datetimes(min_value=datetime(2, 1, 1), max_value=datetime(9998, 1, 1)).map(
    lambda moment: moment.replace(microsecond=0)
)
CLASS = st.from_regex(r"[A-Za-z][A-Za-z0-9._:-]{0,20}", fullmatch=True)
MAILS = st.builds(
    MailParams,
    size=st.none() | st.integers(0, 10**20 - 1),
    body=st.sampled_from([None, "7BIT", "8BITMIME", "BINARYMIME"]),
    smtputf8=st.booleans(),
    ret=st.sampled_from([None, "FULL", "HDRS"]),
    envid=st.none() | PRINTABLE,
    requiretls=st.booleans(),
    by=st.none()
    | st.builds(DeliverBy, st.integers(-999999999, 999999999), st.just("N"), st.booleans())
    | st.builds(DeliverBy, st.integers(60, 999999999), st.just("R"), st.booleans()),
    mt_priority=st.none() | st.integers(-9, 9),
    solicit=st.none() | st.lists(CLASS, min_size=1, max_size=5).map(tuple),
    auth=st.none() | st.just("") | MAILBOX,
)
RCPTS = st.builds(
    RcptParams,
    notify=st.none()
    | st.just(("NEVER",))
    | st.permutations(["SUCCESS", "FAILURE", "DELAY"]).flatmap(
        lambda words: st.integers(1, 3).map(lambda count: tuple(words[:count]))
    ),
    orcpt=st.none() | st.builds(OriginalRecipient, st.sampled_from(["rfc822", "utf-8", "UTF-8", "x"]), TEXT),
    rrvs=st.none()
    | st.builds(
        ValidSince, st.builds(lambda moment, zone: moment.replace(tzinfo=zone), SECOND, OFFSETS), st.sampled_from("RC")
    ),
)


@given(MAILS)
def test_mail_is_read_as_it_was_written(params: MailParams) -> None:
    text = encode_parameters(params, KEYWORDS)
    assert text.isascii()
    assert MailParams(**(mail(text.lstrip()) if text else {})) == params  # type: ignore[arg-type]


@given(RCPTS)
def test_rcpt_is_read_as_it_was_written(params: RcptParams) -> None:
    text = encode_parameters(params, KEYWORDS)
    assert text.isascii()
    assert RcptParams(**(rcpt(text.lstrip()) if text else {})) == params  # type: ignore[arg-type]


@given(st.integers(1, 86400) | st.floats(10, 86000).map(lambda after: datetime.now(UTC) + timedelta(seconds=after)))
def test_hold_is_read_as_it_was_written(hold: int | datetime) -> None:
    assert mail(encode_parameters(MailParams(hold=hold), KEYWORDS).lstrip()) == {"hold": hold}


def test_written_in_the_order_of_the_table() -> None:
    params = MailParams(size=5, body="8BITMIME", smtputf8=True, ret="HDRS", envid="a b", auth="")
    assert encode_parameters(params, KEYWORDS) == " BODY=8BITMIME SIZE=5 SMTPUTF8 AUTH=<> RET=HDRS ENVID=a+20b"
    assert encode_parameters(MailParams(), ()) == ""
    assert encode_parameters(RcptParams(), ()) == ""


def test_keywords_in_any_case() -> None:
    assert encode_parameters(RcptParams(notify=("NEVER",)), {"dsn"}) == " NOTIFY=NEVER"


@pytest.mark.parametrize("body", ["7BIT", "8BITMIME"])
def test_hints_are_left_out(body: str) -> None:
    assert encode_parameters(MailParams(size=5, body=body), ()) == ""


@pytest.mark.parametrize(
    ("params", "missing"),
    [
        (MailParams(body="BINARYMIME"), "BINARYMIME"),
        (MailParams(smtputf8=True), "SMTPUTF8"),
        (MailParams(ret="FULL"), "DSN"),
        (MailParams(envid="a"), "DSN"),
        (MailParams(requiretls=True), "REQUIRETLS"),
        (MailParams(by=DeliverBy(1, "N")), "DELIVERBY"),
        (MailParams(mt_priority=0), "MT-PRIORITY"),
        (MailParams(hold=1), "FUTURERELEASE"),
        (MailParams(solicit=("a",)), "NO-SOLICITING"),
        (MailParams(auth=""), "AUTH"),
        (RcptParams(notify=("NEVER",)), "DSN"),
        (RcptParams(orcpt=OriginalRecipient("rfc822", "a@b")), "DSN"),
        (RcptParams(rrvs=ValidSince(NOON)), "RRVS"),
    ],
)
def test_what_is_not_offered_is_not_asked_for(params: MailParams | RcptParams, missing: str) -> None:
    with pytest.raises(ValueError, match=f"needs {missing}, which the server does not offer"):
        encode_parameters(params, set(KEYWORDS) - {missing})


def test_binarymime_needs_chunking() -> None:
    with pytest.raises(ValueError, match="CHUNKING"):
        encode_parameters(MailParams(body="BINARYMIME"), {"8BITMIME", "BINARYMIME"})


WRONG: list[MailParams | RcptParams] = [
    MailParams(size=-1),
    MailParams(body="9BIT"),
    MailParams(body="7BIT\r\nDATA"),
    MailParams(ret="FULL\r\nRSET"),
    MailParams(ret="FULL ENVID=x"),
    MailParams(envid=""),
    MailParams(envid="é"),
    MailParams(envid="a\nb"),
    MailParams(envid="a" * 101),
    MailParams(envid="\ud800"),
    MailParams(by=DeliverBy(0, "R")),
    MailParams(by=DeliverBy(10**9, "N")),
    MailParams(by=DeliverBy(1, "X")),  # type: ignore[arg-type]
    MailParams(mt_priority=10),
    MailParams(hold=0),
    MailParams(hold=datetime(2045, 1, 1)),
    MailParams(hold=datetime(2001, 1, 1, tzinfo=UTC)),
    MailParams(hold=60, by=DeliverBy(59, "R")),
    MailParams(solicit=()),
    MailParams(solicit=("a b",)),
    MailParams(auth="no mailbox"),
    MailParams(auth="josé@b"),
    RcptParams(notify=()),
    RcptParams(notify=("NEVER", "DELAY")),
    RcptParams(orcpt=OriginalRecipient("two words", "a")),
    RcptParams(orcpt=OriginalRecipient("rfc822", "")),
    RcptParams(orcpt=OriginalRecipient("rfc822", "a\r\nb")),
    RcptParams(orcpt=OriginalRecipient("utf-8", "a\r\nb")),
    RcptParams(rrvs=ValidSince(datetime(2001, 1, 1))),
    RcptParams(rrvs=ValidSince(datetime.max.replace(tzinfo=timezone(timedelta(hours=-1))))),
    RcptParams(rrvs=ValidSince(NOON, "X")),  # type: ignore[arg-type]
]


@pytest.mark.parametrize("params", WRONG)
def test_impossible_values_are_not_written(params: MailParams | RcptParams) -> None:
    with pytest.raises(ValueError):
        encode_parameters(params, KEYWORDS)


def test_every_field_has_its_parameter() -> None:
    for target, kind in ((MailParams, "mail"), (RcptParams, "rcpt")):
        filled = {parameter.field for extension in EXTENSIONS for parameter in getattr(extension, kind)}
        assert filled == {each.name for each in dataclasses.fields(target)}
    for extension in EXTENSIONS:
        assert extension.source.startswith(("RFC ", "Postfix "))
        assert extension.keyword == extension.keyword.upper()
