"""``fastsmtp queue``: looks at a relay's queue, and changes it, whether the relay runs or not.

A database is open to everybody who may connect.  Of a directory's queues each is asked through the process that has it open, if there is
one, and else opened.

Exit codes: 0 when all went well; 1 when a queue or a message is not there, or does not answer; 2 for a contradiction in the options.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from typing import Any, Final

from ._spools import Spools, join_id, split_id
from .delivery.queue import (
    NoSuchMessage,
    PostgresQueue,
    QueueConsole,
    QueuedMessage,
    QueueError,
    QueueInUse,
    Recipient,
    RemoteQueue,
    SQLiteQueue,
    State,
    Stats,
    message_json,
)
from .errors import ConfigurationError
from .tracing import printable

__all__ = ["manage"]

_PATIENCE: Final = 10.0  # seconds for a process that begins or ends
_PAUSE: Final = 0.05
_PAGE: Final = 100
_HEADER: Final = 1 << 16  # octets of a header that are shown
_NAMED: Final = 2  # destinations that a line names
_COLUMNS: Final = ("ID", "AGE", "SIZE", "STATE", "TRIES", "NEXT", "SENDER", "DESTINATION", "LAST REPLY")
_ROW: Final = "{:<19} {:>5} {:>7} {:<8} {:>5} {:>5} {:<28} {:<24} {}"


def manage(arguments: argparse.Namespace) -> int:
    """Do what the arguments say; the exit code."""
    changes = arguments.action in _CHANGES
    if changes and bool(arguments.ids) == (arguments.all or arguments.destination is not None):
        arguments.refuse("either IDs, or --destination, or --all is needed")
    try:
        return asyncio.run(_run(arguments))
    except (ConfigurationError, QueueError) as error:
        return _complain(str(error))


async def _run(arguments: argparse.Namespace) -> int:
    async with _opened(arguments.queue) as queues:
        if arguments.action == "ls":
            await _ls(queues, arguments)
            return 0
        if arguments.action == "stats":
            await _stats(queues, arguments)
            return 0
        if arguments.action == "show":
            return await _each(queues, arguments.ids, lambda queue, id, name: _show(queue, id, name, arguments))
        return await _change(queues, arguments)


# The queues


class _Queues:
    """The queues of one place; that of a database has the number -1, and identifiers without a number."""

    def __init__(self, queues: dict[int, QueueConsole]) -> None:
        self.by_number: Final = queues

    def find(self, name: str) -> tuple[QueueConsole, str]:
        """The queue that has a message of this name, and its identifier there.

        Raises:
            NoSuchMessage: none.
        """
        if -1 in self.by_number:
            return self.by_number[-1], name
        parts = split_id(name)
        if parts is None or parts[0] not in self.by_number:
            raise NoSuchMessage(name)
        return self.by_number[parts[0]], parts[1]

    async def messages(self, destination: str | None) -> AsyncIterator[tuple[str, QueueConsole, QueuedMessage]]:
        """All messages with their names and queues."""
        for number, queue in self.by_number.items():
            after: str | None = None
            while True:
                page = await queue.list(after=after, limit=_PAGE, destination=destination)
                for each in page.messages:
                    yield _name(number, each.message.id), queue, each
                after = page.after
                if after is None:
                    break


def _name(number: int, id: str) -> str:
    return id if number < 0 else join_id(number, id)


@contextlib.asynccontextmanager
async def _opened(place: str) -> AsyncIterator[_Queues]:
    async with contextlib.AsyncExitStack() as stack:
        queues: dict[int, QueueConsole] = {}
        if place.startswith("sqlite:"):
            spools = Spools(place.removeprefix("sqlite:"))
            for number in spools.numbers():
                queues[number] = await _open(spools, number)
                stack.push_async_callback(queues[number].aclose)
        else:
            queues[-1] = await stack.enter_async_context(PostgresQueue(place, logger=_silent()))
        yield _Queues(queues)


async def _open(spools: Spools, number: int) -> QueueConsole:
    """The queue by the process that has it, or the queue itself."""
    until = time.monotonic() + _PATIENCE
    while True:
        remote = RemoteQueue(spools.control(number))
        with contextlib.suppress(OSError):
            await remote.connect()
            return remote
        try:
            return SQLiteQueue(spools.queue(number), min_free=0, logger=_silent())
        except QueueInUse:
            # It is being opened or closed, or another `fastsmtp queue` looks at it.
            if time.monotonic() > until:
                raise
            await asyncio.sleep(_PAUSE)


def _silent() -> logging.Logger:
    """What goes wrong is said once, by whoever asked for it."""
    logger = logging.getLogger("fastsmtp.manage")
    logger.setLevel(logging.CRITICAL + 1)
    return logger


# What is shown


async def _ls(queues: _Queues, arguments: argparse.Namespace) -> None:
    now = time.time()
    count = 0
    if not arguments.json:
        print(_ROW.format(*_COLUMNS))
    async with contextlib.aclosing(queues.messages(arguments.destination)) as messages:  # type: ignore[type-var]
        async for name, _, queued in messages:
            print(json.dumps(_object(name, queued)) if arguments.json else _line(name, queued, now))
            count += 1
            if count == arguments.limit:
                break


def _line(name: str, queued: QueuedMessage, now: float) -> str:
    message = queued.message
    waiting = [each for each in queued.recipients if each.state is State.PENDING]
    destinations = list(dict.fromkeys(each.destination for each in waiting))
    more = len(destinations) - _NAMED
    shown = ",".join(destinations[:_NAMED]) + (f",+{more}" if more > 0 else "")
    replies = [str(each.reply) for each in waiting if each.reply is not None]
    following = min((each.next_attempt for each in waiting), default=now)
    return _safe(
        _ROW.format(
            name,
            _age(now - message.received),
            _size(message.size),
            _state(queued, now),
            max((each.attempts for each in waiting), default=0),
            "" if message.held else _age(max(0.0, following - now)),
            f"<{message.sender}>",
            shown,
            " ".join(replies[0].split()) if replies else "",
        ).rstrip()
    )


def _state(queued: QueuedMessage, now: float) -> str:
    if queued.message.held:
        return "held"
    due = any(each.state is State.PENDING and each.next_attempt <= now for each in queued.recipients)
    return "due" if due else "deferred"


def _object(name: str, queued: QueuedMessage) -> dict[str, Any]:
    fields = message_json(queued) | {"id": name}
    for recipient in fields["recipients"]:
        if recipient["reply"] is not None:
            code, status, text = recipient["reply"]
            recipient["reply"] = {"code": code, "status": ".".join(map(str, status)), "text": text}
    return fields


async def _show(queue: QueueConsole, id: str, name: str, arguments: argparse.Namespace) -> None:
    if arguments.body:
        async for piece in queue.body(id):
            sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
        return
    queued = await queue.get(id)
    if arguments.json:
        print(json.dumps(_object(name, queued)))
        return
    now = time.time()
    message = queued.message
    print(f"id          {name}")
    for label, text in (
        ("state", _state(queued, now)),
        ("received", f"{_date(message.received)}, {_age(now - message.received)} ago"),
        ("expires", "never" if message.expires is None else _date(message.expires)),
        ("size", f"{message.size} octets"),
        ("priority", str(message.priority)),
        ("sender", f"<{message.sender}>"),
        ("parameters", _words(message_json(queued)["params"])),
        ("origin", _words(message.origin)),
    ):
        if text:
            print(_safe(f"{label:<11} {text}"))
    for each in queued.recipients:
        print(_safe(_recipient(each, now)))
    print()
    print(_safe((await _header(queue, id)).decode("utf-8", "replace").expandtabs(), keep="\n"))


def _recipient(recipient: Recipient, now: float) -> str:
    text = f"recipient   <{recipient.address}> to {recipient.destination}: {recipient.state}, {recipient.attempts} attempts"
    if recipient.state is State.PENDING and recipient.next_attempt > now:
        text += f", next in {_age(recipient.next_attempt - now)}"
    if recipient.reply is not None:
        text += f"; {' '.join(str(recipient.reply).split())}"
    return text


async def _header(queue: QueueConsole, id: str) -> bytes:
    """The header, without CR."""
    read = b""
    async for piece in queue.body(id):
        if len(read) < _HEADER:
            read = (read + piece).replace(b"\r\n", b"\n")
    header, _, _ = read[:_HEADER].partition(b"\n\n")
    return header


async def _stats(queues: _Queues, arguments: argparse.Namespace) -> None:
    all_stats = [await each.stats() for each in queues.by_number.values()]
    names = [name for name in Stats.__dataclass_fields__ if name != "oldest"]
    total: dict[str, Any] = {name: sum(asdict(each)[name] for each in all_stats) for name in names}
    total["oldest"] = min((each.oldest for each in all_stats if each.oldest is not None), default=None)
    if arguments.json:
        print(json.dumps(total))
        return
    for name in names:
        print(f"{name:<9} {total[name]}")
    oldest = total["oldest"]
    print(f"{'oldest':<9} {'none' if oldest is None else f'{_age(time.time() - oldest)} ({_date(oldest)})'}")


# What is changed


async def _retry(queue: QueueConsole, id: str) -> None:
    await queue.flush(id=id)


_CHANGES: Final[dict[str, tuple[Callable[[QueueConsole, str], Awaitable[None]], str]]] = {
    "retry": (_retry, "made due"),
    "hold": (lambda queue, id: queue.hold(id), "held"),
    "release": (lambda queue, id: queue.release(id), "released"),
    "rm": (lambda queue, id: queue.remove(id), "removed"),
}


async def _change(queues: _Queues, arguments: argparse.Namespace) -> int:
    change, done = _CHANGES[arguments.action]
    if arguments.ids:
        return await _each(queues, arguments.ids, lambda queue, id, _: change(queue, id))
    count = 0
    if arguments.action == "retry":
        for queue in queues.by_number.values():
            count += await queue.flush(arguments.destination)
        print(f"{count} deliveries {done}")
        return 0
    async for _, queue, queued in queues.messages(arguments.destination):
        with contextlib.suppress(NoSuchMessage):  # delivered meanwhile
            await change(queue, queued.message.id)
            count += 1
    print(f"{count} messages {done}")
    return 0


async def _each(queues: _Queues, names: list[str], do: Callable[[QueueConsole, str, str], Awaitable[None]]) -> int:
    code = 0
    for name in names:
        try:
            queue, id = queues.find(name)
            await do(queue, id, name)
        except NoSuchMessage:
            code = _complain(f"no message {name}")
    return code


# Words


def _age(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("m", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f}{unit}"
    return f"{max(0.0, seconds):.0f}s"


def _size(octets: int) -> str:
    for unit, length in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if octets >= 10 * length:
            return f"{octets / length:.0f}{unit}"
    return str(octets)


def _date(when: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S %z", time.localtime(when))


def _words(values: Any) -> str:
    return " ".join(
        f"{name}={value if isinstance(value, str) else json.dumps(value)}" for name, value in values.items()
    )


def _safe(text: str, keep: str = "") -> str:
    """What peers sent, without control characters, in characters that standard output has."""
    encoding = sys.stdout.encoding or "utf-8"
    lines = text.split(keep) if keep else [text]
    return (keep or "").join(printable(line).encode(encoding, "backslashreplace").decode(encoding) for line in lines)


def _complain(text: str) -> int:
    print(f"fastsmtp: {printable(text)}", file=sys.stderr)
    return 1
