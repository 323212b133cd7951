"""Whose turn it is: the lanes of a queue, one for each destination and priority, with the time when each is next due.

A lane's time is a lower bound: units may have been settled, held or removed meanwhile.  Whoever takes a lane looks into the
storage and offers it again with the time of what it left there.
"""

from __future__ import annotations

from collections.abc import Collection
from heapq import heapify, heappop, heappush
from typing import Any, Final, NamedTuple

__all__ = ["Lane", "Lanes"]

SLACK: Final = 64
"""Entries of the heaps that may be out of date, besides as many as there are lanes."""


class Lane(NamedTuple):
    """Units of one destination and one priority.

    Attributes:
        due: no unit that waits in it is due before.
    """

    destination: str
    priority: int
    due: float


class Lanes:
    """The lanes in which something may wait."""

    def __init__(self) -> None:
        self._due: dict[str, dict[int, float]] = {}
        self._count = 0
        # Each entry ends with its lane.  One that is out of date is dropped when it comes up.
        self._later: list[tuple[float, Lane]] = []
        self._ready: list[tuple[int, float, Lane]] = []  # -priority, due

    def __len__(self) -> int:
        return self._count

    def offer(self, destination: str, priority: int, due: float) -> bool:
        """Something waits there; returns whether that is news."""
        lanes = self._due.get(destination)
        if lanes is None:
            lanes = self._due[destination] = {}
        known = lanes.get(priority)
        if known is None:
            self._count += 1
        elif known <= due:
            return False
        lanes[priority] = due
        heappush(self._later, (due, Lane(destination, priority, due)))
        if len(self._later) + len(self._ready) > 2 * self._count + SLACK:
            self._later = [entry for entry in self._later if self._is_true(entry[-1])]
            self._later.extend((entry[1], entry[2]) for entry in self._ready if self._is_true(entry[-1]))
            self._later = list(dict.fromkeys(self._later))
            heapify(self._later)
            self._ready = []
        return True

    def take(self, now: float, exclude: Collection[str] = ()) -> Lane | None:
        """Take out the lane that is due with the highest priority, among those the one that is due longest."""
        self._mature(now)
        lane = self._first(self._ready, exclude)
        if lane is not None:
            self._drop(lane)
        return lane

    def take_of(self, destination: str, now: float) -> Lane | None:
        """The same for one destination."""
        lanes = self._due.get(destination, {})
        priorities = [priority for priority, due in lanes.items() if due <= now]
        if not priorities:
            return None
        lane = Lane(destination, max(priorities), lanes[max(priorities)])
        self._drop(lane)
        return lane

    def earliest(self, now: float, exclude: Collection[str] = ()) -> float | None:
        """When a lane is due next: not after `now` if one is already."""
        self._mature(now)
        lane = self._first(self._ready, exclude) or self._first(self._later, exclude)
        return None if lane is None else lane.due

    def _first(self, heap: list[Any], exclude: Collection[str]) -> Lane | None:
        """The first lane of a heap that is true and not excluded; what is true stays in the heap."""
        passed = []
        found = None
        while heap and found is None:
            entry = heappop(heap)
            lane: Lane = entry[-1]
            if self._is_true(lane):
                passed.append(entry)
                if lane.destination not in exclude:
                    found = lane
        for entry in passed:
            heappush(heap, entry)
        return found

    def _mature(self, now: float) -> None:
        later = self._later
        while later and later[0][0] <= now:
            due, lane = heappop(later)
            if self._is_true(lane):
                heappush(self._ready, (-lane.priority, due, lane))

    def _is_true(self, lane: Lane) -> bool:
        return self._due.get(lane.destination, {}).get(lane.priority) == lane.due

    def _drop(self, lane: Lane) -> None:
        lanes = self._due[lane.destination]
        del lanes[lane.priority]
        self._count -= 1
        if not lanes:
            del self._due[lane.destination]
