"""The lock of a directory: held by one process, and gone with it."""

from __future__ import annotations

import contextlib
import os
import sys

from .contract import QueueInUse

__all__ = ["LOCK", "lock_directory"]

LOCK = "lock"
"""The name of the file that is locked; it has the process's number in it."""

if sys.platform != "win32":
    import fcntl

    def lock_directory(path: str) -> int:
        """Lock a directory that is there, until the file descriptor that is returned is closed.

        Raises:
            QueueInUse: it is locked.
            OSError: the file cannot be made.
        """
        fd = os.open(os.path.join(path, LOCK), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with contextlib.suppress(OSError):  # only a hint; a queue on a full disk must open to be emptied
                os.ftruncate(fd, 0)
                os.write(fd, b"%d\n" % os.getpid())
        except BlockingIOError:
            owner = os.pread(fd, 20, 0).decode("ascii", "replace").strip() or "unknown"
            os.close(fd)
            raise QueueInUse(f"queue {path} is open already, in process {owner}") from None
        except BaseException:
            os.close(fd)
            raise
        return fd
