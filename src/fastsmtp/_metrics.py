"""``--metrics``: the figures of all workers for Prometheus, by its own client library (the extra `metrics`)."""

from __future__ import annotations

import logging
import select
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from socketserver import ThreadingMixIn
from typing import Any, Final
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer

from ._board import Board, Kind
from ._listen import place_of
from ._supervise import listens
from ._version import VERSION
from .errors import ConfigurationError
from .textproto import IMPLEMENTATION

try:
    from prometheus_client import CollectorRegistry, make_wsgi_app
    from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
except ImportError:  # said by `Metrics`, in one line
    _INSTALLED = False
else:
    _INSTALLED = True

__all__ = ["COUNTERS", "GAUGES", "Metrics"]

COUNTERS: Final = {
    "connections_total": ("connections", "Connections that clients have opened, refused ones included."),
    "messages": ("messages", "Messages accepted; LMTP: for one recipient at least."),
    "recipients": ("recipients", "Recipients of accepted messages."),
    "octets": ("message_bytes", "Octets of accepted messages."),
    "rejected": ("rejected", "MAIL, RCPT and messages answered 4xx or 5xx by a session or a limit."),
    "errors": ("errors", "Hooks that failed unexpectedly."),
    "tls": ("tls_connections", "Connections that came to be under TLS."),
    "tls_failures": ("tls_failures", "TLS handshakes that failed."),
    "proxy_failures": ("proxy_failures", "Connections whose PROXY header was not there, or none."),
    "authenticated": ("authenticated", "Successful logins."),
    "auth_failures": ("auth_failures", "Logins that failed."),
    "delivered": ("delivered", "Recipients to whom a message was delivered."),
    "deferred": ("deferred", "Attempts after which a recipient is tried again."),
    "failed": ("failed", "Recipients that have failed for good."),
    "expired": ("expired", "Recipients that have failed because their time was over."),
    "notices_failed": ("notices_failed", "Notices of failure."),
    "notices_delayed": ("notices_delayed", "Notices of delay."),
    "notices_relayed": ("notices_relayed", "Notices of success."),
    "notices_refused": ("notices_refused", "Notices that the queue did not take."),
    "unreported": ("unreported", "Failed recipients whose sender wants no notice, or has no address."),
    "lost": ("lost", "Units whose lease was lost, or whose message was removed, while they were delivered."),
    "delivery_errors": ("delivery_errors", "Deliveries that failed unexpectedly."),
}
"""The names of figures that count up, what they are called here (with "fastsmtp_" and "_total" around), and what they count."""

GAUGES: Final = {
    "connections": ("connections_open", "Connections open now."),
    "queue_messages": ("queue_messages", "Messages in the queue."),
    "queue_octets": ("queue_bytes", "Octets of those."),
    "queue_due": ("queue_due", "Units, a message and a destination each, that could be delivered now."),
    "queue_deferred": ("queue_deferred", "Units whose time has not come."),
    "queue_leased": ("queue_leased", "Units that are being delivered."),
    "queue_held": ("queue_held", "Units of held messages."),
    "queue_oldest": ("queue_oldest_age_seconds", "Age of the oldest message in the queue."),
}
"""The names of the other figures, what they are called here (with "fastsmtp_" in front), and what they are."""

_PATIENCE: Final = 10.0  # seconds for a client that says or reads nothing
_REQUESTS: Final = 16  # at a time: more clients than that are turned away
_LOG: Final = logging.getLogger("fastsmtp")


class Metrics:
    """Listens, and answers each request with the counters as they are then, at most a second old.

    Args:
        address: host and port, 0 for a free one.
        board: the counters.
        workers: how many processes they are of.

    Attributes:
        place: the address to look at.

    Raises:
        ConfigurationError: the package is not installed, or the address cannot be listened on.
    """

    def __init__(self, address: tuple[str, int], board: Board, workers: int) -> None:
        if not _INSTALLED:
            raise ConfigurationError("prometheus_client is not installed: pip install 'fastsmtpd[metrics]'")
        host, port = address
        try:
            family, _, _, _, bound = socket.getaddrinfo(
                host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            self._server = _HTTPServer(family, bound)
        except OSError as error:
            reason = error.strerror or error
            raise ConfigurationError(f"cannot serve metrics on {place_of(host, port)}: {reason}") from None
        registry = CollectorRegistry()
        registry.register(_Collector(board, workers))
        self._server.set_app(make_wsgi_app(registry))
        self.place: Final = f"http://{place_of(*self._server.socket.getsockname()[:2])}/metrics"

    def start(self) -> None:
        """Answer in a thread of this process, until `stop`."""
        threading.Thread(target=self._server.serve_forever, name="fastsmtp-metrics", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._server.shutdown()

    def run(self, parent: int) -> int:
        """Answer in a process of its own, until SIGTERM, or the end of the file `parent` says that the parent is gone."""
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        listens()
        self.start()
        select.select([parent], [], [])
        return 0

    def close(self) -> None:
        """Close this process's listening socket."""
        self._server.server_close()


class _Collector:
    """Makes metrics of the counters."""

    def __init__(self, board: Board, workers: int) -> None:
        self._board = board
        self._workers = workers
        self._started = time.time()

    def collect(self) -> Iterator[Metric]:
        """The metrics as they are now."""
        total = self._board.total()
        now = time.time()
        for figure in self._board.figures:
            value: float = total[figure.name]
            if figure.kind is Kind.TOTAL:
                name, text = COUNTERS[figure.name]
                yield CounterMetricFamily(f"fastsmtp_{name}", text, value)
                continue
            name, text = GAUGES[figure.name]
            if figure.kind is Kind.SINCE:
                value = max(0.0, now - value) if value else 0.0
            yield GaugeMetricFamily(f"fastsmtp_{name}", text, value)
        yield GaugeMetricFamily("fastsmtp_workers", "Processes that take mail.", self._workers)
        yield GaugeMetricFamily("fastsmtp_start_time_seconds", "When the server started, in Unix time.", self._started)
        info = GaugeMetricFamily("fastsmtp_build_info", "The running version.", labels=("version", "implementation"))
        info.add_metric((VERSION, IMPLEMENTATION), 1)
        yield info


class _HTTPServer(ThreadingMixIn, WSGIServer):
    """A thread for each request, so that a client that stalls holds up nobody."""

    daemon_threads = True
    block_on_close = False
    request_queue_size = (
        128  # with the usual 5 a crowd makes the kernel drop who comes next, who tries again after a second
    )

    def __init__(self, family: socket.AddressFamily, address: Any) -> None:
        self.address_family = family
        self._room = threading.Semaphore(_REQUESTS)
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """Bind, without looking the address's name up as the standard library does."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "localhost", self.server_address[1]
        self.setup_environ()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Answer in a thread, as long as there are not too many."""
        if self._room.acquire(blocking=False):
            super().process_request(request, client_address)
        else:
            self.shutdown_request(request)

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """What such a thread does."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Somebody hung up, or worse: no traceback for the terminal."""
        _LOG.debug("a request for metrics failed: %s", sys.exception())


class _Handler(WSGIRequestHandler):
    timeout = _PATIENCE

    def log_message(self, format: str, *args: Any) -> None:
        """Log nothing."""
