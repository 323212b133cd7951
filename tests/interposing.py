"""Faults from below: a library that is preloaded into a server and lets its system calls fail as a test says."""

from __future__ import annotations

import ctypes
import mmap
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

__all__ = ["Interposer", "interposer", "why_not"]

_SOURCE: Final = pathlib.Path(__file__).with_name("interpose.c")


class _Control(ctypes.Structure):
    _fields_ = (
        ("armed", ctypes.c_int32),
        ("at", ctypes.c_int32),
        ("stays", ctypes.c_int32),
        ("error", ctypes.c_int32),
        ("calls", ctypes.c_int32),
        ("fired", ctypes.c_int32),
        ("shift", ctypes.c_int64),
        ("first", ctypes.c_char * 64),
        ("name", ctypes.c_char * 256),
    )


def why_not() -> str:
    """Why there can be none here; "" when there can."""
    if not sys.platform.startswith("linux"):
        return "preloads a library on Linux"
    return "" if shutil.which("cc") else "needs a C compiler"


class Interposer:
    """One library, and the page by which it is told what to do.

    Attributes:
        environment: for the server whose calls are to fail.
    """

    def __init__(self, library: pathlib.Path, page: pathlib.Path, under: pathlib.Path) -> None:
        page.write_bytes(bytes(mmap.PAGESIZE))
        with open(page, "r+b") as file:
            self._map = mmap.mmap(file.fileno(), mmap.PAGESIZE)
        self._control = _Control.from_buffer(self._map)
        self.environment: Final = {
            "LD_PRELOAD": str(library),
            "INTERPOSE_CONTROL": str(page),
            "INTERPOSE_PATH": os.path.realpath(under),
        }

    def arm(self, at: int, error: int, *, stays: bool = False) -> None:
        """Let the call number `at` from now on fail, counted from 1, and all behind it if that `stays`.

        Args:
            error: its errno; 0 lets a write take half of what it is given, and then only writes count.
        """
        control = self._control
        control.armed = 0
        control.at, control.error, control.stays = at, error, stays
        control.calls = control.fired = 0
        control.first = control.name = b""
        control.armed = 1

    def disarm(self) -> str:
        """Let nothing fail any more: the call that failed, or "" when none did."""
        self._control.armed = 0
        first: bytes = self._control.first
        return first.decode() if self._control.fired else ""

    @property
    def name(self) -> str:
        """What the call that failed was made on."""
        name: bytes = self._control.name
        return name.decode()

    @property
    def calls(self) -> int:
        """Calls since it was armed."""
        return int(self._control.calls)

    def shift_clock(self, seconds: int) -> None:
        """Let the date be so many seconds later than it is."""
        self._control.shift = seconds

    def close(self) -> None:
        """Let go of the page."""
        del self._control
        self._map.close()


@contextmanager
def interposer(folder: pathlib.Path, under: pathlib.Path) -> Iterator[Interposer]:
    """Build the library into `folder`; calls on what is under `under` will count."""
    library = folder / "interpose.so"
    command = ["cc", "-O1", "-shared", "-fPIC", "-o", str(library), str(_SOURCE), "-ldl"]
    subprocess.run(command, check=True)
    made = Interposer(library, folder / "control", under)
    try:
        yield made
    finally:
        made.close()
