"""End to end: CPU per message and messages per second of servers that accept and drop, beside each other.

    python -m bench.e2e [--workloads kept,fresh,...] [--peers NAME,...] [--rounds 5] [--messages 20000] [--smoke] [--list]

Load comes from Postfix's smtp-source, and from `bench.load` where that cannot; the server runs on the first processor, the load on the
last.  The servers take turns in rounds, so that a machine whose speed drifts does so for all of them.  Tables, JSON and pictures go to
bench/results/, a file for each workload: a run of some leaves those of the others.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from . import pictures, report
from .measuring import Failed, Place, measure
from .servers import PEERS, BuildError, Peer, tool
from .workloads import WORKLOADS, Workload

SMOKE_MESSAGES = 200
SMOKE_IDLE = 50
FAILED = "it failed"


@contextmanager
def place(folder: pathlib.Path) -> Iterator[Place]:
    """A certificate for localhost, and a directory on the disk that is removed at the end, not in between: ext4 makes new files
    slowly for minutes where many were removed."""
    disk = pathlib.Path(tempfile.mkdtemp(prefix="bench-", dir=folder))
    disk.chmod(0o755)  # Postfix has users of its own
    certificate = authority = None
    try:
        try:
            import trustme
        except ImportError:
            pass
        else:
            made = trustme.CA()
            certificate, authority = disk / "certificate.pem", disk / "authority.pem"
            made.issue_cert("localhost").private_key_and_cert_chain_pem.write_to_path(certificate)
            made.cert_pem.write_to_path(authority)
        yield Place(certificate, authority, disk)
    finally:
        shutil.rmtree(disk, ignore_errors=True)


def available(names: list[str], build: bool) -> tuple[list[Peer], dict[str, str]]:
    """The peers that the machine can have, built; and why it cannot have the others."""
    peers, skipped = [], {}
    for peer in PEERS:
        if names and not any(part in peer.name for part in names):
            continue
        reason = peer.missing()
        if not reason and peer.build is not None and not peer.built():
            if not build and peer.name != "epoll loop (C)":  # the others need the network
                reason = "it is not built"
            else:
                try:
                    peer.build()
                except BuildError as error:
                    reason = str(error)
        if reason:
            skipped[peer.name] = reason
            print(f"skipped: {peer.name}: {reason}", flush=True)
        else:
            peers.append(peer)
    return peers, skipped


def takers(workload: Workload, peers: list[Peer], skipped: dict[str, str]) -> tuple[list[Peer], dict[str, str]]:
    """The peers that have a part in a workload, and why others have none."""
    kind = {peer.name for peer in PEERS if peer.kind & workload.kind}
    reasons = {name: why for name, why in skipped.items() if name in kind}
    able = []
    for peer in peers:
        if peer.name in kind:
            if lacks := workload.needs - peer.can:
                reasons[peer.name] = f"it has no {', '.join(sorted(lacks)).upper()}"
            else:
                able.append(peer)
    return able, reasons


def impossible(workload: Workload, where: Place) -> str | None:
    """Why a workload cannot be run at all, or None."""
    if workload.own is None and tool("smtp-source") is None:
        return "smtp-source (Debian's package postfix) is not installed"
    if "tls" in workload.needs and where.certificate is None:
        return "trustme, which makes certificates, is not installed"
    return None


def compare(
    workload: Workload, peers: list[Peer], skipped: dict[str, str], where: Place, rounds: int, messages: int
) -> report.Table:
    """All rounds of one workload.  A server that fails once is left out of the rest."""
    able, reasons = takers(workload, peers, skipped)
    table = report.Table(workload, skipped=reasons, machine=report.machine())
    rows = {(peer.name, count): report.Row(peer.name, count) for peer in able for count in workload.points}
    for number in range(rounds):
        for count in workload.points:
            for peer in able:
                if peer.name in reasons:
                    continue
                # Ten for each connection: its first one finds all of it cold.
                amount = max(count * 10, int(messages * workload.share * peer.share))
                try:
                    run = measure(peer, workload, where, count, amount)
                except Failed as error:
                    reasons[peer.name] = f"{FAILED} with {count} connections: {error}"
                    print(f"{workload.name}: {peer.name}: {error}", flush=True)
                    continue
                rows[peer.name, count].runs.append(run)
                progress = f"{workload.name} {number + 1}/{rounds} {peer.name}, {count} connections"
                print(f"{progress}: {run.cpu:.1f} us, {run.rate:.0f}/s", flush=True)
    table.rows = list(rows.values())
    return table


def smoke(peers: list[Peer], skipped: dict[str, str], where: Place, workloads: list[Workload]) -> int:
    """Each workload once, each peer at least once, with next to no messages: does it work?  Gives the number of failures."""
    failures, seen = 0, set()
    for workload in workloads:
        if why := impossible(workload, where):
            print(f"skipped: {workload.name}: {why}")
            continue
        able, _ = takers(workload, peers, skipped)
        for place, peer in enumerate(able):
            if place and peer.name in seen:
                continue
            seen.add(peer.name)
            messages = max(2, min(SMOKE_MESSAGES, 8 * 1024 * 1024 // workload.size))
            try:
                run = measure(peer, workload, where, min(workload.points), messages, SMOKE_IDLE if workload.idle else 0)
            except Failed as error:
                failures += 1
                print(f"failed: {workload.name}: {peer.name}: {error}", flush=True)
            else:
                print(f"{workload.name}: {peer.name}: {run.cpu:.0f} us, {run.rate:.0f}/s", flush=True)
    return failures


def options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", default="", help="all by default")
    parser.add_argument("--peers", default="", help="names that contain one of these; all by default")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--messages", type=int, default=20_000, help="of the workload `kept`; others take a part of it")
    parser.add_argument("--disk", type=pathlib.Path, default=report.RESULTS, help="a directory on a real disk")
    parser.add_argument("--no-build", action="store_true", help="build nothing that needs the network")
    parser.add_argument("--smoke", action="store_true", help="each workload and each peer once, shortly")
    parser.add_argument("--list", action="store_true", help="say what there is")
    chosen = parser.parse_args()
    unknown = set(filter(None, chosen.workloads.split(","))) - {each.name for each in WORKLOADS}
    if unknown:
        parser.error(f"no such workload: {', '.join(sorted(unknown))}")
    if not chosen.smoke and min(chosen.rounds, chosen.messages) < 1:
        parser.error("one round and one message are the least")
    return chosen


def main() -> int:
    arguments = options()
    if not pathlib.Path("/proc/self/stat").exists() or not hasattr(os, "sched_setaffinity"):
        print("bench.e2e reads /proc and pins processes: Linux only")
        return 0
    names = list(filter(None, arguments.workloads.split(",")))
    workloads = [each for each in WORKLOADS if not names or each.name in names]
    if arguments.list:
        for workload in workloads:
            print(f"{workload.name:12} {workload.title}")
        for peer in PEERS:
            print(f"{peer.name:24} {peer.missing() or ''}")
        return 0
    report.RESULTS.mkdir(exist_ok=True)
    peers, skipped = available(
        list(filter(None, arguments.peers.split(","))), not (arguments.no_build or arguments.smoke)
    )
    failed = False
    with place(arguments.disk) as where:
        if arguments.smoke:
            return min(1, smoke(peers, skipped, where, workloads))
        for workload in workloads:
            if why := impossible(workload, where):
                print(f"skipped: {workload.name}: {why}")
                continue
            table = compare(workload, peers, skipped, where, arguments.rounds, arguments.messages)
            failed |= any(why.startswith(FAILED) for why in table.skipped.values())
            report.save(table, report.RESULTS)
            if not pictures.missing():
                pictures.draw(table, report.RESULTS)
    if why := pictures.missing():
        print(f"no pictures: {why}")
    print("\n" + report.write(report.load(report.RESULTS), report.RESULTS))
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
