"""PostgreSQL servers of the tests' own: made in a temporary directory, reached over a Unix socket in it, gone afterwards."""

from __future__ import annotations

import atexit
import contextlib
import functools
import getpass
import glob
import importlib.util
import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

__all__ = ["Cluster", "absence", "schema_name", "shared", "standby"]

FAST = {"fsync": "off", "full_page_writes": "off", "shared_buffers": "32MB", "max_wal_size": "256MB"}
"""Settings of a server whose data nobody keeps."""

_names = itertools.count(1)


@functools.cache
def binaries() -> Path | None:
    """The directory that has initdb, or None."""
    found = shutil.which("initdb")
    candidates = [os.path.realpath(found)] if found else []
    candidates += glob.glob("/usr/lib/postgresql/*/bin/initdb") + glob.glob("/usr/pgsql-*/bin/initdb")
    for each in candidates:
        directory = Path(each).parent
        if (directory / "pg_ctl").exists() and (directory / "postgres").exists():
            return directory
    return None


def absence() -> str:
    """Why there can be no server, or ""."""
    if not importlib.util.find_spec("asyncpg"):
        return "asyncpg is not installed"
    return "" if binaries() is not None else "PostgreSQL's initdb is not installed"


def schema_name() -> str:
    """One that no other test of this server has."""
    return f"test_{next(_names)}"


def _account() -> dict[str, Any]:
    """Who runs the server, as `subprocess` takes it: it refuses to be root's."""
    if os.geteuid() != 0:
        return {}
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            entry = pwd.getpwnam(name)
            return {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
    raise AssertionError("no account to run the server")


def _own(directory: Path) -> None:
    account = _account()
    if account:
        os.chown(directory, account["user"], account["group"])


def _user() -> str:
    """The database's superuser."""
    return "postgres" if _account() else getpass.getuser()


def _environment() -> dict[str, str]:
    """Ours, but for what a sanitizer has loaded before the interpreter: it is not meant for the server."""
    return {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}


def _run(directory: Path, program: str, *arguments: str | Path) -> str:
    """What a program of the server's says, that works in a directory."""
    found = binaries()
    assert found is not None
    path = found / program
    command = [str(path) if path.exists() else program, *map(str, arguments)]
    # pg_ctl leaves a server behind, which must not keep a pipe of ours open.
    with tempfile.TemporaryFile() as output:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=_environment() | {"LC_ALL": "C", "PGTZ": "UTC"},
            check=False,
            **_account(),
        )
        output.seek(0)
        text = output.read().decode(errors="replace")
    if done.returncode:
        raise subprocess.CalledProcessError(done.returncode, command, text, text)
    return text


@functools.cache
def _template() -> Path:
    """Data of a new server, to be copied: that is quicker."""
    directory = Path(tempfile.mkdtemp(prefix="fastsmtp-pg-"))
    atexit.register(shutil.rmtree, directory, ignore_errors=True)
    _own(directory)
    data = directory / "data"
    _run(directory, "initdb", "-D", data, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync", "-U", _user())
    return data


class Cluster:
    """A server and its data.

    Args:
        settings: its configuration.
        primary: the server whose standby it is.
        name: what it calls itself to that.

    Attributes:
        directory: its data and its socket.
        dsn: where it is.
    """

    def __init__(self, settings: Mapping[str, str], primary: Cluster | None = None, name: str = "") -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="fastsmtp-pg-"))
        self._data = self.directory / "data"
        _own(self.directory)
        self.dsn = self.dsn_for()
        try:
            if primary is None:
                self._run("cp", "-R", _template(), self._data)
            else:
                address = f"host={primary.directory} user={_user()} application_name={name}"
                self._run("pg_basebackup", "-D", self._data, "-d", address, "-R", "-c", "fast", "--no-sync")
            self.configure(unix_socket_directories=str(self.directory), listen_addresses="", **settings)
            self.start()
        except BaseException:
            self.remove()
            raise

    def dsn_for(self, user: str = "", database: str = "postgres") -> str:
        """Where one of its databases is, for one of its users."""
        return f"postgresql://{user or _user()}@/{database}?host={self.directory}"

    def configure(self, **settings: str) -> None:
        """Change settings; they hold when it is started or reloaded."""
        with open(self._data / "postgresql.auto.conf", "a", encoding="utf-8") as file:
            for name, value in settings.items():
                file.write(f"{name} = '{value}'\n")

    def start(self) -> None:
        """Start it, and wait until it answers."""
        self._run("pg_ctl", "-D", self._data, "-l", self.directory / "log", "-w", "start")

    def start_again(self) -> None:
        """`start` after `kill`: what the server had started may take a moment to be gone."""
        for _ in range(100):
            with contextlib.suppress(subprocess.CalledProcessError):
                return self.start()
            time.sleep(0.05)
        raise AssertionError("it does not start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it, and wait for that."""
        self._run("pg_ctl", "-D", self._data, "-m", mode, "-w", "stop")

    def reload(self) -> None:
        """Have it read its configuration."""
        self._run("pg_ctl", "-D", self._data, "reload")

    def sql(self, command: str) -> str:
        """What psql says to a command."""
        return self._run("psql", "-X", "-q", "-A", "-t", "-v", "ON_ERROR_STOP=1", "-d", self.dsn, "-c", command).strip()

    def kill(self) -> None:
        """kill -9, and all that it started goes with it."""
        os.kill(int((self._data / "postmaster.pid").read_text().split("\n", 1)[0]), signal.SIGKILL)

    def remove(self) -> None:
        """Stop it if it runs, and remove its data."""
        with contextlib.suppress(subprocess.CalledProcessError):
            self.stop("immediate")
        shutil.rmtree(self.directory, ignore_errors=True)

    def _run(self, program: str, *arguments: str | Path) -> str:
        return _run(self.directory, program, *arguments)


@functools.cache
def shared() -> Cluster:
    """The server that all tests of this process share; each has a schema of its own."""
    cluster = Cluster(FAST)
    atexit.register(cluster.remove)
    return cluster


@contextlib.contextmanager
def standby() -> Iterator[tuple[Cluster, Cluster]]:
    """A server and its synchronous standby."""
    with contextlib.ExitStack() as stack:
        primary = Cluster(FAST)
        stack.callback(primary.remove)
        second = Cluster(FAST, primary, "second")
        stack.callback(second.remove)
        primary.configure(synchronous_standby_names="second")
        primary.reload()
        yield primary, second
