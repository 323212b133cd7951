"""``fastsmtp serve``: puts a server together as the options say, and runs it, in one process or several."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from . import _logs
from ._board import Board, Display
from ._listen import Listening, listen, place_of
from ._supervise import Supervisor, held, listens
from ._version import VERSION
from .delivery import DiscardSession, Maildir, MaildirBackend, PrintSession
from .errors import ConfigurationError
from .options import ServerOptions
from .server import Server
from .session import Backend, DefaultBackend
from .textproto import IMPLEMENTATION

__all__ = ["serve"]


@dataclass(frozen=True, slots=True)
class _Service:
    """What all processes have in common."""

    arguments: argparse.Namespace
    options: ServerOptions
    loop_name: str
    loop_factory: Callable[[], asyncio.AbstractEventLoop]
    board: Board
    display: Display


def serve(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; the exit code."""
    _logs.configure(arguments.log_format, arguments.verbose)
    try:
        service = _service(arguments)
        if not (arguments.discard or arguments.print):
            Maildir(arguments.maildir).close()  # made, and seen to be writable, before anybody is told that we listen
    except (ConfigurationError, OSError) as error:
        return _complain(str(error))
    try:
        listening = listen(arguments.host, arguments.port, arguments.unix, arguments.workers)
    except OSError as error:
        place = arguments.unix or place_of(arguments.host, arguments.port)
        reason = os.strerror(error.errno) if error.errno == errno.EADDRINUSE else error.strerror
        return _complain(f"cannot listen on {place}: {reason or error}")
    try:
        with held():
            first_line = f"fastsmtp {VERSION} ({IMPLEMENTATION}, {service.loop_name}) listening on {listening.place}"
            print(first_line, file=sys.stderr, flush=True)
            if arguments.workers == 1:
                _run_worker(service, listening.groups[0], 0, None)
            else:
                _run_workers(service, listening)
        service.display.summary()
        return 0
    finally:
        listening.close()
        listening.remove()


def _complain(text: str) -> int:
    print(f"fastsmtp: {text}", file=sys.stderr)
    return 1


def _service(arguments: argparse.Namespace) -> _Service:
    options = ServerOptions(
        addr="",
        domain=arguments.domain,
        lmtp=arguments.lmtp,
        max_message_bytes=arguments.max_message_bytes,
        max_recipients=arguments.max_recipients,
        debug=_logs.TraceLog() if arguments.verbose > 1 else None,
    )
    board = Board(arguments.workers)
    return _Service(arguments, options, *_pick_loop(arguments.loop), board, Display(board))


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


@contextlib.asynccontextmanager
async def _backend(arguments: argparse.Namespace) -> AsyncIterator[Backend]:
    if arguments.discard:
        yield DefaultBackend(DiscardSession)
    elif arguments.print:
        yield DefaultBackend(lambda: PrintSession(sys.stdout))
    else:
        async with Maildir(arguments.maildir, line_end=arguments.line_end) as maildir:
            yield MaildirBackend(maildir, domain=arguments.domain)


def _run_worker(service: _Service, sockets: Sequence[socket.socket], worker: int, parent: int | None) -> int:
    """Serve on `sockets` in this process, until a signal says to stop, or the end of the file `parent` that the parent is gone."""
    arguments = service.arguments

    async def run() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        hard = asyncio.Event()

        def stopping() -> None:
            (hard if stop.is_set() else stop).set()

        loop.add_signal_handler(signal.SIGTERM, stopping)
        if parent is None:
            loop.add_signal_handler(signal.SIGINT, stopping)
        else:
            loop.add_reader(parent, stop.set)
        listens()
        async with _backend(arguments) as backend:
            server = Server(backend, options=service.options)
            count = service.board.pen(worker, server.counters)
            for sock in sockets:
                await server.listen(sock=sock.dup())
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await stop.wait()
                count()
                if parent is None:
                    service.display.tick()
            for sock in sockets:
                sock.close()  # whoever comes now is refused, or gets to the parent and another worker
            drain = asyncio.ensure_future(server.shutdown(arguments.drain_timeout))
            second = asyncio.ensure_future(hard.wait())
            await asyncio.wait((drain, second), return_when=asyncio.FIRST_COMPLETED)
            second.cancel()
            if not drain.done():
                drain.cancel()
                await server.close()
            if parent is not None:
                loop.remove_reader(parent)
        count()

    with asyncio.Runner(loop_factory=service.loop_factory) as runner:
        runner.run(run())
    return 0


def _run_workers(service: _Service, listening: Listening) -> None:
    def main(worker: int) -> Callable[[int], int]:
        def run(parent: int) -> int:
            listening.close(keep=worker)
            return _run_worker(service, listening.groups[worker], worker, parent)

        return run

    Supervisor(
        [main(worker) for worker in range(len(listening.groups))],
        None,
        on_tick=service.display.tick,
        on_end=service.board.gone,
        on_stop=listening.close,
        on_hangup=None,
    ).run(lambda: None)
