"""Whether a history of one register is linearizable.

It is when each operation can have taken effect at one instant between its beginning and its end, so that each read saw
what the last write before it wrote.

The search is that of Wing and Gong, "Testing and Verifying Concurrent Objects" (1993): take any operation that no other
one must precede, try it, and go back when that leads nowhere; with the memory of Lowe, "Testing for Linearizability"
(2017): a set of operations that are done and a value are tried once. Linearizability is local (Herlihy and Wing, 1990),
so each key is searched alone.

Four shortcuts keep it small, all sound. An operation that can change nothing (a read, a refused swap) is taken as soon
as it fits, since it stands in nobody's way. A write of unknown outcome is taken only where another operation can notice
it at once: one that nobody notices need not have happened, and the first to notice it can come right behind it. And of
several deletes of unknown outcome the earliest is tried, since it can do what any other can.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace

from tests.simulation.history import NEVER, Kind, Operation

__all__ = ["Undecided", "is_linearizable", "shortest_violation"]

STEPS_MAX = 500_000


class Undecided(Exception):
    """The search took more steps than it may."""


def is_linearizable(operations: Sequence[Operation], steps_max: int = STEPS_MAX) -> bool:
    """Whether a register that holds None at first can have done all of `operations`, which are of one key.

    Those whose outcome is unknown may take effect at any time after their beginning, or never. Raises `Undecided`.
    """
    return _Search(_that_matter(operations)).run(steps_max)


def _that_matter(operations: Sequence[Operation]) -> list[Operation]:
    """The operations in the order of their beginning, without unknown writes that nobody can have noticed."""
    seen = {op.value for op in operations if op.kind is Kind.READ}
    swaps = any(op.kind is Kind.SWAP for op in operations)
    return sorted(
        (op for op in operations if op.known or swaps or op.kind is not Kind.PUT or op.value in seen),
        key=lambda op: op.began,
    )


class _Search:
    """Depth first over (set of operations that are done, value of the register)."""

    def __init__(self, operations: list[Operation]) -> None:
        self._operations = operations
        self._required = sum(1 << place for place, op in enumerate(operations) if op.known)
        self._finders = _finders(operations)

    def run(self, steps_max: int) -> bool:
        seen: set[tuple[int, int | None]] = set()
        stack: list[tuple[int, int | None]] = [(0, None)]
        while stack:
            done, value = stack.pop()
            if done & self._required == self._required:
                return True
            if (done, value) in seen:
                continue
            seen.add((done, value))
            if len(seen) > steps_max:
                raise Undecided(f"no answer after {steps_max} steps")
            stack += self._next(done, value)
        return False

    def _next(self, done: int, value: int | None) -> list[tuple[int, int | None]]:
        """What can come next, the most likely last."""
        awaited = self._finders.get(value, 0) & ~done
        choices: list[tuple[int, int | None]] = []
        doubtful: list[tuple[int, int | None]] = []
        places = self._candidates(done)
        unknown_delete = False
        for place in places:
            op = self._operations[place]
            fits, after = _step(op, value)
            if not fits or (after != value and awaited & ~(1 << place)):
                continue
            then = (done | 1 << place, after)
            if op.known:
                if op.kind is Kind.READ or op.refused:
                    return [then]
                choices.append(then)
            elif any(_notices(self._operations[other], after) for other in places if other != place):
                if op.kind is Kind.DELETE and unknown_delete:
                    continue
                unknown_delete = unknown_delete or op.kind is Kind.DELETE
                doubtful.append(then)
        return [*reversed(doubtful), *reversed(choices)]

    def _candidates(self, done: int) -> list[int]:
        """Operations that began before the first of those that are not done has ended."""
        found: list[int] = []
        limit = NEVER
        first = (~done & (done + 1)).bit_length() - 1  # the lowest place that is not done
        for place in range(first, len(self._operations)):
            if done >> place & 1:
                continue
            op = self._operations[place]
            if op.began > limit:
                break
            found.append(place)
            limit = min(limit, op.ended)
        return found


def _finders(operations: Sequence[Operation]) -> dict[int | None, int]:
    """By value that one operation writes: those that happened, and can only have happened while it was there."""
    writers = Counter(op.value for op in operations if op.kind in (Kind.PUT, Kind.SWAP) and not op.refused)
    found: dict[int | None, int] = {}
    for place, op in enumerate(operations):
        if op.known and not op.refused and op.kind in (Kind.READ, Kind.SWAP):
            value = op.value if op.kind is Kind.READ else op.expected
            if value is not None and writers[value] == 1:
                found[value] = found.get(value, 0) | 1 << place
    return found


def _step(op: Operation, value: int | None) -> tuple[bool, int | None]:
    """Whether an operation can happen to a register that holds `value`, and what it then holds."""
    if op.kind is Kind.READ:
        return op.value == value, value
    if op.kind is Kind.DELETE:
        return True, None
    if op.kind is Kind.PUT:
        return True, op.value
    if op.refused:
        return op.expected != value, value
    return op.expected == value, op.value


def _notices(op: Operation, value: int | None) -> bool:
    """Whether an operation can only happen because the register holds `value`, or not what it held before."""
    if op.kind is Kind.SWAP:
        return op.expected != value if op.refused else op.expected == value
    return op.kind is Kind.READ and op.value == value


def shortest_violation(operations: Iterable[Operation]) -> list[Operation]:
    """The operations up to the first end after which a history is not linearizable, for people to read."""
    everything = sorted(operations, key=lambda op: op.began)
    ends = sorted(op.ended for op in everything if op.known)
    low, high = 0, len(ends) - 1  # ends[high] violates
    while low < high:
        middle = (low + high) // 2
        if is_linearizable(_until(everything, ends[middle])):
            low = middle + 1
        else:
            high = middle
    return _until(everything, ends[high])


def _until(operations: Sequence[Operation], event: int) -> list[Operation]:
    """What had happened when `event` had: later ends are not known yet, and reads under way told nothing."""
    begun = [op for op in operations if op.began <= event]
    return [
        op if op.ended <= event else replace(op, ended=NEVER)
        for op in begun
        if op.ended <= event or op.kind is not Kind.READ
    ]
