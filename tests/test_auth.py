"""AUTH (RFC 4954) in the server: dialogues, every mechanism, what backends and sessions decide, and what is kept secret."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import io
import logging
import pathlib
import re
import smtplib
import socket
import ssl
import struct
from collections.abc import Awaitable, Callable, Iterator
from typing import Any, ClassVar

import pytest
import trustme
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp import (
    AuthRequired,
    AuthUnsupported,
    ConfigurationError,
    Conn,
    ConnectionState,
    DataContext,
    DataReader,
    DefaultBackend,
    DefaultSession,
    EnhancedCode,
    MailParams,
    Reply,
    Server,
    ServerOptions,
    SMTPError,
    admission,
    limits,
)
from fastsmtp.authentication import failure_delay
from fastsmtp.authfile import AuthFile
from fastsmtp.extensions import Offer
from fastsmtp.observer import Observer
from fastsmtp.protocol import Auth, AuthResponse, Body, ServerProfile, ServerProtocol
from fastsmtp.protocol.login import Login
from fastsmtp.reply import AUTH_FAILED, AUTH_MALFORMED, AuthFailed
from fastsmtp.sasl import (
    SERVERS,
    AnonymousClient,
    AnonymousCredentials,
    Challenge,
    ClientMechanism,
    CramMD5Client,
    CramMD5Credentials,
    Credentials,
    ExternalClient,
    ExternalCredentials,
    LoginClient,
    OAuthBearerClient,
    Outcome,
    PlainClient,
    PlainCredentials,
    SASLError,
    ScramClient,
    ScramCredentials,
    ScramPlusClient,
    ScramSecret,
    ServerBase,
    Success,
    TokenCredentials,
    Verify,
    XOAuth2Client,
    server_end_point,
)
from fastsmtp.tls import TLSFiles

from .dialogue import CUTS, Dialogue, cut, load, matches
from .loops import LOOPS, Runner

FILES = sorted((pathlib.Path(__file__).parent / "dialogues" / "auth").glob("*.txt"))
DIALOGUES = [pytest.param(load(path), id=path.stem) for path in FILES]

PASSWORD = "pencil"
TOKEN = "ya29.vF9dft4qmTc2Nvb3RlckBhdHRhdmlzdGEuY29t"
SECRET = ScramSecret.derive(PASSWORD)
EVERY = tuple(SERVERS)

RIGHT = "AUTH PLAIN AGFubmEAcGVuY2ls"  # NUL anna NUL pencil
WRONG = "AUTH PLAIN AGFubmEAd3Jvbmc="
STRANGER = "AUTH PLAIN AGJlcnQAcGVuY2ls"

DONE = "235 2.7.0 Authentication succeeded"
REFUSED = "535 5.7.8 Authentication credentials invalid"
UNAVAILABLE = "454 4.7.0 Temporary authentication failure"
MALFORMED = "501 5.5.2 Malformed authentication response"
NOT_BASE64 = "501 5.5.2 Cannot decode base64"
ENOUGH = "421 4.7.0 Too many authentication failures"


# Backends and sessions


class Mail(DefaultSession):
    """Keeps what it is told, in the order it comes."""

    def __init__(self, user: str = "") -> None:
        super().__init__()
        self.user = user
        self.calls: list[str] = []
        self.params: list[MailParams] = []
        self.states: list[ConnectionState] = []
        self.conn: Conn | None = None

    def connect(self, conn: Conn) -> Reply | None:
        self.conn = conn
        self.calls.append("connect")
        return None

    def helo(self, name: str) -> None:
        self.calls.append(f"helo {name}")

    def mail(self, sender: str, params: MailParams) -> None:
        assert self.conn is not None
        self.calls.append(f"mail {sender}")
        self.params.append(params)
        self.states.append(self.conn.state)

    def reset(self) -> None:
        self.calls.append("reset")

    def logout(self) -> None:
        self.calls.append("logout")


class Users:
    """Anna, whose password is PASSWORD; nobody else may send mail."""

    def __init__(self) -> None:
        self.sessions: list[Mail] = []
        self.asked: list[tuple[ConnectionState, str, str]] = []

    def anonymous_login(self, state: ConnectionState) -> Mail:
        raise AuthRequired

    def login(self, state: ConnectionState, username: str, password: str) -> Any:
        self.asked.append((state, username, password))
        return self.session(username) if (username, password) == ("anna", PASSWORD) else None

    def session(self, user: str) -> Mail:
        session = Mail(user)
        self.sessions.append(session)
        return session


class Guests(Users):
    """The same, with sessions for everybody from the start."""

    session_on_connect = True

    def anonymous_login(self, state: ConnectionState) -> Mail:
        return self.session("")


class Directory(Users):
    """Checks credentials of every kind, and waits a turn of the loop each time."""

    auth_mechanisms: ClassVar[tuple[str, ...]] = EVERY

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Credentials] = []
        self.user: str | None = None  # who it is, where the mechanism does not tell

    async def authenticate(self, state: ConnectionState, credentials: Credentials) -> Mail | None:
        await asyncio.sleep(0)
        self.seen.append(credentials)
        if not self.right(state, credentials):
            return None
        session = self.session("")
        if self.user is not None:
            session.username = self.user  # type: ignore[attr-defined]
        return session

    def right(self, state: ConnectionState, credentials: Credentials) -> bool:
        match credentials:
            case PlainCredentials("" | "anna", "anna") | CramMD5Credentials("anna"):
                return credentials.verify(PASSWORD)
            case TokenCredentials(_, token):
                return token == TOKEN
            case ExternalCredentials(authzid):
                return authzid in ("", "anna") and state.tls is not None and bool(state.tls.getpeercert())
            case AnonymousCredentials(trace):
                return trace != "spam"
            case ScramCredentials("anna"):
                return True
        return False

    async def scram_secret(self, state: ConnectionState, username: str) -> ScramSecret | None:
        await asyncio.sleep(0)
        return SECRET if username == "anna" else None


def serve(backend: Any, **options: Any) -> Server:
    """A server with AUTH in plaintext, that does not make anybody wait."""
    fields: dict[str, Any] = {
        "addr": "127.0.0.1:0",
        "allow_insecure_auth": True,
        "auth_failure_delay": 0,
        "max_auth_failures": 0,
    }
    return Server(backend, **(fields | {"max_errors": 0} | options))


def log() -> tuple[logging.Logger, io.StringIO]:
    """A logger of its own, and what it writes."""
    text = io.StringIO()
    logger = logging.Logger("test")
    logger.addHandler(logging.StreamHandler(text))
    return logger, text


# Clients


class Client:
    """A raw client that has read the greeting and said EHLO.

    Attributes:
        mechanisms: what the last EHLO offered.
        extensions: the lines of the reply to it.
    """

    def __init__(self, server: Server, tls: ssl.SSLContext | None = None, hello: str = "EHLO") -> None:
        self._server = server
        self._tls = tls
        self._hello = hello
        self.extensions: list[str] = []

    async def __aenter__(self) -> Client:
        name = None if self._tls is None else "localhost"
        self.reader, self.writer = await asyncio.open_connection(
            "127.0.0.1", self._server.port, ssl=self._tls, server_hostname=name, limit=1 << 20
        )
        try:
            self.greeting = await self.line()
            if self._hello:
                await self.hello()
        except BaseException:
            self.writer.transport.abort()
            raise
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    def reset(self) -> None:
        """Leave with RST: with a FIN the client might still read."""
        linger = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        self.writer.transport.abort()

    async def line(self) -> str:
        return (await self.reader.readline()).decode().removesuffix("\r\n")

    async def ask(self, *commands: str) -> str:
        """Say commands, all at once, and get the first line that comes."""
        self.writer.write("".join(f"{command}\r\n" for command in commands).encode())
        return await self.line()

    async def hello(self) -> list[str]:
        self.extensions = [await self.ask(f"{self._hello} client.example")]
        while self.extensions[-1].startswith("250-"):
            self.extensions.append(await self.line())
        assert self.extensions[-1].startswith("250 ")
        return self.mechanisms

    @property
    def mechanisms(self) -> list[str]:
        lines = [line[4:].split() for line in self.extensions]
        return next((words[1:] for words in lines if words[0] == "AUTH"), [])

    async def start_tls(self, context: ssl.SSLContext) -> None:
        assert await self.ask("STARTTLS") == "220 2.0.0 Ready to start TLS"
        await self.writer.start_tls(context, server_hostname="localhost")

    async def login(self, mechanism: ClientMechanism, initial: bool = True) -> str:
        """A whole exchange; the reply that ends it.  Without `initial` the first response is sent on request."""
        exchange = Login(mechanism)
        first = exchange.first_line().decode().removesuffix("\r\n")
        command, _, response = first.rpartition(" ") if first.count(" ") == 2 else (first, "", "")
        if initial or not command.startswith("AUTH ") or not response:
            reply = await self.ask(first)
        else:
            assert await self.ask(command) == "334 "
            reply = await self.ask("" if response == "=" else response)
        while reply.startswith("334 "):
            reply = await self.ask(exchange.answer(reply[4:]).decode().removesuffix("\r\n"))
        assert exchange.complete or not reply.startswith("235 ")
        return reply

    def binding(self) -> tuple[str, bytes]:
        certificate = self.writer.get_extra_info("ssl_object").getpeercert(True)
        return "tls-server-end-point", server_end_point(certificate)


class Certificates:
    """A server's certificate and a client's, of one authority."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.authority = trustme.CA()
        self._ca = folder / "ca.pem"
        self._server = folder / "server.pem"
        self.authority.cert_pem.write_to_path(self._ca)
        self.authority.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(self._server)

    def server(self) -> TLSFiles:
        return TLSFiles(self._server, client_ca=self._ca)

    def client(self, certificate: bool = False) -> ssl.SSLContext:
        context = ssl.create_default_context()
        self.authority.configure_trust(context)
        if certificate:
            self.authority.issue_cert("anna@b.example").configure_cert(context)
        return context


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Certificates:
    return Certificates(tmp_path_factory.mktemp("certificates"))


def lose_patience(server: Server, timeout: float) -> None:
    """As if so many seconds had passed, which is how long the only connection is waited for."""
    conns: list[Conn] = []
    server.for_each_conn(conns.append)
    (conn,) = conns
    assert server.roster.now <= conn.deadline <= server.roster.now + timeout
    conn.timed_out()


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


# Dialogues


class Answering:
    """What the shell does with AUTH, in its simplest form, for the bare core."""

    def __call__(self, core: ServerProtocol, event: object) -> None:
        if isinstance(event, Auth):
            self._mechanism = SERVERS[event.mechanism]()
        if not isinstance(event, Auth | AuthResponse):
            if core.awaiting_reply:
                core.reply()
            return
        try:
            outcome = self._mechanism.step(event.response)
        except SASLError:
            core.reply(AUTH_MALFORMED)
            return
        if isinstance(outcome, Verify):
            outcome = self._mechanism.verified(outcome.credentials in self._right)
        if isinstance(outcome, Challenge):
            core.challenge(outcome.data)
        else:
            core.reply(None if isinstance(outcome, Success) else AUTH_FAILED)

    _right = tuple(PlainCredentials(authzid, "anna", PASSWORD) for authzid in ("", "anna"))


def authenticating_core(**fields: Any) -> ServerProtocol:
    options = ServerOptions(**fields)
    core = ServerProtocol(ServerProfile(options))
    core.offer = Offer(options, auth=("PLAIN", "LOGIN"))
    core.greet()
    return core


def compare(expected: tuple[str, ...], lines: list[str]) -> None:
    assert len(lines) == len(expected), lines
    for each, line in zip(expected, lines, strict=True):
        assert matches(each, line), f"{each!r} was expected, not {line!r}"


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_dialogue_on_the_core(dialogue: Dialogue, how: str) -> None:
    core = authenticating_core(**dialogue.options)
    answer = Answering()
    messages: list[int] = []
    size = 0
    for step in dialogue.steps:
        out = b""
        for piece in cut(step.sent, how):
            core.receive_data(piece)
            while (event := core.next_event()) is not None:
                if isinstance(event, Body):
                    size += len(event.payload)
                    if event.ended:
                        messages.append(size)
                        size = 0
                answer(core, event)
            out += core.data_to_send()
        out += core.data_to_send()
        compare(step.replies, out.decode().split("\r\n")[:-1])
        assert tuple(messages) == step.messages
        messages.clear()
        assert core.closing is step.closed


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize("how", ["whole", "octets"])
@pytest.mark.parametrize("dialogue", DIALOGUES)
def test_dialogue_over_a_socket(
    dialogue: Dialogue, how: str, asynchronous: bool, loop: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    messages: list[int] = []

    class Recording(DefaultSession):
        async def data(self, reader: DataReader, context: DataContext) -> None:
            await reader.read()
            messages.append(reader.size)

    class Backend:
        def login(self, state: ConnectionState, username: str, password: str) -> Any:
            session = Recording() if (username, password) == ("anna", PASSWORD) else None

            async def later() -> Recording | None:
                await asyncio.sleep(0)
                return session

            return later() if asynchronous else session

        def anonymous_login(self, state: ConnectionState) -> Recording:
            return Recording()

    async def main() -> None:
        async with serve(Backend(), **dialogue.options) as server:
            async with Client(server, hello="") as client:
                greeting = [client.greeting]
                for step in dialogue.steps:
                    for piece in cut(step.sent, how):
                        client.writer.write(piece)
                        if how == "octets":
                            await asyncio.sleep(0)
                    lines = greeting + [await client.line() for _ in step.replies[len(greeting) :]]
                    greeting = []
                    compare(step.replies, lines)
                    assert tuple(messages) == step.messages
                    messages.clear()
                    if step.closed:
                        assert await client.reader.read() == b""
            assert server.counters.errors == 0

    with asyncio.Runner(loop_factory=loop, debug=True) as runner:
        runner.run(asyncio.wait_for(main(), 30))


@given(st.binary(max_size=80).filter(lambda line: b"\r\n" not in line + b"\r"))
def test_any_response_has_one_reply(line: bytes) -> None:
    core = authenticating_core(max_errors=0)
    answer = Answering()
    core.receive_data(b"EHLO client.example\r\nAUTH PLAIN\r\n%b\r\nNOOP\r\n" % line)
    while (event := core.next_event()) is not None:
        answer(core, event)
    *_, challenge, reply, noop, end = core.data_to_send().decode().split("\r\n")
    assert (challenge, noop, end) == ("334 ", "250 2.0.0 OK", "")
    assert reply in (MALFORMED, NOT_BASE64, REFUSED, "501 5.7.0 Authentication cancelled")
    assert not core.authenticated


# Long lines (RFC 4954 section 4)


def initial_response(octets: int) -> bytes:
    """AUTH with so many octets of command, CR LF included."""
    command = b"AUTH PLAIN "
    return command + b"A" * (octets - len(command) - 2) + b"\r\n"


@pytest.mark.parametrize("how", ["whole", "halves", "pieces"])
def test_the_longest_lines(how: str) -> None:
    # 12288 octets hold no whole base64 here, so that what is not too long is 501, and what is too long 500.
    most = limits.AUTH_LINE
    assert most == 12288

    def said(data: bytes) -> list[str]:
        core = authenticating_core(max_errors=0)
        answer = Answering()
        out = b""
        size = {"whole": len(data), "halves": len(data) // 2, "pieces": 61}[how]
        data = b"EHLO client.example\r\n" + data + b"NOOP\r\n"
        for start in range(0, len(data), size):
            core.receive_data(data[start : start + size])
            while (event := core.next_event()) is not None:
                answer(core, event)
        out += core.data_to_send()
        lines = out.decode().split("\r\n")
        return lines[lines.index("250 ENHANCEDSTATUSCODES") + 1 : -1]

    ok = "250 2.0.0 OK"
    assert said(initial_response(most)) == [NOT_BASE64, ok]
    assert said(initial_response(most + 1)) == ["500 5.5.2 Line too long", ok]
    for length, reply in (
        (most, NOT_BASE64),
        (most + 1, "500 5.5.6 Authentication exchange line is too long"),
        (limits.COMMAND_LINE_FLOOD, "500 5.5.6 Authentication exchange line is too long"),
    ):
        assert said(b"AUTH PLAIN\r\n" + b"A" * (length - 2) + b"\r\n") == ["334 ", reply, ok], length
    flooded = ["334 ", "421 4.7.0 Too many errors"]
    assert said(b"AUTH PLAIN\r\n" + b"A" * limits.COMMAND_LINE_FLOOD + b"\r\n") == flooded
    # Only AUTH may be so long.
    assert said(b"NOOP " + b"A" * limits.COMMAND_LINE + b"\r\n") == ["500 5.5.2 Line too long", ok]


def test_the_longest_response_that_means_something(run: Runner) -> None:
    async def main() -> None:
        backend = Directory()
        token = "t" * 9000
        async with serve(backend) as server:
            async with Client(server) as client:
                response = base64.b64encode(f"n,,\x01auth=Bearer {token}\x01\x01".encode()).decode()
                assert 12000 < len(response) < 12200
                assert (await client.ask(f"AUTH OAUTHBEARER {response}")).startswith("334 ")
                assert await client.ask("AQ==") == REFUSED
                assert await client.ask("AUTH OAUTHBEARER") == "334 "
                assert (await client.ask(response)).startswith("334 ")
                assert await client.ask("AQ==") == REFUSED
                # What a field may be is another thing.
                long = base64.b64encode(b"\0anna\0" + b"x" * 1025).decode()
                assert await client.ask(f"AUTH PLAIN {long}") == MALFORMED
        assert backend.seen == [TokenCredentials("", token)] * 2

    run(main)


# What is offered


class Unable(Users):
    auth_mechanisms: ClassVar[tuple[str, ...]] = ()


class Secrets(Users):
    """Has SCRAM secrets, but nobody to say who may log in."""

    def scram_secret(self, state: ConnectionState, username: str) -> ScramSecret:
        return SECRET


class Scram(Secrets):
    def authenticate(self, state: ConnectionState, credentials: Credentials) -> Mail | None:
        return self.session("")


PLUS = ["SCRAM-SHA-256-PLUS", "SCRAM-SHA-256", "PLAIN", "LOGIN"]
NO_EXTERNAL = [name for name in EVERY if name != "EXTERNAL"]


@pytest.mark.parametrize(
    ("backend", "plain", "secure"),
    [
        pytest.param(lambda: DefaultBackend(DefaultSession), [], [], id="default"),
        pytest.param(Unable, [], [], id="none"),
        pytest.param(Users, ["PLAIN", "LOGIN"], ["PLAIN", "LOGIN"], id="login"),
        pytest.param(Guests, ["PLAIN", "LOGIN"], ["PLAIN", "LOGIN"], id="on-connect"),
        pytest.param(Secrets, ["PLAIN", "LOGIN"], ["PLAIN", "LOGIN"], id="secrets"),
        pytest.param(Scram, PLUS[1:], PLUS, id="scram"),
        pytest.param(Directory, [name for name in NO_EXTERNAL if name != PLUS[0]], NO_EXTERNAL, id="every"),
    ],
)
def test_what_is_offered(
    run: Runner, backend: Callable[[], Any], plain: list[str], secure: list[str], certificates: Certificates
) -> None:
    async def main() -> None:
        # In plaintext only if so wanted.
        async with serve(backend(), allow_insecure_auth=False) as server, Client(server) as client:
            assert client.mechanisms == []
            assert await client.ask(RIGHT) == "502 5.5.1 Command not implemented"
        async with serve(backend()) as server, Client(server) as client:
            assert client.mechanisms == plain
        # Within TLS, and before it no more than the hint that there would be.
        tls = {"tls": certificates.server(), "allow_insecure_auth": False}
        async with serve(backend(), **tls) as server:
            async with Client(server) as client:
                assert client.mechanisms == []
                hint = "538 5.7.11 Encryption required for authentication"
                assert await client.ask(RIGHT) == (hint if secure else "502 5.5.1 Command not implemented")
                assert (await client.ask("MAIL FROM:<a@b.example> AUTH=<>")).startswith("555 5.5.4 ")
                await client.start_tls(certificates.client())
                assert await client.ask(RIGHT) == "503 5.5.1 Say hello first"
                assert await client.hello() == secure
        async with serve(backend(), implicit_tls=True, **tls) as server:
            async with Client(server, certificates.client()) as client:
                assert client.mechanisms == secure
            async with Client(server, certificates.client(), hello="HELO") as client:
                assert await client.ask(RIGHT) == "502 5.5.1 Command not implemented"
        # Switched off is off.
        async with serve(backend(), implicit_tls=True, tls=certificates.server(), disable_auth=True) as server:
            async with Client(server, certificates.client(certificate=True)) as client:
                assert client.mechanisms == []
                assert await client.ask(RIGHT) == "502 5.5.1 Command not implemented"

    run(main)


def test_tls_required_comes_before_the_question_of_auth(run: Runner, certificates: Certificates) -> None:
    async def main() -> None:
        async with serve(Users(), tls=certificates.server(), require_tls=True) as server, Client(server) as client:
            assert await client.ask(RIGHT) == "530 5.7.0 Must issue a STARTTLS command first"
            await client.start_tls(certificates.client())
            await client.hello()
            assert await client.ask(RIGHT) == DONE

    run(main)


def test_external_is_offered_to_who_has_a_certificate(run: Runner, certificates: Certificates) -> None:
    class Session(Mail):
        auth_mechanisms: ClassVar[tuple[str, ...]] = ("EXTERNAL",)

        def auth(self, credentials: Credentials) -> None:
            assert isinstance(credentials, ExternalCredentials)

    async def main() -> None:
        for backend in (Directory(), DefaultBackend(Session)):
            async with serve(backend, tls=certificates.server()) as server:
                async with Client(server) as client:
                    assert "EXTERNAL" not in client.mechanisms
                    await client.start_tls(certificates.client())
                    assert "EXTERNAL" not in await client.hello()
                    assert (await client.login(ExternalClient()))[:9] in ("504 5.5.4", "502 5.5.1")
                async with Client(server) as client:
                    await client.start_tls(certificates.client(certificate=True))
                    assert "EXTERNAL" in await client.hello()
                    assert await client.login(ExternalClient()) == DONE

    run(main)


def test_without_a_channel_binding_there_is_no_plus(run: Runner, certificates: Certificates) -> None:
    async def main() -> None:
        context = certificates.server()()  # a mere context does not tell which certificate is shown
        async with serve(Scram(), tls=context, implicit_tls=True) as server:
            async with Client(server, certificates.client()) as client:
                assert client.mechanisms == PLUS[1:]
                assert await client.login(ScramClient("anna", PASSWORD)) == DONE

    run(main)


def test_enable_auth(run: Runner) -> None:
    class Riddle(ServerBase):
        name: ClassVar[str] = "X-RIDDLE"

        def _next(self, response: bytes | None) -> Outcome:
            if response is None:
                return Challenge(b"What walks on four legs?")
            return Success("sphinx") if response == b"man" else self._fail()

    conns: list[Conn] = []

    def riddle(conn: Conn) -> Riddle:
        conns.append(conn)
        return Riddle()

    async def main() -> None:
        backend = Guests()
        server = serve(backend)
        for name in ("X-NOBODY", "scram-sha-1", ""):
            with pytest.raises(ConfigurationError):
                server.enable_auth(name)
        for name in ("", "X Y", "X" * 21, "X=Y", "Ä", "X\r\nY"):
            with pytest.raises(ConfigurationError):
                server.enable_auth(name, riddle)
        server.enable_auth("cram-md5")
        server.enable_auth("x-riddle", riddle)
        async with server, Client(server) as client:
            assert client.mechanisms == ["PLAIN", "LOGIN", "CRAM-MD5", "X-RIDDLE"]
            assert await client.ask("AUTH X-RIDDLE cm9jaw==") == REFUSED
            assert await client.ask("AUTH x-riddle") == "334 V2hhdCB3YWxrcyBvbiBmb3VyIGxlZ3M/"
            assert await client.ask("bWFu") == DONE
            assert conns[-1] is backend.sessions[0].conn and conns[-1].username == "sphinx"
            # A mechanism that decides alone leaves the session that was there.
            assert (await client.ask("MAIL FROM:<a@b.example>")).startswith("250 ")
            assert backend.sessions[0].calls[-1] == "mail a@b.example" and len(backend.sessions) == 1

    run(main)


# Mechanisms

BY_PASSWORD: list[Any] = [
    pytest.param(PlainClient, PlainCredentials("", "anna", PASSWORD), id="PLAIN"),
    pytest.param(LoginClient, PlainCredentials("", "anna", PASSWORD), id="LOGIN"),
    pytest.param(CramMD5Client, CramMD5Credentials, id="CRAM-MD5"),
    pytest.param(ScramClient, ScramCredentials("anna"), id="SCRAM-SHA-256"),
]


@pytest.mark.parametrize("initial", [True, False], ids=["initial", "on-request"])
@pytest.mark.parametrize(("make", "expected"), BY_PASSWORD)
def test_passwords(run: Runner, make: Any, expected: Any, initial: bool) -> None:
    async def main() -> None:
        backend = Directory()
        async with serve(backend) as server:
            async with Client(server) as client:
                # Not even the number of questions tells who exists.
                for user, password in (("anna", "wrong"), ("bert", PASSWORD), ("bert", "wrong")):
                    assert await client.login(make(user, password), initial) == REFUSED
                assert await client.ask("MAIL FROM:<a@b.example>") == "530 5.7.0 Please authenticate first"
                assert backend.sessions == []
                assert await client.login(make("anna", PASSWORD), initial) == DONE
                seen = backend.seen[-1]
                assert seen == expected or (isinstance(seen, CramMD5Credentials) and expected is CramMD5Credentials)
                assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
                (session,) = backend.sessions
                assert session.calls == ["connect", "helo client.example", "mail a@b.example"]
                assert session.conn is not None and session.conn.username == "anna"
                assert session.states[0].username == "anna" and session.states[0].protocol == "ESMTP"
            await until(lambda: not server.counters.connections)
            assert session.calls[-1] == "logout" and session.calls.count("logout") == 1
            assert (server.counters.authenticated, server.counters.auth_failures) == (1, 3)
            assert server.counters.errors == 0

    run(main)


@pytest.mark.parametrize("initial", [True, False], ids=["initial", "on-request"])
@pytest.mark.parametrize("make", [XOAuth2Client, OAuthBearerClient])
def test_tokens(run: Runner, make: Any, initial: bool) -> None:
    async def main() -> None:
        backend = Directory()
        async with serve(backend) as server, Client(server) as client:
            mechanism = make("anna", "expired")
            assert await client.login(mechanism, initial) == REFUSED
            assert '"status"' in mechanism.error
            assert await client.ask(f"AUTH {make.name} YW5uYQ==") == MALFORMED
            assert await client.login(make("anna", TOKEN), initial) == DONE
            assert backend.seen == [TokenCredentials("anna", "expired"), TokenCredentials("anna", TOKEN)]
            assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
            assert backend.sessions[0].states[0].username == "anna"
            assert server.counters.auth_failures == 1

    run(main)


def test_a_token_that_tells_who_it_is(run: Runner) -> None:
    async def main() -> None:
        backend = Directory()
        backend.user = "anna@b.example"
        async with serve(backend) as server, Client(server) as client:
            assert await client.login(OAuthBearerClient("", TOKEN, "mx.example", 587)) == DONE
            assert backend.seen == [TokenCredentials("", TOKEN, "mx.example", 587)]
            assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
            assert backend.sessions[0].states[0].username == "anna@b.example"

    run(main)


@pytest.mark.parametrize("initial", [True, False], ids=["initial", "on-request"])
def test_anonymous(run: Runner, initial: bool) -> None:
    async def main() -> None:
        backend = Directory()
        async with serve(backend) as server, Client(server) as client:
            assert await client.login(AnonymousClient("spam"), initial) == REFUSED
            assert await client.login(AnonymousClient("sirhc"), initial) == DONE
            assert backend.seen == [AnonymousCredentials("spam"), AnonymousCredentials("sirhc")]
            assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
            assert backend.sessions[0].states[0].username == "anonymous"
        async with serve(backend) as server, Client(server) as client:
            assert await client.login(AnonymousClient(), initial) == DONE  # "=", or an empty line

    run(main)


@pytest.mark.parametrize("initial", [True, False], ids=["initial", "on-request"])
def test_external(run: Runner, initial: bool, certificates: Certificates) -> None:
    async def main() -> None:
        backend = Directory()
        async with serve(backend, tls=certificates.server(), implicit_tls=True) as server:
            async with Client(server, certificates.client(certificate=True)) as client:
                assert await client.login(ExternalClient("bert"), initial) == REFUSED
                assert await client.login(ExternalClient("anna"), initial) == DONE
                await client.ask("MAIL FROM:<a@b.example>")
                assert backend.sessions[-1].states[0].username == "anna"
            # With no name it is TLS that tells, and the backend that says whom it means.
            backend.user = "anna of the certificate"
            async with Client(server, certificates.client(certificate=True)) as client:
                assert await client.login(ExternalClient(), initial) == DONE
                await client.ask("MAIL FROM:<a@b.example>")
                assert backend.sessions[-1].states[0].username == "anna of the certificate"
        assert backend.seen == [ExternalCredentials(name) for name in ("bert", "anna", "")]

    run(main)


def test_scram_bound_to_tls(run: Runner, certificates: Certificates) -> None:
    async def main() -> None:
        backend = Directory()
        async with serve(backend, tls=certificates.server()) as server:
            async with Client(server) as client:
                await client.start_tls(certificates.client())
                await client.hello()
                binding = client.binding()
                # Somebody between us who has another certificate; then one who has hidden -PLUS from the client.
                other = ("tls-server-end-point", bytes(32))
                assert await client.login(ScramPlusClient("anna", PASSWORD, other)) == REFUSED
                assert await client.login(ScramClient("anna", PASSWORD, binding)) == REFUSED
                assert await client.login(ScramPlusClient("anna", "wrong", binding)) == REFUSED
                assert await client.login(ScramPlusClient("bert", PASSWORD, binding)) == REFUSED
                assert backend.seen == []
                assert await client.login(ScramPlusClient("anna", PASSWORD, binding)) == DONE
            async with Client(server) as client:
                await client.start_tls(certificates.client())
                await client.hello()
                assert await client.login(ScramClient("anna", PASSWORD)) == DONE
        assert backend.seen == [ScramCredentials("anna")] * 2

    run(main)


def test_a_client_may_stop_at_each_step(run: Runner) -> None:
    async def main() -> None:
        backend = Directory()
        async with serve(backend) as server, Client(server) as client:
            for steps in (1, 2):  # behind our salt, and behind our proof: logged in is who has answered that too
                exchange = Login(ScramClient("anna", PASSWORD))
                reply = await client.ask(exchange.first_line().decode().removesuffix("\r\n"))
                for _ in range(steps - 1):
                    reply = await client.ask(exchange.answer(reply[4:]).decode().removesuffix("\r\n"))
                assert reply.startswith("334 ")
                assert await client.ask("*") == "501 5.7.0 Authentication cancelled"
                assert await client.ask("MAIL FROM:<a@b.example>") == "530 5.7.0 Please authenticate first"
            assert server.counters.authenticated == 0
            assert await client.login(ScramClient("anna", PASSWORD)) == DONE

    run(main)


@pytest.mark.parametrize("offered", [("CRAM-MD5", "PLAIN"), ("PLAIN", "LOGIN"), ("LOGIN",)], ids="+".join)
def test_smtplib(run: Runner, offered: tuple[str, ...], certificates: Certificates) -> None:
    class Some(Directory):
        auth_mechanisms: ClassVar[tuple[str, ...]] = offered

    async def main() -> None:
        backend = Some()

        def client() -> None:
            with smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.example", timeout=30) as smtp:
                with pytest.raises(smtplib.SMTPNotSupportedError):
                    smtp.login("anna", PASSWORD)
                smtp._host = "localhost"  # type: ignore[attr-defined]  # what the certificate is for
                smtp.starttls(context=certificates.client())
                with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
                    smtp.login("anna", "wrong")
                assert refused.value.smtp_code == 535
                assert smtp.login("anna", PASSWORD)[0] == 235
                smtp.sendmail("a@b.example", ["c@d.example"], "Subject: x\r\n\r\nx\r\n")

        async with serve(backend, tls=certificates.server(), allow_insecure_auth=False) as server:
            await asyncio.to_thread(client)
            assert server.counters.messages == 1
        assert backend.sessions[0].states[0].username == "anna"

    run(main)


def test_users_in_a_file(run: Runner, tmp_path: pathlib.Path, certificates: Certificates) -> None:
    page = (pathlib.Path(__file__).parent.parent / "docs" / "authentication.md").read_text()
    code = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    path = tmp_path / "users"
    path.write_text(f"anna:{SECRET.encode()}\n")
    path.chmod(0o600)
    namespace: dict[str, Any] = {}
    exec(code[0], namespace)

    async def main() -> None:
        backend = namespace["Users"](path)
        mechanisms: tuple[Any, ...] = (PlainClient, LoginClient, ScramClient, ScramPlusClient)
        assert isinstance(backend.file, AuthFile)
        try:
            async with serve(backend, tls=certificates.server(), implicit_tls=True) as server:
                for make in mechanisms:
                    async with Client(server, certificates.client()) as client:
                        assert client.mechanisms == PLUS
                        more = [client.binding()] if make is ScramPlusClient else []
                        assert await client.login(make("anna", "wrong", *more)) == REFUSED
                        assert await client.login(make("bert", PASSWORD, *more)) == REFUSED
                        assert await client.ask("MAIL FROM:<a@b.example>") == "530 5.7.0 Please authenticate first"
                        assert await client.login(make("anna", PASSWORD, *more)) == DONE
                        assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
        finally:
            backend.file.close()

    run(main)


# What a backend answers


class Odd(Guests):
    """Its answers are given to it."""

    def __init__(self, answers: list[Any], asynchronous: bool) -> None:
        super().__init__()
        self._answers = answers
        self._asynchronous = asynchronous

    def login(self, state: ConnectionState, username: str, password: str) -> Any:
        def answer() -> Any:
            value = self._answers.pop(0)
            if isinstance(value, BaseException):
                raise value
            return value

        async def later() -> Any:
            await asyncio.sleep(0)
            return answer()

        return later() if self._asynchronous else answer()


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
@pytest.mark.parametrize(
    ("answer", "reply", "logged"),
    [
        (None, REFUSED, ""),
        (AuthFailed(), REFUSED, ""),
        (AuthFailed("Not today"), "535 5.7.8 Not today", ""),
        (AuthUnsupported(), "502 5.5.1 Authentication not supported", ""),
        (AuthRequired(), "530 5.7.0 Please authenticate first", ""),
        (SMTPError(432, EnhancedCode(4, 7, 12), "A password transition is needed"), "432 4.7.12 A password", ""),
        (SMTPError(454, EnhancedCode(4, 7, 0), "Directory down\r\n235 no"), "454-4.7.0 Directory down", ""),
        (ZeroDivisionError("reason"), UNAVAILABLE, "ZeroDivisionError: reason"),
        (TimeoutError(), UNAVAILABLE, "TimeoutError"),
        (SASLError("reason"), MALFORMED, ""),
        (asyncio.CancelledError(), "451 4.3.0 Local error in processing", ""),
        # No session is no login, whatever else it may be.
        (False, UNAVAILABLE, "TypeError"),
        (True, UNAVAILABLE, "TypeError"),
        ("anna", UNAVAILABLE, "TypeError"),
        (0, UNAVAILABLE, "TypeError"),
        (Reply(235, EnhancedCode(2, 7, 0), "x"), UNAVAILABLE, "TypeError"),
    ],
    ids=repr,
)
def test_what_login_answers(run: Runner, answer: Any, reply: str, logged: str, asynchronous: bool) -> None:
    async def main() -> None:
        logger, text = log()
        backend = Odd([answer, DefaultSession()], asynchronous)
        async with serve(backend, error_logger=logger) as server:
            if isinstance(answer, asyncio.CancelledError) and not asynchronous:
                return  # raised by a plain function it is the loop's own
            async with Client(server) as client:
                said = await client.ask(RIGHT)
                assert said.startswith(reply), said
                if said[3] == "-":
                    assert await client.line() == "454 4.7.0 235 no"  # a line of the reply, no reply
                # It is not logged in, and lives: the session from before is still there.
                assert (await client.ask("MAIL FROM:<a@b.example>")) == "250 2.1.0 Sender OK"
                assert backend.sessions[0].calls[-1] == "mail a@b.example"
                assert backend.sessions[0].states[0].username == ""
                assert await client.ask("RSET") == "250 2.0.0 OK"
                assert server.counters.authenticated == 0
                assert server.counters.errors == bool(logged)
                assert server.counters.auth_failures == said.startswith("535")
                assert await client.ask(RIGHT) == DONE
        assert logged in text.getvalue() and bool(text.getvalue()) == bool(logged)
        assert PASSWORD not in text.getvalue()

    run(main)


def test_a_session_that_is_false_is_a_session(run: Runner) -> None:
    class Empty(Mail):
        def __len__(self) -> int:
            return 0

    async def main() -> None:
        session = Empty()
        async with serve(Odd([session], False)) as server, Client(server) as client:
            assert await client.ask(RIGHT) == DONE
            assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
            assert session.calls[-1] == "mail a@b.example"

    run(main)


def test_the_state_that_login_sees(run: Runner, certificates: Certificates) -> None:
    async def main() -> None:
        backend = Users()
        async with serve(backend, tls=certificates.server(), implicit_tls=True) as server:
            async with Client(server, certificates.client()) as client:
                assert await client.ask(RIGHT) == DONE
            ((state, username, password),) = backend.asked
            assert (username, password) == ("anna", PASSWORD)
            assert state.hostname == "client.example" and state.username == "" and state.tls is not None
            assert isinstance(state.remote_addr, tuple) and state.remote_addr[0] == "127.0.0.1"
            # The password goes through SASLprep (RFC 4616 section 2), and may have any letters.
            for sent, arrives in (("\u2168", "IX"), ("a\u00adb", "ab"), ("ü:/=", "ü:/=")):
                async with Client(server, certificates.client()) as client:
                    assert await client.login(PlainClient("anna", sent)) == REFUSED
                    assert backend.asked[-1][2] == arrives

    run(main)


def test_mail_needs_a_login_if_the_backend_says_so(run: Runner) -> None:
    class Insisting(Users):
        session_on_connect = True

    async def main() -> None:
        for backend in (Users(), Insisting()):
            async with serve(backend) as server, Client(server) as client:
                assert client.greeting == "220 localhost ESMTP ready"
                for _ in range(2):
                    assert await client.ask("MAIL FROM:<a@b.example>") == "530 5.7.0 Please authenticate first"
                assert (await client.ask("RCPT TO:<c@d.example>")).startswith("503 ")
                assert (
                    await client.ask("VRFY anna")
                    == "252 2.0.0 Cannot VRFY user, but will accept message and attempt delivery"
                )
                assert await client.ask("RSET") == "250 2.0.0 OK"
                assert await client.ask(WRONG) == REFUSED
                assert await client.ask("MAIL FROM:<a@b.example>") == "530 5.7.0 Please authenticate first"
                assert await client.ask(RIGHT) == DONE
                assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"

    run(main)


def test_wrong_passwords_are_told_to_nobody_else(run: Runner) -> None:
    async def main() -> None:
        logger, text = log()
        async with serve(Users(), error_logger=logger) as server, Client(server) as client:
            assert await client.ask(WRONG) == await client.ask(STRANGER) == REFUSED
        assert text.getvalue() == ""

    run(main)


# Sessions that come and go


def test_the_session_changes_hands(run: Runner) -> None:
    async def main() -> None:
        backend = Guests()
        async with serve(backend) as server:
            async with Client(server) as client:
                assert await client.ask(WRONG) == REFUSED
                assert await client.ask(RIGHT) == DONE
                before, after = backend.sessions
                assert before.calls == ["connect", "helo client.example", "logout"]
                assert after.calls == ["connect", "helo client.example"]
                # RSET and EHLO end a transaction, no login.
                assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
                assert await client.ask("RSET") == "250 2.0.0 OK"
                await client.hello()
                assert client.mechanisms == ["PLAIN", "LOGIN"]
                assert await client.ask(RIGHT) == "503 5.5.1 Already authenticated"
                assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
                assert [state.username for state in after.states] == ["anna", "anna"]
                assert await client.ask("QUIT") == "221 2.0.0 Bye"
            await until(lambda: not server.counters.connections)
        assert before.calls[-1] == after.calls[-1] == "logout"
        assert [each.calls.count("logout") for each in backend.sessions] == [1, 1]

    run(main)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
def test_the_old_session_cannot_spoil_a_login(run: Runner, asynchronous: bool) -> None:
    class Bad(Mail):
        def logout(self) -> Any:
            async def later() -> None:
                await asyncio.sleep(0)
                raise ZeroDivisionError

            if asynchronous:
                return later()
            raise ZeroDivisionError

    class Backend(Guests):
        def anonymous_login(self, state: ConnectionState) -> Mail:
            return Bad()

    async def main() -> None:
        logger, text = log()
        backend = Backend()
        async with serve(backend, error_logger=logger) as server, Client(server) as client:
            assert await client.ask(RIGHT) == DONE
            assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
            assert backend.sessions[0].states[0].username == "anna"
            assert server.counters.errors == 1
        assert "ZeroDivisionError" in text.getvalue()

    run(main)


@pytest.mark.parametrize("asynchronous", [False, True], ids=["plain", "async"])
def test_a_session_may_refuse_at_its_connect(run: Runner, asynchronous: bool) -> None:
    class Choosy(Mail):
        def connect(self, conn: Conn) -> Any:
            super().connect(conn)

            async def later() -> Reply:
                await asyncio.sleep(0)
                return Reply(554, EnhancedCode(5, 7, 1), "Not from there")

            return later() if asynchronous else Reply(554, EnhancedCode(5, 7, 1), "Not from there")

    async def main() -> None:
        choosy, mild = Choosy(), Mail()
        backend = Odd([choosy, mild], asynchronous)
        async with serve(backend) as server, Client(server) as client:
            assert await client.ask(RIGHT) == "554 5.7.1 Not from there"
            assert choosy.calls == ["connect", "logout"]
            assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
            assert backend.sessions[0].states[0].username == "" and server.counters.authenticated == 0
            assert await client.ask("RSET") == "250 2.0.0 OK"
            assert await client.ask(RIGHT) == DONE
            assert mild.calls == ["connect", "helo client.example"]

    run(main)


@pytest.mark.parametrize("named", [True, False], ids=["named", "nameless"])
@pytest.mark.parametrize("guests", [False, True], ids=["auth-required", "guests"])
def test_a_login_is_forgotten_when_tls_begins(
    run: Runner, guests: bool, named: bool, certificates: Certificates
) -> None:
    class Backend(Directory):
        session_on_connect = guests

        def anonymous_login(self, state: ConnectionState) -> Mail:
            if not guests:
                raise AuthRequired
            return self.session("")

    async def main() -> None:
        backend = Backend()
        async with serve(backend, tls=certificates.server()) as server, Client(server) as client:
            assert await client.login(OAuthBearerClient("anna" if named else "", TOKEN)) == DONE
            user = backend.sessions[-1]
            assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
            assert await client.ask("RSET") == "250 2.0.0 OK"
            await client.start_tls(certificates.client())
            await client.hello()
            assert user.calls[-1] == "logout" and user.conn is not None and user.conn.username == ""
            said = await client.ask("MAIL FROM:<a@b.example>")
            if guests:
                assert said == "250 2.1.0 Sender OK"
                assert backend.sessions[-1] is not user and backend.sessions[-1].states[0].username == ""
                assert await client.ask("RSET") == "250 2.0.0 OK"
            else:
                assert said == "530 5.7.0 Please authenticate first"
            assert await client.login(PlainClient("anna", PASSWORD)) == DONE
            assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
            assert backend.sessions[-1].states[0].username == "anna"
            assert user.calls.count("logout") == 1

    run(main)


def test_an_answer_that_was_typed_before_tls_is_dropped(run: Runner, certificates: Certificates) -> None:
    async def main() -> None:
        backend = Users()
        async with serve(backend, tls=certificates.server()) as server, Client(server) as client:
            assert await client.ask("STARTTLS", "EHLO evil.example", RIGHT) == "220 2.0.0 Ready to start TLS"
            await client.writer.start_tls(certificates.client(), server_hostname="localhost")
            assert await client.ask("MAIL FROM:<a@b.example>") == "503 5.5.1 Say hello first"
            await client.hello()
            assert await client.ask("MAIL FROM:<a@b.example>") == "530 5.7.0 Please authenticate first"
        assert backend.asked == []

    run(main)


# The session's own hook


class Hooked(Mail):
    """Decides itself."""

    answers: ClassVar[list[Any]]

    def auth(self, credentials: Credentials) -> Any:
        self.calls.append(f"auth {type(credentials).__name__}")
        value = self.answers.pop(0)
        if isinstance(value, Exception):
            raise value
        return value


class HookedLater(Hooked):
    async def auth(self, credentials: Credentials) -> Any:
        await asyncio.sleep(0)
        return super().auth(credentials)


@pytest.mark.parametrize("kind", [Hooked, HookedLater])
def test_the_auth_hook(run: Runner, kind: type[Hooked]) -> None:
    answers: list[tuple[Any, str]] = [
        (Reply(535, EnhancedCode(5, 7, 8), "No"), "535 5.7.8 No"),
        (AuthFailed(), REFUSED),
        (SMTPError(454, EnhancedCode(4, 7, 0), "Later"), "454 4.7.0 Later"),
        (ZeroDivisionError("reason"), UNAVAILABLE),
        (True, UNAVAILABLE),
        (False, UNAVAILABLE),
        (None, DONE),
    ]

    class Session(kind):  # type: ignore[misc, valid-type]
        pass

    Session.answers = [answer for answer, _ in answers]
    sessions: list[Mail] = []

    def factory() -> Session:
        sessions.append(Session())
        return sessions[-1]  # type: ignore[return-value]

    async def main() -> None:
        logger, text = log()
        async with serve(DefaultBackend(factory), error_logger=logger) as server:
            async with Client(server) as client:
                assert client.mechanisms == ["PLAIN", "LOGIN"]
                for _, reply in answers:
                    assert await client.ask(RIGHT) == reply
                assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
            await until(lambda: not server.counters.connections)
            assert (server.counters.authenticated, server.counters.auth_failures) == (1, 2)
            assert server.counters.errors == 3
        (session,) = sessions  # it stays the session
        hooks = [call for call in session.calls if not call.startswith("auth ")]
        assert hooks == ["connect", "helo client.example", "mail a@b.example", "logout"]
        assert session.calls.count("auth PlainCredentials") == len(answers)
        assert session.states[0].username == "anna"
        assert PASSWORD not in text.getvalue()

    run(main)


def test_the_auth_hook_names_its_mechanisms(run: Runner) -> None:
    class Session(Mail):
        auth_mechanisms: ClassVar[tuple[str, ...]] = ("XOAUTH2", "ANONYMOUS")

        def auth(self, credentials: Credentials) -> None:
            seen.append(credentials)

    seen: list[Credentials] = []

    async def main() -> None:
        async with serve(DefaultBackend(Session)) as server, Client(server) as client:
            assert client.mechanisms == ["XOAUTH2", "ANONYMOUS"]
            assert await client.ask(RIGHT) == "504 5.5.4 Authentication mechanism not offered"
            assert await client.login(XOAuth2Client("anna", TOKEN)) == DONE
        assert seen == [TokenCredentials("anna", TOKEN)]
        async with serve(DefaultBackend(Session), disable_auth=True) as server, Client(server) as client:
            assert client.mechanisms == []
        async with serve(DefaultBackend(Session), allow_insecure_auth=False) as server, Client(server) as client:
            assert client.mechanisms == []
            assert await client.ask("AUTH ANONYMOUS =") == "502 5.5.1 Command not implemented"

    run(main)


# Waiting


class Waiting(Users):
    """Its login ends when the test says so."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = asyncio.Event()
        self.go = asyncio.Event()
        self.cancelled = asyncio.Event()

    async def login(self, state: ConnectionState, username: str, password: str) -> Mail | None:
        self.begun.set()
        try:
            await self.go.wait()
        except asyncio.CancelledError:
            self.cancelled.set()
            raise
        return super().login(state, username, password)  # type: ignore[no-any-return]


@pytest.mark.parametrize("right", [True, False], ids=["right", "wrong"])
def test_commands_behind_auth_wait_for_it(run: Runner, right: bool) -> None:
    async def main() -> None:
        backend = Waiting()
        async with serve(backend) as server, Client(server) as client:
            commands = ("MAIL FROM:<a@b.example>", "RCPT TO:<c@d.example>", "RSET", "NOOP")
            client.writer.write("".join(f"{each}\r\n" for each in (RIGHT if right else WRONG, *commands)).encode())
            await backend.begun.wait()
            # Another client has come and gone, and has seen the server work.
            async with Client(server) as other:
                assert await other.ask("MAIL FROM:<a@b.example>") == "530 5.7.0 Please authenticate first"
            assert backend.sessions == [] and server.counters.rejected == 1
            backend.go.set()
            codes = [(await client.line())[:3] for _ in range(5)]
            assert codes == (["235", "250", "250", "250", "250"] if right else ["535", "530", "503", "250", "250"])

    run(main)


@pytest.mark.parametrize("how", ["reset", "end of TLS"])
def test_a_peer_that_leaves_cancels_its_login(run: Runner, how: str, certificates: Certificates) -> None:
    async def main() -> None:
        logger, text = log()
        backend = Waiting()
        tls = how == "end of TLS"
        options = {"tls": certificates.server(), "implicit_tls": True} if tls else {}
        async with serve(backend, error_logger=logger, **options) as server:
            async with Client(server, certificates.client() if tls else None) as client:
                client.writer.write(f"{RIGHT}\r\nMAIL FROM:<a@b.example>\r\n".encode())
                await backend.begun.wait()
                if not tls:
                    client.reset()
            await backend.cancelled.wait()
            await until(lambda: not server.counters.connections)
            assert server.counters.errors == server.counters.authenticated == 0
        assert text.getvalue() == ""
        assert backend.sessions == []

    run(main)


def test_a_half_closed_peer_is_answered(run: Runner) -> None:
    async def main() -> None:
        backend = Waiting()
        async with serve(backend) as server, Client(server) as client:
            client.writer.write(f"{RIGHT}\r\n".encode())
            client.writer.write_eof()
            await backend.begun.wait()
            backend.go.set()
            assert await client.line() == DONE
            assert await client.reader.read() == b""

    run(main)


@pytest.mark.parametrize("where", ["login", "connect"])
def test_a_login_that_does_not_return(run: Runner, where: str) -> None:
    class Session(Mail):
        async def connect(self, conn: Conn) -> None:  # type: ignore[override]
            super().connect(conn)
            if where == "connect" and len(sessions) == 1:
                await hang()

    class Backend(Guests):
        async def login(self, state: ConnectionState, username: str, password: str) -> Mail:
            self.asked.append((state, username, password))
            if where == "login" and len(self.asked) == 1:
                await hang()
            sessions.append(Session())
            return sessions[-1]

    sessions: list[Session] = []
    hanging = asyncio.Event()

    async def hang() -> None:
        hanging.set()
        await asyncio.Event().wait()

    async def main() -> None:
        logger, text = log()
        backend = Backend()
        async with serve(backend, error_logger=logger, hook_timeout=50) as server, Client(server) as client:
            client.writer.write(f"{RIGHT}\r\n".encode())
            await hanging.wait()
            lose_patience(server, 50)
            assert await client.line() == "451 4.3.0 Local error in processing"
            assert server.counters.errors == 1 and "did not return in time" in text.getvalue()
            assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"
            assert backend.sessions[0].states[0].username == "" and server.counters.authenticated == 0
            assert await client.ask("RSET") == "250 2.0.0 OK"
            assert await client.ask(RIGHT) == DONE
            if where == "connect":
                await until(lambda: sessions[0].calls == ["connect", "logout"])
            assert backend.sessions[0].calls[-1] == "logout"
        assert PASSWORD not in text.getvalue()

    run(main)


def test_silence_within_an_exchange(run: Runner) -> None:
    async def main() -> None:
        async with serve(Users(), read_timeout=50) as server, Client(server) as client:
            assert await client.ask("AUTH LOGIN YW5uYQ==") == "334 UGFzc3dvcmQ6"
            lose_patience(server, 50)
            assert await client.line() == "421 4.4.2 Timed out"
            assert await client.reader.read() == b""

    run(main)


def test_a_server_that_stops_finishes_the_login(run: Runner) -> None:
    async def main() -> None:
        backend = Waiting()
        server = serve(backend)
        await server.start()
        async with Client(server) as client:
            client.writer.write(f"{RIGHT}\r\n".encode())
            await backend.begun.wait()
            stopping = asyncio.ensure_future(server.shutdown())
            await until(lambda: server.roster.stopping)
            backend.go.set()
            assert await client.line() == DONE
            assert await client.line() == "421 4.3.2 Service shutting down"
            assert await client.reader.read() == b""
        await stopping

    run(main)


# Failures


class Delays:
    """In place of `failure_delay`: keeps what it was asked, and decides."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
        self.asked: list[tuple[float, int]] = []
        self._seconds = seconds
        monkeypatch.setattr(admission, "failure_delay", self)

    def __call__(self, first: float, failures: int) -> float:
        self.asked.append((first, failures))
        return self._seconds


def test_the_delay_doubles() -> None:
    assert [failure_delay(1.0, failures) for failures in range(1, 7)] == [1, 2, 4, 8, 10, 10]
    assert failure_delay(1.0, 10**9) == 10
    assert failure_delay(0.0, 5) == 0
    assert failure_delay(0.01, 3) == 0.04


@pytest.mark.parametrize("user", ["anna", "bert"])
@pytest.mark.parametrize("make", [PlainClient, LoginClient, CramMD5Client, ScramClient])
def test_each_failure_is_delayed(run: Runner, make: Any, user: str, monkeypatch: pytest.MonkeyPatch) -> None:
    delays = Delays(monkeypatch, 0.001)

    async def main() -> None:
        async with serve(Directory(), auth_failure_delay=0.5) as server, Client(server) as client:
            for _ in range(3):
                assert await client.login(make(user, "wrong")) == REFUSED
            assert await client.login(make("anna", PASSWORD)) == DONE
        assert delays.asked == [(0.5, 1), (0.5, 2), (0.5, 3)]

    run(main)


def test_a_failure_waits_and_hurts_nobody_else(run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    Delays(monkeypatch, 3600)

    class Watching(Observer):
        def auth_failed(self, conn: Conn) -> None:
            failed.append(conn)

        def authenticated(self, conn: Conn, username: str) -> None:
            users.append(username)

    failed: list[Conn] = []
    users: list[str] = []

    async def main() -> None:
        async with serve(Users(), auth_failure_delay=3600, observer=Watching()) as server:
            async with Client(server) as slow:
                slow.writer.write(f"{WRONG}\r\n{RIGHT}\r\nNOOP\r\n".encode())
                await until(lambda: failed)
                async with Client(server) as other:
                    assert await other.ask(RIGHT) == DONE
                    assert await other.ask("QUIT") == "221 2.0.0 Bye"
                answer = asyncio.ensure_future(slow.line())
                async with Client(server) as other:
                    assert await other.ask(RIGHT) == DONE
                assert not answer.done() and len(users) == 2
                # Who hangs up is not waited for.
                slow.reset()
                with contextlib.suppress(ConnectionError):
                    assert await answer == ""
            await until(lambda: not server.counters.connections)
        assert len(failed) == 1
        assert users == ["anna", "anna"]

    run(main)


@pytest.mark.parametrize("most", [1, 3])
def test_too_many_failures(run: Runner, most: int) -> None:
    async def main() -> None:
        backend = Users()
        async with serve(backend, max_auth_failures=most) as server, Client(server) as client:
            for _ in range(most - 1):
                assert await client.ask("AUTH PLAIN !") == NOT_BASE64  # no failed login
                assert await client.ask(WRONG) == REFUSED
            # What comes behind the last is not run, be it right or not.
            assert await client.ask(STRANGER, RIGHT, "NOOP") == REFUSED
            assert await client.line() == ENOUGH
            assert await client.reader.read() == b""
            assert server.counters.auth_failures == most and len(backend.asked) == most

    run(main)


def test_failures_count_up_to_a_success_no_further(run: Runner) -> None:
    async def main() -> None:
        async with serve(Users(), max_auth_failures=2) as server, Client(server) as client:
            assert await client.ask(WRONG) == REFUSED
            assert await client.ask(RIGHT) == DONE
            for _ in range(3):
                assert await client.ask(WRONG) == "503 5.5.1 Already authenticated"
            assert await client.ask("MAIL FROM:<a@b.example>") == "250 2.1.0 Sender OK"

    run(main)


@pytest.mark.parametrize("make", [XOAuth2Client, OAuthBearerClient])
@pytest.mark.parametrize("last", ["*", "!", "AQ==", "A" * 20000], ids=["cancelled", "garbage", "as told", "too long"])
def test_a_refused_token_counts_however_it_ends(
    run: Runner, make: Any, last: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    delays = Delays(monkeypatch, 0)

    async def main() -> None:
        backend = Directory()
        async with serve(backend, max_auth_failures=3) as server, Client(server) as client:
            guess = Login(make("anna", "guess")).first_line().decode().removesuffix("\r\n")
            for number in (1, 2):
                assert (await client.ask(guess)).startswith("334 ")
                # Before the client knows: what it says next does not matter.
                assert server.counters.auth_failures == number and len(delays.asked) == number
                assert (await client.ask(last))[:3] in ("500", "501", "535")
            assert await client.ask(guess) == REFUSED
            assert await client.line() == ENOUGH
            assert await client.reader.read() == b""
            assert server.counters.auth_failures == len(delays.asked) == len(backend.seen) == 3

    run(main)


def test_callbacks_that_fail_do_not_count_as_guesses(run: Runner) -> None:
    async def main() -> None:
        logger, _ = log()
        answers = [ZeroDivisionError(), AuthUnsupported(), None, ZeroDivisionError(), DefaultSession()]
        backend = Odd(answers, True)
        async with serve(backend, error_logger=logger, max_auth_failures=2) as server, Client(server) as client:
            replies = [(await client.ask(RIGHT))[:3] for _ in range(5)]
            assert replies == ["454", "502", "535", "454", "235"]
            assert server.counters.auth_failures == 1

    run(main)


# MAIL's parameter AUTH (RFC 4954 section 5)


@pytest.mark.parametrize(
    ("parameter", "trusted", "others"),
    [
        ("", None, None),
        (" AUTH=<>", "", ""),
        (" AUTH=anna@b.example", "anna@b.example", ""),
        (" auth=e+3Dmc2@b.example", "e=mc2@b.example", ""),
        (" AUTH=+22a+20b+22@b.example", '"a b"@b.example', ""),
    ],
)
def test_auth_parameter_of_mail(run: Runner, parameter: str, trusted: str | None, others: str | None) -> None:
    async def main() -> None:
        backend = Guests()
        async with serve(backend) as server, Client(server) as client:
            for bad in ("AUTH", "AUTH=", "AUTH=anna", "AUTH=a@b+", "AUTH=a@b+0D+0A", "AUTH=<a@b>"):
                assert (await client.ask(f"MAIL FROM:<a@b.example> {bad}")).startswith("501 5.5.4 "), bad
            # Who has not logged in is believed nothing.
            assert await client.ask(f"MAIL FROM:<a@b.example>{parameter}") == "250 2.1.0 Sender OK"
            assert backend.sessions[0].params[-1].auth == others
            assert await client.ask("RSET") == "250 2.0.0 OK"
            assert await client.ask(RIGHT) == DONE
            assert await client.ask(f"MAIL FROM:<a@b.example>{parameter}") == "250 2.1.0 Sender OK"
            assert backend.sessions[1].params[-1].auth == trusted

    run(main)


# Secrets


def traces_of(*secrets: str) -> Iterator[str]:
    """The forms in which a secret may show up."""
    for secret in secrets:
        yield secret
        for before in ("", "\0", "anna\0", "\0anna\0"):
            encoded = base64.b64encode(f"{before}{secret}".encode()).decode()
            yield encoded.rstrip("=")[:-1]


@pytest.mark.parametrize("password", [PASSWORD, "wrong-one"])
def test_secrets_are_in_no_trace_and_no_log(
    run: Runner, password: str, caplog: pytest.LogCaptureFixture, certificates: Certificates
) -> None:
    token = TOKEN if password == PASSWORD else "wrong-token"
    trace = io.StringIO()

    # Each with the initial response, or without: that is left to the request.
    exchanges: list[tuple[Callable[[Client], ClientMechanism], bool]] = [
        (lambda client: PlainClient("anna", password), True),
        (lambda client: PlainClient("anna", password), False),
        (lambda client: LoginClient("anna", password), True),
        (lambda client: CramMD5Client("anna", password), True),
        (lambda client: XOAuth2Client("anna", token), True),
        (lambda client: OAuthBearerClient("anna", token), False),
        (lambda client: ScramPlusClient("anna", password, client.binding()), True),
    ]

    async def main() -> None:
        loop = asyncio.get_running_loop()
        loop.set_debug(True)
        loop.slow_callback_duration = 0  # so that the loop logs what it runs
        options = {"debug": trace, "tls": certificates.server(), "implicit_tls": True, "error_delay": 0.001}
        async with serve(Directory(), **options) as server:
            for make, initial in exchanges:
                async with Client(server, certificates.client()) as client:
                    said = await client.login(make(client), initial)
                    assert said == (DONE if password == PASSWORD else REFUSED)
            # Behind a refused command the next one waits, and stands in the loop's own log.
            async with Client(server, certificates.client()) as client:
                encoded = base64.b64encode(f"\0anna\0{password}".encode()).decode()
                assert (await client.ask("FOO", f"AUTH PLAIN {encoded}", "NOOP"))[:3] == "500"
                assert await client.line() == (DONE if password == PASSWORD else REFUSED)
                assert await client.line() == "250 2.0.0 OK"
        loop.set_debug(False)

    with caplog.at_level(logging.DEBUG):
        run(main)
    said = trace.getvalue()
    assert "C: AUTH PLAIN ***\n" in said and "C: ***\n" in said and "S: 334 ***\n" in said
    for form in traces_of(password, token):
        assert form not in said
        assert form not in caplog.text


@pytest.mark.parametrize("how", ["whole", "octets"])
def test_secrets_in_malformed_commands_are_masked(how: str) -> None:
    secret = base64.b64encode(b"\0anna\0correct-horse-battery").decode()
    tail = "dGFpbA"
    for data in (
        f"AUTH PLAIN {secret}\r\n",
        f"auth plain {secret} {secret}\r\n",
        f"AUTH {secret}\r\n",  # the mechanism was forgotten
        f"AUTH  {secret} PLAIN\r\n",
        f"AUTH PLAIN\r\n{secret}\r\n",
        f"AUTH PLAIN\r\n {secret}\r\n",
        f"AUTH PLAIN\r\nAUTH PLAIN {secret}\r\n",
        f"AUTH PLAIN {secret}{'A' * limits.AUTH_LINE}{secret}\r\n",
        f"AUTH PLAIN\r\n{'A' * limits.AUTH_LINE}{secret}\r\n",
        f"AUTH PLAIN {'A' * limits.AUTH_LINE} {tail} {secret}\r\n",
        f"AUTH PLAIN {secret}\0\r\n",
    ):
        lines: list[str] = []
        core = authenticating_core(max_errors=0)
        core.trace = lambda who, octets, lines=lines: lines.append(f"{who}: {octets.decode()}")
        answer = Answering()
        octets = b"EHLO client.example\r\n" + data.encode() + b"NOOP\r\n"
        for piece in cut(octets, how):
            core.receive_data(piece)
            while (event := core.next_event()) is not None:
                answer(core, event)
        said = "".join(lines)
        assert said.endswith("C: NOOP\r\nS: 250 2.0.0 OK\r\n"), data[:40]
        for form in (secret, tail, secret[:20]):
            assert form not in said, data[:40]


def test_credentials_are_not_in_a_repr() -> None:
    password = "correct-horse"
    for value in (
        Auth("PLAIN", password.encode()),
        AuthResponse(password.encode()),
        PlainCredentials("", "anna", password),
        TokenCredentials("anna", password),
        CramMD5Credentials("anna", b"", password),
    ):
        assert password not in repr(value)


def test_a_backend_that_waits_for_another_task(run: Runner) -> None:
    """An awaitable that is no coroutine does as well."""

    class Backend(Users):
        def login(self, state: ConnectionState, username: str, password: str) -> Awaitable[Mail | None]:
            return asyncio.ensure_future(self._later(username, password))

        async def _later(self, username: str, password: str) -> Mail | None:
            await asyncio.sleep(0)
            return self.session(username) if password == PASSWORD else None

    async def main() -> None:
        async with serve(Backend()) as server, Client(server) as client:
            assert await client.ask(WRONG) == REFUSED
            assert await client.ask(RIGHT) == DONE

    run(main)
