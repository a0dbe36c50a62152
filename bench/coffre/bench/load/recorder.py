"""What came of the operations: counted in a client process per interval, and summed up over processes.

An operation belongs to the interval that it ended in, so an interval that is over does not change any more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from coffre.bench.load.latency import Latencies
from coffre.bench.load.workload import Operation
from coffre.cluster.errors import InvalidArgument

__all__ = ["Recorder", "Slice", "Tally", "Timeline"]


@dataclass(frozen=True, slots=True)
class Slice:
    """One operation on one class of objects in one interval. `latencies` is an encoded histogram, of successes only."""

    interval: int
    operation: Operation
    kind: str
    size_bytes: int
    errors: Mapping[str, int]
    latencies: str | None

    def to_json(self) -> list[object]:
        """A list, in the order of the fields: a long run has many."""
        return [
            *(self.interval, self.operation.value, self.kind, self.size_bytes),
            *(dict(self.errors), self.latencies),
        ]

    @classmethod
    def from_json(cls, row: Any) -> Slice:
        """Raises `InvalidArgument`."""
        match row:
            case [
                int(interval),
                str(operation),
                str(kind),
                int(size),
                dict(errors),
                str() | None as latencies,
            ]:
                try:
                    return cls(interval, Operation(operation), kind, size, errors, latencies)
                except ValueError:
                    pass
        raise InvalidArgument("a slice of the timeline is not in order")


@dataclass(slots=True)
class Tally:
    """A sum of slices. `size_bytes` are those of the successes."""

    size_bytes: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    latencies: Latencies = field(default_factory=Latencies)

    def include(self, part: Slice) -> None:
        """Add one slice."""
        self.size_bytes += part.size_bytes
        self.errors.update(part.errors)
        if part.latencies is not None:
            self.latencies.add(Latencies.decode(part.latencies))

    @property
    def done(self) -> int:
        return self.latencies.count

    @property
    def failed(self) -> int:
        return self.errors.total()


class Recorder:
    """Counts in one client process. Only the current interval is kept; `take` hands over those that are over."""

    def __init__(self, start: float, interval_s: float) -> None:
        """`start` is a reading of the monotonic clock."""
        self._start = start
        self._interval_s = interval_s
        self._tallies: dict[tuple[int, Operation, str], Tally] = {}
        self.lag = Latencies()  # open loop: from when an operation was due until it was begun
        self.last = start

    def _tally(self, ended: float, operation: Operation, kind: str) -> Tally:
        interval = max(0, int((ended - self._start) / self._interval_s))
        self.last = max(self.last, ended)
        return self._tallies.setdefault((interval, operation, kind), Tally())

    def succeeded(
        self, operation: Operation, kind: str, *, since: float, ended: float, size_bytes: int
    ) -> None:
        """Count a success; both times are readings of the monotonic clock."""
        tally = self._tally(ended, operation, kind)
        tally.latencies.record(ended - since)
        tally.size_bytes += size_bytes

    def failed(self, operation: Operation, kind: str, error: str, *, ended: float, count: int = 1) -> None:
        """Count failures by the class of the error."""
        self._tally(ended, operation, kind).errors[error] += count

    def take(self, now: float | None = None) -> list[Slice]:
        """What is over at `now`, or everything, in the order of time. It is forgotten here."""
        current = None if now is None else int((now - self._start) / self._interval_s)
        over = sorted(
            (key for key in self._tallies if current is None or key[0] < current),
            key=lambda key: (key[0], key[1].value, key[2]),
        )
        return [_slice(*key, self._tallies.pop(key)) for key in over]


def _slice(interval: int, operation: Operation, kind: str, tally: Tally) -> Slice:
    encoded = tally.latencies.encode() if tally.done else None
    return Slice(interval, operation, kind, tally.size_bytes, dict(tally.errors), encoded)


class Timeline:
    """The slices of all processes, those of the same place summed up. Histograms stay encoded: they are small so."""

    def __init__(self, slices: Iterable[Slice] = ()) -> None:
        self._slices: dict[tuple[int, Operation, str], Slice] = {}
        for each in slices:
            self.add(each)

    def add(self, new: Slice) -> None:
        """Sum one up with what is there."""
        key = (new.interval, new.operation, new.kind)
        old = self._slices.get(key)
        if old is not None:
            tally = _sum([old, new])
            new = _slice(*key, tally)
        self._slices[key] = new

    def slices(self) -> list[Slice]:
        """All, in the order of time."""
        return [
            self._slices[key] for key in sorted(self._slices, key=lambda key: (key[0], key[1].value, key[2]))
        ]

    def cells(self) -> list[tuple[Operation, str]]:
        """Operations and classes that occur, operations in their usual order."""
        order = list(Operation)
        found = {(each.operation, each.kind) for each in self._slices.values()}
        return sorted(found, key=lambda cell: (order.index(cell[0]), cell[1]))

    def tally(self, chosen: Callable[[Slice], bool] = lambda _: True) -> Tally:
        """The sum of the slices that are chosen."""
        return _sum(each for each in self._slices.values() if chosen(each))


def _sum(slices: Iterable[Slice]) -> Tally:
    tally = Tally()
    for each in slices:
        tally.include(each)
    return tally
