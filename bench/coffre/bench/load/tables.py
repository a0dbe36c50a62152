"""The tables of a result, for the terminal and the report, and of two results side by side."""

from __future__ import annotations

from coffre.bench.load.compare import Comparison, Verdict
from coffre.bench.load.phases import phase_rows
from coffre.bench.load.result import ALL, PERCENTILES, LoadResult
from coffre.bench.load.wording import amount, count, duration, times
from coffre.bench.tables import Table

__all__ = ["comparison_table", "operations_table", "phases_table"]

_STYLES = {Verdict.BETTER: "green", Verdict.WORSE: "red", Verdict.NOISE: "", Verdict.UNKNOWN: "dim"}


def operations_table(result: LoadResult) -> Table:
    """The measured part, by operation and class."""
    heads = ("operation", "class", "done", "errors", "op/s", "bytes/s", "mean")
    rows = result.rows()
    return Table(
        (*heads, *(f"p{each:g}" for each in PERCENTILES), "max"),
        [
            (
                *(
                    row.operation.value if row.kind == ALL else "",
                    row.kind,
                    count(row.done),
                    count(row.failed),
                ),
                *(f"{row.per_s:,.1f}", amount(row.bytes_per_s, "B/s") if row.bytes_per_s else ""),
                *(duration(row.mean_s), *(duration(row.percentiles_s.get(each)) for each in PERCENTILES)),
                duration(row.max_s),
            )
            for row in rows
        ],
        words=2,
        styles=["bold" if row.kind == ALL else "" for row in rows],
    )


def phases_table(result: LoadResult) -> Table:
    """Each phase of a failure run, by operation, with factors to the first."""
    heads = ("phase", "operation", "done", "errors", "op/s", "", "p50", "p99", "", "max")
    rows, shown = [], None
    for row in phase_rows(result):
        first, shown = row.phase != shown, row.phase
        rows.append(
            (
                *(row.phase if first else "", row.operation.value, count(row.done), count(row.failed)),
                *(f"{row.per_s:,.1f}", times(row.per_s_ratio)),
                *(duration(row.percentiles_s.get(each)) for each in (50.0, 99.0)),
                *(times(row.p99_ratio), duration(row.max_s)),
            )
        )
    return Table(heads, rows, words=2)


def comparison_table(comparison: Comparison) -> Table:
    """Every quantity before and after, its change and noise, and what that means."""
    heads = ("operation", "class", "quantity", "verdict", "before", "after", "change", "noise")
    rows, shown = [], None
    for change in comparison.changes:
        cell = (change.operation.value, change.kind)
        first, shown = cell != shown, cell
        values = (change.before, change.after)
        rows.append(
            (
                *(cell if first else ("", "")),
                *(change.quantity, change.verdict.value),
                *(f"{each:,.1f}" if change.quantity == "op/s" else duration(each) for each in values),
                *(f"{change.ratio:+.1%}", "" if change.noise is None else f"± {change.noise:.1%}"),
            )
        )
    return Table(heads, rows, words=4, styles=[_STYLES[change.verdict] for change in comparison.changes])
