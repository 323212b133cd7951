"""The soak's judges: what must not be is seen by them."""

from __future__ import annotations

import asyncio
import contextlib
import pathlib
from collections.abc import Awaitable, Callable

import pytest
from soak.honest import Client, Interrupted, State, Wrong
from soak.hostile import Attack, Attacker, attacks_on
from soak.ledger import Ledger
from soak.measuring import percentile, slope
from soak.places import Place
from soak.texts import message, stuffed, the_number_in

TRACE = b"Return-Path: <a@b>\r\nReceived: from x\r\n\tby y; now\r\n"


@pytest.mark.parametrize("kind", ["text", "large", "binary"])
def test_a_message_proves_itself(kind: str) -> None:
    for number in (1, 2, 3, 19, 49):
        text = message(number, kind)
        assert the_number_in(TRACE + text) == number
        assert stuffed(text).endswith(b"\r\n.\r\n")
        damaged = bytearray(text)
        damaged[len(text) // 2] ^= 1
        for wrong in (
            text[:-1],
            text + b"\r\n",
            bytes(damaged),
            text + text,
            b"x" + text,
            text.replace(b"\r\n", b"\n"),
            b"",
        ):
            with pytest.raises(ValueError):
                the_number_in(TRACE + wrong)
        with pytest.raises(ValueError):
            the_number_in(TRACE[1:] + text)


@pytest.fixture
def maildir(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "new").mkdir()
    return tmp_path


def put(maildir: pathlib.Path, name: str, text: bytes) -> None:
    (maildir / "new" / name).write_bytes(TRACE + text)


def test_all_is_well(maildir: pathlib.Path) -> None:
    ledger = Ledger()
    for _ in range(5):
        number = ledger.number()
        put(maildir, str(number), message(number))
        ledger.promised(number, "here")
    ledger.refused(ledger.number())
    ledger.promised(ledger.number(), "elsewhere")
    ledger.sweep("here", maildir)
    assert (ledger.violations, ledger.counts["stored"], ledger.stored_unanswered) == ([], 5, 0)
    assert not list((maildir / "new").iterdir())


@pytest.mark.parametrize(
    ("text", "files", "answered"),
    [
        ("not there", [], "250"),
        ("there twice", [message(1), message(1)], ""),
        ("was refused", [message(1)], "451"),
        ("not what was sent", [message(1)[:-1]], ""),
        ("no message of ours", [b"X-Hostile: x\r\n"], ""),
    ],
)
def test_what_must_not_be(maildir: pathlib.Path, text: str, files: list[bytes], answered: str) -> None:
    ledger = Ledger()
    number = ledger.number()
    for name, file in enumerate(files):
        put(maildir, str(name), file)
    if answered == "250":
        ledger.promised(number, "here")
    elif answered:
        ledger.refused(number)
    ledger.sweep("here", maildir)
    assert len(ledger.violations) == 1
    assert text in ledger.violations[0]


def test_more_than_was_promised(maildir: pathlib.Path) -> None:
    ledger = Ledger()
    put(maildir, "a", message(ledger.number()))
    ledger.sweep("here", maildir)
    assert ledger.stored_unanswered == 1


def test_lines() -> None:
    assert slope([(x, 3 * x + 7) for x in range(10)]) == pytest.approx(3)
    assert slope([(x, 100 + x % 2) for x in range(1000)]) == pytest.approx(0, abs=1e-3)
    assert percentile([], 0.5) == 0
    assert [percentile(range(100), part) for part in (0, 0.5, 0.99, 1)] == [0, 50, 99, 99]


# Servers that do wrong

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def meeting(serve: Serve, visit: Callable[[Place], Awaitable[None]]) -> None:
    served: set[asyncio.Task[None]] = set()

    async def to_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        served.add(task)
        with contextlib.suppress(ConnectionError):
            await serve(reader, writer)
        writer.close()

    server = await asyncio.start_server(to_the_end, "127.0.0.1", 0)
    async with server:
        await visit(Place("wrong", port=server.sockets[0].getsockname()[1], patience=0.1))
        await asyncio.gather(*served)


def answering(*replies: bytes) -> Serve:
    """Says these one after the other, the first at once and each other when something comes; then hangs up."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            writer.write(reply)
            await reader.read(100_000)
        writer.close()

    return serve


@pytest.mark.parametrize(
    "replies",
    [
        (b"554 no\r\n",),
        (b"220 x\r\n", b"500 no\r\n"),
        (b"220 x\r\n", b"250 x\r\n", b"550 no\r\n"),
        (b"220 x\r\n", b"250 x\r\n", b"250 x\r\n", b"250\r\n"),
        (b"220 x\r\n", b"250 x\r\n", b"250 x\r\n", b"250 x\n"),
        (b"220 x\r\n", b"250 x\r\n", b"250 x\r\n", b"250 " + b"x" * 600 + b"\r\n"),
        (b"220 x\r\n", b"250 x\r\n", b"250 x\r\n", b"250 x\r\n", b"354 x\r\n", b"451 no\r\n"),
    ],
)
def test_honest_clients_see_a_wrong_reply(replies: tuple[bytes, ...]) -> None:
    async def visit(place: Place) -> None:
        client = Client(State(place, Ledger()))
        with pytest.raises(Wrong):
            await client.open()
            await client.message(Client.plain)
        client.abort()

    asyncio.run(meeting(answering(*replies), visit))


def test_honest_clients_see_that_no_answer_comes() -> None:
    async def visit(place: Place) -> None:
        state = State(place, Ledger())
        client = Client(state)
        await client.open()
        with pytest.raises(Interrupted):
            await client.message(Client.plain)
        client.abort()
        assert state.ledger.violations == ["wrong: message 1 was sent whole and never answered"]

    ok = b"250 x\r\n"
    asyncio.run(meeting(answering(b"220 x\r\n", ok, ok, ok, b"354 x\r\n"), visit))


@pytest.mark.parametrize(
    ("attack", "replies"),
    [
        (Attacker.flood, (b"220 x\r\n", b"250 x\r\n", b"250 too few\r\n")),
        (Attacker.flood, (b"220 x\r\n", b"250 x\r\n", b"250 x\r\n" * 1000 + b"no reply\r\n")),
        (Attacker.malformed, (b"220 x\r\n", b"250 x\r\n", b"250 fine\r\n421 x\r\n")),
        (Attacker.malformed, (b"220 x\r\n", b"250 x\r\n", b"500 x\r\n" * 30)),
        (
            Attacker.smuggle,
            (b"220 x\r\n", b"250 x\r\n", b"250 x\r\n250 x\r\n354 x\r\n", b"250 x\r\n250 x\r\n221 x\r\n"),
        ),
        (Attacker.says_nothing, (b"220 x\r\n",)),
    ],
)
def test_hostile_clients_see_what_is_wrong(attack: Attack, replies: tuple[bytes, ...]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for reply in replies:
            writer.write(reply)
            if reply is replies[-1]:
                break
            await reader.read(100_000)
        writer.write_eof()
        while await reader.read(100_000):
            pass
        writer.close()

    async def visit(place: Place) -> None:
        attacker = Attacker(place)
        await attacker.attack(attack, "127.0.0.1")
        assert len(attacker.violations) == 1, attacker.counts

    asyncio.run(meeting(serve, visit))


def test_every_attack_is_made() -> None:
    places = [Place("a", starttls=True, most=5), Place("b", tls=True, proxy=True), Place("c", lmtp=True)]
    made = {attack.__name__ for place in places for attacks in attacks_on(place) for attack in attacks}
    own = {name for name in vars(Attacker) if not name.startswith("_")} - {"attack", "place", "counts", "violations"}
    assert made == own
