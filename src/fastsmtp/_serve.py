"""``fastsmtp serve`` and ``relay``: puts a server together as the options say, and runs it, in one process or several."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import errno
import logging
import os
import signal
import socket
import sys
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, TypeVar

from . import _logs, _memory, _systemd
from ._application import Application
from ._board import Board, Display
from ._listen import Listening, inherit, listen, place_of
from ._supervise import Supervisor, held, listens
from ._version import VERSION
from .delivery import UsersBackend
from .errors import ConfigurationError
from .options import ServerOptions
from .server import Server
from .textproto import IMPLEMENTATION

if TYPE_CHECKING:
    from ._metrics import Metrics
    from .authfile import AuthFile
    from .tls import TLSFiles

__all__ = ["serve"]

_LOG: Final = logging.getLogger("fastsmtp")
_ORPHANED: Final = 5.0  # seconds for what runs when the parent is gone
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class _Service:
    """What all processes have in common.  Those that are forked have their own copies of the files' contents."""

    arguments: argparse.Namespace
    application: Application
    options: ServerOptions
    tls: TLSFiles | None
    users: AuthFile | None
    metrics: Metrics | None
    loop_name: str
    loop_factory: Callable[[], asyncio.AbstractEventLoop]
    board: Board
    display: Display

    @property
    def minds_hangup(self) -> bool:
        """SIGHUP reads files again; it ends a server without any that runs on a terminal, when that is closed."""
        return self.tls is not None or self.users is not None or not sys.stderr.isatty()

    def hangup(self) -> bool:
        """Read the files again; False, and a line in the log, if a certificate cannot be used: the old ones stay."""
        self.look_at_users()
        if self.tls is not None:
            try:
                self.tls.reload()
            except ConfigurationError as error:
                _LOG.error("%s; the certificates are those from before", error)
                return False
            _LOG.info("the certificates were read again")
        return True

    def look_at_users(self) -> None:
        """Read the file of users again if it has changed."""
        if self.users is not None and self.users.reload_if_changed():
            _LOG.info("the users were read again")

    def tick(self) -> None:
        """What is done once a second, by the process that was started."""
        self.look_at_users()
        self.display.tick()

    def close(self) -> None:
        """Let go of what is held open."""
        if self.users is not None:
            self.users.close()
        if self.metrics is not None:
            self.metrics.close()


def serve(arguments: argparse.Namespace) -> int:
    """Serve until SIGTERM or SIGINT; the exit code."""
    _logs.configure(arguments.log_format, arguments.verbose)
    try:
        service = _service(arguments)
    except (ConfigurationError, OSError) as error:
        return _complain(str(error))
    with contextlib.closing(service), contextlib.closing(service.application):
        try:
            # Seen to be there before anybody is told that we listen.
            service.application.prepare()
            listening = _listening(arguments)
        except (ConfigurationError, OSError) as error:
            return _complain(str(error))
        try:
            if (wrong := service.application.refusal(listening)) is not None:
                return _complain(wrong, 2)
            with held():
                code = _run(service, listening)
            service.display.summary()
            return code
        finally:
            listening.close()
            listening.remove()


def _run(service: _Service, listening: Listening) -> int:
    first_line = f"fastsmtp {VERSION} ({IMPLEMENTATION}, {service.loop_name}) listening on {listening.place}"
    print(first_line, file=sys.stderr, flush=True)
    if service.metrics is not None:
        print(f"fastsmtp: metrics on {service.metrics.place}", file=sys.stderr, flush=True)
    if service.arguments.workers == 1:
        with _metrics_thread(service):
            return _run_worker(service, listening.groups[0], 0, None)
    _run_workers(service, listening)
    return 0


def _complain(text: str, code: int = 1) -> int:
    print(f"fastsmtp: {text}", file=sys.stderr)
    return code


def _listening(arguments: argparse.Namespace) -> Listening:
    """The sockets to take connections from; raises ConfigurationError in words for people."""
    if arguments.systemd or arguments.fd is not None:
        try:
            return inherit([arguments.fd] if arguments.fd is not None else _systemd.listen_fds(), arguments.workers)
        except OSError as error:
            raise ConfigurationError(f"cannot listen on {error.strerror}") from None
    try:
        return listen(arguments.host, arguments.port, arguments.unix, arguments.workers)
    except OSError as error:
        place = arguments.unix or place_of(arguments.host, arguments.port)
        reason = os.strerror(error.errno) if error.errno == errno.EADDRINUSE else error.strerror
        raise ConfigurationError(f"cannot listen on {place}: {reason or error}") from None


def _service(arguments: argparse.Namespace) -> _Service:
    loop = _pick_loop(arguments.loop)
    tls = _tls_files(arguments)
    application = _application(arguments)
    options = ServerOptions(
        addr="",
        domain=arguments.domain,
        lmtp=arguments.lmtp,
        strict=arguments.strict,
        bare_newlines=arguments.bare_newlines,
        tls=tls,
        implicit_tls=arguments.implicit_tls,
        require_tls=arguments.require_tls,
        allow_insecure_auth=arguments.allow_insecure_auth,
        max_auth_failures=arguments.max_auth_failures,
        auth_failure_delay=arguments.auth_failure_delay,
        allow_xforward=arguments.allow_xforward,
        allow_xclient=arguments.allow_xclient,
        proxy_from=arguments.proxy,
        max_message_bytes=arguments.max_message_bytes,
        max_recipients=arguments.max_recipients,
        max_errors=arguments.max_errors,
        max_connections=arguments.max_connections,
        max_connections_per_address=arguments.max_connections_per_address,
        max_connection_rate=arguments.max_connection_rate,
        greeting_delay=arguments.greeting_delay,
        error_delay=arguments.error_delay,
        read_timeout=arguments.read_timeout,
        write_timeout=arguments.write_timeout,
        min_body_rate=arguments.min_body_rate,
        debug=_logs.TraceLog() if arguments.verbose > 1 else None,
        observer=_logs.EventLog() if arguments.verbose else None,
        **application.options,
    )
    users = _auth_file(arguments)
    board = Board(arguments.workers, application.figures)
    return _Service(
        arguments,
        application,
        options,
        tls,
        users,
        _metrics(arguments, board),
        *loop,
        board,
        application.display(board),
    )


# What is not turned on is not even imported.


def _application(arguments: argparse.Namespace) -> Application:
    if arguments.command == "relay":
        from ._relay import Relay

        return Relay(arguments)
    from ._mailbox import Mailbox

    return Mailbox(arguments)


def _tls_files(arguments: argparse.Namespace) -> TLSFiles | None:
    if arguments.tls_cert is None:
        return None
    from .tls import TLSFiles

    by_name = {name: (cert, key) for name, cert, key in arguments.tls_name}
    return TLSFiles(arguments.tls_cert, arguments.tls_key, by_name=by_name, client_ca=arguments.tls_client_ca)


def _auth_file(arguments: argparse.Namespace) -> AuthFile | None:
    if arguments.auth_file is None:
        return None
    from .authfile import AuthFile

    # Each worker computes passwords in a thread of its own; all together they use the cores that one would.
    return AuthFile(arguments.auth_file, threads=1 if arguments.workers > 1 else None)


def _metrics(arguments: argparse.Namespace, board: Board) -> Metrics | None:
    if arguments.metrics is None:
        return None
    from ._metrics import Metrics

    return Metrics(arguments.metrics, board, arguments.workers)


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


@contextlib.contextmanager
def _metrics_thread(service: _Service) -> Iterator[None]:
    """Metrics beside the loop: signals are still held, so none is taken by the thread."""
    if service.metrics is None:
        yield
        return
    service.metrics.start()
    try:
        yield
    finally:
        service.metrics.stop()


def _run_worker(service: _Service, sockets: Sequence[socket.socket], worker: int, parent: int | None) -> int:
    """Serve on `sockets` in this process, until a signal says to stop, or the end of the file `parent` that the parent is gone."""
    arguments = service.arguments

    async def run() -> None:
        loop = asyncio.get_running_loop()
        stop = asyncio.Event()
        hard = asyncio.Event()

        patience = arguments.drain_timeout

        def stopping() -> None:
            (hard if stop.is_set() else stop).set()

        def orphaned() -> None:
            nonlocal patience
            assert parent is not None
            loop.remove_reader(parent)  # it stays at its end
            patience = min(patience, _ORPHANED)  # whoever comes after us waits for what we have open
            stop.set()

        loop.add_signal_handler(signal.SIGTERM, stopping)
        if service.minds_hangup:
            loop.add_signal_handler(signal.SIGHUP, service.hangup)
        if parent is None:
            loop.add_signal_handler(signal.SIGINT, stopping)
        else:
            loop.add_reader(parent, orphaned)
        listens()
        try:
            running = await _unless(stop, service.application.open(worker))
        except _Interrupted:
            return
        try:
            backend = running.backend
            if service.users is not None:
                backend = UsersBackend(backend, service.users, required=arguments.require_auth)
            server = Server(backend, options=service.options)
            count = service.board.pen(worker, server.counters, *running.counters)
            for sock in sockets:
                await server.listen(sock=sock.dup())
            if parent is None:
                _systemd.notify("READY=1")
            while not stop.is_set():
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(1.0):
                        await stop.wait()
                count()
                if parent is None:
                    service.tick()
                else:
                    service.look_at_users()
            if parent is None:
                _systemd.notify("STOPPING=1")
            for sock in sockets:
                sock.close()  # whoever comes now is refused, or gets to the parent and another worker
            until = loop.time() + patience
            try:
                await _unless(hard, server.shutdown(patience))
                await _unless(hard, running.stop(max(1.0, until - loop.time())))
            except _Interrupted:
                await server.close()
                await running.stop(0)
            if parent is not None:
                loop.remove_reader(parent)
            count()
        finally:
            await running.close()

    _memory.settle()
    with asyncio.Runner(loop_factory=service.loop_factory) as runner:
        try:
            runner.run(run())
        except ConfigurationError as error:
            return _complain(str(error))
    return 0


class _Interrupted(Exception):
    """Something else came first."""


async def _unless(event: asyncio.Event, work: Coroutine[Any, Any, _T]) -> _T:
    """What `work` gives; _Interrupted, with `work` cancelled, if the event comes first."""
    task = asyncio.ensure_future(work)
    waiting = asyncio.ensure_future(event.wait())
    try:
        await asyncio.wait((task, waiting), return_when=asyncio.FIRST_COMPLETED)
    finally:
        waiting.cancel()
        if not task.done():
            task.cancel()
            await asyncio.wait((task,))
    if task.cancelled():
        raise _Interrupted
    return task.result()


def _run_workers(service: _Service, listening: Listening) -> None:
    def worker_main(worker: int) -> Callable[[int], int]:
        def run(parent: int) -> int:
            listening.close(keep=worker)
            service.application.forked()
            if service.metrics is not None:
                service.metrics.close()
            if service.users is not None:
                # The parent looks at the same file, and says what is wrong once for all.
                _logs.silence("fastsmtp.authfile")
            try:
                return _run_worker(service, listening.groups[worker], worker, parent)
            finally:
                if service.users is not None:
                    service.users.close()

        return run

    def metrics_main(parent: int) -> int:
        listening.close()
        service.application.forked()
        assert service.metrics is not None
        return service.metrics.run(parent)

    def stopping() -> None:
        _systemd.notify("STOPPING=1")
        listening.close()

    Supervisor(
        [worker_main(worker) for worker in range(len(listening.groups))],
        None if service.metrics is None else metrics_main,
        on_tick=service.tick,
        on_end=service.board.gone,
        on_stop=stopping,
        on_hangup=service.hangup if service.minds_hangup else None,
    ).run(lambda: _systemd.notify("READY=1"))
