"""Why a peer is ahead, where it is.  The tables print it; what has no reason here is printed as such."""

from __future__ import annotations

__all__ = ["reason"]

_FLOOR = "the floor: it parses no address, keeps no time, has no limits and no hooks"
_REASONS: dict[tuple[str, str], str] = {
    ("epoll loop (C)", ""): _FLOOR,
    (
        "smtp-sink (C)",
        "",
    ): "it parses no address and no parameter (`MAIL garbage` is taken), keeps no envelope and calls no hook",
    (
        "go-smtp (Go)",
        "starttls",
    ): "the handshake is most of it, and Go's costs less than OpenSSL's behind Python's two memory buffers: 180 us of ours are OpenSSL's alone",
    (
        "go-smtp (Go)",
        "tls",
    ): "uvloop's TLS layer handles each record at greater length than asyncio's does, with which fastsmtp is ahead",
}


def reason(server: str, workload: str) -> str:
    """The reason that is written down, for this workload or for all of this server."""
    return _REASONS.get((server, workload)) or _REASONS.get((server, "")) or "the reason is not known yet"
