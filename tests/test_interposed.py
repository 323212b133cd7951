"""Every system call on the way to a 250 fails once, in the real server: 452 or 451, nothing half stored, and it goes on.

A preloaded library lets the n-th call fail, for each n until a message passes through without meeting the fault.  What was answered 250 is
there, what was not is not, and the next message is taken.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import errno
import os
import pathlib
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Final

import pytest
from soak.texts import message, stuffed, the_number_in

from fastsmtp.delivery.queue import SQLiteQueue

from .interposing import Interposer, interposer, why_not

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(why_not()), reason=why_not()),
]

FULL: Final = {errno.ENOSPC, errno.EDQUOT}
DURABLE: Final = {"open", "write", "writev", "pwrite", "fsync", "fdatasync", "syncfs", "rename", "ftruncate"}
MOST: Final = 400  # calls that one round may need


class Sender:
    """One connection, which is kept."""

    def __init__(self, port: int) -> None:
        self._sock = socket.create_connection(("127.0.0.1", port), 60)
        self._replies = self._sock.makefile("rb")
        self.expect("220")
        self._sock.sendall(b"EHLO client.example\r\n")
        self.expect("250")

    def expect(self, code: str) -> str:
        while True:
            line = self._replies.readline().decode()
            assert line.endswith("\r\n"), "the connection is lost"
            if line[3] == " ":
                assert line.startswith(code), line
                return line.rstrip()

    def begin(self, text: bytes) -> None:
        self._sock.sendall(b"MAIL FROM:<a@client.example>\r\nRCPT TO:<b@server.example>\r\nDATA\r\n")
        for code in ("250", "250", "354"):
            self.expect(code)
        self._sock.sendall(stuffed(text))

    def end(self) -> str:
        return self.expect("")

    def send(self, text: bytes) -> str:
        self.begin(text)
        return self.end()

    def close(self) -> None:
        self._replies.close()
        self._sock.close()


class Target:
    """A server under test, and what it has stored."""

    def __init__(self, folder: pathlib.Path, command: Sequence[str], environment: dict[str, str]) -> None:
        self.folder = folder
        self.process = subprocess.Popen(
            [sys.executable, "-m", *command], stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
        )
        assert self.process.stderr is not None
        found = re.search(r"listening on 127\.0\.0\.1:(\d+)", self.process.stderr.readline())
        assert found
        self.port = int(found[1])
        self.lines: list[str] = []
        self._reader = threading.Thread(target=self.lines.extend, args=(self.process.stderr,))
        self._reader.start()
        self._numbers = 0
        self.promised: set[int] = set()
        self.large: set[int] = set()

    def text(self, size: str) -> tuple[int, bytes]:
        """The next message: "small", or "large"."""
        self._numbers += 1
        while self._numbers % 10 == 9:  # the others are small
            self._numbers += 1
        if size == "large":
            self.large.add(self._numbers)
        return self._numbers, message(self._numbers, size if size == "large" else "text")

    def sent(self, senders: Sequence[Sender], size: str) -> list[str]:
        """The replies to a message of each sender; their ends arrive together."""
        texts = [self.text(size) for _ in senders]
        for sender, (_, text) in zip(senders, texts, strict=True):
            sender.begin(text)
        replies = [sender.end() for sender in senders]
        for (number, _), reply in zip(texts, replies, strict=True):
            assert reply[:3] in ("250", "451", "452"), reply
            if reply.startswith("250"):
                self.promised.add(number)
        return replies

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        assert self.process.wait(60) == 0
        self._reader.join()
        assert not any("Traceback" in line for line in self.lines), "".join(self.lines)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()

    def check(self, first: str) -> None:
        """What can be looked at while it runs, after a call of this name has failed."""

    def check_end(self) -> None:
        """Exactly what was promised is there."""
        raise NotImplementedError


class MaildirTarget(Target):
    def __init__(self, folder: pathlib.Path, environment: dict[str, str]) -> None:
        self.left = 0
        super().__init__(folder, ["fastsmtp", "serve", "--port", "0", "--maildir", str(folder)], environment)

    def check(self, first: str) -> None:
        left = len(os.listdir(self.folder / "tmp"))
        assert left == self.left + (first == "unlink")  # what cannot be removed is swept later
        self.left = left

    def check_end(self) -> None:
        stored = [the_number_in(path.read_bytes()) for path in (self.folder / "new").iterdir()]
        assert sorted(stored) == sorted(self.promised)


class QueueTarget(Target):
    def __init__(self, folder: pathlib.Path, environment: dict[str, str]) -> None:
        super().__init__(folder, ["tests.queueing", str(folder)], environment)

    def check_end(self) -> None:
        async def main() -> list[int]:
            numbers = []
            async with SQLiteQueue(self.folder) as queue:
                after = None
                while True:
                    page = await queue.list(after=after)
                    for each in page.messages:
                        text = b"".join([piece async for piece in queue.body(each.message.id)])
                        number = int(text.split()[1])
                        assert text == message(number, text.split()[2].decode())
                        numbers.append(number)
                    after = page.after
                    if after is None:
                        break
                assert (await queue.stats()).messages == len(numbers)
            return numbers

        assert sorted(asyncio.run(main())) == sorted(self.promised)
        assert len(os.listdir(self.folder / "bodies")) == len(self.promised & self.large)


@contextlib.contextmanager
def under_test(kind: str, tmp_path: pathlib.Path) -> Iterator[tuple[Target, Interposer]]:
    folder = tmp_path / "store"
    with interposer(tmp_path, folder) as faults:
        made: Target = (MaildirTarget if kind == "maildir" else QueueTarget)(folder, faults.environment)
        try:
            yield made, faults
            made.stop()
            made.check_end()
        finally:
            made.kill()


ERRORS: Final = [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EMFILE, 0]


@pytest.mark.parametrize("count", [1, 3], ids=["one", "three at once"])
@pytest.mark.parametrize("size", ["small", "large"])
@pytest.mark.parametrize("kind", ["maildir", "queue"])
def test_each_call_fails(tmp_path: pathlib.Path, kind: str, size: str, count: int) -> None:
    met: collections.Counter[str] = collections.Counter()
    with under_test(kind, tmp_path) as (target, faults), contextlib.ExitStack() as stack:
        senders = [stack.enter_context(contextlib.closing(Sender(target.port))) for _ in range(count)]
        assert all(reply.startswith("250") for reply in target.sent(senders, size))
        for error in ERRORS if count == 1 else ERRORS[:2]:
            for stays in (False, True) if error in ERRORS[:2] else (False,):
                met += _each_call(target, faults, senders, size, error, stays)
    print(f"{kind}, {size}, {count} at once: {sum(met.values())} faults, {dict(met)}")


def _each_call(
    target: Target, faults: Interposer, senders: Sequence[Sender], size: str, error: int, stays: bool
) -> collections.Counter[str]:
    """How often a call of which name failed."""
    met: collections.Counter[str] = collections.Counter()
    quiet = 0
    for at in range(1, MOST):
        faults.arm(at, error, stays=stays)
        replies = target.sent(senders, size)
        first, name = faults.disarm(), faults.name
        refused = [reply for reply in replies if not reply.startswith("250")]
        if not first:
            assert not refused
            quiet += 1
            if quiet == 3:  # how many calls a group needs is not always the same
                break
            continue
        quiet = 0
        met[first] += 1
        told = (first, name, error, stays, replies)
        if not error:
            assert not refused, told
        elif first in DURABLE and not name.endswith(("queue.db", "-shm")):
            assert refused, told
        if isinstance(target, MaildirTarget) and refused:
            assert refused[0].startswith("452" if error in FULL else "451"), told
        target.check(first)
        assert all(reply.startswith("250") for reply in target.sent(senders, "small")), told
    else:
        raise AssertionError(f"no end after {MOST} calls: {met}")
    assert sum(met.values()) >= (1 if not error else 3), met
    return met
