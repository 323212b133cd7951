"""Where messages go: fixed next hops, MX and its order, the TLS of each."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

import dns.asyncresolver
import dns.exception
import dns.flags
import dns.message
import dns.name
import dns.rdataclass
import dns.rdatatype
import dns.resolver
import pytest

from fastsmtp import ConfigurationError
from fastsmtp.client_options import ClientOptions
from fastsmtp.delivery.mx import DNSResolver, MXAnswer, MXRoutes, NoSuchDomain
from fastsmtp.delivery.routes import FixedRoutes, Hop, TLSPolicies, TLSPolicy, Unroutable, domain_of

TIMEOUT = OSError("no answer")


class Zone:
    """A resolver that knows what it is told.

    Args:
        mx: preferences and hosts by domain; or what asking for it raises.
        hosts: addresses; or what asking for them raises.
        signed: domains whose answers are authentic.
    """

    def __init__(
        self,
        mx: Mapping[str, Sequence[tuple[int, str]] | Exception],
        hosts: Mapping[str, Sequence[str] | OSError],
        signed: Sequence[str] = (),
    ) -> None:
        self._mx = mx
        self._hosts = hosts
        self._signed = signed

    async def mx(self, domain: str) -> MXAnswer:
        found = self._mx.get(domain, ())
        if isinstance(found, Exception):
            raise found
        return MXAnswer(found, domain in self._signed)

    async def addresses(self, host: str) -> Sequence[str]:
        found = self._hosts.get(host, ())
        if isinstance(found, OSError):
            raise found
        return found


def route(zone: Zone, domain: str, **options: Any) -> list[Hop]:
    routes = MXRoutes("me.example", resolver=zone, **options)

    async def main() -> list[Hop]:
        return [*await routes.hops(domain)]

    return asyncio.run(main())


def places(zone: Zone, domain: str, **options: Any) -> list[str]:
    """Names and addresses, in their order."""
    return [f"{hop.name} {hop.options.host}" for hop in route(zone, domain, **options)]


def refusal(zone: Zone, domain: str, **options: Any) -> str:
    with pytest.raises(Unroutable) as caught:
        route(zone, domain, **options)
    return f"{caught.value.code} {caught.value.enhanced_code}"


# Fixed next hops


@pytest.mark.parametrize(
    ("url", "place", "fields"),
    [
        ("smtp://relay.example", "relay.example:25", {"lmtp": False, "tls": False, "starttls": "if-offered"}),
        ("smtp://relay.example:587", "relay.example:587", {}),
        ("SMTP://Relay.example/", "relay.example:25", {}),
        ("smtp://192.0.2.1:26", "192.0.2.1:26", {}),
        ("smtp://[2001:db8::1]:26", "[2001:db8::1]:26", {}),
        ("smtps://relay.example", "relay.example:465", {"tls": True, "tls_context": None}),
        ("lmtp://store.example:24", "store.example:24", {"lmtp": True, "starttls": "if-offered"}),
        ("lmtp+unix:///run/lmtp%20x", "/run/lmtp x", {"lmtp": True, "unix_socket": "/run/lmtp x"}),
    ],
)
def test_fixed_next_hops(url: str, place: str, fields: dict[str, Any]) -> None:
    routes = FixedRoutes(url, options=ClientOptions(local_hostname="me.example", tls=True, unix_socket="/else"))
    (hop,) = asyncio.run(_hops(routes, "whatever key"))
    assert hop.options.place == hop.name == place
    assert hop.authentic and hop.options.local_hostname == "me.example"
    for name, value in fields.items():
        assert getattr(hop.options, name) == value
    key = routes.destination("a@x.example")
    assert key == routes.destination("postmaster") and key.isprintable()


async def _hops(routes: FixedRoutes | MXRoutes, key: str) -> Sequence[Hop]:
    return await routes.hops(key)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "relay.example",
        "http://relay.example",
        "smtp://",
        "smtp:relay.example",
        "smtp://a:b@relay.example",
        "smtp://a@b",
    ]
    + [
        "lmtp://store.example",
        "lmtp+unix://",
        "smtp://relay.example/path",
        "smtp://relay.example?x",
        "smtp://relay:99999",
    ]
    + ["mx:", "smtp://relay.example:x", "smtp://[::1"],
)
def test_what_is_no_next_hop(url: str) -> None:
    with pytest.raises(ConfigurationError):
        FixedRoutes(url)


# TLS


def test_policies() -> None:
    verifying = ssl.create_default_context()
    for policy, starttls, context in [
        ("none", "never", None),
        ("may", "if-offered", None),
        ("encrypt", "required", "blind"),
        ("verify", "required", verifying),
    ]:
        hop = asyncio.run(_hops(FixedRoutes("smtp://relay.example", tls=policy, context=verifying), ""))[0]
        assert hop.tls == policy and hop.options.starttls == starttls
        if context == "blind":
            assert hop.options.tls_context is not None and hop.options.tls_context.verify_mode == ssl.CERT_NONE
        else:
            assert hop.options.tls_context is context
        assert hop.verified.starttls == "required" and hop.verified.tls_context is verifying
        assert (hop.plain is not None) == (policy == "may")
    assert hop.verified is hop.verified  # one key of the pool


def test_implicit_tls() -> None:
    (hop,) = asyncio.run(_hops(FixedRoutes("smtps://relay.example"), ""))
    assert hop.tls is TLSPolicy.VERIFY and hop.options.tls and hop.plain is None
    for policy in ("may", "encrypt"):
        (hop,) = asyncio.run(_hops(FixedRoutes("smtps://relay.example", tls=policy), ""))
        assert hop.options.tls_context is not None and hop.options.tls_context.verify_mode == ssl.CERT_NONE
        assert hop.plain is None and hop.verified.tls_context is None
    with pytest.raises(ConfigurationError, match="without TLS"):
        FixedRoutes("smtps://relay.example", tls="none")


def test_policies_by_domain() -> None:
    policies = TLSPolicies("may", {"x.example": "verify", ".x.example": "encrypt", ".deep.x.example": "none"})
    expected = {
        "x.example": "verify",
        "X.Example": "verify",
        "a.x.example": "encrypt",
        "a.b.x.example": "encrypt",
        "a.deep.x.example": "none",
        "deep.x.example": "encrypt",
        "ax.example": "may",
        "example": "may",
    }
    assert {domain: str(policies[domain]) for domain in expected} == expected
    zone = Zone({}, {"x.example": ["192.0.2.1"], "y.example": ["192.0.2.1"]})
    assert [route(zone, name, tls=policies)[0].tls for name in ("x.example", "y.example")] == ["verify", "may"]


def test_impossible_policies() -> None:
    blind = ssl.create_default_context()
    blind.check_hostname = False
    for make in (
        lambda: TLSPolicies("perhaps"),
        lambda: TLSPolicies("may", {"x": "perhaps"}),
        lambda: TLSPolicies("verify", context=blind),
        lambda: MXRoutes("me.example", resolver=Zone({}, {}), families=(4, 5)),
        lambda: MXRoutes("me.example", resolver=Zone({}, {}), families=()),
    ):
        with pytest.raises(ConfigurationError):
            make()


# MX


def test_order_of_preference() -> None:
    zone = Zone(
        {"x.example": [(20, "far.example"), (5, "near.example"), (10, "middle.example")]},
        {"near.example": ["192.0.2.1"], "middle.example": ["192.0.2.2"], "far.example": ["192.0.2.3"]},
    )
    found = places(zone, "x.example")
    assert found == ["near.example 192.0.2.1", "middle.example 192.0.2.2", "far.example 192.0.2.3"]
    (hop, *_) = route(zone, "x.example")
    assert (hop.options.server_hostname, hop.options.real_port, hop.authentic) == ("near.example", 25, False)


def test_equal_preferences_in_random_order() -> None:
    hosts = {f"{name}.example": [f"192.0.2.{number}"] for number, name in enumerate("abcd", 1)}
    zone = Zone(
        {"x.example": [(10, name) for name in hosts] + [(5, "first.example")]}, hosts | {"first.example": ["192.0.2.9"]}
    )
    orders = {tuple(places(zone, "x.example", chance=random.Random(seed))) for seed in range(40)}
    assert len(orders) > 10
    for order in orders:
        assert order[0] == "first.example 192.0.2.9" and len(set(order)) == 5


def test_families() -> None:
    zone = Zone(
        {"x.example": [(1, "a.example"), (2, "b.example")]},
        {"a.example": ["2001:db8::1", "192.0.2.1"], "b.example": ["2001:db8::2"]},
    )
    assert places(zone, "x.example") == ["a.example 2001:db8::1", "a.example 192.0.2.1", "b.example 2001:db8::2"]
    assert places(zone, "x.example", families=(4,)) == ["a.example 192.0.2.1"]
    assert places(zone, "x.example", families=(6,)) == ["a.example 2001:db8::1", "b.example 2001:db8::2"]


def test_a_bounded_number_of_addresses() -> None:
    zone = Zone(
        {"x.example": [(each, f"{each}.example") for each in range(100)]},
        {f"{each}.example": ["192.0.2.1", "192.0.2.2"] for each in range(100)},
    )
    assert len(route(zone, "x.example")) == 10


def test_implicit_mx() -> None:
    zone = Zone({}, {"x.example": ["192.0.2.1"]})
    assert places(zone, "x.example") == ["x.example 192.0.2.1"]
    assert refusal(zone, "y.example") == "550 5.4.4"


def test_null_mx() -> None:
    zone = Zone(
        {"x.example": [(0, "")], "y.example": [(0, ""), (10, "a.example")]},
        {"x.example": ["192.0.2.1"], "a.example": ["192.0.2.2"]},
    )
    assert refusal(zone, "x.example") == "556 5.1.10"
    assert places(zone, "y.example") == ["a.example 192.0.2.2"]  # no null MX by RFC 7505 section 3


def test_no_such_domain_and_no_answer() -> None:
    zone = Zone({"no.example": NoSuchDomain(), "down.example": TIMEOUT}, {})
    assert refusal(zone, "no.example") == "550 5.1.2"
    assert refusal(zone, "down.example") == "451 4.4.3"


def test_hosts_without_addresses() -> None:
    mx = {"x.example": [(1, "a.example"), (2, "b.example")]}
    assert places(Zone(mx, {"a.example": TIMEOUT, "b.example": ["192.0.2.2"]}), "x.example") == ["b.example 192.0.2.2"]
    assert refusal(Zone(mx, {"a.example": TIMEOUT}), "x.example") == "451 4.4.3"
    assert refusal(Zone(mx, {}), "x.example") == "550 5.4.4"


def test_mail_for_us() -> None:
    hosts = {name: ["192.0.2.1"] for name in ("near.example", "me.example", "far.example")}
    zone = Zone(
        {
            "x.example": [(5, "near.example"), (10, "me.example"), (10, "far.example"), (20, "far.example")],
            "y.example": [(5, "me.example"), (20, "far.example")],
        },
        hosts,
    )
    assert places(zone, "x.example") == ["near.example 192.0.2.1"]
    assert refusal(zone, "y.example") == "554 5.4.6"
    assert refusal(zone, "me.example") == "554 5.4.6"


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "0.0.0.0", "::", "224.0.0.1"])
def test_no_address_of_this_machine(address: str) -> None:
    zone = Zone({}, {"x.example": [address]})
    assert refusal(zone, "x.example") == "550 5.4.4"
    assert places(zone, "x.example", local=True) == [f"x.example {address}"]


@pytest.mark.parametrize(
    ("literal", "address"),
    [("[192.0.2.1]", "192.0.2.1"), ("[IPv6:2001:db8::1]", "2001:db8::1"), ("[ipv6:2001:db8::1]", "2001:db8::1")],
)
def test_address_literals(literal: str, address: str) -> None:
    routes = MXRoutes("me.example", resolver=Zone({}, {}))
    assert routes.destination(f"a@{literal}") == literal.lower()
    assert places(Zone({}, {}), literal) == [f"{address} {address}"]


@pytest.mark.parametrize("literal", ["[127.0.0.1]", "[x:y]", "[]", "[300.0.0.1]"])
def test_impossible_literals(literal: str) -> None:
    assert refusal(Zone({}, {}), literal) == "550 5.1.2"


def test_what_was_queued_for_a_fixed_next_hop_goes_there() -> None:
    for url in (
        "smtp://relay.example:26",
        "smtps://relay.example:466",
        "lmtp://store.example:24",
        "lmtp+unix:///run/lmtp",
    ):
        fixed = FixedRoutes(url)
        key = fixed.destination("a@x.example")
        (hop,) = route(Zone({}, {}), key)
        assert hop.options == asyncio.run(_hops(fixed, key))[0].options
        (hop,) = route(Zone({}, {}), key, tls="none")
        assert hop.tls is (TLSPolicy.VERIFY if "smtps" in url else TLSPolicy.NONE)
    assert refusal(Zone({}, {}), "gopher:relay.example") == "550 5.4.4"


def test_authentic_answers() -> None:
    zone = Zone({}, {"x.example": ["192.0.2.1"], "y.example": ["192.0.2.1"]}, signed=["x.example"])
    assert [route(zone, name)[0].authentic for name in ("x.example", "y.example")] == [True, False]


@pytest.mark.parametrize(
    ("address", "domain"),
    [
        ("a@X.Example", "x.example"),
        ("a@x.example.", "x.example"),
        ('"a@b"@x.example', "x.example"),
        ("postmaster", "me.example"),
        ("a@bücher.example", "xn--bcher-kva.example"),
        ("a@" + "ü" * 70, "ü" * 70),
        ('"unended', "me.example"),
    ],
)
def test_domains(address: str, domain: str) -> None:
    assert domain_of(address, "me.example") == domain


# dnspython


class Answers:
    """In place of a `dns.asyncresolver.Resolver`: an answer in DNS's own text, or an error."""

    def __init__(self, text: str | Exception, nameserver: str = "127.0.0.53") -> None:
        self._text = text
        self._nameserver = nameserver
        self.asked: list[tuple[Any, ...]] = []

    async def resolve(self, name: dns.name.Name, kind: str, raise_on_no_answer: bool) -> Any:
        self.asked.append((name.to_text(), kind, raise_on_no_answer))
        if isinstance(self._text, Exception):
            raise self._text
        response: Any = dns.message.from_text(self._text)
        rdatatype, rdataclass = dns.rdatatype.from_text(kind), dns.rdataclass.IN
        return dns.resolver.Answer(
            name,
            rdatatype,
            rdataclass,
            response,
            nameserver=self._nameserver,
        )


MESSAGE = "id 1\nopcode QUERY\nrcode NOERROR\nflags QR RD RA{flags}\n;QUESTION\nx.example. IN MX\n;ANSWER\n{answer}\n"
MX = "x.example. 300 IN MX 10 A.example.\nx.example. 300 IN MX 5 b.example."


def ask(answers: Answers, **options: Any) -> MXAnswer:
    async def main() -> MXAnswer:
        return await DNSResolver(resolver=answers, **options).mx("x.example")

    return asyncio.run(main())


def test_answers_of_dns() -> None:
    answers = Answers(MESSAGE.format(flags="", answer=MX))
    answer = ask(answers)
    assert sorted(answer.records) == [(5, "b.example"), (10, "a.example")] and not answer.authentic
    assert answers.asked == [("x.example.", "MX", False)]
    assert ask(Answers(MESSAGE.format(flags="", answer="x.example. 300 IN MX 0 ."))).records == [(0, "")]
    assert ask(Answers(MESSAGE.format(flags="", answer=""))).records == []


@pytest.mark.parametrize(
    ("flags", "nameserver", "trust", "authentic"),
    [
        (" AD", "127.0.0.53", False, True),
        (" AD", "::1", False, True),
        (" AD", "192.0.2.53", False, False),
        (" AD", "192.0.2.53", True, True),
        (" AD", "https://dns.example/", False, False),
        ("", "127.0.0.53", True, False),
    ],
)
def test_who_is_believed_that_an_answer_is_signed(flags: str, nameserver: str, trust: bool, authentic: bool) -> None:
    answers = Answers(MESSAGE.format(flags=flags, answer=MX), nameserver)
    assert ask(answers, trust_ad=trust).authentic is authentic


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (dns.resolver.NXDOMAIN, NoSuchDomain),
        (dns.resolver.LifetimeTimeout, OSError),
        (dns.resolver.NoNameservers, OSError),
        (dns.exception.DNSException, OSError),
    ],
)
def test_errors_of_dns(error: Any, kind: type[Exception]) -> None:
    fields = {"timeout": 1, "errors": []} if error is dns.resolver.LifetimeTimeout else {}
    with pytest.raises(kind):
        ask(Answers(error(**fields)))


@pytest.mark.parametrize("domain", ["a..b", "x" * 64 + ".example", ".".join(["x" * 60] * 5), "ü" * 70])
def test_names_that_dns_cannot_have(domain: str) -> None:
    async def main() -> None:
        resolver = dns.asyncresolver.Resolver(configure=False)
        resolver.nameservers = ["127.0.0.1"]
        with pytest.raises(NoSuchDomain):
            await DNSResolver(resolver=resolver).mx(domain)

    asyncio.run(main())


def test_addresses_of_the_system() -> None:
    async def main() -> None:
        resolver = DNSResolver(resolver=Answers(""))
        assert "127.0.0.1" in await resolver.addresses("localhost")
        assert await resolver.addresses("192.0.2.1") == ["192.0.2.1"]
        assert await resolver.addresses("x" * 64 + ".example") == []

    asyncio.run(main())


def test_without_dnspython(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "dns.asyncresolver", None)
    with pytest.raises(ConfigurationError, match=r"fastsmtpd\[mx\]"):
        MXRoutes("me.example")


def test_a_resolver_of_its_own(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    configuration = tmp_path / "resolv.conf"
    configuration.write_text("nameserver 127.0.0.1\n")
    make = dns.asyncresolver.Resolver
    monkeypatch.setattr(dns.asyncresolver, "Resolver", lambda: make(filename=str(configuration)))
    resolver = DNSResolver(lifetime=7)._resolver
    assert resolver.lifetime == 7 and resolver.flags & dns.flags.AD

    def missing() -> Any:
        raise dns.resolver.NoResolverConfiguration

    monkeypatch.setattr(dns.asyncresolver, "Resolver", missing)
    with pytest.raises(ConfigurationError, match="no DNS"):
        DNSResolver()
