"""End to end: CPU per message and messages per second of servers that accept and drop, beside each other.

    python -m bench.e2e [--workloads kept,fresh,big] [--peers NAME,...] [--rounds 5] [--messages 10000] [--smoke]

Load comes from Postfix's smtp-source; the server runs on the first processor, the load on the last.  The peers take turns in rounds, so
that a machine whose speed drifts does so for all of them.  CPU is user and system time of the server's process.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import pathlib
import platform
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass

HERE = pathlib.Path(__file__).parent
RESULTS = HERE / "results"
TICKS = os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Peer:
    name: str
    command: Callable[[int], list[str]]
    missing: Callable[[], str | None]


@dataclass(frozen=True, slots=True)
class Workload:
    name: str
    source: tuple[str, ...]  # smtp-source's options
    share: float  # of --messages


@dataclass(frozen=True, slots=True)
class Run:
    user: float  # microseconds per message
    system: float
    rate: float  # messages per second
    peak: int  # KB


def tool(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/usr/local/sbin")


def needs(module: str | None = None, program: str | None = None) -> Callable[[], str | None]:
    def missing() -> str | None:
        if module and importlib.util.find_spec(module) is None:
            return f"{module} is not installed"
        if program and tool(program) is None:
            return f"{program} is not installed"
        return None

    return missing


def script(name: str, *arguments: str) -> Callable[[int], list[str]]:
    return lambda port: [sys.executable, str(HERE / "peers" / name), str(port), *arguments]


def smtp_sink(port: int) -> list[str]:
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    return [tool("smtp-sink") or "smtp-sink", *user, f"127.0.0.1:{port}", "1024"]


PEERS = (
    Peer("fastsmtp uvloop", script("fastsmtp_discard.py", "uvloop", "plain"), needs("uvloop")),
    Peer("fastsmtp uvloop async", script("fastsmtp_discard.py", "uvloop", "async"), needs("uvloop")),
    Peer("fastsmtp uvloop stream", script("fastsmtp_discard.py", "uvloop", "stream"), needs("uvloop")),
    Peer("fastsmtp asyncio", script("fastsmtp_discard.py", "asyncio", "plain"), needs()),
    Peer("smtp-sink", smtp_sink, needs(program="smtp-sink")),
    Peer("aiosmtpd uvloop", script("aiosmtpd_discard.py", "uvloop"), needs("aiosmtpd")),
)
WORKLOADS = (
    Workload("kept", ("-d", "-l", "4096", "-s", "20"), 1.0),
    Workload("fresh", ("-l", "4096", "-s", "20"), 0.5),
    Workload("big", ("-d", "-l", "1048576", "-s", "10"), 0.05),
)


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
            return
        except OSError:
            if process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{process.args!r} does not listen") from None
            time.sleep(0.02)


def pinned(processor: int) -> Callable[[], None] | None:
    if not hasattr(os, "sched_setaffinity"):
        return None
    processors = sorted(os.sched_getaffinity(0))
    chosen = processors[processor]
    return lambda: os.sched_setaffinity(0, {chosen})


def used(pid: int) -> tuple[float, float]:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) / TICKS, int(fields[12]) / TICKS


def peak(pid: int) -> int:
    for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1])
    return 0


def measure(peer: Peer, workload: Workload, messages: int) -> Run:
    port = free_port()
    server = subprocess.Popen(peer.command(port), preexec_fn=pinned(0), stderr=subprocess.DEVNULL)
    try:
        wait_for(port, server)
        source = [tool("smtp-source") or "smtp-source", *workload.source, "-m", str(messages)]
        source += ["-f", "a@b.example", "-t", "c@d.example", f"127.0.0.1:{port}"]
        before, started = used(server.pid), time.perf_counter()
        subprocess.run(source, preexec_fn=pinned(-1), check=True, timeout=300)
        took, after = time.perf_counter() - started, used(server.pid)
        return Run(
            (after[0] - before[0]) / messages * 1e6,
            (after[1] - before[1]) / messages * 1e6,
            messages / took,
            peak(server.pid),
        )
    finally:
        server.terminate()
        server.wait()


def table(results: dict[str, dict[str, list[Run]]]) -> str:
    lines = []
    for workload, peers in results.items():
        lines += [
            f"\n### {workload}\n",
            "| server | CPU us/message (least-most) | user | system | messages/s | peak KB | CPU, fastsmtp = 1 |",
            "|---|---|---|---|---|---|---|",
        ]
        base = None
        for name, runs in peers.items():
            cpu = [run.user + run.system for run in runs]
            median = statistics.median(cpu)
            base = base or median
            lines.append(
                f"| {name} | {median:.1f} ({min(cpu):.1f}-{max(cpu):.1f}) "
                f"| {statistics.median(run.user for run in runs):.1f} | {statistics.median(run.system for run in runs):.1f} "
                f"| {statistics.median(run.rate for run in runs):.0f} | {max(run.peak for run in runs)} | {median / base:.2f} |"
            )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default=",".join(each.name for each in WORKLOADS))
    parser.add_argument("--peers", default="", help="names that contain one of these; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=10_000)
    parser.add_argument("--smoke", action="store_true", help="one short round")
    arguments = parser.parse_args()
    if not pathlib.Path("/proc/self/stat").exists():
        print("bench.e2e reads /proc: Linux only")
        return 0
    if tool("smtp-source") is None:
        print("skipped: smtp-source (Debian's package postfix) is not installed")
        return 0
    rounds, messages = (1, 400) if arguments.smoke else (arguments.rounds, arguments.messages)
    peers = []
    for peer in PEERS:
        if arguments.peers and not any(part in peer.name for part in arguments.peers.split(",")):
            continue
        if reason := peer.missing():
            print(f"skipped: {peer.name}: {reason}")
            continue
        peers.append(peer)
    names = arguments.workloads.split(",")
    results: dict[str, dict[str, list[Run]]] = {}
    for workload in (each for each in WORKLOADS if each.name in names):
        rows = results[workload.name] = {peer.name: [] for peer in peers}
        for _ in range(rounds):
            for peer in peers:
                rows[peer.name].append(measure(peer, workload, max(10, int(messages * workload.share))))
    text = f"{platform.python_implementation()} {platform.python_version()}, {rounds} rounds\n" + table(results)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "e2e.md").write_text(text + "\n")
    raw = {
        workload: {name: [[run.user, run.system, run.rate, run.peak] for run in runs] for name, runs in rows.items()}
        for workload, rows in results.items()
    }
    (RESULTS / "e2e.json").write_text(json.dumps(raw, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
