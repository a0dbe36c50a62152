"""The result of a run: everything that was counted, as one JSON file that the report and the comparison read."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from coffre.bench.files import write_whole
from coffre.bench.load.damage import DATA_ERRORS
from coffre.bench.load.facts import ClusterFacts, Counters
from coffre.bench.load.latency import Latencies
from coffre.bench.load.plan import LoadPlan
from coffre.bench.load.recorder import Slice, Tally, Timeline
from coffre.bench.load.workload import Operation
from coffre.bench.result import Machine
from coffre.cluster.errors import InvalidArgument

__all__ = [
    "ALL",
    "PERCENTILES",
    "Check",
    "Event",
    "LoadResult",
    "Row",
    "Usage",
    "read_result",
    "supported_percentiles",
    "write_result",
]

FORMAT = "coffre-load/1"
RESULT_BYTES_MAX = 256 << 20
PERCENTILES = (50.0, 90.0, 99.0, 99.9)
ALL = "all"


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
    """The measured part of a run, of one operation on one class, or on "all". Latencies in seconds."""

    operation: Operation
    kind: str
    done: int
    failed: int
    per_s: float
    bytes_per_s: float
    mean_s: float | None
    percentiles_s: Mapping[float, float]  # those that there are enough operations for
    max_s: float | None


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

    def rows(self) -> list[Row]:
        """Of each operation: all its classes together, then each one when there are several."""
        found = []
        order = [kind.name for kind in self.plan.parsed_workload().classes]
        for operation in Operation:
            kinds = [kind for each, kind in self.timeline.cells() if each is operation]
            kinds.sort(key=lambda kind: order.index(kind) if kind in order else len(order))
            for kind in [ALL, *(kinds if len(kinds) > 1 else [])] if kinds else []:
                row = self._row(operation, kind)
                if row.done or row.failed:
                    found.append(row)
        return found

    def _row(self, operation: Operation, kind: str) -> Row:
        def chosen(each: Slice) -> bool:
            return each.operation is operation and kind in (ALL, each.kind)

        tally = self.measured(chosen)
        # A rate is of what ended in the measured time; what ended later has its place in the percentiles alone.
        late = self.measured(lambda each: chosen(each) and each.interval >= self.plan.end_interval)
        percentiles_s, max_s = supported_percentiles(tally.latencies)
        return Row(
            operation,
            kind,
            tally.done,
            tally.failed,
            (tally.done - late.done) / self.seconds,
            (tally.size_bytes - late.size_bytes) / self.seconds,
            tally.latencies.mean_s if tally.done else None,
            percentiles_s,
            max_s,
        )

    def measured(self, chosen: Callable[[Slice], bool] = lambda _: True) -> Tally:
        """The sum over the measured part: after the ramp, but everything when it was a count that ended the run."""
        first = 0 if self.plan.count is not None else self.plan.ramp_intervals
        return self.timeline.tally(lambda each: each.interval >= first and chosen(each))

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
        return {
            "format": FORMAT,
            "version": self.version,
            "time": self.time.isoformat(timespec="seconds"),
            "seed": self.plan.seed,
            "machine": asdict(self.machine),
            "cluster": asdict(self.cluster),
            "plan": self.plan.to_json(),
            "seconds": self.seconds,
            "data_errors": self.data_errors,
            "errors": self.errors(),
            "examples": list(self.examples),
            "not_started": self.not_started,
            "check": None if self.check is None else asdict(self.check),
            "usage": asdict(self.usage),
            "rows": [_row_json(row) for row in self.rows()],
            "events": [asdict(event) for event in self.events],
            "lag": None if self.lag is None else self.lag.encode(),
            "slices": [each.to_json() for each in self.timeline.slices()],
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LoadResult:
        """Raises `InvalidArgument` when it is not a result of this format."""
        if content.get("format") != FORMAT:
            raise InvalidArgument(f"not a result of the format {FORMAT}")
        try:
            usage, check = content["usage"], content["check"]
            return cls(
                version=content["version"],
                time=datetime.fromisoformat(content["time"]),
                machine=Machine(**content["machine"]),
                plan=LoadPlan.from_json(content["plan"]),
                cluster=ClusterFacts(**content["cluster"]),
                usage=Usage(
                    tuple(usage["client_cpu_s"]),
                    Counters(**usage["before"]),
                    Counters(**usage["after"]),
                    usage["elapsed_s"],
                ),
                seconds=float(content["seconds"]),
                not_started=content["not_started"],
                lag=None if content["lag"] is None else Latencies.decode(content["lag"]),
                timeline=Timeline(map(Slice.from_json, content["slices"])),
                check=None if check is None else Check(**check),
                events=tuple(Event(**event) for event in content["events"]),
                examples=tuple(content["examples"]),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgument(f"a result that is not in order: {type(error).__name__} {error}") from None


def supported_percentiles(latencies: Latencies) -> tuple[Mapping[float, float], float | None]:
    """Those percentiles that at least one operation lies beyond, and the maximum, in seconds."""
    if not latencies.count:
        return {}, None
    *values, max_s = latencies.percentiles([*PERCENTILES, 100.0])
    found = zip(PERCENTILES, values, strict=True)
    return {each: value for each, value in found if latencies.count * (1 - each / 100) >= 0.999}, max_s


def _row_json(row: Row) -> dict[str, object]:
    content = asdict(row)
    content["operation"] = row.operation.value
    content["percentiles_s"] = {f"p{each:g}": value for each, value in row.percentiles_s.items()}
    return content


def write_result(path: Path, result: LoadResult) -> None:
    """Write it, all or nothing. Raises `ConfigurationError`."""
    write_whole(path, json.dumps(result.to_json(), allow_nan=False) + "\n")


def read_result(path: Path) -> LoadResult:
    """Raises `InvalidArgument` for a file that holds no result."""
    try:
        if path.stat().st_size > RESULT_BYTES_MAX:
            raise InvalidArgument(f"{path} is larger than any result")
        content = json.loads(path.read_text("utf-8"))
    except OSError as error:
        raise InvalidArgument(f"cannot read {path}: {error.strerror}") from None
    except ValueError:
        raise InvalidArgument(f"{path} is not JSON") from None
    if not isinstance(content, dict):
        raise InvalidArgument(f"{path}: not a result of the format {FORMAT}")
    try:
        return LoadResult.from_json(content)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error}") from None
