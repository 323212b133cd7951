"""``fastsmtp passwd``: edit the file of users that ``fastsmtp serve --auth-file`` reads.

Exit codes: 0 when it is done; 1 when it cannot be, 2 for a contradiction in the options; one line says why.
"""

from __future__ import annotations

import argparse
import getpass
import sys
import warnings

from .errors import ConfigurationError

__all__ = ["add_arguments", "run"]

_PASSWORD = 1024  # octets, as many as a SASL message may have of it


class _Refused(Exception):
    """What is said before the command ends with exit code 1."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add what ``fastsmtp passwd`` takes."""
    parser.add_argument("file", metavar="FILE", help="made if it is not there")
    # Not nargs="?": NAME could then not stand behind an option.
    parser.add_argument("name", metavar="NAME", help="the user, whose password is asked for").required = False
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--stdin", action="store_true", help="take the password from one line of standard input")
    action.add_argument("--delete", action="store_true", help="take the user out of the file")
    action.add_argument("--list", action="store_true", help="print the users' names, one a line")
    # `authfile` and its SASL are loaded by `run` alone; a test holds the number here to the one there.
    parser.add_argument(
        "--iterations",
        metavar="N",
        type=int,
        help="rounds of PBKDF2; a million is about half a second a login (600000)",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it; the exit code."""
    if arguments.list != (arguments.name is None):
        return _complain("--list takes no NAME" if arguments.list else "the NAME of a user is needed", 2)
    from .authfile import ITERATIONS, AuthFile
    from .sasl.secret import ITERATIONS as FEWEST
    from .sasl.secret import MAX_ITERATIONS as MOST

    iterations = ITERATIONS if arguments.iterations is None else arguments.iterations
    if not FEWEST <= iterations <= MOST:
        return _complain(f"--iterations: {FEWEST} to {MOST} is needed, not {iterations}", 2)
    try:
        if arguments.list:
            lines: tuple[str, ...] = AuthFile(arguments.file).names
        else:
            lines = (_change(arguments, iterations),)
    except (ConfigurationError, _Refused) as error:
        return _complain(str(error), 1)
    except OSError as error:
        return _complain(f"cannot write {arguments.file}: {error.strerror or error}", 1)
    for line in lines:
        print(_printable(line))
    return 0


def _change(arguments: argparse.Namespace, iterations: int) -> str:
    """Change the file; what has become of the user."""
    from .authfile import AuthFile, prepare_name

    try:
        name = prepare_name(arguments.name)
    except ValueError:
        raise _Refused(
            "that name cannot be used: no colon, no control characters, no # at the start, no space at either end"
        ) from None
    users = AuthFile(arguments.file, missing_ok=not arguments.delete)
    if arguments.delete:
        if not users.remove(name):
            raise _Refused(f"{arguments.file} has no user {name}")
        return f"{name}: deleted"
    password = _read_line() if arguments.stdin else _ask(name)
    if len(password.encode("utf-8", "surrogatepass")) > _PASSWORD:
        raise _Refused(f"the password is longer than {_PASSWORD} octets")
    try:
        return f"{name}: added" if users.add(name, password, iterations=iterations) else f"{name}: changed"
    except ConfigurationError:
        raise
    except ValueError:
        raise _Refused("that password cannot be used: it is empty, or has characters that RFC 4013 forbids") from None


def _ask(name: str) -> str:
    """The password, typed twice on the terminal."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", getpass.GetPassWarning)  # it would show what is typed
        try:
            first = getpass.getpass(f"Password for {name}: ")
            second = getpass.getpass("Again: ")
        except getpass.GetPassWarning:
            raise _Refused(
                "there is no terminal to ask for the password; --stdin reads it from standard input"
            ) from None
        except EOFError:
            raise _Refused("no password was given") from None
        except UnicodeDecodeError:
            raise _Refused("the password is not UTF-8") from None
    if first != second:
        raise _Refused("the two passwords differ; nothing was changed")
    return first


def _read_line() -> str:
    """The password, from standard input's first line."""
    line: bytes = sys.stdin.buffer.readline(_PASSWORD + 3)
    try:
        return line.removesuffix(b"\n").removesuffix(b"\r").decode()
    except UnicodeDecodeError:
        raise _Refused("the password is not UTF-8, or too long") from None


def _printable(text: str) -> str:
    """What standard output's encoding has no character for, escaped."""
    encoding = sys.stdout.encoding or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def _complain(text: str, code: int) -> int:
    print(f"fastsmtp: {text}", file=sys.stderr)
    return code
