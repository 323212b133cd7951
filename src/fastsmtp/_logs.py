"""What ``fastsmtp serve`` writes to standard error while it runs: records as text or as JSON."""

from __future__ import annotations

import json
import logging
import sys
from typing import Final

__all__ = ["TraceLog", "configure"]

_LOG: Final = logging.getLogger("fastsmtp")
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def configure(form: str, verbose: int) -> None:
    """Let all records go to standard error.

    Args:
        form: "text" or "json".
        verbose: 0 for warnings and errors, 1 for what happens too, 2 for the protocol as well.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_JSONFormatter() if form == "json" else _TextFormatter(_TEXT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel((logging.WARNING, logging.INFO, logging.DEBUG)[min(verbose, 2)])
    logging.getLogger("asyncio").setLevel(logging.WARNING)


class _JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _TextFormatter(logging.Formatter):
    """Keeps control characters of a peer's from the terminal; a record stays on its line, a traceback on its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = super().formatMessage(record)
        return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)


class TraceLog:
    """Takes the protocol's trace into the log."""

    def write(self, text: str) -> None:
        """Log one line of it."""
        _LOG.debug("%s", text.rstrip("\n"))
