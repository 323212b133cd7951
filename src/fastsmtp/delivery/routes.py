"""The next hop: one that is given, or what DNS says (RFC 5321 section 5), and the TLS that it needs.

smtp://HOST[:PORT]  smtps://HOST[:PORT]  lmtp://HOST:PORT  lmtp+unix://PATH       one next hop for all: `FixedRoutes`
mx:                                                                               by domain: `MXRoutes`, in `fastsmtp.delivery.mx`
"""

from __future__ import annotations

import ssl
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from types import MappingProxyType
from typing import Final
from urllib.parse import unquote, urlsplit

from fastsmtp.address import AddressError, split_mailbox
from fastsmtp.client_options import ClientOptions
from fastsmtp.errors import ConfigurationError
from fastsmtp.reply import EnhancedCode, SMTPError

__all__ = ["FixedRoutes", "Hop", "Routes", "TLSPolicies", "TLSPolicy", "Unroutable", "domain_of", "parse_hop"]

_NO_POLICIES: Final[Mapping[str, TLSPolicy]] = MappingProxyType({})
_DEFAULTS: Final = ClientOptions()


class TLSPolicy(StrEnum):
    """What TLS a next hop needs.

    NONE never uses it.  MAY uses it where it is offered, and delivers in plaintext when the handshake fails (RFC 7435).  ENCRYPT
    needs it with whatever certificate.  VERIFY needs a certificate that is trusted and has the name of the host.
    """

    NONE = "none"
    MAY = "may"
    ENCRYPT = "encrypt"
    VERIFY = "verify"


class Unroutable(SMTPError):
    """There is no next hop: for now (4xx), or for good (5xx)."""

    def __init__(self, code: int, status: str, message: str) -> None:
        super().__init__(code, EnhancedCode.parse(status) or EnhancedCode.NOT_SET, message)


@dataclass(frozen=True)
class Hop:
    """One host to try.

    Attributes:
        options: how to reach it, with the TLS that its policy asks for.
        tls: the policy.
        name: the host, for logs and notices.
        authentic: its name did not come from an answer of DNS that anybody could have forged, as REQUIRETLS needs it (RFC 8689
            section 4.2.1).
        context: the TLS context that verifies certificates; None is the system's authorities.
    """

    options: ClientOptions
    tls: TLSPolicy
    name: str
    authentic: bool = True
    context: ssl.SSLContext | None = None

    @cached_property
    def plain(self) -> ClientOptions | None:
        """How to reach it when the handshake failed; None: not at all."""
        if self.tls is not TLSPolicy.MAY or self.options.tls:
            return None
        return replace(self.options, starttls="never")

    @cached_property
    def verified(self) -> ClientOptions:
        """How to reach it for a message that needs TLS with a known host, whatever the policy (RFC 8689)."""
        if self.options.tls:
            return replace(self.options, tls_context=self.context)
        return replace(self.options, starttls="required", tls_context=self.context)


class TLSPolicies:
    """The policy of each destination, put into options.

    Args:
        default: for those without one of their own.
        by_domain: for a domain, or with a dot before it, for the domains below it; the longest that fits counts.
        context: what verifies certificates; None is the system's authorities.
    """

    def __init__(
        self,
        default: TLSPolicy | str = TLSPolicy.MAY,
        by_domain: Mapping[str, TLSPolicy | str] = _NO_POLICIES,
        context: ssl.SSLContext | None = None,
    ) -> None:
        if context is not None and (context.verify_mode != ssl.CERT_REQUIRED or not context.check_hostname):
            raise ConfigurationError("the TLS context does not verify certificates and their names")
        try:
            self.default: Final = TLSPolicy(default)
            self._by_domain: Final = {name.lower(): TLSPolicy(each) for name, each in by_domain.items()}
        except ValueError as error:
            raise ConfigurationError(f"no TLS policy: {error}") from None
        self.context: Final = context

    def __getitem__(self, domain: str) -> TLSPolicy:
        name = domain.lower()
        found = self._by_domain.get(name)
        while found is None and name:
            name = name.partition(".")[2]
            found = self._by_domain.get(f".{name}")
        return found or self.default

    def hop(self, options: ClientOptions, policy: TLSPolicy, name: str = "", authentic: bool = True) -> Hop:
        """A host to try, by a policy.

        Raises:
            ConfigurationError: the policy is NONE, and the host is reached by TLS only.
        """
        if policy is TLSPolicy.NONE:
            if options.tls:
                raise ConfigurationError("smtps without TLS")
            options = replace(options, starttls="never")
        elif policy is TLSPolicy.MAY:
            options = replace(options, starttls="if-offered", tls_context=self._blind if options.tls else None)
        elif policy is TLSPolicy.ENCRYPT:
            options = replace(options, starttls="required", tls_context=self._blind)
        else:
            options = replace(options, starttls="required", tls_context=self.context)
        return Hop(options, policy, name or options.place, authentic, self.context)

    @cached_property
    def _blind(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.minimum_version = ssl.TLSVersion.TLSv1_2  # RFC 8996
        return context


class Routes(ABC):
    """Where messages go: the key of a recipient's destination in the queue, and the hosts behind a key."""

    @abstractmethod
    def destination(self, address: str) -> str:
        """The destination of a forward-path: `Target.destination` for whoever puts a message."""

    @abstractmethod
    async def hops(self, destination: str) -> Sequence[Hop]:
        """The hosts to try, in their order.

        Raises:
            Unroutable: none.
        """


class FixedRoutes(Routes):
    """One next hop for everything, whatever key it was queued with.

    Args:
        url: see the top of this file.
        tls: the policy; None is VERIFY for smtps, else MAY.
        options: what else is to be known of connections; its host, port and TLS are not looked at.
        context: what verifies certificates; None is the system's authorities.

    Raises:
        ConfigurationError: the URL is none of these.
    """

    def __init__(
        self,
        url: str,
        *,
        tls: TLSPolicy | str | None = None,
        options: ClientOptions = _DEFAULTS,
        context: ssl.SSLContext | None = None,
    ) -> None:
        parsed = parse_hop(url, options)
        policies = TLSPolicies(tls or (TLSPolicy.VERIFY if parsed.tls else TLSPolicy.MAY), context=context)
        self._hop: Final = policies.hop(parsed, policies.default)
        self._key: Final = f"{urlsplit(url).scheme}:{parsed.place}"

    def destination(self, address: str) -> str:
        return self._key

    async def hops(self, destination: str) -> Sequence[Hop]:
        return (self._hop,)


def parse_hop(url: str, options: ClientOptions = _DEFAULTS) -> ClientOptions:
    """How to connect to a next hop; what its URL does not say is taken from `options`.

    Raises:
        ConfigurationError: it is none of smtp://HOST[:PORT], smtps://HOST[:PORT], lmtp://HOST:PORT and lmtp+unix://PATH.
    """
    try:
        parts = urlsplit(url)
        port = parts.port or 0
    except ValueError:
        raise ConfigurationError(f"not a next hop: {url!r}") from None
    if parts.scheme not in ("smtp", "smtps", "lmtp", "lmtp+unix") or parts.query or parts.fragment:
        raise ConfigurationError(f"a next hop is smtp:, smtps:, lmtp: or lmtp+unix:, not {url!r}")
    if parts.username is not None or parts.password is not None:
        raise ConfigurationError("a next hop's URL has no user")
    if parts.scheme == "lmtp+unix":
        path = unquote(parts.netloc + parts.path)
        if not path:
            raise ConfigurationError(f"no path of a Unix socket: {url!r}")
        return replace(options, unix_socket=path, lmtp=True, tls=False)
    if not parts.hostname or parts.path not in ("", "/"):
        raise ConfigurationError(f"no host: {url!r}")
    return replace(
        options,
        host=parts.hostname,
        port=port,
        unix_socket=None,
        lmtp=parts.scheme == "lmtp",
        tls=parts.scheme == "smtps",
    )


def domain_of(address: str, default: str) -> str:
    """The domain of a mailbox in lower case, as DNS has it (RFC 5890); `default` for one without."""
    try:
        domain = split_mailbox(address)[1].lower().rstrip(".")
    except AddressError:
        domain = ""
    if not domain.isascii():
        try:
            domain = domain.encode("idna").decode("ascii")
        except UnicodeError:
            return domain  # nobody has it, which DNS will say
    return domain or default
