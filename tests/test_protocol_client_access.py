"""The client's protocol before mail: greeting, replies, hello, TLS, AUTH, XFORWARD and XCLIENT, in any cut."""

from __future__ import annotations

import base64

import pytest

from fastsmtp import EnhancedCode, Reply, SMTPError, limits
from fastsmtp.errors import LineTooLong, ProtocolError, UnexpectedEOF
from fastsmtp.protocol.client import ClientProtocol
from fastsmtp.protocol.replies import ReplyReader
from fastsmtp.protocol.requests import parse_extensions
from fastsmtp.protocol.xforward import XClient, XForward
from fastsmtp.sasl import ClientBase, LoginClient, PlainClient, SASLError

from .client_support import ALL, ESMTP, NO, OK, greeted, steps, tell
from .dialogue import CUTS, cut


@pytest.fixture(params=CUTS)
def how(request: pytest.FixtureRequest) -> str:
    kind: str = request.param
    return kind


# Greeting and hello


def test_greeting_and_hello(how: str) -> None:
    protocol = ClientProtocol(hello_name="client.example")
    assert protocol.awaiting is protocol.greeting
    assert tell(protocol, b"220-mx.example\r\n220 ready\r\n", how) == [protocol.greeting]
    assert protocol.greeting.result() == Reply(220, EnhancedCode.NONE, "mx.example\nready")
    hello = protocol.hello()
    assert hello.sent and not hello.done and protocol.awaiting is hello
    with pytest.raises(RuntimeError):
        hello.result()
    assert tell(protocol, ESMTP % ALL, how) == [hello]
    assert hello.verb == protocol.hello_verb == "EHLO"
    assert protocol.server_name == "mx.example"
    assert protocol.extension("pipelining") == "" and protocol.extension("Size") == "1000"
    assert protocol.extension("ETRN") is None
    assert protocol.max_message_size == 1000
    assert protocol.auth_mechanisms == ("PLAIN", "LOGIN", "X-PROVE")
    assert protocol.supports_auth("login") and not protocol.supports_auth("LOG")
    assert dict(protocol.extensions)["HELP"] == ""
    assert protocol.max_recipients is None


@pytest.mark.parametrize("code", [500, 501, 502, 504, 550])
def test_helo_in_place_of_ehlo(code: int, how: str) -> None:
    protocol = ClientProtocol(hello_name="[192.0.2.1]")
    hello = protocol.hello()
    tell(protocol, b"220 x\r\n", how)
    assert tell(protocol, b"%d no\r\n" % code, how) == []
    assert protocol.data_to_send() == b"EHLO [192.0.2.1]\r\nHELO [192.0.2.1]\r\n"
    assert tell(protocol, b"250-mx.example\r\n250 PIPELINING\r\n", how) == [hello]
    assert hello.verb == protocol.hello_verb == "HELO" and hello.result().code == 250
    assert not protocol.extensions


@pytest.mark.parametrize("reply", [b"554 go away\r\n", b"450 later\r\n", b"535 first say who\r\n"])
def test_ehlo_refused_for_another_reason(reply: bytes) -> None:
    protocol = ClientProtocol()
    hello = protocol.hello()
    assert tell(protocol, b"220 x\r\n") == [protocol.greeting]
    assert tell(protocol, reply) == [hello]
    assert protocol.hello_verb == "" and not protocol.closing
    with pytest.raises(SMTPError):
        hello.result()
    with pytest.raises(RuntimeError, match="hello"):
        protocol.mail("a@b")
    assert protocol.data_to_send() == b"EHLO localhost\r\n"


def test_helo_refused_too_and_lmtp_has_no_other() -> None:
    protocol = ClientProtocol()
    hello = protocol.hello()
    tell(protocol, b"220 x\r\n")
    tell(protocol, b"500 what\r\n")
    assert tell(protocol, b"501 no\r\n") == [hello]
    assert hello.reply == Reply(501, EnhancedCode.NONE, "no")
    protocol = ClientProtocol(lmtp=True)
    hello = protocol.hello()
    tell(protocol, b"220 x\r\n")
    assert tell(protocol, b"500 what\r\n") == [hello]
    assert protocol.data_to_send() == b"LHLO localhost\r\n"


def test_421_to_ehlo_is_the_end(how: str) -> None:
    protocol = ClientProtocol()
    hello = protocol.hello()
    tell(protocol, b"220 x\r\n", how)
    assert tell(protocol, b"421 4.3.2 later\r\n", how) == [hello]
    assert protocol.closing and protocol.refusal is hello.reply
    with pytest.raises(SMTPError) as caught:
        protocol.noop()
    assert caught.value.code == 421 and caught.value.temporary


def test_a_refused_second_hello_changes_nothing() -> None:
    protocol = greeted()
    protocol.hello()
    tell(protocol, b"550 no\r\n")
    tell(protocol, b"550 no\r\n")
    assert protocol.hello_verb == "EHLO" and protocol.extension("DSN") == ""


def test_turned_away(how: str) -> None:
    protocol = ClientProtocol()
    hello = protocol.hello()
    events = tell(protocol, b"554 no mail here\r\n", how)
    assert events == [protocol.greeting, hello]
    assert hello.done and not hello.sent and hello.reply is protocol.greeting.reply
    with pytest.raises(SMTPError) as caught:
        protocol.hello()
    assert caught.value.code == 554
    last = protocol.quit()
    assert protocol.data_to_send() == b"QUIT\r\n"
    assert tell(protocol, b"221 bye\r\n", how) == [last]
    assert protocol.closing


def test_a_greeting_of_421() -> None:
    protocol = ClientProtocol()
    assert tell(protocol, b"421 full\r\n") == [protocol.greeting]
    assert protocol.closing
    with pytest.raises(SMTPError):
        protocol.quit()


@pytest.mark.parametrize(
    ("lines", "known"),
    [
        ("x\nSIZE", {"SIZE": ""}),
        ("x\nsize 5 6 \n 8bitMIME", {"SIZE": "5 6", "8BITMIME": ""}),
        ("x\nAUTH=LOGIN\nauth  PLAIN login", {"AUTH": "LOGIN PLAIN login"}),
        ("x\nAUTH=LOGIN PLAIN", {"AUTH": "LOGIN PLAIN"}),
        ("x\n\n-X\nÄ\nX_Y\nX-Y", {"X-Y": ""}),
        ("SIZE", {}),
    ],
)
def test_extension_lines(lines: str, known: dict[str, str]) -> None:
    assert parse_extensions(lines) == known


@pytest.mark.parametrize(
    ("size", "number"),
    [(b"SIZE 0", None), (b"SIZE", None), (b"SIZE x", None), (b"SIZE 9", 9), (b"SIZE " + b"9" * 21, None)],
)
def test_sizes(size: bytes, number: int | None) -> None:
    assert greeted(size).max_message_size == number


def test_limits() -> None:
    assert greeted(b"LIMITS MAILMAX=5 rcptmax=10").max_recipients == 10
    assert greeted(b"LIMITS RCPTMAX=x").max_recipients is None
    assert greeted(b"LIMITS").max_recipients is None


# Replies


@pytest.mark.parametrize(
    ("wire", "reply"),
    [
        (b"250 ok\r\n", Reply(250, message="ok")),
        (b"250\r\n", Reply(250)),
        (b"250 \r\n", Reply(250)),
        (b"250-\r\n250\r\n", Reply(250, message="\n")),
        (b"250 2.1.5 ok\r\n", Reply(250, EnhancedCode(2, 1, 5), "ok")),
        (b"550 5.1.1\r\n", Reply(550, EnhancedCode(5, 1, 1))),
        (
            b"550-5.1.1 a\r\n550-5.1.1  b\r\n550-5.1.1\r\n550 5.1.10 c\r\n",
            Reply(550, EnhancedCode(5, 1, 1), "a\n b\n\n5.1.10 c"),
        ),
        (b"550 4.1.1 other class\r\n", Reply(550, message="4.1.1 other class")),
        (b"550 5.1 short\r\n", Reply(550, message="5.1 short")),
        (b"354 3.0.0 go\r\n", Reply(354, message="3.0.0 go")),
        ("250 grüß\r\n".encode(), Reply(250, message="grüß")),
        (b"250 \xff\xc3\r\n", Reply(250, message="\\xff\\xc3")),
        (b"250 \x1b[1m\0\r\t\x7f\xe2\x80\xa8\xc2\x85\r\n", Reply(250, message="\\x1b[1m\\x00\\r\t\\x7f\\u2028\\x85")),
    ],
)
@pytest.mark.parametrize("kind", CUTS)
def test_replies(wire: bytes, reply: Reply, kind: str) -> None:
    reader = ReplyReader()
    found: list[Reply] = []
    for piece in cut(wire * 2, kind):
        reader.feed(piece)
        while (each := reader.next_reply()) is not None:
            found.append(each)
    assert found == [reply, reply]
    assert reader.buffered == 0


def test_replies_without_enhanced_codes() -> None:
    reader = ReplyReader()
    reader.feed(b"220 2.0.0 mx\r\n")
    assert reader.next_reply(enhanced=False) == Reply(220, EnhancedCode.NONE, "2.0.0 mx")


@pytest.mark.parametrize(
    ("wire", "error", "words"),
    [
        (b"250 ok\n", ProtocolError, "CR LF"),
        (b"\r\n", ProtocolError, "not a reply"),
        (b"hello\r\n", ProtocolError, "not a reply"),
        (b"25 ok\r\n", ProtocolError, "not a reply"),
        (b"2500 ok\r\n", ProtocolError, "not a reply"),
        (b"250\tok\r\n", ProtocolError, "not a reply"),
        (b"250\rok\r\n", ProtocolError, "not a reply"),
        (b"150 ok\r\n", ProtocolError, "not a reply"),
        (b"600 ok\r\n", ProtocolError, "not a reply"),
        ("25² ok\r\n".encode(), ProtocolError, "not a reply"),
        (b"250-a\r\n251 b\r\n", ProtocolError, "more than one code"),
        (b"250-a\r\n550-b\r\n", ProtocolError, "more than one code"),
        (b"250-a\r\nb\r\n", ProtocolError, "not a reply"),
        (b"250 " + b"x" * 4 * limits.REPLY_LINE, LineTooLong, "too long"),
        (b"250-x\r\n" * limits.REPLY_LINES, LineTooLong, "too many lines"),
        ((b"250-" + b"x" * 2000 + b"\r\n") * 40, LineTooLong, "too long"),
    ],
)
@pytest.mark.parametrize("kind", CUTS)
def test_what_is_no_reply(wire: bytes, error: type[ProtocolError], words: str, kind: str) -> None:
    protocol = ClientProtocol()
    with pytest.raises(error, match=words):
        tell(protocol, wire, kind)
    assert protocol.closing
    assert tell(protocol, b"220 x\r\n") == []
    with pytest.raises(RuntimeError, match="closing"):
        protocol.hello()
    with pytest.raises(RuntimeError, match="closing"):
        protocol.quit()


def test_the_longest_replies() -> None:
    reader = ReplyReader()
    reader.feed(b"250-x\r\n" * (limits.REPLY_LINES - 1) + b"250 x\r\n")
    assert reader.next_reply() is not None
    reader.feed(b"250 " + b"x" * (4 * limits.REPLY_LINE - 6) + b"\r\n")
    assert reader.next_reply() is not None
    reader.challenges = True
    reader.feed(b"334 " + b"x" * limits.AUTH_LINE + b"\r\n")
    assert reader.next_reply() is not None


def test_unsolicited_replies(how: str) -> None:
    protocol = greeted()
    with pytest.raises(ProtocolError, match="nothing asked"):
        tell(protocol, OK, how)
    assert protocol.closing


def test_what_came_before_it_was_asked_for_is_no_answer() -> None:
    protocol = ClientProtocol()
    protocol.receive_data(b"220 x\r\n250 evil\r\n")
    assert protocol.next_event() is protocol.greeting
    hello = protocol.hello()
    assert protocol.data_to_send() == b""
    with pytest.raises(ProtocolError, match="nothing asked"):
        protocol.next_event()
    assert not hello.done and not hello.sent


def test_half_a_reply_before_it_was_asked_for() -> None:
    protocol = greeted()
    assert tell(protocol, b"421 ") == []
    noop = protocol.noop()
    assert protocol.data_to_send() == b"" and not noop.sent
    assert tell(protocol, b"bye\r\n") == [noop]
    assert protocol.closing and noop.reply == Reply(421, message="bye")


def test_an_unsolicited_421(how: str) -> None:
    protocol = greeted()
    assert tell(protocol, b"421 4.4.2 idle for too long\r\n250 never read\r\n", how) == []
    assert protocol.closing and protocol.refusal == Reply(421, EnhancedCode(4, 4, 2), "idle for too long")
    assert protocol.data_to_send() == b""


def test_replies_of_the_wrong_class() -> None:
    for ask in (ClientProtocol.noop, ClientProtocol.reset, ClientProtocol.start_tls, ClientProtocol.hello):
        protocol = greeted()
        ask(protocol)
        with pytest.raises(ProtocolError, match="wrong class"):
            tell(protocol, b"354 go\r\n")
    protocol = greeted()
    protocol.transaction("a@b", ["c@d"])
    with pytest.raises(ProtocolError, match="wrong class"):
        tell(protocol, OK + OK + b"250 ok\r\n")


def test_the_end_of_the_connection() -> None:
    protocol = greeted()
    protocol.receive_eof()
    assert protocol.closing
    protocol.receive_eof()
    protocol = greeted()
    protocol.noop()
    with pytest.raises(UnexpectedEOF):
        protocol.receive_eof()
    protocol = greeted()
    protocol.quit()
    protocol.receive_eof()
    assert protocol.closing
    protocol = greeted()
    tell(protocol, b"42")
    with pytest.raises(UnexpectedEOF):
        protocol.receive_eof()


# TLS


def test_starttls(how: str) -> None:
    protocol = greeted()
    protocol.data_to_send()
    start = protocol.start_tls()
    assert protocol.data_to_send() == b"STARTTLS\r\n"
    with pytest.raises(RuntimeError, match="STARTTLS"):
        protocol.noop()
    assert tell(protocol, b"220 2.0.0 go\r\n", how) == [start]
    with pytest.raises(RuntimeError, match="TLS"):
        protocol.hello()
    protocol.begin_tls()
    assert protocol.tls and not protocol.extensions and protocol.hello_verb == ""
    with pytest.raises(RuntimeError, match="hello"):
        protocol.mail("a@b")
    protocol.hello()
    assert protocol.data_to_send() == b"EHLO client.example\r\n"
    tell(protocol, ESMTP % b"STARTTLS", how)
    with pytest.raises(RuntimeError, match="already"):
        protocol.start_tls()


def test_octets_behind_starttls(how: str) -> None:
    for evil in (b"250 evil\r\n", b"x", b"\r"):
        protocol = greeted()
        protocol.start_tls()
        with pytest.raises(ProtocolError, match="plaintext"):
            tell(protocol, b"220 go\r\n" + evil, how)
        assert protocol.closing
        with pytest.raises(RuntimeError):
            protocol.hello()


def test_starttls_refused() -> None:
    protocol = greeted()
    start = protocol.start_tls()
    assert tell(protocol, b"454 4.7.0 later\r\n") == [start]
    with pytest.raises(SMTPError):
        start.result()
    with pytest.raises(RuntimeError, match="not accepted"):
        protocol.begin_tls()
    assert protocol.extension("STARTTLS") == "" and not protocol.tls
    protocol.noop()


# AUTH


class Prove(ClientBase):
    """A mechanism whose server proves itself at the end."""

    name = "X-PROVE"

    def __init__(self, initial: bytes | None = b"", last: bytes = b"proof") -> None:
        self.proved = False
        self._initial = initial
        self._last = last

    @property
    def complete(self) -> bool:
        return self.proved

    def initial(self) -> bytes | None:
        return self._initial

    def respond(self, challenge: bytes) -> bytes:
        if challenge == self._last:
            self.proved = True
            return b""
        if challenge == b"bad":
            raise SASLError("no")
        return challenge[::-1]


def said(octets: bytes) -> bytes:
    return b"334 " + base64.b64encode(octets) + b"\r\n"


def test_auth_with_an_initial_response(how: str) -> None:
    protocol = greeted()
    protocol.data_to_send()
    auth = protocol.auth(PlainClient("joe", "secret"))
    assert protocol.data_to_send() == b"AUTH PLAIN " + base64.b64encode(b"\0joe\0secret") + b"\r\n"
    assert tell(protocol, b"235 2.7.0 welcome\r\n", how) == [auth]
    assert auth.result() == Reply(235, EnhancedCode(2, 7, 0), "welcome")
    assert protocol.authenticated
    with pytest.raises(RuntimeError, match="already"):
        protocol.auth(PlainClient("joe", "secret"))


def test_auth_with_challenges(how: str) -> None:
    protocol = greeted()
    protocol.data_to_send()
    protocol.auth(LoginClient("joe", "secret"))
    assert list(steps(protocol, [said(b"User:"), said(b"Pass:"), b"235 ok\r\n"], how)) == [
        b"AUTH LOGIN\r\n",
        base64.b64encode(b"joe") + b"\r\n",
        base64.b64encode(b"secret") + b"\r\n",
        b"",
    ]
    assert protocol.authenticated


def test_auth_empty_initial_response_and_proof(how: str) -> None:
    protocol = greeted()
    protocol.data_to_send()
    auth = protocol.auth(Prove())
    assert list(steps(protocol, [said(b"abc"), b"334 \r\n", said(b"proof"), b"235 ok\r\n"], how)) == [
        b"AUTH X-PROVE =\r\n",
        base64.b64encode(b"cba") + b"\r\n",
        b"\r\n",
        b"\r\n",
        b"",
    ]
    assert auth.result().code == 235


def test_auth_with_a_long_initial_response() -> None:
    protocol = greeted()
    protocol.data_to_send()
    long = b"x" * 1000
    protocol.auth(Prove(long))
    assert list(steps(protocol, [b"334\r\n", said(b"proof"), b"235 ok\r\n"])) == [
        b"AUTH X-PROVE\r\n",
        base64.b64encode(long) + b"\r\n",
        b"\r\n",
        b"",
    ]


@pytest.mark.parametrize("challenge", [b"334 !!!\r\n", "334 ä\r\n".encode(), said(b"bad"), b"334-QQ==\r\n334 QQ==\r\n"])
def test_auth_that_cannot_go_on(challenge: bytes, how: str) -> None:
    protocol = greeted()
    auth = protocol.auth(Prove())
    protocol.data_to_send()
    assert tell(protocol, challenge, how) == []
    assert protocol.data_to_send() == b"*\r\n"
    assert tell(protocol, b"501 5.7.0 cancelled\r\n", how) == [auth]
    assert isinstance(auth.error, SASLError) and auth.reply is not None and auth.reply.code == 501
    with pytest.raises(SASLError):
        auth.result()
    assert not protocol.closing and not protocol.authenticated
    protocol.noop()


def test_auth_with_a_response_that_is_too_long() -> None:
    protocol = greeted()
    protocol.auth(Prove(b"x" * limits.AUTH_LINE))
    protocol.data_to_send()
    tell(protocol, b"334 \r\n")
    assert protocol.data_to_send() == b"*\r\n"


@pytest.mark.parametrize("challenges", [b"", said(b"bad")])
def test_auth_granted_without_proof(challenges: bytes, how: str) -> None:
    protocol = greeted()
    auth = protocol.auth(Prove())
    tell(protocol, challenges, how)
    assert tell(protocol, b"235 2.7.0 welcome\r\n", how) == [auth]
    assert protocol.closing and not protocol.authenticated
    with pytest.raises(SASLError):
        auth.result()


def test_challenges_without_end() -> None:
    protocol = greeted()
    protocol.auth(PlainClient("joe", "secret"))
    tell(protocol, said(b"more?"))
    with pytest.raises(ProtocolError, match="after the end"):
        tell(protocol, said(b"more?"))


def test_auth_refused() -> None:
    protocol = greeted()
    auth = protocol.auth(PlainClient("joe", "secret"))
    assert tell(protocol, b"535 5.7.8 no\r\n") == [auth]
    with pytest.raises(SMTPError, match="535"):
        auth.result()
    protocol.auth(LoginClient("joe", "secret"))


def test_bad_mechanism_names() -> None:
    class Bad(Prove):
        name = "X Y"

    class Unlisted(Prove):
        name = "X\r\nY"

    class Odd(Prove):
        name = "X=Y"

    protocol = greeted(b"AUTH PLAIN X=Y")
    for mechanism in (Bad(), Unlisted(), Odd()):
        with pytest.raises(ProtocolError):
            protocol.auth(mechanism)


# XFORWARD, XCLIENT and the rest


def test_xforward(how: str) -> None:
    protocol = greeted(b"XFORWARD NAME ADDR")
    protocol.data_to_send()
    forward = protocol.xforward(XForward(name="x" * 250, addr="192.0.2.1"))
    assert protocol.data_to_send() == b"XFORWARD NAME=" + b"x" * 250 + b" ADDR=192.0.2.1\r\n"
    assert tell(protocol, OK, how) == [forward]


def test_xforward_in_two_lines(how: str) -> None:
    protocol = greeted(b"XFORWARD NAME HELO IDENT")
    protocol.data_to_send()
    name = b"x" * 200
    forward = protocol.xforward(XForward(name=name.decode(), helo=name.decode(), ident=name.decode()))
    assert list(steps(protocol, [OK, OK], how)) == [
        b"XFORWARD NAME=" + name + b" HELO=" + name + b"\r\n",
        b"XFORWARD IDENT=" + name + b"\r\n",
        b"",
    ]
    assert forward.done
    forward = protocol.xforward(XForward(name=name.decode(), helo=name.decode(), ident=name.decode()))
    assert tell(protocol, b"501 no\r\n", how) == [forward]


def test_xclient(how: str) -> None:
    protocol = greeted(b"XCLIENT NAME ADDR\r\n250-PIPELINING")
    protocol.data_to_send()
    client = protocol.xclient(XClient(addr="192.0.2.1"))
    assert protocol.data_to_send() == b"XCLIENT NAME=[UNAVAILABLE] ADDR=192.0.2.1\r\n"
    assert tell(protocol, b"220 mx.example 2.0.0 again\r\n", how) == [client]
    assert client.result() == Reply(220, EnhancedCode.NONE, "mx.example 2.0.0 again")
    assert not protocol.extensions and protocol.hello_verb == ""
    protocol.hello()
    assert protocol.data_to_send() == b"EHLO client.example\r\n"


def test_reset_before_what_is_refused_in_a_transaction() -> None:
    protocol = greeted(b"PIPELINING\r\n250-XFORWARD ADDR")
    protocol.transaction("a@b", ["c@d"])
    tell(protocol, OK + NO + NO)
    protocol.data_to_send()
    protocol.xforward(XForward())
    assert protocol.data_to_send() == b"RSET\r\nXFORWARD ADDR=[UNAVAILABLE]\r\n"


def test_the_rest() -> None:
    protocol = greeted()
    protocol.data_to_send()
    commands = [
        protocol.noop(),
        protocol.verify("joe"),
        protocol.verify("jürgen"),
        protocol.expand("list"),
        protocol.help(),
        protocol.help("MAIL"),
        protocol.command("etrn", "#queue"),
        protocol.quit(),
    ]
    replies = [OK, b"252 try\r\n", OK, OK, b"214 x\r\n", b"214 x\r\n", b"458 no\r\n", b"221 2.0.0 bye\r\n"]
    assert list(steps(protocol, replies)) == [
        b"NOOP\r\n",
        b"VRFY joe\r\n",
        "VRFY jürgen SMTPUTF8\r\n".encode(),
        b"EXPN list\r\n",
        b"HELP\r\n",
        b"HELP MAIL\r\n",
        b"ETRN #queue\r\n",
        b"QUIT\r\n",
        b"",
    ]
    assert all(command.done for command in commands)
    assert protocol.closing
    with pytest.raises(RuntimeError, match="closing"):
        protocol.noop()


def test_trace_has_no_secrets() -> None:
    lines: list[tuple[str, bytes]] = []
    protocol = ClientProtocol()
    protocol.trace = lambda side, line: lines.append((side, line))
    protocol.hello()
    tell(protocol, b"220 x\r\n")
    tell(protocol, b"250-x\r\n250 AUTH PLAIN LOGIN\r\n")
    protocol.auth(LoginClient("joe", "secret"))
    for reply in (said(b"User:"), said(b"Pass:"), b"535 5.7.8 no\r\n"):
        tell(protocol, reply)
    protocol.auth(PlainClient("joe", "secret"))
    assert lines == [
        ("S", b"220 x\r\n"),
        ("C", b"EHLO localhost\r\n"),
        ("S", b"250-x\r\n250 AUTH PLAIN LOGIN\r\n"),
        ("C", b"AUTH LOGIN ***\r\n"),
        ("S", b"334 ***\r\n"),
        ("C", b"***\r\n"),
        ("S", b"334 ***\r\n"),
        ("C", b"***\r\n"),
        ("S", b"535 5.7.8 no\r\n"),
        ("C", b"AUTH PLAIN ***\r\n"),
    ]
