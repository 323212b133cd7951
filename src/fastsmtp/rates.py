"""How often: a limit on what one address may do within a minute."""

from __future__ import annotations

from typing import Final

__all__ = ["RateLimit"]

_MINUTE: Final = 60.0
_SWEEP: Final = 1024  # keys more than after the last sweep that call for another


class RateLimit:
    """A bucket of tokens for each key, filled again evenly within a minute.

    Keys whose bucket is full again are forgotten, so memory holds those of the last minute only.

    Args:
        per_minute: tokens of a full bucket.
    """

    __slots__ = ("_buckets", "_full", "_sweep_at")

    def __init__(self, per_minute: int) -> None:
        self._full: Final = float(per_minute)
        self._buckets: dict[str, tuple[float, float]] = {}
        self._sweep_at = _SWEEP

    def allows(self, key: str, now: float) -> bool:
        """Take a token of this key; False when there is none.

        Args:
            key: whose bucket.
            now: seconds of a clock that never goes back.
        """
        left, then = self._buckets.get(key, (self._full, now))
        left = min(self._full, left + (now - then) * self._full / _MINUTE)
        allowed = left >= 1.0
        self._buckets[key] = (left - 1.0 if allowed else left, now)
        if len(self._buckets) >= self._sweep_at:
            self._forget(now)
        return allowed

    def _forget(self, now: float) -> None:
        rate = self._full / _MINUTE
        self._buckets = {
            key: bucket for key, bucket in self._buckets.items() if bucket[0] + (now - bucket[1]) * rate < self._full
        }
        self._sweep_at = len(self._buckets) + _SWEEP

    def __len__(self) -> int:
        return len(self._buckets)
