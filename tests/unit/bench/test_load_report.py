"""The report is one page that needs nothing else, shows what was measured, and is no way in for markup."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace

import pytest
from coffre.bench.load.plan import Operation
from coffre.bench.load.recorder import Recorder
from coffre.bench.load.report import Buckets, distribution_chart, render_report
from coffre.bench.load.result import LoadResult

from tests.unit.bench.load_results import PLAN, failure_result, recorded, result_of
from tests.unit.bench.pages import charts_of, check_page


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
    check_page(render_report(make()))  # type: ignore[operator]


def test_a_report_shows_what_was_measured() -> None:
    result = result_of(recorded(PLAN))
    text = render_report(result)
    assert len(charts_of(text)) == 3
    for row in result.rows():
        assert f">{row.done:,}<" in text
    for said in ("Every byte read was as it must be", "100 operations/s in an open loop", "4-2", "0.1.0"):
        assert said in text
    assert "500, " in text  # syncs, and so many per put
    assert "prefers-color-scheme: dark" in text


def test_a_report_of_failures_marks_their_moments() -> None:
    text = render_report(failure_result())
    assert len(charts_of(text)) == 4  # errors over time, too
    for phase in ("steady", "killed", "brought back"):
        assert text.count(f">{phase}</text>") == 3  # in each of the charts over time
    assert "killed &lt;node-1&gt;" in text
    assert text.count("stroke: var(--bad); stroke-opacity: 0.7") == 6  # two moments in each of the three
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


def test_a_distribution_has_one_more_nine_at_each_step() -> None:
    text = distribution_chart(result_of(recorded(PLAN)))
    heights = [float(y) for y in re.findall(r' y="([0-9.]+)" transform="[^"]*">[0-9.]+ %</text>', text)]
    assert [label for label in ("0 %", "90 %", "99 %", "99.9 %") if f">{label}</text>" in text] == [
        *("0 %", "90 %", "99 %", "99.9 %")
    ]
    first, *rest = [low - high for low, high in itertools.pairwise(heights)]
    assert rest == pytest.approx([first, first])
