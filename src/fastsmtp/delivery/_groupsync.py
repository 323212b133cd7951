"""Group commit: files that wait together are made durable together.

One thread, the *committer*, takes everything that waits from the event loop: it writes all of it into `tmp/`, makes it
durable with as few waits for the disk as possible, renames it into `new/`, syncs that directory once, and tells the
event loop once.  While it does so, the next group gathers: no timer and no artificial delay, a lonely message is
committed at once, and the busier it is the larger the groups become.  (A second thread that writes one group while the
first syncs another was measured: smaller groups, a third more CPU for each message, and no more messages per second
once the event loop has work of its own.)

The order of the calls is the promise: write, sync, rename, sync of the directory, answer.  Where one syncfs(2) does the
syncing and the next group waits already, that group's syncfs is the sync of the directory too: one journal commit for
each group instead of two.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import os
import platform
import sys
import threading
import time
from collections.abc import Callable, Sequence
from queue import Empty, SimpleQueue
from typing import Final, Literal, TypeAlias

__all__ = ["CHUNK", "GROUP", "Files", "GroupCommitter", "IncomingFile", "SyncMethod", "syncfs_is_trustworthy"]

SyncMethod: TypeAlias = Literal["auto", "fsync", "syncfs"]

GROUP: Final = 128
"""Files that make a group full: bounds the open descriptors (to twice that) and the wait of the first for the last."""

CHUNK: Final = 65536
"""Octets of a streamed file that are gathered for one write."""

WRITE_OUT: Final = 1 << 20
"""Octets of a streamed file after which the kernel is told to start writing, so that the sync at its end is short."""

PARTS: Final = 512
"""Buffers of one writev(2); Linux and the BSDs take 1024 (IOV_MAX)."""

SYNCFS_GROUP: Final = 2
"""Files from which one syncfs(2) is quicker than an fsync(2) of each.  Measured on ext4: the same for 1, 1.4 times as
quick for 20 with write-out started first (bench/maildir_commit.py)."""

SYNCFS_SLOW: Final = 0.25
"""Seconds: a syncfs(2) that took longer wrote other programs' data too ..."""

SYNCFS_PAUSE: Final = 10.0
"""... and so for this many seconds each file is synced by itself."""

SYNCFS_FILESYSTEMS: Final = frozenset({"ext4", "xfs"})
"""File systems whose syncfs(2) waits for data, journal and disk cache.  FUSE and overlays may pass on less."""


def _load_syncfs() -> Callable[[int], int] | None:
    if not sys.platform.startswith("linux"):
        return None
    try:
        function = ctypes.CDLL(None, use_errno=True).syncfs
    except (OSError, AttributeError):
        return None
    function.argtypes = (ctypes.c_int,)
    function.restype = ctypes.c_int
    return function


_syncfs: Final = _load_syncfs()


class Files:
    """The system calls a Maildir makes, in one place, so that a test can count them and let each of them fail."""

    open = staticmethod(os.open)
    close = staticmethod(os.close)
    rename = staticmethod(os.rename)
    unlink = staticmethod(os.unlink)

    if sys.platform == "win32":  # no Maildir there: its file names have colons

        def writev(self, fd: int, parts: Sequence[bytes]) -> int:
            """Write the parts one after the other."""
            return os.write(fd, b"".join(parts))
    else:
        writev = staticmethod(os.writev)

    def fsync(self, fd: int) -> None:
        """Wait until the file's data is on the disk.  fdatasync(2) saves nothing here: the inode is new."""
        if sys.platform == "darwin":
            import fcntl

            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)  # its fsync(2) stops at the drive's cache
        else:
            os.fsync(fd)

    def sync_directory(self, fd: int) -> None:
        """Wait until the directory's entries are on the disk."""
        self.fsync(fd)

    def start_writeout(self, fd: int) -> None:
        """Let the kernel start writing the file without waiting; a hint, so it never fails."""
        if sys.platform.startswith("linux"):
            with contextlib.suppress(OSError):
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)

    def has_syncfs(self) -> bool:
        """Whether `syncfs` can be called."""
        return _syncfs is not None

    def syncfs(self, fd: int) -> None:
        """Wait until the whole file system that holds `fd` is on the disk (Linux)."""
        if _syncfs is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        if _syncfs(fd) != 0:
            code = ctypes.get_errno()
            raise OSError(code, os.strerror(code))


def syncfs_is_trustworthy(path: str) -> bool:
    """Whether syncfs(2) on this path both waits for the disk and reports a failed write.

    Linux reports errors of write-back there since 5.8 only; before, a lost write would look like success.
    """
    if not sys.platform.startswith("linux"):
        return False
    release = platform.release().split(".")
    try:
        version = (int(release[0]), int(release[1].split("-")[0]))
        device = os.stat(path).st_dev
        with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as mounts:
            lines = mounts.readlines()
    except (OSError, ValueError, IndexError):
        return False
    if version < (5, 8):
        return False
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in lines:  # "36 35 98:0 /root /mount options - type source options", proc(5)
        mount, _, kind = line.partition(" - ")
        if mount.split(" ")[2] == wanted:
            return kind.split(" ")[0] in SYNCFS_FILESYSTEMS
    return False


class IncomingFile:
    """One file on its way: written into the first directory, made durable, renamed into the second."""

    __slots__ = ("aborted", "created", "error", "fd", "future", "name", "renamed", "since_writeout")

    def __init__(self, name: str) -> None:
        self.name = name
        self.fd = -1
        self.created = False
        self.error: BaseException | None = None
        self.future: asyncio.Future[None] | None = None
        self.renamed = False
        self.aborted = False
        self.since_writeout = 0


_Task: TypeAlias = tuple[Callable[..., None], tuple[object, ...]]


class GroupCommitter:
    """Makes files durable in groups.

    Used from one event loop; its thread starts with the first file and ends with `stop`.

    Args:
        tmp: descriptor of the directory that files are written in.
        new: descriptor of the directory that whole files are renamed into, on the same file system.
        method: how a group is synced; "auto" takes syncfs(2) for larger groups when `syncfs` allows it.
        syncfs: whether syncfs(2) can be relied on here (`syncfs_is_trustworthy`).
        on_failure: called in the committer's thread with what failed, once per failed call.
    """

    def __init__(
        self,
        tmp: int,
        new: int,
        *,
        method: SyncMethod = "auto",
        syncfs: bool = False,
        files: Files | None = None,
        on_failure: Callable[[str, BaseException], None] | None = None,
    ) -> None:
        self._tmp = tmp
        self._new = new
        self._files = files if files is not None else Files()
        self._syncfs_from = {"auto": SYNCFS_GROUP, "fsync": sys.maxsize, "syncfs": 1}[method]
        if not syncfs or not self._files.has_syncfs():
            self._syncfs_from = sys.maxsize
        self._syncfs_not_before = 0.0
        self._on_failure = on_failure
        self._queue: SimpleQueue[_Task | None] = SimpleQueue()
        self._outbox: list[tuple[IncomingFile, list[bytes]]] = []  # of this turn of the event loop
        self._group: list[IncomingFile] = []  # written, to be committed next
        self._renamed: list[IncomingFile] = []  # their data is durable, their names are not yet
        self._streams: set[IncomingFile] = set()  # begun, not whole yet
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._closed = False
        self.groups = 0
        self.committed = 0

    # Called from the event loop.

    def submit(self, name: str, parts: list[bytes]) -> asyncio.Future[None]:
        """Hand over a whole file; the future is done when it is durable, and has the error when it cannot be."""
        file = IncomingFile(name)
        loop = self._running_loop()
        file.future = future = loop.create_future()
        if not self._outbox:
            loop.call_soon(self._flush)
        self._outbox.append((file, parts))
        return future

    def open(self, name: str) -> IncomingFile:
        """Begin a file that comes in pieces."""
        self._running_loop()
        return IncomingFile(name)

    def append(self, file: IncomingFile, parts: list[bytes], size: int, written: Callable[[int], None]) -> None:
        """Write pieces of a file; `written(size)` is called in the event loop afterwards, whatever came of it."""
        if self._closed:
            file.error = RuntimeError("closed")
            written(size)
            return
        self._queue.put((self._write_piece, (file, parts, size, written)))

    def finish(self, file: IncomingFile) -> asyncio.Future[None]:
        """The file is whole: like `submit`."""
        file.future = future = self._running_loop().create_future()
        self._queue.put((self._write_end, (file,)))
        return future

    def abort(self, file: IncomingFile) -> None:
        """The file will never be whole: remove what is there."""
        file.aborted = True
        self._queue.put((self._write_abort, (file,)))

    def stop(self) -> None:
        """Take nothing more; what was handed over is still committed."""
        if not self._closed:
            self._flush()
            self._closed = True
            self._queue.put(None)

    def join(self) -> None:
        """After `stop`: wait until everything is committed.  Blocks, so that it may be called in another thread."""
        if self._thread is not None:
            self._thread.join()

    def _flush(self) -> None:
        """Hand over what one turn of the event loop brought: one group, and one wake-up of the thread.

        So it does not compete with the loop for the interpreter while that has more to read: 15 % more messages per
        second than handing over each one, measured with 20 sessions.
        """
        if self._outbox:
            outbox, self._outbox = self._outbox, []
            for at in range(0, len(outbox), GROUP):
                self._queue.put((self._write_all, (outbox[at : at + GROUP],)))

    def _running_loop(self) -> asyncio.AbstractEventLoop:
        if self._closed:
            raise RuntimeError("closed")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
            self._thread = threading.Thread(target=self._run, name="fastsmtp-committer", daemon=True)
            self._thread.start()
        return self._loop

    # The committer's thread.  Whatever goes wrong there is one message's or one group's fault, and must not end it:
    # the sessions behind it would wait for ever.

    def _run(self) -> None:
        get, get_nowait = self._queue.get, self._queue.get_nowait
        running = True
        while running:
            task = get()
            taken = 0
            while task is not None:
                task[0](*task[1])
                taken += 1
                if (
                    taken >= GROUP or len(self._group) >= GROUP
                ):  # pieces that stream in may not keep whole messages waiting
                    break
                try:
                    task = get_nowait()
                except Empty:
                    break
            running = task is not None
            if self._group or self._renamed:
                group, self._group = self._group, []
                self._commit(group)
        for file in self._streams:  # closed in the middle of a message
            self._discard(file)

    def _create(self, file: IncomingFile) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        file.fd = self._files.open(file.name, flags, 0o600, dir_fd=self._tmp)
        file.created = True

    def _write(self, fd: int, parts: list[bytes], size: int) -> None:
        done = self._files.writev(fd, parts)
        if done == size:
            return
        left = memoryview(b"".join(parts))[done:]  # a short write: a signal, or a disk that is nearly full
        while left:
            done = self._files.writev(fd, [left])
            if done <= 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            left = left[done:]

    def _write_all(self, outbox: list[tuple[IncomingFile, list[bytes]]]) -> None:
        for file, parts in outbox:
            try:
                self._create(file)
                self._write(file.fd, parts, sum(map(len, parts)))
            except Exception as error:  # noqa: BLE001
                self._fail(file, "write", error)
            self._group.append(file)

    def _write_piece(self, file: IncomingFile, parts: list[bytes], size: int, written: Callable[[int], None]) -> None:
        if file.error is None and not file.aborted:
            try:
                if file.fd < 0:
                    self._create(file)
                    self._streams.add(file)
                self._write(file.fd, parts, size)
                file.since_writeout += size
                if file.since_writeout >= WRITE_OUT:
                    file.since_writeout = 0
                    self._files.start_writeout(file.fd)
            except Exception as error:  # noqa: BLE001
                self._streams.discard(file)
                self._fail(file, "write", error)
        self._tell(written, size)

    def _write_end(self, file: IncomingFile) -> None:
        self._streams.discard(file)
        if file.fd < 0 and file.error is None:
            file.error = RuntimeError("an empty file")
        self._group.append(file)

    def _write_abort(self, file: IncomingFile) -> None:
        self._streams.discard(file)
        self._discard(file)

    def _commit(self, group: list[IncomingFile]) -> None:
        """Make the files of `group` durable and visible, and answer for those that are."""
        ready = [file for file in group if file.error is None]
        refused = [file for file in group if file.error is not None]
        self.groups += bool(ready)
        step = "sync"
        try:
            self._sync(ready)
            step = "rename"
            tmp, new = self._tmp, self._new
            for file in ready:
                self._files.rename(file.name, file.name, src_dir_fd=tmp, dst_dir_fd=new)
                file.renamed = True
                self._close(file)
                self._renamed.append(file)
            if self._renamed and not (self._may_syncfs(2) and not self._queue.empty()):
                step = "directory sync"
                self._sync_directory()
        except Exception as error:  # noqa: BLE001
            # Never tried again: after a failed fsync the kernel may hold the lost pages for clean, and the
            # next fsync says success.  The whole group is refused; its senders keep the messages.
            self._report(step, error)
            for file in [*ready, *self._renamed]:
                if file.error is None:
                    file.error = error
                    refused.append(file)
            self._renamed = []
        for file in refused:
            self._discard(file)
        if refused:
            self._tell(_complete, refused)

    def _sync(self, ready: list[IncomingFile]) -> None:
        """Make the data of `ready` durable, and the names of the group before it if those are not yet."""
        files = self._files
        if ready and self._may_syncfs(len(ready) + len(self._renamed)):
            began = time.monotonic()
            try:
                files.syncfs(self._new)
            except OSError:
                # It reports a lost write once, and the file that was hit may be one that is still streaming in.  From
                # here on each file is asked by itself: its descriptor remembers since it was opened.
                self._syncfs_from = sys.maxsize
                raise
            if (ended := time.monotonic()) - began > SYNCFS_SLOW:
                self._syncfs_not_before = ended + SYNCFS_PAUSE
            self._accept()
            return
        if self._renamed:
            self._sync_directory()
        if len(ready) > 1:
            for file in ready:
                files.start_writeout(file.fd)
        for file in ready:
            files.fsync(file.fd)

    def _may_syncfs(self, count: int) -> bool:
        return count >= self._syncfs_from and time.monotonic() >= self._syncfs_not_before

    def _sync_directory(self) -> None:
        self._files.sync_directory(self._new)
        self._accept()

    def _accept(self) -> None:
        """The names of `_renamed` are durable now."""
        if self._renamed:
            accepted, self._renamed = self._renamed, []
            self.committed += len(accepted)
            self._tell(_complete, accepted)

    def _close(self, file: IncomingFile) -> None:
        fd, file.fd = file.fd, -1
        if fd >= 0:
            with contextlib.suppress(OSError):  # synced before: what close(2) may say no longer matters
                self._files.close(fd)

    def _discard(self, file: IncomingFile) -> None:
        self._close(file)
        if file.created:
            file.created = False
            try:
                self._files.unlink(file.name, dir_fd=self._new if file.renamed else self._tmp)
            except Exception as error:  # noqa: BLE001
                self._report("remove", error)

    def _fail(self, file: IncomingFile, step: str, error: BaseException) -> None:
        file.error = error
        self._discard(file)
        self._report(step, error)

    def _report(self, step: str, error: BaseException) -> None:
        if self._on_failure is not None:
            self._on_failure(step, error)

    def _tell(self, function: Callable[..., None], *arguments: object) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # the loop was closed under us: nobody waits any more
            self._loop.call_soon_threadsafe(function, *arguments)


def _complete(group: list[IncomingFile]) -> None:
    """Runs in the event loop, once for a whole group."""
    for file in group:
        future = file.future
        if future is None or future.done():
            continue
        if file.error is None:
            future.set_result(None)
        else:
            future.set_exception(file.error)
