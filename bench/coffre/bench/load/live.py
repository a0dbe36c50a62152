"""What a run shows on the terminal: its progress while it goes on, and a table at its end."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from coffre.bench.load.content import DATA_ERRORS
from coffre.bench.load.recorder import Slice, Tally
from coffre.bench.load.result import LoadResult
from coffre.bench.load.tables import amount, duration, operations_table, phases_table, remarks
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

__all__ = ["LiveProgress", "print_result"]

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
        self._finish()
        self._amount = 0.0
        self._task = self._progress.add_task(what, total=expected, said="")

    def advance(self, size_bytes: float) -> None:
        assert self._task is not None
        self._amount += size_bytes
        self._progress.update(self._task, said=amount(self._amount, "B"))

    def show(self, slices: list[Slice]) -> None:
        assert self._task is not None
        for each in slices:
            tally = self._latest.setdefault(each.interval, Tally())
            tally.include(each)
            self._failed += sum(each.errors.values())
            self._newest = max(self._newest, each.interval)
        for old in [interval for interval in self._latest if interval <= self._newest - _KEPT_INTERVALS]:
            del self._latest[old]
        # The newest one may lack other processes' parts.
        tally = self._latest.get(self._newest - 1, Tally())
        said = (
            f"{tally.done / self._interval_s:,.0f} op/s  {amount(tally.size_bytes / self._interval_s, 'B/s')}"
        )
        if tally.done:
            said += f"  p99 {duration(tally.latencies.percentile(99))}"
        if self._failed:
            said += f"  {self._failed:,} errors"
        self._progress.update(
            self._task, completed=min((self._newest + 1) * self._interval_s, self._total()), said=said
        )

    def warn(self, text: str) -> None:
        self._progress.console.print(text, style="yellow", markup=False, soft_wrap=True)

    def _total(self) -> float:
        assert self._task is not None
        return self._progress.tasks[self._task].total or 0.0

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
