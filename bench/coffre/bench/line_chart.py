"""Line charts as SVG text: logarithmic x, logarithmic or linear y, a legend, whiskers; nothing from outside."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Point", "Series", "line_chart"]

_WIDTH, _HEIGHT = 720, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 18, 14, 46
_DECADES_LABELLED = 7


@dataclass(frozen=True, slots=True)
class Point:
    """One value, with the ends of its whisker; without one, both are the value."""

    x: float
    y: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Series:
    """A line. `colour` is the number of a class c0, c1, ... that the page's style gives a colour."""

    label: str
    colour: int
    dashed: bool
    points: tuple[Point, ...]


def line_chart(series: Sequence[Series], x_label: str, y_label: str, *, log_y: bool, title: str) -> str:
    """An <svg> element. Values on a logarithmic axis must be above 0; `title` is read to those who cannot see."""
    points = [point for one in series for point in one.points]
    xs = sorted({point.x for point in points})
    x_of = _of_log(_scale(math.log10(xs[0]) - 0.06, math.log10(xs[-1]) + 0.06, _LEFT, _WIDTH - _RIGHT))
    low, high = min(point.low for point in points), max(point.high for point in points)
    if log_y:
        bottom, top = math.floor(math.log10(low)), math.ceil(math.log10(high))
        ticks = [(10.0**power, _power(power)) for power in _powers(bottom, max(top, bottom + 1))]
        y_scale = _scale(bottom, max(top, bottom + 1), _HEIGHT - _BOTTOM, _TOP)

        y_of = _of_log(y_scale)
    else:
        step = _step(high - min(low, 1.0))
        start, end = math.floor(min(low, 1.0) / step), math.ceil(high / step)
        ticks = [(number * step, f"{number * step:g}") for number in range(start, end + 1)]
        y_of = _scale(start * step, end * step, _HEIGHT - _BOTTOM, _TOP)
    parts = [
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(title)}">',
        *_axes(xs, x_of, ticks, y_of, x_label, y_label),
        *(part for one in series for part in _line(one, x_of, y_of)),
        "</svg>",
    ]
    return _legend(series) + "\n".join(parts)


def _scale(low: float, high: float, start: float, end: float) -> Callable[[float], float]:
    return lambda value: start + (value - low) / (high - low) * (end - start)


def _of_log(scale: Callable[[float], float]) -> Callable[[float], float]:
    return lambda value: scale(math.log10(value))


def _powers(bottom: int, top: int) -> range:
    return range(bottom, top + 1, max(1, math.ceil((top - bottom) / _DECADES_LABELLED)))


def _power(power: int) -> str:
    return "10" + str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def _step(span: float) -> float:
    """1, 2 or 5 times a power of ten, so that `span` has about five of it."""
    rough = max(span, 1e-6) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    return next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)


def _axes(
    xs: Sequence[float],
    x_of: Callable[[float], float],
    ticks: Sequence[tuple[float, str]],
    y_of: Callable[[float], float],
    x_label: str,
    y_label: str,
) -> list[str]:
    floor = _HEIGHT - _BOTTOM
    parts = []
    for value, label in ticks:
        y = y_of(value)
        parts.append(f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>')
    for value in xs:
        x = x_of(value)
        parts.append(f'<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{floor}" y2="{floor + 5}"/>')
        parts.append(
            f'<text class="tick" x="{x:.1f}" y="{floor + 18}" text-anchor="middle">{value:,.0f}</text>'
        )
    parts.append(f'<line class="axis" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{floor}" y2="{floor}"/>')
    middle = (_LEFT + _WIDTH - _RIGHT) / 2
    parts.append(
        f'<text class="label" x="{middle}" y="{_HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>'
    )
    centre = (_TOP + floor) / 2
    place = f'transform="translate(14 {centre}) rotate(-90)" text-anchor="middle"'
    parts.append(f'<text class="label" {place}>{escape(y_label)}</text>')
    return parts


def _line(one: Series, x_of: Callable[[float], float], y_of: Callable[[float], float]) -> list[str]:
    path = " ".join(f"{x_of(point.x):.1f},{y_of(point.y):.1f}" for point in one.points)
    dash = " dashed" if one.dashed else ""
    parts = [f'<polyline class="line c{one.colour}{dash}" points="{path}"/>']
    for point in one.points:
        x, y = x_of(point.x), y_of(point.y)
        if point.high > point.low:
            ends = f'y1="{y_of(point.low):.1f}" y2="{y_of(point.high):.1f}"'
            parts.append(f'<line class="whisker c{one.colour}" x1="{x:.1f}" x2="{x:.1f}" {ends}/>')
        tip = f"{escape(one.label)}, {point.x:,.0f}: {point.y:.3g}"
        parts.append(
            f'<circle class="dot c{one.colour}" cx="{x:.1f}" cy="{y:.1f}" r="3.2"><title>{tip}</title></circle>'
        )
    return parts


def _legend(series: Sequence[Series]) -> str:
    items = []
    for one in series:
        dash = " dashed" if one.dashed else ""
        mark = f'<svg viewBox="0 0 28 10"><line class="line c{one.colour}{dash}" x1="1" x2="27" y1="5" y2="5"/></svg>'
        items.append(f"<span>{mark}{escape(one.label)}</span>")
    return f'<div class="legend">{"".join(items)}</div>\n'
