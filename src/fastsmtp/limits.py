"""Every number of the protocol, with its source.

Sizes are in octets, times in seconds.  RFC 5321 gives minimums that a server must accept; where ours is
larger, the comment says why.
"""

from __future__ import annotations

from typing import Final

__all__ = [
    "AUTH_FAILURES",
    "AUTH_LINE",
    "BODY_HIGH_WATER",
    "COMMANDS_PER_TURN",
    "COMMAND_LINE",
    "COMMAND_LINE_FLOOD",
    "CONNECTIONS",
    "CONNECTIONS_PER_ADDRESS",
    "DOMAIN",
    "ERRORS",
    "ESMTP_PARAMETERS",
    "HANDSHAKE_TIMEOUT",
    "HEADER_BYTES",
    "HEADER_FIELDS",
    "HOOK_TIMEOUT",
    "LINGER",
    "LOCAL_PART",
    "MESSAGE_BYTES",
    "MIN_BODY_RATE",
    "PATH",
    "PROXY_TIMEOUT",
    "READ_TIMEOUT",
    "RECIPIENTS",
    "REPLY_BYTES",
    "REPLY_LINE",
    "REPLY_LINES",
    "TEXT_LINE",
    "WRITE_TIMEOUT",
]

LINGER: Final = 5.0
"""Seconds that a client is given to read a last reply and close."""

LOCAL_PART: Final = 64
"""A local-part (RFC 5321 4.5.3.1.1)."""

DOMAIN: Final = 255
"""A domain name or address literal (RFC 5321 4.5.3.1.2)."""

PATH: Final = 256
"""A reverse-path or forward-path, brackets and source route included (RFC 5321 4.5.3.1.3)."""

COMMAND_LINE: Final = 2048
"""A command line with its CR LF.  RFC 5321 4.5.3.1.4 asks for 512; each extension adds to it (SIZE 26,
8BITMIME 17, SMTPUTF8 10, DSN 500 and more), so the sum is rounded up."""

AUTH_LINE: Final = 12288
"""An AUTH command, or a response within its exchange, with its CR LF (RFC 4954 section 4)."""

AUTH_FAILURES: Final = 3
"""Failed authentications of one connection before 421."""

COMMAND_LINE_FLOOD: Final = 65536
"""Octets of one unended command line after which the peer is told 421 and left."""

TEXT_LINE: Final = 1000
"""A line of the message with its CR LF (RFC 5321 4.5.3.1.6).  Checked in strict mode only: longer lines are
common and harmless to a server that streams."""

REPLY_LINE: Final = 512
"""A reply line with code and CR LF (RFC 5321 4.5.3.1.5)."""

REPLY_LINES: Final = 256
"""Lines that are read of one multi-line reply before it is taken for a flood."""

REPLY_BYTES: Final = 65536
"""Octets of one reply, all its lines together, that a client reads."""

RECIPIENTS: Final = 1000
"""Recipients of one message.  RFC 5321 4.5.3.1.8 asks for at least 100; Postfix takes 1000."""

MESSAGE_BYTES: Final = 32 * 1024 * 1024
"""Default largest message.  RFC 5321 4.5.3.1.7 asks for at least 64 K."""

ESMTP_PARAMETERS: Final = 32
"""Parameters of one MAIL or RCPT."""

ERRORS: Final = 20
"""Refused commands (not recipients) before 421; Postfix's hard limit is 20."""

HEADER_FIELDS: Final = 1000
"""Fields of one header block."""

HEADER_BYTES: Final = 1024 * 1024
"""Octets of one header block."""

BODY_HIGH_WATER: Final = 65536
"""Octets of a message that wait for its session before the socket is left unread; also what is gathered
before an asynchronous data hook is called, so that a small message never suspends it."""

COMMANDS_PER_TURN: Final = 128
"""Commands of one connection that are answered before other connections get their turn."""

READ_TIMEOUT: Final = 300.0
"""Waiting for a command, and silence within a body (RFC 5321 4.5.3.2.7 asks for at least 5 minutes)."""

HANDSHAKE_TIMEOUT: Final = 30.0
"""A TLS handshake."""

PROXY_TIMEOUT: Final = 5.0
"""A PROXY header; what sends it is near."""

WRITE_TIMEOUT: Final = 60.0
"""A peer that does not take its replies."""

HOOK_TIMEOUT: Final = 600.0
"""A session hook that does not return (RFC 5321 4.5.3.2.6: a client waits 10 minutes after the final dot)."""

MIN_BODY_RATE: Final = 500
"""Octets per second of a body below which a peer is slow on purpose; Postfix's smtpd_min_data_rate."""

CONNECTIONS: Final = 10_000
"""Connections at one time."""

CONNECTIONS_PER_ADDRESS: Final = 0
"""Connections of one client address at one time; 0 is no limit, as a relay's neighbours are few and busy."""
