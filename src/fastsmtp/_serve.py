"""``fastsmtp serve``: listeners, one process or several, the counters on a terminal, the drain at SIGTERM.

With several workers each TCP port has one listening socket per worker (SO_REUSEPORT), so that the kernel spreads the connections; the
parent keeps them all, so that what waits in a dead worker's backlog is served by the worker that takes its place.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import json
import logging
import mmap
import os
import select
import signal
import socket
import stat
import struct
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Final

from ._version import VERSION
from .counters import Counters
from .delivery import DiscardSession, Maildir, MaildirBackend, PrintSession
from .errors import ConfigurationError
from .options import ServerOptions
from .server import Server
from .session import Backend, DefaultBackend
from .textproto import IMPLEMENTATION

__all__ = ["serve"]

_FIELDS: Final = ("connections", "connections_total", "messages", "recipients", "octets", "rejected", "errors")
_RECORD: Final = struct.Struct(f"{len(_FIELDS)}q")
_BACKLOG: Final = 1024
_RESTART_DELAY: Final = 1.0  # seconds before a worker that died at once is started again
_LOG: Final = logging.getLogger("fastsmtp")


class _JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _SafeFormatter(logging.Formatter):
    """Keeps control characters of a peer's from the terminal; a record stays on its line, a traceback on its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class _TraceLog:
    """Takes the protocol's trace into the log."""

    def write(self, text: str) -> None:
        _LOG.debug("%s", text.rstrip("\n"))


def serve(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; the exit code."""
    _configure_logging(arguments)
    try:
        options = _options(arguments)
        loop_name, loop_factory = _pick_loop(arguments.loop)
        if not (arguments.discard or arguments.print):
            Maildir(arguments.maildir).close()  # made, and seen to be writable, before anybody is told that we listen
    except (ConfigurationError, OSError) as error:
        return _complain(str(error))
    try:
        groups, place, lock = _listen(arguments)
    except OSError as error:
        place = arguments.unix or _place(arguments.host, arguments.port)
        reason = os.strerror(error.errno) if error.errno == errno.EADDRINUSE else error.strerror
        return _complain(f"cannot listen on {place}: {reason or error}")
    print(f"fastsmtp {VERSION} ({IMPLEMENTATION}, {loop_name}) listening on {place}", file=sys.stderr, flush=True)
    try:
        if arguments.workers == 1:
            board = _Board(1)
            return _run_loop(arguments, options, groups[0], loop_factory, board, 0, None)
        return _supervise(arguments, options, groups, loop_factory)
    finally:
        for sockets in groups:
            for sock in sockets:
                sock.close()
        if lock is not None:
            with contextlib.suppress(OSError):
                os.unlink(lock)


def _complain(text: str) -> int:
    print(f"fastsmtp: {text}", file=sys.stderr)
    return 1


def _configure_logging(arguments: argparse.Namespace) -> None:
    handler = logging.StreamHandler(sys.stderr)
    text = "%(asctime)s %(levelname)s %(name)s: %(message)s"
    handler.setFormatter(_JSONFormatter() if arguments.log_format == "json" else _SafeFormatter(text))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(arguments.verbose, 2)])
    logging.getLogger("asyncio").setLevel(logging.WARNING)


def _options(arguments: argparse.Namespace) -> ServerOptions:
    return ServerOptions(
        addr="",
        domain=arguments.domain,
        lmtp=arguments.lmtp,
        max_message_bytes=arguments.max_message_bytes,
        max_recipients=arguments.max_recipients,
        debug=_TraceLog() if arguments.verbose > 1 else None,
    )


def _pick_loop(name: str) -> tuple[str, Callable[[], asyncio.AbstractEventLoop]]:
    if name != "asyncio":
        try:
            import uvloop
        except ImportError:
            if name == "uvloop":
                raise ConfigurationError("uvloop is not installed: pip install 'fastsmtpd[standard]'") from None
        else:
            return "uvloop", uvloop.new_event_loop
    return "asyncio", asyncio.new_event_loop


# Sockets


def _place(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def _listen(arguments: argparse.Namespace) -> tuple[list[list[socket.socket]], str, str | None]:
    """The listening sockets of each worker, where they listen, and the path to remove at the end."""
    workers = arguments.workers
    if arguments.unix:
        sock = _listen_unix(arguments.unix)
        return [[sock] if worker == 0 else [sock.dup()] for worker in range(workers)], arguments.unix, arguments.unix
    infos = socket.getaddrinfo(arguments.host or None, arguments.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, kind, protocol, _, address = infos[0]
    groups: list[list[socket.socket]] = []
    try:
        # Without SO_REUSEPORT first: a port that another program shares is busy all the same.
        with socket.socket(family, kind, protocol) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            address = probe.getsockname()
            if workers == 1:
                probe.listen(_BACKLOG)
                groups.append([probe.dup()])
        if workers > 1:
            for _ in range(workers):
                sock = socket.socket(family, kind, protocol)
                groups.append([sock])
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if hasattr(socket, "SO_REUSEPORT"):
                    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
                sock.bind(address)
            for (sock,) in groups:
                sock.listen(_BACKLOG)
    except BaseException:
        for sockets in groups:
            for sock in sockets:
                sock.close()
        raise
    return groups, _place(str(address[0]), int(address[1])), None


def _listen_unix(path: str) -> socket.socket:
    """A socket at `path`; one that a dead server left there is replaced, one that answers is not."""
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.stat(path).st_mode):
            raise OSError(errno.EEXIST, "there is a file that is no socket")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(path)
            except ConnectionRefusedError:
                os.unlink(path)
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(path)
        sock.listen(_BACKLOG)
    except BaseException:
        sock.close()
        raise
    return sock


# Counters


class _Board:
    """The counters of all workers, in memory that they share.  A worker that is replaced goes on where the last one stopped."""

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._memory = mmap.mmap(-1, _RECORD.size * workers)

    def read(self, worker: int) -> dict[str, int]:
        return dict(zip(_FIELDS, _RECORD.unpack_from(self._memory, worker * _RECORD.size), strict=True))

    def write(self, worker: int, base: dict[str, int], counters: Counters) -> None:
        values = [getattr(counters, name) + (base[name] if name != "connections" else 0) for name in _FIELDS]
        _RECORD.pack_into(self._memory, worker * _RECORD.size, *values)

    def gone(self, worker: int) -> None:
        """A worker died: it has no connections."""
        values = self.read(worker) | {"connections": 0}
        _RECORD.pack_into(self._memory, worker * _RECORD.size, *values.values())

    def total(self) -> dict[str, int]:
        records = [self.read(worker) for worker in range(self._workers)]
        return {name: sum(record[name] for record in records) for name in _FIELDS}


class _Display:
    """The live line on a terminal, and the summary."""

    def __init__(self, board: _Board) -> None:
        self._board = board
        self._started = self._before = time.monotonic()
        self._messages = 0
        self._live = sys.stderr.isatty()

    def tick(self) -> None:
        if not self._live:
            return
        total = self._board.total()
        now = time.monotonic()
        rate = (total["messages"] - self._messages) / max(now - self._before, 0.001)
        self._before, self._messages = now, total["messages"]
        sys.stderr.write(
            f"\r\x1b[K{total['messages']} messages, {rate:.0f}/s, {total['octets'] / 1e6:.1f} MB, "
            f"{total['recipients']} recipients, {total['connections']} connections, {total['rejected']} refused"
        )
        sys.stderr.flush()

    def summary(self) -> None:
        total = self._board.total()
        if self._live:
            sys.stderr.write("\r\x1b[K")
        print(
            f"fastsmtp: {total['messages']} messages for {total['recipients']} recipients, {total['octets']} octets, "
            f"{total['connections_total']} connections, {total['rejected']} refused, {total['errors']} errors "
            f"in {time.monotonic() - self._started:.1f} s",
            file=sys.stderr,
            flush=True,
        )


# One process


@contextlib.asynccontextmanager
async def _backend(arguments: argparse.Namespace) -> Any:
    backend: Backend
    if arguments.discard:
        yield DefaultBackend(DiscardSession)
    elif arguments.print:
        yield DefaultBackend(lambda: PrintSession(sys.stdout))
    else:
        async with Maildir(arguments.maildir, line_end=arguments.line_end) as maildir:
            backend = MaildirBackend(maildir, domain=arguments.domain)
            yield backend


def _run_loop(
    arguments: argparse.Namespace,
    options: ServerOptions,
    sockets: list[socket.socket],
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
    board: _Board,
    worker: int,
    parent: int | None,
) -> int:
    """Serve on `sockets` in this process; `parent` is a pipe whose end tells that the parent is gone."""
    display = _Display(board) if parent is None else None

    async def run() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        hard = asyncio.Event()

        def stopping() -> None:
            (hard if stop.is_set() else stop).set()

        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping)
        if parent is not None:
            loop.add_reader(parent, stop.set)
        base = board.read(worker)
        async with _backend(arguments) as backend:
            server = Server(backend, options=options)
            for sock in sockets:
                await server.listen(sock=sock.dup())
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await stop.wait()
                board.write(worker, base, server.counters)
                if display is not None:
                    display.tick()
            drain = asyncio.ensure_future(server.shutdown(arguments.drain_timeout))
            second = asyncio.ensure_future(hard.wait())
            await asyncio.wait((drain, second), return_when=asyncio.FIRST_COMPLETED)
            second.cancel()
            if not drain.done():
                drain.cancel()
                await server.close()
            if parent is not None:
                loop.remove_reader(parent)
        board.write(worker, base, server.counters)

    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(run())
    if display is not None:
        display.summary()
    return 0


# Several processes


def _supervise(
    arguments: argparse.Namespace,
    options: ServerOptions,
    groups: list[list[socket.socket]],
    loop_factory: Callable[[], asyncio.AbstractEventLoop],
) -> int:
    board = _Board(len(groups))
    display = _Display(board)
    parent_read, parent_write = os.pipe()
    pids: dict[int, int] = {}
    started: dict[int, float] = {}
    due: dict[int, float] = {}

    def start(worker: int) -> None:
        # Forked before any loop or thread exists here; the child never returns from this function.
        sys.stderr.flush()
        pid = os.fork()
        if pid:
            pids[pid] = worker
            started[worker] = time.monotonic()
            return
        code = 1
        try:
            signal.set_wakeup_fd(-1)
            os.close(parent_write)
            code = _run_loop(arguments, options, groups[worker], loop_factory, board, worker, parent_read)
        except BaseException:  # noqa: BLE001 - the child ends here, whatever it was
            _LOG.exception("worker %d failed", worker)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)

    stops = 0
    with _signals() as wake:
        for worker in range(len(groups)):
            start(worker)
        while pids or due:
            ready, _, _ = select.select([wake], [], [], 1.0)
            for number in wake.recv(4096) if ready else b"":
                if number in (signal.SIGTERM, signal.SIGINT):
                    stops += 1
                    due.clear()
                    for pid in pids:
                        os.kill(pid, signal.SIGTERM)
            for pid, status in _reap(pids):
                worker = pids.pop(pid)
                board.gone(worker)
                if not stops:
                    _LOG.error("worker %d ended with status %d; starting another", worker, status)
                    quick = time.monotonic() - started[worker] < _RESTART_DELAY
                    due[worker] = time.monotonic() + (_RESTART_DELAY if quick else 0.0)
            for worker in [each for each, when in due.items() if when <= time.monotonic()]:
                del due[worker]
                start(worker)
            display.tick()
    os.close(parent_read)
    os.close(parent_write)
    display.summary()
    return 0


def _reap(pids: dict[int, int]) -> list[tuple[int, int]]:
    """The workers that have ended, with their exit codes; no other child is touched."""
    ended = []
    for pid in pids:
        with contextlib.suppress(ChildProcessError):
            done, status = os.waitpid(pid, os.WNOHANG)
            if done:
                ended.append((pid, os.waitstatus_to_exitcode(status)))
    return ended


@contextlib.contextmanager
def _signals() -> Iterator[socket.socket]:
    """A socket from which the numbers of the signals that come can be read."""
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    theirs.setblocking(False)
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)
    before = [signal.signal(number, lambda *_: None) for number in numbers]
    wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
    try:
        yield ours
    finally:
        signal.set_wakeup_fd(wakeup)
        for number, handler in zip(numbers, before, strict=True):
            signal.signal(number, handler)
        ours.close()
        theirs.close()
