"""The header lines that a server adds to a message it takes (RFC 5321 4.4).

Everything a peer sent is checked against the grammar of the place it goes to, and put into a quoted comment where it
does not fit: no peer can end a line, add a field, or break a parser with its name.
"""

from __future__ import annotations

import ipaddress
import re
import time
from typing import TYPE_CHECKING, Final

from fastsmtp.address import is_address_literal, is_domain

if TYPE_CHECKING:
    from fastsmtp.session import DataContext

__all__ = ["ReceivedWriter", "date_time", "received_from", "received_header", "return_path_header", "with_clause"]

FOLD: Final = 78
"""Characters of a header line without its CR LF (RFC 5322 2.1.1)."""

_DAYS: Final = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTHS: Final = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

_ATOM: Final = re.compile(r"[A-Za-z0-9!#$%&'*+/=?^_`{|}~.-]{1,128}\Z")
_WITH: Final = re.compile(r"[A-Z0-9]{1,32}\Z")
_UNSAFE: Final = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
_COMMENT: Final = re.compile(r"([\\()])")
_PATH: Final = re.compile(r"[^<>\s]{1,400}\Z")
_QUOTED_PATH: Final = re.compile(r'"(?:[^"\\\r\n]|\\.){0,200}"@[^<>\s"]{1,255}\Z')


def date_time(when: float | None = None) -> str:
    """The date-time of RFC 5322 3.3 in the local zone: "Fri, 21 Nov 1997 09:55:06 -0600".

    Args:
        when: seconds since the epoch; None is now.
    """
    moment = time.localtime(when)
    offset = (moment.tm_gmtoff or 0) // 60
    sign = "-" if offset < 0 else "+"
    hours, minutes = divmod(abs(offset), 60)
    return (
        f"{_DAYS[moment.tm_wday]}, {moment.tm_mday} {_MONTHS[moment.tm_mon - 1]} {moment.tm_year:04d} "
        f"{moment.tm_hour:02d}:{moment.tm_min:02d}:{moment.tm_sec:02d} {sign}{hours:02d}{minutes:02d}"
    )


def with_clause(protocol: str, *, tls: bool = False, authenticated: bool = False, smtputf8: bool = False) -> str:
    """The protocol's name in the "with" clause (RFC 3848 section 2, RFC 6531 4.3).

    Args:
        protocol: "SMTP", "ESMTP" or "LMTP"; a name that already says more ("ESMTPS") stays as it is.
    """
    name = protocol.upper()
    if name not in ("SMTP", "ESMTP", "LMTP"):
        return name if _WITH.match(name) else "SMTP"
    if name == "SMTP" and not (tls or authenticated or smtputf8):
        return name
    base = "LMTP" if name == "LMTP" else "ESMTP"
    if smtputf8:
        base = "UTF8LMTP" if base == "LMTP" else "UTF8SMTP"
    return f"{base}{'S' if tls else ''}{'A' if authenticated else ''}"


def _comment(text: str) -> str:
    """Peer text within a comment (RFC 5322 3.2.2); what is no printable ASCII becomes "?"."""
    safe = _UNSAFE.sub("?", text[:255]).encode("ascii", "replace").decode("ascii")
    return "(" + _COMMENT.sub(r"\\\1", safe) + ")"


def _address_literal(remote_addr: object) -> str:
    """The TCP-info of a peer (RFC 5321 4.1.3), "" for one without an IP address."""
    if not isinstance(remote_addr, tuple) or not remote_addr:
        return ""
    try:
        address = ipaddress.ip_address(str(remote_addr[0]).partition("%")[0])
    except ValueError:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return f"[IPv6:{address.compressed}]"
        address = address.ipv4_mapped
    return f"[{address}]"


def received_from(helo: str, remote_addr: object, *, smtputf8: bool = False) -> str:
    """The "from" clause: the name the peer gave, and the address it came from.

    The same for a whole connection, so that a caller may keep it.

    Args:
        helo: the argument of HELO, EHLO or LHLO.
        remote_addr: the peer's address as a socket gives it; no tuple (a Unix socket): left out.
        smtputf8: whether the header may have UTF-8 (RFC 6532).
    """
    literal = _address_literal(remote_addr)
    info = f" ({literal})" if literal else ""
    if is_domain(helo, utf8=smtputf8) or is_address_literal(helo):
        return f"from {helo}{info}"
    comment = f" {_comment(helo)}" if helo else ""
    return f"from {literal or 'unknown'}{info}{comment}"


def received_header(
    from_clause: str,
    *,
    by_domain: str,
    with_protocol: str,
    id: str = "",
    for_recipient: str | None = None,
    when: float | str | None = None,
) -> bytes:
    """A Received field (RFC 5321 4.4), folded, ended by CR LF.

    Args:
        from_clause: what `received_from` made.
        by_domain: the server's own name.
        with_protocol: what `with_clause` made.
        id: the queue's or file's identifier.
        for_recipient: the recipient, when there is exactly one: more would tell each of the others (RFC 5321 7.6).
        when: seconds since the epoch, or what `date_time` made of them; None is now.
    """
    date = when if isinstance(when, str) else date_time(when)
    by = f"by {by_domain} with {with_protocol}"
    if id and _ATOM.match(id):
        by = f"{by} id {id}" if len(by) + len(id) < FOLD - 12 else f"{by}\r\n\tid {id}"
    target = ""
    if for_recipient:
        path = _path(for_recipient)
        if path and (path.isascii() or with_protocol.startswith("UTF8")):
            target = f"\r\n\tfor <{path}>"
    return f"Received: {from_clause}\r\n\t{by}{target};\r\n\t{date}\r\n".encode("utf-8", "replace")


class ReceivedWriter:
    """Writes the Received fields of one session's messages; what stays the same between them is kept.

    Args:
        domain: the server's own name.
    """

    __slots__ = ("_domain", "_trace")

    def __init__(self, domain: str) -> None:
        self._domain: Final = domain
        self._trace: tuple[tuple[object, ...], str, str] | None = None

    def forget(self) -> None:
        """There was a new greeting, perhaps within TLS now: the field says something else."""
        self._trace = None

    def field(self, context: DataContext, *, id: str = "", when: float | str | None = None) -> bytes:
        """The field of one message, of the client behind a trusted peer if that has told of one.  See `received_header`."""
        smtputf8 = context.mail_params.smtputf8
        forwarded = context.xforward
        key = (context.helo, smtputf8, forwarded, context.conn.username)
        trace = self._trace
        if trace is None or trace[0] != key:
            state = context.state
            protocol = with_clause(
                state.protocol, tls=state.tls is not None, authenticated=bool(state.username), smtputf8=smtputf8
            )
            helo, address = context.helo, state.remote_addr
            if forwarded is not None:
                helo = forwarded.helo or helo
                address = (forwarded.addr, forwarded.port or 0) if forwarded.addr else address
            self._trace = trace = (key, received_from(helo, address, smtputf8=smtputf8), protocol)
        recipients = context.recipients
        return received_header(
            trace[1],
            by_domain=self._domain,
            with_protocol=trace[2],
            id=id,
            for_recipient=recipients[0] if len(recipients) == 1 else None,
            when=when,
        )


def return_path_header(sender: str) -> bytes:
    """The Return-Path field, which only final delivery adds (RFC 5321 4.4); "" is the null reverse-path."""
    return f"Return-Path: <{_path(sender)}>\r\n".encode("utf-8", "replace")


def _path(path: str) -> str:
    """A path that can stand between angle brackets, "" for what cannot."""
    if _UNSAFE.search(path):
        return ""
    return path if _PATH.match(path) or _QUOTED_PATH.match(path) else ""
