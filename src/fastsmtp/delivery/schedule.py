"""When a message is tried again, when its sender hears of the delay, and when it is given up (RFC 5321 4.5.4.1)."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from fastsmtp.errors import ConfigurationError

__all__ = ["Schedule"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """Times in seconds.  An impossible value raises ConfigurationError.

    RFC 5321 4.5.4.1 asks for half an hour between attempts as a rule, less at first, and for four to five days in all.

    Attributes:
        first: after the first attempt.
        factor: by which each pause is longer than the one before.
        longest: the longest pause.
        jitter: the part of a pause by which it is longer or shorter at random, so that what failed together does not come back
            together; less than 1.
        lifetime: from the arrival of a message until it is given up.
        delay_notice: from the arrival until the sender is told, once, that the message is late; None for never.
    """

    first: float = 60.0
    factor: float = 2.0
    longest: float = 3600.0
    jitter: float = 0.2
    lifetime: float = 5 * 86400.0
    delay_notice: float | None = 4 * 3600.0

    def __post_init__(self) -> None:
        if not 0 < self.first <= self.longest or self.factor < 1 or not 0 <= self.jitter < 1:
            raise ConfigurationError("a schedule needs pauses that are positive and do not become shorter")
        if self.lifetime <= 0 or (self.delay_notice is not None and self.delay_notice < 0):
            raise ConfigurationError("a time of the schedule is negative")

    def pause(self, attempts: int, chance: Callable[[], float] = random.random) -> float:
        """The pause after so many attempts, 1 at least.

        Args:
            chance: a number from 0 to 1.
        """
        doublings = min(max(attempts, 1) - 1, 64)
        pause = min(self.longest, self.first * min(self.factor**doublings, self.longest / self.first))
        return pause * (1 + self.jitter * (2 * chance() - 1))

    def expires(self, received: float) -> float:
        """When a message that came then is given up: `Envelope.expires` for whoever puts one."""
        return received + self.lifetime
