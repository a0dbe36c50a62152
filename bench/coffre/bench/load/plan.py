"""What one run shall do, as it travels to the client processes and into the result."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from coffre.bench.load.content import Texture
from coffre.bench.load.workload import (
    HEALTH,
    HEALTH_WITHOUT_ARCHIVES,
    Mix,
    Workload,
    fixed,
    parse_mix,
)
from coffre.cluster.errors import InvalidArgument

__all__ = ["INTERVALS_MAX", "LoadPlan"]

INTERVALS_MAX = 600
SHORT_S = 20.0
COUNT_MAX = 1 << 26
PROCESSES_MAX = 256
IN_FLIGHT_MAX = 1 << 16
DURATION_S_MAX = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """One run. `rate_per_s` makes it an open loop; without it `in_flight` callers make a closed one."""

    bucket: str
    prefix: str  # of all keys of this run
    seed: int
    workload: str  # "health", "health-without-archives" or "fixed"
    size_bytes: int  # fixed: of every object
    texture: str  # fixed: what they look like
    mix: str
    objects: int  # stored before the run, for reads
    range_bytes: int
    processes: int
    in_flight: int  # over all processes; in an open loop: at most so many
    rate_per_s: float | None
    ramp_s: float
    duration_s: float  # beyond the ramp; with a count: at most
    count: int | None  # operations over all processes

    def __post_init__(self) -> None:
        _require(1 <= self.processes <= PROCESSES_MAX, f"1 to {PROCESSES_MAX} processes")
        _require(
            self.processes <= self.in_flight <= IN_FLIGHT_MAX,
            f"in flight: from one per process to {IN_FLIGHT_MAX}",
        )
        _require(0 < self.duration_s <= DURATION_S_MAX, "a run lasts more than 0 s and at most a week")
        _require(0 <= self.ramp_s <= DURATION_S_MAX, "a ramp lasts 0 s to a week")
        _require(
            self.rate_per_s is None or 0 < self.rate_per_s <= 1e6, "a rate is above 0 and at most 10^6/s"
        )
        _require(
            self.count is None or self.processes <= self.count <= COUNT_MAX,
            f"a count is at least one operation per process, and at most {COUNT_MAX}",
        )
        _require(0 < self.objects <= 10**8, "the run needs at least one object to read")
        _require(self.range_bytes > 0, "a range has at least one byte")
        parse_mix(self.mix)
        self.parsed_workload()

    def parsed_workload(self) -> Workload:
        """Raises `InvalidArgument` for a name that is none."""
        match self.workload:
            case "health":
                return HEALTH
            case "health-without-archives":
                return HEALTH_WITHOUT_ARCHIVES
            case "fixed":
                return fixed(self.size_bytes, Texture(self.texture))
            case other:
                raise InvalidArgument(f"{other!r} is not a workload")

    def parsed_mix(self) -> Mix:
        return parse_mix(self.mix)

    @property
    def interval_s(self) -> float:
        """How fine the timeline is: 0.25 s for a short run, then a second, then what makes 600 of them."""
        planned_s = self.ramp_s + self.duration_s
        return 0.25 if planned_s <= SHORT_S else max(1.0, math.ceil(planned_s / INTERVALS_MAX))

    @property
    def ramp_intervals(self) -> int:
        """The ramp in whole intervals; what ends in them is in the timeline but in no total."""
        return math.ceil(self.ramp_s / self.interval_s)

    @property
    def end_interval(self) -> int:
        """The first interval after the run; what ends in it or later was begun, or due, during the run."""
        return self.ramp_intervals + math.ceil(self.duration_s / self.interval_s)

    def compared(self) -> dict[str, object]:
        """What two runs must share for their figures to be comparable."""
        return {
            "workload": self.parsed_workload().described(),
            "mix": str(self.parsed_mix()),
            "objects": self.objects,
            "range bytes": self.range_bytes,
            "processes": self.processes,
            "in flight": self.in_flight,
            "rate per second": self.rate_per_s,
        }

    def to_json(self) -> dict[str, object]:
        return asdict(self)

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> LoadPlan:
        """Raises `InvalidArgument` when a field is missing, unknown, or cannot be."""
        names = {field.name for field in fields(cls)}
        if content.keys() != names:
            raise InvalidArgument(f"a plan has the fields {', '.join(sorted(names))}")
        try:
            return cls(**content)
        except (TypeError, ValueError) as error:
            raise InvalidArgument(f"this is not a plan: {error}") from None


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise InvalidArgument(message)
