"""What all processes of ``fastsmtp serve`` have done, and how that is shown on a terminal."""

from __future__ import annotations

import dataclasses
import mmap
import struct
import sys
import time
from collections.abc import Callable
from typing import Final

from .counters import Counters

__all__ = ["FIELDS", "Board", "Display"]

FIELDS: Final = tuple(field.name for field in dataclasses.fields(Counters))
"""The names of the counters."""

_RECORD: Final = struct.Struct(f"{len(FIELDS)}q")


class Board:
    """The counters of all workers, in memory that they share.  A worker that is replaced goes on where the last one stopped."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._memory = mmap.mmap(-1, _RECORD.size * workers)

    def pen(self, worker: int, counters: Counters) -> Callable[[], None]:
        """What writes the counters of a worker that begins: on top of what is there, but it has its connections yet to get."""
        base = self._read(worker) | {"connections": 0}

        def write() -> None:
            values = [base[name] + getattr(counters, name) for name in FIELDS]
            _RECORD.pack_into(self._memory, worker * _RECORD.size, *values)

        return write

    def gone(self, worker: int) -> None:
        """A worker died: it has no connections."""
        values = self._read(worker) | {"connections": 0}
        _RECORD.pack_into(self._memory, worker * _RECORD.size, *values.values())

    def total(self) -> dict[str, int]:
        """The sums over all workers."""
        records = [self._read(worker) for worker in range(self._workers)]
        return {name: sum(record[name] for record in records) for name in FIELDS}

    def _read(self, worker: int) -> dict[str, int]:
        return dict(zip(FIELDS, _RECORD.unpack_from(self._memory, worker * _RECORD.size), strict=True))


class Display:
    """The live line on a terminal, and the summary."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._started = self._before = time.monotonic()
        self._messages = 0
        self._live = sys.stderr.isatty()

    def tick(self) -> None:
        """Draw the line again, if this is a terminal."""
        if not self._live:
            return
        total = self._board.total()
        now = time.monotonic()
        rate = (total["messages"] - self._messages) / max(now - self._before, 0.001)
        self._before, self._messages = now, total["messages"]
        sys.stderr.write(
            f"\r\x1b[K{total['messages']} messages, {rate:.0f}/s, {total['octets'] / 1e6:.1f} MB, "
            f"{total['recipients']} recipients, {total['connections']} connections, {total['rejected']} refused"
        )
        sys.stderr.flush()

    def summary(self) -> None:
        """The last line of all."""
        total = self._board.total()
        if self._live:
            sys.stderr.write("\r\x1b[K")
        print(
            f"fastsmtp: {total['messages']} messages for {total['recipients']} recipients, {total['octets']} octets, "
            f"{total['connections_total']} connections, {total['rejected']} refused, {total['errors']} errors "
            f"in {time.monotonic() - self._started:.1f} s",
            file=sys.stderr,
            flush=True,
        )
