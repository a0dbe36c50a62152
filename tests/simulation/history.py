"""What clients did and saw, in the order in which it began and ended."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

__all__ = ["NEVER", "History", "Kind", "Operation"]

NEVER = 1 << 60  # when what nobody knows the outcome of ends


class Kind(enum.Enum):
    """What an operation does to a register. Values are numbers, None is "does not exist"."""

    PUT = "put"
    DELETE = "delete"
    READ = "read"
    SWAP = "swap"  # put `value` if the register holds `expected`


@dataclass(slots=True)
class Operation:
    """One operation on one key. `began` and `ended` count the events of a run, so no two are equal."""

    kind: Kind
    key: str
    who: str
    began: int
    value: int | None = None  # that is written, or was read
    expected: int | None = None  # of a swap
    refused: bool = False  # a swap that found another value
    ended: int = NEVER
    what: str = ""  # the call that it was part of, for people
    seconds: float = 0.0  # of the world, when it ended

    @property
    def known(self) -> bool:
        """Whether it happened for sure. What is not known may have happened at any time, or never."""
        return self.ended != NEVER

    def __str__(self) -> str:
        end = str(self.ended) if self.known else "?"
        text = {
            Kind.PUT: f"put {self.value}",
            Kind.DELETE: "delete",
            Kind.READ: f"read {self.value}",
            Kind.SWAP: f"swap {self.expected} for {self.value}{', refused' if self.refused else ''}",
        }[self.kind]
        return f"[{self.began:5} .. {end:>5}] {self.who:10} {text}{f' ({self.what})' if self.what else ''}"


@dataclass(slots=True)
class History:
    """Operations that happened, or may have happened. What failed for sure leaves no trace: nobody may see it."""

    time: Callable[[], float]
    operations: list[Operation] = field(default_factory=list)
    _events: int = 0

    def tick(self) -> int:
        """The number of the next event."""
        self._events += 1
        return self._events

    def begin(self, kind: Kind, key: str, who: str, value: int | None = None, what: str = "") -> Operation:
        """An operation that begins now. Its outcome is not known until `end` or `drop`."""
        operation = Operation(kind, key, who, self.tick(), value, what=what)
        self.operations.append(operation)
        return operation

    def end(self, operation: Operation) -> None:
        """It has happened."""
        operation.ended = self.tick()
        operation.seconds = self.time()

    def drop(self, operation: Operation) -> None:
        """It has failed and changed nothing, or was a read that returned nothing."""
        self.operations.remove(operation)

    def read(self, key: str, who: str, value: int | None, began: int, what: str) -> None:
        """A read that was part of a call which began at event `began` and ends now."""
        operation = Operation(Kind.READ, key, who, began, value, what=what)
        self.end(operation)
        self.operations.append(operation)

    def by_key(self) -> Iterator[tuple[str, list[Operation]]]:
        keys = sorted({operation.key for operation in self.operations})
        for key in keys:
            yield key, [operation for operation in self.operations if operation.key == key]
