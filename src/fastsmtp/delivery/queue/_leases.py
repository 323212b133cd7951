"""Who delivers what: the leases of an open queue, in memory.

They need no place on the disk: one process has the queue, and when it ends whatever it had leased is free.  All of this runs
in the event loop, but `Leases.taken`: the writer's thread adds what it hands out, so that no unit is handed out twice.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final

from ._store import Claimed, Taken, UnitKey
from .contract import Lease, LeaseLost

__all__ = ["Leased", "Leases"]


class Leased:
    """A unit that somebody delivers.

    Attributes:
        claimed: what was read when it was claimed.
        lease: the lease as it is now.
        expired: its deadline has passed, and nobody else has claimed it yet.
        settling: its results are being stored.
    """

    __slots__ = ("claimed", "expired", "lease", "settling")

    def __init__(self, claimed: Claimed, lease: Lease) -> None:
        self.claimed: Final = claimed
        self.lease = lease
        self.expired = False
        self.settling = False

    @property
    def number(self) -> int:
        """The message's."""
        return self.claimed.key[0]


class Leases:
    """The leases of an open queue.

    Attributes:
        taken: units that are not to be claimed.
    """

    def __init__(self) -> None:
        self.taken: Final[Taken] = set()
        self._by_id: dict[str, Leased] = {}
        self._by_message: dict[int, dict[int, Leased]] = {}
        self._deadlines: list[tuple[float, str]] = []
        self._names = itertools.count(1)

    def grant(self, claimed: Claimed, deadline: float) -> Lease | None:
        """Lease what was claimed; None when an older lease of it is being settled, which is as good as done."""
        number, unit = claimed.key
        units = self._by_message.setdefault(number, {})
        older = units.get(unit)
        if older is not None:
            if older.settling:
                return None
            del self._by_id[older.lease.id]
        leased = Leased(claimed, Lease(f"{next(self._names):x}", deadline))
        units[unit] = self._by_id[leased.lease.id] = leased
        self._watch(leased)
        return leased.lease

    def find(self, lease: Lease) -> Leased:
        """The lease's unit.

        Raises:
            LeaseLost: it is not its any more.
        """
        leased = self._by_id.get(lease.id)
        if leased is None or leased.settling:
            raise LeaseLost("the lease was settled or is another's, or its message was removed")
        return leased

    def renew(self, leased: Leased, deadline: float) -> Lease:
        """Move the deadline."""
        leased.lease = Lease(leased.lease.id, deadline)
        leased.expired = False
        self.taken.add(leased.claimed.key)
        self._watch(leased)
        return leased.lease

    def resume(self, leased: Leased) -> None:
        """It could not be settled: it goes on."""
        leased.settling = False
        if self._by_id.get(leased.lease.id) is leased:
            leased.expired = False
            self.taken.add(leased.claimed.key)
            self._watch(leased)

    def end(self, leased: Leased) -> None:
        """It was settled."""
        if self._by_id.pop(leased.lease.id, None) is not None:
            number, unit = leased.claimed.key
            units = self._by_message[number]
            del units[unit]
            if not units:
                del self._by_message[number]
            self.taken.discard(leased.claimed.key)

    def forget(self, number: int) -> list[Leased]:
        """The message is being removed: its leases are lost.  Returns them."""
        lost = [*self._by_message.get(number, {}).values()]
        for leased in lost:
            self.end(leased)
        return lost

    def expire(self, now: float) -> Iterator[Leased]:
        """Those whose deadline has passed, each once; they may be claimed again."""
        while self._deadlines and self._deadlines[0][0] <= now:
            deadline, name = heappop(self._deadlines)
            leased = self._by_id.get(name)
            if leased is not None and leased.lease.deadline == deadline and not (leased.settling or leased.expired):
                leased.expired = True
                self.taken.discard(leased.claimed.key)
                yield leased

    def next_deadline(self) -> float | None:
        """When to call `expire` again, at the latest."""
        return self._deadlines[0][0] if self._deadlines else None

    def running(self) -> list[UnitKey]:
        """The units that are being delivered."""
        return [leased.claimed.key for leased in self._by_id.values() if not leased.expired]

    def _watch(self, leased: Leased) -> None:
        heappush(self._deadlines, (leased.lease.deadline, leased.lease.id))
        if len(self._deadlines) > 2 * len(self._by_id) + 64:
            self._deadlines = sorted({(each.lease.deadline, each.lease.id) for each in self._by_id.values()})
