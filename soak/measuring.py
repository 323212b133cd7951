"""Is a line flat, and how long did it take?"""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["percentile", "slope"]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The least squares line's rise per unit."""
    count = len(points)
    mean_x = sum(x for x, _ in points) / count
    mean_y = sum(y for _, y in points) / count
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0


def percentile(values: Sequence[float], part: float) -> float:
    """The value below which this part of all lies; 0 for none."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(part * len(ordered)))] if ordered else 0.0
