"""The order of the calls that makes a file durable, and every one of them failing."""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from fastsmtp.delivery._groupsync import GROUP, Files, syncfs_is_trustworthy
from fastsmtp.delivery.maildir import Maildir
from fastsmtp.reply import EnhancedCode, SMTPError


class RecordingFiles(Files):
    """Notes each call; fails those it is told to; holds the first sync until `go` when told to."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []
        self.names: dict[int, str] = {}
        self.fail: dict[str, OSError] = {}
        self.fail_after: dict[str, int] = {}
        self.go: threading.Event | None = None
        self.syncing = threading.Event()
        self.real_syncfs = True

    def _call(self, what: str, name: str) -> None:
        self.calls.append((what, name))
        if what in self.fail:
            left = self.fail_after.get(what, 0)
            if left == 0:
                raise self.fail[what]
            self.fail_after[what] = left - 1

    def open(self, path: str, flags: int, mode: int = 0o777, *, dir_fd: int | None = None) -> int:  # type: ignore[override]
        self._call("open", path)
        fd = os.open(path, flags, mode, dir_fd=dir_fd)
        self.names[fd] = path
        return fd

    def writev(self, fd: int, parts: Sequence[Any]) -> int:  # type: ignore[override]
        self._call("write", self.names[fd])
        return os.writev(fd, parts)

    def start_writeout(self, fd: int) -> None:
        self._call("writeout", self.names[fd])

    def _hold(self) -> None:
        self.syncing.set()
        if self.go is not None:
            assert self.go.wait(30)

    def fsync(self, fd: int) -> None:
        self._hold()
        self._call("fsync", self.names[fd])
        os.fsync(fd)

    def syncfs(self, fd: int) -> None:
        self._hold()
        self._call("syncfs", "")

    def has_syncfs(self) -> bool:
        return True

    def rename(self, src: str, dst: str, *, src_dir_fd: int | None = None, dst_dir_fd: int | None = None) -> None:  # type: ignore[override]
        self._call("rename", src)
        assert src == dst
        os.rename(src, dst, src_dir_fd=src_dir_fd, dst_dir_fd=dst_dir_fd)

    def sync_directory(self, fd: int) -> None:
        self._call("dirsync", "")
        os.fsync(fd)

    def unlink(self, path: str, *, dir_fd: int | None = None) -> None:  # type: ignore[override]
        self._call("unlink", path)
        os.unlink(path, dir_fd=dir_fd)

    def close(self, fd: int) -> None:
        self._call("close", self.names.pop(fd))
        os.close(fd)

    def steps(self) -> list[str]:
        """The calls without names, repetitions once."""
        steps: list[str] = []
        for what, _ in self.calls:
            if what not in ("close", "writeout") and (not steps or steps[-1] != what):
                steps.append(what)
        return steps


async def _turns() -> None:
    """Let the event loop turn until what was asked for is with the committer."""
    for _ in range(4):
        await asyncio.sleep(0)


def _files(path: Path) -> dict[str, bytes]:
    assert sorted(os.listdir(path)) == ["cur", "new", "tmp"]
    assert not os.listdir(path / "tmp")
    return {entry.name: entry.read_bytes() for entry in (path / "new").iterdir()}


@pytest.mark.parametrize("sync", ["fsync", "syncfs"])
@pytest.mark.parametrize("count", [1, 20])
def test_order(tmp_path: Path, sync: Any, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write, sync, rename, sync of the directory, answer; a group shares what can be shared."""
    monkeypatch.setattr("fastsmtp.delivery.maildir.syncfs_is_trustworthy", lambda path: True)
    files = RecordingFiles()

    async def main() -> None:
        async with Maildir(tmp_path / "m", sync=sync, files=files) as maildir:
            files.go = threading.Event()
            first = asyncio.ensure_future(maildir.deliver([b"first"]))
            assert await asyncio.to_thread(files.syncing.wait, 30)
            files.calls.clear()
            # The first group is at its sync: all of these wait together.
            tasks = [asyncio.ensure_future(maildir.deliver([b"message ", str(i).encode()])) for i in range(count)]
            await _turns()
            assert not first.done()
            files.go.set()
            for task in (first, *tasks):
                task.add_done_callback(lambda task: files.calls.append(("answer", task.result())))
            names = await asyncio.gather(*tasks)
            await _turns()
            own = [call for call in files.calls if call[0] not in ("close", "writeout") and call[1] != first.result()]
            kinds = [what for what, _ in own]
            for name in names:
                mine = [what for what, each in own if each == name]
                assert mine == ["open", "write", *(["fsync"] if sync == "fsync" else []), "rename", "answer"]
            assert kinds.count("dirsync") == (2 if sync == "fsync" else 1)
            assert kinds.count("syncfs") == (0 if sync == "fsync" else 2)
            assert kinds[-count - 1 :] == ["dirsync", *["answer"] * count]
            assert kinds[-2 * count - 1 : -count - 1] == ["rename"] * count
            assert kinds[-2 * count - 2] == sync
            # The first message's name was synced before its answer: by the directory's sync or the next group's syncfs.
            alone = [what for what, each in files.calls if each in ("", first.result()) and what != "close"]
            if sync == "fsync":
                assert alone == ["fsync", "rename", "dirsync", "answer", "dirsync"]
            else:
                assert alone[:3] == ["syncfs", "rename", "syncfs"]
                assert sorted(alone[3:]) == ["answer", "dirsync"]
            assert maildir.groups == 2
            assert maildir.messages == count + 1

    asyncio.run(main())
    assert sorted(_files(tmp_path / "m").values()) == sorted(
        [b"first", *(f"message {i}".encode() for i in range(count))]
    )


NO_SPACE = (OSError(errno.ENOSPC, "No space left on device"), 452, (4, 3, 1))
QUOTA = (OSError(errno.EDQUOT, "Quota exceeded"), 452, (4, 3, 1))
IO_ERROR = (OSError(errno.EIO, "I/O error"), 451, (4, 3, 0))


@pytest.mark.parametrize("call", ["open", "write", "fsync", "syncfs", "rename", "dirsync"])
@pytest.mark.parametrize(("error", "code", "status"), [NO_SPACE, QUOTA, IO_ERROR])
@pytest.mark.parametrize("count", [1, 5])
def test_failures(
    tmp_path: Path,
    call: str,
    error: OSError,
    code: int,
    status: tuple[int, int, int],
    count: int,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Whatever fails: the right reply, nothing left behind, and the next message goes through."""
    monkeypatch.setattr("fastsmtp.delivery.maildir.syncfs_is_trustworthy", lambda path: True)
    files = RecordingFiles()

    async def main() -> None:
        async with Maildir(tmp_path / "m", sync="syncfs" if call == "syncfs" else "fsync", files=files) as maildir:
            await maildir.deliver([b"before"])
            files.fail[call] = error
            results = await asyncio.gather(*(maildir.deliver([b"lost"]) for _ in range(count)), return_exceptions=True)
            stored = [result for result in results if isinstance(result, str)]
            # After a failed syncfs each file is asked by itself: what came too late for that group is stored.
            assert len(stored) < count if call == "syncfs" else not stored
            for result in results:
                if isinstance(result, str):
                    continue
                assert isinstance(result, SMTPError)
                assert (result.code, result.enhanced_code) == (code, EnhancedCode(*status))
                assert "device" not in result.message
            assert sorted(_files(tmp_path / "m").values()) == [b"before", *[b"lost"] * len(stored)]
            files.fail.clear()
            await asyncio.gather(*(maildir.deliver([b"after"]) for _ in range(count)))
            for name in stored:
                os.unlink(tmp_path / "m" / "new" / name)

    with caplog.at_level(logging.ERROR, "fastsmtp.maildir"):
        asyncio.run(main())
    assert "failed: [Errno" in caplog.text
    assert sorted(_files(tmp_path / "m").values()) == [b"after"] * count + [b"before"]
    assert not files.names


@pytest.mark.parametrize("call", ["write", "fsync", "rename"])
def test_failure_within_a_group(tmp_path: Path, call: str) -> None:
    """A write that fails hurts its own message only; a sync or rename that fails refuses the whole group."""
    files = RecordingFiles()

    async def main() -> None:
        async with Maildir(tmp_path / "m", sync="fsync", files=files) as maildir:
            files.go = threading.Event()
            first = asyncio.ensure_future(maildir.deliver([b"first"]))
            assert await asyncio.to_thread(files.syncing.wait, 30)
            files.fail[call] = OSError(errno.EIO, "I/O error")
            # The first message's own fsync and rename come before those of the group.
            files.fail_after[call] = 2 if call == "write" else 3
            tasks = [asyncio.ensure_future(maildir.deliver([b"group"])) for _ in range(5)]
            await _turns()
            files.go.set()
            await first
            results = await asyncio.gather(*tasks, return_exceptions=True)
            refused = [isinstance(result, SMTPError) for result in results]
            assert refused == ([False, False, True, True, True] if call == "write" else [True] * 5)
            left = 2 if call == "write" else 0
            assert sorted(_files(tmp_path / "m").values()) == [b"first"] + [b"group"] * left
            # fsync of a group is not tried again.
            assert sum(what == "fsync" for what, _ in files.calls) <= 1 + 5

    asyncio.run(main())


def test_a_failed_syncfs_is_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastsmtp.delivery.maildir.syncfs_is_trustworthy", lambda path: True)
    files = RecordingFiles()
    files.fail["syncfs"] = OSError(errno.EIO, "I/O error")

    async def main() -> None:
        async with Maildir(tmp_path / "m", sync="syncfs", files=files) as maildir:
            with pytest.raises(SMTPError):
                await maildir.deliver([b"x"])
            files.calls.clear()
            await maildir.deliver([b"y"])
            assert files.steps() == ["open", "write", "fsync", "rename", "dirsync"]

    asyncio.run(main())


def test_a_failed_syncfs_refuses_what_it_was_to_make_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first group is renamed already and waits for the second one's syncfs, which fails."""
    monkeypatch.setattr("fastsmtp.delivery.maildir.syncfs_is_trustworthy", lambda path: True)
    files = RecordingFiles()

    async def main() -> None:
        async with Maildir(tmp_path / "m", sync="syncfs", files=files) as maildir:
            await maildir.deliver([b"before"])
            files.go = threading.Event()
            files.syncing.clear()
            tasks = [asyncio.ensure_future(maildir.deliver([b"first"]))]
            assert await asyncio.to_thread(files.syncing.wait, 30)
            tasks.append(asyncio.ensure_future(maildir.deliver([b"second"])))
            await _turns()
            files.fail["syncfs"] = OSError(errno.EIO, "I/O error")
            files.fail_after["syncfs"] = 1
            files.go.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert [isinstance(result, SMTPError) for result in results] == [True, True]
            assert list(_files(tmp_path / "m").values()) == [b"before"]
            await maildir.deliver([b"after"])

    asyncio.run(main())
    assert sorted(_files(tmp_path / "m").values()) == [b"after", b"before"]
    assert not files.names


def test_a_slow_syncfs_pauses_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastsmtp.delivery.maildir.syncfs_is_trustworthy", lambda path: True)
    monkeypatch.setattr("fastsmtp.delivery._groupsync.SYNCFS_SLOW", -1.0)
    files = RecordingFiles()

    async def main() -> None:
        async with Maildir(tmp_path / "m", sync="syncfs", files=files) as maildir:
            await maildir.deliver([b"x"])
            await maildir.deliver([b"y"])

    asyncio.run(main())
    assert files.steps() == [
        "open",
        "write",
        "syncfs",
        "rename",
        "dirsync",
        "open",
        "write",
        "fsync",
        "rename",
        "dirsync",
    ]


def test_removal_that_fails_as_well(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    files = RecordingFiles()
    files.fail = {"write": OSError(errno.EIO, "I/O error"), "unlink": OSError(errno.EROFS, "Read-only")}

    async def main() -> None:
        async with Maildir(tmp_path / "m", files=files) as maildir:
            with pytest.raises(SMTPError):
                await maildir.deliver([b"x"])
            files.fail.clear()
            await maildir.deliver([b"y"])

    with caplog.at_level(logging.ERROR, "fastsmtp.maildir"):
        asyncio.run(main())
    assert "remove failed" in caplog.text


class ShortFiles(Files):
    """A disk that takes three octets at a time, then `limit` in all."""

    def __init__(self, limit: int) -> None:
        self.limit = limit

    def writev(self, fd: int, parts: Sequence[Any]) -> int:  # type: ignore[override]
        piece = b"".join(parts)[: min(3, self.limit)]
        self.limit -= len(piece)
        return os.write(fd, piece)


def test_short_writes(tmp_path: Path) -> None:
    async def main() -> None:
        files = ShortFiles(1000)
        async with Maildir(tmp_path / "m", files=files) as maildir:
            await maildir.deliver([b"0123456789", b"abc"])
            files.limit = 5
            with pytest.raises(SMTPError) as caught:
                await maildir.deliver([b"0123456789", b"abc"])
            assert caught.value.code == 452

    asyncio.run(main())
    assert list(_files(tmp_path / "m").values()) == [b"0123456789abc"]


def test_groups_are_bounded(tmp_path: Path) -> None:
    async def main() -> None:
        files = RecordingFiles()
        async with Maildir(tmp_path / "m", files=files) as maildir:
            await asyncio.gather(*(maildir.deliver([b"x"]) for _ in range(3 * GROUP)))
            assert maildir.groups >= 3

    asyncio.run(main())
    assert len(_files(tmp_path / "m")) == 3 * GROUP


def test_a_waiter_that_gave_up(tmp_path: Path) -> None:
    """The message may be there or not; the others are not hurt."""

    async def main() -> None:
        files = RecordingFiles()
        async with Maildir(tmp_path / "m", files=files) as maildir:
            files.go = threading.Event()
            tasks = [asyncio.ensure_future(maildir.deliver([b"x"])) for _ in range(3)]
            await _turns()
            tasks[1].cancel()
            files.go.set()
            results = await asyncio.gather(*tasks, return_exceptions=True)
            assert isinstance(results[1], asyncio.CancelledError)
            assert isinstance(results[0], str)
            assert isinstance(results[2], str)

    asyncio.run(main())
    assert len(_files(tmp_path / "m")) >= 2


def test_trustworthy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert syncfs_is_trustworthy(str(tmp_path)) in (True, False)
    assert syncfs_is_trustworthy(str(tmp_path / "none")) is False
    assert syncfs_is_trustworthy("/proc") is False
    monkeypatch.setattr("platform.release", lambda: "5.7.19-generic")
    assert syncfs_is_trustworthy(str(tmp_path)) is False
    monkeypatch.setattr("platform.release", lambda: "strange")
    assert syncfs_is_trustworthy(str(tmp_path)) is False
