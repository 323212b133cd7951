"""What an operator turns on with `fastsmtp serve`, each by the real command: TLS, users, trusted peers, sockets, metrics, logs."""

from __future__ import annotations

import asyncio.selector_events
import asyncio.sslproto
import base64
import contextlib
import http.client
import inspect
import json
import logging
import os
import pathlib
import re
import select
import signal
import smtplib
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from typing import Any

import pytest

from fastsmtp import ConnectionState, DataContext, MailParams, RcptParams, Reply
from fastsmtp._arguments import CLI_MESSAGE_BYTES
from fastsmtp._logs import RECIPIENTS, EventLog, configure
from fastsmtp._serve import _service
from fastsmtp.authfile import AuthFile
from fastsmtp.cli import build_parser, main

from .certificates import Authority
from .serving import Serving, serving, stored

BOTH = pytest.mark.parametrize("workers", ["1", "2"])
INSECURE = ("--allow-insecure-auth", "--auth-failure-delay", "0")
PASSWORD = "s3cret of anna"


def run(*arguments: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastsmtp", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, text=True, check=False, timeout=60)


def add_user(path: pathlib.Path, name: str, password: str) -> str:
    """Set a password, quickly computed; the file's path."""
    AuthFile(path, missing_ok=True).add(name, password, iterations=4096)
    return str(path)


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives as soon as that is something."""
    while not (value := condition()):
        time.sleep(0.02)  # the test's own time-out ends it
    return value


def connect(server: Serving) -> smtplib.SMTP:
    return smtplib.SMTP("127.0.0.1", server.port, local_hostname="client.example", timeout=30)


def deliver(client: smtplib.SMTP, message: bytes = b"Subject: one\r\n\r\ntext\r\n") -> None:
    assert client.sendmail("a@b.example", ["c@d.example"], message) == {}


def may_log_in(server: Serving, name: str, password: str) -> bool:
    with connect(server) as client:
        try:
            client.login(name, password)
        except smtplib.SMTPAuthenticationError as error:
            assert error.smtp_code == 535
            return False
        return True


def children(server: Serving) -> list[int]:
    """The processes of the server, in the order in which they were started."""
    path = pathlib.Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
    if not path.exists():
        pytest.skip("no /proc")
    return [int(pid) for pid in path.read_text().split()]


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Authority:
    return Authority(tmp_path)


# What contradicts itself, and what is not there


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--tls-key k", "--tls-key needs --tls-cert"),
        ("--tls-name a.example c k", "--tls-name needs --tls-cert"),
        ("--tls-client-ca c", "--tls-client-ca needs --tls-cert"),
        ("--implicit-tls", "--implicit-tls needs --tls-cert"),
        ("--require-tls", "--require-tls needs --tls-cert"),
        ("--tls-cert c --tls-name a.example c k --tls-name A.example. c k", "--tls-name a.example is there twice"),
        ("--require-auth", "--require-auth needs --auth-file"),
        ("--allow-insecure-auth", "--allow-insecure-auth needs --auth-file"),
        ("--auth-file f", "--auth-file needs --tls-cert or --allow-insecure-auth: nobody could log in"),
        ("--tls-cert c --auth-file f --require-tls --allow-insecure-auth", "contradict each other"),
        ("--fd 3 --systemd", "not allowed with argument --fd"),
        ("--unix x --fd 3", "not allowed with argument --unix"),
        ("--fd 3 --port 8025", "--port has no meaning with --fd"),
        ("--host 127.0.0.1 --systemd", "--host has no meaning with --systemd"),
        ("--discard --line-end crlf", "--line-end needs --maildir"),
        ("--print --maildir x", "not allowed with argument --print"),
        ("--lmtp --port 25", "--lmtp must not be on port 25"),
        ("--greeting-delay 300", "--greeting-delay must be less than --read-timeout"),
        ("--error-delay 2 --read-timeout 1", "--error-delay must be less than --read-timeout"),
        ("--proxy 192.0.2.1/24", "has host bits set"),
        ("--allow-xclient example.org", "a network, unix or loopback is needed"),
        ("--allow-xforward ", "expected one argument"),
        ("--metrics x", "a port, or host:port, is needed"),
        ("--metrics ::1", "a port, or host:port, is needed"),
        ("--metrics 65536", "a port, or host:port, is needed"),
        ("--fd -1", "0 or more is needed"),
        ("--greeting-delay nan", "0 or more is needed"),
        ("--drain-timeout -1", "0 or more is needed"),
        ("--bare-newlines drop", "invalid choice"),
    ],
)
def test_a_contradiction_is_one_line_and_exit_code_2(
    options: str, reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["serve", *options.split()])
    assert stopped.value.code == 2
    usage, error = capsys.readouterr().err.splitlines()
    assert usage == "usage: fastsmtp serve [OPTION ...]"
    assert error.startswith("fastsmtp serve: error: ") and reason in error


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("--tls-cert /no/cert", "cannot use the TLS certificate in /no/cert: No such file or directory"),
        ("--tls-cert BAD", "cannot use the TLS certificate in BAD: "),
        ("--tls-cert CERT --tls-key OTHER", "cannot use the TLS certificate in CERT, OTHER: key values mismatch"),
        ("--tls-cert CERT --tls-name x.example BAD CERT", "cannot use the TLS certificate in BAD, CERT: "),
        ("--tls-cert CERT --tls-client-ca BAD", "cannot use the authorities in BAD: "),
        ("--auth-file /no/users --allow-insecure-auth", "cannot read /no/users: No such file or directory"),
        ("--auth-file BAD --allow-insecure-auth", "BAD:1: not of the form "),
        ("--fd 9999", "cannot listen on file descriptor 9999: Bad file descriptor"),
        ("--fd PIPE", "cannot listen on file descriptor PIPE: "),
        ("--systemd", "systemd has given no sockets: is there a .socket unit of the same name?"),
    ],
)
def test_what_cannot_be_used_is_one_line_and_exit_code_1(
    tmp_path: pathlib.Path,
    authority: Authority,
    options: str,
    reason: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        "fastsmtp._logs.configure", lambda form, verbose: None
    )  # it would take the handlers of the tests
    ours, theirs = os.pipe()
    names = {
        "CERT": str(authority.issue()),
        "OTHER": str(authority.issue("other.example")),
        "BAD": str(tmp_path / "bad"),
        "PIPE": str(ours),
    }
    (tmp_path / "bad").write_text("nothing of the kind")
    for name, path in names.items():
        options, reason = options.replace(name, path), reason.replace(name, path)
    port = () if "--fd" in options or "--systemd" in options else ("--port", "0")
    try:
        assert main(["serve", "--discard", *port, *options.split()]) == 1
    finally:
        os.close(ours)
        os.close(theirs)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"fastsmtp: {reason}")


def test_a_busy_port_for_metrics() -> None:
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = busy.getsockname()[1]
        done = run("serve", "--port", "0", "--discard", "--metrics", str(port))
    assert done.returncode == 1
    assert done.stderr == f"fastsmtp: cannot serve metrics on 127.0.0.1:{port}: Address already in use\n"


def test_metrics_without_the_package() -> None:
    code = (
        "import sys; sys.modules['prometheus_client'] = None\n"
        "from fastsmtp.cli import main\n"
        "sys.exit(main(['serve', '--port', '0', '--discard', '--metrics', '0']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "fastsmtp: prometheus_client is not installed: pip install 'fastsmtpd[metrics]'\n"


def test_what_is_not_turned_on_is_not_loaded() -> None:
    code = (
        "import sys\nfrom fastsmtp import _serve\nfrom fastsmtp.cli import build_parser\n"
        "service = _serve._service(build_parser().parse_args(['serve', '--discard']))\n"
        "options = service.options\n"
        "assert (options.tls, options.observer, options.debug) == (None, None, None)\n"
        "assert service.users is None and service.metrics is None\n"
        "modules = {'fastsmtp.tls', 'fastsmtp.authfile', 'fastsmtp._metrics', 'prometheus_client', 'wsgiref'}\n"
        "modules |= {'fastsmtp._relay', 'fastsmtp.delivery.queue', 'sqlite3', 'asyncpg'}\n"
        "assert not modules & set(sys.modules), modules & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr


# Options that are handed on


@pytest.mark.parametrize(
    ("options", "name", "value"),
    [
        ("", "max_message_bytes", CLI_MESSAGE_BYTES),
        ("", "strict", False),
        ("", "allow_xclient", []),
        ("--strict", "strict", True),
        ("--bare-newlines keep", "bare_newlines", "keep"),
        ("--max-message-bytes 5", "max_message_bytes", 5),
        ("--max-recipients 5", "max_recipients", 5),
        ("--max-errors 5", "max_errors", 5),
        ("--max-auth-failures 5", "max_auth_failures", 5),
        ("--max-connections 5", "max_connections", 5),
        ("--max-connections-per-address 5", "max_connections_per_address", 5),
        ("--max-connection-rate 5", "max_connection_rate", 5),
        ("--min-body-rate 5", "min_body_rate", 5),
        ("--read-timeout 5.5", "read_timeout", 5.5),
        ("--write-timeout 5.5", "write_timeout", 5.5),
        ("--greeting-delay 5.5", "greeting_delay", 5.5),
        ("--error-delay 5.5", "error_delay", 5.5),
        ("--auth-failure-delay 5.5", "auth_failure_delay", 5.5),
        ("--allow-xforward unix --allow-xforward 192.0.2.0/24", "allow_xforward", ["unix", "192.0.2.0/24"]),
        ("--allow-xclient loopback", "allow_xclient", ["127.0.0.0/8", "::1/128"]),
        ("--proxy 2001:db8::1", "proxy_from", ["2001:db8::1"]),
    ],
)
def test_options_reach_the_server(options: str, name: str, value: object) -> None:
    assert getattr(_service(build_parser().parse_args(["serve", *options.split()])).options, name) == value


def test_a_place_for_metrics() -> None:
    for text, place in (("9", ("127.0.0.1", 9)), (":9", ("", 9)), ("[::1]:9", ("::1", 9)), ("h:9", ("h", 9))):
        assert build_parser().parse_args(["serve", "--metrics", text]).metrics == place


@pytest.mark.parametrize(
    ("options", "stores"),
    [((), None), (("--bare-newlines", "normalize"), b"a\r\nb\r\n"), (("--bare-newlines", "keep"), b"a\nb\r\n")],
)
def test_bare_newlines(tmp_path: pathlib.Path, options: tuple[str, ...], stores: bytes | None) -> None:
    with serving("--port", "0", "--maildir", str(tmp_path / "M"), *options) as server:
        with connect(server) as client:
            client.ehlo()
            client.mail("a@b.example")
            client.rcpt("c@d.example")
            client.docmd("DATA")
            client.send(b"a\nb\r\n.\r\n")
            assert client.getreply()[0] == (550 if stores is None else 250)
        server.stop()
    assert stored(tmp_path / "M") == ([] if stores is None else [stores])


def test_strict() -> None:
    for options, code in ((), 250), (("--strict",), 501):
        with serving("--port", "0", "--discard", *options) as server, connect(server) as client:
            client.ehlo()
            assert client.docmd("MAIL", "FROM: <a@b.example>")[0] == code


# TLS


def shown(server: Serving, context: ssl.SSLContext, name: str = "mx.example") -> str:
    """The name in the certificate that STARTTLS shows to a client that asks for `name`."""
    with connect(server) as client:
        client._host = name  # type: ignore[attr-defined]  # what smtplib asks for
        client.starttls(context=context)
        assert isinstance(client.sock, ssl.SSLSocket)
        certificate = client.sock.getpeercert()
        assert certificate is not None
        names: Any = certificate["subjectAltName"]
        client.ehlo()
        assert not client.has_extn("starttls")
        return str(names[0][1])


@BOTH
def test_starttls_and_sighup(tmp_path: pathlib.Path, authority: Authority, workers: str) -> None:
    cert = authority.issue(file="server.pem")
    context = authority.client()
    options = ("--port", "0", "--discard", "--tls-cert", str(cert), "--workers", workers, "-v")
    with serving(*options) as server:
        assert shown(server, context) == "mx.example"
        # A file that is bad: one line, and the old one stays.
        cert.write_text("nothing of the kind")
        server.process.send_signal(signal.SIGHUP)
        line = server.line("certificates")
        assert "ERROR" in line and f"cannot use the TLS certificate in {cert}" in line
        assert shown(server, context) == "mx.example"
        # A good one: each process says so.
        authority.issue("renewed.example", file="server.pem")
        server.process.send_signal(signal.SIGHUP)
        for _ in range({"1": 1, "2": 3}[workers]):
            assert "INFO fastsmtp: the certificates were read again" in server.line("certificates")
        for _ in range(8):
            assert shown(server, context, "renewed.example") == "renewed.example"
        code, rest = server.stop()
    assert code == 0
    assert "certificates" not in rest


def test_a_worker_that_is_replaced_has_the_new_certificate(tmp_path: pathlib.Path, authority: Authority) -> None:
    cert = authority.issue(file="server.pem")
    with serving("--port", "0", "--discard", "--tls-cert", str(cert), "--workers", "2", "-v") as server:
        authority.issue("renewed.example", file="server.pem")
        server.process.send_signal(signal.SIGHUP)
        for _ in range(3):
            server.line("read again")
        for victim in children(server):
            os.kill(victim, signal.SIGKILL)
        for _ in range(2):
            server.line("starting another")
        for _ in range(8):
            assert shown(server, authority.client(), "renewed.example") == "renewed.example"
        assert server.stop()[0] == 0


def test_names_of_certificates(tmp_path: pathlib.Path, authority: Authority) -> None:
    cert, other = str(authority.issue()), str(authority.issue("*.other.example"))
    with serving(
        "--port", "0", "--discard", "--tls-cert", cert, "--tls-key", cert, "--tls-name", "*.other.example", other, other
    ) as server:
        assert shown(server, authority.client(), "mx.example") == "mx.example"
        assert shown(server, authority.client(), "a.other.example") == "*.other.example"


def test_implicit_tls(tmp_path: pathlib.Path, authority: Authority) -> None:
    cert = str(authority.issue("localhost"))
    with serving("--port", "0", "--discard", "--tls-cert", cert, "--implicit-tls") as server:
        with smtplib.SMTP_SSL("localhost", server.port, timeout=30, context=authority.client()) as client:
            client.ehlo()
            assert not client.has_extn("starttls")
            deliver(client)


def test_require_tls(tmp_path: pathlib.Path, authority: Authority) -> None:
    cert = str(authority.issue())
    with serving("--port", "0", "--discard", "--tls-cert", cert, "--require-tls") as server:
        with connect(server) as client:
            client.ehlo()
            assert client.mail("a@b.example")[0] == 530
            client._host = "mx.example"  # type: ignore[attr-defined]
            client.starttls(context=authority.client())
            deliver(client)


def test_client_certificates(tmp_path: pathlib.Path, authority: Authority) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    foreign = Authority(elsewhere).issue("client.example")
    own = authority.issue("client.example")
    cert = str(authority.issue())
    with serving("--port", "0", "--discard", "--tls-cert", cert, "--tls-client-ca", str(authority.ca)) as server:
        assert shown(server, authority.client()) == "mx.example"
        assert shown(server, authority.client(own)) == "mx.example"
        # With TLS 1.3 the client hears of it when it reads, smtplib as an error of its own.
        with pytest.raises((OSError, smtplib.SMTPException)):
            shown(server, authority.client(foreign))
        assert shown(server, authority.client()) == "mx.example"


# Users


def test_login_needs_tls(tmp_path: pathlib.Path, authority: Authority) -> None:
    users = add_user(tmp_path / "users", "anna", PASSWORD)
    options = ("--port", "0", "--discard", "--auth-file", users, "--require-auth", "--auth-failure-delay", "0")
    with serving(*options, "--tls-cert", str(authority.issue())) as server, connect(server) as client:
        client.ehlo()
        assert not client.has_extn("auth")
        assert client.docmd("AUTH", "PLAIN AGEAYg==")[0] == 538
        assert client.mail("a@b.example")[0] == 530
        client._host = "mx.example"  # type: ignore[attr-defined]
        client.starttls(context=authority.client())
        client.ehlo()
        assert {"PLAIN", "LOGIN"} <= set(client.esmtp_features["auth"].split())
        assert client.mail("a@b.example")[0] == 530
        with pytest.raises(smtplib.SMTPAuthenticationError) as refused:
            client.login("anna", "wrong")
        assert refused.value.smtp_code == 535
        assert client.login("anna", PASSWORD)[0] == 235
        deliver(client)


def test_a_login_is_no_must(tmp_path: pathlib.Path) -> None:
    users = add_user(tmp_path / "users", "anna", PASSWORD)
    with serving("--port", "0", "--discard", "--auth-file", users, *INSECURE) as server:
        with connect(server) as client:
            deliver(client)
        with connect(server) as client:
            client.user, client.password = "anna", PASSWORD
            client.ehlo()
            assert client.auth("LOGIN", client.auth_login)[0] == 235
            deliver(client)


@BOTH
def test_users_are_read_again(tmp_path: pathlib.Path, workers: str) -> None:
    path, other = tmp_path / "users", tmp_path / "other"
    users = add_user(path, "anna", PASSWORD)
    options = ("--port", "0", "--discard", "--auth-file", users, *INSECURE, "--workers", workers, "-v")
    with serving(*options) as server:

        def read_again() -> None:
            """Put the other file in place, in one step, and wait for each process to say so."""
            os.replace(other, path)
            server.process.send_signal(signal.SIGHUP)
            for _ in range({"1": 1, "2": 3}[workers]):
                assert "INFO fastsmtp: the users were read again" in server.line("users ")

        assert may_log_in(server, "anna", PASSWORD)
        assert not may_log_in(server, "bert", "b")
        add_user(other, "bert", "b")
        add_user(other, "anna", "another")
        read_again()
        for _ in range(4):
            assert may_log_in(server, "bert", "b") and may_log_in(server, "anna", "another")
            assert not may_log_in(server, "anna", PASSWORD)
        # A bad file: one line, and the old users stay.
        other.write_text("rubbish\n")
        os.replace(other, path)
        server.process.send_signal(signal.SIGHUP)
        line = server.line("users ")
        assert (
            f"ERROR fastsmtp.authfile: {path}:1: not of the form" in line and "the users are those from before" in line
        )
        assert all(may_log_in(server, "bert", "b") for _ in range(4))
        # A good one: the next line is of that.
        add_user(other, "carl", "c")
        read_again()
        assert may_log_in(server, "carl", "c")
        assert not may_log_in(server, "bert", "b")
        assert server.stop()[0] == 0


def test_users_are_read_again_without_a_signal(tmp_path: pathlib.Path) -> None:
    path, other = tmp_path / "users", tmp_path / "other"
    add_user(path, "anna", PASSWORD)
    with serving("--port", "0", "--discard", "--auth-file", str(path), *INSECURE, "-v") as server:
        add_user(other, "bert", "b")
        os.replace(other, path)
        server.line("the users were read again")
        assert may_log_in(server, "bert", "b")
        assert not may_log_in(server, "anna", PASSWORD)


def test_sighup_without_anything_to_read_again() -> None:
    with serving("--port", "0", "--discard") as server:
        server.process.send_signal(signal.SIGHUP)
        with connect(server) as client:
            deliver(client)
        assert server.stop()[0] == 0


# Trusted peers


def test_xforward() -> None:
    with serving("--port", "0", "--discard") as server, connect(server) as client:
        client.ehlo()
        assert not client.has_extn("xforward")
        assert client.docmd("XFORWARD", "ADDR=192.0.2.7")[0] == 502
    with serving("--port", "0", "--discard", "--allow-xforward", "loopback", "-v") as server:
        with connect(server) as client:
            client.ehlo()
            assert "ADDR" in client.esmtp_features["xforward"].split()
            assert client.docmd("XFORWARD", "ADDR=192.0.2.7")[0] == 250
            deliver(client)
        assert " xforward=192.0.2.7 " in server.line(" message ")


def test_xclient_names_who_has_logged_in(tmp_path: pathlib.Path) -> None:
    users = add_user(tmp_path / "users", "anna", PASSWORD)
    options = ("--port", "0", "--discard", "--auth-file", users, *INSECURE, "--require-auth", "-v")
    with serving(*options, "--allow-xclient", "127.0.0.1") as server:
        with connect(server) as client:
            client.ehlo()
            assert client.mail("a@b.example")[0] == 530
            assert client.docmd("XCLIENT", "ADDR=192.0.2.7 LOGIN=anna")[0] == 220
            client.ehlo()
            deliver(client)
        line = server.line(" message ")
        assert " client=192.0.2.7 " in line and " user=anna " in line


def test_proxy() -> None:
    with serving("--port", "0", "--discard", "--proxy", "loopback", "-v") as server:
        with socket.create_connection(("127.0.0.1", server.port), 30) as sock, sock.makefile("rwb") as file:
            file.write(b"PROXY TCP4 192.0.2.7 192.0.2.8 1234 25\r\n")
            file.flush()
            assert file.readline().startswith(b"220 ")
            file.write(b"QUIT\r\n")
            file.flush()
            assert file.readline().startswith(b"221 ")
        assert re.search(r" client=192\.0\.2\.7 port=1234$", server.line(" connected "))
        with socket.create_connection(("127.0.0.1", server.port), 30) as sock:
            sock.sendall(b"EHLO no.header\r\n")
            with contextlib.suppress(ConnectionResetError):
                assert sock.recv(100) == b""


# Sockets of others

LAUNCHER = (
    "import fcntl, os, sys\n"
    "count = int(sys.argv[1]); fds = [fcntl.fcntl(int(fd), fcntl.F_DUPFD_CLOEXEC, 100) for fd in sys.argv[2:2 + count]]\n"
    "for place, fd in enumerate(fds): os.dup2(fd, 3 + place)\n"
    "os.environ |= {'LISTEN_PID': str(os.getpid()), 'LISTEN_FDS': str(count), 'LISTEN_FDNAMES': 'x'}\n"
    "os.execv(sys.argv[2 + count], sys.argv[2 + count:])\n"
)


@BOTH
def test_an_inherited_socket(workers: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        fd = str(sock.fileno())
        with serving("--fd", fd, "--discard", "--workers", workers, pass_fds=[sock.fileno()]) as server:
            assert server.port == sock.getsockname()[1]
            for _ in range(4):
                with connect(server) as client:
                    deliver(client)
            code, rest = server.stop()
        assert (code, rest.startswith("fastsmtp: 4 messages ")) == (0, True)
        # It still listens, for who made it.
        socket.create_connection(sock.getsockname(), 30).close()


@pytest.mark.parametrize("loop", ["asyncio", "auto"])
@BOTH
def test_an_inherited_unix_socket_stays(tmp_path: pathlib.Path, workers: str, loop: str) -> None:
    path = str(tmp_path / "lmtp")
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen()
        for _ in range(2):
            options = ("--fd", str(sock.fileno()), "--lmtp", "--discard", "--workers", workers, "--loop", loop)
            with serving(*options, pass_fds=[sock.fileno()]) as server:
                assert server.place == path
                assert run("send", "--unix", path).returncode == 0
                assert server.stop()[0] == 0
            assert os.path.exists(path)


@BOTH
@pytest.mark.parametrize("abstract", [False, True])
def test_systemd(tmp_path: pathlib.Path, workers: str, abstract: bool) -> None:
    if abstract and sys.platform != "linux":
        pytest.skip("no abstract sockets")
    notices = f"@fastsmtp-{os.getpid()}-{workers}" if abstract else str(tmp_path / "notify")
    path = str(tmp_path / "lmtp")
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as told,
        socket.create_server(("127.0.0.1", 0)) as tcp,
        socket.socket(socket.AF_UNIX) as unix,
    ):
        told.bind(notices.replace("@", "\0"))
        told.settimeout(30)
        unix.bind(path)
        unix.listen()
        fds = [tcp.fileno(), unix.fileno()]
        with serving(
            *("--systemd", "--discard", "--workers", workers),
            launcher=(sys.executable, "-c", LAUNCHER, str(len(fds)), *map(str, fds)),
            pass_fds=fds,
            environment={"NOTIFY_SOCKET": notices},
        ) as server:
            port = tcp.getsockname()[1]
            assert server.place == f"127.0.0.1:{port},{path}"
            assert told.recv(100) == b"READY=1"
            with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
                deliver(client)
            with socket.socket(socket.AF_UNIX) as client_socket:
                client_socket.settimeout(30)
                client_socket.connect(path)
                assert client_socket.recv(100).startswith(b"220 ")
            code, _ = server.stop()
            assert code == 0
            assert told.recv(100) == b"STOPPING=1"
            told.setblocking(False)
            with pytest.raises(BlockingIOError):
                told.recv(100)
        assert os.path.exists(path)


def test_a_service_manager_that_is_gone_changes_nothing(tmp_path: pathlib.Path) -> None:
    with serving("--port", "0", "--discard", environment={"NOTIFY_SOCKET": str(tmp_path / "gone")}) as server:
        assert "cannot tell the service manager READY=1: No such file" in server.line("READY")
        with connect(server) as client:
            deliver(client)
        assert server.stop()[0] == 0


# Metrics


def metrics(url: str) -> dict[str, float]:
    with urllib.request.urlopen(url, timeout=30) as answer:
        lines = answer.read().decode().splitlines()
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))}


def answers(url: str) -> bool:
    try:
        return bool(metrics(url))
    except (OSError, http.client.HTTPException):  # it may end within its answer, too
        return False


@BOTH
def test_metrics(tmp_path: pathlib.Path, workers: str) -> None:
    users = add_user(tmp_path / "users", "anna", PASSWORD)
    with serving(
        *("--port", "0", "--discard", "--metrics", "0", "--workers", workers, "--auth-file", users, *INSECURE),
    ) as server:
        url = server.line("metrics on ").split()[-1]
        assert re.fullmatch(r"http://127\.0\.0\.1:\d+/metrics", url)
        for _ in range(3):
            with connect(server) as client:
                deliver(client, b"12345678\r\n")
        assert not may_log_in(server, "anna", "wrong")
        assert may_log_in(server, "anna", PASSWORD)
        with connect(server) as client:
            client.noop()
            values = until(lambda: (now := metrics(url))["fastsmtp_connections_total"] == 6 and now)
            assert values["fastsmtp_connections_open"] >= 1
            assert values["fastsmtp_messages_total"] == values["fastsmtp_recipients_total"] == 3
            assert values["fastsmtp_message_bytes_total"] == 30
            assert values["fastsmtp_auth_failures_total"] == 2  # smtplib tries PLAIN, then LOGIN
            assert values["fastsmtp_authenticated_total"] == 1
            assert values["fastsmtp_workers"] == float(workers)
            assert values["fastsmtp_start_time_seconds"] <= time.time()
            assert any(name.startswith("fastsmtp_build_info{") for name in values)
        until(lambda: metrics(url)["fastsmtp_connections_open"] == 0)
        # A client that says nothing, or is gone, is nobody else's trouble.
        place = ("127.0.0.1", int(url.split(":")[2].split("/")[0]))
        for _ in range(40):
            socket.create_connection(place, 30).close()
        with socket.create_connection(place, 30) as silent:
            until(lambda: answers(url))
            # More than it answers at a time are turned away at once, and then there is room again.
            with contextlib.ExitStack() as stack:
                crowd = [stack.enter_context(socket.create_connection(place, 30)) for _ in range(16)]
                assert until(lambda: select.select(crowd, [], [], 0)[0])[0].recv(1) == b""
            silent.close()
            until(lambda: answers(url))
        code, rest = server.stop()
        assert code == 0
        assert "Traceback" not in rest and "helper" not in rest
        with pytest.raises(OSError):
            metrics(url)


def test_the_process_for_metrics_is_replaced_and_ends_with_its_parent() -> None:
    with serving("--port", "0", "--discard", "--metrics", "[::1]:0", "--workers", "2") as server:
        url = server.line("metrics on ").split()[-1]
        with connect(server) as client:
            deliver(client)
        until(lambda: metrics(url)["fastsmtp_messages_total"] == 1)
        *_, helper = children(server)
        os.kill(helper, signal.SIGKILL)
        assert "helper ended with status -9; starting another" in server.line("helper")
        assert metrics(url)["fastsmtp_messages_total"] == 1  # what comes meanwhile waits for it
        server.process.kill()

        until(lambda: not answers(url))


def test_every_counter_has_a_metric() -> None:
    from fastsmtp._board import FIELDS
    from fastsmtp._metrics import COUNTERS, GAUGES
    from fastsmtp._relay import FIGURES

    assert sorted([*COUNTERS, *GAUGES]) == sorted([*FIELDS, *(each.name for each in FIGURES)])
    folder = pathlib.Path(__file__).parent.parent / "docs"
    page = (folder / "operation.md").read_text() + (folder / "relay.md").read_text()
    for name, _ in COUNTERS.values():
        assert f"`fastsmtp_{name}_total`" in page, name
    for name, _ in GAUGES.values():
        assert f"`fastsmtp_{name}`" in page, name


# Logs


def events(text: str) -> list[dict[str, Any]]:
    return [entry for line in text.splitlines() if line.startswith("{") and "event" in (entry := json.loads(line))]


@BOTH
def test_json_logs_say_what_happens(tmp_path: pathlib.Path, authority: Authority, workers: str) -> None:
    users = add_user(tmp_path / "users", "anna", PASSWORD)
    with serving(
        *("--port", "0", "--maildir", str(tmp_path / "M"), "--log-format", "json", "-vv", "--workers", workers),
        *("--auth-file", users, "--tls-cert", str(authority.issue()), *INSECURE, "--max-recipients", "1"),
        *("--max-message-bytes", "1000"),
    ) as server:
        with connect(server) as client:
            client._host = "mx.example"  # type: ignore[attr-defined]
            client.starttls(context=authority.client())
            with pytest.raises(smtplib.SMTPAuthenticationError):
                client.login("anna", f"not {PASSWORD}")
            client.login("anna", PASSWORD)
            deliver(client)
            client.mail("")  # without its size, so that it is refused when it has come
            client.rcpt("c@d.example")
            assert client.data(b"x" * 1000)[0] == 552
        _, rest = server.stop()
    for secret in (PASSWORD, f"not {PASSWORD}", f"\0anna\0{PASSWORD}", f"\0anna\0not {PASSWORD}"):
        assert secret not in rest
        assert base64.b64encode(secret.encode()).decode() not in rest
    found = events(rest)
    names = [entry["event"] for entry in found]
    # smtplib tries PLAIN and then LOGIN with the wrong password.
    assert names == ["connected", "auth_failed", "auth_failed", "authenticated", "message", "message", "disconnected"]
    assert len({(entry["pid"], entry["conn"]) for entry in found}) == 1
    assert {entry["client"] for entry in found} == {"127.0.0.1"}
    assert {entry["message"] for entry in found} == set(names)
    trace = [json.loads(line)["message"] for line in rest.splitlines() if '"DEBUG"' in line.upper() and " C: " in line]
    assert trace and all(line.startswith(f"{found[0]['conn']} C: ") for line in trace)
    taken, refused = found[4], found[5]
    expected = {
        "helo": "client.example",
        "protocol": "ESMTP",
        "user": "anna",
        "sender": "a@b.example",
        "recipients": ["c@d.example"],
        "recipient_count": 1,
        "octets": 22,
        "code": 250,
    }
    assert {name: taken.get(name) for name in expected} == expected
    assert taken["tls"].startswith("TLSv1.")
    assert (refused["code"], "552 5.3.4" in refused["reply"]) == (552, True)
    assert found[6]["messages"] == 2 and found[6]["seconds"] >= 0
    assert found[3]["user"] == "anna" and "user" not in found[1]


def test_text_logs_cannot_be_forged() -> None:
    with serving("--port", "0", "--discard", "-v") as server:
        with connect(server) as client:
            client.ehlo()
            assert client.docmd("MAIL", 'FROM:<"a code=550, \\" user=x"@e.example>')[0] == 250
            assert client.rcpt("c@d.example")[0] == 250
            assert client.data(b"x\r\n")[0] == 250
        fields = server.line(" message ").partition(" INFO fastsmtp: message ")[2]
        assert server.line(" disconnected ").endswith(" messages=1\n")
    before, quoted, after = fields.partition(r' sender="\"a code=550, \\\" user=x\"@e.example"')
    assert quoted and before.endswith(" helo=client.example protocol=ESMTP")
    assert after == " recipients=c@d.example recipient_count=1 octets=3 code=250\n"


def test_what_a_peer_sent_stays_on_its_line(capsys: pytest.CaptureFixture[str]) -> None:
    nasty = (
        "a\u202e\u2028b\x1b[1m\n\x85\udc80 c"  # turns the direction, ends lines, changes colours, is half a character
    )
    root = logging.getLogger()
    before = root.level, root.handlers[:], logging.getLogger("asyncio").level
    try:
        for form in ("text", "json"):
            configure(form, 1)
            logging.getLogger("fastsmtp").info(
                "message", extra={"fields": {"sender": nasty, "recipients": [nasty, ""]}}
            )
            line = capsys.readouterr().err
            assert line.endswith("\n") and line[:-1].isprintable(), line
            if form == "json":
                entry = json.loads(line)
                assert (entry["event"], entry["sender"], entry["recipients"]) == ("message", nasty, [nasty, ""])
            else:
                assert line.count(r"\u202e") == 2 and line.endswith(',""\n')
    finally:
        root.setLevel(before[0])
        root.handlers[:] = before[1]
        logging.getLogger("asyncio").setLevel(before[2])


def test_writes_to_who_is_gone_do_not_fill_the_log() -> None:
    """The loops say one of two sentences for each such write, up to a hundred a connection; whatever else they say is logged."""
    sentences = ("socket.send() raised exception.", "SSL connection is closed")
    for module, sentence in zip((asyncio.selector_events, asyncio.sslproto), sentences, strict=True):
        assert sentence in inspect.getsource(module)
    code = "import logging; from fastsmtp._logs import configure; configure('text', 0); log = logging.getLogger('asyncio').warning\n"
    code += "".join(f"log({text!r})\n" for text in (*sentences, "something else"))
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert re.fullmatch(r"\S+ \S+ WARNING asyncio: something else\n", done.stderr)


class Peer:
    """As much of a connection as a record needs."""

    def __init__(self, address: object = ("192.0.2.1", 1)) -> None:
        self.remote_addr = address
        self.tls_connection_state = None
        self.state = ConnectionState("x", address, None, None, "LMTP")  # type: ignore[arg-type]


def record(caplog: pytest.LogCaptureFixture, what: str, *arguments: Any) -> dict[str, Any]:
    """The fields of the record that an event makes."""
    with caplog.at_level(logging.INFO, "fastsmtp"):
        getattr(EventLog(), what)(*arguments)
    (each,) = caplog.records
    assert each.message == what
    fields: dict[str, Any] = each.fields  # type: ignore[attr-defined]
    return fields


def test_a_record_of_many_recipients_names_the_first(caplog: pytest.LogCaptureFixture) -> None:
    conn: Any = Peer("/unix")
    names = [f"{number}@x" for number in range(1000)]
    context = DataContext(conn, "", MailParams(), names, [RcptParams()] * 1000, "x")
    context.set_status("1@x", Reply(550))
    fields = record(caplog, "message", conn, context, Reply(452, message="a\nb"), 7)
    assert fields["recipients"] == names[:RECIPIENTS] and fields["recipient_count"] == 1000
    assert fields["codes"] == [452, 550, *[452] * (RECIPIENTS - 2)]
    assert fields["client"] == "unix" and "port" not in fields
    assert fields["reply"] == "452-4.0.0 a\n452 4.0.0 b"


def test_records_of_what_was_refused(caplog: pytest.LogCaptureFixture) -> None:
    fields = record(caplog, "rejected", Peer(), Reply(550, message="no"))
    assert fields.items() >= {"client": "192.0.2.1", "port": 1, "code": 550, "reply": "550 5.0.0 no"}.items()
    caplog.clear()
    fields = record(caplog, "message", Peer(), None, Reply(552), 0)
    assert (fields["code"], "sender" in fields) == (552, False)


def test_who_was_never_welcome_is_not_said_to_have_left(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "fastsmtp"):
        EventLog().disconnected(Peer())  # type: ignore[arg-type]
    assert caplog.records == []
