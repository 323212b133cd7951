"""Units that are claimed and wait for delivery: which one is next, so that no destination waits behind another."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import Final

from .queue import Claim, Lease, Result

__all__ = ["Backlog", "Unit"]


class Unit:
    """A claimed unit.

    Attributes:
        claim: what is to be delivered.
        lease: its lease as it is now.
        lost: the lease is another's.
        results: what is to be stored when its delivery is done, and the next attempt; None before.
    """

    __slots__ = ("claim", "lease", "lost", "results")

    def __init__(self, claim: Claim) -> None:
        self.claim: Final = claim
        self.lease: Lease = claim.lease
        self.lost = False
        self.results: tuple[Mapping[int, Result], float | None] | None = None


class _Line:
    """What waits for a destination, and how much of it runs."""

    __slots__ = ("destination", "queued", "running", "waiting")

    def __init__(self, destination: str) -> None:
        self.destination: Final = destination
        self.waiting: Final[deque[Unit]] = deque()
        self.running = 0
        self.queued = False  # for its turn


class Backlog:
    """Claimed units, the destinations in turn.

    Args:
        per_destination: units of one destination that run at a time.
        enough: waiting units of one destination that need no more of them.

    Attributes:
        full: destinations that have enough.
    """

    def __init__(self, per_destination: int, enough: int) -> None:
        self._limit: Final = per_destination
        self._enough: Final = enough
        self._lines: Final[dict[str, _Line]] = {}
        self._turns: Final[deque[_Line]] = deque()
        self.full: Final[set[str]] = set()

    def add(self, unit: Unit) -> None:
        """A unit waits."""
        name = unit.claim.destination
        line = self._lines.get(name)
        if line is None:
            line = self._lines[name] = _Line(name)
        line.waiting.append(unit)
        if len(line.waiting) >= self._enough:
            self.full.add(name)
        self._give_turn(line)

    def next(self) -> Unit | None:
        """The unit whose turn it is, which runs from now on; None when none may."""
        if not self._turns:
            return None
        line = self._turns.popleft()
        line.queued = False
        unit = line.waiting.popleft()
        line.running += 1
        if len(line.waiting) < self._enough:
            self.full.discard(line.destination)
        self._give_turn(line)
        return unit

    def finished(self, unit: Unit) -> None:
        """A unit does not run any more."""
        line = self._lines[unit.claim.destination]
        line.running -= 1
        self._give_turn(line)
        if not line.running and not line.waiting:
            del self._lines[line.destination]

    def drain(self) -> list[Unit]:
        """Those that wait; none does any more."""
        units = [unit for line in self._lines.values() for unit in line.waiting]
        for line in list(self._lines.values()):
            line.waiting.clear()
            line.queued = False
            if not line.running:
                del self._lines[line.destination]
        self._turns.clear()
        self.full.clear()
        return units

    def _give_turn(self, line: _Line) -> None:
        if line.waiting and line.running < self._limit and not line.queued:
            line.queued = True
            self._turns.append(line)
