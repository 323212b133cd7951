"""The command, started as a user would."""

from __future__ import annotations

import os
import pathlib
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

__all__ = ["Serving", "serving", "stored"]


@dataclass(slots=True)
class Serving:
    """A running server.

    Attributes:
        place: host:port, or a Unix socket's path, as its first line says.
        first_line: that line.
    """

    process: subprocess.Popen[str]
    first_line: str
    place: str

    @property
    def port(self) -> int:
        return int(self.place.rpartition(":")[2])

    def line(self, text: str) -> str:
        """The next line of standard error with this text in it."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if text in line:
                return line
        raise AssertionError(f"it has ended without a line with {text!r}")

    def stop(self) -> tuple[int, str]:
        """SIGTERM: the exit code, and the rest of standard error."""
        self.process.send_signal(signal.SIGTERM)
        _, rest = self.process.communicate(timeout=60)
        return self.process.returncode, rest


@contextmanager
def serving(
    *arguments: str,
    command: str = "serve",
    stdout: int | None = None,
    launcher: Sequence[str] = (),
    pass_fds: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
) -> Iterator[Serving]:
    """The command while it runs, `serve` or `relay`; `launcher` is what the command line is given to, more `environment` is added to ours."""
    process = subprocess.Popen(
        [*launcher, sys.executable, "-m", "fastsmtp", command, *arguments],
        stderr=subprocess.PIPE,
        stdout=stdout,
        text=True,
        pass_fds=pass_fds,
        env={**os.environ, **(environment or {})},
    )
    assert process.stderr is not None
    try:
        line = process.stderr.readline()
        match = re.search(r"listening on (\S+)$", line)
        assert match, line + process.stderr.read()
        yield Serving(process, line.rstrip("\n"), match[1])
    finally:
        if process.poll() is None:
            process.kill()
            process.wait()
        process.stderr.close()
        if process.stdout is not None:
            process.stdout.close()


def stored(maildir: pathlib.Path) -> list[bytes]:
    """The messages in a Maildir, without the Return-Path and Received that it puts in front."""
    assert not list((maildir / "tmp").iterdir())
    bodies = []
    for path in sorted((maildir / "new").iterdir()):
        head, _, rest = path.read_bytes().partition(b"\r\nReceived: ")
        assert head.startswith(b"Return-Path: <")
        lines = rest.split(b"\r\n")
        end = next(index for index, line in enumerate(lines) if index and line[:1] not in (b" ", b"\t"))
        bodies.append(b"\r\n".join(lines[end:]))
    return bodies
