"""The charts of a report: throughput and latency over time, and the distribution of latencies."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from coffre.bench.load.recorder import Tally
from coffre.bench.load.result import LoadResult
from coffre.bench.load.svg import Band, Chart, Scale, linear, logarithmic, nines
from coffre.bench.load.wording import amount, duration
from coffre.bench.load.workload import Operation

__all__ = ["Buckets", "distribution_chart", "errors_chart", "latency_chart", "throughput_chart"]

BUCKETS_MAX = 90
OPERATIONS_PER_BUCKET = 5  # fewer, and a line of percentiles says nothing
POINTS_MAX = 400


@dataclass(frozen=True, slots=True)
class Buckets:
    """The timeline in at most 90 steps, up to the end of the run; what ended later is in none."""

    width_s: float
    count: int
    tallies: dict[tuple[int, Operation], Tally]

    @classmethod
    def of(cls, result: LoadResult) -> Buckets:
        plan = result.plan
        slices = [each for each in result.timeline.slices() if each.interval < plan.end_interval]
        last = max((each.interval for each in slices), default=0)
        intervals = min(plan.end_interval, last + 1)
        group = max(1, math.ceil(intervals / BUCKETS_MAX))
        tallies: dict[tuple[int, Operation], Tally] = {}
        for each in slices:
            tallies.setdefault((each.interval // group, each.operation), Tally()).include(each)
        return cls(group * plan.interval_s, math.ceil(intervals / group), tallies)

    @property
    def operations(self) -> list[Operation]:
        present = {operation for _, operation in self.tallies}
        return [operation for operation in Operation if operation in present]

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.count))

    def at_s(self, bucket: int) -> float:
        """The middle of a bucket, in seconds from the start."""
        return (bucket + 0.5) * self.width_s

    def frequent(self) -> list[Operation]:
        """Operations with enough of them for percentiles over time; at least the most frequent one."""
        done = {
            operation: sum(
                self.tallies[bucket, operation].done for bucket in self if (bucket, operation) in self.tallies
            )
            for operation in self.operations
        }
        enough = [each for each in done if done[each] >= OPERATIONS_PER_BUCKET * self.count]
        return enough or sorted(done, key=lambda each: -done[each])[:1]


def throughput_chart(result: LoadResult, buckets: Buckets) -> str:
    """Operations per second over time, a line for each operation."""
    rates = {
        operation: [_done(buckets, bucket, operation) / buckets.width_s for bucket in buckets]
        for operation in buckets.operations
    }
    most = max((rate for line in rates.values() for rate in line), default=1.0)
    chart = _over_time(result, buckets, "operations per second", linear(0.0, most * 1.12, _count), "op/s")
    for operation, line in rates.items():
        chart.line([(buckets.at_s(i), rate) for i, rate in enumerate(line)], operation.value)
    for bucket in buckets:
        said = [f"{each.value} {rates[each][bucket]:,.1f}/s" for each in rates]
        _hover(chart, buckets, bucket, said)
    return chart.render()


def errors_chart(result: LoadResult, buckets: Buckets) -> str:
    """Errors per second over time, of all operations together."""
    rates = [
        sum(buckets.tallies[key].failed for key in buckets.tallies if key[0] == bucket) / buckets.width_s
        for bucket in buckets
    ]
    chart = _over_time(
        result, buckets, "errors per second", linear(0.0, max([*rates, 0.0]) * 1.12, _count), "errors/s"
    )
    chart.line([(buckets.at_s(i), rate) for i, rate in enumerate(rates)], "failed")
    for bucket in buckets:
        _hover(chart, buckets, bucket, [f"{rates[bucket]:,.1f} errors/s"])
    return chart.render()


def latency_chart(result: LoadResult, buckets: Buckets) -> str:
    """p50 (dotted) and p99 over time, of the operations that there are enough of."""
    lines = {
        operation: [_percentiles(buckets, bucket, operation) for bucket in buckets]
        for operation in buckets.frequent()
    }
    values = [value for line in lines.values() for pair in line if pair for value in pair]
    scale = logarithmic(min(values, default=1e-3), max(values, default=1e-2), _tick)
    chart = _over_time(result, buckets, "latency over time", scale, "latency")
    for operation, line in lines.items():
        for which, style in ((0, f"{operation.value} thin"), (1, operation.value)):
            chart.line(
                [None if pair is None else (buckets.at_s(i), pair[which]) for i, pair in enumerate(line)],
                style,
            )
    for bucket in buckets:
        pairs = {each: lines[each][bucket] for each in lines}
        said = [
            f"{each.value} p50 {duration(pair[0])}, p99 {duration(pair[1])}"
            for each, pair in pairs.items()
            if pair is not None
        ]
        _hover(chart, buckets, bucket, said)
    return chart.render()


def distribution_chart(result: LoadResult) -> str:
    """The share of operations that were at most so slow, up to the slowest but one."""
    curves = {}
    for operation in Operation:
        tally = result.measured(lambda each, operation=operation: each.operation is operation)  # type: ignore[misc]
        if tally.done > 1:
            curves[operation] = _curve(tally)
    places = [point for curve in curves.values() for point in curve]
    times_s = [point[0] for point in places]
    x = logarithmic(min(times_s, default=1e-3), max(times_s, default=1e-2), _tick)
    y = nines(max((point[1] for point in places), default=0.9))
    chart = Chart("distribution of latencies", x, y, x_name="latency", y_name="share at most so slow")
    for operation, curve in curves.items():
        chart.line(curve, operation.value)
    return chart.render()


def _curve(tally: Tally) -> list[tuple[float, float]]:
    """Points (latency, share at or below it) without the slowest, whose share is 1."""
    found: list[tuple[float, float]] = []
    seen = 0
    for seconds, count in tally.latencies.steps():
        seen += count
        if seen < tally.done:
            found.append((seconds, seen / tally.done))
    return _thinned(found)


def _thinned(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """At most 400 of them. The last ones matter most, and are the furthest apart, so they stay."""
    kept = points[-POINTS_MAX // 2 :]
    rest = points[: len(points) - len(kept)]
    step = max(1, math.ceil(len(rest) / (POINTS_MAX // 2)))
    return [*rest[::step], *kept]


def _over_time(result: LoadResult, buckets: Buckets, title: str, y: Scale, y_name: str) -> Chart:
    """A chart whose ground shows the ramp and what was done to the cluster."""
    seconds = buckets.count * buckets.width_s
    x = linear(0.0, seconds, lambda value: f"{value:g} s", ticks=10)
    chart = Chart(title, x, y, x_name="since the start", y_name=y_name)
    ramp_s = 0.0 if result.plan.count is not None else result.plan.ramp_intervals * result.plan.interval_s
    if ramp_s:
        chart.band(Band(0.0, ramp_s, "ramp", "band-a"))
    ends = [*(event.at_s for event in result.events[1:]), seconds][: len(result.events)]
    for number, (event, end) in enumerate(zip(result.events, ends, strict=True)):
        chart.band(Band(event.at_s, end, event.phase, "band-b" if number % 2 else "band-none"))
        if number:
            chart.mark(event.at_s)
    return chart


def _hover(chart: Chart, buckets: Buckets, bucket: int, said: Sequence[str]) -> None:
    first, after = bucket * buckets.width_s, (bucket + 1) * buckets.width_s
    chart.hover(first, after, "\n".join([f"{first:g} to {after:g} s", *said]))


def _done(buckets: Buckets, bucket: int, operation: Operation) -> int:
    tally = buckets.tallies.get((bucket, operation))
    return 0 if tally is None else tally.done


def _percentiles(buckets: Buckets, bucket: int, operation: Operation) -> tuple[float, float] | None:
    tally = buckets.tallies.get((bucket, operation))
    if tally is None or not tally.done:
        return None
    half, high = tally.latencies.percentiles([50, 99])
    return half, high


def _tick(seconds: float) -> str:
    """A round duration without digits that say nothing."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 0.9999:
            return f"{seconds * factor:.6g} {unit}"
    return f"{seconds * 1e6:.6g} µs"


def _count(value: float) -> str:
    return amount(value, "")
