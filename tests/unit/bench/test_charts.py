"""Charts place values where they belong, and are parts of a page: its colours, no markup from names."""

from __future__ import annotations

import math
import re
from xml.etree import ElementTree

import pytest
from coffre.bench.charts import Chart


def places(chart: Chart) -> list[tuple[float, float]]:
    """Where the points of the only line are."""
    root = ElementTree.fromstring(chart.svg())
    (line,) = (each for each in root.iter("g") if each.get("id", "").endswith("-line"))
    return [(float(each.attrib["x"]), float(each.attrib["y"])) for each in line.iter("use")]


def drawn(xs: list[float], ys: list[float]) -> Chart:
    chart = Chart("a title", "x", "y")
    chart.line(xs, ys, "put")
    chart.axes.lines[0].set_gid("line")
    return chart


def test_a_logarithmic_axis_places_values_by_their_logarithm() -> None:
    chart = drawn([1.0, 2.0, 3.0], [1e-4, 1e-2, 1.0])
    chart.logarithmic("y", [1e-4, 1.0], lambda value: f"<{value:g}>")
    (x0, y0), (x1, y1), (x2, y2) = places(chart)
    assert x1 - x0 == pytest.approx(x2 - x1)
    assert y0 - y1 == pytest.approx(y1 - y2)
    assert y0 > y2
    assert ">&lt;0.01&gt;</text>" in chart.svg()


def test_a_line_is_broken_where_nothing_was_measured_and_a_value_alone_is_a_dot() -> None:
    chart = drawn([1.0, 2.0, 3.0, 4.0], [1.0, 2.0, math.nan, 3.0])
    assert len(places(chart)) == 3
    (path,) = re.findall(r'id="a-title-line">\s*<path d="([^"]*)"', chart.svg())
    assert path.count("L") == 1


def test_names_are_text_and_not_markup() -> None:
    chart = Chart("<a> & more", "<x>", "<y>")
    chart.line([1.0, 2.0], [1.0, 2.0], "get", label="<line>")
    chart.legend()
    chart.band(1.0, 2.0, "<band>", "band-a")
    chart.tip(1.0, 2.0, "<tip>\n&")
    text = chart.svg()
    ElementTree.fromstring(text)
    for name in ("a", "x", "y", "line", "band", "tip"):
        assert f"<{name}>" not in text
        assert f"&lt;{name}&gt;" in text


def test_the_same_chart_is_the_same_text_and_each_has_ids_of_its_own() -> None:
    text = drawn([1.0], [1.0]).svg()
    assert text == drawn([1.0], [1.0]).svg()
    assert set(re.findall(r'id="(a-title)-', text)) == {"a-title"}
    assert "#" not in re.sub(r'(url\(|href=")#a-title-', "", text)
