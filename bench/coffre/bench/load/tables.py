"""How a run reads: its progress while it goes on, quantities, tables for the terminal and the report, and remarks."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from coffre.bench.load.compare import Comparison, Verdict
from coffre.bench.load.content import DATA_ERRORS
from coffre.bench.load.recorder import Slice, Tally
from coffre.bench.load.result import ALL, PERCENTILES, LoadResult
from coffre.dev.tables import Table
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

__all__ = [
    "LiveProgress",
    "amount",
    "comparison_table",
    "count",
    "duration",
    "operations_table",
    "phases_table",
    "print_result",
    "remarks",
    "times",
]

SATURATED = 0.9


def amount(value: float, unit: str) -> str:
    """Three digits with a decimal SI prefix: 12.3 MB/s."""
    prefixes = iter(("", "k", "M", "G", "T", "P"))
    prefix = next(prefixes)
    while abs(value) >= 999.5 and prefix != "P":
        value, prefix = value / 1000, next(prefixes)
    digits = 0 if prefix == "" and value == int(value) else max(0, 3 - len(str(int(abs(value)))))
    return f"{value:.{digits}f} {prefix}{unit}".rstrip()


def count(value: int) -> str:
    """With separators: 12,345. Nothing for 0."""
    return f"{value:,}" if value else ""


def duration(seconds: float | None) -> str:
    """Three digits: 850 µs, 1.23 ms, 12.3 s. Nothing for None."""
    if seconds is None:
        return ""
    value, unit = seconds, "s"
    if seconds < 0.9995:
        value, unit = seconds * 1e3, "ms"
    if seconds < 0.0009995:
        value, unit = seconds * 1e6, "µs"
    return f"{value:.{max(0, 3 - len(str(int(value))))}f} {unit}"


def times(ratio: float | None) -> str:
    """A ratio to the first phase: x 1.25. Nothing for None."""
    return "" if ratio is None else f"x {ratio:.2f}"


def remarks(result: LoadResult) -> list[str]:
    """What the figures depend on, and what makes them doubtful."""
    usage, cores = result.usage, result.machine.cores
    said = []
    shares = [each / usage.elapsed_s for each in usage.client_cpu_s]
    said.append(f"client processes: {', '.join(f'{share:.0%}' for share in shares)} of a core each")
    if max(shares) > SATURATED:
        said.append(
            "a client process was busy nearly all the time: it may be what limited the rate; use more"
        )
    cluster_s = usage.spent("cpu_s")
    if cluster_s is not None:
        whole = (cluster_s + sum(usage.client_cpu_s)) / usage.elapsed_s / cores
        said.append(
            f"nodes: {cluster_s / usage.elapsed_s:.2f} cores; with the clients {whole:.0%} of this machine"
        )
    if result.not_started:
        said.append(
            f"{result.not_started:,} operations were due and never begun: the cluster did not keep up, and no "
            "percentile knows of them"
        )
    if result.lag is not None:
        half, high = result.lag.percentiles([50, 99])
        said.append(f"begun after they were due: p50 {duration(half)}, p99 {duration(high)}")
    return said


_STYLES = {Verdict.BETTER: "green", Verdict.WORSE: "red", Verdict.NOISE: "", Verdict.UNKNOWN: "dim"}


def operations_table(result: LoadResult) -> Table:
    """The measured part, by operation and class."""
    rows = result.rows()
    return Table(
        ("operation", "class", "done", "errors", "op/s", "bytes/s", "mean", *PERCENTILES, "max"),
        [
            (
                *(row.operation.value if row.kind == ALL else "", row.kind),
                *(count(row.done), count(row.failed), f"{row.per_s:,.1f}"),
                amount(row.bytes_per_s, "B/s") if row.bytes_per_s else "",
                *(duration(row.mean_s), *(duration(row.percentiles_s.get(name)) for name in PERCENTILES)),
                duration(row.max_s),
            )
            for row in rows
        ],
        words=2,
        styles=["bold" if row.kind == ALL else "" for row in rows],
    )


def phases_table(result: LoadResult) -> Table:
    """Each phase of a failure run, by operation, with factors to the first."""
    rows, shown = [], None
    for each in result.phase_rows():
        row, first, shown = each.row, each.phase != shown, each.phase
        rows.append(
            (
                *(each.phase if first else "", row.operation.value, count(row.done), count(row.failed)),
                *(f"{row.per_s:,.1f}", times(each.per_s_ratio)),
                *(duration(row.percentiles_s.get(name)) for name in ("p50", "p99")),
                *(times(each.p99_ratio), duration(row.max_s)),
            )
        )
    heads = ("phase", "operation", "done", "errors", "op/s", "", "p50", "p99", "", "max")
    return Table(heads, rows, words=2)


def comparison_table(comparison: Comparison) -> Table:
    """Every quantity before and after, its change and noise, and what that means."""
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
    heads = ("operation", "class", "quantity", "verdict", "before", "after", "change", "noise")
    return Table(heads, rows, words=4, styles=[_STYLES[change.verdict] for change in comparison.changes])


_KEPT_INTERVALS = 4


class LiveProgress:
    """A line for each part of a run. In a pipe, only what the parts were at their ends."""

    def __init__(self, console: Console, interval_s: float) -> None:
        self._interval_s = interval_s
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TimeElapsedColumn(),
            TextColumn("{task.fields[said]}", markup=False),
            console=console,
        )
        self._task: TaskID | None = None
        self._amount = 0.0
        self._latest: dict[int, Tally] = {}
        self._newest = -1
        self._failed = 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._finish()
        self._progress.stop()

    def begin(self, what: str, expected: float | None) -> None:
        """A part of the run begins. `expected` is in seconds, for the load itself."""
        self._finish()
        self._amount = 0.0
        self._task = self._progress.add_task(what, total=expected, said="")

    def advance(self, size_bytes: float) -> None:
        """So much more of it is done."""
        assert self._task is not None
        self._amount += size_bytes
        self._progress.update(self._task, said=amount(self._amount, "B"))

    def show(self, slices: list[Slice]) -> None:
        """Intervals that are over, of one client process."""
        assert self._task is not None
        for each in slices:
            self._latest.setdefault(each.interval, Tally()).include(each)
            self._failed += sum(each.errors.values())
            self._newest = max(self._newest, each.interval)
        for old in [interval for interval in self._latest if interval <= self._newest - _KEPT_INTERVALS]:
            del self._latest[old]
        # The newest one may lack other processes' parts.
        tally, width_s = self._latest.get(self._newest - 1, Tally()), self._interval_s
        said = f"{tally.done / width_s:,.0f} op/s  {amount(tally.size_bytes / width_s, 'B/s')}"
        if tally.done:
            said += f"  p99 {duration(tally.latencies.percentile(99))}"
        if self._failed:
            said += f"  {self._failed:,} errors"
        total_s = self._progress.tasks[self._task].total or 0.0
        self._progress.update(self._task, completed=min((self._newest + 1) * width_s, total_s), said=said)

    def warn(self, text: str) -> None:
        """Something that the user must know, and that does not change the result."""
        self._progress.console.print(text, style="yellow", markup=False, soft_wrap=True)

    def _finish(self) -> None:
        if self._task is not None:
            task = self._progress.tasks[self._task]
            self._progress.update(self._task, total=task.total or 1.0, completed=task.total or 1.0)
            self._progress.stop_task(self._task)


def print_result(result: LoadResult, console: Console) -> None:
    """The table of operations, and after it everything that a reader must not overlook."""
    operations_table(result).show(console)
    if result.events:
        phases_table(result).show(console)
    for event in result.events:
        console.print(f"{event.at_s:6.1f} s  {event.phase}: {event.what}", markup=False, soft_wrap=True)
    for line in remarks(result):
        console.print(line, soft_wrap=True, markup=False)
    for name, count in result.errors().items():
        style = "bold red" if name in DATA_ERRORS else "yellow"
        console.print(f"errors: {count:,} {name}", style=style)
    for example in result.examples:
        console.print(example, style="red", markup=False, soft_wrap=True)
    if result.data_errors:
        console.print(f"{result.data_errors:,} times data was wrong or lost", style="bold red")
    elif result.check is not None:
        console.print(f"all {result.check.checked:,} objects that were written are as they must be")
