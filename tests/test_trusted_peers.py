"""PROXY, XFORWARD and XCLIENT through protocol and shell: who may say it, what comes of it; and EXPN and ETRN by hooks."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
import re
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
import trustme

from fastsmtp import (
    Conn,
    ConnectionState,
    DataContext,
    DataReader,
    DefaultBackend,
    DefaultSession,
    EnhancedCode,
    MailParams,
    RcptParams,
    Reply,
    Server,
    ServerOptions,
    SMTPError,
    limits,
)
from fastsmtp.delivery import Maildir, MaildirBackend
from fastsmtp.extensions import Offer
from fastsmtp.observer import Observer
from fastsmtp.protocol import ServerProfile, ServerProtocol
from fastsmtp.protocol.proxy import TLV_AUTHORITY, TLV_SSL, encode_proxy_v1, encode_proxy_v2
from fastsmtp.protocol.xforward import XForward

from .dialogue import CUTS, cut, load
from .loops import Runner
from .test_dialogues import compare
from .test_faults import Clock, Wire, conns, until
from .test_shell import Client

OTHERS = ["203.0.113.0/24"]  # nobody of these tests comes from there
LOCAL = ["127.0.0.0/8"]
CLIENT, SERVER = ("192.0.2.9", 4711), ("198.51.100.1", 25)
HEADER = encode_proxy_v1(CLIENT, SERVER)
XFORWARD_LINE = "250-XFORWARD NAME ADDR PORT PROTO HELO IDENT SOURCE"
XCLIENT_LINE = "250-XCLIENT NAME ADDR PORT PROTO HELO LOGIN DESTADDR DESTPORT"
GREETING = "220 localhost ESMTP ready"
NOT_AUTHORIZED = "550 5.7.1 Not authorized"
NOT_IMPLEMENTED = "502 5.5.1 Command not implemented"


class Peer(Client):
    """A client that reads whole replies; what it says first goes out before it reads anything."""

    def __init__(self, server: Server, first: bytes = b"", path: str = "") -> None:
        super().__init__(server)
        self._first = first
        self._path = path

    async def __aenter__(self) -> Peer:
        if self._path:
            self.reader, self.writer = await asyncio.open_unix_connection(self._path)
        else:
            await super().__aenter__()
        self.writer.write(self._first)
        return self

    async def reply(self) -> list[str]:
        lines = [await self.line()]
        while lines[-1][3:4] == "-":
            lines.append(await self.line())
        return lines

    async def say(self, *commands: str) -> list[str]:
        """The reply to the last of them; those before are accepted."""
        for command in commands[:-1]:
            reply = await self.say(command)
            assert reply[-1][:1] in "23", (command, reply)
        self.writer.write(commands[-1].encode() + b"\r\n")
        return await self.reply()

    async def silence(self) -> None:
        """The server closes without a word."""
        with contextlib.suppress(ConnectionError):
            assert await self.reader.read() == b""


class Recording(DefaultSession):
    """Keeps what it is told; `log` is the test's."""

    def __init__(self, log: list[Any]) -> None:
        super().__init__()
        self.log = log
        self.conn: Conn

    def connect(self, conn: Conn) -> Reply | None:
        self.conn = conn
        self.log.append(("connect", conn.state.remote_addr))
        return None

    def mail(self, sender: str, params: MailParams) -> None:
        self.log.append(("mail", self.conn.xforward))

    def rcpt(self, recipient: str, params: RcptParams) -> None:
        self.log.append(("rcpt", self.conn.xforward))

    async def data(self, reader: DataReader, context: DataContext) -> None:
        await reader.read()
        self.log.append(("data", context.xforward))

    def logout(self) -> None:
        self.log.append(("logout",))


def backend(log: list[Any] | None = None) -> DefaultBackend:
    log = [] if log is None else log
    return DefaultBackend(lambda: Recording(log))


@contextlib.asynccontextmanager
async def serving(log: list[Any] | None = None, **options: Any) -> AsyncIterator[Server]:
    async with Server(backend(log), addr="127.0.0.1:0", **options) as server:
        yield server


@contextlib.asynccontextmanager
async def greeted(server: Server, first: bytes = b"") -> AsyncIterator[Peer]:
    async with Peer(server, first) as peer:
        assert await peer.reply() == [GREETING]
        yield peer


def only(server: Server) -> Conn:
    (conn,) = conns(server)
    return conn


MESSAGE = ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "DATA", "x\r\n.")

# Dialogues of a trusted peer.  The files in tests/dialogues are run without trust, so these stand here.

EHLO = """\
C: EHLO relay.example
S: 250-localhost
S: 250-PIPELINING
S: 250-8BITMIME
S: 250-SIZE 33554432
S: 250-SMTPUTF8
S: 250-CHUNKING
S: 250-BINARYMIME
"""
XFORWARD_DIALOGUE = f"""\
@allow_xforward true
@max_errors 100
S: 220 localhost ESMTP ready
C: XFORWARD NAME=client.example
S: 503 5.5.1 Say hello first
{EHLO}S: {XFORWARD_LINE}
S: 250 ENHANCEDSTATUSCODES
C: XFORWARD NAME=spike.porcupine.org ADDR=168.100.189.2 PROTO=ESMTP\x20
S: 250 2.0.0 OK
C: xforward helo=spike.porcupine.org
S: 250 2.0.0 OK
C: XFORWARD NAME=[UNAVAILABLE] ADDR=[UNAVAILABLE] PORT=[TEMPUNAVAIL] PROTO=[unavailable] HELO=[TempUnavail]
S: 250 2.0.0 OK
C: XFORWARD ADDR=IPV6:2001:db8::1 PORT=25 IDENT=4D2+2Bx SOURCE=LOCAL
S: 250 2.0.0 OK
C: XFORWARD
S: 501 5.5.4 Bad attribute: no attributes
C: XFORWARD\x20\x20
S: 501 5.5.4 Bad attribute: no attributes
C: XFORWARD NAME
S: 501 5.5.4 Bad attribute: attribute without a value
C: XFORWARD NAME=
S: 501 5.5.4 Bad attribute: attribute without a value
C: XFORWARD LOGIN=me
S: 501 5.5.4 Bad attribute: unknown attribute
C: XFORWARD NAME=a NAME=b
S: 501 5.5.4 Bad attribute: attribute repeated
C: XFORWARD NAME=a+0D+0AQUIT
S: 501 5.5.4 Bad attribute: bad name
C: XFORWARD HELO=a+00b
S: 501 5.5.4 Bad attribute: bad name
C: XFORWARD NAME=a+2
S: 501 5.5.4 Bad attribute: malformed xtext
C: XFORWARD NAME=a+2g
S: 501 5.5.4 Bad attribute: malformed xtext
C: XFORWARD ADDR=2001:db8::1
S: 501 5.5.4 Bad attribute: bad address
C: XFORWARD ADDR=192.0.2.256
S: 501 5.5.4 Bad attribute: bad address
C: XFORWARD PORT=65536
S: 501 5.5.4 Bad attribute: bad port
C: XFORWARD PROTO=+20
S: 501 5.5.4 Bad attribute: bad protocol
C: XFORWARD SOURCE=ELSEWHERE
S: 501 5.5.4 Bad attribute: bad source
C: XFORWARD IDENT={"x" * 256}
S: 501 5.5.4 Bad attribute: value too long
C+ XFORWARD NAME=a\\x00b\\r\\n
S: 500 5.5.2...
C: MAIL FROM:<a@b.example>
S: 250 2.1.0 Sender OK
C: XFORWARD NAME=client.example
S: 503 5.5.1 Bad sequence of commands
C: RCPT TO:<c@d.example>
C: XFORWARD NAME=client.example
C: DATA
S: 250 2.1.5 Recipient OK
S: 503 5.5.1 Bad sequence of commands
S: 354...
C: x
C: .
C: XFORWARD NAME=client.example
C: QUIT
S: 250 2.0.0 Message accepted
S: 250 2.0.0 OK
S: 221 2.0.0 Bye
EOF
"""
XCLIENT_DIALOGUE = f"""\
@allow_xclient true
@max_errors 100
S: 220 localhost ESMTP ready
C: XCLIENT ADDR=192.0.2.9
S: 220 localhost ESMTP ready
C: MAIL FROM:<a@b.example>
S: 503 5.5.1 Say hello first
{EHLO}S: {XCLIENT_LINE}
S: 250 ENHANCEDSTATUSCODES
C: MAIL FROM:<a@b.example>
S: 250 2.1.0 Sender OK
C: XCLIENT NAME=client.example
S: 503 5.5.1 Bad sequence of commands
C: RSET
S: 250 2.0.0 OK
C: XCLIENT
S: 501 5.5.4 Bad attribute: no attributes
C: XCLIENT NAME
S: 501 5.5.4 Bad attribute: attribute without a value
C: XCLIENT IDENT=x
S: 501 5.5.4 Bad attribute: unknown attribute
C: XCLIENT PORT=1 port=2
S: 501 5.5.4 Bad attribute: attribute repeated
C: XCLIENT NAME=any!name
S: 501 5.5.4 Bad attribute: bad name
C: XCLIENT HELO=a+20b
S: 501 5.5.4 Bad attribute: bad name
C: XCLIENT LOGIN=a+0D+0Ab
S: 501 5.5.4 Bad attribute: bad login
C: XCLIENT LOGIN=a+0
S: 501 5.5.4 Bad attribute: malformed xtext
C: XCLIENT PROTO=QMQP
S: 501 5.5.4 Bad attribute: bad protocol
C: XCLIENT ADDR=[192.0.2.9]
S: 501 5.5.4 Bad attribute: bad address
C: XCLIENT DESTADDR=mx.example
S: 501 5.5.4 Bad attribute: bad address
C: XCLIENT DESTPORT=0
S: 501 5.5.4 Bad attribute: bad port
C: XCLIENT ADDR=192.0.2.9 PORT=0
S: 501 5.5.4 Bad attribute: bad port
C: MAIL FROM:<a@b.example>
S: 250 2.1.0 Sender OK
C: RSET
S: 250 2.0.0 OK
C: XCLIENT NAME=[UNAVAILABLE] ADDR=[TEMPUNAVAIL] PORT=[UNAVAILABLE] HELO=[UNAVAILABLE] LOGIN=[UNAVAILABLE]
S: 220 localhost ESMTP ready
C: XCLIENT NAME=client.example ADDR=IPV6:2001:db8::9 PORT=4711 PROTO=ESMTP HELO=[192.0.2.9]
S: 220 localhost ESMTP ready
C: XCLIENT LOGIN=j+C3+BCrgen DESTADDR=192.0.2.1 DESTPORT=587
C: HELO relay.example
C: MAIL FROM:<a@b.example>
S: 220 localhost ESMTP ready
S: 250 localhost
S: 250 2.1.0 Sender OK
"""
DIALOGUES = [pytest.param(XFORWARD_DIALOGUE, id="xforward"), pytest.param(XCLIENT_DIALOGUE, id="xclient")]


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("text", DIALOGUES)
def test_a_trusted_peers_dialogue_on_the_core(text: str, how: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "dialogue.txt").write_text(text, encoding="utf-8")
    dialogue = load(tmp_path / "dialogue.txt")
    options = ServerOptions(**dialogue.options)  # type: ignore[arg-type]
    core = ServerProtocol(ServerProfile(options))
    core.offer = Offer(options, xforward=bool(options.allow_xforward), xclient=bool(options.allow_xclient))
    core.greet()
    for step in dialogue.steps:
        out = b""
        for piece in cut(step.sent, how):
            core.receive_data(piece)
            while core.next_event() is not None:
                if core.awaiting_reply:
                    core.reply()
            out += core.data_to_send()
        compare(step.replies, (out + core.data_to_send()).decode().split("\r\n")[:-1])
        assert core.closing is step.closed


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("text", DIALOGUES)
def test_a_trusted_peers_dialogue_over_a_socket(run: Runner, text: str, how: str, tmp_path: pathlib.Path) -> None:
    (tmp_path / "dialogue.txt").write_text(text, encoding="utf-8")
    dialogue = load(tmp_path / "dialogue.txt")

    async def main() -> None:
        options: dict[str, Any] = dialogue.options
        async with serving(**options) as server, Peer(server) as peer:
            for step in dialogue.steps:
                for piece in cut(step.sent, how):
                    peer.writer.write(piece)
                    await asyncio.sleep(0)
                compare(step.replies, [await peer.line() for _ in step.replies])
                if step.closed:
                    await peer.silence()

    run(main)


# Who may say it


@pytest.mark.parametrize(
    ("option", "command", "line", "accepted"),
    [
        ("allow_xforward", "XFORWARD NAME=client.example", XFORWARD_LINE, "250 2.0.0 OK"),
        ("allow_xclient", "XCLIENT NAME=client.example", XCLIENT_LINE, GREETING),
    ],
)
@pytest.mark.parametrize(
    ("peers", "trusted", "refusal"),
    [
        (False, False, NOT_IMPLEMENTED),
        (True, True, ""),
        (LOCAL, True, ""),
        ([*OTHERS, "127.0.0.1"], True, ""),
        (OTHERS, False, NOT_AUTHORIZED),
        (["::1"], False, NOT_AUTHORIZED),
        (["unix"], False, NOT_AUTHORIZED),
    ],
)
def test_offered_and_taken_only_where_trusted(
    run: Runner, option: str, command: str, line: str, accepted: str, peers: Any, trusted: bool, refusal: str
) -> None:
    async def main() -> None:
        async with serving(**{option: peers}) as server, greeted(server) as peer:
            ehlo = await peer.say("EHLO relay.example")
            assert (line in ehlo) is trusted
            assert [each for each in ehlo if each[4:].startswith(("XFORWARD", "XCLIENT"))] == [line] * trusted
            if trusted:
                assert await peer.say(command) == [accepted]
                return
            for each in (command, command.split()[0]):  # nor does the syntax matter
                assert await peer.say(each) == [refusal]
            state, xforward = only(server).state, only(server).xforward
            assert (state.xclient, xforward, state.hostname) == (None, None, "relay.example")
            assert await peer.say("MAIL FROM:<a@b.example>") == ["250 2.1.0 Sender OK"]
            assert await peer.say(command) == [refusal]

    run(main)


def test_refused_attempts_are_counted_as_errors(run: Runner) -> None:
    async def main() -> None:
        async with serving(allow_xforward=OTHERS, allow_xclient=True, max_errors=4) as server, greeted(server) as peer:
            await peer.say("EHLO relay.example")
            assert await peer.say("XFORWARD NAME=client.example") == [NOT_AUTHORIZED]
            assert (await peer.say("XCLIENT NAME"))[0].startswith("501 ")
            assert await peer.say("XCLIENT NAME=client.example") == [GREETING]  # a new client has no new account
            assert await peer.say("XFORWARD NAME=client.example") == [NOT_AUTHORIZED]
            assert (await peer.say("XCLIENT ADDR=x"))[0].startswith("501 ")
            assert await peer.reply() == ["421 4.7.0 Too many errors"]
            await peer.silence()

    run(main)


@pytest.mark.parametrize("peers", [["unix"], True, LOCAL])
def test_unix_sockets_are_trusted_by_their_name(run: Runner, tmp_path: pathlib.Path, peers: Any) -> None:
    path = str(tmp_path / "smtp")
    trusted = peers is not LOCAL

    async def main() -> None:
        options: dict[str, Any] = {"allow_xforward": peers, "allow_xclient": peers}
        async with Server(backend(), addr="", unix_socket=path, **options) as server, Peer(server, path=path) as peer:
            await peer.reply()
            ehlo = await peer.say("EHLO relay.example")
            assert (XFORWARD_LINE in ehlo, XCLIENT_LINE in ehlo) == (trusted, trusted)
            expected = ["250 2.0.0 OK" if trusted else NOT_AUTHORIZED]
            assert await peer.say("XFORWARD NAME=client.example") == expected

    run(main)


def test_a_unix_socket_behind_a_proxy(run: Runner, tmp_path: pathlib.Path) -> None:
    """The proxy itself comes over a Unix socket."""
    path = str(tmp_path / "smtp")

    async def main() -> None:
        server = Server(backend(), addr="", unix_socket=path, proxy_from=["unix"], allow_xclient=["unix", "192.0.2.9"])
        async with server, Peer(server, HEADER, path=path) as peer:
            assert await peer.reply() == [GREETING]
            assert only(server).state.remote_addr == CLIENT
            assert XCLIENT_LINE in await peer.say("EHLO client.example")

    run(main)


# XFORWARD


def test_xforward_is_seen_by_the_session_for_one_message(run: Runner) -> None:
    log: list[Any] = []
    said = XForward(
        name="client.example",
        addr="2001:db8::9",
        proto="ESMTP",
        helo="we+ird",
        port=4711,
        ident="4D2",
        source="REMOTE",
    )

    async def main() -> None:
        async with serving(log, allow_xforward=True) as server, greeted(server) as peer:
            await peer.say("EHLO relay.example")
            await peer.say("XFORWARD NAME=client.example ADDR=IPV6:2001:DB8:0::9 PORT=4711 PROTO=esmtp")
            assert only(server).xforward == XForward(
                name="client.example", addr="2001:db8::9", port=4711, proto="ESMTP"
            )
            await peer.say("XFORWARD HELO=we+2Bird IDENT=4D2 SOURCE=remote")
            assert only(server).xforward == said
            # It is no matter of access: who the client is stays as it was.
            state = only(server).state
            assert (state.hostname, state.xclient, state.username) == ("relay.example", None, "")
            assert state.remote_addr == peer.writer.get_extra_info("sockname")
            assert await peer.say(*MESSAGE) == ["250 2.0.0 Message accepted"]
            assert only(server).xforward is None
            assert await peer.say(*MESSAGE) == ["250 2.0.0 Message accepted"]

    run(main)
    assert [each[1] for each in log if each[0] in ("mail", "rcpt", "data")] == [said] * 3 + [None] * 3


def test_xforward_again_replaces_what_it_names(run: Runner) -> None:
    async def main() -> None:
        async with serving(allow_xforward=True) as server, greeted(server) as peer:
            await peer.say("EHLO relay.example")
            await peer.say("XFORWARD NAME=first.example ADDR=192.0.2.1 HELO=[TEMPUNAVAIL]")
            await peer.say("XFORWARD NAME=[UNAVAILABLE] HELO=second.example PORT=[TEMPUNAVAIL]")
            assert only(server).xforward == XForward(
                addr="192.0.2.1", helo="second.example", tempunavail=frozenset({"PORT"})
            )
            # A malformed command changes nothing, whatever else stands in it.
            assert (await peer.say("XFORWARD ADDR=192.0.2.2 NAME=+"))[0].startswith("501 ")
            assert only(server).xforward == XForward(
                addr="192.0.2.1", helo="second.example", tempunavail=frozenset({"PORT"})
            )

    run(main)


@pytest.mark.parametrize("forgets", [("RSET",), ("EHLO relay.example",), MESSAGE, ("MAIL FROM:<a@b.example>", "RSET")])
def test_when_xforward_is_forgotten(run: Runner, forgets: tuple[str, ...]) -> None:
    async def main() -> None:
        async with serving(allow_xforward=True) as server, greeted(server) as peer:
            await peer.say("EHLO relay.example", "XFORWARD NAME=client.example", "NOOP")
            assert only(server).xforward == XForward(name="client.example")
            await peer.say(*forgets)
            assert only(server).xforward is None

    run(main)


def test_xforward_with_lmtp_and_chunks(run: Runner) -> None:
    log: list[Any] = []

    async def main() -> None:
        async with serving(log, allow_xforward=True, lmtp=True) as server, Peer(server) as peer:
            await peer.reply()
            assert XFORWARD_LINE in await peer.say("LHLO relay.example")
            envelope = ("XFORWARD NAME=client.example", "MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>")
            await peer.say(*envelope, "BDAT 3\r\nx")
            assert await peer.say("XFORWARD NAME=other.example") == ["503 5.5.1 Bad sequence of commands"]
            assert await peer.say("BDAT 0 LAST") == ["250 2.0.0 Message accepted"]

    run(main)
    assert [each[1] for each in log if each[0] == "data"] == [XForward(name="client.example")]


# XCLIENT


def test_xclient_takes_the_place_of_the_client(run: Runner) -> None:
    log: list[Any] = []

    async def main() -> None:
        async with serving(log, allow_xclient=True) as server, greeted(server) as peer:
            real = peer.writer.get_extra_info("sockname")
            await peer.say("EHLO relay.example")
            command = "XCLIENT NAME=client.example ADDR=192.0.2.9 PORT=4711 PROTO=ESMTP HELO=client.example LOGIN=a+2Bb"
            assert await peer.say(f"{command} DESTADDR=198.51.100.1 DESTPORT=587") == [GREETING]
            conn = only(server)
            state = conn.state
            assert state.remote_addr == conn.remote_addr == CLIENT
            assert state.local_addr == conn.local_addr == ("198.51.100.1", 587)
            assert (state.hostname, state.username) == ("client.example", "a+b")
            assert state.xclient is not None
            assert (state.xclient.name, state.xclient.proto) == ("client.example", "ESMTP")
            assert conn.peer_addr == real
            # What was said before is forgotten; what XCLIENT said is not, until EHLO says something else.
            assert await peer.say("MAIL FROM:<a@b.example>") == ["503 5.5.1 Say hello first"]
            assert XCLIENT_LINE in await peer.say("EHLO other.example")
            assert (conn.state.hostname, conn.state.protocol) == ("other.example", "ESMTP")
            assert await peer.say(*MESSAGE) == ["250 2.0.0 Message accepted"]
            assert await peer.say("XCLIENT ADDR=IPV6:2001:DB8::9 LOGIN=[UNAVAILABLE]") == [GREETING]
            state = conn.state
            assert (state.remote_addr, state.username) == (("2001:db8::9", 4711), "")
            assert state.local_addr == ("198.51.100.1", 587)  # what it does not name stays
            assert [each for each in log if each[0] in ("connect", "logout")] == [
                ("connect", real),
                ("logout",),
                ("connect", CLIENT),
                ("logout",),
                ("connect", ("2001:db8::9", 4711)),
            ]

    run(main)
    assert log[-1] == ("logout",)


@pytest.mark.parametrize("word", ["[UNAVAILABLE]", "[TEMPUNAVAIL]"])
def test_a_client_without_an_address_does_not_get_the_peers(run: Runner, word: str) -> None:
    """Else a session that relays for its neighbours would relay for everybody whom a neighbour does not know."""

    async def main() -> None:
        async with serving(allow_xclient=True) as server, greeted(server) as peer:
            real = peer.writer.get_extra_info("sockname")
            assert await peer.say("XCLIENT NAME=client.example") == [GREETING]
            assert only(server).state.remote_addr == real  # nothing was said of the address
            assert await peer.say(f"XCLIENT ADDR={word}") == [GREETING]
            assert only(server).state.remote_addr == ("", 0)
            assert await peer.say("XCLIENT PORT=25") == [GREETING]
            assert only(server).state.remote_addr == ("", 0)
            assert await peer.say("XCLIENT ADDR=192.0.2.9") == [GREETING]
            assert only(server).state.remote_addr == ("192.0.2.9", 25)

    run(main)


def test_rights_are_those_of_who_speaks(run: Runner) -> None:
    """What XCLIENT says neither gives a right nor takes one."""

    async def main() -> None:
        options: dict[str, Any] = {"allow_xclient": LOCAL, "allow_xforward": ["192.0.2.9"]}
        async with serving(**options) as server, greeted(server) as peer:
            for _ in range(2):
                ehlo = await peer.say("EHLO relay.example")
                assert XCLIENT_LINE in ehlo
                assert XFORWARD_LINE not in ehlo
                assert await peer.say("XFORWARD NAME=client.example") == [NOT_AUTHORIZED]
                assert await peer.say("XCLIENT ADDR=192.0.2.9") == [GREETING]

    run(main)


@pytest.mark.parametrize(
    ("refusal", "closes"), [(Reply(554, EnhancedCode(5, 7, 1), "Not you"), False), (Reply(421), True)]
)
@pytest.mark.parametrize("asynchronous", [False, True])
def test_the_new_session_may_refuse(run: Runner, refusal: Reply, closes: bool, asynchronous: bool) -> None:
    class Choosy(Recording):
        def connect(self, conn: Conn) -> Any:
            refused = refusal if conn.state.remote_addr == CLIENT else None

            async def later() -> Reply | None:
                await asyncio.sleep(0)
                return refused

            return later() if asynchronous else refused

    async def main() -> None:
        async with Server(DefaultBackend(lambda: Choosy([])), addr="127.0.0.1:0", allow_xclient=True) as server:
            async with greeted(server) as peer:
                assert await peer.say("XCLIENT ADDR=192.0.2.9 PORT=4711") == [str(refusal)]
                if closes:
                    await peer.silence()
                else:
                    assert await peer.say("EHLO relay.example") == ["503 5.5.1 Bad sequence of commands"]
                    assert await peer.say("XCLIENT ADDR=192.0.2.8") == ["503 5.5.1 Bad sequence of commands"]
                    assert await peer.say("QUIT") == ["221 2.0.0 Bye"]

    run(main)


class Users:
    """Anna may log in; a session is made when it is needed."""

    auth_mechanisms = ("PLAIN",)

    def __init__(self) -> None:
        self.logins: list[tuple[str, str]] = []

    def anonymous_login(self, state: ConnectionState) -> DefaultSession:
        self.logins.append(("anonymous", state.username))
        return DefaultSession()

    def login(self, state: ConnectionState, username: str, password: str) -> DefaultSession:
        self.logins.append(("login", username))
        return DefaultSession()


def test_xclient_forgets_a_login_and_may_say_another(run: Runner) -> None:
    users = Users()

    async def main() -> None:
        server = Server(users, addr="127.0.0.1:0", allow_xclient=True, allow_insecure_auth=True)
        async with server, greeted(server) as peer:
            login = "AUTH PLAIN AGFubmEAcHc="
            assert (await peer.say("EHLO relay.example", login))[0].startswith("235 ")
            assert only(server).state.username == "anna"
            assert await peer.say("XCLIENT ADDR=192.0.2.9") == [GREETING]
            assert only(server).state.username == ""
            assert (await peer.say("EHLO client.example", "MAIL FROM:<a@b.example>"))[0].startswith("250 ")
            assert await peer.say("RSET", "XCLIENT LOGIN=bert") == [GREETING]
            assert only(server).state.username == "bert"
            assert (await peer.say("EHLO client.example", "MAIL FROM:<a@b.example>"))[0].startswith("250 ")
            assert (await peer.say("RSET", login))[0].startswith("235 ")
            assert only(server).state.username == "anna"

    run(main)
    assert users.logins == [("login", "anna"), ("anonymous", ""), ("anonymous", "bert"), ("login", "anna")]


def test_the_new_session_decides_what_is_offered(run: Runner) -> None:
    class Changing(Recording):
        def offer(self, offer: Offer) -> Offer:
            return Offer(offer.options, xclient=offer.xclient, xforward=self.conn.state.remote_addr == CLIENT)

    async def main() -> None:
        async with Server(DefaultBackend(lambda: Changing([])), addr="127.0.0.1:0", allow_xclient=True) as server:
            async with greeted(server) as peer:
                assert XFORWARD_LINE not in await peer.say("EHLO relay.example")
                assert await peer.say("XCLIENT ADDR=192.0.2.9 PORT=4711") == [GREETING]
                assert XFORWARD_LINE in await peer.say("EHLO client.example")
                assert await peer.say("XCLIENT ADDR=192.0.2.8") == [GREETING]
                assert XFORWARD_LINE not in await peer.say("EHLO client.example")

    run(main)


# PROXY

TLS_TLV = struct.pack("!BI", 1, 0) + b"\x21\x00\x07TLSv1.3"
TLVS = [(TLV_AUTHORITY, b"mx.example"), (TLV_SSL, TLS_TLV)]
SIX = ("2001:db8::9", 4711), ("2001:db8::1", 25)
PEER, HERE = ("192.0.2.200", 999), ("192.0.2.2", 25)  # the proxy's own connection, in `Gated`

HEADERS = [
    pytest.param(HEADER, CLIENT, SERVER, id="v1"),
    pytest.param(encode_proxy_v1(*SIX), *SIX, id="v1-ipv6"),
    pytest.param(encode_proxy_v1(None, None), ("", 0), HERE, id="v1-unknown"),
    pytest.param(b"PROXY UNKNOWN 192.0.2.9 192.0.2.1 1 2\r\n", ("", 0), HERE, id="v1-unknown-ignored"),
    pytest.param(encode_proxy_v2(CLIENT, SERVER), CLIENT, SERVER, id="v2"),
    pytest.param(encode_proxy_v2(*SIX), *SIX, id="v2-ipv6"),
    pytest.param(encode_proxy_v2(CLIENT, SERVER, tlvs=TLVS), CLIENT, SERVER, id="v2-tlvs"),
    pytest.param(encode_proxy_v2(*SIX, tlvs=TLVS, checksum=True), *SIX, id="v2-checksum"),
    pytest.param(encode_proxy_v2(None, None), ("", 0), HERE, id="v2-unspecified"),
    pytest.param(encode_proxy_v2(None, None, command="LOCAL"), PEER, HERE, id="v2-local"),
    pytest.param(encode_proxy_v2("/run/client", "/run/server"), ("", 0), "/run/server", id="v2-unix"),
]
BAD_SUM = encode_proxy_v2(CLIENT, SERVER, checksum=True)
GARBAGE = [
    pytest.param(b"EHLO client.example\r\n", id="ehlo"),
    pytest.param(b"\r\n\r\nEHLO", id="half-a-signature"),
    pytest.param(b"\x16\x03\x01\x02\x00\x01", id="tls"),
    pytest.param(b"proxy TCP4 192.0.2.9 192.0.2.1 1 2\r\n", id="lower-case"),
    pytest.param(b"PROXY TCP4 192.0.2.9 192.0.2.1 1 2\n", id="bare-lf"),
    pytest.param(b"PROXY TCP4 192.0.2.9 192.0.2.1 1\r\n", id="field-missing"),
    pytest.param(b"PROXY TCP4 client.example 192.0.2.1 1 2\r\n", id="name"),
    pytest.param(b"PROXY UNKNOWN " + b"x" * 100, id="v1-too-long"),
    pytest.param(encode_proxy_v2(CLIENT, SERVER)[:14] + b"\xff\xff", id="v2-too-long"),
    pytest.param(encode_proxy_v2(CLIENT, SERVER)[:14] + b"\x00\x01\x00", id="v2-too-short"),
    pytest.param(encode_proxy_v2(CLIENT, SERVER, tlvs=[(TLV_SSL, b"")]), id="v2-tlv"),
    pytest.param(BAD_SUM[:-1] + bytes((BAD_SUM[-1] ^ 1,)), id="v2-checksum"),
]


class Gated(Wire):
    """A connection from `PEER` without a socket: what is fed goes to whichever protocol the connection has."""

    def __init__(self, server: Server) -> None:
        self.protocol: Any = None
        super().__init__(server)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": PEER, "sockname": HERE}.get(name, default)

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol

    def get_protocol(self) -> asyncio.BaseProtocol:
        protocol: asyncio.BaseProtocol = self.protocol or self.conn.protocol
        return protocol

    def feed(self, data: bytes) -> list[str]:
        self.writes.clear()
        if not self.closed:
            (self.protocol or self.conn).data_received(data)
        return self.taken()


def pieces(data: bytes, how: str) -> Iterator[bytes]:
    return cut(data, how) if how == "octets" else iter((data,))


@pytest.mark.parametrize("how", ["whole", "octets"])
@pytest.mark.parametrize(("header", "remote", "local"), HEADERS)
def test_the_header_says_who_the_client_is(run: Runner, header: bytes, remote: Any, local: Any, how: str) -> None:
    log: list[Any] = []

    async def main() -> None:
        async with serving(log, proxy_from=["192.0.2.200"]) as server:
            wire = Gated(server)
            assert wire.taken() == []  # the greeting waits for the header
            for piece in pieces(header[:-1], how):
                assert wire.feed(piece) == []
            assert log == []
            assert wire.feed(header[-1:] + b"EHLO client.example\r\nNO") == ["220", "250"]
            assert wire.feed(b"OP\r\n") == ["250"]
            state = wire.conn.state
            assert log == [("connect", remote)]
            assert (state.remote_addr, state.local_addr) == (remote, local)
            assert state.proxy is not None
            assert server.counters.proxy_failures == 0
            # A second header is a command like any other.
            assert wire.feed(HEADER) == ["500"]
            wire.close()

    run(main)


def test_what_else_the_header_says(run: Runner) -> None:
    async def main() -> None:
        header = encode_proxy_v2(CLIENT, SERVER, tlvs=TLVS, checksum=True)
        async with serving(proxy_from=True) as server, greeted(server, header):
            proxy = only(server).state.proxy
            assert proxy is not None
            assert proxy.tlv(TLV_AUTHORITY) == b"mx.example"
            assert proxy.tls is not None
            assert (proxy.tls.used, proxy.tls.version) == (True, "TLSv1.3")

    run(main)


@pytest.mark.parametrize("how", ["whole", "octets"])
@pytest.mark.parametrize("data", GARBAGE)
def test_garbage_closes_without_a_word(run: Runner, data: bytes, how: str, caplog: pytest.LogCaptureFixture) -> None:
    log: list[Any] = []
    caplog.set_level("INFO", "fastsmtp")

    async def main() -> None:
        async with serving(log, proxy_from=["192.0.2.200"]) as server:
            wire = Gated(server)
            for piece in pieces(data, how):
                assert wire.feed(piece) == []
            assert wire.closed
            await until(lambda: not server.counters.connections)
            assert (server.counters.connections_total, server.counters.proxy_failures) == (1, 1)

    run(main)
    assert log == []  # no session was asked for
    (record,) = caplog.records
    assert record.getMessage().startswith("not a PROXY header: ")


def test_garbage_over_a_socket(run: Runner) -> None:
    async def main() -> None:
        async with serving(proxy_from=True) as server:
            async with Peer(server, b"EHLO client.example\r\nQUIT\r\n") as peer:
                await peer.silence()
            assert server.counters.proxy_failures == 1
            async with greeted(server, HEADER) as peer:
                assert await peer.say("QUIT") == ["221 2.0.0 Bye"]

    run(main)


def test_whoever_leaves_at_the_gate(run: Runner) -> None:
    """As a health check does that only connects."""
    log: list[Any] = []

    async def main() -> None:
        async with serving(log, proxy_from=True) as server:
            for begin in (b"", HEADER[:9]):
                async with Peer(server, begin) as peer:
                    await until(lambda: server.counters.connections)
                    peer.writer.write_eof()
                    await peer.silence()
                await until(lambda: not server.counters.connections)
            assert server.counters.proxy_failures == 0

    run(main)
    assert log == []


def test_the_gate_has_a_deadline_that_single_octets_do_not_renew(run: Runner) -> None:
    async def main() -> None:
        async with serving(proxy_from=["192.0.2.200"]) as server:
            slow, prompt = Gated(server), Gated(server)
            assert prompt.feed(HEADER) == ["220"]
            clock = Clock(server)
            for octet in cut(HEADER[:20], "octets"):
                clock.advance(limits.PROXY_TIMEOUT / 20 - 0.01)
                assert slow.feed(octet) == []
            assert not slow.closed
            clock.advance(0.3)
            assert slow.closed
            assert slow.taken() == []
            assert server.counters.proxy_failures == 1
            assert not prompt.closed  # which has the usual time
            prompt.close()

    run(main)


@pytest.mark.parametrize(
    ("header", "first"),
    [
        (HEADER, ["500 5.5.2 Command not recognized"]),
        (
            encode_proxy_v2(CLIENT, SERVER) + b"\r\n",
            ["500 5.5.2 Command not recognized"] * 2 + ["500 5.5.2 Control characters or bad UTF-8 in command"],
        ),
    ],
    ids=["v1", "v2"],
)
@pytest.mark.parametrize("peers", [False, OTHERS, ["unix"]])
def test_a_header_from_anybody_else_is_no_command(run: Runner, header: bytes, first: list[str], peers: Any) -> None:
    async def main() -> None:
        async with serving(proxy_from=peers) as server, greeted(server, header) as peer:
            assert [await peer.line() for _ in first] == first
            state = only(server).state
            assert (state.proxy, state.remote_addr) == (None, peer.writer.get_extra_info("sockname"))
            if header is HEADER:
                assert await peer.say("NOOP") == ["250 2.0.0 OK"]

    run(main)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_header_and_a_late_greeting(run: Runner, trusted: bool) -> None:
    """A header from anybody else is talk before the greeting; a proxy's own is not, but what comes behind it is."""

    async def main() -> None:
        peers = ["192.0.2.200"] if trusted else False
        async with serving(proxy_from=peers, greeting_delay=3600) as server:
            for behind, code in ((b"", "220" if trusted else "554"), (b"EHLO x\r\n", "554")):
                wire = Gated(server)
                assert wire.feed(HEADER + behind) == []
                turn = wire.conn._turn
                assert turn is not None
                turn.cancel()
                wire.conn._begin_late()
                assert wire.taken()[0][:3] == code
                wire.close()

    run(main)


@pytest.mark.parametrize(
    ("header", "xforward", "xclient", "expected"),
    [
        (HEADER, ["192.0.2.9"], LOCAL, (True, False)),
        (HEADER, True, ["192.0.2.0/24"], (False, True)),
        (encode_proxy_v1(("127.0.0.1", 1), ("127.0.0.1", 2)), LOCAL, OTHERS, (True, False)),
        # Nobody knows who the client is: it has no rights, least of all the proxy's.
        (encode_proxy_v1(None, None), True, ["0.0.0.0/0", "::/0", "unix"], (False, False)),
        (encode_proxy_v2("/run/client", "/run/server"), True, ["0.0.0.0/0", "unix"], (False, False)),
        (encode_proxy_v2("", ""), True, ["0.0.0.0/0", "unix"], (False, False)),
        # The proxy speaks for itself.
        (encode_proxy_v2(None, None, command="LOCAL"), True, ["192.0.2.9"], (True, False)),
    ],
)
def test_behind_a_proxy_the_clients_address_decides(
    run: Runner, header: bytes, xforward: Any, xclient: Any, expected: tuple[bool, bool]
) -> None:
    async def main() -> None:
        options: dict[str, Any] = {"allow_xforward": xforward, "allow_xclient": xclient, "proxy_from": LOCAL}
        async with serving(**options) as server, greeted(server, header) as peer:
            ehlo = await peer.say("EHLO relay.example")
            assert (XFORWARD_LINE in ehlo, XCLIENT_LINE in ehlo) == expected
            assert (await peer.say("XFORWARD NAME=x") == [NOT_AUTHORIZED]) is not expected[0]
            assert (await peer.say("XCLIENT NAME=x") == [NOT_AUTHORIZED]) is not expected[1]

    run(main)


def test_a_client_that_is_gone_has_no_rights_of_unix_sockets(run: Runner) -> None:
    """The address of a TCP socket that was reset is None: it is not a Unix socket because of that."""
    log: list[Any] = []
    whole = b"EHLO x\r\nXCLIENT ADDR=192.0.2.9\r\nEHLO x\r\nMAIL FROM:<>\r\nRCPT TO:<a@b>\r\nDATA\r\nx\r\n.\r\n"

    async def main() -> None:
        async with serving(log, proxy_from=["unix"], allow_xclient=["unix"]) as server:
            with socket.create_connection(("127.0.0.1", server.port)) as sock:  # nobody accepts it before the next turn
                sock.sendall(HEADER + whole)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            async with greeted(server):  # which was behind it in the backlog
                pass
            await until(lambda: not server.counters.connections)

    run(main)
    assert [each for each in log if each[0] == "data" or each == ("connect", CLIENT)] == []


# Limits


def test_limits_of_an_address_are_the_clients(run: Runner) -> None:
    async def main() -> None:
        async with serving(proxy_from=True, max_connections_per_address=1) as server:
            async with greeted(server, HEADER), Peer(server, HEADER) as again:
                assert (await again.reply())[0].startswith("421 4.7.0 Too many connections")
                other = encode_proxy_v1(("192.0.2.10", 1), SERVER)
                async with greeted(server, other) as peer:
                    assert await peer.say("QUIT") == ["221 2.0.0 Bye"]
            await until(lambda: not server.counters.connections)
            async with greeted(server, HEADER):
                pass

    run(main)


def test_a_client_without_an_address_has_no_limit_of_its_own(run: Runner) -> None:
    async def main() -> None:
        async with serving(proxy_from=True, max_connections_per_address=1, max_connection_rate=1) as server:
            for _ in range(3):
                for header in (encode_proxy_v1(None, None), encode_proxy_v2(None, None)):
                    async with greeted(server, header) as peer:
                        assert await peer.say("QUIT") == ["221 2.0.0 Bye"]

    run(main)


def test_the_rate_of_an_address_is_the_clients(run: Runner) -> None:
    async def main() -> None:
        async with serving(proxy_from=True, max_connection_rate=1) as server:
            async with greeted(server, HEADER):
                pass
            async with Peer(server, HEADER) as peer:
                assert (await peer.reply())[0].startswith("421 4.7.0 Too many connections in a short time")
            async with greeted(server, encode_proxy_v1(("192.0.2.10", 1), SERVER)):
                pass

    run(main)


def test_the_limit_in_all_holds_behind_a_proxy(run: Runner) -> None:
    async def main() -> None:
        async with serving(proxy_from=True, max_connections=1) as server:
            async with greeted(server, HEADER), Peer(server, HEADER) as more:
                assert (await more.reply())[0].startswith("421 4.7.0 Too many connections")
            await until(lambda: not server.counters.connections)
            async with greeted(server, HEADER):
                pass

    run(main)


class Watching(Observer):
    def __init__(self) -> None:
        self.log: list[tuple[str, Any]] = []

    def connected(self, conn: Conn) -> None:
        self.log.append(("connected", conn.remote_addr))

    def disconnected(self, conn: Conn) -> None:
        self.log.append(("disconnected", conn.remote_addr))


def test_an_observer_is_told_the_clients_address(run: Runner) -> None:
    watching = Watching()

    async def main() -> None:
        async with serving(proxy_from=True, observer=watching) as server:
            async with greeted(server, HEADER) as peer:
                await peer.say("QUIT")
            await until(lambda: not server.counters.connections)

    run(main)
    assert watching.log == [("connected", CLIENT), ("disconnected", CLIENT)]


# Stopping


@pytest.mark.parametrize("implicit_tls", [False, True])
@pytest.mark.parametrize("stop", ["shutdown", "close", "reject"])
def test_who_waits_at_the_gate_is_dropped_without_a_word(
    run: Runner, tls: tuple[ssl.SSLContext, ssl.SSLContext], stop: str, implicit_tls: bool
) -> None:
    log: list[Any] = []

    async def main() -> None:
        options: dict[str, Any] = {"proxy_from": ["192.0.2.200"], "tls": tls[0], "implicit_tls": implicit_tls}
        async with serving(log, **options) as server:
            wire = Gated(server)
            assert wire.feed(HEADER[:5]) == []
            if stop == "reject":
                wire.conn.reject()
            else:
                stopping = asyncio.ensure_future(getattr(server, stop)())
                await until(lambda: wire.closed)
                await stopping
            assert wire.feed(HEADER[5:]) == []
            assert wire.closed
            await until(lambda: not server.counters.connections)
            assert wire.taken() == []
            assert server.counters.proxy_failures == 0

    run(main)
    assert log == []


# PROXY and TLS


@pytest.fixture(scope="module")
def tls() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """The server's context and a client's."""
    authority = trustme.CA()
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("localhost").configure_cert(server)
    client = ssl.create_default_context()
    authority.configure_trust(client)
    return server, client


class Tunnel:
    """A TLS client whose octets are ours to send: it tells what is to be sent, and takes what came."""

    def __init__(self, context: ssl.SSLContext) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname="localhost")

    def hello(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self._tls.do_handshake()
        return self._out.read()

    async def shake_hands(self, peer: Peer) -> None:
        await self._do(peer, self._tls.do_handshake)
        peer.writer.write(self._out.read())

    async def say(self, peer: Peer, data: bytes) -> None:
        self._tls.write(data)
        peer.writer.write(self._out.read())

    async def line(self, peer: Peer) -> str:
        line = b""
        while not line.endswith(b"\r\n"):
            line += await self._do(peer, lambda: self._tls.read(1))
        return line.decode().removesuffix("\r\n")

    async def _do(self, peer: Peer, step: Callable[[], Any]) -> Any:
        while True:
            try:
                return step()
            except ssl.SSLWantReadError:
                data = await peer.reader.read(65536)
                assert data, "the server has closed"
                self._in.write(data)


@pytest.mark.parametrize("how", ["together", "apart", "split"])
@pytest.mark.parametrize("header", [HEADER, encode_proxy_v2(CLIENT, SERVER, tlvs=TLVS)], ids=["v1", "v2"])
def test_implicit_tls_behind_the_header(
    run: Runner, tls: tuple[ssl.SSLContext, ssl.SSLContext], header: bytes, how: str
) -> None:
    async def main() -> None:
        tunnel = Tunnel(tls[1])
        hello = tunnel.hello()
        early = {"together": len(hello), "apart": 0, "split": 7}[how]  # octets of TLS in one piece with the header
        async with serving(proxy_from=True, tls=tls[0], implicit_tls=True) as server:
            async with Peer(server, header + hello[:early]) as peer:
                await until(lambda: conns(server) and only(server).state.proxy is not None)
                peer.writer.write(hello[early:])
                await tunnel.shake_hands(peer)
                assert await tunnel.line(peer) == GREETING
                state = only(server).state
                assert state.tls is not None
                assert state.remote_addr == CLIENT
                await tunnel.say(peer, b"NOOP\r\nQUIT\r\n")
                assert await tunnel.line(peer) == "250 2.0.0 OK"
                assert await tunnel.line(peer) == "221 2.0.0 Bye"
            assert (server.counters.tls, server.counters.tls_failures) == (1, 0)

    run(main)


def test_plaintext_behind_the_header_is_not_taken_into_tls(
    run: Runner, tls: tuple[ssl.SSLContext, ssl.SSLContext]
) -> None:
    """Octets between the header and the handshake are never commands of the TLS session: the handshake fails."""
    log: list[Any] = []

    async def main() -> None:
        injected = b"EHLO x\r\nMAIL FROM:<a@b.example>\r\n"
        async with serving(log, proxy_from=True, tls=tls[0], implicit_tls=True) as server:
            async with Peer(server, HEADER + injected + Tunnel(tls[1]).hello()) as peer:
                with contextlib.suppress(ConnectionError):
                    answer = await peer.reader.read()
                    assert b"220" not in answer  # an alert of TLS at most
            await until(lambda: not server.counters.connections)
            assert (server.counters.tls, server.counters.tls_failures) == (0, 1)

    run(main)
    assert log == []


def test_a_handshake_that_cannot_begin(run: Runner, caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with serving(proxy_from=True, tls=lambda: "no context", implicit_tls=True) as server:
            async with Peer(server, HEADER + b"\x16\x03\x01") as peer:
                await peer.silence()
            await until(lambda: not server.counters.connections)
            assert server.counters.tls_failures == 1

    run(main)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


def test_starttls_behind_the_header(run: Runner, tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    async def main() -> None:
        async with serving(proxy_from=True, tls=tls[0]) as server, greeted(server, HEADER) as peer:
            assert "250-STARTTLS" in await peer.say("EHLO client.example")
            assert await peer.say("STARTTLS") == ["220 2.0.0 Ready to start TLS"]
            await peer.writer.start_tls(tls[1], server_hostname="localhost")
            assert "250-STARTTLS" not in await peer.say("EHLO client.example")
            state = only(server).state
            assert state.tls is not None
            assert (state.remote_addr, state.local_addr) == (CLIENT, SERVER)
            assert await peer.say(*MESSAGE) == ["250 2.0.0 Message accepted"]

    run(main)


def test_xclient_where_tls_is_required(run: Runner, tls: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    """XCLIENT is taken before TLS; it does not lift the requirement."""

    async def main() -> None:
        async with serving(allow_xclient=True, tls=tls[0], require_tls=True) as server, greeted(server) as peer:
            assert await peer.say("XCLIENT ADDR=192.0.2.9 PORT=4711") == [GREETING]
            assert XCLIENT_LINE in await peer.say("EHLO client.example")
            assert (await peer.say("MAIL FROM:<a@b.example>"))[0].startswith("530 5.7.0 ")
            assert await peer.say("STARTTLS") == ["220 2.0.0 Ready to start TLS"]
            await peer.writer.start_tls(tls[1], server_hostname="localhost")
            assert XCLIENT_LINE in await peer.say("EHLO client.example")
            assert only(server).state.remote_addr == CLIENT
            assert await peer.say("XCLIENT LOGIN=anna") == [GREETING]
            assert await peer.say("EHLO client.example", *MESSAGE) == ["250 2.0.0 Message accepted"]

    run(main)


# Received:


@pytest.mark.parametrize(
    ("first", "commands", "expected"),
    [
        (HEADER, (), "from relay.example ([192.0.2.9]) by mx.example with ESMTP"),
        (encode_proxy_v1(*SIX), (), "from relay.example ([IPv6:2001:db8::9]) by mx.example with ESMTP"),
        (encode_proxy_v1(None, None), (), "from relay.example by mx.example with ESMTP"),
        (
            HEADER,
            ("XFORWARD NAME=a.example ADDR=203.0.113.5 HELO=b.example",),
            "from b.example ([203.0.113.5]) by mx.example with ESMTP",
        ),
        (HEADER, ("XFORWARD HELO=we+2Bird!",), "from [192.0.2.9] ([192.0.2.9]) (we+ird!) by mx.example with ESMTP"),
        (HEADER, ("XFORWARD ADDR=[UNAVAILABLE]",), "from relay.example ([192.0.2.9]) by mx.example with ESMTP"),
        (
            HEADER,
            ("XCLIENT ADDR=203.0.113.6 HELO=c.example LOGIN=anna", "EHLO d.example"),
            "from d.example ([203.0.113.6]) by mx.example with ESMTPA",
        ),
        (
            HEADER,
            ("XCLIENT ADDR=203.0.113.6", "EHLO d.example", "XFORWARD ADDR=203.0.113.7"),
            "from d.example ([203.0.113.7]) by mx.example with ESMTP",
        ),
    ],
)
def test_received_names_the_client(
    run: Runner, tmp_path: pathlib.Path, first: bytes, commands: tuple[str, ...], expected: str
) -> None:
    peers = ["192.0.2.9"]

    async def main() -> None:
        async with (
            Maildir(tmp_path / "m") as maildir,
            Server(
                MaildirBackend(maildir, domain="mx.example"),
                addr="127.0.0.1:0",
                proxy_from=True,
                allow_xforward=peers,
                allow_xclient=peers,
            ) as server,
            greeted(server, first) as peer,
        ):
            for command in ("EHLO relay.example", *commands):
                assert (await peer.say(command))[-1][:3] in ("220", "250")
            assert (await peer.say(*MESSAGE))[0].startswith("250 2.0.0 Ok: queued")
            if "XFORWARD" in "".join(commands):  # it was for one message only
                assert (await peer.say(*MESSAGE))[0].startswith("250 2.0.0 Ok: queued")

    run(main)
    found = []
    for path in sorted((tmp_path / "m" / "new").iterdir()):
        text = re.sub(r"\r\n[ \t]", " ", path.read_bytes().decode())
        match = re.search(r"^Received: (from .*? with \w+)", text, re.MULTILINE)
        assert match is not None
        found.append(match[1])
    assert found[0] == expected
    if "HELO" in "".join(commands) and "XFORWARD" in "".join(commands):
        assert found[1] == "from relay.example ([192.0.2.9]) by mx.example with ESMTP"


# EXPN and ETRN by hooks


class Lists(DefaultSession):
    """Knows one list and one node."""

    def expn(self, argument: str) -> Any:
        if argument == "staff":
            return Reply(250, EnhancedCode(2, 1, 5), "Anna <anna@d.example>\nBert <bert@d.example>")
        if argument == "injected":
            return Reply(250, EnhancedCode(2, 1, 5), "one\r\n221 2.0.0 Bye")
        if argument == "broken":
            raise ZeroDivisionError
        if argument == "secret":
            raise SMTPError(550, EnhancedCode(5, 7, 1), "Not for you")
        return None

    def etrn(self, node: str) -> Any:
        if node == "example.org":
            return Reply(251, EnhancedCode(2, 0, 0), "No messages waiting")
        if node == "#closed":
            raise SMTPError(459, EnhancedCode(4, 7, 1), "Node not allowed")
        return None


class LaterLists(Lists):
    """The same, asynchronous."""

    async def expn(self, argument: str) -> Any:
        await asyncio.sleep(0)
        return super().expn(argument)

    async def etrn(self, node: str) -> Any:
        await asyncio.sleep(0)
        return super().etrn(node)


@pytest.mark.parametrize("session", [Lists, LaterLists])
def test_expn_by_a_hook(run: Runner, session: type[Lists], caplog: pytest.LogCaptureFixture) -> None:
    async def main() -> None:
        async with Server(DefaultBackend(session), addr="127.0.0.1:0", expn=True) as server, greeted(server) as peer:
            assert "250-EXPN" in await peer.say("EHLO x.example")
            staff = ["250-2.1.5 Anna <anna@d.example>", "250 2.1.5 Bert <bert@d.example>"]
            assert await peer.say("EXPN staff") == staff
            assert await peer.say("expn unknown") == ["252 2.0.0 Cannot expand the list"]
            assert await peer.say("EXPN secret") == ["550 5.7.1 Not for you"]
            assert await peer.say("EXPN injected") == ["250-2.1.5 one", "250 2.1.5 221 2.0.0 Bye"]
            assert await peer.say("EXPN broken") == ["451 4.3.0 Local error in processing"]
            # It may be said within a transaction, which it does not touch (RFC 5321 4.1.1.7).
            assert await peer.say("MAIL FROM:<a@b.example>", "EXPN staff") == staff
            assert await peer.say(*MESSAGE[1:]) == ["250 2.0.0 Message accepted"]
            peer.writer.write(b"EXPN staff\r\nEXPN secret\r\nNOOP\r\n")
            assert [(await peer.reply())[-1][:3] for _ in range(3)] == ["250", "550", "250"]

    run(main)
    assert [record.levelname for record in caplog.records] == ["ERROR"]  # of the broken one


@pytest.mark.parametrize("session", [Lists, LaterLists])
def test_etrn_by_a_hook(run: Runner, session: type[Lists]) -> None:
    async def main() -> None:
        async with Server(DefaultBackend(session), addr="127.0.0.1:0", etrn=True) as server, greeted(server) as peer:
            assert "250-ETRN" in await peer.say("EHLO x.example")
            assert await peer.say("ETRN example.org") == ["251 2.0.0 No messages waiting"]
            for node in ("d.example", "@d.example", "#queue"):
                assert await peer.say(f"etrn {node}") == ["250 2.0.0 Queuing for node started"]
            assert await peer.say("ETRN #closed") == ["459 4.7.1 Node not allowed"]
            assert await peer.say("MAIL FROM:<a@b.example>", "ETRN d.example") == ["503 5.5.1 Bad sequence of commands"]
            assert await peer.say(*MESSAGE[1:]) == ["250 2.0.0 Message accepted"]

    run(main)


@pytest.mark.parametrize("on", [False, True])
def test_expn_and_etrn_need_both_the_option_and_the_hook(run: Runner, on: bool) -> None:
    async def main() -> None:
        session = DefaultSession if on else Lists
        async with Server(DefaultBackend(session), addr="127.0.0.1:0", expn=on, etrn=on) as server:
            async with greeted(server) as peer:
                await peer.say("EHLO x.example")
                for command in ("EXPN staff", "ETRN example.org"):
                    assert await peer.say(command) == [NOT_IMPLEMENTED]

    run(main)
