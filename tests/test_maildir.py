"""Maildir: what is made, what is refused, names, headers, streams."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import subprocess
import sys
import threading
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest

from fastsmtp.delivery._groupsync import Files
from fastsmtp.delivery.maildir import STALE, WINDOW, Maildir, MaildirBackend, MaildirSession
from fastsmtp.errors import ConfigurationError, MessageAborted
from fastsmtp.reply import EnhancedCode, SMTPError
from fastsmtp.session import DataReader
from tests.delivery_support import context, whole


def _messages(path: Path) -> list[bytes]:
    assert not os.listdir(path / "tmp")
    return [entry.read_bytes() for entry in sorted((path / "new").iterdir())]


def test_is_made(tmp_path: Path) -> None:
    Maildir(tmp_path / "m").close()
    for name in ("", "cur", "new", "tmp"):
        assert stat.S_IMODE(os.stat(tmp_path / "m" / name).st_mode) == 0o700
    Maildir(tmp_path / "m").close()
    (tmp_path / "empty").mkdir()
    Maildir(tmp_path / "empty").close()
    os.rmdir(tmp_path / "m" / "cur")
    Maildir(tmp_path / "m").close()
    assert sorted(os.listdir(tmp_path / "m")) == ["cur", "new", "tmp"]


def test_what_is_no_maildir(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_bytes(b"")
    (tmp_path / "odd").mkdir()
    (tmp_path / "odd" / "new").write_bytes(b"")
    for name, text in (
        ("file", "is no directory"),
        ("full", "has files, but no cur, new and tmp"),
        ("odd", "is no directory"),
        ("none/m", "cannot write to Maildir"),
        ("file/m", "is no directory"),
    ):
        with pytest.raises(ConfigurationError, match=text) as caught:
            Maildir(tmp_path / name)
        assert "\n" not in str(caught.value)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write everywhere")
def test_unwritable(tmp_path: Path) -> None:
    Maildir(tmp_path / "m").close()
    os.chmod(tmp_path / "m" / "new", 0o500)
    with pytest.raises(ConfigurationError, match="Permission denied"):
        Maildir(tmp_path / "m")


def test_impossible_options(tmp_path: Path) -> None:
    bad: Any = "none"
    with pytest.raises(ConfigurationError):
        Maildir(tmp_path / "m", line_end=bad)
    with pytest.raises(ConfigurationError):
        Maildir(tmp_path / "m", sync=bad)
    assert not (tmp_path / "m").exists()


def test_names(tmp_path: Path) -> None:
    maildir = Maildir(tmp_path / "m", hostname="a/b:c,d e")
    names = {maildir.unique_name() for _ in range(1000)}
    assert len(names) == 1000
    for name in names:
        assert re.fullmatch(rf"\d+\.M\d+P{os.getpid()}R[0-9a-f]{{8}}Q\d+\.a\\057b\\072c\\054d_e", name)
    maildir.close()
    Maildir(tmp_path / "m", hostname=None).close()


def test_size_in_name(tmp_path: Path) -> None:
    async def main() -> None:
        async with Maildir(tmp_path / "m", size_in_name=True) as maildir:
            name = await maildir.deliver([b"12345", b"678"])
            assert os.listdir(tmp_path / "m" / "new") == [f"{name},S=8"]

    asyncio.run(main())


def test_sweep(tmp_path: Path) -> None:
    Maildir(tmp_path / "m").close()
    tmp = tmp_path / "m" / "tmp"
    (tmp / "old").write_bytes(b"")
    (tmp / "young").write_bytes(b"")
    (tmp / "directory").mkdir()
    maildir = Maildir(tmp_path / "m")
    assert sorted(os.listdir(tmp)) == ["directory", "old", "young"]
    real, later = time.time, time.time() + STALE + 60
    os.utime(tmp / "young", (later, later))
    try:
        time.time = lambda: later
        assert maildir.sweep() == 1
    finally:
        time.time = real
    assert sorted(os.listdir(tmp)) == ["directory", "young"]
    maildir.close()


def test_session(tmp_path: Path) -> None:
    body = b"Subject: x\r\n\r\n.dot\r\n8-bit \xff\r\n"

    async def main() -> None:
        async with Maildir(tmp_path / "m", hostname="host") as maildir:
            backend = MaildirBackend(maildir, domain="mx.example")
            assert backend.maildir is maildir
            session = backend.anonymous_login(context().state)
            assert isinstance(session, MaildirSession)
            reply = await session.data(whole(body), context("s@example.org", "r@example.org"))
            assert reply is not None
            assert (reply.code, reply.enhanced_code) == (250, EnhancedCode(2, 0, 0))
            (name,) = os.listdir(tmp_path / "m" / "new")
            assert reply.message == f"Ok: queued as {name}"
            assert stat.S_IMODE(os.stat(tmp_path / "m" / "new" / name).st_mode) == 0o600
            lines = (tmp_path / "m" / "new" / name).read_bytes()
            assert lines.endswith(body)
            assert lines[: -len(body)].split(b"\r\n")[:2] == [
                b"Return-Path: <s@example.org>",
                b"Received: from client.example ([192.0.2.1])",
            ]
            assert f"\tby mx.example with ESMTP id {name}\r\n\tfor <r@example.org>;\r\n".encode() in lines.replace(
                b"\r\n\tid", b" id"
            )

    asyncio.run(main())


def test_several_recipients_one_file_and_none_of_them_told(tmp_path: Path) -> None:
    async def main() -> None:
        async with Maildir(tmp_path / "m") as maildir:
            session = MaildirSession(maildir)
            await session.data(whole(b"x\r\n"), context("", "r@example.org", "bcc@example.org"))
            await session.data(whole(b"x\r\n"), context("", "m@x.example", protocol="LMTP", helo="other"))

    asyncio.run(main())
    first, second = sorted(_messages(tmp_path / "m"), key=lambda message: b" with LMTP" in message)
    assert first.startswith(b"Return-Path: <>\r\nReceived: from client.example")
    assert b"bcc" not in first
    assert b" with ESMTP" in first
    assert b"from other" in second
    assert b" with LMTP" in second


@pytest.mark.parametrize("line_end", ["crlf", "lf"])
@pytest.mark.parametrize("chunks", [1, 2, 7])
def test_line_ends(tmp_path: Path, line_end: Any, chunks: int) -> None:
    body = b"a\r\nb\r\n\r\nbare \r cr\r"

    async def main() -> None:
        async with Maildir(tmp_path / "m", line_end=line_end) as maildir:
            reader = DataReader()
            task = asyncio.ensure_future(MaildirSession(maildir).data(reader, context()))
            step = -(-len(body) // chunks)
            for at in range(0, len(body), step):
                reader.feed_data(body[at : at + step])
                await asyncio.sleep(0)
                await asyncio.sleep(0)
            reader.feed_eof()
            await task
            await MaildirSession(maildir).data(whole(body), context())

    asyncio.run(main())
    for message in _messages(tmp_path / "m"):
        if line_end == "crlf":
            assert message.endswith(b"\r\n" + body)
        else:
            assert message.endswith(b"\n" + body.replace(b"\r\n", b"\n"))
            assert b"\r\n" not in message


def test_stream_in_constant_memory(tmp_path: Path) -> None:
    chunk = os.urandom(65536)

    async def main() -> None:
        async with Maildir(tmp_path / "m") as maildir:
            reader = DataReader()
            tracemalloc.start()
            try:
                task = asyncio.ensure_future(MaildirSession(maildir).data(reader, context()))
                for _ in range(320):
                    reader.feed_data(chunk)
                    while reader.buffered and not task.done():
                        await asyncio.sleep(0)
                reader.feed_eof()
                await task
                assert tracemalloc.get_traced_memory()[1] < WINDOW + 1_000_000
            finally:
                tracemalloc.stop()

    asyncio.run(main())
    (message,) = _messages(tmp_path / "m")
    assert message.endswith(chunk * 320)


class StuckFiles(Files):
    """A disk that stands still until `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()

    def writev(self, fd: int, parts: Any) -> int:
        assert self.go.wait(30)
        return os.writev(fd, parts)


def test_back_pressure(tmp_path: Path) -> None:
    async def main() -> None:
        files = StuckFiles()
        async with Maildir(tmp_path / "m", files=files) as maildir:
            writer = maildir.open()
            written = 0

            async def write() -> None:
                nonlocal written
                for _ in range(100):
                    await writer.write(bytes(65536))
                    written += 65536

            task = asyncio.ensure_future(write())
            for _ in range(200):
                await asyncio.sleep(0)
            assert not task.done()
            assert written <= WINDOW
            files.go.set()
            await task
            await writer.commit()
            writer.abort()  # too late: nothing happens

    asyncio.run(main())
    assert [len(message) for message in _messages(tmp_path / "m")] == [6_553_600]


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
def test_a_message_that_ends_early(tmp_path: Path, size: int) -> None:
    async def main() -> None:
        async with Maildir(tmp_path / "m") as maildir:
            reader = DataReader()
            task = asyncio.ensure_future(MaildirSession(maildir).data(reader, context()))
            await asyncio.sleep(0)
            reader.feed_data(bytes(size))
            while reader.buffered:
                await asyncio.sleep(0)
            reader.set_exception(MessageAborted("gone"))
            with pytest.raises(MessageAborted):
                await task

    asyncio.run(main())
    assert _messages(tmp_path / "m") == []


def test_a_hook_that_is_cancelled(tmp_path: Path) -> None:
    async def main() -> None:
        async with Maildir(tmp_path / "m") as maildir:
            reader = DataReader()
            task = asyncio.ensure_future(MaildirSession(maildir).data(reader, context()))
            reader.feed_data(bytes(200_000))
            while reader.buffered:
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    asyncio.run(main())
    assert _messages(tmp_path / "m") == []


class FullFiles(Files):
    """A disk with room for one more megabyte."""

    left = 1_000_000

    def writev(self, fd: int, parts: Any) -> int:
        size = sum(map(len, parts))
        if size > self.left:
            raise OSError(28, "No space left on device")
        self.left -= size
        return os.writev(fd, parts)


def test_a_disk_that_fills_up_under_a_stream(tmp_path: Path) -> None:
    async def main() -> None:
        files = FullFiles()
        async with Maildir(tmp_path / "m", files=files) as maildir:
            reader = DataReader()
            task = asyncio.ensure_future(MaildirSession(maildir).data(reader, context()))
            while not task.done():
                reader.feed_data(bytes(65536))
                await asyncio.sleep(0)
            with pytest.raises(SMTPError) as caught:
                await task
            assert caught.value.code == 452
            files.left = 1000
            await maildir.deliver([b"small"])

    asyncio.run(main())
    assert _messages(tmp_path / "m") == [b"small"]


def test_close(tmp_path: Path) -> None:
    """What was handed over is finished, what was begun is removed, what comes later is refused."""

    async def main() -> None:
        maildir = Maildir(tmp_path / "m")
        tasks = [asyncio.ensure_future(maildir.deliver([b"x"])) for _ in range(50)]
        writer = maildir.open()
        await writer.write(bytes(100_000))
        await asyncio.sleep(0)
        await maildir.aclose()
        await maildir.aclose()
        maildir.close()
        assert len(await asyncio.gather(*tasks)) == 50
        with pytest.raises(SMTPError) as caught:
            await maildir.deliver([b"late"])
        assert caught.value.code == 451
        with pytest.raises(SMTPError):
            await writer.write(bytes(100_000))
        writer.abort()
        assert "Maildir" in repr(maildir)

    asyncio.run(main())
    assert _messages(tmp_path / "m") == [b"x"] * 50
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("fastsmtp")]


def test_many_parts(tmp_path: Path) -> None:
    async def main() -> None:
        async with Maildir(tmp_path / "m") as maildir:
            await maildir.deliver([b"x"] * 5000)
            writer = maildir.open()
            for _ in range(5000):
                await writer.write(b"y")
            await writer.commit()

    asyncio.run(main())
    assert _messages(tmp_path / "m") == [b"x" * 5000, b"y" * 5000]


PROCESS = """
import asyncio, sys
from fastsmtp.delivery import Maildir

async def main() -> None:
    async with Maildir(sys.argv[1]) as maildir:
        await asyncio.gather(*(maildir.deliver([sys.argv[2].encode(), str(i).encode()]) for i in range(200)))

asyncio.run(main())
"""


def test_several_processes(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen([sys.executable, "-c", PROCESS, str(tmp_path / "m"), letter]) for letter in ("a", "b")
    ]
    for process in processes:
        assert process.wait(60) == 0
    assert sorted(_messages(tmp_path / "m")) == sorted(f"{x}{i}".encode() for x in "ab" for i in range(200))


def test_uvloop(tmp_path: Path) -> None:
    uvloop = pytest.importorskip("uvloop")

    async def main() -> None:
        async with Maildir(tmp_path / "m") as maildir:
            await asyncio.gather(*(maildir.deliver([b"x"]) for _ in range(100)))

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(main())
    assert _messages(tmp_path / "m") == [b"x"] * 100


def test_a_directory_that_another_process_makes_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m"
    mkdir = os.mkdir

    def late(path: str, mode: int = 0o777) -> None:
        mkdir(path, mode)
        mkdir(path, mode)  # the other was first

    monkeypatch.setattr(os, "mkdir", late)
    Maildir(path)
    assert sorted(each.name for each in path.iterdir()) == ["cur", "new", "tmp"]
