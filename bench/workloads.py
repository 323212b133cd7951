"""What is asked of the servers, in the order of the tables."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["WORKLOADS", "Workload"]

KB, MB = 1024, 1024 * 1024


@dataclass(frozen=True, slots=True)
class Workload:
    """One kind of load, for each number of connections in `points`.

    Attributes:
        name: on the command line, and of its files.
        title: of its table and picture.
        size: octets of a message.
        share: how many messages, as a part of --messages; more than one connection each in any case.
        points: how many connections at one time.
        fresh: a connection for each message.
        recipients: of each message.
        own: the options of `bench.load`; None: smtp-source sends.
        needs: of what a peer `can`.
        kind: of the peers.
        workers: how many processors the server may use.
        latency: what matters is how long a message takes, too.
        idle: connections that wait beside.
    """

    name: str
    title: str
    size: int = 4 * KB
    share: float = 1.0
    points: tuple[int, ...] = (20,)
    fresh: bool = False
    recipients: int = 1
    own: tuple[str, ...] | None = None
    needs: frozenset[str] = frozenset()
    kind: frozenset[str] = frozenset({"discard"})
    workers: int = 1
    latency: bool = False
    idle: int = 0


def _needs(*what: str) -> frozenset[str]:
    return frozenset(what)


_LARGE = frozenset({"discard", "large"})

WORKLOADS = (
    Workload("kept", "4 KB messages on kept connections"),
    Workload("fresh", "4 KB, a connection for each message", share=0.5, fresh=True),
    Workload("pipelined", "512 octets, fully pipelined", size=512, own=()),
    Workload("big", "1 MB messages", size=MB, share=0.05, points=(10,), kind=_LARGE),
    Workload("huge", "25 MB messages", size=25 * MB, share=0.002, points=(4,), kind=_LARGE),
    Workload("stuffed", "256 KB, every line dot-stuffed", size=256 * KB, share=0.1, own=("--body", "stuffed")),
    Workload("recipients", "4 KB, 50 recipients", share=0.1, recipients=50),
    Workload(
        "starttls", "4 KB, a connection and a TLS handshake each", share=0.1, fresh=True, own=(), needs=_needs("tls")
    ),
    Workload("tls", "4 KB on kept connections, TLS", own=(), needs=_needs("tls")),
    Workload("bdat", "4 KB by BDAT, pipelined", own=("--bdat",), needs=_needs("bdat")),
    Workload("lmtp", "4 KB by LMTP, kept connections", needs=_needs("lmtp")),
    Workload(
        "auth", "4 KB, a connection and a login each", share=0.25, fresh=True, own=("--auth",), needs=_needs("auth")
    ),
    Workload(
        "idle", "one active connection among 10,000 idle", share=0.25, points=(1,), own=(), latency=True, idle=10_000
    ),
    Workload("growth", "4 KB, by number of connections", points=(10, 20, 100, 1000, 5000), own=(), latency=True),
    Workload("hooks", "4 KB on kept connections, by kind of hook", kind=_needs("hooks")),
    Workload(
        "workers", "4 KB, a connection each, two processors", share=0.5, fresh=True, kind=_needs("workers"), workers=2
    ),
    Workload("durable", "4 KB, answered when it is durable", share=0.5, points=(100,), kind=_needs("durable")),
)
