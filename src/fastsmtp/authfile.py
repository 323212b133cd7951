"""A file of users and their passwords' secrets, for PLAIN, LOGIN and SCRAM-SHA-256 alike.

UTF-8 text, one user a line::

    name:SCRAM-SHA-256$rounds:salt$StoredKey:ServerKey

What follows the name is the secret of RFC 5802 section 3 as PostgreSQL writes it; no password can be read from it, but each can be held
against it.  Names are prepared by SASLprep (RFC 4013) and have no colon, no control character, no "#" at the start and no space at either
end.  Empty lines, and lines that begin with "#", mean nothing.  One line may have no name: `:` and 32 octets in base64 are the key from
which the salts of users who do not exist are made up, so that they stay the same after a restart and in every process.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import logging
import os
import secrets
import stat
import time
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, TypeAlias

from .errors import ConfigurationError
from .sasl.prep import saslprep
from .sasl.secret import SALT, ScramSecret

__all__ = ["CACHED", "CACHE_SECONDS", "ITERATIONS", "AuthFile", "prepare_name"]

ITERATIONS: Final = 600_000
"""Rounds of PBKDF2-HMAC-SHA-256 for a new password.

RFC 7677 section 4 asks for 4096 at least, and as a rule of thumb for what takes a modern machine 0.1 s; OWASP's Password Storage Cheat Sheet
has asked for 600,000 since 2023, by what a graphics card guesses in a second.  A core does two to four million a second: a login that is not in
the cache, and each wrong guess, costs 0.15 to 0.3 s of it.
"""

CACHED: Final = 1024
"""Verified credentials that are remembered."""

CACHE_SECONDS: Final = 300.0
"""How long one is remembered, counted from when its password was last computed."""

_NAME: Final = 1024  # octets, as in a SASL message
_KEY: Final = 32
_HEADING: Final = "# name:SCRAM-SHA-256$rounds:salt$StoredKey:ServerKey"
_LOG: Final = logging.getLogger("fastsmtp.authfile")

_Signature: TypeAlias = tuple[int, ...]


def prepare_name(name: str) -> str:
    """A user name as it is stored (SASLprep of a stored string, RFC 4013 section 2).

    Raises:
        ValueError: it is none that the file can hold; the text does not repeat it.
    """
    prepared = saslprep(name, stored=True)
    if (
        not prepared
        or ":" in prepared
        or prepared.startswith("#")
        or prepared != prepared.strip()
        or len(prepared.encode()) > _NAME
        or saslprep(prepared, stored=True) != prepared
    ):
        raise ValueError("not a name of a user")
    return prepared


@dataclass(frozen=True, slots=True)
class _Line:
    """A line that means something: the key of the file when `secret` is None, else a user."""

    index: int
    name: str
    secret: ScramSecret | None
    key: bytes = b""


def _parse(data: bytes, path: str) -> tuple[list[str], list[_Line]]:
    """All lines, and what is on those that mean something.  No error repeats what a line says."""
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = data.count(b"\n", 0, error.start) + 1
        raise ConfigurationError(f"{path}:{number}: not UTF-8") from None
    lines = text.split("\n")
    found: list[_Line] = []
    seen: set[str] = set()
    for index, raw in enumerate(lines):
        line = raw.rstrip(" \t\r")
        if not line or line.startswith("#"):
            continue
        name, colon, value = line.partition(":")
        try:
            if not colon:
                raise ValueError("no colon")
            if name:
                entry = _Line(index, prepare_name(name), ScramSecret.decode(value))
            else:
                entry = _Line(index, "", None, base64.b64decode(value, validate=True))
                if len(entry.key) != _KEY:
                    raise ValueError("not a key")
        except ValueError:
            raise ConfigurationError(f"{path}:{index + 1}: not of the form {_HEADING[2:]}") from None
        if entry.name in seen:
            raise ConfigurationError(f"{path}:{index + 1}: a second line for the same name")
        seen.add(entry.name)
        found.append(entry)
    return lines, found


@dataclass(frozen=True, slots=True)
class _Contents:
    """What the file said at one moment.

    Attributes:
        users: the secrets by name, in the file's order.
        key: makes up the secrets of users who do not exist.
        iterations: their rounds, those of most users.
        salt: the octets of their salts, likewise.
        highest: the most rounds of any user.
    """

    users: Mapping[str, ScramSecret]
    key: bytes
    iterations: int
    salt: int
    highest: int

    @classmethod
    def of(cls, data: bytes, path: str) -> _Contents:
        _, found = _parse(data, path)
        users = {each.name: each.secret for each in found if each.secret is not None}
        # Without a key of its own: what only who can read the file knows, and is the same in every process.
        key = next((each.key for each in found if each.secret is None), hashlib.sha256(data).digest())
        shapes = Counter((secret.iterations, len(secret.salt)) for secret in users.values())
        iterations, salt = max(shapes, key=lambda shape: (shapes[shape], shape), default=(ITERATIONS, SALT))
        highest = max((secret.iterations for secret in users.values()), default=iterations)
        return cls(MappingProxyType(users), key, iterations, salt, highest)

    def find(self, name: str) -> tuple[ScramSecret, bool]:
        """The secret to hold a password against, and whether the user exists.  The same work either way."""
        octets = hashlib.shake_256(self.key + name.encode("utf-8", "surrogatepass")).digest(self.salt + 64)
        salt = octets[: self.salt]
        decoy = ScramSecret(salt, octets[self.salt : -32], octets[-32:], self.iterations)
        return self.users.get(name, decoy), name in self.users


class AuthFile:
    """The users of a file.  Looking up, verifying and reloading belong to one thread; verifying, to an event loop.

    A file that others than its owner can write, or all can read, is used with a warning in the log `fastsmtp.authfile`: its secrets stand
    up to guessing only as long as the passwords do.  That its group reads it is how a server without root's rights gets at it.

    Args:
        path: the file.
        missing_ok: a file that is not there has no users; `add` makes it.
        threads: passwords that are computed at a time; half of the cores if None, four at most, so that a flood of wrong guesses
            leaves the rest of the machine to the mail.
        cached: verified credentials that are remembered; 0 remembers none.
        cache_seconds: how long.
        clock: tells the seconds (for tests).

    Raises:
        ConfigurationError: the file cannot be read, or is malformed, by path and line.
    """

    __slots__ = (
        "_cache",
        "_cache_key",
        "_cache_seconds",
        "_cached",
        "_clock",
        "_contents",
        "_exposed",
        "_missing_ok",
        "_pool",
        "_signature",
        "_threads",
        "path",
    )

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        missing_ok: bool = False,
        threads: int | None = None,
        cached: int = CACHED,
        cache_seconds: float = CACHE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path: Final = os.fspath(path)
        self._missing_ok = missing_ok
        self._threads = threads or min(4, max(1, (os.cpu_count() or 1) // 2))
        self._pool: ThreadPoolExecutor | None = None  # made when first used: a process that forks has no threads yet
        self._cached = cached
        self._cache_seconds = cache_seconds
        self._cache_key = secrets.token_bytes(32)
        self._cache: OrderedDict[bytes, float] = OrderedDict()
        self._clock = clock
        self._exposed = False
        self._signature: _Signature | None = None
        self._contents: _Contents
        self.reload()

    @property
    def names(self) -> tuple[str, ...]:
        """The users' names, in the file's order."""
        return tuple(self._contents.users)

    def reload(self) -> None:
        """Read the file again and forget all verified credentials.

        Raises:
            ConfigurationError: as when it was first read; what it said before still holds.
        """
        try:
            with open(self.path, "rb") as file:
                status = os.fstat(file.fileno())
                data = file.read()
        except OSError as error:
            if not (self._missing_ok and isinstance(error, FileNotFoundError)):
                raise ConfigurationError(f"cannot read {self.path}: {error.strerror or error}") from error
            signature, data, exposed = None, b"", False
        else:
            signature = _signature(status)
            exposed = bool(status.st_mode & (stat.S_IRWXO | stat.S_IWGRP))
        self._contents = _Contents.of(data, self.path)
        if exposed and not self._exposed:
            _LOG.warning("%s can be read or written by others than its owner; chmod 600 keeps it safe", self.path)
        self._exposed = exposed
        self._signature = signature
        self._cache.clear()

    def reload_if_changed(self) -> bool:
        """Read the file again if it is another one, or another size or time, than when it was last read; True if so.

        Costs one stat(2).  A file that cannot be used is logged once, and what was read before holds until the file changes again.
        """
        try:
            signature = _signature(os.stat(self.path))
        except OSError:
            signature = None
        if signature == self._signature:
            return False
        try:
            self.reload()
        except ConfigurationError as error:
            self._signature = signature
            _LOG.error("%s; the users are those from before", error)
            return False
        return True

    def lookup(self, username: str) -> ScramSecret:
        """The secret for SCRAM; for a user who does not exist one that no password fits, with always the same salt.

        Its rounds are those of most users; one whose rounds differ from theirs can be told to exist.
        """
        return self._contents.find(_folded(username))[0]

    async def verify(self, username: str, password: str) -> bool:
        """Tell whether that is the user's password.

        A wrong password costs the same whether the user exists or not: as many rounds as the file's highest.  They are computed in a
        thread, a few at a time.  A right one is remembered for a while as an HMAC under a key that is this process's own, so that a client
        with a connection per message does not pay each time.
        """
        try:
            name, prepared = saslprep(username), saslprep(password).encode()
        except ValueError:
            return False
        if not prepared:
            return False
        contents = self._contents
        secret, known = contents.find(name)
        # With the stored key in it, what is remembered ends with the secret that it was verified against.
        tag = hmac.digest(self._cache_key, b"\0".join((name.encode(), secret.stored_key, prepared)), "sha256")
        if self._remembers(tag):
            return True
        import asyncio  # here, for the command that edits the file does without

        if self._pool is None:
            self._pool = ThreadPoolExecutor(self._threads, "fastsmtp-authfile")
        loop = asyncio.get_running_loop()
        # A pool of its own: one that gives up before its turn is taken out, one that gives up later keeps its place.
        right = await loop.run_in_executor(self._pool, _matches, secret, password, contents.highest)
        if not (right and known and self._contents.users.get(name) == secret):  # it may have changed meanwhile
            return False
        self._remember(tag)
        return True

    def close(self) -> None:
        """End the threads; who waits for one is cancelled.  The next `verify` starts new ones."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    def add(self, username: str, password: str, *, iterations: int = ITERATIONS) -> bool:
        """Write a user with a password into the file; True for a new one, False for another password.

        The file is replaced in one step and is durable on return; several processes may do so at a time.  A new file is its owner's alone, an
        old one keeps its owner and mode.  This takes time, waits for others and reads the file again: a server that does so gives
        it a thread and an `AuthFile` of its own, and lets `reload_if_changed` tell the one that verifies.

        Raises:
            ValueError: no usable name, password or number of rounds.
            ConfigurationError: the file cannot be read or is malformed; nothing was changed.
            OSError: it cannot be written; nothing was changed.
        """
        name = prepare_name(username)
        line = f"{name}:{ScramSecret.derive(password, iterations=iterations).encode()}"

        def edit(lines: list[str], found: list[_Line]) -> bool:
            for each in found:
                if each.name == name:
                    lines[each.index] = line
                    return False
            _append(lines, line)
            return True

        return self._edit(edit)

    def remove(self, username: str) -> bool:
        """Take a user out of the file; False if there is none of that name.  Raises as `add` does."""
        name = prepare_name(username)

        def edit(lines: list[str], found: list[_Line]) -> bool:
            for each in found:
                if each.name == name:
                    del lines[each.index]
                    return True
            return False

        return self._edit(edit)

    def _edit(self, edit: Callable[[list[str], list[_Line]], bool]) -> bool:
        target = os.path.realpath(self.path)  # a link stays one
        with _locked(target):
            try:
                with open(target, "rb") as file:
                    status: os.stat_result | None = os.fstat(file.fileno())
                    data = file.read()
            except OSError as error:
                if not (self._missing_ok and isinstance(error, FileNotFoundError)):
                    raise ConfigurationError(f"cannot read {self.path}: {error.strerror or error}") from error
                status, data = None, f"{_HEADING}\n".encode()
            lines, found = _parse(data, self.path)
            before = list(lines)
            result = edit(lines, found)
            if lines != before:
                if not any(each.secret is None for each in found):
                    _append(lines, f":{base64.b64encode(secrets.token_bytes(_KEY)).decode()}")
                _replace(target, "\n".join(lines).encode(), status)
        self.reload()
        return result

    def _remembers(self, tag: bytes) -> bool:
        until = self._cache.get(tag)
        if until is None:
            return False
        if until <= self._clock():
            del self._cache[tag]
            return False
        self._cache.move_to_end(tag)
        return True

    def _remember(self, tag: bytes) -> None:
        self._cache[tag] = self._clock() + self._cache_seconds
        self._cache.move_to_end(tag)
        while len(self._cache) > self._cached:
            self._cache.popitem(last=False)


def _folded(username: str) -> str:
    try:
        return saslprep(username)
    except ValueError:
        return username  # nobody's


def _matches(secret: ScramSecret, password: str, highest: int) -> bool:
    """Verify; a wrong password takes `highest` rounds, whatever the secret's own are."""
    right = secret.verify(password)
    if not right and secret.iterations < highest:
        hashlib.pbkdf2_hmac("sha256", b"", secret.salt, highest - secret.iterations)
    return right


def _signature(status: os.stat_result) -> _Signature:
    # The time of the last change of the inode, too: it sees a chmod, and a copy that keeps the other time.
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _append(lines: list[str], line: str) -> None:
    """Put a line at the end of a text that is split at its line feeds."""
    if lines[-1].rstrip("\r"):
        lines += (line, "")
    else:
        lines[-1:] = (line, "")


@contextlib.contextmanager
def _locked(target: str) -> Iterator[None]:
    """Hold the lock file beside `target`.  It stays there: to remove it would let two hold two of them."""
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    fd = os.open(_beside(target, "lock"), flags, 0o600)
    try:
        import fcntl  # here, for where there is none the file can still be read

        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def _replace(target: str, data: bytes, status: os.stat_result | None) -> None:
    """Write `target` anew, durably, with the owner and mode that it had.  The lock is held, so one name for the new file is enough."""
    temporary = _beside(target, "new")
    with contextlib.suppress(FileNotFoundError):
        os.unlink(temporary)  # of a command that was killed
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(data)
            if status is not None:
                created = os.fstat(fd)
                if (created.st_uid, created.st_gid) != (status.st_uid, status.st_gid):
                    os.fchown(fd, status.st_uid, status.st_gid)
                os.fchmod(fd, stat.S_IMODE(status.st_mode))
            file.flush()
            os.fsync(fd)
        os.replace(temporary, target)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
    directory = os.open(os.path.dirname(target), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _beside(target: str, purpose: str) -> str:
    directory, name = os.path.split(target)
    return os.path.join(directory, f".{name}.{purpose}")
