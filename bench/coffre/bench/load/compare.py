"""Two results of the same load side by side: what became faster or slower, and whether that is more than noise.

The noise of one run is seen in the run itself: its measured part is cut into batches of equal length, each of which
gives the quantity once, and their spread gives a confidence interval of 95 % (batch means; Law, "Simulation Modeling
and Analysis"). It knows nothing of what differs between two starts of a machine, so it is a lower bound.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache

from coffre.bench.load.recorder import Tally
from coffre.bench.load.result import ALL, LoadResult
from coffre.bench.load.workload import Operation
from coffre.cluster.errors import InvalidArgument

__all__ = ["Change", "Comparison", "Verdict", "compare_results"]

# Student's t for 95 % on both sides, by the number of batches; more batches are tried first.
_STUDENT = {10: 2.262, 5: 2.776, 4: 3.182}


class Verdict(Enum):
    """What a change means."""

    BETTER = "better"
    WORSE = "worse"
    NOISE = "within noise"
    UNKNOWN = "too few to say"


@dataclass(frozen=True, slots=True)
class Change:
    """One quantity before and after. `ratio` is after / before - 1; `noise` is in the same unit, None when unknown."""

    operation: Operation
    kind: str
    quantity: str  # "op/s" or a percentile of the latency in seconds
    before: float
    after: float
    ratio: float
    noise: float | None
    verdict: Verdict

    @property
    def worse_by(self) -> float:
        """How much worse as a share of before: 0 unless it is worse beyond noise."""
        return abs(self.ratio) if self.verdict is Verdict.WORSE else 0.0


@dataclass(frozen=True, slots=True)
class Comparison:
    """All changes, and what else a reader must know of the two runs."""

    changes: tuple[Change, ...]
    notes: tuple[str, ...]

    def regressions(self, limit: float) -> list[Change]:
        """What is worse beyond noise and by more than the share `limit`."""
        return [change for change in self.changes if change.worse_by > limit]


@dataclass(frozen=True, slots=True)
class _Quantity:
    name: str
    more_is_better: bool
    value: Callable[[Tally, float], float | None]  # of a tally over so many seconds


def _percentile(percentile: float) -> Callable[[Tally, float], float | None]:
    def value(tally: Tally, _: float) -> float | None:
        enough = tally.done * (1 - percentile / 100) >= 0.999
        return tally.latencies.percentile(percentile) if enough else None

    return value


_QUANTITIES = (
    _Quantity("op/s", True, lambda tally, seconds: tally.done / seconds),
    *(_Quantity(f"p{each:g}", False, _percentile(each)) for each in (50.0, 99.0)),
)


def compare_results(before: LoadResult, after: LoadResult) -> Comparison:
    """Raises `InvalidArgument` when the two were not asked for the same load, or nothing of both succeeded."""
    asked, asked_after = before.plan.compared(), after.plan.compared()
    if differing := [name for name in asked if asked[name] != asked_after[name]]:
        said = "; ".join(
            f"{name}: {_short(asked[name])} and {_short(asked_after[name])}" for name in differing
        )
        raise InvalidArgument(f"the two results are of different loads ({said})")
    if bool(before.events) != bool(after.events):
        raise InvalidArgument("one of the two results is of `coffre bench failure`")
    changes = []
    for operation, kind in _cells(before, after):
        first, second = _Sample(before, operation, kind), _Sample(after, operation, kind)
        changes += [
            change
            for quantity in _QUANTITIES
            if (change := _change(operation, kind, quantity, first, second)) is not None
        ]
    if not changes:
        raise InvalidArgument("the two results have no successful operation in common")
    return Comparison(tuple(changes), tuple(_notes(before, after)))


def _short(value: object) -> str:
    return str(value["name"]) if isinstance(value, dict) else str(value)


def _cells(before: LoadResult, after: LoadResult) -> list[tuple[Operation, str]]:
    """Operations and classes that both runs have: of each operation all of it first."""
    second = set(after.timeline.cells())
    both = [cell for cell in before.timeline.cells() if cell in second]
    found = []
    for operation in dict.fromkeys(each for each, _ in both):
        kinds = [kind for each, kind in both if each is operation]
        found += [(operation, kind) for kind in (ALL, *(kinds if len(kinds) > 1 else ()))]
    return found


class _Sample:
    """One operation and class of one run, over its measured time and in batches of it."""

    def __init__(self, result: LoadResult, operation: Operation, kind: str) -> None:
        plan = result.plan
        self.seconds = result.seconds
        self._interval_s = plan.interval_s
        self._first = 0 if plan.count is not None else plan.ramp_intervals
        self._intervals = int(result.seconds / plan.interval_s)
        self._tallies: dict[int, Tally] = {}
        for each in result.timeline.slices():
            inside = 0 <= each.interval - self._first < self._intervals
            if inside and each.operation is operation and kind in (ALL, each.kind):
                self._tallies.setdefault(each.interval - self._first, Tally()).include(each)
        self.whole = self._sum(0, self._intervals)

    @cache  # noqa: B019  # a sample lives as long as its comparison
    def batches(self, count: int) -> tuple[list[Tally], float]:
        """So many batches, and how many seconds each has. What is left at the end is in none."""
        size = self._intervals // count
        found = [self._sum(number * size, (number + 1) * size) for number in range(count)]
        return found, size * self._interval_s

    def _sum(self, first: int, after: int) -> Tally:
        tally = Tally()
        for interval, each in self._tallies.items():
            if first <= interval < after:
                tally.size_bytes += each.size_bytes
                tally.errors.update(each.errors)
                tally.latencies.add(each.latencies)
        return tally


def _change(
    operation: Operation, kind: str, quantity: _Quantity, first: _Sample, second: _Sample
) -> Change | None:
    before = quantity.value(first.whole, first.seconds)
    after = quantity.value(second.whole, second.seconds)
    if not before or not after:
        return None
    ratio = after / before - 1
    spreads = [_relative_noise(quantity, sample) for sample in (first, second)]
    # The relative errors of both sides of a quotient add up like the sides of a right triangle.
    noise = (
        None if None in spreads else math.hypot(*(each for each in spreads if each is not None)) * (1 + ratio)
    )
    if noise is None:
        verdict = Verdict.UNKNOWN
    elif abs(ratio) <= noise:
        verdict = Verdict.NOISE
    else:
        verdict = Verdict.BETTER if (ratio > 0) is quantity.more_is_better else Verdict.WORSE
    return Change(operation, kind, quantity.name, before, after, ratio, noise, verdict)


def _relative_noise(quantity: _Quantity, sample: _Sample) -> float | None:
    """Half the width of the confidence interval of the mean over batches, as a share of that mean."""
    for count, student in _STUDENT.items():
        batches, seconds = sample.batches(count)
        if not seconds:
            continue
        values = [quantity.value(each, seconds) for each in batches]
        if all(values):
            return student * _standard_error([value for value in values if value is not None])
    return None


def _standard_error(values: Sequence[float]) -> float:
    return statistics.stdev(values) / math.sqrt(len(values)) / statistics.mean(values)


def _notes(before: LoadResult, after: LoadResult) -> list[str]:
    notes = []
    pairs = (
        ("machine", before.machine, after.machine),
        ("seed", before.plan.seed, after.plan.seed),
        ("version", before.version, after.version),
        ("policy", before.cluster.policy, after.cluster.policy),
        ("nodes", before.cluster.nodes, after.cluster.nodes),
        ("seconds measured", before.seconds, after.seconds),
    )
    for name, first, second in pairs:
        if first != second:
            notes.append(f"{name} differs: {first} and {second}")
    for name, result in (("before", before), ("after", after)):
        if result.errors():
            listed = ", ".join(f"{count:,} {each}" for each, count in result.errors().items())
            notes.append(f"errors {name}: {listed}")
        if result.not_started:
            notes.append(f"{name}, {result.not_started:,} operations were due and never begun")
    return notes
