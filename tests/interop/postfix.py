"""A Postfix of the test's own: configured, queued and logged in a temporary directory, on a port of loopback."""

from __future__ import annotations

import os
import pathlib
import pwd
import smtplib
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import pytest

from .tools import reserved_port, tool

__all__ = ["Postfix", "postfix"]

MAIN_CF = """
compatibility_level = 3.6
queue_directory = {root}/queue
data_directory = {root}/data
command_directory = /usr/sbin
daemon_directory = /usr/lib/postfix/sbin
mail_owner = postfix
setgid_group = postdrop
myhostname = postfix.example
mydestination =
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
smtpd_relay_restrictions = permit_mynetworks, reject
smtpd_authorized_xclient_hosts = 127.0.0.0/8
mynetworks = 127.0.0.0/8, 192.0.2.0/24, [2001:db8::]/32
smtputf8_enable = yes
default_transport = {transport}
maillog_file = {root}/log
maillog_file_prefixes = {root}
minimal_backoff_time = 1s
queue_run_delay = 1s
alias_maps =
alias_database =
smtp_dns_support_level = disabled
local_header_rewrite_clients =
lmtp_send_xforward_command = yes
smtp_send_xforward_command = yes
"""
MASTER_CF = """
127.0.0.1:{smtp} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
pickup unix n - n 60 1 pickup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
verify unix - - n - 1 verify
proxymap unix - - n - - proxymap
lmtp unix - - n - - lmtp
smtp unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""


@dataclass(frozen=True, slots=True)
class Postfix:
    """A running Postfix.

    Attributes:
        root: its directory; it can read what is put there.
        port: where it takes mail.
    """

    root: pathlib.Path
    port: int

    def log(self) -> str:
        path = self.root / "log"
        return path.read_text(errors="replace") if path.exists() else ""

    def logged(self, text: str) -> None:
        """Wait until the log has it; the log's writer is a process of its own."""
        deadline = time.monotonic() + 60
        while text not in self.log():
            assert time.monotonic() < deadline, f"{text!r} is not in the log:\n{self.log()}"
            time.sleep(0.02)

    def flush(self) -> None:
        """Have it try again what it has put off, whenever it meant to."""
        subprocess.run([tool("postfix"), "-c", str(self.root), "flush"], capture_output=True, check=True, timeout=60)

    def submit(
        self,
        text: bytes,
        recipients: Sequence[str] = ("c@d.example",),
        *,
        sender: str = "a@b.example",
        mail_options: Sequence[str] = (),
        rcpt_options: Sequence[str] = (),
        client: str = "",
        helo: str = "submitter.example",
    ) -> None:
        """Give it a message, as the client that an XCLIENT command describes."""
        with smtplib.SMTP("127.0.0.1", self.port, helo, timeout=60) as connection:
            connection.ehlo()
            if client:
                assert connection.docmd("XCLIENT", client)[0] == 220
            refused = connection.sendmail(sender, recipients, text, mail_options, rcpt_options)
            assert not refused


@contextmanager
def postfix(transport: str, settings: Mapping[str, object] | None = None) -> Iterator[Postfix]:
    """Postfix that sends everything by `transport`, such as "lmtp:inet:127.0.0.1:24"."""
    program = tool("postfix")
    if os.geteuid() != 0:
        pytest.skip("Postfix is started by root only")
    with reserved_port() as port, tempfile.TemporaryDirectory(prefix="postfix-") as folder:
        root = pathlib.Path(folder)
        root.chmod(0o755)
        more = "".join(f"{name} = {value}\n" for name, value in (settings or {}).items())
        (root / "main.cf").write_text(MAIN_CF.format(root=root, transport=transport) + more)
        (root / "master.cf").write_text(MASTER_CF.format(smtp=port))
        (root / "queue").mkdir()
        (root / "data").mkdir()
        os.chown(root / "data", pwd.getpwnam("postfix").pw_uid, -1)
        # The program's own directories and groups are as the package made them; `postfix start` waits until it listens.
        started = subprocess.run(
            [program, "-c", folder, "start"], capture_output=True, text=True, check=False, timeout=60
        )
        running = Postfix(root, port)
        assert started.returncode == 0, started.stdout + started.stderr + running.log()
        try:
            yield running
        finally:
            subprocess.run([program, "-c", folder, "stop"], capture_output=True, check=False, timeout=60)
