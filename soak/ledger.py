"""What was promised, what is there, and what of it is wrong."""

from __future__ import annotations

import collections
import itertools
import os
import pathlib
from typing import Final

from .texts import MARK, the_number_in

__all__ = ["Ledger"]

_KEPT: Final = 50  # violations that are told in full


class Ledger:
    """Keeps account of every message by its number.

    Attributes:
        counts: how often what happened.
        violations: what must not be, the first of them.

    Args:
        strangers: others may have messages stored too, which are only counted.
    """

    def __init__(self, *, strangers: bool = False) -> None:
        self._strangers: Final = strangers
        self.counts: Final[collections.Counter[str]] = collections.Counter()
        self.violations: Final[list[str]] = []
        self._numbers: Final = itertools.count(1)
        self._promised: Final[dict[int, str]] = {}  # answered 250, not found yet; where
        self._refused: Final[set[int]] = set()
        self._stored: Final[set[int]] = set()

    def number(self) -> int:
        """The next message's."""
        self.counts["begun"] += 1
        return next(self._numbers)

    def promised(self, number: int, place: str) -> None:
        """It was answered 250."""
        self.counts["answered 250"] += 1
        if number not in self._stored:
            self._promised[number] = place

    def refused(self, number: int) -> None:
        """It was not: it must not be there."""
        self.counts["not answered 250"] += 1
        self._refused.add(number)
        if number in self._stored:
            self.violation(f"message {number} was refused, and is there")

    def unknown(self) -> None:
        """Nobody can tell: its server was killed."""
        self.counts["unknown"] += 1

    def violation(self, text: str) -> None:
        """Something is wrong."""
        self.counts["violations"] += 1
        if len(self.violations) < _KEPT:
            self.violations.append(text)

    def sweep(self, place: str, maildir: pathlib.Path) -> None:
        """Check and remove all messages of a Maildir: every one that was promised before must be there."""
        due = [number for number, where in self._promised.items() if where == place]
        with os.scandir(maildir / "new") as entries:
            paths = [entry.path for entry in entries]
        for path in paths:
            with open(path, "rb") as file:
                text = file.read()
            os.unlink(path)
            if self._strangers and MARK not in text:
                self.counts["strangers"] += 1
                continue
            try:
                number = the_number_in(text)
            except ValueError as error:
                self.violation(f"{place}: {error}")
                continue
            self.counts["stored"] += 1
            self.counts["octets"] += len(text)
            if number in self._stored:
                self.violation(f"{place}: message {number} is there twice")
            if number in self._refused:
                self.violation(f"{place}: message {number} was refused, and is there")
            self._stored.add(number)
        for number in due:
            del self._promised[number]
            if number not in self._stored:
                self.counts["lost"] += 1
                self.violation(f"{place}: message {number} was answered 250, and is not there")

    @property
    def stored_unanswered(self) -> int:
        """Messages that are there although nobody was told so."""
        return self.counts["stored"] - (self.counts["answered 250"] - self.counts["lost"] - len(self._promised))
