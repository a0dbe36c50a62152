"""What one run shall do, as it is asked for, and as it travels to the client processes and into the result."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
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

__all__ = ["CLOSED_IN_FLIGHT", "OPEN_IN_FLIGHT", "LoadPlan"]

CLOSED_IN_FLIGHT, OPEN_IN_FLIGHT = 16, 1024
INTERVALS_MAX = 600
SHORT_S = 20.0
COUNT_MAX = 1 << 26
PROCESSES_MAX = 256
IN_FLIGHT_MAX = 1 << 16
DURATION_S_MAX = 7 * 24 * 3600.0


def _asked(flag: str, default: Any, about: str, **more: object) -> Any:
    """A field that is an option of the command line, too."""
    return field(default=default, metadata={"flag": flag, "help": about, **more})


@dataclass(frozen=True, slots=True)
class LoadPlan:
    """One run. `rate_per_s` makes it an open loop; without it `in_flight` callers make a closed one.

    Raises `InvalidArgument` for what cannot be.
    """

    bucket: str
    prefix: str  # of all keys of this run
    duration_s: float  # beyond the ramp; with a count: at most
    count: int | None  # operations over all processes
    workload: str = _asked(
        "--workload",
        "health",
        "Objects of one size, or the mixture of a hospital.",
        choices=["fixed", "health"],  # or "health-without-archives"
    )
    size_bytes: int = _asked("--size", 4096, "Of fixed objects, such as 4KiB.")
    texture: str = _asked(
        "--content",
        "random",
        "What fixed objects look like to a compressor.",
        choices=[each.value for each in Texture],
    )
    mix: str = _asked("--mix", "put=20,get=70,range=5,head=3,list=1,delete=1", "Operations by weight.")
    range_bytes: int = _asked("--range-size", 65536, "Of a ranged get.")
    objects: int = _asked("--objects", 200, "Stored first, to be read.")
    rate_per_s: float | None = _asked(
        "--rate", None, "Open loop: operations per second, whatever the cluster does."
    )
    in_flight: int = _asked(
        "--in-flight",
        None,
        f"Callers of the closed loop ({CLOSED_IN_FLIGHT}); open loop: at most ({OPEN_IN_FLIGHT}).",
    )
    processes: int = _asked("--processes", 1, "Client processes that share the load.")
    ramp_s: float = _asked("--ramp", 0.0, "Seconds of growing load that are not measured.")
    seed: int = _asked("--seed", 1, "Of everything drawn.")

    def __post_init__(self) -> None:
        rate, count = self.rate_per_s, self.count
        possible = {
            f"1 to {PROCESSES_MAX} processes": 1 <= self.processes <= PROCESSES_MAX,
            f"in flight: from one per process to {IN_FLIGHT_MAX}": (
                self.processes <= self.in_flight <= IN_FLIGHT_MAX
            ),
            "a run lasts more than 0 s and at most a week": 0 < self.duration_s <= DURATION_S_MAX,
            "a ramp lasts 0 s to a week": 0 <= self.ramp_s <= DURATION_S_MAX,
            "a rate is above 0 and at most 10^6/s": rate is None or 0 < rate <= 1e6,
            f"a count is at least one operation per process, and at most {COUNT_MAX}": (
                count is None or self.processes <= count <= COUNT_MAX
            ),
            "the run needs at least one object to read": 0 < self.objects <= 10**8,
            "a range has at least one byte": self.range_bytes > 0,
            "a seed is 0 or more": self.seed >= 0,
        }
        for message, holds in possible.items():
            if not holds:
                raise InvalidArgument(message)
        parse_mix(self.mix)
        self.parsed_workload()

    def parsed_workload(self) -> Workload:
        """Raises `InvalidArgument` for a name that is none."""
        match self.workload:
            case "health":
                return HEALTH
            case "health-without-archives":
                return HEALTH_WITHOUT_ARCHIVES
            case "fixed" if self.texture in {each.value for each in Texture}:
                return fixed(self.size_bytes, Texture(self.texture))
        raise InvalidArgument(f"{self.workload!r} of {self.texture!r} is not a workload")

    def parsed_mix(self) -> Mix:
        """Raises `InvalidArgument` for what is none."""
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

    @property
    def measured_s(self) -> float:
        """Between the ramp and the end."""
        return (self.end_interval - self.ramp_intervals) * self.interval_s

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
