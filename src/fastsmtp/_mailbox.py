"""``fastsmtp serve``: what becomes of a message is that it is stored, printed or dropped."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from ._application import Application, Running
from .delivery import DiscardSession, Maildir, MaildirBackend, PrintSession
from .session import DefaultBackend

if TYPE_CHECKING:
    from .session import Backend

__all__ = ["Mailbox"]


class Mailbox(Application):
    """Keeps messages in a Maildir, if they are not dropped or printed."""

    def prepare(self) -> None:
        """Make the Maildir, and see that it can be written."""
        if not (self.arguments.discard or self.arguments.print):
            Maildir(self.arguments.maildir).close()

    async def open(self, worker: int) -> Running:
        """Open the Maildir."""
        arguments = self.arguments
        if arguments.discard:
            return Running(DefaultBackend(DiscardSession))
        if arguments.print:
            return Running(DefaultBackend(lambda: PrintSession(sys.stdout)))
        maildir = Maildir(arguments.maildir, line_end=arguments.line_end)
        return _Open(MaildirBackend(maildir, domain=arguments.domain), maildir)


class _Open(Running):
    def __init__(self, backend: Backend, maildir: Maildir) -> None:
        super().__init__(backend)
        self._maildir = maildir

    async def close(self) -> None:
        await self._maildir.__aexit__(None, None, None)
