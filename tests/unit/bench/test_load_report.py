"""The report is one page that needs nothing else, shows what was measured, and is no way in for markup."""

from __future__ import annotations

import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from coffre.bench.load.charts import Buckets
from coffre.bench.load.recorder import Recorder
from coffre.bench.load.report import render_report, write_report
from coffre.bench.load.result import LoadResult
from coffre.bench.load.svg import linear, logarithmic, nines
from coffre.bench.load.workload import Operation

from tests.unit.bench.load_results import PLAN, failure_result, recorded, result_of

VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Elements and attributes of a page; complains when they do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: set[str] = set()
        self._open: list[str] = []
        self.feed(text)
        self.close()
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag


def few() -> LoadResult:
    recorder = Recorder(0.0, 1.0)
    recorder.succeeded(Operation.HEAD, "fhir", since=5.0, ended=5.1, size_bytes=0)
    return result_of(recorder)


def nothing() -> LoadResult:
    recorder = Recorder(0.0, 1.0)
    recorder.failed(Operation.GET, "fhir", "Unavailable", ended=5.0)
    return replace(result_of(recorder), check=None, lag=None)


@pytest.mark.parametrize("make", [lambda: result_of(recorded(PLAN)), failure_result, few, nothing])
def test_a_report_is_self_contained_and_well_formed(make: object) -> None:
    text = render_report(make())  # type: ignore[operator]
    page = Page(text)
    assert not {"script", "link", "img", "iframe", "object", "embed", "use", "image", "base"} & set(page.tags)
    assert not {"src", "href", "xlink:href", "srcset", "style", "onload"} & page.attributes
    assert not re.search(r"url\(|@import|https?:|//", text)
    for chart in re.findall(r"<svg.*?</svg>", text, re.DOTALL):
        ElementTree.fromstring(chart)
    assert "nan" not in text.lower().replace("tenant", "")


def test_a_report_shows_what_was_measured() -> None:
    result = result_of(recorded(PLAN))
    text = render_report(result)
    assert text.count("<svg") == 3
    for row in result.rows():
        assert f">{row.done:,}<" in text
    for said in ("Every byte read was as it must be", "100 operations/s in an open loop", "4-2", "0.1.0"):
        assert said in text
    assert "500, " in text  # syncs, and so many per put
    assert "prefers-color-scheme: dark" in text


def test_a_report_of_failures_marks_their_moments() -> None:
    text = render_report(failure_result())
    assert text.count("<svg") == 4  # errors over time, too
    for phase in ("steady", "killed", "brought back"):
        assert text.count('class="band-name" x="') == 9
        assert f">{phase}</text>" in text
    assert "killed &lt;node-1&gt;" in text
    assert text.count('class="mark"') == 6  # two moments in each of three charts over time
    assert ">Unavailable<" in text


def test_an_overload_is_on_top() -> None:
    text = render_report(replace(result_of(recorded(PLAN)), not_started=1234))
    assert text.index("Never begun") < text.index("<svg")
    assert ">1,234<" in text
    assert "Never begun" not in render_report(result_of(recorded(PLAN)))


def test_damage_is_on_top() -> None:
    recorder = recorded(PLAN)
    recorder.failed(Operation.GET, "fhir", "Lost", ended=9.0)
    result = replace(result_of(recorder), examples=("get load-1/base/1: <b>Lost</b>",))
    text = render_report(result)
    assert "1 times data was wrong or lost" in text
    assert "&lt;b&gt;Lost&lt;/b&gt;" in text
    assert "<b>" not in text


def test_buckets_are_few_whatever_the_length() -> None:
    plan = replace(PLAN, duration_s=3000.0, ramp_s=0.0)
    recorder = recorded(plan, rate_per_s=2.0)
    buckets = Buckets.of(result_of(recorder, plan))
    assert buckets.count <= 90
    assert sum(tally.done for tally in buckets.tallies.values()) == 6000


def test_a_report_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "report.html"
    write_report(path, few())
    assert path.read_text("utf-8") == render_report(few())
    assert list(path.parent.iterdir()) == [path]


def test_scales_put_values_where_they_belong() -> None:
    scale = linear(0.0, 112.0, str)
    assert scale.place(0.0) == 0
    assert scale.place(112.0) == 1
    assert list(scale.ticks) == [0, 50, 100]
    log = logarithmic(0.0011, 0.09, str)
    assert (log.place(0.001), log.place(0.01), log.place(0.1)) == pytest.approx((0, 0.5, 1))
    assert log.ticks[0] == pytest.approx(0.001)
    assert log.ticks[-1] == pytest.approx(0.1)
    share = nines(0.999)
    assert [share.place(each) for each in (0, 0.9, 0.99, 0.999)] == pytest.approx([0, 1 / 3, 2 / 3, 1])
    assert [share.label(each) for each in share.ticks] == ["0 %", "90 %", "99 %", "99.9 %"]
