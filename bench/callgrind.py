"""Instructions that one call of the extension takes, under `valgrind --tool=callgrind`: noise does not hide a regression there.

    python -m bench.callgrind [--only PART] [--against FILE]

Each function runs a fixed number of times and not at all in two processes that do everything else alike; the difference is what the
calls took, the interpreter's part in calling included.  The counts go to bench/results/instructions.json; they hold for one build, one
Python and one kind of processor (valgrind shows AVX2 at most).  `--against` an earlier file prints what has changed, and fails when a
count grew by more than 3%.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile

from .report import RESULTS
from .servers import tool

ROOT = pathlib.Path(__file__).parent.parent
GROWTH = 1.03
_TOTAL = re.compile(r"^(?:summary|totals): (\d+)", re.MULTILINE)

_SETUP = """
from itertools import repeat
from bench.texts import *
from fastsmtp import _textproto as t
"""
CALLS = {
    "decode 64 KB": ("d, text = t.DotDecoder(True), block(ORDINARY)", "d.feed(text)", 200),
    "decode 64 KB, stuffed": ("d, text = t.DotDecoder(True), block(STUFFED)", "d.feed(text)", 200),
    "decode 64 KB to LF": ("d, text = t.DotDecoder(False), block(ORDINARY)", "d.feed(text)", 200),
    "decode 4 KB and its end": ("", "t.DotDecoder(True).feed(MESSAGE)", 2000),
    "encode 64 KB": ("e, text = t.DotEncoder(), block(ORDINARY)", "e.feed(text)", 200),
    "header of 13 fields": ("", "t.parse_header_block(HEADER)", 2000),
    "scan a command": ("", "t.scan_command(COMMAND)", 5000),
    "scan a path": ("", "t.scan_path(ARGUMENT, 5)", 5000),
    "scan a domain": ("", "t.scan_domain(DOMAIN)", 5000),
    "find a line": ("", "t.find_line(COMMAND)", 5000),
    "encode a reply": ("", "t.encode_reply(250, '2.1.0', 'Sender ok')", 5000),
    "parse a reply of 5 lines": ("", "t.parse_response(RESPONSE)", 5000),
    "canonical key, common": ("", "t.canonical_mime_header_key('content-type')", 5000),
    "canonical key, other": ("", "t.canonical_mime_header_key('x-no-such-key')", 5000),
}
"""What is counted: what is made before, the call, how often."""


def instructions(prepared: str, call: str, times: int) -> int:
    """Of a whole process that makes the call so many times."""
    program = f"{_SETUP}{prepared}\ndef run():\n    for _ in repeat(None, {times}):\n        {call}\nrun()\n"
    with tempfile.TemporaryDirectory() as folder:
        out = pathlib.Path(folder, "callgrind.out")
        command = [tool("valgrind") or "valgrind", "--tool=callgrind", f"--callgrind-out-file={out}", "--quiet"]
        command += [sys.executable, "-c", program]
        environment = os.environ | {"PYTHONHASHSEED": "0", "PYTHONDONTWRITEBYTECODE": "1"}
        subprocess.run(command, check=True, cwd=ROOT, env=environment, capture_output=True, timeout=600)
        found = _TOTAL.search(out.read_text())
        assert found is not None
        return int(found.group(1))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="what contains this")
    parser.add_argument("--against", type=pathlib.Path, help="an earlier instructions.json")
    options = parser.parse_args()
    if tool("valgrind") is None:
        print("skipped: valgrind is not installed")
        return 0
    try:
        from fastsmtp import _textproto  # noqa: F401
    except ImportError:
        print("skipped: the extension is not built")
        return 0
    before = json.loads(options.against.read_text()) if options.against else {}
    counts, grown = {}, 0
    for name, (prepared, call, times) in CALLS.items():
        if options.only not in name:
            continue
        counts[name] = count = round((instructions(prepared, call, times) - instructions(prepared, call, 0)) / times)
        change = f"  {count / before[name] - 1:+.1%}" if before.get(name) else ""
        grown += bool(change) and count > before[name] * GROWTH
        print(f"{name:28} {count:>10,} instructions{change}", flush=True)
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / "instructions.json"
    kept = json.loads(path.read_text()) if options.only and path.exists() else {}
    path.write_text(json.dumps(kept | counts, indent=1) + "\n")
    return 1 if grown else 0


if __name__ == "__main__":
    sys.exit(main())
