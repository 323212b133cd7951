"""Relays that share a PostgreSQL database: who is killed, and what when the database is gone for a while."""

from __future__ import annotations

import smtplib
import socket
from collections.abc import Iterator

import pytest

from fastsmtp import Reply
from fastsmtp.reply import EnhancedCode

from . import postgres
from .relaying import deliver, queue, queued, relaying, sink, until
from .test_relay_command import run

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(bool(postgres.absence()), reason=postgres.absence() or "it is there"),
]

MESSAGE = b"Subject: one\r\n\r\ntext\r\n"
LATER = Reply(451, EnhancedCode(4, 2, 1), "Not now")


@pytest.fixture
def place() -> Iterator[str]:
    """A database of this test's own."""
    cluster = postgres.shared()
    name = f"relay_{postgres.schema_name()}"
    cluster.sql(f"CREATE DATABASE {name}")
    yield cluster.dsn_for(database=name)
    cluster.sql(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.mark.parametrize("workers", ["1", "2"])
def test_what_is_accepted_is_delivered(place: str, workers: str) -> None:
    large = MESSAGE + (b"x" * 70 + b"\r\n") * 4000
    with sink() as box:
        with relaying("--to", box.url, "--queue", place, "--workers", workers) as relay:
            assert "no synchronous standby is configured" in relay.line("no synchronous standby")
            deliver(relay.port, body=MESSAGE)
            deliver(relay.port, body=large)
            until(lambda: len(box.messages) == 2)
            until(lambda: queued(place) == [])
            code, rest = relay.stop()
        assert code == 0 and "no synchronous standby" not in rest  # once
        assert sorted(box.bodies()) == sorted([MESSAGE, large])


def test_queue(place: str) -> None:
    with sink() as box:
        box.final = LATER
        with relaying("--to", box.url, "--queue", place, "--retry-first", "1h") as relay:
            name = deliver(relay.port)
            until(lambda: queued(place)[0]["recipients"][0]["attempts"])
            assert queued(place)[0]["id"] == name
            assert f"id          {name}\nstate       deferred\n" in queue("--queue", place, "show", name).text
            assert queue("--queue", place, "hold", name).code == 0
            assert "held      1\n" in queue("--queue", place, "stats").text
            assert queue("--queue", place, "release", "--all").text == "1 messages released\n"
            assert queue("--queue", place, "rm", "0-1").err == "fastsmtp: no message 0-1\n"
            box.final = None
            assert queue("--queue", place, "retry", "--all").code == 0
            until(lambda: box.messages)


def test_one_of_two_is_killed_and_the_other_delivers_what_it_had(place: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent, sink() as box:
        # The first delivers to a host that never answers, so that it has leases when it is killed.
        stuck = f"smtp://127.0.0.1:{silent.getsockname()[1]}"
        with relaying("--to", stuck, "--queue", place, "--lease", "1") as first:
            for _ in range(5):
                deliver(first.port)
            until(lambda: "leased    5\n" in queue("--queue", place, "stats").text)
            with relaying("--to", box.url, "--queue", place, "--lease", "1") as second:
                # They share: what the first has no more room for goes to the second.
                names = {deliver(first.port) for _ in range(5)}
                while not box.messages:
                    names.add(deliver(second.port))
                first.process.kill()
                until(lambda: queued(place) == [])
                assert len(box.messages) == 5 + len(names)
                assert second.stop()[0] == 0


def test_while_the_database_is_gone_clients_are_told_to_come_again() -> None:
    cluster = postgres.Cluster(postgres.FAST)
    try:
        with sink() as box:
            box.final = LATER
            with relaying("--to", box.url, "--queue", cluster.dsn, "--retry-first", "1h", "--workers", "2") as relay:
                names = {deliver(relay.port) for _ in range(3)}
                until(lambda: all(each["recipients"][0]["attempts"] for each in queued(cluster.dsn)))
                cluster.stop()
                with smtplib.SMTP("127.0.0.1", relay.port, timeout=60) as client:
                    for _ in range(2):
                        with pytest.raises(smtplib.SMTPDataError) as refused:
                            client.sendmail("a@b.example", ["c@d.example"], MESSAGE)
                        assert refused.value.smtp_code == 451
                assert queue("--queue", cluster.dsn, "ls").code == 1
                cluster.start()

                def accepted() -> bool:
                    try:
                        names.add(deliver(relay.port))
                    except AssertionError:
                        return False
                    return True

                until(accepted)
                assert {each["id"] for each in queued(cluster.dsn)} >= names
                box.final = None
                assert queue("--queue", cluster.dsn, "retry", "--all").code == 0
                until(lambda: len(box.messages) >= len(names))
                until(lambda: queued(cluster.dsn) == [])
                assert relay.stop()[0] == 0
    finally:
        cluster.remove()


def test_a_database_that_comes_later() -> None:
    cluster = postgres.Cluster(postgres.FAST)
    cluster.stop()
    try:
        with sink() as box, relaying("--to", box.url, "--queue", cluster.dsn) as relay:
            with pytest.raises(AssertionError, match="could not be queued, try again later"):
                deliver(relay.port)
            cluster.start()

            def accepted() -> bool:
                try:
                    return bool(deliver(relay.port))
                except AssertionError:
                    return False

            until(accepted)
            until(lambda: box.messages)
            assert relay.stop()[0] == 0
    finally:
        cluster.remove()


@pytest.mark.parametrize("workers", ["1", "2"])
def test_a_database_that_is_none_of_ours(workers: str) -> None:
    place = postgres.shared().dsn_for(user="nobody_known")
    done = run("--to", "smtp://127.0.0.1:1", "--port", "0", "--queue", place, "--workers", workers)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if line.startswith("fastsmtp: ")]
    assert lines and "cannot open queue fastsmtp" in lines[0]
