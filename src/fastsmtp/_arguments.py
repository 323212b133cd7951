"""What ``fastsmtp serve`` takes, most of it ``fastsmtp relay`` too, and what of it contradicts itself."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from . import limits

__all__ = [
    "CLI_MESSAGE_BYTES",
    "Given",
    "add_arguments",
    "add_behaviour",
    "add_places",
    "contradiction",
    "networks",
    "number",
    "seconds",
]

CLI_MESSAGE_BYTES = 2 * 1024 * 1024 * 1024
"""The command's default for --max-message-bytes: what it does with a message needs no memory, however large that is."""

_LMTP_FORBIDDEN_PORT: Final = 25  # RFC 2033 section 5
_NETWORK_WORDS: Final = {"unix": ("unix",), "loopback": ("127.0.0.0/8", "::1/128")}


def number(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    """What takes a whole number of an option within bounds."""

    def number(text: str) -> int:
        value = int(text)
        if value < lowest or (highest is not None and value > highest):
            bound = f"{lowest} or more" if highest is None else f"{lowest} to {highest}"
            raise argparse.ArgumentTypeError(f"{bound} is needed, not {value}")
        return value

    return number


def seconds(text: str) -> float:
    """What takes a time, 0 or more."""
    value = float(text)
    if not (math.isfinite(value) and value >= 0):
        raise argparse.ArgumentTypeError(f"0 or more is needed, not {text}")
    return value


def networks(text: str) -> tuple[str, ...]:
    """What takes a network, an address, ``unix`` or ``loopback``."""
    from .errors import ConfigurationError
    from .networks import Networks

    members = _NETWORK_WORDS.get(text, (text,))
    try:
        Networks(members)
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(f"a network, unix or loopback is needed: {error}") from None
    return members


def _place(text: str) -> tuple[str, int]:
    from .errors import ConfigurationError
    from .options import split_addr

    try:
        return split_addr(text if ":" in text else f"127.0.0.1:{text}")
    except ConfigurationError as error:
        raise argparse.ArgumentTypeError(f"a port, or host:port, is needed: {error}") from None


class Given(argparse.Action):
    """Stores a value, and that it was given: with others it may contradict what its default does not."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, values)
        namespace.given = (*namespace.given, self.dest)


def add_arguments(serve: argparse.ArgumentParser) -> None:
    """Add the options of ``fastsmtp serve``."""
    add_places(serve)
    _add_mailbox(serve)
    add_behaviour(serve)


def add_behaviour(serve: argparse.ArgumentParser) -> None:
    """Add the options that say how a server behaves, whatever it does with the mail."""
    _add_protocol(serve)
    _add_security(serve)
    _add_limits(serve)
    _add_running(serve)


def add_places(serve: argparse.ArgumentParser) -> None:
    """Add the options that say where a server listens."""
    serve.set_defaults(given=())
    listen = serve.add_argument_group("where to listen")
    listen.add_argument("--host", action=Given, default="127.0.0.1", help="address to listen on (%(default)s)")
    listen.add_argument(
        "--port", action=Given, type=number(0, 65535), default=8025, help="0 picks a free one (%(default)s)"
    )
    instead = listen.add_mutually_exclusive_group()
    instead.add_argument("--unix", metavar="PATH", help="listen on this Unix socket instead")
    instead.add_argument(
        "--fd", metavar="N", type=number(0), help="take connections from this open file descriptor, a listening socket"
    )
    instead.add_argument(
        "--systemd", action="store_true", help="take connections from the sockets of a systemd .socket unit"
    )


def _add_mailbox(serve: argparse.ArgumentParser) -> None:
    deliver = serve.add_argument_group("what to do with a message")
    where = deliver.add_mutually_exclusive_group()
    where.add_argument("--maildir", metavar="DIR", default="./Maildir", help="store it there (%(default)s)")
    where.add_argument("--discard", action="store_true", help="accept it and drop it")
    where.add_argument("--print", action="store_true", help="accept it and print it")
    deliver.add_argument(
        "--line-end",
        action=Given,
        choices=("crlf", "lf"),
        default="crlf",
        help="store lines as sent, or as Unix has them (%(default)s)",
    )


def _add_protocol(serve: argparse.ArgumentParser) -> None:
    protocol = serve.add_argument_group("protocol")
    protocol.add_argument("--lmtp", action="store_true", help="speak LMTP")
    protocol.add_argument("--domain", default="localhost", help="the name the server calls itself (%(default)s)")
    protocol.add_argument(
        "--strict", action="store_true", help="refuse what RFC 5321 forbids and the world sends all the same"
    )
    protocol.add_argument(
        "--bare-newlines",
        choices=("reject", "normalize", "keep"),
        default="reject",
        help="a CR or LF alone in a message: refuse it, make it CR LF, or keep it (%(default)s)",
    )


def _add_security(serve: argparse.ArgumentParser) -> None:
    tls = serve.add_argument_group("TLS", "SIGHUP reads all these files again.")
    tls.add_argument("--tls-cert", metavar="FILE", help="certificate and its chain, PEM; offers STARTTLS")
    tls.add_argument("--tls-key", metavar="FILE", help="its private key, if that is not in the same file")
    tls.add_argument(
        "--tls-name",
        nargs=3,
        metavar=("NAME", "CERT", "KEY"),
        action="append",
        default=[],
        help="another certificate for clients that ask for this name, *.example.org for any one label before it; may be repeated",
    )
    tls.add_argument(
        "--tls-client-ca", metavar="FILE", help="authorities of client certificates; one of another is refused"
    )
    tls.add_argument("--implicit-tls", action="store_true", help="begin with TLS instead of STARTTLS")
    tls.add_argument("--require-tls", action="store_true", help="take no mail without TLS")

    users = serve.add_argument_group("users")
    users.add_argument(
        "--auth-file", metavar="FILE", help="who may log in, see `fastsmtp passwd`; read again at SIGHUP"
    )
    users.add_argument("--require-auth", action="store_true", help="take no mail from others")
    users.add_argument("--allow-insecure-auth", action="store_true", help="let them log in without TLS, too")

    trust = serve.add_argument_group(
        "trusted peers", "NET is a network such as 192.0.2.0/24, an address, unix or loopback; may be repeated."
    )
    for option, text in (
        ("--allow-xforward", "may say XFORWARD"),
        ("--allow-xclient", "may say XCLIENT, and so be whom they want"),
        ("--proxy", "must begin with a PROXY header (version 1 or 2)"),
    ):
        trust.add_argument(option, metavar="NET", type=networks, action="extend", default=[], help=text)


def _add_limits(serve: argparse.ArgumentParser) -> None:
    most = serve.add_argument_group("limits", "0 is no limit.")
    count = number(0)
    for option, metavar, default, text in (
        ("--max-message-bytes", "N", CLI_MESSAGE_BYTES, "octets of a message"),
        ("--max-recipients", "N", limits.RECIPIENTS, "recipients of a message"),
        ("--max-errors", "N", limits.ERRORS, "refused commands of a connection"),
        ("--max-connections", "N", limits.CONNECTIONS, "connections at a time, of each worker"),
        ("--max-connections-per-address", "N", limits.CONNECTIONS_PER_ADDRESS, "of one client, likewise"),
        ("--max-connection-rate", "N", 0, "connections of one client within a minute, likewise"),
        ("--max-auth-failures", "N", limits.AUTH_FAILURES, "failed logins of a connection"),
        ("--min-body-rate", "N", limits.MIN_BODY_RATE, "octets a second of a message, or its sender is cut"),
    ):
        most.add_argument(option, metavar=metavar, type=count, default=default, help=f"{text} (%(default)s)")
    for option, default_seconds, text in (
        ("--read-timeout", limits.READ_TIMEOUT, "waiting for a command, and silence within a message"),
        ("--write-timeout", limits.WRITE_TIMEOUT, "a client that does not read its replies"),
        ("--greeting-delay", 0.0, "before the greeting; who talks before it is turned away"),
        ("--error-delay", 0.0, "before refused commands are answered"),
        ("--auth-failure-delay", 1.0, "before a failed login is answered, doubled with each, 10 at most"),
    ):
        most.add_argument(
            option, metavar="SECONDS", type=seconds, default=default_seconds, help=f"{text} (%(default)s)"
        )


def _add_running(serve: argparse.ArgumentParser) -> None:
    running = serve.add_argument_group("running")
    running.add_argument(
        "--workers", metavar="N", type=number(1, 256), default=1, help="processes on one port (%(default)s)"
    )
    running.add_argument(
        "--loop", choices=("auto", "uvloop", "asyncio"), default="auto", help="auto: uvloop if it is installed"
    )
    running.add_argument(
        "--drain-timeout",
        metavar="SECONDS",
        type=seconds,
        default=30.0,
        help="at SIGTERM, for what runs (%(default)s)",
    )
    running.add_argument(
        "--metrics", metavar="[HOST:]PORT", type=_place, help="serve Prometheus there, on loopback if no host is given"
    )
    running.add_argument("--log-format", choices=("text", "json"), default="text")
    running.add_argument(
        "-v", "--verbose", action="count", default=0, help="log more; twice: every line of the protocol"
    )


def contradiction(arguments: argparse.Namespace) -> str | None:
    """What is wrong with these options together, or None."""
    return next(filter(None, (check(arguments) for check in (_places, _tls, _users, _delays))), None)


def _places(arguments: argparse.Namespace) -> str | None:
    given: Sequence[str] = arguments.given
    for instead, used in (("fd", arguments.fd is not None), ("systemd", arguments.systemd)):
        for name in ("host", "port"):
            if used and name in given:
                return f"--{name} has no meaning with --{instead}: the socket has its address"
    if arguments.command == "serve" and "line_end" in given and (arguments.discard or arguments.print):
        return "--line-end needs --maildir"
    tcp = arguments.unix is None and arguments.fd is None and not arguments.systemd
    if arguments.lmtp and tcp and arguments.port == _LMTP_FORBIDDEN_PORT:
        return f"--lmtp must not be on port {_LMTP_FORBIDDEN_PORT} (RFC 2033 section 5)"
    return None


def _tls(arguments: argparse.Namespace) -> str | None:
    if arguments.tls_cert is None:
        for name in ("tls_key", "tls_name", "tls_client_ca", "implicit_tls", "require_tls"):
            if getattr(arguments, name):
                return f"--{name.replace('_', '-')} needs --tls-cert"
    names = [name.lower().rstrip(".") for name, _, _ in arguments.tls_name]
    twice = next((name for name in names if names.count(name) > 1), None)
    return None if twice is None else f"--tls-name {twice} is there twice"


def _users(arguments: argparse.Namespace) -> str | None:
    if arguments.auth_file is None:
        for name in ("require_auth", "allow_insecure_auth"):
            if getattr(arguments, name):
                return f"--{name.replace('_', '-')} needs --auth-file"
    elif arguments.tls_cert is None and not arguments.allow_insecure_auth:
        return "--auth-file needs --tls-cert or --allow-insecure-auth: nobody could log in"
    elif arguments.require_tls and arguments.allow_insecure_auth:
        return "--require-tls and --allow-insecure-auth contradict each other"
    return None


def _delays(arguments: argparse.Namespace) -> str | None:
    for name in ("greeting_delay", "error_delay"):
        if getattr(arguments, name) >= arguments.read_timeout > 0:
            return f"--{name.replace('_', '-')} must be less than --read-timeout: nobody would be waited for"
    return None
