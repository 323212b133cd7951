"""Every knob of a client, in frozen values that are validated once and can be a key of a pool."""

from __future__ import annotations

import ipaddress
import os
import ssl
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Final, Literal

from .address import is_address_literal, is_domain
from .errors import ConfigurationError

if TYPE_CHECKING:
    from .options import TraceWriter
    from .protocol.requests import Command

__all__ = ["ClientOptions", "Timeouts"]

_SMTP_PORT: Final = 25  # RFC 5321 4.5.4.2
_SUBMISSIONS_PORT: Final = 465  # RFC 8314 section 3.3
_PHASES: Final = {
    "": "greeting",
    "EHLO": "hello",
    "HELO": "hello",
    "LHLO": "hello",
    "MAIL": "mail",
    "RCPT": "rcpt",
    "DATA": "data",
    "BDAT": "block",
    "QUIT": "quit",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Timeouts:
    """How long a client waits in each phase, in seconds; 0 is for ever.  RFC 5321 4.5.3.2 has the minimums.

    The wait for a reply ends with a whole reply only: single octets do not renew it.

    Attributes:
        connect: until the connection stands, names looked up and all addresses tried.
        handshake: a TLS handshake.
        greeting: the server's 220 (4.5.3.2.1).
        hello: the reply to EHLO, LHLO or HELO.
        mail: the reply to MAIL (4.5.3.2.2).
        rcpt: the reply to one RCPT (4.5.3.2.3).
        data: the 354 to DATA (4.5.3.2.4).
        block: the server takes nothing more of what is written (4.5.3.2.5), and the reply to a chunk that is not the last.
        end: the reply to the whole message; in LMTP the reply for one recipient (4.5.3.2.6).
        command: the reply to anything else.
        quit: the reply to QUIT, of which nothing depends any more.
    """

    connect: float = 30.0
    handshake: float = 30.0
    greeting: float = 300.0
    hello: float = 300.0
    mail: float = 300.0
    rcpt: float = 300.0
    data: float = 120.0
    block: float = 180.0
    end: float = 600.0
    command: float = 300.0
    quit: float = 5.0

    def __post_init__(self) -> None:
        for each in fields(self):
            if getattr(self, each.name) < 0:
                raise ConfigurationError(f"the timeout {each.name} is negative")

    def reply_to(self, command: Command) -> float:
        """Seconds for the next reply to this command."""
        seconds: float = getattr(self, "end" if command.last else _PHASES.get(command.verb, "command"))
        return seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientOptions:
    """Where a `Client` connects to, and how; an impossible value raises ConfigurationError.

    Attributes:
        host: name or address of the server.
        port: its port; 0 is 25 for SMTP and 465 with `tls`.  LMTP has none of its own (RFC 2033 section 5).
        unix_socket: the path of a Unix socket, in place of `host` and `port`.
        lmtp: speak LMTP.
        tls: the connection begins with TLS (RFC 8314 section 3.3).
        starttls: "required": no mail without STARTTLS (RFC 3207); "if-offered": TLS where the server has it; "never".
        tls_context: the context of TLS.  Without one, certificates are verified against the system's authorities; but not with
            "if-offered", where who can forge a certificate could as well hide the offer (RFC 7435 section 3).
        server_hostname: the name that the certificate must have; `host` if empty.
        local_hostname: what the client calls itself in EHLO, a domain or an address literal.  If empty that is the machine's
            name if it has a full one, else the address literal of the connection's own end (RFC 5321 4.1.4).
        local_addr: the address and port, 0 for any, that the connection comes from.
        proxy_header: octets that are sent first: a header of `fastsmtp.protocol.proxy`.
        happy_eyeballs_delay: seconds after which the next address of the host is tried too (RFC 8305 section 5).
        chunking: send messages by BDAT if the server offers CHUNKING (RFC 3030).
        pipelining: use PIPELINING if the server offers it (RFC 2920).
        allow_insecure_auth: send passwords and tokens as they are without TLS too.
        timeouts: how long to wait.
        debug: where to write a trace of the connection; passwords and messages are not in it.
    """

    host: str = "localhost"
    port: int = 0
    unix_socket: str | os.PathLike[str] | None = None
    lmtp: bool = False
    tls: bool = False
    starttls: Literal["required", "if-offered", "never"] = "if-offered"
    tls_context: ssl.SSLContext | None = None
    server_hostname: str = ""
    local_hostname: str = ""
    local_addr: tuple[str, int] | None = None
    proxy_header: bytes = b""
    happy_eyeballs_delay: float = 0.25
    chunking: bool = True
    pipelining: bool = True
    allow_insecure_auth: bool = False
    timeouts: Timeouts = field(default_factory=Timeouts)
    debug: TraceWriter | None = None

    def __post_init__(self) -> None:
        if self.starttls not in ("required", "if-offered", "never"):
            raise ConfigurationError(f"starttls is required, if-offered or never, not {self.starttls!r}")
        if self.local_hostname and not (is_domain(self.local_hostname) or is_address_literal(self.local_hostname)):
            raise ConfigurationError(f"local_hostname is no domain name or address literal: {self.local_hostname!r}")
        if self.unix_socket is None:
            if not self.host or "\0" in self.host:
                raise ConfigurationError("host is no name")
            if not 0 <= self.port <= 65535:
                raise ConfigurationError(f"no port: {self.port}")
            if self.lmtp and not self.port:
                raise ConfigurationError("LMTP needs a port")
        if self.local_addr is not None:
            try:
                ipaddress.ip_address(self.local_addr[0])
            except ValueError:
                raise ConfigurationError(f"local_addr is no address: {self.local_addr[0]!r}") from None
        if self.happy_eyeballs_delay < 0:
            raise ConfigurationError("happy_eyeballs_delay is negative")

    @property
    def place(self) -> str:
        """host:port, or the Unix socket's path, for people."""
        if self.unix_socket is not None:
            return os.fspath(self.unix_socket)
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.real_port}"

    @property
    def real_port(self) -> int:
        """The port, with the default put in."""
        return self.port or (_SUBMISSIONS_PORT if self.tls else _SMTP_PORT)

    @property
    def tls_name(self) -> str | None:
        """The name that is asked for in TLS and looked for in the certificate."""
        return self.server_hostname or (self.host if self.unix_socket is None else None)
