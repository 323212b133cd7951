"""kill -9 of any process of the relay at any moment: each message that was answered 250 arrives, whole.

Sessions send through a relay of two workers to a next hop of our own; after a random number of answers a process is killed, the parent or
a worker.  FASTSMTP_KILLS sets the number of kills.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import random
import re
import signal
import smtplib
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from . import postgres
from .relaying import Sink, queue, sink, until, without_trace

KILLS = int(os.environ.get("FASTSMTP_KILLS", "5"))
SESSIONS = 8
LONGEST_ROUND = 300  # answers


def body(number: int) -> bytes:
    """A message that tells its number and proves to be whole; one of ten has a side file."""
    numbers = random.Random(number)
    size = numbers.choice([10, 4000, 4000, 4000, 4000, 60_000, 9, 9, 9, 300_000])
    text = b"Subject: %d\r\n\r\n" % number + (b"%064x\r\n" % numbers.getrandbits(256)) * (size // 66 + 1)
    return text + hashlib.sha256(text).hexdigest().encode() + b"\r\n"


def number_of(octets: bytes) -> int:
    """The number of a message, -1 for one that is not as it was sent."""
    text = without_trace(octets)
    match = re.match(rb"Subject: ([0-9]+)\r\n", text)
    return int(match[1]) if match and text == body(int(match[1])) else -1


class Load:
    """Sessions that send as fast as they are answered, until `stop`.

    Attributes:
        answered: the numbers of what was answered 250.
    """

    def __init__(self, port: int) -> None:
        self.answered: list[int] = []
        self._port = port
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(SESSIONS)]
        for each in self._threads:
            each.start()

    def stop(self) -> None:
        self._stop.set()
        for each in self._threads:
            each.join()

    def _send(self, number: int) -> None:
        while not self._stop.is_set():
            with contextlib.suppress(OSError, smtplib.SMTPException):
                with smtplib.SMTP("127.0.0.1", self._port, "client.example", timeout=30) as client:
                    while not self._stop.is_set():
                        number += SESSIONS
                        client.sendmail("a@b.example", ["c@d.example"], body(number))
                        self.answered.append(number)


def _drop(stream: IO[str]) -> None:
    with stream:
        for _ in stream:
            pass


class Storm:
    """A relay that is killed and started again."""

    def __init__(self, *arguments: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        self._arguments = arguments
        self.start()

    def start(self) -> None:
        """Start it; what was left of the one before may take a moment to be gone."""
        while True:
            command = [sys.executable, "-m", "fastsmtp", "relay", "--port", str(self.port), *self._arguments]
            self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
            assert self.process.stderr is not None
            line = self.process.stderr.readline()
            if "listening on" in line:
                threading.Thread(target=_drop, args=(self.process.stderr,), daemon=True).start()
                return
            with self.process.stderr as rest:
                assert "Address already in use" in line or "is open already" in line, line + rest.read()
            self.process.wait()

    def kill_one(self, choice: random.Random) -> None:
        """kill -9 of the parent, or of a worker."""
        pid = self.process.pid
        workers = [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        victim = choice.choice([pid, *workers])
        with contextlib.suppress(ProcessLookupError):
            os.kill(victim, signal.SIGKILL)
        if victim == pid:
            self.process.wait()
            self.start()

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(90) == 0


@contextlib.contextmanager
def storm(*arguments: str) -> Iterator[Storm]:
    it = Storm(*arguments)
    try:
        yield it
    finally:
        with contextlib.suppress(ProcessLookupError):
            it.process.send_signal(signal.SIGTERM)
        it.process.wait(90)


def kill_often(it: Storm, box: Sink, place: str) -> None:
    choice = random.Random()
    load = Load(it.port)
    try:
        for _ in range(KILLS):
            enough = len(load.answered) + choice.randrange(1, LONGEST_ROUND)
            while len(load.answered) < enough:
                time.sleep(0.005)
            it.kill_one(choice)
    finally:
        load.stop()
    until(lambda: is_empty(place))
    it.stop()
    arrived = [each.octets for each in box.messages]
    assert -1 not in arrived
    assert set(load.answered) <= set(arrived), sorted(set(load.answered) - set(arrived))
    # What came twice was under way at a kill, and no more than that.
    assert len(arrived) - len(set(arrived)) <= KILLS * 200
    print(
        f"{KILLS} kills, {len(load.answered)} answered, {len(set(arrived))} arrived, {len(arrived) - len(set(arrived))} twice"
    )


def is_empty(place: str) -> bool:
    done = queue("--queue", place, "stats")
    return done.code == 0 and "messages  0\n" in done.text


@pytest.mark.slow
@pytest.mark.timeout(120 + 15 * KILLS)
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="no /proc")
def test_kill_9(tmp_path: Path) -> None:
    place = f"sqlite:{tmp_path}/q"
    with sink(number_of) as box, storm("--to", box.url, "--queue", place, "--workers", "2") as it:
        kill_often(it, box, place)


@pytest.mark.slow
@pytest.mark.timeout(120 + 15 * KILLS)
@pytest.mark.skipif(bool(postgres.absence()), reason=postgres.absence() or "it is there")
def test_kill_9_with_a_database(tmp_path: Path) -> None:
    cluster = postgres.shared()
    cluster.sql("CREATE DATABASE relay_kill")
    place = cluster.dsn_for(database="relay_kill")
    with sink(number_of) as box, storm("--to", box.url, "--queue", place, "--workers", "2", "--lease", "3") as it:
        kill_often(it, box, place)
