"""One picture per workload, as SVG: CPU per message in user mode and in the kernel, or how something grows."""

from __future__ import annotations

import importlib.util
import pathlib
from collections.abc import Callable
from typing import Any

from .measuring import Run
from .report import Row, Table

__all__ = ["draw", "missing"]

OURS, OURS_LIGHT = "#1f6feb", "#8ab8ff"
OTHERS, OTHERS_LIGHT = "#57606a", "#b6bec8"
LINES = ("#1f6feb", "#54aeff", "#57606a", "#bf8700", "#1a7f37", "#8250df", "#cf222e", "#e16f24")


def missing() -> str | None:
    """Why there are no pictures, or None."""
    return None if importlib.util.find_spec("matplotlib") else "matplotlib is not installed"


def draw(table: Table, folder: pathlib.Path) -> None:
    """Write the workload's picture into `folder`."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams.update(
        {"font.size": 10, "svg.hashsalt": "fastsmtp", "axes.spines.top": False, "axes.spines.right": False}
    )
    from matplotlib import pyplot

    rows = [row for row in table.rows if row.runs]
    if not rows:
        return
    if len(table.workload.points) > 1:
        figure = _lines(pyplot, table, rows)
    elif table.workload.idle:
        figure = _bars(
            pyplot,
            table,
            rows,
            [
                ("octets of each idle connection", lambda run: run.idle),
                ("p99 latency of the active one, ms", lambda run: run.p99),
            ],
        )
    elif "durable" in table.workload.kind:
        figure = _bars(pyplot, table, rows, [("messages per second", lambda run: run.rate)])
    else:
        figure = _stacked(pyplot, table, rows)
    figure.savefig(
        folder / f"{table.workload.name}.svg", bbox_inches="tight", facecolor="white", metadata={"Date": None}
    )
    pyplot.close(figure)


def _is_ours(row: Row) -> bool:
    return row.server.startswith("fastsmtp")


def _error(row: Row, value: Callable[[Run], float]) -> tuple[list[float], list[float]]:
    middle = row.median(value)
    values = [value(run) for run in row.runs]
    return [middle - min(values)], [max(values) - middle]


def _names(axes: Any, rows: list[Row]) -> None:
    axes.set_yticks(range(len(rows)), [row.server for row in rows])
    axes.invert_yaxis()
    axes.tick_params(axis="y", length=0)
    axes.margins(x=0.14)


def _stacked(pyplot: Any, table: Table, rows: list[Row]) -> Any:
    """User and system CPU in one bar for each server, with the spread."""
    figure, axes = pyplot.subplots(figsize=(8, 0.9 + 0.38 * len(rows)))
    for place, row in enumerate(rows):
        user, system = row.median(lambda run: run.user), row.median(lambda run: run.system)
        dark, light = (OURS, OURS_LIGHT) if _is_ours(row) else (OTHERS, OTHERS_LIGHT)
        axes.barh(place, user, color=dark, height=0.7)
        axes.barh(place, system, left=user, color=light, height=0.7)
        axes.errorbar(row.cpu, place, xerr=_error(row, lambda run: run.cpu), color="black", capsize=2, linewidth=0.8)
        axes.annotate(
            f"{row.cpu:,.0f}" if row.cpu >= 100 else f"{row.cpu:.1f}",
            (max(run.cpu for run in row.runs), place),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
        )
    _names(axes, rows)
    axes.set_xlabel("server's CPU per message, microseconds: dark in user mode, light in the kernel; less is better")
    axes.set_title(table.workload.title, loc="left", fontweight="bold")
    return figure


def _bars(pyplot: Any, table: Table, rows: list[Row], values: list[tuple[str, Callable[[Run], float]]]) -> Any:
    """One value for each server, a panel for each value."""
    figure, panels = pyplot.subplots(1, len(values), figsize=(8, 0.9 + 0.38 * len(rows)), squeeze=False, sharey=True)
    for axes, (title, value) in zip(panels[0], values, strict=True):
        for place, row in enumerate(rows):
            middle = row.median(value)
            axes.barh(place, middle, color=OURS if _is_ours(row) else OTHERS, height=0.7)
            axes.errorbar(middle, place, xerr=_error(row, value), color="black", capsize=2, linewidth=0.8)
            axes.annotate(
                f"{middle:,.0f}" if middle >= 100 else f"{middle:.2f}",
                (max(map(value, row.runs)), place),
                xytext=(5, 0),
                textcoords="offset points",
                va="center",
            )
        middles = sorted(row.median(value) for row in rows)
        if middles[0] > 0 and middles[-1] > 20 * middles[len(middles) // 2]:  # one that hides all others
            axes.set_xscale("log")
            title += ", logarithmic"
        axes.set_xlabel(title)
        axes.margins(x=0.25)
        axes.tick_params(axis="y", length=0)
    panels[0][0].set_yticks(range(len(rows)), [row.server for row in rows])
    panels[0][0].invert_yaxis()
    panels[0][0].set_title(table.workload.title, loc="left", fontweight="bold")
    return figure


def _lines(pyplot: Any, table: Table, rows: list[Row]) -> Any:
    """CPU per message and p99 latency by number of connections, a line for each server."""
    figure, panels = pyplot.subplots(1, 2, figsize=(10, 4.2))
    servers = list(dict.fromkeys(row.server for row in rows))
    for axes, title, value in (
        (panels[0], "CPU per message, microseconds", lambda run: run.cpu),
        (panels[1], "p99 latency, ms", lambda run: run.p99),
    ):
        for server, color in zip(servers, LINES * 2, strict=False):
            points = [row for row in rows if row.server == server]
            axes.plot(
                [row.connections for row in points],
                [row.median(value) for row in points],
                color=color,
                marker="o",
                markersize=3,
                linewidth=2 if server.startswith("fastsmtp") else 1.2,
                label=server,
            )
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("connections")
        axes.set_title(title, loc="left", fontsize=10)
        axes.grid(alpha=0.25, which="both", linewidth=0.4)
    figure.legend(
        *panels[0].get_legend_handles_labels(), loc="upper center", bbox_to_anchor=(0.5, 0.02), ncols=4, frameon=False
    )
    figure.suptitle(table.workload.title, x=0.06, ha="left", fontweight="bold")
    return figure
