"""Line charts as inline SVG. Colours come from the page's style sheet, by class."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Band", "Chart", "Scale", "linear", "logarithmic", "nines"]

WIDTH, HEIGHT = 1040.0, 300.0
LEFT, RIGHT, TOP, BOTTOM = 74.0, 16.0, 16.0, 40.0
WIDE_RANGE = 2e4
Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Scale:
    """One axis: where a value lies, from 0 to 1, and the values that get a grid line and a label."""

    place: Callable[[float], float]
    ticks: Sequence[float]
    label: Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Band:
    """A stretch of the horizontal axis with a name over it."""

    first: float
    after: float
    name: str
    style: str  # a class


def linear(low: float, high: float, label: Callable[[float], str], ticks: int = 5) -> Scale:
    """An even axis whose labels are round numbers; it ends at `high` exactly."""
    high = high if high > low else low + 1.0
    step = _round_step((high - low) / ticks)
    first = math.ceil(low / step - 1e-9)
    count = math.floor(high / step + 1e-9) - first + 1
    return Scale(
        lambda value: (value - low) / (high - low), [(first + i) * step for i in range(count)], label
    )


def _round_step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)


def logarithmic(low: float, high: float, label: Callable[[float], str]) -> Scale:
    """Ticks at 1, 2 and 5 times powers of ten, or at powers alone over a wide range. It ends at ticks."""
    steps = [factor * 10.0**power for power in range(-7, 8) for factor in (1, 2, 5)]
    least = max((step for step in steps if step <= low * 1.0001), default=steps[0])
    most = min((step for step in steps if step >= high * 0.9999 and step > least), default=steps[-1])
    span = math.log(most / least)
    powers = steps[::3] if most / least > WIDE_RANGE else steps
    return Scale(
        lambda value: math.log(max(value, least) / least) / span,
        [step for step in powers if least <= step <= most],
        label,
    )


def nines(most: float) -> Scale:
    """Shares below 1 on the axis of HdrHistogram: 0, 90 %, 99 %, ... at even distances, up to the share `most`."""
    decades = max(1.0, -math.log10(max(1 - most, 1e-9)))
    ticks = [1 - 10.0**-power for power in range(math.floor(decades + 1e-6) + 1)]
    return Scale(
        lambda share: -math.log10(max(1 - share, 1e-9)) / decades,
        ticks,
        lambda share: f"{share * 100:.6g} %",
    )


class Chart:
    """One chart, built up from its ground."""

    def __init__(self, title: str, x: Scale, y: Scale, *, x_name: str, y_name: str) -> None:
        """`title` is for those who cannot see it."""
        self._x, self._y = x, y
        self._below: list[str] = []
        self._parts: list[str] = []
        self._grid(x_name, y_name)
        self._title = title

    def _grid(self, x_name: str, y_name: str) -> None:
        right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
        for value in self._y.ticks:
            y = self._at_y(value)
            self._parts.append(f'<line class="grid" x1="{LEFT:g}" x2="{right:g}" y1="{y:.1f}" y2="{y:.1f}"/>')
            self._text(LEFT - 10, y + 4, self._y.label(value), "tick end")
        for value in self._x.ticks:
            self._text(self._at_x(value), bottom + 20, self._x.label(value), "tick middle")
        self._parts.append(
            f'<line class="axis" x1="{LEFT:g}" x2="{right:g}" y1="{bottom:g}" y2="{bottom:g}"/>'
        )
        self._text(right, HEIGHT - 4, x_name, "axis-name end")
        self._text(LEFT, TOP - 5, y_name, "axis-name")

    def _text(self, x: float, y: float, text: str, style: str) -> None:
        self._parts.append(f'<text class="{style}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>')

    def _at_x(self, value: float) -> float:
        return LEFT + min(max(self._x.place(value), 0.0), 1.0) * (WIDTH - LEFT - RIGHT)

    def _at_y(self, value: float) -> float:
        return HEIGHT - BOTTOM - min(max(self._y.place(value), 0.0), 1.0) * (HEIGHT - TOP - BOTTOM)

    def band(self, band: Band) -> None:
        """Colour a stretch, below everything else, and name it at its top."""
        first, after = self._at_x(band.first), self._at_x(band.after)
        self._below.append(
            f'<rect class="{band.style}" x="{first:.1f}" y="{TOP:g}" width="{max(0.0, after - first):.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM:g}"/>'
        )
        self._text(first + 6, TOP + 14, band.name, "band-name")

    def mark(self, x: float) -> None:
        """A vertical line: something happened."""
        at = self._at_x(x)
        self._parts.append(
            f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP:g}" y2="{HEIGHT - BOTTOM:g}"/>'
        )

    def line(self, points: Sequence[Point | None], style: str) -> None:
        """A line through the points, broken where there is None. A point alone is a dot."""
        run: list[str] = []
        for point in [*points, None]:
            if point is not None:
                run.append(f"{self._at_x(point[0]):.1f},{self._at_y(point[1]):.1f}")
                continue
            if len(run) == 1:
                x, y = run[0].split(",")
                self._parts.append(f'<circle class="{style} dot" cx="{x}" cy="{y}" r="2"/>')
            elif run:
                self._parts.append(f'<polyline class="{style}" points="{" ".join(run)}"/>')
            run = []

    def hover(self, first: float, after: float, text: str) -> None:
        """What the pointer shows over a stretch."""
        left, right = self._at_x(first), self._at_x(after)
        self._parts.append(
            f'<rect class="hover" x="{left:.1f}" y="{TOP:g}" width="{max(0.0, right - left):.1f}" '
            f'height="{HEIGHT - TOP - BOTTOM:g}"><title>{escape(text)}</title></rect>'
        )

    def render(self) -> str:
        return (
            f'<svg viewBox="0 0 {WIDTH:g} {HEIGHT:g}" role="img" aria-label="{escape(self._title)}">'
            f"{''.join(self._below)}{''.join(self._parts)}</svg>"
        )
