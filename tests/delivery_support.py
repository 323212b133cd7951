"""What the tests of deliveries share: messages and transactions without a connection."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from fastsmtp.extensions import MailParams, RcptParams
from fastsmtp.session import Address, ConnectionState, DataContext, DataReader

__all__ = ["context", "whole"]


def whole(body: bytes) -> DataReader:
    """A message that has arrived."""
    reader = DataReader()
    reader.feed_data(body)
    reader.feed_eof()
    return reader


def context(
    sender: str = "sender@example.org",
    *recipients: str,
    helo: str = "client.example",
    remote_addr: Address = ("192.0.2.1", 4711),
    protocol: str = "ESMTP",
    smtputf8: bool = False,
) -> DataContext:
    """A transaction."""
    state = ConnectionState(helo, remote_addr, ("127.0.0.1", 25), None, protocol)
    conn: Any = SimpleNamespace(username="", state=state)
    params = MailParams(smtputf8=smtputf8)
    return DataContext(conn, sender, params, recipients, [RcptParams()] * len(recipients), helo)
