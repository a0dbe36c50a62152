"""What a node still has to look at: fewest good shards first, bounded, and what could not be repaired set aside."""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from coffre.cluster.clock import Clock
from coffre.cluster.names import ObjectName
from coffre.node.repair.scene import Task

__all__ = ["RepairQueue"]

QUEUE_MAX = 50_000
PARKED_MAX = 50_000
_PARK_SECONDS_MIN = 30.0
_PARK_SECONDS_MAX = 3600.0


@dataclass(slots=True)
class _Parked:
    reason: str
    until: float
    seconds: float


class RepairQueue:
    """What does not fit is found again in the next round."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._heap: list[tuple[int, int, Task]] = []
        self._names: set[ObjectName] = set()
        self._ticket = 0
        self._parked: dict[ObjectName, _Parked] = {}

    def __len__(self) -> int:
        return len(self._heap)

    @property
    def has_room(self) -> bool:
        """Whether another task may be put in."""
        return len(self._heap) < QUEUE_MAX

    def push(self, task: Task) -> bool:
        """Take a task, unless its name waits already or is parked. False when there is no room."""
        if task.name in self._names or self.is_parked(task.name):
            return True
        if not self.has_room:
            return False
        self._ticket += 1
        heapq.heappush(self._heap, (task.survivors, self._ticket, task))
        self._names.add(task.name)
        return True

    def is_parked(self, name: ObjectName) -> bool:
        """Whether the object failed before and its pause has not ended yet."""
        parked = self._parked.get(name)
        return parked is not None and self._clock.monotonic() < parked.until

    def pop(self, count: int) -> list[Task]:
        """The most urgent tasks."""
        tasks = [heapq.heappop(self._heap)[2] for _ in range(min(count, len(self._heap)))]
        self._names.difference_update(task.name for task in tasks)
        return tasks

    def park(self, task: Task, reason: str) -> None:
        """Set a name aside for a while, which doubles each time."""
        before = self._parked.pop(task.name, None)
        if len(self._parked) >= PARKED_MAX:
            self._parked.pop(next(iter(self._parked)))
        seconds = _PARK_SECONDS_MIN if before is None else min(before.seconds * 2, _PARK_SECONDS_MAX)
        self._parked[task.name] = _Parked(reason, self._clock.monotonic() + seconds, seconds)

    def done(self, task: Task) -> None:
        """The task succeeded: what it was parked for is forgotten."""
        self._parked.pop(task.name, None)

    def unpark(self) -> None:
        """Try everything again: something has changed that may help."""
        self._parked.clear()

    def by_spare_shards(self, k: int) -> Mapping[int, int]:
        """How many names wait, by their good shards beyond k."""
        return Counter(survivors - k for survivors, _, _ in self._heap)

    def parked_by_reason(self) -> Mapping[str, int]:
        """How many objects are parked, by the reason that was given."""
        return Counter(parked.reason for parked in self._parked.values())
