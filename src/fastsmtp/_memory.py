"""How a process that does nothing but serve keeps its memory.  A library must not decide that for its program, so only the command does."""

from __future__ import annotations

import ctypes
import gc
import sys
from typing import Final

__all__ = ["settle"]

# mallopt(3)
_M_TRIM_THRESHOLD: Final = -1
_M_TOP_PAD: Final = -2
_M_MMAP_THRESHOLD: Final = -3

_LARGEST: Final = 32 * 1024 * 1024  # what glibc takes for M_MMAP_THRESHOLD at most
_KEPT: Final = 16 * 1024 * 1024
_YOUNG: Final = 5_000


def settle() -> None:
    """Take the process as it is now for what stays.

    What is imported is never looked at by the garbage collector again, which comes by less often: a connection of ours leaves no cycles.
    asyncio's transport does when its peer resets the connection, some ten objects and 5 KB: with a threshold of 50,000 objects they were up to
    25 MB, with this one a tenth of that.
    With glibc, buffers of large messages come from memory that was used before, up to 16 MB of it; else each one is mapped, cleared and
    unmapped by the kernel, which is a tenth of all that a message of 1 MB costs (450 us of CPU instead of 500, median of four runs).
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(_YOUNG, *gc.get_threshold()[1:])
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # musl has none
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _LARGEST)
            mallopt(_M_TRIM_THRESHOLD, _KEPT)
            mallopt(_M_TOP_PAD, _KEPT // 16)
