"""What all processes of a server have done, and how that is shown on a terminal."""

from __future__ import annotations

import dataclasses
import mmap
import struct
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from typing import Final

from .counters import Counters

__all__ = ["FIELDS", "Board", "Display", "Figure", "Kind"]

FIELDS: Final = tuple(field.name for field in dataclasses.fields(Counters))
"""The names of the server's counters."""


class Kind(Enum):
    """How a figure behaves.

    TOTAL counts up; the worker that takes another's place goes on counting.  LIVE is what a worker has now, and nothing once it is gone.
    STORED is what there is now, and stays there.  SINCE is a time, 0 for none, and the earliest counts.
    """

    TOTAL = "total"
    LIVE = "live"
    STORED = "stored"
    SINCE = "since"


@dataclasses.dataclass(frozen=True, slots=True)
class Figure:
    """One number of each worker.

    Attributes:
        name: the attribute of the object that has it.
        kind: how it behaves.
    """

    name: str
    kind: Kind = Kind.TOTAL


_SERVER: Final = tuple(Figure(name, Kind.LIVE if name == "connections" else Kind.TOTAL) for name in FIELDS)


class Board:
    """The figures of all workers, in memory that they share.

    Args:
        workers: how many.
        figures: those beside the server's counters.

    Attributes:
        figures: all of them.
    """

    def __init__(self, workers: int, figures: Sequence[Figure] = ()) -> None:
        self.figures: Final = (*_SERVER, *figures)
        self._workers = workers
        self._record = struct.Struct(f"{len(self.figures)}q")
        self._memory = mmap.mmap(-1, self._record.size * workers)

    def pen(self, worker: int, *counters: object) -> Callable[[], None]:
        """What writes the figures of a worker that begins, from the attributes of these objects."""
        before = self._read(worker)
        sources = []
        for index, figure in enumerate(self.figures):
            base = before[index] if figure.kind is Kind.TOTAL else 0
            owner = next(each for each in counters if hasattr(each, figure.name))
            sources.append((base, owner, figure.name))

        def write() -> None:
            self._write(worker, [base + getattr(owner, name) for base, owner, name in sources])

        return write

    def gone(self, worker: int) -> None:
        """A worker died."""
        values = self._read(worker)
        self._write(worker, [0 if each.kind is Kind.LIVE else values[i] for i, each in enumerate(self.figures)])

    def total(self) -> dict[str, int]:
        """The figures of all workers together."""
        columns = zip(*map(self._read, range(self._workers)), strict=True)
        return {
            figure.name: min(filter(None, column), default=0) if figure.kind is Kind.SINCE else sum(column)
            for figure, column in zip(self.figures, columns, strict=True)
        }

    def _read(self, worker: int) -> tuple[int, ...]:
        return self._record.unpack_from(self._memory, worker * self._record.size)

    def _write(self, worker: int, values: Sequence[int]) -> None:
        self._record.pack_into(self._memory, worker * self._record.size, *values)


class Display:
    """The live line on a terminal, and the summary."""

    def __init__(self, board: Board) -> None:
        self._board = board
        self._started = self._before = time.monotonic()
        self._last: Mapping[str, int] = board.total()
        self._live = sys.stderr.isatty()

    def tick(self) -> None:
        """Draw the line again, if this is a terminal."""
        if not self._live:
            return
        total = self._board.total()
        now = time.monotonic()
        seconds = max(now - self._before, 0.001)
        last, self._last, self._before = self._last, total, now
        sys.stderr.write(f"\r\x1b[K{self.line(total, lambda name: (total[name] - last[name]) / seconds)}")
        sys.stderr.flush()

    def summary(self) -> None:
        """The last line of all."""
        if self._live:
            sys.stderr.write("\r\x1b[K")
        seconds = time.monotonic() - self._started
        print(f"fastsmtp: {self.words(self._board.total())} in {seconds:.1f} s", file=sys.stderr, flush=True)

    def line(self, total: Mapping[str, int], rate: Callable[[str], float]) -> str:
        """What is going on.

        Args:
            total: the figures.
            rate: of a figure, per second.
        """
        return (
            f"{total['messages']} messages, {rate('messages'):.0f}/s, {total['octets'] / 1e6:.1f} MB, "
            f"{total['recipients']} recipients, {total['connections']} connections, {total['rejected']} refused"
        )

    def words(self, total: Mapping[str, int]) -> str:
        """What was done."""
        return (
            f"{total['messages']} messages for {total['recipients']} recipients, {total['octets']} octets, "
            f"{total['connections_total']} connections, {total['rejected']} refused, {total['errors']} errors"
        )
