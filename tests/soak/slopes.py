"""How figures grow over time."""

from __future__ import annotations

import csv
import statistics
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

HOUR = 3600.0
MOST_POINTS = 400  # the slope is the median over all pairs of them


class Sample(NamedTuple):
    """One figure of one component at one moment."""

    seconds: float
    component: str
    figure: str  # memory_mb, threads, files or disk_mb
    value: float


class Slope(NamedTuple):
    component: str
    figure: str
    start: float  # of the time that is looked at
    end: float
    percent_per_hour: float


def slopes(samples: Sequence[Sample], since: float) -> list[Slope]:
    """Of each figure of each component, from a moment on."""
    found = []
    for component, figure in dict.fromkeys((s.component, s.figure) for s in samples):
        points = [
            (s.seconds, s.value)
            for s in samples
            if (s.component, s.figure) == (component, figure) and s.seconds >= since
        ]
        if len(points) > 1:
            growth = HOUR * median_slope(points) / max(1e-9, points[0][1]) * 100
            found.append(Slope(component, figure, points[0][1], points[-1][1], growth))
    return found


def median_slope(points: Sequence[tuple[float, float]]) -> float:
    """Theil and Sen's: a few outliers do not matter."""
    some = points[:: max(1, len(points) // MOST_POINTS)]
    rises = [(y2 - y1) / (x2 - x1) for (x1, y1), (x2, y2) in combinations(some, 2) if x2 > x1]
    return statistics.median(rises) if rises else 0.0


def table(found: Sequence[Slope]) -> str:
    lines = ["| component | figure | from | to | per hour |", "|---|---|---|---|---|"]
    for s in found:
        lines.append(
            f"| {s.component} | {s.figure.replace('_', ' ')} | {s.start:,.1f} | {s.end:,.1f} | "
            f"{s.percent_per_hour:+.1f} % |"
        )
    return "\n".join(lines)


def write_csv(samples: Sequence[Sample], path: Path) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(Sample._fields)
        writer.writerows(samples)
