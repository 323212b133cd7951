"""Every function of the text protocol beside its rivals, in one table: both twins, other ways in Python, Go's net/textproto.

    python -m bench.micro [--quick]

Runs bench/test_micro.py, and bench/peers/gosmtp/textproto_test.go on the same texts where Go is; writes bench/results/micro.md and .json.
What is shown is the median of pytest-benchmark's rounds, and of five runs of Go.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass

from . import texts
from .report import RESULTS, machine
from .servers import HERE as PEERS
from .servers import go

_GO = {
    "DecoderOrdinary": ("decode ordinary text to LF", "ordinary"),
    "DecoderStuffed": ("decode stuffed text to LF", "stuffed"),
    "Message": ("decode 4 KB and its end", "message"),
    "Header": ("header of 13 fields", "header"),
    "Response": ("parse a reply of 5 lines", "response"),
    "Command": ("find a line", "command"),
    "Encoder": ("encode text", "ordinary"),
    "KeyCommon": ("canonical key, common", ""),
    "KeyOther": ("canonical key, other", ""),
}
"""Go's benchmarks: which case each is, and the text it works on.  Go's decoder always makes LF of CR LF."""

TEXTS = {
    "ordinary": texts.block(texts.ORDINARY),
    "stuffed": texts.block(texts.STUFFED),
    "message": texts.MESSAGE,
    "header": texts.HEADER,
    "response": texts.RESPONSE,
    "command": texts.COMMAND,
}
_LINE = re.compile(r"^Benchmark(\w+?)(?:-\d+)?\s+\d+\s+([\d.]+) ns/op", re.MULTILINE)
_BY_SIZE = re.compile(r"^(decode|encode (text|a message))")


@dataclass(frozen=True, slots=True)
class Figure:
    """One way to do one thing; nanoseconds a call."""

    case: str
    who: str
    octets: int
    median: float
    least: float

    @property
    def rate(self) -> float:
        """GB/s, of the median."""
        return self.octets / self.median


def of_python(quick: bool) -> list[Figure]:
    """What pytest-benchmark finds."""
    with tempfile.TemporaryDirectory() as folder:
        path = pathlib.Path(folder, "micro.json")
        command = [sys.executable, "-m", "pytest", "bench/test_micro.py", "-q", "-m", "", "-p", "no:xdist"]
        command += [f"--benchmark-json={path}", "--benchmark-disable-gc", "--benchmark-quiet"]
        command += ["--benchmark-min-rounds=2", "--benchmark-max-time=0.05"] if quick else []
        subprocess.run(command, check=True, cwd=PEERS.parent.parent, stdout=subprocess.DEVNULL)
        found = json.loads(path.read_text())["benchmarks"]
    return [
        Figure(
            each["extra_info"]["case"],
            each["extra_info"]["who"],
            each["extra_info"]["octets"],
            each["stats"]["median"] * 1e9,
            each["stats"]["min"] * 1e9,
        )
        for each in found
    ]


def of_go(quick: bool) -> tuple[list[Figure], str]:
    """What `go test -bench` finds; or why there is nothing."""
    program = go()
    if program is None:
        return [], "go is not installed"
    with tempfile.TemporaryDirectory() as folder:
        for name, text in TEXTS.items():
            pathlib.Path(folder, name).write_bytes(text)
        command = [program, "test", "-run", "^$", "-bench", ".", "-cpu", "1", "-count", "1" if quick else "5"]
        command += ["-benchtime", "50ms" if quick else "500ms", "."]
        done = subprocess.run(
            command,
            cwd=PEERS / "gosmtp",
            env=os.environ | {"FASTSMTP_BENCH_TEXTS": folder},
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
        )
    if done.returncode:
        return [], (done.stderr.strip() or done.stdout.strip()).splitlines()[-1]
    times: dict[str, list[float]] = {}
    for name, nanoseconds in _LINE.findall(done.stdout):
        times.setdefault(name, []).append(float(nanoseconds))
    figures = []
    for name, measured in times.items():
        case, text = _GO[name]
        octets = len(TEXTS[text]) if text else len("content-type")
        figures.append(Figure(case, "Go net/textproto", octets, statistics.median(measured), min(measured)))
    return figures, ""


def table(figures: list[Figure], notes: list[str]) -> str:
    """In Markdown; GB/s for what takes text of any length, else nanoseconds."""
    lines = [
        "### Text protocol, one call",
        "",
        "| what | who | ns | GB/s | time, compiled = 1 |",
        "|---|---|---|---|---|",
    ]
    for case in dict.fromkeys(figure.case for figure in figures):
        same = [figure for figure in figures if figure.case == case]
        base = next((figure for figure in same if figure.who == "fastsmtp, compiled"), None)
        for figure in same:
            rate = f"{figure.rate:.2f}" if _BY_SIZE.match(case) and not case.endswith("reply") else ""
            ratio = f"{figure.median / base.median:.2f}" if base else ""
            lines.append(f"| {case} | {figure.who} | {figure.median:,.0f} | {rate} | {ratio} |")
    return "\n".join([*lines, "", *notes, f"Medians, on {machine()}."]) + "\n"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a few seconds")
    quick = parser.parse_args().quick
    figures = of_python(quick)
    more, why = of_go(quick)
    text = table(figures + more, [f"- Go net/textproto is not there: {why}", ""] if why else [])
    print(text)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "micro.md").write_text(text)
    raw = [[each.case, each.who, each.octets, each.median, each.least] for each in figures + more]
    (RESULTS / "micro.json").write_text(json.dumps(raw, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
