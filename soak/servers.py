"""The servers of a soak: processes as a user would start them, looked at from outside."""

from __future__ import annotations

import asyncio
import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import trustme

from .places import Place

__all__ = ["Sample", "Served", "certificate", "plans"]

_PAGE: Final = os.sysconf("SC_PAGE_SIZE")
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_WRONG: Final = re.compile(r"Traceback|\b(?:ERROR|CRITICAL|WARNING)\b|never awaited|never retrieved")
_START: Final = 60.0
_STOP: Final = 90.0
_DRAIN: Final = 25


@dataclass(frozen=True, slots=True)
class Sample:
    """One process at one moment.

    Attributes:
        memory: octets that are resident.
        descriptors: that it has open.
    """

    time: float
    memory: int
    descriptors: int


@dataclass(slots=True)
class Served:
    """One server: started, stopped and started again at the same place.

    Attributes:
        place: where it is.
        maildir: where it stores.
        samples: of each of its processes, by pid.
        processor: CPU seconds of the processes that are gone.
    """

    place: Place
    maildir: pathlib.Path
    arguments: Sequence[str]
    log: pathlib.Path
    samples: dict[int, list[Sample]] = field(default_factory=dict)
    processor: float = 0.0
    _process: subprocess.Popen[bytes] | None = None
    _read: int = 0  # octets of the log that were looked at

    async def start(self) -> None:
        """Start it, and wait until it listens."""
        arguments = list(self.arguments)
        if self.place.path:
            arguments += ["--unix", self.place.path]
        else:
            arguments += ["--port", str(self.place.port)]
        command = [sys.executable, "-m", "fastsmtp", "serve", "--maildir", str(self.maildir), *arguments]
        with open(self.log, "ab") as log:
            at = log.tell()
            self._process = subprocess.Popen(command, stderr=log)
        deadline = asyncio.get_running_loop().time() + _START
        while True:
            with open(self.log, encoding="utf-8") as text:
                text.seek(at)
                found = re.search(r"listening on (?:\S+:(\d+)|\S+)\n", text.read())
            if found is not None:
                break
            if self._process.poll() is not None or asyncio.get_running_loop().time() > deadline:
                raise RuntimeError(f"{self.place.name} does not start, see {self.log}")
            await asyncio.sleep(0.05)
        if found[1]:
            self.place = Place(
                **{name: getattr(self.place, name) for name in Place.__slots__} | {"port": int(found[1])}
            )

    async def stop(self) -> int:
        """SIGTERM: its exit code.  Raises RuntimeError when it does not end."""
        assert self._process is not None
        self.processor += sum(_processor(pid) for pid in self.pids())
        self._process.send_signal(signal.SIGTERM)
        deadline = asyncio.get_running_loop().time() + _STOP
        while self._process.poll() is None:
            if asyncio.get_running_loop().time() > deadline:
                raise RuntimeError(f"{self.place.name} does not stop")
            await asyncio.sleep(0.02)
        return self._process.returncode

    def kill(self) -> None:
        """At once, whatever it does."""
        if self._process is not None and self._process.poll() is None:
            for pid in self.pids():
                os.kill(pid, signal.SIGKILL)
            self._process.wait()

    def pids(self) -> list[int]:
        """Its processes: itself, or itself and its workers."""
        if self._process is None or self._process.poll() is not None:
            return []
        pid = self._process.pid
        try:
            children = pathlib.Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        except OSError:
            children = []
        return [pid, *map(int, children)]

    def sample(self, now: float) -> None:
        """Look at each process."""
        for pid in self.pids():
            try:
                memory = int(pathlib.Path(f"/proc/{pid}/statm").read_text().split()[1]) * _PAGE
                descriptors = len(os.listdir(f"/proc/{pid}/fd"))
            except OSError:
                continue
            self.samples.setdefault(pid, []).append(Sample(now, memory, descriptors))

    def cpu(self) -> float:
        """CPU seconds of all its processes so far."""
        return self.processor + sum(_processor(pid) for pid in self.pids())

    def complaints(self) -> Iterator[str]:
        """Lines of its log since the last call that should not be there."""
        with open(self.log, encoding="utf-8", errors="replace") as text:
            text.seek(self._read)
            lines = text.read()
            self._read = text.tell()
        for line in lines.splitlines():
            if _WRONG.search(line):
                yield line


def _processor(pid: int) -> float:
    try:
        fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / _TICKS


def certificate(folder: pathlib.Path) -> tuple[str, str]:
    """An authority's certificate, and key and certificate of mx.example, as files."""
    authority = trustme.CA()
    ca, issued = folder / "ca.pem", folder / "mx.pem"
    authority.cert_pem.write_to_path(str(ca))
    authority.issue_cert("mx.example").private_key_and_cert_chain_pem.write_to_path(str(issued))
    return str(ca), str(issued)


def _users(folder: pathlib.Path) -> str:
    """A file of users with one in it."""
    path = str(folder / "users")
    command = [sys.executable, "-m", "fastsmtp", "passwd", "--stdin", "--iterations", "4096", path, "user"]
    subprocess.run(command, input=b"secret\n", check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return path


def plans(folder: pathlib.Path, patience: int) -> list[Served]:
    """One server of each kind.

    Args:
        patience: seconds for a command, for silence, and for a client that does not read.
    """
    ca, issued = certificate(folder)
    common = ["--domain", "mx.example", "--read-timeout", str(patience), "--write-timeout", str(patience)]
    common += ["--drain-timeout", str(_DRAIN)]

    def served(place: Place, *arguments: str) -> Served:
        return Served(place, folder / place.name, [*common, *arguments], folder / f"{place.name}.log")

    tls = ["--tls-cert", issued]
    smtp = [*tls, "--max-connections", "400", "--max-connections-per-address", "150", "--allow-xforward", "loopback"]
    smtp += ["--auth-file", _users(folder), "--allow-insecure-auth", "--auth-failure-delay", "0.1"]
    return [
        served(Place("smtp", starttls=True, ca=ca, patience=patience, most=400, most_of_one=150), *smtp),
        served(
            Place("smtps", tls=True, proxy=True, ca=ca, patience=patience),
            *(*tls, "--implicit-tls", "--proxy", "loopback", "--workers", "2", "--loop", "asyncio"),
        ),
        served(
            Place("lmtp", path=str(folder / "lmtp.sock"), lmtp=True, patience=patience, most=300),
            *("--lmtp", "--max-connections", "300", "--loop", "asyncio"),
        ),
    ]
