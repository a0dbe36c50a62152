"""What was counted adds up over processes and time, survives the file, and says no more than it knows."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
from coffre.bench.load.plan import Operation
from coffre.bench.load.recorder import Latencies, Recorder, Slice, Timeline, total
from coffre.bench.load.result import LoadResult, read_result, write_result
from coffre.bench.typed_json import decoded, plain
from coffre.cluster.errors import InvalidArgument

from tests.unit.bench.load_results import PLAN, failure_result, recorded, result_of


def test_percentiles_are_right_to_a_thousandth() -> None:
    chance = random.Random(2)
    values = [chance.lognormvariate(-5, 1) for _ in range(20_000)]
    latencies = Latencies()
    for value in values:
        latencies.record(value)
    cuts = sorted(values)
    for percentile in (1.0, 50.0, 90.0, 99.0, 99.9):
        expected = cuts[int(percentile / 100 * len(values)) - 1]
        assert latencies.percentile(percentile) == pytest.approx(expected, rel=2e-3, abs=2e-6)
    assert latencies.percentile(100) == pytest.approx(max(values), rel=1e-3)
    assert latencies.mean_s == pytest.approx(sum(values) / len(values), rel=1e-3)
    assert sum(count for _, count in latencies.steps()) == len(values)


def test_durations_outside_the_range_count_at_its_ends() -> None:
    latencies = Latencies()
    for seconds in (0.0, -1.0, 1e9):
        latencies.record(seconds)
    assert latencies.count == 3
    assert latencies.percentile(1) == 1e-6
    assert latencies.percentile(100) == pytest.approx(3600, rel=1e-3)


def test_no_percentiles_of_nothing_and_no_histogram_of_rubbish() -> None:
    with pytest.raises(InvalidArgument):
        Latencies().percentile(50)
    whole = _few().encode()
    for text in ("", "rubbish", whole[:-8], "A" * 200):
        with pytest.raises(InvalidArgument):
            Latencies.decode(text)


def _few() -> Latencies:
    latencies = Latencies()
    for number in range(1, 50):
        latencies.record(number / 100)
    return latencies


def test_histograms_of_processes_add_up_to_that_of_one() -> None:
    chance = random.Random(4)
    parts, one = [Latencies() for _ in range(3)], Latencies()
    for number in range(5_000):
        seconds = chance.expovariate(100)
        parts[number % 3].record(seconds)
        one.record(seconds)
    merged = total(Latencies.decode(part.encode()) for part in parts)
    assert list(merged.steps()) == list(one.steps())


def test_timelines_of_processes_add_up_to_that_of_one() -> None:
    """The same operations, recorded in one process, and by turns in three and sent as lines."""
    chance = random.Random(5)
    recorders, one = [Recorder(100.0, 0.5) for _ in range(3)], Recorder(100.0, 0.5)
    for number in range(3_000):
        ended = 100.0 + chance.random() * 5
        for recorder in (recorders[number % 3], one):
            if number % 50:
                recorder.succeeded(
                    Operation.GET, "fhir", since=ended - number / 1e5, ended=ended, size_bytes=10
                )
            else:
                recorder.failed(Operation.PUT, "cr", "Unavailable", ended=ended)
    sent = [json.loads(json.dumps(plain(each))) for recorder in recorders for each in recorder.take()]
    merged, whole = Timeline(decoded(list[Slice], sent)), Timeline(one.take())
    assert merged.cells() == whole.cells() == [(Operation.PUT, "cr"), (Operation.GET, "fhir")]
    assert [each.interval for each in merged.slices()] == [each.interval for each in whole.slices()]
    for first, second in zip(merged.slices(), whole.slices(), strict=True):
        assert (first.size_bytes, first.errors) == (second.size_bytes, second.errors)
    assert list(merged.tally().latencies.steps()) == list(whole.tally().latencies.steps())
    assert merged.tally().errors == {"Unavailable": 60}


def test_an_interval_is_handed_over_once_and_only_when_it_is_over() -> None:
    recorder = Recorder(10.0, 1.0)
    for ended in (10.5, 11.5, 12.5):
        recorder.succeeded(Operation.GET, "fhir", since=10.0, ended=ended, size_bytes=1)
    assert [each.interval for each in recorder.take(12.2)] == [0, 1]
    assert recorder.take(12.9) == []
    assert [each.interval for each in recorder.take()] == [2]
    assert recorder.last == 12.5


@pytest.mark.parametrize("row", [[], [1], [0, "fly", "fhir", 1, {}, None], ["0", "get", "fhir", 1, {}, None]])
def test_a_slice_that_is_none_is_refused(row: object) -> None:
    with pytest.raises(InvalidArgument):
        decoded(Slice, row)


def test_the_ramp_is_in_no_row_and_what_ended_late_in_no_rate() -> None:
    recorder = Recorder(0.0, 1.0)
    for ended in [0.5, 1.5] + [2.5 + second for second in range(20)] + [22.5, 23.5]:
        recorder.succeeded(Operation.GET, "fhir", since=ended - 0.01, ended=ended, size_bytes=100)
    (row,) = result_of(recorder).rows()
    assert row.done == 22  # all but the two of the ramp
    assert row.per_s == pytest.approx(1.0)  # but the last two ended after the 20 s
    assert row.bytes_per_s == pytest.approx(100.0)


def test_with_a_count_everything_is_measured() -> None:
    recorder = Recorder(0.0, 1.0)
    for ended in (0.5, 1.5, 2.5, 3.5):
        recorder.succeeded(Operation.GET, "fhir", since=ended - 0.01, ended=ended, size_bytes=100)
    (row,) = replace(result_of(recorder, replace(PLAN, count=4)), seconds=3.5).rows()
    assert row.done == 4
    assert row.per_s == pytest.approx(4 / 3.5)


def test_rows_stand_for_operations_and_classes() -> None:
    rows = result_of(recorded(PLAN)).rows()
    assert [(row.operation.value, row.kind) for row in rows] == [
        ("put", "all"),
        ("put", "fhir"),
        ("put", "bundle"),
        ("get", "all"),
        ("get", "fhir"),
        ("get", "bundle"),
    ]
    assert rows[0].done == rows[1].done + rows[2].done == 500
    assert rows[3].per_s == pytest.approx(75.0)


def test_a_percentile_needs_an_operation_beyond_it() -> None:
    recorder = Recorder(0.0, 1.0)
    for number in range(99):
        recorder.succeeded(Operation.GET, "fhir", since=5.0, ended=5.01 + number / 1e4, size_bytes=1)
    (row,) = result_of(recorder).rows()
    assert set(row.percentiles_s) == {"p50", "p90"}
    recorder = Recorder(0.0, 1.0)
    for number in range(100):
        recorder.succeeded(Operation.GET, "fhir", since=5.0, ended=5.01 + number / 1e4, size_bytes=1)
    (row,) = result_of(recorder).rows()
    assert set(row.percentiles_s) == {"p50", "p90", "p99"}


def test_errors_of_the_ramp_and_of_the_check_are_counted_and_damage_is_told_apart() -> None:
    recorder = recorded(PLAN)
    recorder.failed(Operation.GET, "fhir", "Unavailable", ended=0.5)
    assert result_of(recorder).errors() == {"Unavailable": 1}
    assert result_of(recorded(PLAN)).data_errors == 0
    for name in ("WrongBytes", "Lost", "Resurrected", "IntegrityError"):
        recorder = recorded(PLAN)
        recorder.failed(Operation.GET, "fhir", name, ended=0.5)
        assert result_of(recorder).data_errors == 1
    result = result_of(recorded(PLAN))
    assert result.check is not None
    assert replace(result, check=replace(result.check, errors={"Lost": 2})).data_errors == 2


def test_a_result_survives_the_file(tmp_path: Path) -> None:
    for result in (result_of(recorded(PLAN)), failure_result()):
        path = tmp_path / "deep" / "result.json"
        write_result(path, result)
        again = read_result(path)
        assert again.to_json() == result.to_json()
        assert again.rows() == result.rows()
        assert list(path.parent.iterdir()) == [path]


def test_files_that_hold_no_result_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    content = result_of(recorded(PLAN)).to_json()
    rubbish: list[object] = [[], {}, {"format": "x"}, content | {"plan": {}}, content | {"slices": [[1]]}]
    rubbish += [content | {"machine": {}}, content | {"time": "soon"}, {"format": content["format"]}]
    for each in rubbish:
        path.write_text(json.dumps(each))
        with pytest.raises(InvalidArgument, match="result"):
            read_result(path)
    path.write_text("{")
    with pytest.raises(InvalidArgument, match="not JSON"):
        read_result(path)
    with pytest.raises(InvalidArgument, match="cannot read"):
        read_result(tmp_path / "nothing")


def test_a_counter_that_began_anew_is_not_known() -> None:
    result: LoadResult = result_of(recorded(PLAN))
    assert result.usage.spent("syncs") == 500
    again = replace(result.usage, after=replace(result.usage.after, syncs=3))
    assert again.spent("syncs") is None
    assert replace(result.usage, before=replace(result.usage.before, syncs=None)).spent("syncs") is None


def test_phases_show_what_went_on_in_each() -> None:
    found = {(each.phase, each.row.operation.value): each for each in failure_result().phase_rows()}
    rows = {place: each.row for place, each in found.items()}
    assert set(rows) == {
        (phase, each) for phase in ("steady", "killed", "brought back") for each in ("put", "get")
    }
    assert [rows[phase, "get"].failed for phase in ("steady", "killed", "brought back")] == [0, 100, 0]
    assert rows["killed", "get"].done == rows["steady", "get"].done + 100
    assert rows["killed", "get"].percentiles_s["p99"] == pytest.approx(0.5, rel=0.01)
    assert rows["steady", "get"].percentiles_s["p99"] < 0.1
    assert rows["steady", "get"].per_s == pytest.approx(75.0)
    assert found["steady", "get"].p99_ratio is None
    steady_s = rows["steady", "get"].percentiles_s["p99"]
    assert found["killed", "get"].p99_ratio == pytest.approx(0.5 / steady_s, rel=0.01)
    assert found["killed", "get"].per_s_ratio == pytest.approx(85 / 75, rel=0.01)
    assert result_of(recorded(PLAN)).phase_rows() == []


def test_a_phase_without_time_of_its_own_is_none() -> None:
    """Steps that a busy machine takes late end up in one interval, the last one beyond the end."""
    result = failure_result()
    late = tuple(
        replace(event, at_s=at_s) for event, at_s in zip(result.events, (0.0, 30.1, 30.2), strict=True)
    )
    rows = replace(result, events=late).phase_rows()
    assert {each.phase for each in rows} == {"steady"}
    recorder = recorded(result.plan)
    recorder.succeeded(Operation.GET, "fhir", since=30.0, ended=30.3, size_bytes=1)
    last = replace(result_of(recorder, result.plan), events=late).phase_rows()[-1]
    assert (last.phase, last.row.done, last.row.per_s) == ("brought back", 1, 0.0)
