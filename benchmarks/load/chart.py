"""Line charts as SVG text: a few axes one above the other, one horizontal axis for all."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

WIDTH, PANEL_HEIGHT, LEFT, RIGHT, TOP, GAP = 760, 150, 60, 150, 34, 34
COLOURS = ("#1f6f8b", "#d1603d", "#5a8f3c", "#7a4f9a", "#a8862b", "#444444")


@dataclass(frozen=True, slots=True)
class Line:
    """Points of equal number; NaN interrupts a line."""

    name: str
    x: Sequence[float]
    y: Sequence[float]


@dataclass(frozen=True, slots=True)
class Panel:
    title: str
    lines: Sequence[Line]


def chart(title: str, x_title: str, panels: Sequence[Panel]) -> str:
    """One SVG document."""
    xs = [x for panel in panels for line in panel.lines for x in line.x]
    low, high = min(xs, default=0.0), max(xs, default=1.0)
    span = (high - low) or 1.0
    height = TOP + len(panels) * (PANEL_HEIGHT + GAP) + 20
    plot_width = WIDTH - LEFT - RIGHT

    def across(x: float) -> float:
        return LEFT + plot_width * (x - low) / span

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>',
        f'<text x="{LEFT}" y="20" font-size="15">{escape(title)}</text>',
    ]
    for number, panel in enumerate(panels):
        top = TOP + number * (PANEL_HEIGHT + GAP) + 12
        bottom = top + PANEL_HEIGHT
        most = max((y for line in panel.lines for y in line.y if math.isfinite(y)), default=1.0) or 1.0
        step = _step(most)
        most = step * math.ceil(most / step)
        parts.append(f'<text x="{LEFT}" y="{top - 4}" fill="#444">{escape(panel.title)}</text>')
        for tick in range(round(most / step) + 1):
            y = bottom - PANEL_HEIGHT * tick * step / most
            parts.append(f'<path d="M{LEFT} {y:.1f}H{LEFT + plot_width}" stroke="#ddd"/>')
            parts.append(f'<text x="{LEFT - 6}" y="{y + 4:.1f}" text-anchor="end">{tick * step:g}</text>')
        for index, line in enumerate(panel.lines):
            colour = COLOURS[index % len(COLOURS)]
            points = [
                (across(x), bottom - PANEL_HEIGHT * y / most) if math.isfinite(y) else None
                for x, y in zip(line.x, line.y, strict=True)
            ]
            parts.append(f'<path d="{_path(points)}" fill="none" stroke="{colour}" stroke-width="1.8"/>')
            label_y = top + 12 + 15 * index
            parts.append(f'<text x="{WIDTH - RIGHT + 8}" y="{label_y}" fill="{colour}">{escape(line.name)}</text>')
    bottom = TOP + len(panels) * (PANEL_HEIGHT + GAP) - 8
    x_step = _step(span)
    for tick in range(math.ceil(low / x_step), math.floor(high / x_step) + 1):
        x = across(tick * x_step)
        parts.append(f'<text x="{x:.1f}" y="{bottom}" text-anchor="middle">{tick * x_step:g}</text>')
    parts.append(f'<text x="{LEFT + plot_width / 2}" y="{bottom + 18}" text-anchor="middle">{escape(x_title)}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _step(most: float) -> float:
    """A round distance that cuts an axis into three to seven."""
    rough = most / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.8)


def _path(points: Sequence[tuple[float, float] | None]) -> str:
    drawn, pen_up = [], True
    for point in points:
        if point is None:
            pen_up = True
            continue
        drawn.append(f"{'M' if pen_up else 'L'}{point[0]:.1f} {point[1]:.1f}")
        pen_up = False
    return "".join(drawn)
