"""The real server while something happens to it: what was answered 250 is there, and honest clients beside it are served.

How many messages the honest clients sent meanwhile, and how long they took, is printed, not judged: `make faults` shows it.
"""

from __future__ import annotations

import asyncio
import contextlib
import datetime
import email.utils
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from typing import Any, Final

import pytest
from soak.honest import Client, Interrupted, State, Wrong, keep_going, keeper, visitor
from soak.ledger import Ledger
from soak.measuring import percentile
from soak.places import Place
from soak.servers import Served
from soak.texts import message, the_number_in

from fastsmtp import Client as Sender
from fastsmtp import ClientOptions, Server, SMTPError
from fastsmtp.delivery import RelayBackend

from .interposing import interposer, why_not
from .test_interposed import MaildirTarget, QueueTarget, Target
from .test_interposed import Sender as Raw

resource: Any = pytest.importorskip("resource")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit"),
]

KILLS: Final = int(os.environ.get("FASTSMTP_KILLS", "5"))


@contextlib.asynccontextmanager
async def running(place: str, folder: pathlib.Path, *arguments: str) -> AsyncIterator[Served]:
    """A server; it must end well."""
    served = Served(Place(place), folder / "M", arguments, folder / f"{place}.log")
    await served.start()
    try:
        yield served
        assert await served.stop() == 0
        assert "Traceback" not in served.log.read_text()
    finally:
        served.kill()


@contextlib.asynccontextmanager
async def honest(state: State) -> AsyncIterator[Ledger]:
    """Honest clients of a server as long as this runs; none of them may have met anything that must not be."""
    ledger = state.ledger
    stop = asyncio.Event()
    habits = [(keeper, Client.pipelined), (keeper, Client.chunks), (visitor, Client.plain), (visitor, Client.chunks)]
    tasks = [asyncio.ensure_future(keep_going(state, habit, way, False, 20.0, stop)) for habit, way in habits]
    try:
        yield ledger
    finally:
        stop.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 100)
    assert not ledger.violations, ledger.violations[:5]


def tell(what: str, state: State, faults: int) -> None:
    milliseconds = [round(percentile(state.latencies, part) * 1000, 1) for part in (0.5, 0.99, 1.0)]
    print(
        f"{what}: {faults} faults, {dict(state.ledger.counts)}, "
        f"{len(state.latencies)} honest messages beside them in {milliseconds} ms (p50, p99, longest)"
    )


async def more(ledger: Ledger, what: str, count: int) -> None:
    """Wait for so many more of it."""
    due = ledger.counts[what] + count
    async with asyncio.timeout(60):
        while ledger.counts[what] < due:
            assert not ledger.violations, ledger.violations[:5]
            await asyncio.sleep(0.005)


def test_workers_are_killed(tmp_path: pathlib.Path) -> None:
    async def main() -> None:
        ledger = Ledger()
        async with running("killed", tmp_path, "--workers", "2") as served:
            state = State(served.place, ledger)
            state.killed = True
            killed: set[int] = set()
            async with honest(state):
                for _ in range(KILLS):
                    await more(ledger, "answered 250", random.randrange(5, 50))
                    _, *workers = served.pids()
                    killed.add(victim := random.choice(workers))
                    state.stops += 1
                    os.kill(victim, signal.SIGKILL)
                    # Nobody has to wait for the one that takes its place: the other worker goes on.
                    await more(ledger, "answered 250", 5)
                    while len(pids := served.pids()) < 3 or killed & set(pids):
                        await asyncio.sleep(0.01)
            assert served.log.read_text().count("ended with status -9; starting another") == KILLS
        ledger.sweep("killed", served.maildir)
        assert not ledger.violations, ledger.violations[:5]
        assert ledger.stored_unanswered <= ledger.counts["unknown"]
        tell("killed workers", state, KILLS)

    asyncio.run(main())


def test_the_next_hop_is_killed(tmp_path: pathlib.Path) -> None:
    """A relay that stores nothing: 451 while its next hop is gone, and 250 only for what is there."""
    ledger = Ledger()
    stop = asyncio.Event()

    async def send(port: int) -> None:
        """Connection after connection: refused commands are counted, those behind a refused MAIL too, and end in 421."""
        while not stop.is_set():
            with contextlib.suppress(SMTPError):
                async with Sender("127.0.0.1", port, local_hostname="client.example") as client:
                    await send_some(client)

    async def send_some(client: Sender) -> None:
        for _ in range(20):
            number = ledger.number()
            try:
                (delivery,) = await client.send_message("a@client.example", ["b@server.example"], message(number))
            except SMTPError as error:
                assert error.code == 421, error
                raise
            code = delivery.reply.code
            assert code in (250, 421, 451), delivery
            if code == 250:
                ledger.promised(number, "hop")
            elif code == 451:  # the relay itself is well, and says so at once
                ledger.counts["answered 451"] += 1
                assert (await client.noop()).code in (250, 421)
                await asyncio.sleep(0.01)

    async def main() -> None:
        async with running("hop", tmp_path) as hop:
            options = ClientOptions(host="127.0.0.1", port=hop.place.port, local_hostname="relay.example")
            async with RelayBackend(options) as backend, Server(backend, addr="127.0.0.1:0") as server:
                senders = [asyncio.ensure_future(send(server.port)) for _ in range(4)]
                for _ in range(KILLS):
                    await more(ledger, "answered 250", random.randrange(5, 60))
                    hop.kill()
                    await more(ledger, "answered 451", 4)
                    await hop.start()
                await more(ledger, "answered 250", 20)
                stop.set()
                await asyncio.wait_for(asyncio.gather(*senders), 60)
                assert server.counters.errors == 0
        ledger.sweep("hop", hop.maildir)
        assert not ledger.violations, ledger.violations[:5]
        print(f"killed next hop: {KILLS} kills, {dict(ledger.counts)}")

    asyncio.run(main())


@pytest.mark.skipif(bool(why_not()), reason=why_not())
def test_the_date_jumps(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that is set changes the date in Received; no deadline is measured by it, forwards or backwards."""
    jumps = [86400, -86400, 366 * 86400, -10 * 366 * 86400, 3600, -1, 0]

    async def main() -> None:
        ledger = Ledger()
        with interposer(tmp_path, tmp_path / "M") as faults:
            with monkeypatch.context() as patch:
                for name, value in faults.environment.items():
                    patch.setenv(name, value)
                server = running("jumps", tmp_path, "--read-timeout", "60")
                served = await server.__aenter__()
            async with contextlib.AsyncExitStack() as stack:
                stack.push_async_exit(server)
                state = State(served.place, ledger)
                waiting = Client(state)
                await waiting.open()
                async with honest(state):
                    for jump in jumps:
                        faults.shift_clock(jump)
                        await more(ledger, "answered 250", 40)
                        # Connected before the jump, and idle since: it is still welcome.
                        number = ledger.number()
                        await waiting.plain(number, 1)
                        due = datetime.datetime.now(datetime.UTC).timestamp() + jump
                        assert abs(_date_of(served.maildir, number) - due) < 60
                        ledger.promised(number, "jumps")
                        ledger.sweep("jumps", served.maildir)
                await waiting.close()
                assert not list(served.complaints())
        ledger.sweep("jumps", served.maildir)
        assert not ledger.violations, ledger.violations[:5]
        tell("jumping clock", state, len(jumps))

    asyncio.run(main())


def _date_of(maildir: pathlib.Path, number: int) -> float:
    for path in (maildir / "new").iterdir():
        text = path.read_bytes()
        if the_number_in(text) == number:
            date = re.search(rb";\r\n\t([^\r\n]+)\r\n|; ([^\r\n]+)\r\n", text)
            assert date is not None, text[:300]
            return email.utils.parsedate_to_datetime((date[1] or date[2]).decode()).timestamp()
    raise AssertionError("it is not there")


# Out of what a process may have


def _may_have(pid: int, kind: int, count: int) -> None:
    _, hard = resource.prlimit(pid, kind)
    resource.prlimit(pid, kind, (count, hard))


def _send(target: Target, sender: Raw, size: str) -> str:
    (reply,) = target.sent([sender], size)
    return reply


@pytest.mark.parametrize("kind", ["maildir", "queue"])
def test_out_of_descriptors_within_a_session(tmp_path: pathlib.Path, kind: str) -> None:
    """No file can be opened for the message: 451, and 250 as soon as one can."""
    target: Target = (MaildirTarget if kind == "maildir" else QueueTarget)(tmp_path / "store", {})
    try:
        pid = target.process.pid
        with contextlib.closing(Raw(target.port)) as sender:
            for _ in range(20):
                assert _send(target, sender, "large").startswith("250")
                # None may be opened above the highest that is open now.
                highest = max(map(int, os.listdir(f"/proc/{pid}/fd")))
                free = set(range(highest)) - set(map(int, os.listdir(f"/proc/{pid}/fd")))
                _may_have(pid, resource.RLIMIT_NOFILE, min(free, default=highest + 1))
                assert _send(target, sender, "large").startswith("451 4.3.0")
                target.check("open")
                _may_have(pid, resource.RLIMIT_NOFILE, 1024)
                assert _send(target, sender, "small").startswith("250")
        target.stop()
        target.check_end()
    finally:
        target.kill()


@pytest.mark.parametrize("kind", ["maildir", "queue"])
def test_a_file_may_not_grow(tmp_path: pathlib.Path, kind: str) -> None:
    """Half of the message fits: 452, and the half is gone."""
    target: Target = (MaildirTarget if kind == "maildir" else QueueTarget)(tmp_path / "store", {})
    try:
        pid = target.process.pid
        with contextlib.closing(Raw(target.port)) as sender:
            for _ in range(5):
                assert _send(target, sender, "small").startswith("250")
                _may_have(pid, resource.RLIMIT_FSIZE, 500_000)
                reply = _send(target, sender, "large")
                assert reply.startswith(("452 4.3.1", "451 4.3.0")), reply
                target.check("write")
                if kind == "maildir":
                    assert reply.startswith("452 4.3.1")
                    assert _send(target, sender, "small").startswith("250")
                _may_have(pid, resource.RLIMIT_FSIZE, resource.RLIM_INFINITY)
                assert _send(target, sender, "large").startswith("250")
        target.stop()
        target.check_end()
    finally:
        target.kill()


@pytest.fixture
def small_disk(tmp_path: pathlib.Path) -> Iterator[pathlib.Path]:
    """A file system of one megabyte."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("only root may mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m,nr_inodes=200", "tmpfs", str(folder)], capture_output=True
    )
    if done.returncode != 0:
        pytest.skip("this container may not mount")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_disk_that_is_full(small_disk: pathlib.Path, size: str) -> None:
    """Octets or inodes run out: 452 to what does not fit, again and again; 250 once there is room."""
    target = MaildirTarget(small_disk / "store", {})
    refused = 0
    try:
        with contextlib.closing(Raw(target.port)) as first, contextlib.closing(Raw(target.port)) as second:
            for _ in range(3):
                while True:
                    replies = target.sent([first, second], size)
                    target.check("write")
                    if all(reply.startswith("452 4.3.1") for reply in replies):
                        break
                    assert all(reply.startswith(("250", "452 4.3.1")) for reply in replies)
                for _ in range(20):
                    assert _send(target, first, "large").startswith("452 4.3.1")
                    target.check("write")
                    refused += 1
                # Somebody reads mail.
                for path in (target.folder / "new").iterdir():
                    target.promised.remove(the_number_in(path.read_bytes()))
                    path.unlink()
                assert _send(target, second, "small").startswith("250")
        target.stop()
        target.check_end()
    finally:
        target.kill()
    print(f"full disk, {size} messages: {refused} refused")


@pytest.mark.parametrize("size", ["small", "large"])
def test_a_full_disk_under_the_queue(small_disk: pathlib.Path, size: str) -> None:
    target = QueueTarget(small_disk / "store", {})
    refused = 0
    try:
        with contextlib.closing(Raw(target.port)) as sender:
            while refused < 30:
                reply = _send(target, sender, size)
                assert reply.startswith(("250", "452 4.3.1", "451 4.3.0")), reply
                refused += not reply.startswith("250")
        # Nothing was removed meanwhile: it ends well, and what was promised is there.
        target.stop()
        subprocess.run(["mount", "-o", "remount,size=8m", str(small_disk)], check=True)
        target.check_end()
    finally:
        target.kill()
    assert target.promised or size == "large"
    print(f"full disk under the queue, {size} messages: {len(target.promised)} queued, {refused} refused")


def test_interrupted_and_wrong_are_told_apart(tmp_path: pathlib.Path) -> None:
    """What these tests rest on: a lost connection and a wrong reply do not look alike to honest clients."""

    async def main() -> None:
        async with running("ends", tmp_path) as served:
            state = State(served.place, Ledger())
            client = Client(state)
            await client.open()
            with pytest.raises(Wrong):
                await client.ask(b"NOOP", b"500")
            served.kill()
            with pytest.raises(Interrupted):
                await client.ask(b"NOOP", b"250")
            with pytest.raises(Interrupted):
                await Client(state).open()
            client.abort()
            await served.start()

    asyncio.run(main())
