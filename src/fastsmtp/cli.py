"""The command: ``fastsmtp serve``, ``relay``, ``queue``, ``send`` and ``passwd``, also as ``python -m fastsmtp``.

Exit codes: 0 when all went well; 1 for what the machine refuses (a busy port, an unwritable Maildir, a lost worker) or a
server refuses (`send`); 2 for a bad option.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

from . import _managearguments, _passwd
from ._arguments import CLI_MESSAGE_BYTES, add_arguments, contradiction, number
from ._relayarguments import add_relay_arguments, relay_contradiction
from ._version import VERSION
from .textproto import IMPLEMENTATION

__all__ = ["CLI_MESSAGE_BYTES", "build_parser", "main"]


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="fastsmtp", description="An SMTP and LMTP server, a relay, and a small client to try them with."
    )
    parser.add_argument("--version", action="version", version=f"fastsmtp {VERSION} ({IMPLEMENTATION})")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve",
        usage="%(prog)s [OPTION ...]",
        help="take mail",
        description="Take mail into a Maildir; answered only when it survives a power loss.",
    )
    add_arguments(serve)
    serve.set_defaults(refuse=serve.error, contradiction=contradiction)

    relay = commands.add_parser(
        "relay",
        usage="%(prog)s --to URL [OPTION ...]",
        help="hand mail on",
        description="Take mail into a queue, and deliver it from there to a next hop, or to what DNS says.",
    )
    add_relay_arguments(relay)
    relay.set_defaults(refuse=relay.error, contradiction=relay_contradiction)

    queue = commands.add_parser(
        "queue",
        help="look at a relay's queue, and change it",
        description="Look at a relay's queue, and change it, whether the relay runs or not.",
    )
    _managearguments.add_arguments(queue)

    send = commands.add_parser(
        "send",
        help="send a message",
        description="Send one message, or many alike. FILE is read if given, - is standard input.",
    )
    send.add_argument("file", metavar="FILE", nargs="?", help="an RFC 5322 message; without it one is made up")
    send.add_argument("--host", default="127.0.0.1", help="(%(default)s)")
    send.add_argument("--port", type=number(1, 65535), default=8025, help="(%(default)s)")
    send.add_argument("--unix", metavar="PATH", help="LMTP over this Unix socket")
    send.add_argument("--lmtp", action="store_true", help="speak LMTP")
    send.add_argument("--from", dest="sender", metavar="ADDRESS", default="sender@example.org", help="(%(default)s)")
    send.add_argument("--to", dest="recipients", metavar="ADDRESS", action="append", help="may be repeated")
    send.add_argument("--subject", default="fastsmtp send", help="(%(default)s)")
    send.add_argument(
        "--size", metavar="BYTES", type=number(0), default=0, help="pad the made-up message to about that"
    )
    send.add_argument("--count", metavar="N", type=number(1), default=1, help="send it so often, on one connection")
    send.add_argument("--timeout", metavar="SECONDS", type=float, default=60.0, help="for each answer (%(default)s)")

    passwd = commands.add_parser(
        "passwd",
        help="edit a file of users",
        description="Set a user's password in a file of users for `serve --auth-file`.",
    )
    _passwd.add_arguments(passwd)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.command in ("serve", "relay"):
            if (wrong := arguments.contradiction(arguments)) is not None:
                arguments.refuse(wrong)
            from ._serve import serve

            return serve(arguments)
        if arguments.command == "queue":
            from ._manage import manage

            return manage(arguments)
        if arguments.command == "passwd":
            return _passwd.run(arguments)
        from ._send import send

        return send(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
