"""The checker on histories whose verdict is known, and beside the slowest possible search."""

from __future__ import annotations

import itertools
import random

import pytest

from tests.simulation.history import NEVER, Kind, Operation
from tests.simulation.linearizability import Undecided, _step, is_linearizable, shortest_violation


def put(value: int, began: int, ended: int = NEVER) -> Operation:
    return Operation(Kind.PUT, "k", "writer", began, value, ended=ended)


def delete(began: int, ended: int = NEVER) -> Operation:
    return Operation(Kind.DELETE, "k", "writer", began, ended=ended)


def read(value: int | None, began: int, ended: int) -> Operation:
    return Operation(Kind.READ, "k", "reader", began, value, ended=ended)


def swap(
    expected: int | None, value: int | None, began: int, ended: int = NEVER, *, refused: bool = False
) -> Operation:
    return Operation(Kind.SWAP, "k", "swapper", began, value, expected, refused, ended)


GOOD = {
    "nothing": [],
    "nothing was ever written": [read(None, 1, 2)],
    "a write and its read": [put(1, 1, 2), read(1, 3, 4)],
    "a read during a write sees the old": [put(1, 1, 2), put(2, 3, 6), read(1, 4, 5)],
    "a read during a write sees the new": [put(1, 1, 2), put(2, 3, 6), read(2, 4, 5)],
    "two writes at once, in either order": [put(1, 1, 4), put(2, 2, 3), read(1, 5, 6), read(1, 7, 8)],
    "an unknown write never shows": [put(1, 1), read(None, 2, 3)],
    "an unknown write shows late": [put(1, 1, 2), put(2, 3), read(1, 4, 5), put(3, 6, 7), read(2, 8, 9)],
    "a delete": [put(1, 1, 2), delete(3, 4), read(None, 5, 6)],
    "an unknown delete shows late": [put(1, 1, 2), delete(3), read(1, 4, 5), read(None, 6, 7)],
    "unknown deletes one after the other": [
        put(1, 1, 2), delete(3), delete(4), read(None, 5, 6), put(2, 7, 8), read(None, 9, 10),
    ],
    "create once": [swap(None, 1, 1, 4), swap(None, 2, 2, 5, refused=True), read(1, 6, 7)],
    "swaps in a chain": [swap(None, 1, 1, 2), swap(1, 2, 3, 4), swap(1, 3, 5, 6, refused=True), read(2, 7, 8)],
    "a conditional delete": [put(1, 1, 2), swap(1, None, 3, 4), swap(None, 2, 5, 6), read(2, 7, 8)],
    "an unknown conditional delete shows late": [put(1, 1, 2), swap(1, None, 3), read(1, 4, 5), read(None, 6, 7)],
    "an unknown swap explains a refusal": [put(1, 1, 2), swap(1, 2, 3), swap(1, 3, 4, 5, refused=True)],
}  # fmt: skip
BAD = {
    "a value that nobody wrote": [put(1, 1, 2), read(7, 3, 4)],
    "a stale read": [put(1, 1, 2), put(2, 3, 4), read(1, 5, 6)],
    "a lost write": [put(1, 1, 2), read(None, 3, 4)],
    "a deleted object rises again": [put(1, 1, 2), delete(3, 4), read(1, 5, 6)],
    "a read goes back": [put(1, 1, 2), put(2, 3, 12), read(2, 4, 5), read(1, 6, 7)],
    "two readers disagree about the order": [
        put(1, 1, 10), put(2, 2, 9), read(1, 11, 12), read(2, 13, 14),
    ],
    "a refused write shows": [put(1, 1, 2), read(2, 3, 4)],  # refusals leave no operation
    "an unknown write shows before it began": [put(1, 1, 2), read(2, 3, 4), put(2, 5)],
    "an unknown write shows, and is gone again": [put(1, 1, 2), put(2, 3), read(2, 4, 5), read(1, 6, 7)],
    "an unknown delete cannot happen twice": [
        put(1, 1, 2), delete(3), read(None, 4, 5), put(2, 6, 7), read(None, 8, 9),
    ],
    "two winners of a create": [swap(None, 1, 1, 4), swap(None, 2, 2, 5)],
    "two winners of a swap": [put(1, 1, 2), swap(1, 2, 3, 6), swap(1, 3, 4, 7)],
    "a swap that was refused without a reason": [put(1, 1, 2), swap(1, 2, 3, 4, refused=True)],
    "a conditional delete of another version": [put(1, 1, 2), put(2, 3, 4), swap(1, None, 5, 6)],
    "a swap over a write that it did not see": [put(1, 1, 2), put(2, 3, 6), swap(1, 3, 4, 7), read(3, 8, 9)],
    "an unknown swap of what is gone shows": [put(1, 1, 2), put(2, 3, 4), swap(1, 3, 5), read(3, 6, 7)],
    "a list misses what was there all the time": [put(1, 1, 2), read(None, 3, 4), read(1, 5, 6)],
}  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
def test_good_histories(name: str) -> None:
    assert is_linearizable(GOOD[name])


@pytest.mark.parametrize("name", BAD)
def test_bad_histories(name: str) -> None:
    assert not is_linearizable(BAD[name])
    assert not is_linearizable(shortest_violation(BAD[name]))


def by_trying_everything(operations: list[Operation]) -> bool:
    """Every order of every choice of the unknown ones: what the definition says, and nothing else."""
    known = [op for op in operations if op.known]
    unknown = [op for op in operations if not op.known]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *chosen]):
                if any(b.ended < a.began for a, b in itertools.combinations(order, 2)):
                    continue
                value: int | None = None
                for op in order:
                    fits, value = _step(op, value)
                    if not fits:
                        break
                else:
                    return True
    return False


def some_history(rng: random.Random) -> list[Operation]:
    size = rng.randrange(2, 7)
    events = rng.sample(range(1, 100), 2 * size)
    history = []
    for place in range(size):
        began, ended = sorted(events[2 * place : 2 * place + 2])
        kind = rng.choice([Kind.PUT, Kind.DELETE, Kind.READ, Kind.READ, Kind.SWAP])
        if kind is not Kind.READ and rng.random() < 0.3:
            ended = NEVER
        seen = rng.choice([None, 0, 1, 2])
        value = seen if kind is Kind.READ else place
        if kind is Kind.SWAP and rng.random() < 0.3:
            value = None  # a conditional delete
        refused = kind is Kind.SWAP and ended != NEVER and rng.random() < 0.4
        history.append(Operation(kind, "k", "c", began, value, seen, refused, ended))
    return history


def test_random_histories_beside_the_definition() -> None:
    rng = random.Random(20)
    verdicts = [0, 0]
    for _ in range(1500):
        history = some_history(rng)
        verdict = is_linearizable(history)
        assert verdict == by_trying_everything(history), "\n".join(map(str, history))
        verdicts[verdict] += 1
    assert min(verdicts) > 300


def test_a_long_history_is_decided_quickly() -> None:
    """Sixty writers at once whose outcome is unknown, and readers that see some of them."""
    history = [put(value, value + 1) for value in range(60)]
    history += [read(value, 100 + 2 * value, 101 + 2 * value) for value in range(0, 60, 2)]
    assert is_linearizable(history)
    assert not is_linearizable([*history, read(0, 300, 301), read(2, 302, 303)])


def test_a_search_without_end_says_so() -> None:
    history = [put(value, value + 1, 1000 + value) for value in range(30)]
    history += [read(99, 2000, 2001)]
    with pytest.raises(Undecided):
        is_linearizable(history, steps_max=1000)
