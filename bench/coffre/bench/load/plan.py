"""What one run shall do, as it is asked for, and as it travels to the client processes and into the result.

Load consists of operations by weight, and of objects by class and size, all from the seed."""

from __future__ import annotations

import math
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from hashlib import blake2b
from itertools import accumulate
from typing import Any

from coffre.bench.load.content import Texture
from coffre.cluster.errors import InvalidArgument

__all__ = [
    "CLOSED_IN_FLIGHT",
    "HEALTH",
    "HEALTH_WITHOUT_ARCHIVES",
    "OPEN_IN_FLIGHT",
    "LoadPlan",
    "Mix",
    "ObjectSpec",
    "Operation",
    "SizeClass",
    "Workload",
    "fixed",
    "parse_mix",
    "parse_size",
]

_UNITS = {"": 1, "b": 1}
_UNITS |= {f"{prefix}b": 1000**power for power, prefix in enumerate("kmg", start=1)}
_UNITS |= {f"{prefix}ib": 1024**power for power, prefix in enumerate("kmg", start=1)}
_SIZE = re.compile(r"(?P<number>[0-9]+(?:\.[0-9]+)?) ?(?P<unit>[A-Za-z]*)")


class Operation(Enum):
    """What is done to the cluster."""

    PUT = "put"
    GET = "get"
    RANGE = "range"
    HEAD = "head"
    LIST = "list"
    DELETE = "delete"


@dataclass(frozen=True, slots=True)
class SizeClass:
    """One kind of object. Sizes are log-uniform from the least to the most, or one of a few."""

    name: str
    weight: float
    texture: Texture
    bytes_min: int = 0
    bytes_max: int = 0
    sizes: tuple[int, ...] = ()  # instead of the two above

    def size_bytes(self, chance: float) -> int:
        """The size at a point of the distribution, 0 <= chance < 1."""
        if self.sizes:
            return self.sizes[int(chance * len(self.sizes))]
        low, high = math.log(self.bytes_min), math.log(self.bytes_max)
        return round(math.exp(low + chance * (high - low)))


@dataclass(frozen=True, slots=True)
class ObjectSpec:
    """What the object of a key is."""

    kind: SizeClass
    size_bytes: int


class Workload:
    """Classes of objects by weight; which class and size a key has follows from the seed and the key."""

    def __init__(self, name: str, classes: Sequence[SizeClass]) -> None:
        self.name = name
        self.classes = tuple(classes)
        self._sums = list(accumulate(each.weight for each in self.classes))

    def spec(self, seed: int, key: str) -> ObjectSpec:
        """Class and size of the object of this key."""
        drawn = blake2b(f"{seed}/{key}".encode(), digest_size=16, person=b"coffre-load-spec").digest()
        which = int.from_bytes(drawn[:8], "big") / 2**64 * self._sums[-1]
        chance = int.from_bytes(drawn[8:], "big") >> 11  # 53 bits: exact as a float, and below 1
        kind = next(each for each, sum_ in zip(self.classes, self._sums, strict=True) if which < sum_)
        return ObjectSpec(kind, kind.size_bytes(chance / 2**53))

    def described(self) -> dict[str, object]:
        """Two results can be compared when this is the same."""
        return {"name": self.name, "classes": self.classes}


_EVERYDAY = (
    SizeClass("fhir", 60, Texture.RECORD, 500, 5_000),
    SizeClass("bundle", 20, Texture.RECORD, 5_000, 120_000),
    SizeClass("document", 5, Texture.DOCUMENT, 300_000, 5_000_000),
    SizeClass("mr-ct", 12, Texture.IMAGE, sizes=(138_000, 531_000)),
    SizeClass("cr", 2.5, Texture.IMAGE, 8_000_000, 25_000_000),
)
HEALTH_WITHOUT_ARCHIVES = Workload("health-without-archives", _EVERYDAY)
HEALTH = Workload(
    "health", (*_EVERYDAY, SizeClass("archive", 0.5, Texture.ARCHIVE, 64_000_000, 1_000_000_000))
)


def fixed(size_bytes: int, texture: Texture) -> Workload:
    """Objects of one size. Raises `InvalidArgument` for one that no object can have."""
    if not 0 <= size_bytes <= 1 << 40:
        raise InvalidArgument("an object has 0 bytes to 1 TiB")
    return Workload("fixed", (SizeClass(texture.value, 1, texture, sizes=(size_bytes,)),))


class Mix:
    """Operations by weight."""

    def __init__(self, weights: Mapping[Operation, float]) -> None:
        """Raises `InvalidArgument` when a weight is negative or no number, or all are zero."""
        if not all(math.isfinite(weight) and weight >= 0 for weight in weights.values()):
            raise InvalidArgument("a weight is a number, 0 or more")
        if not any(weights.values()):
            raise InvalidArgument("at least one operation needs a weight above 0")
        self.weights = {each: weights[each] for each in Operation if weights.get(each)}
        self._sums = list(accumulate(self.weights.values()))

    def draw(self, source: random.Random) -> Operation:
        """One operation by chance."""
        return source.choices(list(self.weights), cum_weights=self._sums)[0]

    def __str__(self) -> str:
        return ",".join(f"{each.value}={weight:g}" for each, weight in self.weights.items())


def parse_mix(text: str) -> Mix:
    """`put=20,get=70` as a mix. Raises `InvalidArgument`."""
    weights: dict[Operation, float] = {}
    for part in text.split(","):
        name, equals, weight = part.strip().partition("=")
        try:
            operation = Operation(name.strip())
            if not equals or operation in weights:
                raise ValueError
            weights[operation] = float(weight)
        except ValueError:
            known = ", ".join(each.value for each in Operation)
            raise InvalidArgument(
                f"{part.strip()!r} is not OPERATION=WEIGHT, each once; operations are {known}"
            ) from None
    return Mix(weights)


def parse_size(text: str) -> int:
    """`4KiB`, `1.5 MB` or `138000` in bytes. Raises `InvalidArgument`."""
    found = _SIZE.fullmatch(text.strip())
    if found is None or found["unit"].lower() not in _UNITS:
        raise InvalidArgument(f"{text!r} is not a size such as 4096, 4KiB or 1.5MB")
    return round(float(found["number"]) * _UNITS[found["unit"].lower()])


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
