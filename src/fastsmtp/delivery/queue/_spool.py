"""The queue's directory: its lock, and the bodies that are too large for the database.

    lock        locked while a queue has the directory open
    queue.db    the database (and its -wal and -shm)
    bodies/     side files, named as their messages; one that no message names is removed at the start

A side file counts once the database names it.  So it is written in place; its octets and its name are on the disk before
the transaction begins that relies on them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import sys
import threading
from typing import Final

from fastsmtp.errors import ConfigurationError

from .._groupsync import PARTS, WRITE_OUT, Files
from ._lock import LOCK, lock_directory

__all__ = ["CHUNK", "Spool", "SpoolFile", "SpoolReader"]

DATABASE: Final = "queue.db"

CHUNK: Final = 1 << 18
"""Octets of a side file that are read or written at a time."""


class Spool:
    """An open queue directory, locked.  Made if it is not there; its parent directory must be.

    Args:
        path: the directory.
        files: the system calls, for tests.

    Raises:
        QueueInUse: it is locked.
        ConfigurationError: it is something else, or cannot be written.
    """

    def __init__(self, path: str, files: Files | None = None) -> None:
        if sys.platform == "win32":
            raise ConfigurationError("the SQLite queue needs a POSIX file system: it syncs directories")
        self.path: Final = path
        self.database: Final = os.path.join(path, DATABASE)
        self._files = files if files is not None else Files()
        self._fds: list[int] = []
        try:
            _make(path)
            self._fds.append(lock_directory(path))
            bodies = os.path.join(path, "bodies")
            os.makedirs(bodies, 0o700, exist_ok=True)
            self._bodies = os.open(bodies, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            self._fds.append(self._bodies)
        except OSError as error:
            self.close()
            raise ConfigurationError(f"cannot open queue {path}: {error.strerror or error}") from error
        except BaseException:
            self.close()
            raise

    def sync_directories(self) -> None:
        """Wait until the names of what makes the queue are on the disk."""
        for path in (self.path, os.path.dirname(self.path)):
            fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                self._files.sync_directory(fd)
            finally:
                os.close(fd)

    def free_octets(self) -> int:
        """What the file system would still take from this user."""
        status = os.statvfs(self._bodies)
        return status.f_bavail * status.f_frsize

    def create(self, name: str) -> SpoolFile:
        """Begin a body."""
        return SpoolFile(self._files, self._bodies, name)

    def sync(self) -> None:
        """Wait until the names of the bodies are on the disk."""
        self._files.sync_directory(self._bodies)

    def remove(self, name: str) -> None:
        """Remove a body."""
        self._files.unlink(name, dir_fd=self._bodies)

    def names(self) -> list[str]:
        """The bodies, whole or not."""
        return os.listdir(self._bodies)

    def open(self, name: str) -> SpoolReader:
        """A body to be read; FileNotFoundError when it is not there."""
        return SpoolReader(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=self._bodies))

    def close(self) -> None:
        """Close the directory and unlock it."""
        while self._fds:
            os.close(self._fds.pop())


class SpoolFile:
    """A body on its way into the directory.  The methods block; they may be called in any thread, one after the other.

    `abort` may be called while another method runs in another thread: it waits for its end.
    """

    __slots__ = ("_aborted", "_directory", "_fd", "_files", "_lock", "_since_writeout", "name")

    def __init__(self, files: Files, directory: int, name: str) -> None:
        self.name: Final = name
        self._files = files
        self._directory = directory
        self._lock = threading.Lock()
        self._since_writeout = 0
        self._aborted = False
        self._fd = -1

    def write(self, parts: list[bytes]) -> None:
        """Add octets; the first call makes the file."""
        with self._lock:
            if self._aborted:
                return
            if self._fd < 0:
                flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
                self._fd = self._files.open(self.name, flags, 0o600, dir_fd=self._directory)
            if len(parts) > PARTS:
                parts = [b"".join(parts)]
            size = sum(map(len, parts))
            done = self._files.writev(self._fd, parts)
            if done != size:  # a signal, or a disk that is nearly full
                left = memoryview(b"".join(parts))[done:]
                while left:
                    done = self._files.writev(self._fd, [left])
                    if done <= 0:
                        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                    left = left[done:]
            self._since_writeout += size
            if self._since_writeout >= WRITE_OUT:
                self._since_writeout = 0
                self._files.start_writeout(self._fd)

    def finish(self) -> None:
        """Wait until the octets are on the disk, and close."""
        with self._lock:
            if not self._aborted:
                self._files.fsync(self._fd)
                self._close()

    def abort(self) -> None:
        """Close and remove.  What cannot be removed is swept at the next start."""
        with self._lock, contextlib.suppress(OSError):
            if self._aborted:
                return
            self._aborted = True
            self._close()
            self._files.unlink(self.name, dir_fd=self._directory)

    def _close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            self._files.close(fd)


class SpoolReader:
    """A body that is read.  The methods block; `close` waits for the end of a `read` in another thread."""

    __slots__ = ("_fd", "_lock")

    def __init__(self, fd: int) -> None:
        self._fd = fd
        self._lock = threading.Lock()

    def __del__(self) -> None:
        self.close()  # whoever asked for it was cancelled before it was open

    def read(self) -> bytes:
        """The next piece; empty at the end, and after `close`."""
        with self._lock:
            return os.read(self._fd, CHUNK) if self._fd >= 0 else b""

    def close(self) -> None:
        """Close."""
        with self._lock:
            fd, self._fd = self._fd, -1
            if fd >= 0:
                os.close(fd)


def _make(path: str) -> None:
    try:
        present = set(os.listdir(path))
    except FileNotFoundError:
        os.mkdir(path, 0o700)
        return
    except NotADirectoryError as error:
        raise ConfigurationError(f"not a queue: {path} is no directory") from error
    if present and LOCK not in present:
        raise ConfigurationError(f"not a queue: {path} has files, but no lock")
