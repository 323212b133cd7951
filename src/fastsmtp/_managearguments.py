"""What ``fastsmtp queue`` takes."""

from __future__ import annotations

import argparse

from ._arguments import number
from ._relayarguments import DEFAULT_QUEUE, queue_place

__all__ = ["add_arguments"]


def _queue(text: str) -> str:
    if text == "none":
        raise argparse.ArgumentTypeError(
            "sqlite:DIR or postgresql://... is needed: without a queue there is nothing to see"
        )
    return queue_place(text)


def add_arguments(queue: argparse.ArgumentParser) -> None:
    """Add the actions and their options."""
    _add_place(queue, DEFAULT_QUEUE)
    actions = queue.add_subparsers(dest="action", required=True, metavar="ACTION")

    ls = actions.add_parser("ls", help="list messages, the oldest of each worker's first")
    ls.add_argument("--destination", metavar="DOMAIN", help="only those with a recipient there")
    ls.add_argument("--limit", metavar="N", type=number(1), help="so many at most")
    ls.add_argument("--json", action="store_true", help="an object on a line for each, with all that is known")

    show = actions.add_parser("show", help="show one message: envelope, recipients, header")
    show.add_argument("ids", metavar="ID", nargs=1)
    how = show.add_mutually_exclusive_group()
    how.add_argument("--body", action="store_true", help="write the message as it is queued, and nothing else")
    how.add_argument("--json", action="store_true", help="the same as an object, without the header")

    for name, text in (
        ("retry", "try again now what waits for its next attempt"),
        ("hold", "deliver it no more before `release`"),
        ("release", "end `hold`"),
        ("rm", "drop it; nobody is told"),
    ):
        action = actions.add_parser(name, help=text, description=f"{text[0].upper()}{text[1:]}.")
        action.add_argument("ids", metavar="ID", nargs="*")
        which = action.add_mutually_exclusive_group()
        which.add_argument("--destination", metavar="DOMAIN", help="all that have a recipient there")
        which.add_argument("--all", action="store_true", help="all")
        _add_place(action)
        action.set_defaults(refuse=action.error)

    stats = actions.add_parser("stats", help="count")
    stats.add_argument("--json", action="store_true")
    for each in (ls, show, stats):
        _add_place(each)
        each.set_defaults(refuse=each.error)


def _add_place(parser: argparse.ArgumentParser, default: str = argparse.SUPPRESS) -> None:
    shown = "" if default is argparse.SUPPRESS else " (%(default)s)"
    parser.add_argument(
        "--queue",
        metavar="QUEUE",
        type=_queue,
        default=default,
        help=f"sqlite:DIR or postgresql://USER@HOST/NAME{shown}",
    )
