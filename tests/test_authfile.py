"""The file of users: what it may say, who it lets in, what that costs, and how it is changed."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import logging
import os
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastsmtp.authfile import ITERATIONS, AuthFile, _parse, prepare_name
from fastsmtp.errors import ConfigurationError
from fastsmtp.sasl import Challenge, Lookup, ScramClient, ScramSecret, ScramServer, Success, Verify
from fastsmtp.sasl.secret import ITERATIONS as FEWEST

from .loops import Runner

# The passwords are "secret of NAME"; made once, for each takes 4096 rounds.
ANNA = ScramSecret.derive("secret of anna", iterations=FEWEST, salt=b"a" * 16).encode()
JOE = ScramSecret.derive("secret of jö", iterations=FEWEST, salt=b"j" * 16).encode()
SLOW = ScramSecret.derive("secret of slow", iterations=3 * FEWEST, salt=b"s" * 16).encode()
KEY = base64.b64encode(bytes(range(32))).decode()
TEXT = f"# our users\n\n:{KEY}\nanna:{ANNA}\njö:{JOE}\n"

Make = Callable[..., AuthFile]


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    path = tmp_path / "users"
    write(path, TEXT)
    return path


@pytest.fixture
def rounds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The rounds of each PBKDF2 that is computed."""
    counted: list[int] = []
    compute = hashlib.pbkdf2_hmac

    def counting(name: str, password: bytes, salt: bytes, iterations: int) -> bytes:
        counted.append(iterations)
        return compute(name, password, salt, iterations)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", counting)
    return counted


def write(path: pathlib.Path, text: str | bytes) -> None:
    path.touch(mode=0o600)
    path.write_bytes(text.encode() if isinstance(text, str) else text)


# What the file may say


def test_comments_empty_lines_and_names(path: pathlib.Path) -> None:
    assert AuthFile(path).names == ("anna", "jö")
    write(path, b"\xef\xbb\xbf# a comment\r\n   \r\nanna:" + ANNA.encode() + b" \r\n#" + ANNA.encode())
    assert AuthFile(str(path)).names == ("anna",)
    write(path, "")
    assert AuthFile(path).names == ()


@pytest.mark.parametrize(
    "line",
    [
        "anna",
        "anna:",
        "anna:secret",
        f" anna:{ANNA}",
        f"anna :{ANNA}",
        f"an\x00na:{ANNA}",
        f"an\x1bna:{ANNA}",
        f"an\u0085na:{ANNA}",
        f"an\ufffdna:{ANNA}",
        f"\u00ad:{ANNA}",  # nothing is left of it
        f"anna\uff1ab:{ANNA}",  # becomes a colon
        f"{'a' * 1025}:{ANNA}",
        f"bob:x:{ANNA}",
        f"bob:{ANNA}:x",
        f"bob:{ANNA} x",
        f"bob:{ANNA.replace('SHA-256', 'SHA-1')}",
        f"bob:{ANNA.replace('4096', '4095')}",
        f"bob:{ANNA.replace('4096', '9999999')}",
        f"bob:{ANNA.replace('=', '', 1)}",
        f"bob:{ANNA[:-8]}",
        ":",
        ":secret",
        ":" + base64.b64encode(bytes(31)).decode(),
        ":ÿ",
    ],
)
def test_a_malformed_line_is_named_and_not_repeated(path: pathlib.Path, line: str) -> None:
    write(path, f"# one\n\n{line}\njö:{JOE}\n")
    with pytest.raises(ConfigurationError) as caught:
        AuthFile(path)
    assert str(caught.value) == f"{path}:3: not of the form name:SCRAM-SHA-256$rounds:salt$StoredKey:ServerKey"
    assert caught.value.__cause__ is None


@pytest.mark.parametrize("line", [f"anna:{ANNA}", f"an\u00adna:{JOE}", f":{KEY}"])
def test_a_name_may_be_there_once(path: pathlib.Path, line: str) -> None:
    write(path, f"{TEXT}{line}\n")
    with pytest.raises(ConfigurationError, match=r":6: a second line for the same name$"):
        AuthFile(path)


def test_what_is_not_utf_8_is_named_by_its_line(path: pathlib.Path) -> None:
    write(path, b"#\n#\nj\xf6:x\n")
    with pytest.raises(ConfigurationError, match=r"users:3: not UTF-8$"):
        AuthFile(path)


def test_a_file_that_cannot_be_read(tmp_path: pathlib.Path) -> None:
    for place in (tmp_path / "none", tmp_path):
        with pytest.raises(ConfigurationError, match=f"^cannot read {place}: [A-Z]"):
            AuthFile(place)
    assert AuthFile(tmp_path / "none", missing_ok=True).names == ()
    with pytest.raises(ConfigurationError):
        AuthFile(tmp_path, missing_ok=True)


def usable(name: str) -> bool:
    try:
        return bool(prepare_name(name))
    except ValueError:
        return False


NAMES = st.text(min_size=1, max_size=20).filter(usable).map(prepare_name)
SECRETS = st.builds(
    ScramSecret,
    st.binary(min_size=12, max_size=40),
    st.binary(min_size=32, max_size=32),
    st.binary(min_size=32, max_size=32),
    st.integers(4096, 1_000_000),
)


@given(users=st.dictionaries(NAMES, SECRETS, max_size=5), end=st.sampled_from(["\n", "\r\n"]))
def test_what_is_written_is_read(users: dict[str, ScramSecret], end: str) -> None:
    text = "".join(f"{name}:{secret.encode()}{end}" for name, secret in users.items())
    _, found = _parse(text.encode(), "users")
    assert [(each.name, each.secret) for each in found] == list(users.items())


@given(data=st.binary() | st.text().map(str.encode))
def test_nonsense_is_refused_or_means_nothing(data: bytes) -> None:
    try:
        lines, found = _parse(data, "users")
    except ConfigurationError as error:
        assert str(error).startswith("users:")
    else:
        assert len(found) <= len(lines) == data.count(b"\n") + 1


@pytest.mark.parametrize(("mode", "warned"), [(0o600, 0), (0o400, 0), (0o640, 0), (0o660, 1), (0o644, 1), (0o602, 1)])
def test_a_file_open_to_others_is_warned_of_once(
    path: pathlib.Path, caplog: pytest.LogCaptureFixture, mode: int, warned: int
) -> None:
    path.chmod(mode)
    users = AuthFile(path)
    users.reload()
    assert len(caplog.records) == warned
    if warned:
        assert str(path) in caplog.text and "chmod 600" in caplog.text
        path.chmod(0o600)
        assert users.reload_if_changed()
        path.chmod(mode)
        assert users.reload_if_changed()
        assert len(caplog.records) == 2


# Who is let in, and what that costs


def test_verify(path: pathlib.Path, run: Runner) -> None:
    users = AuthFile(path)

    async def main() -> None:
        assert await users.verify("anna", "secret of anna")
        assert await users.verify("an\u00adna", "secret of\u00a0anna")  # both are prepared
        assert await users.verify("jo\u0308", "secret of jo\u0308")
        for name, password in (
            ("anna", "secret of jö"),
            ("anna", ""),
            ("anna", "\x00"),
            ("anna", "\ud800"),
            ("", "secret of anna"),
            ("\ud800", "secret of anna"),
            ("Anna", "secret of anna"),
            ("nobody", "secret of anna"),
            (f"anna:{ANNA}", "secret of anna"),
            ("# our users", "x"),
        ):
            assert not await users.verify(name, password), name

    run(main)
    users.close()


def test_an_unknown_user_costs_what_a_known_one_does(path: pathlib.Path, rounds: list[int]) -> None:
    users = AuthFile(path)
    for name in ("anna", "jö", "nobody", "no body"):
        rounds.clear()
        assert not asyncio.run(users.verify(name, "wrong"))
        assert rounds == [FEWEST]


def test_a_wrong_password_costs_the_highest_rounds_of_the_file(path: pathlib.Path, rounds: list[int]) -> None:
    write(path, f"{TEXT}slow:{SLOW}\n")
    users = AuthFile(path)
    for name in ("anna", "slow", "nobody"):
        rounds.clear()
        assert not asyncio.run(users.verify(name, "wrong"))
        assert sum(rounds) == 3 * FEWEST
    rounds.clear()
    assert asyncio.run(users.verify("anna", "secret of anna"))
    assert rounds == [FEWEST]


def test_a_file_without_users_costs_as_much_as_one_of_ours(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counted: list[int] = []

    def counting(name: str, password: bytes, salt: bytes, iterations: int) -> bytes:
        counted.append(iterations)
        return bytes(32)

    monkeypatch.setattr(hashlib, "pbkdf2_hmac", counting)
    write(path, "")
    assert not asyncio.run(AuthFile(path).verify("anna", "secret of anna"))
    assert counted == [ITERATIONS]


def test_verified_credentials_are_remembered(path: pathlib.Path, rounds: list[int]) -> None:
    clock = Clock()
    users = AuthFile(path, cache_seconds=60, clock=clock)

    def login(name: str, password: str) -> tuple[bool, int]:
        rounds.clear()
        return asyncio.run(users.verify(name, password)), len(rounds)

    right = ("anna", "secret of anna")
    assert login(*right) == (True, 1)
    clock.now += 59
    assert login(*right) == (True, 0)
    assert login("an\u00adna", "secret of\u00a0anna") == (True, 0)
    assert login("anna", "secret of ann") == (False, 1)
    assert login("jö", "secret of anna") == (False, 1)
    clock.now += 1  # it is no younger for having been used
    assert login(*right) == (True, 1)
    assert login(*right) == (True, 0)
    users.reload()
    assert login(*right) == (True, 1)
    for _ in range(2):  # what is wrong is computed each time
        assert login("anna", "wrong") == (False, 1)
        assert login("nobody", "wrong") == (False, 1)
    assert "secret of anna" not in repr(users._cache) and len(users._cache) == 1


def test_the_least_recently_used_is_forgotten(path: pathlib.Path, rounds: list[int]) -> None:
    write(path, f"{TEXT}slow:{SLOW}\n")
    users = AuthFile(path, cached=2)
    for name, computed in (("anna", 1), ("jö", 1), ("anna", 0), ("slow", 1), ("anna", 0), ("jö", 1), ("slow", 1)):
        rounds.clear()
        assert asyncio.run(users.verify(name, f"secret of {name}"))
        assert len(rounds) == computed, name
    none = AuthFile(path, cached=0)
    for _ in range(2):
        rounds.clear()
        assert asyncio.run(none.verify("anna", "secret of anna"))
        assert len(rounds) == 1


class Gate:
    """Holds every PBKDF2 until it is opened, and counts those that run."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.open = threading.Event()
        self.entered = threading.Semaphore(0)
        self.lock = threading.Lock()
        self.running = self.most = self.total = 0
        self.compute = hashlib.pbkdf2_hmac
        monkeypatch.setattr(hashlib, "pbkdf2_hmac", self)

    def __call__(self, *args: Any) -> bytes:
        with self.lock:
            self.total += 1
            self.running += 1
            self.most = max(self.most, self.running)
        self.entered.release()
        assert self.open.wait(30)
        with self.lock:
            self.running -= 1
        return self.compute(*args)


async def entered(gate: Gate) -> None:
    assert await asyncio.to_thread(gate.entered.acquire, timeout=30)


def test_few_are_computed_at_a_time(path: pathlib.Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    users = AuthFile(path, threads=2)
    gate = Gate(monkeypatch)

    async def main() -> None:
        tasks = [asyncio.ensure_future(users.verify("anna", "wrong")) for _ in range(6)]
        await entered(gate)
        await entered(gate)
        # One that gives up keeps its place while it is computed, and gives it up when it was not yet.
        tasks[0].cancel()
        tasks[5].cancel()
        await asyncio.wait([tasks[0], tasks[5]])
        late = asyncio.ensure_future(users.verify("anna", "secret of anna"))
        await asyncio.sleep(0)
        assert gate.total == 2
        gate.open.set()
        assert await late
        assert await asyncio.gather(*tasks[1:5]) == [False] * 4
        assert (gate.most, gate.total) == (2, 6)

    run(main)
    users.close()


def test_a_user_who_is_removed_meanwhile_is_not_let_in(
    path: pathlib.Path, run: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    users = AuthFile(path)
    gate = Gate(monkeypatch)

    async def main() -> None:
        task = asyncio.ensure_future(users.verify("anna", "secret of anna"))
        await entered(gate)
        users.remove("anna")
        gate.open.set()
        assert not await task
        assert not users._cache

    run(main)
    users.close()


def test_close_ends_the_waiting(path: pathlib.Path, run: Runner, monkeypatch: pytest.MonkeyPatch) -> None:
    users = AuthFile(path, threads=1)
    users.close()
    gate = Gate(monkeypatch)

    async def main() -> None:
        first = asyncio.ensure_future(users.verify("anna", "secret of anna"))
        await entered(gate)
        second = asyncio.ensure_future(users.verify("anna", "wrong"))
        await asyncio.sleep(0)
        users.close()
        gate.open.set()
        assert await first
        with pytest.raises(asyncio.CancelledError):
            await second

    run(main)


# SCRAM


def test_lookup_of_who_exists(path: pathlib.Path) -> None:
    users = AuthFile(path)
    assert users.lookup("anna") == users.lookup("an\u00adna") == ScramSecret.decode(ANNA)
    assert users.lookup("jo\u0308") == ScramSecret.decode(JOE)


def test_lookup_of_who_does_not(path: pathlib.Path) -> None:
    users = AuthFile(path)
    nobody = users.lookup("nobody")
    assert nobody == users.lookup("no\u00adbody") != users.lookup("anybody")
    assert (len(nobody.salt), nobody.iterations) == (16, FEWEST)
    assert len({nobody.salt, users.lookup("anybody").salt, users.lookup("").salt, users.lookup("\ud800").salt}) == 4
    # The same for another process, after a restart, and when others come and go.
    assert AuthFile(path).lookup("nobody") == nobody
    users.add("new", "secret", iterations=FEWEST)
    users.remove("anna")
    assert AuthFile(path).lookup("nobody") == users.lookup("nobody") == nobody
    write(path, TEXT.replace(KEY, base64.b64encode(bytes(32)).decode()))
    assert AuthFile(path).lookup("nobody") != nobody


def test_a_file_without_a_key_has_the_same_salts_for_all_who_read_it(path: pathlib.Path) -> None:
    write(path, f"anna:{ANNA}\n")
    nobody = AuthFile(path).lookup("nobody")
    assert AuthFile(path).lookup("nobody") == nobody
    write(path, f"anna:{JOE}\n")
    assert AuthFile(path).lookup("nobody") != nobody


def test_who_does_not_exist_looks_like_most_who_do(path: pathlib.Path) -> None:
    odd = ScramSecret(bytes(24), bytes(32), bytes(32), 5000).encode()
    write(path, f"anna:{ANNA}\na:{odd}\nb:{odd}\n")
    nobody = AuthFile(path).lookup("nobody")
    assert (len(nobody.salt), nobody.iterations) == (24, 5000)
    write(path, f"anna:{ANNA}\na:{odd}\n")  # as many of each: the costlier
    assert AuthFile(path).lookup("nobody").iterations == 5000
    write(path, "")
    assert AuthFile(path).lookup("nobody").iterations == ITERATIONS


def scram(users: AuthFile, name: str, password: str) -> bool:
    server, client = ScramServer(), ScramClient(name, password)
    outcome = server.step(client.initial())
    while not isinstance(outcome, Success):
        if isinstance(outcome, Lookup):
            outcome = server.found(users.lookup(outcome.user))
        elif isinstance(outcome, Challenge):
            outcome = server.step(client.respond(outcome.data))
        elif isinstance(outcome, Verify):
            outcome = server.verified(True)
        else:
            return False
    return client.complete


def test_scram(path: pathlib.Path) -> None:
    pytest.importorskip("scramp")
    users = AuthFile(path)
    assert scram(users, "jö", "secret of jö")
    assert not scram(users, "jö", "secret of anna")
    assert not scram(users, "nobody", "secret of anna")


# Changes


def test_reload_if_changed(path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    users = AuthFile(path)
    assert not users.reload_if_changed()
    other = AuthFile(path)
    assert other.add("new", "secret", iterations=FEWEST)
    assert users.reload_if_changed()
    assert users.names == ("anna", "jö", "new")
    assert not users.reload_if_changed() and not other.reload_if_changed()

    # In place, with the same size and time.
    status = path.stat()
    path.write_text(path.read_text().replace("new", "old"))
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert users.reload_if_changed() == (path.stat().st_ctime_ns != status.st_ctime_ns)
    users.reload()
    assert users.names == ("anna", "jö", "old")

    # What cannot be used changes nothing, and is told once.
    with caplog.at_level(logging.ERROR):
        for breaking in (lambda: path.write_text("nonsense\n"), path.unlink):
            caplog.clear()
            breaking()
            for _ in range(3):
                assert not users.reload_if_changed()
            assert len(caplog.records) == 1 and "the users are those from before" in caplog.text
            assert "nonsense" not in caplog.text
            with pytest.raises(ConfigurationError):
                users.reload()
            assert users.names == ("anna", "jö", "old")
    write(path, TEXT)
    assert users.reload_if_changed()
    assert [*users.names] == ["anna", "jö"]


def test_a_file_that_may_be_missing_comes_and_goes(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "users"
    users = AuthFile(path, missing_ok=True)
    assert not users.reload_if_changed()
    write(path, TEXT)
    assert users.reload_if_changed() and [*users.names] == ["anna", "jö"]
    path.unlink()
    assert users.reload_if_changed() and [*users.names] == []


def test_add_makes_a_file_of_its_owner_alone(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "users"
    users = AuthFile(path, missing_ok=True)
    before = os.umask(0)
    try:
        assert users.add("anna", "secret of anna", iterations=FEWEST)
    finally:
        os.umask(before)
    assert users.names == ("anna",)
    assert asyncio.run(users.verify("anna", "secret of anna"))
    assert path.stat().st_mode & 0o7777 == 0o600
    assert [line[:6] for line in path.read_text().split("\n")][0::3] == ["# name", ""]
    assert sorted(each.name for each in tmp_path.iterdir()) == [".users.lock", "users"]
    assert (tmp_path / ".users.lock").stat().st_mode & 0o7777 == 0o600


def test_changes_touch_one_line(path: pathlib.Path) -> None:
    write(path, TEXT.replace("\n", "\r\n") + "# the end")
    path.chmod(0o640)
    users = AuthFile(path)
    lines = path.read_bytes().split(b"\n")
    assert users.add("new", "secret", iterations=FEWEST)
    changed = path.read_bytes().split(b"\n")
    assert changed[:6] == lines and changed[6].startswith(b"new:SCRAM") and changed[7:] == [b""]
    assert not users.add("an\u00adna", "other", iterations=FEWEST)
    assert path.read_bytes().split(b"\n")[:3] == lines[:3] and path.read_bytes().split(b"\n")[4:] == changed[4:]
    assert users.names == ("anna", "jö", "new")
    assert asyncio.run(users.verify("anna", "other")) and not asyncio.run(users.verify("anna", "secret of anna"))
    assert users.remove("anna") and users.remove("new") and not users.remove("new")
    assert path.read_bytes().split(b"\n") == [*lines[:3], *lines[4:], b""]
    assert path.stat().st_mode & 0o7777 == 0o640


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_the_owner_stays(path: pathlib.Path) -> None:
    os.chown(path, 1, 2)
    assert AuthFile(path).remove("anna")
    assert (path.stat().st_uid, path.stat().st_gid) == (1, 2)


def test_an_owner_that_cannot_stay_is_an_error(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    users = AuthFile(path)
    fstat = os.fstat

    def another(fd: int) -> os.stat_result:
        status = [*fstat(fd)]
        status[4] += not os.path.samestat(fstat(fd), path.stat())
        return os.stat_result(status)

    def refuse(*_: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "fchown", refuse)
    monkeypatch.setattr(os, "fstat", another)
    with pytest.raises(PermissionError):
        users.remove("anna")
    assert path.read_text() == TEXT


def test_nothing_to_do_writes_nothing(path: pathlib.Path) -> None:
    status = path.stat()
    assert not AuthFile(path).remove("nobody")
    assert path.stat().st_ino == status.st_ino and path.read_text() == TEXT


@pytest.mark.parametrize("name", ["", "a:b", "#a", " a", "a ", "a\n", "a\uff1ab", "a" * 1025, "\ud800", "\U0001f600"])
def test_names_that_cannot_be(path: pathlib.Path, name: str) -> None:
    users = AuthFile(path)
    with pytest.raises(ValueError, match=r"^[a-z ]+$"):
        users.add(name, "secret", iterations=FEWEST)
    with pytest.raises(ValueError):
        users.remove(name)
    assert path.read_text() == TEXT


@pytest.mark.parametrize(
    ("password", "iterations"), [("", FEWEST), ("\u00ad", FEWEST), ("\x00", FEWEST), ("x", 4095), ("x", 1_000_001)]
)
def test_passwords_that_cannot_be(path: pathlib.Path, password: str, iterations: int) -> None:
    with pytest.raises(ValueError):
        AuthFile(path).add("new", password, iterations=iterations)
    assert path.read_text() == TEXT


def test_a_change_of_a_malformed_file_is_refused(path: pathlib.Path) -> None:
    users = AuthFile(path)
    write(path, "nonsense\n")
    with pytest.raises(ConfigurationError):
        users.add("new", "secret", iterations=FEWEST)
    assert path.read_text() == "nonsense\n" and users.names == ("anna", "jö")
    path.unlink()
    with pytest.raises(ConfigurationError, match="cannot read"):
        users.add("new", "secret", iterations=FEWEST)


def test_a_link_stays_one(path: pathlib.Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path.name)
    users = AuthFile(link)
    assert users.remove("anna")
    assert link.is_symlink() and AuthFile(path).names == ("jö",)


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    users = AuthFile(path)
    (path.parent / ".users.new").write_text("of a command that was killed")

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space"):
            users.remove("anna")
    assert path.read_text() == TEXT and users.names == ("anna", "jö")
    assert sorted(each.name for each in path.parent.iterdir()) == [".users.lock", "users"]
    assert users.remove("anna")


def test_the_file_is_durable_before_it_has_its_name(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace

    def synced(fd: int) -> None:
        calls.append("directory" if os.path.isdir(f"/proc/self/fd/{fd}") else "file")
        fsync(fd)

    def replaced(source: str, target: str) -> None:
        calls.append("replace")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", replaced)
    AuthFile(path).remove("anna")
    if os.path.isdir("/proc/self/fd"):
        assert calls == ["file", "replace", "directory"]


def test_threads_do_not_lose_each_others_changes(path: pathlib.Path) -> None:
    def change(number: int) -> None:
        AuthFile(path).add(f"user{number}", "secret", iterations=FEWEST)

    threads = [threading.Thread(target=change, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(AuthFile(path).names) == ["anna", "jö", *(f"user{number}" for number in range(8))]
