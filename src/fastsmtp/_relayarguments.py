"""What ``fastsmtp relay`` takes beside what ``serve`` does, and what of it contradicts itself."""

from __future__ import annotations

import argparse
import ipaddress
import re
from collections.abc import Sequence
from typing import Any, Final

from ._arguments import Given, add_behaviour, add_places, contradiction, networks, number

__all__ = ["DEFAULT_QUEUE", "POLICIES", "add_relay_arguments", "queue_place", "relay_contradiction"]

DEFAULT_QUEUE: Final = "sqlite:./queue"
POLICIES: Final = ("none", "may", "encrypt", "verify")

_UNITS: Final = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION: Final = re.compile(r"([0-9]++(?:\.[0-9]*+)?)([smhd]?)")
_QUEUED_ONLY: Final = (
    "retry_first",
    "retry_longest",
    "lifetime",
    "delay_notice",
    "per_destination",
    "lease",
    "queue_max_messages",
    "queue_max_octets",
    "queue_min_free",
)
_SQLITE_ONLY: Final = ("queue_min_free",)


def _duration(text: str) -> float:
    match = _DURATION.fullmatch(text)
    if match is None:
        raise argparse.ArgumentTypeError(f"a time is needed, such as 90, 5m, 4h or 5d, not {text}")
    return float(match[1]) * _UNITS[match[2]]


def _next_hop(text: str) -> str:
    from .delivery.routes import parse_hop
    from .errors import ConfigurationError

    if text == "mx:":
        return text
    try:
        parse_hop(text)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(f"mx:, or a next hop, is needed: {error}") from None
    return text


def queue_place(text: str) -> str:
    """What takes the place of a queue."""
    scheme, colon, rest = text.partition(":")
    if text == "none" or (scheme == "sqlite" and rest) or (scheme in ("postgresql", "postgres") and colon):
        return text
    raise argparse.ArgumentTypeError(f"sqlite:DIR, postgresql://... or none is needed, not {text}")


def _policy(text: str) -> tuple[str, str]:
    domain, equals, policy = text.rpartition("=")
    if policy not in POLICIES or (equals and not domain):
        raise argparse.ArgumentTypeError(f"{', '.join(POLICIES)}, or DOMAIN= and one of them, is needed, not {text}")
    return domain.lower(), policy


def add_relay_arguments(relay: argparse.ArgumentParser) -> None:
    """Add the options of ``fastsmtp relay``."""
    add_places(relay)
    _add_next_hop(relay)
    _add_access(relay)
    _add_queue(relay)
    add_behaviour(relay)


def _add_next_hop(relay: argparse.ArgumentParser) -> None:
    hop = relay.add_argument_group("where to")
    hop.add_argument(
        "--to",
        metavar="URL",
        type=_next_hop,
        required=True,
        help="smtp://HOST[:PORT], smtps://HOST[:PORT], lmtp://HOST:PORT, lmtp+unix://PATH, or mx: for what DNS says",
    )
    hop.add_argument(
        "--next-hop-tls",
        metavar="[DOMAIN=]POLICY",
        type=_policy,
        action="append",
        default=[],
        help="none, may, encrypt or verify (may; for smtps: verify); with mx: also for one DOMAIN, or .DOMAIN for those below; "
        "may be repeated",
    )
    hop.add_argument("--next-hop-ca", metavar="FILE", help="authorities of its certificate, instead of the system's")
    hop.add_argument("--next-hop-user", metavar="NAME", help="log in there, within TLS")
    hop.add_argument("--next-hop-password-file", metavar="FILE", help="its first line is the password")
    hop.add_argument(
        "--concurrency",
        metavar="N",
        type=number(1, 100_000),
        default=100,
        help="messages that are handed on at a time, by each worker (%(default)s)",
    )
    hop.add_argument(
        "--per-destination",
        metavar="N",
        action=Given,
        type=number(1, 100_000),
        default=20,
        help="those of one destination; half as many connections are made to a host (%(default)s)",
    )


def _add_access(relay: argparse.ArgumentParser) -> None:
    access = relay.add_argument_group(
        "who may relay",
        "Who has logged in, and who comes from an allowed network.  Others are refused with 550, or 530.",
    )
    access.add_argument(
        "--allow-from",
        metavar="NET",
        type=networks,
        action="extend",
        default=[],
        help="a network such as 192.0.2.0/24, an address, unix or loopback; may be repeated (loopback and unix)",
    )
    access.add_argument(
        "--relay-domains",
        metavar="DOMAIN",
        action="append",
        default=[],
        help="anybody may send to recipients there, .DOMAIN: below it; may be repeated",
    )


def _add_queue(relay: argparse.ArgumentParser) -> None:
    queue = relay.add_argument_group("queue", "Times are in seconds, or such as 5m, 4h, 5d.")
    queue.add_argument(
        "--queue",
        metavar="QUEUE",
        type=queue_place,
        default=DEFAULT_QUEUE,
        help="sqlite:DIR, postgresql://USER@HOST/NAME, or none: each message is handed on while it arrives (%(default)s)",
    )
    for option, default, shown, text in (
        ("--retry-first", 60.0, "1m", "until the second attempt; each pause is twice as long as the one before"),
        ("--retry-longest", 3600.0, "1h", "the longest pause"),
        ("--lifetime", 5 * 86400.0, "5d", "until a message is given up"),
        ("--delay-notice", 4 * 3600.0, "4h", "until its sender hears of the delay, 0 for never"),
        ("--lease", 300.0, "5m", "until another process tries what a dead one had begun"),
    ):
        queue.add_argument(
            option, metavar="TIME", action=Given, type=_duration, default=default, help=f"{text} ({shown})"
        )
    count = number(0)
    for option, text in (
        ("--queue-max-messages", "refuse more messages, of each worker's queue (0: no limit)"),
        ("--queue-max-octets", "refuse more octets, likewise (0: no limit)"),
    ):
        queue.add_argument(option, metavar="N", action=Given, type=count, default=0, help=text)
    queue.add_argument(
        "--queue-min-free",
        metavar="OCTETS",
        action=Given,
        type=count,
        default=1 << 26,
        help="leave so much free on the disk (%(default)s)",
    )


def relay_contradiction(arguments: argparse.Namespace) -> str | None:
    """What is wrong with the options of ``fastsmtp relay`` together, or None."""
    return contradiction(arguments) or next(
        filter(None, (check(arguments) for check in (_hops, _queues, _schedule, _everybody))), None
    )


def _hops(arguments: argparse.Namespace) -> str | None:
    by_mx = arguments.to == "mx:"
    domains = [domain for domain, _ in arguments.next_hop_tls]
    if any(domains) and not by_mx:
        return "--next-hop-tls DOMAIN=POLICY needs --to mx:"
    twice = next((domain for domain in domains if domains.count(domain) > 1), None)
    if twice is not None:
        return f"--next-hop-tls {twice}{'=' if twice else ''} is there twice"
    if (arguments.next_hop_user is None) != (arguments.next_hop_password_file is None):
        return "--next-hop-user and --next-hop-password-file need each other"
    if arguments.next_hop_user is not None and by_mx:
        return "--next-hop-user needs a fixed --to: every host that MX names would learn the password"
    return None


def _queues(arguments: argparse.Namespace) -> str | None:
    given: Sequence[str] = arguments.given
    if arguments.queue == "none" and arguments.to == "mx:":
        return "--queue none needs a fixed --to: recipients of several domains cannot be answered by one reply"
    sqlite = arguments.queue.startswith("sqlite:")
    for names, has_them, needs in (
        (_QUEUED_ONLY, arguments.queue != "none", "a queue"),
        (_SQLITE_ONLY, sqlite, "sqlite:"),
    ):
        if not has_them:
            for name in names:
                if name in given:
                    return f"--{name.replace('_', '-')} needs --queue with {needs}"
    return None


def _schedule(arguments: argparse.Namespace) -> str | None:
    if not 0 < arguments.retry_first <= arguments.retry_longest:
        return "--retry-first must be more than 0, and not more than --retry-longest"
    if arguments.lifetime <= 0 or arguments.lease < 1:
        return "--lifetime must be more than 0, and --lease 1 second at least"
    return None


def _everybody(arguments: argparse.Namespace) -> str | None:
    if arguments.require_auth:
        return None
    members = [ipaddress.ip_network(each) for each in arguments.allow_from if each != "unix"]
    if any(not each.prefixlen for each in (*_collapsed(members, 4), *_collapsed(members, 6))):
        return "--allow-from allows everybody: that would be an open relay"
    return None


def _collapsed(members: Sequence[Any], version: int) -> list[Any]:
    return list(ipaddress.collapse_addresses(each for each in members if each.version == version))
