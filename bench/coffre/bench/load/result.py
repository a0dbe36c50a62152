"""The result of a run: everything that was counted, as one JSON file that the report and the comparison read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from coffre.bench.load.content import DATA_ERRORS
from coffre.bench.load.plan import LoadPlan, Operation
from coffre.bench.load.recorder import Latencies, Slice, Tally, Timeline
from coffre.bench.result import Machine
from coffre.bench.typed_json import decoded, plain
from coffre.cluster.errors import InvalidArgument
from coffre.cluster.map import ClusterMap, NodeState
from coffre.dev.files import write_whole

__all__ = [
    "ALL",
    "PERCENTILES",
    "Check",
    "ClusterFacts",
    "Counters",
    "Event",
    "LoadResult",
    "PhaseRow",
    "Row",
    "Usage",
    "read_result",
    "write_result",
]

FORMAT = "coffre-load/1"
RESULT_BYTES_MAX = 256 << 20
PERCENTILES = {"p50": 50.0, "p90": 90.0, "p99": 99.0, "p99.9": 99.9}
ALL = "all"


@dataclass(frozen=True, slots=True)
class ClusterFacts:
    """The cluster map, in short."""

    cluster_id: str
    epoch: int
    nodes: int
    sites: int
    operators: int
    policy: str
    k: int
    m: int

    @classmethod
    def of(cls, cluster_map: ClusterMap) -> ClusterFacts:
        """Of the nodes that are still in it, and its default policy."""
        nodes = [node for node in cluster_map.nodes if node.state is not NodeState.REMOVED]
        policy = cluster_map.policy()
        return cls(
            cluster_map.cluster_id,
            cluster_map.epoch,
            len(nodes),
            len({node.site for node in nodes}),
            len({node.operator for node in nodes}),
            policy.name,
            policy.k,
            policy.m,
        )


@dataclass(frozen=True, slots=True)
class Counters:
    """Sums over the nodes that answered. None: nobody could be asked."""

    answering: int | None = None
    syncs: int | None = None
    objects: int | None = None
    live_bytes: int | None = None
    disk_bytes: int | None = None
    cpu_s: float | None = None  # of the node processes on this machine


@dataclass(frozen=True, slots=True)
class Usage:
    """What the run took, its ramp and its last operations included."""

    client_cpu_s: tuple[float, ...]  # by process
    before: Counters  # of the cluster
    after: Counters
    elapsed_s: float

    def spent(self, counter: str) -> float | None:
        """What a counter grew by; None when it is not known, or a node was started again meanwhile."""
        before, after = getattr(self.before, counter), getattr(self.after, counter)
        return None if before is None or after is None or after < before else after - before


@dataclass(frozen=True, slots=True)
class Check:
    """The read-back at the end of everything that was written during the run."""

    checked: int
    errors: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Event:
    """Something that was done to the cluster. What follows is the phase of this name, until the next event."""

    at_s: float  # from the start of the run, its ramp included
    phase: str
    what: str


@dataclass(frozen=True, slots=True)
class Row:
    """A stretch of a run, of one operation on one class, or on "all". Latencies in seconds."""

    operation: Operation
    kind: str
    done: int
    failed: int
    per_s: float
    bytes_per_s: float
    mean_s: float | None
    percentiles_s: Mapping[str, float]  # by their names, those that at least one operation lies beyond
    max_s: float | None


@dataclass(frozen=True, slots=True)
class PhaseRow:
    """One operation in one phase, and in the first phase when this is a later one.

    An operation belongs to the phase that it ended in. The ratios are to the first phase: 2.0 is twice as many, or
    twice as slow.
    """

    phase: str
    row: Row
    steady: Row | None

    @property
    def per_s_ratio(self) -> float | None:
        """None when there is nothing to compare with."""
        return self.row.per_s / self.steady.per_s if self.steady and self.steady.per_s else None

    @property
    def p99_ratio(self) -> float | None:
        """None when one of the two is not known."""
        high_s, steady_s = (row and row.percentiles_s.get("p99") for row in (self.row, self.steady))
        return high_s / steady_s if high_s and steady_s else None


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One run. `seconds` is how long the measured part was: the ramp is not in it, nor in any row."""

    version: str
    time: datetime
    machine: Machine
    plan: LoadPlan
    cluster: ClusterFacts
    usage: Usage
    seconds: float
    not_started: int  # open loop: due during the run, and never begun
    lag: Latencies | None  # open loop: from when operations were due until they were begun
    timeline: Timeline
    check: Check | None
    events: tuple[Event, ...]
    examples: tuple[str, ...]  # of wrong or lost data

    @property
    def first_interval(self) -> int:
        """Of the measured part: after the ramp, but from the start when it was a count that ended the run."""
        return 0 if self.plan.count is not None else self.plan.ramp_intervals

    def rows(self) -> list[Row]:
        """Of each operation: all its classes together, then each one when there are several."""
        found, cells = [], self.timeline.cells()
        order = [kind.name for kind in self.plan.parsed_workload().classes]
        for operation in Operation:
            kinds = [kind for each, kind in cells if each is operation]
            kinds.sort(key=lambda kind: order.index(kind) if kind in order else len(order))
            for kind in [ALL, *(kinds if len(kinds) > 1 else [])] if kinds else []:
                found.append(self._row(operation, kind, self.first_interval, None, self.seconds))
        return [row for row in found if row.done or row.failed]

    def phase_rows(self) -> list[PhaseRow]:
        """Rows by phase, in order; none when nothing was done to the cluster. What ended late is of the last phase."""
        interval_s, found = self.plan.interval_s, []
        steady: dict[Operation, Row] = {}
        firsts: list[int] = [round(event.at_s / interval_s) for event in self.events]
        for event, first, end in zip(
            self.events, firsts, [*firsts[1:], self.plan.end_interval], strict=False
        ):
            after = None if event is self.events[-1] else end
            for operation in Operation:
                row = self._row(operation, ALL, first, after, (end - first) * interval_s)
                if row.done or row.failed:
                    found.append(PhaseRow(event.phase, row, steady.get(operation)))
                    steady.setdefault(operation, row)
        return found

    def _row(self, operation: Operation, kind: str, first: int, after: int | None, seconds: float) -> Row:
        def chosen(each: Slice) -> bool:
            within = first <= each.interval and (after is None or each.interval < after)
            return within and each.operation is operation and kind in (ALL, each.kind)

        tally = self.timeline.tally(chosen)
        # A rate is of what ended in the measured time; what ended later has its place in the percentiles alone.
        late = self.timeline.tally(lambda each: chosen(each) and each.interval >= self.plan.end_interval)
        # A phase that began late on a busy machine may have no time of its own.
        per_second = 1 / seconds if seconds > 0 else 0.0
        return Row(
            operation,
            kind,
            tally.done,
            tally.failed,
            (tally.done - late.done) * per_second,
            (tally.size_bytes - late.size_bytes) * per_second,
            tally.latencies.mean_s if tally.done else None,
            {
                name: tally.latencies.percentile(percentile)
                for name, percentile in PERCENTILES.items()
                if tally.done and supported(percentile, tally.done)
            },
            tally.latencies.percentile(100.0) if tally.done else None,
        )

    def measured(self, chosen: Callable[[Slice], bool] = lambda _: True) -> Tally:
        """The sum over the measured part."""
        return self.timeline.tally(lambda each: each.interval >= self.first_interval and chosen(each))

    def errors(self) -> Mapping[str, int]:
        """Errors of the whole run and of the check by class; nothing is left out, not even the ramp."""
        found = self.timeline.tally().errors
        if self.check is not None:
            found.update(self.check.errors)
        return dict(found)

    @property
    def data_errors(self) -> int:
        """How often data was wrong or lost. Anything but 0 makes the run fail."""
        return sum(count for name, count in self.errors().items() if name in DATA_ERRORS)

    def to_json(self) -> dict[str, object]:
        """All fields, and what follows from them, for those who read the file without this program."""
        content: dict[str, object] = plain(self, _encoded)
        content["slices"] = content.pop("timeline")
        return content | {
            "format": FORMAT,
            "seed": self.plan.seed,
            "data_errors": self.data_errors,
            "errors": self.errors(),
            "rows": plain(self.rows()),
        }


def supported(percentile: float, count: int) -> bool:
    """Whether at least one of so many operations lies beyond the percentile."""
    return count * (1 - percentile / 100) >= 0.999


def _encoded(value: Timeline | Latencies) -> object:
    return plain(value.slices()) if isinstance(value, Timeline) else value.encode()


def _decoded(kind: type, content: Any) -> object:
    if kind is Timeline:
        return Timeline(decoded(list[Slice], content))
    return Latencies.decode(decoded(str, content))


def write_result(path: Path, result: LoadResult) -> None:
    """Write it, all or nothing. Raises `ConfigurationError`."""
    write_whole(path, json.dumps(result.to_json(), allow_nan=False) + "\n")


def read_result(path: Path) -> LoadResult:
    """Raises `InvalidArgument` for a file that holds no result."""
    try:
        if path.stat().st_size > RESULT_BYTES_MAX:
            raise InvalidArgument("larger than any result")
        content = json.loads(path.read_text("utf-8"))
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise InvalidArgument("it does not say so")
        return decoded(LoadResult, {**content, "timeline": content.get("slices")}, _decoded)
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise InvalidArgument(f"{path} is not JSON") from None
    except InvalidArgument as error:
        raise InvalidArgument(f"{path} holds no result of the format {FORMAT}: {error}") from None
