"""Two results of the same load side by side: what became faster or slower, and whether that is more than noise.

The noise of one run is seen in the run itself: its measured part is cut into batches of equal length, each of which
gives the quantity once, and their spread gives a confidence interval of 95 % (batch means; Law, "Simulation Modeling
and Analysis"). It knows nothing of what differs between two starts of a machine, so it is a lower bound.
"""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from enum import Enum

from coffre.bench.load.plan import Operation
from coffre.bench.load.recorder import Slice, Tally
from coffre.bench.load.result import ALL, PERCENTILES, LoadResult, supported
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
    changes = [change for cell in _cells(before, after) for change in _changes(before, after, *cell)]
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


# ---------------------------------------------------------------- quantities


def _quantities(tally: Tally, seconds: float) -> dict[str, float | None]:
    """What is compared, of a tally over so many seconds."""
    found: dict[str, float | None] = {"op/s": tally.done / seconds}
    for name in ("p50", "p99"):
        known = supported(PERCENTILES[name], tally.done)
        found[name] = tally.latencies.percentile(PERCENTILES[name]) if known else None
    return found


class _Sample:
    """One operation and class of one run, over its measured time and in batches of it."""

    def __init__(self, result: LoadResult, operation: Operation, kind: str) -> None:
        self._intervals, self._interval_s = (
            int(result.seconds / result.plan.interval_s),
            result.plan.interval_s,
        )

        def place(each: Slice) -> int | None:
            interval = each.interval - result.first_interval
            is_in = (
                0 <= interval < self._intervals and each.operation is operation and kind in (ALL, each.kind)
            )
            return interval if is_in else None

        self._tallies = result.timeline.tallies(place)
        self.values = _quantities(self._sum(0, self._intervals), result.seconds)
        self._batches = {count: self._cut(count) for count in _STUDENT}

    def _cut(self, count: int) -> list[dict[str, float | None]]:
        """So many batches of equal length. What is left at the end is in none."""
        size = self._intervals // count
        seconds = size * self._interval_s
        batches = (self._sum(number * size, (number + 1) * size) for number in range(count))
        return [_quantities(batch, seconds) for batch in batches] if size else []

    def _sum(self, first: int, after: int) -> Tally:
        found = Tally()
        for interval, each in self._tallies.items():
            if first <= interval < after:
                found.add(each)
        return found

    def noise(self, quantity: str) -> float | None:
        """Half the width of the confidence interval of the mean over batches, as a share of that mean."""
        for count, student in _STUDENT.items():
            known = [value for each in self._batches[count] if (value := each[quantity])]
            if len(known) == count:
                return student * statistics.stdev(known) / math.sqrt(count) / statistics.mean(known)
        return None


def _changes(before: LoadResult, after: LoadResult, operation: Operation, kind: str) -> list[Change]:
    first, second = _Sample(before, operation, kind), _Sample(after, operation, kind)
    found = []
    for name, one in first.values.items():
        if one and (other := second.values[name]):
            ratio = other / one - 1
            # The relative errors of both sides of a quotient add up like the sides of a right triangle.
            errors = [each for each in (first.noise(name), second.noise(name)) if each is not None]
            noise = math.hypot(*errors) * (1 + ratio) if len(errors) == 2 else None
            verdict = _verdict(ratio, noise, more_is_better=name == "op/s")
            found.append(Change(operation, kind, name, one, other, ratio, noise, verdict))
    return found


def _verdict(ratio: float, noise: float | None, *, more_is_better: bool) -> Verdict:
    if noise is None:
        return Verdict.UNKNOWN
    if abs(ratio) <= noise:
        return Verdict.NOISE
    return Verdict.BETTER if (ratio > 0) is more_is_better else Verdict.WORSE


def _notes(before: LoadResult, after: LoadResult) -> list[str]:
    notes = []
    for name, first, second in (
        ("machine", before.machine, after.machine),
        ("seed", before.plan.seed, after.plan.seed),
        ("version", before.version, after.version),
        ("policy", before.cluster.policy, after.cluster.policy),
        ("nodes", before.cluster.nodes, after.cluster.nodes),
        ("seconds measured", before.seconds, after.seconds),
    ):
        if first != second:
            notes.append(f"{name} differs: {first} and {second}")
    for name, result in (("before", before), ("after", after)):
        if result.errors():
            listed = ", ".join(f"{count:,} {each}" for each, count in result.errors().items())
            notes.append(f"errors {name}: {listed}")
        if result.not_started:
            notes.append(f"{name}, {result.not_started:,} operations were due and never begun")
    return notes
