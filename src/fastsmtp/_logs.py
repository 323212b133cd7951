"""What a server writes to standard error while it runs: records as text or as JSON."""

from __future__ import annotations

import json
import logging
import re
import sys
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from .observer import Observer
from .tracing import printable

if TYPE_CHECKING:
    from .connection import Conn
    from .reply import Reply
    from .session import DataContext

__all__ = ["RECIPIENTS", "EventLog", "TraceLog", "configure", "log_event", "silence"]

RECIPIENTS: Final = 20
"""Recipients of a message that its record names; their number is there in any case."""

_WRITTEN_TO_NOBODY: Final = frozenset({"socket.send() raised exception.", "SSL connection is closed"})
_LOG: Final = logging.getLogger("fastsmtp")
_TEXT: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_PLAIN: Final = re.compile(r"[^\s\"'=,\[\]{}\\]+")


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
    loops = logging.getLogger("asyncio")  # uvloop's too
    loops.setLevel(logging.WARNING)
    loops.addFilter(_tells_something)


def _tells_something(record: logging.LogRecord) -> bool:
    """Leave out what both loops say of each write to a peer that is gone: not to whom, and so often that peers could fill a disk with it."""
    return record.msg not in _WRITTEN_TO_NOBODY


def silence(name: str) -> None:
    """Let no record of this logger out: another process writes the same."""
    logging.getLogger(name).setLevel(logging.CRITICAL + 1)


class _JSONFormatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "pid": record.process,
            "message": record.getMessage(),
        }
        if fields := _fields(record):
            entry |= {"event": record.msg} | fields
        if record.exc_info:
            entry["traceback"] = self.formatException(record.exc_info)
        return json.dumps(entry)


class _TextFormatter(logging.Formatter):
    """Keeps control characters of a peer's from the terminal; a record stays on its line, a traceback on its own."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        text = " ".join((super().formatMessage(record), *(f"{k}={_value(v)}" for k, v in _fields(record).items())))
        return printable(text)


def _fields(record: logging.LogRecord) -> dict[str, Any]:
    fields: dict[str, Any] = getattr(record, "fields", {})
    return fields


def _value(value: object) -> str:
    """A field's value; what a peer sent is quoted wherever it could be taken for another field."""
    if isinstance(value, list):
        return ",".join(map(_value, value))
    text = str(value)
    return text if _PLAIN.fullmatch(text) else json.dumps(text, ensure_ascii=False)


class TraceLog:
    """Takes the protocol's trace into the log."""

    def write(self, text: str) -> None:
        """Log one line of it."""
        _LOG.debug("%s", text.rstrip("\n"))


class EventLog(Observer):
    """Takes what happens into the log, a record each, with fields; the password of a login is in none of them.

    The name of a login that failed is in none either: it may be a password that was typed in its place.
    """

    __slots__ = ("_open",)

    def __init__(self) -> None:
        self._open: dict[Conn, _Visit] = {}

    def connected(self, conn: Conn) -> None:
        """A client is welcome."""
        self._open[conn] = _Visit(time.monotonic())
        log_event("connected", _where(conn), _tls(conn))

    def disconnected(self, conn: Conn) -> None:
        """It is gone: how long it was there, and how many messages were answered."""
        visit = self._open.pop(conn, None)
        if visit is not None:
            seconds = round(time.monotonic() - visit.began, 3)
            log_event("disconnected", _where(conn), {"seconds": seconds, "messages": visit.messages})

    def message(self, conn: Conn, context: DataContext | None, reply: Reply | None, octets: int) -> None:
        """A message was answered."""
        if (visit := self._open.get(conn)) is not None:
            visit.messages += 1
        state = conn.state
        fields = {"helo": state.hostname, "protocol": state.protocol} | _tls(conn)
        if state.username:
            fields["user"] = state.username
        if context is not None:
            fields["sender"] = context.sender
            fields["recipients"] = list(context.recipients[:RECIPIENTS])
            fields["recipient_count"] = len(context.recipients)
            if (xforward := context.xforward) is not None and xforward.addr:
                fields["xforward"] = xforward.addr
        fields["octets"] = octets
        fields |= _answer(reply)
        if context is not None and context.replies is not None:
            fields["codes"] = [_answer(each or reply)["code"] for each in context.replies[:RECIPIENTS]]
        log_event("message", _where(conn), fields)

    def rejected(self, conn: Conn, reply: Reply) -> None:
        """A MAIL, a RCPT or a connection was refused."""
        log_event("rejected", _where(conn), _answer(reply))

    def authenticated(self, conn: Conn, username: str) -> None:
        """A client has logged in."""
        log_event("authenticated", _where(conn), {"user": username})

    def auth_failed(self, conn: Conn) -> None:
        """A login failed."""
        log_event("auth_failed", _where(conn), {})


@dataclass(slots=True)
class _Visit:
    """A connection that was welcome: since when, and its messages."""

    began: float
    messages: int = 0


def log_event(event: str, where: dict[str, Any], fields: dict[str, Any]) -> None:
    """Log what happened, with fields."""
    _LOG.info(event, extra={"fields": where | fields})


def _where(conn: Conn) -> dict[str, Any]:
    address = conn.remote_addr
    client = {"client": str(address[0]), "port": int(address[1])} if isinstance(address, tuple) else {"client": "unix"}
    return {"conn": f"{id(conn):x}"} | client


def _tls(conn: Conn) -> dict[str, Any]:
    tls = conn.tls_connection_state
    return {} if tls is None else {"tls": tls.version()}


def _answer(reply: Reply | None) -> dict[str, Any]:
    return {"code": 250} if reply is None else {"code": reply.code, "reply": str(reply)}
