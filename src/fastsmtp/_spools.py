"""The directory of a relay's queue: a database for each of its workers.

    lock            locked by the process that was started, as long as that lives
    0, 1, ...       the queue of each worker, and those of workers that there are no more (see `SQLiteQueue`)
    0/control       the socket at which the process answers that has queue 0 open (see `QueueControl`)

A message is called by the number of its queue and its identifier there, as "0-0650a3b1c2d4e", which no other has.
"""

from __future__ import annotations

import os
from typing import Final

from .delivery.queue import LOCK, lock_directory
from .errors import ConfigurationError

__all__ = ["Spools", "join_id", "split_id"]

_CONTROL: Final = "control"
_OTHERS: Final = frozenset({LOCK, "lost+found"})  # the latter where a file system begins


class Spools:
    """The queues in a directory.

    Args:
        path: the directory.
    """

    def __init__(self, path: str) -> None:
        self.path: Final = os.path.abspath(path)
        self._lock = -1

    def lock(self) -> None:
        """Make the directory if it is not there, but not its parent, and lock it.

        Raises:
            QueueInUse: another relay has it.
            ConfigurationError: it is something else, or cannot be written.
        """
        try:
            if not os.path.isdir(self.path):
                os.mkdir(self.path, 0o700)
                _sync(os.path.dirname(self.path))  # mail in a directory without a name would be lost
            self._check()
            self._lock = lock_directory(self.path)
        except OSError as error:
            raise ConfigurationError(f"cannot open queue {self.path}: {error.strerror or error}") from error

    def let_go(self) -> None:
        """Close the lock's file; the directory is locked as long as another process has it."""
        fd, self._lock = self._lock, -1
        if fd >= 0:
            os.close(fd)

    def numbers(self) -> list[int]:
        """The queues that are there.

        Raises:
            ConfigurationError: the directory cannot be read, or is no relay's.
        """
        try:
            self._check()
            return sorted(int(name) for name in os.listdir(self.path) if _is_number(name))
        except OSError as error:
            raise ConfigurationError(f"cannot open queue {self.path}: {error.strerror or error}") from error

    def queue(self, number: int) -> str:
        """The directory of a queue."""
        return os.path.join(self.path, str(number))

    def control(self, number: int) -> str:
        """The path of its socket."""
        return os.path.join(self.path, str(number), _CONTROL)

    def _check(self) -> None:
        names = os.listdir(self.path)
        strange = [name for name in names if name not in _OTHERS and not _is_number(name)]
        if "queue.db" in strange:
            raise ConfigurationError(
                f"{self.path} is one queue, not a relay's directory of them: move it to {self.path}/0"
            )
        if strange:
            raise ConfigurationError(f"not a queue: {self.path} has other files, such as {strange[0]!r}")


def _sync(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit() and str(int(name)) == name and len(name) < 6


def join_id(number: int, id: str) -> str:
    """A message's name among all queues."""
    return f"{number}-{id}"


def split_id(name: str) -> tuple[int, str] | None:
    """Its queue and its identifier there; None if that is no name."""
    number, dash, id = name.partition("-")
    return (int(number), id) if dash and id and _is_number(number) else None
