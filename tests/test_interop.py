"""Other people's software delivers to `fastsmtp serve`.  Marked interop; what is not installed is skipped."""

from __future__ import annotations

import os
import pathlib
import smtplib
import socket
import subprocess
import time

import pytest

from .interop.postfix import postfix
from .interop.tools import tool
from .serving import serving, stored

pytestmark = pytest.mark.interop
MESSAGES = int(os.environ.get("FASTSMTP_INTEROP_MESSAGES", "2000"))


@pytest.mark.parametrize("workers", ["1", "2"])
@pytest.mark.parametrize("kept", [True, False], ids=["kept", "fresh"])
def test_smtp_source(tmp_path: pathlib.Path, kept: bool, workers: str) -> None:
    maildir = tmp_path / "M"
    with serving("--port", "0", "--maildir", str(maildir), "--workers", workers) as server:
        command = [tool("smtp-source"), *(["-d"] if kept else []), "-l", "4096", "-m", str(MESSAGES), "-s", "20"]
        command += ["-f", "a@b.example", "-t", "c@d.example", f"127.0.0.1:{server.port}"]
        subprocess.run(command, check=True, timeout=250)
        assert server.stop()[0] == 0
    bodies = stored(maildir)
    assert len(bodies) == MESSAGES
    texts = {body.partition(b"\r\n\r\n")[2] for body in bodies}
    assert len(texts) == 1  # all alike
    text = texts.pop()
    assert set(text) == set(b"0123456789X\r\n") and 3900 < len(text) <= 4300


def test_swaks(tmp_path: pathlib.Path) -> None:
    with serving("--port", "0", "--maildir", str(tmp_path / "M")) as server:
        common = [tool("swaks"), "--server", f"127.0.0.1:{server.port}", "--from", "a@b.example", "--to", "c@d.example"]
        for extra in ([], ["--pipeline"], ["--body", "jö\n.\n..\n"]):
            done = subprocess.run([*common, *extra], capture_output=True, text=True, check=False, timeout=60)
            assert done.returncode == 0, done.stdout
    assert len(stored(tmp_path / "M")) == 3
    with serving("--unix", str(tmp_path / "lmtp"), "--lmtp", "--discard") as server:
        command = [tool("swaks"), "--socket", server.place, "--protocol", "LMTP", "--to", "c@d.example,e@f.example"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stdout


def test_curl(tmp_path: pathlib.Path) -> None:
    message = b"Subject: curl\r\n\r\n.one\r\n..two\r\n.\r\nthree\r\n"
    file = tmp_path / "message"
    file.write_bytes(message)
    with serving("--port", "0", "--maildir", str(tmp_path / "M")) as server:
        command = [tool("curl"), "-sS", f"smtp://127.0.0.1:{server.port}/client.example", "--upload-file", str(file)]
        command += ["--mail-from", "<a@b.example>", "--mail-rcpt", "<c@d.example>"]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 0, done.stderr
    assert stored(tmp_path / "M") == [message]


def test_smtplib(tmp_path: pathlib.Path) -> None:
    message = "Subject: grüße\r\n\r\n.dot\r\n".encode()
    with serving("--port", "0", "--maildir", str(tmp_path / "M")) as server:
        with smtplib.SMTP("127.0.0.1", server.port, timeout=30) as client:
            client.sendmail("josé@b.example", ["δ@d.example"], message, ["SMTPUTF8", "BODY=8BITMIME"])
    assert stored(tmp_path / "M") == [message]


def memory(pid: int) -> int:
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    raise AssertionError("no VmHWM")


@pytest.mark.parametrize(("where", "megabytes"), [("discard", 1000), ("maildir", 100)])
def test_large_messages_stream(tmp_path: pathlib.Path, where: str, megabytes: int) -> None:
    arguments = ["--discard"] if where == "discard" else ["--maildir", str(tmp_path / "M")]
    block = (b"x" * 76 + b"\r\n") * 12_800  # 998,400 octets
    with serving("--port", "0", *arguments) as server:
        with socket.create_connection(("127.0.0.1", server.port), 120) as sock:
            file = sock.makefile("rb")
            file.readline()
            for line in (b"HELO x.example", b"MAIL FROM:<>", b"RCPT TO:<c@d.example>", b"DATA"):
                sock.sendall(line + b"\r\n")
                assert file.readline()[:1] in b"23"
            count = megabytes * 1_000_000 // len(block) + 1
            for _ in range(count):
                sock.sendall(block)
            sock.sendall(b".\r\n")
            assert file.readline().startswith(b"250 ")
            file.close()
        assert memory(server.process.pid) < 60_000
    if where == "maildir":
        assert [len(body) for body in stored(tmp_path / "M")] == [count * len(block)]


def test_postfix_as_lmtp_client(tmp_path: pathlib.Path) -> None:
    maildir = tmp_path / "M"
    eight = "Subject: zwei\r\n\r\ngrüße\r\n".encode()
    with serving("--port", "0", "--lmtp", "--maildir", str(maildir)) as server:
        with postfix(f"lmtp:inet:{server.place}") as running:
            running.submit(b"Subject: one\r\n\r\n.dot\r\n", ["c@d.example", "e@d.example"])
            running.submit(eight, mail_options=["BODY=8BITMIME"])
            running.submit(eight, ["δ@d.example"], sender="josé@b.example", mail_options=["SMTPUTF8", "BODY=8BITMIME"])
            deadline = time.monotonic() + 60
            while len(list((maildir / "new").iterdir())) < 3:
                assert time.monotonic() < deadline, f"Postfix did not deliver\n{running.log()}"
                time.sleep(0.05)
    bodies = stored(maildir)
    assert sum(body.endswith(b"\r\n\r\n.dot\r\n") for body in bodies) == 1
    assert sum(body.endswith("\r\n\r\ngrüße\r\n".encode()) for body in bodies) == 2
    paths = b"".join(path.read_bytes().partition(b"\r\n")[0] for path in (maildir / "new").iterdir())
    assert "josé@b.example".encode() in paths
