"""Memory of an idle connection: the server's resident size before and after opening many.  `python -m bench.idle [COUNT]`"""

from __future__ import annotations

import pathlib
import resource
import socket
import subprocess
import sys
import time

from .e2e import free_port, script, wait_for


def resident(pid: int) -> int:
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    return 0


def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 2000
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count * 2 + 100)), hard))
    for loop in ("uvloop", "asyncio"):
        port = free_port()
        server = subprocess.Popen(script("fastsmtp_discard.py", loop, "plain")(port))
        try:
            wait_for(port, server)
            sockets = []
            before = 0
            for number in range(count + 100):
                if number == 100:  # what the first ones make once is not theirs
                    before = resident(server.pid)
                sock = socket.create_connection(("127.0.0.1", port))
                sock.recv(200)
                sock.sendall(b"EHLO idle.example\r\n")
                sock.recv(1000)
                sockets.append(sock)
            time.sleep(0.2)
            print(f"{loop}: {(resident(server.pid) - before) / count:.0f} octets for each of {count} idle connections")
            for sock in sockets:
                sock.close()
        finally:
            server.terminate()
            server.wait()
    return 0


if __name__ == "__main__":
    sys.exit(main())
