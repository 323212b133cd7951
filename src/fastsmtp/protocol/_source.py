"""Which body of the protocol is run: the compiled one with the compiled twin of the text protocol, its source with the pure one.

`lines`, `access` and `server` are compiled as they stand, with their attributes as `*.pxd` have them; a compiled module lies beside its source and
would be taken first.  With it the work on a connection without I/O costs a fifth less (15.2 us instead of 18.8 for a connection and a message,
CPython 3.13).  Channel, Conn and Reception compiled in the same way gave 1.5 us more: not worth losing their base class for.
"""

from __future__ import annotations

import sys
from importlib.machinery import BYTECODE_SUFFIXES, SOURCE_SUFFIXES, FileFinder, SourceFileLoader, SourcelessFileLoader

from .._twin import IMPLEMENTATION

__all__: list[str] = []

if IMPLEMENTATION == "pure":
    for folder in sys.modules[__package__].__path__:
        sys.path_importer_cache[folder] = FileFinder(
            folder, (SourceFileLoader, SOURCE_SUFFIXES), (SourcelessFileLoader, BYTECODE_SUFFIXES)
        )
