"""The commands `relay` and `queue`, started as a user would: what is refused, what arrives, and what can be done to what waits."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import pathlib
import signal
import smtplib
import socket
import subprocess
import sys
import urllib.request

import pytest

from fastsmtp import Reply
from fastsmtp._relay import FIGURES, Relay, _Figures
from fastsmtp.cli import build_parser, main
from fastsmtp.delivery.queue import SQLiteQueue
from fastsmtp.errors import ConfigurationError
from fastsmtp.reply import EnhancedCode

from .certificates import Authority
from .relaying import deliver, queue, queued, relaying, sink, until
from .serving import Serving
from .test_serve_options import add_user, children

MESSAGE = b"Subject: one\r\n\r\n.dot\r\nj\xc3\xb6\r\n"
LATER = Reply(451, EnhancedCode(4, 2, 1), "Not now")
NEVER = Reply(550, EnhancedCode(5, 1, 1), "No such user")
SLOW = ("--retry-first", "1h", "--retry-longest", "1h")
TO = "--to smtp://next.example "
# Each start of a process costs half a second: what shows the same with one worker waits for `make test-slow`.
ONE_SLOW = pytest.mark.parametrize("workers", [pytest.param("1", marks=pytest.mark.slow), "2"])


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "fastsmtp", "relay", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)


# What contradicts itself, and what is not there


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ("", "the following arguments are required: --to"),
        ("--to example.org", "mx:, or a next hop, is needed"),
        ("--to smtp://user@next.example", "a next hop's URL has no user"),
        (TO + "--queue dir", "sqlite:DIR, postgresql://... or none is needed, not dir"),
        (TO + "--queue sqlite:", "sqlite:DIR, postgresql://... or none is needed"),
        ("--to mx: --queue none", "--queue none needs a fixed --to"),
        (TO + "--queue none --lifetime 1d", "--lifetime needs --queue with a queue"),
        (TO + "--queue postgresql://x --queue-min-free 1", "--queue-min-free needs --queue with sqlite:"),
        (TO + "--lifetime 1w", "a time is needed, such as 90, 5m, 4h or 5d, not 1w"),
        (TO + "--lifetime 0", "--lifetime must be more than 0"),
        (TO + "--retry-first 2h", "not more than --retry-longest"),
        (TO + "--next-hop-tls maybe", "none, may, encrypt, verify, or DOMAIN= and one of them, is needed, not maybe"),
        (TO + "--next-hop-tls a.example=may", "--next-hop-tls DOMAIN=POLICY needs --to mx:"),
        ("--to mx: --next-hop-tls a.example=may --next-hop-tls A.example=none", "a.example= is there twice"),
        (TO + "--next-hop-user me", "need each other"),
        ("--to mx: --next-hop-user me --next-hop-password-file f", "--next-hop-user needs a fixed --to"),
        (TO + "--allow-from everybody", "a network, unix or loopback is needed"),
        (TO + "--allow-from 0.0.0.0/0", "--allow-from allows everybody: that would be an open relay"),
        (TO + "--allow-from ::/1 --allow-from 8000::/1", "--allow-from allows everybody: that would be an open relay"),
        (TO + "--require-auth", "--require-auth needs --auth-file"),
        (TO + "--lmtp --port 25", "--lmtp must not be on port 25"),
        (TO + "--maildir x", "unrecognized arguments: --maildir x"),
    ],
)
def test_contradictions(options: str, reason: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["relay", *options.split()])
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    "options", ["hold", "rm --all 0-1", "retry --all --destination x", "show", "ls --limit 0", "--queue none ls"]
)
def test_contradictions_of_queue(options: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["queue", *options.split()])
    assert stopped.value.code == 2
    assert "error:" in capsys.readouterr().err.splitlines()[-1]


def test_times() -> None:
    arguments = build_parser().parse_args(
        "relay --to mx: --retry-first 90 --retry-longest 1.5h --lifetime 2d --delay-notice 0".split()
    )
    assert (arguments.retry_first, arguments.retry_longest, arguments.lifetime, arguments.delay_notice) == (
        90.0,
        5400.0,
        172800.0,
        0.0,
    )
    assert arguments.queue == "sqlite:./queue"


def test_every_figure_has_a_place() -> None:
    assert [each.name for each in FIGURES] == list(_Figures.__dataclass_fields__)


def test_what_the_machine_refuses(tmp_path: pathlib.Path) -> None:
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    (tmp_path / "single").mkdir()
    (tmp_path / "single" / "queue.db").touch()
    for options, reason in (
        ("--queue sqlite:/no/such/queue", "cannot open queue /no/such/queue: No such file or directory"),
        (f"--queue sqlite:{tmp_path}/other", "has other files, such as 'file'"),
        (f"--queue sqlite:{tmp_path}/single", "is one queue, not a relay's directory of them"),
        (f"--queue sqlite:{tmp_path}/q --next-hop-ca /no/such", "cannot use /no/such: No such file"),
        ("--queue none --next-hop-user me --next-hop-password-file /no/such", "cannot read /no/such: No such file"),
    ):
        relay = Relay(build_parser().parse_args(["relay", *TO.split(), *options.split()]))
        with pytest.raises(ConfigurationError) as refused, contextlib.closing(relay):
            relay.prepare()
        assert reason in str(refused.value)


def test_one_relay_has_the_directory(tmp_path: pathlib.Path) -> None:
    with relaying("--to", "smtp://127.0.0.1:1", "--queue", f"sqlite:{tmp_path}/q") as relay:
        assert oct((tmp_path / "q").stat().st_mode)[-3:] == "700"
        until((tmp_path / "q" / "0" / "control").exists)  # it is locked already, and listens soon
        until(lambda: queued(tmp_path / "q") == [])
        assert oct((tmp_path / "q" / "0" / "control").stat().st_mode)[-3:] == "600"
        done = run("--to", "smtp://127.0.0.1:1", "--port", "0", "--queue", f"sqlite:{tmp_path}/q")
        assert done.returncode == 1
        assert done.stderr == f"fastsmtp: queue {tmp_path}/q is open already, in process {relay.process.pid}\n"


# No open relay


@pytest.mark.parametrize("to", [("--queue", "none"), pytest.param((), marks=pytest.mark.slow)])
def test_it_does_not_start_as_an_open_relay(tmp_path: pathlib.Path, to: tuple[str, ...]) -> None:
    base = ("--to", "smtp://127.0.0.1:1", "--queue", f"sqlite:{tmp_path}/q", *to, "--port", "0", "--host", "0.0.0.0")
    done = run(*base)
    assert done.returncode == 2
    assert done.stderr.startswith("fastsmtp: 0.0.0.0:") and done.stderr.count("\n") == 1
    assert "--require-auth, --allow-from or --relay-domains must say who may relay" in done.stderr


@pytest.mark.slow
def test_nor_by_a_socket_that_it_inherits(tmp_path: pathlib.Path) -> None:
    base = ("--to", "smtp://127.0.0.1:1", "--queue", f"sqlite:{tmp_path}/q")
    with socket.create_server(("0.0.0.0", 0)) as public:
        command = [sys.executable, "-m", "fastsmtp", "relay", *base, "--fd", str(public.fileno())]
        done = subprocess.run(
            command, capture_output=True, text=True, pass_fds=[public.fileno()], timeout=60, check=False
        )
        assert done.returncode == 2 and "must say who may relay" in done.stderr
    with relaying(*base, "--host", "0.0.0.0", "--allow-from", "192.0.2.0/24") as relay:
        assert refusals(relay) == (550, "5.7.1 Relaying denied")


def refusals(relay: Serving, recipient: str = "c@d.example") -> tuple[int, str]:
    with smtplib.SMTP("127.0.0.1", relay.port, timeout=30) as client:
        client.ehlo()
        client.mail("a@b.example")
        code, text = client.rcpt(recipient)
        return code, text.decode()


@pytest.mark.slow
@pytest.mark.parametrize("place", ["none", "sqlite"])
def test_who_may_relay(tmp_path: pathlib.Path, authority: Authority, place: str) -> None:
    users = add_user(tmp_path / "users", "anna", "secret")
    with sink() as box:
        base = ("--to", box.url, "--queue", "none" if place == "none" else f"sqlite:{tmp_path}/q")
        with relaying(
            *base, "--relay-domains", "x.example", "--allow-from", "192.0.2.0/24", "--proxy", "unix"
        ) as relay:
            assert refusals(relay) == (550, "5.7.1 Relaying denied")
            assert refusals(relay, "a@x.example")[0] == 250
        with relaying(*base, "--allow-xclient", "loopback") as relay:
            assert refusals(relay)[0] == 250
            with smtplib.SMTP("127.0.0.1", relay.port, timeout=30) as client:
                client.ehlo()
                assert client.docmd("XCLIENT", "ADDR=192.0.2.1")[0] == 220
                client.ehlo()
                client.mail("a@b.example")
                assert client.rcpt("c@d.example")[0] == 550
        with relaying(
            *base, "--auth-file", users, "--allow-insecure-auth", "--allow-from", "192.0.2.0/24", "--host", "0.0.0.0"
        ) as relay:
            assert refusals(relay) == (530, "5.7.0 Authentication required")
            with smtplib.SMTP("127.0.0.1", relay.port, timeout=30) as client:
                client.login("anna", "secret")
                assert client.sendmail("a@b.example", ["c@d.example"], MESSAGE) == {}
            until(lambda: box.bodies() == [MESSAGE])


@pytest.fixture
def authority(tmp_path: pathlib.Path) -> Authority:
    return Authority(tmp_path)


# What arrives


@ONE_SLOW
def test_what_is_accepted_is_delivered(tmp_path: pathlib.Path, workers: str) -> None:
    with sink() as box:
        base = ("--to", box.url, "--queue", f"sqlite:{tmp_path}/q", "--workers", workers, "--domain", "relay.example")
        with relaying(*base, "-v", "--log-format", "json") as relay:
            names = {deliver(relay.port, body=MESSAGE) for _ in range(6)}
            assert len(names) == 6
            until(lambda: len(box.messages) == 6)
            until(lambda: not queued(tmp_path / "q"))
            code, rest = relay.stop()
    assert code == 0
    assert box.bodies() == [MESSAGE] * 6
    sender, recipients, octets = box.messages[0]
    assert (sender, recipients) == ("a@b.example", ("c@d.example",))
    assert octets.startswith(b"Received: from client.example ([127.0.0.1])\r\n\tby relay.example with ESMTP\r\n")
    lines = rest.splitlines()
    assert lines[-1].startswith("fastsmtp: 6 messages for 6 recipients accepted, 0 refused; 6 recipients delivered, ")
    events = [each for line in lines[:-1] if "event" in (each := json.loads(line))]
    delivered = [each for each in events if each["event"] == "delivered"]
    assert {each["id"] for each in delivered} == names
    assert {(each["recipient"], each["code"], each["host"]) for each in delivered} == {
        ("c@d.example", 250, f"127.0.0.1:{box.port}")
    }
    assert not list((tmp_path / "q").glob("*/control"))


def test_a_stream_of_large_messages_and_lmtp_over_a_unix_socket(tmp_path: pathlib.Path) -> None:
    path = str(tmp_path / "lmtp")
    body = b"Subject: large\r\n\r\n" + (b"x" * 70 + b"\r\n") * 10_000
    with sink(unix_socket=path, lmtp=True, addr="") as box:
        for place in ("none", f"sqlite:{tmp_path}/q"):
            box.messages.clear()
            with relaying("--to", f"lmtp+unix://{path}", "--queue", place) as relay:
                deliver(relay.port, "c@d.example", "e@d.example", body=body)
                until(lambda: box.messages)
                assert relay.stop()[0] == 0
            assert box.bodies() == [body]
            assert box.messages[0][1] == ("c@d.example", "e@d.example")


def test_pass_through_answers_what_the_next_hop_answers(tmp_path: pathlib.Path) -> None:
    with sink() as box:
        box.replies["c@d.example"] = NEVER
        with relaying("--to", box.url, "--queue", "none") as relay:
            assert refusals(relay) == (550, "5.1.1 No such user")
            code, rest = relay.stop()
    assert code == 0 and rest.startswith("fastsmtp: 0 messages for 0 recipients, ")
    assert not list(tmp_path.iterdir())


def test_one_recipient_later_one_never(tmp_path: pathlib.Path) -> None:
    with sink() as box:
        box.replies |= {"later@d.example": LATER, "never@d.example": NEVER}
        with relaying("--to", box.url, "--queue", f"sqlite:{tmp_path}/q", *SLOW, "-v") as relay:
            name = deliver(relay.port, "now@d.example", "later@d.example", "never@d.example")
            relay.line("notice ")
            until(lambda: len(box.messages) == 2)
            # The notice of failure came by the same way.
            notice = next(each for each in box.messages if not each[0])
            assert notice[1] == ("a@b.example",) and b"never@d.example" in notice[2]
            until(lambda: len(queued(tmp_path / "q")) == 1)  # the notice has left the queue, too
            (message,) = queued(tmp_path / "q")
            assert message["id"] == name
            states = {each["address"]: (each["state"], each["reply"]["code"]) for each in message["recipients"]}
            assert states == {
                "now@d.example": ("delivered", 250),
                "later@d.example": ("pending", 451),
                "never@d.example": ("failed", 550),
            }
            box.replies.clear()
            assert queue("--queue", f"sqlite:{tmp_path}/q", "retry", name).code == 0
            until(lambda: len(box.messages) == 3)
            assert box.messages[-1][1] == ("later@d.example",)


# Looking at it, and changing it


@pytest.mark.parametrize(
    "running", [pytest.param(True, id="running"), pytest.param(False, id="stopped", marks=pytest.mark.slow)]
)
def test_queue(tmp_path: pathlib.Path, running: bool) -> None:
    place = f"sqlite:{tmp_path}/q"
    with sink() as box:
        box.replies |= {"c@d.example": LATER, "x@y.example": LATER}
        with relaying("--to", box.url, "--queue", place, *SLOW, "--workers", "2") as relay:
            names = [deliver(relay.port, body=MESSAGE), deliver(relay.port, "x@y.example", body=MESSAGE * 3000)]
            until(lambda: all(each["recipients"][0]["attempts"] for each in queued(place)))
            if not running:
                assert relay.stop()[0] == 0

            def do(*arguments: str, code: int = 0) -> str:
                done = queue("--queue", place, *arguments)
                assert done.code == code, done.err
                return done.err if code else done.text

            assert {each["id"] for each in queued(place)} == set(names)
            head, *rows = do("ls").splitlines()
            assert head.split()[:3] == ["ID", "AGE", "SIZE"] and len(rows) == 2
            row = next(each for each in rows if each.startswith(names[0])).split(maxsplit=8)
            assert (row[0], row[3], row[4], row[6]) == (names[0], "deferred", "1", "<a@b.example>")
            assert row[8] == "451 4.2.1 Not now"
            assert len(do("ls", "--limit", "1").splitlines()) == 2
            assert do("ls", "--destination", "no.example").count("\n") == 1

            shown = do("show", names[0])
            assert f"id          {names[0]}\nstate       deferred\n" in shown
            assert "sender      <a@b.example>" in shown and "HELO=client.example" in shown
            assert "recipient   <c@d.example> to smtp:127.0.0.1:" in shown and "Subject: one" in shown
            assert json.loads(do("show", "--json", names[0]))["id"] == names[0]
            for name, body in zip(names, (MESSAGE, MESSAGE * 3000), strict=True):
                octets = queue("--queue", place, "show", "--body", name).out
                assert octets.startswith(b"Received: from client.example") and octets.endswith(b"\r\n" + body)

            stats = json.loads(do("stats", "--json"))
            assert (stats["messages"], stats["deferred"], stats["held"]) == (2, 2, 0)
            assert "messages  2\n" in do("stats")

            do("hold", names[0])
            assert json.loads(do("stats", "--json"))["held"] == 1
            assert f"{names[0]}" in do("ls") and " held " in do("ls")
            do("release", names[0])
            assert json.loads(do("stats", "--json"))["held"] == 0
            assert do("hold", "--all") == "2 messages held\n"
            assert do("release", "--all") == "2 messages released\n"

            for wrong in ("7-0661155f4b5a6d", "0-zz", "nonsense", names[0].partition("-")[2]):
                assert do("rm", wrong, code=1) == f"fastsmtp: no message {wrong}\n"
            do("rm", names[1])
            assert [each["id"] for each in queued(place)] == [names[0]]
            box.replies.clear()
            box.messages.clear()
            do("retry", "--all")
            if running:
                until(lambda: box.bodies() == [MESSAGE])
                until(lambda: not queued(place))
            else:
                (message,) = queued(place)
                assert do("ls").splitlines()[1].split()[3] == "due", message


def test_queue_of_nothing(tmp_path: pathlib.Path) -> None:
    done = queue("--queue", f"sqlite:{tmp_path}/q", "ls")
    assert (done.code, done.out) == (1, b"")
    assert done.err == f"fastsmtp: cannot open queue {tmp_path}/q: No such file or directory\n"


def test_what_workers_that_are_no_more_have_left_is_delivered(tmp_path: pathlib.Path) -> None:
    place = f"sqlite:{tmp_path}/q"
    with sink() as box:
        box.final = LATER
        with relaying("--to", box.url, "--queue", place, *SLOW, "--workers", "3") as relay:
            names: set[str] = set()
            while {each.partition("-")[0] for each in names} != {"0", "1", "2"}:  # the kernel spreads connections
                names.add(deliver(relay.port))
            until(lambda: all(each["recipients"][0]["attempts"] for each in queued(place)))
            assert relay.stop()[0] == 0
        box.final = None
        assert queue("--queue", place, "retry", "--all").text == f"{len(names)} deliveries made due\n"
        with relaying("--to", box.url, "--queue", place) as relay:
            until(lambda: len(box.messages) == len(names))
            until(lambda: not queued(place))
            assert relay.stop()[0] == 0
    assert sorted(os.listdir(tmp_path / "q")) == ["0", "1", "2", "lock"]


@pytest.mark.slow
def test_a_worker_that_dies_is_replaced_and_has_its_queue_again(tmp_path: pathlib.Path) -> None:
    place = f"sqlite:{tmp_path}/q"
    with sink() as box:
        box.final = LATER
        with relaying("--to", box.url, "--queue", place, *SLOW, "--workers", "2") as relay:
            names = {deliver(relay.port) for _ in range(4)}
            until(lambda: all(each["recipients"][0]["attempts"] for each in queued(place)))
            for victim in children(relay):
                os.kill(victim, signal.SIGKILL)
            relay.line("starting another")
            relay.line("starting another")
            assert {each["id"] for each in queued(place)} == names
            box.final = None
            assert queue("--queue", place, "retry", "--all").code == 0
            until(lambda: len(box.messages) == 4)
            assert relay.stop()[0] == 0


@pytest.mark.slow
def test_what_a_killed_relay_left_is_delivered_by_the_next(tmp_path: pathlib.Path) -> None:
    place = f"sqlite:{tmp_path}/q"
    with sink() as box:
        box.final = LATER
        with relaying("--to", box.url, "--queue", place, *SLOW) as relay:
            name = deliver(relay.port, body=MESSAGE)
            until(lambda: queued(place)[0]["recipients"][0]["attempts"])
            relay.process.kill()
            relay.process.wait()
        assert (tmp_path / "q" / "0" / "control").exists()
        assert [each["id"] for each in queued(place)] == [name]
        box.final = None
        with relaying("--to", box.url, "--queue", place) as relay:
            assert queue("--queue", place, "retry", name).code == 0
            until(lambda: box.bodies() == [MESSAGE])
            assert relay.stop()[0] == 0


@pytest.mark.slow
def test_it_waits_for_who_looks_at_its_queue(tmp_path: pathlib.Path) -> None:
    (tmp_path / "q").mkdir()
    (tmp_path / "q" / "lock").touch()
    with sink() as box:

        async def main() -> None:
            async with SQLiteQueue(tmp_path / "q" / "0"):
                with relaying("--to", box.url, "--queue", f"sqlite:{tmp_path}/q") as relay:
                    line = await asyncio.to_thread(relay.line, "waiting for that")
                    assert f"is open already, in process {os.getpid()}" in line
                    # It can be stopped all the same.
                    assert (await asyncio.to_thread(relay.stop))[0] == 0

        asyncio.run(main())


# Limits, metrics, the next hop


@pytest.mark.slow
def test_a_full_queue(tmp_path: pathlib.Path) -> None:
    with sink() as box:
        box.final = LATER
        with relaying("--to", box.url, "--queue", f"sqlite:{tmp_path}/q", *SLOW, "--queue-max-messages", "1") as relay:
            deliver(relay.port)
            with pytest.raises(AssertionError, match="Insufficient system storage"):
                deliver(relay.port)


@ONE_SLOW
def test_metrics(tmp_path: pathlib.Path, workers: str) -> None:
    with sink() as box:
        box.replies |= {"later@d.example": LATER, "never@d.example": NEVER}
        base = ("--to", box.url, "--queue", f"sqlite:{tmp_path}/q", *SLOW, "--metrics", "0", "--workers", workers)
        with relaying(*base) as relay:
            url = relay.line("metrics on ").split()[-1]
            for recipient in ("now@d.example", "later@d.example", "never@d.example"):
                deliver(relay.port, recipient)

            def figures() -> dict[str, float]:
                with urllib.request.urlopen(url, timeout=30) as answer:
                    lines = answer.read().decode().splitlines()
                pairs = [line.rsplit(" ", 1) for line in lines if not line.startswith("#")]
                return {name: float(value) for name, value in pairs if "{" not in name}

            wanted = {
                "fastsmtp_messages_total": 3.0,
                "fastsmtp_delivered_total": 2.0,  # the notice too
                "fastsmtp_deferred_total": 1.0,
                "fastsmtp_failed_total": 1.0,
                "fastsmtp_notices_failed_total": 1.0,
                "fastsmtp_queue_messages": 1.0,
                "fastsmtp_queue_deferred": 1.0,
                "fastsmtp_queue_leased": 0.0,
            }
            until(lambda: figures().items() >= wanted.items())
            assert 0 < figures()["fastsmtp_queue_oldest_age_seconds"] < 100
            assert figures()["fastsmtp_queue_bytes"] > 0


@pytest.mark.slow
def test_tls_and_a_login_at_the_next_hop(tmp_path: pathlib.Path, authority: Authority) -> None:
    users = add_user(tmp_path / "users", "relay", "secret")
    (tmp_path / "password").write_text("secret\n")
    certificate = authority.issue("localhost")
    next_hop = ("--relay-domains", "d.example", "--allow-from", "192.0.2.1", "--require-auth", "--auth-file", users)
    with (
        sink() as box,
        relaying(*("--to", box.url, "--queue", "none", "--tls-cert", str(certificate), *next_hop)) as second,
    ):
        for place in ("none", f"sqlite:{tmp_path}/q"):
            box.messages.clear()
            with relaying(
                *("--to", f"smtp://localhost:{second.port}", "--queue", place, "--next-hop-tls", "verify"),
                *("--next-hop-ca", str(authority.ca), "--next-hop-user", "relay"),
                *("--next-hop-password-file", str(tmp_path / "password")),
            ) as relay:
                deliver(relay.port, body=MESSAGE)
                until(lambda: box.bodies() == [MESSAGE])
                assert b" with ESMTPSA" in box.messages[0][2]
