"""The next hops of a domain by DNS: MX, its order, null MX, implicit MX (RFC 5321 section 5, RFC 7505).

`DNSResolver` needs dnspython, the extra `mx`.  Anything with the methods of `Resolver` can take its place.
"""

from __future__ import annotations

import asyncio
import ipaddress
import random
import socket
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any, Final, Protocol

from fastsmtp.client_options import ClientOptions
from fastsmtp.dial import interleave, resolve
from fastsmtp.errors import ConfigurationError

from .routes import Hop, Routes, TLSPolicies, TLSPolicy, Unroutable, domain_of, parse_hop

__all__ = ["DNSResolver", "MXAnswer", "MXRoutes", "NoSuchDomain", "Resolver"]

_DEFAULTS: Final = ClientOptions()
_HOSTS: Final = 10  # addresses that are tried in one attempt, RFC 5321 section 5.1: two at least


class NoSuchDomain(Exception):
    """The name does not exist (NXDOMAIN)."""


@dataclass(frozen=True, slots=True)
class MXAnswer:
    """What DNS says of a domain's mail.

    Attributes:
        records: preference and host of each; "" is the root, "." in a zone file.
        authentic: the resolver says that the answer is signed, and is itself to be believed.
    """

    records: Sequence[tuple[int, str]]
    authentic: bool = False


class Resolver(Protocol):
    """What asks DNS."""

    async def mx(self, domain: str) -> MXAnswer:
        """The MX records of a domain, none if it has none.

        Raises:
            NoSuchDomain: there is no such domain.
            OSError: no answer, for now.
        """

    async def addresses(self, host: str) -> Sequence[str]:
        """The addresses of a host in the order of preference, none if it has none.

        Raises:
            OSError: no answer, for now.
        """


class DNSResolver:
    """Asks the servers of the system's configuration for MX, and the system for addresses.

    Args:
        trust_ad: believe a server on another machine that an answer is signed; those on this machine are believed.
        lifetime: seconds for one question.
        resolver: a `dns.asyncresolver.Resolver` of one's own.

    Raises:
        ConfigurationError: dnspython is not installed, or the system has no configuration of DNS.
    """

    def __init__(self, *, trust_ad: bool = False, lifetime: float = 20.0, resolver: Any = None) -> None:
        try:
            import dns.asyncresolver
            import dns.flags
            import dns.resolver
        except ImportError:
            raise ConfigurationError("MX needs dnspython: install fastsmtpd[mx]") from None
        if resolver is None:
            try:
                resolver = dns.asyncresolver.Resolver()
            except dns.resolver.NoResolverConfiguration as error:
                raise ConfigurationError(f"no DNS: {error}") from None
            resolver.cache = dns.resolver.LRUCache(10_000)
            resolver.flags = dns.flags.RD | dns.flags.AD
            resolver.lifetime = lifetime
        self._resolver: Final = resolver
        self._trust_ad: Final = trust_ad

    async def mx(self, domain: str) -> MXAnswer:
        """See `Resolver.mx`."""
        import dns.exception
        import dns.flags
        import dns.name
        import dns.resolver

        try:
            name = dns.name.from_text(f"{domain}.")
        except (dns.exception.DNSException, UnicodeError):  # no name that DNS can have
            raise NoSuchDomain(domain) from None
        try:
            answer = await self._resolver.resolve(name, "MX", raise_on_no_answer=False)
        except dns.resolver.NXDOMAIN:
            raise NoSuchDomain(domain) from None
        except dns.exception.DNSException as error:
            raise OSError(f"no answer of DNS for {domain}: {type(error).__name__}") from error
        records = [] if answer.rrset is None else [(each.preference, _name(each.exchange)) for each in answer.rrset]
        signed = bool(answer.response.flags & dns.flags.AD)
        return MXAnswer(records, signed and (self._trust_ad or _is_loopback(answer.nameserver)))

    async def addresses(self, host: str) -> Sequence[str]:
        """See `Resolver.addresses`."""
        try:
            return [endpoint[0] for _, endpoint in interleave(await resolve(host, 0))]
        except socket.gaierror as error:
            if error.errno in (socket.EAI_NONAME, getattr(socket, "EAI_NODATA", socket.EAI_NONAME)):
                return []
            raise
        except UnicodeError:
            return []


def _name(exchange: Any) -> str:
    return str(exchange.to_text(omit_final_dot=True)).lower().rstrip(".")


def _is_loopback(address: object) -> bool:
    try:
        return ipaddress.ip_address(str(address)).is_loopback
    except ValueError:
        return False


class MXRoutes(Routes):
    """By the domain of the recipient.  The key of a destination is the domain.

    A key that is an address literal goes to that address; one of `FixedRoutes` to that next hop.

    Args:
        domain: our own name.  Where it is among a domain's MX, we and those behind us are not tried (RFC 5321 5.1), and an
            address without a domain belongs to it.
        resolver: what asks DNS; None makes a `DNSResolver`.
        tls: the policies.  With VERIFY a certificate must have the name of the MX host, so that it is worth as much as the answer of DNS.
        families: kinds of addresses that are used, 4 and 6.
        local: use addresses of this machine too; a domain of the world has no business there.
        options: what else is to be known of connections; its host and TLS are not looked at, a port is.
        chance: a random number from 0 to 1.
    """

    def __init__(
        self,
        domain: str,
        *,
        resolver: Resolver | None = None,
        tls: TLSPolicies | TLSPolicy | str = TLSPolicy.MAY,
        families: Collection[int] = (4, 6),
        local: bool = False,
        options: ClientOptions = _DEFAULTS,
        chance: random.Random | None = None,
    ) -> None:
        if not families or not {4, 6}.issuperset(families):
            raise ConfigurationError("families are 4 and 6")
        self._own: Final = domain.lower()
        self._resolver: Final = resolver if resolver is not None else DNSResolver()
        self._policies: Final = tls if isinstance(tls, TLSPolicies) else TLSPolicies(tls)
        self._families: Final = frozenset(families)
        self._local: Final = local
        self._options: Final = options
        self._random: Final = chance if chance is not None else random.Random()

    def destination(self, address: str) -> str:
        return domain_of(address, self._own)

    async def hops(self, destination: str) -> Sequence[Hop]:
        if destination.startswith("["):
            return [self._literal(destination)]
        if ":" in destination:
            return [self._fixed(destination)]
        try:
            answer = await self._resolver.mx(destination)
            if not answer.records:
                answer = MXAnswer([(0, destination)], answer.authentic)
                if destination == self._own:
                    raise Unroutable(554, "5.4.6", f"mail for {destination} loops back to me")
            groups = self._groups(destination, answer)
            return await self._reach(destination, groups, answer.authentic)
        except NoSuchDomain:
            raise Unroutable(550, "5.1.2", f"there is no domain {destination}") from None
        except OSError as error:
            raise Unroutable(451, "4.4.3", f"no answer of DNS for {destination}") from error

    def _groups(self, domain: str, answer: MXAnswer) -> list[list[str]]:
        """The hosts by preference, those of equal preference in random order."""
        if all(not host for _, host in answer.records):
            raise Unroutable(556, "5.1.10", f"{domain} takes no mail (null MX)")  # RFC 7505 section 4.2
        records = sorted(record for record in answer.records if record[1])
        ours = [preference for preference, host in records if host == self._own]
        if ours:
            records = [record for record in records if record[0] < ours[0]]
            if not records:
                raise Unroutable(554, "5.4.6", f"mail for {domain} loops back to me")
        groups = []
        for _, group in groupby(records, key=lambda record: record[0]):
            hosts = list(dict.fromkeys(host for _, host in group))
            self._random.shuffle(hosts)
            groups.append(hosts)
        return groups

    async def _reach(self, domain: str, groups: Iterable[Sequence[str]], authentic: bool) -> list[Hop]:
        """The addresses of the hosts, the families of each in turn."""
        hops: list[Hop] = []
        failure: OSError | None = None
        for hosts in groups:
            if len(hops) >= _HOSTS:
                break
            found = await asyncio.gather(*(self._addresses(host) for host in hosts[:_HOSTS]))
            for host, addresses in zip(hosts, found, strict=False):
                if isinstance(addresses, OSError):
                    failure = addresses
                else:
                    hops += (self._hop(domain, host, address, authentic) for address in addresses)
        if not hops:
            if failure is not None:
                raise failure
            raise Unroutable(550, "5.4.4", f"no host of {domain} has an address")
        return hops[:_HOSTS]

    async def _addresses(self, host: str) -> Sequence[str] | OSError:
        try:
            found = await self._resolver.addresses(host)
        except OSError as error:
            return error
        return [each for each in found if self._is_usable(each)]

    def _is_usable(self, text: str) -> bool:
        address = ipaddress.ip_address(text.partition("%")[0])
        if not self._local and (address.is_loopback or address.is_unspecified or address.is_multicast):
            return False
        return address.version in self._families

    def _hop(self, domain: str, host: str, address: str, authentic: bool = True) -> Hop:
        options = replace(self._options, host=address, server_hostname=host, unix_socket=None, tls=False, lmtp=False)
        return self._policies.hop(options, self._policies[domain], host, authentic)

    def _literal(self, destination: str) -> Hop:
        """The host of an address literal (RFC 5321 4.1.3)."""
        text = destination.strip("[]")
        address = text[5:] if text[:5].lower() == "ipv6:" else text
        try:
            usable = self._is_usable(address)
        except ValueError:
            usable = False
        if not usable:
            raise Unroutable(550, "5.1.2", f"no address that can be reached: {destination}")
        return self._hop(destination, address, address)

    def _fixed(self, destination: str) -> Hop:
        scheme, _, place = destination.partition(":")
        try:
            options = parse_hop(f"{scheme}://{place}", self._options)
            policy = self._policies[options.host]
            if options.tls and policy in (TLSPolicy.NONE, TLSPolicy.MAY):
                policy = TLSPolicy.VERIFY
            return self._policies.hop(options, policy)
        except ConfigurationError:
            raise Unroutable(550, "5.4.4", f"no next hop: {destination}") from None
