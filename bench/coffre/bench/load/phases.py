"""What each phase of a failure run was like, operation by operation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from coffre.bench.load.recorder import Slice
from coffre.bench.load.result import LoadResult, supported_percentiles
from coffre.bench.load.workload import Operation

__all__ = ["PhaseRow", "phase_rows"]


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """One operation in one phase. An operation belongs to the phase that it ended in.

    The ratios are to the first phase: 2.0 is twice as many, or twice as slow.
    """

    phase: str
    operation: Operation
    done: int
    failed: int
    per_s: float
    per_s_ratio: float | None
    percentiles_s: Mapping[float, float]
    p99_ratio: float | None
    max_s: float | None


def phase_rows(result: LoadResult) -> list[PhaseRow]:
    """Rows by phase, in order; none when nothing was done to the cluster."""
    steady: dict[Operation, PhaseRow] = {}
    rows = []
    for phase, first, after in _stretches(result):
        for operation in Operation:
            row = _row(result, phase, first, after, operation, steady.get(operation))
            if row is not None:
                steady.setdefault(operation, row)
                rows.append(row)
    return rows


def _stretches(result: LoadResult) -> Iterator[tuple[str, int, int | None]]:
    """Name, first interval, and first interval after it, of each phase; what ended late is of the last one."""
    firsts = [round(event.at_s / result.plan.interval_s) for event in result.events]
    for number, event in enumerate(result.events):
        yield event.phase, firsts[number], firsts[number + 1] if number + 1 < len(firsts) else None


def _row(
    result: LoadResult,
    phase: str,
    first: int,
    after: int | None,
    operation: Operation,
    steady: PhaseRow | None,
) -> PhaseRow | None:
    end = result.plan.end_interval

    def chosen(each: Slice) -> bool:
        within = first <= each.interval and (after is None or each.interval < after)
        return within and each.operation is operation

    tally = result.timeline.tally(chosen)
    if not tally.done and not tally.failed:
        return None
    late = result.timeline.tally(lambda each: chosen(each) and each.interval >= end)
    seconds = ((end if after is None else after) - first) * result.plan.interval_s
    per_s = (tally.done - late.done) / seconds
    percentiles_s, max_s = supported_percentiles(tally.latencies)
    high_s, steady_s = percentiles_s.get(99.0), steady.percentiles_s.get(99.0) if steady else None
    return PhaseRow(
        phase=phase,
        operation=operation,
        done=tally.done,
        failed=tally.failed,
        per_s=per_s,
        per_s_ratio=per_s / steady.per_s if steady and steady.per_s else None,
        percentiles_s=percentiles_s,
        p99_ratio=high_s / steady_s if high_s and steady_s else None,
        max_s=max_s,
    )
