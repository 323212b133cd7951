"""The command: ``fastsmtp serve``, ``fastsmtp send`` and ``fastsmtp passwd``, also as ``python -m fastsmtp``.

Exit codes: 0 when all went well; 1 for what the machine refuses (a busy port, an unwritable Maildir, a lost worker) or a
server refuses (`send`); 2 for a bad option.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence

from . import _passwd, limits
from ._version import VERSION
from .textproto import IMPLEMENTATION

__all__ = ["CLI_MESSAGE_BYTES", "build_parser", "main"]

CLI_MESSAGE_BYTES = 2 * 1024 * 1024 * 1024
"""The command's default for --max-message-bytes: what it does with a message needs no memory, however large that is."""


def _number(lowest: int, highest: int | None = None) -> Callable[[str], int]:
    def number(text: str) -> int:
        value = int(text)
        if value < lowest or (highest is not None and value > highest):
            bound = f"{lowest} or more" if highest is None else f"{lowest} to {highest}"
            raise argparse.ArgumentTypeError(f"{bound} is needed, not {value}")
        return value

    return number


def build_parser() -> argparse.ArgumentParser:
    """The parser of the command line."""
    parser = argparse.ArgumentParser(
        prog="fastsmtp", description="An SMTP and LMTP server, and a small client to try it with."
    )
    parser.add_argument("--version", action="version", version=f"fastsmtp {VERSION} ({IMPLEMENTATION})")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    serve = commands.add_parser(
        "serve", help="take mail", description="Take mail into a Maildir; answered only when it survives a power loss."
    )
    listen = serve.add_argument_group("where to listen")
    listen.add_argument("--host", default="127.0.0.1", help="address to listen on (%(default)s)")
    listen.add_argument("--port", type=_number(0, 65535), default=8025, help="0 picks a free one (%(default)s)")
    listen.add_argument("--unix", metavar="PATH", help="listen on this Unix socket instead")
    deliver = serve.add_argument_group("what to do with a message").add_mutually_exclusive_group()
    deliver.add_argument("--maildir", metavar="DIR", default="./Maildir", help="store it there (%(default)s)")
    deliver.add_argument("--discard", action="store_true", help="accept it and drop it")
    deliver.add_argument("--print", action="store_true", help="accept it and print it")
    serve.add_argument(
        "--line-end", choices=("crlf", "lf"), default="crlf", help="store lines as sent, or as Unix has them (%(default)s)"
    )
    protocol = serve.add_argument_group("protocol")
    protocol.add_argument("--lmtp", action="store_true", help="speak LMTP")
    protocol.add_argument("--domain", default="localhost", help="the name the server calls itself (%(default)s)")
    protocol.add_argument(
        "--max-message-bytes", metavar="N", type=_number(0), default=CLI_MESSAGE_BYTES, help="0: no limit (%(default)s)"
    )
    protocol.add_argument(
        "--max-recipients", metavar="N", type=_number(0), default=limits.RECIPIENTS, help="0: no limit (%(default)s)"
    )
    running = serve.add_argument_group("running")
    running.add_argument(
        "--workers", metavar="N", type=_number(1, 256), default=1, help="processes on one port (%(default)s)"
    )
    running.add_argument(
        "--loop", choices=("auto", "uvloop", "asyncio"), default="auto", help="auto: uvloop if it is installed"
    )
    running.add_argument(
        "--drain-timeout", metavar="SECONDS", type=float, default=30.0, help="at SIGTERM, for what runs (%(default)s)"
    )
    running.add_argument("--log-format", choices=("text", "json"), default="text")
    running.add_argument("-v", "--verbose", action="count", default=0, help="log more; twice: every line of the protocol")

    send = commands.add_parser(
        "send", help="send a message", description="Send one message, or many alike. FILE is read if given, - is standard input."
    )
    send.add_argument("file", metavar="FILE", nargs="?", help="an RFC 5322 message; without it one is made up")
    send.add_argument("--host", default="127.0.0.1", help="(%(default)s)")
    send.add_argument("--port", type=_number(1, 65535), default=8025, help="(%(default)s)")
    send.add_argument("--unix", metavar="PATH", help="LMTP over this Unix socket")
    send.add_argument("--lmtp", action="store_true", help="speak LMTP")
    send.add_argument("--from", dest="sender", metavar="ADDRESS", default="sender@example.org", help="(%(default)s)")
    send.add_argument("--to", dest="recipients", metavar="ADDRESS", action="append", help="may be repeated")
    send.add_argument("--subject", default="fastsmtp send", help="(%(default)s)")
    send.add_argument("--size", metavar="BYTES", type=_number(0), default=0, help="pad the made-up message to about that")
    send.add_argument("--count", metavar="N", type=_number(1), default=1, help="send it so often, on one connection")
    send.add_argument("--timeout", metavar="SECONDS", type=float, default=60.0, help="for each answer (%(default)s)")

    passwd = commands.add_parser(
        "passwd", help="edit a file of users", description="Set a user's password in a file of users for `serve --auth-file`."
    )
    _passwd.add_arguments(passwd)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command; the exit code."""
    arguments = build_parser().parse_args(argv)
    try:
        if arguments.command == "serve":
            from ._serve import serve

            return serve(arguments)
        if arguments.command == "passwd":
            return _passwd.run(arguments)
        from ._send import send

        return send(arguments)
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        sys.stderr.close()
        return 1
