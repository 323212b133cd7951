"""The parent of several processes: starts them, passes signals on to them, replaces one that dies.

Signals that mean something to a server are held back while one of its processes cannot take them yet: from before it is forked until
it has said `listens`, so that none is lost.
"""

from __future__ import annotations

import contextlib
import logging
import os
import select
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Final, TypeAlias

__all__ = ["Main", "Supervisor", "held", "listens"]

Main: TypeAlias = Callable[[int], int]
"""What a process runs: takes a file that ends when the parent does, gives the exit code."""

_RESTART_DELAY: Final = 1.0  # seconds before a process that died at once is started again
_TICK: Final = 1.0
_HELD: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
_LOG: Final = logging.getLogger("fastsmtp")


@contextlib.contextmanager
def held() -> Iterator[None]:
    """Hold the signals back, but for where `listens` lets them through."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _HELD)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def listens() -> None:
    """The handlers are there: let the signals through, the ones that have come meanwhile first."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _HELD)


class Supervisor:
    """Runs until SIGTERM or SIGINT has come and all workers have ended.

    Each process gets SIGTERM once for each signal to stop that comes here.  SIGINT is for the parent alone: a terminal sends it to all.

    Args:
        workers: what each worker runs.
        helper: what one more process runs, as long as there are workers.
        on_tick: is called every second.
        on_end: is called with the number of a worker that has ended.
        on_stop: is called at the first signal to stop.
        on_hangup: is called at SIGHUP, and tells whether to pass it on to the workers; None leaves SIGHUP alone.
    """

    def __init__(
        self,
        workers: Sequence[Main],
        helper: Main | None,
        *,
        on_tick: Callable[[], None],
        on_end: Callable[[int], None],
        on_stop: Callable[[], None],
        on_hangup: Callable[[], bool] | None,
    ) -> None:
        self._mains = [*workers, *([helper] if helper is not None else [])]
        self._workers = len(workers)
        self._on_tick = on_tick
        self._on_end = on_end
        self._on_stop = on_stop
        self._on_hangup = on_hangup
        self._pids: dict[int, int] = {}  # to the number in _mains, workers first
        self._started: dict[int, float] = {}
        self._due: dict[int, float] = {}  # when to start one again
        self._stops = 0

    def run(self, on_start: Callable[[], None]) -> None:
        """Start all, call back, and wait for their end."""
        self._alive = os.pipe()
        with self._signals() as wake:
            for number in range(len(self._mains)):
                self._start(number)
            on_start()
            while self._working():
                ready, _, _ = select.select([wake], [], [], _TICK)
                for number in wake.recv(4096) if ready else b"":
                    self._signalled(number)
                for pid, status in self._reap():
                    self._ended(pid, status)
                for number in [each for each, when in self._due.items() if when <= time.monotonic()]:
                    del self._due[number]
                    self._start(number)
                self._on_tick()
            self._send(signal.SIGTERM)
            for pid in self._pids:
                os.waitpid(pid, 0)
        for fd in self._alive:
            os.close(fd)

    def _working(self) -> bool:
        return any(number < self._workers for number in (*self._pids.values(), *self._due))

    def _send(self, number: signal.Signals, below: int | None = None) -> None:
        for pid, process in self._pids.items():
            if below is None or process < below:
                os.kill(pid, number)

    def _signalled(self, number: int) -> None:
        if number in (signal.SIGTERM, signal.SIGINT):
            self._stops += 1
            self._due.clear()
            self._send(signal.SIGTERM, self._workers)
            if self._stops == 1:
                self._on_stop()
        elif number == signal.SIGHUP and self._on_hangup is not None and self._on_hangup():
            self._send(signal.SIGHUP, self._workers)

    def _start(self, number: int) -> None:
        # Forked before any loop or thread exists here; the child never returns from this function.
        sys.stderr.flush()
        with held():
            pid = os.fork()
            if pid:
                self._pids[pid] = number
                self._started[number] = time.monotonic()
                return
            code = 1
            try:
                signal.set_wakeup_fd(-1)
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                signal.signal(signal.SIGINT, signal.SIG_IGN)
                os.close(self._alive[1])
                code = self._mains[number](self._alive[0])
            except BaseException:  # noqa: BLE001 - the child ends here, whatever it was
                _LOG.exception("%s failed", self._name(number))
            finally:
                sys.stdout.flush()
                sys.stderr.flush()
                os._exit(code)

    def _name(self, number: int) -> str:
        return f"worker {number}" if number < self._workers else "helper"

    def _reap(self) -> list[tuple[int, int]]:
        """The processes that have ended, with their exit codes; no other child is touched."""
        ended = []
        for pid in self._pids:
            with contextlib.suppress(ChildProcessError):
                done, status = os.waitpid(pid, os.WNOHANG)
                if done:
                    ended.append((pid, os.waitstatus_to_exitcode(status)))
        return ended

    def _ended(self, pid: int, status: int) -> None:
        number = self._pids.pop(pid)
        if number < self._workers:
            self._on_end(number)
        if not self._stops:
            _LOG.error("%s ended with status %d; starting another", self._name(number), status)
            quick = time.monotonic() - self._started[number] < _RESTART_DELAY
            self._due[number] = time.monotonic() + (_RESTART_DELAY if quick else 0.0)

    @contextlib.contextmanager
    def _signals(self) -> Iterator[socket.socket]:
        """A socket from which the numbers of the signals that come can be read."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        theirs.setblocking(False)
        numbers = [signal.SIGTERM, signal.SIGINT, signal.SIGCHLD]
        if self._on_hangup is not None:
            numbers.append(signal.SIGHUP)
        before = [signal.signal(number, lambda *_: None) for number in numbers]
        wakeup = signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        try:
            listens()
            yield ours
        finally:
            signal.set_wakeup_fd(wakeup)
            for number, handler in zip(numbers, before, strict=True):
                signal.signal(number, handler)
            ours.close()
            theirs.close()
