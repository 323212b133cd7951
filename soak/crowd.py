"""Ten thousand connections at one time, and honest mail among them.

python -m soak.crowd [--connections N]
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pathlib
import resource
import socket
import sys
import tempfile
import time
from typing import Any, Final

from .honest import Client, Interrupted, State, Wrong
from .ledger import Ledger
from .measuring import percentile
from .places import Place
from .servers import Served

__all__ = ["crowd"]

_ADDRESSES: Final = 8  # that the connections come from: each has its own 28,000 ports
_OPENING: Final = 200  # at a time
_MESSAGES: Final = 200
_SPARE: Final = 200  # descriptors beside the connections


async def crowd(folder: pathlib.Path, connections: int, ledger: Ledger) -> dict[str, Any]:
    """Open so many connections to one server, send mail among them, ask each something, and close them all.

    What is wrong goes into the ledger; returns what was measured.
    """
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < connections + _SPARE:
        try:
            hard = connections + _SPARE
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
        except (OSError, ValueError):
            return {"skipped": f"{connections} connections need more descriptors than this user may have"}
    else:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    served = Served(
        Place("crowd"),
        folder / "crowd",
        ["--domain", "mx.example", "--max-connections", str(connections + 10)],
        folder / "crowd.log",
    )
    await served.start()
    try:
        return await _measure(served, connections, ledger)
    finally:
        served.kill()
        for line in served.complaints():
            ledger.violation(f"crowd: {line}")


async def _measure(served: Served, connections: int, ledger: Ledger) -> dict[str, Any]:
    state = State(served.place, ledger)
    await _mail(state, 10)
    before = _look(served)
    began = time.perf_counter()
    many = await _open(served.place, connections)
    opened = time.perf_counter() - began
    crowded = _look(served)
    if len(many) != connections:
        ledger.violation(f"crowd: only {len(many)} of {connections} connections")
    state.latencies.clear()
    await _mail(state, _MESSAGES)
    began = time.perf_counter()
    wrong = sum(await asyncio.gather(*(_ask(each, b"NOOP\r\n", b"250 ") for each in many)))
    asked = time.perf_counter() - began
    wrong += sum(await asyncio.gather(*(_ask(each, b"QUIT\r\n", b"221 ") for each in many)))
    if wrong:
        ledger.violation(f"crowd: {wrong} wrong answers")
    for sock in many:
        sock.close()
    for _ in range(600):
        after = _look(served)
        if after[1] <= before[1]:
            break
        await asyncio.sleep(0.1)
    else:
        ledger.violation(f"crowd: {after[1]} descriptors are open at the end, {before[1]} were before")
    if await served.stop() != 0:
        ledger.violation("crowd: it ends with an error")
    ledger.sweep("crowd", served.maildir)
    return {
        "connections": len(many),
        "opened in seconds": round(opened, 2),
        "octets of memory each": (crowded[0] - before[0]) // max(1, len(many)),
        "memory at the end, octets": after[0],
        "messages among them": len(state.latencies),
        "p50 ms": round(percentile(state.latencies, 0.5) * 1000, 2),
        "p99 ms": round(percentile(state.latencies, 0.99) * 1000, 2),
        "all answered in seconds": round(asked, 2),
    }


def _look(served: Served) -> tuple[int, int]:
    served.sample(time.monotonic())
    (samples,) = served.samples.values()
    return samples[-1].memory, samples[-1].descriptors


async def _mail(state: State, messages: int) -> None:
    client = Client(state)
    try:
        await client.open()
        for _ in range(messages):
            await client.message(Client.plain)
        await client.close()
    except (Interrupted, Wrong) as error:
        state.ledger.violation(f"crowd: {type(error).__name__}: {error}")


async def _open(place: Place, connections: int) -> list[socket.socket]:
    """Connected, greeted, and greeting."""
    loop = asyncio.get_running_loop()
    gate = asyncio.Semaphore(_OPENING)

    async def one(number: int) -> socket.socket | None:
        async with gate:
            sock = socket.socket()
            sock.setblocking(False)
            try:
                sock.bind((f"127.0.0.{2 + number % _ADDRESSES}", 0))
                await loop.sock_connect(sock, ("127.0.0.1", place.port))
                if (await loop.sock_recv(sock, 4096)).startswith(b"220 "):
                    await loop.sock_sendall(sock, b"EHLO crowd.example\r\n")
                    if (await loop.sock_recv(sock, 4096)).startswith(b"250-"):
                        return sock
            except OSError:
                pass
            sock.close()
            return None

    found = await asyncio.gather(*(one(number) for number in range(connections)))
    return [sock for sock in found if sock is not None]


async def _ask(sock: socket.socket, command: bytes, begin: bytes) -> bool:
    """Whether the answer was wrong."""
    loop = asyncio.get_running_loop()
    try:
        await loop.sock_sendall(sock, command)
        return not (await loop.sock_recv(sock, 4096)).startswith(begin)
    except OSError:
        return True


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m soak.crowd", description=__doc__.splitlines()[0] if __doc__ else ""
    )
    parser.add_argument("--connections", type=int, default=10_000)
    arguments = parser.parse_args()
    ledger = Ledger()
    with tempfile.TemporaryDirectory() as folder:
        measured = asyncio.run(crowd(pathlib.Path(folder), arguments.connections, ledger))
    print(json.dumps({**measured, "violations": ledger.violations}, indent=2))
    return 1 if ledger.violations else 0


if __name__ == "__main__":
    sys.exit(main())
