"""Run an installed wheel from outside of the tree: the command serves, takes a message and stops."""

from __future__ import annotations

import pathlib
import re
import signal
import smtplib
import subprocess
import sys
import tempfile

import fastsmtp
import fastsmtp.connection
import fastsmtp.protocol.server

expected = sys.argv[1]
assert expected == fastsmtp.IMPLEMENTATION, (expected, fastsmtp.IMPLEMENTATION)
assert "site-packages" in fastsmtp.__file__, fastsmtp.__file__
for module in (fastsmtp.connection, fastsmtp.protocol.server):
    assert module.__file__.endswith(".py") is (expected == "pure"), module.__file__
with tempfile.TemporaryDirectory() as folder:
    server = subprocess.Popen(
        [sys.executable, "-m", "fastsmtp", "serve", "--port", "0", "--maildir", f"{folder}/Maildir"],
        stderr=subprocess.PIPE,
        text=True,
    )
    assert server.stderr is not None
    line = server.stderr.readline()
    match = re.fullmatch(rf"fastsmtp \S+ \({expected}, \w+\) listening on 127\.0\.0\.1:(\d+)\n", line)
    assert match, line
    with smtplib.SMTP("127.0.0.1", int(match[1]), timeout=10) as client:
        client.sendmail("a@example.org", ["b@example.org"], b"Subject: smoke\r\n\r\n.dot\r\n")
    server.send_signal(signal.SIGTERM)
    assert server.wait(20) == 0, server.returncode
    stored = list(pathlib.Path(folder, "Maildir", "new").iterdir())
    assert len(stored) == 1 and stored[0].read_bytes().endswith(b"Subject: smoke\r\n\r\n.dot\r\n"), stored
print(f"smoke test of the {expected} wheel passed")
