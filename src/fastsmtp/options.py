"""Every knob of a server, in one frozen value that is validated once."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal, Protocol

from . import limits
from .address import is_address_literal, is_domain
from .errors import ConfigurationError
from .networks import Networks

if TYPE_CHECKING:
    import logging
    import os
    import ssl

    from .observer import Observer

__all__ = ["ServerOptions", "TraceWriter", "is_solicitation", "split_addr"]

_SOLICITATION: Final = re.compile(r"[A-Za-z][A-Za-z0-9._:-]*+(?:,[A-Za-z][A-Za-z0-9._:-]*+)*+")  # RFC 3865 section 2.2
_NO_SOLICITING: Final = 400  # so that a line with all classes keeps within limits.REPLY_LINE
_PROFILE: Final = re.compile(r"[A-Za-z0-9._-]{0,20}")  # RFC 6710 section 7
_SECONDS: Final = 999_999_999  # RFC 2852 section 2, RFC 4865 section 3


class TraceWriter(Protocol):
    """Whatever takes the debug trace: a text file, `sys.stderr`, a test's `io.StringIO`."""

    def write(self, text: str, /) -> object: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """The options of a `Server`; an impossible value raises ConfigurationError.

    Sizes are in octets, times in seconds, and 0 turns a limit off unless said otherwise.

    Attributes:
        addr: "host:port" to listen on ("[::1]:2525" for IPv6, port 0 picks a free one); "" for no TCP listener.
        unix_socket: path of a Unix socket to listen on, with or instead of `addr`.
        domain: the name that the server calls itself (RFC 5321 4.1.1.1).
        greeting: the words after the domain in the 220 greeting; "ESMTP ready" or "LMTP ready" if empty.
        lmtp: speak LMTP (RFC 2033) instead of SMTP.
        strict: refuse what RFC 5321 forbids and the world sends all the same: blanks around a path, underscores in HELO's
            name, 8-bit text that was not announced (RFC 6152), NUL and lines of more than 1000 octets in a message.
        smtputf8: offer SMTPUTF8 (RFC 6531).
        chunking: offer CHUNKING and its verb BDAT (RFC 3030).
        binarymime: offer BINARYMIME (RFC 3030), with `chunking` only.
        dsn: offer DSN (RFC 3461).
        requiretls: offer REQUIRETLS (RFC 8689), under TLS only.
        deliverby: offer DELIVERBY (RFC 2852) with this minimum of seconds for mode R, 0 for no minimum; None: off.
        mt_priority: offer MT-PRIORITY (RFC 6710) with this profile's name, "" for no name; None: off.
        rrvs: offer RRVS (RFC 7293).
        future_release: offer FUTURERELEASE (RFC 4865) for so many seconds at most.
        no_soliciting: offer NO-SOLICITING (RFC 3865) and refuse mail of these classes, "a,b", "" for none; None: off.
        advertise_limits: offer LIMITS (RFC 9422) with `max_recipients`.
        advertise_help: show HELP in EHLO; the verb is always there.
        vrfy: show VRFY in EHLO (RFC 5321 3.5.2).
        expn: show EXPN in EHLO (RFC 5321 3.5.2).
        etrn: show ETRN in EHLO (RFC 1985).
        tls: the context of TLS, or what gives the current one for each connection; None: no TLS (RFC 3207).
        implicit_tls: the listeners of `addr` and `unix_socket` begin with TLS (RFC 8314 section 3.3) instead of STARTTLS.
        require_tls: 530 to whatever comes before TLS (RFC 3207 section 4).
        handshake_timeout: a TLS handshake.
        allow_insecure_auth: offer AUTH in plaintext too.
        disable_auth: never offer AUTH.
        max_auth_failures: failed authentications of one connection before 421.
        auth_failure_delay: waiting before a failed authentication is answered, doubled with each.
        allow_xforward: networks whose peers may say XFORWARD, such as "192.0.2.0/24", or "unix"; True: loopback and Unix
            sockets.
        allow_xclient: the same for XCLIENT.
        proxy_from: the same for peers that begin with a PROXY header; they must.
        bare_newlines: a CR or LF alone within a message is refused with 550 ("reject"), made CR LF ("normalize") or
            kept as it is ("keep").  In no case does it end a line of the protocol.
        max_message_bytes: largest message, announced by SIZE (RFC 1870).
        max_recipients: recipients of one message; more get 452 4.5.3 (RFC 5321 4.5.3.1.10).
        max_errors: refused commands of one connection before 421.
        max_connections: connections at one time; more get 421.
        max_connections_per_address: the same of one client address.
        max_connection_rate: connections of one client address within a minute; more get 421.
        greeting_delay: waiting before the greeting; who talks before it is turned away with 554.
        error_delay: waiting before refused commands are answered (a tarpit).
        read_timeout: waiting for a command, and silence within a message.
        write_timeout: a peer that does not take its replies.
        hook_timeout: a session hook that does not return.
        min_body_rate: octets per second below which a message's sender is cut after `read_timeout`.
        backlog: connections that the kernel may hold for us.
        debug: where to write a trace of each connection, for debugging.
        observer: is told what happens.
        error_logger: what logs unexpected errors; "fastsmtp" by default.
    """

    addr: str = "127.0.0.1:8025"
    unix_socket: str | os.PathLike[str] | None = None
    domain: str = "localhost"
    greeting: str = ""
    lmtp: bool = False
    strict: bool = False
    smtputf8: bool = True
    chunking: bool = True
    binarymime: bool = True
    dsn: bool = False
    requiretls: bool = False
    deliverby: int | None = None
    mt_priority: str | None = None
    rrvs: bool = False
    future_release: int = 0
    no_soliciting: str | None = None
    advertise_limits: bool = False
    advertise_help: bool = False
    vrfy: bool = False
    expn: bool = False
    etrn: bool = False
    tls: ssl.SSLContext | Callable[[], ssl.SSLContext] | None = None
    implicit_tls: bool = False
    require_tls: bool = False
    handshake_timeout: float = limits.HANDSHAKE_TIMEOUT
    allow_insecure_auth: bool = False
    disable_auth: bool = False
    max_auth_failures: int = limits.AUTH_FAILURES
    auth_failure_delay: float = 1.0
    allow_xforward: bool | Sequence[str] = False
    allow_xclient: bool | Sequence[str] = False
    proxy_from: bool | Sequence[str] = False
    bare_newlines: Literal["reject", "normalize", "keep"] = "reject"
    max_message_bytes: int = limits.MESSAGE_BYTES
    max_recipients: int = limits.RECIPIENTS
    max_errors: int = limits.ERRORS
    max_connections: int = limits.CONNECTIONS
    max_connections_per_address: int = limits.CONNECTIONS_PER_ADDRESS
    max_connection_rate: int = 0
    greeting_delay: float = 0.0
    error_delay: float = 0.0
    read_timeout: float = limits.READ_TIMEOUT
    write_timeout: float = limits.WRITE_TIMEOUT
    hook_timeout: float = limits.HOOK_TIMEOUT
    min_body_rate: int = limits.MIN_BODY_RATE
    backlog: int = 1024
    debug: TraceWriter | None = None
    observer: Observer | None = None
    error_logger: logging.Logger | None = None

    def __post_init__(self) -> None:
        if not (is_domain(self.domain) or is_address_literal(self.domain)):
            raise ConfigurationError(f"domain is no domain name or address literal: {self.domain!r}")
        if self.bare_newlines not in ("reject", "normalize", "keep"):
            raise ConfigurationError(f"bare_newlines is reject, normalize or keep, not {self.bare_newlines!r}")
        for name in (
            "max_message_bytes",
            "max_recipients",
            "max_errors",
            "max_connections",
            "max_connections_per_address",
            "max_connection_rate",
            "greeting_delay",
            "error_delay",
            "min_body_rate",
            "read_timeout",
            "write_timeout",
            "hook_timeout",
            "handshake_timeout",
            "max_auth_failures",
            "auth_failure_delay",
        ):
            if getattr(self, name) < 0:
                raise ConfigurationError(f"{name} is negative")
        if self.deliverby is not None and not 0 <= self.deliverby <= _SECONDS:
            raise ConfigurationError(f"deliverby is not within 0 and {_SECONDS}")
        if not 0 <= self.future_release <= _SECONDS:
            raise ConfigurationError(f"future_release is not within 0 and {_SECONDS}")
        if self.mt_priority is not None and _PROFILE.fullmatch(self.mt_priority) is None:
            raise ConfigurationError(f"mt_priority is no name of a profile: {self.mt_priority!r}")
        if self.no_soliciting and (len(self.no_soliciting) > _NO_SOLICITING or not is_solicitation(self.no_soliciting)):
            raise ConfigurationError(f"no_soliciting is no list of solicitation classes: {self.no_soliciting!r}")
        if self.tls is None and (self.implicit_tls or self.require_tls):
            raise ConfigurationError("implicit_tls and require_tls need tls")
        for name in ("allow_xforward", "allow_xclient", "proxy_from"):
            Networks(getattr(self, name))
        if self.backlog < 1:
            raise ConfigurationError("backlog is less than 1")
        if self.addr:
            split_addr(self.addr)


def is_solicitation(text: str) -> bool:
    """Tell whether `text` is a list of solicitation class keywords, separated by commas (RFC 3865 section 2.2)."""
    return _SOLICITATION.fullmatch(text) is not None


def split_addr(addr: str) -> tuple[str, int]:
    """ "host:port" as (host, port); the host may be empty (all interfaces) or bracketed IPv6.

    Raises:
        ConfigurationError: no colon, or no port number.
    """
    host, colon, port = addr.rpartition(":")
    if not colon or not (port.isascii() and port.isdigit()) or int(port) > 65535:
        raise ConfigurationError(f"no host:port: {addr!r}")
    if host.startswith("[") and host.endswith("]"):
        host = host[1:-1]
    elif ":" in host:
        raise ConfigurationError(f"an IPv6 address goes in brackets: {addr!r}")
    return host, int(port)
