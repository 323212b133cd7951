"""Runs a harness in rounds: for so long or so often, in so many processes, counted, and each round to be had again by its number."""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from contextlib import contextmanager
from itertools import count

__all__ = ["Failure", "Play", "generator", "main", "work"]

Play = Callable[[random.Random, float], Counter[str]]
"""One round: what it did, by name.  It takes all chance from the generator; the number is its size, 1.0 for about a second."""


class Failure(AssertionError):
    """What a harness found: words, and a Python expression of the input."""


def generator(seed: int, number: int) -> random.Random:
    """The source of all chance in one round."""
    return random.Random(f"{seed}:{number}")


def work(play: Play, seed: int, number: int, size: float) -> Counter[str]:
    """Play one round.  What it raises says which one it was."""
    unraisable: list[sys.UnraisableHookArgs] = []
    hook = sys.unraisablehook
    sys.unraisablehook = unraisable.append
    try:
        counts = play(generator(seed, number), size)
        if unraisable:
            raise Failure(f"an error that could not be raised: {unraisable[0].exc_value!r} in {unraisable[0].object!r}")
        return counts
    except Exception as error:
        error.add_note(f"again by: --seed {seed} --round {number} --size {size}")
        raise
    finally:
        sys.unraisablehook = hook


def _alone(play: Play, seed: int, size: float) -> Iterator[Counter[str]]:
    for number in count():
        yield work(play, seed, number, size)


def _together(play: Play, seed: int, size: float, jobs: int) -> Iterator[Counter[str]]:
    numbers = count()
    with ProcessPoolExecutor(jobs) as pool:
        waiting: set[Future[Counter[str]]] = set()
        try:
            while True:
                while len(waiting) < 2 * jobs:
                    waiting.add(pool.submit(work, play, seed, next(numbers), size))
                done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for each in done:
                    yield each.result()
        finally:
            pool.shutdown(cancel_futures=True)


@contextmanager
def _rounds(play: Play, seed: int, size: float, jobs: int) -> Iterator[Iterator[Counter[str]]]:
    rounds = _alone(play, seed, size) if jobs == 1 else _together(play, seed, size, jobs)
    try:
        yield rounds
    finally:
        rounds.close()  # type: ignore[attr-defined]


def main(play: Play, what: str, argv: list[str] | None = None) -> int:
    """The command of a harness: 0 when nothing was found."""
    parser = argparse.ArgumentParser(description=what)
    parser.add_argument("--seconds", type=float, default=0.0, help="how long; 10 if nothing else is said")
    parser.add_argument(
        "--executions", type=float, default=0.0, help="how many, 1e8 for example; the first limit that is met ends it"
    )
    parser.add_argument("--seed", type=int, help="of all rounds; another one each time if it is not given")
    parser.add_argument("--jobs", type=int, default=1, help="processes; 0 for one for each processor")
    parser.add_argument("--round", type=int, help="only this round")
    parser.add_argument("--size", type=float, default=1.0, help="of a round, 1.0 for about a second")
    options = parser.parse_args(argv)
    seed = int.from_bytes(os.urandom(4)) if options.seed is None else options.seed
    seconds = options.seconds or (0.0 if options.executions else 10.0)
    started = time.monotonic()
    total: Counter[str] = Counter()
    print(f"{what}: seed {seed}", flush=True)
    if options.round is not None:
        total = work(play, seed, options.round, options.size)
    else:
        shown = started
        with _rounds(play, seed, options.size, options.jobs or os.cpu_count() or 1) as rounds:
            for counts in rounds:
                total += counts
                now = time.monotonic()
                if now - shown >= 60:
                    shown = now
                    print(_line(total, now - started), flush=True)
                if (seconds and now - started >= seconds) or (
                    options.executions and total.total() >= options.executions
                ):
                    break
    for name, number in sorted(total.items()):
        print(f"{number:15,d}  {name}")
    print(_line(total, time.monotonic() - started), flush=True)
    return 0


def _line(total: Counter[str], seconds: float) -> str:
    number = total.total()
    return f"{number:15,d}  executions in {seconds:.0f} s, {number / max(seconds, 1e-9):,.0f} a second, nothing found"


if __name__ == "__main__":
    sys.exit("a harness is started, not this")
