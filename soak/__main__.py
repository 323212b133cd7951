"""Honest and hostile clients against the real server, for a while; prints what was measured, and fails on whatever must not be.

python -m soak --seconds 3600
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import shutil
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any, Final

import fastsmtp

from .crowd import crowd
from .honest import Client, State, clients_of, keep_going
from .ledger import Ledger
from .measuring import percentile, slope
from .servers import Sample, Served, plans

__all__ = ["main"]

_EVERY: Final = 1.0  # seconds between looks at the servers
_SHORT: Final = 300.0
_WARM: Final = 0.3  # the part of a process's life that is not judged, while its buffers grow
_FEWEST: Final = 15  # samples that can be judged
_GROWTH: Final = 4 * 1024 * 1024  # octets that a process may grow after that, on the line through its samples
_GROWTH_SHORT: Final = (
    12 * 1024 * 1024
)  # the same when there is less time than five minutes for its buffers to have grown
_MOST_MEMORY: Final = 200 * 1024 * 1024
_DESCRIPTORS: Final = 12  # that the line through the descriptors may rise, of some fifty that come and go
_SLOWEST: Final = 10.0  # seconds that an honest message may take, but for one in a hundred
_TURNED_AWAY: Final = 0.05  # part of honest attempts that may meet a server that is full


class Soak:
    """One run.

    Args:
        rate: honest messages a second, about.
        mutants: the hostile clients play dialogues at random instead of each its own trick, and no server is stopped.
    """

    def __init__(self, folder: pathlib.Path, seconds: float, rate: float, mutants: bool) -> None:
        self.mutants: Final = mutants
        self.ledger: Final = Ledger(strangers=mutants)
        self.seconds: Final = seconds
        self.rate: Final = rate
        self.servers: Final = plans(folder, 10 if seconds < _SHORT else 15)
        self.states: dict[str, State] = {}
        self.base: dict[str, int] = {}
        self.hostile: dict[str, Any] = {}

    async def run(self) -> None:
        """Start, load, stop in the middle of it, start again, load, and look at what is left."""
        try:
            for served in self.servers:
                await served.start()
                self.states[served.place.name] = State(served.place, self.ledger)
                await self._first(served)
                self.base[served.place.name] = self._descriptors(served)
            hostile = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "soak.mutants" if self.mutants else "soak.hostile"),
                *(served.place.to_json() for served in self.servers),
                stdout=asyncio.subprocess.PIPE,
            )
            try:
                await self._load()
            finally:
                with contextlib.suppress(ProcessLookupError):
                    hostile.terminate()
                out, _ = await hostile.communicate()
            self.hostile = json.loads(out)
            for text in self.hostile.pop("violations"):
                self.ledger.violation(text)
            await self._end()
        finally:
            for served in self.servers:
                served.kill()

    async def _first(self, served: Served) -> None:
        """A message, so that all is open that will stay open."""
        for _ in range(12):  # each worker gets one, but for once in two thousand runs
            client = Client(self.states[served.place.name])
            await client.open()
            await client.message(Client.plain)
            await client.close()
        await asyncio.sleep(0.5)

    def _descriptors(self, served: Served) -> int:
        served.sample(time.monotonic())
        return sum(served.samples[pid][-1].descriptors for pid in served.pids())

    async def _load(self) -> None:
        stop = asyncio.Event()
        tasks = []
        clients = [(served, each) for served in self.servers for each in clients_of(served.place)]
        for served, (habit, way, tls) in clients:
            slow = way is Client.paced
            rate = self.rate / len(clients) * (0.1 if slow else 1.0)
            state = self.states[served.place.name]
            tasks.append(asyncio.ensure_future(keep_going(state, habit, way, tls, rate, stop)))
        tasks.append(asyncio.ensure_future(self._watch(stop)))
        began = time.monotonic()
        await asyncio.sleep(self.seconds * 0.5)
        if not self.mutants:
            await asyncio.gather(*map(self._restart, self.servers))
        await asyncio.sleep(max(0.0, self.seconds - (time.monotonic() - began)))
        stop.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 300)

    async def _restart(self, served: Served) -> None:
        """SIGTERM under load: what was begun is finished, and it comes back at the same place."""
        state = self.states[served.place.name]
        state.stops += 1
        state.down = True
        began = time.monotonic()
        code = await served.stop()
        if code != 0:
            self.ledger.violation(f"{served.place.name}: it ends with {code}")
        await self._sweep(served)
        await served.start()
        state.down = False
        state.stops += 1
        self.ledger.counts["restarts"] += 1
        self.ledger.counts["seconds of stopping"] += round(time.monotonic() - began)

    async def _watch(self, stop: asyncio.Event) -> None:
        while not stop.is_set():
            now = time.monotonic()
            for served in self.servers:
                served.sample(now)
                await self._sweep(served)
                for line in served.complaints():
                    self.ledger.violation(f"{served.place.name}: {line}")
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), _EVERY)

    async def _sweep(self, served: Served) -> None:
        self.ledger.sweep(served.place.name, served.maildir)

    async def _end(self) -> None:
        """No client is there any more: all is given back, all is stored, and nothing else is."""
        for served in self.servers:
            name = served.place.name
            base = self.base[name]
            for _ in range(600):
                if self._descriptors(served) <= base:
                    break
                await asyncio.sleep(0.1)
            else:
                self.ledger.violation(
                    f"{name}: {self._descriptors(served)} descriptors are open at the end, {base} were before"
                )
            self.base[f"{name} at the end"] = self._descriptors(served)
            if await served.stop() != 0:
                self.ledger.violation(f"{name}: it ends with an error")
            await self._sweep(served)
            if left := os.listdir(served.maildir / "tmp"):
                self.ledger.violation(f"{name}: {len(left)} files in tmp")
            for line in served.complaints():
                self.ledger.violation(f"{name}: {line}")
        if self.ledger.stored_unanswered:
            self.ledger.violation(f"{self.ledger.stored_unanswered} more messages are there than were promised")

    # What came of it

    def judge(self) -> dict[str, Any]:
        """What was measured; what is not flat is a violation."""
        processes = [
            self._process(served.place.name, index, samples)
            for served in self.servers
            for index, samples in enumerate(served.samples.values())
        ]
        latencies = {}
        for name, state in self.states.items():
            p50, p99 = percentile(state.latencies, 0.5), percentile(state.latencies, 0.99)
            latencies[name] = {
                "messages": len(state.latencies),
                "p50 ms": round(p50 * 1000, 1),
                "p99 ms": round(p99 * 1000, 1),
                "longest ms": round(max(state.latencies, default=0.0) * 1000, 1),
            }
            if p99 > _SLOWEST:
                self.ledger.violation(f"{name}: p99 is {p99:.1f} s")
            if not state.latencies:
                self.ledger.violation(f"{name}: no message")
        counts = self.ledger.counts
        if counts["turned away"] > _TURNED_AWAY * counts["begun"] + 10:
            self.ledger.violation(f"{counts['turned away']} times an honest client was turned away")
        return {
            "twin": fastsmtp.IMPLEMENTATION,
            "seconds": self.seconds,
            "counts": dict(counts),
            "latency of honest messages": latencies,
            "descriptors": self.base,
            "processes": processes,
            "cpu seconds": {served.place.name: round(served.cpu(), 1) for served in self.servers},
            "cpu seconds of the clients": round(sum(os.times()[:2]) + self.hostile.get("cpu", 0.0), 1),
            "hostile": self.hostile.get("attacks", {}),
        }

    def _process(self, name: str, index: int, samples: Sequence[Sample]) -> dict[str, Any]:
        """One process's life; it must not grow once it is warm."""
        judged = samples[int(len(samples) * _WARM) :]
        told: dict[str, Any] = {
            "server": name,
            "seconds": round(samples[-1].time - samples[0].time),
            "memory MB": [round(pick(each.memory for each in samples) / 1e6, 1) for pick in (min, max)],
            "descriptors": [pick(each.descriptors for each in samples) for pick in (min, max)],
        }
        if max(each.memory for each in samples) > _MOST_MEMORY:
            self.ledger.violation(f"{name}, process {index}: more than {_MOST_MEMORY >> 20} MB")
        if len(judged) < _FEWEST:
            return told
        window = judged[-1].time - judged[0].time
        rise = slope([(each.time, each.memory) for each in judged])
        opened = slope([(each.time, each.descriptors) for each in judged])
        told["memory slope, KB per minute"] = round(rise * 60 / 1024, 1)
        told["descriptor slope, per minute"] = round(opened * 60, 2)
        bound = _GROWTH if window >= _SHORT else _GROWTH_SHORT
        if rise * window > bound:
            self.ledger.violation(
                f"{name}, process {index}: grew by {rise * window / 1e6:.1f} MB within {window:.0f} s"
            )
        if opened * window > _DESCRIPTORS + 0.5 * samples[0].descriptors:
            self.ledger.violation(
                f"{name}, process {index}: {opened * window:.0f} more descriptors within {window:.0f} s"
            )
        return told


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m soak", description="Honest and hostile clients against the real server."
    )
    parser.add_argument("--seconds", type=float, default=3600.0, help="how long (%(default)s)")
    parser.add_argument("--rate", type=float, default=50.0, help="honest messages a second, about (%(default)s)")
    parser.add_argument(
        "--crowd", type=int, default=10_000, help="connections at one time, at the end; 0: none (%(default)s)"
    )
    parser.add_argument(
        "--mutants", action="store_true", help="hostile clients that play dialogues at random, with any cuts"
    )
    parser.add_argument("--keep", metavar="DIR", help="work there and leave it; else in a temporary directory")
    arguments = parser.parse_args()
    folder = pathlib.Path(arguments.keep) if arguments.keep else pathlib.Path(tempfile.mkdtemp(prefix="soak-"))
    folder.mkdir(parents=True, exist_ok=True)
    soak = Soak(folder, arguments.seconds, arguments.rate, arguments.mutants)
    try:
        asyncio.run(soak.run())
        report = soak.judge()
        if arguments.crowd:
            report["crowd"] = asyncio.run(crowd(folder, arguments.crowd, soak.ledger))
    finally:
        if not arguments.keep:
            shutil.rmtree(folder, ignore_errors=True)
    report["violations"] = soak.ledger.violations
    print(json.dumps(report, indent=2))
    print(f"soak: {soak.ledger.counts['violations']} violations", file=sys.stderr)
    return 1 if soak.ledger.counts["violations"] else 0


if __name__ == "__main__":
    sys.exit(main())
