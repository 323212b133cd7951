"""One measurement: a server, what loads it, and what the kernel says the server has used."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import pathlib
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

from .servers import Peer, Setup, tool
from .workloads import Workload

__all__ = ["Failed", "Place", "Reading", "Run", "free_port", "measure", "read", "running", "wait_for"]

ROOT = pathlib.Path(__file__).parent.parent
TICKS = os.sysconf("SC_CLK_TCK")
LONGEST = 600.0  # seconds of one measurement


class Failed(Exception):
    """A measurement did not come to its end."""


@dataclasses.dataclass(frozen=True, slots=True)
class Run:
    """What one run has shown.  CPU is in microseconds per message, memory in KB, times in milliseconds.

    Attributes:
        user, system: the server's CPU in user mode and in the kernel.
        rate: messages per second.
        busy: the part of one processor that the server used; far below 1, the load was the limit of `rate`.
        peak: the server's largest resident size.
        p50, p99: latency of a message; 0 where smtp-source sent.
        idle: octets of resident size for each idle connection; 0 where there were none.
    """

    user: float
    system: float
    rate: float
    busy: float
    peak: int
    p50: float = 0.0
    p99: float = 0.0
    idle: float = 0.0

    @property
    def cpu(self) -> float:
        return self.user + self.system


@dataclasses.dataclass(frozen=True, slots=True)
class Reading:
    """What a process and its descendants have used so far: seconds of CPU, KB."""

    cpu: float
    user: float
    system: float
    resident: int
    peak: int


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """What the machine gives: a certificate and its authority, and a directory on a real disk."""

    certificate: pathlib.Path | None
    authority: pathlib.Path | None
    disk: pathlib.Path


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def _prepare(processors: slice) -> Callable[[], None]:
    """What a child does before it runs: it takes its processors, and as many files as it may open."""
    chosen = sorted(os.sched_getaffinity(0))[processors]
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]

    def prepare() -> None:
        os.sched_setaffinity(0, chosen)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

    return prepare


def _family(pid: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in pathlib.Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                children.setdefault(parent, []).append(int(entry.name))
    family = [pid]
    for each in family:
        family += children.get(each, ())
    return family


def _of_one(pid: int) -> Reading:
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]) / TICKS, int(fields[12]) / TICKS
    status = dict(
        line.split(":", 1) for line in pathlib.Path(f"/proc/{pid}/status").read_text().splitlines() if ":" in line
    )
    resident, peak = (int(status.get(name, "0").split()[0]) for name in ("VmRSS", "VmHWM"))
    try:  # the process's CPU clock (clock_getcpuclockid) counts nanoseconds, /proc ticks of 10 ms
        cpu = time.clock_gettime((~pid << 3) | 2)
    except OSError:
        cpu = user + system
    return Reading(cpu, user, system, resident, peak)


def read(pid: int) -> Reading:
    """The sum over a process and its descendants."""
    readings = []
    for each in _family(pid):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
            readings.append(_of_one(each))
    if not readings:
        raise Failed("the server has ended")
    return Reading(*(sum(getattr(each, field.name) for each in readings) for field in dataclasses.fields(Reading)))


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Wait until the server greets."""
    deadline = time.monotonic() + 30
    while True:
        try:
            with socket.create_connection(("127.0.0.1", port), 5) as sock:
                if sock.recv(4).startswith(b"220"):
                    return
        except OSError:
            pass
        if process.poll() is not None or time.monotonic() > deadline:
            raise Failed("the server does not greet")
        time.sleep(0.02)


@contextlib.contextmanager
def running(peer: Peer, setup: Setup) -> Iterator[subprocess.Popen[bytes]]:
    """The server, on the first processors; it greets."""
    environment = os.environ | {"GOMAXPROCS": str(setup.workers)}
    process = subprocess.Popen(
        peer.command(setup),
        cwd=ROOT,
        env=environment,
        preexec_fn=_prepare(slice(0, setup.workers)),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(setup.port, process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _smtp_source(workload: Workload, setup: Setup, connections: int, messages: int) -> list[str]:
    command = [
        tool("smtp-source") or "smtp-source",
        "-l",
        str(workload.size),
        "-s",
        str(connections),
        "-m",
        str(messages),
    ]
    command += ["-L"] if setup.lmtp else []
    command += [] if workload.fresh else ["-d"]
    command += ["-r", str(workload.recipients)] if workload.recipients > 1 else []
    return [*command, "-f", "a@b.example", "-t", "c@d.example", f"127.0.0.1:{setup.port}"]


def _load(workload: Workload, setup: Setup, place: Place, connections: int, messages: int, idle: int) -> list[str]:
    command = [sys.executable, "-m", "bench.load", str(setup.port), "--size", str(workload.size)]
    command += ["--connections", str(connections), "--messages", str(messages), "--idle", str(idle)]
    command += ["--fresh"] if workload.fresh else []
    command += ["--tls", str(place.authority)] if setup.tls else []
    return [*command, *(workload.own or ())]


def _staged(command: list[str], pid: int) -> tuple[dict[str, Reading], dict[str, Any]]:
    """Run `bench.load`: the server's readings by stage, and what it says at the end."""
    readings: dict[str, Reading] = {}
    last: dict[str, Any] = {}
    with subprocess.Popen(
        command,
        cwd=ROOT,
        preexec_fn=_prepare(slice(-1, None)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as load:
        assert load.stdin and load.stdout and load.stderr
        try:
            for line in load.stdout:
                last = json.loads(line)
                readings[last["stage"]] = read(pid)
                load.stdin.write("\n")
                load.stdin.flush()
            if load.wait(LONGEST) or last.get("stage") != "done":
                raise Failed((load.stderr.read().strip().splitlines() or ["the load ended early"])[-1])
        except BrokenPipeError:
            raise Failed("the load ended early") from None
        finally:
            load.kill()
    return readings, last


def measure(
    peer: Peer, workload: Workload, place: Place, connections: int, messages: int, idle: int | None = None
) -> Run:
    """Start the server, load it, stop it.

    Raises:
        Failed: the server did not start, refused, or did not get through in time.
    """
    idle = workload.idle if idle is None else idle
    setup = Setup(
        free_port(),
        tls=place.certificate if "tls" in workload.needs else None,
        lmtp="lmtp" in workload.needs,
        auth="auth" in workload.needs,
        workers=workload.workers,
        store=pathlib.Path(tempfile.mkdtemp(dir=place.disk)) if "durable" in workload.kind else None,
    )
    with running(peer, setup) as server:
        if workload.own is not None:
            readings, said = _staged(_load(workload, setup, place, connections, messages, idle), server.pid)
            before, after, seconds = readings["ready"], readings["done"], said["seconds"]
            per_idle = (before.resident - readings["warm"].resident) * 1024 / idle if idle else 0.0
            latency = (said["p50"] * 1e3, said["p99"] * 1e3)
        else:
            before, began = read(server.pid), time.perf_counter()
            command = _smtp_source(workload, setup, connections, messages)
            try:
                done = subprocess.run(
                    command,
                    preexec_fn=_prepare(slice(-1, None)),
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=LONGEST,
                )
            except subprocess.TimeoutExpired:
                raise Failed("it took too long") from None
            seconds, after, per_idle, latency = time.perf_counter() - began, read(server.pid), 0.0, (0.0, 0.0)
            if done.returncode:
                raise Failed((done.stderr.strip().splitlines() or ["smtp-source failed"])[-1])
    return _run(before, after, seconds, messages, latency, per_idle)


def _run(
    before: Reading, after: Reading, seconds: float, messages: int, latency: tuple[float, float], per_idle: float
) -> Run:
    cpu = after.cpu - before.cpu
    user, system = after.user - before.user, after.system - before.system
    part = user / (user + system) if user + system else 0.0  # the clock does not split, the ticks do
    each = cpu / messages * 1e6
    return Run(each * part, each * (1 - part), messages / seconds, cpu / seconds, after.peak, *latency, idle=per_idle)
