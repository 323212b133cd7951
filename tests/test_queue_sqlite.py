"""The queue in a directory: what is made and refused, side files, groups, failures of disk and database, crashes."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from fastsmtp.delivery._groupsync import Files
from fastsmtp.delivery.queue import (
    Envelope,
    LeaseLost,
    Message,
    NoSuchMessage,
    QueueFull,
    QueueInUse,
    QueueUnavailable,
    SQLiteQueue,
    Target,
    sqlite,
)
from fastsmtp.delivery.queue._lanes import Lane, Lanes
from fastsmtp.delivery.queue._leases import Leases
from fastsmtp.delivery.queue._store import Claimed
from fastsmtp.errors import ConfigurationError
from fastsmtp.extensions import MailParams
from fastsmtp.reply import SMTPError

from .loops import Runner

ENVELOPE = Envelope("s@example.org", (Target("a@x.example", "x.example"),))
TWO = Envelope("s@example.org", (Target("a@x.example", "x.example"), Target("b@y.example", "y.example")))
LARGE = 200_000


async def text(pieces: AsyncIterator[bytes]) -> bytes:
    return b"".join([piece async for piece in pieces])


def bodies(path: Path) -> list[str]:
    return sorted(os.listdir(path / "bodies"))


# The directory.


def test_is_made(tmp_path: Path) -> None:
    path = tmp_path / "q"
    for _ in range(2):
        queue = SQLiteQueue(path)
        queue.close()
        queue.close()
        assert sorted(os.listdir(path)) == ["bodies", "lock", "queue.db"]
    assert [stat.S_IMODE(os.stat(each).st_mode) for each in (path, path / "bodies")] == [0o700, 0o700]
    assert repr(queue) == f"<SQLiteQueue {str(path)!r}>"


def test_what_is_no_queue(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_bytes(b"")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "lock").write_bytes(b"")
    (tmp_path / "broken" / "queue.db").write_bytes(b"not a database" * 1000)
    for name, reason in (
        ("file", "is no directory"),
        ("full", "has files, but no lock"),
        ("none/q", "No such file"),
        ("file/q", "is no directory"),
        ("broken", "not a database"),
    ):
        with pytest.raises(ConfigurationError, match=reason) as caught:
            SQLiteQueue(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("PRAGMA user_version = 99", "version 99"),
        ("PRAGMA application_id = 1", "something else"),
        ("DROP TABLE mark", "mark"),
    ],
)
def test_another_database(tmp_path: Path, change: str, reason: str) -> None:
    SQLiteQueue(tmp_path / "q").close()
    connection = sqlite3.connect(tmp_path / "q" / "queue.db")
    connection.execute(change)
    connection.commit()
    connection.close()
    for _ in range(2):  # it is not locked after the failure
        with pytest.raises(ConfigurationError, match=reason) as caught:
            SQLiteQueue(tmp_path / "q")
        assert not isinstance(caught.value, QueueInUse)


def test_in_use(tmp_path: Path) -> None:
    queue = SQLiteQueue(tmp_path / "q")
    with pytest.raises(QueueInUse, match=f"in process {os.getpid()}"):
        SQLiteQueue(tmp_path / "q")
    code = (
        "import sys\nfrom fastsmtp.delivery.queue import QueueInUse, SQLiteQueue\n"
        "try: SQLiteQueue(sys.argv[1])\nexcept QueueInUse: print('in use')"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "q")]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout == "in use\n"
    queue.close()
    SQLiteQueue(tmp_path / "q").close()


def test_settings(tmp_path: Path) -> None:
    made: list[sqlite3.Connection] = []

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        made.append(sqlite3.connect(*args, **options))
        return made[-1]

    queue = SQLiteQueue(tmp_path / "q", connect=connect)
    for each in made:
        assert each.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert each.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL
    queue.close()


# Side files.


def test_side_files(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with SQLiteQueue(tmp_path / "q") as queue:
            await queue.put(TWO, bytes(65536))
            assert bodies(tmp_path / "q") == []
            ids = [await queue.put(each, bytes(LARGE)) for each in (ENVELOPE, TWO, ENVELOPE)]
            assert bodies(tmp_path / "q") == ids
            assert os.path.getsize(tmp_path / "q" / "bodies" / ids[0]) == LARGE
            await queue.remove(ids[2])
            while claims := await queue.claim(lease=60, limit=9):
                await asyncio.gather(*(queue.acknowledge(claim.lease) for claim in claims))
        assert bodies(tmp_path / "q") == []

    run(main)


def test_orphans_are_swept(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        path = tmp_path / "q"
        async with SQLiteQueue(path) as queue:
            small, large = await queue.put(ENVELOPE, b"x"), await queue.put(ENVELOPE, bytes(LARGE))
        for name in (small, "0000000000001", "nonsense"):
            (path / "bodies" / name).write_bytes(b"half")
        async with SQLiteQueue(path) as queue:
            assert bodies(path) == [large]
            assert await text(queue.body(small)) == b"x"
            assert len(await text(queue.body(large))) == LARGE

    run(main)


def test_a_lost_or_short_body_is_never_whole(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with SQLiteQueue(tmp_path / "q") as queue:
            id = await queue.put(ENVELOPE, bytes(LARGE))
            file = tmp_path / "q" / "bodies" / id
            os.truncate(file, LARGE - 1)
            with pytest.raises(QueueUnavailable, match="damaged"):
                await text(queue.body(id))
            file.unlink()
            with pytest.raises(QueueUnavailable, match="lost"):
                await text(queue.body(id))
            await queue.remove(id)
            with pytest.raises(NoSuchMessage):
                await text(queue.body(id))

    run(main)


# Groups, and the order of things.


class Recorder(Files):
    """Notes the calls, and does what a test says before each."""

    def __init__(self, before: Callable[[str], None]) -> None:
        self.before = before

    def open(self, name: str, *args: Any, **options: Any) -> int:  # type: ignore[override]
        self.before("open")
        return os.open(name, *args, **options)

    def writev(self, fd: int, parts: Any) -> int:
        self.before("write")
        return os.writev(fd, parts)

    def unlink(self, name: str, **options: Any) -> None:  # type: ignore[override]
        self.before("unlink")
        os.unlink(name, **options)

    def fsync(self, fd: int) -> None:
        self.before("fsync")
        os.fsync(fd)

    def sync_directory(self, fd: int) -> None:
        self.before("sync_directory")
        os.fsync(fd)


def connecting(before: Callable[[str], None]) -> Callable[..., sqlite3.Connection]:
    """Connections that call `before` with the first word of each statement."""

    class Connection(sqlite3.Connection):
        def execute(self, sql: str, *args: Any) -> sqlite3.Cursor:
            before(sql.split(maxsplit=1)[0])
            return super().execute(sql, *args)

    return lambda *args, **options: sqlite3.connect(*args, factory=Connection, **options)


def test_a_body_is_on_the_disk_before_the_message(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        calls: list[str] = []
        async with SQLiteQueue(tmp_path / "q", files=Recorder(calls.append), connect=connecting(calls.append)) as queue:
            calls.clear()
            await queue.put(ENVELOPE, bytes(LARGE))
            calls.append("answer")
            assert calls == (
                ["open", "write", "fsync", "sync_directory", "BEGIN", "UPDATE", "INSERT", "INSERT", "COMMIT", "answer"]
            )
            (claim,) = await queue.claim(lease=60)
            calls.clear()
            await queue.acknowledge(claim.lease)
        assert calls[:5] == ["BEGIN", "DELETE", "DELETE", "COMMIT", "unlink"]

    run(main)


def test_what_waits_is_committed_together(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        async with SQLiteQueue(tmp_path / "q") as queue:
            ids = await asyncio.gather(*(queue.put(TWO, b"%d" % number) for number in range(150)))
            assert queue.groups == 1
            for number, id in enumerate(ids):
                assert await text(queue.body(id)) == b"%d" % number
            claims = await queue.claim(lease=60, limit=150, destination="x.example")
            claims += await queue.claim(lease=60, limit=150, destination="y.example")
            assert len(claims) == 300
            gone = await asyncio.gather(*(queue.acknowledge(claim.lease) for claim in claims))
            assert gone == [False] * 150 + [True] * 150
            assert queue.groups == 2

    run(main)


# Failures.


class Faults:
    """Lets a kind of call fail."""

    def __init__(self) -> None:
        self.step = ""
        self.error: Exception = OSError(errno.EIO, "injected")
        self.times = 0

    def __call__(self, step: str) -> None:
        if step == self.step and self.times:
            self.times -= 1
            raise self.error

    def set(self, step: str, error: Exception, times: int = 1) -> None:
        self.step, self.error, self.times = step, error, times


@pytest.mark.parametrize("step", ["open", "write", "fsync", "sync_directory"])
@pytest.mark.parametrize(("code", "refusal"), [(errno.ENOSPC, 452), (errno.EDQUOT, 452), (errno.EIO, 451)])
def test_side_files_that_fail(tmp_path: Path, run: Runner, step: str, code: int, refusal: int) -> None:
    async def main() -> None:
        faults = Faults()
        path = tmp_path / "q"
        async with SQLiteQueue(path, files=Recorder(faults)) as queue:
            await queue.put(ENVELOPE, b"before")
            faults.set(step, OSError(code, "injected"))
            with pytest.raises(SMTPError) as caught:
                await queue.put(ENVELOPE, bytes(LARGE))
            assert caught.value.code == refusal
            assert "injected" in str(caught.value)
            assert "injected" not in caught.value.message
            stats = await queue.stats()
            assert (stats.messages, stats.octets) == (1, 6)
            id = await queue.put(ENVELOPE, bytes(LARGE))
        assert bodies(path) == [id]
        async with SQLiteQueue(path) as queue:
            assert (await queue.stats()).messages == 2

    run(main)


def database_error(code: int) -> sqlite3.Error:
    error = sqlite3.OperationalError("injected")
    error.sqlite_errorcode = code
    return error


@pytest.mark.parametrize("step", ["BEGIN", "INSERT", "COMMIT"])
@pytest.mark.parametrize(
    ("code", "refusal"), [(sqlite3.SQLITE_FULL, 452), (sqlite3.SQLITE_IOERR, 451), (sqlite3.SQLITE_CORRUPT, 451)]
)
def test_puts_that_the_database_refuses(tmp_path: Path, run: Runner, step: str, code: int, refusal: int) -> None:
    async def main() -> None:
        faults = Faults()
        path = tmp_path / "q"
        async with SQLiteQueue(path, connect=connecting(faults)) as queue:
            await queue.put(ENVELOPE, b"before")
            faults.set(step, database_error(code))
            outcomes = await asyncio.gather(*(queue.put(ENVELOPE, b"x") for _ in range(3)), return_exceptions=True)
            codes = [each.code for each in outcomes if isinstance(each, SMTPError)]
            assert codes == [refusal] * 3
            faults.set(step, database_error(code))
            with pytest.raises(SMTPError):
                await queue.put(ENVELOPE, bytes(LARGE))
            stats = await queue.stats()
            assert (stats.messages, stats.octets, stats.due) == (1, 6, 1)
            await queue.put(ENVELOPE, b"after")
        assert bodies(path) == []
        async with SQLiteQueue(path) as queue:
            claims = await queue.claim(lease=60, limit=9)
            assert [await text(claim.body()) for claim in claims] == [b"before", b"after"]

    run(main)


def test_what_makes_room_does_not_fail_with_puts(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        faults = Faults()
        async with SQLiteQueue(tmp_path / "q", connect=connecting(faults)) as queue:
            ids = [await queue.put(ENVELOPE, b"x") for _ in range(2)]
            (claim,) = await queue.claim(lease=60)
            faults.set("INSERT", database_error(sqlite3.SQLITE_FULL))
            put, settled, removed = await asyncio.gather(
                queue.put(ENVELOPE, b"y"),
                queue.acknowledge(claim.lease),
                queue.remove(ids[1]),
                return_exceptions=True,
            )
            assert isinstance(put, QueueFull)
            assert settled is True
            assert removed is None
            assert (await queue.stats()).messages == 0
            assert await queue.claim(lease=60) == []

    run(main)


@pytest.mark.parametrize("times", [1, 3])
def test_a_lease_goes_on_when_its_end_cannot_be_stored(tmp_path: Path, run: Runner, times: int) -> None:
    async def main() -> None:
        faults = Faults()
        now = 1e9
        async with SQLiteQueue(tmp_path / "q", connect=connecting(faults), clock=lambda: now) as queue:
            await queue.put(TWO, b"x")
            (claim,) = await queue.claim(lease=60)
            for _ in range(times):
                faults.set("COMMIT", database_error(sqlite3.SQLITE_IOERR))
                with pytest.raises(QueueUnavailable):
                    await queue.acknowledge(claim.lease)
                assert await queue.claim(lease=60, destination=claim.destination) == []
            now += 60
            (again,) = await queue.claim(lease=60, destination=claim.destination)
            faults.set("COMMIT", database_error(sqlite3.SQLITE_IOERR))
            with pytest.raises(QueueUnavailable):
                await queue.retry(again.lease, now + 10)
            assert not await queue.acknowledge(again.lease)

    run(main)


def test_changes_that_fail(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        faults = Faults()
        async with SQLiteQueue(tmp_path / "q", connect=connecting(faults)) as queue:
            id = await queue.put(ENVELOPE, b"x")
            (claim,) = await queue.claim(lease=60)
            for change in (queue.hold, queue.release, queue.remove):
                faults.set("COMMIT", database_error(sqlite3.SQLITE_IOERR))
                with pytest.raises(QueueUnavailable):
                    await change(id)
            assert (await queue.stats()).messages == 1
            (again,) = await queue.claim(lease=60)  # removing began by taking the lease away
            assert again.lease.id != claim.lease.id
            assert await queue.acknowledge(again.lease)

    run(main)


def test_reads_and_claims_that_fail(tmp_path: Path, run: Runner) -> None:
    async def main() -> None:
        faults = Faults()
        async with SQLiteQueue(tmp_path / "q", connect=connecting(faults)) as queue:
            id = await queue.put(ENVELOPE, b"x")
            reads: list[Callable[[], Any]] = [
                lambda: queue.get(id),
                queue.list,
                queue.stats,
                lambda: text(queue.body(id)),
                lambda: queue.claim(lease=60),
            ]
            for read in reads:
                faults.set("SELECT", database_error(sqlite3.SQLITE_IOERR))
                with pytest.raises(QueueUnavailable):
                    await read()
                await read()

    run(main)


def test_a_full_database(tmp_path: Path, run: Runner) -> None:
    """SQLite's own error, at its own moment."""
    made: list[sqlite3.Connection] = []

    def connect(*args: Any, **options: Any) -> sqlite3.Connection:
        made.append(sqlite3.connect(*args, **options))
        return made[-1]

    async def main() -> None:
        async with SQLiteQueue(tmp_path / "q", connect=connect) as queue:
            pages = made[0].execute("PRAGMA page_count").fetchone()[0]
            made[0].execute(f"PRAGMA max_page_count = {pages + 100}")
            done = []
            with pytest.raises(QueueFull):
                while True:
                    done.append(await queue.put(ENVELOPE, bytes(20_000)))
            assert done
            stats = await queue.stats()
            assert (stats.messages, stats.octets) == (len(done), len(done) * 20_000)
            claims = await queue.claim(lease=60, limit=100)
            assert len(claims) == len(done)
            for claim in claims:
                assert await queue.acknowledge(claim.lease)
            await queue.put(ENVELOPE, bytes(20_000))
        made.clear()

    run(main)


def test_a_disk_that_is_nearly_full(tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    async def main() -> None:
        async with SQLiteQueue(tmp_path / "q", min_free=1_000_000) as queue:
            id = await queue.put(ENVELOPE, bytes(60_000))
            free = 990_000
            monkeypatch.setattr(queue._spool, "free_octets", lambda: free)
            for size in (10, LARGE):
                with pytest.raises(QueueFull, match="less than 1000000"):
                    await queue.put(ENVELOPE, bytes(size))
            await queue.remove(id)  # pages of the database that are used again
            await queue.put(ENVELOPE, b"x")
            assert bodies(tmp_path / "q") == []

    run(main)


def test_an_empty_queue_is_made_small(tmp_path: Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "SHRINK", 1_000_000)

    async def main() -> None:
        async with SQLiteQueue(tmp_path / "q") as queue:
            ids = await asyncio.gather(*(queue.put(ENVELOPE, bytes(50_000)) for _ in range(40)))
            for id in ids:
                await queue.remove(id)
        assert os.path.getsize(tmp_path / "q" / "queue.db") > 1_000_000
        async with SQLiteQueue(tmp_path / "q") as queue:
            assert await queue.put(ENVELOPE, b"x") > max(ids)
        assert os.path.getsize(tmp_path / "q" / "queue.db") < 100_000

    run(main)


# Crashes.


def test_a_crash_at_every_step(tmp_path: Path, run: Runner) -> None:
    """Before each system call and statement the directory is copied, as kill -9 would leave it.  Each copy is opened: what
    was answered before it was made is there, and nothing is there in part."""
    path = tmp_path / "q"
    answered: dict[str, bytes] = {}  # put returned, and it was not asked to go
    begun: dict[bytes, bool] = {}  # bodies that were put, whether they may be gone
    images: list[tuple[Path, dict[str, bytes], set[bytes]]] = []

    def crash(step: str) -> None:
        if step not in ("PRAGMA", "SELECT"):
            image = tmp_path / f"{len(images)}-{step}"
            known, possible = dict(answered), set(begun)
            shutil.copytree(path, image, ignore=shutil.ignore_patterns("*-shm"))
            images.append((image, known, possible))

    async def put(queue: SQLiteQueue, body: bytes, envelope: Envelope = ENVELOPE) -> str:
        begun[body] = False
        id = await queue.put(envelope, body)
        answered[id] = body
        return id

    async def work() -> None:
        async with SQLiteQueue(path, files=Recorder(crash), connect=connecting(crash)) as queue:
            await put(queue, b"1")
            await put(queue, b"2" * LARGE)
            last = await put(queue, b"3" * LARGE, TWO)
            await asyncio.gather(put(queue, b"4"), put(queue, b"5" * LARGE))
            for claim in await queue.claim(lease=60, limit=3, destination="x.example"):
                if claim.message.id != last:
                    answered.pop(claim.message.id)
                await queue.acknowledge(claim.lease)
            (claim,) = await queue.claim(lease=60, destination="y.example")
            await queue.retry(claim.lease, 1.0)
            answered.pop(last)
            await queue.remove(last)

    async def check() -> None:
        for image, known, possible in images:
            async with SQLiteQueue(image) as queue:
                messages = (await queue.list()).messages
                found = {each.message.id: await text(queue.body(each.message.id)) for each in messages}
                assert known.items() <= found.items(), image
                assert set(found.values()) <= possible, image
                assert bodies(image) == sorted(id for id, body in found.items() if len(body) == LARGE), image
                claims = []
                while more := await queue.claim(lease=60, limit=9):
                    claims += more
                pending = [each for message in messages for each in message.recipients if each.state == "pending"]
                assert len(claims) == len(pending), image
                for claim in claims:
                    await queue.acknowledge(claim.lease)
                assert (await queue.stats()).messages == 0
            shutil.rmtree(image)

    run(work)
    assert len(images) > 40
    run(check)


# Whose turn it is.


def test_lanes() -> None:
    lanes = Lanes()
    assert lanes.take(1e9) is None
    assert lanes.offer("x", 0, 10.0)
    assert not lanes.offer("x", 0, 11.0)
    assert lanes.offer("x", 0, 9.0)
    assert lanes.offer("y", 0, 5.0)
    assert lanes.offer("z", 1, 20.0)
    assert len(lanes) == 3
    assert lanes.take(4.0) is None
    assert lanes.earliest(4.0) == 5.0
    assert lanes.earliest(4.0, {"y"}) == 9.0
    assert lanes.earliest(4.0, {"x", "y", "z"}) is None
    assert lanes.take(15.0, {"y"}) == Lane("x", 0, 9.0)
    assert lanes.take_of("z", 15.0) is None
    assert lanes.take(30.0) == Lane("z", 1, 20.0)
    assert lanes.take_of("y", 30.0) == Lane("y", 0, 5.0)
    assert len(lanes) == 0


def test_lanes_forget_what_is_out_of_date() -> None:
    lanes = Lanes()
    for turn in range(10_000):
        lanes.offer("x", 0, 1e6 - turn)
        if turn % 3 == 0:
            assert lanes.earliest(1e6 - turn) == 1e6 - turn
    assert len(lanes._later) + len(lanes._ready) < 200
    assert lanes.take(1e6) == Lane("x", 0, 1e6 - 9999)
    assert lanes.take(1e6) is None


def test_what_is_being_settled_is_not_leased_again() -> None:
    """The claim was read before the results were stored, and comes back after they were handed over."""
    leases = Leases()
    message = Message("1", "", MailParams(), 0.0, None, 0, {}, 0, False)
    claimed = Claimed((1, 0), 0.0, "x", True, message, [], (), b"")
    leases.taken.add(claimed.key)
    lease = leases.grant(claimed, 10.0)
    assert lease is not None
    leased = leases.find(lease)
    assert [*leases.expire(9.0)] == []
    assert [*leases.expire(10.0)] == [leased]
    assert not leases.taken and not leases.running()
    leased.settling = True
    with pytest.raises(LeaseLost):
        leases.find(lease)
    leases.taken.add(claimed.key)
    assert leases.grant(claimed, 20.0) is None
    leases.resume(leased)  # its results could not be stored
    assert leases.find(lease) is leased
    assert [*leases.expire(11.0)] == [leased]
    leased.settling = True
    leases.end(leased)
    assert not leases.taken
    assert leases.grant(claimed, 30.0) is not None
