"""Postfix, taking mail into its queue: what it answers is durable.  `postfix_queue.py PORT DIR [NEXT_PORT]`, by root.

An instance of its own: configured, queued and logged in DIR, stopped by SIGTERM.  With NEXT_PORT it hands everything on to that port of
loopback.  Without, it holds what it takes: a held message is as a queued one, but no queue manager looks at it, so what is measured is
the accepting alone.
"""

from __future__ import annotations

import os
import pathlib
import pwd
import shutil
import signal
import subprocess
import sys

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
mynetworks = 127.0.0.0/8
smtpd_relay_restrictions = permit_mynetworks, reject
in_flow_delay = 0
{more}
smtpd_peername_lookup = no
smtp_dns_support_level = disabled
maillog_file = {root}/log
maillog_file_prefixes = {root}
alias_maps =
alias_database =
message_size_limit = 67108864
mailbox_size_limit = 0
max_use = 1000000
default_process_limit = 200
smtpd_client_connection_count_limit = 0
smtpd_timeout = 300s
"""
MASTER_CF = """
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
scache unix - - n - 1 scache
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
postlog unix-dgram n - n - 1 postlogd
"""


def main() -> int:
    port, root = sys.argv[1], pathlib.Path(sys.argv[2]).resolve()
    more = "smtpd_sender_restrictions = check_sender_access static:HOLD"
    if len(sys.argv) > 3:
        more = f"default_transport = smtp:[127.0.0.1]:{sys.argv[3]}"
    for folder in (root, root / "queue", root / "data"):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o755)
    (root / "main.cf").write_text(MAIN_CF.format(root=root, more=more))
    (root / "master.cf").write_text(MASTER_CF.format(port=port))
    os.chown(root / "data", pwd.getpwnam("postfix").pw_uid, -1)
    program = shutil.which("postfix", path=os.environ.get("PATH", "") + ":/usr/sbin") or "postfix"
    running = subprocess.Popen([program, "-c", str(root), "start-fg"], start_new_session=True)

    def stop(*_: object) -> None:
        subprocess.run([program, "-c", str(root), "stop"], capture_output=True, check=False, timeout=60)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)
    return running.wait()


if __name__ == "__main__":
    sys.exit(main())
