"""Samples as a picture in SVG. No library draws it: TensorFlow imports matplotlib wherever it is
installed, and every trainer would start the later for it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

from soak.slopes import Sample

WIDTH, HEIGHT = 640, 180  # of one plot
LEFT, TOP, GAP, LEGEND = 80, 20, 50, 170
COLORS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5")
TICKS = 4


def draw(samples: Sequence[Sample], path: Path, since: float) -> None:
    """A plot for each figure, a line for each component; growth is measured from `since` on."""
    figures = list(dict.fromkeys(s.figure for s in samples))
    height = TOP + len(figures) * (HEIGHT + GAP)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{LEFT + WIDTH + LEGEND}" '
        f'height="{height}" font-family="sans-serif" font-size="12">',
        '<rect width="100%" height="100%" fill="white"/>',
    ]
    end = max(1.0, *(s.seconds for s in samples))
    for number, figure in enumerate(figures):
        mine = [s for s in samples if s.figure == figure]
        lines += _plot(mine, figure, TOP + number * (HEIGHT + GAP), since, end)
    path.write_text("\n".join([*lines, "</svg>", ""]), encoding="utf-8")


def _plot(
    samples: Sequence[Sample], figure: str, top: float, since: float, end: float
) -> Iterator[str]:
    most = 1.05 * max(1e-9, *(s.value for s in samples))
    bottom = top + HEIGHT

    def x(seconds: float) -> float:
        return LEFT + WIDTH * seconds / end

    def y(value: float) -> float:
        return bottom - HEIGHT * value / most

    yield _text(LEFT, top - 6, figure.replace("_", " "))
    for tick in range(TICKS + 1):
        value, seconds = most * tick / TICKS, end * tick / TICKS
        yield _line(LEFT, y(value), LEFT + WIDTH, y(value), "#ddd")
        yield _text(LEFT - 6, y(value) + 4, f"{value:,.0f}", "end")
        yield _text(x(seconds), bottom + 16, f"{seconds / 60:.0f} min", "middle")
    yield _line(x(since), top, x(since), bottom, "#888")
    for number, component in enumerate(dict.fromkeys(s.component for s in samples)):
        color = COLORS[number % len(COLORS)]
        mine = [s for s in samples if s.component == component]
        points = " ".join(f"{x(s.seconds):.1f},{y(s.value):.1f}" for s in mine)
        yield f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>'
        yield _text(LEFT + WIDTH + 12, top + 14 + 15 * number, component, color=color)


def _line(x1: float, y1: float, x2: float, y2: float, color: str) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}"/>'


def _text(x: float, y: float, text: str, anchor: str = "start", color: str = "#333") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{color}"'
    return f"<text {place}>{escape(text)}</text>"
