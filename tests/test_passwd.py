"""`fastsmtp passwd`: what it asks, what it says, its exit codes, and several at a time."""

from __future__ import annotations

import asyncio
import getpass
import io
import os
import pathlib
import subprocess
import sys
import warnings
from collections.abc import Iterator

import pytest

from fastsmtp.authfile import ITERATIONS, AuthFile
from fastsmtp.cli import build_parser, main
from fastsmtp.sasl.secret import ITERATIONS as FEWEST
from fastsmtp.sasl.secret import MAX_ITERATIONS

QUICK = ("--iterations", str(FEWEST))


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "users"


@pytest.fixture
def stdin(monkeypatch: pytest.MonkeyPatch) -> io.BytesIO:
    """What the command reads from standard input."""
    octets = io.BytesIO()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(octets))
    return octets


def type_in(monkeypatch: pytest.MonkeyPatch, *answers: str | BaseException | Warning) -> list[str]:
    """Answer what is asked on the terminal; the prompts."""
    prompts: list[str] = []
    rest = iter(answers)

    def ask(prompt: str) -> str:
        prompts.append(prompt)
        answer = next(rest)
        if isinstance(answer, Warning):
            warnings.warn(answer, stacklevel=2)
            return "seen by all"
        if isinstance(answer, BaseException):
            raise answer
        return answer

    monkeypatch.setattr(getpass, "getpass", ask)
    return prompts


def verify(path: pathlib.Path, name: str, password: str) -> bool:
    return asyncio.run(AuthFile(path).verify(name, password))


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The one line that the command says when it ends with that code."""
    assert main(["passwd", *arguments]) == code
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("fastsmtp: ") and err.count("\n") == 1
    return err.removeprefix("fastsmtp: ").rstrip("\n")


def test_asked_for_twice(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    prompts = type_in(monkeypatch, "secret", "secret", "other", "other")
    assert main(["passwd", str(path), "jö", *QUICK]) == 0
    assert prompts == ["Password for jö: ", "Again: "]
    assert verify(path, "jö", "secret")
    assert main(["passwd", str(path), "jo\u0308", *QUICK]) == 0
    assert not verify(path, "jö", "secret")
    assert verify(path, "jö", "other")
    assert capsys.readouterr() == ("jö: added\njö: changed\n", "")
    assert path.stat().st_mode & 0o7777 == 0o600


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (("one", "other"), "the two passwords differ; nothing was changed"),
        ((EOFError(),), "no password was given"),
        (("one", EOFError()), "no password was given"),
        (
            (getpass.GetPassWarning("no terminal"),),
            "there is no terminal to ask for the password; --stdin reads it from standard input",
        ),
        ((UnicodeDecodeError("utf-8", b"\xff", 0, 1, "x"),), "the password is not UTF-8"),
        (("", ""), "that password cannot be used: it is empty, or has characters that RFC 4013 forbids"),
        (("a\x1b", "a\x1b"), "that password cannot be used: it is empty, or has characters that RFC 4013 forbids"),
        (("\ud800", "\ud800"), "that password cannot be used: it is empty, or has characters that RFC 4013 forbids"),
        (("a" * 1025, "a" * 1025), "the password is longer than 1024 octets"),
    ],
)
def test_what_may_go_wrong_at_the_terminal(
    path: pathlib.Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    answers: tuple[str | BaseException, ...],
    said: str,
) -> None:
    type_in(monkeypatch, *answers)
    assert refused(capsys, 1, str(path), "anna", *QUICK) == said
    assert not path.exists()


def test_an_interrupt_changes_nothing(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    type_in(monkeypatch, "secret", KeyboardInterrupt())
    assert main(["passwd", str(path), "anna"]) == 130
    assert not path.exists()


@pytest.mark.parametrize(
    ("line", "password"),
    [
        (b"secret\n", "secret"),
        (b"secret", "secret"),
        (b"secret\r\nmore\n", "secret"),
        (b" a b \n", " a b "),
        ("jö".encode(), "jö"),
        (b"a" * 1024 + b"\r\n", "a" * 1024),
    ],
)
def test_from_standard_input(path: pathlib.Path, stdin: io.BytesIO, line: bytes, password: str) -> None:
    stdin.write(line)
    stdin.seek(0)
    assert main(["passwd", str(path), "anna", "--stdin", *QUICK]) == 0
    assert verify(path, "anna", password)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (b"", "that password cannot be used: it is empty, or has characters that RFC 4013 forbids"),
        (b"\n", "that password cannot be used: it is empty, or has characters that RFC 4013 forbids"),
        (b"a\rb\n", "that password cannot be used: it is empty, or has characters that RFC 4013 forbids"),
        (b"j\xf6\n", "the password is not UTF-8, or too long"),
        (b"a" * 1025 + b"\n", "the password is longer than 1024 octets"),
        (b"a" * 9999, "the password is longer than 1024 octets"),
    ],
)
def test_nothing_usable_on_standard_input(
    path: pathlib.Path, stdin: io.BytesIO, capsys: pytest.CaptureFixture[str], line: bytes, said: str
) -> None:
    stdin.write(line)
    stdin.seek(0)
    assert refused(capsys, 1, str(path), "anna", "--stdin", *QUICK) == said
    assert not path.exists()


def test_delete_and_list(path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = AuthFile(path, missing_ok=True)
    for name in ("jö", "anna"):
        users.add(name, "secret", iterations=FEWEST)
    assert main(["passwd", str(path), "--list"]) == 0
    assert capsys.readouterr().out == "jö\nanna\n"
    assert main(["passwd", str(path), "jö", "--delete"]) == 0
    assert capsys.readouterr().out == "jö: deleted\n"
    assert refused(capsys, 1, str(path), "jö", "--delete") == f"{path} has no user jö"
    assert main(["passwd", str(path), "--list"]) == 0
    assert capsys.readouterr().out == "anna\n"


def test_options_may_stand_anywhere(path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    users = AuthFile(path, missing_ok=True)
    for arguments in (
        ["--delete", "F", "jö"],
        ["F", "--delete", "jö"],
        ["F", "jö", "--delete"],
        ["--delete", "--", "F", "jö"],
    ):
        users.add("jö", "secret", iterations=FEWEST)
        assert main(["passwd", *(str(path) if each == "F" else each for each in arguments)]) == 0
        assert capsys.readouterr().out == "jö: deleted\n"
    assert main(["passwd", "--list", str(path)]) == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "the NAME of a user is needed"),
        (["--delete"], "the NAME of a user is needed"),
        (["--list", "anna"], "--list takes no NAME"),
        (["anna", "--iterations", "4095"], "--iterations: 4096 to 1000000 is needed, not 4095"),
        (["anna", "--iterations", "1000001"], "--iterations: 4096 to 1000000 is needed, not 1000001"),
    ],
)
def test_contradictions(
    path: pathlib.Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert refused(capsys, 2, str(path), *arguments) == said


@pytest.mark.parametrize("arguments", [[], ["F", "n", "--delete", "--stdin"], ["F", "n", "--iterations", "x"]])
def test_bad_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["passwd", *arguments])
    assert stopped.value.code == 2


@pytest.mark.parametrize("name", ["", "a:b", "#a", " a", "a\n", "\ud800"])
@pytest.mark.parametrize("option", ["--stdin", "--delete"])
def test_names_that_cannot_be(path: pathlib.Path, capsys: pytest.CaptureFixture[str], name: str, option: str) -> None:
    assert refused(capsys, 1, str(path), name, option).startswith("that name cannot be used: ")


def test_files_that_cannot_be(path: pathlib.Path, stdin: io.BytesIO, capsys: pytest.CaptureFixture[str]) -> None:
    stdin.write(b"secret\n" * 9)
    stdin.seek(0)
    missing = f"cannot read {path}: No such file or directory"
    assert refused(capsys, 1, str(path), "--list") == missing
    assert refused(capsys, 1, str(path), "anna", "--delete") == missing
    nowhere = path / "no" / "users"
    assert refused(capsys, 1, str(nowhere), "anna", "--stdin", *QUICK) == (
        f"cannot write {nowhere}: No such file or directory"
    )
    assert refused(capsys, 1, str(path.parent), "anna", "--stdin", *QUICK) == (
        f"cannot read {path.parent}: Is a directory"
    )
    path.touch(mode=0o600)
    path.write_text("anna:secret\n")
    for arguments in (["--list"], ["anna", "--delete"], ["anna", "--stdin", *QUICK]):
        assert refused(capsys, 1, str(path), *arguments).startswith(f"{path}:1: not of the form name:SCRAM-SHA-256$")
    assert path.read_text() == "anna:secret\n"


def test_a_file_that_breaks_meanwhile(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(getpass, "getpass", lambda _: path.write_text("nonsense") and "secret")
    assert refused(capsys, 1, str(path), "anna", *QUICK).startswith(f"{path}:1: not of the form ")


def test_a_terminal_without_the_characters(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    AuthFile(path, missing_ok=True).add("jö", "secret", iterations=FEWEST)
    octets = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(octets, "ascii", write_through=True))
    assert main(["passwd", str(path), "--list"]) == 0
    assert octets.getvalue() == b"j\\xf6\n"


def test_the_help_has_the_rounds() -> None:
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        out = io.StringIO()
        patch.setattr(sys, "stdout", out)
        build_parser().parse_args(["passwd", "--help"])
    assert f"({ITERATIONS})" in out.getvalue()
    assert FEWEST < ITERATIONS <= MAX_ITERATIONS


def test_the_rounds_without_the_option(path: pathlib.Path, stdin: io.BytesIO) -> None:
    stdin.write(b"secret\n")
    stdin.seek(0)
    assert main(["passwd", str(path), "anna", "--stdin"]) == 0
    assert AuthFile(path).lookup("anna").iterations == ITERATIONS


@pytest.fixture
def commands() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for each in started:
        each.kill()
        each.communicate()


def test_several_at_a_time(path: pathlib.Path, commands: list[subprocess.Popen[bytes]]) -> None:
    AuthFile(path, missing_ok=True).add("old", "secret", iterations=FEWEST)
    names = [f"user{number}" for number in range(5)]
    calls = [[name, "--stdin", *QUICK] for name in names] + [["old", "--delete"]]
    for arguments in calls:
        commands.append(
            subprocess.Popen(
                [sys.executable, "-m", "fastsmtp", "passwd", str(path), *arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )
        )
    for command, arguments in zip(commands, calls, strict=True):
        out, err = command.communicate(b"secret of " + arguments[0].encode() + b"\n", timeout=60)
        said = f"{arguments[0]}: {'deleted' if '--delete' in arguments else 'added'}{os.linesep}"
        assert (command.returncode, out.decode(), err) == (0, said, b"")
    assert sorted(AuthFile(path).names) == names
    assert verify(path, "user3", "secret of user3")
    assert sorted(each.name for each in path.parent.iterdir()) == [".users.lock", "users"]


def test_without_a_terminal_nothing_is_shown_and_nothing_asked(path: pathlib.Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "fastsmtp", "passwd", str(path), "anna"],
        input=b"secret\nsecret\n",
        capture_output=True,
        start_new_session=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, done.stdout) == (1, b"")
    assert done.stderr.startswith(b"fastsmtp: there is no terminal") and done.stderr.count(b"\n") == 1
