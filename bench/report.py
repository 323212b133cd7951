"""What was measured, as JSON, as tables in Markdown, and in docs/performance.md.

    python -m bench.report [--publish]

builds the tables and pictures again from the JSON files in bench/results/; `--publish` puts them into docs/performance.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import pathlib
import platform
import shutil
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from .measuring import Run
from .reasons import reason
from .workloads import WORKLOADS, Workload

__all__ = ["RESULTS", "Row", "Table", "load", "machine", "save", "table", "write"]

RESULTS = pathlib.Path(__file__).parent / "results"
DOCS = pathlib.Path(__file__).parent.parent / "docs"
README = DOCS.parent / "README.md"
BEGIN, END = "<!-- tables: made by python -m bench.report -->", "<!-- end of tables -->"
SHOWN = ("kept", "fresh", "big", "durable")  # pictures that the README shows at once


@dataclass(slots=True)
class Row:
    """All runs of one server with one number of connections."""

    server: str
    connections: int
    runs: list[Run] = field(default_factory=list)

    def median(self, value: Callable[[Run], float]) -> float:
        return statistics.median(map(value, self.runs))

    @property
    def cpu(self) -> float:
        return self.median(lambda run: run.cpu)


@dataclass(slots=True)
class Table:
    """One workload.

    Attributes:
        rows: in the order of the servers.
        skipped: servers that have no row, and why.
        machine: where and when.
    """

    workload: Workload
    rows: list[Row] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    machine: str = ""

    def base(self, connections: int) -> Row | None:
        """The row that others are compared with."""
        return next((row for row in self.rows if row.connections == connections and row.runs), None)


def machine() -> str:
    """The machine and what runs on it, in one line."""
    name = platform.processor() or platform.machine()
    cpuinfo = pathlib.Path("/proc/cpuinfo")
    if cpuinfo.exists():
        models = [
            line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
        ]
        name = models[0] if models else name
    python = f"{platform.python_implementation()} {platform.python_version()}"
    day = datetime.datetime.now(datetime.UTC).date().isoformat()
    return f"{name}, {os.cpu_count()} processors, {platform.system()} {platform.release()}, {python}, {day}"


def save(table: Table, folder: pathlib.Path) -> None:
    """One workload's runs as JSON."""
    raw = {
        "machine": table.machine,
        "skipped": table.skipped,
        "rows": [
            {
                "server": row.server,
                "connections": row.connections,
                "runs": [dataclasses.asdict(run) for run in row.runs],
            }
            for row in table.rows
        ],
    }
    (folder / f"{table.workload.name}.json").write_text(json.dumps(raw, indent=1) + "\n")


def load(folder: pathlib.Path) -> list[Table]:
    """What was saved, in the order of the workloads."""
    tables = []
    for workload in WORKLOADS:
        path = folder / f"{workload.name}.json"
        if path.exists():
            raw = json.loads(path.read_text())
            rows = [
                Row(each["server"], each["connections"], [Run(**run) for run in each["runs"]]) for each in raw["rows"]
            ]
            tables.append(Table(workload, rows, raw["skipped"], raw["machine"]))
    return tables


def _spread(row: Row, value: Callable[[Run], float], digits: int) -> str:
    values = [value(run) for run in row.runs]
    middle = f"{statistics.median(values):,.{digits}f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"


def _columns(workload: Workload) -> list[tuple[str, Callable[[Row], str]]]:
    """The columns between the server's name and the ratios."""
    columns: list[tuple[str, Callable[[Row], str]]] = []
    if len(workload.points) > 1:
        columns.append(("connections", lambda row: f"{row.connections:,}"))
    columns += [
        ("CPU us/message", lambda row: _spread(row, lambda run: run.cpu, 1)),
        ("user", lambda row: f"{row.median(lambda run: run.user):,.1f}"),
        ("system", lambda row: f"{row.median(lambda run: run.system):,.1f}"),
        ("messages/s", lambda row: _spread(row, lambda run: run.rate, 0)),
        ("busy", lambda row: f"{row.median(lambda run: run.busy) * 100:.0f}%"),
        ("peak MB", lambda row: f"{max(run.peak for run in row.runs) / 1024:,.1f}"),
    ]
    if workload.latency:
        columns += [
            ("p50 ms", lambda row: _spread(row, lambda run: run.p50, 2)),
            ("p99 ms", lambda row: _spread(row, lambda run: run.p99, 2)),
        ]
    if workload.idle:
        columns.append(("octets per idle connection", lambda row: _spread(row, lambda run: run.idle, 0)))
    return columns


def _ratios(row: Row, base: Row | None) -> list[str]:
    if base is None or not base.cpu or not row.cpu:
        return ["", ""]
    rate = base.median(lambda run: run.rate)
    return [f"{row.cpu / base.cpu:.2f}", f"{row.median(lambda run: run.rate) / rate:.2f}" if rate else ""]


def table(table: Table) -> str:
    """One workload in Markdown: figures, who is ahead and why, who is not there and why."""
    columns = _columns(table.workload)
    titles = ["server", *(title for title, _ in columns), "CPU, first = 1", "messages/s, first = 1"]
    lines = [f"### {table.workload.title}", "", f"| {' | '.join(titles)} |", "|" + "---|" * len(titles)]
    notes = []
    for row in table.rows:
        if row.runs:
            base = table.base(row.connections)
            cells = [row.server, *(cell(row) for _, cell in columns), *_ratios(row, base)]
            lines.append(f"| {' | '.join(cells)} |")
            if base is not None and row.cpu < base.cpu and not row.server.startswith("fastsmtp"):
                notes.append(f"- {row.server} is ahead{_where(table, row)}: {reason(row.server, table.workload.name)}")
    notes += [f"- {name} is not there: {why}" for name, why in table.skipped.items()]
    return "\n".join(lines + ([""] + notes if notes else [])) + "\n"


def _where(table: Table, row: Row) -> str:
    return f" with {row.connections:,} connections" if len(table.workload.points) > 1 else ""


def write(tables: Sequence[Table], folder: pathlib.Path) -> str:
    """All tables as one page, also into e2e.md and, with the numbers, e2e.json."""
    text = ""
    for each in tables:
        rounds = max((len(row.runs) for row in each.rows), default=0)
        text += f"{table(each)}\nMedian (least to most) of {rounds} rounds on {each.machine}.\n\n"
    (folder / "e2e.md").write_text(text)
    whole = {each.workload.name: json.loads((folder / f"{each.workload.name}.json").read_text()) for each in tables}
    (folder / "e2e.json").write_text(json.dumps(whole, indent=1) + "\n")
    return text


def publish(folder: pathlib.Path) -> None:
    """Put tables and pictures into the documentation, and the pictures into the README."""
    pictures = DOCS / "performance"
    pictures.mkdir(exist_ok=True)
    parts = []
    for each in load(folder):
        text = table(each)
        picture = folder / f"{each.workload.name}.svg"
        if picture.exists():
            shutil.copy(picture, pictures / picture.name)
            title, _, rest = text.partition("\n\n")
            text = f"{title}\n\n![{each.workload.title}](performance/{picture.name})\n\n{rest}"
        parts.append(f"{text}\nMeasured on {each.machine}.\n")
    for page_of in ("relay.md", "micro.md"):
        if (folder / page_of).exists():
            parts.append((folder / page_of).read_text())
    _replace(DOCS / "performance.md", "\n".join(parts))
    there = {path.stem for path in pictures.glob("*.svg")}
    shown = [each for each in WORKLOADS if each.name in SHOWN and each.name in there]
    more = [each for each in WORKLOADS if each.name not in SHOWN and each.name in there]
    gallery = [
        *map(_picture, shown),
        "<details><summary>The other workloads</summary>\n",
        *map(_picture, more),
        "</details>\n",
    ]
    _replace(README, "\n".join(gallery))


def _picture(workload: Workload) -> str:
    return f"![{workload.title}](docs/performance/{workload.name}.svg)\n"


def _replace(page: pathlib.Path, text: str) -> None:
    """Put text between the two marks of a page."""
    head, begin, rest = page.read_text().partition(BEGIN)
    if not begin:
        raise SystemExit(f"{page} has no mark {BEGIN}")
    page.write_text(f"{head}{BEGIN}\n\n{text}\n{END}{rest.partition(END)[2]}")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS)
    parser.add_argument("--publish", action="store_true")
    arguments = parser.parse_args()
    tables = load(arguments.results)
    print(write(tables, arguments.results))
    from . import pictures

    if why := pictures.missing():
        print(f"no pictures: {why}")
    else:
        for each in tables:
            pictures.draw(each, arguments.results)
    if arguments.publish:
        publish(arguments.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
