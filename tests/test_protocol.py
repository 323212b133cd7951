"""The protocol without I/O: what no dialogue shows, and properties over any input in any cut."""

from __future__ import annotations

import itertools
import re
import ssl

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fastsmtp import EnhancedCode, Reply, ServerOptions, limits
from fastsmtp._vocabulary import VERBS
from fastsmtp.extensions import Offer
from fastsmtp.protocol import Body, Hello, MailFrom, RcptTo, Reset, ServerProfile, ServerProtocol, Verify
from fastsmtp.protocol.events import Auth, StartTLS

from .dialogue import CUTS, cut


def core(**fields: object) -> ServerProtocol:
    options = ServerOptions(**fields)  # type: ignore[arg-type]
    protocol = ServerProtocol(ServerProfile(options))
    protocol.greet()
    assert protocol.data_to_send().startswith(b"220 ")
    return protocol


def drive(protocol: ServerProtocol, data: bytes) -> tuple[bytes, list[object]]:
    """Feed, accept everything; the replies and the events, bodies joined."""
    protocol.receive_data(data)
    out = b""
    events: list[object] = []
    while (event := protocol.next_event()) is not None:
        if isinstance(event, Body):
            events.append(("body", event.payload, event.ended, event.refusal))
        else:
            events.append(event)
        if protocol.awaiting_reply:
            protocol.reply()
        out += protocol.data_to_send()
    return out + protocol.data_to_send(), events


def ready(**fields: object) -> ServerProtocol:
    protocol = core(**fields)
    out, _ = drive(protocol, b"EHLO x.example\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
    assert out.endswith(b"354 Start mail input; end with <CRLF>.<CRLF>\r\n")
    return protocol


def test_nothing_is_looked_at_before_the_answer() -> None:
    protocol = core()
    protocol.receive_data(b"EHLO x.example\r\nMAIL FROM:<a@b>\r\n")
    assert isinstance(protocol.next_event(), Hello)
    assert protocol.next_event() is None and protocol.awaiting_reply
    protocol.reply()
    assert isinstance(protocol.next_event(), MailFrom)
    protocol.reply(Reply(550, EnhancedCode(5, 7, 1), "no"))
    assert protocol.sender is None
    with pytest.raises(RuntimeError):
        protocol.reply()


def test_what_must_be_flushed() -> None:
    protocol = core()
    for line, flush in (
        (b"EHLO x.example", True),
        (b"MAIL FROM:<a@b>", False),
        (b"RCPT TO:<c@d>", False),
        (b"RSET", False),
        (b"NOOP", True),
        (b"VRFY x", True),
        (b"HELP", True),
        (b"RUBBISH", True),
        (b"QUIT", True),
    ):
        protocol.receive_data(line + b"\r\n")
        protocol.next_event()
        if protocol.awaiting_reply:
            protocol.reply()
        assert protocol.must_flush is flush, line
        protocol.data_to_send()


@pytest.mark.parametrize(
    ("length", "answer"),
    [
        (limits.COMMAND_LINE, b"250 2.0.0 OK\r\n"),
        (limits.COMMAND_LINE + 1, b"500 5.5.2 Line too long\r\n"),
        (limits.COMMAND_LINE_FLOOD, b"500 5.5.2 Line too long\r\n"),
        (limits.COMMAND_LINE_FLOOD + 1, b"421 4.7.0 Too many errors\r\n"),
    ],
)
@pytest.mark.parametrize("step", [100_000, 1000, 7])
def test_long_lines(length: int, answer: bytes, step: int) -> None:
    protocol = core()
    line = b"NOOP " + b"x" * (length - 7) + b"\r\n" + b"NOOP\r\n"
    out = b""
    for start in range(0, len(line), step):
        out += drive(protocol, line[start : start + step])[0]
        assert protocol.buffered <= limits.COMMAND_LINE + step
    closed = answer.startswith(b"421")
    assert out == answer + (b"" if closed else b"250 2.0.0 OK\r\n")
    assert protocol.closing is closed


@pytest.mark.parametrize("step", [100_000, 1000, 7])
@pytest.mark.parametrize("verb", [b"BDAT 5", b"bdat", b"BDATX"])
def test_a_long_bdat_ends_the_connection(verb: bytes, step: int) -> None:
    """Its size cannot be known, and what follows may be the chunk."""
    for length in (limits.COMMAND_LINE, limits.COMMAND_LINE + 1, limits.COMMAND_LINE_FLOOD + 1):
        protocol = core()
        line = verb.ljust(length - 2) + b"\r\nNOOP\r\n"
        out = b"".join(drive(protocol, line[start : start + step])[0] for start in range(0, len(line), step))
        if length > limits.COMMAND_LINE:
            assert out == b"500 5.5.2 Line too long\r\n" and protocol.closing
        elif verb == b"BDATX":
            assert out == b"500 5.5.2 Command not recognized\r\n250 2.0.0 OK\r\n"


def test_a_chunk_is_one_before_tls_and_when_turned_away() -> None:
    said = b"BDAT 6\r\nQUIT\r\nBDAT 6 LAST\r\nNOOP\r\nBDAT 0 LAST\r\nBDAT\r\nQUIT\r\n"
    protocol = ServerProtocol(ServerProfile(ServerOptions()))
    protocol.greet(Reply(554, EnhancedCode(5, 7, 1), "no"))
    protocol.data_to_send()
    assert [line[:3] for line in drive(protocol, said)[0].splitlines()] == [b"503", b"503", b"503", b"501"]
    assert protocol.closing
    protocol = core(require_tls=True, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER))
    assert [line[:3] for line in drive(protocol, said)[0].splitlines()] == [b"530", b"530", b"530", b"501"]
    protocol = core(require_tls=True, tls=ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), chunking=False)
    assert drive(protocol, b"BDAT 6\r\n")[0].startswith(b"530 ")


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("length", [limits.COMMAND_LINE + 1, limits.COMMAND_LINE_FLOOD - 100])
def test_the_tail_of_a_long_line_is_not_run(length: int, how: str) -> None:
    """Neither what stands behind the limit nor what other line ends would make of it (RFC 5321 4.5.3.1.9)."""
    evil = b"\nQUIT\n\rQUIT\r\0QUIT " + b"MAIL FROM:<a@b>\n"
    protocol = core()
    line = b"NOOP " + b"x" * length + evil + b"\r\n"
    out, events = b"", []
    for piece in cut(b"EHLO x.example\r\n" + line + b"RCPT TO:<c@d>\r\nNOOP\r\n", how):
        more, those = drive(protocol, piece)
        out += more
        events += those
    assert [each[:3] for each in out.splitlines() if each[3:4] == b" "] == [b"250", b"500", b"503", b"250"]
    assert not any(isinstance(event, MailFrom) for event in events) and not protocol.quit


def everything() -> ServerProtocol:
    """All extensions turned on, for a peer that may use them."""
    options = ServerOptions(
        max_errors=0,
        dsn=True,
        requiretls=True,
        deliverby=1,
        mt_priority="",
        rrvs=True,
        future_release=60,
        no_soliciting="",
        advertise_limits=True,
        advertise_help=True,
        vrfy=True,
        expn=True,
        etrn=True,
    )
    protocol = ServerProtocol(ServerProfile(options))
    protocol.offer = Offer(options, tls_available=True, auth=("PLAIN", "LOGIN"), xforward=True, xclient=True)
    protocol.greet()
    protocol.data_to_send()
    return protocol


RUBBISH = [
    "", " ", "    ", " x", " <", " >", " <>", " :", " =", " FROM:", " TO:", " FROM:<", " TO:<>", " FROM:<a@b> =",
    " -1", " 0 LAST x", " *",
    " =x",
    " " + "<" * 500, " FROM:" + "@a," * 300, " " + "x=y " * 300, " \u00e9", " \u2028", " a b c d", " [", " [IPv6:", " ++", " NAME=", "\tx", ":",
]  # fmt: skip


@pytest.mark.parametrize("hello", ["", "EHLO x.example\r\n", "EHLO x.example\r\nMAIL FROM:<a@b>\r\nRCPT TO:<c@d>\r\n"])
@pytest.mark.parametrize("verb", [*VERBS, "XFORWARD", "XCLIENT", "TURN", "FOO", ""])
def test_every_verb_bare_with_blanks_and_with_rubbish(verb: str, hello: str) -> None:
    for argument in RUBBISH:
        protocol = everything()
        drive(protocol, hello.encode())
        out, events = drive(protocol, f"{verb}{argument}\r\n".encode())
        if protocol.closing:
            assert len(re.findall(rb"^\d\d\d ", out, re.MULTILINE)) == 1
            continue
        if protocol.in_body:  # a chunk of nothing, or DATA
            assert out.startswith(b"354 ")
            continue
        waits = any(isinstance(event, Auth | StartTLS) for event in events)
        assert waits or len(re.findall(rb"^\d\d\d ", out, re.MULTILINE)) == 1, (argument, out)
        if not waits:
            assert drive(protocol, b"NOOP\r\n")[0] in (b"250 2.0.0 OK\r\n", b"501 5.5.2 Cannot decode base64\r\n"), (
                argument
            )


@pytest.mark.parametrize(
    ("keyword", "command"),
    [
        ("STARTTLS", "STARTTLS"),
        ("AUTH", "AUTH PLAIN ="),
        ("CHUNKING", "BDAT 0"),
        ("VRFY", "VRFY x"),
        ("EXPN", "EXPN x"),
        ("ETRN", "ETRN x.example"),
        ("HELP", "HELP"),
        ("XFORWARD", "XFORWARD NAME=x"),
        ("XCLIENT", "XCLIENT NAME=x"),
        ("SIZE", "MAIL FROM:<a@b> SIZE=1"),
        ("8BITMIME", "MAIL FROM:<a@b> BODY=8BITMIME"),
        ("BINARYMIME", "MAIL FROM:<a@b> BODY=BINARYMIME"),
        ("SMTPUTF8", "MAIL FROM:<\u00e9@b> SMTPUTF8"),
        ("DSN", "MAIL FROM:<a@b> RET=FULL ENVID=x"),
        ("DELIVERBY", "MAIL FROM:<a@b> BY=60;R"),
        ("MT-PRIORITY", "MAIL FROM:<a@b> MT-PRIORITY=1"),
        ("FUTURERELEASE", "MAIL FROM:<a@b> HOLDFOR=1"),
        ("NO-SOLICITING", "MAIL FROM:<a@b> SOLICIT=a.b:c"),
    ],
)
def test_advertised_means_implemented(keyword: str, command: str) -> None:
    """And what is not advertised is refused; but VRFY, EXPN and HELP may be there all the same (RFC 5321 4.1.1.8)."""
    protocol = everything()
    ehlo, _ = drive(protocol, b"EHLO x.example\r\n")
    assert keyword in {line[4:].split()[0].decode() for line in ehlo.splitlines()[1:]}
    protocol.receive_data(command.encode() + b"\r\n")
    event = protocol.next_event()
    assert event is not None
    if protocol.awaiting_reply:
        protocol.reply()
    assert protocol.data_to_send()[:3] not in (b"500", b"502", b"504", b"555")
    least = core(
        chunking=False,
        binarymime=False,
        smtputf8=False,
        max_errors=0,
    )
    ehlo, _ = drive(least, b"EHLO x.example\r\n")
    offered = {line[4:].split()[0].decode() for line in ehlo.splitlines()[1:]}
    assert offered == {"PIPELINING", "8BITMIME", "SIZE", "ENHANCEDSTATUSCODES"}
    if keyword not in {*offered, "VRFY", "HELP"}:
        assert drive(least, command.encode() + b"\r\n")[0][:3] in (b"502", b"501", b"553", b"555")


def test_a_turned_away_client_may_only_quit() -> None:
    protocol = ServerProtocol(ServerProfile(ServerOptions()))
    protocol.greet(Reply(554, EnhancedCode(5, 7, 1), "no"))
    assert protocol.data_to_send() == b"554 5.7.1 no\r\n"
    out, _events = drive(protocol, b"EHLO x.example\r\nMAIL FROM:<>\r\nQUIT\r\n")
    assert [line[:3] for line in out.splitlines()] == [b"503", b"503", b"221"]
    assert protocol.closing and protocol.quit


def test_after_quit_nothing_runs() -> None:
    protocol = core()
    out, _ = drive(protocol, b"QUIT\r\nEHLO x.example\r\nNOOP\r\n")
    assert out == b"221 2.0.0 Bye\r\n"
    assert drive(protocol, b"NOOP\r\n") == (b"", [])


def test_421_from_a_session_closes() -> None:
    protocol = core()
    protocol.receive_data(b"EHLO x.example\r\nNOOP\r\n")
    assert isinstance(protocol.next_event(), Hello)
    protocol.reply(Reply(421, EnhancedCode(4, 3, 2), "enough"))
    assert protocol.data_to_send() == b"421 4.3.2 enough\r\n"
    assert protocol.closing and protocol.next_event() is None


def test_lmtp_replies_one_by_one() -> None:
    protocol = core(lmtp=True)
    drive(protocol, b"LHLO x.example\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nRCPT TO:<a@b>\r\nDATA\r\n")
    protocol.receive_data(b"x\r\n.\r\n")
    event = protocol.next_event()
    assert isinstance(event, Body) and event.ended
    with pytest.raises(ValueError, match="2 replies"):
        protocol.reply_each([None])
    protocol.reply_each([None, Reply(550, EnhancedCode(5, 1, 1), "nobody")])
    assert protocol.data_to_send() == b"250 2.0.0 Message accepted\r\n550 5.1.1 nobody\r\n"
    assert protocol.recipients == []


@pytest.mark.parametrize("each", [True, False])
def test_lmtp_ends_behind_the_last_reply(each: bool) -> None:
    """What comes behind a 421 is not read: recipients that were accepted would get the message again."""
    protocol = core(lmtp=True)
    drive(protocol, b"LHLO x.example\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nRCPT TO:<c@d>\r\nDATA\r\n")
    protocol.receive_data(b"x\r\n.\r\nNOOP\r\n")
    protocol.next_event()
    stopping = Reply(421, EnhancedCode(4, 3, 2), "stopping")
    if each:
        protocol.reply_each([stopping, None])
        second = b"250 2.0.0 Message accepted\r\n"
    else:
        protocol.reply(stopping)
        second = b"451 4.3.2 stopping\r\n"
    assert protocol.data_to_send() == b"451 4.3.2 stopping\r\n" + second + b"421 4.3.2 stopping\r\n"
    assert protocol.closing and protocol.next_event() is None and not protocol.in_body


def test_a_refused_message_is_consumed_and_refused_once() -> None:
    protocol = ready(max_message_bytes=10)
    out, _events = drive(protocol, b"x" * 5 + b"\r\n" + b"y" * 50)
    assert out == b""
    out, _events = drive(protocol, b"\r\nQUIT\r\n.\r\nNOOP\r\n")
    assert out == b"552 5.3.4 Maximum message size exceeded\r\n250 2.0.0 OK\r\n"


@pytest.mark.parametrize(
    ("body", "code"), [(b"a\0b\r\n", b"550"), (b"caf\xc3\xa9\r\n", b"550"), (b"plain\r\n", b"250")]
)
def test_strict_mode(body: bytes, code: bytes) -> None:
    protocol = ready(strict=True)
    assert drive(protocol, body + b".\r\n")[0][:3] == code
    assert drive(ready(), body + b".\r\n")[0][:3] == b"250"
    assert drive(protocol, b"MAIL FROM: <a@b>\r\n")[0].startswith(b"501")


def test_raw_lines_for_extensions() -> None:
    protocol = core()
    protocol.receive_data(b"EHLO x.example\r\nraw\r\nha")
    protocol.next_event()
    assert protocol.read_line() == b"raw"
    assert protocol.read_line() is None
    protocol.say(Reply(334, EnhancedCode.NONE, "go on"))
    assert protocol.data_to_send() == b"334 go on\r\n"


def reference_end(data: bytes) -> int:
    """Where the data ends: past CR LF "." CR LF, the start counting as a line's start; 0 when it does not."""
    return (b"\r\n" + data).find(b"\r\n.\r\n") + 3 if b"\r\n.\r\n" in b"\r\n" + data else 0


def test_every_arrangement_of_line_ends_and_dots() -> None:
    for count in range(7):
        for pieces in itertools.product((b"\r", b"\n", b".", b"x"), repeat=count):
            data = b"".join(pieces)
            protocol = ready(bare_newlines="keep")
            out, events = drive(protocol, data)
            end = reference_end(data)
            ended = [event for event in events if isinstance(event, tuple) and event[2]]
            assert len(ended) == (1 if end else 0), data
            if end:
                assert out.startswith(b"250 2.0.0 Message accepted\r\n"), data
            else:
                assert out == b"" and protocol.in_body, data


WORDS = [
    b"EHLO x.example\r\n", b"HELO x\r\n", b"MAIL FROM:<a@b>\r\n", b"MAIL FROM:<>", b" SIZE=5", b"RCPT TO:<c@d>\r\n", b"DATA\r\n",
    b".\r\n", b"RSET\r\n", b"NOOP\r\n", b"QUIT\r\n", b"VRFY x\r\n", b"\r", b"\n", b"\r\n", b".", b"x", b"\0", b"\xff", b" ", b"<", b">",
]  # fmt: skip
inputs = st.lists(st.sampled_from(WORDS), max_size=30).map(b"".join) | st.binary(max_size=200)


def summary(events: list[object]) -> list[object]:
    """Events with the pieces of each body joined."""
    joined: list[object] = []
    text = b""
    for event in events:
        if not isinstance(event, tuple):
            if isinstance(event, MailFrom | RcptTo | Hello | Reset | Verify):
                joined.append(event)
            continue
        text += event[1]
        if event[2]:
            joined.append((text if event[3] is None else b"", event[3]))
            text = b""
    return joined


@settings(max_examples=300)
@given(inputs, st.lists(st.integers(0, 400), max_size=8))
def test_any_cut_gives_the_same(data: bytes, cuts: list[int]) -> None:
    whole = core()
    out, events = drive(whole, data)
    pieces = core()
    edges = sorted({min(each, len(data)) for each in cuts} | {0, len(data)})
    other_out, other_events = b"", []
    for start, end in zip(edges, edges[1:], strict=False):
        more, those = drive(pieces, data[start:end])
        other_out += more
        other_events += those
    assert other_out == out
    assert summary(other_events) == summary(events)
    assert (pieces.closing, pieces.errors, pieces.sender) == (whole.closing, whole.errors, whole.sender)


@settings(max_examples=300)
@given(inputs)
def test_one_reply_per_command_and_no_message_without_its_end(data: bytes) -> None:
    assume(b"BDAT" not in data.upper())  # a chunk that is no message's is answered behind it: the fuzzer of the server counts these
    protocol = core(max_errors=0)
    out, events = drive(protocol, b"EHLO x.example\r\n" + data)
    ended = sum(isinstance(event, tuple) and event[2] for event in events)
    assert ended <= data.count(b".\r\n")
    finals = [line for line in out.split(b"\r\n")[:-1] if line[3:4] == b" "]
    bodies = sum(not isinstance(event, tuple) for event in events)
    assert len(finals) == bodies + ended
    assert all(line[:3].isdigit() for line in finals)
