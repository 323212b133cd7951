"""Delivery into a Maildir: one file for each message, durable before the 250.

A Maildir is a directory with the directories `tmp`, `new` and `cur`.  A message is written into `tmp` under a unique
name, made durable and then renamed into `new`, where a reader finds it whole or not at all.  Several processes on any
number of machines may deliver into one Maildir without locks.

How messages that wait together share their syncs is told in `fastsmtp.delivery._groupsync`.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import itertools
import logging
import os
import secrets
import socket
import stat
import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Final, Literal, Self

from fastsmtp.errors import ConfigurationError
from fastsmtp.reply import EnhancedCode, Reply, SMTPError
from fastsmtp.session import DataContext, DataReader, DefaultBackend, DefaultSession

from ._groupsync import CHUNK, PARTS, Files, GroupCommitter, SyncMethod, syncfs_is_trustworthy
from .trace import ReceivedWriter, date_time, return_path_header

if TYPE_CHECKING:
    from collections.abc import Callable

__all__ = ["LineEnd", "Maildir", "MaildirBackend", "MaildirSession", "MessageWriter"]

LineEnd = Literal["crlf", "lf"]

WINDOW: Final = 8 * CHUNK
"""Octets of one streamed message that may wait for the disk before its reader, and so its socket, has to."""

STALE: Final = 36 * 3600
"""Seconds after which a file in `tmp` is a left-over and is removed: the Maildir specification's figure."""

_DIRECTORIES: Final = ("cur", "new", "tmp")  # tmp last: once it is there, so are the others
_FULL: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_STORAGE_FULL: Final = SMTPError(452, EnhancedCode(4, 3, 1), "Insufficient system storage").reply
_FAILED: Final = SMTPError(451, EnhancedCode(4, 3, 0), "Message could not be stored, try again later").reply


def _refusal(error: BaseException) -> SMTPError:
    full = isinstance(error, OSError) and error.errno in _FULL
    return SMTPError.from_reply(_STORAGE_FULL if full else _FAILED)


class Maildir:
    """An open Maildir.  Made if it is not there; its parent directory must be.

    Used from one event loop.  `close` (or ``async with``) finishes what was begun.

    Args:
        path: the Maildir.
        hostname: the name of this machine in file names; None asks the system.
        line_end: "crlf" keeps messages as they were sent, "lf" stores Unix line ends, which some readers want.
        size_in_name: add ",S=octets" to names, which Dovecot and Courier read instead of asking for the size.
        sync: how groups are made durable.  "fsync" syncs each file; "syncfs" the whole file system in one call, which
            is quicker the more files wait, and slower when other programs write much to it; "auto" decides by the size
            of the group and by how long the last one took.  Where syncfs(2) may hide errors (file systems other than
            ext4 and xfs, Linux before 5.8), each file is synced in any case.
        logger: what logs failures; "fastsmtp.maildir" by default.
        files: the system calls, for tests.

    Raises:
        ConfigurationError: the path is something else than a Maildir, or cannot be written; the text says what to do.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        hostname: str | None = None,
        line_end: LineEnd = "crlf",
        size_in_name: bool = False,
        sync: SyncMethod = "auto",
        logger: logging.Logger | None = None,
        files: Files | None = None,
    ) -> None:
        if line_end not in ("crlf", "lf"):
            raise ConfigurationError(f"line_end is neither 'crlf' nor 'lf': {line_end!r}")
        if sync not in ("auto", "fsync", "syncfs"):
            raise ConfigurationError(f"sync is none of 'auto', 'fsync', 'syncfs': {sync!r}")
        if sys.platform == "win32":
            raise ConfigurationError("a Maildir needs a POSIX file system: its names have colons")
        self.path: Final = os.path.abspath(path)
        self.line_end: Final = line_end
        self._size_in_name = size_in_name
        self._logger = logger if logger is not None else logging.getLogger("fastsmtp.maildir")
        self._files = files if files is not None else Files()
        _prepare(self.path)
        self._fds = [os.open(os.path.join(self.path, name), os.O_RDONLY | os.O_DIRECTORY) for name in ("tmp", "new")]
        if os.fstat(self._fds[0]).st_dev != os.fstat(self._fds[1]).st_dev:
            self._close_directories()
            raise ConfigurationError(f"tmp and new are on different file systems in Maildir {self.path}")
        self.sweep()
        self._committer = GroupCommitter(
            *self._fds,
            method=sync,
            syncfs=sync != "fsync" and syncfs_is_trustworthy(self.path),
            files=self._files,
            on_failure=self._log,
        )
        # The specification's unique name: seconds, microseconds, process, delivery, host.  The random part keeps
        # apart processes of one number in containers that share a name.
        host = hostname or socket.gethostname() or "localhost"
        host = host.replace("/", "\\057").replace(":", "\\072").replace(",", "\\054")
        self._host = "".join(char if char.isprintable() and char != " " else "_" for char in host)
        self._pid = -1
        self._identity = ""
        self._counter = itertools.count(1)
        self._date = (0, "")

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.path!r}>"

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()

    @property
    def messages(self) -> int:
        """Messages made durable so far."""
        return self._committer.committed

    @property
    def groups(self) -> int:
        """Groups that they were made durable in."""
        return self._committer.groups

    def unique_name(self) -> str:
        """A name that no other delivery uses, on this or another machine."""
        if self._pid != os.getpid():  # the first name, or the first after a fork
            self._pid = os.getpid()
            self._identity = f"P{self._pid}R{secrets.token_hex(4)}"
        now = time.time_ns() // 1000
        return f"{now // 1_000_000}.M{now % 1_000_000:06d}{self._identity}Q{next(self._counter)}.{self._host}"

    def date(self) -> str:
        """The date-time for a Received field, made once a second."""
        now = int(time.time())
        if self._date[0] != now:
            self._date = (now, date_time(now))
        return self._date[1]

    async def deliver(self, parts: list[bytes], name: str | None = None) -> str:
        """Store one whole message; returns its identifier when it will survive a loss of power.

        Args:
            parts: the message in pieces, its trace header first.
            name: a `unique_name` that was put into the header already.

        Raises:
            SMTPError: 452 4.3.1 when the disk or a quota is full, 451 4.3.0 for any other failure; nothing is left.
        """
        if len(parts) > PARTS:
            parts = [b"".join(parts)]
        if name is None:
            name = self.unique_name()
        file = f"{name},S={sum(map(len, parts))}" if self._size_in_name else name
        try:
            await self._committer.submit(file, parts)
        except (OSError, RuntimeError) as error:
            raise _refusal(error) from error
        return name

    def open(self, name: str | None = None) -> MessageWriter:
        """Begin a message that is stored while it comes.  Close it with `MessageWriter.commit` or `abort`."""
        return MessageWriter(self._committer, name if name is not None else self.unique_name())

    def sweep(self) -> int:
        """Remove files from `tmp` that nobody has touched for 36 hours; returns their number."""
        removed = 0
        limit = time.time() - STALE
        with os.scandir(os.path.join(self.path, "tmp")) as entries:
            for entry in entries:
                try:
                    status = entry.stat(follow_symlinks=False)
                    if stat.S_ISREG(status.st_mode) and max(status.st_mtime, status.st_atime, status.st_ctime) < limit:
                        os.unlink(entry.path)
                        removed += 1
                except OSError as error:  # another process sweeps as well, or it is not ours
                    self._logger.debug("Maildir %s: %s not removed: %s", self.path, entry.name, error)
        return removed

    def close(self) -> None:
        """Finish what was begun and end the thread; blocks until the disk has it all.  May be called twice."""
        self._committer.stop()
        self._committer.join()
        self._close_directories()

    async def aclose(self) -> None:
        """`close` without blocking the event loop."""
        self._committer.stop()
        await asyncio.to_thread(self._committer.join)
        self._close_directories()

    def _close_directories(self) -> None:
        while self._fds:
            os.close(self._fds.pop())

    def _log(self, step: str, error: BaseException) -> None:
        self._logger.error("Maildir %s: %s failed: %s", self.path, step, error)


def _prepare(path: str) -> None:
    """Make or check the directories, and try to write."""
    try:
        try:
            present = set(os.listdir(path))
        except FileNotFoundError:
            with contextlib.suppress(FileExistsError):  # another process starts as well
                os.mkdir(path, 0o700)
            _sync_path(os.path.dirname(path))
            present = set()
        if present and not present.intersection(_DIRECTORIES):
            raise ConfigurationError(f"not a Maildir: {path} has files, but no cur, new and tmp")
        missing = [name for name in _DIRECTORIES if name not in present]
        for name in missing:
            try:
                os.mkdir(os.path.join(path, name), 0o700)
            except FileExistsError:  # another process starts as well
                continue
        if missing:
            _sync_path(path)
        for name in ("new", "tmp"):
            directory = os.path.join(path, name)
            if not os.path.isdir(directory):
                raise ConfigurationError(f"not a Maildir: {directory} is no directory")
            if not os.access(directory, os.W_OK | os.X_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        probe = os.path.join(path, "tmp", f"{time.time_ns()}.{secrets.token_hex(4)}.probe")
        os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.unlink(probe)
    except NotADirectoryError as error:
        raise ConfigurationError(f"not a Maildir: {path} is no directory") from error
    except OSError as error:
        raise ConfigurationError(f"cannot write to Maildir {path}: {error.strerror or error}") from error


def _sync_path(directory: str) -> None:
    fd = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


class MessageWriter:
    """One message on its way into a Maildir, in constant memory.  `Maildir.open` makes it."""

    __slots__ = ("_committer", "_ended", "_file", "_in_flight", "_parts", "_waiter", "_waiting", "name")

    def __init__(self, committer: GroupCommitter, name: str) -> None:
        self.name: Final = name
        self._committer = committer
        self._file = committer.open(name)
        self._parts: list[bytes] = []
        self._waiting = 0  # octets in _parts
        self._in_flight = 0  # octets with the committer's thread
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False

    async def write(self, data: bytes) -> None:
        """Add octets; waits while more than `WINDOW` of them wait for the disk.

        Raises:
            SMTPError: the message cannot be stored; what was written is removed.
        """
        if data:
            self._parts.append(data)
            self._waiting += len(data)
        if self._waiting >= CHUNK or len(self._parts) >= PARTS:
            self._hand_over()
            while self._in_flight > WINDOW:
                self._waiter = asyncio.get_running_loop().create_future()
                await self._waiter
        if self._file.error is not None:
            raise _refusal(self._file.error) from self._file.error

    async def commit(self) -> str:
        """The message is whole: returns its identifier when it will survive a loss of power.

        Raises:
            SMTPError: as `Maildir.deliver`.
        """
        self._hand_over()
        self._ended = True
        try:
            await self._committer.finish(self._file)
        except (OSError, RuntimeError) as error:
            raise _refusal(error) from error
        return self.name

    def abort(self) -> None:
        """The message will not be whole: remove what is there.  Does nothing after `commit`."""
        if not self._ended:
            self._ended = True
            self._parts.clear()
            self._committer.abort(self._file)

    def _hand_over(self) -> None:
        if self._parts:
            parts, self._parts = self._parts, []
            size, self._waiting = self._waiting, 0
            self._in_flight += size
            self._committer.append(self._file, parts, size, self._written)

    def _written(self, size: int) -> None:
        self._in_flight -= size
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)


class MaildirSession(DefaultSession):
    """Stores every message in a Maildir, one file however many recipients it has.

    In front of the message stand Return-Path and Received (RFC 5321 4.4); the rest is as it was sent.

    Args:
        maildir: where to.
        domain: the server's name in Received.
    """

    def __init__(self, maildir: Maildir, *, domain: str = "localhost") -> None:
        super().__init__()
        self._maildir = maildir
        self._received = ReceivedWriter(domain)

    def helo(self, name: str) -> None:
        """A new greeting, perhaps within TLS now: the trace header says something else."""
        self._received.forget()

    async def data(self, reader: DataReader, context: DataContext) -> Reply | None:
        """Store the message; 250 says that it will survive a loss of power."""
        maildir = self._maildir
        name = maildir.unique_name()
        head = self._head(name, context)
        if reader.complete:
            body = reader.read_nowait()
            if maildir.line_end == "lf":
                head = head.replace(b"\r\n", b"\n")
                body = body.replace(b"\r\n", b"\n")
            await maildir.deliver([head, body], name)
        else:
            await self._stream(name, head, reader)
        return Reply(250, EnhancedCode(2, 0, 0), f"Ok: queued as {name}")

    async def _stream(self, name: str, head: bytes, reader: DataReader) -> None:
        convert: Callable[[bytes, bool], bytes] = _unix_line_ends() if self._maildir.line_end == "lf" else _as_sent
        writer = self._maildir.open(name)
        try:
            await writer.write(convert(head, False))
            async for chunk in reader:
                await writer.write(convert(chunk, False))
            await writer.write(convert(b"", True))
            await writer.commit()
        finally:
            writer.abort()

    def _head(self, name: str, context: DataContext) -> bytes:
        received = self._received.field(context, id=name, when=self._maildir.date())
        return return_path_header(context.sender) + received


def _as_sent(data: bytes, end: bool) -> bytes:
    return data


def _unix_line_ends() -> Callable[[bytes, bool], bytes]:
    """CR LF to LF over pieces: a CR at a piece's end waits for what follows."""
    held = b""

    def convert(data: bytes, end: bool) -> bytes:
        nonlocal held
        data = held + data
        held = b""
        if not end and data.endswith(b"\r"):
            data, held = data[:-1], b"\r"
        return data.replace(b"\r\n", b"\n")

    return convert


class MaildirBackend(DefaultBackend):
    """A backend without authentication whose sessions store into one Maildir.

    Args:
        maildir: an open Maildir; who opened it closes it, after the server.
        domain: the server's name in Received.
    """

    def __init__(self, maildir: Maildir, *, domain: str = "localhost") -> None:
        super().__init__(lambda: MaildirSession(maildir, domain=domain))
        self.maildir: Final = maildir
