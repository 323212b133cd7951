"""What a server has done so far, in numbers."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Counters"]


@dataclass
class Counters:
    """Counts since the server was made; plain integers, written by one event loop.

    Attributes:
        connections: open now.
        connections_total: accepted so far, refused ones included.
        messages: messages answered with 2xx (LMTP: for one recipient at least).
        recipients: recipients of those.
        octets: octets of those.
        rejected: MAIL, RCPT and messages answered 4xx or 5xx by a session or a limit.
        errors: hooks that failed with an unexpected exception.
        proxy_failures: connections whose PROXY header was malformed or late.
        tls: connections that came to be under TLS.
        tls_failures: handshakes that failed.
        authenticated: successful authentications.
        auth_failures: failed ones.
    """

    connections: int = 0
    connections_total: int = 0
    messages: int = 0
    recipients: int = 0
    octets: int = 0
    rejected: int = 0
    errors: int = 0
    proxy_failures: int = 0
    tls: int = 0
    tls_failures: int = 0
    authenticated: int = 0
    auth_failures: int = 0
