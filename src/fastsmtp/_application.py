"""What a command does with the mail that its server takes: the part in which ``serve`` and ``relay`` differ."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ._board import Board, Display, Figure

if TYPE_CHECKING:
    from ._listen import Listening
    from .session import Backend

__all__ = ["Application", "Running"]


class Running:
    """What takes the mail in one process, until `close`.

    Args:
        backend: gives the server its sessions.

    Attributes:
        backend: the same.
        counters: objects that have the application's figures as attributes.
    """

    backend: Backend
    counters: Sequence[object] = ()

    def __init__(self, backend: Backend) -> None:
        self.backend = backend

    async def stop(self, timeout: float) -> None:
        """The server has ended: finish what runs beside it within so many seconds.  May be called again, with less time."""

    async def close(self) -> None:
        """Let go of everything.  Comes after `stop`."""


class Application:
    """What takes the mail, in the process that was started and in its workers.

    Args:
        arguments: the command line's.

    Attributes:
        options: what the server is told beside the command line's.
        figures: what the board has beside the server's counters.
    """

    options: Mapping[str, Any] = {}
    figures: Sequence[Figure] = ()

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.arguments = arguments

    def display(self, board: Board) -> Display:
        """What is shown on a terminal."""
        return Display(board)

    def refusal(self, listening: Listening) -> str | None:
        """Why the options do not go with these sockets, or None."""
        return None

    def prepare(self) -> None:
        """See that all is there, before anybody is told that we listen.

        Raises:
            ConfigurationError, OSError: it is not.
        """

    def forked(self) -> None:
        """This process was forked from the one that was started: let go of what is that one's."""

    def close(self) -> None:
        """Undo `prepare`."""

    async def open(self, worker: int) -> Running:
        """Begin, in a process that takes mail.  It may be cancelled.

        Raises:
            ConfigurationError: it cannot.
        """
        raise NotImplementedError
