"""A relay with a queue, from smtp-source to smtp-sink, beside Postfix: how fast it accepts, and how fast all has arrived.

    python -m bench.relay [--messages 20000] [--sessions 20,100] [--rounds 3] [--check]

Each relay has a directory of its own on the disk and both processors; they take turns in rounds.  What is answered is durable.  The
accept rate is that of smtp-source; the through rate counts until smtp-sink has all of them.  With `--check` nothing is timed: the sink
keeps each message, and they are compared by Message-Id: none may be lost, none come twice.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import pathlib
import re
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from .measuring import Failed, free_port, wait_for
from .report import RESULTS, machine
from .servers import HERE, tool

__all__ = ["main"]

LONGEST = 600.0  # seconds of one run
_ID = re.compile(rb"^Message-Id: *(\S+)", re.IGNORECASE | re.MULTILINE)


@dataclass(slots=True)
class Relay:
    """One that is measured.

    Attributes:
        name: as in the table.
        command: what it is started with; {port}, {folder} and {next} are filled in.
        accepted, through: messages per second of each run, by sessions.
    """

    name: str
    command: Sequence[str]
    accepted: dict[int, list[float]] = field(default_factory=dict)
    through: dict[int, list[float]] = field(default_factory=dict)


def _fastsmtp(workers: int, *more: str) -> list[str]:
    command = [sys.executable, "-m", "fastsmtp", "relay", "--port", "{port}", "--to", "smtp://127.0.0.1:{next}"]
    return [*command, "--queue", "sqlite:{folder}/queue", "--workers", str(workers), *more]


def relays() -> list[Relay]:
    """Those that the machine can have."""
    found = [Relay("fastsmtp relay", _fastsmtp(1)), Relay("fastsmtp relay, 2 workers", _fastsmtp(2))]
    if tool("postfix") and os.geteuid() == 0:
        program = str(HERE / "postfix_queue.py")
        found.append(Relay("Postfix", [sys.executable, program, "{port}", "{folder}", "{next}"]))
    else:
        print("skipped: Postfix: it is not installed, or this is not root")
    return found


@contextlib.contextmanager
def _running(command: Sequence[str], port: int) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_for(port, process)
        yield process
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(60)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _sink(port: int, *more: str) -> list[str]:
    user = ["-u", "nobody"] if os.geteuid() == 0 else []
    return [tool("smtp-sink") or "smtp-sink", *user, "-m", "2000", *more, f"127.0.0.1:{port}", "4096"]


def _send(port: int, sessions: int, messages: int) -> float:
    """Seconds that it took to be rid of them."""
    command = [tool("smtp-source") or "smtp-source", "-d", "-l", "4096", "-s", str(sessions), "-m", str(messages)]
    command += ["-f", "a@b.example", "-t", "c@d.example", f"127.0.0.1:{port}"]
    began = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LONGEST)
    if done.returncode:
        raise Failed((done.stderr.strip().splitlines() or ["smtp-source failed"])[-1])
    return time.perf_counter() - began


def run(relay: Relay, folder: pathlib.Path, sessions: int, messages: int) -> tuple[float, float]:
    """Messages per second accepted, and through."""
    port, following = free_port(), free_port()
    fill = {"port": str(port), "folder": str(folder), "next": str(following)}
    # One message is the greeting's: who waits for it says QUIT, which smtp-sink does not count.
    with _running(_sink(following, "-M", str(messages)), following) as sink:
        with _running([each.format(**fill) for each in relay.command], port):
            began = time.perf_counter()
            accepted = _send(port, sessions, messages)
            try:
                sink.wait(LONGEST)
            except subprocess.TimeoutExpired:
                raise Failed("not all have arrived in time") from None
            return messages / accepted, messages / (time.perf_counter() - began)


def check(relay: Relay, folder: pathlib.Path, sessions: int, messages: int) -> tuple[int, int]:
    """How many were lost, and how many came more than once."""
    port, following = free_port(), free_port()
    fill = {"port": str(port), "folder": str(folder), "next": str(following)}
    kept = folder / "kept"
    kept.mkdir()
    kept.chmod(0o777)
    with _running(_sink(following, "-M", str(messages), "-d", f"{kept}/%M."), following) as sink:
        with _running([each.format(**fill) for each in relay.command], port):
            _send(port, sessions, messages)
            with contextlib.suppress(subprocess.TimeoutExpired):
                sink.wait(LONGEST / 4)
    seen: Counter[bytes] = Counter()
    for path in kept.iterdir():
        found = _ID.search(path.read_bytes())
        seen[found[1] if found else b""] += 1
    return messages - len(seen), sum(count - 1 for count in seen.values())


def table(found: Sequence[Relay], sessions: Sequence[int], messages: int) -> str:
    """In Markdown; the last is what others are compared with."""
    lines = [f"### A relay with a queue, {messages:,} messages of 4 KB", ""]
    lines += [
        "| relay | sessions | accepted/s | through/s | accepted, last = 1 | through, last = 1 |",
        "|---|---|---|---|---|---|",
    ]
    base = found[-1]
    for count in sessions:
        for relay in found:
            cells = [relay.name, str(count)]
            ratios = []
            for rates, others in (
                (relay.accepted[count], base.accepted[count]),
                (relay.through[count], base.through[count]),
            ):
                cells.append(f"{statistics.median(rates):,.0f} ({min(rates):,.0f} to {max(rates):,.0f})")
                ratios.append(f"{statistics.median(rates) / statistics.median(others):.1f}")
            lines.append(f"| {' | '.join(cells + ratios)} |")
    rounds = len(base.accepted[sessions[0]])
    return "\n".join([*lines, "", f"Median (least to most) of {rounds} rounds on {machine()}."]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--sessions", default="20,100")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--disk", type=pathlib.Path, default=RESULTS, help="a directory on a real disk")
    parser.add_argument("--check", action="store_true", help="is each message there once?")
    options = parser.parse_args()
    if not (tool("smtp-source") and tool("smtp-sink")):
        print("skipped: smtp-source (Debian's package postfix) is not installed")
        return 0
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    RESULTS.mkdir(exist_ok=True)
    sessions = [int(each) for each in options.sessions.split(",")]
    found = relays()
    wrong = False
    disk = pathlib.Path(tempfile.mkdtemp(prefix="relay-", dir=options.disk))
    disk.chmod(0o755)  # Postfix has users of its own
    try:
        for number in range(1 if options.check else options.rounds):
            for count in sessions:
                for relay in found:
                    folder = pathlib.Path(tempfile.mkdtemp(dir=disk))
                    folder.chmod(0o755)
                    if options.check:
                        lost, twice = check(relay, folder, count, options.messages)
                        wrong |= bool(lost or twice)
                        print(
                            f"{relay.name}, {count} sessions: {options.messages} sent, {lost} lost, {twice} too many",
                            flush=True,
                        )
                        continue
                    accepted, through = run(relay, folder, count, options.messages)
                    relay.accepted.setdefault(count, []).append(accepted)
                    relay.through.setdefault(count, []).append(through)
                    print(
                        f"{number + 1}/{options.rounds} {relay.name}, {count}: {accepted:.0f}/s, {through:.0f}/s",
                        flush=True,
                    )
    finally:
        shutil.rmtree(disk, ignore_errors=True)
    if not options.check:
        text = table(found, sessions, options.messages)
        print("\n" + text)
        (RESULTS / "relay.md").write_text(text)
        raw = {each.name: {"accepted": each.accepted, "through": each.through} for each in found}
        (RESULTS / "relay.json").write_text(json.dumps(raw, indent=1) + "\n")
    return int(wrong)


if __name__ == "__main__":
    sys.exit(main())
