"""The relay as a user would run it: a next hop of our own, the commands, and mail for them."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import smtplib
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from fastsmtp import DataContext, DataReader, DefaultBackend, DefaultSession, RcptParams, Reply, Server, SMTPError
from fastsmtp.cli import main

from .serving import Serving, serving

__all__ = ["Arrived", "Said", "Sink", "deliver", "queue", "queued", "relaying", "sink", "until", "without_trace"]


class Arrived(NamedTuple):
    """What a next hop has got."""

    sender: str
    recipients: tuple[str, ...]
    octets: Any


class Sink:
    """A next hop in a thread.

    Args:
        keep: what is kept of a message's octets.

    Attributes:
        messages: what has come, in its order.
        replies: to recipients, by address; the others are welcome.
        final: what is said to each message, None for 250.
        port: where it listens.
    """

    def __init__(self, keep: Callable[[bytes], object]) -> None:
        self.keep = keep
        self.messages: list[Arrived] = []
        self.replies: dict[str, Reply] = {}
        self.final: Reply | None = None
        self.port = 0

    @property
    def url(self) -> str:
        return f"smtp://127.0.0.1:{self.port}"

    def bodies(self) -> list[bytes]:
        """The messages without the Received fields in front of them."""
        return [without_trace(each.octets) for each in self.messages]


def without_trace(octets: bytes) -> bytes:
    """A message without the fields Received in front of it."""
    while octets.startswith(b"Received:"):
        _, _, octets = octets.partition(b"\r\n")
        while octets[:1] in (b" ", b"\t"):
            _, _, octets = octets.partition(b"\r\n")
    return octets


class _Session(DefaultSession):
    def __init__(self, box: Sink) -> None:
        super().__init__()
        self._box = box

    def rcpt(self, recipient: str, params: RcptParams) -> None:
        if (reply := self._box.replies.get(recipient)) is not None:
            raise SMTPError.from_reply(reply)
        super().rcpt(recipient, params)

    async def data(self, reader: DataReader, context: DataContext) -> Reply | None:
        box = self._box
        octets = await reader.read()
        if box.final is None:
            box.messages.append(Arrived(context.sender, tuple(context.recipients), box.keep(octets)))
        return box.final


def _all(octets: bytes) -> bytes:
    return octets


@contextmanager
def sink(keep: Callable[[bytes], object] = _all, **options: Any) -> Iterator[Sink]:
    """A next hop while it runs."""
    box = Sink(keep)
    ready = threading.Event()
    loop: asyncio.AbstractEventLoop
    ended: asyncio.Event

    async def main() -> None:
        nonlocal loop, ended
        loop, ended = asyncio.get_running_loop(), asyncio.Event()
        settings: dict[str, Any] = {"addr": "127.0.0.1:0", "domain": "sink.example", "max_message_bytes": 1 << 30}
        async with Server(DefaultBackend(lambda: _Session(box)), **settings | options) as server:
            box.port = 0 if "unix_socket" in options else server.port
            ready.set()
            await ended.wait()

    thread = threading.Thread(target=lambda: asyncio.run(main()), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield box
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join(30)


def relaying(*arguments: str, port: int = 0, **options: Any) -> AbstractContextManager[Serving]:
    """The relay while it runs."""
    return serving("--port", str(port), *arguments, command="relay", **options)


@dataclass(frozen=True, slots=True)
class Said:
    """What a command said, and its exit code."""

    code: int
    out: bytes
    err: str

    @property
    def text(self) -> str:
        return self.out.decode()


def queue(*arguments: str) -> Said:
    """What `fastsmtp queue` says.  In this process, which is quicker."""
    out, err = io.TextIOWrapper(io.BytesIO(), "utf-8"), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main(["queue", *arguments])
    out.flush()
    assert isinstance(out.buffer, io.BytesIO)
    return Said(code, out.buffer.getvalue(), err.getvalue())


def queued(place: str | Path) -> list[dict[str, Any]]:
    """All that is queued."""
    done = queue("--queue", f"sqlite:{place}" if isinstance(place, Path) else place, "ls", "--json")
    assert done.code == 0, done.err
    return [json.loads(line) for line in done.text.splitlines()]


def deliver(
    port: int, *recipients: str, body: bytes = b"Subject: one\r\n\r\ntext\r\n", sender: str = "a@b.example"
) -> str:
    """Send a message to a server; what it says, the identifier at its end."""
    with smtplib.SMTP("127.0.0.1", port, local_hostname="client.example", timeout=30) as client:
        client.ehlo()
        assert client.mail(sender)[0] == 250
        for recipient in recipients or ("c@d.example",):
            assert client.rcpt(recipient)[0] == 250
        code, text = client.data(body)
        assert code == 250, text
        return text.decode().split()[-1]


def until(condition: Callable[[], Any]) -> Any:
    """What the condition gives as soon as that is something."""
    while not (value := condition()):
        time.sleep(0.02)  # the test's own time-out ends it
    return value
