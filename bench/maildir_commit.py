"""How to make files durable: strategies by size of group, then the Maildir itself by number of sessions.

    python bench/maildir_commit.py [--dir DIR] [--messages N] [--size OCTETS]

Everything is written below DIR (default: the current directory; it must be on a real disk) and removed at the end, not
in between: ext4 does not reuse an inode within minutes of its deletion, and looking past thousands of them makes each
new file up to fifty times as expensive.  So wait five minutes between two runs, or give each a DIR in another block
group (`chattr +T` on its parent spreads them).  CPU is user and system time of this process, without kernel threads.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import shutil
import tempfile
import time
from collections.abc import Callable, Coroutine
from typing import Any

from fastsmtp.delivery._groupsync import Files, SyncMethod
from fastsmtp.delivery.maildir import Maildir

__all__ = ["main"]

FILES = Files()


def _cpu() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def _fsync(fds: list[int], new: int) -> None:
    for fd in fds:
        os.fsync(fd)


def _fdatasync(fds: list[int], new: int) -> None:
    for fd in fds:
        os.fdatasync(fd)


def _writeout_fsync(fds: list[int], new: int) -> None:
    for fd in fds:
        FILES.start_writeout(fd)
    _fsync(fds, new)


def _writeout_fdatasync(fds: list[int], new: int) -> None:
    for fd in fds:
        FILES.start_writeout(fd)
    _fdatasync(fds, new)


def _syncfs(fds: list[int], new: int) -> None:
    FILES.syncfs(new)


def _nothing(fds: list[int], new: int) -> None:
    """What the files cost when nobody waits for the disk."""


STRATEGIES: dict[str, Callable[[list[int], int], None]] = {
    "fsync of each": _fsync,
    "fdatasync of each": _fdatasync,
    "write-out, fsync of each": _writeout_fsync,
    "write-out, fdatasync of each": _writeout_fdatasync,
    "syncfs": _syncfs,
    "(no sync)": _nothing,
}


def _raw(path: str, sync: Callable[[list[int], int], None], group: int, messages: int, body: bytes) -> int:
    for name in ("tmp", "new"):
        os.makedirs(os.path.join(path, name))
    tmp = os.open(os.path.join(path, "tmp"), os.O_RDONLY)
    new = os.open(os.path.join(path, "new"), os.O_RDONLY)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
    done = 0
    while done < messages:
        names = [f"1700000000.M{done + i}P1Q{done + i}.host" for i in range(group)]
        fds = []
        for name in names:
            fd = os.open(name, flags, 0o600, dir_fd=tmp)
            os.writev(fd, [b"Received: x\r\n", body])
            fds.append(fd)
        sync(fds, new)
        for name, fd in zip(names, fds, strict=True):
            os.rename(name, name, src_dir_fd=tmp, dst_dir_fd=new)
            os.close(fd)
        if sync is not _nothing:
            os.fsync(new)
        done += group
    os.close(tmp)
    os.close(new)
    return done


async def _sessions(path: str, method: SyncMethod, sessions: int, messages: int, body: bytes) -> tuple[int, int]:
    async with Maildir(path, sync=method) as maildir:
        await maildir.deliver([b"Received: x\r\n", body])

        async def session() -> None:
            for _ in range(messages // sessions):
                await maildir.deliver([b"Received: x\r\n", body])

        await asyncio.gather(*(session() for _ in range(sessions)))
        return maildir.messages, maildir.groups


def _run(coroutine: Coroutine[Any, Any, tuple[int, int]], loop: str) -> tuple[int, int]:
    if loop == "uvloop":
        import uvloop

        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            return runner.run(coroutine)
    return asyncio.run(coroutine)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dir", default=".")
    parser.add_argument("--messages", type=int, default=2000, help="per row")
    parser.add_argument("--size", type=int, default=4096)
    parser.add_argument("--loop", choices=("asyncio", "uvloop"), default="asyncio")
    parser.add_argument("--only", choices=("raw", "sessions"))
    options = parser.parse_args()
    body = os.urandom(options.size)
    base = tempfile.mkdtemp(prefix="maildir-bench-", dir=options.dir)
    number = 0
    try:
        if options.only != "sessions":
            print(f"{'strategy':30} {'group':>5} {'msg/s':>7} {'CPU us/msg':>10}")
            for group in (1, 20, 100):
                messages = max(group, min(options.messages, 300 * group))
                for name, sync in STRATEGIES.items():
                    number += 1
                    cpu, began = _cpu(), time.perf_counter()
                    done = _raw(os.path.join(base, str(number)), sync, group, messages, body)
                    wall, cpu = time.perf_counter() - began, _cpu() - cpu
                    print(f"{name:30} {group:5} {done / wall:7.0f} {cpu / done * 1e6:10.0f}", flush=True)
        if options.only != "raw":
            print(f"\n{'Maildir.deliver, sync=':30} {'sess.':>5} {'msg/s':>7} {'CPU us/msg':>10} {'per group':>9}")
            methods: tuple[SyncMethod, ...] = ("fsync", "syncfs", "auto")
            for sessions in (1, 20, 100):
                messages = max(sessions, min(options.messages, 300 * sessions))
                for method in methods:
                    number += 1
                    cpu, began = _cpu(), time.perf_counter()
                    done, groups = _run(
                        _sessions(os.path.join(base, str(number)), method, sessions, messages, body), options.loop
                    )
                    wall, cpu = time.perf_counter() - began, _cpu() - cpu
                    print(
                        f"{method:30} {sessions:5} {done / wall:7.0f} {cpu / done * 1e6:10.0f} {done / groups:9.1f}",
                        flush=True,
                    )
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
