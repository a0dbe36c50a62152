"""What each phase of a failure run was like, operation by operation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from coffre.bench.load.recorder import Slice
from coffre.bench.load.result import LoadResult, supported_percentiles
from coffre.bench.load.workload import Operation

__all__ = ["PhaseRow", "phase_rows"]


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """One operation in one phase. An operation belongs to the phase that it ended in."""

    phase: str
    operation: Operation
    done: int
    failed: int
    per_s: float
    percentiles_s: Mapping[float, float]
    max_s: float | None


def phase_rows(result: LoadResult) -> list[PhaseRow]:
    """Rows by phase, in order; none when nothing was done to the cluster."""
    interval_s, end = result.plan.interval_s, result.plan.end_interval
    firsts = [round(event.at_s / interval_s) for event in result.events]
    rows = []
    for event, first, after in zip(result.events, firsts, [*firsts[1:], None][: len(firsts)], strict=True):
        for operation in Operation:

            def chosen(
                each: Slice, operation: Operation = operation, first: int = first, after: int | None = after
            ) -> bool:
                within = first <= each.interval and (after is None or each.interval < after)
                return within and each.operation is operation

            tally = result.timeline.tally(chosen)
            if not tally.done and not tally.failed:
                continue
            late = result.timeline.tally(lambda each, chosen=chosen: chosen(each) and each.interval >= end)  # type: ignore[misc]
            percentiles_s, max_s = supported_percentiles(tally.latencies)
            seconds = ((end if after is None else after) - first) * interval_s
            rows.append(
                PhaseRow(
                    event.phase,
                    operation,
                    tally.done,
                    tally.failed,
                    (tally.done - late.done) / seconds,
                    percentiles_s,
                    max_s,
                )
            )
    return rows
