"""A result as one HTML page: throughput and latency over time, the distribution of latencies, and the tables."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from coffre.bench.charts import Chart
from coffre.bench.load.content import DATA_ERRORS
from coffre.bench.load.plan import Operation
from coffre.bench.load.recorder import Tally
from coffre.bench.load.result import ALL, LoadResult
from coffre.bench.load.tables import amount, duration, operations_table, phases_table, remarks
from coffre.bench.pages import Markup, render

__all__ = ["render_report"]

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
        within = [one.interval for one in result.timeline.slices() if one.interval < plan.end_interval]
        intervals = min(plan.end_interval, max(within, default=0) + 1)
        group = max(1, math.ceil(intervals / BUCKETS_MAX))
        tallies = result.timeline.tallies(
            lambda one: (one.interval // group, one.operation) if one.interval < plan.end_interval else None
        )
        return cls(group * plan.interval_s, math.ceil(intervals / group), tallies)

    @property
    def operations(self) -> list[Operation]:
        present = {operation for _, operation in self.tallies}
        return [operation for operation in Operation if operation in present]

    @property
    def middles_s(self) -> list[float]:
        """The middle of each bucket, in seconds from the start."""
        return [(bucket + 0.5) * self.width_s for bucket in range(self.count)]

    def of_operation(self, operation: Operation) -> list[Tally]:
        """What came of one operation, bucket by bucket."""
        return [self.tallies.get((bucket, operation)) or Tally() for bucket in range(self.count)]

    def frequent(self) -> list[Operation]:
        """Operations with enough of them for percentiles over time; at least the most frequent one."""
        done = {each: sum(tally.done for tally in self.of_operation(each)) for each in self.operations}
        enough = [each for each in done if done[each] >= OPERATIONS_PER_BUCKET * self.count]
        return enough or sorted(done, key=lambda each: -done[each])[:1]


def throughput_chart(result: LoadResult, buckets: Buckets) -> str:
    """Operations per second over time, a line for each operation."""
    rates = {
        each.value: [tally.done / buckets.width_s for tally in buckets.of_operation(each)]
        for each in buckets.operations
    }
    return _rates_chart(result, buckets, "operations per second", "op/s", rates)


def errors_chart(result: LoadResult, buckets: Buckets) -> str:
    """Errors per second over time, of all operations together."""
    of_all = zip(*map(buckets.of_operation, buckets.operations), strict=True)
    failed = [sum(tally.failed for tally in bucket) / buckets.width_s for bucket in of_all]
    return _rates_chart(result, buckets, "errors per second", "errors/s", {"bad": failed})


def latency_chart(result: LoadResult, buckets: Buckets) -> str:
    """p50 (dotted) and p99 over time, of the operations that there are enough of."""
    chart = _over_time(result, buckets, "latency over time", "latency")
    said: list[list[str]] = [[] for _ in range(buckets.count)]
    seen: list[float] = []
    for operation in buckets.frequent():
        pairs = [
            tally.latencies.percentiles([50, 99]) if tally.done else (math.nan, math.nan)
            for tally in buckets.of_operation(operation)
        ]
        halves, highs = zip(*pairs, strict=True)
        chart.line(buckets.middles_s, halves, operation.value, style=":")
        chart.line(buckets.middles_s, highs, operation.value)
        seen += [value for pair in pairs for value in pair if value == value]
        for lines, (half, high) in zip(said, pairs, strict=True):
            if half == half:
                lines.append(f"{operation.value} p50 {duration(half)}, p99 {duration(high)}")
    chart.logarithmic("y", seen, _tick)
    return _with_tips(chart, buckets, said)


def distribution_chart(result: LoadResult) -> str:
    """The share of operations that were at most so slow, up to the slowest but one.

    The axis is that of HdrHistogram: 0, 90 %, 99 %, ... at even distances.
    """
    chart = Chart("distribution of latencies", "latency", "share at most so slow")
    seen_s: list[float] = []
    most_nines = 1.0
    for operation in Operation:
        tally = result.measured(lambda each, operation=operation: each.operation is operation)  # type: ignore[misc]
        if tally.done > 1:
            curve = _curve(tally)
            chart.line([x for x, _ in curve], [y for _, y in curve], operation.value, marker="")
            seen_s += [x for x, _ in curve]
            most_nines = max([most_nines, *(y for _, y in curve)])
    chart.logarithmic("x", seen_s, _tick)
    chart.axes.set_ylim(0, most_nines)
    chart.ticks("y", range(math.floor(most_nines) + 1), lambda nines: f"{(1 - 10.0**-nines) * 100:.6g} %")
    return chart.svg()


def _curve(tally: Tally) -> list[tuple[float, float]]:
    """Points (latency, nines of the share at or below it) but for the slowest, whose share is 1. At most 400."""
    found: list[tuple[float, float]] = []
    seen = 0
    for seconds, count in tally.latencies.steps():
        seen += count
        if seen < tally.done:
            found.append((seconds, -math.log10(1 - seen / tally.done)))
    # The last ones matter most, and are the furthest apart, so they stay.
    rest, kept = found[: -POINTS_MAX // 2], found[-POINTS_MAX // 2 :]
    return [*rest[:: max(1, math.ceil(len(rest) / (POINTS_MAX // 2)))], *kept]


def _rates_chart(
    result: LoadResult, buckets: Buckets, title: str, name: str, rates: dict[str, list[float]]
) -> str:
    chart = _over_time(result, buckets, title, name)
    for colour, line in rates.items():
        chart.line(buckets.middles_s, line, colour)
    chart.axes.set_ylim(0, max([*(rate for line in rates.values() for rate in line), 1e-9]) * 1.12)
    chart.labels("y", lambda value: amount(value, ""))
    said = [
        [f"{'' if colour == 'bad' else colour} {line[bucket]:,.1f} {name}" for colour, line in rates.items()]
        for bucket in range(buckets.count)
    ]
    return _with_tips(chart, buckets, said)


def _over_time(result: LoadResult, buckets: Buckets, title: str, y_name: str) -> Chart:
    """A chart whose ground shows the ramp and what was done to the cluster."""
    seconds = buckets.count * buckets.width_s
    chart = Chart(title, "since the start", y_name)
    chart.axes.set_xlim(0, seconds)
    chart.axes.locator_params("x", nbins=11)
    chart.labels("x", lambda value: f"{value:g} s")
    ramp_s = 0.0 if result.plan.count is not None else result.plan.ramp_intervals * result.plan.interval_s
    if ramp_s:
        chart.band(0.0, min(ramp_s, seconds), "ramp", "band-a")
    ends = [*(event.at_s for event in result.events[1:]), seconds][: len(result.events)]
    for number, (event, end) in enumerate(zip(result.events, ends, strict=True)):
        chart.band(event.at_s, end, event.phase, "band-b" if number % 2 else None)
        if number:
            chart.mark(event.at_s)
    return chart


def _with_tips(chart: Chart, buckets: Buckets, said: Sequence[Sequence[str]]) -> str:
    for bucket, lines in enumerate(said):
        first, after = bucket * buckets.width_s, (bucket + 1) * buckets.width_s
        chart.tip(first, after, "\n".join([f"{first:g} to {after:g} s", *lines]))
    return chart.svg()


def _tick(seconds: float) -> str:
    """A round duration without digits that say nothing."""
    for factor, unit in ((1.0, "s"), (1e3, "ms")):
        if seconds * factor >= 0.9999:
            return f"{seconds * factor:.6g} {unit}"
    return f"{seconds * 1e6:.6g} µs"


def render_report(result: LoadResult) -> str:
    """The page as text."""
    time = result.time.isoformat(sep=" ", timespec="seconds")
    buckets = Buckets.of(result)
    failed = any(tally.failed for tally in buckets.tallies.values())
    return render(
        "load.html",
        {"amount": amount, "duration": duration},
        title="Coffre failure report" if result.events else "Coffre load report",
        footer=f"coffre {result.version}, seed {result.plan.seed}, {time}",
        result=result,
        plan=result.plan,
        sums=[row for row in result.rows() if row.kind == ALL],
        puts=result.timeline.tally(lambda each: each.operation is Operation.PUT).done,
        errors=result.errors(),
        data_errors=DATA_ERRORS,
        width_s=buckets.width_s,
        operations_named=[each.value for each in buckets.operations],
        frequent=[each.value for each in buckets.frequent()],
        throughput=Markup(throughput_chart(result, buckets)),
        errors_over_time=Markup(errors_chart(result, buckets)) if failed else None,
        latency=Markup(latency_chart(result, buckets)),
        distribution=Markup(distribution_chart(result)),
        operations=operations_table(result),
        phases=phases_table(result),
        remarks=remarks(result),
    )
