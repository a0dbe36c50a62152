"""Micro benchmarks: operations whose ratio to a reference is compared with a baseline.

A row is the time of an operation over the time of a reference operation, which takes turns with it. The reference
is none of Coffre's code. Neighbours on a machine only ever add time, so of both the quiet rounds count: the lowest
decile. Absolute times on a shared machine differ by factors from one minute to the next; these ratios differ by what
their tolerance allows.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from coffre.bench.micro import _codec, _data_path, _index
from coffre.bench.result import Bound, Row, Target
from coffre.bench.timing import Operation, Work, timed

__all__ = ["Comparison", "Operation", "measured", "operations", "row_from_rounds"]


def operations(wanted: Callable[[str], bool], place: Path, large: bool) -> Generator[Operation]:
    """Those whose ids are wanted. What one needs is there until the next one is asked for."""
    yield from (each for each in chain(_codec.operations(), _data_path.operations()) if wanted(each.id))
    with closing(_index.operations(wanted, place, large)) as of_index:
        yield from of_index


def measured(operation: Operation) -> Row:
    """Time the operation right after its reference, round by round."""
    works = (operation.reference.work, Work(operation.run, operation.calls))
    return row_from_rounds(operation.id, operation.reference.id, timed(works, operation.rounds))


def row_from_rounds(row_id: str, reference_id: str, rounds: Sequence[tuple[float, ...]]) -> Row:
    """The row of rounds (reference, operation), seconds each: at least two.

    Four significant digits are more than the measurement has.
    """
    quiet = (statistics.quantiles(each, n=10, method="inclusive")[0] for each in zip(*rounds, strict=True))
    reference, operation = quiet
    found = (float(f"{value:.4g}") for value in (operation, reference, operation / reference))
    value, beside, ratio = found
    return Row(row_id, value, "s", beside, reference_id, ratio)


@dataclass(slots=True)
class Comparison:
    """Rows as they are measured, beside those of a baseline. A row with another reference than there is new."""

    baseline: Sequence[Row]
    rows: dict[str, Row] = field(default_factory=dict)
    targets: dict[str, Target] = field(default_factory=dict)

    def add(self, row: Row, tolerance: float) -> None:
        """Take a row in. Of one that was measured before, the quieter measurement counts."""
        self.rows[row.id] = min(row, self.rows.get(row.id, row), key=lambda one: one.ratio)
        for before in self.baseline:
            if (before.id, before.reference_id) == (row.id, row.reference_id):
                self.targets[row.id] = Target(Bound.AT_MOST, before.ratio * (1 + tolerance))

    def slower(self) -> dict[str, float]:
        """What got slower by more than its tolerance, and by how much of its ratio in the baseline."""
        before = {row.id: row.ratio for row in self.baseline}
        late = [
            self.rows[name] for name, target in self.targets.items() if not target.reached(self.rows[name])
        ]
        return {row.id: row.ratio / before[row.id] - 1 for row in late}
