"""The command: options, first line, exit codes, one process and several."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import smtplib
import socket
import subprocess
import sys

import pytest

import fastsmtp
from fastsmtp._version import VERSION
from fastsmtp.cli import CLI_MESSAGE_BYTES, build_parser, main

from .serving import serving, stored

MESSAGE = b"Subject: one\r\n\r\n.dot\r\nj\xc3\xb6\r\n"


def run(*arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "fastsmtp", *arguments]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, timeout=60)


def deliver(port: int, message: bytes = MESSAGE) -> None:
    with smtplib.SMTP("127.0.0.1", port, timeout=30) as client:
        assert client.sendmail("a@b.example", ["c@d.example"], message, ["BODY=8BITMIME"]) == {}


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out == f"fastsmtp {VERSION} ({fastsmtp.IMPLEMENTATION})\n"


def test_defaults() -> None:
    arguments = build_parser().parse_args(["serve"])
    assert (arguments.host, arguments.port, arguments.maildir) == ("127.0.0.1", 8025, "./Maildir")
    assert arguments.max_message_bytes == CLI_MESSAGE_BYTES
    assert (arguments.workers, arguments.loop, arguments.log_format) == (1, "auto", "text")


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["serve", "--port", "65536"],
        ["serve", "--port", "x"],
        ["serve", "--workers", "0"],
        ["serve", "--loop", "tornado"],
        ["serve", "--discard", "--print"],
        ["serve", "--max-recipients", "-1"],
    ],
)
def test_a_bad_option_is_one_line_and_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err.splitlines()[-1]


def test_what_the_machine_refuses_is_one_line_and_exit_code_1(tmp_path: pathlib.Path) -> None:
    maildir = str(tmp_path / "M")
    with socket.create_server(("127.0.0.1", 0)) as busy:
        port = str(busy.getsockname()[1])
        for workers in ("1", "2"):
            done = run("serve", "--port", port, "--maildir", maildir, "--workers", workers)
            text = f"fastsmtp: cannot listen on 127.0.0.1:{port}: Address already in use\n"
            assert (done.returncode, done.stderr.decode()) == (1, text)
    for arguments in (["--maildir", "/proc/no/Maildir"], ["--domain", "no domain"], ["--unix", "/no/such/dir/x"]):
        extra = [] if "--maildir" in arguments else ["--maildir", maildir]
        done = run("serve", "--port", "0", *arguments, *extra)
        assert done.returncode == 1
        assert done.stderr.startswith(b"fastsmtp: ") and done.stderr.count(b"\n") == 1, done.stderr


@pytest.mark.parametrize("loop", ["asyncio", "auto"])
def test_serve_into_a_maildir(tmp_path: pathlib.Path, loop: str) -> None:
    maildir = tmp_path / "M"
    with serving("--port", "0", "--maildir", str(maildir), "--loop", loop) as server:
        expected = f"fastsmtp {VERSION} ({fastsmtp.IMPLEMENTATION}, "
        assert server.first_line.startswith(expected)
        deliver(server.port)
        code, rest = server.stop()
    assert code == 0
    assert rest.startswith("fastsmtp: 1 messages for 1 recipients, ") and rest.count("\n") == 1
    assert stored(maildir) == [MESSAGE]


def test_several_workers_and_one_that_dies(tmp_path: pathlib.Path) -> None:
    maildir = tmp_path / "M"
    with serving("--port", "0", "--maildir", str(maildir), "--workers", "2") as server:
        for _ in range(6):
            deliver(server.port)
        children = pathlib.Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        if children.exists():
            victim = int(children.read_text().split()[0])
            os.kill(victim, signal.SIGKILL)
            assert server.process.stderr is not None
            assert "starting another" in server.process.stderr.readline()
        for _ in range(6):
            deliver(server.port)
        code, rest = server.stop()
    assert code == 0
    assert " recipients, " in rest
    assert stored(maildir) == [MESSAGE] * 12


def test_a_unix_socket_and_lmtp(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "lmtp")
    with socket.socket(socket.AF_UNIX) as stale:
        stale.bind(path)  # a dead server's: replaced
    with serving("--unix", path, "--lmtp", "--maildir", str(tmp_path / "M")) as server:
        assert server.place == path
        assert run("serve", "--unix", path, "--discard").returncode == 1
        done = run("send", "--unix", path, "--to", "a@b.example", "--to", "c@d.example", "-", stdin=MESSAGE)
        assert (done.returncode, done.stderr) == (0, b"")
        assert server.stop()[0] == 0
    assert not os.path.exists(path)
    assert stored(tmp_path / "M") == [MESSAGE]


def test_print() -> None:
    with serving("--port", "0", "--print", stdout=subprocess.PIPE) as server:
        deliver(server.port, b"Subject: \x1b[31mred\r\n\r\nbody\r\n")
        server.process.send_signal(signal.SIGTERM)
        out, _ = server.process.communicate(timeout=30)
    assert "MAIL FROM:<a@b.example>" in out and "\\x1b[31mred" in out and "body\n" in out
    assert "\x1b" not in out


def test_json_log_and_trace() -> None:
    with serving("--port", "0", "--discard", "--log-format", "json", "-vv") as server:
        deliver(server.port)
        _, rest = server.stop()
    entries = [json.loads(line) for line in rest.splitlines() if line.startswith("{")]
    assert any("C: mail" in entry["message"].lower().replace("c:", "C:") for entry in entries)
    assert {"time", "level", "logger", "message"} <= entries[0].keys()


def test_limits_reach_the_protocol() -> None:
    with serving("--port", "0", "--discard", "--max-message-bytes", "100", "--max-recipients", "1") as server:
        with smtplib.SMTP("127.0.0.1", server.port, timeout=30) as client:
            client.ehlo()
            assert client.esmtp_features["size"] == "100"
            assert client.mail("a@b.example")[0] == 250
            assert client.rcpt("c@d.example")[0] == 250
            assert client.rcpt("e@d.example")[0] == 452
            assert client.data(b"x" * 200)[0] == 552


def test_send_reports_refusals(tmp_path: pathlib.Path) -> None:
    with serving("--port", "0", "--discard", "--max-recipients", "1") as server:
        port = str(server.port)
        done = run("send", "--port", port, "--size", "5000", "--count", "3", "--to", "ä@d.example")
        assert (done.returncode, done.stderr) == (0, b"")
        done = run("send", "--port", port, "--to", "a@b.example", "--to", "c@d.example")
        assert done.returncode == 1
        assert done.stderr == b"fastsmtp: c@d.example: 452 4.5.3 Too many recipients\n"
    done = run("send", "--port", port)
    assert done.returncode == 1 and b"Connection refused" in done.stderr
    done = run("send", "--port", port, str(tmp_path / "missing"))
    assert done.returncode == 1 and done.stderr.count(b"\n") == 1
