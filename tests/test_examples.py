"""The examples, and the README's, run as printed."""

from __future__ import annotations

import pathlib
import re
import smtplib
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

ROOT = pathlib.Path(__file__).parent.parent
MESSAGE = "Subject: hello\r\n\r\nworld\r\n"


@contextmanager
def running(path: pathlib.Path) -> Iterator[int]:
    process = subprocess.Popen([sys.executable, str(path), "0"], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        match = re.search(r"port (\d+)", line)
        assert match, line
        yield int(match[1])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def test_discard() -> None:
    with running(ROOT / "examples" / "discard.py") as port, smtplib.SMTP("127.0.0.1", port) as client:
        assert client.sendmail("a@example.org", ["b@example.org"], MESSAGE) == {}


def test_policy() -> None:
    with running(ROOT / "examples" / "policy.py") as port, smtplib.SMTP("127.0.0.1", port) as client:
        assert client.sendmail("a@example.org", ["b@example.org"], MESSAGE) == {}
        with pytest.raises(smtplib.SMTPSenderRefused):
            client.sendmail("a@spam.example", ["b@example.org"], MESSAGE)
        with pytest.raises(smtplib.SMTPRecipientsRefused):
            client.sendmail("a@example.org", ["b@elsewhere.example"], MESSAGE)
        with pytest.raises(smtplib.SMTPDataError, match="virus"):
            client.sendmail("a@example.org", ["b@example.org"], MESSAGE + r"X5O!P%@AP")


def test_in_a_test() -> None:
    path = ROOT / "examples" / "in_a_test.py"
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True, check=False, timeout=60)
    assert done.stdout == "one message arrived\n", done.stderr


def test_readme(tmp_path: pathlib.Path) -> None:
    code = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)[0]
    assert len(code.strip().splitlines()) <= 18
    script = tmp_path / "readme.py"
    script.write_text(code.replace("127.0.0.1:8025", "127.0.0.1:0").replace("port 8025", "port {server.port}"))
    with running(script) as port, smtplib.SMTP("127.0.0.1", port) as client:
        assert client.sendmail("a@example.org", ["b@example.org"], MESSAGE) == {}


def test_no_text_tells_to_install_a_stranger() -> None:
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("src/**/*.py"), *ROOT.glob("examples/*.py")]
    for path in texts:
        assert not re.search(r"pip install '?fastsmtp(?!d)", path.read_text()), path
