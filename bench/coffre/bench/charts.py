"""Line charts as inline SVG, drawn by Matplotlib in the colours of the page that they stand on."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Sequence
from html import escape
from typing import Any

import matplotlib as mpl
from coffre.bench.pages import COLOURS
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullLocator

__all__ = ["Chart"]

_POINTS_PER_INCH = 72  # so that one unit of the SVG is one point of Matplotlib's
_GROUND = ("soft", "faint", "line", "ink", "bad", "band-a", "band-b")
# Matplotlib knows no variables of CSS: it draws in colours that stand for them, which are replaced afterwards.
_STAND_INS = {name: f"#0000{number:02x}" for number, name in enumerate((*COLOURS, *_GROUND), start=1)}
_NAMES = {stand_in: name for name, stand_in in _STAND_INS.items()}
_STYLE: dict[Any, Any] = {  # keys are literals of Matplotlib
    "svg.fonttype": "none",
    "svg.hashsalt": "coffre",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 12,
    "text.color": _STAND_INS["soft"],
    "axes.labelcolor": _STAND_INS["soft"],
    "axes.edgecolor": _STAND_INS["line"],
    "xtick.color": _STAND_INS["soft"],
    "ytick.color": _STAND_INS["soft"],
    "grid.color": _STAND_INS["faint"],
    "figure.facecolor": "none",
    "axes.facecolor": "none",
    "axes.ymargin": 0.1,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.spines.left": False,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "ytick.left": False,
    "lines.linewidth": 2,
    "lines.markersize": 3.5,
    "legend.frameon": False,
}


class Chart:
    """One chart. `axes` is Matplotlib's, for what only one chart needs; colours go by their name in the style sheet."""

    def __init__(self, title: str, x_name: str, y_name: str, *, width: int = 1040, height: int = 300) -> None:
        """`title` is for those who cannot see it, and no other chart of a page has it; sizes are in pixels."""
        self._title = title
        self._tips: dict[str, str] = {}
        with mpl.rc_context(_STYLE):
            self._figure = Figure((width / _POINTS_PER_INCH, height / _POINTS_PER_INCH), layout="tight")
            self.axes: Axes = self._figure.add_subplot()
            self.axes.set_xlabel(x_name)
            self.axes.set_ylabel(y_name)
            self.axes.set_axisbelow(True)

    def line(
        self,
        xs: Sequence[float],
        ys: Sequence[float],
        colour: str,
        *,
        label: str = "_",
        style: str = "-",
        marker: str = "o",
    ) -> None:
        """A line through the points, broken where a value is NaN. Those with a label are in the legend."""
        self.axes.plot(xs, ys, style, marker=marker, color=_STAND_INS[colour], label=label)

    def whiskers(
        self, xs: Sequence[float], lows: Sequence[float], highs: Sequence[float], colour: str
    ) -> None:
        """An upright line at each point."""
        self.axes.vlines(xs, lows, highs, color=_STAND_INS[colour], alpha=0.55, linewidth=1.5)

    def band(self, first: float, after: float, name: str, colour: str | None) -> None:
        """A stretch of the horizontal axis with a name at its top, below everything else."""
        if colour is not None:
            self.axes.axvspan(first, after, color=_STAND_INS[colour], zorder=0, linewidth=0)
        self.axes.annotate(
            name,
            (first, 1.0),
            (6, -4),
            xycoords=self.axes.get_xaxis_transform(),
            textcoords="offset points",
            va="top",
            color=_STAND_INS["soft"],
            weight="bold",
        )

    def mark(self, x: float) -> None:
        """Something happened."""
        self.axes.axvline(x, color=_STAND_INS["bad"], linestyle=":", linewidth=1.2, alpha=0.7)

    def tip(self, first: float, after: float, text: str) -> None:
        """What the pointer shows over a stretch of the horizontal axis."""
        name = f"tip-{len(self._tips)}"
        self._tips[name] = text
        # Next to invisible, since what is not painted at all is not drawn.
        self.axes.axvspan(first, after, color=_STAND_INS["ink"], alpha=0.004, gid=name, linewidth=0)

    def ticks(self, axis: str, values: Sequence[float], label: Callable[[float], str]) -> None:
        """Labels at these values alone, on the axis "x" or "y"."""
        chosen = self.axes.xaxis if axis == "x" else self.axes.yaxis
        chosen.set_major_locator(FixedLocator(values))
        chosen.set_minor_locator(NullLocator())
        self.labels(axis, label)

    def labels(self, axis: str, label: Callable[[float], str]) -> None:
        """How the values of an axis read."""
        chosen = self.axes.xaxis if axis == "x" else self.axes.yaxis
        chosen.set_major_formatter(FuncFormatter(lambda value, _: label(value)))

    def logarithmic(self, axis: str, values: Sequence[float], label: Callable[[float], str]) -> None:
        """Labels at 1, 2 and 5 times powers of ten, or at powers alone when the values are unknown or differ by far."""
        chosen = self.axes.xaxis if axis == "x" else self.axes.yaxis
        (self.axes.set_xscale if axis == "x" else self.axes.set_yscale)("log")
        far = not values or max(values) > 2e4 * min(values)
        chosen.set_major_locator(LogLocator(subs=(1.0,) if far else (1.0, 2.0, 5.0), numticks=12))
        chosen.set_minor_locator(NullLocator())
        self.labels(axis, label)

    def legend(self) -> None:
        """Names of the lines, above the chart."""
        with mpl.rc_context(_STYLE):
            self.axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3)

    def svg(self) -> str:
        """An <svg> element that refers to nothing outside itself."""
        drawn = io.StringIO()
        with mpl.rc_context(_STYLE):
            self._figure.savefig(drawn, format="svg", metadata={"Date": None}, transparent=True)
        text = drawn.getvalue()
        text = text[text.index("<svg") :]
        # Not of use inside a page: descriptions of the file, namespaces, sizes other than the page's, its fonts.
        text = re.sub(r"<(metadata|style)\b.*?</\1>", "", text, flags=re.DOTALL)
        text = re.sub(r' (?:xmlns(?::xlink)?|version|width|height)="[^"]*"', "", text, count=5)
        text = re.sub(r"font-family: [^;]*; ", "", text)
        for name, told in self._tips.items():
            text = text.replace(f'<g id="{name}">', f'<g class="tip"><title>{escape(told)}</title>')
        prefix = re.sub(r"\W+", "-", self._title)  # ids are of the page, and there are several charts on it
        text = re.sub(r'(id="|url\(#|href="#)', rf"\g<1>{prefix}-", text).replace("xlink:href", "href")
        text = re.sub("|".join(_NAMES), lambda found: f"var(--{_NAMES[found[0]]})", text)
        return text.replace("<svg", f'<svg role="img" aria-label="{escape(self._title)}"', 1)
